"""Embeddings, tags and matches -> bodies of answers: JSON in the shape of OpenAI's embeddings, or NumPy's files."""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

import numpy as np

from .. import labels
from ..embedding.encode import SHORTEST_NORM
from ..embedding.pipeline import Embedded
from ..errors import OptionError
from .models import Served, Table
from .refusals import as_json
from .uploads import Upload

Encoding = Literal["float", "base64", "npy", "npz"]

CONTENT_TYPES = {"npy": "application/x-npy", "npz": "application/x-npz"}
"""Of answers that are files of NumPy; all others are JSON."""

MOST_NUMBERS = 4_000_000
"""Most numbers that are written out in JSON: each takes 20 bytes there, and more while they are formatted."""

Sounds = Sequence[tuple[Upload, Embedded]]


def check_encoding(encoding: str, n_sounds: int, *, timestamps: bool) -> None:
    """Raise OptionError unless so many sounds can be answered like this."""
    if encoding == "npy" and timestamps:
        raise OptionError("encoding_format='npy' is one array, and embeddings along time come with times; ask for npz")
    if encoding == "npz" and n_sounds > 1:
        raise OptionError(f"encoding_format='npz' is for one sound, and there are {n_sounds}; send one at a time")


def embeddings(served: Served, sounds: Sounds, encoding: str, *, normalize: bool) -> bytes:
    """Format embeddings.

    Parameters
    ----------
    served : what made them
    sounds : what was sent, and its embeddings
    encoding : float, or base64 of little-endian float32, in JSON; npy, float32 (sounds, size); npz, the arrays
        ``embedding`` and, along time, ``timestamps`` in ms, as `embed-audio` writes them
    normalize : scale every vector to length 1
    """
    numbers = [_numbers(embedded, normalize) for _, embedded in sounds]
    if encoding == "npy":
        return _file(lambda file: np.save(file, np.stack(numbers)))
    if encoding == "npz":
        ((_, embedded),) = sounds
        arrays: dict[str, Any] = {"embedding": numbers[0]}
        if embedded.times_ms is not None:
            arrays["timestamps"] = np.asarray(embedded.times_ms)
        return _file(lambda file: np.savez(file, **arrays))
    n_numbers = sum(each.size for each in numbers)
    if encoding == "float" and n_numbers > MOST_NUMBERS:
        raise OptionError(
            f"{n_numbers:,} numbers are too many to be written out; ask for encoding_format=npz, or base64 of several"
        )
    items = []
    for (_, embedded), each in zip(sounds, numbers, strict=True):
        shown = base64.b64encode(each.astype("<f4").tobytes()).decode() if encoding == "base64" else each.tolist()
        item: dict[str, Any] = {"object": "embedding", "embedding": shown}
        if embedded.times_ms is not None:
            item |= {"shape": list(each.shape), "timestamps_ms": np.asarray(embedded.times_ms).tolist()}
        items.append(item)
    return as_json(_listed(served, sounds, items) | {"provenance": served.model.provenance()})


def tags(served: Served, sounds: Sounds, top_k: int) -> bytes:
    """Format the likeliest classes of each sound."""
    items = []
    for _, embedded in sounds:
        assert embedded.embedding is not None
        found = labels.tags_of(served.tagger, embedded.embedding, top_k)
        items.append({"object": "tags", "tags": [tag._asdict() for tag in found]})
    return as_json(_listed(served, sounds, items))


def matches(served: Served, table: Table, sounds: Sounds, k: int) -> bytes:
    """Search a table for what resembles each sound, and format what is found."""
    items = [{"object": "matches", "matches": table.nearest(embedded, k)} for _, embedded in sounds]
    return as_json(_listed(served, sounds, items))


def matches_of_row(table: Table, row: int, k: int) -> bytes:
    """Search a table for what resembles one of its rows, and format what is found."""
    return as_json({"object": "list", "data": [{"row": row, "matches": table.nearest_to_row(row, k)}]})


def _listed(served: Served, sounds: Sounds, items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Return a list of items, each with what is known of its sound."""
    data = [
        {
            "index": index,
            "file": upload.name,
            "seconds": round(embedded.seconds, 6),
            **item,
            **({"warnings": list(embedded.warnings)} if embedded.warnings else {}),
        }
        for index, ((upload, embedded), item) in enumerate(zip(sounds, items, strict=True))
    ]
    total = round(sum(embedded.seconds for _, embedded in sounds), 6)
    layer = ",".join(served.model.layers) or None
    return {"object": "list", "model": served.name, "layer": layer, "data": data, "usage": {"audio_seconds": total}}


def _numbers(embedded: Embedded, normalize: bool) -> np.ndarray:
    assert embedded.embedding is not None
    numbers = np.array(embedded.embedding, np.float32)
    if normalize:
        numbers /= np.maximum(np.linalg.norm(numbers, axis=-1, keepdims=True), SHORTEST_NORM)
    return numbers


def _file(write: Callable[[io.BytesIO], None]) -> bytes:
    file = io.BytesIO()
    write(file)
    return file.getvalue()
