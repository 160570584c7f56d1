"""Embeddings kept by the content of their clips, in memory or in a folder, so that no clip is embedded twice."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
import threading
from collections import OrderedDict
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

import filelock
import numpy as np

from ..errors import HearTransformersError
from ..files import atomic, sha256_of
from .embedder import Embedder

MOST_BYTES = 2**30
"""Embeddings in memory: 26,000 clips of all layers of AST's base network."""

HEARD = ("channel", "keep_damaged")
"""Options of `Embedder.encode` that decide which audio of an input is embedded."""


class Cache(Protocol):
    """Embeddings by settings and clip, both as hashes."""

    def lock(self, settings: str) -> contextlib.AbstractContextManager[Any]:
        """Return what keeps others from embedding the same clips meanwhile."""

    def get(self, settings: str, clip: str) -> np.ndarray | None:
        """Return an embedding, None if it is not there."""

    def put(self, settings: str, clip: str, embedding: np.ndarray) -> None:
        """Keep an embedding if there is room."""


class MemoryCache:
    """Embeddings in the memory of this process, up to `most_bytes`.

    Those of settings that were used longer ago make room. Those of the present settings stay: a search asks for all of
    them in turn, so that the least recently used would be the next to be asked for.
    """

    def __init__(self, most_bytes: int = MOST_BYTES) -> None:
        self.most_bytes = most_bytes
        self.n_bytes = 0
        self._tables: OrderedDict[str, dict[str, np.ndarray]] = OrderedDict()
        self._lock = threading.RLock()

    def lock(self, settings: str) -> contextlib.AbstractContextManager[Any]:
        """Return the lock of all threads; see `Cache.lock`."""
        return self._lock

    def get(self, settings: str, clip: str) -> np.ndarray | None:
        """Return an embedding; see `Cache.get`."""
        return self._tables.get(settings, {}).get(clip)

    def put(self, settings: str, clip: str, embedding: np.ndarray) -> None:
        """Keep an embedding; see `Cache.put`."""
        self._tables.setdefault(settings, {})
        self._tables.move_to_end(settings)
        while self.n_bytes + embedding.nbytes > self.most_bytes and len(self._tables) > 1:
            _, oldest = self._tables.popitem(last=False)
            self.n_bytes -= sum(each.nbytes for each in oldest.values())
        if self.n_bytes + embedding.nbytes <= self.most_bytes:
            self._tables[settings][clip] = embedding
            self.n_bytes += embedding.nbytes

    def clear(self) -> None:
        """Forget everything."""
        self._tables.clear()
        self.n_bytes = 0


class FolderCache:
    """Embeddings in a folder that several processes may share, a small file each; it grows until it is deleted."""

    def __init__(self, folder: str | os.PathLike[str]) -> None:
        self.folder = Path(folder)

    def lock(self, settings: str) -> contextlib.AbstractContextManager[Any]:
        """Return the lock of all processes; see `Cache.lock`."""
        (self.folder / settings).mkdir(parents=True, exist_ok=True)
        return filelock.FileLock(self.folder / settings / ".lock")

    def get(self, settings: str, clip: str) -> np.ndarray | None:
        """Return an embedding; see `Cache.get`. A damaged file counts as none."""
        with contextlib.suppress(OSError, ValueError, EOFError):
            embedding = np.load(self._path(settings, clip), allow_pickle=False)
            return embedding if embedding.ndim == 1 and embedding.dtype == np.float32 else None
        return None

    def put(self, settings: str, clip: str, embedding: np.ndarray) -> None:
        """Keep an embedding; see `Cache.put`."""
        with atomic(self._path(settings, clip)) as file:
            np.save(file, embedding, allow_pickle=False)

    def _path(self, settings: str, clip: str) -> Path:
        return self.folder / settings / f"{clip}.npy"


def encode_once(
    model: Embedder, sounds: Sequence[Any], cache: Cache, *, sampling_rate: float | None = None, **options: Any
) -> np.ndarray:
    """Embed sounds as `Embedder.encode` does, but only those that the cache does not hold, equal ones once.

    Parameters
    ----------
    model : what embeds
    sounds : inputs of `Embedder.encode`; those of unknown content, such as open files, are embedded every time
    cache : what is looked into, and filled
    sampling_rate : of bare arrays, in Hz
    options : of `Embedder.encode`

    Returns
    -------
    embeddings : (sounds, scene_embedding_size) float32
    """
    made_by = {**model.provenance(), **{name: options.get(name) for name in HEARD}}
    settings = hashlib.sha256(json.dumps(made_by, sort_keys=True).encode()).hexdigest()
    keys = [content_hash(sound, sampling_rate) or f"input {i}" for i, sound in enumerate(sounds)]
    with cache.lock(settings):
        rows = {key: cache.get(settings, key) for key in dict.fromkeys(keys)}
        rows = {key: row for key, row in rows.items() if row is not None and len(row) == model.scene_embedding_size}
        # The first place of each clip that is missing.
        places = {key: i for i, key in reversed([*enumerate(keys)]) if key not in rows}
        missing = sorted(places.values())
        with _numbered_as(missing):
            found = model.encode([sounds[i] for i in missing], sampling_rate=sampling_rate, **options)
        for i, row in zip(missing, found, strict=True):
            rows[keys[i]] = row
            if not keys[i].startswith("input"):
                cache.put(settings, keys[i], row.copy())  # a view would keep all rows of this call
    embeddings = np.empty((len(keys), model.scene_embedding_size), np.float32)
    for i, key in enumerate(keys):
        embeddings[i] = rows[key]
    return embeddings


@contextlib.contextmanager
def _numbered_as(places: Sequence[int]) -> Iterator[None]:
    """Count inputs in messages by their places among all."""
    try:
        yield
    except HearTransformersError as error:
        message = re.sub(r"^input (\d+)", lambda match: f"input {places[int(match[1])]}", str(error))
        raise type(error)(message) from error


def content_hash(sound: Any, sampling_rate: float | None) -> str | None:
    """Return a hash of what is heard, None if it cannot be known before the sound is read.

    Parameters
    ----------
    sound : an input of `Embedder.encode`
    sampling_rate : of arrays, in Hz
    """
    if isinstance(sound, Mapping) and sound.keys() <= {"path", "bytes", "array", "sampling_rate"}:
        given = next((sound[name] for name in ("array", "bytes", "path") if sound.get(name) is not None), None)
        return content_hash(given, sound.get("sampling_rate", sampling_rate))
    if isinstance(sound, (str, os.PathLike)):
        # What is no readable file is left to its reader, which says what is wrong.
        with contextlib.suppress(HearTransformersError):
            return sha256_of(sound)
    if isinstance(sound, bytes):
        return hashlib.sha256(sound).hexdigest()
    if isinstance(sound, np.ndarray) and sound.dtype.kind == "f":
        head = f"{sound.dtype.str} {sound.shape} {sampling_rate}".encode()
        return hashlib.sha256(head + np.ascontiguousarray(sound).tobytes()).hexdigest()
    return None
