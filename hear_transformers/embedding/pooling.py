"""Pooling: the output of a layer for one window -> one vector."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, slots=True)
class Pool:
    """One way to pool a grid.

    Attributes
    ----------
    function : (batch, time, freq, features) -> (batch, size)
    whole_window : True if the order of values in time matters, so that ``framing="native"``, which pools every frame
        on its own, cannot use it
    """

    function: Callable[[Tensor], Tensor]
    whole_window: bool = False


def _mean(grid: Tensor) -> Tensor:
    return grid.mean((1, 2))


def _max(grid: Tensor) -> Tensor:
    return grid.amax((1, 2))


def _meanmax(grid: Tensor) -> Tensor:
    return torch.cat([_mean(grid), _max(grid)], 1)


def _meanstd(grid: Tensor) -> Tensor:
    frames = grid.mean(2)
    return torch.cat([frames.mean(1), frames.std(1, correction=0)], 1)


def _flat(grid: Tensor) -> Tensor:
    return grid.mean(1).flatten(1)


def _unroll(grid: Tensor) -> Tensor:
    # Frequency before time, as the authors of PaSST flatten their (mel, frame) array in the "mel" presets.
    return grid.permute(0, 2, 3, 1).flatten(1)


POOLS = {
    "mean": Pool(_mean),
    "max": Pool(_max),
    "meanmax": Pool(_meanmax),
    "flat": Pool(_flat),
    "meanstd": Pool(_meanstd, whole_window=True),
    "unroll": Pool(_unroll, whole_window=True),
}
"""``mean`` and ``max`` over time and frequency; ``meanmax`` both; ``flat`` mean over time that keeps frequency;
``meanstd`` mean and standard deviation over time of the mean over frequency; ``unroll`` every value of the window."""

CLASS_TOKEN = "cls"
"""Not a way to pool a grid but another thing to read: the class (and distillation) token instead of the patches."""


def frame_wise(pool: str) -> bool:
    """Return True if each position in time can be pooled on its own, as framing "native" does."""
    return pool in POOLS and not POOLS[pool].whole_window
