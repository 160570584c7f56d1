"""Checkpoints of our own, and what training starts from: random numbers, other checkpoints, networks for images."""

import json
import time
from dataclasses import replace
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from hear_transformers import FAMILIES, ast, atgnn, catalogue, hear, mast, passt
from hear_transformers.checkpoints import state_dicts, store
from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.files import sha256_of
from hear_transformers.networks.family import random_trunk
from hear_transformers.training import initialisation
from tests.helpers.golden import filled, golden_tensor
from tests.networks.test_contract import SMALL, family_of

CLASSIFYING = [name for name in FAMILIES if family_of(name).classifier]
HEADS = {
    "passt": ["head.1"],
    "ast": ["head"],
    "panns": ["fc_audioset"],
    "mast": ["head"],
    "atgnn": ["prediction.4", "labels"],
    "efficientat": ["classifier.5"],
    "dasheng": ["head.1"],
    "ced": ["head.1"],
    "eat": ["head"],
    "atst": ["weak_head"],
    "beats": ["head"],
    "clap": ["head"],
}
"""What other classes leave nothing of."""
BIRDS = ("wren", "robin", "owl")


def trained(name: str, n_classes: int = 3, **network) -> torch.nn.Module:
    """Make a small network of the first variant of a family."""
    family = family_of(name)
    variant = next(iter(family.variants))
    return filled(
        initialisation.init_from(family, variant, "", n_classes=n_classes, network={**SMALL[name], **network})[0]
    )


def written(path: Path, name: str, trunk: torch.nn.Module | None = None, network=None, **metadata: str) -> Path:
    """Write a small network as training does."""
    family = family_of(name)
    network = {**SMALL[name], "n_classes": 3} if network is None else network
    said = {"family": name, "variant": next(iter(family.variants)), "network": json.dumps(network)}
    state_dicts.write(path, trained(name) if trunk is None else trunk, {**said, **metadata})
    return path


def assert_equal(found, expected, but: tuple[str, ...] = ()) -> None:
    """Compare tensors by name, but for those that start so."""
    assert found.keys() == expected.keys()
    assert [key for key in found if not key.startswith(but) and not found[key].equal(expected[key])] == []


# Checkpoints of our own


def load(name: str, path: Path, variant: str | None = None, **options):
    return hear.Loader(family_of(name)).load_model(path, variant, **options)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFYING)
def test_our_own_checkpoint_is_loaded_by_its_path_alone(name, tmp_path):
    trunk = trained(name)
    path = written(tmp_path / "model.safetensors", name, trunk, labels=json.dumps(BIRDS), multi_label="false")
    model = load(name, path)
    assert_equal(model.trunk.state_dict(), trunk.state_dict())
    assert model.name == (name, next(iter(family_of(name).variants)))
    assert (model.labels, model.multi_label) == (BIRDS, False)
    assert model.weights_sha256 == sha256_of(path)


@pytest.mark.slow
def test_the_variant_may_be_named_too(tmp_path):
    assert load("ast", written(tmp_path / "net", "ast"), "audioset_10_10").name == ("ast", "audioset_10_10")


def test_a_checkpoint_of_ours_need_not_name_its_classes(tmp_path):
    model = load("ast", written(tmp_path / "net", "ast"), layer="logits")
    assert (model.scene_embedding_size, model.labels, model.multi_label) == (3, None, True)


def test_what_else_training_says_is_kept(tmp_path):
    path = written(tmp_path / "net", "ast", step="12", recipe='{"epochs": 5}')
    metadata = state_dicts.read_metadata(path)
    assert (metadata["step"], metadata["recipe"], metadata["package"]) == ("12", '{"epochs": 5}', "hear_transformers")


def test_the_same_network_is_written_as_the_same_bytes(tmp_path):
    first, second = (written(tmp_path / name, "efficientat", labels=json.dumps(BIRDS)) for name in ("1", "2"))
    assert first.read_bytes() == second.read_bytes()


