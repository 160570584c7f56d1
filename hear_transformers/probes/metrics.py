"""Scores of classes, and their bootstrap intervals: each clip may count several times, so all take weights."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

N_DRAWS = 1000
"""Bootstrap samples of an interval."""

LEVEL = 0.95
"""Probability that an interval is to hold."""

CHUNK_NUMBERS = 2_000_000
"""Weights in memory at once: 16 MB."""


@dataclass(frozen=True, slots=True, eq=False)
class Score:
    """A score and how sure it is.

    Attributes
    ----------
    value : mean over the tests, as HEAR has it
    low, high : `LEVEL` interval by bootstrap over groups of clips, see `summarise` and `drawn_means`; NaN of one test
        on one group
    std : standard deviation over the tests, NaN of one
    draws : (`N_DRAWS`,) the bootstrap samples; those of two sets of embeddings of the same clips are of the same clips,
        so that their difference is paired
    """

    value: float
    low: float
    high: float
    std: float
    draws: Array


def in_words(value: float, low: float, high: float) -> str:
    """Return a score and its interval, such as "0.928 [0.901, 0.953]"."""
    if math.isnan(low) or math.isnan(high):
        return f"{value:.3f} [no interval]"
    return f"{value:.3f} [{low:.3f}, {high:.3f}]"


def accuracy(targets: Array, scores: Array, weights: Array) -> Array:
    """Compute the fraction of clips whose highest score is that of their label.

    Parameters
    ----------
    targets, scores : (clips, classes)
    weights : (draws, clips), how often each clip counts

    Returns
    -------
    values : (draws,)
    """
    return weights @ (targets.argmax(1) == scores.argmax(1)) / weights.sum(1)


def average_precisions(targets: Array, scores: Array, weights: Array) -> Array:
    """Compute the average precision of each class, as scikit-learn does, (draws, classes); NaN without positives."""
    return np.stack([_average_precision(*each, weights) for each in zip(targets.T, scores.T, strict=True)], 1)


def areas(targets: Array, scores: Array, weights: Array) -> Array:
    """Compute the area under the ROC curve of each class, (draws, classes); NaN without positives or negatives."""
    return np.stack([_area(*each, weights)[0] for each in zip(targets.T, scores.T, strict=True)], 1)


def d_primes(targets: Array, scores: Array, weights: Array) -> Array:
    """Compute d' of each class, sqrt(2) times the normal quantile of the area, as heareval does: (draws, classes).

    Perfect classes have infinity there. Here their area is taken as if half a pair were the wrong way round, the usual
    correction, so that means over classes stay finite.
    """
    from scipy.special import ndtri  # of the extra `train`

    columns = []
    for each in zip(targets.T, scores.T, strict=True):
        area, n_pairs = _area(*each, weights)
        edge = 0.5 / np.maximum(n_pairs, 1.0)
        columns.append(math.sqrt(2.0) * ndtri(np.clip(area, edge, 1.0 - edge)))
    return np.stack(columns, 1)


def _cumulated(target: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Sum the weights of positives and of all clips from the highest score down to each: (draws, different scores)."""
    order = np.argsort(-score, kind="stable")
    ends = np.append(np.flatnonzero(np.diff(score[order])), len(order) - 1)
    ordered = weights[:, order]
    return np.cumsum(ordered * target[order], 1)[:, ends], np.cumsum(ordered, 1)[:, ends]


def _average_precision(target: Array, score: Array, weights: Array) -> Array:
    positives, all_clips = _cumulated(target, score, weights)
    with np.errstate(invalid="ignore", divide="ignore"):
        precisions = np.where(all_clips > 0, positives / all_clips, 0.0)
        return (np.diff(positives, axis=1, prepend=0.0) * precisions).sum(1) / positives[:, -1]


def _area(target: Array, score: Array, weights: Array) -> tuple[Array, Array]:
    """Return the area, and how many pairs of a positive and a negative there are."""
    positives, all_clips = _cumulated(target, score, weights)
    negatives = all_clips - positives
    heights = positives - 0.5 * np.diff(positives, axis=1, prepend=0.0)  # ties count half
    n_pairs = positives[:, -1] * negatives[:, -1]
    with np.errstate(invalid="ignore", divide="ignore"):
        return (np.diff(negatives, axis=1, prepend=0.0) * heights).sum(1) / n_pairs, n_pairs


def _mean_of(each: Callable[[Array, Array, Array], Array]) -> Callable[[Array, Array, Array], Array]:
    """Make the mean over classes where a score is defined."""

    def mean(targets: Array, scores: Array, weights: Array) -> Array:
        values = each(targets, scores, weights)
        defined = ~np.isnan(values)
        return np.where(defined, values, 0.0).sum(1) / np.maximum(defined.sum(1), 1)

    return mean


