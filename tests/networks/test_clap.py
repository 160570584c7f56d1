"""CLAP's audio tower against what `transformers` answers (tests/data/golden), and beside it."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import catalogue, clap
from hear_transformers.errors import OptionError, WeightsError
from tests.helpers.golden import assert_equal, golden_audio, golden_state_dict, noise, small_build

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
RATE = 48_000
NETWORKS = {"clap-htsat_unfused": "clap-htsat-unfused", "clap-htsat_fused": "clap-htsat-fused"}
SMALL = {"dim": 16, "depths": (2, 2, 2, 1), "heads": (1, 2, 4, 8), "projection": 24}
small = partial(small_build, clap, SMALL)


# The authors' numbers


@pytest.fixture(scope="module", params=[pytest.param(name, marks=pytest.mark.slow) for name in NETWORKS])
def network(request, tmp_path_factory):
    with np.load(GOLDEN / f"{request.param}.npz") as answers:
        answers = dict(answers)
    path = tmp_path_factory.mktemp("clap") / "net.pt"
    texts = {"text_model.embeddings.word_embeddings.weight": torch.zeros(3, 3), "logit_scale_a": torch.zeros(())}
    indices = {
        f"audio_model.audio_encoder.layers.{stage}.blocks.0.attention.self.relative_position_index": INDEX
        for stage in range(4)
    }
    torch.save({**golden_state_dict(GOLDEN / f"{request.param}.json"), **texts, **indices}, path)
    return answers, clap.load_model(path)


INDEX = torch.tensor([[(i // 8 - j // 8 + 7) * 15 + i % 8 - j % 8 + 7 for j in range(64)] for i in range(64)])
"""Swin's index of relative positions, by its definition."""


def folded(grid: torch.Tensor) -> torch.Tensor:
    """Return the tokens of a layer in the authors' order: row by row of the picture."""
    pieces = grid.unflatten(1, (4, -1))  # (batch, piece, column, freq, dim)
    return pieces.transpose(2, 3).flatten(1, 3)


@torch.no_grad()
def test_every_layer_is_the_authors(network):
    answers, model = network
    mel = model.frontend(golden_audio(RATE, int(answers["n_samples"])))
    assert_equal(mel.transpose(1, 2)[:, ::64], answers["mel"], 1e-6)
    trunk = model.trunk
    assert_equal(clap.picture(trunk.batch_norm(mel))[:, None, ::37, ::37], answers["image"])
    merged = []
    hooks = [merge.register_forward_hook(lambda _, __, grid: merged.append(grid)) for merge in trunk.merges]
    taps = trunk(mel, [*trunk.layers])
    for hook in hooks:
        hook.remove()
    assert_equal(taps["0"].mean((1, 2))[:, :64], answers["tap_mean_patch"])
    for number in range(1, 13):
        assert_equal(taps[str(number)].mean((1, 2))[:, :64], answers[f"tap_mean_block{number}"])
    for stage, grid in enumerate(merged, 1):
        assert_equal(grid.mean((1, 2))[:, :64], answers[f"tap_mean_merge{stage}"])
    assert_equal(folded(taps["5"])[:, answers["tokens_index"]], answers["tokens_block5"])
    last = taps["norm"].permute(0, 3, 2, 1)  # (batch, dim, freq, time)
    assert_equal(last[:, ::64], answers["last_hidden_state"])
    assert_equal(last.mean((2, 3))[:, ::4], answers["last_hidden_state_mean"])
    assert_equal(taps["features"], answers["pooler_output"])
    assert_equal(taps["projection"], answers["audio_embeds"])
    assert_equal(torch.nn.functional.normalize(taps["projection"]), answers["audio_embeds_normalised"])


@torch.no_grad()
@pytest.mark.parametrize("part", ["short_", "other_"])
def test_shorter_clips_are_repeated_and_filled(network, part):
    answers, model = network
    clips = golden_audio(RATE, int(answers[f"{part}n_samples"]))
    mel = model.frontend(clips)
    assert_equal(mel.transpose(1, 2)[:, ::128], answers[f"{part}mel"], 1e-6)
    assert_equal(model.trunk(mel, ["features"])["features"], answers[f"{part}pooler_output"])
    assert_equal(model.embed_scenes(clips), answers[f"{part}audio_embeds"])


@torch.no_grad()
@pytest.mark.parametrize("network", [pytest.param("clap-htsat_fused", marks=pytest.mark.slow)], indirect=True)
def test_longer_clips_are_fused_with_their_crops(network):
    answers, model = network
    clips = golden_audio(RATE, int(answers["fused_n_samples"]))
    assert answers["fused_crops"].tolist() == [0, 30, 60]
    assert_equal(model.embed_scenes(clips), answers["fused_audio_embeds"])
    taps = model.trunk(model.frontend(clips), ["features"])
    assert_equal(taps["features"], answers["fused_pooler_output"])
    shrunk = torch.nn.functional.interpolate(model.frontend(clips), 1001, mode="linear", align_corners=False)
    assert_equal(model.trunk(shrunk, ["projection"])["projection"], answers["fused_not_longer_audio_embeds"])


