"""Runs in slices, and what comes of them: states, curves, weights, scores, commands."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from click.testing import CliRunner

from hear_transformers import hear, tiny
from hear_transformers.errors import TrainingError, WeightsError
from hear_transformers.training.distil import clips, measure, progress, recipe, run, students, teachers
from hear_transformers.training.distil.__main__ import cli
from hear_transformers.training.pieces import Pieces
from tests.helpers.distilling import CPU, SIZES, SMALL, Loudness, corpus

DATA = Path(__file__).parents[4] / "shared" / "data"
TEACHER = DATA.parent / "weights" / "mn04_as_mAP_432.pt"


def train(folder: Path, student: str = "tiny", **options):
    return run.train(replace(SMALL, student=student), folder, corpus, [Loudness()], CPU, **options)


@pytest.mark.parametrize("student", SIZES)
def test_slices_end_bit_by_bit_like_a_run_without_them(tmp_path, student):
    whole = train(tmp_path / "whole", student)
    while (sliced := train(tmp_path / "sliced", student, stop_seconds=0)).step < SMALL.steps:
        pass
    for name in ("objective", "optimiser"):
        states = [
            torch.load(Pieces(tmp_path / folder).open(), weights_only=True)[name] for folder in ("whole", "sliced")
        ]
        torch.testing.assert_close(*states, rtol=0, atol=0)
    assert whole.best == sliced.best
    for table in ("steps.csv", "epochs.csv"):
        assert (tmp_path / "sliced" / table).read_text() == (tmp_path / "whole" / table).read_text()


def test_the_run_names_its_teachers_and_their_licences(tmp_path):
    lines = []
    run.train(replace(SMALL, words=True), tmp_path, corpus, [Loudness()], CPU, stop_seconds=0, log=lines.append)
    assert lines[0] == "loudness (Apache-2.0) hears scenes; speech_embedding (Apache-2.0) hears speech"


def test_words_are_learnt_where_the_recipe_says_so(monkeypatch):
    asked = []
    monkeypatch.setattr(clips, "stream", lambda options, steps, workers: asked.append(options.words))
    for learns in (False, True):
        clips.corpus(replace(SMALL, words=learns), workers=1)(0, range(1))
    assert asked == [False, True]


def test_a_run_of_another_student_is_refused(tmp_path):
    train(tmp_path)
    with pytest.raises(TrainingError, match=r"other settings \(steps\)"):
        run.train(replace(SMALL, steps=8), tmp_path, corpus, [Loudness()], CPU)


def test_training_begins_with_the_weights_that_are_given(tmp_path, small_students):
    first = train(tmp_path / "first")
    weights = run.export(tmp_path / "first")
    second = run.train(
        replace(SMALL, learning_rate=1e-12), tmp_path / "second", corpus, [Loudness()], CPU, start=weights
    )
    for name, tensor in second.network.named_parameters():
        torch.testing.assert_close(tensor, first.network.get_parameter(name), rtol=2**-9, atol=2**-22, msg=name)


def test_wrong_weights_to_begin_with_are_named_before_a_clip_is_made(tmp_path):
    wrong = tmp_path / "wrong.safetensors"
    safetensors.torch.save_file({"other": torch.zeros(1)}, wrong)
    with pytest.raises(WeightsError, match=r"wrong\.safetensors"):
        run.train(SMALL, tmp_path / "run", lambda *_: pytest.fail("clips were made"), [Loudness()], CPU, start=wrong)


def test_a_run_is_resumed_with_the_weights_that_it_began_with_alone(tmp_path, small_students):
    train(tmp_path / "first")
    weights = run.export(tmp_path / "first")
    train(tmp_path / "second", start=weights, stop_seconds=0)
    with pytest.raises(TrainingError, match=r"other settings \(start\)"):
        train(tmp_path / "second")


@pytest.mark.parametrize("student", SIZES)
def test_exported_weights_are_those_of_the_run_to_ten_bits(tmp_path, small_students, student):
    trained = train(tmp_path, student)
    chosen = small_students[student]
    model = hear.Loader(chosen.family).load_model(run.export(tmp_path), chosen.name)
    found = model.trunk.state_dict()
    for name, tensor in trained.network.state_dict().items():
        if tensor.is_floating_point():
            torch.testing.assert_close(found[name], tensor, rtol=2**-9, atol=2**-22, msg=name)
        else:
            assert torch.equal(found[name], tensor), name


def test_the_row_of_the_manifest_has_size_and_hash(tmp_path):
    path = tmp_path / "tiny.safetensors"
    path.write_bytes(b"abc")
    assert run.manifest_row(students.STUDENTS["tiny"], path).splitlines()[:4] == [
        "[tiny.tiny]",
        'file = "tiny.safetensors"',
        "bytes = 3",
        'sha256 = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad"',
    ]


def test_numbers_too_large_for_16_bits_stay_in_32(tmp_path, small_students, monkeypatch):
    done = train(tmp_path)
    first = next(iter(done.objective.trunk.state_dict()))
    done.objective.trunk.state_dict()[first].view(-1)[0] = 1e6
    Pieces(tmp_path).save(done)
    found = safetensors.torch.load_file(run.export(tmp_path))
    assert found[first].dtype == torch.float32
    assert found[first].view(-1)[0] == 1e6
    assert torch.float32 not in {tensor.dtype for name, tensor in found.items() if name != first}


def test_a_recipe_comes_back_from_its_settings():
    ours = replace(SMALL, weights=(("phones", 2.0),))
    assert recipe.from_settings(ours.settings()) == ours


@pytest.mark.parametrize("student", students.STUDENTS)
def test_every_student_has_a_recipe(student):
    assert recipe.RECIPES[student].student == student
    assert recipe.RECIPES[student].steps % recipe.RECIPES[student].steps_per_score == 0


# The teacher


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not TEACHER.is_file(), reason="needs the teacher in the developers' folder ../shared")
def test_the_teacher_answers_alone_as_in_a_batch():
    teacher = teachers.AudioSetTagger(TEACHER, CPU)
    mels = torch.randn(3, 128, 200)
    together, alone = teacher.targets(mels), teacher.targets(mels[:1])
    assert {name: target.shape[1] for name, target in together.items()} == {
        "logits": 527,
        "penultimate": 384,
        "middle": 48,
    }
    for name, target in alone.items():
        torch.testing.assert_close(target, together[name][:1], rtol=0, atol=1e-4)


# Progress


def test_progress_has_steps_clips_and_curve(tmp_path):
    train(tmp_path)
    first, second, _, header, *scores = progress.describe(tmp_path)
    assert first.startswith("tiny, seed 0: step 6 of 6, ")
    assert second.endswith("clips seen: 7 scenes, 7 speech, 7 notes")
    assert header.split() == ["step", "explained", "events", "logits", "penultimate", "phones", "pitches"]
    assert [row.split()[0] for row in scores] == ["2", "4", "6"]


def test_a_long_curve_is_shortened_to_evenly_spaced_rows(tmp_path):
    lines = ["step,epoch,explained", *(f"{i},{i},0.5" for i in range(1, 96))]
    (tmp_path / "epochs.csv").write_text("\n".join(lines))
    _, *rows = progress.table(tmp_path / "epochs.csv")
    assert len(rows) <= progress.ROWS_SHOWN
    assert rows[-1].split()[0] == "95"


# Measuring


def test_labels_in_the_embedding_are_found_in_every_group():
    labels = np.array(["a", "b"] * 10)
    task = measure.Recordings("task", [], labels, np.repeat(["1", "2"], 10))
    embeddings = np.stack([labels == "a", np.arange(20) % 3], 1).astype(np.float32)
    assert measure.cross_validate(embeddings, task) == 1


def test_labels_that_follow_the_group_alone_are_not_found():
    groups = np.repeat(["1", "2"], 10)
    task = measure.Recordings("task", [], np.where(groups == "1", ["a", "b"] * 10, ["b", "a"] * 10), groups)
    embeddings = np.stack([np.arange(20) % 2, np.arange(20) % 2], 1).astype(np.float32)
    assert measure.cross_validate(embeddings, task) == 0


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Write tones as ESC-10 and as digits: two classes, two folds or speakers, and a take that is not used."""
    rows = {"esc10": ["filename,label,fold"], "fsdd": ["filename,label,speaker"]}
    for group in "12":
        for label in "01":
            for take in (0, 15):
                name = f"{label}_{group}_{take}.wav"
                for folder, table in rows.items():
                    table.append(f"{name},{label},{group}")
                    path = tmp_path / folder / "audio" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    tone = np.sin(np.arange(4000) * (0.2 + 0.5 * int(label) + 0.01 * int(group)))
                    soundfile.write(path, 0.3 * tone, 8000)
    for folder, table in rows.items():
        (tmp_path / folder / "labels.csv").write_text("\n".join(table))
    return tmp_path


