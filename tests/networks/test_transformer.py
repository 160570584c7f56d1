"""What the transformer families share."""

import pytest
import torch

from hear_transformers.networks.transformer import DropPath


def test_branches_are_dropped_in_training_only() -> None:
    drop, ones = DropPath(0.5), torch.ones(1000, 2, 3)
    assert drop.eval()(ones) is ones
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        dropped = drop.train()(ones)
    assert dropped.unique().tolist() == [0, 2]
    assert dropped.mean().item() == pytest.approx(1, abs=0.1)
    assert dropped.flatten(1).amax(1).equal(dropped.flatten(1).amin(1)), "a branch is dropped whole"
