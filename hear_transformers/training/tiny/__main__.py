"""How the embedded model is made, step by step, and measured.

    python -m hear_transformers.training.tiny synthesise --shards DIR
    python -m hear_transformers.training.tiny targets --shards DIR --teacher mn04_as_mAP_432.pt
    python -m hear_transformers.training.tiny train --shards DIR --out RUN
    python -m hear_transformers.training.tiny measure --data DIR --weights RUN/tiny.safetensors

Running a step again resumes it.
"""

from __future__ import annotations

import sys
from functools import partial
from pathlib import Path
from typing import Any

import click
import torch

from ...cli.failures import guarded
from .recipe import TinyRecipe

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, exists=True, path_type=Path)
WEIGHTS = "tiny.safetensors"

threads_option = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of PyTorch.")
shards_option = click.option("--shards", "folder", type=FOLDER, required=True, help="Folder of the shards.")


def recipe_options(command: Any) -> Any:
    """Add the options that change the recipe for a trial run."""
    for name in ("steps", "speech-shards", "scene-shards", "clips-per-shard", "seed"):
        default = getattr(TinyRecipe(), name.replace("-", "_"))
        command = click.option(f"--{name}", default=default, show_default=True, type=click.IntRange(0))(command)
    return command


@click.group(help=__doc__.partition("\n")[0])
def cli() -> None:
    """Group the steps."""


@cli.command()
@shards_option
@click.option("--kind", type=click.Choice(["all", "scenes", "speech"]), default="all", show_default=True)
@click.option("--num-workers", type=click.IntRange(1), default=1, show_default=True, help="Concurrent processes.")
@recipe_options
@guarded
def synthesise(folder: Path, kind: str, num_workers: int, **numbers: Any) -> None:
    """Synthesise scenes and speech (needs eSpeak NG)."""
    from . import generation

    for each in generation.KINDS if kind == "all" else (kind,):
        for path in generation.synthesise(folder, each, TinyRecipe(**numbers), num_workers):
            click.echo(path)


@cli.command()
@shards_option
@click.option("--teacher", type=FILE, help="The authors' mn04_as_mAP_432.pt.  [default: download it]")
@threads_option
@recipe_options
@guarded
def targets(folder: Path, teacher: Path | None, threads: int, **numbers: Any) -> None:
    """Compute the teacher's outputs for the scenes."""
    from . import shards
    from .batches import load_shards
    from .teacher import compute_targets, load_teacher

    torch.set_num_threads(threads)
    model = load_teacher(teacher or "")
    for number in range(TinyRecipe(**numbers).scene_shards):
        path = shards.shard_path(folder, "targets", number)
        if not path.exists():
            shards.write_shard(path, compute_targets(model, load_shards(folder, "scenes", [number])["mel"]))
            click.echo(path)


@cli.command()
@shards_option
@click.option("--out", type=FOLDER, required=True, help="Folder for checkpoint, losses and weights.")
@threads_option
@recipe_options
@guarded
def train(folder: Path, out: Path, threads: int, **numbers: Any) -> None:
    """Train the network, resuming from the checkpoint in OUT if there is one."""
    from .. import loop
    from . import batches, distill

    torch.set_num_threads(threads)
    recipe = TinyRecipe(**numbers)
    scenes, speech = batches.load_scenes(folder, recipe), batches.load_speech(folder, recipe)
    run = distill.new_run(recipe, scenes.logits.shape[1], scenes.features.shape[1], len(speech.names))
    loop.fit(run, partial(batches.batches, scenes, speech, recipe), out, progress=sys.stderr.isatty())
    distill.export(run.network, out / WEIGHTS)
    click.echo(out / WEIGHTS)


@cli.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with esc10/ and fsdd/, each labels.csv and audio/.")
@click.option("--weights", type=FILE, help="Weights to score.  [default: those of the package]")
@threads_option
@guarded
def measure(data: Path, weights: Path | None, threads: int) -> None:
    """Score the model and its baselines on ESC-10 and spoken digits."""
    from . import measure as measuring

    torch.set_num_threads(threads)
    for name, scores in measuring.measure(data, str(weights or "")):
        click.echo(f"{name:24}" + "  ".join(f"{task} {score:.3f}" for task, score in scores.items()))


if __name__ == "__main__":
    cli(prog_name="python -m hear_transformers.training.tiny")
