"""Our embedding stage beside HEAR's: equal numbers, then the ratio of times.

    python -m hear_transformers.benchmarks.heareval --tasks-dir TASKS --python .venv-hear/bin/python SYSTEM...

The two take turns, each time with an empty folder; times are those that each records itself, without loading the model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import click
import numpy as np

from ..cli.failures import guarded
from ..cli.hear import parse_systems
from ..errors import HearTransformersError
from ..harness.embed import PROFILE
from ..harness.run import Benchmark, find_harness
from ..harness.systems import System
from ..harness.tasks import Task, find_tasks

TOLERANCE = 1e-5
"""Largest allowed difference, relative to the largest number."""


def race(
    benchmark: Benchmark, system: System, task: Task, turns: int, layers: Sequence[int]
) -> tuple[float, float, float]:
    """Embed a task in turns; the official program takes one pass per layer, ours a single one.

    Returns
    -------
    theirs, ours : seconds of the fastest turn
    error : largest difference over the largest number

    Raises
    ------
    HearTransformersError : a stage fails, or the numbers differ by more than `TOLERANCE`
    """
    singles = [replace(system, options={**system.options, "layer": layer}) for layer in layers] or [system]
    theirs, ours, errors = list[float](), list[float](), list[float]()
    for _ in range(turns):
        with tempfile.TemporaryDirectory(dir=benchmark.out) as folder:
            official, own = Path(folder) / "official", Path(folder) / "own"
            for path in (official, own):
                path.mkdir()
            for single in singles:
                replace(benchmark, out=official).embed(single, task, official / "theirs.embeddings.log")
            sweep = ("--layers", ",".join(map(str, layers))) if layers else ()
            replace(benchmark, out=own, is_official=False).embed(system, task, own / "ours.embeddings.log", sweep)
            theirs.append(sum(read_seconds(official / single.folder / task.name) for single in singles))
            ours.append(read_seconds(own / singles[0].folder / task.name))  # the same for every layer
            for single in singles:
                errors.extend(compare(official / single.folder / task.name, own / single.folder / task.name))
    if max(errors) > TOLERANCE:
        raise HearTransformersError(
            f"{system.folder} {task.name}: embeddings differ by {max(errors):.1e} of the largest number"
        )
    return min(theirs), min(ours), max(errors)


def read_seconds(folder: Path) -> float:
    """Read the duration of a stage."""
    return float(json.loads((folder / PROFILE).read_text(encoding="utf-8"))["time_elapsed"])


def compare(theirs: Path, ours: Path) -> Iterator[float]:
    """Yield the largest difference over the largest number for each file."""
    for path in theirs.rglob("*.embedding.npy"):
        expected, found = np.load(path), np.load(ours / path.relative_to(theirs))
        yield float(np.abs(found - expected).max() / np.abs(expected).max())


@click.command()
@click.argument("systems", metavar="SYSTEM...", nargs=-1, required=True)
@click.option("--tasks-dir", type=click.Path(path_type=Path), required=True, help="Folder that holds HEAR's tasks.")
@click.option("--task", "name", default="all", show_default=True, metavar="NAME", help="Task to embed.")
@click.option(
    "--python", default=sys.executable, envvar="HEAR_PYTHON", metavar="PATH", help="Interpreter with HEAR's harness."
)
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="Runs of each; the fastest counts.")
@click.option("--layers", default="", metavar="LIST", help="Layers of our modules, such as 0,4,8,12.")
@guarded
def main(systems: Sequence[str], tasks_dir: Path, name: str, python: str, turns: int, layers: str) -> None:
    """Embed HEAR's tasks with both programs, and print the ratio of times."""
    numbers = [int(number) for number in layers.split(",") if number]
    with tempfile.TemporaryDirectory() as out:
        echo = partial(click.echo, nl=False, err=True)
        benchmark = Benchmark(tasks_dir.absolute(), Path(out), find_harness(python), True, "default", 1, {}, echo)
        click.echo("| system | layers | task | theirs s | ours s | times as fast | error |")
        click.echo("|---|---|---|---:|---:|---:|---:|")
        for system in parse_systems(systems):
            for task in find_tasks(tasks_dir, name):
                theirs, ours, error = race(benchmark, system, task, turns, numbers)
                times = f"{theirs:.1f} | {ours:.1f} | {theirs / ours:.2f}"
                click.echo(f"| {system.folder} | {layers or 'its own'} | {task.name} | {times} | {error:.1e} |")


if __name__ == "__main__":
    main()
