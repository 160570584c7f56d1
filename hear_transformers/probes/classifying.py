"""A saved probe, or the classes of a network, and audio files -> tables of what is found; a killed run goes on.

What was found of a file is a line of a journal as soon as it is known, and the tables are made of the journal at the
end. A later run with the same probe keeps the lines of audio that is unchanged, so tables of more files grow.
"""

from __future__ import annotations

import contextlib
import math
import os
import shutil
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from ..bulk import journal
from ..bulk.extract import Outcome
from ..bulk.journal import Failures, Journal
from ..bulk.outputs import contents_of
from ..bulk.selections import ENDS, Selection, write_selections
from ..bulk.sources import Source, name_outputs
from ..embedding.embedder import Embedder
from ..embedding.pipeline import Clip, Described, Embedded, Model, Remote, embed, models_of
from ..embedding.replicas import Description
from ..errors import OptionError
from ..files import place_of, sha256_of
from ..labels import check_classes
from ..training.results import write_table
from .events import Processing, runs_in
from .fitting import Fitted
from .sample import Floats
from .saved import ARRAYS, UNIMPORTANT, WORDS, Saved, check_fit, read
from .token_maps import TokenMaps

BLOCK_ROWS = 8192
"""Frames that are classified at once: an embedding of a long file is on disk."""

CSV, OUTPUT = "csv", "labels"
"""Format of one table for all files, and its name without suffix."""

LOGITS = "logits"
"""Kind of probe of the classes that a network has itself: its embeddings are their logits."""

PICTURE = ".labels.png"

Line = Mapping[str, Any]
"""What was found of a file, ready for JSON: "path", "start", "end", and "cells" of a clip or its "events", with the
class, the time in s and the probability of the "likeliest" frame."""


@dataclass(frozen=True, slots=True, eq=False)
class Timeline:
    """What is found of a source along time.

    Attributes
    ----------
    source : the file, or part of one
    likely : (times, classes) probabilities
    starts, ends : (times,) in s from the beginning of the file, where the time of each row begins and ends
    """

    source: Source
    likely: Floats
    starts: np.ndarray
    ends: np.ndarray


class Pictures(Protocol):
    """What draws timelines."""

    def lacks(self, source: Source) -> bool:
        """Return True if the picture of a source is not there, so that it is classified again."""

    def draw(self, timeline: Timeline) -> None:
        """Draw the picture of a source."""


def own_classes(model: Described, threshold: float) -> Saved:
    """Return the probe of the classes that a network was trained on, along time; raise OptionError if it has none."""
    classes = check_classes(model, timestamps=True)
    assert isinstance(model, (Embedder, Description))
    scaling = {"mean": np.zeros(1, np.float32), "scale": np.ones(1, np.float32)}
    fitted = Fitted(LOGITS, model.multi_label, scaling, {})
    unmade = Saved(fitted, classes, {}, {}, {}, Processing(0.0, 0.0, threshold))
    return replace(unmade, provenance=settings_of(unmade, model))


@dataclass(frozen=True, slots=True)
class Place:
    """Where tables go.

    Attributes
    ----------
    folder : of the tables
    file : name of the one table, None for a table of each audio file
    format : a key of `selections.FORMATS`; of clips csv
    """

    folder: Path
    file: str | None
    format: str

    @property
    def state(self) -> Path:
        """Folder of the journal."""
        return self.folder / journal.STATE / (self.file or f"{OUTPUT}.{self.format}")

    def tables(self, files: Mapping[str, Path]) -> dict[str, str]:
        """Return the name of the table of each audio file; those of one table have the same.

        Parameters
        ----------
        files : absolute path of an audio file -> its name below the folder that was searched
        """
        if self.file is not None:
            return dict.fromkeys(files, self.file)
        sources = [Source(place_of(file), name) for file, name in files.items()]
        return dict(zip(files, map(str, name_outputs(sources, ENDS[self.format])), strict=True))

    def pictures(self, sources: Sequence[Source]) -> dict[tuple[str, str], Path]:
        """Return the path of the picture of each source, by its file and segment."""
        once = [*{(each.file, each.segment): each for each in sources if each.error is None}.values()]
        names = name_outputs(once, PICTURE)
        return {(each.file, each.segment): self.folder / name for each, name in zip(once, names, strict=True)}


