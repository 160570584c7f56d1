"""One run: passes over what is missing, and the outcome of every source."""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
import pickle
import time
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import chain
from typing import TYPE_CHECKING, Any

from .. import catalogue
from ..audio.levels import EACH, MIX
from ..audio.workers import Spent
from ..bulk import journal
from ..bulk.extract import Outcome, Report
from ..bulk.mixing import layer_folder
from ..bulk.outputs import OutputOptions, contents_of, model_folders
from ..bulk.shards import Part, Shard, Store, check_settings, reconcile
from ..bulk.sources import Source, find_sources, places_of
from ..bulk.usage import Usage
from ..embedding.choices import Resample
from ..embedding.replicas import Description
from ..errors import HearTransformersError, OptionError, import_extra
from .actors import Done, Embedder, Job, describe
from .clusters import Crew, start
from .pieces import Piece, Segments, pieces_of, segments_of

if TYPE_CHECKING:
    from ray.data import Dataset

BLOCK_SIZE = 512
"""Parts of files in a block: a shard of as many rows or more, and what is lost with an actor."""

MOST_TASKS = 2000
"""Tasks that Ray Data is given in one pass; each embeds one block after the other."""

SHRINKING = 8
"""Blocks that died with their actor are this much smaller in the next pass."""

FALSE_STARTS = 3
"""Times that as many actors as there are may die in a row before they embed anything: a machine takes its own along."""

CHANCES = 2
"""Times that a part may be alone with an actor that dies, before it is the one to blame."""

ACTOR_OPTIONS = {"max_restarts": 0, "max_task_retries": 0}
"""Of each actor. One that died is not restarted: where no machine has room for it, its blocks would wait for ever."""

ALONG_TIME = ("hop_ms", "window_ms", "framing", "segment")
"""Options of `load_model` that ask for embeddings along time."""


def embed(
    sources: Dataset | Iterable[str | os.PathLike[str] | Source],
    out: str | os.PathLike[str],
    model: str | Sequence[str] | None = None,
    *,
    weights: str = "",
    device: str = "auto",
    actors: int | None = None,
    cores: int | None = None,
    block_size: int = BLOCK_SIZE,
    timestamps: bool | None = None,
    channel: int | None = None,
    dtype: str = "float32",
    separate_layers: bool = False,
    overwrite: bool = False,
    keep_damaged: bool = False,
    resample: Resample = "auto",
    fail_fast: bool = False,
    on_start: Callable[[int], None] = lambda n_outcomes: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
    **options: Any,
) -> Report:
    """Embed audio files on a Ray cluster, and write Parquet shards.

    Rows and metadata of the shards are those of a table of `bulk.extract`. Running the same call again does what is
    missing: parts of files whose rows no shard has, or that have another size or time of modification. A part that is
    named twice is embedded once. Without a connection to a cluster, Ray is started on this machine.

    Parameters
    ----------
    sources : files, folders, patterns or addresses; or a dataset of Ray with the columns ``path`` and, if wanted,
        ``start``, ``end`` in s and ``channel`` from 1. Machines of the cluster must find files under the same names
    out : folder, or its address for fsspec; shards of several models and layers go to folders in it, see `extract`
    model : name of a model, of several, or None for the embedded one, see `catalogue.load`
    weights : checkpoint of the model, which every machine must find; empty for the published one
    device : "auto" for cards if the cluster has any, "cuda" or "cpu"
    actors, cores : see `Crew.of`
    block_size : parts of files in a block, see `BLOCK_SIZE`; on fast cards some thousands
    timestamps : embeddings along time, as is right for the options if None
    channel : of every file, from 1; None for the mean of all
    dtype, separate_layers, overwrite : see `bulk.outputs.OutputOptions`
    keep_damaged, resample, fail_fast : see `bulk.extract.extract`
    on_start : called with the number of outcomes to come
    on_outcome : called as soon as a source is finished
    **options : of `load_model` of the family: layer, pool, hop_ms, segment, precision, ...

    Returns
    -------
    report : an outcome for every source; ``failures.jsonl`` and ``warnings.jsonl`` in `out` list the same

    Raises
    ------
    OptionError : Ray is not installed, an option is wrong, actors would take all CPUs, `out` holds tables of other
        settings or of the command on one machine
    HearTransformersError : shards cannot be read or written

    Examples
    --------
    >>> from hear_transformers import ray  # doctest: +SKIP
    >>> report = ray.embed(["a.wav", "s3://bucket/b.flac"], "s3://bucket/out", "passt/base", layer=8)  # doctest: +SKIP
    >>> len(report.written), [outcome.message for outcome in report.failed]  # doctest: +SKIP
    (2, [])
    """
    ray = import_extra("embedding on a cluster", "ray.data", "ray")
    if block_size < 1:
        raise OptionError(f"block_size={block_size} is no number of parts; give 1 or more")
    named = [*([model] if model is None or isinstance(model, str) else model)]
    along_time = any(options.get(name) is not None for name in ALONG_TIME) if timestamps is None else timestamps
    named_parts = _found(sources)
    found = _once(named_parts)
    if not ray.is_initialized():
        start(None)
    crew = Crew.of(ray.nodes(), device, actors, cores)
    load = functools.partial(catalogue.load_each, named, weights, options=options)
    models = _described(ray, load, crew)
    stored = OutputOptions("parquet", dtype, separate_layers)
    heard = channel or (EACH if any(source.channel for source in found) else MIX)
    root = Store.at(out)
    stores, settings = _targets(root, models, stored, along_time, heard)
    reading = {"channel": channel, "timestamps": along_time, "keep_damaged": keep_damaged, "resample": resample}
    job = Job(load, root.url, stores, settings, reading, stored, crew)
    rates = [each.sample_rate for each in models]
    run = _Run(ray, job, root, found, block_size, segments_of(options, rates), overwrite=overwrite)
    report = run.all(on_start, on_outcome, fail_fast=fail_fast)
    return replace(report, repeated=len(named_parts) - len(found))


