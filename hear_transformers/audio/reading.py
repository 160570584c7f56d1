"""File -> mono waveform at a sample rate, whole or block by block in memory that does not grow with its duration.

libsndfile decodes what it knows (`sndfile`), FFmpeg the rest where PyAV is installed (`ffmpeg`); the content decides
which of the two (`containers`). soxr (HQ) resamples: a tone 500 Hz above the new Nyquist is left at -140 dB.
"""

from __future__ import annotations

import contextlib
import copy
import functools
import math
import os
import tempfile
import time
import warnings
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from ..errors import AudioError, HearTransformersWarning, OptionError
from ..files import Address, digest_of, place_of
from . import addresses, containers, ffmpeg, sndfile
from .levels import LOUDEST, Levels, absurd, as_float, check_channel, peak_of, scale_warning
from .surveys import survey
from .views import Survey

SUFFIXES = tuple(sorted({*sndfile.SUFFIXES, *ffmpeg.SUFFIXES}))
"""Names of audio files in folders. A file named by the user may have any suffix: its content says what it is."""

SAMPLE_RATES = range(1_000, 10_000_001)
"""Sample rates in Hz that a header may claim: from telemetry to ultrasound; others mean a damaged header."""

BLOCK_SECONDS = 60.0
BLOCK_VALUES = 2**23
"""Most values (frames times channels) decoded at once, whatever a header claims: 32 MiB."""

RESAMPLING_MARGIN = 128
"""Samples, at the lower of both rates, that soxr's HQ filter reads on either side of an excerpt: from 100 on, the
result is that of the whole file up to float32's rounding."""

ADVICE = "copy or download it again, or take what is there with --keep-damaged, in Python keep_damaged=True"
"""What to do about a damaged file."""

TAKEN = "what is there was taken"
"""How the warning about a damaged file that was kept ends."""

HASHES_KEPT = 256
"""Hashes kept per process, since a manifest may list many parts of one file."""

_HASHES: dict[tuple[str, int, int], str] = {}  # by path, size and time of change


class Decoder(Protocol):
    """A decoder of one file, forward only; see `sndfile` and `ffmpeg`.

    Attributes
    ----------
    samplerate : in Hz
    channels : number of channels
    frames : number of frames in the file, `sndfile.UNKNOWN_FRAMES` or more if unknown
    is_sought : whether `skip` goes to a frame without decoding those before, and what follows is the same
    notes : what a user is to be warned of
    """

    samplerate: int
    channels: int
    frames: int
    is_sought: bool
    notes: Sequence[str]

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels) float32, or int16 where the file is that."""

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame."""

    def seconds(self) -> float | None:
        """Return the duration in the header, None if it is unknown."""

    def flaw(self, n_frames: int) -> str:
        """Return what is wrong with a file that ended after `n_frames`, empty if nothing is."""


def warn_user(message: str) -> None:
    """Issue a HearTransformersWarning."""
    warnings.warn(message, HearTransformersWarning, stacklevel=2)


class _Decoded:
    """What was decoded of a file, and what is known of it before anything is resampled."""

    def __init__(self) -> None:
        self.blocks: list[np.ndarray] = []
        self.levels = Levels()
        self.warnings: list[str] = []
        self.is_whole = False

    def add(self, mono: np.ndarray, n_frames: int) -> None:
        """Add a block, with which there are so many frames."""
        if n_frames == len(mono):  # another attempt may not have been taken to its end
            self.blocks.clear()
        self.blocks.append(mono)

    def end(self, levels: Levels, warnings: Iterable[str]) -> None:
        """Note that this is all."""
        self.levels, self.warnings = copy.copy(levels), [*warnings]
        self.levels.seen = self.levels.heard = self.levels.n_heard = 0
        self.is_whole = True


