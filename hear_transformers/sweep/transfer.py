"""Networks that are trained on a task, beside probes of what they embed.

Kong et al., 1912.10211, section VI, train from random weights, train on from AudioSet's, and train one or three layers
on a network that stays as it is. The last two are probes of its embedding: "logistic", and HEAR's "mlp".

Not as there: the recipes are ours, the best epoch is chosen on clips of their own, and clips are not padded to the
length that the network was trained on, where it takes shorter ones.
"""

from __future__ import annotations

import csv
import json
import math
import shlex
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from .. import catalogue
from ..checkpoints.hugging_face import BEST
from ..embedding.devices import pick_device
from ..errors import OptionError
from ..files import atomic_path
from ..probes import fitting, metrics
from ..probes.data import embed_clips, taken_rows
from ..probes.tasks import Split
from ..training import loop
from ..training.initialisation import PUBLISHED, row_with
from ..training.manifest import Layout
from ..training.recipes import RECIPES, Recipe, with_changes
from ..training.train import SETTINGS, Options, Training
from .passes import Chosen
from .subjects import Data, Scenes, Scores, Subject, told

SCRATCH, FINE_TUNED = "scratch", "fine-tune"

WAYS = {SCRATCH: "scratch", FINE_TUNED: "fine_tune"}
"""Ways to train, in the tables -> recipe."""

LOGITS = "logits"

LAYOUT = Layout(separator="\t")
"""Of the tables that training reads: no name of a class has a tab."""

TESTED = "tested"
"""Folder of what the trained network says of the clips that are tested."""


@dataclass(frozen=True, slots=True, kw_only=True)
class How:
    """How networks are trained.

    Attributes
    ----------
    epochs : None for those of the recipes
    device : "auto", or a name of PyTorch
    log : called with lines of text on the way
    """

    epochs: int | None = None
    device: str = "auto"
    log: Callable[[str], None] | None = None

    def recipe(self, way: str) -> Recipe:
        """Return the recipe of a way to train."""
        recipe = RECIPES[WAYS[way]]
        return recipe if self.epochs is None else with_changes(recipe, epochs=self.epochs)


def ways_of(chosen: Chosen) -> tuple[str, ...]:
    """Return the ways to train a model: from random weights, and on from those that it has."""
    return (SCRATCH,) if chosen.is_random else (SCRATCH, FINE_TUNED)


def check(data: Data, subject: Subject, chosen: Chosen) -> None:
    """Raise OptionError if a network cannot be trained on a task."""
    if not isinstance(subject, Scenes):
        raise OptionError(f"{data.source}: networks are trained on clips, and these are events")
    family, variant, _ = catalogued(chosen)
    row_with(catalogue.family(family).FAMILY, variant, {}, n_classes=len(subject.task.classes))


def catalogued(chosen: Chosen) -> tuple[str, str, int]:
    """Return family, variant and sample rate of a model."""
    name, variant = catalogue.resolve_own(chosen.name)
    variants = catalogue.family(name).FAMILY.variants
    variant = next(iter(variants)) if variant is None else variant
    return name, variant, variants[variant].frontend.sample_rate


