"""Which layers of a student make its embeddings: measured on held-out synthetic clips, never on what scores them.

Each candidate is a set of layers; the embedding of a scene is mean and standard deviation over time of each, that of a
moment their features there. A ridge regression reads from it what the synthesis knows of a clip, or of the moment: the
families of sounds, the phones (of half a second), the pitches. The score of each is the mean average precision over its
classes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np
import torch
from numpy.typing import NDArray
from sklearn.linear_model import RidgeCV
from sklearn.metrics import average_precision_score
from sklearn.preprocessing import StandardScaler
from torch import Tensor, nn

from ...embedding.pooling import POOLS
from ...networks.trunk import Trunk
from ..corpus.stream import PHONES, Batch
from .recipe import KINDS

SEED = 2_000_003  # of clips that no run trains on or is scored by
LARGEST_SIZE = 1_536
MEL = "mel"
MEMBERS = 2  # layers of the network in a candidate at most
SPEECH_FRAMES = 50  # of the clips of speech, which hold a phone or seven
LEAST_POSITIVES = 5  # of a class among the clips that are scored
PENALTIES = tuple(10.0**i for i in range(0, 6))  # of the regression, of which leaving one out chooses
TRAINED_SHARE = 2 / 3  # of the clips; the others are scored
STEP_FRAMES = 4  # mel frames of a moment
PENALTY = 1e-3  # of the regression on moments, as a share of their number
SCORED_STRIDE = 4  # moments that are scored, one of so many: neighbours are alike


@dataclass(frozen=True, slots=True)
class Score:
    """How well an embedding tells what the synthesis knows.

    Attributes
    ----------
    layers : of the embedding
    size : numbers
    by_kind : mean average precision for each of `KINDS`
    """

    layers: tuple[str, ...]
    size: int
    by_kind: Mapping[str, float]

    @property
    def mean(self) -> float:
        """Mean over the kinds."""
        return float(np.mean(list(self.by_kind.values())))


def scores(trunk: Trunk, batches: Iterable[Batch]) -> list[Score]:
    """Score all candidates, the best first.

    Parameters
    ----------
    trunk : the network, in evaluation mode
    batches : of held-out clips, see `SEED`
    """
    statistics: dict[str, dict[str, list[Tensor]]] = {kind: {} for kind in KINDS}
    labels: dict[str, list[NDArray[np.bool_]]] = {kind: [] for kind in KINDS}
    for batch in batches:
        for kind in KINDS:
            mels, present = LABELS[kind](batch)
            labels[kind].append(present)
            for name, rows in _statistics(_grids(trunk, mels)).items():
                statistics[kind].setdefault(name, []).append(rows)
    tables = {kind: {name: torch.cat(rows).numpy() for name, rows in statistics[kind].items()} for kind in KINDS}
    truths = {kind: np.concatenate(labels[kind]) for kind in KINDS}
    sizes = {name: rows.shape[1] for name, rows in tables[KINDS[0]].items()}
    found = [
        Score(candidate, size, {kind: _precision(tables[kind], candidate, truths[kind]) for kind in KINDS})
        for candidate in candidates(list(sizes))
        if (size := sum(sizes[layer] for layer in candidate)) <= LARGEST_SIZE
    ]
    return sorted(found, key=lambda score: -score.mean)


def scores_of_moments(trunk: Trunk, batches: Iterable[Batch]) -> list[Score]:
    """Score all candidates for embeddings along time, the best first; parameters are those of `scores`."""
    rows: dict[str, list[Tensor]] = {kind: [] for kind in KINDS}
    truths: dict[str, list[NDArray[np.bool_]]] = {kind: [] for kind in KINDS}
    widths: dict[str, int] = {}
    for batch in batches:
        for kind in KINDS:
            mels, present = MOMENTS[kind](batch)
            truths[kind].append(present[:, STEP_FRAMES // 2 :: STEP_FRAMES].reshape(-1, present.shape[2]))
            moments = _moments(_grids(trunk, mels), mels.shape[2] // STEP_FRAMES)
            widths = {name: each.shape[1] for name, each in moments.items()}
            rows[kind].append(torch.cat(list(moments.values()), 1))
    ends = np.cumsum(list(widths.values()))
    places = {name: np.arange(end - widths[name], end) for name, end in zip(widths, ends, strict=True)}
    columns = {each: np.concatenate([places[layer] for layer in each]) for each in candidates(list(widths))}
    columns = {each: at for each, at in columns.items() if len(at) <= LARGEST_SIZE}
    precisions = [
        _precisions(torch.cat(rows[kind]).numpy(), np.concatenate(truths[kind]), list(columns.values()))
        for kind in KINDS
    ]
    found = [
        Score(each, len(at), dict(zip(KINDS, of_kinds, strict=True)))
        for (each, at), *of_kinds in zip(columns.items(), *precisions, strict=True)
    ]
    return sorted(found, key=lambda score: -score.mean)


def candidates(layers: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """Yield sets of layers: one or two of the network, with the mel and without, and the mel alone."""
    own = [layer for layer in layers if layer != MEL]
    for n in range(1, MEMBERS + 1):
        for chosen in combinations(own, n):
            yield chosen
            yield (MEL, *chosen)
    yield (MEL,)


@torch.no_grad()
def _grids(trunk: Trunk, mels: NDArray[np.float16]) -> dict[str, Tensor]:
    """Return every layer with a time axis, and the mel: (clips, time, freq, features) float32 by layer."""
    inputs = torch.from_numpy(mels).float()
    layers = {name for name, axis in trunk.layers.items() if axis is not None and name != MEL}
    taps = trunk(inputs, layers)
    ordered = {name: taps[name].float() for name in trunk.layers if name in layers}
    return {**ordered, MEL: inputs.transpose(1, 2).unsqueeze(2)}


def _statistics(grids: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return mean and standard deviation over time of each layer: (clips, 2 * features) by layer."""
    return {name: POOLS["meanstd"].function(grid) for name, grid in grids.items()}


