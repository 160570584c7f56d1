"""Where other packages keep the same files: found by name, trusted by their hash alone."""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import unquote, urlsplit

from ..errors import HearTransformersError
from ..files import hash_of
from .published import Checkpoint

HUB_PATH = re.compile(r"/(?P<owner>[^/]+)/(?P<repository>[^/]+)/resolve/(?P<revision>[^/]+)/(?P<file>.+)")
"""Path of a file on Hugging Face."""


def candidates(row: Checkpoint) -> Iterator[Path]:
    """Yield files of other packages with the name of a checkpoint, and its size where that is known.

    Without a whole hash in the manifest there are none: a name proves nothing.
    """
    if row.full_hash is None:
        return
    for path in _places(row):
        try:
            if path.is_file() and row.bytes in (None, path.stat().st_size):
                yield path.absolute()
        except OSError:  # a folder of someone else
            continue


def find(row: Checkpoint) -> Path | None:
    """Return the first candidate whose hash is that of the manifest; it is used where it lies, not copied."""
    for path in candidates(row):
        assert row.full_hash is not None
        algorithm, expected = row.full_hash
        try:
            if hash_of(path, algorithm) == expected:
                return path
        except HearTransformersError:  # cannot be read
            continue
    return None


def snapshots(row: Checkpoint) -> Iterator[Path]:
    """Yield the folders of Hugging Face's cache with files of the repository that a checkpoint is of, the row's first.

    There are several where a repository was fetched at several revisions.
    """
    address = urlsplit(row.url or "")
    if address.hostname == "huggingface.co" and (found := HUB_PATH.fullmatch(address.path)):
        folders = _hub().glob(f"models--{found['owner']}--{found['repository']}/snapshots/*")
        yield from sorted(folders, key=lambda folder: folder.name != found["revision"])


def _places(row: Checkpoint) -> Iterator[Path]:
    """Yield where a file would lie."""
    home, cache = _home(), _cache()
    address = urlsplit(row.url or "")
    names = dict.fromkeys((row.file, Path(unquote(address.path)).name))
    for name in names:
        yield _folder("TORCH_HOME", cache / "torch") / "hub" / "checkpoints" / name  # torch.hub: hear21passt, timm
        yield home / "panns_data" / name  # panns_inference
        yield Path("resources") / name  # EfficientAT, in its own folder
    if found := HUB_PATH.fullmatch(address.path):
        yield from (folder / found["file"] for folder in snapshots(row))
    yield from _hub().glob(f"models--*/snapshots/*/{_quoted(row.file)}")


def _home() -> Path:
    return Path(os.path.expanduser("~"))


def _cache() -> Path:
    return _folder("XDG_CACHE_HOME", _home() / ".cache")


def _hub() -> Path:
    """Return the folder of Hugging Face's cache."""
    hub = _folder("HUGGINGFACE_HUB_CACHE", _folder("HF_HOME", _cache() / "huggingface") / "hub")
    return _folder("HF_HUB_CACHE", hub)


def _folder(variable: str, default: Path) -> Path:
    chosen = os.environ.get(variable)
    return Path(os.path.expanduser(chosen)) if chosen else default


def _quoted(name: str) -> str:
    """Quote what `Path.glob` would take for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)
