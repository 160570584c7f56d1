"""Embeddings along time while the audio arrives: windows around every centre, or the network's own time axis.

Both take a growing `Buffer` after every block of audio and give what is certain by then, so memory does not grow with
the duration of a clip.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .errors import AudioError
from .windows import Buffer, Chunks, Grid, Track


def collect(blocks: Iterable[Tensor]) -> Iterator[Buffer]:
    """Collect blocks of some clips into one growing buffer.

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
    if buffer is None or buffer.stop == 0:
        raise AudioError("the waveform has 0 samples; give at least 1")
    buffer.n_samples = buffer.stop
    yield buffer


def windowed(
    buffers: Iterable[Buffer], grid: Grid, lengths: Sequence[int], embed: Callable[[Buffer, Tensor, int], Tensor]
) -> Iterator[Tensor]:
    """Embed windows around every centre.

    Parameters
    ----------
    buffers : from `collect`
    grid : the centres
    lengths : of the windows around each centre, in samples
    embed : buffer, first samples of windows (windows,), number of the length -> (clips, windows, size)

    Yields
    ------
    embeddings : (clips, times, sum of the sizes), the next in time
    """
    reach = max(lengths) // 2 + 2  # two more than a window's half: what its reflection at the end may touch
    first = 0
    for buffer in buffers:
        last = grid.count(buffer.stop - reach if buffer.n_samples is None else buffer.n_samples)
        if last > first:
            centres = grid.centres(first, last)
            levels = [embed(buffer, centres - length // 2, level) for level, length in enumerate(lengths)]
            yield torch.cat(levels, 2)
            first = last
        buffer.forget(grid.centre(first) - reach)


class Axis(NamedTuple):
    """The tokens of a layer in time: distance of two, and centre of a chunk's first, in samples."""

    hop: int
    offset: float


class Native:
    """Runs a network over chunks and interpolates its own time axis at every centre.

    Parameters
    ----------
    grid : the centres
    chunks : where the network runs
    axes : of each layer
    embed : buffer, first samples of chunks (chunks,), their length -> (clips, chunks, tokens, size) for each layer
    """

    def __init__(
        self,
        grid: Grid,
        chunks: Chunks,
        axes: Mapping[str, Axis],
        embed: Callable[[Buffer, Tensor, int], dict[str, Tensor]],
    ) -> None:
        self.grid = grid
        self.chunks = chunks
        self.axes = axes
        self.embed = embed
        self.tracks: dict[str, Track] = {}

    def stream(self, buffers: Iterable[Buffer]) -> Iterator[dict[str, Tensor]]:
        """Take buffers from `collect`, yield (clips, times, size) for each layer, the next in time."""
        chunk = first = 0
        for buffer in buffers:
            ready = self.chunks.ready(buffer.stop)
            self._run(buffer, range(chunk, ready), self.chunks.length)
            chunk = ready
            if buffer.n_samples is not None:
                self._run(buffer, range(chunk, chunk + 1), None)
            last = self._count(buffer)
            if last > first:
                positions = self.grid.times_ms(first, last) * (self.grid.sample_rate / 1000.0)
                yield {layer: track.at(positions) for layer, track in self.tracks.items()}
                first = last
                for track in self.tracks.values():
                    track.forget(self.grid.centre(first) - 1)
            buffer.forget(chunk * self.chunks.hop)

    def _count(self, buffer: Buffer) -> int:
        """Count the centres that can be answered: all at the end, before it those up to the last token."""
        if buffer.n_samples is not None:
            return self.grid.count(buffer.n_samples)
        ends = [math.floor(track.end()) for track in self.tracks.values()]
        return self.grid.count(min(ends, default=-1))

    def _run(self, buffer: Buffer, numbers: range, length: int | None) -> None:
        """Run some chunks and keep the tokens each contributes; without a `length` it is the last, cut by the end."""
        if not numbers:
            return
        starts = torch.tensor(numbers) * self.chunks.hop
        tokens = self.embed(buffer, starts, buffer.stop - numbers[0] * self.chunks.hop if length is None else length)
        for layer, per_chunk in tokens.items():
            for i, number in enumerate(numbers):
                self._keep(layer, per_chunk[:, i], number, is_last=length is None)

    def _keep(self, layer: str, tokens: Tensor, number: int, *, is_last: bool) -> None:
        """Append the tokens that a chunk contributes: tokens (clips, tokens, size) of the whole chunk."""
        hop, offset = self.axes[layer]
        start = number * self.chunks.hop // hop
        kept_from = self.chunks.kept_from(number, hop, offset) - start
        kept_to = tokens.shape[1] if is_last else self.chunks.kept_from(number + 1, hop, offset) - start
        kept = tokens[:, kept_from:kept_to]
        if layer in self.tracks:
            self.tracks[layer].append(kept)
        else:
            self.tracks[layer] = Track(hop, offset, kept)