@dataclass(frozen=True, slots=True)
class Run:
    """A network that is trained on a task in one way, once for each split.

    Attributes
    ----------
    subject : labelled clips
    chosen : the model
    way : of `WAYS`
    folder : for tables and runs; a run there that was interrupted goes on
    how : it is trained
    workers : processes that read audio
    """

    subject: Scenes
    chosen: Chosen
    way: str
    folder: Path
    how: How
    workers: int

    def score(self) -> Scores:
        """Train for each split, and score on what it tests; of the runs the best networks stay."""
        task = self.subject.task
        probabilities = np.zeros(task.targets.shape, np.float32)
        tested = []
        for number, split in enumerate(task.splits, 1):
            if self.how.log:
                self.how.log(f"{self.chosen.label}, {self.way}: split {number} of {len(task.splits)}")
            kept, found = self._predict(split, self._train(split, number))
            probabilities[kept] = found
            tested.append(kept)
        scores = metrics.score_all(task.targets, probabilities, task.groups, tested, multi_label=task.multi_label)
        for path in self.folder.glob(f"*/{loop.CHECKPOINT}"):  # four times as large as the network, and done with
            path.unlink()
        return told(scores)

    @property
    def source(self) -> str:
        """Weights to start from."""
        return "" if self.way == SCRATCH else self.chosen.weights or PUBLISHED

    @property
    def command(self) -> str:
        """Command that trains as for the first split, once that has been done."""
        task, recipe = self.subject.task, self._recipe(self.subject.task.splits[0])
        held = self.folder / "1" / SETTINGS
        seconds = json.loads(json.loads(held.read_text())["recipe"])["seconds"] if held.is_file() else None
        words = ["hear-transformers", "train", "--model", self.chosen.name, "--recipe", WAYS[self.way]]
        for name in ("train", "valid"):
            words += [f"--{name}", str(self._table(1, name))]
        words += ["--label-separator", LAYOUT.separator] if task.multi_label else []
        words += ["--from", self.source] if self.source else []
        words += ["--multi-label" if task.multi_label else "--single-label"]
        words += ["--epochs", f"{recipe.epochs}", "--batch-size", f"{recipe.batch_size}"]
        words += [] if seconds is None else ["--seconds", f"{seconds:g}"]
        return shlex.join([*words, "--seed", f"{self.subject.seed}", "--out", "trained"])

    def _recipe(self, split: Split) -> Recipe:
        recipe = self.how.recipe(self.way)
        return with_changes(recipe, batch_size=min(recipe.batch_size, len(split.train)))

    def _table(self, number: int, name: str) -> Path:
        return self.folder / f"{number}-{name}.csv"

    def _train(self, split: Split, number: int) -> Path:
        """Train for a split: return the network that was best on its validation clips."""
        self._write_table(self._table(number, "train"), split.train)
        self._write_table(self._table(number, "valid"), split.valid)
        family, variant, _ = catalogued(self.chosen)
        options = Options(
            family=family,
            variant=variant,
            source=self.source,
            train=self._table(number, "train"),
            valid=self._table(number, "valid"),
            out=self.folder / f"{number}",
            recipe=self._recipe(split),
            layout=LAYOUT,
            classes=self.subject.task.classes,
            multi_label=self.subject.task.multi_label,
            seed=self.subject.seed,
            workers=self.workers,
            log=self.how.log,
        )
        processes = loop.Processes(0, 1, pick_device(self.how.device))
        training = Training(options, processes)
        if (enough := training.enough_seconds()) is not None:
            training = Training(replace(options, recipe=with_changes(options.recipe, seconds=enough[0])), processes)
        training.fit()
        return options.out / BEST

    def _write_table(self, path: Path, rows: NDArray[np.int64]) -> None:
        """Write what is trained or validated on as a table."""
        path.parent.mkdir(parents=True, exist_ok=True)
        classes = np.array(self.subject.task.classes)
        with atomic_path(path) as part, part.open("w", newline="", encoding="utf-8", errors="surrogateescape") as file:
            table = csv.writer(file)
            table.writerow(("path", "labels", "start", "end"))
            for row in rows.tolist():
                audio, (start, end) = self.subject.clips[row]
                labels = LAYOUT.separator.join(classes[self.subject.task.targets[row] > 0])
                table.writerow((audio.absolute(), labels, start, "" if math.isinf(end) else end))

    def _predict(self, split: Split, best: Path) -> tuple[NDArray[np.int64], NDArray[np.float32]]:
        """Return the tested clips that can be read, and the probabilities of their classes."""
        family, variant, _ = catalogued(self.chosen)
        model = catalogue.load(f"{family}/{variant}", str(best), self.how.device, {"layer": LOGITS})
        clips = taken_rows(self.subject.labelled, split.test.tolist())
        found = embed_clips(clips, model, best.parent / TESTED, workers=self.workers)
        return split.test[found.kept], fitting.activated(found.embeddings, self.subject.task.multi_label)
