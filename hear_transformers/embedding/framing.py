"""Clips -> windows -> embeddings: one class for each way to frame a clip, whole or still arriving.

A framing holds the state of one clip. `Framing.cuts` returns the windows that can be read by now, `Framing.join` turns
what was read of them into the embeddings that are certain by then. A clip in memory takes one round of both; a clip
that arrives in blocks takes one for each block, so memory does not grow with its duration.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, ClassVar, NamedTuple

import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from ..networks.family import Readout, Variant
from ..networks.layer_table import axes_of
from .forward import WindowEmbedder
from .packing import BatchKey, Plan, Result, Rows, WindowSet
from .pooling import POOLS
from .windows import Buffer, Chunks, TimeGrid, TokenTrack, samples_of

if TYPE_CHECKING:
    from typing_extensions import Self

NO_SAMPLES = "the waveform has 0 samples; give at least 1"

VECTORS = "vectors"
"""Key of `Rows` where a window is read as one vector; where it is read by frame the keys are layers."""


@dataclass
class Framing(ABC):
    """Which windows of a clip are read, and how they make up its embedding.

    Attributes
    ----------
    readouts : one per level, i.e. per window length
    by_frame : every time position of a window is read on its own, see `WindowEmbedder.read_frames`
    """

    readouts: tuple[Readout, ...]
    by_frame: ClassVar[bool] = False

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
    total: Tensor | float = field(default=0.0, init=False)
    count: int = field(default=0, init=False)

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
        if self.n_samples is not None and not self.count and len(vectors[0]) == 1:
            return Result(vectors[0][0])
        for each in vectors:
            self.total = self.total + each.sum(0).cpu().double()  # MPS has no float64
            self.count += len(each)
        if self.n_samples is None:
            return None
        assert isinstance(self.total, Tensor)
        return Result((self.total / self.count).float())

    def needed_from(self) -> int:
        """Return the first sample that later windows need."""
        return self.windows.needed_from()


class Axis(NamedTuple):
    """The tokens of a layer in time: distance of two, and centre of a chunk's first, in samples."""

    hop: int
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

    by_frame: ClassVar[bool] = True
    grid: TimeGrid
    chunks: Chunks
    axes: Mapping[str, Axis]
    shortest: int
    tracks: dict[str, TokenTrack] = field(default_factory=dict, init=False)
    n_samples: int | None = field(default=None, init=False)
    chunk: int = field(default=0, init=False)  # the next to keep
    first: int = field(default=0, init=False)  # the next centre

    @classmethod
    def of(cls, model: WindowEmbedder, readouts: tuple[Readout, ...], hop_ms: float) -> Self:
        """Return the framing of one readout; raise OptionError if it has no frames, or there are several."""
        readout, *others = readouts
        if others:
            raise OptionError("framing='native' reads chunks of one length; give one window_ms, or framing='windowed'")
        model.check_readout(readout)
        axes = _axes(model, readout)
        # Chunks start at a whole number of tokens of every layer.
        multiple = math.lcm(*(axis.hop for axis in axes.values()))
        model.check_window(readout.window_ms, max(2 * multiple, model.min_samples))
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
        return self.chunk * self.chunks.hop

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


FRAMINGS: dict[str, type[Windowed] | type[Native]] = {"windowed": Windowed, "native": Native}
"""Framings of embeddings along time by name."""


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
    if readout.pool not in POOLS or POOLS[readout.pool].whole_window:
        frame_wise = [name for name, pool in POOLS.items() if not pool.whole_window]
        raise OptionError(
            f"pool={readout.pool!r} reads a whole window; framing='native' allows {', '.join(frame_wise)}"
        )
    return {
        layer: Axis(axis.hop * spec.hop_length, axis.offset * spec.hop_length + spec.offset)
        for layer in readout.layers
        if (axis := axes[layer])
    }


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

    def plan(self, n_samples: int) -> Plan:
        """Plan the windows of a whole clip, see `packing.Reader`; raise AudioError if it has no samples."""
        if not n_samples:
            raise AudioError(NO_SAMPLES)
        framing = self.framing.start()
        return Plan(framing.cuts(n_samples, n_samples), framing.join)

    def batch_size_for(self, key: BatchKey) -> int:
        """Return how many windows of a kind go through the network at once."""
        level, length = key
        return self.model.batch_size_for(length, self.framing.readouts[level], self.batch_size)

    def read(self, key: BatchKey, parts: Sequence[tuple[Buffer, Tensor]]) -> Rows:
        """Read windows of one kind, see `packing.Reader`."""
        level, length = key

        starts_of = [(buffer, starts.tolist()) for buffer, starts in parts]

        def cut(first: int, last: int) -> Tensor:
            views: list[Tensor] = []
            position = 0
            for buffer, starts in starts_of:
                if wanted := starts[max(0, first - position) : max(0, last - position)]:
                    views += buffer.views(wanted, length)
                position += len(starts)
            return torch.stack(views)  # (windows, length)

        total = sum(len(starts) for _, starts in parts)
        readout = self.framing.readouts[level]
        batches = list(self.model.run_batched(total, length, readout, cut, self._read_batch, self.batch_size))
        return {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}

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
        for buffers in collect(blocks):
            stop, n_samples = buffers[0].stop, buffers[0].n_samples
            result = framing.join([self._read_of_all(windows, buffers) for windows in framing.cuts(stop, n_samples)])
            if result is not None:
                embedding = result.embedding.movedim(-2, 0).contiguous()  # ([times,] clips, size) -> (clips, ...)
                yield Result(embedding, result.times_ms)
            for buffer in buffers if n_samples is None else ():
                buffer.forget(framing.needed_from())

    def _read_of_all(self, windows: WindowSet, buffers: Sequence[Buffer]) -> Rows:
        """Read the same windows of every clip: an axis of clips goes before the last one."""
        rows = self.read(windows.key, [(buffer, windows.starts) for buffer in buffers])
        # (clips * windows, ..., size) -> (windows, ..., clips, size)
        return {name: value.unflatten(0, (len(buffers), -1)).movedim(0, -2) for name, value in rows.items()}


def collect(blocks: Iterable[Tensor]) -> Iterator[list[Buffer]]:
    """Collect blocks of some clips into growing buffers.

    Parameters
    ----------
    blocks : (clips, samples) tensors that follow each other in time

    Yields
    ------
    buffers : one per clip, the same ones after every block; at the last one their `n_samples` is known

    Raises
    ------
    AudioError : there are no samples
    """
    buffers: list[Buffer] = []
    for block in blocks:
        if buffers:
            yield buffers
            for buffer, samples in zip(buffers, block, strict=True):
                buffer.append(samples)
        else:
            buffers = [Buffer(samples) for samples in block]
    if not buffers or not buffers[0].stop:
        raise AudioError(NO_SAMPLES)
    for buffer in buffers:
        buffer.n_samples = buffer.stop
    yield buffers
