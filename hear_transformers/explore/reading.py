"""Embeddings as `bulk` writes them, a table or a folder of outputs -> rows, in memory or read where they lie.

Rows of one map or search are of one kind: outputs that other settings made are refused, as are numbers that are not
finite, which no distance is known of.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
from abc import ABC, abstractmethod
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..bulk.formats import AUDIO, FILES, SUFFIXES, TABLES, differences
from ..bulk.tables import GROUP_ROWS, Block
from ..errors import HearTransformersError, OptionError, WeightsError
from ..files import local_path, parse_json

MOST_IN_MEMORY = 2**30
"""Bytes of embeddings that are held in memory; tables of more are read block by block, as often as they are needed."""

PLACES = ("file", "channel", "start", "end")
"""Columns that say which part of which file a row is of."""

NEEDED = frozenset(("file", "embedding"))
"""Columns that every table of embeddings has."""

KNOWN_PLACES = 32
"""Blocks of `GROUP_ROWS` rows whose places are remembered: 1 MB each."""

MOST_DIFFERENCES = 6
"""Settings that an error names."""


_TIMES = (("start", 0.0), ("end", np.nan))
"""Columns of times, and what is there where a table has none."""


class Span(NamedTuple):
    """A part of a file: its name as the table has it, start and end in s, channel if each is embedded apart."""

    file: str
    start: float
    end: float
    channel: int | None = None


class Embeddings(ABC):
    """Embeddings, and the part of the file that each is of.

    Attributes
    ----------
    path : of the table or folder
    provenance : what made the embeddings; None if nobody said
    """

    path: Path
    provenance: dict[str, Any] | None

    @abstractmethod
    def __len__(self) -> int:
        """Return the number of rows."""

    @property
    @abstractmethod
    def is_along_time(self) -> bool:
        """Whether a file may have several rows, of times or segments."""

    @property
    @abstractmethod
    def size(self) -> int:
        """Numbers of an embedding."""

    @abstractmethod
    def scale(self, mean: np.ndarray, shortest: float) -> None:
        """Subtract a mean (size,) from all vectors and make their lengths 1.

        Those that are then not longer than `shortest` are only rounding, and become 0.
        """

    @abstractmethod
    def blocks(self, n_rows: int = GROUP_ROWS, first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield vectors in order, at most so many at once, from a row on: their places and (rows, size) float32."""

    @abstractmethod
    def at(self, rows: Sequence[int]) -> np.ndarray:
        """Return the vectors of some rows: (rows, size) float32."""

    @abstractmethod
    def file_codes(self) -> np.ndarray:
        """Return a number for each row that is the same for rows of the same file: (rows,), from 0 without a gap."""

    @abstractmethod
    def span(self, row: int) -> Span:
        """Return the part of a file that a row is of."""

    @abstractmethod
    def take(self, rows: np.ndarray) -> Rows:
        """Return some of the rows, in this order, with those files only that they are of."""

    def check_weights(self, sha256: str | None) -> None:
        """Raise WeightsError if weights are not those that made the embeddings."""
        expected = (self.provenance or {}).get("weights_sha256")
        if sha256 != expected:
            raise WeightsError(
                f"{self.path}: was made with weights of sha256 {str(expected)[:12]}..., found are "
                f"{str(sha256)[:12]}...; give those with --weights"
            )

    def overlaps(self, row: int, other: int) -> bool:
        """Return whether two rows share some of the same audio."""
        one, two = self.span(row), self.span(other)
        return (
            one.file == two.file and one.channel == two.channel and not (one.end <= two.start or two.end <= one.start)
        )


