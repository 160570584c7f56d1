"""ATST-Frame against what the authors' own code answers (tests/data/golden), and PretrainedSED's wrapper of it."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import atst, catalogue
from hear_transformers.benchmarks import peers
from tests.helpers.golden import assert_equal, by_size, golden_audio, golden_state_dict, noise, small_build

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
BLOCKS = [str(i) for i in range(1, 13)]
SMALL = {"dim": 48, "depth": 2, "heads": 3}
small = partial(small_build, atst, SMALL)


def loaded(name, folder):
    """Load a network from a file in the authors' layout, with the answers to it."""
    with np.load(GOLDEN / f"atst-{name}.npz") as answers:
        answers = dict(answers)
    path = folder / "net.ckpt"
    torch.save({"state_dict": golden_state_dict(GOLDEN / f"atst-{name}.json"), "epoch": 3}, path)
    return answers, atst.load_model(path, name)


# The authors' numbers, and those of another package


@pytest.mark.slow
def test_avex_answers_the_same():
    for module in ("avex", "einops", "pytorch_lightning"):
        pytest.importorskip(module, reason="needs avex, which is in no extra, einops and pytorch-lightning")
    peer = peers.Avex("cpu")
    clips = golden_audio(16_000, 75_200)
    with torch.no_grad(), peers.silence_peers():
        assert_equal(peer.ours("frame_small").embed_scenes(clips), peer.embed(peer.workloads[0], clips))


@pytest.fixture(scope="module", params=by_size(["frame_base", "frame_small"], {"frame_small"}))
def network(request, tmp_path_factory):
    return loaded(request.param, tmp_path_factory.mktemp("atst"))


@torch.no_grad()
def test_every_layer_is_the_authors(network):
    answers, model = network
    mel = model.frontend(golden_audio(16_000, int(answers["n_samples"])))
    assert_equal(mel[:, :, ::64], answers["mel"])
    taps = model.trunk(mel, [*BLOCKS, "norm"])
    for layer in BLOCKS:
        assert_equal(taps[layer].mean((1, 2))[:, :64], answers[f"tap_mean_block{layer}"])
    assert_equal(taps["6"][:, answers["tokens_index"], 0], answers["tokens_block6"])
    assert_equal(taps["norm"][:, answers["tokens_index"], 0], answers["features_tokens"])
    assert_equal(taps["norm"].mean((1, 2)), answers["embedding"])


def test_scenes_are_the_authors(network):
    answers, model = network
    for part, step in (("", 5), ("short_", 11)):
        clips = golden_audio(16_000, int(answers[f"{part}n_samples"]))
        assert_equal(model.embed_scenes(clips)[:, ::step], answers[f"{part}scene"])


@torch.no_grad()
def test_pieces_of_a_long_clip_are_the_authors(network):
    answers, model = network
    # Theirs have one spectrogram in common, and the frame after every 250 tokens is lost.
    mel = model.frontend(golden_audio(16_000, int(answers["long_n_samples"])))
    pieces = [model.trunk(piece, ["features"])["features"].mean((1, 2)) for piece in mel.split(1001, 2)]
    assert_equal(torch.stack(pieces).mean(0)[:, ::11], answers["long_scene"])


@torch.no_grad()
def test_a_short_clip_is_what_the_authors_get_of_a_padded_one(network):
    answers, model = network
    mel = model.frontend(golden_audio(16_000, int(answers["n_samples"])))[:1]
    lengths = answers["padded_frames"].tolist()
    found = [model.trunk(mel[:, :, :length], ["norm"])["norm"].mean((1, 2)) for length in lengths]
    assert_equal(torch.cat(found), answers["padded_scene_last"])


@pytest.mark.slow
@torch.no_grad()
def test_classes_of_frames_and_clips_are_those_of_pretrained_sed(tmp_path):
    answers, model = loaded("frame_strong", tmp_path)
    mel = model.frontend(golden_audio(16_000, int(answers["n_samples"])))
    assert_equal(mel[:, None, :, ::64], answers["mel"])
    taps = model.trunk(mel, ["norm", "framewise", "logits"])
    assert_equal(taps["norm"][:, answers["sequence_index"], 0], answers["sequence_frames"])
    assert_equal(taps["framewise"][:, ::25, 0].transpose(1, 2), answers["strong"])
    assert_equal(taps["logits"], answers["weak"])


# The front end


