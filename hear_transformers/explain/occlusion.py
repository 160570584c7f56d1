"""Patch occlusion: what changes when a part of the clip falls silent; needs no knowledge of the network."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor

from .window import Axis, Grid, Window

BATCH = 16  # occluded clips that go through the network at once

Score = Callable[[Tensor], Tensor]
"""Frames (batch, ...) -> a number for each, (batch,)."""


def occlusion(window: Window, score: Score, patch_ms: float, patch_bands: int) -> tuple[Tensor, Grid]:
    """Measure how much a score falls when each patch of the clip is made quiet (Zeiler and Fergus, 1311.2901).

    Every band of a patch becomes as quiet as it ever is in the clip, so that nothing unheard of is put there; of a
    waveform all bands of a stretch of time are set to 0.

    Parameters
    ----------
    window : the clip
    score : of frames
    patch_ms, patch_bands : size of a patch; patches lie side by side

    Returns
    -------
    falls : (freq, time), the score of the whole clip less that without the patch
    grid : where the patches lie
    """
    bands = min(patch_bands, window.spec.n_mels) if window.has_mel else window.spec.n_mels
    frames = min(window.n_frames, max(1, round(patch_ms / window.model.variant.frontend.hop_ms)))
    n_freq, n_time = -(-window.spec.n_mels // bands), -(-window.n_frames // frames)
    grid = Grid(Axis((bands - 1) / 2, bands, n_freq), Axis((frames - 1) / 2, frames, n_time))
    quiet = window.frames[..., : window.n_frames].amin(-1, keepdim=True) if window.has_mel else torch.zeros(1)
    places = [(row, column) for row in range(n_freq) for column in range(n_time)]
    found = []
    with torch.no_grad():
        whole = score(window.frames)
        for first in range(0, len(places), BATCH):
            batch = places[first : first + BATCH]
            occluded = window.frames.repeat(len(batch), *[1] * (window.frames.ndim - 1))
            for clip, (row, column) in zip(occluded, batch, strict=True):
                time = slice(column * frames, min((column + 1) * frames, window.n_frames))
                if window.has_mel:
                    band = slice(row * bands, (row + 1) * bands)
                    clip[band, time] = quiet[0, band]
                else:
                    clip[time] = 0.0
            found.append(whole - score(occluded))
    return torch.cat(found).view(n_freq, n_time).float().cpu(), grid


def passes(window: Window, patch_ms: float, patch_bands: int) -> int:
    """Count the clips that `occlusion` puts through the network."""
    frames = max(1, round(patch_ms / window.model.variant.frontend.hop_ms))
    bands = window.spec.n_mels if not window.has_mel else patch_bands
    return math.ceil(window.spec.n_mels / bands) * math.ceil(window.n_frames / frames)
