"""Clips -> embeddings, in the order of the clips: read, stacked by equal length, embedded together.

The embedding of a clip does not depend on the others, and one that fails does not stop them.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import audio
from .errors import HearTransformersError

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
class Embedded:
    """The embedding of one clip.

    Attributes
    ----------
    index : which clip, from 0
    embedding : (size,) float32 of a scene, or (times, size); None if the clip failed
    times_ms : (times,) float64, None for a scene
    seconds : duration of its audio
    error : why it failed
    """

    index: int
    embedding: np.ndarray | None
    times_ms: np.ndarray | None = None
    seconds: float = 0.0
    error: Exception | None = None


def embed(
    model: Model, paths: Sequence[Path], *, timestamps: bool = False, scratch: Path | None = None
) -> Iterator[Embedded]:
    """Embed audio files.

    Clips of equal length are embedded together, files longer than `LONG_SECONDS` as they are decoded.

    Parameters
    ----------
    model : what embeds
    paths : of audio files
    timestamps : embeddings along time instead of one per file
    scratch : folder where embeddings along time of long files wait, on the disk; None: where the system keeps such

    Yields
    ------
    embedded : of every path, in order
    """
    run = _Run(model, timestamps=timestamps, scratch=scratch)
    for index, path in enumerate(paths):
        yield from run.take(index, path)
    yield from run.finish()


class _Run:
    """Collects short clips until there are enough of equal length, and gives embeddings in order."""

    def __init__(self, model: Model, *, timestamps: bool, scratch: Path | None) -> None:
        self.model = model
        self.timestamps = timestamps
        self.scratch = scratch
        self.pending: dict[int, dict[int, Tensor]] = {}  # length: {index: waveform}
        self.done: dict[int, Embedded] = {}
        self.next = 0

    def take(self, index: int, path: Path) -> Iterator[Embedded]:
        """Read one file; embed it if it is long, else keep it until others of its length are there."""
        try:
            held, rest = self._hold(path)
            if rest is not None:
                self.done[index] = self._embed_long(index, chain(held, rest))
            else:
                waveform = torch.cat(held)
                self.pending.setdefault(len(waveform), {})[index] = waveform
                self._embed_if_enough(len(waveform))
        except Exception as error:
            self.done[index] = Embedded(index, None, error=error)
        yield from self._release()
        while self.done and sum(_held_bytes(embedded) for embedded in self.done.values()) > WAITING_BYTES:
            self._embed_together(self._oldest())
            yield from self._release()

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

    def _hold(self, path: Path) -> tuple[list[Tensor], Iterator[Tensor] | None]:
        """Read one file up to `LONG_SECONDS`: give what was read, and the rest if there may be any."""
        blocks = audio.blocks(path, self.model.sample_rate)
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
            for index, waveform in clips.items():
                try:
                    if len(clips) == 1:
                        raise error
                    self._embed({index: waveform})
                except Exception as reason:
                    self.done[index] = Embedded(index, None, error=reason)

    def _embed(self, clips: dict[int, Tensor]) -> None:
        """Embed equally long clips."""
        waveforms = torch.stack([*clips.values()])
        times = None
        if self.timestamps:
            tensor, times_ms = self.model.embed_timestamps(waveforms)
            times = times_ms.cpu().double().numpy()
        else:
            tensor = self.model.embed_scenes(waveforms)
        seconds = waveforms.shape[1] / self.model.sample_rate
        for index, embedding in zip(clips, finite(tensor), strict=True):
            self.done[index] = Embedded(index, embedding, times, seconds)

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
