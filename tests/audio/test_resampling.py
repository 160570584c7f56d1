"""Resampling on a device beside soxr in the same process: lengths, pass band, stop band, the beginning and the end."""

import numpy as np
import pytest
import soxr
import torch

from hear_transformers.audio import reading
from hear_transformers.audio.resampling import MOST_SAMPLES, has_kernels, resampler
from hear_transformers.embedding.precision import multiplying

pytestmark = pytest.mark.numeric

RATES = [
    (44_100, 32_000),
    (48_000, 32_000),
    (22_050, 32_000),
    (16_000, 32_000),
    (8_000, 32_000),
    (11_025, 32_000),
    (96_000, 32_000),
    (192_000, 32_000),
    (44_100, 16_000),
    (48_000, 16_000),
    (32_000, 44_100),
    (44_100, 48_000),
]
DOWN = [(rate, new_rate) for rate, new_rate in RATES if rate > new_rate]

TOLERANCE = 5e-6  # of full scale, at all frequencies; 2e-6 was found

PASS_BAND = 0.913  # of the lower Nyquist frequency: soxr's HQ
DROOP = 1.2e-3  # what soxr takes of tones below the end of its pass band: 0.01 dB


def noise(n_clips: int, n_samples: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).uniform(-1, 1, (n_clips, n_samples)).astype(np.float32)


def sweep(rate: int, low_hz: float, high_hz: float, seconds: float = 1.0) -> np.ndarray:
    times = np.arange(round(rate * seconds)) / rate
    phase = 2 * np.pi * (low_hz * times + (high_hz - low_hz) * times**2 / (2 * seconds))
    return np.sin(phase).astype(np.float32)[None]


def ours(waveforms: np.ndarray, rates: tuple[int, int], device: str = "cpu") -> np.ndarray:
    return resampler(*rates, torch.device(device))(torch.from_numpy(waveforms).to(device)).cpu().numpy()


def of_soxr(waveforms: np.ndarray, rates: tuple[int, int]) -> np.ndarray:
    return np.stack([soxr.resample(each, *rates, "HQ") for each in waveforms])


def decibels(waveforms: np.ndarray) -> float:
    return float(20 * np.log10(np.abs(waveforms).max()))


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_noise_becomes_that_of_soxr(rates):
    for n_samples in (777, 4_410, 50_001):
        waveforms = noise(3, n_samples)
        np.testing.assert_allclose(ours(waveforms, rates), of_soxr(waveforms, rates), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_a_sweep_through_the_pass_band_becomes_that_of_soxr_and_stays_one(rates):
    highest_hz = PASS_BAND * min(rates) / 2
    found = ours(sweep(rates[0], 20, highest_hz), rates)
    np.testing.assert_allclose(found, of_soxr(sweep(rates[0], 20, highest_hz), rates), rtol=0, atol=TOLERANCE)
    inner = slice(rates[1] // 20, -rates[1] // 20)
    np.testing.assert_allclose(found[:, inner], sweep(rates[1], 20, highest_hz)[:, inner], rtol=0, atol=DROOP)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_impulses_become_those_of_soxr_wherever_they_are(rates):
    for place in (0, 1, 2, 50, 1_000, 2_998, 2_999):
        waveform = np.zeros((1, 3_000), np.float32)
        waveform[0, place] = 1.0
        np.testing.assert_allclose(ours(waveform, rates), of_soxr(waveform, rates), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rates", DOWN, ids=str)
def test_what_lies_above_the_new_nyquist_frequency_is_gone(rates):
    beyond = sweep(rates[0], 1.005 * rates[1] / 2, 0.99 * rates[0] / 2)
    fade = np.minimum(1, np.minimum(np.arange(beyond.size), np.arange(beyond.size)[::-1]) / (rates[0] / 20))
    found = ours(beyond * np.sin(np.pi / 2 * fade).astype(np.float32) ** 2, rates)
    assert decibels(found[:, rates[1] // 10 : -rates[1] // 10]) < -100


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_lengths_are_those_of_soxr(rates):
    counted = resampler(*rates, torch.device("cpu"))
    lengths = [*range(1, 400), *np.random.default_rng(0).integers(400, 50_000, 30)]
    for n_samples in map(int, lengths):
        n_expected = len(soxr.resample(np.zeros(n_samples, np.float32), *rates, "HQ"))
        assert counted.count(n_samples) == max(1, n_expected)  # a file has one sample at least


@pytest.mark.parametrize("n_samples", [1, 2, 3, 5, 7])
def test_the_shortest_waveforms_have_one_sample_at_least_as_files_have(n_samples):
    waveforms = noise(2, n_samples)
    expected = np.stack([reading.resample(each, 192_000, 32_000) for each in waveforms])
    np.testing.assert_allclose(ours(waveforms, (192_000, 32_000)), expected, rtol=0, atol=TOLERANCE)


def test_a_waveform_is_the_same_alone_and_in_a_batch():
    waveforms = noise(5, 44_100)
    together = ours(waveforms, (44_100, 32_000))
    for waveform, expected in zip(waveforms, together, strict=True):
        alone = ours(waveform[None], (44_100, 32_000))[0]
        np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


def test_ratios_that_hardly_repeat_have_no_kernels():
    assert all(has_kernels(*rates) for rates in RATES)
    assert not has_kernels(44_100, 44_099)
    assert has_kernels(MOST_SAMPLES, 1_001)
    assert not has_kernels(MOST_SAMPLES + 1, 1_001)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_computes_the_same_in_exact_float32():
    waveforms = noise(4, 44_100)
    with multiplying("float32"):
        found = ours(waveforms, (44_100, 32_000), "cuda")
    np.testing.assert_allclose(found, of_soxr(waveforms, (44_100, 32_000)), rtol=0, atol=TOLERANCE)
