"""PANNs: convolutional networks that tag AudioSet, over log-mel spectrograms, over waveforms, over both.

Kong, Cao, Iqbal, Wang, Wang, Plumbley: PANNs: Large-Scale Pretrained Audio Neural Networks for Audio Pattern
Recognition, TASLP 2020 (1912.10211). Code of the authors: github.com/qiuqiangkong/audioset_tagging_cnn, MIT. Weights:
zenodo.org/record/3987831, CC-BY-4.0.

A network is a sequence of stages and a head. Layers are numbered like the authors' convolutional stages; "0" is the
input of the first. The default embedding is "features", the authors' embedding.

Three things differ from the authors' code. A clip shorter than a network's shortest is mirrored; theirs fails. Where
the two branches of a Wavegram-Logmel network differ in length, both are cropped to the shorter; theirs fails. The 8 kHz
network takes 16 kHz, a rate of HEAR, and resamples.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from dataclasses import replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor, nn

from . import hear
from .errors import WeightsError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant
from .networks.frontend import FrameSpec, PannsMel, Waveform, fourier_kernels, slaney_filters
from .networks.trunk import Exact, TimeAxis, Trunk

__all__ = ["FAMILY", "VARIANTS", "Panns", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

PANNS_MEL = PannsMel(
    sample_rate=32_000, n_fft=1024, win_length=1024, hop_length=320, n_mels=64, fmin=50.0, fmax=14_000.0
)
"""Of the networks at 32 kHz. The window is Hann's, as in the released code and weights, not the paper's Hamming."""

MEL_16K = replace(PANNS_MEL, sample_rate=16_000, n_fft=512, win_length=512, hop_length=160, fmax=8_000.0)
MEL_8K = replace(MEL_16K, n_fft=256, win_length=256, fmax=4_000.0, decimation=2)
MEL_32, MEL_128 = replace(PANNS_MEL, n_mels=32), replace(PANNS_MEL, n_mels=128)
WAVEFORM = Waveform(sample_rate=32_000)

DROPOUT = 0.5  # of a head, in training (authors' models.py, as every number of a network below)
STAGE_DROPOUT = 0.2  # behind a block of a CNN
INNER_DROPOUT = 0.1  # within a residual block
N_HALVINGS = 5  # blocks of a CNN that halve the map, the first ones
FRONT_END_TOLERANCE = 1e-4  # relative to the largest value; the authors' tensors differ from ours by less than 1e-5

Conv = nn.Conv1d | nn.Conv2d
Pool = nn.Module | None
Stage = tuple[str, str, nn.Module]
"""The authors' name of a module, the layer of its output ("" for none), the module."""


# Blocks


