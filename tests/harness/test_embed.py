"""Our embedding stage of HEAR's benchmark: the files of the official one."""

import json
import os
import pickle
import random
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hear_transformers import passt, tiny
from hear_transformers.embedding.external import ExternalModel
from hear_transformers.errors import HearTransformersError, OptionError
from hear_transformers.harness import embed, tasks
from hear_transformers.harness.systems import folder_name

RATE = 32_000
EVENTS = [
    {"label": "beep", "start": 0.0, "end": 250.0},
    {"label": "beep", "start": 200.0, "end": 300.0},
    {"label": "click", "start": 260.5, "end": 600.0},
]
MODULE = "hear_transformers.tiny"


def write_task(folder: Path, kind: str, rate: int = RATE) -> Path:
    """Write a task of two splits with three clips of noise each."""
    rng = np.random.default_rng(0)
    splits = ["train", "test"]
    for split in splits:
        labels = {f"{split} {i}.wav": EVENTS[i:] if kind == "event" else [f"class{i}"] for i in range(3)}
        (folder / str(rate) / split).mkdir(parents=True)
        for name in labels:
            soundfile.write(folder / str(rate) / split / name, 0.1 * rng.standard_normal(rate), rate)
        (folder / f"{split}.json").write_text(json.dumps(labels))
    metadata = {"embedding_type": kind, "prediction_type": "multilabel", "sample_duration": 1.0, "splits": splits}
    (folder / tasks.METADATA).write_text(json.dumps(metadata))
    (folder / tasks.VOCABULARY).write_text("idx,label\n0,beep\n1,click\n")
    return folder


@pytest.fixture
def tasks_dir(tmp_path):
    """Write a folder with a scene task, an event task, and a stray file."""
    folder = tmp_path / "tasks"
    write_task(folder / "scenes-v1-full", "scene")
    write_task(folder / "events-v1-full", "event")
    (folder / "README").touch()
    return folder


@pytest.fixture
def hear(installed_command):
    """Run `hear-transformers hear`."""
    command = installed_command("hear-transformers")
    return lambda *arguments: command("hear", *arguments)


def load_json(path: Path):
    return json.loads(path.read_text())


def rows_of(folder: Path, split: str) -> np.ndarray:
    return np.fromfile(folder / f"{split}.embeddings.npy", np.float32).reshape(
        load_json(folder / f"{split}.embedding-dimensions.json")
    )


# Tasks


def test_tasks_are_found_among_other_things(tasks_dir):
    assert [(task.name, task.kind) for task in tasks.find_tasks(tasks_dir)] == [
        ("events-v1-full", "event"),
        ("scenes-v1-full", "scene"),
    ]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda folder: (folder / tasks.METADATA).write_text("{"), "damaged or incomplete"),
        (lambda folder: (folder / tasks.METADATA).write_text("[]"), "no JSON object"),
        (lambda folder: (folder / tasks.METADATA).write_text('{"embedding_type": "song"}'), "expected one of scene"),
        (
            lambda folder: (folder / tasks.METADATA).write_text('{"embedding_type": "scene", "splits": ["../x"]}'),
            "expected names",
        ),
        (lambda folder: (folder / tasks.VOCABULARY).unlink(), "incomplete"),
        (lambda folder: (folder / "train.json").unlink(), "train.json"),
        (lambda folder: (folder / "train.json").write_text('{"../../x.wav": ["class0"]}'), "not the name of a file"),
    ],
)
def test_a_damaged_task_is_refused(tasks_dir, tmp_path, damage, message):
    damage(tasks_dir / "scenes-v1-full")
    with pytest.raises(OptionError, match=message):
        embed.embed_tasks(tiny.load_model(), [embed.Part("x")], tasks.find_tasks(tasks_dir), tmp_path / "embeddings")


