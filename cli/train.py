"""`hear-transformers train`: from two manifests and a recipe to a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hear_transformers import FAMILIES
from hear_transformers.errors import OptionError, did_you_mean
from hear_transformers.training.recipes import RECIPES, Recipe, with_changes

from .config import configurable
from .failures import guarded
from .parsing import parse_changes, parse_normalisation

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
TRAINED = [name for name in FAMILIES if name != "tiny"]
"""Families with a classifier."""

RECIPE_OPTIONS = ("epochs", "batch_size", "learning_rate", "seconds")
F = TypeVar("F", bound=Callable[..., Any])


def recipe_option(name: str, kind: click.ParamType, meaning: str) -> Callable[[F], F]:
    """Make an option that replaces a value of the recipe."""
    return click.option(name, type=kind, help=f"{meaning}  [default: the recipe's]")


@click.command("train", epilog=f"Recipes: {', '.join(RECIPES)}.")
@click.option("--model", metavar="NAME", help=f"{', '.join(TRAINED)}, or a variant of one.  [default: --variant's]")
@click.option("--variant", metavar="NAME", help="Variant, see `hear-transformers list`.  [default: the family's first]")
@click.option("--train", type=click.Path(path_type=Path), required=True, help="Table of clips, or folder of classes.")
@click.option(
    "--valid",
    metavar="FILE|FRACTION|COLUMN=VALUE",
    help="The same to validate on; or a part of --train: 0.1 for a tenth of its files, fold=4 for rows of a column.",
)
@click.option(
    "--columns",
    default="",
    metavar="NAME=COLUMN,...",
    help="What the columns hold, such as path=filename,labels=category,start=onset; or path=audio/{ytid}.wav.",
)
@click.option("--label-separator", default=";", show_default=True, metavar="TEXT", help="Between the labels of a clip.")
@click.option("--out", type=FOLDER, required=True, help="Folder for the run; an interrupted run there is resumed.")
@click.option("--recipe", metavar="NAME", help="Recipe, see below.  [default: fine_tune with --from, else scratch]")
@click.option(
    "--from",
    "source",
    default="",
    metavar="WEIGHTS",
    help="A file, published or imagenet.  [default: random weights]",
)
@recipe_option("--epochs", click.IntRange(1), "Epochs to train for.")
@recipe_option("--batch-size", click.IntRange(1), "Clips per step, over all processes.")
@recipe_option("--learning-rate", click.FLOAT, "Peak learning rate.")
@recipe_option("--seconds", click.FLOAT, "Clip length in s.")
@click.option(
    "--set",
    "changes",
    multiple=True,
    metavar="NAME=VALUE",
    help="Other values of the recipe, JSON or a word: masks=[], precision=float32; may be repeated.",
)
@click.option(
    "--network",
    multiple=True,
    metavar="NAME=VALUE",
    help="Changes to the network, such as depth=4, or '{\"depth\": 4}'; may be repeated.",
)
@click.option(
    "--normalisation", metavar="MEAN,STD", help="Of the recordings.  [default: that of --from, or the model's]"
)
@click.option("--classes", type=FILE, help="Text file with one class per line.  [default: the classes in --train]")
@click.option("--multi-label/--single-label", default=None, help="Several labels per clip.  [default: as in --train]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all random draws.")
@click.option(
    "--num-workers",
    "workers",
    default=2,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Processes that read audio, per training process.",
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option(
    "--checkpoint-seconds", default=300.0, show_default=True, type=click.FloatRange(0), help="Time between checkpoints."
)
@click.option("--tensorboard", is_flag=True, help="Write the curves for TensorBoard, too: tensorboard --logdir FOLDER")
@configurable
@guarded
def train_command(
    model: str | None,
    variant: str | None,
    recipe: str | None,
    changes: tuple[str, ...],
    network: tuple[str, ...],
    normalisation: str | None,
    classes: Path | None,
    columns: str,
    label_separator: str,
    device: str,
    **given: Any,
) -> None:
    """Train or fine-tune a network on labelled audio.

    Clips are listed in a table (.csv, .tsv, .txt or .parquet) with the columns path,labels and optionally start,end
    (s), or in others that --columns names; paths are relative to the table. Or they lie in folders that are named after
    their classes. Running the same command again resumes an interrupted run.

    The output is best.safetensors and model.safetensors (the last epoch), which load_model(path) and embed-audio
    --weights read; the curves of the training; and what the best network makes of the validation set: scores.csv for
    each class, predictions.csv for each clip, and with one label a clip confusion.csv and confusion.png.

    On several GPUs: torchrun --nproc-per-node N --no-python hear-transformers train ...
    """
    if model is None and variant is None:
        raise click.UsageError("no model to train; give --model, a family or a variant of `hear-transformers list`")
    if given["valid"] is None:
        raise click.UsageError("nothing to validate on; give --valid a table like --train, or 0.1 for a tenth of it")
    from tqdm import tqdm

    from hear_transformers import catalogue
    from hear_transformers.bulk.rows import parse_columns

    family, variant = catalogue.resolve_own(model, variant)
    from hear_transformers.embedding.devices import pick_device
    from hear_transformers.training.loop import Processes
    from hear_transformers.training.manifest import Layout
    from hear_transformers.training.train import SKIPPED, WARNINGS, Options, Training

    replaced = {name: given.pop(name) for name in RECIPE_OPTIONS}
    options = Options(
        family=family,
        variant=variant,
        recipe=choose_recipe(recipe or ("fine_tune" if given["source"] else "scratch"), replaced, changes),
        network=parse_changes("--network", network),
        normalisation=None if normalisation is None else parse_normalisation(normalisation),
        classes=read_classes(classes),
        layout=Layout(columns=parse_columns(columns), separator=label_separator),
        progress=sys.stderr.isatty(),
        log=lambda line: tqdm.write(line, file=sys.stderr),
        **given,
    )
    processes = Processes.join(pick_device(device))
    try:
        training = Training(options, processes)
        if processes.rank == 0:
            click.echo("\n".join(training.describe()), err=True)
        best = training.fit()
    finally:
        processes.leave()
    if training.skipped:
        plural = "file" if len(training.skipped) == 1 else "files"
        click.echo(f"{len(training.skipped)} {plural} could not be read: {options.out / SKIPPED} names them", err=True)
    if training.warned:
        click.echo(f"{len(training.warned)} warnings about files that were read: {options.out / WARNINGS}", err=True)
    if processes.rank == 0:
        click.echo(f"{options.out / 'best.safetensors'}: " + ", ".join(f"{name} {best[name]:g}" for name in best))
        click.echo(options.out / "model.safetensors")


def choose_recipe(name: str, replaced: dict[str, Any], changes: tuple[str, ...]) -> Recipe:
    """Return the named recipe with the user's values, None for the recipe's, and the changes of --set."""
    if name not in RECIPES:
        raise OptionError(f"--recipe {name} is unknown; {did_you_mean(name, RECIPES)}")
    values = {key: value for key, value in replaced.items() if value is not None}
    return with_changes(RECIPES[name], **(values | parse_changes("--set", changes)))


def read_classes(path: Path | None) -> tuple[str, ...] | None:
    """Read the names of classes, one per line."""
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8-sig").splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--classes {path}: cannot be read ({error})") from error
