"""The training loop: steps, checkpoints, one process or several. It knows nothing of audio.

A step depends on the seed and its number alone, so a resumed run ends as if it had never stopped. Several processes
that share a batch take the same step as one process with the whole batch, but for random draws of the network: each
process draws its own dropout, stochastic depth, patchout and offsets in time. On the CPU it also computes its own
statistics for batch normalisation.
"""

from __future__ import annotations

import math
import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from typing import Any, BinaryIO, Protocol

import numpy as np
import torch
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel
from tqdm import tqdm

from ..embedding.precision import computing, multiplying, resolve, warn_if_slow
from ..errors import TrainingError
from ..files import atomic
from .curves import Curves
from .optimisation import FACTOR, Average, build_optimiser, learning_rate_at
from .recipes import Recipe

CHECKPOINT = "last.pt"
CHECKPOINT_SECONDS = 300.0
"""Seconds of work that a killed run may lose."""

PARTS = ".*.part"
"""Names of files that are being written, see `files.atomic_path`."""

LOG_SECONDS = 30.0
"""Seconds between lines of text within an epoch."""

REPORT_STEPS = 10
"""Steps between reports of the losses; fetching them waits for the device."""


class Objective(nn.Module, ABC):
    """The network, everything else that is trained along with it, and the losses to minimise."""

    trunk: nn.Module
    """The network that training is for."""

    @abstractmethod
    def forward(self, batch: Any) -> dict[str, Tensor]:
        """Compute named losses, each the mean over this process's clips; their sum is minimised."""


@dataclass(frozen=True, slots=True)
class Processes:
    """The processes that train together, as torchrun starts them.

    Attributes
    ----------
    rank : of this process
    count : number of processes
    device : of this process
    """

    rank: int
    count: int
    device: torch.device

    @classmethod
    def join(cls, device: torch.device) -> Processes:
        """Join the processes that torchrun started; without torchrun there is just this one.

        Parameters
        ----------
        device : to train on; under torchrun each process takes the GPU of its local rank
        """
        count = int(os.environ.get("WORLD_SIZE", "1"))
        if count == 1:
            return cls(0, 1, device)
        if device.type == "cuda":
            device = torch.device("cuda", int(os.environ["LOCAL_RANK"]))
            torch.cuda.set_device(device)
        distributed.init_process_group("nccl" if device.type == "cuda" else "gloo")
        return cls(distributed.get_rank(), count, device)

    def leave(self) -> None:
        """Leave the process group."""
        if self.count > 1:
            distributed.destroy_process_group()

    def mean(self, values: Tensor) -> Tensor:
        """Average over the processes."""
        if self.count > 1:
            distributed.all_reduce(values)
            values = values / self.count
        return values

    def gather(self, part: Any) -> list[Any]:
        """Collect an object of each process, in the order of their ranks."""
        parts = [part]
        if self.count > 1:
            parts = [None] * self.count
            distributed.all_gather_object(parts, part)
        return parts

    def wrap(self, objective: Objective) -> nn.Module:
        """Wrap the objective so that gradients are averaged over the processes."""
        if self.count == 1:
            return objective
        if self.device.type != "cuda":
            return DistributedDataParallel(objective)
        # Computes statistics of the whole batch; PyTorch has no such layer for the CPU.
        synchronised = nn.SyncBatchNorm.convert_sync_batchnorm(objective)
        return DistributedDataParallel(synchronised, device_ids=[self.device.index])


