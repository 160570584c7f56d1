"""How a network is run: the one place that decides the type of its numbers, their layout in memory, and compilation."""

from __future__ import annotations

import threading
from itertools import chain
from typing import Any
from weakref import WeakKeyDictionary

import torch
from torch import nn

from ..networks import conv_norm, winograd
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


_COPIES: WeakKeyDictionary[Trunk, tuple[Any, Trunk]] = WeakKeyDictionary()
"""Copies for inference, and the state of the network that each was made of, see `ready`."""

_COPYING = threading.Lock()


def ready(trunk: Trunk, precision: str, backend: str | None = None) -> Trunk:
    """Return what computes a network fastest: a copy of a convolutional one in inference, otherwise itself.

    The copy is made at the first use and once more whenever the network has other weights or another device. A network
    with hooks runs itself, so that they see what they were registered for.

    Parameters
    ----------
    trunk : from `prepare`
    precision : a key of `PRECISIONS`
    backend : of `torch.compile`, None to run as it is
    """
    if torch.is_grad_enabled() or trunk.training or torch.compiler.is_compiling() or not trunk.convolutional:
        return trunk
    if any(_is_watched(module) for module in trunk.modules()):
        return trunk
    state = precision, backend, [(id(each), each.device, _version(each)) for each in _tensors(trunk)]
    with _COPYING:
        made_of, copied = _COPIES.get(trunk, (None, trunk))
        if made_of != state:
            copied = _copied(trunk, precision)
            if backend is not None:
                copied.compile(dynamic=True, backend=backend)
            _COPIES[trunk] = state, copied
    return copied


def _tensors(module: nn.Module) -> chain[torch.Tensor]:
    return chain(module.parameters(), module.buffers())


def _is_watched(module: nn.Module) -> bool:
    """Return True if a module has hooks or another forward than its class, which a copy would not call."""
    return bool(module._forward_hooks or module._forward_pre_hooks or "forward" in vars(module))


def _version(tensor: torch.Tensor) -> int:
    """Return how often a tensor was changed in place; one made in inference mode does not count that."""
    return 0 if tensor.is_inference() else tensor._version


def _copied(trunk: Trunk, precision: str) -> Trunk:
    """Copy a network for inference: fewer operations, features innermost in memory; other tensors are shared."""
    device = next(trunk.parameters()).device.type
    copied = conv_norm.fold(trunk)
    if device == "cpu" and PRECISIONS[precision] == torch.float32:
        winograd.replace_convolutions(copied)
    # In float32 proper, cuDNN has its fastest convolutions for the usual layout.
    if device == "cpu" or (device == "cuda" and precision != "float32"):
        conv_norm.features_innermost(copied)
    return copied
