"""Files whose headers count wrongly, or that hold several: bytes of whole files, and what is changed in them."""

import io
import struct

import numpy as np
import soundfile

RATE = 32_000


def noise(seconds: float, channels: int = 1, sample_rate: int = RATE) -> np.ndarray:
    shape = (round(seconds * sample_rate), channels)
    return 0.1 * np.random.default_rng(0).standard_normal(shape)


def encoded(format: str, seconds: float = 2.0, *, channels: int = 1, sample_rate: int = RATE, **options) -> bytes:
    """Encode noise."""
    buffer = io.BytesIO()
    soundfile.write(buffer, noise(seconds, channels, sample_rate), sample_rate, format=format, **options)
    return buffer.getvalue()


def patched(content: bytes, position: int, new: bytes) -> bytes:
    return content[:position] + new + content[position + len(new) :]


SIZES = {
    "WAV": (b"data", 4, "<I", 4, "<I"),
    "AIFF": (b"SSND", 4, ">I", 4, ">I"),
    "W64": (b"data", 16, "<Q", 16, "<Q"),
    "RF64": (b"ds64", 16, "<Q", 20, "<Q"),
    "AU": (b".snd", 8, ">I", None, ""),
    "CAF": (b"data", 4, ">q", None, ""),
}
"""By format: a name, where behind its beginning the size of the samples is, its type; place and type of that of all."""


def with_size(format: str, size, outer=None, seconds: float = 2.0) -> bytes:
    """Encode noise, with another size of its samples and perhaps of all: functions of the right ones."""
    content = encoded(format, seconds)
    name, offset, kind, outer_at, outer_kind = SIZES[format]
    position = content.index(name) + offset
    (right,) = struct.unpack_from(kind, content, position)
    content = patched(content, position, struct.pack(kind, size(right)))
    if outer is not None and outer_at is not None:
        (right,) = struct.unpack_from(outer_kind, content, outer_at)
        content = patched(content, outer_at, struct.pack(outer_kind, outer(right)))
    return content


def with_total(content: bytes, n_samples: int) -> bytes:
    """Change the number of samples in the header of a FLAC file: 36 bits, the last of bytes 18 to 25."""
    return patched(content, 21, bytes([content[21] & 0xF0 | n_samples >> 32]) + struct.pack(">I", n_samples % 2**32))


def loud_then_quiet(sample_rate: int = RATE, **options) -> bytes:
    """Encode an MP3 of 2 s of noise and 8 s of silence, with a variable bit rate."""
    samples = np.concatenate([noise(2.0, 1, sample_rate), np.zeros((8 * sample_rate, 1))])
    buffer = io.BytesIO()
    options = {"bitrate_mode": "VARIABLE", "compression_level": 0.3, **options}
    soundfile.write(buffer, samples, sample_rate, format="MP3", **options)
    return buffer.getvalue()


def without_header(mp3: bytes) -> bytes:
    """Remove the first frame of an MP3, which holds the number of frames."""
    return mp3[mp3.index(mp3[:2], 4) :]


def mp3_in_wav(seconds: float) -> bytes:
    """Put an MP3 without its header into a WAV file."""
    mp3 = without_header(encoded("MP3", seconds, bitrate_mode="CONSTANT"))
    form = struct.pack("<HHIIHHHHIHHH", 0x55, 1, RATE, 16_000, 1, 0, 12, 1, 2, 576, 1, 1393)
    chunks = b"WAVEfmt " + struct.pack("<I", len(form)) + form + b"data" + struct.pack("<I", len(mp3)) + mp3
    return b"RIFF" + struct.pack("<I", len(chunks)) + chunks + bytes(len(mp3) % 2)


def with_frames(mp3: bytes, change) -> bytes:
    """Change the number of frames in the header of an MP3: behind its name and four bytes of flags."""
    position = max(mp3.find(b"Xing"), mp3.find(b"Info")) + 8
    (count,) = struct.unpack_from(">I", mp3, position)
    return patched(mp3, position, struct.pack(">I", change(count)))


def as_vbri(mp3: bytes, change) -> bytes:
    """Put the header of Fraunhofer's encoder in place of that of an MP3."""
    position = max(mp3.find(b"Xing"), mp3.find(b"Info"))
    _, count, n_bytes = struct.unpack_from(">III", mp3, position + 4)
    end = mp3.index(mp3[:2], 4)
    frame = mp3[:4] + bytes(32) + b"VBRI" + struct.pack(">HHHII", 1, 0, 75, n_bytes, change(count))
    return frame.ljust(end, b"\0") + mp3[end:]


ID3 = b"ID3\4\0\0\0\0\1\0" + bytes(128)
ID3V1 = b"TAG" + b"a tag".ljust(125, b"\0")
