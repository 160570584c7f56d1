"""The study of transfer: a network trained from scratch and trained on, beside layers on its features."""

import csv
import json
import shlex

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from hear_transformers.errors import OptionError
from hear_transformers.probes import tasks
from hear_transformers.sweep import results, transfer
from hear_transformers.training.train import Training
from tests.helpers import hear_tasks

STUDY = ("--study", "panns-transfer", "--epochs", 1, "--num-workers", 0)
ALL_WAYS = {"logistic", "mlp", "scratch", "fine-tune"}


@pytest.fixture
def sweep(installed_command, small_weights):
    def run(*arguments, data="clips", model=f"mn01_as={small_weights}"):
        models = ["--model", model] if model else []
        return installed_command("hear-transformers")("sweep", data, *models, *arguments)

    return run


@pytest.fixture
def parted(labelled):
    """Make a table of the tones, a third each to train on, to validate on and to test."""
    names = [f"{kind}/{kind}{i}.wav" for kind in ("low", "high") for i in range(6)]
    lines = [
        f"clips/{name},{name.partition('/')[0]},{('train', 'valid', 'test')[i % 3]}" for i, name in enumerate(names)
    ]
    (labelled / "parted.csv").write_text("path,labels,part\n" + "\n".join(lines) + "\n")
    return labelled


def rows_of(done):
    assert done.exit_code == 0, done.stderr
    return [row for row in json.loads(done.stdout)["rows"] if row["is_main"]]


def test_four_ways_are_scored_side_by_side_and_kept(parted, sweep, installed_command, monkeypatch):
    runs = []
    fit = Training.fit
    monkeypatch.setattr(Training, "fit", lambda training: runs.append(training) or fit(training))
    how = (*STUDY, "--columns", "fold=part", "--json")
    rows = rows_of(sweep(*how, data="parted.csv"))
    assert {row["probe"] for row in rows} == ALL_WAYS
    assert {(row["layer"], row["pool"], row["clips"], row["clips_per_class"]) for row in rows} == {
        ("features", "vector", 12, None)
    }
    assert all(row["low"] <= row["value"] <= row["high"] for row in rows)
    assert [(run.options.source == "", run.options.recipe.epochs) for run in runs] == [(True, 1), (False, 1)]
    # Tones of half a second, as long as the network takes at least, are not padded to the 10 s of AudioSet.
    assert all(run.n_samples < 2 * run.sample_rate for run in runs)
    assert {row.probe for row in results.read_csv(parted / "sweep/results.csv")} == ALL_WAYS
    assert "fine-tune" in (parted / "sweep/results.md").read_text(encoding="utf-8")
    assert not [*parted.glob("sweep/trained/**/last.pt")]

    assert {json.dumps(row) for row in rows_of(sweep(*how, data="parted.csv"))} == set(map(json.dumps, rows))
    assert len(runs) == 2

    (command,) = {row["command"] for row in rows if row["probe"] == "fine-tune"}
    program, *arguments = shlex.split(command)
    done = installed_command(program)(*arguments)
    assert done.exit_code == 0, done.stderr
    settings, again = (
        json.loads((parted / folder / "settings.json").read_text()) for folder in (runs[1].options.out, "trained")
    )
    assert again == settings


def test_no_clip_is_trained_on_and_tested(labelled, sweep):
    how = (*STUDY, "--folds", 3, "--probe", "knn", "--random-model", "mn01_as")
    assert sweep(*how, model="").exit_code == 0
    (folder,) = labelled.glob("sweep/trained/clips/*-scratch-*")
    tested = []
    for number in (1, 2, 3):
        parts = {}
        for name in ("train", "valid"):
            with (folder / f"{number}-{name}.csv").open(newline="", encoding="utf-8") as file:
                parts[name] = {row["path"].rpartition("/")[2].removesuffix(".wav") for row in csv.DictReader(file)}
        parts["test"] = {path.stem for path in folder.glob(f"{number}/tested/**/*.npz")}
        assert sorted(map(len, parts.values())) == [4, 4, 4]
        assert len(set().union(*parts.values())) == 12
        tested += parts["test"]
    assert len(set(tested)) == 12


