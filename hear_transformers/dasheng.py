"""Dasheng: a masked autoencoder's encoder for sounds of any kind, speech and music.

Dinkel, Yan, Wang, Zhang, Wang, Wang: Scaling up masked audio encoder learning for general audio classification,
Interspeech 2024 (2406.06992). Code and weights of the authors: github.com/XiaoMi/Dasheng, Apache-2.0. Reads the
authors' files and their conversions for Hugging Face.

A Vision Transformer whose tokens are all 64 bands of 4 frames, one every 40 ms, so that it keeps more of time than
networks over square patches. It was trained without labels; only `dasheng_audioset` has a classifier.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant
from .networks.frontend import XIAOMI_MEL
from .networks.patch_transformer import (
    BANDS_NORM,
    FRONTEND,
    PatchTransformer,
    adapt_times,
    renamed,
    sizes,
)

__all__ = ["FAMILY", "VARIANTS", "Dasheng", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

PATCH_FRAMES = 4
TIME_POSITIONS = 252  # authors' target_length of 1008 frames


class Dasheng(PatchTransformer):
    """The network of the authors' package, for input of any length.

    Input longer than the table of positions is taken in pieces as long as that one, the last one shorter. The tokens of
    a piece attend to each other alone, and their positions begin anew.

    Parameters
    ----------
    n_mels : mel bands of the input, all of which are in each patch
    time_positions : length of the table, and of a piece, in patches
    transformer : n_classes, dim, depth and heads of the `PatchTransformer`
    """

    def __init__(self, *, n_mels: int = 64, time_positions: int = TIME_POSITIONS, **transformer: Any) -> None:
        super().__init__(patch=(n_mels, PATCH_FRAMES), n_mels=n_mels, time_positions=time_positions, **transformer)
        self.piece_frames, self.max_frames = self.max_frames, None

    def times(self, n_time: int) -> Tensor:
        """Repeat the table, see `PatchTransformer.times`."""
        table = self.time_pos_embed
        return table.repeat(1, 1, 1, -(-n_time // table.shape[3]))[..., :n_time]

    def refine(self, block: nn.Module, tokens: Tensor) -> Tensor:
        """Run a block on each piece, see `PatchTransformer.refine`."""
        length, piece = tokens.shape[1], self.time_pos_embed.shape[3]
        if length <= piece:
            return super().refine(block, tokens)
        whole = length // piece * piece
        pieces = tokens[:, :whole].reshape(-1, piece, tokens.shape[2])  # (batch * pieces, piece, dim)
        refined: Tensor = block(pieces).reshape(tokens.shape[0], whole, -1)  # (batch, pieces * piece, dim)
        return torch.cat([refined, block(tokens[:, whole:])], 1) if whole < length else refined


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, with a classifier or without, or of Hugging Face's."""
    return renamed(state_dict, {"encoder.": "", "dashengmodel.": "", "classifier.": "head.", **BANDS_NORM})


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a network with pieces of another length to a variant."""
    return adapt_times(state_dict, variant.network.get("time_positions", TIME_POSITIONS))


def row(checkpoint: str, **network: int) -> Variant:
    """Build the row of one published network."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=XIAOMI_MEL,
        # The authors read clips of any length in one pass; here memory limits it.
        scene=Readout(60_000.0, ("features",)),
        scene_hop_ms=30_000.0,
        timestamps=(Readout(1_000.0, ("norm",)),),
        framing="native",
    )


VARIANTS = {
    "dasheng_base": row("dasheng_base"),
    "dasheng_06B": row("dasheng_06B", dim=1280, depth=32, heads=16),
    "dasheng_12B": row("dasheng_12B", dim=1536, depth=40, heads=24),
    "dasheng_audioset": row("dasheng_audioset", n_classes=527),
}
"""The authors' networks under the names of their functions; the last one is the base one, fine-tuned."""

FAMILY = hear.Family(
    name="dasheng",
    network=Dasheng,
    variants=VARIANTS,
    anchors=(
        "patch_embed.proj.weight",
        "encoder.patch_embed.proj.weight",
        "dashengmodel.patch_embed.proj.weight",
    ),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    model_type="dasheng",
    unused=FRONTEND,
    classifier=("head.1.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.1.", "head."),  # other classes keep its normalisation
)

load_model = hear.Loader(FAMILY).load_model
