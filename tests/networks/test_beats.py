"""BEATs against what the authors' own code answers (tests/data/golden), and OpenBEATs' release of the same network."""

import math
from dataclasses import replace
from functools import partial
from itertools import product
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from hear_transformers import beats
from hear_transformers.benchmarks import peers
from hear_transformers.checkpoints import state_dicts
from hear_transformers.checkpoints.search import find_network
from hear_transformers.checkpoints.state_dicts import Content
from hear_transformers.errors import WeightsError
from hear_transformers.labels import audioset_strong_labels
from hear_transformers.networks import counting
from hear_transformers.networks.family import unfilled_trunk
from tests.helpers.golden import assert_equal, golden_audio, golden_state_dict, noise, small_build

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCKS = [str(i) for i in range(1, 13)]
SMALL = {"dim": 48, "depth": 2, "heads": 3, "hidden": 96, "patch_dim": 32, "conv_groups": 4}
small = partial(small_build, beats, SMALL)


def answers_of(name):
    with np.load(GOLDEN / f"{name}.npz") as answers:
        return dict(answers)


def network_of(name, variant):
    """Find the network in the state dict of a golden file, as `load_model` does."""
    content = Content(golden_state_dict(GOLDEN / f"{name}.json"))
    found = find_network(beats.FAMILY, beats.VARIANTS[variant], content, Path(name), given={})
    trunk = unfilled_trunk(beats.FAMILY, found.variant).eval()
    state_dicts.load_into(trunk, found.state_dict, name)
    return trunk


def frames_of(n_samples):
    return beats.BEATS_MEL.build()(golden_audio(16_000, int(n_samples)))


# The authors' numbers


@pytest.mark.numeric
def test_the_front_end_gives_the_authors_numbers():
    answers = answers_of("beats-base_finetuned")
    fbank = frames_of(answers["n_samples"]).transpose(1, 2)
    assert fbank.shape == tuple(answers["fbank_shape"])
    assert_equal(fbank[:, ::64], answers["fbank"])


@pytest.fixture(scope="module", params=["finetuned", "pretrained"])
def network(request):
    name = f"beats-base_{request.param}"
    variant = {"finetuned": "iter1_finetuned_on_AS2M_cpt1", "pretrained": "iter1"}[request.param]
    return answers_of(name), network_of(name, variant)


@pytest.mark.slow
def test_every_block_gives_the_authors_tokens(network):
    answers, trunk = network
    with torch.no_grad():
        taps = trunk(frames_of(answers["n_samples"]), ["0", *BLOCKS, "features"])
    for i in range(13):
        assert_equal(taps[str(i)].mean((1, 2))[:, :64], answers[f"tap_mean_block{i}"])
    tokens = {layer: taps[layer].flatten(1, 2) for layer in ("6", "features")}  # frequency fastest
    assert tokens["6"].shape == tuple(answers["tap_shape"])
    # Single tokens to 3e-4, as the log-mel of nearly silent bins is rounded differently by each processor.
    assert_equal(tokens["6"][:, answers["tokens_index"]], answers["tokens_block6"], 3e-4)
    assert_equal(tokens["features"][:, answers["tokens_index"]], answers["features_tokens"], 3e-4)


@pytest.mark.slow
@pytest.mark.parametrize("length", ["", "short_", "long_"])
def test_embeddings_and_logits_are_the_authors(network, length):
    answers, trunk = network
    layers = [layer for layer in ("features", "logits") if layer in trunk.layers]
    with torch.no_grad():
        taps = trunk(frames_of(answers[f"{length}n_samples"]), layers)
    assert_equal(taps["features"].mean((1, 2)), answers[f"{length}embedding"])
    if "logits" in taps:
        assert_equal(taps["logits"], answers[f"{length}logits"])


@pytest.mark.slow
def test_strong_labels_are_those_of_pretrainedsed():
    answers = answers_of("beats_strong")
    trunk = network_of("beats_strong", "strong_1")
    frames = frames_of(answers["n_samples"])
    with torch.no_grad():
        taps = trunk(frames, [*BLOCKS, "features", "sequence", "framewise", "logits"])
    for layer in BLOCKS:
        assert_equal(taps[layer].mean((1, 2))[:, :64], answers[f"tap_mean_block{layer}"])
    assert_equal(taps["features"].flatten(1, 2)[:, answers["base_index"]], answers["base_tokens"], 3e-4)
    assert taps["sequence"].shape == (2, 250, 1, 768)
    assert_equal(taps["sequence"][:, answers["sequence_index"], 0], answers["sequence_frames"], 3e-4)
    assert_equal(taps["framewise"][:, ::25, 0].transpose(1, 2), answers["strong"], 3e-4)
    assert_equal(taps["logits"], answers["weak"])


