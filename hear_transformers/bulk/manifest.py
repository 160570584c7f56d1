"""A list of files, or of parts of them, stored in a file -> sources.

txt       one path per line
csv, tsv  a table, see `rows`; columns ``path`` and optionally ``start`` and ``end`` in s, others are ignored
parquet   a table with the same columns

A table that is called .txt, as those of Raven, is read as one; selection tables of Raven need no names of columns, see
`raven`. Paths are relative to the folder of the list, addresses stay as they are. It may be the manifest of a training
run, see `training.manifest`.
"""

from __future__ import annotations

import math
import os
from collections.abc import Iterator, Mapping
from pathlib import Path, PurePath
from types import MappingProxyType
from typing import Any, NoReturn

from ..errors import AudioError, OptionError
from ..files import Address, local_path, place_of
from .rows import Table, open_text, parse_seconds
from .sources import Source

SUFFIXES = (".txt", ".csv", ".tsv", ".parquet")

NO_COLUMNS: Mapping[str, str] = MappingProxyType({})


def read_manifest(path: str | os.PathLike[str], columns: Mapping[str, str] = NO_COLUMNS) -> list[Source]:
    """Read a list of files, in its order; what it names twice is returned twice.

    Parameters
    ----------
    path : of the list, see `SUFFIXES`
    columns : "path", "start", "end" -> the column that holds it, see `rows.Table`; empty if they have these names

    Raises
    ------
    OptionError : it cannot be read, lacks a column, or a row is wrong, with the number of its line
    """
    path = local_path(path, "a manifest")
    if path.suffix.lower() not in SUFFIXES:
        raise OptionError(f"{path}: a manifest is a list of files that ends in {', '.join(SUFFIXES)}")
    table = Table(path=path, required=["path"], columns=columns, encoding_errors="surrogateescape")
    try:
        is_list = path.suffix.lower() == ".txt" and table.is_list_of_paths()
        rows = _lines(path) if is_list else _rows(table)
        sources = [_source(path, place, *cells) for place, *cells in rows]
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
    try:
        relative = place_of(name)
    except AudioError as error:
        raise OptionError(f"{manifest}, {place}: {error}") from error
    if isinstance(relative, Address):
        return Source(relative, PurePath(relative.path.name), start=first, end=last)
    path = manifest.parent / relative
    # A file below the folder of the list keeps its folders in the output.
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
    with open_text(path, "surrogateescape", newline="\n") as file:
        for number, line in enumerate(file, start=1):
            if name := line.rstrip("\r\n"):
                yield f"line {number}", name, None, None


def _rows(table: Table) -> Iterator[tuple[str, Any, Any, Any]]:
    """Read the rows of a table; paths need not be text."""

    def refuse(line: int, n_cells: int, n_columns: int) -> NoReturn:
        where = f"{table.path}, line {line}"
        raise OptionError(f"{where}: {n_cells} cells, the header has {n_columns}; quote what holds the separator")

    for number, (name, start, end) in table.rows(refuse):
        yield f"{table.unit} {number}", name, start, end
