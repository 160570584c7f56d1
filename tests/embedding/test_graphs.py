"""What prepares a network to run: types of numbers, compilation, CUDA graphs."""

import math
from dataclasses import replace

import pytest
import torch
from click.testing import CliRunner
from hear_transformers.cli import embed_audio
from torch import nn

from hear_transformers import hear, mast, panns, passt, tiny
from hear_transformers.benchmarks import bulk
from hear_transformers.embedding import forward, preparation
from hear_transformers.embedding.preparation import COMPILED_CLIPS, KEPT, MOST_GRAPHS, Graphs, Recording, compiling_pays
from hear_transformers.networks import transformer
from hear_transformers.networks.family import on_meta, random_trunk
from hear_transformers.networks.trunk import Exact

CPU, CARD = torch.device("cpu"), torch.device("cuda")
SMALL = replace(mast.FAMILY.variants["base"], network={"dim": 24, "depths": (1, 1, 1, 1)})
load_small = hear.Loader(replace(mast.FAMILY, variants={"small": SMALL})).load_model
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def noise(*shape: int) -> torch.Tensor:
    return 0.1 * torch.randn(*shape, generator=torch.Generator().manual_seed(0))


# Types of numbers


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
@pytest.mark.parametrize("load", [tiny.load_model, load_small])
def test_a_network_in_16_bits_holds_16_bits_but_for_its_statistics(load, precision):
    model = load(pretrained=load is tiny.load_model, precision=precision)
    kept = {id(each) for part in model.trunk.modules() if isinstance(part, KEPT) for each in part.parameters()}
    for tensor in model.trunk.parameters():
        assert tensor.dtype == (torch.float32 if id(tensor) in kept else getattr(torch, precision))
    assert model.embed_scenes(noise(1, 16_000)).dtype == torch.float32


@pytest.mark.parametrize("precision", ["float32", "tf32"])
def test_a_network_in_32_bits_stays_as_it_is(precision):
    trunk = random_trunk(tiny.FAMILY, tiny.VARIANTS["tiny"])
    before = {name: tensor.clone() for name, tensor in trunk.state_dict().items()}
    preparation.prepare(trunk, precision)
    assert all(torch.equal(tensor, before[name]) for name, tensor in trunk.state_dict().items())


@pytest.mark.parametrize("load", [tiny.load_model, load_small])
def test_nothing_is_converted_between_the_ends_of_a_network(load):
    model = load(pretrained=load is tiny.load_model, precision="bfloat16")
    found = set()
    for part in model.trunk.modules():
        if isinstance(part, (nn.LayerNorm, nn.Linear, transformer.Block, mast.PoolingBlock)):
            part.register_forward_hook(lambda _, inputs, output: found.update({inputs[0].dtype, output.dtype}))
    model.embed_scenes(noise(1, 16_000))
    assert found == {torch.bfloat16}


def test_an_exact_part_keeps_its_numbers():
    part = Exact()
    part.weight = nn.Parameter(torch.ones(1))
    preparation._cast(nn.Sequential(part), torch.bfloat16)
    assert part.weight.dtype == torch.float32


def test_gelu_of_the_process_is_exact_on_cpus():
    linear, tokens = nn.Linear(8, 16), noise(2, 3, 8)
    with torch.no_grad():
        assert torch.equal(transformer.linear_gelu(linear, tokens), nn.functional.gelu(linear(tokens)))


@pytest.mark.parametrize(
    "shape", [pytest.param(shape, marks=needs_cuda) for shape in [(2, 3, 8), (1, 8), (2, 2, 3, 8)]]
)
def test_gelu_in_one_kernel_is_gelu(shape):
    linear, tokens = nn.Linear(8, 16).to(CARD, torch.bfloat16), 10 * noise(*shape).to(CARD, torch.bfloat16)
    with torch.no_grad():
        found, expected = transformer.linear_gelu(linear, tokens), nn.functional.gelu(linear(tokens))
    torch.testing.assert_close(found, expected, rtol=1e-2, atol=2e-3)


# Compilation


@pytest.mark.parametrize(
    ("n_clips", "device", "expected"),
    [
        (0, CARD, False),
        (COMPILED_CLIPS - 1, CARD, False),
        (COMPILED_CLIPS, CARD, True),
        (COMPILED_CLIPS, CPU, False),
        (math.inf, CPU, True),
    ],
)
def test_compiling_pays_for_many_clips_of_a_convolutional_network_on_a_card(n_clips, device, expected):
    trunk = on_meta(panns.FAMILY, panns.VARIANTS["cnn6"])
    assert compiling_pays(trunk, n_clips, device) is expected


def test_compiling_a_transformer_pays_where_it_is_asked_for_alone():
    trunk = on_meta(tiny.FAMILY, tiny.VARIANTS["tiny"])
    assert not compiling_pays(trunk, COMPILED_CLIPS, CARD)
    assert compiling_pays(trunk, math.inf, CARD)


@pytest.mark.slow
def test_the_time_of_compiling_is_kept():
    model = load_small(pretrained=False)
    assert model.compile_seconds is None
    model.compile_trunk(backend="eager")
    assert model.compile_seconds > 0


