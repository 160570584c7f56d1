"""MAST against loops written out, timm's MViTv2, the paper's two ratios, and MViTv2's published sizes."""

import math
from dataclasses import replace
from functools import partial

import pytest
import torch
from torch import nn

from hear_transformers import ast, hear, mast
from hear_transformers.checkpoints import state_dicts
from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.networks import counting
from hear_transformers.networks.frontend import AST_MEL
from tests.helpers.golden import assert_equal, filled, noise, small_build

SMALL = {"dim": 24, "depths": (1, 2, 1, 1), "frames": 128}
small = partial(small_build, mast, SMALL)
AST_HEADS = 2 * 1000 * (768 + 1)
"""Parameters of ImageNet's two classifiers, which AST's authors count and our AST leaves out."""
CLIP_SECONDS = 10.26  # 1024 frames


def build(**options) -> mast.MAST:
    """Build a small network with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return mast.MAST(**{**SMALL, "n_classes": 4, **options}).eval()


# Pooling attention, loop by loop


def pooled_by_loops(grid, kernel, stride, norm):
    """Convolve (freq, time, features) depthwise with zeros around it, normalise every position."""
    n_freq, n_time, features = grid.shape
    positions = {}
    for f in range(0, n_freq, stride[0]):
        for t in range(0, n_time, stride[1]):
            total = torch.zeros(features)
            for i in range(3):
                for j in range(3):
                    if 0 <= f + i - 1 < n_freq and 0 <= t + j - 1 < n_time:
                        total = total + kernel[:, 0, i, j] * grid[f + i - 1, t + j - 1]
            centred = total - total.mean()
            scaled = centred / (centred.square().mean() + 1e-6).sqrt()
            positions[f // stride[0], t // stride[1]] = scaled * norm.weight + norm.bias
    return positions


def entry(query, key, n_queries, n_keys):
    """MViTv2's entry of a distance (authors' cal_rel_pos_spatial), for grids that strides divide."""
    query_scale, key_scale = max(n_keys / n_queries, 1), max(n_queries / n_keys, 1)
    return int(query * query_scale - key * key_scale + (n_keys - 1) * key_scale)


def attention_by_loops(attention, grid, shape):
    """Attend within (freq, time, inputs), one head and one query after another."""
    features = shape.outputs // shape.heads
    q_grid, k_grid = (
        [size // step for size, step in zip(shape.grid, stride, strict=True)]
        for stride in (shape.query_stride, shape.key_stride)
    )
    projected = grid @ attention.qkv.weight.T + attention.qkv.bias
    mixed = torch.zeros(*q_grid, shape.outputs)
    for head in range(shape.heads):
        start = head * features
        query, key, value = (
            pooled_by_loops(projected[..., first : first + features], conv.weight, stride, norm)
            for first, conv, stride, norm in (
                (start, attention.pool_q, shape.query_stride, attention.norm_q),
                (start + shape.outputs, attention.pool_k, shape.key_stride, attention.norm_k),
                (start + 2 * shape.outputs, attention.pool_v, shape.key_stride, attention.norm_v),
            )
        )
        for (f, t), q in query.items():
            scores = []
            for (key_f, key_t), k in key.items():
                of_freq = attention.rel_pos_h[entry(f, key_f, q_grid[0], k_grid[0])]
                of_time = attention.rel_pos_w[entry(t, key_t, q_grid[1], k_grid[1])]
                scores.append(q @ k / math.sqrt(features) + q @ of_freq + q @ of_time)
            weights = torch.stack(scores).softmax(0)
            total = sum(weight * v for weight, v in zip(weights, value.values(), strict=True))
            mixed[f, t, start : start + features] = total + q
    return mixed @ attention.proj.weight.T + attention.proj.bias


@pytest.mark.slow
@pytest.mark.parametrize(
    ("query_stride", "key_stride"),
    [((1, 1), (4, 4)), ((1, 2), (4, 2)), ((2, 2), (2, 1)), ((1, 2), (1, 1)), ((1, 1), (1, 1))],
)
@torch.no_grad()
def test_pooling_attention_is_what_its_loops_say(query_stride, key_stride):
    shape = mast.Shape(6, 8, 2, query_stride, key_stride, grid=(4, 8))
    attention = filled(mast.PoolingAttention(shape))
    grid = noise(2, 4, 8, 6)
    expected = torch.stack([attention_by_loops(attention, clip, shape) for clip in grid])
    torch.testing.assert_close(attention(grid), expected, rtol=0, atol=1e-5)


@pytest.mark.parametrize(("queries", "keys", "steps"), [(8, 2, (1, 4)), (8, 8, (1, 1)), (4, 8, (2, 1)), (1, 1, (1, 4))])
def test_distances_are_looked_up_in_the_table(queries, keys, steps):
    table = noise(2 * max(queries, keys) - 1, 5)
    found = mast.relative_positions(table, queries, keys, steps)
    for query in range(queries):
        for key in range(keys):
            assert found[query, key].equal(table[entry(query, key, queries, keys)])


@pytest.mark.parametrize(("queries", "keys", "steps"), [(7, 2, (1, 4)), (5, 3, (1, 2)), (3, 5, (2, 1)), (1, 1, (1, 4))])
def test_grids_that_strides_do_not_divide_keep_the_distances(queries, keys, steps):
    table = torch.arange(2.0 * max(queries, keys) - 1).unsqueeze(1)
    found = mast.relative_positions(table, queries, keys, steps)[..., 0]
    distances = steps[0] * torch.arange(queries).unsqueeze(1) - steps[1] * torch.arange(keys)
    assert (found - distances).unique().numel() == 1


@pytest.mark.parametrize(("was", "entries", "key_step"), [(55, 15, 4), (15, 111, 4), (27, 64 * 2 - 1, 1), (7, 1, 2)])
def test_an_interpolated_table_keeps_distance_0_and_stretches_the_others(was, entries, key_step):
    positions = (was + 1) // 2
    distances = torch.arange(was) - (positions - key_step)
    found = mast.resampled(distances.float().unsqueeze(1), entries, key_step)[:, 0]
    wanted = (torch.arange(entries) - mast.zero_entry(entries, key_step)) * (was + 1) / (entries + 1)
    torch.testing.assert_close(found, wanted.clamp(distances[0], distances[-1]))


# timm's MViTv2


def oracle(size: str, height: int, width: int) -> nn.Module:
    """Build timm's network for images of one channel."""
    import timm

    options = {"pretrained": False, "in_chans": 1, "num_classes": 11}
    model = timm.create_model(f"mvitv2_{size}", img_size=width, **options)
    # timm's constructor takes squares alone, its forward pass any image whose tables are there.
    for part, other in zip(
        model.modules(), timm.create_model(f"mvitv2_{size}", img_size=height, **options).modules(), strict=True
    ):
        if hasattr(part, "rel_pos_h"):
            part.rel_pos_h = other.rel_pos_h
    return filled(model)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "height", "width"), [("tiny", 224, 224), ("small", 224, 224), ("base", 224, 224), ("tiny", 128, 512)]
)
@torch.no_grad()
def test_equals_timm_at_every_block(size, height, width):
    model = oracle(size, height, width)
    outputs = []
    for stage in model.stages:
        for block in stage.blocks:
            block.register_forward_hook(lambda block, inputs, output: outputs.append(output[0]))
    images = noise(1, 1, height, width)
    logits = model(images)
    network = {**mast.VARIANTS[f"mvit_{size}"].network, "n_mels": height, "frames": width, "n_classes": 11}
    trunk = mast.MAST(**network).eval()
    weights = mast.convert_state_dict(model.state_dict(), replace(mast.VARIANTS[f"mvit_{size}"], network=network))
    weights = {key.replace("head.projection.", "head."): value for key, value in weights.items()}
    state_dicts.load_into(trunk, weights, size)
    taps = trunk(images[:, 0], list(trunk.layers))
    for i, tokens in enumerate(outputs, 1):
        assert_equal(taps[str(i)].transpose(1, 2).flatten(1, 2), tokens)
    assert_equal(taps["features"], model.norm(outputs[-1]).mean(1))
    assert_equal(taps["logits"], logits)


