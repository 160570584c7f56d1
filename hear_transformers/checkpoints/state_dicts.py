"""Checkpoint file -> state dict -> network, without trusting the file; and network -> checkpoint file.

`read_content` reads tensors and nothing else, `load_into` loads them into a network, strictly. Every failure is a
WeightsError that names the file. `write` writes a network with its metadata, which `read_metadata` reads.
"""

import json
import math
import os
import re
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..files import atomic
from .torch_files import LEGACY_HEADS, holds_compressed, read_torch

PACKAGE = "hear_transformers"
"""Value of ``package`` in the metadata of every checkpoint that this package writes."""

CHECKPOINTS = (".safetensors", ".bin", ".pt", ".pth", ".ckpt", ".pyth")
"""Usual suffixes, for messages; the content decides what a file is."""

HUB_NAME = re.compile(r"[A-Za-z][\w-]*/[\w.-]+")
"""What models are called at Hugging Face: "MIT/ast-finetuned-audioset-10-10-0.4593"."""

LENGTH_BYTES = 8
"""Size of the number before the header of a safetensors file, the header's length. The data start at a multiple."""

WRAPPERS = {"module", "_orig_mod", "_forward_module", "_fsdp_wrapped_module", "_checkpoint_wrapped_module"}
"""Parts of names that wrappers add anywhere: DataParallel, ``torch.compile``, Fabric, FSDP, checkpointed blocks."""

DEEPEST = 16
"""Nesting of containers in which tensors are looked for: more than any training program writes."""


@dataclass(frozen=True, slots=True)
class Content:
    """The tensors of a checkpoint file.

    Attributes
    ----------
    tensors : on the CPU, in the data types of the file; keys of nested containers are joined with dots, `WRAPPERS` are
        left out
    refused : names of what is no tensor of plain numbers, and its kind
    objects : names of the classes and functions that were stood in for, see `torch_files`
    entries : top-level dicts of text, numbers and truth values, such as the settings of a network, without all else
    """

    tensors: dict[str, Tensor]
    refused: dict[str, str] = field(default_factory=dict)
    objects: tuple[str, ...] = ()
    entries: dict[str, dict[Any, Any]] = field(default_factory=dict)


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, see `read_content`."""
    return read_content(path).tensors


def read_content(path: str | Path) -> Content:
    """Read the tensors of a checkpoint, safetensors or ``torch.save``, recognised by content.

    No code in the file is ever run. Tensors are found in nested dicts, lists and tuples; `search` finds the network
    among them.

    Raises
    ------
    WeightsError : the file is missing, damaged, or holds no tensors
    """
    path = Path(path)
    loaded, objects = _read_file(path)
    content = Content({}, {}, objects, _entries_in(loaded))
    for name, value in _tensors_in(loaded):
        kind = _kind_of(value)
        if kind is None:
            content.tensors[name] = value.detach()
        else:
            content.refused[name] = kind
    if not content.tensors:
        raise WeightsError(f"{path}: expected a dict of dense tensors, found {_summary_of(loaded, content)}")
    return content


def _tensors_in(loaded: Any) -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors in nested containers by name, in the order of the file; containers that repeat, once."""
    taken: set[str] = set()
    seen: set[int] = set()
    waiting: list[tuple[tuple[str, ...], Any]] = [((), loaded)]
    while waiting:
        parts, value = waiting.pop()
        if isinstance(value, Tensor):
            whole = ".".join(parts)
            short = ".".join(part for part in whole.split(".") if part not in WRAPPERS)
            name = whole if short in taken else short  # two networks, one of them wrapped
            taken.add(name)
            yield name, value
        elif isinstance(value, (Mapping, list, tuple)) and id(value) not in seen and len(parts) < DEEPEST:
            seen.add(id(value))
            items = value.items() if isinstance(value, Mapping) else enumerate(value)
            inner = [((*parts, str(key)), held) for key, held in items if _is_name(key)]
            waiting.extend(reversed(inner))


def _entries_in(loaded: Any) -> dict[str, dict[Any, Any]]:
    """Return the top-level dicts of a file that hold plain values, with nothing else of them."""
    if not isinstance(loaded, Mapping):
        return {}
    plain = {
        name: {key: value for key, value in held.items() if _is_name(key) and isinstance(value, (str, int, float))}
        for name, held in loaded.items()
        if isinstance(name, str) and isinstance(held, Mapping)
    }
    return {name: held for name, held in plain.items() if held}


