"""Progress of a long run where there is no terminal, so that the log of a batch job speaks."""

from __future__ import annotations

import time
from collections.abc import Callable

import click

FIRST_SECONDS = 5.0
"""When the first line of progress is printed: soon, so that a wrong run is noticed."""

EVERY_SECONDS = 30.0
EVERY_SHARE = 0.01
"""Time and share of the work between two lines, whichever is longer."""


class LinesOfProgress:
    """Prints lines such as "1200/9000 files, 2 failed, 3.1 h of audio, 95 x real time, 0:04:10 left" on stderr.

    Parameters
    ----------
    total : number of what is counted
    unit : what is counted, in the plural
    clock : time in s
    """

    def __init__(self, total: int, unit: str, clock: Callable[[], float] = time.monotonic) -> None:
        self.total = total
        self.unit = unit
        self.clock = clock
        self.began = clock()
        self.done = self.failed = self.worked = 0
        self.seconds = 0.0  # of audio
        self.next_time, self.next_done = self.began + FIRST_SECONDS, 1.0

    def start(self, what: str) -> None:
        """Print that the work begins."""
        click.echo(f"{what}: {self.total} {self.unit}", err=True)

    def update(self, *, failed: bool = False, worked: bool = True, seconds: float = 0.0) -> None:
        """Count one more, and print a line if it is time.

        Parameters
        ----------
        failed : it failed
        worked : it took time, so that it tells how long the others will
        seconds : duration of its audio
        """
        now = self.clock()
        self.done += 1
        self.failed += failed
        self.worked += worked
        self.seconds += seconds
        if now >= self.next_time and self.done >= self.next_done and self.done < self.total:
            self.next_time, self.next_done = now + EVERY_SECONDS, self.done + EVERY_SHARE * self.total
            elapsed = now - self.began
            left = f", {clock_time(elapsed / self.worked * (self.total - self.done))} left" if self.worked else ""
            click.echo(self._line(elapsed) + left, err=True)

    def finish(self) -> None:
        """Print the last line."""
        elapsed = self.clock() - self.began
        click.echo(f"{self._line(elapsed)}, {clock_time(elapsed)} in all", err=True)

    def _line(self, elapsed: float) -> str:
        parts = [f"{self.done}/{self.total} {self.unit}", f"{self.failed} failed"]
        if self.seconds and elapsed:
            parts += [f"{self.seconds / 3600.0:.3g} h of audio", f"{self.seconds / elapsed:.3g} x real time"]
        return ", ".join(parts)


def clock_time(seconds: float) -> str:
    """Write a duration as hours, minutes and seconds: "1:02:03"."""
    minutes, seconds = divmod(round(seconds), 60)
    return f"{minutes // 60}:{minutes % 60:02d}:{seconds:02d}"
