"""The notes that pitch is measured by."""

import numpy as np
import pytest

from hear_transformers.training.distil import measure, pitches

RATE = 32_000


@pytest.fixture(scope="module")
def notes() -> list[tuple[np.ndarray, int, str]]:
    return list(pitches.notes(RATE))


def test_every_timbre_plays_every_key_of_a_piano(notes):
    assert [(name, key) for _, key, name in notes] == [
        (name, key) for name in pitches.TIMBRES for key in range(21, 109)
    ]


def test_clips_are_finite_as_long_as_promised_and_within_full_scale(notes):
    clips = np.stack([clip for clip, *_ in notes])
    assert clips.shape[1] == RATE
    assert np.isfinite(clips).all()
    assert 0.02 < np.abs(clips).max(1).min() <= np.abs(clips).max(1).max() < 0.3


@pytest.mark.parametrize("name", pitches.TIMBRES)
def test_a_note_repeats_itself_at_its_pitch(name):
    hertz = pitches.hertz_of(57)
    sound = pitches.note(pitches.TIMBRES[name], hertz, 0.5, RATE, np.zeros(pitches.MOST_PARTIALS))[RATE // 10 :]
    spectrum = np.fft.rfft(sound, 2 * len(sound))
    likeness = np.fft.irfft(np.abs(spectrum) ** 2)[: RATE // 100]  # 100 Hz: below it
    lags = np.arange(RATE // 500, len(likeness))  # from 500 Hz on
    found = RATE / lags[likeness[lags].argmax()]
    assert 12 * np.log2(found / hertz) == pytest.approx(0, abs=0.3)


def test_notes_are_the_same_every_time(notes):
    again = next(pitches.notes(RATE))
    assert np.array_equal(again[0], notes[0][0])


def test_classifiers_are_asked_for_timbres_that_they_have_not_heard(tmp_path):
    task = measure.make_notes(tmp_path, RATE)
    assert set(task.groups) == set(pitches.TIMBRES)
    assert len(set(task.labels)) == 88
