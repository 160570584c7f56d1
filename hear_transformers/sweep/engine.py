"""Labelled audio and passes -> embeddings -> rows of scores. All of it is kept, and a later run does what is missing.

OUT/embeddings/TASK/model=PASS/    an output for each clip, see `bulk.extract`
OUT/scores/KEY.json                scores of a probe, by what it was fitted on
OUT/trained/TASK/MODEL-WAY/        networks that are trained themselves, and what they were trained on
OUT/costs.json                     seconds of compute and of audio of each pass
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypedDict

import numpy as np
from numpy.typing import NDArray

from ..audio.workers import default_workers
from ..bulk import extract
from ..bulk.mixing import MODEL_FOLDER
from ..errors import OptionError, TrainingError, import_extra
from ..files import atomic
from ..probes.data import extracted
from . import transfer
from .commands import command_of
from .passes import FEW_DIGITS, Cell, Pass
from .results import NO_POOL, Row
from .subjects import Data, Floats, Scenes, Scores, Subject, score_key

if TYPE_CHECKING:
    from typing_extensions import Unpack

Times = NDArray[np.float64]

EMBEDDINGS, SCORES, TRAINED, COSTS = "embeddings", "scores", "trained", "costs.json"

NO_TIMES, NO_PLACES = np.zeros(0), np.zeros(0, np.int64)

BLOCK_BYTES = 2**29
"""Embeddings in memory at once."""

FEW_SCORES = 50
"""Scores that are made before processes would have started."""

SAVE_SECONDS = 1.0
"""Time between two writings of the costs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Options:
    """How settings are scored.

    Attributes
    ----------
    probes : keys of `probes.fitting.PROBES`
    n_folds : to draw where none are given, see `probes.tasks.make_task`
    seed : of folds and probes
    workers : processes that read audio; None for `workers.default_workers`
    jobs : processes that fit probes; None for one a core, and one if there are `FEW_SCORES`
    shots : clips of each class to train on, beside all there are, see `probes.tasks.of_few`
    training : how the networks themselves are trained as well; None for probes alone
    on_start, on_outcome : of the clips, see `extract.extract`
    on_scores : called with the task and the number of scores to come
    on_score : called after each
    """

    probes: tuple[str, ...] = ("logistic",)
    n_folds: int | None = None
    seed: int = 0
    workers: int | None = None
    jobs: int | None = None
    shots: tuple[int, ...] = ()
    training: transfer.How | None = None
    on_start: Callable[[int], None] = lambda n: None
    on_outcome: Callable[[extract.Outcome], None] = lambda outcome: None
    on_scores: Callable[[str, int], None] = lambda name, n: None
    on_score: Callable[[], None] = lambda: None


class Told(TypedDict):
    """What a row says of how it was scored, see `Row`."""

    probe: str
    clips_per_class: int | None
    command: str


def check(data: Sequence[Data], passes: Sequence[Pass], options: Options) -> None:
    """Read the labels of all data, so that what is wrong there is told before anything is embedded.

    Raises
    ------
    OptionError : two data of one name, no pass at all; see `subjects.Data.read`
    TrainingError : see `subjects.Data.read`
    """
    if not passes:
        raise OptionError("no model can serve any of the settings; the lines above say why")
    names = [each.name for each in data]
    if twice := [name for name in names if names.count(name) > 1]:
        raise OptionError(f"two data are named {twice[0]}; give one another name: other={data[-1].source}")
    for each in data:
        for rate in sorted({found.sample_rate for found in passes}):
            subject = each.read(rate, options.n_folds, options.seed)
            if not _served(passes, subject):
                raise OptionError(
                    f"{each.source}: events need embeddings along time; give --framing windowed or native"
                )
            for probe in options.probes:
                subject.check(probe)
            for n in options.shots:
                subject.of_few(n)
            for found in passes if options.training else ():
                transfer.check(each, subject, found.chosen)
            if not each.is_hear:
                break


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
        subjects, files = _embedded(each, passes, out, options)
        for n in (*options.shots, None):
            of_few = {rate: subject if n is None else subject.of_few(n) for rate, subject in subjects.items()}
            yield from _probed(each, next(iter(of_few.values())), n, files, out, options)
            for found, of_pass in files.items() if options.training else ():
                yield from _trained(each, of_few[_rate(each, found)], n, found, of_pass, out, options)


