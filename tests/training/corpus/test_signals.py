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


def test_harmonics_beyond_the_band_are_left_out():
    amplitudes = np.zeros(20)
    amplitudes[[0, 19]] = 1.0
    wave = signals.harmonics(np.full(LENGTH, 1000.0), amplitudes)
    assert power_at(wave, 900, 1100) > 1e6 * power_at(wave, 2000, 16_000)


def test_harmonics_are_sines_of_their_numbers():
    wave = signals.harmonics(np.full(LENGTH, 100.0), np.array([0.5, 0.0, 0.25]))
    angles = 2 * np.pi * 100 * np.arange(1, LENGTH + 1) / RATE
    np.testing.assert_allclose(wave, 0.5 * np.sin(angles) + 0.25 * np.sin(3 * angles), atol=1e-4)


def test_modes_decay_as_they_should():
    wave = signals.modes(Dice(0), np.array([1000.0]), 0.1, np.array([1.0]), RATE)
    early, late = (np.abs(wave[start : start + 320]).max() for start in (0, 6400))
    assert early == pytest.approx(1, abs=0.1)
    assert late / early == pytest.approx(np.exp(-2), rel=0.02)


def test_shaped_noise_has_unit_level_and_its_shape():
    noise = signals.shaped_noise(Dice(0), signals.low_pass(1000.0, order=8))
    assert noise.std() == pytest.approx(1, rel=0.05)
    assert power_at(noise, 100, 900) > 1e4 * power_at(noise, 3000, 16_000)


def test_curve_goes_through_its_points():
    np.testing.assert_allclose(signals.stretch(np.array([0.0, 1.0, 0.0]), 8), [0, 0.25, 0.5, 0.75, 1, 0.75, 0.5, 0.25])


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


def test_room_begins_with_the_direct_sound_and_dies_away():
    for seed in range(5):
        response = effects.room(Dice(seed))
        assert response[0] == pytest.approx(1, abs=0.3)
        early, late = (np.square(response[part]).mean() for part in (slice(1, 6400), slice(LENGTH - 6400, None)))
        assert late < 0.1 * early


def test_nothing_is_heard_before_a_sound():
    clip = np.zeros(LENGTH, np.float32)
    clip[LENGTH // 2 :] = Dice(0).noise(LENGTH // 2)
    for seed in range(20):
        recorded = effects.record(Dice(seed), clip, band_limited=0.0, noise_db=(-200.0, -200.0))
        # An equaliser without delay rings for some milliseconds on both sides of the end.
        assert recorded[RATE // 10 : LENGTH // 4].std() < 0.25


@pytest.mark.parametrize("seed", range(6))
def test_codec_keeps_time_and_level(seed):
    clip = signals.filter_clip(Dice(0).noise(), signals.low_pass(3000.0, order=4))
    coded = effects.coded(Dice(seed), clip)
    assert coded.shape == clip.shape
    assert np.corrcoef(coded, clip)[0, 1] > 0.9
    assert coded.std() == pytest.approx(clip.std(), rel=0.2)


def test_automatic_gain_evens_out_levels():
    clip = Dice(0).noise() * np.repeat([1.0, 0.1], LENGTH // 2).astype(np.float32)
    even = effects.automatic_gain(Dice(0), clip)
    assert even[-6400:].std() / even[:6400].std() > 2 * 0.1


def test_hum_is_of_the_mains():
    for seed in range(4):
        power = np.abs(np.fft.rfft(effects.mains_hum(Dice(seed)))) ** 2
        loudest_hz = signals.FREQS[power.argmax()]
        assert min(loudest_hz % 50, loudest_hz % 60) == 0
