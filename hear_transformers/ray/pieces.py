"""What is embedded by itself: a part of a file as it was asked for, or some segments of a long file."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from ..audio.reading import AudioFile
from ..bulk.shards import Part, Span, version_of
from ..bulk.sources import Source
from ..embedding.windows import exact
from ..errors import AudioError

SPLIT_BYTES = 2**24
SPLIT_SECONDS = 600.0
"""Files from this size on are opened for their duration, and their segments are embedded in pieces of this length."""


@dataclass(frozen=True, slots=True)
class Piece:
    """A part of a file that is embedded by itself.

    Attributes
    ----------
    source : the part
    part : its name in shards
    index : of the source that it is a piece of, from 0
    span : of that source; None if it is all of it
    """

    source: Source
    part: Part
    index: int
    span: Span | None = None


@dataclass(frozen=True, slots=True)
class Segments:
    """Segments of long files, of which pieces are embedded apart.

    Attributes
    ----------
    length, hop : of segments, in s
    step : segments after which a piece may end, so that the next begins on a sample
    """

    length: float
    hop: float
    step: int

    def pieces(self, seconds: float) -> Iterator[tuple[float, float]]:
        """Yield beginning and end of pieces of `SPLIT_SECONDS` in s; the last one, never short, ends with the file."""
        n = math.ceil(SPLIT_SECONDS / self.hop / self.step) * self.step
        hop, length = exact(self.hop), exact(self.length)
        first = 0
        while (first + 2 * n) * hop + length < seconds:
            yield float(first * hop), float((first + n - 1) * hop + length)
            first += n
        yield float(first * hop), math.inf


def segments_of(options: Mapping[str, Any], rates: Iterable[int]) -> Segments | None:
    """Return the segments that options ask for; None if there are none, or no piece would begin on a sample."""
    if options.get("segment") is None:
        return None
    length, hop = exact(options["segment"]), exact(options["segment"]) - exact(options.get("overlap") or 0.0)
    step = math.lcm(*((hop * rate).denominator for rate in rates))
    return Segments(float(length), float(hop), step) if step * hop < SPLIT_SECONDS else None


def pieces_of(index: int, source: Source, segments: Segments | None) -> list[Piece]:
    """Return the pieces of a source: one, unless it is long and embedded in segments."""
    if source.error is not None:
        return []
    version = version_of(source)
    bounds = [(source.start, source.end)]
    if segments is not None and isinstance(source.path, Path) and (source.start, source.end) == (0.0, math.inf):
        seconds = _long_seconds(source.path)
        bounds = [*segments.pieces(seconds)]
    if len(bounds) == 1:
        return [Piece(source, Part.of(source, version), index)]
    found = []
    for start, end in bounds:
        piece = replace(source, start=start, end=end)
        found.append(Piece(piece, Part.of(piece, version), index, Span(0.0, None, seconds)))
    return found


def _long_seconds(path: Path) -> float:
    """Return the duration in s of a large file of which any part can be read by itself; 0 of any other."""
    try:
        if os.stat(path).st_size < SPLIT_BYTES:
            return 0.0
        with AudioFile(path) as file:
            return file.sought_seconds or 0.0
    except (OSError, AudioError):
        return 0.0  # what is wrong is told where it is read