def _served(passes: Sequence[Pass], subject: Subject) -> list[Pass]:
    """Return the passes that make what a subject needs."""
    return [found for found in passes if found.is_along_time or not subject.along_time]


# Embeddings


def _rate(data: Data, found: Pass) -> int:
    """Return the sample rate of the audio that a pass reads, 0 for whatever there is."""
    return found.sample_rate if data.is_hear else 0


def _embedded(
    data: Data, passes: Sequence[Pass], out: Path, options: Options
) -> tuple[dict[int, Subject], dict[Pass, list[Path]]]:
    """Embed all clips with all passes, decoding each once: return the clips that all have, by `_rate`, and outputs."""
    groups: dict[int, list[Pass]] = {}
    for found in passes:
        groups.setdefault(_rate(data, found), []).append(found)
    subjects: dict[int, Subject] = {}
    outputs: dict[Pass, dict[int, Path]] = {}
    for rate, together in groups.items():
        subject = data.read(together[0].sample_rate, options.n_folds, options.seed)
        if served := _served(together, subject):
            subjects[rate] = subject
            outputs |= _extracted(data, subject, served, out, options)
    kept = [i for i in range(len(subject.clips)) if all(i in each for each in outputs.values())]
    if not kept:
        raise TrainingError(f"{data.source}: none of its {len(subject.clips)} clips could be embedded")
    of_kept = {rate: subject.taken(kept) for rate, subject in subjects.items()}
    return of_kept, {found: [each[i] for i in kept] for found, each in outputs.items()}


def _extracted(
    data: Data, subject: Subject, passes: Sequence[Pass], out: Path, options: Options
) -> dict[Pass, dict[int, Path]]:
    """Embed clips with passes that read the same audio: return the output of each clip that has one, of each pass."""
    root = out / EMBEDDINGS / data.name
    folders = [root / f"{MODEL_FOLDER}{found.name}" for found in passes]
    with _Costs(out / COSTS, data.name, passes) as costs:

        def on_outcome(outcome: extract.Outcome) -> None:
            costs.save()
            options.on_outcome(outcome)

        workers = default_workers(len(subject.clips)) if options.workers is None else options.workers
        models, folder = (list(passes), root) if len(passes) > 1 else (passes[0], folders[0])
        how: dict[str, Any] = {"timestamps": subject.along_time, "workers": workers, "on_start": options.on_start}
        found, *_ = extracted(data.source, subject.clips, models, folder, on_outcome=on_outcome, **how)
    names = {i: path.relative_to(folders[0]) for i, path in found}
    return {each: {i: folder / name for i, name in names.items()} for each, folder in zip(passes, folders, strict=True)}


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


def _read(cells: Sequence[Cell], files: Sequence[Path]) -> Iterator[tuple[Cell, list[Floats], list[Times]]]:
    """Read the embeddings of each cell, as many cells at once as fit into `BLOCK_BYTES`.

    Yields
    ------
    cell : of the pass
    embeddings : of each clip, (times, size), or (1, size) of a scene
    times_ms : of each clip, (times,); of a scene none
    """
    n_rows = sum(len(_block(path, NO_PLACES)[0]) for path in files)
    waiting = list(cells)
    while waiting:
        together = [waiting.pop(0)]
        columns = {*together[0].columns}
        while waiting and len(columns.union(waiting[0].columns)) * n_rows * 4 <= BLOCK_BYTES:
            together.append(waiting.pop(0))
            columns.update(together[-1].columns)
        places = np.array(sorted(columns))
        blocks, times_ms = zip(*(_block(path, places) for path in files), strict=True)
        for cell in together:
            where = np.searchsorted(places, cell.columns)
            yield cell, [block[:, where] for block in blocks], list(times_ms)


def _block(path: Path, places: NDArray[np.int64]) -> tuple[Floats, Times]:
    """Read some columns of the embedding of a clip, and its times."""
    with np.load(path) as archive:
        block = np.atleast_2d(archive["embedding"])[:, places].astype(np.float32, copy=False)
        return block, archive.get("timestamps", NO_TIMES)


