"""Folders of Hugging Face: weights, sizes, statistics and names of classes, all of them untrusted."""

import json
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor

from hear_transformers import ast, passt
from hear_transformers.errors import OptionError, WeightsError
from tests.helpers.golden import filled

SIZES = {"dim": 64, "depth": 2, "heads": 2, "frames": 312, "n_mels": 64, "stride": 16, "n_classes": 3}
CONFIG = {
    "model_type": "audio-spectrogram-transformer", "hidden_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2,
    "max_length": 312, "num_mel_bins": 64, "frequency_stride": 16, "time_stride": 16, "patch_size": 16,
    "id2label": {"0": "wren", "1": "robin", "2": "owl"}, "problem_type": "single_label_classification",
}  # fmt: skip
EXTRACTOR = {"feature_extractor_type": "ASTFeatureExtractor", "mean": -1.2, "std": 3.4, "sampling_rate": 16_000}


@pytest.fixture
def weights() -> dict[str, Tensor]:
    return dict(filled(ast.AST(**SIZES)).state_dict())


def folder_of(folder: Path, weights: dict[str, Tensor], extractor: Any = EXTRACTOR, config: Any = CONFIG) -> Path:
    folder.mkdir(exist_ok=True)
    safetensors.torch.save_file(weights, folder / "model.safetensors")
    if extractor is not None:
        (folder / "preprocessor_config.json").write_text(json.dumps(extractor))
    if config is not None:
        (folder / "config.json").write_text(json.dumps(config))
    return folder


@pytest.mark.parametrize("name", ["", "model.safetensors"])
def test_a_folder_loads_whole_and_so_does_the_file_in_it(name: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = ast.load_model(folder_of(tmp_path / "net", weights) / name)
    assert (model.variant.frontend.mean, model.variant.frontend.scale) == (-1.2, 6.8)
    assert (model.variant.frontend.n_mels, model.variant.scene.fill_frames) == (64, 312)
    assert model.trunk.blocks[0].attn.heads == 2
    assert (model.labels, model.multi_label) == (("wren", "robin", "owl"), False)
    assert model.provenance()["normalisation"] == (-1.2, 3.4)
    assert all(tensor.equal(weights[name]) for name, tensor in model.trunk.state_dict().items())


def test_weights_in_several_parts_load(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "net", weights)
    whole = ast.load_model(folder)
    (folder / "model.safetensors").unlink()
    names = sorted(weights)
    places = {name: f"model-0000{1 + i % 2}-of-00002.safetensors" for i, name in enumerate(names)}
    for place in set(places.values()):
        safetensors.torch.save_file({name: weights[name] for name in names if places[name] == place}, folder / place)
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))
    parts = ast.load_model(folder)
    audio = torch.rand(1, 32_000, generator=torch.Generator().manual_seed(0)) - 0.5
    assert parts.embed_scenes(audio).equal(whole.embed_scenes(audio))
    assert parts.weights_sha256 != whole.weights_sha256


def test_weights_of_pytorch_load(weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "net", weights)
    (folder / "model.safetensors").unlink()
    torch.save(weights, folder / "pytorch_model.bin")
    assert ast.load_model(folder).variant.frontend.mean == -1.2


@pytest.mark.parametrize(
    ("extractor", "normalisation"),
    [
        (None, (-4.2677393, 4.5689974)),
        ({}, (-4.2677393, 4.5689974)),
        ({"mean": -6.8, "std": 5.5}, (-6.8, 5.5)),
        ({"mean": -6.8, "std": 5.5, "do_normalize": False}, (0.0, 0.5)),
    ],
)
def test_the_statistics_are_those_beside_the_weights(
    extractor: Any, normalisation: tuple[float, float], weights: dict[str, Tensor], tmp_path: Path
) -> None:
    model = ast.load_model(folder_of(tmp_path / "net", weights, extractor))
    assert model.variant.frontend.normalisation == pytest.approx(normalisation)


def test_an_option_goes_before_the_file(weights: dict[str, Tensor], tmp_path: Path) -> None:
    model = ast.load_model(folder_of(tmp_path / "net", weights), normalisation=(0.5, 2))
    assert model.variant.frontend.normalisation == (0.5, 2.0)


