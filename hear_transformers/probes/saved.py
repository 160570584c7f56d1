"""A probe in a folder: `probe.safetensors`, its arrays, and `probe.json`, all else; nothing in them is ever run."""

from __future__ import annotations

import json
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.numpy import load_file, save

from ..bulk.formats import AUDIO, differences
from ..errors import OptionError, WeightsError
from ..files import atomic, parse_json
from .events import Processing
from .fitting import PROBES, PROTOTYPES, Fitted

ARRAYS, WORDS = "probe.safetensors", "probe.json"

FORMAT = 1
"""Version of the two files."""

UNIMPORTANT = ("package", "dtype", AUDIO)
"""Keys of a provenance that do not change embeddings, or no more than they are rounded."""


@dataclass(frozen=True, slots=True, eq=False)
class Saved:
    """A probe, and what it is for.

    Attributes
    ----------
    fitted : the probe
    classes : names
    provenance : of the embeddings that it was fitted on
    model : how to load their model: options of the command; empty if that is not known
    scores : metric -> value, low, high
    processing : from probabilities along time to events; None for a probe of whole clips
    """

    fitted: Fitted
    classes: tuple[str, ...]
    provenance: Mapping[str, Any]
    model: Mapping[str, Any]
    scores: Mapping[str, Any]
    processing: Processing | None = None

    @property
    def along_time(self) -> bool:
        """Whether it is of embeddings along time."""
        return self.processing is not None or self.fitted.kind == PROTOTYPES


def write(folder: Path, probe: Saved) -> None:
    """Write a probe into a folder."""
    fitted = probe.fitted
    words = {
        "format": FORMAT,
        "probe": fitted.kind,
        "multi_label": fitted.multi_label,
        "settings": fitted.settings,
        "classes": probe.classes,
        "provenance": probe.provenance,
        "model": probe.model,
        "scores": probe.scores,
        "processing": None if probe.processing is None else probe.processing._asdict(),
    }
    with atomic(folder / ARRAYS) as file:
        file.write(save({name: array.copy() for name, array in fitted.arrays.items()}))
    with atomic(folder / WORDS) as file:
        file.write(json.dumps(words, indent=2).encode())


def read(folder: str | os.PathLike[str]) -> Saved:
    """Read a probe.

    Raises
    ------
    WeightsError : the folder holds none, or a damaged one
    """
    path = Path(folder)
    try:
        words = parse_json((path / WORDS).read_text(encoding="utf-8"))
        arrays = load_file(path / ARRAYS)
        if words["format"] != FORMAT or words["probe"] not in PROBES:
            raise WeightsError(f"{path}: a probe of a newer version of this package; update it")
        fitted = Fitted(words["probe"], bool(words["multi_label"]), arrays, dict(words["settings"]))
        rest = {name: dict(words[name]) for name in ("provenance", "model", "scores")}
        how = None if words["processing"] is None else Processing(**words["processing"])
        probe = Saved(fitted, tuple(map(str, words["classes"])), **rest, processing=how)
        n_classes = arrays["targets"].shape[1] if fitted.kind == "knn" else len(arrays[_last_bias(arrays)])
        if n_classes != len(probe.classes) or arrays["mean"].shape != arrays["scale"].shape:
            raise ValueError(f"{n_classes} outputs for {len(probe.classes)} classes")
    except FileNotFoundError as error:
        raise WeightsError(
            f"{path}: no probe here ({Path(error.filename or '').name or WORDS} is missing); "
            "hear-transformers probe DATA --out FOLDER makes one"
        ) from error
    except (OSError, ValueError, LookupError, TypeError, AttributeError, SafetensorError) as error:
        raise WeightsError(f"{path}: the probe is damaged ({type(error).__name__}: {error}); make it again") from error
    return probe


def _last_bias(arrays: Mapping[str, Any]) -> str:
    return max((name for name in arrays if name.startswith("bias")), key=lambda name: int(name.removeprefix("bias")))


def check_fit(probe: Saved, provenance: Mapping[str, Any], what: str) -> None:
    """Raise OptionError unless embeddings are made as those that a probe was fitted on.

    Parameters
    ----------
    probe : to use
    provenance : of the embeddings
    what : they are of, for the error
    """
    fitted_on, new = (
        {key: value for key, value in json.loads(json.dumps(each)).items() if key not in UNIMPORTANT}
        for each in (probe.provenance, provenance)
    )
    if changed := differences(fitted_on, new):
        raise OptionError(
            f"{what}: the probe was fitted on embeddings of other settings: {', '.join(changed[:6])}; use the model "
            "and the weights that it was fitted with, or fit it again"
        )
