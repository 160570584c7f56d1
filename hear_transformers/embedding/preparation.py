"""How a network is run: the one place that decides the type of its numbers, their layout in memory, and compilation."""

from __future__ import annotations

import torch
from torch import nn

from ..networks.trunk import Exact, Trunk
from .precision import PRECISIONS

KEPT = (nn.modules.batchnorm._BatchNorm, Exact)
"""Parts whose numbers stay float32. Batch normalisation takes and returns 16 bits all the same."""


def prepare(trunk: Trunk, precision: str) -> None:
    """Make a network ready to run in a precision.

    All its parameters are stored in 16 bits where it computes in 16 bits, so that nothing is converted in a forward
    pass, which autocast does for every normalisation and residual sum: on an H200 a quarter of the time of PaSST.
    PyTorch's kernels compute the statistics of LayerNorm, the softmax of attention and all sums in float32 anyhow.
    """
    if PRECISIONS[precision] != torch.float32:
        _cast(trunk, PRECISIONS[precision])


def _cast(module: nn.Module, dtype: torch.dtype) -> None:
    """Store the numbers of a module and its parts in a type, but for `KEPT`."""
    if isinstance(module, KEPT):
        return
    for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
        if tensor.is_floating_point():
            tensor.data = tensor.data.to(dtype)
    for part in module.children():
        _cast(part, dtype)
