"""Waveforms of clips as their files have them: for those who resample elsewhere."""

import dataclasses
import platform

import numpy as np
import pytest
import soundfile
import soxr
import torch

from hear_transformers.audio import levels
from hear_transformers.audio.clips import Clip, Loaded, ReadOptions, read
from hear_transformers.audio.workers import load

RATE, SAMPLE_RATE = 44_100, 16_000
NATIVE = ReadOptions(SAMPLE_RATE, 60.0, hashes=False, resample=False)


def read_noise(path, n_channels=1, rate=RATE, n_frames=RATE, options=NATIVE, **clip) -> tuple[Loaded, np.ndarray]:
    """Read noise that was written to a file; return the answer, and the frames in the file."""
    frames = np.random.default_rng(0).uniform(-0.5, 0.5, (n_frames, n_channels))
    soundfile.write(path, frames, rate)
    return read(0, Clip(path, **clip), options), soundfile.read(path, dtype="int16", always_2d=True)[0]


@pytest.mark.parametrize("name", ["mono.wav", "mono.flac", "mono.aiff"])
def test_one_channel_of_16_bits_stays_as_it_is(tmp_path, name):
    loaded, frames = read_noise(tmp_path / name)
    assert loaded.sample_rate == RATE
    assert loaded.waveform.dtype == torch.int16
    assert torch.equal(loaded.waveform, torch.from_numpy(frames[:, 0]))


def test_a_channel_that_was_chosen_stays_as_it_is(tmp_path):
    loaded, frames = read_noise(tmp_path / "stereo.wav", 2, channel=2)
    assert torch.equal(loaded.waveform, torch.from_numpy(frames[:, 1].copy()))


@pytest.mark.parametrize("n_channels", [2, 5])
def test_the_mean_of_channels_is_float32(tmp_path, n_channels):
    loaded, frames = read_noise(tmp_path / "many.wav", n_channels)
    assert loaded.sample_rate == RATE
    expected = (frames / np.float32(2**15)).mean(1, dtype=np.float32)
    np.testing.assert_array_equal(loaded.waveform, expected)


@pytest.mark.parametrize("name", ["tone.wav", "tone.mp3"])
def test_resampled_it_is_what_is_read_else(tmp_path, name):
    path = tmp_path / name
    native, _ = read_noise(path)
    waveform = native.waveform.numpy() / (2**15 if native.waveform.dtype == torch.int16 else 1)
    expected = read(0, Clip(path), ReadOptions(SAMPLE_RATE, 60.0, hashes=False)).waveform
    resampled = soxr.resample(waveform.astype(np.float32), native.sample_rate, SAMPLE_RATE, quality="HQ")
    np.testing.assert_array_equal(resampled, expected)


def test_a_part_is_resampled(tmp_path):
    loaded, _ = read_noise(tmp_path / "noise.wav", start=0.25, end=0.5)
    assert loaded.sample_rate == SAMPLE_RATE
    assert len(loaded.waveform) == SAMPLE_RATE // 4


def test_what_takes_more_memory_as_it_is_is_resampled(tmp_path):
    options = ReadOptions(SAMPLE_RATE, 1.0, hashes=False, resample=False)
    loaded, _ = read_noise(tmp_path / "stereo.wav", 2, options=options)
    assert loaded.sample_rate == SAMPLE_RATE
    assert len(loaded.waveform) == SAMPLE_RATE


@pytest.mark.parametrize("rate", [8_000, 44_100])
def test_a_long_clip_is_long_at_any_sample_rate(tmp_path, rate):
    options = ReadOptions(SAMPLE_RATE, 1.0, hashes=False, resample=False)
    loaded, _ = read_noise(tmp_path / "noise.wav", rate=rate, n_frames=rate + 100, options=options)
    assert loaded.waveform is None
    assert loaded.sample_rate == 0
    assert abs(sum(map(len, loaded.blocks)) - SAMPLE_RATE * (1 + 100 / rate)) < 1


def test_energy_that_a_model_does_not_hear_is_told_by_who_resamples():
    assert levels.unheard_warning(1.0, 0.6, SAMPLE_RATE) is None
    assert "75% of the energy lies above 8 kHz" in levels.unheard_warning(1.0, 0.25, SAMPLE_RATE)


