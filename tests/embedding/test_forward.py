"""A model as a layer: `model(x)` embeds scenes with gradients, in whatever torch does with modules."""

import copy
import io
import threading
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from hear_transformers import ast, atgnn, efficientat, hear, mast, panns, passt, tiny
from hear_transformers.embedding.forward import batch_seconds
from hear_transformers.errors import AudioError, OptionError

load_passt = hear.Loader(
    replace(passt.FAMILY, variants={"small": replace(passt.BASE, network={"dim": 48, "depth": 2, "heads": 3})})
).load_model
SMALL_AST = replace(ast.VARIANTS["speechcommands_10_10"], network={"dim": 48, "depth": 2, "heads": 3})
load_ast = hear.Loader(replace(ast.FAMILY, variants={"small": SMALL_AST})).load_model
LOADERS = {
    "tiny": tiny.load_model,
    "passt": lambda **options: load_passt(pretrained=False, **options),
    "ast": lambda **options: load_ast(pretrained=False, **options),
    "panns": lambda **options: panns.load_model(variant="cnn6", pretrained=False, **options),
    "efficientat": lambda **options: efficientat.load_model(variant="mn01_as", pretrained=False, **options),
}
LARGE = {"mast": mast.load_model, "atgnn": lambda **options: atgnn.load_model(variant="pyr_t", **options)}


def noise(model, clips: int = 2, seconds: float = 1.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(clips, round(seconds * model.sample_rate), generator=generator)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("seconds", [0.004, 0.3, 2.7])
def test_it_embeds_scenes(name, seconds):
    model = LOADERS[name]()
    clips = noise(model, seconds=seconds)
    found = model(clips)
    assert found.shape == (2, model.scene_embedding_size)
    # With gradients a convolutional network runs itself, without them a copy for inference: up to rounding, of which
    # float32 has 1e-7 of the largest number an operation.
    atol = 1e-6 * max(1.0, found.abs().max().item())
    torch.testing.assert_close(found, model.embed_scenes(clips), rtol=0, atol=atol)


def test_long_clips_are_means_over_windows():
    model = LOADERS["efficientat"]()
    clips = noise(model, seconds=14.0)
    torch.testing.assert_close(model(clips), model.embed_scenes(clips), rtol=0, atol=1e-5)


@pytest.mark.parametrize("name", LOADERS)
@pytest.mark.parametrize("seconds", [0.5, 2.5])
def test_gradients_reach_the_network_and_the_audio(name, seconds):
    model = LOADERS[name]()
    clips = noise(model, seconds=seconds).requires_grad_()
    model(clips).square().mean().backward()
    assert clips.grad.abs().sum() > 0
    graded = [parameter for parameter in model.parameters() if parameter.grad is not None]
    assert len(graded) > 0.7 * len(list(model.parameters()))  # not the classifier, where the features are before it
    assert all(parameter.grad.isfinite().all() for parameter in graded)


@pytest.mark.slow
@pytest.mark.parametrize("name", LARGE)
def test_large_networks_have_gradients_too(name):
    model = LARGE[name](pretrained=False)
    model(noise(model)).sum().backward()
    assert any(parameter.grad is not None for parameter in model.parameters())


def test_it_learns_as_a_layer():
    model = LOADERS["efficientat"](layer=2)
    before = copy.deepcopy(model.trunk.state_dict())
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        network = nn.Sequential(model, nn.Linear(model.scene_embedding_size, 2))
    clips, classes = noise(model, 4, 0.3), torch.tensor([0, 1, 0, 1])
    optimiser = torch.optim.Adam(network.parameters(), 1e-2)
    losses = []
    for _ in range(8):
        loss = nn.functional.cross_entropy(network(clips), classes)
        optimiser.zero_grad()
        loss.backward()
        optimiser.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0]
    assert any(not torch.equal(value, before[name]) for name, value in model.trunk.state_dict().items())


def test_it_leaves_the_mode_alone():
    model = tiny.load_model()
    for training in (True, False):
        model.train(training)
        model(noise(model))
        assert model.training is training


def test_frozen_it_has_no_gradients():
    model = tiny.load_model().requires_grad_(False)
    assert not model(noise(model)).requires_grad
    with torch.no_grad():
        assert not tiny.load_model()(noise(model)).requires_grad


