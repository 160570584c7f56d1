"""BEATs: audio pre-training with acoustic tokenizers.

Chen, Wu, Wang, Liu, Tompkins, Chen, Che, Yu, Wei: BEATs: Audio Pre-Training with Acoustic Tokenizers, ICML 2023
(2212.09058). Code and weights of the authors: github.com/microsoft/unilm/tree/master/beats, MIT. The same network with
other weights: OpenBEATs (Bharadwaj et al., 2507.14129), NatureBEATs (the encoder of NatureLM-audio, Earth Species
Project), and PretrainedSED's, trained on AudioSet's strong labels (Schmid et al., 2409.09546).

A transformer over patches of 16 x 16 of a Kaldi log-mel spectrogram: post-norm with a scaled residual connection
(DeepNorm), a convolution over the tokens as position embedding, and a bias of attention by the distance of two tokens,
which every query scales by a gate of its own. Nothing depends on the length of the input.
"""

from __future__ import annotations

import math
import re
from collections.abc import Collection, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from . import hear
from .errors import WeightsError
from .hear import get_scene_embeddings, get_timestamp_embeddings
from .labels import audioset_names, audioset_strong_labels
from .networks.family import Beside, Readout, Variant, count_members
from .networks.frontend import KaldiMel
from .networks.fused import LayerNorm
from .networks.transformer import PATCH, Attention, Mlp, PatchEmbed, fuse_attention
from .networks.trunk import TimeAxis, Trunk, depth_of

__all__ = ["FAMILY", "VARIANTS", "BEATs", "get_scene_embeddings", "get_timestamp_embeddings", "load_model"]

MAX_DISTANCE = 800  # of relative positions, in tokens, in every published file; the authors' class has 1280
ROWS = 8  # of patches in 128 mel bands, which lie next to each other in the tokens
GATE_FEATURES = 8  # that a query is projected to, four for each of the two gates (WavLM, 2110.13900, section 3.2)
STRONG_HOP = 4  # mel frames of a step of strong labels: 40 ms (2409.09546, section 3)


# Relative positions


def buckets_by_distance(n_buckets: int, max_distance: int) -> Tensor:
    """Return the bucket of each distance from ``-max_distance`` to ``max_distance``, key minus query.

    Half of the buckets are for keys behind the query. Of either half, the first half is for single distances, the rest
    grows with the logarithm (T5, 1910.10683, section 2.1), in float32 as the authors compute it.
    """
    half = n_buckets // 2
    exact = half // 2
    distances = torch.arange(-max_distance, max_distance + 1, device="cpu")  # on "meta" it imports SymPy
    lengths = distances.abs()
    growth = torch.log(lengths.clamp(min=1).float() / exact) / math.log(max_distance / exact) * (half - exact)
    wide = (exact + growth.long()).clamp(max=half - 1)
    return torch.where(lengths < exact, lengths, wide) + half * (distances > 0)


class RelativePositions(nn.Module):
    """The bias of attention by the distance of two tokens, one number for each head; all blocks share it.

    Parameters
    ----------
    heads : of the attention
    n_buckets : of distances
    max_distance : from which on distances share a bucket, in tokens
    """

    buckets: Tensor

    def __init__(self, heads: int, n_buckets: int, max_distance: int) -> None:
        super().__init__()
        self.table = nn.Parameter(torch.randn(n_buckets, heads) * 0.02)
        self.register_buffer("buckets", buckets_by_distance(n_buckets, max_distance), persistent=False)

    def forward(self, n_tokens: int) -> Tensor:
        """Look up the bias of every key for every query: (heads, queries, keys)."""
        reach = len(self.buckets) // 2
        distances = torch.arange(1 - n_tokens, n_tokens, device=self.buckets.device).clamp(-reach, reach)
        by_distance = self.table[self.buckets[distances + reach]].T  # (heads, 2 * tokens - 1)
        # Window i begins with the distance i - (tokens - 1), which the first key has from the query of that number.
        return by_distance.unfold(1, n_tokens, 1).flip(1)


# Blocks


