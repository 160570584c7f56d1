"""Building blocks of the synthesis, and the effects of recording."""

import numpy as np
import pytest

from hear_transformers.training.corpus import effects, signals
from hear_transformers.training.corpus.signals import LENGTH, RATE, Dice


def power_at(signal: np.ndarray, low: float, high: float) -> float:
    """Return the mean power of a clip between two frequencies in Hz."""
    power = np.abs(np.fft.rfft(signal)) ** 2
    return float(power[np.searchsorted(signals.FREQS, low) : np.searchsorted(signals.FREQS, high)].mean())


def test_noise_falls_as_its_exponent_says():
    noise = signals.coloured_noise(Dice(0), exponent=2.0)
    drop = power_at(noise, 1000, 1100) / power_at(noise, 4000, 4400)
    assert drop == pytest.approx(16, rel=0.2)


def test_partials_beyond_the_band_are_dropped():
    wave = signals.partials(Dice(0), np.full(LENGTH, 1000.0), np.array([1.0, 20.0]), np.array([1.0, 1.0]))
    assert power_at(wave, 900, 1100) > 1e6 * power_at(wave, 2000, 16_000)


def test_envelope_begins_and_ends_in_silence():
    shape = signals.envelope(RATE, attack=0.1, decay=0.1, sustain=0.5, release=0.1)
    assert shape[0] == 0
    assert shape[-1] < 0.001
    assert shape.max() == pytest.approx(1, abs=0.01)


def test_event_is_cut_at_the_end_of_the_clip():
    clip = signals.place(lambda _: np.ones(RATE, np.float32), [0.5, 1.5])
    assert clip.sum() == 1.5 * RATE
    assert len(clip) == LENGTH


def test_narrow_band_holds_nothing_above_it():
    clip = effects.record(Dice(3), Dice(0).noise(), band_limited=1.0, noise_db=(-200.0, -200.0))
    assert power_at(clip, 12_000, 16_000) < 1e-3 * power_at(clip, 500, 3000)


def test_room_begins_with_the_direct_sound():
    response = effects.room(Dice(1))
    assert response[0] == pytest.approx(1, abs=0.3)
    assert np.abs(response[LENGTH // 2 :]).max() < 0.1