def test_a_replica_without_parameters_of_its_own_works():
    # DataParallel gives every thread a copy whose parameters are plain attributes.
    model = tiny.load_model()
    clips = noise(model)
    expected = model(clips)

    def replica_of(module: nn.Module) -> nn.Module:
        replica = module._replicate_for_data_parallel()
        for name, child in module.named_children():
            replica._modules[name] = replica_of(child)
            setattr(replica, name, replica._modules[name])
        for name, parameter in module._parameters.items():
            setattr(replica, name, None if parameter is None else parameter * 1)
        return replica

    replicas = [replica_of(model) for _ in range(2)]
    assert not list(replicas[0].parameters())
    found = {}
    threads = [
        threading.Thread(target=lambda i=i, replica=replica: found.update({i: replica(clips)}))
        for i, replica in enumerate(replicas)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for each in found.values():
        torch.testing.assert_close(each, expected)
    assert len(found) == 2


@pytest.mark.parametrize(
    "wrap",
    [nn.DataParallel, nn.Sequential, copy.deepcopy, lambda model: nn.ModuleDict({"model": model})["model"]],
)
def test_what_torch_wraps_around_it_works(wrap):
    model = tiny.load_model()
    clips = noise(model)
    torch.testing.assert_close(wrap(model)(clips), model.embed_scenes(clips))


def test_it_can_be_saved_whole():
    model = tiny.load_model()
    file = io.BytesIO()
    torch.save(model, file)
    file.seek(0)
    clips = noise(model)
    torch.testing.assert_close(torch.load(file, weights_only=False)(clips), model(clips))


@pytest.mark.parametrize(
    ("clips", "message"),
    [
        (torch.zeros(16_000), "expected floating-point waveforms of shape"),
        (torch.zeros(1, 1, 16_000), "expected floating-point waveforms of shape"),
        (torch.zeros(1, 16_000, dtype=torch.int16), "got torch.int16"),
        (torch.zeros(2, 0), "0 samples"),
    ],
)
def test_what_is_no_audio_is_refused(clips, message):
    with pytest.raises(AudioError, match=message):
        tiny.load_model()(clips)


# Types of numbers


DEFAULTS = [torch.float64, torch.bfloat16, torch.float16]


@pytest.fixture
def default():
    """Set the default type of numbers until the test ends."""
    yield torch.set_default_dtype
    torch.set_default_dtype(torch.float32)


@pytest.mark.parametrize("dtype", DEFAULTS)
@pytest.mark.parametrize("name", LOADERS)
def test_another_default_type_changes_nothing(name, dtype, default):
    expected_of = LOADERS[name]()
    clips = noise(expected_of, seconds=0.5)
    expected = expected_of.embed_scenes(clips), expected_of.embed_timestamps(clips)[0], expected_of(clips)
    default(dtype)
    for model in (expected_of, LOADERS[name]()):  # loaded before and after
        assert torch.get_default_dtype() == dtype
        found = model.embed_scenes(clips), model.embed_timestamps(clips)[0], model(clips)
        for one, other in zip(expected, found, strict=True):
            assert other.dtype == torch.float32
            assert torch.equal(one, other)
        samples = clips[0].numpy()
        assert model.encode(samples, sampling_rate=model.sample_rate).dtype == "float32"


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_low_precision_under_another_default_is_the_same(precision, default):
    clips = noise(tiny.load_model())
    expected = tiny.load_model(precision=precision).embed_scenes(clips)
    default(torch.float64)
    assert torch.equal(tiny.load_model(precision=precision).embed_scenes(clips), expected)


CONVERSIONS = {
    "half": (lambda model: model.half(), "float16"),
    "bfloat16": (lambda model: model.bfloat16(), "bfloat16"),
    "to": (lambda model: model.to(torch.float16), "float16"),
    "to both": (lambda model: model.to("cpu", torch.bfloat16), "bfloat16"),
    "to keyword": (lambda model: model.to(dtype=torch.float16), "float16"),
    "type": (lambda model: model.type(torch.bfloat16), "bfloat16"),
    "within": (lambda model: nn.Sequential(model).half(), "float16"),
}


@pytest.mark.parametrize("name", CONVERSIONS)
def test_converting_a_model_as_a_whole_is_refused_with_what_to_do(name):
    convert, precision = CONVERSIONS[name]
    model = tiny.load_model()
    expected = model.embed_scenes(noise(model))
    with pytest.raises(OptionError, match=f"tiny/tiny cannot be converted to {precision} .*precision='{precision}'"):
        convert(model)
    assert torch.equal(model.embed_scenes(noise(model)), expected)


@pytest.mark.parametrize("convert", [nn.Module.double, lambda model: model.to(torch.float64)])
def test_there_is_no_double_precision(convert):
    with pytest.raises(OptionError, match=r"converted to float64 .*choose one of float32, bfloat16, float16, tf32"):
        convert(tiny.load_model())


@pytest.mark.parametrize(
    "convert", [nn.Module.float, nn.Module.cpu, lambda model: model.to("cpu"), lambda model: model.to(torch.float32)]
)
def test_what_keeps_the_numbers_is_allowed(convert):
    model = tiny.load_model()
    expected = model.embed_scenes(noise(model))
    assert torch.equal(convert(model).embed_scenes(noise(model)), expected)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["tiny", "efficientat", "panns"])
def test_export_follows_a_clip_of_one_window(name):
    model = LOADERS[name]()
    clips = noise(model, clips=1)
    with torch.no_grad():
        exported = torch.export.export(model, (clips,), strict=False).module()
        torch.testing.assert_close(exported(clips), model(clips))


@pytest.mark.parametrize(
    ("gigabytes", "seconds"),
    [(8, 320.0), (24, 384.0), (80, 1280.0), (150, 1280.0)],
)
def test_a_card_with_more_memory_reads_more_at_once(gigabytes, seconds, monkeypatch):
    card = SimpleNamespace(total_memory=gigabytes * 10**9)
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda device: card)
    assert batch_seconds(torch.device("cuda")) == seconds


def test_other_devices_read_as_much_as_suits_them():
    assert [batch_seconds(torch.device(each)) for each in ("cpu", "mps")] == [20.0, 320.0]


@pytest.mark.parametrize("name", LOADERS)
def test_audio_in_memory_is_left_as_it_is(name):
    model = LOADERS[name]()
    clips = noise(model)
    before = clips.clone()
    model.embed_scenes(clips)
    assert torch.equal(clips, before)
