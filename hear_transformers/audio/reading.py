"""File -> mono waveform at a sample rate, whole or block by block in memory that does not grow with its duration.

libsndfile decodes what it knows (`sndfile`), FFmpeg the rest where PyAV is installed (`ffmpeg`); which of the two, the
content tells (`containers`). soxr (HQ) resamples: a tone 500 Hz above the new Nyquist is left at -140 dB.
"""

from __future__ import annotations

import contextlib
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Protocol

import numpy as np
import soxr
import torch
from torch import Tensor

from ..errors import AudioError
from . import containers, ffmpeg, sndfile

LOUDEST = 1e6
"""Samples beyond this are refused: the power of a spectrum overflows float32 near 1e15, and audio is in [-1, 1]."""

SUFFIXES = tuple(sorted({*sndfile.SUFFIXES, *ffmpeg.SUFFIXES}))
"""Names of audio files in folders. A file named by the user may have any suffix: what it is, its content tells."""

SAMPLE_RATES = range(1_000, 10_000_001)
"""Sample rates in Hz that a header may claim: from telemetry to ultrasound; others mean a damaged header."""

BLOCK_SECONDS = 60.0
BLOCK_VALUES = 2**23
"""Most values (frames times channels) decoded at once, whatever a header claims: 32 MiB."""

RESAMPLING_MARGIN = 128
"""Samples, at the lower of both rates, on either side of an excerpt that soxr's HQ filter is given: from 100 on, the
result is that of the whole file up to float32's rounding."""


class Decoder(Protocol):
    """Decodes a file forward, see `sndfile` and `ffmpeg`.

    Attributes
    ----------
    samplerate : in Hz
    channels : how many
    frames : how many the file holds, `sndfile.UNKNOWN_FRAMES` or more if that is not known
    """

    samplerate: int
    channels: int
    frames: int

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels) float32."""

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame."""

    def seconds(self) -> float | None:
        """Give the duration that the header knows."""

    def is_cut_short(self, n_frames: int) -> bool:
        """Tell whether a file that ended after so many frames should hold more."""


def read(path: str | os.PathLike[str], sample_rate: int) -> Tensor:
    """Read one audio file as a mono waveform.

    Parameters
    ----------
    path : any file that libsndfile decodes: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ...; with PyAV also MP4, AAC,
        WebM, WMA, video, ...
    sample_rate : of the result, in Hz

    Returns
    -------
    waveform : (samples,) float32, nominally in [-1, 1]; channels are averaged

    Raises
    ------
    AudioError : see `blocks`
    """
    return torch.cat(list(blocks(path, sample_rate)))


def blocks(path: str | os.PathLike[str], sample_rate: int, block_seconds: float = BLOCK_SECONDS) -> Iterator[Tensor]:
    """Read one audio file piece by piece; the pieces joined are the same whatever their length.

    A file that ends before its header says so is refused. The header of an MP3 does not know, so an MP3 is decoded as
    far as it goes; that of an Ogg file does not either, but its last page must be marked as the last one. What
    goes unnoticed in files that FFmpeg decodes is said in `ffmpeg`. A clip too short for one sample at the new rate
    becomes one sample, its mean.

    Parameters
    ----------
    path : as for `read`
    sample_rate : of the result, in Hz
    block_seconds : audio decoded at once, in s; less where that would be more than `BLOCK_VALUES`

    Yields
    ------
    waveform : (samples,) float32, at least one sample, nominally in [-1, 1]; channels are averaged

    Raises
    ------
    AudioError : the file is missing, not audio, cut short, holds no samples, or a sample is NaN, infinite or absurd
    """
    path = Path(path)
    with _opened(path) as file:
        resample = _resampler(file.samplerate, sample_rate)
        n_frames = n_samples = 0
        mono = np.zeros(0, np.float32)
        for mono in _decoded(file, path, block_seconds):
            n_frames += len(mono)
            resampled = resample(mono, False)
            n_samples += len(resampled)
            if len(resampled):
                yield torch.from_numpy(resampled)
        _refuse_incomplete(file, path, n_frames)
        resampled = resample(np.zeros(0, np.float32), True)
        if len(resampled):
            yield torch.from_numpy(resampled)
        elif not n_samples:
            yield torch.from_numpy(mono.mean(keepdims=True))


