"""Clips of one length, resampled together on the device of the network."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from ..audio.levels import FEWEST_HEARD, unheard_warning
from ..audio.resampling import resampler
from .choices import check_choice
from .precision import computing

TOGETHER_SECONDS = 320.0
"""Audio that is resampled at once: 93 MB of frames of 44.1 kHz, and matrix products that fill a large card."""


def is_on_device(choice: str, device: torch.device, workers: int) -> bool:
    """Return True if clips are resampled where the network computes, not by the workers that decode them.

    "auto" does so on CUDA: a clip of 10 s takes 0.5 GFLOP, less than 0.05 ms of a card that multiplies float32 at 10
    TFLOP/s, and saves a worker 4 ms, soxr's time. Not for the few clips that are read without workers, for which the
    kernels do not pay; nor on a CPU, where the same products take up to three times as long as soxr.

    Raises
    ------
    OptionError : the choice is none of `CHOICES`
    """
    check_choice("resample", choice)
    return choice == "device" or (choice == "auto" and device.type == "cuda" and workers > 0)


def as_float(waveforms: Tensor) -> Tensor:
    """Return samples as float32: int16 has 32768 for 1.0, as in a file."""
    return waveforms.to(torch.float32) / 2**15 if waveforms.dtype == torch.int16 else waveforms.to(torch.float32)


def resampled(waveforms: Sequence[Tensor], rate: int, sample_rate: int) -> tuple[Tensor, Tensor]:
    """Resample waveforms of one length and type, in exact float32.

    Parameters
    ----------
    waveforms : each (samples,), float32, or int16 with 32768 for 1.0
    rate, sample_rate : theirs and that of the result, in Hz

    Returns
    -------
    waveforms : (clips, samples) float32
    energies : (clips, 2) float32, before and after, in units of power times s
    """
    with torch.no_grad(), computing("float32", waveforms[0].device):
        before = as_float(torch.stack(list(waveforms)))
        after = resampler(rate, sample_rate, before.device)(before)
        energies = torch.stack([before.square().sum(1) / rate, after.square().sum(1) / sample_rate], 1)
    return after, energies


def warning_of(energies: Tensor, rate: int, sample_rate: int, n_samples: int) -> str | None:
    """Return what to do about energy that a clip of `n_samples` lost, None if that is as it should be."""
    if rate <= sample_rate or n_samples < FEWEST_HEARD:
        return None
    seen, heard = energies.tolist()
    return unheard_warning(seen, heard, sample_rate)
