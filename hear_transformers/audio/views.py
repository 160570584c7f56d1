"""What was found out about a file, and the view of it that libsndfile is to have: parts of it, with a mended header."""

from __future__ import annotations

import bisect
import os
import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import accumulate
from typing import BinaryIO

Piece = bytes | range
"""Bytes of our own, or the range of the file where they are."""


@dataclass(frozen=True, slots=True)
class Survey:
    """What of a file, or of a part of it, is audio.

    Attributes
    ----------
    streams : pieces of each stream of it, which libsndfile is to read one after the other as files of their own
    is_plain : whether libsndfile finds the same by itself
    notes : what a user is to be warned of
    damage : what is wrong with the end of the audio, empty if it is whole
    is_counted : whether less audio than libsndfile counts is damage
    is_exact : whether libsndfile counts the frames of each stream exactly
    least_frames : libsndfile finds the same by itself only if it counts as many frames
    following : where another file begins behind this one, None if none does
    """

    streams: tuple[tuple[Piece, ...], ...] = ()
    is_plain: bool = True
    notes: tuple[str, ...] = ()
    damage: str = ""
    is_counted: bool = True
    is_exact: bool = True
    least_frames: int = 0
    following: int | None = None


MOST_TIMES = 100
"""A header that counts more times the audio that is there is no recorder's fault, whatever else speaks for that."""


def miscounted(claimed: float, found: float) -> str:
    """Return the warning about a header that counts other seconds than there are."""
    return f"the header counts {claimed:.7g} s of audio, {found:.7g} s are there"


def unread(n_bytes: int) -> str:
    """Return the warning about bytes that may be audio or not."""
    return f"{n_bytes} bytes behind the end of its audio are not read"


class View:
    """Pieces of a file as a file, for libsndfile: it reads them by `read`, `seek` and `tell`.

    Parameters
    ----------
    file : that is sought in before each reading
    pieces : that follow each other

    Attributes
    ----------
    error : what the file raised, which libsndfile would print
    """

    def __init__(self, file: BinaryIO, pieces: Iterable[Piece]) -> None:
        self.file = file
        self.pieces = [piece for piece in pieces if len(piece)]
        self.starts = [0, *accumulate(map(len, self.pieces))]
        self.position = 0
        self.error: OSError | None = None

    def tell(self) -> int:
        """Return the position."""
        return self.position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Go to a position, as that of a file."""
        base = {os.SEEK_SET: 0, os.SEEK_CUR: self.position, os.SEEK_END: self.starts[-1]}[whence]
        self.position = max(0, base + offset)
        return self.position

    def read(self, size: int) -> bytes:
        """Read up to `size` bytes, fewer at the end."""
        parts = []
        while size > 0 and self.position < self.starts[-1]:
            number = bisect.bisect_right(self.starts, self.position) - 1
            part = self._part(self.pieces[number], self.position - self.starts[number], size)
            if not part:
                break
            parts.append(part)
            self.position += len(part)
            size -= len(part)
        return b"".join(parts)

    def _part(self, piece: Piece, first: int, size: int) -> bytes:
        if isinstance(piece, bytes):
            return piece[first : first + size]
        where = piece[first : first + size]
        try:
            self.file.seek(where.start)
            return self.file.read(len(where)) or b""
        except OSError as error:
            self.error = error
            return b""


def patched(whole: range, patches: dict[int, bytes]) -> tuple[Piece, ...]:
    """Return the pieces of a range of a file in which some bytes, by their position, are others."""
    pieces: list[Piece] = []
    position = whole.start
    for place, new in sorted(patches.items()):
        pieces += [range(position, place), new]
        position = place + len(new)
    return (*pieces, range(position, whole.stop))


def bytes_at(file: BinaryIO, position: int, size: int) -> bytes:
    """Read bytes at a position, fewer at the end of the file."""
    file.seek(position)
    parts = []
    while size > 0 and (part := file.read(size)):  # an unbuffered file may return less
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


MOST_TAGS = 100
"""Tags in front of a file that are looked at."""


def id3_bytes(head: bytes) -> int:
    """Return the size of a tag ID3v2 by its first ten bytes, 0 if it is none."""
    if head[:3] != b"ID3" or len(head) < 10:
        return 0
    # Four times seven bits of size, and a footer by a flag (ID3v2.4.0, section 3.1).
    size = sum(byte << 7 * place for byte, place in zip(head[6:10], (3, 2, 1, 0), strict=True))
    return 10 + size + (10 if head[5] & 0x10 else 0)


def behind_id3(file: BinaryIO, position: int) -> int:
    """Return the end of the tags ID3v2 that begin at a position, which is itself where there is none."""
    for _ in range(MOST_TAGS):
        size = id3_bytes(bytes_at(file, position, 10))
        if not size:
            break
        position += size
    return position


TAGS = (
    re.compile(rb"TAG.{125}", re.DOTALL),
    re.compile(rb"APETAGEX"),
    re.compile(rb"ID3[\x02-\x04]"),
    re.compile(rb"LYRICSBEGIN"),
    re.compile(rb"<\?xml|<x:xmpmeta"),
)  # fmt: skip
"""Beginnings of tags that programs append to audio of any format: ID3v1 and v2, APEv2, Lyrics3, XMP."""

LOOKED_AT = 2**16
"""Bytes that are looked at at once to see what they are."""

PRINTABLE = bytes([*b"\t\n\r", *range(0x20, 0x7F)])


def is_other(file: BinaryIO, start: int, end: int) -> bool:
    """Return True if a range of a file is clearly no audio: tags, text, or the same byte again and again."""
    sample = bytes_at(file, start, min(LOOKED_AT, end - start))
    text = sample.strip(b"\0")
    if any(tag.match(text) for tag in TAGS) or (text and not text.translate(None, PRINTABLE)):
        return True
    fill = sample[:1]
    while start < end and not sample.strip(fill):
        start += len(sample)
        sample = bytes_at(file, start, min(LOOKED_AT, end - start))
    return start >= end