def test_the_floor_is_that_of_each_clip():
    loud = noise(1, 16_000) / 10
    quiet = loud / 10_000  # 80 dB below
    frontend = atst.ATST_MEL.build()
    together, alone = frontend(torch.cat([loud, quiet])), torch.cat([frontend(loud), frontend(quiet)])
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-6)
    assert together[1].std() > 0.01


def test_silence_differs_between_the_two_dialects():
    silence = torch.zeros(1, 16_000)
    for spec, level in ((atst.ATST_MEL, -100.0), (atst.SED_MEL, -50.0)):
        assert_equal(spec.build()(silence), torch.full((1, 64, 101), spec.normalised(level)))


def test_normalisation_is_read_and_written_alike():
    spec = atst.ATST_MEL
    same = spec.with_normalisation(*spec.normalisation)
    assert same.normalised(-30.0) == pytest.approx(spec.normalised(-30.0))
    assert spec.with_normalisation(-10.0, 20.0).normalised(10.0) == pytest.approx(1.0)


@pytest.mark.parametrize("n_samples", [1, 512, 513, 165_000])
def test_scenes_of_any_length_are_embedded(n_samples):
    assert small("frame_base").embed_scenes(noise(2, n_samples) / 10).isfinite().all()


def test_tokens_lie_where_their_audio_is():
    clip = torch.zeros(1, 48_000)
    clip[:, 24_000:24_400] = noise(1, 400)
    model = small("frame_base", layer=0, hop_ms=10)
    silence = model.embed_timestamps(torch.zeros_like(clip))[0]
    embeddings, centres_ms = model.embed_timestamps(clip)
    # The floor of 80 dB below the loudest is that of silence here, as noise is no louder than -20 dB.
    changed = (embeddings - silence)[0].norm(dim=1) > 1e-2
    assert abs(centres_ms[changed].mean() - 1_512.5) <= 20


# Files


def authors(trunk):
    """Name the tensors of a network as the authors do."""
    weights = {
        name.replace("patch_embed.proj.", "patch_embed.patch_embed."): tensor
        for name, tensor in trunk.state_dict().items()
    }
    weights["patch_embed.patch_embed.weight"] = weights["patch_embed.patch_embed.weight"].flatten(1)
    return {"mask_embed": torch.zeros(1, 1, 48), **weights}


def load_small(path, variant):
    return atst.load_model(path, variant, network={"heads": 3})


def test_the_teacher_is_read_from_an_archive_of_training(tmp_path):
    teacher, student = (small("frame_base").trunk for _ in range(2))
    with torch.no_grad():
        student.pos_embed.fill_(3.0)
    parts = {"student": student, "teacher": teacher}
    names = {f"model.{part}.encoder.{name}": tensor for part in parts for name, tensor in authors(parts[part]).items()}
    torch.save({"state_dict": {**names, "model.student.projector.weight": torch.zeros(3, 48)}}, tmp_path / "net.ckpt")
    model = load_small(tmp_path / "net.ckpt", "frame_base")
    torch.testing.assert_close(model.trunk.state_dict(), teacher.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("variant", ["frame_strong", "frame_weak", "frame_ssl"])
def test_files_of_pretrained_sed_have_their_classifiers(variant, tmp_path):
    trunk = small(variant).trunk
    weights = {name if "_head." in name else f"model.atst.{name}": tensor for name, tensor in authors(trunk).items()}
    torch.save(weights, tmp_path / "net.pt")
    model = load_small(tmp_path / "net.pt", variant)
    torch.testing.assert_close(model.trunk.state_dict(), trunk.state_dict(), rtol=0, atol=0)
    assert model.trunk.layers.keys() == trunk.layers.keys()
    assert (model.labels is not None and len(model.labels) == 447) == (variant == "frame_strong")


def test_a_frame_classifier_of_ones_own_is_found(tmp_path):
    trunk = atst.AtstFrame(**SMALL, frame_classes=5)
    torch.save(trunk.state_dict(), tmp_path / "net.pt")
    model = load_small(tmp_path / "net.pt", "frame_base")
    assert model.trunk.strong_head.out_features == 5


def test_the_tensors_say_that_a_file_is_of_this_family(tmp_path):
    trunk = atst.AtstFrame(dim=64, depth=2, heads=1, n_classes=3, frame_classes=4)
    torch.save(trunk.state_dict(), tmp_path / "net.pt")
    assert catalogue.family_of_checkpoint(str(tmp_path / "net.pt")) == "atst"
