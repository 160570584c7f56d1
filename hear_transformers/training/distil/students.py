"""The networks that are trained, and which of their layers the objectives read."""

from __future__ import annotations

from dataclasses import dataclass

from ... import atgnn, hear, mast, tiny
from ...networks.family import Variant


@dataclass(frozen=True, slots=True)
class Student:
    """A network to train.

    Attributes
    ----------
    family : of the network
    name : of its variant
    frames : layer that objectives of every frame read; a grid in time
    grid : layer whose mean and standard deviation over time objectives of the clip read
    vectors : what they read besides
    """

    family: hear.Family
    name: str
    frames: str
    grid: str
    vectors: tuple[str, ...] = ()

    @property
    def variant(self) -> Variant:
        """The row of its family."""
        return self.family.variants[self.name]


STUDENTS = {
    "tiny": Student(tiny.FAMILY, "tiny", frames="features", grid="features", vectors=("features.cls",)),
    "mast_mini": Student(mast.FAMILY, "mini", frames="norm", grid="norm"),
    "atgnn_mini": Student(atgnn.FAMILY, "mini", frames="stage3", grid="stage4"),
}
