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

from ..errors import AudioError
from .windows import Buffer, Chunks, TimeGrid, TokenTrack

NO_SAMPLES = "the waveform has 0 samples; give at least 1"


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
        raise AudioError(NO_SAMPLES)
    buffer.n_samples = buffer.stop
    yield buffer


def windowed(
    buffers: Iterable[Buffer], grid: TimeGrid, lengths: Sequence[int], embed: Callable[[Buffer, Tensor, int], Tensor]
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
    """Keeps what chunks contribute to a network's own time axis, and interpolates that at every centre.

    Parameters
    ----------
    grid : the centres
    chunks : where the network runs
    axes : of each layer
    """

    def __init__(self, grid: TimeGrid, chunks: Chunks, axes: Mapping[str, Axis]) -> None:
        self.grid = grid
        self.chunks = chunks
        self.axes = axes
        self.tracks: dict[str, TokenTrack] = {}

    def stream(
        self, buffers: Iterable[Buffer], embed: Callable[[Buffer, Tensor, int], dict[str, Tensor]]
    ) -> Iterator[dict[str, Tensor]]:
        """Run a network over chunks as their audio arrives.

        Parameters
        ----------
        buffers : from `collect`
        embed : buffer, first samples of chunks (chunks,), their length -> (clips, chunks, tokens, size) of each layer

        Yields
        ------
        embeddings : (clips, times, size) of each layer, the next in time
        """
        chunk = first = 0
        for buffer in buffers:
            is_whole = buffer.n_samples is not None
            for starts, length in self.chunks.between(chunk, buffer.stop, is_whole=is_whole):
                tokens = embed(buffer, starts, length)
                for i in range(len(starts)):
                    self.keep(chunk, {layer: kept[:, i] for layer, kept in tokens.items()}, buffer.n_samples)
                    chunk += 1
            last = self._count(buffer)
            if last > first:
                yield self.read(first, last)
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

    def keep(self, chunk: int, tokens: Mapping[str, Tensor], n_samples: int | None) -> None:
        """Append the tokens that a chunk contributes.

        Parameters
        ----------
        chunk : its number; chunks come in order
        tokens : (clips, tokens, size) of the whole chunk, for each layer
        n_samples : length of the clips; None as long as it is not known, but then this is not the last chunk
        """
        is_last = n_samples is not None and chunk == self.chunks.ready(n_samples)
        for layer, of_chunk in tokens.items():
            hop, offset = self.axes[layer]
            start = chunk * self.chunks.hop // hop
            kept_from = self.chunks.kept_from(chunk, hop, offset) - start
            kept_to = of_chunk.shape[1] if is_last else self.chunks.kept_from(chunk + 1, hop, offset) - start
            kept = of_chunk[:, kept_from:kept_to]
            if layer in self.tracks:
                self.tracks[layer].append(kept)
            else:
                self.tracks[layer] = TokenTrack(hop, offset, kept)

    def read(self, first: int, last: int) -> dict[str, Tensor]:
        """Interpolate at the centres ``first .. last - 1``: (clips, times, size) of each layer."""
        positions = self.grid.times_ms(first, last) * (self.grid.sample_rate / 1000.0)
        return {layer: track.at(positions) for layer, track in self.tracks.items()}
