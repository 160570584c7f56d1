"""The scores that HEAR's prediction stage writes into a folder of embeddings, as a table."""

from __future__ import annotations

import csv
import io
import json
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import HearTransformersError
from .tasks import METADATA

SCORES = "test.predicted-scores.json"
SETTINGS = "run.json"
"""Suffix of the file beside the folder of a task, TASK.run.json: the settings that `run` made it with."""

GRID_POINTS = 8
"""Points of the grid that heareval searches by default (predictions/runner.py:58), and that its leaderboard has."""

PREVIEW = "preview, no result: it may be at chance"

SHORT_GRIDS = {"fast": 50, "faster": 10}
"""Grids of heareval for dry runs, and the epochs that they train at most (predictions/task_predictions.py:108)."""

N_VALUES = {"hidden_layers": 2, "lr": 4}
"""Parameters of which heareval's grids try several values, and how many at least; others differ in draws alone."""


@dataclass(frozen=True, slots=True)
class Score:
    """A score of a system on a task.

    Attributes
    ----------
    system : name of its folder: the module and its options
    task : name of its folder
    metric : as HEAR names it
    score : on test data, the mean over folds; NaN or infinite where the metric is not defined
    std : standard deviation over folds, None for a single one
    folds : number of folds
    embedding_seconds, prediction_seconds : durations of the two stages, None if not recorded
    grid : hyperparameters that the prediction stage searched
    preview : why the score is that of a dry run, which may be at chance; empty for a result
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
    preview: str = ""


def read_scores(folder: Path) -> list[Score]:
    """Read all scores in a folder of embeddings.

    Parameters
    ----------
    folder : that contains SYSTEM/TASK

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
        times = profile.get("time_elapsed"), done.get("time")
        grid, preview = _grid(folder, metadata, done)
        return [
            Score(
                folder.parent.name, folder.name, metric, *_over_folds(results, f"test_{metric}"), *times, grid, preview
            )
            for metric in metadata["evaluation"]
        ]
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise HearTransformersError(
            f"{folder}: its scores cannot be read ({type(error).__name__}: {error}); delete {SCORES} and "
            "prediction-done.json there, and predict again"
        ) from error


def _read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, with the Infinity and NaN that heareval writes; a missing file is an empty one."""
    value: dict[str, Any] = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
    return value


def _over_folds(results: dict[str, Any], name: str) -> tuple[float, float | None, int]:
    """Return a score, its standard deviation and the number of folds."""
    aggregated = results.get("aggregated_scores")
    folds = [value for key, value in results.items() if isinstance(value, dict) and name in value]
    if aggregated is None:
        (fold,) = folds
        return float(fold[name]), None, 1
    return float(aggregated[f"{name}_mean"]), float(aggregated[f"{name}_std"]), len(folds)


def _grid(folder: Path, metadata: dict[str, Any], done: dict[str, Any]) -> tuple[str, str]:
    """Describe the search, a grid of heareval, the number of points, and the task's own values; and why it is none."""
    settings = _read_json(folder.with_name(f"{folder.name}.{SETTINGS}")).get("predictions", {})
    own = own_grid(metadata)
    changes = ", ".join(f"{name} {' or '.join(map(str, values))}" for name, values in own.items())
    name, points = settings.get("grid", "not recorded"), done.get("grid_points", "not recorded")
    grid = f"grid {name}, points {points}"
    why = why_preview(name, points, own)
    return f"{grid}, but {changes}" if changes else grid, why


def own_grid(metadata: Mapping[str, Any]) -> Mapping[str, Sequence[Any]]:
    """Return the values that a task's metadata put in place of those of heareval's grids."""
    found: Mapping[str, Sequence[Any]] = metadata.get("evaluation_params", {}).get("task_specific_param_grid", {})
    return found


def why_preview(grid: str, points: object, own: Mapping[str, Sequence[Any]]) -> str:
    """Return why a search gives no result but a preview; empty for one that is as thorough as heareval's own.

    Parameters
    ----------
    grid : of heareval
    points : of it that are tried
    own : values of the task or the user that replace those of the grid
    """
    reasons = []
    if grid in SHORT_GRIDS and "max_epochs" not in own:
        reasons.append(f"grid {grid} trains for {SHORT_GRIDS[grid]} epochs at most")
    wanted = min(GRID_POINTS, math.prod(len(own.get(name, ())) or count for name, count in N_VALUES.items()))
    if isinstance(points, int) and points < wanted:
        reasons.append(f"{points} of {wanted} grid points {'was' if points == 1 else 'were'} tried")
    return " and ".join(reasons)


def to_markdown(scores: Sequence[Score]) -> str:
    """Format scores as a Markdown table: one line per system, one column per metric of each task.

    The last columns are seconds over all tasks of the line. The search of hyperparameters is described below the table.
    """
    columns = list(dict.fromkeys((score.task, score.metric) for score in scores))
    header = _line("system", *(" ".join(column) for column in columns), "embedding, s", "prediction, s")
    lines = [header, _line("---", *["---:"] * (len(columns) + 2))]
    for system in dict.fromkeys(score.system for score in scores):
        of_system = {(score.task, score.metric): score for score in scores if score.system == system}
        cells = (_cell(of_system.get(column)) for column in columns)
        seconds = (_total(of_system.values(), name) for name in ("embedding_seconds", "prediction_seconds"))
        lines.append(_line(system, *cells, *seconds))
    grids = dict.fromkeys((score.task, score.grid, score.preview) for score in scores)
    notes = ["Mean ± standard deviation over folds. Settings of the predictions were searched on validation data:"]
    searched = (f"- {task}: {grid}{f'; {PREVIEW}: {why}' if why else ''}" for task, grid, why in grids)
    return "\n".join([*lines, "", *notes, "", *searched])


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _cell(score: Score | None) -> str:
    if score is None or not math.isfinite(score.score):
        return "-"
    spread = f" ± {score.std:.3f}" if score.std is not None and math.isfinite(score.std) else ""
    return f"{score.score:.3f}{spread}{' (preview)' if score.preview else ''}"


def _total(scores: Iterable[Score], name: str) -> str:
    """Sum seconds, once per task."""
    seconds = {score.task: getattr(score, name) for score in scores}.values()
    return "-" if None in seconds else f"{sum(seconds):.0f}"


def to_csv(scores: Sequence[Score]) -> str:
    """Format scores as CSV, one line each; unknown values are empty, undefined ones nan or inf."""
    file = io.StringIO()
    writer = csv.DictWriter(file, [field.name for field in fields(Score)], lineterminator="\n")
    writer.writeheader()
    writer.writerows(map(asdict, scores))
    return file.getvalue().rstrip("\n")
