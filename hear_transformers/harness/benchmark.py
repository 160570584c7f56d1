"""Our embedding stage beside the official one: equal numbers, then the ratio of times.

    python -m hear_transformers.harness.benchmark --tasks-dir TASKS --python .venv-hear/bin/python SYSTEM...

Both are run by turns, each time into an empty folder; the time is what each writes about itself, without loading the
model.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path

import click
import numpy as np

from ..cli.failures import guarded
from ..errors import HearTransformersError
from .embed import PROFILE
from .run import Benchmark, System, find_harness, parse_systems
from .tasks import Task, find

TOLERANCE = 1e-5
"""Of the largest number."""


def race(benchmark: Benchmark, system: System, task: Task, turns: int) -> tuple[list[float], list[float], float]:
    """Embed a task by turns.

    Returns
    -------
    theirs, ours : seconds of each turn
    error : largest difference over the largest number

    Raises
    ------
    HearTransformersError : a stage fails, or the numbers differ by more than `TOLERANCE`
    """
    seconds: dict[bool, list[float]] = {True: [], False: []}
    error = 0.0
    with tempfile.TemporaryDirectory(dir=benchmark.out) as folder:
        for turn in range(turns):
            places = {}
            for is_official in seconds:
                out = Path(folder) / f"{turn}-{'official' if is_official else 'ours'}"
                out.mkdir()
                replace(benchmark, out=out, is_official=is_official).embed(system, task, out / "race.embeddings.log")
                places[is_official] = out / system.folder / task.name
                profile = json.loads((places[is_official] / PROFILE).read_text(encoding="utf-8"))
                seconds[is_official].append(profile["time_elapsed"])
            error = max(error, *differences(places[True], places[False]))
    if error > TOLERANCE:
        raise HearTransformersError(
            f"{system.folder} {task.name}: embeddings differ by {error:.1e} of the largest number"
        )
    return seconds[True], seconds[False], error


def differences(theirs: Path, ours: Path) -> Iterator[float]:
    """Compare the embeddings of each file: largest difference over the largest number."""
    for path in theirs.rglob("*.embedding.npy"):
        expected, found = np.load(path), np.load(ours / path.relative_to(theirs))
        yield float(np.abs(found - expected).max() / np.abs(expected).max())


@click.command()
@click.argument("systems", metavar="SYSTEM...", nargs=-1, required=True)
@click.option("--tasks-dir", type=click.Path(path_type=Path), required=True, help="Folder that holds HEAR's tasks.")
@click.option("--task", "name", default="all", show_default=True, metavar="NAME", help="One of them.")
@click.option("--python", default=sys.executable, envvar="HEAR_PYTHON", metavar="PATH", help="That has HEAR's harness.")
@click.option("--turns", type=click.IntRange(1), default=3, show_default=True, help="The fastest of so many counts.")
@guarded
def main(systems: Sequence[str], tasks_dir: Path, name: str, python: str, turns: int) -> None:
    """Embed HEAR's tasks with both programs, and print how many times as fast ours is."""
    with tempfile.TemporaryDirectory() as out:
        benchmark = Benchmark(tasks_dir.absolute(), Path(out), find_harness(python), True, "default", 1, {})
        lines = ["| system | task | theirs s | ours s | times as fast | error |", "|---|---|---:|---:|---:|---:|"]
        for system in parse_systems(systems):
            for task in find(tasks_dir, name):
                theirs, ours, error = race(benchmark, system, task, turns)
                times = f"{min(theirs):.1f} | {min(ours):.1f} | {min(theirs) / min(ours):.2f}"
                lines.append(f"| {system.folder} | {task.name} | {times} | {error:.1e} |")
    click.echo("\n".join(lines))


if __name__ == "__main__":
    main()
