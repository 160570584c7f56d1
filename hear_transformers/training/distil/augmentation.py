"""Random changes of log-mels, on the device they lie on; the few random numbers are drawn on the CPU."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...networks.frontend import CPJKU_MEL
from ..corpus.mels import SILENCE

TILT_POINTS, TILT_SPREAD = 4, 0.15  # in units of the log-mel, 1 being 21.7 dB of power
GAIN_SPREAD = 0.25
SPEECH_SHIFT = 3  # bands up or down, for other vocal tracts and pitches
SCENE_SHIFT = 8  # bands up or down, for things of other sizes; the teacher says what they are then
BACKGROUND_SHARE = 0.6  # fraction of the batches of speech and notes that get scenes as background
BACKGROUND_DB = (-45.0, -3.0)  # level of its loudest point, relative to that of the speech
BAND_MASK, BAND_MASK_SHARE = 16, 0.5
TIME_MASK, TIME_MASK_SHARE = 1 / 8, 0.3  # longest, as a fraction of the crop

Rng = np.random.Generator
Backgrounds = Callable[[], Tensor]
"""Draws log-mels of the same shape."""


def augment_scenes(rng: Rng, mels: Tensor, backgrounds: Backgrounds) -> Tensor:
    """Change scenes (clips, n_mels, frames)."""
    del backgrounds
    return colour(rng, shift_bands(rng, mels, SCENE_SHIFT))


def augment_speech(rng: Rng, mels: Tensor, backgrounds: Backgrounds) -> Tensor:
    """Change speech (clips, n_mels, frames)."""
    return augment_notes(rng, shift_bands(rng, mels, SPEECH_SHIFT), backgrounds)


def augment_notes(rng: Rng, mels: Tensor, backgrounds: Backgrounds) -> Tensor:
    """Change notes (clips, n_mels, frames), but not their pitch."""
    if rng.random() < BACKGROUND_SHARE:
        mels = add_backgrounds(rng, mels, backgrounds(), BACKGROUND_DB)
    return colour(rng, mels)


AUGMENT: dict[str, Callable[[Rng, Tensor, Backgrounds], Tensor]] = {
    "scenes": augment_scenes,
    "speech": augment_speech,
    "notes": augment_notes,
}


def add_backgrounds(rng: Rng, mels: Tensor, backgrounds: Tensor, decibels: tuple[float, float]) -> Tensor:
    """Add the power of backgrounds to log-mels; their loudest points lie some decibels from those of the log-mels."""
    gains = rng.uniform(*decibels, len(mels)) * np.log(10) / 10 / CPJKU_MEL.scale
    levels = mels.amax((1, 2)) - backgrounds.amax((1, 2)) + _beside(mels, gains.astype(np.float32))
    backgrounds = backgrounds + levels[:, None, None]
    return torch.logaddexp(mels * CPJKU_MEL.scale, backgrounds * CPJKU_MEL.scale) / CPJKU_MEL.scale


def shift_bands(rng: Rng, mels: Tensor, furthest: int) -> Tensor:
    """Shift each log-mel up or down by at most `furthest` bands, repeating the band at the edge."""
    n_mels = mels.shape[1]
    shifts = rng.integers(-furthest, furthest, (len(mels), 1), endpoint=True)
    bands = np.clip(np.arange(n_mels) + shifts, 0, n_mels - 1)  # (clips, n_mels)
    return mels.gather(1, _beside(mels, bands).unsqueeze(2).expand_as(mels))


def colour(rng: Rng, mels: Tensor) -> Tensor:
    """Change gain and spectral tilt of each log-mel, as another microphone would."""
    n, n_mels = mels.shape[:2]
    points = rng.normal(0.0, TILT_SPREAD, (n, TILT_POINTS)) + rng.normal(0.0, GAIN_SPREAD, (n, 1))
    where = np.linspace(0, TILT_POINTS - 1, n_mels)
    curves = np.stack([np.interp(where, np.arange(TILT_POINTS), row) for row in points]).astype(np.float32)
    return (mels + _beside(mels, curves).unsqueeze(2)).clamp(min=SILENCE)


def mask(rng: Rng, mels: Tensor) -> Tensor:
    """Mask a few adjacent bands or frames of some log-mels (SpecAugment: Park et al., 1904.08779)."""
    n, n_mels, n_frames = mels.shape
    bands = _draw_spans(rng, n, n_mels, BAND_MASK, BAND_MASK_SHARE)
    frames = _draw_spans(rng, n, n_frames, int(n_frames * TIME_MASK), TIME_MASK_SHARE)
    mels = torch.where(_beside(mels, bands).unsqueeze(2), mels.mean((1, 2), keepdim=True), mels)
    return mels.masked_fill(_beside(mels, frames).unsqueeze(1), SILENCE)


def _draw_spans(rng: Rng, n: int, size: int, longest: int, share: float) -> NDArray[np.bool_]:
    """Draw a span of 1 to `longest` of `size` positions for a share of `n` rows: -> (n, size), true within it."""
    lengths = rng.integers(1, max(1, longest), n, endpoint=True) * (rng.random(n) < share)
    starts = rng.integers(0, size - lengths, endpoint=True)
    positions = np.arange(size) - starts[:, None]
    return (positions >= 0) & (positions < lengths[:, None])


def _beside(mels: Tensor, values: NDArray[np.generic]) -> Tensor:
    """Move random numbers to the device of the log-mels."""
    return torch.from_numpy(values).to(mels.device)
