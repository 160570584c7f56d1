"""Damaged and hostile checkpoints: a WeightsError that names the file, never anything else, never code, never long."""

import functools
import io
import json
import pickle
import random
import resource
import struct
import tarfile
import time
import zipfile
from collections.abc import Callable
from pathlib import Path

import pytest
import safetensors.torch
import torch
from torch import Tensor, nn

from hear_transformers import efficientat
from hear_transformers.errors import WeightsError
from tests.helpers.golden import filled

N_DAMAGES = 40
"""Files of each form: what runs in seconds."""

LIMIT_S = 10.0
"""Longest time of the processor for one file, far above a usual one."""

MEMORY_BYTES = 2**29
"""Most memory that a file of a megabyte may take beyond what was taken before."""


@functools.cache
def network() -> nn.Module:
    return filled(efficientat.EfficientAT(width=0.1))


def weights() -> dict[str, Tensor]:
    """Return weights to be replaced, but not to be written into."""
    return dict(network().state_dict())


def torch_bytes(new: bool, content: object = None) -> bytes:
    file = io.BytesIO()
    beside = {"hyper_parameters": {"path": Path("/data")}, "state_dict": weights()}
    torch.save(beside if content is None else content, file, _use_new_zipfile_serialization=new)
    return file.getvalue()


FORMS: dict[str, Callable[[], bytes]] = {
    "safetensors": lambda: safetensors.torch.save(weights()),
    "torch": lambda: torch_bytes(new=True),
    "old torch": lambda: torch_bytes(new=False),
}


def flipped(content: bytearray, dice: random.Random) -> bytearray:
    """Change single bits, most of them where the structure of a file is: at its start and at its end."""
    for _ in range(dice.randint(1, 8)):
        near = dice.randrange(min(len(content), 2_000))
        place = dice.choice([near, len(content) - 1 - near, dice.randrange(len(content))])
        content[place] ^= 1 << dice.randrange(8)
    return content


def cut(content: bytearray, dice: random.Random) -> bytearray:
    return content[: dice.randrange(len(content))]


def zeroed(content: bytearray, dice: random.Random) -> bytearray:
    start = dice.randrange(len(content))
    content[start : start + 512] = bytes(len(content[start : start + 512]))
    return content


def doubled(content: bytearray, dice: random.Random) -> bytearray:
    start = dice.randrange(len(content))
    return content[:start] + content[start : start + 64] + content[start:]


DAMAGES = (flipped, flipped, cut, zeroed, doubled)


def load(path: Path) -> None:
    """Load a file, which may fit or not."""
    began = time.process_time()
    message = str(path)
    try:
        efficientat.load_model(path, "mn01_as")
    except WeightsError as error:
        message = str(error)
    assert message.startswith(str(path))
    assert time.process_time() - began < LIMIT_S


@pytest.mark.parametrize("form", FORMS)
def test_damage_of_any_kind_is_a_weights_error_or_loads(form: str, tmp_path: Path) -> None:
    content = FORMS[form]()
    dice = random.Random(form)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for i in range(N_DAMAGES):
        damaged = DAMAGES[i % len(DAMAGES)](bytearray(content), dice)
        (tmp_path / "net.pt").write_bytes(damaged)
        load(tmp_path / "net.pt")
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES


def renamed(content: dict[str, Tensor], dice: random.Random) -> None:
    name = dice.choice([*content])
    content[dice.choice([name + ".x", name[1:], "", name.upper(), "net." + name])] = content.pop(name)


def reshaped(content: dict[str, Tensor], dice: random.Random) -> None:
    name = dice.choice([*content])
    shape = [dice.choice([0, 1, 2, 17, 96]) for _ in range(dice.randrange(5))]
    content[name] = torch.zeros(shape, dtype=dice.choice([torch.float32, torch.int64, torch.bool, torch.float16]))


def swapped(content: dict[str, Tensor], dice: random.Random) -> None:
    first, second = dice.sample([*content], 2)
    content[first], content[second] = content[second], content[first]


def missing(content: dict[str, Tensor], dice: random.Random) -> None:
    del content[dice.choice([*content])]


def not_finite(content: dict[str, Tensor], dice: random.Random) -> None:
    name = dice.choice([name for name in content if content[name].is_floating_point()])
    content[name] = torch.full_like(content[name], dice.choice([float("nan"), float("inf")]))


def typed(content: dict[str, Tensor], dice: random.Random) -> None:
    name = dice.choice([*content])
    content[name] = content[name].to(dice.choice([torch.complex64, torch.complex128, torch.int8, torch.bool]))


def repeated(content: dict[str, Tensor], dice: random.Random) -> None:
    content[dice.choice([*content])] = torch.zeros(1).expand(10**11)


