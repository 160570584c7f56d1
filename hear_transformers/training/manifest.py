"""Labelled clips: a CSV ``path,labels[,start,end]`` -> `Manifest`. Whatever is wrong with it is said at once."""

from __future__ import annotations

import csv
import functools
import itertools
import math
import os
from array import array
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from operator import itemgetter
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, TrainingError

COLUMNS = ("path", "labels", "start", "end")
N_NEEDED = 2  # of them

SEPARATOR = ";"
"""Between the labels in a cell; names of AudioSet's classes hold commas."""

N_SHOWN = 3
"""Bad rows of a kind that a message names."""

ROWS_AT_ONCE = 2**12
"""Rows that are Python objects at the same time."""

LIST_AFTER = 32
"""Files of one folder that are asked for one by one, before the folder is listed instead."""

NO_CLASS = -1


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """Labelled clips, in arrays: worker processes share them, and a million clips are no million objects.

    Attributes
    ----------
    source : the CSV
    paths : (clips,) bytes of each audio file, see `path`
    starts, ends : (clips,) of the part of the file that is meant, in s; NaN for its beginning, and its end
    rows : (clips,) number of the row in the CSV, the header being 1
    classes : names
    label_ends : (clips,) where a clip's labels end in `labels`; they begin where those of the clip before end
    labels : (labels,) numbers of classes, those of a clip all different
    """

    source: Path
    paths: NDArray[np.bytes_]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    rows: NDArray[np.int32]
    classes: tuple[str, ...]
    label_ends: NDArray[np.int64]
    labels: NDArray[np.int32]

    def __len__(self) -> int:
        """Count the clips."""
        return len(self.paths)

    def path(self, clip: int) -> Path:
        """Give the audio file of a clip."""
        return Path(os.fsdecode(self.paths[clip]))

    def span(self, clip: int) -> tuple[float, float]:
        """Give start and end of a clip in its file in s, 0 and infinity where none is named."""
        start, end = float(self.starts[clip]), float(self.ends[clip])
        return 0.0 if math.isnan(start) else start, math.inf if math.isnan(end) else end

    @property
    def n_labels(self) -> NDArray[np.int64]:
        """(clips,) labels of each clip."""
        return np.diff(self.label_ends, prepend=0)

    @property
    def is_multi_label(self) -> bool:
        """Whether there is a clip with several labels, or none."""
        return bool((self.n_labels != 1).any())

    def counts(self) -> NDArray[np.int64]:
        """Count the clips of each class."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Add up values of the classes, (classes,), over the labels of each clip: -> (clips,)."""
        clips = np.repeat(np.arange(len(self)), self.n_labels)
        return np.bincount(clips, values[self.labels], minlength=len(self)).astype(np.float64)  # int where none has any

    def labels_of(self, clip: int) -> NDArray[np.int32]:
        """Give the numbers of the classes of a clip."""
        return self.labels[self.label_ends[clip - 1] if clip else 0 : self.label_ends[clip]]

    def targets(self, clips: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Give 1 for each label of some clips and 0 elsewhere: (clips, classes)."""
        targets = np.zeros((len(clips), len(self.classes)), np.float32)
        for target, clip in zip(targets, clips, strict=True):
            target[self.labels_of(clip)] = 1.0
        return targets

    def spans(self) -> Iterator[tuple[bytes, float, float]]:
        """Give path, start and end of each clip in turn, 0 and infinity where none is named."""
        starts = np.where(np.isnan(self.starts), 0.0, self.starts)
        ends = np.where(np.isnan(self.ends), math.inf, self.ends)
        for first in range(0, len(self), ROWS_AT_ONCE):
            part = slice(first, first + ROWS_AT_ONCE)
            yield from zip(self.paths[part].tolist(), starts[part].tolist(), ends[part].tolist(), strict=True)


def read(path: str | os.PathLike[str], classes: Sequence[str] | None = None) -> Manifest:
    """Read a manifest and make sure that it can be trained on, without opening the audio.

    Parameters
    ----------
    path : a CSV in UTF-8, whose first row names its columns in any order: ``path``, relative to the folder of the CSV;
        ``labels``, separated by ``;``, none is allowed; and perhaps ``start`` and ``end`` of the clip in the file in s,
        empty for those of the file
    classes : names in the order of the targets; None for all labels that occur, sorted

    Raises
    ------
    TrainingError : the file cannot be read, has other columns, or no clips; or, with numbers of rows: a row has another
        number of cells, no path, a wrong time, a label that is no class; an audio file is missing; two rows are the
        same clip with different labels
    OptionError : `classes` is empty or names a class twice
    """
    return _read(Path(path), classes, _Folders())


def read_pair(
    train: str | os.PathLike[str], valid: str | os.PathLike[str], classes: Sequence[str] | None = None
) -> tuple[Manifest, Manifest]:
    """Read the manifests of training and validation, whose classes are the same.

    Parameters
    ----------
    train, valid : see `read`
    classes : names in the order of the targets; None for all labels in `train`, sorted

    Raises
    ------
    TrainingError : see `read`; or a class has no clip in `train`, there is only one to choose, a label in `valid` is
        not in `train`, or a clip of one overlaps one of the other
    OptionError : `classes` is empty or names a class twice
    """
    folders = _Folders()
    training = _read(Path(train), classes, folders)
    _refuse_idle_classes(training)
    validation = _read(Path(valid), training.classes, folders)
    _refuse_overlap(training, validation, folders)
    return training, validation


@dataclass(slots=True)
class _Faults:
    """What is wrong with the rows of a CSV: of each kind how many, and the first few."""

    source: Path
    counts: Counter[str] = field(default_factory=Counter)
    first: dict[str, list[str]] = field(default_factory=dict)

    def add(self, kind: str, row: int, what: str = "") -> None:
        """Note a bad row: `kind` says what is wrong and what to do, `what` shows it."""
        self.counts[kind] += 1
        shown = self.first.setdefault(kind, [])
        if len(shown) < N_SHOWN:
            shown.append(f"row {row} ({what})" if what else f"row {row}")

    def refuse(self) -> None:
        """Raise TrainingError if anything was noted."""
        if self.counts:
            raise TrainingError("\n".join(self._line(kind, n) for kind, n in self.counts.items()))

    def _line(self, kind: str, n: int) -> str:
        more = f" and {n - N_SHOWN} more" if n > N_SHOWN else ""
        return f"{self.source}: {n} {'row' if n == 1 else 'rows'} {kind}: {', '.join(self.first[kind])}{more}"


def _read(source: Path, classes: Sequence[str] | None, folders: _Folders) -> Manifest:
    """Read one manifest, see `read`."""
    faults = _Faults(source)
    columns = _Columns(faults)
    try:
        # Not strict, a quote that is never closed would swallow the rest of the rows.
        with source.open(encoding="utf-8-sig", newline="") as file:
            columns.read(csv.reader(file, skipinitialspace=True, strict=True))
    except UnicodeDecodeError as error:
        raise TrainingError(f"{source}: not text in UTF-8 ({error.reason}); save it as CSV in UTF-8") from error
    except csv.Error as error:
        raise TrainingError(f"{source}: not a CSV ({error}); is each quote closed?") from error
    except OSError as error:
        raise TrainingError(f"{source}: cannot be read ({error.strerror})") from error
    faults.refuse()
    manifest = columns.manifest(_class_names(source, classes, columns.names))
    _note_missing(manifest, folders, faults)
    _note_contradictions(manifest, faults)
    faults.refuse()
    return manifest


class _Names(dict[str, int]):
    """Numbers labels in the order in which they are first asked for."""

    def __missing__(self, label: str) -> int:
        number = self[label] = len(self)
        return number


class _Columns:
    """The rows of a CSV, collected in arrays."""

    def __init__(self, faults: _Faults) -> None:
        self.faults = faults
        self.folder = os.path.dirname(faults.source)
        self.paths: list[NDArray[np.bytes_]] = []
        self.starts, self.ends = array("d"), array("d")
        self.rows = array("i")
        self.names = _Names()
        self.labels = array("i")
        self.n_labels = array("i")

    def read(self, reader: Iterator[list[str]]) -> None:
        """Collect the rows.

        Raises
        ------
        TrainingError : there is no header, or not of these columns; there are no rows
        """
        header = [name.strip() for name in next(reader, [])]
        if not {*COLUMNS[:N_NEEDED]} <= {*header} <= {*COLUMNS} or len({*header}) < len(header):
            found = f"found {','.join(header)[:200]!r}" if header else "the file is empty"
            raise TrainingError(
                f"{self.faults.source}: the first row must name the columns path and labels, may name start and end, "
                f"and no other, separated by commas; {found}"
            )
        # A column that is not there is read from an empty cell behind the others.
        pick = itemgetter(*(header.index(name) if name in header else len(header) for name in COLUMNS))
        rows = enumerate(reader, start=2)
        while part := list(itertools.islice(rows, ROWS_AT_ONCE)):
            paths = (self._take(row, cells, len(header), pick) for row, cells in part)
            self.paths.append(np.array([path for path in paths if path is not None], np.bytes_))
        if not self.rows and not self.faults.counts:
            raise TrainingError(f"{self.faults.source}: no rows below the header; each names an audio file, its labels")

    def _take(self, row: int, cells: list[str], n_cells: int, pick: Callable[[list[str]], list[str]]) -> bytes | None:
        """Take one row: gives its path, or None if it is empty or wrong."""
        if len(cells) != n_cells:
            if cells:
                kind = "with more or fewer cells than the header (quote what holds a comma)"
                self.faults.add(kind, row, str(len(cells)))
            return None
        path, labels, start, end = pick([*cells, ""])
        if not path.strip():
            self.faults.add("without a path", row)
            return None
        try:
            start_seconds, end_seconds = _time(start), _time(end)
        except ValueError:
            self.faults.add(
                "with a start or end that is not a number of seconds, 0 or more", row, f"{start!r}, {end!r}"
            )
            return None
        if end_seconds <= start_seconds or end_seconds == 0.0:
            self.faults.add("with an end that is not after the start", row, f"{start or 0} to {end}")
            return None
        self.rows.append(row)
        self.starts.append(start_seconds)
        self.ends.append(end_seconds)
        numbers = {self.names[label] for part in labels.split(SEPARATOR) if (label := part.strip())}
        self.labels.extend(numbers)
        self.n_labels.append(len(numbers))
        return os.fsencode(os.path.join(self.folder, path))

    def manifest(self, classes: tuple[str, ...]) -> Manifest:
        """Make the manifest; labels that are no class are noted."""
        places = {name: number for number, name in enumerate(classes)}
        numbers = np.array([places.get(name, NO_CLASS) for name in self.names], np.int32)
        labels = numbers[np.frombuffer(self.labels, np.int32)] if self.labels else np.zeros(0, np.int32)
        rows = np.frombuffer(self.rows, np.int32)
        ends = np.cumsum(np.frombuffer(self.n_labels, np.int32), dtype=np.int64)
        names = list(self.names)
        for label in np.flatnonzero(labels == NO_CLASS):
            row = rows[np.searchsorted(ends, label, side="right")]
            kind = f"with a label that is none of the {len(classes)} classes (those given, or of the training manifest)"
            self.faults.add(kind, int(row), repr(names[self.labels[label]]))
        starts, stops = np.frombuffer(self.starts), np.frombuffer(self.ends)
        return Manifest(self.faults.source, np.concatenate(self.paths), starts, stops, rows, classes, ends, labels)


def _time(cell: str) -> float:
    """Read a time in s, NaN if the cell is empty.

    Raises
    ------
    ValueError : it is not a number, is negative or infinite
    """
    if not cell:
        return math.nan
    time = float(cell)
    if not 0.0 <= time < math.inf:
        raise ValueError
    return time


def _class_names(source: Path, given: Sequence[str] | None, found: dict[str, int]) -> tuple[str, ...]:
    """Give the names of the classes: those given, or those found.

    Raises
    ------
    TrainingError : no labels were found
    OptionError : those given are none, or not all different
    """
    if given is None:
        if not found:
            raise TrainingError(f"{source}: no row has a label; the column labels names them, separated by ;")
        return tuple(sorted(found))
    if not given:
        raise OptionError("the list of classes is empty; leave it out for those of the training manifest")
    if twice := [name for name, n in Counter(given).items() if n > 1]:
        raise OptionError(f"the list of classes names {twice[0]!r} twice; each class has one line")
    return tuple(given)


class _Folders:
    """Looks up files; folders with many are listed once, in place of a question to the file system for each file."""

    def __init__(self) -> None:
        self.folders: dict[bytes, _Folder] = {}

    def _of(self, path: bytes) -> tuple[_Folder, bytes]:
        head, name = os.path.split(path)
        folder = self.folders.get(head)
        if folder is None:
            folder = self.folders[head] = _Folder(head)
        return folder, name

    def has_file(self, path: bytes) -> bool:
        """Tell whether a path is a file."""
        folder, name = self._of(path)
        folder.n_asked += 1
        if folder.n_asked == LIST_AFTER:
            folder.list()
        # Names may differ from those listed and mean the same file, as where case does not matter.
        return name in folder.files or os.path.isfile(path)

    def place(self, path: bytes) -> bytes:
        """Tell where a file lies, whatever links lead to it."""
        folder, name = self._of(path)
        is_link = name in folder.links if name in folder.files else os.path.islink(path)
        return os.path.realpath(path) if is_link else os.path.join(folder.place, name)


class _Folder:
    """What is known of a folder."""

    def __init__(self, path: bytes) -> None:
        self.path = path or os.fsencode(os.curdir)
        self.n_asked = 0
        self.files: set[bytes] = set()
        self.links: set[bytes] = set()

    @functools.cached_property
    def place(self) -> bytes:
        """Where it lies, whatever links lead to it."""
        return os.path.realpath(self.path)

    def list(self) -> None:
        """List its files; one that may not be listed stays as it is."""
        try:
            with os.scandir(self.path) as entries:
                for entry in entries:
                    if entry.is_file():
                        self.files.add(entry.name)
                        if entry.is_symlink():
                            self.links.add(entry.name)
        except OSError:
            return


def _note_missing(manifest: Manifest, folders: _Folders, faults: _Faults) -> None:
    """Note clips whose audio is not there."""
    kind = "with an audio file that is missing (paths are relative to the folder of the CSV)"
    for clip, (path, _, _) in enumerate(manifest.spans()):
        if not folders.has_file(path):
            faults.add(kind, int(manifest.rows[clip]), os.fsdecode(path))


def _note_contradictions(manifest: Manifest, faults: _Faults) -> None:
    """Note clips that occur again with other labels; to repeat a clip as it is, so that it counts more, is allowed."""
    # Neighbours in the order of their hashes, so that no million keys are held.
    hashes = np.fromiter(map(hash, manifest.spans()), np.int64, len(manifest))
    order = np.argsort(hashes, kind="stable")
    is_repeated = hashes[order[1:]] == hashes[order[:-1]]
    for clip, other in zip(order[1:][is_repeated], order[:-1][is_repeated], strict=True):
        is_same = manifest.paths[clip] == manifest.paths[other] and all(
            np.array_equal(times[clip], times[other], equal_nan=True) for times in (manifest.starts, manifest.ends)
        )
        if is_same and {*manifest.labels_of(clip)} != {*manifest.labels_of(other)}:
            kind = "with the clip of another row and other labels (all labels of a clip belong into one cell: a;b)"
            faults.add(kind, int(manifest.rows[clip]), f"as row {manifest.rows[other]}")


def _refuse_idle_classes(training: Manifest) -> None:
    """Raise TrainingError if there is a class without clips, or nothing to choose from."""
    idle = [name for name, count in zip(training.classes, training.counts(), strict=True) if not count]
    if idle:
        shown = ", ".join(map(repr, idle[:N_SHOWN])) + (" ..." if len(idle) > N_SHOWN else "")
        raise TrainingError(
            f"{training.source}: {len(idle)} of {len(training.classes)} classes have no clip ({shown}); "
            "add clips, or leave these classes out of the list"
        )
    if len(training.classes) == 1 and not training.is_multi_label:
        raise TrainingError(
            f"{training.source}: every clip has the one label {training.classes[0]!r}, so there is nothing to learn; "
            "add clips of other classes, or without a label"
        )


def _refuse_overlap(training: Manifest, validation: Manifest, folders: _Folders) -> None:
    """Raise TrainingError if audio is in both."""
    clips: dict[bytes, list[tuple[int, float, float]]] = {}
    for clip, (path, start, end) in enumerate(validation.spans()):
        clips.setdefault(folders.place(path), []).append((clip, start, end))
    faults = _Faults(training.source)
    kind = f"with audio that is in {validation.source} too (validate on what is not trained on)"
    for number, (path, start, end) in enumerate(training.spans()):
        for clip, other_start, other_end in clips.get(folders.place(path), ()):
            if max(start, other_start) < min(end, other_end):
                what = f"{os.fsdecode(path)}, row {validation.rows[clip]} there"
                faults.add(kind, int(training.rows[number]), what)
                break
    faults.refuse()
