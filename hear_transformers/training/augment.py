"""Augmentation: gain, shift, mixup, masks.

Random numbers are drawn on the CPU for a whole batch and travel with the clips; applying them is arithmetic on the
batch, on its device. The partner of a clip in a mix is its neighbour, so a part of a batch that consists of whole pairs
is augmented like the same rows of the whole batch.

The authors of AST and PaSST subtract the mean of a waveform before mixing. Here it is kept, as in inference. The front
ends of AST and of PANNs ignore it (measured: an offset of 0.1 changes no band by more than 4e-4 nepers or 1e-4 dB);
that of PaSST and EfficientAT has it in its eight lowest bands, mixed or not.
"""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from ..networks.frontend import FrameSpec, MelSpec
from .recipes import Mask, Mixup, Recipe

Clips = tuple[Tensor, Tensor, Tensor]
"""Waveforms or mels (clips, ...), their targets (clips, classes), their weights (clips,)."""

AXES = {"frequency": 1, "time": 2}
"""Axes of a batch of mels by name."""


# Drawing


def draw(recipe: Recipe, rng: np.random.Generator, n: int, n_mels: int, n_frames: int) -> dict[str, Tensor]:
    """Draw the random numbers of a recipe for the clips of a batch.

    Parameters
    ----------
    recipe : gain, shift, mixups and masks
    rng : equal states give equal numbers
    n : clips
    n_mels, n_frames : of a clip's mel; 0 bands for a front end without mel

    Returns
    -------
    draws : (n, ...) each; only those that the recipe needs; masks are (n, masks, 2), the first place and the one behind
        the last
    """
    draws: dict[str, NDArray[np.generic]] = {}
    if recipe.gain_db:
        draws["gain_db"] = rng.uniform(-recipe.gain_db, recipe.gain_db, n).astype(np.float32)
    if recipe.shift_samples:
        draws["shift"] = rng.integers(-recipe.shift_samples, recipe.shift_samples, n, endpoint=True)
    for mixup in recipe.mixups:
        draws[f"share_of_{mixup.of}"] = _shares(mixup, rng, n)
    if recipe.masks:
        sizes = {"frequency": n_mels, "time": n_frames}
        draws["masks"] = np.stack([_stretches(mask, rng, n, sizes[mask.axis]) for mask in _each(recipe)], 1)
    return {name: torch.from_numpy(values) for name, values in draws.items()}


def _shares(mixup: Mixup, rng: np.random.Generator, n: int) -> NDArray[np.float32]:
    """Draw the share of every clip in its mix, 1 for clips that are not mixed: (n,)."""
    is_mixed = rng.random(n) < mixup.rate
    shares = rng.beta(mixup.alpha, mixup.alpha, n)
    if mixup.keep_larger:
        shares = np.maximum(shares, 1 - shares)
    return np.where(is_mixed, shares, 1.0).astype(np.float32)


def _each(recipe: Recipe) -> list[Mask]:
    """Repeat every mask by its number."""
    return [mask for mask in recipe.masks for _ in range(mask.number)]


def _stretches(mask: Mask, rng: np.random.Generator, n: int, size: int) -> NDArray[np.int64]:
    """Draw the first place of one mask of every clip, and the place behind its last: (n, 2)."""
    widths = rng.integers(0, min(mask.widest, size), n, endpoint=True)
    starts = rng.integers(0, size - widths, endpoint=True)
    return np.stack([starts, starts + widths], 1)


# Applying


def waveforms(
    waveforms: Tensor, targets: Tensor, weights: Tensor, draws: Mapping[str, Tensor], recipe: Recipe
) -> Clips:
    """Change the level of clips, roll them, mix them.

    Parameters
    ----------
    waveforms : (clips, samples)
    targets : (clips, classes) from 0 to 1
    weights : (clips,) 1, or 0 for a clip that does not count
    draws : from `draw`, of these clips; empty for no augmentation
    recipe : of `draws`

    Returns
    -------
    waveforms, targets, weights : as given; that of a mix is 0 if either clip's is
    """
    if draws and recipe.gain_db:
        waveforms = waveforms * (10 ** (draws["gain_db"] / 20)).unsqueeze(1)
    if draws and recipe.shift_samples:
        waveforms = rolled(waveforms, draws["shift"])
    return mixed((waveforms, targets, weights), draws.get("share_of_waveforms"))


def mels(
    mels: Tensor, targets: Tensor, weights: Tensor, draws: Mapping[str, Tensor], recipe: Recipe, spec: FrameSpec
) -> Clips:
    """Mask mels, then mix them, the order of the authors who mix mels (PaSST, PANNs, EfficientAT).

    Parameters
    ----------
    mels : (clips, n_mels, frames) from the front end; the output of one without mel is returned unchanged
    targets, weights, draws, recipe : see `waveforms`
    spec : the front end

    Returns
    -------
    mels, targets, weights : as given; that of a mix is 0 if either clip's is
    """
    if not isinstance(spec, MelSpec):
        return mels, targets, weights
    if draws and recipe.masks:
        mels = masked(mels, draws["masks"], recipe, spec)
    return mixed((mels, targets, weights), draws.get("share_of_mels"))


def rolled(waveforms: Tensor, shifts: Tensor) -> Tensor:
    """Roll every row by its number of samples: (clips, samples), (clips,) -> (clips, samples)."""
    n, n_samples = waveforms.shape
    twice = torch.cat([waveforms, waveforms], 1)
    # (clips, samples + 1, samples), a view of all starts, of which only the chosen rows are copied.
    return twice.unfold(1, n_samples, 1)[torch.arange(n, device=shifts.device), -shifts % n_samples]


def mixed(clips: Clips, shares: Tensor | None) -> Clips:
    """Mix every clip with its neighbour, the last of an odd number with itself.

    `shares`, (clips,), are those of a clip in its own mix, 1 for no mixing; without them the clips are unchanged.
    """
    if shares is None:
        return clips
    inputs, targets, weights = clips
    partners = (torch.arange(len(shares), device=shares.device) ^ 1).clamp(max=len(shares) - 1)
    mixed_weights = torch.where(shares < 1, weights * weights[partners], weights)
    return _lerp(inputs, partners, shares), _lerp(targets, partners, shares), mixed_weights


def _lerp(own: Tensor, partners: Tensor, shares: Tensor) -> Tensor:
    """Interpolate between the partners of rows (clips, ...) and the rows themselves by their shares."""
    return torch.lerp(own[partners], own, shares.view(-1, *[1] * (own.ndim - 1)))  # shares: (clips, 1, ...)


def masked(mels: Tensor, stretches: Tensor, recipe: Recipe, spec: MelSpec) -> Tensor:
    """Blank bands and frames of mels, (clips, n_mels, frames), by the stretches of a recipe's masks, see `draw`."""
    means = mels.mean((1, 2), keepdim=True)
    for mask, ends in zip(_each(recipe), stretches.unbind(1), strict=True):
        axis = AXES[mask.axis]
        places = torch.arange(mels.shape[axis], device=mels.device)
        is_blank = (places >= ends[:, :1]) & (places < ends[:, 1:])  # (clips, bands or frames)
        value = means if mask.value is None else spec.normalised(mask.value)
        mels = torch.where(is_blank.unsqueeze(3 - axis), value, mels)
    return mels