class TrainingRun:
    """The state of a training run: the networks, the optimiser, the average, and the number of steps done.

    Parameters
    ----------
    objective : to minimise; moved to the device
    recipe : of the training
    steps_per_epoch : number of steps
    seed : of all random draws
    processes : that train together
    settings : plain values that the run was started with; a checkpoint of other settings is refused
    fresh : see `build_optimiser`
    """

    def __init__(
        self,
        objective: Objective,
        recipe: Recipe,
        *,
        steps_per_epoch: int,
        seed: int,
        processes: Processes,
        settings: dict[str, Any],
        fresh: tuple[str, ...] = (),
    ) -> None:
        self.objective = objective.to(processes.device)
        self.recipe = recipe
        self.steps_per_epoch = steps_per_epoch
        self.n_steps = recipe.epochs * steps_per_epoch
        self.seed = seed
        self.processes = processes
        self.precision = resolve(recipe.precision, processes.device)
        warn_if_slow(self.precision, processes.device)
        self.settings = settings
        self.optimiser = build_optimiser(objective, recipe, fresh)
        self.average = Average(objective.trunk, recipe)
        self.model = processes.wrap(objective)
        self.step = 0
        self.seconds = 0.0
        self.best: dict[str, float] = {}

    @property
    def network(self) -> nn.Module:
        """The network to use at this point: averaged if the recipe says so."""
        return self.average.network(self.objective.trunk)

    @property
    def epoch(self) -> int:
        """Number of complete epochs."""
        return self.step // self.steps_per_epoch

    def save(self, path: Path) -> None:
        """Write a checkpoint, atomically."""
        with atomic(path) as file:
            self.write(file)

    def write(self, file: BinaryIO) -> None:
        """Write the state of the run into an open file."""
        states = {name: part.state_dict() for name, part in self._parts().items()}
        progress = {"step": self.step, "seconds": self.seconds, "best": self.best}
        try:
            torch.save({"settings": self.settings, **progress, **states}, file)
        except RuntimeError as error:
            if isinstance(error.__context__, OSError):  # PyTorch's writer hides why it could not write
                raise error.__context__ from error
            raise

    def restore(self, path: Path) -> None:
        """Load the state of a checkpoint, see `read`."""
        with path.open("rb") as file:
            self.read(file, path)

    def read(self, file: BinaryIO, path: Path) -> None:
        """Load the state of a run from an open file; `path` names it in errors.

        Raises
        ------
        TrainingError : the checkpoint is damaged or was made with other settings
        """
        try:
            states = torch.load(file, map_location=self.processes.device, weights_only=True)
            settings = states["settings"]
        except Exception as error:  # damaged bytes raise about every type there is
            reason = "not a checkpoint of a training run, or damaged; delete it to start over"
            raise TrainingError(f"{path}: {reason}") from error
        if others := [key for key in self.settings if settings.get(key) != self.settings[key]]:
            raise TrainingError(
                f"{path} belongs to a run with other settings ({', '.join(others)}); "
                "give the same settings to resume it, or choose another folder"
            )
        for name, part in self._parts().items():
            part.load_state_dict(states[name])
        self.step, self.seconds, self.best = states["step"], states["seconds"], states["best"]

    def _parts(self) -> dict[str, Any]:
        parts: dict[str, Any] = {"objective": self.objective, "optimiser": self.optimiser}
        return parts | ({} if self.average.model is None else {"average": self.average.model})

    def advance(self, batch: Any) -> dict[str, Tensor]:
        """Take one step and return its losses, on the device."""
        torch.manual_seed(seed_of(self.seed, self.step, self.processes.rank))
        for group in self.optimiser.param_groups:
            group["lr"] = group[FACTOR] * learning_rate_at(self.recipe, self.step, self.steps_per_epoch)
        self.model.train()
        self.optimiser.zero_grad()
        with multiplying(self.precision):
            with computing(self.precision, self.processes.device):
                losses = self.model(batch)
            torch.stack(list(losses.values())).sum().backward()
        if self.recipe.gradient_norm is not None:
            nn.utils.clip_grad_norm_(self.objective.parameters(), self.recipe.gradient_norm)
        self.optimiser.step()
        self.average.after_step(self.objective.trunk)
        self.step += 1
        if self.step % self.steps_per_epoch == 0:
            self.average.after_epoch(self.objective.trunk, self.epoch)
        return {name: loss.detach() for name, loss in losses.items()}


def seed_of(*numbers: int) -> int:
    """Derive a PyTorch seed from the numbers of a run, a step and a process."""
    return int(np.random.SeedSequence(numbers).generate_state(1, np.uint64)[0] >> np.uint64(1))


class Checkpoint(Protocol):
    """Where the state of a run is kept."""

    def exists(self) -> bool:
        """Return True if there is a state to resume from."""

    def save(self, run: TrainingRun) -> None:
        """Write the state of a run; the one before stays whole until this one is."""

    def restore(self, run: TrainingRun) -> None:
        """Load the state of a run."""


class WholeFile:
    """A checkpoint in one file.

    Parameters
    ----------
    folder : of the run
    """

    def __init__(self, folder: Path) -> None:
        self._path = folder / CHECKPOINT

    def exists(self) -> bool:
        """Return True if there is a state to resume from."""
        return self._path.exists()

    def save(self, run: TrainingRun) -> None:
        """Write the state of a run, see `TrainingRun.save`."""
        run.save(self._path)

    def restore(self, run: TrainingRun) -> None:
        """Load the state of a run, see `TrainingRun.restore`."""
        run.restore(self._path)


