"""Many layers and poolings of one pass beside the deepest layer alone: ratio of CPU times, by turns.

``python -m hear_transformers.benchmarks.readouts passt/base`` prints a row for a table of Markdown.
"""

from __future__ import annotations

import time

import click
import numpy as np
import torch

from .. import catalogue
from ..embedding.embedder import Embedder
from .tables import echo_table

POOLS = "mean,meanstd,flat,cls"
SECONDS = 10.0
SEED = 0


@torch.no_grad()
def cpu_seconds(model: Embedder, clips: torch.Tensor) -> float:
    """Return the CPU time that a network takes for some clips, in s."""
    began = time.process_time()
    model.embed_scenes(clips)
    return time.process_time() - began


def measure(name: str, pools: str, clips: int, turns: int) -> tuple[Embedder, float, float]:
    """Return the model of all readouts, and the median CPU seconds of the deepest layer and of all of them."""
    family, variant = catalogue.resolve_own(name)
    load = catalogue.family(family).load_model
    deepest, everything = (
        load("", variant, layer=layer, pool=pool, pretrained=False) for layer, pool in ((-1, "mean"), ("all", pools))
    )
    rng = torch.Generator().manual_seed(SEED)
    audio = torch.rand(clips, round(SECONDS * deepest.sample_rate), generator=rng) - 0.5
    for model in (deepest, everything):
        cpu_seconds(model, audio[:1])
    pairs = [(cpu_seconds(deepest, audio), cpu_seconds(everything, audio)) for _ in range(turns)]
    one, many = np.median(pairs, 0)
    return everything, float(one), float(many)


@click.command()
@click.argument("model", default="passt/base")
@click.option("--pool", default=POOLS, show_default=True)
@click.option("--clips", default=4, show_default=True, help="Of 10 s each, embedded together.")
@click.option("--turns", default=5, show_default=True)
def main(model: str, pool: str, clips: int, turns: int) -> None:
    """Print the cost of all layers with several poolings."""
    embedder, one, many = measure(model, pool, clips, turns)
    size = embedder.scene_embedding_size
    n_parts = len(embedder.columns_by_pool())
    columns = ("model", "readouts", "numbers a clip", "kB a clip", "deepest layer, CPU s", "all, CPU s", "ratio")
    numbers = (f"{size * 4 / 1000:.0f}", f"{one:.2f}", f"{many:.2f}", f"{many / one:.3f}")
    echo_table(columns, iter([(model, str(n_parts), str(size), *numbers)]))


if __name__ == "__main__":
    main()
