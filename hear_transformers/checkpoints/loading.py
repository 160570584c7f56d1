"""Published and other checkpoint files under the names of our networks."""

from __future__ import annotations

import contextlib
import sys
from collections.abc import Iterator, Mapping
from dataclasses import replace
from pathlib import Path

import torch
from torch import Tensor

from ..errors import WeightsError
from ..networks.family import Family, Variant
from . import published, state_dicts, store


def published_file(family: Family, variant: Variant) -> Path:
    """Return the published checkpoint of a variant, downloading it if needed."""
    if not variant.checkpoint:
        raise WeightsError(
            f"no weights are published for this variant of {family.name}; give a checkpoint as path, or "
            "pretrained=False for random weights to train from"
        )
    return fetch_by_name(family.name, variant.checkpoint)


def fetch_by_name(family: str, name: str) -> Path:
    """Return the file of a row of the manifest, downloading it if needed."""
    # A bar for people who wait, nothing in the logs of a batch job.
    return store.fetch(published.find(family, name), progress=sys.stderr.isatty())


def read_checkpoint(family: Family, variant: Variant, file: Path) -> dict[str, Tensor]:
    """Read a checkpoint under the names of our network."""
    state_dict = state_dicts.read_state_dict(file)
    with errors_name_file(file):
        return family.convert_state_dict(state_dict, variant)


@contextlib.contextmanager
def errors_name_file(file: Path) -> Iterator[None]:
    """Put the name of a file before the message of every WeightsError."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error


def with_classes_of(family: Family, variant: Variant, state_dict: Mapping[str, Tensor], file: Path) -> Variant:
    """Return a variant with a checkpoint's number of classes; raise WeightsError if that is new and the rest unfit."""
    with torch.device("meta"):
        ours = family.network(**variant.network).state_dict()
    held = next((key for key in family.classifier if key in ours and key in state_dict), None)
    if held is None or state_dict[held].shape == ours[held].shape or not state_dict[held].numel():
        return variant
    variant = replace(variant, network={**variant.network, "n_classes": state_dict[held].numel()})
    # Before memory is taken: a classifier is much larger than the bias that counts its classes.
    with torch.device("meta"):
        state_dicts.check_fit(family.network(**variant.network), state_dict, file, family.unused)
    return variant


def check_family(family: Family, metadata: Mapping[str, str], file: Path) -> None:
    """Raise WeightsError if a checkpoint written by this package names another family."""
    held = metadata.get("family", "")
    if held != family.name:
        raise WeightsError(f"{file} is for the family {held!r}, not {family.name!r}; load it with that one")
