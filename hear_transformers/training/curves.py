"""The curves of a training run: losses per step, scores per epoch, as CSV, as a picture, and for TensorBoard."""

from __future__ import annotations

import csv
import textwrap
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ..files import atomic

STEPS, EPOCHS, PICTURE = "steps.csv", "epochs.csv", "curves.png"
BOARD = "tensorboard"
"""Folder of the events that TensorBoard reads."""

TITLE_WIDTH = 110
"""Letters in a line of the title: of medium size about as many fit into the 10 inches of the picture."""

VALID_LOSS = "valid_loss"
"""Name of the score that is drawn beside the training losses."""


class StepLog:
    """A CSV file with a row per logged step.

    Parameters
    ----------
    path : of the file; rows after `step` are dropped, as a resumed run takes those steps again
    step : steps done
    """

    def __init__(self, path: Path, step: int) -> None:
        self._path = path
        # A run that was killed while writing leaves a partial line.
        lines, _, _ = (path.read_text() if path.exists() else "").rpartition("\n")
        header, *rows = lines.splitlines() or [""]
        kept = [header, *(row for row in rows if int(row.partition(",")[0]) <= step)] if header else []
        with atomic(path) as file:
            file.write("".join(f"{line}\n" for line in kept).encode())
        self._has_header = bool(kept)

    def add(self, step: int, values: Mapping[str, float]) -> None:
        """Append the row of a step."""
        with self._path.open("a", newline="") as file:
            writer = csv.writer(file, lineterminator="\n")
            if not self._has_header:
                writer.writerow(["step", *values])
                self._has_header = True
            writer.writerow([step, *(f"{value:.6g}" for value in values.values())])

    def columns(self) -> dict[str, list[float]]:
        """Read all columns."""
        with self._path.open(newline="") as file:
            rows = list(csv.DictReader(file))
        return {name: [float(row[name]) for row in rows] for name in (rows[0] if rows else ())}


class Curves:
    """The curves of a run in its folder: `STEPS`, `EPOCHS` and `PICTURE`.

    Parameters
    ----------
    folder : of the run
    step : steps done; later rows of the files are dropped
    tensorboard : True to write events into `BOARD`, too; needs the package tensorboard
    """

    def __init__(self, folder: Path, step: int, *, tensorboard: bool = False) -> None:
        self._folder = folder
        self.steps = StepLog(folder / STEPS, step)
        self.epochs = StepLog(folder / EPOCHS, step)
        self._events: Any = None
        if tensorboard:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(folder / BOARD), purge_step=step + 1)

    def add_step(self, step: int, values: Mapping[str, float]) -> None:
        """Append what is known of a step: epoch, learning rate, losses."""
        self.steps.add(step, values)
        self._add_events("training", step, values)

    def add_epoch(self, step: int, values: Mapping[str, float]) -> None:
        """Append what is known of an epoch, whose last step is given: epoch, scores."""
        self.epochs.add(step, values)
        self._add_events("validation", step, values)

    def _add_events(self, group: str, step: int, values: Mapping[str, float]) -> None:
        if self._events:
            for name, value in values.items():
                self._events.add_scalar(f"{group}/{name}", value, step)

    def flush(self) -> None:
        """Write events out, so that a run which is killed has all those up to its last checkpoint."""
        if self._events:
            self._events.flush()

    def plot(self, title: str = "", training: str = "training") -> None:
        """Draw losses and scores over epochs.

        Parameters
        ----------
        title : of the picture
        training : what the losses of the steps are: augmented clips are harder than those of validation
        """
        from matplotlib.figure import Figure

        steps, epochs = self.steps.columns(), self.epochs.columns()
        losses = [(steps, name, f"{name} ({training})") for name in list(steps)[3:]]
        losses += [(epochs, name, "loss (validation, as it is)") for name in epochs if name == VALID_LOSS]
        scores = [(epochs, name, f"{name} (validation)") for name in list(epochs)[2:] if name != VALID_LOSS]
        figure = Figure(figsize=(10, 3.8), layout="constrained")
        for axes, what, curves in zip(figure.subplots(1, 2), ("loss", "score"), (losses, scores), strict=True):
            for table, name, label in curves:
                # A run of one epoch has one score, and a line needs two.
                axes.plot(table["epoch"], table[name], label=label, linewidth=1, marker="." if table is epochs else "")
            axes.set(xlabel="epoch", ylabel=what)
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.grid(alpha=0.3)
            if curves:
                axes.legend(frameon=False, fontsize="small")
        if title:
            figure.suptitle(textwrap.fill(title, TITLE_WIDTH), fontsize="medium", parse_math=False)
        save(figure, self._folder / PICTURE)


def save(figure: Any, path: Path) -> None:
    """Write a picture as its suffix says, atomically, without matplotlib's warnings of letters that its font lacks."""
    with warnings.catch_warnings(), atomic(path) as file:
        warnings.filterwarnings("ignore", message="Glyph .* missing from", category=UserWarning)
        figure.savefig(file, dpi=120, format=path.suffix[1:])
