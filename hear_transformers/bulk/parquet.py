"""Embeddings of many sources in one Parquet file, see `tables`."""

from __future__ import annotations

import contextlib
import itertools
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tables import GROUP_ROWS, Block, TableFormat


class ParquetTable(TableFormat):
    """A Parquet table."""

    name, module, suffixes = "parquet", "pyarrow.parquet", (".parquet",)

    def metadata_of(self, path: Path) -> dict[str, str]:
        """Read provenance and identity, see `TableFormat.metadata_of`."""
        with contextlib.suppress(OSError, ValueError):  # pyarrow's own derive from these
            metadata = self.library.parquet.read_schema(path).metadata or {}
            return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"provenance", b"id")}
        return {}

    def n_rows_of(self, path: Path) -> int:
        """Read the number of rows, see `TableFormat.n_rows_of`."""
        return int(self.library.parquet.read_metadata(path).num_rows)

    def layers_of(self, path: Path, most: int) -> list[str]:
        """Return the layers that rows of a file are of, at most so many; none without such a column."""
        found: set[str | None] = set()
        with self.library.parquet.ParquetFile(path) as file:
            columns = [file.schema.column(i).path for i in range(len(file.schema))]
            if "layer" not in columns:
                return []
            column = columns.index("layer")
            for group in range(file.num_row_groups):
                statistics = file.metadata.row_group(group).column(column).statistics
                if statistics is not None and statistics.has_min_max:
                    found |= {statistics.min, statistics.max}
                else:
                    found |= {*file.read_row_group(group, ["layer"])["layer"].unique().to_pylist()}
                if len(found) >= most:
                    break
        return sorted(map(str, found))[:most]

    @contextlib.contextmanager
    def writer(self, path: Path, metadata: Mapping[str, str]) -> Iterator[Callable[[Block], None]]:
        """Create a file, see `TableFormat.writer`."""
        with contextlib.ExitStack() as stack:
            table: Any = None

            def write(block: Block) -> None:
                nonlocal table
                rows = self._arrow_of(block).replace_schema_metadata(metadata)
                if table is None:
                    table = stack.enter_context(open_table(path, rows.schema))
                table.write_table(rows, row_group_size=GROUP_ROWS)

            yield write

    def _arrow_of(self, block: Block) -> Any:
        array, size = self.library.array, block["embedding"].shape[1]
        times = {name: column for name, column in block.items() if name not in ("file", "channel", "embedding")}
        numbers = array(block["embedding"].reshape(-1))  # (rows * size,)
        columns: dict[str, Any] = {name: array(block[name]) for name in ("file", "channel") if name in block}
        columns |= {name: array(column, mask=np.isnan(column)) for name, column in times.items()}
        if not self.partitioned:
            columns["layer"] = array([self.layer] * len(block["file"]), self.library.string())
        columns["embedding"] = self.library.FixedSizeListArray.from_arrays(numbers, size)
        return self.library.table(columns)

    @contextlib.contextmanager
    def reader(
        self, path: Path, columns: Sequence[str] | None = None
    ) -> Iterator[Callable[[int, int], Iterator[Block]]]:
        """Open a table, see `TableFormat.reader`."""
        with self.library.parquet.ParquetFile(path) as file:
            counts = (file.metadata.row_group(i).num_rows for i in range(file.num_row_groups))
            starts = list(itertools.accumulate(counts, initial=0))
            in_memory: tuple[int, Block] = (-1, {})  # the last row group read
            known = file.schema_arrow.names
            wanted = None if columns is None else [name for name in columns if name in known]
            if wanted == []:
                raise KeyError(*(columns or ()))

            def read(first: int, n_rows: int) -> Iterator[Block]:
                nonlocal in_memory
                while n_rows:
                    group = bisect_right(starts, first) - 1
                    if in_memory[0] != group:
                        in_memory = (group, _block_of(file.read_row_group(group, wanted)))
                    at = first - starts[group]
                    block = {name: column[at : at + n_rows] for name, column in in_memory[1].items()}
                    yield block
                    n_read = len(next(iter(block.values())))
                    first, n_rows = first + n_read, n_rows - n_read

            yield read


def open_table(path: Path, schema: Any) -> Any:
    """Return a `pyarrow.parquet.ParquetWriter` of a table with the columns of `tables`."""
    import pyarrow.parquet

    repeated = [name for name in ("file", "layer") if name in schema.names]  # unlike the numbers of embeddings
    return pyarrow.parquet.ParquetWriter(path, schema, use_dictionary=repeated)


def _block_of(rows: Any) -> Block:
    block = {name: rows[name].to_numpy() for name in rows.column_names if name not in ("layer", "embedding")}
    if "embedding" not in rows.column_names:
        return block
    numbers = rows["embedding"].combine_chunks().flatten().to_numpy()  # (rows * size,)
    return {**block, "embedding": numbers.reshape(len(rows), -1)}
