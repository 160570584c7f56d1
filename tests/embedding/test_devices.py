"""Names of devices: one place, in Python, the commands and scikit-learn."""

import re

import numpy as np
import pytest
import torch

from hear_transformers import catalogue, efficientat, hear, passt, tiny
from hear_transformers.embedding.devices import pick_device, pick_devices
from hear_transformers.errors import OptionError

WRONG = ["tpu", "gpu", "", "CUDA", "cuda:x", "cuda:99", "cpu:-1", "meta", None, 0, torch.device("meta")]


@pytest.mark.parametrize("name", WRONG)
@pytest.mark.parametrize("load", [pick_device, lambda name: tiny.load_model(device=name)], ids=["itself", "load_model"])
def test_what_cannot_be_used_is_named_with_what_can(name, load):
    given = str(name) if isinstance(name, torch.device) else name
    with pytest.raises(OptionError) as caught:
        load(name)
    assert f"device={given!r} cannot be used here; choose one of auto, " in str(caught.value)
    assert re.search(r"cpu(; did you mean \w+\?)?$", str(caught.value))


def test_it_is_refused_before_a_file_is_fetched():
    with pytest.raises(OptionError, match="device='tpu' cannot be used here"):
        passt.load_model("lost.pt", device="tpu")


@pytest.mark.parametrize("name", ["cpu", torch.device("cpu"), "cpu:0"])
def test_a_device_is_taken_by_name_or_as_itself(name):
    assert pick_device(name).type == "cpu"
    assert tiny.load_model(device=name).device.type == "cpu"


@pytest.mark.parametrize(
    ("cuda", "mps", "expected"), [(True, True, "cuda"), (False, True, "mps"), (False, False, "cpu")]
)
def test_auto_is_the_fastest(monkeypatch, cuda, mps, expected):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cuda)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)
    assert pick_device("auto") == torch.device(expected)


def test_cards_are_listed(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    with pytest.raises(OptionError, match="choose one of auto, cuda:0, cuda:1, cuda, cpu"):
        pick_device("tpu")


def test_the_default_is_the_cpu_as_hear_has_it():
    assert tiny.load_model().device.type == "cpu"
    assert efficientat.load_model(variant="mn01_as", pretrained=False).device.type == "cpu"


@pytest.mark.parametrize(
    "name",
    [
        "cpu",
        "auto",
        pytest.param(
            "cuda", marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
        ),
    ],
)
def test_a_model_is_whole_on_its_device(name):
    model = tiny.load_model(device=name)
    assert {tensor.device.type for tensor in model.state_dict().values()} == {pick_device(name).type}
    embeddings = hear.get_scene_embeddings(torch.zeros(1, model.sample_rate), model)
    assert embeddings.device.type == pick_device(name).type
    assert np.isfinite(model.encode(np.zeros(model.sample_rate, np.float32), sampling_rate=model.sample_rate)).all()


def test_auto_precision_goes_by_the_device_asked_for(monkeypatch):
    asked = []
    monkeypatch.setattr(
        "hear_transformers.embedding.precision.has_instructions", lambda _, device: asked.append(device.type)
    )
    catalogue.load("tiny", device="cpu", options={"precision": "auto"})
    tiny.load_model(precision="auto", device="auto")
    assert asked == ["cpu", pick_device("auto").type]


def with_cards(monkeypatch, count: int) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        ("all", ["cuda:0", "cuda:1"]),
        ("cuda:0,cuda:1", ["cuda:0", "cuda:1"]),
        ("cuda:1, cpu", ["cuda:1", "cpu"]),
        (["cuda:0", "cuda:0"], ["cuda:0", "cuda:0"]),
        ("auto", ["auto"]),
    ],
)
def test_several_devices_are_named_without_touching_a_card(monkeypatch, names, expected):
    with_cards(monkeypatch, 2)
    monkeypatch.setattr(torch, "zeros", lambda *size, device: None if torch.device(device).type == "cpu" else 1 / 0)
    assert pick_devices(names) == expected


@pytest.mark.parametrize(
    ("names", "message"),
    [("all", "device='all' stands for all cards of CUDA, and there are none here"), ("cpu,tpu", "device='tpu' cannot")],
)
def test_a_device_among_several_that_is_not_here_is_named(monkeypatch, names, message):
    with_cards(monkeypatch, 0)
    with pytest.raises(OptionError, match=message):
        pick_devices(names)
