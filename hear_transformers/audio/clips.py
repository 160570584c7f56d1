"""Clips -> waveforms: what is held in memory, and what is decoded while it is embedded."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Generator, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AudioError, HearTransformersError, OptionError
from ..files import sha256_of
from . import reading

Blocks = Generator[Tensor, None, None]
"""(samples,) tensors that follow each other, decoded as they are taken; to be closed by who does not take all."""


LARGE_BYTES = 2**20
"""A smaller file is not asked for its length first, which takes as long as to decode a second: if it is long after all,
as one whose header does not know may be too, its first minute is decoded twice."""


@dataclass(frozen=True, slots=True)
class Clip:
    """What to embed: an audio file, a part of one, or a waveform.

    Attributes
    ----------
    path : of the file; None for a waveform
    start, end : of the part, in s
    waveform : (samples,) float32 at the model's sample rate
    known : sha256 of a file that was embedded before: with the same content it is not embedded again
    """

    path: Path | None = None
    start: float = 0.0
    end: float = math.inf
    waveform: Tensor | None = None
    known: str = ""


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of a clip.

    Attributes
    ----------
    index : which clip, from 0
    waveform : (samples,) float32; None if the clip is long, failed or is known
    blocks : of a long clip
    sha256 : of the file, empty where it is not asked for
    error : why it failed
    """

    index: int
    waveform: Tensor | None = None
    blocks: Blocks | None = None
    sha256: str = ""
    error: Exception | None = None


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How clips are read.

    Attributes
    ----------
    sample_rate : in Hz
    long_seconds : clips longer than this are not held in memory
    hashes : whether the sha256 of every file is wanted
    """

    sample_rate: int
    long_seconds: float
    hashes: bool

    @property
    def most_samples(self) -> int:
        """Longest waveform that is held in memory."""
        return int(self.long_seconds * self.sample_rate)


def read(index: int, clip: Clip, how: ReadOptions) -> Loaded:
    """Read one clip in this process; nothing is decoded yet of one whose header says that it is long."""
    sha256 = ""
    try:
        sha256 = _sha256(clip, how)
        if sha256 and sha256 == clip.known:
            return Loaded(index, sha256=sha256)
        blocks = blocks_of(clip, how)
        if _claims_to_be_long(clip, how):
            return Loaded(index, blocks=blocks, sha256=sha256)
        held: list[Tensor] = []
        while sum(map(len, held)) <= how.most_samples:
            block = next(blocks, None)
            if block is None:
                return Loaded(index, torch.cat(held), sha256=sha256)
            held.append(block)
    except Exception as error:
        return Loaded(index, sha256=sha256, error=error)
    return Loaded(index, blocks=_rest(held, blocks), sha256=sha256)


def _rest(held: Iterable[Tensor], blocks: Blocks) -> Blocks:
    yield from held
    yield from blocks


def _claims_to_be_long(clip: Clip, how: ReadOptions) -> bool:
    if clip.path is None or clip.end - clip.start <= how.long_seconds:
        return False
    try:
        if clip.path.stat().st_size < LARGE_BYTES:
            return False
        return min(clip.end, reading.claimed_seconds(clip.path) or 0.0) - clip.start > how.long_seconds
    except (AudioError, OSError):
        return False  # decoding it will say what is wrong


def _sha256(clip: Clip, how: ReadOptions) -> str:
    """Give the sha256 of a file, if wanted; empty for what is none or cannot be read, of which decoding says more."""
    with contextlib.suppress(HearTransformersError):
        # To open a pipe would take until somebody writes to it.
        return sha256_of(clip.path) if clip.path and (how.hashes or clip.known) and clip.path.is_file() else ""
    return ""


def blocks_of(clip: Clip, how: ReadOptions) -> Blocks:
    """Read a clip piece by piece, in this process."""
    if clip.waveform is not None:
        yield reading.checked(clip.waveform[None])[0]
    elif clip.path is None:
        raise OptionError("a clip is a file or a waveform; this one is neither")
    elif clip.start == 0.0 and clip.end == math.inf:
        yield from reading.blocks(clip.path, how.sample_rate)
    elif clip.end - clip.start <= how.long_seconds:
        yield reading.excerpt(clip.path, how.sample_rate, clip.start, clip.end - clip.start)
    else:
        yield from _between(reading.blocks(clip.path, how.sample_rate), clip, how.sample_rate)


def _between(blocks: Iterable[Tensor], clip: Clip, sample_rate: int) -> Iterator[Tensor]:
    """Drop what lies outside a part of a file."""
    first = round(clip.start * sample_rate)
    last = None if clip.end == math.inf else round(clip.end * sample_rate)
    position, empty = 0, True
    for block in blocks:
        part = block[max(0, first - position) : None if last is None else max(0, last - position)]
        position += len(block)
        if len(part):
            empty = False
            yield part
        if last is not None and position >= last:
            break
    if empty:
        raise AudioError(f"{clip.path}: ends before {clip.start:.3f} s, where a part was to begin")
