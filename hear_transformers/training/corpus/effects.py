"""The effects of recording: equaliser, narrow bands, rooms, saturation, noise, silence, level.

Probabilities and ranges come from trials of the recipe; none was chosen on the data of `measure`.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy import fft

from .signals import FREQS, LENGTH, RATE, TINY, Dice, Signal, coloured_noise, db_to_gain, low_pass, normalise_level

BAND_LIMITS = (3_400.0, 3_900.0, 5_500.0, 7_800.0)  # Hz: telephone, and half of 8, 11 and 16 kHz less some slope
EQ_OCTAVES = np.linspace(5, 14, 8)  # of 1 Hz: 32 Hz to 16 kHz
EQ_SPREAD_DB = 5.0
LOG_FREQS = np.log2(np.maximum(FREQS, 30.0))


def record(dice: Dice, signal: Signal, band_limited: float, noise_db: tuple[float, float]) -> Signal:
    """Pass a clip through a random recording chain.

    Parameters
    ----------
    dice : of the clip
    signal : (LENGTH,)
    band_limited : probability of a narrow band
    noise_db : lowest and highest level of the noise in half of the clips, relative to the clip
    """
    spectrum = fft.rfft(signal) * equaliser(dice, band_limited)
    if dice.chance(0.35):
        spectrum *= fft.rfft(room(dice))
    clip = fft.irfft(spectrum, LENGTH)
    if dice.chance(0.05):
        clip = np.tanh(normalise_level(clip) * np.float32(dice.uniform(0.5, 3.0)))
    clip = normalise_level(clip)
    if dice.chance(0.5):
        clip = clip + db_to_gain(dice.uniform(*noise_db)) * coloured_noise(dice, dice.uniform(-0.5, 2.5))
    return clip


def equaliser(dice: Dice, band_limited: float) -> Signal:
    """Draw a response: any of a smooth random curve, a narrow band and a high-pass."""
    response: NDArray[np.floating] = np.ones_like(FREQS)
    if dice.chance(0.6):
        gains_db = dice.rng.normal(0.0, EQ_SPREAD_DB, len(EQ_OCTAVES))
        response = 10 ** (np.interp(LOG_FREQS, EQ_OCTAVES, gains_db) / 20)
    if dice.chance(band_limited):
        response = response * low_pass(float(dice.rng.choice(BAND_LIMITS)), order=24)
    if dice.chance(0.15):
        cutoff = dice.uniform(60.0, 400.0)
        response = response / np.sqrt(1.0 + (cutoff / np.maximum(FREQS, 1.0)) ** 4)
    return response.astype(np.float32)


def room(dice: Dice) -> Signal:
    """Draw an impulse response: the direct sound, then noise that decays by 60 dB in 80 ms to 1.5 s."""
    decay_s = dice.log_uniform(0.08, 1.5)
    delay = int(dice.uniform(0.0, 0.03) * RATE)
    n = min(int(min(1.2, decay_s) * RATE), LENGTH - delay)
    tail = dice.noise(n) * np.exp(np.float32(-np.log(1e3) / (decay_s * RATE)) * np.arange(n, dtype=np.float32))
    response = np.zeros(LENGTH, np.float32)
    response[0] = 1.0
    response[delay : delay + n] += tail * np.float32(dice.uniform(0.005, 0.08))
    return response


def randomise_level(dice: Dice, signal: Signal) -> Signal:
    """Scale a clip to a random peak of -25 to 0 dB."""
    return signal / np.float32(np.abs(signal).max() + TINY) * db_to_gain(dice.uniform(-25.0, 0.0))
