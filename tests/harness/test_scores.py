"""Scores of a benchmark, from files as heareval writes them."""

import csv
import json
import math
from pathlib import Path
from typing import Any

import pytest
from click.testing import CliRunner
from hear_transformers.cli.hear import scores_command

from hear_transformers.errors import HearTransformersError
from hear_transformers.harness import scores

FOLDS = {
    "fold00": {"test_top1_acc": 0.5, "test_d_prime": math.inf, "epoch": 3},
    "fold01": {"test_top1_acc": 0.75, "test_d_prime": 1.0, "epoch": 9},
    "aggregated_scores": {
        "test_top1_acc_mean": 0.625,
        "test_top1_acc_std": 0.125,
        "test_d_prime_mean": math.inf,
        "test_d_prime_std": math.nan,
    },
    "hparams": {"lr": 0.001},
    "score_mode": "max",
}
ONE_SPLIT = {"test": {"test_segment_1s_er": 0.25}, "hparams": {}, "score_mode": "min"}


def write(out: Path, system: str, task: str, results: Any, metadata: dict[str, Any], seconds: float = 2.0) -> Path:
    folder = out / system / task
    folder.mkdir(parents=True)
    files = {
        "test.predicted-scores.json": results,
        "task_metadata.json": metadata,
        "profile.embeddings.json": {"time_elapsed": seconds},
        "prediction-done.json": {"time": 10 * seconds, "grid_points": 8},
        f"../{task}.run.json": {"predictions": {"grid": "default"}},
    }
    for name, value in files.items():
        (folder / name).write_text(json.dumps(value))
    return folder


@pytest.fixture
def out(tmp_path: Path) -> Path:
    """Write two tasks of a system, one of another, and one without scores."""
    of_scenes = {"evaluation": ["top1_acc", "d_prime"]}
    own_grid = {"task_specific_param_grid": {"lr": [0.001, 0.01], "batch_size": [64]}}
    write(tmp_path, "a", "scenes", FOLDS, of_scenes)
    write(tmp_path, "a", "events", ONE_SPLIT, {"evaluation": ["segment_1s_er"], "evaluation_params": own_grid}, 3.0)
    write(tmp_path, "b", "scenes", FOLDS, of_scenes, 4.0)
    (tmp_path / "b" / "events").mkdir()
    (tmp_path / "logs" / "a" / "scenes").mkdir(parents=True)
    return tmp_path


def test_a_score_is_the_mean_over_folds(out: Path) -> None:
    (score,) = (row for row in scores.read_scores(out) if (row.system, row.metric) == ("a", "top1_acc"))
    assert (score.score, score.std, score.folds) == (0.625, 0.125, 2)
    assert (score.embedding_seconds, score.prediction_seconds) == (2.0, 20.0)


def test_a_single_split_has_no_deviation(out: Path) -> None:
    (score,) = (row for row in scores.read_scores(out) if row.task == "events")
    assert (score.score, score.std, score.folds) == (0.25, None, 1)


def test_infinity_and_nan_are_read(out: Path) -> None:
    (score,) = (row for row in scores.read_scores(out) if (row.system, row.metric) == ("a", "d_prime"))
    assert score.score == math.inf
    assert score.std is not None
    assert math.isnan(score.std)


def test_missing_times_are_unknown(out: Path) -> None:
    (out / "b" / "scenes" / "profile.embeddings.json").unlink()
    assert {row.embedding_seconds for row in scores.read_scores(out) if row.system == "b"} == {None}
    assert scores.to_markdown(scores.read_scores(out)).splitlines()[3].endswith("| - | 40 |")


def test_the_table_has_a_line_for_each_system(out: Path) -> None:
    assert scores.to_markdown(scores.read_scores(out)).splitlines() == [
        "| system | events segment_1s_er | scenes top1_acc | scenes d_prime | embedding, s | prediction, s |",
        "| --- | ---: | ---: | ---: | ---: | ---: |",
        "| a | 0.250 | 0.625 ± 0.125 | - | 5 | 50 |",
        "| b | - | 0.625 ± 0.125 | - | 4 | 40 |",
        "",
        "Mean ± standard deviation over folds. Settings of the predictions were searched on validation data:",
        "",
        "- events: grid default, points 8, but lr 0.001 or 0.01, batch_size 64",
        "- scenes: grid default, points 8",
    ]


