"""Clips -> waveforms: short ones whole, long ones block by block while they are embedded."""

from __future__ import annotations

import contextlib
import functools
import math
import sys
from collections.abc import Callable, Generator
from dataclasses import dataclass, field, fields, replace
from operator import attrgetter
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from ..files import Address
from . import pieces
from .reading import AudioFile, check_waveforms
from .resampling import has_kernels

Blocks = Generator[Tensor, None, None]
"""Consecutive (samples,) tensors, decoded as they are taken; close it unless all are taken."""

LARGE_BYTES = 2**20
"""Only of files from this size on is the header asked for the duration, which takes as long as decoding a second. A
long clip without a known duration is decoded from its start again, once it was longer than what is held in memory."""

KEPT_BYTES = 2**25 - 2**16
"""Largest array whose memory is used again for the next one: glibc's limit is 32 MiB, of which it takes a little."""


KEPT = "kept"
"""Stands for any content, see `Clip.known`."""

T = TypeVar("T")


def pickled_as_call(path: str) -> Callable[[type[T]], type[T]]:
    """Make records of a class be pickled as a call of it, in a third of the time that a frozen dataclass takes.

    Parameters
    ----------
    path : attribute that may be a path, which goes as text, in a tenth of the time
    """

    def decorate(kind: type[T]) -> type[T]:
        names = [each.name for each in fields(kind)]  # type: ignore[arg-type]
        values, place = attrgetter(*names), names.index(path)

        def reduce(self: T) -> tuple[Any, ...]:
            told = [*values(self)]
            if isinstance(told[place], Path):
                told[place] = str(told[place])
            return _with_path, (kind, place, *told)

        kind.__reduce__ = reduce  # type: ignore[method-assign,assignment]
        return kind

    return decorate


def _with_path(kind: Callable[..., T], place: int, *values: Any) -> T:
    """Make a record whose path may have been pickled as text; an `Address` was not."""
    if type(values[place]) is not str:
        return kind(*values)
    return kind(*values[:place], Path(values[place]), *values[place + 1 :])


