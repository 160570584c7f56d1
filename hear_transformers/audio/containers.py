"""First bytes of a file -> its container; sizes of its outermost parts -> whether it is whole.

These are the containers that FFmpeg knows and libsndfile does not, recognised by their content, never by their names:
where libsndfile does not recognise the content, it goes by the name, and an MP4 named .mp3, .au or .vox becomes noise.
The sizes are checked since FFmpeg reads a Matroska, ASF or AVI file that is cut between two packets without a word.
"""

from __future__ import annotations

import re
import struct
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import BinaryIO

from .views import behind_id3, bytes_at

HEAD_BYTES = 2**14
"""Bytes read to recognise a file: more than one frame of AAC, whose size has 13 bits (ISO/IEC 14496-3, 1.A.2.2)."""

UNKNOWN_BYTES = 0x7FFF0000
"""Programs that write into a pipe cannot know the length of a RIFF file and claim this much or more (SoX, FFmpeg)."""

MOST_SAMPLES = 8
"""Most samples for each byte of an MP4: QuickTime counts those before compression, and MACE 6:1 makes six a byte."""


ANOTHER = "damaged: another file was joined to it, which is not read; split them"


def iso_flaw(file: BinaryIO, n_bytes: int) -> str:
    """Check the boxes of an MP4: the outermost must be whole, and those of one file."""
    seen: list[bytes] = []
    for kind, _, end in _boxes(file, 0, n_bytes):
        if kind not in ISO_BOXES:
            break  # bytes that some program appended
        if end > n_bytes:
            return f"cut short: {n_bytes} bytes of {end}"
        seen.append(kind)
        if seen.count(b"ftyp") > 1 or seen.count(b"moov") > 1:
            return ANOTHER
    return ""


def iso_excess(file: BinaryIO, n_bytes: int) -> str:
    """Check the boxes of an MP4: tables of samples must not outgrow the file.

    FFmpeg makes 35 bytes in memory for every sample that a table claims, whether or not the file could hold it.
    """
    inner = [(body, min(end, n_bytes)) for kind, body, end in _boxes(file, 0, n_bytes) if kind in ISO_NESTED]
    claimed = 0
    while inner:
        for kind, body, end in _boxes(file, *inner.pop()):
            if kind in ISO_NESTED:
                inner.append((body, min(end, n_bytes)))
            elif kind in (b"stsz", b"trun"):
                claimed += _claimed_samples(file, kind, body)
        if claimed > MOST_SAMPLES * n_bytes:
            return f"damaged: it claims {claimed} samples in {n_bytes} bytes"
    return ""


def _boxes(file: BinaryIO, position: int, end: int) -> Iterator[tuple[bytes, int, int]]:
    """Yield kind, start of the content and end of the boxes between two places of a file."""
    while position + 8 <= end:
        file.seek(position)
        # Size, kind, and 64 bits of size if it is 1; 0 means to the end (ISO/IEC 14496-12, section 4.2).
        size, kind, large = struct.unpack(">I4sQ", file.read(16).ljust(16, b"\0"))
        body = position + (16 if size == 1 else 8)
        position = {0: end, 1: position + large}.get(size, position + size)
        if position < body:
            return
        yield kind, body, position


ISO_NESTED = (b"moov", b"trak", b"mdia", b"minf", b"stbl", b"moof", b"traf")
"""Boxes on the way to the tables of samples (ISO/IEC 14496-12, section 6.2)."""

ISO_BOXES = frozenset(
    b"ftyp styp pdin moov moof mfra mdat free skip wide udta uuid meta sidx ssix prft emsg pnot PICT".split()
)
"""Outermost boxes (ISO/IEC 14496-12, section 6.2; QuickTime File Format, "Atoms")."""


def _claimed_samples(file: BinaryIO, kind: bytes, body: int) -> int:
    """Read the number of samples from a table of them, 0 where each has an entry, so that the table bounds it."""
    file.seek(body)
    flags, first, second = struct.unpack(">III", file.read(12).ljust(12, b"\0"))
    if kind == b"stsz":  # flags, size of all samples or 0, count (ISO/IEC 14496-12, section 8.7.3)
        return second if first else 0
    return 0 if flags & 0xF00 else first  # trun: flags 0x100 to 0x800 announce entries (section 8.8.8)


