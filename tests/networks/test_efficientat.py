"""EfficientAT against what the authors' own code answers (tests/data/golden), and one real checkpoint on real audio.

Frame-MobileNets against what PretrainedSED answers, and S-SONDO's networks against what their authors' code answers. On
the weights of EfficientAT's own golden answers a DyMN goes deaf after a few blocks; that the rest of it is right is
what S-SONDO's tell, whose weights keep the signal alive in the same network. MN also has a real checkpoint.
"""

import csv
import json
import math
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import catalogue, efficientat
from hear_transformers.audio import reading
from hear_transformers.benchmarks import peers
from hear_transformers.checkpoints import published, state_dicts
from hear_transformers.errors import WeightsError
from hear_transformers.labels import audioset_strong_labels
from hear_transformers.networks import conv_norm
from tests.helpers.golden import (
    assert_clips_differ_alike,
    assert_equal,
    by_size,
    golden_audio,
    golden_state_dict,
    noise,
    small_build,
    tells_clips_apart,
)

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SHARED = Path(__file__).parents[2].parent / "shared"
NETWORKS = ("mn01_as", "mn04_as", "mn10_as", "mn40_as", "dymn04_as", "dymn10_as")
KINDS = ("mn01_as", "mn10_as_fc_s2211", "dymn04_as", "dymn04_replace_se_as", "frame_mn06_strong")

MN40 = ("mn40_as", "mn40_as_no_im_pre", "mn40_as_ext")
MN10 = ("hop_5", "hop_15", "hop_20", "hop_25", "mels_40", "mels_64", "mels_256")
PARAMETERS = {
    "mn01_as": 123_783,
    "mn02_as": 324_695,
    "mn04_as": 983_599,
    "mn05_as": 1_431_239,
    "mn10_as": 4_876_831,
    **{f"mn10_as_{frontend}": 4_876_831 for frontend in MN10},
    "mn20_as": 17_909_287,
    "mn30_as": 39_086_367,
    **{f"{name}{run}": 68_427_303 for name in MN40 for run in ("", "(2)", "(3)")},
    **{f"mn10_as_fc{strides}": 3_478_638 for strides in ("", "_s2221", "_s2211")},
    "dymn04_as": 1_961_239,
    "dymn10_as": 10_548_479,
    **{f"dymn20_as{run}": 39_966_143 for run in ("", "(1)", "(2)", "(3)")},
    "dymn04_replace_se_as": 1_829_287,
    "dymn10_replace_se_as": 9_833_935,
    "frame_mn10_strong": 3_830_798,
    "frame_mn06_strong": 1_615_022,
    **{f"{teacher}_mobilenetv3": 9_120_784 for teacher in ("matpac", "m2d")},
    **{f"{teacher}_dymn": 14_792_432 for teacher in ("matpac", "m2d")},
}
"""Of the networks that the authors' code builds."""


def build(variant: str) -> efficientat.EfficientAT:
    torch.manual_seed(0)
    return efficientat.EfficientAT(**efficientat.VARIANTS[variant].network).eval()


# The authors' numbers


@pytest.fixture(scope="module", params=by_size(NETWORKS, {"mn01_as", "mn04_as", "dymn04_as"}))
def network(request):
    variant = request.param
    with np.load(GOLDEN / f"efficientat-{variant}.npz") as answers:
        answers = dict(answers)
    model = efficientat.load_model(variant=variant, pretrained=False)
    state_dict = golden_state_dict(GOLDEN / f"efficientat-{variant}.json")
    state_dicts.load_into(
        model.trunk, efficientat.convert_state_dict(state_dict, efficientat.VARIANTS[variant]), variant
    )
    # The golden answers count the blocks of a DyMN from 0 and leave out its stem and last map.
    shift = 1 if variant.startswith("dymn") else 0
    with torch.no_grad():
        mel = model.frontend(golden_audio(32_000, int(answers["n_samples"])))
        taps = model.trunk(mel, list(model.trunk.layers))
    return answers, {"mel": mel[:, :, ::64], **taps}, shift


@pytest.mark.parametrize("layer", ["mel", "features", "logits"])
def test_network_gives_the_authors_numbers(network, layer):
    answers, taps, _ = network
    assert_equal(taps[layer], answers[layer])
    assert_clips_differ_alike(taps[layer], answers[layer])


