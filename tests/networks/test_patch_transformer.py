"""Dasheng and CED against what the authors' own code answers (tests/data/golden)."""

import importlib.util
import json
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor

from hear_transformers import ced, dasheng
from hear_transformers.benchmarks import peers
from hear_transformers.checkpoints import state_dicts
from hear_transformers.checkpoints.loading import recognise
from hear_transformers.checkpoints.state_dicts import Content
from hear_transformers.networks import counting
from hear_transformers.networks.family import on_meta
from hear_transformers.networks.frontend import XIAOMI_MEL
from hear_transformers.training.initialisation import init_from
from tests.helpers.golden import GOLDEN, assert_equal, by_size, golden_audio, golden_state_dict, small_build

# Golden answers: family, variant, what differs from it.
NETWORKS = {
    "ced-tiny": (ced, "ced_tiny", {}),
    "ced-mini": (ced, "ced_mini", {}),
    "dasheng-base": (dasheng, "dasheng_base", {}),
    "dasheng-06B_depth2": (dasheng, "dasheng_06B", {"depth": 2}),
}
SMALL = {"dim": 48, "depth": 2, "heads": 3}
small_dasheng, small_ced = partial(small_build, dasheng, SMALL), partial(small_build, ced, SMALL)


def noise(clips: int, n_samples: int) -> Tensor:
    return torch.rand(clips, n_samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


# The authors' numbers

QUIET_DB = -60.0
"""Below, the rounding of a Fourier transform shows in decibels: by 0.01 between two kinds of processors."""


class Golden:
    """A network with the weights of a golden file, and its answers."""

    def __init__(self, name: str) -> None:
        module, variant, network = NETWORKS[name]
        with np.load(GOLDEN / f"{name}.npz") as answers:
            self.answers = dict(answers)
        self.model = small_build(module, network, variant)
        weights = module.convert_state_dict(golden_state_dict(GOLDEN / f"{name}.json"), self.model.variant)
        state_dicts.load_into(self.model.trunk, weights, name, unused=module.FAMILY.unused)

    def clips(self, kind: str = "") -> Tensor:
        return golden_audio(16_000, int(self.answers[f"{kind}n_samples"]))

    @torch.no_grad()
    def taps(self, clips: Tensor) -> dict[str, Tensor]:
        mel = self.model.frontend(clips)
        return {"mel": mel, "input": self.model.trunk.init_bn(mel), **self.model.trunk(mel, [*self.model.trunk.layers])}


@pytest.fixture(scope="module", params=by_size(NETWORKS, {"ced-tiny"}))
def golden(request):
    return Golden(request.param)


@pytest.fixture(scope="module")
def taps(golden):
    return golden.taps(golden.clips())


def tokens(grid: Tensor) -> Tensor:
    """Put tokens into the order of the authors' code, frequency-major: (batch, tokens, dim)."""
    return grid.transpose(1, 2).flatten(1, 2)


def test_the_mel_and_the_networks_input_are_the_authors(golden, taps):
    assert taps["mel"].shape == tuple(golden.answers["logmel_shape"])
    mel, expected = taps["mel"][:, :, ::64].numpy(), golden.answers["logmel"]
    quiet = expected < QUIET_DB
    assert_equal(np.where(quiet, expected, mel), expected)
    np.testing.assert_allclose(mel[quiet], expected[quiet], rtol=0, atol=0.05)
    assert_equal(taps["input"][:, :, ::64], golden.answers["input"])


def test_every_block_gives_the_authors_tokens(golden, taps):
    for i in range(1, len(golden.model.trunk.blocks) + 1):
        assert_equal(taps[str(i)].mean((1, 2))[:, :64], golden.answers[f"tap_mean_block{i}"])


def test_tokens_are_in_the_authors_order(golden, taps):
    answers, index = golden.answers, golden.answers["tokens_index"]
    (layer,) = (name.removeprefix("tokens_block") for name in answers if name.startswith("tokens_block"))
    assert tokens(taps[layer]).shape == tuple(answers["tap_shape"])
    assert_equal(tokens(taps[layer])[:, index], answers[f"tokens_block{layer}"])
    assert_equal(tokens(taps["norm"])[:, index], answers["features_tokens"])


def test_what_a_classifier_says_is_the_authors(golden, taps):
    assert ("logits" in golden.answers) == ("logits" in taps)
    if "logits" in taps:
        assert_equal(taps["logits"], golden.answers["logits"])
        assert_equal(taps["logits"].sigmoid(), golden.answers["probs"])


def test_the_embedding_is_the_authors(golden, taps):
    assert_equal(taps["features"], golden.answers["embedding"])


@pytest.mark.parametrize("kind", ["short_", "long_"])
def test_clips_of_other_lengths_have_the_authors_tokens(golden, kind):
    answers, taps = golden.answers, golden.taps(golden.clips(kind))
    assert tokens(taps["norm"]).shape[1] == answers[f"{kind}tokens"]
    if f"{kind}features_tokens" in answers:
        assert_equal(tokens(taps["norm"])[:, answers[f"{kind}tokens_index"]], answers[f"{kind}features_tokens"])
    if f"{kind}logits" in answers:
        assert_equal(taps["logits"], answers[f"{kind}logits"])
    assert_equal(golden.model.embed_scenes(golden.clips(kind)), answers[f"{kind}embedding"])


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["dasheng-base", "dasheng-06B_depth2"], indirect=True)
def test_what_the_authors_mask_has_no_effect(golden, taps):
    answers = golden.answers
    whole, cut = answers["padded_n_samples"]
    padded = torch.cat([golden.clips()[:1, :cut], torch.zeros(1, whole - cut)], 1)
    # In their code 640 samples are a token. The last one sees the zeros behind the clip.
    n_frames = cut // 640 * 4
    with torch.no_grad():
        of_cut = golden.model.trunk(golden.model.frontend(padded)[..., :n_frames], ["norm"])["norm"]
    index = answers["padded_index"]
    valid = index < n_frames // 4
    assert_equal(tokens(taps["norm"])[:1, index], answers["padded_features_tokens"][:1])
    assert_equal(tokens(of_cut)[:, index[valid]], answers["padded_features_tokens"][1:, valid])