def conv1d(inputs: int, outputs: int, kernel: int = 3, stride: int = 1, dilation: int = 1) -> nn.Conv1d:
    """Build a convolution over time without bias, padded so that positions stay centred."""
    conv = nn.Conv1d(inputs, outputs, kernel, stride, dilation * (kernel // 2), dilation, bias=False)
    # He initialisation: with PyTorch's default the features of a random network would vanish.
    nn.init.kaiming_normal_(conv.weight)
    return conv


def conv2d(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Conv2d:
    """Build a convolution over time and frequency without bias, padded so that positions stay centred."""
    conv = nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False)
    nn.init.kaiming_normal_(conv.weight)
    return conv


def norm(conv: Conv) -> nn.BatchNorm1d | nn.BatchNorm2d:
    """Build the batch normalisation after a convolution."""
    return (nn.BatchNorm1d if isinstance(conv, nn.Conv1d) else nn.BatchNorm2d)(conv.out_channels)


class ConvBlock(nn.Module):
    """Pooling before; convolutions "conv1", "conv2" .., each with "bn1", "bn2" .. and ReLU; pooling behind; dropout."""

    def __init__(self, *convs: Conv, before: Pool = None, behind: Pool = None, dropout: float = STAGE_DROPOUT) -> None:
        super().__init__()
        self.before = before or nn.Identity()
        for number, conv in enumerate(convs, 1):
            self.add_module(f"conv{number}", conv)
            self.add_module(f"bn{number}", norm(conv))
            self.add_module(f"relu{number}", nn.ReLU(inplace=True))
        self.n_convs = len(convs)
        self.behind = behind or nn.Identity()
        self.dropout = nn.Dropout(dropout)

    def chains(self) -> Iterator[list[str]]:
        """Name the convolutions with what follows each, see `conv_norm.chains`."""
        for number in range(1, self.n_convs + 1):
            yield [f"conv{number}", f"bn{number}", f"relu{number}"]

    def convolve(self, maps: Tensor, number: int) -> Tensor:
        """Apply a convolution and what follows it."""
        for part in (f"conv{number}", f"bn{number}", f"relu{number}"):
            maps = self.get_submodule(part)(maps)
        return maps

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, time[, freq]) to (batch, outputs, time / pool[, freq / pool])."""
        maps = self.before(maps)
        for number in range(1, self.n_convs + 1):
            maps = self.convolve(maps, number)
        return self.dropout(self.behind(maps))


class ResidualBlock(ConvBlock):
    """Pooling, convolutions with ReLU and dropout between them, the shortcut added, ReLU.

    The shortcut has its own pooling (`beside`). No convolution has a stride, unlike torchvision's.
    """

    def __init__(self, *convs: Conv, before: Pool = None, beside: Pool = None, dropout: float = INNER_DROPOUT) -> None:
        super().__init__(*convs, before=before, dropout=dropout)
        inputs, outputs = convs[0].in_channels, convs[-1].out_channels
        self.downsample: nn.Module = nn.Identity()
        if beside is not None or inputs != outputs:
            conv = (conv1d if isinstance(convs[0], nn.Conv1d) else conv2d)(inputs, outputs, 1)
            self.downsample = nn.Sequential(*([] if beside is None else [beside]), conv, norm(conv))
        self.add_module(f"relu{self.n_convs}", nn.Identity())  # which follows the sum

    def shortcut(self, maps: Tensor) -> Tensor:
        """Compute the residual."""
        return self.downsample(maps)

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, time[, freq]) to (batch, outputs, time / pool[, freq / pool])."""
        inner = self.before(maps)
        for number in range(1, self.n_convs):
            inner = self.dropout(self.convolve(inner, number))
        return (self.convolve(inner, self.n_convs) + self.shortcut(maps)).relu_()


class DaiBlock(ResidualBlock):
    """Four convolutions over time; the shortcut of the first block, which does not widen, has unused weights."""

    def __init__(self, inputs: int, outputs: int) -> None:
        super().__init__(conv1d(inputs, outputs), *(conv1d(outputs, outputs) for _ in range(3)), dropout=0.0)
        self.downsample = conv1d(inputs, outputs, 1)
        self.bn_downsample = nn.BatchNorm1d(outputs)
        self.widens = inputs != outputs
        if not self.widens:
            self.downsample.requires_grad_(False)
            self.bn_downsample.requires_grad_(False)

    def chains(self) -> Iterator[list[str]]:
        """Name the convolutions with what follows each, see `conv_norm.chains`."""
        yield from super().chains()
        yield ["downsample", "bn_downsample"]

    def shortcut(self, maps: Tensor) -> Tensor:
        """Compute the residual."""
        return self.bn_downsample(self.downsample(maps)) if self.widens else maps


class InvertedResidual(nn.Module):
    """Expansion, depthwise convolution, projection; the input is added where it has the output's shape."""

    def __init__(self, inputs: int, outputs: int, expansion: int, stride: int) -> None:
        super().__init__()
        expanded = inputs * expansion
        expand = [] if expansion == 1 else [*unit(inputs, expanded), nn.ReLU6(inplace=True)]
        depthwise = [*unit(expanded, expanded, 3, stride, groups=expanded), nn.ReLU6(inplace=True)]
        self.conv = nn.Sequential(*expand, *depthwise, *unit(expanded, outputs))
        self.is_residual = stride == 1 and inputs == outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, time, freq) to (batch, outputs, time / stride, freq / stride)."""
        return maps + self.conv(maps) if self.is_residual else self.conv(maps)


def unit(inputs: int, outputs: int, kernel: int = 1, stride: int = 1, groups: int = 1) -> list[nn.Module]:
    """List a convolution of a MobileNet, its pooling if the kernel is larger than 1, its normalisation."""
    conv = conv2d(inputs, outputs, kernel, groups)
    # Pooling is numbered among the authors' names even where it does nothing.
    pool = [nn.AvgPool2d(stride) if stride > 1 else nn.Identity()] if kernel > 1 else []
    return [conv, *pool, norm(conv)]


class Bands(nn.Module):
    """Fold the features of a spectrogram or wavegram into maps with `n_bands` positions along frequency.

    With `innermost`, CPUs keep the features innermost in memory for the whole network.
    """

    def __init__(self, n_bands: int, innermost: bool = False) -> None:
        super().__init__()
        self.n_bands = n_bands
        self.innermost = innermost

    def forward(self, frames: Tensor) -> Tensor:
        """Fold (batch, maps * n_bands, time) into (batch, maps, time, n_bands)."""
        maps = frames.unflatten(1, (-1, self.n_bands)).transpose(2, 3)  # (batch, maps, time, n_bands)
        if self.innermost and maps.device.type == "cpu":
            return maps.contiguous(memory_format=torch.channels_last)
        return maps


# Bodies: the stages of each network, every number of channels times `width`


def scaled(channels: int, width: float) -> int:
    """Scale a number of channels."""
    return max(8, round(channels * width))


def spectrogram(n_mels: int = 64, innermost: bool = False) -> Iterator[Stage]:
    """Build the normalisation of a log-mel spectrogram, with statistics from the weights, and its `Bands`."""
    yield "bn0", "0", nn.BatchNorm1d(n_mels)
    yield "bands", "", Bands(n_mels, innermost)


def cnn_blocks(inputs: int, widths: Sequence[int], kernel: int = 3, first: int = 1) -> Iterator[Stage]:
    """Build the blocks of a CNN: two convolutions with a kernel of 3, or one with a kernel of 5."""
    for number, (before, after) in enumerate(pairwise([inputs, *widths]), first):
        convs = [conv2d(before, after, kernel), *([conv2d(after, after)] if kernel == 3 else [])]
        pool = nn.AvgPool2d(2) if number <= N_HALVINGS else None
        yield f"conv_block{number}", str(number), ConvBlock(*convs, behind=pool)


CNN14 = (64, 128, 256, 512, 1024, 2048)
"""Channels of the blocks."""


def cnn(width: float, *, widths: Sequence[int] = CNN14, kernel: int = 3, n_mels: int = 64) -> Iterator[Stage]:
    """Build a plain CNN from the channels of its blocks, see `cnn_blocks`."""
    yield from spectrogram(n_mels)
    yield from cnn_blocks(1, [scaled(channels, width) for channels in widths], kernel)


def resnet(width: float, *, depths: Sequence[int], bottleneck: bool = False, n_mels: int = 64) -> Iterator[Stage]:
    """Build a residual network from the blocks of each layer; a bottleneck block ends four times as wide."""
    channels, last = scaled(64, width), scaled(2048, width)
    yield from spectrogram(n_mels)
    yield from cnn_blocks(1, [channels])
    for number, (unscaled, depth) in enumerate(zip(CNN14[:4], depths, strict=True), 1):
        blocks, inner = nn.Sequential(), scaled(unscaled, width)
        for position in range(depth):
            if bottleneck:
                convs = [conv2d(channels, inner, 1), conv2d(inner, inner), conv2d(inner, 4 * inner, 1)]
            else:
                convs = [conv2d(channels, inner), conv2d(inner, inner)]
            halving = nn.AvgPool2d(2) if number > 1 and position == 0 else None
            blocks.append(ResidualBlock(*convs, before=halving, beside=halving))
            channels = convs[-1].out_channels
        yield f"resnet.layer{number}", str(number + 1), blocks
    yield "pool", "", nn.Sequential(nn.AvgPool2d(2), nn.Dropout(STAGE_DROPOUT))
    yield "conv_block_after1", "6", ConvBlock(conv2d(channels, last), conv2d(last, last))


def mobilenet_v1(width: float, *, n_mels: int = 64) -> Iterator[Stage]:
    """Build MobileNetV1 (Howard et al., 1704.04861, table 1), with pooling in place of the original's strides."""
    widths = [scaled(n, width) for n in (32, 64, 128, 128, 256, 256, *[512] * 6, 1024, 1024)]
    yield from spectrogram(n_mels, innermost=True)  # twice as fast, for depthwise convolutions
    yield "features.0", "1", nn.Sequential(*unit(1, widths[0], 3, 2), nn.ReLU(inplace=True))
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        depthwise = unit(inputs, inputs, 3, 2 if number in (2, 4, 6, 12) else 1, groups=inputs)
        parts = [*depthwise, nn.ReLU(inplace=True), *unit(inputs, outputs), nn.ReLU(inplace=True)]
        yield f"features.{number}", str(number + 1), nn.Sequential(*parts)


