"""Checkpoint files: what is read, what is refused, what fits a network."""

import argparse
import bz2
import collections
import contextlib
import datetime
import enum
import functools
import gzip
import importlib
import io
import json
import math
import os
import pickle
import random
import re
import subprocess
import tarfile
import time
import types
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_transformers.checkpoints.state_dicts import load_into, read_content, read_state_dict
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


@pytest.mark.parametrize(
    ("content", "names"),
    [
        ({"epoch": 3, "state_dict": {"weight": 1}, "optimizer": {"lr": 0.1}}, {"state_dict.weight"}),
        ({"model": {"state_dict": {"weight": 1}}}, {"model.state_dict.weight"}),
        ([{"weight": 1}, 3], {"0.weight"}),
        (("text", [{"net": {"weight": 1}}]), {"1.0.net.weight"}),
        (
            {"optimizer": {"state": {0: {"mean": 1}, 1: {"mean": 1}}}},
            {"optimizer.state.0.mean", "optimizer.state.1.mean"},
        ),
    ],
)
@pytest.mark.parametrize("new", [True, False])
def test_tensors_in_nested_containers_have_names_with_dots(
    tmp_path: Path, content: Any, names: set[str], new: bool
) -> None:
    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(held) for key, held in value.items()}
        if isinstance(value, (list, tuple)):
            return type(value)(map(filled, value))
        return torch.ones(2) if value == 1 else value

    path = saved(tmp_path / "net.pt", filled(content), _use_new_zipfile_serialization=new)
    assert read_state_dict(path).keys() == names


@pytest.mark.parametrize(
    "name", ["module.a.b", "_orig_mod.a.b", "a._orig_mod.b", "module.module.a.b", "a._fsdp_wrapped_module.b"]
)
def test_wrappers_are_left_out_of_names(tmp_path: Path, name: str) -> None:
    assert read_state_dict(saved(tmp_path / "net.pt", {name: torch.ones(1)})).keys() == {"a.b"}


def test_a_wrapped_network_beside_another_keeps_its_wrapper(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {"a": torch.zeros(1), "module.a": torch.ones(1)})
    assert_equal(read_state_dict(path), {"a": torch.zeros(1), "module.a": torch.ones(1)})


def test_a_container_that_holds_itself_ends(tmp_path: Path) -> None:
    endless: dict[str, Any] = {"weight": torch.ones(1)}
    endless["model"] = endless
    assert read_state_dict(saved(tmp_path / "net.pt", endless)).keys() == {"weight"}