def test_every_block_gives_the_authors_map(network):
    answers, taps, shift = network
    names = [name for name in answers if name.startswith("tap_mean_features")]
    assert len(names) == 17 - 2 * shift
    for name in names:
        grid = taps[str(int(name.removeprefix("tap_mean_features")) + shift)]
        assert grid.permute(0, 3, 2, 1).shape == tuple(answers[name.replace("mean", "shape")])
        assert_equal(grid.mean((1, 2)), answers[name])
        assert_clips_differ_alike(grid.mean((1, 2)), answers[name])


@pytest.mark.slow
@pytest.mark.parametrize("variant", efficientat.VARIANTS)
def test_network_has_the_authors_size(variant):
    with torch.device("meta"):
        trunk = efficientat.EfficientAT(**efficientat.VARIANTS[variant].network)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == PARAMETERS[variant]


def test_every_published_checkpoint_of_audio_is_a_variant():
    rows = [row for (family, _), row in published.manifest().items() if family == "efficientat"]
    assert set(efficientat.VARIANTS) == {row.name for row in rows if row.trained_on != "ImageNet"}


# Layers


@pytest.mark.parametrize("variant", KINDS)
def test_runs_no_deeper_than_asked(variant):
    trunk = build(variant)
    executed = []
    for number, stage in enumerate(trunk.features):
        stage.register_forward_pre_hook(lambda *_, number=number: executed.append(number))
    with torch.no_grad():
        taps = trunk(noise(1, 128, 20), ["2", "5"])
    assert executed == [0, 1, 2, 3, 4, 5]
    assert set(taps) == {"2", "5"}


@pytest.mark.slow
@pytest.mark.parametrize("variant", KINDS)
def test_features_are_the_mean_of_the_last_map(variant):
    with torch.no_grad():
        taps = build(variant)(noise(2, 128, 50), ["16", "features"])
    torch.testing.assert_close(taps["16"].mean((1, 2)), taps["features"])


@pytest.mark.parametrize("variant", KINDS)
def test_one_frame_is_enough(variant):
    trunk = build(variant)
    assert trunk.min_frames == 1
    with torch.no_grad():
        taps = trunk(noise(1, 128, 1), list(trunk.layers))
    assert all(tap.isfinite().all() for tap in taps.values())


@pytest.mark.slow
@pytest.mark.parametrize("variant", KINDS)
def test_windows_of_a_batch_do_not_see_each_other(variant):
    trunk = build(variant)
    mel = noise(5, 128, 20)
    with torch.no_grad():
        together = trunk(mel, ["logits"])["logits"]
        alone = torch.cat([trunk(window, ["logits"])["logits"] for window in mel.split(1)])
    assert_equal(together, alone.numpy(), tolerance=1e-5)


@pytest.mark.parametrize(
    ("variant", "hop_ms", "n_mels"),
    [
        ("mn10_as", 10, 128),
        ("mn10_as_hop_5", 5, 128),
        ("mn10_as_hop_15", 15, 128),
        ("mn10_as_hop_20", 20, 128),
        ("mn10_as_hop_25", 25, 128),
        ("mn10_as_mels_40", 10, 40),
        ("mn10_as_mels_64", 10, 64),
        ("mn10_as_mels_256", 10, 256),
    ],
)
def test_variant_reads_its_own_mel(variant, hop_ms, n_mels):
    frontend = efficientat.VARIANTS[variant].frontend
    assert (frontend.hop_ms, frontend.n_mels) == (hop_ms, n_mels)


def test_embedding_of_the_authors_hear_entry_is_mel_and_four_blocks():
    model = efficientat.load_model(variant="mn04_as", layer="mel,5,11,13,15", pretrained=False)
    assert model.scene_embedding_size == 128 + 16 + 48 + 64 + 64


# Time


def frames_seen(trunk: efficientat.EfficientAT, layer: str, position: int, n_frames: int) -> torch.Tensor:
    """Give the mel frames that one position of a layer depends on."""
    mel = noise(1, 128, n_frames).requires_grad_()
    trunk(mel, [layer])[layer][0, position].square().sum().backward()
    return mel.grad[0].abs().amax(0).nonzero().flatten()


def blind_to_the_window(trunk: efficientat.EfficientAT) -> efficientat.EfficientAT:
    """Take away what a squeeze-and-excitation sees, so that only convolutions look around."""
    for module in trunk.modules():
        if isinstance(module, efficientat.SqueezeExcitation):
            torch.nn.init.zeros_(module.fc2.weight)
    return trunk


