"""Labelled audio and passes -> embeddings -> rows of scores. All of it is kept, and a later run does what is missing.

OUT/embeddings/TASK/model=PASS/    an output for each clip, see `bulk.extract`
OUT/scores/KEY.json                scores of a probe, by what it was fitted on
OUT/costs.json                     seconds of compute and of audio of each pass
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bulk import extract
from ..bulk.mixing import MODEL_FOLDER
from ..errors import OptionError, TrainingError
from ..files import atomic
from ..harness.tasks import METADATA
from ..probes import evaluation
from ..probes.data import Labelled, read_clips, sources_of, taken_rows
from ..probes.tasks import Task, make_task
from ..training.manifest import Layout
from .commands import command_of
from .passes import Cell, Pass
from .results import Row

Floats = NDArray[np.float32]

EMBEDDINGS, SCORES, COSTS = "embeddings", "scores", "costs.json"

BLOCK_BYTES = 2**29
"""Embeddings in memory at once."""

SAVE_SECONDS = 1.0
"""Time between two writings of the costs."""


@dataclass(frozen=True, slots=True, eq=False)
class Data:
    """Labelled audio that settings are tried on.

    Attributes
    ----------
    name : in the tables
    source : folder or table, see `probes.data.read_clips`
    layout : of a table
    more : "fold", "group": the column of a table that holds it
    """

    name: str
    source: Path
    layout: Layout = field(default_factory=Layout)
    more: Mapping[str, str] = field(default_factory=dict)

    def clips(self, sample_rate: int) -> Labelled:
        """Read the clips; those of a HEAR task at a sample rate."""
        return read_clips(self.source, self.layout, self.more, sample_rate)

    @property
    def is_hear(self) -> bool:
        """Whether it is a folder of a HEAR task, with audio for each sample rate."""
        return (self.source / METADATA).is_file()


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How settings are scored.

    Attributes
    ----------
    probes : keys of `probes.fitting.PROBES`
    n_folds : to draw where none are given, see `probes.tasks.make_task`
    seed : of folds and probes
    workers : processes that read audio
    on_start, on_outcome : of the clips, see `extract.extract`
    on_scores : called with the task and the number of scores to come
    on_score : called after each
    """

    probes: tuple[str, ...] = ("logistic",)
    n_folds: int | None = None
    seed: int = 0
    workers: int = 0
    on_start: Callable[[int], None] = lambda n: None
    on_outcome: Callable[[extract.Outcome], None] = lambda outcome: None
    on_scores: Callable[[str, int], None] = lambda name, n: None
    on_score: Callable[[], None] = lambda: None


def check(data: Sequence[Data], passes: Sequence[Pass], options: Options) -> None:
    """Read the labels of all data, so that what is wrong there is told before anything is embedded.

    Raises
    ------
    OptionError : two data of one name, no pass at all; see `probes.data.read_clips`
    TrainingError : see `probes.tasks.make_task`
    """
    if not passes:
        raise OptionError("none of the settings can be served by a model; the lines above say why")
    names = [each.name for each in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"two data are named {twice[0]}; give one another name: other={data[-1].source}")
    for each in data:
        for rate in {found.sample_rate for found in passes} if each.is_hear else {passes[0].sample_rate}:
            _task(each.clips(rate), options)


def sweep(data: Sequence[Data], passes: Sequence[Pass], out: Path, options: Options) -> Iterator[Row]:
    """Embed and score all settings: yield the rows of one task after the other.

    Parameters
    ----------
    data : labelled audio
    passes : from `settings.passes_of`
    out : folder for embeddings and scores
    options : how they are scored
    """
    for each in data:
        clips, folders, kept = _embedded(each, passes, out, options)
        task = _task(taken_rows(clips, [*kept]), options)
        options.on_scores(each.name, sum(len(found.cells) for found in passes) * len(options.probes))
        for found in passes:
            files = [folders[found] / name for name in kept.values()]
            for cell, embeddings in _matrices(found.cells, files):
                for probe in options.probes:
                    yield from _rows(each, task, found, cell, probe, embeddings, out / SCORES, options)
                    options.on_score()


def _task(clips: Labelled, options: Options) -> Task:
    given: dict[str, Any] = {"folds": clips.folds, "groups": clips.groups}
    names = [str(path) for path in clips.paths]
    return make_task(names, clips.classes, clips.targets, n_folds=options.n_folds, seed=options.seed, **given)


# Embeddings