def classify(
    folder: str | os.PathLike[str] | None,
    probe: Saved,
    model: Model | Remote,
    sources: Sequence[Source],
    place: Place,
    *,
    workers: int = 0,
    keep_damaged: bool = False,
    overwrite: bool = False,
    pictures: Pictures | None = None,
    on_start: Callable[[int], None] = lambda n: None,
    on_outcome: Callable[[Outcome, Line | None], None] = lambda outcome, line: None,
) -> list[Outcome]:
    """Classify files and write tables; a file that fails is reported, and the others are written.

    Parameters
    ----------
    folder : of the probe; None for `own_classes`
    probe : that was read from there
    model : what embeds
    sources : files
    place : of the tables; those of an earlier run are replaced, with what it found of other files
    workers, keep_damaged : see `pipeline.embed`
    overwrite : classify all anew, and replace tables that somebody changed or made
    pictures : draws what is found along time
    on_start : called before the first is classified, with the number of outcomes to come
    on_outcome : called as soon as a source is finished, with what was found of it

    Raises
    ------
    OptionError : the model is another than that of the probe; a table exists that no such run wrote
    """
    (described,) = models_of(model)
    made_with = settings_of(probe, described)
    check_fit(probe, made_with, str(folder))
    settings = {name: value for name, value in made_with.items() if name not in UNIMPORTANT}
    files = [] if folder is None else [sha256_of(Path(folder) / name) for name in (WORDS, ARRAYS)]
    settings |= {"probe": files, "keep_damaged": keep_damaged, "processing": probe.processing}
    outcomes = []
    with journal.explained(place.folder), journal.exclusive(place.state, place.folder / (place.file or "")):
        found = Journal(place.state / "journal.jsonl", journal.digest(settings), lambda line: "sha256" in line)
        tables = _Tables(place, probe, found, sources)
        if overwrite:
            found.replace({})
        tables.check(overwrite=overwrite)
        failures = Failures(place.folder / "failures.jsonl")
        once = {_key(source): source for source in sources}
        on_start(len(once))
        reading = {"workers": workers, "keep_damaged": keep_damaged}
        for outcome, line in _outcomes(probe, model, [*once.values()], found, pictures, reading):
            outcomes.append(outcome)
            if outcome.status == "failed":
                failures.add(outcome.as_failure())
            on_outcome(outcome, line)
        tables.write()
    return outcomes


def settings_of(probe: Saved, model: Described) -> dict[str, Any]:
    """Return the provenance of the embeddings of a model that a probe takes, as `extract` stores it."""
    (content,) = contents_of(model, timestamps=probe.along_time, apart=False, dtype="float32")
    return content.settings


def _key(source: Source) -> str:
    return f"{source.file}|{source.segment}"


def _outcomes(
    probe: Saved,
    model: Model | Remote,
    sources: Sequence[Source],
    found: Journal,
    pictures: Pictures | None,
    reading: Mapping[str, Any],
) -> Iterator[tuple[Outcome, Line | None]]:
    """Classify sources, each once; draw what was found, add it to the journal, and yield it."""
    for source in sources:
        if source.error is not None:
            yield _failed(source, source.error), None
    readable = [source for source in sources if source.error is None]
    known = ["" if pictures and pictures.lacks(each) else _known(found, each) for each in readable]
    clips = [
        Clip(each.path, each.start, each.end, channel=each.channel, skip_sha256=sha256)
        for each, sha256 in zip(readable, known, strict=True)
    ]
    how: dict[str, Any] = {"timestamps": probe.along_time, "hashes": True, **reading}
    with contextlib.closing(embed(model, clips, **how)) as embedding:
        for embedded, source in zip(embedding, readable, strict=True):
            told: dict[str, Any] = {"start": source.start, "end": source.end, "warnings": embedded.warnings}
            if embedded.error is not None:
                yield replace(_failed(source, embedded.error), warnings=embedded.warnings), None
            elif embedded.embedding is None:
                yield Outcome(str(source.path), "skipped", **told), found.lines[_key(source)]
            else:
                line = {**_found_in(probe, embedded, source, pictures), "sha256": embedded.sha256}
                found.add({_key(source): line})
                yield Outcome(str(source.path), "written", seconds=embedded.seconds, **told), line


