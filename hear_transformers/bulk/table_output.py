"""One table for all sources of a run, written in parts that survive its end, and joined when all are there."""

from __future__ import annotations

import contextlib
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..embedding.pipeline import Embedded
from ..files import atomic_path
from . import journal
from .formats import stored
from .items import Content, ExistingOutput, Job, doubt_of
from .journal import Journal
from .sources import Source
from .tables import Rows, Table

PART_ROWS = 8192
"""Rows after which a part of a table is finished; a run that is killed loses one at most."""

PART_SECONDS = 60.0
"""Time after which a part is finished that has fewer rows."""

OPEN_PARTS = 4
"""Parts that are open at once when they are joined."""


class TableOfParts:
    """One table for all sources: parts of it while the run goes on, joined at its end in the order of the sources.

    A part is a table of some sources. The joined table is a part too, that of all of them, and what later runs add is
    joined with it.

    Parameters
    ----------
    table : the file
    form : the format
    content : what is stored
    overwrite : treat what is there as if it were not
    """

    def __init__(self, table: Path, form: Table, content: Content, *, overwrite: bool) -> None:
        self.table = table
        self.form = form
        self.content = content
        self.overwrite = overwrite
        self.state = table.parent / journal.STATE / table.name
        self.stack = contextlib.ExitStack()
        self.opened = contextlib.ExitStack()  # the part that is being written
        self.add: Callable[[Any], None] | None = None
        self.waiting: dict[str, dict[str, Any]] = {}  # lines of that part
        self.identity, self.n_rows, self.began = "", 0, 0.0

    def __enter__(self) -> TableOfParts:
        self.stack.enter_context(journal.exclusive(self.state, self.table))
        try:
            self._begin()
        except BaseException:
            self.stack.close()
            raise
        self.stack.callback(self.journal.close)
        return self

    def _begin(self) -> None:
        for leftover in self.state.glob(".*.part"):  # of a run that was killed: this one has the lock
            leftover.unlink(missing_ok=True)
        self.journal = Journal(self.state / "journal.jsonl", journal.digest(self.form.provenance))
        if self.overwrite:
            self.journal.begin()
        self.doubt = ""
        if self.table.exists() and not self.journal.begun:
            self.doubt = doubt_of(self.form.provenance_of(self.table), self.form.provenance, self.table)
            self.doubt = self.doubt or f"{self.table} is kept, but nobody noted what is in it; overwrite makes it anew"
        here = {path.stem for path in self._parts()} | {self._identity_of(self.table)}
        self.journal.lines = {key: line for key, line in self.journal.lines.items() if line.get("part") in here}

    def _parts(self) -> Iterator[Path]:
        return self.state.glob(f"*{self.form.suffixes[0]}")

    def _identity_of(self, path: Path) -> str | None:
        return self.form.metadata_of(path).get("id") if path.exists() else None

    def __exit__(self, *error: Any) -> None:
        """Keep what is finished, whatever was raised."""
        with self.stack:
            if any(error):
                with contextlib.suppress(Exception):  # the first error is the one to tell
                    self._close_part()

    def path(self, item: Job) -> Path:
        """Give the output of an item."""
        return self.table

    def held(self, item: Job) -> ExistingOutput | None:
        """Tell what is there already for an item, None if it is to be made."""
        if self.doubt:
            return ExistingOutput(self.doubt)
        line = self.journal.lines.get(item.key)
        return ExistingOutput(sha256=line["sha256"], file=line["file"]) if line else None

    def write(self, item: Job, embedded: Embedded) -> tuple[int, ...]:
        """Add the rows of an item to a part; gives the shape of the embedding."""
        rows = rows_of(item.source, embedded, self.content, self.state)
        if self.add is None:
            self._open_part()
        assert self.add is not None
        for block in rows.blocks():
            self.add(block)
        n_rows = len(rows.embeddings)
        place = {"part": self.identity, "first": self.n_rows, "rows": n_rows}
        self.waiting[item.key] = {**item.line(embedded.sha256), **place}
        self.n_rows += n_rows
        if self.n_rows >= PART_ROWS or time.monotonic() - self.began > PART_SECONDS:
            self._close_part()
        return rows.embeddings.shape[1 if embedded.times_ms is None else 0 :]

    def _open_part(self) -> None:
        self.identity, self.n_rows, self.began = uuid.uuid4().hex, 0, time.monotonic()
        path = self.opened.enter_context(atomic_path(self._part(self.identity)))
        self.add = self.opened.enter_context(self.form.create(path, self.identity))

    def _part(self, identity: str) -> Path:
        return self.state / f"{identity}{self.form.suffixes[0]}"

    def _close_part(self) -> None:
        """Give a part its name, then note what is in it."""
        lines, self.waiting, self.add = self.waiting, {}, None
        self.opened.close()
        if lines:
            self.journal.add(lines)

    def finish(self, items: Iterable[Job]) -> None:
        """Join the parts: sources of earlier runs that this one does not name, then its own in their order."""
        self._close_part()
        if self.doubt:
            return
        lines = self.journal.lines
        keys = [item.key for item in items if item.key in lines]
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
        """Give the lines of other sources: not those of the same audio under another name, as of two runs."""
        lines = self.journal.lines

        def place(key: str) -> tuple[str, str]:
            return lines[key]["file"], key.rpartition("|")[2]

        named = {place(key) for key in keys}
        return [key for key in lines if place(key) not in named]

    def _join(self, order: list[str], identity: str) -> None:
        """Make the part that holds all the others, and note that everything is there."""
        joined: dict[str, dict[str, Any]] = {}
        n_rows = 0
        with (
            _Readers(self.form, self._where) as readers,
            atomic_path(self._part(identity)) as path,
            self.form.create(path, identity) as add,
        ):
            for key in order:
                line = self.journal.lines[key]
                for block in readers.read(line["part"], line["first"], line["rows"]):
                    add(block)
                joined[key] = {**line, "part": identity, "first": n_rows}
                n_rows += line["rows"]
        self.journal.lines = joined
        self.journal.replace()

    def _where(self, identity: str) -> Path:
        part = self._part(identity)
        return part if part.exists() else self.table


