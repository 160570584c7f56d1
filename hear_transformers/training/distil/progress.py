"""How far a run is, from the files in its folder."""

from __future__ import annotations

import csv
from collections.abc import Iterator
from pathlib import Path

from ..curves import EPOCHS
from ..pieces import Pieces
from .recipe import KINDS, DistilRecipe, from_settings

ROWS_SHOWN = 10  # of the curve


def student_of(folder: Path) -> str:
    """Return the student of the run in a folder, see `pieces.Pieces.read_index` for errors."""
    return str(Pieces(folder).read_index()["settings"]["student"])


def describe(folder: Path) -> Iterator[str]:
    """Describe the run in a folder in lines of text: steps, time, clips, and the curve of its held-out losses.

    Raises
    ------
    TrainingError : the folder holds no run, or a damaged one
    """
    state = Pieces(folder).read_index()
    recipe, step = from_settings(state["settings"]), state["step"]
    minutes = state["seconds"] / 60
    yield f"{recipe.student}, seed {recipe.seed}: step {step} of {recipe.steps}, {minutes:.1f} minutes of training"
    left = minutes / max(1, step) * (recipe.steps - step)
    yield f"{left:.1f} minutes left at this rate; clips seen: {clips_seen(recipe, step)}"
    yield "on held-out synthetic clips, 1 is a guess and 0 is perfect, but for the share explained:"
    yield from table(folder / EPOCHS)


def clips_seen(recipe: DistilRecipe, step: int) -> str:
    """Return how many different clips of each kind were trained on."""
    numbers = {kind: recipe.fresh(kind) * (step + recipe.pool - 1) if step else 0 for kind in KINDS}
    return ", ".join(f"{number:,} {kind}" for kind, number in numbers.items())


def table(path: Path) -> Iterator[str]:
    """Return lines of some rows of the scores, evenly spaced, the last one among them."""
    rows = list(csv.reader(path.read_text().splitlines())) if path.exists() else []
    if len(rows) < 2:
        yield "none scored yet"
        return
    header, *scored = rows
    every = -(-len(scored) // ROWS_SHOWN)
    shown = scored[::-1][::every][::-1]
    names = [name.removeprefix("valid_") for name in header]
    for row in [names, *shown]:
        yield "  ".join(f"{cell:>9}" for i, cell in enumerate(row) if i != 1)  # without the epoch
