"""Folders of models that this package saved: what was chosen of each, beside its weights in our own layout.

``model.safetensors``  the network; its metadata make it, see `trained.read_trained`
``config.json``        "model_type" and "options", those of `load_model` that the model was loaded with
``README.md``          what it is, for people, and for the page of a repository of Hugging Face
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import nn

from ..errors import OptionError, WeightsError
from ..files import atomic
from . import state_dicts
from .hugging_face import CONFIG, WEIGHTS, read_json

MODEL_TYPE = "hear_transformers"
"""In the configuration of every model of this package."""

CARD = "README.md"

OF_LAYERS = ("layer", "pool")
OF_WINDOWS = ("hop_ms", "window_ms", "framing", "mean_over_time")
OF_SEGMENTS = ("segment", "overlap")
OPTIONS = (*OF_LAYERS, *OF_WINDOWS, *OF_SEGMENTS)
"""What is chosen of a model. Precision and device are not among them: they belong to a machine."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Origin:
    """What was given to make a model, beside its variant and the numbers of its network.

    Attributes
    ----------
    network : arguments of the network that are not the variant's
    normalisation : mean and standard deviation that are not the variant's; None if they are
    options : of `OPTIONS`
    lost : names of the classifier that the checkpoint lacked: its numbers mean nothing
    """

    network: Mapping[str, Any]
    normalisation: tuple[float, float] | None
    options: Mapping[str, Any]
    lost: tuple[str, ...] = ()


def write(folder: Path, network: nn.Module, origin: Origin, metadata: Mapping[str, str], card: str) -> None:
    """Write a model into a folder, which is made if it is not there; files of these names are replaced.

    Parameters
    ----------
    folder : for the three files
    network : of the model
    origin : of the model
    metadata : for `trained.read_trained`, beside what the origin says
    card : text of `CARD`

    Raises
    ------
    OptionError : the folder is a file, or cannot be made
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise OptionError(f"{folder}: no model can be saved here ({error}); give a folder") from error
    config = {"model_type": MODEL_TYPE, "options": dict(origin.options)}
    # The weights come last: what is without them is no model.
    for name, text in ((CARD, card), (CONFIG, json.dumps(config, indent=2) + "\n")):
        with atomic(folder / name) as file:
            file.write(text.encode())
    said = {"network": origin.network, "normalisation": origin.normalisation, "lost": origin.lost}
    changed = {name: json.dumps(value) for name, value in said.items() if value}
    state_dicts.write(folder / WEIGHTS[0], network, {**metadata, **changed}, left_out=origin.lost)


def read_options(path: Path) -> dict[str, Any]:
    """Return the options that a model was saved with; none for other files and folders.

    Raises
    ------
    WeightsError : the configuration is damaged
    """
    file = path / CONFIG
    if not file.is_file():
        return {}
    config = read_json(file)
    if config.get("model_type") != MODEL_TYPE:
        return {}
    options = config.get("options", {})
    if not isinstance(options, dict) or not all(name in OPTIONS and _is_plain(options[name]) for name in options):
        raise WeightsError(f"{file}: damaged: options = {options!r} are no values of {', '.join(OPTIONS)}")
    return options


def _is_plain(value: Any) -> bool:
    """Return True for a word, a number, or a list of these."""
    return all(isinstance(part, (str, int, float)) for part in (value if isinstance(value, list) else [value]))


def plain(value: Any) -> Any:
    """Return the value of an option as JSON has it: ranges and the like as lists, numbers of NumPy as Python's."""
    if isinstance(value, str):
        return value
    if isinstance(value, Iterable):
        return [plain(part) for part in value]
    return value.item() if isinstance(value, np.generic) else value


def chosen(options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options that a user gave: neither None, nor False, which `mean_over_time` is without being given."""
    return {name: value for name, value in options.items() if value is not None and value is not False}


def joined(saved: Mapping[str, Any], given: Mapping[str, Any]) -> dict[str, Any]:
    """Return options, where those that were given replace saved ones: each its own, and segments windows or vice versa.

    Parameters
    ----------
    saved : see `read_options`
    given : by the user, see `chosen`
    """
    said = chosen(given)
    gone: set[str] = set()
    for ours, others in ((OF_SEGMENTS, OF_WINDOWS), (OF_WINDOWS, OF_SEGMENTS)):
        if not said.keys().isdisjoint(ours):
            gone |= set(others)
    return {**given, **{name: value for name, value in saved.items() if name not in gone}, **said}
