"""Parts of the Swin transformer: attention within windows of a map, which every second block shifts; merged patches.

Liu, Lin, Cao, Hu, Wei, Zhang, Lin, Guo: Swin Transformer, ICCV 2021 (2103.14030).
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..errors import OptionError
from .fused import LayerNorm
from .transformer import Mlp

WINDOW = 8
"""Rows and columns of a window, as in HTS-AT (2202.00874, section 3.1)."""

APART = -100.0
"""Added to scores between positions that a shift has brought together (Swin's code, `SwinTransformerBlock`)."""


def relative_positions() -> Tensor:
    """Return the row of the table of biases for every query and key of a window: (64, 64) int64."""
    steps = torch.arange(WINDOW, device="cpu")
    places = torch.cartesian_prod(steps, steps)  # (64, 2): row and column
    between = places[:, None] - places[None, :] + WINDOW - 1  # from 0 to 14
    return between[..., 0] * (2 * WINDOW - 1) + between[..., 1]


def windows_apart(side: int, shift: int) -> Tensor:
    """Return what keeps those parts of a shifted map apart that are no neighbours: (windows, 1, 64, 64) float32.

    Parameters
    ----------
    side : rows and columns of the map
    shift : rows and columns that it is moved by, those at the end come to the beginning
    """
    places = torch.arange(side, device="cpu")
    part = (places >= side - WINDOW).long() + (places >= side - shift).long()  # 0, 1 or 2
    parts = 3 * part[:, None] + part[None, :]  # (side, side)
    windows = parts.unfold(0, WINDOW, WINDOW).unfold(1, WINDOW, WINDOW).reshape(-1, WINDOW**2)
    is_apart = windows[:, None, :, None] != windows[:, None, None, :]
    return torch.where(is_apart, APART, 0.0)


class WindowAttention(nn.Module):
    """Multi-head self-attention within windows, with a learnt bias for every relative position.

    Parameters
    ----------
    dim, heads : of the attention
    side : rows and columns of the map, a multiple of `WINDOW`
    shift : rows and columns by which windows are shifted
    """

    index: Tensor
    apart: Tensor | None

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise OptionError(f"heads={heads} do not divide dim={dim}")
        self.heads, self.shift = heads, shift
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)
        self.bias_table = nn.Parameter(torch.randn((2 * WINDOW - 1) ** 2, heads) * 0.02)
        self.register_buffer("index", relative_positions().flatten(), persistent=False)
        self.register_buffer("apart", windows_apart(side, shift) if shift else None, persistent=False)

    def biases(self, n_windows: int) -> Tensor:
        """Return what is added to scores: (1, windows * heads, 64, 64)."""
        biases = self.bias_table[self.index].view(WINDOW**2, WINDOW**2, -1).permute(2, 0, 1)  # (heads, 64, 64)
        if self.apart is None:
            return biases.repeat(n_windows, 1, 1).unsqueeze(0)
        return (biases + self.apart).flatten(0, 1).unsqueeze(0)

    def forward(self, grid: Tensor) -> Tensor:
        """Attend within windows: (batch, rows, columns, dim) -> the same."""
        if self.shift:
            grid = grid.roll((-self.shift, -self.shift), (1, 2))
        batch, rows, columns, dim = grid.shape
        down, across, size = rows // WINDOW, columns // WINDOW, dim // self.heads
        qkv = self.qkv(grid).view(batch, down, WINDOW, across, WINDOW, 3, self.heads, size)
        # Windows stand beside heads, as fused attention takes four axes: (3, batch, windows * heads, 64, size).
        qkv = qkv.permute(5, 0, 1, 3, 6, 2, 4, 7).reshape(3, batch, down * across * self.heads, WINDOW**2, size)
        query, key, value = qkv
        mixed = F.scaled_dot_product_attention(query, key, value, self.biases(down * across))
        mixed = mixed.view(batch, down, across, self.heads, WINDOW, WINDOW, size).permute(0, 1, 4, 2, 5, 3, 6)
        mixed = self.proj(mixed.reshape(batch, rows, columns, dim))
        return mixed.roll((self.shift, self.shift), (1, 2)) if self.shift else mixed


class SwinBlock(nn.Module):
    """Pre-norm transformer block over a map; see `WindowAttention` for its parameters."""

    def __init__(self, dim: int, heads: int, side: int, shift: int) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim)
        self.attn = WindowAttention(dim, heads, side, shift)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, grid: Tensor) -> Tensor:
        """Refine a map: (batch, rows, columns, dim) -> the same."""
        grid = grid + self.attn(self.norm1(grid))
        return grid + self.mlp(self.norm2(grid))


class PatchMerging(nn.Module):
    """Join each 2 x 2 positions of a map to one with twice the features."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.norm = LayerNorm(4 * dim)
        self.reduction = nn.Linear(4 * dim, 2 * dim, bias=False)

    def forward(self, grid: Tensor) -> Tensor:
        """Merge: (batch, rows, columns, dim) -> (batch, rows / 2, columns / 2, 2 * dim)."""
        # In the authors' order: down before across.
        parts = [grid[:, row::2, column::2] for column in (0, 1) for row in (0, 1)]
        return self.reduction(self.norm(torch.cat(parts, 3)))
