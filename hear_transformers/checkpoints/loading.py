"""Published and other checkpoint files under the names of our networks."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import Tensor

from .. import FAMILIES
from ..errors import WeightsError
from ..files import sha256_of
from ..networks.family import Beside, Family, Variant, check_arguments, variant_of, with_normalisation
from . import hugging_face, published, search, store
from .state_dicts import Content

log = logging.getLogger(__name__)


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


@dataclass(frozen=True, slots=True, kw_only=True)
class Loaded:
    """A network read from a checkpoint.

    Attributes
    ----------
    name, variant : of the variant, with the sizes and the normalisation of the file
    state_dict : tensors by the names of that network
    lost : names of the classifier that the file lacks
    labels : names of the classes in the order of the logits; None without names
    multi_label : whether a clip may belong to several classes
    sha256 : of the file, or of the hashes of its parts
    """

    name: str
    variant: Variant
    state_dict: dict[str, Tensor]
    lost: tuple[str, ...] = ()
    labels: tuple[str, ...] | None = None
    multi_label: bool = True
    sha256: str


def read_foreign(
    family: Family, name: str | None, path: Path, *, network: Mapping[str, Any], prefix: str | None = None
) -> Loaded:
    """Read a checkpoint that this package has not written.

    Parameters
    ----------
    family : of the network
    name : of the variant; None for the one that the file is known for, see `recognise`
    path : of the file, or a folder of Hugging Face
    network : arguments of the network that the user fixed
    prefix : of the network in the file; None to search

    Raises
    ------
    OptionError : an argument, the variant or the prefix is unknown
    WeightsError : the file is missing, damaged, or for another network
    """
    files = hugging_face.weights_in(path)
    content = hugging_face.read_parts(files)
    if name is None:
        name = recognise(family, content, path, files, network=network, prefix=prefix)
    name, variant = variant_of(family, name)
    check_arguments(family, variant, network, sizes_follow=True)
    with errors_name_file(path):
        said = family.beside(content.entries)
    in_files = hugging_face.read_beside(family, variant, files[0])
    beside = said if in_files == Beside() else in_files
    variant = with_normalisation(variant, beside.normalisation)
    given = {**beside.network, **network}
    found = search.find_network(family, variant, content, path, given=given, prefix=prefix)
    names = f"names that begin with {found.prefix}" if found.prefix else "names as they stand"
    log.info("%s: %s/%s is read from %s; beside it: %s", path, family.name, name, names, found.beside(content))
    labels = beside.labels or (variant.labels() if variant.labels else None)
    n_classes = 0 if found.lost else search.classes_in(family, found.state_dict).get("n_classes", 0)
    return Loaded(
        name=name,
        variant=found.variant,
        state_dict=found.state_dict,
        lost=found.lost,
        labels=labels if labels and len(labels) == n_classes else None,
        multi_label=beside.multi_label,
        sha256=hash_of_parts(files),
    )


def recognise(
    family: Family,
    content: Content,
    path: Path,
    files: Sequence[Path],
    *,
    network: Mapping[str, Any],
    prefix: str | None = None,
) -> str | None:
    """Return the variant that a file is for: by its hash, else the first, else the one whose network it holds.

    Raises
    ------
    WeightsError : the file is another family's by its hash, or holds the networks of variants that differ elsewhere
    """
    row = published.identify(files[0]) if len(files) == 1 else None
    if row and row.family == family.name:
        names = [name for name, variant in family.variants.items() if variant.checkpoint == row.name]
        return names[0] if names else None
    if row and row.family in FAMILIES:
        raise WeightsError(f"{path} is the published checkpoint {row.name} of {row.family}; load it with that family")
    first = next(iter(family.variants))
    check_arguments(family, family.variants[first], network, sizes_follow=True)
    names = search.rows_that_fit(family, content, network, prefix, among=[first])
    names = names or search.rows_that_fit(family, content, network, prefix)
    kinds = {repr((family.variants[name].network, family.variants[name].frontend)) for name in names}
    if len(kinds) > 1:
        raise WeightsError(f"{path} may be for {search.shortened(names)}, which differ elsewhere; give the variant")
    return names[0] if names else None


def hash_of_parts(files: Sequence[Path]) -> str:
    """Return the sha256 of a file, or that of the hashes of several."""
    hashes = [sha256_of(file) for file in files]
    return hashes[0] if len(hashes) == 1 else hashlib.sha256("".join(hashes).encode()).hexdigest()


def read_start(family: Family, variant: Variant, path: Path) -> dict[str, Tensor]:
    """Read the tensors that training starts from, under the names of our network; shapes may differ."""
    content = hugging_face.read_parts(hugging_face.weights_in(path))
    return search.nearest(family, variant, content, path)


@contextlib.contextmanager
def errors_name_file(file: Path) -> Iterator[None]:
    """Put the name of a file before the message of every WeightsError."""
    try:
        yield
    except WeightsError as error:
        raise WeightsError(f"{file}: {error}") from error


def check_family(family: Family, metadata: Mapping[str, str], file: Path) -> None:
    """Raise WeightsError if a checkpoint written by this package names another family."""
    held = metadata.get("family", "")
    if held != family.name:
        raise WeightsError(f"{file} is for the family {held!r}, not {family.name!r}; load it with that one")
