"""The effects of rooms and recorders: reverberation, equaliser, narrow bands, codecs, noise, hum, clipping, level.

Probabilities and ranges come from trials of the recipe or from the sources named here; none was chosen on real audio.
"""

from __future__ import annotations

import io

import numpy as np
import soundfile
from numpy.typing import NDArray
from scipy import signal

from .mels import FRAMES, HOP
from .signals import (
    FREQS,
    LENGTH,
    RATE,
    SOUND_SPEED,
    TINY,
    Dice,
    Signal,
    coloured_noise,
    db_to_gain,
    filter_clip,
    harmonics,
    low_pass,
    normalise_level,
    stretch,
)

BAND_LIMITS = (3_400.0, 3_900.0, 5_500.0, 7_800.0)  # Hz: telephone, and half of 8, 11 and 16 kHz less some slope
EQ_OCTAVES = np.linspace(5, 14, 8)  # of 1 Hz: 32 Hz to 16 kHz
EQ_SPREAD_DB = 5.0
LOG_FREQS = np.log2(np.maximum(FREQS, 30.0))

SABINE = 0.161  # s/m, reverberation time * absorbing area / volume (Kuttruff, Room Acoustics, section 5.1)
CROSSOVER = 2_000.0  # Hz above which a room's reverberation is shorter

CODECS = tuple(
    (name, subtype)
    for name, subtype in (("MP3", "MPEG_LAYER_III"), ("OGG", "VORBIS"))
    if subtype in soundfile.available_subtypes(name)
)
"""Lossy formats that this libsndfile writes."""

MU = 255.0  # of the telephone's 8 bits (ITU-T G.711)


def record(dice: Dice, clip: Signal, band_limited: float, noise_db: tuple[float, float]) -> Signal:
    """Pass a clip through a random room and recording chain.

    Parameters
    ----------
    dice : of the clip
    clip : (LENGTH,)
    band_limited : probability of a narrow band
    noise_db : lowest and highest level of the noise in half of the clips, relative to the clip
    """
    clip = filter_clip(clip, equaliser(dice, band_limited))
    if dice.chance(0.4):
        clip = signal.fftconvolve(clip, np.trim_zeros(room(dice), "b"))[:LENGTH]
    clip = normalise_level(clip)
    if dice.chance(0.1):
        clip = saturated(dice, clip)
    if dice.chance(0.5):
        clip = clip + db_to_gain(dice.uniform(*noise_db)) * coloured_noise(dice, dice.uniform(-0.5, 2.5))
    if dice.chance(0.1):
        clip = clip + db_to_gain(dice.uniform(-45, -15)) * mains_hum(dice)
    if dice.chance(0.1):
        clip = automatic_gain(dice, clip)
    if dice.chance(0.08):
        clip = coded(dice, clip)
    return clip


def equaliser(dice: Dice, band_limited: float) -> Signal:
    """Draw a response: any of a smooth random curve, a narrow band and a high-pass."""
    response: NDArray[np.floating] = np.ones_like(FREQS)
    if dice.chance(0.6):
        gains_db = dice.rng.normal(0.0, EQ_SPREAD_DB, len(EQ_OCTAVES))
        response = db_to_gain(np.interp(LOG_FREQS, EQ_OCTAVES, gains_db))
    if dice.chance(band_limited):
        response = response * low_pass(float(dice.rng.choice(BAND_LIMITS)), order=24)
    if dice.chance(0.15):
        cutoff = dice.uniform(60.0, 400.0)
        response = response / np.sqrt(1.0 + (cutoff / np.maximum(FREQS, 1.0)) ** 4)
    return response.astype(np.float32)


