"""Convolutions with kernels of 3x3 as matrix products with fewer multiplications, for float32 on CPUs.

Winograd's minimal filtering F(2x2, 3x3) (Lavin, Gray: Fast Algorithms for Convolutional Neural Networks, 1509.09308,
section 4.1): four neighbouring outputs take 16 multiplications instead of 36. The additions around them cost memory
traffic, so it pays where there are many channels. oneDNN has dropped its own for float32 on x86.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

FEWEST_CHANNELS = 256
"""Inputs and outputs from which it is faster (measured with AVX2 beside oneDNN: 1.5 times with 256, 3 with 2048)."""

BUFFER_BYTES = 2**24
"""Of the tiles that are multiplied at once: within a shared cache, and below what a C library returns to the system
after every use (32 MiB in glibc), whose pages would be cleared each time."""

KERNEL_TRANSFORM = ((1.0, 0.0, 0.0), (0.5, 0.5, 0.5), (0.5, -0.5, 0.5), (0.0, 0.0, 1.0))
"""G of the paper's section 4.1."""


def pays(conv: nn.Module) -> bool:
    """Return True for a convolution that `Winograd` can replace and computes faster."""
    return (
        type(conv) is nn.Conv2d
        and (conv.kernel_size, conv.stride, conv.padding, conv.dilation) == ((3, 3), (1, 1), (1, 1), (1, 1))
        and conv.groups == 1
        and conv.padding_mode == "zeros"
        and min(conv.in_channels, conv.out_channels) >= FEWEST_CHANNELS
    )


def replace_convolutions(trunk: nn.Module) -> None:
    """Replace every convolution for which it pays."""
    for module in list(trunk.modules()):
        for name, child in module.named_children():
            if pays(child):
                setattr(module, name, Winograd(cast(nn.Conv2d, child)))


class Winograd(nn.Module):
    """A convolution of 3x3 with padding 1, computed from tiles of 4x4 inputs for 2x2 outputs; for inference.

    Its kernels take 16 / 9 of the memory of the convolution's.
    """

    kernels: Tensor
    bias: Tensor | None

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        transform = torch.tensor(KERNEL_TRANSFORM, device=conv.weight.device)
        both = torch.kron(transform, transform)  # (16, 9): rows and columns of a kernel at once
        with torch.no_grad():
            kernels = both @ conv.weight.flatten(2).flatten(0, 1).T  # (16, outputs * inputs)
        self.register_buffer("kernels", kernels.unflatten(1, conv.weight.shape[:2]), persistent=False)
        self.register_buffer("bias", None if conv.bias is None else conv.bias.detach(), persistent=False)

    def forward(self, maps: Tensor) -> Tensor:
        """Convolve (batch, inputs, time, freq) with features innermost in memory, as the result has them."""
        batch, inputs, n_time, n_freq = maps.shape
        rows, columns = -(-n_time // 2), -(-n_freq // 2)  # of tiles
        grid = maps.permute(0, 2, 3, 1)  # (batch, time, freq, inputs)
        padded = F.pad(grid, (0, 0, 1, 1 + 2 * columns - n_freq, 1, 1 + 2 * rows - n_time))
        outputs = maps.new_empty(batch, 2 * rows, 2 * columns, self.kernels.shape[1])
        at_once = max(1, BUFFER_BYTES // (16 * 4 * inputs * columns * batch))
        for first in range(0, rows, at_once):
            last = min(first + at_once, rows)
            self._convolve(padded[:, 2 * first : 2 * last + 2], outputs[:, 2 * first : 2 * last])
        if self.bias is not None:
            outputs += self.bias
        return outputs[:, :n_time, :n_freq].permute(0, 3, 1, 2)

    def _convolve(self, padded: Tensor, outputs: Tensor) -> None:
        """Fill outputs (batch, 2 rows, 2 columns, outputs) from inputs (batch, 2 rows + 2, 2 columns + 2, inputs)."""
        batch, rows, columns = len(outputs), outputs.shape[1] // 2, outputs.shape[2] // 2
        inputs = padded.shape[3]
        half = padded.new_empty(4, batch, rows, padded.shape[2], inputs)
        spread([padded[:, i : i + 2 * rows : 2] for i in range(4)], half.unbind(0))
        tiles = padded.new_empty(4, 4, batch, rows, columns, inputs)
        spread([half[:, :, :, i : i + 2 * columns : 2] for i in range(4)], tiles.unbind(1))
        products = torch.bmm(tiles.flatten(0, 1).flatten(1, 3), self.kernels.transpose(1, 2))
        products = products.view(4, 4, batch, rows, columns, -1)
        half = products.new_empty(2, *products.shape[1:])
        gather(products.unbind(0), half.unbind(0))
        by_column = outputs.unflatten(2, (columns, 2)).unflatten(1, (rows, 2))  # (batch, rows, 2, columns, 2, outputs)
        by_column = by_column.permute(2, 4, 0, 1, 3, 5)  # (2, 2, batch, rows, columns, outputs)
        gather(half.unbind(1), by_column.unbind(1))


def spread(lines: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform tiles along one axis: four inputs -> four factors (the paper's B)."""
    torch.sub(lines[0], lines[2], out=out[0])
    torch.add(lines[1], lines[2], out=out[1])
    torch.sub(lines[2], lines[1], out=out[2])
    torch.sub(lines[1], lines[3], out=out[3])


def gather(products: Sequence[Tensor], out: Sequence[Tensor]) -> None:
    """Transform products along one axis: four -> two outputs (the paper's A)."""
    torch.add(products[1], products[2], out=out[0]).add_(products[0])
    torch.sub(products[1], products[2], out=out[1]).sub_(products[3])
