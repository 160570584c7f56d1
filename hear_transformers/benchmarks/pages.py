"""Pages of HEAR scores, one per family: those of HEAR's leaderboard beside those that were run here.

python -m hear_transformers.benchmarks.pages [--results FOLDER] [--check]

weights/hear/published.csv    one line per system and task of HEAR; no score where the leaderboard has none; no
                              folder for Beehive States, which has two that make one score in an unpublished way
             results.csv      run here: the family, empty for a baseline, then the columns of `hear scores --csv`
             FAMILY.md        the pages
"""

from __future__ import annotations

import csv
import json
from collections.abc import Mapping, Sequence
from pathlib import Path

import click

from .. import FAMILIES
from ..cli.failures import guarded
from ..errors import HearTransformersError
from ..harness.scores import Score, read_scores, to_csv, to_markdown

FOLDER = Path(__file__).parents[2] / "weights" / "hear"
RESULTS = click.Path(exists=True, file_okay=False, path_type=Path)

REMARKS = {
    "CP-JKU PaSST base": "Timestamps see 160 ms.",
    "CP-JKU PaSST 2lvl": "Timestamps see 160 and 800 ms; scenes are those of base.",
    "CP-JKU PaSST 2lvl+mel": "Timestamps see 160 and 640 ms, and the mel; scenes are those of base.",
    "CVSSP PANNS": "Close, not the same. Scenes are of the same network and layer, but it fills clips under 1 s with "
    "zeros, and ours are means of windows where clips are over 60 s. Its timestamps repeat the last map every 10 ms, "
    "in seconds where HEAR asks for ms (its panns_hear/panns.py); that may be why two scores are 0.",
    "CP-JKU mn40_as (e1+l+all_se)": "Not here: 4,056 of its 8,423 numbers are vectors within squeeze-and-excitation, "
    'and no layer here gives those. The other 4,367 are variant "mn40_as", layer "logits,features"; or of '
    '"mn40_as_ext", the network that its authors\' README names.',
    "CP-JKU mn04_as (e1+l)": "The same layers, 911 numbers.",
}
"""Differences between published systems and ours."""

CsvRow = Mapping[str, str]
"""A line of published.csv or results.csv."""


def format_page(family: str, published: Sequence[CsvRow], results: Sequence[Score]) -> str:
    """Format the page of a family.

    Parameters
    ----------
    family : name of its module
    published : all rows of published.csv
    results : scores that were run here, of the family and of baselines
    """
    tasks = {row["folder"]: row["task"] for row in published}
    others = [score for score in results if score.task not in tasks]
    parts = [
        f"# HEAR scores: {family}",
        f"`hear_transformers.{family}`: {FAMILIES[family]}. To score it, `make hear "
        f"SYSTEMS=hear_transformers.{family} TASKS=folder`; to choose more, `hear-transformers hear run`.",
        _format_systems(family, published),
        "## HEAR's tasks",
        _format_table(family, published, [(score, tasks[score.task]) for score in results if score.task in tasks]),
        'Scores on test data, from 0 to 1. "-" below a published system: the leaderboard has no score of it. "-" below '
        '"run here": the data of the task was not at hand.',
        "## Other tasks in HEAR's format",
        "Not HEAR's own, so not to be compared with those above. `make hear-results` makes them of ESC-10 and spoken "
        "digits, and runs them.",
        to_markdown(others) if others else "None was run yet.",
        "## Sources",
        f"Published scores: {', '.join(sorted({row['source'] for row in published}))}. Tasks and metrics: "
        "hearbenchmark.com/hear-tasks.html. `python -m hear_transformers.benchmarks.pages` makes this page of "
        "published.csv and results.csv.",
    ]
    return "\n\n".join(parts) + "\n"


