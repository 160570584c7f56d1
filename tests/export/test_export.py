"""Exported files give what PyTorch gives, take what they say, and say what made them."""

import json
from pathlib import Path

import pytest
import torch

from hear_transformers import FAMILIES, hf, tiny
from hear_transformers.errors import OptionError
from hear_transformers.export.choices import SameChoices
from hear_transformers.export.onnx_files import to_onnx
from hear_transformers.export.portable import lengths
from hear_transformers.export.programs import ABOUT, to_program
from hear_transformers.networks.graph import nearest
from tests.helpers.encoders import encoder
from tests.networks.test_contract import family_of, load, noise

onnxruntime = pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
onnx = pytest.importorskip("onnx", reason="the extra onnx is not installed")

QUICK = ("ced", "mast", "efficientat")
"""Families whose small builds take seconds."""


def embed(path: Path, clips: torch.Tensor) -> torch.Tensor:
    session = onnxruntime.InferenceSession(path, providers=["CPUExecutionProvider"])
    return torch.from_numpy(session.run(None, {"waveforms": clips.numpy()})[0])


def about(path: Path) -> dict:
    return {each.key: json.loads(each.value) for each in onnx.load(path).metadata_props}


def assert_agrees(path: Path, model, batch: int, n_samples: int) -> None:
    clips = noise(batch, n_samples / model.sample_rate, model.sample_rate)
    with torch.no_grad():
        wanted = model.embed_scenes(clips)
    torch.testing.assert_close(embed(path, clips), wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize(
    "name", [pytest.param(name, marks=() if name in QUICK else pytest.mark.slow) for name in FAMILIES]
)
def test_onnxruntime_agrees_for_any_batch_and_length(name, tmp_path):
    model = load(name, next(iter(family_of(name).variants)))
    shortest, longest = lengths(model)
    written = to_onnx(model, tmp_path / "model.onnx")
    assert written.difference <= 1e-4
    assert written.min_samples == shortest
    assert written.max_samples == longest
    # Of ATGNN the next test says what agrees.
    for batch, n_samples in ((1, shortest + 1), (4, (shortest + longest) // 3)) if name != "atgnn" else ():
        assert_agrees(tmp_path / "model.onnx", model, batch, n_samples)


@pytest.mark.parametrize(
    "options",
    [{"layer": "1,2", "pool": "mean,cls"}, {"layer": "mel", "pool": "flat"}, {"layer": "logits"}],
    ids=lambda options: options["layer"],
)
def test_every_choice_of_layers_and_pooling_is_kept(options, tmp_path):
    model = load("passt", "base", **options)
    to_onnx(model, tmp_path / "model.onnx", seconds=1.0)
    assert_agrees(tmp_path / "model.onnx", model, 3, model.sample_rate)


@pytest.mark.parametrize("variant", ["pyr_s", "mini"])
def test_neighbours_in_graphs_are_as_near_as_those_of_pytorch(variant, tmp_path):
    # Where two are equally near to the last bit, either is right, and the embedding moves by percents.
    written = to_onnx(load("atgnn", variant), tmp_path / "model.onnx")
    assert written.difference <= 1e-4
    assert [each.name for each in onnx.load(tmp_path / "model.onnx").graph.output] == ["embeddings"]


def test_a_neighbour_that_is_farther_is_found():
    def swapped(clips):
        return [clips, torch.tensor([[[1]]])]

    def search(clips):
        return nearest(torch.tensor([[[1.0, 0.0]]]), torch.tensor([[[1.0, 0.0], [0.0, 1.0]]]), 1) * clips

    pair = SameChoices(swapped, search)
    pair.run(torch.ones(1, 1))
    assert pair.truth(torch.ones(1, 1)).isnan().all()
    assert pair.differing == 1


def test_a_file_says_what_it_takes_and_what_made_it(tmp_path):
    model = tiny.load_model(layer=2)
    to_onnx(model, tmp_path / "model.onnx")
    said = about(tmp_path / "model.onnx")
    assert said["sample_rate"] == 32_000
    assert said["max_samples"] == 64_000
    assert said["provenance"] == json.loads(json.dumps(model.provenance()))
    assert said["output"] == {"name": "embeddings", "shape": ["batch", model.scene_embedding_size]}


def test_int8_is_smaller_and_points_the_same_way(tmp_path):
    model = tiny.load_model()
    exact = to_onnx(model, tmp_path / "exact.onnx")
    small = to_onnx(model, tmp_path / "small.onnx", int8=True)
    assert small.n_bytes < exact.n_bytes / 2
    assert small.cosine > 0.98
    assert about(small.path)["int8_cosine"] == small.cosine


def test_what_differs_is_refused_and_not_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("hear_transformers.export.onnx_files.TOLERANCE", 1e-12)
    with pytest.raises(OptionError, match="differs from PyTorch by"):
        to_onnx(tiny.load_model(layer=1), tmp_path / "model.onnx")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("options", "message"),
    [({"precision": "bfloat16"}, "exported in float32"), ({"mean_over_time": True}, "a file embeds one window")],
)
def test_what_cannot_be_exported_is_said(options, message, tmp_path):
    with pytest.raises(OptionError, match=message):
        to_onnx(tiny.load_model(layer=1, **options), tmp_path / "model.onnx")


def test_a_length_outside_is_refused_with_those_inside(tmp_path):
    with pytest.raises(OptionError, match=r"seconds=7 is outside .*; choose 0.07 to 2"):
        to_onnx(tiny.load_model(layer=1), tmp_path / "model.onnx", seconds=7)


@pytest.mark.slow
def test_encoders_of_hugging_face_are_exported_where_they_take_waveforms(tmp_path):
    pytest.importorskip("transformers")
    written = to_onnx(hf.load_model(encoder("hubert")), tmp_path / "model.onnx")
    assert written.difference <= 1e-4
    with pytest.raises(OptionError, match="its spectrogram is computed by the feature extractor"):
        to_onnx(hf.load_model(encoder("ast")), tmp_path / "other.onnx")


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:The given buffer is not writable:UserWarning")  # of PyTorch, on loading
def test_a_program_is_run_by_pytorch_alone(tmp_path):
    model = tiny.load_model(layer=1)
    written = to_program(model, tmp_path / "model.pt2", seconds=1.0)
    assert written.difference <= 1e-4
    said = {ABOUT: ""}
    program = torch.export.load(tmp_path / "model.pt2", extra_files=said).module()
    clips = noise(4, 1.0, model.sample_rate)
    torch.testing.assert_close(program(clips), model.embed_scenes(clips), rtol=0, atol=1e-4)
    assert json.loads(said[ABOUT])["sample_rate"] == 32_000
