"""What makes a run resumable: a journal of what is finished, in a hidden folder beside it, and the list of what failed.

    OUT/failures.jsonl             inputs that failed in the last run, a line each; none, no file
    OUT/.embed-audio/
        journal.jsonl              a line for every finished output; ``journal-0-of-8.jsonl`` of a shard
        RUN.lock, RUN/             of a run that is under way: what it has not finished writing
        TABLE/journal.jsonl, ...   the same of a table, and its finished parts

A line is written once what it tells of is there under its name, so a run may be killed at any moment.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import json
import os
import shutil
import uuid
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO

from filelock import FileLock, Timeout

from ..errors import HearTransformersError, OptionError

STATE = ".embed-audio"
"""The hidden folder."""

FAILURES = "failures"

LOCK_SECONDS = 10.0
"""How long a run waits for a table that another run has: its worker processes outlive one that is killed by so much."""

NO_ROOM = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of a disk, a file or a share that is full: the next file would fail as well."""


class DiskFullError(HearTransformersError):
    """There is no room to write to."""


def is_disk_full(error: OSError) -> bool:
    """Tell whether an error is that of a full disk."""
    return error.errno in NO_ROOM


@contextlib.contextmanager
def disk_full_as_error(folder: Path) -> Iterator[None]:
    """Raise DiskFullError where the disk of a folder is full."""
    try:
        yield
    except OSError as error:
        if not is_disk_full(error):
            raise
        raise DiskFullError(
            f"{folder}: no room to write ({os.strerror(error.errno or 0)}); what is finished is kept: make room, "
            "and the same command goes on"
        ) from error


def _write(file: BinaryIO, text: bytes) -> None:
    """Write all of a text at once."""
    if file.write(text) != len(text):  # the disk was full in the middle
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def digest(settings: Mapping[str, Any]) -> str:
    """Give a short name of settings: the same for the same ones, another for others."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Lines of JSON with a ``key``, of which the last one counts.

    Parameters
    ----------
    path : of the file, made with the first line
    settings : only lines of these are read; every line that is written says so
    """

    def __init__(self, path: Path, settings: str) -> None:
        self.path = path
        self.settings = settings
        self.lines: dict[str, dict[str, Any]] = {}
        self.begun = False
        self.file: BinaryIO | None = None
        self.read(path)

    def read(self, path: Path) -> None:
        """Read the lines of a file; what a run left that was killed while it wrote is no line."""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for text in file:
                try:
                    line = json.loads(text)
                    is_ours = line.pop("settings") == self.settings
                except (ValueError, KeyError, TypeError, AttributeError):
                    continue
                self.begun |= is_ours
                if is_ours and "key" in line:
                    self.lines[line.pop("key")] = line

    def add(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Add lines, by key, at once: no other run's line comes in between."""
        self.lines.update({key: dict(line) for key, line in lines.items()})
        self._append(self._encoded(lines))

    def begin(self) -> None:
        """Forget all lines, those of other settings too, and note that there is a run of these settings."""
        self.lines = {}
        self.replace()

    def replace(self) -> None:
        """Write the file anew with the lines that count."""
        self.begun = True
        self.close()
        self.path.parent.mkdir(parents=True, exist_ok=True)
        new = self.path.with_name(f".{uuid.uuid4().hex}.part")
        try:
            new.write_bytes(self._line({}) + self._encoded(self.lines))
            new.replace(self.path)
        finally:
            new.unlink(missing_ok=True)

    def _encoded(self, lines: Mapping[str, Mapping[str, Any]]) -> bytes:
        return b"".join(self._line({"key": key, **line}) for key, line in lines.items())

    def _line(self, line: Mapping[str, Any]) -> bytes:
        return json.dumps({**line, "settings": self.settings}).encode() + b"\n"

    def _append(self, text: bytes) -> None:
        if self.file is None:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self.file = self.path.open("ab+", buffering=0)
            if self.file.seek(0, os.SEEK_END):
                self.file.seek(-1, os.SEEK_END)
                text = text if self.file.read(1) == b"\n" else b"\n" + text  # after a line that was cut short
        _write(self.file, text)

    def close(self) -> None:
        """Let go of the file."""
        if self.file is not None:
            self.file.close()
            self.file = None


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Make a folder for what a run has not finished; those of runs that were killed are removed.

    A run holds a lock as long as it lives, so another that is at work on the same outputs, such as a shard's, is left
    alone.

    Parameters
    ----------
    folder : of the outputs
    """
    state = folder / STATE
    state.mkdir(parents=True, exist_ok=True)
    for lock in state.glob("*.lock"):
        _remove_if_dead(lock)
    mine = state / f"{uuid.uuid4().hex}.lock"
    lock_of_run = FileLock(mine)
    with contextlib.suppress(NotImplementedError, OSError):  # no locks on this file system: nothing is removed either
        lock_of_run.acquire()
    place = mine.with_suffix("")
    place.mkdir()
    try:
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # the system may not let go of a file that is open
            mine.unlink(missing_ok=True)
        lock_of_run.release()
        with contextlib.suppress(OSError):
            state.rmdir()


def _remove_if_dead(path: Path) -> None:
    """Remove the folder of a run whose lock nobody holds."""
    lock = FileLock(path, timeout=0)
    with contextlib.suppress(Timeout, NotImplementedError, OSError), lock:
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path, what: Path) -> Iterator[None]:
    """Keep other runs from a table.

    Raises
    ------
    OptionError : another run has it
    """
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / "lock", timeout=LOCK_SECONDS)
    try:
        with contextlib.suppress(NotImplementedError):
            lock.acquire()
    except Timeout as error:
        raise OptionError(f"{what} is being written by another run; wait for it, or give each run a shard") from error
    try:
        yield
    finally:
        lock.release()


class Failures:
    """The list of what failed, rewritten by every run: ``file, start, end, error, reason`` in JSON, a line each.

    Parameters
    ----------
    path : of the list, which is there only if something failed
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if _is_list(path):
            path.unlink()

    def add(self, failure: Mapping[str, Any]) -> None:
        """Add one that failed."""
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab", buffering=0) as file:
            _write(file, json.dumps(failure).encode() + b"\n")


def _is_list(path: Path) -> bool:
    """Tell whether a file is a list of failures, and not something else of that name."""
    try:
        with path.open("rb") as file:
            first = json.loads(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and {"file", "error", "reason"} <= first.keys()
