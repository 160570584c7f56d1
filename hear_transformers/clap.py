"""CLAP's audio tower, HTS-AT: a Swin transformer that learnt which texts belong to which sounds.

Wu, Chen, Zhang, Hui, Berg-Kirkpatrick, Dubnov: Large-scale Contrastive Language-Audio Pretraining with Feature Fusion
and Keyword-to-Caption Augmentation, ICASSP 2023 (2211.06687); code: github.com/LAION-AI/CLAP, CC0. The tower: Chen, Du,
Zhu, Ma, Berg-Kirkpatrick, Dubnov: HTS-AT, ICASSP 2022 (2202.00874). Reads the files for Hugging Face, Apache-2.0, whose
`ClapModel` it equals; their text tower is in `explore.texts`.

The log-mel spectrogram of 10 s is stretched to 1024 columns and cut into four pieces, which are stacked along frequency
to a square: the Swin transformer sees it as a picture of 256 x 256. Shorter clips are repeated. Authors cut longer ones
at random; here those are averages over windows or, with feature fusion, one vector of the whole clip.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from fractions import Fraction
from itertools import accumulate
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import WeightsError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant, count_members
from .networks.frontend import ClapMel
from .networks.fused import LayerNorm
from .networks.swin import WINDOW, PatchMerging, SwinBlock, relative_positions
from .networks.transformer import PatchEmbed, init_matrices
from .networks.trunk import TimeAxis, Trunk, depth_of

__all__ = ["FAMILY", "HTSAT", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

BANDS = 64
FRAMES = 1001  # of 10 s
COLUMNS = 1024  # that they are stretched to
PIECES = 4  # that lie on one another in the picture
SIDE = COLUMNS // PIECES  # of the picture, 64 bands high for each piece
PATCH = 4  # rows and columns of the picture
CROP_PATCH = (4, 12)  # of the crops of a long clip, in three of which there are as many columns as in the whole
CROPS = 3
FIELD = 7  # frames that a patch sees: each of its columns is interpolated between four (bicubic)
STEP = Fraction(FRAMES - 1, COLUMNS - 1)  # frames from column to column: the ends lie on each other


def time_axis(stage: int) -> TimeAxis:
    """Return where the positions of a stage lie along time."""
    columns = PATCH << stage
    return TimeAxis(columns * STEP, float((columns - 1) * STEP / 2), None)


def picture(mel: Tensor) -> Tensor:
    """Stretch spectrograms and stack their four pieces: (batch, 64, 1001) -> (batch, 256, 256)."""
    # Torch interpolates along both axes: along the bands, which stay as many, it changes nothing.
    stretched = F.interpolate(mel[:, None], (BANDS, COLUMNS), mode="bicubic", align_corners=True)
    pieces = stretched.view(-1, BANDS, PIECES, SIDE).transpose(1, 2)  # (batch, piece, band, column)
    return pieces.reshape(-1, SIDE, SIDE)


def along_time(grid: Tensor) -> Tensor:
    """Lay the pieces of a map side by side: (batch, rows, columns, dim) -> (batch, time, freq, dim)."""
    pieces = grid.unflatten(1, (PIECES, -1))  # (batch, piece, freq, column, dim)
    return pieces.permute(0, 1, 3, 2, 4).flatten(1, 2)


def gate(dim: int) -> nn.Sequential:
    """Build half of the mixing of two maps, over (positions, dim), with a bottleneck of a quarter."""
    hidden = dim // 4
    return nn.Sequential(
        nn.Linear(dim, hidden), nn.BatchNorm1d(hidden), nn.ReLU(), nn.Linear(hidden, dim), nn.BatchNorm1d(dim)
    )


class Fusion(nn.Module):
    """Attentional feature fusion (Dai et al., 2009.14082, section 3.3) of the patches of a whole clip and its crops."""

    def __init__(self, dim: int) -> None:
        super().__init__()
        self.local, self.overall = gate(dim), gate(dim)

    def forward(self, whole: Tensor, crops: Tensor) -> Tensor:
        """Mix two maps: (batch, rows, columns, dim) each -> the same."""
        both = whole + crops
        local = self.local(both.flatten(0, 2)).view_as(both)
        share = (local + self.overall(both.mean((1, 2)))[:, None, None]).sigmoid()
        return 2 * whole * share + 2 * crops * (1 - share)


class HTSAT(Trunk):
    """The audio tower of the authors, with the projection to the space that texts are in.

    "norm" is the last block after the final LayerNorm, "features" its mean, "projection" the audio's side of the
    contrastive training: not scaled to length 1, as for cosines it makes no difference.

    Parameters
    ----------
    dim : features of a patch, which every stage but the first doubles
    depths, heads : blocks of each stage, and their heads
    projection : features of the space of sounds and texts
    fusion : clips longer than 10 s are taken whole, shrunk to 10 s, and mixed with crops from their beginning, middle
        and end, where the authors draw three at random; 10 s and shorter clips have none
    n_classes : logits, of a linear layer behind the projection; 0 for a network without a classifier
    """

    min_frames = FRAMES
    max_frames: int | None = FRAMES

    def __init__(
        self,
        *,
        dim: int = 96,
        depths: tuple[int, ...] = (2, 2, 6, 2),
        heads: tuple[int, ...] = (4, 8, 16, 32),
        projection: int = 512,
        fusion: bool = False,
        n_classes: int = 0,
    ) -> None:
        super().__init__()
        sides = [SIDE // PATCH >> stage for stage in range(len(depths))]
        axes = [
            replace(time_axis(0), receptive_field=FIELD),
            *(time_axis(stage) for stage, depth in enumerate(depths) for _ in range(depth)),
        ]
        last = time_axis(len(depths) - 1)
        vectors = ("features", "projection", *(("logits",) if n_classes else ()))
        self.layers = {**{str(i): axis for i, axis in enumerate(axes)}, "norm": last, **dict.fromkeys(vectors)}
        if fusion:
            self.max_frames, self.piece_frames, self.timed_frames = None, FRAMES, FRAMES
            self.crop_embed = PatchEmbed(dim, CROP_PATCH, CROP_PATCH)
            self.fusion = Fusion(dim)
        self.batch_norm = nn.BatchNorm1d(BANDS)
        self.patch_embed = PatchEmbed(dim, (PATCH, PATCH), (PATCH, PATCH))
        self.patch_norm = LayerNorm(dim)
        self.blocks = nn.ModuleList(
            SwinBlock(dim << stage, heads[stage], side, WINDOW // 2 if i % 2 and side > WINDOW else 0)
            for stage, side in enumerate(sides)
            for i in range(depths[stage])
        )
        self.merges = nn.ModuleList(PatchMerging(dim << stage) for stage in range(len(depths) - 1))
        self.merged_behind = {number: stage for stage, number in enumerate(accumulate(depths[:-1]))}
        width = dim << len(depths) - 1
        self.norm = LayerNorm(width)
        self.projection = nn.Sequential(nn.Linear(width, projection), nn.ReLU(), nn.Linear(projection, projection))
        if n_classes:
            self.head = nn.Linear(projection, n_classes)
        self.apply(init_matrices)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`."""
        grid = self.patch_norm(self.fused(frames) if frames.shape[2] > FRAMES else self.patches(frames))
        taps: dict[str, Tensor] = {}
        depth = depth_of(wanted, len(self.blocks))
        for i in range(depth + 1):
            if i > 0:
                grid = self.blocks[i - 1](grid)
            if str(i) in wanted:
                taps[str(i)] = along_time(grid)
            if i < depth and i in self.merged_behind:
                grid = self.merges[self.merged_behind[i]](grid)
        if any(not layer.isdecimal() for layer in wanted):
            grid = self.norm(grid)
            taps["norm"] = along_time(grid)
            taps["features"] = grid.mean((1, 2))
        if not {"projection", "logits"}.isdisjoint(wanted):
            taps["projection"] = self.projection(taps["features"])
        if "logits" in wanted:
            taps["logits"] = self.head(taps["projection"])
        return {layer: taps[layer] for layer in wanted}

    def patches(self, mel: Tensor) -> Tensor:
        """Embed the patches of 10 s: (batch, 64, 1001) -> (batch, 64, 64, dim)."""
        # Normalised in float32: a level in dB takes more than 16 bits.
        return self.patch_embed(picture(self.batch_norm(mel)))

    def fused(self, mel: Tensor) -> Tensor:
        """Embed the patches of a longer clip, mixed with those of its crops: (batch, 64, frames) -> as `patches`."""
        surplus = mel.shape[2] - FRAMES
        shrunk = F.interpolate(mel, FRAMES, mode="linear", align_corners=False)
        crops = [mel[..., start : start + FRAMES] for start in (0, surplus // 2, surplus)]
        pictures = picture(self.batch_norm(torch.cat([shrunk, *crops])))  # (4 * batch, 256, 256)
        whole, rest = pictures.split((mel.shape[0], CROPS * mel.shape[0]))
        of_crops = self.crop_embed(rest).unflatten(0, (CROPS, -1))  # (crop, batch, row, column, dim)
        side_by_side = of_crops.permute(1, 2, 0, 3, 4).flatten(2, 3)  # (batch, row, 3 * 21, dim)
        patches = self.patch_embed(whole)
        missing = patches.shape[2] - side_by_side.shape[2]
        return self.fusion(patches, F.pad(side_by_side, (0, 0, 0, missing)))


# Files

BLOCK = re.compile(r"layers\.(\d+)\.blocks\.(\d+)\.")

PARTS = (
    (r"^audio_model\.audio_encoder\.", ""),
    (r"^audio_projection\.linear1\.", "projection.0."),
    (r"^audio_projection\.linear2\.", "projection.2."),
    (r"^layers\.(\d+)\.downsample\.", r"merges.\1."),
    (r"^patch_embed\.norm\.", "patch_norm."),
    (r"^patch_embed\.mel_conv2d\.", "crop_embed.proj."),
    (r"^patch_embed\.fusion_model\.local_att\.", "fusion.local."),
    (r"^patch_embed\.fusion_model\.global_att\.1\.", "fusion.overall.0."),
    (r"^patch_embed\.fusion_model\.global_att\.2\.", "fusion.overall.1."),
    (r"^patch_embed\.fusion_model\.global_att\.4\.", "fusion.overall.3."),
    (r"^patch_embed\.fusion_model\.global_att\.5\.", "fusion.overall.4."),
    (r"\.layernorm_before\.", ".norm1."),
    (r"\.layernorm_after\.", ".norm2."),
    (r"\.intermediate\.dense\.", ".mlp.fc1."),
    (r"\.attention\.output\.dense\.", ".attn.proj."),
    (r"\.output\.dense\.", ".mlp.fc2."),
    (r"\.attention\.self\.relative_position_bias_table$", ".attn.bias_table"),
    (r"\.attention\.self\.", ".attn."),
)
"""Patterns in the names of Hugging Face's files, in this order, and what replaces them."""

INDEX = ".attn.relative_position_index"
"""End of the names of a table that every block has a copy of, a formula: see `relative_positions`."""


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of a file for Hugging Face, number its blocks throughout, and join query, key and value.

    Raises
    ------
    WeightsError : its windows are others, or it is of the other kind, with feature fusion or without
    """
    depths = depths_of(state_dict)
    renamed: dict[str, Tensor] = {}
    for key, tensor in state_dict.items():
        for pattern, ours in PARTS:
            key = re.sub(pattern, ours, key)
        if match := BLOCK.match(key):
            stage, block = map(int, match.groups())
            key = f"blocks.{sum(depths[:stage]) + block}.{key[match.end() :]}"
        if key.startswith("fusion.") and tensor.ndim == 4:
            tensor = tensor.flatten(1)  # a convolution of 1 x 1
        if key.endswith(INDEX):
            if not tensor.equal(relative_positions()):
                raise WeightsError(f"its windows are not of {WINDOW} x {WINDOW} patches: {key} differs from Swin's")
        else:
            renamed[key] = tensor
    is_fused = "crop_embed.proj.weight" in renamed
    if is_fused != variant.network.get("fusion", False):  # whose front ends differ
        kind, name = ("with", "clap-htsat-fused") if is_fused else ("without", "clap-htsat-unfused")
        raise WeightsError(f"it is a network {kind} feature fusion; give a variant of that kind, such as {name}")
    for key in [key for key in renamed if ".attn.query." in key]:
        names = [key.replace(".query.", f".{part}.") for part in ("query", "key", "value")]
        if all(name in renamed for name in names):
            renamed[key.replace(".query.", ".qkv.")] = torch.cat([renamed.pop(name) for name in names])
    return renamed


def depths_of(names: Collection[str]) -> tuple[int, ...]:
    """Count the blocks of each stage of a file for Hugging Face."""
    found = {tuple(map(int, match.groups())) for name in names if (match := BLOCK.search(name))}
    stages = [stage for stage, _ in found]
    return tuple(stages.count(stage) for stage in range(max(stages, default=-1) + 1))


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`."""
    dim = tensors["patch_embed.proj.weight"].shape[0]
    blocks = [f"blocks.{i}" for i in range(count_members(tensors, "blocks."))]
    widths = [tensors[f"{block}.norm1.weight"].shape[0] for block in blocks]
    heads = {width: tensors[f"{block}.attn.bias_table"].shape[1] for width, block in zip(widths, blocks, strict=True)}
    return {
        "dim": dim,
        "depths": tuple(map(widths.count, heads)),
        "heads": tuple(heads.values()),
        "projection": tensors["projection.2.weight"].shape[0],
        "fusion": "crop_embed.proj.weight" in tensors,
    }


# Variants

CLAP_MEL = ClapMel(
    sample_rate=48_000,
    n_fft=1024,
    win_length=1024,
    hop_length=480,
    n_mels=BANDS,
    fmin=50.0,
    fmax=14_000.0,
    window=480_000,
)
"""The dialect of the authors' files for Hugging Face (``preprocessor_config.json``)."""

FUSION_MEL = replace(CLAP_MEL, htk=True)
"""That of the file with feature fusion, whose extractor takes other filters."""

WINDOW_MS = 10_000.0

LONGEST_MS = 120_000.0
"""Longest clip that is fused. Ours: the authors take any, which memory limits here."""


def row(checkpoint: str, **network: Any) -> Variant:
    """Build the row of one published file."""
    fusion = "fusion" in network
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=FUSION_MEL if fusion else CLAP_MEL,
        scene=Readout(LONGEST_MS if fusion else WINDOW_MS, ("projection",)),
        scene_hop_ms=(LONGEST_MS if fusion else WINDOW_MS) / 2,
        timestamps=(Readout(WINDOW_MS, ("norm",)),),
        framing="native",
    )


LARGER: dict[str, Any] = {"dim": 128, "depths": (2, 2, 12, 2)}

VARIANTS = {
    "clap-htsat-unfused": row("clap-htsat-unfused"),
    "clap-htsat-fused": row("clap-htsat-fused", fusion=True),
    "larger_clap_general": row("larger_clap_general", **LARGER),
    "larger_clap_music_and_speech": row("larger_clap_music_and_speech", **LARGER),
}
"""The authors' files for Hugging Face by the names of their repositories, but for larger_clap_music, which embeds all
clips nearly alike."""

FAMILY = hear.Family(
    name="clap",
    network=HTSAT,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight", "audio_model.audio_encoder.patch_embed.proj.weight"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    model_type="clap",
    classifier=("head.bias",),
    reinitialised=("head.",),
)

load_model = hear.Loader(FAMILY).load_model
