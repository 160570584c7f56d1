"""One clip, one class or embedding, every method that the network allows."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from ..atgnn import ATGNN
from ..embedding.embedder import Embedder
from ..embedding.precision import running
from ..errors import OptionError, unknown
from ..labels import audioset_labels
from ..mast import PoolingAttention
from ..networks.family import Readout
from ..networks.transformer import Attention
from . import attention, fields, graphs, occlusion
from .window import Grid, Window

ROLLOUT, GRADIENT, CLASS_MAPS, GRAPH, FIELDS, OCCLUSION = METHODS = (
    "rollout", "gradient", "class-map", "graph", "fields", "occlusion",
)  # fmt: skip


@dataclass(frozen=True, slots=True, eq=False)
class Map:
    """A number for each position of a grid over the spectrogram.

    Attributes
    ----------
    name : "rollout", "gradient", "occlusion", "class-map stage1" ..
    values : (freq, time)
    grid : where they lie
    marks : (n, 2) places along frequency and time that are drawn as dots
    """

    name: str
    values: Tensor
    grid: Grid
    marks: Tensor | None = None


@dataclass(slots=True, eq=False)
class Explanation:
    """What was found in a clip.

    Attributes
    ----------
    window : the clip
    what : the class, or "layer 8": what is explained
    probability : of the class; None for a layer
    maps : numbers over the spectrogram
    fields : receptive fields of a network of convolutions
    neighbours : of a patch of ATGNN, block by block
    left_out : method -> why it does not apply
    """

    window: Window
    what: str
    probability: float | None = None
    maps: list[Map] = field(default_factory=list)
    fields: list[fields.Field] = field(default_factory=list)
    neighbours: list[graphs.Neighbours] = field(default_factory=list)
    left_out: dict[str, str] = field(default_factory=dict)


def classes_of(model: Embedder) -> Sequence[str] | None:
    """Return the names of a model's classes, numbers where it has none; None for a model without classifier."""
    if "logits" not in model.trunk.layers:
        return None
    n_classes = model.size(Readout(model.variant.scene.window_ms, ("logits",)))
    names = model.labels or audioset_labels()
    return names if len(names) == n_classes else [str(number) for number in range(n_classes)]


def class_number(model: Embedder, asked: str) -> int:
    """Return the number of a class by its name or number.

    Raises
    ------
    OptionError : the model has no classifier, or no such class
    """
    names = classes_of(model)
    if names is None:
        raise OptionError(
            f"class={asked!r}: {'/'.join(model.name)} has no classifier; leave the class out to explain a layer's "
            "embedding, or take a model that was trained on classes"
        )
    folded = [name.casefold() for name in names]
    if asked.casefold() in folded:
        return folded.index(asked.casefold())
    if asked.isdecimal() and int(asked) < len(names):
        return int(asked)
    if asked.isdecimal():
        raise OptionError(f"class={asked}: {'/'.join(model.name)} has classes 0 to {len(names) - 1}")
    raise unknown("class", asked, names, to="/".join(model.name), more="a class number also names one; AudioSet's list")


def methods_of(model: Embedder, *, of_class: bool) -> dict[str, str]:
    """Return for each of `METHODS` why a model does not allow it; empty where it does."""
    trunk = model.trunk
    attends = any(isinstance(module, (Attention, PoolingAttention)) for module in trunk.modules())
    is_graph = isinstance(trunk, ATGNN)
    no_class = "" if of_class else "it needs a class, and the model or the choice of a layer has none"
    no_attention = "" if attends else "the network has no attention"
    no_graph = "" if is_graph else "the network is no graph of patches"
    no_labels = "" if is_graph and trunk.labels is not None else "this variant has no embeddings of classes"
    convolves = any(axis is not None for axis in trunk.layers.values()) and not attends and not is_graph
    return {
        ROLLOUT: no_attention,
        GRADIENT: no_attention or no_class,
        CLASS_MAPS: no_graph or no_labels or no_class,
        GRAPH: no_graph,
        FIELDS: "" if convolves else "every position of this network sees the whole window",
        OCCLUSION: "",
    }