@dataclass
class Rows(Embeddings):
    """Embeddings in memory.

    Attributes
    ----------
    path, provenance : see `Embeddings`
    files : every file once, as the user named it
    file : (rows,) int32, positions in `files`
    start, end : (rows,) float64, of the part of the file, in s; NaN for an end that is not known
    channel : (rows,) int64, None unless channels are embedded apart
    vectors : (rows, size) float32
    """

    path: Path
    files: list[str]
    file: np.ndarray
    start: np.ndarray
    end: np.ndarray
    channel: np.ndarray | None
    provenance: dict[str, Any] | None
    vectors: np.ndarray

    def __len__(self) -> int:
        return len(self.file)

    @property
    def is_along_time(self) -> bool:
        """Whether a file has several rows, of times or segments."""
        return len(self.files) < len(self)

    @property
    def size(self) -> int:
        """Numbers of an embedding."""
        return int(self.vectors.shape[1])

    def scale(self, mean: np.ndarray, shortest: float) -> None:
        """Centre and scale all vectors in place, so that no copy of them is needed, see `Embeddings.scale`."""
        for rows in blocks_of(len(self)):
            self.vectors[rows] = scaled(self.vectors[rows], mean, shortest)

    def blocks(self, n_rows: int = GROUP_ROWS, first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield vectors, see `Embeddings.blocks`."""
        yield from ((rows, self.vectors[rows]) for rows in blocks_of(len(self), n_rows, first))

    def at(self, rows: Sequence[int]) -> np.ndarray:
        """Return vectors, see `Embeddings.at`."""
        return self.vectors[np.asarray(rows, np.int64)]

    def file_codes(self) -> np.ndarray:
        """Return a number for each row, see `Embeddings.file_codes`."""
        return self.file

    def span(self, row: int) -> Span:
        """Return the part of a file that a row is of."""
        channel = None if self.channel is None else int(self.channel[row])
        return Span(self.files[self.file[row]], float(self.start[row]), float(self.end[row]), channel)

    def take(self, rows: np.ndarray) -> Rows:
        """Return some of the rows, see `Embeddings.take`."""
        kept, file = np.unique(self.file[rows], return_inverse=True)
        channel = None if self.channel is None else self.channel[rows]
        files = [self.files[each] for each in kept]
        parts = file.astype(np.int32), self.start[rows], self.end[rows]
        return Rows(self.path, files, *parts, channel, self.provenance, np.asarray(self.vectors[rows]))


class Stored(Embeddings):
    """Embeddings that stay in their tables, however many: memory does not grow with their number.

    Parameters
    ----------
    path : of the table or folder
    tables : in their order
    counts : rows of each
    provenance : what made the embeddings
    """

    def __init__(
        self, path: Path, tables: Sequence[Path], counts: Sequence[int], provenance: dict[str, Any] | None
    ) -> None:
        self.path = path
        self.provenance = provenance
        self._tables = tables
        self._firsts = [*accumulate(counts, initial=0)]
        filled = bisect_right(self._firsts, 0) - 1  # the first with rows
        self._size = next(_blocks(tables[filled], ("embedding",), (0, 1)))["embedding"].shape[1]
        self._scaling: tuple[np.ndarray, float] | None = None
        self._places = functools.lru_cache(KNOWN_PLACES)(self._read_places)

    def __len__(self) -> int:
        return self._firsts[-1]

    @property
    def is_along_time(self) -> bool:
        """Whether a file may have several rows: nobody looks through all of them."""
        return True

    @property
    def size(self) -> int:
        """Numbers of an embedding."""
        return self._size

    def scale(self, mean: np.ndarray, shortest: float) -> None:
        """Centre and scale vectors from now on whenever they are read, see `Embeddings.scale`."""
        self._scaling = mean, shortest

    def blocks(self, n_rows: int = GROUP_ROWS, first: int = 0) -> Iterator[tuple[slice, np.ndarray]]:
        """Yield vectors, see `Embeddings.blocks`; blocks of a table are no larger than its groups of rows."""
        for i, block in self._from(first, ("embedding",)):
            at = 0
            for rows in blocks_of(len(block["embedding"]), n_rows):
                vectors = self._scaled(self._checked(block["embedding"][rows], i + at))
                yield slice(i + at, i + at + len(vectors)), vectors
                at += len(vectors)

    def _from(self, first: int, columns: Sequence[str]) -> Iterator[tuple[int, Block]]:
        """Yield blocks of some columns from a row on, each with the number of its first row."""
        for i in range(bisect_right(self._firsts, first) - 1, len(self._tables)):
            at = max(self._firsts[i], first)
            for block in _blocks(self._tables[i], columns, (at - self._firsts[i], self._firsts[i + 1] - at)):
                yield at, block
                at += len(block[columns[0]])

    def _checked(self, numbers: np.ndarray, first: int) -> np.ndarray:
        """Return numbers as float32; raise OptionError if there are too many or too few, or one is not finite."""
        if numbers.shape[1] != self._size:
            raise _of_two_sizes(self.path, self._size, numbers.shape[1])
        vectors = np.asarray(numbers, np.float32)
        if not np.isfinite(vectors.sum()) and not (finite := np.isfinite(vectors).all(1)).all():
            row = first + int(finite.argmin())
            raise _not_finite(self.path, row, self.span(row).file)
        return vectors

    def _scaled(self, vectors: np.ndarray) -> np.ndarray:
        return vectors if self._scaling is None else scaled(vectors, *self._scaling)

    def at(self, rows: Sequence[int]) -> np.ndarray:
        """Return vectors, see `Embeddings.at`."""
        return np.concatenate([next(self.blocks(1, row))[1] for row in rows])

    def file_codes(self) -> np.ndarray:
        """Return a number for each row, see `Embeddings.file_codes`: 8 bytes a row, without the names."""
        codes = np.empty(len(self), np.uint64)
        last, code = "", 0
        for first, block in self._from(0, ("file",)):
            for row, name in enumerate(block["file"], start=first):
                if name != last:
                    digest = hashlib.blake2b(os.fsencode(name), digest_size=8).digest()
                    last, code = name, int.from_bytes(digest, "little")
                codes[row] = code
        return np.unique(codes, return_inverse=True)[1]

    def span(self, row: int) -> Span:
        """Return the part of a file that a row is of."""
        first = row - row % GROUP_ROWS
        block, at = self._places(first), row - first
        start, end = (float(block[name][at]) if name in block else missing for name, missing in _TIMES)
        return Span(block["file"][at], start, end, int(block["channel"][at]) if "channel" in block else None)

    def _read_places(self, first: int) -> Block:
        """Read the places of `GROUP_ROWS` rows."""
        found: list[Block] = []
        for at, block in self._from(first, PLACES):
            found.append(block)
            if at + len(block["file"]) >= first + GROUP_ROWS:
                break
        return {name: np.concatenate([block[name] for block in found]) for name in found[0]}

    def take(self, rows: np.ndarray) -> Rows:
        """Return some of the rows, see `Embeddings.take`."""
        order = np.argsort(rows, kind="stable")
        ordered = np.asarray(rows)[order]

        def blocks() -> Iterator[Block]:
            for i, table in enumerate(self._tables):
                first, last = np.searchsorted(ordered, self._firsts[i : i + 2])
                if first == last:
                    continue
                at = self._firsts[i]
                for block in _blocks(table, (*PLACES, "embedding")):
                    n_rows = len(block["file"])
                    some = ordered[slice(*np.searchsorted(ordered, (at, at + n_rows)))] - at
                    at += n_rows
                    if len(some):
                        yield {name: column[some] for name, column in block.items()}

        gathered = _gather(self.path, blocks(), len(ordered), self.provenance)
        return gathered.take(np.argsort(order, kind="stable"))


def read(name: str | os.PathLike[str]) -> Rows:
    """Read a table, a folder of outputs or tables, or one such output, into memory.

    Raises
    ------
    OptionError : there are no embeddings, they are of several kinds, or one is not finite
    """
    found = look_up(name, most_in_memory=None)
    assert isinstance(found, Rows)
    return found


def look_up(name: str | os.PathLike[str], most_in_memory: int | None = MOST_IN_MEMORY) -> Rows | Stored:
    """Read a table, a folder of outputs or tables, or one such output; tables that take more memory are left on disk.

    Parameters
    ----------
    name : of the table, folder or output
    most_in_memory : bytes of embeddings, as float32, None for any number

    Raises
    ------
    OptionError : see `read`; of embeddings that are left on disk it is raised when they are read
    """
    path = local_path(name, "embeddings")
    outputs = _outputs(path)
    provenance = _one_kind(outputs)
    tables = [each for each in outputs if SUFFIXES[each.suffix.lower()] in TABLES]
    if tables:
        counts = list(map(_n_rows, tables))
        blocks: Iterator[Block] = (block for each in tables for block in _blocks(each))
        n_rows = sum(counts)
    else:
        singles = [_block(each) for each in outputs]
        n_rows, blocks = sum(len(each["file"]) for each in singles), iter(singles)
    if not n_rows:
        raise OptionError(f"{path}: the table is empty; embed some audio into it first")
    if tables and most_in_memory is not None:
        stored = Stored(path, tables, counts, provenance)
        if 4 * n_rows * stored.size > most_in_memory:
            return stored
    return _gather(path, blocks, n_rows, provenance)


def _outputs(path: Path) -> list[Path]:
    """Find the outputs that a name stands for."""
    if path.is_dir():
        found = (Path(folder) / each for folder, names, each in _walk(path))
        outputs = sorted(each for each in found if each.suffix.lower() in SUFFIXES)
    elif path.exists():
        outputs = [path] if path.suffix.lower() in SUFFIXES else []
    else:
        raise OptionError(f"{path}: there is no such file; give a table or a folder that embed-audio wrote")
    if not outputs:
        raise OptionError(f"{path}: holds no embeddings; give a table or folder of {', '.join(SUFFIXES)}")
    kinds = {SUFFIXES[each.suffix.lower()] in TABLES for each in outputs}
    if len(kinds) > 1:
        raise OptionError(f"{path}: holds tables and outputs of single files; name the table")
    return outputs


def _walk(path: Path) -> Iterator[tuple[str, list[str], str]]:
    """Walk through the files below a folder, but for hidden ones: there runs keep their state."""
    for folder, folders, names in os.walk(path):
        folders[:] = sorted(each for each in folders if not each.startswith("."))
        yield from ((folder, folders, each) for each in names if not each.startswith("."))


def _one_kind(outputs: Sequence[Path]) -> dict[str, Any] | None:
    """Return the settings that made all outputs; raise OptionError if they differ."""
    first: Any = None
    for i, path in enumerate(outputs):
        name = SUFFIXES[path.suffix.lower()]
        found = FILES[name].provenance_of(path) if name in FILES else _format(path).provenance_of(path)
        settings = {key: value for key, value in found.items() if key != AUDIO} if isinstance(found, dict) else None
        if i and settings != first:
            changed = ", ".join(differences(first or {}, settings or {})[:MOST_DIFFERENCES])
            raise OptionError(
                f"{outputs[0]} and {path} were made with other settings: {changed}; name one of them, or its folder: "
                "what is compared, or one table, is of one kind"
            )
        first = settings
    return first


def _format(path: Path) -> Any:
    return TABLES[SUFFIXES[path.suffix.lower()]]({})


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """Raise OptionError for what libraries raise of a file that is no table of ours."""
    try:
        yield
    except HearTransformersError:
        raise
    except (KeyError, ValueError, OSError, AttributeError) as error:
        raise OptionError(
            f"{path}: is no table of embeddings ({error}); it needs the columns file and embedding, as embed-audio "
            "writes them"
        ) from error


def _n_rows(path: Path) -> int:
    """Read the number of rows of a table; raise OptionError if it is none of ours, or holds several layers."""
    table = _format(path)
    with _explained(path):
        if table.name == "parquet" and len(layers := table.layers_of(path, MOST_DIFFERENCES)) > 1:
            raise OptionError(
                f"{path}: holds embeddings of several layers, {', '.join(layers)}; distances need one, in a table of "
                "its own"
            )
        return int(table.n_rows_of(path))


def _blocks(path: Path, columns: Sequence[str] | None = None, rows: tuple[int, int] | None = None) -> Iterator[Block]:
    """Read blocks of a table: all columns and rows, or some (first, count); raise OptionError if it is none of ours."""
    table = _format(path)
    with _explained(path), table.reader(path, columns) as read_rows:
        for block in read_rows(*((0, table.n_rows_of(path)) if rows is None else rows)):
            if missing := NEEDED.intersection(columns or NEEDED) - block.keys():
                raise KeyError(*missing)
            if "file" in block:
                files = [each.decode() if isinstance(each, bytes) else str(each) for each in block["file"]]
                block = {**block, "file": np.array(files, object)}
            yield {**block, "embedding": np.asarray(block["embedding"])} if "embedding" in block else block


def _block(path: Path) -> Block:
    """Read the output of one file."""
    try:
        if path.suffix.lower() == ".npz":
            with np.load(path, allow_pickle=False) as archive:
                embedding, times = archive["embedding"], archive.get("timestamps")
        else:
            embedding, times = np.load(path, allow_pickle=False), None
            sidecar = path.with_name(f"{path.name}.json")
            if sidecar.exists():
                times = parse_json(sidecar.read_text(encoding="utf-8")).get("timestamps")
    except (OSError, ValueError, KeyError) as error:
        raise OptionError(
            f"{path}: is no output of embed-audio ({error}); remove it, or embed the file again"
        ) from error
    made_with = FILES[SUFFIXES[path.suffix.lower()]].provenance_of(path) or {}
    audio: Mapping[str, Any] = made_with.get(AUDIO) or {}
    embedding = np.atleast_2d(embedding)
    start, end = _spans(len(embedding), None if times is None else np.asarray(times, np.float64), audio)
    file = np.full(len(embedding), str(audio.get("file", path)), object)
    channel = {"channel": np.full(len(embedding), audio["channel"], np.int64)} if audio.get("channel") else {}
    return {"file": file, **channel, "start": start, "end": end, "embedding": embedding}


def _spans(n_rows: int, times_ms: np.ndarray | None, audio: Mapping[str, Any]) -> tuple[np.ndarray, np.ndarray]:
    """Return starts and ends in s; of times, which such outputs have the centres of, halfway to their neighbours."""
    first, last = float(audio.get("start") or 0.0), audio.get("end")
    if times_ms is None:
        return np.full(n_rows, first), np.full(n_rows, np.nan if last is None else float(last))
    centres = times_ms / 1000.0
    half = np.diff(centres).mean() / 2 if len(centres) > 1 else 0.5
    return np.maximum(centres - half, first), centres + half


def _gather(path: Path, blocks: Iterable[Block], n_rows: int, provenance: dict[str, Any] | None) -> Rows:
    """Put blocks together; raise OptionError if they are of several sizes, or a number is not finite."""
    codes: dict[str, int] = {}
    columns: dict[str, list[np.ndarray]] = {"file": [], "start": [], "end": [], "channel": []}
    vectors: np.ndarray | None = None
    at = 0
    for block in blocks:
        numbers, names = block["embedding"], block["file"]
        if vectors is None:
            vectors = np.empty((n_rows, numbers.shape[1]), np.float32)
        if numbers.shape[1:] != vectors.shape[1:]:
            raise _of_two_sizes(path, vectors.shape[1], numbers.shape[1])
        finite = np.isfinite(numbers).all(1)
        if not finite.all():
            bad = int(finite.argmin())
            raise _not_finite(path, at + bad, names[bad])
        vectors[at : at + len(names)] = numbers
        columns["file"].append(np.array([codes.setdefault(each, len(codes)) for each in names], np.int32))
        unknown = np.full(len(names), np.nan)
        for name, missing in (("start", np.zeros(len(names))), ("end", unknown), ("channel", None)):
            if (column := block.get(name, missing)) is not None:
                columns[name].append(np.asarray(column))
        at += len(names)
    assert vectors is not None
    joined = {name: np.concatenate(parts) for name, parts in columns.items() if parts}
    return Rows(
        path, list(codes), joined["file"], joined["start"], joined["end"], joined.get("channel"), provenance, vectors
    )


def _of_two_sizes(path: Path, one: int, other: int) -> OptionError:
    return OptionError(f"{path}: embeddings of {one} and of {other} numbers; name one kind")


def _not_finite(path: Path, row: int, file: str) -> OptionError:
    return OptionError(
        f"{path}: row {row}, of {file}, holds NaN or an infinite number; embed this file again, or leave the row out"
    )


def scaled(vectors: np.ndarray, mean: np.ndarray, shortest: float) -> np.ndarray:
    """Subtract a mean (size,) from vectors (rows, size) and scale them to length 1; see `Embeddings.scale`."""
    centred = vectors - mean
    lengths = np.sqrt(np.einsum("ij,ij->i", centred, centred))[:, None]
    # In place: to get memory takes longer than to multiply.
    centred *= np.where(lengths > shortest, 1.0 / np.maximum(lengths, 1e-30), 0.0).astype(np.float32)
    return centred


def blocks_of(n_rows: int, size: int = GROUP_ROWS, first: int = 0) -> Iterator[slice]:
    """Yield the rows of each block, from a row on."""
    yield from (slice(at, min(at + size, n_rows)) for at in range(first, n_rows, size))
