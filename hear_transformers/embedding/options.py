"""What a user chooses of a model: layers, pooling, hop, window, framing."""

from __future__ import annotations

import math
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any, SupportsFloat

from ..errors import OptionError
from ..networks.family import Readout, Variant
from ..networks.frontend import FrameSpec
from ..networks.layer_names import Layer, parse_layers
from ..networks.layer_table import axes_of, layer_table
from ..networks.trunk import Trunk
from .choices import words_of
from .framing import SEGMENTS
from .pooling import frame_wise
from .windows import exact

CLASSIFYING = ("logits", "patch_logits", "framewise")
"""Layers that a classifier makes."""

LABELS = "labels"
"""Layer of embeddings of the classes, and the part of a network that makes them."""


def without_layers(variant: Variant, trunk: Trunk, lost: Collection[str]) -> Variant:
    """Take the layers of a classifier, whose parameters are `lost`, from a network and from what is read of it."""
    if not lost:
        return variant
    gone = {*CLASSIFYING, *(LABELS for name in lost if name.startswith(LABELS))}
    trunk.layers = {layer: axis for layer, axis in trunk.layers.items() if layer not in gone}

    def kept(readout: Readout) -> Readout:
        return replace(readout, layers=tuple(layer for layer in readout.layers if layer not in gone))

    return replace(variant, scene=kept(variant.scene), timestamps=tuple(map(kept, variant.timestamps)))


def shortened(variant: Variant, trunk: Trunk) -> Variant:
    """Clip window lengths to the network's maximum; a custom checkpoint may accept less than its variant."""
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


def lengthened(variant: Variant, trunk: Trunk, usual_frames: int | None) -> Variant:
    """Extend the window of scenes where a network takes more frames than is usual for its variant.

    It becomes the longest in whole seconds, as in every variant of PaSST. Networks with an argument "frames" say their
    length themselves, see `networks.family.with_network`.
    """
    scene = variant.scene
    if scene.fill_frames or trunk.max_frames is None or usual_frames is None or trunk.max_frames <= usual_frames:
        return variant
    window_ms = variant.frontend.max_samples(trunk.max_frames) // variant.frontend.sample_rate * 1000.0
    scene_hop_ms = window_ms * variant.scene_hop_ms / scene.window_ms
    return replace(variant, scene=replace(scene, window_ms=window_ms), scene_hop_ms=scene_hop_ms)


def named(variant: Variant, trunk: Trunk) -> Variant:
    """Name the blocks that readouts count from the last one, "-5"; a shallow custom network has its first for it."""
    blocks = [layer for layer in trunk.layers if layer.isdecimal()]

    def by_name(readout: Readout) -> Readout:
        names = (blocks[max(int(layer), -len(blocks))] if layer[0] == "-" else layer for layer in readout.layers)
        return replace(readout, layers=tuple(names))

    return replace(variant, scene=by_name(variant.scene), timestamps=tuple(map(by_name, variant.timestamps)))


