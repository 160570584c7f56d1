"""Parts shared by the transformer families: patch embedding, attention, MLP, stochastic depth, block, and DeiT."""

from __future__ import annotations

import math
import re
from abc import abstractmethod
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor
from torch.nn import functional as F

from ..errors import OptionError, WeightsError
from .family import Variant, count_members
from .fused import LayerNorm
from .trunk import TimeAxis, Trunk, depth_of

PATCH = 16  # mel bands and mel frames of a patch (AST: 2104.01778, section 2.1; PaSST: 2110.05069, section 3)


HEAD_FEATURES = 64  # of an attention head in every DeiT (2012.12877, table 1)
STRIDES = (10, 12, 14, 16)  # of the patches in the authors' published networks (AST's README, PaSST's releases)
BANDS = (128, 64, 80, 40, 96, 256)  # mel bands of common front ends: those of the families here, Whisper's, Kaldi's

Pair = tuple[int, int]
"""Along frequency, along time."""


class PatchEmbed(nn.Module):
    """Map every patch of a spectrogram to a token.

    The parameters are those of a convolution, as in every Vision Transformer, but patches are multiplied as a matrix:
    as fast, and correct where oneDNN's bfloat16 convolution on CPUs with AMX is not (torch 2.11: NaN or arbitrary
    numbers for a kernel as wide as its input, such as a window of 160 ms).

    Parameters
    ----------
    dim : features of a token
    kernel, stride, padding : mel bands and mel frames of a patch, from patch to patch, and of zeros at each end
    bias : True if a bias is added
    """

    def __init__(self, dim: int, kernel: Pair, stride: Pair, padding: Pair = (0, 0), *, bias: bool = True) -> None:
        super().__init__()
        self.kernel, self.stride, self.padding = kernel, stride, padding
        self.proj = nn.Conv2d(1, dim, kernel, stride, padding, bias=bias)

    def forward(self, mel: Tensor) -> Tensor:
        """Embed patches: (batch, n_mels, frames) -> (batch, freq, time, dim)."""
        mel = mel.to(self.proj.weight.dtype)
        bands, frames = self.padding
        if bands or frames:
            mel = F.pad(mel, (frames, frames, bands, bands))
        patches = mel.unfold(1, self.kernel[0], self.stride[0]).unfold(2, self.kernel[1], self.stride[1])
        # (batch, freq, time, bands of a patch, frames of a patch)
        return F.linear(patches.flatten(3), self.proj.weight.flatten(1), self.proj.bias)  # (batch, freq, time, dim)


class Attention(nn.Module):
    """Multi-head self-attention with one projection for queries, keys and values."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        if heads < 1 or dim % heads:
            raise OptionError(f"heads={heads} do not divide dim={dim}")
        self.heads = heads
        self.qkv = nn.Linear(dim, 3 * dim, bias=qkv_bias)
        self.proj = nn.Linear(dim, dim)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Attend from the first `n_queries` tokens to all: (batch, tokens, dim) -> (batch, n_queries, dim)."""
        n = clips_together(*tokens.shape[:2]) if n_queries is None and tokens.is_cuda else 1
        return self.attend(tokens, n_queries, n)

    def attend(self, tokens: Tensor, n_queries: int | None, n: int) -> Tensor:
        """Attend within each clip, see `forward`, `n` clips side by side in one."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch // n, n * length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (batch / n, heads, n * tokens, dim) each
        mask = blocks_of(n, length, qkv) if n > 1 else None
        mixed = F.scaled_dot_product_attention(query[:, :, :n_queries], key, value, mask)
        return self.proj(mixed.transpose(1, 2).reshape(batch, -1, dim))  # (batch, n_queries, heads * dim)


QUERY = re.compile(r"(blocks\.\d+\.attn\.)query\.(weight|bias)")


def fuse_attention(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the projections of query, key and value wherever all three are present."""
    fused = dict(state_dict)
    for key in state_dict:
        if match := QUERY.fullmatch(key):
            block, kind = match.groups()
            names = [f"{block}{part}.{kind}" for part in ("query", "key", "value")]
            if all(name in state_dict for name in names):
                fused[f"{block}qkv.{kind}"] = torch.cat([fused.pop(name) for name in names])
    return fused


