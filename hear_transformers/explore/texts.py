"""Words as queries: a text tower, run by transformers -> vectors in the space that CLAP's projection of sounds is in.

The weights of the tower lie in the checkpoint of the audio tower, which is read as every other: tensors alone, by the
hash of the table. Its tokenizer and its sizes are files beside it, or in the cache of Hugging Face. Nothing is fetched
but weights.
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import clap
from ..audio.reading import SUFFIXES
from ..checkpoints import caches, hugging_face, published
from ..checkpoints.loading import hash_of_parts, published_file
from ..checkpoints.state_dicts import load_into
from ..errors import OptionError, WeightsError, import_extra
from ..files import Address, local_path, place_of
from ..networks.family import variant_of
from .reading import Embeddings

LAYER = "projection"
"""Layer of `clap` that lies in one space with texts."""

TOWER = ("text_model.", "text_projection.")
"""What names of the tower's tensors begin with."""

COUNTERS = ("text_model.embeddings.position_ids", "text_model.embeddings.token_type_ids")
"""Tensors without weights, which older files hold, and older versions of transformers want."""

TOKENIZERS = ("tokenizer.json", "vocab.json")
"""Files of a tokenizer, one of which there must be."""


def are_words(query: str) -> bool:
    """Return whether a query is no file, no address and no number, nor named like an audio file that is not there."""
    place = place_of(query)
    return not (
        isinstance(place, Address) or os.path.exists(place) or query.isdecimal() or query.lower().endswith(SUFFIXES)
    )


def check_table(rows: Embeddings, query: str) -> None:
    """Raise OptionError unless the rows of a table lie in one space with texts."""
    made_with = rows.provenance or {}
    readouts = [made_with["scene"]] if "scene" in made_with else made_with.get("timestamps", [])
    layers = [list(readout["layers"]) for readout in readouts]
    if made_with.get("family") != clap.FAMILY.name or layers != [[LAYER]]:
        found = f"{made_with['family']}/{made_with['variant']}" if "family" in made_with else "an unknown model"
        of = ", ".join(dict.fromkeys(name for names in layers for name in names))
        raise OptionError(
            f"{query!r} is no file, and as words it needs a table of CLAP's layer {LAYER}; {rows.path} was made by "
            f"{found}{f', layer {of}' if of else ''}: give an audio file, or embed with --model clap --layer {LAYER}"
        )


def embed(rows: Embeddings, texts: Sequence[str], weights: str = "") -> np.ndarray:
    """Embed texts with the tower beside the network that made a table, on the CPU: (texts, size) float32.

    Compare them with the rows by the plain cosine, as CLAP was trained and as its authors find sounds by texts: texts
    and sounds lie apart (the modality gap: Liang et al., 2203.02053), so the mean of the table's sounds is no origin
    for a text. Taken from it, little but the gap would be left.

    Parameters
    ----------
    rows : see `check_table`
    texts : each as a person would describe a sound
    weights : checkpoint, or its folder, if it is not the published one

    Raises
    ------
    OptionError : transformers or the files of the tokenizer are missing, or a text is too long
    WeightsError : the weights are not those of the table, or hold no text tower
    """
    assert rows.provenance is not None
    transformers = import_extra("a search by words", "transformers", "clap-text")
    _, variant = variant_of(clap.FAMILY, rows.provenance["variant"])
    path = local_path(weights, "weights") if weights else published_file(clap.FAMILY, variant)
    files = hugging_face.weights_in(path)
    rows.check_weights(hash_of_parts(files))
    folder = _folder_of_tokenizer(files[0], published.find(clap.FAMILY.name, variant.checkpoint))
    tensors = {
        name: tensor for name, tensor in hugging_face.read_parts(files).tensors.items() if name.startswith(TOWER)
    }
    if not tensors:
        raise WeightsError(f"{path}: holds no text tower ({', '.join(TOWER)}); give the file that has both towers")
    tower = _tower(transformers, folder, tensors, files[0])
    tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    return np.concatenate([_embedded(tower, tokenizer, text) for text in texts])


def _folder_of_tokenizer(weights: Path, row: published.Checkpoint) -> Path:
    """Find the folder with the tokenizer and the sizes of a text tower."""

    def places() -> Iterator[Path]:
        yield weights.parent
        yield from caches.snapshots(row)

    for folder in places():
        if (folder / hugging_face.CONFIG).is_file() and any((folder / name).is_file() for name in TOKENIZERS):
            return folder
    repository = "/".join((row.url or "").split("/")[3:5])
    raise OptionError(
        f"a search by words needs {hugging_face.CONFIG} and the tokenizer of {repository}, which are neither beside "
        f"{weights} nor in Hugging Face's cache; run: hf download {repository} --exclude '*.bin' '*.safetensors', or "
        "give with --weights the folder that they lie in with the weights"
    )


def _tower(transformers: Any, folder: Path, tensors: Mapping[str, Tensor], file: Path) -> torch.nn.Module:
    """Build the text tower, and load it strictly."""
    config = transformers.ClapTextConfig.from_pretrained(folder, local_files_only=True)
    with torch.random.fork_rng(devices=[]):
        tower: torch.nn.Module = transformers.ClapTextModelWithProjection(config).eval()
    own = {name: tensor for name, tensor in tower.state_dict().items() if name in COUNTERS}
    load_into(tower, {**{name: tensor for name, tensor in tensors.items() if name not in COUNTERS}, **own}, file)
    return tower


@torch.no_grad()
def _embedded(tower: Any, tokenizer: Any, text: str) -> np.ndarray:
    """Embed one text: (1, size)."""
    tokens = tokenizer(text, return_tensors="pt")
    n_tokens = tokens["input_ids"].shape[1]
    most = tower.config.max_position_embeddings - tower.config.pad_token_id - 1  # RoBERTa counts from behind the pad
    if n_tokens > most:
        raise OptionError(f"{text[:40]!r}... has {n_tokens} tokens, and the text tower takes {most}; shorten it")
    embedding: Tensor = tower(**tokens).text_embeds
    return embedding.float().numpy()