def test_what_is_written_are_safetensors(tmp_path):
    trunk = trained("efficientat")
    assert_equal(safetensors.torch.load_file(written(tmp_path / "net", "efficientat", trunk)), trunk.state_dict())


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = written(tmp_path / "net", "efficientat")
    before = path.read_bytes()
    with pytest.raises(TypeError):
        state_dicts.write(path, trained("efficientat"), {"step": object()})
    assert path.read_bytes() == before
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize("content", [b"", b"text", b"\xff" * 100, b"\x10\0\0\0\0\0\0\0{}", None])
def test_other_files_say_nothing_about_themselves(content, tmp_path):
    path = tmp_path / "net"
    if content is not None:
        path.write_bytes(content)
    assert state_dicts.read_metadata(path) == {}
    assert state_dicts.read_metadata(tmp_path) == {}


def test_checkpoints_of_others_say_nothing_about_themselves(tmp_path):
    weights = {"weight": torch.ones(1)}
    torch.save(weights, tmp_path / "net.pt")
    safetensors.torch.save_file(weights, tmp_path / "net.safetensors", {"format": "pt", "family": "ast"})
    assert state_dicts.read_metadata(tmp_path / "net.pt") == {}
    assert state_dicts.read_metadata(tmp_path / "net.safetensors") == {}


def test_a_checkpoint_of_ours_for_another_family_names_it(tmp_path):
    with pytest.raises(WeightsError, match=r"net is for the family 'mast', not 'ast'; load it with that one"):
        load("ast", written(tmp_path / "net", "mast"))


def test_a_checkpoint_of_ours_for_another_variant_names_it(tmp_path):
    with pytest.raises(WeightsError, match=r"is for the variant 'audioset_10_10', not 'tiny_10_10'; leave .* out"):
        load("ast", written(tmp_path / "net", "ast"), "tiny_10_10")


def test_a_variant_that_is_not_known_any_more_is_refused(tmp_path):
    with pytest.raises(WeightsError, match="its variant 'new' is unknown to ast; is it of a newer version"):
        load("ast", written(tmp_path / "net", "ast", variant="new"))


DAMAGED = {
    "not JSON": "{",
    "no object": "[1]",
    "nested": "[" * 100_000,
    "NaN": '{"dim": NaN}',
    "an object": '{"dim": {}}',
    "null": '{"dim": null}',
    "large": '{"dim": 1e30}',
    "deep": '{"depth": 60000}',
    "too deep": '{"depth": 1000000000}',
    "wide": '{"dim": 65535}',
    "many classes": '{"n_classes": 65536}',
    "a long list": json.dumps({"dim": [1] * 1000}),
    "lists in lists": '{"dim": [[[1]]]}',
    "negative": '{"dim": -1}',
    "no heads": '{"heads": 0}',
    "text": '{"dim": "48"}',
    "another front end": '{"dim": 48, "depth": 2, "heads": 3, "n_classes": 3, "n_mels": 138}',
    "unknown": '{"dimension": 48}',
    "of Python": '{"__class__": "x"}',
    "another size": '{"dim": 48, "depth": 1, "heads": 3, "n_classes": 3}',
}


@pytest.mark.slow
@pytest.mark.parametrize("network", DAMAGED.values(), ids=DAMAGED)
def test_arguments_that_are_not_the_networks_build_nothing(network, tmp_path, monkeypatch):
    path = written(tmp_path / "net", "ast", network=None)
    state_dict = safetensors.torch.load_file(path)
    metadata = {**state_dicts.read_metadata(path), "network": network}
    safetensors.torch.save_file(state_dict, path, metadata)

    def never(*_):
        raise AssertionError("a network was built")

    for builder in ("random_trunk", "unfilled_trunk"):
        monkeypatch.setattr(hear, builder, never)
    began = time.monotonic()
    with pytest.raises(WeightsError, match=r"net(: damaged| does not fit)"):
        load("ast", path)
    assert time.monotonic() - began < 30


