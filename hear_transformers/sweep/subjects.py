"""What settings are tried on: labelled clips, and how embeddings of them are scored."""

from __future__ import annotations

import copy
import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from ..comparison import measures
from ..errors import OptionError
from ..harness.tasks import METADATA
from ..probes import evaluation, event_evaluation
from ..probes.data import Clips, Labelled, read_clips, taken_rows
from ..probes.event_data import Annotated, Frames, is_of_events, read_annotated
from ..probes.metrics import Score
from ..probes.tasks import make_task, of_few
from ..training.manifest import Layout

Floats = NDArray[np.float32]

Scores = Mapping[str, tuple[float, float, float]]
"""Value, low and high of each metric; the one that settings are chosen by first."""

CLUSTERS = "clusters"
"""In place of a probe: how well classes are clusters, see `comparison.measures`; settings are chosen by `BY`."""

BY = "nmi"


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Where labelled audio is.

    Attributes
    ----------
    name : in the tables
    source : folder or table, see `probes.data.read_clips`
    layout : of a table
    more : "fold", "group": the column of a table that holds it
    are_events : labels are those of parts of files; of a HEAR task it says so itself
    """

    name: str
    source: Path
    layout: Layout = field(default_factory=Layout)
    more: Mapping[str, str] = field(default_factory=dict)
    are_events: bool = False

    @property
    def is_hear(self) -> bool:
        """Whether it is a folder of a HEAR task, with audio for each sample rate."""
        return (self.source / METADATA).is_file()

    def read(self, sample_rate: int, n_folds: int | None, seed: int) -> Subject:
        """Read the labels, and of a HEAR task where its audio of a sample rate is, and split the clips.

        Parameters
        ----------
        sample_rate : in Hz
        n_folds, seed : see `probes.tasks.make_task`, which raises errors, as does `probes.data.read_clips`
        """
        if self.are_events or is_of_events(self.source):
            return Annotations(read_annotated(self.source, self.layout, self.more, sample_rate), n_folds, seed)
        return Scenes(read_clips(self.source, self.layout, self.more, sample_rate), n_folds, seed)


class Scenes:
    """Clips with labels, each with one embedding.

    Attributes
    ----------
    clips : path, start and end in s of each
    task : how they are split
    """

    along_time: ClassVar[bool] = False

    def __init__(self, clips: Labelled, n_folds: int | None, seed: int) -> None:
        self.labelled, self.n_folds, self.seed = clips, n_folds, seed
        self.clips: Clips = list(zip(clips.paths, clips.spans, strict=True))
        how: dict[str, Any] = {"folds": clips.folds, "groups": clips.groups, "n_folds": n_folds, "seed": seed}
        self.task = make_task([str(path) for path in clips.paths], clips.classes, clips.targets, **how)

    def taken(self, rows: Sequence[int]) -> Scenes:
        """Return some of the clips."""
        return Scenes(taken_rows(self.labelled, rows), self.n_folds, self.seed)

    def of_few(self, n: int) -> Scenes:
        """Return the same with few clips of each class to train on, see `tasks.of_few`."""
        few = copy.copy(self)
        few.task = of_few(self.task, n, self.seed)
        return few

    def check(self, probe: str) -> None:
        """Raise OptionError if a probe does not go with the labels."""
        if probe == CLUSTERS and self.task.multi_label:
            raise OptionError(f"{self.labelled.source}: probe={probe} needs one label for each clip; choose logistic")

    def score(self, embeddings: Sequence[Floats], times_ms: Sequence[Any], probe: str) -> Scores:
        """Score a probe.

        Parameters
        ----------
        embeddings : of each clip, (1, size)
        times_ms : of each, nothing
        probe : a key of `probes.fitting.PROBES`, or `CLUSTERS`
        """
        rows = np.concatenate(embeddings)
        if probe != CLUSTERS:
            return told(evaluation.evaluate(rows, self.task, probe, seed=self.seed).scores)
        evaluation.check(rows, self.task)
        vectors = rows.astype(np.float64)
        found = measures.measure(vectors, self.task.targets.argmax(1), seed=self.seed)
        return {name: (each["value"], each["low"], each["high"]) for name, each in sorted(found.items(), key=_by)}

    def digest(self) -> str:
        """Return a hash of labels and splits."""
        return _digest(self.task.targets, self.task.groups, *_numbers(self.task.splits), self.task.multi_label)


class Annotations:
    """Files with events, embedded along time; attributes and methods are those of `Scenes`."""

    along_time: ClassVar[bool] = True

    def __init__(self, files: Annotated, n_folds: int | None, seed: int) -> None:
        self.files, self.n_folds, self.seed = files, n_folds, seed
        self.clips: Clips = [(path, (0.0, math.inf)) for path in files.paths]
        self.task = event_evaluation.make_task(files, n_folds=n_folds, seed=seed)

    def taken(self, rows: Sequence[int]) -> Annotations:
        """Return some of the files."""
        return Annotations(self.files.taken(rows), self.n_folds, self.seed)

    def of_few(self, n: int) -> Annotations:
        """Raise OptionError: of files with many events there is no number of each."""
        raise OptionError(f"{self.files.source}: clips per class={n} is of clips, and these are events; leave it out")

    def check(self, probe: str) -> None:
        """Raise OptionError if a probe does not go with events."""
        if probe == CLUSTERS:
            raise OptionError(f"{self.files.source}: probe={probe} is of clips, and these are events; choose logistic")

    def score(self, embeddings: Sequence[Floats], times_ms: Sequence[Any], probe: str) -> Scores:
        """Score a probe: embeddings (times, size) and times (times,) of each file."""
        frames = Frames(np.arange(len(embeddings)), embeddings, times_ms, {})
        return told(event_evaluation.evaluate(frames, self.task, probe, seed=self.seed).scores)

    def digest(self) -> str:
        """Return a hash of events and splits."""
        files = self.task.files
        return _digest([[tuple(event) for event in each] for each in self.task.events], *_numbers(files.splits))


Subject = Scenes | Annotations


def told(scores: Mapping[str, Score]) -> Scores:
    """Return scores as the tables have them."""
    return {name: (score.value, score.low, score.high) for name, score in scores.items()}


def _by(measure: tuple[str, Any]) -> bool:
    return measure[0] != BY


def _numbers(splits: Sequence[Any]) -> list[NDArray[np.int64]]:
    return [rows for split in splits for rows in (split.train, split.valid, split.test)]


def _digest(*parts: Any) -> str:
    """Return a hash of arrays, and of what is written alike whenever it is equal."""
    digest = hashlib.sha256()
    for part in parts:
        if isinstance(part, np.ndarray):
            digest.update(f"{part.dtype.str}{part.shape}".encode())
            digest.update(np.ascontiguousarray(part).tobytes())
        else:
            digest.update(repr(part).encode())
    return digest.hexdigest()


def score_key(subject: Subject, probe: str, embeddings: Sequence[Floats]) -> str:
    """Return a hash of all that a score depends on."""
    return _digest(subject.digest(), subject.seed, probe, *embeddings)
