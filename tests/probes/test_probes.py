"""Tasks, probes and saved probes: what is drawn, chosen and kept, and what is refused."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier

from hear_transformers.errors import OptionError, TrainingError, WeightsError
from hear_transformers.probes import evaluation, fitting, mlp, saved, tasks
from hear_transformers.probes.sample import Sample

RNG = np.random.default_rng(0)
LABELS = np.eye(3, dtype=np.float32)[np.arange(90) % 3]
EMBEDDINGS = (RNG.normal(size=(90, 12)) + 2 * LABELS @ RNG.normal(size=(3, 12))).astype(np.float32)
NAMES = [f"{i}.wav" for i in range(90)]
CLASSES = ["a", "b", "c"]
QUICK_MLP = {"grid_points": 1, "hidden_dim": 16, "max_epochs": 30, "lr": 1e-2}


def sample(settings=None, y=LABELS, multi_label=False):
    return Sample(EMBEDDINGS[:60], y[:60], EMBEDDINGS[60:], y[60:], multi_label, 0, settings or {})


def test_drawn_folds_keep_groups_together_and_classes_even():
    groups = [str(i // 3) for i in range(90)]
    task = tasks.make_task(NAMES, CLASSES, LABELS, groups=groups, n_folds=5)
    for split in task.splits:
        train, test = ({groups[i] for i in rows} for rows in (split.train, split.test))
        assert not train & test
        assert task.targets[split.test].sum(0).tolist() == [6, 6, 6]
    assert "drawn with seed 0" in task.split_in_words


@pytest.mark.parametrize(("n_of_rarest", "n_folds"), [(12, 5), (4, 4), (3, 3)])
def test_as_many_folds_are_drawn_as_the_rarest_class_has_clips(n_of_rarest, n_folds):
    kept = [i for i in range(60) if not LABELS[i, 2]] + [i for i in range(90) if LABELS[i, 2]][:n_of_rarest]
    task = tasks.make_task([NAMES[i] for i in kept], CLASSES, LABELS[kept])
    assert len(task.splits) == n_folds
    assert all(task.targets[split.test].sum(0).min() >= 1 for split in task.splits)


@pytest.mark.parametrize("n_files", [1, 2])
def test_too_few_files_to_split_are_refused_with_what_helps(n_files):
    files = [f"{i % n_files}.wav" for i in range(90)]
    with pytest.raises(TrainingError, match="of one file or group, which stays together; add clips of other files"):
        tasks.make_task(files, CLASSES, LABELS, n_folds=2)


def test_a_class_of_a_single_clip_is_refused_by_name():
    kept = [i for i in range(60) if not LABELS[i, 2]] + [2]
    with pytest.raises(TrainingError, match="'c' has a single clip"):
        tasks.make_task([NAMES[i] for i in kept], CLASSES, LABELS[kept])


def test_given_folds_are_tested_in_turn_and_the_next_is_validated_on():
    task = tasks.make_task(NAMES, CLASSES, LABELS, folds=[str(i // 30) for i in range(90)])
    assert [split.name for split in task.splits] == ["0", "1", "2"]
    assert task.splits[2].valid.tolist() == list(range(30))


def test_train_valid_and_test_are_one_split():
    task = tasks.make_task(NAMES, CLASSES, LABELS, folds=["train"] * 60 + ["valid"] * 15 + ["test"] * 15)
    (split,) = task.splits
    assert (len(split.train), len(split.valid), len(split.test)) == (60, 15, 15)


def test_two_folds_are_validated_on_a_part_of_what_is_trained_on():
    task = tasks.make_task(NAMES, CLASSES, LABELS, folds=["x"] * 45 + ["y"] * 45)
    assert not set(task.splits[0].valid) & set(task.splits[0].test)
    assert 6 <= len(task.splits[0].valid) <= 12


@pytest.mark.parametrize(
    ("classes", "labels", "folds", "message"),
    [
        (["a"], np.ones((90, 1)), None, "the one label 'a'"),
        ([*CLASSES, "d"], np.pad(LABELS, ((0, 0), (0, 1))), None, "no clip has the label 'd'"),
        (CLASSES, LABELS, [str(i % 3) for i in range(90)], "no clip of"),
        (CLASSES, LABELS, ["1"] * 90, "the only fold is '1'"),
    ],
)
def test_tasks_without_an_answer_are_refused(classes, labels, folds, message):
    with pytest.raises((TrainingError, OptionError), match=message):
        tasks.make_task(NAMES, classes, labels, folds=folds)


def test_neighbours_equal_scikit_learns():
    fitted = fitting.fit("knn", sample({"k": 5}))
    rows = EMBEDDINGS - EMBEDDINGS.mean(0)
    theirs = KNeighborsClassifier(5, metric="cosine").fit(rows, LABELS.argmax(1))
    queries = RNG.normal(size=(20, 12)).astype(np.float32)
    expected = theirs.predict_proba(queries - EMBEDDINGS.mean(0))
    np.testing.assert_allclose(fitted.probabilities(queries), expected, atol=1e-6)


def test_logistic_regression_equals_scikit_learns_on_standardised_numbers():
    fitted = fitting.fit("logistic", sample({"C": 0.1}))
    rows = (EMBEDDINGS - EMBEDDINGS.mean(0)) / EMBEDDINGS.std(0)
    expected = LogisticRegression(C=0.1, max_iter=1000).fit(rows, LABELS.argmax(1)).predict_proba(rows)
    np.testing.assert_allclose(fitted.probabilities(EMBEDDINGS), expected, atol=1e-4)


def test_folding_batch_norms_does_not_change_the_mlp():
    import torch

    point = {name: values[0] for name, values in mlp.GRID.items()} | {"hidden_layers": 2, "hidden_dim": 8}
    network = mlp.build(12, 3, point)
    network(torch.from_numpy(EMBEDDINGS))  # moves the running averages
    network.eval()
    expected = torch.softmax(network(torch.from_numpy(EMBEDDINGS)), 1).detach().numpy()
    arrays = {"mean": np.zeros(12, np.float32), "scale": np.ones(12, np.float32), **mlp.folded(network)}
    found = fitting.Fitted("mlp", False, arrays, {}).probabilities(EMBEDDINGS)
    np.testing.assert_allclose(found, expected, atol=1e-5)


def test_fitting_the_mlp_is_repeatable_and_leaves_the_random_state():
    import torch

    before = torch.random.get_rng_state()
    first, again = (fitting.fit("mlp", sample(QUICK_MLP)) for _ in range(2))
    np.testing.assert_array_equal(first.arrays["weight0"], again.arrays["weight0"])
    assert torch.equal(before, torch.random.get_rng_state())


def test_the_gate_finds_the_layer_that_knows():
    noise = RNG.normal(size=(90, 24)).astype(np.float32)
    both = np.concatenate([noise, EMBEDDINGS], 1)
    task = tasks.make_task(NAMES, CLASSES, LABELS, n_folds=3)
    fitted = evaluation.fit_whole(both, task, "gate", columns={"1": range(24), "2": range(24, 36)})
    assert fitted.settings["gates"]["2"] > 0.5


@pytest.mark.parametrize("probe", ["logistic", "knn", "mlp", "gate"])
@pytest.mark.parametrize("multi_label", [False, True])
def test_probes_learn_and_survive_being_saved(tmp_path, probe, multi_label):
    labels = np.maximum(LABELS, np.roll(LABELS, 1, 1)) if multi_label else LABELS
    task = tasks.make_task(NAMES, CLASSES, labels, n_folds=3)
    settings = QUICK_MLP if probe == "mlp" else None
    result = evaluation.evaluate(EMBEDDINGS, task, probe, settings=settings)
    assert result.main == ("mAP" if multi_label else "accuracy")
    assert result.scores["mAP"].value > 0.9
    fitted = evaluation.fit_whole(EMBEDDINGS, task, probe, settings=settings)
    saved.write(tmp_path, saved.Saved(fitted, task.classes, {"family": "x"}, {}, {}))
    np.testing.assert_array_equal(
        saved.read(tmp_path).fitted.probabilities(EMBEDDINGS), fitted.probabilities(EMBEDDINGS)
    )


def test_the_difference_of_a_result_to_itself_is_certain():
    task = tasks.make_task(NAMES, CLASSES, LABELS, n_folds=3)
    results = dict(evaluation.evaluate_each({"one": EMBEDDINGS, "same": EMBEDDINGS}, task))
    found = evaluation.difference(results["one"], results["same"])
    assert (found.value, found.low, found.high) == (0, 0, 0)


def test_embeddings_that_are_not_finite_are_refused_by_name():
    task = tasks.make_task(NAMES, CLASSES, LABELS, n_folds=3)
    broken = EMBEDDINGS.copy()
    broken[7, 3] = np.nan
    with pytest.raises(TrainingError, match=r"7\.wav: its embedding is not finite"):
        evaluation.evaluate(broken, task)


def test_a_folder_without_a_probe_and_a_damaged_one_are_refused(tmp_path):
    with pytest.raises(WeightsError, match="no probe here"):
        saved.read(tmp_path)
    (tmp_path / saved.WORDS).write_text("{}")
    (tmp_path / saved.ARRAYS).write_bytes(b"nonsense")
    with pytest.raises(WeightsError, match="damaged"):
        saved.read(tmp_path)


def test_a_probe_refuses_embeddings_of_another_layer():
    probe = saved.Saved(fitting.fit("knn", sample()), ("a",), {"family": "x", "layer": "4"}, {}, {})
    saved.check_fit(probe, {"family": "x", "layer": "4", "package": "newer"}, "clips")
    with pytest.raises(OptionError, match="layer 4 -> 8"):
        saved.check_fit(probe, {"family": "x", "layer": "8"}, "clips")
