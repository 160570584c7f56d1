"""What a server answers with: a model, the classes it knows, and a table of embeddings to search."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .. import catalogue, labels
from ..embedding.embedder import Embedder
from ..embedding.options import choose
from ..embedding.pipeline import Embedded, Model
from ..errors import OptionError
from ..explore import queries, similarity
from ..explore.reading import look_up
from .batching import Reading


@dataclass(frozen=True, slots=True)
class Table:
    """A table of embeddings, and how a sound is embedded as its rows are."""

    index: similarity.Index
    reading: Reading

    def nearest(self, embedded: Embedded, k: int) -> list[dict[str, Any]]:
        """Return the rows nearest to a sound, see `queries.matches`."""
        assert embedded.embedding is not None
        vectors, times_s = np.atleast_2d(embedded.embedding), None
        if embedded.times_ms is not None:
            times_s = embedded.times_ms / 1000.0
        found = queries.matches(self.index, self.index.search, self.index.centred(vectors), times_s, k)
        return [match.as_record() for match in found]

    def nearest_to_row(self, row: int, k: int) -> list[dict[str, Any]]:
        """Return the rows nearest to one of them; raise OptionError if there is no such row."""
        n_rows = len(self.index.rows)
        if not 0 <= row < n_rows:
            raise OptionError(f"row={row}: the table has rows 0 to {n_rows - 1}")
        return [match.as_record() for match in queries.best_of(self.index, self.index.search, row, k)]


@dataclass(frozen=True, slots=True)
class Served:
    """What a server answers with.

    Attributes
    ----------
    model : embeds
    name : of it, as clients have it
    tagger : the same network, which gives its logits; None if it names no classes
    no_tags : why not
    table : to search; None without one
    """

    model: Model
    name: str
    tagger: Model | None
    no_tags: str
    table: Table | None

    @property
    def is_along_time(self) -> bool:
        """Whether the model embeds along time."""
        return hasattr(self.model, "timestamp_embedding_size")

    def described(self) -> dict[str, Any]:
        """Return what is known of it, ready for JSON."""
        model, table = self.model, self.table
        size = getattr(model, "timestamp_embedding_size", None)
        known = {
            "model": self.name,
            "layer": ",".join(model.layers) or None,
            "sample_rate": model.sample_rate,
            "scene_embedding_size": model.scene_embedding_size,
            "timestamp_embedding_size": size,
            "tags": self.tagger is not None,
            "table": None,
            "provenance": model.provenance(),
        }
        if table is not None:
            rows = table.index.rows
            made_by = (rows.provenance or {}).get("family"), (rows.provenance or {}).get("variant")
            known["table"] = {"rows": len(rows), "size": rows.size, "model": "/".join(filter(None, made_by))}
        return known


def load(
    name: str | None,
    weights: str = "",
    device: str = "auto",
    options: Mapping[str, Any] | None = None,
    table: str | os.PathLike[str] | None = None,
    *,
    trusted: bool = False,
) -> Served:
    """Load a model, and a table.

    Parameters
    ----------
    name : of the model; None for the one that made the table
    weights, device, options : see `catalogue.load`
    table : to search, see `explore.reading.look_up`
    trusted : run code beside the weights of the table's model, see `queries.load_model`

    Raises
    ------
    OptionError : a name or an option is unknown, or the table cannot be searched by sounds
    WeightsError : weights are missing, damaged, or not those of the table
    """
    found = None if table is None else _table(table, weights if name is None else "", device, trusted=trusted)
    if name is None and found is not None:
        model = found.reading.model
    else:
        model = catalogue.load(name, weights, device, options)
        found = None if found is None else _of_one_network(found, model)
    tagger, no_tags = _tagger(model)
    shown = "/".join(model.name) if isinstance(model.name, tuple) else str(model.name)
    return Served(model, shown, tagger, no_tags, found)


def _table(path: str | os.PathLike[str], weights: str, device: str, *, trusted: bool) -> Table:
    rows = look_up(path)
    model = queries.load_model(rows, weights, device, trusted=trusted)
    along_time = (rows.provenance or {}).get("embedding") == "timestamps"
    return Table(similarity.Index(rows), Reading(model, along_time))


def _of_one_network(table: Table, model: Model) -> Table:
    """Return a table whose queries are embedded by the network of a model, if that is the same: it is held once."""
    other = table.reading.model
    if not (isinstance(model, Embedder) and isinstance(other, Embedder)):
        return table

    def identity(each: Embedder) -> tuple[Any, ...]:
        return each.name, each.weights_sha256, each.read_with, each.precision, each.device

    if identity(model) != identity(other):
        return table
    return Table(table.index, Reading(_read_again(model, other.variant), table.reading.timestamps))


def _read_again(model: Embedder, variant: Any) -> Embedder:
    """Return a model that reads the same network in another way."""
    read = Embedder(model.trunk, variant, name=model.name, precision=model.precision, device=model.device)
    read.weights_sha256, read.read_with = model.weights_sha256, model.read_with
    read.labels, read.multi_label, read.batch_size = model.labels, model.multi_label, model.batch_size
    return read if read.device == model.device else read.to(model.device)


def _tagger(model: Model) -> tuple[Model | None, str]:
    """Return what gives the logits of a model's network, or None and why there are none."""
    if not isinstance(model, Embedder):
        return None, "the HEAR API does not say which numbers of an embedding are logits"
    reason = ""
    for layer, pool in (("logits", None), ("framewise", "max")):
        try:
            read = _read_again(model, choose(model.variant, model.trunk, layer=layer, pool=pool))
            labels.check_logits(read, timestamps=False)
        except OptionError as error:
            reason = reason or str(error)
        else:
            return read, ""
    return None, reason