NUMBERS = range(10**9)
"""Keys of containers besides text, such as the numbers of parameters in the state of an optimizer."""


def _is_name(key: Any) -> bool:
    """Return True for a key that may be part of a name; whether a range holds anything but an int takes a minute."""
    return isinstance(key, str) or (isinstance(key, int) and key in NUMBERS)


def _kind_of(value: Tensor) -> str | None:
    """Describe a tensor that is no plain one: sparse, quantized, complex, or not all of its numbers in memory."""
    if value.is_complex() or value.layout is not torch.strided or value.device.type != "cpu" or value.is_quantized:
        return f"a tensor of layout {value.layout} and type {value.dtype} on {value.device}"
    # A file may repeat few numbers in a tensor of any size.
    return "a tensor larger than its numbers" if value.untyped_storage().nbytes() < value.nbytes else None


def _summary_of(loaded: Any, content: Content) -> str:
    """Describe a file without tensors."""
    if content.refused:
        name, kind = next(iter(content.refused.items()))
        return f"{kind} under {name!r}"
    if content.objects:
        return (
            f"objects ({', '.join(content.objects[:3])}); a whole module is not loaded, as its code would have to run: "
            "save model.state_dict() instead"
        )
    kind = "an empty dict" if isinstance(loaded, Mapping) and not loaded else f"type {type(loaded).__name__}"
    return f"{kind} without any"


def write(path: str | Path, module: nn.Module, metadata: Mapping[str, str]) -> None:
    """Write a network as a safetensors file; the same network and metadata give the same bytes.

    Parameters
    ----------
    path : replaced only when all is written; unchanged after a failure
    module : on any device
    metadata : for `read_metadata`; see `trained.read_trained` for the entries that loading by path alone needs
    """
    tensors = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    content = memoryview(safetensors.torch.save(tensors))
    end = LENGTH_BYTES + int.from_bytes(content[:LENGTH_BYTES], "little")
    # The library writes metadata in an order that differs between runs.
    of_tensors = json.loads(bytes(content[LENGTH_BYTES:end]))
    header = json.dumps({"__metadata__": {"package": PACKAGE, **metadata}, **of_tensors}).encode()
    header += b" " * (-len(header) % LENGTH_BYTES)
    with atomic(Path(path)) as file:
        file.write(len(header).to_bytes(LENGTH_BYTES, "little") + header)
        file.write(content[end:])


def read_metadata(path: str | Path) -> dict[str, str]:
    """Read the metadata that `write` was given; empty for any other file, or one that cannot be read."""
    try:
        with safetensors.safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
    except (OSError, safetensors.SafetensorError):
        return {}
    return metadata if metadata.get("package") == PACKAGE else {}


