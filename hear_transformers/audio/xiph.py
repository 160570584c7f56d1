"""Where the streams of Ogg files and FLAC files begin and end: files that were joined have several."""

from __future__ import annotations

import functools
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import BinaryIO, NamedTuple

from .views import MOST_TIMES, Survey, bytes_at, miscounted, patched

BUFFER_BYTES = 2**20

# Ogg

PAGE_BYTES = 65_307
"""Bytes of the largest page (RFC 3533, section 6). As many of something else behind the last page may have been one."""

FIRST, LAST = 2, 4
"""Flags of a page."""


class Page(NamedTuple):
    """A page.

    Attributes
    ----------
    begin, end : positions; the page is complete
    flags : of it
    serial : number of its stream
    number : in the stream
    is_right : its checksum is
    """

    begin: int
    end: int
    flags: int
    serial: int
    number: int
    is_right: bool


def _pages(file: BinaryIO, begin: int, n_bytes: int) -> Iterator[Page]:
    """Yield the complete pages in a range of a file, and skip what is none."""
    position, buffer, base = begin, b"", begin
    while position + 27 <= n_bytes:
        offset = position - base
        if offset + PAGE_BYTES > len(buffer) and base + len(buffer) < n_bytes:
            buffer, base, offset = bytes_at(file, position, min(BUFFER_BYTES, n_bytes - position)), position, 0
        size = 0
        if buffer.startswith(b"OggS\0", offset) and offset + 27 <= len(buffer):
            # Version, flags, position, serial number, page number, checksum, number of segments, their lengths.
            n_segments = buffer[offset + 26]
            size = 27 + n_segments + sum(buffer[offset + 27 : offset + 27 + n_segments])
        if not size or position + size > n_bytes:
            found = buffer.find(b"OggS\0", offset + 1)
            position = base + (found if found >= 0 else max(offset + 1, len(buffer) - 4))
            continue
        flags, _, serial, number = struct.unpack_from("<BQII", buffer, offset + 5)
        yield Page(position, position + size, flags, serial, number, _checked(buffer[offset : offset + size]))
        position += size


REVERSED = bytes(int(f"{byte:08b}"[::-1], 2) for byte in range(256))
"""Every byte, its bits in the other order."""


def _checked(page: bytes) -> bool:
    """Return True if the checksum of a page is right: that of zlib with the bits of all bytes in the other order."""
    content = page[:22] + bytes(4) + page[26:]
    checksum = zlib.crc32(content.translate(REVERSED), 0xFFFFFFFF) ^ 0xFFFFFFFF
    return checksum.to_bytes(4, "big").translate(REVERSED) == page[22:26]


def ogg(file: BinaryIO, begin: int, n_bytes: int) -> Survey:
    """Survey an Ogg file: a chain of links, each with a page marked as the last one of every stream in it.

    What follows a page that lacks or is damaged is not taken, since it would move to an earlier time.
    """
    links: list[int] = []  # where they begin
    opened: dict[int, int] = {}  # streams without a last page, and the number of the page before
    end, was_first, damage = begin, False, ""
    for page in _pages(file, begin, n_bytes):
        is_missing = page.serial in opened and page.number > opened[page.serial] + 1
        if is_missing or not page.is_right or (page.begin > end and links and opened):
            damage = f"damaged: {'a page is missing' if page.is_right else 'a page has a wrong checksum'}"
            break
        if page.flags & FIRST and not was_first:
            links.append(page.begin)
        was_first = bool(page.flags & FIRST)
        opened[page.serial] = page.number
        if page.flags & LAST:
            del opened[page.serial]
        end = page.end
    behind = n_bytes - end
    is_lost = behind > PAGE_BYTES or (behind and _is_page(file, end))
    if not damage and (opened or not links or is_lost):
        damage = "cut short"
    streams = tuple((range(link, stop),) for link, stop in zip(links, [*links[1:], end], strict=False))
    is_plain = begin == 0 and len(links) < 2 and behind == 0
    return Survey(streams, is_plain, (), damage, is_counted=False)


def _is_page(file: BinaryIO, position: int) -> bool:
    return bytes_at(file, position, 4) == b"OggS"


# FLAC

STREAMINFO = re.compile(rb"fLaC[\0\x80]\0\0\x22")
"""How a stream begins: its first block, of 34 bytes, which may be the only one (RFC 9639, section 8)."""

STREAMINFO_BYTES = 8

TAIL_BYTES = 2**18
"""Bytes in which the last frame is looked for: 16 bits in stereo take 16 kB for 4,096 samples at most."""


@dataclass(frozen=True, slots=True)
class Info:
    """The block STREAMINFO (RFC 9639, section 8.2): a fixed block size or 0, samples in all, 0 if unknown."""

    block_size: int
    rate: int
    channels: int
    bits: int
    total: int

    @staticmethod
    def read(file: BinaryIO, begin: int) -> Info:
        """Read that of a stream."""
        content = bytes_at(file, begin + 8, 34).ljust(34, b"\0")
        least, most = struct.unpack(">HH", content[:4])
        (packed,) = struct.unpack(">Q", content[10:18])
        rate, channels, bits = packed >> 44, (packed >> 41 & 7) + 1, (packed >> 36 & 31) + 1
        return Info(least if least == most else 0, rate, channels, bits, packed & 0xFFFFFFFFF)

    def counting(self, total: int) -> bytes:
        """Return its bytes 10 to 18 with another number of samples."""
        return struct.pack(">Q", self.rate << 44 | self.channels - 1 << 41 | self.bits - 1 << 36 | total)


