"""Where the samples of WAV, RF64, W64, AIFF, AU and CAF begin and end, whatever their headers count."""

from __future__ import annotations

import functools
import itertools
import math
import re
import struct
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import BinaryIO

from . import mpeg
from .containers import UNKNOWN_BYTES
from .views import MOST_TIMES, Piece, Survey, bytes_at, is_other, miscounted, patched, unread

MISCOUNTED_BYTES = 512
"""Recorders count the header as samples, or up to the end of a sector of the card: that has 512 bytes."""

UNKNOWN = 2**62
"""Sizes of 64 bits from here on count nothing."""

BUFFER_BYTES = 2**20

MOST_CHUNKS = 10_000
"""Chunks that are looked at; a file has a few."""

BEHIND_SECONDS = 1.0
"""Unknown bytes behind the end of all chunks are audio from this duration on: less is left by other programs."""

KNOWN_CHUNKS = frozenset(
    b"LIST,INFO,bext,iXML,axml,chna,id3 ,ID3 ,JUNK,junk,PAD ,FLLR,fact,cue ,plst,smpl,inst,PEAK,_PMX,umid,minf,elm1,"
    b"regn,afsp,cart,levl,wamd,guan,SAUR,DISP,acid,strc,MARK,COMT,NAME,AUTH,(c) ,ANNO,APPL,INST,MIDI,AESD,free,info,"
    b"uuid,edct,strg,peak,ovvw,mark,regn,umid,data,slnt".split(b",")
)
"""Chunks that may be cut off without a loss of samples."""

CHUNKS_BEHIND = KNOWN_CHUNKS - {b"data", b"slnt"}
"""Chunks that hold no samples."""

NAMES_BEHIND = re.compile(b"|".join(map(re.escape, sorted(CHUNKS_BEHIND))))

MOST_BEHIND = 100
"""Chunks that are looked for there, and that may follow each other."""

GUID = bytes.fromhex("F3ACD3118CD100C04F8EDB8A")
"""What ends the names of chunks of Sony's Wave64, whose first four bytes are those of WAV."""


@dataclass(frozen=True, slots=True)
class Layout:
    """How chunks are laid out in a format.

    Attributes
    ----------
    order : of the bytes, as in `struct`
    size : of the field for the size of a chunk, as in `struct`
    name : bytes of a name
    padding : sizes are multiples of this, counted or not
    includes_header : whether the size counts the header of the chunk
    """

    order: str
    size: str = "I"
    name: int = 4
    padding: int = 2
    includes_header: bool = False

    @property
    def header(self) -> int:
        """Bytes of a name and a size."""
        return self.name + struct.calcsize(self.size)

    def pack(self, size: int) -> bytes:
        """Encode a size, as large as the field takes."""
        return struct.pack(self.order + self.size, min(size, 2 ** (8 * struct.calcsize(self.size)) - 1))

    def chunk(self, file: BinaryIO, position: int) -> tuple[bytes, int, int]:
        """Read the header of a chunk: name, start of its content, size of that."""
        head = bytes_at(file, position, self.header).ljust(self.header, b"\0")
        (size,) = struct.unpack(self.order + self.size, head[self.name :])
        name = head[: self.name].removesuffix(GUID)
        return name, position + self.header, size - (self.header if self.includes_header else 0)

    def padded(self, size: int) -> int:
        """Return a size with its padding."""
        return math.ceil(size / self.padding) * self.padding


@dataclass(frozen=True, slots=True)
class Samples:
    """The samples of a file, as its header describes them.

    Attributes
    ----------
    start : position of the first
    claimed : bytes that the header counts, None where it counts none
    outer : where all chunks end by the size of the outermost, None if none is said
    align : bytes of a frame, or of the least number of frames that can be decoded
    rate : bytes in a second
    layout : of chunks that may follow, None where none may
    mended : end -> the pieces of the file with a header that counts up to there
    inner : end -> what was found out about the file that the samples up to there are, None where they are samples
    """

    start: int
    claimed: int | None
    outer: int | None
    align: int
    rate: float
    layout: Layout | None
    mended: Callable[[int], tuple[Piece, ...]]
    inner: Callable[[int], Survey | None] | None = None


