"""ATST-Frame: the audio teacher-student transformer with an embedding every 40 ms.

Li, Shao, Li: Self-Supervised Audio Teacher-Student Transformer for Both Clip-Level and Frame-Level Tasks, TASLP 2024
(2306.04186); code of the authors: github.com/Audio-WestlakeU/audiossl, MIT, their weights under CC BY 4.0. Networks
trained on AudioSet, frame by frame too: Schmid, Morocutti, Foscarin, Schlüter, Primus, Widmer: Effective Pre-Training
of Audio Transformers for Sound Event Detection, ICASSP 2025 (2409.09546); github.com/fschmid56/PretrainedSED, MIT.

A Vision Transformer whose tokens are four frames of all mel bands, without a class token. What the authors hand out of
a block is normalised by the network's last normalisation, and so are the layers here; their embedding is all blocks
side by side.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .labels import audioset_strong_labels
from .networks.family import Readout, Variant
from .networks.framewise import CLASSIFIERS, FrameTagger, frame_classes_in
from .networks.frontend import HtkLogMel, HtkMel, Level
from .networks.fused import LayerNorm
from .networks.transformer import Block, PatchEmbed, init_matrices, transformer_sizes
from .networks.trunk import TimeAxis, depth_of

__all__ = [
    "FAMILY", "VARIANTS", "AtstFrame", "AtstMel", "get_scene_embeddings", "get_timestamp_embeddings", "load_model",
]  # fmt: skip

TOKEN = 4  # mel frames of a token


# The front end


@dataclass(frozen=True, slots=True, kw_only=True)
class AtstMel(HtkMel):
    """The dialect of the authors: decibels scaled to about -1 to 1.

    Attributes
    ----------
    lowest_db, highest_db : that become -1 and 1
    clamp_db : levels below are raised to it; None for none
    """

    lowest_db: float = -79.6482
    highest_db: float = 50.6842
    clamp_db: float | None = None

    def build(self) -> AtstLogMel:
        """Build the module."""
        return AtstLogMel(self)

    def normalised(self, level: Level) -> Level:
        """Scale decibels."""
        return (level - self.lowest_db) / (self.highest_db - self.lowest_db) * 2 - 1

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation that `with_normalisation` takes."""
        return (self.lowest_db + self.highest_db) / 2, (self.highest_db - self.lowest_db) / 2

    def with_normalisation(self, mean: float, std: float) -> AtstMel:
        """Return the dialect that maps `mean` to 0 and `std` to 1, in decibels."""
        return replace(self, lowest_db=mean - std, highest_db=mean + std)


class AtstLogMel(HtkLogMel):
    """Log-mel spectrogram of the authors (`torchaudio.transforms`, `MinMax`)."""

    spec: AtstMel

    def log(self, mel: Tensor) -> Tensor:
        """Take decibels, raise those far below the loudest of the waveform, scale."""
        levels = super().log(mel)
        if self.spec.clamp_db is not None:
            levels = levels.clamp(min=self.spec.clamp_db)
        return self.spec.normalised(levels)


ATST_MEL = AtstMel(
    sample_rate=16_000,
    n_fft=1024,
    win_length=1024,
    hop_length=160,
    n_mels=64,
    fmin=60.0,
    fmax=7_800.0,
    range_db=80.0,
)
"""The dialect of the authors' `audiossl/methods/atstframe/embedding.py`."""

SED_MEL = replace(ATST_MEL, clamp_db=-50.0)
"""That of PretrainedSED (`models/atstframe/ATSTF_wrapper.py`), with another floor."""


# The network


