"""The network in a checkpoint: whatever wraps it, whatever stands beside it, whatever its size."""

import logging
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_transformers import ast, atgnn, atst, catalogue, ced, eat, efficientat, mast, panns, passt, tiny
from hear_transformers.checkpoints.loading import recognise
from hear_transformers.checkpoints.state_dicts import Content
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.networks.family import on_meta
from hear_transformers.networks.trunk import Trunk
from tests.helpers.golden import filled

SMALL = {"dim": 64, "depth": 2, "heads": 1}
VARIANT = "mn01_as"
MN04 = Path(__file__).parents[3] / "shared" / "weights" / "mn04_as_mAP_432.pt"

StateDict = dict[str, Tensor]


@pytest.fixture(scope="module")
def network() -> Trunk:
    return filled(efficientat.EfficientAT(width=0.1))


@pytest.fixture(scope="module")
def weights(network: Trunk) -> StateDict:
    return dict(network.state_dict())


def under(prefix: str, weights: StateDict) -> StateDict:
    return {prefix + name: tensor for name, tensor in weights.items()}


def changed(weights: StateDict) -> StateDict:
    """Make another network."""
    return {name: tensor * 2 if tensor.is_floating_point() else tensor for name, tensor in weights.items()}


def load(path: Path, content: Any, **options: Any) -> Embedder:
    torch.save(content, path)
    return efficientat.load_model(path, VARIANT, **options)


def assert_is(model: Embedder, weights: StateDict) -> None:
    found = model.trunk.state_dict()
    assert found.keys() == weights.keys()
    assert [name for name in found if not found[name].equal(weights[name].to(found[name].dtype))] == []


# Wrappers


@pytest.mark.parametrize(
    "prefix",
    [
        "trunk.", "module.trunk.", "net.", "model.", "backbone.", "encoder.", "student.", "network.",
        "base_model.model.", "_forward_module.", "model._orig_mod.", "module.module.", "_orig_mod.module.net.",
        "a.b.c.d.",
    ],
)  # fmt: skip
def test_any_prefix_is_found(prefix: str, weights: StateDict, tmp_path: Path) -> None:
    assert_is(load(tmp_path / "net.pt", under(prefix, weights)), weights)


@pytest.mark.parametrize(
    "key", ["state_dict", "model", "net", "network", "weights", "params", "ema", "state", "module", "model_state"]
)
def test_any_container_is_searched(key: str, weights: StateDict, tmp_path: Path) -> None:
    content = {"epoch": 3, key: OrderedDict(weights), "optimizer": {"state": {0: {"exp_avg": torch.ones(3)}}}}
    assert_is(load(tmp_path / "net.pt", content), weights)


WRAPPED: dict[str, Callable[[StateDict], Any]] = {
    "list": lambda weights: [weights, {"lr": 0.1}],
    "tuple": lambda weights: ("net", weights),
    "in the middle": lambda weights: renamed(weights, "features.", "features._orig_mod."),
    "blocks": lambda weights: renamed(weights, ".block.", "._fsdp_wrapped_module.block."),
    "deep": lambda weights: {"a": {"b": [{"c": {"state_dict": under("model.", weights)}}]}},
}


def renamed(weights: StateDict, old: str, new: str) -> StateDict:
    return {name.replace(old, new): tensor for name, tensor in weights.items()}


@pytest.mark.parametrize("name", WRAPPED)
def test_other_wrappings_load(name: str, weights: StateDict, tmp_path: Path) -> None:
    assert_is(load(tmp_path / "net.pt", WRAPPED[name](weights)), weights)


def test_counters_of_batches_may_be_missing(weights: StateDict, tmp_path: Path) -> None:
    given = {name: tensor for name, tensor in weights.items() if not name.endswith("num_batches_tracked")}
    counters = {name: torch.tensor(0) for name in weights if name not in given}
    assert_is(load(tmp_path / "net.pt", given), given | counters)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_load(dtype: torch.dtype, weights: StateDict, tmp_path: Path) -> None:
    given = {name: tensor.to(dtype) if tensor.is_floating_point() else tensor for name, tensor in weights.items()}
    assert_is(load(tmp_path / "net.pt", given), given)


