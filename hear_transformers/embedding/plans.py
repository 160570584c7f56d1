"""Which windows of a whole clip an `Embedder` reads, and how they make up its embedding."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from ..errors import AudioError
from ..networks.family import Readout
from . import framing, windows
from .packing import BatchKey, Plan, Result, Rows, WindowSet

if TYPE_CHECKING:
    from .embedder import Embedder


def _length(waveform: Tensor) -> int:
    """Count the samples of a clip (samples,); whether they are audio is checked where they come from."""
    if not len(waveform):
        raise AudioError(framing.NO_SAMPLES)
    return len(waveform)


class _Whole:
    """What all ways to read whole clips share, see `packing.Reader`.

    Parameters
    ----------
    model : what embeds
    readouts : what is read of a window, by level
    read : (windows, samples), readout -> what the network makes of them, by name
    """

    def __init__(
        self, model: Embedder, readouts: Sequence[Readout], read: Callable[[Tensor, Readout], Rows] | None = None
    ) -> None:
        self.model = model
        self.device = model.device
        self.readouts = readouts
        self.read_batch = read or (lambda batch, readout: {"": model.read(batch, readout)})

    def n_windows(self, kind: BatchKey) -> int:
        """Say how many windows of a kind go through the network at once."""
        level, length = kind
        return self.model.n_windows(length, self.readouts[level])

    def read(self, kind: BatchKey, parts: Sequence[tuple[Tensor, Tensor]]) -> Rows:
        """Read windows of one kind."""
        level, length = kind

        def cut(first: int, last: int) -> Tensor:
            views: list[Tensor] = []
            position = 0
            for waveform, starts in parts:
                wanted = starts[max(0, first - position) : max(0, last - position)].tolist()
                if wanted:
                    views += windows.Buffer(waveform[None], n_samples=len(waveform)).views(0, wanted, length)
                position += len(starts)
            return torch.stack(views)

        total = sum(len(starts) for _, starts in parts)
        batches = list(self.model.run_batched(total, length, self.readouts[level], cut, self.read_batch))
        return {name: torch.cat([rows[name] for rows in batches]) for name in batches[0]}


class Scenes(_Whole):
    """One embedding of each clip, see `Embedder.stream_scene`."""

    def __init__(self, model: Embedder) -> None:
        super().__init__(model, [model.variant.scene])
        self.grid = windows.TimeGrid(model.variant.scene_hop_ms, model.sample_rate)
        self.window = windows.samples_of(model.variant.scene.window_ms, model.sample_rate)
        self.fewest = model.min_samples_for(model.variant.scene)

    def plan(self, waveform: Tensor) -> Plan:
        """Plan one window as long as the clip, or the mean over several."""
        n_samples = _length(waveform)
        if n_samples <= self.window:
            cuts = WindowSet(0, max(n_samples, self.fewest), torch.zeros(1, dtype=torch.int64))
        else:
            cuts = WindowSet(0, self.window, self.grid.centres(0, self.grid.count(n_samples)) - self.window // 2)
        return Plan([cuts], self._join)

    def _join(self, rows: Sequence[Rows]) -> Result:
        (of_windows,) = (each[""] for each in rows)
        return Result((of_windows.sum(0).double() / len(of_windows)).float())


class Windowed(_Whole):
    """One window around every centre, see `framing.windowed`."""

    def __init__(self, model: Embedder) -> None:
        super().__init__(model, model.variant.timestamps)
        self.grid = windows.TimeGrid(model.variant.hop_ms, model.sample_rate)
        self.lengths = [windows.samples_of(readout.window_ms, model.sample_rate) for readout in self.readouts]

    def plan(self, waveform: Tensor) -> Plan:
        """Plan the windows of every level."""
        count = self.grid.count(_length(waveform))
        centres = self.grid.centres(0, count)
        cuts = [WindowSet(level, length, centres - length // 2) for level, length in enumerate(self.lengths)]
        times_ms = self.grid.times_ms(0, count)
        return Plan(cuts, lambda rows: Result(torch.cat([each[""] for each in rows], 1), times_ms))


class Native(_Whole):
    """The network's own time axis, see `framing.Native`."""

    def __init__(self, model: Embedder) -> None:
        super().__init__(model, model.variant.timestamps[:1], model.read_frames)
        self.layers = model.variant.timestamps[0].layers
        self.native = model.native(model.variant.timestamps[0], model.variant.hop_ms)

    def plan(self, waveform: Tensor) -> Plan:
        """Plan half-overlapping chunks; the last one has its own length."""
        n_samples = _length(waveform)
        cuts = [
            WindowSet(0, max(length, self.model.min_samples), starts)
            for starts, length in self.native.chunks.between(0, n_samples, is_whole=True)
        ]
        return Plan(cuts, lambda rows: self._join(rows, n_samples))

    def _join(self, rows: Sequence[Rows], n_samples: int) -> Result:
        grid = self.native.grid
        native = framing.Native(grid, self.native.chunks, self.native.axes)
        chunk = 0
        for of_chunks in rows:
            for i in range(len(of_chunks[self.layers[0]])):
                native.keep(chunk, {layer: tokens[i : i + 1] for layer, tokens in of_chunks.items()}, n_samples)
                chunk += 1
        count = grid.count(n_samples)
        embeddings = native.read(0, count)
        return Result(torch.cat([embeddings[layer][0] for layer in self.layers], 1), grid.times_ms(0, count))