@pytest.mark.slow
@pytest.mark.parametrize("golden", ["ced-mini"], indirect=True)
def test_pieces_of_a_long_clip_have_the_authors_probabilities(golden, monkeypatch):
    trunk = golden.model.trunk
    with torch.no_grad():
        normalised = trunk.init_bn(golden.model.frontend(golden.clips("split_")))
        # They cut after the normalisation, and fill with zeros.
        filled = torch.nn.functional.pad(normalised, (0, -normalised.shape[2] % ced.LONGEST_FRAMES))
        monkeypatch.setattr(trunk, "init_bn", torch.nn.Identity())
        found = [trunk(piece, ["logits"])["logits"].sigmoid() for piece in filled.split(ced.LONGEST_FRAMES, 2)]
    assert_equal(torch.stack(found).mean(0), golden.answers["split_probs"])


@pytest.mark.slow
@pytest.mark.skipif(importlib.util.find_spec("dasheng") is None, reason="dasheng is not installed")
@pytest.mark.parametrize("seconds", [0.7, 10.08, 12.5])
def test_scenes_equal_the_installed_dasheng(seconds):
    theirs = peers.DashengPackage("cpu", embed_dim=48, depth=2, num_heads=3)
    family = replace(dasheng.FAMILY, variants={"dasheng_base": small_dasheng("dasheng_base").variant})
    ours = peers.build_ours(family, "dasheng_base", theirs.model.state_dict())
    clip = golden_audio(16_000, int(16_000 * seconds))[:1]
    with torch.no_grad():
        expected = theirs.model(clip).mean(1)
    assert_equal(ours.embed_scenes(clip), expected)


# Levels and lengths


def test_the_lowest_level_of_a_clip_is_its_own():
    clips = noise(2, 8_000) * torch.tensor([[1.0], [1e-3]])
    clips[:, 4_000:] = 0
    frontend = XIAOMI_MEL.build()
    together = frontend(clips)
    torch.testing.assert_close(together, torch.cat([frontend(clip[None]) for clip in clips]), rtol=0, atol=1e-6)
    loudest = together.amax((1, 2))
    torch.testing.assert_close(together.amin((1, 2)), (loudest - 120).clamp(min=-100), rtol=0, atol=1e-4)