@pytest.mark.parametrize("prefix", ["", "trunk.", "model._orig_mod."])
def test_safetensors_are_searched_too(prefix: str, weights: StateDict, tmp_path: Path) -> None:
    safetensors.torch.save_file(under(prefix, weights), tmp_path / "net.safetensors")
    assert_is(efficientat.load_model(tmp_path / "net.safetensors", VARIANT), weights)


def test_the_state_dict_of_our_own_model_loads(weights: StateDict, tmp_path: Path) -> None:
    model = load(tmp_path / "net.pt", weights)
    for module in (model, nn.DataParallel(model)):
        again = load(tmp_path / "again.pt", module.state_dict())
        audio = torch.rand(1, 8_000, generator=torch.Generator().manual_seed(0)) - 0.5
        assert again.embed_scenes(audio).equal(model.embed_scenes(audio))


# Beside the network


@pytest.mark.parametrize(
    "beside",
    [
        {"criterion.pos_weight": torch.ones(3)},
        {"loss.weight": torch.ones(3), "train_accuracy.total": torch.tensor(3)},
        {"head.weight": torch.ones(3, 96), "head.bias": torch.ones(3)},
        {"discriminator.features.0.weight": torch.ones(3)},
        {"mel.window": torch.ones(400), "n_averaged": torch.tensor(7)},
    ],
)
@pytest.mark.parametrize("prefix", ["net.", ""])
def test_what_stands_beside_the_network_is_named_and_not_read(
    beside: StateDict, prefix: str, weights: StateDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.INFO, "hear_transformers"):
        assert_is(load(tmp_path / "net.pt", under(prefix, weights) | beside), weights)
    names = "names that begin with net." if prefix else "names as they stand"
    assert f"is read from {names}; beside it: " in caplog.text
    named = next(iter(beside)).partition(".")[0]
    assert f"{named} (" in caplog.text or named == "mel"


