"""Kernels of our own give PyTorch's numbers, and are used where they can be only."""

import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch

from hear_transformers import mast
from hear_transformers.benchmarks.bulk import load_named
from hear_transformers.networks import fused
from hear_transformers.networks.fused import LayerNorm, kernels_for
from tests.helpers.golden import filled, noise

CARD = torch.device("cuda")
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="PyTorch comes without Triton here"
)

STRIDES = [((1, 1), (4, 4)), ((1, 2), (4, 2)), ((2, 2), (2, 1)), ((1, 2), (1, 1))]
"""Of queries and keys: those of MAST and another."""

INTERPRETED = """
import torch
from hear_transformers import mast
from hear_transformers.networks import kernels
from tests.networks.test_fused import STRIDES, normalised, pooling

mast.kernels_for = lambda grid: kernels
kernels.POSITIONS, kernels.KEYS = 4, 16
with torch.no_grad():
    for rows, features in ((50, 24), (3, 5000)):
        norm, tokens = normalised(rows, features)
        torch.testing.assert_close(kernels.layer_norm(tokens, norm), norm(tokens), rtol=0, atol=1e-5)
    for strides, size in ((STRIDES[1], (5, 9)), (STRIDES[2], (5, 9)), (STRIDES[3], (1, 40))):
        attention, grid = pooling(strides, size, batch=1)
        found = attention(grid)
        torch.testing.assert_close(found, attention.proj(attention._attend(grid).flatten(3)), rtol=0, atol=1e-5)
"""


def normalised(rows: int, features: int) -> tuple[LayerNorm, torch.Tensor]:
    """Make a normalisation and tokens for it."""
    return filled(LayerNorm(features, eps=1e-6)), 3 + noise(rows, features)


def pooling(strides, size, batch=2) -> tuple[mast.PoolingAttention, torch.Tensor]:
    """Make an attention with two heads and a grid for it."""
    shape = mast.Shape(6, 32, 2, *strides, grid=(8, 12))
    return filled(mast.PoolingAttention(shape)).eval(), noise(batch, *size, 6)


@needs_triton
def test_kernels_give_the_numbers_of_pytorch_where_triton_is_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


def test_kernels_are_for_large_tensors_on_cuda_without_gradients_only(monkeypatch):
    class Large(torch.Tensor):
        device = CARD

    monkeypatch.setattr(fused, "tried", lambda device, dtype: sys)
    large, small = (torch.zeros(numbers).as_subclass(Large) for numbers in (fused.FEWEST_NUMBERS, 100))
    with torch.no_grad():
        assert kernels_for(large) is sys
        assert kernels_for(small) is None
        assert kernels_for(torch.zeros(fused.FEWEST_NUMBERS)) is None
        assert kernels_for(large.double()) is None
        monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: device == "cuda")
        assert kernels_for(large) is None
    monkeypatch.undo()
    assert kernels_for(large) is None


def test_without_triton_pytorch_computes(monkeypatch):
    monkeypatch.setitem(sys.modules, "hear_transformers.networks.kernels", None)
    monkeypatch.delattr("hear_transformers.networks.kernels", raising=False)
    assert fused.tried.__wrapped__(CARD, torch.float32).startswith("ModuleNotFoundError: import of hear_transformers")


def test_where_triton_does_not_run_pytorch_computes():
    # It takes tensors on a card only, and raises for others whatever it lacks.
    assert isinstance(fused.tried.__wrapped__(torch.device("cpu"), torch.float32), str)


# On a card

TOLERANCES = [
    pytest.param(torch.float32, 1e-6, marks=needs_cuda),
    pytest.param(torch.bfloat16, 1e-2, marks=needs_cuda),
    pytest.param(torch.float16, 1e-3, marks=needs_cuda),
]
"""Types, and the relative error beside float64 that rounding makes."""


@pytest.fixture
def for_small_ones(monkeypatch):
    """Use the kernels for tensors of any size."""
    monkeypatch.setattr(fused, "FEWEST_NUMBERS", 1)


@pytest.mark.parametrize("features", [96, 192, 768, 1000, 5000])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.usefixtures("for_small_ones")
@torch.no_grad()
def test_a_normalisation_on_cuda_is_exact_but_for_rounding(features, dtype, tolerance):
    norm, tokens = normalised(1001, features)
    norm, tokens = norm.to(CARD, dtype), tokens.to(CARD, dtype)
    assert kernels_for(tokens) is not None
    found = norm(tokens)
    exact = norm.double()(tokens.double())
    assert (found - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("strides", STRIDES)
@pytest.mark.parametrize("size", [(8, 12), (7, 13), (1, 1)])
@pytest.mark.parametrize(("dtype", "tolerance"), TOLERANCES)
@pytest.mark.usefixtures("for_small_ones")
@torch.no_grad()
def test_an_attention_on_cuda_is_exact_but_for_rounding(strides, size, dtype, tolerance):
    attention, grid = pooling(strides, size)
    attention, grid = attention.to(CARD, dtype), grid.to(CARD, dtype)
    assert kernels_for(grid) is not None
    found = attention(grid)
    exact = attention.double()(grid.double())
    assert (found - exact).norm() <= tolerance * exact.norm()


@pytest.mark.parametrize("name", [pytest.param(each, marks=needs_cuda) for each in ("mast/base", "tiny")])
def test_embeddings_on_cuda_are_those_of_pytorch(name, monkeypatch):
    model = load_named(name, "cuda", precision="float32")
    audio = 0.1 * noise(3, 2 * model.sample_rate).to(CARD)
    monkeypatch.setattr(fused, "FEWEST_NUMBERS", math.inf)
    expected = model.embed_scenes(audio)
    monkeypatch.setattr(fused, "FEWEST_NUMBERS", 1)
    for _ in range(3):  # the third time from a graph, where one is made
        difference = model.embed_scenes(audio) - expected
        assert difference.norm() <= 1e-5 * expected.norm()
