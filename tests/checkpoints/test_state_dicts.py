"""Checkpoint files: what is read, what is refused, what fits a network."""

import argparse
import contextlib
import functools
import json
import math
import os
import pickle
import random
import re
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_transformers.checkpoints.state_dicts import load_into, read_state_dict, strip_prefixes, unwrap
from hear_transformers.errors import WeightsError


@pytest.fixture
def network() -> nn.Module:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2))


@pytest.fixture
def state_dict() -> dict[str, Tensor]:
    return nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)).state_dict()


def saved(path: Path, content: Any, **options: Any) -> Path:
    torch.save(content, path, **options)
    return path


def written(path: Path, content: bytes) -> Path:
    path.write_bytes(content)
    return path


def assert_equal(found: dict[str, Tensor], expected: dict[str, Tensor]) -> None:
    assert found.keys() == expected.keys()
    for key, value in expected.items():
        torch.testing.assert_close(found[key], value, rtol=0, atol=0)


# ---- reading


@pytest.mark.parametrize("name", ["net.safetensors", "net.pt", "net"])
def test_safetensors_are_known_by_content(tmp_path: Path, state_dict: dict[str, Tensor], name: str) -> None:
    path = written(tmp_path / name, safetensors.torch.save(state_dict))
    assert_equal(read_state_dict(path), state_dict)


@pytest.mark.parametrize("name", ["net.pt", "net.safetensors", "net"])
@pytest.mark.parametrize("new", [True, False])
def test_torch_files_are_known_by_content(tmp_path: Path, state_dict: dict[str, Tensor], name: str, new: bool) -> None:
    path = saved(tmp_path / name, state_dict, _use_new_zipfile_serialization=new)
    assert_equal(read_state_dict(str(path)), state_dict)


def test_an_archive_packed_again_with_compression_is_read(tmp_path: Path) -> None:
    weights = {"weight": torch.randn(4, 400).round(decimals=1)}
    packed = tmp_path / "packed.pt"
    with (
        zipfile.ZipFile(saved(tmp_path / "net.pt", weights)) as archive,
        zipfile.ZipFile(packed, "w", zipfile.ZIP_DEFLATED) as target,
    ):
        for name in archive.namelist():
            target.writestr(name, archive.read(name))
    assert_equal(read_state_dict(packed), weights)


def test_reading_keeps_the_data_types_of_the_file(tmp_path: Path) -> None:
    weights = {"half": torch.ones(2).half(), "bfloat16": torch.ones(2).bfloat16(), "count": torch.tensor(3)}
    assert_equal(read_state_dict(saved(tmp_path / "net.pt", weights)), weights)


@pytest.mark.parametrize("key", ["state_dict", "model_state_dict", "model"])
def test_wrappers_are_taken_off(tmp_path: Path, state_dict: dict[str, Tensor], key: str) -> None:
    path = saved(tmp_path / "net.pt", {"epoch": 3, key: state_dict, "optimizer": {"lr": 0.1}})
    assert_equal(read_state_dict(path), state_dict)


def test_nested_wrappers_are_taken_off() -> None:
    assert unwrap({"model": {"state_dict": {"weight": 1}}}) == {"weight": 1}


def test_a_dict_that_wraps_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, Any] = {}
    endless["model"] = endless
    with pytest.raises(WeightsError, match="dict of"):
        read_state_dict(saved(tmp_path / "net.pt", endless))


@pytest.mark.parametrize("prefix", ["module.", "model.", "net.", "module.net.", "_orig_mod.", "net_swa."])
def test_prefixes_are_taken_off(state_dict: dict[str, Tensor], prefix: str) -> None:
    assert_equal(strip_prefixes({prefix + key: value for key, value in state_dict.items()}), state_dict)


def test_a_prefix_that_some_keys_lack_stays() -> None:
    mixed = {"net.weight": torch.ones(1), "head.weight": torch.ones(1)}
    assert_equal(strip_prefixes(mixed), mixed)


def test_front_end_buffers_may_stand_beside_a_prefix() -> None:
    one = torch.ones(1)
    assert strip_prefixes({"net.weight": one, "mel.window": one}).keys() == {"weight", "mel.window"}


def test_the_averaged_network_is_preferred() -> None:
    trained, averaged = torch.zeros(1), torch.ones(1)
    assert_equal(strip_prefixes({"net.weight": trained, "net_swa.weight": averaged}), {"weight": averaged})


# What NumPy writes beside the weights, as in PANNs' Cnn14_16k_mAP=0.438.pth


