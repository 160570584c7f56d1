"""The probes: logistic regression, nearest neighbours, HEAR's MLP, a gate over layers, and prototypes over token maps.

Each is fitted on training clips, its settings are chosen by validation clips, and what comes out is a `Fitted`: arrays
and a few words, which need nothing but NumPy to classify.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from ..errors import OptionError, import_extra, unknown
from . import mlp, prototypes
from .sample import Floats, Sample
from .token_maps import TokenMaps

STRENGTHS = (0.001, 0.01, 0.1, 1.0, 10.0)
"""C of logistic regression that are tried."""

NEIGHBOURS = (1, 3, 5, 10, 20)
"""Numbers of neighbours that are tried."""

BLOCK_NUMBERS = 2**24
"""Similarities in memory at once: 64 MB."""

MOST_ITERATIONS = 1000

PROTOTYPES = "prototypes"
"""The probe of token maps; others are of vectors."""


@dataclass(frozen=True, slots=True, eq=False)
class Fitted:
    """A probe that classifies.

    Attributes
    ----------
    kind : a key of `PROBES`
    multi_label : whether each class is decided alone
    arrays : by name, float32
    settings : what was chosen, ready for JSON
    """

    kind: str
    multi_label: bool
    arrays: Mapping[str, Floats]
    settings: Mapping[str, Any]

    @property
    def size(self) -> int:
        """Numbers of an embedding."""
        return len(self.arrays["mean"])

    def probabilities(self, embeddings: Floats | TokenMaps) -> Floats:
        """Compute the probability of each class: (clips, size), or maps of clips -> (clips, classes)."""
        if isinstance(embeddings, TokenMaps):
            maxima = prototypes.maxima(embeddings, self.arrays)
            return activated(_through_layers(maxima, self.arrays), self.multi_label)
        normal = (np.asarray(embeddings, np.float32) - self.arrays["mean"]) / self.arrays["scale"]
        if self.kind == "knn":
            return _neighbours(normal, self.arrays["rows"], self.arrays["targets"], [int(self.settings["k"])])[0]
        return activated(_through_layers(normal, self.arrays), self.multi_label)


def activated(logits: Floats, multi_label: bool) -> Floats:
    """Return the probabilities that logits (clips, classes) mean."""
    if multi_label:
        return 0.5 * (1.0 + np.tanh(0.5 * logits))  # the sigmoid, without overflow
    powers = np.exp(logits - logits.max(1, keepdims=True))
    return powers / powers.sum(1, keepdims=True)


def _through_layers(values: Floats, arrays: Mapping[str, Floats]) -> Floats:
    """Compute logits by affine layers with ReLUs between."""
    depth = sum(name.startswith("weight") for name in arrays)
    for i in range(depth):
        values = values @ arrays[f"weight{i}"].T + arrays[f"bias{i}"]
        values = np.maximum(values, 0.0) if i < depth - 1 else values
    return values


def _neighbours(queries: Floats, rows: Floats, targets: Floats, numbers: Sequence[int]) -> list[Floats]:
    """Compute which fraction of the nearest rows by cosine has each label: (queries, classes) for each number."""
    unit_rows, unit = _unit(rows), _unit(queries)
    most = min(max(numbers), len(rows))
    at_once = max(1, BLOCK_NUMBERS // len(rows))
    nearest = []
    for first in range(0, len(unit), at_once):
        similar = unit[first : first + at_once] @ unit_rows.T
        nearest.append(np.argsort(-similar, 1, kind="stable")[:, :most])
    found = targets[np.concatenate(nearest)]  # (queries, most, classes)
    return [found[:, :number].mean(1) for number in numbers]


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), 1e-12)


def _scaling(rows: Floats) -> tuple[Floats, Floats]:
    mean, scale = rows.mean(0), rows.std(0)
    return mean.astype(np.float32), np.where(scale > 1e-8, scale, 1.0).astype(np.float32)


def fit_logistic(sample: Sample) -> Fitted:
    """Fit logistic regression on standardised embeddings, its strength chosen by validation clips."""

    def fit(x: Floats, y: Floats, strength: float) -> Fitted:
        mean, scale = _scaling(x)
        weight, bias = _regression((x - mean) / scale, y, strength, sample.multi_label)
        arrays = {"mean": mean, "scale": scale, "weight0": weight, "bias0": bias}
        return Fitted("logistic", sample.multi_label, arrays, {"C": strength})

    chosen = sample.settings.get("C")
    if chosen is None:
        values = [sample.value(fit(sample.x, sample.y, each).probabilities(sample.valid_x)) for each in STRENGTHS]
        chosen = STRENGTHS[int(np.argmax(values))]
    return fit(*sample.both(), chosen)


def _regression(x: Floats, y: Floats, strength: float, multi_label: bool) -> tuple[Floats, Floats]:
    """Return weights (classes, size) and biases (classes,)."""
    import_extra("a probe", "sklearn.linear_model", "train")
    from sklearn.exceptions import ConvergenceWarning
    from sklearn.linear_model import LogisticRegression

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        solvers = [LogisticRegression(C=strength, max_iter=MOST_ITERATIONS) for _ in range(y.shape[1])]
        if multi_label:
            fitted = [solver.fit(x, column) for solver, column in zip(solvers, y.T, strict=True)]
            weight = np.concatenate([each.coef_ for each in fitted])
            return weight.astype(np.float32), np.array([each.intercept_[0] for each in fitted], np.float32)
        one = solvers[0].fit(x, y.argmax(1))
    weight, bias = one.coef_, one.intercept_
    if len(bias) == 1:  # of two classes there is one logit, their difference
        weight, bias = np.concatenate([-weight / 2, weight / 2]), np.concatenate([-bias / 2, bias / 2])
    return weight.astype(np.float32), bias.astype(np.float32)


def fit_knn(sample: Sample) -> Fitted:
    """Keep the clips: classes are those of the nearest by cosine after centring, their number chosen by validation."""
    number = sample.settings.get("k")
    if number is None:
        mean = sample.x.mean(0)
        numbers = [each for each in NEIGHBOURS if each <= len(sample.x)]
        found = _neighbours(sample.valid_x - mean, sample.x - mean, sample.y, numbers)
        number = numbers[int(np.argmax([sample.value(each) for each in found]))]
    rows, targets = sample.both()
    mean = rows.mean(0).astype(np.float32)
    arrays = {"mean": mean, "scale": np.ones_like(mean), "rows": rows - mean, "targets": targets}
    return Fitted("knn", sample.multi_label, arrays, {"k": number})


def fit_mlp(sample: Sample) -> Fitted:
    """Fit HEAR's MLP, see `mlp.fit`."""
    weights, settings = mlp.fit(sample)
    size = sample.x.shape[1]
    arrays = {"mean": np.zeros(size, np.float32), "scale": np.ones(size, np.float32), **weights}
    return Fitted("mlp", sample.multi_label, arrays, settings)