def choose(
    variant: Variant,
    trunk: Trunk,
    *,
    layer: Layer | None = None,
    pool: str | Sequence[str] | None = None,
    hop_ms: float | None = None,
    window_ms: float | Sequence[float] | None = None,
    framing: str | None = None,
    segment: float | None = None,
    overlap: float | None = None,
    mean_over_time: bool = False,
) -> Variant:
    """Apply a user's choices to a variant.

    `layer` and `pool` replace those of every readout but a readout of the mel alone (the low level of the "mel" presets
    of PaSST, which no layer of the network can stand for); `window_ms` replaces the windows and drops that readout.
    Where neither the user nor the network leaves frames to read, as with a vector such as "features", timestamps are
    windowed.
    """
    if segment is None and overlap is not None:
        raise OptionError(f"overlap={overlap!r} is that of segments; give segment, their length in s, too")
    if framing == SEGMENTS:
        raise OptionError(f"framing={framing!r} goes by another name; give segment, their length in s")
    variant = named(variant, trunk)
    changes: dict[str, Any] = {}
    if layer is not None:
        changes["layers"] = parse_layers(
            layer, list(axes_of(trunk, variant.frontend)), lambda: layer_table(trunk.eval(), variant.frontend)
        )
        changes["pool"] = "mean"
    if pool is not None:
        changes["pool"] = ",".join(words_of("pool", pool) if isinstance(pool, str) else pool)
    if segment is not None:
        others = {
            "hop_ms": hop_ms,
            "window_ms": window_ms,
            "framing": framing,
            "mean_over_time": mean_over_time or None,
        }
        variant = replace(variant, scene=replace(variant.scene, **changes))
        return in_segments(variant, segment, 0.0 if overlap is None else overlap, others)
    levels = [readout for readout in variant.timestamps if readout.layers != ("mel",)]
    lengths = [] if window_ms is None else numbers("window_ms", window_ms)
    if framing is None:
        readable = len(lengths) < 2 and has_frames(replace(levels[0], **changes), trunk, variant.frontend)
        framing = variant.framing if readable else "windowed"
    if lengths:
        timestamps = tuple(replace(levels[0], window_ms=length) for length in lengths)
    elif framing == "native":
        longest_ms = native_longest_ms(trunk, variant.frontend)
        timestamps = (replace(levels[0], window_ms=min(variant.scene.window_ms, longest_ms)),)
    else:
        timestamps = variant.timestamps

    def changed(readout: Readout) -> Readout:
        return readout if readout not in levels and readout.layers == ("mel",) else replace(readout, **changes)

    return replace(
        variant,
        scene=replace(variant.scene, **changes),
        timestamps=tuple(changed(readout) for readout in timestamps),
        hop_ms=variant.hop_ms if hop_ms is None else number("hop_ms", hop_ms),
        framing=framing,
        mean_over_time=mean_over_time,
    )


def in_segments(variant: Variant, segment: float, overlap: float, others: Mapping[str, Any]) -> Variant:
    """Return a variant whose timestamps are segments, read like scenes.

    Parameters
    ----------
    variant : with the readout of scenes
    segment : length of each in s
    overlap : of two that follow each other, in s
    others : options that say where timestamps lie too, by name

    Raises
    ------
    OptionError : one of the others is given, or the lengths make no sense
    """
    given = [f"{name}={value!r}" for name, value in others.items() if value is not None]
    if given:
        raise OptionError(f"segment={segment!r} and {', '.join(given)}: segments have times of their own; give either")
    length, shared = number("segment", segment), number("overlap", overlap)
    if not (math.isfinite(length) and length > 0):
        raise OptionError(f"segment={segment!r} is no length; give seconds above 0")
    if not 0 <= shared < length:
        raise OptionError(f"overlap={overlap!r} is not shorter than a segment; give seconds from 0 to below {length:g}")
    hop_ms, segment_ms = float(1000 * (exact(length) - exact(shared))), float(1000 * exact(length))
    readout = replace(variant.scene, window_ms=segment_ms)
    return replace(variant, timestamps=(readout,), hop_ms=hop_ms, framing=SEGMENTS)


def number(name: str, value: Any) -> float:
    """Return the value of an option as a number; raise OptionError if it is none, such as a text."""
    if isinstance(value, bool) or not isinstance(value, SupportsFloat):
        raise OptionError(f"{name}={value!r} is not a number")
    return float(value)


def numbers(name: str, value: Any) -> list[float]:
    """Return the value of an option as a list of one or several numbers, see `number`."""
    several = isinstance(value, Iterable) and not isinstance(value, str)
    return [number(name, each) for each in (value if several else [value])]


def native_longest_ms(trunk: Trunk, spec: FrameSpec) -> float:
    """Return the length of the longest chunk whose layers lie along time, in whole seconds; infinite if any do."""
    frames = trunk.timed_frames
    return math.inf if frames is None else spec.max_samples(frames) // spec.sample_rate * 1000.0


def has_frames(readout: Readout, trunk: Trunk, spec: FrameSpec) -> bool:
    """Return True if every time position can be read on its own, as framing "native" does."""
    axes = axes_of(trunk, spec)
    return all(map(frame_wise, readout.pools)) and all(axes[layer] is not None for layer in readout.layers)
