"""Audio at addresses -> copies on this machine, fetched by fsspec: https://, s3://, gs://, hf://, zip://a.wav::z.zip.

Folders, patterns and archives are searched, but for the web, where nothing says what a folder holds. What is fetched is
decoded as a file, so it may be damaged or hostile like any other; its size is bounded.
"""

from __future__ import annotations

import functools
import glob
import inspect
import os
import tarfile
import tempfile
import threading
import weakref
import zipfile
from collections.abc import Callable
from pathlib import Path, PurePath, PurePosixPath
from typing import Any, BinaryIO

from ..errors import AudioError, OptionError
from ..files import CHUNK_BYTES, Address

MOST_BYTES = 2**36
"""Largest copy, for a server that sends without end: 64 GiB hold four days of CD quality."""

INSTALL = "run: python -m pip install 'hear_transformers[remote]'"

NOT_BYTES = "open the file as open(path, 'rb'); the lines of a list of paths are file.read().splitlines()"

_LAST: list[tuple[Address, Path, Copy]] = []
"""The copy that was made last in this process, with its address and folder: a manifest may list many parts of it."""


ARCHIVES: dict[str, tuple[str, Callable[[str], bool]]] = {
    ".zip": ("zip", zipfile.is_zipfile),
    ".tar": ("tar", tarfile.is_tarfile),
    ".tar.gz": ("tar", tarfile.is_tarfile),
}
"""End of the name of an archive -> its kind of address, and whether a file is one."""

OPEN_ARCHIVES = 2
"""Archives that stay open in a process: their lists of files are read once for all that is in them."""


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
        files, path = _opened(address)
        with files.open(path, "rb") as file, copy.path.open("wb") as target:
            size = getattr(file, "size", None)
            n_bytes = save(file.read, target)
    except AudioError as error:
        raise AudioError(f"{address}: {error}") from error
    except Exception as error:  # the errors of servers have no common root
        raise AudioError(f"{address}: cannot be fetched ({_reason(error)})") from error
    if isinstance(size, int) and n_bytes < size:
        raise AudioError(f"{address}: ended after {n_bytes} of {size} bytes; try again")
    if folder is not None:
        _LAST[:] = [(address, folder, copy)]
    return copy


def _reason(error: Exception) -> str:
    if isinstance(error, FileNotFoundError) and error.__cause__ is None:
        return "not found; the address of a folder ends in /, and folders of the web are not searched"
    cause = error.__cause__ or error  # fsspec calls a server that does not answer a file that is not found
    return f"{type(cause).__name__}: {cause}" if str(cause) else type(cause).__name__


def _opened(address: Address) -> tuple[Any, str]:
    """Return the file system of an address, of fsspec, and the path in it.

    Raises
    ------
    AudioError : fsspec, or a package that it needs for such an address, is not installed
    """
    link, separator, beyond = address.partition("::")
    kind, _, path = link.partition("://")
    try:
        import fsspec

        if separator and kind in dict(ARCHIVES.values()):
            return _open_archive(f"{kind}://::{beyond}", _version(beyond), os.getpid(), threading.get_ident()), path
        files, path = fsspec.core.url_to_fs(address)
    except ImportError as error:
        if error.name == "fsspec":
            raise AudioError(f"addresses need fsspec, which is not installed; {INSTALL}") from error
        # fsspec says what is missing; the extra brings that of the web.
        advice = f"; {INSTALL}" if kind.lower().startswith("http") else ""
        raise AudioError(f"{kind}:// needs a package that is not installed: {error}{advice}") from error
    return files, path


def _version(place: str) -> tuple[int, int] | None:
    """Return what tells a changed file of this machine from itself, its size and time of modification."""
    try:
        status = os.stat(place)
    except (OSError, ValueError):  # it lies elsewhere
        return None
    return status.st_size, status.st_mtime_ns


@functools.lru_cache(OPEN_ARCHIVES)
def _open_archive(address: str, version: tuple[int, int] | None, process: int, thread: int) -> Any:
    """Open an archive, anew when it has changed; forks and threads would move the place where another one reads."""
    import fsspec

    return fsspec.core.url_to_fs(address)[0]


def folder_of(place: Path | Address) -> Address | None:
    """Return the address of what an archive holds, None for a place that is no archive.

    Its name says what it may be, on this machine also its content.
    """
    name = (place.path if isinstance(place, Address) else place).name.lower()
    for suffix, (kind, is_archive) in ARCHIVES.items():
        if name.endswith(suffix):
            if isinstance(place, Address):
                return Address(f"{kind}://::{place}")
            return Address(f"{kind}://::{os.path.abspath(place)}") if is_archive(os.fspath(place)) else None
    return None


def search(address: Address, suffixes: tuple[str, ...]) -> list[tuple[Address, PurePath]] | None:
    """Find the files in a folder or below, or those that match a pattern, sorted.

    Parameters
    ----------
    address : of a folder, which ends in ``/`` or is an archive's, or with ``*``, ``?`` or ``[...]`` in its first link
    suffixes : of files in folders; hidden ones are skipped

    Returns
    -------
    found : addresses, and paths below the folder, or below the folders of a pattern before its first ``*``; None for
        the address of one file, and for any of the web

    Raises
    ------
    AudioError : it cannot be searched, or holds none; the message says why
    """
    link, separator, beyond = address.partition("::")
    kind, _, place = link.partition("://")
    is_folder = not place or place.endswith("/")
    if kind.lower() in ("http", "https") or not (is_folder or glob.has_magic(place)):
        return None
    try:
        files, path = _opened(address)
        if is_folder:
            root = PurePosixPath(path)
            names = [name for name in files.find(path) if _is_audio(PurePosixPath(name).relative_to(root), suffixes)]
        elif files.exists(path):
            return None
        else:
            root = _fixed(path)
            names = [name for name in files.glob(path) if files.isfile(name)]
    except AudioError as error:
        raise AudioError(f"{address}: {error}") from error
    except Exception as error:  # the errors of servers have no common root
        raise AudioError(f"{address}: cannot be searched ({_reason(error)})") from error
    if not names:
        raise AudioError(
            f"{address}: no audio in it or below; audio files end in {', '.join(suffixes)}"
            if is_folder
            else f"{address}: no file matches this pattern"
        )
    return [
        (Address(f"{files.unstrip_protocol(name)}{separator}{beyond}"), PurePath(PurePosixPath(name).relative_to(root)))
        for name in sorted(names)
    ]


def _is_audio(path: PurePosixPath, suffixes: tuple[str, ...]) -> bool:
    is_hidden = any(part.startswith(".") and part not in (os.curdir, os.pardir) for part in path.parts)
    return path.name.lower().endswith(suffixes) and not is_hidden


def _fixed(pattern: str) -> PurePosixPath:
    """Return the folders of a pattern before its first ``*``."""
    parts = PurePosixPath(pattern).parts
    return PurePosixPath(*parts[: next(i for i, part in enumerate(parts) if glob.has_magic(part))])


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
