"""Every precision does what it says, whatever the flags of the process are, and leaves them alone."""

import contextlib
import platform
import threading
import warnings
from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from hear_transformers import hear, panns, passt, tiny
from hear_transformers.embedding import precision as precisions
from hear_transformers.embedding.precision import Flags, computing, multiplying, resolve, slowdown, warn_if_slow
from hear_transformers.errors import HearTransformersWarning, OptionError
from hear_transformers.training.loop import Objective, Processes, TrainingRun
from hear_transformers.training.recipes import RECIPES, Recipe, with_changes

CPU = torch.device("cpu")
HAS_TABLE = Flags().has_table
SMALL = replace(passt.BASE, network={"dim": 48, "depth": 2, "heads": 3})
load_small = hear.Loader(replace(passt.FAMILY, variants={"small": SMALL})).load_model
needs_cuda = [pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")]


def read(function):
    """Return a flag, or that the old and the new ones contradict each other."""
    try:
        return function()
    except RuntimeError:
        return "contradiction"


def flags() -> list[object]:
    """Return all flags of the process."""
    older = [torch._C._get_cudnn_allow_tf32, torch._C._get_cublas_allow_tf32, torch.get_float32_matmul_precision]
    table = [torch._C._get_fp32_precision_getter(*entry) for entry in Flags.TABLE] if HAS_TABLE else []
    return [*map(read, older), *table]


def allows_tf32() -> bool:
    """Return whether CUDA may round, checking that old and new flags, products and convolutions agree."""
    kinds = {torch.backends.cudnn.allow_tf32, torch.backends.cuda.matmul.allow_tf32}
    kinds.add({"highest": False, "high": True}[torch.get_float32_matmul_precision()])
    if HAS_TABLE:
        entries = {entry: torch._C._get_fp32_precision_getter(*entry) for entry in Flags.TABLE}
        assert {value for (backend, _), value in entries.items() if backend == "mkldnn"} == {"ieee"}
        kinds |= {{"tf32": True, "ieee": False}[value] for (kind, _), value in entries.items() if kind == "cuda"}
    (kind,) = kinds
    return kind


def set_entry(backend: str, operation: str, value: str) -> None:
    torch._C._set_fp32_precision_setter(backend, operation, value)


USERS = {
    "nothing": lambda: None,
    "matmul high": lambda: torch.set_float32_matmul_precision("high"),
    "matmul medium": lambda: torch.set_float32_matmul_precision("medium"),
    "cublas": lambda: setattr(torch.backends.cuda.matmul, "allow_tf32", True),
    "no cudnn": lambda: setattr(torch.backends.cudnn, "allow_tf32", False),
}
if HAS_TABLE:
    USERS |= {
        "all tf32": lambda: setattr(torch.backends, "fp32_precision", "tf32"),
        "all bf16": lambda: set_entry("generic", "all", "bf16"),
        "cuda tf32": lambda: set_entry("cuda", "all", "tf32"),
        "conv only": lambda: setattr(torch.backends.cudnn.conv, "fp32_precision", "ieee"),
        "matmul only": lambda: setattr(torch.backends.cuda.matmul, "fp32_precision", "tf32"),
        "onednn bf16": lambda: set_entry("mkldnn", "matmul", "bf16"),
        "inherited": lambda: [set_entry("generic", "all", "tf32"), set_entry("cuda", "conv", "none")],
    }


@pytest.fixture(autouse=True)
def as_they_were():
    """Set the flags to PyTorch's own, and leave them like that."""

    def reset() -> None:
        torch.backends.cudnn.allow_tf32 = True
        torch.set_float32_matmul_precision("highest")
        for entry in Flags.TABLE if HAS_TABLE else ():
            set_entry(*entry, "tf32" if entry in {("cuda", "conv"), ("cuda", "rnn")} else "none")

    reset()
    yield
    reset()


# The flags


@pytest.mark.parametrize("user", USERS)
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
def test_flags_are_set_for_the_block_and_as_they_were_afterwards(user, precision):
    USERS[user]()
    before = flags()
    with multiplying(precision):
        assert allows_tf32() is (precision == "tf32")
    assert flags() == before
    with contextlib.suppress(KeyError), multiplying(precision):
        raise KeyError
    assert flags() == before


@pytest.mark.skipif(not HAS_TABLE, reason="PyTorch 2.8 and older have no inheritance")
def test_what_inherits_still_inherits():
    set_entry("cuda", "conv", "none")
    with multiplying("float32"):
        pass
    set_entry("generic", "all", "tf32")
    assert torch.backends.cudnn.conv.fp32_precision == "tf32"


def test_blocks_nest():
    before = flags()
    with multiplying("tf32"):
        for _ in range(2):
            with multiplying("float32"), multiplying("float32"):
                assert not allows_tf32()
            assert allows_tf32()
    assert flags() == before


@pytest.mark.parametrize("nested", [False, True])
def test_threads_get_what_they_ask_for(nested):
    before, wrong = flags(), []

    def work(precision: str, other: str) -> None:
        for _ in range(30):
            with multiplying(precision):
                if nested:
                    with multiplying(other):
                        wrong.append(allows_tf32() is not (other == "tf32"))
                wrong.append(allows_tf32() is not (precision == "tf32"))

    pairs = [("tf32", "float32"), ("float32", "tf32")] * 3
    threads = [threading.Thread(target=work, args=pair) for pair in pairs]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(wrong) == 180 * (1 + nested)
    assert not any(wrong)
    assert flags() == before


# What they are set around


@pytest.mark.parametrize("user", ["nothing", "matmul medium", "cublas"])
@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16", "float16"])
@pytest.mark.parametrize("variant", ["small", "cnn6"])
@pytest.mark.filterwarnings("ignore:precision='tf32' is of NVIDIA cards")
def test_front_end_is_exact_and_the_network_as_asked(variant, precision, user):
    USERS[user]()
    before = flags()
    load = load_small if variant == "small" else panns.load_model
    model = load(variant=variant, pretrained=False, precision=precision, layer=0)
    seen = {}
    model.frontend.register_forward_hook(lambda *_: seen.update(frontend=allows_tf32()))
    model.trunk.register_forward_hook(lambda *_: seen.update(trunk=allows_tf32()))
    model.embed_scenes(0.1 * torch.randn(1, 16_000))
    assert seen == {"frontend": False, "trunk": precision == "tf32"}
    assert flags() == before


@pytest.mark.slow
@pytest.mark.parametrize("precision", ["float32", "tf32"])
@pytest.mark.filterwarnings("ignore:precision='tf32' is of NVIDIA cards")
def test_a_compiled_network_is_compiled_and_run_as_asked(precision):
    USERS["cublas"]()
    seen = []

    def backend(graph, inputs):
        seen.append(("compiled", allows_tf32()))
        return lambda *arguments: [seen.append(("run", allows_tf32())), graph(*arguments)][1]

    model = load_small(pretrained=False, precision=precision, layer=1)
    model.compile_trunk(backend)
    model.embed_scenes(0.1 * torch.randn(2, 8_000))
    assert {kind for kind, _ in seen} == {"compiled", "run"}
    assert {tf32 for _, tf32 in seen} == {precision == "tf32"}


class Watched(Objective):
    """Notes the flags going forward and back."""

    def __init__(self) -> None:
        super().__init__()
        self.trunk = nn.Linear(3, 3)
        self.seen: set[tuple[str, bool, torch.dtype]] = set()

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        output = self.trunk(batch)
        self.seen.add(("forward", allows_tf32(), output.dtype))
        output.register_hook(lambda gradient: self.seen.add(("backward", allows_tf32(), gradient.dtype)))
        return {"loss": output.float().square().mean()}


@pytest.mark.parametrize("precision", ["float32", "tf32", "bfloat16"])
@pytest.mark.filterwarnings("ignore:precision='tf32' is of NVIDIA cards")
def test_a_step_of_training_computes_both_ways_as_asked(precision):
    USERS["cublas"]()
    before, objective = flags(), Watched()
    recipe = Recipe(epochs=1, batch_size=1, learning_rate=0.1, precision=precision)
    run = TrainingRun(objective, recipe, steps_per_epoch=1, seed=0, processes=Processes(0, 1, CPU), settings={})
    with torch.random.fork_rng(devices=[]):
        run.advance(torch.randn(2, 3))
    dtype = torch.bfloat16 if precision == "bfloat16" else torch.float32
    assert objective.seen == {(way, precision == "tf32", dtype) for way in ("forward", "backward")}
    assert flags() == before


# What pays


PROCESSORS = {
    "AVX2": ("x86_64", False, False, False, "float32"),
    "AVX-512 that emulates": ("x86_64", True, False, False, "float32"),
    "AVX512-BF16": ("AMD64", True, False, True, "bfloat16"),
    "AMX": ("x86_64", True, True, False, "bfloat16"),
    "AMX, switched off": ("x86_64", False, True, True, "float32"),
    "ARM with BF16": ("aarch64", True, False, False, "bfloat16"),
    "ARM without": ("aarch64", False, False, False, "float32"),
}


def fake(monkeypatch, machine: str, onednn: bool, amx: bool, avx512: bool) -> None:
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: onednn, raising=False)
    monkeypatch.setattr(torch.cpu, "_is_amx_tile_supported", lambda: amx)
    monkeypatch.setattr(torch.cpu, "_is_avx512_bf16_supported", lambda: avx512)


