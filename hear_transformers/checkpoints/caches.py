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

HUB_PATH = re.compile(r"/(?P<owner>[^/]+)/(?P<repository>[^/]+)/resolve/[^/]+/(?P<file>.+)")
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


def _places(row: Checkpoint) -> Iterator[Path]:
    """Yield where a file would lie."""
    home = Path(os.path.expanduser("~"))
    cache = _folder("XDG_CACHE_HOME", home / ".cache")
    address = urlsplit(row.url or "")
    names = dict.fromkeys((row.file, Path(unquote(address.path)).name))
    for name in names:
        yield _folder("TORCH_HOME", cache / "torch") / "hub" / "checkpoints" / name  # torch.hub: hear21passt, timm
        yield home / "panns_data" / name  # panns_inference
        yield Path("resources") / name  # EfficientAT, in its own folder
    hub = _folder("HUGGINGFACE_HUB_CACHE", _folder("HF_HOME", cache / "huggingface") / "hub")
    hub = _folder("HF_HUB_CACHE", hub)
    if address.hostname == "huggingface.co" and (found := HUB_PATH.fullmatch(address.path)):
        yield from hub.glob(f"models--{found['owner']}--{found['repository']}/snapshots/*/{found['file']}")
    yield from hub.glob(f"models--*/snapshots/*/{_quoted(row.file)}")


def _folder(variable: str, default: Path) -> Path:
    chosen = os.environ.get(variable)
    return Path(os.path.expanduser(chosen)) if chosen else default


def _quoted(name: str) -> str:
    """Quote what `Path.glob` would take for a pattern."""
    return re.sub(r"([*?[])", r"[\1]", name)
