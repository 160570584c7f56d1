"""CSV file -> the cells of some of its columns, row by row. Nothing in the file is guessed or repaired."""

from __future__ import annotations

import csv
import math
from collections.abc import Callable, Iterator, Sequence
from operator import itemgetter
from pathlib import Path
from typing import Any

from ..errors import HearTransformersError


def read_csv(
    path: Path,
    check_header: Callable[[list[str]], None],
    columns: Sequence[str],
    *,
    on_wrong_length: Callable[[int, int, int], None],
    error: type[HearTransformersError],
    encoding_errors: str = "strict",
) -> Iterator[tuple[int, Sequence[str]]]:
    """Read rows of a CSV in UTF-8, with or without a byte order mark; empty lines are skipped.

    Parameters
    ----------
    path : of the CSV
    check_header : raises an error if the names of the columns are wrong
    columns : at least two names, in the order in which their cells are wanted
    on_wrong_length : called with line, number of cells and number of columns where these two differ
    error : raised for the file itself
    encoding_errors : "strict", or "surrogateescape" for paths that need not be text

    Yields
    ------
    line, cells : line of the file, from 1, in which the row ends, and its cells; "" for a column that is missing

    Raises
    ------
    error : the file cannot be read, or is not a CSV in UTF-8
    """
    try:
        with path.open(encoding="utf-8-sig", errors=encoding_errors, newline="") as file:
            # Not strict, a quote that is never closed would swallow the rest of the rows.
            rows = csv.reader(file, skipinitialspace=True, strict=True)
            header = [name.strip() for name in next(rows, [])]
            check_header(header)
            # A missing column is read from an empty cell behind the others.
            pick = itemgetter(*(header.index(name) if name in header else len(header) for name in columns))
            for cells in filter(None, rows):
                if len(cells) == len(header):
                    yield rows.line_num, pick([*cells, ""])
                else:
                    on_wrong_length(rows.line_num, len(cells), len(header))
    except UnicodeDecodeError as reason:
        raise error(f"{path}: not text in UTF-8 ({reason.reason}); save it as CSV in UTF-8") from reason
    except csv.Error as reason:
        raise error(f"{path}: not a CSV ({reason}); is each quote closed?") from reason
    except OSError as reason:
        raise error(f"{path}: cannot be read ({reason.strerror or reason})") from reason


def parse_seconds(cell: Any, default: float) -> float:
    """Return a time in s, the default if a cell is empty: "", None or NaN.

    Raises
    ------
    TypeError, ValueError : it is not a number, is negative or infinite
    """
    if cell is None or cell == "" or cell != cell:
        return default
    seconds = float(cell)
    if not 0.0 <= seconds < math.inf:
        raise ValueError
    return seconds


def found_header(header: Sequence[str]) -> str:
    """Describe a header in an error."""
    return f"found {','.join(header)[:200]!r}" if header else "the file is empty"
