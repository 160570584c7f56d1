"""PaSST: Patchout faSt Spectrogram Transformer.

Koutini, Schlüter, Eghbal-zadeh, Widmer: Efficient Training of Audio Transformers with Patchout, Interspeech 2022
(2110.05069). Koutini, Masoudian, Schmid, Eghbal-zadeh, Schlüter, Widmer: Learning General Audio Representations with
Large-Scale Training of Patchout Audio Transformers, HEAR 2021 proceedings (2211.13956). Code and weights of the
authors: github.com/kkoutini/PaSST and github.com/kkoutini/passt_hear21, Apache-2.0.

A Vision Transformer over 16 x 16 patches of a log-mel spectrogram, with separate position embeddings for time and
frequency, so that shorter clips use the first time positions.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks import imagenet
from .networks.family import Readout, Variant
from .networks.frontend import CPJKU_BESIDE, CPJKU_MEL
from .networks.transformer import PATCH, DeiT, patch_rows, resized_times, transformer_sizes

__all__ = ["FAMILY", "VARIANTS", "PaSST", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]


class PaSST(DeiT):
    """The network of the authors' `models/passt.py`, with structured patchout in training.

    Parameters
    ----------
    stride : of the patches, in mel bands and mel frames
    time_positions : length of the time position table, patches
    n_mels : mel bands of the input
    transformer : n_classes, dim, depth, heads and patchout of the `DeiT`; the authors drop 4 rows and 40 columns of 12
        and 99 (ex_audioset.py)
    """

    def __init__(self, *, stride: int = 10, time_positions: int = 99, n_mels: int = 128, **transformer: Any) -> None:
        # One patch more would exceed the time positions.
        super().__init__(stride=stride, max_frames=PATCH + stride * time_positions - 1, **transformer)
        dim = self.cls_token.shape[2]
        self.new_pos_embed = nn.Parameter(torch.randn(1, 2, dim) * 0.02)
        self.freq_new_pos_embed = nn.Parameter(torch.randn(1, dim, (n_mels - PATCH) // stride + 1, 1) * 0.02)
        self.time_new_pos_embed = nn.Parameter(torch.randn(1, dim, 1, time_positions) * 0.02)

    def positions(self, n_freq: int, n_time: int) -> tuple[Tensor, Tensor]:
        """Add one embedding for time, from the first on, and one for frequency; see `DeiT.positions`.

        In training a clip shorter than the table is placed at random in it, as in the authors' code, so that all of it
        learns.
        """
        table = self.time_new_pos_embed
        of_time = table[..., :n_time]
        if self.training:
            first = torch.randint(table.shape[3] - n_time + 1, ())
            of_time = table.index_select(3, (first + torch.arange(n_time)).to(table.device))
        of_patches = self.freq_new_pos_embed + of_time  # (1, dim, freq, time)
        return self.new_pos_embed, of_patches.permute(0, 2, 3, 1)  # (1, freq, time, dim)


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a distilled DeiT for images, or a PaSST of another length, to a variant.

    Filters are summed over red, green and blue. The grid of positions is interpolated; its mean over time is the table
    of frequencies, its mean over frequency that of times (authors' models/passt.py, adapt_image_pos_embed_to_passt).
    Tables of times are cropped or interpolated.
    """
    with torch.device("meta"):
        trunk = PaSST(**variant.network)
    n_freq, n_time = trunk.freq_new_pos_embed.shape[2], trunk.time_new_pos_embed.shape[3]
    adapted = dict(state_dict)
    filters, times = adapted.get("patch_embed.proj.weight"), adapted.get("time_new_pos_embed")
    if filters is not None and imagenet.are_for_images(filters):
        tokens, patches = imagenet.positions(adapted.pop("pos_embed", None))
        patches = F.interpolate(patches, (n_freq, n_time), mode="bicubic", align_corners=False)
        adapted["patch_embed.proj.weight"] = imagenet.summed(filters)
        adapted["new_pos_embed"] = tokens
        adapted["freq_new_pos_embed"] = patches.mean(3, keepdim=True)
        adapted["time_new_pos_embed"] = patches.mean(2, keepdim=True)
    elif times is not None and times.ndim == 4 and times.numel():
        adapted["time_new_pos_embed"] = resized_times(times, n_time)
    return adapted


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`.

    12, 10, 9 and 8 rows of 128 mel bands mean the strides 10, 12, 14 and 16.
    """
    return {
        **transformer_sizes(tensors, {"dim": 768, **variant.network}, given),
        **patch_rows(tensors["freq_new_pos_embed"].shape[2], variant, given),
        "time_positions": tensors["time_new_pos_embed"].shape[3],
    }


EMBEDDING = ("logits", "features")  # the authors' submission to HEAR, in their order: 527 + 768 numbers
SHORT = Readout(160.0, EMBEDDING)  # 16 mel frames at hop 320: one patch in time
LONG = Readout(800.0, EMBEDDING)


def mel_frames(window_ms: float) -> Readout:
    """Build the low level of the "mel" presets: six mel frames, 6 * 128 numbers."""
    return Readout(window_ms, ("mel",), "unroll")


DEIT = ("deit", "deit_base_distilled_patch16_384")  # authors' arch passt_deit_bd_p16_384

BASE = Variant(
    checkpoint="passt_s_swa_p16_128_ap476",
    network={},
    frontend=CPJKU_MEL,
    scene=Readout(10_000.0, EMBEDDING),
    scene_hop_ms=2_500.0,
    timestamps=(SHORT,),
    imagenet=DEIT,
)
STRIDE_16 = {"stride": 16, "time_positions": 62}


def published(checkpoint: str, **network: int) -> Variant:
    """Build the row of one released checkpoint, read like the authors' base model."""
    return replace(BASE, checkpoint=checkpoint, network=network)


HOP160 = replace(published("stfthop160", time_positions=200), frontend=replace(CPJKU_MEL, hop_length=160))
HOP100 = replace(published("stfthop100", time_positions=320), frontend=replace(CPJKU_MEL, hop_length=100))
SECONDS_20 = replace(
    published("passt_20sec", time_positions=200), scene=Readout(20_000.0, EMBEDDING), scene_hop_ms=5_000.0
)
SECONDS_30 = replace(
    published("passt_30sec", time_positions=300), scene=Readout(30_000.0, EMBEDDING), scene_hop_ms=10_000.0
)

VARIANTS = {
    # The authors' HEAR modules (hear21passt/*.py).
    "base": BASE,
    "base2level": replace(BASE, timestamps=(SHORT, LONG)),
    # 640 ms here, 800 ms in every other two-level preset, as in the authors' modules.
    "base2levelmel": replace(BASE, timestamps=(SHORT, replace(LONG, window_ms=640.0), mel_frames(60.0))),
    "base20sec": SECONDS_20,
    "base30sec": SECONDS_30,
    "hop160base": HOP160,
    "hop160base2lvl": replace(HOP160, timestamps=(SHORT, LONG)),
    "hop160base2lvlmel": replace(HOP160, timestamps=(SHORT, LONG, mel_frames(30.0))),
    "hop100base": HOP100,
    "hop100base2lvl": replace(HOP100, timestamps=(SHORT, LONG)),
    "hop100base2lvlmel": replace(HOP100, timestamps=(SHORT, LONG, mel_frames(18.75))),
    # The released checkpoints, named as in the authors' `get_model`.
    "passt_s_swa_p16_128_ap476": BASE,
    "passt_s_kd_p16_128_ap486": published("passt_s_kd_p16_128_ap486"),
    # Seven of DeiT's twelve blocks; which ones is unknown.
    "passt_l_kd_p16_128_ap47": replace(published("passt_l_kd_p16_128_ap47", depth=7), imagenet=None),
    "passt_s_swa_p16_128_ap4761": published("passt_s_swa_p16_128_ap4761"),
    "passt_s_p16_128_ap472": published("passt_s_p16_128_ap472"),
    "passt_s_p16_s16_128_ap468": published("passt_s_p16_s16_128_ap468", **STRIDE_16),
    "passt_s_swa_p16_s16_128_ap473": published("passt_s_swa_p16_s16_128_ap473", **STRIDE_16),
    "passt_s_swa_p16_s14_128_ap471": published("passt_s_swa_p16_s14_128_ap471", stride=14, time_positions=71),
    "passt_s_p16_s14_128_ap469": published("passt_s_p16_s14_128_ap469", stride=14, time_positions=71),
    "passt_s_swa_p16_s12_128_ap473": published("passt_s_swa_p16_s12_128_ap473", stride=12, time_positions=83),
    "passt_s_p16_s12_128_ap470": published("passt_s_p16_s12_128_ap470", stride=12, time_positions=83),
    "passt_b_f128_p16_s16_ap_459": published("passt_b_f128_p16_s16_ap_459", **STRIDE_16),
    "passt_u600_f128_p16_s16_ap_460": published("passt_u600_f128_p16_s16_ap_460", **STRIDE_16),
    "passt_20sec": SECONDS_20,
    "passt_30sec": SECONDS_30,
    "stfthop160": HOP160,
    "stfthop100": HOP100,
    "openmic": published("openmic", n_classes=20),
    "openmic2008_ap85_swa": published("openmic2008_ap85_swa", n_classes=20),
    "openmic2008_ap85": published("openmic2008_ap85", n_classes=20),
    "fsd50k": published("fsd50k", n_classes=200),
    "fsd50k-n": published("fsd50k-n", n_classes=200, **STRIDE_16),
}

FAMILY = hear.Family(
    name="passt",
    network=PaSST,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight",),
    sizes=sizes,
    # The head of the distillation token: in every file, unused in the authors' forward pass.
    unused=("head_dist.weight", "head_dist.bias", *CPJKU_BESIDE),
    classifier=("head.1.bias",),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.1.", "head."),  # other classes keep its normalisation
)

load_model = hear.Loader(FAMILY)
