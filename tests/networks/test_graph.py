"""Neighbours and messages beside plain computations; kernels of our own beside PyTorch's."""

import importlib.util
import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from hear_transformers import atgnn
from hear_transformers.networks import graph
from hear_transformers.networks.conv_norm import features_innermost, fold
from tests.helpers.golden import assert_equal, filled, noise

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]
needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None, reason="PyTorch comes without Triton here"
)

SIZES = [
    # clips, nodes, candidates, features, neighbours, dilation, with places
    (2, 50, 24, 10, 4, 2, True),
    (1, 70, 70, 16, 9, 1, False),
    (2, 5, 3, 8, 9, 2, True),
    (1, 1, 1, 1, 9, 1, False),
    (1, 33, 17, 80, 5, 3, True),
]
"""Fewer and more neighbours than candidates, and sizes that are no power of two."""


def graph_of(clips, n_nodes, n_candidates, features, k, dilation, has_places):
    """Make the arguments of `graph.joined`."""
    nodes, candidates = noise(clips, n_nodes, features), noise(clips, n_candidates, features, seed=1)
    return nodes, candidates, k, dilation, 0.1 * noise(n_nodes, n_candidates) if has_places else None


def joined_by_loops(nodes, candidates, k, dilation, nearness):
    """Choose neighbours one by one in float64."""
    joined = torch.cat([nodes, nodes], 2)
    for clip, (some, others) in enumerate(zip(nodes.double(), candidates.double(), strict=True)):
        similarity = torch.cosine_similarity(some[:, None], others[None], 2)
        similarity += 0 if nearness is None else nearness
        for node, order in enumerate(similarity.argsort(1, descending=True)):
            chosen = order[: k * dilation : dilation]
            joined[clip, node, nodes.shape[2] :] = (others[chosen] - some[node]).amax(0)
    return joined


# Neighbours


@pytest.mark.parametrize("levels", [2, 5, 1_000_000])
@pytest.mark.parametrize("step", [1, 2, 3])
@pytest.mark.parametrize(("size", "n"), [(512, 9), (512, 1), (80, 9), (81, 9), (24, 3), (8, 1), (9, 3)])
def test_the_largest_of_blocks_are_those_of_all_with_ties_too(size, n, step, levels):
    rows = noise(3, 20, size).mul(levels).round() / levels
    found = graph.largest(rows, n, step)
    expected = rows.topk((n - 1) * step + 1, 2).values[:, :, ::step]
    assert rows.gather(2, found).equal(expected)
    assert all(len(set(places)) == n for places in found.flatten(0, 1).tolist())


def test_what_lies_behind_the_end_is_never_the_largest():
    rows = torch.full((1, 1, 512), -torch.inf)
    rows[..., 500:] = torch.arange(12.0)
    assert graph.largest(rows, 12, 1).flatten().tolist() == [*range(511, 499, -1)]


@pytest.mark.parametrize("size", SIZES)
def test_messages_are_those_of_loops(size):
    options = graph_of(*size)
    assert_equal(graph.joined(*options), joined_by_loops(*options), 1e-6)


# Going back


def bags(dtype=torch.float64):
    """Make rows, and the numbers of some for each of seven bags."""
    index = torch.stack([noise(12, seed=bag).argsort()[:4] for bag in range(7)])
    return noise(12, 5).to(dtype).requires_grad_(), index


def gradient_of(function, rows, index):
    """Give the gradient of a sum of weighted maxima."""
    maxima = function(rows, index)
    return torch.autograd.grad((maxima * noise(*maxima.shape, seed=9).to(maxima.dtype)).sum(), rows)[0]


def maxima_of_all(rows, index):
    return rows[index].amax(1)


def test_the_gradient_of_maxima_is_that_of_small_differences():
    rows, index = bags()
    assert torch.autograd.gradcheck(lambda rows: graph.Maxima.apply(rows, index), rows)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_gradient_of_maxima_is_that_of_pytorch(dtype):
    rows, index = bags(dtype)
    assert_equal(gradient_of(graph.Maxima.apply, rows, index), gradient_of(maxima_of_all, rows, index), 1e-6)


@pytest.mark.filterwarnings("ignore:.*should not be instantiated:DeprecationWarning")  # the compiler does it
def test_the_gradient_of_maxima_is_the_same_when_compiled():
    rows, index = bags()
    compiled = torch.compile(lambda rows, index: graph.Maxima.apply(rows, index), backend="aot_eager")
    assert_equal(gradient_of(compiled, rows, index), gradient_of(maxima_of_all, rows, index), 1e-6)


def test_of_equal_neighbours_the_nearest_gets_the_gradient():
    rows = torch.tensor([[1.0], [3.0], [3.0], [2.0]], requires_grad=True)
    graph.strongest(rows[None], torch.tensor([[[0, 2, 1, 3], [1, 0, 2, 3]]])).sum().backward()
    assert rows.grad.flatten().tolist() == [0, 1, 1, 0]


def test_gradients_of_16_bits_are_added_up_in_32():
    rows = torch.ones(1, 1, dtype=torch.bfloat16, requires_grad=True)
    graph.Maxima.apply(rows, torch.zeros(512, 1, dtype=torch.long)).sum().backward()
    assert rows.grad.item() == 512  # bfloat16 does not get beyond 256 by ones


