"""A file is opened once, whatever is asked of it."""

import doctest
import os
import sys

import numpy as np
import pytest
import torch

from hear_transformers import audio
from hear_transformers.audio import clips, reading
from hear_transformers.audio.clips import Clip, ReadOptions
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import OptionError
from hear_transformers.files import sha256_of
from hear_transformers.training import data, manifest
from tests.helpers import media

RATE = 32_000
OPENED: list[str] = []

# A hook cannot be removed. It does not see what libsndfile opens: `test_an_open_file_needs_no_name` rules that out.
sys.addaudithook(lambda event, arguments: OPENED.append(str(arguments[0])) if event == "open" else None)


@pytest.fixture(params=["a.wav", "a.flac", "a.ogg", "a.mp3", "a.m4a"])
def path(request, audio_file, tmp_path):
    """Write 10 s of noise."""
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 10 * 48_000)
    if request.param != "a.m4a":
        return audio_file(request.param, noise, sample_rate=48_000)
    pytest.importorskip("av")
    return media.write(tmp_path / "a.m4a", noise, 48_000, "ipod", "aac")


@pytest.mark.slow
@pytest.mark.parametrize(("start", "end"), [(0.0, float("inf")), (1.0, 2.0), (1.0, 9.0)])
def test_a_clip_is_hashed_and_decoded_by_one_opening(path, monkeypatch, start, end):
    monkeypatch.setattr(clips, "LARGE_BYTES", 0)
    monkeypatch.setattr(reading, "_HASHES", {})
    OPENED.clear()
    loaded = clips.read(0, Clip(path, start, end), ReadOptions(RATE, 30.0, hashes=True))
    assert OPENED.count(str(path)) == 1
    assert loaded.sha256 == sha256_of(path)
    assert len(loaded.waveform)


@pytest.mark.slow
@pytest.mark.parametrize("whole_seconds", [0.0, 60.0])
def test_a_clip_of_training_is_measured_and_decoded_by_one_opening(path, monkeypatch, whole_seconds):
    monkeypatch.setattr(data, "WHOLE_SECONDS", whole_seconds)
    listed = path.with_name("clips.csv")
    listed.write_text(f"path,labels\n{path.name},noise\n")
    reader = data._Clips(manifest.read_labelled(listed), RATE, RATE, kept_bytes=0)
    OPENED.clear()
    assert len(reader.read(0, where=0.5)) == RATE
    assert OPENED.count(str(path)) == 1


@pytest.mark.slow
@pytest.mark.skipif(os.name != "posix", reason="an open file cannot be removed")
def test_an_open_file_needs_no_name(path):
    expected, sha256 = audio.read(path, RATE), sha256_of(path)
    with audio.open(path) as file:
        path.unlink()
        assert file.duration() == pytest.approx(len(expected) / RATE, abs=1e-4)
        assert torch.equal(file.read(RATE), expected)
        assert (file.excerpt(RATE, 2.0, 1.0) - expected[2 * RATE : 3 * RATE]).abs().max() < 1e-5
        assert file.sha256() == sha256
        assert torch.equal(torch.cat(list(file.blocks(RATE, 0.7))), expected)


@pytest.mark.slow
def test_what_was_read_before_changes_nothing(path):
    with AudioFile(path) as file:
        first = file.excerpt(RATE, 5.0, 1.0)
        next(file.blocks(RATE, 0.1))
        assert torch.equal(file.excerpt(RATE, 5.0, 1.0), first)


@pytest.mark.slow
def test_two_cannot_read_one_file_at_once(path):
    with AudioFile(path) as file:
        blocks = file.blocks(RATE, 0.1)
        next(blocks)
        with pytest.raises(OptionError, match="is being read; take all of its blocks first, or close them"):
            file.read(RATE)
        blocks.close()
        assert len(file.read(RATE))


def test_an_mp3_behind_other_bytes_is_found_by_its_suffix(audio_file):
    path = audio_file("a.mp3")
    expected = audio.read(path, RATE)
    path.write_bytes(b"junk" * 50 + path.read_bytes())
    assert torch.equal(audio.read(path, RATE), expected)


def test_changed_content_has_another_hash(audio_file):
    for seconds in (1.0, 2.0):
        path = audio_file(seconds=seconds)
        with AudioFile(path) as file:
            assert file.sha256() == file.sha256() == sha256_of(path)


def test_the_examples_are_right():
    assert doctest.testmod(reading).failed == 0