SAMPLER = {
    "indexes_per_class": [np.arange(5), np.array([7, 9])],
    "queue": [3, 1, 2],
    "pointers_of_classes": np.zeros((2, 3), np.float32, order="F"),
    "empty": np.zeros(0),
    "flags": np.array([True, False]),
    "best": np.float64(0.438),
    "seen": np.int64(10**12),
    "swapped": np.arange(3, dtype=">i4"),
}


def with_sampler(path: Path, state_dict: dict[str, Tensor], sampler: Any, new: bool = False) -> Path:
    """Save a checkpoint as PANNs' training program does."""
    content = {"iteration": 600_000, "model": state_dict, "sampler": sampler}
    return saved(path, content, _use_new_zipfile_serialization=new)


@pytest.mark.parametrize("sampler", [SAMPLER, *SAMPLER.values()])
@pytest.mark.parametrize("new", [True, False])
def test_numpy_beside_the_weights_is_passed_over(
    tmp_path: Path, state_dict: dict[str, Tensor], sampler: Any, new: bool
) -> None:
    assert_equal(read_state_dict(with_sampler(tmp_path / "net.pth", state_dict, sampler, new)), state_dict)


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_numpy_is_known_by_its_old_name_and_its_new_one(
    tmp_path: Path, state_dict: dict[str, Tensor], package: bytes
) -> None:
    content = with_sampler(tmp_path / "net.pth", state_dict, SAMPLER).read_bytes()
    content = re.sub(rb"numpy\._?core(?=\.multiarray\n)", package, content)
    assert content.count(package + b".multiarray\n") >= 2
    assert_equal(read_state_dict(written(tmp_path / "net.pth", content)), state_dict)


@pytest.mark.parametrize("weight", [np.ones(2), np.float64(1.0)])
def test_numpy_is_never_a_weight(tmp_path: Path, weight: Any) -> None:
    with pytest.raises(WeightsError, match="expected a dict of dense tensors, found an object of type NumpyValue"):
        read_state_dict(with_sampler(tmp_path / "net.pth", {"weight": weight}, []))


def test_pytorch_does_not_remember_what_was_allowed(tmp_path: Path, state_dict: dict[str, Tensor]) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = with_sampler(tmp_path / "net.pth", state_dict, SAMPLER)
    read_state_dict(path)
    assert set(torch.serialization.get_safe_globals()) == before
    with pytest.raises(pickle.UnpicklingError, match="numpy"):
        torch.load(path, weights_only=True)


class Call:
    """Pickled as a call of any function."""

    def __init__(self, function: Any, *arguments: Any, state: Any = None) -> None:
        self.reduced = (function, arguments) if state is None else (function, arguments, state)

    def __reduce__(self) -> tuple[Any, ...]:
        return self.reduced


def plain(kind: str = "i8", *state: Any) -> Call:
    """Give the call that a plain NumPy data type is pickled as, or one with another state."""
    return Call(np.dtype, kind, False, True, state=state or (3, "<", None, None, None, -1, -1, 0))


def array(*arguments: Any, state: Any = None) -> Call:
    """Give the call that a NumPy array is pickled as."""
    function = np.zeros(1).__reduce__()[0]
    return Call(function, *(arguments or (np.ndarray, (0,), b"b")), state=state or (1, (1,), plain(), False, bytes(8)))


