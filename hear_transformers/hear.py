"""The HEAR API, written once: https://hearbenchmark.com/hear-api.html.

A family module imports the two getters as they are and makes its `load_model` with `loader`, from its `Family`.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from itertools import groupby
from pathlib import Path
from typing import Any, Protocol

from torch import Tensor

from .checkpoints import state_dicts
from .checkpoints.loading import Family, published_file, random_trunk, read, variant_of, with_classes_of
from .checkpoints.trained import read_trained
from .embedding.embedder import Embedder
from .embedding.pooling import POOLS
from .errors import OptionError
from .files import sha256_of
from .networks.frontend import FrameSpec
from .networks.trunk import LayerRow, Readout, Trunk, Variant, axes_of, layer_table

__all__ = ["Family", "get_scene_embeddings", "get_timestamp_embeddings", "loader"]

Layer = int | str | Sequence[int | str]
"""``8``, ``-1``, ``"8"``, ``"4,8,12"``, ``[4, 8, "features"]`` or ``"all"``."""


def get_scene_embeddings(audio: Tensor, model: Embedder) -> Tensor:
    """Embed whole clips.

    Parameters
    ----------
    audio : (n_sounds, n_samples) mono, floating point in [-1, 1], at ``model.sample_rate``
    model : what `load_model` gave

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
    model : what `load_model` gave

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


class LoadModel(Protocol):
    """The HEAR function `load_model` of a family."""

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
            says it is of
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
        precision : of the network: "float32", "bfloat16" or "float16"; results are float32 always
        pretrained : False gives seeded random weights, for tests and for training from scratch

        Returns
        -------
        model : on the CPU; move it with ``.to(device)``

        Raises
        ------
        OptionError : a value is not one this variant knows; the message lists what is
        WeightsError : the checkpoint is missing, damaged, or for another network
        """
        ...


def loader(family: Family) -> LoadModel:
    """Make the HEAR function `load_model` of one family."""

    def load_model(
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
        file = Path(path) if os.fspath(path) else None
        own = None if file is None else read_trained(family, file, variant)
        name, row = (own.name, own.variant) if own else variant_of(family, variant)

        def build(row: Variant) -> Embedder:
            trunk = random_trunk(family, row)
            row = shortened(row, trunk)
            chosen = choose(row, trunk, layer=layer, pool=pool, hop_ms=hop_ms, window_ms=window_ms, framing=framing)
            return Embedder(trunk, chosen, name=(family.name, name), precision=precision)

        model = build(row)  # the options are checked before a file is fetched for them
        if own and file:
            model.labels, model.multi_label = own.labels, own.multi_label
            _fill(model, family, own.state_dict, file)
        elif file:
            state_dict = read(family, row, file)
            row_of_file = with_classes_of(family, row, state_dict, file)
            model = model if row_of_file is row else build(row_of_file)
            _fill(model, family, state_dict, file)
        elif pretrained:
            file = published_file(family, row)
            _fill(model, family, read(family, row, file), file)
        return model

    load_model.__doc__ = LoadModel.__call__.__doc__
    return load_model


def _fill(model: Embedder, family: Family, state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Give a model the weights of a file."""
    state_dicts.load_into(model.trunk, state_dict, file, unused=family.unused)
    model.weights_sha256 = sha256_of(file)


def shortened(variant: Variant, trunk: Trunk) -> Variant:
    """Shorten what is read at once to what a network takes: one of one's own may take less than its variant's."""
    if trunk.max_frames is None:
        return variant
    most = trunk.max_frames
    longest_ms = 1000.0 * variant.frontend.max_samples(most) / variant.frontend.sample_rate

    def cut(readout: Readout) -> Readout:
        fill_frames = min(readout.fill_frames, most)
        return replace(readout, window_ms=min(readout.window_ms, longest_ms), fill_frames=fill_frames)

    scene = cut(variant.scene)
    scene_hop_ms = min(variant.scene_hop_ms, scene.window_ms)
    return replace(variant, scene=scene, scene_hop_ms=scene_hop_ms, timestamps=tuple(map(cut, variant.timestamps)))


