"""ATGNN: audio tagging graph neural network, and the Pyramid ViG it is made of.

Singh, Steinmetz, Benetos, Phan, Stowell: ATGNN: Audio Tagging Graph Neural Network, IEEE Signal Processing Letters 31,
2024 (2311.01526). Code of the authors, without a licence and without weights: github.com/shubhrsingh22/ATGNN. The
encoder is Pyramid ViG (Han et al., 2206.00272; github.com/huawei-noah/Efficient-AI-Backbones), whose ImageNet files the
variants `pvig_*` read. The variant `mini` is smaller than the paper's, and the only one with weights for audio: this
package has them.

The positions of a spectrogram are nodes of a graph. Every block of the encoder finds the nearest neighbours of each
node in the features of the clip and aggregates the differences of their features (max-relative graph convolution).
After every stage an embedding of each class, initially the same for all clips, finds its nearest nodes (patch-label
graph) and exchanges features with the other classes (label-label graph). Logits are the sum of a classifier over the
mean of all nodes and of the product of each class's embedding with its own vector.

The embedding, "features", is the mean of the last map, the input of the classifier. "labels" are the final embeddings
of the classes.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import accumulate, pairwise
from typing import Any, cast

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import unknown
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks import imagenet as images
from .networks.conv_norm import Pointwise, is_learning, is_pointwise, normalised
from .networks.family import Readout, Variant, count_members
from .networks.frontend import AST_MEL, CPJKU_MEL
from .networks.graph import joined, nearest, strongest
from .networks.transformer import DropPath, Pair, linear_gelu
from .networks.trunk import Exact, TimeAxis, Trunk, depth_of, is_traced

__all__ = ["ATGNN", "FAMILY", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

PerStage = tuple[int, ...]
"""One number for every stage of the encoder."""

STEM_HOP = 4  # mel bands and mel frames per position of the stem (ViG's pyramid_vig.py)
STEM_FIELD = 15  # mel frames that one position sees: three convolutions of 3, with strides 2, 2, 1 (the same)
EXPANSION = 4  # hidden features of the feed-forward network per feature (the same)
HIDDEN = 1024  # features of the classifier's hidden layer (the same)
DILATION_BLOCKS = 4  # blocks after which dilation grows by 1 (the same)
GROUPS = 4  # of the convolution that updates nodes (ViG's gcn_lib/torch_nn.py)
LONGEST_PERIOD = 10_000.0  # of the sines of places, over 2 pi (ViG's gcn_lib/pos_embed.py)
MOST_TABLES = 8  # of the nearness of places, kept for the next clips: those of two lengths, 22 MB for clips of 10 s
EMBED_DEVIATION = 0.02  # of the initial embeddings of the classes (authors' src/models/components/atgnn.py)


# Relative positions


def encoded(places: Tensor, size: int) -> Tensor:
    """Compute sines and cosines of places along one axis: (n,) -> (n, size)."""
    frequencies = LONGEST_PERIOD ** (-torch.arange(size // 2, dtype=places.dtype) / (size // 2))
    angles = places.unsqueeze(1) * frequencies
    return torch.cat([angles.sin(), angles.cos()], 1)


def rectangular(grid: Pair, ratio: int, channels: int, device: torch.device) -> Tensor:
    """Compute the nearness of the places of nodes and candidates on their grid.

    It is the product of their encodings (ViG), half of the features for frequency and half for time, hence a sum of one
    term for each. A candidate lies in the middle of the nodes that it averages.

    Parameters
    ----------
    grid : nodes along frequency and time
    ratio : nodes per candidate along either axis
    channels : features of the encoding
    device : of the result

    Returns
    -------
    nearness : (nodes, candidates) float32; 0.5 for the same place
    """
    axes = []
    for size in grid:
        # Float64, for exact sines of large angles; on the CPU, as not every device has it.
        places = torch.arange(size, dtype=torch.float64)
        starts = places[::ratio]
        middles = starts + (size - 1 - starts).clamp(max=ratio - 1) / 2
        axes.append((encoded(places, channels // 2) @ encoded(middles, channels // 2).T / channels).float().to(device))
    over_freq, over_time = axes
    nearness = over_freq[:, None, :, None] + over_time[None, :, None, :]  # (freq, time, freq / ratio, time / ratio)
    return nearness.flatten(2).flatten(0, 1)  # (nodes, candidates)


def official(grid: Pair, ratio: int, channels: int, device: torch.device) -> Tensor:
    """Compute the nearness of places as the authors do: on a square of about as many nodes, then interpolated.

    The square is filled row by row, so its rows are not those of a spectrogram. The authors interpolate a table
    (bicubic) along both axes; here it is the product of interpolated encodings. See `rectangular` for parameters and
    result.
    """
    grid = int(grid[0]), int(grid[1])  # of a trace: a table is a constant
    n_nodes = grid[0] * grid[1]
    n_candidates = -(-grid[0] // ratio) * -(-grid[1] // ratio)
    along = encoded(torch.arange(math.isqrt(n_nodes), dtype=torch.float64), channels // 2)
    row, column = torch.meshgrid(torch.arange(len(along)), torch.arange(len(along)), indexing="ij")
    square = torch.cat([along[column.flatten()], along[row.flatten()]], 1).T[None, :, :, None]  # (1, channels, n, 1)
    nodes, candidates = (
        F.interpolate(square, (n, 1), mode="bicubic", align_corners=False)[0, :, :, 0] for n in (n_nodes, n_candidates)
    )  # (channels, n)
    return (nodes.T @ candidates / channels).float().to(device)


Nearness = Callable[[Pair, int, int, torch.device], Tensor]
"""`rectangular`, or a function with its parameters and result."""

RELATIVE_POSITIONS: dict[str, Nearness] = {"rectangular": rectangular, "official": official}
"""Nearness of places in the choice of neighbours, by name."""


# Graphs


def as_nodes(maps: Tensor) -> Tensor:
    """Flatten a map, frequency by frequency: (batch, C, freq, time) -> (batch, nodes, C)."""
    return maps.permute(0, 2, 3, 1).flatten(1, 2)  # (batch, freq * time, C)


def as_maps(nodes: Tensor, grid: Pair) -> Tensor:
    """Undo `as_nodes`."""
    return nodes.unflatten(1, grid).permute(0, 3, 1, 2)  # (batch, C, freq, time)


def innermost(maps: Tensor) -> Tensor:
    """Lay out a map with its features innermost in memory."""
    return maps.contiguous(memory_format=torch.channels_last)


class Convolution(nn.Conv2d):
    """Convolution of maps of any width, padded so that positions stay centred."""

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq / stride, time / stride)."""
        return self.mapped(maps, self.bias)

    def mapped(self, maps: Tensor, bias: Tensor | None) -> Tensor:
        """Map as `forward` does, with another bias or none."""
        if is_pointwise(self):
            # A matrix product, without a copy where features are innermost in memory.
            return F.linear(maps.permute(0, 2, 3, 1), self.weight.flatten(1), bias).permute(0, 3, 1, 2)
        n_time = -(-maps.shape[3] // self.stride[1])
        # On a map narrower than its kernel, oneDNN's strided bfloat16 convolution is wrong (torch 2.11, AMX). Some of
        # the zeros that it puts behind the map anyhow make the map wide enough.
        missing = self.kernel_size[1] - maps.shape[3]
        if missing > 0:
            maps = F.pad(maps, (0, missing))
        return self._conv_forward(maps, self.weight, bias)[..., :n_time]


class ConvNorm(nn.Sequential):
    """Convolution and batch normalisation, then a GELU if asked for."""

    def __init__(
        self, inputs: int, outputs: int, kernel: int = 1, *, stride: int = 1, groups: int = 1, gelu: bool = False
    ) -> None:
        conv = Convolution(inputs, outputs, kernel, stride, kernel // 2, groups=groups)
        super().__init__(conv, nn.BatchNorm2d(outputs), *([nn.GELU()] if gelu else []))

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq / stride, time / stride)."""
        return self.finished(cast(Convolution, self[0]).mapped(maps, self.added()))

    def added(self) -> Tensor | None:
        """Return the bias to add before `finished`: None in training, in which the normalisation takes it away."""
        return None if is_learning(self[1]) else cast(Convolution, self[0]).bias

    def finished(self, mapped: Tensor) -> Tensor:
        """Normalise what the convolution gave with the bias `added`, and apply the GELU."""
        conv, norm = cast(Convolution, self[0]), cast(nn.BatchNorm2d, self[1])
        mapped = normalised(mapped, cast(Tensor, conv.bias), norm) if is_learning(norm) else norm(mapped)
        return self[2](mapped) if len(self) > 2 else mapped

    def for_inference(self) -> nn.Module:
        """Return what computes the same from one position for each, see `conv_norm.features_innermost`."""
        conv = cast(nn.Conv2d, self[0])
        if not is_pointwise(conv):
            return self
        return PointwiseGelu(conv) if isinstance(self[-1], nn.GELU) else Pointwise(conv)


class PointwiseGelu(nn.Module):
    """A convolution with a kernel of 1x1 and a GELU."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        self.linear = linear(conv.weight.flatten(1), conv.bias)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time), with the features innermost in memory, to (batch, outputs, freq, time)."""
        return linear_gelu(self.linear, maps.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


def linear(weight: Tensor, bias: Tensor | None) -> nn.Linear:
    """Return the layer for inference with these weights (outputs, inputs)."""
    layer = nn.Linear(1, 1, device="meta")
    layer.weight = nn.Parameter(weight.detach(), requires_grad=False)
    layer.bias = cast(nn.Parameter, bias)
    return layer


class GraphConv(ConvNorm):
    """Convolution in groups of what `joined` returns, then a GELU.

    A group sees the same part of the features of nodes and of those of messages; its weights are for one of either by
    turns.
    """

    def __init__(self, channels: int, outputs: int) -> None:
        super().__init__(2 * channels, outputs, groups=GROUPS, gelu=True)

    def forward(self, both: Tensor, grid: Pair) -> Tensor:  # type: ignore[override]
        """Map (batch, nodes, 2 channels) to (batch, outputs, freq, time)."""
        kernels = torch.stack(by_source(cast(nn.Conv2d, self[0])))  # (2, groups, outputs of a group, inputs of a group)
        mapped = torch.einsum("bnsgi,sgoi->bngo", both.unflatten(2, (2, GROUPS, -1)), kernels).flatten(2)
        bias = self.added()
        return self.finished(as_maps(mapped if bias is None else mapped + bias, grid))

    def for_inference(self) -> nn.Module:
        """Return what computes the same by matrix products."""
        conv = cast(nn.Conv2d, self[0])
        return DenseGraphConv(conv) if conv.weight.is_cuda else GroupedGraphConv(conv)


def by_source(conv: nn.Conv2d) -> tuple[Tensor, ...]:
    """Return the weights for the features of nodes and those for messages: (groups, outputs, inputs) of a group."""
    kernels = conv.weight.flatten(1).unflatten(0, (conv.groups, -1))  # (groups, outputs, 2 * inputs)
    return kernels.unflatten(2, (-1, 2)).unbind(3)


class GroupedGraphConv(nn.Module):
    """A `GraphConv` as two products for each group, which read and write parts of rows where they lie."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weight = torch.stack(by_source(conv), 1).detach()  # (groups, 2, outputs of a group, inputs of a group)
        self.weight = nn.Parameter(weight, requires_grad=False)
        self.bias = cast(Tensor, conv.bias)

    def forward(self, both: Tensor, grid: Pair) -> Tensor:
        """Map (batch, nodes, 2 channels) to (batch, outputs, freq, time)."""
        rows = both.flatten(0, 1).unflatten(1, (2, len(self.weight), -1))  # (batch * nodes, 2, groups, inputs)
        mapped = rows.new_empty(len(rows), len(self.weight), self.weight.shape[2])  # (batch * nodes, groups, outputs)
        for group, (of_nodes, of_messages) in enumerate(self.weight):
            part = mapped[:, group]
            torch.addmm(self.bias.view(len(self.weight), -1)[group], rows[:, 0, group], of_nodes.T, out=part)
            part.addmm_(rows[:, 1, group], of_messages.T)
        return as_maps(F.gelu(mapped.flatten(1)).unflatten(0, both.shape[:2]), grid)


class DenseGraphConv(nn.Module):
    """A `GraphConv` as one product with zeros between groups, as tensor cores are faster than memory."""

    def __init__(self, conv: nn.Conv2d) -> None:
        super().__init__()
        weights = [torch.block_diag(*kernels) for kernels in by_source(conv)]  # (outputs, channels) each
        self.linear = linear(torch.cat(weights, 1), conv.bias)

    def forward(self, both: Tensor, grid: Pair) -> Tensor:
        """Map (batch, nodes, 2 channels) to (batch, outputs, freq, time)."""
        return as_maps(linear_gelu(self.linear, both), grid)


class FeedForward(nn.Module):
    """Two layers applied to every position, with a residual connection that is dropped for some clips in training."""

    def __init__(self, channels: int, drop_path: float) -> None:
        super().__init__()
        self.fc1 = ConvNorm(channels, EXPANSION * channels, gelu=True)
        self.fc2 = ConvNorm(EXPANSION * channels, channels)
        self.drop = DropPath(drop_path)

    def forward(self, maps: Tensor) -> Tensor:
        """Refine (batch, channels, freq, time)."""
        return maps + self.drop(self.fc2(self.fc1(maps)))


class Grapher(nn.Module):
    """Max-relative graph convolution over the nearest nodes between two layers, with a residual connection.

    Candidates are means over squares with sides of `ratio` nodes; for `k` and `dilation` see `nearest`.
    """

    def __init__(self, channels: int, ratio: int, k: int, dilation: int, drop_path: float) -> None:
        super().__init__()
        self.ratio, self.k, self.dilation = ratio, k, dilation
        self.fc1 = ConvNorm(channels, channels)
        self.graph_conv = GraphConv(channels, 2 * channels)
        self.fc2 = ConvNorm(2 * channels, channels)
        self.drop = DropPath(drop_path)

    def forward(self, maps: Tensor, nearness_of: Nearness) -> Tensor:
        """Pass messages between the nodes of (batch, channels, freq, time)."""
        nodes, candidates, nearness = self.nodes(maps, nearness_of)
        both = joined(nodes, candidates, self.k, self.dilation, nearness)
        grid = maps.shape[2], maps.shape[3]
        return maps + self.drop(self.fc2(self.graph_conv(both, grid)))

    def nodes(self, maps: Tensor, nearness_of: Nearness) -> tuple[Tensor, Tensor, Tensor]:
        """Return what neighbours are chosen from, see `nearest`: nodes, candidates and nearness of their places."""
        projected = self.fc1(maps)
        grid = projected.shape[2], projected.shape[3]
        nodes = as_nodes(projected)
        # Squares over the edge average the nodes they contain, so that any grid has candidates.
        candidates = as_nodes(F.avg_pool2d(projected, self.ratio, ceil_mode=True)) if self.ratio > 1 else nodes
        return nodes, candidates, nearness_of(grid, self.ratio, nodes.shape[2], nodes.device)


class Block(nn.Module):
    """One block of the encoder: down-sampling if a stage begins with it, graph convolution, feed-forward network."""

    def __init__(self, down: ConvNorm | None, grapher: Grapher, ffn: FeedForward) -> None:
        super().__init__()
        self.down = down
        self.grapher = grapher
        self.ffn = ffn

    def forward(self, maps: Tensor, nearness_of: Nearness) -> Tensor:
        """Refine (batch, channels, freq, time), after down-sampling if there is any."""
        if self.down is not None:
            maps = self.down(maps)
        return self.ffn(self.grapher(maps, nearness_of))


# Labels


class LabelBlock(nn.Module):
    """Patch-label graph with the `k` nearest patches of each label, feed-forward network, label-label graph."""

    def __init__(self, channels: int, n_classes: int, k: int, drop_path: float) -> None:
        super().__init__()
        self.k = k
        self.plg = GraphConv(channels, channels)
        self.drop = DropPath(drop_path)
        self.ffn = FeedForward(channels, drop_path)
        self.adj = uniform(n_classes, n_classes)

    def forward(self, labels: Tensor, patches: Tensor) -> Tensor:
        """Refine labels (batch, channels, classes, 1) by patches (batch, nodes, channels)."""
        nodes = as_nodes(labels)
        grid = nodes.shape[1], 1
        # Label minus patch, the opposite of the encoder, as in both of the authors' versions.
        messages = nodes + strongest(-patches, nearest(nodes, patches, self.k))
        labels = self.ffn(labels + self.drop(self.plg(torch.cat([nodes, messages], 2), grid)))
        nodes = as_nodes(labels)
        return as_maps(nodes + self.adj @ nodes, grid)


class Labels(Exact):
    """Embeddings of the classes, the blocks that refine them, and the readout; see the parameters of `ATGNN`."""

    def __init__(self, channels: PerStage, depths: PerStage, n_classes: int, k: int, drop_path: float) -> None:
        super().__init__()
        self.embed = nn.Parameter(nn.init.trunc_normal_(torch.empty(1, channels[0], n_classes, 1), std=EMBED_DEVIATION))
        # Every stage projects labels to the number of features of its nodes.
        self.proj = nn.ModuleList([nn.Identity(), *(ConvNorm(before, after) for before, after in pairwise(channels))])
        self.stages = nn.ModuleList(
            nn.ModuleList(LabelBlock(size, n_classes, k, drop_path) for _ in range(depth))
            for size, depth in zip(channels, depths, strict=True)
        )
        self.readout = uniform(n_classes, channels[-1])

    def forward(self, maps: Sequence[Tensor]) -> Tensor:
        """Refine by the maps (batch, channels, freq, time) of each stage: -> (batch, classes, features) float32."""
        labels = innermost(self.embed.expand(maps[0].shape[0], -1, -1, -1))
        # Labels grow from block to block, as the label-label graph is not normalised: too large for 16 bits, in which
        # the authors' training became NaN (their README).
        with torch.autocast(labels.device.type, enabled=False):
            for proj, blocks, of_stage in zip(self.proj, self.stages, maps, strict=True):
                labels = proj(labels)
                patches = as_nodes(of_stage).float()
                for block in cast(nn.ModuleList, blocks):
                    labels = block(labels, patches)
        return as_nodes(labels)


def uniform(rows: int, columns: int) -> nn.Parameter:
    """Initialise a matrix as the authors do: uniform within +-1 / sqrt(columns)."""
    bound = columns**-0.5
    return nn.Parameter(nn.init.uniform_(torch.empty(rows, columns), -bound, bound))


# The network


class ATGNN(Trunk):
    """Pyramid ViG over a spectrogram; with labels, the network of the authors' `src/models/components/atgnn.py`.

    Parameters
    ----------
    channels, depths : features and blocks of every stage
    label_depths : label blocks after every stage; empty for an encoder alone
    ratios : nodes per candidate along either axis, for every stage
    k : neighbours of a node
    max_dilation : of the deepest blocks; ViG's is 49 nodes of its last stage over 9 neighbours
    relpos : a key of `RELATIVE_POSITIONS`
    n_classes : logits; 0 for a network without a classifier
    n_mels, frames : size of the position map. A shorter clip reads its start, as if padded; for a longer one the map is
        interpolated
    drop_path : rate of stochastic depth in label blocks and in the encoder's last block, linear from 0 in its first
    dropout : before the classifier's last layer
    """

    convolutional = True
    min_frames = 1
    max_frames = None
    recordable = False  # its tables of places

    def __init__(
        self,
        *,
        channels: PerStage = (80, 160, 400, 640),
        depths: PerStage = (2, 2, 6, 2),
        label_depths: PerStage = (),
        ratios: PerStage = (4, 2, 1, 1),
        k: int = 9,
        max_dilation: int = 5,
        relpos: str = "rectangular",
        n_classes: int = 200,
        n_mels: int = 128,
        frames: int = 1024,
        drop_path: float = 0.1,
        dropout: float = 0.0,
    ) -> None:
        super().__init__()
        if relpos not in RELATIVE_POSITIONS:
            raise unknown("relpos", relpos, RELATIVE_POSITIONS)
        self.relpos = relpos
        self._tables: dict[Any, Tensor] = {}  # see `_nearness`
        self.ends = {block: f"stage{i}" for i, block in enumerate(accumulate(depths), 1)}
        self.layers = layers_of(depths, has_labels=bool(label_depths), has_logits=bool(n_classes))
        self.stem = nn.Sequential(
            ConvNorm(1, channels[0] // 2, 3, stride=2, gelu=True),
            ConvNorm(channels[0] // 2, channels[0], 3, stride=2, gelu=True),
            ConvNorm(channels[0], channels[0], 3),
        )
        self.pos_embed = nn.Parameter(torch.zeros(1, channels[0], -(-n_mels // STEM_HOP), -(-frames // STEM_HOP)))
        dilations = [min(i // DILATION_BLOCKS + 1, max_dilation) for i in range(sum(depths))]
        self.blocks = nn.ModuleList(encoder(channels, depths, ratios, k, dilations, drop_path))
        self.prediction = classifier(channels[-1], n_classes, dropout) if n_classes else None
        self.labels = Labels(channels, label_depths, n_classes, k, drop_path) if label_depths else None
        self.apply(_init)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, and the label blocks only if needed, see `Trunk.forward`.

        "0" is the stem with the position map, "stage1" the last block of the first stage, "features" the mean of the
        last block. "labels" are the embeddings of the classes, (batch, 1, classes, features): positions, but not in
        time. "patch_logits" are the logits without them.
        """
        last_blocks = {stage: str(block) for block, stage in self.ends.items()}
        maps = self._embed(frames)
        taps: dict[str, Tensor] = {}
        of_stages = []
        for number in range(depth_of([last_blocks.get(layer, layer) for layer in wanted], len(self.blocks)) + 1):
            if number > 0:
                maps = self.blocks[number - 1](maps, self._nearness)
            if number in self.ends:
                of_stages.append(maps)
            for layer in {str(number), self.ends.get(number, "")}.intersection(wanted):
                taps[layer] = maps.permute(0, 3, 2, 1)  # (batch, time, freq, features)
        if "features" in wanted:
            taps["features"] = maps.mean((2, 3))
        if self.prediction is not None and not {"patch_logits", "logits"}.isdisjoint(wanted):
            of_patches = self.prediction(maps.mean((2, 3), keepdim=True))  # (batch, classes, 1, 1)
            taps["patch_logits"] = taps["logits"] = of_patches.flatten(1)
        if self.labels is not None and not {"labels", "logits"}.isdisjoint(wanted):
            labels = self.labels(of_stages)
            taps["labels"] = labels.unsqueeze(1)  # (batch, 1, classes, features)
            if "logits" in wanted:
                taps["logits"] = taps["patch_logits"] + (labels * self.labels.readout).sum(2)
        return {layer: taps[layer] for layer in wanted}

    def _nearness(self, grid: Pair, ratio: int, channels: int, device: torch.device) -> Tensor:
        """Return the nearness of places, see `rectangular`: one table for the blocks of a stage and for every clip."""
        compute = RELATIVE_POSITIONS[self.relpos]
        if torch.compiler.is_compiling() or is_traced():
            return compute(grid, ratio, channels, device)
        if (grid, ratio, channels, device) not in self._tables:
            if len(self._tables) >= MOST_TABLES:
                self._tables.clear()
            self._tables[grid, ratio, channels, device] = compute(grid, ratio, channels, device)
        return self._tables[grid, ratio, channels, device]

    def _embed(self, mel: Tensor) -> Tensor:
        """Compute the map that the blocks refine: (batch, n_mels, frames) -> (batch, channels, freq, time)."""
        maps = self.stem(mel.unsqueeze(1).to(self.pos_embed.dtype))  # (batch, channels, freq, time)
        positions = self.positions(maps.shape[2], maps.shape[3]).to(maps.dtype)
        # Features innermost, so that flattening into nodes does not copy.
        return innermost(maps) + innermost(positions)

    def positions(self, n_freq: int, n_time: int) -> Tensor:
        """Return the position map of a grid: (1, channels, freq, time)."""
        if n_time > self.pos_embed.shape[3]:
            return resized(self.pos_embed, (n_freq, n_time))
        return self.pos_embed[..., :n_time]


def encoder(
    channels: PerStage, depths: PerStage, ratios: PerStage, k: int, dilations: list[int], drop_path: float
) -> Iterator[Block]:
    """Build the blocks of an `ATGNN`, see its parameters; `dilations` has one for each block."""
    stages = [stage for stage, depth in enumerate(depths) for _ in range(depth)]
    step = drop_path / max(1, len(stages) - 1)
    for i, (before, stage) in enumerate(pairwise([0, *stages])):
        size = channels[stage]
        down = ConvNorm(channels[before], size, 3, stride=2) if stage != before else None
        grapher = Grapher(size, ratios[stage], k, dilations[i], i * step)
        yield Block(down, grapher, FeedForward(size, i * step))


def layers_of(depths: PerStage, *, has_labels: bool, has_logits: bool) -> dict[str, TimeAxis | None]:
    """Return the layers of an `ATGNN`.

    Kernels are odd and padded equally on both sides, so position 0 lies on frame 0 everywhere. From the first block on
    any position may be a neighbour of any other.
    """
    axes = [TimeAxis(STEM_HOP << stage, 0.0, None) for stage in range(len(depths))]
    blocks = [axis for axis, depth in zip(axes, depths, strict=True) for _ in range(depth)]
    vectors = {"features": True, "labels": has_labels, "patch_logits": has_labels, "logits": has_logits}
    return {
        "0": TimeAxis(STEM_HOP, 0.0, STEM_FIELD),
        **{str(i): axis for i, axis in enumerate(blocks, 1)},
        **{f"stage{i}": axis for i, axis in enumerate(axes, 1)},
        **{layer: None for layer, is_there in vectors.items() if is_there},
    }


def resized(table: Tensor, grid: Pair) -> Tensor:
    """Interpolate a position map to another grid, as the authors do: (1, channels, freq, time)."""
    return F.interpolate(table, grid, mode="bicubic", align_corners=False)


def classifier(channels: int, n_classes: int, dropout: float) -> nn.Sequential:
    """Build ViG's head, over maps of one position."""
    hidden = nn.Conv2d(channels, HIDDEN, 1), nn.BatchNorm2d(HIDDEN), nn.GELU()
    return nn.Sequential(*hidden, nn.Dropout(dropout), nn.Conv2d(HIDDEN, n_classes, 1))


def _init(module: nn.Module) -> None:
    """Initialise kernels as the authors of ViG do."""
    if isinstance(module, nn.Conv2d):
        nn.init.kaiming_normal_(module.weight)
        nn.init.zeros_(cast(Tensor, module.bias))


# Files

RENAMED = {
    "stem.convs.0.": "stem.0.0.",
    "stem.convs.1.": "stem.0.1.",
    "stem.convs.3.": "stem.1.0.",
    "stem.convs.4.": "stem.1.1.",
    "stem.convs.6.": "stem.2.0.",
    "stem.convs.7.": "stem.2.1.",
    "label_embed": "labels.embed",
    "label_proj.": "labels.proj.",
    "label_readout": "labels.readout",
    "mlg_stages.": "labels.stages.",
    # Containers that hold one module each.
    ".graph_conv.gconv.nn.": ".graph_conv.",
    ".plg.nn.": ".plg.",
}
"""Parts of the authors' keys -> ours, but for the members of their backbone."""


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, or of a Pyramid ViG for images, to those of `ATGNN`.

    Tables of relative positions are dropped, as they are computed here.
    """
    names = RENAMED | backbone_names(state_dict)
    adapted = {}
    for key, tensor in state_dict.items():
        if not key.endswith(".relative_pos"):
            for theirs, ours in names.items():
                key = key.replace(theirs, ours)
            adapted[key] = tensor
    if variant.network.get("n_classes", 1) or not images.are_for_images(adapted.get("stem.0.0.weight")):
        return adapted
    return for_spectrograms(adapted, variant)


def backbone_names(names: Collection[str]) -> dict[str, str]:
    """Return prefixes of the authors' keys -> ours: down-sampling is a separate member of their backbone."""
    prefixes: dict[str, str] = {}
    number = 0
    for member in range(count_members(names, "backbone.")):
        if any(name.startswith(f"backbone.{member}.conv.") for name in names):
            prefixes[f"backbone.{member}.conv."] = f"blocks.{number}.down."
        else:
            prefixes[f"backbone.{member}.0."] = f"blocks.{number}.grapher."
            prefixes[f"backbone.{member}.1."] = f"blocks.{number}.ffn."
            number += 1
    return prefixes


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`.

    A stage begins where a block down-samples. Tables of relative positions beside filters of one colour are those of
    the authors' own networks for audio, whose neighbours were chosen with them.
    """
    n_blocks = count_members(tensors, "blocks.")
    starts = [0, *(i for i in range(n_blocks) if f"blocks.{i}.down.0.weight" in tensors), n_blocks]
    stages = range(len(starts) - 1 if "labels.embed" in tensors else 0)
    usual = {"n_mels": 128, "frames": 1024, **variant.network, **given}
    lengths = {
        name: usual[name] if -(-usual[name] // STEM_HOP) == held else held * STEM_HOP
        for name, held in zip(("n_mels", "frames"), tensors["pos_embed"].shape[2:], strict=True)
    }
    filters = tensors.get("stem.convs.0.weight")
    is_authors = any(name.endswith(".relative_pos") for name in tensors) and not images.are_for_images(filters)
    return {
        "channels": tuple(len(tensors[f"blocks.{i}.ffn.fc2.0.weight"]) for i in starts[:-1]),
        "depths": tuple(end - start for start, end in pairwise(starts)),
        "label_depths": tuple(count_members(tensors, f"labels.stages.{stage}.") for stage in stages),
        **lengths,
        **({"relpos": "official"} if is_authors else {}),
    }


def for_spectrograms(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a network for images to an encoder, as the authors do.

    The filters of the stem are averaged over red, green and blue, the position map is interpolated, the classifier is
    dropped.
    """
    with torch.device("meta"):
        trunk = ATGNN(**variant.network)
    adapted = {key: tensor for key, tensor in state_dict.items() if not key.startswith("prediction.")}
    filters, table = adapted.get("stem.0.0.weight"), adapted.get("pos_embed")
    if filters is not None and filters.ndim == 4:
        adapted["stem.0.0.weight"] = filters.float().mean(1, keepdim=True)
    if table is not None and table.ndim == 4 and table.numel():
        adapted["pos_embed"] = resized(table.float(), (trunk.pos_embed.shape[2], trunk.pos_embed.shape[3]))
    return adapted


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a Pyramid ViG for images to a variant, see `for_spectrograms`; return others unchanged."""
    if not images.are_for_images(state_dict.get("stem.0.0.weight")):
        return state_dict
    return for_spectrograms(state_dict, variant)


SIZES: dict[str, dict[str, Any]] = {
    "s": {"channels": (80, 160, 400, 640), "depths": (2, 2, 6, 2)},
    "t": {"channels": (48, 96, 240, 384), "depths": (2, 2, 6, 2)},
    "m": {"channels": (96, 192, 384, 768), "depths": (2, 2, 16, 2)},
    "b": {"channels": (128, 256, 512, 1024), "depths": (2, 2, 18, 2)},
}
"""Pyramid ViG's sizes (2206.00272, table 2)."""

LABEL_DEPTHS = {"s": (1, 1, 3, 1), "t": (1, 1, 3, 1), "m": (1, 1, 6, 1), "b": (1, 1, 6, 1)}
"""Label blocks (authors' src/models/components/atgnn.py)."""

ATGNN_MEL = replace(AST_MEL, mean=-4.6476, scale=4.5699, deviations=1.0)
"""AST's dialect with the statistics of FSD50K, and the standard deviation once (authors' configs/data/fsd.yaml)."""

FRAMES = 1024  # to which the authors pad or cut clips (configs/data/fsd.yaml)


def row(checkpoint: str = "", imagenet: str = "", **network: Any) -> Variant:
    """Build the row of one network."""
    window_ms = 1000.0 * ATGNN_MEL.n_samples(FRAMES) / ATGNN_MEL.sample_rate
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=ATGNN_MEL,
        scene=Readout(window_ms, ("features",), fill_frames=FRAMES),
        scene_hop_ms=window_ms / 2,
        timestamps=(Readout(1_000.0, ("stage4",)),),
        framing="native",
        imagenet=("atgnn", imagenet) if imagenet else None,
    )


MINI = Variant(
    # Size T of half the width, with AudioSet's 527 labels; for clips of 2 s.
    checkpoint="mini",
    network={
        "channels": (24, 48, 120, 192),
        "depths": (2, 2, 6, 2),
        "label_depths": LABEL_DEPTHS["t"],
        "n_classes": 527,
        "frames": 200,
        "drop_path": 0.0,
    },
    frontend=CPJKU_MEL,
    # The layers that score best on held-out synthetic clips (training.distil readouts; weights/atgnn.md).
    scene=Readout(2_000.0, ("mel", "stage3", "stage4"), "meanstd"),
    scene_hop_ms=1_000.0,
    timestamps=(Readout(2_000.0, ("stage3",)),),
    framing="native",
)

IMAGENET = {"s": "pvig_s"}
"""Files of Pyramid ViG; the addresses of the other sizes are unknown."""

VARIANTS = {
    "mini": MINI,  # the only one with weights for audio
    # For FSD50K's 200 classes. No weights are published.
    **{
        f"pyr_{name}": row("", IMAGENET.get(name, ""), **SIZES[name], label_depths=LABEL_DEPTHS[name]) for name in SIZES
    },
    **{f"pyr_{name}_encoder": row("", IMAGENET.get(name, ""), **SIZES[name]) for name in SIZES},
    # Pyramid ViG from ImageNet, without its 1000 classes.
    "pvig_ti": row(**SIZES["t"], n_classes=0),
    "pvig_s": row("pvig_s", "pvig_s", **SIZES["s"], n_classes=0),
    "pvig_m": row(**SIZES["m"], n_classes=0),
    "pvig_b": row(**SIZES["b"], n_classes=0),
}

FAMILY = hear.Family(
    name="atgnn",
    network=ATGNN,
    variants=VARIANTS,
    anchors=("blocks.0.grapher.fc1.0.weight", "backbone.0.0.fc1.0.weight"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    classifier=("prediction.4.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("prediction.4.", "prediction.", "labels."),
)

load_model = hear.Loader(FAMILY).load_model
