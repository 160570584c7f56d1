"""Explanations as files: a picture over the spectrogram, and the numbers."""

from __future__ import annotations

import io
import json
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..files import atomic
from ..training.curves import save
from .explanation import Explanation, Map
from .window import Axis, Window

TICKS_HZ = (100, 200, 500, 1000, 2000, 5000, 10_000)
WIDTH, HEIGHT = 11.0, 2.1  # inches of a panel


def edges(axis: Axis) -> tuple[float, float]:
    """Return where the first cell of an axis begins and the last one ends."""
    return axis.first - axis.step / 2, axis.first + (axis.n - 0.5) * axis.step


def numbers(found: Explanation) -> dict[str, NDArray[Any]]:
    """Return everything that was computed, as arrays: for each map its values, and s and Hz of its centres."""
    window = found.window
    about = {
        "model": "/".join(window.model.name),
        "explained": found.what,
        "probability": found.probability,
        "left_out": found.left_out,
    }
    arrays: dict[str, NDArray[Any]] = {
        "about": np.array(json.dumps(about)),
        "mel": window.mel.numpy(),
        "mel_s": window.mel_seconds(np.arange(window.mel.shape[1], dtype=np.float64)),
        "mel_hz": window.spec.centres_hz(),
    }
    for each in found.maps:
        name = each.name.replace(" ", "_")
        arrays[name] = each.values.numpy()
        arrays[f"{name}_s"] = window.seconds(each.grid.time.centres())
        arrays[f"{name}_hz"] = window.hz(each.grid.freq.centres())
        if each.marks is not None:
            arrays[f"{name}_nearest"] = each.marks.numpy()
    for of_layer in found.fields:
        arrays[f"field_{of_layer.layer}"] = of_layer.gradient
    for graph in found.neighbours:
        places = np.vstack([graph.patch, graph.centres])
        arrays[f"graph_{graph.layer}"] = np.stack([window.seconds(places[:, 1]), window.hz(places[:, 0])], 1)
    return arrays


def write_numbers(found: Explanation, path: Path) -> None:
    """Write `numbers` as .npz: the first place of ``graph_N`` is the patch, the others its neighbours, s and Hz."""
    buffer = io.BytesIO()
    np.savez_compressed(buffer, **numbers(found))  # type: ignore[arg-type]
    with atomic(path) as file:
        file.write(buffer.getvalue())


def draw(found: Explanation, path: Path, title: str) -> None:
    """Draw the spectrogram, and every map over it, with seconds and Hz on the axes."""
    from matplotlib.figure import Figure

    graphs = [each for each in found.neighbours if each.layer in _last_blocks(found)]
    n_panels = 1 + len(found.maps) + bool(found.fields) + len(graphs)
    figure = Figure(figsize=(WIDTH, HEIGHT * n_panels + 0.6), layout="constrained")
    first, *others = figure.subplots(n_panels, 1, sharex=True, sharey=True, squeeze=False)[:, 0]
    panels = iter(others)
    _background(first, found.window, "magma", "log-mel spectrogram")
    for each in found.maps:
        _overlay(figure, next(panels), found.window, each)
    if found.fields:
        _fields(next(panels), found)
    for graph in graphs:
        _graph(next(panels), found.window, graph)
    figure.axes[n_panels - 1].set_xlabel("s")
    figure.suptitle(title, fontsize="medium", parse_math=False)
    save(figure, path)


def _last_blocks(found: Explanation) -> set[str]:
    trunk = found.window.trunk
    return {str(block) for block in getattr(trunk, "ends", {})}


def _background(axes: Any, window: Window, colours: str, title: str) -> None:
    left, right = (float(window.mel_seconds(frame)) for frame in (-0.5, window.mel.shape[1] - 0.5))
    draw_mel(axes, window.mel.numpy(), window.spec.centres_hz(), (left, right), colours, title)


