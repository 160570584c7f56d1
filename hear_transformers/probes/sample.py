"""What a probe is fitted on."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from . import metrics
from .token_maps import TokenMaps

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """What a probe is fitted on: embeddings (clips, size), targets (clips, classes), to train on and to validate on.

    Of token maps, embeddings are the numbers of their clips in `maps`, (clips, 1).
    """

    x: Floats
    y: Floats
    valid_x: Floats
    valid_y: Floats
    multi_label: bool
    seed: int = 0
    settings: Mapping[str, Any] = field(default_factory=dict)
    score: Callable[[Floats], float] | None = None
    columns: Mapping[str, Sequence[int]] = field(default_factory=dict)
    maps: TokenMaps | None = None

    def value(self, probabilities: Floats) -> float:
        """Compute the score of the validation clips that settings are chosen by."""
        if self.score is not None:
            return self.score(probabilities)
        return metrics.value(metrics.names_of(self.multi_label)[0], self.valid_y, probabilities)

    def both(self) -> tuple[Floats, Floats]:
        """Return all clips, to fit on once the settings are chosen."""
        return np.concatenate([self.x, self.valid_x]), np.concatenate([self.y, self.valid_y])
