"""Embeddings of many sources in one table, in bounded memory: `parquet` or `hdf5`.

A row is an embedding: ``file``, ``start`` and ``end`` in s of what it sees of that file, ``time_ms`` of its centre
(none for a scene), ``layer``, ``embedding``. See `TableRows`.

parquet  ``embedding`` is a list of fixed size; row groups of `GROUP_ROWS`; the metadata of the schema hold the
         provenance as JSON, and the identity of the table
hdf5     a dataset per column, NaN where there is no time; provenance, identity and layer are attributes of the root
"""

from __future__ import annotations

import contextlib
import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

GROUP_ROWS = 8192
"""Rows of a row group, and rows in memory at once: 25 MB for 768 numbers each."""


@dataclass(frozen=True, slots=True)
class TableRows:
    """The embeddings of one source.

    Attributes
    ----------
    file : as the user names it
    starts, ends : (rows,) of what each sees, in s from the beginning of the file; NaN if unknown
    times_ms : (rows,) of the centre of each, from the beginning of the file; NaN for a scene
    embeddings : (rows, size) float32 or float16
    """

    file: str
    starts: np.ndarray
    ends: np.ndarray
    times_ms: np.ndarray
    embeddings: np.ndarray

    def blocks(self) -> Iterator[TableRows]:
        """Split into pieces that fit into memory."""
        for first in range(0, len(self.embeddings), GROUP_ROWS):
            part = slice(first, first + GROUP_ROWS)
            columns = (self.starts, self.ends, self.times_ms, self.embeddings)
            yield TableRows(self.file, *(np.ascontiguousarray(column[part]) for column in columns))

    @property
    def name(self) -> str:
        r"""The file as text; bytes of its name that are not UTF-8 are written ``\udcff``."""
        return self.file.encode("utf-8", "backslashreplace").decode()


class RowGroups:
    """Collects blocks of rows into row groups of `GROUP_ROWS`.

    Parameters
    ----------
    write : writes the blocks of one group
    cut : splits a block in two after a number of rows
    count : returns the rows of a block
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
        """Add a block."""
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

    def __enter__(self) -> RowGroups:
        return self

    def __exit__(self, *error: Any) -> None:
        """Write the last group, unless something was raised."""
        if not any(error):
            self._flush()


class TableFormat:
    """A format of one table for all sources.

    Parameters
    ----------
    provenance : what made the embeddings, ready for JSON
    layer : which is embedded, None if unknown
    partitioned : the table lies in a folder that names its layer, so it has no such column: readers that understand
        such folders add one, and refuse a second

    Attributes
    ----------
    suffixes : of its files, new ones get the first
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        self.provenance = json.loads(json.dumps(provenance))  # as it will be read: lists, no tuples
        self.layer = layer
        self.partitioned = partitioned

    @staticmethod
    def metadata_of(path: Path) -> dict[str, str]:
        """Read provenance (as JSON) and identity of a file of this format, each if it has one."""
        raise NotImplementedError

    def provenance_of(self, path: Path) -> Any:
        """Read the provenance of a file of this format, None if it has none."""
        with contextlib.suppress(KeyError, ValueError):
            return json.loads(self.metadata_of(path)["provenance"])
        return None

    def create(self, path: Path, identity: str) -> contextlib.AbstractContextManager[Callable[[Any], None]]:
        """Create a table; the context is a function that adds blocks, of `TableRows` or from `reader`."""
        raise NotImplementedError

    def reader(self, path: Path) -> contextlib.AbstractContextManager[Callable[[int, int], Iterator[Any]]]:
        """Open a table; the context is a function that reads rows: (first, count) -> blocks."""
        raise NotImplementedError