def _sizes_flaw(size_of: Callable[[bytes], int], file: BinaryIO, n_bytes: int, only_first: bytes = b"") -> str:
    """Check a file of consecutive parts, by a function that returns the size of a part, 0 if unknown.

    Parameters
    ----------
    only_first : beginning of a part that stands for another file where it is not the first; empty if FFmpeg reads on
    """
    position = 0
    while position < n_bytes:
        file.seek(position)
        head = file.read(24).ljust(24, b"\0")
        if position and only_first and head.startswith(only_first):
            return ANOTHER
        size = size_of(head)
        if size <= 0:
            return ""
        position += size
    return f"cut short: {n_bytes} bytes of {position}" if position > n_bytes else ""


def _asf_size(head: bytes) -> int:
    """Return the size of the header or the data of ASF (Advanced Systems Format Specification, sections 3.1, 5.1)."""
    known = head[1:16] == ASF_HEADER[1:] and head[0] in (0x30, 0x36)
    return int(struct.unpack("<Q", head[16:24])[0]) if known else 0


ASF_HEADER = bytes.fromhex("3026B2758E66CF11A6D900AA0062CE6C")
"""GUID of the first object; that of the second, the data, begins with 0x36."""


def _ebml_size(head: bytes) -> int:
    """Return the size of an outermost element of Matroska, 0 where a live recording left it unknown (RFC 8794)."""
    if head[:4] not in (EBML_HEADER, SEGMENT) or not head[4]:
        return 0
    length = 9 - head[4].bit_length()  # bytes of the size: leading zeros and one bit say how many (section 4)
    unknown = (1 << 7 * length) - 1
    size = int.from_bytes(head[4 : 4 + length], "big") & unknown
    return 0 if size == unknown else 4 + length + size


EBML_HEADER, SEGMENT = b"\x1aE\xdf\xa3", b"\x18S\x80g"


def _riff_size(head: bytes) -> int:
    """Return the size of a RIFF chunk of AVI; beyond 1 GB there are several (OpenDML AVI File Format Extensions)."""
    size = int(struct.unpack("<I", head[4:8])[0])
    return 8 + size if head[:4] == b"RIFF" and head[8:11] == b"AVI" and 0 < size < UNKNOWN_BYTES else 0


def tta_excess(file: BinaryIO, n_bytes: int) -> str:
    """Check the header of a TTA file: FFmpeg makes an entry in memory for every frame that it claims.

    A frame of 256 / 245 s has four bytes in a table behind the header (TTA format description, "Seek table").
    """
    file.seek(10)
    rate, n_samples = struct.unpack("<II", file.read(8).ljust(8, b"\0"))
    n_frames = n_samples // max(1, 256 * rate // 245)
    return f"damaged: it claims {n_frames} frames in {n_bytes} bytes" if 4 * n_frames > n_bytes else ""


@dataclass(frozen=True, slots=True)
class Container:
    """A kind of file that FFmpeg decodes.

    Attributes
    ----------
    name : for messages
    demuxer : FFmpeg's name of its demuxer
    start : pattern of the first bytes, in which a dot is any byte
    flaw : (file, size in bytes) -> what is wrong with the sizes of the outermost parts, empty if nothing is
    claims_duration : whether the header holds the duration; else FFmpeg estimates it
    excess : (file, size in bytes) -> what it claims that no file of this size holds, empty if nothing
    """

    name: str
    demuxer: str
    start: bytes
    flaw: Callable[[BinaryIO, int], str] = lambda file, n_bytes: ""
    claims_duration: bool = False
    excess: Callable[[BinaryIO, int], str] = lambda file, n_bytes: ""


