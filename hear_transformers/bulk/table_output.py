"""One table for all sources of a run, written in parts that survive a kill, and joined at the end."""

from __future__ import annotations

import contextlib
import math
import sys
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..embedding.pipeline import Embedded
from ..errors import OptionError
from ..files import atomic_path
from . import journal
from .formats import Content, ExistingOutput, mismatch_of, stored
from .journal import Journal
from .sources import Source
from .tables import Block, TableFormat

PART_ROWS = 8192
"""Rows after which a part of a table is finished; a killed run loses one part at most."""

PART_SECONDS = 60.0
"""Time after which a part with fewer rows is finished."""

OPEN_PARTS = 4
"""Parts that are open at once while they are joined."""


JOINED = "joined-"
"""What the identity of a part that holds all others begins with."""


class TableOfParts:
    """One table for all sources, written in parts and joined at the end of the run, in the order of the sources.

    A part is a table of some sources. The joined table is a part too, of all sources, and later runs add theirs to it:
    their rows replace those of the same sources, and rows of other sources stay.

    Parameters
    ----------
    table : the file
    format : of the table
    content : what is stored
    overwrite : embed sources anew whose rows exist, and replace a table of other settings or without a journal
    """

    def __init__(self, table: Path, format: TableFormat, content: Content, *, overwrite: bool) -> None:
        self.table = table
        self.format = format
        self.content = content
        self.overwrite = overwrite
        self.state = table.parent / journal.STATE / table.name
        self.opened = contextlib.ExitStack()  # the part that is being written
        self.add: Callable[[Block], None] | None = None
        self.waiting: dict[str, dict[str, Any]] = {}  # its lines for the journal
        self.identity, self.n_rows, self.began = "", 0, 0.0
        self.names: dict[str, list[str]] = {}  # of the jobs of this run, by key

    def __enter__(self) -> TableOfParts:
        with contextlib.ExitStack() as stack:
            stack.enter_context(journal.exclusive(self.state, self.table))
            self._begin()
            self.stack = stack.pop_all()  # not released here, unless something was raised
        return self

    def _begin(self) -> None:
        """Read what earlier runs left; refuse a table whose rows this run could not keep."""
        for leftover in self.state.glob(".*.part"):  # of a killed run: this one has the lock
            leftover.unlink(missing_ok=True)
        self.journal = Journal(self.state / "journal.jsonl", journal.digest(self.format.provenance), _is_place)
        for part in self._parts():
            if self.format.metadata_of(part).get("id") != part.stem:  # damaged
                part.unlink()
        parts: set[str | None] = {part.stem for part in self._parts()}
        if self.table.exists() and (problem := self._problem()):
            status = self.table.stat()
            version = f"{status.st_size}-{status.st_mtime_ns}"
            if self.overwrite:
                self.journal.replace_output(version)
            elif self.journal.to_replace != version:
                raise OptionError(problem)
        else:
            parts.add(self._table_id())
        self.journal.lines = {key: line for key, line in self.journal.lines.items() if line["part"] in parts}

    def start(self, jobs: Iterable[Source]) -> None:
        """Take note of the jobs of this run: a job that is there several times has its rows as often."""
        for job in jobs:
            self.names.setdefault(job.key, []).append(shown(job))

    def _problem(self) -> str:
        """Return why rows of the existing table could not be kept beside new ones, empty if they can."""
        made_with = self.format.provenance_of(self.table)
        if problem := mismatch_of(made_with, self.format.provenance, self.table):
            return problem
        lines = [*self.journal.lines.values(), *self.journal.superseded]
        parts = {line["part"] for line in lines}
        if len(parts) == 1 and (part := self._part(*parts)).exists() and part.stem.startswith(JOINED):
            return ""  # it was to become the table when the run was killed
        n_rows = sum(line["rows"] * len(line["names"]) for line in lines if line["part"] == self._table_id())
        if n_rows == self.format.n_rows_of(self.table):
            return ""
        damage = "damaged" if lines else "missing"
        return (
            f"{self.table}: its journal in {self.state} is {damage}, so that rows could not be added; give another "
            "--out, or --overwrite to replace the whole table"
        )

    def _table_id(self) -> str | None:
        return self.format.metadata_of(self.table).get("id") if self.table.exists() else None

    def _parts(self) -> list[Path]:
        return list(self.state.glob(f"*{self.format.suffixes[0]}"))

    def __exit__(self, *error: Any) -> None:
        """Finish the current part, even after an error."""
        # The first error is the one to report.
        with self.stack, contextlib.suppress(*([Exception] if any(error) else [])):
            self._close_part()

    def path(self, job: Source) -> Path:
        """Return the output of a job."""
        return self.table

    def existing(self, job: Source) -> ExistingOutput | None:
        """Return the existing rows of a job, or None."""
        line = None if self.overwrite else self.journal.lines.get(job.key)
        if not line:
            return None
        return ExistingOutput(sha256=line["sha256"], file=line["file"], is_damaged=bool(line.get("damaged")))

    def write(self, job: Source, embedded: Embedded) -> tuple[int, ...]:
        """Add the rows of a job to a part; return the shape of the embedding."""
        rows = rows_of(job, embedded, self.content, self.state)
        if self.add is None:
            self._open_part()
        assert self.add is not None
        try:
            self.add(rows)
        except BaseException:
            self._drop_part(*sys.exc_info())
            raise
        n_rows = len(rows["embedding"])
        place = {"part": self.identity, "first": self.n_rows, "rows": n_rows, "names": self.names[job.key]}
        self.waiting[job.key] = {**job.audio_of(embedded), **place}
        self.n_rows += n_rows
        if self.n_rows >= PART_ROWS or time.monotonic() - self.began > PART_SECONDS:
            self._close_part()
        return rows["embedding"].shape[1 if embedded.times_ms is None else 0 :]

    def _open_part(self) -> None:
        self.identity, self.n_rows, self.began = uuid.uuid4().hex, 0, time.monotonic()
        with contextlib.ExitStack() as stack:
            path = stack.enter_context(atomic_path(self._part(self.identity)))
            self.add = stack.enter_context(self.format.create(path, self.identity))
            self.opened = stack.pop_all()  # not closed here, unless something was raised

    def _drop_part(self, *error: Any) -> None:
        """Remove the part that is being written after an error: it may be half."""
        self.waiting, self.add = {}, None
        with contextlib.suppress(Exception):  # that error is the one to report
            self.opened.__exit__(*error)

    def _part(self, identity: str) -> Path:
        return self.state / f"{identity}{self.format.suffixes[0]}"

    def _close_part(self) -> None:
        """Rename the part to its final name, then add its lines to the journal."""
        lines, self.waiting, self.add = self.waiting, {}, None
        self.opened.close()
        if lines:
            with self._removed_after_errors(self.identity):
                self.journal.add(lines)

    @contextlib.contextmanager
    def _removed_after_errors(self, identity: str) -> Iterator[None]:
        """Remove a part that could not be noted in the journal."""
        try:
            yield
        except OSError:
            self._part(identity).unlink(missing_ok=True)
            raise

    def finish(self, jobs: Iterable[Source]) -> None:
        """Join the parts: sources of earlier runs that this one does not name, then its own in their order."""
        self._close_part()
        lines = self.journal.lines
        own = [(job.key, shown(job)) for job in jobs if job.key in lines]
        order = [*self._others({key for key, _ in own}), *own]
        if not order:
            return
        contents = [[key, name, lines[key]["sha256"], lines[key]["rows"]] for key, name in order]
        identity = JOINED + journal.digest({"settings": self.journal.settings, "rows": contents})
        if any(line["part"] != identity for line in lines.values()):
            self._join(order, identity)
        if self._part(identity).exists():
            self._part(identity).replace(self.table)
        for part in self._parts():
            part.unlink()

    def _others(self, keys: set[str]) -> list[tuple[str, str]]:
        """Return keys and names of other sources, without those of the same audio under another key, of earlier runs.

        A source is there once for each time that its rows are.
        """
        lines = self.journal.lines
        places = {key: (line["file"], key.rpartition("|")[2]) for key, line in lines.items()}
        named = {places[key] for key in keys}
        return [(key, name) for key, place in places.items() if place not in named for name in lines[key]["names"]]

    def _join(self, order: list[tuple[str, str]], identity: str) -> None:
        """Write the part that holds all the others, then the journal of it."""
        lines = self.journal.lines
        with (
            contextlib.closing(self._read(lines[key] for key, _ in order)) as blocks,
            atomic_path(self._part(identity)) as path,
            self.format.create(path, identity) as add,
        ):
            for (_, name), rows in zip(order, blocks, strict=True):
                for block in rows:
                    add({**block, "file": np.full(len(block["file"]), name, object)})
        joined: dict[str, dict[str, Any]] = {}
        firsts = accumulate((lines[key]["rows"] for key, _ in order), initial=0)
        for (key, name), first in zip(order, firsts, strict=False):
            new = {**lines[key], "part": identity, "first": first, "names": []}
            joined.setdefault(key, new)["names"].append(name)
        with self._removed_after_errors(identity):
            self.journal.replace(joined)

    def _read(self, lines: Iterable[Mapping[str, Any]]) -> Generator[Iterator[Block], None, None]:
        """Read the rows of each line of the journal in turn, with at most `OPEN_PARTS` open at once."""
        opened: dict[str, tuple[contextlib.ExitStack, Callable[[int, int], Iterator[Block]]]] = {}
        try:
            for line in lines:
                part = line["part"]
                if part not in opened:
                    if len(opened) == OPEN_PARTS:
                        opened.pop(next(iter(opened)))[0].close()
                    stack = contextlib.ExitStack()
                    opened[part] = (stack, stack.enter_context(self.format.reader(self._path_of(part))))
                yield opened[part][1](line["first"], line["rows"])
        finally:
            for stack, _ in opened.values():
                stack.close()

    def _path_of(self, identity: str) -> Path:
        part = self._part(identity)
        return part if part.exists() else self.table


