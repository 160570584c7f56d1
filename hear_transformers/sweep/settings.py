"""What a sweep tries: models, layers, poolings, framings, windows and hops, and which of them a model can serve."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from .. import catalogue
from ..embedding.embedder import Embedder
from ..embedding.framing import FRAMINGS
from ..embedding.options import choose
from ..embedding.pooling import CLASS_TOKEN, frame_wise
from ..errors import OptionError, unknown
from ..networks.layer_table import axes_of
from .passes import SCENE, VECTOR, Cell, Chosen, Pass

ALL = "all"
"""Every numbered layer: each alone, and within a combination, "all+mel", all together."""

LAYERS = (ALL, "features", "logits", "mel", "all+mel")
"""Layers that are tried by default. The last is the best readout of convolutional networks that is known: the means of
all blocks beside those of the mel bands (EfficientAT_HEAR, 2303.01879: 86.2 of 100 against 58.8 for the logits)."""

POOLS = ("mean", "meanstd", CLASS_TOKEN)
"""Poolings that are tried by default."""

MOST_NUMBERS = 2**14
"""Numbers of an embedding that a probe is fitted on; more take minutes for each row of the table."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Grid:
    """What is tried with each model.

    Attributes
    ----------
    layers : names, "all", or combinations such as "4+8+mel"
    pools : from layer to vector
    framings : of `FRAMINGS`, and `SCENE`
    times_ms : (window, hop) of framings along time; None for the model's own
    """

    layers: tuple[str, ...] = LAYERS
    pools: tuple[str, ...] = POOLS
    framings: tuple[str, ...] = (SCENE,)
    times_ms: tuple[tuple[float | None, float | None], ...] = ((None, None),)

    def __post_init__(self) -> None:
        for framing in self.framings:
            if framing not in (SCENE, *FRAMINGS):
                raise unknown("framing", framing, (SCENE, *FRAMINGS))


def load(chosen: Chosen, device: str = "auto", *, trusted: bool = False) -> Embedder:
    """Load a model; raise OptionError for one of another package, whose layers nobody knows.

    `trusted` runs code beside the weights of encoders of Hugging Face that have their own.
    """
    if not catalogue.is_own(chosen.name):
        raise OptionError(f"model={chosen.name!r} is none of this package, and others do not tell layers apart")
    options = {"pretrained": False} if chosen.is_random else {}
    if trusted:
        options["trust_remote_code"] = True
    try:
        model = catalogue.load(chosen.name, chosen.weights, device, options)
    except OptionError as error:
        raise OptionError(f"{chosen.name}: {error}") from error
    assert isinstance(model, Embedder)
    return model


def passes_of(chosen: Chosen, model: Embedder, grid: Grid) -> tuple[list[Pass], list[str]]:
    """Return the passes of a model over a grid, and a line for each setting that it cannot serve."""
    known = [*axes_of(model.trunk, model.variant.frontend)]
    readings, skipped = _readings(grid.layers, known)
    passes: list[Pass] = []
    faults: dict[str, list[str]] = {}
    for framing in grid.framings:
        for window_ms, hop_ms in ((None, None),) if framing == SCENE else grid.times_ms:
            try:
                times = {"window_ms": window_ms, "hop_ms": hop_ms}
                found, lines = _pass(chosen, model, readings, grid.pools, framing, times)
            except OptionError as error:
                found, lines = None, [str(error)]
            passes += [found] if found else []
            for line in lines:
                faults.setdefault(line, []).append(framing if window_ms is None else f"{framing} {window_ms:g} ms")
    skipped += [f"{line} ({', '.join(dict.fromkeys(where))})" for line, where in faults.items()]
    return passes, [f"{chosen.label}: {line}" for line in skipped]


def _readings(asked: Sequence[str], known: Sequence[str]) -> tuple[dict[str, tuple[str, ...]], list[str]]:
    """Return the layers of each reading by its name, and a line for each unknown one; default ones may be missing."""
    readings: dict[str, tuple[str, ...]] = {}
    skipped = []
    for part in asked:
        members = [_named(name, known) for name in part.split("+")]
        if not all(members):
            skipped += [] if part in LAYERS else [f"layer={part} skipped: the layers are {', '.join(known)}"]
        elif len(members) > 1:
            readings[part] = tuple(dict.fromkeys(layer for each in members for layer in each))
        else:
            readings |= {layer: (layer,) for layer in members[0]}
    return readings, skipped


