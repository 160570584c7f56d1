"""The contract of a HEAR module, once over every variant of every family, on random weights."""

import importlib
import warnings
from dataclasses import replace

import pytest
import torch

from hear_transformers import FAMILIES, hear
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.networks.family import Variant, random_trunk, unfilled_trunk

# What makes the large networks small without changing what a variant is: widths and depths.
SMALL = {
    "passt": {"dim": 48, "depth": 2, "heads": 3},
    "ast": {"dim": 48, "depth": 2, "heads": 3},
    "panns": {"width": 0.1},
    "mast": {"dim": 24, "depths": (1, 1, 1, 1)},
    "atgnn": {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1)},
    "efficientat": {"width": 0.1},
    "dasheng": {"dim": 48, "depth": 2, "heads": 3},
    "ced": {"dim": 48, "depth": 2, "heads": 3},
    "eat": {"dim": 48, "depth": 2, "heads": 3},
    "atst": {"dim": 48, "depth": 2, "heads": 3},
    "clap": {"dim": 16, "depths": (2, 1, 1, 1), "heads": (1, 2, 4, 8), "projection": 24},
    "beats": {"dim": 48, "depth": 2, "heads": 3, "hidden": 96, "patch_dim": 32},
}
HEAR_SAMPLE_RATES = {16_000, 22_050, 32_000, 44_100, 48_000}


def family_of(name: str) -> hear.Family:
    return importlib.import_module(f"hear_transformers.{name}").FAMILY


EVERY_VARIANT = [
    pytest.param((name, variant), marks=pytest.mark.slow if i else ())
    for name in FAMILIES
    for i, variant in enumerate(family_of(name).variants)
]


def small(name: str, row: Variant) -> Variant:
    return replace(row, network={**row.network, **SMALL.get(name, {})})


def loader(name: str, variant: str) -> hear.Loader:
    """Make the loader of the small build of a variant."""
    family = family_of(name)
    return hear.Loader(replace(family, variants={variant: small(name, family.variants[variant])}))


def load(name: str, variant: str, **options) -> Embedder:
    """Call the family's `load_model` on its small build."""
    return loader(name, variant).load_model(pretrained=False, **options)


def noise(clips: int, seconds: float, sample_rate: int) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return torch.rand(clips, round(seconds * sample_rate), generator=generator) * 2 - 1


@pytest.mark.parametrize("name", FAMILIES)
def test_module_has_the_three_functions_of_hear(name):
    module = importlib.import_module(f"hear_transformers.{name}")
    assert module.get_scene_embeddings is hear.get_scene_embeddings
    assert module.get_timestamp_embeddings is hear.get_timestamp_embeddings
    assert callable(module.load_model)


@pytest.fixture(scope="module", params=EVERY_VARIANT, ids="-".join)
def model(request):
    return load(*request.param)


@pytest.mark.slow
def test_attributes_are_those_of_hear(model):
    assert isinstance(model, torch.nn.Module)
    assert model.sample_rate in HEAR_SAMPLE_RATES
    assert type(model.scene_embedding_size) is int
    assert type(model.timestamp_embedding_size) is int
    assert not model.training


@pytest.mark.parametrize("seconds", [0.0625, 0.16, 1.07])
def test_embeddings_have_the_promised_shape(model, seconds):
    audio = noise(2, seconds, model.sample_rate)
    scene = hear.get_scene_embeddings(audio, model)
    embeddings, timestamps = hear.get_timestamp_embeddings(audio, model)
    assert scene.shape == (2, model.scene_embedding_size)
    assert embeddings.shape == (*timestamps.shape, model.timestamp_embedding_size)
    assert scene.dtype == embeddings.dtype == timestamps.dtype == torch.float32
    assert scene.isfinite().all()
    assert embeddings.isfinite().all()


def test_timestamps_are_regular_and_within_the_clip(model):
    _, timestamps = hear.get_timestamp_embeddings(noise(1, 1.07, model.sample_rate), model)
    assert timestamps[0, 0] == 0
    assert (timestamps.diff() - model.variant.hop_ms).abs().max() < 1e-3
    assert 1_070 - model.variant.hop_ms < timestamps[0, -1] <= 1_070


