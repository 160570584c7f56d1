"""Notes of 88 pitches, several at once, with timbres drawn at random."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from . import effects
from .instruments import timbre
from .mels import FRAMES
from .scenes import audible
from .signals import LENGTH, RATE, Dice, Signal, db_to_gain, normalise_level

LOWEST_PITCH, N_PITCHES = 21, 88  # MIDI numbers of a piano's keys, A0 to C8
CONCERT_PITCH, CONCERT_HZ = 69, 440.0  # A4 (ISO 16)
NOTES_STREAM = 2  # separates the draws of notes from those of scenes and speech
MOST_NOTES = 5
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
    play = timbre(dice)
    for _ in range(dice.integer(1, MOST_NOTES)):
        if dice.chance(0.2):
            play = timbre(dice)
        key = dice.integer(0, N_PITCHES - 1)
        start = dice.integer(0, int(0.7 * LENGTH))
        n = min(int(dice.log_uniform(0.1, 2.0) * RATE), LENGTH - start)
        sound = np.zeros(LENGTH, np.float32)
        sound[start : start + n] = play(pitch_hz(LOWEST_PITCH + key), n)
        pitches[:, key] |= audible(sound)
        clip += db_to_gain(dice.uniform(-9, 0)) * normalise_level(sound)
    clip = effects.record(dice, normalise_level(clip), BAND_LIMITED, NOISE_DB)
    return effects.randomise_level(dice, clip), pitches
