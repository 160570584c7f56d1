"""Graphs of nearest nodes, and the messages that pass along their edges: max-relative graph convolution of ViG."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from .fused import tried
from .trunk import is_traced

BLOCK_SIZE = 8
"""Candidates of a block in the search for the nearest: of 4 to 32 the fastest, on CPUs and on an H200."""

MOST_CANDIDATES = 1_024
MOST_FEATURES = 1_024
"""That a program of the kernel holds in its registers, for 16 nodes."""


CHOOSERS: list[Callable[[Tensor, Tensor], Tensor]] = []
"""What sees the similarities and the neighbours that were found, and returns those to take; see `export.choices`."""


@torch.no_grad()
def nearest(nodes: Tensor, candidates: Tensor, k: int, dilation: int = 1, nearness: Tensor | None = None) -> Tensor:
    """Find the neighbours of every node among candidates.

    Features are normalised to unit length: the squared distance of two is 2 minus twice their product.

    Parameters
    ----------
    nodes, candidates : (batch, nodes, features) and (batch, candidates, features)
    k : neighbours
    dilation : every `dilation`-th of the ``k * dilation`` nearest candidates is a neighbour, or of all candidates if
        there are fewer
    nearness : (nodes, candidates) of their places, added to that of their features; None to ignore places

    Returns
    -------
    index : (batch, nodes, k or fewer), the nearest first
    """
    # A choice between close candidates needs 32 bits, whatever autocast or the precision of the network.
    with torch.autocast(nodes.device.type, enabled=False):
        directions = F.normalize(nodes.float(), dim=2)
        others = F.normalize(candidates.float(), dim=2).transpose(1, 2)  # (batch, features, candidates)
        similarity = directions @ others if nearness is None else torch.baddbmm(nearness, directions, others)
    index = largest(similarity, count(k, dilation, similarity.shape[2]), dilation)
    for chooser in CHOOSERS:
        index = chooser(similarity, index)
    return index


def count(k: int, dilation: int, n_candidates: int) -> int:
    """Return the number of neighbours of a node, see `nearest`."""
    most = k * dilation
    # In a trace, sizes are tensors, and the smaller of two is found anew for every clip.
    among = n_candidates.clamp(max=most) if isinstance(n_candidates, Tensor) else min(most, n_candidates)
    return -(-among // dilation)


def largest(rows: Tensor, n: int, step: int) -> Tensor:
    """Return the places of the largest number of each row, and of every `step`-th that follows it in size.

    The largest lie in those blocks of a row whose maxima are the largest: fewer numbers are sorted.

    Parameters
    ----------
    rows : (batch, rows, size)
    n : places to return; ``(n - 1) * step < size``

    Returns
    -------
    places : (batch, rows, n)
    """
    needed = (n - 1) * step + 1
    n_blocks, rest = rows.shape[2] // BLOCK_SIZE, rows.shape[2] % BLOCK_SIZE
    if is_traced() or rest or n_blocks <= needed:  # a trace is for rows of any size
        return rows.topk(needed, 2).indices[:, :, ::step]
    # A block is every n_blocks-th number of a row, so that maxima are those of whole slices.
    split = rows.unflatten(2, (BLOCK_SIZE, n_blocks))
    blocks = split.amax(2).topk(needed, 2, sorted=False).indices  # (batch, rows, needed)
    kept = split.gather(3, blocks.unsqueeze(2).expand(-1, -1, BLOCK_SIZE, -1))  # (batch, rows, BLOCK_SIZE, needed)
    among = kept.flatten(2).topk(needed, 2).indices[:, :, ::step]
    return blocks.gather(2, among % needed) + among // needed * n_blocks


def strongest(candidates: Tensor, index: Tensor) -> Tensor:
    """Return the maximum of every feature over the neighbours of a node: -> (batch, nodes, features).

    `candidates` is (batch, candidates, features), `index` (batch, nodes, neighbours) from `nearest`.
    """
    first = torch.arange(candidates.shape[0], device=index.device) * candidates.shape[1]
    rows = candidates.flatten(0, 1)  # (batch * candidates, features)
    neighbours = (index + first[:, None, None]).flatten(0, 1)  # (batch * nodes, neighbours)
    if is_traced():
        return F.embedding(neighbours, rows).amax(1).unflatten(0, index.shape[:2])  # for any number of neighbours
    is_read_only = rows.is_cuda and not rows.requires_grad
    maxima = of_bags(rows, neighbours) if is_read_only else Maxima.apply(rows, neighbours)
    return maxima.unflatten(0, index.shape[:2])  # (batch, nodes, features)


class Maxima(torch.autograd.Function):
    """The maxima of every feature over (n, neighbours) rows: -> (n, features).

    The gradient of a maximum goes to the row that has it, to the first of several. Only rows and maxima are kept for
    that; PyTorch's own way back through a maximum of two halves ties and reads and writes ten maps for each neighbour.
    """

    @staticmethod
    def forward(rows: Tensor, neighbours: Tensor) -> Tensor:
        """Go neighbour by neighbour: nine times less memory than all of them at once, and faster."""
        # Not in place: of what is changed after it was made, compiled networks keep the beginning for the way back.
        return functools.reduce(torch.maximum, (F.embedding(row, rows) for row in neighbours.unbind(1)))

    @staticmethod
    def setup_context(context: Any, inputs: tuple[Tensor, Tensor], output: Tensor) -> None:
        """Keep what tells which row has a maximum."""
        context.save_for_backward(*inputs, output)

    @staticmethod
    def backward(context: Any, gradient: Tensor) -> tuple[Tensor, None]:
        """Add up the gradients of the maxima of each row, in 32 bits at least; on CUDA in no fixed order."""
        rows, neighbours, maxima = context.saved_tensors
        n_rows, n_features = rows.shape
        # Numbers of neighbours from behind, the largest of those that have the maximum: all in the type of the
        # features, for which there are vector instructions, and which holds numbers up to 256 exactly. Of what is not a
        # number it is the last.
        numbers = torch.ones_like(maxima)
        for number, neighbour in enumerate(neighbours.flip(1).unbind(1), 1):
            numbers.clamp_(min=F.embedding(neighbour, rows).eq_(maxima).mul_(number))
        winners = neighbours.gather(1, neighbours.shape[1] - numbers.long())  # (n, features)
        exact = torch.promote_types(gradient.dtype, torch.float32)
        sums = torch.zeros(n_rows, n_features, dtype=exact, device=rows.device)
        sums.scatter_add_(0, winners, gradient.to(exact))
        return sums.to(rows.dtype), None


def of_bags(rows: Tensor, neighbours: Tensor) -> Tensor:
    """Return the maxima over (n, neighbours) rows in one kernel, without a copy of any; several times slower on CPUs.

    Going back, its sums have no fixed order on CUDA.
    """
    return F.embedding_bag(neighbours, rows, mode="max")  # (n, features)


def joined(nodes: Tensor, candidates: Tensor, k: int, dilation: int, nearness: Tensor | None) -> Tensor:
    """Join the features of every node and its messages: -> (batch, nodes, 2 features).

    A message is the maximum of the differences of the neighbours from the node; for the parameters see `nearest`.
    """
    # Tensor cores multiply 16 bits exactly, not so 32.
    is_fast = nodes.is_cuda and nodes.element_size() == 2 and not torch.is_grad_enabled()
    return (_joined_at_once if is_fast else _joined)(nodes, candidates, k, dilation, nearness)


def _joined(nodes: Tensor, candidates: Tensor, k: int, dilation: int, nearness: Tensor | None) -> Tensor:
    index = nearest(nodes, candidates, k, dilation, nearness)
    return torch.cat([nodes, strongest(candidates, index) - nodes], 2)


@torch.library.custom_op(
    "hear_transformers::joined",
    mutates_args=(),
    schema="(Tensor nodes, Tensor candidates, int k, int dilation, Tensor? nearness) -> Tensor",
)
def _joined_at_once(nodes: Tensor, candidates: Tensor, k: int, dilation: int, nearness: Tensor | None) -> Tensor:
    """Compute `joined` in one kernel where it runs, without a table of similarities.

    `torch.compile` takes the whole for one operation.
    """
    is_small = candidates.shape[1] <= MOST_CANDIDATES and nodes.shape[2] <= MOST_FEATURES
    if not is_small or isinstance(tried(nodes.device, nodes.dtype), str):
        return _joined(nodes, candidates, k, dilation, nearness)
    from .graph_kernel import join  # which needs Triton

    return join(nodes, candidates, count(k, dilation, candidates.shape[1]), dilation, nearness)


@_joined_at_once.register_fake
def _(nodes: Tensor, candidates: Tensor, k: int, dilation: int, nearness: Tensor | None) -> Tensor:
    return nodes.new_empty(*nodes.shape[:2], 2 * nodes.shape[2])
