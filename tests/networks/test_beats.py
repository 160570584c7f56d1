"""BEATs against what the authors' own code answers (tests/data/golden), and OpenBEATs' release of the same network."""

from functools import partial
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers import beats
from hear_transformers.checkpoints import state_dicts
from hear_transformers.checkpoints.search import find_network
from hear_transformers.checkpoints.state_dicts import Content
from hear_transformers.networks.family import unfilled_trunk
from tests.helpers.golden import assert_equal, golden_audio, golden_state_dict, small_build

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