def test_a_batch_equals_its_clips_one_by_one(model):
    audio = noise(3, 0.31, model.sample_rate)
    for embed in (model.embed_scenes, lambda clips: model.embed_timestamps(clips)[0]):
        together = embed(audio)
        one_by_one = torch.cat([embed(clip[None]) for clip in audio])
        torch.testing.assert_close(together, one_by_one, rtol=0, atol=1e-5 * together.abs().max().item())


def test_a_saved_model_is_the_same(model, tmp_path):
    model.save_pretrained(tmp_path)
    again = loader(*model.name).load_model(tmp_path)
    audio = noise(1, 1.07, model.sample_rate)
    assert again.embed_scenes(audio).equal(model.embed_scenes(audio))
    assert again.embed_timestamps(audio)[0].equal(model.embed_timestamps(audio)[0])
    assert again.provenance() == model.provenance() | {"weights_sha256": again.weights_sha256}


def test_every_layer_has_one_of_two_shapes(model):
    frames = model.frontend(noise(2, 1.0, model.sample_rate))
    wanted = [*model.trunk.layers, *(f"1.{token}" for token in model.trunk.prefix)]
    with torch.no_grad():
        taps = model.trunk(frames, wanted)
    assert set(taps) == set(wanted)
    for layer, tap in taps.items():
        axis = model.trunk.layers.get(layer)
        assert tap.ndim == 4 if axis else tap.ndim in (2, 4)
        assert len(tap) == 2
        if axis is not None:
            # As many positions as the time axis promises, but for one, or those whose field hangs over the end.
            beyond = (frames.shape[-1] - 1 - axis.offset) / axis.hop - (tap.shape[1] - 1)
            assert -1 <= beyond < 2 + (axis.receptive_field or 0) / (2 * axis.hop)


@pytest.mark.slow
@pytest.mark.parametrize("name", [name for name in FAMILIES if family_of(name).classifier])
def test_a_file_with_other_classes_loads(name, tmp_path):
    family = family_of(name)
    variant = next(iter(family.variants))
    row = small(name, family.variants[variant])
    ours = random_trunk(family, replace(row, network={**row.network, "n_classes": 7}))
    torch.save(ours.state_dict(), tmp_path / "own.pt")
    load_small = hear.Loader(replace(family, variants={variant: row})).load_model
    model = load_small(tmp_path / "own.pt", layer="logits")
    assert model.scene_embedding_size == 7
    torch.testing.assert_close(model.trunk.state_dict(), ours.state_dict(), rtol=0, atol=0)


@pytest.mark.parametrize("which", EVERY_VARIANT, ids="/".join)
def test_a_network_whose_weights_come_next_lacks_random_numbers_alone(which):
    name, variant = which
    family = family_of(name)
    row = small(name, family.variants[variant])
    drawn, unfilled = random_trunk(family, row), unfilled_trunk(family, row)
    shapes = [{key: value.shape for key, value in trunk.named_parameters()} for trunk in (drawn, unfilled)]
    assert shapes[0] == shapes[1]
    torch.testing.assert_close(dict(unfilled.named_buffers()), dict(drawn.named_buffers()), rtol=0, atol=0)


@pytest.mark.slow
def test_loading_prints_nothing_and_warns_of_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for name in FAMILIES:
            load(name, next(iter(family_of(name).variants)))
    assert capfd.readouterr() == ("", "")


@pytest.mark.slow
@pytest.mark.parametrize("name", FAMILIES)
def test_bfloat16_points_the_same_way(name):
    variant = next(iter(family_of(name).variants))
    layer = {"layer": -1}
    audio = noise(2, 0.5, 32_000)
    exact = load(name, variant, **layer).embed_timestamps(audio)[0]
    rounded = load(name, variant, precision="bfloat16", **layer).embed_timestamps(audio)[0]
    assert torch.cosine_similarity(exact, rounded, dim=-1).min() > 0.99
