"""The interface of every network: from frames to layers."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import dataclass
from fractions import Fraction

import torch
from torch import Tensor, nn


@dataclass(frozen=True, slots=True)
class TimeAxis:
    """The time positions of a layer over the frames of the front end.

    Attributes
    ----------
    hop : distance between two positions, in frames; a fraction where the network stretches them
    offset : centre of position 0, in frames (0 = centre of the first frame)
    receptive_field : frames that one position sees; None if it sees the whole window
    """

    hop: int | Fraction
    offset: float
    receptive_field: int | None


class Exact(nn.Module):
    """A part of a network that stays float32 whatever the network computes in; the network converts what goes in."""


class Trunk(nn.Module):
    """A network from the frames of a front end to layers, the base class of every family's network.

    Attributes
    ----------
    layers : every layer in order, "0" (patch embedding or stem) .. "N" (last block), then names such as "features" and
        "logits"; its `TimeAxis` if it lies along time, None if it is a vector or a grid of something else
    prefix : names of the prefix tokens, ("cls",) or ("cls", "dist"); the vector "8.cls" goes with the grid "8"
    min_frames : fewest frames the network takes
    min_training_frames : fewest frames it takes in training, where it may drop some
    max_frames : most frames it takes; None if any number
    piece_frames : most frames whose positions attend to each other, of a network that cuts longer input; None if all do
    timed_frames : most frames of an input whose grids lie along time, of a network that shrinks longer ones
    recordable : False if it keeps tensors from pass to pass, which a CUDA graph would read when they are gone
    time_first : True if a grid's tokens follow each other time by time, False if frequency by frequency
    convolutional : True for a network of convolutions and batch normalisations, which is worth rewriting for inference
    """

    layers: Mapping[str, TimeAxis | None]
    prefix: tuple[str, ...] = ()
    min_frames: int = 1
    max_frames: int | None = None
    piece_frames: int | None = None
    timed_frames: int | None = None
    recordable: bool = True
    time_first: bool = False
    convolutional: bool = False

    @property
    def min_training_frames(self) -> int:
        """Fewest frames in training: those of the network, unless it drops some."""
        return self.min_frames

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run the network only as deep as the wanted layers need.

        Parameters
        ----------
        frames : (batch, n_mels, frames) float32, or (batch, samples) where the front end is a `Waveform`; the network
            converts them to the type of its parameters
        wanted : keys of `layers`, or the key of a grid with a prefix token ("8.cls")

        Returns
        -------
        taps : one tensor for every wanted key: (batch, time, freq, features) for a grid, (batch, features) for a
            vector; a grid of something else than time and frequency, such as labels, is
            (batch, 1, positions, features)
        """
        raise TypeError(f"{type(self).__name__} has no forward of its own")


def is_traced() -> bool:
    """Return True while what is computed is recorded for clips of any size, as for ONNX: sizes are tensors then."""
    return bool(torch.jit.is_tracing())  # type: ignore[attr-defined]


def depth_of(wanted: Collection[str], n_blocks: int) -> int:
    """Return the number of blocks that the wanted layers need; names such as "logits" need all `n_blocks`."""
    numbers = [layer.partition(".")[0] for layer in wanted]
    return max(int(number) if number.isdecimal() else n_blocks for number in numbers)
