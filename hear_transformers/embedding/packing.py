"""Windows of many clips, of whatever length, go through a network together: as many of one length as it takes at once.

Nothing is padded, so what comes of a clip does not depend on the others.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import torch
from torch import Tensor

BatchKey = tuple[int, int]
"""What goes through the network together: windows of one level (see `WindowSet`), of one length in samples."""

Rows = Mapping[str, Tensor]
"""What a network makes of windows, by name: the first axis of each tensor is the windows."""


class WindowSet(NamedTuple):
    """Windows of one clip that are read alike.

    Attributes
    ----------
    level : which of several ways to read a window
    length : of each, in samples
    starts : (windows,) int64, first sample of each, ascending; may lie outside the clip
    """

    level: int
    length: int
    starts: Tensor

    @property
    def kind(self) -> BatchKey:
        """What goes through the network together with these."""
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
    cuts : the windows to read
    join : makes the embedding out of what was read of each of the cuts
    """

    cuts: Sequence[WindowSet]
    join: Callable[[list[Rows]], Result]


class Reader(Protocol):
    """Says which windows of a clip are needed, and reads them."""

    device: torch.device

    def plan(self, waveform: Tensor) -> Plan:
        """Plan how to embed a clip (samples,)."""

    def n_windows(self, kind: BatchKey) -> int:
        """Say how many windows of a kind are best read at once."""

    def read(self, kind: BatchKey, windows: Sequence[tuple[Tensor, Tensor]]) -> Rows:
        """Read windows of one kind: pairs of a clip (samples,) on the device and the starts of some windows in it."""


class Packed(NamedTuple):
    """What became of a clip: its embedding on the CPU, or why there is none."""

    key: int
    result: Result | None
    error: Exception | None = None


@dataclass(slots=True, eq=False)
class _Clip:
    """A clip that is not finished: what has been read of each of its cuts, and how many windows have not."""

    key: int
    waveform: Tensor
    plan: Plan
    rows: list[list[Rows]] = field(init=False)
    n_missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.plan.cuts]
        self.n_missing = sum(len(cuts.starts) for cuts in self.plan.cuts)

    @property
    def kinds(self) -> list[BatchKey]:
        """The kinds of its windows, each once."""
        return list(dict.fromkeys(cuts.kind for cuts in self.plan.cuts))


class _Slice(NamedTuple):
    """The windows ``first .. last - 1`` of one of the cuts of a clip."""

    clip: _Clip
    number: int
    first: int
    last: int

    @property
    def starts(self) -> Tensor:
        """First sample of each."""
        return self.clip.plan.cuts[self.number].starts[self.first : self.last]


@dataclass(slots=True)
class _Queue:
    """Windows of one kind that wait, those of the oldest clip first."""

    slices: deque[_Slice] = field(default_factory=deque)
    n_windows: int = 0

    def put(self, piece: _Slice) -> None:
        """Add windows."""
        self.slices.append(piece)
        self.n_windows += piece.last - piece.first

    def take(self, most: int) -> list[_Slice]:
        """Take the first windows out, `most` at most."""
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
        """Take all windows of a clip out."""
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

    def land(self) -> Iterator[tuple[_Slice, Rows]]:
        """Wait for the rows, and part them."""
        if self.arrival is not None:
            self.arrival.synchronize()
        first = 0
        for piece in self.slices:
            last = first + piece.last - piece.first
            yield piece, {name: value[first:last] for name, value in self.rows.items()}
            first = last


