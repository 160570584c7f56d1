"""Prototypes per class over the token map: a clip is what its best places are similar to.

Each class has some prototypes, vectors of the size of a token. The similarity of a prototype to a clip is that of its
most similar token, wherever in time and frequency; a linear layer over these makes the classes (after 2509.24901, where
pooling tokens before the classifier is what loses short sounds). The network stays as it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional as F

from . import mlp
from .sample import Sample
from .token_maps import TokenMaps

Floats = NDArray[np.float32]
Arrays = Mapping[str, Floats]

PER_CLASS = 5
"""Prototypes of each class."""

DRAWN = 10
"""Tokens that are drawn for each prototype, of which the best begins."""

HOW = {"lr": 0.01, "patience": 10, "max_epochs": 100, "check_val_every_n_epoch": 1, "batch_size": 32}
"""How they are learned, see `mlp.train`."""

FIRST_WEIGHT = 10.0
"""Sum of the weights of a class's own prototypes before they are learned: cosines lie within 1, and logits must not."""

SHORTEST = 1e-6
"""Least length that tokens are divided by."""


def similarities(tokens: Floats, arrays: Arrays) -> Floats:
    """Compute cosines, after standardising, of tokens (tokens, features) and prototypes: -> (tokens, prototypes)."""
    return _unit((tokens - arrays["mean"]) / arrays["scale"]) @ arrays["prototypes"].T


def maxima(maps: TokenMaps, arrays: Arrays) -> Floats:
    """Compute the similarity of the most similar token of each clip to each prototype: (clips, prototypes)."""
    return np.stack([similarities(maps.read(clip), arrays).max(0) for clip in range(len(maps))])


def found_at(maps: TokenMaps, clip: int, arrays: Arrays) -> Floats:
    """Compute where in the map of a clip a class is found.

    Parameters
    ----------
    maps : of the clips
    clip : which of them
    arrays : of the fitted probe

    Returns
    -------
    evidence : (classes, times, freq), what each place would add to the logit of a class if it were the best place of
        the prototype of the class that speaks most for it
    """
    similar = similarities(maps.read(clip), arrays)
    weights = arrays["weight0"]
    owner = _owners(*weights.shape)
    places = [(similar * row)[:, owner == number].max(1) for number, row in enumerate(weights)]
    return np.stack(places).reshape(len(weights), -1, maps.freq)


def _owners(n_classes: int, n_prototypes: int) -> NDArray[np.int64]:
    """Return the class of each prototype: (prototypes,)."""
    return np.arange(n_prototypes) // (n_prototypes // n_classes)


def _unit(rows: Floats) -> Floats:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), SHORTEST)


def fit(sample: Sample) -> tuple[dict[str, Floats], dict[str, Any]]:
    """Learn prototypes and the linear layer: return the arrays of a probe, and its settings."""
    maps = sample.maps
    assert maps is not None
    per_class = int(sample.settings.get("per_class", PER_CLASS))
    order = np.random.default_rng(mlp.SEED + sample.seed).permutation(len(sample.x))  # rows may be sorted by class
    numbers, targets = sample.x[order], sample.y[order]
    mean, scale = _scaling(maps, numbers)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(mlp.SEED + sample.seed)
        first = _first(maps, numbers, targets, mean, scale, per_class, sample.seed)
        network = Prototypical(maps, mean, scale, first, targets.shape[1])
        shuffled = Sample(
            numbers, targets, sample.valid_x, sample.valid_y, sample.multi_label, sample.seed, score=sample.score
        )
        _, epoch = mlp.train(network, shuffled, HOW)
    with torch.no_grad():
        learned = F.normalize(network.prototypes, dim=1).numpy()
        weight, bias = network.linear.weight.numpy(), network.linear.bias.numpy()
    arrays = {"mean": mean, "scale": scale, "prototypes": learned, "weight0": weight, "bias0": bias}
    return arrays, {"per_class": per_class, "epoch": epoch, "freq": maps.freq}


