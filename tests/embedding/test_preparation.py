"""A convolutional network runs as a copy in inference, and what is done to the network is done to what runs."""

import copy
import pickle

import pytest
import torch
from torch import nn

from hear_transformers import efficientat, mast, panns
from hear_transformers.embedding.preparation import ready
from hear_transformers.networks.conv_norm import NORMS
from hear_transformers.networks.winograd import Winograd
from tests.helpers.golden import assert_equal, noise, small_build

needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def small(**options):
    return small_build(efficientat, {"width": 0.1}, "mn10_as", **options)


@pytest.fixture
def model():
    return small()


@pytest.fixture
def clips():
    return noise(2, 16_000).clamp(-1, 1)


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, NORMS) for module in network.modules())


@torch.no_grad()
def test_a_copy_runs_and_is_made_once(model):
    copied = ready(model.trunk, "float32")
    assert copied is not model.trunk
    assert (norms(model.trunk) > 0, norms(copied)) == (True, 0)
    assert ready(model.trunk, "float32") is copied


@torch.no_grad()
def test_a_copy_is_no_part_of_the_model(model, clips):
    names, size = list(model.state_dict()), len(pickle.dumps(model))
    model.embed_scenes(clips)
    assert list(model.state_dict()) == names
    assert len(pickle.dumps(model)) < 1.01 * size


def test_training_gradients_and_other_families_need_the_network_itself(model):
    assert ready(model.trunk, "float32") is model.trunk
    with torch.no_grad():
        assert ready(model.trunk.train(), "float32") is model.trunk
        transformer = mast.load_model(variant="tiny", pretrained=False).trunk.eval()
        assert ready(transformer, "float32") is transformer


def halve(trunk):
    with torch.no_grad():
        for parameter in trunk.parameters():
            parameter.mul_(0.5)


CHANGES = {
    "in place": halve,
    "loaded": lambda trunk: trunk.load_state_dict({key: 0.5 * value for key, value in trunk.state_dict().items()}),
    "assigned": lambda trunk: trunk.load_state_dict(
        {key: 0.5 * value for key, value in trunk.state_dict().items()}, assign=True
    ),
    "trained": lambda trunk: [trunk.train(), trunk(noise(2, 128, 50), ["features"]), trunk.eval()],
    "part replaced": lambda trunk: setattr(
        trunk.features[3].block[-1], "0", nn.Conv2d(trunk.features[3].block[-1][0].in_channels, 8, 1)
    ),
}


@pytest.mark.parametrize("change", CHANGES)
def test_changed_weights_are_those_that_run(model, clips, change):
    before = model.embed_scenes(clips)
    CHANGES[change](model.trunk)
    found = model.embed_scenes(clips)
    assert not torch.allclose(found, before)
    assert_equal(found, model(clips).detach(), 1e-5)


def test_hooks_see_what_they_were_registered_for(model, clips):
    model.embed_scenes(clips)
    seen = []
    handle = model.trunk.features[2].register_forward_hook(lambda *_: seen.append(1))
    model.embed_scenes(clips)
    assert seen == [1]
    handle.remove()
    model.embed_scenes(clips)
    assert seen == [1]


def test_a_model_made_in_inference_mode_runs(clips):
    with torch.inference_mode():
        inside = small().embed_scenes(clips)
    assert_equal(inside, small().embed_scenes(clips), 1e-6)


def test_a_copied_model_has_its_own_weights(model, clips):
    expected = model.embed_scenes(clips)
    other = copy.deepcopy(model)
    halve(other.trunk)
    assert not torch.allclose(other.embed_scenes(clips), expected)
    assert model.embed_scenes(clips).equal(expected)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:precision='bfloat16' is slow")
def test_maps_have_their_features_innermost(precision, clips):
    model = small(precision=precision)
    with torch.no_grad():
        network = ready(model.trunk, precision)
        layouts = []
        for module in network.modules():
            if isinstance(module, nn.Conv2d):
                module.register_forward_hook(
                    lambda conv, inputs, maps: layouts.append(maps.is_contiguous(memory_format=torch.channels_last))
                )
        network(noise(2, 128, 100), ["features"])
    assert set(layouts) == {True}


@torch.no_grad()
def test_products_are_for_float32_on_cpus():
    with torch.device("meta"):
        trunk = panns.network(**panns.VARIANTS["cnn10"].network).eval()
    trunk = trunk.to_empty(device="cpu")
    counts = {}
    for precision in ("float32", "bfloat16"):
        copied = ready(trunk, precision)
        counts[precision] = sum(isinstance(module, Winograd) for module in copied.modules())
    assert counts == {"float32": 3, "bfloat16": 0}


@pytest.mark.parametrize(
    "precision", [pytest.param(each, marks=needs_cuda) for each in ("float32", "tf32", "bfloat16")]
)
def test_a_copy_on_cuda_errs_no_more_than_the_network(precision, clips):
    model = small(precision=precision, device="cuda")
    exact = small().embed_scenes(clips)
    copied = model.embed_scenes(clips.cuda()).cpu()
    # Both round in their own way, so what they differ by says less than how far each is off. Of the products of the
    # network itself, cuDNN makes some in float32 proper where TF32 is allowed, which has three more bits than bfloat16.
    itself = small(precision="bfloat16", device="cuda") if precision == "tf32" else model
    allowed = 1e-5 * exact.abs().max() + 2 * (itself(clips.cuda()).detach().cpu() - exact).abs().max()
    assert (copied - exact).abs().max() <= allowed
