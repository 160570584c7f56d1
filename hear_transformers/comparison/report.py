"""A comparison as files: tables and pictures."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from ..files import atomic
from ..training.curves import save
from .compare import Comparison, Side
from .measures import MEASURES

FEW_CLASSES = 20  # that a legend names


def rows_of(found: Comparison) -> Iterator[list[Any]]:
    """Yield the header, then a row for each layer of each model."""
    yield ["model", "layer", "features", *(f"{name}{end}" for name in MEASURES for end in ("", "_low", "_high"))]
    for side in found.sides:
        for layer, measures in side.measures.items():
            numbers = [f"{measures[name][key]:.6g}" for name in MEASURES for key in ("value", "low", "high")]
            yield [side.name, layer, side.layers[layer].shape[1], *numbers]


def markdown(found: Comparison) -> str:
    """Return the measures as tables, with what they are."""
    lines = [f"# {found.sides[0].name} and {found.sides[1].name}", ""]
    lines += [f"{len(found.labels)} clips of {len(found.classes)} classes. In brackets: 95 % of a bootstrap.", ""]
    lines += [f"- {name}: {what}; {better}" for name, (what, better) in MEASURES.items()]
    for side in found.sides:
        lines += ["", f"## {side.name}", "", f"| layer | {' | '.join(MEASURES)} |", "|---" * (1 + len(MEASURES)) + "|"]
        for layer, measures in side.measures.items():
            cells = (f"{m['value']:.3g} ({m['low']:.3g} to {m['high']:.3g})" for m in measures.values())
            lines.append(f"| {layer} | {' | '.join(cells)} |")
    likest = np.unravel_index(int(found.cka.argmax()), found.cka.shape)
    names = [list(side.layers)[i] for side, i in zip(found.sides, likest, strict=True)]
    lines += ["", f"CKA (linear, debiased, {found.n_cka} clips) is largest between layers {' and '.join(names)}: "]
    lines[-1] += f"{found.cka.max():.3f}."
    return "\n".join([*lines, ""])


def write(found: Comparison, folder: Path) -> list[Path]:
    """Write measures.csv, measures.md, cka.csv, measures.png, cka.png and maps.png into a folder; return them."""
    names = ("measures.csv", "measures.md", "cka.csv", "measures.png", "cka.png", "maps.png")
    paths = [folder / name for name in names]
    for path, rows in ((paths[0], rows_of(found)), (paths[2], _cka_rows(found))):
        with atomic(path) as file, io.TextIOWrapper(file, encoding="utf-8", newline="") as text:
            csv.writer(text, lineterminator="\n").writerows(rows)
    with atomic(paths[1]) as file:
        file.write(markdown(found).encode())
    draw_measures(found, paths[3])
    draw_cka(found, paths[4])
    draw_maps(found, paths[5])
    return paths


def _cka_rows(found: Comparison) -> Iterator[list[Any]]:
    one, other = found.sides
    yield [f"{one.name} \\ {other.name}", *other.layers]
    for layer, row in zip(one.layers, found.cka, strict=True):
        yield [layer, *(f"{value:.6g}" for value in row)]


def draw_measures(found: Comparison, path: Path) -> None:
    """Draw each measure over the layers of both models, with intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 6.5), layout="constrained")
    panels = figure.subplots(2, 4).ravel()
    for axes, (name, (_, better)) in zip(panels, MEASURES.items(), strict=False):
        for side in found.sides:
            low, value, high = (
                np.array([of_layer[name][key] for of_layer in side.measures.values()])
                for key in ("low", "value", "high")
            )
            depth = np.linspace(0, 1, len(value)) if len(value) > 1 else np.array([1.0])
            (line,) = axes.plot(depth, value, marker=".", label=side.name)
            axes.fill_between(depth, low, high, alpha=0.2, color=line.get_color())
        axes.set_title(f"{name} ({better})", fontsize="small")
        axes.set_xlabel("layer, from the first to the last", fontsize="x-small")
        axes.grid(alpha=0.3)
    panels[-1].axis("off")
    panels[-1].legend(*panels[0].get_legend_handles_labels(), loc="center", frameon=False)
    save(figure, path)


def draw_cka(found: Comparison, path: Path) -> None:
    """Draw CKA between all layers of both models."""
    from matplotlib.figure import Figure

    one, other = found.sides
    n, m = found.cka.shape
    figure = Figure(figsize=(3.5 + 0.35 * m, 2.5 + 0.35 * n), layout="constrained")
    axes = figure.subplots()
    image = axes.imshow(found.cka, origin="lower", cmap="viridis", vmin=0, vmax=1)
    axes.set_xticks(range(m), list(other.layers), rotation=90, fontsize="x-small")
    axes.set_yticks(range(n), list(one.layers), fontsize="x-small")
    axes.set(xlabel=other.name, ylabel=one.name)
    axes.set_title(f"linear CKA, debiased ({found.n_cka} clips)", fontsize="small")
    figure.colorbar(image, ax=axes)
    save(figure, path)


def draw_maps(found: Comparison, path: Path) -> None:
    """Draw the clips on the two principal components of the best layer of each model by NMI, side by side."""
    from matplotlib import colormaps
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5.5), layout="constrained")
    panels = figure.subplots(1, 2)
    for axes, side in zip(panels, found.sides, strict=True):
        places, shares = principal(side, side.best())
        for number, name in enumerate(found.classes):
            is_of = found.labels == number
            colour = colormaps["tab20"](number % FEW_CLASSES)
            axes.scatter(*places[is_of].T, s=14, color=[colour], label=name.replace("_", " "))
        axes.set_title(f"{side.name}, layer {side.best()}", fontsize="small", parse_math=False)
        axes.set(xlabel=f"component 1 ({shares[0]:.0%} of the variance)", ylabel=f"component 2 ({shares[1]:.0%})")
    if len(found.classes) <= FEW_CLASSES:
        figure.legend(*panels[0].get_legend_handles_labels(), loc="outside right center", fontsize="small")
    save(figure, path)


def principal(side: Side, layer: str) -> tuple[Any, Any]:
    """Compute the first two principal components of a layer, (clips, 2), and their shares of the variance."""
    from sklearn.decomposition import PCA

    vectors = side.layers[layer]
    if vectors.shape[1] < 2:  # one number: the other axis is empty
        vectors = np.pad(vectors, ((0, 0), (0, 2 - vectors.shape[1])))
    fitted = PCA(2, random_state=0)
    places = fitted.fit_transform(vectors)
    return places, fitted.explained_variance_ratio_