def fit(
    run: TrainingRun,
    batches: Callable[[range], Iterable[Any]],
    folder: Path,
    *,
    validate: Callable[[nn.Module], dict[str, float]] | None = None,
    keep: Callable[[nn.Module, Path], None] | None = None,
    checkpoint: Callable[[Path], Checkpoint] = WholeFile,
    checkpoint_seconds: float = CHECKPOINT_SECONDS,
    stop_seconds: float = math.inf,
    progress: bool = False,
    log: Callable[[str], None] | None = None,
    title: str = "",
    tensorboard: bool = False,
) -> None:
    """Take the remaining steps, resuming from the checkpoint in the folder if there is one.

    A run that stopped after `stop_seconds` goes on at the next call, and ends as if it had never stopped.

    Parameters
    ----------
    run : to train
    batches : range of steps -> this process's part of the batch of each
    folder : for the checkpoint, the curves, and with `keep` ``best.safetensors`` and ``model.safetensors``
    validate : scores a network after each epoch, called in every process; the first score decides on the best epoch
    keep : writes a network to a file
    checkpoint : keeps the state of the run in the folder
    checkpoint_seconds : work that a killed run may lose, in s
    stop_seconds : time after which no further step is taken, in s; for a process that trains alone
    progress : True to show a bar
    log : called with a line after each epoch; without a bar also every `LOG_SECONDS` within one
    title : of the picture of the curves
    tensorboard : True to write the curves for TensorBoard, too

    Raises
    ------
    TrainingError : a loss is not finite, or the folder holds a run with other settings
    """
    began = time.monotonic()
    folder.mkdir(parents=True, exist_ok=True)
    state = checkpoint(folder)
    if state.exists():
        state.restore(run)
    seconds_before = run.seconds
    writer = None
    if run.processes.rank == 0:
        remove_unfinished(folder)
        writer = Writer(run, folder, keep, state, checkpoint_seconds, tensorboard)
    lines = Lines(run, log if writer else None, within_epochs=not progress)
    losses: list[dict[str, Tensor]] = []
    devices = [run.processes.device] if run.processes.device.type == "cuda" else []
    bar = tqdm(total=run.n_steps, initial=run.step, unit="step", disable=not (progress and writer))
    with torch.random.fork_rng(devices), bar:
        for batch in batches(range(run.step, run.n_steps)):
            losses.append(run.advance(batch))
            run.seconds = seconds_before + time.monotonic() - began
            ends_epoch = run.step % run.steps_per_epoch == 0
            stops = run.processes.count == 1 and time.monotonic() - began >= stop_seconds
            if not (ends_epoch or stops) and run.step % REPORT_STEPS and not lines.is_due():
                continue
            rows = fetch_losses(run, losses)
            scores = validate(run.network) if validate and ends_epoch else {}
            if writer:
                writer.report(rows, scores, stops)
            lines.report(rows, scores)
            bar.set_postfix({name: f"{loss:.3f}" for name, loss in rows[-1].items()} | {"best": run.best})
            bar.update(len(rows))
            losses.clear()
            if stops:
                break
    if writer:
        writer.finish(title)


def remove_unfinished(folder: Path) -> None:
    """Remove the files that a killed run was writing."""
    for part in folder.glob(PARTS):
        part.unlink(missing_ok=True)


