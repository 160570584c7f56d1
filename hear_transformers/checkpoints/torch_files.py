"""Files of ``torch.save``, read without running any code in them."""

import contextlib
import functools
import pickle
import re
import threading
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError

LEGACY_HEAD = pickle.dumps(0x1950A86A20F9469CFC6C, protocol=2)
"""First bytes of files that ``torch.save`` wrote before PyTorch 1.6: ``torch.serialization.MAGIC_NUMBER``."""


ZIP_RATIO = 8
"""Largest unpacked size of a checkpoint, in file sizes: ``torch.save`` stores tensors without compression."""


def holds_compressed(path: Path) -> bool:
    """Return True if a ``torch.save`` archive was compressed later; raise WeightsError if it is no such archive."""
    try:
        with zipfile.ZipFile(path) as archive:
            entries = archive.infolist()
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise WeightsError(f"{path}: damaged or cut short ({error})") from error
    unpacked, packed = sum(entry.file_size for entry in entries), path.stat().st_size
    if unpacked > ZIP_RATIO * packed:
        raise WeightsError(f"{path}: refused: {packed} bytes would unpack to {unpacked}; torch.save does not compress")
    if any(entry.filename.endswith("/constants.pkl") for entry in entries):
        raise WeightsError(f"{path}: refused: a TorchScript program, only tensors are loaded; save its state_dict()")
    return any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)


def _load(path: Path, in_memory: bool) -> Any:
    """Load by content: PyTorch from 2.13 on takes any name that ends in .safetensors for a file of that format."""
    load = functools.partial(torch.load, map_location="cpu", weights_only=True)
    if path.suffix != ".safetensors":
        return load(path, mmap=not in_memory)
    with path.open("rb") as file:  # of which memory cannot be mapped
        return load(file)


class NumpyType:
    """Stand-in for a NumPy data type in a file: plain numbers only."""

    def __init__(self, code: str, *flags: int) -> None:
        if not re.fullmatch(r"[biufc]\d+", code):
            raise pickle.UnpicklingError(f"a NumPy data type {code}")

    def __setstate__(self, state: object) -> None:
        match state:
            case (3, str(), None, None, None, -1, -1, int()):  # byte order; no fields, no shape of its own
                return
        raise pickle.UnpicklingError("a NumPy data type that is not plain")


class NumpyValue:
    """Stand-in for a NumPy array or number in a file, whose values are dropped; no code of NumPy is called.

    The files of PANNs hold the state of a sampler in this form, beside the weights.
    """

    def __setstate__(self, state: object) -> None:
        match state:
            case (int(), tuple(), NumpyType(), int(), bytes()):  # version, shape, type, whether in Fortran's order
                return
        raise pickle.UnpicklingError("a NumPy array that is not plain")


def _array(*arguments: object) -> NumpyValue:
    """Replace the function that makes an empty array, which the file then fills."""
    if arguments != (NumpyValue, (0,), b"b"):
        raise pickle.UnpicklingError("a NumPy array that is not plain")
    return NumpyValue()


def _scalar(*arguments: object) -> NumpyValue:
    """Replace the function that makes a single number."""
    match arguments:
        case (NumpyType(), bytes()):
            return NumpyValue()
    raise pickle.UnpicklingError("a NumPy number that is not plain")


def _no_bytes(*arguments: object) -> bytes:
    """Replace ``bytes``, which protocol 2 calls for the values of an empty array."""
    if arguments:
        raise pickle.UnpicklingError("bytes that are not those of an empty NumPy array")
    return b""


NUMPY: list[Callable[..., Any] | tuple[Callable[..., Any], str]] = [
    (NumpyValue, "numpy.ndarray"),
    (NumpyType, "numpy.dtype"),
    (_array, "numpy.core.multiarray._reconstruct"),
    (_array, "numpy._core.multiarray._reconstruct"),
    (_scalar, "numpy.core.multiarray.scalar"),
    (_scalar, "numpy._core.multiarray.scalar"),
    (_no_bytes, "builtins.bytes"),
]
"""Stand-ins for every name in the pickles of NumPy's arrays and numbers, before and since NumPy 2."""


_ALLOWING = threading.Lock()
"""Held while `NUMPY` is allowed, as PyTorch keeps one list for all threads."""


def read_torch(path: Path, in_memory: bool) -> Any:
    """Return the content of a ``torch.save`` file, without PyTorch's messages, which advise to run code in files."""
    load = functools.partial(_load, path, in_memory)
    try:
        with contextlib.suppress(pickle.UnpicklingError):
            return load()
        with _ALLOWING, torch.serialization.safe_globals(NUMPY):
            return load()
    except pickle.UnpicklingError as error:
        named = re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", str(error))
        found = f"the file holds code ({named[1]})" if named else "the file is damaged or holds code"
        raise WeightsError(f"{path}: refused: {found}, only tensors are loaded; save a state_dict() alone") from error
    except Exception as error:  # damaged bytes raise any type, from EOFError to KeyError
        raise WeightsError(f"{path}: damaged or cut short ({type(error).__name__})") from error
