"""Events in time: from probabilities of frames to events, as heareval makes them, and scores equal to sed_eval's."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

MEDIAN_FILTERS_MS, MIN_DURATIONS_MS = (250.0,), (125.0, 250.0)
"""What is tried on validation files (EVENT_POSTPROCESSING_GRID of heareval)."""

THRESHOLD = 0.5
COLLARS = (0.2, 0.05)
"""Seconds by which an onset may be off: those of HEAR's scores."""

SEGMENT_SECONDS = 1.0
"""Length of a segment of the error rate."""


class Event(NamedTuple):
    """A sound in a file: its class, and where it begins and ends, in s."""

    label: str
    start: float
    end: float


Events = Mapping[str, Sequence[Event]]
"""Events of each file."""


class Processing(NamedTuple):
    """How probabilities become events.

    Attributes
    ----------
    median_filter_ms : width of the median filter along time; 0 for none
    min_duration_ms : shortest event, from its first to its last frame
    threshold : probability that the frames of an event exceed
    """

    median_filter_ms: float
    min_duration_ms: float
    threshold: float = THRESHOLD


GRID = tuple(Processing(*each) for each in product(MEDIAN_FILTERS_MS, MIN_DURATIONS_MS))


def events_in(
    probabilities: NDArray[Any], times_ms: NDArray[np.float64], classes: Sequence[str], how: Processing
) -> list[Event]:
    """Find the events of a file, see `runs_in`: each from the centre of its first frame to that of its last."""
    runs = runs_in(probabilities, times_ms, how)
    return [Event(classes[i], float(times_ms[a]) / 1000.0, float(times_ms[b]) / 1000.0) for i, a, b in runs]


def runs_in(probabilities: NDArray[Any], times_ms: NDArray[np.float64], how: Processing) -> list[tuple[int, int, int]]:
    """Find the runs of frames above the threshold, after a median filter, that are long enough, by their beginnings.

    Parameters
    ----------
    probabilities : (times, classes)
    times_ms : (times,) ascending
    how : the filter, the threshold and the shortest event

    Returns
    -------
    runs : class, first frame and last frame of each
    """
    width = round(how.median_filter_ms / float(np.mean(np.diff(times_ms)))) if len(times_ms) > 1 else 0
    smooth = _median_filtered(probabilities, width) if width else probabilities
    found = []
    for number, active in enumerate((smooth > how.threshold).T):
        edges = np.flatnonzero(np.diff(active.astype(np.int8), prepend=0, append=0))
        for first, last in zip(edges[::2].tolist(), (edges[1::2] - 1).tolist(), strict=True):
            if times_ms[last] - times_ms[first] >= how.min_duration_ms:
                found.append((number, first, last))
    return sorted(found, key=lambda run: run[1])


def _median_filtered(probabilities: NDArray[Any], width: int) -> NDArray[Any]:
    from scipy.ndimage import median_filter  # of the extra `train`

    return np.asarray(median_filter(probabilities, size=(width, 1)))


def tuned(
    frames: Mapping[str, tuple[NDArray[Any], NDArray[np.float64]]],
    truth: Events,
    classes: Sequence[str],
    grid: Iterable[Processing] = GRID,
) -> tuple[float, Processing]:
    """Choose the processing with the best onset F1 at 200 ms: -> score, processing; of equals the larger, as heareval.

    Parameters
    ----------
    frames : of each validation file, probabilities (times, classes) and times (times,) in ms
    truth : events of these files
    classes : names
    grid : what is tried
    """
    scores = []
    for how in grid:
        found = {name: events_in(*each, classes, how) for name, each in frames.items()}
        value = onset_f1(truth, found, COLLARS[0])
        scores.append((0.0 if math.isnan(value) else value, how))
    return max(scores)


def onset_f1(truth: Events, found: Events, collar: float) -> float:
    """Compute the F1 of events of the right class whose onset is off by at most `collar` s, matched optimally.

    As sed_eval's event-based metric without offsets, micro-averaged; NaN if there are no events, or none are found.
    """
    hits, n_true, n_found = onset_counts(truth, found, collar).sum(0).tolist()
    return 2.0 * hits / (n_true + n_found) if n_true and n_found else math.nan


def onset_counts(truth: Events, found: Events, collar: float) -> NDArray[np.float64]:
    """Count what `onset_f1` is made of in each file of `found`: (files, 3), that match, true, found."""
    pairs = [(truth.get(name, ()), events) for name, events in found.items()]
    counts = [(_matched(true, events, collar), len(true), len(events)) for true, events in pairs]
    return np.array(counts, float).reshape(-1, 3)


def _matched(truth: Sequence[Event], found: Sequence[Event], collar: float) -> int:
    """Return how many pairs an optimal matching has: of one class along time, the earliest that fits is optimal."""
    hits = 0
    for label in {event.label for event in truth}:
        waiting = sorted(event.start for event in truth if event.label == label)
        for start in sorted(event.start for event in found if event.label == label):
            while waiting and waiting[0] < start and not _is_near(waiting[0], start, collar):
                waiting.pop(0)
            if waiting and _is_near(waiting[0], start, collar):
                waiting.pop(0)
                hits += 1
    return hits


def _is_near(one: float, other: float, collar: float) -> bool:
    return math.fabs(one - other) <= collar


def error_rate(truth: Events, found: Events, segment: float = SEGMENT_SECONDS) -> float:
    """Compute the error rate over segments: substitutions, deletions and insertions beside true labels, as sed_eval.

    A file is as long as its last event, true or found. NaN if there are no true events.
    """
    errors, n_true = segment_counts(truth, found, segment).sum(0).tolist()
    return errors / n_true if n_true else math.nan


def segment_counts(truth: Events, found: Events, segment: float = SEGMENT_SECONDS) -> NDArray[np.float64]:
    """Count what `error_rate` is made of in each file of `found`: (files, 2), errors and true labels of segments."""
    counts = []
    for name, events in found.items():
        pair = truth.get(name, ()), events
        classes = sorted({event.label for each in pair for event in each})
        length = max((math.ceil(event.end / segment) for each in pair for event in each), default=0)
        true, guessed = (_roll(each, classes, length, segment) for each in pair)
        hits, n_each, n_guessed = ((true & guessed).sum(1), true.sum(1), guessed.sum(1))
        # max(a, b) - hits = substitutions, min(a, b) - hits, and deletions or insertions, |a - b|.
        counts.append((int((np.maximum(n_each, n_guessed) - hits).sum()), int(n_each.sum())))
    return np.array(counts, float).reshape(-1, 2)


def _roll(events: Sequence[Event], classes: Sequence[str], length: int, segment: float) -> NDArray[np.bool_]:
    """Return which classes are active in which segment: (segments, classes)."""
    roll = np.zeros((length, len(classes)), bool)
    for event in events:
        roll[math.floor(event.start / segment) : math.ceil(event.end / segment), classes.index(event.label)] = True
    return roll