# Size


@pytest.mark.slow
@pytest.mark.parametrize(
    ("size", "parameters", "macs"), [("tiny", 24.2, 4.7), ("small", 34.9, 7.0), ("base", 51.5, 10.2)]
)
def test_networks_have_the_published_size_on_images(size, parameters, macs):
    variant = mast.VARIANTS[f"mvit_{size}"]
    images = replace(
        variant,
        network={**variant.network, "n_mels": 224, "frames": 224, "n_classes": 1000},
        frontend=replace(AST_MEL, n_mels=224),
    )
    # Of three channels one is left: 0.01 million parameters and 0.03 billion multiply-accumulates less.
    assert counting.count_parameters(mast.FAMILY, images) / 1e6 == pytest.approx(parameters, rel=0.002)
    assert counting.count_macs(mast.FAMILY, images, 2.26) / 1e9 == pytest.approx(macs, rel=0.02)


@pytest.mark.slow
def test_base_has_42_percent_fewer_parameters_than_ast():
    # The paper's AST is the authors' class; ours lacks two heads that it never uses, and the ratio is 40.9 % then.
    parameters = counting.count_parameters(ast.FAMILY, ast.VARIANTS["audioset_10_10"]) + AST_HEADS
    assert 1 - counting.count_parameters(mast.FAMILY, mast.VARIANTS["base"]) / parameters == pytest.approx(
        0.42, abs=0.005
    )


