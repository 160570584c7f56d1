"""Commands of the corpus: its speed, and examples of it."""

import numpy as np
import soundfile
from click.testing import CliRunner

from hear_transformers.training.corpus import preview
from hear_transformers.training.corpus.__main__ import cli
from hear_transformers.training.corpus.mels import FRAMES
from hear_transformers.training.corpus.stream import FAMILIES


def test_speed_names_kinds_and_families():
    result = CliRunner().invoke(cli, ["speed", "--clips", "1", "--no-speech"])
    assert result.exit_code == 0, result.output
    assert [line.split()[0] for line in result.output.splitlines()] == ["scenes", "notes", *FAMILIES]


def test_preview_writes_sounds_and_a_sheet(tmp_path):
    result = CliRunner().invoke(cli, ["preview", "--out", str(tmp_path / "new"), "--clips", "1", "--no-speech"])
    assert result.exit_code == 0, result.output
    names = {path.name for path in (tmp_path / "new").iterdir()}
    assert names == {"sheet.png", "scenes-0.wav", "notes-0.wav", *(f"{name}.wav" for name in FAMILIES)}
    samples, rate = soundfile.read(tmp_path / "new" / "scenes-0.wav")
    assert (len(samples), rate) == (64_000, 32_000)


def test_stretches_of_labels_are_found():
    phones = np.repeat([1, 5], FRAMES // 2)
    assert preview.runs(phones, str) == [(0, 100, "1"), (100, 200, "5")]
    events = np.zeros((FRAMES, 2), np.uint8)
    events[50:60, 1] = 1
    assert preview.runs(events, str) == [(50, 60, "1")]
