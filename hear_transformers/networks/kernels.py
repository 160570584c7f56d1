"""Kernels for CUDA in Triton, where PyTorch's own take several times as long as the memory does; for inference.

`fused` decides where they are used. Triton is part of PyTorch for Linux, and needs a C compiler at run time.
"""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import math

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

FEATURES = (16, 32, 64)
"""That one program convolves depthwise; of these, what leaves the fewest idle."""

DEPTHWISE_NUMBERS = 2048
"""That one program convolves depthwise in each of two rows: on an H200 1.7 times as fast as cuDNN and a product that
adds the bias, and a quarter faster than row by row."""

ONE_MAP_NUMBERS = 2048
"""That one program computes from one map: on an H200 faster than half or twice as many for a kernel of 5x5."""

ROWS = 128
"""That one program multiplies; with `OUTPUTS` of each and `INPUTS` at a time they fill the tensor cores of any card."""

INPUTS, OUTPUTS = 64, 128

ACTIVATED, SQUARED = 2048, 2048
"""Numbers that one program adds a bias to and activates, or takes the power of."""

FRAME_NUMBERS = 2048
"""Samples of frames that one program cuts."""

LEVEL_FRAMES = 16
"""Whose bands one program takes the logarithm of, and transposes."""


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


# Convolutions, of maps whose features are innermost in memory


@triton.jit
def _activated(values, ACTIVATION: tl.constexpr):
    """Apply one of `tensor_cores.ACTIVATIONS` to float32."""
    if ACTIVATION == "relu":
        values = tl.maximum(values, 0.0)
    elif ACTIVATION == "hardswish":
        values = values * tl.minimum(tl.maximum(values + 3.0, 0.0), 6.0) * (1.0 / 6.0)
    elif ACTIVATION == "gelu":
        values = 0.5 * values * (1.0 + tl.erf(values * 0.7071067811865476))  # of x / sqrt(2)
    return values


