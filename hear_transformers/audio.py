"""File -> mono waveform at a sample rate, whole or block by block in memory that does not grow with its duration.

Whatever libsndfile decodes is read; soxr (HQ) resamples: a tone 500 Hz above the new Nyquist is left at -140 dB.
"""

from __future__ import annotations

import contextlib
import math
import os
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from .errors import AudioError

LOUDEST = 1e6
"""Samples beyond this are refused: the power of a spectrum overflows float32 near 1e15, and audio is in [-1, 1]."""

SUFFIXES = (
    ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".ircam", ".mp1", ".mp2", ".mp3", ".mpc", ".nist",
    ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64",
    ".wav", ".wave", ".wve", ".xi",
)  # fmt: skip
"""Names of audio files in folders: what libsndfile decodes, but not .raw, which has no header, nor .mat and .htk, which
mostly hold matrices and features. A file named by the user may have any suffix."""

SAMPLE_RATES = range(1_000, 10_000_001)
"""Sample rates in Hz that a header may claim: from telemetry to ultrasound; others mean a damaged header."""

BLOCK_SECONDS = 60.0
BLOCK_VALUES = 2**23
"""Most values (frames times channels) decoded at once, whatever a header claims: 32 MiB."""

UNKNOWN_BYTES = 0x7FFF0000
"""Programs that write WAV into a pipe cannot know its length and claim this much or more (SoX, FFmpeg)."""

UNKNOWN_FRAMES = 2**62
"""libsndfile's length of a FLAC file whose header does not know it, 2^63 - 1, and anything like it."""

RESAMPLING_MARGIN = 128
"""Samples, at the lower of both rates, on either side of an excerpt that soxr's HQ filter is given: from 100 on, the
result is that of the whole file up to float32's rounding."""

OGG_PAGE = 65_307
"""Largest page of an Ogg file in bytes (RFC 3533, section 6)."""


class _Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Decodes forward only.

    soundfile seeks after every read, to where it already is, which fails in a FLAC file of unknown length, and trusts
    the length in the header when it allocates. It does neither for what cannot be sought.
    """

    def seekable(self) -> bool:
        return False


def read(path: str | os.PathLike[str], sample_rate: int) -> Tensor:
    """Read one audio file as a mono waveform.

    Parameters
    ----------
    path : any file that libsndfile decodes: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ...
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
    far as it goes; that of an Ogg file does not either, but its last page must be marked as the last one. A clip too
    short for one sample at the new rate becomes one sample, its mean.

    Parameters
    ----------
    path : any file that libsndfile decodes
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
    with _opened(path) as file:
        if _knows_length(file):
            return file.frames / file.samplerate
    with _opened(path) as file:
        return sum(map(len, _decoded(file, path, BLOCK_SECONDS))) / file.samplerate


def _knows_length(file: _Decoder) -> bool:
    """Tell whether the header says how long a file is; that of an MP3 may only let it be guessed, far too long."""
    if file.format != "MP3":
        return file.frames < UNKNOWN_FRAMES
    try:
        file.seek(max(0, file.frames - 1))
        return len(file.read(1)) == 1
    except soundfile.SoundFileError:
        return False


