"""Measures of a comparison beside scikit-learn's and beside their definitions; bad data."""

import json

import numpy as np
import pytest
import soundfile
from sklearn import metrics
from sklearn.cluster import KMeans

from hear_transformers import tiny
from hear_transformers.comparison import compare, measures
from hear_transformers.errors import AudioError, OptionError
from hear_transformers.training.manifest import read_labelled


def clusters(n: int = 10, spread: float = 1.0) -> tuple[np.ndarray, np.ndarray]:
    draws = np.random.default_rng(0)
    labels = np.repeat(np.arange(3), n)
    return draws.normal(size=(3, 8))[labels] * 3 + spread * draws.normal(size=(3 * n, 8)), labels


def test_measures_are_scikit_learns():
    vectors, labels = clusters(spread=3.0)
    found = measures.measure(vectors, labels, seed=1, resamples=20)
    assert [*found] == [*measures.MEASURES]
    groups = KMeans(3, n_init=10, random_state=1).fit_predict(vectors)
    expected = {
        "silhouette": metrics.silhouette_score(vectors, labels, metric="cosine"),
        "davies_bouldin": metrics.davies_bouldin_score(vectors, labels),
        "calinski_harabasz": metrics.calinski_harabasz_score(vectors, labels),
        "nmi": metrics.normalized_mutual_info_score(labels, groups),
        "ami": metrics.adjusted_mutual_info_score(labels, groups),
        "ari": metrics.adjusted_rand_score(labels, groups),
        "v_measure": metrics.v_measure_score(labels, groups),
    }
    for name, value in expected.items():
        assert found[name]["value"] == pytest.approx(value, abs=1e-12), name
        assert found[name]["low"] <= found[name]["high"]
    assert found["silhouette"]["low"] < found["silhouette"]["value"] < found["silhouette"]["high"]


def test_resamples_keep_every_class():
    labels = np.array([0, 0, 1, 1, 1])
    for clips in measures.redrawn(labels, 50, 0):
        assert np.bincount(labels[clips]).tolist() == [2, 3]
        assert all(len(set(clips[labels[clips] == label])) > 1 for label in (0, 1))


def test_cka_of_a_layer_with_itself_is_one_and_ignores_rotation_and_scale():
    vectors, _ = clusters()
    rotation = np.linalg.qr(np.random.default_rng(1).normal(size=(8, 8)))[0]
    grams = [measures.gram(vectors), measures.gram(5 * vectors @ rotation + 3)]
    np.testing.assert_allclose(measures.debiased_cka(grams, grams), 1, atol=1e-9)


def test_cka_of_unrelated_layers_is_zero_on_average():
    draws = np.random.default_rng(0)
    values = []
    for _ in range(40):
        grams = [measures.gram(draws.normal(size=(20, 100))) for _ in range(2)]
        values.append(measures.debiased_cka(grams[:1], grams[1:])[0, 0])
    assert abs(np.mean(values)) < 4 * np.std(values) / np.sqrt(len(values)) + 1e-3


def test_the_estimate_is_its_definition():
    # Song et al.: the mean of a U-statistic over all quadruples of different clips.
    draws = np.random.default_rng(0)
    one, other = (measures.gram(draws.normal(size=(6, 3))) for _ in range(2))
    n = range(6)
    quadruples = [(i, j, q, r) for i in n for j in n for q in n for r in n if len({i, j, q, r}) == 4]
    terms = [one[i, j] * (other[i, j] + other[q, r] - 2 * other[i, q]) for i, j, q, r in quadruples]
    assert measures.hsic(one, other) == pytest.approx(np.mean(terms), abs=1e-12)


@pytest.fixture
def data(tmp_path):
    draws = np.random.default_rng(0)
    for name, hz in (("low", 300), ("high", 3_000)):
        (tmp_path / "data" / name).mkdir(parents=True)
        for number in range(3):
            t = np.arange(8_000) / 16_000
            tone = 0.3 * np.sin(2 * np.pi * hz * t) + 0.01 * draws.normal(size=len(t))
            soundfile.write(tmp_path / "data" / name / f"{number}.wav", tone, 16_000)
    return tmp_path / "data"


@pytest.fixture
def run(installed_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = installed_command("hear-transformers")
    return lambda *arguments: command("compare", *arguments)


def test_two_models_are_compared(run, data, small_weights, tmp_path):
    (data / "low" / "bad.wav").write_text("no audio")
    result = run("tiny", "mn01_as", data, "--weights-b", small_weights, "--layer", "0,1", "--out", "c", "--json")
    assert result.exit_code == 1, result.output
    report = json.loads(result.stdout)
    assert report["clips"] == 6
    assert [*report["models"][0]["layers"]] == ["0", "1"]
    assert report["models"][0]["layers"]["1"]["nmi"]["value"] == pytest.approx(1)
    assert np.shape(report["cka"]["values"]) == (2, 2)
    assert "bad.wav" in result.stderr
    for name in ("measures.csv", "measures.md", "cka.csv", "measures.png", "cka.png", "maps.png"):
        assert (tmp_path / "c" / name).stat().st_size > 50


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "nothing"], "B, nothing"),
        (["tiny", "tiny", "--layer", "99"], "A, tiny: layer='99' is unknown"),
    ],
)
def test_wrong_options_are_explained(run, data, arguments, message):
    result = run(*arguments[:2], data, *arguments[2:])
    assert result.exit_code == 2
    assert message in result.stderr


@pytest.mark.parametrize(("removed", "message"), [("high/*", "is the only class"), ("high/[01].wav", "high: one clip")])
def test_too_few_classes_or_clips_are_refused(run, data, removed, message):
    for path in data.glob(removed):
        path.unlink()
    result = run("tiny", "tiny", data)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_embeddings_that_are_not_finite_are_refused(data):
    model = tiny.load_model(layer="0")
    model.trunk.stem.proj.bias.data[0] = float("nan")
    with pytest.raises(AudioError, match=r"6 failed, the first: .*finite"):
        compare.compare((model, model), read_labelled(data))


def test_clips_of_several_labels_or_none_are_refused(data):
    (data / "clips.csv").write_text("path,labels\nlow/0.wav,a;b\nlow/1.wav,\n")
    model = tiny.load_model(layer="0")
    with pytest.raises(OptionError, match="has 2 labels; clusters need one"):
        compare.compare((model, model), read_labelled(data / "clips.csv"))
