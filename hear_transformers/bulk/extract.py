"""Audio files -> embeddings -> output files: resumable, and a file that fails does not stop the others."""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable, Generator, Iterable, Sequence
from dataclasses import dataclass, replace
from itertools import chain
from pathlib import Path
from typing import Any

from ..audio.clips import pickled_as_call
from ..audio.levels import EACH, MIX
from ..audio.workers import FEW_CLIPS, START_METHOD, Spent, may_have_children
from ..embedding.choices import Resample
from ..embedding.pipeline import KEPT, Clip, Described, Embedded, Model, Remote, embed_each, models_of
from ..errors import HearTransformersError, OptionError
from ..labels import Tag, check_logits, tags_of
from . import background, journal
from .formats import Content, ExistingOutput
from .journal import Failures, Warnings, is_disk_full, is_of_disk
from .mixing import LAYER_FOLDER, MODEL_FOLDER
from .outputs import Destination, Output, OutputOptions, contents_of, jobs_of, model_folders
from .sources import Source
from .table_output import TableOfParts
from .usage import Usage

DEFAULTS = OutputOptions()

READERS_A_WRITER = 6
"""Processes that read for each that writes: to decode a clip of 10 s takes ten times as long as to write its file."""


@pickled_as_call(path="output")
@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one source.

    Attributes
    ----------
    source : as the user would write it
    status : "written", "skipped" (its output exists) or "failed"
    output : file with its embedding, None if it failed; of separate layers, that of the first
    layers : in whose folders, ``layer=4``, such files lie; empty unless layers are separate
    shape : of the embedding, None unless written; of separate layers, that of the first
    shapes : of all that were written
    seconds : duration of the audio, None unless written
    tags : the most probable labels, None if it failed or none were asked for
    models : in whose folders, ``model=passt-base``, its outputs lie; empty for one model, without a folder
    message : why it failed, or how the settings of an output that is kept differ; else empty
    start, end : of the part of the file, in s
    error : class of the exception, empty if none
    warnings : about the audio, each naming the file
    channel : of the source, see there
    """

    source: str
    status: str
    output: Path | None = None
    shape: tuple[int, ...] | None = None
    seconds: float | None = None
    tags: tuple[Tag, ...] | None = None
    message: str = ""
    start: float = 0.0
    end: float = math.inf
    error: str = ""
    warnings: tuple[str, ...] = ()
    channel: int | None = None

    def as_part(self) -> dict[str, Any]:
        """Return which part of which file it is, ready for JSON."""
        channel = {} if self.channel is None else {"channel": self.channel}
        return {
            "file": self.source,
            "start": self.start,
            "end": None if self.end == math.inf else self.end,
            **channel,
        }

    layers: tuple[str, ...] = ()
    models: tuple[str, ...] = ()
    shapes: tuple[tuple[int, ...], ...] = ()

    @property
    def pattern(self) -> str:
        """Path of the output, of several as shells expand it: "layer={4,8}/a.npz"; empty if there is none."""
        path = "" if self.output is None else str(self.output)
        for prefix, names in ((MODEL_FOLDER, self.models), (LAYER_FOLDER, self.layers)):
            if len(names) > 1:
                path = f"{prefix}{{{','.join(names)}}}".join(path.rsplit(f"{prefix}{names[0]}", 1))
        return path

    def as_failure(self) -> dict[str, Any]:
        """Return its line in the list of failures."""
        return {**self.as_part(), "error": self.error, "reason": self.message}


@dataclass(frozen=True, slots=True)
class Report:
    """Outcomes of all sources, in the order in which they were named.

    Attributes
    ----------
    repeated : sources that are the same part of a file as one before, and so have its outcome
    usage : where the time went
    """

    written: list[Outcome]
    skipped: list[Outcome]
    failed: list[Outcome]
    repeated: int = 0
    usage: Usage | None = None

    @staticmethod
    def of(outcomes: Iterable[Outcome], sources: Iterable[Source], repeated: int, usage: Usage) -> Report:
        """Sort outcomes by status, and in the order of the sources."""
        order: dict[tuple[Any, ...], int] = {}
        for i, source in enumerate(sources):
            order.setdefault((str(source.path), source.start, source.end, source.channel), i)
        ordered = sorted(outcomes, key=lambda each: order[each.source, each.start, each.end, each.channel])
        statuses = ("written", "skipped", "failed")
        written, skipped, failed = ([each for each in ordered if each.status == status] for status in statuses)
        return Report(written, skipped, failed, repeated, usage)


def extract(
    model: Model | Remote | Sequence[Model],
    sources: Sequence[Source],
    out: str | os.PathLike[str],
    options: OutputOptions = DEFAULTS,
    *,
    channel: int | None = None,
    timestamps: bool = False,
    n_labels: int = 0,
    fail_fast: bool = False,
    keep_damaged: bool = False,
    workers: int = 0,
    resample: Resample = "auto",
    spent: Spent | None = None,
    on_start: Callable[[int], None] = lambda n_outcomes: None,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Embed audio files and write the embeddings.

    A file that fails is reported, and the others are written; see `pipeline.embed`. Running the same call again resumes
    an interrupted run. An existing output is kept if the content of its audio is unchanged, and replaced if it changed.
    Beside outputs of other settings nothing is embedded, see `mixing`. Sources that are the same part of a file are
    embedded once, and share an output; a table has the rows of each, in the order of the sources.

    Parameters
    ----------
    model : what embeds; on several devices a `replicas.Replicas`; several models embed what is decoded once for all of
        the same sample rate, each into a folder of its own, ``model=passt-base``, as if it were alone there
    sources : from `sources.find_sources` or `manifest.read_manifest`
    out : folder of the outputs, or the one output, named with the suffix of its format; a slash at its end makes it a
        folder in any case
    options : how embeddings are stored
    channel : of every file, from 1; None for the mean of all, or that of the source, see `sources.each_channel`
    timestamps : embeddings along time instead of one per file
    n_labels : labels per file, see `labels.top_tags`; if not 0, files with an existing output are embedded again for
        their labels, and the output is kept
    fail_fast : stop at the first failure
    keep_damaged : take what there is of damaged files, with a warning; their outputs are those of other settings for a
        run that does not
    workers : processes that read audio, see `pipeline.embed`
    resample : where, see `pipeline.embed`; outputs are the same up to rounding, and may be mixed
    spent : takes the seconds of reading, of the network and of writing
    on_start : called before the first is embedded, with the number of outcomes to come
    on_outcome : called as soon as a source is finished

    Raises
    ------
    OptionError : `out` is a single file for several sources, the format needs a package that is not installed, labels
        are asked for and the embeddings are not logits, see `labels.check_logits`, or separate layers of a model of
        another package; outputs that exist were made with other settings
    DiskFullError : the disk is full
    HearTransformersError : the disk fails, or the folder cannot be written
    """
    models = models_of(model)
    for each in models if n_labels else ():
        check_logits(each, timestamps=timestamps)
    if n_labels and len(models) > 1:
        raise OptionError("labels are those of one model; leave out the labels, or the other models")
    destination = Destination.of(out, options)
    jobs, failed = jobs_of(sources, destination)
    heard = channel or (EACH if any(source.channel for source in sources) else MIX)
    settings: dict[str, Any] = {"timestamps": timestamps, "apart": options.separate_layers, "dtype": options.dtype}
    outcomes: list[Outcome] = []
    with journal.explained(destination.folder), contextlib.ExitStack() as stack:
        scratch = stack.enter_context(journal.scratch(destination.folder))
        targets = []
        for each, folder in zip(models, model_folders(models), strict=True):
            place = destination.within(folder)
            contents = contents_of(each, channel=heard, **settings)
            outputs = [place.output(content, scratch) for content in contents]
            for output in outputs:
                stack.enter_context(output)
                output.start(jobs)
            layers = tuple(str(content.layer) for content in contents if content.separate)
            targets.append(_Target(each, folder, place, contents, outputs, layers))
        run = _Run(model, targets, n_labels, channel, Spent() if spent is None else spent, keep_damaged=keep_damaged)
        once: dict[str, Source] = {}  # by their outputs
        for job in jobs:
            once.setdefault(str(job.name), job)
        prepared = run.prepare(once.values())
        if any(isinstance(each, _PendingJob) for each in prepared):
            for target in targets:
                target.place.check_unmixed(target.contents, jobs)
        failures = Failures(destination.folder / f"failures{options.shard.suffix}.jsonl")
        warnings = Warnings(destination.folder / f"warnings{options.shard.suffix}.jsonl")
        began = time.monotonic()
        on_start(len(failed) + len(prepared))
        embedded = run.embed(prepared, timestamps=timestamps, scratch=scratch, workers=workers, resample=resample)
        # Closed here, whatever happens, so that no worker outlives an interruption.
        stack.enter_context(contextlib.closing(embedded))
        for outcome in chain((_failure(source, source.error) for source in failed), embedded):
            outcomes.append(outcome)
            if outcome.status == "failed":
                failures.add(outcome.as_failure())
            if outcome.warnings or (warnings.lines and outcome.status != "skipped"):
                warnings.replace(outcome.as_part(), outcome.warnings)
            on_outcome(outcome)
            if outcome.status == "failed" and fail_fast:
                break
        else:
            for target in targets:
                for output in target.outputs:
                    output.finish(jobs)
    durations = [each.seconds for each in outcomes if each.seconds is not None]
    usage = Usage(len(durations), sum(durations), time.monotonic() - began, run.spent)
    return Report.of(outcomes, sources, len(jobs) - len(prepared), usage)