def _found(sources: Any) -> list[Source]:
    """Return the sources that were given."""
    if hasattr(sources, "iter_rows"):
        return [_source_of(row) for row in sources.iter_rows()]
    given = [sources] if isinstance(sources, (str, os.PathLike)) else sources
    return [
        *chain.from_iterable([each] if isinstance(each, Source) else find_sources([os.fspath(each)]) for each in given)
    ]


def _once(sources: Sequence[Source]) -> list[Source]:
    """Return the first source of each part of a file."""
    first = dict(zip(reversed(places_of(sources)), reversed(sources), strict=True))
    return [*first.values()][::-1]


def _source_of(row: Mapping[str, Any]) -> Source:
    """Return the source that a row of a dataset names."""
    if "path" not in row:
        raise OptionError(
            f"a dataset with the columns {', '.join(row)}; expected path and, if wanted, start, end and channel: names "
            "of files, not what they hold, which would be copied through Ray's store"
        )
    (source,) = find_sources([os.fspath(row["path"])])
    start, end, channel = (row.get(name) for name in ("start", "end", "channel"))
    last = math.inf if end is None or math.isnan(end) else float(end)
    return replace(source, start=float(start or 0.0), end=last, channel=channel)


def _described(ray: Any, load: Callable[..., Any], crew: Crew) -> list[Description]:
    """Describe the models as an actor has them: precision and provenance depend on its device."""
    remote = ray.remote(max_retries=1, **crew.resources)(describe)
    try:
        return ray.get(remote.remote(load, crew.device))
    except ray.exceptions.RayTaskError as error:
        if isinstance(error.cause, HearTransformersError):
            raise error.cause from None
        raise HearTransformersError(f"the models cannot be loaded on the cluster: {error.cause}") from error


def _targets(
    root: Store, models: Sequence[Description], output: OutputOptions, timestamps: bool, heard: int | str
) -> tuple[dict[str, Store], list[dict[str, Any]]]:
    """Return the store of each model and separate layer, by its folder, and the settings of each."""
    stores, settings = {}, []
    for model, of_model in zip(models, model_folders(models), strict=True):
        for content in contents_of(
            model, timestamps=timestamps, apart=output.separate_layers, dtype=output.dtype, channel=heard
        ):
            folder = "/".join(filter(None, (of_model, layer_folder(content))))
            stores[folder] = root.within(folder)
            settings.append(content.settings)
    return stores, settings


