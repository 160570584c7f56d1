"""Clips -> windows -> embeddings: one class for each way to frame a clip, whole or still arriving.

A framing holds the state of one clip. `Framing.cuts` returns the windows that can be read by now, `Framing.join` turns
what was read of them into the embeddings that are certain by then. A clip in memory takes one round of both; a clip
that arrives in blocks takes one for each block, so memory does not grow with its duration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from fractions import Fraction
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from ..networks.family import Readout, Variant
from ..networks.layer_table import axes_of
from .forward import WindowEmbedder
from .packing import BatchKey, Plan, Result, Rows, WindowSet
from .pooling import POOLS, frame_wise
from .windows import Buffer, Chunks, TimeGrid, TokenTrack, adjoining, exact, range_ms, samples_of

if TYPE_CHECKING:
    from typing_extensions import Self

NO_SAMPLES = "the waveform has 0 samples; give at least 1"

LEAST_SHARE = 0.1
"""Share of a segment that the last one must have, so that the few ms by which recordings and MP3 files exceed their
nominal length make no row of their own. Ours; BirdNET drops what is shorter than a third, opensoundscape every rest."""

PLANS_KEPT = 1000
"""Lengths of clips whose plan is kept for others."""

VECTORS = "vectors"
"""Key of `Rows` where a window is read as one vector; where it is read by frame the keys are layers."""


@dataclass
class Framing(ABC):
    """Which windows of a clip are read, and how they make up its embedding.

    Attributes
    ----------
    readouts : one per level, i.e. per window length
    """

    readouts: tuple[Readout, ...]

    @property
    def by_frame(self) -> bool:
        """Whether every time position of a window is read on its own, see `WindowEmbedder.read_frames`."""
        return False

    def start(self) -> Self:
        """Return the same framing at the start of another clip."""
        return replace(self)

    @abstractmethod
    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the windows to read next.

        Parameters
        ----------
        stop : samples of the clip that have arrived
        n_samples : length of the clip, None until its end has arrived
        """

    @abstractmethod
    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Return the next embeddings, None if none is certain yet.

        Parameters
        ----------
        rows : of each set of the last `cuts`: (windows, ..., size), or (windows, tokens, ..., size) by frame; axes
            between, such as one of clips, stay where they are
        """

    @abstractmethod
    def needed_from(self) -> int:
        """Return the first sample that later windows need."""

    def spans_ms(self, times_ms: np.ndarray, end_ms: float) -> tuple[np.ndarray, np.ndarray]:
        """Return where the audio of embeddings along time begins and ends: the longest window around each, (times,).

        Parameters
        ----------
        times_ms : (times,) of all embeddings of a clip
        end_ms : of the clip
        """
        half = max(readout.window_ms for readout in self.readouts) / 2
        return np.clip(times_ms - half, 0.0, end_ms), np.clip(times_ms + half, 0.0, end_ms)


@dataclass
class Windowed(Framing):
    """One window of each level around every centre: its length is the receptive field (Koutini et al., 2211.13956).

    Parameters
    ----------
    grid : the centres
    lengths : of the windows of each level, in samples
    """

    grid: TimeGrid
    lengths: tuple[int, ...]
    first: int = field(default=0, init=False)  # centre of the last cuts ...
    last: int = field(default=0, init=False)  # ... and the one after them

    @classmethod
    def of(cls, model: WindowEmbedder, readouts: tuple[Readout, ...], hop_ms: float) -> Self:
        """Return the framing of some readouts; raise OptionError if the model cannot serve one."""
        for readout in readouts:
            model.check_readout(readout)
        lengths = tuple(samples_of(readout.window_ms, model.sample_rate) for readout in readouts)
        return cls(readouts, TimeGrid(hop_ms, model.sample_rate), lengths)

    @property
    def reach(self) -> int:
        """Samples around a centre that a window may touch: two more than its half, which its mirror image may need."""
        return max(self.lengths) // 2 + 2

    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the windows around the next centres, see `Framing.cuts`."""
        self.first = self.last
        count = self.grid.count(stop - self.reach if n_samples is None else n_samples)
        if count <= self.first:
            return []
        self.last = count
        centres = self.grid.centres(self.first, self.last)
        return [WindowSet(level, length, centres - length // 2) for level, length in enumerate(self.lengths)]

    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Concatenate the levels, see `Framing.join`."""
        if not rows:
            return None
        embeddings = torch.cat([of_level[VECTORS] for of_level in rows], -1)  # (times, ..., sum of the sizes)
        return Result(embeddings, self.grid.times_ms(self.first, self.last))

    def needed_from(self) -> int:
        """Return the first sample that later windows need."""
        return self.grid.centre(self.last) - self.reach


@dataclass
class Mean:
    """The mean of vectors that come one after the other."""

    total: Tensor | float = 0.0
    count: int = 0

    def add(self, vectors: Tensor) -> None:
        """Add vectors (n, ..., size)."""
        summed = vectors.sum(0)
        # Where it was computed: threads of the CPU wake up slower than a card adds. MPS has no float64.
        self.total = self.total + (summed.cpu() if summed.is_mps else summed).double()
        self.count += len(vectors)

    def value(self) -> Tensor:
        """Return the mean of at least one vector, (..., size)."""
        assert isinstance(self.total, Tensor)
        return (self.total / self.count).float()


@dataclass
class Scenes(Framing):
    """One embedding per clip: of one window as long as the clip, or the mean over windows, as the authors of PaSST do.

    Parameters
    ----------
    windows : of a clip longer than one window
    shortest : samples that a window must have
    """

    windows: Windowed
    shortest: int
    n_samples: int | None = field(default=None, init=False)
    mean: Mean = field(default_factory=Mean, init=False)

    @classmethod
    def of(cls, model: WindowEmbedder, variant: Variant) -> Self:
        """Return the framing of a variant's scenes; raise OptionError if the model cannot serve it."""
        windows = Windowed.of(model, (variant.scene,), variant.scene_hop_ms)
        return cls(windows.readouts, windows, model.min_samples_for(variant.scene))

    def start(self) -> Self:
        """Return the same framing at the start of another clip."""
        return replace(self, windows=self.windows.start())

    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the one window of a short clip once its end is known, the next windows of a longer one."""
        self.n_samples = n_samples
        (length,) = self.windows.lengths
        if stop > length:
            return self.windows.cuts(stop, n_samples)
        if n_samples is None:
            return []
        return [WindowSet(0, max(n_samples, self.shortest), torch.zeros(1, dtype=torch.int64))]

    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Return the mean over all windows when the clip has ended."""
        vectors = [of_set[VECTORS] for of_set in rows]  # (windows, ..., size) each
        if self.n_samples is not None and not self.mean.count and vectors[0].shape[0] == 1:
            return Result(vectors[0][0])
        for each in vectors:
            self.mean.add(each)
        return None if self.n_samples is None else Result(self.mean.value())

    def needed_from(self) -> int:
        """Return the first sample that later windows need."""
        return self.windows.needed_from()


class Span(NamedTuple):
    """The part of a clip from sample `start` to before sample `stop`."""

    start: int
    stop: int


@dataclass
class Segments(Framing):
    """One embedding for each of the segments that follow each other, of its own audio as if it were a clip.

    The last one ends with the clip, however long it is; a rest that is too short for one of its own, `least`, belongs
    to the segment before it. So every sample is in a segment, and no segment has any other. A segment longer than a
    window of scenes is the mean over windows that lie evenly in it.

    Parameters
    ----------
    hop_ms : distance between the beginnings of two segments, in ms
    sample_rate : in Hz
    length : of a segment, in samples, rounded up, as beginnings are rounded down: no sample lies between two
    least : samples that the last one must have
    window, window_hop : longest window, and distance of two in a longer segment, in samples
    shortest : samples that a window must have; only a clip that is shorter as a whole is mirrored
    """

    hop_ms: float
    sample_rate: int
    length: int
    least: int
    window: int
    window_hop: int
    shortest: int
    step: Fraction = field(init=False)  # hop in samples
    next: int = field(default=0, init=False)  # segment
    spans: list[Span] = field(default_factory=list, init=False)  # of the last cuts
    has_odd_end: bool = field(default=False, init=False)  # the last of them has another length

    def __post_init__(self) -> None:
        self.step = exact(self.hop_ms) * self.sample_rate / 1000

    @classmethod
    def of(cls, model: WindowEmbedder, variant: Variant) -> Self:
        """Return the framing of a variant's timestamps; raise OptionError if the model cannot serve it."""
        (readout,), rate = variant.timestamps, model.sample_rate
        longest = min(variant.scene.window_ms, readout.window_ms)
        shortest = model.min_samples_for(readout)
        length = -samples_of(-readout.window_ms, rate)
        if length < shortest:
            raise OptionError(
                f"segment={readout.window_ms / 1000:g} s is shorter than {'/'.join(model.name)} takes; "
                f"give {range_ms(shortest, None, rate)}"
            )
        if "unroll" in readout.pools:
            raise OptionError("pool='unroll' needs windows of one length, and the last segment has another")
        model.check_readout(replace(readout, window_ms=longest))
        window = min(-samples_of(-longest, rate), model.max_samples or length)
        least = max(shortest, math.ceil(LEAST_SHARE * length))
        window_hop = samples_of(variant.scene_hop_ms, rate)
        return cls((readout,), variant.hop_ms, rate, length, least, window, window_hop, shortest)

    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the windows of the next segments, see `Framing.cuts`."""
        self.spans = []
        while (span := self._span(self.next, stop, n_samples)) is not None:
            self.spans.append(span)
            self.next += 1
            if span.stop == n_samples:
                break
        self.has_odd_end = bool(self.spans) and self.spans[-1].stop - self.spans[-1].start != self.length
        regular, odd = self._parted(self.spans)
        return [self._windows(spans) for spans in (regular, odd) if spans]

    def _span(self, index: int, stop: int, n_samples: int | None) -> Span | None:
        """Return a segment; None if there is none, or if what is to come may change it."""
        start, following = self._start(index), self._start(index + 1)
        end = start + self.length
        if n_samples is None:
            return Span(start, end) if stop >= max(end, following + self.least) else None
        if index and self._start(index - 1) + self.length >= n_samples:
            return None
        return Span(start, min(end, n_samples) if n_samples - following >= self.least else n_samples)

    def _start(self, index: int) -> int:
        return index * self.step.numerator // self.step.denominator

    def _parted(self, spans: Sequence[Span]) -> tuple[Sequence[Span], Sequence[Span]]:
        """Split segments into those of the usual length, and the last one if it has another."""
        return (spans[:-1], spans[-1:]) if self.has_odd_end else (spans, ())

    def _windows(self, spans: Sequence[Span]) -> WindowSet:
        """Return the windows of segments of one length: one each, or evenly spread from their start to their end."""
        length = spans[0].stop - spans[0].start
        window = min(length, self.window)
        n_hops = math.ceil((length - window) / self.window_hop)
        offsets = [i * (length - window) // n_hops for i in range(n_hops + 1)] if n_hops else [0]
        starts = [span.start + offset for span in spans for offset in offsets]
        return WindowSet(0, max(window, self.shortest), torch.tensor(starts, dtype=torch.int64))

    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Average the windows of each segment, see `Framing.join`."""
        if not rows:
            return None
        parts = [spans for spans in self._parted(self.spans) if spans]
        vectors = [
            # (segments * windows, ..., size) -> (segments, ..., size)
            of_set[VECTORS].unflatten(0, (len(spans), -1)).mean(1)
            for spans, of_set in zip(parts, rows, strict=True)
        ]
        first = self.next - len(self.spans)
        starts_ms = TimeGrid(self.hop_ms, self.sample_rate).times_ms(first, self.next)
        lengths_ms = torch.full_like(starts_ms, self.readouts[0].window_ms)
        if self.has_odd_end:
            lengths_ms[-1] = 1000.0 * self.spans[-1].stop / self.sample_rate - starts_ms[-1]
        return Result(torch.cat(vectors), starts_ms + lengths_ms / 2)

    def needed_from(self) -> int:
        """Return the first sample of the next segment."""
        return self._start(self.next)

    def spans_ms(self, times_ms: np.ndarray, end_ms: float) -> tuple[np.ndarray, np.ndarray]:
        """Return where segments begin and end, see `Framing.spans_ms`."""
        starts = np.arange(len(times_ms)) * self.hop_ms
        return starts, np.minimum(2 * times_ms - starts, end_ms)


class Axis(NamedTuple):
    """The tokens of a layer in time: distance of two, and centre of a chunk's first, in samples."""

    hop: int | Fraction
    offset: float


@dataclass
class Native(Framing):
    """The network's own time axis over half-overlapping chunks, interpolated at every centre.

    Parameters
    ----------
    grid : the centres
    chunks : where the network runs
    axes : of each layer
    shortest : samples that a chunk must have
    """

    grid: TimeGrid
    chunks: Chunks
    axes: Mapping[str, Axis]
    shortest: int
    tracks: dict[str, TokenTrack] = field(default_factory=dict, init=False)
    n_samples: int | None = field(default=None, init=False)
    chunk: int = field(default=0, init=False)  # the next to keep
    first: int = field(default=0, init=False)  # the next centre

    @property
    def by_frame(self) -> bool:
        """Whether every time position of a window is read on its own."""
        return True

    @classmethod
    def of(cls, model: WindowEmbedder, readouts: tuple[Readout, ...], hop_ms: float) -> Self:
        """Return the framing of one readout; raise OptionError if it has no frames, or there are several."""
        readout, *others = readouts
        if others:
            raise OptionError("framing='native' reads chunks of one length; give one window_ms, or framing='windowed'")
        model.check_readout(readout)
        axes = _axes(model, readout)
        # Chunks start at a whole number of tokens of every layer.
        multiple = common_multiple([axis.hop for axis in axes.values()])
        longest = model.max_timed_samples
        if len(axes) > 1 and longest is not None and 2 * multiple > longest:
            raise OptionError(
                f"framing='native' cannot read {', '.join(axes)} of {'/'.join(model.name)} together: within a window "
                "their times never coincide; give one of them, or framing='windowed'"
            )
        model.check_window(readout.window_ms, max(math.ceil(2 * multiple), model.min_samples), longest)
        chunks = Chunks.half_overlapping(samples_of(readout.window_ms, model.sample_rate), multiple)
        return cls(readouts, TimeGrid(hop_ms, model.sample_rate), chunks, axes, model.min_samples)

    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the next chunks; the last one has a length of its own."""
        self.n_samples = n_samples
        between = self.chunks.between(self.chunk, stop, is_whole=n_samples is not None)
        return [WindowSet(0, max(length, self.shortest), starts) for starts, length in between]

    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Keep the tokens of chunks, and interpolate at the centres that they reach."""
        for of_chunks in rows:  # layer: (chunks, tokens, ..., size)
            for tokens in zip(*of_chunks.values(), strict=True):
                self._keep(dict(zip(of_chunks, tokens, strict=True)))
        last = self._count()
        if last <= self.first:
            return None
        times_ms = self.grid.times_ms(self.first, last)
        positions = times_ms * (self.grid.sample_rate / 1000.0)
        of_layers = [self.tracks[layer].at(positions) for layer in self.readouts[0].layers]
        self.first = last
        for track in self.tracks.values():
            track.forget(self.grid.centre(last) - 1)
        return Result(torch.cat(of_layers, -1), times_ms)  # (times, ..., sum of the sizes)

    def needed_from(self) -> int:
        """Return the first sample that later chunks need."""
        return self.chunks.start(self.chunk)

    def _keep(self, tokens: Mapping[str, Tensor]) -> None:
        """Append what the next chunk contributes, given the tokens (tokens, ..., size) of the whole chunk by layer."""
        is_last = self.n_samples is not None and self.chunk == self.chunks.ready(self.n_samples)
        for layer, of_chunk in tokens.items():
            hop, offset = self.axes[layer]
            start = self.chunk * self.chunks.hop // hop
            kept_from = self.chunks.kept_from(self.chunk, hop, offset) - start
            kept_to = len(of_chunk) if is_last else self.chunks.kept_from(self.chunk + 1, hop, offset) - start
            kept = of_chunk[kept_from:kept_to]
            if layer in self.tracks:
                self.tracks[layer].append(kept)
            else:
                self.tracks[layer] = TokenTrack(hop, offset, kept)
        self.chunk += 1

    def _count(self) -> int:
        """Count the centres that can be answered: all at the end, before it those up to the last token."""
        if self.n_samples is not None:
            return self.grid.count(self.n_samples)
        ends = [math.floor(track.end()) for track in self.tracks.values()]
        return self.grid.count(min(ends, default=-1))


@dataclass
class MeanOverTime(Framing):
    """One embedding per clip: the mean over those along time.

    Parameters
    ----------
    along : the framing of these
    """

    along: Framing
    n_samples: int | None = field(default=None, init=False)
    mean: Mean = field(default_factory=Mean, init=False)

    @property
    def by_frame(self) -> bool:
        """Whether every time position of a window is read on its own."""
        return self.along.by_frame

    def start(self) -> Self:
        """Return the same framing at the start of another clip."""
        return replace(self, along=self.along.start())

    def cuts(self, stop: int, n_samples: int | None) -> list[WindowSet]:
        """Return the next windows along time."""
        self.n_samples = n_samples
        return self.along.cuts(stop, n_samples)

    def join(self, rows: Sequence[Rows]) -> Result | None:
        """Return the mean over all embeddings when the clip has ended."""
        if (result := self.along.join(rows)) is not None:
            self.mean.add(result.embedding)
        return None if self.n_samples is None else Result(self.mean.value())

    def needed_from(self) -> int:
        """Return the first sample that later windows need."""
        return self.along.needed_from()


FRAMINGS: dict[str, type[Windowed] | type[Native]] = {"windowed": Windowed, "native": Native}
"""Framings of embeddings along time by name."""

SEGMENTS = "segments"
"""Framing of a variant whose user asked for segments."""


def _axes(model: WindowEmbedder, readout: Readout) -> dict[str, Axis]:
    """Return the time axes of a readout's layers in samples; raise OptionError if it cannot be read by frame."""
    spec = model.variant.frontend
    axes = axes_of(model.trunk, spec)
    vectors = [layer for layer in readout.layers if axes[layer] is None]
    if vectors:
        grids = [layer for layer, axis in axes.items() if axis is not None]
        raise OptionError(
            f"framing='native' needs layers with a time axis, {', '.join(vectors)} has none; "
            f"choose layer={', '.join(grids)}"
        )
    if others := [pool for pool in readout.pools if not frame_wise(pool)]:
        allowed = ", ".join(filter(frame_wise, POOLS))
        raise OptionError(f"pool={others[0]!r} reads a whole window; framing='native' allows {allowed}")
    return {
        layer: Axis(axis.hop * spec.hop_length, axis.offset * spec.hop_length + spec.offset)
        for layer in readout.layers
        if (axis := axes[layer])
    }


def common_multiple(hops: Iterable[int | Fraction]) -> int | Fraction:
    """Return the least length that is a whole number of each of some hops."""
    ratios = [hop.as_integer_ratio() for hop in hops]
    multiple = Fraction(math.lcm(*(ratio[0] for ratio in ratios)), math.gcd(*(ratio[1] for ratio in ratios)))
    return int(multiple) if multiple.denominator == 1 else multiple


class ClipReader:
    """Reads clips with a network in one framing: whole ones for `packing.Packer`, or as they arrive.

    Parameters
    ----------
    model : the network
    framing : at the start of a clip
    batch_size : windows per forward pass; None for that of the model
    """

    def __init__(self, model: WindowEmbedder, framing: Framing, batch_size: int | None = None) -> None:
        self.model = model
        self.batch_size = batch_size
        self.device = model.device
        self.framing = framing
        self.plans: dict[int, Plan] = {}  # of clips that are one window, by length
        self.space = torch.zeros(
            0, dtype=torch.float32
        )  # of the last batch: memory used before is several times as fast

    def plan(self, n_samples: int) -> Plan:
        """Plan the windows of a whole clip, see `packing.Reader`; raise AudioError if it has no samples."""
        if not n_samples:
            raise AudioError(NO_SAMPLES)
        if n_samples in self.plans:
            return self.plans[n_samples]
        framing = self.framing.start()
        plan = Plan(framing.cuts(n_samples, n_samples), framing.join)
        if isinstance(framing, Scenes) and plan.n_windows == 1 and len(self.plans) < PLANS_KEPT:
            self.plans[n_samples] = plan  # such a scene is its window: joining leaves the framing as it is
        return plan

    def batch_size_for(self, key: BatchKey) -> int:
        """Return how many windows of a kind go through the network at once."""
        level, length = key
        return self.model.batch_size_for(length, self.framing.readouts[level], self.batch_size)

    def read(self, key: BatchKey, parts: Sequence[tuple[Buffer, Tensor]]) -> Rows:
        """Read windows of one kind, see `packing.Reader`."""
        starts_of = [(buffer, starts.tolist()) for buffer, starts in parts]

        def cut(first: int, last: int) -> Tensor:
            parts = []
            position = 0
            for buffer, starts in starts_of:
                if wanted := starts[max(0, first - position) : max(0, last - position)]:
                    parts.append((buffer, wanted))
                position += len(starts)
            if self.device.type != "cpu":
                return torch.cat([buffer.gather(wanted, key[1]) for buffer, wanted in parts])
            return self._stacked([view for buffer, wanted in parts for view in buffer.views(wanted, key[1])])

        return self._read(key, sum(len(starts) for _, starts in starts_of), cut)

    def _read(self, key: BatchKey, total: int, cut: Callable[[int, int], Tensor]) -> Rows:
        """Read windows of one kind, given what returns some of them, see `WindowEmbedder.run_batched`."""
        level, length = key
        readout = self.framing.readouts[level]
        batches = list(self.model.run_batched(total, length, readout, cut, self._read_batch, self.batch_size))
        return {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}

    def _stacked(self, windows: list[Tensor]) -> Tensor:
        """Return windows (..., length) on the CPU as one tensor (windows, length), which is valid until the next."""
        length = windows[0].shape[-1]
        if len(windows) == 1:
            return windows[0].view(-1, length)
        if windows[0].ndim == 1 and (joined := adjoining(windows)) is not None:
            return joined
        n_samples = sum(each.numel() for each in windows)
        if len(self.space) < n_samples:
            self.space = torch.empty(n_samples, dtype=torch.float32)
        flat = self.space[:n_samples]
        stacked = flat.view(-1, length)
        # By one thread: those of PyTorch, which share the cores with processes that decode, would wait for each other.
        out = flat if windows[0].ndim == 1 else stacked
        np.concatenate([each.numpy() for each in windows], out=out.numpy())
        return stacked

    def _read_batch(self, waveforms: Tensor, readout: Readout) -> Rows:
        if self.framing.by_frame:
            return self.model.read_frames(waveforms, readout)
        return {VECTORS: self.model.read(waveforms, readout)}

    def stream(self, blocks: Iterable[Tensor]) -> Iterator[Result]:
        """Embed clips of one length as their audio arrives.

        Parameters
        ----------
        blocks : (clips, samples) on the device of the network, that follow each other in time

        Yields
        ------
        result : the next embeddings, (clips, times, size), or (clips, size) of scenes, and their times

        Raises
        ------
        AudioError : there are no samples
        """
        framing = self.framing.start()  # of all clips, which have the same windows
        for buffer in collect(blocks):
            cuts = framing.cuts(buffer.stop, buffer.n_samples)
            result = framing.join([self._read_of_all(windows, buffer) for windows in cuts])
            if result is not None:
                embedding = result.embedding.movedim(-2, 0).contiguous()  # ([times,] clips, size) -> (clips, ...)
                yield Result(embedding, result.times_ms)
            if buffer.n_samples is None:
                buffer.forget(framing.needed_from())

    def _read_of_all(self, windows: WindowSet, buffer: Buffer) -> Rows:
        """Read the same windows of every clip: an axis of clips goes before the last one."""
        starts, n_clips = windows.starts.tolist(), len(buffer.samples)

        def cut(first: int, last: int) -> Tensor:
            """Return some of (windows * clips, length); where it is one window of all clips nothing is copied."""
            window = first // n_clips
            wanted = starts[window : -(-last // n_clips)]
            first, last = first - window * n_clips, last - window * n_clips
            if self.device.type != "cpu":
                return buffer.gather(wanted, windows.length).reshape(-1, windows.length)[first:last]
            views = buffer.views(wanted, windows.length)  # (clips, length) each
            views[-1] = views[-1][: last - (len(views) - 1) * n_clips]
            views[0] = views[0][first:]
            return self._stacked(views)

        rows = self._read(windows.key, len(starts) * n_clips, cut)
        # (windows * clips, ..., size) -> (windows, ..., clips, size)
        return {name: value.unflatten(0, (-1, n_clips)).movedim(1, -2) for name, value in rows.items()}


def collect(blocks: Iterable[Tensor]) -> Iterator[Buffer]:
    """Collect blocks of some clips into a growing buffer.

    Parameters
    ----------
    blocks : (clips, samples) tensors that follow each other in time

    Yields
    ------
    buffer : the same one after every block; at the last one its `n_samples` is known

    Raises
    ------
    AudioError : there are no samples
    """
    buffer: Buffer | None = None
    for block in blocks:
        if buffer is None:
            buffer = Buffer(block)
        else:
            yield buffer
            buffer.append(block)
    if buffer is None or not buffer.stop:
        raise AudioError(NO_SAMPLES)
    buffer.n_samples = buffer.stop
    yield buffer