@pytest.mark.parametrize(
    "normalisation", [(1,), (1, 0), (1, -2), (float("nan"), 1), ("a", 1), (1, 2, 3), (1, float("inf"))]
)
def test_statistics_that_are_none_are_refused(normalisation: Any) -> None:
    with pytest.raises(OptionError, match="is no mean and deviation above 0"):
        ast.load_model(pretrained=False, normalisation=normalisation)


def test_the_normalisation_of_passt_may_be_given() -> None:
    usual = passt.load_model(pretrained=False, network={"depth": 1, "dim": 24, "heads": 3})
    same = passt.load_model(pretrained=False, network={"depth": 1, "dim": 24, "heads": 3}, normalisation=(-4.5, 5.0))
    assert same.variant == usual.variant


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("preprocessor_config.json", "{", "damaged: not JSON"),
        ("preprocessor_config.json", "[1]", "damaged: not a JSON object"),
        ("preprocessor_config.json", "[" * 100_000, "damaged: not JSON"),
        (
            "preprocessor_config.json",
            '{"sampling_rate": 48000}',
            "sampling_rate = 48000, but this network takes 16000 Hz",
        ),
        ("preprocessor_config.json", '{"mean": "x"}', "damaged: mean = 'x'"),
        ("preprocessor_config.json", '{"std": 0}', "damaged: mean = .* std = 0"),
        ("config.json", '{"hidden_size": -3}', "damaged: sizes of the network"),
        ("config.json", '{"patch_size": 32}', "patch_size = 32, but this network has 16"),
        ("config.json", "\\xff", "damaged: not JSON"),
    ],
)
def test_damaged_files_beside_the_weights_are_named(
    file: str, content: str, message: str, weights: dict[str, Tensor], tmp_path: Path
) -> None:
    folder = folder_of(tmp_path / "net", weights)
    (folder / file).write_text(content)
    with pytest.raises(WeightsError, match=f"{file.replace('.', '.')}: {message}"):
        ast.load_model(folder)


@pytest.mark.parametrize("place", ["../other.safetensors", "/etc/passwd", "a/b.safetensors"])
def test_an_index_names_files_of_its_folder_alone(place: str, weights: dict[str, Tensor], tmp_path: Path) -> None:
    folder = folder_of(tmp_path / "net", weights)
    (folder / "model.safetensors").unlink()
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"cls_token": place}}))
    with pytest.raises(WeightsError, match=r"refused: it names .*, which is not in its folder"):
        ast.load_model(folder)


def test_another_folder_names_the_checkpoints_in_it(tmp_path: Path) -> None:
    (tmp_path / "best.ckpt").touch()
    (tmp_path / "notes.txt").touch()
    with pytest.raises(WeightsError, match=r"is a folder without model\.safetensors or .*; give one of best\.ckpt"):
        ast.load_model(tmp_path)


def test_the_folder_of_a_training_run_is_no_folder_of_hugging_face(weights: dict[str, Tensor], tmp_path: Path) -> None:
    (folder_of(tmp_path / "run", weights) / "best.safetensors").touch()
    with pytest.raises(WeightsError, match=r"run is the folder of a training run; give .*best\.safetensors"):
        ast.load_model(tmp_path / "run")


@pytest.mark.parametrize(
    ("name", "is_hub"), [("MIT/ast-finetuned-audioset-10-10-0.4593", True), ("a.pt", False), ("./x/a.pt", False)]
)
def test_the_name_of_a_model_of_hugging_face_is_no_file(name: str, is_hub: bool) -> None:
    with pytest.raises(WeightsError, match="no such file") as raised:
        ast.load_model(name)
    advice = f"give the folder that you downloaded it into, or model='hf' with variant='{name}'"
    assert (advice in str(raised.value)) == is_hub


def test_names_of_other_classes_are_left_out(weights: dict[str, Tensor], tmp_path: Path) -> None:
    config = {**CONFIG, "id2label": {"0": "wren"}}
    assert ast.load_model(folder_of(tmp_path / "net", weights, config=config)).labels is None
