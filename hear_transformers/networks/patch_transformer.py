"""The network that Dasheng and CED share: a Vision Transformer over a spectrogram, without a class token."""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from .family import Variant
from .fused import LayerNorm
from .transformer import Block, Pair, PatchEmbed, init_matrices, resized_times, transformer_sizes
from .trunk import TimeAxis, Trunk, depth_of

FRONTEND = ("front_end.0.spectrogram.window", "front_end.0.mel_scale.fb")
"""Tensors of the authors' front end in their files."""

BANDS_NORM = {"init_bn.1.": "init_bn."}
"""Prefix in the authors' files, where a normalisation lies between two transpositions -> ours."""


class PatchTransformer(Trunk):
    """Vision Transformer over patches of a spectrogram that do not overlap, read at the mean of all tokens.

    The input is normalised band by band, with statistics from training. A patch has the sum of a position embedding for
    time and one for frequency.

    Parameters
    ----------
    patch : mel bands and mel frames of a patch
    n_mels : mel bands of the input
    time_positions : length of the table for time, in patches
    n_classes : logits; 0 for a network without a classifier
    dim, depth, heads : of the transformer
    """

    def __init__(
        self,
        *,
        patch: Pair,
        n_mels: int = 64,
        time_positions: int,
        n_classes: int = 0,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        bands, frames = patch
        self.min_frames = frames
        self.max_frames = frames * (time_positions + 1) - 1
        grid = TimeAxis(frames, (frames - 1) / 2, None)
        grids = dict.fromkeys((*map(str, range(depth + 1)), "norm"), grid)
        vectors = dict.fromkeys(("features", "logits") if n_classes else ("features",), None)
        self.layers = {**grids, "0": replace(grid, receptive_field=frames), **vectors}
        self.init_bn = nn.BatchNorm1d(n_mels)
        self.patch_embed = PatchEmbed(dim, patch, patch)
        self.time_pos_embed = nn.Parameter(torch.randn(1, dim, 1, time_positions) * 0.02)
        self.freq_pos_embed = nn.Parameter(torch.randn(1, dim, n_mels // bands, 1) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=1e-6)
        if n_classes:
            # Its LayerNorm has torch's default epsilon, unlike all others.
            self.head = nn.Sequential(LayerNorm(dim), nn.Linear(dim, n_classes))
        self.apply(init_matrices)

    def times(self, n_time: int) -> Tensor:
        """Return the position embeddings of patches along time: (1, dim, 1, time)."""
        return self.time_pos_embed[..., :n_time]

    def refine(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run a block: (batch, tokens, dim) -> (batch, tokens, dim)."""
        refined: Tensor = block(tokens)
        return refined

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`.

        "norm" is the last block after the final LayerNorm, "features" the mean of its tokens.
        """
        # Normalised in float32: a level in dB takes more than 16 bits.
        patches = self.patch_embed(self.init_bn(frames))  # (batch, freq, time, dim)
        positions = self.freq_pos_embed + self.times(patches.shape[2])  # (1, dim, freq, time)
        patches = patches + positions.permute(0, 2, 3, 1)
        grid = patches.shape[1:3]
        tokens = patches.flatten(1, 2)  # frequency-major: (batch, freq * time, dim)
        taps: dict[str, Tensor] = {}
        for i in range(depth_of(wanted, len(self.blocks)) + 1):
            if i > 0:
                tokens = self.refine(self.blocks[i - 1], tokens)
            if str(i) in wanted:
                taps[str(i)] = tokens.unflatten(1, grid).transpose(1, 2)  # (batch, time, freq, dim)
        if any(not layer.isdecimal() for layer in wanted):
            tokens = self.norm(tokens)
            taps["norm"] = tokens.unflatten(1, grid).transpose(1, 2)  # (batch, time, freq, dim)
            taps["features"] = tokens.mean(1)
        if "logits" in wanted:
            taps["logits"] = self.head(taps["features"])
        return {layer: taps[layer] for layer in wanted}


def renamed(state_dict: Mapping[str, Tensor], prefixes: Mapping[str, str]) -> dict[str, Tensor]:
    """Replace what names of tensors begin with, one prefix after the other."""
    names = {name: name for name in state_dict}
    for theirs, ours in prefixes.items():
        for key, name in names.items():
            names[key] = ours + name.removeprefix(theirs) if name.startswith(theirs) else name
    return {names[key]: tensor for key, tensor in state_dict.items()}


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`."""
    return {
        **transformer_sizes(tensors, {"dim": 768, **variant.network}, given),
        "n_mels": tensors["init_bn.weight"].shape[0],
        "time_positions": tensors["time_pos_embed"].shape[3],
    }


def adapt_times(state_dict: Mapping[str, Tensor], n_time: int) -> dict[str, Tensor]:
    """Adapt a network of another length to one of `n_time` patches, see `Family.adapt_pretrained`."""
    adapted = dict(state_dict)
    times = adapted.get("time_pos_embed")
    if times is not None and times.ndim == 4 and times.numel():
        adapted["time_pos_embed"] = resized_times(times, n_time)
    return adapted
