"""A table of audio files, as somebody else made it -> the cells of some of its columns, row by row.

text     a header, and cells separated by commas, tabs or semicolons, whichever finds the columns; lines before the
         header that begin with ``#`` are comments, the last of them may be the header itself, as AudioSet has it
parquet  a table

A column is read because it has the name of what it holds, or because `columns` says so; nothing is guessed or repaired.
Selection tables of Raven, whose columns are known, are read as they are, see `raven`.
"""

from __future__ import annotations

import csv
import math
import os
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from itertools import chain
from operator import itemgetter
from pathlib import Path
from typing import Any, NamedTuple, TextIO

from ..errors import HearTransformersError, OptionError, did_you_mean, import_extra, similar
from .raven import Selections, is_raven

FIELDS = ("path", "labels", "start", "end")
"""What a column may hold: an audio file, its labels, and the part of it that is meant, in s."""

TIMES = ("start", "end")

DELIMITERS = (",", "\t", ";")

BYTE_ORDER_MARKS = {b"\xff\xfe": "utf-16", b"\xfe\xff": "utf-16"}
"""First bytes of Excel's "Unicode text" -> its encoding."""

N_SHOWN = 20
"""Columns that a message names."""

PARTS = re.compile(r",\s*(?=(?:{})=)".format("|".join(FIELDS)))
"""Between the parts of --columns; names of columns may hold commas."""

CELL = re.compile(r"\{([^{}]+)\}")
"""The place of a column's cell in a template of paths."""

USUAL = {
    "path": "path file filename filepath fname slicefilename beginpath beginfile audio audiofile audiopath wav wavfile "
    "soundfile recording clip ytid",
    "labels": "labels label category class classname species annotation positivelabels primarylabel tags tag "
    "commonname scientificname target",
    "start": "start starttime startseconds starts begintimes begin begintime onset onsets",
    "end": "end endtime endseconds ends endtimes stop stoptime offset",
}
"""Names under which data sets keep what a column may hold, without spaces and signs: for advice, never for reading."""


def parse_columns(text: str) -> dict[str, str]:
    """Parse what a table's columns hold: ``path=filename,labels=category`` -> {"path": "filename", ...}.

    Raises
    ------
    OptionError : a part is not of this form, or names something that no column holds
    """
    columns: dict[str, str] = {}
    for part in PARTS.split(text) if text.strip() else ():
        name, equals, column = (each.strip() for each in part.partition("="))
        if name not in FIELDS or not equals or not column or name in columns:
            advice = did_you_mean(name, FIELDS, of="a column holds one of")
            raise OptionError(f"columns: {part!r} is not of the form path=filename,labels=category; {advice}")
        columns[name] = column
    return columns


