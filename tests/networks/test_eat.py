"""EAT against what the authors' own code answers (tests/data/golden); SSLAM is the same network."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import catalogue, eat
from hear_transformers.errors import WeightsError
from tests.helpers.golden import assert_equal, by_size, golden_audio, golden_state_dict, noise, small_build

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
NETWORKS = {
    "eat-base_finetuned": "base_epoch30_finetune_AS2M",
    "eat-base_pretrained": "base_epoch30_pretrain",
    "eat-large_pretrained_depth2": "base_epoch30_pretrain",  # with the width and depth of its tensors
}
SMALL = {"dim": 48, "depth": 2, "heads": 3}
small = partial(small_build, eat, SMALL)


# The authors' numbers


@pytest.fixture(scope="module", params=by_size(NETWORKS, {"eat-large_pretrained_depth2"}))
def network(request, tmp_path_factory):
    with np.load(GOLDEN / f"{request.param}.npz") as answers:
        answers = dict(answers)
    path = tmp_path_factory.mktemp("eat") / "net.pt"
    torch.save({"cfg": {"seed": 1}, "model": golden_state_dict(GOLDEN / f"{request.param}.json")}, path)
    return answers, eat.load_model(path, NETWORKS[request.param])


def filled(model, answers, part=""):
    """Compute the front end of the golden clips, filled to the length that the authors chose."""
    fbank = model.frontend(golden_audio(16_000, int(answers[f"{part}n_samples"])))
    missing = int(answers[f"{part}target_length"]) - fbank.shape[2]
    return torch.nn.functional.pad(fbank, (0, missing), value=model.variant.frontend.padding)


@torch.no_grad()
def test_every_layer_is_the_authors(network):
    answers, model = network
    fbank = filled(model, answers)
    assert_equal(fbank.transpose(1, 2)[:, ::64], answers["fbank"])
    blocks = [layer for layer in model.trunk.layers if layer.isdecimal()]
    taps = model.trunk(fbank, [*model.trunk.layers, *(f"{layer}.cls" for layer in blocks)])
    for layer in blocks:
        assert_equal(taps[layer].mean((1, 2))[:, :64], answers[f"tap_mean_block{layer}"])
        assert_equal(taps[f"{layer}.cls"][:, :64], answers[f"tap_cls_block{layer}"])
    last = blocks[-1]
    assert_equal(taps[f"{last}.cls"], answers["cls"])
    assert_equal(taps["features"].mean((1, 2)), answers["mean_patches"])
    for layer, name in (("6" if last != "2" else "2", "tokens_block"), (last, "features_tokens")):
        # In the authors' order: the class token, then time by time.
        tokens = torch.cat([taps[f"{layer}.cls"].unsqueeze(1), taps[layer].flatten(1, 2)], 1)
        assert_equal(tokens[:, answers["tokens_index"]], answers[name + layer * (name == "tokens_block")])
    if "logits" in answers:
        assert_equal(taps["logits"], answers["logits"])
        model.trunk.head[0].eps = 1e-5  # as in the files for Hugging Face
        assert_equal(model.trunk.head(taps[f"{last}.cls"]), answers["logits_hf"])
        model.trunk.head[0].eps = 1e-6


@torch.no_grad()
@pytest.mark.parametrize("part", ["short_", "other_"])
def test_a_clip_is_filled_to_whole_patches(network, part):
    answers, model = network
    clips = golden_audio(16_000, int(answers[f"{part}n_samples"]))
    assert model.frontend(clips).shape[2] == answers[f"{part}target_length"]
    assert_equal(model.embed_scenes(clips), answers[f"{part}cls"])
    if "logits" in model.trunk.layers:
        assert_equal(model.trunk(model.frontend(clips), ["logits"])["logits"], answers[f"{part}logits"])


@pytest.mark.numeric
@pytest.mark.parametrize("name", ["eat-base_pretrained", "eat-large_pretrained_depth2"])
def test_positions_are_the_authors_table(name):
    with np.load(GOLDEN / f"{name}.npz") as answers:
        trunk = eat.EAT(dim=answers["positions"].shape[1], depth=0)
        table = trunk.positions(8, eat.TIME_POSITIONS).transpose(0, 1).flatten(0, 1)
        assert_equal(table[answers["positions_index"]], answers["positions"], 1e-5)


# Files


def load_small(path, variant, **options):
    return eat.load_model(path, variant, network={"heads": 3}, **options)


def fairseq(trunk, head=False):
    """Name the tensors of a network as fairseq does: of pre-training, or fine-tuned."""
    weights = {}
    for name, tensor in trunk.state_dict().items():
        if name == "patch_embed.proj.weight":
            tensor = tensor.transpose(2, 3)
        for ours, theirs in (
            ("patch_embed.", "modality_encoders.IMAGE.local_encoder."),
            ("cls_token", "modality_encoders.IMAGE.extra_tokens"),
            ("pre_norm.", "modality_encoders.IMAGE.context_encoder.norm."),
            ("head.0.", "fc_norm."),
            ("head.1.", "head."),
        ):
            if name.startswith(ours):
                name = theirs + name.removeprefix(ours)
        of_head = name.startswith(("fc_norm.", "head."))
        weights[name if of_head or not head else f"model.{name}"] = tensor
    table = f"{'model.' if head else ''}modality_encoders.IMAGE.fixed_positional_encoder.positions"
    return {**weights, table: torch.zeros(1, 8 * 512, 48)}


def hugging_face(weights):
    """Rename the tensors of a file of fairseq to those of the authors' files for Hugging Face."""
    renamed = {
        name.removeprefix("model.")
        .replace("modality_encoders.IMAGE.", "")
        .replace("context_encoder.norm.", "pre_norm."): tensor
        for name, tensor in weights.items()
    }
    return {f"model.{name}": tensor for name, tensor in renamed.items()}


