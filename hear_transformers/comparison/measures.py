"""How well classes are clusters of embeddings, and how alike two embeddings of the same clips are."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

Floats: TypeAlias = NDArray[np.float64]
Ints: TypeAlias = NDArray[np.int64]

HIGHER, LOWER = "higher is better", "lower is better"

MEASURES: Mapping[str, tuple[str, str]] = {
    "silhouette": ("of the classes, with cosine distance: -1 to 1", HIGHER),
    "davies_bouldin": ("of the classes: from 0", LOWER),
    "calinski_harabasz": ("of the classes: from 0", HIGHER),
    "nmi": ("normalised mutual information of k-means and classes: 0 to 1", HIGHER),
    "ami": ("the same, adjusted for chance", HIGHER),
    "ari": ("adjusted Rand index of k-means and classes: -0.5 to 1", HIGHER),
    "v_measure": ("of k-means and classes: 0 to 1", HIGHER),
}
"""Name -> what it is, which direction is better. All are scikit-learn's."""

N_STARTS = 10  # of k-means, of which the best is taken
RESAMPLES = 100
COVERED = (2.5, 97.5)  # percentiles of an interval
FEWEST_FOR_CKA = 4  # clips, by the denominators of the estimate


def measure(vectors: Floats, labels: Ints, *, seed: int = 0, resamples: int = RESAMPLES) -> dict[str, dict[str, float]]:
    """Measure how well the classes are clusters.

    Intervals are of a bootstrap over clips within each class, 95 %. A clip that is drawn twice would be its own
    neighbour, so the silhouette of each clip and the clusters of k-means are those among all clips. With ten clips of a
    class or fewer the intervals of the measures of k-means lie too high, as repeated clips agree with themselves.

    Parameters
    ----------
    vectors : (clips, features)
    labels : (clips,) numbers of classes, at least two, each of at least two clips
    seed : of k-means and of the resampling
    resamples : of the bootstrap

    Returns
    -------
    measures : name -> "value", and "low" and "high" of its interval
    """
    from sklearn import metrics
    from sklearn.cluster import KMeans

    n_classes = len(np.unique(labels))
    clusters = KMeans(n_classes, n_init=N_STARTS, random_state=seed).fit_predict(vectors)
    silhouettes = metrics.silhouette_samples(vectors, labels, metric="cosine")
    of_pairs: dict[str, Callable[[Ints, Ints], float]] = {
        "nmi": metrics.normalized_mutual_info_score,
        "ami": metrics.adjusted_mutual_info_score,
        "ari": metrics.adjusted_rand_score,
    }

    def values(clips: Ints) -> list[float]:
        drawn = vectors[clips], labels[clips]
        of_classes = [metrics.davies_bouldin_score(*drawn), metrics.calinski_harabasz_score(*drawn)]
        pairs = [score(labels[clips], clusters[clips]) for score in of_pairs.values()]
        # V-measure is NMI with the arithmetic mean (Rosenberg and Hirschberg, EMNLP 2007), scikit-learn's default.
        return [float(silhouettes[clips].mean()), *map(float, of_classes), *map(float, pairs), float(pairs[0])]

    found = values(np.arange(len(labels)))
    resampled = np.array([values(clips) for clips in redrawn(labels, resamples, seed)])
    intervals = np.percentile(resampled, COVERED, axis=0).T.tolist()
    return {
        name: {"value": value, "low": low, "high": high}
        for name, value, (low, high) in zip(MEASURES, found, intervals, strict=True)
    }


def redrawn(labels: Ints, n: int, seed: int) -> Iterator[Ints]:
    """Draw as many clips of each class as there are, with replacement and at least two different ones, `n` times."""
    draws = np.random.default_rng(seed)
    groups = [np.flatnonzero(labels == label) for label in np.unique(labels)]
    for _ in range(n):
        drawn = []
        for group in groups:
            clips = draws.choice(group, len(group))
            if (clips == clips[0]).all():  # no distances within a class of one clip
                clips[0] = draws.choice(group[group != clips[0]])
            drawn.append(clips)
        yield np.concatenate(drawn)


def gram(vectors: Floats) -> Floats:
    """Compute the products of all pairs of centred vectors, (clips, clips), scaled to a mean square of 1."""
    centred = vectors - vectors.mean(0)
    products = centred @ centred.T
    return np.asarray(products / max(float(np.sqrt(np.square(products).mean())), 1e-300), np.float64)


def hsic(one: Floats, other: Floats) -> float:
    """Estimate the Hilbert-Schmidt independence criterion without bias (Song et al., JMLR 2012, equation 5).

    `one` and `other` are (clips, clips) from `gram`, of at least `FEWEST_FOR_CKA` clips.
    """
    n = len(one)
    one, other = one - np.diag(one.diagonal()), other - np.diag(other.diagonal())
    sums = one.sum(0), other.sum(0)
    traced = float((one * other).sum())
    rest = float(sums[0].sum() * sums[1].sum()) / ((n - 1) * (n - 2)) - 2 * float(sums[0] @ sums[1]) / (n - 2)
    return (traced + rest) / (n * (n - 3))


def debiased_cka(of_a: list[Floats], of_b: list[Floats]) -> Floats:
    """Compute linear CKA between all layers of two models, (layers of a, layers of b).

    Of unbiased estimates (Nguyen et al., 2010.15327, equation 3): with few clips and many features the usual estimate
    (Kornblith et al., 1905.00414) is large for unrelated layers; this one is 0 on average and may be negative.

    Parameters
    ----------
    of_a, of_b : `gram` of each layer
    """
    norms = [[max(hsic(each, each), 1e-300) for each in grams] for grams in (of_a, of_b)]
    return np.array(
        [
            [hsic(a, b) / float(np.sqrt(norms[0][i] * norms[1][j])) for j, b in enumerate(of_b)]
            for i, a in enumerate(of_a)
        ]
    )
