"""The training of the embedded model: what the teacher hears in scenes, and which phone sounds when in speech."""

from __future__ import annotations

import csv
import math
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import safetensors.torch
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from ...errors import WeightsError
from ...tiny import TIME_STRIDE, VARIANTS, TinyAudioTransformer
from ...writers import atomic
from .batches import Scenes, Speech, batches
from .recipe import Recipe

Losses = dict[str, float]

SMALLEST_VARIANCE = 1e-6  # where the gradient of a standard deviation would be infinite


class Heads(nn.Module):
    """Linear maps from what the network gives to what it is taught; not part of the shipped model.

    Parameters
    ----------
    dim : features of a token
    n_logits, n_features : of the teacher
    n_phones : that are told apart
    """

    def __init__(self, dim: int, n_logits: int, n_features: int, n_phones: int) -> None:
        super().__init__()
        self.logits = nn.Linear(3 * dim, n_logits)
        self.features = nn.Linear(3 * dim, n_features)
        self.phones = nn.Linear(dim, n_phones)


def summary(taps: dict[str, Tensor]) -> Tensor:
    """Join class token, mean and standard deviation over time of the last layer: (batch, 3 * dim)."""
    frames = taps["features"].squeeze(2)
    deviation = (frames.var(1, correction=0) + SMALLEST_VARIANCE).sqrt()
    return torch.cat([taps["features.cls"], frames.mean(1), deviation], 1)


def scene_losses(trunk: nn.Module, heads: Heads, batch: tuple[Tensor, Tensor, Tensor]) -> dict[str, Tensor]:
    """Compare with the teacher: mean squared error of its standardised logits and features."""
    mels, logits, features = batch
    embeddings = summary(trunk(mels, ("features", "features.cls")))
    return {
        "logits": F.mse_loss(heads.logits(embeddings).float(), logits),
        "features": F.mse_loss(heads.features(embeddings).float(), features),
    }


def speech_losses(trunk: nn.Module, heads: Heads, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
    """Name the phone at the centre of every token."""
    mels, phones = batch
    tokens = trunk(mels, ("features",))["features"].squeeze(2)
    scores = heads.phones(tokens).float()
    return {"phones": F.cross_entropy(scores.flatten(0, 1), phones[:, ::TIME_STRIDE].flatten())}


def optimiser(trunk: nn.Module, heads: Heads, recipe: Recipe) -> torch.optim.AdamW:
    """Make AdamW (Loshchilov and Hutter, 1711.05101) that decays matrices alone."""
    parameters = [*trunk.parameters(), *heads.parameters()]
    groups = [
        {"params": [p for p in parameters if p.ndim > 1], "weight_decay": recipe.weight_decay},
        {"params": [p for p in parameters if p.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=recipe.learning_rate, betas=recipe.betas)


def learning_rate(recipe: Recipe, step: int) -> float:
    """Give the rate of a step: linear warm-up, then a half cosine down to 0."""
    warm = min(1.0, (step + 1) / recipe.warm_up)
    return recipe.learning_rate * warm * 0.5 * (1 + math.cos(math.pi * step / recipe.steps))


@dataclass(slots=True)
class Run:
    """A training run: the networks, the optimiser, and how many steps are done."""

    recipe: Recipe
    trunk: TinyAudioTransformer
    heads: Heads
    optimiser: torch.optim.AdamW
    step: int = 0

    @classmethod
    def fresh(cls, recipe: Recipe, n_logits: int, n_features: int, n_phones: int) -> Run:
        """Start from the seed of the recipe."""
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(recipe.seed)
            trunk = TinyAudioTransformer(**VARIANTS["tiny"].network)
            heads = Heads(trunk.norm.normalized_shape[0], n_logits, n_features, n_phones)
        return cls(recipe, trunk, heads, optimiser(trunk, heads, recipe))

    def _parts(self) -> dict[str, Any]:
        return {"trunk": self.trunk, "heads": self.heads, "optimiser": self.optimiser}

    def save(self, path: Path) -> None:
        """Write a checkpoint that is either complete or not there."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        with atomic(path) as file:
            torch.save({"step": self.step, "recipe": asdict(self.recipe), **states}, file)

    def restore(self, path: Path) -> None:
        """Go on where a checkpoint ends.

        Raises
        ------
        WeightsError : the checkpoint was made with another recipe
        """
        states = torch.load(path, weights_only=True)
        if states["recipe"] != asdict(self.recipe):
            raise WeightsError(f"{path} was made with another recipe; use it, or choose an empty --out folder")
        for name, part in self._parts().items():
            part.load_state_dict(states[name])
        self.step = states["step"]

    def advance(self, scenes: tuple[Tensor, Tensor, Tensor], speech: tuple[Tensor, Tensor]) -> Losses:
        """Take one step."""
        recipe = self.recipe
        for group in self.optimiser.param_groups:
            group["lr"] = learning_rate(recipe, self.step)
        self.trunk.train()
        self.optimiser.zero_grad()
        with torch.autocast("cpu", torch.bfloat16):
            losses = scene_losses(self.trunk, self.heads, scenes) | speech_losses(self.trunk, self.heads, speech)
        total = sum(getattr(recipe, f"{name}_weight") * loss for name, loss in losses.items())
        total.backward()
        nn.utils.clip_grad_norm_([*self.trunk.parameters(), *self.heads.parameters()], recipe.gradient_norm)
        self.optimiser.step()
        self.step += 1
        return {name: loss.item() for name, loss in losses.items()}


def train(run: Run, scenes: Scenes, speech: Speech) -> Iterator[Losses]:
    """Take the steps that are left: yields the losses of each."""
    for scene_part, speech_part in batches(scenes, speech, run.recipe, range(run.step, run.recipe.steps)):
        yield run.advance(scene_part, speech_part)


class Log:
    """The losses of a run as CSV, one row per step.

    Parameters
    ----------
    path : of the file; rows from step `step` on, which a run that goes on takes again, are dropped
    step : steps done
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        lines = path.read_text().splitlines() if path.exists() else []
        kept = lines[:1] + [line for line in lines[1:] if int(line.partition(",")[0]) <= step]
        path.write_text("".join(f"{line}\n" for line in kept))
        self._has_header = bool(kept)

    def add(self, step: int, losses: Losses) -> None:
        """Append the losses after a step."""
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._has_header:
                writer.writerow(["step", *losses])
                self._has_header = True
            writer.writerow([step, *(f"{loss:.5f}" for loss in losses.values())])


def export(trunk: nn.Module, path: Path) -> None:
    """Write the network alone, in 16 bits, as a file that is either complete or not there."""
    state = {
        name: (tensor.half() if tensor.is_floating_point() else tensor).contiguous()
        for name, tensor in trunk.state_dict().items()
    }
    with atomic(path) as file:
        file.write(safetensors.torch.save(state))
