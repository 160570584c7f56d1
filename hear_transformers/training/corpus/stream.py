"""The corpus as training takes it: batches of synthetic clips with frame-level labels, made as they are needed.

Batch i depends on the seed and i alone, whatever the number of processes that make them.
"""

from __future__ import annotations

from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import DTypeLike, NDArray
from threadpoolctl import threadpool_limits

from ...errors import OptionError
from . import notes, scenes, speech, words
from .mels import FRAMES, N_MELS, compute_log_mels, frontend
from .processes import Bytes, computed
from .signals import LENGTH, Signal
from .speech import PHONES

__all__ = ["FAMILIES", "PHONES", "Batch", "CorpusOptions", "Part", "stream"]

FAMILIES = tuple(family.__name__ for family in scenes.FAMILIES)
"""Names of the families of sounds, in the order of the labels."""

ALIGNMENT = 64  # bytes at which an array may begin
CHUNK = 16  # clips whose samples are in memory at once

LABELS = {
    "scenes": ("events", (FRAMES, len(FAMILIES))),
    "speech": ("phones", (FRAMES,)),
    "notes": ("pitches", (FRAMES, notes.N_PITCHES)),
}
"""Kinds of clips, and name and shape of their labels."""


@dataclass(frozen=True, slots=True, kw_only=True)
class CorpusOptions:
    """What is in a batch.

    Attributes
    ----------
    seed : of everything that is drawn
    scenes, speech, notes : clips of two seconds of each kind
    words : whether speech has the label "words", too, which needs the extra `teachers`
    waveforms : whether the samples are kept beside the log-mels
    """

    seed: int = 0
    scenes: int = 16
    speech: int = 16
    notes: int = 0
    words: bool = False
    waveforms: bool = False

    def __post_init__(self) -> None:
        """Check the numbers."""
        for name in ("seed", *LABELS):
            if getattr(self, name) < 0:
                raise OptionError(f"{name}={getattr(self, name)} is too few; choose 0 or more")


class Part(NamedTuple):
    """What a batch has of one kind.

    Attributes
    ----------
    waveforms : (clips, 64000) int16 at 32 kHz; None without `CorpusOptions.waveforms`
    mels : (clips, n_mels, frames) float16, log-mels in the dialect of the embedded model
    labels : by name, see `Batch`
    """

    waveforms: NDArray[np.int16] | None
    mels: NDArray[np.float16]
    labels: dict[str, NDArray[Any]]


class Batch(NamedTuple):
    """Clips of three kinds.

    Attributes
    ----------
    step : the number of the batch
    scenes : labels "events" (clips, frames, families), 1 where a family of `FAMILIES` sounds
    speech : labels "phones" (clips, frames), indices into `PHONES`, and "words" (clips, frames, 96), see `words.hear`
    notes : labels "pitches" (clips, frames, 88), 1 where a key of a piano sounds, A0 first
    """

    step: int
    scenes: Part
    speech: Part
    notes: Part


def stream(options: CorpusOptions, steps: Sequence[int], workers: int) -> Generator[Batch, None, None]:
    """Synthesise batches.

    Parameters
    ----------
    options : what is in a batch
    steps : numbers of the batches
    workers : processes that make them ahead of their use; 0: this process, but for batches with speech, which are made
        in one process each, as eSpeak NG remembers what it spoke

    Raises
    ------
    OptionError : a negative number of processes
    HearTransformersError : eSpeak NG or the package of words is missing, or the processes that make a batch died
    """
    if workers < 0:
        raise OptionError(f"workers={workers} is too few; choose 0 or more")
    if options.speech:
        speech.check()  # fails here, rather than in every process
        if options.words:
            words.check()
        workers = max(1, workers)
    results = (
        _made_here(options, steps)
        if not workers
        else computed(partial(fill, options), partial(prepare, options), steps, _size(options), workers)
    )
    for step, memory in zip(steps, results, strict=True):
        yield Batch(step, **_parts(options, memory.copy()))


def _made_here(options: CorpusOptions, steps: Sequence[int]) -> Iterator[Bytes]:
    prepare(options)
    for step in steps:
        memory = np.zeros(_size(options), np.uint8)
        with threadpool_limits(1):  # as in the processes: more threads may round otherwise
            fill(options, memory, step, 0)
        yield memory


def prepare(options: CorpusOptions) -> None:
    """Load what every process that makes batches needs."""
    frontend()
    if options.speech:
        speech.espeak()
        if options.words:
            words.networks()


def fill(options: CorpusOptions, memory: Bytes, step: int, attempt: int) -> None:
    """Make a batch in memory.

    Parameters
    ----------
    options : what is in it
    memory : (bytes,) that `_parts` has arrays in
    step : the number of the batch
    attempt : how often eSpeak NG crashed in it
    """
    makers: dict[str, Callable[[int], tuple[Signal, NDArray[np.uint8]]]] = {
        "scenes": lambda i: scenes.scene(options.seed, step, i),
        "speech": lambda i: speech.utterance(options.seed, step, i, attempt),
        "notes": lambda i: notes.clip_of_notes(options.seed, step, i),
    }
    for kind, part in _parts(options, memory).items():
        labels = part.labels[LABELS[kind][0]]
        for start in range(0, len(labels), CHUNK):
            chunk = slice(start, min(start + CHUNK, len(labels)))
            clips = np.empty((chunk.stop - start, LENGTH), np.float32)
            for i in range(start, chunk.stop):
                clips[i - start], labels[i] = makers[kind](i)
            part.mels[chunk] = compute_log_mels(clips)
            if "words" in part.labels:
                part.labels["words"][chunk] = np.stack([words.hear(clip) for clip in clips])
            if part.waveforms is not None:
                part.waveforms[chunk] = np.round(clips * (2**15 - 1))


def _fields(options: CorpusOptions) -> Iterator[tuple[str, str, tuple[int, ...], DTypeLike]]:
    """Return kind, name, shape and type of every array of a batch."""
    for kind, (label, shape) in LABELS.items():
        n = getattr(options, kind)
        if options.waveforms:
            yield kind, "waveforms", (n, LENGTH), np.int16
        yield kind, "mels", (n, N_MELS, FRAMES), np.float16
        yield kind, label, (n, *shape), np.uint8
        if options.words and kind == "speech":
            yield kind, "words", (n, FRAMES, words.SIZE), np.float16


def _padded(shape: tuple[int, ...], dtype: DTypeLike) -> int:
    return -(-int(np.prod(shape)) * np.dtype(dtype).itemsize // ALIGNMENT) * ALIGNMENT


def _size(options: CorpusOptions) -> int:
    """Return the bytes of a batch."""
    return sum(_padded(shape, dtype) for *_, shape, dtype in _fields(options))


def _parts(options: CorpusOptions, memory: Bytes) -> dict[str, Part]:
    """Return the arrays of a batch by kind, which lie in memory (bytes,)."""
    arrays: dict[str, dict[str, NDArray[np.generic]]] = {kind: {} for kind in LABELS}
    start = 0
    for kind, name, shape, dtype in _fields(options):
        arrays[kind][name] = np.ndarray(shape, dtype, memory.data, start)
        start += _padded(shape, dtype)
    return {
        kind: Part(found.pop("waveforms", None), found.pop("mels"), found)  # type: ignore[arg-type]
        for kind, found in arrays.items()
    }