def assert_is(model, trunk):
    torch.testing.assert_close(model.trunk.state_dict(), trunk.state_dict(), rtol=0, atol=0)


def test_a_file_of_pretraining_gives_the_student(tmp_path):
    student, teacher = (small("base_epoch30_pretrain").trunk for _ in range(2))
    with torch.no_grad():
        teacher.pre_norm.bias.fill_(3.0)
    decoder = {"modality_encoders.IMAGE.decoder.proj.weight": torch.zeros(48, 48)}
    path = tmp_path / "pretrained.pt"
    torch.save({"cfg": {}, "model": {**fairseq(student), **decoder, "_ema": fairseq(teacher)}}, path)
    assert_is(load_small(path, "base_epoch30_pretrain"), student)
    assert_is(load_small(path, "base_epoch30_pretrain", weights_prefix="model._ema."), teacher)


@pytest.mark.parametrize(("rename", "epsilon"), [(dict, 1e-6), (hugging_face, 1e-5)])
def test_a_fine_tuned_file_has_its_classifier(rename, epsilon, tmp_path):
    trunk = small("base_epoch30_finetune_AS2M").trunk
    torch.save({"model": rename(fairseq(trunk, head=True))}, tmp_path / "net.pt")
    model = load_small(tmp_path / "net.pt", "base_epoch30_finetune_AS2M")
    assert_is(model, trunk)
    assert model.trunk.head[0].eps == epsilon


def test_a_file_without_a_tensor_is_refused(tmp_path):
    weights = fairseq(small("base_epoch30_pretrain").trunk)
    del weights["blocks.1.mlp.fc1.bias"]
    torch.save(weights, tmp_path / "net.pt")
    with pytest.raises(WeightsError, match=r"1 missing: blocks\.1\.mlp\.fc1\.bias"):
        load_small(tmp_path / "net.pt", "base_epoch30_pretrain")


def test_the_tensors_say_that_a_file_is_of_this_family(tmp_path):
    trunk = eat.EAT(dim=64, depth=2, heads=1, n_classes=3)
    torch.save(trunk.state_dict(), tmp_path / "net.pt")
    assert catalogue.family_of_checkpoint(str(tmp_path / "net.pt")) == "eat"


# Lengths


@pytest.mark.parametrize("n_samples", [1, 399, 400, 165_000])
def test_scenes_of_any_length_are_embedded(n_samples):
    assert small("base_epoch30_pretrain").embed_scenes(noise(2, n_samples) / 10).isfinite().all()


def test_the_longest_window_is_that_of_the_authors_table():
    model = small("base_epoch30_pretrain", window_ms=122_900.0)
    assert model.trunk.max_frames == 12_288
    assert model.embed_timestamps(noise(1, 16_000 * 122) / 10)[0].isfinite().all()


def test_the_class_token_alone_is_the_same_as_with_the_patches():
    model = small("base_epoch30_finetune_AS2M")
    fbank = model.frontend(noise(2, 16_000))
    with torch.no_grad():
        alone = model.trunk(fbank, ["2.cls", "logits"])
        beside = model.trunk(fbank, ["2.cls", "logits", "features"])
    for layer, tap in alone.items():
        torch.testing.assert_close(tap, beside[layer], rtol=0, atol=1e-6)


def test_frames_lie_where_their_audio_is():
    clip = torch.zeros(1, 48_000)
    clip[:, 24_000:24_400] = noise(1, 400)
    model = small("base_epoch30_pretrain", layer=0, hop_ms=10)
    silence = model.embed_timestamps(torch.zeros_like(clip))[0]
    embeddings, centres_ms = model.embed_timestamps(clip)
    changed = (embeddings - silence)[0].norm(dim=1) > 1e-3
    # A patch sees 175 ms, an interpolated one up to 160 ms more on either side.
    assert abs(centres_ms[changed].mean() - 1_512.5) <= 80
    assert centres_ms[changed].max() - centres_ms[changed].min() <= 500
