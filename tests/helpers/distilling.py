"""A corpus, a teacher and students that take no time."""

from collections.abc import Iterator
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor

from hear_transformers.training.corpus.stream import PHONES, Batch, Part
from hear_transformers.training.distil import students
from hear_transformers.training.distil.recipe import DistilRecipe

SMALL = DistilRecipe(
    steps=6,
    steps_per_score=2,
    scene_frames=128,
    speech_frames=64,
    note_frames=64,
    scene_crops=(32,),
    speech_crops=(16, 32),
    note_crops=(24,),
    pool=2,
    statistics_steps=2,
    held_out=2,
    warm_up=2,
)

SIZES = {
    "tiny": {"dim": 24, "depth": 2, "heads": 2},
    "mast_mini": {"dim": 16, "depths": (1, 1, 1, 1), "n_classes": 5},
    "atgnn_mini": {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "label_depths": (1, 1, 1, 1), "n_classes": 5},
}


def small(student: students.Student, sizes: dict) -> students.Student:
    variant = replace(student.variant, network={**student.variant.network, **sizes})
    return replace(student, family=replace(student.family, variants={student.name: variant}))


def part(rng: np.random.Generator, labels: dict, n: int = 2) -> Part:
    return Part(None, rng.normal(-0.5, 0.5, (n, 128, 40)).astype(np.float16), labels)


def corpus(seed: int, steps: range) -> Iterator[Batch]:
    """Stream noise with labels."""
    for step in steps:
        rng = np.random.default_rng((seed, step))
        yield Batch(
            step,
            scenes=part(rng, {"events": rng.random((2, 40, 3)) < 0.2}),
            speech=part(rng, {"phones": rng.integers(0, len(PHONES), (2, 40))}),
            notes=part(rng, {"pitches": rng.random((2, 40, 88)) < 0.1}),
        )


class Loudness:
    """Knows how loud each octave is."""

    name, licence, hears = "loudness", "Apache-2.0", ("scenes",)

    def targets(self, mels: Tensor) -> dict[str, Tensor]:
        means = mels.float().mean(2)  # (clips, n_mels)
        return {"logits": means[:, :5], "penultimate": means[:, 5:12]}


CPU = torch.device("cpu")
