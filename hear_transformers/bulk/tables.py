"""Embeddings of many sources in one table, in bounded memory: `parquet` or `hdf5`.

A row is an embedding: ``file``, its ``channel`` if each is embedded apart; ``start`` and ``end`` in s of the part of
the file as it was asked for or, along time, of what the embedding sees; ``time_ms`` of its centre (none for a scene);
``part_start`` and ``part_end`` as a manifest gives them (none for the end of the file), ``audio_end`` where the audio
of that part ended; ``layer``, ``embedding``. See `Block`.

parquet  ``embedding`` is a list of fixed size; row groups of `GROUP_ROWS`; the metadata of the schema hold the
         provenance as JSON, and the identity of the table
hdf5     a dataset per column, NaN where there is no time; provenance, identity and layer are attributes of the root
"""

from __future__ import annotations

import contextlib
import json
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import import_extra
from ..files import parse_json

GROUP_ROWS = 8192
"""Rows of a row group, and rows in memory at once: 25 MB for 768 numbers each."""

Block = dict[str, np.ndarray]
"""Rows of a table by column; the layer, which is the same for all, is left out.

file : (rows,) of text, as the user names it
channel : (rows,) int64, only where channels are embedded apart
start, end : (rows,) float64, in s from the beginning of the file: of a scene the part as it was asked for, its end that
    of the audio if none was; along time what each embedding sees
time_ms : (rows,) float64, of the centre of each, from the beginning of the file; NaN for a scene
part_start, part_end, audio_end : (rows,) float64, in s from the beginning of the file: the part as it was asked for,
    NaN for no end, and where its audio ended
embedding : (rows, size) float32 or float16
"""


class TableFormat(ABC):
    """A format of one table for all sources.

    Parameters
    ----------
    provenance : what made the embeddings, ready for JSON
    layer : which is embedded, None if unknown
    partitioned : the table lies in a folder that names its layer, so it has no such column: readers that understand
        such folders add one, and refuse a second

    Attributes
    ----------
    name : of the format, and of the extra that installs what it needs
    module : imported to read and write it
    suffixes : of its files, new ones get the first
    library : the package of that module

    Raises
    ------
    OptionError : that package is not installed
    """

    name: ClassVar[str]
    module: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        self.provenance = json.loads(json.dumps(provenance))  # as it will be read: lists, no tuples
        self.layer = layer
        self.partitioned = partitioned
        self.library = import_extra(f"the format {self.name}", self.module, self.name)

    @abstractmethod
    def metadata_of(self, path: Path) -> dict[str, str]:
        """Read provenance (as JSON) and identity ("id") of a file of this format, each if it has one."""

    def provenance_of(self, path: Path) -> Any:
        """Read the provenance of a file of this format, None if it has none."""
        with contextlib.suppress(KeyError, ValueError):
            return parse_json(self.metadata_of(path)["provenance"])
        return None

    @abstractmethod
    def n_rows_of(self, path: Path) -> int:
        """Read the number of rows of a file of this format."""

    @abstractmethod
    def writer(self, path: Path, metadata: Mapping[str, str]) -> AbstractContextManager[Callable[[Block], None]]:
        """Create a file with some metadata; the context is a function that writes one row group."""

    @abstractmethod
    def reader(
        self, path: Path, columns: Sequence[str] | None = None
    ) -> AbstractContextManager[Callable[[int, int], Iterator[Block]]]:
        """Open a table; the context is a function that reads rows, of all columns or some: (first, count) -> blocks."""

    @contextlib.contextmanager
    def create(self, path: Path, identity: str) -> Iterator[Callable[[Block], None]]:
        """Create a table; the context is a function that adds blocks, which are written as groups of `GROUP_ROWS`."""
        group: list[Block] = []
        n_rows = 0

        def flush() -> None:
            nonlocal n_rows
            write({name: np.concatenate([block[name] for block in group]) for name in group[0]})
            group.clear()
            n_rows = 0

        def add(block: Block) -> None:
            nonlocal n_rows
            while len(block["file"]):
                room = GROUP_ROWS - n_rows
                # A copy, because a view would keep in memory the whole group that it was read from.
                group.append({name: column[:room].copy() for name, column in block.items()})
                n_rows += len(group[-1]["file"])
                block = {name: column[room:] for name, column in block.items()}
                if n_rows == GROUP_ROWS:
                    flush()

        with self.writer(path, {"provenance": json.dumps(self.provenance), "id": identity}) as write:
            yield add
            if group:
                flush()
