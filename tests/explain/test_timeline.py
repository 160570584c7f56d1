"""Spectrograms below which classes are drawn, of files of any length and of parts of them."""

import math
from pathlib import Path, PurePath

import numpy as np
import pytest

from hear_transformers.bulk.sources import Source
from hear_transformers.explain import timeline
from hear_transformers.networks.frontend import CPJKU_MEL
from hear_transformers.probes.classifying import Place


@pytest.fixture
def tone_then_silence(audio_file):
    t = np.arange(32_000) / 32_000
    return audio_file("a.wav", np.concatenate([0.3 * np.sin(2 * np.pi * 1000 * t), np.zeros(32_000)]))


def loudness(source, start, end):
    return timeline.spectrogram(source, CPJKU_MEL, start, end).max(0)


def test_a_long_file_has_no_more_columns_than_the_picture(tone_then_silence, monkeypatch):
    monkeypatch.setattr(timeline, "MAX_COLUMNS", 20)
    monkeypatch.setattr(timeline, "BLOCK_SECONDS", 0.5)
    found = loudness(Source(tone_then_silence, PurePath("a.wav")), 0.0, 2.0)
    assert 20 <= len(found) <= 24
    half = len(found) // 2
    assert found[: half - 1].min() > found[half + 1 :].max()


def test_a_part_of_a_file_has_its_own_spectrogram(tone_then_silence):
    first, second = (Source(tone_then_silence, PurePath("a.wav"), start=start, end=start + 1.0) for start in (0.0, 1.0))
    assert np.median(loudness(first, 0.0, 1.0)) > np.median(loudness(second, 1.0, 2.0))


def test_parts_of_a_file_have_pictures_of_their_own(tone_then_silence):
    parts = (0.0, 1.0), (1.0, math.inf)
    sources = [Source(tone_then_silence, PurePath("a.wav"), start=start, end=end) for start, end in parts]
    names = {path.name for path in Place(Path("out"), None, "csv").pictures(sources).values()}
    assert names == {"a.0-1000.labels.png", "a.1000-end.labels.png"}


def test_the_likeliest_classes_come_first():
    assert timeline.likeliest(np.array([[0.1, 0.9, 0.2], [0.3, 0.0, 0.2]]), 2) == [1, 0]
