"""Networks rewritten for inference give the numbers of those that they were made of."""

import copy

import pytest
import torch
from torch import nn

from hear_transformers import atgnn, efficientat, panns
from hear_transformers.networks import conv_norm, winograd
from hear_transformers.networks.conv_norm import features_innermost, fold
from hear_transformers.networks.winograd import Winograd
from tests.helpers.golden import assert_equal, filled, noise

MEL, WAVE = (2, 64, 130), (2, 40_000)
PANNS = {
    "cnn14": MEL,
    "cnn6": MEL,
    "cnn14_decisionlevelatt": MEL,
    "resnet54": MEL,
    "mobilenetv1": MEL,
    "mobilenetv2": MEL,
    "leenet24": WAVE,
    "dainet19": WAVE,
    "res1dnet31": WAVE,
    "wavegram_logmel_cnn14": WAVE,
}
"""A network of every kind, and the shape of its input."""

STAY = {
    # Of the log-mel, before which is no convolution; of a clip's bands, of weights that no output needs.
    panns.FAMILY.name: {"bn0", "att_block.bn_att"},
    # Behind convolutions whose kernels are computed for every window.
    efficientat.FAMILY.name: {"exp_norm", "depth_norm", "proj_norm"},
    atgnn.FAMILY.name: set(),
}
"""Normalisations without a convolution, or ends of their names."""


def networks():
    """Give one small network of every kind: its family, the network, its input."""
    for variant, shape in PANNS.items():
        options = {**panns.VARIANTS[variant].network, "width": 0.125}
        yield pytest.param("panns", lambda options=options: panns.network(**options), shape, id=variant)
    for variant in ("mn10_as_fc", "dymn10_replace_se_as", "frame_mn10_strong", "matpac_mobilenetv3"):
        options = {**efficientat.VARIANTS[variant].network, "width": 0.1}
        build = lambda options=options: efficientat.EfficientAT(**options)  # noqa: E731
        yield pytest.param("efficientat", build, (2, 128, 100), id=variant)
    small = {"channels": (8, 16, 24, 32), "depths": (1, 2, 1, 1), "label_depths": (1, 1, 2, 1), "frames": 64}
    yield pytest.param("atgnn", lambda: atgnn.ATGNN(**small), (2, 128, 64), id="pyr")


@pytest.mark.parametrize(("family", "build", "shape"), networks())
@torch.no_grad()
def test_a_folded_network_gives_the_same_numbers_in_every_layer(family, build, shape):
    network = filled(build())
    inputs = 0.1 * noise(*shape)
    expected = network(inputs, list(network.layers))
    folded = fold(network)
    left = {name for name, module in folded.named_modules() if isinstance(module, conv_norm.NORMS)}
    assert {name for name in left if not name.endswith(tuple(STAY[family]) or "-")} == set()
    features_innermost(folded)
    for layer, found in folded(inputs, list(network.layers)).items():
        assert_equal(found, expected[layer], 1e-5)


@pytest.mark.parametrize(("family", "build", "shape"), networks())
def test_folding_leaves_the_network_as_it_is(family, build, shape):
    network = filled(build())
    before = copy.deepcopy(network.state_dict())
    kinds = [type(module) for module in network.modules()]
    folded = fold(network)
    features_innermost(folded)
    assert [type(module) for module in network.modules()] == kinds
    assert all(parameter.is_contiguous() for parameter in network.parameters())
    after = network.state_dict()
    assert before.keys() == after.keys()
    assert all(tensor.equal(after[key]) for key, tensor in before.items())


def test_what_is_not_folded_is_shared():
    network = filled(panns.network(**{**panns.VARIANTS["cnn14"].network, "width": 0.125}))
    assert fold(network).fc1.weight is network.fc1.weight


def test_a_pooling_with_zeros_or_an_activation_parts_them():
    conv, norm = nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4)
    assert list(conv_norm.conv_norms(nn.Sequential(conv, nn.AvgPool2d(2), norm))) == [("0", "2")]
    assert list(conv_norm.conv_norms(nn.Sequential(conv, nn.AvgPool2d(3, padding=1), norm))) == []
    assert list(conv_norm.conv_norms(nn.Sequential(conv, nn.ReLU(), norm))) == []
    assert list(conv_norm.conv_norms(nn.Sequential(norm, conv))) == []


# Convolutions as products


def conv(inputs: int = 5, outputs: int = 7, **options) -> nn.Conv2d:
    return filled(nn.Conv2d(inputs, outputs, 3, padding=1, **options))


@pytest.mark.parametrize("size", [(1, 1), (1, 2), (2, 1), (3, 5), (8, 8), (31, 2), (9, 16)])
@pytest.mark.parametrize("bias", [True, False])
@torch.no_grad()
def test_products_give_the_convolution(size, bias):
    maps = noise(3, 5, *size)
    expected = conv(bias=bias)(maps)
    assert_equal(Winograd(conv(bias=bias))(maps), expected, 2e-6)
    innermost = maps.contiguous(memory_format=torch.channels_last)
    assert_equal(Winograd(conv(bias=bias))(innermost), expected, 2e-6)


@torch.no_grad()
def test_rows_that_do_not_fit_the_buffer_follow_each_other(monkeypatch):
    maps = noise(2, 5, 23, 6)
    expected = Winograd(conv())(maps)
    monkeypatch.setattr(winograd, "BUFFER_BYTES", 2 * 3 * 5 * 16 * 4 * 3)  # three rows of tiles
    assert_equal(Winograd(conv())(maps), expected, 1e-6)


@pytest.mark.parametrize(
    ("options", "pays"),
    [
        ({}, True),
        ({"bias": False}, True),
        ({"groups": 2}, False),
        ({"stride": 2}, False),
        ({"dilation": 2}, False),
        ({"padding": 0}, False),
        ({"padding_mode": "circular"}, False),
        ({"kernel_size": 5}, False),
        ({"in_channels": 128}, False),
        ({"out_channels": 128}, False),
    ],
)
def test_only_large_plain_convolutions_become_products(options, pays):
    with torch.device("meta"):
        usual = {"in_channels": 256, "out_channels": 256, "kernel_size": 3, "padding": 1}
        assert winograd.pays(nn.Conv2d(**{**usual, **options})) is pays


@pytest.mark.slow
@torch.no_grad()
def test_cnn14_of_products_gives_the_same_numbers():
    network = filled(panns.network(**panns.VARIANTS["cnn14"].network))
    mel = 10 * noise(2, 64, 333)
    expected = network(mel, ["5", "features"])
    folded = fold(network)
    winograd.replace_convolutions(folded)
    features_innermost(folded)
    assert sum(isinstance(module, Winograd) for module in folded.modules()) == 7
    for layer, found in folded(mel, ["5", "features"]).items():
        assert_equal(found, expected[layer], 1e-5)
