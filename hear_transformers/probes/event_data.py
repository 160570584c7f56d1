"""Files in which parts are labelled -> their events, folds and groups, and embeddings along time."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bulk import extract
from ..bulk.raven import is_raven
from ..bulk.rows import open_text
from ..embedding.pipeline import Model
from ..errors import OptionError, TrainingError
from ..harness.tasks import METADATA, read_task
from ..training.manifest import Layout, Manifest, read_labelled
from .data import FOLD, GROUP, Clips, extracted, read_more
from .events import Event

Floats = NDArray[np.float32]
Times = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Annotated:
    """Files with events.

    Attributes
    ----------
    source : where they are from
    paths : of the audio files
    classes : names
    events : of each file; empty where nothing is heard
    folds, groups : of each file; None if there are none
    """

    source: Path
    paths: tuple[Path, ...]
    classes: tuple[str, ...]
    events: tuple[tuple[Event, ...], ...]
    folds: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None

    def taken(self, numbers: Sequence[int]) -> Annotated:
        """Return some of the files, with the same classes."""

        def pick(values: Sequence[Any] | None) -> Any:
            return None if values is None else tuple(values[i] for i in numbers)

        picked = {name: pick(getattr(self, name)) for name in ("paths", "events", "folds", "groups")}
        return replace(self, **picked)


@dataclass(frozen=True, slots=True, eq=False)
class Frames:
    """Embeddings of some files along time.

    Attributes
    ----------
    kept : numbers of the files that have some
    embeddings : of each of these, (times, size)
    times_ms : of each of these, (times,) from the start of the file
    provenance : what made them
    failed : messages, one for each file that could not be embedded
    """

    kept: NDArray[np.int64]
    embeddings: Sequence[Floats]
    times_ms: Sequence[Times]
    provenance: Mapping[str, Any]
    failed: Sequence[str] = field(default_factory=tuple)


def is_of_events(data: Path) -> bool:
    """Return True for the folder of a HEAR task of events, which needs no option to say so."""
    return (data / METADATA).is_file() and read_task(data).kind == "event"


def read_annotated(
    data: Path, layout: Layout | None = None, more: Mapping[str, str] | None = None, sample_rate: int | None = None
) -> Annotated:
    """Read files and their events, without opening the audio.

    Parameters
    ----------
    data : a table with a row for each event, its file, labels, start and end in s, where a row without label is of a
        file in which nothing is heard; a selection table of Raven, or a folder of such; a folder of a HEAR task
    layout : of a table
    more : "fold", "group": the column of a table that holds it
    sample_rate : of the audio of a HEAR task, in Hz

    Raises
    ------
    TrainingError, OptionError : see `training.manifest.read_labelled` and `harness.tasks.read_task`; an event without
        an end, a file in two folds or groups, a folder without tables
    """
    if (data / METADATA).is_file():
        return _of_task(data, sample_rate)
    layout, more = layout or Layout(), more or {}
    tables = _tables_in(data) if data.is_dir() else [data]
    events: dict[Path, list[Event]] = {}
    kinds: dict[str, dict[Path, str]] = {name: {} for name in more}
    for table in tables:
        clips = read_labelled(table, layout=layout)
        for i, each in enumerate(_events_of(clips)):
            events.setdefault(Path(os.path.normpath(clips.path(i))), []).extend(each)
        for name, values in read_more(clips, layout, more).items():
            for i, value in enumerate(values):
                path = Path(os.path.normpath(clips.path(i)))
                if kinds[name].setdefault(path, value) != value:
                    raise TrainingError(
                        f"{table}: {path} has {name} {kinds[name][path]!r} and {value!r}; the events of a file stay "
                        f"together, so give all its rows one {name}"
                    )
    classes = tuple(sorted({event.label for each in events.values() for event in each}))
    of_files = {name: tuple(values[path] for path in events) for name, values in kinds.items()}
    return Annotated(
        data, tuple(events), classes, tuple(map(_ordered, events.values())), of_files.get(FOLD), of_files.get(GROUP)
    )


def _ordered(events: Sequence[Event]) -> tuple[Event, ...]:
    return tuple(sorted(events, key=lambda event: (event.start, event.label)))


def _events_of(clips: Manifest) -> list[list[Event]]:
    """Return the events of each row: one for each of its labels."""
    rows = []
    for i in range(len(clips)):
        start, end = clips.span(i)
        labels = [clips.classes[label] for label in clips.labels_of(i)]
        if labels and end == math.inf:
            raise TrainingError(
                f"{clips.source}: line {clips.lines[i]} has the label {labels[0]!r} and no end; an event needs start "
                "and end in s (without --events, labels are those of whole files)"
            )
        rows.append([Event(label, start, end) for label in labels])
    return rows


def _tables_in(folder: Path) -> list[Path]:
    """Find the selection tables of Raven in a folder and its sub-folders; raise TrainingError if there are none."""
    found = []
    for path in sorted(folder.rglob("*.txt")):
        with open_text(path, "surrogateescape") as file:
            if is_raven([name.strip() for name in next(file, "").rstrip("\r\n").split("\t")]):
                found.append(path)
    if not found:
        raise TrainingError(
            f"{folder}: no selection tables of Raven (.txt) in it, nor {METADATA} of a HEAR task; of events give one "
            "of these, or a table with the columns path, labels, start and end"
        )
    return found


def _of_task(folder: Path, sample_rate: int | None) -> Annotated:
    task = read_task(folder)
    if task.kind != "event":
        raise OptionError(f"{folder}: a task of scenes, whose labels are those of whole files; leave out --events")
    if sample_rate is None:
        raise OptionError(f"{folder}: of a HEAR task audio of the model's sample rate is read")
    files = [(split, name, found) for split in task.splits for name, found in task.labels[split].items()]
    try:
        events = tuple(
            _ordered([Event(str(e["label"]), float(e["start"]) / 1000.0, float(e["end"]) / 1000.0) for e in found])
            for _, _, found in files
        )
    except (TypeError, KeyError, ValueError) as error:
        raise OptionError(f"{folder}: an event is not of the form label, start, end; the task is damaged") from error
    audio = {split: task.audio(split, sample_rate) for split in task.splits}
    paths = tuple(audio[split] / name for split, name, _ in files)
    classes = tuple(sorted({event.label for each in events for event in each}))
    return Annotated(folder, paths, classes, events, tuple(split for split, _, _ in files))


def embed_frames(
    source: Path,
    clips: Clips,
    model: Model,
    folder: Path,
    *,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda n: None,
    on_outcome: Callable[[extract.Outcome], None] = lambda outcome: None,
) -> Frames:
    """Embed clips along time into a folder, where a later run finds them; one that fails is left out.

    Parameters
    ----------
    source : where they are from, for errors
    clips : path, start and end of each in s
    model, folder, workers, on_start, on_outcome : see `extract.extract`

    Raises
    ------
    TrainingError : none could be embedded
    """
    how: dict[str, Any] = {"workers": workers, "on_start": on_start, "on_outcome": on_outcome, "timestamps": True}
    found, provenance, failed = extracted(source, clips, model, folder, **how)
    embeddings, times = [], []
    for _, path in found:
        with np.load(path) as archive:
            embeddings.append(archive["embedding"].astype(np.float32, copy=False))
            times.append(archive["timestamps"])
    return Frames(np.array([i for i, _ in found]), embeddings, times, provenance, failed)