INVERTED = ((1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 2), (6, 160, 3, 1), (6, 320, 1, 1))
"""Expansion, channels, number and first stride of MobileNetV2's blocks; the original halves at 160, not at 96."""


def mobilenet_v2(width: float, *, n_mels: int = 64) -> Iterator[Stage]:
    """Build MobileNetV2 (Sandler et al., 1801.04381, table 2), with pooling in place of the original's strides."""
    inputs, last = scaled(32, width), scaled(1280, width)
    blocks: list[nn.Module] = [nn.Sequential(*unit(1, inputs, 3, 2), nn.ReLU6(inplace=True))]
    for expansion, channels, n_blocks, stride in INVERTED:
        for position in range(n_blocks):
            outputs = scaled(channels, width)
            blocks.append(InvertedResidual(inputs, outputs, expansion, stride if position == 0 else 1))
            inputs = outputs
    blocks.append(nn.Sequential(*unit(inputs, last), nn.ReLU6(inplace=True)))
    yield from spectrogram(n_mels, innermost=True)  # twice as fast, for depthwise convolutions
    for number, block in enumerate(blocks):
        yield f"features.{number}", str(number + 1), block


def waveform() -> Stage:
    """Build the stage that adds a channel to a waveform."""
    return "channel", "", nn.Unflatten(1, (1, -1))  # (batch, samples) -> (batch, 1, samples)


