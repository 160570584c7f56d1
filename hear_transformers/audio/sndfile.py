"""Decoding with libsndfile: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ..."""

from __future__ import annotations

import contextlib
import functools
import io
import os
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import BinaryIO, Literal

import numpy as np
import soundfile

from ..errors import AudioError
from .views import Piece, Survey, View

SUFFIXES = (
    ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".ircam", ".mp1", ".mp2", ".mp3", ".mpc", ".nist",
    ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64",
    ".wav", ".wave", ".wve", ".xi",
)  # fmt: skip
"""Names of audio files in folders: what libsndfile decodes, but not .raw, which has no header, nor .mat and .htk, which
mostly hold matrices and features."""

LISTS = (".csv", ".tsv", ".txt", ".parquet")
"""Names of what is meant as a list of files where it is not audio."""

UNKNOWN_FRAMES = 2**62
"""Lengths from here on mean that the header does not know it: libsndfile returns 2^63 - 1 for such a FLAC file."""

UNRECOGNISED = 1
"""libsndfile's error "Format not recognised" (SF_ERR_UNRECOGNISED_FORMAT)."""


SOUGHT_SECONDS = 30.0
"""Up to this place in s, an MP3 is decoded from its beginning, in 0.05 s."""

ROLLED_FRAMES = 48 * 1152
"""Samples that are decoded before a place in an MP3. The bits of a frame begin up to 511 bytes before it (ISO/IEC
11172-3, 2.4.1.7); the smallest frame, of 8 kbit/s at 24 kHz, has 24, of which 11 hold bits."""

SKIPPED_FRAMES = 2**16
"""Frames decoded at once before those."""

SOUGHT = {*(f"PCM_{name}" for name in ("S8", "U8", "16", "24", "32")), "FLOAT", "DOUBLE", "ULAW", "ALAW", "VORBIS"}
"""Codecs, FLAC's PCM among them, in which libsndfile finds any frame, and the samples from there on are the same. Those
of Opus and MP3 depend on what was decoded before."""

INTEGERS = "PCM_16"
"""The only encoding whose samples are decoded as they are in the file; all others become float32."""

FOUND_FRAMES = 64
"""Where decoding fails, what comes before is decoded again in blocks of this many frames, up to there."""


class RefusedError(AudioError):
    """libsndfile does not recognise a file, or does not know its codec."""