@pytest.mark.slow
@pytest.mark.parametrize(
    ("name", "network"),
    [
        ("passt", {"depth": 60_000}),
        ("panns", {"kind": "resnet", "depths": [1, 1, 1, 60_000]}),
        ("mast", {"depths": [1, 60_000, 1, 1]}),
        ("atgnn", {"label_depths": [0, 0, 60_000, 0]}),
    ],
)
def test_metadata_cannot_ask_for_more_blocks_than_the_file_has_tensors(name, network, tmp_path):
    path = written(tmp_path / "net", name, network=network)
    with pytest.raises(WeightsError, match=r"net: damaged: its metadata ask for 6000\d blocks, but it has \d+ tensors"):
        load(name, path)


@pytest.mark.slow
@pytest.mark.parametrize("labels", ["[", '{"0": "wren"}', '["wren"]', '["wren", "robin", 3]', '"owl"'])
def test_names_that_are_not_those_of_the_classes_are_refused(labels, tmp_path):
    with pytest.raises(WeightsError, match=r"net: damaged: 'labels' in its metadata is (not JSON|no list of 3 names)"):
        load("ast", written(tmp_path / "net", "ast", labels=labels))


@pytest.mark.slow
def test_lists_become_the_tuples_that_networks_take(tmp_path):
    model = load("mast", written(tmp_path / "net", "mast"))
    assert len(model.trunk.blocks) == sum(SMALL["mast"]["depths"])


@pytest.mark.parametrize(("name", "network"), [("ast", {"frames": 300}), ("passt", {"time_positions": 20})])
def test_a_network_for_shorter_clips_reads_longer_ones_in_windows(name, network, tmp_path):
    trunk = trained(name, **network)
    path = written(tmp_path / "net", name, trunk, {**SMALL[name], "n_classes": 3, **network})
    model = load(name, path)
    clip = torch.rand(1, 10 * model.sample_rate, generator=torch.Generator().manual_seed(0)) - 0.5
    assert model.embed_scenes(clip).isfinite().all()
    assert model.embed_timestamps(clip)[0].isfinite().all()


def test_no_tensor_is_larger_than_its_file(tmp_path):
    path = tmp_path / "net.pt"
    torch.save({"weight": torch.ones(1).expand(1_000_000)}, path)
    with pytest.raises(WeightsError, match="expected a dict of dense tensors"):
        state_dicts.read_state_dict(path)


def test_a_count_of_classes_that_nothing_else_has_builds_nothing(tmp_path, monkeypatch):
    weights = trained("ast", depth=1).state_dict()
    torch.save({**weights, "head.1.bias": torch.zeros(1_000_000)}, tmp_path / "net.pt")
    row = replace(ast.VARIANTS["audioset_10_10"], network={**SMALL["ast"], "depth": 1})
    built = []
    for builder in ("random_trunk", "unfilled_trunk"):
        monkeypatch.setattr(hear, builder, lambda *given: built.append(given[1]) or random_trunk(*given))
    with pytest.raises(WeightsError, match=r"1 of another shape or type: head\.1\.weight"):
        hear.Loader(replace(ast.FAMILY, variants={"small": row})).load_model(tmp_path / "net.pt")
    assert built == []