class GatedAttention(Attention):
    """Multi-head attention with a bias by distance that a gate of the query scales (WavLM, 2110.13900, section 3.2)."""

    def __init__(self, dim: int, heads: int) -> None:
        super().__init__(dim, heads)
        self.gate = nn.Linear(dim // heads, GATE_FEATURES)
        self.gate_scale = nn.Parameter(torch.ones(1, heads, 1, 1))

    def biased(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Attend: tokens (batch, tokens, dim), bias (heads, tokens, tokens) -> (batch, tokens, dim)."""
        batch, length, dim = tokens.shape
        qkv = self.qkv(tokens).view(batch, length, 3, self.heads, dim // self.heads)
        query, key, value = qkv.permute(2, 0, 3, 1, 4)  # (batch, heads, tokens, dim / heads) each
        # (batch, heads, tokens, tokens), the only tensor of this size: fused attention adds it to the scores.
        gated = (self.gates(query) * bias).to(query.dtype)
        mixed = F.scaled_dot_product_attention(query, key, value, gated)
        return self.proj(mixed.transpose(1, 2).reshape(batch, length, dim))

    def gates(self, query: Tensor) -> Tensor:
        """Compute what the bias of each query is multiplied by: (batch, heads, tokens, size) -> (..., tokens, 1)."""
        halves = self.gate(query).unflatten(-1, (2, -1)).sum(-1).sigmoid()  # (batch, heads, tokens, 2)
        update, reset = halves.chunk(2, -1)
        return update * (reset * self.gate_scale - 1) + 2


class DeepNormBlock(nn.Module):
    """Post-norm block whose residual connection is scaled up (DeepNorm, 2203.00555, section 3.2)."""

    def __init__(self, dim: int, heads: int, hidden: int, residual_scale: float) -> None:
        super().__init__()
        self.residual_scale = residual_scale
        self.attn = GatedAttention(dim, heads)
        self.norm1 = LayerNorm(dim)
        self.mlp = Mlp(dim, hidden)
        self.norm2 = LayerNorm(dim)

    def forward(self, tokens: Tensor, bias: Tensor) -> Tensor:
        """Refine tokens (batch, tokens, dim), given the bias of `RelativePositions`."""
        tokens = self.norm1(torch.add(self.attn.biased(tokens, bias), tokens, alpha=self.residual_scale))
        return self.norm2(torch.add(self.mlp(tokens), tokens, alpha=self.residual_scale))

    def initialise(self, gain: float) -> None:
        """Draw matrices, those of values, projections and MLP smaller by a gain (2203.00555, figure 2)."""
        for part, scale in zip(self.attn.qkv.weight.data.chunk(3), (1.0, 1.0, gain), strict=True):
            nn.init.xavier_normal_(part, scale)
        for linear in (self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.xavier_normal_(linear.weight, gain)
        for linear in (self.attn.qkv, self.attn.proj, self.mlp.fc1, self.mlp.fc2):
            nn.init.zeros_(linear.bias)


# Network


class BEATs(Trunk):
    """The network of the authors' `BEATs.py` and `backbone.py`; time runs slowest over its tokens, frequency fastest.

    The weight normalisation of the convolution over positions is part of its weights here. The authors' layer dropout
    is left out.

    Parameters
    ----------
    dim, depth, heads : of the transformer
    hidden : features of the MLP
    patch_dim : features of a patch before its normalisation
    conv_kernel, conv_groups : of the convolution over positions
    n_buckets, max_distance : of relative positions, see `RelativePositions`
    n_classes : logits; 0 for a network without a classifier
    strong : True for classes at every 40 ms as well, as PretrainedSED has them
    """

    min_frames = PATCH
    max_frames = None
    time_first = True

    def __init__(
        self,
        *,
        dim: int = 768,
        depth: int = 12,
        heads: int = 12,
        hidden: int = 3072,
        patch_dim: int = 512,
        conv_kernel: int = 128,
        conv_groups: int = 16,
        n_buckets: int = 320,
        max_distance: int = MAX_DISTANCE,
        n_classes: int = 0,
        strong: bool = False,
    ) -> None:
        super().__init__()
        grid = TimeAxis(PATCH, (PATCH - 1) / 2, None)
        steps = TimeAxis(STRONG_HOP, STRONG_OFFSET, None)
        self.layers = {
            **dict.fromkeys((*map(str, range(depth + 1)), "features"), grid),
            "0": replace(grid, receptive_field=PATCH * (conv_kernel // ROWS + 1)),
            **({"sequence": steps} if strong else {}),
            **({"framewise": steps} if strong and n_classes else {}),
            **({"logits": None} if n_classes else {}),
        }
        self.strong = strong
        self.patch_embed = PatchEmbed(patch_dim, (PATCH, PATCH), (PATCH, PATCH), bias=False)
        self.patch_norm = LayerNorm(patch_dim)
        self.patch_proj = nn.Linear(patch_dim, dim)
        self.pos_conv = nn.Conv1d(dim, dim, conv_kernel, padding=conv_kernel // 2, groups=conv_groups)
        self.norm = LayerNorm(dim)
        self.positions = RelativePositions(heads, n_buckets, max_distance)
        blocks = [DeepNormBlock(dim, heads, hidden, (2 * depth) ** 0.25) for _ in range(depth)]
        for block in blocks:
            block.initialise((8 * depth) ** -0.25)
        self.blocks = nn.ModuleList(blocks)
        self.head = nn.Linear(dim, n_classes) if n_classes else None
        # Without a gradient, as no recipe has a loss for it: processes that share a batch would wait for one.
        self.strong_head = nn.Linear(dim, n_classes).requires_grad_(False) if strong and n_classes else None

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Run as many blocks as the wanted layers need, see `Trunk.forward`.

        "features" is the last block. The authors average the logits of all tokens, which are those of the mean token.
        """
        tokens, grid = self._embed(frames)
        taps: dict[str, Tensor] = {}
        depth = depth_of(wanted, len(self.blocks))
        bias = self.positions(tokens.shape[1]) if depth else None
        for i in range(depth + 1):
            if i > 0:
                tokens = self.blocks[i - 1](tokens, bias)
            if str(i) in wanted:
                taps[str(i)] = tokens.unflatten(1, grid)  # (batch, time, freq, dim)
        taps["features"] = tokens.unflatten(1, grid)
        if {"sequence", "framewise", "logits"} & set(wanted):
            taps |= self._classify(tokens, frames.shape[2])
        return {layer: taps[layer] for layer in wanted}

    def _embed(self, mel: Tensor) -> tuple[Tensor, tuple[int, int]]:
        """Embed a mel (batch, n_mels, frames): -> tokens (batch, time * freq, dim), and (time, freq)."""
        patches = self.patch_embed(mel).transpose(1, 2)  # (batch, time, freq, patch_dim)
        tokens = self.patch_proj(self.patch_norm(patches.flatten(1, 2)))
        # An even kernel with half of it as padding gives one position too many: the last.
        positions = self.pos_conv(tokens.transpose(1, 2))[..., :-1].transpose(1, 2)
        return self.norm(tokens + F.gelu(positions)), (patches.shape[1], patches.shape[2])

    def _classify(self, tokens: Tensor, n_frames: int) -> dict[str, Tensor]:
        """Compute the layers that lie behind the last block: of PretrainedSED over 40 ms each, else of all tokens."""
        if not self.strong:
            return {"logits": self.head(tokens.mean(1))} if self.head is not None else {}
        sequence = at_steps(tokens, n_steps(n_frames))
        taps = {"sequence": sequence.unsqueeze(2)}  # (batch, time, 1, dim)
        if self.head is not None and self.strong_head is not None:
            taps["framewise"] = self.strong_head(sequence).unsqueeze(2)  # (batch, time, 1, classes)
            taps["logits"] = self.head(sequence.mean(1))
        return taps


# Strong labels

STRONG_OFFSET = 0.75
"""Centre of the first step, in frames: 20 ms after the start of a clip, whose first frame has its centre at 12.5 ms."""


def n_steps(n_frames: int) -> int:
    """Count the steps of 40 ms of a clip: 250 for the 998 frames of 10 s, which windows of 25 ms leave of 1000."""
    return (n_frames + 2) // STRONG_HOP


def at_steps(tokens: Tensor, steps: int) -> Tensor:
    """Average tokens (batch, tokens, dim) over steps of equal length: (batch, steps, dim).

    PretrainedSED averages over the flat sequence (adaptive average pooling), so that the frequencies of one time lie in
    different steps, and neighbours share a token where the lengths do not divide each other.
    """
    n_tokens = tokens.shape[1]
    edges = torch.arange(steps + 1, device=tokens.device) * n_tokens
    first, last = edges[:-1] // steps, -(-edges[1:] // steps)  # exclusive
    number = torch.arange(n_tokens, device=tokens.device)
    # Not PyTorch's pooling, which Apple's GPUs have for lengths that divide each other alone.
    members = (number >= first.unsqueeze(1)) & (number < last.unsqueeze(1))  # (steps, tokens)
    return members.to(tokens.dtype) @ tokens / (last - first).unsqueeze(1)


# Files

PARTS = {
    "layer_norm.": "patch_norm.",
    "post_extract_proj.": "patch_proj.",
    "encoder.layer_norm.": "norm.",
    "encoder.pos_conv.0.": "pos_conv.",
    "encoder.layers.": "blocks.",
    "predictor.": "head.",
    "weak_head.": "head.",
}
"""Beginnings of the authors' keys -> ours."""

PARTS_OF_BLOCKS = {
    ".self_attn_layer_norm.": ".norm1.",
    ".final_layer_norm.": ".norm2.",
    ".self_attn.q_proj.": ".attn.query.",
    ".self_attn.k_proj.": ".attn.key.",
    ".self_attn.v_proj.": ".attn.value.",
    ".self_attn.out_proj.": ".attn.proj.",
    ".self_attn.grep_linear.": ".attn.gate.",
    ".self_attn.grep_a": ".attn.gate_scale",
    ".fc1.": ".mlp.fc1.",
    ".fc2.": ".mlp.fc2.",
}

FILTERS = "patch_embedding.weight"
IN_SED = "model.model."  # before the network in PretrainedSED's files, but not before its classifiers
TABLE = re.compile(r"encoder\.layers\.\d+\.self_attn\.relative_attention_bias\.weight")
NORMALISED = (("weight_g", "weight_v"), ("parametrizations.weight.original0", "parametrizations.weight.original1"))
"""Names of length and direction of a weight in PyTorch's older and newer weight normalisation."""


def convert_state_dict(state_dict: dict[str, Tensor], variant: Variant) -> dict[str, Tensor]:
    """Rename the tensors of the authors' files, and of others with the same network, to those of `BEATs`.

    Raises
    ------
    WeightsError : blocks have tables of relative positions of their own
    """
    if FILTERS not in state_dict and f"{IN_SED}{FILTERS}" not in state_dict:
        return dict(state_dict)
    renamed: dict[str, Tensor] = {}
    tables: list[Tensor] = []
    for key, tensor in state_dict.items():
        name = key.removeprefix(IN_SED)
        if TABLE.fullmatch(name):
            tables.append(tensor)  # repeated for every block, or once
        elif name == FILTERS:
            renamed["patch_embed.proj.weight"] = tensor.mT  # theirs has time first
        else:
            renamed[_renamed(name)] = tensor
    if any(not table.equal(tables[0]) for table in tables):
        raise WeightsError("its blocks have different tables of relative positions, which this network shares")
    if tables:
        renamed["positions.table"] = tables[0]
    return fuse_attention(with_weight_of_positions(renamed))


def _renamed(name: str) -> str:
    """Rename one key of the authors'."""
    for theirs, ours in PARTS.items():
        if name.startswith(theirs):
            name = ours + name.removeprefix(theirs)
            break
    if name.startswith("blocks."):
        for theirs, ours in PARTS_OF_BLOCKS.items():
            name = name.replace(theirs, ours)
    return name


def with_weight_of_positions(state_dict: dict[str, Tensor]) -> dict[str, Tensor]:
    """Multiply out the weight normalisation of the convolution over positions: one length for each tap of a kernel."""
    weights = dict(state_dict)
    for length, direction in NORMALISED:
        g, v = weights.get(f"pos_conv.{length}"), weights.get(f"pos_conv.{direction}")
        if g is not None and v is not None and g.ndim == v.ndim == 3 and g.shape[2] == v.shape[2]:
            del weights[f"pos_conv.{length}"], weights[f"pos_conv.{direction}"]
            g, v = g.float(), v.float()
            weights["pos_conv.weight"] = v * (g / v.norm(dim=(0, 1), keepdim=True))
    return weights


def sizes(tensors: Mapping[str, Tensor], variant: Variant, given: Mapping[str, Any]) -> dict[str, Any]:
    """Read the arguments of the network from its tensors, see `Family.sizes`."""
    dim, patch_dim = tensors["patch_proj.weight"].shape
    _, of_group, conv_kernel = tensors["pos_conv.weight"].shape
    n_buckets, heads = tensors["positions.table"].shape
    return {
        "dim": dim,
        "depth": count_members(tensors, "blocks."),
        "heads": heads,
        "hidden": tensors["blocks.0.mlp.fc1.weight"].shape[0],
        "patch_dim": patch_dim,
        "conv_kernel": conv_kernel,
        "conv_groups": dim // of_group,
        "n_buckets": n_buckets,
    }


FIXED: dict[str, Any] = {
    "input_patch_size": PATCH, "conv_bias": False, "activation_fn": "gelu", "layer_norm_first": False,
    "deep_norm": True, "relative_position_embedding": True, "gru_rel_pos": True,
}  # fmt: skip
"""Entries of ``cfg`` in the authors' files that this network has built in."""


def beside(entries: Mapping[str, Mapping[Any, Any]]) -> Beside:
    """Read what the authors' files say beside their tensors: ``cfg``, and the order of the classes in ``label_dict``.

    The order is not that of AudioSet's list (github.com/microsoft/unilm/issues/1012).

    Raises
    ------
    WeightsError : they describe another network
    """
    cfg, classes = entries.get("cfg", {}), entries.get("label_dict", {})
    for name, value in FIXED.items():
        if cfg.get(name, value) != value:
            raise WeightsError(f"its cfg has {name} = {cfg[name]!r}, but this network has {value!r}")
    distance = cfg.get("max_distance", MAX_DISTANCE)
    mean, std = cfg.get("fbank_mean"), cfg.get("fbank_std")  # OpenBEATs'
    ordered = [str(classes.get(number)) for number in range(len(classes))]
    return Beside(
        network={} if distance == MAX_DISTANCE else {"max_distance": distance},
        normalisation=None if mean is None or std is None else (mean, std),
        labels=audioset_names(ordered) if set(classes) == set(range(len(classes))) and classes else None,
    )


# Variants

BEATS_MEL = KaldiMel(
    sample_rate=16_000,
    n_fft=512,
    win_length=400,
    hop_length=160,
    n_mels=128,
    fmin=20.0,
    fmax=8_000.0,
    preemphasis=0.97,
    # Over 16-bit integers; twice the standard deviation as in AST (authors' BEATs.py, preprocess).
    mean=15.41663,
    scale=2 * 6.55582,
    window_power=0.85,
    full_scale=32768.0,
)
"""Kaldi's features as they come, of AudioSet."""


def row(checkpoint: str, timestamps: str = "features", **network: Any) -> Variant:
    """Build the row of one network: the mean over all tokens, of windows of 10 s, as long as AudioSet's clips."""
    return Variant(
        checkpoint=checkpoint,
        network=network,
        frontend=BEATS_MEL,
        scene=Readout(10_000.0, ("features",)),
        scene_hop_ms=5_000.0,
        timestamps=(Readout(1_000.0, (timestamps,)),),
        framing="native",
        labels=audioset_strong_labels if timestamps == "sequence" else None,
    )


LARGE: dict[str, Any] = {"dim": 1024, "depth": 24, "heads": 16, "hidden": 4096}
"""OpenBEATs Large (2507.14129); a file says its own sizes."""

ITERATIONS = ("iter3_plus_AS2M", "iter3_plus_AS20K", "iter3", "iter2", "iter1")
"""The authors' pre-trained networks, the best first."""

VARIANTS = {
    **{name: row(name) for name in ITERATIONS},
    **{
        f"{name}_finetuned_on_AS2M_{copy}": row(f"{name}_finetuned_on_AS2M_{copy}", n_classes=527)
        for name in ITERATIONS
        for copy in ("cpt2", "cpt1")
    },
    "strong_1": row("strong_1", "sequence", n_classes=447, strong=True),
    "NatureBEATs": row("NatureBEATs"),
    "OpenBEATs-Large-i2": row("OpenBEATs-Large-i2", **LARGE),
    # For the other files of OpenBEATs, whose addresses are not known here.
    "openbeats_base": row(""),
    "openbeats_large": row("", **LARGE),
}

FAMILY = hear.Family(
    name="beats",
    network=BEATs,
    variants=VARIANTS,
    anchors=("patch_norm.weight", FILTERS, f"{IN_SED}{FILTERS}"),
    convert_state_dict=convert_state_dict,
    sizes=sizes,
    beside=beside,
    # Bookkeeping of OpenBEATs' masks.
    unused=("patch_embedding_pad.weight", "raw2fbank_pad.weight"),
    classifier=("head.bias",),
    reinitialised=("head.", "strong_head."),
)

load_model = hear.Loader(FAMILY).load_model
