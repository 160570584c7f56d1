"""`AudioEmbedder`: embeddings as a step of a scikit-learn pipeline."""

import os
import pickle
import shutil
import sys
from collections.abc import Callable
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from joblib import parallel_backend
from sklearn.base import clone
from sklearn.compose import make_column_transformer
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import Pipeline, make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.utils.estimator_checks import parametrize_with_checks

from hear_transformers import tiny
from hear_transformers.embedding.cache import MemoryCache
from hear_transformers.errors import AudioError, OptionError
from hear_transformers.sklearn import MEMORY, AudioEmbedder, load

SAMPLE_RATE = 16_000
CLASSES = ("steady", "rising", "falling")
CHANCE = 1 / len(CLASSES)


def glide(kind: str, rng: np.random.Generator) -> np.ndarray:
    """Make half a second of a tone that rises or falls by an octave, or stays, from any pitch, in noise."""
    t = np.linspace(0, 1, SAMPLE_RATE // 2)
    octaves = {"steady": 0 * t, "rising": t, "falling": -t}[kind]
    pitch = rng.uniform(400, 1600) * 2**octaves
    tone = np.sin(2 * np.pi * np.cumsum(pitch) / SAMPLE_RATE)
    return (rng.uniform(0.05, 0.5) * (tone + 0.05 * rng.standard_normal(len(t)))).astype(np.float32)


@pytest.fixture(scope="module")
def glides(tmp_path_factory) -> tuple[list[str], list[str]]:
    """Write 12 files of each class; give their paths and classes."""
    folder = tmp_path_factory.mktemp("glides")
    rng = np.random.default_rng(0)
    paths, classes = [], []
    for i in range(12 * len(CLASSES)):
        kind = CLASSES[i % len(CLASSES)]
        paths.append(str(folder / f"{i}.wav"))
        classes.append(kind)
        soundfile.write(paths[-1], glide(kind, rng), SAMPLE_RATE, subtype="FLOAT")
    return paths, classes


def classifier(**parameters) -> Pipeline:
    return make_pipeline(AudioEmbedder(device="cpu", **parameters), StandardScaler(), LogisticRegression(C=0.1))


@pytest.fixture(autouse=True)
def _nothing_loaded():
    load.cache_clear()
    MEMORY.clear()
    yield
    load.cache_clear()
    MEMORY.clear()


# Learning


@pytest.mark.slow
def test_a_pipeline_learns_from_paths(glides):
    scores = cross_val_score(classifier(layer=8), *glides, cv=4)
    assert scores.mean() > 0.9 > CHANCE + 0.5


@pytest.mark.slow
def test_a_search_chooses_the_layer(glides):
    # Means of mel bands cannot tell up from down.
    search = GridSearchCV(classifier(), {"audioembedder__layer": ["mel", 8]}, cv=2).fit(*glides)
    assert search.best_params_ == {"audioembedder__layer": 8}
    assert search.best_score_ > 0.9


def test_folds_load_a_model_once(glides):
    cross_val_score(classifier(layer=0), *glides, cv=2)
    assert load.cache_info().misses == 1


@pytest.mark.slow
def test_a_fitted_pipeline_predicts_the_same_after_pickling(glides):
    paths, classes = glides
    fitted = classifier(layer=2).fit(paths, classes)
    pickled = pickle.dumps(fitted)
    predicted = fitted.predict_proba(paths)
    load.cache_clear()
    np.testing.assert_array_equal(pickle.loads(pickled).predict_proba(paths), predicted)


@pytest.mark.slow
def test_folds_may_run_side_by_side(glides):
    with parallel_backend("threading", n_jobs=2):
        side_by_side = cross_val_score(classifier(layer=0), *glides, cv=2)
    np.testing.assert_array_equal(side_by_side, cross_val_score(classifier(layer=0), *glides, cv=2))


# Every clip once


@pytest.fixture
def passes(monkeypatch, tmp_path) -> Callable[[], int]:
    """Count clips that go through a stand-in for the network, in whatever process."""
    counted = tmp_path / "counted"
    forward = tiny.TinyAudioTransformer.forward

    def count(trunk, mel, wanted):
        if mel.shape[2] > trunk.min_frames:  # not the example that sizes of layers are measured on
            with counted.open("a") as file:
                file.write("clip\n" * len(mel))
        stem = forward(trunk, mel, {"0"})["0"]
        return {layer: stem + i for i, layer in enumerate(wanted)}

    monkeypatch.setattr(tiny.TinyAudioTransformer, "forward", count)
    return lambda: len(counted.read_text().splitlines()) if counted.exists() else 0


SEARCHES = {
    "blocks": {"audioembedder__layer": [4, 8, 12]},
    "blocks in any writing": {"audioembedder__layer": ["-1", "0,3", [1, 2], "features", "all"]},
    "mel": {"audioembedder__layer": ["mel", 1]},  # which needs no network
    "later steps": {"logisticregression__C": [0.1, 1.0, 10.0]},
    "both": {"audioembedder__layer": [2, 3], "logisticregression__C": [0.1, 1.0]},
}


@pytest.mark.parametrize("grid", SEARCHES.values(), ids=SEARCHES.keys())
def test_a_search_embeds_every_clip_once(glides, passes, grid):
    paths, classes = glides[0][:12], glides[1][:12]
    GridSearchCV(classifier(layer=1), grid, cv=3).fit(paths, classes).predict(paths)
    assert passes() == len(paths)


def test_a_pipeline_with_a_memory_embeds_every_clip_once_too(glides, passes, tmp_path):
    paths, classes = glides[0][:12], glides[1][:12]
    steps = make_pipeline(
        AudioEmbedder(device="cpu"), LogisticRegression(max_iter=1_000), memory=str(tmp_path / "memory")
    )
    GridSearchCV(steps, SEARCHES["blocks"], cv=3).fit(paths, classes)
    assert passes() == len(paths)


@pytest.mark.slow
def test_processes_share_a_folder(glides, tmp_path):
    paths, classes = glides[0][:12], glides[1][:12]
    folder = tmp_path / "embeddings"
    search = GridSearchCV(classifier(cache=folder), SEARCHES["blocks"], cv=3, n_jobs=2).fit(paths, classes)
    assert len([*folder.rglob("*.npy")]) == len(paths)
    alone = GridSearchCV(classifier(), SEARCHES["blocks"], cv=3).fit(paths, classes)
    np.testing.assert_allclose(search.predict_proba(paths), alone.predict_proba(paths), atol=1e-5)


def test_threads_embed_every_clip_once(glides, passes):
    paths, classes = glides[0][:12], glides[1][:12]
    with parallel_backend("threading", n_jobs=2):
        GridSearchCV(classifier(), SEARCHES["blocks"], cv=3).fit(paths, classes)
    assert passes() == len(paths)


def test_a_folder_outlives_the_process(glides, passes, tmp_path):
    kept = AudioEmbedder(layer=1, device="cpu", cache=tmp_path / "embeddings").transform(glides[0][:3])
    (damaged, *_) = (tmp_path / "embeddings").rglob("*.npy")
    damaged.write_bytes(damaged.read_bytes()[:-1])
    again = AudioEmbedder(layer=2, device="cpu", cache=tmp_path / "embeddings")
    np.testing.assert_allclose(again.set_params(layer=1).transform(glides[0][:3]), kept, atol=1e-6)
    assert passes() == 3 + 1


@pytest.mark.parametrize(
    "options", [{"layer": 3}, {"layer": [5, 2]}, {"layer": "features,1", "pool": "max"}, {}], ids=str
)
def test_what_is_kept_is_what_would_be_embedded(glides, options):
    # The first embeds three clips; the last four of the second are one of these and three more.
    kept, fresh = (AudioEmbedder(device="cpu", cache=cache, **options) for cache in ("memory", None))
    kept.transform(glides[0][:3])
    np.testing.assert_allclose(kept.transform(glides[0][2:6]), fresh.transform(glides[0][2:6]), atol=1e-5)
    assert list(kept.get_feature_names_out()) == list(fresh.get_feature_names_out())


def test_without_a_cache_nothing_is_kept(glides, passes):
    embedder = AudioEmbedder(layer=0, device="cpu", cache=None)
    embedder.transform(glides[0][:2])
    embedder.transform(glides[0][:2])
    assert passes() == 4


def test_clips_are_known_by_their_content(glides, passes, embedder, tmp_path):
    path, other = glides[0][:2]
    waveform = soundfile.read(path, dtype="float32")[0]
    embedder.transform([path, str(shutil.copy(path, tmp_path / "copy.wav")), Path(path).read_bytes(), {"path": path}])
    assert passes() == 1
    embedder.transform([waveform, waveform.copy(), {"array": waveform, "sampling_rate": SAMPLE_RATE}])
    assert passes() == 2
    embedder.transform([{"array": waveform, "sampling_rate": SAMPLE_RATE // 2}, waveform[:-1]])
    assert passes() == 4
    embedder.set_params(pool="max").transform([path])
    assert passes() == 5
    shutil.copy(other, tmp_path / "copy.wav")
    embedder.set_params(pool=None).transform([str(tmp_path / "copy.wav")])
    assert passes() == 6


def test_an_error_counts_clips_that_are_known_as_well(glides, embedder):
    embedder.transform(glides[0][:2])
    with pytest.raises(AudioError, match=r"^input 2: lost\.wav: no such file"):
        embedder.transform([*glides[0][:2], "lost.wav"])


def test_memory_is_bounded():
    cache = MemoryCache(most_bytes=1_000)
    for i in range(30):
        cache.put("settings", str(i), np.zeros(25, np.float32))
    assert cache.n_bytes == 1_000
    assert cache.get("settings", "0") is not None  # a search asks for all in turn: the first is the next
    cache.put("others", "0", np.zeros(25, np.float32))
    assert (cache.n_bytes, cache.get("settings", "0")) == (100, None)


# What is embedded


@pytest.fixture(scope="module")
def embeddings(glides) -> np.ndarray:
    """Give the embeddings of four files."""
    return tiny.load_model(layer=1).encode(glides[0][:4])


@pytest.fixture
def embedder() -> AudioEmbedder:
    return AudioEmbedder(layer=1, device="cpu", sampling_rate=SAMPLE_RATE)


def samples_of(paths: list[str]) -> list[np.ndarray]:
    return [soundfile.read(path, dtype="float32")[0] for path in paths]


CONTAINERS = {
    "list": list,
    "array": np.array,
    "objects": lambda paths: np.array([Path(path) for path in paths], object),
    "column": lambda paths: np.array(paths)[:, None],
    "waveforms": samples_of,
    "matrix": lambda paths: np.stack(samples_of(paths)),
    "dicts": lambda paths: [{"array": array, "sampling_rate": SAMPLE_RATE} for array in samples_of(paths)],
}


@pytest.mark.slow
@pytest.mark.parametrize("contain", CONTAINERS.values(), ids=CONTAINERS.keys())
def test_clips_come_in_any_container(glides, embedder, embeddings, contain):
    X = contain(glides[0][:4])
    rows = embedder.fit_transform(X)
    assert rows.dtype == np.float32
    np.testing.assert_allclose(rows, embeddings, atol=1e-5)


def test_clips_come_in_series_and_frames(glides, embedder, embeddings):
    pandas = pytest.importorskip("pandas")
    frame = pandas.DataFrame({"path": glides[0][:4], "year": 2021})
    for X in (frame["path"], frame[["path"]], pandas.DataFrame(np.stack(samples_of(glides[0][:4])))):
        np.testing.assert_allclose(embedder.transform(X), embeddings, atol=1e-5)
    columns = make_column_transformer((embedder, "path"), ("passthrough", ["year"]))
    assert columns.fit_transform(frame).shape == (4, embeddings.shape[1] + 1)


def test_no_clips_give_no_rows(embedder):
    assert embedder.transform([]).shape == (0, 192)


WRONG = {
    "a path": ("a.wav", OptionError, "a single clip; give a list of one"),
    "a waveform": (np.zeros(9, np.float32), OptionError, "a single clip"),
    "two columns": (np.array([["a.wav", "dog"]]), OptionError, "2 columns; expected one, of paths"),
    "nothing": (None, OptionError, "expected a path"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("X", "kind", "message"), WRONG.values(), ids=WRONG.keys())
def test_what_holds_no_clips_is_refused_before_anything_is_loaded(embedder, X, kind, message):
    for refuse in (embedder.fit, embedder.partial_fit, embedder.transform):
        with pytest.raises(kind, match=message):
            refuse(X)


def test_a_lost_file_is_named(glides, embedder):
    with pytest.raises(AudioError, match=r"input 1: lost\.wav: no such file"):
        embedder.transform([glides[0][0], "lost.wav"])


def test_waveforms_need_a_sample_rate():
    with pytest.raises(OptionError, match="does not say its sample rate"):
        AudioEmbedder(layer=0).transform(np.zeros((2, 99), np.float32))


# Habits of scikit-learn


def test_numbers_are_named_after_family_and_layer():
    names = AudioEmbedder(layer="1,mel", device="cpu").get_feature_names_out()
    assert list(names[[0, 191, 192, -1]]) == ["tiny_layer1_0", "tiny_layer1_191", "tiny_mel_0", "tiny_mel_127"]
    assert len(set(names)) == len(names) == 320


def test_output_may_be_a_frame(glides, embedder, embeddings):
    pandas = pytest.importorskip("pandas")
    X = pandas.Series(glides[0][:4], index=list("abcd"))
    frame = embedder.set_output(transform="pandas").fit_transform(X)
    assert list(frame.index) == list("abcd")
    assert list(frame.columns) == list(embedder.get_feature_names_out())
    np.testing.assert_allclose(frame, embeddings, atol=1e-5)


def test_nothing_is_loaded_before_it_is_used(glides):
    AudioEmbedder("nonsense", layer="x").fit(glides[0])
    assert load.cache_info().misses == 0


@pytest.mark.slow
def test_changed_parameters_change_the_model(glides, embedder):
    path = glides[0][:1]
    before = embedder.transform(path)
    after = embedder.set_params(layer=[1, 2]).transform(path)
    assert (before.shape, after.shape) == ((1, 192), (1, 384))


@pytest.mark.slow
def test_weights_written_again_are_loaded_again(glides, small_weights, tmp_path):
    weights = tmp_path / "weights.pt"
    state_dict = torch.load(small_weights)
    torch.save(state_dict, weights)
    embedder = AudioEmbedder("mn01_as", weights=weights, device="cpu", layer=0)
    before = embedder.transform(glides[0][:1])
    torch.save({key: 2 * value if value.is_floating_point() else value for key, value in state_dict.items()}, weights)
    os.utime(weights, ns=(0, 0))
    assert not np.allclose(embedder.transform(glides[0][:1]), before)


def test_copies_and_pickles_hold_parameters_only(glides, embedder):
    embedder.transform(glides[0][:1])
    assert clone(embedder).get_params() == embedder.get_params()
    assert len(pickle.dumps(embedder)) < 1000


@pytest.mark.parametrize(
    ("parameters", "message"),
    [
        ({"model": "nonsense"}, "'nonsense' is unknown; choose one of tiny, passt"),
        ({"model": "hear21passt.base", "variant": "x"}, "choose one of tiny, passt"),
        ({"variant": "nonsense"}, "variant='nonsense' is unknown to tiny"),
        ({"layer": 99}, "layer='99' is unknown"),
        ({"device": "nonsense"}, "device='nonsense' cannot be used"),
    ],
)
def test_an_unknown_parameter_is_refused_when_it_is_used(glides, parameters, message):
    with pytest.raises(OptionError, match=message):
        AudioEmbedder(**parameters).transform(glides[0])


def test_without_scikit_learn_the_error_names_the_extra(monkeypatch):
    monkeypatch.setitem(sys.modules, "sklearn", None)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    monkeypatch.delitem(sys.modules, "hear_transformers.sklearn")
    with pytest.raises(ImportError, match=r"pip install 'hear_transformers\[sklearn\]'"):
        import_module("hear_transformers.sklearn")


def checks_that_cannot_pass(embedder: AudioEmbedder) -> dict[str, str]:
    """Name the checks that feed no audio."""
    return {"check_estimators_dtypes": "integers are no waveforms: their full scale is not known"}


@pytest.mark.slow
# The checks feed matrices; with a sample rate their rows are clips of a few samples, some of them louder than audio.
@pytest.mark.filterwarnings("ignore::hear_transformers.errors.HearTransformersWarning")
@parametrize_with_checks(
    [AudioEmbedder(layer=1, device="cpu", sampling_rate=SAMPLE_RATE)],
    expected_failed_checks=checks_that_cannot_pass,
)
def test_scikit_learn_has_nothing_to_object(estimator, check):
    check(estimator)
