"""A training run of a student: its assembly, its slices, its state, and the weights that come of it."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

import safetensors.torch
import torch
from torch import Tensor

from ... import hear
from ...files import atomic, sha256_of
from .. import loop
from ..corpus import words
from ..loop import Processes, TrainingRun
from ..pieces import Pieces
from . import clips, objectives
from .clips import Clips, Source
from .recipe import DistilRecipe
from .students import STUDENTS, Student
from .teachers import Teacher

TRUNK = "trunk."  # of the names of the network's tensors in the state of an objective


def new_run(recipe: DistilRecipe, held_out: dict[str, Clips], device: torch.device) -> TrainingRun:
    """Start a run, with weights drawn from the recipe's seed; of held-out clips only the kinds of targets are read."""
    return TrainingRun(
        objectives.distillation(recipe, held_out),
        recipe.training(device),
        steps_per_epoch=recipe.steps_per_score,
        seed=recipe.seed,
        processes=Processes(0, 1, device),
        settings=recipe.settings(),
    )


def train(
    recipe: DistilRecipe,
    folder: Path,
    source: Source,
    teachers: Sequence[Teacher],
    device: torch.device,
    *,
    start: Path | None = None,
    stop_seconds: float = float("inf"),
    progress: bool = False,
    log: Callable[[str], None] | None = None,
) -> TrainingRun:
    """Train until the time is over or all steps are taken, resuming from the state in the folder if there is one.

    Parameters
    ----------
    recipe : of the run
    folder : of its state and curves
    source : of clips, see `clips.corpus`
    teachers : that are asked about them
    device : to train on
    start : weights of the network to begin with, as `export` writes them; None for random ones
    stop_seconds, progress, log : see `loop.fit`

    Raises
    ------
    WeightsError : the weights to begin with are no such network
    TrainingError : see `loop.fit`; other weights to begin with are another setting
    """
    if log is not None:
        heard = [f"{each.name} ({each.licence}) hears {', '.join(each.hears)}" for each in teachers]
        if recipe.words:
            heard.append(f"{words.NAME} ({words.LICENCE}) hears speech")
        log("; ".join(heard))
    weights = {} if start is None else _network_of(STUDENTS[recipe.student], start)
    if start is not None:
        recipe = replace(recipe, start=sha256_of(start))
    held_out = clips.held_out(recipe, source, teachers, device)
    run = new_run(recipe, held_out, device)
    if not Pieces(folder).exists():
        objective = run.objective
        assert isinstance(objective, objectives.Distillation)
        first = clips.first_clips(recipe, source, teachers, device)
        objective.observe(first)
        if weights:
            objective.trunk.load_state_dict(weights)
            objective.fit_heads(first, recipe.seed)
    loop.fit(
        run,
        partial(clips.batches, recipe, source, teachers, device),
        folder,
        validate=lambda _: objectives.score(run, held_out),
        checkpoint=Pieces,
        stop_seconds=stop_seconds,
        progress=progress,
        log=log,
        title=f"{recipe.student}, seed {recipe.seed}",
    )
    return run


def _network_of(student: Student, path: Path) -> dict[str, Tensor]:
    """Return the tensors of a student's exported network."""
    return hear.Loader(student.family).load_model(path, student.name).trunk.state_dict()


def export(folder: Path) -> Path:
    """Write the network of the run in a folder alone, in 16 bits as far as they hold it, and return the file.

    Raises
    ------
    TrainingError : the folder holds no run, or a damaged one
    """
    pieces = Pieces(folder)
    name = f"{pieces.read_index()['settings']['student']}.safetensors".replace("_", "-")
    state = torch.load(pieces.open(), map_location="cpu", weights_only=True)["objective"]
    tensors = {key.removeprefix(TRUNK): tensor for key, tensor in state.items() if key.startswith(TRUNK)}
    with atomic(folder / name) as file:
        file.write(safetensors.torch.save({key: _halved(tensor).contiguous() for key, tensor in tensors.items()}))
    return folder / name


def _halved(tensor: Tensor) -> Tensor:
    """Return a tensor in 16 bits, unless numbers are too large for them, as the variance of what is not normalised.

    The last bit is rounded off: it says nothing, and without it the wheel is a twentieth smaller.
    """
    if not tensor.is_floating_point():
        return tensor
    half = tensor.half()
    if not half.isfinite().all():
        return tensor
    return ((half.view(torch.int16) + 1) & ~1).view(torch.float16)


def manifest_row(student: Student, path: Path) -> str:
    """Return the row of weights/manifest.toml for exported weights."""
    return "\n".join(
        [
            f"[{student.family.name}.{student.name}]",
            f'file = "{path.name}"',
            f"bytes = {path.stat().st_size:_}",
            f'sha256 = "{sha256_of(path)}"',
            'licence = "Apache-2.0"',
            'trained_on = "synthesised audio"',
            "embedded = true",
        ]
    )
