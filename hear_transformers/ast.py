"""AST: Audio Spectrogram Transformer.

Gong, Chung, Glass: AST: Audio Spectrogram Transformer, Interspeech 2021 (2104.01778). Code and weights of the authors:
github.com/YuanGongND/ast, BSD-3-Clause. Reads the authors' files and their conversions for Hugging Face.

A distilled DeiT over 16 x 16 patches of a Kaldi log-mel spectrogram, with one position embedding for every patch of the
length it was trained on. A scene is padded to that length as the authors do; its patches then include those of the
padding. A shorter window of audio takes the middle of the position embeddings along time instead, as the authors do
for a network with a shorter input, at a correspondingly lower cost.
"""

from __future__ import annotations

import re
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks import imagenet as images
from .networks.family import Readout, Variant
from .networks.frontend import AST_MEL, KaldiMel
from .networks.transformer import PATCH, DeiT

__all__ = ["AST", "FAMILY", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


class AST(DeiT):
    """The network of the authors' `src/models/ast_models.py`.

    Parameters
    ----------
    stride : of the patches, in mel bands and mel frames
    frames : mel frames it was trained on (authors' input_tdim)
    n_mels : mel bands of the input
    transformer : n_classes, dim, depth and heads of the `DeiT`
    """

    def __init__(self, *, stride: int = 10, frames: int = 1024, n_mels: int = 128, **transformer: Any) -> None:
        self.time_positions = (frames - PATCH) // stride + 1
        super().__init__(stride=stride, max_frames=PATCH + stride * self.time_positions - 1, **transformer)
        n_patches = ((n_mels - PATCH) // stride + 1) * self.time_positions
        self.pos_embed = nn.Parameter(torch.randn(1, 2 + n_patches, self.cls_token.shape[2]) * 0.02)

    def positions(self, n_freq: int, n_time: int) -> tuple[Tensor, Tensor]:
        """Take the middle of the embeddings along time, as the authors' constructor does; see `DeiT.positions`."""
        first = self.time_positions // 2 - n_time // 2
        of_patches = self.pos_embed[:, 2:].unflatten(1, (n_freq, self.time_positions))  # (1, freq, time, dim)
        return self.pos_embed[:, :2], of_patches[:, :, first : first + n_time]


AUTHORS = {"v.": "", "mlp_head.": "head."}
"""Prefixes of the authors' keys -> ours."""

HUGGING_FACE = {
    "audio_spectrogram_transformer.": "",
    "embeddings.patch_embeddings.projection.": "patch_embed.proj.",
    "embeddings.position_embeddings": "pos_embed",
    "embeddings.distillation_token": "dist_token",
    "embeddings.cls_token": "cls_token",
    ".layernorm_before.": ".norm1.",
    ".layernorm_after.": ".norm2.",
    # As published and as `save_pretrained` writes it.
    "encoder.layer.": "blocks.",
    ".attention.output.dense.": ".attn.proj.",
    ".attention.attention.": ".attn.",
    ".intermediate.dense.": ".mlp.fc1.",
    ".output.dense.": ".mlp.fc2.",
    # As `state_dict` gives it since transformers 5.
    "layers.": "blocks.",
    ".attention.q_proj.": ".attn.query.",
    ".attention.k_proj.": ".attn.key.",
    ".attention.v_proj.": ".attn.value.",
    ".attention.o_proj.": ".attn.proj.",
    "classifier.layernorm.": "head.0.",
    "classifier.dense.": "head.1.",
    "layernorm.": "norm.",
}
"""Parts of the keys of Hugging Face's conversions -> ours, longer ones before those they contain."""

QUERY = re.compile(r"(blocks\.\d+\.attn\.)query\.(weight|bias)")


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, or of Hugging Face's, to those of `AST`."""
    parts = HUGGING_FACE if any(".layernorm_before." in key for key in state_dict) else AUTHORS
    renamed = {}
    for key, tensor in state_dict.items():
        for theirs, ours in parts.items():
            key = key.replace(theirs, ours) if theirs.startswith(".") else re.sub(f"^{re.escape(theirs)}", ours, key)
        renamed[key] = tensor
    return fuse_attention(renamed)


def fuse_attention(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Concatenate the projections of query, key and value wherever all three are present."""
    fused = dict(state_dict)
    for key in state_dict:
        if match := QUERY.fullmatch(key):
            block, kind = match.groups()
            names = [f"{block}{part}.{kind}" for part in ("query", "key", "value")]
            if all(name in state_dict for name in names):
                fused[f"{block}qkv.{kind}"] = torch.cat([fused.pop(name) for name in names])
    return fused


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a distilled DeiT for images, or an AST of another length, to a variant (2104.01778, section 2.2).

    Filters are summed over red, green and blue. The grid of positions is cropped to its middle or interpolated, first
    along time, then along frequency.
    """
    with torch.device("meta"):
        trunk = AST(**variant.network)
    n_freq = (trunk.pos_embed.shape[1] - images.TOKENS) // trunk.time_positions
    adapted = dict(state_dict)
    filters = adapted.get("patch_embed.proj.weight")
    of_images = filters is not None and images.are_for_images(filters)
    if filters is not None and of_images:
        adapted["patch_embed.proj.weight"] = images.summed(filters)
    tokens, patches = images.positions(adapted.get("pos_embed"), None if of_images else n_freq)
    patches = crop_or_interpolate(crop_or_interpolate(patches, 3, trunk.time_positions), 2, n_freq)
    adapted["pos_embed"] = torch.cat([tokens, patches.flatten(2).transpose(1, 2)], 1)  # (1, 2 + patches, features)
    return adapted


def crop_or_interpolate(table: Tensor, axis: int, size: int) -> Tensor:
    """Crop one axis of (1, features, freq, time) to its middle, or interpolate along it, as the authors do."""
    held = table.shape[axis]
    if size <= held:
        return table.narrow(axis, held // 2 - size // 2, size)
    grid = (table.shape[2], size) if axis == 3 else (size, table.shape[3])
    return F.interpolate(table.float(), grid, mode="bilinear", align_corners=False)


ESC50 = replace(AST_MEL, mean=-6.6268077, scale=2 * 5.358466)  # egs/esc50/run_esc.sh
SPEECH_COMMANDS = replace(AST_MEL, mean=-6.845978, scale=2 * 5.5654526)  # egs/speechcommands/run_sc.sh


BASE_384 = "deit_base_distilled_patch16_384"  # the authors' initial weights (2104.01778, section 2.2)


def row(
    checkpoint: str, frontend: KaldiMel = AST_MEL, frames: int = 1024, imagenet: str = BASE_384, **network: int
) -> Variant:
    """Build the row of one network, read as the authors read it: a scene is as long as its training clips."""
    window_ms = 1000.0 * frontend.n_samples(frames) / frontend.sample_rate
    return Variant(
        checkpoint=checkpoint,
        network={"frames": frames, **network},
        frontend=frontend,
        scene=Readout(window_ms, ("features",), fill_frames=frames),
        scene_hop_ms=window_ms / 2,
        timestamps=(Readout(1_000.0, ("norm",)),),
        framing="native",
        imagenet=("deit", imagenet),
    )


VARIANTS = {
    "audioset_10_10": row("audioset_10_10"),
    "audioset_10_10_0.4495": row("audioset_10_10_0.4495"),
    "audioset_10_10_0.4483": row("audioset_10_10_0.4483"),
    "audioset_10_10_0.4475": row("audioset_10_10_0.4475"),
    "audioset_12_12": row("audioset_12_12", stride=12),
    "audioset_14_14": row("audioset_14_14", stride=14),
    "audioset_16_16": row("audioset_16_16", stride=16),
    "speechcommands_10_10": row("speechcommands_10_10", SPEECH_COMMANDS, frames=128, n_classes=35),
    # Without published weights, for checkpoints of users: DeiT-Ti and DeiT-S, and the recipe for ESC-50.
    "tiny_10_10": row("", imagenet="deit_tiny_distilled_patch16_224", dim=192, heads=3),
    "small_10_10": row("", imagenet="deit_small_distilled_patch16_224", dim=384, heads=6),
    "esc50_10_10": row("", ESC50, frames=512, n_classes=50),
}

FAMILY = hear.Family(
    name="ast",
    network=AST,
    variants=VARIANTS,
    convert_state_dict=convert_state_dict,
    # Heads for ImageNet: in every file of the authors, unused in their forward pass.
    unused=("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
    classifier=("head.1.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.",),  # with its normalisation, as the authors do for other classes
)

load_model = hear.Loader(FAMILY)
