"""Clips -> waveforms: short ones whole, long ones block by block while they are embedded."""

from __future__ import annotations

import contextlib
import math
import sys
from collections.abc import Generator
from dataclasses import dataclass, field
from pathlib import Path

import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from ..files import Address
from .reading import AudioFile, check_waveforms

Blocks = Generator[Tensor, None, None]
"""Consecutive (samples,) tensors, decoded as they are taken; close it unless all are taken."""

LARGE_BYTES = 2**20
"""Only of files from this size on is the header asked for the duration, which takes as long as decoding a second. A
long clip without a known duration is decoded from its start again, once it was longer than what is held in memory."""


@dataclass(frozen=True, slots=True)
class Clip:
    """An audio file to embed, a part of one, or a waveform.

    Attributes
    ----------
    path : of the file, or its address; None for a waveform
    start, end : of the part, in s
    waveform : (samples,) float32 at the model's sample rate
    skip_sha256 : content of this sha256 is embedded already, and so is not decoded; empty for none
    channel : of the file, from 1; None for the mean of all
    warnings : about the waveform
    """

    path: Path | Address | None = None
    start: float = 0.0
    end: float = math.inf
    waveform: Tensor | None = None
    skip_sha256: str = ""
    channel: int | None = None
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of a clip.

    Attributes
    ----------
    index : number of the clip, from 0
    waveform : (samples,) float32, or int16 with 32768 for 1.0; None if the clip is long, failed or was skipped
    is_lent : the waveform lies in the memory of a worker: it is valid until `workers.LENT` more clips are taken
    blocks : of a long clip
    sha256 : of the file, empty unless asked for
    error : why it failed
    warnings : about the audio, each naming the file; those of a long clip come while its blocks are taken
    """

    index: int
    waveform: Tensor | None = None
    blocks: Blocks | None = None
    sha256: str = ""
    error: Exception | None = None
    is_lent: bool = False
    warnings: list[str] = field(default_factory=list)


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How clips are read.

    Attributes
    ----------
    sample_rate : in Hz
    long_seconds : clips longer than this are not held in memory
    hashes : whether to hash every file
    scratch : folder for copies of what lies at addresses, see `addresses.fetch`
    keep_damaged : take what there is of damaged files
    """

    sample_rate: int
    long_seconds: float
    hashes: bool
    scratch: Path | None = None
    keep_damaged: bool = False

    @property
    def max_samples(self) -> int:
        """Longest waveform that is held in memory."""
        return int(self.long_seconds * self.sample_rate)


def read(index: int, clip: Clip, options: ReadOptions) -> Loaded:
    """Read one clip in this process: its waveform if it is short, else blocks that are not decoded yet."""
    sha256 = ""
    warnings = list(clip.warnings)
    try:
        if clip.path is None:
            waveform: Tensor | None = next(blocks_of(clip, options, warnings))
        else:
            with _opened(clip, options, warnings) as file:
                sha256 = file.sha256() if options.hashes or clip.skip_sha256 else ""
                if sha256 and sha256 == clip.skip_sha256:
                    return Loaded(index, sha256=sha256)
                waveform = _short_waveform(file, clip, options)
        if waveform is None or len(waveform) > options.max_samples:
            warnings = list(clip.warnings)  # it is decoded from its start again
            return Loaded(index, blocks=blocks_of(clip, options, warnings), sha256=sha256, warnings=warnings)
        return Loaded(index, waveform, sha256=sha256, warnings=warnings)
    except Exception as error:
        return Loaded(index, sha256=sha256, error=error, warnings=warnings)


def _opened(clip: Clip, options: ReadOptions, warnings: list[str]) -> AudioFile:
    assert clip.path is not None
    return AudioFile(
        clip.path,
        channel=clip.channel,
        keep_damaged=options.keep_damaged,
        scratch=options.scratch,
        warn=warnings.append,
    )


def _short_waveform(file: AudioFile, clip: Clip, options: ReadOptions) -> Tensor | None:
    """Decode a clip that is short enough for the memory; None if it is not."""
    if (
        clip.end - clip.start > options.long_seconds
        and file.n_bytes >= LARGE_BYTES
        and min(clip.end, file.seconds or 0.0) - clip.start > options.long_seconds
    ):
        return None
    held: list[Tensor] = []
    with contextlib.closing(_decoded(file, clip, options)) as blocks:
        for block in blocks:
            held.append(block)
            if sum(map(len, held)) > options.max_samples:
                return None
    return torch.cat(held)


def blocks_of(clip: Clip, options: ReadOptions, warnings: list[str]) -> Blocks:
    """Decode a clip block by block, in this process; warnings about it are added to a list."""
    if clip.waveform is not None:
        yield check_waveforms(clip.waveform[None])[0]
    elif clip.path is not None:
        with _opened(clip, options, warnings) as file:
            yield from _decoded(file, clip, options)
    else:
        raise OptionError("a clip is a file or a waveform; this one is neither")


def _decoded(file: AudioFile, clip: Clip, options: ReadOptions) -> Blocks:
    """Decode the part of a file that a clip is: a long one from the start of the file, dropping what lies outside."""
    if clip.end - clip.start <= options.long_seconds:
        yield file.excerpt(options.sample_rate, clip.start, clip.end - clip.start)
        return
    first = round(clip.start * options.sample_rate)
    last = sys.maxsize if clip.end == math.inf else round(clip.end * options.sample_rate)
    position, empty = 0, True
    for block in file.blocks(options.sample_rate):
        part = block[max(0, first - position) : max(0, last - position)]
        position += len(block)
        if len(part):
            empty = False
            yield part
        if position >= last:
            break
    if empty:
        raise AudioError(f"{clip.path}: ends before {clip.start:.3f} s, where a part was to begin")