@pytest.mark.parametrize(("small", "variant"), [(small_dasheng, "dasheng_base"), (small_ced, "ced_tiny")])
@pytest.mark.parametrize("n_samples", [1, 256, 2_399, 161_919, 161_920, 400_000])
def test_clips_of_any_length_are_embedded(small, variant, n_samples):
    model = small(variant)
    assert model.embed_scenes(noise(2, n_samples)).isfinite().all()
    assert model.embed_timestamps(noise(1, n_samples))[0].isfinite().all()


def test_scenes_of_ced_are_read_in_one_pass_where_the_authors_do_not_cut():
    model = small_ced("ced_tiny")
    clip = noise(1, XIAOMI_MEL.max_samples(ced.LONGEST_FRAMES))
    with torch.no_grad():
        expected = model.trunk(model.frontend(clip), ["features"])["features"]
    torch.testing.assert_close(model.embed_scenes(clip), expected)


def test_pieces_of_a_long_input_do_not_see_each_other():
    trunk = small_build(dasheng, {**SMALL, "time_positions": 5}, "dasheng_base").trunk
    frames = torch.randn(2, 64, 47, generator=torch.Generator().manual_seed(0))  # 5 + 5 + 1 tokens, 3 frames left
    with torch.no_grad():
        found = trunk(frames, ["1", "norm", "features"])
        pieces = [trunk(piece, ["1", "norm"]) for piece in (frames[..., :20], frames[..., 20:40], frames[..., 40:])]
    for layer in ("1", "norm"):
        torch.testing.assert_close(found[layer], torch.cat([piece[layer] for piece in pieces], 1), rtol=0, atol=1e-5)
    torch.testing.assert_close(found["features"], found["norm"].mean((1, 2)))


@pytest.mark.parametrize(
    ("small", "variant", "field"), [(small_dasheng, "dasheng_base", 62), (small_ced, "ced_tiny", 182)]
)
def test_frames_of_native_timestamps_lie_where_their_audio_is(small, variant, field):
    clip = torch.zeros(1, 48_000)
    clip[:, 24_000:24_016] = noise(1, 16)
    model = small(variant, layer=0, hop_ms=10)
    embeddings, centres_ms = model.embed_timestamps(clip)
    # Silent frames lie 120 dB below the loudest, or at -100 dB: they are alike but for their positions.
    silent, _ = model.embed_timestamps(torch.zeros_like(clip))
    changed = (embeddings - silent)[0].norm(dim=1)
    changed = changed > 0.1 * changed.max()
    assert abs(centres_ms[changed].mean() - 1_500.5) <= field / 2
    assert centres_ms[changed].max() - centres_ms[changed].min() <= 3 * field


# Files


def with_prefix(prefix: str, weights: dict[str, Tensor]) -> dict[str, Tensor]:
    return {f"{prefix}{name}": tensor for name, tensor in weights.items()}


def authors(model, **parts: str) -> dict[str, Tensor]:
    """Rename the weights of a model, whose `parts` have other names with the authors."""
    renamed = {}
    for name, tensor in model.trunk.state_dict().items():
        part, _, rest = name.partition(".")
        renamed[f"{parts.get(part, part)}.{rest}" if rest else name] = tensor
    return renamed


FRONT_END = {
    "front_end.0.spectrogram.window": torch.hann_window(512),
    "front_end.0.mel_scale.fb": torch.zeros(257, 64),
}


def assert_is(found, model) -> None:
    torch.testing.assert_close(found.trunk.state_dict(), model.trunk.state_dict(), rtol=0, atol=0)
    assert found.trunk.layers == model.trunk.layers