def test_tasks_hold_the_first_fifteen_takes_of_digits_and_all_of_esc10(recordings):
    esc10, digits = (measure.TASKS[task](recordings, 32_000) for task in ("esc10", "digits"))
    assert (len(esc10.waveforms), len(digits.waveforms)) == (8, 4)
    assert len(digits.waveforms[0]) == 16_000
    assert digits.groups.tolist() == ["1", "1", "2", "2"]


# Commands


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch):
    """Keep what the commands do to their own process from the tests that follow."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.fixture
def without_audio(monkeypatch):
    """Train on noise, by a teacher that needs no file."""
    monkeypatch.setattr(recipe, "RECIPES", {student: replace(SMALL, student=student) for student in SIZES})
    monkeypatch.setattr(clips, "corpus", lambda recipe, workers: corpus)
    monkeypatch.setattr(teachers, "AudioSetTagger", lambda path, device: Loudness())


def invoke(*arguments: object) -> str:
    result = CliRunner().invoke(cli, [str(argument) for argument in arguments])
    assert result.exit_code == 0, result.output
    return result.output


def test_a_run_in_slices_by_commands(tmp_path, without_audio):
    first = invoke("train", "--out", tmp_path, "--student", "mast_mini", "--slice-minutes", 1e-9)
    assert first.endswith(f"{tmp_path}: step 1 of 6; run it again to go on\n")
    assert "mast_mini, seed 0: step 1 of 6" in invoke("status", "--out", tmp_path)
    second = invoke("train", "--out", tmp_path, "--student", "mast_mini")
    assert second.endswith(f"{tmp_path}: step 6 of 6\n")
    exported = invoke("export", "--out", tmp_path)
    assert exported.startswith(f"{tmp_path / 'mast-mini.safetensors'}\n[mast.mini]\n")


@pytest.mark.slow
def test_status_scores_the_run_beside_its_baselines(tmp_path, without_audio, recordings, small_students, monkeypatch):
    monkeypatch.setattr("hear_transformers.training.distil.__main__.STUDENTS", small_students)
    invoke("train", "--out", tmp_path / "run")
    lines = invoke("status", "--out", tmp_path / "run", "--data", recordings).splitlines()
    assert [line.split("  ")[0] for line in lines[-3:]] == ["log-mel", "untrained network", "model"]


@pytest.mark.slow
def test_measure_prints_the_model_beside_its_baselines(recordings):
    lines = invoke("measure", "--data", recordings, "--task", "esc10", "--task", "digits").splitlines()
    assert [line.split("  ")[0] for line in lines] == ["log-mel", "untrained network", "model"]
    assert all("ESC-10" in line and "digits" in line and "pitch" not in line for line in lines)


def test_status_of_an_empty_folder_says_what_to_do(tmp_path):
    result = CliRunner().invoke(cli, ["status", "--out", str(tmp_path)])
    assert result.exit_code == 1
    assert result.output == f"Error: {tmp_path}: holds no training run; give the folder of one\n"


@pytest.fixture(scope="module")
def real_tasks():
    return {name: measure.TASKS[name](DATA, 32_000) for name in ("esc10", "digits")}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real audio of the developers' folder ../shared")
@pytest.mark.parametrize(("task", "least"), [("esc10", 0.88), ("digits", 0.65)])
def test_embedded_model_reaches_its_scores_on_real_audio(real_tasks, task, least):
    embeddings = measure.embed_scenes(tiny.load_model(), real_tasks[task].waveforms)
    assert measure.cross_validate(embeddings, real_tasks[task]) >= least