CONTAINERS = (
    # A box named so at byte 4; files of QuickTime may lack ftyp (ISO/IEC 14496-12, section 4.3; QuickTime File Format).
    Container("MP4, M4A or MOV", "mov", rb".{4}(?:ftyp|moov|mdat|wide|free|skip|pnot)", iso_flaw, True, iso_excess),
    Container("Matroska or WebM", "matroska", re.escape(EBML_HEADER), partial(_sizes_flaw, _ebml_size), True),
    # Twelve bits of sync, layer 0, and the first three bytes are the same in the next frame (ISO/IEC 14496-3, 1.A.2.2).
    Container("AAC (ADTS)", "aac", rb"(\xff[\xf0\xf1\xf8\xf9].).{4,8188}?\1"),
    Container("WMA or WMV (ASF)", "asf", re.escape(ASF_HEADER), partial(_sizes_flaw, _asf_size, only_first=ASF_HEADER)),
    # Signature and version (Adobe Flash Video File Format Specification, annex E.2).
    Container("Flash video (FLV)", "flv", rb"FLV\x01", claims_duration=True),
    # A sync byte every 188 bytes, on Blu-ray discs after four bytes of time (ISO/IEC 13818-1, section 2.4.3.2).
    Container("MPEG transport stream", "mpegts", rb"G.{187}G.{187}G|.{4}G.{191}G.{191}G"),
    # Start code of a pack (ISO/IEC 13818-1, section 2.5.3.3).
    Container("MPEG program stream", "mpeg", rb"\x00\x00\x01\xba"),
    Container("AVI", "avi", rb"RIFF.{4}AVI ", partial(_sizes_flaw, _riff_size)),
    # RFC 4867, section 5.1.
    Container("AMR", "amr", rb"#!AMR(?:-WB)?\n"),
    # WavPack 4 & 5 Binary File / Block Format, section 2.0.
    Container("WavPack", "wv", rb"wvpk", claims_duration=True),
    # The format of the first chunk (Apple Core Audio Format Specification, "Audio Description Chunk").
    Container("CAF with AAC or IMA4", "caf", rb"caff.{4}desc.{16}(?:aac |ima4)"),
)  # fmt: skip
"""Files for FFmpeg; all others are for libsndfile."""

OTHERS = (
    Container("WAV", "wav", rb"(?:RIFF|RIFX|RF64|BW64).{4}WAVE"),
    Container("Wave64", "w64", rb"riff\x2e\x91\xcf\x11"),
    Container("Ogg", "ogg", rb"OggS\x00"),
    Container("AIFF", "aiff", rb"FORM.{4}AIF[FC]"),
    Container("AU", "au", rb"\.snd"),
    Container("CAF", "caf", rb"caff"),
    Container("FLAC", "flac", rb"fLaC"),
    Container("VOC", "voc", rb"Creative Voice File\x1a"),
    # Sync word, and the version in the first five bits of byte 5 (ETSI TS 102 366, 5.3 and E.1.3.1).
    Container("AC-3", "ac3", rb"\x0bw...[\x00-\x57]"),
    Container("E-AC-3", "eac3", rb"\x0bw...[\x58-\x87]"),
    # Sync word in words of 16 or 14 bits, of both orders (ETSI TS 102 114, 5.3.1).
    Container("DTS", "dts", rb"\x7f\xfe\x80\x01|\xfe\x7f\x01\x80|\x1f\xff\xe8\x00|\xff\x1f\x00\xe8|dX %"),
    # Major sync behind four bytes of the access unit (Dolby TrueHD high-level bitstream description, 4.1).
    Container("TrueHD", "truehd", rb".{4}\xf8ro\xba"),
    Container("MLP", "mlp", rb".{4}\xf8ro\xbb"),
    Container("TTA", "tta", rb"TTA[12]", excess=tta_excess),
    # DSF File Format Specification 1.01, "DSD chunk".
    Container("DSF", "dsf", rb"DSD \x1c"),
    # Eleven bits of sync (ISO/IEC 14496-3, 1.7.2).
    Container("AAC (LOAS)", "loas", rb"V[\xe0-\xff]."),
    Container("MPEG audio", "mp3", rb"\xff[\xe2-\xff]"),
)  # fmt: skip
"""Files that FFmpeg is offered once libsndfile refused them: codecs that it does not know, or formats."""


def recognise(file: BinaryIO, among: Sequence[Container] = CONTAINERS) -> Container | None:
    """Return which of some containers a file is, None if none of them; a tag ID3v2 in front does not count."""
    head = bytes_at(file, behind_id3(file, 0), HEAD_BYTES)
    return next((container for container in among if re.match(container.start, head, re.DOTALL)), None)
