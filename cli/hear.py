"""`hear-transformers hear`: HEAR's benchmark, with its official programs or our faster embedding stage."""

from __future__ import annotations

import json
import os
import re
import sys
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

import click

from hear_transformers import catalogue
from hear_transformers.errors import HearTransformersError, OptionError, did_you_mean
from hear_transformers.harness import scores
from hear_transformers.harness.run import GRID_PARAMETERS, Benchmark, find_harness
from hear_transformers.harness.systems import System
from hear_transformers.harness.tasks import Task, find_tasks

from .failures import guarded, printable
from .parsing import count_or_auto, parse_object

FOLDER = click.Path(file_okay=False, path_type=Path)
FILE = click.Path(dir_okay=False, path_type=Path)
PROGRAMS = click.Choice(["official", "ours"])
GRIDS = click.Choice(["default", "fast", "faster"])

SYSTEM_PATTERN = re.compile(r"(?P<model>[^=:]+)(=(?P<weights>.+?))?(:(?P<options>\{.*))?", re.DOTALL)
SYNTAX = "MODULE, MODULE=WEIGHTS, 'MODULE:{\"layer\": 8}' or 'MODULE=WEIGHTS:{\"layer\": 8}'"
GRIDS_EXAMPLE = '{"esc10-v1.0.0-full": {"lr": [0.001]}}'


def search_working_folder() -> None:
    """Make modules in the current folder importable, as `python -m` does; last, so that they hide nothing."""
    sys.path.append(os.getcwd())


@click.group("hear")
def hear_group() -> None:
    """Run HEAR's benchmark on its tasks: embeddings, predictions, scores."""


@hear_group.command("run")
@click.argument("systems", metavar="SYSTEM...", nargs=-1, required=True)
@click.option("--tasks-dir", type=click.Path(path_type=Path), required=True, help="Folder that holds HEAR's tasks.")
@click.option("--out", type=FOLDER, required=True, help="Folder for all results.")
@click.option("--task", "names", multiple=True, metavar="NAME", help="Only this task; may be repeated.  [default: all]")
@click.option(
    "--python",
    default=sys.executable,
    envvar="HEAR_PYTHON",
    metavar="PATH",
    help="Python interpreter that has HEAR's harness.  [default: $HEAR_PYTHON or this one]",
)
@click.option(
    "--embeddings",
    type=PROGRAMS,
    default="official",
    show_default=True,
    help="HEAR's own program, or our faster one.",
)
@click.option(
    "--grid",
    type=GRIDS,
    default="default",
    show_default=True,
    help="heareval's grid to search; fast and faster give a preview only.",
)
@click.option(
    "--grid-points",
    type=click.IntRange(1),
    default=scores.GRID_POINTS,
    show_default=True,
    metavar="N",
    help="Points of the grid to try; fewer give a preview only.",
)
@click.option(
    "--param-grid", type=FILE, metavar="FILE", help=f"JSON file of values that tasks search instead: {GRIDS_EXAMPLE}"
)
@guarded
def run_command(
    systems: Sequence[str],
    tasks_dir: Path,
    out: Path,
    names: Sequence[str],
    python: str,
    embeddings: str,
    grid: str,
    grid_points: int,
    param_grid: Path | None,
) -> None:
    """Score each SYSTEM on HEAR's tasks and print a table.

    A SYSTEM is MODULE, MODULE=WEIGHTS, 'MODULE:{"layer": 8}' or 'MODULE=WEIGHTS:{"layer": 8}', where MODULE is a Python
    module that follows the HEAR API, or a model of this package under any of its names: passt, mn10_as, panns/cnn14.
    HEAR's own program trains and scores the predictions. Running the same command again resumes an interrupted run; a
    system that fails does not stop the others.
    """
    chosen = parse_systems(systems)
    tasks = [task for name in dict.fromkeys(names or ("all",)) for task in find_tasks(tasks_dir, name)]
    param_grids = read_param_grids(param_grid, [task.name for task in tasks]) if param_grid else {}
    echo = partial(click.echo, nl=False, err=True)
    places = tasks_dir.absolute(), out.absolute(), find_harness(python)
    benchmark = Benchmark(*places, embeddings == "official", grid, grid_points, param_grids, echo)
    for task in tasks:
        if why := benchmark.why_preview(task):
            click.echo(f"Warning: {task.name}: {scores.PREVIEW}, since {why}", err=True)
    pairs = [(system, task) for system in chosen for task in tasks]
    n_failed = score_pairs(benchmark, pairs)
    order = [(system.folder, task.name) for system, task in pairs]
    made = [score for score in scores.read_scores(out) if (score.system, score.task) in order]
    click.echo(scores.to_markdown(sorted(made, key=lambda score: order.index((score.system, score.task)))))
    if n_failed:
        raise HearTransformersError(f"{n_failed} of {len(pairs)} failed, see above")


def score_pairs(benchmark: Benchmark, pairs: Sequence[tuple[System, Task]]) -> int:
    """Score systems on tasks, print errors, and return the number of failures."""
    for system, task in pairs:
        benchmark.check(system, task)
    n_failed = 0
    for system, task in pairs:
        try:
            benchmark.score(system, task)
        except HearTransformersError as error:
            click.echo(printable(f"Error: {error}"), err=True)
            n_failed += 1
    return n_failed


