"""From streamed clips to the batches of training: targets, a pool in memory, random crops and augmentation.

Step i draws from the streamed batches i to i + pool - 1, at random by seed and step alone: a resumed run ends as if it
had never stopped. Teachers are asked about each crop as it is heard, mixed and recoloured; only its masks are the
student's alone (Beyer et al.: Knowledge distillation: A good teacher is patient and consistent, arXiv 2106.05237).
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from ..corpus.stream import Batch, CorpusOptions, Part, stream
from . import augmentation
from .recipe import KINDS, DistilRecipe
from .teachers import Teacher

HELD_OUT = 1_000_003  # added to the seed: clips that are never trained on
MIXED_SHARE = 0.5  # of scenes
MIXED_DB = (-15.0, 0.0)  # level of the loudest point of the other scene: both are heard

Source = Callable[[int, range], Iterable[Batch]]
"""(seed, numbers of batches) -> the batches."""


@dataclass(frozen=True, slots=True)
class Clips:
    """Clips of one kind and their targets.

    Attributes
    ----------
    mels : (clips, n_mels, frames)
    by_frame : targets of every mel frame: (clips, frames) classes, or (clips, frames, size) of 0 and 1 or of numbers
    by_clip : targets of the clip: (clips, size)
    """

    mels: Tensor
    by_frame: Mapping[str, Tensor]
    by_clip: Mapping[str, Tensor]

    def crops(self, chosen: Tensor, starts: Tensor, length: int) -> Clips:
        """Return crops in time of chosen clips.

        Parameters
        ----------
        chosen : (n,) which clips
        starts : (n,) their first frames
        length : frames of all of them
        """
        frames = starts.unsqueeze(1) + torch.arange(length, device=starts.device)  # (n, length)
        bands = torch.arange(self.mels.shape[1], device=starts.device)
        return Clips(
            self.mels[chosen[:, None, None], bands[:, None], frames.unsqueeze(1)],
            {name: target[chosen.unsqueeze(1), frames] for name, target in self.by_frame.items()},
            {name: target[chosen] for name, target in self.by_clip.items()},
        )

    def part(self, rows: slice) -> Clips:
        """Return some of the clips."""
        by_frame, by_clip = (
            {name: target[rows] for name, target in group.items()} for group in (self.by_frame, self.by_clip)
        )
        return Clips(self.mels[rows], by_frame, by_clip)


def joined(parts: Sequence[Clips]) -> Clips:
    """Concatenate clips of one kind."""
    first = parts[0]
    return Clips(
        torch.cat([part.mels for part in parts]),
        {name: torch.cat([part.by_frame[name] for part in parts]) for name in first.by_frame},
        {name: torch.cat([part.by_clip[name] for part in parts]) for name in first.by_clip},
    )


def corpus(recipe: DistilRecipe, workers: int) -> Source:
    """Return the source of a recipe's clips, synthesised in worker processes."""
    scenes, speech, notes = (recipe.fresh(kind) for kind in KINDS)
    return lambda seed, steps: stream(
        CorpusOptions(seed=seed, scenes=scenes, speech=speech, notes=notes, words=recipe.words), steps, workers
    )


def with_targets(batch: Batch, teachers: Sequence[Teacher], device: torch.device) -> dict[str, Clips]:
    """Move a streamed batch to the device of training, and ask the teachers about its clips as they are."""
    return {kind: _with_targets(kind, getattr(batch, kind), teachers, device) for kind in KINDS}


def _with_targets(kind: str, part: Part, teachers: Sequence[Teacher], device: torch.device) -> Clips:
    mels = torch.from_numpy(part.mels).to(device)
    by_frame = {name: torch.from_numpy(label).to(device) for name, label in part.labels.items()}
    return Clips(mels, by_frame, answers(kind, mels, teachers))


def answers(kind: str, mels: Tensor, teachers: Sequence[Teacher]) -> dict[str, Tensor]:
    """Ask the teachers that hear clips of a kind about log-mels (clips, n_mels, frames)."""
    found: dict[str, Tensor] = {}
    for teacher in teachers:
        if kind in teacher.hears:
            found |= teacher.targets(mels)
    return found


