"""Clips -> embeddings, in the order of the clips: read, stacked by equal length, embedded together.

The embedding of a clip does not depend on the others, and one that fails does not stop them.
"""

from __future__ import annotations

import contextlib
import math
import tempfile
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import audio
from .checkpoints import sha256_of
from .errors import AudioError, HearTransformersError, OptionError, WeightsError

LONG_SECONDS = 60.0
"""Files longer than this are not held in memory but embedded as they are decoded."""

STACK_SECONDS = 320.0
"""Audio of equally long clips that is embedded at once, unless the model's batch size says otherwise."""

PENDING_SECONDS = 640.0
"""Audio of short clips that waits in memory for others of its length: 82 MB at 32 kHz."""

WAITING_BYTES = 2**28
"""Embeddings that wait in memory for those of clips before them."""


class Model(Protocol):
    """What embeds: an `Embedder`, or a `foreign.ForeignModel`."""

    sample_rate: int
    batch_size: int | None

    def embed_scenes(self, waveforms: Tensor) -> Tensor:
        """(clips, samples) -> (clips, size)."""

    def embed_timestamps(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(clips, samples) -> (clips, times, size), (times,) ms."""

    def stream_scene(self, blocks: Iterable[Tensor]) -> Tensor:
        """Blocks of (1, samples) -> (1, size)."""

    def stream_timestamps(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (1, samples) -> pieces of (1, times, size), (times,) ms."""

    def provenance(self) -> dict[str, Any]:
        """Say what makes the embeddings, ready for JSON."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What to embed: an audio file, a part of one, or a waveform.

    Attributes
    ----------
    path : of the file; None for a waveform
    start, end : of the part, in s
    waveform : (samples,) float32 at the model's sample rate
    known : sha256 of a file that was embedded before: with the same content it is not embedded again
    """

    path: Path | None = None
    start: float = 0.0
    end: float = math.inf
    waveform: Tensor | None = None
    known: str = ""


@dataclass(frozen=True, slots=True)
class Embedded:
    """What became of one clip.

    Attributes
    ----------
    index : which clip, from 0
    embedding : (size,) float32 of a scene, or (times, size); None if the clip failed or is known
    times_ms : (times,) float64, from the start of the clip; None for a scene
    seconds : duration of its audio
    sha256 : of the file, empty for a waveform or where hashes are not asked for
    error : why it failed
    """

    index: int
    embedding: np.ndarray | None = None
    times_ms: np.ndarray | None = None
    seconds: float = 0.0
    sha256: str = ""
    error: Exception | None = None


def embed(
    model: Model,
    clips: Iterable[Clip],
    *,
    timestamps: bool = False,
    hashes: bool = False,
    scratch: Path | None = None,
    workers: int = 0,
) -> Iterator[Embedded]:
    """Embed clips.

    Clips of equal length are embedded together, those longer than `LONG_SECONDS` as they are decoded.

    Parameters
    ----------
    model : what embeds
    clips : to embed
    timestamps : embeddings along time instead of one per clip
    hashes : whether the sha256 of every file is wanted
    scratch : folder where embeddings along time of long clips wait, on the disk; None: where the system keeps such
    workers : processes that read audio

    Yields
    ------
    embedded : of every clip, in order
    """
    run = _Run(model, timestamps=timestamps, hashes=hashes, scratch=scratch)
    for index, clip in enumerate(clips):
        yield from run.take(index, clip)
    yield from run.finish()


@dataclass(frozen=True, slots=True)
class _Short:
    """A clip in memory."""

    waveform: Tensor
    sha256: str


class _Run:
    """Collects short clips until there are enough of equal length, and gives embeddings in order."""

    def __init__(self, model: Model, *, timestamps: bool, hashes: bool, scratch: Path | None) -> None:
        self.model = model
        self.timestamps = timestamps
        self.hashes = hashes
        self.scratch = scratch
        self.pending: dict[int, dict[int, _Short]] = {}  # length: {index: clip}
        self.done: dict[int, Embedded] = {}
        self.next = 0

    def take(self, index: int, clip: Clip) -> Iterator[Embedded]:
        """Read one clip; embed it if it is long, else keep it until others of its length are there."""
        try:
            self._take(index, clip)
        except Exception as error:
            self.done[index] = Embedded(index, error=error)
        yield from self._release()
        while self.done and sum(_held_bytes(embedded) for embedded in self.done.values()) > WAITING_BYTES:
            self._embed_together(self._oldest())
            yield from self._release()

    def _take(self, index: int, clip: Clip) -> None:
        sha256 = _content(clip.path) if clip.path and (self.hashes or clip.known) else ""
        if sha256 and sha256 == clip.known:
            self.done[index] = Embedded(index, sha256=sha256)
            return
        held, rest = self._hold(_blocks(clip, self.model.sample_rate))
        if rest is not None:
            self.done[index] = replace(self._embed_long(index, chain(held, rest)), sha256=sha256)
            return
        waveform = torch.cat(held)
        self.pending.setdefault(len(waveform), {})[index] = _Short(waveform, sha256)
        self._embed_if_enough(len(waveform))

    def finish(self) -> Iterator[Embedded]:
        """Embed the clips that are still waiting."""
        while self.pending:
            self._embed_together(self._oldest())
            yield from self._release()

    def _release(self) -> Iterator[Embedded]:
        """Give what is done and has nothing before it that is not."""
        while self.next in self.done:
            yield self.done.pop(self.next)
            self.next += 1

    def _hold(self, blocks: Iterator[Tensor]) -> tuple[list[Tensor], Iterator[Tensor] | None]:
        """Read one clip up to `LONG_SECONDS`: give what was read, and the rest if there may be any."""
        held: list[Tensor] = []
        n_held = 0
        for block in blocks:
            held.append(block)
            n_held += len(block)
            if n_held > LONG_SECONDS * self.model.sample_rate:
                return held, blocks
        return held, None

    def _oldest(self) -> int:
        """Give the length of the clip that has waited longest."""
        return min(self.pending, key=lambda length: next(iter(self.pending[length])))

    def _embed_if_enough(self, length: int) -> None:
        rate = self.model.sample_rate
        enough = self.model.batch_size or max(1, int(STACK_SECONDS * rate / length))
        if len(self.pending[length]) >= enough:
            self._embed_together(length)
        elif sum(length * len(clips) for length, clips in self.pending.items()) > PENDING_SECONDS * rate:
            self._embed_together(self._oldest())

    def _embed_together(self, length: int) -> None:
        """Embed clips of one length together; if that fails one by one, so that none spoils the others."""
        clips = self.pending.pop(length)
        try:
            self._embed(clips)
        except Exception as error:
            for index, clip in clips.items():
                try:
                    if len(clips) == 1:
                        raise error
                    self._embed({index: clip})
                except Exception as reason:
                    self.done[index] = Embedded(index, error=reason)

    def _embed(self, clips: dict[int, _Short]) -> None:
        """Embed equally long clips."""
        waveforms = torch.stack([clip.waveform for clip in clips.values()])
        times = None
        if self.timestamps:
            tensor, times_ms = self.model.embed_timestamps(waveforms)
            times = times_ms.cpu().double().numpy()
        else:
            tensor = self.model.embed_scenes(waveforms)
        seconds = waveforms.shape[1] / self.model.sample_rate
        for (index, clip), embedding in zip(clips.items(), finite(tensor), strict=True):
            self.done[index] = Embedded(index, embedding, times, seconds, clip.sha256)

    def _embed_long(self, index: int, blocks: Iterable[Tensor]) -> Embedded:
        """Embed one file while it is decoded; embeddings along time wait in a nameless file, not in memory."""
        n_samples = 0

        def counted() -> Iterator[Tensor]:
            nonlocal n_samples
            for block in blocks:
                n_samples += len(block)
                yield block[None]

        rate = self.model.sample_rate
        if not self.timestamps:
            return Embedded(index, finite(self.model.stream_scene(counted()))[0], None, n_samples / rate)
        times_ms = []
        with tempfile.TemporaryFile(dir=self.scratch) as scratch:
            for embeddings, centres_ms in self.model.stream_timestamps(counted()):
                scratch.write(finite(embeddings).tobytes())
                times_ms.append(centres_ms.cpu().double().numpy())
            scratch.flush()
            times = np.concatenate(times_ms)
            rows = np.memmap(scratch, np.float32, "r").reshape(len(times), -1)
            return Embedded(index, rows, times, n_samples / rate)


def _content(path: Path) -> str:
    """Give the sha256 of a file; empty for what is none or cannot be read, of which decoding says more."""
    with contextlib.suppress(WeightsError):
        return sha256_of(path) if path.is_file() else ""  # to open a pipe would take until somebody writes to it
    return ""


def _blocks(clip: Clip, sample_rate: int) -> Iterator[Tensor]:
    """Read a clip piece by piece."""
    if clip.waveform is not None:
        yield clip.waveform
    elif clip.path is None:
        raise OptionError("a clip is a file or a waveform; this one is neither")
    elif clip.start == 0.0 and clip.end == math.inf:
        yield from audio.blocks(clip.path, sample_rate)
    elif clip.end - clip.start <= LONG_SECONDS:
        yield audio.excerpt(clip.path, sample_rate, clip.start, clip.end - clip.start)
    else:
        yield from _between(audio.blocks(clip.path, sample_rate), clip, sample_rate)


def _between(blocks: Iterable[Tensor], clip: Clip, sample_rate: int) -> Iterator[Tensor]:
    """Drop what lies outside a part of a file."""
    first = round(clip.start * sample_rate)
    last = None if clip.end == math.inf else round(clip.end * sample_rate)
    position, empty = 0, True
    for block in blocks:
        part = block[max(0, first - position) : None if last is None else max(0, last - position)]
        position += len(block)
        if len(part):
            empty = False
            yield part
        if last is not None and position >= last:
            break
    if empty:
        raise AudioError(f"{clip.path}: ends before {clip.start:.3f} s, where a part was to begin")


def _held_bytes(embedded: Embedded) -> int:
    """Give the memory that an embedding takes; that of a long file is on the disk."""
    embedding = embedded.embedding
    return 0 if embedding is None or isinstance(embedding, np.memmap) else embedding.nbytes


def finite(embeddings: Tensor) -> np.ndarray:
    """Move embeddings to a NumPy array of float32; refuse any that are not finite."""
    array = embeddings.detach().float().cpu().numpy()
    if not np.isfinite(array).all():
        raise HearTransformersError("the model gave NaN or infinite numbers; with precision bfloat16, try float32")
    return array
