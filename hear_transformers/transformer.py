"""Parts that the transformer families share: patch embedding, attention, MLP, pre-norm block."""

from __future__ import annotations

from torch import Tensor, nn
from torch.nn import functional as F


class PatchEmbed(nn.Module):
    """Map every square patch of a spectrogram to a token.

    The parameters are those of a convolution, as in every Vision Transformer, but the patches are multiplied as a
    matrix: as fast, and right where oneDNN's bfloat16 convolution on CPUs with AMX is not (torch 2.11: NaN or arbitrary
    numbers for a kernel as wide as its input, which is what a 160 ms window is).

    Parameters
    ----------
    dim : features of a token
    patch : mel bands and mel frames of a patch
    stride : distance between patches, the same along both axes
    """

    def __init__(self, dim: int, patch: int, stride: int) -> None:
        super().__init__()
        self.patch = patch
        self.stride = stride
        self.proj = nn.Conv2d(1, dim, patch, stride)

    def forward(self, mel: Tensor) -> Tensor:
        """Cut and map: (batch, n_mels, frames) -> (batch, freq, time, dim)."""
        patches = mel.unfold(1, self.patch, self.stride).unfold(2, self.patch, self.stride)
        # (batch, freq, time, patch, patch)
        return F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values.

    Parameters
    ----------
    dim : features of a token, a multiple of `heads`
    heads : number of heads
    """

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Mix tokens for the first `n_queries` of them: (batch, tokens, dim) -> (batch, n_queries, dim)."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # 3 x (batch, heads, tokens, dim / heads)
        mixed = F.scaled_dot_product_attention(query[:, :, :n_queries], key, value)
        return self.proj(mixed.transpose(1, 2).flatten(2))


class Mlp(nn.Module):
    """Two linear layers with the exact (error function) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map every token on its own: (batch, tokens, dim) -> (batch, tokens, dim)."""
        return self.fc2(F.gelu(self.fc1(tokens)))


class Block(nn.Module):
    """Pre-norm transformer block of the Vision Transformer (Dosovitskiy et al., 2010.11929, section 3.1).

    Parameters
    ----------
    dim : features of a token
    heads : number of attention heads
    mlp_ratio : hidden features of the MLP as a multiple of `dim`
    eps : of both LayerNorms; DeiT and all that descends from it uses 1e-6
    """

    def __init__(self, dim: int, heads: int, mlp_ratio: float = 4.0, eps: float = 1e-6) -> None:
        super().__init__()
        self.norm1 = nn.LayerNorm(dim, eps=eps)
        self.attn = Attention(dim, heads)
        self.norm2 = nn.LayerNorm(dim, eps=eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio))

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Refine tokens: (batch, tokens, dim) -> (batch, n_queries, dim).

        The last block of a network that is read at its prefix tokens alone computes only those (`n_queries`).
        """
        tokens = tokens[:, :n_queries] + self.attn(self.norm1(tokens), n_queries)
        return tokens + self.mlp(self.norm2(tokens))
