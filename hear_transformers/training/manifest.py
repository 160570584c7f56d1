"""Labelled clips -> `Manifest`, with every check that needs no audio.

A source of clips is a table with the columns ``path``, ``labels`` and optionally ``start`` and ``end``, see
`bulk.rows`, or a folder whose sub-folders are named after the classes.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import os
from array import array
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bulk.rows import Table, parse_seconds
from ..bulk.sources import find_sources
from ..errors import OptionError, TrainingError

SEPARATOR = ";"
"""Between the labels in a cell; names of AudioSet's classes hold commas."""

N_SHOWN = 3
"""Bad lines of a kind that a message names."""

N_VALUES = 20
"""Values of a column that a message names."""

NO_CLASS = -1


@dataclass(frozen=True, slots=True, kw_only=True)
class Layout:
    """How tables are to be read.

    Attributes
    ----------
    columns : "path", "labels", "start", "end" -> the column that holds it, see `bulk.rows.Table`; empty if they have
        these names
    separator : between the labels in a cell
    """

    columns: Mapping[str, str] = field(default_factory=dict)
    separator: str = SEPARATOR

    def __post_init__(self) -> None:
        if not self.separator:
            raise OptionError("the separator of labels is empty; give the text between two labels in a cell, such as ;")


@dataclass(frozen=True, slots=True, eq=False)
class Manifest:
    """Labelled clips, in arrays, which worker processes share: AudioSet has two million.

    Attributes
    ----------
    source : the table or folder
    paths : (clips,) bytes of each audio file, see `path`
    starts, ends : (clips,) of the part of the file, in s; 0 and infinity for the whole file
    lines : (clips,) number of the line in the table, the header being 1, or of the file in the folder
    classes : names
    label_ends : (clips,) where a clip's labels end in `labels`; they begin where those of the clip before end
    labels : (labels,) class numbers, those of a clip all different
    part : of the source that these clips are, in words; empty for all of it
    """

    source: Path
    paths: NDArray[np.bytes_]
    starts: NDArray[np.float64]
    ends: NDArray[np.float64]
    lines: NDArray[np.int32]
    classes: tuple[str, ...]
    label_ends: NDArray[np.int64]
    labels: NDArray[np.int32]
    part: str = ""

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.paths)

    def path(self, clip: int) -> Path:
        """Return the audio file of a clip."""
        return Path(os.fsdecode(self.paths[clip]))

    def span(self, clip: int) -> tuple[float, float]:
        """Return start and end of a clip in its file in s, 0 and infinity for the whole file."""
        return float(self.starts[clip]), float(self.ends[clip])

    @property
    def n_labels(self) -> NDArray[np.int64]:
        """(clips,) labels of each clip."""
        return np.diff(self.label_ends, prepend=0)

    @property
    def is_multi_label(self) -> bool:
        """Whether there is a clip with several labels, or none."""
        return bool((self.n_labels != 1).any())

    def counts(self) -> NDArray[np.int64]:
        """Return the number of clips of each class, (classes,)."""
        return np.bincount(self.labels, minlength=len(self.classes))

    def sums(self, values: NDArray[np.float64]) -> NDArray[np.float64]:
        """Sum values of the classes, (classes,), over the labels of each clip: -> (clips,)."""
        clips = np.repeat(np.arange(len(self)), self.n_labels)
        return np.bincount(clips, values[self.labels], minlength=len(self)).astype(np.float64)  # int where none has any

    def labels_of(self, clip: int) -> NDArray[np.int32]:
        """Return the class numbers of a clip."""
        return self.labels[self.label_ends[clip - 1] if clip else 0 : self.label_ends[clip]]

    def targets(self, clips: Sequence[int] | NDArray[np.int64]) -> NDArray[np.float32]:
        """Return targets of some clips, 1 for each label and 0 elsewhere: (clips, classes)."""
        targets = np.zeros((len(clips), len(self.classes)), np.float32)
        for target, clip in zip(targets, clips, strict=True):
            target[self.labels_of(clip)] = 1.0
        return targets

    def taken(self, is_taken: NDArray[np.bool_], part: str) -> Manifest:
        """Return some of the clips, (clips,) True for each, with the same classes."""
        clips = np.flatnonzero(is_taken)
        labels = [self.labels_of(clip) for clip in clips.tolist()]
        return replace(
            self,
            **{name: getattr(self, name)[clips] for name in ("paths", "starts", "ends", "lines")},
            label_ends=np.cumsum([len(each) for each in labels], dtype=np.int64),
            labels=np.concatenate([np.zeros(0, np.int32), *labels]),
            part=part,
        )

    def digest(self) -> str:
        """Return a hash of the clips, wherever the folder of the table lies."""
        folder = os.fsencode(self.source if self.source.is_dir() else self.source.parent)
        names = (b"\n" + b"\n".join(self.paths.tolist())).replace(b"\n" + folder + b"/", b"\n")
        parts = (self.starts, self.ends, self.label_ends, self.labels)
        digest = hashlib.sha256(json.dumps(self.classes).encode() + names)
        for part in parts:
            digest.update(part.tobytes())
        return digest.hexdigest()

    def spans(self) -> Iterator[tuple[bytes, float, float]]:
        """Return path, start and end of each clip in turn."""
        return zip(self.paths.tolist(), self.starts.tolist(), self.ends.tolist(), strict=True)