def _named(name: str, known: Sequence[str]) -> list[str]:
    """Return the layers that a word means, none if there is no such layer."""
    numbered = [layer for layer in known if layer.isdecimal()]
    if name.removeprefix("-").isdecimal() and -len(numbered) <= int(name) < 0:
        return [numbered[int(name)]]
    return numbered if name == ALL else [name] if name in known else []


def _pass(
    chosen: Chosen,
    model: Embedder,
    readings: Mapping[str, Sequence[str]],
    pools: Sequence[str],
    framing: str,
    times: Mapping[str, float | None],
) -> tuple[Pass, list[str]]:
    """Return one pass, and a line for each layer and pooling it cannot serve; raise OptionError if none is left."""
    wanted, skipped = {layer for members in readings.values() for layer in members}, []
    layers = [layer for layer in axes_of(model.trunk, model.variant.frontend) if layer in wanted]
    if CLASS_TOKEN in pools and not model.trunk.prefix:
        pools = [pool for pool in pools if pool != CLASS_TOKEN]
        skipped.append(f"pool={CLASS_TOKEN} skipped: the network has no class token")
    if framing == SCENE and "unroll" in pools:
        pools = [pool for pool in pools if pool != "unroll"]
        skipped.append("pool=unroll skipped: its size is that of the clip")
    if framing == "native":
        skipped += [f"layer={layer} skipped: it has no frames" for layer in layers if model.layer_axis(layer) is None]
        skipped += [f"pool={pool} skipped: it reads a whole window" for pool in pools if not frame_wise(pool)]
        layers = [layer for layer in layers if model.layer_axis(layer) is not None]
        pools = [pool for pool in pools if frame_wise(pool)]
    if not layers or not pools:
        raise OptionError("; ".join([*skipped, "nothing is left to read"]))
    along: Mapping[str, Any] = {} if framing == SCENE else {"framing": framing, **times}
    variant = choose(model.variant, model.trunk, layer=layers, pool=pools, **along)
    if framing != SCENE:
        # Of presets with several windows the first.
        variant = replace(variant, timestamps=variant.timestamps[:1], mean_over_time=True)
    built = Embedder(model.trunk, variant, name=model.name, precision=model.precision, device=model.device)
    built = built.to(model.device)
    built.weights_sha256, built.read_with = model.weights_sha256, model.read_with
    window_ms = variant.scene.window_ms if framing == SCENE else variant.timestamps[0].window_ms
    found = Pass(built, chosen, framing, window_ms, None if framing == SCENE else variant.hop_ms)
    found.cells, lines = _cells(found.places, readings)
    if not found.cells:
        raise OptionError("; ".join(lines))
    return found, skipped + lines


def _cells(
    places: Mapping[tuple[str, str], Sequence[int]], readings: Mapping[str, Sequence[str]]
) -> tuple[list[Cell], list[str]]:
    """Return what is scored of a pass, and a line for each that has too many numbers."""
    of_layer: dict[str, dict[str, Sequence[int]]] = {}
    for (layer, pool), columns in places.items():
        of_layer.setdefault(layer, {})[pool] = columns
    cells, skipped = [], []
    for name, members in readings.items():
        if not all(layer in of_layer for layer in members):
            continue
        pools = [of_layer[layer] for layer in members]
        for pool in dict.fromkeys(pool for each in pools for pool in each):
            if not all(pool in each or VECTOR in each for each in pools):
                continue  # such as the class token, which the mel does not have
            columns = tuple(place for each in pools for place in each.get(pool, each.get(VECTOR, ())))
            if len(columns) <= MOST_NUMBERS:
                cells.append(Cell(name, members, pool, columns))
            else:
                how = f"layer={name} pool={pool}"
                skipped.append(f"{how} skipped: {len(columns)} numbers, more than {MOST_NUMBERS}")
    return cells, skipped
