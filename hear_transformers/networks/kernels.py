"""Kernels for CUDA in Triton, where PyTorch's own take several times as long as the memory does; for inference.

`fused` decides where they are used. Triton is part of PyTorch for Linux, and needs a C compiler at run time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor, nn

NUMBERS = 4096
"""That one program normalises: on an H200 faster than 2048, and 2 to 10 times as fast as PyTorch's kernel, which has a
block of threads for every row."""

UNIT = tl.constexpr(8)
"""Divides the width of rows: the compiler knows it, and moves 16 bytes at once; attention wants the same."""

POSITIONS = 16
"""That one program pools: on an H200 faster than 4 or 8."""

QUERIES, KEYS = 64, 64
"""That one program multiplies queries and distances of; their features fit into the shared memory of any card."""


def layer_norm(rows: Tensor, norm: nn.LayerNorm) -> Tensor:
    """Normalise (..., features), with sums in float32."""
    rows = rows.contiguous()
    out = torch.empty_like(rows)
    features = rows.shape[-1]
    padded = triton.next_power_of_2(features)
    at_once = max(1, NUMBERS // padded)
    n_rows = rows.numel() // features
    with torch.cuda.device_of(rows):
        _layer_norm[(triton.cdiv(n_rows, at_once),)](
            rows, norm.weight, norm.bias, out, n_rows, norm.eps, features, padded, at_once
        )
    return out


@triton.jit(do_not_specialize=["n_rows"])
def _layer_norm(
    rows, weight, bias, out, n_rows, epsilon,
    FEATURES: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    row = (tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)).to(tl.int64)
    feature = tl.arange(0, PADDED)
    inside = (row < n_rows)[:, None] & (feature < FEATURES)[None, :]
    at = row[:, None] * FEATURES + feature[None, :]
    values = tl.load(rows + at, inside, other=0.0).to(tl.float32)
    normed = _normalised(values, weight, bias, epsilon, FEATURES, PADDED)
    tl.store(out + at, normed.to(out.dtype.element_ty), inside)


@triton.jit
def _normalised(values, weight, bias, epsilon, FEATURES: tl.constexpr, PADDED: tl.constexpr):
    """Normalise rows of float32 whose features from FEATURES on are zero."""
    feature = tl.arange(0, PADDED)
    inside = feature < FEATURES
    centred = tl.where(inside[None, :], values - (tl.sum(values, 1) / FEATURES)[:, None], 0.0)
    scale = tl.rsqrt(tl.sum(centred * centred, 1) / FEATURES + epsilon)
    gain = tl.load(weight + feature, inside, other=0.0).to(tl.float32)
    shift = tl.load(bias + feature, inside, other=0.0).to(tl.float32)
    return centred * scale[:, None] * gain[None, :] + shift[None, :]


def add(rows: Tensor, wider: Tensor) -> Tensor:
    """Add to (..., features), in place, the first ones of (..., features and others), both without gaps."""
    features, width = rows.shape[-1], wider.shape[-1]
    n_rows = rows.numel() // features
    padded = triton.next_power_of_2(features)
    at_once = max(1, NUMBERS // padded)
    with torch.cuda.device_of(rows):
        _add[(triton.cdiv(n_rows, at_once),)](rows, wider, n_rows, width // UNIT.value, features, padded, at_once)
    return rows


@triton.jit(do_not_specialize=["n_rows", "units"])
def _add(rows, wider, n_rows, units, FEATURES: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr):
    row = (tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)).to(tl.int64)[:, None]
    feature = tl.arange(0, PADDED)[None, :]
    inside = (row < n_rows) & (feature < FEATURES)
    at = rows + row * FEATURES + feature
    other = wider + row * (units * UNIT) + feature
    total = tl.load(at, inside).to(tl.float32) + tl.load(other, inside).to(tl.float32)
    tl.store(at, total.to(rows.dtype.element_ty), inside)


def pool(grid: Tensor, conv: nn.Conv2d, norm: nn.LayerNorm, extra: int = 0, factor: float | None = None) -> Tensor:
    """Convolve depthwise with 3x3 weights that all heads share, and normalise every head.

    Parameters
    ----------
    grid : (batch, freq, time, heads * size), its positions side by side in memory; may be a part of wider ones
    conv : depthwise over `size` features, padded by 1, with any stride
    norm : over `size` features
    extra : numbers after those of a head, a multiple of `UNIT` as `size` is
    factor : by which the result is multiplied; then the extra numbers are the position, one 1 among as many as there
        are along frequency and one among as many as along time. Without it they are left as they are

    Returns
    -------
    pooled : (batch, pooled freq, pooled time, heads, size + extra)
    """
    batch, n_freq, n_time, features = grid.shape
    size, strides = conv.in_channels, conv.stride
    pooled_freq, pooled_time = -(-n_freq // strides[0]), -(-n_time // strides[1])
    out = grid.new_empty(batch, pooled_freq, pooled_time, features // size, size + extra)
    programs = batch * pooled_freq, triton.cdiv(pooled_time, POSITIONS), features // size
    with torch.cuda.device_of(grid):
        _pool[programs](
            grid, conv.weight, norm.weight, norm.bias, out, n_freq, n_time, grid.stride(2), pooled_freq, pooled_time,
            *strides, extra // UNIT.value, factor or 1.0, norm.eps,
            size, triton.next_power_of_2(size), triton.next_power_of_2(extra) if factor else 0, POSITIONS,
        )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=[
        "n_freq", "n_time", "pooled_freq", "pooled_time", "freq_stride", "time_stride", "units", "factor",
    ]
)  # fmt: skip
def _pool(
    grid, kernel, weight, bias, out, n_freq, n_time, width, pooled_freq, pooled_time,
    freq_stride, time_stride, units, factor, epsilon,
    SIZE: tl.constexpr, PADDED: tl.constexpr, PLACES: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    line = tl.program_id(0)  # of all batches
    clip, freq = line // pooled_freq, line % pooled_freq
    time = tl.program_id(1) * AT_ONCE + tl.arange(0, AT_ONCE)
    head, heads = tl.program_id(2), tl.num_programs(2)
    feature = tl.arange(0, PADDED)
    inside = feature < SIZE
    values = tl.zeros((AT_ONCE, PADDED), tl.float32)
    for i in tl.static_range(3):
        f = freq * freq_stride + i - 1
        row = grid + (clip * n_freq + f).to(tl.int64) * n_time * width + head * SIZE
        for j in tl.static_range(3):
            t = time * time_stride + j - 1
            read = ((t >= 0) & (t < n_time) & (f >= 0) & (f < n_freq))[:, None] & inside[None, :]
            found = tl.load(row + t[:, None] * width + feature[None, :], read, other=0.0).to(tl.float32)
            values += found * tl.load(kernel + feature * 9 + (3 * i + j), inside, other=0.0).to(tl.float32)[None, :]
    normed = _normalised(values, weight, bias, epsilon, SIZE, PADDED) * factor
    written = (time < pooled_time)[:, None]
    extra = units * UNIT
    at = ((line.to(tl.int64) * pooled_time + time) * heads + head)[:, None] * (SIZE + extra)
    tl.store(out + at + feature[None, :], normed.to(out.dtype.element_ty), written & inside[None, :])
    if PLACES > 0:
        number = tl.arange(0, PLACES)
        here = (number == freq)[None, :] | (number[None, :] == pooled_freq + time[:, None])
        to = out + at + SIZE + number[None, :]
        tl.store(to, here.to(out.dtype.element_ty), written & (number < extra)[None, :])


def place(
    query: Tensor, axis: int, table: Tensor, zero: int, steps: tuple[int, int], columns: tuple[int, int, int]
) -> None:
    """Write the products of queries with the embeddings of their distances from keys along one axis.

    Parameters
    ----------
    query : (batch, freq, time, heads, width) without gaps; its first numbers are the features of the table
    axis : 1 for frequency, 2 for time
    table : (entries, features) of relative positions
    zero : entry of distance 0
    steps : entries from query to query, and from key to key
    columns : of `query`: where the product with the first key goes, the number of keys, and how many columns are
        written, zeros after the last key
    """
    inner = query.shape[3] * (query.shape[2] if axis == 1 else 1)
    n_others = query.numel() // (query.shape[4] * query.shape[axis])
    features = table.shape[1]
    keys = max(16, min(KEYS, triton.next_power_of_2(columns[2])))
    programs = triton.cdiv(n_others, QUERIES), query.shape[axis], triton.cdiv(columns[2], keys)
    with torch.cuda.device_of(query):
        _place[programs](
            query, table, inner, n_others, query.shape[4] // UNIT.value, zero, *steps, *columns,
            features, max(16, triton.next_power_of_2(features)), keys, QUERIES,
        )  # fmt: skip


@triton.jit(
    do_not_specialize=["inner", "n_others", "units", "zero", "query_step", "key_step", "first", "n_keys", "n_written"]
)
def _place(
    query, table, inner, n_others, units, zero, query_step, key_step, first, n_keys, n_written,
    FEATURES: tl.constexpr, PADDED: tl.constexpr, KEYS: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    position = tl.program_id(1)
    other = tl.program_id(0) * AT_ONCE + tl.arange(0, AT_ONCE)
    row = (other // inner * tl.num_programs(1) + position).to(tl.int64) * inner + other % inner
    at = query + row[:, None] * (units * UNIT)
    feature, key = tl.arange(0, PADDED), tl.program_id(2) * KEYS + tl.arange(0, KEYS)
    inside = (other < n_others)[:, None]
    features = tl.load(at + feature[None, :], inside & (feature < FEATURES)[None, :], other=0.0)
    entry = table + (zero + position * query_step - key * key_step)[None, :] * FEATURES
    distances = tl.load(entry + feature[:, None], (key < n_keys)[None, :] & (feature < FEATURES)[:, None], other=0.0)
    products = tl.dot(features, distances, input_precision="ieee")
    tl.store(at + first + key[None, :], products.to(query.dtype.element_ty), inside & (key < n_written)[None, :])