def test_what_is_not_a_number_has_a_gradient_too():
    rows = torch.tensor([[1.0], [torch.nan]], requires_grad=True)
    graph.strongest(rows[None], torch.tensor([[[0, 1]]])).sum().backward()
    assert rows.grad.flatten().tolist() == [0, 1]


# Kernels

INTERPRETED = """
import torch
from hear_transformers.networks import graph, graph_kernel
from tests.networks.test_graph import graph_of

graph_kernel.NUMBERS = 256
for size in ((1, 17, 12, 10, 2, 2, True), (2, 5, 3, 18, 9, 2, False)):
    nodes, candidates, k, dilation, nearness = graph_of(*size)
    n = graph.count(k, dilation, candidates.shape[1])
    found = graph_kernel.join(nodes, candidates, n, dilation, nearness)
    assert found.equal(graph.joined(nodes, candidates, k, dilation, nearness)), size
"""


@pytest.mark.slow  # an interpreter's seconds
@needs_triton
def test_the_kernel_gives_the_same_where_triton_is_interpreted():
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    subprocess.run([sys.executable, "-c", INTERPRETED], check=True, env=environment)


@torch.no_grad()
def test_all_at_once_is_an_operation_that_compilers_know(monkeypatch):
    monkeypatch.setattr(graph, "tried", lambda device, dtype: "no compiler")
    options = graph_of(*SIZES[0])
    assert graph._joined_at_once(*options).equal(graph.joined(*options))
    torch.library.opcheck(graph._joined_at_once, options, test_utils=("test_schema", "test_faketensor"))


@pytest.mark.parametrize("device", [pytest.param("cuda", marks=needs_cuda)])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("size", [*SIZES, (3, 600, 512, 80, 9, 1, True), (2, 128, 1024, 1024, 9, 3, True)])
@torch.no_grad()
def test_the_kernel_of_a_card_gives_the_same_but_for_near_ties(size, dtype, device):
    nodes, candidates, k, dilation, nearness = graph_of(*size)
    options = nodes.to(device, dtype), candidates.to(device, dtype), k, dilation
    nearness = None if nearness is None else nearness.to(device)
    assert not isinstance(graph.tried(options[0].device, dtype), str)
    found, expected = graph.joined(*options, nearness), graph._joined(*options, nearness)
    assert (found == expected).all(2).float().mean() > 0.999


# Convolutions as products


def plain(module):
    """Give the layers of a `ConvNorm` one after the other, with a convolution of PyTorch's own."""
    conv, *others = module
    sizes = conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, conv.padding
    copied = nn.Conv2d(*sizes, groups=conv.groups)
    copied.weight, copied.bias = conv.weight, conv.bias
    return nn.Sequential(copied, *others)


def convolved(module, both, grid):
    """Apply a `GraphConv` as a convolution in groups of the features of nodes and messages by turns."""
    return plain(module)(atgnn.as_maps(both.unflatten(2, (2, -1)).mT.flatten(2), grid))


@pytest.mark.parametrize("kind", [atgnn.GroupedGraphConv, atgnn.DenseGraphConv])
@torch.no_grad()
def test_products_give_the_convolution_in_groups(kind):
    conv = filled(nn.Sequential(atgnn.GraphConv(12, 16)))
    both = noise(2, 15, 24)
    expected = convolved(conv[0], both, (3, 5))
    found = kind(fold(conv)[0][0])(both, (3, 5))
    assert found.shape == expected.shape == (2, 16, 3, 5)
    assert_equal(found, expected, 1e-5)
    assert_equal(conv[0](both, (3, 5)), expected, 1e-5)


TRAINED = {
    "1x1": lambda: atgnn.ConvNorm(8, 12, gelu=True),
    "3x3": lambda: atgnn.ConvNorm(8, 12, 3, stride=2),
    "groups": lambda: atgnn.GraphConv(4, 12),
}


@pytest.mark.parametrize("kind", TRAINED)
def test_training_without_what_a_normalisation_takes_away_gives_the_same(kind):
    found, expected = filled(TRAINED[kind]()).train(), filled(TRAINED[kind]()).train()
    inputs = noise(2, 15, 8) if kind == "groups" else atgnn.as_maps(noise(2, 15, 8), (3, 5))
    run = found(inputs, (3, 5)) if kind == "groups" else found(inputs)
    wanted = convolved(expected, inputs, (3, 5)) if kind == "groups" else plain(expected)(inputs)
    assert_equal(run.detach(), wanted.detach(), 1e-5)
    for each in (run, wanted):
        (each * noise(*each.shape, seed=3)).sum().backward()
    for name, buffer in found.named_buffers():
        torch.testing.assert_close(buffer, expected.get_buffer(name))
    assert not found[0].bias.grad.any()
    for name in ("0.weight", "1.weight", "1.bias"):
        assert_equal(found.get_parameter(name).grad, expected.get_parameter(name).grad, 1e-4)


def test_a_copy_for_inference_has_products_only():
    block = atgnn.Block(None, atgnn.Grapher(8, 1, 3, 1, 0.0), atgnn.FeedForward(8, 0.0)).eval()
    copied = fold(block)
    features_innermost(copied)
    assert [module for module in copied.modules() if isinstance(module, nn.Conv2d)] == []
