"""Audio files -> embeddings -> output files: resumable, and a file that fails does not stop the others."""

from __future__ import annotations

import contextlib
import math
import os
from collections import deque
from collections.abc import Callable, Generator, Iterable, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

from ..embedding.pipeline import Clip, Embedded, Model, embed
from ..errors import HearTransformersError
from ..labels import Tag, check_logits, tags_of
from . import journal
from .items import ExistingOutput, Job
from .journal import Failures, is_disk_full
from .outputs import Destination, Output, OutputOptions, contents_of, jobs_of
from .sources import Source
from .table_output import TableOfParts

WAITING = 32
"""Embeddings that wait to be written while the next are computed."""

DEFAULTS = OutputOptions()

T = TypeVar("T")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """The outcome of one source.

    Attributes
    ----------
    source : as the user would write it
    status : "written", "skipped" (its output exists) or "failed"
    output : file with its embedding, None if it failed; of separate layers, that of the first
    shape : of the embedding, None unless written
    seconds : duration of the audio, None unless written
    tags : the most probable labels, None if it failed or none were asked for
    message : why it failed, or how the settings of an output that is kept differ; else empty
    start, end : of the part of the file, in s
    error : class of the exception, empty if none
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


@dataclass(frozen=True, slots=True)
class Report:
    """Outcomes of all sources, in the order in which they were named."""

    written: list[Outcome] = field(default_factory=list)
    skipped: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def extract(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    options: OutputOptions = DEFAULTS,
    *,
    timestamps: bool = False,
    n_labels: int = 0,
    fail_fast: bool = False,
    workers: int = 0,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Embed audio files and write the embeddings.

    A file that fails is reported, and the others are written; see `pipeline.embed`. Running the same call again resumes
    an interrupted run. An existing output is kept if its settings and the content of its audio are unchanged, replaced
    if its audio changed, and kept with a message if its settings differ.

    Parameters
    ----------
    model : what embeds
    sources : from `sources.find_sources` or `manifest.read_manifest`
    out : folder of the outputs, or the one output, named with the suffix of its format
    options : how embeddings are stored
    timestamps : embeddings along time instead of one per file
    n_labels : labels per file, see `labels.top_tags`; if not 0, files with an existing output are embedded again for
        their labels, and the output is kept
    fail_fast : stop at the first failure
    workers : processes that read audio, see `pipeline.embed`
    on_outcome : called as soon as a source is finished

    Raises
    ------
    OptionError : `out` is a single file for several sources, the format needs a package that is not installed, labels
        are asked for and the embeddings are not logits, see `labels.check_logits`, or separate layers of a model of
        another package
    DiskFullError : the disk is full
    """
    if n_labels:
        check_logits(model, timestamps=timestamps)
    destination = Destination.of(out, options)
    jobs, failed = jobs_of(sources, destination)
    contents = contents_of(model, timestamps=timestamps, apart=options.separate_layers, dtype=options.dtype)
    report = _Reporter(Failures(destination.failures), fail_fast, on_outcome)
    with journal.disk_full_as_error(destination.folder), contextlib.suppress(_Stopped), contextlib.ExitStack() as stack:
        scratch = stack.enter_context(journal.scratch(destination.folder))
        outputs = [destination.output(content, scratch) for content in contents]
        for output in outputs:
            stack.enter_context(output)
        for source in failed:
            report.record(_failure(source, source.error))
        extraction = _Extraction(model, outputs, n_labels)
        pending = [each for job in jobs if (each := extraction.prepare(job, report))]
        # Closed here, whatever happens, so that no worker outlives an interruption.
        outcomes = extraction.run(pending, timestamps=timestamps, scratch=scratch, workers=workers)
        stack.enter_context(contextlib.closing(outcomes))
        for outcome in outcomes:
            report.record(outcome)
        for output in outputs:
            output.finish(jobs)
    return report.sorted(sources)


# One run


@dataclass(frozen=True, slots=True)
class _PendingJob:
    """A job to embed, and what exists of it in each output."""

    job: Job
    clip: Clip
    existing: tuple[ExistingOutput | None, ...]