@pytest.mark.parametrize("name", PROCESSORS)
def test_auto_is_what_the_processor_has(monkeypatch, name):
    *answers, expected = PROCESSORS[name]
    fake(monkeypatch, *answers)
    assert resolve("auto", CPU) == expected
    model = load_small(pretrained=False, precision="auto")
    assert model.precision == model.provenance()["precision"] == expected


def test_auto_is_float32_without_onednn(monkeypatch):
    fake(monkeypatch, "arm64", True, True, True)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert resolve("auto", CPU) == "float32"


@pytest.mark.parametrize(
    ("capability", "expected"), [((6, 1), "float32"), ((7, 0), "float32"), ((7, 5), "float32"), ((8, 0), "bfloat16"),
                                 ((8, 9), "bfloat16"), ((9, 0), "bfloat16"), ((12, 0), "bfloat16")],
)  # fmt: skip
def test_auto_is_what_the_card_has(monkeypatch, capability, expected):
    monkeypatch.setattr(torch.cuda, "get_device_capability", lambda device=None: capability)
    assert resolve("auto", torch.device("cuda", 1)) == expected


def test_auto_is_float32_on_mps():
    assert resolve("auto", torch.device("mps")) == "float32"


@pytest.mark.parametrize("given", ["float16", "tf32", "float32", "bfloat16"])
def test_a_choice_stands(monkeypatch, given):
    fake(monkeypatch, *PROCESSORS["AVX2"][:-1])
    assert resolve(given, CPU) == given


