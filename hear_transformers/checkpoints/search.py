"""The network of a family, found among all tensors of a checkpoint file.

A network begins behind one prefix of names that leads to all of its tensors, whatever wrote the file: ``net.`` of a
Lightning module, ``state_dict.model.``, ``trunk.`` of our own models. Its sizes are read from its tensors. What stands
beside it, such as optimizers, losses and metrics, is not looked at.

Where several networks fit, the one that the authors evaluate is taken (`Family.evaluated`), else the averaged one, as
with PaSST's ``net_swa.`` beside ``net.``; other cases are errors that name the prefixes to choose from.
"""

from __future__ import annotations

import contextlib
import functools
import logging
import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError, WeightsError
from ..networks.family import BUILD_ERRORS, Family, Variant, arguments_error, on_meta, with_network
from ..networks.imagenet import are_for_images
from ..networks.trunk import Trunk
from .state_dicts import Content, compare, misfit_message

log = logging.getLogger(__name__)

AVERAGED = re.compile(r"(^|[._])(swa|ema|averaged?)([._]|$)")
"""Prefixes of running averages of a network: PaSST's net_swa, timm's model_ema and state_dict_ema."""

COUNTER = ".num_batches_tracked"
"""Ends of the names that converted weights often lack: batches seen in training, which evaluation does not need."""

NO_BATCHES = torch.tensor(0)
"""Stands for a missing counter of batches."""

LENGTHS = ("frames", "time_positions", "n_mels")
"""Arguments of networks that say how long clips were in training, and of how many bands."""

MOST_PREFIXES = 64
"""Most places in a file that are compared with a network."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fit:
    """A network compared with the tensors behind a prefix.

    Attributes
    ----------
    prefix : before the names of the network in the file
    variant : with the sizes of the file
    trunk : of that variant, on the device ``meta``
    state_dict : tensors of the file that the network uses, by its names
    lost : names of the classifier that the file lacks
    misfits : see `state_dicts.compare`; all empty if it fits
    is_usual : whether all shapes but those of the classifier are the variant's own
    unused : names behind the prefix that the network does not use
    """

    prefix: str
    variant: Variant
    trunk: Trunk
    state_dict: dict[str, Tensor]
    lost: tuple[str, ...]
    misfits: Mapping[str, Sequence[str]]
    is_usual: bool
    unused: tuple[str, ...] = ()

    def beside(self, content: Content) -> str:
        """Count what else the file holds by the first parts of names, for people."""
        names = [*(name for name in content.tensors if not name.startswith(self.prefix)), *self.unused]
        counts = Counter(name.partition(".")[0] for name in names)
        return ", ".join(f"{top} ({n_names})" for top, n_names in counts.items()) or "nothing"

    @property
    def n_misfits(self) -> int:
        """Number of names that do not fit."""
        return sum(map(len, self.misfits.values()))


Tops = Callable[[], Collection[str]]
"""First parts of the names of every network of a family, found when they are first needed."""


def find_network(
    family: Family,
    variant: Variant,
    content: Content,
    path: Path,
    *,
    given: Mapping[str, Any],
    prefix: str | None = None,
) -> Fit:
    """Find the network of a variant among the tensors of a file.

    Parameters
    ----------
    family, variant : of the network, whose sizes the file may change
    content, path : of the file
    given : arguments of the network that the user fixed
    prefix : of the network in the file; None to search

    Raises
    ------
    OptionError : no network is made by the arguments, or nothing in the file has the prefix
    WeightsError : no network fits, or several do
    """
    tops = functools.cache(lambda: tops_of(family))
    fits, errors = [], []
    for place in prefixes(family, [*content.tensors, *content.refused], prefix):
        try:
            fits.append(fit(family, variant, content, place, given, tops))
        except WeightsError as error:
            errors.append(error)
    good = [found for found in fits if not found.n_misfits]
    if not good:
        raise WeightsError(_nothing_fits(path, fits, errors, rows_that_fit(family, content, given, prefix)))
    chosen = choose(family, apart(good), path)
    # A backbone alone is no other variant's network; one with another classifier may be.
    is_own = not (chosen.lost and chosen.unused) and (chosen.is_usual or _differs_in_length(family, variant, chosen))
    if not is_own and (rows := rows_that_fit(family, content, given, prefix)):
        raise WeightsError(
            f"{path} does not fit the variant that was chosen, but {shortened(rows)}; give another variant, or leave "
            "it out"
        )
    return chosen


def _differs_in_length(family: Family, variant: Variant, found: Fit) -> bool:
    """Return True if the network in a file is the variant's, but for other lengths of clips or other mel bands."""
    lengths = {name: value for name, value in found.variant.network.items() if name in LENGTHS}
    return _shapes(family, found.trunk) == _shapes(family, on_meta(family, with_network(variant, lengths)))


