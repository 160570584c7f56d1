"""One table for all sources of a run, written in parts that survive a kill, and joined at the end."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Generator, Iterable, Iterator, Mapping
from itertools import accumulate
from pathlib import Path
from typing import Any

import numpy as np

from ..embedding.pipeline import Embedded
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


class TableOfParts:
    """One table for all sources, written in parts and joined at the end of the run, in the order of the sources.

    A part is a table of some sources. The joined table is a part too, of all sources, and later runs add theirs to it.

    Parameters
    ----------
    table : the file
    format : of the table
    content : what is stored
    overwrite : ignore existing rows
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

    def __enter__(self) -> TableOfParts:
        with contextlib.ExitStack() as stack:
            stack.enter_context(journal.exclusive(self.state, self.table))
            self._begin()
            self.stack = stack.pop_all()  # not released here, unless something was raised
        return self

    def _begin(self) -> None:
        for leftover in self.state.glob(".*.part"):  # of a killed run: this one has the lock
            leftover.unlink(missing_ok=True)
        self.journal = Journal(self.state / "journal.jsonl", journal.digest(self.format.provenance))
        if self.overwrite:
            self.journal.begin()
        self.mismatch = ""
        if self.table.exists() and not self.journal.has_begun:
            made_with = self.format.provenance_of(self.table)
            self.mismatch = mismatch_of(made_with, self.format.provenance, self.table) or (
                f"{self.table} is kept, but its journal is missing; use overwrite to replace it"
            )
        parts = {path.stem for path in self._parts()} | {self.format.metadata_of(self.table).get("id")}
        self.journal.lines = {key: line for key, line in self.journal.lines.items() if line.get("part") in parts}

    def _parts(self) -> Iterator[Path]:
        return self.state.glob(f"*{self.format.suffixes[0]}")

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
        if self.mismatch:
            return ExistingOutput(self.mismatch)
        line = self.journal.lines.get(job.key)
        if not line:
            return None
        return ExistingOutput(sha256=line["sha256"], file=line["file"], is_damaged=bool(line.get("damaged")))

    def write(self, job: Source, embedded: Embedded) -> tuple[int, ...]:
        """Add the rows of a job to a part; return the shape of the embedding."""
        rows = rows_of(job, embedded, self.content, self.state)
        if self.add is None:
            self._open_part()
        assert self.add is not None
        self.add(rows)
        n_rows = len(rows["embedding"])
        place = {"part": self.identity, "first": self.n_rows, "rows": n_rows}
        self.waiting[job.key] = {**job.audio_of(embedded), **place}
        self.n_rows += n_rows
        if self.n_rows >= PART_ROWS or time.monotonic() - self.began > PART_SECONDS:
            self._close_part()
        return rows["embedding"].shape[1 if embedded.times_ms is None else 0 :]

    def _open_part(self) -> None:
        self.identity, self.n_rows, self.began = uuid.uuid4().hex, 0, time.monotonic()
        path = self.opened.enter_context(atomic_path(self._part(self.identity)))
        self.add = self.opened.enter_context(self.format.create(path, self.identity))

    def _part(self, identity: str) -> Path:
        return self.state / f"{identity}{self.format.suffixes[0]}"

    def _close_part(self) -> None:
        """Rename the part to its final name, then add its lines to the journal."""
        lines, self.waiting, self.add = self.waiting, {}, None
        self.opened.close()
        if lines:
            self.journal.add(lines)

    def finish(self, jobs: Iterable[Source]) -> None:
        """Join the parts: sources of earlier runs that this one does not name, then its own in their order."""
        self._close_part()
        if self.mismatch:
            return
        lines = self.journal.lines
        keys = [job.key for job in jobs if job.key in lines]
        order = [*self._others(keys), *keys]
        if not order:
            return
        contents = [[key, lines[key]["sha256"], lines[key]["rows"]] for key in order]
        identity = journal.digest({"settings": self.journal.settings, "rows": contents})
        if any(line["part"] != identity for line in lines.values()):
            self._join(order, identity)
        if self._part(identity).exists():
            self._part(identity).replace(self.table)
        for part in self._parts():
            part.unlink()

    def _others(self, keys: list[str]) -> list[str]:
        """Return the keys of other sources, without those of the same audio under another name, from an earlier run."""
        places = {key: (line["file"], key.rpartition("|")[2]) for key, line in self.journal.lines.items()}
        named = {places[key] for key in keys}
        return [key for key, place in places.items() if place not in named]

    def _join(self, order: list[str], identity: str) -> None:
        """Write the part that holds all the others, then the journal of it."""
        lines = [self.journal.lines[key] for key in order]
        with (
            contextlib.closing(self._read(lines)) as blocks,
            atomic_path(self._part(identity)) as path,
            self.format.create(path, identity) as add,
        ):
            for block in blocks:
                add(block)
        firsts = accumulate((line["rows"] for line in lines), initial=0)
        moved = ({**line, "part": identity, "first": first} for line, first in zip(lines, firsts, strict=False))
        self.journal.lines = dict(zip(order, moved, strict=True))
        self.journal.replace()

    def _read(self, lines: Iterable[Mapping[str, Any]]) -> Generator[Block, None, None]:
        """Read the rows of lines of the journal in turn, with at most `OPEN_PARTS` open at once."""
        opened: dict[str, tuple[contextlib.ExitStack, Callable[[int, int], Iterator[Block]]]] = {}
        try:
            for line in lines:
                part = line["part"]
                if part not in opened:
                    if len(opened) == OPEN_PARTS:
                        opened.pop(next(iter(opened)))[0].close()
                    stack = contextlib.ExitStack()
                    opened[part] = (stack, stack.enter_context(self.format.reader(self._path_of(part))))
                yield from opened[part][1](line["first"], line["rows"])
        finally:
            for stack, _ in opened.values():
                stack.close()

    def _path_of(self, identity: str) -> Path:
        part = self._part(identity)
        return part if part.exists() else self.table


def rows_of(source: Source, embedded: Embedded, content: Content, scratch: Path) -> Block:
    """Return the rows of the embedding of one source."""
    assert embedded.embedding is not None
    embeddings = np.atleast_2d(stored(embedded.embedding, content.dtype, content.columns, scratch))
    start, end = source.start, source.start + embedded.seconds
    if embedded.times_ms is None:
        starts, ends, centres = np.array([start]), np.array([end]), np.array([np.nan])
    else:
        centres = start + embedded.times_ms / 1000.0
        half = content.window_ms / 2000.0
        starts, ends = np.clip(centres - half, start, end), np.clip(centres + half, start, end)
    # Bytes of a name that are not UTF-8 are written \udcff.
    name = str(source.path).encode("utf-8", "backslashreplace").decode()
    files = np.full(len(embeddings), name, object)
    channel = {} if source.channel is None else {"channel": np.full(len(embeddings), source.channel, np.int64)}
    return {
        "file": files,
        **channel,
        "start": starts,
        "end": ends,
        "time_ms": 1000.0 * centres,
        "embedding": embeddings,
    }