def _known(found: Journal, source: Source) -> str:
    """Return the content of a source of which it is known what is in it, empty if of none."""
    return str(found.lines.get(_key(source), {}).get("sha256", ""))


def _failed(source: Source, error: Exception) -> Outcome:
    path, reason = str(source.path), str(error)
    message = reason if path in reason else f"{path}: {reason}"
    return Outcome(path, "failed", message=message, start=source.start, end=source.end, error=type(error).__name__)


def _found_in(probe: Saved, embedded: Embedded, source: Source, pictures: Pictures | None) -> dict[str, Any]:
    """Return what a probe finds in a source, and draw it."""
    end = source.start + embedded.seconds if source.end == math.inf else source.end
    line: dict[str, Any] = {"path": str(source.path), "file": source.file, "name": str(source.name)}
    line |= {"start": source.start, "end": end}
    assert embedded.embedding is not None
    if probe.processing is None:
        freq = probe.fitted.settings.get("freq")
        one = embedded.embedding[None] if freq is None else TokenMaps([embedded.embedding], freq)
        (likely,) = probe.fitted.probabilities(one)
        return line | {"cells": cells_of(likely.tolist(), probe.classes, multi_label=probe.fitted.multi_label)}
    assert embedded.times_ms is not None
    likely = in_blocks(probe.fitted, embedded.embedding)
    times, cells = source.start + embedded.times_ms / 1000.0, cells_along_time(embedded, source.start)
    if pictures is not None:
        pictures.draw(Timeline(source, likely, *cells))
    # An event of a probe ends with the centre of its last frame, as heareval scores it; a tag with that frame itself.
    spans = cells if probe.fitted.kind == LOGITS else (times, times)
    events = []
    for i, first, last in runs_in(likely, embedded.times_ms, probe.processing):
        score = round(float(likely[first : last + 1, i].mean()), 6)
        events.append([probe.classes[i], float(spans[0][first]), float(spans[1][last]), score])
    row, column = divmod(int(likely.argmax()), likely.shape[1])
    likeliest = [probe.classes[column], float(times[row]), float(likely[row, column])]
    return line | {"events": events, "likeliest": likeliest}


def cells_along_time(embedded: Embedded, start: float) -> tuple[np.ndarray, np.ndarray]:
    """Return where the time of each embedding of a clip begins and ends, two of (times,) in s of the file.

    It is what the embedding sees; where windows overlap, their times meet halfway between the centres.

    Parameters
    ----------
    embedded : along time
    start : of the clip in the file, in s
    """
    assert embedded.times_ms is not None
    assert embedded.spans_ms is not None
    starts, ends = (np.nan_to_num(each, nan=0.0) for each in embedded.spans_ms)
    if (starts[1:] < ends[:-1]).any() or (ends <= starts).any():
        middles = (embedded.times_ms[1:] + embedded.times_ms[:-1]) / 2
        starts = np.concatenate([[0.0], middles])
        ends = np.concatenate([middles, [max(embedded.seconds * 1000.0, embedded.times_ms[-1])]])
    return start + starts / 1000.0, start + ends / 1000.0


def in_blocks(fitted: Fitted, embeddings: Floats) -> Floats:
    """Compute the probabilities of the frames of a file, (times, size) that may be on disk: -> (times, classes)."""
    firsts = range(0, len(embeddings), BLOCK_ROWS)
    return np.concatenate([fitted.probabilities(embeddings[i : i + BLOCK_ROWS]) for i in firsts])