def seconds(path: str | os.PathLike[str]) -> float:
    """Give the duration of one audio file in s: from its header where that knows it.

    Raises
    ------
    AudioError : the file is missing or not audio; that it is cut short is not noticed
    """
    path = Path(path)
    known = claimed_seconds(path)
    if known is not None:
        return known
    with _opened(path) as file:
        return sum(map(len, _decoded(file, path, BLOCK_SECONDS))) / file.samplerate


def claimed_seconds(path: str | os.PathLike[str]) -> float | None:
    """Give the duration in s that the header of one audio file knows; None if it does not.

    Raises
    ------
    AudioError : the file is missing or not audio
    """
    with _opened(Path(path)) as file:
        return file.seconds()


def excerpt(path: str | os.PathLike[str], sample_rate: int, start: float, seconds: float) -> Tensor:
    """Read a part of one audio file.

    What lies before it is not decoded, but where FFmpeg decodes it is, see `ffmpeg.Decoder.skip`.

    Parameters
    ----------
    path : as for `read`
    sample_rate : of the result, in Hz
    start : of the part, in s from the beginning of the file
    seconds : its duration in s; it may reach beyond the end of the file

    Returns
    -------
    waveform : (samples,) float32, at least one sample; what `read` gives from sample ``start * sample_rate`` on, up to
        the rounding of the resampler's arithmetic

    Raises
    ------
    AudioError : as for `blocks`, though what is wrong outside the part may stay unnoticed, or the file ends before
        `start`
    """
    path = Path(path)
    first, n_samples = round(start * sample_rate), max(1, round(seconds * sample_rate))
    with _opened(path) as file:
        rate = file.samplerate
        margin = RESAMPLING_MARGIN / min(rate, sample_rate) if rate != sample_rate else 0.0
        # Decoding begins where a sample of the file coincides with one of the result: once in each of these periods.
        periods_per_second = math.gcd(rate, sample_rate)
        periods = max(0, math.floor((first / sample_rate - margin) * periods_per_second))
        skipped_frames, skipped = (periods * each // periods_per_second for each in (rate, sample_rate))
        last_frame = math.ceil(((first + n_samples) / sample_rate + margin) * rate)
        mono = _decoded_between(file, path, skipped_frames, last_frame)
        resampled = _resampler(rate, sample_rate)(mono, True)[first - skipped :][:n_samples]
        if not len(resampled) and first:
            raise AudioError(f"{path}: ends before {start:.3f} s, where an excerpt was to begin")
        # A copy, since a view would keep the margins in memory.
        return torch.from_numpy(resampled.copy() if len(resampled) else mono.mean(keepdims=True))


def _decoded_between(file: Decoder, path: Path, first: int, last: int) -> np.ndarray:
    """Decode frames `first` to `last`, fewer if the file ends before: (frames,) float32, channels averaged."""
    if first >= file.frames:
        _refuse_incomplete(file, path, file.frames)
        return np.zeros(0, np.float32)
    if first:
        file.skip(first)
    mono = np.concatenate([np.zeros(0, np.float32), *_decoded(file, path, BLOCK_SECONDS, first, last)])
    ended = first + len(mono) < last
    _refuse_incomplete(file, path, min(first + len(mono), file.frames) if ended else file.frames)
    return mono


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[Decoder]:
    """Open an audio file with the library that knows its content; whatever goes wrong becomes an AudioError."""
    if not path.is_file():
        raise AudioError(f"{path}: {_absence(path)}")
    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes)")
        # Opening it says that permission is lacking, for which libsndfile's own word is "System error".
        container = containers.recognise(path)
        with sndfile.opened(path) if container is None else ffmpeg.opened(path, container) as file:
            if file.samplerate not in SAMPLE_RATES:
                raise AudioError(f"{path}: the header claims a sample rate of {file.samplerate} Hz; it is damaged")
            yield file
    except OSError as error:
        raise AudioError(f"{path}: cannot be read ({error.strerror})") from error