def test_csv_has_a_line_for_each_score(out: Path) -> None:
    rows = list(csv.DictReader(scores.to_csv(scores.read_scores(out)).splitlines()))
    assert [(row["system"], row["task"], row["metric"], row["score"], row["std"]) for row in rows] == [
        ("a", "events", "segment_1s_er", "0.25", ""),
        ("a", "scenes", "top1_acc", "0.625", "0.125"),
        ("a", "scenes", "d_prime", "inf", "nan"),
        ("b", "scenes", "top1_acc", "0.625", "0.125"),
        ("b", "scenes", "d_prime", "inf", "nan"),
    ]


@pytest.mark.parametrize("damaged", ["", "[]", '{"fold00": {}}', '{"aggregated_scores": {}}'])
def test_a_damaged_file_is_named(out: Path, damaged: str) -> None:
    folder = out / "a" / "scenes"
    (folder / "test.predicted-scores.json").write_text(damaged)
    with pytest.raises(HearTransformersError, match=f"{folder}: its scores cannot be read .* predict again"):
        scores.read_scores(out)


def test_the_command_prints_either(out: Path) -> None:
    printed = [CliRunner().invoke(scores_command, [str(out), *given]).stdout for given in ([], ["--csv"])]
    assert printed == [f"{form(scores.read_scores(out))}\n" for form in (scores.to_markdown, scores.to_csv)]


def test_a_folder_without_scores_is_refused(tmp_path: Path) -> None:
    result = CliRunner().invoke(scores_command, [str(tmp_path)])
    assert result.exit_code == 2
    assert "holds no scores, expected SYSTEM/TASK/test.predicted-scores.json in it" in result.stderr


@pytest.mark.parametrize(
    ("grid", "points", "reason"),
    [
        ("faster", 1, "grid faster trains for 10 epochs at most and 1 of 8 grid points was tried"),
        ("faster", 8, "grid faster trains for 10 epochs at most"),
        ("fast", 8, "grid fast trains for 50 epochs at most"),
        ("default", 2, "2 of 8 grid points were tried"),
    ],
)
def test_a_dry_run_is_marked_as_a_preview(tmp_path: Path, grid: str, points: int, reason: str) -> None:
    folder = write(tmp_path, "a", "scenes", FOLDS, {"evaluation": ["top1_acc"]})
    (folder / "prediction-done.json").write_text(json.dumps({"grid_points": points}))
    folder.with_name("scenes.run.json").write_text(json.dumps({"predictions": {"grid": grid}}))
    found = scores.read_scores(tmp_path)
    table = scores.to_markdown(found)
    assert "| 0.625 ± 0.125 (preview) |" in table
    assert table.endswith(f"- scenes: grid {grid}, points {points}; preview, no result: it may be at chance: {reason}")
    assert scores.to_csv(found).splitlines()[0].endswith(",preview")
    assert scores.to_csv(found).splitlines()[1].endswith(f",{reason}")


@pytest.mark.parametrize(("grid", "points"), [("default", 8), ("default", 9), ("not recorded", None)])
def test_heareval_s_own_search_is_a_result(grid: str, points: int | None) -> None:
    assert scores.why_preview(grid, points, {}) == ""


@pytest.mark.parametrize(
    ("own", "points", "reason"),
    [
        ({"lr": [0.001], "hidden_layers": [1]}, 1, ""),
        ({"lr": [0.001]}, 2, ""),
        ({"lr": [0.001]}, 1, "1 of 2 grid points was tried"),
        ({"dropout": [0.1]}, 7, "7 of 8 grid points were tried"),
    ],
)
def test_a_grid_of_ones_own_may_have_fewer_points(own: dict[str, list[float]], points: int, reason: str) -> None:
    assert scores.why_preview("default", points, own) == reason


def test_epochs_of_ones_own_make_a_short_grid_a_search(tmp_path: Path) -> None:
    own = {"evaluation_params": {"task_specific_param_grid": {"max_epochs": [100]}}}
    folder = write(tmp_path, "a", "scenes", FOLDS, {"evaluation": ["top1_acc"], **own})
    folder.with_name("scenes.run.json").write_text(json.dumps({"predictions": {"grid": "faster"}}))
    assert {score.preview for score in scores.read_scores(tmp_path)} == {""}
