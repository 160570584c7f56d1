"""AudioSet's names, the likeliest of them, and which embeddings they fit."""

import hashlib
import json
from importlib.resources import files
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import efficientat
from hear_transformers.audio import reading
from hear_transformers.errors import OptionError
from hear_transformers.labels import (
    Tag,
    audioset_labels,
    audioset_strong_labels,
    check_classes,
    check_logits,
    tags_of,
    top_tags,
)

SHARED = Path(__file__).parents[2] / "shared"


def test_the_names_are_those_that_audioset_publishes():
    """The hash of the file at research.google.com/audioset."""
    published = "cdd1049833c4b86127c2773ac0d14a2754b6a6d0d1798002ed5c66e699708429"
    content = files("hear_transformers").joinpath("audioset_labels.csv").read_bytes()
    assert hashlib.sha256(content).hexdigest() == published


def test_every_class_has_a_name_of_its_own():
    assert len(set(audioset_labels())) == len(audioset_labels()) == 527


@pytest.mark.parametrize(
    ("index", "name"),
    [
        (0, "Speech"),
        (1, "Male speech, man speaking"),
        (137, "Music"),
        (500, "Silence"),
        (526, "Field recording"),
    ],
)
def test_names_stand_in_the_order_of_the_logits(index, name):
    assert audioset_labels()[index] == name


def logits(**by_name: float) -> np.ndarray:
    """Give logits of -20 but for some classes."""
    return np.array([by_name.get(name, -20.0) for name in audioset_labels()], np.float32)


def test_the_likeliest_come_first():
    tags = top_tags(logits(Speech=0.0, Music=2.0, Silence=-2.0), 3)
    assert [tag.label for tag in tags] == ["Music", "Speech", "Silence"]
    assert [tag.probability for tag in tags] == pytest.approx([0.880797, 0.5, 0.119203], abs=1e-6)


def test_probabilities_are_those_of_each_class_alone():
    assert [tag.probability for tag in top_tags(logits(Speech=20.0, Music=20.0), 2)] == pytest.approx([1.0, 1.0])


def test_extreme_logits_give_probabilities_between_0_and_1():
    assert top_tags(np.full(527, 1e4), 1) == (Tag("Speech", 1.0),)
    assert top_tags(np.full(527, -1e4), 1) == (Tag("Speech", 0.0),)


def test_tensors_are_taken():
    assert top_tags(torch.from_numpy(logits(Music=1.0)), 1)[0].label == "Music"


def test_more_labels_than_classes_are_all_of_them():
    assert len(top_tags(logits(), 1000)) == 527


@pytest.mark.parametrize("shape", [(), (20,), (1, 527)])
def test_logits_of_another_shape_are_refused(shape):
    with pytest.raises(OptionError, match="expected the logits of AudioSet's 527 classes, found shape"):
        top_tags(np.zeros(shape))


@pytest.mark.parametrize("k", [0, -1])
def test_fewer_labels_than_one_are_refused(k):
    with pytest.raises(OptionError, match=f"{k} labels were asked for; choose 1 to 527"):
        top_tags(logits(), k)


def small(**options):
    return efficientat.load_model(variant="mn01_as", pretrained=False, **options)


def test_the_logits_of_audioset_are_accepted():
    check_logits(small(layer="logits"), timestamps=False)


@pytest.mark.parametrize("options", [{}, {"layer": "features"}, {"layer": "features,logits"}, {"layer": [2, "logits"]}])
def test_other_layers_are_refused(options):
    with pytest.raises(OptionError, match=r"efficientat/mn01_as gives layer .*; give layer='logits'"):
        check_logits(small(**options), timestamps=False)


