"""Comparison of the families on little data: small networks, from scratch, the same steps for all.

    python -m hear_transformers.benchmarks.study --data ../shared/data/esc10 --out RUNS

Every system is trained on three folds of ESC-10 and scored on the fourth, in turn, with the network of the last epoch,
so that nothing is selected on the test fold. Complete folds are kept.
"""

from __future__ import annotations

import csv
import time
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import click
import torch

from ..embedding.devices import pick_device
from ..networks import counting
from ..training.curves import EPOCHS
from ..training.loop import Processes
from ..training.recipes import RECIPES
from ..training.train import Options, Training

CLIP_SECONDS = 5.0
FOLDS = (1, 2, 3, 4)
TIMED_STEPS = range(5, 50)
"""Fewest and most steps to time, within `TIMED_SECONDS`."""

TIMED_SECONDS = 8.0

RECIPE = replace(
    RECIPES["scratch"],
    epochs=10,
    batch_size=16,
    learning_rate=1e-3,
    warm_up_epochs=1.0,
    mixups=(),  # slows the start of training, and the run is short
    seconds=CLIP_SECONDS,
)
"""For every network: 10 epochs of 240 clips, 150 steps."""

FINE_TUNING = replace(
    RECIPES["fine_tune"], epochs=10, batch_size=16, learning_rate=3e-4, precision="float32", seconds=CLIP_SECONDS
)
"""For a network pretrained on AudioSet."""


@dataclass(frozen=True, slots=True)
class SmallVariant:
    """A network of the study: a variant, made small.

    Attributes
    ----------
    family, variant : of the network
    network : constructor arguments that replace the variant's
    training : further ones during training
    source : weights to start from, see `initialisation.init_from`
    """

    family: str
    variant: str
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    source: str = ""


TRANSFORMER = {"dim": 128, "depth": 4, "heads": 2}
PYRAMID = {"channels": (16, 32, 80, 128), "depths": (1, 1, 2, 1)}  # a third of Pyramid ViG-Ti's features
SYSTEMS = {
    "AST": SmallVariant("ast", "esc50_10_10", TRANSFORMER),
    "PaSST without patchout": SmallVariant("passt", "base", TRANSFORMER),
    # The same fractions of 49 columns and 12 rows as the authors' of 99 and 12.
    "PaSST with patchout": SmallVariant("passt", "base", TRANSFORMER, {"patchout": (4, 20)}),
    "MAST": SmallVariant("mast", "tiny", {"dim": 32, "depths": (1, 1, 2, 1)}),
    "ATGNN encoder": SmallVariant("atgnn", "pyr_t_encoder", PYRAMID),
    "ATGNN": SmallVariant("atgnn", "pyr_t", {**PYRAMID, "label_depths": (1, 1, 1, 1)}),
    "CNN10": SmallVariant("panns", "cnn10"),
}
FINE_TUNED = "EfficientAT mn04, fine-tuned"


def write_folds(data: Path, out: Path) -> dict[int, tuple[Path, Path]]:
    """Write manifests that leave one fold out each: fold -> (train, valid)."""
    with (data / "labels.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    manifests = {}
    for fold in FOLDS:
        paths = out / f"train-{fold}.csv", out / f"valid-{fold}.csv"
        for path, is_left_out in zip(paths, (False, True), strict=True):
            chosen = [row for row in rows if (int(row["fold"]) == fold) == is_left_out]
            lines = [f"{(data / 'audio' / row['filename']).resolve()},{row['label']}" for row in chosen]
            path.write_text("\n".join(["path,labels", *lines]) + "\n")
        manifests[fold] = paths
    return manifests


@dataclass(frozen=True, slots=True)
class Study:
    """The runs of a study.

    Attributes
    ----------
    out : folder of the runs
    folds : manifests for training and scoring, by fold
    epochs : of every run from scratch
    seed : of every run
    """

    out: Path
    folds: Mapping[int, tuple[Path, Path]]
    epochs: int
    seed: int

    def training(self, system: SmallVariant, name: str, fold: int) -> Training:
        """Prepare a run."""
        train, valid = self.folds[fold]
        recipe = FINE_TUNING if system.source else replace(RECIPE, epochs=self.epochs)
        options = Options(
            family=system.family,
            variant=system.variant,
            network=system.network,
            source=system.source,
            train=train,
            valid=valid,
            out=self.out / f"{name.lower().replace(' ', '_').replace(',', '')}-{fold}",
            recipe=replace(recipe, network=system.training),
            seed=self.seed,
            progress=True,
        )
        return Training(options, Processes(0, 1, pick_device("auto")))

    def score(self, system: SmallVariant, name: str, fold: int) -> tuple[float, int]:
        """Train on the other folds, and return the accuracy after the last epoch and the number of clips."""
        training = self.training(system, name, fold)
        training.fit()
        with (training.options.out / EPOCHS).open(newline="") as file:
            *_, last = csv.DictReader(file)
        return float(last["accuracy"]), len(training.valid)

    def measure_cost(self, system: SmallVariant, name: str) -> tuple[int, int, float]:
        """Return parameters, multiply-accumulates of a clip, and seconds per step."""
        training = self.training(system, name, FOLDS[0])
        row = training.family.variants[system.variant]
        network = {**row.network, **system.network, "n_classes": len(training.train.classes)}
        macs = counting.count_macs(training.family, replace(row, network=network), CLIP_SECONDS)
        n_parameters = sum(parameter.numel() for parameter in training.objective.trunk.parameters())
        return n_parameters, macs, time_step(training)


def time_step(training: Training) -> float:
    """Return the seconds of the fastest step, as the machine may be shared: from waveforms to updated weights."""
    device = training.processes.device
    times = []
    with torch.random.fork_rng():
        for batch in training.batches(range(TIMED_STEPS.stop)):
            begin = time.perf_counter()
            training.run.advance(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
            if len(times) >= TIMED_STEPS.start and sum(times) > TIMED_SECONDS:
                break
    return min(times)


def format_line(study: Study, system: SmallVariant, name: str) -> str:
    """Score a network on every fold, and format a line of Markdown."""
    scores = [study.score(system, name, fold) for fold in FOLDS]
    mean = sum(score * n for score, n in scores) / sum(n for _, n in scores)
    n_parameters, macs, seconds = study.measure_cost(system, name)
    each = ", ".join(f"{score:.3f}" for score, _ in scores)
    return f"| {name} | {mean:.3f} | {each} | {n_parameters:,} | {macs / 1e9:.2f} | {seconds:.2f} |"


@click.command()
@click.option("--data", type=click.Path(exists=True, file_okay=False, path_type=Path), required=True, help="ESC-10.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option("--weights", default="", metavar="FILE", help="The authors' mn04_as_mAP_432.pt, to fine-tune it too.")
@click.option(
    "--epochs", type=click.IntRange(1), default=RECIPE.epochs, show_default=True, help="Of runs from scratch."
)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of all runs.")
def main(data: Path, out: Path, weights: str, epochs: int, seed: int) -> None:
    """Compare small networks on ESC-10, all folds, equal steps; DATA contains labels.csv and audio/."""
    out.mkdir(parents=True, exist_ok=True)
    study = Study(out, write_folds(data, out), epochs, seed)
    systems = dict(SYSTEMS)
    if weights:
        systems[FINE_TUNED] = SmallVariant("efficientat", "mn04_as", source=weights)
    click.echo("| system | accuracy | folds | parameters | GMACs a clip | s a step |")
    click.echo("|---|---:|---|---:|---:|---:|")
    for name, system in systems.items():
        click.echo(format_line(study, system, name))


if __name__ == "__main__":
    main()
