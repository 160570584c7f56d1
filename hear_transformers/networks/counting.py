"""Parameters and operations of a network, counted without running it."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.nn.attention import SDPBackend, sdpa_kernel

from .family import Family, Variant

CLIP_SECONDS = 10.0
"""Length of the clip that operations are counted for, that of AudioSet's clips, as in the papers (s)."""


def count_parameters(family: Family, variant: Variant) -> int:
    """Count the parameters of a variant's network, without the memory for it."""
    with torch.device("meta"):
        trunk = family.network(**variant.network)
    return sum(parameter.numel() for parameter in trunk.parameters())


def count_macs(family: Family, variant: Variant, seconds: float = CLIP_SECONDS) -> int:
    """Count the multiply-accumulates of a variant's whole network for one clip, without running it.

    Matrix products, attention and convolutions are counted, the front end is not. A network that pads its scenes is
    counted for the padded clip.
    """
    return _count(family, variant, seconds, with_frontend=False) // 2


def count_operations(family: Family, variant: Variant, seconds: float = CLIP_SECONDS) -> int:
    """Count multiplications and additions, front end included, without running the network.

    This is how the authors of PANNs count ("multi-adds", table XII of 1912.10211): two for every multiply-accumulate,
    and a Fourier transform as the product with its matrix, which theirs is.
    """
    return _count(family, variant, seconds, with_frontend=True)


@torch.no_grad()
def _count(family: Family, variant: Variant, seconds: float, *, with_frontend: bool) -> int:
    from torch.utils.flop_counter import FlopCounterMode  # which loads Triton: 60 MB that no embedding needs

    spec = variant.frontend
    frontend = spec.build()
    n_samples = int(seconds * spec.sample_rate)
    # Fused attention would go uncounted; as two matrix products it counts.
    with FakeTensorMode(allow_non_fake_inputs=True), sdpa_kernel(SDPBackend.MATH):
        trunk = family.network(**variant.network).eval()
        n_frames = max(spec.n_frames(n_samples), variant.scene.fill_frames)
        frames = spec.example(min(n_frames, trunk.max_frames or n_frames))
        beyond = {torch.ops.aten._fft_r2c: _fourier} if with_frontend else {}
        with FlopCounterMode(display=False, custom_mapping=beyond) as counter:
            trunk(frames, list(trunk.layers))
            if with_frontend:
                frontend(torch.zeros(1, n_samples))
    return counter.get_total_flops()


def _fourier(shape: Sequence[int], *_: Any, out_shape: Sequence[int], **__: Any) -> int:
    """Count the operations of Fourier transforms of the last axis as products with cosines and with sines."""
    return 2 * 2 * math.prod(out_shape) * shape[-1]