@pytest.mark.slow
def test_embed_audio_needs_no_more_than_the_file(installed_command, audio_file, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = written(tmp_path / "net", "efficientat", labels=json.dumps(BIRDS), multi_label="false")
    arguments = [audio_file(), "--weights", path, "--layer", "logits", "--labels", "--json"]
    result = installed_command("embed-audio")(*arguments)
    assert result.exit_code == 0, result.output
    tags = json.loads(result.stdout)["tags"]
    assert {tag["label"] for tag in tags} == set(BIRDS)
    assert sum(tag["probability"] for tag in tags) == pytest.approx(1.0)


# Starts


def start(name: str, source="", variant: str | None = None, n_classes: int = 3, **network):
    family = family_of(name)
    variant = variant or next(iter(family.variants))
    return initialisation.init_from(
        family, variant, str(source), n_classes=n_classes, network={**SMALL[name], **network}
    )


@pytest.mark.parametrize("name", CLASSIFYING)
def test_random_starts_are_the_same_every_time(name):
    (first, fresh), (second, _) = start(name), start(name)
    assert fresh == ["all parameters"]
    assert first.training
    assert_equal(first.state_dict(), second.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFYING)
def test_other_classes_draw_the_classifier_anew(name, tmp_path):
    trunk = trained(name)
    found, fresh = start(name, written(tmp_path / "net", name, trunk), n_classes=5)
    assert fresh == HEADS[name]
    anew = tuple(f"{group}." for group in fresh)
    random = start(name, n_classes=5)[0].state_dict()
    expected = {**trunk.state_dict(), **{key: value for key, value in random.items() if key.startswith(anew)}}
    assert_equal(found.state_dict(), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFYING)
def test_the_same_classes_draw_nothing_anew(name, tmp_path):
    trunk = trained(name)
    torch.save(trunk.state_dict(), tmp_path / "net.pt")
    found, fresh = start(name, tmp_path / "net.pt")
    assert fresh == []
    assert_equal(found.state_dict(), trunk.state_dict())


@pytest.mark.slow
@pytest.mark.parametrize("name", CLASSIFYING)
def test_nothing_but_the_classifier_may_be_missing(name, tmp_path):
    weights = dict(trained(name).state_dict())
    beside = (*family_of(name).reinitialised,)
    needed = [key for key in weights if not key.startswith(beside) and not key.endswith("num_batches_tracked")]
    del weights[needed[-1]]
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"net\.pt does not fit \w+: 1 missing: "):
        start(name, tmp_path / "net.pt")


@pytest.mark.parametrize("name", CLASSIFYING)
def test_a_file_of_another_family_is_no_start(name, tmp_path):
    other = "mast" if name == "ast" else "ast"
    with pytest.raises(WeightsError, match=f"net is for the family '{other}', not '{name}'"):
        start(name, written(tmp_path / "net", other))


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("ast", {"variant": "audioset"}, "variant='audioset' is unknown to ast; choose one of audioset_10_10"),
        ("ast", {"n_classes": 0}, "n_classes=0 for ast; choose 1 or more"),
        ("ast", {"width": 3}, r"ast/audioset_10_10 has no argument width; .*choose from .*frames"),
        (
            "ast",
            {"source": "published", "variant": "tiny_10_10"},
            r"no start 'published' .* choose imagenet, a file, or",
        ),
        ("panns", {"source": "imagenet"}, "no start 'imagenet' is known for panns/cnn14; choose published, a file, or"),
        ("panns", {"source": "publised"}, "no start 'publised', nor a file of that name; did you mean published"),
        (
            "atgnn",
            {"source": "imagenet", "variant": "pyr_b"},
            "no start 'imagenet' is known for atgnn/pyr_b; choose a file",
        ),
    ],
)
def test_starts_that_there_are_not_say_what_there_is(name, options, message):
    with pytest.raises(OptionError, match=message):
        start(name, **options)


def test_a_network_without_a_classifier_cannot_be_trained_on_labels():
    with pytest.raises(OptionError, match=r"model='tiny' has no classifier to train; choose a family that has one"):
        initialisation.init_from(family_of("tiny"), "tiny", "", n_classes=3)
    with pytest.raises(OptionError, match=r"n_classes=0 for passt; choose 1 or more"):
        initialisation.init_from(family_of("passt"), "base", "", n_classes=0)


def test_a_published_checkpoint_is_fetched(tmp_path, monkeypatch):
    asked = []
    path = written(tmp_path / "net", "passt")
    monkeypatch.setattr(store, "fetch", lambda row, progress: asked.append((row.family, row.name)) or path)
    _, fresh = start("passt", "published")
    assert asked == [("passt", "passt_s_swa_p16_128_ap476")]
    assert fresh == []


