"""Building blocks of the synthesis: random draws, noise, filters, envelopes, oscillators, events in time.

Every signal is float32 at 32 kHz. A clip has two seconds; all random draws come from one seeded `Dice`.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy import fft

Signal = NDArray[np.float32]

RATE = 32_000  # Hz, of the log-mel dialect of the network and its teacher
LENGTH = 2 * RATE  # samples of a clip
TOP_HZ = 15_500.0  # highest partial: just below half the sampling rate
TIMES: Signal = (np.arange(LENGTH) / RATE).astype(np.float32)  # s
FREQS: Signal = fft.rfftfreq(LENGTH, 1 / RATE).astype(np.float32)  # Hz
LOG_FREQS: Signal = np.log(np.maximum(FREQS, 20.0))
SOUND_SPEED = 343.0  # m/s in air of 20 degrees Celsius
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


def db_to_gain(gain_db: float | NDArray[np.floating]) -> Any:
    """Convert gains in dB to factors, float32."""
    return np.exp(np.asarray(gain_db, np.float32) * np.float32(np.log(10) / 20))


def filter_clip(signal: Signal, response: NDArray[np.floating]) -> Signal:
    """Multiply the spectrum of a whole clip by a response at `FREQS`."""
    return fft.irfft(fft.rfft(signal) * response.astype(np.float32), LENGTH)


def shaped_noise(dice: Dice, response: NDArray[np.floating]) -> Signal:
    """Make noise of unit level with a magnitude response at `FREQS`: drawn as a spectrum, which saves a transform."""
    response = response.astype(np.float32)
    spectrum = dice.noise(2 * len(FREQS)).view(np.complex64) * response
    # irfft divides by LENGTH; every bin but the outer two counts twice, and has a power of 2 * response**2.
    level = np.sqrt(np.square(response).sum()) * np.float32(2 / LENGTH)
    return fft.irfft(spectrum, LENGTH) / (level + np.float32(TINY))


def colour(exponent: float) -> Signal:
    """Compute the magnitude response of a power that falls with frequency to an exponent; flat below 20 Hz."""
    return np.exp(LOG_FREQS * np.float32(-exponent / 2))


def coloured_noise(dice: Dice, exponent: float) -> Signal:
    """Make noise of unit level whose power falls with frequency to the power of `exponent`; flat below 20 Hz."""
    return shaped_noise(dice, colour(exponent))


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


def stretch(points: NDArray[np.floating], n: int) -> Signal:
    """Interpolate evenly spaced points linearly: (points,) -> (n,); the last one lies behind the end."""
    n_segment = -(-n // (len(points) - 1))
    rise = np.arange(n_segment, dtype=np.float32) / np.float32(n_segment)
    heights = points.astype(np.float32)
    return (heights[:-1, None] + np.diff(heights)[:, None] * rise).reshape(-1)[:n]


def wander(dice: Dice, rate: float, n: int = LENGTH) -> Signal:
    """Make a slow random curve: about `rate` standard normal points per second, interpolated linearly."""
    return stretch(dice.rng.standard_normal(int(rate * n / RATE) + 2), n)


def bends(dice: Dice, n_points: int, low: float, high: float, n: int = LENGTH) -> Signal:
    """Make a piecewise linear curve through `n_points` random heights."""
    return stretch(dice.uniforms(low, high, n_points), n)


def envelope(n: int, attack: float, decay: float, sustain: float, release: float) -> Signal:
    """Make an envelope: linear attack, exponential decay to `sustain`, linear release that ends with the signal (s)."""
    times = np.arange(n, dtype=np.float32) / RATE
    rise = np.minimum(times / max(attack, 1e-3), 1.0)
    fall = np.minimum((n / RATE - times) / max(release, 1e-3), 1.0)
    body = sustain + (1.0 - sustain) * np.exp(-np.maximum(times - attack, 0.0) / max(decay, 1e-3))
    return (rise * fall * body).astype(np.float32)


def phasor(frequency: NDArray[np.floating]) -> NDArray[np.complex64]:
    """Turn at a gliding frequency in Hz: (samples,) -> (samples,)."""
    turns = np.cumsum(frequency, dtype=np.float64) / RATE
    # Whole turns are removed in 64 bits, as sines in 32 bits are three times as fast.
    angles = np.float32(2 * np.pi) * (turns - np.floor(turns)).astype(np.float32)
    wave = np.empty(len(angles), np.complex64)
    wave.real, wave.imag = np.cos(angles), np.sin(angles)
    return wave


def harmonics(frequency: NDArray[np.floating], amplitudes: NDArray[np.floating]) -> Signal:
    """Sum the harmonics of a gliding frequency, as powers of one phasor.

    Parameters
    ----------
    frequency : (samples,) in Hz
    amplitudes : of the harmonics from the first one: (harmonics,), or (harmonics, points) evenly over the signal; those
        that reach `TOP_HZ` are left out
    """
    n = len(frequency)
    first = phasor(frequency)
    power = first.copy()
    total = np.zeros(n, np.float32)
    for amplitude in amplitudes[: int(TOP_HZ / float(frequency.max()))]:
        if np.any(amplitude):
            total += (stretch(amplitude, n) if np.ndim(amplitude) else np.float32(amplitude)) * power.imag
        power *= first
    return total


MODE_BLOCK = 256  # samples in which modes are computed


def modes(
    dice: Dice,
    frequencies: NDArray[np.floating],
    decays: NDArray[np.floating] | float,
    amplitudes: NDArray[np.floating],
    n: int,
) -> Signal:
    """Sum decaying sines of constant frequency with random phases, the response of a body to an impact.

    A decaying sine is the product of what it is at the start of a block and what it does within any block, so that the
    sum is one product of matrices.

    Parameters
    ----------
    frequencies : (modes,) in Hz; those above `TOP_HZ` are left out
    decays : (modes,) or of all, s to 1/e
    amplitudes : (modes,)
    n : samples
    """
    audible = frequencies < TOP_HZ
    rates = (2j * np.pi * frequencies - 1 / (np.zeros_like(frequencies) + decays))[audible] / RATE  # per sample
    phases = 2 * np.pi * dice.rng.random(len(rates))
    blocks = np.arange(0, n, MODE_BLOCK)
    starts = np.exp(rates * blocks[:, None] + 1j * phases) * amplitudes[audible]  # (blocks, modes)
    within = np.exp(rates[:, None] * np.arange(MODE_BLOCK))  # (modes, samples of a block)
    left = np.concatenate([starts.real, -starts.imag], 1).astype(np.float32)
    right = np.concatenate([within.real, within.imag]).astype(np.float32)
    return (left @ right).reshape(-1)[:n]


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
