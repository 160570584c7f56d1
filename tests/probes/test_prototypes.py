"""Prototypes over token maps: what is learned, where it is found, and what is kept of maps."""

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hear_transformers import tiny
from hear_transformers.errors import OptionError, TrainingError
from hear_transformers.probes import data, evaluation, map_data, prototypes, saved, tasks
from hear_transformers.probes.token_maps import TokenMaps

N_CLIPS, FREQ, FEATURES = 72, 2, 8
CLASSES = ["a", "b", "c"]
LABELS = np.eye(3, dtype=np.float32)[np.arange(N_CLIPS) % 3]
SIGNS = np.random.default_rng(1).normal(size=(3, FEATURES)) * 4


def make_maps():
    """Hide the sign of its class at one place of each map of noise; return maps and places."""
    rng, maps, places = np.random.default_rng(0), [], []
    for i in range(N_CLIPS):
        n_times = int(rng.integers(4, 8))
        one = rng.normal(size=(n_times, FREQ, FEATURES))
        place = int(rng.integers(n_times)), int(rng.integers(FREQ))
        one[place] += SIGNS[i % 3]
        maps.append(one.reshape(n_times, -1).astype(np.float16))
        places.append(place)
    return TokenMaps(maps, FREQ), places


MAPS, PLACES = make_maps()


@pytest.fixture(scope="module")
def task():
    return tasks.make_task([f"{i}.wav" for i in range(N_CLIPS)], CLASSES, LABELS, n_folds=3)


@pytest.fixture(scope="module")
def fitted(task):
    return evaluation.fit_whole(MAPS, task, "prototypes")


def test_a_sign_at_one_place_is_learned_where_the_mean_hides_it(task):
    result = evaluation.evaluate(MAPS, task, "prototypes")
    means = np.stack([MAPS.read(i).mean(0) for i in range(N_CLIPS)])
    assert result.scores["accuracy"].value > 0.8
    assert result.scores["accuracy"].value > evaluation.evaluate(means, task, "logistic").scores["accuracy"].value


def test_where_a_class_is_found_is_known(fitted):
    right = 0
    for clip, place in enumerate(PLACES):
        evidence = prototypes.found_at(MAPS, clip, fitted.arrays)
        assert evidence.shape == (3, len(MAPS.maps[clip]), FREQ)
        found = np.unravel_index(evidence[clip % 3].argmax(), evidence.shape[1:])
        right += found == place
    assert right > 0.8 * N_CLIPS


def test_what_is_fitted_is_what_was_learned(task):
    """The maxima in NumPy are those of the network."""
    import torch

    arrays = evaluation.fit_whole(MAPS, task, "prototypes", settings={"per_class": 2}).arrays
    network = prototypes.Prototypical(MAPS, arrays["mean"], arrays["scale"], arrays["prototypes"], 3)
    with torch.no_grad():
        network.linear.weight.copy_(torch.from_numpy(arrays["weight0"]))
        network.linear.bias.copy_(torch.from_numpy(arrays["bias0"]))
        expected = network(torch.arange(N_CLIPS)[:, None].float()).numpy()
    found = prototypes.maxima(MAPS, arrays) @ arrays["weight0"].T + arrays["bias0"]
    np.testing.assert_allclose(found, expected, atol=1e-4)


def test_fitting_is_repeatable_and_survives_being_saved(tmp_path, task, fitted):
    again = evaluation.fit_whole(MAPS, task, "prototypes")
    np.testing.assert_array_equal(again.arrays["prototypes"], fitted.arrays["prototypes"])
    saved.write(tmp_path, saved.Saved(fitted, tuple(CLASSES), {}, {}, {}))
    read = saved.read(tmp_path)
    assert read.along_time
    np.testing.assert_array_equal(read.fitted.probabilities(MAPS), fitted.probabilities(MAPS))


def test_maps_and_vectors_go_to_probes_of_their_own(task):
    with pytest.raises(OptionError, match="logistic: reads vectors, not token maps"):
        evaluation.evaluate(MAPS, task, "logistic")
    with pytest.raises(OptionError, match="prototypes: reads token maps, not vectors"):
        evaluation.evaluate(np.zeros((N_CLIPS, 4)), task, "prototypes")


def test_maps_that_are_not_finite_or_missing_are_refused(task):
    broken = [*MAPS.maps]
    broken[5] = np.full_like(broken[5], np.nan)
    with pytest.raises(TrainingError, match=r"5\.wav: its embedding is not finite"):
        evaluation.evaluate(TokenMaps(broken, FREQ), task, "prototypes")
    with pytest.raises(OptionError, match="for 72 clips"):
        evaluation.evaluate(TokenMaps(broken[:3], FREQ), task, "prototypes")


@pytest.fixture
def clips(tmp_path, audio_file):
    for i in range(3):
        audio_file(f"clips/{'ab'[i % 2]}/{i}.wav", seconds=0.5)
    return data.read_clips(tmp_path / "clips")


def test_maps_are_kept_as_float16_and_found_again(tmp_path, clips):
    model = tiny.load_model(layer=1, hop_ms=100, **map_data.OF_MAPS)
    embedded, maps = map_data.embed_maps(clips, model, tmp_path / "maps")
    assert (len(maps), len(embedded.kept)) == (3, 3)
    assert np.load(maps.maps[0]).dtype == np.float16
    assert maps.read(0).shape == (6 * maps.freq, 192)  # 0 to 500 ms
    written = {path: path.stat().st_mtime_ns for path in maps.maps}
    map_data.embed_maps(clips, model, tmp_path / "maps")
    assert {path: path.stat().st_mtime_ns for path in maps.maps} == written


def test_more_maps_than_are_kept_are_refused(tmp_path, clips, monkeypatch):
    monkeypatch.setattr(map_data, "MOST_BYTES", 3000)
    model = tiny.load_model(layer=1, hop_ms=100, **map_data.OF_MAPS)
    with pytest.raises(TrainingError, match=r"token maps of 2 of its 3 clips need .* choose a larger --hop-ms"):
        map_data.embed_maps(clips, model, tmp_path / "maps")


def test_maps_of_several_layers_are_refused(tmp_path, clips):
    with pytest.raises(OptionError, match="token maps are of one layer"):
        map_data.embed_maps(clips, tiny.load_model(layer="1,2", **map_data.OF_MAPS), tmp_path / "maps")
