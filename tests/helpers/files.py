"""One question about one audio file, which is opened for it."""

from collections.abc import Iterator
from pathlib import Path

from torch import Tensor

from hear_transformers.audio.reading import AudioFile


def blocks(path: Path, sample_rate: int, block_seconds: float) -> Iterator[Tensor]:
    with AudioFile(path) as file:
        yield from file.blocks(sample_rate, block_seconds)


def excerpt(path: Path, sample_rate: int, start: float, seconds: float) -> Tensor:
    with AudioFile(path) as file:
        return file.excerpt(sample_rate, start, seconds)


def duration(path: Path) -> float:
    with AudioFile(path) as file:
        return file.duration()
