"""Sweeps that ask what papers asked."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

from .passes import SCENE
from .settings import LAYERS, Grid
from .subjects import CLUSTERS

USUAL_MS = (160.0, 50.0)
"""Window and hop of PaSST at HEAR, where its three axes meet."""

HOPS_MS = (25.0, 100.0)
WINDOWS_MS = (320.0, 640.0, 1280.0, 2560.0, 10_000.0)
"""The other values of two axes."""

MOST_OVERLAP = 16.0
"""How often audio is read in the longest windows: as in the 800 ms every 50 ms of the authors' two levels. A window of
10 s every 50 ms would be read 200 times."""


@dataclass(frozen=True, slots=True)
class Study:
    """What a study tries.

    Attributes
    ----------
    models : where the user names none
    grid : layers, poolings, framings, windows and hops
    probes : that score
    trains : whether the networks themselves are trained as well, see `transfer`
    """

    models: tuple[str, ...]
    grid: Grid
    probes: tuple[str, ...] = ("logistic",)
    trains: bool = False


STUDIES: Mapping[str, Study] = {
    "passt-hear": Study(
        ("passt/base",),
        Grid(
            layers=(*LAYERS[:-1], "features+logits"),
            pools=("cls", "mean"),
            framings=(SCENE, "windowed"),
            times_ms=(
                USUAL_MS,
                *((USUAL_MS[0], hop) for hop in HOPS_MS),
                *((window, max(USUAL_MS[1], window / MOST_OVERLAP)) for window in WINDOWS_MS),
            ),
        ),
    ),
    "mast-clusters": Study(("mast", "ast"), Grid(layers=("all",), pools=("mean",)), (CLUSTERS,)),
    "panns-transfer": Study(
        ("panns/cnn14",), Grid(layers=("features",), pools=("mean",)), ("logistic", "mlp"), trains=True
    ),
}
"""By name: ``passt-hear``, time resolution, level of the layer and receptive field, each with the others as usual
(Koutini et al., 2211.13956; its embedding is "features+logits"); ``mast-clusters``, how well the classes are clusters
stage by stage (Zhu and Omar, 2303.10757); ``panns-transfer``, a network trained from scratch,
one trained on, and one and three layers on its embedding, where HEAR's MLP stands for the three (Kong et al.,
1912.10211)."""
