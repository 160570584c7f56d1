"""Tiny: the small audio transformer whose weights are part of this package.

A convolutional stem over the log-mel spectrogram (early convolutions: Xiao et al., 2106.14881) computes one token of
192 features every 40 ms; twelve Vision Transformer blocks refine them (the width and heads of DeiT-Ti, Touvron et al.,
2012.12877). `hear_transformers.training.distil` trained it on synthetic sounds alone; its model card is
weights/tiny.md.

Examples
--------
>>> import torch
>>> from hear_transformers import tiny
>>> model = tiny.load_model(layer=8)
>>> audio = torch.rand(2, model.sample_rate) - 0.5  # two clips of 1 s
>>> tiny.get_scene_embeddings(audio, model).shape
torch.Size([2, 192])
>>> embeddings, timestamps = tiny.get_timestamp_embeddings(audio, model)
>>> embeddings.shape, timestamps[0, :3]
(torch.Size([2, 21, 192]), tensor([  0.,  50., 100.]))
"""

from __future__ import annotations

import math
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant
from .networks.frontend import CPJKU_MEL
from .networks.fused import LayerNorm
from .networks.transformer import Block, init_matrices, transformer_sizes
from .networks.trunk import TimeAxis, Trunk, depth_of

__all__ = [
    "FAMILY", "VARIANTS", "TinyAudioTransformer", "get_scene_embeddings", "get_timestamp_embeddings", "load_model",
]  # fmt: skip

STEM_WIDTHS = (16, 24, 48)
TIME_STRIDE = 4  # mel frames between two tokens
FREQ_STRIDE = 8
STEM_FIELD = 11  # mel frames a token sees: a kernel of 5, one of 3, one of 3 over steps of 2
POSITION_SCALE = 0.3  # of the sines, next to stem outputs of about 1
LONGEST_PERIOD = 10_000.0  # of the sines, in tokens (Vaswani et al., 1706.03762, section 3.5)


class Stem(nn.Module):
    """Three convolutions that divide frequency by 8 and time by 4; frequency is then flattened into the token."""

    def __init__(self, dim: int, n_mels: int) -> None:
        first, second, third = STEM_WIDTHS
        super().__init__()
        self.convs = nn.Sequential(
            *_conv(1, first, kernel=5, stride=(2, 1)),
            *_conv(first, second, kernel=3, stride=(2, 2)),
            *_conv(second, third, kernel=3, stride=(2, 2)),
        )
        self.proj = nn.Linear(third * n_mels // FREQ_STRIDE, dim)

    def forward(self, mel: Tensor) -> Tensor:
        """Compute tokens: (batch, n_mels, frames) -> (batch, ceil(frames / 4), dim)."""
        maps = self.convs(mel.unsqueeze(1).to(self.proj.weight.dtype))  # (batch, features, freq, time)
        return self.proj(maps.permute(0, 3, 1, 2).flatten(2))  # of (batch, time, features * freq)


def _conv(inputs: int, outputs: int, *, kernel: int, stride: tuple[int, int]) -> tuple[nn.Module, ...]:
    """Build a zero-padded convolution without bias, its normalisation and its activation."""
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return conv, nn.BatchNorm2d(outputs), nn.GELU()


def time_positions(n: int, dim: int, device: torch.device) -> Tensor:
    """Compute sinusoidal position embeddings (1706.03762, section 3.5): (n, dim)."""
    periods = torch.exp(torch.arange(0, dim, 2, dtype=torch.float32, device=device) * (-math.log(LONGEST_PERIOD) / dim))
    angles = torch.arange(n, device=device).unsqueeze(1) * periods
    return torch.cat([angles.sin(), angles.cos()], 1)


class TinyAudioTransformer(Trunk):
    """Convolutional stem, class token, transformer blocks, final LayerNorm.

    Parameters
    ----------
    dim, depth, heads : of the transformer
    n_mels : mel bands of the input
    """

    prefix = ("cls",)
    # Two tokens: on a map narrower than a kernel, oneDNN's bfloat16 convolution is wrong (torch 2.11, AMX).
    min_frames = 2 * TIME_STRIDE
    max_frames = None
    convolutional = True  # of its stem

    def __init__(self, *, dim: int = 192, depth: int = 12, heads: int = 3, n_mels: int = 128) -> None:
        super().__init__()
        # Kernels are odd and padded equally on both sides, so token 0 lies on frame 0.
        grid = TimeAxis(TIME_STRIDE, 0.0, None)
        names = (*map(str, range(depth + 1)), "features")
        self.layers = {**dict.fromkeys(names, grid), "0": replace(grid, receptive_field=STEM_FIELD)}
        self.stem = Stem(dim, n_mels)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=1e-6)
        self.apply(init_matrices)

    def forward(self, mel: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`."""
        frames = self.stem(mel)
        frames = frames + (POSITION_SCALE * time_positions(frames.shape[1], frames.shape[2], frames.device)).to(frames)
        tokens = torch.cat([self.cls_token.expand(mel.shape[0], -1, -1), frames], 1)
        taps: dict[str, Tensor] = {}
        for i in range(depth_of(wanted, len(self.blocks)) + 1):
            if i > 0:
                tokens = self.blocks[i - 1](tokens)
            _store(taps, wanted, str(i), tokens)
        if any(layer.startswith("features") for layer in wanted):
            _store(taps, wanted, "features", self.norm(tokens))
        return {layer: taps[layer] for layer in wanted}


def _store(taps: dict[str, Tensor], wanted: Collection[str], layer: str, tokens: Tensor) -> None:
    """Store the wanted parts of one layer: the grid with its single frequency, the class token."""
    if layer in wanted:
        taps[layer] = tokens[:, 1:].unsqueeze(2)  # (batch, time, 1, dim)
    if f"{layer}.cls" in wanted:
        taps[f"{layer}.cls"] = tokens[:, 0]


VARIANTS = {
    "tiny": Variant(
        checkpoint="tiny",
        network={},
        frontend=CPJKU_MEL,
        scene=Readout(2_000.0, ("features",), "meanstd"),  # as long as the clips it was trained on
        scene_hop_ms=1_000.0,
        # Those that score best on held-out synthetic clips (training.distil readouts --timestamps; weights/tiny.md).
        timestamps=(Readout(2_000.0, ("mel", "-5", "-1")),),
        framing="native",
    ),
}


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`."""
    n_mels = tensors["stem.proj.weight"].shape[1] * FREQ_STRIDE // STEM_WIDTHS[-1]
    return {**transformer_sizes(tensors, {"dim": 192, **variant.network}, given), "n_mels": n_mels}


FAMILY = hear.Family(
    name="tiny", network=TinyAudioTransformer, variants=VARIANTS, anchors=("stem.convs.0.weight",), sizes=sizes
)

load_model = hear.Loader(FAMILY).load_model
