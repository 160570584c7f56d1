"""From shards to batches: arrays in memory, crops, and their random augmentation.

Batch number i depends only on the seed and i, so a resumed run ends as if it had never stopped.
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
from .recipe import TinyRecipe

LARGEST_TARGET = 6.0  # standard deviations; the teacher's outputs have rare outliers
LOGIT_DEVIATION_FLOOR = 0.3  # keeps classes that never occur in synthetic scenes from being scaled up
RAREST_PHONE = 1e-3  # fraction of the frames; rarer phones become "other", number 0

TILT_POINTS, TILT_SPREAD = 4, 0.15  # in units of the log-mel, 1 being 21.7 dB of power
GAIN_SPREAD = 0.25
MEL_SHIFT = 3  # bands up or down, for other vocal tracts and pitches
BACKGROUND_SHARE = 0.6  # fraction of the batches of speech that get scenes as background
BACKGROUND_DB = (-45.0, -3.0)  # level of its loudest point, relative to that of the speech
BAND_MASK, BAND_MASK_SHARE = 16, 0.5
TIME_MASK, TIME_MASK_SHARE = 1 / 8, 0.3  # longest, as a fraction of the crop
SILENCE = CPJKU_MEL.normalised(np.log(CPJKU_MEL.floor))  # log-mel of digital silence

Mels = NDArray[np.float16]


@dataclass(frozen=True, slots=True)
class SceneSet:
    """Scenes and the teacher's standardised outputs: mels (clips, n_mels, frames), others (clips, size)."""

    mels: Mels
    logits: NDArray[np.float32]
    features: NDArray[np.float32]


@dataclass(frozen=True, slots=True)
class SpeechSet:
    """Speech and its phones: mels (clips, n_mels, frames), phones (clips, frames) as indices into `names`."""

    mels: Mels
    phones: NDArray[np.int64]
    names: tuple[str, ...]


def load_shards(folder: Path, kind: str, numbers: Iterable[int]) -> shards.Arrays:
    """Read and concatenate shards; raise HearTransformersError if one is missing."""
    paths = [shards.shard_path(folder, kind, number) for number in numbers]
    if missing := [path for path in paths if not path.exists()]:
        raise HearTransformersError(
            f"{missing[0]} is missing, and {len(missing) - 1} more; make them with the commands synthesise and targets"
        )
    parts = [shards.read_shard(path) for path in paths]
    return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}


def standardise(values: NDArray[np.generic], floor: float) -> NDArray[np.float32]:
    """Scale every column to mean 0 and s.d. at most 1 (`floor` is added to the s.d.), and clip outliers."""
    columns = values.astype(np.float32)
    scaled = (columns - columns.mean(0)) / (columns.std(0) + floor)
    return np.clip(scaled, -LARGEST_TARGET, LARGEST_TARGET)


def load_scenes(folder: Path, recipe: TinyRecipe) -> SceneSet:
    """Read the scenes of a recipe and their targets."""
    numbers = range(recipe.scene_shards)
    mels, targets = (load_shards(folder, kind, numbers) for kind in ("scenes", "targets"))
    logits = standardise(targets["logits"], LOGIT_DEVIATION_FLOOR)
    return SceneSet(mels["mel"].astype(np.float16), logits, standardise(targets["features"], 1e-3))


def load_speech(folder: Path, recipe: TinyRecipe) -> SpeechSet:
    """Read the speech of a recipe, and number its phones: "other" first, then by name."""
    arrays = load_shards(folder, "speech", range(recipe.speech_shards))
    names, indices, counts = np.unique(arrays["phones"], return_inverse=True, return_counts=True)
    is_common = counts > RAREST_PHONE * counts.sum()
    numbers = np.where(is_common, np.cumsum(is_common), 0)
    phones = numbers[indices].reshape(arrays["phones"].shape)  # (clips, frames)
    return SpeechSet(arrays["mel"].astype(np.float16), phones, ("other", *names[is_common].tolist()))


def draw_starts(rng: np.random.Generator, n: int, clips: Mels, length: int) -> NDArray[np.int64]:
    """Draw the first frames of the crops of `n` clips."""
    return rng.integers(0, clips.shape[2] - length, n, endpoint=True)


def crop(
    clips: NDArray[np.generic], chosen: NDArray[np.int64], starts: NDArray[np.int64], length: int
) -> NDArray[np.generic]:
    """Crop each chosen clip along its last axis."""
    return np.stack([clips[i][..., start : start + length] for i, start in zip(chosen, starts, strict=True)])


