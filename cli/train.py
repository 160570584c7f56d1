"""`hear-transformers train`: from two manifests and a recipe to a checkpoint."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import click

from hear_transformers import FAMILIES
from hear_transformers.errors import OptionError
from hear_transformers.training.recipes import RECIPES, Recipe, with_changes

from .failures import guarded
from .parsing import parse_json, parse_object

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
F = TypeVar("F", bound=Callable[..., Any])


def changed(name: str, kind: click.ParamType, meaning: str) -> Callable[[F], F]:
    """Make an option that replaces a number of the recipe."""
    return click.option(name, type=kind, help=f"{meaning}  [default: the recipe's]")


@click.command("train", epilog=f"Recipes: {', '.join(RECIPES)}.")
@click.option("--family", type=click.Choice(list(FAMILIES)), required=True, help="Of networks.")
@click.option("--variant", metavar="NAME", help="Row of the family's table.  [default: its first]")
@click.option("--train", "train_file", type=FILE, required=True, help="CSV: path,labels[,start,end]; labels a;b.")
@click.option("--valid", "valid_file", type=FILE, required=True, help="The same for validation.")
@click.option("--out", type=FOLDER, required=True, help="Folder of the run; one that was stopped there goes on.")
@click.option(
    "--recipe", "recipe_name", metavar="NAME", help="See below.  [default: fine_tune with --from, else scratch]"
)
@click.option("--from", "source", default="", metavar="WEIGHTS", help="File, published, imagenet.  [default: random]")
@changed("--epochs", click.IntRange(1), "Passes over the clips.")
@changed("--batch-size", click.IntRange(1), "Clips in a step, over all processes.")
@changed("--learning-rate", click.FLOAT, "The highest.")
@changed("--seconds", click.FLOAT, "Length of the clips in a batch.")
@click.option("--set", "changes", multiple=True, metavar="NAME=JSON", help="Anything else of the recipe: masks=[]")
@click.option("--network", default="{}", metavar="JSON", help="Changes of the network: '{\"depth\": 4}'")
@click.option("--classes", "classes_file", type=FILE, help="Text, a class a line.  [default: those of --train]")
@click.option("--multi-label/--single-label", default=None, help="Several labels a clip.  [default: as in --train]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of all that is drawn.")
@click.option("--workers", default=2, show_default=True, type=click.IntRange(0), help="Processes that decode.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps, cpu.")
@click.option("--checkpoint-seconds", default=300.0, show_default=True, type=click.FloatRange(0), help="Between two.")
@guarded
def train_command(**given: Any) -> None:
    """Train a network on labelled audio, or fine-tune one.

    Writes the curves, the best and the last network into --out: best.safetensors and model.safetensors, which
    load_model(path) and embed-audio --weights read. On several GPUs: torchrun --nproc-per-node N --no-python
    hear-transformers train ...
    """
    from hear_transformers import catalogue
    from hear_transformers.training.loop import Processes
    from hear_transformers.training.train import SKIPPED, Options, Training

    options = Options(
        family=given["family"],
        variant=given["variant"],
        train=given["train_file"],
        valid=given["valid_file"],
        out=given["out"],
        recipe=recipe_of(given),
        source=given["source"],
        network=parse_object("--network", given["network"], '{"depth": 4}'),
        classes=read_classes(given["classes_file"]),
        multi_label=given["multi_label"],
        seed=given["seed"],
        workers=given["workers"],
        checkpoint_seconds=given["checkpoint_seconds"],
        progress=sys.stderr.isatty(),
    )
    processes = Processes.join(catalogue.pick_device(given["device"]))
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
    if processes.rank == 0:
        click.echo(f"{options.out / 'best.safetensors'}: " + ", ".join(f"{name} {best[name]:g}" for name in best))
        click.echo(options.out / "model.safetensors")


def recipe_of(given: dict[str, Any]) -> Recipe:
    """Take the named recipe and what the user changes of it."""
    name = given["recipe_name"] or ("fine_tune" if given["source"] else "scratch")
    if name not in RECIPES:
        raise OptionError(f"--recipe {name} is unknown; choose one of {', '.join(RECIPES)}")
    changes = {
        key: given[key] for key in ("epochs", "batch_size", "learning_rate", "seconds") if given[key] is not None
    }
    for change in given["changes"]:
        key, _, value = change.partition("=")
        changes[key.replace("-", "_")] = parse_json(f"--set {key}", value)
    return with_changes(RECIPES[name], **changes)


def read_classes(path: Path | None) -> tuple[str, ...] | None:
    """Read names of classes, one a line."""
    if path is None:
        return None
    try:
        return tuple(line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip())
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--classes {path}: cannot be read ({error})") from error
