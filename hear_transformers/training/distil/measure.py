"""Scores of embeddings on real audio, ESC-10 sounds and spoken digits, which no training ever uses, and on notes.

A linear classifier on standardised embeddings, leaving out one fold (ESC-10), one speaker (digits) or one timbre
(`pitches`).
"""

from __future__ import annotations

import csv
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import LeaveOneGroupOut, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from torch import Tensor

from ... import hear
from ...audio import reading
from ...embedding.embedder import Embedder
from ...embedding.pooling import POOLS
from ...networks.frontend import CPJKU_MEL
from . import pitches
from .students import Student

DIGIT_TAKES = 15  # takes 0 to 14 of every digit and speaker
INVERSE_REGULARISATION = 0.1
ITERATIONS = 1000


@dataclass(frozen=True, slots=True)
class Recordings:
    """Labelled recordings, in groups that are never on both sides of a split."""

    name: str
    waveforms: list[Tensor]
    labels: NDArray[np.str_]
    groups: NDArray[np.str_]


def _rows(folder: Path) -> list[dict[str, str]]:
    with (folder / "labels.csv").open(newline="") as file:
        return list(csv.DictReader(file))


def _load_recordings(name: str, folder: Path, rows: list[dict[str, str]], group: str, sample_rate: int) -> Recordings:
    waveforms = [reading.read(folder / "audio" / row["filename"], sample_rate) for row in rows]
    return Recordings(name, waveforms, np.array([row["label"] for row in rows]), np.array([row[group] for row in rows]))


def read_sounds(data: Path, sample_rate: int) -> Recordings:
    """Read the folder ``esc10`` in `data`, labels.csv and audio/."""
    folder = data / "esc10"
    return _load_recordings("ESC-10", folder, _rows(folder), "fold", sample_rate)


def read_digits(data: Path, sample_rate: int) -> Recordings:
    """Read the folder ``fsdd`` in `data`, labels.csv and audio/."""
    folder = data / "fsdd"
    rows = [row for row in _rows(folder) if int(Path(row["filename"]).stem.rpartition("_")[2]) < DIGIT_TAKES]
    return _load_recordings("digits", folder, rows, "speaker", sample_rate)


def make_notes(data: Path, sample_rate: int) -> Recordings:
    """Make the notes of `pitches`; no data are read."""
    clips, keys, timbres = zip(*pitches.notes(sample_rate), strict=True)
    return Recordings("pitch", [*map(torch.from_numpy, clips)], np.array(keys).astype(str), np.array(timbres))


TASKS: dict[str, Callable[[Path, int], Recordings]] = {
    "esc10": read_sounds,
    "digits": read_digits,
    "pitch": make_notes,
}
"""Folder of the data, sample rate -> recordings."""


def summarise_mels(waveforms: list[Tensor]) -> NDArray[np.float32]:
    """Compute mean and standard deviation over time of every mel band: -> (clips, 2 * n_mels)."""
    frontend = CPJKU_MEL.build()
    grids = [frontend(waveform[None]).transpose(1, 2).unsqueeze(2) for waveform in waveforms]  # (1, frames, 1, n_mels)
    return torch.cat([POOLS["meanstd"].function(grid) for grid in grids]).numpy()


def embed_scenes(model: Embedder, waveforms: list[Tensor]) -> NDArray[np.float32]:
    """Embed clips of any length, one by one: -> (clips, scene_embedding_size)."""
    return torch.cat([hear.get_scene_embeddings(waveform[None], model) for waveform in waveforms]).numpy()


def cross_validate(embeddings: NDArray[np.float32], task: Recordings) -> float:
    """Return the accuracy of a linear classifier, leaving one group out in turn."""
    classifier = make_pipeline(StandardScaler(), LogisticRegression(C=INVERSE_REGULARISATION, max_iter=ITERATIONS))
    splits = LeaveOneGroupOut()
    rows = embeddings.astype(np.float64)  # in 32 bits the solver misclassifies a clip or two differently
    correct = cross_val_score(classifier, rows, task.labels, groups=task.groups, cv=splits)
    sizes = [len(test) for _, test in splits.split(rows, task.labels, task.groups)]
    return float(np.average(correct, weights=sizes))


def measure(
    data: Path, student: Student, weights: str = "", tasks: Sequence[str] = tuple(TASKS)
) -> Iterator[tuple[str, dict[str, float]]]:
    """Score a network and its baselines, and yield the name and the accuracies by task of each.

    Parameters
    ----------
    data : folder of the recordings
    student : the network
    weights : file to score; empty for the weights of the package
    tasks : of `TASKS`
    """
    load = hear.Loader(student.family).load_model
    model = load(weights, student.name)
    embedders: dict[str, Callable[[list[Tensor]], NDArray[np.float32]]] = {
        "log-mel": summarise_mels,
        "untrained network": partial(embed_scenes, load(variant=student.name, pretrained=False)),
        "model": partial(embed_scenes, model),
    }
    recordings = [TASKS[task](data, model.sample_rate) for task in tasks]
    for name, embed in embedders.items():
        yield name, {task.name: cross_validate(embed(task.waveforms), task) for task in recordings}
