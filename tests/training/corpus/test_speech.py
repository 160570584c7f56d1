"""Speech: every frame has the phone that is heard in it."""

import ctypes

import numpy as np
import pytest

from hear_transformers.errors import HearTransformersError
from hear_transformers.training.corpus import speech
from hear_transformers.training.corpus.signals import LENGTH, RATE
from tests.helpers.fresh import in_fresh_process


def has_espeak() -> bool:
    try:
        ctypes.CDLL(speech.LIBRARY)
    except OSError:
        return False
    return True


needs_espeak = pytest.mark.skipif(not has_espeak(), reason="eSpeak NG is not installed")


def speak(text: str, voice: str, rate: float) -> speech.Spoken:
    return speech.espeak().speak(text, voice, 150, 50, 50, rate)


def speak_and_check() -> None:
    speak("six", "en+m3", 1.0)
    speech.check()


def number(name: str) -> int:
    return speech.PHONES.index(name)


def test_phones_are_different_sounds_after_other_and_silence():
    assert speech.PHONES[:2] == ("other", "_")
    assert len(set(speech.PHONES)) == len(speech.PHONES)
    assert set(speech.SPELLINGS.values()) <= set(speech.PHONES)


@pytest.mark.parametrize(
    ("name", "phone"), [("ɑː", "ɑ"), ("_:", "_"), ("", "_"), ("ʌʊ", "əʊ"), ("q", "other"), ("tʃ", "tʃ")]
)
def test_phone_has_the_number_of_its_sound(name, phone):
    assert speech.phone_number(name) == number(phone)


def test_phone_is_named_at_every_time_and_silence_around_it():
    spoken = speech.Spoken(np.zeros(RATE, np.float32), np.array([0.1, 0.4]), [number("n"), number("oʊ")])
    numbers = speech.labels(spoken, np.array([-0.5, 0.05, 0.1, 0.3, 0.4, 0.9, 1.1]))
    assert [speech.PHONES[i] for i in numbers] == ["_", "_", "n", "n", "oʊ", "oʊ", "_"]


def test_missing_espeak_is_answered_with_what_to_install(monkeypatch):
    monkeypatch.setattr(speech, "LIBRARY", "libabsent.so")
    with pytest.raises(HearTransformersError, match=r"libabsent\.so.*apt install libespeak-ng1"):
        speech.check()


@needs_espeak
def test_utterance_has_a_phone_for_every_frame():
    clip, phones = in_fresh_process(speech.utterance, 0, 0, 0)
    assert clip.shape == (LENGTH,)
    assert phones.shape == (200,)
    assert len(set(phones.tolist())) > 3


@needs_espeak
def test_phones_are_where_the_sound_is():
    spoken = in_fresh_process(speak, "six", "en+m3", 1.25)
    times = np.arange(0, len(spoken.waveform) - 800, 32) / RATE
    phones = speech.labels(spoken, times)
    windows = np.stack([spoken.waveform[int(time * RATE) :][:800] for time in times])
    hiss = np.square(np.abs(np.fft.rfft(windows)))[:, 125:300].mean(1)  # 5 to 12 kHz
    assert hiss[phones == number("s")].mean() > 10 * hiss[phones == number("ɪ")].mean()


@needs_espeak
def test_unknown_voice_is_named():
    with pytest.raises(HearTransformersError, match="xx-klingon"):
        in_fresh_process(speak, "six", "xx-klingon", 1.0)


@needs_espeak
def test_a_process_that_has_spoken_makes_no_speech_for_a_corpus():
    with pytest.raises(HearTransformersError, match=r"has spoken in this process.*start a new one"):
        in_fresh_process(speak_and_check)
