"""Spectrograms for a page: small, of 8 bits."""

from __future__ import annotations

import base64

import numpy as np

from ..audio.reading import AudioFile
from ..errors import HearTransformersError

SAMPLE_RATE = 16_000
"""In Hz; a picture ends at half of it."""

N_FFT = 1024

N_COLUMNS = 256

N_BANDS = 48
"""From 50 Hz up, equally wide in the logarithm of the frequency."""

RANGE_DB = 80.0
"""Below the loudest column and band that is black."""


def spectrogram(path: str) -> dict[str, object] | None:
    """Compute the picture of a file: columns along time, bands upwards; None if it cannot be read."""
    try:
        with AudioFile(path) as file:
            columns = [_powers(block.numpy().ravel()) for block in file.blocks(SAMPLE_RATE)]
            seconds = file.duration()
    except HearTransformersError:
        return None
    powers = np.concatenate(columns)  # (times, bins)
    places = np.linspace(0, len(powers), min(N_COLUMNS, len(powers)) + 1).astype(int)[:-1]
    edges = np.geomspace(50.0, SAMPLE_RATE / 2, N_BANDS + 1) * N_FFT / SAMPLE_RATE
    lows = np.minimum(edges[:-1].astype(int), powers.shape[1] - 1)
    highs = np.maximum(edges[1:].astype(int), lows + 1)
    bands = np.stack([powers[:, a:b].mean(1) for a, b in zip(lows, highs, strict=True)], 1)
    levels = 10.0 * np.log10(np.add.reduceat(bands, places, axis=0) + 1e-12)  # (columns, bands)
    grey = np.clip(255.0 * (1.0 + (levels - levels.max()) / RANGE_DB), 0, 255).astype(np.uint8)
    text = base64.b64encode(grey.tobytes()).decode()
    return {"columns": len(grey), "bands": N_BANDS, "seconds": round(seconds, 3), "pixels": text}


def _powers(samples: np.ndarray) -> np.ndarray:
    """Compute power spectra of frames that follow each other: (frames, bins)."""
    padded = np.pad(samples, (0, -len(samples) % N_FFT))
    frames = padded.reshape(-1, N_FFT) * np.hanning(N_FFT)
    return np.asarray(np.abs(np.fft.rfft(frames)) ** 2)
