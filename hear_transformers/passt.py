"""PaSST: Patchout faSt Spectrogram Transformer.

Koutini, Schlüter, Eghbal-zadeh, Widmer: Efficient Training of Audio Transformers with Patchout, Interspeech 2022
(2110.05069). Koutini, Masoudian, Schmid, Eghbal-zadeh, Schlüter, Widmer: Learning General Audio Representations with
Large-Scale Training of Patchout Audio Transformers, HEAR 2021 proceedings (2211.13956). Code and weights of the
authors: github.com/kkoutini/PaSST and github.com/kkoutini/passt_hear21, Apache-2.0.

A Vision Transformer over 16 x 16 patches of a log-mel spectrogram, with separate position embeddings for time and
frequency, so that shorter clips use the first time positions.

Frame-wise PaSST (fPaSST) has a token every 40 ms, of all mel bands: Schmid, Morocutti, Foscarin, Schlüter, Primus,
Widmer: Effective Pre-Training of Audio Transformers for Sound Event Detection, ICASSP 2025 (2409.09546);
github.com/fschmid56/PretrainedSED, MIT.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import OptionError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .labels import audioset_strong_labels
from .networks import imagenet
from .networks.family import Readout, Variant
from .networks.framewise import CLASSIFIERS, FrameTagger, frame_classes_in
from .networks.frontend import CPJKU_BESIDE, CPJKU_MEL, SED_MEL
from .networks.fused import LayerNorm
from .networks.transformer import (
    PATCH,
    Block,
    DeiT,
    init_matrices,
    patch_rows,
    resized_times,
    transformer_sizes,
)
from .networks.trunk import TimeAxis, depth_of

__all__ = [
    "FAMILY", "VARIANTS", "FramePaSST", "PaSST", "get_scene_embeddings", "get_timestamp_embeddings", "load_model",
]  # fmt: skip


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


STEM_WIDTHS = (16, 32, 64)
"""Features of the three convolutions before the tokens (PretrainedSED, `models/frame_passt/fpasst.py`)."""

STEM_HOP = 4  # mel frames of a token, as the first and the last of the convolutions have a stride of 2
STEM_FIELD = 11  # mel frames that a position of the last one sees: kernels of 3 at hops of 1, 2 and 2


class FrameEmbed(nn.Module):
    """Map a spectrogram to a token every four frames, of all bands of its own position and the next.

    Convolutions of (batch, 64, n_mels / 4, frames / 4) are read in memory as (batch, 16, n_mels, frames / 4): four
    features above each other. As in `PatchEmbed` the last convolution, as high as its input, is a matrix product.
    """

    def __init__(self, dim: int, n_mels: int) -> None:
        super().__init__()
        if n_mels % STEM_HOP:
            raise OptionError(f"n_mels={n_mels} is no multiple of {STEM_HOP}")
        first, second, third = STEM_WIDTHS
        self.conv_in_1 = nn.Conv2d(1, first, 3, 2, 1)
        self.conv_in_2 = nn.Conv2d(first, second, 3, 1, 1)
        self.conv_in_3 = nn.Conv2d(second, third, 3, 2, 1)
        self.proj = nn.Conv2d(third // STEM_HOP, dim, (n_mels, 2))

    def forward(self, mel: Tensor) -> Tensor:
        """Embed (batch, n_mels, frames): -> (batch, time, dim)."""
        maps = mel.unsqueeze(1).to(self.proj.weight.dtype)
        for conv in (self.conv_in_1, self.conv_in_2, self.conv_in_3):
            maps = F.gelu(conv(maps))
        maps = maps.reshape(maps.shape[0], self.proj.in_channels, -1, maps.shape[3])  # (batch, 16, n_mels, time)
        # A zero behind the last position: (batch, 16, n_mels, time, 2)
        pairs = F.pad(maps, (0, 1)).unfold(3, 2, 1)
        return F.linear(pairs.permute(0, 3, 1, 2, 4).flatten(2), self.proj.weight.flatten(1), self.proj.bias)


class FramePaSST(FrameTagger):
    """The network of PretrainedSED's `models/frame_passt/fpasst.py`, with its classifiers.

    "norm" is the last block after the final LayerNorm, what the authors call the sequence. The class and the
    distillation token only take part in attention; they are read as in `DeiT`.

    Parameters
    ----------
    n_classes : logits of a clip; 0 for a network without that classifier
    frame_classes : logits of a token; 0 for a network without that classifier
    n_mels : mel bands of the input
    time_positions : length of the time position table, tokens
    dim, depth, heads : of the transformer
    """

    prefix = ("cls", "dist")

    def __init__(
        self,
        *,
        n_classes: int = 0,
        frame_classes: int = 0,
        n_mels: int = 128,
        time_positions: int = 250,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
    ) -> None:
        super().__init__()
        self.max_frames = STEM_HOP * time_positions
        grid = TimeAxis(STEM_HOP, STEM_HOP / 2, None)  # in the middle of two positions of the stem
        grids = dict.fromkeys((*map(str, range(depth + 1)), "norm"), grid)
        self.layers = {**grids, "0": replace(grid, receptive_field=STEM_FIELD + STEM_HOP)}
        self.patch_embed = FrameEmbed(dim, n_mels)
        self.cls_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.dist_token = nn.Parameter(torch.zeros(1, 1, dim))
        self.new_pos_embed = nn.Parameter(torch.randn(1, 2, dim) * 0.02)
        self.freq_new_pos_embed = nn.Parameter(torch.randn(1, dim, 1, 1) * 0.02)
        self.time_new_pos_embed = nn.Parameter(torch.randn(1, dim, 1, time_positions) * 0.02)
        self.blocks = nn.ModuleList(Block(dim, heads) for _ in range(depth))
        self.norm = LayerNorm(dim, eps=1e-6)
        self.add_classifiers(dim, grid, n_classes, frame_classes)
        self.apply(init_matrices)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`."""
        tokens = self._embed(frames)
        taps: dict[str, Tensor] = {}
        depth = depth_of(wanted, len(self.blocks))
        for i in range(depth + 1):
            if i > 0:
                tokens = self.blocks[i - 1](tokens)
            self._store(taps, wanted, str(i), tokens)
        if any(not layer.partition(".")[0].isdecimal() for layer in wanted):
            tokens = self.norm(tokens)
            self._store(taps, wanted, "norm", tokens)
            taps |= self.classify(tokens[:, 2:].unsqueeze(2), wanted)
        return {layer: taps[layer] for layer in wanted}

    def _embed(self, mel: Tensor) -> Tensor:
        """Embed a mel: -> tokens (batch, 2 + time, dim)."""
        tokens = self.patch_embed(mel)  # (batch, time, dim)
        positions = (self.freq_new_pos_embed + self.time_new_pos_embed[..., : tokens.shape[1]]).squeeze(2).mT
        prefix = torch.cat([self.cls_token, self.dist_token], 1) + self.new_pos_embed
        return torch.cat([prefix.expand(mel.shape[0], -1, -1), tokens + positions], 1)

    def _store(self, taps: dict[str, Tensor], wanted: Collection[str], layer: str, tokens: Tensor) -> None:
        """Store the wanted parts of one layer: frames as (batch, time, 1, dim), the prefix tokens."""
        parts = {layer: tokens[:, 2:].unsqueeze(2), f"{layer}.cls": tokens[:, 0], f"{layer}.dist": tokens[:, 1]}
        taps |= {name: part for name, part in parts.items() if name in wanted}


