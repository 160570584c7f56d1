"""Resampling on the device of the network, to the numbers of soxr (HQ), which resamples everywhere else.

soxr is linear, so its answers to single samples are all there is to know of it: they are the kernels here. Pass band,
transition and stop band are its own, then, whichever version of it is installed, and the results differ by no more than
float32's rounding: 2e-6 of full scale was found, for noise of all frequencies. Ten seconds take 0.47 GFLOP from 44.1 to
32 kHz, 0.3 to 1.6 between other rates.
"""

from __future__ import annotations

import functools
import math

import numpy as np
import soxr
import torch
from torch import Tensor

from ..networks.resampling import Polyphase

QUALITY = "HQ"

REACH = 104
"""Samples at the lower of both rates, from which on soxr's HQ filter is below float32's rounding: 1e-7 of its peak."""

MOST_SAMPLES = 2000
"""Longest period, at either rate, that is resampled on a device. Between the rates that are in use (8, 11.025, 12, 16,
22.05, 24, 32, 44.1, 48, 88.2, 96, 176.4, 192 kHz) none is longer than 1,280; kernels of longer ones take more memory
than audio does, and soxr's own times drift by 2^-32 samples a sample."""


def has_kernels(rate: int, new_rate: int) -> bool:
    """Return True if waveforms can be resampled on a device: the ratio repeats after few samples."""
    return max(rate, new_rate) <= MOST_SAMPLES * math.gcd(rate, new_rate)


def length(n_samples: int, rate: int, new_rate: int) -> int:
    """Return the number of samples that soxr makes of some, half of one rounded up; here it is one at least of any."""
    return max(min(1, n_samples), (2 * n_samples * new_rate + rate) // (2 * rate))


def soxr_kernels(rate: int, new_rate: int) -> Tensor:
    """Return what soxr makes the output samples of a period from, see `Polyphase`: (new_rate, taps) float32.

    Parameters
    ----------
    rate, new_rate : in lowest terms
    """
    reach = _reach(rate, new_rate)
    periods = 1 + reach // rate  # between the beginning of the sound and the first sample that any kernel reads
    answers = _answers(rate, new_rate, 2 * periods * rate, rate, 2 * periods * rate)  # (times, rate)
    inputs = np.arange(-reach, rate + reach)
    # The answer to a sample of another period is that of its like in the period that was asked for, shifted.
    period, phase = inputs // rate, inputs % rate
    outputs = np.arange(new_rate)[:, None] + (2 * periods - period) * new_rate
    return torch.from_numpy(answers[outputs, phase])


def _answers(rate: int, new_rate: int, before: int, n_samples: int, behind: int) -> np.ndarray:
    """Return soxr's answers to single samples, each in a channel of its own: (times, samples) float32."""
    silence = [np.zeros((each, n_samples), np.float32) for each in (before, behind)]
    sounds = np.concatenate([silence[0], np.eye(n_samples, dtype=np.float32), silence[1]])
    answers: np.ndarray = soxr.resample(sounds, rate, new_rate, QUALITY)
    return answers


def _reach(rate: int, new_rate: int) -> int:
    return math.ceil(REACH * max(rate, new_rate) / new_rate)


class SoxrResampler(Polyphase):
    """Waveforms (batch, samples) at `rate` -> (batch, samples) at `new_rate`, as `reading.resample` computes them.

    soxr begins as if its inner filters had seen less silence than they read, so the first samples of a sound, two at
    44.1 to 32 kHz, are others than later: the first frame has kernels of its own.
    """

    first: Tensor  # (frame + reach, new_frame) float32

    def __init__(self, rate: int, new_rate: int) -> None:
        common = math.gcd(rate, new_rate)
        rate, new_rate = rate // common, new_rate // common
        super().__init__(rate, new_rate, soxr_kernels(rate, new_rate))
        answers = _answers(rate, new_rate, 0, self.frame + self.reach, 0)[: self.new_frame]
        self.register_buffer("first", torch.from_numpy(answers.T.copy()), persistent=False)

    def count(self, n_samples: int) -> int:
        """Return the number of output samples, see `length`."""
        return length(n_samples, self.rate, self.new_rate)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Resample; waveforms too short for one sample at the new rate become one sample, their mean."""
        if 2 * waveforms.shape[1] * self.new_rate < self.rate:
            return waveforms.mean(1, keepdim=True)
        frames = self.frames(waveforms)
        resampled = self.product(frames)
        resampled[:, 0] = frames[:, 0, self.reach :] @ self.first
        return resampled.flatten(1)[:, : self.count(waveforms.shape[1])]


@functools.lru_cache(maxsize=16)
def resampler(rate: int, new_rate: int, device: torch.device) -> SoxrResampler:
    """Return the resampler between two rates on a device; the last ones are kept."""
    return SoxrResampler(rate, new_rate).to(device)