def _moments(grids: Mapping[str, Tensor], n_moments: int) -> dict[str, Tensor]:
    """Return the mean over frequency of each layer at each moment: (clips * moments, features) by layer."""
    of_time = {name: grid.mean(2).transpose(1, 2) for name, grid in grids.items()}
    steps = {name: nn.functional.adaptive_avg_pool1d(each, n_moments) for name, each in of_time.items()}
    return {name: each.transpose(1, 2).flatten(0, 1) for name, each in steps.items()}


def _families(batch: Batch) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    return batch.scenes.mels, np.any(batch.scenes.labels["events"], 1)


def _phones(batch: Batch) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    mels, phones = batch.speech.mels, batch.speech.labels["phones"]
    first = (mels.shape[2] - SPEECH_FRAMES) // 2
    middle = slice(max(0, first), max(0, first) + SPEECH_FRAMES)
    present = np.any(phones[:, middle, None] == np.arange(len(PHONES)), 1)
    return np.ascontiguousarray(mels[:, :, middle]), present


def _pitches(batch: Batch) -> tuple[NDArray[np.float16], NDArray[np.bool_]]:
    return batch.notes.mels, np.any(batch.notes.labels["pitches"], 1)


LABELS: dict[str, Callable[[Batch], tuple[NDArray[np.float16], NDArray[np.bool_]]]] = {
    "scenes": _families,
    "speech": _phones,
    "notes": _pitches,
}
"""For each kind: a batch -> log-mels (clips, n_mels, frames), and which classes occur (clips, classes)."""


MOMENTS: dict[str, Callable[[Batch], tuple[NDArray[np.float16], NDArray[np.bool_]]]] = {
    "scenes": lambda batch: (batch.scenes.mels, batch.scenes.labels["events"].astype(np.bool_)),
    "speech": lambda batch: (batch.speech.mels, batch.speech.labels["phones"][..., None] == np.arange(len(PHONES))),
    "notes": lambda batch: (batch.notes.mels, batch.notes.labels["pitches"].astype(np.bool_)),
}
"""For each kind: a batch -> log-mels (clips, n_mels, frames), and classes of frames (clips, frames, classes)."""


def _precisions(
    rows: NDArray[np.float32], present: NDArray[np.bool_], columns: Sequence[NDArray[np.int64]]
) -> list[float]:
    """Return the mean average precision of a regression on each set of columns; all share one product of the rows."""
    n = round(TRAINED_SHARE * len(rows))
    rows = StandardScaler().fit(rows[:n]).transform(rows).astype(np.float32)
    trained, scored, truth = rows[:n], rows[n::SCORED_STRIDE], present[n::SCORED_STRIDE]
    mean = present[:n].mean(0)
    gram = (trained.T @ trained).astype(np.float64)
    cross = (trained.T @ (present[:n] - mean).astype(np.float32)).astype(np.float64)
    often = np.flatnonzero((truth.sum(0) >= LEAST_POSITIVES) & ~truth.all(0))
    found = []
    for each in columns:
        weights = np.linalg.solve(gram[np.ix_(each, each)] + PENALTY * n * np.eye(len(each)), cross[each][:, often])
        guesses = scored[:, each] @ weights
        precisions = [average_precision_score(truth[:, label], guesses[:, i]) for i, label in enumerate(often)]
        found.append(float(np.mean(precisions)))
    return found


def _precision(tables: Mapping[str, NDArray[np.float32]], layers: Sequence[str], present: NDArray[np.bool_]) -> float:
    """Return the mean average precision of a regression on some layers, over classes that occur often enough."""
    rows = np.concatenate([tables[layer] for layer in layers], 1).astype(np.float64)
    n = round(TRAINED_SHARE * len(rows))
    scaler = StandardScaler().fit(rows[:n])
    regression = RidgeCV(alphas=PENALTIES).fit(scaler.transform(rows[:n]), present[:n].astype(np.float64))
    guesses = regression.predict(scaler.transform(rows[n:]))
    n_positives = present[n:].sum(0)
    often = (n_positives >= LEAST_POSITIVES) & (n_positives < len(rows) - n)
    return float(np.mean([average_precision_score(present[n:, i], guesses[:, i]) for i in np.flatnonzero(often)]))
