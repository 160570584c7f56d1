"""The HEAR API, written once: https://hearbenchmark.com/hear-api.html.

A family module imports the two getters as they are; its `load_model` is that of a `Loader` of its `Family`.
"""

from __future__ import annotations

import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from .checkpoints import saved, state_dicts
from .checkpoints.hub import located
from .checkpoints.loading import Loaded, published_file, read_foreign
from .checkpoints.trained import read_trained
from .embedding.choices import Framing, Pool, Precision
from .embedding.devices import pick_device
from .embedding.embedder import Embedder
from .embedding.options import choose, lengthened, shortened, without_layers
from .errors import OptionError
from .networks.family import (
    Family,
    Variant,
    check_arguments,
    on_meta,
    random_trunk,
    unfilled_trunk,
    variant_of,
    with_network,
    with_normalisation,
)
from .networks.layer_names import Layer

UNSET = object()
"""Differs from every value of an argument."""

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

    Examples
    --------
    >>> import torch
    >>> from hear_transformers.tiny import get_scene_embeddings, load_model
    >>> model = load_model(layer=8)
    >>> get_scene_embeddings(torch.zeros(2, model.sample_rate), model).shape
    torch.Size([2, 192])
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

    Examples
    --------
    >>> import torch
    >>> from hear_transformers.tiny import get_timestamp_embeddings, load_model
    >>> model = load_model(layer=8, hop_ms=50)
    >>> embeddings, timestamps = get_timestamp_embeddings(torch.zeros(2, model.sample_rate), model)
    >>> embeddings.shape, timestamps[0, :3].tolist()
    (torch.Size([2, 21, 192]), [0.0, 50.0, 100.0])
    """
    embeddings, centres_ms = model.embed_timestamps(audio)
    return embeddings, centres_ms.float().to(embeddings.device).expand(len(audio), -1)


class Loader:
    """Makes the HEAR function `load_model` of a family.

    Parameters
    ----------
    family : of networks
    """

    def __init__(self, family: Family) -> None:
        self.family = family

    def load_model(
        self,
        path: str | os.PathLike[str] = "",
        variant: str | None = None,
        *,
        layer: Layer | None = None,
        pool: Pool | Sequence[Pool] | None = None,
        hop_ms: float | None = None,
        window_ms: float | Sequence[float] | None = None,
        framing: Framing | None = None,
        segment: float | None = None,
        overlap: float | None = None,
        mean_over_time: bool = False,
        precision: Precision = "float32",
        device: str | torch.device = "cpu",
        pretrained: bool = True,
        network: Mapping[str, Any] | None = None,
        normalisation: Sequence[float] | None = None,
        weights_prefix: str | None = None,
    ) -> Embedder:
        """Load one variant and choose what is read from it; None leaves the variant's own choice.

        Parameters
        ----------
        path : checkpoint file in the authors' layout, Hugging Face's or ours; a folder of Hugging Face, or one that
            `Embedder.save_pretrained` wrote, whose choices are made where none are given here; or the name of such a
            repository, "user/name" or "user/name@revision". The network is looked for in it, and its sizes are read
            from its tensors, see `checkpoints.search`. Empty: the published file, downloaded at first use
        variant : row of the family's table; None is the one that the file names, is known for or fits, else the first
        layer : 0 = output of the patch embedding or stem, i = output of block i, -1 = the last; names such as
            "features" (what the authors call the embedding), "logits", "mel"; lists are concatenated, "all" is every
            numbered one
        pool : how a layer's time and frequency become one vector: "mean", "max", "meanmax", "meanstd", "flat" (keeps
            frequency), "unroll" (keeps everything) or "cls", see `pooling.POOLS`; of a list, also as "mean,cls", the
            vectors are concatenated for each layer; with a layer given the default is "mean"
        hop_ms : distance between timestamp embeddings, in ms
        window_ms : receptive field of timestamp embeddings, in ms; several are concatenated. With ``framing="native"``
            the length of the chunks
        framing : "windowed" or "native", see `Embedder`; None is the variant's own choice, or windowed where the layers
            or the pooling chosen have no frames
        segment : instead of hop, window and framing: timestamps are those of segments of this length in s, 0-3, 3-6,
            ...; each is embedded like a clip of its own. Their timestamp is their centre, `Embedder.spans_ms` returns
            where they begin and end
        overlap : of two segments that follow each other, in s; None is 0
        mean_over_time : True for scene embeddings that are the mean over the timestamp embeddings
        precision : of the network: "float32", "bfloat16", "float16", "tf32" (CUDA only), or "auto": bfloat16 where
            the device has instructions for it, else float32. Results are always float32
        device : "cpu", as HEAR has it; "cuda", "cuda:1", "mps"; "auto" for the fastest there is
        pretrained : False loads seeded random weights, for tests and for training from scratch
        network : arguments of the network that differ from the variant's and are in no tensor, such as
            ``{"stride": 16}``
        normalisation : mean and standard deviation of the recordings, as the authors' training code takes them; None is
            that of the variant, or of ``preprocessor_config.json`` beside the weights
        weights_prefix : of the network's names in the file, such as "student.", where several networks fit

        Returns
        -------
        model : on the device; ``.to(device)`` moves it

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
        family, place, given = self.family, pick_device(device), dict(network or {})
        options: dict[str, Any] = {"layer": layer, "pool": pool, "segment": segment, "overlap": overlap}
        options |= {"hop_ms": hop_ms, "window_ms": window_ms, "framing": framing, "mean_over_time": mean_over_time}
        options = {name: saved.plain(value) for name, value in options.items()}

        def build(name: str, row: Variant, lost: Collection[str] = ()) -> Embedder:
            row = with_normalisation(row, normalisation)
            is_filled = pretrained and not lost  # by the weights of a file, which must be complete
            trunk = (unfilled_trunk if is_filled else random_trunk)(family, row)
            row = lengthened(shortened(row, trunk), trunk, usual_frames(family, family.variants[name]))
            row = without_layers(row, trunk, lost)
            try:
                chosen = choose(row, trunk, **options)
            except OptionError as error:
                raise OptionError(f"{error}; {path} holds no classifier") if lost else error from None
            model = Embedder(trunk, chosen, name=(family.name, name), precision=precision, device=place)
            model.origin = _origin(family.variants[name], row, options, lost)
            model.read_with = _read_with(model.origin, given, weights_prefix)
            return model if place == model.device else model.to(place)

        if os.fspath(path):
            file = located(path)
            options = saved.joined(saved.read_options(file), options)
            loaded = read_trained(family, file, variant, given) or read_foreign(
                family, variant, file, network=given, prefix=weights_prefix
            )
            model = build(loaded.name, loaded.variant, loaded.lost)
            _fill(model, loaded, file)
            return model
        name, row = variant_of(family, variant)
        check_arguments(family, row, given)
        model = build(name, with_network(row, given))  # the options are checked before a file is fetched for them
        if pretrained:
            file = published_file(family, row)
            _fill(model, read_foreign(family, name, file, network=given, prefix=weights_prefix), file)
        return model


