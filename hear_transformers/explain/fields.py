"""Receptive fields, measured by gradient, beside those that the table of layers computes from kernels."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch

from ..networks.layer_table import layer_table
from .window import Floats, Window

SHARE = 0.95
"""Of the gradient that an effective receptive field holds, along each axis (after Luo et al., 1701.04128)."""


@dataclass(frozen=True, slots=True, eq=False)
class Field:
    """What the position of a layer in the middle of a clip sees.

    Attributes
    ----------
    layer : its name
    gradient : (n_mels, frames), or (1, samples) of a waveform: magnitude of the gradient of the sum of its features
    theoretical_ms : by kernels and strides; None for the whole window
    measured_ms : audio in which the gradient is not 0; 0 where no feature of the position is active
    effective_ms : the shortest stretch around the position that holds `SHARE` of the gradient
    effective_bands : first and last mel band of the same along frequency
    """

    layer: str
    gradient: Floats
    theoretical_ms: float | None
    measured_ms: float
    effective_ms: float
    effective_bands: tuple[int, int]
    effective_frames: tuple[int, int]


def receptive_fields(window: Window) -> list[Field]:
    """Measure the receptive field of the middle position of every layer along time of a network."""
    trunk, spec = window.trunk, window.model.variant.frontend
    rows = {row.layer: row for row in layer_table(trunk, spec)}
    found = []
    for layer, axis in trunk.layers.items():
        if axis is None or not layer[-1].isdecimal():
            continue
        frames = window.frames.detach().clone().requires_grad_()
        with torch.enable_grad():
            grid = trunk(frames, [layer])[layer]  # (batch, time, freq, features)
            middle = round((window.n_frames / 2 - axis.offset) / axis.hop)
            position = grid[0, min(max(middle, 0), grid.shape[1] - 1), grid.shape[2] // 2]
            (gradient,) = torch.autograd.grad(position.sum(), frames)
        seen = gradient[0].abs().double().cpu().numpy().reshape(-1, frames.shape[-1])
        over_time, over_freq = seen.sum(0), seen.sum(1)
        nonzero = np.flatnonzero(over_time)
        span = nonzero[-1] - nonzero[0] if len(nonzero) else 0
        first, last = holding(over_time, SHARE)

        def in_ms(between: int, is_seen: bool = bool(len(nonzero))) -> float:
            return float(between * spec.hop_ms + spec.receptive_field_ms) if is_seen else 0.0

        theoretical = rows[layer].receptive_field_ms
        bands = holding(over_freq, SHARE)
        found.append(Field(layer, seen, theoretical, in_ms(span), in_ms(last - first), bands, (first, last)))
    return found


def holding(profile: Floats, share: float) -> tuple[int, int]:
    """Return the first and last place of the shortest stretch that holds a share of the sum of a profile."""
    sums = np.concatenate([[0.0], np.cumsum(profile)])
    ends = np.searchsorted(sums, sums[:-1] + share * sums[-1] * (1 - 1e-12))
    lengths = np.where(ends < len(sums), ends - np.arange(len(profile)), len(profile) + 1)
    first = int(lengths.argmin())
    return first, min(first + int(lengths[first]), len(profile)) - 1