@pytest.mark.parametrize("variant", ["dasheng_base", "dasheng_audioset"])
def test_files_of_dasheng_load(variant, tmp_path):
    model = small_dasheng(variant)
    weights = authors(model, init_bn="init_bn.1", head="classifier")
    encoder = {name: tensor for name, tensor in weights.items() if not name.startswith("classifier.")}
    beside = {name: tensor for name, tensor in weights.items() if name.startswith("classifier.")}
    layouts = {
        "tuned": {**with_prefix("dashengmodel.", {**FRONT_END, **encoder}), **beside},
        "ours": dict(model.trunk.state_dict()),
    }
    if not beside:
        layouts |= {
            "zenodo": {"model": {**FRONT_END, **encoder}, "config": {"embed_dim": 48}},
            "hub": with_prefix("encoder.", encoder),
            "glap": with_prefix("audio_encoder.", encoder),
        }
    for name, content in layouts.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert_is(small_dasheng(variant, path=tmp_path / f"{name}.pt", pretrained=True), model)


def test_files_of_ced_load(tmp_path):
    model = small_ced("ced_tiny")
    zenodo = {**FRONT_END, **authors(model, init_bn="init_bn.1", head="outputlayer")}
    hub = {
        name if name.startswith("outputlayer.") else f"encoder.{name}": tensor
        for name, tensor in authors(model, head="outputlayer").items()
    }
    for name, content in {"zenodo": zenodo, "wrapped": {"model": zenodo}, "hub": hub}.items():
        torch.save(content, tmp_path / f"{name}.pt")
        assert_is(small_ced("ced_tiny", path=tmp_path / f"{name}.pt", pretrained=True), model)


def test_a_folder_of_hugging_face_says_the_names_of_classes(tmp_path):
    model = small_build(ced, {**SMALL, "n_classes": 2}, "ced_tiny")
    hub = with_prefix("encoder.", authors(model, head="outputlayer"))
    hub = {name.replace("encoder.outputlayer.", "outputlayer."): tensor for name, tensor in hub.items()}
    safetensors.torch.save_file(hub, tmp_path / "model.safetensors")
    config = {"model_type": "ced", "n_mels": 64, "id2label": {"0": "wren", "1": "owl"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    (tmp_path / "preprocessor_config.json").write_text(json.dumps({"sampling_rate": 16_000, "f_max": 8_000}))
    found = small_ced("ced_tiny", path=tmp_path, pretrained=True)
    assert_is(found, model)
    assert found.labels == ("wren", "owl")


@pytest.mark.parametrize(("module", "variant"), [(dasheng, "dasheng_06B"), (dasheng, "dasheng_12B"), (ced, "ced_base")])
def test_the_tensors_say_which_variant_a_file_is_for(module, variant):
    held = on_meta(module.FAMILY, module.VARIANTS[variant]).state_dict()
    weights = {name: torch.zeros(()).expand(tensor.shape) for name, tensor in held.items()}
    assert recognise(module.FAMILY, Content(weights), Path("net.pt"), (), network={}) == variant


def test_training_starts_from_an_encoder_of_another_length(tmp_path):
    family = replace(dasheng.FAMILY, variants={"dasheng_base": small_dasheng("dasheng_base").variant})
    shorter = small_build(dasheng, {**SMALL, "time_positions": 100}, "dasheng_base").trunk
    torch.save(shorter.state_dict(), tmp_path / "net.pt")
    trunk, drawn = init_from(family, "dasheng_base", str(tmp_path / "net.pt"), n_classes=3)
    assert drawn == ["head"]
    assert trunk.time_pos_embed.shape == (1, 48, 1, 252)
    assert trunk.head[1].out_features == 3


# Size


@pytest.mark.parametrize(
    ("module", "variant", "parameters"),
    [
        (dasheng, "dasheng_base", 85_447_808),
        (dasheng, "dasheng_06B", 630_333_568),
        (dasheng, "dasheng_12B", 1_134_047_360),
        (ced, "ced_tiny", 5_503_183),
        (ced, "ced_mini", 9_696_655),
        (ced, "ced_small", 21_622_543),
        (ced, "ced_base", 85_711_759),
    ],
)
def test_network_has_the_authors_number_of_parameters(module, variant, parameters):
    assert counting.count_parameters(module.FAMILY, module.VARIANTS[variant]) == parameters
