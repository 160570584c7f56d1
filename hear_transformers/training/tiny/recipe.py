"""Every number of the training of the embedded model, in one place."""

from __future__ import annotations

from dataclasses import dataclass

from .. import recipes


@dataclass(frozen=True, slots=True, kw_only=True)
class TinyRecipe:
    """How the embedded model is made, from the seed of its data to the last step.

    Attributes
    ----------
    seed : of data, initial weights and batches
    clips_per_shard : clips of two seconds in a shard
    scene_shards, speech_shards : numbers of shards, counted from shard 0; others in the folder are ignored
    steps : optimiser steps, each on one batch of scenes and one of speech
    scene_frames, speech_frames : mel frames in a batch of each kind, whatever the length of its crops
    scene_crops, speech_crops : mel frames of a crop, drawn per batch; digits are as short as 0.25 s
    learning_rate : peak, after `warm_up` steps; a half cosine then leads to 0
    betas, weight_decay : of AdamW
    gradient_norm : gradients are clipped to this norm
    logits_weight, features_weight, phones_weight : weights of the three losses
    """

    seed: int = 0
    clips_per_shard: int = 500
    scene_shards: int = 60
    speech_shards: int = 50
    steps: int = 2400
    scene_frames: int = 6144
    speech_frames: int = 6144
    scene_crops: tuple[int, ...] = (112, 144, 176, 200)
    speech_crops: tuple[int, ...] = (32, 48, 64, 96, 128, 176)
    learning_rate: float = 1e-3
    warm_up: int = 100
    betas: tuple[float, float] = (0.9, 0.98)
    weight_decay: float = 0.05
    gradient_norm: float = 1.0
    logits_weight: float = 1.0
    features_weight: float = 1.0
    phones_weight: float = 1.0

    def training(self) -> recipes.Recipe:
        """Return the recipe for the training loop; every step counts as an epoch."""
        return recipes.Recipe(
            epochs=self.steps,
            batch_size=1,  # not read: batches are counted in frames
            learning_rate=self.learning_rate,
            optimiser="adamw",
            betas=self.betas,
            weight_decay=self.weight_decay,
            decay_vectors=False,
            warm_up_steps=self.warm_up,
            decay="cosine",
            gradient_norm=self.gradient_norm,
            precision="auto",
        )
