"""Classifying with a saved probe: a killed run goes on, nothing is done twice, nothing is lost."""

import contextlib
import os

import numpy as np
import pytest

pytest.importorskip("sklearn")

from hear_transformers.bulk.sources import expand_inputs
from hear_transformers.errors import OptionError
from hear_transformers.probes import classifying, saved
from hear_transformers.probes.events import Processing
from hear_transformers.probes.fitting import Fitted

N_FILES = 5


@pytest.fixture(params=["clips", "events"])
def folder(request, tmp_path, small_model):
    """Save a probe of random weights."""
    size, rng = small_model.scene_embedding_size, np.random.default_rng(0)
    arrays = {"mean": np.zeros(size), "scale": np.ones(size), "weight0": rng.normal(size=(2, size)), "bias0": [0, 0.1]}
    fitted = Fitted("logistic", True, {name: np.array(each, np.float32) for name, each in arrays.items()}, {})
    processing = Processing(0.0, 0.0) if request.param == "events" else None
    probe = saved.Saved(fitted, ("a", "b"), {}, {"model": "x"}, {}, processing)
    made_with = classifying.settings_of(probe, small_model)
    saved.write(tmp_path / "probe", saved.Saved(fitted, probe.classes, made_with, probe.model, {}, processing))
    return tmp_path / "probe"


@pytest.fixture
def files(tmp_path, audio_file):
    for i in range(N_FILES):
        audio_file(f"in/{i}.wav", seconds=0.2 + 0.1 * i)
    return tmp_path / "in"


@pytest.fixture
def run(tmp_path, folder, small_model, files):
    """Classify the files into a table; return what became of each, and the table."""

    def classify(out="found.csv", n_until_killed=0, format="csv", **options):
        statuses = []

        def take(outcome, line):
            statuses.append(outcome.status)
            if len(statuses) == n_until_killed:
                raise KeyboardInterrupt

        sources = [*expand_inputs([str(files)])]
        place = classifying.Place(tmp_path, out, format) if out else classifying.Place(tmp_path / "out", None, format)
        with contextlib.suppress(KeyboardInterrupt):
            classifying.classify(folder, saved.read(folder), small_model, sources, place, on_outcome=take, **options)
        table = tmp_path / (out or "out")
        return statuses, table.read_text() if table.is_file() else None

    return classify


def test_a_killed_run_goes_on_where_it_was(run, tmp_path):
    _, expected = run("whole.csv")
    statuses, table = run(n_until_killed=3)
    assert (statuses, table) == (["written"] * 3, None)
    with (tmp_path / ".embed-audio/found.csv/journal.jsonl").open("ab") as file:
        file.write(b'{"key": "half a li')  # as the system leaves it
    statuses, table = run()
    assert statuses == ["skipped"] * 3 + ["written"] * 2
    assert table == expected
    statuses, table = run()
    assert statuses == ["skipped"] * 5
    assert table == expected


def test_a_run_that_is_killed_while_its_table_is_written_knows_it(run, audio_file, monkeypatch):
    run()
    audio_file("in/new.wav", seconds=0.5)

    real = os.replace

    def kill(*, renames):
        def replace(source, target):
            folder, name = os.path.split(target)
            if name != "found.csv" or os.path.basename(folder) == "new":
                return real(source, target)
            if renames:
                real(source, target)
            raise KeyboardInterrupt

        monkeypatch.setattr(os, "replace", replace)
        run()
        monkeypatch.setattr(os, "replace", real)

    kill(renames=False)
    kill(renames=True)
    assert run() == (["skipped"] * 6, run("whole.csv")[1])


def test_changed_audio_and_new_files_are_classified(run, files, audio_file):
    run()
    audio_file("in/1.wav", seconds=0.9)
    audio_file("in/new.wav", seconds=0.5)
    statuses, _ = run()
    assert sorted(statuses) == ["skipped"] * 4 + ["written"] * 2
    again, table = run("whole.csv")
    assert again == ["written"] * 6
    assert table == run()[1]


def test_what_was_found_of_other_files_stays(run, files):
    _, before = run()
    (files / "0.wav").rename(files.parent / "0.wav")
    statuses, after = run()
    assert statuses == ["skipped"] * 4
    assert sorted(after.splitlines()) == sorted(before.splitlines())


def test_a_table_that_somebody_changed_is_kept_unless_overwritten(run, tmp_path):
    _, expected = run()
    (tmp_path / "found.csv").write_text("mine\n")
    with pytest.raises(OptionError, match="exists and is not as this probe wrote it"):
        run()
    assert (tmp_path / "found.csv").read_text() == "mine\n"
    assert run(overwrite=True) == (["written"] * 5, expected)


def test_another_probe_does_not_add_to_a_table(run, folder, tmp_path):
    run()
    words = folder / saved.WORDS
    words.write_text(words.read_text().replace('"a"', '"c"'))
    with pytest.raises(OptionError, match="exists and is not as this probe wrote it"):
        run()


def test_a_file_that_fails_is_listed_and_tried_again(run, files, tmp_path, audio_file):
    (files / "2.wav").write_bytes(b"no audio")
    statuses, _ = run()
    assert statuses.count("failed") == 1
    assert "2.wav" in (tmp_path / "failures.jsonl").read_text()
    audio_file("in/2.wav", seconds=0.4)
    statuses, table = run()
    assert statuses.count("written") == 1
    assert table == run("whole.csv")[1]
    assert not (tmp_path / "failures.jsonl").exists()


def test_tables_of_files_are_named_after_them_whatever_is_found(run, folder, tmp_path):
    if saved.read(folder).processing is None:
        pytest.skip("a probe of clips has one table")
    run(out=None, format="raven")
    names = {path.name for path in (tmp_path / "out").glob("*.txt")}
    assert names == {f"{i}.Table.1.selections.txt" for i in range(N_FILES)}


class Sketches:
    """Pictures as a list of what was drawn."""

    def __init__(self):
        self.drawn = {}

    def lacks(self, source):
        return source.file not in self.drawn

    def draw(self, timeline):
        self.drawn[timeline.source.file] = timeline


def test_timelines_are_drawn_where_there_is_no_picture_yet(run, folder):
    if saved.read(folder).processing is None:
        pytest.skip("a probe of clips has no time")
    run()
    sketches = Sketches()
    assert run(pictures=sketches)[0] == ["written"] * N_FILES
    assert run(pictures=sketches)[0] == ["skipped"] * N_FILES
    for i, timeline in enumerate(sketches.drawn.values()):
        assert timeline.likely.shape == (len(timeline.starts), 2)
        assert timeline.starts[0] == 0
        assert timeline.ends[-1] == pytest.approx(0.2 + 0.1 * i)
        np.testing.assert_allclose(timeline.starts[1:], timeline.ends[:-1])
