"""`hear-transformers hear`: HEAR's benchmark, with its official programs or a first stage of our own."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import Any

import click

from hear_transformers.harness.run import run_command
from hear_transformers.harness.scores import scores_command

from .failures import guarded
from .parsing import count_or_auto, parse_object

FOLDER = click.Path(file_okay=False, path_type=Path)


@click.group("hear")
def hear_group() -> None:
    """Run HEAR's benchmark on its tasks: embeddings, predictions, scores."""


hear_group.add_command(run_command)
hear_group.add_command(scores_command)


@hear_group.command()
@click.argument("module")
@click.option("--model", "weights", default="", metavar="FILE", help="Checkpoint for its load_model.")
@click.option("--tasks-dir", type=FOLDER, default="tasks", show_default=True, help="Folder that holds HEAR's tasks.")
@click.option("--task", "task_name", default="all", show_default=True, metavar="NAME", help="One of them.")
@click.option("--embeddings-dir", type=FOLDER, default="embeddings", show_default=True, help="Where embeddings go.")
@click.option("--model-options", default="{}", metavar="JSON", help="More for its load_model: '{\"hop_ms\": 25}'.")
@click.option(
    "--layers", metavar="LAYERS", help="all, or a list such as 0,4,8: each as a model of its own, in one pass."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps, cpu.")
@click.option("--batch-size", type=click.IntRange(min=1), metavar="N", help="Windows that go through it at once.")
@click.option(
    "--num-workers", callback=count_or_auto, metavar="N", help="Processes that read audio, or auto.  [default: auto]"
)
@guarded
def embed(
    module: str,
    weights: str,
    tasks_dir: Path,
    task_name: str,
    embeddings_dir: Path,
    model_options: str,
    layers: str | None,
    device: str,
    batch_size: int | None,
    num_workers: int | None,
) -> None:
    """Embed tasks to the files of HEAR's own `heareval.embeddings.runner`; of several layers in one pass.

    MODULE is one of ours (hear_transformers.passt), of another package, or of your own. Embeddings that are there are
    kept, and a run that was stopped goes on. The official prediction stage takes the folders as they are.
    """
    from tqdm import tqdm

    from hear_transformers.harness import embed as stage
    from hear_transformers.harness import tasks

    # As `python -m` does: a module of your own lies in the current folder. Last, so that it hides nothing.
    sys.path.append(os.getcwd())
    options = parse_object("--model-options", model_options, '{"hop_ms": 25}')
    found = tasks.find(tasks_dir, task_name)
    model, parts = stage.load(module, weights, device, options, layers, batch_size)
    with tqdm(unit="file", disable=not sys.stderr.isatty(), file=sys.stderr) as bar:

        def show(task: Any, n_done: int, total: int) -> None:
            bar.set_description(task.name, refresh=False)
            bar.total, bar.n = total, n_done
            bar.refresh()

        stage.run(model, parts, found, embeddings_dir, show, workers=num_workers)
    for part in parts:
        click.echo(embeddings_dir / part.name)