def draw_mel(
    axes: Any, mel: NDArray[Any], hz: NDArray[Any], seconds: tuple[float, float], colours: str, title: str
) -> None:
    """Draw a spectrogram, with bands as the vertical axis and their Hz on it.

    Parameters
    ----------
    axes : of matplotlib
    mel : (n_mels, frames)
    hz : (n_mels,) centres of the bands
    seconds : where the first frame begins and the last one ends
    colours : a map of matplotlib
    title : of the panel
    """
    n_mels = len(mel)
    extent = (*seconds, -0.5, n_mels - 0.5)
    low = float(np.percentile(mel, 5))
    axes.imshow(mel, origin="lower", aspect="auto", extent=extent, cmap=colours, vmin=low)
    shown = [tick for tick in TICKS_HZ if hz[0] <= tick <= hz[-1]]
    axes.set_yticks(np.interp(shown, hz, np.arange(n_mels)), [f"{tick:,}" for tick in shown], fontsize="x-small")
    axes.set(ylabel="Hz", xlim=extent[:2], ylim=extent[2:])
    axes.set_title(title, fontsize="small", loc="left", parse_math=False)


TITLES = {
    "rollout": "attention rollout: share of each patch in what is read at the end",
    "gradient": "gradient x attention: relevance for the class",
    "occlusion": "occlusion: what is explained falls by this much without the patch",
}


def _overlay(figure: Any, axes: Any, window: Window, each: Map) -> None:
    """Draw a map over the grey spectrogram: red for the most, blue below 0."""
    title = TITLES.get(each.name, f"{each.name}: cosine with the embedding of the class; dots: its nearest patches")
    _background(axes, window, "Greys", title)
    values = each.values.numpy()
    bottom, top = edges(each.grid.freq)
    left, right = (float(window.seconds(edge)) for edge in edges(each.grid.time))
    largest = float(np.abs(values).max()) or 1.0
    limits = (-largest, largest) if values.min() < 0 else (0.0, largest)
    image = axes.imshow(
        values,
        origin="lower",
        aspect="auto",
        extent=(left, right, bottom, top),
        cmap="RdBu_r" if limits[0] < 0 else "Reds",
        vmin=limits[0],
        vmax=limits[1],
        alpha=np.clip(np.abs(values) / largest, 0.0, 1.0) * 0.8,
    )
    figure.colorbar(image, ax=axes, shrink=0.9, pad=0.01)
    if each.marks is not None:
        rows, columns = each.marks.numpy().T
        inside = columns < each.grid.time.n
        x = window.seconds(each.grid.time.first + each.grid.time.step * columns[inside])
        axes.plot(x, each.grid.freq.first + each.grid.freq.step * rows[inside], "k.", markersize=4)


def _fields(axes: Any, found: Explanation) -> None:
    """Draw the effective receptive field of every layer as a rectangle."""
    from matplotlib import colormaps
    from matplotlib.patches import Rectangle

    window = found.window
    title = "effective receptive fields of a position in the middle (95 % of the gradient), by layer"
    _background(axes, window, "Greys", title)
    for number, each in enumerate(found.fields):
        if not each.measured_ms:
            continue
        left, right = (float(window.seconds(frame)) for frame in np.add(each.effective_frames, (-0.5, 0.5)))
        first, last = each.effective_bands if window.has_mel else (0, window.spec.n_mels - 1)
        colour = colormaps["viridis"](number / max(1, len(found.fields) - 1))
        box = Rectangle((left, first - 0.5), right - left, last - first + 1, fill=False, edgecolor=colour)
        box.set_label(each.layer)
        axes.add_patch(box)
    axes.legend(fontsize="xx-small", ncols=2, loc="upper right")


def _graph(axes: Any, window: Window, graph: Any) -> None:
    """Draw a patch and lines to its neighbours."""
    _background(axes, window, "Greys", f"neighbours of the patch in block {graph.layer}")
    x, y = float(window.seconds(graph.patch[1])), graph.patch[0]
    for band, frame in graph.centres:
        axes.plot([x, float(window.seconds(frame))], [y, band], color="tab:red", linewidth=0.8, marker=".")
    axes.plot([x], [y], color="tab:blue", marker="s")