def leenet(width: float, *, widths: Sequence[int], n_convs: int, n_pooled: int) -> Iterator[Stage]:
    """Build a CNN over the waveform with kernels and pools of three samples (Lee et al., 1703.01789).

    Each block has one or two convolutions; `n_pooled` blocks pool, from the second on, and the first has a stride.
    """
    yield waveform()
    for number, (inputs, outputs) in enumerate(pairwise([1, *(scaled(n, width) for n in widths)]), 1):
        convs = [conv1d(inputs, outputs, stride=3 if number == 1 else 1), conv1d(outputs, outputs)]
        pool = nn.MaxPool1d(3, 3, 1) if 1 < number <= 1 + n_pooled else None
        dropout = INNER_DROPOUT if n_convs == 2 else 0.0
        yield f"conv_block{number}", str(number), ConvBlock(*convs[:n_convs], behind=pool, dropout=dropout)


def dainet(width: float) -> Iterator[Stage]:
    """Build a residual network over the waveform with a stem of 80 samples (Dai et al., 1610.00087)."""
    widths = [scaled(channels, width) for channels in (64, 64, 128, 256, 512)]
    yield waveform()
    yield "conv0", "", nn.Conv1d(1, widths[0], 80, 4, bias=False)
    yield "bn0", "0", nn.BatchNorm1d(widths[0])
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        if number > 1:
            yield f"pool{number}", "", nn.MaxPool1d(4)
        yield f"conv_block{number}", str(number), DaiBlock(inputs, outputs)


def res1dnet(width: float, *, depths: Sequence[int]) -> Iterator[Stage]:
    """Build a residual network over the waveform from the blocks of each layer."""
    widths = [scaled(channels, width) for channels in (64, 64, 128, 256, 512, 1024, 1024, 2048)]
    yield waveform()
    yield "conv0", "", conv1d(1, widths[0], 11, stride=5)
    yield "bn0", "0", nn.BatchNorm1d(widths[0])
    for number, ((inputs, outputs), depth) in enumerate(zip(pairwise(widths), depths, strict=True), 1):
        blocks = nn.Sequential()
        for size in (inputs, *[outputs] * (depth - 1)):
            shrinks = number > 1 and len(blocks) == 0
            before, beside = (nn.MaxPool1d(4), nn.AvgPool1d(4)) if shrinks else (None, None)
            convs = conv1d(size, outputs), conv1d(outputs, outputs, dilation=2)
            blocks.append(ResidualBlock(*convs, before=before, beside=beside))
        yield f"resnet.layer{number}", str(number), blocks


def wavegram(width: float, *, n_bins: int, n_branches: int) -> Iterator[Stage]:
    """Build a CNN over the paper's wavegram, a spectrogram learned from the waveform.

    It has `n_bins` positions along frequency; the second block of the CNN reads `n_branches` maps, concatenated.
    """
    n_maps = max(1, round(4 * width))
    widths = [scaled(64, width), scaled(64, width), scaled(128, width), n_maps * n_bins]
    yield waveform()
    yield "pre_conv0", "", conv1d(1, widths[0], 11, stride=5)
    yield "pre_bn0", "", nn.BatchNorm1d(widths[0])
    yield "pre_relu0", "wave0", nn.ReLU(inplace=True)
    for number, (inputs, outputs) in enumerate(pairwise(widths), 1):
        convs = conv1d(inputs, outputs), conv1d(outputs, outputs, dilation=2)
        yield f"pre_block{number}", f"wave{number}", ConvBlock(*convs, behind=nn.MaxPool1d(4), dropout=0.0)
    first, *deep = [scaled(channels, width) for channels in CNN14]
    yield "bins", "", Bands(n_bins)
    yield "pre_block4", "1", ConvBlock(conv2d(n_maps, first), conv2d(first, first), behind=nn.AvgPool2d((2, 1)))
    yield from cnn_blocks(n_branches * first, deep, first=2)


# Time


SLIDING = (nn.Conv1d, nn.Conv2d, nn.AvgPool1d, nn.AvgPool2d, nn.MaxPool1d)
"""Modules that see several positions in time, which is always the first axis after the channels."""


def slides(stage: nn.Module) -> Iterator[tuple[int, int, int]]:
    """Return length, stride and padding in time of the kernels and pools of a stage, in the order of its forward pass.

    Every block defines its parts in that order. Shortcuts are skipped: they see no more than the main path.
    """
    for name, module in stage.named_modules():
        if isinstance(module, SLIDING) and "downsample" not in name:
            sizes = (module.kernel_size, module.stride, module.padding, getattr(module, "dilation", 1))
            kernel, stride, padding, dilation = (size[0] if isinstance(size, tuple) else int(size) for size in sizes)
            yield 1 + dilation * (kernel - 1), stride, padding


def axis_behind(axis: TimeAxis, stage: nn.Module) -> TimeAxis:
    """Compute the time axis of the output of a stage from that of its input."""
    hop, offset, field = axis.hop, axis.offset, axis.receptive_field or 1
    for length, stride, padding in slides(stage):
        offset += ((length - 1) / 2 - padding) * hop
        field += int((length - 1) * hop)
        hop *= stride
    return TimeAxis(hop, offset, field)


