"""One training run from manifests to a checkpoint: what `hear-transformers train` does."""

from __future__ import annotations

import contextlib
import copy
import json
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import catalogue
from ..bulk.journal import explained
from ..checkpoints import state_dicts
from ..checkpoints.hugging_face import BEST
from ..embedding.precision import AUTO, resolve
from ..errors import OptionError, TrainingError, import_extra
from ..files import atomic
from ..networks.family import Family, variant_of, with_normalisation
from . import augment, clip_length, data, initialisation, loop, manifest, results, tagging
from .recipes import Recipe, with_changes

EXTRA = ("sklearn", "scipy", "matplotlib")
"""What training needs besides this package: for scores, and for pictures at its end."""

ENOUGH = 0.8
"""Fraction of a clip that the longest audio fills, above which nothing is said."""

SKIPPED, WARNINGS = "skipped.txt", "warnings.txt"
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a training run.

    Attributes
    ----------
    family, variant : of the network; None for the family's first variant
    train : table or folder of the clips, see `manifest.read_labelled`
    valid : the same for validation, or which part of `train` it is, see `manifest.read_pair`
    out : folder of the run; an interrupted run there is resumed
    recipe : of the training
    layout : of the tables
    source : weights to start from, see `initialisation.init_from`
    network : constructor arguments of the network that replace the variant's and the recipe's
    normalisation : mean and standard deviation of the recordings, as the authors' training code takes them; None for
        those of the file that training starts from, or of the variant
    classes : all names in order, None for those of the training manifest
    multi_label : True if clips may have any number of labels; None to infer it from the training manifest
    seed : of all random draws
    workers : decoding processes per training process
    checkpoint_seconds : work that a killed run may lose, in s
    progress : True to show a bar
    log : called with lines of text on the way, see `loop.fit`
    tensorboard : True to write the curves for TensorBoard, too
    """

    family: str
    train: Path
    valid: Path | str
    out: Path
    recipe: Recipe
    variant: str | None = None
    layout: manifest.Layout = field(default_factory=manifest.Layout)
    source: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    normalisation: Sequence[float] | None = None
    classes: tuple[str, ...] | None = None
    multi_label: bool | None = None
    seed: int = 0
    workers: int = 0
    checkpoint_seconds: float = loop.CHECKPOINT_SECONDS
    progress: bool = False
    log: Callable[[str], None] | None = None
    tensorboard: bool = False


class Training:
    """A run, ready for its first step: files are checked, the network is built.

    Parameters
    ----------
    options : of the run
    processes : that train together

    Raises
    ------
    HearTransformersError : a manifest, a checkpoint or an option is wrong
    """

    def __init__(self, options: Options, processes: loop.Processes) -> None:
        for module in EXTRA:
            import_extra("training", module, "train")
        if options.tensorboard:
            import_extra("--tensorboard", "tensorboard", "tensorboard")
        self.options = options
        self.processes = processes
        self.recipe = recipe = with_changes(options.recipe, precision=self._precision())
        self.family: Family = catalogue.family(options.family).FAMILY
        self.variant_name, usual = variant_of(self.family, options.variant)
        self.network = {**recipe.network, **options.network}
        size = max(1, recipe.batch_size // processes.count)
        self.variant, self.n_samples = clip_length.plan_clips(
            self.family, self.variant_name, recipe, self.network, size
        )
        if options.normalisation is None:
            self.variant = initialisation.with_normalisation_of(self.family, self.variant, options.source)
        self.variant = with_normalisation(self.variant, options.normalisation)
        self.normalisation = self.variant.frontend.normalisation
        self.is_usual = self.normalisation == usual.frontend.normalisation
        self.sample_rate = self.variant.frontend.sample_rate
        self.train, self.valid = manifest.read_pair(
            options.train, options.valid, options.classes, options.layout, seed=options.seed
        )
        self.multi_label = self.train.is_multi_label if options.multi_label is None else options.multi_label
        if not self.multi_label and (self.train.is_multi_label or self.valid.is_multi_label):
            raise TrainingError("some clips have several labels, or none; train with multi_label")
        trunk, self.fresh = initialisation.init_from(
            self.family, self.variant_name, options.source, n_classes=len(self.train.classes), network=self.network
        )
        self.objective = tagging.Tagging(trunk, self.variant, recipe, multi_label=self.multi_label)
        self.order = self._order()
        self.run = loop.TrainingRun(
            self.objective,
            recipe,
            steps_per_epoch=self.order.steps_per_epoch,
            seed=options.seed,
            processes=processes,
            settings=self.settings(),
            fresh=tuple(f"trunk.{name}" for name in self.fresh) if options.source else (),
        )
        self.skipped: set[str] = set()
        self.warned: set[str] = set()

    def _precision(self) -> str:
        """Return the recipe's precision; what "auto" chose is kept where the run is resumed, on whatever machine."""
        precision = resolve(self.options.recipe.precision, self.processes.device)
        if self.options.recipe.precision == AUTO and (self.options.out / loop.CHECKPOINT).exists():
            with contextlib.suppress(OSError, ValueError, TypeError, KeyError):  # it is compared with the checkpoint's
                precision = json.loads((self.options.out / SETTINGS).read_text())["precision"]
        return precision

    def _order(self) -> data.Order:
        recipe = self.recipe
        if recipe.batch_size % self.processes.count:
            raise OptionError(
                f"batch_size={recipe.batch_size} is no multiple of {self.processes.count} processes; choose one that is"
            )
        if recipe.mixups and self.processes.count > 1 and recipe.batch_size // self.processes.count % 2:
            raise OptionError(
                f"batch_size={recipe.batch_size} on {self.processes.count} processes separates pairs of mixup; "
                "choose one that gives each process an even number"
            )
        weights = None if recipe.balance is None else data.class_balanced(self.train, recipe.balance)
        return data.Order(
            len(self.train), recipe.batch_size, self.options.seed, weights=weights, epoch_clips=recipe.epoch_clips
        )

    @property
    def name(self) -> str:
        """Family and variant."""
        return f"{self.options.family}/{self.variant_name}"

    @property
    def _start(self) -> str:
        return f"from {self.options.source}" if self.options.source else "from random weights"

    @property
    def data_in_words(self) -> str:
        """Number of clips and classes."""
        return (
            f"{len(self.train):,} clips to train on, {len(self.valid):,} to validate, "
            f"{len(self.train.classes)} classes, {'several labels' if self.multi_label else 'one label'} a clip"
        )

    def describe(self) -> list[str]:
        """Describe the run in a few lines of text."""
        options, recipe = self.options, self.recipe
        n_parameters = sum(parameter.numel() for parameter in self.objective.trunk.parameters())
        limits = clip_length.describe_limits(
            self.variant.frontend, *clip_length.clip_limits(self.variant, self.objective.trunk)
        )
        lines = [
            f"{self.name}: {n_parameters:,} parameters, {self._start}",
            self.data_in_words,
            *([f"trained on {self.train.part}, validated on {self.valid.part}"] if self.valid.part else []),
            f"{recipe.epochs} epochs of {self.run.steps_per_epoch} steps of {recipe.batch_size} clips of "
            f"{self.n_samples / self.sample_rate:g} s (the network takes {limits}), {recipe.optimiser} at "
            f"{recipe.learning_rate:g}, in {recipe.precision}",
            *(
                []
                if self.is_usual
                else ["normalised by mean {:g} and deviation {:g}".format(*self.normalisation or ())]
            ),
            *self._advice(),
        ]
        if options.source and self.fresh:
            lines.append(f"reinitialised: {', '.join(self.fresh)}")
        return lines

    def enough_seconds(self) -> tuple[float, float] | None:
        """Return a length of clips in s that leaves out the silence behind short ones, and the share of work it spares.

        None if that would be little: nearly as long as the clips of this run.
        """
        shortest, _ = clip_length.clip_limits(self.variant, self.objective.trunk)
        longest = data.longest_of_some(self.train)
        n_samples = max(shortest, round(longest * self.sample_rate))
        share = clip_length.frames_of(self.variant, n_samples) / clip_length.frames_of(self.variant, self.n_samples)
        return (math.ceil(10 * n_samples / self.sample_rate) / 10, 1 - share) if longest and share <= ENOUGH else None

    def _advice(self) -> list[str]:
        """Return a line if the network would mostly train on the silence behind short clips."""
        if (enough := self.enough_seconds()) is None:
            return []
        return [
            f"{data.N_LOOKED_AT} clips that were looked at are shorter, what follows is silence: --seconds "
            f"{enough[0]:g} would spare {100 * enough[1]:.0f} % of the work"
        ]

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the results of the run, ready for JSON."""
        options = self.options
        return {
            "family": options.family,
            "variant": self.variant_name,
            "network": json.dumps(dict(options.network)),
            "from": options.source,
            "normalisation": json.dumps(self.normalisation),
            "recipe": json.dumps(asdict(options.recipe)),
            "precision": self.recipe.precision,
            "classes": list(self.train.classes),
            "multi_label": self.multi_label,
            "seed": options.seed,
            "train": self.train.digest(),
            "valid": self.valid.digest(),
        }

    def fit(self) -> dict[str, float]:
        """Train to the end, write what the best network predicts, and return its scores.

        Raises
        ------
        TrainingError : see `loop.fit`; or the folder cannot be written
        DiskFullError : the disk of the outputs is full
        """
        out = self.options.out
        try:
            with explained(out):
                self._fit(out)
        except OSError as error:
            kept = "the run is kept up to its last checkpoint: run the same command again to resume"
            raise TrainingError(f"{error.filename or out}: {error.strerror or error}; {kept}") from error
        return self.run.best

    def _fit(self, out: Path) -> None:
        """Train to the end, and write all that a run leaves."""
        options = self.options
        out.mkdir(parents=True, exist_ok=True)
        if self.processes.rank == 0 and not (out / loop.CHECKPOINT).exists():
            with atomic(out / SETTINGS) as file:
                file.write(json.dumps(self.settings(), indent=2).encode() + b"\n")
        loop.fit(
            self.run,
            self.batches,
            out,
            validate=lambda network: tagging.score(self.objective, self._predictions(network)),
            keep=self.keep,
            checkpoint_seconds=options.checkpoint_seconds,
            progress=options.progress,
            log=options.log,
            tensorboard=options.tensorboard,
            title=f"{self.name} {self._start}; {self.train.source.name}: {self.data_in_words}",
        )
        self._write_results()

    def _predictions(self, network: nn.Module) -> tagging.Predictions:
        return tagging.predict(self.objective, self.validation_batches, self.processes, network)

    def _write_results(self) -> None:
        """Write what the best network says of the validation set, see `results`; in every process."""
        best = self.options.out / BEST
        # From the first process, which has written it and may be the only one that sees the folder.
        states = self.processes.gather(state_dicts.read_state_dict(best) if self.processes.rank == 0 else None)[0]
        network = copy.deepcopy(self.objective.trunk)
        state_dicts.load_into(network, states, best)
        rows, targets, logits = self._predictions(network)
        if self.processes.rank == 0:
            results.write_results(
                self.options.out, self.valid, rows, targets.numpy(), logits.numpy(), multi_label=self.multi_label
            )

    def batches(self, steps: range) -> Iterator[data.Batch]:
        """Yield this process's part of the batches of some steps, on the device."""
        n_mels, n_frames = self.objective.mel_shape(self.n_samples)
        source = data.batches(
            self.train,
            self.order,
            steps,
            sample_rate=self.sample_rate,
            n_samples=self.n_samples,
            seed=self.options.seed,
            draw=partial(augment.draw, self.recipe, n_mels=n_mels, n_frames=n_frames),
            **self._loading(),
        )
        for batch in source:
            self._skip(batch)
            yield batch.to(self.processes.device)

    def validation_batches(self) -> Iterator[tuple[Any, data.Batch]]:
        """Yield this process's rows of the validation set, batch by batch."""
        size = max(1, self.recipe.batch_size // self.processes.count)
        source = data.validation_batches(
            self.valid, size, sample_rate=self.sample_rate, n_samples=self.n_samples, **self._loading()
        )
        for rows, batch in source:
            self._skip(batch)
            yield rows, batch

    def _loading(self) -> dict[str, Any]:
        return {
            "part": (self.processes.rank, self.processes.count),
            "workers": self.options.workers,
            "pin_memory": self.processes.device.type == "cuda",
        }

    def _skip(self, batch: data.Batch) -> None:
        """Log the clips of a batch that could not be read, and warnings about others, each once."""
        logs = ((SKIPPED, batch.failures, self.skipped), (WARNINGS, batch.warnings, self.warned))
        for name, messages, logged in logs:
            new = [message for message in messages if message not in logged]
            if new:
                logged.update(new)
                with (self.options.out / name).open("a") as file:
                    file.writelines(f"{message}\n" for message in new)
        if not batch.weights.any():
            raise TrainingError(f"none of the {len(batch.weights)} clips of a batch could be read: {batch.failures[0]}")

    def keep(self, network: nn.Module, path: Path) -> None:
        """Write a network as a checkpoint that `load_model(path)` reads."""
        metadata = {
            "family": self.options.family,
            "variant": self.variant_name,
            "network": json.dumps({**self.network, "n_classes": len(self.train.classes)}),
            **({} if self.is_usual else {"normalisation": json.dumps(self.normalisation)}),
            "labels": json.dumps(self.train.classes),
            "multi_label": json.dumps(self.multi_label),
            "step": str(self.run.step),
            "scores": json.dumps(self.run.best),
        }
        state_dicts.write(path, network, metadata)