@hear_group.command("embed")
@click.argument("model")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint to use instead of the published one.")
@click.option("--tasks-dir", type=FOLDER, default="tasks", show_default=True, help="Folder that holds HEAR's tasks.")
@click.option("--task", default="all", show_default=True, metavar="NAME", help="Task to embed.")
@click.option("--out", type=FOLDER, default="embeddings", show_default=True, help="Folder for the results.")
@click.option(
    "--model-options",
    "options",
    default="{}",
    metavar="JSON",
    help="Keyword arguments for load_model: '{\"hop_ms\": 25}'.",
)
@click.option(
    "--layers", metavar="LAYERS", help="all, or a list such as 0,4,8: layers in one pass, each as a separate model."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps or cpu.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Windows per forward pass.")
@click.option(
    "--num-workers", callback=count_or_auto, metavar="N", help="Processes that read audio, or auto.  [default: auto]"
)
@guarded
def embed_command(
    model: str, tasks_dir: Path, task: str, out: Path, options: str, num_workers: int | None, **choices: Any
) -> None:
    """Embed HEAR's tasks: the same files as HEAR's own heareval.embeddings.runner, but faster.

    MODEL is a model of this package (passt, mn10_as, panns/cnn14), or a Python module that follows the HEAR API, of
    another package or your own in the current folder. Running the same command again resumes an interrupted run. HEAR's
    prediction stage reads the resulting folders.
    """
    from tqdm import tqdm

    from hear_transformers.harness import embed

    search_working_folder()
    tasks = find_tasks(tasks_dir, task)
    arguments = parse_object("--model-options", options, '{"hop_ms": 25}')
    embedder, parts = embed.load_with_parts(model, options=arguments, **choices)
    with tqdm(unit="file", disable=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def show(task: Any, n_done: int, total: int) -> None:
            bar.set_description(task.name, refresh=False)
            bar.total, bar.n = total, n_done
            bar.refresh()

        embed.embed_tasks(embedder, parts, tasks, out, show, workers=num_workers)
    for part in parts:
        click.echo(out / part.name)


@hear_group.command("scores")
@click.argument("folder", type=click.Path(exists=True, file_okay=False, path_type=Path))
@click.option("--csv", "as_csv", is_flag=True, help="Print CSV, one line per score, instead of a Markdown table.")
@guarded
def scores_command(folder: Path, as_csv: bool) -> None:
    """Print the scores in a FOLDER of embeddings, laid out as FOLDER/SYSTEM/TASK."""
    found = scores.read_scores(folder)
    if not found:
        raise OptionError(f"{folder} holds no scores, expected SYSTEM/TASK/{scores.SCORES} in it; predict first")
    click.echo(scores.to_csv(found) if as_csv else scores.to_markdown(found))


# Arguments


def parse_system(text: str) -> System:
    """Parse MODULE[=WEIGHTS][:OPTIONS]; raise OptionError if the text is anything else."""
    match = SYSTEM_PATTERN.fullmatch(text)
    if not match:
        raise OptionError(f"SYSTEM {text!r} is unknown; write {SYNTAX}")
    weights = Path(match["weights"]) if match["weights"] else None
    if weights and not weights.is_file():
        raise OptionError(f"SYSTEM {text!r}: there is no file {weights}")
    options = parse_object(f"SYSTEM {text!r}", match["options"] or "{}", '{"layer": 8}')
    module = match["model"]
    if catalogue.is_own(module):  # others may be there for the interpreter of --python alone
        module, options = catalogue.as_module(module, options)
    return System(module, weights, options)


def parse_systems(texts: Sequence[str]) -> list[System]:
    """Parse systems; raise OptionError if one is malformed, or two have the same folder."""
    systems: dict[str, System] = {}
    for text in texts:
        system = parse_system(text)
        if system.folder in systems:
            raise OptionError(
                f"SYSTEM {text!r} has the same folder as another, {system.folder}, for heareval names it by module and "
                "options alone; give them different options, or score them with different --out"
            )
        systems[system.folder] = system
    return list(systems.values())


def read_param_grids(path: Path, names: Sequence[str]) -> dict[str, dict[str, list[Any]]]:
    """Read the hyperparameters that tasks search, task -> parameter -> values; raise OptionError for anything else."""
    option = f"--param-grid {path}"
    try:
        grids = parse_object(option, path.read_text(encoding="utf-8"), GRIDS_EXAMPLE)
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option}: cannot be read ({error})") from error
    for task, grid in grids.items():
        if task not in names:
            raise OptionError(f"{option}: task {task!r} is not there; {did_you_mean(task, names, of='choose from')}")
        for name, values in grid.items() if isinstance(grid, dict) else [(grid, None)]:
            if name not in GRID_PARAMETERS or not (isinstance(values, list) and values):
                raise OptionError(
                    f"{option}: {task}: {name!r}: {json.dumps(values)} is not a parameter and a list of values; "
                    f"parameters are {', '.join(GRID_PARAMETERS)}"
                )
    return grids