def _absence(path: Path) -> str:
    """Say why a path is not a file."""
    if path.is_dir():
        return "is a folder, expected an audio file"
    return "not a regular file" if path.exists() else "no such file"


def _resampler(rate: int, sample_rate: int) -> Callable[[np.ndarray, bool], np.ndarray]:
    """Make the function that turns the next samples, and whether they are the last, into what is ready."""
    if rate == sample_rate:
        return lambda samples, _: samples
    stream = soxr.ResampleStream(rate, sample_rate, 1, dtype="float32", quality="HQ")
    return stream.resample_chunk


def resampled(waveform: np.ndarray, rate: int, sample_rate: int) -> np.ndarray:
    """Bring a waveform to another sample rate: to what `blocks` gives of a file that holds it.

    Parameters
    ----------
    waveform : (samples,) float32, at least one sample
    rate, sample_rate : of it and of the result, in Hz

    Returns
    -------
    waveform : (samples,) float32, at least one sample; the same array where both rates are the same
    """
    samples = _resampler(rate, sample_rate)(waveform, True)
    return samples if len(samples) else waveform.mean(keepdims=True)


def _decoded(
    file: Decoder, path: Path, block_seconds: float, first: int = 0, last: int = sndfile.UNKNOWN_FRAMES
) -> Iterator[np.ndarray]:
    """Decode a file from frame `first`, where it stands, to `last` or its end: yields (frames,), channels averaged.

    float32 at the file's own rate.
    """
    # libsndfile fills what a file leaves of a block with zeros, which would take as long as decoding a short one.
    size = max(1, min(int(block_seconds * file.samplerate), BLOCK_VALUES // file.channels, file.frames))
    n_frames = first
    while len(frames := file.decode(min(size, last - n_frames))):
        usable = np.abs(frames) <= LOUDEST  # False for NaN too
        if not usable.all():
            first, channel = np.argwhere(~usable)[0]
            raise AudioError(
                f"{path}: sample {frames[first, channel]:g} at {(n_frames + first) / file.samplerate:.3f} s; "
                f"expected finite numbers, nominally in [-1, 1], never beyond {LOUDEST:g}"
            )
        n_frames += len(frames)
        yield frames.mean(1)


def _refuse_incomplete(file: Decoder, path: Path, n_frames: int) -> None:
    """Raise AudioError if less was decoded than the file should hold, or nothing at all."""
    if file.is_cut_short(n_frames):
        raise AudioError(f"{path}: cut short after {n_frames / file.samplerate:.3f} s; copy or download it again")
    if n_frames == 0:
        raise AudioError(f"{path}: 0 samples; expected at least 1")


def checked(waveforms: Tensor) -> Tensor:
    """Give waveforms back if they are audio.

    Raises
    ------
    AudioError : not (clips, samples), not floating point, not finite, or far outside [-1, 1]
    """
    if waveforms.ndim != 2 or not waveforms.is_floating_point():
        raise AudioError(
            f"expected floating-point waveforms of shape (clips, samples), got {waveforms.dtype} of shape "
            f"{tuple(waveforms.shape)}; a single clip is waveform[None], integers are divided by their full scale"
        )
    if waveforms.numel() and not torch.stack(waveforms.aminmax()).abs().max() <= LOUDEST:  # also False for NaN
        raise AudioError(f"the waveform holds NaN, Inf or values beyond {LOUDEST:g}; expected [-1, 1]")
    return waveforms
