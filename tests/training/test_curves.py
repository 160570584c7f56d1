"""Curves of a training run: TensorBoard reads what the tables hold, also of a run that was killed and resumed."""

from pathlib import Path

import pytest

from hear_transformers.training.curves import BOARD, Curves


def losses(folder: Path) -> dict[int, float]:
    """Read the losses of steps as TensorBoard does."""
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")  # extra `tensorboard`
    events = accumulator.EventAccumulator(str(folder / BOARD))
    events.Reload()
    return {event.step: event.value for event in events.Scalars("training/loss")}


def test_tensorboard_reads_the_losses_of_steps(tmp_path: Path) -> None:
    curves = Curves(tmp_path, 0, tensorboard=True)
    for step in (1, 2):
        curves.add_step(step, {"epoch": step / 2, "loss": 0.5 * step})
    curves.flush()
    assert losses(tmp_path) == {1: 0.5, 2: 1.0}


def test_steps_behind_the_last_checkpoint_are_replaced(tmp_path: Path) -> None:
    killed = Curves(tmp_path, 0, tensorboard=True)
    for step in (1, 2, 3):
        killed.add_step(step, {"epoch": step / 4, "loss": 1.0})
    killed.flush()
    resumed = Curves(tmp_path, 1, tensorboard=True)
    resumed.add_step(2, {"epoch": 0.5, "loss": 0.25})
    resumed.flush()
    assert losses(tmp_path) == {1: 1.0, 2: 0.25}
    assert resumed.steps.columns()["loss"] == [1.0, 0.25]


def test_without_it_there_is_no_folder(tmp_path: Path) -> None:
    Curves(tmp_path, 0).add_epoch(1, {"epoch": 1, "accuracy": 0.5})
    assert not (tmp_path / BOARD).exists()
