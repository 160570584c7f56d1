"""Labels of rows: from a table of labelled files or parts of files, else the folder of each file."""

from __future__ import annotations

import math
import os
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

from ..bulk.rows import Table, parse_seconds
from ..errors import OptionError
from ..files import local_path
from .reading import Rows


def by_folder(rows: Rows) -> list[str] | None:
    """Return the folder of each row's file as its label; None if there is only one."""
    folders = [os.path.basename(os.path.dirname(file)) for file in rows.files]
    return [folders[file] for file in rows.file.tolist()] if len(set(folders)) > 1 else None


def from_table(rows: Rows, name: str | os.PathLike[str], columns: Mapping[str, str]) -> list[str]:
    """Read the label of each row from a table with the columns path, labels and perhaps start, end; "" for none.

    A path is relative to the folder of the table of labels; if no file lies there, its name counts.

    Raises
    ------
    OptionError : it cannot be read, a time is none, or no label is of a file of the rows
    """
    path = local_path(name, "labels")
    parts = _parts(path, columns)
    by_name: dict[str, list[tuple[float, float, str]]] = {}
    for file, found in parts.items():
        by_name.setdefault(os.path.basename(file), []).extend(found)
    of_files = [parts.get(os.path.abspath(file)) or by_name.get(os.path.basename(file), []) for file in rows.files]
    if not any(of_files):
        raise OptionError(
            f"{path}: labels no file of {rows.path}; it has {next(iter(parts), 'none')}, the embeddings are of "
            f"{rows.files[0]}"
        )
    labels = []
    for file, start, end in zip(rows.file.tolist(), rows.start.tolist(), rows.end.tolist(), strict=True):
        last = math.inf if math.isnan(end) else end
        labels.append(", ".join(sorted({text for a, b, text in of_files[file] if a < last and start < b})))
    return labels


def _parts(path: Path, columns: Mapping[str, str]) -> dict[str, list[tuple[float, float, str]]]:
    """Read start, end and label of the parts of every file, by its absolute path."""

    def refuse(line: int, n_cells: int, n_columns: int) -> NoReturn:
        raise OptionError(f"{path}, line {line}: {n_cells} cells, the header has {n_columns}; quote what holds commas")

    table = Table(path=path, required=["path", "labels"], columns=columns)
    parts: dict[str, list[tuple[float, float, str]]] = {}
    for number, (file, label, start, end) in table.rows(refuse):
        try:
            span = parse_seconds(start, 0.0), parse_seconds(end, math.inf)
        except (TypeError, ValueError) as error:
            raise OptionError(f"{path}, {table.unit} {number}: {start!r} or {end!r} is not a time in s") from error
        place = os.path.abspath(path.parent / str(file))
        parts.setdefault(place, []).append((*span, str(label).strip()))
    return parts
