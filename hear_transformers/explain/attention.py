"""Attention of transformers: the weights of one clip, rollout, and gradient x attention."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from ..embedding.pooling import CLASS_TOKEN
from ..errors import OptionError
from ..mast import MAST, PoolingBlock
from ..networks.framewise import FrameTagger
from .window import Window


@dataclass
class Recorded(TorchFunctionMode):
    """Context in which attention is computed in plain steps, and its weights are kept.

    Networks use PyTorch's fused attention, which never holds the weights; what they compute stays the same. Outside of
    this context nothing is changed.

    Attributes
    ----------
    weights : mean over heads of the weights of each block, (queries, keys), of the first clip of the batch
    relevance : mean over heads of the positive part of weights times their gradient, filled when a score is
        differentiated (Chefer et al., 2103.15679, equation 5)
    """

    weights: list[Tensor] = field(default_factory=list)
    relevance: dict[int, Tensor] = field(default_factory=dict)

    def __post_init__(self) -> None:
        super().__init__()

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, or compute its fused attention in plain steps."""
        if function is F.scaled_dot_product_attention:
            return self._attend(*arguments, **(named or {}))
        return function(*arguments, **(named or {}))

    def _attend(
        self, query: Tensor, key: Tensor, value: Tensor, mask: Tensor | None = None, *, scale: float | None = None
    ) -> Tensor:
        """Attend: (batch, heads, queries, size) -> the same; `mask` is added to the scores."""
        scores = query @ key.mT * (query.shape[-1] ** -0.5 if scale is None else scale)
        weights = (scores if mask is None else scores + mask).softmax(-1)  # (batch, heads, queries, keys)
        number = len(self.weights)
        self.weights.append(weights.detach()[0].float().mean(0))
        if weights.requires_grad:
            kept = weights.detach()

            def keep(gradient: Tensor) -> None:
                self.relevance[number] = (gradient * kept)[0].float().clamp(min=0).mean(0)

            weights.register_hook(keep)
        return weights @ value


def rollout(window: Window, layer: str, pool: str) -> Tensor:
    """Compute attention rollout (Abnar and Zuidema, 2005.00928, section 3): (freq, time) of the patches.

    Heads are averaged, half of each block is its residual connection, and blocks are multiplied from the layer down to
    the patches. What is read is the mean of the class tokens, or of all patches where those are pooled.

    Parameters
    ----------
    window : the clip
    layer : up to which
    pool : as in `Readout`

    Returns
    -------
    map : shares of the patches, which sum to 1 with those of the class tokens, which are left out
    """
    recorded = Recorded()
    with torch.no_grad(), recorded:
        taps = window.trunk(window.frames, _wanted(window, layer))
    row = readers(window, layer, pool, taps)
    for number in reversed(range(len(recorded.weights))):
        row = 0.5 * _through(window, taps, row, recorded.weights[number], number) + 0.5 * _kept(
            window, taps, row, number
        )
    return as_grid(window, taps, row)


def gradient_attention(window: Window, score: Callable[[Tensor], Tensor]) -> Tensor:
    """Compute gradient x attention of a score of the logits (Chefer et al., 2103.15679, section 3): (freq, time).

    The relevance of a block is the mean over heads of the positive part of its weights times their gradients; a token
    is relevant by itself (residual connection) and by what it attends to.

    Parameters
    ----------
    window : the clip
    score : logits (1, classes) -> a number
    """
    recorded = Recorded()
    frames = window.frames.detach().clone().requires_grad_()
    with torch.enable_grad():
        with recorded:
            taps = window.trunk(frames, _wanted(window, "logits"))
        torch.autograd.grad(score(taps["logits"]), frames)
    taps = {layer: tap.detach() for layer, tap in taps.items()}
    row = readers(window, "logits", "mean", taps)
    for number in reversed(range(len(recorded.weights))):
        attended = _through(window, taps, row, recorded.relevance[number], number)
        row = _kept(window, taps, row, number) + attended
    # Less what a class token or a pooled patch is to itself without any attention.
    return as_grid(window, taps, row) - as_grid(window, taps, _residual_alone(window, taps, len(recorded.weights)))