@pytest.mark.parametrize(("given", "expected"), [("auto", 1), ("always", math.inf)])
def test_the_command_says_how_many_clips_there_are(given, expected, audio_file, tmp_path, monkeypatch):
    seen = []
    monkeypatch.setattr(preparation, "compiling_pays", lambda trunk, n_clips, place: seen.append(n_clips))
    arguments = [str(audio_file("tone.wav")), "--compile", given, "--device", "cpu", "--out", str(tmp_path)]
    assert CliRunner().invoke(embed_audio.main, arguments).exit_code == 0
    assert seen == [expected]


def test_the_benchmark_compiles_in_any_case():
    (option,) = (each for each in bulk.throughput.params if each.name == "compile")
    assert (option.default, option.flag_value) == (0, math.inf)


# CUDA graphs


class Replayed:
    """Stands for a graph: computes in the memory of the recording."""

    def __init__(self, compute, inputs, outputs):
        self.compute, self.inputs, self.outputs = compute, inputs, outputs
        self.count = 0

    def replay(self):
        self.count += 1
        self.outputs["y"].copy_(self.compute(self.inputs)["y"])


@pytest.fixture
def graphs(monkeypatch):
    """Record without a card; what holds a negative number cannot be recorded."""
    made = Graphs(0)
    made.recordings = []

    def recorded(compute, batch):
        if batch.min() < 0:
            return None
        inputs = batch.clone()
        outputs = compute(inputs)
        made.recordings.append(Recording(Replayed(compute, inputs, outputs), inputs, outputs))
        return made.recordings[-1]

    monkeypatch.setattr(made, "_recorded", recorded)
    return made


def double(batch):
    return {"y": 2 * batch}


def test_a_shape_is_recorded_at_the_second_time_and_replayed_from_then_on(graphs):
    outputs = []
    for number in range(4):
        outputs.append(graphs.run("key", "state", double, torch.full((2,), float(number)))["y"])
        assert len(graphs.recordings) == (number > 0)
    assert [output.tolist() for output in outputs] == [[0, 0], [2, 2], [4, 4], [6, 6]]  # none is overwritten
    assert graphs.recordings[0].graph.count == 3


def test_another_state_of_the_network_is_recorded_anew(graphs):
    for state, factor in (("one", 2), ("other", 3)):
        for _ in range(3):
            found = graphs.run("key", state, lambda batch, factor=factor: {"y": factor * batch}, torch.ones(1))
            assert found["y"] == factor
    assert len(graphs.recordings) == 2


def test_what_cannot_be_recorded_is_computed(graphs):
    for _ in range(4):
        assert graphs.run("key", "state", double, torch.full((1,), -1.0))["y"] == -2
    assert graphs.recordings == []
    assert graphs.seen == {"key": False}


def test_graphs_are_few_and_those_seen_once_make_room(graphs):
    for key in (*range(50), 100, 100, *range(50)):
        assert graphs.run(key, "state", double, torch.ones(1))["y"] == 2
    assert len(graphs.seen) == MOST_GRAPHS
    assert isinstance(graphs.seen[100], Recording)


def test_cpus_have_no_graphs(monkeypatch):
    monkeypatch.setattr(Graphs, "run", lambda *_: pytest.fail("a graph"))
    tiny.load_model().embed_scenes(noise(1, 16_000))


@pytest.mark.parametrize("precision", [pytest.param(each, marks=needs_cuda) for each in ("float32", "bfloat16")])
@pytest.mark.parametrize("load", [tiny.load_model, load_small])
def test_graphs_give_the_numbers_of_the_network(load, precision, monkeypatch):
    model = load(pretrained=load is tiny.load_model, precision=precision, device="cuda")
    batches = [noise(n, 32_000).to(CARD) * level for n, level in [(2, 1), (2, 0.5), (2, 0.1), (3, 1), (2, 1), (3, 0.2)]]
    found = [model.embed_scenes(batch) for batch in batches]
    assert any(isinstance(each, Recording) for each in preparation._GRAPHS[model].seen.values())
    monkeypatch.setattr(preparation, "GRAPH_WORK", 0)
    for batch, embeddings in zip(batches, found, strict=True):
        torch.testing.assert_close(embeddings, model.embed_scenes(batch), rtol=1e-3, atol=1e-3)


@pytest.mark.parametrize("load", [pytest.param(tiny.load_model, marks=needs_cuda)])
def test_a_graph_of_other_weights_is_not_replayed(load):
    model, clips = load(device="cuda"), noise(2, 32_000).to(CARD)
    before = [model.embed_scenes(clips) for _ in range(3)][-1]
    with torch.no_grad():
        model.trunk.norm.weight.mul_(2)
    assert not torch.allclose(model.embed_scenes(clips), before)


@pytest.mark.parametrize(
    ("family", "variant", "least", "most"),
    [(passt.FAMILY, "base", 400, 1_280), (mast.FAMILY, "base", 1_280, 2_560), (tiny.FAMILY, "tiny", 1_280, 20_000)],
)
def test_seconds_up_to_which_a_graph_pays(family, variant, least, most):
    trunk = on_meta(family, family.variants[variant])
    n_parameters = sum(each.numel() for each in trunk.parameters())
    assert least * n_parameters < preparation.GRAPH_WORK < most * n_parameters


def test_a_network_that_keeps_tensors_is_not_recorded(monkeypatch):
    model = load_small(pretrained=False)
    monkeypatch.setattr(forward, "run", lambda *_: pytest.fail("recorded"))
    with pytest.raises(pytest.fail.Exception):
        model.embed_scenes(noise(1, 16_000))
    monkeypatch.setattr(model.trunk, "recordable", False)
    model.embed_scenes(noise(1, 16_000))
