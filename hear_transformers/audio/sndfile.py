"""What libsndfile decodes: WAV, FLAC, Ogg Vorbis, Opus, MP3, AIFF, CAF, ..."""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Iterator
from pathlib import Path

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
"""libsndfile's length of a FLAC file whose header does not know it, 2^63 - 1, and anything like it."""

OGG_PAGE = 65_307
"""Largest page of an Ogg file in bytes (RFC 3533, section 6)."""


class Decoder(soundfile.SoundFile):  # type: ignore[misc]  # soundfile is untyped
    """Decodes forward only.

    soundfile seeks after every read, to where it already is, which fails in a FLAC file of unknown length, and trusts
    the length in the header when it allocates. It does neither for what cannot be sought.
    """

    def seekable(self) -> bool:
        """Say what keeps soundfile from seeking."""
        return False

    def decode(self, n_frames: int) -> np.ndarray:
        """Decode the next frames, fewer at the end: (frames, channels) float32."""
        frames: np.ndarray = self.read(n_frames, dtype="float32", always_2d=True)
        return frames

    def skip(self, n_frames: int) -> None:
        """Go from the beginning to a frame that the file holds."""
        self.seek(n_frames)

    def seconds(self) -> float | None:
        """Give the duration that the header knows; that of an MP3 may only let it be guessed, far too long."""
        if self.frames >= UNKNOWN_FRAMES or (self._is_mp3() and not self._reaches(self.frames)):
            return None
        return self.frames / self.samplerate

    def _is_mp3(self) -> bool:
        """Tell whether this is an MP3, in a WAV file perhaps: its length may be a guess."""
        return self.subtype.startswith("MPEG_LAYER")

    def _reaches(self, n_frames: int) -> bool:
        try:
            self.seek(max(0, n_frames - 1))
            return len(self.read(1)) == 1
        except soundfile.SoundFileError:
            return False

    def is_cut_short(self, n_frames: int) -> bool:
        """Tell whether a file that ended after so many frames should hold more."""
        known = not self._is_mp3() and self.frames < UNKNOWN_FRAMES
        return (known and n_frames < self.frames) or self._lacks_bytes() or self._lacks_end()

    def _lacks_bytes(self) -> bool:
        """Tell whether a header claims more bytes than there are: libsndfile logs that and reads what there is."""
        # Of WAV and CAF, AIFF, AU, W64, RF64, in this order. The size of all of a WAV is often wrong in whole files.
        claims = re.findall(
            r"(?m)^ *(?:data|SSND|Data Size|riff|Riff size) *: (\d+) \(should be (\d+)\)", self.extra_info
        )
        return any(int(actual) < int(claimed) < UNKNOWN_BYTES for claimed, actual in claims)

    def _lacks_end(self) -> bool:
        """Tell whether an Ogg file lacks its end: its last page must be complete and carry the flag "end of stream"."""
        with open(self.name, "rb") as file:
            if file.read(4) != b"OggS":
                return False
            file.seek(-min(OGG_PAGE, os.fstat(file.fileno()).st_size), os.SEEK_END)
            tail = file.read()
        page = tail[tail.rfind(b"OggS") :]
        # Bytes of a page header: 5 flags, 26 number of segments, from 27 on their lengths (RFC 3533, section 6).
        complete = len(page) > 27 and len(page) >= 27 + page[26] + sum(page[27 : 27 + page[26]])
        return not (complete and page[5] & 4)


@contextlib.contextmanager
def opened(path: Path) -> Iterator[Decoder]:
    """Open an audio file; whatever libsndfile says against it, then or later, becomes an AudioError."""
    if path.suffix.lower() == ".raw":
        raise AudioError(f"{path}: raw samples have no header that says their rate and format; convert it to WAV")
    try:
        # soundfile would encode the name itself, and fail where it is not text.
        with Decoder(os.fsencode(path) if os.name == "posix" else os.fspath(path)) as file:
            if file.format == "RAW":  # libsndfile knows no such content, and went by the name: .au, .snd, .vox, .gsm
                raise AudioError(f"{path}: not audio, or raw samples without a header; convert it to WAV")
            yield file
    except soundfile.SoundFileError as error:
        reason = str(error).rpartition(": ")[2].rstrip(".")
        raise AudioError(
            f"{path}: not audio that libsndfile can decode, or damaged ({reason}); "
            "expected WAV, FLAC, Ogg, Opus, MP3, AIFF or the like"
        ) from error
