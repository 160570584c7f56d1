"""Waveform to log-mel spectrogram, batched and on the device of the waveform.

A dialect is data: a `MelSpec` at the top of the family that uses it. The mathematics is here, once.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torchaudio.compliance.kaldi import get_mel_banks


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSpec:
    """Every constant of one log-mel dialect.

    Frequencies are in Hz, lengths in samples. The result is ``(ln(mel + floor) + shift) / scale``.
    """

    sample_rate: int
    n_fft: int
    win_length: int
    hop_length: int
    n_mels: int
    fmin: float
    fmax: float
    preemphasis: float
    floor: float
    shift: float
    scale: float

    @property
    def hop_ms(self) -> float:
        """Distance between two frames in ms."""
        return 1000.0 * self.hop_length / self.sample_rate

    @property
    def field_ms(self) -> float:
        """Length of audio that one frame sees, in ms (pre-emphasis looks at one sample more)."""
        return 1000.0 * (self.win_length + 1) / self.sample_rate

    @property
    def min_samples(self) -> int:
        """Shortest waveform: pre-emphasis takes one sample, the centred STFT reflects half a window."""
        return self.n_fft // 2 + 2

    def n_frames(self, n_samples: int) -> int:
        """Count the frames of a waveform of `n_samples`."""
        return 1 + (n_samples - 1) // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """Give the length of the shortest waveform that has `n_frames` frames."""
        return max(self.min_samples, 1 + (n_frames - 1) * self.hop_length)


CPJKU_MEL = MelSpec(
    sample_rate=32_000,
    n_fft=1024,
    win_length=800,
    hop_length=320,
    n_mels=128,
    fmin=0.0,
    fmax=15_000.0,
    preemphasis=0.97,
    floor=1e-5,
    shift=4.5,
    scale=5.0,
)
"""The dialect of the PaSST and EfficientAT authors (`AugmentMelSTFT` in evaluation mode): their released models were
trained with ``fmax_aug_range=2000``, hence the upper edge of 16000 - 2000 / 2 Hz."""


CPJKU_BESIDE = ("mel.window", "mel.preemphasis_coefficient", "device_proxy")
"""What the authors' front end and HEAR wrapper add to the tensors of a network when the whole model is saved."""


def mel_filters(spec: MelSpec) -> Tensor:
    """Build Kaldi's triangular filters: linear in mel, peak 1, no area normalisation.

    Kaldi's own arithmetic, in float32, is kept: the edge of a filter that covers a single bin lies so close to that bin
    that another rounding changes the result by 1e-3 dB.

    Returns
    -------
    filters : (n_fft // 2 + 1, n_mels), float32; the row of the Nyquist bin is zero, as in Kaldi
    """
    # The last three arguments belong to vocal tract length warping, which a factor of 1 turns off.
    filters, _ = get_mel_banks(spec.n_mels, spec.n_fft, spec.sample_rate, spec.fmin, spec.fmax, 100.0, -500.0, 1.0)
    return nn.functional.pad(filters, (0, 1)).T.contiguous()


class LogMel(nn.Module):
    """Log-mel spectrogram of the PaSST and EfficientAT authors (`AugmentMelSTFT`, evaluation mode).

    Parameters
    ----------
    spec : the dialect
    """

    window: Tensor
    filters: Tensor

    def __init__(self, spec: MelSpec) -> None:
        super().__init__()
        self.spec = spec
        # The authors' window is symmetric, which differs from torch's default by one sample in the period.
        self.register_buffer("window", torch.hann_window(spec.win_length, periodic=False), persistent=False)
        self.register_buffer("filters", mel_filters(spec), persistent=False)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Turn waveforms into log-mel spectrograms.

        Parameters
        ----------
        waveforms : (batch, samples) float32 in [-1, 1], at least `MelSpec.min_samples` long

        Returns
        -------
        mel : (batch, n_mels, frames) float32; frame j is centred on sample ``j * hop_length``
        """
        spec = self.spec
        # Autocast would take the spectrum in 16 bits; a quiet band next to a loud one needs 32.
        with torch.autocast(waveforms.device.type, enabled=False):
            emphasised = waveforms[:, 1:] - spec.preemphasis * waveforms[:, :-1]
            spectrum = torch.stft(
                emphasised,
                spec.n_fft,
                spec.hop_length,
                spec.win_length,
                self.window,
                center=True,
                pad_mode="reflect",
                return_complex=True,
            )  # (batch, n_fft // 2 + 1, frames)
            parts = torch.view_as_real(spectrum)
            power = parts.square().sum(-1)
            mel = (power.transpose(1, 2) @ self.filters).transpose(1, 2)  # (batch, n_mels, frames)
            return (mel + spec.floor).log().add(spec.shift).div(spec.scale)
