"""Clips that are resampled on the device of the network, beside those that soxr resamples where they are decoded."""

import numpy as np
import pytest
import torch

from hear_transformers.bulk.extract import extract
from hear_transformers.bulk.sources import find_sources
from hear_transformers.embedding import packing, resampling
from hear_transformers.embedding.pipeline import Clip, embed
from hear_transformers.embedding.resampling import is_on_device
from hear_transformers.errors import OptionError

SAME = 1e-4  # of the largest number; 2e-5 was found
RATES = [32_000, 44_100, 48_000, 22_050, 16_000, 96_000, 44_056]


def sound(seconds: float, rate: int, channels: int = 1) -> np.ndarray:
    return np.random.default_rng(rate).uniform(-0.5, 0.5, (round(seconds * rate), channels))


@pytest.fixture
def clips(audio_file):
    """Return clips of all rates and types, whole and in part, and a waveform."""
    files = [audio_file(f"{rate}.wav", sound(0.8, rate), sample_rate=rate) for rate in RATES]
    files += [audio_file(f"{i}.flac", sound(1.1, 44_100), sample_rate=44_100) for i in range(3)]
    files.append(audio_file("stereo.wav", sound(0.7, 48_000, 2), sample_rate=48_000))
    files.append(audio_file("float.wav", sound(0.7, 48_000), sample_rate=48_000, subtype="FLOAT"))
    files.append(audio_file("short.wav", sound(1e-5, 96_000), sample_rate=96_000))
    waveform = torch.from_numpy(sound(0.5, 32_000)[:, 0]).float()
    return [*map(Clip, files), Clip(files[1], start=0.2, end=0.6), Clip(waveform=waveform)]


@pytest.mark.parametrize("workers", [0, 2])
@pytest.mark.parametrize("timestamps", [False, True])
def test_embeddings_are_the_same_wherever_clips_are_resampled(small_model, clips, workers, timestamps):
    how = {"timestamps": timestamps, "workers": workers}
    expected = list(embed(small_model, clips, resample="cpu", **how))
    found = list(embed(small_model, clips, resample="device", **how))
    for there, here in zip(expected, found, strict=True):
        assert (here.index, here.error, here.seconds) == (there.index, None, there.seconds)
        atol = SAME * np.abs(there.embedding).max()
        np.testing.assert_allclose(here.embedding, there.embedding, rtol=0, atol=atol)
        if timestamps:
            np.testing.assert_array_equal(here.times_ms, there.times_ms)


def test_clips_of_one_rate_and_length_are_resampled_together(small_model, audio_file, monkeypatch):
    together = []

    def counted(waveforms, rate, sample_rate):
        together.append((rate, {(len(each), each.dtype) for each in waveforms}, len(waveforms)))
        return resampling.resampled(waveforms, rate, sample_rate)

    monkeypatch.setattr(packing, "resampled", counted)
    files = [audio_file(f"{i}.wav", seconds=0.5, sample_rate=44_100) for i in range(5)]
    files += [audio_file(f"{i}.flac", seconds=0.5, sample_rate=48_000) for i in range(3)]
    list(embed(small_model, map(Clip, files), resample="device", batch_size=8))
    assert together == [(44_100, {(22_050, torch.int16)}, 5), (48_000, {(24_000, torch.int16)}, 3)]


def test_no_more_is_resampled_at_once_than_the_memory_is_certain_to_hold(small_model, audio_file, monkeypatch):
    sizes = []
    together = resampling.resampled
    monkeypatch.setattr(packing, "TOGETHER_SECONDS", 1.0)
    monkeypatch.setattr(packing, "resampled", lambda *given: sizes.append(len(given[0])) or together(*given))
    files = [audio_file(f"{i}.wav", seconds=0.5, sample_rate=44_100) for i in range(5)]
    assert all(each.error is None for each in embed(small_model, map(Clip, files), resample="device", batch_size=8))
    assert sizes == [2, 2, 1]


def test_a_clip_that_cannot_be_resampled_fails_alone(small_model, audio_file, monkeypatch):
    def fragile(waveforms, rate, sample_rate):
        if not all(each.any() for each in waveforms):
            raise ZeroDivisionError("silence")
        return resampling.resampled(waveforms, rate, sample_rate)

    monkeypatch.setattr(packing, "resampled", fragile)
    files = [audio_file(f"{i}.wav", sound(0.5, 44_100) * (i != 1), sample_rate=44_100) for i in range(3)]
    embedded = list(embed(small_model, map(Clip, files), resample="device"))
    assert [type(each.error) for each in embedded] == [type(None), ZeroDivisionError, type(None)]


def test_energy_that_a_model_does_not_hear_is_mentioned_as_ever(small_model, audio_file):
    tone = np.sin(2 * np.pi * 19_000 * np.arange(44_100) / 44_100)
    files = [audio_file("bat.wav", tone, sample_rate=44_100), audio_file("deep.wav", sample_rate=44_100)]
    of_soxr, ours = (
        [each.warnings for each in embed(small_model, map(Clip, files), resample=where)] for where in ("cpu", "device")
    )
    assert ours == of_soxr
    assert [len(each) for each in ours] == [1, 0]
    assert ours[0][0].startswith(f"{files[0]}: 100% of the energy lies above 16 kHz")


def test_outputs_may_stand_side_by_side(small_model, audio_file, tmp_path):
    sources = find_sources([str(audio_file(f"{i}.wav", sample_rate=44_100)) for i in range(2)])
    first = extract(small_model, sources[:1], tmp_path / "out", resample="cpu")
    second = extract(small_model, sources, tmp_path / "out", resample="device")
    assert (len(first.written), len(second.written), len(second.skipped)) == (1, 1, 1)
    assert second.skipped[0].message == ""


def test_a_card_resamples_for_its_workers():
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert is_on_device("auto", cuda, workers=4)
    assert not is_on_device("auto", cuda, workers=0)
    assert not is_on_device("auto", cpu, workers=4)
    assert not is_on_device("cpu", cuda, workers=4)
    assert is_on_device("device", cpu, workers=0)


def test_another_place_is_unknown(small_model):
    with pytest.raises(OptionError, match=r"resample='gpu' is unknown; .*cpu, device, auto"):
        list(embed(small_model, [], resample="gpu"))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_embeds_what_it_resamples_as_the_cpu(small_model, clips):
    expected = list(embed(small_model, clips, resample="cpu"))
    try:
        found = list(embed(small_model.to("cuda"), clips, resample="device", workers=2))
    finally:
        small_model.to("cpu")
    for there, here in zip(expected, found, strict=True):
        assert (here.index, here.error, here.seconds) == (there.index, None, there.seconds)
        np.testing.assert_allclose(here.embedding, there.embedding, rtol=0, atol=1e-4 * np.abs(there.embedding).max())