class Row(NamedTuple):
    """A row of a table: its number from 1 (of its last line in a text), and its cells in the order asked for."""

    number: int
    cells: Sequence[Any]


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table to read.

    Attributes
    ----------
    path : of the file; .parquet, else text in UTF-8, or UTF-16 with a byte order mark
    required : what its columns must hold, of `FIELDS`, and other names of columns
    optional : what they may hold: read if `columns` is empty and a column has the name, or if `columns` has it
    columns : of `FIELDS`, the column that holds it; of "path" also a template, ``audio/{ytid}.wav``
    error : raised for the file itself
    encoding_errors : "strict", or "surrogateescape" for paths that need not be text
    """

    path: Path
    required: Sequence[str]
    optional: Sequence[str] = TIMES
    columns: Mapping[str, str] = field(default_factory=dict)
    error: type[HearTransformersError] = OptionError
    encoding_errors: str = "strict"

    @property
    def unit(self) -> str:
        """What a number of a row counts."""
        return "row" if self.path.suffix.lower() == ".parquet" else "line"

    def rows(self, on_wrong_length: Callable[[int, int, int], None]) -> Iterator[Row]:
        """Read the rows, but for those without any cell.

        Parameters
        ----------
        on_wrong_length : called with line, number of cells and number of columns where these two differ

        Yields
        ------
        row : cells are in the order of `required`, `optional`; "" or None for a column that is missing

        Raises
        ------
        error : the file cannot be read, is no table, or a column is missing, or there twice
        """
        try:
            yield from self._parquet() if self.unit == "row" else self._text(on_wrong_length)
        except UnicodeError as reason:
            raise self.error(f"{self.path}: not text in UTF-8 ({reason}); save it as CSV in UTF-8") from reason
        except csv.Error as reason:
            raise self.error(f"{self.path}: not a table ({reason}); is each quote closed?") from reason
        except OSError as reason:
            raise self.error(f"{self.path}: cannot be read ({reason.strerror or reason})") from reason

    def is_list_of_paths(self) -> bool:
        """Return True if a text is no table: its first line is a file, or has no tab and no name of a column."""
        if self.columns:
            return False
        with open_text(self.path, "surrogateescape") as file:
            line = next(file, "").rstrip("\r\n")
        if "\t" in line:
            return os.path.exists(self.path.parent / line)
        cells = {cell for delimiter in DELIMITERS for cell in _cells(line, delimiter) if cell != line}
        return cells.isdisjoint((*self.required, *self.optional))

    def _text(self, on_wrong_length: Callable[[int, int, int], None]) -> Iterator[Row]:
        with open_text(self.path, self.encoding_errors) as file:
            first, rest, n_before, delimiter = self._header(file)
            # Not strict, a quote that is never closed would swallow the rest of the rows.
            rows = csv.reader(chain([first], rest), delimiter=delimiter, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(rows, [])]
            of_raven = None if self.columns or not is_raven(header) else self._picker_of_raven(header)
            pick = of_raven or self._picker(header)
            commas = [i for i, name in enumerate((*self.required, *self.optional)) if name in TIMES]
            for cells in rows:
                if not any(cells):
                    continue
                number = rows.line_num + n_before
                if len(cells) != len(header):
                    on_wrong_length(number, len(cells), len(header))
                    continue
                if (picked := pick(cells)) is None:
                    continue
                if delimiter != ",":  # of a language that writes 0,5
                    picked = [cell.replace(",", ".") if i in commas else cell for i, cell in enumerate(picked)]
                yield Row(number, picked)

    def _header(self, lines: Iterator[str]) -> tuple[str, Iterator[str], int, str]:
        """Find the header of a text: -> header, the lines behind it, number of lines before it, delimiter."""
        comment, line, n_before = "", next(lines, ""), 0
        if match := re.fullmatch(r'"?sep=(.)"?', line.strip()):  # by and for Excel
            return next(lines, ""), lines, 1, match[1]
        while line.startswith("#"):
            comment, line, n_before = line[1:], next(lines, ""), n_before + 1

        def fit(header: str) -> tuple[int, int, int]:
            """Return the number of missing columns, that of cells as a negative, and that of the best delimiter."""
            split = [_cells(header, delimiter) for delimiter in DELIMITERS]
            return min((len(self._missing(cells)), -len(cells), i) for i, cells in enumerate(split))

        of_comment, of_line = fit(comment), fit(line)
        # The last comment is the header if it alone finds the columns, or else has as many cells as the first row.
        if comment and of_line[0] and (not of_comment[0] or of_comment[1] == of_line[1] < -1):
            return comment, chain([line], lines), n_before - 1, DELIMITERS[of_comment[2]]
        return line, lines, n_before, DELIMITERS[of_line[2]]

    def _parquet(self) -> Iterator[Row]:
        arrow = import_extra("a table in Parquet", "pyarrow.parquet", "parquet")
        try:
            file = arrow.parquet.ParquetFile(self.path)
        except arrow.ArrowInvalid as error:
            raise self.error(f"{self.path}: not a Parquet table ({error})") from error
        with file:
            header = file.schema_arrow.names
            pick = self._picker(header)
            used = [name for name in header if name in self._used(header)]
            for number, row in enumerate(
                (row for each in file.iter_batches(columns=used) for row in each.to_pylist()), 1
            ):
                yield Row(number, pick([row.get(name) for name in header]))

    # Columns

    def _reads(self, header: Sequence[str]) -> dict[str, str]:
        """Return the column, or the template, of each thing that is read."""
        found = self.columns or header
        names = [*self.required, *(name for name in self.optional if name in found)]
        return {name: self.columns.get(name, name) for name in names}

    def _used(self, header: Sequence[str]) -> list[str]:
        """Return the columns that are read."""
        return [column for name, text in self._reads(header).items() for column in _columns_in(name, text)]

    def _missing(self, header: Sequence[str]) -> list[str]:
        return [column for column in self._used(header) if column not in header]

    def _picker(self, header: list[str]) -> Callable[[Sequence[Any]], Sequence[Any]]:
        """Return the function that picks the cells of a row; raise an error unless each column is there once."""
        self._check(header)
        reads = self._reads(header)
        where = {column: header.index(column) for column in self._used(header)}
        names = (*self.required, *self.optional)
        # What no column holds is read from an empty cell behind the others; of a template, its first column for now.
        first = [_columns_in(name, reads[name])[0] if name in reads else None for name in names]
        pick = itemgetter(*(len(header) if column is None else where[column] for column in first))
        template, of_path = reads["path"], names.index("path")
        if not CELL.search(template):
            return lambda cells: pick([*cells, ""])

        def fill(cells: Sequence[Any]) -> Sequence[Any]:
            picked = [*pick([*cells, ""])]
            picked[of_path] = CELL.sub(lambda match: str(cells[where[match[1]]]).strip(), template)
            return picked

        return fill

    def _picker_of_raven(self, header: list[str]) -> Callable[[Sequence[Any]], Sequence[Any] | None] | None:
        """Return what picks the cells of a selection, or None of another view of it; None if some are missing."""
        selections = Selections(self.path, header, self.error)
        names = (*self.required, *self.optional)
        wanted = {*self.required} - {"path", *selections.columns, *header}
        if wanted or len({*header}) < len(header):
            return None

        def pick(cells: Sequence[Any]) -> Sequence[Any] | None:
            by_column = dict(zip(header, cells, strict=True))
            found = selections.read(by_column)
            return None if found is None else [found.get(name, by_column.get(name, "")) for name in names]

        return pick

    def _check(self, header: Sequence[str]) -> None:
        """Raise an error unless the columns that are read are there, each once, and none that is meant is left out."""
        shown = ", ".join(repr(name) for name in header[:N_SHOWN]) + (", ..." if len(header) > N_SHOWN else "")
        if not any(header):
            raise self.error(f"{self.path}: the file is empty; its first row names the columns {self._wanted}")
        missing = self._missing(header)
        if missing and self.columns:
            near = " or ".join(repr(name) for name in similar(missing[0], header))
            advice = f"did you mean {near}? " if near else ""
            raise self.error(f"{self.path}: no column {missing[0]!r}; {advice}its columns are {shown}")
        if missing:
            raise self.error(
                f"{self.path}: the first row must name the columns {self._wanted}; found {shown}. If they have other "
                f"names, say what they hold: --columns {self._advice(header)}"
            )
        if twice := [name for name in self._used(header) if header.count(name) > 1]:
            raise self.error(f"{self.path}: the column {twice[0]!r} is there twice; found {shown}")
        times = [] if self.columns else self._unread_times(header)
        if times:
            raise self.error(
                f"{self.path}: the column {times[0]!r} looks like a time and would not be read; say what the columns "
                f"hold: --columns {self._advice(header)}"
            )

    @property
    def _wanted(self) -> str:
        return f"{' and '.join(self.required)}, and may name {' and '.join(self.optional)}"

    def _unread_times(self, header: Sequence[str]) -> list[str]:
        """Return the columns that look like a start or end, where no column has that name."""
        missing = [name for name in self.optional if name not in header]
        return [
            column
            for column in header
            for name in missing
            if _plain(column) in USUAL[name].split() or sorted(_plain(column)) == sorted(name)
        ]

    def _advice(self, header: Sequence[str]) -> str:
        """Return the option that would read a table, in quotes, and what to add for times."""
        plain = {_plain(name): name for name in reversed(header)}
        usual = {name: next((plain[each] for each in USUAL[name].split() if each in plain), "") for name in FIELDS}
        parts = [f"{name}={usual.get(name) or 'COLUMN'}" for name in self.required if name in FIELDS]
        times = [f"{name}={usual[name]}" for name in self.optional if usual.get(name)]
        added = f", with {','.join(times)} if these are times within the files" if times else ""
        return f"'{','.join(parts)}'{added}"


def open_text(path: Path, errors: str, newline: str = "") -> TextIO:
    """Open a text in UTF-8, with or without a byte order mark, or in UTF-16 with one."""
    with path.open("rb") as file:
        encoding = BYTE_ORDER_MARKS.get(file.read(2), "utf-8-sig")
    return path.open(encoding=encoding, errors=errors, newline=newline)


def parse_seconds(cell: Any, default: float) -> float:
    """Return a time in s, the default if a cell is empty: "", None or NaN.

    Raises
    ------
    TypeError, ValueError : it is not a number, is negative or infinite
    """
    if isinstance(cell, str):
        cell = cell.strip()
    if cell is None or cell == "" or cell != cell:
        return default
    seconds = float(cell)
    if not 0.0 <= seconds < math.inf:
        raise ValueError
    return seconds


def _cells(line: str, delimiter: str) -> list[str]:
    """Split one line; a quote that is open at its end is no error yet."""
    rows = csv.reader([line.strip("\r\n")], delimiter=delimiter, skipinitialspace=True)
    return [cell.strip() for cell in next(rows, [])]


def _columns_in(name: str, column: str) -> list[str]:
    """Return the columns of a template, or the column itself."""
    return (CELL.findall(column) if name == "path" else []) or [column]


def _plain(name: str) -> str:
    """Return the letters and digits of a name: "Begin Time (s)" -> "begintimes"."""
    return re.sub(r"[^a-z0-9]", "", name.lower())
