"""Decoding with libsndfile: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ..."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import soundfile

from ..errors import AudioError
from .containers import UNKNOWN_BYTES

SUFFIXES = (
    ".aif", ".aifc", ".aiff", ".au", ".avr", ".bwf", ".caf", ".flac", ".ircam", ".mp1", ".mp2", ".mp3", ".mpc", ".nist",
    ".oga", ".ogg", ".opus", ".paf", ".pvf", ".rf64", ".sd2", ".sds", ".sf", ".snd", ".sph", ".svx", ".voc", ".w64",
    ".wav", ".wave", ".wve", ".xi",
)  # fmt: skip
"""Names of audio files in folders: what libsndfile decodes, but not .raw, which has no header, nor .mat and .htk, which
mostly hold matrices and features."""

UNKNOWN_FRAMES = 2**62
"""Lengths from here on mean that the header does not know it: libsndfile returns 2^63 - 1 for such a FLAC file."""

OGG_PAGE = 65_307
"""Largest page of an Ogg file in bytes (RFC 3533, section 6)."""

UNRECOGNISED = 1
"""libsndfile's error "Format not recognised" (SF_ERR_UNRECOGNISED_FORMAT)."""


class SndfileDecoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Decodes forward only.

    soundfile seeks after every read, to where it already is, which fails in a FLAC file of unknown length, and trusts
    the length in the header when it allocates. It does neither where a file cannot be sought.

    Parameters
    ----------
    opened : the file for libsndfile, by its name or a descriptor, which is closed in the end
    file : the same file for us
    """

    def __init__(self, opened: bytes | str | int, file: BinaryIO) -> None:
        super().__init__(opened)
        self.source = file

    def seekable(self) -> bool:
        """Return False, which keeps soundfile from seeking."""
        return False

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels) float32."""
        frames: np.ndarray = self.read(n_frames, dtype="float32", always_2d=True)
        return frames

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame that the file holds."""
        self.seek(n_frames)

    def seconds(self) -> float | None:
        """Return the duration in the header, None if unknown; an MP3's may be a guess, and far too long."""
        if self.frames >= UNKNOWN_FRAMES or (self._is_mp3() and not self._reaches(self.frames)):
            return None
        return self.frames / self.samplerate

    def _is_mp3(self) -> bool:
        """Return True for an MP3, in a WAV file perhaps: its length may be a guess."""
        return self.subtype.startswith("MPEG_LAYER")

    def _reaches(self, n_frames: int) -> bool:
        try:
            self.seek(max(0, n_frames - 1))
            return len(self.read(1)) == 1
        except soundfile.SoundFileError:
            return False

    def is_cut_short(self, n_frames: int) -> bool:
        """Return True if a file that ended after `n_frames` should hold more; nothing is decoded after this."""
        known = not self._is_mp3() and self.frames < UNKNOWN_FRAMES
        return (known and n_frames < self.frames) or self._lacks_bytes() or self._lacks_end()

    def _lacks_bytes(self) -> bool:
        """Return True if a header claims more bytes than there are: libsndfile logs that and reads what there is."""
        # Of WAV and CAF, AIFF, AU, W64, RF64, in this order. The size of all of a WAV is often wrong in whole files.
        claim = r"(?m)^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)"
        claims = re.findall(claim, self.extra_info)
        return any(int(actual) < int(claimed) < UNKNOWN_BYTES for claimed, actual in claims)

    def _lacks_end(self) -> bool:
        """Return True for an Ogg file unless its last page is complete and carries the flag "end of stream"."""
        self.source.seek(0)
        if self.source.read(4) != b"OggS":
            return False
        self.source.seek(-min(OGG_PAGE, os.fstat(self.source.fileno()).st_size), os.SEEK_END)
        tail = self.source.read()
        page = tail[tail.rfind(b"OggS") :]
        # Bytes of a page header: 5 flags, 26 number of segments, from 27 on their lengths (RFC 3533, section 6).
        complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return not (complete and page[5] & 4)


@contextlib.contextmanager
def opened(file: BinaryIO, path: Path) -> Iterator[SndfileDecoder]:
    """Open a decoder at the start of an unbuffered file; whatever libsndfile raises becomes an AudioError."""
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples have no header that says their rate and format; convert it to WAV")
    try:
        with _decoder(file, path) as decoder:
            if decoder.format == "RAW":  # libsndfile went by the name: .au, .snd, .vox, .gsm
                raise AudioError(f"{path}: not audio, or raw samples without a header; convert it to WAV")
            yield decoder
    except soundfile.SoundFileError as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise AudioError(
            f"{path}: not audio that libsndfile can decode, or damaged ({reason}); "
            "expected WAV, FLAC, Ogg, Opus, MP3, AIFF or the like"
        ) from error


def _decoder(file: BinaryIO, path: Path) -> SndfileDecoder:
    """Open by the descriptor, and by the name if libsndfile does not recognise the content: it then goes by the suffix.

    An MP3 behind other bytes is found so. On Windows, a descriptor of Python's may mean nothing to libsndfile.
    """
    if os.name != "posix":
        return SndfileDecoder(os.fspath(path), file)
    file.seek(0)
    try:
        return SndfileDecoder(os.dup(file.fileno()), file)
    except soundfile.LibsndfileError as error:
        if error.code != UNRECOGNISED:
            raise
    return SndfileDecoder(os.fsencode(path), file)  # soundfile would encode the name, and fail where it is not text