METRICS: dict[str, Callable[[Array, Array, Array], Array]] = {
    "accuracy": accuracy,
    "mAP": _mean_of(average_precisions),
    "AUC": _mean_of(areas),
    "d_prime": _mean_of(d_primes),
}


def names_of(multi_label: bool) -> tuple[str, ...]:
    """Return the metrics of a task, the one that is selected by first."""
    return tuple(name for name in METRICS if not (multi_label and name == "accuracy"))


def value(name: str, targets: NDArray[np.floating[Any]], scores: NDArray[np.floating[Any]]) -> float:
    """Compute one metric of clips that count once: (clips, classes) each."""
    return float(METRICS[name](targets.astype(float), scores.astype(float), np.ones((1, len(targets))))[0])


def summarise(values: Sequence[float], draws: Array, bounds: tuple[float, float] = (-math.inf, math.inf)) -> Score:
    """Return the score of some tests from its values and its bootstrap samples.

    The interval is that of the percentiles, shifted by the bias that the bootstrap estimates, mean of the samples less
    score: a sample has fewer different clips, among which ranking is easier, so that with few clips of a class the
    percentiles of mAP or d' lie above the score.

    Parameters
    ----------
    values : of each test
    draws : (`N_DRAWS`,)
    bounds : of the score
    """
    value = float(np.mean(values))
    low, high = np.quantile(draws, [(1 - LEVEL) / 2, (1 + LEVEL) / 2]) - (draws.mean() - value)
    std = float(np.std(values, ddof=1)) if len(values) > 1 else math.nan
    low, high = np.clip((low, high), *bounds)  # of perfect scores the shift may lead beyond them
    return Score(value, float(low), float(high), std, draws)


def score_all(
    targets: NDArray[np.floating[Any]],
    scores: NDArray[np.floating[Any]],
    groups: NDArray[np.int64],
    tests: Sequence[NDArray[np.int64]],
    *,
    multi_label: bool,
) -> dict[str, Score]:
    """Compute all metrics of a task, with intervals.

    Parameters
    ----------
    targets, scores : (clips, classes)
    groups : (clips,) what is drawn together, such as parts of a file
    tests : numbers of the clips of each test; a score is the mean over them
    multi_label : whether a clip may have any number of labels
    """
    true, given = targets.astype(float), scores.astype(float)
    found = {}
    for name in names_of(multi_label):
        once = [value(name, true[rows], given[rows]) for rows in tests]
        draws = drawn_means(once, groups, tests, partial(_score_of, METRICS[name], true, given))
        bounds = () if name == "d_prime" else ((0.0, 1.0),)
        found[name] = summarise(once, draws, *bounds)
    return found


def _score_of(
    metric: Callable[[Array, Array, Array], Array], true: Array, given: Array, rows: NDArray[np.int64], weights: Array
) -> Array:
    return metric(true[rows], given[rows], weights)


def drawn_means(
    values: Sequence[float],
    groups: NDArray[np.int64],
    tests: Sequence[NDArray[np.int64]],
    score: Callable[[NDArray[np.int64], Array], Array],
) -> Array:
    """Return bootstrap samples of the mean over tests: (`N_DRAWS`,).

    Where each test is one group, as when every speaker is left out in turn, drawing groups within a test changes
    nothing: the tests are drawn instead. A single test of a single group cannot tell how much groups differ: NaN.

    Parameters
    ----------
    values : of each test
    groups : (clips,) what is drawn together
    tests : numbers of the clips of each test
    score : numbers of clips, how often each counts (draws, clips) -> (draws,)
    """
    if all(len(np.unique(groups[rows])) == 1 for rows in tests):
        if len(tests) == 1:
            return np.full(N_DRAWS, math.nan)
        counts = np.random.default_rng(0).multinomial(len(tests), np.full(len(tests), 1 / len(tests)), N_DRAWS)
        means: Array = counts @ np.asarray(values) / len(tests)
        return means
    drawn = [
        np.concatenate([score(rows, weights) for weights in weights_of(groups[rows], seed)])
        for seed, rows in enumerate(tests)
    ]
    return np.mean(drawn, 0)


def weights_of(groups: NDArray[np.int64], seed: int) -> Iterator[Array]:
    """Draw groups with replacement: yield how often each clip counts, (some draws, clips)."""
    _, group_of = np.unique(groups, return_inverse=True)
    n_groups, rng = int(group_of.max()) + 1, np.random.default_rng(seed)
    at_once = max(1, CHUNK_NUMBERS // max(len(groups), n_groups))
    for first in range(0, N_DRAWS, at_once):
        counts = rng.multinomial(n_groups, np.full(n_groups, 1.0 / n_groups), min(at_once, N_DRAWS - first))
        yield counts[:, group_of].astype(float)
