"""Each pooling against its definition in NumPy."""

import numpy as np
import pytest
import torch

from hear_transformers.embedding.choices import CHOICES
from hear_transformers.embedding.framing import FRAMINGS
from hear_transformers.embedding.pooling import CLASS_TOKEN, POOLS
from hear_transformers.embedding.precision import AUTO, PRECISIONS

GRID = np.random.default_rng(0).standard_normal((2, 5, 3, 4)).astype(np.float32)  # (batch, time, freq, features)

EXPECTED = {
    "mean": GRID.mean((1, 2)),
    "max": GRID.max((1, 2)),
    "meanmax": np.concatenate([GRID.mean((1, 2)), GRID.max((1, 2))], 1),
    "flat": GRID.mean(1).reshape(2, 12),
    "meanstd": np.concatenate([GRID.mean((1, 2)), GRID.mean(2).std(1)], 1),
    "unroll": GRID.transpose(0, 2, 3, 1).reshape(2, 60),
}


@pytest.mark.parametrize("name", POOLS)
def test_pooling_is_what_its_name_says(name):
    np.testing.assert_allclose(POOLS[name].function(torch.from_numpy(GRID)).numpy(), EXPECTED[name], atol=1e-6)


def test_words_of_options_are_those_that_do_something() -> None:
    done = {"pool": {*POOLS, CLASS_TOKEN}, "framing": {*FRAMINGS}, "precision": {*PRECISIONS, AUTO}}
    done["resample"] = {"cpu", "device", AUTO}  # tests/embedding/test_resampling.py
    assert {option: set(words) for option, words in CHOICES.items()} == done
