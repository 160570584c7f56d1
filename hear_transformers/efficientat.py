"""EfficientAT: MobileNets (MN) and dynamic MobileNets (DyMN) distilled from transformers on AudioSet.

Schmid, Koutini, Widmer: Efficient Large-Scale Audio Tagging via Transformer-to-CNN Knowledge Distillation, ICASSP 2023
(2211.04772). Schmid, Koutini, Widmer: Dynamic Convolutional Neural Networks as Efficient Pre-trained Audio Models,
TASLP 2024 (2310.15648). Code and weights of the authors: github.com/fschmid56/EfficientAT, MIT.

MN is MobileNetV3-Large (Howard et al., 1905.02244) over a log-mel spectrogram, every width times 0.1 to 4. In DyMN a
context vector of the whole window determines the kernels and activation of each block.

The default embedding is "features", the mean of the last map. The embedding of the authors' HEAR modules, the means of
the mel and of four blocks (Low-Complexity Audio Embedding Extractors, EUSIPCO 2023, 2303.01879; `mn10_all_b_mel_avgs`
and others in github.com/fschmid56/EfficientAT_HEAR), is ``load_model(layer="mel,5,11,13,15")``.

The same networks, trained by others: frame-MobileNets, whose maps keep a frame every 40 ms (Schmid et al., Effective
Pre-Training of Audio Transformers for Sound Event Detection, ICASSP 2025, 2409.09546;
github.com/fschmid56/PretrainedSED, MIT), and S-SONDO's, which learnt the embeddings of larger networks without labels
(El Adlouni et al., ICASSP 2026, 2604.24933; github.com/MedAliAdlouni/ssondo, MIT).
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import WeightsError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .labels import audioset_strong_labels
from .networks.conv_norm import project
from .networks.family import Readout, Variant
from .networks.framewise import CLASSIFIERS, FrameTagger, frame_classes_in
from .networks.frontend import (
    CPJKU_BESIDE,
    CPJKU_MEL,
    SED_MEL,
    FrameSpec,
    LogMel,
    PannsMel,
    slaney_filters,
    squared,
)
from .networks.transformer import Pair
from .networks.trunk import TimeAxis

__all__ = ["FAMILY", "VARIANTS", "EfficientAT", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

STEM_KERNEL = 3  # in time and frequency (MobileNetV3, table 1)
STEM_STRIDE = 2
LAST_EXPANSION = 6  # features of the last map per feature of the last block (table 1: 960 of 160)
HIDDEN_WIDTH = 1280  # of the MLP head at width 1 (table 1)
DROPOUT = 0.2  # of the MLP head (authors' models/mn/model.py)
EPSILON = 1e-3  # of every BatchNorm but the convolutional head's (authors' models/mn/model.py)
MOMENTUM = 0.01  # of the same, in PyTorch's sense
SQUEEZE_RATIO = 4  # squeeze-and-excitation (authors' se_r)
N_KERNELS = 4  # that a dynamic convolution mixes (authors' dyconv_k)
N_LINES = 2  # that a dynamic ReLU takes the maximum of (authors' dyrelu_k)
CONTEXT_RATIO = 4  # expanded features per number of the context (authors' context_ratio)
CONTEXT_WIDTHS = (32, 128)  # shortest and longest context at width 1 (authors' min_ and max_context_size)
FEW_POSITIONS = 16  # in maps up to this, CPUs convolve depthwise up to 30 times faster with the features innermost


def divisible(width: float) -> int:
    """Round to the nearest multiple of 8, up if that loses more than 10 %, so that widths fit vector units."""
    rounded = max(8, int(width + 4) // 8 * 8)
    return rounded + 8 if rounded < 0.9 * width else rounded


Activation = type[nn.ReLU] | type[nn.Hardswish]


@dataclass(frozen=True, slots=True)
class BlockSpec:
    """One inverted residual block.

    Attributes
    ----------
    inputs, expanded, outputs : features before, within and after the block
    kernel : of the depthwise convolution, in time and frequency
    squeezes : True if it has a squeeze-and-excitation
    activation : of the expansion and, unless the block is dynamic, of the depthwise convolution
    stride : of the depthwise convolution, along frequency and along time
    """

    inputs: int
    kernel: int
    expanded: int
    outputs: int
    squeezes: bool
    activation: Activation
    stride: Pair

    def scaled(self, width: float) -> BlockSpec:
        """Multiply every number of features by `width`."""
        inputs, expanded, outputs = (divisible(n * width) for n in (self.inputs, self.expanded, self.outputs))
        return replace(self, inputs=inputs, expanded=expanded, outputs=outputs)


BLOCKS = (
    BlockSpec(16, 3, 16, 16, False, nn.ReLU, (1, 1)),
    BlockSpec(16, 3, 64, 24, False, nn.ReLU, (2, 2)),
    BlockSpec(24, 3, 72, 24, False, nn.ReLU, (1, 1)),
    BlockSpec(24, 5, 72, 40, True, nn.ReLU, (2, 2)),
    BlockSpec(40, 5, 120, 40, True, nn.ReLU, (1, 1)),
    BlockSpec(40, 5, 120, 40, True, nn.ReLU, (1, 1)),
    BlockSpec(40, 3, 240, 80, False, nn.Hardswish, (2, 2)),
    BlockSpec(80, 3, 200, 80, False, nn.Hardswish, (1, 1)),
    BlockSpec(80, 3, 184, 80, False, nn.Hardswish, (1, 1)),
    BlockSpec(80, 3, 184, 80, False, nn.Hardswish, (1, 1)),
    BlockSpec(80, 3, 480, 112, True, nn.Hardswish, (1, 1)),
    BlockSpec(112, 3, 672, 112, True, nn.Hardswish, (1, 1)),
    BlockSpec(112, 5, 672, 160, True, nn.Hardswish, (2, 2)),
    BlockSpec(160, 5, 960, 160, True, nn.Hardswish, (1, 1)),
    BlockSpec(160, 5, 960, 160, True, nn.Hardswish, (1, 1)),
)
"""The blocks at width 1 (MobileNetV3, table 1, rows 2 to 16)."""

FRAME_STRIDES = (1, 1), (2, 2), *((stride, 1) for stride in (2, 1, 1, 2, 1, 2, 1, 1, 2, 1, 1, 1, 2))
"""Strides of the blocks of a frame-MobileNet: down to a single band, but a frame every 40 ms (PretrainedSED,
`models/frame_mn/model.py`)."""

EVERY_BLOCK = tuple(range(1, len(BLOCKS) + 1))
"""Numbers of the dynamic blocks of a DyMN."""

SQUEEZING_BLOCKS = tuple(number for number, spec in enumerate(BLOCKS, 1) if spec.squeezes)
"""Numbers of the dynamic blocks of a "replace_se" DyMN, whose other blocks are those of MN."""


class ConvNorm(nn.Sequential):
    """Convolution without bias, padded so that positions stay centred, batch normalisation, activation if any."""

    def __init__(
        self,
        inputs: int,
        outputs: int,
        kernel: int = 1,
        stride: int | Pair = 1,
        groups: int = 1,
        act: Activation | None = None,
    ) -> None:
        conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, groups=groups, bias=False)
        norm = nn.BatchNorm2d(outputs, EPSILON, MOMENTUM)
        super().__init__(conv, norm, *([] if act is None else [act(inplace=True)]))


class SqueezeExcitation(nn.Module):
    """Gates that scale features by the whole window (Hu et al., 1709.01507), sigmoids unlike MobileNetV3's."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        squeezed = divisible(channels // SQUEEZE_RATIO)
        self.fc1 = nn.Linear(channels, squeezed)
        self.fc2 = nn.Linear(squeezed, channels)

    def forward(self, maps: Tensor) -> Tensor:
        """Compute the gates of maps (batch, channels, freq, time): (batch, channels)."""
        return self.fc2(F.relu(self.fc1(maps.mean((2, 3))))).sigmoid()


