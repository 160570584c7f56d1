"""The command that embeds with a setting of a sweep."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path

from .passes import SCENE, Cell, Pass


def command_of(source: Path, columns: Mapping[str, str], found: Pass, cell: Cell, *, along_time: bool) -> str:
    """Return the command that embeds data with one setting: `embed-audio`, or of random weights the sweep itself.

    Parameters
    ----------
    source : folder or table
    columns : of a table, what they hold
    found : the pass
    cell : layers and pooling
    along_time : whether embeddings along time were scored, or one of each clip
    """
    chosen, along = found.chosen, []
    if found.hop_ms is not None:
        along = ["--window-ms", _exactly(found.window_ms), "--hop-ms", _exactly(found.hop_ms)]
    framing = ["--framing", found.framing]
    pool = ["--pool", cell.pool] if cell.pool else []
    if chosen.is_random:
        words = ["hear-transformers", "sweep", str(source), "--random-model", chosen.name, "--layers", cell.layer]
        return shlex.join([*words, *pool, *along, *framing])
    words = ["embed-audio", str(source)]
    if source.is_file():
        told = [f"{name}={column}" for name, column in columns.items() if name != "labels"]
        words = ["embed-audio", "--manifest", str(source), *(["--columns", ",".join(told)] if told else [])]
    weights = ["--weights", chosen.weights] if chosen.weights else []
    words += ["--model", chosen.name, *weights, "--layer", ",".join(cell.members), *pool, *along]
    words += [*framing, *([] if along_time else ["--scene"])] if found.framing != SCENE else []
    return shlex.join([*words, "--out", "embeddings"])


def _exactly(number: float) -> str:
    """Return the shortest text of a number that is read as the same."""
    return f"{number:.0f}" if number.is_integer() else repr(number)