def survey(file: BinaryIO, begin: int, n_bytes: int) -> Survey | None:
    """Survey such a file in the bytes from `begin` to `n_bytes`; return None where its header is not understood."""
    head = bytes_at(file, begin, 40)
    found = next((read(file, begin, n_bytes) for start, read in READERS if head.startswith(start)), None)
    if found is None:
        return None
    if found.start > n_bytes:
        return None
    if found.align <= 0 or found.rate <= 0:  # blocks of any size, as in ALAC
        end = _behind_chunks(file, found.layout, found.start + (found.claimed or 0), n_bytes)
        following = _file_at(file, found.layout, end)
        return None if following is None else Survey(((range(begin, following),),), False, following=following)
    end, damage, notes, following = _end(file, found, n_bytes)
    length = (end - found.start) // found.align * found.align
    claimed = length if found.claimed is None or found.claimed >= UNKNOWN else found.claimed
    if not damage and abs(claimed - length) >= found.align:
        notes = (miscounted(claimed / found.rate, length / found.rate), *notes)
    is_counted = end == n_bytes if found.claimed is None else abs(found.claimed - length) < found.align
    is_plain = begin == 0 and following is None and is_counted
    if found.inner is not None:
        inner = found.inner(end)
        if inner is None:
            return None
        damage = inner.damage or damage
        return replace(inner, notes=() if damage else notes + inner.notes, damage=damage, following=following)
    return Survey((found.mended(found.start + length),), is_plain, notes, damage, is_counted=False, following=following)


def _end(file: BinaryIO, found: Samples, n_bytes: int) -> tuple[int, str, tuple[str, ...], int | None]:
    """Return where the audio ends, what is wrong there, warnings, and where another file follows."""
    if not found.claimed or found.claimed >= UNKNOWN:
        following = _next_wav(file, found.start, n_bytes)
        if following is not None:
            return following, "", (), following
    last = functools.partial(_before_chunks, file, found.layout, found.start, n_bytes)
    if found.claimed is None or found.claimed >= UNKNOWN:
        return last(), "", (), None
    stop = found.start + found.claimed
    if stop > n_bytes:
        end = last()
        is_whole = end < n_bytes or found.outer in (n_bytes, n_bytes + found.claimed % 2)
        is_whole &= found.claimed <= MOST_TIMES * (n_bytes - found.start)
        is_whole |= stop - n_bytes <= MISCOUNTED_BYTES and (n_bytes - found.start) % found.align == 0
        return end, "" if is_whole else "cut short", (), None
    # Sizes beyond 4 GB lack their upper bits.
    for end in range(stop, n_bytes + 1, 2**32):
        behind = _behind_chunks(file, found.layout, end, n_bytes)
        if behind >= n_bytes:
            return end, "", (), None
        following = _file_at(file, found.layout, behind)
        if following is not None and (end == stop or behind > end):
            return end, "", (), following
        if behind > end + 1:
            return end, "", (), None
    if found.claimed and is_other(file, stop, n_bytes):
        return stop, "", (), None
    rest = n_bytes - stop
    is_inside = found.outer is not None and found.outer > stop + found.align
    if not found.claimed or is_inside or rest >= BEHIND_SECONDS * found.rate:
        return last(), "", (), None
    return stop, "", (unread(rest),), None


def _file_at(file: BinaryIO, layout: Layout | None, position: int) -> int | None:
    """Return where another file begins at a position, or behind its padding; libsndfile pads CAF by a byte."""
    places = range(position, position + max(2, layout.padding if layout else 1))
    return next((place for place in places if bytes_at(file, place, 4) in FILES), None)


def _next_wav(file: BinaryIO, position: int, n_bytes: int) -> int | None:
    """Return where another WAV file begins behind one that does not say where it ends."""
    while position + 16 <= n_bytes:
        buffer = bytes_at(file, position, min(BUFFER_BYTES, n_bytes - position))
        place = buffer.find(b"WAVEfmt ", 8)
        if place >= 0 and buffer[place - 8 : place - 4] == b"RIFF":
            return position + place - 8
        position += max(1, len(buffer) - 16)
    return None


