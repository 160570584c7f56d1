"""Embeddings of many sources in one HDF5 file, see `tables`."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from .tables import GROUP_ROWS, Block, TableFormat


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


class HDF5Table(TableFormat):
    """An HDF5 file with a dataset for each column."""

    name, module, suffixes = "hdf5", "h5py", (".hdf5", ".h5")

    def metadata_of(self, path: Path) -> dict[str, str]:
        """Read provenance and identity, see `TableFormat.metadata_of`."""
        with contextlib.suppress(OSError, KeyError, ValueError), self.library.File(path, "r") as file:
            return {key: str(file.attrs[key]) for key in ("provenance", "id") if key in file.attrs}
        return {}

    def n_rows_of(self, path: Path) -> int:
        """Read the number of rows, see `TableFormat.n_rows_of`."""
        with self.library.File(path, "r") as file:
            return len(file["file"])

    @contextlib.contextmanager
    def writer(self, path: Path, metadata: Mapping[str, str]) -> Iterator[Callable[[Block], None]]:
        """Create a file, see `TableFormat.writer`."""
        with _Draft(path, "x+") as draft:
            with self.library.File(draft, "w") as file:
                file.attrs.update(metadata)
                if self.layer is not None:
                    file.attrs["layer"] = self.layer

                def write(block: Block) -> None:
                    for name, values in block.items():
                        if name not in file:
                            rest = values.shape[1:]
                            kind = self.library.string_dtype() if name == "file" else values.dtype
                            file.create_dataset(name, (0, *rest), kind, maxshape=(None, *rest), chunks=True)
                        first = len(file[name])
                        file[name].resize(first + len(values), axis=0)
                        file[name][first:] = values
                    draft.raise_error()

                yield write
            draft.raise_error()  # of the last bytes, which HDF5 writes when it closes the file

    @contextlib.contextmanager
    def reader(
        self, path: Path, columns: Sequence[str] | None = None
    ) -> Iterator[Callable[[int, int], Iterator[Block]]]:
        """Open a table, see `TableFormat.reader`."""
        with self.library.File(path, "r") as file:
            wanted = {name: each for name, each in file.items() if columns is None or name in columns}

            def read(first: int, n_rows: int) -> Iterator[Block]:
                for at in range(first, first + n_rows, GROUP_ROWS):
                    last = min(at + GROUP_ROWS, first + n_rows)
                    yield {name: column[at:last] for name, column in wanted.items()}

            yield read
