"""Initial weights of training: random, a checkpoint of the same family, or a network for images."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import MappingProxyType
from typing import Any

from torch import Tensor

from ..checkpoints import hugging_face, state_dicts
from ..checkpoints.hub import located
from ..checkpoints.hugging_face import metadata_in
from ..checkpoints.loading import check_family, errors_name_file, fetch_by_name, read_start
from ..checkpoints.search import own_tensors
from ..checkpoints.trained import normalisation_in
from ..errors import OptionError, did_you_mean, similar
from ..networks.family import Family, Variant, arguments_of, random_trunk, variant_of, with_network, with_normalisation
from ..networks.trunk import Trunk

PUBLISHED, IMAGENET = "published", "imagenet"
"""Sources of `init_from` besides a file: the variant's own checkpoint, and that of its network for images."""


def init_from(
    family: Family, variant: str, source: str, *, n_classes: int, network: Mapping[str, Any] = MappingProxyType({})
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
    reinitialised : names of the groups of parameters that are random, with the same numbers every time

    Raises
    ------
    OptionError : the variant, the network or the source is unknown
    WeightsError : the file is missing, damaged, or for another network; only `Family.reinitialised` may be missing
    """
    row = row_with(family, variant, network, n_classes=n_classes)
    trunk = build(family, variant, row)
    if not source:
        return trunk, ["all parameters"]
    file = _file_of(family, variant, source)
    if metadata := metadata_in(file):
        check_family(family, metadata, file)
    state_dict = read_start(family, row, file)
    with errors_name_file(file):
        state_dict = family.adapt_pretrained(state_dict, row)
    state_dict, reinitialised = _with_reinitialised(family, trunk, own_tensors(family, trunk, state_dict))
    state_dicts.load_into(trunk, state_dict, file)
    return trunk, reinitialised


def with_normalisation_of(family: Family, variant: Variant, source: str) -> Variant:
    """Change the normalisation of a variant to that which the file of a start was trained with, see `init_from`.

    Our own checkpoints say it themselves; for others ``preprocessor_config.json`` beside them does.
    """
    if source in ("", PUBLISHED, IMAGENET):
        return variant
    path = located(source)
    if metadata := metadata_in(path):
        return normalisation_in(metadata, variant, path)
    weights, *_ = hugging_face.weights_in(path)
    return with_normalisation(variant, hugging_face.read_beside(family, variant, weights).normalisation)


def row_with(family: Family, variant: str, network: Mapping[str, Any], *, n_classes: int) -> Variant:
    """Return a row of the table with other arguments of its network, see `init_from`."""
    _, row = variant_of(family, variant)
    if not family.classifier:
        raise OptionError(
            f"model={family.name!r} has no classifier to train; choose a family that has one, such as passt"
        )
    if n_classes < 1:
        raise OptionError(f"n_classes={n_classes} for {family.name}; choose 1 or more")
    _check_kinds(family, row, network)
    return with_network(row, {**network, "n_classes": n_classes})


def build(family: Family, name: str, variant: Variant) -> Trunk:
    """Build the network of a variant with random weights; raise OptionError if its arguments are wrong."""
    try:
        return random_trunk(family, variant)
    except Exception as error:  # the errors that arbitrary arguments cause have no common root
        known = arguments_of(family, family.variants[name])
        for key in variant.network:
            if key not in known:
                raise OptionError(
                    f"{family.name}/{name} has no argument {key}; {did_you_mean(key, known, of='choose from')}"
                ) from error
        given = ", ".join(f"{key}={value!r}" for key, value in variant.network.items())
        raise OptionError(f"{family.name}/{name} cannot be built with {given}: {error}") from error


KINDS = {bool: "true or false", int: "a whole number", float: "a number", str: "text", tuple: "a list", list: "a list"}
"""What an argument of a network is called in an error."""


def _check_kinds(family: Family, row: Variant, network: Mapping[str, Any]) -> None:
    """Raise OptionError if an argument is of another kind than the variant's, before anything is made of it."""
    if "n_classes" in network:
        raise OptionError("n_classes is the number of classes in the labels; leave it out of the network's arguments")
    known = arguments_of(family, row)
    for key, value in network.items():
        wanted, found = KINDS.get(type(known.get(key))), KINDS.get(type(value))
        if wanted not in (None, found) and (wanted, found) != (KINDS[float], KINDS[int]):
            raise OptionError(f"{family.name}: {key}={value!r} is not allowed; give {wanted}, such as {known[key]!r}")


def _file_of(family: Family, name: str, source: str) -> Path:
    """Return the file of a source, downloading a published one if needed."""
    row = family.variants[name]
    rows = {PUBLISHED: (family.name, row.checkpoint) if row.checkpoint else None, IMAGENET: row.imagenet}
    if source not in rows:
        if (near := similar(source, rows)) and not Path(source).exists():
            raise OptionError(f"no start {source!r}, nor a file of that name; did you mean {near[0]}?")
        return located(source)
    published = rows[source]
    if published is None:
        others = [other for other, there in rows.items() if there]
        raise OptionError(
            f"no start {source!r} is known for {family.name}/{name}; choose {', '.join([*others, 'a file'])}, or leave "
            "it out for random weights"
        )
    return fetch_by_name(*published)


def _with_reinitialised(
    family: Family, trunk: Trunk, given: Mapping[str, Tensor]
) -> tuple[dict[str, Tensor], list[str]]:
    """Replace the groups of `Family.reinitialised` that a file lacks by the network's random numbers.

    Return the state dict, and the names of those groups; a group within another one is left out.
    """
    ours = trunk.state_dict()
    kept = dict(given)
    drawn: dict[str, Tensor] = {}
    groups = []
    for group in family.reinitialised:
        # The smaller group comes first: what it has drawn is no longer compared when the whole follows, so
        # ("head.1.", "head.") draws all of "head." only if something outside of "head.1." is amiss too.
        wanted = {key: value for key, value in ours.items() if key.startswith(group) and key not in drawn}
        theirs = {key: value for key, value in kept.items() if key.startswith(group)}
        if {key: value.shape for key, value in wanted.items()} != {key: value.shape for key, value in theirs.items()}:
            # All or nothing: a classifier whose weight fits and whose bias does not is of other classes.
            kept = {key: value for key, value in kept.items() if key not in theirs}
            drawn |= wanted
            groups += [group] if wanted else []
    names = [group.rstrip(".") for group in groups if not any(group.startswith(o) and group != o for o in groups)]
    return kept | drawn, names