@pytest.mark.parametrize("given", ["", "int8", "half", "AUTO"])
def test_an_unknown_precision_lists_the_known(given):
    with pytest.raises(OptionError, match="choose one of float32, bfloat16, float16, tf32, auto"):
        resolve(given, CPU)


@pytest.mark.parametrize("name", ["fine_tune", "scratch", "ast_audioset", "ast_esc50", "passt_audioset", "mast"])
def test_recipes_choose_by_the_device(name):
    assert RECIPES[name].precision == "auto"


def test_recipes_of_authors_who_trained_in_float32_do_too():
    assert {RECIPES[name].precision for name in ("panns_audioset", "atgnn_fsd50k", "efficientat_esc50")} == {"float32"}
    assert with_changes(RECIPES["scratch"], precision="tf32").precision == "tf32"


# How slow


def measured(monkeypatch, product: float, convolution: float) -> None:
    monkeypatch.setattr(precisions, "slowdown", lambda *_: precisions.Slowdown(product, convolution))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_slow_choice_is_warned_of_once_with_its_measurement(monkeypatch, precision):
    fake(monkeypatch, *PROCESSORS["AVX2"][:-1])
    measured(monkeypatch, 6.25, 36.1)
    model = load_small(pretrained=False, precision=precision)
    clips = torch.zeros(1, 16_000)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        model.embed_scenes(clips)
        model.embed_timestamps(clips)
    (message,) = [str(warning.message) for warning in caught]
    assert f"precision='{precision}' is slow on this cpu" in message
    assert "a matrix product takes 6.2 times, a convolution 36 times as long as in float32 (measured)" in message


