"""Log-mel spectrograms of many clips at once, in the dialect of the embedded model."""

from __future__ import annotations

from functools import cache

import numpy as np
import torch
from numpy.typing import NDArray

from ...networks.frontend import CPJKU_MEL, CpjkuLogMel
from .signals import LENGTH, RATE

MEL_BATCH = 16  # clips per call of the front end: their spectra stay in the processor's cache

N_MELS = CPJKU_MEL.n_mels
FRAMES = CPJKU_MEL.n_frames(LENGTH)
HOP = CPJKU_MEL.hop_length
SILENCE = float(CPJKU_MEL.normalised(np.log(CPJKU_MEL.floor)))  # log-mel of digital silence
FRAME_TIMES = np.arange(FRAMES) * HOP / RATE  # s, centre of each mel frame


@cache
def frontend() -> CpjkuLogMel:
    """Return the front end of this process."""
    return CPJKU_MEL.build()


@torch.no_grad()
def compute_log_mels(waveforms: NDArray[np.float32]) -> NDArray[np.float16]:
    """Compute log-mel spectrograms: (clips, samples) -> (clips, n_mels, frames)."""
    batches = [torch.from_numpy(waveforms[i : i + MEL_BATCH]) for i in range(0, len(waveforms), MEL_BATCH)]
    return np.concatenate([frontend()(batch).half().numpy() for batch in batches])