def usual_frames(family: Family, variant: Variant) -> int | None:
    """Return the most frames that the network of a row of the table takes; None if any number."""
    return on_meta(family, variant).max_frames


def _fill(model: Embedder, loaded: Loaded, file: Path) -> None:
    """Load the weights of a file into a model, with the names of its classes."""
    unread = {name: tensor for name, tensor in model.trunk.state_dict().items() if name in loaded.lost}
    state_dicts.load_into(model.trunk, loaded.state_dict | unread, file)
    model.weights_sha256 = loaded.sha256
    model.labels, model.multi_label = loaded.labels, loaded.multi_label


def _origin(variant: Variant, row: Variant, options: Mapping[str, Any], lost: Collection[str]) -> saved.Origin:
    """Return how a model differs from a row of the table."""
    usual, held = variant.frontend.normalisation, row.frontend.normalisation
    return saved.Origin(
        network={name: value for name, value in row.network.items() if variant.network.get(name, UNSET) != value},
        normalisation=None if held == usual else held,
        options=saved.chosen(options),
        lost=tuple(lost),
    )


def _read_with(origin: saved.Origin, given: Mapping[str, Any], weights_prefix: str | None) -> dict[str, Any]:
    """Return what changes embeddings beside the variant and the file, ready for JSON."""
    changed = {"network": dict(given), "weights_prefix": weights_prefix, "normalisation": origin.normalisation}
    return {name: value for name, value in changed.items() if value}
