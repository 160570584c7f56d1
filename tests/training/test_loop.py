"""The training loop: runs that survive, rates and averages as their recipes say."""

import builtins
import contextlib
import csv
import errno
import io
import math
import re
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hear_transformers.errors import TrainingError
from hear_transformers.files import atomic
from hear_transformers.training import curves, loop
from hear_transformers.training.curves import Curves
from hear_transformers.training.loop import Objective, Processes, TrainingRun, fit, seed_of
from hear_transformers.training.optimisation import Average, build_optimiser, learning_rate_at
from hear_transformers.training.recipes import Recipe

RECIPE = Recipe(epochs=4, batch_size=8, learning_rate=0.05, optimiser="adamw", precision="float32")


class Line(Objective):
    """Fits a line to noisy points; dropout and normalisation make it depend on all that a run must remember."""

    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            self.trunk = nn.Sequential(nn.Linear(3, 8), nn.BatchNorm1d(8), nn.Dropout(0.3), nn.Linear(8, 1))

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        errors = self.trunk(batch) - batch.sum(1, keepdim=True)
        return {"square": errors.square().mean(), "size": 0.01 * errors.abs().mean()}


def points(steps: range) -> Iterator[Tensor]:
    for step in steps:
        yield torch.randn(8, 3, generator=torch.Generator().manual_seed(step))


def stopping(at: int):
    """Return batches like `points` that end with an error before a step."""

    def batches(steps: range) -> Iterator[Tensor]:
        for step, batch in zip(steps, points(steps), strict=True):
            if step == at:
                raise KeyboardInterrupt
            yield batch

    return batches


def new_run(recipe: Recipe = RECIPE, *, steps_per_epoch: int = 5, seed: int = 0) -> TrainingRun:
    alone = Processes(0, 1, torch.device("cpu"))
    settings = {"seed": seed, "learning_rate": recipe.learning_rate}
    return TrainingRun(Line(), recipe, steps_per_epoch=steps_per_epoch, seed=seed, processes=alone, settings=settings)


def rows(path: Path) -> list[dict[str, str]]:
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def assert_same(ours: nn.Module, theirs: nn.Module) -> None:
    for (name, mine), other in zip(ours.state_dict().items(), theirs.state_dict().values(), strict=True):
        assert torch.equal(mine, other), name


# Faults of the disk


class KilledError(BaseException):
    """Stands for the end of the process."""


class Faults:
    """Lets the n-th operation on files below a folder fail, all of those behind it too if the process was killed."""

    def __init__(self, monkeypatch, error: BaseException, at: int) -> None:
        self.error, self.at, self.count = error, at, 0
        for owner, name in ((builtins, "open"), (io, "open"), (Path, "replace"), (Path, "unlink"), (Path, "glob")):
            monkeypatch.setattr(owner, name, partial(self.step, getattr(owner, name)))
        monkeypatch.setattr(Path, "replace", lambda path, other, step=Path.replace: step(path, other))
        monkeypatch.setattr(Path, "unlink", lambda path, step=Path.unlink, **options: step(path, **options))
        monkeypatch.setattr(Path, "glob", lambda path, pattern, step=Path.glob: step(path, pattern))

    def step(self, function, *arguments, **options):
        self.count += 1
        if self.count == self.at or (self.count > self.at and isinstance(self.error, KilledError)):
            raise self.error
        return function(*arguments, **options)


def save_nothing(figure, path: Path) -> None:
    with atomic(path) as file:
        file.write(b"a picture")