class _Readers:
    """Reads rows of many parts, a few of which are open at once."""

    def __init__(self, form: Table, where: Callable[[str], Path]) -> None:
        self.form = form
        self.where = where
        self.open: dict[str, tuple[contextlib.ExitStack, Callable[[int, int], Iterator[Any]]]] = {}

    def __enter__(self) -> _Readers:
        return self

    def __exit__(self, *error: Any) -> None:
        while self.open:
            self._close(next(iter(self.open)))

    def _close(self, part: str) -> None:
        self.open.pop(part)[0].close()

    def read(self, part: str, first: int, n_rows: int) -> Iterator[Any]:
        """Give the rows of a part in blocks."""
        if part not in self.open:
            if len(self.open) == OPEN_PARTS:
                self._close(next(iter(self.open)))
            stack = contextlib.ExitStack()
            self.open[part] = (stack, stack.enter_context(self.form.reader(self.where(part))))
        return self.open[part][1](first, n_rows)


def rows_of(source: Source, embedded: Embedded, content: Content, scratch: Path | None = None) -> Rows:
    """Make the rows of a table of the embedding of one source, see `tables.Rows`."""
    assert embedded.embedding is not None
    embeddings = np.atleast_2d(stored(embedded.embedding, content.dtype, content.columns, scratch))
    start, end = source.start, source.start + embedded.seconds
    if embedded.times_ms is None:
        return Rows(str(source.path), np.array([start]), np.array([end]), np.array([np.nan]), embeddings)
    centres = start + embedded.times_ms / 1000.0
    half = content.window_ms / 2000.0
    starts, ends = np.clip(centres - half, start, end), np.clip(centres + half, start, end)
    return Rows(str(source.path), starts, ends, 1000.0 * centres, embeddings)
