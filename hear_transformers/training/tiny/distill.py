"""The training of the embedded model: the teacher's outputs for scenes, and the phone of every frame of speech."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...files import atomic
from ...tiny import TIME_STRIDE, VARIANTS, TinyAudioTransformer
from ..loop import Objective, Processes, TrainingRun
from .recipe import TinyRecipe

SMALLEST_VARIANCE = 1e-6  # keeps the gradient of a standard deviation finite


class Heads(nn.Module):
    """Linear maps from the network's outputs to the targets; not part of the shipped model.

    Parameters
    ----------
    dim : features of a token
    n_logits, n_features : of the teacher
    n_phones : number of phone classes
    """

    def __init__(self, dim: int, n_logits: int, n_features: int, n_phones: int) -> None:
        super().__init__()
        self.logits = nn.Linear(3 * dim, n_logits)
        self.features = nn.Linear(3 * dim, n_features)
        self.phones = nn.Linear(dim, n_phones)


def summarise(taps: dict[str, Tensor]) -> Tensor:
    """Concatenate class token, mean and standard deviation over time of the last layer: (batch, 3 * dim)."""
    frames = taps["features"].squeeze(2)  # (batch, time, dim)
    deviation = (frames.var(1, correction=0) + SMALLEST_VARIANCE).sqrt()
    return torch.cat([taps["features.cls"], frames.mean(1), deviation], 1)


def scene_losses(trunk: nn.Module, heads: Heads, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Compute the mean squared errors against the teacher's standardised logits and features."""
    mels, logits, features = batch
    embeddings = summarise(trunk(mels, ("features", "features.cls")))
    return {
        "logits": F.mse_loss(heads.logits(embeddings).float(), logits),
        "features": F.mse_loss(heads.features(embeddings).float(), features),
    }


def speech_losses(trunk: nn.Module, heads: Heads, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Compute the cross-entropy of the phone at the centre of every token."""
    mels, phones = batch
    tokens = trunk(mels, ("features",))["features"].squeeze(2)
    scores = heads.phones(tokens).float()  # (batch, tokens, phones)
    targets = phones[:, ::TIME_STRIDE]  # (batch, tokens)
    return {"phones": F.cross_entropy(scores.flatten(0, 1), targets.flatten())}  # one row per token


class Distillation(Objective):
    """The network, its heads, and their losses on both kinds of batches.

    Parameters
    ----------
    recipe : weights of the losses
    n_logits, n_features, n_phones : see `Heads`
    """

    def __init__(self, recipe: TinyRecipe, n_logits: int, n_features: int, n_phones: int) -> None:
        super().__init__()
        self.recipe = recipe
        self.trunk = TinyAudioTransformer(**VARIANTS["tiny"].network)
        self.heads = Heads(self.trunk.norm.normalized_shape[0], n_logits, n_features, n_phones)

    def forward(self, batch: tuple[tuple[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]) -> dict[str, Tensor]:
        """Compute the weighted losses of a batch of scenes and one of speech, see `batches.batches`."""
        scenes, speech = batch
        losses = scene_losses(self.trunk, self.heads, scenes) | speech_losses(self.trunk, self.heads, speech)
        return {name: getattr(self.recipe, f"{name}_weight") * loss for name, loss in losses.items()}


def new_run(recipe: TinyRecipe, n_logits: int, n_features: int, n_phones: int) -> TrainingRun:
    """Start a run on the CPU, with weights drawn from the recipe's seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(recipe.seed)
        objective = Distillation(recipe, n_logits, n_features, n_phones)
    return TrainingRun(
        objective,
        recipe.training(),
        steps_per_epoch=1,
        seed=recipe.seed,
        processes=Processes(0, 1, torch.device("cpu")),
        settings={name: list(value) if isinstance(value, tuple) else value for name, value in asdict(recipe).items()},
    )


def export(trunk: nn.Module, path: Path) -> None:
    """Write the network alone, in 16 bits, atomically."""
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in trunk.state_dict().items()
    }
    with atomic(path) as file:
        file.write(safetensors.torch.save(state))
