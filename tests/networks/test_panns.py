"""PANNs against what the authors' own code answers (tests/data/golden), and two of their networks where installed."""

import json
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hear_transformers import hear, panns
from hear_transformers.benchmarks import peers
from hear_transformers.checkpoints import state_dicts
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.errors import WeightsError
from hear_transformers.networks.family import random_trunk
from hear_transformers.networks.frontend import PannsMel, Waveform
from tests.helpers import golden
from tests.helpers.golden import (
    assert_clips_differ_alike,
    assert_equal,
    by_size,
    golden_audio,
    golden_state_dict,
    golden_tensor,
    tells_clips_apart,
)

pytestmark = pytest.mark.slow

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
CLASSES = {file.stem.removeprefix("panns-").lower(): file for file in sorted(GOLDEN.glob("panns-*.json"))}
"""The authors' classes, by the name of the variant."""

SIZES = {
    "cnn6": (4_837_455, 4_800),
    "cnn10": (5_219_279, 4_800),
    "cnn14": (80_753_615, 9_920),
    "cnn14_16k": (80_753_615, 4_960),
    "cnn14_8k": (80_753_615, 4_960 - 1),  # resampling to 8 kHz rounds up
    "cnn14_emb512": (76_796_879, 9_920),
    "cnn14_emb128": (75_807_695, 9_920),
    "cnn14_emb32": (75_560_399, 9_920),
    "cnn14_mel32": (80_753_551, 9_920),
    "cnn14_mel128": (80_753_743, 9_920),
    "cnn14_decisionlevelmax": (80_753_615, 9_920),
    "cnn14_decisionlevelavg": (80_753_615, 9_920),
    "cnn14_decisionlevelatt": (81_834_492, 9_920),
    "resnet22": (63_675_087, 9_920),
    "resnet38": (73_783_247, 9_920),
    "resnet54": (104_318_159, 9_920),
    "mobilenetv1": (4_796_303, 9_920),
    "mobilenetv2": (4_075_343, 9_920),
    "leenet11": (748_367, 1),
    "leenet24": (10_003_791, 1),
    "dainet19": (4_385_807, 332),
    "res1dnet31": (80_464_463, 20_476),
    "res1dnet51": (106_538_063, 20_476),
    "wavegram_cnn14": (80_991_759, 10_236),
    "wavegram_logmel_cnn14": (81_065_487, 10_236),
    "wavegram_logmel128_cnn14": (81_262_735, 10_236),
}
"""Parameters and shortest clip, in samples, of the authors' networks (tables XI and XII of the paper, and measured)."""

UNUSED = {
    "cnn14_decisionlevelatt": ("att_block.bn_att.",),
    "dainet19": ("conv_block1.downsample.", "conv_block1.bn_downsample."),
    "wavegram_cnn14": ("bn0.", "conv_block1."),
}
"""What has weights in the authors' files but no use."""

KINDS = (
    "cnn6",
    "cnn14",
    "cnn14_decisionlevelmax",
    "cnn14_decisionlevelavg",
    "cnn14_decisionlevelatt",
    "resnet22",
    "resnet54",
    "mobilenetv1",
    "mobilenetv2",
    "leenet11",
    "leenet24",
    "dainet19",
    "res1dnet31",
    "wavegram_cnn14",
    "wavegram_logmel_cnn14",
)
WIDTH = 0.1


def small(variant: str) -> hear.Family:
    """Give a family whose only variant is a narrow one."""
    row = panns.VARIANTS[variant]
    return replace(panns.FAMILY, variants={variant: replace(row, network={**row.network, "width": WIDTH})})


def build(variant: str) -> panns.Panns:
    return random_trunk(panns.FAMILY, small(variant).variants[variant]).eval()


def load(variant: str, **options) -> Embedder:
    return hear.Loader(small(variant)).load_model(pretrained=False, **options)


def noise(*shape: int) -> Tensor:
    return 0.1 * torch.randn(shape, generator=torch.Generator().manual_seed(0))


def frames_for(variant: str, n_frames: int, batch: int = 1) -> Tensor:
    """Make noise of the shape that a network takes."""
    return noise(batch, *panns.VARIANTS[variant].frontend.example(n_frames).shape[1:])


@torch.no_grad()
def run(trunk: panns.Panns, frames: Tensor, wanted=None) -> dict[str, Tensor]:
    return trunk(frames, list(trunk.layers) if wanted is None else wanted)


