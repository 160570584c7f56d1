"""Embeddings -> files, by format. Each holds what made it, and is either complete or absent.

npz      one per source: ``embedding`` (size,) or (times, size); along time ``timestamps`` (times,) float64 in ms, and
         ``start`` and ``end`` (times,) float64 in s, of the audio that each embedding is of, but for models of HEAR's
         API, which do not say; ``provenance`` as JSON, with the audio under `AUDIO`
npy      one per source: the array alone; ``NAME.npy.json`` beside it holds all else
parquet, hdf5
         one table for all sources, see `tables`
"""

from __future__ import annotations

import contextlib
import io
import json
import os
import re
import tempfile
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from ..errors import HearTransformersError, OptionError, unknown
from ..files import atomic, parse_json
from .hdf5 import HDF5Table
from .parquet import ParquetTable

Arrays = Mapping[str, np.ndarray]

DTYPES = ("float32", "float16")
"""Types that embeddings may be stored as, the default first."""

AUDIO = "audio"
"""Key of the audio in the provenance of a file; the other keys are settings."""

MOST_BUFFERED = 2**20
"""Bytes of a file that are put together in memory."""

ROWS_AT_ONCE = 8192
"""Rows of an embedding on disk that are in memory at once: 25 MB for 768 numbers each."""


@dataclass(frozen=True, slots=True)
class ExistingOutput:
    """What is known of an output that exists.

    Attributes
    ----------
    mismatch : how its settings differ from the current ones; empty if they are equal
    sha256 : of the audio it was made from, empty if unknown
    file : absolute path of that audio
    is_damaged : that was damaged, and taken up to there
    """

    mismatch: str = ""
    sha256: str = ""
    file: str = ""
    is_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Content:
    """Which numbers of the model's embeddings go into an output, and their type.

    Attributes
    ----------
    settings : what makes them, ready for JSON
    layer : which they are of, None if unknown
    columns : positions in an embedding, None for all
    dtype : one of `DTYPES`
    separate : other layers go into other outputs
    """

    settings: dict[str, Any]
    layer: str | None = None
    columns: slice | list[int] | None = None
    dtype: str = DTYPES[0]
    separate: bool = False


MOST_DIFFERENCES = 6
"""Settings that an error names; more are only counted."""

LONGEST_SHOWN = 24
"""Characters of a setting in an error."""

SPOKEN = {"layers": "layer", "weights_sha256": "weights", "embedding": "kind"}
"""Settings that have other names for users."""


def mismatch_of(made_with: Any, settings: dict[str, Any], output: Path) -> str:
    """Describe how the settings that made an output differ from the current ones; empty if they are equal."""
    if not isinstance(made_with, dict):
        return f"{output} is kept, but does not say what made it; give another --out, or --overwrite to replace it"
    old = {key: value for key, value in made_with.items() if key != AUDIO}
    if old == settings:
        return ""
    changed = differences(old, settings)
    more = f" and {len(changed) - MOST_DIFFERENCES} more" if len(changed) > MOST_DIFFERENCES else ""
    return (
        f"{output} was made with other settings: {', '.join(changed[:MOST_DIFFERENCES])}{more}; one place holds "
        "embeddings of one kind: give another --out, or the same settings again, or --overwrite to replace it"
    )


def differences(old: Any, new: Any, name: str = "") -> list[str]:
    """Describe each value in which two settings differ: "layer 8 -> 4"; of what only one of them has, the name."""
    if old == new:
        return []
    if isinstance(old, dict) and isinstance(new, dict):
        return [each for key in {**new, **old} for each in differences(old.get(key), new.get(key), key)]
    if isinstance(old, list) and isinstance(new, list) and len(old) == len(new) and _has_parts(old):
        return [each for pair in zip(old, new, strict=True) for each in differences(*pair, name)]
    if _has_parts(old) or _has_parts(new):
        return [name]
    return [f"{SPOKEN.get(name, name)} {_shown(old)} -> {_shown(new)}"]


def _has_parts(value: Any) -> bool:
    return isinstance(value, dict) or (isinstance(value, list) and any(isinstance(each, dict) for each in value))


def _shown(value: Any) -> str:
    """Write a setting as a user would."""
    if value is None:
        return "none"
    if isinstance(value, list):
        return ",".join(map(_shown, value)) or "none"
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= LONGEST_SHOWN else f"{text[:LONGEST_SHOWN]}..."


class FileFormat(ABC):
    """A format of one file per source.

    Parameters
    ----------
    provenance : what made the embeddings, ready for JSON
    """

    suffixes: ClassVar[tuple[str, ...]]

    def __init__(self, provenance: Mapping[str, Any]) -> None:
        self.provenance = json.loads(json.dumps(provenance))  # as it will be read: lists, no tuples

    @staticmethod
    @abstractmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of a file of this format, and nothing else of it; None if it has none."""

    @abstractmethod
    def write(self, path: Path, arrays: Arrays, audio: Mapping[str, Any], scratch: Path | None = None) -> None:
        """Write one source.

        Parameters
        ----------
        path : of the output; folders are made as needed
        arrays : "embedding", (size,) of a scene or (times, size); with it "timestamps", (times,) float64 in ms, and,
            unless nobody knows, "start" and "end", (times,) float64 in s
        audio : what was embedded, goes into the provenance as `AUDIO`; see `Source.audio`
        scratch : folder for unfinished files, see `atomic_path`
        """


class NpzFiles(FileFormat):
    """One NumPy archive per source."""

    suffixes = (".npz",)

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of an archive, see `FileFormat.provenance_of`."""
        # The file may be anything, and the exceptions that NumPy then raises have no common base.
        with contextlib.suppress(Exception), path.open("rb") as file, np.load(file) as archive:
            return parse_json(str(archive["provenance"]))
        return None

    def write(self, path: Path, arrays: Arrays, audio: Mapping[str, Any], scratch: Path | None = None) -> None:
        """Write one source, see `FileFormat.write`."""
        contents: dict[str, Any] = {**arrays, "provenance": np.array(json.dumps({**self.provenance, AUDIO: audio}))}
        with atomic(path, scratch) as file:
            if sum(array.nbytes for array in contents.values()) > MOST_BUFFERED:
                np.savez(file, **contents)
                return
            buffer = io.BytesIO()  # instead of thirty small operations on the file
            np.savez(buffer, **contents)
            file.write(buffer.getbuffer())


