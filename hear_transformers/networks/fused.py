"""Where kernels of our own replace PyTorch's: large batches on CUDA, in inference, if Triton works there."""

from __future__ import annotations

import functools
from types import ModuleType

import torch
from torch import Tensor, nn

FEWEST_NUMBERS = 2**20
"""From which they pay: fewer take PyTorch's kernels less time than starting one of ours (40 us beside an H200)."""

TYPES = (torch.float32, torch.bfloat16, torch.float16)
"""Of numbers; the kernels compute in float32."""

OLDEST = (8, 0)
"""Compute capability of the first cards that multiply in each of these types (CUDA programming guide)."""


def kernels_for(tensor: Tensor) -> ModuleType | None:
    """Return `kernels` where they are faster for a tensor, None where it is for PyTorch to compute."""
    if (
        torch.compiler.is_compiling()
        or tensor.device.type != "cuda"
        or tensor.dtype not in TYPES
        or tensor.numel() < FEWEST_NUMBERS
        or torch.is_grad_enabled()
        or torch.is_autocast_enabled("cuda")
    ):
        return None
    found = tried(tensor.device, tensor.dtype)
    return None if isinstance(found, str) else found


@functools.cache
def tried(device: torch.device, dtype: torch.dtype) -> ModuleType | str:
    """Return `kernels` if they run, or why not: Triton may be missing, or a C compiler, or the card be too old."""
    try:
        from . import kernels

        if torch.cuda.get_device_capability(device) < OLDEST:
            return f"compute capability below {OLDEST[0]}.{OLDEST[1]}"
        norm = nn.LayerNorm(16, device=device, dtype=dtype)
        kernels.layer_norm(torch.ones(1, 16, device=device, dtype=dtype), norm)
    except Exception as error:  # whatever it is, PyTorch computes the same
        return f"{type(error).__name__}: {error}".splitlines()[0]
    return kernels


class LayerNorm(nn.LayerNorm):
    """PyTorch's, several times as fast where `kernels_for` finds it worth it: a tenth of the time of AST on a card."""

    def forward(self, tokens: Tensor) -> Tensor:
        """Normalise (..., features)."""
        kernels = kernels_for(tokens)
        return super().forward(tokens) if kernels is None else kernels.layer_norm(tokens, self)