def _embedded(
    data: Data, passes: Sequence[Pass], out: Path, options: Options
) -> tuple[Labelled, dict[Pass, Path], dict[int, str]]:
    """Embed all clips with all passes, decoding each once.

    Returns
    -------
    clips : all
    folders : of each pass
    kept : number of each clip that all passes have -> name of its output
    """
    groups: dict[int, list[Pass]] = {}
    for found in passes:
        groups.setdefault(found.sample_rate if data.is_hear else 0, []).append(found)
    folders: dict[Pass, Path] = {}
    names: list[dict[int, str]] = []
    for together in groups.values():
        clips = data.clips(together[0].sample_rate)
        sources = sources_of(clips)
        root = out / EMBEDDINGS / data.name
        folders |= {found: root / f"{MODEL_FOLDER}{found.name}" for found in together}
        alone = len(together) == 1
        with _Costs(out / COSTS, data.name, together) as costs:

            def on_outcome(outcome: extract.Outcome, costs: _Costs = costs) -> None:
                costs.save()
                options.on_outcome(outcome)

            report = extract.extract(
                together[0] if alone else together,
                sources,
                f"{folders[together[0]] if alone else root}/",
                workers=options.workers,
                on_start=options.on_start,
                on_outcome=on_outcome,
            )
        first = folders[together[0]]
        done = {
            (each.source, each.start, each.end): str(each.output.relative_to(first))
            for each in (*report.written, *report.skipped)
            if each.output is not None
        }
        keys = [(str(source.path), source.start, source.end) for source in sources]
        names.append({i: done[key] for i, key in enumerate(keys) if key in done})
    kept = {i: name for i, name in names[0].items() if all(i in each for each in names)}
    if not kept:
        raise TrainingError(f"{data.source}: none of its {len(clips.paths)} clips could be embedded")
    return clips, folders, kept


class _Costs:
    """Adds what passes cost in this run to what they have cost, and keeps it in a file."""

    def __init__(self, path: Path, task: str, passes: Sequence[Pass]) -> None:
        self.path, self.passes = path, {f"{task}/{found.name}": found for found in passes}
        self.saved = time.monotonic()

    def __enter__(self) -> _Costs:
        before = _read_json(self.path)
        for key, found in self.passes.items():
            found.cost.seconds, found.cost.audio = before.get(key, (0.0, 0.0))
        return self

    def __exit__(self, *error: object) -> None:
        self._write()

    def save(self) -> None:
        """Write the costs if it is time."""
        if time.monotonic() - self.saved > SAVE_SECONDS:
            self._write()

    def _write(self) -> None:
        now = {key: (found.cost.seconds, found.cost.audio) for key, found in self.passes.items()}
        with atomic(self.path) as file:
            file.write(json.dumps(_read_json(self.path) | now, indent=1).encode())
        self.saved = time.monotonic()


def _read_json(path: Path) -> dict[str, Any]:
    """Read a file of this room; a damaged one, or none, is empty."""
    with contextlib.suppress(OSError, ValueError):
        value = json.loads(path.read_text(encoding="utf-8"))
        return value if isinstance(value, dict) else {}
    return {}


def _matrices(cells: Sequence[Cell], files: Sequence[Path]) -> Iterator[tuple[Cell, Floats]]:
    """Read the embeddings of each cell, (clips, size), as many at once as fit into `BLOCK_BYTES`."""
    waiting = list(cells)
    while waiting:
        columns: set[int] = set(waiting[0].columns)
        taken = 1
        for cell in waiting[1:]:
            if len(columns.union(cell.columns)) * len(files) * 4 > BLOCK_BYTES:
                break
            columns.update(cell.columns)
            taken += 1
        places = np.array(sorted(columns))
        block = np.empty((len(files), len(places)), np.float32)
        for row, path in zip(block, files, strict=True):
            with np.load(path) as archive:
                row[:] = archive["embedding"][places]
        for cell in waiting[:taken]:
            yield cell, block[:, np.searchsorted(places, cell.columns)]
        waiting = waiting[taken:]


# Scores


def _rows(
    data: Data, task: Task, found: Pass, cell: Cell, probe: str, embeddings: Floats, folder: Path, options: Options
) -> Iterator[Row]:
    """Score a probe, or find its scores, and yield a row for each metric."""
    path = folder / f"{_key(task, probe, options.seed, embeddings)}.json"
    scores = _read_json(path)
    if not scores:
        result = evaluation.evaluate(embeddings, task, probe, seed=options.seed)
        scores = {name: (score.value, score.low, score.high) for name, score in result.scores.items()}
        with atomic(path) as file:
            file.write(json.dumps(scores).encode())
    main = next(iter(scores))
    for metric, (value, low, high) in scores.items():
        yield Row(
            task=data.name,
            model=found.chosen.label,
            layer=cell.layer,
            pool=cell.pool or "vector",
            framing=found.framing,
            window_ms=found.window_ms,
            hop_ms=found.hop_ms,
            probe=probe,
            metric=metric,
            is_main=metric == main,
            value=value,
            low=low,
            high=high,
            size=embeddings.shape[1],
            clips=len(task.names),
            seconds_per_hour=found.cost.per_hour,
            command=command_of(data.source, data.layout.columns, found, cell),
        )


def _key(task: Task, probe: str, seed: int, embeddings: Floats) -> str:
    """Return a hash of all that a score depends on."""
    splits = [
        [split.name, *(each.tolist() for each in (split.train, split.valid, split.test))] for split in task.splits
    ]
    told = {"probe": probe, "seed": seed, "splits": splits, "groups": task.groups.tolist()}
    digest = hashlib.sha256(json.dumps(told | {"multi_label": task.multi_label}).encode())
    for array in (task.targets, embeddings):
        digest.update(f"{array.shape}".encode())
        digest.update(np.ascontiguousarray(array).tobytes())
    return digest.hexdigest()
