"""Several poolings of several layers in one forward pass: each part is what it would be alone."""

import numpy as np
import pytest
import torch

from hear_transformers import efficientat, passt, tiny
from hear_transformers.errors import OptionError

POOLS = ("mean", "meanstd", "cls", "flat")


@pytest.fixture(scope="module")
def clips():
    return torch.rand(2, 8_000, generator=torch.Generator().manual_seed(0)) - 0.5


def counted(monkeypatch, kind):
    """Count the forward passes of a class of networks."""
    calls = []
    forward = kind.forward
    monkeypatch.setattr(kind, "forward", lambda self, *given: calls.append(1) or forward(self, *given))
    return calls


def test_all_layers_and_poolings_come_from_one_pass_and_are_what_each_is_alone(clips, monkeypatch):
    load = {"pretrained": False, "network": {"dim": 48, "depth": 12, "heads": 3}}
    model = passt.load_model(layer="all", pool=POOLS, **load)
    places = model.columns_by_pool()
    calls = counted(monkeypatch, type(model.trunk))
    everything = model.embed_scenes(clips)
    assert len(calls) == 1
    assert [*places] == [(layer, pool) for layer in map(str, range(13)) for pool in POOLS]
    for (layer, pool), columns in places.items():
        alone = passt.load_model(layer=layer, pool=pool, **load).embed_scenes(clips)
        torch.testing.assert_close(everything[:, columns], alone, rtol=0, atol=1e-6)


def test_timestamps_have_the_same_parts():
    wave = torch.rand(1, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5
    model = tiny.load_model(layer="4,8", pool="mean,flat", framing="native", window_ms=1000, hop_ms=100)
    together, _ = model.embed_timestamps(wave)
    for (layer, pool), columns in model.columns_by_pool(timestamps=True).items():
        alone = tiny.load_model(layer=layer, pool=pool, framing="native", window_ms=1000, hop_ms=100)
        assert torch.equal(together[..., columns], alone.embed_timestamps(wave)[0])


def test_vectors_are_there_once():
    features = efficientat.load_model(variant="mn01_as", pretrained=False, layer="features", pool="mean,max")
    assert [*features.columns_by_pool()] == [("features", "")]


def test_the_mel_has_no_class_token_and_keeps_its_other_poolings():
    model = passt.load_model(
        layer="mel,1", pool="mean,cls", pretrained=False, network={"dim": 48, "depth": 1, "heads": 3}
    )
    assert [*model.columns_by_pool()] == [("mel", "mean"), ("1", "mean"), ("1", "cls")]


def test_provenance_names_the_poolings():
    assert tiny.load_model(layer=8, pool=["mean", "max"]).provenance()["scene"]["pool"] == "mean,max"
    assert tiny.load_model(layer=8, pool="mean, max").variant.scene.pools == ("mean", "max")


@pytest.mark.parametrize(
    ("pool", "complaint"),
    [
        ("mean,median", "pool='median' is unknown"),
        ("mean,max,mean", "names mean twice"),
        ("", "pool='' is unknown"),
    ],
)
def test_wrong_poolings_are_named(pool, complaint):
    with pytest.raises(OptionError, match=complaint):
        tiny.load_model(layer=8, pool=pool)


def test_a_pooling_of_whole_windows_among_several_does_not_go_with_frames():
    with pytest.raises(OptionError, match="pool='meanstd' reads a whole window"):
        tiny.load_model(layer=8, pool="mean,meanstd", framing="native")


def test_the_command_takes_a_list(installed_command, tmp_path, audio_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audio_file("a.wav", 0.1 * np.sin(np.arange(8000) / 9))
    run = installed_command("embed-audio")
    done = run("a.wav", "--layer", "4,8", "--pool", "mean,meanstd", "--out", "out", "--separate-layers")
    assert done.exit_code == 0, done.stderr
    assert run("a.wav", "--layer", "8", "--pool", "mean,meanstd", "--out", "alone").exit_code == 0
    with np.load("out/layer=8/a.npz") as apart, np.load("alone/a.npz") as alone:
        np.testing.assert_array_equal(apart["embedding"], alone["embedding"])
        assert apart["embedding"].shape == (3 * 192,)
    assert run("a.wav", "--pool", "mean,median").exit_code == 2
