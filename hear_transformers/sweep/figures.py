"""Pictures of a sweep: maps of layers by windows, hops and poolings, score beside cost, scores by layer."""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..comparison.measures import MEASURES
from ..training.curves import save
from .findings import (
    SHOTS,
    Finding,
    along,
    by_shots,
    curves,
    free_axes,
    front,
    in_order,
    interval,
    is_lower_better,
    overlap,
)
from .results import Row
from .words import NAMES, value_of

COLOURS = ("#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#8a8a8a", "#000000")
"""Of models: those of Okabe and Ito, which the colour-blind tell apart."""

MARKS = "os^DvPX*"
"""Of models too, as colours alone are not enough in print."""

FEW = 0.05
"""Share of the scores of a map that have the colour of the worst."""

MAPPED = ("window_ms", "hop_ms", "pool")
"""Axes of which there are maps."""

PRICES: tuple[tuple[str, Callable[[Row], float]], ...] = (
    ("s of compute per hour of audio", lambda row: row.seconds_per_hour),
    ("numbers per embedding", lambda row: row.size),
)


def draw(folder: Path, findings: Sequence[Finding]) -> None:
    """Draw pictures of each task and main metric, as PNG and SVG: TASK-maps, TASK-cost, TASK-layers and TASK-shots."""
    stems: set[str] = set()
    for number, finding in enumerate(finding for finding in findings if finding.is_main):
        stem = re.sub(r"[^\w.-]+", "_", finding.task, flags=re.ASCII).strip("._") or "task"
        stem = stem if stem.casefold() not in stems else f"{stem}-{number}"
        stems.add(stem.casefold())
        lines = curves(finding, findings)
        pictures = {"maps": draw_maps(finding), "cost": draw_cost(finding)}
        pictures |= {"layers": draw_curves(lines)} if lines else {}
        pictures |= {"shots": draw_shots(finding.metric, shots)} if (shots := by_shots(finding)) else {}
        for name, figure in pictures.items():
            for suffix in (".png", ".svg"):
                save(figure, folder / f"{stem}-{name}{suffix}")
                figure.set_layout_engine("none")  # which is done, and costs as much as the drawing


def plain(text: str) -> str:
    """Return text that matplotlib does not take for a formula."""
    return text.replace("$", r"\$")


def draw_maps(finding: Finding) -> Any:
    """Draw layers by windows, hops and poolings for each model, the other axes those of its best setting.

    An axis of one value has no map of its own.
    """
    from matplotlib.figure import Figure

    several = [axis for axis in MAPPED if _has_several(finding, axis)] or ["window_ms"]
    grids = [[_grid(finding.rows, best, axis) for axis in several] for best in finding.models]
    heights = [max(len(grid[0]) for grid in of_model) * 0.24 + 0.9 for of_model in grids]
    figure = Figure(figsize=(6.5 * len(several), sum(heights) + 0.8), layout="constrained")
    panels = figure.subplots(len(grids), len(several), squeeze=False, height_ratios=heights)
    for best, of_model, of_panels in zip(finding.models, grids, panels, strict=True):
        limits = _limits([row for _, _, cells in of_model for row in cells.values()])
        for axis, grid, axes in zip(several, of_model, of_panels, strict=True):
            _map(axes, finding, axis, grid, limits)
            axes.set_title(plain(f"{best.model}: {_held(finding, best, axis)}"), fontsize="small")
    less = " (less is better)" if is_lower_better(finding.metric) else ""
    title = f"{finding.task}: {finding.metric}{less}\nFrames: the interval overlaps with that of the best setting"
    figure.suptitle(plain(title), fontsize="medium")
    return figure


def _has_several(finding: Finding, axis: str) -> bool:
    """Return whether any model has several values of an axis."""
    return len({(row.model, getattr(row, axis)) for row in finding.rows}) > len(finding.models)


def _limits(rows: Sequence[Row]) -> tuple[float, float]:
    """Return what colours span: a few of the worst scores have one, so that an outlier does not take all."""
    values = sorted(row.value for row in rows)
    few = int(FEW * len(values))
    return (values[0], values[-1 - few]) if is_lower_better(rows[0].metric) else (values[few], values[-1])


