"""Batches across clips: windows of one length, of clips of any length, go through the network together.

Nothing is padded, so the embedding of a clip does not depend on the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

from ..audio.workers import LENT, Spent
from .windows import Buffer

BatchKey = tuple[int, int]
"""What windows in one batch share: their level (see `WindowSet`) and their length in samples."""

Rows = Mapping[str, Tensor]
"""Outputs of the network for some windows, by name; the first axis of each tensor is the windows."""


class WindowSet(NamedTuple):
    """Windows of one clip that are read in the same way.

    Attributes
    ----------
    level : index of the readout
    length : of each, in samples
    starts : (windows,) int64, first sample of each; may lie outside the clip
    """

    level: int
    length: int
    starts: Tensor

    @property
    def key(self) -> BatchKey:
        """Batch that these windows belong to."""
        return self.level, self.length


class Result(NamedTuple):
    """The embedding of one clip: (size,), or (times, size) with the time of each in ms, (times,) float64."""

    embedding: Tensor
    times_ms: Tensor | None = None


@dataclass(frozen=True, slots=True)
class Plan:
    """How to embed one clip.

    Attributes
    ----------
    sets : the windows to read
    join : turns the rows of each set into the embedding
    """

    sets: Sequence[WindowSet]
    join: Callable[[Sequence[Rows]], Result | None]


class Reader(Protocol):
    """Plans the windows of a clip, and runs the network on them."""

    device: torch.device

    def plan(self, n_samples: int) -> Plan:
        """Plan how to embed a clip of `n_samples`."""

    def batch_size_for(self, key: BatchKey) -> int:
        """Return how many windows are best read at once."""

    def read(self, key: BatchKey, parts: Sequence[tuple[Buffer, Tensor]]) -> Rows:
        """Run the network on windows of one key: whole clips on the device, and the starts of some windows in each."""


class Packed(NamedTuple):
    """A finished clip: its embedding on the CPU, or why there is none."""

    key: int
    result: Result | None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _Clip:
    """A clip in the works: the rows read of each of its sets, and how many windows are missing."""

    key: int
    buffer: Buffer
    plan: Plan
    rows: list[list[Rows]] = field(init=False)
    n_missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.plan.sets]
        self.n_missing = sum(len(each.starts) for each in self.plan.sets)

    @property
    def keys(self) -> list[BatchKey]:
        """Batches that its windows belong to, each once."""
        return list(dict.fromkeys(each.key for each in self.plan.sets))


class _Slice(NamedTuple):
    """The windows ``first .. last - 1`` of one of the sets of a clip."""

    clip: _Clip
    number: int
    first: int
    last: int

    @property
    def starts(self) -> Tensor:
        """First sample of each."""
        return self.clip.plan.sets[self.number].starts[self.first : self.last]


@dataclass(slots=True)
class _Queue:
    """Waiting windows of one key, those of the oldest clip first."""

    slices: deque[_Slice] = field(default_factory=deque)
    n_windows: int = 0

    def put(self, piece: _Slice) -> None:
        """Append windows."""
        self.slices.append(piece)
        self.n_windows += piece.last - piece.first

    def take(self, most: int) -> list[_Slice]:
        """Remove and return the first windows, at most `most`."""
        taken = []
        while self.slices and most:
            piece = self.slices.popleft()
            last = min(piece.last, piece.first + most)
            if last < piece.last:
                self.slices.appendleft(piece._replace(first=last))
            taken.append(piece._replace(last=last))
            self.n_windows -= last - piece.first
            most -= last - piece.first
        return taken

    def drop(self, clip: _Clip) -> None:
        """Remove all windows of a clip."""
        slices, self.slices, self.n_windows = self.slices, deque(), 0
        for piece in slices:
            if piece.clip is not clip:
                self.put(piece)


class _InFlight:
    """A batch whose rows are on their way to the CPU."""

    def __init__(self, slices: Sequence[_Slice], rows: Rows, device: torch.device) -> None:
        is_cuda = device.type == "cuda"
        self.slices = slices
        self.rows = {name: value.to("cpu", non_blocking=is_cuda) for name, value in rows.items()}
        self.arrival = torch.cuda.Event() if is_cuda else None
        if self.arrival is not None:
            self.arrival.record(torch.cuda.current_stream(device))

    def land(self) -> list[tuple[_Slice, Rows]]:
        """Wait for the rows, and split them by slice."""
        if self.arrival is not None:
            self.arrival.synchronize()
        counts = [piece.last - piece.first for piece in self.slices]
        parts = {name: value.split(counts) for name, value in self.rows.items()}
        return [(piece, {name: each[i] for name, each in parts.items()}) for i, piece in enumerate(self.slices)]


class Packer:
    """Collects clips, and embeds them as soon as there are enough windows for a batch.

    On CUDA nothing waits for the GPU but the results of the batch before last: clips are copied there in a stream of
    their own, so that the memory they came in is free again before the network is done with what it has, and results
    back in that of the network, while the CPU goes on.

    Parameters
    ----------
    reader : plans the windows, and runs the network
    spent : takes the seconds of the network
    """

    def __init__(self, reader: Reader, spent: Spent | None = None) -> None:
        self.reader = reader
        self.spent = Spent() if spent is None else spent
        self.queues: dict[BatchKey, _Queue] = {}
        self.clips: dict[int, _Clip] = {}  # the oldest first
        self.flights: deque[_InFlight] = deque()
        self.is_on_cuda = reader.device.type == "cuda"
        self.most_flights = 1 if self.is_on_cuda else 0
        self.copying = torch.cuda.Stream(reader.device) if self.is_on_cuda else None
        self.lent: deque[tuple[Buffer, torch.cuda.Event | None]] = deque()
        self.n_samples = 0  # of the clips that wait

    def add(self, key: int, waveform: Tensor, *, is_lent: bool = False) -> Iterator[Packed]:
        """Add a clip, and yield the clips that are finished by that.

        Parameters
        ----------
        key : of the clip
        waveform : (samples,) float32, or int16 with 32768 for 1.0
        is_lent : whether it is valid only until `LENT` more are added, see `Loaded.is_lent`
        """
        buffer = self._fetch(waveform, is_lent=is_lent)
        try:
            plan = self.reader.plan(len(waveform))
        except Exception as error:
            yield Packed(key, None, error)
        else:
            yield from self._add(_Clip(key, buffer, plan))
        self._let_go()

    def _add(self, clip: _Clip) -> Iterator[Packed]:
        self.clips[clip.key] = clip
        self.n_samples += clip.buffer.stop
        for number, each in enumerate(clip.plan.sets):
            self.queues.setdefault(each.key, _Queue()).put(_Slice(clip, number, 0, len(each.starts)))
        for batch in clip.keys:
            while batch in self.queues and self.queues[batch].n_windows >= self.reader.batch_size_for(batch):
                yield from self._run(batch)

    def _fetch(self, waveform: Tensor, *, is_lent: bool) -> Buffer:
        """Copy a clip to the device of the network, as float32; on the CPU it may stay where it is."""
        device, arrival = self.reader.device, None
        if self.copying is None or waveform.is_cuda:
            samples = _as_float(waveform.to(device))
        else:
            with torch.cuda.stream(self.copying):
                samples = _as_float(waveform.to(device, non_blocking=True))
                arrival = torch.cuda.Event()
                arrival.record()
            samples.record_stream(torch.cuda.current_stream(device))
        buffer = Buffer(samples, n_samples=len(samples))
        if is_lent:
            self.lent.append((buffer, arrival))
        return buffer

    def _let_go(self) -> None:
        """Let go of memory that is lent while fewer than `LENT` clips are added."""
        while len(self.lent) >= LENT:
            buffer, arrival = self.lent.popleft()
            if arrival is not None:
                arrival.synchronize()
            elif any(clip.buffer is buffer for clip in self.clips.values()):
                buffer.samples = buffer.samples.clone()

    def finish_oldest(self) -> Iterator[Packed]:
        """Finish the clip that has waited longest, whether or not there are enough windows."""
        clip = next(iter(self.clips.values()))
        for batch in clip.keys:
            while batch in self.queues and self.queues[batch].slices[0].clip is clip:
                yield from self._run(batch)
        while clip.key in self.clips:
            yield from self._land()

    def finish(self) -> Iterator[Packed]:
        """Finish every clip."""
        while self.clips:
            yield from self.finish_oldest()

    def _run(self, key: BatchKey) -> Iterator[Packed]:
        """Run the network on a batch; if that fails embed its clips one by one, so that none spoils the others."""
        slices = self.queues[key].take(self.reader.batch_size_for(key))
        self._tidy([key])
        try:
            with self.spent.on("computing"):
                if self.copying is not None:
                    torch.cuda.current_stream(self.reader.device).wait_stream(self.copying)
                rows = self.reader.read(key, [(piece.clip.buffer, piece.starts) for piece in slices])
                self.flights.append(_InFlight(slices, rows, self.reader.device))
        except Exception as error:
            clips = dict.fromkeys(piece.clip for piece in slices)
            for clip in clips:
                yield self._alone(clip) if len(clips) > 1 else self._leave(clip, error=error)
        while len(self.flights) > self.most_flights:
            yield from self._land()

    def _land(self) -> Iterator[Packed]:
        """Hand the rows of the oldest batch in flight to its clips, and yield those that are complete by that."""
        with self.spent.on("computing"):
            landed = self.flights.popleft().land()
        for piece, rows in landed:
            clip = piece.clip
            clip.rows[piece.number].append(rows)
            clip.n_missing -= piece.last - piece.first
            if not clip.n_missing and clip.key in self.clips:
                yield self._joined(clip)

    def _alone(self, clip: _Clip) -> Packed:
        """Embed one clip by itself."""
        try:
            clip.rows = [[self._read_all(clip, each)] for each in clip.plan.sets]
        except Exception as error:
            return self._leave(clip, error=error)
        return self._joined(clip)

    def _read_all(self, clip: _Clip, windows: WindowSet) -> Rows:
        rows = self.reader.read(windows.key, [(clip.buffer, windows.starts)])
        return {name: value.cpu() for name, value in rows.items()}

    def _joined(self, clip: _Clip) -> Packed:
        try:
            return self._leave(clip, clip.plan.join([_concatenated(rows) for rows in clip.rows]))
        except Exception as error:
            return self._leave(clip, error=error)

    def _leave(self, clip: _Clip, result: Result | None = None, error: Exception | None = None) -> Packed:
        """Remove a finished clip; one that failed leaves windows behind that need not be read any more."""
        for key in clip.keys:
            if clip.n_missing and key in self.queues:
                self.queues[key].drop(clip)
        self._tidy(clip.keys)
        del self.clips[clip.key]
        self.n_samples -= clip.buffer.stop
        return Packed(clip.key, result, error)

    def _tidy(self, keys: Iterable[BatchKey]) -> None:
        """Remove empty queues."""
        for key in keys:
            if key in self.queues and not self.queues[key].slices:
                del self.queues[key]


def _concatenated(rows: Sequence[Rows]) -> Rows:
    return rows[0] if len(rows) == 1 else {name: torch.cat([part[name] for part in rows]) for name in rows[0]}


def _as_float(waveform: Tensor) -> Tensor:
    """Return samples as float32: int16 has 32768 for 1.0, as in a file."""
    return waveform.to(torch.float32) / 2**15 if waveform.dtype == torch.int16 else waveform.to(torch.float32)
