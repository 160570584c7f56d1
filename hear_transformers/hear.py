"""The HEAR API, written once: https://hearbenchmark.com/hear-api.html.

A family module imports the two getters as they are; its `load_model` is a `Loader` of its `Family`.
"""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

from torch import Tensor

from .checkpoints import state_dicts
from .checkpoints.loading import published_file, read_checkpoint, with_classes_of
from .checkpoints.trained import read_trained
from .embedding.embedder import Embedder
from .embedding.options import choose, shortened
from .files import local_path, sha256_of
from .networks.family import Family, Variant, random_trunk, variant_of
from .networks.layer_table import Layer

__all__ = ["Family", "Loader", "get_scene_embeddings", "get_timestamp_embeddings"]


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """Embed whole clips.

    Parameters
    ----------
    audio : (n_sounds, n_samples) mono, floating point in [-1, 1], at ``model.sample_rate``
    model : from `load_model`

    Returns
    -------
    embeddings : (n_sounds, model.scene_embedding_size) float32

    Raises
    ------
    AudioError : wrong shape, no samples, or samples that are not finite
    """
    return model.embed_scenes(audio)


def get_timestamp_embeddings(audio: Tensor, model: Embedder) -> tuple[Tensor, Tensor]:
    """Embed clips at regular times.

    Parameters
    ----------
    audio : (n_sounds, n_samples) mono, floating point in [-1, 1], at ``model.sample_rate``
    model : from `load_model`

    Returns
    -------
    embeddings : (n_sounds, n_timestamps, model.timestamp_embedding_size) float32
    timestamps : (n_sounds, n_timestamps) float32, centre of each embedding in ms: multiples of the hop, first 0

    Raises
    ------
    AudioError : wrong shape, no samples, or samples that are not finite
    """
    embeddings, centres_ms = model.embed_timestamps(audio)
    return embeddings, centres_ms.float().to(embeddings.device).expand(len(audio), -1)


class Loader:
    """The HEAR function `load_model` of a family; see `__call__` for its options.

    Parameters
    ----------
    family : of networks
    """

    def __init__(self, family: Family) -> None:
        self.family = family
        self.__doc__ = type(self).__call__.__doc__

    def __call__(
        self,
        path: str | os.PathLike[str] = "",
        variant: str | None = None,
        *,
        layer: Layer | None = None,
        pool: str | None = None,
        hop_ms: float | None = None,
        window_ms: float | Sequence[float] | None = None,
        framing: str | None = None,
        precision: str = "float32",
        pretrained: bool = True,
    ) -> Embedder:
        """Load one variant and choose what is read from it; None leaves the variant's own choice.

        Parameters
        ----------
        path : checkpoint file in the authors' layout or ours, of the variant's network with any number of classes;
            empty: the published one, downloaded at first use
        variant : row of the family's table; None is its first, or the one that a checkpoint written by this package
            names
        layer : 0 = output of the patch embedding or stem, i = output of block i, -1 = the last; names such as
            "features" (what the authors call the embedding), "logits", "mel"; lists are concatenated, "all" is every
            numbered one
        pool : how a layer's time and frequency become one vector, a key of `pooling.POOLS` or "cls"; with a layer given
            the default is "mean"
        hop_ms : distance between timestamp embeddings, in ms
        window_ms : receptive field of timestamp embeddings, in ms; several are concatenated. With ``framing="native"``
            the length of the chunks
        framing : "windowed" or "native", see `Embedder`; None is the variant's own choice, or windowed where the layers
            or the pooling chosen have no frames
        precision : of the network: "float32", "bfloat16" or "float16"; results are always float32
        pretrained : False loads seeded random weights, for tests and for training from scratch

        Returns
        -------
        model : on the CPU; move it with ``.to(device)``

        Raises
        ------
        OptionError : a value is not one this variant knows; the message lists what is
        WeightsError : the checkpoint is missing, damaged, or for another network

        Examples
        --------
        >>> from hear_transformers.tiny import load_model
        >>> model = load_model(layer="4,8", pool="meanmax", hop_ms=25)
        >>> model.scene_embedding_size
        768
        """
        family = self.family
        file = local_path(path, "weights") if os.fspath(path) else None
        trained = None if file is None else read_trained(family, file, variant)
        name, row = (trained.name, trained.variant) if trained else variant_of(family, variant)

        def build(row: Variant) -> Embedder:
            trunk = random_trunk(family, row)
            row = shortened(row, trunk)
            chosen = choose(row, trunk, layer=layer, pool=pool, hop_ms=hop_ms, window_ms=window_ms, framing=framing)
            return Embedder(trunk, chosen, name=(family.name, name), precision=precision)

        model = build(row)  # the options are checked before a file is fetched for them
        if trained and file:
            model.labels, model.multi_label = trained.labels, trained.multi_label
            _fill(model, family, trained.state_dict, file)
        elif file:
            state_dict = read_checkpoint(family, row, file)
            row_of_file = with_classes_of(family, row, state_dict, file)
            model = model if row_of_file is row else build(row_of_file)
            _fill(model, family, state_dict, file)
        elif pretrained:
            file = published_file(family, row)
            _fill(model, family, read_checkpoint(family, row, file), file)
        return model


def _fill(model: Embedder, family: Family, state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Load the weights of a file into a model."""
    state_dicts.load_into(model.trunk, state_dict, file, unused=family.unused)
    model.weights_sha256 = sha256_of(file)
