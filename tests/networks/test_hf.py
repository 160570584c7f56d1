"""Encoders of Hugging Face: the hidden states of `transformers`, of each clip alone, at the right times."""

import shutil
from functools import cache
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import catalogue, evar, hf, mteb, xares
from hear_transformers.benchmarks import peers
from hear_transformers.checkpoints import hub
from hear_transformers.errors import HearTransformersWarning, OptionError, WeightsError
from hear_transformers.harness import contract
from tests.helpers.encoders import CONVOLUTIONS, ENCODERS, POSITIONS, SMALL, WHISPER, encoder, own_code

transformers = pytest.importorskip("transformers", reason="transformers is not installed (extra hf)")
pytestmark = pytest.mark.slow  # a package beside which ours is tested

SECONDS = (0.6, 1.0, 1.37)
TOLERANCE = 1e-5

LAST = {"sew": "3"}

every_encoder = pytest.mark.parametrize("name", ENCODERS)


def clip(seconds: float, sample_rate: int = 16_000) -> np.ndarray:
    """Make a loud or soft clip, off zero, as normalisation shows it."""
    generator = np.random.default_rng(round(1000 * seconds))
    return (0.1 + 0.3 * seconds * generator.standard_normal(round(seconds * sample_rate))).astype(np.float32)


@cache
def load(name: str, **options):
    return hf.load_model(variant=str(encoder(name)), **options)


@torch.no_grad()
def of_transformers(name: str, samples: np.ndarray) -> dict[str, torch.Tensor]:
    """Compute hidden states as the documentation of `transformers` does, by the names of our layers."""
    folder = encoder(name)
    network = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.AutoFeatureExtractor.from_pretrained(folder)
    features = extractor(samples, sampling_rate=16_000, return_tensors="pt")
    network = network.get_encoder() if name == "whisper" else network
    outputs = network(**features, output_hidden_states=True)
    states = {str(i): state for i, state in enumerate(outputs.hidden_states)}
    return states if name == "sew" else {**states, "features": outputs.last_hidden_state}  # SEW's has other times


