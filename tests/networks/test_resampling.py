"""The resampler beside torchaudio's in the same process, and what any resampler does."""

import math

import pytest
import torch

from hear_transformers.networks.resampling import Resampler
from tests.helpers.torchaudio import needs_torchaudio

pytestmark = pytest.mark.numeric

TOLERANCE = 1e-6  # of full scale; 3.6e-7 was found, with AVX2 and without

RATES = [
    (2, 1),  # as PANNs of 8 kHz decimate
    (4, 1),
    (32_000, 32_000),
    (48_000, 16_000),
    (8_000, 32_000),
    (44_100, 32_000),
    (22_050, 32_000),
    (11_025, 16_000),
    (16_000, 11_025),
    (96_000, 44_100),
]
LENGTHS = [1, 2, 13, 440, 441, 442, 12_345]


def noise(n_samples: int) -> torch.Tensor:
    return torch.rand(2, n_samples, generator=torch.Generator().manual_seed(0)) * 2 - 1


def tone(hz: float, rate: int, seconds: float = 0.5) -> torch.Tensor:
    return (2 * math.pi * hz / rate * torch.arange(round(rate * seconds), dtype=torch.float64)).sin().float()[None]


@needs_torchaudio
@pytest.mark.parametrize("rates", RATES, ids=str)
def test_samples_are_torchaudios(rates):
    from torchaudio.functional import resample

    resampler = Resampler(*rates)
    for n_samples in LENGTHS:
        waveforms = noise(n_samples)
        # In float64: of float32 it rounds the times of its kernels, and is 4e-5 from itself at 22050 -> 32000 Hz.
        expected = resample(waveforms.double(), *rates).float()
        torch.testing.assert_close(resampler(waveforms), expected, rtol=0, atol=TOLERANCE)


@needs_torchaudio
def test_decimation_is_torchaudios_in_float32():
    from torchaudio.functional import resample

    waveforms = noise(32_000)
    torch.testing.assert_close(Resampler(2, 1)(waveforms), resample(waveforms, 2, 1), rtol=0, atol=TOLERANCE)


@pytest.mark.parametrize("rates", RATES, ids=str)
def test_lengths_are_rounded_up(rates):
    rate, new_rate = rates
    for n_samples in LENGTHS:
        assert Resampler(rate, new_rate)(noise(n_samples)).shape == (2, math.ceil(n_samples * new_rate / rate))


@pytest.mark.parametrize("rates", [(44_100, 32_000), (8_000, 32_000), (48_000, 16_000)], ids=str)
def test_a_tone_stays_a_tone(rates):
    rate, new_rate = rates
    found, expected = Resampler(rate, new_rate)(tone(440.0, rate)), tone(440.0, new_rate)
    ends = slice(new_rate // 50, -new_rate // 50)  # outside the clip is silence
    torch.testing.assert_close(found[:, ends], expected[:, ends], rtol=0, atol=2e-3)


def test_a_tone_above_the_new_nyquist_frequency_goes():
    assert Resampler(2, 1)(tone(12_000, 32_000))[:, 50:-50].abs().max() < 2e-3  # -54 dB


def test_equal_rates_change_nothing():
    waveforms = noise(99)
    assert Resampler(32_000, 32_000)(waveforms) is waveforms
