"""What `embed-audio` shows of files: each as it comes, and all of them at the end."""

from __future__ import annotations

import json
import math
import sys
from typing import TYPE_CHECKING, Any, TextIO

import click

from .failures import one_line
from .progress import LinesOfProgress

if TYPE_CHECKING:
    from hear_transformers.bulk.extract import Outcome, Report
    from hear_transformers.bulk.outputs import OutputOptions

FEW_FILES = 10
"""Files that are listed one per line at the end; more are only counted."""

FEW_WARNINGS = 3
"""Warnings that are printed at the end; more are only counted."""

LONG_RUN_SECONDS = 60.0
"""From here on, or for more than `FEW_FILES` that were embedded, what limited a run is told."""


class Progress:
    """Shows outcomes as they come: a bar or lines, and errors, on stderr; JSON or labels on stdout."""

    def __init__(self, *, quiet: bool, as_json: bool, channel: int | None = None) -> None:
        self.channel = channel  # of every file
        self.hidden = quiet or as_json
        self.as_json = as_json
        self.bar: Any = None
        self.lines: LinesOfProgress | None = None
        self.n_left = 0  # outcomes to come
        self.last: dict[str, Any] = {}  # the last record, to which is added what limited the run

    def __enter__(self) -> Progress:
        return self

    def finish(self, report: Report) -> None:
        """Show what limited a run that took its time."""
        usage = report.usage
        assert usage is not None
        if usage.n_clips <= FEW_FILES and usage.seconds < LONG_RUN_SECONDS:
            return
        if self.last:
            self.last["run"] = usage.as_record()
        if not self.hidden:
            self.write(str(usage), sys.stderr)

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        if self.last:
            click.echo(json.dumps(self.last))
        if self.bar is not None:
            self.bar.close()
        if self.lines is not None and kind is None:
            self.lines.finish()

    def start(self, total: int) -> None:
        """Take note of the number of outcomes to come."""
        self.n_left = total
        if self.hidden:
            return
        if sys.stderr.isatty():
            from tqdm import tqdm

            self.bar = tqdm(total=total, unit="file", file=sys.stderr)
        elif total > FEW_FILES:
            self.lines = LinesOfProgress(total, "files")
            self.lines.start("Embedding")

    def show(self, outcome: Outcome) -> None:
        """Show the outcome of one source."""
        failed = outcome.status == "failed"
        if failed:
            self.write(one_line(f"Error: {outcome.message}"), sys.stderr)
        self.n_left -= 1
        if self.as_json:
            record = as_record(outcome) | ({"channel": self.channel} if self.channel else {})
            if self.n_left:
                click.echo(json.dumps(record))
            else:
                self.last = record
        if not self.hidden and outcome.tags:
            lines = (f"\n  {tag.probability:.3f}  {tag.label}" for tag in outcome.tags)
            self.write(one_line(outcome.source) + "".join(lines), sys.stdout)
        if self.bar is not None:
            self.bar.update()
        if self.lines is not None:
            self.lines.update(failed=failed, worked=outcome.status == "written", seconds=outcome.seconds or 0.0)

    def write(self, text: str, file: TextIO | None = None) -> None:
        """Print beside the bar, which moves down; on stdout by default."""
        file = file or sys.stdout
        if self.bar is None:
            click.echo(text, file, err=file is sys.stderr)
        else:
            self.bar.write(text, file=file)


def as_record(outcome: Outcome) -> dict[str, Any]:
    """Return the JSON object of one source."""
    failed = outcome.status == "failed"
    return {
        "input": outcome.source,
        "start": outcome.start,
        "end": None if outcome.end == math.inf else outcome.end,
        "channel": outcome.channel,
        "output": None if outcome.output is None else str(outcome.output),
        **({"layers": outcome.layers} if outcome.layers else {}),
        **({"models": outcome.models} if outcome.models else {}),
        "status": outcome.status,
        "shape": outcome.shape,
        "seconds": outcome.seconds,
        "tags": None if outcome.tags is None else [tag._asdict() for tag in outcome.tags],
        "error": outcome.message if failed else None,
        "warning": "; ".join(filter(None, ["" if failed else outcome.message, *outcome.warnings])) or None,
    }


def summarise(report: Report, stored: OutputOptions) -> None:
    """Print what was written, and warnings about outputs that were kept and audio that is not what its file says."""
    from hear_transformers.bulk.formats import TABLES

    if len(report.written) <= FEW_FILES:
        for outcome in report.written:
            shapes = " ".join(map(str, dict.fromkeys(outcome.shapes)))  # separate layers may differ
            click.echo(one_line(f"{outcome.source} -> {outcome.pattern}  {shapes} {stored.dtype}"))
    messages = [outcome.message for outcome in report.skipped if outcome.message]
    if report.repeated:
        each = "the table has a row for each" if stored.format in TABLES else "they share an output"
        click.echo(f"Note: rows that are the same part of a file as one before: {report.repeated}; {each}", err=True)
    for message in messages[:FEW_WARNINGS]:
        click.echo(one_line(f"Warning: {message}"), err=True)
    if len(messages) > FEW_WARNINGS:
        click.echo(f"Warning: {len(messages) - FEW_WARNINGS} more outputs were kept", err=True)
    warned = [outcome for outcome in (*report.written, *report.skipped, *report.failed) if outcome.warnings]
    for outcome in warned[:FEW_WARNINGS]:
        click.echo(one_line(f"Warning: {'; '.join(outcome.warnings)}"), err=True)
    if len(warned) > FEW_WARNINGS:
        click.echo(f"Warning: {len(warned) - FEW_WARNINGS} more files have warnings", err=True)
    parts = [f"{len(report.written)} written"]
    if report.skipped:
        parts.append(f"{len(report.skipped)} skipped, outputs exist (--overwrite replaces them)")
    if report.failed:
        parts.append(f"{len(report.failed)} failed")
    if warned:
        parts.append(f"{len(warned)} with warnings, see warnings.jsonl")
    click.echo(", ".join(parts))
