"""The embedding stage of HEAR's heareval: the same files, resumable, all layers of a sweep in one pass.

The layout is that of heareval 2021.1.3 (embeddings/runner.py and embeddings/task_embeddings.py), so that its prediction
stage goes on from here:

    EMBEDDINGS/MODULE-OPTIONS/TASK/task_metadata.json, labelvocabulary.csv, SPLIT.json    copies of the task's
        SPLIT/FILE.embedding.npy, FILE.target-labels.json, FILE.timestamps.json (events)
        SPLIT.embeddings.npy               all rows, float32 without a header, files shuffled by Random(0)
        SPLIT.embedding-dimensions.json    its rows and columns
        SPLIT.target-labels.pkl            labels of each row
        SPLIT.filename-timestamps.json     file and time of each row (events)
        profile.embeddings.json, .done.embeddings
"""

from __future__ import annotations

import contextlib
import json
import pickle
import random
import re
import shutil
import time
import unicodedata
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import FAMILIES, catalogue
from ..audio.workers import default_workers
from ..embedding.embedder import Embedder
from ..embedding.external import ExternalModel
from ..embedding.pipeline import Clip, Embedded, Model, embed
from ..errors import HearTransformersError, OptionError
from ..files import atomic
from .tasks import METADATA, VOCABULARY, Task

DONE = ".done.embeddings"
SETTINGS = ".settings.json"
PROFILE = "profile.embeddings.json"

END_MS = 0.0001
"""An event is heard up to its end, included: heareval ends it so much later (get_labels_for_timestamps)."""


@dataclass(frozen=True, slots=True)
class Part:
    """One of the models that a pass stands for: a folder, and its numbers of an embedding.

    Attributes
    ----------
    name : of the folder, as heareval names it
    columns : positions in an embedding of a scene, None for all
    time_columns : positions in an embedding along time, None for all
    """

    name: str
    columns: tuple[int, ...] | None = None
    time_columns: tuple[int, ...] | None = None


def load(
    module: str,
    weights: str = "",
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    layers: str | None = None,
    batch_size: int | None = None,
) -> tuple[Model, list[Part]]:
    """Load a model, and say what its embeddings stand for.

    Parameters
    ----------
    module : that follows the HEAR API; ours may go by the name of the family
    weights : checkpoint; empty for its own
    device : "auto", or what PyTorch calls one
    options : keyword arguments for its `load_model`
    layers : several layers of one of ours, each as a model with that layer: "all", or a list "0,4,8"
    batch_size : windows that go through one of ours at once

    Raises
    ------
    OptionError : module, device or an option is unknown, or `layers` does not go with them
    """
    options = dict(options or {})
    family = catalogue.family_of_module(module)
    if family is None:
        if layers is not None or batch_size is not None:
            raise OptionError(f"layers and batch_size are for {', '.join(FAMILIES)}; the HEAR API of {module} has none")
        return ExternalModel(module, weights, catalogue.pick_device(device), options), [
            Part(folder_name(module, options))
        ]
    module = f"hear_transformers.{family}"
    if layers is None:
        return catalogue.load(module, weights, device, {**options, "batch_size": batch_size}), [
            Part(folder_name(module, options))
        ]
    if "layer" in options:
        raise OptionError(f"layers={layers!r} and layer={options['layer']!r}: give one of them")
    model = catalogue.load(module, weights, device, {**options, "layer": layers, "batch_size": batch_size})
    assert isinstance(model, Embedder)
    return model, [_part_of_sweep(model, module, options, layer) for layer in _distinct(model.variant.scene.layers)]


def _distinct(layers: Sequence[str]) -> Sequence[str]:
    if len(set(layers)) < len(layers):
        raise OptionError(f"layers={','.join(layers)!r} names one of them twice")
    return layers


def _part_of_sweep(model: Embedder, module: str, options: Mapping[str, Any], layer: str) -> Part:
    """Give what a model with this layer alone would: its numbers, and those of no layer of the sweep (a mel preset)."""
    others = {*model.variant.scene.layers} - {layer}

    def kept(columns: Mapping[str, Sequence[int]]) -> tuple[int, ...]:
        return tuple(sorted(i for name, places in columns.items() if name not in others for i in places))

    name = folder_name(module, {**options, "layer": int(layer) if layer.isdecimal() else layer})
    return Part(name, kept(model.columns()), kept(model.columns(timestamps=True)))


