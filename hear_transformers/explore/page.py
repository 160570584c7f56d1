"""One self-contained HTML page of embeddings: a map to look at, sounds to hear and to label, neighbours, duplicates.

The page runs no code but its own and reaches no network: its Content-Security-Policy allows the hashes of its script
and style, and audio beside it. Names of files are data in JSON, and are set as text.
"""

from __future__ import annotations

import base64
import hashlib
import json
import mimetypes
import os
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from urllib.parse import quote

import numpy as np

from ..bulk.selections import absolute
from ..errors import OptionError
from ..files import atomic
from . import maps, pictures
from .reading import Embeddings, Rows
from .similarity import Index

MOST_POINTS = 10_000
"""Points that a page has; of more rows a sample is drawn."""

N_NEIGHBOURS = 10
"""Neighbours that are listed for each point."""

MOST_LISTED = 500
"""Likely duplicates that are listed."""

MOST_EMBEDDED = 20 * 2**20
"""Bytes of audio that a page holds itself; more is linked, and must stay where it is."""

MOST_PICTURES = 200
"""Spectrograms that a page holds, 16 KB each."""

AUDIO_CHOICES = ("auto", "embed", "link", "none")

MAP_CHOICES = ("auto", "pca", "umap")


def sample(rows: Embeddings) -> Rows:
    """Return at most `MOST_POINTS` rows, drawn at random, of embeddings along time by whole files."""
    if len(rows) <= MOST_POINTS:
        return rows if isinstance(rows, Rows) else rows.take(np.arange(len(rows)))
    rng = np.random.default_rng(0)
    codes = rows.file_codes()
    counts = np.bincount(codes)
    order = rng.permutation(len(counts))
    whole = order[np.cumsum(counts[order]) <= MOST_POINTS]
    if len(whole):
        return rows.take(np.flatnonzero(np.isin(codes, whole)))
    return rows.take(np.sort(rng.choice(len(rows), MOST_POINTS, replace=False)))


def write_page(
    index: Index,
    out: Path,
    labels: Sequence[str] | None,
    audio: Sequence[str | None],
    *,
    n_rows: int,
    n_clusters: int = 10,
    method: str = "auto",
    threshold: float = 0.99,
    sound: str = "auto",
) -> str:
    """Write a page; return how its sound is there: "embed", "link" or "none".

    Parameters
    ----------
    index : of the rows that the page shows, see `sample`
    out : the HTML file
    labels : of each row, empty for none; None without any
    audio : absolute path of each file, None if it was not found
    n_rows : of the table, of which these are a sample
    n_clusters : of k-means
    method : of `MAP_CHOICES`; "auto" is UMAP where it is installed
    threshold : cosine of likely duplicates
    sound : of `AUDIO_CHOICES`; "auto" embeds up to `MOST_EMBEDDED` bytes

    Raises
    ------
    OptionError : UMAP is asked for and not installed
    """
    rows = index.rows
    assert isinstance(rows, Rows)  # a sample
    points = maps.components(rows.vectors)
    method, places = _places(rows, points, method)
    cosines, near = index.search(rows.vectors, min(len(rows), N_NEIGHBOURS + 1))
    pairs = index.near_duplicates(threshold)
    sound = _sound(audio, sound)
    names = sorted(set(labels or ()) - {""})
    codes = {name: i for i, name in enumerate(names)}
    data = {
        "title": rows.path.name,
        "rows": n_rows,
        "method": {"pca": "principal components", "umap": "UMAP"}[method],
        "threshold": threshold,
        "files": rows.files,
        "paths": [path or absolute(name) for path, name in zip(audio, rows.files, strict=True)],
        "audio": [_source(path, out, sound) for path in audio],
        "labels": names,
        "file": rows.file.tolist(),
        "start": np.round(rows.start, 4).tolist(),
        "end": [None if np.isnan(end) else round(end, 4) for end in rows.end.tolist()],
        "x": np.round(places[:, 0], 4).tolist(),
        "y": np.round(places[:, 1], 4).tolist(),
        "label": None if labels is None else [codes.get(label, -1) for label in labels],
        "cluster": maps.clusters(points, n_clusters).tolist(),
        "near": near.tolist(),
        "cosine": np.round(cosines, 3).tolist(),
        "pairs": [[pair.first, pair.second, round(pair.cosine, 3)] for pair in pairs[:MOST_LISTED]],
        "n_pairs": len(pairs),
        "pictures": [pictures.spectrogram(path) if path else None for path in audio[:MOST_PICTURES]],
        "vectors": _coarse(points) if rows.is_along_time else None,
        "components": points.shape[1],
    }
    with atomic(out) as file:
        file.write(render(data).encode("utf-8", "backslashreplace"))
    return sound


def render(data: object, package: str = __package__) -> str:
    """Return the page of some data, made of a package's page.html, page.css and page.js."""
    place = files(package)
    parts = {name: (place / f"page.{name}").read_text(encoding="utf-8") for name in ("html", "css", "js")}
    allowed = {f"@{name.upper()}_HASH@": _hash(parts[name]) for name in ("css", "js")}
    # In a script no text may hold "</script>" or "<!--"; JSON reads the escape as the sign itself.
    text = json.dumps(data, allow_nan=False).replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")
    page = parts["html"]
    for mark, content in {**allowed, "@CSS@": parts["css"], "@JS@": parts["js"], "@DATA@": text}.items():
        page = page.replace(mark, content, 1)
    return page


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _places(rows: Rows, points: np.ndarray, method: str) -> tuple[str, np.ndarray]:
    """Return how the map is made, and the places on it: (rows, 2) in [-1, 1]."""
    places = None
    if method != "pca" and len(rows) > 3:
        try:
            method, places = "umap", maps.umap(rows.vectors)
        except OptionError:
            if method == "umap":
                raise
    if places is None:
        method, places = "pca", points
    padded = np.zeros((len(rows), 2), np.float32)
    padded[:, : min(2, places.shape[1])] = places[:, :2]
    padded -= (padded.max(0) + padded.min(0)) / 2
    return method, padded / np.maximum(np.abs(padded).max(0), 1e-12)


def _coarse(points: np.ndarray) -> str:
    """Return components as 8 bits for the self-similarity of files along time."""
    scaled = np.round(127.0 * points / max(float(np.abs(points).max()), 1e-12)).astype(np.int8)
    return base64.b64encode(scaled.tobytes()).decode()


def _sound(audio: Sequence[str | None], sound: str) -> str:
    found = [path for path in audio if path is not None]
    if not found:
        return "none"
    if sound != "auto":
        return sound
    return "embed" if sum(map(os.path.getsize, found)) <= MOST_EMBEDDED else "link"


def _source(path: str | None, out: Path, sound: str) -> str | None:
    """Return the address of a file's audio: data, or a path relative to the page."""
    if path is None or sound == "none":
        return None
    if sound == "embed":
        kind = mimetypes.guess_type(path)[0] or "audio/wav"
        return f"data:{kind};base64,{base64.b64encode(Path(path).read_bytes()).decode()}"
    try:
        relative = os.path.relpath(path, out.absolute().parent)
    except ValueError:  # on another drive of Windows
        return Path(path).as_uri()
    return quote(relative.replace(os.sep, "/"))
