"""What a sweep found, in words."""

from __future__ import annotations

import math
from collections.abc import Iterator

from ..probes.metrics import LEVEL
from .findings import AXES, SHOTS, Change, Finding, goodness, is_lower_better, overlap
from .results import Row

NAMES = {"window_ms": "window", "hop_ms": "hop", SHOTS: "clips per class"}
"""Axes whose name for people is another."""

HEADINGS = {**NAMES, "seconds_per_hour": "s per hour"}
"""Headings of the columns whose names are others."""

CAVEATS = (
    f"In brackets: {100 * LEVEL:g} % intervals, by bootstrap over the clips that were scored. "
    "Scores that differ by less than their intervals are not shown to differ.",
    "Overlap does not prove that settings are equal either: all were scored on the same clips, and a test of paired "
    "differences, which needs the predictions of each clip, would be sharper.",
    "The best of many settings is also the luckiest of them: on new clips expect a little less of it.",
    "Seconds of compute are those of the forward pass, which all layers and poolings of a model, framing, window and "
    "hop share: on a CPU those of all its cores together, on a card elapsed ones. A shallow layer alone costs less.",
)
"""What a reader should know of all numbers; the first above all."""


def value_of(row: Row, axis: str) -> str:
    """Return the value of an axis for people, with its unit."""
    value = getattr(row, axis)
    if axis == SHOTS:
        return "all" if value is None else f"{value}"
    if value is None:
        return "own"
    return f"{value:g} ms" if axis in NAMES else value or "none"


def text_of(row: Row, column: str) -> str:
    """Return a cell of the tables for people."""
    if column == "score":
        return score_of(row)
    if column == "seconds_per_hour":
        return f"{row.seconds_per_hour:.3g}"
    return value_of(row, column) if column in AXES else f"{getattr(row, column)}"


def setting_of(row: Row) -> str:
    """Return a setting as words: "tiny, layer 9, pool mean, ..."."""
    axes = [axis for axis in AXES if axis != SHOTS or row.clips_per_class is not None]
    return ", ".join([row.model, *(f"{NAMES.get(axis, axis)} {value_of(row, axis)}" for axis in axes)])


def score_of(row: Row) -> str:
    """Return a score with its interval."""
    if math.isnan(row.low) or math.isnan(row.high):
        return f"{row.value:.3f} (no interval)"
    return f"{row.value:.3f} ({row.low:.3f} to {row.high:.3f})"


def cost_of(row: Row) -> str:
    """Return what a setting costs."""
    seconds = row.seconds_per_hour
    time = "compute not measured" if math.isnan(seconds) else f"{seconds:.3g} s of compute per hour of audio"
    return f"{time}, {row.size:,} numbers per embedding"


def paragraphs(finding: Finding) -> Iterator[tuple[str, str]]:
    """Yield paragraphs about a task, each with the command that it is of, or an empty text."""
    best, cheapest, n = finding.best, finding.cheapest, len(finding.alike)
    direction = ", where less is better," if is_lower_better(finding.metric) else ""
    yield (
        f"The best {finding.metric}{direction} is {score_of(best)} on {best.clips:,} clips: {setting_of(best)}. "
        f"It costs {cost_of(best)}.",
        best.command,
    )
    counts = [row.clips for row in finding.rows]
    if min(counts) < max(counts):
        yield f"Settings were scored on {min(counts):,} to {max(counts):,} clips: not all on the same ones.", ""
    if n == 1:
        yield "Its interval overlaps with that of no other setting.", ""
        return
    yield f"The intervals of {n:,} of {len(finding.rows):,} settings overlap with it, its own among them.", ""
    if cheapest is best:
        yield "It is the cheapest of these as well.", ""
        return
    yield (
        f"The cheapest of these is {setting_of(cheapest)}: {score_of(cheapest)}. It costs {cost_of(cheapest)}"
        f"{_saving(best, cheapest)}. Cheapest means: least compute, then fewest numbers, then the better score.",
        cheapest.command,
    )


def _saving(best: Row, cheapest: Row) -> str:
    """Return what share of the best setting's cost a cheaper one has."""
    seconds = cheapest.seconds_per_hour / (best.seconds_per_hour or math.nan)
    time = "" if math.isnan(seconds) else f"{100 * seconds:.3g} % of the compute and "
    return f", {time}{100 * cheapest.size / best.size:.3g} % of the numbers of the best"


def change_in_words(change: Change) -> str:
    """Return what an axis changes, as words."""
    axis, top, worst = change.axis, change.rows[0], change.rows[0]
    for row in change.rows:
        top = row if goodness(row) > goodness(top) else top
        worst = row if goodness(row) < goodness(worst) else worst
    span = f"{top.value:.3f} ({value_of(top, axis)}) to {worst.value:.3f} ({value_of(worst, axis)})"
    alike = [value_of(row, axis) for row in change.rows if row is not top and overlap(row, top)]
    if len(alike) == len(change.rows) - 1:
        return f"{span}: no difference beyond the intervals"
    return f"{span}; not told apart from the best: {', '.join(alike) or 'no other'}"