@pytest.mark.slow
@pytest.mark.parametrize(
    "error", [KilledError(), OSError(errno.ENOSPC, "No space left on device"), OSError(errno.EIO, "Input/output error")]
)
def test_a_fault_at_any_operation_loses_no_run_and_leaves_no_unfinished_file(
    tmp_path: Path, monkeypatch, error
) -> None:
    monkeypatch.setattr(curves, "save", save_nothing)  # draws for seconds
    recipe = replace(RECIPE, epochs=1)

    def train(folder: Path) -> TrainingRun:
        run, score = new_run(recipe, steps_per_epoch=2), {"score": 1.0}
        fit(run, points, folder, validate=lambda network: score, keep=write_network, checkpoint_seconds=0)
        return run

    whole = train(tmp_path / "whole")
    names = sorted(path.name for path in (tmp_path / "whole").iterdir())
    n_faults = 0
    while True:
        folder = tmp_path / f"at-{n_faults}"
        with pytest.MonkeyPatch.context() as patch:
            faults = Faults(patch, error, n_faults + 1)
            try:
                train(folder)
            except (type(error), KilledError):
                n_faults += 1
            else:
                break
        assert faults.count > n_faults - 1
        resumed = train(folder)
        assert_same(whole.network, resumed.network)
        assert sorted(path.name for path in folder.iterdir()) == names
        for table in ("steps.csv", "epochs.csv"):
            assert (folder / table).read_text() == (tmp_path / "whole" / table).read_text()
    assert n_faults >= 12


def write_network(network: nn.Module, path: Path) -> None:
    with atomic(path) as file:
        torch.save(network.state_dict(), file)


class FullFile(io.BytesIO):
    def write(self, data) -> int:
        if self.tell() + len(data) > 600:
            raise OSError(errno.ENOSPC, "No space left on device")
        return super().write(data)


def test_a_disk_that_fills_up_inside_a_checkpoint_is_called_full(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "atomic", lambda path: contextlib.nullcontext(FullFile()))
    with pytest.raises(OSError, match="No space left on device"):
        new_run().save(tmp_path / "last.pt")


# Lines for logs


def test_each_epoch_and_every_half_minute_has_a_line(tmp_path: Path, monkeypatch) -> None:
    lines: list[str] = []
    clock = iter(range(0, 100_000, 7))
    monkeypatch.setattr(loop.time, "monotonic", lambda: float(next(clock)))
    fit(new_run(steps_per_epoch=30), points, tmp_path, validate=lambda network: {"score": 0.5}, log=lines.append)
    epochs = [line for line in lines if ", step " not in line]
    assert [line.partition(":")[0] for line in epochs] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]
    assert all(
        re.search("score 0.5, best score 0.5, best epoch 1, square .*, size .*, learning rate", x) for x in epochs
    )
    assert epochs[-1].endswith("passed, 0:00:00 left")
    within = [line for line in lines if ", step " in line]
    assert len(within) >= 8
    assert re.fullmatch(r"epoch 1/4, step \d+/30: square .*, learning rate 0.05, 0:0\d:\d\d passed, .* left", within[0])