@pytest.mark.slow
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--tasks-dir", "nowhere"], "hearbenchmark.com"),
        (["--tasks-dir", "."], "holds no task"),
        (["--task", "songs"], "choose all or one of events-v1-full, scenes-v1-full"),
        (["--model-options", "{"], "not JSON"),
        (["--model-options", '{"layer": 99}'], "layer='99' is unknown"),
        (["--layers", "8", "--model-options", '{"layer": 8}'], "give one of them"),
        (["--layers", "8,8"], "twice"),
    ],
)
def test_bad_options_are_refused(hear, tasks_dir, monkeypatch, arguments, message):
    monkeypatch.chdir(tasks_dir.parent)
    (tasks_dir.parent / "nothing").mkdir()
    result = hear("embed", MODULE, *arguments)
    assert (result.exit_code, message in result.output) == (2, True), result.output


def test_a_missing_sample_rate_is_answered_with_the_existing_ones(hear, tmp_path):
    write_task(tmp_path / "tasks" / "low", "scene", rate=8000)
    result = hear("embed", MODULE, "--tasks-dir", tmp_path / "tasks", "--out", tmp_path / "out")
    assert result.exit_code == 2
    assert "no audio at 32000 Hz" in result.output
    assert "it has 8000" in result.output


# Files


def test_folders_are_named_as_by_heareval():
    # What python-slugify 8 makes of the same keys and values.
    assert folder_name("m", {}) == "m"
    assert folder_name("m", {"layer": 8, "hop_ms": 12.5}) == "m-layer=8-hop-ms=12-5"
    assert folder_name("m", {"layer": "0,4,12", "Pool": "mean max"}) == "m-layer=0412-pool=mean-max"
    assert folder_name("m", {"window_ms": [160, 800], "pretrained": False}) == ("m-window-ms=160-800-pretrained=false")


def test_labels_at_a_time_are_those_of_the_events_around_it():
    times_ms = np.array([0, 250, 250.5, 260, 300, 600, 601], np.float32)
    assert embed.labels_at(EVENTS, times_ms) == [
        ["beep"],
        ["beep"],
        ["beep"],
        ["beep"],
        ["beep", "click"],
        ["click"],
        [],
    ]


@pytest.mark.slow
def test_rows_of_a_split_are_its_files_shuffled(tasks_dir, tmp_path):
    model = tiny.load_model()
    embed.embed_tasks(model, [embed.Part(MODULE)], tasks.find_tasks(tasks_dir), tmp_path / "out")
    folder = tmp_path / "out" / MODULE / "scenes-v1-full"
    names = [f"train {i}.wav" for i in range(3)]
    random.Random(0).shuffle(names)
    each = [np.load(folder / "train" / f"{name}.embedding.npy") for name in names]
    np.testing.assert_array_equal(rows_of(folder, "train"), each)
    with (folder / "train.target-labels.pkl").open("rb") as file:
        assert pickle.load(file) == [[f"class{name[6]}"] for name in names]


@pytest.mark.slow
def test_layers_of_a_sweep_equal_models_of_one_layer(hear, tasks_dir, tmp_path):
    out = tmp_path / "out"
    common = ["--tasks-dir", tasks_dir, "--out", out]
    assert hear("embed", "tiny", *common, "--layers", "mel,4,-1").exit_code == 0
    for layer in ("mel", "4", "12"):
        assert (
            hear("embed", MODULE, *common, "--model-options", json.dumps({"layer": layer, "hop_ms": 50})).exit_code == 0
        )
        for task in ("scenes-v1-full", "events-v1-full"):
            of_sweep = rows_of(out / f"{MODULE}-layer={layer}" / task, "test")
            alone = rows_of(out / f"{MODULE}-layer={layer}-hop-ms=50" / task, "test")
            np.testing.assert_allclose(of_sweep, alone, atol=1e-5)