def test_the_likeliest_frame_of_each_class_is_accepted():
    model = efficientat.load_model(
        variant="frame_mn06_strong", network={"width": 0.1}, layer="framewise", pool="max", pretrained=False
    )
    model.labels = audioset_strong_labels()
    check_logits(model, timestamps=False)
    clip = torch.rand(1, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5
    with torch.no_grad():
        frames = model.trunk(model.frontend(clip), ["framewise"])["framewise"]
    best = tags_of(model, model.embed_scenes(clip)[0], 1)[0]
    assert best.probability == pytest.approx(frames.max().sigmoid().item(), abs=1e-6)


def test_a_classifier_of_clips_that_was_not_trained_is_refused():
    model = efficientat.load_model(
        variant="frame_mn06_strong", network={"width": 0.1}, layer="logits", pretrained=False
    )
    model.labels = audioset_strong_labels()
    with pytest.raises(OptionError, match=r"its classifier of clips was not .*; give layer='framewise' and pool='max'"):
        check_logits(model, timestamps=False)


def test_embeddings_along_time_are_refused():
    with pytest.raises(OptionError, match="leave out timestamps"):
        check_logits(small(layer="logits"), timestamps=True)


def test_classes_along_time_are_named():
    assert check_classes(small(layer="logits", window_ms=500), timestamps=True) == audioset_labels()


def test_modules_of_others_are_refused():
    with pytest.raises(OptionError, match=r"the HEAR API does not say .*; choose a model of tiny, passt"):
        check_logits(torch.nn.Identity(), timestamps=False)


def test_other_classes_are_refused():
    model = small(layer="logits")
    model.name, model.scene_embedding_size = ("passt", "openmic"), 20
    with pytest.raises(OptionError, match=r"AudioSet's 527 classes do not fit the 20 classes of passt/openmic"):
        check_logits(model, timestamps=False)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not SHARED.is_dir(), reason="needs real weights and audio of the developers' folder ../shared")
@pytest.mark.parametrize(
    ("clip", "reference"), [("metro_station-paris", "metro_station-paris.wav"), ("R9_ZSCveAHg_7s", "R9.wav")]
)
def test_a_real_network_hears_what_is_there(clip, reference):
    model = efficientat.load_model(SHARED / "weights" / "mn04_as_mAP_432.pt", variant="mn04_as", layer="logits")
    waveform = reading.read(SHARED / "data" / "audioset" / f"{clip}.wav", model.sample_rate)
    expected = json.loads((SHARED / "reference" / "efficientat_mn04_reference.json").read_text())[reference]["top"]
    heard = top_tags(model.embed_scenes(waveform[None])[0], 10)
    assert dict(heard) == pytest.approx(dict(expected), abs=2e-4)


# Classes of one's own

BIRDS = ("wren", "robin", "owl")


def test_classes_of_ones_own_have_their_names():
    tags = top_tags([0.0, 2.0, -2.0], 2, BIRDS)
    assert [tag.label for tag in tags] == ["robin", "wren"]
    assert [tag.probability for tag in tags] == pytest.approx([0.880797, 0.5], abs=1e-6)


def test_probabilities_of_exclusive_classes_add_up_to_1():
    tags = top_tags(np.log([1.0, 7.0, 2.0]), 3, BIRDS, multi_label=False)
    assert tags == (Tag("robin", pytest.approx(0.7)), Tag("owl", pytest.approx(0.2)), Tag("wren", pytest.approx(0.1)))


def test_extreme_logits_of_exclusive_classes_overflow_nowhere():
    assert [tag.probability for tag in top_tags([-1e4, 1e4, -1e4], 3, BIRDS, multi_label=False)] == [1.0, 0.0, 0.0]


def test_as_many_logits_as_names_are_wanted():
    with pytest.raises(OptionError, match=r"expected the logits of 3 classes, found shape \(4,\)"):
        top_tags(np.zeros(4), 2, BIRDS)


def test_a_model_that_names_its_classes_is_accepted():
    model = small(layer="logits")
    model.labels, model.scene_embedding_size = BIRDS, 3
    check_logits(model, timestamps=False)


@pytest.mark.parametrize(("multi_label", "probability"), [(True, 0.880797), (False, 0.866813)])
def test_tags_of_a_model_are_of_its_classes(multi_label, probability):
    model = small(layer="logits")
    model.labels, model.multi_label = BIRDS, multi_label
    assert tags_of(model, [0.0, 2.0, -2.0], 1) == (Tag("robin", pytest.approx(probability, abs=1e-6)),)


def test_tags_of_a_model_without_names_are_audiosets():
    assert tags_of(small(layer="logits"), logits(Music=1.0), 1)[0].label == "Music"
