"""Embeddings of many sources in one table, in bounded memory: Parquet, or HDF5 (`hdf5`).

A row is an embedding: ``file``, ``start`` and ``end`` in s of what it hears in that file, ``time_ms`` of its centre
(none for a scene), ``layer``, ``embedding``. `Rows` says what they mean.

parquet  ``embedding`` is a list of fixed size; row groups of `GROUP_ROWS`; the metadata of the schema hold the
         provenance as JSON, and the identity of the table
hdf5     a dataset per column, NaN where there is no time; provenance, identity and layer are attributes of the root
"""

from __future__ import annotations

import contextlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import OptionError

GROUP_ROWS = 8192
"""Rows of a row group, and rows that are in memory at once: at 768 numbers each 25 MB."""


@dataclass(frozen=True, slots=True)
class Rows:
    r"""The embeddings of one source.

    Attributes
    ----------
    file : as the user names it; what is no text in it is written ``\udcff``
    starts, ends : (rows,) of what each hears, in s from the beginning of the file; NaN where nobody knows
    times_ms : (rows,) of the centre of each, from the beginning of the file; NaN for a scene
    embeddings : (rows, size) float32 or float16
    """

    file: str
    starts: np.ndarray
    ends: np.ndarray
    times_ms: np.ndarray
    embeddings: np.ndarray

    def blocks(self) -> Iterator[Rows]:
        """Cut it into pieces that fit into memory."""
        for first in range(0, len(self.embeddings), GROUP_ROWS):
            part = slice(first, first + GROUP_ROWS)
            columns = (self.starts, self.ends, self.times_ms, self.embeddings)
            yield Rows(self.file, *(np.ascontiguousarray(column[part]) for column in columns))

    @property
    def name(self) -> str:
        """The file as text."""
        return self.file.encode("utf-8", "backslashreplace").decode()


class Grouped:
    """Collects blocks of rows until there is a whole row group of them.

    Parameters
    ----------
    write : takes the blocks of one group
    cut : cuts a block in two behind a number of rows
    count : counts the rows of a block
    """

    def __init__(
        self,
        write: Callable[[list[Any]], None],
        cut: Callable[[Any, int], tuple[Any, Any]],
        count: Callable[[Any], int] = len,
    ) -> None:
        self.write = write
        self.cut = cut
        self.count = count
        self.blocks: list[Any] = []
        self.n_rows = 0

    def add(self, block: Any) -> None:
        """Take a block."""
        while self.n_rows + self.count(block) >= GROUP_ROWS:
            head, block = self.cut(block, GROUP_ROWS - self.n_rows)
            self.blocks.append(head)
            self._flush()
        if self.count(block):
            self.blocks.append(block)
            self.n_rows += self.count(block)

    def _flush(self) -> None:
        if self.blocks:
            self.write(self.blocks)
        self.blocks, self.n_rows = [], 0

    def __enter__(self) -> Grouped:
        return self

    def __exit__(self, *error: Any) -> None:
        """Write the rest, unless something was raised."""
        if not any(error):
            self._flush()


