"""MAST: multiscale audio spectrogram transformer, and the MViTv2 it is made of.

After Zhu, Omar: Multiscale Audio Spectrogram Transformer for Efficient Audio Classification, ICASSP 2023 (2303.10757),
whose authors published neither code nor weights. Three sources make this network:

- From the paper's abstract: a hierarchy whose positions become fewer and whose features become more from stage to
  stage, pooling along time alone (1-D) in some stages and along time and frequency (2-D) in others; 42 % fewer
  parameters and a fifth of the multiply-accumulates of AST.
- From MViTv2 (Li et al., 2112.01526; github.com/facebookresearch/mvit, Apache-2.0), which those numbers fit: the block
  with pooling attention, decomposed relative positions and residual pooling; depths, widths, initialisation.
- Our choice: patches of 7 mel bands x 9 mel frames every 4 x 8; which stage pools how; the front end, which is AST's.

The variant `mini` is smaller than the paper's, and the only one with weights for audio: this package has them. The
variants `mvit_*` are MViTv2 as published (patches of 7 x 7 every 4 x 4, 2-D pooling throughout) over spectrograms
and read its ImageNet files, in the authors' layout or timm's.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import accumulate, pairwise
from types import ModuleType
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks import imagenet as images
from .networks.family import Readout, Variant, count_members
from .networks.frontend import AST_MEL, CPJKU_MEL
from .networks.fused import LayerNorm, kernels_for
from .networks.transformer import DropPath, Mlp, Pair, PatchEmbed, init_matrices
from .networks.trunk import TimeAxis, Trunk, depth_of

__all__ = ["FAMILY", "MAST", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

EPSILON = 1e-6  # of every LayerNorm (authors' mvit/models/mvit_model.py)
MLP_RATIO = 4  # hidden features of the MLP per feature (authors' mvit/config/defaults.py)
POOL_KERNEL = 3  # of the convolutions that pool queries, keys and values (authors' configs, POOL_KVQ_KERNEL)
MOST_FEATURES = 256  # of a query or key in fused attention (cuDNN's, FlashAttention's)
DEVIATION = 0.02  # of position tables at first, as of matrices (authors' mvit_model.py and attention.py)


def pooled_size(grid: Sequence[int], stride: Sequence[int]) -> Pair:
    """Return the size of a grid after pooling with an odd, zero-padded kernel."""
    return -(-grid[0] // stride[0]), -(-grid[1] // stride[1])


# Relative positions


def zero_entry(entries: int, key_step: int) -> int:
    """Return the index of distance 0, behind the distances of all keys that follow a query."""
    # A table of 2 n - 1 entries is for n positions. Entry 0 is the distance from the first query to the last of the
    # ceil(n / key_step) keys; distance 0 lies as many entries behind, which is the middle only where key_step is 1.
    positions = (entries + 1) // 2
    return (-(-positions // key_step) - 1) * key_step


def resampled(table: Tensor, entries: int, key_step: int, was_key_step: int | None = None) -> Tensor:
    """Interpolate a table of relative positions linearly to another length for the same distances.

    Distance 0 keeps its embedding. The authors interpolate from end to end instead, which moves distance 0 where keys
    are sparser than queries and it is not the middle entry.

    Parameters
    ----------
    table : (entries of the grid it was made for, features)
    entries : of the result, (entries, features)
    key_step, was_key_step : distance between two keys, in entries, of the result and of the table; None if equal
    """
    was_key_step = was_key_step or key_step
    if (entries, key_step) == (len(table), was_key_step):
        return table
    distances = torch.arange(entries, device=table.device) - zero_entry(entries, key_step)
    scale = (len(table) + 1) / (entries + 1)
    wanted = (distances * scale + zero_entry(len(table), was_key_step)).clamp(0, len(table) - 1)
    below = wanted.long()
    above = (below + 1).clamp(max=len(table) - 1)
    return torch.lerp(table[below], table[above], (wanted - below).unsqueeze(1).to(table.dtype))


def reaching(table: Tensor, queries: int, keys: int, steps: Pair) -> Tensor:
    """Return a table with an entry for every distance from a query to a key, interpolated if it is too short."""
    return resampled(table, max(len(table), 2 * max(queries, keys) - 1), steps[1])


def relative_positions(table: Tensor, queries: int, keys: int, steps: Pair) -> Tensor:
    """Look up the embedding of the distance from every key to every query along one axis.

    Parameters
    ----------
    table : (2 * max(queries, keys) - 1, features); a shorter one is interpolated, of a longer one the middle is read,
        so that a distance in time is the same entry in a clip shorter than the table was made for
    queries, keys : positions along the axis
    steps : distance between two queries, and between two keys, in entries of the table

    Returns
    -------
    embeddings : (queries, keys, features)
    """
    query_step, key_step = steps
    table = reaching(table, queries, keys, steps)
    # The entries of one query lie side by side, those of its last key first: a view, and one copy in the right order.
    reach = (keys - 1) * key_step
    of_queries = table[zero_entry(len(table), key_step) - reach :].unfold(0, reach + 1, query_step)
    return of_queries[:queries, :, ::key_step].flip(2).transpose(1, 2)


# Blocks


@dataclass(frozen=True, slots=True)
class Shape:
    """Dimensions of a block.

    Attributes
    ----------
    inputs, outputs : features of a position before and after the block
    heads : of the attention
    query_stride, key_stride : of the pooling of the grid for queries, which is the stride of the block, and for keys
        and values; along each axis one divides the other
    grid : positions before the block that the tables of relative positions are made for
    """

    inputs: int
    outputs: int
    heads: int
    query_stride: Pair
    key_stride: Pair
    grid: Pair


class PoolingAttention(nn.Module):
    """Multi-head attention whose queries, keys and values are pooled over the grid (MViT, 2104.11227, section 3.1).

    To the scores are added the products of the query with the embeddings of its distance from the key along frequency
    and along time (decomposed relative positions), to the result the query itself (residual pooling): MViTv2, 4.1.
    """

    def __init__(self, shape: Shape) -> None:
        super().__init__()
        features = shape.outputs // shape.heads
        self.heads = shape.heads
        self.qkv = nn.Linear(shape.inputs, 3 * shape.outputs)
        self.proj = nn.Linear(shape.outputs, shape.outputs)
        self.pool_q, self.norm_q = _pooling(features, shape.query_stride)
        self.pool_k, self.norm_k = _pooling(features, shape.key_stride)
        self.pool_v, self.norm_v = _pooling(features, shape.key_stride)
        strides = list(zip(shape.query_stride, shape.key_stride, strict=True))
        self.steps = [(query // min(query, key), key // min(query, key)) for query, key in strides]
        # As many as the positions of the finer of both grids, twice: a key may lie on either side.
        n_freq, n_time = (-(-size // min(pair)) for size, pair in zip(shape.grid, strides, strict=True))
        self.rel_pos_h = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * n_freq - 1, features), std=DEVIATION))
        self.rel_pos_w = nn.Parameter(nn.init.trunc_normal_(torch.empty(2 * n_time - 1, features), std=DEVIATION))

    def forward(self, grid: Tensor) -> Tensor:
        """Attend: (batch, freq, time, inputs) -> (batch, freq / stride, time / stride, outputs)."""
        kernels = kernels_for(grid)
        size = self.pool_k.in_channels
        n_features = size + sum(pooled_size(grid.shape[1:3], self.pool_k.stride))
        if kernels is not None and size % kernels.UNIT.value == 0 and n_features <= MOST_FEATURES:
            mixed = self._attend_by_place(grid, kernels)
        else:
            mixed = self._attend(grid)
        return self.proj(mixed.flatten(3))  # of (batch, freq, time, heads, size)

    def _attend(self, grid: Tensor) -> Tensor:
        """Compute what is projected: (batch, freq, time, inputs) -> (batch, pooled freq, pooled time, heads, size)."""
        # One product for each of the three, as the convolutions would copy a part of a common one.
        parts = zip(self.qkv.weight.chunk(3), self.qkv.bias.chunk(3), strict=True)
        query, key, value = (F.linear(grid, weight, bias) for weight, bias in parts)
        query = self._pooled(query, self.pool_q, self.norm_q)
        key = self._pooled(key, self.pool_k, self.norm_k)
        value = self._pooled(value, self.pool_v, self.norm_v)
        bias = self._bias(query, (key.shape[2], key.shape[3]))
        # (batch, heads, positions, size) each
        mixed = F.scaled_dot_product_attention(query.flatten(2, 3), key.flatten(2, 3), value.flatten(2, 3), bias)
        mixed = mixed.unflatten(2, query.shape[2:4]) + query  # (batch, heads, freq, time, size)
        return mixed.permute(0, 2, 3, 1, 4)

    def _attend_by_place(self, grid: Tensor, kernels: ModuleType) -> Tensor:
        """Compute the same as `_attend` with kernels of our own, and without a bias for every query and key.

        A key has its place as features besides, a 1 for its frequency and one for its time, and a query its products
        with the embeddings of its distances from all: the product of both is the score with its bias.
        """
        size = self.pool_k.in_channels
        query, key, value = self.qkv(grid).chunk(3, 3)
        n_keys = pooled_size(grid.shape[1:3], self.pool_k.stride)
        unit = kernels.UNIT.value
        extra = -(-sum(n_keys) // unit) * unit
        key = kernels.pool(key, self.pool_k, self.norm_k, extra, size**-0.5)
        value = kernels.pool(value, self.pool_v, self.norm_v)
        query = kernels.pool(query, self.pool_q, self.norm_q, extra)  # (batch, freq, time, heads, size + extra)
        self._place(query, n_keys, kernels)
        # (batch, heads, positions, size + extra or size)
        queries, keys, values = (each.flatten(1, 2).transpose(1, 2) for each in (query, key, value))
        mixed = F.scaled_dot_product_attention(queries, keys, values, scale=1.0).transpose(1, 2)
        return kernels.add(mixed.unflatten(1, query.shape[1:3]).contiguous(), query)

    def _place(self, query: Tensor, n_keys: Pair, kernels: ModuleType) -> None:
        """Write the products with the embeddings of distances behind the features of queries."""
        first = self.pool_k.in_channels
        for i, own in enumerate((self.rel_pos_h, self.rel_pos_w)):
            table = reaching(own, query.shape[1 + i], n_keys[i], self.steps[i])
            n_columns = n_keys[0] if i == 0 else query.shape[4] - first
            zero = zero_entry(len(table), self.steps[i][1])
            kernels.place(query, 1 + i, table, zero, self.steps[i], (first, n_keys[i], n_columns))
            first += n_columns

    def _pooled(self, features: Tensor, conv: nn.Conv2d, norm: LayerNorm) -> Tensor:
        """Pool every head equally: (batch, freq, time, outputs) -> (batch, heads, pooled freq, pooled time, size)."""
        # The heads' features stay side by side and innermost, so that no head's map is copied.
        weight = conv.weight.repeat(self.heads, 1, 1, 1)
        maps = features.permute(0, 3, 1, 2)  # (batch, outputs, freq, time)
        maps = F.conv2d(maps, weight, None, conv.stride, conv.padding, groups=len(weight))
        pooled = norm(maps.permute(0, 2, 3, 1).unflatten(3, (self.heads, -1)))  # (batch, freq, time, heads, size)
        # On CUDA, autocast normalises into float32, which residual pooling would propagate: twice the memory.
        return pooled.to(features.dtype).permute(0, 3, 1, 2, 4)  # (batch, heads, freq, time, size)

    def _bias(self, query: Tensor, keys: Pair) -> Tensor:
        """Compute the bias of the scores by distance: (batch, heads, queries, keys), the only tensor of this size."""
        # A query is compared with the embeddings of its distances from keys, along each axis apart: key k of frequency
        # and l of time adds q . e_freq[f - k] + q . e_time[t - l] to the score of the query at (f, t).
        over_freq = relative_positions(self.rel_pos_h, query.shape[2], keys[0], self.steps[0])
        over_time = relative_positions(self.rel_pos_w, query.shape[3], keys[1], self.steps[1])
        query = query.permute(0, 2, 3, 1, 4)  # (batch, freq, time, heads, size), as it lies in memory
        heads = query.shape[3]
        of_freq = (query.flatten(2, 3) @ over_freq.mT).unflatten(2, (-1, heads))  # (batch, freq, time, heads, key freq)
        of_time = (query.transpose(1, 2).flatten(2, 3) @ over_time.mT).unflatten(2, (-1, heads)).transpose(1, 2)
        # The first term is contiguous, and so is the sum: (batch, freq, time, heads, key freq, key time)
        bias = of_freq.unsqueeze(5) + of_time.unsqueeze(4)
        return bias.flatten(4).flatten(1, 2).transpose(1, 2)  # (batch, heads, queries, keys)


def _pooling(size: int, stride: Pair) -> tuple[nn.Conv2d, LayerNorm]:
    """Build one pooling: a depthwise convolution shared by all heads, and its normalisation."""
    conv = nn.Conv2d(size, size, POOL_KERNEL, stride, POOL_KERNEL // 2, groups=size, bias=False)
    return conv, LayerNorm(size, eps=EPSILON)


class PoolingBlock(nn.Module):
    """Pre-norm block whose skip connection is pooled and widened like its attention (authors' attention.py)."""

    def __init__(self, shape: Shape, drop_path: float) -> None:
        super().__init__()
        self.stride = shape.query_stride
        self.norm1 = LayerNorm(shape.inputs, eps=EPSILON)
        self.attn = PoolingAttention(shape)
        self.proj = nn.Linear(shape.inputs, shape.outputs) if shape.inputs != shape.outputs else None
        self.norm2 = LayerNorm(shape.outputs, eps=EPSILON)
        self.mlp = Mlp(shape.outputs, MLP_RATIO * shape.outputs)
        self.drop = DropPath(drop_path)

    def forward(self, grid: Tensor) -> Tensor:
        """Refine a grid: (batch, freq, time, inputs) -> (batch, freq / stride, time / stride, outputs)."""
        normed = self.norm1(grid)
        # A widened skip connection starts from the normalised grid.
        skip = grid if self.proj is None else self.proj(normed)
        grid = self._pooled(skip) + self.drop(self.attn(normed))
        return grid + self.drop(self.mlp(self.norm2(grid)))

    def _pooled(self, grid: Tensor) -> Tensor:
        """Pool a grid to its strided positions by the maximum."""
        if self.stride == (1, 1):
            return grid
        kernel = [step + 1 if step > 1 else 1 for step in self.stride]
        maps = grid.permute(0, 3, 1, 2)  # (batch, inputs, freq, time)
        maps = F.max_pool2d(maps, kernel, self.stride, [size // 2 for size in kernel])
        return maps.permute(0, 2, 3, 1)  # (batch, freq, time, inputs)


class MAST(Trunk):
    """Multiscale audio spectrogram transformer; every stage after the first doubles features and heads.

    Parameters
    ----------
    depths : blocks of each stage
    dim, heads : of the first stage
    kernel, stride : of the patches, in mel bands and mel frames
    q_strides : of the pooling in the first block of each later stage, in frequency and time
    kv_stride : of the pooling of keys and values in the first stage; later stages divide it by their `q_strides`
    n_mels : mel bands of the input
    frames : mel frames that the tables of relative positions are sized for; see `relative_positions` for other numbers
    n_classes : logits; 0 for a network without a classifier
    drop_path : rate of stochastic depth in the last block, growing linearly from 0 in the first
    absolute : True to add an embedding of its frequency to every patch: distances alone say little of pitch
    """

    min_frames = 1
    max_frames = None

    def __init__(
        self,
        *,
        depths: tuple[int, ...] = (2, 3, 16, 3),
        dim: int = 96,
        heads: int = 1,
        kernel: Pair = (7, 9),
        stride: Pair = (4, 8),
        q_strides: tuple[Pair, ...] = ((1, 2), (2, 2), (2, 2)),
        kv_stride: Pair = (4, 4),
        n_mels: int = 128,
        frames: int = 1024,
        n_classes: int = 527,
        drop_path: float = 0.3,
        absolute: bool = False,
    ) -> None:
        super().__init__()
        grid = pooled_size((n_mels, frames), stride)
        shapes = plan(depths, dim, heads, q_strides, kv_stride, grid)
        hops = accumulate((shape.query_stride[1] for shape in shapes), lambda hop, step: hop * step, initial=stride[1])
        # Kernels are odd and padded equally on both sides, so position 0 lies on frame 0 everywhere.
        grids = {str(i): TimeAxis(hop, 0.0, kernel[1] if i == 0 else None) for i, hop in enumerate(hops)}
        vectors = {"features": None, **({"logits": None} if n_classes else {})}
        self.layers = {**grids, "norm": grids[str(len(shapes))], **vectors}
        self.patch_embed = PatchEmbed(dim, kernel, stride, (kernel[0] // 2, kernel[1] // 2))
        table = nn.init.trunc_normal_(torch.empty(grid[0], 1, dim), std=DEVIATION) if absolute else None
        self.freq_embed = None if table is None else nn.Parameter(table)  # (freq, 1, dim)
        step = drop_path / max(1, len(shapes) - 1)
        self.blocks = nn.ModuleList(PoolingBlock(shape, i * step) for i, shape in enumerate(shapes))
        self.norm = LayerNorm(shapes[-1].outputs, eps=EPSILON)
        self.head = nn.Linear(shapes[-1].outputs, n_classes) if n_classes else None
        self.apply(init_matrices)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`.

        "norm" is the last block after the final LayerNorm, "features" its mean.
        """
        grid = self.patch_embed(frames)
        if self.freq_embed is not None:
            grid = grid + self.freq_embed.to(grid.dtype)
        taps: dict[str, Tensor] = {}
        for i in range(depth_of(wanted, len(self.blocks)) + 1):
            if i > 0:
                grid = self.blocks[i - 1](grid)
            if str(i) in wanted:
                taps[str(i)] = grid.transpose(1, 2)  # (batch, time, freq, features)
        if not all(layer.isdecimal() for layer in wanted):
            grid = self.norm(grid)
            taps["norm"] = grid.transpose(1, 2)  # (batch, time, freq, features)
            taps["features"] = grid.mean((1, 2))
        if self.head is not None and "logits" in wanted:
            taps["logits"] = self.head(taps["features"])
        return {layer: taps[layer] for layer in wanted}


def plan(
    depths: tuple[int, ...], dim: int, heads: int, q_strides: tuple[Pair, ...], kv_stride: Pair, grid: Pair
) -> list[Shape]:
    """Compute the shape of every block, see `MAST`; `grid` is that of the patches."""
    shapes: list[Shape] = []
    for stage, (depth, first) in enumerate(zip(depths, ((1, 1), *q_strides), strict=True)):
        for stride in (first, *[(1, 1)] * (depth - 1)):
            inputs = shapes[-1].outputs if shapes else dim
            kv_stride = max(kv_stride[0] // stride[0], 1), max(kv_stride[1] // stride[1], 1)
            shapes.append(Shape(inputs, dim << stage, heads << stage, stride, kv_stride, grid))
            grid = pooled_size(grid, stride)
    return shapes


# Files

TIMM = {".shortcut_proj_attn.": ".proj.", "head.fc.": "head.projection."}
"""Parts of timm's keys -> the authors' and ours."""

TIMM_BLOCK = re.compile(r"stages\.(\d+)\.blocks\.(\d+)\.")


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Convert the tensors of an MViTv2 for images, in the authors' layout or timm's, to those of `MAST`.

    The filters of the patches are averaged over red, green and blue and spread over the frames of a patch, tables of
    relative positions interpolated to the grid of the variant.
    """
    depths = timm_depths(state_dict)
    renamed = {_renamed(key, depths): tensor for key, tensor in state_dict.items()}
    filters = state_dict.get("patch_embed.proj.weight")
    if filters is None or not images.are_for_images(filters):
        return renamed
    with torch.device("meta"):
        kernel = MAST(**variant.network).patch_embed.kernel
    renamed["patch_embed.proj.weight"] = spread(filters.mean(1, keepdim=True), kernel[1])
    return with_tables_of(renamed, variant, IMAGES)


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Interpolate the tables of relative positions of a network of another length to those of a variant."""
    return with_tables_of(state_dict, variant, {})


def with_tables_of(state_dict: dict[str, Tensor], variant: Variant, before: Mapping[str, Any]) -> dict[str, Tensor]:
    """Interpolate tables of relative positions to the grid of a variant, from one with the arguments `before`."""
    with torch.device("meta"):
        trunk = MAST(**variant.network)
        was = MAST(**{**variant.network, **before})
    adapted = dict(state_dict)
    for (name, attention), theirs in zip(trunk.named_modules(), was.modules(), strict=True):
        if isinstance(attention, PoolingAttention) and isinstance(theirs, PoolingAttention):
            tables = attention.named_parameters(recurse=False)
            steps = zip(attention.steps, theirs.steps, strict=True)
            for (table, ours), ((_, key_step), (_, was_key_step)) in zip(tables, steps, strict=True):
                held = adapted.get(key := f"{name}.{table}")
                if held is not None and held.ndim == 2 and held.shape[1] == ours.shape[1]:
                    adapted[key] = resampled(held.float(), len(ours), key_step, was_key_step)
    return adapted


def spread(filters: Tensor, frames: int) -> Tensor:
    """Interpolate filters (features, channels, bands, frames) linearly to more frames (our choice).

    The weight of a frame is divided among those that it is spread over, so that the response to steady sound is kept.
    """
    if frames == filters.shape[3]:
        return filters
    shares = F.interpolate(torch.eye(filters.shape[3]).unsqueeze(0), frames, mode="linear", align_corners=False)[0]
    return filters.float() @ (shares / shares.sum(1, keepdim=True))


def timm_depths(names: Iterable[str]) -> list[int]:
    """Count the blocks of each stage in timm's names; empty for other layouts."""
    blocks = {(int(match[1]), int(match[2])) for match in map(TIMM_BLOCK.match, names) if match}
    return [sum(stage == number for stage, _ in blocks) for number in range(1 + max(blocks)[0])] if blocks else []


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`.

    A stage begins where a skip connection is widened. Strides are in no tensor.
    """
    dim, _, *kernel = tensors["patch_embed.proj.weight"].shape
    n_blocks = count_members(tensors, "blocks.")
    starts = [0, *(i for i in range(n_blocks) if f"blocks.{i}.proj.weight" in tensors), n_blocks]
    usual = {"n_mels": 128, "frames": 1024, "stride": (4, 8), **variant.network, **given}
    lengths = {}
    for axis, (name, argument) in enumerate((("rel_pos_h", "n_mels"), ("rel_pos_w", "frames"))):
        positions = (tensors[f"blocks.0.attn.{name}"].shape[0] + 1) // 2
        step = usual["stride"][axis]
        lengths[argument] = usual[argument] if -(-usual[argument] // step) == positions else positions * step
    heads = dim // tensors["blocks.0.attn.pool_q.weight"].shape[0]
    depths = tuple(end - start for start, end in pairwise(starts))
    is_absolute = "freq_embed" in tensors
    return {"dim": dim, "kernel": tuple(kernel), "depths": depths, "heads": heads, "absolute": is_absolute, **lengths}


def _renamed(key: str, depths: Sequence[int]) -> str:
    """Rename a key of timm, which counts blocks within their stage, to the authors' name; return others unchanged."""
    for theirs, ours in TIMM.items():
        key = key.replace(theirs, ours)
    return TIMM_BLOCK.sub(lambda match: f"blocks.{sum(depths[: int(match[1])]) + int(match[2])}.", key)


SIZES: dict[str, dict[str, Any]] = {
    "base": {"depths": (2, 3, 16, 3), "drop_path": 0.3},
    "small": {"depths": (1, 2, 11, 2), "drop_path": 0.1},
    "tiny": {"depths": (1, 2, 5, 2), "drop_path": 0.1},
}
"""MViTv2's sizes B, S and T (authors' configs/MVITv2_*.yaml); the paper's is B, by its number of parameters."""

AUDIO = {"kernel": (7, 9), "stride": (4, 8), "q_strides": ((1, 2), (2, 2), (2, 2)), "kv_stride": (4, 4)}
"""Our choice: the simple combination of 1-D and 2-D pooling that has the abstract's two ratios to AST."""

IMAGES = {"kernel": (7, 7), "stride": (4, 4), "q_strides": ((2, 2), (2, 2), (2, 2)), "kv_stride": (4, 4)}
"""MViTv2's own (authors' configs/MVITv2_*.yaml and mvit/config/defaults.py)."""


def row(checkpoint: str, imagenet: str, **network: Any) -> Variant:
    """Build the row of one network, over the mel and the 10.24 s of AST, the paper's baseline."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=AST_MEL,
        scene=Readout(10_240.0, ("features",)),
        scene_hop_ms=5_120.0,
        timestamps=(Readout(1_000.0, ("norm",)),),
        framing="native",
        imagenet=("mast", imagenet),
    )


MINI = Variant(
    # Size T of half the width, a block fewer in the last stage, where most parameters are, and one more in the third.
    # Positions stay 40 ms apart to the end, about half a phone; only frequency is pooled. For clips of 2 s.
    checkpoint="mini",
    network={
        "depths": (1, 2, 6, 1),
        "dim": 48,
        "kernel": (15, 7),
        "stride": (8, 4),
        "q_strides": ((2, 1), (2, 1), (2, 1)),
        "kv_stride": (4, 2),
        "frames": 200,
        "drop_path": 0.0,
        "absolute": True,
    },
    frontend=CPJKU_MEL,
    # The layers that score best on held-out synthetic clips (training.distil readouts; weights/mast.md).
    scene=Readout(2_000.0, ("mel", "norm"), "meanstd"),
    scene_hop_ms=1_000.0,
    timestamps=(Readout(2_000.0, ("norm",)),),
    framing="native",
)

FILES = {name: f"mvitv2_{name[0]}_in1k" for name in SIZES}

VARIANTS = {
    "mini": MINI,  # the only one with weights for audio
    **{name: row("", FILES[name], **size, **AUDIO) for name, size in SIZES.items()},
    # Without the classifier for ImageNet's 1000 classes.
    **{f"mvit_{name}": row(FILES[name], FILES[name], **size, **IMAGES, n_classes=0) for name, size in SIZES.items()},
}

FAMILY = hear.Family(
    name="mast",
    network=MAST,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight",),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    adapt_pretrained=adapt_pretrained,
    classifier=("head.bias",),
    unused=("head.projection.weight", "head.projection.bias"),  # ImageNet's classes
    reinitialised=("head.",),
)

load_model = hear.Loader(FAMILY).load_model