class _Extraction:
    """Decides what is embedded and what is written."""

    def __init__(self, model: Model, outputs: Sequence[Output], n_labels: int) -> None:
        self.model = model
        self.outputs = outputs
        self.n_labels = n_labels

    def prepare(self, job: Job, report: _Reporter) -> _PendingJob | None:
        """Look up the existing outputs of a job; report it and return None if there is nothing to embed."""
        source = job.source
        try:
            existing = tuple(output.existing(job) for output in self.outputs)
        except HearTransformersError as error:
            report.record(_failure(source, error))
            return None
        if not self.n_labels and all(each and not each.sha256 for each in existing):
            report.record(self._skipped(job, existing))
            return None
        # If an output is missing, or two were made from different audio, it is embedded in any case.
        hashes = {each.sha256 if each else "" for each in existing if each is None or each.sha256}
        known = hashes.pop() if len(hashes) == 1 and not self.n_labels else ""
        return _PendingJob(job, Clip(source.path, source.start, source.end, skip_sha256=known), existing)

    def run(
        self, pending: Sequence[_PendingJob], *, timestamps: bool, scratch: Path, workers: int
    ) -> Generator[Outcome, None, None]:
        """Embed and write jobs; yield the outcome of each, in order."""
        clips = (each.clip for each in pending)
        embeddings = embed(self.model, clips, timestamps=timestamps, hashes=True, scratch=scratch, workers=workers)
        with contextlib.closing(embeddings):
            outcomes = _in_background(lambda embedded: self.complete(pending[embedded.index], embedded), embeddings)
            with contextlib.closing(outcomes):
                yield from outcomes

    def complete(self, pending: _PendingJob, embedded: Embedded) -> Outcome:
        """Write an embedding to the outputs that lack it; return the outcome of its source."""
        job = pending.job
        if isinstance(embedded.error, OSError) and is_disk_full(embedded.error):
            raise embedded.error
        if embedded.error is not None:
            return _failure(job.source, embedded.error)
        if embedded.embedding is None:
            return self._skipped(job, pending.existing)
        try:
            tags = tags_of(self.model, embedded.embedding, self.n_labels) if self.n_labels else None
            path = self.outputs[0].path(job)
            existing = [_if_unchanged(each, job, embedded.sha256, path) for each in pending.existing]
            missing = [output for output, each in zip(self.outputs, existing, strict=True) if each is None]
            if not missing:
                return self._skipped(job, existing, tags)
            shapes = [output.write(job, embedded) for output in missing]
        except OSError as error:
            if is_disk_full(error) or any(isinstance(output, TableOfParts) for output in self.outputs):
                raise  # the next would fail too, or the part that is spoiled holds others
            return _failure(job.source, error)
        except HearTransformersError as error:
            return _failure(job.source, error)
        return self._outcome(job, "written", shape=shapes[0], seconds=embedded.seconds, tags=tags)

    def _skipped(
        self, job: Job, existing: Iterable[ExistingOutput | None], tags: tuple[Tag, ...] | None = None
    ) -> Outcome:
        mismatch = next((each.mismatch for each in existing if each and each.mismatch), "")
        return self._outcome(job, "skipped", tags=tags, message=mismatch)

    def _outcome(self, job: Job, status: str, **rest: Any) -> Outcome:
        source = job.source
        output = self.outputs[0].path(job)
        return Outcome(str(source.path), status, output, start=source.start, end=source.end, **rest)


def _if_unchanged(existing: ExistingOutput | None, job: Job, sha256: str, path: Path) -> ExistingOutput | None:
    """Return the existing output of a job, None if its audio changed, so that it is replaced."""
    if existing is None or not existing.sha256 or existing.sha256 == sha256:
        return existing
    if existing.file == os.path.abspath(job.source.path):
        return None
    return ExistingOutput(f"{path} is kept, but was made from {existing.file}; use overwrite to replace it")


def _failure(source: Source, error: Exception | None) -> Outcome:
    path = str(source.path)
    reason = str(error) if isinstance(error, HearTransformersError) else f"{type(error).__name__}: {error}"
    message = reason if path in reason else f"{path}: {reason}"
    return Outcome(path, "failed", message=message, start=source.start, end=source.end, error=type(error).__name__)


def _in_background(function: Callable[[T], Result], items: Iterable[T]) -> Generator[Result, None, None]:
    """Apply a function to items, in order, in another thread, while the next items are computed."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (waiting[0].done() or len(waiting) > WAITING):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# Reports


class _Stopped(Exception):
    """A source failed in a run with `fail_fast`."""


class _Reporter:
    """Collects outcomes, passes them on, and lists failures."""

    def __init__(self, failures: Failures, fail_fast: bool, on_outcome: Callable[[Outcome], None]) -> None:
        self.failures = failures
        self.fail_fast = fail_fast
        self.on_outcome = on_outcome
        self.report = Report()

    def record(self, outcome: Outcome) -> None:
        """Record the outcome of a source; raise _Stopped if that ends the run."""
        getattr(self.report, outcome.status).append(outcome)
        if outcome.status == "failed":
            self.failures.add(
                {
                    "file": outcome.source,
                    "start": outcome.start,
                    "end": None if outcome.end == math.inf else outcome.end,
                    "error": outcome.error,
                    "reason": outcome.message,
                }
            )
        self.on_outcome(outcome)
        if outcome.status == "failed" and self.fail_fast:
            raise _Stopped

    def sorted(self, sources: Sequence[Source]) -> Report:
        """Return the report, with outcomes in the order of the sources."""
        order = {(str(source.path), source.start, source.end): i for i, source in enumerate(sources)}
        for outcomes in (self.report.written, self.report.skipped, self.report.failed):
            outcomes.sort(key=lambda outcome: order[outcome.source, outcome.start, outcome.end])
        return self.report
