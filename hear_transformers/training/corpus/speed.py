"""How fast the corpus is made: seconds of sound per second of one core."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator

import numpy as np
from threadpoolctl import threadpool_limits

from . import notes, scenes, speech
from .mels import compute_log_mels
from .signals import LENGTH, RATE, Dice, Signal

SECONDS = LENGTH / RATE  # of a clip


def times_real_time(make: Callable[[int], Signal], clips: int, mels: bool) -> float:
    """Measure by the time of the processor, log-mels included if wanted; the first clip does not count."""
    make(clips)
    compute_log_mels(np.zeros((1, LENGTH), np.float32))
    start = time.process_time()
    made = np.stack([make(i) for i in range(clips)])
    if mels:
        compute_log_mels(made)
    return SECONDS * clips / (time.process_time() - start)


def measure(clips: int, with_speech: bool) -> Iterator[tuple[str, float]]:
    """Measure every kind of clips with its log-mels, then every family alone.

    Parameters
    ----------
    clips : of each
    with_speech : whether eSpeak NG is there to measure

    Yields
    ------
    name, times : what was measured, times real time on one core
    """
    kinds: dict[str, Callable[[int], Signal]] = {
        "scenes": lambda i: scenes.scene(0, 0, i)[0],
        "speech": lambda i: speech.utterance(0, 0, i)[0],
        "notes": lambda i: notes.clip_of_notes(0, 0, i)[0],
    }
    if not with_speech:
        del kinds["speech"]
    with threadpool_limits(1):
        for name, make in kinds.items():
            yield name, times_real_time(make, clips, mels=True)
        for family in scenes.FAMILIES:
            yield family.__name__, times_real_time(lambda i, family=family: family(Dice(i)), clips, mels=False)  # type: ignore[misc]
