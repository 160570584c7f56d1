"""What the transformer families share."""

import pytest
import torch

from hear_transformers.networks.transformer import Attention, DropPath, clips_together


def test_branches_are_dropped_in_training_only() -> None:
    drop, ones = DropPath(0.5), torch.ones(1000, 2, 3)
    assert drop.eval()(ones) is ones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = drop.train()(ones)
    assert dropped.unique().tolist() == [0, 2]
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert dropped.flatten(1).amax(1).equal(dropped.flatten(1).amin(1)), "a branch is dropped whole"


@pytest.mark.parametrize(
    ("batch", "length", "n"), [(8, 14, 8), (8, 65, 1), (6, 14, 2), (7, 14, 1), (64, 1, 64), (16, 60, 2)]
)
def test_short_clips_share_tiles_of_attention(batch, length, n):
    assert clips_together(batch, length) == n


@torch.no_grad()
def test_clips_that_share_a_tile_attend_to_themselves_alone():
    attention = Attention(24, 3).eval()
    tokens = torch.randn(8, 14, 24, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(attention.attend(tokens, None, 8), attention(tokens), rtol=0, atol=1e-6)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_on_cuda_they_attend_as_on_the_cpu(dtype):
    attention = Attention(192, 3).eval()
    tokens = torch.randn(64, 14, 192, generator=torch.Generator().manual_seed(0))
    expected = attention(tokens)
    found = attention.to("cuda", dtype)(tokens.to("cuda", dtype)).float().cpu()
    torch.testing.assert_close(found, expected, rtol=0, atol={torch.float32: 1e-4, torch.bfloat16: 2e-2}[dtype])