def test_a_bar_leaves_the_epochs_to_the_lines(tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setattr(loop, "LOG_SECONDS", 0.0)
    lines: list[str] = []
    fit(new_run(), points, tmp_path, log=lines.append, progress=True)
    assert [line[:9] for line in lines] == ["epoch 1/4", "epoch 2/4", "epoch 3/4", "epoch 4/4"]


# Interrupting and resuming


@pytest.mark.slow
@pytest.mark.parametrize("average", ["none", "ema", "epochs"])
@pytest.mark.parametrize("at", [1, 5, 13])
def test_a_resumed_run_ends_like_an_uninterrupted_one(tmp_path: Path, average: str, at: int) -> None:
    recipe = replace(RECIPE, average=average, average_from=2, warm_up_steps=3, decay="cosine", gradient_norm=1.0)
    whole, stopped, resumed = (new_run(recipe) for _ in range(3))
    fit(whole, points, tmp_path / "whole")
    with pytest.raises(KeyboardInterrupt):
        fit(stopped, stopping(at), tmp_path / "stopped", checkpoint_seconds=0)
    fit(resumed, points, tmp_path / "stopped")
    assert resumed.step == whole.step == 20
    assert_same(whole.network, resumed.network)
    assert (tmp_path / "whole" / "steps.csv").read_text() == (tmp_path / "stopped" / "steps.csv").read_text()


@pytest.mark.slow
def test_a_complete_run_takes_no_step(tmp_path: Path) -> None:
    fit(new_run(), points, tmp_path)
    before = (tmp_path / "steps.csv").read_text()
    fit(new_run(), stopping(0), tmp_path)
    assert (tmp_path / "steps.csv").read_text() == before


@pytest.mark.slow
def test_a_checkpoint_of_other_settings_is_refused(tmp_path: Path) -> None:
    fit(new_run(), points, tmp_path)
    with pytest.raises(TrainingError, match=r"last\.pt belongs to a run with other settings \(seed\); give the same"):
        fit(new_run(seed=1), points, tmp_path)


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\3\4"])
def test_a_damaged_checkpoint_is_named(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "last.pt").write_bytes(content)
    with pytest.raises(TrainingError, match=r"last\.pt: not a checkpoint of a training run, or damaged"):
        fit(new_run(), points, tmp_path)


def test_a_loss_that_is_not_finite_ends_the_run_and_names_the_step(tmp_path: Path) -> None:
    def batches(steps: range) -> Iterator[Tensor]:
        for step, batch in zip(steps, points(steps), strict=True):
            yield batch * math.nan if step == 6 else batch

    with pytest.raises(TrainingError, match="the loss of step 7 is"):
        fit(new_run(), batches, tmp_path)


@pytest.mark.slow
def test_training_leaves_the_global_seed_alone(tmp_path: Path) -> None:
    before = torch.get_rng_state()
    fit(new_run(), points, tmp_path)
    assert torch.equal(torch.get_rng_state(), before)


def test_seeds_differ_between_runs_steps_and_processes() -> None:
    numbers = [(seed, step, rank) for seed in range(3) for step in range(50) for rank in range(4)]
    assert len({seed_of(*each) for each in numbers}) == len(numbers)


# What is written


@pytest.mark.slow
def test_the_curves_have_every_step_and_epoch(tmp_path: Path) -> None:
    scores = iter([0.1, 0.4, 0.3, 0.2])
    fit(new_run(), points, tmp_path, validate=lambda network: {"accuracy": next(scores), "valid_loss": 1.0})
    steps, epochs = rows(tmp_path / "steps.csv"), rows(tmp_path / "epochs.csv")
    assert list(steps[0]) == ["step", "epoch", "learning_rate", "square", "size"]
    assert [int(row["step"]) for row in steps] == list(range(1, 21))
    assert [(row["step"], row["epoch"], row["accuracy"]) for row in epochs] == [
        ("5", "1", "0.1"),
        ("10", "2", "0.4"),
        ("15", "3", "0.3"),
        ("20", "4", "0.2"),
    ]
    assert (tmp_path / "curves.png").stat().st_size > 1000


@pytest.mark.slow
def test_the_best_and_the_last_network_are_kept(tmp_path: Path) -> None:
    scores = iter([0.1, 0.4, 0.3, 0.2])
    kept = []
    fit(
        run := new_run(),
        points,
        tmp_path,
        validate=lambda network: {"accuracy": next(scores)},
        keep=lambda network, path: kept.append((path.name, run.epoch)),
    )
    assert kept == [("best.safetensors", 1), ("best.safetensors", 2), ("model.safetensors", 4)]
    assert run.best == {"accuracy": 0.4, "epoch": 2}


def test_a_partial_row_is_dropped(tmp_path: Path) -> None:
    (tmp_path / "steps.csv").write_text("step,loss\n1,0.5\n2,0.25\n3,0.125\n1")
    Curves(tmp_path, 2).steps.add(3, {"loss": 0.2})
    assert (tmp_path / "steps.csv").read_text() == "step,loss\n1,0.5\n2,0.25\n3,0.2\n"


# Learning rates


def rates(recipe: Recipe, epochs: list[float], steps_per_epoch: int = 100) -> list[float]:
    return [learning_rate_at(recipe, round(epoch * steps_per_epoch), steps_per_epoch) for epoch in epochs]


def test_a_linear_warm_up_reaches_the_rate_with_its_last_step() -> None:
    recipe = replace(RECIPE, learning_rate=1.0, warm_up_steps=50)
    assert rates(recipe, [0, 0.24, 0.49, 0.5, 3]) == pytest.approx([0.02, 0.5, 1, 1, 1])


def test_an_exponential_warm_up_begins_half_an_epoch_in() -> None:
    recipe = replace(RECIPE, learning_rate=1.0, warm_up_epochs=2.0, warm_up_shape="exponential")
    first = math.exp(-5 * 0.75**2)
    assert rates(recipe, [0, 0.5, 1, 1.99, 3]) == pytest.approx([first, first, math.exp(-1.25), 1, 1], rel=1e-2)


def test_a_cosine_falls_to_its_floor() -> None:
    recipe = replace(RECIPE, learning_rate=1.0, decay="cosine", floor=0.1)
    assert rates(recipe, [0, 2, 4]) == pytest.approx([1, 0.55, 0.1])


def test_milestones_multiply() -> None:
    recipe = replace(RECIPE, learning_rate=1.0, decay="milestones", milestones=(2, 3), gamma=0.5)
    assert rates(recipe, [1.99, 2, 2.99, 3]) == [1, 0.5, 0.5, 0.25]


def test_a_line_falls_between_two_epochs() -> None:
    recipe = replace(RECIPE, learning_rate=1.0, decay="linear", decay_from=1, decay_to=3, floor=0.2)
    assert rates(recipe, [0, 1, 2, 3, 4]) == pytest.approx([1, 1, 0.6, 0.2, 0.2])


# Optimisers and averages


@pytest.mark.parametrize(("decay_vectors", "expected"), [(True, [0.1, 0.1]), (False, [0.1, 0.0])])
def test_weight_decay_may_leave_vectors_alone(decay_vectors: bool, expected: list[float]) -> None:
    groups = build_optimiser(Line(), replace(RECIPE, weight_decay=0.1, decay_vectors=decay_vectors)).param_groups
    assert [group["weight_decay"] for group in groups] == expected
    assert [{p.ndim for p in group["params"]} for group in groups] == [{2}, {1}]


def test_reinitialised_parameters_may_learn_faster() -> None:
    made = build_optimiser(Line(), replace(RECIPE, fresh_factor=10.0), fresh=("trunk.3",))
    assert [(group["factor"], sum(p.numel() for p in group["params"])) for group in made.param_groups] == [
        (1, 24),
        (1, 24),  # a bias, and scale and shift of a normalisation
        (10, 8),
        (10, 1),
    ]


@pytest.mark.parametrize(("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW)])
def test_the_optimiser_has_the_numbers_of_the_recipe(name: str, kind: type) -> None:
    made = build_optimiser(Line(), replace(RECIPE, optimiser=name, betas=(0.5, 0.6), eps=1e-3, amsgrad=True))
    assert type(made) is kind
    assert {(group["betas"], group["eps"], group["amsgrad"]) for group in made.param_groups} == {
        ((0.5, 0.6), 1e-3, True)
    }


def constant(value: float) -> nn.Module:
    module = nn.Sequential(nn.Linear(1, 1, bias=False), nn.BatchNorm1d(1))
    with torch.no_grad():
        for tensor in module.state_dict().values():
            tensor.fill_(value)
    return module


def test_chosen_epochs_are_averaged_with_equal_weights() -> None:
    average = Average(constant(0.0), replace(RECIPE, epochs=8, average="epochs", average_from=3, average_every=2))
    trained = constant(9.0)
    assert average.network(trained) is trained
    for epoch in range(1, 9):
        average.after_step(constant(100.0))
        average.after_epoch(constant(float(epoch)), epoch)
    values = {tensor.item() for tensor in average.network(trained).state_dict().values()}
    assert values == {(3 + 5 + 7) / 3}


def test_a_moving_average_follows_every_step() -> None:
    average = Average(constant(0.0), replace(RECIPE, average="ema", ema_decay=0.5))
    for value in (4.0, 8.0, 16.0):
        average.after_step(constant(value))
        average.after_epoch(constant(100.0), 1)
    weight = average.network(constant(0.0)).state_dict()["0.weight"].item()
    assert weight == 0.5 * (0.5 * 4 + 0.5 * 8) + 0.5 * 16
