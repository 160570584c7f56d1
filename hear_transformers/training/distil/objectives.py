"""What a network learns: the outputs of teachers, and the labels that the synthesis knows.

Every target is read by a linear head. Its loss is divided by that of the best guess that does not listen: 1 means that
nothing was learnt but how frequent things are. So losses of different targets can be added and compared.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal, TypeVar

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...embedding.precision import computing
from ...networks.trunk import TimeAxis, Trunk
from ..corpus.stream import PHONES
from ..loop import Objective, TrainingRun
from .clips import Clips
from .recipe import DistilRecipe
from .students import STUDENTS, Student

T = TypeVar("T")

FRAME_STEP = 4  # mel frames between two predictions: 40 ms, about half a phone
LARGEST_NUMBER = 6.0  # standard deviations; teachers' outputs have rare outliers
DEVIATION_FLOORS = {"logits": 0.3}  # keeps classes that never occur in synthetic scenes from being scaled up
DEVIATION_FLOOR = 1e-3  # of other numbers
SMALLEST_VARIANCE = 1e-6  # keeps the gradient of a standard deviation finite
SMALLEST_BASELINE = 1e-3  # keeps what hardly ever varies from ruling the sum
SCORED_CLIPS = 32  # held-out clips in a batch

HEAD_STEPS = 150  # more of them learn the few clips by heart
HEAD_CLIPS = 128
HEAD_LEARNING_RATE = 3e-3

SMALLEST_RATE = 1e-4  # of what never occurs, for its logarithm

N_CLASSES = {"phones": len(PHONES)}
"""Number of classes of targets that are one of many."""


@dataclass(frozen=True, slots=True)
class Target:
    """What a head predicts.

    Attributes
    ----------
    name : of the target
    values : "numbers", "truths" (each 0 or 1) or "classes" (one of many)
    size : numbers, truths or classes of one clip or frame
    by_frame : True if every frame has its own
    """

    name: str
    values: Literal["numbers", "truths", "classes"]
    size: int
    by_frame: bool


def targets_of(clips: Mapping[str, Clips]) -> list[Target]:
    """Return the targets of clips of all kinds; several kinds may share one."""
    found: dict[str, Target] = {}
    for part in clips.values():
        for by_frame, values in ((True, part.by_frame), (False, part.by_clip)):
            found |= {name: _target(name, tensor, by_frame) for name, tensor in values.items()}
    return list(found.values())


def _target(name: str, values: Tensor, by_frame: bool) -> Target:
    if name in N_CLASSES:
        return Target(name, "classes", N_CLASSES[name], by_frame)
    return Target(name, "numbers" if values.is_floating_point() else "truths", values.shape[-1], by_frame)


class Head(nn.Module):
    """A linear map to one target, and its loss.

    Parameters
    ----------
    target : to predict
    inputs : features that are read; 0 where the network has outputs of its own for the target
    predictions : frames that are predicted from one token
    """

    mean: Tensor
    scale: Tensor
    baseline: Tensor

    def __init__(self, target: Target, inputs: int, predictions: int = 1) -> None:
        super().__init__()
        self.target = target
        self.predictions = predictions
        self.linear = nn.Linear(inputs, predictions * target.size) if inputs else None
        self.register_buffer("mean", torch.zeros(target.size))
        self.register_buffer("scale", torch.ones(target.size))
        self.register_buffer("baseline", torch.ones(()))

    @torch.no_grad()
    def observe(self, values: Tensor) -> None:
        """Take the statistics of typical values, any number of dimensions before their own, and begin with a guess."""
        if self.target.values == "numbers":
            rows = values.flatten(0, -2).float()
            self.mean.copy_(rows.mean(0))
            self.scale.copy_(rows.std(0, correction=0) + DEVIATION_FLOORS.get(self.target.name, DEVIATION_FLOOR))
            baseline, guess = self._standardised(rows).square().mean(), torch.zeros_like(self.mean)
        elif self.target.values == "truths":
            rates = values.flatten(0, -2).float().mean(0)
            baseline = (torch.special.entr(rates) + torch.special.entr(1 - rates)).mean()
            guess = rates.logit(SMALLEST_RATE)
        else:
            rates = torch.bincount(values.flatten().long(), minlength=self.target.size) / values.numel()
            baseline = torch.special.entr(rates).sum()
            guess = rates.clamp(min=SMALLEST_RATE).log()
        self.baseline.copy_(baseline.clamp(min=SMALLEST_BASELINE))
        if self.linear is not None:
            self.linear.bias.copy_(guess.repeat(self.predictions))

    def loss(self, outputs: Tensor, values: Tensor) -> Tensor:
        """Compare (rows, size) with values: (rows, size), or (rows) classes."""
        if self.target.values == "classes":
            found = F.cross_entropy(outputs.float(), values.long())
        elif self.target.values == "truths":
            found = F.binary_cross_entropy_with_logits(outputs.float(), values.float())
        else:
            found = F.mse_loss(outputs.float(), self._standardised(values.float()))
        return found / self.baseline

    def loss_of_clips(self, features: Tensor, values: Tensor) -> Tensor:
        """Compute the loss of features (clips, inputs), or of the network's own outputs (clips, size)."""
        outputs = self._scaled(features.float()) if self.linear is None else self.linear(features)
        return self.loss(outputs, values)

    def loss_of_frames(self, tokens: Tensor, values: Tensor, axis: TimeAxis) -> Tensor:
        """Compute the loss of tokens (clips, time, inputs) on a time axis, against values (clips, frames, ...)."""
        assert self.linear is not None, "targets of frames are read by heads"
        outputs = self.linear(tokens).unflatten(2, (self.predictions, -1)).flatten(1, 2)
        # (clips, time * predictions, size)
        places = predicted_frames(axis, tokens.shape[1], self.predictions).to(tokens.device)
        is_inside = (places >= 0) & (places < values.shape[1])
        return self.loss(outputs[:, is_inside].flatten(0, 1), values[:, places[is_inside]].flatten(0, 1))

    def _scaled(self, rows: Tensor) -> Tensor:
        """Scale every column to mean 0 and a deviation of at most 1."""
        return (rows - self.mean) / self.scale

    def _standardised(self, rows: Tensor) -> Tensor:
        """Scale every column, and clip outliers."""
        return self._scaled(rows).clamp(-LARGEST_NUMBER, LARGEST_NUMBER)


