"""Systems that HEAR's benchmark scores, and the names of their folders."""

from __future__ import annotations

import re
import unicodedata
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class System:
    """A model to score.

    Attributes
    ----------
    module : name of a module that follows the HEAR API
    weights : checkpoint for its `load_model`, None for its own default
    options : keyword arguments for its `load_model`, beyond the HEAR API
    """

    module: str
    weights: Path | None
    options: Mapping[str, Any]

    @cached_property
    def folder(self) -> str:
        """Name of the folder of its embeddings."""
        return folder_name(self.module, self.options)


def folder_name(module: str, options: Mapping[str, Any]) -> str:
    """Return the name that heareval gives the folder of a model: ``hear_transformers.passt-layer=8-hop-ms=20``."""
    return "-".join([module, *(f"{_slug(name)}={_slug(str(value))}" for name, value in options.items())])


def _slug(text: str) -> str:
    """Reduce text to letters, digits and hyphens, as python-slugify does by default."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode().lower().replace("'", "-")
    plain = re.sub(r"(?<=\d),(?=\d)", "", plain)  # python-slugify takes commas between digits for thousands separators
    return re.sub(r"[^a-z0-9]+", "-", plain).strip("-")