@pytest.mark.slow
def test_openbeats_answers_the_same():
    pytest.importorskip("openbeats", reason="needs openbeats, of the extra bench")
    config = {"encoder_embed_dim": 96, "encoder_layers": 2, "encoder_ffn_embed_dim": 96, "encoder_attention_heads": 3}
    peer = peers.OpenBeats("cpu", **config)
    network = {"dim": 96, "depth": 2, "hidden": 96, "heads": 3}
    family = replace(beats.FAMILY, variants={"small": replace(beats.VARIANTS["iter1"], network=network)})
    ours = peers.build_ours(family, "small", peer.model.state_dict())
    clips = golden_audio(16_000, 75_200)
    with torch.no_grad(), peers.silence_peers():
        assert_equal(ours.embed_scenes(clips), peer.embed(peer.workloads[0], clips))


# Parts


def test_distances_fall_into_the_buckets_of_t5():
    buckets = beats.buckets_by_distance(320, 800).tolist()
    assert len(buckets) == 1601
    behind = [buckets[800 - distance] for distance in range(801)]
    assert behind[:81] == list(range(81))
    for distance in range(81, 801):
        # None is within 1e-4 of an edge, so that rounding decides nothing.
        assert behind[distance] == min(159, 80 + int(80 * math.log(distance / 80) / math.log(10)))
    assert buckets[801:] == [bucket + 160 for bucket in behind[1:]]


@torch.no_grad()
def test_attention_is_its_definition():
    trunk = small("iter1").trunk
    attention = trunk.blocks[0].attn
    attention.gate_scale.copy_(noise(1, 3, 1, 1))
    tokens, table = noise(2, 24, 48), noise(320, 3, seed=1)
    trunk.positions.table.copy_(table)
    query, key, value = attention.qkv(tokens).view(2, 24, 3, 3, 16).permute(2, 0, 3, 1, 4)
    mixed = torch.zeros(2, 24, 3, 16)
    for clip, head, i in product(range(2), range(3), range(24)):
        a, b = attention.gate(query[clip, head, i]).view(2, 4).sum(1).sigmoid()
        gate = a * (b * attention.gate_scale[0, head, 0, 0] - 1) + 2
        bias = torch.stack([table[abs(i - j) + 160 * (j > i), head] for j in range(24)])
        weights = (key[clip, head] @ query[clip, head, i] / 4 + gate * bias).softmax(0)
        mixed[clip, i, head] = weights @ value[clip, head]
    found = attention.biased(tokens, trunk.positions(24))
    torch.testing.assert_close(found, attention.proj(mixed.flatten(2)))


@pytest.mark.parametrize(("n_tokens", "steps"), [(496, 250), (8, 4), (8, 8), (800, 401)])
def test_steps_are_those_of_adaptive_pooling(n_tokens, steps):
    tokens = noise(2, n_tokens, 5)
    expected = torch.nn.functional.adaptive_avg_pool1d(tokens.mT, steps).mT
    torch.testing.assert_close(beats.at_steps(tokens, steps), expected)


@pytest.mark.parametrize(("seconds", "steps"), [(0.175, 4), (1.0, 25), (10.0, 250)])
def test_strong_labels_have_a_step_every_40_ms(seconds, steps):
    model = small("strong_1")
    with torch.no_grad():
        taps = model.trunk(model.frontend(noise(1, round(seconds * 16_000))), ["framewise"])
    assert taps["framewise"].shape == (1, steps, 1, 447)
    axis, spec = model.layer_axis("framewise"), model.variant.frontend
    assert spec.offset + axis.offset * spec.hop_length == 0.020 * spec.sample_rate
    assert axis.hop * spec.hop_ms == 40


def test_frames_of_native_timestamps_lie_where_their_audio_is():
    model = small("iter1", layer=0, hop_ms=10)
    clip = torch.zeros(1, 48_000)
    clip[:, 24_000:24_400] = noise(1, 400)
    with torch.no_grad():
        model.trunk.pos_conv.weight.zero_()  # which spreads what it hears over 2.7 s
    embeddings, centres_ms = model.embed_timestamps(clip)
    silent, _ = model.embed_timestamps(torch.zeros_like(clip))
    changed = (embeddings - silent)[0].norm(dim=1) > 1e-3
    # A patch sees 175 ms, an interpolated one up to 160 ms more on either side.
    assert abs(centres_ms[changed].mean() - 1_512.5) <= 80
    assert 160 <= centres_ms[changed].max() - centres_ms[changed].min() <= 500


# Files


