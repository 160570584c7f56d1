"""The frames of an MP3, counted: its header counts them wrongly or not at all, and joined files have several.

The end of an MP3 is where its frames end. libsndfile takes a guess for it where the header of the first frame is
missing, and stops there.
"""

from __future__ import annotations

import functools
import re
import struct
from dataclasses import dataclass, field
from typing import BinaryIO, NamedTuple

from .views import Piece, Survey, bytes_at, id3_bytes, is_other, miscounted, unread

BUFFER_BYTES = 2**20

LEAST_ROOM = 4096
"""Bytes that are always read ahead: more than the largest frame, 2,881, and the beginning of the next."""

BIT_RATES = {
    (3, 1): (32, 64, 96, 128, 160, 192, 224, 256, 288, 320, 352, 384, 416, 448),
    (3, 2): (32, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320, 384),
    (3, 3): (32, 40, 48, 56, 64, 80, 96, 112, 128, 160, 192, 224, 256, 320),
    (2, 1): (32, 48, 56, 64, 80, 96, 112, 128, 144, 160, 176, 192, 224, 256),
    (2, 2): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
    (2, 3): (8, 16, 24, 32, 40, 48, 56, 64, 80, 96, 112, 128, 144, 160),
}
"""kbit/s by (version, layer) and number - 1 (ISO/IEC 11172-3, 2.4.2.3; ISO/IEC 13818-3, 2.4.2.3); MPEG-2.5 as 2."""

RATES = {3: (44_100, 48_000, 32_000), 2: (22_050, 24_000, 16_000), 0: (11_025, 12_000, 8_000)}
"""Hz by version: MPEG-1, 2 and 2.5."""


class Form(NamedTuple):
    """What the second and third byte of a frame's header say.

    Attributes
    ----------
    length : of the frame, in bytes
    kind : version, layer and sample rate in Hz, which do not change within a stream
    samples : of each channel
    """

    length: int
    kind: tuple[int, int, int]
    samples: int


