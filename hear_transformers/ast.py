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
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import WeightsError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks import imagenet as images
from .networks.family import Readout, Variant
from .networks.frontend import AST_MEL, KaldiMel
from .networks.transformer import PATCH, DeiT, fuse_attention, strides_and_bands, transformer_sizes

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

HF_FILTERS = "embeddings.patch_embeddings.projection.weight"


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, or of Hugging Face's, to those of `AST`."""
    parts = HUGGING_FACE if any(".layernorm_before." in key for key in state_dict) else AUTHORS
    renamed = {}
    for key, tensor in state_dict.items():
        for theirs, ours in parts.items():
            key = key.replace(theirs, ours) if theirs.startswith(".") else re.sub(f"^{re.escape(theirs)}", ours, key)
        renamed[key] = tensor
    return fuse_attention(renamed)


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`.

    The table of positions has one entry for each patch: rows times columns, so one of them must be known. The variant's
    rows are taken if they divide it, else the usual ones with which the length is the variant's, else any that divide.

    Raises
    ------
    WeightsError : no usual rows divide the table
    """
    usual = {"frames": 1024, **variant.network, **given}
    n_patches = tensors["pos_embed"].shape[1] - images.TOKENS
    fits = []
    for stride, n_mels in strides_and_bands(variant, given):
        n_freq, n_time = (n_mels - PATCH) // stride + 1, (usual["frames"] - PATCH) // stride + 1
        if n_patches > 0 and n_freq > 0 and n_patches % n_freq == 0:
            same_length = n_patches == n_freq * n_time
            frames = usual["frames"] if same_length else PATCH + stride * (n_patches // n_freq - 1)
            fits.append((same_length, {"stride": stride, "n_mels": n_mels, "frames": frames}))
    if not fits:
        raise WeightsError(
            f"pos_embed is for {n_patches} patches, which are no rows of a usual stride and mel bands; give them, such "
            'as network={"stride": 10, "n_mels": 128, "frames": 1024}'
        )
    stride, n_mels = strides_and_bands(variant, given)[0]
    of_variant = [lengths for _, lengths in fits if (lengths["stride"], lengths["n_mels"]) == (stride, n_mels)]
    lengths = of_variant[0] if of_variant else max(fits, key=lambda fit: fit[0])[1]
    return {**transformer_sizes(tensors, {"dim": 768, **variant.network}, given), **lengths}


CONFIG = {
    "hidden_size": "dim", "num_hidden_layers": "depth", "num_attention_heads": "heads", "num_mel_bins": "n_mels",
    "max_length": "frames", "frequency_stride": "stride",
}  # fmt: skip
"""Arguments in Hugging Face's ``config.json`` -> ours."""


def arguments_of_config(config: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from Hugging Face's ``config.json``.

    Raises
    ------
    WeightsError : it describes another network
    """
    fixed = {
        "patch_size": PATCH,
        "time_stride": config.get("frequency_stride", 10),
        "hidden_act": "gelu",
        "qkv_bias": True,
    }
    for name, value in fixed.items():
        if config.get(name, value) != value:
            raise WeightsError(f"config.json: {name} = {config[name]!r}, but this network has {value!r}")
    return {ours: config[theirs] for theirs, ours in CONFIG.items() if theirs in config}


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
    anchors=(
        "patch_embed.proj.weight",
        "v.patch_embed.proj.weight",
        HF_FILTERS,
        f"audio_spectrogram_transformer.{HF_FILTERS}",
    ),
    sizes=sizes,
    model_type="audio-spectrogram-transformer",
    arguments_of_config=arguments_of_config,
    convert_state_dict=convert_state_dict,
    # Heads for ImageNet: in every file of the authors, unused in their forward pass.
    unused=("head.weight", "head.bias", "head_dist.weight", "head_dist.bias"),
    classifier=("head.1.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.",),  # with its normalisation, as the authors do for other classes
)

load_model = hear.Loader(FAMILY).load_model
