"""ATGNN against what the authors' own code answers (tests/data/golden), neighbours found by scikit-learn, and loops."""

import json
import math
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import erf
from sklearn.neighbors import NearestNeighbors
from torch import nn

from hear_transformers import ast, atgnn, hear
from hear_transformers.checkpoints import state_dicts
from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.networks import counting, graph
from tests.helpers.golden import assert_equal, by_size, filled, golden_audio, golden_tensor, noise, small_build

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NETWORKS = sorted(path.stem.removeprefix("atgnn-") for path in GOLDEN.glob("atgnn-*.npz"))
SMALL = {"channels": (8, 16, 24, 32), "depths": (1, 2, 1, 1)}
small = partial(small_build, atgnn, SMALL)
LABELLED = {**SMALL, "label_depths": (1, 1, 2, 1)}
CPU = torch.device("cpu")


def authors_names(trunk: atgnn.ATGNN) -> dict[str, str]:
    """Return prefixes of the authors' keys -> ours: down-sampling is a separate member of their backbone."""
    names: dict[str, str] = {}
    member = 0
    for number, block in enumerate(trunk.blocks):
        if block.down is not None:
            names[f"backbone.{member}.conv."] = f"blocks.{number}.down."
            member += 1
        names[f"backbone.{member}.0."] = f"blocks.{number}.grapher."
        names[f"backbone.{member}.1."] = f"blocks.{number}.ffn."
        member += 1
    return names


def build(**options) -> atgnn.ATGNN:
    """Build a small network with labels and random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return atgnn.ATGNN(**{**LABELLED, "n_classes": 4, "frames": 64, **options}).eval()


# The authors' numbers

SCALED = {
    "pos_embed": 5,
    ".graph_conv.gconv.nn.0.weight": 0.02,
    ".plg.nn.0.weight": 0.02,
    ".fc2.0.weight": 0.2,
    ".adj": 0.2,
}
"""Ends of names whose tensors the golden answers have scaled, so that no near-tie decides who is a neighbour."""

TOLERANCE = {"pyr_t": 2e-3, "pyr_m": 2e-3}
"""Of the two networks that hold a near-tie nevertheless; 1e-4 of the others."""


def golden_weights(name: str) -> dict[str, torch.Tensor]:
    """Fill the state dict that a golden file lists, under the authors' names."""
    weights = {}
    for key, shape in json.loads((GOLDEN / f"atgnn-{name}.json").read_text())["state_dict"]:
        if key.endswith(".relative_pos"):
            weights[key] = torch.zeros(shape)
        elif key == "label_embed":
            weights[key] = 5 * golden_tensor("label_token", tuple(shape))
        else:
            scales = [scale for end, scale in SCALED.items() if key.endswith(end)]
            weights[key] = math.prod(scales) * golden_tensor(key, tuple(shape))
    return weights


def golden_variant(name: str):
    """Give the variant of a golden answer, with the authors' relative positions and the length it was built for."""
    frames = json.loads((GOLDEN / f"atgnn-{name}.json").read_text())["meta"]["time_num"]
    variant = atgnn.VARIANTS[name.removesuffix("_short")]
    return replace(variant, network={**variant.network, "relpos": "official", "frames": frames})


@pytest.fixture(scope="module", params=by_size(NETWORKS, {"pyr_s_encoder"}))
def network(request):
    name = request.param
    with np.load(GOLDEN / f"atgnn-{name}.npz") as answers:
        answers = dict(answers)
    variant = golden_variant(name)
    trunk = atgnn.ATGNN(**variant.network).eval()
    state_dicts.load_into(trunk, atgnn.convert_state_dict(golden_weights(name), variant), name)
    # The authors take off the mean of a clip, Kaldi that of each frame: together they differ in rounding only.
    clips = golden_audio(16_000, int(answers["n_samples"]))
    fbank = variant.frontend.build()(clips - clips.mean(1, keepdim=True))
    missing = variant.network["frames"] - fbank.shape[2]
    mel = torch.nn.functional.pad(fbank, (0, missing), value=variant.frontend.padding)
    labels = []
    for stage in trunk.labels.stages if trunk.labels else ():
        stage[-1].register_forward_hook(lambda block, inputs, output: labels.append(output))
    with torch.no_grad():
        taps = trunk(mel, list(trunk.layers))
    return answers, {"fbank": mel, **taps}, labels, TOLERANCE.get(name, 1e-4)


