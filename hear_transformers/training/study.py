"""The families beside each other on little data: small networks, from scratch, the same steps for all.

    python -m hear_transformers.training.study --data ../shared/data/esc10 --out RUNS

Every system is trained on three folds of ESC-10 and scored on the fourth, in turn, with the network of the last epoch,
so that nothing is chosen on what is scored. A fold that is done is not trained again.
"""

from __future__ import annotations

import csv
import json
import statistics
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from importlib import import_module
from pathlib import Path
from typing import Any

import click
import torch

from .. import catalogue
from .loop import Processes
from .recipes import RECIPES, Recipe
from .train import Options, Training

CLIP_SECONDS = 5.0
FOLDS = (1, 2, 3, 4)
TIMED_STEPS = 5
RESULT = "result.json"

RECIPE = replace(RECIPES["scratch"], epochs=20, seconds=CLIP_SECONDS, warm_up_epochs=2.0)
"""The same for all: 20 passes over 240 clips."""


@dataclass(frozen=True, slots=True)
class System:
    """A network of the study: a variant, made small.

    Attributes
    ----------
    family, variant : of the network
    network : what differs from the variant
    training : what holds in training alone
    """

    family: str
    variant: str
    network: Mapping[str, Any] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)


TRANSFORMER = {"dim": 192, "depth": 6, "heads": 3}  # half as deep as DeiT-Ti
PYRAMID = {"channels": (32, 64, 160, 256), "depths": (1, 1, 3, 1)}  # about half of Pyramid ViG-Ti
SYSTEMS = {
    "AST": System("ast", "esc50_10_10", TRANSFORMER),
    "PaSST without patchout": System("passt", "base", TRANSFORMER),
    # As large a part of the 49 columns and 12 rows as the authors leave out of 99 and 12.
    "PaSST with patchout": System("passt", "base", TRANSFORMER, {"patchout": (4, 20)}),
    "MAST": System("mast", "tiny", {"dim": 48, "depths": (1, 1, 3, 1)}),
    "ATGNN encoder": System("atgnn", "pyr_t_encoder", PYRAMID),
    "ATGNN": System("atgnn", "pyr_t", {**PYRAMID, "label_depths": (1, 1, 1, 1)}),
    "CNN10": System("panns", "cnn10"),
}


def write_folds(data: Path, out: Path) -> dict[int, tuple[Path, Path]]:
    """Write manifests that leave one fold out each: -> fold: (train, valid)."""
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


def trained(
    system: System, manifests: tuple[Path, Path], out: Path, recipe: Recipe, options: Mapping[str, Any]
) -> dict[str, float]:
    """Train one system on one fold, unless that is done: gives its accuracy after the last epoch, and its size."""
    result = out / RESULT
    if result.exists():
        return dict(json.loads(result.read_text()))
    train, valid = manifests
    training = Training(
        Options(
            family=system.family,
            variant=system.variant,
            network=system.network,
            train=train,
            valid=valid,
            out=out,
            recipe=replace(recipe, network=system.training),
            **options,
        ),
        Processes(0, 1, catalogue.pick_device("auto")),
    )
    training.fit()
    with (out / "epochs.csv").open(newline="") as file:
        *_, last = csv.DictReader(file)
    row = import_module(f"hear_transformers.{system.family}").VARIANTS[system.variant]
    network = {**row.network, **system.network, "n_classes": len(training.train.classes)}
    values = {
        "accuracy": float(last["accuracy"]),
        "clips": len(training.valid),
        "parameters": sum(parameter.numel() for parameter in training.objective.trunk.parameters()),
        "macs": catalogue.count_macs(system.family, replace(row, network=network), CLIP_SECONDS),
        "seconds_per_step": seconds_per_step(training),
    }
    result.write_text(json.dumps(values))
    return values


def seconds_per_step(training: Training) -> float:
    """Time a few more steps, from waveforms on the device to new weights; the median."""
    device = training.processes.device
    times = []
    with torch.random.fork_rng():
        for batch in training.batches(range(TIMED_STEPS)):
            begin = time.perf_counter()
            training.run.advance(batch)
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - begin)
    return statistics.median(times)


def table(results: Mapping[str, list[dict[str, float]]]) -> Iterator[str]:
    """Write the results of every system as lines of Markdown."""
    yield "| system | accuracy | folds | parameters | GMACs a clip | s a step |"
    yield "|---|---:|---|---:|---:|---:|"
    for name, folds in results.items():
        right = sum(fold["accuracy"] * fold["clips"] for fold in folds)
        each = ", ".join(f"{fold['accuracy']:.3f}" for fold in folds)
        seconds = statistics.median(fold["seconds_per_step"] for fold in folds)
        yield (
            f"| {name} | {right / sum(fold['clips'] for fold in folds):.3f} | {each} | "
            f"{folds[0]['parameters']:,} | {folds[0]['macs'] / 1e9:.2f} | {seconds:.2f} |"
        )


@click.command()
@click.option(
    "--data",
    type=click.Path(exists=True, file_okay=False, path_type=Path),
    required=True,
    help="labels.csv and audio/.",
)
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of the runs.")
@click.option(
    "--system", "names", type=click.Choice(list(SYSTEMS)), multiple=True, help="Only this one.  [default: all]"
)
@click.option("--epochs", type=click.IntRange(1), default=RECIPE.epochs, show_default=True)
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
def main(data: Path, out: Path, names: tuple[str, ...], epochs: int, seed: int) -> None:
    """Compare small networks on ESC-10, all folds, equal steps."""
    out.mkdir(parents=True, exist_ok=True)
    manifests = write_folds(data, out)
    recipe = replace(RECIPE, epochs=epochs)
    results = {}
    for name in names or SYSTEMS:
        slug = name.lower().replace(" ", "_")
        folds = [
            trained(SYSTEMS[name], manifests[fold], out / f"{slug}-{fold}", recipe, {"seed": seed}) for fold in FOLDS
        ]
        results[name] = folds
        click.echo(f"{name}: {[fold['accuracy'] for fold in folds]}", err=True)
    click.echo("\n".join(table(results)))


if __name__ == "__main__":
    main()