def _held(finding: Finding, best: Row, axis: str) -> str:
    """Return what a map is of, beside its two axes."""
    free = free_axes(finding.rows, best)
    names = [name for name in ("pool", "framing", "window_ms", "hop_ms") if name != axis]
    return ", ".join(f"{NAMES.get(name, name)} {'best' if name in free else value_of(best, name)}" for name in names)


def _grid(rows: Sequence[Row], best: Row, axis: str) -> tuple[list[Any], list[Any], dict[tuple[Any, Any], Row]]:
    """Return layers, values of an axis, and the row of each pair that there is."""
    cells, free = {}, free_axes(rows, best)
    for value in dict.fromkeys(getattr(row, axis) for row in rows if row.model == best.model):
        of_value = [row for row in rows if getattr(row, axis) == value]
        for row in along(of_value, best, "layer", but=(axis, *free)):
            cells[row.layer, value] = row
    layers = in_order("layer", [row.layer for row in rows if row.model == best.model])
    found = {layer for layer, _ in cells}
    return [layer for layer in layers if layer in found], in_order(axis, [key[1] for key in cells]), cells


def _map(axes: Any, finding: Finding, axis: str, grid: Any, limits: tuple[float, float]) -> None:
    from matplotlib.patches import Rectangle

    layers, values, cells = grid
    numbers = np.full((len(layers), len(values)), np.nan)
    for (layer, value), row in cells.items():
        numbers[layers.index(layer), values.index(value)] = row.value
    colours = "cividis_r" if is_lower_better(finding.metric) else "cividis"
    axes.imshow(numbers, aspect="auto", cmap=colours, vmin=limits[0], vmax=limits[1])
    axes.set_yticks(range(len(layers)), list(map(plain, layers)), fontsize="small")
    labels = [value_of(next(row for key, row in cells.items() if key[1] == value), axis) for value in values]
    axes.set_xticks(range(len(values)), labels, fontsize="small")
    axes.set(ylabel="layer", xlabel=NAMES.get(axis, axis))
    span = limits[1] - limits[0] or 1.0
    for (layer, value), row in cells.items():
        x, y = values.index(value), layers.index(layer)
        share = (row.value - limits[0]) / span
        is_light = (1 - share if is_lower_better(finding.metric) else share) > 0.5
        colour = "black" if is_light else "white"
        weight = "bold" if row is finding.best else "normal"
        axes.text(
            x, y, f"{row.value:.3f}", ha="center", va="center", fontsize=7, color=colour, weight=weight
        ).set_in_layout(False)
        if overlap(row, finding.best):
            frame = Rectangle((x - 0.46, y - 0.44), 0.92, 0.88, fill=False, edgecolor=colour, linewidth=1.2)
            axes.add_patch(frame)


