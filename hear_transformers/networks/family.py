"""The records that a family file declares: its networks as rows of a table, and what is read from each."""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from .frontend import FrameSpec
from .trunk import Trunk


@dataclass(frozen=True, slots=True)
class Readout:
    """One vector per window: the length of the window, the layers, their pooling.

    Attributes
    ----------
    window_ms : length of the window; for scenes the longest clip that is read in one pass
    layers : keys of `Trunk.layers` or "mel", concatenated in this order
    pool : a key of `pooling.POOLS`, or "cls"; vectors pass unchanged
    fill_frames : shorter clips are padded to this many frames with `FrameSpec.padding`, as the network was trained
    """

    window_ms: float
    layers: tuple[str, ...]
    pool: str = "mean"
    fill_frames: int = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Variant:
    """Everything that distinguishes two models of one family.

    Attributes
    ----------
    checkpoint : name of the family's row in weights/manifest.toml; empty if none is published
    network : keyword arguments of the family's network
    frontend : the mel dialect, or the waveform itself
    scene : readout of a whole clip
    scene_hop_ms : distance between the windows of a clip longer than one window
    timestamps : readouts around each timestamp, concatenated; with framing "native" the first one, read from chunks as
        long as a scene's window
    hop_ms : distance between timestamps
    framing : "windowed" or "native", see `Embedder`
    imagenet : table and row in weights/manifest.toml of the network for images that training may start from; None
        without one
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
    network : builds the network from `Variant.network`. An argument that counts blocks has "depth" in its name, see
        `checkpoints.trained`
    variants : its variants by name, the default first
    convert_state_dict : authors' state dict of a variant -> ours; raises WeightsError if it belongs to other audio
    unused : keys of the authors' checkpoints, after `convert_state_dict`, that the network ignores
    classifier : keys, after `convert_state_dict`, of biases with one entry per class; the first one present counts the
        classes of a file, which may differ from the variant's. Empty for a family without a classifier
    adapt_pretrained : used by `training.initialisation` alone, after `convert_state_dict`: fits weights of a network
        for images, or for another length, to a variant
    reinitialised : prefixes of keys. A group that is not all in a file, or of other shapes, is drawn at random by
        `training.initialisation`. Parts come before the whole: ("head.1.", "head.") keeps what it can of a classifier
    """

    name: str
    network: Callable[..., Trunk]
    variants: Mapping[str, Variant]
    convert_state_dict: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: (
        state_dict
    )
    unused: tuple[str, ...] = ()
    classifier: tuple[str, ...] = ()
    adapt_pretrained: Callable[[dict[str, Tensor], Variant], dict[str, Tensor]] = lambda state_dict, variant: state_dict
    reinitialised: tuple[str, ...] = ()


def variant_of(family: Family, name: str | None) -> tuple[str, Variant]:
    """Return (name, variant), the first for None; raise OptionError that lists the variants for an unknown name."""
    name = next(iter(family.variants)) if name is None else name
    if name not in family.variants:
        raise OptionError(f"variant={name!r} is unknown to {family.name}; choose one of {', '.join(family.variants)}")
    return name, family.variants[name]


def random_trunk(family: Family, variant: Variant) -> Trunk:
    """Build a variant's network with the same random weights every time, without touching the global seed."""
    with torch.random.fork_rng(devices=[]), float32_by_default():
        torch.manual_seed(0)
        return family.network(**variant.network)


@contextlib.contextmanager
def float32_by_default() -> Iterator[None]:
    """Build in float32, also for users who set another default; where it is float32, as nearly always, do nothing."""
    before = torch.get_default_dtype()
    if before == torch.float32:
        yield
        return
    torch.set_default_dtype(torch.float32)
    try:
        yield
    finally:
        torch.set_default_dtype(before)
