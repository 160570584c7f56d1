"""Weights and audio of the golden answers (tests/data/golden): both follow a rule, so that no checkpoint is needed."""

import json
import math
import re
import zlib
from collections.abc import Container, Iterable
from dataclasses import replace
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from hear_transformers import hear
from hear_transformers.embedding.embedder import Embedder

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
COUNTER = "num_batches_tracked"


def by_size(networks: Iterable[str], small: Container[str]) -> list:
    """Mark small networks, which run once more with the oldest instructions, as numeric, and the others as slow."""
    return [pytest.param(name, marks=pytest.mark.numeric if name in small else pytest.mark.slow) for name in networks]


def golden_state_dict(path: Path) -> dict[str, Tensor]:
    """Fill the state dict that a golden file lists, under the authors' names.

    Its "scale" are factors for the names that a pattern is in, so that no signal dies on its way and a wrong epsilon
    shows; "tie" are patterns and what replaces them, for tensors that are equal; what is in "keep" is left out, as the
    network builds it itself.
    """
    listing = json.loads(path.read_text())
    rules = listing.get("meta", {})
    filled = {}
    for name, shape in listing["state_dict"]:
        named = name
        for pattern, replacement in rules.get("tie", ()):
            named = re.sub(pattern, replacement, named)
        if not any(re.search(pattern, named) for pattern in rules.get("keep", ())):
            factors = [factor for pattern, factor in rules.get("scale", ()) if re.search(pattern, named)]
            filled[name] = golden_tensor(named, tuple(shape), listing["salt"]) * math.prod(factors)
    return filled


# Those of one network are kept: a family shares most of them, and drawing 90 million numbers takes 2 s.
@lru_cache(maxsize=200)
def golden_tensor(name: str, shape: tuple[int, ...], salt: str = "") -> Tensor:
    """Make the tensor that belongs to a name: normal noise seeded by the name, scaled to suit its part in a network."""
    if name.endswith(COUNTER):
        return torch.zeros(shape, dtype=torch.int64)
    seed = zlib.crc32((salt + name).encode())
    # The answers were made with numpy's legacy generator, whose numbers never change.
    noise = np.random.RandomState(seed).standard_normal(shape).astype(np.float32)
    if name.endswith("running_var"):
        values = 0.5 + np.abs(noise)
    elif name.endswith("running_mean"):
        values = 0.1 * noise
    elif "pos_embed" in name or "position_embeddings" in name or name.endswith("_token"):
        values = 0.2 * noise
    elif noise.ndim >= 2:
        values = noise / np.sqrt(noise.size / len(noise))
    elif name.endswith("weight"):
        values = 1 + 0.1 * noise
    else:
        values = 0.1 * noise
    return torch.from_numpy(np.asarray(values, np.float32))


def filled(module: nn.Module) -> nn.Module:
    """Give every parameter and statistic of a module the tensor that belongs to its name; ready for inference."""
    state_dict = module.state_dict()
    module.load_state_dict({key: golden_tensor(key, tuple(value.shape)) for key, value in state_dict.items()})
    return module.eval()


def golden_audio(sample_rate: int, n_samples: int) -> Tensor:
    """Give the start of the two clips of the golden answers: (2, n_samples) float32 in [-1, 1]."""
    with np.load(GOLDEN / f"audio_{sample_rate}.npz") as clips:
        return torch.from_numpy(clips["audio"][:, :n_samples].astype(np.float32) / 32768)


def assert_equal(found: Any, expected: Any, tolerance: float = 1e-4) -> None:
    """Hold to a tolerance of the largest magnitude: 1e-4 for golden answers, whatever the processor."""
    found, expected = np.asarray(found), np.asarray(expected)
    assert found.shape == expected.shape
    np.testing.assert_allclose(found, expected, rtol=0, atol=tolerance * np.abs(expected).max())


def assert_clips_differ_alike(found: Any, expected: Any) -> None:
    """Hold what differs between the two clips to 1 % of it, beside rounding (2e-6 of the largest magnitude).

    Rules for weights of some networks leave little of the audio in the answer: 5e-5 to 4e-3 of its magnitude, which the
    tolerance of `assert_equal` may hide.
    """
    found, expected = np.asarray(found), np.asarray(expected)
    difference = expected[0] - expected[1]
    tolerance = 1e-2 * np.abs(difference).max() + 2e-6 * np.abs(expected).max()
    np.testing.assert_allclose(found[0] - found[1], difference, rtol=0, atol=tolerance)


def tells_clips_apart(answer: Any) -> bool:
    """Return True if the two clips have different answers, beside rounding."""
    answer = np.asarray(answer)
    return bool(np.abs(answer[0] - answer[1]).max() > 1e-5 * np.abs(answer).max())


def noise(*shape: int, seed: int = 0) -> Tensor:
    """Make normal noise, the same every time."""
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def small_build(module: ModuleType, network: dict[str, Any], variant: str, path: str = "", **options: Any) -> Embedder:
    """Load a variant of a family in a small build, with random weights unless told otherwise."""
    row = replace(module.VARIANTS[variant], network={**module.VARIANTS[variant].network, **network})
    return hear.Loader(replace(module.FAMILY, variants={variant: row})).load_model(
        path, **{"pretrained": False, **options}
    )