def test_fbank_gives_the_authors_numbers(network):
    answers, taps, _, _ = network
    # As in test_ast.py: with AVX2 torchaudio's own fbank and ours are both 6.6e-5 to 7.0e-5 from the golden files.
    assert_equal(taps["fbank"].transpose(1, 2)[:, ::64], answers["fbank"])


def test_logits_are_the_authors(network):
    answers, taps, _, tolerance = network
    assert_equal(taps["logits"], answers["logits"], tolerance)
    assert_equal(taps.get("patch_logits", taps["logits"]), answers["patch_logits"], tolerance)


def test_every_stage_gives_the_authors_map(network):
    answers, taps, _, tolerance = network
    for layer, name in {"0": "stem", **{f"stage{i}": f"stage{i}" for i in range(1, 5)}}.items():
        assert list(taps[layer].permute(0, 3, 2, 1).shape) == answers[f"tap_shape_{name}"].tolist()
        assert_equal(taps[layer].mean((1, 2)), answers[f"tap_mean_{name}"], tolerance)


def test_every_stage_gives_the_authors_labels(network):
    answers, _, labels, tolerance = network
    assert len(labels) == sum(key.startswith("tap_mean_labels") for key in answers)
    for i, of_stage in enumerate(labels, 1):
        assert list(of_stage.shape) == answers[f"tap_shape_labels{i}"].tolist()
        assert_equal(of_stage.mean((2, 3)), answers[f"tap_mean_labels{i}"], tolerance)


@pytest.mark.slow
def test_scenes_of_a_file_of_the_authors_are_their_answers(tmp_path):
    path = tmp_path / "atgnn.ckpt"
    # As Lightning keeps it, with the tables of relative positions.
    torch.save({"state_dict": {f"net.{key}": value for key, value in golden_weights("pyr_t").items()}}, path)
    family = replace(atgnn.FAMILY, variants={"pyr_t": golden_variant("pyr_t")})
    model = hear.Loader(family).load_model(path, layer="logits")
    with np.load(GOLDEN / "atgnn-pyr_t.npz") as answers:
        scene = model.embed_scenes(golden_audio(16_000, int(answers["n_samples"])))
        assert_equal(scene, answers["logits"], TOLERANCE["pyr_t"])


# Neighbours

GRIDS = [(5, 7), (8, 3), (1, 13), (9, 1), (4, 16), (1, 1), (2, 1)]


def unit(rows):
    return rows / np.linalg.norm(rows, axis=-1, keepdims=True)


def neighbours_by_sklearn(nodes, candidates, k, dilation):
    """Give the neighbours of every node of one clip: (nodes, k or fewer)."""
    n = min(k * dilation, len(candidates))
    return NearestNeighbors(n_neighbors=n).fit(unit(candidates)).kneighbors(unit(nodes))[1][:, ::dilation]


@pytest.mark.parametrize("dilation", [1, 2, 3])
@pytest.mark.parametrize("grid", GRIDS)
def test_neighbours_are_those_of_scikit_learn(grid, dilation):
    nodes = noise(3, grid[0] * grid[1], 6)
    candidates = nodes[:, ::2]
    found = atgnn.nearest(nodes, candidates, 4, dilation)
    for clip, of_clip, index in zip(nodes.numpy(), candidates.numpy(), found.numpy(), strict=True):
        np.testing.assert_array_equal(index, neighbours_by_sklearn(clip, of_clip, 4, dilation))


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_messages_on_cuda_are_those_of_the_cpu(dtype):
    candidates = noise(2, 30, 7).to(dtype)
    index = atgnn.nearest(noise(2, 50, 7), candidates, 4, 2)
    expected = atgnn.strongest(candidates, index)
    rows = torch.cat([index[0], index[1] + 30])
    assert graph.of_bags(candidates.flatten(0, 1), rows).view(2, 50, 7).equal(expected)
    assert expected[1, 3].equal(candidates[1, index[1, 3]].amax(0))