def read_labelled(
    path: str | os.PathLike[str], classes: Sequence[str] | None = None, layout: Layout | None = None
) -> Manifest:
    """Read a manifest and check it, without opening the audio.

    Parameters
    ----------
    path : a table whose columns hold, in any order, ``path``, relative to the folder of the table; ``labels``, may be
        empty; and optionally ``start`` and ``end`` of the clip in the file in s, empty for those of the file. Other
        columns are not read. Or a folder whose sub-folders are the labels of the audio in them
    classes : names in the order of the targets; None for all labels that occur, sorted
    layout : of the table

    Raises
    ------
    TrainingError : the source cannot be read, lacks a column, or has no clips; or, with line numbers: a row has a wrong
        number of cells, no path, a wrong time, a label that is no class; an audio file is missing; two rows are the
        same clip with different labels
    OptionError : `classes` is empty or names a class twice
    """
    return _read(Path(path), classes, layout or Layout(), _Folders())[0]


def read_column(path: str | os.PathLike[str], column: str, layout: Layout | None = None) -> list[str]:
    """Read the cells of one more column of a manifest, one for each clip; see `read_labelled`."""
    _, values = _read(Path(path), None, layout or Layout(), _Folders(), column)
    cells: list[str] = values.tolist()
    return cells


def read_pair(
    train: str | os.PathLike[str],
    valid: str | os.PathLike[str],
    classes: Sequence[str] | None = None,
    layout: Layout | None = None,
    *,
    seed: int = 0,
) -> tuple[Manifest, Manifest]:
    """Read the clips of training and validation, which have the same classes.

    Parameters
    ----------
    train : see `read_labelled`
    valid : the same; or a part of `train`: "0.1" for a tenth of its files, drawn by `seed`, of single labels the same
        fraction of each class; "fold=4" for the rows whose column ``fold`` is 4
    classes : names in the order of the targets; None for all labels in `train`, sorted
    layout : of the tables
    seed : of a random part

    Raises
    ------
    TrainingError : see `read_labelled`; or a class has no clip to train on, there is only one class, a label in `valid`
        is not in `train`, or a clip of one overlaps one of the other
    OptionError : `classes` is empty or names a class twice; there is no such part
    """
    folders, layout = _Folders(), layout or Layout()
    part = parse_part(valid)
    column, value = part if isinstance(part, tuple) else ("", "")
    training, values = _read(Path(train), classes, layout, folders, column)
    if part is None:
        _refuse_empty_classes(training)
        validation, _ = _read(Path(valid), training.classes, layout, folders)
    else:
        if isinstance(part, float):
            is_valid = _drawn(training, part, seed, folders)
            chosen, others = f"{part:g} of the files", "the other files"
        else:
            is_valid = values == value
            chosen, others = f"{column}={value}", f"{column}={_others(training.source, column, value, values)}"
        training, validation = training.taken(~is_valid, others), training.taken(is_valid, chosen)
        _refuse_empty_classes(training)
    _refuse_overlap(training, validation, folders)
    return training, validation


