"""The layers of a model by name: a table of all, and parsing of a user's choice."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

import torch

from ..errors import OptionError
from .frontend import FrameSpec
from .trunk import TimeAxis, Trunk

MEL_AXIS = TimeAxis(1, 0.0, 1)
"""Time axis of the log-mel spectrogram itself, layer "mel" of every model whose front end computes one."""


@dataclass(frozen=True, slots=True)
class LayerRow:
    """One layer, described for people.

    Attributes
    ----------
    layer : value of `load_model(layer=...)`
    size : features of a position, or of the vector
    n_freq : positions along frequency, or of a grid without time; 1 for a vector
    hop_ms : distance between two positions in time; None without time
    receptive_field_ms : audio that one position sees; None for the whole window
    """

    layer: str
    size: int
    n_freq: int
    hop_ms: float | None
    receptive_field_ms: float | None


def axes_of(trunk: Trunk, spec: FrameSpec) -> dict[str, TimeAxis | None]:
    """Return the time axis of every layer of a model in order, that of its front end first; None without time."""
    return {**({"mel": MEL_AXIS} if spec.has_mel else {}), **trunk.layers}


@torch.no_grad()
def layer_table(trunk: Trunk, spec: FrameSpec) -> list[LayerRow]:
    """Measure every layer on a few frames of zeros; the network must be in evaluation mode."""
    example = spec.example(trunk.min_frames).to(next(trunk.parameters()).device)
    taps = trunk(example, list(trunk.layers))
    if spec.has_mel:
        taps["mel"] = example.transpose(1, 2).unsqueeze(2)  # (batch, time, 1, n_mels)
    rows = []
    for name, axis in axes_of(trunk, spec).items():
        n_freq = taps[name].shape[2] if taps[name].ndim == 4 else 1
        hop_ms = None if axis is None else axis.hop * spec.hop_ms
        field = None if axis is None else axis.receptive_field
        field_ms = None if field is None else (field - 1) * spec.hop_ms + spec.receptive_field_ms
        rows.append(LayerRow(name, taps[name].shape[-1], n_freq, hop_ms, field_ms))
    return rows


Layer = int | str | Sequence[int | str]
"""``8``, ``-1``, ``"8"``, ``"4,8,12"``, ``[4, 8, "features"]`` or ``"all"``."""


def parse_layers(layer: Layer, trunk: Trunk, spec: FrameSpec) -> tuple[str, ...]:
    """Parse a user's choice of layers into keys of `Trunk.layers` (or "mel"), in the order given.

    Raises
    ------
    OptionError : the network has no such layer; the message lists its layers
    """
    known = axes_of(trunk, spec)
    numbered = [key for key in known if key.isdecimal()]
    parts = layer.split(",") if isinstance(layer, str) else [layer] if isinstance(layer, int) else list(layer)
    keys: list[str] = []
    for part in parts:
        text = str(part).strip()
        if text == "all":
            keys.extend(numbered)
        elif text in known:
            keys.append(text)
        elif text.removeprefix("-").isdecimal() and -len(numbered) <= int(text) < 0:
            keys.append(numbered[int(text)])
        else:
            raise OptionError(
                f"layer={text!r} is unknown; choose from {_listed(layer_table(trunk.eval(), spec))}; "
                f"-1 for the last block, all, or a list such as 0,{numbered[-1]}"
            )
    return tuple(keys)


def _listed(rows: Iterable[LayerRow]) -> str:
    """Format layers as a line, runs of equal numbered layers together: "1..12 (768 numbers, every 100 ms)"."""
    texts = {}
    for row in rows:
        hop = "" if row.hop_ms is None else f", every {row.hop_ms:g} ms"
        texts[row.layer] = f"({row.size} numbers{hop})"
    parts = []
    for text, names in groupby(texts, key=lambda name: (texts[name], name.isdecimal())):
        first, *_, last = [*names] * 2
        parts.append(f"{first if first == last else f'{first}..{last}'} {text[0]}")
    return ", ".join(parts)
