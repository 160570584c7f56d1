"""Parquet shards in a folder of any file system, named by their content: what many machines write, and resume from.

A shard is a table as `embed-audio` writes it, of some sources. The metadata of its schema name the parts of files whose
rows it holds, so that what is there is known from the ends of the files alone; its name is a hash of them and of the
settings, so that a shard that is written twice is one.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import os
import tempfile
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any, NamedTuple

import numpy as np

from ..errors import HearTransformersError, OptionError, import_extra
from ..files import Address, atomic_path, parse_json, place_of
from .formats import mismatch_of
from .parquet import open_table
from .sources import Source
from .table_output import shown

PARTS = b"parts"
"""Key of the metadata that name the parts of a shard."""

READERS = 16
"""Threads that read the ends of shards: on a store across a network each waits for an answer."""

SUFFIX = ".parquet"


class Part(NamedTuple):
    """A part of a file as a table names it, and its version; see `Source` and `version_of`."""

    file: str
    start: float
    end: float | None
    channel: int | None
    version: str

    @staticmethod
    def of(source: Source, version: str) -> Part:
        """Return the part that a source is."""
        end = None if source.end == float("inf") else source.end
        return Part(shown(source), source.start, end, source.channel, version)

    @property
    def place(self) -> tuple[Any, ...]:
        """The part, whatever its version."""
        return tuple(self[:-1])


def version_of(source: Source) -> str:
    """Return what tells a changed file from itself, its size and time of modification; of an address nothing.

    To read a million files for a hash takes as long as to embed them, and to ask a server about each takes hours.
    """
    if isinstance(source.path, Address):
        return ""
    try:
        status = os.stat(source.path)
    except OSError:
        return ""  # what is wrong is found when it is read
    return f"{status.st_size}-{status.st_mtime_ns}"


@dataclass(frozen=True, slots=True)
class Rows:
    """Rows of a shard that lie together: those of one part.

    Attributes
    ----------
    part : that they are of
    count : how many
    """

    part: Part
    count: int


@dataclass(frozen=True, slots=True)
class Shard:
    """What the end of a shard's file says.

    Attributes
    ----------
    name : of the file
    provenance : what made it, None if it does not say
    rows : in their order
    """

    name: str
    provenance: dict[str, Any] | None
    rows: tuple[Rows, ...]


@dataclass(frozen=True, slots=True)
class Store:
    """A folder of shards, on this machine or where fsspec reaches.

    Attributes
    ----------
    url : of the folder, as the user gave it
    files : the file system, of fsspec
    folder : in that file system
    """

    url: str
    files: Any = field(repr=False)
    folder: str

    @staticmethod
    def at(url: str | os.PathLike[str]) -> Store:
        """Return the store at a path or an address: "out", "s3://bucket/out".

        Raises
        ------
        OptionError : fsspec, or a package that it needs for such an address, is not installed
        """
        place = place_of(url)
        fsspec = import_extra("an output of many machines", "fsspec", "ray")
        try:
            files, folder = fsspec.core.url_to_fs(place if isinstance(place, Address) else os.path.abspath(place))
        except (ImportError, ValueError) as error:
            raise OptionError(
                f"{os.fspath(url)}: this kind of address needs a package or is unknown: {error}"
            ) from error
        return Store(str(place), files, folder)

    def within(self, folder: str) -> Store:
        """Return a folder of this one, itself without a name."""
        if not folder:
            return self
        return replace(self, url=f"{self.url.rstrip('/')}/{folder}", folder=f"{self.folder.rstrip('/')}/{folder}")

    def place(self, name: str) -> Path | Address:
        """Return the path or address of a file in it."""
        url = f"{self.url.rstrip('/')}/{name}"
        return Address(url) if "://" in url else Path(url)

    @property
    def is_local(self) -> bool:
        """True on this machine."""
        return "file" in np.atleast_1d(self.files.protocol)

    def shards(self) -> dict[str, Shard]:
        """Read what all shards say of themselves, by name.

        Raises
        ------
        OptionError : there is a file where the folder should be
        HearTransformersError : a shard cannot be read
        """
        self.files.invalidate_cache()
        if self.files.isfile(self.folder):
            raise OptionError(f"{self.url} is a file; shards need a folder, so choose another name")
        try:
            found = self.files.ls(self.folder, detail=False) if self.files.isdir(self.folder) else []
        except OSError as error:
            raise HearTransformersError(f"{self.url}: cannot be listed ({error})") from error
        names = sorted(PurePosixPath(path).name for path in found if str(path).endswith(SUFFIX))
        with ThreadPoolExecutor(READERS) as pool:
            shards = pool.map(self._read, (name for name in names if not name.startswith(".")))
            return {shard.name: shard for shard in shards}

    def _read(self, name: str) -> Shard:
        import pyarrow.parquet

        try:
            with self.files.open(self._path(name), "rb") as file:
                metadata = pyarrow.parquet.read_schema(file).metadata or {}
            provenance, listed = (parse_json(metadata.get(key, b"null")) for key in (b"provenance", PARTS))
            rows = tuple(Rows(Part(*part), count) for *part, count in listed or ())
        except (OSError, ValueError, TypeError) as error:  # pyarrow's own derive from these
            raise HearTransformersError(
                f"{self.place(name)}: cannot be read as a shard ({error}); remove it, and run the same command again"
            ) from error
        return Shard(name, provenance, rows)

    def write(self, table: Path, name: str, parts: Sequence[Part], spans: Mapping[Part, Span]) -> None:
        """Write a table of this machine as a shard.

        Parameters
        ----------
        table : with the rows of some of the parts, in their order
        name : of the shard, see `name_of`
        parts : that were to be embedded
        spans : of those that are pieces of a longer part, the whole of it
        """
        import pyarrow.parquet

        with pyarrow.parquet.ParquetFile(table) as file:
            rows = rows_of(file, parts)
            metadata = dict(file.schema_arrow.metadata)
            metadata |= {b"id": name.encode(), PARTS: json.dumps([[*each.part, each.count] for each in rows]).encode()}
            groups = (file.read_row_group(i) for i in range(file.num_row_groups))
            whole = _with_spans(groups, rows, spans) if spans else groups
            self._write(name, whole, metadata)

    def _write(self, name: str, groups: Iterable[Any], metadata: Mapping[bytes, bytes]) -> None:
        """Write row groups to a file that appears when it is complete."""
        with tempfile.TemporaryDirectory() if not self.is_local else contextlib.nullcontext() as scratch:
            local = Path(scratch, name) if scratch else Path(self._path(name))
            with atomic_path(local) as path, contextlib.ExitStack() as stack:
                writer: Any = None
                for group in groups:
                    group = group.replace_schema_metadata(metadata)
                    if writer is None:
                        writer = stack.enter_context(open_table(path, group.schema))
                    writer.write_table(group)
            if scratch:
                self.files.makedirs(self.folder, exist_ok=True)
                self.files.put_file(str(local), self._path(name))

    def write_bytes(self, name: str, content: bytes) -> None:
        """Write a small file, or remove it if there is nothing to write."""
        path = self._path(name)
        if content:
            self.files.makedirs(self.folder, exist_ok=True)
            self.files.pipe_file(path, content)
        elif self.files.exists(path):
            self.files.rm_file(path)

    def read_bytes(self, name: str) -> bytes:
        """Read a small file, empty if there is none."""
        path = self._path(name)
        return bytes(self.files.cat_file(path)) if self.files.exists(path) else b""

    def drop(self, shard: Shard, is_dropped: Sequence[bool]) -> None:
        """Remove the rows of some parts from a shard, in bounded memory; the file, if none are left."""
        import pyarrow.parquet

        kept = [rows for rows, dropped in zip(shard.rows, is_dropped, strict=True) if not dropped]
        if kept:
            assert shard.provenance is not None
            with self.files.open(self._path(shard.name), "rb") as opened, pyarrow.parquet.ParquetFile(opened) as file:
                name = name_of([shard.provenance], [rows.part for rows in kept])
                metadata = dict(file.schema_arrow.metadata)
                listed = [[*each.part, each.count] for each in kept]
                metadata |= {b"id": name.encode(), PARTS: json.dumps(listed).encode()}
                keep = np.repeat([not dropped for dropped in is_dropped], [rows.count for rows in shard.rows])
                self._write(name, _kept(file, keep), metadata)
        self.files.rm_file(self._path(shard.name))

    def _path(self, name: str) -> str:
        return f"{self.folder.rstrip('/')}/{name}"


class Span(NamedTuple):
    """The part of a file that was asked for, of which pieces were embedded apart: see `tables.Block`."""

    start: float
    end: float | None
    audio_end: float


def name_of(settings: Sequence[Mapping[str, Any]], parts: Iterable[Part]) -> str:
    """Return the name of the shard that holds some parts, embedded with some settings."""
    text = json.dumps([list(settings), [list(part) for part in parts]], sort_keys=True)
    return f"{hashlib.sha256(text.encode()).hexdigest()[:32]}{SUFFIX}"


def rows_of(file: Any, parts: Iterable[Part]) -> tuple[Rows, ...]:
    """Return which rows of a table are of which part: the rows of each lie together."""
    by_place = {part.place: part for part in parts}
    names = ("file", "part_start", "part_end", "channel")  # that are `Part.place`
    found: list[Rows] = []
    for batch in file.iter_batches(columns=[name for name in names if name in file.schema_arrow.names]):
        columns = batch.to_pydict()
        places = zip(*(columns.get(name, [None] * len(batch)) for name in names), strict=True)
        for place, group in itertools.groupby(places):
            part, n_rows = by_place[place], sum(1 for _ in group)
            if found and found[-1].part == part:  # in the batch before
                n_rows += found.pop().count
            found.append(Rows(part, n_rows))
    return tuple(found)


def _with_spans(groups: Iterable[Any], rows: Sequence[Rows], spans: Mapping[Part, Span]) -> Iterator[Any]:
    """Replace the bounds of pieces in their rows by those of the part that was asked for."""
    import pyarrow

    wholes = [spans.get(each.part) for each in rows]
    of_row = np.repeat(np.arange(len(rows)), [each.count for each in rows])
    at = 0
    for group in groups:
        chosen = of_row[at : at + len(group)]
        at += len(group)
        for name, column in (("part_start", "start"), ("part_end", "end"), ("audio_end", "audio_end")):
            values = group[name].to_pylist()
            for i, row in enumerate(chosen):
                if (span := wholes[row]) is not None:
                    values[i] = getattr(span, column)
            place = group.column_names.index(name)
            group = group.set_column(
                place, group.schema.field(place), pyarrow.array(values, group.schema.field(place).type)
            )
        yield group


def _kept(file: Any, keep: np.ndarray) -> Iterator[Any]:
    """Return the row groups of a table, of each the rows that are kept."""
    import pyarrow

    at = 0
    for i in range(file.num_row_groups):
        group = file.read_row_group(i)
        yield group.filter(pyarrow.array(keep[at : at + len(group)]))
        at += len(group)


def check_settings(store: Store, shards: Iterable[Shard], settings: dict[str, Any]) -> None:
    """Refuse to write beside tables of other settings, or such as say nothing of their parts.

    Raises
    ------
    OptionError : there are such, which are named
    """
    settings = json.loads(json.dumps(settings))  # as it will be read
    for shard in shards:
        path = store.place(shard.name)
        if problem := mismatch_of(shard.provenance, settings, Path(path)):
            raise OptionError(problem)
        if not shard.rows:
            raise OptionError(
                f"{path}: is no shard of many machines, but a table of one; in one folder rows would be there twice: "
                "give another --out"
            )


def reconcile(store: Store, shards: Mapping[str, Shard], rank: Callable[[Shard, Part], int]) -> int:
    """Remove rows of parts that are there twice, since a file changed or was embedded again; return how many parts.

    Parameters
    ----------
    store : of the shards
    shards : all of them, by name
    rank : of the rows of a part in a shard: of those of the same part the first of the highest rank are kept
    """
    places: dict[tuple[Any, ...], list[tuple[Shard, int]]] = {}
    for shard in shards.values():
        for i, rows in enumerate(shard.rows):
            places.setdefault(rows.part.place, []).append((shard, i))
    dropped: dict[str, set[int]] = {}
    for found in places.values():
        if len({shard.name for shard, _ in found}) == 1:
            continue
        best, _ = max(found, key=lambda each: rank(each[0], each[0].rows[each[1]].part))
        for shard, i in found:
            if shard is not best:
                dropped.setdefault(shard.name, set()).add(i)
    for name, places_of_shard in dropped.items():
        shard = shards[name]
        store.drop(shard, [i in places_of_shard for i in range(len(shard.rows))])
    return sum(map(len, dropped.values()))
