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

from ..audio.resampling import length
from ..audio.workers import LENT, Spent
from .resampling import TOGETHER_SECONDS, as_float, resampled, warning_of
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

    @property
    def n_windows(self) -> int:
        """Number of windows."""
        return self.starts.shape[0]  # five times as fast as len


class Result(NamedTuple):
    """The embedding of one clip: (size,), or (times, size) with the time of each in ms, (times,) float64."""

    embedding: Tensor
    times_ms: Tensor | None = None


@dataclass(slots=True)
class Plan:
    """How to embed one clip, or each of several of one length.

    Attributes
    ----------
    sets : the windows to read
    join : turns the rows of each set into the embedding
    keys : batches that the windows belong to, each once
    n_windows : in all sets
    """

    sets: Sequence[WindowSet]
    join: Callable[[Sequence[Rows]], Result | None]
    keys: list[BatchKey] = field(init=False)
    n_windows: int = field(init=False)

    def __post_init__(self) -> None:
        self.keys = list(dict.fromkeys(each.key for each in self.sets))
        self.n_windows = sum(each.n_windows for each in self.sets)


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
    """A finished clip: its embedding on the CPU, or why there is none; its length, and a warning about its audio."""

    key: int
    result: Result | None
    error: Exception | None = None
    n_samples: int = 0  # at the sample rate of the model
    warning: str | None = None


@dataclass(slots=True, eq=False)
class _Clip:
    """A clip in the works: the rows read of each of its sets, and how many windows are missing.

    Its buffer holds its samples at `rate` until `energies` are there, see `resampling.resampled`.
    """

    key: int
    buffer: Buffer
    plan: Plan
    n_samples: int  # at the sample rate of the model
    rate: int
    energies: Tensor | None = None
    rows: list[list[Rows]] = field(init=False)
    n_missing: int = field(init=False)

    def __post_init__(self) -> None:
        self.rows = [[] for _ in self.plan.sets]
        self.n_missing = self.plan.n_windows


class _Slice(NamedTuple):
    """The windows ``first .. last - 1`` of one of the sets of a clip."""

    clip: _Clip
    number: int
    first: int
    last: int

    @property
    def starts(self) -> Tensor:
        """First sample of each."""
        starts = self.clip.plan.sets[self.number].starts
        return starts if self.last - self.first == starts.shape[0] else starts[self.first : self.last]


@dataclass(slots=True)
class _Queue:
    """Waiting windows of one key, those of the oldest clip first."""

    batch_size: int
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


FIRST_SHARE = 4
"""The first batch on a card has a fourth of the windows: it has nothing else to do while more clips are decoded."""

COPIED_TOGETHER = LENT // 2
"""Clips that are copied to CUDA one after the other: to change the stream and to mark an event takes 0.1 ms."""


@dataclass(slots=True, eq=False)
class _Arrival:
    """A clip that comes from elsewhere, and what tells that it was copied to CUDA."""

    key: int  # of the clip
    buffer: Buffer
    event: torch.cuda.Event | None = None


