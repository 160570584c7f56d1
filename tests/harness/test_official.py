"""HEAR's official programs, embeddings to scores, on small tasks; and the command that runs them."""

import json
import math
import os
import sys
import types
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from click.testing import CliRunner
from filelock import FileLock
from hear_transformers.cli import hear

from hear_transformers import tiny
from hear_transformers.errors import HearTransformersError
from hear_transformers.harness import official, scores
from hear_transformers.probes import data, evaluation, event_data, event_evaluation
from hear_transformers.probes.tasks import make_task
from tests.helpers import hear_tasks
from tests.helpers.hear_tasks import EVENT_SECONDS, EVENTS, SCENE_SECONDS, SCENES, needs_harness

TINY = "hear_transformers.tiny"
PANNS = 'hear_transformers.panns:{"variant": "cnn6", "pretrained": false, "layer": 2}'
PANNS_FOLDER = "hear_transformers.panns-variant=cnn6-pretrained=false-layer=2"
BROKEN = "broken_module"
BROKEN_CODE = "def load_model(path=''):\n    raise RuntimeError('broken on purpose')\n"

GRID = {"hidden_layers": [1], "hidden_dim": [256], "patience": [20]}
SCENE_GRID = {**GRID, "lr": [0.001], "batch_size": [32], "max_epochs": [60], "check_val_every_n_epoch": [3]}
EVENT_GRID = {**GRID, "lr": [0.003], "batch_size": [256], "max_epochs": [40], "check_val_every_n_epoch": [8]}
N_MIXES = (16, 6, 6)  # to train on, to validate, to test


def write_synthesised(folder: Path) -> None:
    hear_tasks.write_scenes(folder, hear_tasks.synthesised(3, 8, SCENE_SECONDS), [32_000], SCENE_GRID)
    events = hear_tasks.synthesised(3, 8, EVENT_SECONDS, seed=1)
    hear_tasks.write_events(folder, events, N_MIXES, [32_000], EVENT_GRID)


def write_esc10(folder: Path) -> None:
    hear_tasks.write_scenes(folder, hear_tasks.esc10(4, 4, SCENE_SECONDS), [32_000], SCENE_GRID)
    labels = ("baby_cry", "chainsaw", "dog_bark", "person_sneeze", "rooster")
    first, second, valid, test = hear_tasks.esc10(4, 8, EVENT_SECONDS, labels)
    train = {label: [*first[label], *second[label]] for label in labels}
    hear_tasks.write_events(folder, [train, valid, test], N_MIXES, [32_000], EVENT_GRID)


@dataclass(frozen=True)
class Printed:
    exit_code: int
    stdout: str
    stderr: str


@dataclass(frozen=True)
class Scored:
    tasks_dir: Path
    out: Path
    result: Printed

    def score(self, system: str, task: str, metric: str) -> float:
        (score,) = (
            score.score
            for score in scores.read_scores(self.out)
            if (score.system, score.task, score.metric) == (system, task, metric)
        )
        return score


def benchmark(*arguments: object) -> Printed:
    python = ["--python", hear_tasks.HARNESS] if hear_tasks.HARNESS else []
    result = CliRunner().invoke(hear.run_command, [*python, *map(str, arguments)])
    return Printed(result.exit_code, result.stdout, result.stderr)


def scored(factory: pytest.TempPathFactory, name: str, write: Callable[[Path], None], systems: Sequence[str]) -> Scored:
    """Score systems from a folder of their own, once for all of pytest's workers: it takes minutes."""
    shared = factory.getbasetemp()
    folder = (shared.parent if "PYTEST_XDIST_WORKER" in os.environ else shared) / name
    tasks_dir, out, printed = folder / "tasks", folder / "out", folder / "printed.json"
    with FileLock(f"{folder}.lock"):
        if not printed.exists():
            write(tasks_dir)
            (tasks_dir / "notes.txt").touch()  # the official program stops at anything that is not a task
            (folder / f"{BROKEN}.py").write_text(BROKEN_CODE)
            with pytest.MonkeyPatch.context() as patch:
                patch.chdir(folder)
                result = benchmark("--tasks-dir", tasks_dir, "--out", out, "--grid-points", 1, *systems)
            printed.write_text(json.dumps(asdict(result)))
        return Scored(tasks_dir, out, Printed(**json.loads(printed.read_text())))