def theirs(trunk, normalised=("weight_g", "weight_v")):
    """Rename the tensors of a network to the authors'."""
    renames = {ours: name for name, ours in reversed(beats.PARTS.items()) if name != "weak_head."}
    parts = {ours: name for name, ours in beats.PARTS_OF_BLOCKS.items()}
    names = {}
    for key, tensor in trunk.state_dict().items():
        if key == "positions.table":
            names |= {f"encoder.layers.{i}.self_attn.relative_attention_bias.weight": tensor for i in range(2)}
        elif key == "patch_embed.proj.weight":
            names["patch_embedding.weight"] = tensor.mT
        elif key == "pos_conv.weight":
            length = tensor.norm(dim=(0, 1), keepdim=True)
            names |= {
                f"encoder.pos_conv.0.{part}": value
                for part, value in zip(normalised, (length, 3 * tensor), strict=True)
            }
        elif ".qkv." in key:
            block, kind = key.split(".attn.qkv.")
            for part, values in zip("qkv", tensor.chunk(3), strict=True):
                name = f"encoder.{block.replace('blocks', 'layers')}.self_attn.{part}_proj.{kind}"
                names[name] = values
        else:
            start = next((ours for ours in renames if key.startswith(ours)), "")
            name = renames.get(start, "") + key.removeprefix(start)
            for ours, part in parts.items():
                name = name.replace(ours, part)
            names[name] = tensor
    return {name: tensor.clone() for name, tensor in names.items()}


CFG = {"deep_norm": True, "max_distance": 800, "encoder_layers": 2, "layer_norm_first": False, "gru_rel_pos": True}


def load_small(path, variant="iter1", **options):
    return small(variant, path, pretrained=True, **options)


def test_the_authors_files_load_with_the_names_of_their_classes(tmp_path):
    trunk = small("iter1_finetuned_on_AS2M_cpt1").trunk
    mids = {0: "/m/09x0r", 1: "/m/05zppz", **{i: f"/m/{i}" for i in range(2, 527)}}
    torch.save({"cfg": CFG, "model": theirs(trunk), "label_dict": mids}, tmp_path / "theirs.pt")
    model = load_small(tmp_path / "theirs.pt", "iter1_finetuned_on_AS2M_cpt1", layer="logits")
    assert model.labels[:3] == ("Speech", "Male speech, man speaking", "/m/2")
    for name, tensor in model.trunk.state_dict().items():
        torch.testing.assert_close(tensor, trunk.state_dict()[name])


def test_naturebeats_have_other_names_and_one_table(tmp_path):
    trunk = small("iter1").trunk
    names = theirs(trunk, ("parametrizations.weight.original0", "parametrizations.weight.original1"))
    del names["encoder.layers.1.self_attn.relative_attention_bias.weight"]
    safetensors.torch.save_file(
        {f"backbone.{name}": tensor.contiguous() for name, tensor in names.items()}, tmp_path / "nature.safetensors"
    )
    model = load_small(tmp_path / "nature.safetensors", "NatureBEATs")
    for name, tensor in model.trunk.state_dict().items():
        torch.testing.assert_close(tensor, trunk.state_dict()[name])


def test_pretrainedsed_has_classifiers_outside_of_the_network(tmp_path):
    trunk = small("strong_1").trunk
    heads = {name: tensor for name, tensor in trunk.state_dict().items() if name.startswith("strong_head.")}
    names = {f"model.model.{name}": tensor for name, tensor in theirs(trunk).items() if name not in heads}
    weak = {f"weak_head.{kind}": names.pop(f"model.model.predictor.{kind}") for kind in ("weight", "bias")}
    torch.save({**names, **heads, **weak}, tmp_path / "strong.pt")
    model = load_small(tmp_path / "strong.pt", "strong_1", layer="framewise")
    assert model.labels == audioset_strong_labels()
    for name, tensor in model.trunk.state_dict().items():
        torch.testing.assert_close(tensor, trunk.state_dict()[name])


def test_statistics_and_distances_of_a_cfg_are_taken(tmp_path):
    names = theirs(small("iter1").trunk)
    cfg = {**CFG, "fbank_mean": 11.5, "fbank_std": 3.0, "max_distance": 1280}
    torch.save({"cfg": cfg, "model": names}, tmp_path / "openbeats.pt")
    model = load_small(tmp_path / "openbeats.pt")
    assert model.variant.frontend.normalisation == (11.5, 3.0)
    assert len(model.trunk.positions.buckets) == 2561


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"cfg": {**CFG, "layer_norm_first": True}}, r"odd\.pt: its cfg has layer_norm_first = True, .* has False"),
        ({"tables": True}, r"odd\.pt: its blocks have different tables of relative positions"),
    ],
)
def test_another_network_is_refused(changes, message, tmp_path):
    names = theirs(small("iter1").trunk)
    if "tables" in changes:
        names["encoder.layers.1.self_attn.relative_attention_bias.weight"] += 1
    torch.save({"cfg": changes.get("cfg", CFG), "model": names}, tmp_path / "odd.pt")
    with pytest.raises(WeightsError, match=message):
        load_small(tmp_path / "odd.pt")


# Size


def test_the_network_has_the_papers_size():
    # Without the 128 lengths of the weight normalisation, which are part of the weights here.
    assert counting.count_parameters(beats.FAMILY, beats.VARIANTS["iter1"]) == 90_311_792 - 128
    tuned = beats.VARIANTS["iter1_finetuned_on_AS2M_cpt1"]
    assert counting.count_parameters(beats.FAMILY, tuned) == 90_717_055 - 128