TILE = 128
"""Queries and keys that a kernel of fused attention multiplies at once: few tokens take it as long as so many."""


def clips_together(batch: int, length: int) -> int:
    """Return how many clips of a batch share a tile, a power of two: 8 of the 14 tokens of 160 ms of PaSST."""
    n = 1
    while 2 * n * length <= TILE and batch % (2 * n) == 0:
        n *= 2
    return n


def blocks_of(n: int, length: int, like: Tensor) -> Tensor:
    """Return what is added to scores so that tokens attend to their own clip alone: (n * length, n * length)."""
    clips = torch.arange(n, device=like.device).repeat_interleave(length)
    scores = torch.zeros(n * length, n * length, dtype=like.dtype, device=like.device)
    return scores.masked_fill_(clips[:, None] != clips, -math.inf)


class Mlp(nn.Module):
    """Two linear layers with the exact (error function) GELU between them."""

    def __init__(self, dim: int, hidden: int) -> None:
        super().__init__()
        self.fc1 = nn.Linear(dim, hidden)
        self.fc2 = nn.Linear(hidden, dim)

    def forward(self, tokens: Tensor) -> Tensor:
        """Map every token independently: (batch, tokens, dim) -> (batch, tokens, dim)."""
        return self.fc2(linear_gelu(self.fc1, tokens))


def linear_gelu(linear: nn.Linear, tokens: Tensor) -> Tensor:
    """Apply a linear layer and GELU: (..., inputs) -> (..., outputs).

    In bfloat16 on CUDA one kernel of cuBLAS does both, so that the widest activations of a transformer are not read and
    written once more. Its GELU is the tanh formula (1606.08415, section 2), which is within 5e-4 of the exact one.
    """
    if torch.is_grad_enabled() or tokens.device.type != "cuda" or linear.weight.dtype != torch.bfloat16:
        return F.gelu(linear(tokens))
    rows = torch._addmm_activation(linear.bias, tokens.flatten(0, -2), linear.weight.t(), use_gelu=True)
    return rows.unflatten(0, tokens.shape[:-1])  # (..., outputs)


class DropPath(nn.Module):
    """Drop a branch for some clips in training and scale it up for the others (stochastic depth, 1603.09382)."""

    def __init__(self, rate: float) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, branch: Tensor) -> Tensor:
        """Drop rows of (batch, ...)."""
        if not self.training or self.rate == 0:
            return branch
        kept = torch.rand(len(branch), *[1] * (branch.ndim - 1), device=branch.device) >= self.rate
        return branch * kept / (1 - self.rate)


def init_matrices(module: nn.Module) -> None:
    """Initialise matrices as Vision Transformers do: normal, standard deviation 0.02 (2012.12877, section 6)."""
    # Of a network without numbers PyTorch 2.14 asks for some.
    if isinstance(module, nn.Linear) and not isinstance(module.weight, FakeTensor):
        nn.init.trunc_normal_(module.weight, std=0.02)
        if module.bias is not None:
            nn.init.zeros_(module.bias)


