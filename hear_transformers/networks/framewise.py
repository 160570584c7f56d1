"""The classifiers of PretrainedSED: of every frame, and of a clip by the mean of its frames.

Schmid, Morocutti, Foscarin, Schlüter, Primus, Widmer: Effective Pre-Training of Audio Transformers for Sound Event
Detection, ICASSP 2025 (2409.09546, section 3); github.com/fschmid56/PretrainedSED, MIT. They fill every clip with
silence to 10 s; here a shorter clip is read as it is.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping

from torch import Tensor, nn

from .trunk import TimeAxis, Trunk

CLASSIFIERS = ("weak_head.", "strong_head.")
"""What the names of both begin with, of a clip and of a frame, in PretrainedSED's files and here."""


class FrameTagger(Trunk):
    """Base of networks with layers "framewise", logits of every frame, and "logits", those of the mean frame."""

    weak_head: nn.Linear
    strong_head: nn.Linear

    def add_classifiers(self, dim: int, grid: TimeAxis, n_classes: int, frame_classes: int) -> None:
        """Add the classifiers and their layers.

        Parameters
        ----------
        dim : features of a frame
        grid : where frames lie
        n_classes : logits of a clip; 0 for none
        frame_classes : logits of a frame; 0 for none
        """
        layers = dict(self.layers)
        if frame_classes:
            layers["framewise"] = grid
            # Without a gradient, as no recipe has a loss for it: processes that share a batch would wait for one.
            self.strong_head = nn.Linear(dim, frame_classes).requires_grad_(False)
        if n_classes:
            layers["logits"] = None
            self.weak_head = nn.Linear(dim, n_classes)
        self.layers = layers

    def classify(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Compute the wanted ones of both layers from frames (batch, time, 1, dim)."""
        taps = {}
        if "framewise" in wanted:
            taps["framewise"] = self.strong_head(frames)
        if "logits" in wanted:
            taps["logits"] = self.weak_head(frames.mean((1, 2)))
        return taps


def frame_classes_in(tensors: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the classes of frames in a file, as an argument of the network; none without that classifier."""
    bias = tensors.get("strong_head.bias")
    return {} if bias is None else {"frame_classes": bias.numel()}
