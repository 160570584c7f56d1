"""Many small Parquet tables of one kind -> few large ones, in bounded memory: what shards leave, joined for readers.

A folder of large tables appears under its name when all of them are complete. Until then they lie in a hidden folder
beside it, each named by what it is made of, so that the same call goes on after a kill. The small tables stay as they
are: runs that go on need them.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Generator, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..files import atomic_path
from . import journal
from .formats import MOST_DIFFERENCES, differences
from .parquet import ParquetTable, open_table
from .tables import GROUP_ROWS

TABLE_ROWS = 2**20
"""Rows of a large table by default: 1.6 GB of 768 numbers in float16."""


@dataclass(frozen=True, slots=True)
class Compacted:
    """What a compaction did.

    Attributes
    ----------
    tables : the large ones, in order
    written : of these, that this call wrote; the others were there
    n_rows, n_inputs : rows, and small tables that they come from
    """

    tables: list[Path]
    written: int
    n_rows: int
    n_inputs: int


@dataclass(frozen=True, slots=True)
class _Input:
    """A small table."""

    path: Path
    n_rows: int
    identity: str


def compact(
    folder: str | os.PathLike[str],
    out: str | os.PathLike[str],
    rows: int = TABLE_ROWS,
    on_table: Callable[[int, int], None] = lambda done, of: None,
) -> Compacted:
    """Join the Parquet tables of a folder, but not of those below it, into few.

    The rows are in the order of the names of their tables, in which other readers take them. The large tables have the
    provenance of the small ones, and their columns: of one that only some have, rows of the others are null.

    Parameters
    ----------
    folder : of the small tables
    out : folder of the large ones, which must not exist, unless this call made it
    rows : of a large table, at least; a small table is never divided
    on_table : called as each large table is there, with their number so far and in the end

    Raises
    ------
    OptionError : a table does not say what made it, tables were made with other settings, or have a column of another
        type; `out` exists and holds something else
    DiskFullError : the disk is full
    """
    source, target = Path(folder), Path(os.path.normpath(out))
    if target.resolve() == source.resolve():
        raise OptionError(f"--out {target}: is the folder of the small tables; give another, which is then made")
    table = ParquetTable({})
    paths = _tables(source)
    schema = _schema(table, paths)
    groups = [*_groups([_input(table, path) for path in paths], rows)]
    names = [_name(i, group, schema) for i, group in enumerate(groups)]
    n_rows = sum(each.n_rows for group in groups for each in group)
    result = [target / name for name in names]
    if target.exists():
        if sorted(each.name for each in target.iterdir() if not each.name.startswith(".")) != sorted(names):
            raise OptionError(f"--out {target}: exists, and holds something else; remove it, or give another")
        return Compacted(result, 0, n_rows, len(paths))
    draft = target.parent / f".{target.name}.compacting"
    written = 0
    with journal.explained(draft), journal.exclusive(draft.with_name(f"{draft.name}.lock"), target):
        draft.mkdir(parents=True, exist_ok=True)
        for name in {each.name for each in draft.iterdir()} - {*names}:  # half of one, or of tables that changed since
            (draft / name).unlink()
        for i, (name, group) in enumerate(zip(names, groups, strict=True), start=1):
            if not (draft / name).exists():
                _join(table, schema, group, draft / name)
                written += 1
            on_table(i, len(groups))
        draft.rename(target)
    return Compacted(result, written, n_rows, len(paths))


def _tables(folder: Path) -> list[Path]:
    """Find the tables of a folder, in the order in which other readers take them."""
    suffixes = ParquetTable.suffixes
    found = [path for path in folder.iterdir() if path.suffix in suffixes] if folder.is_dir() else []
    found = sorted(path for path in found if not path.name.startswith("."))
    if not found:
        raise OptionError(f"{folder}: holds no {suffixes[0]} tables; give a folder that embed-audio wrote such to")
    return found


def _schema(table: ParquetTable, paths: Sequence[Path]) -> Any:
    """Return the columns of all tables, and what made them; raise OptionError if they do not go together."""
    arrow = table.library
    schema, first = None, None
    for path in paths:
        made_with = table.provenance_of(path)
        if not isinstance(made_with, dict):
            raise OptionError(f"{path}: does not say what made it; remove it, or move it elsewhere")
        own = table.library.parquet.read_schema(path)
        if schema is None:
            schema, first = own.remove_metadata(), made_with
            continue
        if changed := differences(first, made_with):
            raise OptionError(
                f"{paths[0]} and {path} were made with other settings: {', '.join(changed[:MOST_DIFFERENCES])}; join "
                "tables of one kind"
            )
        try:
            schema = arrow.unify_schemas([schema, own.remove_metadata()])
        except (arrow.ArrowInvalid, arrow.ArrowTypeError) as error:
            raise OptionError(f"{paths[0]} and {path} have columns of other types: {error}") from error
    assert schema is not None
    return schema.with_metadata({"provenance": json.dumps(first)})


def _input(table: ParquetTable, path: Path) -> _Input:
    status = path.stat()
    identity = table.metadata_of(path).get("id", "") or f"{status.st_size}-{status.st_mtime_ns}"
    return _Input(path, table.n_rows_of(path), identity)


def _groups(inputs: Sequence[_Input], rows: int) -> Iterator[list[_Input]]:
    """Divide tables among larger ones: whole ones, in order, up to a number of rows."""
    group: list[_Input] = []
    n_rows = 0
    for each in inputs:
        group.append(each)
        n_rows += each.n_rows
        if n_rows >= rows:
            yield group
            group, n_rows = [], 0
    if group:
        yield group


def _name(index: int, group: Sequence[_Input], schema: Any) -> str:
    """Return the name of a large table: its number, and a hash of what it is made of."""
    made_of = {
        "tables": [[each.path.name, each.n_rows, each.identity] for each in group],
        "columns": [str(field) for field in schema],
        "provenance": schema.metadata[b"provenance"].decode(),
    }
    return f"embeddings-{index:05}-{journal.digest(made_of)}{ParquetTable.suffixes[0]}"


def _join(table: ParquetTable, schema: Any, group: Sequence[_Input], path: Path) -> None:
    """Write a large table; its identity is its name."""
    arrow = table.library
    named = schema.with_metadata({**schema.metadata, "id": path.stem})
    with (
        atomic_path(path) as part,
        open_table(part, named) as writer,
        contextlib.closing(_row_groups(arrow, schema, group)) as row_groups,
    ):
        for rows in row_groups:
            writer.write_table(rows.replace_schema_metadata(named.metadata), row_group_size=GROUP_ROWS)


def _row_groups(arrow: Any, schema: Any, group: Sequence[_Input]) -> Generator[Any, None, None]:
    """Yield the rows of tables as groups of `GROUP_ROWS`, of these and a group of the input in memory."""
    waiting: list[Any] = []
    n_waiting = 0
    for each in group:
        with arrow.parquet.ParquetFile(each.path) as file:
            for i in range(file.num_row_groups):
                rows = _completed(arrow, schema, file.read_row_group(i))
                while len(rows):
                    waiting.append(rows.slice(0, GROUP_ROWS - n_waiting))
                    rows = rows.slice(len(waiting[-1]))
                    n_waiting += len(waiting[-1])
                    if n_waiting == GROUP_ROWS:
                        yield arrow.concat_tables(waiting).combine_chunks()
                        waiting, n_waiting = [], 0
    if waiting:
        yield arrow.concat_tables(waiting).combine_chunks()


def _completed(arrow: Any, schema: Any, rows: Any) -> Any:
    """Return rows with all columns of a schema, null where they have none."""
    columns = [
        rows[field.name] if field.name in rows.column_names else arrow.nulls(len(rows), field.type) for field in schema
    ]
    return arrow.table(columns, schema=schema)
