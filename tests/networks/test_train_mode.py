"""Training mode of every network: gradients, steps, and evaluation as it was before and after."""

import importlib
from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from torch import nn

from hear_transformers import panns
from hear_transformers.errors import OptionError
from hear_transformers.networks import transformer
from hear_transformers.networks.family import random_trunk
from hear_transformers.networks.trunk import Trunk
from hear_transformers.passt import PaSST
from tests.networks import test_panns

CLASSES = 5
# Family, variant, what makes its network small, layer that a loss is put on. Of PANNs one of each kind of network.
NETWORKS = {
    "passt": ("passt", "base", {"dim": 48, "depth": 2, "heads": 3, "patchout": (4, 3)}, "logits"),
    "ast": ("ast", "audioset_10_10", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "mast": ("mast", "base", {"dim": 24, "depths": (1, 1, 1, 1)}, "logits"),
    "atgnn": ("atgnn", "pyr_t", {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1)}, "logits"),
    "eat": ("eat", "base_epoch30_finetune_AS2M", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "atst": ("atst", "frame_weak", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "mobilenet": ("efficientat", "mn01_as", {}, "logits"),
    "convolutional-head": ("efficientat", "mn10_as_fc", {"width": 0.1}, "logits"),
    "dynamic-mobilenet": ("efficientat", "dymn04_as", {"width": 0.1}, "logits"),
    "frame-passt": ("passt", "fpasst_strong", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "frame-mobilenet": ("efficientat", "frame_mn10_strong", {"width": 0.1}, "logits"),
    "projecting-mobilenet": ("efficientat", "matpac_mobilenetv3", {"width": 0.1}, "logits"),
    "tiny": ("tiny", "tiny", {"dim": 48, "depth": 2}, "features"),
    "dasheng": ("dasheng", "dasheng_base", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "ced": ("ced", "ced_tiny", {"dim": 48, "depth": 2, "heads": 3}, "logits"),
    "clap": ("clap", "clap-htsat-unfused", {"dim": 16, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8)}, "logits"),
    "beats": ("beats", "strong_1", {"dim": 48, "depth": 2, "heads": 3, "hidden": 96, "patch_dim": 32}, "logits"),
    **{f"panns-{kind}": ("panns", kind, {"width": test_panns.WIDTH}, "logits") for kind in test_panns.KINDS},
}
UNUSED = {
    **{name: ("strong_head.",) for name in ("beats", "frame-passt", "frame-mobilenet")},
    "projecting-mobilenet": ("projection.",),
} | {f"panns-{kind}": names for kind, names in test_panns.UNUSED.items()}


class Case:
    """A small network, a batch that it learns, and a loss."""

    def __init__(self, name: str) -> None:
        self.family_name, variant, changes, self.layer = NETWORKS[name]
        self.family = importlib.import_module(f"hear_transformers.{self.family_name}").FAMILY
        row = self.family.variants[variant]
        classes = {"n_classes": CLASSES} if self.layer == "logits" else {}
        self.row = replace(row, network={**row.network, **changes, **classes})
        self.trunk: Trunk = random_trunk(self.family, self.row)
        generator = torch.Generator().manual_seed(0)
        # Levels 10 dB apart, so that there is something to tell the clips by.
        levels = torch.tensor([1.0, 0.3, 0.1, 0.03]).unsqueeze(1)
        waveforms = torch.randn(4, row.frontend.sample_rate, generator=generator) * levels
        self.frames = row.frontend.build()(waveforms)
        self.targets = torch.eye(CLASSES)[:4]

    def loss(self, trunk: Trunk) -> torch.Tensor:
        output = trunk(self.frames, [self.layer])[self.layer].float()
        if self.layer == "logits":
            return nn.functional.binary_cross_entropy_with_logits(output, self.targets)
        return nn.functional.mse_loss(output.mean((1, 2))[:, :CLASSES], self.targets)

    def output(self, trunk: Trunk) -> torch.Tensor:
        with torch.no_grad():
            return trunk.eval()(self.frames, [self.layer])[self.layer]


@pytest.fixture(autouse=True)
def _same_draws():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        yield


@pytest.fixture(params=NETWORKS)
def name(request):
    return request.param


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_every_parameter_gets_a_gradient(name, precision):
    case = Case(name)
    trunk = case.trunk.train()
    with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bfloat16"):
        loss = case.loss(trunk)
    loss.backward()
    assert loss.isfinite()
    without = {key for key, parameter in trunk.named_parameters() if parameter.grad is None}
    assert without == {key for key, _ in trunk.named_parameters() if key.startswith(UNUSED.get(name, ()))}
    # Processes that share a batch wait for the gradient of every parameter that wants one.
    assert without == {key for key, parameter in trunk.named_parameters() if not parameter.requires_grad}
    gradients = {key: parameter.grad for key, parameter in trunk.named_parameters() if key not in without}
    assert not [key for key, gradient in gradients.items() if not gradient.isfinite().all()]
    normalised_away = biases_before_norm(trunk)
    assert not [key for key, gradient in gradients.items() if not gradient.any() and key not in normalised_away]


def biases_before_norm(trunk: Trunk) -> set[str]:
    """Name what a batch normalisation takes away, so that its gradient is nothing but rounding."""
    names = set()
    for prefix, module in trunk.named_modules():
        for (first, conv), (_, norm) in pairwise(module.named_children()):
            if isinstance(conv, nn.Conv2d) and isinstance(norm, nn.BatchNorm2d) and conv.bias is not None:
                names.add(f"{prefix}.{first}.bias")
    return names


@pytest.mark.slow
def test_steps_lower_the_loss(name):
    case = Case(name)
    trunk = case.trunk.train()
    optimiser = torch.optim.AdamW(trunk.parameters(), lr=1e-3)
    losses = []
    for _ in range(15):
        torch.manual_seed(0)  # the same things are dropped in every step
        optimiser.zero_grad()
        loss = case.loss(trunk)
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < 0.9 * losses[0]
    fresh = case.family.network(**case.row.network)
    fresh.load_state_dict(trunk.state_dict())
    trained = case.output(trunk)
    torch.testing.assert_close(trained, case.output(fresh), rtol=0, atol=1e-6 * trained.abs().max().item())


@pytest.mark.slow
def test_evaluation_draws_nothing(name):
    case = Case(name)
    state = torch.get_rng_state()
    outputs = [case.output(case.trunk) for _ in range(2)]
    assert torch.equal(*outputs)
    assert torch.equal(torch.get_rng_state(), state)


# Patchout


@pytest.fixture
def patchout():
    network = {"dim": 48, "depth": 2, "heads": 3, "n_classes": CLASSES}
    return PaSST(**network, patchout=(4, 20)).train(), torch.rand(2, 128, 998)


def count_tokens(trunk: PaSST, mel: torch.Tensor) -> int:
    """Count the tokens that the first block sees."""
    counts: list[int] = []
    hook = trunk.blocks[0].register_forward_pre_hook(lambda block, inputs: counts.append(inputs[0].shape[1]))
    trunk(mel, ["logits"])
    hook.remove()
    return counts[0]


def test_patchout_leaves_out_rows_and_columns_in_training_only(patchout):
    trunk, mel = patchout
    assert count_tokens(trunk, mel) == 2 + (12 - 4) * (99 - 20)
    assert count_tokens(trunk.eval(), mel) == 2 + 12 * 99


def test_patchout_is_the_same_for_all_clips_of_a_batch_and_another_for_the_next(patchout):
    trunk, mel = patchout
    one, other = trunk(mel[:1].expand(2, -1, -1), ["logits"])["logits"]
    torch.testing.assert_close(one, other)
    assert not torch.allclose(trunk(mel[:1], ["logits"])["logits"][0], one)


def test_what_patchout_keeps_stays_in_order():
    patches = torch.arange(12 * 99.0).view(1, 12, 99, 1)
    kept = transformer.thinned(transformer.thinned(patches, 1, 4), 2, 20)[0, :, :, 0]
    assert kept.shape == (8, 79)
    assert (kept.diff(dim=0) > 0).all()
    assert torch.equal(kept - kept[:1], (kept[:, :1] - kept[:1, :1]).expand(-1, 79))


def test_tokens_are_served_with_patchout_and_grids_are_not(patchout):
    trunk, mel = patchout
    assert trunk(mel, ["1.cls", "2.dist", "features"])["1.cls"].shape == (2, 48)
    with pytest.raises(OptionError, match="layer 1, norm has no grid in training"):
        trunk(mel, ["1", "logits", "norm"])
    assert trunk.eval()(mel, ["1"])["1"].shape == (2, 99, 12, 48)


def test_patchout_of_all_that_there_is_says_how_much_there_is(patchout):
    trunk, mel = patchout
    with pytest.raises(OptionError, match="20 of 9 patches along time; give 0 to 8"):
        trunk(mel[:, :, :100], ["logits"])


def test_a_short_clip_lies_anywhere_in_the_time_positions_in_training_only():
    trunk = PaSST(dim=48, depth=1, heads=3).train()
    assert len({trunk.positions(12, 9)[1].sum().item() for _ in range(20)}) > 10
    everywhere = trunk.positions(12, 99)[1]
    assert torch.equal(everywhere, trunk.eval().positions(12, 99)[1])
    assert torch.equal(trunk.positions(12, 9)[1], everywhere[:, :, :9])


# Dropout


@pytest.mark.parametrize(
    ("variant", "rates"),
    {
        "cnn14": [0.5] + [0.2] * 6,
        "resnet22": [0.5, 0.2, *[0.1] * 8, 0.2, 0.2],
        "mobilenetv1": [0.5],
        "mobilenetv2": [],
        "leenet11": [0.5],
        "leenet24": [0.5] + [0.1] * 9,
        "dainet19": [0.5],
        "cnn14_decisionlevelmax": [0.5] + [0.2] * 6,
    }.items(),
)
def test_panns_drop_as_much_as_the_authors_do(variant, rates):
    with torch.device("meta"):
        trunk = panns.network(**{**panns.VARIANTS[variant].network, "width": 0.1})
    assert [module.p for module in trunk.modules() if isinstance(module, nn.Dropout) and module.p] == rates
