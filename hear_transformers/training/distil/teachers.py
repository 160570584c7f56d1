"""Networks that are asked about the clips of the corpus; what the synthesis itself knows needs no teacher."""

from __future__ import annotations

import os
from typing import Protocol

import torch
from torch import Tensor

from ... import efficientat
from ...embedding.precision import resolve, running
from ...embedding.preparation import ready
from .recipe import KINDS


class Teacher(Protocol):
    """What a teacher has.

    Attributes
    ----------
    name, licence : of its weights, for the model card
    hears : the kinds of clips that it is asked about
    """

    name: str
    licence: str
    hears: tuple[str, ...]

    def targets(self, mels: Tensor) -> dict[str, Tensor]:
        """Compute its outputs for log-mels (clips, n_mels, frames): (clips, size) float32 of each, by name."""


MIDDLE = "11"
"""Block of mn04 whose mean is a target: that before its last stride, where HEAR's tasks were answered best."""


class AudioSetTagger:
    """EfficientAT's mn04: logits of AudioSet's 527 classes, the 384 features before its head, means of a middle block.

    Parameters
    ----------
    path : the authors' file; empty to download it
    device : of training
    """

    name = "mn04_as"
    licence = "MIT"
    hears: tuple[str, ...] = KINDS

    def __init__(self, path: str | os.PathLike[str], device: torch.device) -> None:
        self._precision = resolve("auto", device)
        self._trunk = efficientat.load_model(path, self.name, precision="auto", device=device).trunk

    @torch.no_grad()
    def targets(self, mels: Tensor) -> dict[str, Tensor]:
        """Compute logits, features and the mean of the middle block, see `Teacher.targets`."""
        with running(self._precision, mels.device):
            taps = ready(self._trunk, self._precision)(mels.float(), ("logits", "features", MIDDLE))
        taps[MIDDLE] = taps[MIDDLE].mean((1, 2))  # over time and frequency
        return {name: taps[layer].float() for name, layer in NAMES.items()}


NAMES = {"logits": "logits", "penultimate": "features", "middle": MIDDLE}
"""Names of the targets -> layers of mn04."""
