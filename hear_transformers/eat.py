"""EAT: Efficient Audio Transformer, and SSLAM, which is the same network trained on mixtures.

Chen, Liang, Ma, Zheng, Chen: EAT: Self-Supervised Pre-Training with Efficient Audio Transformer, IJCAI 2024
(2401.03497); code and weights of the authors: github.com/cwx-worst-one/EAT and huggingface.co/worstchan, MIT. Alex,
Ahmed, Mustafa, Awais, Jackson: SSLAM, ICLR 2025 (2506.12222); github.com/ta012/SSLAM and huggingface.co/ta012, MIT.
Reads their files for Hugging Face, and those of fairseq.

A Vision Transformer over 16 x 16 patches of AST's spectrogram, with a fixed sine for every patch and a class token
without one. Blocks normalise after each sum (data2vec 2.0: 2212.07525). A clip is padded to whole patches only.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from . import hear
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .networks.family import Readout, Variant
from .networks.frontend import AST_MEL
from .networks.fused import LayerNorm
from .networks.transformer import PATCH, Block, PatchEmbed, init_matrices, transformer_sizes
from .networks.trunk import TimeAxis, Trunk, depth_of

__all__ = ["EAT", "FAMILY", "VARIANTS", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

TIME_POSITIONS = 768  # patches along time in the authors' table: 122.9 s
LONGEST_PERIOD = 10_000.0  # of the sines, in patches (Vaswani et al., 1706.03762, section 3.5)


class PostNormBlock(Block):
    """Transformer block of data2vec 2.0, which normalises sums instead of branches."""

    def forward(self, tokens: Tensor, n_queries: int | None = None) -> Tensor:
        """Refine tokens: (batch, tokens, dim) -> (batch, n_queries, dim), see `Block.forward`."""
        tokens = self.norm1(tokens[:, :n_queries] + self.attn(tokens, n_queries))
        return self.norm2(tokens + self.mlp(tokens))


def sines(n: int, features: int) -> Tensor:
    """Compute position embeddings along one axis, all sines before all cosines: (n, features)."""
    shares = torch.arange(features // 2, dtype=torch.float32, device="cpu") / (features // 2)  # on "meta" needs SymPy
    # Rounded as the authors do: far positions differ by 5e-5 otherwise.
    angles = torch.arange(n, dtype=torch.float32, device="cpu").unsqueeze(1) * (1 / LONGEST_PERIOD**shares)
    return torch.cat([angles.sin(), angles.cos()], 1)


class EAT(Trunk):
    """The encoder of the authors' `models/EAT_pretraining.py` and `models/EAT_audio_classification.py`.

    "features" is the last block. The authors embed an utterance by its class token, frames by its patches.

    Parameters
    ----------
    n_classes : logits; 0 for a network without a classifier
    n_mels : mel bands of the input
    dim, depth, heads : of the transformer
    head_eps : epsilon of the classifier's normalisation: 1e-6 in the authors' training code, PyTorch's 1e-5 in the
        network of their files for Hugging Face
    """

    prefix = ("cls",)
    min_frames = PATCH
    max_frames = TIME_POSITIONS * PATCH

    freq_positions: Tensor
    time_positions: Tensor

    def __init__(
        self,
        *,
        n_classes: int = 0,
        n_mels: int = 128,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        head_eps: float = 1e-5,
    ) -> None:
        super().__init__()
        grid = TimeAxis(PATCH, (PATCH - 1) / 2, None)
        names = (*map(str, range(depth + 1)), "features")
        grids = {**dict.fromkeys(names, grid), "0": replace(grid, receptive_field=PATCH)}
        self.layers = {**grids, **({"logits": None} if n_classes else {})}
        self.patch_embed = PatchEmbed(dim, (PATCH, PATCH), (PATCH, PATCH))
        # The first half of the features is frequency, the second time.
        self.register_buffer("freq_positions", sines(n_mels // PATCH, dim // 2), persistent=False)
        self.register_buffer("time_positions", sines(TIME_POSITIONS, dim // 2), persistent=False)
        self.cls_token = nn.Parameter(torch.randn(1, 1, dim) * 0.02)
        self.pre_norm = LayerNorm(dim, eps=1e-6)
        self.blocks = nn.ModuleList(PostNormBlock(dim, heads) for _ in range(depth))
        if n_classes:
            self.head = nn.Sequential(LayerNorm(dim, eps=head_eps), nn.Linear(dim, n_classes))
        self.apply(init_matrices)

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`; patches are frequency-major."""
        patches = self.patch_embed(frames)  # (batch, freq, time, dim)
        grid = patches.shape[1:3]
        patches = patches + self.positions(*grid)
        tokens = torch.cat([self.cls_token.expand(frames.shape[0], -1, -1), patches.flatten(1, 2)], 1)
        tokens = self.pre_norm(tokens)  # (batch, 1 + freq * time, dim)
        taps: dict[str, Tensor] = {}
        depth = depth_of(wanted, len(self.blocks))
        # If no patch of the last block is read, it computes the class token only.
        n_last = None if {str(depth), "features"} & set(wanted) else 1
        for i in range(depth + 1):
            if i > 0:
                tokens = self.blocks[i - 1](tokens, n_last if i == depth else None)
            for layer in (str(i), "features") if i == len(self.blocks) else (str(i),):
                if layer in wanted:
                    taps[layer] = tokens[:, 1:].unflatten(1, grid).transpose(1, 2)  # (batch, time, freq, dim)
                taps[f"{layer}.cls"] = tokens[:, 0]
        if "logits" in wanted:
            taps["logits"] = self.head(tokens[:, 0])
        return {layer: taps[layer] for layer in wanted}

    def positions(self, n_freq: int, n_time: int) -> Tensor:
        """Return the position embeddings of the patches: (freq, time, dim)."""
        of_freq = self.freq_positions[:n_freq, None].expand(-1, n_time, -1)
        of_time = self.time_positions[None, :n_time].expand(n_freq, -1, -1)
        return torch.cat([of_freq, of_time], 2)