# Beside transformers


@pytest.fixture(scope="module", params=["clap-htsat-unfused", "clap-htsat-fused"])
def peer(request):
    """Make a small ClapModel with random weights, its extractor, and our network with the same weights."""
    transformers = pytest.importorskip("transformers")
    fusion = request.param == "clap-htsat-fused"
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        sizes = {"patch_embeds_hidden_size": 16, "depths": [2, 2, 2, 1], "num_attention_heads": [1, 2, 4, 8]}
        audio = {**sizes, "hidden_size": 128, "enable_fusion": fusion, "fusion_type": "aff_2d" if fusion else None}
        text = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "vocab_size": 9}
        config = transformers.ClapConfig(audio_config=audio, text_config=text, projection_dim=24)
        model = transformers.ClapModel(config).eval()
        for name, parameter in model.named_parameters():
            if name.endswith("relative_position_bias_table"):
                torch.nn.init.normal_(parameter)
    truncation = "fusion" if fusion else "rand_trunc"
    extractor = transformers.ClapFeatureExtractor(frequency_min=50, truncation=truncation)
    return request.param, model, extractor


@pytest.mark.slow
def test_a_file_of_the_other_kind_is_refused(peer, tmp_path):
    variant, theirs, _ = peer
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    others = {"clap-htsat-unfused": "clap-htsat-fused", "clap-htsat-fused": "clap-htsat-unfused"}
    with pytest.raises(WeightsError, match=f"feature fusion; give a variant of that kind, such as {variant}"):
        clap.load_model(tmp_path / "pytorch_model.bin", others[variant])


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("n_samples", [1, 14_400, 235_200, 480_000])
def test_embeddings_are_those_of_transformers(peer, n_samples, tmp_path):
    variant, theirs, extractor = peer
    torch.save(theirs.state_dict(), tmp_path / "pytorch_model.bin")
    ours = clap.load_model(tmp_path / "pytorch_model.bin", variant)
    clips = noise(2, n_samples) / 10
    inputs = extractor(list(clips.numpy()), sampling_rate=RATE, return_tensors="pt")
    inputs["is_longer"] = torch.zeros(2, 1, dtype=torch.bool)  # of clips none of which is, it marks one at random
    assert_equal(ours.frontend(clips).transpose(1, 2), inputs["input_features"][:, 0], 1e-6)
    expected = theirs.get_audio_features(**inputs)
    expected = getattr(expected, "pooler_output", expected)  # a tensor up to transformers 4
    assert_equal(torch.nn.functional.normalize(ours.embed_scenes(clips)), expected, 1e-5)


# Files


def hugging_face(trunk):
    """Name the tensors of a network without fusion as files for Hugging Face do."""
    depths, weights = SMALL["depths"], {}
    stages = [(stage, block) for stage, depth in enumerate(depths) for block in range(depth)]
    for name, tensor in trunk.state_dict().items():
        if name.startswith("blocks."):
            _, number, rest = name.split(".", 2)
            stage, block = stages[int(number)]
            name = f"layers.{stage}.blocks.{block}.{rest}"
        for ours, theirs in (
            ("merges.", "layers."),
            ("patch_norm.", "patch_embed.norm."),
            (".norm1.", ".layernorm_before."),
            (".norm2.", ".layernorm_after."),
            (".mlp.fc1.", ".intermediate.dense."),
            (".mlp.fc2.", ".output.dense."),
            (".attn.proj.", ".attention.output.dense."),
            (".attn.bias_table", ".attention.self.relative_position_bias_table"),
        ):
            name = name.replace(ours, theirs)
        name = name.replace(".norm.", ".downsample.norm.") if name.startswith("layers.") else name
        name = name.replace(".reduction.", ".downsample.reduction.")
        if name.startswith("projection."):
            name = name.replace("projection.0.", "audio_projection.linear1.")
            name = name.replace("projection.2.", "audio_projection.linear2.")
            weights[name] = tensor
        elif ".attn.qkv." in name:
            for part, third in zip(("query", "key", "value"), tensor.chunk(3), strict=True):
                weights[f"audio_model.audio_encoder.{name.replace('attn.qkv', f'attention.self.{part}')}"] = third
        else:
            weights[f"audio_model.audio_encoder.{name}"] = tensor
    return {
        **weights,
        INDEX_NAME: INDEX,
        "text_model.pooler.dense.bias": torch.zeros(3),
        "logit_scale_t": torch.ones(()),
    }


