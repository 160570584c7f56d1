"""Embed labelled clips with two models and measure every layer of both."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..audio.clips import Clip
from ..embedding.embedder import columns_of
from ..embedding.pipeline import Model, embed
from ..errors import AudioError, OptionError
from ..training.manifest import Manifest
from .measures import FEWEST_FOR_CKA, Floats, Ints, debiased_cka, gram, measure

MOST_FOR_CKA = 2_000
"""Clips that CKA is computed of, evenly taken of more: a table of all pairs is kept for every layer."""


@dataclass(slots=True, eq=False)
class Side:
    """One of the models.

    Attributes
    ----------
    name : "family/variant"
    layers : layer -> (clips, features)
    measures : layer -> name -> value, low and high, see `measures.measure`
    """

    name: str
    layers: dict[str, Floats]
    measures: dict[str, dict[str, dict[str, float]]] = field(default_factory=dict)

    def best(self, measure: str = "nmi") -> str:
        """Return the layer with the largest value of a measure."""
        return max(self.measures, key=lambda layer: self.measures[layer][measure]["value"])


@dataclass(frozen=True, slots=True, eq=False)
class Comparison:
    """What was measured.

    Attributes
    ----------
    sides : the two models
    labels : (clips,) class of each clip that both could read
    classes : names
    cka : (layers of the first, layers of the second), see `measures.debiased_cka`
    n_cka : clips of which it is computed
    failed : file -> why it could not be read
    """

    sides: tuple[Side, Side]
    labels: Ints
    classes: tuple[str, ...]
    cka: Floats
    n_cka: int
    failed: dict[str, str]

    def described(self) -> dict[str, Any]:
        """Return all numbers, ready for JSON."""
        return {
            "clips": len(self.labels),
            "classes": {name: int((self.labels == i).sum()) for i, name in enumerate(self.classes)},
            "models": [
                {"model": side.name, "best_layer_by_nmi": side.best(), "layers": side.measures} for side in self.sides
            ],
            "cka": {
                "estimate": "linear, debiased",
                "clips": self.n_cka,
                "rows": list(self.sides[0].layers),
                "columns": list(self.sides[1].layers),
                "values": self.cka.tolist(),
            },
            "failed": self.failed,
        }


def compare(
    models: tuple[Model, Model],
    clips: Manifest,
    *,
    standardise: bool = False,
    seed: int = 0,
    workers: int = 0,
    on_clip: Callable[[], None] = lambda: None,
) -> Comparison:
    """Compare two models on labelled clips, each in one pass for all of its layers.

    Parameters
    ----------
    models : that embed, with the layers that are compared
    clips : with one label each
    standardise : scale every number of an embedding to mean 0 and deviation 1 over the clips before measuring
    seed : of k-means and the bootstrap
    workers : processes that read audio
    on_clip : called for each clip and model

    Raises
    ------
    OptionError : there is no label, several for a clip, one class only, or a class of one clip
    AudioError : too few files can be read, or embedded in finite numbers
    """
    check_labels(clips.labels_of, clips, range(len(clips)), OptionError)
    failed: dict[str, str] = {}
    embedded = [_embedded(model, clips, workers, failed, on_clip) for model in models]
    kept = [clip for clip in range(len(clips)) if all(rows[clip] is not None for rows in embedded)]
    try:
        check_labels(clips.labels_of, clips, kept, AudioError)
    except AudioError as error:
        raise AudioError(f"{error}; {len(failed)} failed, the first: {next(iter(failed.values()))}") from error
    labels = np.array([clips.labels_of(clip)[0] for clip in kept], np.int64)
    used = np.unique(labels)
    labels = np.searchsorted(used, labels)
    sides = [_side(model, rows, kept, standardise) for model, rows in zip(models, embedded, strict=True)]
    for side in sides:
        for layer, vectors in side.layers.items():
            side.measures[layer] = measure(vectors, labels, seed=seed)
    taken = np.linspace(0, len(labels) - 1, min(len(labels), MOST_FOR_CKA)).round().astype(int)
    grams = [[gram(vectors[taken]) for vectors in side.layers.values()] for side in sides]
    classes = tuple(clips.classes[number] for number in used)
    return Comparison((sides[0], sides[1]), labels, classes, debiased_cka(*grams), len(taken), failed)


def check_labels(
    labels_of: Callable[[int], NDArray[np.int32]],
    clips: Manifest,
    kept: Sequence[int],
    error: type[OptionError] | type[AudioError],
) -> None:
    """Raise an error unless each clip has one label, and there are two classes of two clips each at least."""
    for clip in kept:
        if len(labels_of(clip)) != 1:
            raise error(f"{clips.path(clip)}: has {len(labels_of(clip))} labels; clusters need one for each clip")
    counts = Counter(clips.classes[labels_of(clip)[0]] for clip in kept)
    if len(counts) < 2:
        raise error(
            f"{clips.source}: {', '.join(counts) or 'no class'} is the only class with clips that can be read; "
            "clusters need two, such as two folders of audio"
        )
    single = sorted(name for name, n in counts.items() if n < 2)
    if single:
        raise error(f"{clips.source}: {', '.join(single)}: one clip; give at least two of each class, or leave it out")
    if len(kept) < FEWEST_FOR_CKA:
        raise error(f"{clips.source}: {len(kept)} clips; give at least {FEWEST_FOR_CKA}")


def _embedded(
    model: Model, clips: Manifest, workers: int, failed: dict[str, str], on_clip: Callable[[], None]
) -> list[np.ndarray | None]:
    """Embed all clips; None for one that cannot be read."""
    spans = (Clip(clips.path(clip), *clips.span(clip)) for clip in range(len(clips)))
    rows: list[np.ndarray | None] = []
    for each in embed(model, spans, workers=workers):
        if each.error is not None:
            failed[str(clips.path(each.index))] = str(each.error)
        rows.append(each.embedding)
        on_clip()
    return rows


def _side(model: Model, rows: Sequence[np.ndarray | None], kept: Sequence[int], standardise: bool) -> Side:
    """Split embeddings into layers."""
    matrix = np.stack([np.asarray(rows[clip], np.float64) for clip in kept])
    if standardise:
        matrix = (matrix - matrix.mean(0)) / np.maximum(matrix.std(0), 1e-12)
    name = model.name if isinstance(model.name, str) else "/".join(model.name)
    columns = model.columns()
    places = {layer: columns_of(columns, layer, model.layers) for layer in model.layers} or {
        "embedding": list(range(matrix.shape[1]))
    }
    return Side(name, {layer: matrix[:, place] for layer, place in places.items()})