# One run


Existing = Sequence[ExistingOutput | None]
"""What exists of a job in each output of a model."""


@dataclass(frozen=True, slots=True)
class _Target:
    """A model, and where its embeddings go: in a folder of its own if there are several."""

    model: Described
    folder: str
    place: Destination
    contents: list[Content]
    outputs: Sequence[Output]
    layers: tuple[str, ...]  # in folders of their own


@dataclass(frozen=True, slots=True)
class _PendingJob:
    """A job to embed, and what exists of it for each model."""

    job: Source
    clip: Clip
    existing: tuple[Existing, ...]


class _Run:
    """Decides what is embedded and what is written."""

    def __init__(
        self,
        model: Model | Remote | Sequence[Model],
        targets: Sequence[_Target],
        n_labels: int,
        channel: int | None,
        spent: Spent,
        *,
        keep_damaged: bool,
    ) -> None:
        self.model = model
        self.targets = targets
        self.n_labels = n_labels
        self.channel = channel
        self.spent = spent
        self.keep_damaged = keep_damaged

    def prepare(self, jobs: Iterable[Source]) -> list[_PendingJob | Outcome]:
        """Look up the existing outputs of jobs: the outcome of each that needs no embedding."""
        return [self._prepare(job) for job in jobs]

    def embed(
        self,
        prepared: Iterable[_PendingJob | Outcome],
        *,
        timestamps: bool,
        scratch: Path,
        workers: int,
        resample: Resample,
    ) -> Generator[Outcome, None, None]:
        """Embed and write jobs; yield the outcome of each, those that need no embedding first."""
        pending = []
        for each in prepared:
            if isinstance(each, Outcome):
                yield each
            else:
                pending.append(each)
        clips = (each.clip for each in pending)
        reading: dict[str, Any] = {"hashes": True, "keep_damaged": self.keep_damaged, "workers": workers}
        reading |= {"timestamps": timestamps, "scratch": scratch, "batch_size": None, "resample": resample}
        embeddings = embed_each(self.model, clips, spent=self.spent, **reading)

        def complete(embedded: tuple[Embedded, ...]) -> Outcome:
            return self.complete(pending[embedded[0].index], embedded)

        # Files need nothing of each other; few of them are written before a process has started. A table is written
        # by one thread alone: it is written seldom, and h5py's lock is not made for others that fork.
        has_table = any(isinstance(output, TableOfParts) for target in self.targets for output in target.outputs)
        is_forking = workers and len(pending) > FEW_CLIPS and START_METHOD == "fork" and may_have_children()
        if is_forking and not has_table:
            writers = 1 + workers // READERS_A_WRITER
            outcomes = background.in_process(complete, embeddings, self.spent, writers)
        else:
            outcomes = (background.in_turn if has_table else background.in_thread)(complete, embeddings, self.spent)
        with contextlib.closing(embeddings), contextlib.closing(outcomes):
            yield from outcomes

    def _prepare(self, job: Source) -> _PendingJob | Outcome:
        try:
            existing = tuple([self._existing(output, job) for output in target.outputs] for target in self.targets)
        except OptionError:
            raise
        except HearTransformersError as error:
            return _failure(job, error)
        known = ("",) if self.n_labels else tuple(map(_known, existing))
        if set(known) == {KEPT}:
            skipped = [self._skipped(job, target, each) for target, each in zip(self.targets, existing, strict=True)]
            return self._joined(skipped)
        # Content that every model has is not decoded.
        hashes = set(known) - {KEPT}
        channel = self.channel if job.channel is None else job.channel
        skip_sha256 = hashes.pop() if len(hashes) == 1 else ""
        clip = Clip(job.path, job.start, job.end, skip_sha256=skip_sha256, channel=channel, known=known)
        return _PendingJob(job, clip, existing)

    def _existing(self, output: Output, job: Source) -> ExistingOutput | None:
        """Return the existing output of a job; one of damaged audio is of other settings unless such is kept."""
        existing = output.existing(job)
        if existing is None or not existing.is_damaged or self.keep_damaged:
            return existing
        return ExistingOutput(
            f"{output.path(job)} is kept, but holds what was there of a damaged file (--keep-damaged); "
            "--overwrite replaces it"
        )

    def complete(self, pending: _PendingJob, embedded: Sequence[Embedded]) -> Outcome:
        """Write the embeddings of each model to the outputs that lack it; return the outcome of their source."""
        parts = zip(self.targets, pending.existing, embedded, strict=True)
        return self._joined([self._complete(pending.job, *each) for each in parts])

    def _complete(self, job: Source, target: _Target, existing: Existing, embedded: Embedded) -> Outcome:
        if isinstance(embedded.error, OSError) and is_disk_full(embedded.error):
            raise embedded.error
        if embedded.error is not None:
            return _failure(job, embedded.error, embedded.warnings)
        if embedded.embedding is None:
            return self._skipped(job, target, existing)
        try:
            tags = tags_of(target.model, embedded.embedding, self.n_labels) if self.n_labels else None
            if any(existing):
                path = target.outputs[0].path(job)
                existing = [_if_unchanged(each, job, embedded.sha256, path) for each in existing]
            missing = [output for output, each in zip(target.outputs, existing, strict=True) if each is None]
            if not missing:
                return self._skipped(job, target, existing, tags, embedded.warnings)
            shapes = [output.write(job, embedded) for output in missing]
        except OSError as error:
            if is_of_disk(error) or any(isinstance(output, TableOfParts) for output in target.outputs):
                raise  # the next would fail too, or the part that is spoiled holds others
            return _failure(job, error, embedded.warnings)
        except HearTransformersError as error:
            return _failure(job, error, embedded.warnings)
        told = {"tags": tags, "warnings": embedded.warnings}
        written = {"shape": shapes[0], "shapes": tuple(shapes), "seconds": embedded.seconds}
        return self._outcome(job, target, "written", **written, **told)

    def _joined(self, outcomes: Sequence[Outcome]) -> Outcome:
        """Return the outcome of a source from those of all models: failed if one failed, written if one was written."""
        if len(outcomes) == 1:
            return outcomes[0]
        warnings = tuple(dict.fromkeys(chain.from_iterable(each.warnings for each in outcomes)))
        models = tuple(target.folder.removeprefix(MODEL_FOLDER) for target in self.targets)
        failed = [(each, model) for each, model in zip(outcomes, models, strict=True) if each.status == "failed"]
        if failed:
            first, model = failed[0]
            of_all = len(failed) == len(outcomes) and len({each.message for each, _ in failed}) == 1
            message = first.message if of_all else f"{first.message} ({model})"
            return replace(first, message=message, warnings=warnings)
        first = next((each for each in outcomes if each.status == "written"), outcomes[0])
        shapes = tuple(chain.from_iterable(each.shapes for each in outcomes))
        message = next((each.message for each in outcomes if each.message), "")
        return replace(
            first, models=models, output=outcomes[0].output, shapes=shapes, message=message, warnings=warnings
        )

    def _skipped(
        self,
        job: Source,
        target: _Target,
        existing: Existing,
        tags: tuple[Tag, ...] | None = None,
        warnings: tuple[str, ...] = (),
    ) -> Outcome:
        mismatch = next((each.mismatch for each in existing if each and each.mismatch), "")
        return self._outcome(job, target, "skipped", tags=tags, message=mismatch, warnings=warnings)

    def _outcome(self, job: Source, target: _Target, status: str, **rest: Any) -> Outcome:
        rest |= {"start": job.start, "end": job.end, "channel": job.channel, "layers": target.layers}
        return Outcome(str(job.path), status, target.outputs[0].path(job), **rest)