def fewest_frames(stages: Sequence[nn.Module]) -> int:
    """Return the length of the shortest input of consecutive stages."""
    n_positions = 1
    for length, stride, padding in reversed([slide for stage in stages for slide in slides(stage)]):
        n_positions = max(1, (n_positions - 1) * stride + length - 2 * padding)
    return n_positions


def joined(one: TimeAxis, other: TimeAxis) -> TimeAxis:
    """Return the time axis of two concatenated maps, whose receptive fields overlap."""
    reaches = [((axis.receptive_field or 1) - 1) / 2 for axis in (one, other)]
    first = min(one.offset - reaches[0], other.offset - reaches[1])
    last = max(one.offset + reaches[0], other.offset + reaches[1])
    return TimeAxis(one.hop, (first + last) / 2, math.ceil(last - first + 1))


# Networks


Body = Callable[..., Iterator[Stage]]

FRAMES = TimeAxis(1, 0.0, 1)
"""Time axis of the input of a network: samples of a waveform, frames of a spectrogram."""


class Panns(Trunk):
    """A sequence of stages, and the head of the networks that tag whole clips.

    Parameters
    ----------
    body : builds the stages
    embedding : length of "features"
    width : multiplies every number of channels
    n_classes : logits
    dropout : before the embedding, in training
    options : of the body
    """

    convolutional = True

    def __init__(
        self,
        body: Body,
        *,
        embedding: int = 2048,
        width: float = 1.0,
        n_classes: int = 527,
        dropout: float = DROPOUT,
        **options: Any,
    ) -> None:
        super().__init__()
        self.dropout = nn.Dropout(dropout)
        self.stages = self._add(body(width, **options))
        *_, last = (module for module in self.modules() if isinstance(module, (nn.Conv1d, nn.Conv2d)))
        self.fc1 = nn.Linear(last.out_channels, scaled(embedding, width))
        self.fc_audioset = nn.Linear(scaled(embedding, width), n_classes)
        self.layers = {**self._axes_along(self.stages, FRAMES), "features": None, "logits": None}
        self.min_frames = fewest_frames([self.get_submodule(name) for name in self.stages])

    def _add(self, stages: Iterator[Stage]) -> dict[str, str]:
        """Register stages under their names; return the layer of each name."""
        layers = {}
        for name, layer, module in stages:
            container, _, last = name.rpartition(".")
            if container and not hasattr(self, container):
                self.add_module(container, nn.Module())
            self.get_submodule(container).add_module(last, module)
            layers[name] = layer
        return layers

    def _axes_along(self, stages: Mapping[str, str], axis: TimeAxis) -> dict[str, TimeAxis]:
        """Compute the time axes of the layers of consecutive stages from that of their input."""
        axes = {}
        for name, layer in stages.items():
            axis = axis_behind(axis, self.get_submodule(name))
            axes[layer] = axis
        return {layer: axis for layer, axis in axes.items() if layer}

    def chains(self) -> Iterator[list[str]]:
        """Name the stages, see `conv_norm.chains`."""
        yield list(self.stages)

    def forward(self, inputs: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many stages as the wanted layers need, see `Trunk.forward`."""
        taps: dict[str, Tensor] = {}
        maps = self._run(self.stages, inputs, wanted, taps)
        if not taps.keys() >= set(wanted):
            self._tag(maps, taps)
        return {layer: taps[layer] for layer in wanted}

    def _run(self, stages: Mapping[str, str], maps: Tensor, wanted: Collection[str], taps: dict[str, Tensor]) -> Tensor:
        """Run stages until all wanted layers are stored; return the last map."""
        for name, layer in stages.items():
            if taps.keys() >= set(wanted):
                break
            module = self.get_submodule(name)
            # The first normalisation takes a mel as it is: 16 bits before it would be a quarter of a decibel.
            if not isinstance(module, (Exact, nn.BatchNorm1d)) and self.fc1.weight.dtype != torch.float32:
                maps = maps.to(self.fc1.weight.dtype)
            maps = module(maps)
            if layer in wanted:
                taps[layer] = grid(maps)
        return maps

    def _tag(self, maps: Tensor, taps: dict[str, Tensor]) -> None:
        """Run the head on the last map."""
        frames = over_time(maps)
        pooled = frames.amax(2) + frames.mean(2)
        taps["features"] = self.fc1(self.dropout(pooled)).relu_()
        taps["logits"] = self.fc_audioset(taps["features"])


def grid(maps: Tensor) -> Tensor:
    """Permute (batch, features, time[, freq]) to the axes of a layer, (batch, time, freq, features)."""
    return maps.permute(0, 2, 3, 1) if maps.ndim == 4 else maps.transpose(1, 2).unsqueeze(2)


def over_time(maps: Tensor) -> Tensor:
    """Average over frequency, if there is any: -> (batch, features, time)."""
    return maps.mean(3) if maps.ndim == 4 else maps


class DecisionLevel(Panns):
    """CNN that tags every segment of time and pools these tags for the clip.

    "features" is a grid here, and so is "framewise", the logits of every segment.

    Parameters
    ----------
    decision : pooling of the probabilities of segments: "max", "avg" or "att"
    options : of `Panns`
    """

    def __init__(self, *, decision: str, **options: Any) -> None:
        super().__init__(cnn, **options)
        self.decision = decision
        self.max_pool = nn.MaxPool1d(3, 1, 1)
        self.avg_pool = nn.AvgPool1d(3, 1, 1)  # with zeros beyond the ends, as the authors'
        grids = {layer: axis for layer, axis in self.layers.items() if axis is not None}
        segments = axis_behind([*grids.values()][-1], self.max_pool)
        self.layers = {**grids, "features": segments, "framewise": segments, "logits": None}
        if decision == "att":
            self.att_block = Attention(self.fc_audioset.in_features, self.fc_audioset.out_features)
            del self.fc_audioset

    def _tag(self, maps: Tensor, taps: dict[str, Tensor]) -> None:
        """Run the head on the last map."""
        frames = over_time(maps)
        frames = self.dropout(self.max_pool(frames) + self.avg_pool(frames))
        features = self.fc1(frames.transpose(1, 2)).relu_()  # (batch, time, features)
        # Unlike in the networks that tag whole clips, dropout follows the embedding.
        dropped = self.dropout(features)
        if self.decision == "att":
            segments, taps["logits"] = self.att_block(dropped)
        else:
            segments = self.fc_audioset(dropped)
            taps["logits"] = segments.amax(1) if self.decision == "max" else logits(segments.float().sigmoid().mean(1))
        taps["features"], taps["framewise"] = features.unsqueeze(2), segments.unsqueeze(2)  # (batch, time, 1, size)


class Attention(nn.Module):
    """Tags of every segment, and their mean with weights for each class."""

    def __init__(self, features: int, n_classes: int) -> None:
        super().__init__()
        self.att = nn.Conv1d(features, n_classes, 1)
        self.cla = nn.Conv1d(features, n_classes, 1)
        self.bn_att = nn.BatchNorm1d(n_classes).requires_grad_(False)  # unused weights

    def forward(self, features: Tensor) -> tuple[Tensor, Tensor]:
        """Tag (batch, time, features): logits (batch, time, classes) of the segments, (batch, classes) of the clip."""
        frames = features.transpose(1, 2)  # (batch, features, time)
        weights = self.att(frames).float().clamp(-10, 10).softmax(2)
        segments = self.cla(frames)
        # (batch, classes, time) -> (batch, time, classes)
        return segments.transpose(1, 2), logits((weights * segments.float().sigmoid()).sum(2))


def logits(probabilities: Tensor) -> Tensor:
    """Invert the sigmoid, within +-16, the resolution of float32 probabilities near 0 and 1."""
    return probabilities.logit(torch.finfo(torch.float32).eps)


class Wavegram(Panns):
    """CNN over a wavegram; layer "1" is in the place of the first block of a CNN over a spectrogram.

    Parameters
    ----------
    n_mels : bands of the spectrogram whose normalisation and first block are in the weights, unused
    n_branches : maps that the second block reads, concatenated
    width, options : of `Panns`
    """

    def __init__(self, *, n_mels: int = 64, n_branches: int = 1, width: float = 1.0, **options: Any) -> None:
        super().__init__(wavegram, n_bins=n_mels // 2, n_branches=n_branches, width=width, **options)
        self.beside = self._add(spectrogram(n_mels)) | self._add(cnn_blocks(1, [scaled(64, width)]))
        for name in self.beside:
            self.get_submodule(name).requires_grad_(n_branches > 1)


class WavegramLogmel(Wavegram):
    """CNN over a wavegram and a log-mel spectrogram: layer "1" is the spectrogram's first block, then the wavegram.

    For an odd number of whole hops the wavegram is one position shorter; the longer map is cropped.

    Parameters
    ----------
    mel : dialect of the spectrogram
    options : of `Panns`
    """

    def __init__(self, *, mel: PannsMel, **options: Any) -> None:
        super().__init__(n_mels=mel.n_mels, n_branches=2, **options)
        self.logmel = mel.build()
        self.deep = {name: layer for name, layer in self.stages.items() if name.startswith("conv_block")}
        self.wave = {name: layer for name, layer in self.stages.items() if name not in self.deep}
        frames = TimeAxis(mel.hop_length, mel.offset, mel.receptive_field)
        first = joined(self._axes_along(self.beside, frames)["1"], self._axes_along(self.wave, FRAMES)["1"])
        self.layers = {"mel": frames, **self.layers, "1": first, **self._axes_along(self.deep, first)}

    def forward(self, inputs: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many stages as the wanted layers need, see `Trunk.forward`."""
        taps: dict[str, Tensor] = {}
        mel = self._run({"logmel": "mel"}, inputs, wanted, taps)
        maps = self._run({**self.wave, "pre_block4": ""}, inputs, wanted, taps)
        if not taps.keys() >= set(wanted):
            beside = self._run(dict.fromkeys(self.beside, ""), mel, wanted, taps)
            n_positions = min(beside.shape[2], maps.shape[2])
            maps = torch.cat([beside[:, :, :n_positions], maps[:, :, :n_positions]], 1)
            taps["1"] = grid(maps)
            maps = self._run(self.deep, maps, wanted, taps)
        if not taps.keys() >= set(wanted):
            self._tag(maps, taps)
        return {layer: taps[layer] for layer in wanted}


NETWORKS: dict[str, Callable[..., Panns]] = {
    "cnn": partial(Panns, cnn),
    "decision_level": DecisionLevel,
    "resnet": partial(Panns, resnet),
    "mobilenet_v1": partial(Panns, mobilenet_v1),
    "mobilenet_v2": partial(Panns, mobilenet_v2, dropout=0.0),
    "leenet": partial(Panns, leenet),
    "dainet": partial(Panns, dainet),
    "res1dnet": partial(Panns, res1dnet),
    "wavegram": Wavegram,
    "wavegram_logmel": WavegramLogmel,
}


def network(*, kind: str, embedding: int = 2048, width: float = 1.0, n_classes: int = 527, **options: Any) -> Panns:
    """Build a network: a key of `NETWORKS` with its options."""
    return NETWORKS[kind](embedding=embedding, width=width, n_classes=n_classes, **options)


# Weights


def front_end_tensors(spec: PannsMel) -> dict[str, Tensor]:
    """Compute the front end as stored in the authors' files: a windowed Fourier transform and the mel filters."""
    real, imaginary = fourier_kernels(spec).unsqueeze(2)
    return {
        "spectrogram_extractor.stft.conv_real.weight": real,
        "spectrogram_extractor.stft.conv_imag.weight": imaginary,
        "logmel_extractor.melW": slaney_filters(spec),
    }


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Remove the authors' front end from a state dict; raise WeightsError if it is incomplete or not the variant's.

    The hop is not stored, so it cannot be checked.
    """
    state_dict = without_transfer(state_dict)
    spec = variant.network.get("mel", variant.frontend)
    if isinstance(spec, PannsMel) and "bn0.weight" in state_dict:
        spec = replace(spec, n_mels=max(1, state_dict["bn0.weight"].numel()))
    expected = front_end_tensors(spec) if isinstance(spec, PannsMel) and spectrogram_in(state_dict) else {}
    held = [key for key in expected if key in state_dict]
    for key in held:
        ours, theirs = expected[key], state_dict[key]
        # A comparison that NaN fails.
        if theirs.shape != ours.shape or not (theirs - ours).abs().max() <= FRONT_END_TOLERANCE * ours.abs().max():
            raise WeightsError(
                f"{key} was made for another front end; this variant has {spec.n_mels} mel bands from {spec.fmin:g} to "
                f"{spec.fmax:g} Hz and windows of {spec.n_fft} samples at {spec.sample_rate // spec.decimation} Hz; "
                "choose the variant that the checkpoint belongs to"
            )
    if held and len(held) < len(expected):
        missing = expected.keys() - set(held)
        raise WeightsError(f"holds {', '.join(held)} but not {', '.join(missing)}; the checkpoint is cut short")
    return {key: tensor for key, tensor in state_dict.items() if key not in held}


def spectrogram_in(names: Collection[str]) -> bool:
    """Return True if a state dict holds a tensor of the authors' front end."""
    return any(name.startswith(("spectrogram_extractor.", "logmel_extractor.")) for name in names)


def without_transfer(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Undo the wrapper of the authors' transfer repository, panns_transfer_to_gtzan (pytorch/models.py).

    It keeps the network under "base." and tags its embedding with a classifier of its own, "fc_transfer".
    """
    if "fc_transfer.weight" not in state_dict:
        return state_dict
    base = {key.removeprefix("base."): tensor for key, tensor in state_dict.items() if key.startswith("base.")}
    base = {key: tensor for key, tensor in base.items() if not key.startswith(FAMILY.reinitialised)}
    heads = {key: tensor for key, tensor in state_dict.items() if key.startswith("fc_transfer.")}
    return base | {key.replace("fc_transfer.", "fc_audioset."): tensor for key, tensor in heads.items()}


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`.

    Bands are those of the normalisation of the log-mel. The width is that of the embedding's input.
    """
    rows, columns = tensors["fc1.weight"].shape
    with torch.device("meta"):
        unscaled = network(**{**variant.network, "width": 1.0})
        ours = network(**variant.network)
    width = variant.network.get("width", 1.0)
    if columns != ours.fc1.in_features:
        width = columns / unscaled.fc1.in_features
    embedding = variant.network["embedding"]
    found = {"width": width, "embedding": embedding if rows == scaled(embedding, width) else round(rows / width)}
    spec = variant.network.get("mel", variant.frontend)
    if isinstance(spec, PannsMel) and "bn0.weight" in tensors:
        n_mels = tensors["bn0.weight"].numel()
        found |= {"mel": replace(spec, n_mels=n_mels)} if "mel" in variant.network else {"n_mels": n_mels}
    return found


# Variants


def row(
    kind: str, frontend: FrameSpec, last: str, checkpoint: str = "", embedding: int = 2048, **options: Any
) -> Variant:
    """Build the row of one network: a key of `NETWORKS`, the layer of timestamps, fields of `Variant`, options."""
    return Variant(
        checkpoint=checkpoint,
        network={"kind": kind, "embedding": embedding, **options},
        frontend=frontend,
        # The authors read clips of any length in one pass; here memory limits it.
        scene=Readout(60_000.0, ("features",)),
        scene_hop_ms=30_000.0,
        timestamps=(Readout(1_000.0, (last,)),),
        framing="native",
    )


LEENET11 = (64, 64, 64, 128, 128, 128, 128, 128, 256)
LEENET24 = (64, 96, 128, 128, 256, 256, 512, 512, 1024)

VARIANTS = {
    "cnn14": row("cnn", PANNS_MEL, "6", "cnn14"),
    "cnn6": row("cnn", PANNS_MEL, "4", "cnn6", 512, widths=CNN14[:4], kernel=5),
    "cnn10": row("cnn", PANNS_MEL, "4", "cnn10", 512, widths=CNN14[:4]),
    "cnn14_16k": row("cnn", MEL_16K, "6", "cnn14_16k"),
    "cnn14_8k": row("cnn", MEL_8K, "6", "cnn14_8k"),
    "cnn14_emb512": row("cnn", PANNS_MEL, "6", "cnn14_emb512", 512),
    "cnn14_emb128": row("cnn", PANNS_MEL, "6", "cnn14_emb128", 128),
    "cnn14_emb32": row("cnn", PANNS_MEL, "6", "cnn14_emb32", 32),
    "cnn14_mel32": row("cnn", MEL_32, "6", n_mels=32),
    "cnn14_mel128": row("cnn", MEL_128, "6", n_mels=128),
    "cnn14_decisionlevelmax": row("decision_level", PANNS_MEL, "features", "cnn14_decisionlevelmax", decision="max"),
    "cnn14_decisionlevelavg": row("decision_level", PANNS_MEL, "features", decision="avg"),
    "cnn14_decisionlevelatt": row("decision_level", PANNS_MEL, "features", "cnn14_decisionlevelatt", decision="att"),
    "resnet22": row("resnet", PANNS_MEL, "6", "resnet22", depths=(2, 2, 2, 2)),
    "resnet38": row("resnet", PANNS_MEL, "6", "resnet38", depths=(3, 4, 6, 3)),
    "resnet54": row("resnet", PANNS_MEL, "6", "resnet54", depths=(3, 4, 6, 3), bottleneck=True),
    "mobilenetv1": row("mobilenet_v1", PANNS_MEL, "14", "mobilenetv1", 1024),
    "mobilenetv2": row("mobilenet_v2", PANNS_MEL, "19", "mobilenetv2", 1024),
    "leenet11": row("leenet", WAVEFORM, "9", "leenet11", 512, widths=LEENET11, n_convs=1, n_pooled=8),
    "leenet24": row("leenet", WAVEFORM, "9", "leenet24", 1024, widths=LEENET24, n_convs=2, n_pooled=7),
    "dainet19": row("dainet", WAVEFORM, "4", "dainet19", 512),
    "res1dnet31": row("res1dnet", WAVEFORM, "7", "res1dnet31", depths=(2,) * 7),
    "res1dnet51": row("res1dnet", WAVEFORM, "7", "res1dnet51", depths=(2, 3, 4, 6, 4, 3, 2)),
    "wavegram_cnn14": row("wavegram", WAVEFORM, "6", "wavegram_cnn14"),
    "wavegram_logmel_cnn14": row("wavegram_logmel", WAVEFORM, "6", "wavegram_logmel_cnn14", mel=PANNS_MEL),
    "wavegram_logmel128_cnn14": row("wavegram_logmel", WAVEFORM, "6", mel=MEL_128),
}
"""The authors' networks under their names in lower case; for those without a checkpoint no weights are published."""

FAMILY = hear.Family(
    name="panns",
    network=network,
    variants=VARIANTS,
    anchors=("fc1.weight", "base.fc1.weight"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    classifier=("fc_audioset.bias", "att_block.cla.bias"),
    reinitialised=("fc_audioset.", "att_block."),
)

load_model = hear.Loader(FAMILY).load_model
