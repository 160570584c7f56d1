"""From a manifest to batches of waveforms, decoded by worker processes.

A batch depends only on the seed and the number of its step: not on the steps before, the number of worker processes, or
that of the processes that share it.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from ..audio.reading import AudioFile
from ..audio.workers import leave_the_terminal
from ..errors import AudioError, OptionError
from .manifest import Manifest

ORDER, EXCERPTS, AUGMENTATION = range(3)
"""Streams of random numbers, each seeded by (seed, stream, number of pass or step)."""

WHOLE_SECONDS = 20.0
"""Clips up to this duration are decoded whole, so that they can be kept; of longer ones only the excerpt. It is twice
the 10 s that AudioSet's clips last and most networks hear."""

KEPT_BYTES = 2**31
"""Decoded clips in memory, over all processes. All of ESC-50 at 32 kHz takes 1.3 GB."""

N_LOOKED_AT = 50
"""Clips whose durations are looked up before training: few enough to take no time."""

Draws = dict[str, Tensor]
Draw = Callable[[np.random.Generator, int], Draws]


@dataclass(slots=True)
class Batch:
    """Clips to train on or to validate with.

    Attributes
    ----------
    waveforms : (clips, samples) float32, zero-padded
    lengths : (clips,) int64, samples that are audio; always on the CPU, where reading them waits for nothing
    targets : (clips, classes) float32, 0 or 1
    weights : (clips,) float32: 1, or 0 for a clip that could not be read, whose waveform is zeros
    draws : what augmentation drew for these clips, (clips, ...) each; empty in validation
    failures : "path: what is wrong" of each clip that could not be read
    warnings : about clips that were read, each naming the file
    """

    waveforms: Tensor
    lengths: Tensor
    targets: Tensor
    weights: Tensor
    draws: Draws = field(default_factory=dict)
    failures: list[str] = field(default_factory=list)
    warnings: list[str] = field(default_factory=list)

    def pin_memory(self) -> Batch:
        """Copy to pinned memory."""
        return self._mapped(Tensor.pin_memory)

    def to(self, device: torch.device) -> Batch:
        """Copy to a device, in the background if the memory is pinned."""
        return self._mapped(lambda tensor: tensor.to(device, non_blocking=True))

    def _mapped(self, function: Callable[[Tensor], Tensor]) -> Batch:
        draws = {name: function(drawn) for name, drawn in self.draws.items()}
        tensors: dict[str, Any] = {name: function(getattr(self, name)) for name in ("waveforms", "targets", "weights")}
        return replace(self, draws=draws, **tensors)


class Order:
    """Which clips a step trains on.

    Passes follow each other without end, and each step takes the next batch of them: a batch may hold the end of one
    pass and the beginning of the next, so no clip is left out. Without weights a pass has every clip once. With
    weights a pass has `epoch_clips` draws: without replacement if that is less than there are clips, as PaSST draws
    100 000 of AudioSet's 2 million; otherwise with replacement, as AST does, since all clips without replacement would
    have no weights.

    Parameters
    ----------
    n_clips : of the manifest
    batch_size : clips of a step, over all processes
    seed : a pass depends on this and its number
    weights : (n_clips,) how often a clip is drawn relative to others, 0 for never; None for all alike
    epoch_clips : clips of an epoch; None for `n_clips`

    Raises
    ------
    OptionError : a number is less than 1, or weights are negative, not finite, all 0, or not one for each clip
    """

    def __init__(
        self,
        n_clips: int,
        batch_size: int,
        seed: int,
        *,
        weights: NDArray[np.float64] | None = None,
        epoch_clips: int | None = None,
    ) -> None:
        epoch_clips = n_clips if epoch_clips is None else epoch_clips
        for name, value in (("n_clips", n_clips), ("batch_size", batch_size), ("epoch_clips", epoch_clips)):
            if value < 1:
                raise OptionError(f"{name}={value} is too small; choose 1 or more")
        if weights is not None:
            _refuse_weights(weights, n_clips)
        self.n_clips = n_clips
        self.batch_size = batch_size
        self.seed = seed
        self.weights = weights
        self.steps_per_epoch = max(1, round(epoch_clips / batch_size))
        self.pass_clips = n_clips if weights is None else epoch_clips
        self._known = (-1, np.zeros(0, np.int64))  # number of a pass, and its clips

    def rows(self, step: int) -> NDArray[np.int64]:
        """Return the clips of a step, over all processes: (batch_size,)."""
        pieces = []
        position, end = step * self.batch_size, (step + 1) * self.batch_size
        while position < end:
            number, first = divmod(position, self.pass_clips)
            pieces.append(self._pass(number)[first : first + end - position])
            position += len(pieces[-1])
        return np.concatenate(pieces)

    def _pass(self, number: int) -> NDArray[np.int64]:
        """Return the clips of a pass; the last pass is cached."""
        if self._known[0] != number:
            self._known = number, self._drawn(np.random.default_rng((self.seed, ORDER, number)))
        return self._known[1]

    def _drawn(self, rng: np.random.Generator) -> NDArray[np.int64]:
        if self.weights is None:
            return rng.permutation(self.n_clips)
        if self.pass_clips >= np.count_nonzero(self.weights):
            return rng.choice(self.n_clips, self.pass_clips, p=self.weights / self.weights.sum())
        # The first to come of exponential waiting times (Efraimidis and Spirakis, 2006, as torch.multinomial does).
        with np.errstate(divide="ignore", invalid="ignore"):
            waits = rng.standard_exponential(self.n_clips) / self.weights
        return rng.permutation(np.sort(np.argpartition(waits, self.pass_clips)[: self.pass_clips]))


