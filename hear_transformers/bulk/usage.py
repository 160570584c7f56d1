"""What limited a run: where its time went."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from ..audio.workers import Spent

WORDS = {"decode": "decoding", "resample": "resampling", "network": "the network", "write": "writing"}
"""What may be busy -> its name in words."""

OVERHEAD = "what lies between them: opening, checking, ordering, in one thread"


@dataclass(frozen=True, slots=True)
class Usage:
    """Where the time of a run went.

    A run decodes, computes and writes at the same time. One thread of each device takes audio, runs the network and
    hands over its results: what this thread waits for most limits the run, whatever else is busy.

    Attributes
    ----------
    n_clips : that were embedded
    audio_seconds : their duration
    seconds : that the run took
    spent : on what
    """

    n_clips: int
    audio_seconds: float
    seconds: float
    spent: Spent

    @property
    def clips_per_second(self) -> float:
        """Clips embedded in a second."""
        return self._share(self.n_clips)

    @property
    def hours_per_hour(self) -> float:
        """Hours of audio embedded in an hour."""
        return self._share(self.audio_seconds)

    @property
    def busy(self) -> dict[str, float]:
        """Share of the time in which each was busy, of all its processes; a key for each of `WORDS`."""
        spent = self.spent
        n_readers, reading = (spent.workers, spent.reading) if spent.workers else (spent.devices, spent.waiting)
        busy = {
            "decode": (reading - spent.resampling) / n_readers,
            "resample": spent.resampling / n_readers,
            "network": spent.computing / spent.devices,
            "write": spent.writing / spent.writers,
        }
        return {name: min(1.0, max(0.0, self._share(seconds))) for name, seconds in busy.items()}

    @property
    def limit(self) -> str:
        """What limited the run, in words: "decoding: 15 workers", "the network", "writing"."""
        spent, busy = self.spent, self.busy
        reader = "resample" if busy["resample"] > busy["decode"] else "decode"
        awaited = {
            reader: spent.waiting / spent.devices,
            "network": spent.computing / spent.devices,
            "write": spent.blocked,
        }
        what = max(awaited, key=lambda name: awaited[name])
        if awaited[what] < self.seconds - sum(awaited.values()):
            return OVERHEAD
        if what != reader:
            return WORDS[what]
        workers = f"{spent.workers} worker{'s' if spent.workers > 1 else ''}" if spent.workers else "no workers"
        return f"{WORDS[reader]}: {workers}"

    def _share(self, amount: float) -> float:
        return amount / self.seconds if self.seconds else 0.0

    def __str__(self) -> str:
        """Return all of it as a line."""
        rates = f"{self.clips_per_second:.3g} clips/s, {self.hours_per_hour:.3g} h of audio per hour"
        busy = ", ".join(f"{name} {100.0 * share:.0f} %" for name, share in self.busy.items())
        return f"{rates}; busy: {busy}; limited by {self.limit}"

    def as_record(self) -> dict[str, Any]:
        """Return all of it, ready for JSON."""
        return {
            "clips": self.n_clips,
            "seconds": round(self.seconds, 3),
            "clips_per_second": self.clips_per_second,
            "audio_hours_per_hour": self.hours_per_hour,
            "busy": {name: round(share, 4) for name, share in self.busy.items()},
            "limited_by": self.limit,
        }