INDEX_NAME = "audio_model.audio_encoder.layers.0.blocks.1.attention.self.relative_position_index"


def test_a_file_in_safetensors_is_read_with_its_sizes(tmp_path):
    trunk = small("clap-htsat-unfused").trunk
    weights = {name: tensor.contiguous() for name, tensor in hugging_face(trunk).items()}
    safetensors = pytest.importorskip("safetensors.torch")
    safetensors.save_file(weights, tmp_path / "model.safetensors")
    (tmp_path / "config.json").write_text('{"model_type": "clap"}')
    (tmp_path / "preprocessor_config.json").write_text('{"sampling_rate": 48000}')
    model = clap.load_model(tmp_path)
    torch.testing.assert_close(model.trunk.state_dict(), trunk.state_dict(), rtol=0, atol=0)
    assert catalogue.family_of_checkpoint(str(tmp_path / "model.safetensors")) == "clap"


def test_other_windows_are_refused(tmp_path):
    weights = hugging_face(small("clap-htsat-unfused").trunk)
    torch.save({**weights, INDEX_NAME: INDEX.T.contiguous()}, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"its windows are not of 8 x 8 patches: blocks\.1\.attn\.relative_position"):
        clap.load_model(tmp_path / "net.pt")


def test_a_file_without_a_tensor_is_refused(tmp_path):
    weights = hugging_face(small("clap-htsat-unfused").trunk)
    del weights["audio_projection.linear2.bias"]
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"1 missing: projection\.2\.bias"):
        clap.load_model(tmp_path / "net.pt")


# Lengths


@pytest.mark.parametrize("variant", ["clap-htsat-unfused", "clap-htsat-fused"])
def test_clips_of_different_lengths_in_a_batch_are_embedded_as_alone(variant):
    model = small(variant)
    clips = [noise(n_samples, seed=n_samples) / 10 for n_samples in (1, 4_000, 480_000, 490_000, 900_000)]
    together = model.encode(clips, sampling_rate=RATE, batch_size=4)
    for found, clip in zip(together, clips, strict=True):
        assert_equal(found, model.embed_scenes(clip[None])[0], 1e-5)


def test_many_short_clips_are_as_large_a_batch_as_those_they_are_repeated_to():
    model = small("clap-htsat-unfused")
    assert model.batch_size_for(1, model.variant.scene) == model.batch_size_for(480_000, model.variant.scene) == 2


def test_frames_lie_where_their_audio_is():
    """A click is found in the middle of clips, whole chunks and the joints between them included."""
    for at in (140_000, 500_000, 703_000, 1_190_000):
        clip = torch.zeros(1, 1_200_000)
        clip[:, at : at + 480] = noise(1, 480)
        model = small("clap-htsat-unfused", layer=0, hop_ms=10)
        silence = model.embed_timestamps(torch.zeros_like(clip))[0]
        embeddings, centres_ms = model.embed_timestamps(clip)
        change = (embeddings - silence)[0].norm(dim=1)
        # A patch sees 81 ms, an interpolated one 39 ms more on either side.
        assert centres_ms[change > 1e-3 * change.max()].min() >= (at - 6_000) / 48
        assert centres_ms[change > 1e-3 * change.max()].max() <= (at + 6_480) / 48


def test_layers_whose_times_never_coincide_are_refused_together():
    small("clap-htsat-unfused", layer="0,5,norm", framing="native")
    for variant in ("clap-htsat-unfused", "clap-htsat-fused"):
        with pytest.raises(OptionError, match=r"cannot read mel, norm of clap/\S+ together"):
            small(variant, layer="mel,norm", framing="native")


def test_long_clips_are_fused_and_their_frames_read_in_chunks():
    model = small("clap-htsat-fused")
    assert model.variant.scene.window_ms == 120_000
    assert model.variant.timestamps[0].window_ms == 10_000
    with pytest.raises(OptionError, match="to 10009"):
        small("clap-htsat-fused", window_ms=20_000)
    clip = noise(1, 1_440_000) / 10
    whole = model.embed_scenes(clip)
    moved = clip.roll(240_000, 1)  # of which the shrunk clip and crops are others
    assert (whole - model.embed_scenes(moved)).abs().max() > 1e-4 * whole.abs().max()
    torch.testing.assert_close(whole, model.embed_scenes(clip), rtol=0, atol=0)


def test_times_without_a_choice_are_those_of_the_last_layer():
    _, centres_ms = small("clap-htsat-unfused").embed_timestamps(noise(1, 480_000) / 10)
    assert centres_ms[-1] == 10_000
    axis = clap.time_axis(3)
    assert float(axis.hop) * 10 == pytest.approx(312.8, abs=0.05)
    assert axis.offset + 31 * float(axis.hop) == pytest.approx(1000 - axis.offset)