class Prototypical(nn.Module):
    """Similarities of the best places of clips to prototypes, and a linear layer.

    Parameters
    ----------
    maps : of all clips
    mean, scale : (features,) of the standardisation
    prototypes : (prototypes, features) to begin with, those of a class beside each other
    n_classes : how many
    """

    def __init__(self, maps: TokenMaps, mean: Floats, scale: Floats, prototypes: Floats, n_classes: int) -> None:
        super().__init__()
        self.maps, self.mean, self.scale = maps, mean, scale
        self.prototypes = nn.Parameter(torch.from_numpy(prototypes.copy()))
        self.linear = nn.Linear(len(prototypes), n_classes)
        owner = torch.from_numpy(_owners(n_classes, len(prototypes)))
        own = owner == torch.arange(n_classes)[:, None]  # (classes, prototypes)
        with torch.no_grad():
            self.linear.weight.copy_(own * (FIRST_WEIGHT * n_classes / len(prototypes)))
            self.linear.bias.zero_()

    def forward(self, numbers: Tensor) -> Tensor:
        """Compute logits of clips by their numbers: (clips, 1) -> (clips, classes)."""
        unit = F.normalize(self.prototypes, dim=1)
        best = torch.stack([self._best(int(number), unit.detach()) for number in numbers[:, 0].tolist()])
        # The gradient of a maximum is that of the token which has it: no other is kept.
        logits: Tensor = self.linear((best * unit).sum(2))
        return logits

    @torch.no_grad()
    def _best(self, clip: int, unit: Tensor) -> Tensor:
        """Return the token of a clip that is most similar to each prototype: (prototypes, features) of length 1."""
        tokens = torch.from_numpy(_unit((self.maps.read(clip) - self.mean) / self.scale))
        return tokens[(tokens @ unit.T).argmax(0)]


def _scaling(maps: TokenMaps, numbers: Floats) -> tuple[Floats, Floats]:
    """Compute mean and standard deviation of the tokens of some clips, of which one is in memory: (features,) each."""
    n, total, squares = 0, np.zeros(1), np.zeros(1)
    for number in numbers[:, 0].astype(int).tolist():
        tokens = maps.read(number).astype(np.float64)
        n, total, squares = n + len(tokens), total + tokens.sum(0), squares + (tokens**2).sum(0)
    mean = total / n
    scale = np.sqrt(np.maximum(squares / n - mean**2, 0.0))
    return mean.astype(np.float32), np.where(scale > 1e-8, scale, 1.0).astype(np.float32)


def _first(
    maps: TokenMaps, numbers: Floats, targets: Floats, mean: Floats, scale: Floats, per_class: int, seed: int
) -> Floats:
    """Choose tokens of clips of each class to begin with: (classes * per_class, features).

    Of tokens drawn from its clips, those whose most similar tokens tell the clips of a class best from others: most
    places of a clip hold what all clips have.
    """
    rng = np.random.default_rng(mlp.SEED + seed)
    drawn = []
    for column in targets.T:
        clips = numbers[column > 0, 0].astype(np.int64)
        n = per_class * DRAWN
        for clip in rng.choice(clips, n, replace=len(clips) < n).tolist():
            tokens = maps.read(clip)
            drawn.append(_unit((tokens[[rng.integers(len(tokens))]] - mean) / scale)[0])
    arrays = {"mean": mean, "scale": scale, "prototypes": np.stack(drawn)}
    best = maxima(maps[numbers[:, 0].astype(np.int64)], arrays)  # (clips, classes * n)
    chosen = []
    for number, column in enumerate(targets.T):
        own = slice(number * n, (number + 1) * n)
        telling = best[column > 0, own].mean(0) - best[column == 0, own].mean(0)
        chosen.append(arrays["prototypes"][own][np.argsort(-telling, kind="stable")[:per_class]])
    return np.concatenate(chosen)
