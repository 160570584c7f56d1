"""The scores that HEAR's prediction stage has left in a folder of embeddings, as a table.

python -m hear_transformers.harness.scores EMBEDDINGS [--csv]
"""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

import click

from ..cli.failures import guarded
from ..errors import HearTransformersError, OptionError
from .tasks import METADATA

SCORES = "test.predicted-scores.json"
SETTINGS = "run.json"
"""Beside the folder of a task, TASK.run.json: how `run` made it."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of a system on a task.

    Attributes
    ----------
    system : name of its folder: the module, and the options it was loaded with
    task : name of its folder
    metric : as HEAR names it
    score : on what is tested, the mean over folds; NaN or infinite where the metric is not defined
    std : over folds, None if there is one
    folds : how many
    embedding_seconds, prediction_seconds : what the two stages took, None if they did not say
    grid : what was searched for the settings of the prediction
    """

    system: str
    task: str
    metric: str
    score: float
    std: float | None
    folds: int
    embedding_seconds: float | None
    prediction_seconds: float | None
    grid: str


def read(folder: Path) -> list[Score]:
    """Read all scores in a folder of embeddings.

    Parameters
    ----------
    folder : holds SYSTEM/TASK

    Returns
    -------
    scores : by system and task, metrics in the order of the task

    Raises
    ------
    HearTransformersError : a file is damaged
    """
    return [score for path in sorted(folder.glob(f"*/*/{SCORES}")) for score in _read_task(path.parent)]


def _read_task(folder: Path) -> list[Score]:
    """Read the scores of a system on a task."""
    try:
        results = _read_json(folder / SCORES)
        metadata = _read_json(folder / METADATA)
        profile = _read_json(folder / "profile.embeddings.json")
        done = _read_json(folder / "prediction-done.json")
        return [
            Score(
                folder.parent.name,
                folder.name,
                metric,
                *_over_folds(results, f"test_{metric}"),
                profile.get("time_elapsed"),
                done.get("time"),
                _grid(folder, metadata, done),
            )
            for metric in metadata["evaluation"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise HearTransformersError(
            f"{folder}: its scores cannot be read ({type(error).__name__}: {error}); delete {SCORES} and "
            "prediction-done.json there, and predict again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object, with Infinity and NaN that heareval writes beyond strict JSON; one that is not there is empty."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return value


def _over_folds(results: dict[str, Any], name: str) -> tuple[float, float | None, int]:
    """Give a score, its standard deviation and the number of folds."""
    aggregated = results.get("aggregated_scores")
    folds = [value for key, value in results.items() if isinstance(value, dict) and name in value]
    if aggregated is None:
        (fold,) = folds
        return float(fold[name]), None, 1
    return float(aggregated[f"{name}_mean"]), float(aggregated[f"{name}_std"]), len(folds)


def _grid(folder: Path, metadata: dict[str, Any], done: dict[str, Any]) -> str:
    """Say what was searched: a grid of heareval, how much of it, and what the task has instead."""
    settings = _read_json(folder.with_name(f"{folder.name}.{SETTINGS}")).get("predictions", {})
    own = metadata.get("evaluation_params", {}).get("task_specific_param_grid", {})
    changes = ", ".join(f"{name} {' or '.join(map(str, values))}" for name, values in own.items())
    grid = f"grid {settings.get('grid', 'not recorded')}, points {done.get('grid_points', 'not recorded')}"
    return f"{grid}, but {changes}" if changes else grid


def to_markdown(scores: Sequence[Score]) -> str:
    """Write scores as a table of Markdown: a line for each system, a column for each metric of each task.

    The last columns are seconds over all tasks of the line. Below it is said what was searched.
    """
    columns = list(dict.fromkeys((score.task, score.metric) for score in scores))
    lines = [
        _line("system", *(" ".join(column) for column in columns), "embedding, s", "prediction, s"),
        _line("---", *["---:"] * (len(columns) + 2)),
    ]
    for system in dict.fromkeys(score.system for score in scores):
        of_system = {(score.task, score.metric): score for score in scores if score.system == system}
        cells = (_cell(of_system.get(column)) for column in columns)
        seconds = (_total(of_system.values(), name) for name in ("embedding_seconds", "prediction_seconds"))
        lines.append(_line(system, *cells, *seconds))
    grids = dict.fromkeys((score.task, score.grid) for score in scores)
    notes = ["Mean ± standard deviation over folds. Settings of the predictions were searched on validation data:"]
    return "\n".join([*lines, "", *notes, "", *(f"- {task}: {grid}" for task, grid in grids)])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(score: Score | None) -> str:
    if score is None or not math.isfinite(score.score):
        return "-"
    spread = f" ± {score.std:.3f}" if score.std is not None and math.isfinite(score.std) else ""
    return f"{score.score:.3f}{spread}"


def _total(scores: Any, name: str) -> str:
    """Add up seconds, once for each task."""
    seconds = {score.task: getattr(score, name) for score in scores}.values()
    return "-" if None in seconds else f"{sum(seconds):.0f}"


def to_csv(scores: Sequence[Score]) -> str:
    """Write scores as CSV, a line each; what is not known is empty, what is not defined is nan or inf."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, scores))
    return file.getvalue().rstrip("\n")


FORMATS: dict[bool, Callable[[Sequence[Score]], str]] = {False: to_markdown, True: to_csv}


@click.command("scores")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--csv", "as_csv", is_flag=True, help="A line for each score, instead of a table in Markdown.")
@guarded
def scores_command(folder: Path, as_csv: bool) -> None:
    """Print the scores in a FOLDER of embeddings: FOLDER/SYSTEM/TASK."""
    scores = read(folder)
    if not scores:
        raise OptionError(f"{folder} holds no scores, expected SYSTEM/TASK/{SCORES} in it; predict first")
    click.echo(FORMATS[as_csv](scores))


if __name__ == "__main__":
    scores_command()