def predicted_frames(axis: TimeAxis, n_tokens: int, predictions: int) -> Tensor:
    """Return the frames that tokens predict, evenly around the centre of each: (n_tokens * predictions)."""
    hop = float(axis.hop)
    centres = axis.offset + hop * torch.arange(n_tokens, dtype=torch.float64)
    around = (torch.arange(predictions, dtype=torch.float64) - (predictions - 1) / 2) * hop / predictions
    return (centres.unsqueeze(1) + around).flatten().round().long()  # of (n_tokens, predictions)


class Distillation(Objective):
    """A student, its heads, and their losses on all kinds of clips.

    Parameters
    ----------
    student : names the layers that are read
    trunk : its network
    targets : of all kinds of clips; one that is a layer of the network has no head
    weights : of losses, where not 1
    """

    def __init__(self, student: Student, trunk: Trunk, targets: Sequence[Target], weights: Mapping[str, float]) -> None:
        super().__init__()
        self.student = student
        self.trunk: Trunk = trunk
        self.weights = weights
        axis = trunk.layers[student.frames]
        assert axis is not None, "objectives of every frame read a grid in time"
        self.axis = axis
        tokens, summary = self._sizes()
        predictions = max(1, round(axis.hop / FRAME_STEP))
        self.heads = nn.ModuleDict()
        for each in targets:
            inputs = 0 if each.name in trunk.layers else summary
            self.heads[each.name] = Head(each, tokens, predictions) if each.by_frame else Head(each, inputs)

    @torch.no_grad()
    def observe(self, clips: Mapping[str, Clips]) -> None:
        """Take the statistics of the targets of typical clips, and begin with a guess."""
        for name, values in _by_name({**part.by_frame, **part.by_clip} for part in clips.values()).items():
            head = self._head(name)
            head.observe(torch.cat(values))
            if head.linear is None:
                self.trunk.get_parameter(self.student.family.classifier[0]).copy_(head.mean)

    def fit_heads(self, clips: Mapping[str, Clips], seed: int) -> None:
        """Fit the heads to the network as it is, so that trained weights are not undone while the heads are random.

        Parameters
        ----------
        clips : typical ones of every kind; the network hears each once
        seed : of the clips of each step
        """
        parts = _by_name(self._read_in_batches(part) for part in clips.values())
        read = {name: _rows(pairs) for name, pairs in parts.items()}
        optimiser = torch.optim.Adam(self.heads.parameters(), HEAD_LEARNING_RATE)
        generator = torch.Generator().manual_seed(seed)
        for _ in range(HEAD_STEPS):
            losses = []
            for name, (features, values) in read.items():
                chosen = torch.randint(len(values), (HEAD_CLIPS,), generator=generator).to(values.device)
                losses.append(self._loss(name, features[chosen], values[chosen]))
            optimiser.zero_grad()
            torch.stack(losses).sum().backward()
            optimiser.step()

    def losses(self, clips: Clips) -> dict[str, Tensor]:
        """Compute the loss of every target of clips of one kind, relative to that of a guess."""
        return {name: self._loss(name, *pair) for name, pair in self._read(clips).items()}

    def forward(self, batch: Mapping[str, Clips]) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch of each kind; of a target of several kinds their mean."""
        found = _by_name(self.losses(clips) for clips in batch.values())
        return {name: self.weights.get(name, 1.0) * torch.stack(losses).mean() for name, losses in found.items()}

    def _read(self, clips: Clips) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what the head of every target reads of clips of one kind, beside the target's values."""
        student = self.student
        taps = self.trunk(clips.mels, self._layers(clips))
        read = {}
        for name, values in clips.by_frame.items():
            read[name] = taps[student.frames].mean(2), values  # over frequency, as timestamps are
        for name, values in clips.by_clip.items():
            read[name] = taps[name] if name in taps else summarise(student, taps), values
        return read

    @torch.no_grad()
    def _read_in_batches(self, clips: Clips) -> dict[str, tuple[Tensor, Tensor]]:
        """Return what heads with weights of their own read of clips, without dropout."""
        self.trunk.eval()
        parts = [self._read(clips.part(slice(i, i + SCORED_CLIPS))) for i in range(0, len(clips.mels), SCORED_CLIPS)]
        fitted = [name for name in parts[0] if self._head(name).linear is not None]
        return {name: _rows([part[name] for part in parts]) for name in fitted}

    def _loss(self, name: str, read: Tensor, values: Tensor) -> Tensor:
        head = self._head(name)
        if head.target.by_frame:
            return head.loss_of_frames(read, values, self.axis)
        return head.loss_of_clips(read, values)

    def _layers(self, clips: Clips) -> set[str]:
        """Return the layers that the targets of clips are read from."""
        own = {name for name in clips.by_clip if name in self.trunk.layers}
        layers = own | ({self.student.frames} if clips.by_frame else set())
        return layers | ({self.student.grid, *self.student.vectors} if clips.by_clip else set())

    def _head(self, name: str) -> Head:
        head = self.heads[name]
        assert isinstance(head, Head)
        return head

    @torch.no_grad()
    def _sizes(self) -> tuple[int, int]:
        """Return the features of a token for frames, and of the summary of a clip."""
        student, frontend = self.student, self.student.variant.frontend
        second = frontend.example(frontend.n_frames(frontend.sample_rate))
        taps = self.trunk.eval()(second, {student.frames, student.grid, *student.vectors})
        return taps[student.frames].shape[3], summarise(student, taps).shape[1]


