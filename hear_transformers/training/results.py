"""What a trained network says of the validation set: every clip, every class, and what is taken for what."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic
from .curves import save
from .manifest import Manifest

PREDICTIONS, SCORES, CONFUSION, PICTURE = "predictions.csv", "scores.csv", "confusion.csv", "confusion.png"

FEW_CLASSES = 60
"""Most classes whose names are legible in a picture of `LARGEST_INCHES`."""

LARGEST_INCHES = 14.0

Targets = NDArray[np.float32]
Scores = NDArray[np.float32]


def write_results(
    folder: Path, clips: Manifest, rows: NDArray[np.int64], targets: Targets, logits: Scores, *, multi_label: bool
) -> None:
    """Write tables, and with one label a clip a picture, into the folder of a run.

    predictions.csv  a row for each clip: path, start, end, labels, the likeliest class, the probability of each class
    scores.csv       a row for each class: clips; average precision, with one label a clip precision, recall and F1 too
    confusion.csv    a row for each true class, a column for each predicted one: clips; one label a clip only
    confusion.png    the same as a picture, each row as fractions of its clips

    Parameters
    ----------
    folder : of the run
    clips : the validation set
    rows : (n,) numbers of the clips that could be read
    targets, logits : (n, classes) of these
    multi_label : True if a clip may have any number of labels
    """
    write_table(folder / PREDICTIONS, _predictions(clips, rows, logits, multi_label))
    predicted = logits.argmax(1)
    write_table(folder / SCORES, class_rows(clips.classes, targets, logits, multi_label))
    if not multi_label:
        counts = np.zeros((len(clips.classes),) * 2, np.int64)
        np.add.at(counts, (targets.argmax(1), predicted), 1)
        lines = ([name, *row] for name, row in zip(clips.classes, counts.tolist(), strict=True))
        write_table(folder / CONFUSION, [["true \\ predicted", *clips.classes], *lines])
        draw_confusion(folder / PICTURE, clips.classes, counts)


def write_table(path: Path, lines: Iterable[Sequence[Any]]) -> None:
    """Write a CSV file, atomically; names of files need not be text."""
    with atomic(path) as file, io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text:
        csv.writer(text, lineterminator="\n").writerows(lines)


def probabilities(logits: Scores, multi_label: bool) -> Scores:
    """Compute the probability of each class, (clips, classes): by sigmoid, or softmax for one label a clip."""
    if multi_label:
        return 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _predictions(
    clips: Manifest, rows: NDArray[np.int64], logits: Scores, multi_label: bool
) -> Iterable[Sequence[Any]]:
    yield ["path", "start", "end", "labels", "predicted", *clips.classes]
    likely = probabilities(logits, multi_label)
    for clip, each in zip(rows.tolist(), likely, strict=True):
        start, end = clips.span(clip)
        labels = ";".join(clips.classes[label] for label in clips.labels_of(clip))
        span = [f"{start:g}" if start else "", "" if end == np.inf else f"{end:g}"]
        numbers = [f"{value:.4g}" for value in each.tolist()]
        yield [clips.path(clip), *span, labels, clips.classes[int(each.argmax())], *numbers]


def class_rows(classes: Sequence[str], targets: Targets, logits: Scores, multi_label: bool) -> Iterable[Sequence[Any]]:
    """Yield a line for each class; a score that is not defined, for want of clips, is empty."""
    from sklearn.metrics import average_precision_score, precision_recall_fscore_support  # of the extra `train`

    numbers = range(len(classes))
    counts = targets.sum(0).astype(int)
    columns = {
        "average_precision": [
            average_precision_score(targets[:, i], logits[:, i]) if counts[i] else np.nan for i in numbers
        ]
    }
    if not multi_label:
        true, predicted = targets.argmax(1), logits.argmax(1)
        parts = precision_recall_fscore_support(true, predicted, labels=list(numbers), zero_division=np.nan)
        columns |= dict(zip(("precision", "recall", "f1"), parts, strict=False))
    yield ["class", "clips", *columns]
    for i in numbers:
        values = (column[i] for column in columns.values())
        yield [classes[i], counts[i], *("" if np.isnan(value) else f"{value:.4f}" for value in values)]


def draw_confusion(path: Path, classes: Sequence[str], counts: NDArray[np.int64], clips: str = "validation") -> None:
    """Draw which classes are taken for which, each row as fractions of its clips."""
    from matplotlib.figure import Figure

    n = len(classes)
    inches = float(np.clip(0.28 * n + 3.0, 4.5, LARGEST_INCHES))
    figure = Figure(figsize=(inches + 0.8, inches), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(counts / np.maximum(counts.sum(1, keepdims=True), 1), cmap="Blues", vmin=0, vmax=1)
    figure.colorbar(image, ax=axes, label="fraction of the clips of the true class", shrink=0.8)
    correct = np.trace(counts)
    axes.set(xlabel="predicted", ylabel="true", title=f"{correct} of {counts.sum()} {clips} clips are right")
    if n <= FEW_CLASSES:
        axes.set_xticks(range(n), classes, rotation=90, fontsize="small", parse_math=False)
        axes.set_yticks(range(n), classes, fontsize="small", parse_math=False)
        for true, predicted in zip(*np.nonzero(counts), strict=True):
            is_dark = counts[true, predicted] > 0.5 * counts[true].sum()
            axes.text(
                predicted,
                true,
                counts[true, predicted],
                ha="center",
                va="center",
                fontsize="x-small",
                color="white" if is_dark else "black",
            )
    save(figure, path)