def scene_batch(scenes: SceneSet, recipe: TinyRecipe, rng: np.random.Generator) -> tuple[Tensor, Tensor, Tensor]:
    """Draw log-mels (batch, n_mels, frames), teacher's logits and features (batch, size)."""
    length = int(rng.choice(recipe.scene_crops))
    chosen = rng.integers(0, len(scenes.mels), recipe.scene_frames // length)
    mels = crop(scenes.mels, chosen, draw_starts(rng, len(chosen), scenes.mels, length), length)
    augmented = mask(rng, colour(rng, mels.astype(np.float32)))
    return (
        torch.from_numpy(augmented),
        torch.from_numpy(scenes.logits[chosen]),
        torch.from_numpy(scenes.features[chosen]),
    )


def speech_batch(
    speech: SpeechSet, scenes: SceneSet, recipe: TinyRecipe, rng: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Draw log-mels (batch, n_mels, frames) and the phone of every frame (batch, frames)."""
    length = int(rng.choice(recipe.speech_crops))
    n = recipe.speech_frames // length
    chosen = rng.integers(0, len(speech.mels), n)
    starts = draw_starts(rng, n, speech.mels, length)
    mels = shift_bands(rng, crop(speech.mels, chosen, starts, length).astype(np.float32))
    if rng.random() < BACKGROUND_SHARE:
        background = rng.integers(0, len(scenes.mels), n)
        scene_starts = draw_starts(rng, n, scenes.mels, length)
        mels = add_backgrounds(rng, mels, crop(scenes.mels, background, scene_starts, length).astype(np.float32))
    phones = crop(speech.phones, chosen, starts, length)
    return torch.from_numpy(mask(rng, colour(rng, mels))), torch.from_numpy(phones)


def add_backgrounds(
    rng: np.random.Generator, mels: NDArray[np.float32], backgrounds: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Add the power of backgrounds to log-mels, at random levels."""
    gains = rng.uniform(*BACKGROUND_DB, len(mels)) * np.log(10) / 10
    levels = mels.max((1, 2)) - backgrounds.max((1, 2)) + gains / CPJKU_MEL.scale
    backgrounds = backgrounds + levels.astype(np.float32)[:, None, None]
    return np.logaddexp(mels * CPJKU_MEL.scale, backgrounds * CPJKU_MEL.scale) / np.float32(CPJKU_MEL.scale)


def shift_bands(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Shift each log-mel up or down by a few bands, repeating the band at the edge."""
    bands = np.arange(mels.shape[1])
    shifts = rng.integers(-MEL_SHIFT, MEL_SHIFT, len(mels), endpoint=True)
    return np.stack([mel[np.clip(bands + shift, 0, len(bands) - 1)] for mel, shift in zip(mels, shifts, strict=True)])


def colour(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Change gain and spectral tilt of each log-mel, as another microphone would."""
    n, n_mels = mels.shape[:2]
    points = rng.normal(0.0, TILT_SPREAD, (n, TILT_POINTS)) + rng.normal(0.0, GAIN_SPREAD, (n, 1))
    where = np.linspace(0, TILT_POINTS - 1, n_mels)
    curves = np.stack([np.interp(where, np.arange(TILT_POINTS), row) for row in points]).astype(np.float32)
    return np.maximum(mels + curves[:, :, None], np.float32(SILENCE))


def mask(rng: np.random.Generator, mels: NDArray[np.float32]) -> NDArray[np.float32]:
    """Mask a few adjacent bands or frames of some log-mels (SpecAugment: Park et al., 1904.08779), in place."""
    for mel in mels:
        if rng.random() < BAND_MASK_SHARE:
            mel[_draw_slice(rng, mel.shape[0], BAND_MASK)] = mel.mean()
        if rng.random() < TIME_MASK_SHARE:
            mel[:, _draw_slice(rng, mel.shape[1], int(mel.shape[1] * TIME_MASK))] = SILENCE
    return mels


def _draw_slice(rng: np.random.Generator, n: int, longest: int) -> slice:
    """Draw a slice of 1 to `longest` of `n` positions."""
    length = int(rng.integers(1, max(1, longest), endpoint=True))
    start = int(rng.integers(0, n - length, endpoint=True))
    return slice(start, start + length)


def batches(
    scenes: SceneSet, speech: SpeechSet, recipe: TinyRecipe, steps: Sequence[int]
) -> Iterable[tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]]:
    """Draw the two batches of each step."""
    for step in steps:
        rng = np.random.default_rng((recipe.seed, step))
        yield scene_batch(scenes, recipe, rng), speech_batch(speech, scenes, recipe, rng)
