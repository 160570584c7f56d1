"""Convolutions and what surrounds them in fewer passes over memory, for 16 bits on CUDA.

Tensor cores multiply so fast that convolutional networks wait for memory. PyTorch adds the bias of a convolution of
cuDNN, applies ReLU and pools in kernels of their own, and where these broadcast they reach a third of the bandwidth.
What is said to be faster was measured in bfloat16 on an H200, with the features of all maps innermost in memory.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from itertools import pairwise
from typing import TypeGuard, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from .conv_norm import Pointwise, chains, is_pointwise, product
from .fused import kernels_for

MOST_CHANNELS = 768
"""Of a product with the identity: with more, the multiplications take longer than the memory."""

ALIGNED = 8
"""Numbers in 16 bytes, at multiples of which rows start that products are fast with."""

LARGEST_KERNEL = 5
"""Of a convolution from one map: of a larger one, the windows take too much memory."""

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "": lambda maps: maps, "relu": F.relu_, "hardswish": partial(F.hardswish, inplace=True), "gelu": F.gelu,
}  # fmt: skip
"""That are joined with what comes before, by the names under which kernels know them; the first is none."""


def fuse(network: nn.Module) -> None:
    """Replace what is faster otherwise in a network from `conv_norm.fold`, where a ReLU is part of what it follows."""
    for module in list(network.modules()):
        for chain in chains(module):
            names = [name for name in chain if type(module.get_submodule(name)) is not nn.Identity]
            for name, behind in pairwise([*names, ""]):
                activation = activation_of(module.get_submodule(behind)) if behind else ""
                fused = faster(module.get_submodule(name), activation)
                if fused is not None:
                    setattr(module, name, fused)
                    if activation:
                        setattr(module, behind, nn.Identity())
        for name, child in module.named_children():
            if has_blocks(child):
                setattr(module, name, BlockMeans(*pair(child.kernel_size)))


def activation_of(module: nn.Module) -> str:
    """Return the name of an activation, a key of `ACTIVATIONS`; empty for whatever else."""
    if type(module) is nn.GELU and module.approximate != "none":
        return ""
    return {nn.ReLU: "relu", nn.Hardswish: "hardswish", nn.GELU: "gelu"}.get(type(module), "")


def faster(module: nn.Module, activation: str) -> nn.Module | None:
    """Return what computes a convolution, and the activation behind it if any, faster; None for whatever else."""
    if type(module) is not nn.Conv2d or module.padding_mode != "zeros" or isinstance(module.padding, str):
        return None
    if is_pointwise(module):
        return Product(module, activation)
    if reads_one_map(module):
        return FromOneMap(module, activation)
    if module.groups == module.in_channels == module.out_channels:
        return Depthwise(module, activation)
    if module.groups != 1 or not activation:
        return None
    return ConvReLU(module) if activation == "relu" else ConvActivation(module, activation)


def reads_one_map(conv: nn.Conv2d) -> bool:
    """Return True for a convolution of a spectrogram with a small square kernel, centred."""
    size = conv.kernel_size[0]
    is_centred = (conv.kernel_size, conv.padding) == ((size, size), (size // 2, size // 2))
    is_small = size in range(3, LARGEST_KERNEL + 1, 2) and conv.dilation == (1, 1)
    return conv.in_channels == 1 and is_centred and is_small


def has_blocks(pool: nn.Module) -> TypeGuard[nn.AvgPool2d]:
    """Return True for means of blocks beside each other."""
    return (
        type(pool) is nn.AvgPool2d
        and pair(pool.kernel_size) == pair(pool.stride)
        and pair(pool.padding) == (0, 0)
        and not pool.ceil_mode
    )


def pair(size: int | tuple[int, int]) -> tuple[int, int]:
    """Return a size along both axes, as PyTorch takes one for both."""
    return size if isinstance(size, tuple) else (size, size)


class Product(Pointwise):
    """A convolution with a kernel of 1x1 as one product, with whatever is done before and behind it.

    cuBLAS applies ReLU alone; the rest takes kernels of our own, which read and write maps once.
    """

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__(conv, activation == "relu")
        self.activation = activation

    def forward(self, maps: Tensor, gate: Tensor | None = None, residual: Tensor | None = None) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq, time), see `Pointwise.forward`."""
        is_plain = self.activation in ("", "relu") and gate is None and residual is None
        kernels = None if is_plain or not is_innermost(maps) else kernels_for(maps)
        if kernels is None:
            mapped = ACTIVATIONS["" if self.relu else self.activation](super().forward(maps, gate))
            return mapped if residual is None else residual + mapped
        added = None if residual is None else residual.permute(0, 2, 3, 1).contiguous()
        grid = maps.permute(0, 2, 3, 1)  # (batch, freq, time, inputs)
        found = kernels.product(grid, self.weight, self.bias, self.activation, gate, added)
        return cast(Tensor, found.permute(0, 3, 1, 2))


