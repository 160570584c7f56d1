"""What replaces convolutions and pools for 16 bits on CUDA gives their numbers, here in float32."""

import copy
import importlib.util
import math
import os
import subprocess
import sys

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from hear_transformers.networks import fused as kernel_choice
from hear_transformers.networks import tensor_cores
from hear_transformers.networks.conv_norm import features_innermost, fold, project
from hear_transformers.networks.tensor_cores import (
    BlockMeans,
    ConvActivation,
    ConvReLU,
    Depthwise,
    FromOneMap,
    Product,
    fuse,
)
from tests.helpers.golden import assert_equal, filled, noise
from tests.networks.test_conv_norm import networks

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="PyTorch comes without Triton here"
)

CHAINS = {
    "dense": ([nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], ConvReLU),
    "stride and dilation": ([nn.Conv2d(8, 16, 3, 2, 1, (1, 2)), nn.ReLU()], ConvReLU),
    "dense, other activation": (
        [nn.Conv2d(8, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.GELU()],
        ConvActivation,
    ),
    "pointwise": ([nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], Product),
    "pointwise without ReLU": ([nn.Conv2d(8, 16, 1)], Product),
    "pointwise, other activation": ([nn.Conv2d(8, 16, 1, bias=False), nn.BatchNorm2d(16), nn.Hardswish()], Product),
    "pointwise, wide": ([nn.Conv2d(72, 144, 1), nn.GELU()], Product),
    "depthwise": ([nn.Conv2d(8, 8, 5, 2, 2, groups=8, bias=False), nn.BatchNorm2d(8), nn.ReLU()], Depthwise),
    "depthwise, other activation": ([nn.Conv2d(8, 8, 3, padding=1, groups=8), nn.Hardswish()], Depthwise),
    "depthwise without bias": ([nn.Conv2d(8, 8, 3, padding=1, groups=8, bias=False), nn.ReLU()], Depthwise),
    "one map": ([nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU()], FromOneMap),
    "one map, stride": ([nn.Conv2d(1, 16, 3, (2, 1), 1), nn.Hardswish()], FromOneMap),
    "one map, 5x5": ([nn.Conv2d(1, 16, 5, (2, 1), 2), nn.GELU()], FromOneMap),
    "pool": ([nn.AvgPool2d(2)], BlockMeans),
    "pool along one axis": ([nn.AvgPool2d((3, 1))], BlockMeans),
}


KERNELS = [chain for chain, (_, kind) in CHAINS.items() if kind in (FromOneMap, Depthwise, ConvActivation, Product)]
"""What kernels of our own compute on a card."""


def fused_chain(chain, size, device="cpu", dtype=torch.float32):
    """Make a network in float32 on the CPU, what replaces it, and maps for both."""
    modules = copy.deepcopy(CHAINS[chain][0])
    network = filled(nn.Sequential(*modules))
    maps = noise(2, getattr(modules[0], "in_channels", 8), *size).to(memory_format=torch.channels_last)
    fused = copy.deepcopy(fold(network)).to(device, dtype)  # shares no tensors
    fuse(fused)
    features_innermost(fused)
    return network, fused, maps


@pytest.mark.parametrize("size", [(9, 7), (8, 6), (3, 10)])
@pytest.mark.parametrize("chain", CHAINS)
@torch.no_grad()
def test_what_is_fused_gives_the_same_numbers(chain, size):
    network, fused, maps = fused_chain(chain, size)
    expected = network(maps)
    assert type(fused[0]) is CHAINS[chain][1]
    found = fused(maps)
    assert_equal(found, expected, 1e-6)
    assert found.is_contiguous(memory_format=torch.channels_last)


@pytest.mark.parametrize(
    "modules",
    [
        [nn.Conv2d(8, 16, 3)],
        [nn.Conv2d(8, 16, 3), nn.ReLU6()],
        [nn.Conv2d(8, 16, 3), nn.AvgPool2d(2, 1), nn.ReLU()],
        [nn.Conv2d(8, 16, 3, groups=2), nn.ReLU()],
        [nn.Conv2d(8, 16, 3, padding=1, padding_mode="circular"), nn.ReLU()],
        [nn.Conv2d(8, 16, 3, padding="same"), nn.ReLU()],
        [nn.Conv1d(8, 16, 3), nn.ReLU()],
        [nn.AvgPool2d(3, 2, 1)],
        [nn.AvgPool2d(2, ceil_mode=True)],
        [nn.MaxPool2d(2)],
    ],
    ids=str,
)
def test_whatever_else_stays(modules):
    network = nn.Sequential(*modules)
    fuse(network)
    assert list(network) == modules


INTERPRETED = """
import torch
from hear_transformers.networks import kernels, tensor_cores
from tests.helpers.golden import assert_equal, noise
from hear_transformers.networks.conv_norm import project
from tests.networks.test_tensor_cores import KERNELS, PARTS, fused_chain, projection

kernels.DEPTHWISE_NUMBERS, kernels.ONE_MAP_NUMBERS, kernels.ACTIVATED = 128, 64, 512
tensor_cores.kernels_for = lambda maps: kernels
with torch.no_grad():
    for chain in KERNELS:
        network, fused, maps = fused_chain(chain, (3, 6))
        assert_equal(fused(maps), network(maps), 1e-6)
    for is_gated, is_residual in PARTS:
        layers, fused, given = projection(is_gated, is_residual)
        assert_equal(project(fused, *given), project(layers, *given), 1e-6)
"""


PARTS = [(False, True), (True, False), (True, True)]
"""Gate and residual."""


def projection(is_gated, is_residual, size=(3, 6), device="cpu", dtype=torch.float32):
    """Make the last layers of a block in float32, what replaces them, and maps, gate and residual for both."""
    layers = filled(nn.Sequential(nn.Conv2d(72, 24, 1, bias=False), nn.BatchNorm2d(24)))
    fused = copy.deepcopy(fold(layers)).to(device, dtype)
    fuse(fused)
    features_innermost(fused)
    maps, residual = noise(2, 72, *size), noise(2, 24, *size)
    maps, residual = (each.to(memory_format=torch.channels_last) for each in (maps, residual))
    return layers, fused, (maps, noise(2, 72).abs() if is_gated else None, residual if is_residual else None)


@pytest.mark.parametrize(("is_gated", "is_residual"), PARTS)
@torch.no_grad()
def test_a_projection_takes_gate_and_residual_along(is_gated, is_residual):
    layers, fused, (maps, gate, residual) = projection(is_gated, is_residual)
    expected = layers(maps if gate is None else maps * gate[:, :, None, None])
    expected = expected if residual is None else residual + expected
    assert isinstance(fused[0], Product)
    assert_equal(project(layers, maps, gate, residual), expected, 1e-6)
    assert_equal(project(fused, maps, gate, residual), expected, 1e-6)


@needs_triton
def test_kernels_give_the_same_numbers_where_triton_is_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


@torch.no_grad()
def test_pools_of_many_features_are_plain_means(monkeypatch):
    maps = noise(2, 8, 9, 7)
    expected = BlockMeans(2, 2)(maps)
    monkeypatch.setattr(tensor_cores, "MOST_CHANNELS", 4)
    assert_equal(BlockMeans(2, 2)(maps), expected, 1e-6)


@pytest.mark.parametrize(("family", "build", "shape"), networks())
@torch.no_grad()
def test_networks_give_the_same_numbers_in_every_layer(family, build, shape):
    network = filled(build())
    inputs = 0.1 * noise(*shape)
    expected = network(inputs, list(network.layers))
    fused = fold(network)
    fuse(fused)
    features_innermost(fused)
    for layer, found in fused(inputs, list(network.layers)).items():
        assert_equal(found, expected[layer], 1e-5)
    for layer, found in network(inputs, list(network.layers)).items():
        assert found.equal(expected[layer])


# On CUDA

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


@pytest.mark.parametrize("dtype", [pytest.param(each, marks=needs_cuda) for each in (torch.bfloat16, torch.float16)])
@pytest.mark.parametrize("size", [(33, 16), (3, 3), (7, 301)])
@pytest.mark.parametrize("fewest", [1, math.inf])
@pytest.mark.parametrize("chain", CHAINS)
@torch.no_grad()
def test_on_cuda_they_differ_by_rounding_alone(chain, fewest, size, dtype, monkeypatch):
    monkeypatch.setattr(kernel_choice, "FEWEST_NUMBERS", fewest)
    network, fused, maps = fused_chain(chain, size, "cuda", dtype)
    expected = network(maps.to(dtype).float())
    found = fused(maps.cuda().to(dtype)).float().cpu()
    assert_equal(found, expected, 2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.parametrize("dtype", [pytest.param(each, marks=needs_cuda) for each in (torch.bfloat16, torch.float16)])
@pytest.mark.parametrize("fewest", [1, math.inf])
@pytest.mark.parametrize(("is_gated", "is_residual"), PARTS)
@torch.no_grad()
def test_on_cuda_projections_differ_by_rounding_alone(is_gated, is_residual, fewest, dtype, monkeypatch):
    monkeypatch.setattr(kernel_choice, "FEWEST_NUMBERS", fewest)
    layers, fused, given = projection(is_gated, is_residual, (33, 16), "cuda", dtype)
    rounded = [None if each is None else each.to(dtype) for each in given]
    expected = project(layers, *[None if each is None else each.float() for each in rounded])
    found = project(fused, *[None if each is None else each.cuda() for each in rounded])
    assert_equal(found.float().cpu(), expected, 2e-2 if dtype == torch.bfloat16 else 3e-3)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@torch.no_grad()
def test_cudnn_applies_bias_and_relu():
    conv = nn.Conv2d(16, 32, 3, padding=1).cuda().bfloat16()
    maps = noise(2, 16, 20, 20).cuda().bfloat16().contiguous(memory_format=torch.channels_last)
    # Its sum with what the memory of the result held before must not show.
    torch.full((2, 32, 20, 20), torch.nan, device="cuda", dtype=torch.bfloat16)
    assert_equal(ConvReLU(conv)(maps).float().cpu(), F.relu(conv(maps)).float().cpu(), 2e-2)
