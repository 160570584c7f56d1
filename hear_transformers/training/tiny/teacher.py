"""What the teacher says about scenes: the second pass over the shards, log-mel in, logits and features out."""

from __future__ import annotations

import os

import numpy as np
import torch
from numpy.typing import NDArray

from ... import efficientat
from ...embedding.embedder import Embedder
from .shards import MEL_BATCH, Arrays

TEACHER = "mn04_as"
LAYERS = ("logits", "features")  # AudioSet's 527 classes, and the 384 numbers before the teacher's head


def load_teacher(path: str | os.PathLike[str] = "") -> Embedder:
    """Load the teacher from a file of its authors; without a path, the published one (downloaded at first use)."""
    return efficientat.load_model(path, TEACHER)


@torch.no_grad()
def targets(teacher: Embedder, mels: NDArray[np.generic]) -> Arrays:
    """Run the teacher on log-mel spectrograms: (clips, n_mels, frames) -> one (clips, size) float16 for each layer."""
    batches = [torch.from_numpy(mels[i : i + MEL_BATCH]).float() for i in range(0, len(mels), MEL_BATCH)]
    outputs = [teacher.trunk(batch, LAYERS) for batch in batches]
    return {layer: torch.cat([output[layer] for output in outputs]).half().numpy() for layer in LAYERS}
