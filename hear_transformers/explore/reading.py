"""Embeddings as `bulk` writes them, a table or a folder of outputs -> rows in memory.

Rows of one map or search are of one kind: outputs that other settings made are refused, as are numbers that are not
finite, which no distance is known of.
"""

from __future__ import annotations

import contextlib
import os
import tempfile
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..bulk.formats import AUDIO, FILES, SUFFIXES, TABLES, differences
from ..bulk.tables import GROUP_ROWS, Block
from ..errors import HearTransformersError, OptionError, WeightsError
from ..files import local_path, parse_json

MOST_IN_MEMORY = 4 * 2**30
"""Bytes of embeddings that are held in memory; more lie in a temporary file, which is read block by block."""

MOST_DIFFERENCES = 6
"""Settings that an error names."""


class Span(NamedTuple):
    """A part of a file: its name as the table has it, start and end in s, channel if each is embedded apart."""

    file: str
    start: float
    end: float
    channel: int | None = None


@dataclass
class Rows:
    """Embeddings, and the part of the file that each is of.

    Attributes
    ----------
    path : of the table or folder
    files : every file once, as the user named it
    file : (rows,) int32, positions in `files`
    start, end : (rows,) float64, of the part of the file, in s; NaN for an end that is not known
    channel : (rows,) int64, None unless channels are embedded apart
    provenance : what made the embeddings; None if nobody said
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

    def check_weights(self, sha256: str | None) -> None:
        """Raise WeightsError if weights are not those that made the embeddings."""
        expected = (self.provenance or {}).get("weights_sha256")
        if sha256 != expected:
            raise WeightsError(
                f"{self.path}: was made with weights of sha256 {str(expected)[:12]}..., found are "
                f"{str(sha256)[:12]}...; give those with --weights"
            )

    def span(self, row: int) -> Span:
        """Return the part of a file that a row is of."""
        channel = None if self.channel is None else int(self.channel[row])
        return Span(self.files[self.file[row]], float(self.start[row]), float(self.end[row]), channel)

    def overlaps(self, row: int, other: int) -> bool:
        """Return whether two rows share some of the same audio."""
        return bool(
            self.file[row] == self.file[other]
            and (self.channel is None or self.channel[row] == self.channel[other])
            and not (self.end[row] <= self.start[other] or self.end[other] <= self.start[row])
        )

    def take(self, rows: np.ndarray) -> Rows:
        """Return some of the rows, in this order, with those files only that they are of."""
        kept, file = np.unique(self.file[rows], return_inverse=True)
        channel = None if self.channel is None else self.channel[rows]
        files = [self.files[each] for each in kept]
        parts = file.astype(np.int32), self.start[rows], self.end[rows]
        return Rows(self.path, files, *parts, channel, self.provenance, np.asarray(self.vectors[rows]))


def read(name: str | os.PathLike[str]) -> Rows:
    """Read a table, a folder of outputs or tables, or one such output.

    Raises
    ------
    OptionError : there are no embeddings, they are of several kinds, or one is not finite
    """
    path = local_path(name, "embeddings")
    outputs = _outputs(path)
    provenance = _one_kind(outputs)
    tables = [each for each in outputs if SUFFIXES[each.suffix.lower()] in TABLES]
    if tables:
        n_rows = sum(map(_n_rows, tables))
        blocks: Iterator[Block] = (block for each in tables for block in _blocks(each))
    else:
        singles = [_block(each) for each in outputs]
        n_rows, blocks = sum(len(each["file"]) for each in singles), iter(singles)
    if not n_rows:
        raise OptionError(f"{path}: the table is empty; embed some audio into it first")
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
                f"{outputs[0]} and {path} were made with other settings: {changed}; distances need embeddings of one "
                "kind: name one of them, or its folder"
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
    with _explained(path):
        return int(_format(path).n_rows_of(path))


def _blocks(path: Path) -> Iterator[Block]:
    """Read the blocks of a table; raise OptionError if it is none of ours."""
    table = _format(path)
    with _explained(path):
        _check_layers(path, table)
        with table.reader(path) as read_rows:
            for block in read_rows(0, table.n_rows_of(path)):
                files = [each.decode() if isinstance(each, bytes) else str(each) for each in block["file"]]
                yield {**block, "file": np.array(files, object), "embedding": np.asarray(block["embedding"])}


def _check_layers(path: Path, table: Any) -> None:
    """Raise OptionError for a table of several layers, which somebody joined."""
    if table.name != "parquet" or "layer" not in table.library.parquet.read_schema(path).names:
        return
    layers = table.library.parquet.read_table(path, columns=["layer"], partitioning=None)["layer"].unique().to_pylist()
    if len(layers) > 1:
        named = ", ".join(map(str, layers[:MOST_DIFFERENCES]))
        raise OptionError(
            f"{path}: holds embeddings of several layers, {named}; distances need one, in a table of its own"
        )


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
            vectors = _room(n_rows, numbers.shape[1])
        if numbers.shape[1:] != vectors.shape[1:]:
            raise OptionError(
                f"{path}: embeddings of {vectors.shape[1]} and of {numbers.shape[1]} numbers; name one kind"
            )
        finite = np.isfinite(numbers).all(1)
        if not finite.all():
            bad = int(finite.argmin())
            raise OptionError(
                f"{path}: row {at + bad}, of {names[bad]}, holds NaN or an infinite number; embed this file again, "
                "or leave the row out"
            )
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


def _room(n_rows: int, size: int) -> np.ndarray:
    """Return room for embeddings, in memory or in a file that goes with it."""
    if 4 * n_rows * size <= MOST_IN_MEMORY:
        return np.empty((n_rows, size), np.float32)
    with tempfile.TemporaryFile() as file:
        return np.memmap(file, np.float32, "w+", shape=(n_rows, size))


def blocks_of(n_rows: int, size: int = GROUP_ROWS) -> Iterator[slice]:
    """Yield the rows of each block."""
    yield from (slice(first, min(first + size, n_rows)) for first in range(0, n_rows, size))