@functools.cache
def form_of(second: int, third: int) -> Form | None:
    """Decode the second and third byte of a frame's header; None if they are none, or of free format."""
    version, layer = second >> 3 & 3, 4 - (second >> 1 & 3)
    rate_number, bit_rate_number = third >> 2 & 3, third >> 4
    if second < 0xE0 or version == 1 or layer == 4 or rate_number == 3 or bit_rate_number in (0, 15):
        return None
    rate = RATES[version][rate_number]
    bits = 1000 * BIT_RATES[3 if version == 3 else 2, layer][bit_rate_number - 1]
    padding = third >> 1 & 1
    samples = 384 if layer == 1 else 576 if layer == 3 and version != 3 else 1152
    length = (12 * bits // rate + padding) * 4 if layer == 1 else samples // 8 * bits // rate + padding
    return Form(length, (version, layer, rate), samples)


class Header(NamedTuple):
    """The header Xing, Info (LAME) or VBRI (Fraunhofer), in a frame of its own.

    Attributes
    ----------
    name : b"Xing", b"Info" or b"VBRI"
    count_at : position of the number of frames, None if there is none
    n_frames : that number
    n_bytes : of all frames, 0 if unknown
    """

    name: bytes
    count_at: int | None
    n_frames: int
    n_bytes: int


@dataclass(slots=True)
class Stream:
    """Frames that belong together.

    Attributes
    ----------
    form : of the first frame
    first : header of the first frame, 4 bytes
    begin, end : positions
    header : Xing, Info or VBRI, None if it has none; `header_end` is that of its frame
    frames : number of frames beside the header
    gaps : ranges inside that are no frames
    """

    form: Form
    first: bytes
    begin: int
    end: int
    header: Header | None = None
    header_end: int = 0
    frames: int = 0
    gaps: list[range] = field(default_factory=list)

    @property
    def count(self) -> int | None:
        """Number of frames in the header, None if it has none."""
        return None if self.header is None or self.header.count_at is None else self.header.n_frames

    def lacks_bytes(self) -> bool:
        """Return True if the header counts more bytes than there are."""
        there = self.end - self.begin + MISCOUNTED_FRAMES * self.form.length
        return self.header is not None and self.header.n_bytes > there

    def pieces(self) -> tuple[Piece, ...]:
        """Return its frames behind a header with the right counts."""
        count = struct.pack(">I", self.frames)
        n_bytes = struct.pack(">I", min(self.end - self.begin - sum(map(len, self.gaps)), 2**32 - 1))
        header, body = self.header, self.header_end or self.begin
        pieces: list[Piece] = []
        if header is not None and header.count_at is not None and header.name != b"VBRI":
            counts = count + n_bytes if header.n_bytes else count
            pieces += [range(self.begin, header.count_at), counts, range(header.count_at + len(counts), body)]
        elif self.form.kind[1] == 3:
            pieces.append(self._new_header(count))
        for gap in self.gaps:
            pieces.append(range(body, gap.start))
            body = gap.stop
        return (*pieces, range(body, self.end))

    def _new_header(self, count: bytes) -> bytes:
        """Return a frame that holds the count alone, as long as one of 128 or 80 kbit/s."""
        second, third = self.first[1] | 1, 0x90 | self.first[2] & 0x0C  # without a checksum, without padding
        form = form_of(second, third)
        assert form is not None
        head = bytes([0xFF, second, third, self.first[3]])
        return (head + bytes(side_bytes(head)) + b"Info" + struct.pack(">I", 1) + count).ljust(form.length, b"\0")


def side_bytes(head: bytes) -> int:
    """Return the length of the side information of a frame of layer III (ISO/IEC 11172-3, 2.4.1.7)."""
    is_mono, is_mpeg1 = head[3] >> 6 == 3, head[1] >> 3 & 3 == 3
    return (17 if is_mono else 32) if is_mpeg1 else (9 if is_mono else 17)


MISCOUNTED_FRAMES = 2
"""Frames by which the number of bytes in a header may be off: its own, and one of padding."""


def survey(file: BinaryIO, begin: int, n_bytes: int, *, inside: bool = False) -> Survey | None:
    """Survey an MP3 in the bytes from `begin` to `n_bytes`; return None if it is none.

    Parameters
    ----------
    inside : whether another file is around it
    """
    streams = [stream for stream in _scan(file, begin, n_bytes) if stream.frames]
    if not streams:
        return None
    first, last = streams[0], streams[-1]
    n_lost = sum(len(gap) for stream in streams for gap in stream.gaps)
    if 2 * n_lost > last.end - first.begin:
        return None  # not music: frames by chance
    is_partial = last.end < n_bytes and not is_other(file, last.end, n_bytes)
    is_cut = is_partial or last.gaps or last.lacks_bytes()
    damage = "cut short" if last.count is not None and last.count > last.frames + 1 and is_cut else ""
    notes = [] if damage else _miscounted(streams)
    if is_partial and last.count is None:
        notes.append("its last frame is incomplete: there may have been more")
    elif is_partial and not damage:
        notes.append(unread(n_bytes - last.end))
    if n_lost:
        notes.append(f"{n_lost} bytes between its frames are no MP3 and were left out")
    is_right = all(stream.count in (stream.frames, stream.frames + 1) for stream in streams)
    is_plain = len(streams) == 1 and begin == 0 and not inside and not n_lost and (is_right or first.header is None)
    is_plain = is_plain and (first.header is None or abs(n_bytes - first.begin - first.header.n_bytes) < n_bytes // 200)
    least = 0 if is_right else first.frames * first.form.samples
    pieces = tuple(stream.pieces() for stream in streams)
    return Survey(pieces, is_plain, tuple(notes), damage, False, is_right, least)


def _miscounted(streams: list[Stream]) -> list[str]:
    """Return warnings about wrong counts; the first of joined files may count the frames of all."""
    total = sum(stream.frames for stream in streams)
    notes = []
    for stream in streams:
        right = {stream.frames, stream.frames + 1, *range(total, total + len(streams) + 1)}
        if stream.count is not None and stream.count not in right:
            claimed, found = (n * stream.form.samples / stream.form.kind[2] for n in (stream.count, stream.frames))
            notes.append(miscounted(claimed, found))
    return notes


MOST_PIECES = 100_000
"""Streams, and beginnings of frames that are none; with more, or more than frames, the file is none of music."""

FALSE_STARTS = 16
"""As many there may be in any file."""


def _scan(file: BinaryIO, begin: int, n_bytes: int) -> list[Stream]:
    """Find the streams in a range of a file; none if there are absurdly many."""
    streams: list[Stream] = []
    stream: Stream | None = None
    position, buffer, base, n_pieces = begin, b"", begin, 0
    while position + 4 <= n_bytes and n_pieces <= MOST_PIECES:
        offset = position - base
        if offset + LEAST_ROOM > len(buffer) and base + len(buffer) < n_bytes:
            buffer, base, offset = bytes_at(file, position, min(BUFFER_BYTES, n_bytes - position)), position, 0
            if len(buffer) < 4:
                break
        if stream is not None and stream.end == position:
            n_frames, offset = _following(buffer, offset, stream.form.kind, len(buffer) - LEAST_ROOM)
            stream.frames += n_frames
            stream.end = position = base + offset
        form = form_of(buffer[offset + 1], buffer[offset + 2]) if buffer[offset] == 0xFF else None
        if form is None or position + form.length > n_bytes:
            n_pieces += 1
            skipped, is_tag = _behind(buffer, offset)
            position += skipped
            stream = None if is_tag else stream  # behind a tag begins another file, if any
            continue
        is_next = stream is not None and stream.end == position and stream.form.kind == form.kind
        if not (is_next or _is_followed(buffer, offset, form, n_bytes - base)):
            n_pieces += 1
            position += 1
            continue
        header = _header(buffer, offset, position)
        if stream is None or header is not None or stream.form.kind != form.kind:
            stream = Stream(form, buffer[offset : offset + 4], position, position, header)
            streams.append(stream)
            n_pieces += 1
        elif not is_next:
            stream.gaps.append(range(stream.end, position))
        position += form.length
        stream.end = position
        if header is None:
            stream.frames += 1
        else:
            stream.header_end = position
    n_frames = sum(stream.frames for stream in streams)
    return streams if n_pieces <= min(MOST_PIECES, FALSE_STARTS + n_frames) else []


def _following(buffer: bytes, offset: int, kind: tuple[int, int, int], stop: int) -> tuple[int, int]:
    """Count the frames of audio of a kind that follow each other up to a place; return their end, too.

    Most frames are among these, and so it must take little to look at one: a minute has thousands.
    """
    n_frames = 0
    while offset < stop and buffer[offset] == 0xFF:
        form = form_of(buffer[offset + 1], buffer[offset + 2])
        if form is None or form.kind != kind or offset + form.length > stop:
            break
        names = buffer[offset + 13 : offset + 17], buffer[offset + 21 : offset + 25], buffer[offset + 36 : offset + 40]
        if not NAMES.isdisjoint(names):
            break
        offset += form.length
        n_frames += 1
    return n_frames, offset


def _is_followed(buffer: bytes, offset: int, form: Form, end: int) -> bool:
    """Return True if a frame of the same kind follows, a tag, or the end."""
    place = offset + form.length
    if place >= end or _behind(buffer, place)[1]:
        return True
    if place + 3 > len(buffer) or buffer[place] != 0xFF:
        return False
    after = form_of(buffer[place + 1], buffer[place + 2])
    return after is not None and after.kind == form.kind


def _behind(buffer: bytes, offset: int) -> tuple[int, bool]:
    """Return by how many bytes to go on where no frame begins, and whether these are a tag."""
    if size := id3_bytes(buffer[offset : offset + 10]):
        return size, True
    if buffer.startswith(b"TAG", offset):
        return 128, True
    if buffer.startswith(b"APETAGEX", offset) and offset + 24 <= len(buffer):
        size, _, flags = struct.unpack("<III", buffer[offset + 12 : offset + 24])
        return (32 + size if flags & 1 << 29 else 32), True  # a header, else the footer alone is left
    found = BEGINNING.search(buffer, offset + 1)
    return (found.start() - offset if found else max(1, len(buffer) - offset - 8)), False


BEGINNING = re.compile(rb"\xff[\xe2-\xe7\xf2-\xff][\x10-\xef]|ID3|TAG|APETAGEX")
"""How frames and tags begin; not 0xFF again and again, as in an erased memory."""


NAMES = frozenset([b"Xing", b"Info", b"VBRI"])
"""Of headers. They lie 13, 21 or 36 bytes behind the beginning of a frame, see `side_bytes`."""


def _header(buffer: bytes, offset: int, position: int) -> Header | None:
    """Read the header in a frame, None if it is a frame of audio."""
    near = buffer[offset + 13 : offset + 40]  # where the shortest and the longest side information end
    if not any(name in near for name in NAMES):
        return None
    place = offset + 4 + side_bytes(buffer[offset : offset + 4])
    fields = buffer[place : place + 16].ljust(16, b"\0")
    if fields[:4] in (b"Xing", b"Info"):  # flags, then the number of frames (1) and of bytes (2) if they are set
        flags, first, second = struct.unpack(">III", fields[4:])
        n_bytes = (second if flags & 1 else first) if flags & 2 else 0
        return Header(fields[:4], position + place + 8 - offset if flags & 1 else None, first, n_bytes)
    fields = buffer[offset + 36 : offset + 54].ljust(18, b"\0")
    if fields[:4] == b"VBRI":  # version, delay, quality, number of bytes and of frames
        n_bytes, count = struct.unpack(">II", fields[10:18])
        return Header(fields[:4], position + 50, count, n_bytes)
    return None