class Packer:
    """Collects clips, and embeds them as soon as there are enough windows for a batch.

    On CUDA nothing waits for the GPU but the results of the batch before last: clips are copied there in a stream of
    their own, so that the memory they came in is free again before the network is done with what it has, and results
    back in that of the network, while the CPU goes on.

    Parameters
    ----------
    reader : plans the windows, and runs the network
    sample_rate : of the network, in Hz; clips of other rates are resampled on its device before it reads them
    spent : takes the seconds of the network
    """

    def __init__(self, reader: Reader, sample_rate: int, spent: Spent | None = None) -> None:
        self.reader = reader
        self.sample_rate = sample_rate
        self.spent = Spent() if spent is None else spent
        self.queues: dict[BatchKey, _Queue] = {}
        self.clips: dict[int, _Clip] = {}  # the oldest first
        self.flights: deque[_InFlight] = deque()
        self.is_on_cuda = reader.device.type == "cuda"
        self.most_flights = 1 if self.is_on_cuda else 0
        self.share = FIRST_SHARE if self.is_on_cuda else 1  # of a batch in the next one
        self.copying = torch.cuda.Stream(reader.device) if self.is_on_cuda else None
        self.lent: deque[_Arrival | None] = deque()  # the last clips, None for those that are not lent
        self.arriving: list[_Arrival] = []  # to be copied to CUDA
        self.n_samples = 0  # of the clips that wait

    def add(self, key: int, waveform: Tensor, rate: int, *, is_lent: bool = False) -> Iterator[Packed]:
        """Add a clip, and yield the clips that are finished by that.

        Parameters
        ----------
        key : of the clip
        waveform : (samples,) float32, or int16 with 32768 for 1.0
        rate : its sample rate in Hz
        is_lent : whether it is valid only until `LENT` more are added or passed over, see `Loaded.is_lent`
        """
        n_samples = length(waveform.shape[0], rate, self.sample_rate)
        buffer = self._fetch(key, waveform, n_samples, is_lent=is_lent)
        try:
            plan = self.reader.plan(n_samples)
        except Exception as error:
            yield Packed(key, None, error)
        else:
            yield from self._add(_Clip(key, buffer, plan, n_samples, rate))
        self._let_go()

    def pass_over(self) -> None:
        """Take note of a clip that is not added: memory is lent for a number of clips, whatever becomes of them."""
        self.lent.append(None)
        self._let_go()

    def _add(self, clip: _Clip) -> Iterator[Packed]:
        self.clips[clip.key] = clip
        self.n_samples += clip.n_samples
        for number, each in enumerate(clip.plan.sets):
            if each.key not in self.queues:
                self.queues[each.key] = _Queue(self.reader.batch_size_for(each.key))
            self.queues[each.key].put(_Slice(clip, number, 0, each.n_windows))
        for batch in clip.plan.keys:
            while batch in self.queues and self.share * self.queues[batch].n_windows >= self.queues[batch].batch_size:
                yield from self._run(batch)

    def _fetch(self, key: int, waveform: Tensor, n_samples: int, *, is_lent: bool) -> Buffer:
        """Pass a clip on to the device of the network; on the CPU it may stay where it is."""
        arrival = _Arrival(key, Buffer(waveform, n_samples=n_samples))
        if self.copying is None or waveform.is_cuda:
            arrival.buffer.samples = waveform.to(self.reader.device)
        else:
            self.arriving.append(arrival)
            if len(self.arriving) == COPIED_TOGETHER:
                self._copy(self.copying)
        self.lent.append(arrival if is_lent else None)
        return arrival.buffer

    def _copy(self, stream: torch.cuda.Stream) -> None:
        """Begin to copy to CUDA what has to be."""
        if not self.arriving:
            return
        with torch.cuda.stream(stream):
            for arrival in self.arriving:
                arrival.buffer.samples = arrival.buffer.samples.to(self.reader.device, non_blocking=True)
            event = torch.cuda.Event()
            event.record()
        reading = torch.cuda.current_stream(self.reader.device)
        for arrival in self.arriving:
            arrival.buffer.samples.record_stream(reading)
            arrival.event = event
        self.arriving.clear()

    def _let_go(self) -> None:
        """Stop using memory that is lent only while fewer than `LENT` clips are added or passed over."""
        while len(self.lent) >= LENT:
            arrival = self.lent.popleft()
            if arrival is None:
                continue
            if arrival in self.arriving and self.copying is not None:
                self._copy(self.copying)
            if arrival.event is not None:
                arrival.event.synchronize()
            elif arrival.key in self.clips:
                arrival.buffer.samples = arrival.buffer.samples.clone()

    def finish_oldest(self) -> Iterator[Packed]:
        """Finish the clip that has waited longest, whether or not there are enough windows."""
        clip = next(iter(self.clips.values()))
        for batch in clip.plan.keys:
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
        queue = self.queues[key]
        queue.batch_size = self.reader.batch_size_for(key)  # less than before if memory has run out
        slices = queue.take(queue.batch_size)
        self.share = 1
        self._tidy([key])
        try:
            with self.spent.on("computing"):
                if self.copying is not None:
                    self._copy(self.copying)
                    torch.cuda.current_stream(self.reader.device).wait_stream(self.copying)
                self._prepare(piece.clip for piece in slices)
                rows = self.reader.read(key, [(piece.clip.buffer, piece.starts) for piece in slices])
                self.flights.append(_InFlight(slices, rows, self.reader.device))
        except Exception as error:
            clips = dict.fromkeys(piece.clip for piece in slices)
            for clip in clips:
                yield self._alone(clip) if len(clips) > 1 else self._leave(clip, error=error)
        while len(self.flights) > self.most_flights:
            yield from self._land()

    def _prepare(self, clips: Iterable[_Clip]) -> None:
        """Make samples float32 at the sample rate of the network, those of equally long clips together."""
        groups: dict[tuple[int, int, torch.dtype], list[_Clip]] = {}
        for clip in dict.fromkeys(clips):
            samples = clip.buffer.samples
            if clip.rate == self.sample_rate:
                clip.buffer.samples = as_float(samples)
            elif clip.energies is None:
                groups.setdefault((clip.rate, samples.shape[0], samples.dtype), []).append(clip)
        for (rate, n_samples, _), group in groups.items():
            most = max(1, int(TOGETHER_SECONDS * rate / n_samples))
            for part in (group[first : first + most] for first in range(0, len(group), most)):
                waveforms, energies = resampled([clip.buffer.samples for clip in part], rate, self.sample_rate)
                arriving = energies.to("cpu", non_blocking=self.is_on_cuda)
                for clip, waveform, of_clip in zip(part, waveforms, arriving, strict=True):
                    clip.buffer.samples, clip.energies = waveform, of_clip

    def _warning_of(self, clip: _Clip) -> str | None:
        """Return what is to be known of a clip whose result is there, and so its energies."""
        if clip.energies is None:
            return None
        return warning_of(clip.energies, clip.rate, self.sample_rate, clip.n_samples)

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
        self._prepare([clip])
        rows = self.reader.read(windows.key, [(clip.buffer, windows.starts)])
        return {name: value.cpu() for name, value in rows.items()}

    def _joined(self, clip: _Clip) -> Packed:
        try:
            return self._leave(clip, clip.plan.join([_concatenated(rows) for rows in clip.rows]))
        except Exception as error:
            return self._leave(clip, error=error)

    def _leave(self, clip: _Clip, result: Result | None = None, error: Exception | None = None) -> Packed:
        """Remove a finished clip; one that failed leaves windows behind that need not be read any more."""
        for key in clip.plan.keys:
            if clip.n_missing and key in self.queues:
                self.queues[key].drop(clip)
        self._tidy(clip.plan.keys)
        del self.clips[clip.key]
        self.n_samples -= clip.n_samples
        warning = self._warning_of(clip) if result is not None else None
        return Packed(clip.key, result, error, clip.n_samples, warning)

    def _tidy(self, keys: Iterable[BatchKey]) -> None:
        """Remove empty queues."""
        for key in keys:
            if key in self.queues and not self.queues[key].slices:
                del self.queues[key]


def _concatenated(rows: Sequence[Rows]) -> Rows:
    return rows[0] if len(rows) == 1 else {name: torch.cat([part[name] for part in rows]) for name in rows[0]}
