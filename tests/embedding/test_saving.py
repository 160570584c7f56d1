"""Models saved as folders, and in repositories of Hugging Face; tests/networks/test_contract.py saves every variant."""

import json
import sys
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

import hear_transformers
from hear_transformers import ast, efficientat, hf, passt
from hear_transformers.checkpoints import hub
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.errors import HearTransformersError, OptionError, WeightsError
from hear_transformers.training import initialisation
from tests.helpers.encoders import encoder

SMALL = {"dim": 24, "depth": 2, "heads": 3}
NOISE = torch.rand(2, 48_000, generator=torch.Generator().manual_seed(0)) - 0.5


def small(**options: Any) -> Embedder:
    return efficientat.load_model(variant="mn01_as", pretrained=False, **options)


def saved(model: Embedder, folder: Path) -> Path:
    model.save_pretrained(folder)
    return folder


def edit(folder: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the configuration in a folder."""
    config = json.loads((folder / "config.json").read_text())
    change(config)
    (folder / "config.json").write_text(json.dumps(config))


def test_a_folder_says_its_family_and_its_choices(tmp_path: Path) -> None:
    model = small(layer=[2, 5], pool="meanstd", window_ms=(500, 1000), hop_ms=100)
    again = hear_transformers.load_model(weights=saved(model, tmp_path), device="cpu")
    assert again.name == ("efficientat", "mn01_as")
    assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))
    assert again.variant == model.variant


def test_choices_may_be_ranges_and_numbers_of_numpy(tmp_path: Path) -> None:
    folder = saved(small(layer=range(2, 4), hop_ms=np.float32(100)), tmp_path)
    again = efficientat.load_model(folder)
    assert (again.layers, again.variant.hop_ms) == (("2", "3"), 100.0)


def test_what_is_given_replaces_what_was_saved(tmp_path: Path) -> None:
    folder = saved(small(layer=2, pool="max", hop_ms=100), tmp_path)
    again = efficientat.load_model(folder, layer=5)
    assert (again.layers, again.variant.scene.pool, again.variant.hop_ms) == (("5",), "max", 100.0)


def test_segments_replace_saved_windows_and_windows_saved_segments(tmp_path: Path) -> None:
    windows, segments = saved(small(hop_ms=100), tmp_path / "w"), saved(small(segment=1.0, overlap=0.5), tmp_path / "s")
    assert efficientat.load_model(windows, segment=2.0).variant.framing == "segments"
    assert efficientat.load_model(segments).variant.hop_ms == 500.0
    assert efficientat.load_model(segments, hop_ms=200).variant.framing != "segments"


def test_weights_are_saved_as_they_are_now(tmp_path: Path) -> None:
    model = small()
    optimiser = torch.optim.SGD(model.parameters(), 0.1)
    model.train()(NOISE).sum().backward()
    optimiser.step()
    model.eval()
    again = efficientat.load_model(saved(model, tmp_path))
    assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))


def test_a_network_with_other_arguments_and_statistics_comes_back(tmp_path: Path) -> None:
    model = passt.load_model(pretrained=False, network={**SMALL, "stride": 16}, normalisation=(-3.0, 4.0))
    again = passt.load_model(saved(model, tmp_path))
    assert again.variant == model.variant
    assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))


def test_names_of_classes_come_back(tmp_path: Path) -> None:
    model = ast.load_model(pretrained=False, network={**SMALL, "n_classes": 2})
    model.labels, model.multi_label = ("wren", "owl | \n other"), False
    again = ast.load_model(saved(model, tmp_path))
    assert (again.labels, again.multi_label) == (("wren", "owl | \n other"), False)
    assert r"| classes | wren, owl \| other |" in (tmp_path / "README.md").read_text()


def without_classifier(tmp_path: Path) -> Embedder:
    """Load a network from a file without its classifier."""
    tensors = {name: each for name, each in small().trunk.state_dict().items() if not name.startswith("classifier.")}
    torch.save(tensors, tmp_path / "backbone.pt")
    return efficientat.load_model(tmp_path / "backbone.pt", "mn01_as")


def test_a_classifier_that_the_checkpoint_lacked_is_not_saved(tmp_path: Path) -> None:
    model = without_classifier(tmp_path)
    again = efficientat.load_model(saved(model, tmp_path / "saved"))
    assert "logits" not in again.trunk.layers
    assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))


def test_only_a_classifier_may_be_missing(tmp_path: Path) -> None:
    model = small()
    assert model.origin is not None
    name = next(iter(model.trunk.state_dict()))
    model.origin = type(model.origin)(network={}, normalisation=None, options={}, lost=(name,))
    with pytest.raises(WeightsError, match=r"'lost' in its metadata is no list of names of a classifier"):
        efficientat.load_model(saved(model, tmp_path))


@pytest.mark.parametrize("options", [{"colour": 1}, {"layer": {}}, {"layer": [None]}, [], "x"])
def test_damaged_choices_are_named(options: Any, tmp_path: Path) -> None:
    folder = saved(small(), tmp_path)
    edit(folder, lambda config: config.update(options=options))
    with pytest.raises(WeightsError, match=r"config\.json: damaged: options = "):
        efficientat.load_model(folder)


@pytest.mark.parametrize("options", [{"layer": 99}, {"hop_ms": "x"}, {"pool": "best"}, {"segment": -1}])
def test_choices_that_the_network_does_not_have_are_refused(options: dict[str, Any], tmp_path: Path) -> None:
    folder = saved(small(), tmp_path)
    edit(folder, lambda config: config.update(options=options))
    with pytest.raises(HearTransformersError, match=next(iter(options))):
        efficientat.load_model(folder)


def test_a_folder_given_as_a_model_is_answered_with_weights(tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="holds weights; give it as weights"):
        hear_transformers.load_model(str(saved(small(), tmp_path)))


def test_a_file_in_the_place_of_the_folder(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match=r"file: no model can be saved here .*; give a folder"):
        small().save_pretrained(tmp_path / "file")


def test_training_starts_from_a_saved_model(tmp_path: Path) -> None:
    model = ast.load_model(pretrained=False, network=SMALL, normalisation=(-3.0, 4.0))
    folder = str(saved(model, tmp_path))
    variant = initialisation.with_normalisation_of(ast.FAMILY, ast.FAMILY.variants["audioset_10_10"], folder)
    trunk, fresh = initialisation.init_from(ast.FAMILY, "audioset_10_10", folder, n_classes=5, network=SMALL)
    assert variant.frontend.normalisation == (-3.0, 4.0)
    assert trunk.blocks[0].attn.qkv.weight.equal(model.trunk.blocks[0].attn.qkv.weight)
    assert fresh == ["head"]


# Repositories of Hugging Face


def test_weights_may_be_a_repository_at_a_revision(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[Any] = []
    model = small(layer=3)
    folder = saved(model, tmp_path)

    def find(name: str, revision: str | None) -> hub.Snapshot:
        asked.append((name, revision))
        return hub.Snapshot(folder, name)

    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace())  # the extra hf may not be installed
    monkeypatch.setattr(hub, "find", find)
    for name in ("someone/birds", "someone/birds@v2"):
        again = hear_transformers.load_model(weights=name, device="cpu")
        assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))
    assert {*asked} == {("someone/birds", None), ("someone/birds", "v2")}


@pytest.mark.parametrize("name", ["someone/birds.pt", "tests/birds", "./birds", "a/b/birds", "birds"])
def test_no_repository_is_looked_for_in_place_of_a_file(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(Path(__file__).parents[2])
    monkeypatch.setattr(hub, "find", lambda *arguments: pytest.fail("it was"))
    with pytest.raises(WeightsError, match="no such file"):
        efficientat.load_model(name)


class Api:
    """Stands for the hub: keeps what is uploaded."""

    files: dict[str, bytes] = {}  # noqa: RUF012
    created: tuple[Any, ...] = ()

    def __init__(self, token: str | None) -> None:
        self.token = token

    def create_repo(self, repo_id: str, *, private: bool | None, exist_ok: bool) -> None:
        if self.token != "secret":
            raise OSError("401 Unauthorized")
        Api.created = repo_id, private, exist_ok

    def upload_folder(self, *, repo_id: str, folder_path: str, revision: str | None, commit_message: str) -> Any:
        Api.files = {path.name: path.read_bytes() for path in Path(folder_path).iterdir()}
        return f"https://hub.example/{repo_id}/commit/1"


def test_a_model_is_uploaded_as_it_would_be_saved(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))
    model = small(layer=3)
    url = model.push_to_hub("someone/birds", private=True, token="secret")
    folder = saved(model, tmp_path)
    assert url == "https://hub.example/someone/birds/commit/1"
    assert Api.created == ("someone/birds", True, True)
    assert Api.files == {path.name: path.read_bytes() for path in folder.iterdir()}


def test_an_upload_that_is_refused_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "huggingface_hub", SimpleNamespace(HfApi=Api))
    with pytest.raises(WeightsError, match=r"someone/birds cannot be written \(401 Unauthorized\); .* hf auth login"):
        small().push_to_hub("someone/birds")


@pytest.mark.slow  # as all tests of `transformers`
def test_a_network_of_transformers_says_how_it_is_saved(tmp_path: Path) -> None:
    pytest.importorskip("transformers")  # of the extra `hf`, which a plain test run need not have
    model = hf.load_model(encoder("hubert"))
    with pytest.raises(OptionError, match=r"save it by trunk\.network\.save_pretrained"):
        model.save_pretrained(tmp_path)
    model.trunk.network.save_pretrained(tmp_path / "net")
    model.trunk.extractor.save_pretrained(tmp_path / "net")
    again = hf.load_model(tmp_path / "net")
    assert again.embed_scenes(NOISE).equal(model.embed_scenes(NOISE))
