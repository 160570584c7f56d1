"""The graphs of ATGNN on one clip: patches near the embedding of a class, and the neighbours of a patch."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ..atgnn import ATGNN, Grapher, LabelBlock, as_nodes
from ..networks.graph import nearest
from .window import Axis, Floats, Grid, Window


@dataclass(frozen=True, slots=True, eq=False)
class ClassMap:
    """How near the patches of a stage lie to the embedding of a class, in its last label block.

    Attributes
    ----------
    layer : "stage1" ..
    cosines : (freq, time) of the features of patches and the embedding, by which neighbours are chosen
    chosen : (k, 2) frequency and time of the patches that the class takes features from, the nearest first
    grid : where the patches lie
    """

    layer: str
    cosines: Tensor
    chosen: Tensor
    grid: Grid


@dataclass(frozen=True, slots=True, eq=False)
class Neighbours:
    """The neighbours of one patch in a block, squares of `ratio` patches.

    Attributes
    ----------
    layer : number of the block
    patch : band and frame of its centre
    centres : (k, 2) bands and frames of the centres of neighbours, the nearest first
    size : mel bands and mel frames of a neighbour
    """

    layer: str
    patch: tuple[float, float]
    centres: Floats
    size: tuple[float, float]


@contextlib.contextmanager
def _inputs(trunk: nn.Module, kind: type[nn.Module]) -> Iterator[list[tuple[nn.Module, tuple[Any, ...]]]]:
    """Keep what goes into the modules of a kind, in the order in which they are called."""
    seen: list[tuple[nn.Module, tuple[Any, ...]]] = []
    hooks = [
        module.register_forward_pre_hook(lambda module, arguments: seen.append((module, arguments)))
        for module in trunk.modules()
        if isinstance(module, kind)
    ]
    try:
        yield seen
    finally:
        for hook in hooks:
            hook.remove()


@torch.no_grad()
def class_maps(window: Window, number: int) -> list[ClassMap]:
    """Compare the embedding of a class with the patches of each stage; empty for an encoder without labels."""
    trunk = window.trunk
    assert isinstance(trunk, ATGNN)
    if trunk.labels is None:
        return []
    stages = list(trunk.ends.values())
    with _inputs(trunk, LabelBlock) as seen:
        taps = trunk(window.frames, ["logits", *stages])
    found = []
    for stage, blocks in zip(stages, trunk.labels.stages, strict=True):
        calls = [(module, arguments) for module, arguments in seen if module in [*blocks.children()]]
        if not calls:
            continue
        block, (labels, patches) = calls[-1]
        assert isinstance(block, LabelBlock)
        node = as_nodes(labels)[:1, number : number + 1]
        cosines = (F.normalize(node, dim=2) @ F.normalize(patches[:1], dim=2).mT)[0, 0]
        chosen = nearest(node, patches[:1], block.k)[0, 0]
        n_time, n_freq = taps[stage].shape[1:3]
        places = torch.stack([chosen // n_time, chosen % n_time], 1)
        grid = window.grid(stage, n_freq, n_time)
        found.append(ClassMap(stage, cosines.view(n_freq, n_time).float().cpu(), places.cpu(), grid))
    return found


@torch.no_grad()
def neighbours(window: Window, band: float, frame: float) -> list[Neighbours]:
    """Find the neighbours of the patch at a band and a frame, in every block."""
    trunk = window.trunk
    assert isinstance(trunk, ATGNN)
    numbers = [name for name in trunk.layers if name.isdecimal()][1:]
    with _inputs(trunk, Grapher) as seen:
        taps = trunk(window.frames, numbers)
    found = []
    for layer, (module, arguments) in zip(numbers, seen, strict=True):
        assert isinstance(module, Grapher)
        nodes, candidates, nearness = module.nodes(*arguments)
        n_time, n_freq = taps[layer].shape[1:3]
        grid = window.grid(layer, n_freq, n_time)
        row, column = (_place(axis, at) for axis, at in ((grid.freq, band), (grid.time, frame)))
        index = row * n_time + column
        chosen = nearest(nodes[:1], candidates[:1], module.k, module.dilation, nearness)[0, index].cpu()
        columns = -(-n_time // module.ratio)
        middle = (module.ratio - 1) / 2
        centres = torch.stack([chosen // columns, chosen % columns], 1).double() * module.ratio + middle
        steps = torch.tensor([grid.freq.step, grid.time.step], dtype=torch.float64)
        patch = grid.freq.first + row * grid.freq.step, grid.time.first + column * grid.time.step
        size = module.ratio * grid.freq.step, module.ratio * grid.time.step
        first = torch.tensor([grid.freq.first, grid.time.first], dtype=torch.float64)
        found.append(Neighbours(layer, patch, (first + centres * steps).numpy(), size))
    return found


def _place(axis: Axis, at: float) -> int:
    """Return the position nearest to a band or a frame."""
    return min(max(round((at - axis.first) / axis.step), 0), axis.n - 1)