def excerpt(path: str | os.PathLike[str], sample_rate: int, start: float, seconds: float) -> Tensor:
    """Read a part of one audio file without decoding what lies before it.

    Parameters
    ----------
    path : any file that libsndfile decodes
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


def _decoded_between(file: _Decoder, path: Path, first: int, last: int) -> np.ndarray:
    """Decode frames `first` to `last`, fewer if the file ends before: (frames,) float32, channels averaged."""
    if first >= file.frames:
        _refuse_incomplete(file, path, file.frames)
        return np.zeros(0, np.float32)
    if first:
        file.seek(first)
    mono = np.concatenate([np.zeros(0, np.float32), *_decoded(file, path, BLOCK_SECONDS, first, last)])
    ended = first + len(mono) < last
    _refuse_incomplete(file, path, first + len(mono) if ended else file.frames)
    return mono


@contextlib.contextmanager
def _opened(path: Path) -> Iterator[_Decoder]:
    """Open an audio file; whatever libsndfile says against it, then or later, becomes an AudioError."""
    if not path.is_file():
        raise AudioError(f"{path}: {_absence(path)}")
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples have no header that says their rate and format; convert it to WAV")
    try:
        if path.stat().st_size == 0:
            raise AudioError(f"{path}: the file is empty (0 bytes)")
        with path.open("rb"):  # libsndfile's own word for a lack of permission is "System error"
            pass
        # soundfile would encode the name itself, and fail where it is not text.
        with _Decoder(os.fsencode(path) if os.name == "posix" else os.fspath(path)) as file:
            if file.samplerate not in SAMPLE_RATES:
                raise AudioError(f"{path}: the header claims a sample rate of {file.samplerate} Hz; it is damaged")
            yield file
    except soundfile.SoundFileError as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise AudioError(
            f"{path}: not audio that libsndfile can decode, or damaged ({reason}); "
            "expected WAV, FLAC, Ogg, Opus, MP3, AIFF or the like"
        ) from error
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
    file: _Decoder, path: Path, block_seconds: float, first: int = 0, last: int = UNKNOWN_FRAMES
) -> Iterator[np.ndarray]:
    """Decode a file from frame `first`, where it stands, to `last` or its end: yields (frames,), channels averaged.

    float32 at the file's own rate.
    """
    # libsndfile fills what a file leaves of a block with zeros, which would take as long as decoding a short one.
    size = max(1, min(int(block_seconds * file.samplerate), BLOCK_VALUES // file.channels, file.frames))
    n_frames = first
    while len(frames := file.read(min(size, last - n_frames), dtype="float32", always_2d=True)):
        usable = np.abs(frames) <= LOUDEST  # False for NaN too
        if not usable.all():
            first, channel = np.argwhere(~usable)[0]
            raise AudioError(
                f"{path}: sample {frames[first, channel]:g} at {(n_frames + first) / file.samplerate:.3f} s; "
                f"expected finite numbers, nominally in [-1, 1], never beyond {LOUDEST:g}"
            )
        n_frames += len(frames)
        yield frames.mean(1)


def _refuse_incomplete(file: _Decoder, path: Path, n_frames: int) -> None:
    """Raise AudioError if less was decoded than the file should hold, or nothing at all."""
    if (file.format != "MP3" and n_frames < file.frames < UNKNOWN_FRAMES) or _lacks_bytes(file) or _lacks_end(path):
        raise AudioError(f"{path}: cut short after {n_frames / file.samplerate:.3f} s; copy or download it again")
    if n_frames == 0:
        raise AudioError(f"{path}: 0 samples; expected at least 1")


def _lacks_bytes(file: _Decoder) -> bool:
    """Tell whether a header claims more bytes than there are: libsndfile logs that and goes on with what there is."""
    # Of WAV and CAF, AIFF, AU, W64, RF64, in this order. The size of all of a WAV file is often wrong in whole ones.
    claims = re.findall(r"(?m)^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", file.extra_info)
    return any(int(actual) < int(claimed) < UNKNOWN_BYTES for claimed, actual in claims)


def _lacks_end(path: Path) -> bool:
    """Tell whether an Ogg file lacks its end: its last page must be complete and carry the flag "end of stream"."""
    with path.open("rb") as file:
        if file.read(4) != b"OggS":
            return False
        file.seek(-min(OGG_PAGE, path.stat().st_size), os.SEEK_END)
        tail = file.read()
    page = tail[tail.rfind(b"OggS") :]
    # Bytes of a page header: 5 flags, 26 number of segments, from 27 on their lengths (RFC 3533, section 6).
    complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
    return not (complete and page[5] & 4)