def _before_chunks(file: BinaryIO, layout: Layout | None, start: int, n_bytes: int) -> int:
    """Return where the chunks begin that end a file whose samples are counted wrongly; its end if there are none."""
    if layout is None:
        return n_bytes
    base = max(start, n_bytes - BUFFER_BYTES)
    tail = bytes_at(file, base, n_bytes - base)
    for match in itertools.islice(NAMES_BEHIND.finditer(tail), MOST_BEHIND):
        position = base + match.start()
        for _ in range(MOST_BEHIND):
            name, content, size = layout.chunk(file, position)
            position = content + layout.padded(size)
            if name not in CHUNKS_BEHIND or size < 0 or position >= n_bytes:
                break
        if name in CHUNKS_BEHIND and content + size <= n_bytes <= position:
            return base + match.start()
    return n_bytes


def _behind_chunks(file: BinaryIO, layout: Layout | None, position: int, n_bytes: int) -> int:
    """Return the end of the chunks that begin at a position, or behind its padding: the position if none does."""
    if layout is None:
        return position
    for start in range(position, position + layout.padding):
        end = start
        for _ in range(MOST_CHUNKS):
            name, content, size = layout.chunk(file, end)
            after = content + layout.padded(size)
            is_chunk = name not in FILES and (
                name in KNOWN_CHUNKS or (len(name) == 4 and name.isascii() and name.decode().isprintable())
            )
            if end + layout.header > n_bytes or not is_chunk or size < 0:
                break
            if after > n_bytes + layout.padding:
                end = n_bytes if name in KNOWN_CHUNKS else end
                break
            end = after
        if end > start or end + layout.padding > n_bytes:
            return end
    return position


# RIFF, RF64, Wave64


