"""Embeddings of many sources in one Parquet file, see `tables`."""

from __future__ import annotations

import contextlib
import itertools
import json
from bisect import bisect_right
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError
from .tables import GROUP_ROWS, RowGroups, TableFormat, TableRows


class ParquetTable(TableFormat):
    """A Parquet table."""

    suffixes = (".parquet",)

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        super().__init__(provenance, layer, partitioned=partitioned)
        self.arrow = import_pyarrow("the format parquet")

    @staticmethod
    def metadata_of(path: Path) -> dict[str, str]:
        """Read provenance and identity, see `TableFormat.metadata_of`."""
        arrow = import_pyarrow("the format parquet")
        with contextlib.suppress(OSError, ValueError):  # pyarrow's own derive from these
            metadata = arrow.parquet.read_schema(path).metadata or {}
            return {key.decode(): value.decode() for key, value in metadata.items() if key in (b"provenance", b"id")}
        return {}

    @contextlib.contextmanager
    def create(self, path: Path, identity: str) -> Iterator[Callable[[Any], None]]:
        """Create a table, see `TableFormat.create`."""
        arrow = self.arrow
        metadata = {"provenance": json.dumps(self.provenance), "id": identity}
        with contextlib.ExitStack() as stack:
            table: Any = None

            def write(blocks: list[Any]) -> None:
                nonlocal table
                rows = arrow.concat_tables(blocks).replace_schema_metadata(metadata)
                if table is None:
                    # Names and layers repeat; numbers of embeddings do not.
                    repeated = [name for name in ("file", "layer") if name in rows.column_names]
                    table = stack.enter_context(arrow.parquet.ParquetWriter(path, rows.schema, use_dictionary=repeated))
                table.write_table(rows, row_group_size=GROUP_ROWS)

            def cut(block: Any, at: int) -> tuple[Any, Any]:
                return block.slice(0, at), block.slice(at)

            with RowGroups(write, cut) as groups:
                yield lambda block: groups.add(self._arrow_of(block) if isinstance(block, TableRows) else block)

    def _arrow_of(self, rows: TableRows) -> Any:
        arrow, n_rows = self.arrow, len(rows.embeddings)
        numbers = arrow.array(rows.embeddings.reshape(-1))  # (rows * size,)
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
        """Open a table, see `TableFormat.reader`."""
        with self.arrow.parquet.ParquetFile(path) as file:
            counts = [file.metadata.row_group(i).num_rows for i in range(file.num_row_groups)]
            ends = list(itertools.accumulate(counts))
            in_memory: tuple[int, Any] = (-1, None)  # the last row group read

            def read(first: int, n_rows: int) -> Iterator[Any]:
                nonlocal in_memory
                while n_rows:
                    group = bisect_right(ends, first)
                    if in_memory[0] != group:
                        in_memory = (group, file.read_row_group(group))
                    block = in_memory[1].slice(first - (ends[group] - counts[group]), n_rows)
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