def test_tables_of_places_are_kept_but_not_without_end():
    trunk = build(label_depths=())
    tables = []
    for frames in (64, 64, 32, 20, 64):
        trunk(noise(1, 128, frames), ["features"])
        tables.append(dict(trunk._tables))
        assert len(trunk._tables) <= atgnn.MOST_TABLES
    assert all(tables[1][key] is table for key, table in tables[0].items())
    for (grid, ratio, channels, device), table in trunk._tables.items():
        assert table.equal(atgnn.rectangular(grid, ratio, channels, device))


def pooled_by_loops(grid, ratio):
    """Give the means of squares of (freq, time, features), of what there is at the edge: (candidates, features)."""
    n_freq, n_time, _ = grid.shape
    return np.stack(
        [
            grid[f : f + ratio, t : t + ratio].mean((0, 1))
            for f in range(0, n_freq, ratio)
            for t in range(0, n_time, ratio)
        ]
    )


@pytest.mark.parametrize("ratio", [1, 2, 4])
@pytest.mark.parametrize("grid", GRIDS)
@torch.no_grad()
def test_messages_are_the_maxima_of_differences(grid, ratio):
    grapher = filled(atgnn.Grapher(8, ratio, 3, 2, 0.0))
    joined = []
    grapher.graph_conv.register_forward_pre_hook(lambda module, inputs: joined.append(inputs[0]))
    maps = noise(2, 8, *grid)
    grapher(maps, lambda *_: torch.zeros(1))
    for clip, found in zip(grapher.fc1(maps).permute(0, 2, 3, 1).numpy(), joined[0], strict=True):
        nodes, candidates = clip.reshape(-1, 8), pooled_by_loops(clip, ratio)
        index = neighbours_by_sklearn(nodes, candidates, 3, 2)
        messages = np.stack([(candidates[of_node] - node).max(0) for node, of_node in zip(nodes, index, strict=True)])
        assert_equal(found[:, :8], nodes, 1e-6)
        assert_equal(found[:, 8:], messages, 1e-5)


