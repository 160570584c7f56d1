"""Parameters and operations of a network, counted without running it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from .family import Family, Variant, on_meta, shapes_alone
from .trunk import Trunk

CLIP_SECONDS = 10.0
"""Length of the clip that operations are counted for, that of AudioSet's clips, as in the papers (s)."""


def count_parameters(family: Family, variant: Variant) -> int:
    """Count the parameters of a variant's network, without the memory for it."""
    return sum(parameter.numel() for parameter in on_meta(family, variant).parameters())


def count_macs(family: Family, variant: Variant, seconds: float = CLIP_SECONDS) -> int:
    """Count the multiply-accumulates of a variant's whole network for one clip, see `count_operations`."""
    with shapes_alone():
        return count_operations(family.network(**variant.network).eval(), variant, seconds)[0]


@torch.no_grad()
def count_operations(trunk: Trunk, variant: Variant, seconds: float = CLIP_SECONDS) -> tuple[int, int]:
    """Count what a variant computes for one clip, without computing it.

    Matrix products, attention and convolutions are counted. A network that pads its scenes is counted for the padded
    clip.

    Parameters
    ----------
    trunk : its network, made within `family.shapes_alone`, which is still on, and in evaluation mode
    variant : its front end and its scenes
    seconds : length of the clip

    Returns
    -------
    macs : multiply-accumulates of the network
    operations : multiplications and additions, front end included, as the authors of PANNs count ("multi-adds", table
        XII of 1912.10211): two for every multiply-accumulate, and a Fourier transform as the product with its matrix,
        which theirs is
    """
    from torch.utils.flop_counter import FlopCounterMode  # which loads Triton: 60 MB that no embedding needs

    spec = variant.frontend
    n_samples = int(seconds * spec.sample_rate)
    n_frames = max(spec.n_frames(n_samples), variant.scene.fill_frames)
    frames = spec.example(min(n_frames, trunk.max_frames or n_frames))
    frontend = spec.build()
    # Fused attention would go uncounted; as two matrix products it counts.
    with (
        sdpa_kernel(SDPBackend.MATH),
        FlopCounterMode(display=False, custom_mapping={torch.ops.aten._fft_r2c: _fourier}) as counter,
    ):
        trunk(frames, list(trunk.layers))
        macs = counter.get_total_flops() // 2
        frontend(torch.zeros(1, n_samples))
    return macs, counter.get_total_flops()


def _fourier(shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Count the operations of Fourier transforms of the last axis as products with cosines and with sines."""
    return 2 * 2 * math.prod(out_shape) * shape[-1]