def choose(
    variant: Variant,
    trunk: Trunk,
    *,
    layer: Layer | None = None,
    pool: str | None = None,
    hop_ms: float | None = None,
    window_ms: float | Sequence[float] | None = None,
    framing: str | None = None,
) -> Variant:
    """Apply a user's choices to a variant.

    `layer` and `pool` replace those of every readout but a readout of the mel alone (the low level of the "mel" presets
    of PaSST, which no layer of the network can stand for); `window_ms` replaces the windows and drops that readout.
    Where neither the user nor the network leaves frames to read, as with a vector such as "features", timestamps are
    windowed.
    """
    changes: dict[str, Any] = {}
    if layer is not None:
        changes["layers"] = parse_layers(layer, trunk, variant.frontend)
        changes["pool"] = "mean"
    if pool is not None:
        changes["pool"] = pool
    levels = [readout for readout in variant.timestamps if readout.layers != ("mel",)]
    lengths = [window_ms] if isinstance(window_ms, (int, float)) else list(window_ms or ())
    if framing is None:
        readable = len(lengths) < 2 and has_frames(replace(levels[0], **changes), trunk, variant.frontend)
        framing = variant.framing if readable else "windowed"
    if lengths:
        timestamps = tuple(replace(levels[0], window_ms=float(length)) for length in lengths)
    elif framing == "native":
        timestamps = (replace(levels[0], window_ms=variant.scene.window_ms),)
    else:
        timestamps = variant.timestamps

    def changed(readout: Readout) -> Readout:
        return readout if readout not in levels and readout.layers == ("mel",) else replace(readout, **changes)

    return replace(
        variant,
        scene=replace(variant.scene, **changes),
        timestamps=tuple(changed(readout) for readout in timestamps),
        hop_ms=variant.hop_ms if hop_ms is None else float(hop_ms),
        framing=framing,
    )


def has_frames(readout: Readout, trunk: Trunk, spec: FrameSpec) -> bool:
    """Tell whether every time position can be read on its own, as framing "native" does."""
    axes = axes_of(trunk, spec)
    pool = POOLS.get(readout.pool)
    return pool is not None and not pool.whole_window and all(axes[layer] is not None for layer in readout.layers)


def parse_layers(layer: Layer, trunk: Trunk, spec: FrameSpec) -> tuple[str, ...]:
    """Turn a user's choice of layers into keys of `Trunk.layers` (or "mel"), in the order given.

    Raises
    ------
    OptionError : a layer the network does not have; the message lists those it has
    """
    known = axes_of(trunk, spec)
    numbered = [key for key in known if key.isdecimal()]
    parts = layer.split(",") if isinstance(layer, str) else [layer] if isinstance(layer, int) else list(layer)
    keys: list[str] = []
    for part in parts:
        text = str(part).strip()
        if text == "all":
            keys.extend(numbered)
        elif text in known:
            keys.append(text)
        elif text.removeprefix("-").isdecimal() and -len(numbered) <= int(text) < 0:
            keys.append(numbered[int(text)])
        else:
            raise OptionError(
                f"layer={text!r} is unknown; choose from {_listed(layer_table(trunk.eval(), spec))}; "
                f"-1 for the last block, all, or a list such as 0,{numbered[-1]}"
            )
    return tuple(keys)


def _listed(rows: Iterable[LayerRow]) -> str:
    """Write layers as a line, neighbours that differ only in their number together: "1..12 (768 numbers, 100 ms)"."""
    texts = {}
    for row in rows:
        hop = "" if row.hop_ms is None else f", every {row.hop_ms:g} ms"
        texts[row.name] = f"({row.size} numbers{hop})"
    parts = []
    for text, names in groupby(texts, key=lambda name: (texts[name], name.isdecimal())):
        first, *_, last = [*names] * 2
        parts.append(f"{first if first == last else f'{first}..{last}'} {text[0]}")
    return ", ".join(parts)