@pytest.mark.slow
@pytest.mark.parametrize("layer", ["0", "2", "5", "8", "11"])
@pytest.mark.parametrize("variant", ["mn01_as", "mn10_as_fc_s2211"])
def test_positions_lie_where_the_time_axis_says(variant, layer):
    trunk = blind_to_the_window(build(variant))
    axis = trunk.layers[layer]
    seen = frames_seen(trunk, layer, 200 // axis.hop, n_frames=401)
    assert (seen[0] + seen[-1]) / 2 == 200 // axis.hop * axis.hop + axis.offset


@pytest.mark.parametrize("layer", ["0", "1", "2", "3"])
def test_field_is_what_a_position_sees(layer):
    trunk = build("mn01_as")
    axis = trunk.layers[layer]
    seen = frames_seen(trunk, layer, 10, n_frames=100)
    assert seen[-1] - seen[0] + 1 == axis.receptive_field


@pytest.mark.parametrize(("variant", "layer"), [("mn01_as", "4"), ("dymn04_as", "1"), ("dymn04_replace_se_as", "4")])
def test_first_layer_without_a_field_sees_the_whole_window(variant, layer):
    trunk = build(variant)
    assert trunk.layers[str(int(layer) - 1)].receptive_field is not None
    assert trunk.layers[layer].receptive_field is None
    assert len(frames_seen(trunk, layer, 0, n_frames=300)) == 300


# Training


@pytest.mark.slow
@pytest.mark.parametrize("variant", KINDS)
def test_every_parameter_learns(variant):
    trunk = build(variant).train()
    trunk(noise(2, 128, 100), ["logits"])["logits"].square().sum().backward()
    unused = [name for name, _ in trunk.named_parameters() if name.startswith("strong_head.")]
    assert [name for name, parameter in trunk.named_parameters() if parameter.grad is None] == unused


def test_folded_normalisation_changes_nothing():
    stage = efficientat.ConvNorm(3, 8, 3, stride=2, act=torch.nn.Hardswish)
    maps = noise(2, 3, 20, 30)
    stage(maps)  # training mode: gives the normalisation statistics to work with
    stage.eval()
    torch.testing.assert_close(conv_norm.fold(stage)(maps), stage(maps))


# The same networks of others

OTHERS = {
    "frame_mn06_strong": "frame_mn06_strong",
    "frame_mn10_strong": "frame_mn10_strong",
    "ssondo-mobilenetv3": "matpac_mobilenetv3",
    "ssondo-dymn": "matpac_dymn",
}
"""Golden answers, and the first variant with that network."""
ROUNDED = ("tap_mean_features10", "tap_mean_features11")
"""Of S-SONDO's DyMN: the authors' float32 is 1.6e-4 of the largest magnitude from float64, ours 1.1e-4 from theirs."""


@pytest.fixture(scope="module", params=by_size(OTHERS, {"frame_mn06_strong", "ssondo-mobilenetv3"}))
def other(request, tmp_path_factory):
    """Load a file in its authors' layout by its path alone, with the answers to it."""
    golden, folder = request.param, tmp_path_factory.mktemp("other")
    with np.load(GOLDEN / f"{golden}.npz") as answers:
        answers = dict(answers)
    weights = golden_state_dict(GOLDEN / f"{golden}.json")
    is_ssondo = golden.startswith("ssondo")
    torch.save({"state_dict": weights, "training_config": {"sr": 32_000}} if is_ssondo else weights, folder / "net.pt")
    return golden, answers, efficientat.load_model(folder / "net.pt")


def test_answers_tell_the_clips_apart_but_for_those_of_a_dymn(network):
    answers, _, shift = network
    is_dymn = shift == 1
    heard = [name for name in answers if name.startswith("tap_mean_features") and tells_clips_apart(answers[name])]
    assert heard[:3] == [f"tap_mean_features{i}" for i in range(3)]
    assert (len(heard) < 17) == is_dymn
    assert tells_clips_apart(answers["logits"]) != is_dymn


def test_answers_of_the_others_tell_the_clips_apart(other):
    _, answers, _ = other
    taps = [answers[name] for name in answers if name.startswith("tap_mean_features")]
    assert min(np.abs(tap[0] - tap[1]).max() / np.abs(tap).max() for tap in taps) > 0.1


@torch.no_grad()
def test_every_map_is_that_of_the_others(other):
    golden, answers, model = other
    assert model.name == ("efficientat", OTHERS[golden])
    mel = model.frontend(golden_audio(model.sample_rate, int(answers["n_samples"])))
    assert mel[:, None].shape == tuple(answers["mel_shape"])
    assert_equal(mel[:, None, :, ::64], answers["mel"])
    taps = model.trunk(mel, list(model.trunk.layers))
    shift = 1 if golden == "ssondo-dymn" else 0
    names = [name for name in answers if name.startswith("tap_mean_features")]
    assert len(names) == 17 - 2 * shift
    for name in names:
        grid = taps[str(int(name.removeprefix("tap_mean_features")) + shift)]
        assert grid.permute(0, 3, 2, 1).shape == tuple(answers[name.replace("mean", "shape")])
        assert_equal(grid.mean((1, 2)), answers[name], 3e-4 if shift and name in ROUNDED else 1e-4)
    if golden.startswith("frame"):
        # Single frames to 3e-4, as the log-mel of nearly silent bins is rounded differently by each processor.
        assert_equal(taps["16"][:, answers["base_index"], 0], answers["base_tokens"], 3e-4)
        assert_equal(taps["16"][:, answers["sequence_index"], 0], answers["sequence_frames"], 3e-4)
        assert_equal(taps["framewise"][:, ::25, 0].transpose(1, 2), answers["strong"], 3e-4)
        assert_equal(taps["logits"], answers["weak"])
    else:
        assert_equal(taps["features"][:, None], answers["embeddings"])
        assert taps["projected"].shape == tuple(answers["projected_shape"])
        assert_equal(taps["projected"][:, ::8], answers["projected"])


@torch.no_grad()
def test_another_length_is_that_of_the_others(other):
    golden, answers, model = other
    mel = model.frontend(golden_audio(model.sample_rate, int(answers["other_n_samples"])))
    taps = model.trunk(mel, ["16", "features"])
    if golden.startswith("frame"):
        assert taps["16"].squeeze(2).shape == tuple(answers["other_base_shape"])
        assert_equal(taps["features"], answers["other_base_mean"])
    else:
        assert_equal(taps["features"][:, None], answers["other_embeddings"])


@pytest.mark.parametrize("seconds", [0.05, 0.3, 3.7, 12.0])
@pytest.mark.parametrize("variant", ["frame_mn06_strong", "matpac_mobilenetv3", "m2d_dymn"])
def test_clips_of_a_batch_are_what_they_are_alone(variant, seconds):
    layers = "features,framewise,logits" if variant.startswith("frame") else "features,projected"
    model = small_build(efficientat, {"width": 0.1}, variant, layer=layers)
    clips = noise(3, round(seconds * model.sample_rate)) * torch.tensor([[1.0], [0.1], [0.0]])
    together, alone = model.embed_scenes(clips), torch.cat([model.embed_scenes(clip[None]) for clip in clips])
    assert_equal(together, alone, 1e-5)


def test_classes_of_frames_have_names():
    model = efficientat.load_model(variant="frame_mn06_strong", layer="framewise", hop_ms=40, pretrained=False)
    assert model.timestamp_embedding_size == len(audioset_strong_labels())
    assert efficientat.VARIANTS["frame_mn06_strong"].labels is audioset_strong_labels


def in_layout_of(trunk: efficientat.EfficientAT, before: str, renamed: dict[str, str]) -> dict[str, torch.Tensor]:
    """Name tensors as others do: `before` all names but those that begin otherwise."""
    theirs = {}
    for name, tensor in trunk.state_dict().items():
        ours = next((part for part in renamed if name.startswith(part)), "")
        theirs[renamed[ours] + name.removeprefix(ours) if ours else before + name] = tensor
    return theirs


SED = ("model.frame_mn.", {"weak_head.": "weak_head.", "strong_head.": "strong_head."})
SSONDO = ("student_model.model.", {"projection.": "student_model.classification_head.mlp."})


@pytest.mark.parametrize("width", [0.1, 0.4, 2.0])
def test_frame_mobilenets_of_any_width_load_with_the_variant(width, tmp_path):
    trunk = small_build(efficientat, {"width": width}, "frame_mn10_strong").trunk
    torch.save(in_layout_of(trunk, *SED), tmp_path / "net.pt")
    model = efficientat.load_model(tmp_path / "net.pt", "frame_mn10_strong")
    torch.testing.assert_close(model.trunk.state_dict(), trunk.state_dict(), rtol=0, atol=0)
    assert model.variant.frontend == efficientat.SED_MEL
    for variant in (None, "mn10_as"):
        with pytest.raises(WeightsError, match=r"of a frame-MobileNet, .* choose the variant frame_mn10_strong"):
            efficientat.load_model(tmp_path / "net.pt", variant)


@pytest.mark.parametrize(("variant", "layout"), [("frame_mn10_strong", SED), ("m2d_dymn", SSONDO)])
def test_a_file_of_others_is_not_read_as_one_of_the_authors(variant, layout, tmp_path):
    trunk = efficientat.load_model(variant=variant, pretrained=False).trunk
    torch.save({"state_dict": in_layout_of(trunk, *layout)}, tmp_path / "net.pt")
    assert catalogue.family_of_checkpoint(str(tmp_path / "net.pt")) == "efficientat"
    with pytest.raises(WeightsError, match=r"frame_mn10_strong|matpac_dymn, m2d_dymn"):
        efficientat.load_model(tmp_path / "net.pt", "mn10_as" if layout is SED else "dymn10_as")


def test_a_backbone_alone_is_one_of_the_authors(tmp_path):
    trunk = efficientat.EfficientAT(n_classes=0)
    torch.save(trunk.state_dict(), tmp_path / "net.pt")
    assert efficientat.load_model(tmp_path / "net.pt").name == ("efficientat", "mn10_as")


@pytest.mark.slow
@pytest.mark.parametrize("kind", [peers.Ssondo, peers.SsondoDymn])
def test_the_package_of_ssondo_answers_the_same(kind):
    pytest.importorskip("ssondo", reason="needs ssondo, of the extra bench")
    peer = kind("cpu")
    work = peer.workloads[0]
    clips = golden_audio(32_000, 320_000)  # its authors' segment
    with torch.no_grad(), peers.silence_peers():
        expected = peer.embed(work, clips)
    assert_equal(peer.ours(work.variant).embed_scenes(clips), expected)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()


def test_windows_of_ssondo_fit_within_the_clip():
    spec = efficientat.SSONDO_MEL
    frontend = spec.build()
    for n_samples in (1024, 1535, 1536, 320_000):
        assert frontend(torch.zeros(1, n_samples)).shape[2] == spec.n_frames(n_samples)
    assert spec.n_frames(spec.n_samples(624)) == 624 == spec.n_frames(320_000)
    assert_equal(frontend(torch.zeros(1, 1024)), torch.full((1, 128, 1), math.log(spec.floor)))


# The real network


REFERENCE = {"metro_station-paris.wav": "metro_station-paris.wav", "R9_ZSCveAHg_7s.wav": "R9.wav"}
"""Clips in ../shared/data/audioset and their names among the reference numbers."""


@pytest.fixture(scope="module")
def mn04():
    if not SHARED.is_dir():
        pytest.skip(f"needs real weights and audio in {SHARED}")
    return efficientat.load_model(SHARED / "weights" / "mn04_as_mAP_432.pt", variant="mn04_as")


@pytest.fixture(scope="module", params=REFERENCE)
def tagged(request, mn04):
    numbers = json.loads((SHARED / "reference" / "efficientat_mn04_reference.json").read_text())
    waveform = reading.read(SHARED / "data" / "audioset" / request.param, mn04.sample_rate)
    with torch.no_grad():
        mel = mn04.frontend(waveform[None])
        taps = mn04.trunk(mel, ["features", "logits"])
    return numbers[REFERENCE[request.param]], {"mel": mel, **taps}


@pytest.mark.slow
@pytest.mark.shared
def test_real_network_gives_the_authors_numbers(tagged):
    expected, taps = tagged
    assert list(taps["mel"].shape) == expected["mel_shape"]
    assert float(taps["mel"].mean()) == pytest.approx(expected["mel_mean"], abs=1e-4)
    assert taps["logits"][0, :5].tolist() == pytest.approx(expected["logits_first5"], abs=1e-3)
    assert taps["features"][0, :5].tolist() == pytest.approx(expected["feat_first5"], abs=1e-4)
    assert float(taps["features"].norm()) == pytest.approx(expected["feat_l2"], rel=1e-4)


@pytest.mark.shared
def test_real_network_hears_what_is_there(tagged):
    expected, taps = tagged
    with (SHARED / "data" / "audioset" / "class_labels_indices.csv").open(newline="") as file:
        names = [row["display_name"] for row in csv.DictReader(file)]
    probabilities, classes = taps["logits"][0].sigmoid().topk(10)
    heard = {names[i]: probability for i, probability in zip(classes, probabilities.tolist(), strict=True)}
    assert heard == pytest.approx(dict(expected["top"]), abs=2e-4)
