"""EfficientAT against what the authors' own code answers (tests/data/golden), and one real checkpoint on real audio."""

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import efficientat
from hear_transformers.audio import reading
from hear_transformers.checkpoints import published, state_dicts
from hear_transformers.networks import conv_norm
from tests.helpers.golden import assert_equal, by_size, golden_audio, golden_state_dict, noise

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
SHARED = Path(__file__).parents[2].parent / "shared"
NETWORKS = ("mn01_as", "mn04_as", "mn10_as", "mn40_as", "dymn04_as", "dymn10_as")
KINDS = ("mn01_as", "mn10_as_fc_s2211", "dymn04_as", "dymn04_replace_se_as")

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


def test_every_block_gives_the_authors_map(network):
    answers, taps, shift = network
    names = [name for name in answers if name.startswith("tap_mean_features")]
    assert len(names) == 17 - 2 * shift
    for name in names:
        grid = taps[str(int(name.removeprefix("tap_mean_features")) + shift)]
        assert grid.permute(0, 3, 2, 1).shape == tuple(answers[name.replace("mean", "shape")])
        assert_equal(grid.mean((1, 2)), answers[name])


@pytest.mark.slow
@pytest.mark.parametrize("variant", efficientat.VARIANTS)
def test_network_has_the_authors_size(variant):
    with torch.device("meta"):
        trunk = efficientat.EfficientAT(**efficientat.VARIANTS[variant].network)
    assert sum(parameter.numel() for parameter in trunk.parameters()) == PARAMETERS[variant]


def test_every_published_audioset_checkpoint_is_a_variant():
    rows = [row for (family, _), row in published.manifest().items() if family == "efficientat"]
    assert set(efficientat.VARIANTS) == {row.name for row in rows if row.trained_on == "AudioSet"}


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
    assert [name for name, parameter in trunk.named_parameters() if parameter.grad is None] == []


def test_folded_normalisation_changes_nothing():
    stage = efficientat.ConvNorm(3, 8, 3, stride=2, act=torch.nn.Hardswish)
    maps = noise(2, 3, 20, 30)
    stage(maps)  # training mode: gives the normalisation statistics to work with
    stage.eval()
    torch.testing.assert_close(conv_norm.fold(stage)(maps), stage(maps))


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
