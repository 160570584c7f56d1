"""The command `hear-transformers explain`."""

import json

import numpy as np
import pytest


@pytest.fixture
def run(installed_command, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    command = installed_command("hear-transformers")
    return lambda *arguments: command("explain", *arguments)


def test_a_class_is_explained(run, audio_file, small_weights, tmp_path):
    clip = audio_file("a.wav", seconds=1.0)
    result = run(clip, "--model", "mn01_as", "--weights", small_weights, "--class", "Dog", "--patch-ms", "500")
    assert result.exit_code == 0, result.output
    assert result.stdout.startswith("a.wav: Dog, probability 0.")
    assert "without rollout: the network has no attention" in result.stdout
    assert (tmp_path / "a.explain.png").read_bytes().startswith(b"\x89PNG")
    with np.load(tmp_path / "a.explain.npz") as arrays:
        assert arrays["occlusion"].shape == (8, 2)


def test_a_model_without_classes_explains_its_embedding(run, audio_file):
    clip = audio_file("a.wav", seconds=3.0)
    result = run(clip, "--patch-ms", "1000", "--patch-bands", "64", "--json", "--out", "x/b")
    assert result.exit_code == 0, result.output
    report = json.loads(result.stdout)
    assert report["explained"] == "layer features"
    assert [*report["peaks"]] == ["rollout", "occlusion"]
    assert report["left_out"]["gradient"].startswith("it needs a class")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--class", "Dog"], "tiny/tiny has no classifier"),
        (["--class", "Dog", "--layer", "8"], "give either"),
        (["--pool", "cls"], "give --layer, too"),
        (["--at", "here"], "is not S,HZ"),
        (["--method", "magic"], "choose one of rollout"),
        (["--start", "9"], "ends before 9.000 s"),
        (["--layer", "99"], "layer='99' is unknown"),
    ],
)
def test_wrong_options_are_explained(run, audio_file, arguments, message):
    result = run(audio_file("a.wav", seconds=1.0), *arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.output


def test_a_file_that_is_no_audio_is_named(run, tmp_path):
    (tmp_path / "a.wav").write_text("no audio")
    result = run("a.wav")
    assert result.exit_code == 1
    assert "a.wav" in result.stderr