def held_out(
    recipe: DistilRecipe, source: Source, teachers: Sequence[Teacher], device: torch.device
) -> dict[str, Clips]:
    """Return clips that are never trained on, at least `DistilRecipe.held_out` of each kind."""
    n = -(-recipe.held_out // min(recipe.fresh(kind) for kind in KINDS))
    return _collected(source(recipe.seed + HELD_OUT, range(n)), teachers, device)


def first_clips(
    recipe: DistilRecipe, source: Source, teachers: Sequence[Teacher], device: torch.device
) -> dict[str, Clips]:
    """Return the clips of the first steps, whose targets are typical."""
    return _collected(source(recipe.seed, range(recipe.statistics_steps)), teachers, device)


def _collected(batches: Iterable[Batch], teachers: Sequence[Teacher], device: torch.device) -> dict[str, Clips]:
    return _joined_kinds([with_targets(batch, teachers, device) for batch in batches])


def _joined_kinds(parts: Collection[dict[str, Clips]]) -> dict[str, Clips]:
    return {kind: joined([clips[kind] for clips in parts]) for kind in KINDS}


def batches(
    recipe: DistilRecipe, source: Source, teachers: Sequence[Teacher], device: torch.device, steps: range
) -> Iterator[dict[str, Clips]]:
    """Yield the batch of each step, see `draw`."""
    if not steps:
        return
    recent: deque[dict[str, Clips]] = deque(maxlen=recipe.pool)
    numbers = range(steps.start, steps.stop + recipe.pool - 1)
    for number, batch in zip(numbers, source(recipe.seed, numbers), strict=True):
        recent.append(with_targets(batch, (), device))
        if len(recent) == recipe.pool:
            yield draw(recipe, _joined_kinds(recent), teachers, number - recipe.pool + 1)


def draw(recipe: DistilRecipe, pool: Mapping[str, Clips], teachers: Sequence[Teacher], step: int) -> dict[str, Clips]:
    """Draw the batch of a step: crops of every kind, augmented, and the answers of teachers before they are masked."""
    rng = np.random.default_rng((recipe.seed, step))
    drawn = {}
    for kind in KINDS:
        length = int(rng.choice(recipe.crops(kind)))
        clips = draw_crops(rng, pool[kind], recipe.frames(kind) // length, length)
        if kind == "scenes":
            clips = mix(rng, clips, draw_crops(rng, pool[kind], len(clips.mels), length))
        backgrounds = partial(_draw_mels, rng, pool["scenes"], len(clips.mels), length)
        mels = augmentation.AUGMENT[kind](rng, clips.mels.float(), backgrounds)
        drawn[kind] = Clips(augmentation.mask(rng, mels), clips.by_frame, answers(kind, mels, teachers))
    return drawn


def mix(rng: np.random.Generator, clips: Clips, others: Clips) -> Clips:
    """Add the power of other scenes to a share of scenes, which have the labels of both then."""
    is_mixed = torch.from_numpy(rng.random(len(clips.mels)) < MIXED_SHARE).to(clips.mels.device)[:, None, None]
    mels = clips.mels.float()
    both = augmentation.add_backgrounds(rng, mels, others.mels.float(), MIXED_DB)
    labels = {
        name: torch.where(is_mixed, torch.maximum(ours, others.by_frame[name]), ours)
        for name, ours in clips.by_frame.items()
    }
    return Clips(torch.where(is_mixed, both, mels), labels, clips.by_clip)


def draw_crops(rng: np.random.Generator, clips: Clips, n: int, length: int) -> Clips:
    """Draw crops of `length` frames of `n` clips, which are different ones as far as there are as many."""
    n_clips, _, n_frames = clips.mels.shape
    chosen = np.resize(rng.permutation(n_clips), n)
    starts = rng.integers(0, n_frames - length, n, endpoint=True)
    device = clips.mels.device
    return clips.crops(torch.from_numpy(chosen).to(device), torch.from_numpy(starts).to(device), length)


def _draw_mels(rng: np.random.Generator, clips: Clips, n: int, length: int) -> Tensor:
    """Draw log-mels of crops, see `draw_crops`: (n, n_mels, length) float32."""
    return draw_crops(rng, clips, n, length).mels.float()
