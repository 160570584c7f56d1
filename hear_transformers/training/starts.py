"""What training starts from: random numbers, a checkpoint of the same family, or a network for images."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..checkpoints import state_dicts
from ..checkpoints.loading import check_family, fetched, naming, read
from ..errors import OptionError
from ..networks.family import Family, Variant, random_trunk, variant_of
from ..networks.trunk import Trunk

PUBLISHED, IMAGENET = "published", "imagenet"
"""What `start` takes besides a file: the variant's own checkpoint, and the one of a network for images."""


def start(
    family: Family,
    variant: str,
    source: str,
    *,
    n_classes: int,
    network: Mapping[str, Any] = MappingProxyType({}),
) -> tuple[Trunk, list[str]]:
    """Build a network to train.

    Parameters
    ----------
    family, variant : of the network
    source : "" for random weights, "published" for the variant's own checkpoint, "imagenet" for that of the network for
        images which the variant descends from, else a file: in the authors' layout or ours, of a network for images too
    n_classes : logits, at least 1
    network : constructor arguments that differ from the variant's

    Returns
    -------
    trunk : in training mode, on the CPU
    fresh : which groups of parameters are random, for people to read; the same numbers every time

    Raises
    ------
    OptionError : there is no such variant, network or start
    WeightsError : the file is missing, damaged, or for another network; only `Family.fresh` may be missing
    """
    _, row = variant_of(family, variant)
    if not family.classifier or n_classes < 1:
        raise OptionError(
            f"n_classes={n_classes} for {family.name}; choose 1 or more, and a family with a classifier, which tiny "
            "does not have"
        )
    row = replace(row, network={**row.network, **network, "n_classes": n_classes})
    trunk = _built(family, variant, row)
    if not source:
        return trunk, ["all parameters"]
    file = _file_of(family, variant, source)
    if metadata := state_dicts.read_metadata(file):
        check_family(family, metadata, file)
    held = read(family, row, file)
    with naming(file):
        held = family.begin(held, row)
    held = {key: value for key, value in held.items() if key not in family.unused}
    whole, fresh = _with_fresh(family, trunk, held)
    state_dicts.load_into(trunk, whole, file)
    return trunk, fresh


def _built(family: Family, name: str, variant: Variant) -> Trunk:
    try:
        return random_trunk(family, variant)
    except (TypeError, ValueError, LookupError, ArithmeticError, RuntimeError) as error:
        given = ", ".join(f"{key}={value!r}" for key, value in variant.network.items())
        raise OptionError(f"{family.name}/{name} cannot be built with {given}: {error}") from error


def _file_of(family: Family, name: str, source: str) -> Path:
    """Give the file of a start; one that is published is fetched."""
    row = family.variants[name]
    rows = {PUBLISHED: (family.name, row.checkpoint) if row.checkpoint else None, IMAGENET: row.imagenet}
    if source not in rows:
        return Path(source)
    published = rows[source]
    if published is None:
        others = [other for other, there in rows.items() if there]
        raise OptionError(
            f"no start {source!r} is known for {family.name}/{name}; choose {', '.join([*others, 'a file'])}, or leave "
            "it out for random weights"
        )
    return fetched(*published)


def _with_fresh(family: Family, trunk: Trunk, held: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], list[str]]:
    """Put the network's random numbers in the place of groups that a file lacks, see `Family.fresh`.

    Returns
    -------
    state_dict : of the file, with those groups
    fresh : their names; one that lies within another is left out
    """
    ours = trunk.state_dict()
    kept = dict(held)
    drawn: dict[str, Tensor] = {}
    fresh = []
    for group in family.fresh:
        wanted = {key: value for key, value in ours.items() if key.startswith(group) and key not in drawn}
        theirs = {key: value for key, value in kept.items() if key.startswith(group)}
        if {key: value.shape for key, value in wanted.items()} != {key: value.shape for key, value in theirs.items()}:
            kept = {key: value for key, value in kept.items() if key not in theirs}
            drawn |= wanted
            fresh += [group] if wanted else []
    names = [group.rstrip(".") for group in fresh if not any(group.startswith(o) and group != o for o in fresh)]
    return kept | drawn, names
