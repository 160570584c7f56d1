"""What makes a run resumable: the journal of a table, folders for unfinished files, locks, the list of failures.

    OUT/failures.jsonl             inputs that failed in the last run, one per line; absent if none failed
    OUT/warnings.jsonl             what is to be known of audio that was embedded, one per line; absent if nothing is
    OUT/.embed-audio/
        RUN.lock, RUN/             of a run in progress: its unfinished files
        TABLE/journal.jsonl, ...   of a table: a line for every source in it, and its finished parts

A line is written after its part has its name, so a run may be killed at any moment. Files in a folder need no journal:
they hold their provenance.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import itertools
import json
import os
import shutil
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping
from itertools import chain
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from ..errors import DiskFullError, HearTransformersError, OptionError
from ..files import atomic, parse_json

STATE = ".embed-audio"
"""The hidden folder."""

LOCK_SECONDS = 10.0
"""How long a run waits for the lock of a table: the workers of a killed run may hold it for as long."""

MOST_ATTEMPTS = 1000
"""How often a folder is made that another run removes."""

DISK_FULL = (errno.ENOSPC, errno.EFBIG, errno.EDQUOT)
"""Errors of a disk, a file or a quota that is full: the next file would fail as well."""


DISK_FAILS = {
    number
    for name in ("EIO", "EROFS", "ENODEV", "ENXIO", "ESTALE", "ENOTCONN", "ETIMEDOUT", "EREMOTEIO", "EHOSTDOWN")
    if (number := getattr(errno, name, None)) is not None
}
"""Errors of a disk that fails, or of a network drive that is gone: the next file would fail as well."""


def is_disk_full(error: OSError) -> bool:
    """Return True if an error is that of a full disk."""
    return error.errno in DISK_FULL


def is_of_disk(error: OSError) -> bool:
    """Return True if an error is one of the disk, and not of one file."""
    return is_disk_full(error) or error.errno in DISK_FAILS


@contextlib.contextmanager
def explained(folder: Path) -> Iterator[None]:
    """Raise errors of writing outputs below a folder anew, with what to do; a full disk as DiskFullError."""
    try:
        yield
    except BrokenPipeError:  # of stdout, which is no output
        raise
    except OSError as error:
        kept = "finished outputs are kept"
        again = "then run the same command again to resume"
        cause = os.strerror(error.errno) if error.errno else str(error)
        place = error.filename or folder
        if is_disk_full(error):
            raise DiskFullError(f"{folder}: no room to write ({cause}); {kept}: free some space, {again}") from error
        if isinstance(error, PermissionError) or error.errno == errno.EROFS:
            advice = "choose another --out, or allow writing there"
        else:
            advice = f"check the disk, or the connection to it, {again}"
        raise HearTransformersError(f"{place}: cannot be read or written ({cause}); {kept}: {advice}") from error


def digest(settings: Mapping[str, Any]) -> str:
    """Return a hash of settings, as 16 hexadecimal digits."""
    return hashlib.sha256(json.dumps(settings, sort_keys=True).encode()).hexdigest()[:16]


class Journal:
    """Lines of JSON, each with a ``key``; of lines with the same key the last one counts.

    Parameters
    ----------
    path : of the file, created with the first line
    settings : their `digest`; it goes into every line, and lines of other settings are ignored
    is_valid : whether a line holds what it should; others are ignored

    Attributes
    ----------
    lines : by key
    superseded : lines that a later one of the same key replaced
    to_replace : `version` of the output that a run of these settings was asked to replace, empty if none
    """

    def __init__(
        self, path: Path, settings: str, is_valid: Callable[[dict[str, Any]], bool] = lambda line: True
    ) -> None:
        self.path = path
        self.settings = settings
        self.is_valid = is_valid
        self.lines: dict[str, dict[str, Any]] = {}
        self.superseded: list[dict[str, Any]] = []
        self.to_replace = ""
        with contextlib.suppress(FileNotFoundError), path.open("rb") as file:
            for text in file:
                self._read(text)

    def _read(self, text: bytes) -> None:
        """Take one line; what a killed run or a disk left incomplete or damaged is skipped."""
        try:
            line = parse_json(text)
            is_ours = line.pop("settings") == self.settings
            key = line.pop("key", None)
        except (ValueError, KeyError, TypeError, AttributeError):
            return
        if is_ours and isinstance(key, str) and self.is_valid(line):
            if key in self.lines:
                self.superseded.append(self.lines[key])
            self.lines[key] = line
        elif is_ours and key is None:
            self.to_replace = str(line.get("replace", ""))

    def add(self, lines: Mapping[str, Mapping[str, Any]]) -> None:
        """Add lines, by key."""
        self.lines.update({key: dict(line) for key, line in lines.items()})
        self._append(self._encoded(lines))

    def replace_output(self, version: str) -> None:
        """Record that a run of these settings was asked to replace an output, so that one that resumes it may."""
        self.to_replace = version
        self._append(encoded([self._line({"replace": version})]))

    def replace(self, lines: dict[str, dict[str, Any]]) -> None:
        """Rewrite the file with other lines, by key."""
        with atomic(self.path) as file:
            file.write(self._encoded(lines))
        self.lines = lines

    def _append(self, text: bytes) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        with self.path.open("ab+") as file:
            if file.seek(0, os.SEEK_END):
                file.seek(-1, os.SEEK_END)
                text = text if file.read(1) == b"\n" else b"\n" + text  # after an incomplete line
            file.write(text)

    def _encoded(self, lines: Mapping[str, Mapping[str, Any]]) -> bytes:
        return encoded(self._line({"key": key, **line}) for key, line in lines.items())

    def _line(self, line: Mapping[str, Any]) -> dict[str, Any]:
        return {**line, "settings": self.settings}


@contextlib.contextmanager
def scratch(folder: Path) -> Iterator[Path]:
    """Create a folder for the unfinished files of a run in that of the outputs, and remove those of killed runs.

    A run holds a lock while it lives, so concurrent runs on the same outputs, such as shards, keep theirs.
    """
    state = folder / STATE
    for lock in state.glob("*.lock"):
        _remove_if_dead(lock)
    mine = state / f"{uuid.uuid4().hex}.lock"
    lock_of_run = FileLock(mine)
    place = mine.with_suffix("")
    try:
        with contextlib.suppress(NotImplementedError, OSError):  # a file system without locks: nothing is removed
            _acquire(lock_of_run)
        place.mkdir(parents=True)
        yield place
    finally:
        shutil.rmtree(place, ignore_errors=True)
        with contextlib.suppress(OSError):  # some systems do not remove open files
            mine.unlink(missing_ok=True)
        lock_of_run.release()
        with contextlib.suppress(OSError):
            state.rmdir()


def _acquire(lock: FileLock) -> None:
    """Acquire a lock in a folder that other runs remove when they end, if it is empty then."""
    for attempt in itertools.count(1):
        try:
            Path(lock.lock_file).parent.mkdir(parents=True, exist_ok=True)
            lock.acquire()
            return
        except (FileNotFoundError, FileExistsError):  # it was removed while it was made, or looked at
            if attempt == MOST_ATTEMPTS:
                raise


def _remove_if_dead(path: Path) -> None:
    """Remove the folder of a run whose lock is free."""
    lock = FileLock(path, timeout=0)
    with contextlib.suppress(Timeout, NotImplementedError, OSError), lock:
        shutil.rmtree(path.with_suffix(""), ignore_errors=True)
        path.unlink(missing_ok=True)


@contextlib.contextmanager
def exclusive(folder: Path, table: Path) -> Iterator[None]:
    """Lock a table against concurrent runs, by a file in a folder; raise OptionError if another run has the lock."""
    lock = FileLock(folder / "lock", timeout=LOCK_SECONDS)
    try:
        with contextlib.suppress(NotImplementedError):
            _acquire(lock)
    except Timeout as error:
        raise OptionError(f"{table} is being written by another run; wait for it, or give each run a shard") from error
    try:
        yield
    finally:
        with contextlib.suppress(OSError):
            if [path.name for path in folder.iterdir()] == ["lock"]:  # there is nothing to keep
                (folder / "lock").unlink()
        lock.release()
        with contextlib.suppress(OSError):
            folder.rmdir()


LISTS = {"failures": {"file", "error", "reason"}, "warnings": {"file", "warning"}}
"""Keys that tell our lists from files of somebody else."""


class Failures:
    """The list of failures, rewritten by every run: a JSON object per line, ``file, start, end, error, reason``.

    The file exists only if something failed.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        if _is_list(path, "failures"):
            path.unlink()

    def add(self, failure: Mapping[str, Any]) -> None:
        """Append a failure."""
        _append(self.path, [failure])


