"""Atomic writing of files, and their hashes."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import os
import uuid
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from .errors import HearTransformersError

CHUNK_BYTES = 2**20
"""Bytes hashed at once: enough that the loop is free beside the hash."""


@contextlib.contextmanager
def atomic_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that is renamed in the end, or removed after a failure.

    Parameters
    ----------
    path : of the file; folders are created as needed
    scratch : folder of the temporary file, on the same disk; None for the file's own
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = (scratch or path.parent) / f".{uuid.uuid4().hex}.part"
    try:
        yield part
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic(path: Path, scratch: Path | None = None) -> Iterator[BinaryIO]:
    """Open a file that appears under its name only when it is complete, see `atomic_path`."""
    with atomic_path(path, scratch) as part, part.open("xb") as file:
        yield file


def sha256_of(path: str | os.PathLike[str]) -> str:
    """Return the sha256 of a file in hexadecimal; an unchanged file is read once per process.

    Raises
    ------
    HearTransformersError : the file cannot be read
    """
    return hash_of(path, "sha256")


def hash_of(path: str | os.PathLike[str], algorithm: str) -> str:
    """Return a hash of a file in hexadecimal, cached until its size or modification time changes.

    Parameters
    ----------
    path : of the file
    algorithm : a name for `hashlib.new`

    Raises
    ------
    HearTransformersError : the file cannot be read
    """
    try:
        status = os.stat(path)
        return _hash_cached(os.fspath(path), algorithm, status.st_size, status.st_mtime_ns)
    except OSError as error:
        raise HearTransformersError(f"{os.fspath(path)}: cannot be read ({error})") from error


@functools.lru_cache(maxsize=16_384)
def _hash_cached(path: str, algorithm: str, size: int, mtime_ns: int) -> str:
    """Return a hash of a file; size and time are keys of the cache only."""
    with open(path, "rb") as file:
        return digest_of(file, algorithm)


def digest_of(file: BinaryIO, algorithm: str) -> str:
    """Return a hash in hexadecimal of the rest of an open file."""
    digest = hashlib.new(algorithm)
    while chunk := file.read(CHUNK_BYTES):
        digest.update(chunk)
    return digest.hexdigest()
