"""Files that are damaged, or not what they seem, and what is said about each."""

from collections.abc import Callable
from pathlib import Path

import numpy as np
import soundfile

Make = Callable[[Path], None]
"""Makes what lies at a path."""

RATE = 32_000
NOISE = 0.1 * np.random.default_rng(0).standard_normal(RATE)


def sound(samples: np.ndarray = NOISE, sample_rate: int = RATE, **options: str) -> Make:
    return lambda path: soundfile.write(path, samples, sample_rate, **options)


def content(content: bytes) -> Make:
    return lambda path: path.write_bytes(content)


def cut(make: Make, share: float) -> Make:
    """Make a file and keep its first part only."""

    def write(path: Path) -> None:
        make(path)
        whole = path.read_bytes()
        path.write_bytes(whole[: int(share * len(whole))])

    return write


def patched(make: Make, position: int, new: bytes) -> Make:
    """Make a file and overwrite some of its bytes."""

    def write(path: Path) -> None:
        make(path)
        whole = bytearray(path.read_bytes())
        whole[position : position + len(new)] = new
        path.write_bytes(whole)

    return write


def with_sample(value: float) -> np.ndarray:
    samples = NOISE.copy()
    samples[8_000] = value
    return samples


def folder_with(name: str) -> Make:
    def write(path: Path) -> None:
        path.mkdir()
        (path / name).touch()

    return write


BAD_FILES = {
    "missing": ("a.wav", lambda path: None, "no such file"),
    "empty": ("a.wav", content(b""), "empty"),
    "text named .wav": ("a.wav", content(b"This is not a sound.\n" * 100), "not audio"),
    "random bytes": ("a.flac", content(np.random.default_rng(0).bytes(10_000)), "not audio"),
    "raw samples": ("a.raw", content(bytes(10_000)), "no header"),
    "wav of half its length": ("a.wav", cut(sound(), 0.5), "cut short after 0.500 s"),
    "wav without its last byte": ("a.wav", cut(sound(), 0.99999), "cut short"),
    "wav of a header alone": ("a.wav", cut(sound(), 0.0007), "cut short after 0.000 s"),
    "aiff of half its length": ("a.aiff", cut(sound(), 0.5), "cut short"),
    "au of half its length": ("a.au", cut(sound(), 0.5), "cut short"),
    "w64 of half its length": ("a.w64", cut(sound(), 0.5), "cut short"),
    "rf64 of half its length": ("a.rf64", cut(sound(), 0.5), "cut short"),
    "caf of almost its length": ("a.caf", cut(sound(), 0.99), "cut short"),
    "flac of half its length": ("a.flac", cut(sound(), 0.5), "cut short|damaged"),
    "ogg of half its length": ("a.ogg", cut(sound(np.tile(NOISE, 5)), 0.5), "cut short"),
    "ogg without its last byte": ("a.ogg", cut(sound(), 0.99999), "cut short"),
    "opus of half its length": (
        "a.opus",
        cut(sound(np.tile(NOISE, 5), 48_000, format="OGG", subtype="OPUS"), 0.5),
        "cut short",
    ),
    "wav that claims 2 GB": ("a.wav", patched(sound(), 40, b"\x00\x00\xff\x7e"), "cut short after 1.000 s"),
    "flac that claims 2^36 samples": ("a.flac", patched(sound(), 21, b"\xff\xff\xff\xff\xff"), "cut short|damaged"),
    "rate of 2 GHz": ("a.wav", patched(sound(), 24, b"\xff\xff\xff\x7f"), "sample rate"),
    "no samples": ("a.wav", sound(NOISE[:0]), "0 samples"),
    "NaN": ("a.wav", sound(with_sample(np.nan), subtype="FLOAT"), r"sample nan at 0\.250 s"),
    "Inf": ("a.wav", sound(with_sample(-np.inf), subtype="FLOAT"), r"sample -inf at 0\.250 s"),
    "beyond float32": ("a.wav", sound(with_sample(1e300), subtype="DOUBLE"), r"sample inf at 0\.250 s"),
    "absurdly loud": ("a.wav", sound(with_sample(2e6), subtype="FLOAT"), r"sample 2e\+06 at 0\.250 s"),
    "NaN in one of two channels": (
        "a.wav",
        sound(np.stack([NOISE, with_sample(np.nan)], 1), subtype="FLOAT"),
        r"sample nan at 0\.250 s",
    ),
    "folder without audio": ("clips", folder_with("notes.txt"), r"no audio in this folder.*\.wav"),
    "empty folder": ("clips", Path.mkdir, "no audio in this folder"),
    "pattern that matches nothing": ("*.wav", lambda path: None, "no file matches"),
}
