"""Notes of every key of a piano in timbres that no training has: a measure of pitch.

The corpus draws its instruments at random; these are fixed, and made in other ways. Classifiers learn on all timbres
but one and are asked for that one, so that neither they nor the networks have heard it.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Signal = NDArray[np.float64]

KEYS = range(21, 109)
"""MIDI numbers of the keys of a piano, A0 to C8."""

LEVELS_DB, LENGTHS = (-30.0, -12.0), (0.4, 0.9)
"""Between which the level of a note, in dB of full scale, and its length in s are drawn."""

SECONDS = 1.0
NOISE_DB = -60.0
"""Level of the white noise in every clip, of full scale."""

MOST_PARTIALS = 40
HIGHEST = 0.45
"""Highest frequency of a partial, as a part of the sample rate."""

FADE_SECONDS = 0.03
"""At the end of a note, so that it does not click."""

SEED = 3_000_017


def steady(numbers: Signal, times: Signal) -> Signal:
    """Return an envelope that stays."""
    return np.ones((len(numbers), len(times)))


@dataclass(frozen=True, slots=True, kw_only=True)
class Timbre:
    """A sum of partials.

    Attributes
    ----------
    levels : numbers of partials, frequency of each in Hz -> amplitudes
    envelopes : numbers of partials, times in s -> (partials, times)
    attack : in s
    stiffness : by which partials are stretched, as those of a string are (Fletcher 1964)
    vibrato : largest change of the frequency, as a part of it
    """

    levels: Callable[[Signal, Signal], Signal]
    envelopes: Callable[[Signal, Signal], Signal] = steady
    attack: float = 0.01
    stiffness: float = 0.0
    vibrato: float = 0.0


VIBRATO_HZ = 5.5
DRAWBARS = (1, 2, 3, 4, 6, 8)
"""Partials of an organ's stops of 8', 4', 2 2/3', 2', 1 1/3' and 1'."""

FORMANTS = ((730.0, 90.0), (1090.0, 110.0), (2440.0, 170.0))
"""Frequency and bandwidth in Hz of a man's vowel in "father" (Peterson and Barney 1952; bandwidths: Fant 1972)."""


def vowel(numbers: Signal, hertz: Signal) -> Signal:
    """Return the levels of a sawtooth behind the resonances of a vowel; a fiftieth passes beside them."""
    resonances = (1 / np.hypot(1, (hertz - centre) / (width / 2)) for centre, width in FORMANTS)
    return (sum(resonances, np.zeros_like(hertz)) + 0.02) / numbers


TIMBRES: Mapping[str, Timbre] = {
    "square": Timbre(levels=lambda numbers, hertz: (numbers % 2) / numbers),
    "triangle": Timbre(levels=lambda numbers, hertz: (numbers % 2) / numbers**2, attack=0.05, vibrato=0.004),
    "organ": Timbre(levels=lambda numbers, hertz: np.isin(numbers, DRAWBARS).astype(float)),
    "vowel": Timbre(levels=vowel, attack=0.04, vibrato=0.006),
    # Partials swell one after the other, as in brass (Risset 1965).
    "brass": Timbre(
        levels=lambda numbers, hertz: np.exp(-numbers / 6),
        envelopes=lambda numbers, times: -np.expm1(-times / (0.02 * numbers[:, None])),
        attack=0.02,
    ),
    "string": Timbre(
        levels=lambda numbers, hertz: np.abs(np.sin(np.pi * numbers / 7)) / numbers,
        envelopes=lambda numbers, times: np.exp(-times * (1.5 + 0.5 * numbers[:, None])),
        attack=0.002,
        stiffness=3e-4,
    ),
}


def hertz_of(key: int) -> float:
    """Return the frequency of a key in Hz, in equal temperament with A4 at 440 Hz."""
    return float(440.0 * 2.0 ** ((key - 69) / 12))


def note(timbre: Timbre, hertz: float, seconds: float, sample_rate: int, phases: Signal) -> Signal:
    """Return a note of the largest value 1: (samples,)."""
    times = np.arange(round(seconds * sample_rate)) / sample_rate
    numbers = np.arange(1.0, MOST_PARTIALS + 1)
    places = numbers * hertz * np.sqrt(1 + timbre.stiffness * numbers**2)
    kept = places < HIGHEST * sample_rate
    numbers, places, starts = numbers[kept], places[kept], phases[: kept.sum()]
    wobble = times - timbre.vibrato / (2 * np.pi * VIBRATO_HZ) * np.cos(2 * np.pi * VIBRATO_HZ * times)
    waves = np.sin(2 * np.pi * (places[:, None] * wobble + starts[:, None]))
    sound = timbre.levels(numbers, places) @ (waves * timbre.envelopes(numbers, times))
    sound *= np.minimum(1, times / timbre.attack) * np.minimum(1, (seconds - times) / FADE_SECONDS)
    return sound / np.abs(sound).max()


def notes(sample_rate: int) -> Iterator[tuple[NDArray[np.float32], int, str]]:
    """Yield all clips, the same ones every time: (samples,), key and timbre of each."""
    rng = np.random.default_rng(SEED)
    n_samples = round(SECONDS * sample_rate)
    for name, timbre in TIMBRES.items():
        for key in KEYS:
            level_db, seconds = rng.uniform(*LEVELS_DB), rng.uniform(*LENGTHS)
            sound = note(timbre, hertz_of(key), seconds, sample_rate, rng.random(MOST_PARTIALS))
            clip = 10 ** (NOISE_DB / 20) * rng.standard_normal(n_samples)
            clip[: len(sound)] += 10 ** (level_db / 20) * sound
            yield clip.astype(np.float32), key, name
