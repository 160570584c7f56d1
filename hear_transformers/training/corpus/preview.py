"""Examples of the corpus to listen to and to look at."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import soundfile
from matplotlib.figure import Figure
from numpy.typing import NDArray

from ...files import atomic
from .mels import FRAMES, N_MELS, SILENCE, compute_log_mels
from .notes import LOWEST_PITCH
from .scenes import FAMILIES, audible
from .signals import RATE, TINY, Dice, Signal
from .stream import PHONES, CorpusOptions, Part, stream

COLUMNS = 4
BRIGHTEST = 1.2  # log-mel of a loud sound
STREAM = 3  # separates the draws of single families from those of the corpus

Example = tuple[str, NDArray[np.float16], list[tuple[int, int, str]]]
"""Title, log-mel, and first and last frame and name of everything labelled."""


def families(seed: int) -> Iterator[tuple[str, Signal]]:
    """Make one clip of every family alone."""
    for number, family in enumerate(FAMILIES):
        clip = family(Dice(seed, STREAM, number))
        yield family.__name__, clip * np.float32(0.5 / (np.abs(clip).max() + TINY))


def runs(active: NDArray[np.generic], name: Callable[[int], str]) -> list[tuple[int, int, str]]:
    """Find stretches of equal labels of a clip: (frames, labels) of 0 and 1, or (frames,) numbers."""
    columns = active.T if active.ndim == 2 else [active]
    found = []
    for column, values in enumerate(columns):
        edges = np.flatnonzero(np.diff(values.astype(int))) + 1
        for start, stop in zip([0, *edges], [*edges, FRAMES], strict=True):
            if active.ndim == 1 or values[start]:
                found.append((int(start), int(stop), name(int(values[start]) if active.ndim == 1 else column)))
    return found


def examples(kind: str, part: Part) -> Iterator[tuple[str, Signal, Example]]:
    """Yield file name, waveform and drawing of every clip."""
    naming = {
        "scenes": lambda i: list(FAMILIES)[i].__name__,
        "speech": lambda i: PHONES[i],
        "notes": lambda i: str(LOWEST_PITCH + i),
    }[kind]
    ((_, labels),) = part.labels.items()
    assert part.waveforms is not None
    for i, (waveform, mel) in enumerate(zip(part.waveforms, part.mels, strict=True)):
        yield f"{kind}-{i}", waveform / np.float32(2**15), (f"{kind} {i}", mel, runs(labels[i], naming))


def draw(drawn: list[Example], path: Path) -> None:
    """Draw log-mels in a sheet, with their labels below each."""
    rows = -(-len(drawn) // COLUMNS)
    figure = Figure(figsize=(4.5 * COLUMNS, 2.6 * rows), layout="constrained")
    axes: Any = figure.subplots(rows, COLUMNS, squeeze=False)
    for place in axes.flat:
        place.set_axis_off()
    for place, (title, mel, labels) in zip(axes.flat, drawn, strict=False):
        place.imshow(mel.astype(np.float32), aspect="auto", origin="lower", vmin=SILENCE, vmax=BRIGHTEST, cmap="magma")
        place.set_title(title, fontsize=9)
        names = sorted({name for *_, name in labels})
        for start, stop, name in labels:
            height = -6 - 6 * (names.index(name) % 4)
            place.plot([start, stop - 1], [height, height], linewidth=2)
            place.text(start, height, name, fontsize=7, verticalalignment="top")
        place.set_ylim(-32, N_MELS)
    with atomic(path) as file:
        figure.savefig(file, format="png", dpi=80)


def write(folder: Path, seed: int, clips: int, speech: bool) -> Iterator[Path]:
    """Write a WAV file of every family and of some clips of each kind, and a sheet that shows them all.

    Parameters
    ----------
    folder : for the files
    seed : of the corpus
    clips : of each kind
    speech : whether there is speech
    """
    folder.mkdir(parents=True, exist_ok=True)
    options = CorpusOptions(seed=seed, scenes=clips, speech=clips * speech, notes=clips, waveforms=True)
    (batch,) = stream(options, [0], 0)
    alone = list(families(seed))
    mels = compute_log_mels(np.stack([clip for _, clip in alone]))
    every = [
        (name, clip, (name, mel, runs(audible(clip)[:, None], lambda _, name=name: name)))  # type: ignore[misc]
        for (name, clip), mel in zip(alone, mels, strict=True)
    ]
    for kind in ("scenes", "speech", "notes"):
        every += examples(kind, getattr(batch, kind))
    for name, clip, _ in every:
        path = folder / f"{name}.wav"
        soundfile.write(path, clip, RATE)
        yield path
    draw([example for *_, example in every], folder / "sheet.png")
    yield folder / "sheet.png"