def place_by_loops(freq, time, size):
    """Encode a place: sines and cosines of frequency, then of time."""
    periods = [10_000 ** (k / (size // 4)) for k in range(size // 4)]
    return [function(x / period) for x in (freq, time) for function in (math.sin, math.cos) for period in periods]


@pytest.mark.parametrize(("grid", "ratio"), [((3, 5), 1), ((4, 8), 2), ((8, 4), 4), ((5, 3), 2), ((1, 1), 4)])
def test_relative_positions_are_those_of_the_grid(grid, ratio):
    places = [(f, t) for f in range(grid[0]) for t in range(grid[1])]
    middles = pooled_by_loops(np.array(places, float).reshape(*grid, 2), ratio)
    encodings = [np.array([place_by_loops(*place, 16) for place in some]) for some in (places, middles)]
    found = atgnn.rectangular(grid, ratio, 16, CPU)
    # Half of ViG's 2 P P' / C, as half of the squared distance is compared.
    assert_equal(found, encodings[0] @ encodings[1].T / 16, 1e-6)


def test_nearness_falls_with_distance_along_both_axes():
    nearness = atgnn.rectangular((8, 64), 1, 80, CPU).view(8, 64, 8, 64)
    assert nearness[0, 0, 0, 0].item() == pytest.approx(0.5)
    assert (nearness[0, 0, 0, :4].diff() < 0).all()
    assert (nearness[0, 0, :4, 0].diff() < 0).all()


@pytest.mark.parametrize("ratio", [1, 2])
def test_official_relative_positions_are_the_interpolated_table_of_a_square(ratio):
    grid = 4, 14  # 56 nodes, a square of 7 x 7
    encodings = np.array([place_by_loops(time, freq, 16) for freq in range(7) for time in range(7)])
    table = torch.from_numpy(2 * encodings @ encodings.T / 16)[None, None]
    expected = nn.functional.interpolate(table, (56, 56 // ratio**2), mode="bicubic")[0, 0]
    assert_equal(2 * atgnn.official(grid, ratio, 16, CPU), expected, 1e-6)


def test_both_relative_positions_are_one_on_a_square_without_pooling():
    assert_equal(atgnn.official((6, 6), 1, 16, CPU), atgnn.rectangular((6, 6), 1, 16, CPU), 1e-6)


def test_a_near_place_makes_a_neighbour():
    nodes = torch.ones(1, 12, 8)
    index = atgnn.nearest(nodes, nodes, 3, nearness=atgnn.rectangular((1, 12), 1, 80, CPU))
    assert index[0, 5].sort().values.tolist() == [4, 5, 6]


def test_neighbours_are_chosen_in_32_bits():
    nodes = 1 + 0.01 * noise(1, 50, 16)
    with torch.autocast("cpu", torch.bfloat16):
        found = atgnn.nearest(nodes, nodes, 9)
    assert found.equal(atgnn.nearest(nodes, nodes, 9))


def test_unknown_relative_positions_name_the_known_ones():
    with pytest.raises(OptionError, match=r"relpos='none' is unknown; choose one of rectangular, official"):
        build(relpos="none")


# Labels


def conv_norm_by_loops(rows, conv_norm, groups=1):
    """Map (n, inputs) by a convolution in groups and a normalisation, then a GELU if there is one."""
    conv, norm, *activation = (module.double() for module in conv_norm)
    weight, bias = conv.weight.numpy()[:, :, 0, 0], conv.bias.numpy()
    columns = []
    for output, (kernel, offset) in enumerate(zip(weight, bias, strict=True)):
        group = output * groups // len(weight)
        seen = rows[:, group * len(kernel) : (group + 1) * len(kernel)]
        columns.append(seen @ kernel + offset)
    mapped = np.stack(columns, 1)
    scale = norm.weight.numpy() / np.sqrt(norm.running_var.numpy() + 1e-5)
    mapped = (mapped - norm.running_mean.numpy()) * scale + norm.bias.numpy()
    return mapped * (1 + erf(mapped / math.sqrt(2))) / 2 if activation else mapped


@pytest.mark.parametrize("n_patches", [1, 5, 40])
@torch.no_grad()
def test_a_label_block_follows_its_equations(n_patches):
    block = filled(atgnn.LabelBlock(8, 5, 3, 0.1))
    nodes, patches = noise(1, 5, 8), noise(1, n_patches, 8, seed=1)
    found = atgnn.as_nodes(block(atgnn.as_maps(nodes, (5, 1)), patches))[0]
    labels, others = nodes[0].double().numpy(), patches[0].double().numpy()
    index = neighbours_by_sklearn(labels, others, 3, 1)
    joined = np.empty((5, 16))
    joined[:, ::2] = labels
    # Patch-label graph: the maximum of label minus patch.
    joined[:, 1::2] = [(label - others[of_label]).max(0) for label, of_label in zip(labels, index, strict=True)]
    labels = labels + conv_norm_by_loops(joined, block.plg, groups=4)
    hidden = conv_norm_by_loops(labels, block.ffn.fc1)
    labels = labels + conv_norm_by_loops(hidden, block.ffn.fc2)
    # Label-label graph.
    assert_equal(found, block.adj.double().numpy() @ labels + labels, 1e-5)


@torch.no_grad()
def test_logits_add_a_product_for_every_label():
    trunk = filled(build())
    taps = trunk(noise(2, 128, 64), list(trunk.layers))
    by_labels = torch.einsum("bsc,sc->bs", taps["labels"][:, 0], trunk.labels.readout)
    assert_equal(taps["logits"], taps["patch_logits"] + by_labels, 1e-6)


@torch.no_grad()
def test_labels_are_refined_in_32_bits():
    trunk = filled(build())
    maps = [noise(2, channels, 2, 3) for channels in SMALL["channels"]]
    expected = trunk.labels(maps)
    with torch.autocast("cpu", torch.bfloat16):
        found = trunk.labels(maps)
    assert found.dtype == torch.float32
    assert found.equal(expected)


@pytest.mark.slow
@pytest.mark.parametrize(("pool", "size"), [("mean", 32), ("max", 32), ("flat", 200 * 32), ("unroll", 200 * 32)])
def test_labels_are_pooled_over_classes(pool, size):
    model = small("pyr_s", layer="labels", pool=pool)
    assert model.scene_embedding_size == model.timestamp_embedding_size == size
    clips = noise(2, 8_000).clamp(-1, 1)
    with torch.no_grad():
        labels = model._taps(clips, ["labels"], 1024)["labels"][:, 0]  # (clips, classes, features)
    expected = {"mean": labels.mean(1), "max": labels.amax(1)}.get(pool, labels.flatten(1))
    assert_equal(model.embed_scenes(clips), expected, 1e-5)


def test_labels_have_no_time():
    model = small("pyr_s", layer="labels", window_ms=400)
    assert model.variant.framing == "windowed"
    assert model.embed_timestamps(noise(1, 4_000).clamp(-1, 1))[0].shape == (1, 6, 32)
    with pytest.raises(OptionError, match="needs layers with a time axis, labels has none"):
        small("pyr_s", layer="labels", framing="native")


def test_an_encoder_has_no_labels():
    assert [layer for layer in build(label_depths=()).layers if layer.isalpha() or "_" in layer] == [
        "features",
        "logits",
    ]
    assert "logits" not in small("pvig_s").trunk.layers


# Size

PARAMETERS = {
    "pyr_s": 35_427_112,  # the authors' 35.4 million
    "pyr_s_encoder": 26_835_672,  # the authors' 26.8 million
    "pyr_t": 13_427_560,
    "pyr_t_encoder": 10_136_632,
    "pyr_m": 63_100_168,
    "pyr_b_encoder": 92_806_344,
}


@pytest.mark.slow
@pytest.mark.parametrize("variant", PARAMETERS)
def test_networks_have_the_authors_number_of_parameters(variant):
    assert counting.count_parameters(atgnn.FAMILY, atgnn.VARIANTS[variant]) == PARAMETERS[variant]


def test_nothing_but_parameters_and_statistics_is_stored():
    trunk = build()
    statistics = ("running_mean", "running_var", "num_batches_tracked")
    stored = {key for key in trunk.state_dict() if not key.endswith(statistics)}
    assert stored == {name for name, _ in trunk.named_parameters()}
    assert all(parameter.requires_grad for parameter in trunk.parameters())


def for_images(variant: str):
    """Give a variant as ViG's authors build it, but for two of three channels."""
    row = atgnn.VARIANTS[variant]
    return replace(
        row,
        network={**row.network, "n_mels": 224, "frames": 224, "n_classes": 1000},
        frontend=replace(row.frontend, n_mels=224),
        scene=replace(row.scene, fill_frames=224),
    )


@pytest.mark.parametrize(("variant", "millions"), [("pvig_ti", 10.7), ("pvig_s", 27.3)])
def test_encoders_have_the_parameters_published_for_images(variant, millions):
    assert counting.count_parameters(atgnn.FAMILY, for_images(variant)) / 1e6 == pytest.approx(millions, rel=0.005)


@pytest.mark.slow
@pytest.mark.parametrize(("variant", "macs"), [("pvig_ti", 1.7), ("pvig_s", 4.6), ("pvig_m", 8.9), ("pvig_b", 16.8)])
def test_encoders_have_the_multiply_accumulates_published_for_images(variant, macs):
    assert counting.count_macs(atgnn.FAMILY, for_images(variant), 2.26) / 1e9 == pytest.approx(macs, rel=0.02)


# Files


@pytest.fixture
def imagenet_file(tmp_path):
    """Save a network for images of 224 x 224 in ViG's layout, and what it held."""
    images = replace(atgnn.VARIANTS["pvig_s"], network={**SMALL, "n_mels": 224, "frames": 224, "n_classes": 1000})
    trunk = filled(atgnn.ATGNN(**images.network))
    names = {ours: theirs for theirs, ours in (atgnn.RENAMED | authors_names(trunk)).items()}
    weights = {}
    for key, tensor in trunk.state_dict().items():
        for ours, theirs in names.items():
            key = key.replace(ours, theirs)
        weights[key] = tensor
    weights["stem.convs.0.weight"] = noise(4, 3, 3, 3)
    weights["backbone.0.0.relative_pos"] = noise(1, 56 * 56, 14 * 14)
    path = tmp_path / "pvig_s_82.1.pth.tar"
    torch.save(weights, path)
    return path, weights, trunk.state_dict()


@pytest.mark.slow
def test_an_imagenet_file_loads(imagenet_file):
    path, theirs, ours = imagenet_file
    assert "backbone.4.conv.0.weight" in theirs
    assert "backbone.5.0.graph_conv.gconv.nn.0.weight" in theirs
    loaded = small("pvig_s", path).trunk.state_dict()
    assert ours.keys() - loaded.keys() == {key for key in ours if key.startswith("prediction.")}
    filters = theirs["stem.convs.0.weight"].mean(1, keepdim=True)
    places = nn.functional.interpolate(theirs["pos_embed"], (32, 256), mode="bicubic")
    expected = {**ours, "stem.0.0.weight": filters, "pos_embed": places}
    for key, tensor in loaded.items():
        torch.testing.assert_close(tensor, expected[key])


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["pyr_s", "pyr_s_encoder", "pvig_s"])
def test_a_file_of_our_own_is_taken_as_it_is(variant, tmp_path):
    model = small(variant)
    path = tmp_path / "own.pt"
    torch.save(filled(model.trunk).state_dict(), path)
    loaded = small(variant, path).trunk.state_dict()
    assert all(tensor.equal(model.trunk.state_dict()[key]) for key, tensor in loaded.items())


@pytest.mark.slow
def test_an_image_classifier_is_no_tagger(imagenet_file):
    path, _, _ = imagenet_file
    with pytest.raises(WeightsError, match=r"pvig_s_82\.1\.pth\.tar does not fit ATGNN: .* shape or type: stem\.0"):
        small("pyr_s", path)


@pytest.mark.slow
def test_a_file_of_another_size_is_loaded_with_its_sizes(imagenet_file):
    path, weights, _ = imagenet_file
    model = atgnn.load_model(path, variant="pvig_s")
    assert model.trunk.pos_embed.shape[1] == weights["pos_embed"].shape[1]


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["pyr_s", "pvig_s"])
def test_a_file_of_another_family_is_refused(variant, tmp_path):
    path = tmp_path / "ast.pt"
    torch.save(ast.AST(dim=48, depth=1, heads=3).state_dict(), path)
    with pytest.raises(WeightsError, match=r"ast\.pt does not fit ATGNN: .* missing: "):
        small(variant, path)


@pytest.mark.slow
@pytest.mark.parametrize("table", [torch.zeros(1, 8, 0, 56), torch.zeros(3), torch.zeros(1, 9, 56, 56)])
def test_a_damaged_position_map_is_refused(imagenet_file, table):
    path, weights, _ = imagenet_file
    torch.save({**weights, "pos_embed": table}, path)
    with pytest.raises(WeightsError, match=r"1 of another shape or type: pos_embed"):
        small("pvig_s", path)


@pytest.mark.slow
def test_a_variant_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="no weights are published for this variant of atgnn"):
        atgnn.load_model(variant="pyr_s")


# Lengths and layers


@pytest.mark.slow
@torch.no_grad()
def test_every_length_from_one_frame_runs():
    trunk = filled(build())
    for frames in [*range(1, 34), 64, 65, 127, 300]:
        taps = trunk(noise(1, 128, frames), list(trunk.layers))
        for layer, axis in trunk.layers.items():
            assert taps[layer].isfinite().all()
            if axis is not None:
                assert taps[layer].shape[1] == -(-frames // axis.hop)


@pytest.mark.parametrize("relpos", atgnn.RELATIVE_POSITIONS)
@torch.no_grad()
def test_grids_of_one_node_run(relpos):
    trunk = filled(build(n_mels=4, frames=4, relpos=relpos))
    taps = trunk(noise(2, 4, 1), list(trunk.layers))
    assert {tuple(taps[layer].shape[1:3]) for layer, axis in trunk.layers.items() if axis} == {(1, 1)}
    assert all(tap.isfinite().all() for tap in taps.values())


@torch.no_grad()
def test_a_shorter_clip_reads_the_start_of_the_position_map():
    trunk = filled(build(frames=64))
    assert trunk.positions(32, 16) is not trunk.pos_embed
    assert trunk.positions(32, 16).equal(trunk.pos_embed)
    assert trunk.positions(32, 5).equal(trunk.pos_embed[..., :5])


@torch.no_grad()
def test_a_longer_clip_interpolates_the_position_map():
    trunk = filled(build(frames=64))
    expected = nn.functional.interpolate(trunk.pos_embed, (32, 40), mode="bicubic")
    assert_equal(trunk.positions(32, 40), expected, 1e-6)


@pytest.mark.slow
def test_short_scenes_are_filled_with_zeros_before_normalisation():
    model = small("pyr_s")
    clips = noise(2, 16_000).clamp(-1, 1)
    fbank = replace(atgnn.ATGNN_MEL, mean=0.0, scale=1.0).build()(clips)
    assert (atgnn.ATGNN_MEL.mean, atgnn.ATGNN_MEL.scale) == (-4.6476, 4.5699)
    mel = (nn.functional.pad(fbank, (0, 1024 - fbank.shape[2])) + 4.6476) / 4.5699
    with torch.no_grad():
        expected = model.trunk(mel, ["features"])["features"]
    assert_equal(model.embed_scenes(clips), expected, 1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [1, 399, 400, 560, 164_080, 164_081])
def test_scenes_of_any_length_are_embedded(n_samples):
    assert small("pyr_s").embed_scenes(noise(1, n_samples).clamp(-1, 1)).isfinite().all()


@torch.no_grad()
def test_positions_lie_where_their_time_axis_says():
    trunk = build(frames=1024, label_depths=())
    for block in trunk.blocks:
        # Without its branches a block passes on what lies at a position, and nothing of elsewhere.
        for branch in (block.grapher, block.ffn):
            nn.init.zeros_(branch.fc2[0].weight)
    mel = torch.zeros(1, 128, 1024)
    mel[:, :, 512] = 10 * noise(128)
    grids = [layer for layer, axis in trunk.layers.items() if axis is not None]
    heard, silent = trunk(mel, grids), trunk(torch.zeros_like(mel), grids)
    for layer in grids:
        hop = trunk.layers[layer].hop
        changed = (heard[layer] - silent[layer])[0].abs().amax((1, 2)).nonzero().flatten()
        assert 512 in range(changed[0] * hop, changed[-1] * hop + 1)
        assert changed[-1] - changed[0] <= 4


def test_a_position_of_the_stem_sees_15_frames():
    trunk = build(frames=1024, label_depths=())
    mel = noise(1, 128, 200).requires_grad_()
    trunk(mel, ["0"])["0"][0, 20].sum().backward()
    seen = mel.grad[0].abs().amax(0).nonzero().flatten()
    assert (seen[0], seen[-1]) == (80 - 7, 80 + 7)
    assert trunk.layers["0"].receptive_field == 15


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4, 5, "stage1", "stage4", "all"])
def test_native_timestamps_of_every_layer(layer):
    model = small("pyr_s", layer=layer)
    assert model.variant.framing == "native"
    embeddings, centres_ms = model.embed_timestamps(noise(2, 24_000).clamp(-1, 1))
    assert embeddings.shape == (2, len(centres_ms), model.timestamp_embedding_size)
    assert centres_ms.tolist() == [50.0 * i for i in range(31)]
    assert embeddings.isfinite().all()


@pytest.mark.slow
@torch.no_grad()
def test_a_batch_equals_its_clips_one_by_one():
    trunk = filled(build())
    mel = noise(3, 128, 50)
    together = trunk(mel, list(trunk.layers))
    one_by_one = [trunk(clip[None], list(trunk.layers)) for clip in mel]
    for layer, tap in together.items():
        assert_equal(tap, torch.cat([taps[layer] for taps in one_by_one]), 1e-5)


@torch.no_grad()
def test_the_same_clip_gives_the_same_numbers():
    trunk = filled(build())
    mel = noise(2, 128, 64)
    mel[1, :, 30:] = -1.0  # nodes that are all alike
    first, second = trunk(mel, list(trunk.layers)), trunk(mel, list(trunk.layers))
    assert all(first[layer].equal(second[layer]) for layer in first)


def ran(trunk: atgnn.ATGNN, wanted: list[str]) -> list[str]:
    """Give the names of the blocks that run for some layers."""
    kinds = atgnn.Block, atgnn.LabelBlock
    names = []
    for name, module in trunk.named_modules():
        if isinstance(module, kinds):
            module.register_forward_hook(lambda module, inputs, output, name=name: names.append(name))
    with torch.no_grad():
        trunk(noise(1, 128, 20), wanted)
    return names


BLOCKS = [f"blocks.{i}" for i in range(5)]
LABEL_BLOCKS = [f"labels.stages.{i}" for i in ("0.0", "1.0", "2.0", "2.1", "3.0")]


@pytest.mark.parametrize(
    ("wanted", "expected"),
    [
        (["0"], []),
        (["0", "2"], BLOCKS[:2]),
        (["stage2"], BLOCKS[:3]),
        (["stage4"], BLOCKS),
        (["features", "patch_logits"], BLOCKS),
        (["labels"], BLOCKS + LABEL_BLOCKS),
        (["3", "logits"], BLOCKS + LABEL_BLOCKS),
    ],
)
def test_no_block_runs_that_no_layer_needs(wanted, expected):
    assert ran(build(), wanted) == expected


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 3, 9, 17, 25, 100])
@torch.no_grad()
def test_bfloat16_points_the_same_way_at_every_length(frames):
    exact, rounded = filled(small("pyr_s").trunk), small("pyr_s", precision="bfloat16").trunk
    rounded.load_state_dict(exact.state_dict())
    mel = noise(2, 128, frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = rounded(mel, ["0", "1", "2", "5", "features", "labels", "logits"])
    for layer, expected in exact(mel, list(found)).items():
        # Of the whole layer: at single positions rounding may choose other neighbours.
        assert torch.cosine_similarity(found[layer].float().flatten(1), expected.flatten(1)).min() > 0.97


# Training


def gradients(trunk: atgnn.ATGNN) -> dict[str, torch.Tensor]:
    trunk(noise(3, 128, 64), ["logits"])["logits"].square().sum().backward()
    return {name: parameter.grad for name, parameter in trunk.named_parameters()}


@pytest.mark.slow
def test_gradients_flow_to_every_parameter():
    found = gradients(filled(build()))
    assert [name for name, gradient in found.items() if gradient is None or not gradient.abs().max() > 0] == []


def test_gradients_flow_to_every_parameter_in_training():
    found = gradients(filled(build(drop_path=0.0)).train())
    # Batch normalisation takes away what a convolution before it adds everywhere.
    reached = {name: gradient for name, gradient in found.items() if not name.endswith((".0.bias", "down.0.bias"))}
    assert [name for name, gradient in reached.items() if gradient is None or not gradient.abs().max() > 0] == []


def test_deeper_blocks_are_dropped_more_often():
    trunk = build(drop_path=0.5)
    assert [block.grapher.drop.rate for block in trunk.blocks] == [0, 0.125, 0.25, 0.375, 0.5]
    assert {module.drop.rate for module in trunk.labels.modules() if hasattr(module, "drop")} == {0.5}


@pytest.mark.slow
def test_learns_20_clips():
    """Tell four pitches in noise apart, of five clips each."""
    pitches = torch.arange(20) % 4
    seconds = torch.arange(10_480) / 16_000  # 64 frames
    tones = (2 * math.pi * 200 * 2 ** pitches.unsqueeze(1) * seconds).sin()
    mel = atgnn.ATGNN_MEL.build()(0.1 * tones + 0.1 * noise(20, 10_480))
    trunk = build().train()
    optimizer = torch.optim.AdamW(trunk.parameters(), 3e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trunk(mel, ["logits"])["logits"], pitches).backward()
            optimizer.step()
    with torch.no_grad():
        assert trunk.eval()(mel, ["logits"])["logits"].argmax(1).equal(pitches)
