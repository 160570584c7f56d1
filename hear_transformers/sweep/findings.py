"""What the rows of a sweep say: the best setting, what is not told apart from it, what each axis changes."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

from ..comparison.measures import LOWER, MEASURES
from .results import NO_POOL, Row

SHOTS = "clips_per_class"
"""Axis of how many clips are trained on."""

AXES = ("layer", "pool", "framing", "window_ms", "hop_ms", "probe", SHOTS)
"""Of a setting of a model."""


@dataclass(frozen=True, slots=True)
class Change:
    """What one axis changes while the others stay those of the model's best setting.

    Attributes
    ----------
    axis : of `AXES`
    best : setting of the model
    rows : one for each value of the axis, in order
    """

    axis: str
    best: Row
    rows: tuple[Row, ...]


@dataclass(frozen=True, slots=True)
class Finding:
    """What is found for a task by one metric.

    Attributes
    ----------
    task, metric : names
    is_main : whether settings are chosen by the metric
    rows : of both, without those whose score is not defined
    best : row of the best score
    alike : rows whose interval overlaps with that of the best, which is among them
    cheapest : of these, see `cost`
    models : the best row of each model, the best first
    changes : of each model and axis of more than one value
    """

    task: str
    metric: str
    is_main: bool
    rows: tuple[Row, ...]
    best: Row
    alike: tuple[Row, ...]
    cheapest: Row
    models: tuple[Row, ...]
    changes: tuple[Change, ...]


def is_lower_better(metric: str) -> bool:
    """Return whether a metric counts errors: error rates, and what `MEASURES` says so of."""
    return metric.endswith("error_rate") or MEASURES.get(metric, ("", ""))[1] == LOWER


def goodness(row: Row) -> float:
    """Return the score, with the sign that makes more better."""
    return -row.value if is_lower_better(row.metric) else row.value


def cost(row: Row) -> tuple[float, int, float]:
    """Return what makes one setting cheaper than another: compute, then size, and of equals the better score."""
    seconds = row.seconds_per_hour
    return (math.inf if math.isnan(seconds) else seconds, row.size, -goodness(row))


def _rank(row: Row) -> tuple[float, float, int]:
    """Return what makes one setting better than another: the score, and of equals the cheaper one."""
    seconds, size, _ = cost(row)
    return (goodness(row), -seconds, -size)


def interval(row: Row) -> tuple[float, float]:
    """Return the interval of a score, which is the score itself where there is none."""
    ends = (row.low, row.high)
    return (row.value, row.value) if any(map(math.isnan, ends)) else ends


def overlap(one: Row, other: Row) -> bool:
    """Return whether the intervals of two scores have a number in common."""
    (low, high), (least, most) = interval(one), interval(other)
    return low <= most and least <= high


def front(rows: Iterable[Row], price: Callable[[Row], float]) -> list[Row]:
    """Return the Pareto front, the cheapest first: rows that no other beats at their price or below."""
    found: list[Row] = []
    for row in sorted((row for row in rows if price(row) > 0), key=lambda row: (price(row), -goodness(row))):
        if not found or goodness(row) > goodness(found[-1]):
            found.append(row)
    return found


def in_order(axis: str, values: Iterable[object]) -> list[object]:
    """Return the different values of an axis in order: numbers, by size, then words as they come."""

    def place(value: object) -> tuple[bool, float]:
        is_number = isinstance(value, int | float) or (isinstance(value, str) and value.isdecimal())
        return (not is_number, float(str(value)) if is_number else 0.0)

    return sorted(dict.fromkeys(values), key=place)


def same(row: Row, best: Row, but: Sequence[str]) -> bool:
    """Return whether two rows of a model agree but for some axes; to a layer that is a vector no pooling applies."""
    for axis in AXES:
        one, other = getattr(row, axis), getattr(best, axis)
        if axis not in but and one != other and not (axis == "pool" and NO_POOL in (one, other)):
            return False
    return True


def findings_of(rows: Iterable[Row]) -> list[Finding]:
    """Find what the rows say of each task by each metric, tasks in their order and main metrics first.

    Scores that are not defined say nothing. Of a task without main metric the first one is.
    """
    found: dict[str, dict[str, list[Row]]] = {}
    for row in rows:
        if not math.isnan(row.value):
            found.setdefault(row.task, {}).setdefault(row.metric, []).append(row)
    findings = []
    for metrics in found.values():
        main = [metric for metric, of_metric in metrics.items() if of_metric[0].is_main] or [next(iter(metrics))]
        others = [metric for metric in metrics if metric not in main]
        findings += [_find(metrics[metric], is_main=metric in main) for metric in (*main, *others)]
    return findings


def _find(rows: Sequence[Row], *, is_main: bool) -> Finding:
    best = max(rows, key=_rank)
    alike = tuple(row for row in rows if row is best or overlap(row, best))
    of_model: dict[str, list[Row]] = {}
    for row in rows:
        of_model.setdefault(row.model, []).append(row)
    models = sorted((max(each, key=_rank) for each in of_model.values()), key=_rank, reverse=True)
    changes = [change for row in models for change in _changes(of_model[row.model], row)]
    return Finding(
        best.task, best.metric, is_main, tuple(rows), best, alike, min(alike, key=cost), tuple(models), tuple(changes)
    )


def _changes(rows: Sequence[Row], best: Row) -> Iterable[Change]:
    for axis in AXES:
        found = along(rows, best, axis)
        if len(found) > 1:
            yield Change(axis, best, found)


def along(rows: Iterable[Row], best: Row, axis: str, *, but: Sequence[str] = ()) -> tuple[Row, ...]:
    """Return the rows along an axis that agree with a setting in all others.

    Parameters
    ----------
    rows : of one metric of the task
    best : the setting, of whatever metric
    axis : of `AXES`
    but : further axes, of which the best value is taken
    """
    values: dict[object, Row] = {}
    for row in rows:
        if row.model != best.model or not same(row, best, (axis, *but)) or (axis == "pool" and row.pool == NO_POOL):
            continue
        value = getattr(row, axis)
        if value not in values or _rank(row) > _rank(values[value]):
            values[value] = row
    return tuple(values[value] for value in in_order(axis, values))


def free_axes(rows: Iterable[Row], best: Row) -> tuple[str, ...]:
    """Return the axes of which maps of a model take the best value: those of time, if its best framing has but one."""
    times = {(row.framing, row.window_ms, row.hop_ms) for row in rows if row.model == best.model}
    own = [each for each in times if each[0] == best.framing]
    return ("framing", "window_ms", "hop_ms") if len(own) == 1 < len(times) else ()


def by_shots(finding: Finding) -> dict[str, tuple[Row, ...]]:
    """Return scores by clips per class for each model and probe, at its best setting; none where that is no axis."""
    found: dict[tuple[str, str], list[Row]] = {}
    for row in finding.rows:
        found.setdefault((row.model, row.probe), []).append(row)
    lines = {", ".join(key): along(rows, max(rows, key=_rank), SHOTS) for key, rows in found.items()}
    return {name: line for name, line in lines.items() if len(line) > 1}


def curves(finding: Finding, findings: Iterable[Finding]) -> dict[str, dict[str, tuple[Row, ...]]]:
    """Return each metric of a task by layer for each model, at its best setting by the metric of a finding.

    Metrics that no probe has, such as those of clusters, are taken of what computed them.
    """
    found: dict[str, dict[str, tuple[Row, ...]]] = {}
    for other in findings:
        for best in finding.models if other.task == finding.task else ():
            has_probe = any((row.model, row.probe) == (best.model, best.probe) for row in other.rows)
            line = along(other.rows, best, "layer", but=() if has_probe else ("probe",))
            if len(line) > 1:
                found.setdefault(other.metric, {})[best.model] = line
    return found