def _others(source: Path, column: str, value: str, values: NDArray[np.str_]) -> str:
    """List the other values of a column; raise OptionError if the one asked for is not among them."""
    found = np.unique(values).tolist()
    others = [each for each in found if each != value]
    shown = ", ".join(others[:N_VALUES]) + (", ..." if len(others) > N_VALUES else "")
    if value not in found:
        raise OptionError(f"{source}: the column {column} is never {value!r}; choose one of {shown}")
    return shown


def parse_part(valid: str | os.PathLike[str]) -> float | tuple[str, str] | None:
    """Return which part of the training set is for validation: a fraction, or (column, value); None for a file.

    Raises
    ------
    OptionError : a number is no fraction
    """
    text = os.fspath(valid)
    if os.path.exists(text):
        return None
    column, equals, value = text.partition("=")
    if equals:
        return column.strip(), value.strip()
    try:
        fraction = float(text)
    except ValueError:
        return None
    if not 0 < fraction < 1:
        raise OptionError(f"valid={text} is no fraction of the clips; choose one between 0 and 1, such as 0.1")
    return fraction


def _drawn(clips: Manifest, fraction: float, seed: int, folders: _Folders) -> NDArray[np.bool_]:
    """Draw a fraction of the files for validation, of single labels the same of each class: -> (clips,) True for those.

    All clips of a file go together, and each class keeps a file to train on.
    """
    clips_of: dict[bytes, list[int]] = {}
    for clip, path in enumerate(clips.paths.tolist()):
        clips_of.setdefault(folders.place(path), []).append(clip)
    classes_of = [{int(c) for clip in members for c in clips.labels_of(clip)} for members in clips_of.values()]
    n_files = Counter(label for labels in classes_of for label in labels)
    strata: dict[int, list[int]] = {}
    for file, labels in enumerate(classes_of):
        strata.setdefault(NO_CLASS if clips.is_multi_label else min(labels), []).append(file)
    is_valid = np.zeros(len(clips), bool)
    members, rng = list(clips_of.values()), np.random.default_rng(seed)
    n_seen = n_drawn = 0
    for _, files in sorted(strata.items()):
        n_seen += len(files)
        for file in rng.permutation(files).tolist():
            if n_drawn < round(fraction * n_seen) and all(n_files[label] > 1 for label in classes_of[file]):
                n_files.subtract(classes_of[file])
                is_valid[members[file]] = True
                n_drawn += 1
    if not n_drawn:
        raise TrainingError(
            f"{clips.source}: {fraction:g} of its {len(members)} files leaves none to validate on, as each class keeps "
            "one to train on; choose a larger fraction, or add files"
        )
    return is_valid


@dataclass(slots=True)
class _Faults:
    """Bad lines of a CSV by kind: how many, and the first few."""

    source: Path
    counts: Counter[str] = field(default_factory=Counter)
    shown: defaultdict[str, list[str]] = field(default_factory=lambda: defaultdict(list))

    def add(self, kind: str, line: int, what: str = "") -> None:
        """Add a bad line: `kind` says what is wrong and what to do, `what` shows it."""
        self.counts[kind] += 1
        if self.counts[kind] <= N_SHOWN:
            self.shown[kind].append(f"line {line} ({what})" if what else f"line {line}")

    def refuse(self) -> None:
        """Raise TrainingError if there are any."""
        messages = []
        for kind, n in self.counts.items():
            lines = ", ".join(self.shown[kind]) + (f" and {n - N_SHOWN} more" if n > N_SHOWN else "")
            messages.append(f"{self.source}: {n} {'row' if n == 1 else 'rows'} {kind}: {lines}")
        if messages:
            raise TrainingError("\n".join(messages))


