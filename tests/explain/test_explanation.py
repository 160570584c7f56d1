"""Maps over the spectrogram: numbers, places, and that they find what is there."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import (
    ast,
    atgnn,
    atst,
    beats,
    ced,
    clap,
    dasheng,
    eat,
    efficientat,
    hear,
    mast,
    panns,
    passt,
    tiny,
)
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.errors import AudioError, OptionError
from hear_transformers.explain import attention, explanation, figures, occlusion
from hear_transformers.explain.fields import holding, receptive_fields
from hear_transformers.explain.graphs import class_maps, neighbours
from hear_transformers.explain.window import Window, longest_seconds, loudest_start, window_of

SHARED = Path(__file__).parents[3] / "shared"
SMALL = {
    "ast": (ast, {"dim": 48, "depth": 2, "heads": 3}),
    "passt": (passt, {"dim": 48, "depth": 2, "heads": 3}),
    "mast": (mast, {"dim": 24, "depths": (1, 1, 1, 1)}),
    "tiny": (tiny, {"dim": 48, "depth": 2, "heads": 3}),
    "atgnn": (atgnn, {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "label_depths": (1, 1, 1, 1)}),
    "panns": (panns, {"width": 0.1}),
    "efficientat": (efficientat, {"width": 0.1}),
    "dasheng": (dasheng, {"dim": 48, "depth": 2, "heads": 3}),
    "ced": (ced, {"dim": 48, "depth": 2, "heads": 3}),
    "eat": (eat, {"dim": 48, "depth": 2, "heads": 3}),
    "atst": (atst, {"dim": 48, "depth": 2, "heads": 3}),
    "clap": (clap, {"dim": 16, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8)}),
    "beats": (beats, {"dim": 48, "depth": 2, "heads": 3, "hidden": 96, "patch_dim": 32}),
}
BURST_S, BURST_HZ = 1.3, 1_000.0


def load(name: str, variant: str | None = None, **options) -> Embedder:
    module, network = SMALL[name]
    family = module.FAMILY
    key = variant or next(iter(family.variants))
    row = replace(family.variants[key], network={**family.variants[key].network, **network})
    return hear.Loader(replace(family, variants={key: row})).load_model(pretrained=False, **options)


def burst(sample_rate: int, seconds: float = 2.0) -> torch.Tensor:
    """Make a tone of 0.1 s around `BURST_S` in silence."""
    t = torch.arange(round(seconds * sample_rate)) / sample_rate
    return 0.5 * torch.sin(2 * torch.pi * BURST_HZ * t) * ((t - BURST_S).abs() < 0.05)


def noise(sample_rate: int, seconds: float = 2.0) -> torch.Tensor:
    return torch.rand(round(seconds * sample_rate), generator=torch.Generator().manual_seed(0)) - 0.5


def window(name: str, seconds: float = 2.0, **options) -> Window:
    model = load(name, **options)
    return window_of(model, noise(model.sample_rate, seconds))


def test_classes_of_a_clip_are_read_from_its_frames():
    clip = window("passt", variant="fpasst_strong", layer="logits")
    with torch.no_grad():
        taps = clip.trunk(clip.frames, ["2"])
    shares = attention.readers(clip, "logits", "mean", taps)
    assert shares[:2].tolist() == [0.0, 0.0]
    assert shares.sum() == pytest.approx(1.0)


@pytest.mark.parametrize("name", ["ast", "passt", "mast", "tiny", "eat", "atst", "beats"])
@torch.no_grad()
def test_attention_with_its_weights_equals_the_fused_one(name):
    clip = window(name)
    layers = list(clip.trunk.layers)
    expected = clip.trunk(clip.frames, layers)
    recorded = attention.Recorded()
    with recorded:
        found = clip.trunk(clip.frames, layers)
    for layer in layers:
        scale = expected[layer].abs().max().item()
        torch.testing.assert_close(found[layer], expected[layer], rtol=0, atol=1e-6 * max(1, scale))
    assert len(recorded.weights) == len(clip.trunk.blocks)
    for weights in recorded.weights:
        torch.testing.assert_close(weights.sum(1), torch.ones(len(weights)), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("name", "layer", "pool"),
    [
        ("ast", "logits", "mean"),
        ("ast", "1", "cls"),
        ("tiny", "2", "mean"),
        ("mast", "2", "mean"),
        ("ced", "2", "mean"),
        ("atst", "2", "mean"),
        ("beats", "2", "mean"),
    ],
)
def test_rollout_is_the_product_of_the_blocks(name, layer, pool):
    clip = window(name, 0.5)
    shares = attention.rollout(clip, layer, pool)
    assert (shares >= 0).all()
    if name == "mast":
        assert shares.sum().item() == pytest.approx(1, abs=1e-5)
        return
    recorded = attention.Recorded()
    with torch.no_grad(), recorded:
        clip.trunk(clip.frames, [layer, *({"1"} if layer.isdecimal() else {"norm"})])
    prefix = len(clip.trunk.prefix)
    product = torch.eye(len(recorded.weights[0]))
    for weights in recorded.weights[: int(layer) if layer.isdecimal() else None]:
        product = (0.5 * weights + 0.5 * torch.eye(len(weights))) @ product
    rows = product[prefix:] if pool == "mean" and layer.isdecimal() else product[:prefix]
    shares = shares.T if clip.trunk.time_first else shares
    torch.testing.assert_close(shares.flatten(), rows.mean(0)[prefix:], rtol=0, atol=1e-6)


def test_gradient_attention_is_that_of_its_paper():
    clip = window("ast", 0.5)
    clip = replace(clip, frames=clip.frames[..., : clip.n_frames])
    found = attention.gradient_attention(clip, lambda logits: logits[0, 3])
    # With the matrices themselves: R = R + A R for each block, A the mean over heads of the positive part.
    kept = []

    class Kept(attention.Recorded):
        def _attend(self, query, key, value, mask=None, *, scale=None):
            weights = (query @ key.mT * query.shape[-1] ** -0.5).softmax(-1)
            weights.retain_grad()
            kept.append(weights)
            return weights @ value

    with Kept():
        logits = clip.trunk(clip.frames, ["norm", "logits"])["logits"]
    logits[0, 3].backward()
    relevance = torch.eye(kept[0].shape[-1])
    for weights in kept:
        relevance = relevance + (weights.grad * weights)[0].clamp(min=0).mean(0).detach() @ relevance
    torch.testing.assert_close(found.flatten(), relevance[:2].mean(0)[2:], rtol=1e-4, atol=1e-9)


@pytest.mark.parametrize("name", ["ast", "passt", "mast", "tiny", "dasheng", "ced", "eat", "atst", "clap"])
@pytest.mark.parametrize("place", [0.0, 0.4, 1.0])
def test_a_patch_lies_where_its_gradient_does(name, place):
    clip = window(name, 10.0 if name == "clap" else 1.0)
    frames = torch.zeros_like(clip.frames[..., : clip.n_frames]).requires_grad_()
    patches = clip.trunk(frames, ["0"])["0"][0]  # (time, freq, features)
    row, column = (round(place * (n - 1)) for n in (patches.shape[1], patches.shape[0]))
    patches[column, row].square().sum().backward()
    seen = frames.grad[0] != 0
    grid = clip.grid("0", patches.shape[1], patches.shape[0])
    for axis, size, index in ((grid.freq, seen.any(1), row), (grid.time, seen.any(0), column)):
        places = size.nonzero().flatten()
        reach = {"mast": 7, "tiny": 64 if axis is grid.freq else 6, "dasheng": 32}
        between = 0.5 if name == "clap" else 0.01  # its columns lie between frames
        reach["atst"] = 32 if axis is grid.freq else 2
        assert axis.n == patches.shape[1 if axis is grid.freq else 0]
        assert (places - axis.centres()[index]).abs().max() <= reach.get(name, 8)
        if 0 < index < axis.n - 1:
            assert float(places[0] + places[-1]) / 2 == pytest.approx(axis.centres()[index], abs=between)


@pytest.mark.parametrize("name", ["ast", "efficientat", "panns"])
def test_bands_have_the_frequencies_of_their_tones(name):
    model = load(name)
    rate = model.sample_rate
    for hz in (500.0, 3_000.0):
        tone = torch.sin(2 * torch.pi * hz * torch.arange(rate) / rate)
        clip = window_of(model, tone)
        band = int(clip.mel.mean(1).argmax())
        between = abs(clip.hz(float(band)) - hz)
        assert between <= max(np.diff(clip.spec.centres_hz())[max(0, band - 1) : band + 2].max(), rate / 400)


def attentive() -> Embedder:
    """Make an AST whose class tokens attend to loud patches, and whose first class is their loudness."""
    model = load("ast", "esc50_10_10")
    trunk = model.trunk
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.zero_()
        for norm in (block.norm1 for block in trunk.blocks):
            norm.weight.fill_(1.0)
        trunk.norm.weight.fill_(1.0)
        trunk.head[0].weight.fill_(1.0)
        # Features 0 and 1: the level of a patch and its opposite. 2 and 3 are constant, so that norms keep the level.
        trunk.patch_embed.proj.weight[0], trunk.patch_embed.proj.weight[1] = 1 / 256, -1 / 256
        for constant in (trunk.patch_embed.proj.bias, trunk.cls_token[0, 0], trunk.dist_token[0, 0]):
            constant[2], constant[3] = 1.0, -1.0
        for attn in (block.attn for block in trunk.blocks):
            attn.qkv.bias[:48] = 2.0  # every query of every head asks for feature 0
            attn.qkv.weight[48:96, 0] = 2.0
            attn.qkv.weight[96::16, 0], attn.qkv.weight[97::16, 1] = 1.0, 1.0
            attn.proj.weight[0, ::16], attn.proj.weight[1, 1::16] = 1.0, 1.0
        trunk.head[1].weight[0, 0] = 1.0
    return model


def peak(found: explanation.Explanation, name: str) -> tuple[float, float]:
    each = next(each for each in found.maps if each.name == name)
    row, column = divmod(int(each.values.argmax()), each.values.shape[1])
    clip = found.window
    return float(clip.seconds(each.grid.time.centres()[column])), float(clip.hz(each.grid.freq.centres()[row]))


def test_maps_have_their_peak_where_the_only_sound_is():
    model = attentive()
    clip = window_of(model, burst(model.sample_rate, 5.135))
    found = explanation.explain(clip, 0, patch_ms=160.0)
    for name in ("rollout", "occlusion"):
        seconds, hz = peak(found, name)
        assert abs(seconds - BURST_S) < 0.16, name
        assert 400 < hz < 2_000, name
    (shares,) = [each for each in found.maps if each.name == "rollout"]
    times = clip.seconds(shares.grid.time.centres())
    near = shares.values[:, np.abs(times - BURST_S) < 0.2].sum()
    assert near > 0.9 * shares.values.sum()


@pytest.mark.parametrize("name", ["efficientat", "tiny"])
def test_of_silence_nothing_can_be_occluded(name):
    model = load(name)
    clip = window_of(model, burst(model.sample_rate))
    number = 0 if name == "efficientat" else None
    (each,) = [each for each in explanation.explain(clip, number, methods=["occlusion"]).maps]
    begins, ends = (int((time - 0.15) / 0.32) for time in (BURST_S, BURST_S + 0.3))
    assert each.values[:, begins : ends + 1].abs().max() > 0
    others = torch.cat([each.values[:, : begins - 1], each.values[:, ends + 2 :]], 1)
    assert others.abs().max() < 0.05 * each.values.abs().max()


@pytest.mark.parametrize(("name", "variant"), [("panns", None), ("panns", "res1dnet31"), ("efficientat", None)])
def test_measured_fields_are_within_those_of_the_kernels(name, variant):
    model = load(name, variant)
    clip = window_of(model, noise(model.sample_rate, 1.0))
    found = receptive_fields(clip)
    assert [each.layer for each in found] == [
        layer for layer, axis in model.trunk.layers.items() if axis and layer[-1].isdecimal()
    ]
    for each in found:
        assert each.effective_ms <= each.measured_ms
        if each.theoretical_ms is not None:
            assert each.measured_ms <= each.theoretical_ms + 1e-6


def test_the_shortest_stretch_is_found():
    assert holding(np.array([0.0, 1, 5, 5, 1, 0]), 0.8) == (2, 3)
    assert holding(np.array([0.0, 0, 1]), 0.95) == (2, 2)
    assert holding(np.ones(10), 1.0) == (0, 9)


def test_a_class_takes_features_from_the_patches_nearest_to_its_embedding():
    clip = window("atgnn", 1.0, variant="pyr_t")
    maps = class_maps(clip, 7)
    assert [each.layer for each in maps] == ["stage1", "stage2", "stage3", "stage4"]
    for each in maps:
        chosen = each.cosines[each.chosen[:, 0], each.chosen[:, 1]]
        assert chosen.min() >= each.cosines.flatten().topk(len(chosen)).values.min() - 1e-5
        # Bands of 128, and as many frames for each position as bands.
        assert each.grid.freq.step == each.grid.time.step


def test_the_first_neighbour_is_near_and_all_lie_on_the_grid():
    clip = window("atgnn", 1.0, variant="pyr_t")
    found = neighbours(clip, 64.0, 40.0)
    assert [each.layer for each in found] == ["1", "2", "3", "4"]
    for each in found:
        assert abs(each.patch[0] - 64) <= 32
        assert abs(each.patch[1] - 40) <= 32
        assert (each.centres >= 0).all()
        assert (each.centres[:, 0] < 128 + 32).all()


@pytest.mark.parametrize("name", SMALL)
def test_every_family_is_explained_and_drawn(name, tmp_path):
    clip = window(name, 1.0)
    of_class = "logits" in clip.trunk.layers
    found = explanation.explain(clip, 0 if of_class else None, patch_ms=500.0, patch_bands=64)
    figures.draw(found, tmp_path / "a.png", "$title of <a> clip$")
    figures.write_numbers(found, tmp_path / "a.npz")
    assert (tmp_path / "a.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "a.npz") as arrays:
        assert json.loads(str(arrays["about"]))["left_out"] == found.left_out
        for each in found.maps:
            key = each.name.replace(" ", "_")
            values, seconds, hz = arrays[key], arrays[f"{key}_s"], arrays[f"{key}_hz"]
            assert values.shape == (len(hz), len(seconds))
            assert (np.diff(seconds) > 0).all()
            assert seconds[-1] <= 1.3
            assert np.isfinite(values).all()


@pytest.mark.parametrize(
    ("seconds", "burst", "expected"),
    [(6.0, (3.0, 5.0), 3.0), (6.03, (5.5, 6.03), 4.1), (2.0, (1.0, 1.5), 0.0), (6.0, (0, 0), 0.0)],
)
def test_the_loudest_part_of_a_clip_is_explained(seconds, burst, expected):
    waveform = torch.zeros(round(seconds * 16_000))
    waveform[round(burst[0] * 16_000) : round(burst[1] * 16_000)] = 0.1
    assert loudest_start(waveform, 16_000, 2.0) == expected


def test_padding_is_left_out_of_maps():
    clip = window("ast", 1.0)
    assert clip.frames.shape[-1] == 1024
    found = explanation.explain(clip, 0, methods=["rollout"])
    assert float(clip.seconds(found.maps[0].grid.time.centres()[-1])) < 1.0
    assert occlusion.passes(clip, 320.0, 16) == 8 * 4


def test_a_piece_of_a_network_that_cuts_its_input_is_explained():
    model = load("dasheng")
    n_samples = int(longest_seconds(model) * model.sample_rate)
    assert 10.08 <= longest_seconds(model) < 10.12
    clip = window_of(model, noise(model.sample_rate, 11.0)[:n_samples])
    assert attention.rollout(clip, "norm", "mean").shape == (1, 252)


def test_what_does_not_apply_is_refused_or_said():
    tiny_model = load("tiny")
    with pytest.raises(OptionError, match="has no classifier; leave the class out"):
        explanation.class_number(tiny_model, "Dog")
    model = load("efficientat")
    assert explanation.class_number(model, "dog") == 74 == explanation.class_number(model, "74")
    with pytest.raises(OptionError, match="did you mean Dog"):
        explanation.class_number(model, "Dgo")
    with pytest.raises(OptionError, match="has classes 0 to 526"):
        explanation.class_number(model, "527")
    clip = window_of(model, noise(model.sample_rate, 1.0))
    with pytest.raises(OptionError, match="the network has no attention"):
        explanation.explain(clip, 0, methods=["rollout"])
    with pytest.raises(OptionError, match="choose one of rollout"):
        explanation.explain(clip, 0, methods=["magic"])
    for bad in (torch.zeros(0), torch.full((100,), torch.nan)):
        with pytest.raises(AudioError, match="no samples, or some that are not finite"):
            window_of(model, bad)
    with pytest.raises(OptionError, match="reads 10 s at once"):
        window_of(model, torch.zeros(32_000 * 11))


@pytest.mark.shared
def test_a_real_network_hears_the_dog_where_it_barks():
    model = efficientat.load_model(SHARED / "weights" / "mn04_as_mAP_432.pt", variant="mn04_as")
    clips = SHARED / "data" / "esc10" / "audio"
    from hear_transformers.audio.reading import read

    clip = window_of(model, read(clips / "1-100032-A-dog_bark.ogg", model.sample_rate))
    found = explanation.explain(clip, explanation.class_number(model, "Dog"), methods=["occlusion"])
    assert found.probability is not None
    assert found.probability > 0.5
    seconds, hz = peak(found, "occlusion")
    assert 2.2 < seconds < 2.6  # the only bark
    assert 500 < hz < 5_000
