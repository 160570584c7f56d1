"""Encoders for MTEB, whose part for audio is MAEB (github.com/embeddings-benchmark/mteb, version 2).

    import mteb
    from hear_transformers.mteb import AudioEncoder

    mteb.evaluate(AudioEncoder("passt"), mteb.get_tasks(["BeijingOpera"]))

Audio is decoded and resampled as everywhere in this package: MTEB's own way needs torchcodec, and its resampler lets
frequencies above half the new rate through at -11 dB. `mock_run` checks an encoder on MTEB's synthetic tasks, of which
MTEB itself counts those as passed that it has skipped. Nothing is imported of MTEB before it is used.
"""

from __future__ import annotations

import contextlib
import io
import math
from collections.abc import Iterator, Mapping
from functools import cached_property
from os import PathLike
from pathlib import PurePath
from typing import Any
from unittest.mock import patch

import numpy as np
import soundfile
import torch
from torch import Tensor

from .. import OPEN_FAMILIES, __version__, catalogue
from ..audio.reading import AudioFile, read_content
from ..checkpoints import published
from ..errors import HearTransformersError, OptionError, import_extra

ORGANISATION = "hear-transformers"
"""First part of the names under which MTEB keeps results: hear-transformers/passt.base."""

AUDIOSET = frozenset(
    f"AudioSet{rest}"
    for rest in (
        *("", "Mini", "StrongA2TRetrieval", "StrongT2ARetrieval"),
        *("StrongA2TRetrieval.v2", "StrongT2ARetrieval.v2"),
    )
)
"""MTEB's tasks of AudioSet's recordings."""

SPEECH_COMMANDS = frozenset(("SpeechCommands", "SpeechCommandsZeroshotv0.01", "SpeechCommandsZeroshotv0.02"))
"""MTEB's tasks of Speech Commands, of which the first version is a part of the second."""

FREESOUND = frozenset(
    (
        *("ESC50", "ESC50Clustering", "ESC50PairClassification", "ESC50AudioReranking", "ESC50_Zeroshot"),
        *("FSD50K", "FSDKaggle2018Classification", "FSD2019Kaggle", "FSD2019Kaggle.v2", "FSDnoisy18kAudioReranking"),
    )
)
"""MTEB's tasks of recordings of Freesound."""

VGGSOUND = frozenset(
    f"VGGSoundAV{way}Retrieval" for way in ("A2V", "AT2V", "T2VA", "T2V", "V2A", "V2T", "VA2T", "VT2A")
) | {"VGGSoundVA", "VGGSoundVideoAudioZeroshot"}
"""MTEB's tasks of VGGSound."""

TASKS_OF = {
    "AudioSet": AUDIOSET,
    "FSD50K": AUDIOSET | {"FSD50K"},
    "OpenMIC-2018": AUDIOSET,
    "Speech Commands V2": SPEECH_COMMANDS,
    "ImageNet": frozenset[str](),  # of images
    "synthesised audio": frozenset[str](),
    "AudioSet, without labels": AUDIOSET,
    "AudioSet strong": AUDIOSET,
    "ACAV100M, AudioSet, MTG-Jamendo, VGGSound": AUDIOSET | VGGSOUND,
    "AudioSet, FreeSound, FMA, iNaturalist": AUDIOSET | FREESOUND | {"INatSounds"},
    "NatureLM-audio": AUDIOSET | {"INatSounds"},
    "LAION-Audio-630K, with texts": AUDIOSET | FREESOUND,
    "LAION-Audio-630K, music and speech, with texts": AUDIOSET | FREESOUND,
}
"""`Checkpoint.trained_on`: MTEB's tasks of recordings that the weights were trained on. Those for OpenMIC and FSD50K
began as ones of AudioSet, and so did the network of NatureLM-audio."""


