"""The second pass over the shards: the teacher turns log-mels of scenes into logits and features."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from ... import efficientat
from ...embedding.embedder import Embedder
from .shards import MEL_BATCH, Arrays

TEACHER = "mn04_as"
LAYERS = ("logits", "features")  # AudioSet's 527 classes, and the 384 features before the teacher's head


def load_teacher(path: str | os.PathLike[str] = "") -> Embedder:
    """Load the teacher from its authors' file; without a path, download the published one."""
    return efficientat.load_model(path, TEACHER)


@torch.no_grad()
def compute_targets(teacher: Embedder, mels: NDArray[np.generic]) -> Arrays:
    """Run the teacher on log-mel spectrograms: (clips, n_mels, frames) -> (clips, size) float16 per layer."""
    batches = [torch.from_numpy(mels[i : i + MEL_BATCH]).float() for i in range(0, len(mels), MEL_BATCH)]
    outputs = [teacher.trunk(batch, LAYERS) for batch in batches]
    return {layer: torch.cat([output[layer] for output in outputs]).half().numpy() for layer in LAYERS}