def _refuse_weights(weights: NDArray[np.float64], n_clips: int) -> None:
    """Raise OptionError unless these are weights of `n_clips`."""
    if weights.shape != (n_clips,):
        raise OptionError(f"weights have shape {weights.shape}; expected one for each of {n_clips} clips")
    if not (np.isfinite(weights).all() and (weights >= 0).all() and weights.any()):
        raise OptionError("weights of clips must be finite, 0 or more, and not all 0; does every clip lack labels?")


def class_balanced(manifest: Manifest, offset: float) -> NDArray[np.float64]:
    """Compute weights of clips, each the sum over its labels of 1 / (clips of the class + offset), or 0: (clips,)."""
    return manifest.sums(1.0 / np.maximum(manifest.counts() + offset, np.finfo(np.float64).tiny))


def longest_of_some(manifest: Manifest) -> float:
    """Return the duration in s of the longest of `N_LOOKED_AT` clips, spread evenly; 0 if none can be read."""
    longest = 0.0
    for clip in np.unique(np.linspace(0, len(manifest) - 1, N_LOOKED_AT).astype(int)).tolist():
        start, end = manifest.span(clip)
        # Warnings come when it is read to be trained on.
        with contextlib.suppress(AudioError), AudioFile(manifest.path(clip), warn=lambda warning: None) as file:
            longest = max(longest, min(end, file.duration()) - start)
    return longest


