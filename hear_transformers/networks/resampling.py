"""Resampling by a rational factor, in batches and on the device of the waveform: `Polyphase`, with a sinc: `Resampler`.

The kernels of another resampler are in `audio.resampling`.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

ZERO_CROSSINGS = 6
"""Of the interpolating sinc on either side. This and `ROLLOFF` are the defaults of `torchaudio.functional.resample`."""

ROLLOFF = 0.99
"""Cut-off as a share of the lower of the two Nyquist frequencies."""


class Polyphase(nn.Module):
    """Waveforms (batch, samples) -> (batch, samples at the new rate): products of frames of samples with kernels.

    The ratio of the rates repeats after a period of `rate` input samples, to which belong `new_rate` output samples.
    A frame is one period or, where that is short, as many as the kernels reach: each input sample is then copied and
    multiplied at most about twice as often as the kernels need, by one matrix product, which any device is fast at.

    Parameters
    ----------
    rate, new_rate : in lowest terms
    kernels : (new_rate, reach + rate + reach) float, what makes the output samples of a period from its samples and
        those up to `reach` before and behind; what lies outside a waveform is silence
    """

    kernels: Tensor  # (reach + frame + reach, new_frame) float32

    def __init__(self, rate: int, new_rate: int, kernels: Tensor) -> None:
        super().__init__()
        self.rate, self.new_rate = rate, new_rate
        self.reach = (kernels.shape[1] - rate) // 2
        periods = max(1, -(-2 * self.reach // rate))
        self.frame, self.new_frame = periods * rate, periods * new_rate
        shifted = torch.zeros(self.frame + 2 * self.reach, self.new_frame, dtype=kernels.dtype)
        for each in range(periods):
            first, new_first = each * rate, each * new_rate
            shifted[first : first + kernels.shape[1], new_first : new_first + new_rate] = kernels.T
        self.register_buffer("kernels", shifted.float(), persistent=False)

    def count(self, n_samples: int) -> int:
        """Return the number of output samples; it is rounded up."""
        return -(-n_samples * self.new_rate // self.rate)

    def frames(self, waveforms: Tensor) -> Tensor:
        """Cut waveforms (batch, samples) into overlapping frames: (batch, frames, reach + frame + reach), a view."""
        n_frames = -(-self.count(waveforms.shape[1]) // self.new_frame)
        behind = n_frames * self.frame + self.reach - waveforms.shape[1]
        return nn.functional.pad(waveforms, (self.reach, behind)).unfold(1, len(self.kernels), self.frame)

    def product(self, frames: Tensor) -> Tensor:
        """Multiply frames with the kernels: -> (batch, frames, new_frame)."""
        # One product for all: PyTorch would make one for each waveform of overlapping frames.
        return (frames.reshape(-1, len(self.kernels)) @ self.kernels).unflatten(0, frames.shape[:2])

    def forward(self, waveforms: Tensor) -> Tensor:
        """Resample."""
        resampled = self.product(self.frames(waveforms))
        return resampled.flatten(1)[:, : self.count(waveforms.shape[1])]


def sinc_kernels(rate: int, new_rate: int) -> Tensor:
    """Compute what interpolates `new_rate` output samples between `rate` input samples: (new_rate, taps) float64.

    Row p is a sinc around the time ``p / new_rate``, low-pass at the cut-off and under a Hann window of its length:
    Shannon's interpolation, cut short.
    """
    crossings = ROLLOFF * min(rate, new_rate)  # zeros of the sinc per unit of time, which has `rate` input samples
    reach = math.ceil(ZERO_CROSSINGS * rate / crossings)  # input samples before and behind an output sample
    inputs = torch.arange(-reach, reach + rate, dtype=torch.float64) / rate
    outputs = torch.arange(new_rate, dtype=torch.float64) / new_rate
    distance = ((inputs - outputs[:, None]) * crossings).clamp(-ZERO_CROSSINGS, ZERO_CROSSINGS)
    window = (distance * (math.pi / 2 / ZERO_CROSSINGS)).cos().square()
    return torch.sinc(distance) * window * (crossings / rate)


class Resampler(Polyphase):
    """Waveforms (batch, samples) at `rate` -> (batch, ceil(samples * new_rate / rate)) at `new_rate`.

    It is `torchaudio.functional.resample` with its defaults.
    """

    def __init__(self, rate: int, new_rate: int) -> None:
        common = math.gcd(rate, new_rate)
        rate, new_rate = rate // common, new_rate // common
        super().__init__(rate, new_rate, sinc_kernels(rate, new_rate))

    def forward(self, waveforms: Tensor) -> Tensor:
        """Resample; equal rates return the waveforms themselves."""
        return waveforms if self.rate == self.new_rate else super().forward(waveforms)
