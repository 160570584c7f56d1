"""Neighbours in graphs: of two that are equally near to the last bit, either is right, and a file may take the other.

Between all neighbours of a clip of 2 s, a few similarities differ by less than 1e-6, which is the rounding of float32.
The choice among them then depends on the order in which numbers are added: PyTorch itself may take another one when a
clip is scaled by 1 + 1e-6, and embeddings of random weights move by percents. So a file is checked in two steps: each
neighbour that it takes is as near as PyTorch's, and with the same neighbours its embedding is the same.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor, nn

from ..networks.graph import CHOOSERS
from .verification import Run

NEARNESS_TOLERANCE = 1e-4
"""Largest difference of similarities (cosine and nearness of places, up to 1.5) of neighbours at the same rank: what
goes in differs by rounding as well. 2e-5 was seen, with PyTorch 2.13."""


class WithChoices(nn.Module):
    """Returns the embedding, and the neighbours of each search, in order.

    Parameters
    ----------
    network : from waveforms to embeddings
    """

    def __init__(self, network: nn.Module) -> None:
        super().__init__()
        self.network = network

    def forward(self, waveforms: Tensor) -> tuple[Tensor, ...]:
        """Embed (batch, samples)."""
        found: list[Tensor] = []

        def note(similarity: Tensor, index: Tensor) -> Tensor:
            found.append(index)
            return index

        with choosing(note):
            embedding = self.network(waveforms)
        return embedding, *found


@contextlib.contextmanager
def choosing(chooser: Callable[[Tensor, Tensor], Tensor]) -> Iterator[None]:
    """Show every choice to `chooser`, until the block ends."""
    CHOOSERS.append(chooser)
    try:
        yield
    finally:
        CHOOSERS.remove(chooser)


class SameChoices:
    """Runs a file, and PyTorch with the neighbours that the file took for the same clips.

    Parameters
    ----------
    outputs : runs the file: waveforms -> what `WithChoices` returns
    truth : PyTorch

    Attributes
    ----------
    differing : neighbours that were others than PyTorch's
    """

    def __init__(self, outputs: Callable[[Tensor], list[Tensor]], truth: Run) -> None:
        self._outputs, self._truth = outputs, truth
        self._choices: list[Tensor] = []
        self.differing = 0

    def run(self, waveforms: Tensor) -> Tensor:
        """Run the file, and remember its neighbours."""
        embedding, *self._choices = self._outputs(waveforms)
        return embedding

    def truth(self, waveforms: Tensor) -> Tensor:
        """Run PyTorch with these neighbours; what is not a number stands for one that is not as near as PyTorch's."""
        choices = iter(self._choices)
        farthest = 0.0

        def take(similarity: Tensor, index: Tensor) -> Tensor:
            nonlocal farthest
            theirs = next(choices).to(index.device)
            nearness = [similarity.gather(2, each) for each in (theirs, index)]
            farthest = max(farthest, float((nearness[0] - nearness[1]).abs().max()))
            self.differing += int((theirs != index).sum())
            return theirs

        with choosing(take):
            embedding = self._truth(waveforms)
        return embedding if farthest <= NEARNESS_TOLERANCE else torch.full_like(embedding, torch.nan)


def without_choices(model: Any) -> None:
    """Remove all outputs but the first from a model of ONNX, in place."""
    del model.graph.output[1:]
