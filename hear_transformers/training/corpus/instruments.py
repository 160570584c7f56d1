"""Notes of instruments with timbres drawn at random: plucked, struck, frequency modulated, blown and bowed."""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial

import numpy as np
from numpy.typing import NDArray

from .families import BAR_RATIOS, TAU
from .signals import (
    LENGTH,
    RATE,
    TIMES,
    TOP_HZ,
    Dice,
    Signal,
    envelope,
    harmonics,
    modes,
    normalise_level,
    place,
)

Timbre = Callable[[float, int], Signal]
"""Makes a note of a frequency in Hz and a number of samples."""

SCALE = (0, 2, 4, 5, 7, 9, 11, 12)  # semitones of a major scale


def _numbers(hz: float, most: int = 24) -> NDArray[np.float64]:
    return np.arange(1.0, min(most, max(1, int(TOP_HZ / hz))) + 1)


def plucked(dice: Dice) -> Timbre:
    """Draw a plucked string after Karplus and Strong (1983).

    Their loop averages two neighbours once per period: harmonic k decays by cos(pi k f / rate) in each, times a loss;
    here every harmonic is computed as the mode that it is, which is in tune at any pitch. The position of the
    pluck takes out harmonics that have a node there.
    """
    loss, position, blend = 1 - dice.log_uniform(1e-3, 3e-2), dice.uniform(0.05, 0.5), dice.uniform(0.3, 1.5)

    def note(hz: float, n: int) -> Signal:
        numbers = _numbers(hz)
        per_period = loss * np.cos(np.minimum(np.pi * numbers * hz / RATE * blend, 1.4))
        decays = -1 / (hz * np.log(per_period))
        amplitudes = np.abs(np.sin(np.pi * numbers * position)) / numbers * dice.uniforms(0.5, 1, len(numbers))
        return modes(dice, numbers * hz, np.maximum(decays, 0.005), amplitudes, n) * envelope(n, 1e-3, 1, 1, 0.02)

    return note


def hammered(dice: Dice) -> Timbre:
    """Draw a struck string: stiff, so that its partials are stretched (Fletcher 1964), high ones decay faster."""
    stiffness, decay, damping = dice.log_uniform(1e-5, 1e-3), dice.log_uniform(0.3, 3), dice.uniform(0.3, 1)
    tilt = dice.uniform(0.8, 2)

    def note(hz: float, n: int) -> Signal:
        numbers = _numbers(hz)
        frequencies = numbers * hz * np.sqrt(1 + stiffness * numbers**2)
        decays = decay * (hz / 440) ** -0.5 * numbers**-damping
        amplitudes = numbers**-tilt * dice.uniforms(0.6, 1, len(numbers))
        return modes(dice, frequencies, decays, amplitudes, n) * envelope(n, 2e-3, 1, 1, 0.03)

    return note


def bar(dice: Dice) -> Timbre:
    """Draw a bar whose second mode is tuned to 3 or 4, or not (Fletcher and Rossing, chapter 19)."""
    ratios = np.array(BAR_RATIOS[:4])
    ratios[1] = dice.rng.choice([2.76, 3.0, 4.0])
    decay, tilt = dice.log_uniform(0.1, 1.5), dice.uniform(0.5, 2)

    def note(hz: float, n: int) -> Signal:
        decays = decay * ratios**-1.0
        return modes(dice, hz * ratios, decays, ratios**-tilt, n) * envelope(n, 1e-3, 1, 1, 0.02)

    return note


def modulated(dice: Dice) -> Timbre:
    """Draw frequency modulation with whole ratios, whose spectrum is harmonic (Chowning 1973)."""
    carrier, modulator = dice.integer(1, 2), dice.integer(1, 4)
    index, fade = dice.log_uniform(0.3, 6), dice.log_uniform(0.05, 1)
    shape = dice.log_uniform(0.003, 0.15), dice.log_uniform(0.1, 1), dice.uniform(0, 1), 0.05
    divisor = 1 if carrier == 1 else (1 if modulator % 2 else 2)  # both at the same multiple of the pitch

    def note(hz: float, n: int) -> Signal:
        base = hz / divisor
        bounded = min(index, max(0.0, (TOP_HZ / base - carrier) / modulator - 1))  # Carson's rule
        depth = np.float32(bounded) * np.exp(TIMES[:n] * np.float32(-1 / fade))
        angle = TAU * np.float32(base) * TIMES[:n]
        wave = np.sin(carrier * angle + depth * np.sin(modulator * angle))
        return wave * envelope(n, *shape)

    return note


def sustained(dice: Dice) -> Timbre:
    """Draw a blown, bowed or electric sound: harmonics with a tilt, formants, vibrato and breath."""
    tilt, odd = dice.uniform(0.5, 2.5), dice.chance(0.25)
    formant_hz, width = dice.log_uniform(300, 4000), dice.uniform(0.3, 1.5)
    vibrato, vibrato_hz = dice.uniform(0, 0.012) * dice.chance(0.5), dice.uniform(4, 7)
    shape = dice.log_uniform(0.01, 0.15), dice.log_uniform(0.1, 1), dice.uniform(0.4, 1), dice.log_uniform(0.02, 0.2)
    breath = np.float32(dice.log_uniform(1e-3, 0.1))

    def note(hz: float, n: int) -> Signal:
        numbers = _numbers(hz)
        octaves = np.log2(numbers * hz / formant_hz)
        amplitudes = numbers**-tilt * (0.3 + np.exp(-np.square(octaves / width)))
        if odd:
            amplitudes[1::2] *= 0.03
        wobble = hz * (1 + np.float32(vibrato) * np.sin(TAU * np.float32(vibrato_hz) * TIMES[:n]))
        return (normalise_level(harmonics(wobble, amplitudes)) + breath * dice.noise(n)) * envelope(n, *shape)

    return note


TIMBRES = (plucked, hammered, bar, modulated, sustained)


def timbre(dice: Dice) -> Timbre:
    """Draw an instrument."""
    return TIMBRES[dice.integer(0, len(TIMBRES) - 1)](dice)


def music(dice: Dice) -> Signal:
    """Music: one or two instruments that play melodies or chords of a scale."""
    tempo = dice.uniform(1.5, 8)  # notes per second
    base = dice.log_uniform(60, 700)
    clip = np.zeros(LENGTH, np.float32)
    for _ in range(dice.integer(1, 2)):
        play = timbre(dice)
        chord = dice.integer(1, 3)
        n = int(dice.uniform(0.5, 2.5) / tempo * RATE)
        onsets = [time for time in np.arange(dice.uniform(0, 0.3), 2, 1 / tempo) if dice.chance(0.85)] or [0.1]
        press = cache(partial(_press, play, base, min(n, LENGTH)))
        pitches = dice.rng.choice(SCALE, (len(onsets), chord))
        clip += normalise_level(place(partial(_chord, press, pitches), onsets))
    return clip


def _press(play: Timbre, base: float, n: int, pitch: int) -> Signal:
    """Play a note some semitones above a base in Hz."""
    return play(base * 2 ** (pitch / 12), n)


def _chord(press: Callable[[int], Signal], pitches: NDArray[np.int64], i: int) -> Signal:
    """Play the notes of a row of pitches together."""
    return np.sum([press(int(pitch)) for pitch in pitches[i]], 0, dtype=np.float32)
