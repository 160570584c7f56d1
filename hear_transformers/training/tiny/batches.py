"""From shards to batches: what is held in memory, crops, and the disturbances that make every crop a new one.

Batch number i depends on nothing but the seed and i, so a run that stopped goes on as if it had not.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ...errors import HearTransformersError
from ...networks.frontend import CPJKU_MEL
from . import shards
from .recipe import Recipe

LARGEST_TARGET = 6.0  # standard deviations; the teacher's outputs have rare extremes
LOGIT_DEVIATION_FLOOR = 0.3  # keeps classes that never sound in synthetic scenes from being scaled up
RAREST_PHONE = 1e-3  # share of the frames; rarer phones become "other", number 0

TILT_POINTS, TILT_SPREAD = 4, 0.15  # in units of the log-mel, 1 being 21.7 dB of power
GAIN_SPREAD = 0.25
MEL_SHIFT = 3  # bands up or down, vocal tract and pitch of a speaker
BACKGROUND_SHARE = 0.6  # of the batches of speech that get a scene as background
BACKGROUND_DB = (-45.0, -3.0)  # of its loudest point, relative to that of the speech
BAND_MASK, BAND_MASK_SHARE = 16, 0.5
TIME_MASK, TIME_MASK_SHARE = 1 / 8, 0.3  # longest, as a part of the crop
SILENCE = CPJKU_MEL.normalised(np.log(CPJKU_MEL.floor))  # log-mel of digital silence

Mels = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class Scenes:
    """Scenes and what the teacher says of them, standardised: mels (clips, n_mels, frames), others (clips, size)."""

    mels: Mels
    logits: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class Speech:
    """Speech and its phones: mels (clips, n_mels, frames), phones (clips, frames) numbers into `names`."""

    mels: Mels
    phones: NDArray[np.int64]
    names: tuple[str, ...]


def load(folder: Path, kind: str, numbers: Iterable[int]) -> shards.Arrays:
    """Read shards and join them.

    Raises
    ------
    HearTransformersError : one of them has not been made yet
    """
    paths = [shards.shard_path(folder, kind, number) for number in numbers]
    if missing := [path for path in paths if not path.exists()]:
        raise HearTransformersError(
            f"{missing[0]} is missing, and {len(missing) - 1} more; make them with the commands synthesise and targets"
        )
    parts = [shards.read(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def standardised(values: NDArray[np.generic], floor: float) -> NDArray[np.float32]:
    """Bring every column to mean 0 and s.d. 1 or less (`floor` is added to the s.d.), without extremes."""
    columns = values.astype(np.float32)
    scaled = (columns - columns.mean(0)) / (columns.std(0) + floor)
    return np.clip(scaled, -LARGEST_TARGET, LARGEST_TARGET)


def load_scenes(folder: Path, recipe: Recipe) -> Scenes:
    """Read the scenes of a recipe and their targets."""
    numbers = range(recipe.scene_shards)
    mels, targets = (load(folder, kind, numbers) for kind in ("scenes", "targets"))
    logits = standardised(targets["logits"], LOGIT_DEVIATION_FLOOR)
    return Scenes(mels["mel"].astype(np.float16), logits, standardised(targets["features"], 1e-3))


def load_speech(folder: Path, recipe: Recipe) -> Speech:
    """Read the speech of a recipe and number its phones, "other" first, then by name."""
    arrays = load(folder, "speech", range(recipe.speech_shards))
    names, indices, counts = np.unique(arrays["phones"], return_inverse=True, return_counts=True)
    is_common = counts > RAREST_PHONE * counts.sum()
    numbers = np.where(is_common, np.cumsum(is_common), 0)
    phones = numbers[indices].reshape(arrays["phones"].shape)
    return Speech(arrays["mel"].astype(np.float16), phones, ("other", *names[is_common].tolist()))


def crop_starts(rng: np.random.Generator, n: int, clips: Mels, length: int) -> NDArray[np.int64]:
    """Draw where the crops of `n` clips begin."""
    return rng.integers(0, clips.shape[2] - length, n, endpoint=True)


def cropped(
    clips: NDArray[np.generic], chosen: NDArray[np.int64], starts: NDArray[np.int64], length: int
) -> NDArray[np.generic]:
    """Cut one crop out of each chosen clip, along the last axis."""
    return np.stack([clips[i][..., start : start + length] for i, start in zip(chosen, starts, strict=True)])


def scene_batch(scenes: Scenes, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw log-mels (batch, n_mels, frames), teacher's logits and features (batch, size)."""
    length = int(rng.choice(recipe.scene_crops))
    chosen = rng.integers(0, len(scenes.mels), recipe.scene_frames // length)
    mels = cropped(scenes.mels, chosen, crop_starts(rng, len(chosen), scenes.mels, length), length)
    disturbed = masked(rng, coloured(rng, mels.astype(np.float32)))
    return (
        torch.from_numpy(disturbed),
        torch.from_numpy(scenes.logits[chosen]),
        torch.from_numpy(scenes.features[chosen]),
    )


def speech_batch(speech: Speech, scenes: Scenes, recipe: Recipe, rng: np.random.Generator) -> tuple[Tensor, Tensor]:
    """Draw log-mels (batch, n_mels, frames) and the phone of every frame (batch, frames)."""
    length = int(rng.choice(recipe.speech_crops))
    n = recipe.speech_frames // length
    chosen = rng.integers(0, len(speech.mels), n)
    starts = crop_starts(rng, n, speech.mels, length)
    mels = shifted(rng, cropped(speech.mels, chosen, starts, length).astype(np.float32))
    if rng.random() < BACKGROUND_SHARE:
        background = rng.integers(0, len(scenes.mels), n)
        scene_starts = crop_starts(rng, n, scenes.mels, length)
        mels = mixed(rng, mels, cropped(scenes.mels, background, scene_starts, length).astype(np.float32))
    phones = cropped(speech.phones, chosen, starts, length)
    return torch.from_numpy(masked(rng, coloured(rng, mels))), torch.from_numpy(phones)


def mixed(rng: np.random.Generator, mels: NDArray[np.float32], backgrounds: NDArray[np.float32]) -> NDArray[np.float32]:
    """Add backgrounds to log-mels as powers, at random levels."""
    gains = rng.uniform(*BACKGROUND_DB, len(mels)) * np.log(10) / 10
    levels = mels.max((1, 2)) - backgrounds.max((1, 2)) + gains / CPJKU_MEL.scale
    backgrounds = backgrounds + levels.astype(np.float32)[:, None, None]
    return np.logaddexp(mels * CPJKU_MEL.scale, backgrounds * CPJKU_MEL.scale) / np.float32(CPJKU_MEL.scale)


def shifted(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Move each log-mel up or down by a few bands; the band at the edge is repeated."""
    bands = np.arange(mels.shape[1])
    shifts = rng.integers(-MEL_SHIFT, MEL_SHIFT, len(mels), endpoint=True)
    return np.stack([mel[np.clip(bands + shift, 0, len(bands) - 1)] for mel, shift in zip(mels, shifts, strict=True)])


def coloured(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Change gain and spectral tilt of each log-mel, as another microphone would."""
    n, n_mels = mels.shape[:2]
    points = rng.normal(0.0, TILT_SPREAD, (n, TILT_POINTS)) + rng.normal(0.0, GAIN_SPREAD, (n, 1))
    where = np.linspace(0, TILT_POINTS - 1, n_mels)
    curves = np.stack([np.interp(where, np.arange(TILT_POINTS), row) for row in points]).astype(np.float32)
    return np.maximum(mels + curves[:, :, None], np.float32(SILENCE))


def masked(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Blank a few neighbouring bands or frames of some log-mels (SpecAugment: Park et al., 1904.08779), in place."""
    for mel in mels:
        if rng.random() < BAND_MASK_SHARE:
            mel[_stretch(rng, mel.shape[0], BAND_MASK)] = mel.mean()
        if rng.random() < TIME_MASK_SHARE:
            mel[:, _stretch(rng, mel.shape[1], int(mel.shape[1] * TIME_MASK))] = SILENCE
    return mels


def _stretch(rng: np.random.Generator, n: int, longest: int) -> slice:
    """Draw a stretch of 1 to `longest` of `n` places."""
    length = int(rng.integers(1, max(1, longest), endpoint=True))
    start = int(rng.integers(0, n - length, endpoint=True))
    return slice(start, start + length)


def batches(
    scenes: Scenes, speech: Speech, recipe: Recipe, steps: Sequence[int]
) -> Iterable[tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Draw the two batches of each step."""
    for step in steps:
        rng = np.random.default_rng((recipe.seed, step))
        yield scene_batch(scenes, recipe, rng), speech_batch(speech, scenes, recipe, rng)