class Lines:
    """Describes a run in lines of text, for logs: one after each epoch, and within a long one.

    Parameters
    ----------
    run : at its first step, or resumed
    log : called with each line; None for no lines
    within_epochs : True for lines every `LOG_SECONDS`
    """

    def __init__(self, run: TrainingRun, log: Callable[[str], None] | None, *, within_epochs: bool) -> None:
        self.run = run
        self.log = log
        self.within_epochs = within_epochs
        self.first_step = run.step
        self.began = self.logged = time.monotonic()
        self.rows: list[dict[str, float]] = []  # losses of the epoch

    def is_due(self) -> bool:
        """Return True if it is time for a line; never where processes would have to agree."""
        is_late = time.monotonic() - self.logged >= LOG_SECONDS
        return bool(self.log and self.within_epochs and is_late and self.run.processes.count == 1)

    def report(self, rows: list[dict[str, float]], scores: dict[str, float]) -> None:
        """Take the losses of the last steps, and the scores of the epoch that they complete, if any; log a line."""
        run = self.run
        self.rows += rows
        ends_epoch = run.step % run.steps_per_epoch == 0
        is_late = self.within_epochs and time.monotonic() - self.logged >= LOG_SECONDS
        if self.log and (ends_epoch or is_late):
            n_before, within = divmod(run.step, run.steps_per_epoch)
            place = f"epoch {n_before}" if ends_epoch else f"epoch {n_before + 1}"
            steps = "" if ends_epoch else f", step {within}/{run.steps_per_epoch}"
            losses = {name: sum(row[name] for row in self.rows) / len(self.rows) for name in self.rows[0]}
            best = {f"best {name}": value for name, value in run.best.items() if ends_epoch}
            numbers = scores | best | losses
            rate = learning_rate_at(run.recipe, run.step - 1, run.steps_per_epoch)
            shown = ", ".join(f"{name} {value:.4g}" for name, value in {**numbers, "learning rate": rate}.items())
            self.log(f"{place}/{run.recipe.epochs}{steps}: {shown}, {self._times()}")
            self.logged = time.monotonic()
        if ends_epoch:
            self.rows = []

    def _times(self) -> str:
        """Return the time since the start and the time left."""
        run, passed = self.run, time.monotonic() - self.began
        left = passed / (run.step - self.first_step) * (run.n_steps - run.step)
        return ", ".join(
            f"{timedelta(seconds=round(each))} {what}" for each, what in ((passed, "passed"), (left, "left"))
        )


def fetch_losses(run: TrainingRun, losses: list[dict[str, Tensor]]) -> list[dict[str, float]]:
    """Fetch the losses of the last steps, averaged over the processes.

    Raises
    ------
    TrainingError : one of them is not finite
    """
    names = list(losses[0])
    values = run.processes.mean(torch.stack([torch.stack([step[name] for name in names]) for step in losses]))
    rows = [dict(zip(names, row, strict=True)) for row in values.tolist()]
    first = run.step - len(rows) + 1
    for step, row in enumerate(rows, first):
        if not all(math.isfinite(loss) for loss in row.values()):
            raise TrainingError(f"the loss of step {step} is {row}; try a lower learning rate, or precision float32")
    return rows


class Writer:
    """Writes curves, checkpoints and networks, in the first process only; its parameters are those of `fit`."""

    def __init__(
        self,
        run: TrainingRun,
        folder: Path,
        keep: Callable[[nn.Module, Path], None] | None,
        checkpoint: Checkpoint,
        checkpoint_seconds: float,
        tensorboard: bool,
    ) -> None:
        self.run = run
        self.folder = folder
        self.keep = keep
        self.checkpoint = checkpoint
        self.curves = Curves(folder, run.step, tensorboard=tensorboard)
        self.checkpoint_seconds = checkpoint_seconds
        self.saved = time.monotonic()

    def report(self, rows: list[dict[str, float]], scores: dict[str, float], is_last: bool) -> None:
        """Write the losses of the last steps, the scores of the epoch that they complete, and if due the state."""
        run = self.run
        for step, losses in enumerate(rows, run.step - len(rows) + 1):
            rate = learning_rate_at(run.recipe, step - 1, run.steps_per_epoch)
            self.curves.add_step(step, {"epoch": step / run.steps_per_epoch, "learning_rate": rate, **losses})
        if scores:
            self.curves.add_epoch(run.step, {"epoch": run.epoch, **scores})
            main, score = next(iter(scores.items()))
            if score > run.best.get(main, -math.inf):
                run.best = {main: score, "epoch": run.epoch}
                self._keep("best")
        self.curves.flush()
        is_last = is_last or run.step == run.n_steps
        if is_last or time.monotonic() - self.saved >= self.checkpoint_seconds:
            self.checkpoint.save(run)
            self.saved = time.monotonic()

    def finish(self, title: str) -> None:
        """Write the network as it is, and draw the curves."""
        self._keep("model")
        mixed = " and ".join(mixup.of for mixup in self.run.recipe.mixups)
        self.curves.plot(title, f"training, mixup of {mixed}" if mixed else "training")

    def _keep(self, name: str) -> None:
        if self.keep:
            self.keep(self.run.network, self.folder / f"{name}.safetensors")