@pytest.mark.parametrize(
    ("name", "variant", "row"),
    [
        ("ast", "audioset_16_16", "deit.deit_base_distilled_patch16_384"),
        ("ast", "tiny_10_10", "deit.deit_tiny_distilled_patch16_224"),
        ("passt", "base2level", "deit.deit_base_distilled_patch16_384"),
        ("mast", "small", "mast.mvitv2_s_in1k"),
        ("mast", "mvit_small", "mast.mvitv2_s_in1k"),
        ("atgnn", "pyr_s_encoder", "atgnn.pvig_s"),
        ("efficientat", "mn40_as_no_im_pre(2)", "efficientat.mn40_im"),
        ("efficientat", "mn10_as_hop_5", "efficientat.mn10_im"),
        ("efficientat", "dymn20_as(3)", "efficientat.dymn20_im"),
    ],
)
def test_variants_start_from_images_of_their_size(name, variant, row):
    assert ".".join(family_of(name).variants[variant].imagenet) == row


@pytest.mark.slow
def test_starts_are_no_variants_but_are_told_of():
    description = catalogue.describe("ast", "tiny_10_10")
    assert description["weights"]["checkpoint"] is None
    assert description["imagenet"]["checkpoint"] == "deit_tiny_distilled_patch16_224-b40b3cf7.pth"
    assert "imagenet" not in catalogue.describe("tiny")
    assert "deit" not in {model["family"] for model in catalogue.rows()}


def test_the_imagenet_file_is_fetched(tmp_path, monkeypatch):
    asked = []
    torch.save(trained("efficientat", 1000).state_dict(), tmp_path / "net.pt")
    monkeypatch.setattr(store, "fetch", lambda row, progress: asked.append(row.file) or tmp_path / "net.pt")
    _, fresh = start("efficientat", "imagenet", "mn10_as_mels_64")
    assert asked == ["mn10_im.pt"]
    assert fresh == ["classifier.5"]


def test_another_kind_of_classifier_is_drawn_anew_as_a_whole(tmp_path):
    torch.save(trained("efficientat", 1000).state_dict(), tmp_path / "net.pt")
    found, fresh = start("efficientat", tmp_path / "net.pt", "mn10_as_fc")
    assert fresh == ["classifier"]
    assert found.classifier[0].out_channels == 3


# DeiT


def deit(path: Path, side: int = 14, **options) -> torch.nn.Module:
    """Save a small DeiT for images of so many patches along both sides in its authors' layout."""
    import timm

    model = timm.create_model(
        "deit_tiny_distilled_patch16_224", img_size=16 * side, embed_dim=12, depth=2, num_heads=2, **options
    )
    filled(model).eval()
    torch.save({"model": model.state_dict()}, path)
    return model


DEIT = {"dim": 12, "depth": 2, "heads": 2}


def taps(axis: int, size: int, held: int, cubic: bool) -> list[tuple[int, float]]:
    """Give the entries and weights that interpolation to `size` reads for one position."""
    place = (axis + 0.5) * held / size - 0.5
    if not cubic:
        place = max(place, 0.0)
    below = int(np.floor(place))
    found = []
    for entry in range(below - 1, below + 3) if cubic else (below, below + 1):
        x, a = abs(place - entry), -0.75  # PyTorch's kernel (Keys 1981)
        if not cubic:
            weight = max(0.0, 1 - x)
        elif x <= 1:
            weight = (a + 2) * x**3 - (a + 3) * x**2 + 1
        else:
            weight = a * x**3 - 5 * a * x**2 + 8 * a * x - 4 * a
        found.append((min(max(entry, 0), held - 1), weight))
    return found


def interpolated(grid: np.ndarray, n_freq: int, n_time: int, *, cubic: bool) -> np.ndarray:
    """Interpolate (freq, time, features) position by position."""
    found = np.zeros((n_freq, n_time, grid.shape[2]))
    for f, t in product(range(n_freq), range(n_time)):
        for row, of_freq in taps(f, n_freq, grid.shape[0], cubic):
            for column, of_time in taps(t, n_time, grid.shape[1], cubic):
                found[f, t] += of_freq * of_time * grid[row, column]
    return found


def grid_of(model, side: int) -> np.ndarray:
    return model.pos_embed.detach()[0, 2:].numpy().reshape(side, side, -1)