@pytest.mark.parametrize("averaged", ["net_swa.", "ema.", "state_dict_ema.", "model_ema.module."])
def test_the_average_is_taken_and_that_is_said(
    averaged: str, weights: StateDict, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    content = under("net.", changed(weights)) | under(averaged, weights)
    assert_is(load(tmp_path / "net.pt", content), weights)
    assert "the average" in caplog.text
    assert_is(load(tmp_path / "net.pt", content, weights_prefix="net."), changed(weights))


@pytest.mark.parametrize("others", [("teacher.", "student."), ("a.net.", "b.net."), ("model_1.", "model_2.")])
def test_of_several_networks_one_must_be_chosen(others: tuple[str, str], weights: StateDict, tmp_path: Path) -> None:
    first, second = sorted(others)
    content = under(first, weights) | under(second, changed(weights))
    with pytest.raises(
        WeightsError, match=rf"net\.pt holds 2 networks .*'{first}', '{second}'; choose .*weights_prefix"
    ):
        load(tmp_path / "net.pt", content)
    for prefix in (second, second.rstrip(".")):
        assert_is(load(tmp_path / "net.pt", content, weights_prefix=prefix), changed(weights))


def test_equal_networks_need_no_choice(weights: StateDict, tmp_path: Path) -> None:
    assert_is(load(tmp_path / "net.pt", under("a.", weights) | under("b.", weights)), weights)


def test_a_prefix_that_is_not_there_names_those_that_are(weights: StateDict, tmp_path: Path) -> None:
    with pytest.raises(OptionError, match="weights_prefix='teacher' begins no name in the file; these do: net"):
        load(tmp_path / "net.pt", under("net.", weights), weights_prefix="teacher")


# Without a classifier, or with another one


@pytest.mark.parametrize(
    "head", [{}, {"classifier.weight": torch.ones(3, 96)}, {"fc.weight": torch.ones(3, 96)}], ids=["none", "same", "fc"]
)
def test_a_network_without_its_classifier_embeds(head: StateDict, weights: StateDict, tmp_path: Path) -> None:
    audio = torch.rand(1, 8_000, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = load(tmp_path / "whole.pt", weights).embed_scenes(audio)
    body = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    model = load(tmp_path / "net.pt", body | head)
    assert model.embed_scenes(audio).equal(expected)
    with pytest.raises(OptionError, match=r"layer='logits' is unknown; .*net\.pt holds no classifier"):
        load(tmp_path / "net.pt", body | head, layer="logits")


def test_passt_without_its_classifier_embeds_without_logits(tmp_path: Path) -> None:
    weights = filled(passt.PaSST(**SMALL)).state_dict()
    torch.save({name: weights[name] for name in weights if not name.startswith("head.1.")}, tmp_path / "net.pt")
    model = passt.load_model(tmp_path / "net.pt", "base")
    assert model.layers == ("features",)
    assert model.scene_embedding_size == 64


def test_the_transfer_repository_of_panns_is_read_with_its_classifier(tmp_path: Path) -> None:
    network = filled(panns.network(**{**panns.VARIANTS["cnn6"].network, "width": 0.1}))
    base = under("base.", dict(network.state_dict()))
    head = {"fc_transfer.weight": torch.ones(10, network.fc1.out_features), "fc_transfer.bias": torch.arange(10.0)}
    torch.save({"iteration": 3, "model": base | head}, tmp_path / "net.pth")
    model = panns.load_model(tmp_path / "net.pth", "cnn6", layer="logits")
    assert model.scene_embedding_size == 10
    assert model.trunk.state_dict()["fc_audioset.bias"].equal(head["fc_transfer.bias"])


# What does not fit


def test_an_adapter_within_the_network_is_not_passed_over(weights: StateDict, tmp_path: Path) -> None:
    content = weights | {"features.1.block.0.lora_A": torch.ones(1)}
    with pytest.raises(WeightsError, match=r"1 unexpected: features\.1\.block\.0\.lora_A"):
        load(tmp_path / "net.pt", content)


@pytest.mark.parametrize("prefix", ["", "net.", "state.model."])
def test_a_message_is_short_and_names_what_is_missing(prefix: str, weights: StateDict, tmp_path: Path) -> None:
    content = under(prefix, weights)
    del content[f"{prefix}features.3.block.0.0.weight"]
    with pytest.raises(WeightsError, match=r"1 missing: features\.3\.block\.0\.0\.weight") as error:
        load(tmp_path / "net.pt", content)
    assert len(str(error.value)) < 400
    assert prefix in str(error.value)


@pytest.mark.parametrize("name", ["features.0.0.weight", "features.0.1.num_batches_tracked", "classifier.5.bias"])
def test_complex_numbers_are_refused(name: str, weights: StateDict, tmp_path: Path) -> None:
    content = weights | {name: weights[name].to(torch.complex64)}
    with pytest.raises(WeightsError, match=rf"net\.pt: .*{name} is a tensor of .*complex64"):
        load(tmp_path / "net.pt", content)


def test_another_variant_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net\.pt does not fit the variant that was chosen, but mn02_as"):
        load(tmp_path / "net.pt", efficientat.EfficientAT(width=0.2).state_dict())


# Sizes


Case = tuple[Any, Callable[[], Trunk], str | None, dict[str, Any]]
SIZES: dict[str, Case] = {
    "ast frames": (ast, lambda: ast.AST(frames=312, n_classes=3, **SMALL), "tiny_10_10", {"network": {"heads": 1}}),
    "ast short": (ast, lambda: ast.AST(frames=100, **SMALL), "audioset_10_10", {}),
    "ast long": (ast, lambda: ast.AST(frames=2048, **SMALL), "audioset_10_10", {}),
    "ast bands": (ast, lambda: ast.AST(n_mels=64, **SMALL), "audioset_10_10", {}),
    "ast stride": (ast, lambda: ast.AST(stride=16, **SMALL), "audioset_10_10", {}),
    "ast given": (ast, lambda: ast.AST(stride=20, **SMALL), "audioset_10_10", {"network": {"stride": 20}}),
    "passt short": (passt, lambda: passt.PaSST(time_positions=49, n_classes=3, **SMALL), "base", {}),
    "passt long": (passt, lambda: passt.PaSST(time_positions=150, **SMALL), None, {}),
    "passt bands": (passt, lambda: passt.PaSST(n_mels=64, **SMALL), "base", {}),
    "passt stride": (passt, lambda: passt.PaSST(stride=14, **SMALL), "base", {}),
    "panns": (panns, lambda: panns.network(kind="cnn", width=0.05, n_mels=40, n_classes=3), "cnn14", {}),
    "panns resnet": (
        panns,
        lambda: panns.network(**{**panns.VARIANTS["resnet22"].network, "width": 0.05, "n_mels": 128}),
        "resnet22", {},
    ),
    "mast": (mast, lambda: mast.MAST(dim=24, depths=(1, 1, 2, 1), frames=312, n_mels=64, n_classes=3), "tiny", {}),
    "atgnn": (
        atgnn,
        lambda: atgnn.ATGNN(
            channels=(8, 8, 16, 16), depths=(1, 2, 1, 1), label_depths=(1, 0, 1, 1), frames=512, n_mels=64, n_classes=3
        ),
        "pyr_t", {},
    ),
    "efficientat": (efficientat, lambda: efficientat.EfficientAT(width=0.15, n_classes=3), "mn04_as", {}),
    "dymn": (efficientat, lambda: efficientat.EfficientAT(width=0.15, dynamic=(4, 5)), "mn04_as", {}),
    "tiny": (tiny, lambda: tiny.TinyAudioTransformer(n_mels=64, **SMALL), None, {}),
    "eat": (eat, lambda: eat.EAT(n_classes=3, **SMALL), "base_epoch30_pretrain", {}),
    "atst": (
        atst, lambda: atst.AtstFrame(n_classes=3, n_mels=40, time_positions=100, **SMALL), "frame_base", {},
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", SIZES)
def test_a_network_of_ones_own_loads_with_the_sizes_of_its_tensors(name: str, tmp_path: Path) -> None:
    family, build, variant, options = SIZES[name]
    network = filled(build()).eval()
    torch.save({"state_dict": under("net.", dict(network.state_dict()))}, tmp_path / "net.ckpt")
    model = family.load_model(tmp_path / "net.ckpt", variant, **options)
    assert_is(model, dict(network.state_dict()))
    frontend = model.variant.frontend
    frames = frontend.build()(torch.rand(1, 16_000, generator=torch.Generator().manual_seed(0)) - 0.5)
    with torch.no_grad():
        expected, found = (trunk(frames, ["features"])["features"] for trunk in (network, model.trunk))
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    assert model.embed_scenes(torch.rand(1, 3 * model.sample_rate) - 0.5).isfinite().all()


@pytest.mark.parametrize("frames", [128, 312, 2048])
def test_a_scene_is_as_long_as_the_network_of_the_file(frames: int, tmp_path: Path) -> None:
    torch.save(ast.AST(frames=frames, **SMALL).state_dict(), tmp_path / "net.pt")
    model = ast.load_model(tmp_path / "net.pt", "audioset_10_10")
    assert model.variant.scene.fill_frames == pytest.approx(frames, abs=9)  # less than a patch hop
    assert model.variant.scene.window_ms == pytest.approx(10 * frames, abs=105)


def test_heads_that_cannot_be_known_must_be_given(tmp_path: Path) -> None:
    torch.save(ast.AST(dim=40, depth=2, heads=5).state_dict(), tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt: its 40 features .*; give it, such as network=\{\"heads\": 3\}"):
        ast.load_model(tmp_path / "net.pt")
    assert ast.load_model(tmp_path / "net.pt", network={"heads": 5}).trunk.blocks[0].attn.heads == 5


@pytest.mark.parametrize(
    ("family", "given"), [(ast, {"width": 3}), (passt, {"frames": 3}), (panns, {"n_mel": 40}), (tiny, {"heads": 5})]
)
def test_arguments_that_make_no_network_are_refused(
    family: Any, given: dict[str, Any], weights: StateDict, tmp_path: Path
) -> None:
    torch.save(weights, tmp_path / "net.pt")
    for path in ("", tmp_path / "net.pt"):
        with pytest.raises(OptionError, match=r"network=.* makes no network of .*; its arguments are \w+, "):
            family.load_model(path, network=given, pretrained=False)


def test_arguments_and_normalisation_are_part_of_the_provenance(tmp_path: Path) -> None:
    torch.save(ast.AST(**SMALL).state_dict(), tmp_path / "net.pt")
    usual = ast.load_model(tmp_path / "net.pt").provenance()
    model = ast.load_model(tmp_path / "net.pt", network={"heads": 1}, normalisation=(-1.2, 3.4))
    added = {"network": {"heads": 1}, "normalisation": (-1.2, 3.4)}
    assert model.provenance() == usual | added


# The authors' own numbers of ATGNN


@pytest.mark.parametrize(("colours", "relpos"), [(1, "official"), (3, "rectangular")])
def test_files_of_the_author_of_atgnn_are_read_with_his_positions(colours: int, relpos: str, tmp_path: Path) -> None:
    network = filled(atgnn.ATGNN(channels=(8, 8, 16, 16), depths=(1, 1, 1, 1), n_classes=0))
    weights = {name: tensor for name, tensor in network.state_dict().items()}
    theirs = {
        f"stem.convs.{(0, 3, 6)[i]}.{kind}": weights.pop(f"stem.{i}.0.{kind}")
        for i in range(3)
        for kind in ("weight", "bias")
    }
    theirs["stem.convs.0.weight"] = theirs["stem.convs.0.weight"].expand(-1, colours, -1, -1).clone()
    tables = {f"blocks.{i}.grapher.relative_pos": torch.ones(1, 4, 4) for i in range(4)}
    torch.save(weights | theirs | tables, tmp_path / "net.pt")
    assert atgnn.load_model(tmp_path / "net.pt", "pvig_ti").trunk.relpos == relpos
    assert atgnn.load_model(tmp_path / "net.pt", "pvig_ti", network={"relpos": "official"}).trunk.relpos == "official"


# Which model


@pytest.mark.parametrize(
    ("family", "build", "variant"),
    [
        (efficientat, lambda: efficientat.EfficientAT(width=0.1), "mn01_as"),
        (ast, lambda: ast.AST(dim=192, heads=3), "tiny_10_10"),
        (efficientat, lambda: efficientat.EfficientAT(width=0.4, dynamic=efficientat.EVERY_BLOCK), "dymn04_as"),
        (tiny, lambda: tiny.TinyAudioTransformer(), "tiny"),
        (ced, lambda: ced.CED(dim=192, heads=3), "ced_tiny"),
    ],
)
def test_the_tensors_say_which_model_a_file_is_for(
    family: Any, build: Callable[[], Trunk], variant: str, tmp_path: Path
) -> None:
    torch.save(under("net.", dict(build().state_dict())), tmp_path / "net.pt")
    name = catalogue.family_of_checkpoint(str(tmp_path / "net.pt"))
    assert f"hear_transformers.{name}" == family.__name__
    assert family.load_model(tmp_path / "net.pt").name == (name, variant)


@pytest.mark.parametrize("name", ["cnn14", "wavegram_cnn14", "wavegram_logmel_cnn14"])
def test_a_variant_is_known_among_those_that_it_extends(name: str) -> None:
    family = panns.FAMILY
    row = family.variants[name]
    weights = {key: torch.zeros(()).expand(tensor.shape) for key, tensor in on_meta(family, row).state_dict().items()}
    assert recognise(family, Content(weights), Path("net.pt"), (), network={}) == name


def test_a_file_of_no_model_says_what_to_give(tmp_path: Path) -> None:
    torch.save({"weight": torch.ones(1)}, tmp_path / "net.pt")
    with pytest.raises(
        WeightsError, match=r"net\.pt: its model is not known .*; give model, one of tiny, .*, and variant"
    ):
        catalogue.family_of_checkpoint(str(tmp_path / "net.pt"))


@pytest.mark.shared
@pytest.mark.skipif(not MN04.exists(), reason="needs the real weights")
def test_a_published_file_is_known_by_its_hash(tmp_path: Path) -> None:
    path = tmp_path / "renamed.bin"
    path.write_bytes(MN04.read_bytes())
    assert catalogue.family_of_checkpoint(str(path)) == "efficientat"
    assert efficientat.load_model(path).name == ("efficientat", "mn04_as")
    with pytest.raises(WeightsError, match=r"renamed\.bin is the published checkpoint mn04_as of efficientat"):
        tiny.load_model(path)
