"""HEAR's benchmark from start to scores: systems and tasks, one after another, each stage in a process of its own.

    python -m hear_transformers.harness.run --tasks-dir TASKS --out DIR hear_transformers.tiny
    ... 'hear_transformers.efficientat=mn04_as_mAP_432.pt:{"variant": "mn04_as"}' 'my_module:{"hop_ms": 25}'

What it leaves:

    DIR/SYSTEM/TASK/                   embeddings, predictions and scores, as heareval writes them
               TASK.run.json           how they were made
               TASK.embeddings.log, TASK.predictions.log
    DIR/logs/SYSTEM/TASK/              training curves
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import click

from ..cli.failures import guarded, printable
from ..cli.parsing import parse_object
from ..errors import HearTransformersError, OptionError
from . import scores
from .tasks import METADATA, Task, find

SYSTEM = re.compile(r"(?P<module>[^=:]+)(=(?P<weights>.+?))?(:(?P<options>\{.*))?", re.DOTALL)
EXAMPLE = "MODULE, MODULE=WEIGHTS, 'MODULE:{\"layer\": 8}' or 'MODULE=WEIGHTS:{\"layer\": 8}'"

DONE = {"embeddings": ".done.embeddings", "predictions": "prediction-done.json"}
"""The files that the stages of heareval write last."""

GRID_PARAMETERS = (
    "hidden_layers",
    "hidden_dim",
    "dropout",
    "lr",
    "patience",
    "max_epochs",
    "check_val_every_n_epoch",
    "batch_size",
)
"""What heareval searches (predictions/task_predictions.py:66), as far as JSON can hold it."""

LAST_LINES = 12
"""Of a log, shown where a stage fails."""

OFFICIAL = ("-m", "hear_transformers.harness.official")
OURS = ("-c", "from hear_transformers.cli.hear_transformers import main; main()", "hear", "embed")


@dataclass(frozen=True)
class System:
    """What is scored.

    Attributes
    ----------
    module : that follows the HEAR API
    weights : checkpoint for its `load_model`, None for its own default
    options : keyword arguments for its `load_model`, beyond the HEAR API
    """

    module: str
    weights: Path | None
    options: Mapping[str, Any]

    @cached_property
    def folder(self) -> str:
        """Name of the folder of its embeddings."""
        from .embed import folder_name

        return folder_name(self.module, self.options)


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How systems are scored.

    Attributes
    ----------
    tasks_dir : folder of HEAR's tasks
    out : folder of all that is made
    python : interpreter that has HEAR's harness
    is_official : whether HEAR's program embeds, or ours
    grid, grid_points : of the predictions, see heareval
    param_grids : name of a task: what it searches instead of a part of the grid
    """

    tasks_dir: Path
    out: Path
    python: str
    is_official: bool
    grid: str
    grid_points: int
    param_grids: Mapping[str, Mapping[str, Sequence[Any]]]

    def settings(self, system: System, task: Task) -> dict[str, dict[str, Any]]:
        """Say what the stages depend on beyond the name of their folder, ready for JSON."""
        from ..files import sha256_of

        return {
            "embeddings": {
                "task": str(task.folder.resolve()),
                "weights_sha256": sha256_of(system.weights) if system.weights else None,
                "embeddings": "official" if self.is_official else "ours",
            },
            "predictions": {
                "grid": self.grid,
                "grid_points": self.grid_points,
                "param_grid": self.param_grids.get(task.name),
            },
        }

    def check(self, system: System, task: Task) -> None:
        """Require that what is already there was made in the same way.

        Raises
        ------
        OptionError : it was not
        """
        folder = self.out / system.folder / task.name
        settings = _settings_file(folder)
        there = json.loads(settings.read_text(encoding="utf-8")) if settings.exists() else {}
        for stage, wanted in self.settings(system, task).items():
            if (folder / DONE[stage]).exists() and there.get(stage, wanted) != wanted:
                made = ", ".join(f"{name}={there[stage].get(name)}" for name in wanted)
                raise OptionError(f"{folder}: its {stage} were made with {made}; choose another --out, or delete them")

    def score(self, system: System, task: Task) -> None:
        """Embed and predict, unless that is done.

        Raises
        ------
        HearTransformersError : a stage fails
        """
        folder = self.out / system.folder / task.name
        folder.parent.mkdir(parents=True, exist_ok=True)
        _settings_file(folder).write_text(json.dumps(self.settings(system, task), indent=4), encoding="utf-8")
        if not (folder / DONE["embeddings"]).exists():
            self.embed(system, task, folder.with_name(f"{task.name}.embeddings.log"))
        if not (folder / DONE["predictions"]).exists():
            _copy_metadata(task.folder / METADATA, folder / METADATA, self.param_grids.get(task.name))
            self.predict(system, task, folder.with_name(f"{task.name}.predictions.log"))

    def embed(self, system: System, task: Task, log: Path, more: Sequence[str] = ()) -> None:
        """Run the embedding stage, in the current folder: a module of the user's own lies there.

        `more` are options that only our program has, which may name its folders otherwise.
        """
        program = (self.python, *OFFICIAL, "embeddings") if self.is_official else (sys.executable, *OURS)
        weights = ("--model", str(system.weights.absolute())) if system.weights else ()
        arguments = {
            "--tasks-dir": self.tasks_dir,
            "--task": task.name,
            "--embeddings-dir": self.out,
            "--model-options": json.dumps(system.options),
        }
        given = [str(part) for pair in arguments.items() for part in pair]
        _run([*program, system.module, *weights, *given, *more], log)
        folder = self.out / system.folder / task.name
        if not more and not (folder / DONE["embeddings"]).exists():
            raise HearTransformersError(f"{log} ends well, but the embeddings are not in {folder}")

    def predict(self, system: System, task: Task, log: Path) -> None:
        """Run the prediction stage.

        It names its logs after the path it is given, which is why that is a relative one. One thread is faster than
        two: batches are small, and a run of 63 s took 575 s on two shared cores.
        """
        given = [f"{system.folder}/{task.name}", "--grid", self.grid, "--grid-points", str(self.grid_points)]
        command = [self.python, *OFFICIAL, "predictions", *given]
        try:
            _run(command, log, cwd=self.out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        finally:
            # 183 MB for 400 clips, and of no further use.
            for path in (self.out / "logs" / system.folder / task.name).rglob("*.ckpt"):
                path.unlink()


def _settings_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{scores.SETTINGS}")


def _run(command: Sequence[str], log: Path, **options: Any) -> None:
    """Run a process whose output goes to a file.

    Raises
    ------
    HearTransformersError : it fails
    """
    stage = log.suffixes[-2].removeprefix(".")
    click.echo(f"{log.parent.name} {log.name.removesuffix(f'.{stage}.log')}: {stage} ..", nl=False, err=True)
    began = time.perf_counter()
    with log.open("wb") as file:
        status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, **options)
    click.echo(f" {time.perf_counter() - began:.0f} s", err=True)
    if status.returncode:
        lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
        raise HearTransformersError(
            "\n".join([f"{stage} failed with exit code {status.returncode}; the end of {log}:", *lines])
        )