def assert_network_is_that_for_images(trunk, model) -> None:
    """All but positions, filters and classifiers."""
    theirs = model.state_dict()
    beside = ("pos_embed", "new_pos", "freq_new", "time_new", "patch_embed.proj.weight", "head")
    found = {key: value for key, value in trunk.state_dict().items() if not key.startswith(beside)}
    expected = {key: value for key, value in theirs.items() if not key.startswith(beside)}
    assert_equal(found, expected)
    filters = sum(theirs["patch_embed.proj.weight"][:, colour] for colour in range(3))
    torch.testing.assert_close(trunk.state_dict()["patch_embed.proj.weight"][:, 0], filters)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "variant", "rows", "columns"),
    [
        # The middle of 24 rows; more than 24 columns.
        (24, "audioset_10_10", slice(6, 18), None),
        (14, "audioset_16_16", slice(3, 11), None),
        # 12 of 24 columns, 12 of 14.
        (24, "speechcommands_10_10", slice(6, 18), slice(6, 18)),
        (14, "speechcommands_10_10", slice(1, 13), slice(1, 13)),
    ],
)
def test_ast_starts_from_the_positions_of_images(side, variant, rows, columns, tmp_path):
    model = deit(tmp_path / "deit.pth", side)
    trunk, fresh = start("ast", tmp_path / "deit.pth", variant, **DEIT)
    assert fresh == ["head"]
    assert_network_is_that_for_images(trunk, model)
    grid = grid_of(model, side)
    n_time = trunk.time_positions
    wide = interpolated(grid, side, n_time, cubic=False) if columns is None else grid[:, columns]
    found = trunk.pos_embed.detach()[0].numpy()
    np.testing.assert_array_equal(found[:2], model.pos_embed.detach()[0, :2].numpy())
    np.testing.assert_allclose(found[2:], wide[rows].reshape(-1, 12), rtol=0, atol=1e-5)


@pytest.mark.slow
def test_ast_stretches_rows_where_there_are_too_few(tmp_path):
    model = deit(tmp_path / "deit.pth", 7)
    trunk, _ = start("ast", tmp_path / "deit.pth", "speechcommands_10_10", **DEIT)
    expected = interpolated(grid_of(model, 7), 12, 12, cubic=False)
    np.testing.assert_allclose(trunk.pos_embed.detach()[0, 2:].numpy(), expected.reshape(-1, 12), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("side", "variant", "grid"), [(24, "base", (12, 99)), (14, "passt_s_p16_s16_128_ap468", (8, 62))]
)
def test_passt_starts_from_the_positions_of_images(side, variant, grid, tmp_path):
    model = deit(tmp_path / "deit.pth", side)
    trunk, fresh = start("passt", tmp_path / "deit.pth", variant, **DEIT)
    assert fresh == ["head"]
    assert_network_is_that_for_images(trunk, model)
    expected = interpolated(grid_of(model, side), *grid, cubic=True)
    assert trunk.new_pos_embed.equal(model.pos_embed[:, :2])
    of_freq, of_time = trunk.freq_new_pos_embed.detach()[0, :, :, 0].T, trunk.time_new_pos_embed.detach()[0, :, 0].T
    np.testing.assert_allclose(of_freq.numpy(), expected.mean(1), rtol=0, atol=1e-5)
    np.testing.assert_allclose(of_time.numpy(), expected.mean(0), rtol=0, atol=1e-5)


@pytest.mark.slow
@torch.no_grad()
def test_on_a_grey_image_ast_is_the_network_that_it_starts_from(tmp_path):
    model = deit(tmp_path / "deit.pth")
    trunk, _ = start("ast", tmp_path / "deit.pth", "audioset_16_16", n_mels=224, frames=224, **DEIT)
    grey = torch.randn(2, 224, 224, generator=torch.Generator().manual_seed(0))
    expected = model.forward_features(grey.unsqueeze(1).expand(-1, 3, -1, -1))[:, :2].mean(1)
    features = trunk.eval()(grey, ["features"])["features"]
    torch.testing.assert_close(features, expected, rtol=0, atol=1e-5 * expected.abs().max().item())


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ast", "passt"])
def test_a_deit_without_distillation_is_no_start(name, tmp_path):
    import timm

    model = timm.create_model("deit_tiny_patch16_224", embed_dim=12, depth=2, num_heads=2)
    torch.save({"model": model.state_dict()}, tmp_path / "deit.pth")
    message = r"deit\.pth: pos_embed is for 195 patches beside 2 tokens, which are not a square"
    with pytest.raises(WeightsError, match=message):
        start(name, tmp_path / "deit.pth", **DEIT)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["ast", "passt"])