class _Folders(dict[bytes, tuple[bytes, dict[bytes, bool]]]):
    """Folders by path, listed once: with millions of clips, to ask for each file is slow on a network.

    A folder is where it lies, links resolved, and its files by name, True for a link.
    """

    def __missing__(self, path: bytes) -> tuple[bytes, dict[bytes, bool]]:
        files = {}
        with contextlib.suppress(OSError), os.scandir(path or os.fsencode(os.curdir)) as entries:
            files = {entry.name: entry.is_symlink() for entry in entries if entry.is_file()}
        self[path] = os.path.realpath(path), files
        return self[path]

    def has_file(self, path: bytes) -> bool:
        """Return True if a path is a file."""
        folder, name = os.path.split(path)
        # A name that is not listed may be a file all the same: the folder cannot be listed, or case does not matter.
        return name in self[folder][1] or os.path.isfile(path)

    def place(self, path: bytes) -> bytes:
        """Return where a file lies, links resolved."""
        folder, name = os.path.split(path)
        place, files = self[folder]
        return os.path.join(place, name) if files.get(name) is False else os.path.realpath(path)


def _read(
    source: Path, given: Sequence[str] | None, layout: Layout, folders: _Folders, column: str = ""
) -> tuple[Manifest, NDArray[np.str_]]:
    """Read one manifest, see `read_labelled`, and the cells of one more column."""
    faults = _Faults(source)
    lines, starts, ends, label_ends, occurring = array("i"), array("d"), array("d"), array("q"), array("i")
    paths: list[bytes] = []
    values: list[str] = []
    names: dict[str, int] = {}  # labels, numbered in the order in which they occur
    for line, path, labels, start, end, value in _clips(source, layout, folders, faults, column):
        lines.append(line)
        paths.append(path)
        starts.append(start)
        ends.append(end)
        values.append(value)
        occurring.extend({names.setdefault(label, len(names)) for label in labels})
        label_ends.append(len(occurring))
    faults.refuse()
    if not lines:
        raise TrainingError(f"{source}: no rows below the header; each names an audio file, its labels")
    classes = _class_names(source, given, names)
    numbers = {name: number for number, name in enumerate(classes)}
    class_of_name = np.array([numbers.get(name, NO_CLASS) for name in names], np.int32)
    clips = (np.array(paths), np.array(starts), np.array(ends), np.array(lines))
    manifest = Manifest(source, *clips, classes, np.array(label_ends), class_of_name[np.array(occurring)])
    kind = f"with a label that is none of the {len(classes)} classes (those given, or of the training manifest)"
    by_number = list(names)
    for label in np.flatnonzero(manifest.labels == NO_CLASS):
        clip = np.searchsorted(manifest.label_ends, label, side="right")
        faults.add(kind, lines[clip], repr(by_number[occurring[label]]))
    _check_repetitions(manifest, faults)
    faults.refuse()
    return manifest, np.array(values)


Clip = tuple[int, bytes, list[str], float, float, str]
"""Line, path, labels, start, end, and the cell of one more column."""


def _clips(source: Path, layout: Layout, folders: _Folders, faults: _Faults, column: str) -> Iterator[Clip]:
    """Yield the clips of a table or of a folder; add a fault for each that is wrong."""
    if not source.is_dir():
        yield from _rows(source, layout, folders, faults, column)
        return
    if column or layout.columns:
        raise OptionError(f"{source}: a folder has no columns; its sub-folders are the labels")
    for number, each in enumerate(find_sources([os.fspath(source)]), start=1):
        if each.error:
            raise TrainingError(str(each.error))
        label, *below = each.name.parts
        if below:
            yield number, os.fsencode(each.path), [label], 0.0, math.inf, ""
        else:
            faults.add("that lie in no sub-folder (the sub-folders are the labels)", number, os.fspath(each.path))