def cells_of(likely: Sequence[float], classes: Sequence[str], *, multi_label: bool) -> list[str]:
    """Return cells of a clip: what is predicted, the likeliest class or all likelier than not, and probabilities."""
    best = [i for i, value in enumerate(likely) if value > 0.5] if multi_label else [likely.index(max(likely))]
    return [";".join(classes[i] for i in best), *(f"{value:.4g}" for value in likely)]


class _Tables:
    """The tables of a journal."""

    def __init__(self, place: Place, probe: Saved, found: Journal, sources: Iterable[Source]) -> None:
        self.place = place
        self.probe = probe
        self.found = found
        self.sources = [source for source in sources if source.error is None]

    def _ours(self) -> set[tuple[str, str]]:
        """Return name and sha256 of the tables that runs like this wrote."""
        lines = (*self.found.lines.values(), *self.found.superseded)
        return {(line["table"], line["sha256"]) for line in lines if "table" in line}

    def _names(self) -> dict[str, str]:
        """Return the table of each audio file: of earlier runs, and of this one, whether it can be read or not."""
        earlier = {line["file"]: Path(line["name"]) for line in self.found.lines.values() if "file" in line}
        return self.place.tables(earlier | {source.file: Path(source.name) for source in self.sources})

    def check(self, *, overwrite: bool) -> None:
        """Raise OptionError if a table cannot hold what is to be found, or one exists that no run like this wrote."""
        names = self._names()
        if self.place.format == "audacity" and self.place.file is not None and len(names) > 1:
            raise OptionError(
                f"{self.place.file}: a label track of Audacity is of one file, and these are of {len(names)}; give a "
                "folder as --out, for a track of each"
            )
        ours = self._ours()
        for name in dict.fromkeys(names.values()) if not overwrite else ():
            path = self.place.folder / name
            if path.exists() and (name, sha256_of(path)) not in ours:
                raise OptionError(
                    f"{path} exists and is not as this probe wrote it, perhaps with labels of yours; give another "
                    "--out, or --overwrite to replace it"
                )

    def write(self) -> None:
        """Write all tables, each a complete one or none; remove those whose files have tables of other names now."""
        names = self._names()
        groups: dict[str, list[Line]] = {} if self.place.file is None else {self.place.file: []}
        for line in self._lines():
            groups.setdefault(names[line["file"]], []).append(line)
        scratch = self.place.state / "new"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            for name, group in groups.items():
                self._write(scratch / name, group)
                # Known before it is there, so that a run that is killed here knows its own.
                self.found.add({f"table|{name}": {"table": name, "sha256": sha256_of(scratch / name)}})
                (self.place.folder / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(scratch / name, self.place.folder / name)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
        for name, sha256 in self._ours():
            path = self.place.folder / name
            if name not in groups and path.exists() and sha256_of(path) == sha256:
                path.unlink()

    def _lines(self) -> list[Line]:
        """Return what was found: of other files by earlier runs, then of the sources in their order."""
        lines = {key: line for key, line in self.found.lines.items() if "file" in line}
        own = {key: lines.pop(key) for key in map(_key, self.sources) if key in lines}
        return [*lines.values(), *own.values()]

    def _write(self, path: Path, lines: Sequence[Line]) -> None:
        if self.probe.processing is None:
            header = ["path", "start", "end", "predicted", *self.probe.classes]
            rows = ([line["path"], f"{line['start']:g}", f"{line['end']:.6g}", *line["cells"]] for line in lines)
            write_table(path, [header, *rows])
            return
        found = [Selection(line["path"], s, e, label, score) for line in lines for label, s, e, score in line["events"]]
        write_selections(path, found, self.place.format)


def read_probe(folder: str | os.PathLike[str]) -> Saved:
    """Read a probe that classifies audio; raise WeightsError or OptionError if there is none that can."""
    probe = read(folder)
    if not probe.provenance.get("family"):
        raise OptionError(f"{folder}: fitted on a table of embeddings that does not say which model made them")
    return probe