class Block(nn.Module):
    """Inverted residual block: expand, depthwise convolution, squeeze-and-excitation, project."""

    def __init__(self, spec: BlockSpec) -> None:
        super().__init__()
        width, act = spec.expanded, spec.activation
        expand = [ConvNorm(spec.inputs, width, act=act)] if width != spec.inputs else []
        depthwise = ConvNorm(width, width, spec.kernel, spec.stride, width, act)
        squeeze = [SqueezeExcitation(width)] if spec.squeezes else []
        self.block = nn.Sequential(*expand, depthwise, *squeeze, ConvNorm(width, spec.outputs))
        self.is_residual = spec.stride == (1, 1) and spec.inputs == spec.outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq / stride, time / stride)."""
        if maps.device.type == "cpu":
            # Features innermost: up to three times faster, most of all for small maps.
            maps = maps.contiguous(memory_format=torch.channels_last)
        *layers, last = self.block
        inner, gate = maps, None
        for layer in layers:
            if isinstance(layer, SqueezeExcitation):
                gate = layer(inner)
            else:
                inner = layer(inner)
        return project(last, inner, gate, maps if self.is_residual else None)


class Context(nn.Module):
    """Summary of the whole window for a dynamic block (authors' ContextGen)."""

    def __init__(self, inputs: int, expanded: int, size: int, stride: Pair) -> None:
        super().__init__()
        self.joint_conv = nn.Conv2d(inputs, size, 1, bias=False)
        self.joint_norm = nn.BatchNorm2d(size, EPSILON, MOMENTUM)
        self.conv_f = nn.Conv2d(size, expanded, 1)
        self.conv_t = nn.Conv2d(size, expanded, 1)
        self.stride = stride

    def chains(self) -> Iterator[list[str]]:
        """Name the convolution with what follows it, see `conv_norm.chains`."""
        yield ["joint_conv", "joint_norm"]

    def forward(self, maps: Tensor) -> tuple[Tensor, Tensor]:
        """Summarise maps (batch, inputs, freq, time).

        Returns
        -------
        context : (batch, size)
        attention : (batch, expanded, freq / stride, time / stride) in 0..1 (coordinate attention, 2103.02907)
        """
        profiles = torch.cat([maps.mean(3), maps.mean(2)], 2).unsqueeze(3)  # (batch, inputs, freq + time, 1)
        profiles = F.hardswish(self.joint_norm(self.joint_conv(profiles)))  # (batch, size, freq + time, 1)
        over_freq, over_time = profiles.split(list(maps.shape[2:]), 2)  # (batch, size, freq, 1), (batch, size, time, 1)
        of_freq, of_time = self.stride
        attention_f = self.conv_f(strided(over_freq, of_freq)).sigmoid()  # (batch, expanded, freq / stride, 1)
        attention_t = self.conv_t(strided(over_time, of_time)).sigmoid()
        # (batch, expanded, freq / stride, 1) times (batch, expanded, 1, time / stride)
        return profiles.mean((2, 3)), attention_f * attention_t.transpose(2, 3)


def strided(profile: Tensor, stride: int) -> Tensor:
    """Average a profile (batch, size, positions, 1) at the positions of the output, as the authors do.

    Zeros beyond its ends count.
    """
    return profile if stride == 1 else F.avg_pool2d(profile, (3, 1), (stride, 1), (1, 0))


class DynamicKernels(nn.Module):
    """The kernels of a dynamic convolution (Chen et al., 1912.03458): for each window a mix of four, without bias.

    The temperature of the authors' softmax is not in their files. It is 1, its final value, for every network trained
    on AudioSet, and 30 for those trained on ImageNet alone, which are no variants here. `inputs` counts the input
    features of each output, times the area of the kernel.
    """

    def __init__(self, outputs: int, inputs: int, context: int) -> None:
        super().__init__()
        self.outputs = outputs
        self.residuals = nn.Linear(context, N_KERNELS)
        self.weight = nn.Parameter(torch.randn(1, 1, N_KERNELS, outputs * inputs) * (2 / inputs) ** 0.5)

    def forward(self, context: Tensor) -> Tensor:
        """Mix kernels: (batch, size) -> (batch, outputs, inputs)."""
        mix = self.residuals(context).softmax(1)
        return (mix @ self.weight[0, 0]).unflatten(1, (self.outputs, -1))  # (batch, outputs, inputs)


def pointwise(maps: Tensor, kernels: Tensor) -> Tensor:
    """Convolve (batch, inputs, freq, time) with kernels (batch, outputs, inputs) of size 1x1, others for every window.

    A batched product is up to ten times faster than the authors' convolution in groups.
    """
    return (kernels @ maps.flatten(2)).unflatten(2, maps.shape[2:])  # (batch, outputs, freq * time), then the grid


def depthwise(maps: Tensor, kernels: Tensor, stride: Pair) -> Tensor:
    """Convolve depthwise (batch, channels, freq, time) with square kernels (batch, channels, area) for every window."""
    size = round(kernels.shape[2] ** 0.5)
    merged = maps.flatten(0, 1).unsqueeze(0)  # (1, batch * channels, freq, time)
    if merged.shape[2] * merged.shape[3] <= FEW_POSITIONS:
        merged = merged.contiguous(memory_format=torch.channels_last)
    weight = kernels.reshape(-1, 1, size, size)  # (batch * channels, 1, size, size)
    convolved = F.conv2d(merged, weight, stride=stride, padding=size // 2, groups=len(weight))
    # (1, batch * channels, freq / stride, time / stride)
    return convolved[0].unflatten(0, kernels.shape[:2])  # (batch, channels, freq / stride, time / stride)


class DynamicReLU(nn.Module):
    """For each window and feature the larger of two lines (DyReLU-B, Chen et al., 2003.10027)."""

    lambdas: Tensor
    init_v: Tensor

    def __init__(self, channels: int, context: int) -> None:
        super().__init__()
        self.coef_net = nn.Linear(context, 2 * N_LINES * channels)
        # Two slopes, two intercepts: their ranges, and their initial values (ReLU, as in 2003.10027).
        self.register_buffer("lambdas", torch.tensor([1.0, 1.0, 0.5, 0.5]))
        self.register_buffer("init_v", torch.tensor([1.0, 0.0, 0.0, 0.0]))

    def forward(self, maps: Tensor, context: Tensor) -> Tensor:
        """Activate maps (batch, channels, freq, time), conditioned on the context (batch, size)."""
        moves = 2 * self.coef_net(context).sigmoid() - 1
        lines = moves.unflatten(1, (-1, 2 * N_LINES)) * self.lambdas + self.init_v  # (batch, channels, 4)
        slope_1, slope_2, intercept_1, intercept_2 = lines[..., None, None].unbind(2)
        return torch.maximum(maps * slope_1 + intercept_1, maps * slope_2 + intercept_2)


class DynamicBlock(nn.Module):
    """Inverted residual block whose kernels and activation depend on the window (authors' DY_Block)."""

    def __init__(self, spec: BlockSpec, context: int) -> None:
        super().__init__()
        self.context_gen = Context(spec.inputs, spec.expanded, context, spec.stride)
        self.expands = spec.expanded != spec.inputs
        if self.expands:
            self.exp_conv = DynamicKernels(spec.expanded, spec.inputs, context)
            self.exp_norm = nn.BatchNorm2d(spec.expanded, EPSILON, MOMENTUM)
            self.exp_act = spec.activation(inplace=True)
        self.depth_conv = DynamicKernels(spec.expanded, spec.kernel**2, context)
        self.depth_norm = nn.BatchNorm2d(spec.expanded, EPSILON, MOMENTUM)
        self.depth_act = DynamicReLU(spec.expanded, context)
        self.proj_conv = DynamicKernels(spec.outputs, spec.expanded, context)
        self.proj_norm = nn.BatchNorm2d(spec.outputs, EPSILON, MOMENTUM)
        self.stride = spec.stride
        self.is_residual = spec.stride == (1, 1) and spec.inputs == spec.outputs

    def forward(self, maps: Tensor) -> Tensor:
        """Map (batch, inputs, freq, time) to (batch, outputs, freq / stride, time / stride)."""
        context, attention = self.context_gen(maps)
        inner = maps
        if self.expands:
            inner = self.exp_act(self.exp_norm(pointwise(inner, self.exp_conv(context))))
        inner = self.depth_norm(depthwise(inner, self.depth_conv(context), self.stride))
        inner = self.depth_act(inner, context) * attention
        inner = self.proj_norm(pointwise(inner, self.proj_conv(context)))
        return maps + inner if self.is_residual else inner


def mlp(channels: int, width: float, size: int) -> list[nn.Module]:
    """Build the two linear layers of a head."""
    hidden = divisible(HIDDEN_WIDTH * width)
    first = nn.Linear(channels, hidden), nn.Hardswish(inplace=True), nn.Dropout(DROPOUT, inplace=True)
    return [*first, nn.Linear(hidden, size)]


def mlp_head(channels: int, width: float, n_classes: int) -> nn.Sequential:
    """Build the head of most networks."""
    mean = nn.AdaptiveAvgPool2d(1), nn.Flatten()  # (batch, channels)
    return nn.Sequential(*mean, *mlp(channels, width, n_classes))


def convolutional_head(channels: int, width: float, n_classes: int) -> nn.Sequential:
    """Build the head of the "fc" networks, the same at any width; its BatchNorm has PyTorch's default epsilon."""
    conv = nn.Conv2d(channels, n_classes, 1, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(n_classes), nn.AdaptiveAvgPool2d(1), nn.Flatten())  # (batch, classes)


HEADS = {"mlp": mlp_head, "convolutional": convolutional_head}


class EfficientAT(FrameTagger):
    """The networks of the authors' `models/mn/model.py` and `models/dymn/model.py`: stem, 15 blocks, last map, head.

    Parameters
    ----------
    width : multiplies every number of features
    dynamic : numbers of the dynamic blocks; the others are MobileNetV3's
    strides : of the four blocks that halve the map in MobileNetV3, in time and frequency
    head : a key of `HEADS`
    n_classes : logits; 0 for a network without a classifier
    framewise : True for a frame-MobileNet, with `FRAME_STRIDES` and the classifiers of `FrameTagger`
    frame_classes : logits of a frame; 0 for a network without that classifier
    projected : numbers of the larger network's embedding, layer "projected"; 0 for none
    """

    convolutional = True

    def __init__(
        self,
        *,
        width: float = 1.0,
        dynamic: Collection[int] = (),
        strides: Sequence[int] = (2, 2, 2, 2),
        head: str = "mlp",
        n_classes: int = 527,
        framewise: bool = False,
        frame_classes: int = 0,
        projected: int = 0,
    ) -> None:
        super().__init__()
        pairs = FRAME_STRIDES if framewise else halved(strides)
        specs = [replace(spec.scaled(width), stride=pair) for spec, pair in zip(BLOCKS, pairs, strict=True)]
        axes = time_axes(specs, dynamic)
        self.layers = {**axes, "features": None, **({"projected": None} if projected else {})}
        narrowest, widest = (divisible(size * width) for size in CONTEXT_WIDTHS)
        self.features = nn.ModuleList([ConvNorm(1, specs[0].inputs, STEM_KERNEL, STEM_STRIDE, act=nn.Hardswish)])
        for number, spec in enumerate(specs, 1):
            if number in dynamic:
                context = min(max(divisible(spec.expanded // CONTEXT_RATIO), narrowest), widest)
                self.features.append(DynamicBlock(spec, context))
            else:
                self.features.append(Block(spec))
        channels = LAST_EXPANSION * specs[-1].outputs
        self.features.append(ConvNorm(specs[-1].outputs, channels, act=nn.Hardswish))
        # Without a gradient, as no recipe has a loss for it.
        self.projection = nn.Sequential(*mlp(channels, width, projected)).requires_grad_(False) if projected else None
        self.classifier = None
        if framewise:
            self.add_classifiers(channels, axes[LAST_MAP], n_classes, frame_classes)
        elif n_classes:
            self.layers = {**self.layers, "logits": None}
            self.classifier = HEADS[head](channels, width, n_classes)
        # He initialisation: with PyTorch's default the features of a random network would be near 1e-8.
        for module in self.modules():
            if isinstance(module, nn.Conv2d):
                nn.init.kaiming_normal_(module.weight)

    def forward(self, mel: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`."""
        taps: dict[str, Tensor] = {}
        maps = mel.unsqueeze(1).to(next(self.parameters()).dtype)  # (batch, features, freq, time) from here on
        for number, stage in enumerate(self.features):
            maps = stage(maps)
            if str(number) in wanted:
                taps[str(number)] = maps.permute(0, 3, 2, 1)  # (batch, time, freq, features)
            if taps.keys() >= set(wanted):
                return taps
        if "features" in wanted:
            taps["features"] = maps.mean((2, 3))
        if "projected" in wanted and self.projection is not None:
            taps["projected"] = self.projection(maps.mean((2, 3)))
        if self.classifier is None:
            return taps | self.classify(maps.permute(0, 3, 2, 1), wanted)
        if "logits" in wanted:
            taps["logits"] = self.classifier(maps)
        return taps


LAST_MAP = str(len(BLOCKS) + 1)
"""Name of the layer behind the blocks."""


def halved(strides: Sequence[int]) -> list[Pair]:
    """Return the stride of every block, given those of the blocks that halve the map in MobileNetV3."""
    given = iter(strides)
    sides = [next(given) if spec.stride != (1, 1) else 1 for spec in BLOCKS]
    return [(side, side) for side in sides]


def time_axes(specs: Sequence[BlockSpec], dynamic: Collection[int]) -> dict[str, TimeAxis]:
    """Return the time axis of the stem "0", of every block and of the last map.

    Kernels are odd and padded equally on both sides, so position 0 lies on frame 0 in every layer. From the first block
    with a squeeze-and-excitation or with dynamic kernels on, every position sees the whole window.
    """
    hop = STEM_STRIDE
    field: int | None = STEM_KERNEL
    axes = {"0": TimeAxis(hop, 0.0, field)}
    for number, spec in enumerate(specs, 1):
        if field is not None:
            field = None if spec.squeezes or number in dynamic else field + (spec.kernel - 1) * hop
        hop *= spec.stride[1]
        axes[str(number)] = TimeAxis(hop, 0.0, field)
    return {**axes, LAST_MAP: TimeAxis(hop, 0.0, field)}


IN_SED = "model.frame_mn."
"""What the names of PretrainedSED's files begin with, but for those of the classifiers."""

IN_SSONDO = "student_model.model."
"""What the names of S-SONDO's files begin with, but for those of its projection."""

RENAMED = {
    IN_SED: "",
    IN_SSONDO: "",
    "student_model.classification_head.mlp.": "projection.",
    "in_c.": "features.0.",
    "out_c.": f"features.{LAST_MAP}.",
    # Containers that hold one module each.
    ".conc_se_layers.0.": ".",
    ".residuals.0.": ".residuals.",
    ".coef_net.0.": ".coef_net.",
}
"""Parts of the authors' keys -> ours, where MN and DyMN are one network."""


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, of PretrainedSED's and of S-SONDO's to those of `EfficientAT`.

    Raises
    ------
    WeightsError : they are of a frame-MobileNet, which hears other audio, and the variant is none
    """
    if "strong_head.weight" in state_dict and not variant.network.get("framewise"):
        raise WeightsError(
            "it is of a frame-MobileNet, whose strides and 16 kHz are in no tensor; choose the variant "
            "frame_mn10_strong, which takes any width"
        )
    return {_renamed(key): tensor for key, tensor in state_dict.items()}


def _renamed(key: str) -> str:
    for theirs, ours in RENAMED.items():
        key = key.replace(theirs, ours)
    if key.startswith("layers."):  # DyMN counts its blocks from 0
        _, number, rest = key.split(".", 2)
        key = f"features.{int(number) + 1}.{rest}"
    return key


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`; strides are in no tensor."""
    last = len(tensors[f"features.{LAST_MAP}.0.weight"])
    # Numbers of features are rounded: any width that is rounded so will do, the variant's or a round one if possible.
    measured = last / LAST_EXPANSION / BLOCKS[-1].outputs
    widths = [variant.network.get("width", 1.0), round(measured, 1), round(measured, 2), measured]
    dynamic = (i for i in EVERY_BLOCK if f"features.{i}.context_gen.joint_conv.weight" in tensors)
    heads = {"classifier.5.weight": "mlp", "classifier.1.running_mean": "convolutional"}
    return {
        "width": next((width for width in widths if is_width(width, tensors)), measured),
        "dynamic": tuple(dynamic),
        "head": next((head for name, head in heads.items() if name in tensors), variant.network.get("head", "mlp")),
        **frame_classes_in(tensors),
    }


def is_width(width: float, tensors: Mapping[str, Tensor]) -> bool:
    """Return True if a width makes the first and last maps of a network, and the hidden layer of its head if any."""
    made = {
        "features.0.0.weight": divisible(BLOCKS[0].inputs * width),
        f"features.{LAST_MAP}.0.weight": LAST_EXPANSION * divisible(BLOCKS[-1].outputs * width),
        "classifier.2.weight": divisible(HIDDEN_WIDTH * width),
        "projection.0.weight": divisible(HIDDEN_WIDTH * width),
    }
    return all(len(tensors[name]) == size for name, size in made.items() if name in tensors)


# Variants


@dataclass(frozen=True, slots=True, kw_only=True)
class SsondoMel(PannsMel):
    """The dialect of S-SONDO: ``ln(mel + floor)``, frames only where a window fits, on Slaney's scale.

    Attributes
    ----------
    floor : added to the mel
    """

    floor: float

    def build(self) -> SsondoLogMel:
        """Build the module."""
        return SsondoLogMel(self)

    @property
    def min_samples(self) -> int:
        """One window."""
        return self.win_length

    @property
    def offset(self) -> float:  # type: ignore[override]
        """The first window starts with the first sample."""
        return self.win_length / 2

    def n_frames(self, n_samples: int) -> int:
        """Count the windows that fit."""
        return 1 + (n_samples - self.win_length) // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames."""
        return self.win_length + (n_frames - 1) * self.hop_length


class SsondoLogMel(LogMel):
    """Log-mel spectrogram of S-SONDO (torchaudio's `MelSpectrogram`)."""

    def __init__(self, spec: SsondoMel) -> None:
        super().__init__(torch.hann_window(spec.win_length), slaney_filters(spec))
        self.spec = spec

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of every frame."""
        frames = waveforms.unfold(1, self.spec.win_length, self.spec.hop_length)  # (batch, frames, win_length)
        return squared(torch.fft.rfft(frames * self.window, self.spec.n_fft))

    def log(self, mel: Tensor) -> Tensor:
        """Add a floor and take the logarithm."""
        return (mel + self.spec.floor).log()


SSONDO_MEL = SsondoMel(
    sample_rate=32_000,
    n_fft=1024,
    win_length=1024,
    hop_length=512,
    n_mels=128,
    fmin=50.0,
    fmax=16_000.0,
    floor=1e-3,
)


def published(checkpoint: str, frontend: FrameSpec = CPJKU_MEL, **network: Any) -> Variant:
    """Build the row of one released checkpoint, read as in the authors' HEAR modules (MNHearWrapper).

    Training may start from the authors' network for images of the same width; there is none for `replace_se`.
    """
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=frontend,
        scene=Readout(10_000.0, ("features",)),
        scene_hop_ms=2_500.0,
        timestamps=(Readout(160.0, ("features",)),),
        imagenet=None if "replace_se" in checkpoint else ("efficientat", f"{checkpoint.partition('_')[0]}_im"),
    )


def sed_row(checkpoint: str, **network: Any) -> Variant:
    """Build the row of a frame-MobileNet of PretrainedSED: the last map, every 40 ms, of windows of 10 s."""
    return replace(
        published(checkpoint, SED_MEL, framewise=True, n_classes=447, frame_classes=447, **network),
        scene_hop_ms=5_000.0,
        timestamps=(Readout(10_000.0, (LAST_MAP,)),),
        framing="native",
        imagenet=None,
        labels=audioset_strong_labels,
    )


def ssondo_row(checkpoint: str, **network: Any) -> Variant:
    """Build the row of a file of S-SONDO, for windows of 10 s, as long as its authors' segments."""
    row = published(checkpoint, SSONDO_MEL, n_classes=0, projected=3840, **network)
    return replace(row, scene_hop_ms=5_000.0, imagenet=None)


VARIANTS = {
    row.checkpoint: row
    for row in (
        published("mn10_as"),
        published("mn01_as", width=0.1),
        published("mn02_as", width=0.2),
        published("mn04_as", width=0.4),
        published("mn05_as", width=0.5),
        published("mn20_as", width=2.0),
        published("mn30_as", width=3.0),
        published("mn40_as", width=4.0),
        published("mn40_as(2)", width=4.0),
        published("mn40_as(3)", width=4.0),
        published("mn40_as_no_im_pre", width=4.0),
        published("mn40_as_no_im_pre(2)", width=4.0),
        published("mn40_as_no_im_pre(3)", width=4.0),
        published("mn40_as_ext", width=4.0),
        published("mn40_as_ext(2)", width=4.0),
        published("mn40_as_ext(3)", width=4.0),
        published("mn10_as_hop_5", replace(CPJKU_MEL, hop_length=160)),
        published("mn10_as_hop_15", replace(CPJKU_MEL, hop_length=480)),
        published("mn10_as_hop_20", replace(CPJKU_MEL, hop_length=640)),
        published("mn10_as_hop_25", replace(CPJKU_MEL, hop_length=800)),
        published("mn10_as_mels_40", replace(CPJKU_MEL, n_mels=40)),
        published("mn10_as_mels_64", replace(CPJKU_MEL, n_mels=64)),
        published("mn10_as_mels_256", replace(CPJKU_MEL, n_mels=256)),
        published("mn10_as_fc", head="convolutional"),
        published("mn10_as_fc_s2221", head="convolutional", strides=(2, 2, 2, 1)),
        published("mn10_as_fc_s2211", head="convolutional", strides=(2, 2, 1, 1)),
        published("dymn04_as", width=0.4, dynamic=EVERY_BLOCK),
        published("dymn10_as", dynamic=EVERY_BLOCK),
        published("dymn20_as", width=2.0, dynamic=EVERY_BLOCK),
        published("dymn20_as(1)", width=2.0, dynamic=EVERY_BLOCK),
        published("dymn20_as(2)", width=2.0, dynamic=EVERY_BLOCK),
        published("dymn20_as(3)", width=2.0, dynamic=EVERY_BLOCK),
        published("dymn04_replace_se_as", width=0.4, dynamic=SQUEEZING_BLOCKS),
        published("dymn10_replace_se_as", dynamic=SQUEEZING_BLOCKS),
        sed_row("frame_mn10_strong"),
        sed_row("frame_mn06_strong", width=0.6),
        ssondo_row("matpac_mobilenetv3"),
        ssondo_row("matpac_dymn", dynamic=EVERY_BLOCK),
        ssondo_row("m2d_mobilenetv3"),
        ssondo_row("m2d_dymn", dynamic=EVERY_BLOCK),
    )
}
"""The authors' AudioSet checkpoints under their own names, those of PretrainedSED, and those of S-SONDO."""

STEMS = ("features.0.0.weight", "in_c.0.weight")

FAMILY = hear.Family(
    name="efficientat",
    network=EfficientAT,
    variants=VARIANTS,
    anchors=(*STEMS, *(f"{place}{stem}" for place in (IN_SED, IN_SSONDO) for stem in STEMS)),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    unused=CPJKU_BESIDE,
    classifier=("classifier.5.bias", "classifier.1.bias", "weak_head.bias"),
    reinitialised=("classifier.5.", "classifier.", *CLASSIFIERS),
)

load_model = hear.Loader(FAMILY).load_model
