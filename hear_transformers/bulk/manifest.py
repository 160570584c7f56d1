"""A list of files, or of parts of them, in a file of its own -> sources.

txt      a path a line
csv      with a header; columns ``path`` and perhaps ``start`` and ``end`` in s, others are not read
parquet  a table with the same columns

Paths are relative to the folder of the list. It may be the manifest of a training run, see `training.manifest`.
"""

from __future__ import annotations

import csv
import math
import os
from collections.abc import Callable, Iterator
from pathlib import Path, PurePath
from typing import Any

from ..errors import OptionError
from .sources import Source, each_once

COLUMNS = ("path", "start", "end")


def read(path: Path) -> list[Source]:
    """Read a list; what it names twice is taken once.

    Parameters
    ----------
    path : of the list: .txt, .csv or .parquet

    Raises
    ------
    OptionError : it cannot be read, has no column ``path``, or, with the number of the line, a row is wrong
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise OptionError(f"{path}: a manifest is a list of files that ends in {', '.join(READERS)}")
    try:
        sources = each_once(_source(path, where, *cells) for where, *cells in reader(path))
    except csv.Error as error:
        raise OptionError(f"{path}: not a CSV ({error}); is each quote closed?") from error
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not sources:
        raise OptionError(f"{path}: names no files; expected one on each line")
    return sources


def _source(manifest: Path, where: str, name: Any, start: Any, end: Any) -> Source:
    """Make a source of one row."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise OptionError(f"{manifest}, {where}: no path of a file: {name!r}")
    first, last = (_seconds(manifest, where, cell) for cell in (start, end))
    first, last = (0.0 if math.isnan(first) else first), (math.inf if math.isnan(last) else last)
    if last <= first:
        raise OptionError(f"{manifest}, {where}: the end, {last:g} s, is not after the start, {first:g} s")
    path = manifest.parent / name
    # What lies below the folder of the list keeps its own folders in the output.
    relative = PurePath(name)
    is_below = not relative.is_absolute() and os.pardir not in relative.parts
    return Source(path, relative if is_below else PurePath(path.name), start=first, end=last)


def _seconds(manifest: Path, where: str, cell: Any) -> float:
    """Read a time in s, NaN if there is none."""
    if cell is None or cell == "" or cell != cell:
        return math.nan
    try:
        time = float(cell)
    except (TypeError, ValueError):
        time = -1.0
    if not 0.0 <= time < math.inf:
        raise OptionError(f"{manifest}, {where}: {cell!r} is not a time; give seconds, 0 or more, or nothing")
    return time


def _lines(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read paths, one a line; they need not be text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if name := line.rstrip("\r\n"):
                yield f"line {number}", name, None, None


def _csv(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read the rows of a CSV."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
        # Not strict, a quote that is never closed would swallow the rest of the rows.
        rows = csv.reader(file, skipinitialspace=True, strict=True)
        header = [name.strip() for name in next(rows, [])]
        _check_columns(path, header)
        for cells in filter(None, rows):
            where = f"line {rows.line_num}"
            if len(cells) != len(header):
                raise OptionError(
                    f"{path}, {where}: {len(cells)} cells, the header has {len(header)}; quote what holds a comma"
                )
            row = dict(zip(header, cells, strict=True))
            name, start, end = (row.get(column, "") for column in COLUMNS)
            yield where, name, start.strip(), end.strip()


def _parquet(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read the rows of a table."""
    from .tables import import_pyarrow

    arrow = import_pyarrow("a manifest in Parquet")
    try:
        file = arrow.parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise OptionError(f"{path}: not a Parquet table ({error})") from error
    with file:
        header = file.schema_arrow.names
        _check_columns(path, header)
        number = 0
        for batch in file.iter_batches(columns=[column for column in COLUMNS if column in header]):
            for row in batch.to_pylist():
                number += 1
                name, start, end = (row.get(column) for column in COLUMNS)
                yield f"row {number}", name, start, end


def _check_columns(path: Path, header: list[str]) -> None:
    if "path" not in header or len(set(header)) < len(header):
        found = f"found {','.join(header)[:200]!r}" if header else "the file is empty"
        raise OptionError(f"{path}: the first row names the columns: path, perhaps start and end, each once; {found}")


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any, Any, Any]]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