# Scores


def _probed(
    data: Data, subject: Subject, n: int | None, files: Mapping[Pass, Sequence[Path]], out: Path, options: Options
) -> Iterator[Row]:
    """Score all settings with all probes that are fitted on `n` clips of each class: yield their rows."""
    settings = [(found, cell, probe) for found in files for cell in found.cells for probe in options.probes]
    options.on_scores(data.name, len(settings))
    jobs = options.jobs if len(settings) > FEW_SCORES else 1
    scored = _scored(subject, files, options.probes, out / SCORES, jobs)
    for (found, cell, probe), scores in zip(settings, scored, strict=True):
        command = command_of(data.source, data.layout.columns, found, cell, along_time=subject.along_time)
        yield from _rows(data, subject, found, cell, scores, probe=probe, clips_per_class=n, command=command)
        options.on_score()


def _trained(
    data: Data, subject: Subject, n: int | None, found: Pass, files: Sequence[Path], out: Path, options: Options
) -> Iterator[Row]:
    """Score the network of a pass when it is trained on `n` clips of each class: yield rows as of its first cell."""
    assert options.training is not None
    assert isinstance(subject, Scenes)  # see `check`
    workers = default_workers(len(subject.clips)) if options.workers is None else options.workers
    cell, embeddings, _ = next(_read(found.cells[:1], files))
    for way in transfer.ways_of(found.chosen):
        # What was embedded stands for the weights and the audio.
        key = score_key(subject, f"{way} {options.training.recipe(way)}", embeddings)
        folder = out / TRAINED / data.name / f"{'-'.join(found.model.name)}-{way}-{key[:FEW_DIGITS]}"
        run = transfer.Run(subject, found.chosen, way, folder, options.training, workers)
        scores = _kept(out / SCORES / f"{key}.json", run.score)
        yield from _rows(data, subject, found, cell, scores, probe=way, clips_per_class=n, command=run.command)


def _scored(
    subject: Subject, files: Mapping[Pass, Sequence[Path]], probes: Sequence[str], folder: Path, jobs: int | None
) -> Iterator[Scores]:
    """Score all cells of passes with all probes, in this order, in several processes."""
    joblib = import_extra("a sweep", "joblib", "train")
    calls = (
        joblib.delayed(_scores)(subject, probe, embeddings, times_ms, folder)
        for found, of_pass in files.items()
        for _, embeddings, times_ms in _read(found.cells, of_pass)
        for probe in probes
    )
    # A generator: what waits for a process is in memory, and no more.
    scores: Iterator[Scores] = joblib.Parallel(jobs or joblib.cpu_count(), return_as="generator")(calls)
    return scores


def _scores(
    subject: Subject, probe: str, embeddings: Sequence[Floats], times_ms: Sequence[Times], folder: Path
) -> Scores:
    """Score a probe, or find its scores."""
    path = folder / f"{score_key(subject, probe, embeddings)}.json"
    return _kept(path, lambda: subject.score(embeddings, times_ms, probe))


def _kept(path: Path, score: Callable[[], Scores]) -> Scores:
    """Return the scores in a file, where they are written if there are none."""
    scores = _read_json(path)
    if not scores:
        scores = {**score()}
        with atomic(path) as file:
            file.write(json.dumps(scores).encode())
    return scores


def _rows(data: Data, subject: Subject, found: Pass, cell: Cell, scores: Scores, **told: Unpack[Told]) -> Iterator[Row]:
    """Yield a row for each metric."""
    main = next(iter(scores))
    for metric, (value, low, high) in scores.items():
        yield Row(
            task=data.name,
            model=found.chosen.label,
            layer=cell.layer,
            pool=cell.pool or NO_POOL,
            framing=found.framing,
            window_ms=found.window_ms,
            hop_ms=found.hop_ms,
            metric=metric,
            is_main=metric == main,
            value=value,
            low=low,
            high=high,
            size=len(cell.columns),
            clips=len(subject.clips),
            seconds_per_hour=found.cost.per_hour,
            **told,
        )
