"""Embeddings -> files, by format; each with what made it, and never half of one.

npz      one per source: ``embedding`` (size,) or (times, size) float32, ``timestamps`` (times,) float64 in ms where
         there are any, ``provenance`` as JSON
npy      one per source: the array alone; ``NAME.npy.json`` beside it holds ``timestamps`` and ``provenance``
parquet  one table for all sources, a row per embedding: ``file``, ``time_ms`` (null for a scene), ``embedding``; the
         provenance is in the metadata of its schema. Rows come in the order in which sources were finished
"""

from __future__ import annotations

import contextlib
import json
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, ClassVar

import numpy as np

from .errors import OptionError

PARQUET_ROWS = 8192
"""Rows of a row group: at 768 numbers each 25 MB."""


class Writer:
    """Writes the embeddings of one run; every format derives from it.

    Parameters
    ----------
    provenance : what made the embeddings, ready for JSON

    Attributes
    ----------
    suffix : of its files
    single : True if one file holds all sources: then a failed write spoils them all
    """

    suffix: ClassVar[str]
    single: ClassVar[bool] = False

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self.provenance = json.loads(json.dumps(provenance))  # as it will be read: lists, no tuples

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of a file of this format, None if it has none."""
        raise TypeError(f"the format of {path} cannot be read")

    def write(self, path: Path, source: str, embedding: np.ndarray, timestamps_ms: np.ndarray | None) -> None:
        """Write one source.

        Parameters
        ----------
        path : of the output; folders are made as needed
        source : the audio file, as the user names it
        embedding : (size,) float32 of a scene, or (times, size)
        timestamps_ms : (times,) float64, None for a scene
        """
        raise TypeError(f"{type(self).__name__} has no write of its own")

    def __enter__(self) -> Writer:
        return self

    def __exit__(self, *error: Any) -> None:
        """End the run; what is not yet written is kept only if nothing was raised."""


@contextlib.contextmanager
def atomic(path: Path) -> Iterator[BinaryIO]:
    """Open a file that gets its name only when all of it is written; until then, and after a failure, it has none."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{uuid.uuid4().hex}.part")
    try:
        with part.open("xb") as file:
            yield file
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


class NpzFiles(Writer):
    """One NumPy archive per source."""

    suffix = ".npz"

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of an archive, None if it has none."""
        # Anything may lie there under this name, and what it makes NumPy raise has no common root.
        with contextlib.suppress(Exception), path.open("rb") as file, np.load(file) as archive:
            return json.loads(str(archive["provenance"]))
        return None

    def write(self, path: Path, source: str, embedding: np.ndarray, timestamps_ms: np.ndarray | None) -> None:
        """Write one source, see `Writer.write`."""
        arrays = {"embedding": embedding, "provenance": np.array(json.dumps(self.provenance))}
        if timestamps_ms is not None:
            arrays["timestamps"] = timestamps_ms
        with atomic(path) as file:
            np.savez(file, **arrays)  # type: ignore[arg-type]  # one of its own options is a bool


class NpyFiles(Writer):
    """One NumPy array and one JSON file per source."""

    suffix = ".npy"

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of an array, None if it has none."""
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            return json.loads(NpyFiles._sidecar(path).read_text(encoding="utf-8"))["provenance"]
        return None

    def write(self, path: Path, source: str, embedding: np.ndarray, timestamps_ms: np.ndarray | None) -> None:
        """Write one source, see `Writer.write`."""
        times = {} if timestamps_ms is None else {"timestamps": timestamps_ms.tolist()}
        with atomic(self._sidecar(path)) as file:
            file.write(json.dumps({"provenance": self.provenance, **times}).encode())
        # The array last: a run that is taken up again goes by it.
        with atomic(path) as file:
            np.save(file, embedding)


class ParquetTable(Writer):
    """One Parquet table for all sources, written in row groups."""

    suffix = ".parquet"
    single = True

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        super().__init__(provenance)
        self.arrow = _pyarrow()
        self.files = contextlib.ExitStack()
        self.table: Any = None
        self.pending: list[Any] = []
        self.n_pending = 0

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of a table, None if it has none."""
        arrow = _pyarrow()
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):  # pyarrow's own derive from these
            return json.loads(arrow.parquet.read_schema(path).metadata[b"provenance"])
        return None

    def write(self, path: Path, source: str, embedding: np.ndarray, timestamps_ms: np.ndarray | None) -> None:
        """Write one source, see `Writer.write`; all have the same path."""
        rows = np.atleast_2d(embedding)
        if self.table is None:
            self._open(path, rows.shape[1])
        for first in range(0, len(rows), PARQUET_ROWS):
            part = slice(first, first + PARQUET_ROWS)
            times = [None] if timestamps_ms is None else timestamps_ms[part]
            self.pending.append(self._batch(source, times, rows[part]))
            self.n_pending += len(rows[part])
            if self.n_pending >= PARQUET_ROWS:
                self._flush()

    def _open(self, path: Path, size: int) -> None:
        arrow = self.arrow
        self.schema = arrow.schema(
            [
                ("file", arrow.string()),
                ("time_ms", arrow.float64()),
                ("embedding", arrow.list_(arrow.float32(), size)),
            ],
            {"provenance": json.dumps(self.provenance)},
        )
        file = self.files.enter_context(atomic(path))
        table = arrow.parquet.ParquetWriter(file, self.schema, use_dictionary=["file"])  # floats do not repeat
        self.table = self.files.enter_context(table)

    def _batch(self, source: str, times: Any, rows: np.ndarray) -> Any:
        arrow = self.arrow
        # A file name need not be text; what is not becomes "?".
        file = source.encode("utf-8", "replace").decode()
        values = arrow.array(np.ascontiguousarray(rows).reshape(-1))
        return arrow.record_batch(
            [
                arrow.array([file] * len(rows)),
                arrow.array(times, arrow.float64()),
                arrow.FixedSizeListArray.from_arrays(values, rows.shape[1]),
            ],
            schema=self.schema,
        )

    def _flush(self) -> None:
        if self.pending:
            self.table.write_table(self.arrow.Table.from_batches(self.pending))
            self.pending, self.n_pending = [], 0

    def __exit__(self, *error: Any) -> None:
        """Write the last rows and give the table its name; after an error leave nothing."""
        if any(error):
            self.files.__exit__(*error)
        else:
            with self.files:
                self._flush()


def _pyarrow() -> Any:
    """Import pyarrow, which is an optional dependency."""
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError as error:
        raise OptionError(
            "the format parquet needs pyarrow, which is not installed; "
            "run: python -m pip install 'hear_transformers[parquet]'"
        ) from error
    return pyarrow


WRITERS: dict[str, type[Writer]] = {"npz": NpzFiles, "npy": NpyFiles, "parquet": ParquetTable}
"""Formats by name, the default first."""


def choose_format(out: Path, name: str | None) -> str:
    """Choose the format of an output, a file or a folder, by name or else by the suffix.

    Raises
    ------
    OptionError : the name is unknown, or is not that of the suffix
    """
    formats = ", ".join(WRITERS)
    if name is not None and name not in WRITERS:
        raise OptionError(f"format={name!r} is unknown; choose one of {formats}")
    suffix = "" if out.is_dir() else out.suffix.lower().removeprefix(".")
    if name is not None and suffix in WRITERS and suffix != name:
        raise OptionError(f"format={name!r} does not go with the file name {out}; leave one of them out")
    return name or (suffix if suffix in WRITERS else next(iter(WRITERS)))