class Stream(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Decodes one stream, forward only.

    soundfile seeks after every read, to where it already is, which fails in a FLAC file of unknown length, and trusts
    the length in the header when it allocates. It does neither where a file cannot be sought.

    Parameters
    ----------
    opened : the file for libsndfile, by its name, a descriptor, which is closed in the end, or a view of it
    is_alone : whether it is all there is of the file: only then are its samples decoded as they are in it

    Attributes
    ----------
    dtype : of the samples, "int16" or "float32"
    """

    def __init__(self, opened: bytes | str | int | View, *, is_alone: bool = False) -> None:
        super().__init__(opened)
        self.dtype: Literal["int16", "float32"] = "int16" if is_alone and self.subtype == INTEGERS else "float32"
        self.view = opened if isinstance(opened, View) else None

    def seekable(self) -> bool:
        """Return False, which keeps soundfile from seeking."""
        return False

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels)."""
        frames: np.ndarray = self.read(n_frames, dtype=self.dtype, always_2d=True)
        if self.view is not None and self.view.error is not None:
            raise self.view.error
        return frames


class SndfileDecoder:
    """Decodes the streams of a file one after the other, forward only.

    Parameters
    ----------
    openers : open each stream
    survey : what was found out about the file
    path : for messages

    Attributes
    ----------
    samplerate, channels : of the first stream; other channels later are averaged
    frames : number of frames, `UNKNOWN_FRAMES` or more if unknown
    is_sought : whether any frames can be decoded without those before; see `SOUGHT`
    notes : what a user is to be warned of
    damage : what is wrong with the audio, empty if nothing is, as far as it was decoded
    """

    def __init__(self, openers: Sequence[Callable[[], Stream]], survey: Survey, path: Path) -> None:
        self.openers = openers
        self.survey = survey
        self.path = path
        self.notes: Sequence[str] = survey.notes
        self.damage = survey.damage
        self.is_over = False  # since the audio is damaged here
        self.number, self.stream = 0, openers[0]()
        self.samplerate, self.channels = self.stream.samplerate, self.stream.channels
        self.position = 0  # in the stream
        self.lengths = [self.stream.frames, *map(self._length, openers[1:])]
        self.frames = sum(self.lengths)
        is_known = self.frames < UNKNOWN_FRAMES and survey.is_exact and not survey.damage
        self.is_sought = is_known and len(openers) == 1 and self.stream.subtype in SOUGHT

    def _length(self, opener: Callable[[], Stream]) -> int:
        """Return the frames of a stream behind the first one, which must have the same sample rate."""
        with opener() as stream:
            if stream.samplerate != self.samplerate:
                raise AudioError(
                    f"{self.path}: the sample rate changes from {self.samplerate} to {stream.samplerate} Hz; "
                    "convert it to WAV, or split it"
                )
            return int(stream.frames)

    def close(self) -> None:
        """Close the stream that is open."""
        self.stream.close()

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end of a stream, none at that of the last: (frames, channels).

        Samples are int16 in a file of one stream of 16 bits, which takes a fifth of the time, else float32. Decoding
        ends at the first damage.
        """
        while not len(frames := self._decode(n_frames)) and not self.is_over and self.number + 1 < len(self.openers):
            self._open(self.number + 1)
        if frames.shape[1] == self.channels:
            return frames
        return np.repeat(frames.mean(1, keepdims=True), self.channels, axis=1)  # (frames, 1) -> (frames, channels)

    def _open(self, number: int) -> None:
        self.stream.close()
        self.number, self.position, self.stream = number, 0, self.openers[number]()

    def _decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames of the stream that is open."""
        if self.is_over:
            return np.zeros((0, self.channels), self.stream.dtype)
        # Never beyond the end, where a FLAC decoder would look for more in what lies behind.
        n_frames = min(n_frames, max(0, self.lengths[self.number] - self.position))
        try:
            frames = self.stream.decode(n_frames)
        except soundfile.SoundFileError as error:
            self.damage = f"damaged: {_reason(error)}"
            frames = self._up_to_damage(n_frames)
        self.position += len(frames)
        return frames

    def _up_to_damage(self, n_frames: int) -> np.ndarray:
        """Decode what comes before an error in the next frames: soundfile keeps nothing of these."""
        self.is_over = True
        position = self.position
        self._open(self.number)
        parts = [np.zeros((0, self.stream.channels), self.stream.dtype)]
        with contextlib.suppress(soundfile.SoundFileError):
            while position > 0 and len(frames := self.stream.decode(min(position, SKIPPED_FRAMES))):
                position -= len(frames)
            while n_frames > 0 and len(frames := self.stream.decode(min(n_frames, FOUND_FRAMES))):
                parts.append(frames)
                n_frames -= len(frames)
        return np.concatenate(parts)

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame that the file holds."""
        number = 0
        while number + 1 < len(self.lengths) and n_frames >= self.lengths[number]:
            n_frames -= self.lengths[number]
            number += 1
        if number:
            self._open(number)
        if self.stream.subtype.startswith("MPEG_LAYER"):
            self._skip_mpeg(n_frames)
        else:
            try:
                self.stream.seek(n_frames)
            except soundfile.SoundFileError:  # it cannot in GSM, G.721, G.723, DPCM, DWVW, ...
                self._open(number)
                self._decode_up_to(n_frames)
        self.position = n_frames

    def _skip_mpeg(self, n_frames: int) -> None:
        """Go to a frame of an MP3, which is decoded with the bits of those before.

        Where libmpg123 seeks, it decodes too few of them for low bit rates, and complains of it on stderr.
        """
        if n_frames > SOUGHT_SECONDS * self.samplerate:
            self.stream.seek(n_frames - ROLLED_FRAMES)
            n_frames = ROLLED_FRAMES
        self._decode_up_to(n_frames)

    def _decode_up_to(self, n_frames: int) -> None:
        """Decode the next frames for nothing."""
        while n_frames > 0 and len(frames := self.stream.decode(min(n_frames, SKIPPED_FRAMES))):
            n_frames -= len(frames)

    def seconds(self) -> float | None:
        """Return the duration, None if it is unknown."""
        if self.damage or self.frames >= UNKNOWN_FRAMES or not self.survey.is_exact:
            return None
        return self.frames / self.samplerate

    def flaw(self, n_frames: int) -> str:
        """Return what is wrong with a file that ended after `n_frames`, empty if nothing is."""
        if self.damage or not self.survey.is_counted:
            return self.damage
        return "cut short" if n_frames < self.frames < UNKNOWN_FRAMES else ""


@contextlib.contextmanager
def opened(file: BinaryIO, path: Path, n_bytes: int, found: Survey) -> Iterator[SndfileDecoder]:
    """Open a decoder of what was found in a file; whatever libsndfile raises becomes an AudioError.

    Raises
    ------
    RefusedError : on entering: it is not for libsndfile
    """
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples have no header that says their rate and format; convert it to WAV")
    try:
        decoder = _decoder(file, path, n_bytes, found)
    except soundfile.SoundFileError as error:
        is_list = path.suffix.lower() in LISTS
        raise RefusedError(
            f"{path}: not audio that libsndfile can decode, or damaged ({_reason(error)}); "
            f"expected WAV, FLAC, Ogg, Opus, MP3, AIFF or the like{'; embed-audio --manifest reads lists' * is_list}"
        ) from error
    with contextlib.closing(decoder):
        if decoder.stream.format == "RAW":  # libsndfile went by the name: .au, .snd, .vox, .gsm
            raise RefusedError(f"{path}: not audio, or raw samples without a header; convert it to WAV")
        try:
            yield decoder
        except soundfile.SoundFileError as error:
            raise AudioError(f"{path}: damaged ({_reason(error)}); copy or download it again") from error


def _reason(error: soundfile.SoundFileError) -> str:
    """Return the words of libsndfile."""
    return str(error).rpartition(": ")[2].rstrip(".")


def _decoder(file: BinaryIO, path: Path, n_bytes: int, found: Survey) -> SndfileDecoder:
    """Open a file as it is, or the streams that were found in it where libsndfile would not find the same."""
    if found.is_plain or not found.streams:
        decoder = SndfileDecoder([functools.partial(_whole, file, path, n_bytes)], found, path)
        if decoder.frames >= found.least_frames:
            return decoder
        decoder.close()
    is_alone = len(found.streams) == 1
    return SndfileDecoder([functools.partial(_part, file, pieces, is_alone) for pieces in found.streams], found, path)


def _part(file: BinaryIO, pieces: Sequence[Piece], is_alone: bool) -> Stream:
    """Open a part of a file."""
    return Stream(View(file, pieces), is_alone=is_alone)


def _whole(file: BinaryIO, path: Path, n_bytes: int) -> Stream:
    """Open by the descriptor, and by the name if libsndfile does not recognise the content: it then goes by the suffix.

    On Windows, a descriptor of Python's may mean nothing to libsndfile. A file that is not one of the system's, or that
    has a buffer, is read by its methods.
    """
    if not isinstance(file, io.FileIO):
        return Stream(View(file, [range(n_bytes)]), is_alone=True)
    if os.name != "posix":
        return Stream(os.fspath(path), is_alone=True)
    file.seek(0)
    try:
        return Stream(os.dup(file.fileno()), is_alone=True)
    except soundfile.LibsndfileError as error:
        if error.code != UNRECOGNISED:
            raise
    # soundfile would encode the name, and fail where it is not text
    return Stream(os.fsencode(path), is_alone=True)