class _Run:
    """Passes over what is missing, until nothing is."""

    def __init__(
        self,
        ray: Any,
        job: Job,
        root: Store,
        sources: Sequence[Source],
        block_size: int,
        segments: Segments | None,
        *,
        overwrite: bool,
    ) -> None:
        self.ray = ray
        self.job = job
        self.root = root
        self.sources = sources
        self.block_size = block_size
        self.overwrite = overwrite
        self.pieces = [piece for i, source in enumerate(sources) for piece in pieces_of(i, source, segments)]
        self.left = [0] * len(sources)  # pieces without an outcome
        for piece in self.pieces:
            self.left[piece.index] += 1
        self.found: list[list[Outcome]] = [[] for _ in sources]
        self.spent = Spent(devices=job.crew.actors, writers=job.crew.actors)
        self.faults: dict[Part, str] = {}  # errors by which a block failed as a whole
        self.n_passes = 0

    def all(self, on_start: Callable[[int], None], on_outcome: Callable[[Outcome], None], *, fail_fast: bool) -> Report:
        """Embed what is missing; see `embed`."""
        before = self._existing()
        on_start(len(self.sources))
        began = time.monotonic()
        outcomes: list[Outcome] = []
        try:
            for outcome in self._outcomes(before):
                outcomes.append(outcome)
                on_outcome(outcome)
                if fail_fast and outcome.status == "failed":
                    break
            self._reconcile(before)
        finally:
            self._list(outcomes)
        durations = [each.seconds for each in outcomes if each.seconds is not None]
        usage = Usage(len(durations), sum(durations), time.monotonic() - began, self.spent)
        return Report.of(outcomes, self.sources, 0, usage)

    def _existing(self) -> dict[str, dict[str, Shard]]:
        """Read what shards there are in each store, by the folder of the store; refuse those of other settings."""
        found = {folder: store.shards() for folder, store in self.job.stores.items()}
        if not self.overwrite:
            for (folder, shards), settings in zip(found.items(), self.job.settings, strict=True):
                check_settings(self.job.stores[folder], shards.values(), dict(settings))
        return found

    def _outcomes(self, before: Mapping[str, Mapping[str, Shard]]) -> Iterator[Outcome]:
        """Yield the outcome of every source, as soon as that of its last piece is known."""
        for source in self.sources:
            if source.error is not None:
                yield _of(source, "failed", message=str(source.error), error=type(source.error).__name__)
        held = [_places(shards) for shards in before.values()]
        common = (
            {}
            if self.overwrite
            else {part: name for part, name in held[0].items() if all(part in each for each in held)}
        )
        missing = []
        store = next(iter(self.job.stores.values()))
        for piece in self.pieces:
            if piece.part in common:
                yield from self._with(piece, _of(piece.source, "skipped", output=store.place(common[piece.part])))
            else:
                missing.append(piece)
        alone: dict[Part, int] = {}  # times that a part was alone with an actor that died
        size = self.block_size
        while missing:
            done: set[Part] = set()
            for piece, outcome in self._pass(missing, size):
                done.add(piece.part)
                yield from self._with(piece, outcome)
            missing = [piece for piece in missing if piece.part not in done]
            for piece in missing if size == 1 else ():
                alone[piece.part] = alone.get(piece.part, 0) + 1
                if alone[piece.part] == CHANCES:
                    yield from self._with(piece, self._blamed(piece))
            missing = [piece for piece in missing if alone.get(piece.part, 0) < CHANCES]
            size = max(1, size // SHRINKING)

    def _blamed(self, piece: Piece) -> Outcome:
        """Return the outcome of a piece that nothing came of, though it was alone."""
        fault = self.faults.get(piece.part, "the process that embedded it ended; the logs of Ray may say why")
        message = f"{piece.source.path}: was not embedded in {CHANCES} attempts ({fault})"
        return _of(piece.source, "failed", message=message, error="WorkerError")

    def _with(self, piece: Piece, outcome: Outcome) -> Iterator[Outcome]:
        """Take the outcome of a piece; yield that of its source, once it is whole."""
        self.found[piece.index].append(outcome)
        self.left[piece.index] -= 1
        if not self.left[piece.index]:
            yield _joined(self.sources[piece.index], self.found[piece.index])

    def _pass(self, pieces: Sequence[Piece], size: int) -> Iterator[tuple[Piece, Outcome]]:
        """Embed pieces in blocks of one size; what dies with an actor has no outcome."""
        ray, job = self.ray, self.job
        self.n_passes += 1
        if self.n_passes > 1:  # a machine may be gone
            crew = Crew.of(ray.nodes(), job.crew.device, None, job.crew.cores)
            job = replace(job, crew=replace(crew, actors=min(crew.actors, job.crew.actors)))
        blocks = [pieces[i : i + size] for i in range(0, len(pieces), size)]
        rows = [{"number": i, "block": pickle.dumps(block)} for i, block in enumerate(blocks)]
        dataset = ray.data.from_items(rows, override_num_blocks=min(len(rows), MOST_TASKS))
        # As few tasks as keep an actor busy, since they end with it.
        actors = min(job.crew.actors, len(blocks))
        pool = ray.data.ActorPoolStrategy(size=actors, max_tasks_in_flight_per_actor=1 if size == 1 else 2)
        with warnings.catch_warnings():  # the extra "ray" asks for a release that still takes these options
            warnings.filterwarnings("ignore", ".*ray_remote_args", DeprecationWarning)
            options = {**job.crew.resources, **ACTOR_OPTIONS}
            dataset = dataset.map(Embedder, fn_constructor_args=(job,), compute=pool, **options)
        dataset.context.max_errored_blocks = -1
        dataset.context.max_consecutive_actor_init_deaths = FALSE_STARTS * actors
        dataset.context.enable_progress_bars = False
        for row in self._rows(dataset):
            done: Done = pickle.loads(row["done"])
            if done.error is not None:
                raise done.error
            block = blocks[row["number"]]
            if done.fault:
                self.faults |= {piece.part: done.fault for piece in block}
                continue
            self._add(done.spent)
            yield from zip(block, done.outcomes, strict=True)

    def _rows(self, dataset: Dataset) -> Iterator[dict[str, Any]]:
        """Yield the rows of a dataset as they are made."""
        try:
            yield from dataset.iter_rows()
        except self.ray.exceptions.RayError as error:
            raise HearTransformersError(
                f"actors cannot embed on the cluster; what is written is kept, and the same command resumes: {error}"
            ) from error

    def _add(self, spent: Spent) -> None:
        """Add where the time of a block went; actors wait for what blocks them at the same time."""
        for name in ("reading", "resampling", "waiting", "computing", "writing"):
            setattr(self.spent, name, getattr(self.spent, name) + getattr(spent, name))
        self.spent.blocked += spent.blocked / self.job.crew.actors
        self.spent.workers = max(self.spent.workers, spent.workers * self.job.crew.actors)

    def _reconcile(self, before: Mapping[str, Mapping[str, Shard]]) -> None:
        """Remove rows that others replace."""
        current = {piece.part for piece in self.pieces}
        for (folder, store), settings in zip(self.job.stores.items(), self.job.settings, strict=True):
            shards = store.shards()
            old = before[folder]
            for name in [name for name in old if name in shards and old[name].provenance != _as_read(settings)]:
                store.drop(shards.pop(name), [True] * len(old[name].rows))  # with `overwrite` alone
            written = shards.keys() - old.keys()
            reconcile(store, shards, functools.partial(_rank, written, current))

    def _list(self, outcomes: Sequence[Outcome]) -> None:
        """Write the lists of failures and of warnings, see `bulk.journal`."""
        failures = [outcome.as_failure() for outcome in outcomes if outcome.status == "failed"]
        self.root.write_bytes("failures.jsonl", journal.encoded(failures))
        new = [outcome for outcome in outcomes if outcome.status != "skipped"]
        parts = {journal.part_of(outcome.as_part()) for outcome in new}
        kept: list[dict[str, Any]] = []
        with contextlib.suppress(ValueError):  # a list that cannot be read is begun anew
            before = [*journal.lines_of(self.root.read_bytes("warnings.jsonl"))]
            kept = [line for line in before if journal.part_of(line) not in parts]
        told = [{**outcome.as_part(), "warning": text} for outcome in new for text in outcome.warnings]
        self.root.write_bytes("warnings.jsonl", journal.encoded([*kept, *told]))


def _places(shards: Mapping[str, Shard]) -> dict[Part, str]:
    """Return the parts that shards hold, and the name of the shard of each."""
    return {rows.part: shard.name for shard in shards.values() for rows in shard.rows}


def _of(source: Source, status: str, **told: Any) -> Outcome:
    """Return an outcome of a source."""
    return Outcome(str(source.path), status, start=source.start, end=source.end, channel=source.channel, **told)


def _joined(source: Source, outcomes: Sequence[Outcome]) -> Outcome:
    """Return the outcome of a source from those of its pieces: failed if one failed, skipped if all were."""
    if len(outcomes) == 1:
        return outcomes[0]
    statuses = {outcome.status for outcome in outcomes}
    status = next(each for each in ("failed", "written", "skipped") if each in statuses)
    worst = next(outcome for outcome in outcomes if outcome.status == status)
    written = [outcome for outcome in outcomes if outcome.shape is not None]
    told: dict[str, Any] = {"warnings": tuple(dict.fromkeys(chain.from_iterable(each.warnings for each in outcomes)))}
    if status == "written":
        told["shape"] = (sum(each.shape[0] for each in written if each.shape), *(worst.shape or ())[1:])
        told["seconds"] = sum(each.seconds or 0.0 for each in written)
    return _of(source, status, output=worst.output, message=worst.message, error=worst.error, **told)


def _rank(written: Collection[str], current: Collection[Part], shard: Shard, part: Part) -> int:
    """Return how much rows are to be kept: those of files as they are now, of these what this run wrote."""
    return 0 if part not in current else 2 if shard.name in written else 1


def _as_read(settings: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(settings))
