"""HEAR's embedding stage, faster: the files of heareval, resumable, all layers of a sweep in one pass.

The layout is that of heareval 2021.1.3 (embeddings/runner.py and embeddings/task_embeddings.py), and its prediction
stage reads it:

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
import os
import pickle
import random
import shutil
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from .. import FAMILIES, catalogue
from ..audio.workers import default_workers
from ..embedding.devices import pick_device
from ..embedding.embedder import Embedder, columns_of
from ..embedding.external import ExternalModel
from ..embedding.pipeline import Clip, Embedded, Model, embed
from ..errors import HearTransformersError, OptionError
from ..files import atomic
from .systems import folder_name
from .tasks import METADATA, VOCABULARY, Task

OnFile = Callable[[Task, int, int], None]

DONE = ".done.embeddings"
SETTINGS = ".settings.json"
PROFILE = "profile.embeddings.json"
ARRAY, LABELS, TIMES = ".embedding.npy", ".target-labels.json", ".timestamps.json"
"""Behind the name of a file: its embedding, what to predict of it, and at which times."""

PART = ".part"
"""Behind the name of an array that is not complete."""

MOST_HELD = 2**28
"""Bytes of embeddings that are kept in memory until they are joined; others are read again."""

Finished = tuple[NDArray[np.float32], list[Any], list[float] | None]
"""Rows, labels and times of a file; no times of a scene."""

WAITING = 32
"""Embeddings that wait to be written while the next are computed."""

END_MS = 0.0001
"""Added to the end of an event, so that the end is included (heareval's get_labels_for_timestamps)."""


@dataclass(frozen=True, slots=True)
class Part:
    """The part of a pass that stands for one model.

    Attributes
    ----------
    name : of its folder, as heareval names it
    columns : positions in a scene embedding, None for all
    time_columns : positions in an embedding along time, None for all
    """

    name: str
    columns: tuple[int, ...] | None = None
    time_columns: tuple[int, ...] | None = None


def load_with_parts(
    module: str,
    weights: str = "",
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    layers: str | None = None,
    batch_size: int | None = None,
) -> tuple[Model, list[Part]]:
    """Load a model, and split its embeddings into the models that they stand for.

    Parameters
    ----------
    module : name of a model, see `catalogue.resolve`
    weights : checkpoint; empty for the module's own
    device : "auto" or a PyTorch device
    options : keyword arguments for its `load_model`
    layers : "all" or a list "0,4,8", each layer as a model of its own; for this package's families only
    batch_size : windows per forward pass; for this package's families only

    Raises
    ------
    OptionError : module, device or an option is unknown, or `layers` cannot be combined with them
    """
    module, options = catalogue.as_module(module, options or {})
    if module.removeprefix("hear_transformers.") not in FAMILIES:
        if layers is not None or batch_size is not None:
            raise OptionError(f"layers and batch_size are for {', '.join(FAMILIES)}; the HEAR API of {module} has none")
        model: Model = ExternalModel(module, weights, pick_device(device), options)
        return model, [Part(folder_name(module, options))]
    if layers is not None and "layer" in options:
        raise OptionError(f"layers={layers!r} and layer={options['layer']!r}: give one of them")
    chosen = {} if layers is None else {"layer": layers}
    model = catalogue.load(module, weights, device, {**options, **chosen, "batch_size": batch_size})
    if layers is None:
        return model, [Part(folder_name(module, options))]
    assert isinstance(model, Embedder)
    swept = model.variant.scene.layers
    if len(set(swept)) < len(swept):
        raise OptionError(f"layers={','.join(swept)!r} names one of them twice")
    columns = [model.columns(timestamps=timestamps) for timestamps in (False, True)]
    parts = []
    for layer in swept:
        name = folder_name(module, {**options, "layer": int(layer) if layer.isdecimal() else layer})
        parts.append(Part(name, *(tuple(columns_of(of_kind, layer, swept)) for of_kind in columns)))
    return model, parts


def embed_tasks(
    model: Model,
    parts: Sequence[Part],
    tasks: Sequence[Task],
    embeddings_dir: Path,
    on_file: OnFile = lambda task, done, total: None,
    *,
    workers: int | None = None,
) -> None:
    """Embed tasks; complete ones are kept, and incomplete ones of the same settings are resumed.

    Parameters
    ----------
    model : that embeds
    parts : of its embeddings, each with a folder
    tasks : from `tasks.find_tasks`
    embeddings_dir : folder of all models
    on_file : called after every file with the task, files done and files in total
    workers : processes that read audio; None for `default_workers`, or none if that is one

    Raises
    ------
    OptionError : a task lacks the model's sample rate
    HearTransformersError : a file cannot be embedded; a benchmark without it would be a different one
    """
    for task in tasks:  # check all of them before the first is embedded
        for split in task.splits:
            task.audio(split, model.sample_rate)
            task.labels[split]
    for task in tasks:
        folders = [_TaskFolder(embeddings_dir / part.name / task.name, task, part) for part in parts]
        folders = [folder for folder in folders if not (folder.path / DONE).exists()]
        if folders:
            _embed_task(model, task, folders, on_file, workers)


def _embed_task(model: Model, task: Task, folders: Sequence[_TaskFolder], on_file: OnFile, workers: int | None) -> None:
    """Embed the files of a task that any of the folders lacks."""
    start = time.perf_counter()
    settings = {"provenance": model.provenance(), "task": str(task.folder.resolve())}
    for folder in folders:
        folder.prepare(settings)
    files = [(split, name) for split in task.splits for name in task.labels[split]]
    embedded_before = set(files).intersection(*(folder.embedded() for folder in folders))
    wanted = [file for file in files if file not in embedded_before]
    audio = {split: task.audio(split, model.sample_rate) for split in task.splits}
    paths = [audio[split] / name for split, name in wanted]
    n_done = len(files) - len(wanted)
    on_file(task, n_done, len(files))
    clips = [Clip(path) for path in paths]
    if workers is None:
        workers = default_workers(len(clips))
        # The audio of tasks has the rate of the model: one process that reads it costs as much as it spares this one.
        workers = 0 if workers == 1 else workers
    embeddings = embed(model, clips, timestamps=task.kind == "event", scratch=folders[0].path, workers=workers)

    def write(embedded: Embedded) -> None:
        for folder in folders:
            folder.write(*wanted[embedded.index], embedded)

    with contextlib.closing(embeddings):
        for n_written, _ in enumerate(_written(embeddings, write, paths), 1):
            on_file(task, n_done + n_written, len(files))
    for folder in folders:
        folder.finish(time.perf_counter() - start)


def _written(
    embeddings: Iterable[Embedded], write: Callable[[Embedded], None], paths: Sequence[Path]
) -> Iterator[None]:
    """Write embeddings in another thread while the next are computed; yield after each that is written."""
    waiting: deque[Future[None]] = deque()
    with ThreadPoolExecutor(1) as writer:
        for embedded in embeddings:
            if embedded.error is not None:
                raise HearTransformersError(
                    f"{paths[embedded.index]}: cannot be embedded ({embedded.error}); finished files are kept, "
                    "and the same command resumes the run"
                ) from embedded.error
            waiting.append(writer.submit(write, embedded))
            while waiting and (waiting[0].done() or len(waiting) > WAITING):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


class _TaskFolder:
    """The embeddings of one task by one model."""

    def __init__(self, path: Path, task: Task, part: Part) -> None:
        self.path = path
        self.task = task
        self.columns = part.columns if task.kind == "scene" else part.time_columns
        self.held: dict[tuple[str, str], Finished] = {}
        self.held_bytes = 0

    def prepare(self, settings: Mapping[str, Any]) -> None:
        """Make the folder; clear the output of an incomplete run with other settings."""
        settings = json.loads(json.dumps({**settings, "columns": self.columns}))  # as read back: lists, no tuples
        if self.path.exists() and _json_or_none(self.path / SETTINGS) != settings:
            if not (self.path / METADATA).exists() and any(self.path.iterdir()):
                raise OptionError(f"{self.path} holds other things than a task's embeddings; choose another folder")
            shutil.rmtree(self.path)
        for split in self.task.splits:
            (self.path / split).mkdir(parents=True, exist_ok=True)
        _write_json(self.path / SETTINGS, settings)
        for name in (METADATA, VOCABULARY, *(f"{split}.json" for split in self.task.splits)):
            shutil.copy(self.task.folder / name, self.path)

    def _file(self, split: str, name: str, suffix: str = "") -> str:
        # A string: of a Path one could make a tenth of the embeddings of a small network meanwhile.
        return f"{self.path}{os.sep}{split}{os.sep}{name}{suffix}"

    def embedded(self) -> set[tuple[str, str]]:
        """Return split and name of the files that are embedded."""
        names = ((split, name) for split in self.task.splits for name in os.listdir(self.path / split))
        return {(split, name.removesuffix(ARRAY)) for split, name in names if name.endswith(ARRAY)}

    def write(self, split: str, name: str, embedded: Embedded) -> None:
        """Write the embedding of a file and its labels; the array comes last, as it marks a finished file."""
        assert embedded.embedding is not None
        rows = embedded.embedding if self.columns is None else embedded.embedding[..., list(self.columns)]
        labels, times_ms = self.task.labels[split][name], None
        if embedded.times_ms is None:
            _write_json(self._file(split, name, LABELS), labels)
        else:
            centres_ms = embedded.times_ms.astype(np.float32)  # as the HEAR function returns them
            labels, times_ms = labels_at(labels, centres_ms), centres_ms.tolist()
            _write_json(self._file(split, name, TIMES), times_ms)
            _write_json(self._file(split, name, LABELS), labels, indent=4)
        path = self._file(split, name, ARRAY)
        with open(f"{path}{PART}", "wb") as file:  # under its name when it is complete, like `files.atomic`
            np.save(file, rows)
        os.replace(f"{path}{PART}", path)
        if self.held_bytes < MOST_HELD and not isinstance(rows, np.memmap):
            self.held[split, name] = rows, labels, times_ms
            self.held_bytes += rows.nbytes

    def finish(self, seconds: float) -> None:
        """Join the files of each split, and mark the task as done."""
        shuffle = random.Random(0).shuffle  # one generator for all splits, as in heareval
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
        labels: list[Any] = []
        places: list[tuple[str, float]] = []  # file and time of each row
        with atomic(self.path / f"{split}.embeddings.npy") as file:
            for name in names:
                rows, labels_of_rows, times_ms = self.held.get((split, name)) or self._read(split, name)
                rows = np.atleast_2d(rows)
                file.write(rows.tobytes())
                n_rows, n_columns = n_rows + len(rows), rows.shape[1]
                labels += [labels_of_rows] if times_ms is None else labels_of_rows
                places += ((self._file(split, name), time_ms) for time_ms in times_ms or ())
        _write_json(self.path / f"{split}.embedding-dimensions.json", (n_rows, n_columns))
        if self.task.kind == "event":
            _write_json(self.path / f"{split}.filename-timestamps.json", places, indent=4)
        with atomic(self.path / f"{split}.target-labels.pkl") as file:
            pickle.dump(labels, file)

    def _read(self, split: str, name: str) -> Finished:
        """Read what `write` wrote."""
        rows = np.load(self._file(split, name, ARRAY))
        if self.task.kind != "event":
            return rows, self.task.labels[split][name], None
        labels, times_ms = (_read_json(self._file(split, name, suffix)) for suffix in (LABELS, TIMES))
        return rows, labels, times_ms


def labels_at(events: Sequence[Mapping[str, Any]], times_ms: NDArray[np.float32]) -> list[list[str]]:
    """Return the labels of the events at each time, without repetition; compared in float32, as in heareval."""
    labels: list[list[str]] = [[] for _ in times_ms]
    for event in events:
        start, end = np.float32(event["start"]), np.float32(event["end"] + END_MS)
        for i in np.flatnonzero((start <= times_ms) & (times_ms < end)):
            if event["label"] not in labels[i]:
                labels[i].append(event["label"])
    return labels


def _json_or_none(path: Path) -> Any:
    try:
        return _read_json(path)
    except (OSError, ValueError):
        return None


def _read_json(path: str | Path) -> Any:
    return json.loads(Path(path).read_text(encoding="utf-8"))


def _write_json(path: str | Path, value: Any, indent: int | None = None) -> None:
    """Write JSON; not atomically: the array or marker that is written after it decides whether it is read."""
    with open(path, "w", encoding="utf-8") as file:
        file.write(json.dumps(value, indent=indent))