def test_a_deit_of_another_size_is_no_start(name, tmp_path):
    deit(tmp_path / "deit.pth")
    with pytest.raises(WeightsError, match=r"deit\.pth does not fit \w+: .* of another shape"):
        start(name, tmp_path / "deit.pth", **{**DEIT, "dim": 24})


@pytest.mark.slow
@pytest.mark.parametrize("family", [ast, passt])
def test_a_network_for_images_is_a_start_and_no_tagger(family, tmp_path):
    deit(tmp_path / "deit.pth")
    row = replace(next(iter(family.VARIANTS.values())), network=DEIT)
    load_model = hear.Loader(replace(family.FAMILY, variants={"small": row})).load_model
    with pytest.raises(WeightsError, match=r"deit\.pth does not fit \w+: .*is it a checkpoint of another"):
        load_model(tmp_path / "deit.pth")


# Other lengths


def test_ast_takes_the_middle_of_the_positions_of_a_longer_one(tmp_path):
    longer = trained("ast")
    found, _ = start("ast", written(tmp_path / "net", "ast", longer), "esc50_10_10")
    expected = longer.pos_embed[:, 2:].view(12, 101, -1)[:, 25:75].reshape(600, -1)
    assert found.pos_embed[0, 2:].equal(expected)
    assert found.pos_embed[0, :2].equal(longer.pos_embed[0, :2])


def test_ast_stretches_the_positions_of_a_shorter_one(tmp_path):
    shorter = trained("ast", frames=128)
    found, _ = start("ast", written(tmp_path / "net", "ast", shorter))
    expected = interpolated(shorter.pos_embed.detach()[0, 2:].view(12, 12, -1).numpy(), 12, 101, cubic=False)
    np.testing.assert_allclose(found.pos_embed.detach()[0, 2:].numpy(), expected.reshape(1212, -1), rtol=0, atol=1e-5)


def test_positions_of_other_strides_are_refused(tmp_path):
    path = written(tmp_path / "net", "ast", trained("ast", stride=16))
    with pytest.raises(WeightsError, match=r"net: pos_embed is for 512 patches beside 2 tokens, which are not 12 rows"):
        start("ast", path)


def test_passt_takes_the_first_positions_of_a_longer_one(tmp_path):
    longer = trained("passt")
    found, _ = start("passt", written(tmp_path / "net", "passt", longer), time_positions=50)
    assert found.time_new_pos_embed.equal(longer.time_new_pos_embed[..., :50])


def test_passt_stretches_the_positions_of_a_shorter_one(tmp_path):
    shorter = trained("passt")
    found, _ = start("passt", written(tmp_path / "net", "passt", shorter), "base20sec")
    expected = interpolated(shorter.time_new_pos_embed.detach()[0, :, 0].T[None].numpy(), 1, 200, cubic=False)
    np.testing.assert_allclose(found.time_new_pos_embed.detach()[0, :, 0].T.numpy(), expected[0], rtol=0, atol=1e-5)


# MViTv2

MVIT = {"dim": 24, "depths": (1, 2, 1, 1)}


@pytest.fixture
def mvit(tmp_path):
    """Save a network for images of 224 x 224 in the authors' layout, and give what it holds."""
    network = {**mast.VARIANTS["mvit_base"].network, **MVIT, "n_mels": 224, "frames": 224, "n_classes": 1000}
    weights = dict(filled(mast.MAST(**network)).state_dict())
    weights = {key.replace("head.", "head.projection."): value for key, value in weights.items()}
    weights["patch_embed.proj.weight"] = golden_tensor("filters.weight", (24, 3, 7, 7))
    path = tmp_path / "mvit.pyth"
    torch.save({"model_state": weights}, path)
    return path, weights


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "mvit_base"])
def test_mast_starts_from_images(variant, mvit):
    path, weights = mvit
    trunk, fresh = start("mast", path, variant, **MVIT)
    assert fresh == ["head"]
    found = trunk.state_dict()
    adapted = [key for key in found if "rel_pos" in key or key == "patch_embed.proj.weight" or key.startswith("head")]
    assert [key for key in found if key not in adapted and not found[key].equal(weights[key])] == []