def _copy_metadata(source: Path, target: Path, grid: Mapping[str, Sequence[Any]] | None) -> None:
    """Copy what a task is, with what it searches where heareval looks for it (predictions/task_predictions.py:1336)."""
    metadata = json.loads(source.read_text(encoding="utf-8"))
    if grid is not None:
        metadata["evaluation_params"] = {**metadata.get("evaluation_params", {}), "task_specific_param_grid": grid}
    target.write_text(json.dumps(metadata, indent=4), encoding="utf-8")


# What is given


def parse_system(text: str) -> System:
    """Read MODULE[=WEIGHTS][:OPTIONS].

    Raises
    ------
    OptionError : it is something else
    """
    match = SYSTEM.fullmatch(text)
    if not match:
        raise OptionError(f"SYSTEM {text!r} is unknown; write {EXAMPLE}")
    weights = Path(match["weights"]) if match["weights"] else None
    if weights and not weights.is_file():
        raise OptionError(f"SYSTEM {text!r}: there is no file {weights}")
    return System(match["module"], weights, parse_object(f"SYSTEM {text!r}", match["options"] or "{}", '{"layer": 8}'))


def parse_systems(texts: Sequence[str]) -> list[System]:
    """Read systems, each with a folder of its own.

    Raises
    ------
    OptionError : one is not a system, or two have the same folder
    """
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
    """Read what tasks search: name of a task: parameter: values.

    Raises
    ------
    OptionError : it is not there, not that, or of other tasks
    """
    option = f"--param-grid {path}"
    try:
        grids = parse_object(option, path.read_text(encoding="utf-8"), '{"esc10-v1.0.0-full": {"lr": [0.001]}}')
    except (OSError, UnicodeDecodeError) as error:
        raise OptionError(f"{option}: cannot be read ({error})") from error
    for task, grid in grids.items():
        if task not in names:
            raise OptionError(f"{option}: task {task!r} is not there; choose from {', '.join(names)}")
        for name, values in grid.items() if isinstance(grid, dict) else [(grid, None)]:
            if name not in GRID_PARAMETERS or not (isinstance(values, list) and values):
                raise OptionError(
                    f"{option}: {task}: {name!r}: {json.dumps(values)} is not a parameter and a list of values; "
                    f"parameters are {', '.join(GRID_PARAMETERS)}"
                )
    return grids


