"""What a family file declares: its network as a `Trunk`, its variants as rows."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from .frontend import FrameSpec


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """How the time positions of a layer lie over the frames of the front end.

    Attributes
    ----------
    hop : distance between two positions, in frames
    offset : centre of position 0, in frames (0 = centre of the first frame)
    field : frames that one position sees; None if it sees the whole window
    """

    hop: int
    offset: float
    field: int | None


class Trunk(nn.Module):
    """A network from the frames of a front end to layers; every family derives its network from it.

    Attributes
    ----------
    layers : every layer in order, "0" (patch embedding or stem) .. "N" (last block), then names such as "features" and
        "logits"; its `TimeAxis` if it lies along time, None if it is a vector or a grid of something else
    prefix : names of the prefix tokens, ("cls",) or ("cls", "dist"); the vector "8.cls" goes with the grid "8"
    min_frames : fewest frames the network takes
    max_frames : most frames it takes; None if any number
    """

    layers: Mapping[str, TimeAxis | None]
    prefix: tuple[str, ...] = ()
    min_frames: int = 1
    max_frames: int | None = None

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run the network just as deep as the wanted layers need.

        Parameters
        ----------
        frames : (batch, n_mels, frames) float32, or (batch, samples) where the front end is a `Waveform`
        wanted : keys of `layers`, or a grid's key with a prefix token ("8.cls")

        Returns
        -------
        taps : one tensor for every wanted key: (batch, time, freq, features) for a grid, (batch, features) for a
            vector; a grid of something else than time and frequency, such as labels, is
            (batch, 1, positions, features)
        """
        raise TypeError(f"{type(self).__name__} has no forward of its own")


def depth_of(wanted: Collection[str], n_blocks: int) -> int:
    """Give the number of blocks that the wanted layers need; names such as "logits" need all `n_blocks`."""
    numbers = [layer.partition(".")[0] for layer in wanted]
    return max(int(number) if number.isdecimal() else n_blocks for number in numbers)


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


MEL_AXIS = TimeAxis(1, 0.0, 1)
"""The log-mel spectrogram itself, layer "mel" of every model whose front end makes one."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer for people to choose from.

    Attributes
    ----------
    name : what `load_model(layer=...)` takes
    size : features of a position, or of the vector
    n_freq : positions along frequency, or of what a grid without time has; 1 for a vector
    hop_ms : distance between two positions in time; None without time
    field_ms : audio that one position sees; None if all of the window
    """

    name: str
    size: int
    n_freq: int
    hop_ms: float | None
    field_ms: float | None


def axes_of(trunk: Trunk, spec: FrameSpec) -> dict[str, TimeAxis | None]:
    """Give every layer of a model in order, that of its front end first: its time axis, None if it has none."""
    return {**({"mel": MEL_AXIS} if spec.has_mel else {}), **trunk.layers}


@torch.no_grad()
def layer_table(trunk: Trunk, spec: FrameSpec) -> list[LayerRow]:
    """Measure every layer on a few frames of zeros; the network must be in evaluation mode."""
    example = spec.example(trunk.min_frames).to(next(trunk.parameters()).device)
    taps = trunk(example, list(trunk.layers))
    if spec.has_mel:
        taps["mel"] = example.transpose(1, 2).unsqueeze(2)
    rows = []
    for name, axis in axes_of(trunk, spec).items():
        n_freq = taps[name].shape[2] if taps[name].ndim == 4 else 1
        hop_ms = None if axis is None else axis.hop * spec.hop_ms
        field_ms = None if axis is None or axis.field is None else (axis.field - 1) * spec.hop_ms + spec.field_ms
        rows.append(LayerRow(name, taps[name].shape[-1], n_freq, hop_ms, field_ms))
    return rows
