"""Convolutions and the batch normalisations behind them, which are one convolution in inference."""

from __future__ import annotations

import copy
from collections.abc import Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, TypeVar, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import fuse_conv_bn_eval

Network = TypeVar("Network", bound=nn.Module)

CONVOLUTIONS = (nn.Conv1d, nn.Conv2d)
NORMS = (nn.BatchNorm1d, nn.BatchNorm2d)


def fold(network: Network) -> Network:
    """Return a copy for inference, in which batch normalisations are part of the convolutions before them.

    Which belong together say `chains`. Where no convolution comes before, a normalisation stays.

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
            both = cast(tuple[nn.Conv2d, nn.BatchNorm2d], (getattr(module, conv), getattr(module, norm)))
            setattr(module, conv, joined(*both))
            setattr(module, norm, nn.Identity())
    return folded


def joined(conv: nn.Conv2d, norm: nn.BatchNorm2d) -> nn.Conv2d:
    """Return the convolution that does the work of both, of either number of dimensions."""
    # In float64, as all weights of a channel take on what its scale is rounded by; not every device has it.
    fused = fuse_conv_bn_eval(copy.deepcopy(conv).cpu(), copy.deepcopy(norm).cpu().double())
    return fused.to(conv.weight.device)


def is_learning(norm: nn.Module) -> bool:
    """Return True for a batch normalisation of what this process has in training, whatever else it is part of."""
    return isinstance(norm, NORMS) and norm.training


def normalised(mapped: Tensor, bias: Tensor, norm: nn.BatchNorm2d) -> Tensor:
    """Normalise in training what a convolution gave without its bias, as if it had been added.

    The mean takes it away again, so that adding it to every position, and its gradient over all of them, are saved. It
    moves the running mean alone; its gradient is 0, beside rounding where it is added.
    """
    offset = norm.bias + 0 * bias  # a gradient for each parameter, for which processes with a share of the batch wait
    mean = cast(Tensor, norm.running_mean) - bias.detach()
    found = F.batch_norm(
        mapped, mean, norm.running_var, norm.weight, offset, True, cast(float, norm.momentum), norm.eps
    )
    cast(Tensor, norm.running_mean).copy_(mean + bias.detach())
    cast(Tensor, norm.num_batches_tracked).add_(1)
    return found


def conv_norms(module: nn.Module) -> Iterator[tuple[str, str]]:
    """Return the names of the convolutions of a module and of the normalisations behind them, see `fold`."""
    for names in chains(module):
        conv = ""
        for name in names:
            part = module.get_submodule(name)
            if conv and isinstance(part, NORMS):
                yield conv, name
            conv = name if isinstance(part, CONVOLUTIONS) else conv if commutes(part) else ""


def chains(module: nn.Module) -> Iterable[Sequence[str]]:
    """Return names of parts of a module, each of which takes what the one before it returns, and nothing else does.

    Those of a Sequential are all its parts; any other module has a method `chains` if there is something to join.
    """
    if isinstance(module, nn.Sequential):
        return [[name for name, _ in module.named_children()]]
    return getattr(module, "chains", tuple)()


def commutes(module: nn.Module) -> bool:
    """Return True for what may lie between a convolution and its normalisation: means, but not of zeros beyond ends."""
    return isinstance(module, nn.Identity) or (isinstance(module, nn.AvgPool2d) and module.padding == 0)


def features_innermost(network: nn.Module) -> None:
    """Lay out kernels so that all maps have their features innermost in memory; kernels of 1x1 become `Pointwise`.

    A module with a method `for_inference` is replaced by what that returns.
    """
    for module in list(network.modules()):
        for name, child in module.named_children():
            if for_inference := getattr(child, "for_inference", None):
                setattr(module, name, for_inference())
            elif isinstance(child, nn.Conv2d):
                setattr(module, name, Pointwise(child) if is_pointwise(child) else child)
                # Unlike `contiguous`, `to` also changes strides of axes of length 1, by which PyTorch tells layouts.
                weight = child.weight.detach().to(memory_format=torch.channels_last)
                child.weight = nn.Parameter(weight, requires_grad=False)


def is_pointwise(conv: nn.Conv2d) -> bool:
    """Return True for a convolution that reads one position for each output."""
    return (conv.kernel_size, conv.stride, conv.padding, conv.groups) == ((1, 1), (1, 1), (0, 0), 1)


class Pointwise(nn.Module):
    """A convolution with a kernel of 1x1 as a matrix product, which adds the bias on its way, and may apply ReLU."""

    def __init__(self, conv: nn.Conv2d, relu: bool = False) -> None:
        super().__init__()
        self.weight = nn.Parameter(conv.weight.detach().flatten(1).contiguous(), requires_grad=False)
        self.bias = conv.bias
        self.relu = relu

    def forward(self, maps: Tensor, gate: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Map (batch, inputs, freq, time), with the features innermost in memory, to (batch, outputs, freq, time).

        Inputs are multiplied by a gate (batch, inputs) before, and a residual is added, see `project`.
        """
        grid = maps.permute(0, 2, 3, 1)  # (batch, freq, time, inputs)
        grid = grid if gate is None else grid * gate[:, None, None]
        mapped = product(grid, self.weight, self.bias, self.relu).permute(0, 3, 1, 2)
        return mapped if residual is None else residual + mapped


def project(layers: nn.Module, maps: Tensor, gate: Tensor | None, residual: Tensor | None) -> Tensor:
    """Apply the last layers of a block to gated maps, and add the residual: in one product where they are one.

    Parameters
    ----------
    layers : a convolution and what follows it
    maps : (batch, inputs, freq, time)
    gate : (batch, inputs), None for none
    residual : as the result, None for none
    """
    conv, *others = layers.children()
    if isinstance(conv, Pointwise) and all(isinstance(other, nn.Identity) for other in others):
        return cast(Tensor, conv(maps, gate, residual))
    mapped = layers(maps if gate is None else maps * gate[:, :, None, None])
    return mapped if residual is None else residual + mapped


def product(rows: Tensor, weight: Tensor, bias: Tensor | None, relu: bool) -> Tensor:
    """Multiply (..., inputs) by (outputs, inputs), add the bias, apply ReLU if wanted: -> (..., outputs).

    One kernel of cuBLAS does it all.
    """
    if bias is None or not relu:
        return F.relu_(F.linear(rows, weight, bias)) if relu else F.linear(rows, weight, bias)
    return torch._addmm_activation(bias, rows.flatten(0, -2), weight.t()).unflatten(0, rows.shape[:-1])
