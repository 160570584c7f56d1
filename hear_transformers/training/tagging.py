"""Training on labelled clips: from waveforms to losses, and the scores of a network."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from ..embedding.precision import computing, resolve
from ..errors import TrainingError
from ..networks.family import Variant
from ..networks.frontend import MelSpec
from ..networks.trunk import Trunk
from . import augment
from .clip_length import frames_of
from .curves import VALID_LOSS
from .data import Batch
from .loop import Objective, Processes
from .recipes import Recipe


class Tagging(Objective):
    """Training a network on the labels of clips.

    Parameters
    ----------
    trunk : the network, with one logit per class
    variant : for its front end and the padding of short clips
    recipe : for augmentation
    multi_label : True if a clip may have any number of labels, False if it has exactly one
    """

    trunk: Trunk

    def __init__(self, trunk: Trunk, variant: Variant, recipe: Recipe, *, multi_label: bool) -> None:
        super().__init__()
        self.trunk = trunk
        self.variant = variant
        self.spec = variant.frontend
        self.frontend = self.spec.build()
        self.recipe = recipe
        self.multi_label = multi_label

    def forward(self, batch: Batch) -> dict[str, Tensor]:
        """Compute the loss of a batch: the mean over its clips, unreadable ones counting as 0."""
        frames, targets, weights = self._frames(batch)
        losses = self.losses(self.trunk(frames, ["logits"])["logits"], targets)
        return {"loss": (losses * weights).mean()}

    def mel_shape(self, n_samples: int) -> tuple[int, int]:
        """Return the (bands, frames) that the network reads of a clip; 0 bands if it reads the waveform."""
        n_mels = self.spec.n_mels if isinstance(self.spec, MelSpec) else 0
        return n_mels, frames_of(self.variant, n_samples)

    def losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Compute the loss of each clip: (clips, classes), targets from 0 to 1 -> (clips,)."""
        if self.multi_label:
            return F.binary_cross_entropy_with_logits(logits.float(), targets, reduction="none").mean(1)
        return F.cross_entropy(logits.float(), targets, reduction="none")

    @torch.no_grad()
    def _frames(self, batch: Batch) -> tuple[Tensor, Tensor, Tensor]:
        """Compute the network's input from a batch, in float32: frames, targets, weights."""
        with computing("float32", batch.waveforms.device):
            clips = batch.waveforms, batch.targets, batch.weights
            waveforms, targets, weights = augment.waveforms(*clips, batch.draws, self.recipe)
            frames = self._pad(self.frontend(waveforms), batch.lengths)
            return augment.mels(frames, targets, weights, batch.draws, self.recipe, self.spec)

    def _pad(self, frames: Tensor, lengths: Tensor) -> Tensor:
        """Pad clips after the end of their audio, as `Embedder` does for networks whose authors do."""
        fill_frames = self.variant.scene.fill_frames
        if not fill_frames:
            return frames
        frames = F.pad(frames, (0, max(0, fill_frames - frames.shape[2])))
        ends = torch.tensor([self.spec.n_frames(length) for length in lengths.tolist()], device=frames.device)
        is_padding = torch.arange(frames.shape[2], device=frames.device) >= ends.unsqueeze(1)  # (clips, frames)
        return frames.masked_fill(is_padding.unsqueeze(1), self.spec.padding)

    @torch.no_grad()
    def logits(self, network: nn.Module, batch: Batch) -> Tensor:
        """Tag a batch with `trunk` or an average of it, without augmentation: -> (clips, classes) float32."""
        frames, _, _ = self._frames(batch)
        with computing(resolve(self.recipe.precision, frames.device), frames.device):
            return network(frames, ["logits"])["logits"].float()


def mean_average_precision(targets: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """Return the mean average precision over the classes that occur: (clips, classes) each."""
    from sklearn.metrics import average_precision_score  # of the extra `train`

    occurs = targets.any(0)
    return float(np.mean(average_precision_score(targets[:, occurs], scores[:, occurs], average=None)))


def accuracy(targets: NDArray[np.float32], scores: NDArray[np.float32]) -> float:
    """Return the fraction of clips whose highest score is that of their label: (clips, classes) each."""
    return float(np.mean(scores.argmax(1) == targets.argmax(1)))


Predictions = tuple[NDArray[np.int64], Tensor, Tensor]
"""Numbers of the clips that could be read, ascending, (n,); their targets and logits on the CPU, (n, classes)."""


def predict(
    objective: Tagging,
    batches: Callable[[], Iterable[tuple[NDArray[np.int64], Batch]]],
    processes: Processes,
    network: nn.Module,
) -> Predictions:
    """Tag a set of clips; called in every process, and returns all of them in each.

    Parameters
    ----------
    objective : being trained
    batches : returns this process's rows of the set
    processes : that share the set
    network : `trunk`, or an average of it; it is in evaluation mode afterwards

    Raises
    ------
    TrainingError : no clip could be read
    """
    network.eval()
    rows, logits, targets = [np.zeros(0, np.int64)], [], []
    for numbers, batch in batches():
        is_read = batch.weights.bool()
        rows.append(numbers[is_read.numpy()])
        targets.append(batch.targets[is_read])
        logits.append(objective.logits(network, batch.to(processes.device)).cpu()[is_read])
    parts = processes.gather((rows, logits, targets))
    if not any(len(row) for part in parts for row in part[0]):
        raise TrainingError("none of the validation clips could be read")
    all_rows = np.concatenate([row for part in parts for row in part[0]])
    order = np.argsort(all_rows)
    all_logits = torch.cat([rows for part in parts for rows in part[1]])[order]
    all_targets = torch.cat([rows for part in parts for rows in part[2]])[order]
    return all_rows[order], all_targets, all_logits


def score(objective: Tagging, predictions: Predictions) -> dict[str, float]:
    """Return {"mAP": ...}, or {"accuracy": ...} where clips have one label, and the loss."""
    _, targets, logits = predictions
    main, name = (mean_average_precision, "mAP") if objective.multi_label else (accuracy, "accuracy")
    loss = objective.losses(logits, targets).mean().item()
    return {name: main(targets.numpy(), logits.numpy()), VALID_LOSS: loss}
