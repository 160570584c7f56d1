"""A sweep as files: tables, pictures, and one page that needs nothing beside it."""

from __future__ import annotations

import importlib.util
import math
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import Any

from ..comparison.measures import MEASURES
from ..errors import OptionError
from ..explore.page import render
from ..files import atomic
from . import figures, words
from .findings import AXES, SHOTS, Finding, curves, findings_of, is_lower_better
from .results import COLUMNS, NO_POOL, Row, key_of, unique, write_csv, write_parquet

PAGE, TABLE = "report.html", "results.csv"

SHOWN = ("model", "score", *AXES, "clips", "size", "seconds_per_hour")
"""Columns of the tables for people."""

DIGITS = 5
"""Of numbers in the page; the tables have all."""


def write(out: Path, rows: Sequence[Row], *, title: str) -> Path:
    """Write the report of a sweep into a folder; return its page.

    results.csv      a row for each score, see `results.read_csv`; results.parquet beside it where pyarrow is installed
    results.md       the best settings of each task and model, what each axis changes, then all scores
    report.html      the same to look at: one file that needs no network
    plots/           maps of layers by windows and hops, score beside cost, scores by layer: PNG and SVG

    Parameters
    ----------
    out : the folder
    rows : in any order; of equal `results.key_of` the last counts
    title : of page and tables

    Raises
    ------
    OptionError : there is no row, or no defined score
    """
    rows = unique(rows)
    findings = findings_of(rows)
    if not findings:
        raise OptionError(f"{out}: there is nothing to report: none of {len(rows)} rows has a score")
    write_csv(out / TABLE, rows)
    if importlib.util.find_spec("pyarrow"):
        write_parquet(out / "results.parquet", rows)
    with atomic(out / "results.md") as file:
        file.write(markdown(rows, findings, title).encode("utf-8", "backslashreplace"))
    figures.draw(out / "plots", findings)
    with atomic(out / PAGE) as file:
        file.write(page(rows, findings, title).encode("utf-8", "backslashreplace"))
    return out / PAGE


def markdown(rows: Sequence[Row], findings: Sequence[Finding], title: str) -> str:
    """Return what is found by main metrics as words and tables, then all scores."""
    lines = [f"# {_cell(title)}", "", *(f"- {caveat}" for caveat in words.CAVEATS)]
    for finding in findings:
        if not finding.is_main:
            continue
        lines += ["", f"## {_cell(finding.task)}: {_cell(finding.metric)}"]
        for paragraph, command in words.paragraphs(finding):
            lines += ["", _cell(paragraph), *(["", *_code(command)] if command else [])]
        lines += ["", "Best setting of each model:", "", *_table(SHOWN, finding.models)]
        lines += ["", "What each axis changes, the others as in the best setting of the model:", ""]
        lines += ["| model | axis | score |", "|---|---|---|"]
        for change in finding.changes:
            axis = words.NAMES.get(change.axis, change.axis)
            lines.append(f"| {_cell(change.best.model)} | {axis} | {_cell(words.change_in_words(change))} |")
    lines += ["", "## All scores", "", *_table(("task", "metric", *SHOWN), rows), ""]
    return "\n".join(lines)


def _table(columns: Sequence[str], rows: Sequence[Row]) -> Iterator[str]:
    columns = [name for name in columns if name != SHOTS or any(row.clips_per_class for row in rows)]
    yield f"| {' | '.join(words.HEADINGS.get(name, name) for name in columns)} |"
    yield "|---" * len(columns) + "|"
    for row in rows:
        yield f"| {' | '.join(_cell(words.text_of(row, name)) for name in columns)} |"


def _cell(text: str) -> str:
    """Return text that Markdown shows as it is, in one cell of one line."""
    return re.sub(r"([\\`*_\[\]<>|#~$])", r"\\\1", " ".join(text.split()))


def _code(command: str) -> list[str]:
    """Return lines of a block that no run of backticks within ends."""
    fence = "`" * max([3, *(len(run) + 1 for run in re.findall("`+", command))])
    return [f"{fence}sh", command, fence]


def page(rows: Sequence[Row], findings: Sequence[Finding], title: str) -> str:
    """Return the page: columns of all rows, and findings that name rows by number."""
    number = {key_of(row): i for i, row in enumerate(rows)}

    def numbers(some: Iterable[Row]) -> list[int]:
        return [number[key_of(row)] for row in some]

    metrics = list(dict.fromkeys(row.metric for row in rows))
    data = {
        "title": title,
        "caveats": words.CAVEATS,
        "no_pool": NO_POOL,
        "columns": {name: _column([getattr(row, name) for row in rows], kind) for name, kind in COLUMNS.items()},
        "lower": [metric for metric in metrics if is_lower_better(metric)],
        "about": {metric: MEASURES[metric][0] for metric in metrics if metric in MEASURES},
        "findings": [
            {
                "task": finding.task,
                "metric": finding.metric,
                "words": list(words.paragraphs(finding)),
                "models": numbers(finding.models),
                "changes": [
                    [change.best.model, change.axis, words.change_in_words(change)] for change in finding.changes
                ],
                "curves": {
                    metric: [numbers(line) for line in by_model.values()]
                    for metric, by_model in curves(finding, findings).items()
                },
            }
            for finding in findings
        ],
    }
    return render(data, __package__)


def _column(values: Sequence[Any], kind: str) -> Any:
    """Return a column for the page: words as numbers of a list, what is not finite as None."""
    if kind == "str":
        names = list(dict.fromkeys(values))
        codes = {name: i for i, name in enumerate(names)}
        return {"names": names, "codes": [codes[value] for value in values]}
    if kind == "bool":
        return [int(value) for value in values]
    return [_short(value) for value in values]


def _short(value: float | None) -> float | None:
    if value is None or not math.isfinite(value):
        return None
    short = float(f"{value:.{DIGITS}g}")
    return int(short) if short.is_integer() else short
