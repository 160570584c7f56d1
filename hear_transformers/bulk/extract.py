"""Audio files -> embeddings -> output files; what failed, and why, without stopping the rest; resumable."""

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
from .formats import DTYPES
from .items import ExistingOutput, Job
from .journal import Failures, is_disk_full
from .outputs import ALL, Destination, Output, Shard, contents_of, items_of
from .sources import Source
from .table_output import TableOfParts

WAITING = 32
"""Embeddings that wait to be written while the next are computed."""

T = TypeVar("T")
Result = TypeVar("Result")


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source.

    Attributes
    ----------
    source : as the user would write it
    status : "written", "skipped" (its output was there already) or "failed"
    output : file with its embedding, None if it failed; where layers are apart, that of the first
    shape : of the embedding, None unless written
    seconds : duration of the audio, None unless written
    tags : the likeliest labels, None if it failed or none were asked for
    message : why it failed, or what is doubtful about the output that is kept; else empty
    start, end : of the part of the file, in s
    error : class of what failed, empty if nothing did
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
    """What became of all sources, in the order in which they were named."""

    written: list[Outcome] = field(default_factory=list)
    skipped: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def extract(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    format: str = "npz",
    *,
    timestamps: bool = False,
    overwrite: bool = False,
    n_labels: int = 0,
    dtype: str = DTYPES[0],
    separate_layers: bool = False,
    shard: Shard = ALL,
    fail_fast: bool = False,
    workers: int = 0,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Embed audio files and write the embeddings.

    A file that fails is reported and the others are written; see `pipeline.embed`. A run that was stopped, however it
    was, is gone on with by the same call: an output that was made with these settings from audio of this content is
    kept, one of other content is made anew, and one of other settings is kept and doubted.

    Parameters
    ----------
    model : what embeds
    sources : from `sources.find` or `manifest.read`
    out : folder of the outputs, or the one output, named with the suffix of its format
    format : a key of `formats.FILES` or `formats.TABLES`
    timestamps : embeddings along time instead of one per file
    overwrite : make outputs anew that are there already
    n_labels : how many labels to give each file, see `labels.top_tags`; with any, a file whose output is there already
        is heard again for them, and the output stays as it is
    dtype : what the numbers are stored as, one of `formats.DTYPES`
    separate_layers : each layer of the model goes into a folder of its own, ``layer=8``, as if it were the only one
    shard : which sources are embedded; others are left to other runs, which may write to the same place
    fail_fast : stop at the first failure
    workers : processes that read audio, see `pipeline.embed`
    on_outcome : called as soon as a source is finished

    Raises
    ------
    OptionError : `out` is a single file for several sources, the format needs something that is not installed, labels
        are asked for and the embeddings are not logits, see `labels.check_logits`, or layers apart of a model of others
    DiskFullError : the disk is full
    """
    if n_labels:
        check_logits(model, timestamps=timestamps)
    where = Destination.of(out, format, shard)
    items, failed = items_of(sources, where, shard)
    contents = contents_of(model, timestamps=timestamps, apart=separate_layers, dtype=dtype)
    report = _Reporter(Failures(where.failures), fail_fast, on_outcome)
    with journal.disk_full_as_error(where.folder), contextlib.suppress(_Stopped), contextlib.ExitStack() as stack:
        scratch = stack.enter_context(journal.scratch(where.folder))
        outputs = [where.output(content, overwrite=overwrite, scratch=scratch) for content in contents]
        for output in outputs:
            stack.enter_context(output)
        for source in failed:
            report.record(_failure(source, source.error))
        run = _Run(model, outputs, n_labels)
        tasks = [task for item in items if (task := run.prepare(item, report))]
        embeddings = embed(
            model,
            (task.clip for task in tasks),
            timestamps=timestamps,
            hashes=True,
            scratch=scratch,
            workers=workers,
        )
        # Closed here, whatever happens, so that no worker outlives an interruption.
        stack.enter_context(contextlib.closing(embeddings))
        outcomes = _in_background(lambda embedded: run.complete(tasks[embedded.index], embedded), embeddings)
        stack.enter_context(contextlib.closing(outcomes))
        for outcome in outcomes:
            report.record(outcome)
        for output in outputs:
            output.finish(items)
    return report.sorted(sources)


# One run


@dataclass(frozen=True, slots=True)
class _Task:
    """What to embed, and what is there already in each output."""

    item: Job
    clip: Clip
    held: tuple[ExistingOutput | None, ...]


class _Run:
    """Decides what is embedded and what is written."""

    def __init__(self, model: Model, outputs: Sequence[Output], n_labels: int) -> None:
        self.model = model
        self.outputs = outputs
        self.n_labels = n_labels

    def prepare(self, item: Job, report: _Reporter) -> _Task | None:
        """Look at what is there; None if there is nothing to do, which is reported."""
        source = item.source
        try:
            held = tuple(output.held(item) for output in self.outputs)
        except HearTransformersError as error:
            report.record(_failure(source, error))
            return None
        if not self.n_labels and all(each and not each.sha256 for each in held):
            report.record(self._skipped(item, held))
            return None
        # Where an output is missing, or two were made from different audio, it is embedded in any case.
        contents = {each.sha256 if each else "" for each in held if each is None or each.sha256}
        known = contents.pop() if len(contents) == 1 and not self.n_labels else ""
        return _Task(item, Clip(source.path, source.start, source.end, skip_sha256=known), held)

    def complete(self, task: _Task, embedded: Embedded) -> Outcome:
        """Write an embedding where it is wanted, and say what became of its source."""
        item = task.item
        if isinstance(embedded.error, OSError) and is_disk_full(embedded.error):
            raise embedded.error
        if embedded.error is not None:
            return _failure(item.source, embedded.error)
        if embedded.embedding is None:
            return self._skipped(item, task.held)
        try:
            tags = tags_of(self.model, embedded.embedding, self.n_labels) if self.n_labels else None
            held = [_held_now(held, task, embedded.sha256, self.outputs[0].path(item)) for held in task.held]
            missing = [output for output, each in zip(self.outputs, held, strict=True) if each is None]
            if not missing:
                return self._skipped(item, held, tags)
            shapes = [output.write(item, embedded) for output in missing]
        except OSError as error:
            if is_disk_full(error) or any(isinstance(output, TableOfParts) for output in self.outputs):
                raise  # the next would fail too, or a part is spoiled that holds others
            return _failure(item.source, error)
        except HearTransformersError as error:
            return _failure(item.source, error)
        return self._outcome(item, "written", shape=shapes[0], seconds=embedded.seconds, tags=tags)

    def _skipped(
        self, item: Job, held: Iterable[ExistingOutput | None], tags: tuple[Tag, ...] | None = None
    ) -> Outcome:
        doubt = next((each.doubt for each in held if each and each.doubt), "")
        return self._outcome(item, "skipped", tags=tags, message=doubt)

    def _outcome(self, item: Job, status: str, **rest: Any) -> Outcome:
        source = item.source
        output = self.outputs[0].path(item)
        return Outcome(str(source.path), status, output, start=source.start, end=source.end, **rest)


def _held_now(held: ExistingOutput | None, task: _Task, sha256: str, output: Path) -> ExistingOutput | None:
    """Tell what is there for a source of this content, None if it is to be written."""
    if held is None or not held.sha256 or held.sha256 == sha256:
        return held
    if held.file == os.path.abspath(task.item.source.path):
        return None  # it changed
    return ExistingOutput(f"{output} is kept, but was made from {held.file}; overwrite makes it anew")


def _failure(source: Source, error: Exception | None) -> Outcome:
    path = str(source.path)
    reason = str(error) if isinstance(error, HearTransformersError) else f"{type(error).__name__}: {error}"
    message = reason if path in reason else f"{path}: {reason}"
    return Outcome(path, "failed", message=message, start=source.start, end=source.end, error=type(error).__name__)


def _in_background(function: Callable[[T], Result], items: Iterable[T]) -> Generator[Result, None, None]:
    """Apply a function to items, in order, in a thread of its own while the next ones are made."""
    waiting: deque[Future[Result]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for item in items:
            waiting.append(pool.submit(function, item))
            while waiting and (waiting[0].done() or len(waiting) > WAITING):
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()


# What is told


class _Stopped(Exception):
    """A source failed, and the run was to stop then."""


class _Reporter:
    """Collects outcomes, tells them, and lists what failed."""

    def __init__(self, failures: Failures, fail_fast: bool, on_outcome: Callable[[Outcome], None]) -> None:
        self.failures = failures
        self.fail_fast = fail_fast
        self.on_outcome = on_outcome
        self.report = Report()

    def record(self, outcome: Outcome) -> None:
        """Note what became of a source; raise _Stopped if that ends the run."""
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
        """Give all outcomes in the order of the sources."""
        order = {(str(source.path), source.start, source.end): i for i, source in enumerate(sources)}
        for outcomes in (self.report.written, self.report.skipped, self.report.failed):
            outcomes.sort(key=lambda outcome: order[outcome.source, outcome.start, outcome.end])
        return self.report