def find_harness(python: str) -> str:
    """Find an interpreter, and require that it has HEAR's harness.

    Raises
    ------
    OptionError : there is no such interpreter
    HearTransformersError : it has not
    """
    path = shutil.which(python)
    if path is None:
        raise OptionError(f"--python {python}: there is no such program; `make hear` makes .venv-hear/bin/python")
    path = os.path.abspath(path)  # not resolved: a virtual environment's interpreter is a link
    status = subprocess.run([path, *OFFICIAL, "check"], capture_output=True, text=True, errors="replace", check=False)
    if status.returncode:
        raise HearTransformersError(f"--python {python}: {status.stderr.strip().splitlines()[-1]}")
    return path


# The command


@click.command("run")
@click.argument("systems", metavar="SYSTEM...", nargs=-1, required=True)
@click.option("--tasks-dir", type=click.Path(path_type=Path), required=True, help="Folder that holds HEAR's tasks.")
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder of all results.")
@click.option("--task", "names", multiple=True, metavar="NAME", help="One of them; may be repeated.  [default: all]")
@click.option(
    "--python",
    default=sys.executable,
    envvar="HEAR_PYTHON",
    metavar="PATH",
    help="Interpreter that has HEAR's harness.  [default: $HEAR_PYTHON or this one]",
)
@click.option("--embeddings", type=click.Choice(["official", "ours"]), default="official", show_default=True)
@click.option("--grid", type=click.Choice(["default", "fast", "faster"]), default="default", show_default=True)
@click.option("--grid-points", type=click.IntRange(1), default=8, show_default=True, metavar="N", help="Of the grid.")
@click.option(
    "--param-grid",
    "param_grid",
    type=click.Path(dir_okay=False, path_type=Path),
    metavar="FILE",
    help='JSON, what tasks search instead: {"esc10-v1.0.0-full": {"lr": [0.001]}}',
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
    """Score each SYSTEM on HEAR's tasks: embeddings, then predictions by HEAR's own program, then a table.

    A SYSTEM is MODULE, MODULE=WEIGHTS, 'MODULE:{"layer": 8}' or 'MODULE=WEIGHTS:{"layer": 8}', of a module that follows
    the HEAR API. What is done is kept; a system that fails does not stop the others.
    """
    chosen = parse_systems(systems)
    tasks = [task for name in dict.fromkeys(names or ("all",)) for task in find(tasks_dir, name)]
    param_grids = read_param_grids(param_grid, [task.name for task in tasks]) if param_grid else {}
    benchmark = Benchmark(
        tasks_dir.absolute(),
        out.absolute(),
        find_harness(python),
        embeddings == "official",
        grid,
        grid_points,
        param_grids,
    )
    pairs = [(system, task) for system in chosen for task in tasks]
    for system, task in pairs:
        benchmark.check(system, task)
    n_failed = 0
    for system, task in pairs:
        try:
            benchmark.score(system, task)
        except HearTransformersError as error:
            click.echo(printable(f"Error: {error}"), err=True)
            n_failed += 1
    order = [(system.folder, task.name) for system, task in pairs]
    made = [score for score in scores.read(out) if (score.system, score.task) in order]
    click.echo(scores.to_markdown(sorted(made, key=lambda score: order.index((score.system, score.task)))))
    if n_failed:
        raise HearTransformersError(f"{n_failed} of {len(pairs)} failed, see above")


if __name__ == "__main__":
    run_command()