def rows_that_fit(
    family: Family,
    content: Content,
    given: Mapping[str, Any],
    prefix: str | None = None,
    among: Collection[str] | None = None,
) -> list[str]:
    """Return the variants, `among` some or all, whose networks are in a file as they are, but for their classes."""
    if not _anchored(family, content.tensors):
        return []
    tops = functools.cache(lambda: tops_of(family))
    known: dict[str, bool] = {}  # many variants share a network
    rows = {name: row for name, row in family.variants.items() if among is None or name in among}
    for row in rows.values():
        if (network := repr((row.network, row.frontend))) in known:
            continue
        known[network] = False
        for place in prefixes(family, [*content.tensors, *content.refused], prefix):
            with contextlib.suppress(WeightsError, *BUILD_ERRORS):  # arguments may be for other variants
                found = fit(family, row, content, place, given, tops, resize=False)
                known[network] |= not found.n_misfits and not found.lost
    return [name for name, row in rows.items() if known[repr((row.network, row.frontend))]]


def holds_any(family: Family, content: Content) -> bool:
    """Return True if a file holds a network of a family, of any size."""
    tops = functools.cache(lambda: tops_of(family))
    row = next(iter(family.variants.values()))
    for place in _anchored(family, content.tensors):
        with contextlib.suppress(WeightsError, OptionError):
            found = fit(family, row, content, place, {}, tops)
            if not found.n_misfits and not found.lost:
                return True
    return False


def shortened(names: Sequence[str], shown: int = 4) -> str:
    """List the first few names."""
    return ", ".join(names[:shown]) + (f" and {len(names) - shown} more" if len(names) > shown else "")


def nearest(
    family: Family, variant: Variant, content: Content, path: Path, prefix: str | None = None
) -> dict[str, Tensor]:
    """Return the tensors of a file that share most names with a network, under its names; shapes may differ.

    Raises
    ------
    OptionError : nothing in the file has the prefix
    WeightsError : several networks share as many
    """
    trunk = on_meta(family, variant)
    wanted = trunk.state_dict().keys()
    fits, errors = [], []
    for place in prefixes(family, [*content.tensors, *content.refused], prefix):
        try:
            ours = family.convert_state_dict(under(content.tensors, place), variant)
        except WeightsError as error:
            errors.append(error)
            continue
        fits.append(
            Fit(prefix=place, variant=variant, trunk=trunk, state_dict=ours, lost=(), misfits={}, is_usual=True)
        )
    if not fits:
        raise WeightsError(f"{path}: {errors[0]}")
    most = max(len(wanted & found.state_dict.keys()) for found in fits)
    fits = [found for found in fits if len(wanted & found.state_dict.keys()) == most]
    return choose(family, apart(fits), path).state_dict


def prefixes(family: Family, names: Collection[str], prefix: str | None = None) -> list[str]:
    """Return the places at which a network of a family may begin, the shortest first."""
    if prefix is not None:
        place = prefix if not prefix or prefix.endswith(".") else f"{prefix}."
        if not any(name.startswith(place) for name in names):
            tops = sorted({name.partition(".")[0] for name in names})
            raise OptionError(f"weights_prefix={prefix!r} begins no name in the file; these do: {shortened(tops, 10)}")
        return [place]
    return _anchored(family, names) or _main_branch(names)


