"""Sound scenes: every family sounds, scenes repeat, and their events are where the sound is."""

import numpy as np
import pytest

from hear_transformers.training.corpus import synthesis
from hear_transformers.training.corpus.mels import FRAMES
from hear_transformers.training.corpus.signals import LENGTH, Dice


@pytest.mark.parametrize("family", synthesis.FAMILIES, ids=lambda family: family.__name__)
def test_family_makes_a_clip_that_sounds(family):
    for seed in range(5):
        clip = family(Dice(seed))
        assert clip.shape == (LENGTH,)
        assert clip.dtype == np.float32
        assert np.isfinite(clip).all()
        assert clip.std() > 1e-6


def test_scene_repeats():
    for first, second in zip(synthesis.scene(0, 1, 2), synthesis.scene(0, 1, 2), strict=True):
        np.testing.assert_array_equal(first, second)


@pytest.mark.parametrize("other", [(1, 1, 2), (0, 2, 1), (0, 1, 3)])
def test_scene_changes_with_seed_step_and_index(other):
    assert not np.array_equal(synthesis.scene(0, 1, 2)[0], synthesis.scene(*other)[0])


def test_scene_peaks_between_25_db_below_full_scale_and_full_scale():
    peaks = [np.abs(synthesis.scene(0, 0, i)[0]).max() for i in range(10)]
    assert min(peaks) > 10 ** (-25.1 / 20)
    assert max(peaks) < 1.001


def test_events_are_the_frames_of_the_sound():
    layer = np.zeros(LENGTH, np.float32)
    layer[16_000:32_000] = np.sin(np.arange(16_000))
    found = np.flatnonzero(synthesis.audible(layer))
    assert (found[0], found[-1]) == (50, 100)
    assert len(found) == 51


def test_every_scene_has_an_event():
    for index in range(5):
        _, events = synthesis.scene(0, 0, index)
        assert events.shape == (FRAMES, len(synthesis.FAMILIES))
        assert events.any()