class AudioFile:
    """A sound in a file, which is opened once; each method reads from its start, one at a time.

    Parameters
    ----------
    path : any file that libsndfile decodes: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ...; with PyAV also MP4, AAC,
        WebM, WMA, video, ...; or an address, see `files.place_of`, of which a copy is made
    channel : to read, from 1; None for the mean of all
    keep_damaged : take what there is of a damaged file, with a warning
    scratch : folder of copies, see `addresses.fetch`
    warn : called with every warning about the file, which names it, once for each

    Attributes
    ----------
    n_bytes : size of the file
    resampling : seconds in which it was resampled so far

    Raises
    ------
    AudioError : the file is missing, not a regular file, empty, or must not be read; when decoded, it is not audio, cut
        short, lacks the channel or samples, or a sample is NaN, infinite or absurd
    OptionError : blocks of this file are neither all taken nor closed

    Examples
    --------
    >>> import tempfile
    >>> import soundfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> path = f"{folder.name}/tone.wav"
    >>> soundfile.write(path, 0.3 * np.sin(0.1 * np.arange(88_200)), 44_100)
    >>> with AudioFile(path) as file:
    ...     file.seconds, file.read(32_000).shape, file.excerpt(32_000, start=1.5, seconds=0.25).shape
    (2.0, torch.Size([64000]), torch.Size([8000]))
    >>> folder.cleanup()
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        channel: int | None = None,
        keep_damaged: bool = False,
        scratch: Path | None = None,
        warn: Callable[[str], None] = warn_user,
    ) -> None:
        self.path = place_of(path)
        self._copy = addresses.fetch(self.path, scratch) if isinstance(self.path, Address) else None
        self._local = self._copy.path if self._copy else Path(self.path)
        self._levels = Levels(channel)
        self.keep_damaged = keep_damaged
        self.resampling = 0.0
        self._is_busy = False
        self._kept: _Decoded | None = None
        self.listen(warn)
        with self._errors():
            if self._local.is_dir():
                raise AudioError(f"{self.path}: is a folder, expected an audio file")
            if not self._local.is_file():  # to open a pipe would block until somebody writes to it
                raise AudioError(f"{self.path}: {'not a regular' if self._local.exists() else 'no such'} file")
            self.n_bytes = self._local.stat().st_size
            if self.n_bytes == 0:
                raise AudioError(f"{self.path}: the file is empty (0 bytes)")
            # libsndfile reads by the descriptor, and would not notice what Python holds in a buffer.
            self._file = self._local.open("rb", buffering=0)

    def __enter__(self) -> AudioFile:
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def close(self) -> None:
        """Close the file."""
        self._file.close()

    def listen(self, warn: Callable[[str], None]) -> None:
        """Pass warnings on to another function from now on, those too that were passed on before."""
        self._on_warning = warn
        self._warned: dict[str, None] = {}

    def _warn(self, text: str) -> None:
        """Pass on a warning about the file, each text once."""
        if text not in self._warned:
            self._warned[text] = None
            self._on_warning(f"{self.path}: {text}")

    def keep_decoded(self) -> None:
        """Keep the whole file once it is decoded, so that `blocks` and `native_blocks` need not decode it again."""
        self._kept = _Decoded()

    @property
    def levels(self) -> Levels:
        """Levels of what was read last."""
        return self._levels

    def warn_of(self, levels: Levels) -> None:
        """Pass on what levels say."""
        for text in levels.warnings():
            self._warn(text)

    @functools.cached_property
    def seconds(self) -> float | None:
        """Duration in s that the header claims, None if it claims none; raises AudioError if this is not audio."""
        with self._decoder() as decoder:
            return decoder.seconds()

    @functools.cached_property
    def sample_rate(self) -> int:
        """Sample rate in Hz; raises AudioError if this is not audio."""
        with self._decoder() as decoder:
            return decoder.samplerate

    @functools.cached_property
    def channels(self) -> int:
        """Number of channels; raises AudioError if this is not audio."""
        with self._decoder() as decoder:
            return decoder.channels

    @functools.cached_property
    def sought_seconds(self) -> float | None:
        """Duration in s if any part of the file can be read by itself, with the same samples; else None."""
        with self._decoder() as decoder:
            return decoder.frames / decoder.samplerate if decoder.is_sought else None

    def again(self) -> AudioFile:
        """Open the file once more, to read from two places at once; it warns of nothing, and damage is an error."""
        other = copy.copy(self)
        other._file = self._local.open("rb", buffering=0)
        other._is_busy = False
        other.listen(lambda warning: None)
        other.keep_damaged = False
        return other

    def duration(self) -> float:
        """Return the duration in s: from the header, or by decoding where that does not know it."""
        if self.seconds is not None:
            return self.seconds
        with self._decoder() as decoder:
            return sum(map(len, self._mono(decoder))) / decoder.samplerate

    def sha256(self) -> str:
        """Return the sha256 of the content in hexadecimal; that of an unchanged file is computed once per process."""
        with self._errors():
            status = os.fstat(self._file.fileno())
            version = (os.fspath(self._local), status.st_size, status.st_mtime_ns)
            if version not in _HASHES:
                if len(_HASHES) >= HASHES_KEPT:
                    _HASHES.clear()
                self._file.seek(0)
                _HASHES[version] = digest_of(self._file, "sha256")
            return _HASHES[version]

    def read(self, sample_rate: int) -> Tensor:
        """Read the whole file: (samples,) float32; see `blocks`."""
        return torch.cat(list(self.blocks(sample_rate)))

    def blocks(self, sample_rate: int, block_seconds: float = BLOCK_SECONDS) -> Iterator[Tensor]:
        """Read the file block by block; the blocks joined are the same whatever their length.

        All audio of the file is read, whatever its header counts; see `surveys` for what makes it damaged. Such a
        file is refused, or with `keep_damaged` read up to there. `ffmpeg` lists what goes unnoticed in the files that
        it decodes. A clip too short for one sample at the new rate becomes one sample, its mean.

        Parameters
        ----------
        sample_rate : of the result, in Hz
        block_seconds : audio decoded at once, in s; less where that would be more than `BLOCK_VALUES`

        Yields
        ------
        waveform : (samples,) float32, at least one sample, nominally in [-1, 1]; channels are averaged
        """
        n_samples = 0
        resampler: Resampler | None = None
        with contextlib.closing(self._frames(block_seconds)) as frames:
            for decoded, is_last in frames:
                mono, rate = as_float(decoded), self.sample_rate
                if resampler is None:
                    resampler = _once(rate, sample_rate) if is_last else _resampler(rate, sample_rate)
                samples = self._resampled(resampler, mono, is_last)
                self._levels.compare(mono, rate, samples, sample_rate)
                n_samples += len(samples)
                if len(samples):
                    yield torch.from_numpy(samples)
                elif is_last and not n_samples:
                    yield torch.from_numpy(mono.mean(keepdims=True))

    def native_blocks(self) -> Generator[Tensor, None, None]:
        """Read the file block by block as `blocks` does, at its own `sample_rate`.

        No energy beyond the band of a model is noticed, see `levels.unheard_warning`.

        Yields
        ------
        waveform : (samples,) float32, nominally in [-1, 1]; or int16, with a full scale of 2^15, of one channel of a
            file of 16 bits
        """
        with contextlib.closing(self._frames(BLOCK_SECONDS)) as frames:
            for mono, _ in frames:
                yield torch.from_numpy(mono)

    def _frames(self, block_seconds: float) -> Generator[tuple[np.ndarray, bool], None, None]:
        """Decode the whole file: blocks of `_mono`, and whether each is the last, which then ends a whole file."""
        if self._kept is not None and self._kept.is_whole:
            yield from self._frames_kept(self._kept)
            return
        with self._decoder() as decoder, contextlib.ExitStack() as at_the_end:
            # Also if not all blocks are taken.
            at_the_end.callback(lambda: self.warn_of(self._levels))
            n_frames = 0
            before: np.ndarray | None = None
            for mono in self._mono(decoder, block_seconds):
                if before is not None:
                    yield before, False
                before = mono
                n_frames += len(mono)
                if self._kept is not None:
                    self._kept.add(mono, n_frames)
            self._check_complete(decoder, n_frames)
            if self._kept is not None:
                self._kept.end(self._levels, self._warned)
            assert before is not None  # no frames are an error
            yield before, True

    def _frames_kept(self, kept: _Decoded) -> Generator[tuple[np.ndarray, bool], None, None]:
        """Yield what was decoded before, see `_frames`, and warn of the same."""
        self._levels = copy.copy(kept.levels)
        for text in kept.warnings:
            self._warn(text)
        try:
            for mono in kept.blocks[:-1]:
                yield mono, False
            yield kept.blocks[-1], True
        finally:
            self.warn_of(self._levels)

    def excerpt(self, sample_rate: int, start: float, seconds: float) -> Tensor:
        """Read a part of the file.

        libsndfile seeks to it; FFmpeg decodes all before it, see `ffmpeg.FFmpegDecoder.skip`.

        Parameters
        ----------
        sample_rate : of the result, in Hz
        start : of the part, in s from the beginning of the file
        seconds : its duration in s; it may reach beyond the end of the file

        Returns
        -------
        waveform : (samples,) float32, at least one sample; what `read` returns from sample ``start * sample_rate`` on,
            up to the rounding of the resampler's arithmetic

        Raises
        ------
        AudioError : the file ends before `start`, or see `AudioFile`; damage outside the part may stay unnoticed
        """
        first, n_samples = round(start * sample_rate), max(1, round(seconds * sample_rate))
        with self._decoder() as decoder:
            rate = decoder.samplerate
            margin = RESAMPLING_MARGIN / min(rate, sample_rate) if rate != sample_rate else 0.0
            # Decoding begins where a sample of the file coincides with one of the result, once in each period.
            periods_per_second = math.gcd(rate, sample_rate)
            periods = max(0, math.floor((first / sample_rate - margin) * periods_per_second))
            skipped_frames, skipped = (periods * each // periods_per_second for each in (rate, sample_rate))
            last_frame = math.ceil(((first + n_samples) / sample_rate + margin) * rate)
            mono = self._mono_between(decoder, skipped_frames, last_frame)
        resampled = self._resampled(_once(rate, sample_rate), mono, True)
        self._levels.compare(mono, rate, resampled, sample_rate)
        self.warn_of(self._levels)
        samples = resampled[first - skipped :][:n_samples]
        if not len(samples) and first:
            raise AudioError(f"{self.path}: ends before {start:.3f} s, where an excerpt was to begin")
        # A copy, since a view would keep the margins in memory.
        return torch.from_numpy(samples.copy() if len(samples) else mono.mean(keepdims=True))

    @contextlib.contextmanager
    def _decoder(self) -> Iterator[Decoder]:
        """Open a decoder at the start of the file; whatever it raises, then or later, becomes an AudioError."""
        if self._is_busy:
            raise OptionError(f"{self.path}: is being read; take all of its blocks first, or close them")
        self._is_busy = True
        try:
            with self._errors(), self._opened() as decoder:
                rate = decoder.samplerate
                if rate not in SAMPLE_RATES:
                    raise AudioError(f"{self.path}: the header claims a sample rate of {rate} Hz; it is damaged")
                check_channel(self._levels.channel, decoder.channels, self.path)
                self.sample_rate = rate
                self._levels = Levels(self._levels.channel)
                for note in decoder.notes:
                    self._warn(note)
                yield decoder
        finally:
            self._is_busy = False

    @contextlib.contextmanager
    def _opened(self) -> Iterator[Decoder]:
        """Open the decoder that the content asks for; what libsndfile refuses is offered to FFmpeg."""
        file, path, n_bytes = self._file, self._local, self.n_bytes
        with contextlib.ExitStack() as stack:
            if self._container is not None:
                yield stack.enter_context(ffmpeg.opened(file, path, n_bytes, self._container))
                return
            found = self._survey
            try:
                decoder: Decoder = stack.enter_context(sndfile.opened(file, path, n_bytes, found))
            except sndfile.RefusedError as refusal:
                other = containers.recognise(file, containers.OTHERS)
                if other is None:
                    raise AudioError(str(refusal)) from refusal
                if len(found.streams) > 1 and other.name != "Ogg":
                    raise AudioError(f"{refusal}; {len(found.streams)} files were joined: split them") from refusal
                try:
                    decoder = stack.enter_context(ffmpeg.opened(file, path, n_bytes, other, found))
                except ffmpeg.MissingError as error:
                    raise AudioError(f"{refusal}; FFmpeg may know it, run: {ffmpeg.INSTALL}") from error
                except AudioError as error:
                    raise AudioError(str(refusal)) from error
                if decoder.is_empty:
                    raise AudioError(str(refusal)) from refusal
            yield decoder

    @functools.cached_property
    def _container(self) -> containers.Container | None:
        return containers.recognise(self._file)

    @functools.cached_property
    def _survey(self) -> Survey:
        return survey(self._file, self.n_bytes, self._local.suffix.lower())

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Re-raise the system's errors as AudioError; name an address instead of its copy."""
        try:
            yield
        except AudioError as error:
            if self._copy is None and type(error) is AudioError:
                raise
            raise AudioError(str(error).replace(str(self._local), str(self.path))) from error
        except OSError as error:
            raise AudioError(f"{self.path}: cannot be read ({error.strerror})") from error

    def _resampled(self, resampler: Resampler, mono: np.ndarray, is_last: bool) -> np.ndarray:
        start = time.perf_counter()
        samples = resampler(mono, is_last)
        self.resampling += time.perf_counter() - start
        return samples

    def _mono(
        self, decoder: Decoder, block_seconds: float = BLOCK_SECONDS, first: int = 0, last: int = sndfile.UNKNOWN_FRAMES
    ) -> Iterator[np.ndarray]:
        """Decode from frame `first`, where the decoder stands, to `last` or the end, channels averaged.

        Yields
        ------
        mono : (frames,) float32, or int16 of one channel of such a file
        """
        # libsndfile fills what a file leaves of a block with zeros, which would take as long as decoding a short one.
        size = max(1, min(int(block_seconds * decoder.samplerate), BLOCK_VALUES // decoder.channels, decoder.frames))
        n_frames = first
        while len(decoded := decoder.decode(min(size, last - n_frames))):
            frames = self._levels.pick(decoded)
            peak = peak_of(frames)
            if not peak <= LOUDEST:  # False for NaN too
                frame, channel = np.argwhere(~(np.abs(frames) <= LOUDEST))[0]
                sample, place_s = frames[frame, channel], (n_frames + frame) / decoder.samplerate
                raise AudioError(absurd(f"{self.path}: sample {sample:g} at {place_s:.3f} s", sample))
            n_frames += len(frames)
            yield self._levels.mean(frames, peak)

    def _mono_between(self, decoder: Decoder, first: int, last: int) -> np.ndarray:
        """Decode frames `first` to `last`, fewer if the file ends before: (frames,) float32, channels averaged."""
        if first >= decoder.frames:
            self._check_complete(decoder, decoder.frames)
            return np.zeros(0, np.float32)
        if first:
            decoder.skip(first)
        parts = map(as_float, self._mono(decoder, BLOCK_SECONDS, first, last))
        mono = np.concatenate([np.zeros(0, np.float32), *parts])
        ended = first + len(mono) < last
        self._check_complete(decoder, min(first + len(mono), decoder.frames) if ended else decoder.frames)
        return mono

    def _check_complete(self, decoder: Decoder, n_frames: int) -> None:
        """Raise AudioError, or warn, if fewer frames were decoded than there were or should be; none are an error."""
        if flaw := decoder.flaw(n_frames):
            place = f" after {n_frames / decoder.samplerate:.3f} s" if n_frames < sndfile.UNKNOWN_FRAMES else ""
            kind, colon, detail = flaw.partition(": ")
            if not self.keep_damaged:
                raise AudioError(f"{self.path}: {kind}{place}{colon}{detail}; {ADVICE}")
            self._warn(f"{kind}{place}{colon}{detail}; {TAKEN}")
        if n_frames == 0:
            raise AudioError(f"{self.path}: 0 samples; expected at least 1")


def is_of_damage(warning: str) -> bool:
    """Return True for the warning about a damaged file that was kept."""
    return warning.endswith(TAKEN)


def read(path: str | os.PathLike[str], sample_rate: int, *, keep_damaged: bool = False) -> Tensor:
    """Read one audio file as a mono waveform: (samples,) float32 at `sample_rate` in Hz; see `AudioFile.blocks`."""
    with AudioFile(path, keep_damaged=keep_damaged) as file:
        return file.read(sample_rate)


def read_content(content: bytes, suffix: str = "", sample_rate: int | None = None) -> tuple[Tensor, int]:
    """Read the content of an audio file.

    Parameters
    ----------
    content : of the file
    suffix : of its name, which may help to decode it
    sample_rate : of the waveform, in Hz; None for that of the file

    Returns
    -------
    waveform, sample_rate : (samples,) float32, channels averaged, and its rate in Hz

    Raises
    ------
    AudioError : as by `AudioFile`; the message names no file
    """
    with tempfile.TemporaryDirectory(prefix="hear_transformers-") as folder:
        path = Path(folder) / f"content{suffix}"
        path.write_bytes(content)
        try:
            with AudioFile(path) as file:
                rate = sample_rate or file.sample_rate
                return file.read(rate), rate
        except AudioError as error:
            raise AudioError(str(error).replace(f"{path}: ", "")) from error


def channels_of(path: str | os.PathLike[str], scratch: Path | None = None) -> int:
    """Return the number of channels of a file, without a warning about it; see `AudioFile`."""
    with AudioFile(path, keep_damaged=True, scratch=scratch, warn=lambda warning: None) as file:
        return file.channels


Resampler = Callable[[np.ndarray, bool], np.ndarray]
"""(next samples, whether they are the last) -> samples that are ready; float32."""


def _resampler(rate: int, sample_rate: int) -> Resampler:
    """Make a resampler of one block after the other."""
    if rate == sample_rate:
        return lambda samples, _: samples
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    return stream.resample_chunk


def _once(rate: int, sample_rate: int) -> Resampler:
    """Make a resampler of a single block, which takes four fifths of the time for the same numbers."""
    if rate == sample_rate:
        return lambda samples, _: samples
    return lambda samples, _: soxr.resample(samples, rate, sample_rate, quality="HQ")


def resample(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Resample a waveform to what `AudioFile.blocks` yields of a file that holds it.

    Parameters
    ----------
    waveform : (samples,) float32, at least one sample
    rate, sample_rate : of it and of the result, in Hz

    Returns
    -------
    waveform : (samples,) float32, at least one sample; the same array where both rates are the same
    """
    samples = _once(rate, sample_rate)(waveform, True)
    return samples if len(samples) else waveform.mean(keepdims=True)


def check_waveforms(waveforms: Tensor, warn: Callable[[str], None] = lambda warning: None) -> Tensor:
    """Return waveforms unchanged if they are audio; `warn` is called if their scale is that of integers.

    Raises
    ------
    AudioError : not (clips, samples), not floating point, not finite, or far outside [-1, 1]
    """
    if waveforms.ndim != 2 or not waveforms.is_floating_point():
        raise AudioError(
            f"expected floating-point waveforms of shape (clips, samples), got {waveforms.dtype} of shape "
            f"{tuple(waveforms.shape)}; a single clip is waveform[None], integers are divided by their full scale"
        )
    if waveforms.numel():
        least, most = torch.stack(waveforms.aminmax()).tolist()
        peak = max(-least, most)
        if not peak <= LOUDEST:  # False for NaN too
            raise AudioError(absurd("the waveform holds NaN, Inf or values that are too large", peak))
        if warning := scale_warning(least, most):
            warn(warning)
    return waveforms
