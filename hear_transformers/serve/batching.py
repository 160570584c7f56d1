"""Waveforms of all requests -> embeddings, by one thread that gives the network all that waits, up to a batch.

Clips of any lengths share a batch without padding (`embedding.packing`), so an answer does not depend on who shares it.
"""

from __future__ import annotations

import contextlib
import logging
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

from torch import Tensor

from ..audio.clips import Clip
from ..embedding.pipeline import Embedded, Model, embed
from ..errors import HearTransformersError
from .limits import Limits

LOG = logging.getLogger("hear_transformers")


@dataclass(frozen=True, slots=True)
class Reading:
    """How clips are embedded: by what, and whether along time."""

    model: Model
    timestamps: bool = False


@dataclass(slots=True, eq=False)
class Wish:
    """A clip that is to be embedded.

    Attributes
    ----------
    reading : how
    waveform : (samples,) float32 at the model's sample rate
    is_wanted : whether somebody still waits for it
    done : takes the embedding, or why there is none
    """

    reading: Reading
    waveform: Tensor
    is_wanted: Callable[[], bool]
    done: Callable[[Embedded | Exception], None]

    @property
    def seconds(self) -> float:
        """Its duration."""
        return len(self.waveform) / self.reading.model.sample_rate


@dataclass(slots=True, eq=False)
class Batcher:
    """Clips that wait for the network, and the thread that embeds them.

    Parameters
    ----------
    limits : of a batch, and of the audio that waits
    on_batch : called with the number of clips of each batch
    """

    limits: Limits
    on_batch: Callable[[int], None] = lambda n_clips: None
    _waiting: deque[Wish] = field(default_factory=deque)
    _seconds: float = 0.0  # that wait
    _is_closing: bool = False
    _changed: threading.Condition = field(default_factory=threading.Condition)
    _thread: threading.Thread | None = None

    def start(self) -> None:
        """Start the thread."""
        self._thread = threading.Thread(target=self._run, name="embeds", daemon=True)
        self._thread.start()

    @property
    def is_alive(self) -> bool:
        """Whether the thread goes on."""
        return self._thread is not None and self._thread.is_alive()

    @property
    def n_waiting(self) -> int:
        """Number of clips that wait."""
        return len(self._waiting)

    def put(self, wish: Wish) -> None:
        """Add a clip; wait while those before it are as much audio as may be in memory."""
        with self._changed:
            self._changed.wait_for(lambda: not self._waiting or self._seconds <= self.limits.waiting_seconds)
            self._waiting.append(wish)
            self._seconds += wish.seconds
            self._changed.notify_all()

    def close(self) -> None:
        """Finish all clips, and end the thread."""
        with self._changed:
            self._is_closing = True
            self._changed.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _run(self) -> None:
        """Embed what comes, in a thread."""
        while batch := self._take():
            readings = dict.fromkeys(wish.reading for wish in batch)
            for reading in readings:
                self._embed(reading, [wish for wish in batch if wish.reading == reading])

    def _take(self) -> list[Wish]:
        """Wait for clips, and a moment for more of them; return none when all is done."""
        batch: list[Wish] = []
        while not batch:
            with self._changed:
                self._changed.wait_for(lambda: self._waiting or self._is_closing)
                if not self._waiting:
                    return []
                self._changed.wait_for(self._is_enough, self.limits.wait_ms / 1000.0)
                while self._waiting and len(batch) < self.limits.batch:
                    batch.append(self._waiting.popleft())
                    self._seconds -= batch[-1].seconds
                self._changed.notify_all()
            batch = [wish for wish in batch if wish.is_wanted()]
        return batch

    def _is_enough(self) -> bool:
        return len(self._waiting) >= self.limits.batch or self._is_closing

    def _embed(self, reading: Reading, wishes: list[Wish]) -> None:
        """Embed clips that are read alike; whatever happens, each of them gets an answer."""
        self.on_batch(len(wishes))
        left = deque(wishes)
        try:
            clips = (Clip(waveform=wish.waveform) for wish in wishes)
            with contextlib.closing(embed(reading.model, clips, timestamps=reading.timestamps)) as finished:
                for embedded in finished:
                    left.popleft().done(embedded if embedded.error is None else embedded.error)
        except Exception as error:
            if not isinstance(error, HearTransformersError):
                LOG.exception("a batch failed")
            for wish in left:
                wish.done(error)