# The authors' numbers


def authors_front_end(sample_rate: int, window_size: int, mel_bins: int, fmin: int, fmax: int) -> dict[str, Tensor]:
    """Build the front end that the authors' files hold, as torchlibrosa does: in double precision, by librosa."""
    n_bins = window_size // 2 + 1
    angles = 2j * np.pi / window_size * np.outer(np.arange(n_bins), np.arange(window_size))
    hann = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(window_size) / window_size)
    waves = np.exp(-angles) * hann
    import librosa

    mel = librosa.filters.mel(sr=sample_rate, n_fft=window_size, n_mels=mel_bins, fmin=fmin, fmax=fmax)
    return {
        "spectrogram_extractor.stft.conv_real.weight": torch.tensor(waves.real[:, None], dtype=torch.float32),
        "spectrogram_extractor.stft.conv_imag.weight": torch.tensor(waves.imag[:, None], dtype=torch.float32),
        "logmel_extractor.melW": torch.tensor(mel.T, dtype=torch.float32),
    }


@pytest.fixture(scope="module")
def cached_blocks():
    """Make the tensors that the CNNs share only once: a hundred million random numbers take seconds."""
    cached = cache(golden_tensor)

    def tensor(name: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
        return (cached if name.startswith("conv_block") else golden_tensor)(name, shape, salt)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(golden, "golden_tensor", tensor)
        yield


def authors_state_dict(variant: str) -> dict[str, Tensor]:
    """Give the state dict that a golden file lists; only the front end does not follow the rule."""
    state_dict = golden_state_dict(CLASSES[variant])
    meta = json.loads(CLASSES[variant].read_text())["meta"]
    front_end = authors_front_end(*(meta[key] for key in ("sample_rate", "window_size", "mel_bins", "fmin", "fmax")))
    return {key: front_end.get(key, tensor) for key, tensor in state_dict.items()}


def authors_spec(variant: str) -> tuple[PannsMel | Waveform, int]:
    """Give the front end and sample rate of the golden audio: the authors' 8 kHz network takes 8 kHz."""
    spec = panns.VARIANTS[variant].frontend
    if variant == "cnn14_8k":
        spec = replace(spec, sample_rate=8_000, hop_length=80, decimation=1)
    return spec, spec.sample_rate


@pytest.fixture(scope="module", params=by_size(CLASSES, {"cnn6", "leenet11", "mobilenetv2"}))
def network(request, cached_blocks):
    variant = request.param
    with np.load(CLASSES[variant].with_suffix(".npz")) as answers:
        answers = dict(answers)
    row = panns.VARIANTS[variant]
    trunk = random_trunk(panns.FAMILY, row).eval()
    state_dicts.load_into(trunk, panns.convert_state_dict(authors_state_dict(variant), row), variant)
    stages = {}
    for name in (key.removeprefix("tap_mean_") for key in answers if key.startswith("tap_mean_")):
        # The authors' containers of layers give what their last layer gives.
        stage = trunk.get_submodule(name)
        inner = stage if type(stage) is not nn.Module else [*stage.children()][-1]
        inner.register_forward_hook(lambda _, __, output, name=name: stages.update({name: output.clone()}))
    spec, sample_rate = authors_spec(variant)
    frames = spec.build()(golden_audio(sample_rate, int(answers["n_samples"])))
    return variant, answers, trunk, {"frames": frames, **run(trunk, frames)}, stages


def test_network_gives_the_authors_numbers(network):
    variant, answers, _, taps, _ = network
    assert_equal(taps["logits"].sigmoid(), answers["clipwise_output"])
    assert tells_clips_apart(answers["clipwise_output"])
    assert_clips_differ_alike(taps["logits"].sigmoid(), answers["clipwise_output"])
    if not variant.startswith("cnn14_decisionlevel"):
        assert_equal(taps["features"], answers["embedding"])
        assert_clips_differ_alike(taps["features"], answers["embedding"])


def test_every_stage_gives_the_authors_map(network):
    _, answers, _, _, stages = network
    assert len(stages) == sum(key.startswith("tap_mean_") for key in answers) > 0
    for name, maps in stages.items():
        assert maps.shape == tuple(answers[f"tap_shape_{name}"])
        assert_equal(maps.flatten(2).mean(2), answers[f"tap_mean_{name}"])
        assert_clips_differ_alike(maps.flatten(2).mean(2), answers[f"tap_mean_{name}"])


def test_network_hears_the_authors_spectrogram(network):
    variant, answers, _, taps, _ = network
    if "logmel" not in answers:
        assert isinstance(panns.VARIANTS[variant].frontend, Waveform)
        return
    mel = taps["mel"][:, :, 0] if "mel" in taps else taps["frames"].transpose(1, 2)
    difference = np.abs(mel[:, ::32].numpy() - answers["logmel"])  # dB
    assert difference[answers["logmel"] > -60].max() < 1e-3
    # oneDNN's convolutions by SSE4.1 are up to 0.015 dB from those by AVX-512 near silence, at -89 dB (0.0005 dB above
    # -60 dB), those of the authors' layers as much as ours, which equal them in the same process (test_frontend.py).
    assert difference.max() < 0.03


def test_spectrogram_by_fft_is_that_by_convolution():
    frontend = panns.PANNS_MEL.build()
    waveforms = golden_audio(32_000, 32_000)
    by_fft = frontend.centred_power(waveforms, 1024, 320)
    torch.testing.assert_close(by_fft, frontend.power(waveforms), rtol=1e-4, atol=1e-6 * by_fft.max().item())


def test_every_segment_stands_for_32_of_the_authors_frames(network):
    _, answers, _, taps, _ = network
    assert ("framewise_output" in answers) == ("framewise" in taps)
    if "framewise" in taps:
        segments = taps["framewise"][:, :, 0].sigmoid()
        repeated = segments[:, np.minimum(np.arange(11), segments.shape[1] - 1)]
        assert_equal(repeated, answers["framewise_output"])


def test_network_has_the_authors_size_and_shortest_clip(network):
    variant, _, trunk, _, _ = network
    n_parameters = sum(parameter.numel() for parameter in trunk.parameters())
    assert (n_parameters, panns.VARIANTS[variant].frontend.n_samples(trunk.min_frames)) == SIZES[variant]


def test_every_network_of_the_authors_is_a_variant():
    assert set(panns.VARIANTS) == set(CLASSES) == set(SIZES)
    assert next(iter(panns.VARIANTS)) == "cnn14"


@pytest.mark.parametrize(
    ("variant", "network", "layer", "output"),
    [
        ("cnn14", "Cnn14", "features", "embedding"),
        ("cnn14_decisionlevelmax", "Cnn14_DecisionLevelMax", "logits", "clipwise_output"),
    ],
)
def test_network_gives_the_numbers_of_panns_inference(variant, network, layer, output):
    peer = peers.PannsInference("cpu", network)
    waveforms = golden_audio(32_000, 32_000)
    take_statistics(peer.model, waveforms)
    ours = peer.ours(variant)
    with torch.no_grad():
        taps = ours.trunk(ours.frontend(waveforms), [layer])
        expected = peer.model(waveforms)[output]
    found = taps[layer].sigmoid() if layer == "logits" else taps[layer]
    assert_equal(found, expected)
    assert_clips_differ_alike(found, expected)
    assert (expected[0] - expected[1]).abs().max() > 0.1 * expected.abs().max()


@torch.no_grad()
def take_statistics(model: nn.Module, waveforms: Tensor) -> None:
    """Give batch normalisations the statistics of audio, so that it is heard in every layer."""
    for module in model.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
            module.train()
    model(waveforms)
    model.eval()


# Checkpoints


def test_file_in_the_authors_layout_loads(tmp_path):
    path = tmp_path / "Cnn6_mAP=0.343.pth"
    state_dict = authors_state_dict("cnn6")
    torch.save({"iteration": 600_000, "model": state_dict}, path, _use_new_zipfile_serialization=False)
    model = panns.load_model(path, variant="cnn6")
    assert torch.equal(model.trunk.state_dict()["fc1.weight"], state_dict["fc1.weight"])


def test_file_of_our_own_loads(tmp_path):
    model = load("wavegram_logmel_cnn14")
    torch.save(model.trunk.state_dict(), tmp_path / "own.pt")
    again = hear.Loader(small("wavegram_logmel_cnn14")).load_model(tmp_path / "own.pt")
    assert all(map(torch.equal, model.trunk.state_dict().values(), again.trunk.state_dict().values()))


@pytest.mark.parametrize("variant", ["cnn14", "cnn14_8k", "cnn14_mel128", "wavegram_logmel128_cnn14"])
def test_front_end_of_the_variant_is_taken_out(variant):
    row = panns.VARIANTS[variant]
    spec = row.network.get("mel", row.frontend)
    rate = spec.sample_rate // spec.decimation
    front_end = authors_front_end(rate, spec.n_fft, spec.n_mels, spec.fmin, spec.fmax)
    assert panns.convert_state_dict({**front_end, "fc1.bias": torch.ones(1)}, row) == {"fc1.bias": torch.ones(1)}


FRONT_END = (32_000, 1024, 64, 50, 14_000)


@pytest.mark.parametrize(
    "front_end",
    [(16_000, 512, 64, 50, 8_000), (32_000, 1024, 64, 50, 16_000), (32_000, 1024, 128, 50, 14_000)],
)
def test_front_end_of_another_network_is_refused(front_end):
    with pytest.raises(WeightsError, match="64 mel bands from 50 to 14000 Hz and windows of 1024 samples at 32000 Hz"):
        panns.convert_state_dict(authors_front_end(*front_end), panns.VARIANTS["cnn14"])


def test_window_of_the_paper_is_refused():
    front_end = authors_front_end(*FRONT_END)
    key = "spectrogram_extractor.stft.conv_real.weight"
    front_end[key] = front_end[key] / torch.hann_window(1024).clamp(min=1e-6) * torch.hamming_window(1024)
    with pytest.raises(WeightsError, match="another front end"):
        panns.convert_state_dict(front_end, panns.VARIANTS["cnn14"])


def test_front_end_without_numbers_is_refused():
    front_end = {key: tensor * torch.nan for key, tensor in authors_front_end(*FRONT_END).items()}
    with pytest.raises(WeightsError, match="another front end"):
        panns.convert_state_dict(front_end, panns.VARIANTS["cnn14"])


def test_half_a_front_end_is_refused():
    front_end = authors_front_end(*FRONT_END)
    del front_end["logmel_extractor.melW"]
    with pytest.raises(WeightsError, match=r"not logmel_extractor\.melW"):
        panns.convert_state_dict(front_end, panns.VARIANTS["cnn14"])


def test_refusal_names_the_file(tmp_path):
    path = tmp_path / "Cnn14_16k_mAP=0.438.pth"
    torch.save({"model": authors_front_end(16_000, 512, 64, 50, 8_000)}, path)
    with pytest.raises(WeightsError, match=r"Cnn14_16k_mAP=0\.438\.pth"):
        hear.Loader(small("cnn14")).load_model(path)


# Lengths


@pytest.mark.parametrize("variant", panns.VARIANTS)
def test_clip_of_any_length_is_embedded(variant):
    model = load(variant)
    for n_samples in (1, 2, 331, 514, 9_921, 10_236, 20_477, 31_680):
        waveforms = noise(2, n_samples)
        embeddings, centres_ms = model.embed_timestamps(waveforms)
        scenes = model.embed_scenes(waveforms)
        assert scenes.shape == (2, model.scene_embedding_size)
        assert embeddings.shape == (2, len(centres_ms), model.timestamp_embedding_size)
        assert scenes.isfinite().all()
        assert embeddings.isfinite().all()


@pytest.mark.parametrize("variant", KINDS)
def test_shortest_clip_is_the_shortest(variant):
    trunk = build(variant)
    assert all(tap.isfinite().all() for tap in run(trunk, frames_for(variant, trunk.min_frames)).values())
    if trunk.min_frames > 1:
        with pytest.raises(RuntimeError):
            run(trunk, frames_for(variant, trunk.min_frames - 1))


@pytest.mark.parametrize("n_hops", [33, 99, 999])
def test_branches_of_other_lengths_are_cropped(n_hops):
    trunk = build("wavegram_logmel_cnn14")
    taps = run(trunk, noise(1, 320 * n_hops), ["mel", "wave3", "1", "logits"])
    assert taps["mel"].shape[1] // 2 == n_hops // 2 + 1
    assert taps["wave3"].shape[1] // 2 == taps["1"].shape[1] == n_hops // 2


def test_cropping_leaves_the_positions_that_stay_alone():
    trunk, waveforms = build("wavegram_logmel_cnn14"), noise(1, 320 * 99)
    cropped, whole = (run(trunk, waveforms[:, :n], ["1"])["1"] for n in (320 * 99, 320 * 98))
    torch.testing.assert_close(cropped[:, :-3], whole[:, :-3])


@pytest.mark.parametrize("variant", KINDS)
def test_windows_of_a_batch_do_not_see_each_other(variant):
    trunk = build(variant)
    frames = frames_for(variant, 2 * trunk.min_frames + 1, batch=3)
    together = run(trunk, frames)
    alone = [run(trunk, window) for window in frames.split(1)]
    for layer, tap in together.items():
        assert_equal(tap, torch.cat([taps[layer] for taps in alone]).numpy(), tolerance=1e-5)


# Layers


NUMBERED = {
    "cnn6": range(5),
    "cnn14": range(7),
    "resnet22": range(7),
    "mobilenetv1": range(15),
    "mobilenetv2": range(20),
    "leenet11": range(1, 10),
    "dainet19": range(5),
    "res1dnet31": range(8),
    "wavegram_cnn14": range(1, 7),
    "wavegram_logmel_cnn14": range(1, 7),
}


@pytest.mark.parametrize("variant", NUMBERED)
def test_layers_are_numbered_as_the_authors_count(variant):
    numbers = [int(layer) for layer in build(variant).layers if layer.isdecimal()]
    assert numbers == list(NUMBERED[variant])


def test_layer_0_is_the_normalised_spectrogram():
    trunk, mel = build("cnn14"), frames_for("cnn14", 40)
    trunk.bn0.running_mean.uniform_(generator=torch.Generator().manual_seed(0))
    expected = trunk.bn0(mel).transpose(1, 2).unsqueeze(2)
    torch.testing.assert_close(run(trunk, mel, ["0"])["0"], expected.detach())


def ran(trunk: panns.Panns, frames: Tensor, wanted: list[str]) -> list[str]:
    """List the stages that run, the beginning of the names of all that could."""
    executed = []
    stages = [*trunk.stages, *getattr(trunk, "beside", {}), "logmel", "fc1"]
    for name in stages:
        if hasattr(trunk, name.partition(".")[0]):
            stage = trunk.get_submodule(name)
            stage.register_forward_pre_hook(lambda *_, name=name: executed.append(name))
    assert set(run(trunk, frames, wanted)) == set(wanted)
    return executed


@pytest.mark.parametrize("variant", [variant for variant in KINDS if variant != "wavegram_logmel_cnn14"])
def test_runs_no_deeper_than_asked(variant):
    trunk = build(variant)
    names = [*trunk.stages]
    deepest = [*trunk.stages.values()].index("2")
    frames = frames_for(variant, trunk.min_frames)
    assert ran(trunk, frames, ["2", "1"]) == names[: deepest + 1]


@pytest.mark.parametrize(
    ("layer", "last", "n_stages"),
    [("mel", "logmel", 1), ("wave1", "pre_block1", 6), ("1", "conv_block1", 13), ("2", "conv_block2", 14)],
)
def test_two_branches_run_no_deeper_than_asked(layer, last, n_stages):
    executed = ran(build("wavegram_logmel_cnn14"), noise(1, 20_000), [layer])
    assert (executed[-1], len(executed)) == (last, n_stages)


@pytest.mark.parametrize("decision", ["max", "avg", "att"])
def test_logits_of_certain_segments_are_finite(decision):
    trunk = build(f"cnn14_decisionlevel{decision}")
    last = trunk.att_block.cla if decision == "att" else trunk.fc_audioset
    for certainty in (-1e3, 1e3):
        nn.init.constant_(last.bias, certainty)
        logits = run(trunk, frames_for("cnn14", 100), ["logits"])["logits"]
        assert logits.isfinite().all()
        assert (logits.sign() == np.sign(certainty)).all()


@pytest.mark.parametrize("variant", KINDS)
def test_bfloat16_points_the_same_way(variant):
    exact, rounded = load(variant), load(variant, precision="bfloat16")
    layers = list(exact.trunk.layers)
    waveforms = noise(2, exact.min_samples)
    with torch.no_grad():
        pairs = zip(exact._taps(waveforms, layers).values(), rounded._taps(waveforms, layers).values(), strict=True)
    for one, other in pairs:
        assert torch.cosine_similarity(one.flatten(1), other.flatten(1)).min() > 0.98


# Time


@pytest.fixture
def transparent(monkeypatch):
    """Let gradients through from all that a position sees: maxima become means, weights and inputs are positive."""

    def averaged(pool: nn.MaxPool1d, maps: Tensor) -> Tensor:
        return nn.functional.avg_pool1d(maps, pool.kernel_size, pool.stride, pool.padding)

    monkeypatch.setattr(nn.MaxPool1d, "forward", averaged)
    monkeypatch.setattr(nn.ReLU6, "forward", lambda _, maps: maps)  # saturates

    def make(variant: str) -> panns.Panns:
        trunk = build(variant).double()
        for name, parameter in trunk.named_parameters():
            if parameter.ndim > 1:
                nn.init.constant_(parameter, len(parameter) / parameter.numel())
            elif name.endswith("weight"):
                nn.init.ones_(parameter)
        return trunk

    return make


@pytest.mark.parametrize(
    ("variant", "layer"),
    [
        ("cnn6", "4"),
        ("cnn14", "3"),
        ("cnn14", "6"),
        ("cnn14_decisionlevelmax", "features"),
        ("cnn14_decisionlevelatt", "framewise"),
        ("resnet22", "5"),
        ("resnet54", "6"),
        ("mobilenetv1", "8"),
        ("mobilenetv2", "19"),
        ("leenet11", "5"),
        ("leenet24", "9"),
        ("dainet19", "0"),
        ("dainet19", "4"),
        ("res1dnet31", "3"),
        ("res1dnet51", "5"),
        ("wavegram_cnn14", "wave3"),
        ("wavegram_cnn14", "4"),
    ],
)
def test_position_sees_what_the_time_axis_says(transparent, variant, layer):
    trunk = transparent(variant)
    axis = trunk.layers[layer]
    position = int(axis.receptive_field / axis.hop) + 1
    n_frames = max(trunk.min_frames, int(2 * axis.receptive_field + position * axis.hop))
    frames = torch.ones(panns.VARIANTS[variant].frontend.example(n_frames).shape, dtype=torch.float64)
    frames.requires_grad_()
    trunk(frames, [layer])[layer][0, position].sum().backward()
    seen = frames.grad[0].reshape(-1, n_frames).abs().amax(0).nonzero().flatten()
    assert (seen[0] + seen[-1]) / 2 == position * axis.hop + axis.offset
    assert seen[-1] - seen[0] + 1 == axis.receptive_field


def test_joined_position_sees_what_both_branches_see():
    layers = build("wavegram_logmel_cnn14").layers
    # The spectrogram's first block sees 6 frames around 160, of 1024 samples each, the wavegram's 2556 samples around
    # 317.5.
    first, last = 160 - (5 * 320 + 1023) / 2, 317.5 + 2555 / 2
    assert layers["1"].offset == (first + last) / 2
    assert layers["1"].receptive_field == np.ceil(last - first + 1)
    assert layers["1"].hop == 640
    assert layers["mel"] == panns.TimeAxis(320, 0.0, 1024)


# Sample rates


def band_limited(sample_rate: int, n_samples: int) -> Tensor:
    """Make periodic noise below 3 kHz, the same at every rate: (1, n_samples)."""
    n_lines = int(3_000 * n_samples / sample_rate)
    generator = torch.Generator().manual_seed(0)
    spectrum = torch.zeros(n_samples // 2 + 1, dtype=torch.complex128)
    spectrum[1:n_lines] = torch.randn(n_lines - 1, dtype=torch.complex128, generator=generator)
    return (torch.fft.irfft(spectrum, n_samples) * n_samples / 1e4).float()[None]


def test_8k_network_hears_the_same_at_16_khz():
    spec = panns.VARIANTS["cnn14_8k"].frontend
    at_8k = replace(spec, sample_rate=8_000, hop_length=80, decimation=1)
    resampled, direct = spec.build()(band_limited(16_000, 32_000)), at_8k.build()(band_limited(8_000, 16_000))
    assert resampled.shape == direct.shape
    loud = direct.amin((0, 2)) > direct.max() - 60  # bands below 3 kHz
    assert loud.sum() > 50
    difference = (resampled - direct)[:, loud, 2:-2].abs()
    assert difference.mean() < 0.02
    assert difference.max() < 1


# Training


@pytest.mark.parametrize("variant", KINDS)
def test_every_parameter_learns(variant):
    trunk = build(variant).train()
    trunk(frames_for(variant, 2 * trunk.min_frames + 30, batch=2), ["logits"])["logits"].square().sum().backward()
    idle = [name for name, parameter in trunk.named_parameters() if parameter.grad is None]
    assert all(name.startswith(UNUSED[variant]) for name in idle) if variant in UNUSED else not idle