@pytest.fixture(scope="module")
def synthesised(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    """Score two systems, and between them a failing one from the current folder."""
    return scored(tmp_path_factory, "synthesised", write_synthesised, [TINY, BROKEN, PANNS])


@pytest.fixture(scope="module")
def esc10(tmp_path_factory: pytest.TempPathFactory) -> Scored:
    return scored(tmp_path_factory, "esc10", write_esc10, [TINY])


SOURCES = [
    pytest.param("synthesised", marks=needs_harness),
    pytest.param(
        "esc10",
        marks=[
            needs_harness,
            pytest.mark.shared,
            pytest.mark.skipif(
                not hear_tasks.ESC10.is_dir(), reason="needs ESC-10 of the developers' folder ../shared"
            ),
        ],
    ),
]

SYSTEMS = [
    *(pytest.param(*source.values, TINY, marks=source.marks) for source in SOURCES),
    pytest.param("synthesised", PANNS_FOLDER, marks=needs_harness),
]

SCENE_CHANCE = {"synthesised": 1 / 6, "esc10": 1 / 10}  # 6 and 10 labels
# Random embeddings scored 0.17 and 0.11. Measured: tiny 0.98 and 0.82; PANNs with random weights 0.83 and 0.54.
SCENE_MARGIN = {TINY: 0.5, PANNS_FOLDER: 0.3}

EVENT_CHANCE = 0.0  # random embeddings predict no event
# Measured: tiny 0.92 and 0.80; PANNs with random weights 0.59 and 0.44.
EVENT_MARGIN = {TINY: 0.5, PANNS_FOLDER: 0.2}

SILENT_ERROR_RATE = 1.0  # of random embeddings as well: all events are missed
# Measured: tiny 0.06 and 0.19; PANNs with random weights 0.48 and 0.57.
ERROR_MARGIN = {TINY: 0.6, PANNS_FOLDER: 0.25}


@pytest.mark.parametrize(("source", "system"), SYSTEMS)
def test_scenes_are_told_apart(source: str, system: str, request: pytest.FixtureRequest) -> None:
    accuracy = request.getfixturevalue(source).score(system, SCENES, "top1_acc")
    assert accuracy > SCENE_CHANCE[source] + SCENE_MARGIN[system]


N_SEEDS = 4
SCENE_SEEDS = 16  # the mean of four was 0.02 off
# Beside the spread of seeds, since heareval's score is that of one. Measured: 0.965 there, here 0.936 with a standard
# deviation of 0.023 (144 synthesised clips); 0.806, and 0.806 with 0.021 (160 clips of ESC-10).
MLP_TOLERANCE = 0.02


@pytest.mark.parametrize("source", SOURCES)
def test_the_mlp_of_probes_scores_what_heareval_does(
    source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(source)
    model = tiny.load_model()
    clips = data.read_clips(run.tasks_dir / SCENES, sample_rate=model.sample_rate)
    task = make_task([str(path) for path in clips.paths], clips.classes, clips.targets, folds=clips.folds)
    embedded = data.embed_clips(clips, model, tmp_path)
    settings = {**{name: values[0] for name, values in SCENE_GRID.items()}, "grid_points": 1}
    found = [
        evaluation.evaluate(embedded.embeddings, task, "mlp", seed=seed, settings=settings).scores["accuracy"].value
        for seed in range(SCENE_SEEDS)
    ]
    official = run.score(TINY, SCENES, "top1_acc")
    assert abs(np.mean(found) - official) <= MLP_TOLERANCE + np.std(found, ddof=1)


@pytest.mark.parametrize("source", SOURCES)
def test_events_of_probes_are_scored_as_heareval_does(
    source: str, request: pytest.FixtureRequest, tmp_path: Path
) -> None:
    run = request.getfixturevalue(source)
    model = tiny.load_model()
    files = event_data.read_annotated(run.tasks_dir / EVENTS, sample_rate=model.sample_rate)
    clips = [(path, (0.0, math.inf)) for path in files.paths]
    frames = event_data.embed_frames(files.source, clips, model, tmp_path)
    settings = {**{name: values[0] for name, values in EVENT_GRID.items()}, "grid_points": 1}
    task = event_evaluation.make_task(files)
    found = [
        event_evaluation.evaluate(frames, task, "mlp", seed=seed, settings=settings).scores["onset_f1_200ms"].value
        for seed in range(N_SEEDS)
    ]
    official = run.score(TINY, EVENTS, "event_onset_200ms_fms")
    print(f"{source}: heareval {official:.4f}, ours {np.round(found, 4)}")
    assert abs(np.mean(found) - official) <= MLP_TOLERANCE + np.std(found, ddof=1)


@pytest.mark.parametrize(("source", "system"), SYSTEMS)
def test_events_are_found_where_they_begin(source: str, system: str, request: pytest.FixtureRequest) -> None:
    f_measure = request.getfixturevalue(source).score(system, EVENTS, "event_onset_200ms_fms")
    assert f_measure > EVENT_CHANCE + EVENT_MARGIN[system]


@pytest.mark.parametrize(("source", "system"), SYSTEMS)
def test_events_are_found_second_by_second(source: str, system: str, request: pytest.FixtureRequest) -> None:
    error_rate = request.getfixturevalue(source).score(system, EVENTS, "segment_1s_er")
    assert error_rate < SILENT_ERROR_RATE - ERROR_MARGIN[system]


@needs_harness
def test_a_system_that_fails_is_reported_and_the_others_go_on(synthesised: Scored) -> None:
    assert synthesised.result.exit_code == 1
    assert synthesised.result.stderr.count("RuntimeError: broken on purpose") == 2
    assert "Error: 2 of 6 failed" in synthesised.result.stderr
    lines = [line.split(" | ")[0] for line in synthesised.result.stdout.splitlines()]
    assert lines[2:4] == [f"| {TINY}", f"| {PANNS_FOLDER}"]


@needs_harness
def test_all_output_is_in_one_folder_and_checkpoints_are_deleted(synthesised: Scored) -> None:
    assert sorted(path.name for path in synthesised.out.iterdir()) == [BROKEN, PANNS_FOLDER, TINY, "logs"]
    curves = synthesised.out / "logs" / TINY / SCENES
    assert list(curves.rglob("metrics.csv"))
    assert not list(synthesised.out.rglob("*.ckpt"))


@needs_harness
def test_complete_stages_are_kept(synthesised: Scored) -> None:
    again = benchmark("--tasks-dir", synthesised.tasks_dir, "--out", synthesised.out, "--grid-points", 1, TINY)
    assert (again.exit_code, again.stderr) == (0, "")
    assert f"| {TINY} |" in again.stdout


@needs_harness
def test_output_of_other_settings_is_refused(synthesised: Scored) -> None:
    again = benchmark("--tasks-dir", synthesised.tasks_dir, "--out", synthesised.out, "--grid-points", 2, TINY)
    assert again.exit_code == 2
    assert "predictions were made with grid=default, grid_points=1" in again.stderr


@needs_harness
def test_our_embeddings_get_the_same_scores_with_a_custom_grid(synthesised: Scored, tmp_path: Path) -> None:
    grids = tmp_path / "grids.json"
    grids.write_text(json.dumps({SCENES: SCENE_GRID}))
    given = ["--tasks-dir", synthesised.tasks_dir, "--task", SCENES, "--out", tmp_path / "out", "--grid-points", 1]
    result = benchmark(*given, "--embeddings", "ours", "--param-grid", grids, TINY)
    assert result.exit_code == 0, result.stderr
    ours = Scored(synthesised.tasks_dir, tmp_path / "out", result)
    assert ours.score(TINY, SCENES, "top1_acc") == pytest.approx(synthesised.score(TINY, SCENES, "top1_acc"), abs=0.03)
    assert f"- {SCENES}: grid default, points 1, but hidden_layers 1" in result.stdout


# Arguments


@pytest.fixture
def tasks_dir(tmp_path: Path) -> Path:
    """Write a task without files: enough to be found."""
    task = tmp_path / "tasks" / SCENES
    task.mkdir(parents=True)
    metadata = {"embedding_type": "scene", "splits": ["train"]}
    (task / "task_metadata.json").write_text(json.dumps(metadata))
    (task / "labelvocabulary.csv").write_text("idx,label\n")
    return task.parent


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["--task=birds", TINY], f"choose all or one of {SCENES}"),
        (["--tasks-dir=nowhere", TINY], "tasks-dir=nowhere is not a folder"),
        (["--tasks-dir=.", TINY], "tasks-dir=. holds no task"),
        ([f"{TINY}:layer=8"], "SYSTEM 'hear_transformers.tiny:layer=8' is unknown; write MODULE, MODULE=WEIGHTS"),
        ([f"{TINY}:{{layer: 8}}"], "'{layer: 8}' is not JSON"),
        ([f'{TINY}=nowhere.pt:{{"layer": 8}}'], "there is no file nowhere.pt"),
        ([TINY, PANNS, TINY], "has the same folder as another, hear_transformers.tiny"),
        (["--python=nowhere", TINY], "--python nowhere: there is no such program; `make hear`"),
        (["--param-grid=nowhere.json", TINY], "--param-grid nowhere.json: cannot be read"),
    ],
)
def test_a_wrong_command_is_refused_before_anything_runs(
    given: list[str], message: str, tasks_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = benchmark("--tasks-dir", tasks_dir, "--out", "out", *given)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not Path("out").exists()


@pytest.mark.parametrize(
    ("grids", "message"),
    [
        ([], "is not a JSON object; an example:"),
        ({"birds": {}}, f"task 'birds' is not there; choose from {SCENES}"),
        ({SCENES: {"learning_rate": [0.1]}}, "'learning_rate': [0.1] is not a parameter and a list of values"),
        ({SCENES: {"lr": 0.1}}, "'lr': 0.1 is not a parameter and a list of values"),
        ({SCENES: ["lr"]}, "is not a parameter and a list of values; parameters are hidden_layers, "),
    ],
)
def test_a_custom_grid_is_checked(grids: object, message: str, tasks_dir: Path, tmp_path: Path) -> None:
    file = tmp_path / "grids.json"
    file.write_text(json.dumps(grids))
    result = benchmark("--tasks-dir", tasks_dir, "--out", tmp_path / "out", "--param-grid", file, TINY)
    assert result.exit_code == 2
    assert message in result.stderr


def test_the_grids_of_our_published_results_are_valid() -> None:
    path = Path(official.__file__).with_name("grids.json")
    assert hear.read_param_grids(path, list(json.loads(path.read_text())))


def test_an_interpreter_without_the_harness_is_refused(tasks_dir: Path, tmp_path: Path) -> None:
    python = tmp_path / "python"
    python.write_text("#!/bin/sh\necho Error: it lacks heareval >&2\nexit 1\n")
    python.chmod(0o755)
    result = benchmark("--tasks-dir", tasks_dir, "--out", tmp_path / "out", "--python", python, TINY)
    assert (result.exit_code, result.stderr) == (1, f"Error: --python {python}: Error: it lacks heareval\n")


def test_names_of_gpus_are_bytes_again(monkeypatch: pytest.MonkeyPatch) -> None:
    nvml = types.ModuleType("pynvml")
    nvml.nvmlDeviceGetName = lambda handle: f"GPU {handle}"
    monkeypatch.setitem(sys.modules, "pynvml", nvml)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    official.patch_gpu_names()
    assert nvml.nvmlDeviceGetName(0).decode("utf-8") == "GPU 0"


def test_missing_packages_are_named_with_the_remedy() -> None:
    with pytest.raises(HearTransformersError, match="it lacks no_such_package; `make hear` and `make test` install it"):
        official.require("json", "no_such_package")