@pytest.mark.slow
def test_a_sweep_keeps_the_mel_of_a_preset_with_every_layer():
    model, parts = embed.load_with_parts(
        "passt", options={"variant": "base2levelmel", "pretrained": False}, layers="4,8"
    )
    for part, layer in zip(parts, (4, 8), strict=True):
        alone = passt.load_model("", "base2levelmel", layer=layer, pretrained=False)
        assert part.columns is not None
        assert part.time_columns is not None
        assert len(part.columns) == alone.scene_embedding_size
        assert len(part.time_columns) == alone.timestamp_embedding_size
    assert model.timestamp_embedding_size < sum(len(part.time_columns or ()) for part in parts)


@pytest.mark.slow
def test_a_local_module_is_embedded(hear, tasks_dir, tmp_path, monkeypatch):
    (tmp_path / "my_hear_module.py").write_text("from hear_transformers.tiny import *\n")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    options = ["--model-options", '{"layer": 3}']
    assert hear("embed", "my_hear_module", *options).exit_code == 0
    folder = tmp_path / "embeddings" / "my_hear_module-layer=3" / "scenes-v1-full"
    assert rows_of(folder, "test").shape == (3, 192)


# Resuming


class Stopping(ExternalModel):
    """A model that stops after some files."""

    def __init__(self, n_files: int) -> None:
        self.model = tiny.load_model()
        self.sample_rate, self.batch_size, self.precision = RATE, 1, "float32"
        self.n_left = n_files
        self.n_embedded = 0

    def embed_scenes(self, waveforms):
        if not self.n_left:
            raise KeyboardInterrupt
        self.n_left -= 1
        self.n_embedded += 1
        return self.model.embed_scenes(waveforms)

    def provenance(self):
        return self.model.provenance()


@pytest.mark.slow
def test_an_interrupted_run_is_resumed(tasks_dir, tmp_path):
    parts, scenes = [embed.Part(MODULE)], tasks.find_tasks(tasks_dir, "scenes-v1-full")
    with pytest.raises(KeyboardInterrupt):
        embed.embed_tasks(Stopping(4), parts, scenes, tmp_path / "stopped")
    rest = Stopping(100)
    embed.embed_tasks(rest, parts, scenes, tmp_path / "stopped")
    assert rest.n_embedded == 2
    embed.embed_tasks(Stopping(100), parts, scenes, tmp_path / "whole")
    for split in ("train", "test"):
        stopped, whole = (tmp_path / name / MODULE / "scenes-v1-full" for name in ("stopped", "whole"))
        np.testing.assert_array_equal(rows_of(stopped, split), rows_of(whole, split))


@pytest.mark.slow
def test_what_is_read_again_is_what_was_held(tasks_dir, tmp_path, monkeypatch):
    model, found = tiny.load_model(hop_ms=200), tasks.find_tasks(tasks_dir)
    embed.embed_tasks(model, [embed.Part(MODULE)], found, tmp_path / "held")
    monkeypatch.setattr(embed, "MOST_HELD", 0)
    embed.embed_tasks(model, [embed.Part(MODULE)], found, tmp_path / "read")
    held, read = (contents(tmp_path / name / MODULE) for name in ("held", "read"))
    assert held == read