def fit_gate(sample: Sample) -> Fitted:
    """Fit a gate over layers and a linear classifier together, after 2602.16305.

    Each layer is standardised and divided by the root of its size, so that large ones do not win by size; a softmax
    over one number a layer weighs them.
    """
    mean, scale = _scaling(sample.x)
    columns = sample.columns or {"all": range(sample.x.shape[1])}
    layer_of, scale = np.zeros(len(mean), np.int64), scale.copy()
    for i, places in enumerate(columns.values()):
        layer_of[list(places)] = i
        scale[list(places)] *= math.sqrt(len(places))
    weights, gates, settings = mlp.fit_gated(sample, mean, scale, layer_of, len(columns))
    shares = dict(zip(columns, (round(float(gate), 4) for gate in gates), strict=True))
    return Fitted("gate", sample.multi_label, {"mean": mean, "scale": scale, **weights}, {**settings, "gates": shares})


def fit_prototypes(sample: Sample) -> Fitted:
    """Fit prototypes over token maps, see `prototypes`."""
    if sample.maps is None:
        raise OptionError(f"{PROTOTYPES}: reads token maps, not vectors; give `prototypes.TokenMaps`")
    arrays, settings = prototypes.fit(sample)
    return Fitted(PROTOTYPES, sample.multi_label, arrays, settings)


PROBES: dict[str, Callable[[Sample], Fitted]] = {
    "logistic": fit_logistic,
    "knn": fit_knn,
    "mlp": fit_mlp,
    "gate": fit_gate,
    PROTOTYPES: fit_prototypes,
}
"""Probes by name."""


def fit(name: str, sample: Sample) -> Fitted:
    """Fit a probe; raise OptionError for an unknown name."""
    if name not in PROBES:
        raise unknown("probe", name, PROBES)
    if sample.maps is not None and name != PROTOTYPES:
        raise OptionError(f"{name}: reads vectors, not token maps; of these give {PROTOTYPES}")
    return PROBES[name](sample)