def times_of(name: str, n_samples: int) -> int:
    """Count the positions of a clip in time."""
    frames = 1 + (n_samples - 400) // 160
    if name == "whisper":
        return -(-n_samples // 320)
    return {"ast": 1 + (frames - 16) // 10, "sew": 1 + (n_samples - 720) // 640, "wav2vec2-bert": frames // 2}.get(
        name, 1 + (n_samples - 400) // 320
    )


def grid(name: str, state: torch.Tensor, n_times: int) -> torch.Tensor:
    """Return (1, time, freq, features) of a clip in a hidden state."""
    if name != "ast":
        return state[:, :n_times, None]
    return state[:, 2:].unflatten(1, (12, 25)).transpose(1, 2)[:, :n_times]


# The numbers


@every_encoder
def test_every_layer_is_a_hidden_state_of_transformers(name):
    model, samples = load(name), clip(1.37)
    expected = of_transformers(name, samples)
    assert list(model.trunk.layers) == list(expected)
    with torch.no_grad():
        found = model.trunk(torch.from_numpy(samples)[None], list(model.trunk.layers))
    n_times = times_of(name, len(samples))
    for layer, state in expected.items():
        torch.testing.assert_close(found[layer], grid(name, state, n_times), rtol=0, atol=TOLERANCE)


@every_encoder
def test_a_scene_is_the_mean_over_the_clip(name):
    samples = clip(1.37)
    expected = grid(
        name, of_transformers(name, samples)[LAST.get(name, "features")], times_of(name, len(samples))
    ).mean((1, 2))
    found = load(name).embed_scenes(torch.from_numpy(samples)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


@every_encoder
def test_a_clip_does_not_depend_on_others_of_other_lengths(name):
    model = load(name)
    clips = [clip(seconds) for seconds in (*SECONDS, *SECONDS)]
    together = model.encode(clips, sampling_rate=16_000)
    along_time = model.encode_timestamps(clips, sampling_rate=16_000)
    for samples, scene, (frames, _) in zip(clips, together, along_time, strict=True):
        alone, times = (
            model.encode([samples], sampling_rate=16_000)[0],
            model.encode_timestamps([samples], sampling_rate=16_000)[0],
        )
        np.testing.assert_allclose(scene, alone, rtol=0, atol=TOLERANCE)
        np.testing.assert_allclose(frames, times.embeddings, rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("name", ["wav2vec2-layer", "wavlm"])
def test_equal_lengths_are_normalised_one_by_one(name):
    model = load(name)
    quiet, loud = 0.01 * clip(1.0), clip(1.0)[::-1].copy()
    both = model.embed_scenes(torch.from_numpy(np.stack([quiet, loud])))
    for row, samples in zip(both, (quiet, loud), strict=True):
        alone = grid(name, of_transformers(name, samples)[LAST.get(name, "features")], 49).mean((1, 2))[0]
        torch.testing.assert_close(row, alone, rtol=0, atol=TOLERANCE)


def test_a_masked_batch_of_transformers_is_the_same():
    folder, clips = encoder("wav2vec2-layer"), [clip(0.6), clip(1.37)]
    network = transformers.AutoModel.from_pretrained(folder).eval()
    extractor = transformers.Wav2Vec2FeatureExtractor(return_attention_mask=True)
    features = extractor(clips, sampling_rate=16_000, return_tensors="pt", padding=True)
    with torch.no_grad():
        padded = network(**features).last_hidden_state[0, : times_of("wav2vec2-layer", len(clips[0]))].mean(0)
    (found, _) = load("wav2vec2-layer").encode(clips, sampling_rate=16_000)
    np.testing.assert_allclose(found, padded.numpy(), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("n_samples", [1, 159, 16_000, 31_199, 31_200, 31_360, 32_000])
def test_spectra_of_whisper_are_those_of_transformers_whatever_silence_follows(n_samples):
    extractor = transformers.AutoFeatureExtractor.from_pretrained(encoder("whisper"))
    waveforms = torch.from_numpy(np.stack([clip(2.0)[:n_samples], 1e-4 * clip(2.0)[::-1][:n_samples]]))
    expected = extractor(list(waveforms.numpy()), sampling_rate=16_000, return_tensors="pt")["input_features"]
    torch.testing.assert_close(
        hf.extracted(extractor, waveforms, 16_000)["input_features"], expected, rtol=0, atol=1e-6
    )


def test_a_batch_is_as_long_as_what_is_computed():
    second = {name: load(name).batch_size_for(16_000, load(name).variant.scene) for name in ("hubert", "whisper")}
    assert second == {"hubert": 20, "whisper": 10}  # each clip of this Whisper is filled up to 2 s


@pytest.mark.parametrize(
    ("kind", "sizes"),
    [
        (peers.TransformersHubert, {**SMALL, **CONVOLUTIONS, **POSITIONS}),
        (peers.TransformersWhisper, {**WHISPER, "max_source_positions": 1500}),
    ],
    ids=["hubert", "whisper"],
)
def test_the_benchmark_compares_equal_numbers(kind, sizes):
    peer = kind("cpu", **sizes)
    work = peer.workloads[0]
    clips = torch.from_numpy(np.stack([clip(1.37), clip(1.37)[::-1] ** 3]))
    with torch.no_grad():
        expected = peer.embed(work, clips)
    torch.testing.assert_close(peer.ours(work.variant).embed_scenes(clips), expected, rtol=0, atol=TOLERANCE)
    assert (expected[0] - expected[1]).abs().max() > 100 * TOLERANCE


# Time

CENTRES = {
    "whisper": (320, 0),
    "ast": (1600, 1400),
    "sew": (640, 359.5),
    "wav2vec2-bert": (320, 279.5),
}


@every_encoder
def test_timestamps_interpolate_positions_at_their_centres(name):
    model, samples = load(name), clip(1.37)
    hop, first = CENTRES.get(name, (320, 199.5))
    tokens = (
        grid(name, of_transformers(name, samples)[LAST.get(name, "features")], times_of(name, len(samples)))
        .mean(2)[0]
        .numpy()
    )
    embeddings, times_ms = model.embed_timestamps(torch.from_numpy(samples)[None])
    assert times_ms[1].item() == pytest.approx(hop / 16)
    assert times_ms[-1].item() <= 1370
    centres = first + hop * np.arange(len(tokens))
    expected = [np.interp(times_ms * 16, centres, column) for column in tokens.T]
    np.testing.assert_allclose(embeddings[0].numpy().T, expected, rtol=0, atol=TOLERANCE)


def test_whisper_reads_long_clips_in_chunks_of_its_length():
    model = load("whisper")
    embeddings, times_ms = model.embed_timestamps(torch.from_numpy(clip(5.0))[None])
    assert model.variant.scene.window_ms == 2000
    assert embeddings.shape == (1, 251, 32)
    assert times_ms[-1] == 5000


@every_encoder
def test_the_shortest_clip_has_one_position_and_a_shorter_one_is_mirrored(name):
    model = load(name)
    n_samples = model.min_samples
    with torch.no_grad():
        taps = model.trunk(torch.from_numpy(clip(1.0)[None, :n_samples]), ["0"])
    assert taps["0"].shape[1] == 1
    assert model.embed_scenes(torch.from_numpy(clip(1.0)[None, : max(1, n_samples - 1)])).isfinite().all()


# What is chosen


def test_layers_are_numbered_from_both_ends():
    assert load("hubert", layer="0,-1").layers == ("0", "3")


@every_encoder
@pytest.mark.parametrize("layer", [0, 1, 2])
def test_a_layer_alone_runs_no_more_than_one_block_behind_it(name, layer):
    model, samples = hf.load_model(variant=str(encoder(name)), layer=layer), clip(1.0)
    expected = grid(name, of_transformers(name, samples)[str(layer)], times_of(name, len(samples))).mean((1, 2))
    found = model.embed_scenes(torch.from_numpy(samples)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)
    assert list(model.trunk.layers) == [str(i) for i in range(layer + 1)]
    n_whole, n_left = (sum(each.numel() for each in of.parameters()) for of in (load(name).trunk, model.trunk))
    assert n_left < n_whole or layer == 2


def test_ast_has_a_class_token():
    samples = clip(1.37)
    expected = of_transformers("ast", samples)["2"][:, :2].mean(1)
    found = load("ast", layer=2, pool="cls").embed_scenes(torch.from_numpy(samples)[None])
    torch.testing.assert_close(found, expected, rtol=0, atol=TOLERANCE)


def test_windows_and_segments_are_those_of_every_model():
    samples = torch.from_numpy(clip(1.0))[None]
    model = load("wavlm", framing="windowed", window_ms=160, hop_ms=50, layer="1,2", pool="meanstd")
    assert model.embed_timestamps(samples)[0].shape == (1, 21, 2 * 2 * 32)
    assert load("wavlm", segment=0.5).embed_timestamps(samples)[0].shape == (1, 2, 32)


def test_a_scene_may_be_the_mean_over_time():
    clip = torch.rand(1, 20_000, generator=torch.Generator().manual_seed(0)) - 0.5
    model = hf.load_model(encoder("hubert"), hop_ms=50.0, mean_over_time=True)
    expected = model.embed_timestamps(clip)[0].mean(1)
    torch.testing.assert_close(model.embed_scenes(clip), expected, rtol=0, atol=1e-6)


def test_lower_precision_is_near():
    samples = torch.from_numpy(clip(1.0))[None]
    # Not HuBERT: with AMX, oneDNN's bfloat16 convolution of 8 channels a group is wrong (torch 2.11). This is one of a
    # test's small network; of 32 to 64, which published networks have, it is right.
    exact, rounded = (load("whisper", precision=name).embed_scenes(samples) for name in ("float32", "bfloat16"))
    assert torch.cosine_similarity(exact, rounded).item() > 0.99
    assert rounded.dtype == torch.float32


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("name", ["wav2vec2-layer", "whisper"])
def test_a_card_computes_the_same(name):
    samples = torch.from_numpy(clip(1.0))[None]
    found = hf.load_model(encoder(name), device="cuda").embed_scenes(samples.cuda())
    torch.testing.assert_close(found.cpu(), load(name).embed_scenes(samples), rtol=0, atol=1e-4)


def test_random_weights_are_the_same_every_time():
    samples = torch.from_numpy(clip(1.0))[None]
    first, second = (
        hf.load_model(variant=str(encoder("hubert")), pretrained=False).embed_scenes(samples) for _ in range(2)
    )
    assert first.equal(second)


def test_gradients_reach_the_network():
    model = hf.load_model(variant=str(encoder("wavlm")))
    model(torch.from_numpy(clip(1.0))[None]).sum().backward()
    assert model.trunk.network.encoder.layers[0].attention.q_proj.weight.grad.abs().max() > 0


@pytest.mark.parametrize("name", ["wav2vec2-group", "whisper", "ast"])
def test_the_rules_of_hear_hold(name):
    assert [*contract.check_module("hear_transformers.hf", str(encoder(name)))]


def test_it_is_an_encoder_of_x_ares():
    kind = type("Hubert", (xares.FrameEmbedder,), {}, model=f"hf/{encoder('hubert')}", layer=1)
    assert (kind().output_dim, kind().hop_size_in_ms) == (32, 20)


def test_evar_is_told_of_it():
    assert "feature_d: 32\n" in evar.config(f"hf/{encoder('hubert')}", layer=1)
    with pytest.raises(OptionError, match="model='hf' names no variant, as in hf/facebook/wav2vec2-base"):
        evar.config("hf")


@pytest.mark.filterwarnings("ignore:Precision is ill-defined")  # as in test_mteb
def test_mteb_runs_it():
    pytest.importorskip("mteb", reason="needs mteb, of the extra of that name")
    model = mteb.AudioEncoder(f"hf/{encoder('hubert')}", device="cpu", layer=1)
    described = model.mteb_model_meta
    assert described.embed_dim == 32
    assert described.revision.endswith(model.model.weights_sha256[:12])
    assert mteb.AudioEncoder(described.name, device="cpu").name == model.name
    assert len(mteb.mock_run(model)) >= 7


# What it is


def test_provenance_says_which_weights_and_whether_code_was_run():
    provenance = load("hubert").provenance()
    assert (provenance["family"], provenance["variant"]) == ("hf", "hubert")
    assert len(provenance["weights_sha256"]) == 64
    assert transformers.__version__ in provenance["package"]
    assert provenance["revision"] is None
    assert provenance["remote_code"] is None


def test_the_catalogue_loads_it_by_all_its_names():
    folder = str(encoder("hubert"))
    loads = [
        catalogue.load("hf", folder, "cpu"),
        catalogue.load(f"hf/{folder}", device="cpu"),
        catalogue.load("hear_transformers.hf", device="cpu", options={"variant": folder, "layer": 1}),
    ]
    assert [model.name for model in loads] == [("hf", "hubert")] * 3
    assert catalogue.is_own("hf")
    assert catalogue.as_module("hf", {"variant": folder}) == ("hear_transformers.hf", {"variant": folder})


def test_it_is_described():
    assert catalogue.describe("hf").keys() == {"family", "about"}
    described = catalogue.describe("hf", str(encoder("whisper")))
    assert described["variant"] == "whisper"
    assert [row["layer"] for row in described["layers"]] == ["0", "1", "2", "3", "4", "features"]
    assert described["layers"][0]["hop_ms"] == 20
    assert described["source"]["network"] == "WhisperEncoder"


def test_what_transformers_logs_is_as_before():
    log = transformers.utils.logging
    before = log.get_verbosity(), log.is_progress_bar_enabled()
    hf.load_model(variant=str(encoder("hubert")))
    assert (log.get_verbosity(), log.is_progress_bar_enabled()) == before


# Code beside the weights


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    return own_code(tmp_path, monkeypatch)


def test_code_of_a_folder_is_not_run_unless_trusted(own):
    with pytest.raises(OptionError, match=r"--trust-remote-code, in Python trust_remote_code=True"):
        hf.load_model(own)
    assert not (own.parent / "modules").exists() or not [*(own.parent / "modules").rglob("modeling_own.py")]


def test_trusted_code_is_run_and_said(own):
    with pytest.warns(HearTransformersWarning, match=r"no preprocessor_config.json: waveforms are taken at 16000 Hz"):
        model = hf.load_model(own, trust_remote_code=True)
    assert len(model.provenance()["remote_code"]) == 64
    assert (model.trunk.geometry.hop, model.trunk.geometry.offset, model.min_samples) == (100, 99.5, 200)
    assert list(model.trunk.layers) == ["0", "1"]


# What cannot be loaded


def test_no_encoder_is_named():
    with pytest.raises(OptionError, match="model='hf' stands for any audio encoder of Hugging Face; give variant"):
        hf.load_model()


@pytest.mark.parametrize("name", ["nowhere", "./nowhere/", "/nowhere/at/all"])
def test_no_such_folder(name):
    with pytest.raises(OptionError, match="neither a folder nor the name of a repository"):
        hf.load_model(variant=name)


def test_a_folder_without_configuration(tmp_path):
    with pytest.raises(WeightsError, match=r"a folder without config.json holds no encoder of Hugging Face"):
        hf.load_model(tmp_path)


def test_a_folder_without_weights(tmp_path):
    shutil.copy(encoder("hubert") / "config.json", tmp_path)
    with pytest.raises(WeightsError, match=r"without model.safetensors or pytorch_model.bin"):
        hf.load_model(tmp_path)


def test_weights_that_lack_a_tensor(tmp_path):
    from safetensors.torch import load_file, save_file

    shutil.copytree(encoder("hubert"), tmp_path, dirs_exist_ok=True)
    tensors = load_file(tmp_path / "model.safetensors")
    del tensors["encoder.layers.1.attention.q_proj.weight"]
    save_file(tensors, tmp_path / "model.safetensors", {"format": "pt"})
    with pytest.raises(WeightsError, match=r"the weights lack 1 tensors of HubertModel: encoder.layers.1.attention.q"):
        hf.load_model(tmp_path)


def test_damaged_weights(tmp_path):
    shutil.copytree(encoder("hubert"), tmp_path, dirs_exist_ok=True)
    (tmp_path / "model.safetensors").write_bytes(b"damaged")
    with pytest.raises(WeightsError, match=r"transformers [\d.]+ cannot load it"):
        hf.load_model(tmp_path)


class Planted:
    def __reduce__(self):
        return Path.write_text, (Path("planted"), "run")


def test_code_in_a_file_of_pytorch_is_not_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("config.json", "preprocessor_config.json"):
        shutil.copy(encoder("hubert") / name, tmp_path)
    network = transformers.AutoModel.from_pretrained(encoder("hubert"))
    torch.save(network.state_dict(), "pytorch_model.bin")
    samples = torch.from_numpy(clip(1.0))[None]
    assert hf.load_model(tmp_path).embed_scenes(samples).equal(load("hubert").embed_scenes(samples))
    torch.save({**network.state_dict(), "planted": Planted()}, "pytorch_model.bin")
    with pytest.raises(WeightsError, match=r"transformers [\d.]+ cannot load it"):
        hf.load_model(tmp_path)
    assert not Path("planted").exists()


def test_a_network_of_text(tmp_path):
    small = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "intermediate_size": 8}
    transformers.BertModel(transformers.BertConfig(vocab_size=8, **small)).save_pretrained(tmp_path)
    with pytest.raises(WeightsError, match="BertModel takes input_ids: it is no encoder of audio"):
        hf.load_model(tmp_path)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 4}, r"layer='4' is unknown; choose from 0\.\.3 \(32 numbers, every 20 ms\), features"),
        ({"layer": "logits"}, "layer='logits' is unknown"),
        ({"revision": "main"}, "revision='main' is one of a repository"),
        ({"pool": "cls"}, "pool='cls' needs layers with a class token"),
        ({"window_ms": 10, "framing": "windowed"}, "window_ms=10.0 is outside what hf/hubert takes; choose at least"),
    ],
)
def test_options_that_it_does_not_know(options, message):
    with pytest.raises(OptionError, match=message):
        hf.load_model(encoder("hubert"), **options)


