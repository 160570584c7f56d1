"""Embeddings along time and files with events -> scores of a probe, and the probe to keep.

As heareval does it: each frame is classified alone, for each class, and what its settings and the processing behind it
are chosen by is onset F1 at 200 ms of the validation files.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from ..errors import OptionError, TrainingError
from . import events, metrics, tasks
from .evaluation import fit_each, make_sample
from .event_data import Annotated, Floats, Frames, Times
from .events import COLLARS, Event, Events, Processing
from .fitting import Fitted, fit
from .metrics import Score
from .sample import Sample
from .tasks import Split, Task

if TYPE_CHECKING:
    from typing_extensions import Unpack

    from .evaluation import Options

ONSET_MS, SEGMENT = "onset_f1_{:.0f}ms", "segment_error_rate"
"""Names of the scores."""

LONGEST_OVERLAP_MS = 1e-4
"""What heareval adds to the end of an event, so that a frame there is in it (embeddings/task_embeddings.py:250)."""


@dataclass(frozen=True, slots=True, eq=False)
class EventTask:
    """Files with events and splits.

    Attributes
    ----------
    files : the task of which classes occur in which file
    events : of each file
    """

    files: Task
    events: tuple[tuple[Event, ...], ...]


@dataclass(frozen=True, slots=True, eq=False)
class EventResult:
    """What a probe makes of a task of events; attributes are those of `evaluation.Result`, and `found`.

    Attributes
    ----------
    probe : its name
    scores : by name; the first is what settings are chosen by, and of the last less is better
    found : number of a file that was tested -> its events
    settings : of the probe for each test, and "processing"
    """

    probe: str
    scores: Mapping[str, Score]
    found: Mapping[int, Sequence[Event]]
    settings: Mapping[str, Mapping[str, Any]]

    @property
    def main(self) -> str:
        """Name of the metric that settings are chosen by."""
        return next(iter(self.scores))


def make_task(files: Annotated, *, n_folds: int | None = None, seed: int = 0) -> EventTask:
    """Make a task of files with events; parameters and errors are those of `tasks.make_task`."""
    if not files.classes:
        raise TrainingError(f"{files.source}: no file has an event; the column labels names what is heard")
    numbers = {name: i for i, name in enumerate(files.classes)}
    targets = np.zeros((len(files.paths), len(files.classes)), np.float32)
    for row, each in zip(targets, files.events, strict=True):
        row[[numbers[event.label] for event in each]] = 1.0
    names = [str(path) for path in files.paths]
    how: dict[str, Any] = {"folds": files.folds, "groups": files.groups, "n_folds": n_folds, "seed": seed}
    return EventTask(tasks.make_task(names, files.classes, targets, multi_label=True, **how), files.events)


def evaluate(frames: Frames, task: EventTask, probe: str = "logistic", **options: Unpack[Options]) -> EventResult:
    """Score a probe on a task of events: fit it for each split, and test it.

    Parameters
    ----------
    frames : embeddings of the files of the task along time, in their order
    task : from `make_task`
    probe : a key of `fitting.PROBES`
    options : see `evaluation.Options`

    Raises
    ------
    OptionError : the probe is unknown, or there are not embeddings for each file
    TrainingError : an embedding is not finite, or no frame lies in any event of a class
    """
    check(frames, task)
    found: dict[int, Sequence[Event]] = {}
    chosen: dict[str, Mapping[str, Any]] = {}

    def sample(split: Split, fixed: Mapping[str, Any]) -> Sample:
        return _sample(frames, task, split, {**options, "settings": fixed})

    for split, each, fitted in fit_each(task.files.splits, probe, sample, options.get("settings")):
        how = _processing_of(each, fitted)
        chosen[split.name] = {**fitted.settings, "processing": how._asdict()}
        for row in split.test.tolist():
            likely = fitted.probabilities(frames.embeddings[row])
            found[row] = events.events_in(likely, frames.times_ms[row], task.files.classes, how)
    return EventResult(probe, _scores(task, found), dict(sorted(found.items())), chosen)


def fit_whole(
    frames: Frames, task: EventTask, probe: str = "logistic", **options: Unpack[Options]
) -> tuple[Fitted, Processing]:
    """Fit the probe to keep, and tune its processing, as `evaluation.fit_whole`; parameters are those of `evaluate`."""
    check(frames, task)
    sample = _sample(frames, task, tasks.whole(task.files), options)
    fitted = fit(probe, sample)
    return fitted, _processing_of(sample, fitted)


def check(frames: Frames, task: EventTask) -> None:
    """Raise an error that names the first file without embeddings that are finite."""
    names = task.files.names
    if len(frames.embeddings) != len(names):
        raise OptionError(f"embeddings of {len(frames.embeddings)} files for {len(names)}; give those of each file")
    for name, each in zip(names, frames.embeddings, strict=True):
        if not np.isfinite(each).all():
            raise TrainingError(f"{name}: an embedding is not finite (NaN or infinite); embed the file again")


def targets_of(found: Sequence[Event], times_ms: Times, classes: Sequence[str]) -> Floats:
    """Return which classes sound at which time, as heareval: (times, classes), 1 from start to end of an event."""
    targets = np.zeros((len(times_ms), len(classes)), np.float32)
    for event in found:
        is_in = (times_ms >= 1000.0 * event.start) & (times_ms < 1000.0 * event.end + LONGEST_OVERLAP_MS)
        targets[is_in, classes.index(event.label)] = 1.0
    return targets


class Tuner:
    """Scores probabilities of validation frames by the processing that is best for them, and keeps it.

    Parameters
    ----------
    names : of the validation files
    times_ms : of each
    truth : events of each
    classes : names

    Attributes
    ----------
    how : the processing of the best score so far, of equals the first; None before there is one
    """

    def __init__(self, names: Sequence[str], times_ms: Sequence[Times], truth: Events, classes: Sequence[str]) -> None:
        self.names, self.times_ms, self.truth, self.classes = names, times_ms, truth, classes
        self.best = -1.0
        self.how: Processing | None = None

    def __call__(self, probabilities: Floats) -> float:
        """Score (frames, classes) of all validation files."""
        ends = np.cumsum([len(each) for each in self.times_ms])[:-1]
        pairs = zip(np.split(probabilities, ends), self.times_ms, strict=True)
        value, how = events.tuned(dict(zip(self.names, pairs, strict=True)), self.truth, self.classes)
        if value > self.best:
            self.best, self.how = value, how
        return value


def _sample(frames: Frames, task: EventTask, split: Split, options: Options) -> Sample:
    names, classes = task.files.names, task.files.classes
    parts: list[Floats] = []
    for rows in (split.train, split.valid):
        numbers = rows.tolist()
        parts.append(np.concatenate([frames.embeddings[i] for i in numbers]))
        parts.append(np.concatenate([targets_of(task.events[i], frames.times_ms[i], classes) for i in numbers]))
    for name, n in zip(classes, parts[1].sum(0).tolist(), strict=True):
        if n == 0 or n == len(parts[1]):
            which = "no frame" if n == 0 else "every frame"
            raise TrainingError(
                f"{which} that is trained on to test {split.name!r} lies in an event of {name!r}; add files, leave the "
                "class out, or choose a shorter --hop-ms"
            )
    valid = split.valid.tolist()
    truth = {names[i]: task.events[i] for i in valid}
    tuner = Tuner([names[i] for i in valid], [frames.times_ms[i] for i in valid], truth, classes)
    return make_sample(parts, options, multi_label=True, score=tuner)


def _processing_of(sample: Sample, fitted: Fitted) -> Processing:
    """Return the processing of the settings that were chosen; where these were given, tune it now."""
    tuner = sample.score
    assert isinstance(tuner, Tuner)
    if tuner.how is None:
        tuner(fitted.probabilities(sample.valid_x))
    assert tuner.how is not None
    return tuner.how


# Scores


def _scores(task: EventTask, found: Mapping[int, Sequence[Event]]) -> dict[str, Score]:
    """Compute all scores, with intervals over files or groups."""
    names = task.files.names
    truth = {names[row]: task.events[row] for row in found}
    named = {names[row]: each for row, each in found.items()}
    place = {row: i for i, row in enumerate(found)}
    tests = [np.array([place[row] for row in split.test.tolist()], np.int64) for split in task.files.splits]
    groups = task.files.groups[list(found)]
    scores = {}
    for collar in COLLARS:
        counts = events.onset_counts(truth, named, collar)
        scores[ONSET_MS.format(1000 * collar)] = _score(counts, _f1, groups, tests, (0.0, 1.0))
    scores[SEGMENT] = _score(events.segment_counts(truth, named), _rate, groups, tests, (0.0, np.inf))
    return scores


def _score(
    counts: NDArray[np.float64],
    ratio: Any,
    groups: tasks.Rows,
    tests: Sequence[tasks.Rows],
    bounds: tuple[float, float],
) -> Score:
    """Return the mean over tests of a ratio of sums of counts, (files, kinds), and its bootstrap interval."""
    once = [float(ratio(counts[rows].sum(0)[None])[0]) for rows in tests]
    draws = metrics.drawn_means(once, groups, tests, lambda rows, weights: ratio(weights @ counts[rows]))
    return metrics.summarise(once, draws, bounds)


def _f1(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute F1 from (draws, 3), see `events.onset_counts`; 0 where there is no event, true or found."""
    return 2.0 * counts[:, 0] / np.maximum(counts[:, 1] + counts[:, 2], 1.0)


def _rate(counts: NDArray[np.float64]) -> NDArray[np.float64]:
    """Compute the error rate from (draws, 2), see `events.segment_counts`; of no true event, that of one."""
    return counts[:, 0] / np.maximum(counts[:, 1], 1.0)


def event_rows(task: EventTask, result: EventResult) -> list[Sequence[Any]]:
    """Return a line for each class: its events, those found, F1 at each collar; empty where that is not defined."""
    names, classes = task.files.names, task.files.classes
    lines: list[Sequence[Any]] = [["class", "events", "found", *(ONSET_MS.format(1000 * each) for each in COLLARS)]]
    for name in classes:
        truth = {names[row]: [e for e in task.events[row] if e.label == name] for row in result.found}
        found = {names[row]: [e for e in each if e.label == name] for row, each in result.found.items()}
        counts = [events.onset_counts(truth, found, collar).sum(0) for collar in COLLARS]
        values = [f"{float(_f1(each[None])[0]):.4f}" if each[1] else "" for each in counts]
        lines.append([name, int(counts[0][1]), int(counts[0][2]), *values])
    return lines