@pytest.mark.parametrize(
    ("name", "precision", "factors"),
    [
        ("AMX", "bfloat16", (9.0, 9.0)),  # not even measured
        ("AVX2", "float32", (9.0, 9.0)),
        ("AVX2", "auto", (9.0, 9.0)),
        ("AVX2", "bfloat16", (0.8, 1.1)),  # fast all the same
    ],
)
def test_what_is_not_slow_is_not_warned_of(monkeypatch, name, precision, factors):
    fake(monkeypatch, *PROCESSORS[name][:-1])
    measured(monkeypatch, *factors)
    model = load_small(pretrained=False, precision=precision)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        model.embed_scenes(torch.zeros(1, 16_000))


def test_tf32_without_such_a_card_is_warned_of_and_is_float32():
    clips = 0.1 * torch.randn(1, 20_000, generator=torch.Generator().manual_seed(0))
    rounded = tiny.load_model(precision="tf32")
    with pytest.warns(HearTransformersWarning, match=r"precision='tf32' is of NVIDIA cards .*computes in float32"):
        found = rounded.embed_scenes(clips)
    assert torch.equal(found, tiny.load_model().embed_scenes(clips))


def test_a_measurement_is_made_once_and_is_positive():
    first = slowdown("bfloat16", CPU)
    assert min(first) > 0
    assert slowdown("bfloat16", CPU) is first
    warn_if_slow("float32", CPU)


def test_an_outer_autocast_does_not_reach_float32():
    layer, x = nn.Linear(4, 4), torch.randn(1, 4)
    with torch.autocast("cpu", torch.bfloat16), computing("float32", CPU):
        assert layer(x).dtype == torch.float32


# On a card


@pytest.mark.parametrize("user", [pytest.param(user, marks=needs_cuda) for user in USERS])
@pytest.mark.parametrize("variant", ["cnn6", "tiny"])
def test_float32_on_cuda_is_that_of_the_cpu(user, variant):
    USERS[user]()
    load = panns.load_model if variant == "cnn6" else tiny.load_model
    model = load(variant=variant, pretrained=False)
    clips = 0.1 * torch.randn(2, 2 * model.sample_rate, generator=torch.Generator().manual_seed(0))
    expected = model.embed_scenes(clips)
    found = model.to("cuda").embed_scenes(clips).cpu()
    assert (found - expected).abs().max() <= 1e-4 * expected.abs().max()


@pytest.mark.parametrize("load", [pytest.param(tiny.load_model, marks=needs_cuda)])
def test_tf32_on_cuda_is_another_but_close(load):
    exact, rounded = load().to("cuda"), load(precision="tf32").to("cuda")
    clips = 0.1 * torch.randn(2, 2 * exact.sample_rate, generator=torch.Generator().manual_seed(0))
    one, other = exact.embed_scenes(clips), rounded.embed_scenes(clips)
    if torch.cuda.get_device_capability() >= (8, 0):
        assert not torch.equal(one, other)
    assert (one - other).abs().max() <= 1e-2 * one.abs().max()