def test_joined_files_of_other_widths_are_float32(tmp_path):
    joined = b""
    for subtype in ("PCM_16", "PCM_24"):
        soundfile.write(tmp_path / "part.wav", np.full(1_000, 0.5), RATE, subtype=subtype)
        joined += (tmp_path / "part.wav").read_bytes()
    (tmp_path / "joined.wav").write_bytes(joined)
    waveform = read(0, Clip(tmp_path / "joined.wav"), NATIVE).waveform
    assert torch.equal(waveform, torch.full((2_000,), 0.5))


@pytest.mark.skipif(platform.libc_ver()[0] != "glibc", reason="the C library has a rule of its own")
def test_memory_of_a_clip_is_used_again_for_the_next(tmp_path):
    import resource

    options = ReadOptions(SAMPLE_RATE, 60.0, hashes=True)
    read_noise(tmp_path / "noise.wav", 2, n_frames=10 * RATE, options=options)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    for _ in range(5):
        read(0, Clip(tmp_path / "noise.wav"), options)
    n_pages = (resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before) / 5
    assert n_pages < 400  # its frames alone have 430


RATES = (SAMPLE_RATE, 32_000, RATE, 8_000)


def write_damaged(path):
    soundfile.write(path, np.random.default_rng(0).uniform(-0.5, 0.5, (3 * RATE, 2)), RATE)
    path.write_bytes(path.read_bytes()[:-RATE])


def write_high(path):
    soundfile.write(path, 0.5 * np.sin(0.45 * 2 * np.pi * np.arange(2 * RATE)), RATE)


def write_one_sample(path):
    soundfile.write(path, np.full(1, 0.5), RATE)


def write_text(path):
    path.write_text("no audio")


@pytest.mark.parametrize("part", [{}, {"start": 0.5, "end": 0.75}])
@pytest.mark.parametrize("resample", [True, False])
@pytest.mark.parametrize("long_seconds", [60.0, 1.0])
@pytest.mark.parametrize("write", [write_damaged, write_high, write_one_sample, write_text])
def test_at_several_sample_rates_a_clip_is_what_it_is_at_each(tmp_path, write, long_seconds, resample, part):
    path = tmp_path / "clip.wav"
    write(path)
    options = ReadOptions(SAMPLE_RATE, long_seconds, hashes=True, keep_damaged=True, resample=resample)
    loaded = read(0, Clip(path, **part), dataclasses.replace(options, other_rates=RATES[1:]))
    for rate, found in zip(RATES, (loaded, *loaded.others), strict=True):
        expected = read(0, Clip(path, **part), dataclasses.replace(options, sample_rate=rate))
        assert (found.sha256, found.sample_rate, found.path) == (expected.sha256, expected.sample_rate, expected.path)
        assert str(found.error) == str(expected.error)
        waveforms = [
            each.waveform if each.blocks is None else torch.cat(list(each.blocks)) for each in (found, expected)
        ]
        assert waveforms[0] is None or torch.equal(*waveforms)
        assert found.warnings == expected.warnings


def test_workers_read_at_several_sample_rates(tmp_path):
    paths = [tmp_path / f"{i}.wav" for i in range(9)]
    for i, path in enumerate(paths):
        soundfile.write(path, np.random.default_rng(i).uniform(-0.5, 0.5, RATE // 2 + 7 * i), RATE)
    paths[4].write_text("no audio")
    for resample in (True, False):
        options = ReadOptions(SAMPLE_RATE, 1.0, hashes=True, resample=resample, other_rates=RATES[1:])
        clips = [Clip(path) for path in paths]
        for ours in load(clips, options, workers=2):
            here = read(ours.index, clips[ours.index], options)
            assert len(ours.others) == len(here.others) == 3
            for found, expected in zip((ours, *ours.others), (here, *here.others), strict=True):
                assert (found.sample_rate, found.sha256) == (expected.sample_rate, expected.sha256)
                assert str(found.error) == str(expected.error)
                assert found.waveform is expected.waveform is None or torch.equal(found.waveform, expected.waveform)
