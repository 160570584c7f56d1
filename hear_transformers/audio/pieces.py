"""A long file, decoded and resampled in pieces by several threads at once; the decoders and soxr release the GIL."""

from __future__ import annotations

import contextlib
import itertools
from collections import deque
from collections.abc import Generator
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from ..errors import AudioError
from .levels import Levels
from .reading import AudioFile

PIECE_SECONDS = 20
"""Duration of a piece in s: whole seconds, so that it begins where a sample of the file coincides with one of the
result. To open the file, to seek and to read the margins takes a tenth of the time of a WAV file and less of others."""

Piece = tuple[Tensor, Levels]


def blocks(file: AudioFile, sample_rate: int, threads: int) -> Generator[Tensor, None, None]:
    """Read a file block by block, as `AudioFile.blocks`, with several threads where a place in it can be sought.

    The numbers are those of one thread, up to the rounding of the resampler's arithmetic. Whatever is not as it should
    be in a piece, be it damage, a wrong count or a sample that is not finite, is left to one thread, which decodes the
    file from its beginning again: it says what is wrong, or takes what is there.

    Parameters
    ----------
    file : to read; nothing else is read from it meanwhile
    sample_rate : of the result, in Hz
    threads : at most so many pieces are decoded at once, and one more waits

    Yields
    ------
    waveform : (samples,) float32
    """
    n_samples, n_pieces = 0, 1 if threads < 2 else _count(file.sought_seconds or 0.0, sample_rate)
    if n_pieces > 1:
        levels = Levels()
        with contextlib.ExitStack() as at_the_end:
            at_the_end.callback(lambda: file.warn_of(levels))  # also if not all blocks are taken
            pieces = at_the_end.enter_context(contextlib.closing(_pieces(file, sample_rate, n_pieces, threads)))
            for number, piece in enumerate(pieces):
                if piece is None or (number + 1 < n_pieces and len(piece[0]) < PIECE_SECONDS * sample_rate):
                    break
                n_samples += len(piece[0])
                levels.add(piece[1])
                yield piece[0]
            else:
                return
            pieces.close()
            at_the_end.pop_all()
    for block in file.blocks(sample_rate):
        known = min(n_samples, len(block))
        n_samples -= known
        if known < len(block):
            yield block[known:]


def _count(seconds: float, sample_rate: int) -> int:
    """Return the number of pieces, none of which is empty."""
    return -(-round(seconds * sample_rate) // (PIECE_SECONDS * sample_rate))


def _pieces(file: AudioFile, sample_rate: int, n_pieces: int, threads: int) -> Generator[Piece | None, None, None]:
    """Yield all pieces in order, None for those that are not as they should be."""
    numbers = iter(range(n_pieces))
    waiting: deque[Future[Piece | None]] = deque()
    pool = ThreadPoolExecutor(threads, "decodes a piece")
    try:
        while True:
            for number in itertools.islice(numbers, threads + 1 - len(waiting)):
                waiting.append(pool.submit(_piece, file, sample_rate, number))
            if not waiting:
                return
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _piece(file: AudioFile, sample_rate: int, number: int) -> Piece | None:
    try:
        with file.again() as same:
            return same.excerpt(sample_rate, number * PIECE_SECONDS, PIECE_SECONDS), same.levels
    except AudioError:
        return None