def _riff(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read WAV (Multimedia Programming Interface and Data Specifications 1.0), and RF64 (EBU Tech 3306)."""
    head = bytes_at(file, begin, 12)
    layout = Layout(">" if head[:4] == b"RIFX" else "<")
    large = head[:4] in (b"RF64", b"BW64")
    claimed_outer = struct.unpack(layout.order + "I", head[4:8])[0]
    sizes: tuple[int, int] | None = None
    sizes_at = 0
    form: Form | None = None
    for name, content, size in _walk(file, layout, begin + 12, n_bytes):
        if name == b"ds64" and large:
            sizes, sizes_at = struct.unpack("<QQ", bytes_at(file, content, 16).ljust(16, b"\0")), content
        elif name == b"fmt ":
            form = Form(file, content, size, layout.order)
        elif name == b"data" and form is not None:
            break
    else:
        return None
    if sizes is not None:
        claimed_outer, size = sizes  # whatever the chunk counts, as libsndfile does
    outer = begin + 8 + claimed_outer if 0 < claimed_outer < (UNKNOWN if large else UNKNOWN_BYTES) else None
    claimed = size if size < UNKNOWN_BYTES or sizes is not None else None

    def mended(end: int) -> tuple[Piece, ...]:
        whole = range(begin, end)
        if sizes is not None:
            counts = struct.pack("<QQ", end - begin - 8, end - content)
            return patched(whole, {sizes_at: counts, content - 4: b"\xff" * 4})
        if end - begin <= 0xFFFFFFFF:
            return patched(whole, {begin + 4: layout.pack(end - begin - 8), content - 4: layout.pack(end - content)})
        return form.as_rf64(end - content), range(content, end)

    if form.tag == MP3_IN_WAV:
        inner = functools.partial(mpeg.survey, file, content, inside=True)
        return Samples(content, claimed, outer, 1, form.rate or MP3_RATE, layout, mended, inner)
    return Samples(content, claimed, outer, form.align, form.rate, layout, mended)


class Form:
    """The chunk "fmt " of a WAV file: its tag, bytes of a block, bytes in a second."""

    def __init__(self, file: BinaryIO, position: int, size: int, order: str) -> None:
        self.content = bytes_at(file, position, min(size, 4096)).ljust(16, b"\0")
        self.tag, channels, rate, byte_rate, self.align, bits = struct.unpack(order + "HHIIHH", self.content[:16])
        if self.tag == EXTENSIBLE:
            self.tag = struct.unpack(order + "H", self.content[24:26].ljust(2, b"\0"))[0]
        if self.tag in UNCOMPRESSED:
            self.align = channels * max(1, (bits + 7) // 8)
            byte_rate = rate * self.align
        self.rate = float(byte_rate)

    def as_rf64(self, n_bytes: int) -> bytes:
        """Return the header of a file of 64 bits with so many bytes of samples."""
        form = b"fmt " + struct.pack("<I", len(self.content)) + self.content
        sizes = struct.pack("<IQQQI", 28, 4 + 36 + len(form) + 8 + n_bytes, n_bytes, 0, 0)
        return b"RF64" + b"\xff" * 4 + b"WAVE" + b"ds64" + sizes + form + b"data" + b"\xff" * 4


MP3_IN_WAV, EXTENSIBLE = 0x55, 0xFFFE
MP3_RATE = 16_000.0
"""Bytes in a second of an MP3 whose header does not tell: 128 kbit/s."""

UNCOMPRESSED = (1, 3, 6, 7)
"""Tags of PCM, float, A-law and mu-law (RFC 2361)."""


def _walk(file: BinaryIO, layout: Layout, position: int, n_bytes: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield the chunks of a file, up to its end."""
    for _ in range(MOST_CHUNKS):
        if position + layout.header > n_bytes:
            return
        name, content, size = layout.chunk(file, position)
        yield name, content, size
        if size < 0:  # a CAF file that was not closed
            return
        position = content + layout.padded(size)


def _wave64(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read Sony Wave64 (Sony Pictures Digital Networks, Wave64 file format)."""
    layout = Layout("<", "Q", 16, 8, includes_header=True)
    form: Form | None = None
    for name, content, size in _walk(file, layout, begin + 40, n_bytes):
        if name == b"fmt ":
            form = Form(file, content, size, layout.order)
        elif name == b"data" and form is not None:
            break
    else:
        return None
    (outer,) = struct.unpack("<Q", bytes_at(file, begin + 16, 8))

    def mended(end: int) -> tuple[Piece, ...]:
        sizes = {begin + 16: layout.pack(end - begin), content - 8: layout.pack(end - content + layout.header)}
        return patched(range(begin, end), sizes)

    return Samples(content, max(0, size), begin + outer if outer else None, form.align, form.rate, layout, mended)


# AIFF, AU, CAF


def _aiff(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read AIFF and AIFF-C (Apple, Audio Interchange File Format 1.3 and AIFF-C)."""
    layout = Layout(">")
    common = b""
    for name, content, size in _walk(file, layout, begin + 12, n_bytes):
        if name == b"COMM":
            common, common_at = bytes_at(file, content, min(size, 22)), content
        elif name == b"SSND" and len(common) >= 18:
            break
    else:
        return None
    channels, _, bits = struct.unpack(">hIh", common[:8])
    exponent, mantissa = struct.unpack(">HQ", common[8:18])  # a float of 80 bits
    frames_per_second = math.ldexp(mantissa, (exponent & 0x7FFF) - 16383 - 63) if exponent & 0x7FFF < 16383 + 64 else 0
    kind = common[18:22] or b"NONE"
    if kind not in AIFF_BITS and kind not in AIFF_BLOCKS:
        return None
    n_bytes_each, n_frames_each = AIFF_BLOCKS.get(kind, (((AIFF_BITS.get(kind) or bits) + 7) // 8, 1))
    align = channels * n_bytes_each
    (offset,) = struct.unpack(">I", bytes_at(file, content, 4).ljust(4, b"\0"))
    start = content + 8 + offset
    (outer,) = struct.unpack(">I", bytes_at(file, begin + 4, 4))

    def mended(end: int) -> tuple[Piece, ...]:
        counts = {begin + 4: end - begin - 8, common_at + 2: (end - start) // align, content - 4: end - content}
        return patched(range(begin, end), {place: layout.pack(count) for place, count in sorted(counts.items())})

    claimed = max(0, size - 8 - offset) if size < UNKNOWN_BYTES else None
    outer_end = begin + 8 + outer if 0 < outer < UNKNOWN_BYTES else None
    return Samples(start, claimed, outer_end, align, frames_per_second * align / n_frames_each, layout, mended)


AIFF_BLOCKS = {b"ima4": (34, 64), b"GSM ": (33, 160)}
"""Bytes and frames of a block of each channel."""

AIFF_BITS = {
    b"NONE": 0, b"twos": 0, b"sowt": 0, b"raw ": 0, b"in24": 24, b"42ni": 24, b"in32": 32, b"23ni": 32, b"fl32": 32,
    b"FL32": 32, b"fl64": 64, b"FL64": 64, b"ulaw": 8, b"ULAW": 8, b"alaw": 8, b"ALAW": 8,
}  # fmt: skip
"""Bits of a sample by the kind of compression, 0 for what the chunk says."""


def _au(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read AU of Sun and NeXT, whose size may be unknown, 0xFFFFFFFF (audio_file_header of SunOS)."""
    head = bytes_at(file, begin, 24)
    order = ">" if head[:4] == b".snd" else "<"
    offset, size, encoding, rate, channels = struct.unpack(order + "5I", head[4:24].ljust(20, b"\0"))
    bits = AU_BITS.get(encoding, 0) * channels

    def mended(end: int) -> tuple[Piece, ...]:
        return patched(range(begin, end), {begin + 8: Layout(order).pack(end - begin - offset)})

    claimed = size if size < UNKNOWN_BYTES else None
    return Samples(begin + offset, claimed, None, (bits + 7) // 8, rate * bits / 8, None, mended)


AU_BITS = {1: 8, 2: 8, 3: 16, 4: 24, 5: 32, 6: 32, 7: 64, 23: 4, 24: 4, 25: 3, 26: 5, 27: 8}
"""Bits of a sample by encoding; 23 to 26 are G.721, G.722, G.723 of 24 and of 40 kbit/s."""


def _caf(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read CAF, whose size may be unknown, -1 (Apple Core Audio Format Specification 1.0)."""
    layout = Layout(">", "q", padding=1)
    form, claimed = b"", UNKNOWN
    for name, content, size in _walk(file, layout, begin + 8, n_bytes):
        claimed = max(0, size - 4) if size >= 0 else UNKNOWN
        if name == b"desc":
            form = bytes_at(file, content, 32)
        elif name == b"data" and len(form) == 32:
            break
    else:
        return None
    rate, _, _, align, n_frames = struct.unpack(">d4sIII", form[:24])
    start = content + 4  # behind the count of edits

    def mended(end: int) -> tuple[Piece, ...]:
        return patched(range(begin, end), {content - 8: layout.pack(end - content)})

    per_second = rate * align / n_frames if n_frames and math.isfinite(rate) else 0.0
    return Samples(start, claimed, None, align, per_second, layout, mended)


def _nist(file: BinaryIO, begin: int, n_bytes: int) -> Samples | None:
    """Read SPHERE of NIST, whose header is text of the form ``name -type value`` (SPHERE 2.7, file headers)."""
    head = bytes_at(file, begin, 16)
    size = int(head[8:15]) if head[8:15].strip().isdigit() else 0
    fields = dict(re.findall(rb"^(\w+) -\w+ (.*)$", bytes_at(file, begin, min(size, MOST_NIST_BYTES)), re.MULTILINE))
    names = (b"channel_count", b"sample_n_bytes", b"sample_rate", b"sample_count")
    numbers = [int(fields[name]) for name in names if fields.get(name, b"").strip().isdigit()]
    if len(numbers) < len(names) or fields.get(b"sample_coding", b"pcm") not in NIST_CODINGS:
        return None
    channels, width, rate, count = numbers
    align = channels * width

    def mended(end: int) -> tuple[Piece, ...]:
        return (range(begin, end),)  # libsndfile takes all there is for samples

    return Samples(begin + size, count * align, None, align, float(rate * align), None, mended)


MOST_NIST_BYTES = 2**16
"""Bytes of a header of SPHERE that are looked at; most have 1,024."""

NIST_CODINGS = (b"pcm", b"ulaw", b"mu-law", b"alaw")

READERS: tuple[tuple[bytes, Callable[[BinaryIO, int, int], Samples | None]], ...] = (
    (b"RIFF", _riff), (b"RIFX", _riff), (b"RF64", _riff), (b"BW64", _riff), (b"riff", _wave64), (b"FORM", _aiff),
    (b".snd", _au), (b"dns.", _au), (b"caff", _caf), (b"NIST", _nist),
)  # fmt: skip
"""Readers of headers by the first bytes of the file."""

FILES = frozenset(start for start, _ in READERS)