class Packer:
    """Collects clips, and embeds them as soon as there are enough windows of a kind.

    On CUDA nothing waits for the GPU but the results of the batch before last: clips are copied there from pinned
    memory, and results back, while the CPU goes on. Both stay in the order of the batches: beside the network, copies
    take a hundredth of the time or less, so that a second stream would gain nothing.

    Parameters
    ----------
    reader : says what to read, and reads it
    """

    def __init__(self, reader: Reader) -> None:
        self.reader = reader
        self.queues: dict[BatchKey, _Queue] = {}
        self.clips: dict[int, _Clip] = {}  # the oldest first
        self.flights: deque[_InFlight] = deque()
        self.most_flights = 1 if reader.device.type == "cuda" else 0
        self.n_samples = 0  # of the clips that wait

    def add(self, key: int, waveform: Tensor) -> Iterator[Packed]:
        """Take a clip (samples,), and give what is finished by that."""
        try:
            plan = self.reader.plan(waveform)
        except Exception as error:
            yield Packed(key, None, error)
            return
        clip = _Clip(key, _to_device(waveform, self.reader.device), plan)
        self.clips[key] = clip
        self.n_samples += len(waveform)
        for number, cuts in enumerate(plan.cuts):
            self.queues.setdefault(cuts.kind, _Queue()).put(_Slice(clip, number, 0, len(cuts.starts)))
        for kind in clip.kinds:
            while kind in self.queues and self.queues[kind].n_windows >= self.reader.n_windows(kind):
                yield from self._run(kind)

    def finish_oldest(self) -> Iterator[Packed]:
        """Finish the clip that has waited longest, whether or not there are enough windows."""
        clip = next(iter(self.clips.values()))
        for kind in clip.kinds:
            while kind in self.queues and self.queues[kind].slices[0].clip is clip:
                yield from self._run(kind)
        while clip.key in self.clips:
            yield from self._land()

    def finish(self) -> Iterator[Packed]:
        """Finish every clip."""
        while self.clips:
            yield from self.finish_oldest()

    def _run(self, kind: BatchKey) -> Iterator[Packed]:
        """Read a batch; if that fails embed its clips one by one, so that none spoils the others."""
        slices = self.queues[kind].take(self.reader.n_windows(kind))
        self._tidy([kind])
        try:
            rows = self.reader.read(kind, [(piece.clip.waveform, piece.starts) for piece in slices])
            self.flights.append(_InFlight(slices, rows, self.reader.device))
        except Exception as error:
            clips = dict.fromkeys(piece.clip for piece in slices)
            for clip in clips:
                yield self._alone(clip) if len(clips) > 1 else self._leave(clip, error=error)
        while len(self.flights) > self.most_flights:
            yield from self._land()

    def _land(self) -> Iterator[Packed]:
        """Hand the rows of the oldest batch in flight to its clips, and give those that are complete by that."""
        for piece, rows in self.flights.popleft().land():
            clip = piece.clip
            clip.rows[piece.number].append(rows)
            clip.n_missing -= piece.last - piece.first
            if not clip.n_missing and clip.key in self.clips:
                yield self._joined(clip)

    def _alone(self, clip: _Clip) -> Packed:
        """Embed one clip by itself."""
        try:
            clip.rows = [[self._read_all(clip, cuts)] for cuts in clip.plan.cuts]
        except Exception as error:
            return self._leave(clip, error=error)
        return self._joined(clip)

    def _read_all(self, clip: _Clip, cuts: WindowSet) -> Rows:
        rows = self.reader.read(cuts.kind, [(clip.waveform, cuts.starts)])
        return {name: value.cpu() for name, value in rows.items()}

    def _joined(self, clip: _Clip) -> Packed:
        try:
            return self._leave(clip, clip.plan.join([_concatenated(rows) for rows in clip.rows]))
        except Exception as error:
            return self._leave(clip, error=error)

    def _leave(self, clip: _Clip, result: Result | None = None, error: Exception | None = None) -> Packed:
        """Forget a clip that is finished."""
        for kind in clip.kinds:
            if clip.n_missing and kind in self.queues:
                self.queues[kind].drop(clip)
        self._tidy(clip.kinds)
        del self.clips[clip.key]
        self.n_samples -= len(clip.waveform)
        return Packed(clip.key, result, error)

    def _tidy(self, kinds: Iterable[BatchKey]) -> None:
        """Forget queues in which nothing waits."""
        for kind in kinds:
            if kind in self.queues and not self.queues[kind].slices:
                del self.queues[kind]


def _concatenated(rows: Sequence[Rows]) -> Rows:
    return rows[0] if len(rows) == 1 else {name: torch.cat([part[name] for part in rows]) for name in rows[0]}


def _to_device(waveform: Tensor, device: torch.device) -> Tensor:
    """Copy a clip to where the network is, as float32."""
    waveform = waveform.to(torch.float32)
    return waveform.pin_memory().to(device, non_blocking=True) if device.type == "cuda" else waveform.to(device)