@pytest.mark.parametrize("damage", [renamed, reshaped, swapped, missing, not_finite, typed, repeated])
@pytest.mark.parametrize("prefix", ["", "net."])
def test_tensors_that_are_not_the_networks_are_refused(damage: Callable, prefix: str, tmp_path: Path) -> None:
    dice = random.Random(damage.__name__)
    for _ in range(3):
        content = weights()
        damage(content, dice)
        torch.save({prefix + name: tensor for name, tensor in content.items()}, tmp_path / "net.pt")
        load(tmp_path / "net.pt")


def lying(**changes: object) -> bytes:
    """Make a safetensors file whose header says something else than what follows."""
    entry = {"dtype": "F32", "shape": [2, 2], "data_offsets": [0, 16], **changes}
    header = json.dumps({"features.0.0.weight": entry}).encode()
    return struct.pack("<Q", len(header)) + header + bytes(16)


def bomb() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w", zipfile.ZIP_DEFLATED) as archive:
        archive.writestr("net/data.pkl", pickle.dumps({}, protocol=2))
        archive.writestr("net/data/0", bytes(50_000_000))
    return file.getvalue()


def old_tar() -> bytes:
    """Make a file as PyTorch wrote them before 0.2: a tar archive."""
    file = io.BytesIO()
    with tarfile.open(fileobj=file, mode="w") as archive:
        for name in ("sys_info", "pickle", "storages", "tensors"):
            archive.addfile(tarfile.TarInfo(name))
    return file.getvalue()


def archive_of(pickled: bytes) -> bytes:
    """Make a file of ``torch.save`` around a pickle."""
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("net/data.pkl", pickled)
        archive.writestr("net/byteorder", b"little")
        archive.writestr("net/version", b"3\n")
    return file.getvalue()


def storage(numel: int) -> bytes:
    """Make an old file whose only tensor says that it has `numel` numbers."""
    content = torch_bytes(new=False, content={"features.0.0.weight": torch.zeros(2)})
    return content.replace(b"K\x02N", b"J" + struct.pack("<i", numel) + b"N")


HOSTILE: dict[str, Callable[[], bytes]] = {
    "a header longer than the file": lambda: struct.pack("<Q", 2**40) + b"{}" + bytes(16),
    "a header of no JSON": lambda: struct.pack("<Q", 4) + b"{{{{" + bytes(16),
    "a nested header": lambda: struct.pack("<Q", 100_001) + b"{" + b"[" * 100_000 + bytes(16),
    "data beyond the end": lambda: lying(data_offsets=[0, 2**50]),
    "another size": lambda: lying(shape=[10**6, 10**6]),
    "a shape that overflows": lambda: lying(shape=[2**32, 2**32]),
    "a negative shape": lambda: lying(shape=[-2, -2]),
    "an unknown type": lambda: lying(dtype="F99"),
    "data that ends before it starts": lambda: lying(data_offsets=[16, 0]),
    "a bomb": bomb,
    "a tar archive": old_tar,
    "a storage of 4 GB": lambda: storage(2**30),
    "a negative storage": lambda: storage(-5),
    "a pickle without an end": lambda: archive_of(b"\x80\x02}"),
    "a deep pickle": lambda: archive_of(b"\x80\x02" + b"]" * 200_000 + b"a" * 199_999 + b"."),
    "a deep tuple": lambda: archive_of(b"\x80\x02)" + b"\x85" * 200_000 + b"."),
    "a memo that is not there": lambda: archive_of(b"\x80\x02h\x07."),
    "a memo of large numbers": lambda: archive_of(b"\x80\x02}r\xff\xff\xff\xff."),
    "an empty stack": lambda: archive_of(b"\x80\x02R."),
    "text of 4 GB": lambda: archive_of(b"\x80\x02X\xff\xff\xff\xffabc."),
    "an unknown operation": lambda: archive_of(b"\x80\x02\xff."),
    "another protocol": lambda: archive_of(pickle.dumps({"a": 1}, protocol=5)),
    "a name that is no name": lambda: archive_of(b"\x80\x02c\x00\xff\n\xfe\n)R."),
    "a list of a list of itself": lambda: archive_of(b"\x80\x02]q\x00h\x00a."),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_files_are_refused_and_take_nothing(name: str, tmp_path: Path) -> None:
    (tmp_path / "net.pt").write_bytes(HOSTILE[name]())
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    began = time.process_time()
    with pytest.raises(WeightsError, match=r"net\.pt"):
        efficientat.load_model(tmp_path / "net.pt", "mn01_as")
    assert time.process_time() - began < LIMIT_S
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) * 1024 < MEMORY_BYTES
