"""Convolution and batch normalisation, folded into one convolution in evaluation."""

from __future__ import annotations

from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F


class ConvNorm(nn.Sequential):
    """Convolution "0", batch normalisation "1", and an activation without parameters if there is one."""

    def __init__(self, conv: nn.Conv2d, norm: nn.BatchNorm2d, activation: nn.Module | None = None) -> None:
        super().__init__(conv, norm, *([] if activation is None else [activation]))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq / stride, time / stride)."""
        conv, norm = cast(nn.Conv2d, self[0]), cast(nn.BatchNorm2d, self[1])
        if self.training or torch.is_autocast_enabled(maps.device.type) or conv.weight.dtype != torch.float32:
            maps = norm(self.convolve(maps, conv.weight, conv.bias))
        else:
            # Folding the normalisation into the kernel saves a pass over the map, a third of EfficientAT's time on a
            # CPU. Not in 16 bits: the bias would be rounded, alike for the whole map, which doubles the error.
            scale = norm.weight * (cast(Tensor, norm.running_var) + norm.eps).rsqrt()
            mean = cast(Tensor, norm.running_mean)
            bias = norm.bias - (mean if conv.bias is None else mean - conv.bias) * scale
            maps = self.convolve(maps, conv.weight * scale[:, None, None, None], bias)
        return self[2](maps) if len(self) > 2 else maps

    def convolve(self, maps: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Convolve maps with the stride and padding of the convolution, but another kernel and bias."""
        conv = cast(nn.Conv2d, self[0])
        return F.conv2d(maps, weight, bias, conv.stride, conv.padding, groups=conv.groups)
