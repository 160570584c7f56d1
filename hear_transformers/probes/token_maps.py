"""What a layer has at every place of time and frequency of some clips, in memory or in files."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float32]


@dataclass(frozen=True, slots=True, eq=False)
class TokenMaps:
    """Token maps of clips.

    Attributes
    ----------
    maps : of each clip, (times, freq * features), or the .npy file that holds it, so that they need no memory
    freq : positions in frequency
    """

    maps: Sequence[Path | NDArray[Any]]
    freq: int

    def __len__(self) -> int:
        """Return the number of clips."""
        return len(self.maps)

    def __getitem__(self, rows: NDArray[np.int64]) -> TokenMaps:
        """Return those of some clips."""
        return TokenMaps([self.maps[row] for row in rows.tolist()], self.freq)

    def read(self, clip: int) -> Floats:
        """Return the tokens of a clip: (times * freq, features), frequency by frequency of one time after another."""
        one = self.maps[clip]
        array: NDArray[Any] = np.load(one) if isinstance(one, Path) else one
        return array.reshape(len(array) * self.freq, -1).astype(np.float32)
