"""Names of files and addresses, atomic writing of files, their hashes, JSON in them."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import uuid
from collections.abc import Iterator
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO
from urllib.parse import unquote, unquote_to_bytes, urlsplit

from .errors import AudioError, HearTransformersError, OptionError

CHUNK_BYTES = 2**17
"""Bytes hashed at once: enough that the loop is free beside the hash, and few enough for the cache of a core."""

ADDRESS = re.compile(r"[a-z][a-z0-9+.-]+(::[a-z0-9+.-]+)*:/", re.IGNORECASE)
"""Beginning of an address, as fsspec writes it, up to its first slash: a single letter is a drive of Windows."""

NOT_IN_NAMES = re.compile(r'[<>:"|?*\\\x00-\x1f]')
"""Characters that some systems do not take in names of files."""


MOST_NESTED = 100
"""Deepest nesting of JSON that is read: far more than anybody writes, far less than Python's stack takes."""

BRACKETS = re.compile(r'"(?:[^"\\]|\\.)*"|([\[{])|([\]}])')
"""A text of JSON, which may hold brackets too, or a bracket that opens or closes."""


def parse_json(text: str | bytes, **options: Any) -> Any:
    """Parse JSON of a file, with options of `json.loads`; what is nested deeper than `MOST_NESTED` is refused.

    Python would go on to the end of its stack. Destructors that run there fail, and that of h5py leaves its global lock
    taken: the next thread that writes HDF5 would wait for ever.

    Raises
    ------
    ValueError : it is not JSON, not UTF-8, or nested too deeply
    """
    text = text if isinstance(text, str) else text.decode("utf-8")
    if text.count("[") + text.count("{") > MOST_NESTED:
        depth = 0
        for found in BRACKETS.finditer(text):
            depth += bool(found[1]) - bool(found[2])
            if depth > MOST_NESTED:
                raise ValueError(f"nested deeper than {MOST_NESTED} levels")
    return json.loads(text, **options)


class Address(str):
    """Where audio lies that is no file of this machine: "s3://bucket/a.wav", "zip://a.wav::archive.zip"."""

    __slots__ = ()

    @property
    def path(self) -> PurePosixPath:
        """The address as a relative path, for names of outputs: "https/example.org/dir/a.wav"; without ``..``."""
        link = next(link for link in self.split("::") if "://" in link)
        kind, _, place = link.partition("://")
        if kind.lower() in ("http", "https"):
            parts = urlsplit(link)
            place = f"{parts.hostname or ''}/{unquote(parts.path)}"
        names = (NOT_IN_NAMES.sub("_", name) for name in (kind, *place.split("/")))
        return PurePosixPath(*(name for name in names if name not in ("", ".", "..")))


def place_of(name: str | os.PathLike[str]) -> Path | Address:
    """Return what a name of a user stands for: a file of this machine, or an address.

    ``file:`` is removed from the beginning, and what is escaped behind it decoded (RFC 8089); ``~`` is the home folder,
    as in a shell. Where a file has the very name, that is it.

    Raises
    ------
    AudioError : ``file://`` names another machine
    """
    text = os.fspath(name)
    # Most names are looked at no further, let alone on a disk far away.
    if not (":" in text or text.startswith("~")) or os.path.lexists(text):
        return Path(text)
    if text[:5].lower() == "file:":
        return _path_of_url(text)
    if found := ADDRESS.match(text):
        rest = text[found.end() :]
        if rest.startswith("/"):
            return Address(text)
        if isinstance(name, os.PathLike):  # a Path has lost one of the two slashes
            return Address(f"{found[0]}/{rest}")
    return Path(os.path.expanduser(text))


def local_path(name: str | os.PathLike[str], what: str) -> Path:
    """Return the path that a name of a user stands for, see `place_of`.

    Raises
    ------
    OptionError : it is an address, where `what`, such as "weights", is not looked for
    """
    with contextlib.suppress(AudioError):
        if isinstance(place := place_of(name), Path):
            return place
    raise OptionError(f"{os.fspath(name)}: is an address; {what} must be on this machine")


def _path_of_url(url: str) -> Path:
    """Return the path in ``file:a.wav``, ``file:/dir/a.wav`` or ``file:///dir/a.wav``."""
    place = url[5:]
    if place.startswith("//"):
        host, _, rest = place[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise AudioError(
                f"{url}: is a file of the machine {host!r}; of this one write file:///folder/name or file:name"
            )
        place = f"/{rest}"
    path = os.fsdecode(unquote_to_bytes(os.fsencode(place)))
    return Path(path[1:] if re.match(r"/[A-Za-z]:", path) and os.name == "nt" else path)


@contextlib.contextmanager
def atomic_path(path: Path, scratch: Path | None = None) -> Iterator[Path]:
    """Yield a temporary path that is renamed in the end, or removed after a failure.

    Parameters
    ----------
    path : of the file; folders are created as needed
    scratch : folder of the temporary file, on the same disk; None for the file's own
    """
    if scratch is None:
        path.parent.mkdir(parents=True, exist_ok=True)
    part = (scratch or path.parent) / f".{uuid.uuid4().hex}.part"
    try:
        yield part
        try:
            part.replace(path)
        except FileNotFoundError:  # most folders are there, and to look takes as long
            path.parent.mkdir(parents=True, exist_ok=True)
            part.replace(path)
    except BaseException:
        part.unlink(missing_ok=True)
        raise


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