def contents(folder: Path) -> dict[str, object]:
    """Read every file; places of rows begin with the folder, a profile has times."""
    files = {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    return {
        name: pickle.loads(content) if name.endswith(".pkl") else content.replace(os.fsencode(folder), b"")
        for name, content in files.items()
        if not name.endswith(embed.PROFILE)
    }


@pytest.mark.slow
def test_a_complete_task_is_kept(tasks_dir, tmp_path):
    parts, scenes = [embed.Part(MODULE)], tasks.find_tasks(tasks_dir, "scenes-v1-full")
    embed.embed_tasks(Stopping(100), parts, scenes, tmp_path)
    again = Stopping(0)
    embed.embed_tasks(again, parts, scenes, tmp_path)
    assert again.n_embedded == 0


@pytest.mark.slow
def test_a_run_with_other_settings_starts_over(tasks_dir, tmp_path):
    parts, scenes = [embed.Part(MODULE)], tasks.find_tasks(tasks_dir, "scenes-v1-full")
    with pytest.raises(KeyboardInterrupt):
        embed.embed_tasks(Stopping(4), parts, scenes, tmp_path)
    other = Stopping(100)
    other.provenance = lambda: {"layer": 3}
    embed.embed_tasks(other, parts, scenes, tmp_path)
    assert other.n_embedded == 6


def test_a_folder_of_other_things_is_not_cleared(tasks_dir, tmp_path):
    folder = tmp_path / MODULE / "scenes-v1-full"
    folder.mkdir(parents=True)
    (folder / "thesis.txt").touch()
    with pytest.raises(OptionError, match="holds other things"):
        embed.embed_tasks(Stopping(9), [embed.Part(MODULE)], tasks.find_tasks(tasks_dir, "scenes-v1-full"), tmp_path)
    assert (folder / "thesis.txt").exists()


def test_a_file_that_cannot_be_embedded_ends_the_run_with_its_name(tasks_dir, tmp_path):
    (tasks_dir / "scenes-v1-full" / str(RATE) / "test" / "test 1.wav").write_bytes(b"no audio")
    with pytest.raises(HearTransformersError, match=r"test 1\.wav: .*resumes the run"):
        embed.embed_tasks(Stopping(9), [embed.Part(MODULE)], tasks.find_tasks(tasks_dir, "scenes-v1-full"), tmp_path)
    assert not (tmp_path / MODULE / "scenes-v1-full" / embed.DONE).exists()


# Beside the official runner


def official(tasks_dir: Path, out: Path) -> None:
    python = os.environ.get("HEAR_PYTHON")
    if python is None:
        pytest.skip("make test installs HEAR's harness")
    command = [python, "-m", "hear_transformers.cli.official", "embeddings", MODULE]
    for task in tasks.find_tasks(tasks_dir):
        options = ["--tasks-dir", str(tasks_dir), "--task", task.name, "--embeddings-dir", str(out)]
        subprocess.run([*command, *options], check=True, capture_output=True)


def test_files_are_those_of_the_official_runner(hear, tasks_dir, tmp_path):
    official(tasks_dir, tmp_path / "theirs")
    hear("embed", MODULE, "--tasks-dir", tasks_dir, "--out", tmp_path / "ours")
    ours, theirs = tmp_path / "ours" / MODULE, tmp_path / "theirs" / MODULE
    names = sorted(path.relative_to(theirs) for path in theirs.rglob("*") if path.is_file())
    assert names == sorted(path.relative_to(ours) for path in ours.rglob("*") if path.is_file())
    for name in names:
        assert_same(ours / name, theirs / name)


def assert_same(ours: Path, theirs: Path) -> None:
    """Compare two files of embeddings: numbers to 1e-5, labels of a time as sets, everything else byte by byte."""
    if ours.name == embed.PROFILE:
        assert load_json(theirs).keys() <= load_json(ours).keys()
    elif ours.name.endswith(".embeddings.npy"):
        split = ours.name.partition(".")[0]
        np.testing.assert_allclose(rows_of(ours.parent, split), rows_of(theirs.parent, split), atol=1e-5)
    elif ours.suffix == ".npy":
        np.testing.assert_allclose(np.load(ours), np.load(theirs), atol=1e-5)
    elif "target-labels" in ours.name:
        assert labels_of(ours) == labels_of(theirs)
    else:
        assert ours.read_text().replace("/ours/", "/theirs/") == theirs.read_text()


def labels_of(path: Path) -> list[set[str]]:
    """Read the labels of each row or time; heareval's own are in no order, and may repeat."""
    labels = pickle.loads(path.read_bytes()) if path.suffix == ".pkl" else load_json(path)
    return [{row} if isinstance(row, str) else set(row) for row in labels]
