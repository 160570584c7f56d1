"""Tables of embeddings without a network: random numbers, named files."""

from collections.abc import Sequence
from pathlib import Path

import numpy as np

from hear_transformers.bulk.formats import SUFFIXES, TABLES

PROVENANCE = {"embedding": "scene", "family": "tiny", "variant": "tiny", "weights_sha256": "0"}


def write_table(
    path: Path,
    vectors: np.ndarray,
    files: Sequence[str] | None = None,
    start: Sequence[float] | None = None,
    end: Sequence[float] | None = None,
    provenance: dict | None = None,
) -> Path:
    """Write rows of vectors (rows, size); without files each row is a file of its own."""
    n_rows = len(vectors)
    block = {
        "file": np.array([f"clip{i}.wav" for i in range(n_rows)] if files is None else files, object),
        "start": np.zeros(n_rows) if start is None else np.asarray(start, float),
        "end": np.ones(n_rows) if end is None else np.asarray(end, float),
        "time_ms": np.full(n_rows, np.nan),
        "embedding": np.asarray(vectors, np.float32),
    }
    path.parent.mkdir(exist_ok=True)
    table = TABLES[SUFFIXES[path.suffix]](PROVENANCE if provenance is None else provenance, "8")
    with table.create(path, "one") as add:
        add(block)
    return path
