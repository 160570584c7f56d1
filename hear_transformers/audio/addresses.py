"""Audio at addresses -> copies on this machine, fetched by fsspec: https://, s3://, gs://, hf://, zip://a.wav::z.zip.

What is fetched is decoded as a file, so it may be damaged or hostile like any other; its size is bounded.
"""

from __future__ import annotations

import inspect
import os
import tempfile
import weakref
from collections.abc import Callable
from pathlib import Path
from typing import Any, BinaryIO

from ..errors import AudioError, OptionError
from ..files import CHUNK_BYTES, Address

MOST_BYTES = 2**36
"""Largest copy, for a server that sends without end: 64 GiB hold four days of CD quality."""

INSTALL = "run: python -m pip install 'hear_transformers[remote]'"

NOT_BYTES = "open the file as open(path, 'rb'); the lines of a list of paths are file.read().splitlines()"

_LAST: list[tuple[Address, Path, Copy]] = []
"""The copy that was made last in this process, with its address and folder: a manifest may list many parts of it."""


class Copy:
    """A file that is removed with the last reference to it, in the process that made it."""

    def __init__(self, suffix: str, folder: Path | None) -> None:
        descriptor, name = tempfile.mkstemp(suffix, "copy-", folder)
        os.close(descriptor)
        self.path = Path(name)
        weakref.finalize(self, _remove, self.path, os.getpid())


def _remove(path: Path, maker: int) -> None:
    if os.getpid() == maker:  # a worker that was forked holds references too
        path.unlink(missing_ok=True)


def fetch(address: Address, folder: Path | None = None) -> Copy:
    """Copy what lies at an address to this machine.

    Parameters
    ----------
    address : of audio
    folder : of the copy, which serves for the next clip of that address and folder too; None for a copy of one's own in
        the system's folder

    Raises
    ------
    AudioError : it cannot be fetched; the message says why, and names what must be installed
    """
    if folder is not None and _LAST and _LAST[0][:2] == (address, folder):
        return _LAST[0][2]
    copy = Copy(address.path.suffix, folder)
    try:
        import fsspec
    except ImportError as error:
        raise AudioError(f"{address}: addresses need fsspec, which is not installed; {INSTALL}") from error
    try:
        with fsspec.open(address, "rb") as file, copy.path.open("wb") as target:
            size = getattr(file, "size", None)
            n_bytes = save(file.read, target)
    except AudioError as error:
        raise AudioError(f"{address}: {error}") from error
    except ImportError as error:
        kind = address.partition("://")[0]
        # fsspec says which; the extra brings that of the web.
        advice = f"; {INSTALL}" if kind.lower().startswith("http") else ""
        raise AudioError(f"{address}: {kind}:// needs a package that is not installed: {error}{advice}") from error
    except Exception as error:  # the errors of servers have no common root
        raise AudioError(f"{address}: cannot be fetched ({_reason(error)})") from error
    if isinstance(size, int) and n_bytes < size:
        raise AudioError(f"{address}: ended after {n_bytes} of {size} bytes; try again")
    if folder is not None:
        _LAST[:] = [(address, folder, copy)]
    return copy


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return "not found; folders and patterns at addresses are not searched, list what is in them"
    cause = error.__cause__ or error  # fsspec calls a server that does not answer a file that is not found
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def save(read: Callable[[int], Any], target: BinaryIO) -> int:
    """Copy what `read` returns, piece by piece, to a file; return its number of bytes.

    Raises
    ------
    AudioError : more than `MOST_BYTES`
    OptionError : it does not return bytes
    """
    n_bytes = 0
    while True:
        piece = read(CHUNK_BYTES)
        if not isinstance(piece, (bytes, bytearray, memoryview)):
            if inspect.iscoroutine(piece):
                piece.close()
            raise OptionError(f"its read() returns {type(piece).__name__}, expected bytes; {NOT_BYTES}")
        if not len(piece):
            return n_bytes
        n_bytes += target.write(piece)
        if n_bytes > MOST_BYTES:
            raise AudioError(f"is larger than {MOST_BYTES} bytes, or has no end")