def explain(
    window: Window,
    number: int | None = None,
    *,
    methods: Sequence[str] = (),
    at: tuple[float, float] | None = None,
    patch_ms: float = 320.0,
    patch_bands: int = 16,
) -> Explanation:
    """Explain a class, or the embedding that the model computes.

    Parameters
    ----------
    window : the clip
    number : of the class; None for the embedding of the model's first layer
    methods : some of `METHODS`; empty for all that the network allows
    at : s in the file and Hz of the patch whose neighbours are shown; None for the loudest place
    patch_ms, patch_bands : size of the patches of occlusion

    Raises
    ------
    OptionError : a method is unknown, or the network does not allow it
    """
    model = window.model
    model.eval()
    reasons = methods_of(model, of_class=number is not None)
    for method in methods:
        if method not in METHODS:
            raise unknown("method", method, METHODS)
        if reasons[method]:
            raise OptionError(f"method={method!r} does not go with {'/'.join(model.name)}: {reasons[method]}")
    chosen = methods or [method for method in METHODS if not reasons[method]]
    layer = model.layers[0]
    found = Explanation(window, f"layer {layer}", left_out={} if methods else {m: r for m, r in reasons.items() if r})
    if number is not None:
        names = classes_of(model)
        assert names is not None
        found.what = names[number]
        with torch.no_grad():
            logits = window.trunk(window.frames, ["logits"])["logits"][0].float()
        found.probability = float((logits.sigmoid() if model.multi_label else logits.softmax(0))[number])
    with running(model.precision, window.frames.device):
        _add(found, chosen, number, at or loudest(window), (patch_ms, patch_bands))
    return found


def _add(
    found: Explanation, chosen: Sequence[str], number: int | None, at: tuple[float, float], patch: tuple[float, int]
) -> None:
    """Compute the chosen methods."""
    window = found.window
    layer, pool = ("logits", "mean") if number is not None else _of_embedding(window.model)
    if ROLLOUT in chosen:
        found.maps.append(_over_patches(window, ROLLOUT, attention.rollout(window, layer, pool)))
    if GRADIENT in chosen and number is not None:
        values = attention.gradient_attention(window, lambda logits: logits[0, number])
        found.maps.append(_over_patches(window, GRADIENT, values))
    if CLASS_MAPS in chosen and number is not None:
        for each in graphs.class_maps(window, number):
            n = each.grid.time.within(window.n_frames)
            grid = Grid(each.grid.freq, type(each.grid.time)(each.grid.time.first, each.grid.time.step, n))
            found.maps.append(Map(f"{CLASS_MAPS} {each.layer}", each.cosines[:, :n], grid, each.chosen))
    if GRAPH in chosen:
        band = float(np.interp(at[1], window.spec.centres_hz(), np.arange(window.spec.n_mels)))
        spec = window.model.variant.frontend
        frame = ((at[0] - window.start) * spec.sample_rate - spec.offset) / spec.hop_length
        found.neighbours = graphs.neighbours(window, band, frame)
    if FIELDS in chosen:
        found.fields = fields.receptive_fields(window)
    if OCCLUSION in chosen:
        score = partial(_logit, window, number) if number is not None else changes(window, layer, pool)
        values, grid = occlusion.occlusion(window, score, *patch)
        found.maps.append(Map(OCCLUSION, values, grid))


def _of_embedding(model: Embedder) -> tuple[str, str]:
    return model.layers[0], model.variant.scene.pool


def _over_patches(window: Window, name: str, values: Tensor) -> Map:
    """Return a map over the patches, without those that lie in padding."""
    grid = window.grid("0", *values.shape)
    n = max(1, grid.time.within(window.n_frames))
    return Map(name, values[:, :n], Grid(grid.freq, type(grid.time)(grid.time.first, grid.time.step, n)))


def _logit(window: Window, number: int, frames: Tensor) -> Tensor:
    return window.trunk(frames, ["logits"])["logits"][:, number].float()


def changes(window: Window, layer: str, pool: str) -> Callable[[Tensor], Tensor]:
    """Return the cosine of an embedding with that of the whole clip, as a score of frames."""

    def embedded(frames: Tensor) -> Tensor:
        names = [f"{layer}.{token}" for token in window.trunk.prefix] if pool == "cls" else [layer]
        taps = window.trunk(frames, names)
        pooled = [taps[name].float() for name in names]
        return torch.stack([each.mean((1, 2)) if each.ndim == 4 else each for each in pooled]).mean(0)

    with torch.no_grad():
        whole = embedded(window.frames)
    return lambda frames: F.cosine_similarity(embedded(frames), whole)


def loudest(window: Window) -> tuple[float, float]:
    """Return s and Hz of the loudest place of a clip."""
    band, frame = divmod(int(window.mel.argmax()), window.mel.shape[1])
    return float(window.mel_seconds(float(frame))), float(window.hz(float(band)))