def _known(existing: Existing) -> str:
    """Return the content that all outputs of a model hold, see `Clip.known`."""
    if all(each and not each.sha256 for each in existing):
        return KEPT
    # If an output is missing, or two were made from different audio, it is embedded in any case.
    hashes = {each.sha256 if each else "" for each in existing if each is None or each.sha256}
    return hashes.pop() if len(hashes) == 1 else ""


def _if_unchanged(existing: ExistingOutput | None, job: Source, sha256: str, path: Path) -> ExistingOutput | None:
    """Return the existing output of a job, None if its audio changed, so that it is replaced."""
    if existing is None or not existing.sha256 or existing.sha256 == sha256:
        return existing
    if existing.file == job.file:
        return None
    return ExistingOutput(f"{path} is kept, but was made from {existing.file}; --overwrite replaces it")


def _failure(source: Source, error: Exception | None, warnings: tuple[str, ...] = ()) -> Outcome:
    path = str(source.path)
    reason = str(error) if isinstance(error, HearTransformersError) else f"{type(error).__name__}: {error}"
    message = reason if path in reason else f"{path}: {reason}"
    failed = Outcome(path, "failed", message=message, start=source.start, end=source.end, channel=source.channel)
    return replace(failed, error=type(error).__name__, warnings=warnings)