def room(dice: Dice) -> Signal:
    """Draw the impulse response of a box: direct sound, first reflections, and a tail that is darker than they are.

    The reflections at the six walls are those of mirrored sources (Allen and Berkley 1979), the time in which the tail
    decays by 60 dB is Sabine's; above `CROSSOVER` it is shorter, as walls and air absorb more there.
    """
    sizes = [dice.log_uniform(2, 25), dice.log_uniform(2, 25), dice.log_uniform(2.2, 8)]  # m
    absorption = dice.log_uniform(0.05, 0.7)
    volume, area = np.prod(sizes), 2 * (sizes[0] * sizes[1] + (sizes[0] + sizes[1]) * sizes[2])
    decay_s = float(np.clip(SABINE * volume / (area * absorption), 0.08, 3.0))
    distance = min(dice.log_uniform(0.3, 6), 0.6 * max(sizes))  # m, of the source
    response = np.zeros(LENGTH, np.float32)
    response[0] = 1.0
    for size in sizes:
        for wall in dice.uniform(0.05, 0.5) * size, dice.uniform(0.5, 0.95) * size:
            path = np.hypot(distance, 2 * wall)
            delay = int((path - distance) / SOUND_SPEED * RATE)
            response[delay] += np.float32(np.sqrt(1 - absorption) * distance / path)
    start = int(min(sizes) / SOUND_SPEED * RATE)
    n = min(int(min(1.6, decay_s) * RATE), LENGTH - start)
    noise = dice.noise(n)
    low = signal.lfilter(*_one_pole(CROSSOVER), noise)
    rate = np.float32(-np.log(1e3) / (decay_s * RATE)) * np.arange(n, dtype=np.float32)
    tail = low * np.exp(rate) + (noise - low) * np.exp(rate / np.float32(dice.uniform(0.25, 0.9)))
    # Its power is that of the direct sound where the source is at the critical distance (Kuttruff, section 5.1).
    power = distance**2 * 16 * np.pi * (1 - absorption) / (area * absorption)
    response[start : start + n] += tail * np.float32(np.sqrt(power / (np.square(tail).sum() + TINY)))
    return response


def _one_pole(cutoff: float) -> tuple[Signal, Signal]:
    """Return numerator and denominator of a low-pass."""
    memory = float(np.exp(-2 * np.pi * cutoff / RATE))
    return np.array([1 - memory], np.float32), np.array([1, -memory], np.float32)


def saturated(dice: Dice, clip: Signal) -> Signal:
    """Drive an amplifier into saturation, softly or with clipping."""
    driven = clip * np.float32(dice.uniform(0.5, 3.0))
    if dice.chance(0.5):
        return np.tanh(driven)
    return np.clip(driven, -1, 1)


def mains_hum(dice: Dice) -> Signal:
    """Make hum of unit level: 50 or 60 Hz and its harmonics."""
    hz = np.full(LENGTH, dice.rng.choice([50.0, 60.0]), np.float32)
    return normalise_level(harmonics(hz, dice.log_uniforms(0.01, 1, 12) / np.arange(1, 13) ** 0.5))


def automatic_gain(dice: Dice, clip: Signal) -> Signal:
    """Even out the level as a recorder does: at once when it rises, slowly when it falls."""
    levels = np.sqrt(np.square(clip).reshape(FRAMES, HOP).mean(1))
    memory = np.exp(-HOP / RATE / dice.log_uniform(0.1, 1.0))
    followed, level = np.empty(FRAMES + 1), float(levels.max()) * 0.1
    for i, now in enumerate(levels):
        level = max(float(now), level * memory)
        followed[i] = level
    followed[-1] = level
    gains = np.maximum(followed, 0.01 * levels.max()) ** -dice.uniform(0.3, 0.9)
    return normalise_level(clip * stretch(gains, LENGTH))


def coded(dice: Dice, clip: Signal) -> Signal:
    """Encode and decode a clip with a lossy codec."""
    choice = dice.integer(0, len(CODECS))
    level = np.float32(0.9 / (np.abs(clip).max() + TINY))
    if choice == len(CODECS):
        squeezed = np.sign(clip) * np.log1p(MU * np.abs(clip * level)) / np.float32(np.log1p(MU))
        rounded = np.round(squeezed * 127) / np.float32(127)
        return np.sign(rounded) * np.float32(1 / MU / level) * np.expm1(np.abs(rounded) * np.float32(np.log1p(MU)))
    name, subtype = CODECS[choice]
    file = io.BytesIO()
    quality = dice.uniform(0.3, 0.99)
    soundfile.write(file, clip * level, RATE, format=name, subtype=subtype, compression_level=quality)
    file.seek(0)
    decoded = soundfile.read(file, dtype="float32")[0]
    return np.resize(decoded, LENGTH).astype(np.float32) / level


def randomise_level(dice: Dice, clip: Signal) -> Signal:
    """Scale a clip to a random peak of -25 to 0 dB."""
    return clip / np.float32(np.abs(clip).max() + TINY) * db_to_gain(dice.uniform(-25.0, 0.0))