@pickled_as_call(path="path")
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
    known : of each of several models, the sha256 of the content that it has embedded already; empty for none, `KEPT`
        for any
    """

    path: Path | Address | None = None
    start: float = 0.0
    end: float = math.inf
    waveform: Tensor | None = None
    skip_sha256: str = ""
    channel: int | None = None
    warnings: tuple[str, ...] = ()
    known: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Loaded:
    """What was read of a clip.

    Attributes
    ----------
    index : number of the clip, from 0
    waveform : (samples,) float32, or int16 with 32768 for 1.0 if it was not resampled; None if the clip is long, failed
        or was skipped
    sample_rate : of the waveform in Hz, see `ReadOptions.resample`; 0 where there is none
    is_lent : the waveform lies in the memory of a worker: it is valid until `workers.LENT` more clips are taken
    resampling : seconds in which it was resampled
    blocks : of a long clip
    sha256 : of the file, empty unless asked for
    error : why it failed
    path : of the clip, None for a waveform
    warnings : about the audio, each naming the file; those of a long clip come while its blocks are taken
    others : the same for each of `ReadOptions.other_rates`
    """

    index: int
    waveform: Tensor | None = None
    blocks: Blocks | None = None
    sha256: str = ""
    error: Exception | None = None
    path: Path | Address | None = None
    warnings: list[str] = field(default_factory=list)
    sample_rate: int = 0
    is_lent: bool = False
    resampling: float = 0.0
    others: tuple[Loaded, ...] = ()


@dataclass(frozen=True, slots=True)
class ReadOptions:
    """How clips are read.

    Attributes
    ----------
    sample_rate : of the model, in Hz
    long_seconds : clips longer than this are not held in memory
    hashes : whether to hash every file
    scratch : folder for copies of what lies at addresses, see `addresses.fetch`
    keep_damaged : take what there is of damaged files
    resample : whether waveforms are at `sample_rate`; else those of whole files are as the file has them where that
        takes no more memory, see `AudioFile.native_blocks`. Parts, given waveforms and long clips are at `sample_rate`
        anyway
    other_rates : further ones, in Hz, at which clips are read as well. Whole files are decoded once for all; parts of
        files for each, since what lies around them takes part in resampling
    """

    sample_rate: int
    long_seconds: float
    hashes: bool
    scratch: Path | None = None
    keep_damaged: bool = False
    resample: bool = True
    other_rates: tuple[int, ...] = ()

    def at(self, rate: int) -> ReadOptions:
        """Return how clips are read at one of the sample rates."""
        return self if not self.other_rates else replace(self, sample_rate=rate, other_rates=())

    @property
    def max_samples(self) -> int:
        """Longest waveform that is held in memory, in float32."""
        return int(self.long_seconds * self.sample_rate)

    def max_samples_of(self, waveform: Tensor, rate: int) -> int:
        """Return the length of the longest waveform of the same type, at a sample rate in Hz, that is held in memory.

        It is as long as others in s, and takes no more bytes.
        """
        n_bytes = self.max_samples * torch.float32.itemsize
        return min(int(self.long_seconds * rate), n_bytes // waveform.element_size())


@functools.cache
def keep_memory() -> None:
    """Keep the memory of large arrays in this process for the next ones, where the C library is glibc.

    By itself it returns such memory to the system, and each clip asks for a thousand pages of zeros, which takes as
    long as to resample it. It keeps what is no larger than the largest array that was freed before (mallopt(3),
    M_MMAP_THRESHOLD), which this is: it takes no memory, since nothing is written to it. Up to 64 MiB stay.
    """
    np.empty(KEPT_BYTES, np.uint8)


def read(index: int, clip: Clip, options: ReadOptions, threads: int = 1) -> Loaded:
    """Read one clip in this process: its waveform if it is short, else blocks that are not decoded yet.

    Parameters
    ----------
    index : number of the clip, from 0
    clip, options : what is read, and how
    threads : that decode the blocks, see `pieces`
    """
    keep_memory()
    sha256, warnings = "", list(clip.warnings)
    try:
        if clip.path is None:
            return _at_each(options, lambda at: _read_at(index, clip, at, None))
        with _opened(clip, options, warnings) as file:
            sha256 = file.sha256() if options.hashes or clip.skip_sha256 else ""
            if sha256 and sha256 == clip.skip_sha256:
                return _at_each(options, lambda at: Loaded(index, sha256=sha256))
            if options.other_rates:
                file.keep_decoded()
            return _at_each(options, lambda at: _read_at(index, clip, at, file, sha256, threads))
    except Exception as error:
        failed = Loaded(index, sha256=sha256, error=error, warnings=warnings)
        return _at_each(options, lambda at: failed)


def _at_each(options: ReadOptions, read_at: Callable[[ReadOptions], Loaded]) -> Loaded:
    """Read a clip at each of the sample rates; what fails at the first fails at all."""
    loaded = read_at(options.at(options.sample_rate))
    if not options.other_rates:
        return loaded
    others = [loaded if loaded.error is not None else read_at(options.at(rate)) for rate in options.other_rates]
    return replace(loaded, others=tuple(others))


def _read_at(
    index: int, clip: Clip, options: ReadOptions, file: AudioFile | None, sha256: str = "", threads: int = 1
) -> Loaded:
    """Read a clip, of a file or given, at one sample rate."""
    warnings = list(clip.warnings)
    rate, resampling = options.sample_rate, 0.0
    try:
        if file is None:
            waveform: Tensor | None = next(blocks_of(clip, options, warnings))
        else:
            file.listen(warnings.append)
            before = file.resampling
            waveform, rate = _short_waveform(file, clip, options)
            resampling = file.resampling - before
    except Exception as error:
        return Loaded(index, sha256=sha256, error=error, warnings=warnings)
    if waveform is None or len(waveform) > options.max_samples_of(waveform, rate):
        warnings = list(clip.warnings)  # it is decoded from its start again
        return Loaded(index, blocks=blocks_of(clip, options, warnings, threads), sha256=sha256, warnings=warnings)
    told: dict[str, Any] = {"sha256": sha256, "path": clip.path, "warnings": warnings}
    return Loaded(index, waveform, sample_rate=rate, resampling=resampling, **told)


def _opened(clip: Clip, options: ReadOptions, warnings: list[str]) -> AudioFile:
    assert clip.path is not None
    return AudioFile(
        clip.path,
        channel=clip.channel,
        keep_damaged=options.keep_damaged,
        scratch=options.scratch,
        warn=warnings.append,
    )


def _short_waveform(file: AudioFile, clip: Clip, options: ReadOptions) -> tuple[Tensor | None, int]:
    """Decode a clip that is short enough for the memory, None if it is not; return its sample rate, too."""
    if (
        clip.end - clip.start > options.long_seconds
        and file.n_bytes >= LARGE_BYTES
        and min(clip.end, file.seconds or 0.0) - clip.start > options.long_seconds
    ):
        return None, options.sample_rate
    # A part would lack what its ends need. At a high sample rate, what is not resampled may be too much.
    if not options.resample and clip.start == 0.0 and clip.end == math.inf:
        native = _held(file.native_blocks(), lambda block: options.max_samples_of(block, file.sample_rate))
        if native is not None and has_kernels(file.sample_rate, options.sample_rate):
            return native, file.sample_rate
    return _held(_decoded(file, clip, options), lambda block: options.max_samples), options.sample_rate


def _held(decoded: Blocks, room: Callable[[Tensor], int]) -> Tensor | None:
    """Decode blocks of a waveform; None if there are more samples than there is room for."""
    held: list[Tensor] = []
    with contextlib.closing(decoded) as blocks:
        for block in blocks:
            held.append(block)
            if sum(map(len, held)) > room(block):
                return None
    return held[0] if len(held) == 1 else torch.cat(held)


def blocks_of(clip: Clip, options: ReadOptions, warnings: list[str], threads: int = 1) -> Blocks:
    """Decode a clip block by block, in this process; warnings about it are added to a list."""
    if clip.waveform is not None:
        yield check_waveforms(clip.waveform[None])[0]
    elif clip.path is not None:
        with _opened(clip, options, warnings) as file:
            yield from _decoded(file, clip, options, threads)
    else:
        raise OptionError("a clip is a file or a waveform; this one is neither")


def _decoded(file: AudioFile, clip: Clip, options: ReadOptions, threads: int = 1) -> Blocks:
    """Decode the part of a file that a clip is: a long one from the start of the file, dropping what lies outside."""
    if clip.end - clip.start <= options.long_seconds:
        yield file.excerpt(options.sample_rate, clip.start, clip.end - clip.start)
        return
    first = round(clip.start * options.sample_rate)
    last = sys.maxsize if clip.end == math.inf else round(clip.end * options.sample_rate)
    position, empty = 0, True
    for block in pieces.blocks(file, options.sample_rate, threads):
        part = block[max(0, first - position) : max(0, last - position)]
        position += len(block)
        if len(part):
            empty = False
            yield part
        if position >= last:
            break
    if empty:
        raise AudioError(f"{clip.path}: ends before {clip.start:.3f} s, where a part was to begin")
