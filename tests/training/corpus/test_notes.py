"""Notes: in tune, and labelled while they sound."""

import numpy as np
import pytest

from hear_transformers.training.corpus import instruments, notes
from hear_transformers.training.corpus.mels import FRAMES
from hear_transformers.training.corpus.signals import LENGTH, RATE, Dice


def pitch_of(wave: np.ndarray, about: float) -> float:
    """Estimate the pitch in Hz near one by autocorrelation."""
    correlation = np.fft.irfft(np.abs(np.fft.rfft(wave, 2 * RATE)) ** 2)
    shortest, longest = int(0.6 * RATE / about), int(1.5 * RATE / about) + 2
    return RATE / (shortest + correlation[shortest:longest].argmax())


@pytest.mark.parametrize("make", instruments.TIMBRES, ids=lambda make: make.__name__)
@pytest.mark.parametrize("key", [45, 69, 85])
def test_instrument_is_in_tune(make, key):
    hz = notes.pitch_hz(key)
    for seed in range(4):
        note = make(Dice(seed))(hz, RATE)
        assert 12 * abs(np.log2(pitch_of(note, hz) / hz)) < 0.7


def test_concert_pitch():
    assert notes.pitch_hz(69) == 440
    assert notes.pitch_hz(notes.LOWEST_PITCH) == pytest.approx(27.5)
    assert notes.pitch_hz(notes.LOWEST_PITCH + notes.N_PITCHES - 1) == pytest.approx(4186, abs=1)


def test_clip_of_one_note_has_the_label_of_its_pitch(monkeypatch):
    monkeypatch.setattr(notes, "MOST_NOTES", 1)
    monkeypatch.setattr(notes.effects, "record", lambda _dice, clip, *_: clip)
    for index in range(6):
        clip, pitches = notes.clip_of_notes(0, 0, index)
        (key,) = np.flatnonzero(pitches.any(0))
        sounding = np.flatnonzero(pitches[:, key])
        assert (
            np.square(clip).reshape(FRAMES, -1)[sounding[0] - 1 : sounding[-1] + 1].sum() > 0.99 * np.square(clip).sum()
        )
        hz = notes.pitch_hz(notes.LOWEST_PITCH + key)
        if 100 < hz < 2000 and len(sounding) > 20:
            assert 12 * abs(np.log2(pitch_of(clip, hz) / hz)) < 0.7


def test_notes_repeat_and_differ():
    first, second, other = notes.clip_of_notes(0, 1, 2), notes.clip_of_notes(0, 1, 2), notes.clip_of_notes(0, 1, 3)
    np.testing.assert_array_equal(first[0], second[0])
    np.testing.assert_array_equal(first[1], second[1])
    assert first[0].shape == (LENGTH,)
    assert not np.array_equal(first[0], other[0])
