"""Cosine after centring: exact search by blocks, an index of neighbours for large tables, likely duplicates.

Embeddings of one network share a direction: raw cosines of the default model lie between 0.71 and 0.99 whatever is
compared. Without the mean of the table, sounds that have nothing in common are at 0.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np

from ..errors import OptionError, import_extra
from ..files import atomic_path
from .reading import Embeddings, blocks_of, scaled

BLOCK_ROWS = 65_536
"""Rows that are compared at once: with `MOST_QUERIES` 16 MB of cosines."""

MOST_QUERIES = 64
"""Queries that are compared at once."""

PAIRED_ROWS = 4_096
"""Rows that are compared with as many others to find likely duplicates: 64 MB of cosines."""

LEAST_NORM = 1e-6
"""Length of a centred vector, relative to the longest, that is only rounding: it resembles nothing."""

LINK_BYTES = 300
"""Memory that an index of neighbours takes for each row beside its vector, about."""

MOST_PAIRS = 100_000
"""Pairs of likely duplicates that are returned, the most alike."""


class Pair(NamedTuple):
    """Two rows, the lower first, and their cosine."""

    first: int
    second: int
    cosine: float


class Index:
    """Rows to search, centred and scaled to length 1.

    Parameters
    ----------
    rows : those in memory are centred in place; those on disk are read once here, and again by each search
    centring : False to compare by the plain cosine, see `texts.embed`

    Attributes
    ----------
    rows : with centred vectors of length 1
    mean : (size,) float32, of the vectors as they were; 0 without centring
    """

    def __init__(self, rows: Embeddings, *, centring: bool = True) -> None:
        self.rows = rows
        self.centring = centring
        total, longest = np.zeros(rows.size), 0.0
        for _, vectors in rows.blocks():
            total += vectors.sum(0, dtype=np.float64)
            longest = max(longest, float(np.einsum("ij,ij->i", vectors, vectors).max()))
        self.mean = (total / len(rows) if centring else np.zeros(rows.size)).astype(np.float32)
        self._shortest = LEAST_NORM * float(np.sqrt(longest) + np.linalg.norm(self.mean))
        rows.scale(self.mean, self._shortest)

    def centred(self, vectors: np.ndarray) -> np.ndarray:
        """Centre vectors (queries, size) of the same kind as those of the table, and scale them to length 1.

        Raises
        ------
        OptionError : they are of another size
        """
        if vectors.shape[1] != len(self.mean):
            raise OptionError(
                f"the query has {vectors.shape[1]} numbers, the table {len(self.mean)}; give the same kind"
            )
        return scaled(np.asarray(vectors, np.float32), self.mean, self._shortest)

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find the most similar rows exactly.

        Parameters
        ----------
        queries : (queries, size) float32, from `centred`, or rows of the table
        k : how many; at most as many as there are rows

        Returns
        -------
        cosines, rows : (queries, k) float32 and int64, the most similar first, of equal ones the lower row
        """
        batches = [queries[some] for some in blocks_of(len(queries), MOST_QUERIES)]
        best = [(np.empty((len(some), 0), np.float32), np.empty((len(some), 0), np.int64)) for some in batches]
        for block, vectors in self.rows.blocks(BLOCK_ROWS):  # once for all queries: they may lie on disk
            best = [_better(found, some @ vectors.T, block, k) for found, some in zip(best, batches, strict=True)]
        return np.concatenate([each[0] for each in best]), np.concatenate([each[1] for each in best])

    def near_duplicates(self, least: float) -> list[Pair]:
        """Find pairs of rows of at least this cosine that share no audio, the most alike first.

        Raises
        ------
        OptionError : there are more than `MOST_PAIRS`
        """
        pairs: list[Pair] = []
        for block, vectors in self.rows.blocks(PAIRED_ROWS):
            for other, others in self.rows.blocks(PAIRED_ROWS, block.start):
                cosines = vectors @ others.T
                firsts, seconds = np.nonzero(cosines >= least)
                for first, second in zip(firsts.tolist(), seconds.tolist(), strict=True):
                    one, two = block.start + first, other.start + second
                    if one < two and not self.rows.overlaps(one, two):
                        pairs.append(Pair(one, two, min(1.0, float(cosines[first, second]))))
                if len(pairs) > MOST_PAIRS:
                    raise OptionError(
                        f"more than {MOST_PAIRS:,} pairs have a cosine of {least:g} or more; give a higher --threshold"
                    )
        return sorted(pairs, key=lambda pair: (-pair.cosine, pair.first, pair.second))


