"""Vectors -> places on a map (principal components, UMAP) and clusters (k-means)."""

from __future__ import annotations

import numpy as np

from ..errors import import_extra

N_COMPONENTS = 32
"""Principal components that clusters are made of."""

N_ITERATIONS = 12
"""Of the subspace iteration: leading components are then exact to what a map shows."""


def components(vectors: np.ndarray) -> np.ndarray:
    """Return the principal components of vectors (rows, size) of mean 0: (rows, at most `N_COMPONENTS`) float32."""
    n_components = min(N_COMPONENTS, *vectors.shape)
    rng = np.random.default_rng(0)
    basis = rng.normal(size=(vectors.shape[1], min(n_components + 8, *vectors.shape))).astype(np.float32)
    for _ in range(N_ITERATIONS):
        basis = np.linalg.qr(vectors.T @ (vectors @ basis))[0]
    left, sizes, _ = np.linalg.svd(vectors @ basis, full_matrices=False)
    found = (left * sizes)[:, :n_components]
    # The sign of a component is nobody's choice: the largest number of each is above 0.
    signs = np.sign(found[np.abs(found).argmax(0), np.arange(found.shape[1])])
    return np.asarray(found * np.where(signs == 0, 1, signs), np.float32)


def umap(vectors: np.ndarray) -> np.ndarray:
    """Return the places of vectors on a map by UMAP with cosine distance: (rows, 2).

    Raises
    ------
    OptionError : umap-learn is not installed
    """
    library = import_extra("a map by UMAP", "umap", "umap")
    n_neighbours = min(15, len(vectors) - 1)
    init = "random" if len(vectors) < 20 else "spectral"
    reducer = library.UMAP(n_neighbors=n_neighbours, metric="cosine", init=init, random_state=0, n_jobs=1)
    return np.asarray(reducer.fit_transform(vectors), np.float32)


def clusters(points: np.ndarray, n_clusters: int, n_rounds: int = 50) -> np.ndarray:
    """Return the cluster of each point (rows, components) by k-means, the largest cluster first: (rows,)."""
    rng = np.random.default_rng(0)
    centres = points[rng.integers(len(points))][None]
    for _ in range(min(n_clusters, len(points)) - 1):  # each far from those before it, as k-means++ has it
        distances = _distances(points, centres).min(1)
        total = distances.sum()
        if total <= 0:
            break
        centres = np.vstack([centres, points[rng.choice(len(points), p=distances / total)]])
    nearest = _distances(points, centres).argmin(1)
    for _ in range(n_rounds):
        centres = np.stack(
            [points[nearest == i].mean(0) if (nearest == i).any() else centre for i, centre in enumerate(centres)]
        )
        before, nearest = nearest, _distances(points, centres).argmin(1)
        if (before == nearest).all():
            break
    order = np.argsort(-np.bincount(nearest, minlength=len(centres)), kind="stable")
    return np.argsort(order)[nearest]


def _distances(points: np.ndarray, centres: np.ndarray) -> np.ndarray:
    squares = (points.astype(np.float64) ** 2).sum(1)[:, None] + (centres.astype(np.float64) ** 2).sum(1)
    return np.maximum(squares - 2.0 * points.astype(np.float64) @ centres.T.astype(np.float64), 0.0)
