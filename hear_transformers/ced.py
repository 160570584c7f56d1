"""CED: small Vision Transformers that learnt AudioSet's labels from an ensemble of large ones.

Dinkel, Wang, Yan, Zhang, Wang: CED: Consistent ensemble distillation for audio tagging, ICASSP 2024 (2308.11957). Code
of the authors: github.com/RicherMans/CED, GPL-3.0, of which nothing is here; their weights, and code for Hugging Face,
github.com/jimbozhang/hf_transformers_custom_model_ced, Apache-2.0. Reads both layouts.

A Vision Transformer over 16 x 16 patches of a log-mel spectrogram of 64 bands, so that 10 s are 248 tokens, a fifth of
those of AST and PaSST.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

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
from .networks.transformer import PATCH

__all__ = ["CED", "FAMILY", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

TIME_POSITIONS = 63
LONGEST_FRAMES = 1012  # authors' target_length: longer clips are cut
LONGEST_MS = 1000.0 * XIAOMI_MEL.max_samples(LONGEST_FRAMES) / XIAOMI_MEL.sample_rate


class CED(PatchTransformer):
    """The network of the authors.

    Parameters
    ----------
    time_positions : length of the table of positions in time, in patches
    n_classes : logits
    transformer : n_mels, dim, depth and heads of the `PatchTransformer`
    """

    def __init__(self, *, time_positions: int = TIME_POSITIONS, n_classes: int = 527, **transformer: Any) -> None:
        super().__init__(patch=(PATCH, PATCH), time_positions=time_positions, n_classes=n_classes, **transformer)


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, or of Hugging Face's."""
    return renamed(state_dict, {"encoder.": "", "outputlayer.": "head.", **BANDS_NORM})


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a network for clips of another length to a variant."""
    return adapt_times(state_dict, variant.network.get("time_positions", TIME_POSITIONS))


def row(checkpoint: str, **network: int) -> Variant:
    """Build the row of one published network: scenes are at most as long as what the authors do not cut."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=XIAOMI_MEL,
        scene=Readout(LONGEST_MS, ("features",)),
        scene_hop_ms=LONGEST_MS / 2,
        timestamps=(Readout(1_000.0, ("norm",)),),
        framing="native",
    )


VARIANTS = {
    "ced_tiny": row("ced_tiny", dim=192, heads=3),
    "ced_mini": row("ced_mini", dim=256, heads=4),
    "ced_small": row("ced_small", dim=384, heads=6),
    "ced_base": row("ced_base"),
}

FAMILY = hear.Family(
    name="ced",
    network=CED,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight", "encoder.patch_embed.proj.weight"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    model_type="ced",
    unused=FRONTEND,
    classifier=("head.1.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.1.", "head."),  # other classes keep its normalisation
)

load_model = hear.Loader(FAMILY).load_model
