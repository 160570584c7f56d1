"""Shards: numbered files of clips that depend only on a seed and their number.

Any number of processes may write disjoint ranges of shards, stop at any moment, and start again: shards are written
atomically, and existing ones are kept.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from ...files import atomic

Arrays = dict[str, NDArray[np.generic]]

MEL_BATCH = 50  # clips per call of the front end


def shard_path(folder: Path, kind: str, number: int) -> Path:
    """Return the path of a shard."""
    return folder / f"{kind}-{number:05d}.npz"


def write_shard(path: Path, arrays: Arrays) -> None:
    """Write the arrays of a shard, atomically."""
    with atomic(path) as file:
        np.savez(file, **arrays)  # type: ignore[arg-type]  # mypy takes every name for an option of savez


def read_shard(path: Path) -> Arrays:
    """Read the arrays of a shard."""
    with np.load(path) as file:
        return {name: file[name] for name in file.files}
