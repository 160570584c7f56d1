"""Rows of sweeps that never ran, as like real ones as a few formulas make them."""

from collections.abc import Iterator, Sequence
from itertools import product

import numpy as np

from hear_transformers.sweep.results import NO_POOL, Row

WINDOWS_MS, HOPS_MS, POOLS = (160, 320, 640, 1280, 2560, 10_000), (25, 50, 100), ("mean", "meanstd", "flat", "cls")

TASKS = {
    "ESC-10": (320, 0.1, "accuracy", 2560),
    "digits": (300, 0.1, "accuracy", 640),
    "events": (60, 0.0, "onset_f1", 320),
}
"""Name -> clips, score of chance, main metric, the window that suits it."""

MODELS = {
    "tiny": (12, 0.93, 0.7, 192),
    "efficientat/mn04_as": (15, 0.98, 2.4, 112),
    "passt/base (random)": (12, 0.45, 22.0, 768),
}
"""Name -> layers, how good it gets, its compute, its features."""


def rows(tasks: Sequence[str] = tuple(TASKS), models: Sequence[str] = tuple(MODELS), **axes: Sequence) -> list[Row]:
    """Make the rows of a full grid; `axes` may have fewer windows, hops, pools, layers or probes, or
    clips per class, "shots"."""
    rng = np.random.default_rng(0)
    return [row for task in tasks for model in models for row in _of(task, model, axes, rng)]


def _of(task: str, model: str, axes: dict, rng: np.random.Generator) -> Iterator[Row]:
    n, chance, metric, fitting = TASKS[task]
    depth, top, compute, features = MODELS[model]
    numbered = [str(i) for i in range(depth + 1)]
    for window in axes.get("windows", WINDOWS_MS):
        for hop in axes.get("hops", HOPS_MS):
            seconds = compute * max(window / 400, 1) ** 0.4 * 100 / hop
            for layer in axes.get("layers", (*numbered, "features", "mel")):
                for pool in axes.get("pools", POOLS) if layer != "features" else (NO_POOL,):
                    level = int(layer) / depth if layer.isdecimal() else 0.9 if layer == "features" else 0.15
                    quality = 1 - 0.5 * abs(level - 0.75) ** 1.5 - 0.05 * abs(np.log2(window / fitting)) ** 1.3
                    quality += {"meanstd": 0.02, "cls": -0.03, "flat": 0.01}.get(pool, 0) - 0.01 * np.log2(hop / 25)
                    size = features * {"meanstd": 2, "flat": 8}.get(pool, 1)
                    for probe, shots in product(axes.get("probes", ("logistic",)), axes.get("shots", (None,))):
                        few = 0.3 / shots if shots else 0
                        score = chance + (top - chance) * (quality - few) + rng.normal(0, 0.006)
                        yield from _metrics(
                            dict(
                                task=task,
                                model=model,
                                layer=layer,
                                pool=pool,
                                framing="windowed",
                                probe=probe,
                                clips_per_class=shots,
                            ),
                            dict(
                                window_ms=float(window), hop_ms=float(hop), size=size, clips=n, seconds_per_hour=seconds
                            ),
                            metric,
                            float(np.clip(score, 0, 1)),
                        )


def _metrics(words: dict, numbers: dict, metric: str, score: float) -> Iterator[Row]:
    half = 1.96 * np.sqrt(max(score * (1 - score), 1e-3) / numbers["clips"])
    model = words["model"].removesuffix(" (random)")
    command = (
        f"embed-audio data/{words['task']} --model {model} --layer {words['layer']} --pool {words['pool']} "
        f"--framing windowed --window-ms {numbers['window_ms']:g} --hop-ms {numbers['hop_ms']:g} --output embeddings"
    )
    for name, is_main, value in ((metric, True, score), ("error_rate", False, 1 - score)):
        low, high = max(value - half, 0.0), min(value + half, 1.0)
        yield Row(**words, **numbers, metric=name, is_main=is_main, value=value, low=low, high=high, command=command)