def _format_systems(family: str, published: Sequence[CsvRow]) -> str:
    """List the published systems, and their names for `hear run`."""
    lines = []
    for system, row in {row["system"]: row for row in published if row["family"] == family}.items():
        options = {name: row[name] for name in ("variant", "layer") if row[name]}
        called = f"`'hear_transformers.{family}:{json.dumps(options)}'`. " if options else ""
        lines.append(f"- {system}: {called}{REMARKS[system]}")
    if not lines:
        return "HEAR's leaderboard has no system of this family."
    return "\n".join(["Systems on HEAR's leaderboard, and what they are here:", "", *lines])


def _format_table(family: str, published: Sequence[CsvRow], results: Sequence[tuple[Score, str]]) -> str:
    """Format the table of HEAR's tasks: published systems, then those that were run here."""
    columns: dict[str, dict[str, str]] = {}
    for row in published:
        if row["family"] == family:
            columns.setdefault(row["system"], {})[row["task"]] = row["score"]
    for score, task in results:  # the first of several metrics is the one of the leaderboard
        columns.setdefault(f"run here: {score.system}", {}).setdefault(task, str(score.score))
    if not results:
        columns["run here"] = {}
    lines = [["task", "metric", *columns], ["---", "---", *["---:"] * len(columns)]]
    for task, metric in {row["task"]: row["metric"] for row in published}.items():
        scores = [column.get(task) for column in columns.values()]
        lines.append([task, metric, *(f"{float(score):.3f}" if score else "-" for score in scores)])
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)


def format_pages(folder: Path) -> dict[Path, str]:
    """Format all pages, by path; raise HearTransformersError if scores are damaged."""
    published = _read_rows(folder / "published.csv")
    results: dict[str, list[Score]] = {family: [] for family in ("", *FAMILIES)}
    for number, row in enumerate(_read_rows(folder / "results.csv"), 2):
        try:
            results[row["family"]].append(_parse_score(row))
        except (ValueError, LookupError, TypeError) as error:
            raise HearTransformersError(
                f"{folder / 'results.csv'}, line {number}: {type(error).__name__}: {error}; expected "
                f"nothing or one of {', '.join(FAMILIES)}, then a line of `hear scores --csv`"
            ) from error
    baselines = results.pop("")
    return {
        folder / f"{family}.md": format_page(family, published, [*scores, *baselines] if scores else [])
        for family, scores in results.items()
    }


def _read_rows(path: Path) -> list[dict[str, str]]:
    if not path.is_file():
        raise HearTransformersError(f"{path} is not there; pages are made in a checkout of the repository only")
    return list(csv.DictReader(path.read_text(encoding="utf-8").splitlines()))


def _parse_score(row: CsvRow) -> Score:
    optional = ("std", "embedding_seconds", "prediction_seconds")
    std, embedding, prediction = (float(row[name]) if row[name] else None for name in optional)
    names = row["system"], row["task"], row["metric"]
    return Score(
        *names, float(row["score"]), std, int(row["folds"]), embedding, prediction, row["grid"], row["preview"]
    )


def format_results(scores: Sequence[Score]) -> str:
    """Format results.csv: the family, then the columns of `hear scores --csv`."""
    header, *lines = to_csv(scores).splitlines()
    families = (score.system.removeprefix("hear_transformers.").partition("-")[0] for score in scores)
    rows = (f"{family if family in FAMILIES else ''},{line}" for family, line in zip(families, lines, strict=True))
    return "\n".join([f"family,{header}", *rows]) + "\n"


@click.command("pages")
@click.option("--results", type=RESULTS, metavar="DIR", help="Of `hear run`: its scores replace those of results.csv.")
@click.option("--check", is_flag=True, help="Write nothing; fail if a page is out of date.")
@guarded
def pages_command(results: Path | None, check: bool) -> None:
    """Write the pages of HEAR scores."""
    if results:
        (FOLDER / "results.csv").write_text(format_results(read_scores(results)), encoding="utf-8")
    for path, text in format_pages(FOLDER).items():
        if not check:
            path.write_text(text, encoding="utf-8")
        elif not path.is_file() or path.read_text(encoding="utf-8") != text:
            raise HearTransformersError(f"{path} is not what its scores make; run python -m {__package__}.pages")


if __name__ == "__main__":
    pages_command()
