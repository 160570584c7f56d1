"""The layers of a model, measured."""

from __future__ import annotations

import torch

from .frontend import FrameSpec
from .layer_names import LayerRow
from .trunk import TimeAxis, Trunk

MEL_AXIS = TimeAxis(1, 0.0, 1)
"""Time axis of the log-mel spectrogram itself, layer "mel" of every model whose front end computes one."""


def axes_of(trunk: Trunk, spec: FrameSpec) -> dict[str, TimeAxis | None]:
    """Return the time axis of every layer of a model in order, that of its front end first; None without time."""
    return {**({"mel": MEL_AXIS} if spec.has_mel else {}), **trunk.layers}


@torch.no_grad()
def layer_table(trunk: Trunk, spec: FrameSpec) -> list[LayerRow]:
    """Measure every layer on a few frames of zeros; the network must be in evaluation mode."""
    example = spec.example(trunk.min_frames).to(next(trunk.parameters()).device)
    taps = trunk(example, list(trunk.layers))
    if spec.has_mel:
        taps["mel"] = example.transpose(1, 2).unsqueeze(2)  # (batch, time, 1, n_mels)
    rows = []
    for name, axis in axes_of(trunk, spec).items():
        n_freq = taps[name].shape[2] if taps[name].ndim == 4 else 1
        hop_ms = None if axis is None else axis.hop * spec.hop_ms
        field = None if axis is None else axis.receptive_field
        field_ms = None if field is None else (field - 1) * spec.hop_ms + spec.receptive_field_ms
        rows.append(LayerRow(name, taps[name].shape[-1], n_freq, hop_ms, field_ms))
    return rows