def draw_cost(finding: Finding) -> Any:
    """Draw the score of every setting beside compute and size, with Pareto fronts and their intervals."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(13, 5), layout="constrained")
    panels = figure.subplots(1, 2, sharey=True)
    models = [row.model for row in finding.models]
    for axes, (name, price) in zip(panels, PRICES, strict=True):
        axes.axhspan(*interval(finding.best), color="#808080", alpha=0.15, linewidth=0)
        for i, model in enumerate(models):
            shown = [(price(row), row.value) for row in finding.rows if row.model == model and price(row) > 0]
            if shown:
                style = {"color": COLOURS[i % len(COLOURS)], "marker": MARKS[i % len(MARKS)]}
                axes.scatter(*zip(*shown, strict=True), s=9, alpha=0.45, label=plain(model), rasterized=True, **style)
        best = front(finding.rows, price)
        x, y = [price(row) for row in best], [row.value for row in best]
        ends = np.array([interval(row) for row in best]).reshape(-1, 2).T
        axes.step(x, y, where="post", color="#404040", linewidth=1)
        axes.errorbar(x, y, np.maximum(0, [y - ends[0], ends[1] - y]), fmt="k.", capsize=2, linewidth=0.8, markersize=4)
        for row, mark, label in (
            (finding.best, "*", "best"),
            (finding.cheapest, "o", "cheapest not told apart from it"),
        ):
            if price(row) > 0:
                face = {"facecolor": "none", "edgecolor": "#c5221f", "linewidth": 1.5, "zorder": 5}
                axes.scatter([price(row)], [row.value], s=150, marker=mark, label=label, **face)
        if x:
            axes.set_xscale("log")
            axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")
        axes.set_xlabel(name)
        axes.grid(alpha=0.25)
    panels[0].set_ylabel(plain(finding.metric))
    if is_lower_better(finding.metric):
        panels[0].invert_yaxis()
    handles, labels = panels[1].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=5, fontsize="small", frameon=False)
    title = f"{finding.task}: {len(finding.rows)} settings. Band: interval of the best; line: Pareto front"
    figure.suptitle(plain(title), fontsize="medium")
    return figure


def draw_curves(lines: Mapping[str, Mapping[str, Sequence[Row]]]) -> Any:
    """Draw each metric by layer, a line with its interval for each model."""
    from matplotlib.figure import Figure

    n_columns = min(3, len(lines))
    n_rows = math.ceil(len(lines) / n_columns)
    figure = Figure(figsize=(max(6.0, 4.6 * n_columns), 3.4 * n_rows + 0.5), layout="constrained")
    panels = figure.subplots(n_rows, n_columns, squeeze=False).ravel()
    models = list(dict.fromkeys(model for by_model in lines.values() for model in by_model))
    for axes, (metric, by_model) in zip(panels, lines.items(), strict=False):
        layers = in_order("layer", [row.layer for line in by_model.values() for row in line])
        for model, line in by_model.items():
            style = models.index(model)
            _curve(axes, line, layers, plain(model), COLOURS[style % len(COLOURS)], MARKS[style % len(MARKS)])
        axes.set_xticks(range(len(layers)), [plain(str(layer)) for layer in layers], fontsize="x-small", rotation=60)
        what = MEASURES.get(metric, ("",))[0]
        less = ", less is better" if is_lower_better(metric) else ""
        axes.set_title(plain(f"{metric}{less}{what and f': {what}'}"), fontsize="x-small")
        axes.grid(alpha=0.25)
    for axes in panels[len(lines) :]:
        axes.axis("off")
    handles, labels = panels[0].get_legend_handles_labels()
    figure.legend(handles, labels, loc="outside lower center", ncols=4, fontsize="small", frameon=False)
    return figure


def draw_shots(metric: str, lines: Mapping[str, Sequence[Row]]) -> Any:
    """Draw the score by clips per class that are trained on, a line with its interval for each model and probe."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.5), layout="constrained")
    axes = figure.subplots()
    values = in_order(SHOTS, [row.clips_per_class for line in lines.values() for row in line])
    for i, (name, line) in enumerate(lines.items()):
        x = [values.index(row.clips_per_class) for row in line]
        low, high = zip(*map(interval, line), strict=True)
        colour = COLOURS[i % len(COLOURS)]
        axes.plot(x, [row.value for row in line], color=colour, marker=MARKS[i % len(MARKS)], label=plain(name))
        axes.fill_between(x, low, high, alpha=0.18, color=colour, linewidth=0)
    axes.set_xticks(range(len(values)), ["all" if value is None else f"{value}" for value in values])
    less = " (less is better)" if is_lower_better(metric) else ""
    axes.set(xlabel=NAMES[SHOTS], ylabel=plain(f"{metric}{less}"))
    axes.grid(alpha=0.25)
    figure.legend(loc="outside lower center", ncols=2, fontsize="small", frameon=False)
    return figure


def _curve(axes: Any, line: Sequence[Row], layers: Sequence[Any], label: str, colour: str, mark: str) -> None:
    """Draw a line along numbered layers, which follow each other; what has another name stands alone."""
    numbered = [row for row in line if row.layer.isdecimal()]
    run = numbered if len(numbered) > 1 else line
    x = [layers.index(row.layer) for row in run]
    low, high = zip(*map(interval, run), strict=True)
    axes.plot(x, [row.value for row in run], color=colour, marker=mark, markersize=4, label=label)
    axes.fill_between(x, low, high, alpha=0.18, color=colour, linewidth=0)
    for row in line:
        if row not in run:
            axes.plot([layers.index(row.layer)], [row.value], color=colour, marker=mark, markersize=4)
            axes.vlines(layers.index(row.layer), *interval(row), color=colour, linewidth=1)