def _by_name(parts: Iterable[Mapping[str, T]]) -> dict[str, list[T]]:
    """Collect what several parts have under the same name."""
    found: dict[str, list[T]] = {}
    for part in parts:
        for name, value in part.items():
            found.setdefault(name, []).append(value)
    return found


def _rows(parts: Sequence[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    """Concatenate pairs of tensors."""
    first, second = zip(*parts, strict=True)
    return torch.cat(first), torch.cat(second)


def summarise(student: Student, taps: Mapping[str, Tensor]) -> Tensor:
    """Concatenate what objectives of the clip read: vectors, mean and standard deviation of a grid over time."""
    frames = taps[student.grid].mean(2)  # (clips, time, features)
    deviation = (frames.var(1, correction=0) + SMALLEST_VARIANCE).sqrt()
    return torch.cat([*(taps[layer] for layer in student.vectors), frames.mean(1), deviation], 1)


def distillation(recipe: DistilRecipe, clips: Mapping[str, Clips]) -> Distillation:
    """Build the objective of a recipe, on the CPU, with weights drawn from its seed.

    Parameters
    ----------
    recipe : names the student and weights the losses
    clips : of all kinds, which say what targets there are
    """
    student = STUDENTS[recipe.student]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        trunk = student.family.network(**student.variant.network)
        return Distillation(student, trunk, targets_of(clips), dict(recipe.weights))


@torch.no_grad()
def score(run: TrainingRun, clips: Mapping[str, Clips]) -> dict[str, float]:
    """Compute the losses of a run on held-out clips, as they are, and what share of all targets is explained."""
    objective = run.objective
    assert isinstance(objective, Distillation)
    objective.eval()
    losses: dict[str, list[Tensor]] = {}
    for part in clips.values():
        for start in range(0, len(part.mels), SCORED_CLIPS):
            batch = part.part(slice(start, start + SCORED_CLIPS))
            with computing(run.precision, run.processes.device):
                for name, loss in objective.losses(batch).items():
                    losses.setdefault(name, []).append(loss)
    means = {name: float(torch.stack(each).mean()) for name, each in losses.items()}
    return {
        "explained": 1 - sum(means.values()) / len(means),
        **{f"valid_{name}": mean for name, mean in means.items()},
    }
