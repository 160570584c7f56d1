"""Names of classes, AudioSet's or those of a checkpoint, and the tags of a clip."""

from __future__ import annotations

import csv
import functools
from collections.abc import Iterable, Sequence
from importlib.resources import files
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from . import FAMILIES
from .embedding.embedder import Embedder
from .embedding.replicas import Description
from .errors import OptionError

__all__ = ["audioset_labels"]


class Tag(NamedTuple):
    """A class and its probability."""

    label: str
    probability: float


@functools.cache
def audioset_labels() -> tuple[str, ...]:
    """Return the names of AudioSet's 527 classes, in the order of the logits of the models trained on it.

    They are ``class_labels_indices.csv`` as AudioSet publishes it (Gemmeke et al., ICASSP 2017;
    https://research.google.com/audioset), under CC BY 4.0.

    Returns
    -------
    labels : 527 names

    Examples
    --------
    >>> from hear_transformers.labels import audioset_labels
    >>> audioset_labels()[0], len(audioset_labels())
    ('Speech', 527)
    """
    return tuple(row["display_name"] for row in _audioset())


def audioset_names(mids: Iterable[str]) -> tuple[str, ...]:
    """Return the names of AudioSet's classes by their machine identifiers, such as "/m/09x0r"; unknown ones as such."""
    names = {row["mid"]: row["display_name"] for row in _audioset()}
    return tuple(names.get(mid, mid) for mid in mids)


def _audioset() -> Iterable[dict[str, str]]:
    """Read the table of AudioSet's classes."""
    text = files("hear_transformers").joinpath("audioset_labels.csv").read_text(encoding="utf-8")
    return csv.DictReader(text.splitlines())


@functools.cache
def audioset_strong_labels() -> tuple[str, ...]:
    """Return the names of the 447 classes of AudioSet's strong labels (Hershey et al., ICASSP 2021), CC BY 4.0.

    They are those of its training set in alphabetical order, as PretrainedSED's logits have them
    (github.com/fschmid56/PretrainedSED, data_util/audioset_classes.py).
    """
    text = files("hear_transformers").joinpath("audioset_strong_labels.csv").read_text(encoding="utf-8")
    return tuple(row["display_name"] for row in csv.DictReader(text.splitlines()))


def top_tags(
    logits: npt.ArrayLike, k: int = 10, labels: Sequence[str] | None = None, *, multi_label: bool = True
) -> tuple[Tag, ...]:
    """Return the most likely classes, in descending order.

    Parameters
    ----------
    logits : (classes,), a scene embedding of the layer "logits"; that of a long clip is the mean over its windows
    k : number of classes, at least 1; all of them if there are fewer
    labels : names of the classes; None for AudioSet's 527
    multi_label : True if a clip may belong to many classes: probabilities are the sigmoid of the logits. False if it
        belongs to exactly one: the softmax, which sums to 1

    Raises
    ------
    OptionError : the number of logits is not that of classes, or `k` is less than 1

    Examples
    --------
    >>> from hear_transformers.labels import top_tags
    >>> tags = top_tags([0.0, 2.0, -1.0], k=2, labels=["rain", "wind", "bird"])
    >>> [(tag.label, round(tag.probability, 2)) for tag in tags]
    [('wind', 0.88), ('rain', 0.5)]
    """
    whose = "AudioSet's " if labels is None else ""
    names = audioset_labels() if labels is None else labels
    values = np.asarray(logits, dtype=np.float64)
    if values.shape != (len(names),):
        raise OptionError(f"expected the logits of {whose}{len(names)} classes, found shape {values.shape}")
    if k < 1:
        raise OptionError(f"{k} labels were asked for; choose 1 to {len(names)}")
    # In logarithms, so that nothing overflows.
    scale = np.logaddexp(0.0, values) if multi_label else np.logaddexp.reduce(values)
    probabilities = np.exp(values - scale)
    return tuple(Tag(names[i], float(probabilities[i])) for i in np.argsort(-values, kind="stable")[:k])


def tags_of(model: object, logits: npt.ArrayLike, k: int) -> tuple[Tag, ...]:
    """Return the most likely classes, named by the model's checkpoint, else by AudioSet, see `top_tags`."""
    if not isinstance(model, (Embedder, Description)):
        return top_tags(logits, k)
    return top_tags(logits, k, model.labels, multi_label=model.multi_label)


def check_logits(model: object, *, timestamps: bool) -> None:
    """Check that embeddings are the logits of named classes, for whole files.

    Raises
    ------
    OptionError : embeddings are along time, of a module of others, of another layer, or of unnamed classes
    """
    if timestamps:
        raise OptionError("labels are for whole files; leave out timestamps, or the labels")
    check_classes(model)


def check_classes(model: object, *, timestamps: bool = False) -> tuple[str, ...]:
    """Return the names of the classes whose logits embeddings are, for whole files or along time.

    Raises
    ------
    OptionError : embeddings are of a module of others, of another layer, of several windows, or of unnamed classes
    """
    if not isinstance(model, (Embedder, Description)) or isinstance(model.name, str):
        raise OptionError(
            "labels are names of logits, and the HEAR API does not say which numbers of an embedding are logits; "
            f"choose a model of {', '.join(FAMILIES)}"
        )
    name, layers = "/".join(model.name), model.layers
    if layers not in (("logits",), ("framewise",)):
        raise OptionError(
            f"labels are names of logits, and {name} gives layer {','.join(layers)}; give layer='logits', or, for the "
            "classes of the likeliest frame, layer='framewise' and pool='max' where a network has those"
        )
    if layers == ("logits",) and model.labels == audioset_strong_labels():
        raise OptionError(
            f"{name} was trained to name the classes of frames; its classifier of clips was not (PretrainedSED, "
            "ex_audioset_strong.py, has no loss for it); give layer='framewise' and pool='max'"
        )
    classes = model.labels or audioset_labels()
    n_classes = sum(map(len, model.columns(timestamps=True).values())) if timestamps else model.scene_embedding_size
    if n_classes != len(classes):
        if n_classes == model.scene_embedding_size or n_classes % len(classes):
            raise OptionError(
                f"the names of AudioSet's {len(classes)} classes do not fit the {n_classes} classes of {name}; "
                "choose a variant trained on AudioSet, or a checkpoint that holds names of its own"
            )
        raise OptionError("labels along time are those of one window; give one window_ms")
    return classes