def test_filters_of_more_frames_hear_steady_sound_as_before(mvit):
    path, weights = mvit
    filters = start("mast", path, "base", **MVIT)[0].patch_embed.proj.weight.detach()
    assert filters.shape == (24, 1, 7, 9)
    grey = weights["patch_embed.proj.weight"].mean(1)
    torch.testing.assert_close(filters[:, 0].sum(2), grey.sum(2))


def test_filters_are_stretched_evenly():
    line = torch.linspace(-3, 3, 7).expand(1, 1, 7, 7)
    found = mast.spread(line, 9)[0, 0, 0] * 9 / 7
    expected = [3 * 7 / 9 * (i - 4) / 3 for i in range(9)]
    # The outermost frames would read beyond the seven.
    torch.testing.assert_close(found[1:-1], torch.tensor(expected[1:-1]), rtol=0.1, atol=0.01)
    torch.testing.assert_close(found, -found.flip(0))


@pytest.mark.slow
def test_tables_of_distances_keep_what_lies_where(mvit):
    path, weights = mvit
    trunk, _ = start("mast", path, "base", **MVIT)
    with torch.device("meta"):
        network = {**mast.VARIANTS["mvit_base"].network, **MVIT, "n_mels": 224, "frames": 224}
        theirs = mast.MAST(**network)
    for i, (block, before) in enumerate(zip(trunk.blocks, theirs.blocks, strict=True)):
        for axis, name in enumerate(("rel_pos_h", "rel_pos_w")):
            table = weights[f"blocks.{i}.attn.{name}"].numpy()
            found = getattr(block.attn, name).detach().numpy()
            zero, was_zero = (
                mast.zero_entry(len(entries), steps[axis][1])
                for entries, steps in ((found, block.attn.steps), (table, before.attn.steps))
            )
            # Distances as fractions of the whole grid.
            here = (np.arange(len(found)) - zero) / (len(found) + 1)
            there = (np.arange(len(table)) - was_zero) / (len(table) + 1)
            for feature in range(table.shape[1]):
                expected = np.interp(here, there, table[:, feature])
                np.testing.assert_allclose(found[:, feature], expected, rtol=0, atol=1e-5)


# Pyramid ViG

VIG = {"channels": (8, 16, 24, 32), "depths": (1, 2, 1, 1)}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("variant", "fresh"),
    [("pyr_s", ["prediction", "labels"]), ("pyr_s_encoder", ["prediction"]), ("pvig_s", ["prediction"])],
)
def test_atgnn_starts_from_images(variant, fresh, tmp_path):
    network = {**VIG, "n_mels": 224, "frames": 224, "n_classes": 1000}
    images = dict(filled(atgnn.ATGNN(**network)).state_dict())
    images["stem.0.0.weight"] = golden_tensor("filters.weight", (4, 3, 3, 3))
    torch.save(images, tmp_path / "pvig.pth")
    labels = {"label_depths": (1, 1, 1, 1)} if variant == "pyr_s" else {}
    trunk, found = initialisation.init_from(
        atgnn.FAMILY, variant, str(tmp_path / "pvig.pth"), n_classes=3, network={**VIG, **labels}
    )
    assert found == fresh
    loaded = trunk.state_dict()
    grey = images["stem.0.0.weight"].mean(1, keepdim=True)
    torch.testing.assert_close(loaded["stem.0.0.weight"], grey)
    beside = ("stem.0.0.weight", "pos_embed", *fresh)
    kept = [key for key in loaded if not key.startswith(beside)]
    assert kept
    assert [key for key in kept if not loaded[key].equal(images[key])] == []