class AudioEncoder:
    """A model of this package as an encoder of MTEB: one vector per clip, that of `Embedder.encode`.

    Parameters
    ----------
    model_name : a model ("passt", "panns/cnn14"), also as `model_meta` names it
    revision : for MTEB, which passes it; the weights are those that the package knows
    device : "auto" if None, or a name of PyTorch
    options : further keywords of `catalogue.load_own`, such as layer or pool

    Attributes
    ----------
    mteb_model_meta : what MTEB knows of it, see `model_meta`
    """

    def __init__(
        self, model_name: str, revision: str | None = None, *, device: str | None = None, **options: Any
    ) -> None:
        self.name = _catalogue_name(model_name)
        self.options = options
        self.model = catalogue.load_own(self.name, device or "auto", options)

    @cached_property
    def mteb_model_meta(self) -> Any:
        """Return what MTEB knows of the model."""
        return model_meta(self.name, **self.options)

    def encode(
        self,
        inputs: Any,
        *,
        task_metadata: Any = None,
        hf_split: str = "",
        hf_subset: str = "",
        prompt_type: Any = None,
        **kwargs: Any,
    ) -> Any:
        """Embed the clips of a task, in order.

        Parameters
        ----------
        inputs : PyTorch's loader of a data set whose column "audio" holds clips as `Embedder.encode` takes them; its
            number of workers is that of the processes that decode
        task_metadata : of the task, for errors
        hf_split, hf_subset, prompt_type : not needed for audio
        kwargs : batch_size, windows per forward pass; show_progress_bar

        Returns
        -------
        embeddings : (clips, size) float32

        Raises
        ------
        OptionError : the task has no audio, or asks for vectors of another precision
        AudioError : a clip cannot be read
        """
        if kwargs.get("precision", "float32") != "float32":
            raise OptionError(f"precision={kwargs['precision']!r}: these embeddings are float32")
        return self.model.encode(
            _sounds(inputs, getattr(task_metadata, "name", "the task")),
            batch_size=kwargs.get("batch_size"),
            num_workers=inputs.num_workers,
            show_progress_bar=kwargs.get("show_progress_bar", True),
        )

    def similarity(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each embedding (n, size) with each of others (m, size): (n, m)."""
        return _unit(embeddings1) @ _unit(embeddings2).T

    def similarity_pairwise(self, embeddings1: Any, embeddings2: Any) -> Tensor:
        """Return the cosine of each embedding (n, size) with the one at its place in others (n, size): (n,)."""
        return (_unit(embeddings1) * _unit(embeddings2)).sum(-1)


def _unit(embeddings: Any) -> Tensor:
    return torch.nn.functional.normalize(torch.atleast_2d(torch.as_tensor(embeddings).float()), dim=-1)


def _sounds(inputs: Any, task: str) -> Iterator[Any]:
    """Yield the clips of a loader in its order; files of a `datasets.Dataset` as they are, to be decoded here."""
    rows = inputs.dataset
    feature: Any = (getattr(rows, "features", None) or {}).get("audio")
    if getattr(feature, "decode", False):
        rows = rows.cast_column("audio", type(feature)(decode=False))
    for index in inputs.sampler:
        row = rows[index]
        if row.get("audio") is None:
            raise OptionError(f"{task}: row {index} has no audio, but {', '.join(row)}; these models embed audio alone")
        yield row["audio"]


# What MTEB is told


def _catalogue_name(model: str) -> str:
    """Return family and variant of a model under any of its names: "passt/base"."""
    organisation, _, name = model.partition("/")
    if organisation == ORGANISATION:
        model = name.replace(".", "/", 1)
    return catalogue.full_name(model)


def model_meta(model: str, **options: Any) -> Any:
    """Return MTEB's ModelMeta of a model; `AudioEncoder` loads it.

    Parameters
    ----------
    model : a model ("passt", "panns/cnn14")
    options : for `AudioEncoder`, such as layer or pool; results of each choice are kept apart

    Raises
    ------
    OptionError : MTEB is not installed, or the model or an option is unknown
    """
    name = _catalogue_name(model)
    family, variant = name.split("/", 1)
    if family in OPEN_FAMILIES:
        row: Mapping[str, Any] = catalogue.describe(family, variant, options)
        published_as = _of_checkpoint(family, None, row["source"]["sha256"])
    else:
        row = catalogue.sizes()[family][variant]
        published_as = _of_checkpoint(family, row["checkpoint"])
    n_parameters, size = row["parameters"], row["scene_embedding_size"]
    if options and family not in OPEN_FAMILIES:
        keywords = {key: value for key, value in options.items() if key not in ("weights", "batch_size", "compile")}
        keywords |= {"variant": variant, "pretrained": False}
        size = catalogue.family(family).load_model(**keywords).scene_embedding_size
    return import_extra("a model of MTEB", "mteb", "mteb").models.ModelMeta(
        loader=AudioEncoder,
        loader_kwargs=dict(options),
        experiment_kwargs={key: str(value) for key, value in options.items()} or None,
        name=f"{ORGANISATION}/{family}.{variant}",
        n_parameters=n_parameters,
        n_embedding_parameters=0,
        memory_usage_mb=4 * n_parameters / 2**20,  # float32
        embed_dim=size,
        max_tokens=math.inf,
        similarity_fn_name="cosine",
        framework=["PyTorch"],
        modalities=["audio"],
        languages=None,
        use_instructions=False,
        release_date=None,
        **published_as,
    )


def _of_checkpoint(family: str, name: str | None, sha256: str | None = None) -> dict[str, Any]:
    """Return what the manifest says of published weights, in the words of ModelMeta; of others their hash is known."""
    found = published.find(family, name) if name else None
    tasks = TASKS_OF.get(found.trained_on or "") if found else None
    told_apart_by = (found.sha256 or found.name) if found else sha256 or "unpublished"
    return {
        # Embeddings change with the weights and with the package.
        "revision": f"{__version__}-{told_apart_by[:12]}",
        "license": found.licence.lower() if found else None,
        "open_weights": found is not None,
        "reference": found.source if found else None,
        "public_training_code": found.source if found else None,
        "public_training_data": None,
        "training_datasets": None if tasks is None else set(tasks),
    }


# MTEB's synthetic tasks


def mock_run(encoder: Any) -> dict[str, Any]:
    """Run MTEB's synthetic tasks of audio, `mteb.mock_run`.

    Parameters
    ----------
    encoder : an `AudioEncoder`, or any other encoder of audio

    Returns
    -------
    results : by the name of the task

    Raises
    ------
    OptionError : MTEB is not installed
    HearTransformersError : a task failed or was skipped, which MTEB counts as passed, or there was none
    """
    library = import_extra("a model of MTEB", "mteb", "mteb")
    with own_audio():
        ran = {name: status for name, status in library.mock_run(encoder).items() if status is not None}
    failed = {name: status.exception for name, status in ran.items() if hasattr(status, "exception")}
    if failed or not ran:
        shown = "; ".join(f"{name} ({str(error).strip().splitlines()[-1]})" for name, error in failed.items())
        raise HearTransformersError(
            f"{len(failed)} of MTEB's {len(ran)} synthetic tasks failed or were skipped{': ' if shown else ''}{shown}"
        )
    return ran


@contextlib.contextmanager
def own_audio() -> Iterator[None]:
    """Decode and encode the audio of `datasets` by this package, for tasks that would need torchcodec.

    A decoded sound is a dict with "array", (samples,) float32 with channels averaged, "sampling_rate" and "path".
    """
    feature = import_extra("audio of MTEB", "datasets", "mteb").Audio
    with (
        patch.object(feature, "decode_example", lambda self, value, token_per_repo_id=None: decoded(value)),
        patch.object(feature, "encode_example", lambda self, value: encoded(value)),
    ):
        yield


def decoded(value: Any) -> Any:
    """Decode a sound of `datasets`, a dict with "path" and "bytes"; what is none is decoded already.

    Raises
    ------
    AudioError : it cannot be decoded, or is not on this machine
    """
    if not isinstance(value, Mapping):
        return value
    path: Any = value.get("path")
    content = value.get("bytes")
    if content is not None:
        waveform, rate = read_content(content, PurePath(path or "").suffix)
    else:
        with AudioFile(path) as file:
            rate = file.sample_rate
            waveform = file.read(rate)
    return {"path": path, "array": waveform.numpy(), "sampling_rate": rate}


def encoded(value: Any) -> dict[str, Any]:
    """Return a sound as `datasets` stores it, a dict with "path" and "bytes"; an array becomes a WAV file.

    Raises
    ------
    OptionError : it is of a kind that is not stored
    """
    if isinstance(value, (str, PathLike)):
        return {"path": str(value), "bytes": None}
    if isinstance(value, (bytes, bytearray)):
        return {"path": None, "bytes": bytes(value)}
    if isinstance(value, Mapping) and "array" in value:
        file = io.BytesIO()
        soundfile.write(file, np.asarray(value["array"]).T, value["sampling_rate"], format="WAV", subtype="FLOAT")
        return {"path": None, "bytes": file.getvalue()}
    if isinstance(value, Mapping) and (value.get("path") or value.get("bytes")):
        return {"path": value.get("path"), "bytes": value.get("bytes")}
    raise OptionError(f"{type(value).__name__} is no sound; give a path, bytes, or a dict with 'array' or 'bytes'")
