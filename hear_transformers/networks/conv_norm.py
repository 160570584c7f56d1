"""Convolutions and the batch normalisations behind them, which are one convolution in inference."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import nn
from torch.nn.utils import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)

TRANSPARENT = (nn.Identity, nn.AvgPool2d)
"""What may lie between a convolution and its normalisation: what commutes with it. No pooling here pads with zeros."""


def fold(network: Network) -> Network:
    """Return a copy for inference, in which batch normalisations are part of the convolutions before them.

    Which belong together says the order of a Sequential, or the method `conv_norms` of any other module: names of
    its convolutions and of their normalisations. Where no convolution comes before, a normalisation stays.

    Parameters
    ----------
    network : in evaluation mode; it stays as it is

    Returns
    -------
    network : shares all other tensors with the original
    """
    shared: dict[int, Any] = {id(tensor): tensor for tensor in chain(network.parameters(), network.buffers())}
    folded = copy.deepcopy(network, shared)
    for module in list(folded.modules()):
        for conv, norm in conv_norms(module):
            kernel = cast(nn.Conv2d, module.get_submodule(conv))  # or a Conv1d
            statistics = cast(nn.BatchNorm2d, module.get_submodule(norm))
            setattr(module, conv, fuse_conv_bn_eval(kernel, statistics))
            setattr(module, norm, nn.Identity())
    return folded


def conv_norms(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Return the names of the convolutions of a module and of the normalisations behind them, see `fold`."""
    if not isinstance(module, nn.Sequential):
        yield from getattr(module, "conv_norms", tuple)()
        return
    conv = ""
    for name, child in module.named_children():
        if conv and isinstance(child, NORMS):
            yield conv, name
        conv = name if isinstance(child, CONVOLUTIONS) else conv if isinstance(child, TRANSPARENT) else ""


def features_innermost(network: nn.Module) -> None:
    """Lay out kernels with the inputs innermost in memory, so that all maps have their features innermost."""
    for module in network.modules():
        if isinstance(module, nn.Conv2d):
            # Unlike `contiguous`, `to` also changes the strides of axes of length 1, by which PyTorch tells layouts.
            weight = module.weight.detach().to(memory_format=torch.channels_last)
            module.weight = nn.Parameter(weight, requires_grad=False)
