"""Every number of the training of the small networks, in one place."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

import torch

from .. import recipes
from ..corpus.mels import FRAMES

KINDS = ("scenes", "speech", "notes")
"""Kinds of clips of the corpus, each with labels of its own."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DistilRecipe:
    """How a network is trained, from the seed of its data to the last step.

    Attributes
    ----------
    student : a key of `students.STUDENTS`
    seed : of data, initial weights and batches
    steps : optimiser steps, each on one batch of every kind; a multiple of `steps_per_score`
    steps_per_score : steps between two scores on held-out clips
    scene_frames, speech_frames, note_frames : mel frames in a batch of each kind, whatever the length of its crops
    scene_crops, speech_crops, note_crops : mel frames of a crop, drawn per batch; digits are as short as 0.25 s
    reuse : times that the frames of a clip are trained on, on average
    pool : steps for which a clip stays in memory
    statistics_steps : steps whose clips say how the targets are distributed
    held_out : clips of each kind that are never trained on
    learning_rate : peak, after `warm_up` steps; a half cosine then leads to 0
    betas, weight_decay : of AdamW
    gradient_norm : gradients are clipped to this norm
    words : whether a network that learnt from people says what it hears in speech, see `corpus.words`
    weights : of losses by the name of their target, where not 1
    start : SHA-256 of the weights that training begins with; empty for random ones
    """

    student: str = "tiny"
    seed: int = 0
    steps: int = 4000
    steps_per_score: int = 100
    scene_frames: int = 4096
    speech_frames: int = 4096
    note_frames: int = 2048
    scene_crops: tuple[int, ...] = (112, 144, 176, 200)
    speech_crops: tuple[int, ...] = (32, 48, 64, 96, 128, 176)
    note_crops: tuple[int, ...] = (64, 96, 128, 176)
    reuse: int = 2
    pool: int = 48
    statistics_steps: int = 48
    held_out: int = 64
    learning_rate: float = 1e-3
    warm_up: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    gradient_norm: float = 1.0
    words: bool = False
    weights: tuple[tuple[str, float], ...] = ()
    start: str = ""

    def frames(self, kind: str) -> int:
        """Return the mel frames of one of `KINDS` in a batch."""
        return {"scenes": self.scene_frames, "speech": self.speech_frames, "notes": self.note_frames}[kind]

    def crops(self, kind: str) -> tuple[int, ...]:
        """Return the lengths of crops of one of `KINDS`."""
        return {"scenes": self.scene_crops, "speech": self.speech_crops, "notes": self.note_crops}[kind]

    def fresh(self, kind: str) -> int:
        """Return the clips of one of `KINDS` that each step brings into memory."""
        return max(1, round(self.frames(kind) / (FRAMES * self.reuse)))

    def settings(self) -> dict[str, Any]:
        """Return what must stay the same in a run that is resumed, ready for JSON."""
        return {name: _plain(value) for name, value in asdict(self).items()}

    def training(self, device: torch.device) -> recipes.Recipe:
        """Return the recipe for the training loop, to which an epoch is what lies between two scores.

        On a CPU it trains in float32 even where that has instructions for bfloat16: for `mast_mini` the casts cost more
        than the products gain.
        """
        return recipes.Recipe(
            epochs=max(1, self.steps // self.steps_per_score),
            batch_size=1,  # not read: batches are counted in frames
            learning_rate=self.learning_rate,
            optimiser="adamw",
            betas=self.betas,
            weight_decay=self.weight_decay,
            decay_vectors=False,
            warm_up_steps=self.warm_up,
            decay="cosine",
            gradient_norm=self.gradient_norm,
            precision="auto" if device.type == "cuda" else "float32",
        )


RECIPES = {
    # The weights of the last run of the embedded network, weights/tiny.md.
    "tiny": DistilRecipe(
        student="tiny", steps=4000, words=True, weights=(("words", 3.0), ("phones", 3.0), ("pitches", 2.0))
    ),
    # Seven minutes of a card beside two other runs; words are this network's weak side.
    "mast_mini": DistilRecipe(
        student="mast_mini",
        steps=1600,
        scene_frames=8192,
        speech_frames=8192,
        note_frames=4096,
        weights=(("phones", 2.0),),
    ),
    "atgnn_mini": DistilRecipe(student="atgnn_mini", steps=2200),
}
"""The recipe of each student: where nothing else is said, as many steps as two cores with AVX2 take in two hours."""


def _plain(value: Any) -> Any:
    """Return tuples as lists, which JSON has instead."""
    return [_plain(each) for each in value] if isinstance(value, tuple) else value


def from_settings(settings: Mapping[str, Any]) -> DistilRecipe:
    """Return the recipe with these settings, see `DistilRecipe.settings`."""
    return DistilRecipe(**{name: _tuples(value) for name, value in settings.items()})


def _tuples(value: Any) -> Any:
    """Return lists as tuples."""
    return tuple(_tuples(each) for each in value) if isinstance(value, list) else value