class Table:
    """One table for all sources; every format of tables derives from it.

    Parameters
    ----------
    provenance : what made the embeddings, ready for JSON
    layer : which is embedded, None if nobody knows
    partitioned : the table lies in a folder that names its layer, so it has no column of it: readers that understand
        such folders add one, and refuse a second

    Attributes
    ----------
    suffixes : of its files, the first is given to new ones
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        self.provenance = json.loads(json.dumps(provenance))  # as it will be read: lists, no tuples
        self.layer = layer
        self.partitioned = partitioned

    @staticmethod
    def metadata_of(path: Path) -> dict[str, str]:
        """Read provenance (as JSON) and identity of a file of this format, as far as it has them."""
        raise TypeError(f"the format of {path} cannot be read")

    def provenance_of(self, path: Path) -> Any:
        """Read the provenance of a file of this format, None if it has none."""
        with contextlib.suppress(KeyError, ValueError):
            return json.loads(self.metadata_of(path)["provenance"])
        return None

    def create(self, path: Path, identity: str) -> contextlib.AbstractContextManager[Callable[[Any], None]]:
        """Make a table; gives the function that adds blocks of `Rows`, or what `reader` gives."""
        raise TypeError(f"{type(self).__name__} makes no {path} ({identity})")

    def reader(self, path: Path) -> contextlib.AbstractContextManager[Callable[[int, int], Iterator[Any]]]:
        """Open a table; gives the function that reads rows: (first, how many) -> blocks."""
        raise TypeError(f"{type(self).__name__} does not read {path}")


class ParquetTable(Table):
    """A Parquet table."""

    suffixes = (".parquet",)

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        super().__init__(provenance, layer, partitioned=partitioned)
        self.arrow = import_pyarrow("the format parquet")

    @staticmethod
    def metadata_of(path: Path) -> dict[str, str]:
        """Read provenance and identity, see `Table.metadata_of`."""
        arrow = import_pyarrow("the format parquet")
        with contextlib.suppress(OSError, ValueError):  # pyarrow's own derive from these
            metadata = arrow.parquet.read_schema(path).metadata or {}
            return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"provenance", b"id")}
        return {}

    @contextlib.contextmanager
    def create(self, path: Path, identity: str) -> Iterator[Callable[[Any], None]]:
        """Make a table, see `Table.create`."""
        arrow = self.arrow
        metadata = {"provenance": json.dumps(self.provenance), "id": identity}
        with contextlib.ExitStack() as stack:
            table: Any = None

            def write(blocks: list[Any]) -> None:
                nonlocal table
                rows = arrow.concat_tables(blocks).replace_schema_metadata(metadata)
                if table is None:
                    # Numbers of embeddings do not repeat; names and layers do.
                    repeated = [name for name in ("file", "layer") if name in rows.column_names]
                    table = stack.enter_context(arrow.parquet.ParquetWriter(path, rows.schema, use_dictionary=repeated))
                table.write_table(rows, row_group_size=GROUP_ROWS)

            def cut(block: Any, at: int) -> tuple[Any, Any]:
                return block.slice(0, at), block.slice(at)

            with Grouped(write, cut) as groups:
                yield lambda block: groups.add(self._arrow_of(block) if isinstance(block, Rows) else block)

    def _arrow_of(self, rows: Rows) -> Any:
        arrow, n_rows = self.arrow, len(rows.embeddings)
        numbers = arrow.array(rows.embeddings.reshape(-1))
        layers = {} if self.partitioned else {"layer": arrow.array([self.layer] * n_rows, arrow.string())}
        times = {"start": rows.starts, "end": rows.ends, "time_ms": rows.times_ms}
        return arrow.table(
            {
                "file": arrow.array([rows.name] * n_rows),
                **{name: arrow.array(column, mask=np.isnan(column)) for name, column in times.items()},
                **layers,
                "embedding": arrow.FixedSizeListArray.from_arrays(numbers, rows.embeddings.shape[1]),
            }
        )

    @contextlib.contextmanager
    def reader(self, path: Path) -> Iterator[Callable[[int, int], Iterator[Any]]]:
        """Open a table, see `Table.reader`."""
        with self.arrow.parquet.ParquetFile(path) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = list(itertools.accumulate(counts))
            held: tuple[int, Any] = (-1, None)

            def read(first: int, n_rows: int) -> Iterator[Any]:
                nonlocal held
                while n_rows:
                    group = bisect_right(ends, first)
                    if held[0] != group:
                        held = (group, file.read_row_group(group))
                    block = held[1].slice(first - (ends[group] - counts[group]), n_rows)
                    yield block
                    first, n_rows = first + len(block), n_rows - len(block)

            yield read


def import_pyarrow(what: str) -> Any:
    """Import pyarrow, which is an optional dependency."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(
            f"{what} needs pyarrow, which is not installed; run: python -m pip install 'hear_transformers[parquet]'"
        ) from error
    return pyarrow
