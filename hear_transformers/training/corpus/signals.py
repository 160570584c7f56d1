"""Building blocks of the synthesis: random draws, noise, filters, envelopes, oscillators, events in time.

Every signal is float32 at 32 kHz. A clip has two seconds; all random draws come from one seeded `Dice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Signal = NDArray[np.float32]

RATE = 32_000  # Hz, of the log-mel dialect of the network and its teacher
LENGTH = 2 * RATE  # samples of a clip
TOP_HZ = 15_500.0  # highest partial: just below half the sampling rate
TIMES: Signal = (np.arange(LENGTH) / RATE).astype(np.float32)  # s
FREQS: Signal = fft.rfftfreq(LENGTH, 1 / RATE).astype(np.float32)  # Hz
TINY = 1e-6  # keeps a division by the level of digital silence finite


class Dice:
    """Random draws of a synthesis, from one seeded generator."""

    def __init__(self, *seed: int) -> None:
        self.rng = np.random.default_rng(seed)

    def uniform(self, low: float, high: float) -> float:
        """Draw a number uniformly."""
        return float(self.rng.uniform(low, high))

    def log_uniform(self, low: float, high: float) -> float:
        """Draw a positive number, log-uniformly."""
        return float(np.exp(self.rng.uniform(np.log(low), np.log(high))))

    def integer(self, low: int, high: int) -> int:
        """Draw a whole number, both ends included."""
        return int(self.rng.integers(low, high, endpoint=True))

    def chance(self, probability: float) -> bool:
        """Return True with this probability."""
        return bool(self.rng.random() < probability)

    def uniforms(self, low: float, high: float, n: int) -> NDArray[np.float64]:
        """Draw `n` numbers uniformly."""
        return self.rng.uniform(low, high, n)

    def log_uniforms(self, low: float, high: float, n: int) -> NDArray[np.float64]:
        """Draw `n` positive numbers, log-uniformly."""
        return np.exp(self.rng.uniform(np.log(low), np.log(high), n))

    def noise(self, n: int = LENGTH) -> Signal:
        """Draw white noise."""
        return self.rng.standard_normal(n, dtype=np.float32)


def normalise_level(signal: Signal) -> Signal:
    """Scale to a root mean square of 1."""
    return signal / np.float32(np.sqrt(np.mean(np.square(signal))) + TINY)


def db_to_gain(gain_db: float) -> np.float32:
    """Convert a gain in dB to a factor."""
    return np.float32(10 ** (gain_db / 20))


def filter_clip(signal: Signal, response: NDArray[np.floating]) -> Signal:
    """Multiply the spectrum of a whole clip by a response at `FREQS`."""
    return fft.irfft(fft.rfft(signal) * response.astype(np.float32), LENGTH)


def coloured_noise(dice: Dice, exponent: float) -> Signal:
    """Make noise of unit level whose power falls with frequency to the power of `exponent`; flat below 20 Hz."""
    response = np.maximum(FREQS, 20.0) ** np.float32(-exponent / 2)
    return normalise_level(filter_clip(dice.noise(), response))


def resonance(centre: float, bandwidth: float, freqs: Signal = FREQS) -> Signal:
    """Compute the magnitude response of a second-order resonance, 1 at its centre."""
    detuning = (freqs**2 - centre**2) / (np.maximum(freqs, 1.0) * bandwidth)
    return (1.0 / np.sqrt(1.0 + detuning**2)).astype(np.float32)


def resonances(dice: Dice, n: int, low: float, high: float, quality: tuple[float, float]) -> Signal:
    """Sum `n` random resonances between `low` and `high` Hz, with centre / bandwidth within `quality`."""
    response = np.zeros_like(FREQS)
    for centre in dice.log_uniforms(low, high, n):
        response += np.float32(dice.uniform(0.2, 1.0)) * resonance(centre, centre / dice.log_uniform(*quality))
    return response


def low_pass(cutoff: float, order: int) -> Signal:
    """Compute a Butterworth-like magnitude response."""
    return (1.0 / np.sqrt(1.0 + (FREQS / cutoff) ** (2 * order))).astype(np.float32)


def wander(dice: Dice, rate: float, n: int = LENGTH) -> Signal:
    """Make a slow random curve: `rate` standard normal points per second, interpolated linearly."""
    times = TIMES[:n] * rate
    points = dice.rng.standard_normal(int(times[-1]) + 2)
    return np.interp(times, np.arange(len(points)), points).astype(np.float32)


def bends(dice: Dice, n_points: int, low: float, high: float, n: int = LENGTH) -> Signal:
    """Make a piecewise linear curve through `n_points` random heights."""
    heights = dice.uniforms(low, high, n_points)
    return np.interp(np.linspace(0, n_points - 1, n), np.arange(n_points), heights).astype(np.float32)


def envelope(n: int, attack: float, decay: float, sustain: float, release: float) -> Signal:
    """Make an envelope: linear attack, exponential decay to `sustain`, linear release that ends with the signal (s)."""
    times = np.arange(n, dtype=np.float32) / RATE
    rise = np.minimum(times / max(attack, 1e-3), 1.0)
    fall = np.minimum((n / RATE - times) / max(release, 1e-3), 1.0)
    body = sustain + (1.0 - sustain) * np.exp(-np.maximum(times - attack, 0.0) / max(decay, 1e-3))
    return (rise * fall * body).astype(np.float32)


def partials(
    dice: Dice, frequency: NDArray[np.floating], ratios: NDArray[np.floating], amplitudes: NDArray[np.floating]
) -> Signal:
    """Sum sines at multiples of a gliding frequency, each with a random phase.

    Parameters
    ----------
    frequency : (samples,) in Hz
    ratios : (partials,) multiples of the frequency; those above `TOP_HZ` are dropped
    amplitudes : (partials,), or (partials, points) evenly over the signal
    """
    n = len(frequency)
    cycles = np.cumsum(frequency / RATE, dtype=np.float64)
    total = np.zeros(n, np.float32)
    audible = ratios * float(frequency.max()) < TOP_HZ
    for ratio, amplitude in zip(ratios[audible], amplitudes[audible], strict=True):
        phase = cycles * ratio + dice.rng.random()
        # Whole cycles are removed in 64 bits, as sines in 32 bits are three times as fast.
        wave = np.sin(np.float32(2 * np.pi) * (phase - np.floor(phase)).astype(np.float32))
        if np.ndim(amplitude):
            amplitude = np.interp(np.linspace(0, len(amplitude) - 1, n), np.arange(len(amplitude)), amplitude)
        total += (amplitude * wave).astype(np.float32)
    return total


def place(events: Callable[[int], Signal], onsets: Sequence[float] | NDArray[np.floating]) -> Signal:
    """Add events to a clip of silence: `events(i)` starts at onset i (s)."""
    clip = np.zeros(LENGTH, np.float32)
    for i, onset in enumerate(onsets):
        start = int(onset * RATE)
        if 0 <= start < LENGTH:
            event = events(i)[: LENGTH - start]
            clip[start : start + len(event)] += event
    return clip


def regular_onsets(dice: Dice, rate: float, jitter: float, most: int = 200) -> list[float]:
    """Draw the onsets (s) of an event that repeats about `rate` times per second."""
    onsets: list[float] = []
    time = dice.uniform(0.0, min(0.3, 1 / rate))
    while time < LENGTH / RATE and len(onsets) < most:
        onsets.append(time)
        time += max(0.004, (1.0 + jitter * float(dice.rng.standard_normal())) / rate)
    return onsets


def poisson_onsets(dice: Dice, rate: float, most: int = 200) -> NDArray[np.float64]:
    """Draw the onsets (s) of an event that occurs `rate` times per second on average, at least once."""
    n = min(most, max(1, int(dice.rng.poisson(rate * LENGTH / RATE))))
    return np.sort(dice.uniforms(0.0, LENGTH / RATE, n))
