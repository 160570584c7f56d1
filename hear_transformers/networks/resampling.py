"""Resampling by a rational factor, in batches and on the device of the waveform: `Resampler`."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ZERO_CROSSINGS = 6
"""Of the interpolating sinc on either side. This and `ROLLOFF` are the defaults of `torchaudio.functional.resample`."""

ROLLOFF = 0.99
"""Cut-off as a share of the lower of the two Nyquist frequencies."""


def sinc_kernels(rate: int, new_rate: int) -> Tensor:
    """Compute what interpolates `new_rate` output samples between `rate` input samples: (new_rate, taps) float32.

    Row p is a sinc around the time ``p / new_rate``, low-pass at the cut-off and under a Hann window of its length:
    Shannon's interpolation, cut short. It is computed in float64 and rounded once.
    """
    crossings = ROLLOFF * min(rate, new_rate)  # zeros of the sinc per unit of time, which has `rate` input samples
    reach = math.ceil(ZERO_CROSSINGS * rate / crossings)  # input samples before and behind an output sample
    inputs = torch.arange(-reach, reach + rate, dtype=torch.float64) / rate
    outputs = torch.arange(new_rate, dtype=torch.float64) / new_rate
    distance = ((inputs - outputs[:, None]) * crossings).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = (distance * (math.pi / 2 / ZERO_CROSSINGS)).cos().square()
    return (torch.sinc(distance) * window * (crossings / rate)).float()


class Resampler(nn.Module):
    """Waveforms (batch, samples) at `rate` -> (batch, ceil(samples * new_rate / rate)) at `new_rate`.

    It is `torchaudio.functional.resample` with its defaults; what lies outside a waveform is silence.
    """

    kernels: Tensor

    def __init__(self, rate: int, new_rate: int) -> None:
        super().__init__()
        common = math.gcd(rate, new_rate)
        self.rate, self.new_rate = rate // common, new_rate // common
        self.register_buffer("kernels", sinc_kernels(self.rate, self.new_rate)[:, None], persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Resample; equal rates return the waveforms themselves."""
        if self.rate == self.new_rate:
            return waveforms
        reach = (self.kernels.shape[2] - self.rate) // 2
        padded = nn.functional.pad(waveforms.unsqueeze(1), (reach, reach + self.rate))  # (batch, 1, samples)
        phases = nn.functional.conv1d(padded, self.kernels, stride=self.rate)  # (batch, new_rate, samples / rate)
        n_samples = -(-waveforms.shape[1] * self.new_rate // self.rate)
        return phases.transpose(1, 2).flatten(1)[:, :n_samples]