@pytest.mark.slow
@pytest.mark.parametrize(
    "sampler",
    [
        pytest.param(Call(os.system, "exit 1"), id="a command"),
        pytest.param(Call(functools.partial, print), id="a function"),
        pytest.param(Call(np.load, "file.npy"), id="another function of NumPy"),
        pytest.param(Call(bytes, 10**12), id="memory"),
        pytest.param(np.random.RandomState(0), id="a random state"),
        pytest.param(np.random.default_rng(0), id="a random generator"),
        pytest.param(np.array([None, "text"]), id="an array of objects"),
        pytest.param(np.array(["text"]), id="an array of text"),
        pytest.param(np.zeros(2, [("a", "i8"), ("b", "f4")]), id="an array of records"),
        pytest.param(np.zeros(2, "M8[s]"), id="an array of dates"),
        pytest.param(np.ma.zeros(2), id="a masked array"),
        pytest.param(array(np.ma.MaskedArray, (0,), b"b"), id="an array of another class"),
        pytest.param(array(np.ndarray, (10**12,), b"b"), id="an array of another first shape"),
        pytest.param(array(np.ndarray, (0,), b"O"), id="an array of another first type"),
        pytest.param(array(state=(1, (1,), plain(), False, [None])), id="objects in place of numbers"),
        pytest.param(array(state=(1, (1,), plain("O8"), False, bytes(8))), id="numbers in place of objects"),
        pytest.param(plain("i8", 3, "<", None, ("a",), {"a": (plain(), 0)}, -1, -1, 0), id="a type with fields"),
        pytest.param(Call(np.float64(1).__reduce__()[0], plain(), [1]), id="a list in place of a number"),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_anything_else_of_numpy_is_refused(
    tmp_path: Path, state_dict: dict[str, Tensor], sampler: Any, new: bool
) -> None:
    before = set(torch.serialization.get_safe_globals())
    path = with_sampler(tmp_path / "net.pth", state_dict, sampler, new)
    with pytest.raises(WeightsError, match=r"net\.pth: refused: .*only tensors are loaded; save a state_dict\(\)"):
        read_state_dict(path)
    assert set(torch.serialization.get_safe_globals()) == before


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def test_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net.pt: refused: the file holds code \((posix|nt).system\), only tensors"):
        read_state_dict(saved(tmp_path / "net.pt", {"weight": Code()}))


@pytest.mark.parametrize("content", [nn.Linear(1, 1), {"weight": torch.ones(1), "options": argparse.Namespace()}])
@pytest.mark.parametrize("new", [True, False])
def test_objects_are_refused(tmp_path: Path, content: Any, new: bool) -> None:
    with pytest.raises(WeightsError, match=r"refused: .*only tensors are loaded; save a state_dict\(\)"):
        read_state_dict(saved(tmp_path / "net.pt", content, _use_new_zipfile_serialization=new))


def test_the_advice_to_run_code_is_not_passed_on(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_state_dict(saved(tmp_path / "net.pt", Code()))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([torch.ones(1)], "type list"),
        (torch.ones(1), "a tensor"),
        ({}, "an empty dict"),
        ({"model": {}}, "an empty dict"),
        ({"weight": torch.ones(1), "epoch": 3}, "type int under 'epoch'"),
        ({3: torch.ones(1)}, "under 3"),
        pytest.param(
            {"weight": torch.ones(2, 2).to_sparse()}, "sparse", marks=pytest.mark.filterwarnings("ignore:.*parse")
        ),
        ({"weight": torch.ones(2, device="meta")}, "on meta"),
    ],
)
def test_anything_but_a_dict_of_dense_tensors_is_refused(tmp_path: Path, content: Any, found: str) -> None:
    with pytest.raises(WeightsError, match=f"net.pt: expected a dict of .*, found .*{found}"):
        read_state_dict(saved(tmp_path / "net.pt", content))


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"none\.pt: no such file"):
        read_state_dict(tmp_path / "none.pt")


def test_a_folder_is_not_a_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match="is a folder"):
        read_state_dict(tmp_path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"{", "is not a checkpoint"),
        (b"<!DOCTYPE html>", "is not a checkpoint"),
        (json.dumps({"weight": [1.0]}).encode(), "is not a checkpoint"),
        (pickle.dumps({"weight": 1.0}), "is not a checkpoint"),
        (b"\xff" * 7 + b"\x7f{}", "damaged"),
        (b"\x02" + b"\0" * 7 + b"{x", "damaged"),
        (b"PK\3\4 and nothing else", "damaged"),
    ],
)
def test_other_content_is_refused(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=f"net.pt.*{message}"):
        read_state_dict(written(tmp_path / "net.pt", content))


def test_an_archive_of_something_else_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("notes/readme.txt", "hello")
    with pytest.raises(WeightsError, match="damaged"):
        read_state_dict(tmp_path / "net.pt")


def test_a_torchscript_program_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        archive.writestr("net/constants.pkl", b"")
    with pytest.raises(WeightsError, match="TorchScript"):
        read_state_dict(tmp_path / "net.pt")