def test_options_of_other_families():
    with pytest.raises(OptionError, match="option 'normalisation' is unknown to hf"):
        catalogue.load("hf", str(encoder("hubert")), "cpu", {"normalisation": (0.0, 1.0)})


def test_without_transformers(monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "transformers", None)
    with pytest.raises(OptionError, match=r"model=hf needs transformers, .* 'hear_transformers\[hf\]'"):
        hf.load_model(encoder("hubert"))


# Repositories

REPOSITORY = "someone/an-encoder"
COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def cache_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make an empty cache of Hugging Face."""
    import huggingface_hub

    folder = tmp_path / "hub"
    folder.mkdir()
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(folder))
    return folder


def fill(cache_folder: Path, files: str = "*") -> Path:
    """Put a repository into the cache."""
    root = cache_folder / "models--someone--an-encoder"
    (root / "refs").mkdir(parents=True, exist_ok=True)
    (root / "refs" / "main").write_text(COMMIT)
    snapshot = root / "snapshots" / COMMIT
    snapshot.mkdir(parents=True, exist_ok=True)
    for file in encoder("hubert").glob(files):
        shutil.copy(file, snapshot)
    return snapshot


def test_a_repository_is_read_from_the_cache_without_a_network(cache_folder):
    fill(cache_folder)
    provenance = hf.load_model(variant=REPOSITORY).provenance()
    assert (provenance["variant"], provenance["revision"]) == (REPOSITORY, COMMIT)


def downloading(monkeypatch, cache_folder, files: str, asked: list):
    """Let a download put files of a repository into the cache."""
    import huggingface_hub

    in_cache = huggingface_hub.snapshot_download

    def download(repository, *, revision=None, local_files_only=False, allow_patterns=None):
        if local_files_only:
            return in_cache(repository, revision=revision, local_files_only=True)
        asked.append(allow_patterns)
        return str(fill(cache_folder, files))

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)


def test_what_is_not_in_the_cache_is_downloaded_once_in_safetensors(cache_folder, monkeypatch):
    asked: list = []
    downloading(monkeypatch, cache_folder, "*", asked)
    for _ in range(2):
        assert hub.find(REPOSITORY).folder.name == COMMIT
    assert asked == [["*.json", "*.txt", "*.py", "model*.safetensors"]]


def test_without_safetensors_pytorchs_format_is_asked_for(cache_folder, monkeypatch):
    asked: list = []
    downloading(monkeypatch, cache_folder, "*.json", asked)
    with pytest.raises(WeightsError, match=r"someone/an-encoder has no model.safetensors or pytorch_model.bin"):
        hub.find(REPOSITORY)
    assert [patterns[-1] for patterns in asked] == ["model*.safetensors", "pytorch_model*.bin"]


def test_describing_downloads_nothing(cache_folder, monkeypatch):
    asked: list = []
    downloading(monkeypatch, cache_folder, "*", asked)
    with pytest.raises(WeightsError, match="not in the cache of Hugging Face; hear-transformers download hf someone"):
        catalogue.describe("hf", REPOSITORY)
    assert asked == []


def test_a_download_that_fails(cache_folder, monkeypatch):
    import huggingface_hub

    in_cache = huggingface_hub.snapshot_download

    def download(repository, *, local_files_only=False, **options):
        if local_files_only:
            return in_cache(repository, local_files_only=True)
        raise OSError("no route to host")

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    with pytest.raises(WeightsError, match=r"cannot be downloaded \(no route to host\); check the name, or give a"):
        hf.load_model(variant=REPOSITORY)
