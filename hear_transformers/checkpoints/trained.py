"""Checkpoints written by this package: metadata and weights, both untrusted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, WeightsError
from ..files import parse_json, sha256_of
from ..networks.family import Family, Variant, check_arguments, shapes_alone, with_network, with_normalisation
from . import state_dicts
from .hugging_face import metadata_in, weights_in
from .loading import Loaded, check_family
from .search import is_of_classifier

LARGEST_NUMBER = 2**16
"""Upper bound of the constructor arguments in a file, above any width or length of a network here."""

LONGEST_LIST = 64
"""Upper bound of the length of their lists, above the number of stages of any network here."""


def read_trained(
    family: Family, path: Path, name: str | None = None, network: Mapping[str, Any] = MappingProxyType({})
) -> Loaded | None:
    """Read a checkpoint written by this package; return None for any other file.

    The metadata are not trusted: a network much larger than the file is refused before memory or time is spent on it.

    Parameters
    ----------
    family : that the file must be for
    path : any checkpoint, or the folder with it. Metadata: "family", "variant"; optional "network", the constructor
        arguments that differ from the variant's, "normalisation", mean and standard deviation, "labels", the names of
        the classes, and "lost", names of a classifier that is not in the file, all JSON; "multi_label", "true" or
        "false"
    name : of the variant that it must be for; None for any
    network : arguments that the user fixed

    Raises
    ------
    WeightsError : the file is for another family or variant, damaged, or does not fit its metadata
    """
    metadata = metadata_in(path)
    if not metadata:
        return None
    (file,) = weights_in(path)
    check_family(family, metadata, file)
    held = metadata.get("variant", "")
    if held not in family.variants:
        raise WeightsError(f"{file}: its variant {held!r} is unknown to {family.name}; is it of a newer version?")
    if name not in (None, held):
        raise WeightsError(f"{file} is for the variant {held!r}, not {name!r}; leave the variant out")
    row = family.variants[held]
    state_dict = state_dicts.read_state_dict(file)
    arguments = _arguments(metadata.get("network", "{}"), len(state_dict), file)
    check_arguments(family, row, network)
    variant = normalisation_in(metadata, with_network(row, {**arguments, **network}), file)
    lost = _lost(family, metadata, file)
    _check_network(family, variant, state_dict, lost, file)
    return Loaded(
        name=held,
        variant=variant,
        state_dict={key: tensor for key, tensor in state_dict.items() if key not in family.unused},
        lost=lost,
        sha256=sha256_of(file),
        labels=_labels(family, metadata, state_dict, file),
        multi_label=metadata.get("multi_label") != "false",
    )


def normalisation_in(metadata: Mapping[str, str], variant: Variant, file: Path) -> Variant:
    """Change the mean and the standard deviation of a variant's front end to those in a file, if any are."""
    if "normalisation" not in metadata:
        return variant
    normalisation = _parsed(metadata["normalisation"], "normalisation", file)
    try:
        return with_normalisation(variant, normalisation)
    except (OptionError, TypeError) as error:
        raise WeightsError(f"{file}: damaged: {error}") from error


def _parsed(text: str, name: str, file: Path) -> Any:
    """Parse JSON from the metadata of a file."""

    def refuse(constant: str) -> None:
        raise ValueError(f"the number {constant}")

    try:
        return parse_json(text, parse_constant=refuse)
    except ValueError as error:
        raise WeightsError(f"{file}: damaged: {name!r} in its metadata is not JSON ({error})") from error


def _arguments(text: str, n_tensors: int, file: Path) -> dict[str, Any]:
    """Parse constructor arguments: numbers, text, and lists of them, which become tuples.

    Tensors are built without memory, so only the number of modules can cost memory or time before the file is known to
    fit. That is bounded by lists no longer than `LONGEST_LIST` and by at most one block for each tensor of the file.
    """
    arguments = _parsed(text, "network", file)
    if not isinstance(arguments, dict) or not all(_is_small(value) for value in arguments.values()):
        raise WeightsError(
            f"{file}: damaged: 'network' in its metadata is no object of text, of numbers up to {LARGEST_NUMBER} and "
            "of short lists of them"
        )
    depth = sum(_sum(value) for name, value in arguments.items() if "depth" in name)
    if depth > n_tensors:
        raise WeightsError(f"{file}: damaged: its metadata ask for {depth} blocks, but it has {n_tensors} tensors")
    return {name: _as_tuple(value) for name, value in arguments.items()}


def _is_small(value: Any, depth: int = 2) -> bool:
    """Return True if a value of JSON may be an argument of a network, with lists nested up to a depth."""
    if isinstance(value, list):
        return depth > 0 and len(value) <= LONGEST_LIST and all(_is_small(part, depth - 1) for part in value)
    return isinstance(value, str) or (isinstance(value, (int, float)) and abs(value) <= LARGEST_NUMBER)


def _sum(value: Any) -> float:
    """Sum the numbers of an argument, which may be in lists; text counts as 0."""
    return sum(map(_sum, value)) if isinstance(value, list) else 0 if isinstance(value, str) else abs(value)


def _as_tuple(value: Any) -> Any:
    return tuple(map(_as_tuple, value)) if isinstance(value, list) else value


@torch.no_grad()
def _check_network(
    family: Family, variant: Variant, state_dict: Mapping[str, Tensor], lost: Sequence[str], file: Path
) -> None:
    """Build a network without memory for its numbers, run it once; check that it fits the file and the front end."""
    try:
        with shapes_alone():
            trunk = family.network(**variant.network).eval()
            trunk(variant.frontend.example(trunk.min_frames), list(trunk.layers))
    except Exception as error:  # the errors that arbitrary arguments cause have no common root
        raise WeightsError(
            f"{file}: damaged: no network of {family.name} is made by the arguments in its metadata ({error})"
        ) from error
    beside = {name: tensor for name, tensor in trunk.state_dict().items() if name in lost}
    state_dicts.check_fit(trunk, {**beside, **state_dict}, file, family.unused)


def _labels(
    family: Family, metadata: Mapping[str, str], state_dict: Mapping[str, Tensor], file: Path
) -> tuple[str, ...] | None:
    """Parse the names of the classes, one per logit; None without names."""
    if "labels" not in metadata:
        return None
    labels = _parsed(metadata["labels"], "labels", file)
    n_classes = next((state_dict[key].numel() for key in family.classifier if key in state_dict), 0)
    if not isinstance(labels, list) or not all(isinstance(label, str) for label in labels) or len(labels) != n_classes:
        raise WeightsError(f"{file}: damaged: 'labels' in its metadata is no list of {n_classes} names")
    return tuple(labels)


def _lost(family: Family, metadata: Mapping[str, str], file: Path) -> tuple[str, ...]:
    """Parse the names of a classifier that is not in the file; without them it must be there."""
    lost = _parsed(metadata.get("lost", "[]"), "lost", file)
    if not isinstance(lost, list) or not all(isinstance(name, str) and is_of_classifier(family, name) for name in lost):
        raise WeightsError(f"{file}: damaged: 'lost' in its metadata is no list of names of a classifier")
    return tuple(lost)
