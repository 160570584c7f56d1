"""How small networks are made without real audio, step by step, and measured.

    python -m hear_transformers.training.distil train --student tiny --out RUN --slice-minutes 8
    python -m hear_transformers.training.distil status --out RUN --data DIR
    python -m hear_transformers.training.distil export --out RUN
    python -m hear_transformers.training.distil readouts --student tiny --weights RUN/tiny.safetensors
    python -m hear_transformers.training.distil measure --data DIR --student tiny --weights RUN/tiny.safetensors

Training takes hours on a CPU; running it again resumes it.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import click
import torch

from ...cli.failures import guarded
from . import recipe as recipes
from .students import STUDENTS

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, exists=True, path_type=Path)

REAL = ("esc10", "digits")
TASKS = (*REAL, "pitch")
"""Those of `measure.TASKS`, which imports PyTorch; of real audio, and all."""

threads_option = click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of PyTorch.")
out_option = click.option("--out", type=FOLDER, required=True, help="Folder of the run.")
weights_option = click.option("--weights", type=FILE, help="Weights to score.  [default: those of the package]")
student_option = click.option("--student", type=click.Choice(list(STUDENTS)), default="tiny", show_default=True)


def recipe_options(command: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that change the recipe for a trial run."""
    kinds: dict[str, click.ParamType[Any]] = {
        "steps": click.IntRange(1),
        "reuse": click.IntRange(1),
        "seed": click.IntRange(0),
        "learning-rate": click.FloatRange(0.0, min_open=True),
    }
    for name, kind in kinds.items():
        command = click.option(f"--{name}", type=kind, help="[default: the recipe's]")(command)
    words = "Learn Google's speech embedding, too (needs the extra teachers).  [default: the recipe's]"
    return click.option("--words/--no-words", default=None, help=words)(command)


@click.group(help=__doc__.partition("\n")[0])
def cli() -> None:
    """Group the steps."""


@cli.command()
@student_option
@out_option
@click.option("--slice-minutes", type=click.FloatRange(0, min_open=True), help="Stop after this time, to be resumed.")
@click.option("--device", default="cpu", show_default=True, help='PyTorch device; "auto" for the fastest there is.')
@click.option(
    "--num-workers", type=click.IntRange(1), default=1, show_default=True, help="Concurrent processes that synthesise."
)
@click.option("--teacher", type=FILE, help="The authors' mn04_as_mAP_432.pt.  [default: download it]")
@click.option("--start", type=FILE, help="Exported weights to begin with.  [default: random ones]")
@threads_option
@recipe_options
@guarded
def train(
    student: str,
    out: Path,
    slice_minutes: float | None,
    device: str,
    num_workers: int,
    teacher: Path | None,
    start: Path | None,
    threads: int,
    **numbers: Any,
) -> None:
    """Train a network on the streamed corpus (needs eSpeak NG), or go on with the run in OUT."""
    from ...embedding.devices import pick_device
    from . import clips, run
    from .teachers import AudioSetTagger

    torch.set_num_threads(threads)
    changes = {name: number for name, number in numbers.items() if number is not None}
    recipe = replace(recipes.RECIPES[student], **changes)
    place = pick_device(device)
    teachers = [AudioSetTagger(teacher or "", place)]
    done = run.train(
        recipe,
        out,
        clips.corpus(recipe, num_workers),
        teachers,
        place,
        start=start,
        stop_seconds=math.inf if slice_minutes is None else 60 * slice_minutes,
        progress=sys.stderr.isatty(),
        log=click.echo,
    )
    click.echo(f"{out}: step {done.step} of {done.n_steps}" + ("; run it again to go on" * (done.step < done.n_steps)))


@cli.command()
@out_option
@click.option("--data", type=FOLDER, help="Score it too: folder with esc10/ and fsdd/, each labels.csv and audio/.")
@threads_option
@guarded
def status(out: Path, data: Path | None, threads: int) -> None:
    """Show how far a run is, its losses on held-out synthetic clips, and what it scores on real audio."""
    from . import progress, run

    torch.set_num_threads(threads)
    for line in progress.describe(out):
        click.echo(line)
    if data is not None:
        show_scores(data, progress.student_of(out), str(run.export(out)), REAL)


@cli.command()
@student_option
@weights_option
@click.option("--batches", type=click.IntRange(1), default=120, show_default=True, help="Of held-out clips.")
@click.option("--show", type=click.IntRange(1), default=20, show_default=True, help="Readouts that are printed.")
@click.option("--timestamps", is_flag=True, help="Score embeddings along time, not those of scenes.")
@threads_option
@guarded
def readouts(student: str, weights: Path | None, batches: int, show: int, timestamps: bool, threads: int) -> None:
    """Score readouts of a network on held-out synthetic clips (needs eSpeak NG)."""
    from ... import hear
    from . import clips
    from . import readouts as scoring

    torch.set_num_threads(threads)
    chosen = STUDENTS[student]
    trunk = hear.Loader(chosen.family).load_model(weights or "", chosen.name).trunk.eval()
    source = clips.corpus(recipes.DistilRecipe(), 1)  # the same clips for every student
    score_all = scoring.scores_of_moments if timestamps else scoring.scores
    for score in score_all(trunk, source(scoring.SEED, range(batches)))[:show]:
        kinds = "  ".join(f"{kind} {precision:.3f}" for kind, precision in score.by_kind.items())
        click.echo(f"{','.join(score.layers):24}  {score.size:5}  {score.mean:.4f}  {kinds}")


@cli.command()
@out_option
@guarded
def export(out: Path) -> None:
    """Write the network of a run in 16 bits, and show its row of the manifest."""
    from . import progress, run

    path = run.export(out)
    click.echo(path)
    click.echo(run.manifest_row(STUDENTS[progress.student_of(out)], path))


@cli.command()
@click.option("--data", type=FOLDER, required=True, help="Folder with esc10/ and fsdd/, each labels.csv and audio/.")
@student_option
@weights_option
@click.option(
    "--task",
    "tasks",
    multiple=True,
    type=click.Choice(TASKS),
    default=TASKS,
    show_default=True,
    help="May be repeated.",
)
@threads_option
@guarded
def measure(data: Path, student: str, weights: Path | None, tasks: tuple[str, ...], threads: int) -> None:
    """Score a network and its baselines on ESC-10, spoken digits, and the pitch of notes."""
    torch.set_num_threads(threads)
    show_scores(data, student, str(weights or ""), tasks)


def show_scores(data: Path, student: str, weights: str, tasks: tuple[str, ...]) -> None:
    """Print the accuracies of a network and of its baselines."""
    from . import measure as measuring

    for name, scores in measuring.measure(data, STUDENTS[student], weights, tasks):
        click.echo(f"{name:24}" + "  ".join(f"{task} {score:.3f}" for task, score in scores.items()))


if __name__ == "__main__":
    cli(prog_name="python -m hear_transformers.training.distil")
