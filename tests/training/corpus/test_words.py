"""What the speech embedding hears: windows in time, and words beside each other."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest

from hear_transformers.errors import OptionError
from hear_transformers.training.corpus import words
from hear_transformers.training.corpus.signals import LENGTH, RATE
from hear_transformers.training.corpus.stream import CorpusOptions, stream
from tests.training.corpus.test_speech import needs_espeak

needs_package = pytest.mark.skipif(
    find_spec("pyopen_wakeword") is None, reason="needs the extra teachers, which has no wheel for this machine"
)


def burst(start: float, seconds: float = 0.2) -> np.ndarray:
    """Return a clip that is silent but for noise of some seconds."""
    clip = np.zeros(LENGTH, np.float32)
    noise = np.random.default_rng(0).normal(0, 0.1, round(seconds * RATE))
    clip[round(start * RATE) :][: len(noise)] = noise
    return clip


@needs_package
def test_every_frame_has_an_embedding():
    heard = words.hear(burst(1))
    assert heard.shape == (200, words.SIZE)
    assert np.isfinite(heard).all()


@needs_package
def test_a_sound_is_heard_by_the_windows_that_reach_it():
    changes = np.abs(words.embed(burst(1.0)) - words.embed(burst(1.5)))
    first, second = (np.abs(words.TIMES - middle) < 0.3 for middle in (1.1, 1.6))
    reach = np.abs(words.TIMES - 1.1) < 0.6
    reach |= np.abs(words.TIMES - 1.6) < 0.6
    assert changes[first | second].max(1).min() > 1
    assert changes[~reach].max() < 1e-3


@needs_package
def test_a_later_sound_is_heard_as_much_later():
    early, late = words.embed(burst(0.6)), words.embed(burst(1.08))  # 0.48 s are three windows
    np.testing.assert_allclose(late[5:11], early[2:8], atol=0.01)
    assert np.abs(late[5:11] - early[5:11]).max() > 10


@needs_package
def test_an_utterance_does_not_depend_on_the_one_before():
    first = words.hear(burst(0.5))
    words.hear(burst(1.5))
    np.testing.assert_array_equal(words.hear(burst(0.5)), first)


@needs_package
@needs_espeak
@pytest.mark.parametrize("workers", [0, 2])
def test_speech_has_the_words_beside_the_phones(workers):
    options = CorpusOptions(scenes=0, speech=2, words=True, waveforms=True)
    (batch,) = stream(options, [3], workers)
    assert set(batch.speech.labels) == {"phones", "words"}
    for waveform, heard in zip(batch.speech.waveforms, batch.speech.labels["words"], strict=True):
        np.testing.assert_allclose(heard, words.hear(waveform / np.float32(2**15 - 1)), atol=3)


def test_without_the_package_the_extra_is_named(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyopen_wakeword", None)
    with pytest.raises(OptionError, match=r"hear_transformers\[teachers\]"):
        words.check()
