"""What a probe made of a task, in a folder: scores, a row for each class and each clip, and what is taken for what."""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic
from ..training.results import CONFUSION, PICTURE, PREDICTIONS, SCORES, class_rows, draw_confusion, write_table
from .evaluation import Result
from .event_evaluation import EventResult, EventTask, event_rows
from .metrics import LEVEL
from .tasks import Task

SUMMARY = "scores.json"


def summary(task: Task, results: Sequence[Result] | Sequence[EventResult]) -> dict[str, Any]:
    """Return the scores of several probes, ready for JSON; what is not defined is None.

    Parameters
    ----------
    task : of clips, or `EventTask.files`
    results : of each probe
    """
    return {
        "clips": len(task.names),
        "classes": len(task.classes),
        "multi_label": task.multi_label,
        "split": task.split_in_words,
        "level": LEVEL,
        "probes": {result.probe: {**scores_of(result), "settings": result.settings} for result in results},
    }


def scores_of(result: Result | EventResult) -> dict[str, Any]:
    """Return metric -> value, low, high and standard deviation over tests."""
    return {
        name: {key: _number(getattr(score, key)) for key in ("value", "low", "high", "std")}
        for name, score in result.scores.items()
    }


def _number(value: float) -> float | None:
    return round(value, 6) if math.isfinite(value) else None


def write(folder: Path, task: Task, result: Result, others: Sequence[Result]) -> None:
    """Write the report of a result, and the scores of other probes beside it.

    scores.json      all scores, with intervals, of every probe
    scores.csv       a row for each class
    predictions.csv  a row for each clip that was tested
    confusion.csv, confusion.png    which classes are taken for which; with one label a clip only
    """
    with atomic(folder / SUMMARY) as file:
        file.write(json.dumps(summary(task, [result, *others]), indent=2).encode())
    targets, found = task.targets[result.rows], result.probabilities
    write_table(folder / SCORES, class_rows(task.classes, targets, found, task.multi_label))
    write_table(folder / PREDICTIONS, _predictions(task, result))
    if not task.multi_label:
        counts = np.zeros((len(task.classes),) * 2, np.int64)
        np.add.at(counts, (targets.argmax(1), found.argmax(1)), 1)
        lines = ([name, *row] for name, row in zip(task.classes, counts.tolist(), strict=True))
        write_table(folder / CONFUSION, [["true \\ predicted", *task.classes], *lines])
        draw_confusion(folder / PICTURE, task.classes, counts, "tested")


def write_events(folder: Path, task: EventTask, result: EventResult, others: Sequence[EventResult]) -> None:
    """Write the report of a result of events, and the scores of other probes beside it.

    scores.json      all scores, with intervals, of every probe
    scores.csv       a row for each class
    predictions.csv  a row for each event that was found in a file that was tested; times in s
    """
    with atomic(folder / SUMMARY) as file:
        file.write(json.dumps(summary(task.files, [result, *others]), indent=2).encode())
    write_table(folder / SCORES, event_rows(task, result))
    fold_of = _folds(task.files)
    lines = (
        [task.files.names[row], fold_of[row], f"{event.start:.6f}", f"{event.end:.6f}", event.label]
        for row, found in result.found.items()
        for event in found
    )
    write_table(folder / PREDICTIONS, [["path", "fold", "start", "end", "predicted"], *lines])


def _folds(task: Task) -> dict[int, str]:
    """Return the fold in which each clip was tested."""
    return {int(row): split.name for split in task.splits for row in split.test}


def _predictions(task: Task, result: Result) -> Iterable[Sequence[Any]]:
    fold_of = _folds(task)
    yield ["path", "fold", "labels", "predicted", *task.classes]
    for row, each in zip(result.rows.tolist(), result.probabilities, strict=True):
        labels = ";".join(task.classes[i] for i in np.flatnonzero(task.targets[row]))
        numbers = [f"{value:.4g}" for value in each.tolist()]
        yield [task.names[row], fold_of[row], labels, task.classes[int(each.argmax())], *numbers]