def network(*, framewise: bool = False, **arguments: Any) -> PaSST | FramePaSST:
    """Build PaSST, or frame-wise PaSST."""
    return FramePaSST(**arguments) if framewise else PaSST(**arguments)


STEM = ("conv_in_1.", "conv_in_2.", "conv_in_3.")
IN_SED = "model."
"""What the names of PretrainedSED's files begin with, but for those of the classifiers."""


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of PretrainedSED's files to those of `FramePaSST`; PaSST has the authors' names."""
    if f"{IN_SED}conv_in_1.weight" not in state_dict:
        return state_dict
    names = {key: key.removeprefix(IN_SED) for key in state_dict}
    return {f"patch_embed.{name}" if name.startswith(STEM) else name: state_dict[key] for key, name in names.items()}


def adapt_pretrained(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Adapt a distilled DeiT for images, or a PaSST of another length, to a variant.

    Filters are summed over red, green and blue. The grid of positions is interpolated; its mean over time is the table
    of frequencies, its mean over frequency that of times (authors' models/passt.py, adapt_image_pos_embed_to_passt).
    Tables of times are cropped or interpolated.
    """
    with torch.device("meta"):
        trunk = network(**variant.network)
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
    found = {
        **transformer_sizes(tensors, {"dim": 768, **variant.network}, given),
        "time_positions": tensors["time_new_pos_embed"].shape[3],
    }
    if "patch_embed.conv_in_1.weight" in tensors:
        return {**found, "n_mels": tensors["patch_embed.proj.weight"].shape[2], **frame_classes_in(tensors)}
    return {**found, **patch_rows(tensors["freq_new_pos_embed"].shape[2], variant, given)}


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

WINDOW_MS = 10_000.0  # 1000 frames, 250 tokens: the table of fPaSST


def sed_row(checkpoint: str, **network: int) -> Variant:
    """Build the row of a file of PretrainedSED: the last block, every 40 ms."""
    last = Readout(WINDOW_MS, ("norm",))
    return Variant(
        checkpoint=checkpoint,
        network={"framewise": True, **network},
        frontend=replace(SED_MEL, periodic=True),
        scene=last,
        scene_hop_ms=WINDOW_MS / 2,
        timestamps=(last,),
        framing="native",
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
    # PretrainedSED's frame-wise PaSST.
    "fpasst_strong": replace(sed_row("fpasst_strong", n_classes=447, frame_classes=447), labels=audioset_strong_labels),
    "fpasst_weak": sed_row("fpasst_weak", n_classes=527),
    "fpasst_ssl": sed_row("fpasst_ssl"),
}

FAMILY = hear.Family(
    name="passt",
    network=network,
    variants=VARIANTS,
    anchors=("patch_embed.proj.weight", f"{IN_SED}conv_in_1.weight"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    # The head of the distillation token: in every file, unused in the authors' forward pass.
    unused=("head_dist.weight", "head_dist.bias", *CPJKU_BESIDE),
    classifier=("head.1.bias", "weak_head.bias"),
    adapt_pretrained=adapt_pretrained,
    reinitialised=("head.1.", "head.", *CLASSIFIERS),  # other classes keep its normalisation
)

load_model = hear.Loader(FAMILY).load_model