def flac(file: BinaryIO, begin: int, n_bytes: int) -> Survey | None:
    """Survey the first stream of a FLAC file; another one may follow."""
    following = _next_stream(file, begin + 8, n_bytes)
    end = n_bytes if following is None else following
    info = Info.read(file, begin)
    last = _last_frame(file, begin, end, info)
    if last is None or info.rate == 0:
        return None if following is None else Survey(((range(begin, end),),), False, following=following)
    start, found = last
    damage, notes = "", tuple[str, ...]()
    if found != info.total:
        is_whole = _is_whole(file, start, end) and info.total <= MOST_TIMES * found
        damage = "" if is_whole else "cut short"
        if info.total and not damage:
            notes = (miscounted(info.total / info.rate, found / info.rate),)
    is_right = found == info.total or not info.total
    pieces = patched(range(begin, end), {} if is_right else {begin + 18: info.counting(0 if damage else found)})
    return Survey((pieces,), begin == 0 and following is None and is_right, notes, damage, following=following)


def _next_stream(file: BinaryIO, position: int, n_bytes: int) -> int | None:
    """Return where the next stream begins, None if none does."""
    while position + STREAMINFO_BYTES <= n_bytes:
        buffer = bytes_at(file, position, min(BUFFER_BYTES, n_bytes - position))
        if found := STREAMINFO.search(buffer):
            return position + found.start()
        position += max(1, len(buffer) - STREAMINFO_BYTES + 1)
    return None


def _last_frame(file: BinaryIO, begin: int, end: int, info: Info) -> tuple[int, int] | None:
    """Return where the last frame begins, and the number of samples up to its end; None if none is found."""
    base = max(begin, end - TAIL_BYTES)
    tail = bytes_at(file, base, end - base)
    place = len(tail)
    while (place := max(tail.rfind(sync, 0, place) for sync in SYNCS)) >= 0:
        samples = _samples_up_to(tail[place : place + 16], info)
        if samples is not None:
            return base + place, samples
    return None


SYNCS = (b"\xff\xf8", b"\xff\xf9")
"""How frames begin: with blocks of the same size, or of any."""


def _samples_up_to(head: bytes, info: Info) -> int | None:
    """Return the number of samples up to the end of a frame (RFC 9639, section 9.1); None if it is none."""
    if len(head) < 16:
        head = head.ljust(16, b"\0")
    block, rate = head[2] >> 4, head[2] & 15
    channels, bits = head[3] >> 4, head[3] >> 1 & 7
    n_channels = 2 if channels in (8, 9, 10) else channels + 1
    if block == 0 or rate == 15 or channels > 10 or head[3] & 1 or n_channels != info.channels:
        return None
    if BITS.get(bits, info.bits) != info.bits:
        return None
    n_ones = 8 - (head[4] ^ 0xFF).bit_length()  # of a number that is encoded as in UTF-8
    if n_ones in (1, 8):
        return None
    number = head[4] & (0x7F >> n_ones)
    place = 5
    for byte in head[5 : 5 + max(0, n_ones - 1)]:
        if byte >> 6 != 2:
            return None
        number, place = number << 6 | byte & 0x3F, place + 1
    if block in (6, 7):
        size = int.from_bytes(head[place : place + block - 5], "big") + 1
        place += block - 5
    else:
        size = 192 if block == 1 else 576 << block - 2 if block < 6 else 256 << block - 8
    place += {12: 1, 13: 2, 14: 2}.get(rate, 0)
    if place > 15 or remainder(head[:place], 8, 0x07) != head[place]:
        return None
    return (number if head[1] & 1 else number * info.block_size) + size


BITS = {1: 8, 2: 12, 4: 16, 5: 20, 6: 24, 7: 32}
"""Bits of a sample by their code; 0 leaves them to STREAMINFO."""


def _is_whole(file: BinaryIO, start: int, end: int) -> bool:
    """Return True if a frame is complete, by its checksum, and ends the file, or a tag does."""
    frame = bytes_at(file, start, end - start)
    if frame[-128:].startswith(b"TAG"):
        frame = frame[:-128]
    # With its checksum, the remainder is 0; it stays that over zeros, which are there instead of frames.
    return remainder(frame, 16, 0x8005) == 0 and remainder(frame[:-3], 16, 0x8005) != 0


@functools.cache
def _table(width: int, polynomial: int) -> tuple[int, ...]:
    table, mask = [], (1 << width) - 1
    for byte in range(256):
        value = byte << width - 8
        for _ in range(8):
            value = (value << 1 ^ polynomial if value >> width - 1 else value << 1) & mask
        table.append(value)
    return tuple(table)


def remainder(content: bytes, width: int, polynomial: int) -> int:
    """Compute a cyclic redundancy check (RFC 9639, sections 9.1.8 and 9.3)."""
    table, mask, value = _table(width, polynomial), (1 << width) - 1, 0
    for byte in content:
        value = (value << 8 & mask) ^ table[value >> width - 8 ^ byte]
    return value