def folder_name(module: str, options: Mapping[str, Any]) -> str:
    """Name the folder of a model as heareval does: ``hear_transformers.passt-layer=8-hop-ms=20``."""
    return "-".join([module, *(f"{_slug(name)}={_slug(str(value))}" for name, value in options.items())])


def _slug(text: str) -> str:
    """Write a text with letters, digits and hyphens, as python-slugify does with plain ones."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "-")
    plain = re.sub(r"(?<=\d),(?=\d)", "", plain)  # it takes commas between digits for separators of thousands
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")


def run(
    model: Model,
    parts: Sequence[Part],
    tasks: Sequence[Task],
    embeddings_dir: Path,
    on_file: Callable[[Task, int, int], None] = lambda task, done, total: None,
    *,
    workers: int | None = None,
) -> None:
    """Embed tasks; what is done is left alone, what was begun with the same settings is gone on with.

    Parameters
    ----------
    model : what embeds
    parts : where its embeddings go, or parts of them
    tasks : from `tasks.find`
    embeddings_dir : folder of all models
    on_file : called after every file with the task, files done and files in all
    workers : processes that read audio; None leaves it to `default_workers`

    Raises
    ------
    OptionError : a task is not there at the model's sample rate
    HearTransformersError : a file cannot be embedded; a benchmark without it would be another one
    """
    for task in tasks:  # all are looked at before the first is embedded
        for split in task.splits:
            task.audio(split, model.sample_rate)
            task.labels[split]
    for task in tasks:
        folders = [_Folder(embeddings_dir / part.name / task.name, task, part) for part in parts]
        folders = [folder for folder in folders if not folder.done]
        if folders:
            _embed_task(model, task, folders, on_file, workers)


def _embed_task(
    model: Model,
    task: Task,
    folders: Sequence[_Folder],
    on_file: Callable[[Task, int, int], None],
    workers: int | None,
) -> None:
    """Embed the files of a task that any of the folders lacks."""
    began = time.perf_counter()
    settings = {"provenance": model.provenance(), "task": str(task.folder.resolve())}
    for folder in folders:
        folder.begin(settings)
    files = [(split, name) for split in task.splits for name in task.labels[split]]
    wanted = [file for file in files if not all(folder.has(*file) for folder in folders)]
    paths = [task.audio(split, model.sample_rate) / name for split, name in wanted]
    n_done = len(files) - len(wanted)
    on_file(task, n_done, len(files))
    clips = [Clip(path) for path in paths]
    workers = default_workers(len(clips)) if workers is None else workers
    embeddings = embed(model, clips, timestamps=task.kind == "event", scratch=folders[0].path, workers=workers)
    with contextlib.closing(embeddings):
        for embedded in embeddings:
            if embedded.error is not None:
                raise HearTransformersError(
                    f"{paths[embedded.index]}: cannot be embedded ({embedded.error}); what is done is kept, "
                    "the same command goes on with it"
                ) from embedded.error
            for folder in folders:
                folder.write(*wanted[embedded.index], embedded)
            n_done += 1
            on_file(task, n_done, len(files))
    for folder in folders:
        folder.finish(time.perf_counter() - began)


class _Folder:
    """The embeddings of one task by one model."""

    def __init__(self, path: Path, task: Task, part: Part) -> None:
        self.path = path
        self.task = task
        self.columns = part.columns if task.kind == "scene" else part.time_columns

    @property
    def done(self) -> bool:
        """Whether nothing is missing."""
        return (self.path / DONE).exists()

    def begin(self, settings: Mapping[str, Any]) -> None:
        """Make the folder; clear what was begun with other settings."""
        settings = json.loads(json.dumps({**settings, "columns": self.columns}))  # as it will be read: lists, no tuples
        if self.path.exists() and _json_or_none(self.path / SETTINGS) != settings:
            if not (self.path / METADATA).exists() and any(self.path.iterdir()):
                raise OptionError(f"{self.path} holds other things than a task's embeddings; choose another folder")
            shutil.rmtree(self.path)
        for split in self.task.splits:
            (self.path / split).mkdir(parents=True, exist_ok=True)
        _write_json(self.path / SETTINGS, settings)
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in self.task.splits)):
            shutil.copy(self.task.folder / name, self.path)

    def _file(self, split: str, name: str, suffix: str) -> Path:
        return self.path / split / f"{name}.{suffix}"

    def has(self, split: str, name: str) -> bool:
        """Tell whether a file is embedded."""
        return self._file(split, name, "embedding.npy").exists()

    def write(self, split: str, name: str, embedded: Embedded) -> None:
        """Write the embedding of a file and what is to be predicted from it; the array last, resuming goes by it."""
        labels = self.task.labels[split][name]
        if embedded.times_ms is None:
            _write_json(self._file(split, name, "target-labels.json"), labels)
        else:
            times_ms = embedded.times_ms.astype(np.float32)  # as the HEAR function gives them
            _write_json(self._file(split, name, "timestamps.json"), times_ms.tolist())
            _write_json(self._file(split, name, "target-labels.json"), labels_at(labels, times_ms), indent=4)
        assert embedded.embedding is not None
        embedding = embedded.embedding if self.columns is None else embedded.embedding[..., list(self.columns)]
        with atomic(self._file(split, name, "embedding.npy")) as file:
            np.save(file, embedding)

    def finish(self, seconds: float) -> None:
        """Join the files of each split, and say that nothing is missing."""
        shuffle = random.Random(0).shuffle  # one for all splits, as heareval has
        for split in self.task.splits:
            names = list(self.task.labels[split])
            shuffle(names)
            self._join(split, names)
        on_cuda = torch.cuda.is_available()
        profile = {
            "time_elapsed": seconds,
            "gpu_max_mem": torch.cuda.max_memory_allocated() / 2**30 if on_cuda else None,
            "gpu_device_name": torch.cuda.get_device_name() if on_cuda else "cpu",
            **(_json_or_none(self.path / SETTINGS) or {}),
        }
        _write_json(self.path / PROFILE, profile, indent=4)
        (self.path / SETTINGS).unlink()
        (self.path / DONE).touch()

    def _join(self, split: str, names: Sequence[str]) -> None:
        """Write the rows of a split and the labels of each."""
        n_rows = n_columns = 0
        with atomic(self.path / f"{split}.embeddings.npy") as file:
            for name in names:
                rows = np.atleast_2d(np.load(self._file(split, name, "embedding.npy")))
                file.write(rows.tobytes())
                n_rows, n_columns = n_rows + len(rows), rows.shape[1]
        _write_json(self.path / f"{split}.embedding-dimensions.json", (n_rows, n_columns))
        labels = [self._read_json(split, name, "target-labels.json") for name in names]
        if self.task.kind == "event":
            labels = [at_time for of_file in labels for at_time in of_file]
            _write_json(self.path / f"{split}.filename-timestamps.json", list(self._times(split, names)), indent=4)
        with atomic(self.path / f"{split}.target-labels.pkl") as file:
            pickle.dump(labels, file)

    def _times(self, split: str, names: Sequence[str]) -> Iterator[tuple[str, float]]:
        for name in names:
            for time_ms in self._read_json(split, name, "timestamps.json"):
                yield str(self.path / split / name), time_ms

    def _read_json(self, split: str, name: str, suffix: str) -> Any:
        return json.loads(self._file(split, name, suffix).read_text(encoding="utf-8"))


def labels_at(events: Sequence[Mapping[str, Any]], times_ms: NDArray[np.float32]) -> list[list[str]]:
    """Give the labels heard at each time, each once.

    Times are compared in float32, as heareval does.
    """
    labels: list[list[str]] = [[] for _ in times_ms]
    for event in events:
        begins, ends = np.float32(event["start"]), np.float32(event["end"] + END_MS)
        for i in np.flatnonzero((begins <= times_ms) & (times_ms < ends)):
            if event["label"] not in labels[i]:
                labels[i].append(event["label"])
    return labels


def _json_or_none(path: Path) -> Any:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None


def _write_json(path: Path, value: Any, indent: int | None = None) -> None:
    """Write JSON; not atomic: nothing is read before the array, or the file of a task, that is written after it."""
    path.write_text(json.dumps(value, indent=indent), encoding="utf-8")