def test_an_archive_that_would_unpack_to_far_more_is_refused(tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data/0", bytes(1_000_000))
    with pytest.raises(WeightsError, match=r"refused: .* would unpack to 1000000"):
        read_state_dict(tmp_path / "net.pt")


def contents(state_dict: dict[str, Tensor], folder: Path) -> dict[str, bytes]:
    """Return the same state dict in every format."""
    return {
        "safetensors": safetensors.torch.save(state_dict),
        "torch": saved(folder / "new.pt", state_dict).read_bytes(),
        "old torch": saved(folder / "old.pt", state_dict, _use_new_zipfile_serialization=False).read_bytes(),
        "NumPy": with_sampler(folder / "numpy.pth", state_dict, SAMPLER).read_bytes(),
    }


@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch"])
def test_a_file_cut_short_anywhere_is_refused(tmp_path: Path, state_dict: dict[str, Tensor], form: str) -> None:
    content = contents(state_dict, tmp_path)[form]
    for length in range(0, len(content), 1 + len(content) // 50):
        with pytest.raises(WeightsError, match="cut"):
            read_state_dict(written(tmp_path / "cut", content[:length]))


@pytest.mark.slow
@pytest.mark.parametrize("form", ["safetensors", "torch", "old torch", "NumPy"])
def test_damage_anywhere_raises_nothing_but_weights_errors(
    tmp_path: Path, state_dict: dict[str, Tensor], form: str
) -> None:
    content = contents(state_dict, tmp_path)[form]
    dice = random.Random(form)
    for _ in range(100):
        damaged = bytearray(content)
        damaged[dice.randrange(len(damaged))] ^= 1 << dice.randrange(8)
        with contextlib.suppress(WeightsError):
            read_state_dict(written(tmp_path / "damaged", bytes(damaged)))


# ---- loading


def test_loading_fills_the_network(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict, "net.pt")
    assert_equal(network.state_dict(), state_dict)


def test_loading_does_not_share_memory(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict, "net.pt")
    state_dict["0.weight"].zero_()
    assert network.state_dict()["0.weight"].abs().sum() > 0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(network: nn.Module, state_dict: dict[str, Tensor], dtype: torch.dtype) -> None:
    given = {key: value.to(dtype) if value.is_floating_point() else value for key, value in state_dict.items()}
    load_into(network, given, "net.pt")
    assert_equal(network.state_dict(), {key: value.to(state_dict[key].dtype) for key, value in given.items()})


def test_known_unused_keys_are_passed_over(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    load_into(network, state_dict | {"mel.window": torch.ones(3)}, "net.pt", unused={"mel.window", "mel.bank"})
    assert_equal(network.state_dict(), state_dict)


def test_a_misfit_names_its_keys_and_shapes(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    given = state_dict | {"0.weight": torch.ones(4, 3), "head": torch.ones(1)}
    del given["0.bias"]
    with pytest.raises(WeightsError) as error:
        load_into(network, given, "net.pt")
    assert str(error.value) == (
        "net.pt does not fit Sequential: 1 missing: 0.bias (2,) float32; 1 unexpected: head (1,) float32; "
        "1 of another shape or type: 0.weight (4, 3) float32 instead of (2, 3) float32; "
        "is it a checkpoint of another network or variant?"
    )


def test_a_long_list_of_keys_is_cut(network: nn.Module) -> None:
    with pytest.raises(WeightsError, match=r"7 missing: 0.weight \(2, 3\) float32, .*, \.\.\.; 1 unexpected"):
        load_into(network, {"weight": torch.ones(1)}, "net.pt")


def test_integers_in_place_of_weights_are_refused(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.ones(2, 3, dtype=torch.int8)
    with pytest.raises(WeightsError, match=r"0.weight \(2, 3\) int8 instead of \(2, 3\) float32"):
        load_into(network, state_dict, "net.pt")


@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_numbers_that_are_not_finite_are_refused(
    network: nn.Module, state_dict: dict[str, Tensor], number: float
) -> None:
    state_dict["0.weight"][1, 2] = number
    with pytest.raises(WeightsError, match=r"net\.pt: 1 NaN or infinite: 0\.weight"):
        load_into(network, state_dict, "net.pt")


def test_numbers_too_large_for_float32_are_refused(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.full((2, 3), 1e300, dtype=torch.float64)
    with pytest.raises(WeightsError, match=r"infinite: 0\.weight"):
        load_into(network, state_dict, "net.pt")


def test_a_refused_checkpoint_leaves_the_network_as_it_was(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    before = {key: value.clone() for key, value in network.state_dict().items()}
    state_dict["1.running_var"][0] = math.nan
    with pytest.raises(WeightsError):
        load_into(network, state_dict, "net.pt")
    assert_equal(network.state_dict(), before)


def test_shapes_are_checked_before_numbers_are_touched(network: nn.Module, state_dict: dict[str, Tensor]) -> None:
    state_dict["0.weight"] = torch.ones(1).expand(10**12)
    with pytest.raises(WeightsError, match="1000000000000"):
        load_into(network, state_dict, "net.pt")
