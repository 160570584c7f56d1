"""What is run beside PyTorch before a file is kept: batches of several lengths, and how long a clip takes."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from ..audio.reading import AudioFile
from ..embedding.embedder import Embedder
from ..files import place_of
from .portable import lengths

TOLERANCE = 1e-4
"""Largest difference from PyTorch over the largest number of an embedding: what golden answers hold to."""

REPEATS = 3
"""Runs of which the fastest is counted."""

Run = Callable[[Tensor], Tensor]
"""From waveforms (batch, samples) to embeddings (batch, size)."""


@dataclass(frozen=True, slots=True)
class Written:
    """A file that agrees with PyTorch.

    Attributes
    ----------
    path, n_bytes : of the file
    sample_rate : of the waveforms, in Hz
    min_samples, max_samples : of the waveforms; equal if the length is fixed
    size : numbers of an embedding
    difference : the largest from PyTorch, over the largest number; of int8 it is that of the float32 file before
    time_ratio : of the file to PyTorch, for one clip of `max_samples`; below 1 the file is faster
    cosine : least cosine of int8 to float32 embeddings, None without int8
    """

    path: Path
    n_bytes: int
    sample_rate: int
    min_samples: int
    max_samples: int
    size: int
    difference: float
    time_ratio: float
    cosine: float | None = None


def example(batch: int, n_samples: int, sample_rate: int) -> Tensor:
    """Return clips (batch, n_samples) that fill the spectrum: chirps over quiet noise, the same every time."""
    generator = torch.Generator().manual_seed(0)
    seconds = torch.arange(n_samples, dtype=torch.float64) / sample_rate
    starts = 100.0 * torch.arange(1, batch + 1, dtype=torch.float64)[:, None]  # Hz
    chirps = torch.sin(2 * torch.pi * (starts * seconds + 0.1 * sample_rate * seconds**2)).float()
    return 0.3 * chirps + 0.03 * torch.randn(batch, n_samples, generator=generator)


def excerpts(recordings: Iterable[str], model: Embedder) -> list[Tensor]:
    """Read as much of each recording as a model reads at once: (samples,) each."""
    clips = []
    for name in recordings:
        with AudioFile(place_of(name)) as file:
            excerpt = file.excerpt(model.sample_rate, 0.0, lengths(model)[1] / model.sample_rate)
        clips.append(torch.as_tensor(excerpt, dtype=torch.float32).flatten())
    return clips


def by_pytorch(model: Embedder) -> Run:
    """Return what a file is compared with: the model as it embeds one window."""

    @torch.no_grad()
    def run(waveforms: Tensor) -> Tensor:
        return model.read(waveforms.to(model.device), model.variant.scene).cpu()

    return run


def difference(run: Run, truth: Run, shapes: Iterable[tuple[int, int]], sample_rate: int) -> float:
    """Return the largest difference over the largest number, for batches of these (clips, samples)."""
    worst = 0.0
    for batch, n_samples in shapes:
        clips = example(batch, n_samples, sample_rate)
        found = run(clips)
        wanted = truth(clips)
        if found.shape != wanted.shape or not (found.isfinite() & wanted.isfinite()).all():
            return float("inf")
        worst = max(worst, float((found - wanted).abs().max() / wanted.abs().max().clamp(min=1e-30)))
    return worst


def least_cosine(run: Run, truth: Run, clips: Sequence[Tensor]) -> float:
    """Return the least cosine of two embeddings of a clip, (samples,) each."""
    return min(float(torch.cosine_similarity(run(clip[None]), truth(clip[None])).min()) for clip in clips)


def time_ratio(run: Run, truth: Run, n_samples: int, sample_rate: int) -> float:
    """Return the time of one clip over that of `truth`, the fastest of a few each by turns."""
    clip = example(1, n_samples, sample_rate)
    times = np.empty((REPEATS, 2))
    for repeat in range(REPEATS):
        for i, each in enumerate((run, truth)):
            start = time.perf_counter()
            each(clip)
            times[repeat, i] = time.perf_counter() - start
    fastest = times.min(0)
    return float(fastest[0] / fastest[1])