PARTS = {
    "model.": "",
    "modality_encoders.IMAGE.": "",
    "local_encoder.": "patch_embed.",
    "extra_tokens": "cls_token",
    "context_encoder.norm.": "pre_norm.",
    "fc_norm.": "head.0.",
    "head.weight": "head.1.weight",
    "head.bias": "head.1.bias",
}
"""What the authors' names begin with, in this order -> ours. Fine-tuned networks of fairseq have the classifier beside
the encoder, which is behind "model."."""

FAIRSEQ_FILTERS = "modality_encoders.IMAGE.local_encoder.proj.weight"


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, fairseq's or Hugging Face's, to those of `EAT`.

    Their table of positions stays beside, being a formula: some files hold 512 patches of it, some 768. So do the
    decoder and the teacher of pre-training.
    """
    renamed = {}
    for key, tensor in state_dict.items():
        for theirs, ours in PARTS.items():
            if key.startswith(theirs):
                key = ours + key.removeprefix(theirs)
                if theirs == "local_encoder." and tensor.ndim == 4:
                    tensor = tensor.transpose(2, 3).contiguous()  # (dim, 1, time, freq) -> (dim, 1, freq, time)
        renamed[key] = tensor
    return renamed


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`; the layout decides the epsilon."""
    is_fairseq = any(name.endswith(FAIRSEQ_FILTERS) for name in tensors)
    epsilon = {"head_eps": 1e-6} if is_fairseq else {}
    return {**transformer_sizes(tensors, {"dim": 768, **variant.network}, given), **epsilon}


EAT_MEL = replace(AST_MEL, mean=-4.268, scale=2 * 4.569, is_centred=True, multiple=PATCH)
"""AST's dialect, its statistics rounded as in the authors' code (`inference/inference.py`)."""

WINDOW_MS = 10_240.0  # 1024 frames, as in the authors' training


def row(checkpoint: str, **network: int) -> Variant:
    """Build the row of one published file."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=EAT_MEL,
        scene=Readout(WINDOW_MS, ("features",), "cls"),
        scene_hop_ms=WINDOW_MS / 2,
        timestamps=(Readout(WINDOW_MS, ("features",)),),
        framing="native",
    )


LARGE = {"dim": 1024, "depth": 24, "heads": 16}

VARIANTS = {
    "base_epoch30_finetune_AS2M": row("base_epoch30_finetune_AS2M", n_classes=527),
    "base_epoch30_pretrain": row("base_epoch30_pretrain"),
    "large_epoch20_finetune_AS2M": row("large_epoch20_finetune_AS2M", n_classes=527, **LARGE),
    "large_epoch20_pretrain": row("large_epoch20_pretrain", **LARGE),
    "SSLAM_AS2M_Finetuned": row("SSLAM_AS2M_Finetuned", n_classes=527),
    "SSLAM_pretrain": row("SSLAM_pretrain"),
    # Files of fairseq.
    "base_epoch10_finetune_AS2M": row("base_epoch10_finetune_AS2M", n_classes=527),
    "base_epoch10_finetune_AS20K": row("base_epoch10_finetune_AS20K", n_classes=527),
    "base_epoch10_pretrain": row("base_epoch10_pretrain"),
}

FAMILY = hear.Family(
    name="eat",
    network=EAT,
    variants=VARIANTS,
    anchors=(
        "patch_embed.proj.weight",
        "local_encoder.proj.weight",
        FAIRSEQ_FILTERS,
        f"model.{FAIRSEQ_FILTERS}",
    ),
    sizes=sizes,
    convert_state_dict=convert_state_dict,
    classifier=("head.1.bias",),
    reinitialised=("head.",),
    # The authors fine-tune and read the student of pre-training, not its average beside it.
    evaluated=re.compile(r"^(?!.*\b_ema\.)"),
)

load_model = hear.Loader(FAMILY).load_model
