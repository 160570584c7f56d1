"""Notes of 88 pitches, several at once, with timbres drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import effects
from .mels import FRAME_TIMES, FRAMES
from .signals import LENGTH, RATE, TOP_HZ, Dice, Signal, envelope, normalise_level, partials

LOWEST_PITCH, N_PITCHES = 21, 88  # MIDI numbers of a piano's keys, A0 to C8
CONCERT_PITCH, CONCERT_HZ = 69, 440.0  # A4 (ISO 16)
NOTES_STREAM = 2  # separates the draws of notes from those of scenes and speech
BAND_LIMITED = 0.1
NOISE_DB = (-60.0, -20.0)

Pitches = NDArray[np.uint8]


def pitch_hz(pitch: int) -> float:
    """Return the frequency of a MIDI number, in equal temperament."""
    return float(CONCERT_HZ * 2 ** ((pitch - CONCERT_PITCH) / 12))


def clip_of_notes(seed: int, step: int, index: int) -> tuple[Signal, Pitches]:
    """Synthesise two seconds of notes; the same arguments give the same samples.

    Parameters
    ----------
    seed : of the corpus
    step, index : which batch, which clip of it

    Returns
    -------
    waveform : (LENGTH,) in [-1, 1] at `RATE`
    pitches : (FRAMES, N_PITCHES) 1 where a key sounds
    """
    dice = Dice(seed, NOTES_STREAM, step, index)
    clip = np.zeros(LENGTH, np.float32)
    pitches = np.zeros((FRAMES, N_PITCHES), np.uint8)
    for _ in range(dice.integer(1, 4)):
        key = dice.integer(0, N_PITCHES - 1)
        start, seconds = dice.uniform(0, 1.2), dice.uniform(0.2, 1.2)
        sound = note(dice, pitch_hz(LOWEST_PITCH + key), int(seconds * RATE))[: LENGTH - int(start * RATE)]
        clip[int(start * RATE) :][: len(sound)] += sound
        pitches[(start <= FRAME_TIMES) & (start + seconds > FRAME_TIMES), key] = 1
    clip = effects.record(dice, normalise_level(clip), BAND_LIMITED, NOISE_DB)
    return effects.randomise_level(dice, clip), pitches


def note(dice: Dice, frequency: float, n: int) -> Signal:
    """Make a note of harmonics."""
    numbers = np.arange(1.0, min(24, max(1, int(TOP_HZ / frequency))) + 1)
    wave = partials(dice, np.full(n, frequency), numbers, numbers ** -dice.uniform(0.5, 2.5))
    return wave * envelope(n, dice.log_uniform(0.002, 0.1), dice.log_uniform(0.1, 1), dice.uniform(0.2, 1), 0.05)