class Block(nn.Module):
    """Pre-norm transformer block of the Vision Transformer (Dosovitskiy et al., 2010.11929, section 3.1)."""

    def __init__(self, dim: int, heads: int, qkv_bias: bool = True) -> None:
        super().__init__()
        self.norm1 = LayerNorm(dim, eps=1e-6)  # in DeiT and its descendants
        self.attn = Attention(dim, heads, qkv_bias)
        self.norm2 = LayerNorm(dim, eps=1e-6)
        self.mlp = Mlp(dim, 4 * dim)

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Refine tokens: (batch, tokens, dim) -> (batch, n_queries, dim).

        The last block of a network that is read at its prefix tokens alone computes only those (`n_queries`).
        """
        tokens = tokens[:, :n_queries] + self.attn(self.norm1(tokens), n_queries)
        return tokens + self.mlp(self.norm2(tokens))


def transformer_sizes(
    tensors: Mapping[str, Tensor], network: Mapping[str, Any], given: Mapping[str, Any]
) -> dict[str, Any]:
    """Read width and depth of a Vision Transformer from its tensors, see `Family.sizes`.

    The number of heads is in no tensor. It is that of the variant for the variant's width, else one for every 64
    features, as in every DeiT (2012.12877, table 1).

    Parameters
    ----------
    tensors : names and tensors
    network : arguments of the variant's network, with its "dim"
    given : arguments that the user fixed

    Raises
    ------
    WeightsError : the heads are unknown
    """
    dim = tensors["blocks.0.norm1.weight"].shape[0]
    sizes = {"dim": dim, "depth": count_members(tensors, "blocks.")}
    if dim == network["dim"] or "heads" in given:
        return sizes
    if dim % HEAD_FEATURES:
        raise WeightsError(
            f"its {dim} features are no multiple of the {HEAD_FEATURES} of a usual head, and the number of heads is in "
            'no tensor; give it, such as network={"heads": 3}'
        )
    return {**sizes, "heads": dim // HEAD_FEATURES}


def resized_times(table: Tensor, n_time: int) -> Tensor:
    """Crop a table of positions in time to its start, as shorter clips do, or interpolate a shorter one (our choice).

    Parameters
    ----------
    table : (1, dim, 1, positions)
    n_time : positions wanted
    """
    if table.shape[3] >= n_time:
        return table[..., :n_time]
    return F.interpolate(table.float(), (1, n_time), mode="bilinear", align_corners=False)


def patch_rows(n_freq: int, variant: Variant, given: Mapping[str, Any]) -> dict[str, int]:
    """Find the stride and the mel bands of a network with `n_freq` rows of patches, the variant's if they fit.

    Raises
    ------
    WeightsError : none of the usual ones fit, or several do
    """
    fits = [pair for pair in strides_and_bands(variant, given) if (pair[1] - PATCH) // pair[0] + 1 == n_freq]
    if not fits:
        raise WeightsError(
            f"it has {n_freq} rows of patches, of no usual stride and mel bands; give them, such as "
            'network={"stride": 10, "n_mels": 128}'
        )
    return {"stride": fits[0][0], "n_mels": fits[0][1]}


def strides_and_bands(variant: Variant, given: Mapping[str, Any]) -> list[tuple[int, int]]:
    """List the pairs of stride and mel bands that a network may have, the likeliest first.

    They are the variant's, then those with another of the strides that the authors of AST and PaSST published, then
    those with another usual number of mel bands. What the user fixed stays.
    """
    usual = {"stride": 10, "n_mels": variant.frontend.example(1).shape[1], **variant.network, **given}
    stride, n_mels = usual["stride"], usual["n_mels"]
    strides = [] if "stride" in given else STRIDES
    bands = [] if "n_mels" in given else BANDS
    return [(stride, n_mels), *((other, n_mels) for other in strides), *((stride, other) for other in bands)]


class DeiT(Trunk):
    """Vision Transformer with a class and a distillation token over the patches of a spectrogram: PaSST and AST.

    The network is the distilled DeiT (Touvron et al., 2012.12877); a family adds its position embeddings.

    Parameters
    ----------
    stride : of the patches, in mel bands and mel frames
    max_frames : most mel frames that the position embeddings cover
    n_classes : logits
    dim, depth, heads : of the transformer; DeiT-B unless a variant says otherwise
    patchout : rows along frequency and columns along time that are dropped at random from every batch in training
        (structured patchout: 2110.05069); layers are then vectors only, without grids
    """

    prefix = ("cls", "dist")
    min_frames = PATCH

    def __init__(
        self,
        *,
        stride: int,
        max_frames: int,
        n_classes: int = 527,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        patchout: tuple[int, int] = (0, 0),
    ) -> None:
        super().__init__()
        self.max_frames = max_frames
        self.patchout = patchout
        grid = TimeAxis(stride, (PATCH - 1) / 2, None)
        grids = {
            **dict.fromkeys((*map(str, range(depth + 1)), "norm"), grid),
            "0": replace(grid, receptive_field=PATCH),
        }
        self.layers = {**grids, "features": None, "logits": None}
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.patch_embed = PatchEmbed(dim, (PATCH, PATCH), (stride, stride))
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=1e-6)
        # The head's LayerNorm has torch's default epsilon, unlike all others.
        self.head = nn.Sequential(LayerNorm(dim), nn.Linear(dim, n_classes))

    @property
    def min_training_frames(self) -> int:
        """One patch along time more than are dropped."""
        return PATCH + self.patch_embed.proj.stride[1] * self.patchout[1]

    @abstractmethod
    def positions(self, n_freq: int, n_time: int) -> tuple[Tensor, Tensor]:
        """Return the position embeddings of both tokens (1, 2, dim) and of the patches (1, freq, time, dim)."""

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`.

        "norm" is the last block after the final LayerNorm, "features" the mean of its two tokens.
        """
        self._check_vectors(wanted)
        tokens, grid = self._embed(frames)
        taps: dict[str, Tensor] = {}
        depth = depth_of(wanted, len(self.blocks))
        # If no patch of the last block is read, it computes the prefix tokens only.
        n_last = None if {str(depth), "norm"} & set(wanted) else len(self.prefix)
        for i in range(depth + 1):
            if i > 0:
                tokens = self.blocks[i - 1](tokens, n_last if i == depth else None)
            self._store(taps, wanted, str(i), tokens, grid)
        if any(not layer.partition(".")[0].isdecimal() for layer in wanted):
            tokens = self.norm(tokens)
            self._store(taps, wanted, "norm", tokens, grid)
            taps["features"] = tokens[:, :2].mean(1)
        if "logits" in wanted:
            taps["logits"] = self.head(taps["features"])
        return {layer: taps[layer] for layer in wanted}

    def _embed(self, mel: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed a mel: -> tokens (batch, 2 + freq * time, dim), frequency-major, and (freq, time)."""
        patches = self.patch_embed(mel)  # (batch, freq, time, dim)
        of_tokens, of_patches = self.positions(patches.shape[1], patches.shape[2])
        patches = patches + of_patches
        if self.training:
            for axis, n_left_out in enumerate(self.patchout, 1):
                patches = thinned(patches, axis, n_left_out)
        prefix = torch.cat([self.cls_token, self.dist_token], 1) + of_tokens
        tokens = torch.cat([prefix.expand(mel.shape[0], -1, -1), patches.flatten(1, 2)], 1)  # (batch, tokens, dim)
        return tokens, (patches.shape[1], patches.shape[2])

    def _check_vectors(self, wanted: Collection[str]) -> None:
        """Raise OptionError for grids while patches are dropped."""
        grids = [layer for layer in wanted if self.layers.get(layer) is not None]
        if grids and self.training and any(self.patchout):
            raise OptionError(
                f"layer {', '.join(grids)} has no grid in training with patchout={self.patchout}; take vectors such as "
                "logits, features or 1.cls, or give patchout=(0, 0)"
            )

    def _store(
        self, taps: dict[str, Tensor], wanted: Collection[str], layer: str, tokens: Tensor, grid: tuple[int, int]
    ) -> None:
        """Store the wanted parts of one layer: the grid of patches, the prefix tokens."""
        if layer in wanted:
            taps[layer] = tokens[:, 2:].unflatten(1, grid).transpose(1, 2)  # (batch, time, freq, dim)
        for i, name in enumerate(self.prefix):
            if f"{layer}.{name}" in wanted:
                taps[f"{layer}.{name}"] = tokens[:, i]


def thinned(patches: Tensor, axis: int, n_left_out: int) -> Tensor:
    """Drop positions along one axis, drawn from PyTorch's global generator, the same for every clip."""
    size = patches.shape[axis]
    if not 0 <= n_left_out < size:
        raise OptionError(
            f"patchout leaves out {n_left_out} of {size} patches along {('frequency', 'time')[axis - 1]}; "
            f"give 0 to {size - 1} for a clip so long"
        )
    if n_left_out == 0:
        return patches
    kept = torch.randperm(size)[n_left_out:].sort().values
    return patches.index_select(axis, kept.to(patches.device))
