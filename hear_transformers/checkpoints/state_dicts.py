"""Checkpoint file -> state dict -> network, without trusting the file; and network -> checkpoint file.

`read_state_dict` reads tensors and nothing else, `load_into` loads them into a network, strictly. Every failure is a
WeightsError that names the file. `write` writes a network with its metadata, which `read_metadata` reads.
"""

import json
import math
import os
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn

from ..errors import WeightsError
from ..files import atomic
from .torch_files import LEGACY_HEAD, holds_compressed, read_torch

PACKAGE = "hear_transformers"
"""Value of ``package`` in the metadata of every checkpoint that this package writes."""

LENGTH_BYTES = 8
"""Size of the number before the header of a safetensors file, the header's length. The data start at a multiple."""

WRAPPERS = ("state_dict", "model_state_dict", "model_state", "model")
"""Keys under which training programs keep the state dict: Lightning, PyTorch's tutorials, MViTv2, PANNs and timm."""

AVERAGED_PREFIX = "net_swa."
"""Prefix of the running average of ``net.`` in PaSST's training code: the network its authors evaluate and publish."""

PREFIXES = ("module.", "_orig_mod.", "model.", "net.", AVERAGED_PREFIX)
"""Prefixes that DataParallel, ``torch.compile`` and Lightning modules add to every key."""

BESIDE = ("mel.", "device_proxy")
"""Prefixes of keys beside the network's own in a saved whole model: its front end, its wrapper."""


def read_state_dict(path: str | Path) -> dict[str, Tensor]:
    """Read the tensors of a checkpoint, safetensors or ``torch.save``, recognised by content.

    No code in the file is ever run. Wrappers of training programs are removed, see `unwrap` and `strip_prefixes`; each
    family renames keys beyond that.

    Returns
    -------
    state_dict : tensors on the CPU by name, in the data types of the file

    Raises
    ------
    WeightsError : the file is missing, damaged, not a checkpoint, or holds anything but tensors
    """
    path = Path(path)
    state_dict = unwrap(_read_file(path))
    if not isinstance(state_dict, Mapping) or not state_dict:
        raise WeightsError(f"{path}: expected a dict of tensors, found {_kind(state_dict)}")
    for key, value in state_dict.items():
        if not isinstance(key, str) or not _is_plain(value):
            raise WeightsError(f"{path}: expected a dict of dense tensors, found {_kind(value)} under {key!r}")
    return strip_prefixes({key: value.detach() for key, value in state_dict.items()})


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


def unwrap(loaded: Any) -> Any:
    """Return the dict under a key of `WRAPPERS`, or under several nested ones.

    A state dict itself is returned unchanged: its values are tensors, never dicts.
    """
    for _ in WRAPPERS:  # bounded: a dict read from a file may hold itself
        if isinstance(loaded, Mapping):
            loaded = next((loaded[key] for key in WRAPPERS if isinstance(loaded.get(key), Mapping)), loaded)
    return loaded


def strip_prefixes(state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Remove a prefix of `PREFIXES` from all keys if every key has it.

    Keys of `BESIDE` are exempt and stay unchanged. Where PaSST's training code kept an averaged
    network (``net_swa.``) beside the trained one (``net.``), only the averaged one is returned.
    """
    if any(key.startswith(AVERAGED_PREFIX) for key in state_dict):
        state_dict = {key: value for key, value in state_dict.items() if not key.startswith("net.")}
    while names := [key for key in state_dict if not key.startswith(BESIDE)]:
        prefix = next((prefix for prefix in PREFIXES if all(name.startswith(prefix) for name in names)), None)
        if prefix is None:
            break
        state_dict = {key.removeprefix(prefix): value for key, value in state_dict.items()}
    return dict(state_dict)


def _kind(value: Any) -> str:
    """Name what was found where a tensor or a dict of tensors was expected."""
    if isinstance(value, Tensor):
        return f"a tensor of layout {value.layout} and type {value.dtype} on {value.device}"
    return "an empty dict" if isinstance(value, Mapping) and not value else f"an object of type {type(value).__name__}"


def _is_plain(value: Any) -> bool:
    """Return True if a value is an ordinary tensor: not sparse, not quantized, all of its numbers in memory."""
    if not isinstance(value, Tensor) or value.layout is not torch.strided or value.device.type != "cpu":
        return False
    # A file may repeat few numbers in a tensor of any size.
    return not value.is_quantized and value.untyped_storage().nbytes() >= value.nbytes


def _read_file(path: Path) -> Any:
    """Return the content of a checkpoint file; its first bytes choose the reader."""
    if os.path.isdir(path):
        raise WeightsError(f"{path} is a folder; give the checkpoint file in it")
    if not os.path.isfile(path):
        raise WeightsError(f"{path}: no such file")
    try:
        with path.open("rb") as file:
            head = file.read(len(LEGACY_HEAD))
    except OSError as error:
        raise WeightsError(f"{path}: cannot be read ({error})") from error
    if not head:
        raise WeightsError(f"{path}: the file is empty")
    if head[8:9] == b"{":  # eight bytes of length, then a JSON header
        return _read_safetensors(path)
    if head.startswith(b"PK\3\4"):
        return read_torch(path, in_memory=holds_compressed(path))
    if head == LEGACY_HEAD:
        return read_torch(path, in_memory=True)
    raise WeightsError(f"{path} is not a checkpoint: neither safetensors nor written by torch.save")


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
    wanted: dict[str, Tensor] = module.state_dict()
    given = {key: value for key, value in state_dict.items() if key not in unused}
    both = [key for key in wanted if key in given]
    others = [key for key in both if not _fits(given[key], wanted[key])]
    misfits = {
        "missing": [f"{key} {_form(wanted[key])}" for key in wanted if key not in given],
        "unexpected": [f"{key} {_form(given[key])}" for key in given if key not in wanted],
        "of another shape or type": [f"{key} {_form(given[key])} instead of {_form(wanted[key])}" for key in others],
    }
    if any(misfits.values()):
        raise WeightsError(
            f"{path} does not fit {type(module).__name__}: {_summary(misfits)}; "
            "is it a checkpoint of another network or variant?"
        )
    return given


def _form(value: Tensor) -> str:
    """Format the shape and type of a tensor."""
    return f"{tuple(value.shape)} {str(value.dtype).removeprefix('torch.')}"


def _fits(given: Tensor, wanted: Tensor) -> bool:
    """Return True if a tensor has the wanted shape and may be converted: floats to floats, integers to integers."""
    return given.shape == wanted.shape and given.is_floating_point() == wanted.is_floating_point()


def _is_finite(value: Tensor) -> bool:
    """Return True if all numbers are finite; ten times faster than ``isfinite().all()`` on large weights."""
    if value.numel() == 0 or not value.is_floating_point():
        return True
    return all(math.isfinite(extreme) for extreme in torch.aminmax(value))


def _summary(keys_by_fault: Mapping[str, Sequence[str]], shown: int = 3) -> str:
    """Count the keys of each fault and name the first few."""
    faults = [(fault, keys, ", ..." if len(keys) > shown else "") for fault, keys in keys_by_fault.items() if keys]
    return "; ".join(f"{len(keys)} {fault}: {', '.join(keys[:shown])}{more}" for fault, keys, more in faults)