def _read_file(path: Path) -> tuple[Any, tuple[str, ...]]:
    """Return the content of a checkpoint file, see `read_torch`; its first bytes choose the reader."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; give the checkpoint file in it")
    if not os.path.isfile(path):
        is_name = HUB_NAME.fullmatch(str(path)) and path.suffix not in CHECKPOINTS and not path.parent.is_dir()
        of_hub = f"give the folder that you downloaded it into, or model='hf' with variant={str(path)!r}"
        advice = f"; of a model of Hugging Face {of_hub}" if is_name else ""
        raise WeightsError(f"{path}: no such file{advice}")
    try:
        with path.open("rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not head:
        raise WeightsError(f"{path}: the file is empty")
    if head[8:9] == b"{":  # eight bytes of length, then a JSON header
        return _read_safetensors(path), ()
    if head.startswith(b"PK\3\4"):
        return read_torch(path, in_memory=holds_compressed(path))
    if head.startswith(LEGACY_HEADS):
        return read_torch(path, in_memory=True)
    found = next((what for what, starts in OTHERS.items() if head.lstrip().startswith(starts)), "")
    if head[257:262] == b"ustar":
        found = ARCHIVE
    raise WeightsError(f"{path} is not a checkpoint: neither safetensors nor written by torch.save{found}")


HEAD_BYTES = 512
"""Bytes by which a file is known: a header of tar."""

ARCHIVE = ", but an archive or a compressed file; unpack it and give the checkpoint in it"
OTHERS: dict[str, tuple[bytes, ...]] = {
    ", but a pointer of Git LFS to it; fetch the file itself with `git lfs pull`": (b"version https://git-lfs",),
    ", but a page or message of a server in its place; download it again": (b"<", b'{"error'),
    ", but another pickle, which is not read, as that may run code; save its tensors with torch.save": (b"\x80",),
    ARCHIVE: (b"\x1f\x8b", b"BZh", b"\xfd7zXZ", b"7z\xbc\xaf", b"Rar!", b"\x28\xb5\x2f\xfd", b"PK\5\6"),
}
"""What users take for checkpoints, and the bytes that it starts with."""


def _read_safetensors(path: Path) -> dict[str, Tensor]:
    """Return the tensors of a safetensors file."""
    try:
        return safetensors.torch.load_file(path)
    except Exception as error:  # besides SafetensorError, whatever PyTorch raises for an unknown type or shape
        raise WeightsError(f"{path}: damaged or cut short ({error})") from error


def load_into(
    module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path, unused: Collection[str] = ()
) -> None:
    """Load a state dict that must fit the network exactly; numbers are converted to the network's precision.

    Parameters
    ----------
    module : the network; unchanged after an error
    state_dict : tensors by name, after the family's renaming
    path : of the file, for messages
    unused : keys that the file may hold and the network ignores

    Raises
    ------
    WeightsError : keys are missing or left over, shapes differ, or a number is NaN or infinite
    """
    wanted: dict[str, Tensor] = module.state_dict()
    given = check_fit(module, state_dict, path, unused)
    broken = {"NaN or infinite": [key for key in wanted if not _is_finite(given[key].to(wanted[key].dtype))]}
    if any(broken.values()):
        raise WeightsError(f"{path}: {_summary(broken)}; the checkpoint is damaged, or its training diverged")
    module.load_state_dict(given, strict=True)


def check_fit(
    module: nn.Module, state_dict: Mapping[str, Tensor], path: str | Path, unused: Collection[str] = ()
) -> dict[str, Tensor]:
    """Return the entries that a network uses; raise WeightsError unless names, shapes and types fit, see `load_into`.

    Numbers are not checked: the network may be on the device ``meta``, without memory for them.
    """
    given = {key: value for key, value in state_dict.items() if key not in unused}
    misfits = compare(module.state_dict(), given)
    if any(misfits.values()):
        raise WeightsError(misfit_message(path, module, misfits))
    return given


def compare(wanted: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """List the names that a network and a state dict do not share, and tensors of another shape or type, by fault."""
    others = [key for key in wanted if key in given and not _fits(given[key], wanted[key])]
    return {
        "missing": [f"{key} {_form(wanted[key])}" for key in wanted if key not in given],
        "unexpected": [f"{key} {_form(given[key])}" for key in given if key not in wanted],
        "of another shape or type": [f"{key} {_form(given[key])} instead of {_form(wanted[key])}" for key in others],
    }


def misfit_message(path: str | Path, module: nn.Module, misfits: Mapping[str, Sequence[str]], where: str = "") -> str:
    """Describe what does not fit a network; `where` says more about the place in the file."""
    return (
        f"{path} does not fit {type(module).__name__}: {_summary(misfits)}{where}; "
        "is it a checkpoint of another network or variant?"
    )


def _form(value: Tensor) -> str:
    """Format the shape and type of a tensor."""
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _fits(given: Tensor, wanted: Tensor) -> bool:
    """Return True if a tensor has the wanted shape and may be converted: floats to floats, integers to integers.

    A count of batches may be a float: averages of weights and conversions to half precision often do not spare it.
    """
    kinds = (given.is_floating_point(), given.is_complex()), (wanted.is_floating_point(), wanted.is_complex())
    is_count = wanted.dim() == 0 and not wanted.is_floating_point() and given.is_floating_point()
    return given.shape == wanted.shape and (kinds[0] == kinds[1] or is_count)


def _is_finite(value: Tensor) -> bool:
    """Return True if all numbers are finite; ten times faster than ``isfinite().all()`` on large weights."""
    if value.numel() == 0 or not value.is_floating_point():
        return True
    return all(math.isfinite(extreme) for extreme in torch.aminmax(value))


def _summary(keys_by_fault: Mapping[str, Sequence[str]], shown: int = 3) -> str:
    """Count the keys of each fault and name the first few."""
    faults = [(fault, keys, ", ..." if len(keys) > shown else "") for fault, keys in keys_by_fault.items() if keys]
    return "; ".join(f"{len(keys)} {fault}: {', '.join(keys[:shown])}{more}" for fault, keys, more in faults)