def _is_place(line: Mapping[str, Any]) -> bool:
    """Return True if a line of a journal says which rows of which part hold a source."""
    names = line.get("names")
    return (
        all(isinstance(line.get(key), str) for key in ("part", "file", "sha256"))
        and all(type(line.get(key)) is int and line[key] >= 0 for key in ("first", "rows"))
        and isinstance(names, list)
        and all(isinstance(name, str) for name in names)
    )


def shown(source: Source) -> str:
    """Return the name of a file as it stands in a table."""
    # Bytes of a name that are not UTF-8 are written \udcff.
    return str(source.path).encode("utf-8", "backslashreplace").decode()


def rows_of(source: Source, embedded: Embedded, content: Content, scratch: Path) -> Block:
    """Return the rows of the embedding of one source."""
    assert embedded.embedding is not None
    embeddings = np.atleast_2d(stored(embedded.embedding, content.dtype, content.columns, scratch))
    start, audio_end = source.start, source.start + embedded.seconds
    part_end = math.nan if source.end == math.inf else source.end
    if embedded.times_ms is None:
        end = audio_end if source.end == math.inf else source.end
        starts, ends, centres = np.array([start]), np.array([end]), np.array([math.nan])
    else:
        centres = start + embedded.times_ms / 1000.0
        assert embedded.spans_ms is not None
        starts, ends = (start + each / 1000.0 for each in embedded.spans_ms)
    channel = {} if source.channel is None else {"channel": np.full(len(embeddings), source.channel, np.int64)}
    whole = {"part_start": start, "part_end": part_end, "audio_end": audio_end}
    return {
        "file": np.full(len(embeddings), shown(source), object),
        **channel,
        "start": starts,
        "end": ends,
        "time_ms": 1000.0 * centres,
        **{name: np.full(len(embeddings), seconds) for name, seconds in whole.items()},
        "embedding": embeddings,
    }
