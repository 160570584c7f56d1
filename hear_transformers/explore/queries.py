"""What a user looks for, an audio file or a row of the table -> vectors of the table's kind -> matches."""

from __future__ import annotations

import os
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np

from ..bulk.formats import differences
from ..errors import OptionError
from .reading import Embeddings, Rows, Span
from .similarity import Index

if TYPE_CHECKING:  # rows are searched without PyTorch, which takes seconds and most of the memory
    from ..embedding.embedder import Embedder
    from ..networks.family import Readout

CANDIDATES = 20
"""Rows that are looked at for each match: those beside a match in the same file are the same match."""

Search = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


@dataclass(frozen=True, slots=True)
class Match:
    """A part of a file that resembles a query.

    Attributes
    ----------
    row : of the table, from 0
    span : part of which file
    cosine : after centring, or as it is between words and a sound
    query_s : time in the query that it resembles most, in s; None for a scene or a row
    """

    row: int
    span: Span
    cosine: float
    query_s: float | None = None

    def as_record(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        end = None if np.isnan(self.span.end) else self.span.end
        channel = {} if self.span.channel is None else {"channel": self.span.channel}
        at = {} if self.query_s is None else {"query_s": self.query_s}
        place = {"row": self.row, "file": self.span.file, "start": self.span.start, "end": end}
        return {**place, **channel, "cosine": round(self.cosine, 6), **at}


def row_of(query: str, rows: Embeddings) -> int | None:
    """Return the row that a query names by its number, None if it names a file.

    Raises
    ------
    OptionError : the table has no such row
    """
    if not query.isdecimal() or os.path.exists(query):
        return None
    if int(query) >= len(rows):
        raise OptionError(f"row {query}: {rows.path} has rows 0 to {len(rows) - 1}")
    return int(query)


def load_model(rows: Embeddings, weights: str = "", device: str = "auto", *, trusted: bool = False) -> Any:
    """Load the model that made a table, to embed queries as its rows were.

    Parameters
    ----------
    rows : with their provenance
    weights : checkpoint, if it is not the published one
    trusted : run code beside the weights, of an encoder of Hugging Face that has its own

    Raises
    ------
    OptionError : the table does not say what made it, or this version would make it otherwise
    WeightsError : the weights are not those of the table
    """
    from .. import catalogue

    made_with = rows.provenance
    if not made_with or not {"family", "module"} & made_with.keys():
        raise OptionError(
            f"{rows.path}: does not say what model made it, so that audio cannot be embedded alike; give the number of "
            "a row as the query"
        )
    if "module" in made_with:
        model = catalogue.load(made_with["module"], weights, device)
    else:
        options: dict[str, Any] = {
            name: made_with[name] for name in ("network", "normalisation", "weights_prefix") if name in made_with
        }
        if trusted:
            options["trust_remote_code"] = True
        name = f"{made_with['family']}/{made_with['variant']}"
        model = _read_as(catalogue.load(name, weights, device, options), made_with)
    own = model.provenance()
    rows.check_weights(own["weights_sha256"])
    unlike = {"package", "precision", "scene", "timestamps", *({} if "module" in made_with else {"hop_ms", "framing"})}
    shared = (made_with.keys() & own.keys()) - unlike
    changed = differences({key: made_with[key] for key in shared}, {key: own[key] for key in shared})
    if changed:
        raise OptionError(f"{rows.path}: was made with other settings: {', '.join(changed)}; embed its audio again")
    return model


def _read_as(model: Any, made_with: dict[str, Any]) -> Embedder:
    """Return a model that reads its network as the settings of a table say."""
    from ..embedding.embedder import Embedder

    variant = model.variant
    if "scene" in made_with:
        scene = dict(made_with["scene"])
        hop_ms = scene.pop("hop_ms")
        variant = replace(variant, scene=_readout(scene), scene_hop_ms=hop_ms)
    else:
        timestamps = tuple(map(_readout, made_with["timestamps"]))
        variant = replace(variant, timestamps=timestamps, hop_ms=made_with["hop_ms"], framing=made_with["framing"])
        variant = replace(variant, mean_over_time=made_with["embedding"] == "scene")
    read = Embedder(model.trunk, variant, name=model.name, device=model.device)
    read.weights_sha256, read.read_with = model.weights_sha256, model.read_with
    return read if read.device == model.device else read.to(model.device)


def _readout(described: dict[str, Any]) -> Readout:
    from ..networks.family import Readout

    return Readout(**{**described, "layers": tuple(described["layers"])})


def embed(model: Any, rows: Embeddings, path: str) -> tuple[np.ndarray, np.ndarray | None]:
    """Embed a query as the rows of a table are: (times, size), and times in s, None for one scene."""
    assert rows.provenance is not None
    if rows.provenance.get("embedding") == "timestamps":
        found = model.encode_timestamps(path)
        return found.embeddings, found.centres_ms / 1000.0
    return model.encode(path, show_progress_bar=False)[None], None


def matches(
    index: Index, search: Search, queries: np.ndarray, times_s: np.ndarray | None, k: int, row: int | None = None
) -> list[Match]:
    """Find the best matches of one query: of several vectors along time the best of each row.

    Rows that share audio with a better match, or with the row that is the query, are left out.

    Parameters
    ----------
    index : of the table
    search : `Index.search`, or that of an index of neighbours
    queries : (times, size), from `Index.centred`
    times_s : (times,), None for a query without times
    k : how many
    row : of the table, if it is the query
    """
    rows = index.rows
    cosines, found = search(queries, min(len(rows), k * CANDIDATES if rows.is_along_time else k + 1))
    order = np.argsort(-cosines.ravel(), kind="stable")
    taken: list[Match] = []
    seen: list[int] = [] if row is None else [row]
    for at in order.tolist():
        query, place = divmod(at, found.shape[1])
        other = int(found[query, place])
        if other in seen or any(rows.overlaps(other, each) for each in seen):
            continue
        seen.append(other)
        at_s = None if times_s is None else float(times_s[query])
        taken.append(Match(other, rows.span(other), min(1.0, float(cosines[query, place])), at_s))
        if len(taken) == k:
            break
    return taken


def best_of(index: Index, search: Search, row: int, k: int) -> list[Match]:
    """Find the best matches of a row of the table."""
    return matches(index, search, index.rows.at([row]), None, k, row)


def find_audio(rows: Rows, folders: Sequence[str | os.PathLike[str]] = ()) -> list[str | None]:
    """Find the audio of every file of a table: as it is named, else below the table's folder or others, else None."""
    beside = [
        *(os.fspath(each) for each in folders),
        "",
        os.fspath(rows.path if rows.path.is_dir() else rows.path.parent),
    ]
    found: list[str | None] = []
    for file in rows.files:
        places = (os.path.join(folder, name) for folder in beside for name in (file, os.path.basename(file)))
        found.append(next((os.path.abspath(each) for each in places if os.path.isfile(each)), None))
    return found