class NpyFiles(FileFormat):
    """One NumPy array and one JSON file per source."""

    suffixes = (".npy",)

    @staticmethod
    def _sidecar(path: Path) -> Path:
        return path.with_name(f"{path.name}.json")

    @staticmethod
    def provenance_of(path: Path) -> Any:
        """Read the provenance of an array, see `FileFormat.provenance_of`."""
        with contextlib.suppress(OSError, KeyError, TypeError, ValueError):
            return parse_json(NpyFiles._sidecar(path).read_text(encoding="utf-8"))["provenance"]
        return None

    def write(self, path: Path, arrays: Arrays, audio: Mapping[str, Any], scratch: Path | None = None) -> None:
        """Write one source, see `FileFormat.write`."""
        rest = {name: array.tolist() for name, array in arrays.items() if name != "embedding"}
        with atomic(path, scratch) as file:
            np.save(file, arrays["embedding"])
            path.unlink(missing_ok=True)  # an old array would pass for the new one beside its sidecar
            with atomic(self._sidecar(path), scratch) as sidecar:
                sidecar.write(json.dumps({"provenance": {**self.provenance, AUDIO: audio}, **rest}).encode())


FILES: dict[str, type[FileFormat]] = {"npz": NpzFiles, "npy": NpyFiles}
"""Formats of one file per source by name, the default first."""

TABLES: dict[str, type[ParquetTable] | type[HDF5Table]] = {"parquet": ParquetTable, "hdf5": HDF5Table}
"""Formats of one table for all sources by name."""

SUFFIXES = {suffix: name for name, kind in {**FILES, **TABLES}.items() for suffix in kind.suffixes}
"""Format by suffix."""


NUMBERED = re.compile(r"\.v?\d[^.]*")
"""End of the name of a folder that is no suffix: "results.v2", "run.2024"."""


def is_folder(out: str | os.PathLike[str]) -> bool:
    """Return True if a path names a folder: one that exists, or by a slash at its end."""
    return os.fspath(out).endswith(("/", os.sep)) or os.path.isdir(out)


def check_dtype(name: str) -> None:
    """Raise OptionError for an unknown type of stored numbers."""
    if name not in DTYPES:
        raise unknown("dtype", name, DTYPES)


def choose_format(out: str | os.PathLike[str], name: str | None) -> str:
    """Choose the format of an output, a file or a folder, by name or else by the suffix.

    Raises
    ------
    OptionError : the name is unknown, or is not that of the suffix; the suffix is that of no format
    """
    formats = (*FILES, *TABLES)
    if name is not None and name not in formats:
        raise unknown("format", name, formats)
    suffix = "" if is_folder(out) else Path(out).suffix.lower()
    by_suffix = SUFFIXES.get(suffix)
    if suffix and not by_suffix and not NUMBERED.fullmatch(suffix):
        made = f" (of a table, hear-transformers selections TABLE --with-embeddings --out {out} makes one)"
        raise OptionError(
            f"--out {out}: {suffix} is not a format of embeddings{made if suffix == '.csv' else ''}; an output ends in "
            f"{', '.join(SUFFIXES)}; if it is to be a folder, end it in a slash: {out}/"
        )
    if name is not None and by_suffix not in (None, name):
        raise OptionError(f"format={name!r} does not go with the file name {out}; leave one of them out")
    return name or by_suffix or formats[0]


def stored(
    embedding: np.ndarray, dtype: str, columns: slice | list[int] | None = None, scratch: Path | None = None
) -> np.ndarray:
    """Return the numbers of an embedding that are stored, cast to the type they are stored as.

    Parameters
    ----------
    embedding : (size,) or (times, size) float32; one that is on disk stays there
    dtype : one of `DTYPES`
    columns : which numbers, None for all
    scratch : folder on disk

    Raises
    ------
    HearTransformersError : a number is beyond the range of the type
    """
    if columns is None and embedding.dtype == dtype:
        return embedding
    columns = slice(None) if columns is None else columns
    if not isinstance(embedding, np.memmap):
        return _cast(embedding[..., columns], dtype)
    with tempfile.TemporaryFile(dir=scratch) as file:
        for first in range(0, len(embedding), ROWS_AT_ONCE):
            file.write(_cast(embedding[first : first + ROWS_AT_ONCE, columns], dtype).tobytes())
        file.flush()
        return np.memmap(file, dtype, "r").reshape(len(embedding), -1)  # (times, columns)


def _cast(numbers: np.ndarray, dtype: str) -> np.ndarray:
    largest = np.finfo(dtype).max
    # float16 rounds numbers a little beyond its range down to it.
    with np.errstate(over="ignore"):
        cast = np.asarray(numbers).astype(dtype)
    if not np.isfinite(cast).all():
        raise HearTransformersError(
            f"the embedding holds {np.abs(numbers).max():g}, {dtype} ends at {largest:g}; store it as float32"
        )
    return cast