def test_keys_that_are_no_names_take_no_time(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.pt", {key: torch.ones(1) for key in (b"a", 1.5, None, (1, 2), -1, 10**10, "a", 2)})
    began = time.process_time()
    assert read_state_dict(path).keys() == {"a", "2"}
    assert time.process_time() - began < 5.0  # a range was searched for a minute


def test_containers_that_share_their_parts_take_no_longer(tmp_path: Path) -> None:
    bomb: Any = {"weight": torch.ones(1)}
    for _ in range(60):  # 2 ** 60 paths
        bomb = [bomb, bomb]
    with pytest.raises(WeightsError, match="found type list without any"):
        read_state_dict(saved(tmp_path / "net.pt", bomb))


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
    found = read_state_dict(with_sampler(tmp_path / "net.pth", state_dict, sampler, new))
    assert_equal(found, {f"model.{name}": tensor for name, tensor in state_dict.items()})


@pytest.mark.parametrize("package", [b"numpy.core", b"numpy._core"])
def test_numpy_is_known_by_its_old_name_and_its_new_one(
    tmp_path: Path, state_dict: dict[str, Tensor], package: bytes
) -> None:
    content = with_sampler(tmp_path / "net.pth", state_dict, SAMPLER).read_bytes()
    content = re.sub(rb"numpy\._?core(?=\.multiarray\n)", package, content)
    assert content.count(package + b".multiarray\n") >= 2
    assert read_state_dict(written(tmp_path / "net.pth", content)).keys() == {f"model.{name}" for name in state_dict}


@pytest.mark.parametrize("weight", [np.ones(2), np.float64(1.0)])
def test_numpy_is_never_a_weight(tmp_path: Path, weight: Any) -> None:
    with pytest.raises(WeightsError, match=r"found objects \(numpy\._?core\.multiarray.*save model\.state_dict\(\)"):
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


class Munch(dict):
    """A dict with a state of its own, as munch, addict and easydict pickle theirs."""

    def __getstate__(self) -> dict[str, Any]:
        return dict(self)

    def __setstate__(self, state: dict[str, Any]) -> None:
        self.update(state)


class Colour(enum.Enum):
    RED = 1


class Config:
    def __init__(self, inner: Any = None) -> None:
        self.inner = inner


class Slots:
    __slots__ = ("inner",)

    def __init__(self) -> None:
        self.inner = Colour.RED


OBJECTS = {
    "namespace": argparse.Namespace(lr=0.1, data=Path("/data")),
    "path": Path("/data"),
    "munch": Munch(model=Munch(width=3), names=[Munch()]),
    "object": Config(Config([Colour.RED])),
    "slots": Slots(),
    "enum": Colour.RED,
    "class": Config,
    "function": torch.nn.functional.cross_entropy,
    "partial": functools.partial(print, 1),
    "date": datetime.datetime(2024, 1, 1),
    "defaultdict": collections.defaultdict(list, {1: [2]}),
    "deque": collections.deque([1, 2], 3),
    "frozenset": frozenset([1]),
    "simple namespace": types.SimpleNamespace(a=1),
    "optimizer": torch.optim.Adam(nn.Linear(1, 1).parameters()),
    "module": nn.Linear(1, 1),
    "generator": torch.Generator(),
    "random state": np.random.RandomState(0),
    "random generator": np.random.default_rng(0),
    "array of objects": np.array([None, "text"]),
    "array of text": np.array(["text"]),
    "array of records": np.zeros(2, [("a", "i8"), ("b", "f4")]),
    "array of dates": np.zeros(2, "M8[s]"),
    "masked array": np.ma.zeros(2),
    "memory": Call(bytes, 10**12),
}


# Before PyTorch 1.6 modules were stored with their source, which PyTorch does not read.
@pytest.mark.parametrize(
    ("name", "new"), [(name, new) for name in OBJECTS for new in (True, False) if new or name != "module"]
)
def test_objects_beside_the_weights_are_stood_in_for(
    tmp_path: Path, state_dict: dict[str, Tensor], name: str, new: bool
) -> None:
    content = {"hyper_parameters": {"config": OBJECTS[name]}, **state_dict}
    path = saved(tmp_path / "net.ckpt", content, _use_new_zipfile_serialization=new)
    found = read_state_dict(path)
    assert_equal({name: found[name] for name in state_dict}, state_dict)


def test_all_objects_at_once_are_stood_in_for(tmp_path: Path, state_dict: dict[str, Tensor]) -> None:
    found = read_state_dict(saved(tmp_path / "net.ckpt", {**state_dict, "beside": OBJECTS}))
    assert found.keys() >= state_dict.keys()


def test_weights_in_a_kind_of_dict_are_found(tmp_path: Path) -> None:
    path = saved(tmp_path / "net.ckpt", Munch(state_dict=Munch(weight=torch.ones(1)), list=collections.deque([1])))
    assert read_state_dict(path).keys() == {"state_dict.weight"}


def test_no_class_of_a_file_is_imported_or_made(
    tmp_path: Path, state_dict: dict[str, Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    path = saved(tmp_path / "net.ckpt", {**state_dict, "beside": Config()})

    def never(*_: Any, **__: Any) -> None:
        raise AssertionError("made")

    monkeypatch.setattr(Config, "__init__", never)
    monkeypatch.setattr(Config, "__setstate__", never, raising=False)
    content = read_content(path)
    assert content.objects == (f"{__name__}.Config",)
    unknown = path.read_bytes().replace(__name__.encode(), b"x" * len(__name__))
    assert read_content(written(tmp_path / "unknown.ckpt", unknown)).objects == (f"{'x' * len(__name__)}.Config",)


def touch(path: Path) -> dict[str, Any]:
    """Make objects that would write a file if any of them ran."""
    command = f"touch {path}"
    return {
        "os.system": Call(os.system, command),
        "eval": Call(eval, f"open({str(path)!r}, 'w')"),
        "exec": Call(exec, f"open({str(path)!r}, 'w')"),
        "open": Call(open, str(path), "w"),
        "subprocess": Call(subprocess.call, ["touch", str(path)]),
        "Path.touch": Call(Path.touch, path),
        "getattr": Call(getattr, path, "touch"),
        "partial": Call(functools.partial(os.mkdir, str(path))),
        "import": Call(importlib.import_module, "antigravity"),
        "state": Call(Config, state={"__class__": Call(os.mkdir, str(path))}),
        "state of a call": Call(Config, Call(Path.mkdir, path), state={"inner": Call(Path.touch, path)}),
        "pickle": Call(pickle.loads, pickle.dumps(Call(os.system, command))),
        "torch.load": Call(torch.load, str(path)),
        "storage": Call(torch.storage._load_from_bytes, b""),
        "nested": [{"deep": (Call(Path.touch, path),)}],
    }


@pytest.mark.parametrize("name", touch(Path()))
@pytest.mark.parametrize("new", [True, False])
def test_nothing_in_a_file_ever_runs(tmp_path: Path, state_dict: dict[str, Tensor], name: str, new: bool) -> None:
    sentinel = tmp_path / "ran"
    content = {**state_dict, "beside": touch(sentinel)[name]}
    path = saved(tmp_path / "net.pt", content, _use_new_zipfile_serialization=new)
    before = set(torch.serialization.get_safe_globals())
    with contextlib.suppress(WeightsError):
        read_state_dict(path)
    assert not sentinel.exists()
    assert set(torch.serialization.get_safe_globals()) == before


@pytest.mark.parametrize("name", ["os.system", "eval", "exec", "open"])
def test_a_file_that_means_harm_is_refused(tmp_path: Path, state_dict: dict[str, Tensor], name: str) -> None:
    path = saved(tmp_path / "net.pt", {**state_dict, "beside": touch(tmp_path / "ran")[name]})
    with pytest.raises(
        WeightsError, match=r"net\.pt: refused: the file holds code \(((posix|nt|io|builtins)\.)?\w+\), only tensors"
    ):
        read_state_dict(path)


def test_kinds_of_objects_are_counted(tmp_path: Path, state_dict: dict[str, Tensor]) -> None:
    kinds = [type(f"Kind{number}", (), {"__module__": __name__}) for number in range(300)]
    for kind in kinds:
        globals()[kind.__name__] = kind
    with pytest.raises(WeightsError, match="refused"):
        read_state_dict(saved(tmp_path / "net.pt", {**state_dict, "beside": kinds}))


class Code:
    def __reduce__(self) -> tuple[Any, ...]:
        return os.system, ("exit 1",)


def test_code_is_refused(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"net.pt: refused: the file holds code \((posix|nt).system\), only tensors"):
        read_state_dict(saved(tmp_path / "net.pt", {"weight": Code()}))


@pytest.mark.parametrize("new", [True, False])
def test_a_whole_module_is_refused_with_advice(tmp_path: Path, new: bool) -> None:
    with pytest.raises(WeightsError, match=r"net\.pt: .*save (model\.|a )state_dict\(\)"):
        read_state_dict(saved(tmp_path / "net.pt", nn.Linear(1, 1), _use_new_zipfile_serialization=new))


def test_the_advice_to_run_code_is_not_passed_on(tmp_path: Path) -> None:
    with pytest.raises(WeightsError) as error:
        read_state_dict(saved(tmp_path / "net.pt", Code()))
    assert "weights_only" not in str(error.value)


@pytest.mark.parametrize(
    ("content", "found"),
    [
        ([3], "type list without any"),
        (3, "type int without any"),
        ({}, "an empty dict"),
        ({"model": {}}, "type dict without any"),
        ({b"weight": torch.ones(1)}, "type dict without any"),
        pytest.param(
            {"weight": torch.ones(2, 2).to_sparse()}, "sparse", marks=pytest.mark.filterwarnings("ignore:.*parse")
        ),
        ({"weight": torch.ones(2, device="meta")}, "on meta"),
        ({"weight": torch.ones(2, dtype=torch.complex64)}, "complex64"),
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


@pytest.mark.parametrize("names", [["notes/readme.txt"], ["weights/net.pt"], ["a.npy", "b.npy"]])
def test_an_archive_of_something_else_is_refused(tmp_path: Path, names: list[str]) -> None:
    with zipfile.ZipFile(tmp_path / "net.pt", "w") as archive:
        for name in names:
            archive.writestr(name, "hello")
    with pytest.raises(WeightsError, match=rf"net\.pt: an archive, but of {names[0]}.*; unpack it"):
        read_state_dict(tmp_path / "net.pt")


def tar_of(content: bytes) -> bytes:
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        entry = tarfile.TarInfo("net.pt")
        entry.size = len(content)
        archive.addfile(entry, io.BytesIO(content))
    return file.getvalue()


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"version https://git-lfs.github.com/spec/v1\noid", "a pointer of Git LFS .*git lfs pull"),
        (b"<!DOCTYPE html><html><head><title>404", "a page or message of a server .* download it again"),
        (b"\n<?xml version='1.0'?><Error><Code>AccessDenied", "a page or message of a server .* download it again"),
        (b'{"error":"Entry not found"}', "a page or message of a server .* download it again"),
        (tar_of(b"net"), "an archive or a compressed file; unpack it"),
        (gzip.compress(b"net", mtime=0), "an archive or a compressed file; unpack it"),
        (bz2.compress(b"net"), "an archive or a compressed file; unpack it"),
        (pickle.dumps({"weight": np.ones(3)}), "another pickle, .* save its tensors with torch.save"),
    ],
)  # fmt: skip
def test_what_lies_in_the_place_of_a_checkpoint_is_named(tmp_path: Path, content: bytes, message: str) -> None:
    with pytest.raises(WeightsError, match=rf"net\.pt is not a checkpoint: .*, but {message}"):
        read_state_dict(written(tmp_path / "net.pt", content))


@pytest.mark.parametrize("new", [True, False])
@pytest.mark.parametrize(
    ("protocol", "beside", "reads"),
    [(2, b"bytes", True), (2, {1}, True), (3, None, True), (3, b"bytes", False), (4, None, False), (5, None, False)],
)
def test_other_protocols_of_pickle_are_read_or_named(
    tmp_path: Path, state_dict: dict[str, Tensor], protocol: int, beside: Any, reads: bool, new: bool
) -> None:
    content = {**state_dict, "beside": beside}
    path = saved(tmp_path / "net.pt", content, pickle_protocol=protocol, _use_new_zipfile_serialization=new)
    if reads:
        assert_equal(read_state_dict(path), state_dict)
        return
    with pytest.raises(WeightsError, match=r"net\.pt: refused: damaged, or saved with another pickle_protocol than 2"):
        read_state_dict(path)


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


@pytest.mark.parametrize("dtype", [torch.float16, torch.float32, torch.float64])
def test_counts_may_be_floats(network: nn.Module, state_dict: dict[str, Tensor], dtype: torch.dtype) -> None:
    load_into(network, state_dict | {"1.num_batches_tracked": torch.tensor(3, dtype=dtype)}, "net.pt")
    assert_equal(network.state_dict(), state_dict | {"1.num_batches_tracked": torch.tensor(3)})


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
