"""Names of layers: parsing a user's choice, without a network and without PyTorch."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from itertools import groupby

from ..errors import OptionError, similar


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


Layer = int | str | Sequence[int | str]
"""``8``, ``-1``, ``"8"``, ``"4,8,12"``, ``[4, 8, "features"]`` or ``"all"``."""


def parse_layers(layer: Layer, known: Sequence[str], rows: Callable[[], Iterable[LayerRow]]) -> tuple[str, ...]:
    """Parse a user's choice of layers into names, in the order given.

    Parameters
    ----------
    layer : the choice
    known : names of a model's layers, see `layer_table.axes_of`
    rows : describes them, for the message of an error only

    Raises
    ------
    OptionError : the model has no such layer; the message lists its layers
    """
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
            near = similar(text, [*known, "all"])
            raise OptionError(
                f"layer={text!r} is unknown; choose from {_listed(rows())}; -1 for the last block, all, or a list such "
                f"as 0,{numbered[-1]}{f'; did you mean {near[0]}?' if near else ''}"
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