@pytest.mark.slow
def test_base_has_a_fifth_of_the_multiply_accumulates_of_ast():
    of_ast = counting.count_macs(ast.FAMILY, ast.VARIANTS["audioset_10_10"], CLIP_SECONDS)
    of_mast = counting.count_macs(mast.FAMILY, mast.VARIANTS["base"], CLIP_SECONDS)
    assert of_ast / of_mast == pytest.approx(5, rel=0.05)


# Files


@pytest.fixture
def imagenet_file(tmp_path):
    """A network for images of 224 x 224 in the authors' layout, and what it held."""
    network = {**mast.VARIANTS["mvit_base"].network, **SMALL, "n_mels": 224, "frames": 224, "n_classes": 1000}
    weights = dict(mast.MAST(**network).state_dict())
    weights = {key.replace("head.", "head.projection."): value for key, value in weights.items()}
    weights["patch_embed.proj.weight"] = noise(24, 3, 7, 7)
    path = tmp_path / "MViTv2_B_in1k.pyth"
    torch.save({"epoch": 300, "model_state": weights}, path)
    return path, weights


@pytest.mark.slow
def test_an_imagenet_file_loads(imagenet_file):
    path, weights = imagenet_file
    loaded = small("mvit_base", path).trunk.state_dict()
    assert not any(key.startswith("head") for key in loaded)
    filters = weights["patch_embed.proj.weight"]
    torch.testing.assert_close(loaded["patch_embed.proj.weight"], filters.mean(1, keepdim=True))
    for key in ("blocks.0.attn.rel_pos_h", "blocks.0.attn.rel_pos_w"):
        # 32 positions instead of 56 along both axes; keys are 4 times sparser, which says where distance 0 is.
        assert loaded[key].shape == (2 * 32 - 1, 24)
        torch.testing.assert_close(loaded[key], mast.resampled(weights[key], 2 * 32 - 1, 4))
        assert loaded[key][32 - 4].equal(weights[key][56 - 4])
    changed = [key for key in loaded if "rel_pos" not in key and key != "patch_embed.proj.weight"]
    assert all(loaded[key].equal(weights[key]) for key in changed)


@pytest.mark.slow
def test_a_file_of_our_own_is_taken_as_it_is():
    model = small("base")
    weights = model.trunk.state_dict()
    adapted = mast.convert_state_dict(weights, model.variant)
    assert adapted.keys() == weights.keys()
    assert all(adapted[key].equal(weights[key]) for key in weights)


