"""Classes along time, drawn below the spectrogram of a file."""

from __future__ import annotations

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from ..audio.reading import AudioFile
from ..bulk.sources import Source
from ..embedding.windows import reflect
from ..networks.frontend import CPJKU_MEL, MelSpec
from ..probes.classifying import Timeline
from ..training.curves import TITLE_WIDTH, save
from .figures import draw_mel

MAX_COLUMNS = 4000
"""Of a spectrogram: more than the pixels of the picture; frames of long files are averaged."""

BLOCK_SECONDS = 30.0
"""Of audio that is in memory at once."""

MAX_LETTERS = 40
"""Of the name of a class."""

ROW, SPECTROGRAM, MARGINS = 0.27, 2.4, 1.3
"""Heights in inches: of a class, of the spectrogram, of title and axis."""

MIN_ROWS = 4
"""For which there is room at least, and for the scale of colours beside them."""

WIDTH = 11.0


class PNGs:
    """Draws timelines, each into a file of its own.

    Parameters
    ----------
    paths : of pictures, by `file` and `segment` of their sources
    classes : names, of the columns of timelines
    spec : of the front end of the network; of one over waveforms, a spectrogram like others' is drawn
    model : name, for the title
    threshold : of tags, marked in the scale of colours
    n_rows : classes that are drawn: those whose largest probabilities are largest
    keep_damaged : draw what there is of damaged files
    """

    def __init__(
        self,
        paths: Mapping[tuple[str, str], Path],
        classes: Sequence[str],
        spec: Any,
        model: str,
        threshold: float,
        n_rows: int,
        *,
        keep_damaged: bool = False,
    ) -> None:
        self.paths = paths
        self.classes = classes
        self.spec = spec if isinstance(spec, MelSpec) else replace(CPJKU_MEL, sample_rate=spec.sample_rate)
        self.model = model
        self.threshold = threshold
        self.n_rows = n_rows
        self.keep_damaged = keep_damaged

    def path(self, source: Source) -> Path:
        """Return the path of the picture of a source."""
        return self.paths[source.file, source.segment]

    def lacks(self, source: Source) -> bool:
        """Return True if the picture of a source is not there."""
        return not self.path(source).exists()

    def draw(self, timeline: Timeline) -> None:
        """Draw the spectrogram of a source, and the probabilities of its likeliest classes as a heat map."""
        from matplotlib.figure import Figure

        source, starts, ends = timeline.source, timeline.starts, timeline.ends
        left, right = float(starts[0]), float(ends[-1])
        mel = spectrogram(source, self.spec, left, right, keep_damaged=self.keep_damaged)
        shown = likeliest(timeline.likely, self.n_rows)
        height = ROW * max(len(shown), MIN_ROWS)
        figure = Figure(figsize=(WIDTH, SPECTROGRAM + height + MARGINS), layout="constrained")
        ratios = {"height_ratios": [SPECTROGRAM, height]}
        above, below = figure.subplots(2, 1, sharex=True, gridspec_kw=ratios)
        draw_mel(above, mel, self.spec.centres_hz(), (left, right), "magma", "log-mel spectrogram")
        edges = np.append(starts, right)
        # Rows from the top down, the likeliest first; dark is unlikely in print and for the colour-blind alike.
        image = below.pcolormesh(
            edges, np.arange(len(shown) + 1) - 0.5, timeline.likely[:, shown].T, cmap="cividis", vmin=0.0, vmax=1.0
        )
        below.set_yticks(range(len(shown)), [textwrap.shorten(self.classes[i], MAX_LETTERS) for i in shown])
        below.tick_params(axis="y", labelsize="small", length=0)
        for label in below.get_yticklabels():
            label.set_parse_math(False)
        below.invert_yaxis()
        below.set(xlabel="s", xlim=(left, right))
        bar = figure.colorbar(image, ax=below, pad=0.01, label="probability")
        bar.ax.axhline(self.threshold, color="white", linewidth=1.5)
        title = f"{Path(str(source.path)).name}: likeliest classes along time ({self.model})"
        figure.suptitle(textwrap.fill(title, TITLE_WIDTH), fontsize="medium", parse_math=False)
        path = self.path(source)
        path.parent.mkdir(parents=True, exist_ok=True)
        save(figure, path)


def likeliest(likely: NDArray[Any], n: int) -> list[int]:
    """Return the classes whose largest probability along time is largest, in descending order."""
    best: list[int] = np.argsort(-likely.max(0), kind="stable")[:n].tolist()
    return best


def spectrogram(
    source: Source, spec: MelSpec, start: float, end: float, *, keep_damaged: bool = False
) -> NDArray[np.float32]:
    """Compute the log-mel spectrogram of a part of a file, in blocks: (n_mels, frames), at most `MAX_COLUMNS` about.

    Parameters
    ----------
    source : the file, with its channel
    spec : of the spectrogram
    start, end : in s from the beginning of the file
    keep_damaged : see `AudioFile`
    """
    frontend, rate = spec.build(), spec.sample_rate
    step = max(1, round((end - start) * rate / spec.hop_length / MAX_COLUMNS))  # frames that are averaged
    columns = []

    def ignore(warning: str) -> None:
        """Return without a word: whoever embedded the file warned of it."""

    with AudioFile(source.path, channel=source.channel, keep_damaged=keep_damaged, warn=ignore) as file:
        whole = (source.start, source.end) == (0.0, math.inf)
        for block in file.blocks(rate, BLOCK_SECONDS) if whole else [file.excerpt(rate, start, end - start)]:
            clip = block.reshape(1, -1)
            if clip.shape[1] < spec.min_samples:
                clip = clip[:, reflect(torch.arange(spec.min_samples), clip.shape[1])]
            with torch.no_grad():
                mel = frontend(clip)[0]
            mel = (
                torch.nn.functional.avg_pool1d(mel, step, ceil_mode=True, count_include_pad=False) if step > 1 else mel
            )
            columns.append(mel.numpy())
    return np.concatenate(columns, 1)