class ConvReLU(nn.Module):
    """A convolution whose bias and ReLU cuDNN applies as well: 12.6 instead of 19.1 ms for those of Cnn14."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.conv = conv

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, ...) to (batch, outputs, ...)."""
        conv = self.conv
        sizes = conv.stride, cast(tuple[int, int], conv.padding), conv.dilation, conv.groups
        try:
            return torch.cudnn_convolution_relu(maps, conv.weight, conv.bias, *sizes)
        except torch.OutOfMemoryError:
            raise
        except RuntimeError:  # a version of cuDNN, or a card, that has no such kernel
            return conv(maps).relu_()


class ConvActivation(nn.Module):
    """A convolution whose bias and activation take one pass over its result, in 0.6 of the time of two."""

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.bias, conv.bias = conv.bias, None
        self.conv = conv
        self.activation = activation

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, ...) to (batch, outputs, ...)."""
        convolved = self.conv(maps)
        kernels = kernels_for(convolved)
        if self.bias is not None and kernels is not None and is_innermost(convolved):
            return cast(Tensor, kernels.activate(convolved, self.bias, self.activation))
        if self.bias is not None:
            convolved += self.bias[:, None, None]
        return ACTIVATIONS[self.activation](convolved)


def is_innermost(maps: Tensor) -> bool:
    """Return True for maps whose features are innermost in memory, without gaps."""
    return maps.is_contiguous(memory_format=torch.channels_last)


class Depthwise(ConvActivation):
    """A depthwise convolution with its bias and activation; with 3x3 weights a kernel of our own does it all.

    cuDNN's own bias takes ten times as long as the convolution.
    """

    taps: Tensor

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__(conv, activation)
        taps = conv.weight.detach().flatten(1).t().contiguous()  # (area, features)
        self.register_buffer("taps", taps, persistent=False)
        # Of 5x5 the kernel takes several times as long as cuDNN.
        self.has_kernel = (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), *[(1, 1)] * 3)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, features, ...) to the same number of features."""
        kernels = kernels_for(maps) if self.has_kernel and is_innermost(maps) else None
        if kernels is None:
            return super().forward(maps)
        return cast(Tensor, kernels.depthwise(maps, self.taps, self.bias, self.activation))


class FromOneMap(nn.Module):
    """A convolution from a single map with its activation: cuDNN's has no tensor cores for one input.

    Where our kernels do not run, it is a product with windows.
    """

    taps: Tensor

    def __init__(self, conv: nn.Conv2d, activation: str) -> None:
        super().__init__()
        self.size, self.stride = conv.kernel_size[0], conv.stride
        taps = conv.weight.detach().flatten(1).t().contiguous()  # (area, outputs)
        self.register_buffer("taps", taps, persistent=False)
        weight = F.pad(conv.weight.detach().flatten(1), (0, -(self.size**2) % ALIGNED))
        self.weight = nn.Parameter(weight, requires_grad=False)  # (outputs, numbers of a window, zeros)
        self.bias = conv.bias
        self.activation = activation

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, 1, ...) to (batch, outputs, ...)."""
        size, margin = self.size, self.size // 2
        kernels = kernels_for(maps)
        if kernels is not None:
            return cast(Tensor, kernels.from_one_map(maps, self.taps, self.bias, self.stride, self.activation))
        padded = F.pad(maps.squeeze(1), (margin, margin, margin, margin))
        windows = padded.unfold(1, size, self.stride[0]).unfold(2, size, self.stride[1])  # (batch, rows, columns, ...)
        rows = windows.new_zeros(*windows.shape[:3], self.weight.shape[1])
        rows[..., : size**2].unflatten(3, (size, size)).copy_(windows)
        return activated_product(rows, self.weight, self.bias, self.activation)


def activated_product(rows: Tensor, weight: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Multiply (batch, rows, columns, inputs), add the bias, apply an activation: -> (batch, outputs, ...)."""
    if activation == "relu":
        return product(rows, weight, bias, True).permute(0, 3, 1, 2)
    return ACTIVATIONS[activation](product(rows, weight, bias, False)).permute(0, 3, 1, 2)


class BlockMeans(nn.Module):
    """Average pooling, three to ten times as fast as PyTorch's where features are innermost.

    Of few features tensor cores take the mean, as a convolution with the identity, of many a plain reduction.
    """

    def __init__(self, height: int, width: int) -> None:
        super().__init__()
        self.block = height, width

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, features, rows, columns) to the means of blocks; what is left at the ends is dropped."""
        features, (height, width) = maps.shape[1], self.block
        area = height * width
        if features <= MOST_CHANNELS and area & (area - 1) == 0:  # 1 / area is exact
            identity = torch.eye(features, dtype=maps.dtype, device=maps.device) / area
            kernel = identity[:, None, None].expand(-1, height, width, -1).contiguous().permute(0, 3, 1, 2)
            return F.conv2d(maps, kernel, stride=self.block)
        grid = maps.permute(0, 2, 3, 1)  # (batch, rows, columns, features)
        grid = grid[:, : maps.shape[2] // height * height, : maps.shape[3] // width * width]
        return grid.unflatten(2, (-1, width)).unflatten(1, (-1, height)).mean((2, 4)).permute(0, 3, 1, 2)