@pytest.mark.slow
def test_a_file_of_another_size_is_refused(imagenet_file):
    path, _ = imagenet_file
    row = replace(mast.VARIANTS["mvit_base"], network={**mast.VARIANTS["mvit_base"].network, "dim": 24})
    with pytest.raises(
        WeightsError, match=r"MViTv2_B_in1k\.pyth does not fit MAST: .* of another shape or type: blocks\."
    ):
        hear.Loader(replace(mast.FAMILY, variants={"mvit_base": row})).load_model(path)


def test_a_file_of_another_family_is_refused(tmp_path):
    path = tmp_path / "ast.pt"
    torch.save(ast.AST(dim=48, depth=1, heads=3).state_dict(), path)
    with pytest.raises(WeightsError, match=r"does not fit MAST: .* missing: .*is it a checkpoint of another"):
        small("base", path)


@pytest.mark.slow
def test_an_image_classifier_is_none_of_audioset(imagenet_file):
    path, _ = imagenet_file
    with pytest.raises(WeightsError, match=r"missing: head\.weight"):
        small("base", path)


@pytest.mark.slow
def test_a_variant_without_published_weights_says_so():
    with pytest.raises(WeightsError, match="no weights are published for this variant of mast"):
        mast.load_model(variant="tiny")


# Lengths and layers


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["base", "mvit_base"])
@torch.no_grad()
def test_every_length_from_one_frame_runs(variant):
    trunk = small(variant).trunk
    for frames in [*range(1, 34), 127, 129, 300]:
        taps = trunk(noise(1, 128, frames), list(trunk.layers))
        for layer, axis in trunk.layers.items():
            assert taps[layer].isfinite().all()
            if axis is not None:
                assert taps[layer].shape[1] == -(-frames // axis.hop)


@torch.no_grad()
def test_positions_lie_where_their_time_axis_says():
    trunk = build(frames=1024)
    for block in trunk.blocks:
        # Without its branches a block passes on what lies at a position, and nothing of elsewhere.
        for linear in (block.attn.proj, block.mlp.fc2):
            nn.init.zeros_(linear.weight)
    mel = torch.zeros(1, 128, 1024)
    mel[:, :, 512] = 10 * noise(128)
    grids = [layer for layer, axis in trunk.layers.items() if axis is not None]
    heard, silent = trunk(mel, grids), trunk(torch.zeros_like(mel), grids)
    for layer in grids:
        axis = trunk.layers[layer]
        changed = (heard[layer] - silent[layer])[0].abs().amax((1, 2)).nonzero().flatten()
        assert 512 in range(changed[0] * axis.hop, changed[-1] * axis.hop + 1)
        assert changed[-1] - changed[0] <= 2


def test_hops_grow_with_pooling_along_time():
    hops = [axis.hop for axis in build().layers.values() if axis is not None]
    assert hops == [8, 8, 16, 16, 32, 64, 64]


@torch.no_grad()
def test_a_batch_equals_its_clips_one_by_one():
    trunk = build()
    mel = noise(3, 128, 50)
    together = trunk(mel, list(trunk.layers))
    one_by_one = [trunk(clip[None], list(trunk.layers)) for clip in mel]
    for layer, tap in together.items():
        assert_equal(tap, torch.cat([taps[layer] for taps in one_by_one]), 1e-5)


@torch.no_grad()
def test_no_block_runs_below_the_deepest_layer_asked_for():
    trunk = build()
    ran = []
    for i, block in enumerate(trunk.blocks, 1):
        block.register_forward_hook(lambda block, inputs, output, i=i: ran.append(i))
    trunk(noise(1, 128, 20), ["0", "2"])
    assert ran == [1, 2]


@pytest.mark.slow
@pytest.mark.parametrize("layer", [0, 1, 2, 3, 4, 5, "norm", "all"])
def test_native_timestamps_of_every_layer(layer):
    model = small("base", layer=layer)
    assert model.variant.framing == "native"
    embeddings, centres_ms = model.embed_timestamps(noise(2, 24_000).clamp(-1, 1))
    assert embeddings.shape == (2, len(centres_ms), model.timestamp_embedding_size)
    assert centres_ms.tolist() == [50.0 * i for i in range(31)]
    assert embeddings.isfinite().all()


def test_frames_of_native_timestamps_lie_where_their_audio_is():
    clip = torch.zeros(1, 48_000)
    clip[:, 24_000:24_400] = noise(1, 400).clamp(-1, 1)
    model = small("base", layer=0, hop_ms=10)
    embeddings, centres_ms = model.embed_timestamps(clip)
    silent, _ = model.embed_timestamps(torch.zeros_like(clip))
    changed = (embeddings - silent)[0].norm(dim=1) > 1e-3
    # A patch sees 105 ms, an interpolated one up to 80 ms more on either side.
    assert abs(centres_ms[changed].mean() - 1_512.5) <= 40
    assert 105 <= centres_ms[changed].max() - centres_ms[changed].min() <= 265


def test_native_chunks_hold_two_positions_of_the_last_layer():
    with pytest.raises(OptionError, match="choose at least 1280 ms"):
        small("base", window_ms=1_000, framing="native")


@pytest.mark.slow
@pytest.mark.parametrize("frames", [1, 2, 9, 17, 25, 100])
@torch.no_grad()
def test_bfloat16_points_the_same_way_at_every_length(frames):
    exact, rounded = small("base").trunk, small("base", precision="bfloat16").trunk
    mel = noise(2, 128, frames)
    with torch.autocast("cpu", torch.bfloat16):
        found = rounded(mel, ["0", "1", "5", "features"])
    for layer, expected in exact(mel, list(found)).items():
        assert torch.cosine_similarity(found[layer].float(), expected, dim=-1).min() > 0.99


# Training


@pytest.fixture(scope="module")
def gradients():
    trunk = filled(build())
    trunk(noise(2, 128, 128), ["logits"])["logits"].square().sum().backward()
    return {name: parameter.grad for name, parameter in trunk.named_parameters()}


def test_gradients_flow_to_every_parameter(gradients):
    # What all keys have in common changes no attention: the softmax takes it away.
    reached = {name: gradient for name, gradient in gradients.items() if not name.endswith("norm_k.bias")}
    assert len(reached) == len(gradients) - 5
    assert [name for name, gradient in reached.items() if gradient is None or gradient.abs().max() < 1e-5] == []


def test_gradients_of_the_tables_are_those_of_the_loops():
    shape = mast.Shape(6, 8, 2, (1, 2), (4, 2), grid=(4, 4))
    attention = filled(mast.PoolingAttention(shape))
    grid = noise(1, 4, 4, 6)
    tables = [attention.rel_pos_h, attention.rel_pos_w]
    found = torch.autograd.grad(attention(grid).square().sum(), tables)
    expected = torch.autograd.grad(attention_by_loops(attention, grid[0], shape).square().sum(), tables)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-4)


def test_deeper_blocks_are_dropped_more_often():
    trunk = build(drop_path=0.5)
    assert [block.drop.rate for block in trunk.blocks] == [0, 0.125, 0.25, 0.375, 0.5]


@pytest.mark.slow
def test_learns_20_clips():
    """Tell four pitches in noise apart, of five clips each."""
    labels = torch.arange(20) % 4
    time = torch.arange(8_000) / 16_000
    tones = torch.sin(2 * math.pi * 200 * 2 ** labels.unsqueeze(1) * time)
    mel = AST_MEL.build()(0.1 * tones + 0.1 * noise(20, 8_000))
    trunk = build(frames=48).train()
    optimizer = torch.optim.AdamW(trunk.parameters(), 1e-3)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _ in range(40):
            optimizer.zero_grad()
            nn.functional.cross_entropy(trunk(mel, ["logits"])["logits"], labels).backward()
            optimizer.step()
    with torch.no_grad():
        assert trunk.eval()(mel, ["logits"])["logits"].argmax(1).equal(labels)
