"""Labelled audio -> token maps: what a layer has at every place of time and frequency, in files."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

from ..bulk import extract
from ..bulk.outputs import OutputOptions
from ..embedding.embedder import Embedder
from ..errors import OptionError, TrainingError
from .data import Embedded, Labelled, extracted
from .token_maps import TokenMaps

OF_MAPS = {"framing": "native", "pool": "flat"}
"""Options of a model whose embeddings along time are token maps: what all positions in frequency have at that time."""

DTYPE_OF_MAPS = "float16"

MOST_BYTES = 4_000_000_000
"""Of all token maps: at a hop of 50 ms, 5 s of a layer of 12 positions in frequency and 192 features take 0.5 MB."""


def embed_maps(
    clips: Labelled,
    model: Embedder,
    folder: Path,
    *,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda n: None,
    on_outcome: Callable[[extract.Outcome], None] = lambda outcome: None,
) -> tuple[Embedded, TokenMaps]:
    """Compute token maps of clips into a folder, as float16, where a later run finds them; one that fails is left out.

    Parameters
    ----------
    clips : to embed
    model : that was loaded with the options `OF_MAPS`, for one layer
    folder, workers, on_start, on_outcome : see `extract.extract`

    Returns
    -------
    embedded : without embeddings
    maps : of the clips that have one

    Raises
    ------
    OptionError : the layer is a vector, or there are several
    TrainingError : none could be embedded, or the maps need more than `MOST_BYTES`
    """
    freq = frequencies_of(model)
    n_bytes = n_done = 0

    def count(outcome: extract.Outcome) -> None:
        nonlocal n_bytes, n_done
        on_outcome(outcome)
        if outcome.output is not None:
            n_bytes, n_done = n_bytes + outcome.output.stat().st_size, n_done + 1
        if n_bytes > MOST_BYTES:
            raise TrainingError(
                f"{clips.source}: the token maps of {n_done} of its {len(clips.paths)} clips need "
                f"{n_bytes / 1e9:.1f} GB, and at most {MOST_BYTES / 1e9:g} GB are kept; choose a larger --hop-ms, "
                f"a smaller --layer, or fewer clips, and remove {folder}"
            )

    pairs = list(zip(clips.paths, clips.spans, strict=True))
    how: dict[str, Any] = {"timestamps": True, "workers": workers, "on_start": on_start, "on_outcome": count}
    stored = OutputOptions("npy", DTYPE_OF_MAPS)
    found, provenance, failed = extracted(clips.source, pairs, model, folder, stored, **how)
    nothing = np.zeros((len(found), 0), np.float32)
    return Embedded(np.array([i for i, _ in found]), nothing, provenance, failed), TokenMaps(
        [p for _, p in found], freq
    )


def frequencies_of(model: Embedder) -> int:
    """Return the positions in frequency of a model's token map; raise OptionError if it reads none, or several."""
    readout = model.variant.timestamps[0]
    if len(readout.layers) > 1:
        raise OptionError(f"layer {','.join(readout.layers)}: token maps are of one layer; give one --layer")
    return model.timestamp_embedding_size // model.size(replace(readout, pool="mean"))
