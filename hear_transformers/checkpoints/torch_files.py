"""Files of ``torch.save``, read without running any code in them."""

import functools
import pickle
import re
import threading
import warnings
import zipfile
from collections import OrderedDict
from pathlib import Path
from typing import Any

import torch

from ..errors import WeightsError

LEGACY_HEADS = tuple(pickle.dumps(0x1950A86A20F9469CFC6C, protocol) for protocol in range(2, 6))
"""First bytes of files that ``torch.save`` wrote before PyTorch 1.6: ``torch.serialization.MAGIC_NUMBER``, with any
``pickle_protocol``."""


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
    if not any(entry.filename.endswith("data.pkl") for entry in entries):
        names = ", ".join(entry.filename for entry in entries[:3])
        raise WeightsError(f"{path}: an archive, but of {names or 'nothing'}; unpack it and give the checkpoint in it")
    return any(entry.compress_type != zipfile.ZIP_STORED for entry in entries)


def _load(path: Path, in_memory: bool) -> Any:
    """Load by content: PyTorch from 2.13 on takes any name that ends in .safetensors for a file of that format."""
    load = functools.partial(torch.load, map_location="cpu", weights_only=True)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "Detected pickle protocol", UserWarning)
        if path.suffix != ".safetensors":
            return load(path, mmap=not in_memory)
        with path.open("rb") as file:  # of which memory cannot be mapped
            return load(file)


RUNNERS = re.compile(
    r"(builtins|io)\.(eval|exec|compile|open|__import__)|(subprocess|commands|importlib|runpy|pty)\..*"
)
"""Names that only a file which means harm asks for, beside those that PyTorch blocks itself: os, sys, posix and nt."""

MOST_STANDINS = 200
"""Most kinds of objects that may stand beside the weights of a file."""


class Standin:
    """Base of the empty objects that stand in for whatever a file holds beside tensors and plain containers.

    A class is made for each name in the file, by that name alone: nothing is imported, no code of it is run, and what
    it is given is dropped. Lightning's hyperparameters and PANNs' sampler are such objects.
    """

    def __new__(cls, *arguments: object, **named: object) -> Any:
        """Return an empty object, whatever it would be made of."""
        return object.__new__(cls)

    def __setstate__(self, state: object) -> None:
        """Drop the state of the object."""

    def __setitem__(self, key: object, value: object) -> None:
        """Raise what says in PyTorch's words that this is a kind of dict; 2.6 sets items without a look."""
        raise pickle.UnpicklingError(f"Can only SETITEM for dict, but got {type(self)}")


class MappingStandin(Standin):
    """Stand-in for a kind of dict, whose items may hold the weights."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        """Return a dict of the type that PyTorch fills and builds."""
        return OrderedDict()


class ListStandin(Standin):
    """Stand-in for a kind of list, whose items may hold the weights."""

    def __new__(cls, *arguments: object, **named: object) -> Any:
        """Return a list."""
        return []


KINDS = {"SETITEM": MappingStandin, "append": ListStandin, "extend": ListStandin}
"""What a file does to an object that PyTorch does to plain containers alone: its stand-in."""

_ALLOWING = threading.Lock()
"""Held while stand-ins are allowed, as PyTorch keeps one list for all threads."""


def read_torch(path: Path, in_memory: bool) -> tuple[Any, tuple[str, ...]]:
    """Return the content of a ``torch.save`` file, without PyTorch's messages, which advise to run code in files.

    Returns
    -------
    content : tensors in plain containers, `Standin` for anything else
    names : of the classes and functions that were stood in for
    """
    load = functools.partial(_load, path, in_memory)
    standins: dict[str, type[Standin]] = {}
    try:
        while True:
            allowed: list[Any] = [(standin, name) for name, standin in standins.items()]
            try:
                with _ALLOWING, torch.serialization.safe_globals(allowed):
                    return load(), tuple(standins)
            except pickle.UnpicklingError as error:
                if not _stand_in(str(error), standins):
                    raise
    except pickle.UnpicklingError as error:
        if "Unsupported operand" in str(error):
            raise WeightsError(
                f"{path}: refused: damaged, or saved with another pickle_protocol than 2, which PyTorch does not read "
                "without running code; save a state_dict() with torch.save's own"
            ) from error
        named = re.search(r"(?i)unsupported (?:global: )?global ([\w.]+)", str(error))
        found = f"the file holds code ({named[1]})" if named else "the file is damaged or holds code"
        if "call reduce for" in str(error):  # of what another call would have made
            found = "the file holds code"
        raise WeightsError(f"{path}: refused: {found}, only tensors are loaded; save a state_dict() alone") from error
    except Exception as error:  # damaged bytes raise any type, from EOFError to KeyError
        raise WeightsError(f"{path}: damaged or cut short ({type(error).__name__})") from error


def _stand_in(message: str, standins: dict[str, type[Standin]]) -> bool:
    """Add or change the stand-in that PyTorch's message asks for; return False if there is none."""
    if named := re.search(r"Unsupported global: GLOBAL (\S+) was", message):
        name = named[1] if "." in named[1] else f"builtins.{named[1]}"  # PyTorch leaves out the module of built-ins
        base, is_new = Standin, name not in standins
    elif named := re.search(r"Can only (SETITEM|append|extend).*but got <class '(.+)'>", message):
        name = named[2]
        base, is_new = KINDS[named[1]], name in standins and standins[name].__base__ is Standin
    else:
        return False
    if not is_new or len(standins) >= MOST_STANDINS or RUNNERS.fullmatch(name):
        return False
    module, _, last = name.rpartition(".")
    standins[name] = type(last, (base,), {"__module__": module})
    return True
