"""Embeddings of many sources in one HDF5 file, see `tables`."""

from __future__ import annotations

import contextlib
import io
import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from ..errors import OptionError
from .tables import GROUP_ROWS, RowGroups, TableFormat, TableRows


class _Draft(io.FileIO):
    """A file that defers errors of writing: raised inside HDF5, they would end the process."""

    error: OSError | None = None

    def write(self, data: Any) -> int:
        """Write all of it; after an error, discard it."""
        rest = memoryview(data).cast("B")
        size = len(rest)
        try:
            while rest and self.error is None:
                rest = rest[super().write(rest) :]
        except OSError as error:
            self.error = error
        return size

    def truncate(self, size: int | None = None) -> int:
        """Change the size; defer an error."""
        try:
            return super().truncate(size)
        except OSError as error:
            self.error = self.error or error
            return size or 0

    def raise_error(self) -> None:
        """Raise the deferred error, if any."""
        if self.error is not None:
            raise self.error

    @contextlib.contextmanager
    def raising_at_exit(self) -> Iterator[None]:
        """Raise the deferred error on exit, once HDF5 is done."""
        yield
        self.raise_error()


class HDF5Table(TableFormat):
    """An HDF5 file with a dataset for each column."""

    suffixes = (".hdf5", ".h5")

    def __init__(self, provenance: Mapping[str, Any], layer: str | None = None, *, partitioned: bool = False) -> None:
        super().__init__(provenance, layer, partitioned=partitioned)
        self.h5py = import_h5py()

    @staticmethod
    def metadata_of(path: Path) -> dict[str, str]:
        """Read provenance and identity, see `TableFormat.metadata_of`."""
        with contextlib.suppress(OSError, KeyError, ValueError), import_h5py().File(path, "r") as file:
            return {key: str(file.attrs[key]) for key in ("provenance", "id") if key in file.attrs}
        return {}

    @contextlib.contextmanager
    def create(self, path: Path, identity: str) -> Iterator[Callable[[Any], None]]:
        """Create a table, see `TableFormat.create`."""
        with _Draft(path, "x+") as draft, draft.raising_at_exit(), self.h5py.File(draft, "w") as file:
            file.attrs["provenance"] = json.dumps(self.provenance)
            file.attrs["id"] = identity
            if self.layer is not None:
                file.attrs["layer"] = self.layer

            def write(blocks: list[Any]) -> None:
                for name in blocks[0]:
                    values = np.concatenate([block[name] for block in blocks])
                    if name not in file:
                        rest = values.shape[1:]
                        text = self.h5py.string_dtype() if name == "file" else values.dtype
                        file.create_dataset(name, (0, *rest), text, maxshape=(None, *rest), chunks=True)
                    first = len(file[name])
                    file[name].resize(first + len(values), axis=0)
                    file[name][first:] = values
                draft.raise_error()

            def cut(block: Any, at: int) -> tuple[Any, Any]:
                return {k: v[:at] for k, v in block.items()}, {k: v[at:] for k, v in block.items()}

            with RowGroups(write, cut, lambda block: len(block["file"])) as groups:
                yield lambda block: groups.add(self._columns_of(block) if isinstance(block, TableRows) else block)

    @staticmethod
    def _columns_of(rows: TableRows) -> dict[str, np.ndarray]:
        return {
            "file": np.array([rows.name] * len(rows.embeddings), dtype=object),
            "start": rows.starts,
            "end": rows.ends,
            "time_ms": rows.times_ms,
            "embedding": rows.embeddings,
        }

    @contextlib.contextmanager
    def reader(self, path: Path) -> Iterator[Callable[[int, int], Iterator[Any]]]:
        """Open a table, see `TableFormat.reader`."""
        with self.h5py.File(path, "r") as file:

            def read(first: int, n_rows: int) -> Iterator[Any]:
                for at in range(first, first + n_rows, GROUP_ROWS):
                    last = min(at + GROUP_ROWS, first + n_rows)
                    yield {name: column[at:last] for name, column in file.items()}

            yield read


def import_h5py() -> Any:
    """Import h5py, which is an optional dependency."""
    try:
        import h5py
    except ImportError as error:
        raise OptionError(
            "the format hdf5 needs h5py, which is not installed; run: python -m pip install 'hear_transformers[hdf5]'"
        ) from error
    return h5py
