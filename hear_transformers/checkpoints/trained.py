"""Checkpoints of our own, which say themselves what network they are for, without trusting them."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode

from ..errors import WeightsError
from ..networks.family import Family, Variant
from . import state_dicts
from .loading import check_family

LARGEST_NUMBER = 2**16
"""Of the constructor arguments in a file: more than any network here has of anything."""

LONGEST_LIST = 64
"""Of the same: more stages than any network here has."""

CALLS = 1000, 100
"""Calls of PyTorch's functions that a network may take to be made and run once, and so many more for each of its
tensors; those here take 8 to 13 for each."""


@dataclass(frozen=True, slots=True, kw_only=True)
class TrainedCheckpoint:
    """A checkpoint that this package wrote, and what it says about itself.

    Attributes
    ----------
    name, variant : of the variant, with the constructor arguments that the network was made with
    state_dict : which fits that network
    labels : names of the classes in the order of the logits, None if it has none
    multi_label : whether a clip may belong to several classes
    """

    name: str
    variant: Variant
    state_dict: dict[str, Tensor]
    labels: tuple[str, ...] | None
    multi_label: bool


def read_trained(family: Family, file: Path, name: str | None = None) -> TrainedCheckpoint | None:
    """Read a checkpoint of our own, None if it is none; nothing larger than the file is built of what it says.

    Parameters
    ----------
    family : which the file must be for
    file : any checkpoint
    name : of the variant that it must be for, None for any

    Raises
    ------
    WeightsError : it is for another family or variant, damaged, or not what it says
    """
    metadata = state_dicts.read_metadata(file)
    if not metadata:
        return None
    check_family(family, metadata, file)
    held = metadata.get("variant", "")
    if held not in family.variants:
        raise WeightsError(f"{file}: its variant {held!r} is unknown to {family.name}; is it of a newer version?")
    if name not in (None, held):
        raise WeightsError(f"{file} is for the variant {held!r}, not {name!r}; leave the variant out")
    row = family.variants[held]
    variant = replace(row, network={**row.network, **_arguments(metadata.get("network", "{}"), file)})
    state_dict = state_dicts.read_state_dict(file)
    _check_network(family, variant, state_dict, file)
    labels = _labels(metadata, _n_classes(family, state_dict), file)
    return TrainedCheckpoint(
        name=held,
        variant=variant,
        state_dict=state_dict,
        labels=labels,
        multi_label=metadata.get("multi_label") != "false",
    )


def _parsed(text: str, name: str, file: Path) -> Any:
    """Read JSON from the metadata of a file."""

    def refuse(constant: str) -> None:
        raise ValueError(f"the number {constant}")

    try:
        return json.loads(text, parse_constant=refuse)
    except (ValueError, RecursionError) as error:
        raise WeightsError(f"{file}: damaged: {name!r} in its metadata is not JSON ({error})") from error


def _arguments(text: str, file: Path) -> dict[str, Any]:
    """Read constructor arguments: numbers, text, and lists of them, which become tuples."""
    arguments = _parsed(text, "network", file)
    if not isinstance(arguments, dict) or not all(_is_small(value) for value in arguments.values()):
        raise WeightsError(
            f"{file}: damaged: 'network' in its metadata is no object of text, of numbers up to {LARGEST_NUMBER} and "
            "of short lists of them"
        )
    return {name: _as_tuple(value) for name, value in arguments.items()}


def _is_small(value: Any, depth: int = 2) -> bool:
    """Tell whether a value of JSON may be an argument of a network, lists in lists up to a depth."""
    if isinstance(value, list):
        return depth > 0 and len(value) <= LONGEST_LIST and all(_is_small(part, depth - 1) for part in value)
    return isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


class _Counted(TorchFunctionMode):
    """Ends the making of a network that has far more parts than its file has tensors."""

    def __init__(self, calls: int) -> None:
        super().__init__()
        self.calls = calls

    def __torch_function__(
        self, func: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: Mapping[str, Any] | None = None
    ) -> Any:
        self.calls -= 1
        if self.calls < 0:
            raise WeightsError("more parts than the file has tensors")
        return func(*args, **(kwargs or {}))


@torch.no_grad()
def _check_network(family: Family, variant: Variant, state_dict: Mapping[str, Tensor], file: Path) -> None:
    """Build a network without memory for its numbers, see whether the file fits it and the front end suits it."""
    base, of_each = CALLS
    try:
        with FakeTensorMode(), _Counted(base + of_each * len(state_dict)):
            trunk = family.network(**variant.network).eval()
            trunk(variant.frontend.example(trunk.min_frames), list(trunk.layers))
    except Exception as error:  # what arguments of any value may raise has no common root
        raise WeightsError(
            f"{file}: damaged: no network of {family.name} is made by the arguments in its metadata ({error})"
        ) from error
    state_dicts.fitting(trunk, state_dict, file, family.unused)


def _n_classes(family: Family, state_dict: Mapping[str, Tensor]) -> int:
    """Count the logits of a checkpoint of our own, 0 without a classifier."""
    return next((state_dict[key].numel() for key in family.classifier if key in state_dict), 0)


def _labels(metadata: Mapping[str, str], n_classes: int, file: Path) -> tuple[str, ...] | None:
    """Read the names of the classes, None if there are none."""
    if "labels" not in metadata:
        return None
    labels = _parsed(metadata["labels"], "labels", file)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) != n_classes:
        raise WeightsError(f"{file}: damaged: 'labels' in its metadata is no list of {n_classes} names")
    return tuple(labels)
