"""The kernel of `graph.joined` for CUDA, in Triton, which comes with PyTorch for Linux and needs a C compiler."""

# mypy: allow-untyped-defs, allow-incomplete-defs
from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

NUMBERS = 16_384
"""Similarities, or features, that a program holds in its registers."""

WARPS = 4
"""Of a program; on an H200 up to a third faster than 8 or 16, or than half or twice as many numbers."""

STEP = 16
"""Features that are multiplied at once: the fewest that tensor cores take, and the fastest of 16 to 64."""


@triton.jit(do_not_specialize=["n_nodes"])
def _join(
    nodes, candidates, nearness, out, n_nodes, n_candidates, k: tl.constexpr, dilation: tl.constexpr,
    features: tl.constexpr, has_nearness: tl.constexpr, ROWS: tl.constexpr, COLUMNS: tl.constexpr,
    FEATURES: tl.constexpr, STEP: tl.constexpr,
):  # fmt: skip
    clip = tl.program_id(1).to(tl.int64)
    nodes += clip * n_nodes * features
    candidates += clip * n_candidates * features
    row = tl.program_id(0) * ROWS + tl.arange(0, ROWS)
    column = tl.arange(0, COLUMNS)
    is_row, is_column = row < n_nodes, column < n_candidates

    similarity = tl.zeros((ROWS, COLUMNS), tl.float32)
    of_row, of_column = tl.zeros((ROWS,), tl.float32), tl.zeros((COLUMNS,), tl.float32)  # squared lengths
    for first in range(0, features, STEP):
        feature = first + tl.arange(0, STEP)
        is_feature = feature < features
        left = tl.load(nodes + row[:, None] * features + feature, is_row[:, None] & is_feature, other=0.0)
        at = candidates + column * features + feature[:, None]
        right = tl.load(at, is_column & is_feature[:, None], other=0.0)
        # Products of two numbers of 16 bits are exact in the 32 in which tensor cores add them.
        similarity = tl.dot(left, right, similarity, input_precision="ieee")
        left, right = left.to(tl.float32), right.to(tl.float32)
        of_row += tl.sum(left * left, 1)
        of_column += tl.sum(right * right, 0)
    # As `normalize`: nothing is divided by less than 1e-12.
    similarity *= (1 / tl.maximum(tl.sqrt(of_row), 1e-12))[:, None] * (1 / tl.maximum(tl.sqrt(of_column), 1e-12))
    if has_nearness:
        similarity += tl.load(nearness + row[:, None] * n_candidates + column, is_row[:, None] & is_column, other=0.0)
    similarity = tl.where(is_column, similarity, float("-inf"))

    feature = tl.arange(0, FEATURES)
    is_feature = feature < features
    strongest = tl.full((ROWS, FEATURES), float("-inf"), tl.float32)
    for rank in range((k - 1) * dilation + 1):
        nearest = tl.argmax(similarity, 1, tie_break_left=False)
        similarity = tl.where(column == nearest[:, None], float("-inf"), similarity)
        if rank % dilation == 0:
            # What is not a number may be no candidate.
            is_there = (nearest < n_candidates)[:, None] & is_feature
            neighbour = tl.load(candidates + nearest[:, None] * features + feature, is_there, other=0.0)
            strongest = tl.maximum(strongest, neighbour.to(tl.float32))

    both = is_row[:, None] & is_feature
    own = tl.load(nodes + row[:, None] * features + feature, both, other=0.0)
    at = out + (clip * n_nodes + row)[:, None] * (2 * features) + feature
    tl.store(at, own, both)
    tl.store(at + features, (strongest - own.to(tl.float32)).to(own.dtype), both)


def join(nodes: Tensor, candidates: Tensor, k: int, dilation: int, nearness: Tensor | None) -> Tensor:
    """Compute `graph.joined` in 16 bits, of no more neighbours than there are."""
    nodes, candidates = nodes.contiguous(), candidates.contiguous()
    (batch, n_nodes, features), n_candidates = nodes.shape, candidates.shape[1]
    out = nodes.new_empty(batch, n_nodes, 2 * features)
    columns, padded = max(16, triton.next_power_of_2(n_candidates)), triton.next_power_of_2(features)
    rows = max(16, min(64, NUMBERS // max(columns, padded)))
    with torch.cuda.device_of(nodes):
        _join[triton.cdiv(n_nodes, rows), batch](
            nodes, candidates, nodes if nearness is None else nearness, out, n_nodes, n_candidates, k, dilation,
            features, nearness is not None, rows, columns, padded, STEP, num_warps=WARPS,
        )  # fmt: skip
    return out
