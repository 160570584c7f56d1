"""The state of a run in small files: whole or the one before, whatever happens on the way."""

import io
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from hear_transformers.errors import TrainingError
from hear_transformers.training import pieces
from hear_transformers.training.loop import Objective, Processes, TrainingRun, fit
from hear_transformers.training.pieces import Pieces
from hear_transformers.training.recipes import Recipe


class Line(Objective):
    def __init__(self) -> None:
        super().__init__()
        with torch.random.fork_rng():
            torch.manual_seed(0)
            self.trunk = nn.Linear(3, 2)

    def forward(self, batch: Tensor) -> dict[str, Tensor]:
        return {"square": self.trunk(batch).square().mean()}


def new_run(seed: int = 0) -> TrainingRun:
    recipe = Recipe(epochs=4, batch_size=1, learning_rate=0.1, optimiser="adamw")
    settings = {"seed": seed, "crops": [1, 2]}
    alone = Processes(0, 1, torch.device("cpu"))
    return TrainingRun(Line(), recipe, steps_per_epoch=2, seed=seed, processes=alone, settings=settings)


def points(steps):
    for step in steps:
        yield torch.full((1, 3), float(step))


def state(run: TrainingRun) -> dict:
    file = io.BytesIO()
    run.write(file)
    file.seek(0)
    return torch.load(file, weights_only=True) | {"seconds": 0.0}


def is_same(ours: dict, theirs: dict) -> bool:
    try:
        torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    except AssertionError:
        return False
    return True


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_BYTES", 1000)


def test_a_state_comes_back_from_pieces_of_limited_size(tmp_path: Path):
    fit(run := new_run(), points, tmp_path, checkpoint=Pieces)
    sizes = [path.stat().st_size for path in tmp_path.glob(pieces.NAMES)]
    assert len(sizes) > 2
    assert max(sizes) <= 1000
    Pieces(tmp_path).restore(again := new_run())
    assert is_same(state(again), state(run))


def test_the_index_says_how_far_a_run_is_without_its_pieces(tmp_path: Path):
    fit(new_run(), points, tmp_path, checkpoint=Pieces)
    about = Pieces(tmp_path).read_index()
    assert (about["step"], about["settings"]) == (8, {"seed": 0, "crops": [1, 2]})
    assert about["seconds"] > 0


def test_slices_end_like_a_run_without_them(tmp_path: Path):
    fit(whole := new_run(), points, tmp_path / "whole", checkpoint=Pieces)
    done = []
    while not done or done[-1] < 8:
        fit(run := new_run(), points, tmp_path / "slices", checkpoint=Pieces, stop_seconds=0)
        done.append(run.step)
    assert done == [1, 2, 3, 4, 5, 6, 7, 8]
    assert is_same(state(run), state(whole))
    assert (tmp_path / "slices" / "steps.csv").read_text() == (tmp_path / "whole" / "steps.csv").read_text()


def test_only_pieces_of_the_last_state_stay(tmp_path: Path):
    fit(new_run(), points, tmp_path, checkpoint=Pieces, checkpoint_seconds=0)
    assert sorted(path.name for path in tmp_path.glob("state-*")) == sorted(Pieces(tmp_path).read_index()["pieces"])


class KilledError(BaseException):
    """Stands for the end of the process."""


def test_a_run_killed_at_any_file_keeps_its_last_state(tmp_path: Path, monkeypatch):
    run = new_run()
    fit(run, points, tmp_path, checkpoint=Pieces, stop_seconds=0)
    before = state(run)
    run.advance(torch.ones(1, 3))
    replace, unlink = Path.replace, Path.unlink
    for survived in range(20):
        count = 0

        def step(function, path, *rest, survived=survived, **options):
            nonlocal count
            count += 1
            if count > survived:
                raise KilledError
            return function(path, *rest, **options)

        with monkeypatch.context() as patch:
            patch.setattr(Path, "replace", lambda path, other, step=step: step(replace, path, other))
            patch.setattr(Path, "unlink", lambda path, step=step, **options: step(unlink, path, **options))
            try:
                Pieces(tmp_path).save(run)
            except KilledError:
                Pieces(tmp_path).restore(again := new_run())
                assert is_same(state(again), before) or is_same(state(again), state(run))
            else:
                break
    assert survived >= 4
    Pieces(tmp_path).restore(again)
    assert again.step == 2


@pytest.mark.parametrize("damage", [lambda path: path.unlink(), lambda path: path.write_bytes(b"x")])
def test_a_damaged_piece_is_named(tmp_path: Path, damage):
    fit(new_run(), points, tmp_path, checkpoint=Pieces)
    damage(tmp_path / (name := Pieces(tmp_path).read_index()["pieces"][1]))
    with pytest.raises(TrainingError, match=f"{name}: missing or damaged; restore it, or delete state.json"):
        fit(new_run(), points, tmp_path, checkpoint=Pieces)


@pytest.mark.parametrize("content", ["", "nonsense", "{}", "[]"])
def test_a_damaged_index_is_named(tmp_path: Path, content: str):
    (tmp_path / "state.json").write_text(content)
    with pytest.raises(TrainingError, match=r"state\.json: damaged; delete it to start over"):
        fit(new_run(), points, tmp_path, checkpoint=Pieces)


def test_a_folder_without_a_run_is_named(tmp_path: Path):
    with pytest.raises(TrainingError, match="holds no training run; give the folder of one"):
        Pieces(tmp_path).read_index()


def test_other_settings_are_refused(tmp_path: Path):
    fit(new_run(), points, tmp_path, checkpoint=Pieces)
    with pytest.raises(TrainingError, match=r"state\.json belongs to a run with other settings \(seed\)"):
        fit(new_run(seed=1), points, tmp_path, checkpoint=Pieces)