class Warnings:
    """The list of warnings: a JSON object per line, ``file, start, end, warning``.

    Of sources that are not embedded again, the lines of earlier runs stay. The file exists only if there are any.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.lines: dict[tuple[Any, ...], list[dict[str, Any]]] = {}  # by part
        if _is_list(path, "warnings"):
            with contextlib.suppress(ValueError):  # a line that a killed run left incomplete
                for line in lines_of(path.read_bytes()):
                    self.lines.setdefault(part_of(line), []).append(line)

    def replace(self, part: Mapping[str, Any], warnings: Iterable[str]) -> None:
        """Replace the warnings about a part of a file, with the keys ``file, start, end``, and ``channel`` if any."""
        if self.lines.pop(part_of(part), None):
            with atomic(self.path) as file:
                file.write(encoded(chain.from_iterable(self.lines.values())))
            if not self.lines:
                self.path.unlink()
        lines = [{**part, "warning": warning} for warning in warnings]
        if lines:
            self.lines[part_of(part)] = lines
            _append(self.path, lines)


def part_of(line: Mapping[str, Any]) -> tuple[Any, ...]:
    """Return which part of which file a line of a list is about."""
    return tuple(line.get(name) for name in ("file", "start", "end", "channel"))


def encoded(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return the content of a list."""
    return b"".join(json.dumps(line).encode() + b"\n" for line in lines)


def lines_of(content: bytes) -> Iterator[dict[str, Any]]:
    """Read a list line by line; raise ValueError at one that is no JSON."""
    return map(parse_json, content.splitlines())


def _append(path: Path, lines: Iterable[Mapping[str, Any]]) -> None:
    """Append lines of JSON to a file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("ab") as file:
        file.write(encoded(lines))


def _is_list(path: Path, name: str) -> bool:
    """Return True if a file is one of `LISTS`, and not something else of that name."""
    try:
        with path.open("rb") as file:
            first = parse_json(file.readline())
    except (OSError, ValueError):
        return False
    return isinstance(first, dict) and first.keys() >= LISTS[name]