def test_what_was_interrupted_goes_on(labelled, sweep, monkeypatch):
    predict, runs = transfer.Run._predict, []

    def stopped(run, split, best):
        runs.append(split.name)
        if len(runs) == 2:
            raise OptionError("stopped")
        return predict(run, split, best)

    monkeypatch.setattr(transfer.Run, "_predict", stopped)
    how = (*STUDY, "--folds", 2, "--probe", "knn", "--random-model", "mn01_as", "--json")
    assert "stopped" in sweep(*how, model="").stderr
    assert len([*labelled.glob("sweep/trained/**/last.pt")]) == 2
    steps = []
    batches = Training.batches
    monkeypatch.setattr(Training, "batches", lambda training, span: steps.append(len(span)) or batches(training, span))
    assert {row["probe"] for row in rows_of(sweep(*how, model=""))} == {"knn", "scratch"}
    assert steps == [0, 0]  # of both networks nothing was left to do


def test_few_clips_of_each_class_are_an_axis(labelled, sweep):
    how = ("--layers", "1", "--pool", "mean", "--folds", 3, "--json", "--num-workers", 0)
    rows = rows_of(sweep(*how, "--clips-per-class", "2,1"))
    assert [row["clips_per_class"] for row in rows] == [1, 2, None]
    assert rows[1]["value"] == rows[2]["value"]  # two of each are all there are
    assert {row["clips"] for row in rows} == {12}
    assert (labelled / "sweep/plots/clips-shots.svg").is_file()
    text = (labelled / "sweep/results.md").read_text(encoding="utf-8")
    assert "| clips per class |" in text.partition("## All scores")[2]
    assert "choose 1 to 2" in sweep(*how, "--clips-per-class", "3").stderr
    assert "is no number of clips" in sweep(*how, "--clips-per-class", "2,0").stderr


def test_more_clips_hold_the_fewer_ones():
    targets = np.eye(3, dtype=np.float32)[np.arange(60) % 3]
    task = tasks.make_task([f"{i}.wav" for i in range(60)], ["a", "b", "c"], targets, n_folds=4)
    few, more = tasks.of_few(task, 2, seed=0), tasks.of_few(task, 5, seed=0)
    for one, other, whole in zip(few.splits, more.splits, task.splits, strict=True):
        assert targets[one.train].sum(0).tolist() == [2, 2, 2]
        assert targets[other.train].sum(0).tolist() == [5, 5, 5]
        assert {*one.train.tolist()} < {*other.train.tolist()} < {*whole.train.tolist()}
        assert (one.test == whole.test).all()
        assert (one.valid == whole.valid).all()


def test_of_several_labels_a_clip_each_class_has_enough():
    targets = (np.random.default_rng(0).random((80, 4)) < 0.3).astype(np.float32)
    task = tasks.make_task([f"{i}.wav" for i in range(80)], list("abcd"), targets, n_folds=4)
    for split in tasks.of_few(task, 3, seed=1).splits:
        assert (targets[split.train].sum(0) >= 3).all()
        assert len(split.train) <= 12


def test_random_weights_are_trained_from_scratch_only(parted, sweep):
    how = (*STUDY, "--columns", "fold=part", "--json", "--probe", "knn", "--random-model", "mn01_as")
    rows = rows_of(sweep(*how, model="", data="parted.csv"))
    assert {(row["model"], row["probe"]) for row in rows} == {
        ("mn01_as (random)", "knn"),
        ("mn01_as (random)", "scratch"),
    }


def test_several_labels_a_clip_are_trained_on(parted, sweep, installed_command):
    lines = (parted / "parted.csv").read_text().split()
    several = [line.replace(",high,", ",high|odd; one,") for line in lines]
    (parted / "parted.csv").write_text("\n".join(several) + "\n")
    how = (*STUDY, "--columns", "fold=part", "--json", "--probe", "logistic", "--label-separator", "|")
    rows = rows_of(sweep(*how, "--random-model", "mn01_as", data="parted.csv", model=""))
    assert {(row["probe"], row["metric"]) for row in rows} == {("logistic", "mAP"), ("scratch", "mAP")}
    program, *arguments = shlex.split(next(row["command"] for row in rows if row["probe"] == "scratch"))
    assert installed_command(program)(*arguments).exit_code == 0
    with (parted / "trained/scores.csv").open(encoding="utf-8", newline="") as file:
        assert "odd; one" in file.read()


def test_what_cannot_be_trained_is_told_before_anything_is_embedded(labelled, sweep):
    done = sweep(*STUDY, model="tiny")
    assert "has no classifier to train" in done.stderr
    assert "--epochs is for a study that trains networks" in sweep("--epochs", 2).stderr
    hear_tasks.write_events(labelled / "tasks", hear_tasks.synthesised(3, 2, 1.0), (3, 1, 1), [32_000], {})
    (task,) = (labelled / "tasks").iterdir()
    assert "events" in sweep(*STUDY, data=task).stderr
    assert not (labelled / "sweep").exists()
