"""What a family file declares: its networks as rows of a table, and what is read from each."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .frontend import FrameSpec
from .trunk import Trunk


@dataclass(frozen=True, slots=True)
class Readout:
    """One vector per window: how long the window is, which layers are read, how they are pooled.

    Attributes
    ----------
    window_ms : length of the window; for scenes the longest clip that is read in one pass
    layers : keys of `Trunk.layers` or "mel", concatenated in this order
    pool : a key of `pooling.POOLS`, or "cls"; vectors pass unchanged
    fill_frames : a shorter clip is filled up to so many frames with `FrameSpec.padding`, for networks trained on it
    """

    window_ms: float
    layers: tuple[str, ...]
    pool: str = "mean"
    fill_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Everything that tells two models of one family apart.

    Attributes
    ----------
    checkpoint : name of the family's row in weights/manifest.toml; empty if none is published
    network : keyword arguments of the family's network
    frontend : the mel dialect, or the waveform itself
    scene : how a whole clip is read
    scene_hop_ms : distance between the windows of a clip longer than one window
    timestamps : what is read around each timestamp, concatenated; with framing "native" the first of them is read from
        chunks as long as a scene's window
    hop_ms : distance between timestamps
    framing : "windowed" or "native", see `Embedder`
    imagenet : table and row in weights/manifest.toml of the network for images that training may start from, None if
        there is none
    """

    checkpoint: str
    network: Mapping[str, Any]
    frontend: FrameSpec
    scene: Readout
    scene_hop_ms: float
    timestamps: tuple[Readout, ...]
    hop_ms: float = 50.0
    framing: str = "windowed"
    imagenet: tuple[str, str] | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """One family of networks.

    Attributes
    ----------
    name : of its module
    network : makes the network from `Variant.network`
    variants : its variants by name, the default first
    adapt : authors' state dict of a variant -> ours; raises WeightsError if it belongs to other audio
    unused : keys of the authors' checkpoints (after `adapt`) that the network has no use for
    classifier : keys (after `adapt`) of which the first that is there is as long as there are classes: a file of one's
        own may have other classes than the variant; empty for a family without a classifier
    begin : for `start` alone, after `adapt`: fits what was made for images, or for another length, to a variant
    fresh : starts of keys; where those of a group are not all in a file, or of other shapes, `start` draws all of them
        anew. Parts come before the whole: ("head.1.", "head.") keeps what it can of a classifier
    """

    name: str
    network: Callable[..., Trunk]
    variants: Mapping[str, Variant]
    adapt: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: state_dict
    unused: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    begin: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: state_dict
    fresh: tuple[str, ...] = ()


def variant_of(family: Family, name: str | None) -> tuple[str, Variant]:
    """Give a variant by name, None for the first; raise OptionError that lists those there are."""
    name = next(iter(family.variants)) if name is None else name
    if name not in family.variants:
        raise OptionError(f"variant={name!r} is unknown to {family.name}; choose one of {', '.join(family.variants)}")
    return name, family.variants[name]


def random_trunk(family: Family, variant: Variant) -> Trunk:
    """Build a variant's network with random weights, the same ones every time, without touching the global seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return family.network(**variant.network)