def batches(
    manifest: Manifest,
    order: Order,
    steps: range,
    *,
    sample_rate: int,
    n_samples: int,
    seed: int,
    draw: Draw | None = None,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[Batch]:
    """Load the batches of some steps: random excerpts of the clips that are longer than `n_samples`.

    A clip that cannot be read becomes zeros with weight 0 and a failure.

    Parameters
    ----------
    manifest : the clips
    order : which of them each step takes
    steps : numbers
    sample_rate : in Hz
    n_samples : length of the waveforms
    seed : of excerpts and augmentation
    draw : (generator, number of clips) -> random numbers for augmentation; called once for each whole batch; must
        be picklable where worker processes are not forked
    part : number of this process, and how many share each batch; process `i` gets the i-th part of its clips
    workers : processes that decode, a batch each; 0 decodes in this one
    pin_memory : whether to copy batches to pinned memory

    Raises
    ------
    OptionError : the batch cannot be shared equally
    """
    rank, n_processes = part
    if order.batch_size % n_processes:
        raise OptionError(
            f"a batch of {order.batch_size} clips cannot be shared equally by {n_processes} processes; "
            f"choose a batch size that {n_processes} divides"
        )
    size = order.batch_size // n_processes
    kept_bytes = KEPT_BYTES // (n_processes * max(1, workers))
    clips = _Clips(manifest, sample_rate, n_samples, kept_bytes)
    mine = slice(rank * size, (rank + 1) * size)
    return _load(partial(_training_batch, clips, order, seed, draw, mine), steps, workers, pin_memory)


def validation_batches(
    manifest: Manifest,
    batch_size: int,
    *,
    sample_rate: int,
    n_samples: int,
    part: tuple[int, int] = (0, 1),
    workers: int = 0,
    pin_memory: bool = False,
) -> Iterator[tuple[NDArray[np.int64], Batch]]:
    """Load every clip once, the first `n_samples` of each.

    Parameters
    ----------
    manifest : the clips
    batch_size : clips of a batch of this process; the last may have fewer
    sample_rate, n_samples, workers, pin_memory : see `batches`
    part : number of this process, and of all; process `i` of `n` gets the clips `i`, `i + n`, `i + 2 n`, ...

    Returns
    -------
    batches : numbers of clips, ascending, and their batch
    """
    rank, n_processes = part
    rows = np.arange(rank, len(manifest), n_processes)
    clips = _Clips(manifest, sample_rate, n_samples, kept_bytes=0)  # each is read once
    parts = [rows[first : first + batch_size] for first in range(0, len(rows), batch_size)]
    return _load(partial(_validation_batch, clips), parts, workers, pin_memory)


class _Clips:
    """Reads clips, and keeps the short ones while there is room.

    None is discarded for another: as each clip comes once in a pass, that would discard the one needed next.
    """

    def __init__(self, manifest: Manifest, sample_rate: int, n_samples: int, kept_bytes: int) -> None:
        self.manifest = manifest
        self.sample_rate = sample_rate
        self.n_samples = n_samples
        self.free_bytes = kept_bytes
        self.kept: dict[int, Tensor] = {}
        self.warnings: list[str] = []  # of the batch that is read

    def batch(self, clips: NDArray[np.int64], where: NDArray[np.float64]) -> Batch:
        """Read clips, from `where` in 0..1 of each one that is longer than a waveform."""
        waveforms = torch.zeros(len(clips), self.n_samples)
        lengths = torch.zeros(len(clips), dtype=torch.int64)
        weights = torch.ones(len(clips))
        failures = []
        self.warnings = []
        for i, (clip, place) in enumerate(zip(clips.tolist(), where.tolist(), strict=True)):
            try:
                waveform = self.read(clip, place)
            except AudioError as error:
                weights[i] = 0.0
                failures.append(str(error))
            else:
                waveforms[i, : len(waveform)] = waveform
                lengths[i] = len(waveform)
        targets = torch.from_numpy(self.manifest.targets(clips))
        return Batch(waveforms, lengths, targets, weights, {}, failures, self.warnings)

    def read(self, clip: int, where: float) -> Tensor:
        """Read one clip, or an excerpt if it is longer than a waveform: (samples,)."""
        if clip in self.kept:
            return self._cut(self.kept[clip], where)
        start, end = self.manifest.span(clip)
        with AudioFile(self.manifest.path(clip), warn=self.warnings.append) as file:
            seconds = min(end, file.duration()) - start
            if seconds <= WHOLE_SECONDS:
                waveform = file.excerpt(self.sample_rate, start, seconds)
                if waveform.nbytes <= self.free_bytes:
                    self.free_bytes -= waveform.nbytes
                    self.kept[clip] = waveform
                return self._cut(waveform, where)
            first = _first(round(seconds * self.sample_rate), self.n_samples, where)
            duration = min(seconds, self.n_samples / self.sample_rate)
            return file.excerpt(self.sample_rate, start + first / self.sample_rate, duration)

    def _cut(self, waveform: Tensor, where: float) -> Tensor:
        first = _first(len(waveform), self.n_samples, where)
        return waveform[first : first + self.n_samples]


def _first(length: int, n_samples: int, where: float) -> int:
    """Return the first sample of an excerpt."""
    return int(where * (max(0, length - n_samples) + 1))


def _training_batch(clips: _Clips, order: Order, seed: int, draw: Draw | None, mine: slice, step: int) -> Batch:
    """Load the part of a step's batch for this process."""
    rows = order.rows(step)
    where = np.random.default_rng((seed, EXCERPTS, step)).random(len(rows))
    batch = clips.batch(rows[mine], where[mine])
    if draw is not None:
        drawn = draw(np.random.default_rng((seed, AUGMENTATION, step)), len(rows))
        batch.draws = {name: values[mine].clone() for name, values in drawn.items()}
    return batch


def _validation_batch(clips: _Clips, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], Batch]:
    """Load clips from their beginning."""
    return rows, clips.batch(rows, np.zeros(len(rows)))


class _Batches(Dataset[Any]):
    """Batches by what they are loaded from."""

    def __init__(self, load: Callable[[Any], Any]) -> None:
        self.load = load

    def __getitem__(self, source: Any) -> Any:
        return self.load(source)


def _load(load: Callable[[Any], Any], sources: Iterable[Any], workers: int, pin_memory: bool) -> Iterator[Any]:
    """Load a batch of each source in order, by worker processes with one thread each."""
    loader = DataLoader(
        _Batches(load),
        batch_size=None,
        sampler=sources,
        num_workers=workers,
        collate_fn=_as_it_is,
        pin_memory=pin_memory,
        worker_init_fn=_start_silently,
        generator=torch.Generator(),  # for seeds that nothing here uses, to leave PyTorch's own state alone
    )
    return iter(loader)


def _as_it_is(batch: Any) -> Any:
    return batch


def _start_silently(worker: int) -> None:
    leave_the_terminal()
