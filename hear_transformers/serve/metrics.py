"""Counters, gauges and histograms in Prometheus' text format, version 0.0.4, without its client library."""

from __future__ import annotations

import threading
from bisect import bisect_left
from collections.abc import Callable, Iterator, Sequence

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

PREFIX = "hear_transformers"

LATENCIES = (0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0)
"""Upper bounds of the histogram of seconds."""

SIZES = (1, 2, 4, 8, 16, 32, 64, 128)
"""Upper bounds of the histogram of clips in a batch."""

Labels = tuple[tuple[str, str], ...]


class Counter:
    """A number for each set of labels, which only grows."""

    kind = "counter"

    def __init__(self) -> None:
        self._values: dict[Labels, float] = {}
        self._changing = threading.Lock()

    def add(self, amount: float = 1.0, **labels: str) -> None:
        """Add to the number of some labels."""
        key = tuple(sorted(labels.items()))
        with self._changing:
            self._values[key] = self._values.get(key, 0.0) + amount

    def lines(self, name: str) -> Iterator[str]:
        """Yield its samples."""
        with self._changing:
            values = dict(self._values) or {(): 0.0}
        yield from (_sample(name, labels, value) for labels, value in sorted(values.items()))


class Gauge:
    """A number that is looked at when it is asked for."""

    kind = "gauge"

    def __init__(self, look: Callable[[], float]) -> None:
        self._look = look

    def lines(self, name: str) -> Iterator[str]:
        """Yield its sample."""
        yield _sample(name, (), self._look())


class Histogram:
    """How many of some numbers are at most each of several bounds.

    Parameters
    ----------
    bounds : ascending
    """

    kind = "histogram"

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = bounds
        self._values: dict[Labels, tuple[list[int], float]] = {}
        self._changing = threading.Lock()

    def observe(self, value: float, **labels: str) -> None:
        """Count a number."""
        key = tuple(sorted(labels.items()))
        with self._changing:
            counts, total = self._values.get(key) or ([0] * (len(self._bounds) + 1), 0.0)
            counts[bisect_left(self._bounds, value)] += 1
            self._values[key] = counts, total + value

    def lines(self, name: str) -> Iterator[str]:
        """Yield its samples: cumulative counts, sum and number."""
        with self._changing:
            values = {labels: ([*counts], total) for labels, (counts, total) in self._values.items()}
        for labels, (counts, total) in sorted(values.items()):
            below = 0
            for bound, count in zip((*map(str, self._bounds), "+Inf"), counts, strict=True):
                below += count
                yield _sample(f"{name}_bucket", (*labels, ("le", bound)), below)
            yield _sample(f"{name}_sum", labels, total)
            yield _sample(f"{name}_count", labels, below)


class Metrics:
    """What a server counts.

    Parameters
    ----------
    queue : looks at the number of requests that are accepted and not answered
    waiting : looks at the number of decoded clips that wait for the network
    """

    def __init__(self, queue: Callable[[], float], waiting: Callable[[], float]) -> None:
        self.requests = Counter()
        self.rejections = Counter()
        self.audio_seconds = Counter()
        self.decoder_deaths = Counter()
        self.latency = Histogram(LATENCIES)
        self.batch_clips = Histogram(SIZES)
        self._all: tuple[tuple[str, str, Counter | Gauge | Histogram], ...] = (
            ("requests_total", "Answered requests by endpoint and status.", self.requests),
            ("rejections_total", "Refused requests by reason.", self.rejections),
            ("audio_seconds_total", "Seconds of audio embedded.", self.audio_seconds),
            ("decoder_deaths_total", "Decoding processes that ended or were killed at a file.", self.decoder_deaths),
            ("queue_length", "Requests accepted and not answered.", Gauge(queue)),
            ("waiting_clips", "Decoded clips that wait for the network.", Gauge(waiting)),
            ("request_seconds", "Seconds from a request to its answer, by endpoint.", self.latency),
            ("batch_clips", "Clips that the network was given at once.", self.batch_clips),
        )

    def text(self) -> str:
        """Return all of it as Prometheus reads it."""
        lines: list[str] = []
        for name, about, metric in self._all:
            name = f"{PREFIX}_{name}"
            lines += [f"# HELP {name} {about}", f"# TYPE {name} {metric.kind}", *metric.lines(name)]
        return "\n".join(lines) + "\n"


def _sample(name: str, labels: Labels, value: float) -> str:
    """Format one sample; labels are words of ours, which need no escapes."""
    shown = ",".join(f'{key}="{text}"' for key, text in labels)
    return f"{name}{{{shown}}} {value:.15g}" if shown else f"{name} {value:.15g}"
