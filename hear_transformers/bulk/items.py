"""What goes into an output, and what is known of an output that exists."""

from __future__ import annotations

import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from .formats import AUDIO, DTYPES


@dataclass(frozen=True, slots=True)
class ExistingOutput:
    """What is known of an output that exists.

    Attributes
    ----------
    mismatch : how its settings differ from the current ones; empty if they are equal
    sha256 : of the audio it was made from, empty if unknown
    file : absolute path of that audio
    """

    mismatch: str = ""
    sha256: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """Which numbers of the model's embeddings go into an output, and their type.

    Attributes
    ----------
    settings : what makes them, ready for JSON
    layer : which they are of, None if unknown
    columns : positions in an embedding, None for all
    dtype : one of `formats.DTYPES`
    window_ms : audio that an embedding along time sees, NaN if unknown
    separate : other layers go into other outputs
    """

    settings: dict[str, Any]
    layer: str | None = None
    columns: slice | list[int] | None = None
    dtype: str = DTYPES[0]
    window_ms: float = math.nan
    separate: bool = False


def mismatch_of(made_with: Any, settings: dict[str, Any], output: Path) -> str:
    """Describe how the settings that made an output differ from the current ones; empty if they are equal."""
    if not isinstance(made_with, dict):
        return f"{output} is kept, but does not say what made it; use overwrite to replace it"
    changed = [key for key in {**settings, **made_with} if key != AUDIO and settings.get(key) != made_with.get(key)]
    if not changed:
        return ""
    return f"{output} is kept, but was made with other settings ({', '.join(changed)}); use overwrite to replace it"
