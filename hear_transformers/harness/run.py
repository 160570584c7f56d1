"""HEAR's benchmark from embeddings to scores, each stage in a process of its own.

Its output:

    DIR/SYSTEM/TASK/                   embeddings, predictions and scores, as heareval writes them
               TASK.run.json           the settings they were made with
               TASK.embeddings.log, TASK.predictions.log
    DIR/logs/SYSTEM/TASK/              training curves
"""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from ..errors import HearTransformersError, OptionError
from ..files import sha256_of
from .scores import SETTINGS, own_grid, why_preview
from .systems import System
from .tasks import METADATA, Task

DONE = {"embeddings": ".done.embeddings", "predictions": "prediction-done.json"}
"""The last file that each stage of heareval writes."""

GRID_PARAMETERS = (
    "hidden_layers", "hidden_dim", "dropout", "lr", "patience", "max_epochs", "check_val_every_n_epoch", "batch_size",
)  # fmt: skip
"""What heareval searches (predictions/task_predictions.py:66), as far as JSON can hold it."""

LAST_LINES = 12
"""Lines of a log that are shown when a stage fails."""

OFFICIAL = ("-m", "hear_transformers.cli.official")
OURS = ("-m", "hear_transformers", "hear", "embed")


@dataclass(frozen=True, slots=True)
class Benchmark:
    """How systems are scored.

    Attributes
    ----------
    tasks_dir : folder of HEAR's tasks
    out : folder of all output
    python : interpreter that has HEAR's harness
    is_official : True to embed with HEAR's program, False with ours
    grid, grid_points : settings of the prediction stage, see heareval
    param_grids : per task, values to search instead of those of the grid
    echo : receives progress, in pieces of a line
    """

    tasks_dir: Path
    out: Path
    python: str
    is_official: bool
    grid: str
    grid_points: int
    param_grids: Mapping[str, Mapping[str, Sequence[Any]]]
    echo: Callable[[str], None]

    def settings(self, system: System, task: Task) -> dict[str, dict[str, Any]]:
        """Return what the stages depend on beyond the name of their folder, ready for JSON."""
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

    def why_preview(self, task: Task) -> str:
        """Return why the scores of a task will be a preview only, see `scores.why_preview`."""
        own = self.param_grids.get(task.name)
        if own is None:
            own = own_grid(json.loads((task.folder / METADATA).read_text(encoding="utf-8")))
        return why_preview(self.grid, self.grid_points, own)

    def check(self, system: System, task: Task) -> None:
        """Raise OptionError if existing output was made with other settings."""
        folder = self._folder(system, task)
        path = _settings_file(folder)
        existing = json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}
        for stage, wanted in self.settings(system, task).items():
            if (folder / DONE[stage]).exists() and existing.get(stage, wanted) != wanted:
                made = ", ".join(f"{name}={existing[stage].get(name)}" for name in wanted)
                raise OptionError(f"{folder}: its {stage} were made with {made}; choose another --out, or delete them")

    def score(self, system: System, task: Task) -> None:
        """Run the stages that are not complete; raise HearTransformersError if one fails."""
        folder = self._folder(system, task)
        folder.parent.mkdir(parents=True, exist_ok=True)
        _settings_file(folder).write_text(json.dumps(self.settings(system, task), indent=4), encoding="utf-8")
        if not (folder / DONE["embeddings"]).exists():
            self.embed(system, task, folder.with_name(f"{task.name}.embeddings.log"))
        if not (folder / DONE["predictions"]).exists():
            _copy_metadata(task.folder / METADATA, folder / METADATA, self.param_grids.get(task.name))
            self.predict(system, task, folder.with_name(f"{task.name}.predictions.log"))

    def embed(self, system: System, task: Task, log: Path, extra: Sequence[str] = ()) -> None:
        """Run the embedding stage.

        It runs in the current folder, where a user's own module is found. `extra` are arguments that only our program
        has, and that may change the names of its folders.
        """
        program = (self.python, *OFFICIAL, "embeddings") if self.is_official else (sys.executable, *OURS)
        checkpoint, folder = ("--model", "--embeddings-dir") if self.is_official else ("--weights", "--out")
        weights = (checkpoint, str(system.weights.absolute())) if system.weights else ()
        places = ("--tasks-dir", str(self.tasks_dir), "--task", task.name, folder, str(self.out))
        options = ("--model-options", json.dumps(system.options))
        self._run([*program, system.module, *weights, *places, *options, *extra], log)
        expected = self._folder(system, task)
        if not extra and not (expected / DONE["embeddings"]).exists():
            raise HearTransformersError(f"{log} reports success, but the embeddings are not in {expected}")

    def predict(self, system: System, task: Task, log: Path) -> None:
        """Run the prediction stage.

        It names its logs after the path it is given, hence a relative one. It gets one thread: batches are small, and a
        run of 63 s took 575 s with two threads on two shared cores.
        """
        arguments = [f"{system.folder}/{task.name}", "--grid", self.grid, "--grid-points", str(self.grid_points)]
        command = [self.python, *OFFICIAL, "predictions", *arguments]
        try:
            self._run(command, log, cwd=self.out, env={**os.environ, "OMP_NUM_THREADS": "1"})
        finally:
            # 183 MB for 400 clips, and of no further use.
            for path in (self.out / "logs" / system.folder / task.name).rglob("*.ckpt"):
                path.unlink()

    def _folder(self, system: System, task: Task) -> Path:
        return self.out / system.folder / task.name

    def _run(self, command: Sequence[str], log: Path, **options: Any) -> None:
        """Run a process with its output in a file; raise HearTransformersError if it fails."""
        stage = log.suffixes[-2].removeprefix(".")
        self.echo(f"{log.parent.name} {log.name.removesuffix(f'.{stage}.log')}: {stage} ..")
        start = time.perf_counter()
        with log.open("wb") as file:
            status = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=file, stderr=file, check=False, **options)
        self.echo(f" {time.perf_counter() - start:.0f} s\n")
        if status.returncode:
            lines = log.read_text(encoding="utf-8", errors="replace").splitlines()[-LAST_LINES:]
            message = f"{stage} failed with exit code {status.returncode}; the end of {log}:"
            raise HearTransformersError("\n".join([message, *lines]))


def _settings_file(folder: Path) -> Path:
    return folder.with_name(f"{folder.name}.{SETTINGS}")


def _copy_metadata(source: Path, target: Path, grid: Mapping[str, Sequence[Any]] | None) -> None:
    """Copy a task's metadata, with the grid where heareval looks for it (predictions/task_predictions.py:1336)."""
    metadata = json.loads(source.read_text(encoding="utf-8"))
    if grid is not None:
        metadata["evaluation_params"] = {**metadata.get("evaluation_params", {}), "task_specific_param_grid": grid}
    target.write_text(json.dumps(metadata, indent=4), encoding="utf-8")


def find_harness(python: str) -> str:
    """Return the path of an interpreter; raise HearTransformersError if it is missing or lacks HEAR's harness."""
    path = shutil.which(python)
    if path is None:
        raise OptionError(f"--python {python}: there is no such program; `make hear` makes .venv-hear/bin/python")
    path = os.path.abspath(path)  # not resolved: a virtual environment's interpreter is a link
    status = subprocess.run([path, *OFFICIAL, "check"], capture_output=True, text=True, errors="replace", check=False)
    if status.returncode:
        raise HearTransformersError(f"--python {python}: {status.stderr.strip().splitlines()[-1]}")
    return path