def _wanted(window: Window, layer: str) -> list[str]:
    """Return the layers that say where the positions of every block lie, with the one that is explained."""
    trunk = window.trunk
    numbers = [name for name in trunk.layers if name.isdecimal()]
    if layer.isdecimal():
        numbers = numbers[: int(layer) + 1]
    return list(dict.fromkeys([*numbers, layer]))


def readers(window: Window, layer: str, pool: str, taps: Mapping[str, Tensor]) -> Tensor:
    """Return how much of each token is read at the end, (tokens,), which sums to 1."""
    prefix = len(window.trunk.prefix)
    last = [name for name in taps if name.isdecimal()][-1]
    n_patches = math.prod(taps[last].shape[1:3])
    row = torch.zeros(prefix + n_patches)
    of_prefix = window.model.layer_axis(layer) is None and not isinstance(window.trunk, FrameTagger)
    if prefix and (pool == CLASS_TOKEN or of_prefix):
        row[:prefix] = 1 / prefix
    else:
        row[prefix:] = 1 / n_patches
    return row.to(window.frames.device)


def _residual_alone(window: Window, taps: Mapping[str, Tensor], n_blocks: int) -> Tensor:
    row = readers(window, "logits", "mean", taps)
    for number in reversed(range(n_blocks)):
        row = _kept(window, taps, row, number)
    return row


def _through(window: Window, taps: Mapping[str, Tensor], row: Tensor, weights: Tensor, number: int) -> Tensor:
    """Pass what is read of the outputs of a block on to what they attend to: -> (tokens before,)."""
    if row.shape[0] != weights.shape[0]:
        raise OptionError(f"{'/'.join(window.model.name)}: its attention is not over its tokens, so it has no rollout")
    read = row @ weights
    if isinstance(window.trunk, MAST):
        block = window.trunk.blocks[number]
        assert isinstance(block, PoolingBlock)
        return spread(read, shape_of(taps, number), block.attn.pool_k.stride)
    return read


def _kept(window: Window, taps: Mapping[str, Tensor], row: Tensor, number: int) -> Tensor:
    """Pass what is read of the outputs of a block on to its inputs by the residual connection: -> (tokens before,)."""
    if isinstance(window.trunk, MAST):
        block = window.trunk.blocks[number]
        assert isinstance(block, PoolingBlock)
        return spread(row, shape_of(taps, number), block.stride)
    return row


def shape_of(taps: Mapping[str, Tensor], layer: int) -> tuple[int, int]:
    """Return the positions of a layer along frequency and time."""
    return taps[str(layer)].shape[2], taps[str(layer)].shape[1]


def spread(row: Tensor, shape: tuple[int, int], stride: tuple[int, ...]) -> Tensor:
    """Divide shares of pooled positions equally among the positions that they are pooled from, with a kernel of 3.

    Parameters
    ----------
    row : (pooled freq * pooled time,)
    shape : positions along frequency and time before pooling
    stride : of the pooling

    Returns
    -------
    shares : (freq * time,), with the same sum
    """
    if max(stride) == 1:
        return row
    kernel = [step + 1 if step > 1 else 1 for step in stride]
    with torch.enable_grad():
        grid = row.new_zeros(1, 1, *shape).requires_grad_()
        padding = [size // 2 for size in kernel]
        pooled = F.avg_pool2d(grid, kernel, stride, padding, count_include_pad=False)
        (shares,) = torch.autograd.grad(pooled, grid, row.view(pooled.shape))
    return shares.flatten()


def as_grid(window: Window, taps: Mapping[str, Tensor], row: Tensor) -> Tensor:
    """Return the shares of the patches, (freq, time), on the CPU."""
    patches = row[len(window.trunk.prefix) :].float().cpu()
    n_freq, n_time = shape_of(taps, 0)
    return patches.view(n_time, n_freq).T if window.trunk.time_first else patches.view(n_freq, n_time)