def depthwise(maps: Tensor, taps: Tensor, bias: Tensor | None, activation: str) -> Tensor:
    """Convolve depthwise with 3x3 weights, padded by 1, add a bias and apply an activation.

    Parameters
    ----------
    maps : (batch, features, rows, columns)
    taps : (9, features), the weights
    bias : (features,)
    activation : a key of `tensor_cores.ACTIVATIONS`

    Returns
    -------
    maps : as the given ones
    """
    batch, features, rows, columns = maps.shape
    out = torch.empty_like(maps)

    def computed(block: int) -> int:
        at_once = DEPTHWISE_NUMBERS // block
        return triton.cdiv(features, block) * triton.cdiv(columns, at_once)

    block = min(FEATURES, key=lambda block: (computed(block), -block))
    at_once = DEPTHWISE_NUMBERS // block
    with torch.cuda.device_of(maps):
        _depthwise[(batch * triton.cdiv(rows, 2) * computed(block),)](
            maps, taps, taps if bias is None else bias, out, rows, columns, triton.cdiv(columns, at_once),
            features, triton.cdiv(features, block), bias is not None, activation, block, at_once,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_rows", "n_columns", "n_parts"])
def _depthwise(
    maps, taps, bias, out, n_rows, n_columns, n_parts,
    FEATURES: tl.constexpr, BLOCKS: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr,
    BLOCK: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    feature = program % BLOCKS * BLOCK + tl.arange(0, BLOCK)
    program = program // BLOCKS
    column = program % n_parts * AT_ONCE + tl.arange(0, AT_ONCE)
    program = program // n_parts
    n_pairs = tl.cdiv(n_rows, 2)
    clip, row = program // n_pairs, program % n_pairs * 2
    inside = (feature < FEATURES)[None, :]
    first = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    second = tl.zeros((AT_ONCE, BLOCK), tl.float32)
    for i in tl.static_range(4):  # what is read of a row serves two
        y = row + i - 1
        line = maps + (clip * n_rows + y).to(tl.int64) * n_columns * FEATURES
        for j in tl.static_range(3):
            x = column + j - 1
            read = ((x >= 0) & (x < n_columns) & (y >= 0) & (y < n_rows))[:, None] & inside
            found = tl.load(line + x[:, None] * FEATURES + feature[None, :], read, other=0.0).to(tl.float32)
            if i < 3:
                tap = tl.load(taps + (i * 3 + j) * FEATURES + feature[None, :], inside, other=0.0)
                first += found * tap.to(tl.float32)
            if i > 0:
                tap = tl.load(taps + (i * 3 - 3 + j) * FEATURES + feature[None, :], inside, other=0.0)
                second += found * tap.to(tl.float32)
    if HAS_BIAS:
        shift = tl.load(bias + feature[None, :], inside, other=0.0).to(tl.float32)
        first += shift
        second += shift
    written = (column < n_columns)[:, None] & inside
    to = out + (clip * n_rows + row).to(tl.int64) * n_columns * FEATURES
    to += column[:, None] * FEATURES + feature[None, :]
    tl.store(to, _activated(first, ACTIVATION).to(out.dtype.element_ty), written)
    written &= row + 1 < n_rows
    tl.store(to + n_columns * FEATURES, _activated(second, ACTIVATION).to(out.dtype.element_ty), written)


def from_one_map(maps: Tensor, taps: Tensor, bias: Tensor | None, stride: tuple[int, int], activation: str) -> Tensor:
    """Convolve one map with square weights, centred, add a bias and apply an activation.

    Parameters
    ----------
    maps : (batch, 1, rows, columns)
    taps : (area of the kernel, features), the weights
    bias : (features,)
    stride : along rows and columns
    activation : a key of `tensor_cores.ACTIVATIONS`

    Returns
    -------
    maps : (batch, features, rows / stride, columns / stride), features innermost
    """
    if maps.stride(3) != 1:  # neighbours along columns are read at once
        maps = maps.contiguous()
    features, size = taps.shape[1], math.isqrt(len(taps))
    shape = len(maps), features, -(-maps.shape[2] // stride[0]), -(-maps.shape[3] // stride[1])
    out = torch.empty(shape, dtype=maps.dtype, device=maps.device, memory_format=torch.channels_last)
    padded = triton.next_power_of_2(features)
    at_once = max(1, ONE_MAP_NUMBERS // padded)
    n_parts = triton.cdiv(shape[3], at_once)
    with torch.cuda.device_of(maps):
        _from_one_map[(len(maps) * shape[2] * n_parts,)](
            maps, taps, taps if bias is None else bias, out, maps.stride(0), maps.stride(2), *maps.shape[2:],
            *shape[2:], n_parts, features, bias is not None, activation, size, *stride, padded, at_once,
        )  # fmt: skip
    return out


@triton.jit(
    do_not_specialize=[
        "clip_stride", "row_stride", "n_rows", "n_columns", "out_rows", "out_columns", "n_parts",
    ]
)  # fmt: skip
def _from_one_map(
    maps, taps, bias, out, clip_stride, row_stride, n_rows, n_columns, out_rows, out_columns, n_parts,
    FEATURES: tl.constexpr, HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, SIZE: tl.constexpr,
    DOWN: tl.constexpr, ALONG: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    program = tl.program_id(0)
    line = program // n_parts  # of all clips
    clip, row = (line // out_rows).to(tl.int64), line % out_rows
    column = program % n_parts * AT_ONCE + tl.arange(0, AT_ONCE)
    feature = tl.arange(0, PADDED)
    inside = feature < FEATURES
    values = tl.zeros((AT_ONCE, PADDED), tl.float32)
    for i in tl.static_range(SIZE):
        y = row * DOWN + i - SIZE // 2
        for j in tl.static_range(SIZE):
            x = column * ALONG + j - SIZE // 2
            read = (x >= 0) & (x < n_columns) & (y >= 0) & (y < n_rows)
            found = tl.load(maps + clip * clip_stride + y * row_stride + x, read, other=0.0).to(tl.float32)
            tap = tl.load(taps + (i * SIZE + j) * FEATURES + feature, inside, other=0.0).to(tl.float32)
            values += found[:, None] * tap[None, :]
    if HAS_BIAS:
        values += tl.load(bias + feature, inside, other=0.0).to(tl.float32)[None, :]
    to = out + (line.to(tl.int64) * out_columns + column)[:, None] * FEATURES + feature[None, :]
    written = (column < out_columns)[:, None] & inside[None, :]
    tl.store(to, _activated(values, ACTIVATION).to(out.dtype.element_ty), written)


def product(
    grid: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    activation: str,
    gate: Tensor | None = None,
    residual: Tensor | None = None,
) -> Tensor:
    """Multiply ``grid * gate`` by weights, add a bias, apply an activation, add what came before.

    Parameters
    ----------
    grid : (batch, rows, columns, inputs) without gaps
    weight : (outputs, inputs)
    bias : (outputs,)
    activation : a key of `tensor_cores.ACTIVATIONS`
    gate : (batch, inputs)
    residual : (batch, rows, columns, outputs) without gaps

    Returns
    -------
    grid : (batch, rows, columns, outputs)
    """
    outputs, inputs = weight.shape
    n_rows = grid.numel() // inputs
    out = grid.new_empty(*grid.shape[:-1], outputs)
    at_once = max(16, min(INPUTS, triton.next_power_of_2(inputs)))
    block = max(16, min(OUTPUTS, triton.next_power_of_2(outputs)))
    with torch.cuda.device_of(grid):
        _product[(triton.cdiv(n_rows, ROWS) * triton.cdiv(outputs, block),)](
            grid, weight, weight if bias is None else bias, grid if gate is None else gate,
            grid if residual is None else residual, out, n_rows, n_rows // len(grid),
            bias is not None, activation, gate is not None, residual is not None, inputs, outputs, ROWS, at_once, block,
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_rows", "n_positions"])
def _product(
    grid, weight, bias, gate, residual, out, n_rows, n_positions,
    HAS_BIAS: tl.constexpr, ACTIVATION: tl.constexpr, HAS_GATE: tl.constexpr, HAS_RESIDUAL: tl.constexpr,
    INPUTS: tl.constexpr, OUTPUTS: tl.constexpr, ROWS: tl.constexpr, AT_ONCE: tl.constexpr, BLOCK: tl.constexpr,
):  # fmt: skip
    n_blocks = tl.cdiv(OUTPUTS, BLOCK)  # of the same rows one after the other, which are in the cache then
    row = (tl.program_id(0) // n_blocks).to(tl.int64) * ROWS + tl.arange(0, ROWS)
    output = tl.program_id(0) % n_blocks * BLOCK + tl.arange(0, BLOCK)
    clip = row // n_positions
    total = tl.zeros((ROWS, BLOCK), tl.float32)
    for first in range(0, INPUTS, AT_ONCE):
        number = first + tl.arange(0, AT_ONCE)
        given = number < INPUTS
        read = (row < n_rows)[:, None] & given[None, :]
        values = tl.load(grid + row[:, None] * INPUTS + number[None, :], read, other=0.0)
        if HAS_GATE:
            factor = tl.load(gate + clip[:, None] * INPUTS + number[None, :], read, other=0.0)
            values = (values.to(tl.float32) * factor.to(tl.float32)).to(grid.dtype.element_ty)
        columns = weight + output[None, :] * INPUTS + number[:, None]
        factors = tl.load(columns, (output < OUTPUTS)[None, :] & given[:, None], other=0.0)
        total = tl.dot(values, factors, total, input_precision="ieee")
    if HAS_BIAS:
        total += tl.load(bias + output, output < OUTPUTS, other=0.0).to(tl.float32)[None, :]
    total = _activated(total, ACTIVATION)
    at = row[:, None] * OUTPUTS + output[None, :]
    written = (row < n_rows)[:, None] & (output < OUTPUTS)[None, :]
    if HAS_RESIDUAL:
        total += tl.load(residual + at, written, other=0.0).to(tl.float32)
    tl.store(out + at, total.to(out.dtype.element_ty), written)


def activate(maps: Tensor, bias: Tensor, activation: str) -> Tensor:
    """Add a bias to (batch, features, rows, columns) and apply an activation, in place; features innermost."""
    n_numbers, features = maps.numel(), maps.shape[1]
    together = math.gcd(features, UNIT.value)
    with torch.cuda.device_of(maps):
        _activate[(triton.cdiv(n_numbers, ACTIVATED),)](
            maps, bias, n_numbers // together, features // together, activation, together, ACTIVATED // together
        )
    return maps


@triton.jit(do_not_specialize=["n_units"])
def _activate(
    maps, bias, n_units, UNITS: tl.constexpr, ACTIVATION: tl.constexpr, TOGETHER: tl.constexpr, AT_ONCE: tl.constexpr
):  # fmt: skip
    unit = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    place = tl.arange(0, TOGETHER)[None, :]
    at = maps + unit[:, None] * TOGETHER + place
    inside = (unit < n_units)[:, None]
    # Numbers of a unit lie side by side in the bias, too.
    shift = tl.load(bias + (unit % UNITS)[:, None] * TOGETHER + place).to(tl.float32)
    values = tl.load(at, inside, other=0.0).to(tl.float32) + shift
    tl.store(at, _activated(values, ACTIVATION).to(maps.dtype.element_ty), inside)


# Spectra


def frames(waveforms: Tensor, window: Tensor, n_fft: int, hop_length: int, preemphasis: float | None) -> Tensor:
    """Cut windowed frames centred on multiples of the hop, of waveforms that are mirrored at both ends.

    Parameters
    ----------
    waveforms : (batch, samples) float32
    window : (win_length,), the middle of a frame; the rest of a frame is zero
    n_fft : length of a frame
    preemphasis : the sample before, times this, is taken from each but the first, which is dropped; None for none

    Returns
    -------
    frames : (batch, frames, n_fft)
    """
    waveforms = waveforms.contiguous()
    batch, n_samples = waveforms.shape
    length = n_samples - (preemphasis is not None)
    n_frames = 1 + (length + n_fft // 2 * 2 - n_fft) // hop_length
    out = waveforms.new_empty(batch, n_frames, n_fft)
    width = len(window)
    at_once = max(1, FRAME_NUMBERS // triton.next_power_of_2(n_fft))
    with torch.cuda.device_of(waveforms):
        _frames[(batch * triton.cdiv(n_frames, at_once),)](
            waveforms, window, out, n_samples, length, n_frames, hop_length, preemphasis or 0.0,
            preemphasis is not None, n_fft, width, triton.next_power_of_2(n_fft), at_once,
            enable_fp_fusion=False,  # the authors round twice, see `LogMel.centred_power`
        )  # fmt: skip
    return out


@triton.jit(do_not_specialize=["n_samples", "length", "n_frames", "hop_length", "preemphasis"])
def _frames(
    waveforms, window, out, n_samples, length, n_frames, hop_length, preemphasis,
    EMPHASISES: tl.constexpr, N_FFT: tl.constexpr, WIDTH: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr,
):  # fmt: skip
    n_parts = tl.cdiv(n_frames, AT_ONCE)
    clip = (tl.program_id(0) // n_parts).to(tl.int64)
    frame = tl.program_id(0) % n_parts * AT_ONCE + tl.arange(0, AT_ONCE)
    place = tl.arange(0, PADDED)
    in_window = place - (N_FFT - WIDTH) // 2
    seen = (in_window >= 0) & (in_window < WIDTH)
    read = (frame < n_frames)[:, None] & seen[None, :]
    sample = frame[:, None] * hop_length + place[None, :] - N_FFT // 2
    sample = tl.where(sample < 0, -sample, sample)
    sample = tl.where(sample >= length, 2 * (length - 1) - sample, sample)
    at = waveforms + clip * n_samples + sample
    if EMPHASISES:
        values = tl.load(at + 1, read, other=0.0) - preemphasis * tl.load(at, read, other=0.0)
    else:
        values = tl.load(at, read, other=0.0)
    values *= tl.load(window + in_window, seen, other=0.0)[None, :]
    to = out + (clip * n_frames + frame[:, None]) * N_FFT + place[None, :]
    tl.store(to, values, (frame < n_frames)[:, None] & (place < N_FFT)[None, :])


def power(spectrum: Tensor) -> Tensor:
    """Compute the squared magnitudes of complex numbers without gaps, of any shape."""
    out = torch.empty(spectrum.shape, dtype=torch.float32, device=spectrum.device)
    n_numbers = out.numel()
    with torch.cuda.device_of(out):
        _power[(triton.cdiv(n_numbers, SQUARED),)](torch.view_as_real(spectrum), out, n_numbers, SQUARED)
    return out


@triton.jit(do_not_specialize=["n_numbers"])
def _power(spectrum, out, n_numbers, AT_ONCE: tl.constexpr):
    number = tl.program_id(0).to(tl.int64) * AT_ONCE + tl.arange(0, AT_ONCE)
    inside = number < n_numbers
    parts = tl.load(spectrum + number[:, None] * 2 + tl.arange(0, 2)[None, :], inside[:, None], other=0.0)
    tl.store(out + number, tl.sum(parts * parts, 1), inside)


def levels(mel: Tensor, floor: float, shift: float, scale: float) -> Tensor:
    """Compute ``(ln(mel + floor) + shift) / scale`` of (batch, frames, bands) without gaps: -> (batch, bands, frames).

    The result has no gaps either, as convolutions read it fastest.
    """
    batch, n_frames, n_bands = mel.shape
    out = mel.new_empty(batch, n_bands, n_frames)
    n_parts = triton.cdiv(n_frames, LEVEL_FRAMES)
    with torch.cuda.device_of(mel):
        _levels[(batch * n_parts,)](
            mel, out, n_frames, floor, shift, scale, n_bands, triton.next_power_of_2(n_bands), LEVEL_FRAMES
        )
    return out


@triton.jit(do_not_specialize=["n_frames", "floor", "shift", "scale"])
def _levels(mel, out, n_frames, floor, shift, scale, BANDS: tl.constexpr, PADDED: tl.constexpr, AT_ONCE: tl.constexpr):
    n_parts = tl.cdiv(n_frames, AT_ONCE)
    clip = (tl.program_id(0) // n_parts).to(tl.int64)
    frame = tl.program_id(0) % n_parts * AT_ONCE + tl.arange(0, AT_ONCE)[:, None]
    band = tl.arange(0, PADDED)[None, :]
    inside = (frame < n_frames) & (band < BANDS)
    found = tl.load(mel + clip * n_frames * BANDS + frame * BANDS + band, inside, other=1.0)
    level = tl.div_rn(tl.log(found + floor) + shift, scale)
    tl.store(out + clip * n_frames * BANDS + band * n_frames + frame, level, inside)
