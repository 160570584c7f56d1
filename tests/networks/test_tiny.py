"""The embedded model: what its layers are, and that its weights are in the package."""

from pathlib import Path

import pytest
import torch

from hear_transformers import hear, tiny
from hear_transformers.checkpoints import published, store
from hear_transformers.embedding.pooling import POOLS

EVERY_LAYER = [str(i) for i in range(13)] + ["features"]
LARGEST_FILE = 12_000_000  # bytes that a package may carry along


@pytest.fixture(scope="module")
def trunk():
    return tiny.load_model(pretrained=False).trunk


@pytest.fixture(scope="module")
def embedded():
    return tiny.load_model()


def mel(frames, clips=2):
    return torch.randn(clips, 128, frames, generator=torch.Generator().manual_seed(0))


def test_layers_are_the_stem_twelve_blocks_and_the_features(trunk):
    assert list(trunk.layers) == EVERY_LAYER


@pytest.mark.parametrize("frames", [8, 9, 200, 201])
@torch.no_grad()
def test_every_layer_has_a_token_every_four_frames(trunk, frames):
    for grid in trunk(mel(frames), EVERY_LAYER).values():
        assert grid.shape == (2, (frames + 3) // 4, 1, 192)


@torch.no_grad()
def test_class_token_is_a_vector_of_every_layer(trunk):
    wanted = [f"{layer}.cls" for layer in EVERY_LAYER]
    assert [vector.shape for vector in trunk(mel(40), wanted).values()] == [(2, 192)] * len(wanted)


@torch.no_grad()
def test_layer_is_the_same_whatever_else_is_wanted(trunk):
    alone = trunk(mel(40), ["5"])["5"]
    among = trunk(mel(40), EVERY_LAYER)["5"]
    torch.testing.assert_close(alone, among, rtol=0, atol=0)


@torch.no_grad()
def test_blocks_beyond_the_wanted_layer_do_not_run(monkeypatch):
    trunk = tiny.load_model(pretrained=False).trunk
    for block in trunk.blocks[3:]:
        monkeypatch.setattr(block, "forward", lambda _: pytest.fail("a block too many"))
    trunk(mel(40), ["0", "3", "2.cls"])


@pytest.mark.parametrize("token", [0, 4, 9])
def test_stem_token_sees_the_frames_its_axis_says(trunk, token):
    axis = trunk.layers["0"]
    frames = mel(40, 1).requires_grad_()
    trunk(frames, ["0"])["0"][0, token].sum().backward()
    seen = frames.grad[0].abs().sum(0).nonzero().flatten()
    centre = axis.hop * token + axis.offset
    assert seen.min() == max(0, centre - axis.receptive_field // 2)
    assert seen.max() == min(39, centre + axis.receptive_field // 2)


@torch.no_grad()
def test_clips_of_a_batch_do_not_touch_each_other(trunk):
    together = trunk(mel(40), ["features"])["features"]
    alone = trunk(mel(40)[:1], ["features"])["features"]
    torch.testing.assert_close(together[:1], alone, rtol=0, atol=1e-4)


@torch.no_grad()
def test_order_in_time_matters(trunk):
    forwards, backwards = (trunk(part, ["features.cls"])["features.cls"] for part in (mel(40), mel(40).flip(2)))
    assert not torch.allclose(forwards, backwards, atol=1e-3)


@pytest.mark.slow
@torch.no_grad()
@pytest.mark.parametrize("frames", [8, 200])
def test_bfloat16_gives_nearly_the_same_features(embedded, frames):
    half = tiny.load_model(precision="bfloat16")
    exact = embedded.trunk(mel(frames), ["features"])["features"]
    with torch.autocast("cpu", torch.bfloat16):
        rounded = half.trunk(mel(frames), ["features"])["features"].float()
    assert (rounded - exact).norm() < 0.05 * exact.norm()


def test_weights_are_in_the_package_and_small():
    row = published.find("tiny", "tiny")
    assert row.embedded
    assert Path(store.fetch(row)).stat().st_size <= LARGEST_FILE


def test_weights_are_not_the_random_ones(embedded, trunk):
    assert not torch.allclose(embedded.trunk.norm.weight, trunk.norm.weight)


@torch.no_grad()
def test_scene_of_a_short_clip_is_mean_and_deviation_of_the_features(embedded):
    clip = torch.sin(torch.arange(32_000) * 0.1)[None]
    grid = embedded.trunk(embedded.frontend(clip), ["features"])["features"]
    expected = POOLS["meanstd"].function(grid)
    torch.testing.assert_close(hear.get_scene_embeddings(clip, embedded), expected, rtol=0, atol=1e-5)


def test_timestamps_follow_the_network_at_50_ms(embedded):
    embeddings, timestamps = hear.get_timestamp_embeddings(torch.zeros(1, 32_000), embedded)
    assert embeddings.shape == (1, 21, 128 + 192 + 192)
    assert timestamps[0, :3].tolist() == [0.0, 50.0, 100.0]


@pytest.mark.parametrize(("depth", "blocks"), [(12, ("8", "12")), (6, ("2", "6")), (2, ("0", "2"))])
def test_blocks_of_timestamps_are_counted_from_the_last(depth, blocks):
    model = tiny.load_model(pretrained=False, network={"depth": depth})
    assert model.variant.timestamps[0].layers == ("mel", *blocks)
