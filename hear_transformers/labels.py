"""AudioSet's classes by name, and which of them a model hears."""

from __future__ import annotations

import csv
import functools
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import FAMILIES
from .embedder import Embedder
from .errors import OptionError


class Tag(NamedTuple):
    """One class and how likely it is to be heard."""

    label: str
    probability: float


@functools.cache
def audioset_labels() -> tuple[str, ...]:
    """Give the names of AudioSet's 527 classes, in the order of the logits of the models trained on it.

    They are ``class_labels_indices.csv`` as AudioSet publishes it (Gemmeke et al., ICASSP 2017;
    https://research.google.com/audioset), under CC BY 4.0.
    """
    text = files("hear_transformers").joinpath("audioset_labels.csv").read_text(encoding="utf-8")
    return tuple(row["display_name"] for row in csv.DictReader(text.splitlines()))


def top_tags(logits: npt.ArrayLike, k: int = 10) -> tuple[Tag, ...]:
    """Give the likeliest of AudioSet's classes, the likeliest first.

    A clip may belong to many classes at once, so each has a probability of its own, the sigmoid of its logit; they do
    not add up to 1.

    Parameters
    ----------
    logits : (527,), a scene embedding of the layer "logits"; that of a long clip is the mean over its windows
    k : how many classes, at least 1; beyond 527 are all of them

    Raises
    ------
    OptionError : these are not 527 numbers, or `k` is less than 1
    """
    labels = audioset_labels()
    values = np.asarray(logits, dtype=np.float64)
    if values.shape != (len(labels),):
        raise OptionError(f"expected the logits of AudioSet's {len(labels)} classes, found shape {values.shape}")
    if k < 1:
        raise OptionError(f"{k} labels were asked for; choose 1 to {len(labels)}")
    probabilities = np.exp(-np.logaddexp(0.0, -values))  # the sigmoid, without overflow
    return tuple(Tag(labels[i], float(probabilities[i])) for i in np.argsort(-values, kind="stable")[:k])


def check_logits(model: object, *, timestamps: bool) -> None:
    """Refuse embeddings that labels cannot be put to: all but the logits of AudioSet's classes for whole files.

    Raises
    ------
    OptionError : embeddings are along time, of a module of others, of another layer, or of other classes
    """
    if timestamps:
        raise OptionError("labels say what is heard in a whole file; leave out timestamps, or the labels")
    if not isinstance(model, Embedder):
        raise OptionError(
            "labels are names of logits, and the HEAR API does not say which numbers of an embedding are logits; "
            f"choose a model of {', '.join(FAMILIES)}"
        )
    name, layers = "/".join(model.name), model.variant.scene.layers
    if layers != ("logits",):
        raise OptionError(f"labels are names of logits, and {name} gives layer {','.join(layers)}; give layer='logits'")
    n_labels, n_classes = len(audioset_labels()), model.scene_embedding_size
    if n_classes != n_labels:
        raise OptionError(
            f"the names of AudioSet's {n_labels} classes do not fit the {n_classes} classes of {name}; "
            "choose a variant trained on AudioSet"
        )
