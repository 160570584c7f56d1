"""A list of files, or of parts of them, stored in a file -> sources.

txt      one path per line
csv      with a header; columns ``path`` and optionally ``start`` and ``end`` in s, others are ignored
parquet  a table with the same columns

Paths are relative to the folder of the list. It may be the manifest of a training run, see `training.manifest`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Iterator
from functools import partial
from pathlib import Path, PurePath
from typing import Any, NoReturn

from ..errors import OptionError
from .csv_rows import found_header, parse_seconds, read_csv
from .sources import Source
from .tables import import_extra

COLUMNS = ("path", "start", "end")


def read_manifest(path: Path) -> list[Source]:
    """Read a list of files, in its order; what it names twice is returned twice.

    Parameters
    ----------
    path : of the list: .txt, .csv or .parquet

    Raises
    ------
    OptionError : it cannot be read, has no column ``path``, or a row is wrong, with the number of its line
    """
    reader = READERS.get(path.suffix.lower())
    if reader is None:
        raise OptionError(f"{path}: a manifest is a list of files that ends in {', '.join(READERS)}")
    try:
        sources = [_source(path, place, *cells) for place, *cells in reader(path)]
    except OSError as error:
        raise OptionError(f"{path}: cannot be read ({error.strerror or error})") from error
    if not sources:
        raise OptionError(f"{path}: names no files; expected one on each line")
    return sources


def _source(manifest: Path, place: str, name: Any, start: Any, end: Any) -> Source:
    """Return the source of one row; `place` names the row in errors."""
    if not isinstance(name, str) or not name.strip() or "\0" in name:
        raise OptionError(f"{manifest}, {place}: {name!r} is not the path of a file")
    first, last = _seconds(manifest, place, start, 0.0), _seconds(manifest, place, end, math.inf)
    if last <= first:
        raise OptionError(f"{manifest}, {place}: the end, {last:g} s, is not after the start, {first:g} s")
    path = manifest.parent / name
    # A file below the folder of the list keeps its folders in the output.
    relative = PurePath(name)
    is_below = not relative.is_absolute() and os.pardir not in relative.parts
    return Source(path, relative if is_below else PurePath(path.name), start=first, end=last)


def _seconds(manifest: Path, place: str, cell: Any, default: float) -> float:
    try:
        return parse_seconds(cell, default)
    except (TypeError, ValueError) as error:
        reason = f"{cell!r} is not a time; give seconds, 0 or more, or nothing"
        raise OptionError(f"{manifest}, {place}: {reason}") from error


def _lines(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read paths, one per line; they need not be text."""
    with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if name := line.rstrip("\r\n"):
                yield f"line {number}", name, None, None


def _csv(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read the rows of a CSV; paths need not be text."""

    def refuse(line: int, n_cells: int, n_columns: int) -> NoReturn:
        raise OptionError(f"{path}, line {line}: {n_cells} cells, the header has {n_columns}; quote what holds a comma")

    check = partial(_check_columns, path)
    rows = read_csv(path, check, COLUMNS, on_wrong_length=refuse, error=OptionError, encoding_errors="surrogateescape")
    for line, (name, start, end) in rows:
        yield f"line {line}", name, start.strip(), end.strip()


def _parquet(path: Path) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read the rows of a table."""
    arrow = import_extra("a manifest in Parquet", "pyarrow.parquet", "parquet")
    try:
        file = arrow.parquet.ParquetFile(path)
    except arrow.ArrowInvalid as error:
        raise OptionError(f"{path}: not a Parquet table ({error})") from error
    with file:
        header = file.schema_arrow.names
        _check_columns(path, header)
        batches = file.iter_batches(columns=[column for column in COLUMNS if column in header])
        for number, row in enumerate((row for batch in batches for row in batch.to_pylist()), start=1):
            yield f"row {number}", row["path"], row.get("start"), row.get("end")


def _check_columns(path: Path, header: list[str]) -> None:
    if "path" not in header or len(set(header)) < len(header):
        raise OptionError(
            f"{path}: the first row must name the columns, each once: path, optionally start and end; "
            f"{found_header(header)}"
        )


READERS: dict[str, Callable[[Path], Iterator[tuple[str, Any, Any, Any]]]] = {
    ".txt": _lines,
    ".csv": _csv,
    ".parquet": _parquet,
}