class AtstFrame(FrameTagger):
    """The encoder of the authors' `methods/atstframe/audio_transformer.py`, and the classifiers of PretrainedSED.

    Layer "1" and those after it are normalised, see the top of this module. "features" are all of them side by side,
    "norm" is the last. "logits" are those of the mean over time, "framewise" those of every token.

    Parameters
    ----------
    n_classes : logits of a clip; 0 for a network without that classifier
    frame_classes : logits of a token; 0 for a network without that classifier
    n_mels : mel bands of the input
    time_positions : length of the time position table, tokens
    dim, depth, heads : of the transformer
    """

    min_frames = TOKEN

    def __init__(
        self,
        *,
        n_classes: int = 0,
        frame_classes: int = 0,
        n_mels: int = 64,
        time_positions: int = 250,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.max_frames = TOKEN * (time_positions + 1) - 1  # frames beyond a whole token are left out
        grid = TimeAxis(TOKEN, (TOKEN - 1) / 2, None)
        names = (*map(str, range(depth + 1)), "norm", "features")
        self.layers = {**dict.fromkeys(names, grid), "0": replace(grid, receptive_field=TOKEN)}
        self.patch_embed = PatchEmbed(dim, (n_mels, TOKEN), (n_mels, TOKEN))
        # The first row belongs to a class token, which this network does not have.
        self.pos_embed = nn.Parameter(torch.randn(1, 1 + time_positions, dim) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads, qkv_bias=False) for _ in range(depth))
        self.norm_frame = LayerNorm(dim, eps=1e-6)
        self.add_classifiers(dim, grid, n_classes, frame_classes)
        self.apply(init_matrices)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`."""
        tokens = self.patch_embed(frames).squeeze(1)  # (batch, time, dim), of a single row of patches
        tokens = tokens + self.pos_embed[:, 1 : tokens.shape[1] + 1]
        taps = {"0": tokens.unsqueeze(2)}  # (batch, time, 1, dim)
        depth = depth_of(wanted, len(self.blocks))
        for i in range(1, depth + 1):
            tokens = self.blocks[i - 1](tokens)
            if i == depth or str(i) in wanted or "features" in wanted:
                taps[str(i)] = self.norm_frame(tokens).unsqueeze(2)
        taps["norm"] = taps[str(depth)]
        if "features" in wanted:
            taps["features"] = torch.cat([taps[str(i)] for i in range(1, depth + 1)], 3)
        taps |= self.classify(taps["norm"], wanted)
        return {layer: taps[layer] for layer in wanted}


# Weights


SED = "model.atst."
"""What the names of PretrainedSED's files begin with, but for those of the classifiers."""

AUTHORS_FILTERS = "patch_embed.patch_embed.weight"


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, or of PretrainedSED's, to those of `AtstFrame`."""
    renamed = {}
    for key, tensor in state_dict.items():
        key = key.removeprefix(SED).replace("patch_embed.patch_embed.", "patch_embed.proj.")
        if key == "patch_embed.proj.weight" and tensor.ndim == 2:
            # Of a linear layer: (dim, n_mels * frames) -> (dim, 1, n_mels, frames)
            tensor = tensor.unflatten(1, (1, -1, TOKEN))
        renamed[key] = tensor
    return renamed


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`."""
    return {
        **transformer_sizes(tensors, {"dim": 768, **variant.network}, given),
        "n_mels": tensors["patch_embed.proj.weight"].shape[2],
        "time_positions": tensors["pos_embed"].shape[1] - 1,
        **frame_classes_in(tensors),
    }


WINDOW_MS = 10_000.0  # as long as the authors' pieces: 1001 frames, 250 tokens


def row(checkpoint: str, **network: int) -> Variant:
    """Build the row of a file of the authors, read as they do: every block."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=ATST_MEL,
        scene=Readout(WINDOW_MS, ("features",)),
        scene_hop_ms=WINDOW_MS / 2,
        timestamps=(Readout(WINDOW_MS, ("features",)),),
        framing="native",
    )


def sed_row(checkpoint: str, **network: int) -> Variant:
    """Build the row of a file of PretrainedSED, read as they do: the last block."""
    last = Readout(WINDOW_MS, ("norm",))
    return replace(row(checkpoint, **network), frontend=SED_MEL, scene=last, timestamps=(last,))


VARIANTS = {
    "frame_strong": replace(sed_row("frame_strong", n_classes=447, frame_classes=447), labels=audioset_strong_labels),
    "frame_base": row("frame_base"),
    "frame_small": row("frame_small", dim=384, heads=6),
    "frame_weak": sed_row("frame_weak", n_classes=527),
    "frame_ssl": sed_row("frame_ssl"),
}

FAMILY = hear.Family(
    name="atst",
    network=AtstFrame,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight", AUTHORS_FILTERS, SED + AUTHORS_FILTERS),
    sizes=sizes,
    convert_state_dict=convert_state_dict,
    unused=("mask_embed",),  # of masked frames in training
    classifier=("weak_head.bias",),
    reinitialised=CLASSIFIERS,
    evaluated=re.compile(r"\bteacher\."),  # not the student beside it
)

load_model = hear.Loader(FAMILY).load_model