class Neighbours:
    """An index of neighbours (HNSW) of a large table, in a file beside it: built once, then read where it lies.

    Parameters
    ----------
    index : of the table
    path : of the file; beside it lies ``NAME.json``, which says what it is of

    Raises
    ------
    OptionError : usearch is not installed
    """

    def __init__(self, index: Index, path: Path) -> None:
        self.usearch = import_extra("an index of neighbours", "usearch.index", "ann").index
        self.index = index
        self.path = path
        self.found: Any = None

    @property
    def _identity(self) -> dict[str, Any]:
        """What the index is of: the table as it is now."""
        status = self.index.rows.path.stat()
        return {"rows": len(self.index.rows), "bytes": status.st_size, "mtime_ns": status.st_mtime_ns}

    @property
    def _sidecar(self) -> Path:
        return self.path.with_name(f"{self.path.name}.json")

    def is_built(self) -> bool:
        """Return whether there is an index of the table as it is now."""
        try:
            return self.path.exists() and json.loads(self._sidecar.read_text(encoding="utf-8")) == self._identity
        except (OSError, ValueError):
            return False

    @property
    def memory(self) -> int:
        """Bytes of memory that building takes, about: all vectors, and their neighbours."""
        return len(self.index.rows) * (4 * self.index.rows.size + LINK_BYTES)

    def build(self) -> None:
        """Build the index, with all processors, and write it."""
        rows = self.index.rows
        found = self.usearch.Index(ndim=rows.size, metric="ip", dtype="f32")
        for block, vectors in rows.blocks(BLOCK_ROWS):
            found.add(np.arange(block.start, block.stop, dtype=np.uint64), np.ascontiguousarray(vectors))
        with atomic_path(self.path) as part:
            found.save(str(part))
        with atomic_path(self._sidecar) as part:
            part.write_text(json.dumps(self._identity), encoding="utf-8")

    def search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        """Find nearly all of the most similar rows, see `Index.search`; cosines are exact."""
        if self.found is None:
            self.found = self.usearch.Index.restore(str(self.path), view=True)
        cosines, rows = [], []
        for query in queries:
            keys = np.sort(self.found.search(query, k).keys.astype(np.int64))
            exact = np.asarray(self.found.get(keys.astype(np.uint64))) @ query
            order = np.argsort(-exact, kind="stable")
            cosines.append(exact[order])
            rows.append(keys[order])
        return np.array(cosines), np.array(rows)


Found = tuple[np.ndarray, np.ndarray]
"""Cosines and rows, (queries, k), the most similar first."""


def _better(best: Found, cosines: np.ndarray, block: slice, k: int) -> Found:
    """Return the most similar of those found so far and of a block of rows, whose cosines are (queries, rows)."""
    rows = np.broadcast_to(np.arange(block.start, block.stop), cosines.shape)
    if cosines.shape[1] > k:
        few = np.argpartition(-cosines, k - 1, axis=1)[:, :k]
        cosines, rows = np.take_along_axis(cosines, few, 1), np.take_along_axis(rows, few, 1)
    cosines, rows = np.hstack([best[0], cosines]), np.hstack([best[1], rows])
    order = np.lexsort((rows, -cosines), axis=1)[:, :k]
    return np.take_along_axis(cosines, order, 1), np.take_along_axis(rows, order, 1)