def _anchored(family: Family, names: Collection[str]) -> list[str]:
    """Return the places before `Family.anchors`, the shortest first.

    Of anchors that end alike the longest counts, so that a file is not read as the network within it.
    """
    found = set()
    for name in names:
        anchors = [anchor for anchor in family.anchors if name == anchor or name.endswith(f".{anchor}")]
        if anchors:
            found.add(name.removesuffix(max(anchors, key=len)))
    return sorted(found, key=lambda place: (len(place), place))[:MOST_PREFIXES]


def _main_branch(names: Iterable[str]) -> list[str]:
    """Return the prefixes of more than half of the names, the shortest first."""
    within = [*names]
    places = [""]
    while within:
        tops = Counter(name.removeprefix(places[-1]).partition(".")[0] for name in within)
        top, n_names = tops.most_common(1)[0]
        place = f"{places[-1]}{top}."
        within = [name for name in within if name.startswith(place)] if 2 * n_names > len(within) else []
        places += [place] if within else []
    return places


def under(tensors: Mapping[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """Return the tensors behind a prefix, without it."""
    return {name.removeprefix(prefix): tensor for name, tensor in tensors.items() if name.startswith(prefix)}


def fit(
    family: Family,
    variant: Variant,
    content: Content,
    prefix: str,
    given: Mapping[str, Any],
    tops: Tops,
    *,
    resize: bool = True,
) -> Fit:
    """Compare a network with the tensors behind a prefix, see `find_network`; with `resize` it takes their sizes."""
    for name, kind in content.refused.items():
        if name.startswith(prefix):
            raise WeightsError(f"{name} is {kind}; only dense tensors of real numbers are loaded")
    theirs = under(content.tensors, prefix)
    ours = family.convert_state_dict(theirs, variant)
    sized = with_network(variant, {**classes_in(family, ours), **given})
    trunk = usual = None
    with contextlib.suppress(*BUILD_ERRORS):  # arguments may go with the sizes of the file alone
        trunk = usual = on_meta(family, sized)
    if resize:
        # Tensors that are missing or of odd shapes decide nothing; the comparison says what they are.
        with contextlib.suppress(*BUILD_ERRORS):
            sizes = family.sizes({**theirs, **ours}, variant, given).items()
            held = {name: size for name, size in sizes if not (isinstance(size, int) and size < 1)}
            resized = with_network(sized, {**held, **given})
            trunk, sized = on_meta(family, resized), resized
    if trunk is None:
        raise arguments_error(family, variant, given)
    wanted = trunk.state_dict()
    # A network for images has no classifier of sounds to lose: it is a start of training.
    of_images = any(are_for_images(theirs.get(anchor)) for anchor in family.anchors)
    lost = tuple(name for name in wanted if name not in ours and is_of_classifier(family, name) and not of_images)
    used = {name: ours.get(name, NO_BATCHES) for name in wanted if name in ours or name.endswith(COUNTER)}
    unused = [name for name in ours if name not in wanted and name not in family.unused]
    strange = _strange(family, unused, wanted, tops, other_classifier=bool(lost))
    needed = {name: tensor for name, tensor in wanted.items() if name not in lost}
    return Fit(
        prefix=prefix,
        variant=sized,
        trunk=trunk,
        state_dict=used,
        lost=lost,
        misfits=compare(needed, used | {name: ours[name] for name in strange}),
        is_usual=usual is not None and _shapes(family, trunk) == _shapes(family, usual),
        unused=tuple(unused),
    )


def classes_in(family: Family, ours: Mapping[str, Tensor]) -> dict[str, int]:
    """Count the classes of a file by the bias of its classifier."""
    return next(({"n_classes": ours[name].numel()} for name in family.classifier if name in ours), {})


def is_of_classifier(family: Family, name: str) -> bool:
    """Return True for the name of a tensor of a family's classifier."""
    return any(name.startswith(group) for group in family.reinitialised)


def _shapes(family: Family, trunk: Trunk) -> dict[str, torch.Size]:
    """Return the shapes of all but the classifier."""
    return {name: tensor.shape for name, tensor in trunk.state_dict().items() if not is_of_classifier(family, name)}


def _strange(
    family: Family, names: Sequence[str], wanted: Collection[str], tops: Tops, *, other_classifier: bool
) -> list[str]:
    """Return those names beside a network's own that belong to a network of its family, and not to something else."""
    ours = {name.partition(".")[0] for name in wanted}
    if any(name.partition(".")[0] not in ours for name in names):
        ours |= set(tops())
    if other_classifier:
        ours -= {group.partition(".")[0] for group in family.reinitialised}
    return [name for name in names if name.partition(".")[0] in ours]


def own_tensors(family: Family, trunk: Trunk, state_dict: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a state dict without what stands beside a network of its family, with the counters that it lacks."""
    wanted = trunk.state_dict()
    unused = [name for name in state_dict if name not in wanted]
    beside = set(unused) - set(_strange(family, unused, wanted, lambda: tops_of(family), other_classifier=False))
    counters = {name: NO_BATCHES for name in wanted if name.endswith(COUNTER)}
    return counters | {
        name: tensor for name, tensor in state_dict.items() if name not in beside and name not in family.unused
    }


def tops_of(family: Family) -> set[str]:
    """Return the first parts of the names of every network of a family."""
    networks = {repr(row.network): row for row in family.variants.values()}
    return {name.partition(".")[0] for row in networks.values() for name in on_meta(family, row).state_dict()}


def apart(fits: Sequence[Fit]) -> list[Fit]:
    """Return networks without a common tensor: of those with one, that with a classifier, or the shortest prefix."""
    kept: list[Fit] = []
    taken: set[int] = set()
    for found in sorted(fits, key=lambda found: (bool(found.lost), len(found.prefix))):
        tensors = {id(tensor) for tensor in found.state_dict.values() if tensor is not NO_BATCHES}
        if tensors.isdisjoint(taken):
            kept.append(found)
            taken |= tensors
    return kept


def choose(family: Family, fits: Sequence[Fit], path: Path) -> Fit:
    """Return one of several networks, see the top of this module; raise WeightsError that lists them otherwise."""
    usual = [found for found in fits if found.is_usual] or fits
    if family.evaluated is not None:
        usual = [found for found in usual if family.evaluated.search(found.prefix)] or usual
    first, *others = usual
    if all(_equal(first.state_dict, other.state_dict) for other in others):
        return first
    names = ", ".join(repr(found.prefix) for found in usual)
    averaged = [found for found in usual if AVERAGED.search(found.prefix)]
    if len(averaged) == 1:
        log.warning(
            "%s holds the networks %s; the average %r is taken, weights_prefix chooses another",
            path, names, averaged[0].prefix,
        )  # fmt: skip
        return averaged[0]
    raise WeightsError(f"{path} holds {len(usual)} networks that fit: {names}; choose one of them with weights_prefix")


def _equal(left: Mapping[str, Tensor], right: Mapping[str, Tensor]) -> bool:
    return left.keys() == right.keys() and all(left[name].equal(right[name]) for name in left)


def _nothing_fits(path: Path, fits: Sequence[Fit], errors: Sequence[WeightsError], rows: Sequence[str]) -> str:
    """Describe what the nearest network in a file lacks, and which variants would fit."""
    if not fits:
        return f"{path}: {errors[0]}"
    nearest = min(fits, key=lambda found: found.n_misfits)
    where = f", looked for under {nearest.prefix!r}" if nearest.prefix else ""
    where += f", it fits the variant {shortened(rows)}" if rows else ""
    return misfit_message(path, nearest.trunk, nearest.misfits, where)
