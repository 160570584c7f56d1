"""One training run from manifests to a checkpoint: what `hear-transformers train` does."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from torch import nn

from .. import catalogue
from ..checkpoints import state_dicts
from ..errors import OptionError, TrainingError
from ..files import sha256_of
from ..networks.family import Family
from . import augment, data, initialisation, loop, manifest, tagging
from .recipes import Recipe

SKIPPED = "skipped.txt"
WARNINGS = "warnings.txt"
SETTINGS = "settings.json"


@dataclass(frozen=True, kw_only=True)
class Options:
    """The options of a training run.

    Attributes
    ----------
    family, variant : of the network; None for the family's first variant
    train, valid : manifests, see `manifest.read_labelled`
    out : folder of the run; an interrupted run there is resumed
    recipe : of the training
    source : weights to start from, see `initialisation.init_from`
    network : constructor arguments of the network that replace the variant's and the recipe's
    classes : all names in order, None for those of the training manifest
    multi_label : True if clips may have any number of labels; None to infer it from the training manifest
    seed : of all random draws
    workers : decoding processes per training process
    checkpoint_seconds : work that a killed run may lose, in s
    progress : True to show a bar
    """

    family: str
    train: Path
    valid: Path
    out: Path
    recipe: Recipe
    variant: str | None = None
    source: str = ""
    network: Mapping[str, Any] = field(default_factory=dict)
    classes: tuple[str, ...] | None = None
    multi_label: bool | None = None
    seed: int = 0
    workers: int = 0
    checkpoint_seconds: float = loop.CHECKPOINT_SECONDS
    progress: bool = False


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
        self.options = options
        self.processes = processes
        recipe = options.recipe
        self.family: Family = catalogue.family(options.family).FAMILY
        self.variant_name = options.variant or next(iter(self.family.variants))
        self.train, self.valid = manifest.read_pair(options.train, options.valid, options.classes)
        self.multi_label = self.train.is_multi_label if options.multi_label is None else options.multi_label
        if not self.multi_label and (self.train.is_multi_label or self.valid.is_multi_label):
            raise TrainingError("some clips have several labels, or none; train with multi_label")
        network = {**recipe.network, **options.network}
        trunk, self.fresh = initialisation.init_from(
            self.family, self.variant_name, options.source, n_classes=len(self.train.classes), network=network
        )
        variant = self.family.variants[self.variant_name]
        self.sample_rate = variant.frontend.sample_rate
        self.n_samples = tagging.clip_samples(variant, trunk, recipe)
        self.objective = tagging.Tagging(trunk, variant, recipe, multi_label=self.multi_label)
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

    def _order(self) -> data.Order:
        recipe = self.options.recipe
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

    def describe(self) -> list[str]:
        """Describe the run in a few lines of text."""
        options, recipe = self.options, self.options.recipe
        n_parameters = sum(parameter.numel() for parameter in self.objective.trunk.parameters())
        start = f"from {options.source}" if options.source else "from random weights"
        lines = [
            f"{options.family}/{self.variant_name}: {n_parameters:,} parameters, {start}",
            f"{len(self.train):,} clips to train on, {len(self.valid):,} to validate, "
            f"{len(self.train.classes)} classes, {'several labels' if self.multi_label else 'one label'} a clip",
            f"{recipe.epochs} epochs of {self.run.steps_per_epoch} steps of {recipe.batch_size} clips of "
            f"{self.n_samples / self.sample_rate:g} s, {recipe.optimiser} at {recipe.learning_rate:g}",
        ]
        if options.source and self.fresh:
            lines.append(f"reinitialised: {', '.join(self.fresh)}")
        return lines

    def settings(self) -> dict[str, Any]:
        """Return everything that determines the results of the run, ready for JSON."""
        options = self.options
        return {
            "family": options.family,
            "variant": self.variant_name,
            "network": json.dumps(dict(options.network)),
            "from": options.source,
            "recipe": json.dumps(asdict(options.recipe)),
            "classes": list(self.train.classes),
            "multi_label": self.multi_label,
            "seed": options.seed,
            "train": sha256_of(options.train),
            "valid": sha256_of(options.valid),
        }

    def fit(self) -> dict[str, float]:
        """Train to the end and return the scores of the best epoch."""
        options = self.options
        options.out.mkdir(parents=True, exist_ok=True)
        if self.processes.rank == 0 and not (options.out / loop.CHECKPOINT).exists():
            (options.out / SETTINGS).write_text(json.dumps(self.settings(), indent=2) + "\n")
        loop.fit(
            self.run,
            self.batches,
            options.out,
            validate=tagging.make_validation(self.objective, self.validation_batches, self.processes),
            keep=self.keep,
            checkpoint_seconds=options.checkpoint_seconds,
            progress=options.progress,
        )
        return self.run.best

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
            draw=partial(augment.draw, self.options.recipe, n_mels=n_mels, n_frames=n_frames),
            **self._loading(),
        )
        for batch in source:
            self._skip(batch)
            yield batch.to(self.processes.device)

    def validation_batches(self) -> Iterator[tuple[Any, data.Batch]]:
        """Yield this process's rows of the validation set, batch by batch."""
        size = max(1, self.options.recipe.batch_size // self.processes.count)
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
            "network": json.dumps({**self.options.network, "n_classes": len(self.train.classes)}),
            "labels": json.dumps(self.train.classes),
            "multi_label": json.dumps(self.multi_label),
            "step": str(self.run.step),
            "scores": json.dumps(self.run.best),
        }
        state_dicts.write(path, network, metadata)