def _rows(source: Path, layout: Layout, folders: _Folders, faults: _Faults, column: str) -> Iterator[Clip]:
    """Yield the clips of a table; add a fault for each row that is wrong."""

    def add_wrong_length(line: int, n_cells: int, _: int) -> None:
        faults.add("with more or fewer cells than the header (quote what holds the separator)", line, str(n_cells))

    required = ["path", "labels", *([column] if column else [])]
    table = Table(path=source, required=required, columns=layout.columns, error=TrainingError)
    for line, (name, labels, *more, start, end) in table.rows(add_wrong_length):
        if not isinstance(name, str) or not name.strip() or "\0" in name:
            faults.add("without a path", line)
            continue
        path = os.fsencode(os.path.join(os.path.dirname(source), name))
        try:
            first, last = parse_seconds(start, 0.0), parse_seconds(end, math.inf)
        except (TypeError, ValueError):
            kind = "with a start or end that is not a number of seconds, 0 or more"
            faults.add(kind, line, f"{start!r}, {end!r}")
            continue
        if last <= first:
            faults.add("with an end that is not after the start", line, f"{start or 0} to {end}")
        elif not folders.has_file(path):
            kind = (
                "with an audio file that is missing (paths are relative to the folder of the table; columns "
                "path=folder/{column}.wav adds what names lack)"
            )
            faults.add(kind, line, os.fsdecode(path))
        else:
            yield (
                line,
                path,
                _labels_in(labels, layout.separator),
                first,
                last,
                "".join(str(cell).strip() for cell in more),
            )


def _labels_in(cell: Any, separator: str) -> list[str]:
    """Return the labels of a cell: of text, or in Parquet also of a number, a list, or nothing: None or NaN."""
    parts = cell if isinstance(cell, list) else () if cell is None or cell != cell else str(cell).split(separator)
    return [label for part in parts if (label := str(part).strip())]


def _class_names(source: Path, given: Sequence[str] | None, found: Iterable[str]) -> tuple[str, ...]:
    """Return the names of the classes: those given, or those found, sorted; raise OptionError or TrainingError."""
    if given is None:
        if not found:
            raise TrainingError(f"{source}: no row has a label; the column labels names them, separated by ;")
        return tuple(sorted(found))
    if not given:
        raise OptionError("the list of classes is empty; leave it out for those of the training manifest")
    if twice := [name for name, n in Counter(given).items() if n > 1]:
        raise OptionError(f"the list of classes names {twice[0]!r} twice; each class has one line")
    return tuple(given)


def _check_repetitions(manifest: Manifest, faults: _Faults) -> None:
    """Add a fault for each clip that occurs again with other labels; with the same labels it counts more."""
    columns = (manifest.ends, manifest.starts, manifest.paths)
    order = np.lexsort(columns)  # repetitions are neighbours
    is_repeated = np.logical_and.reduce([column[order[1:]] == column[order[:-1]] for column in columns])
    kind = "with the clip of another row and other labels (all labels of a clip belong into one cell: a;b)"
    for clip, other in zip(order[1:][is_repeated], order[:-1][is_repeated], strict=True):
        if {*manifest.labels_of(clip)} != {*manifest.labels_of(other)}:
            faults.add(kind, int(manifest.lines[clip]), f"as line {manifest.lines[other]}")


def _refuse_empty_classes(training: Manifest) -> None:
    """Raise TrainingError if a class has no clips, or there is only one class to choose."""
    empty = [name for name, count in zip(training.classes, training.counts(), strict=True) if not count]
    if empty:
        shown = ", ".join(map(repr, empty[:N_SHOWN])) + (" ..." if len(empty) > N_SHOWN else "")
        raise TrainingError(
            f"{training.source}: {len(empty)} of {len(training.classes)} classes have no clip ({shown}); "
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
                what = f"{os.fsdecode(path)}, line {validation.lines[clip]} there"
                faults.add(kind, int(training.lines[number]), what)
                break
    faults.refuse()
