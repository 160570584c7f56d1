"""Decoding, downmixing and resampling; what is refused is in test_bad_input.py."""

import struct

import numpy as np
import pytest
import soundfile
import soxr
import torch

from hear_transformers.audio import reading
from hear_transformers.errors import AudioError, HearTransformersWarning
from tests.helpers import files

RATES = [8_000, 11_025, 16_000, 22_050, 44_100, 48_000, 96_000, 192_000]


@pytest.mark.parametrize("sample_rate", RATES)
def test_any_rate_becomes_the_wanted_one(audio_file, sample_rate):
    path = audio_file(sample_rate=sample_rate)
    expected = soxr.resample(soundfile.read(path, dtype="float32")[0], sample_rate, 32_000, quality="HQ")
    waveform = reading.read(path, 32_000)
    assert waveform.dtype == torch.float32
    np.testing.assert_array_equal(waveform, expected)


@pytest.mark.parametrize("block_seconds", [0.001, 0.37, 5.0])
def test_blocks_of_any_length_join_to_the_whole(audio_file, block_seconds):
    path = audio_file(sample_rate=44_100, seconds=2.01)
    joined = torch.cat(list(files.blocks(path, 32_000, block_seconds)))
    assert torch.equal(joined, reading.read(path, 32_000))


def test_the_same_rate_is_left_alone(audio_file):
    path = audio_file(subtype="FLOAT")
    np.testing.assert_array_equal(reading.read(path, 32_000), soundfile.read(path, dtype="float32")[0])


def test_a_tone_above_the_new_nyquist_is_removed(audio_file):
    t = np.arange(44_100) / 44_100
    path = audio_file(samples=0.5 * np.sin(2 * np.pi * 17_000 * t), sample_rate=44_100, subtype="FLOAT")
    with pytest.warns(HearTransformersWarning, match="100% of the energy lies above 16 kHz"):
        waveform = reading.read(path, 32_000)
    assert waveform[2_000:-2_000].abs().max() < 1e-5


@pytest.mark.parametrize("channels", range(1, 9))
def test_channels_are_averaged(audio_file, channels):
    samples = np.linspace(-0.5, 0.5, 3_200 * channels).reshape(-1, channels).astype("float32")
    path = audio_file(samples=samples, subtype="FLOAT")
    np.testing.assert_allclose(reading.read(path, 32_000), samples.mean(1), atol=1e-7)


@pytest.mark.parametrize(
    ("name", "options", "tolerance"),
    [
        ("a.wav", {"subtype": "PCM_U8"}, 0.01),
        ("a.wav", {"subtype": "PCM_16"}, 1e-4),
        ("a.wav", {"subtype": "PCM_24"}, 1e-6),
        ("a.wav", {"subtype": "PCM_32"}, 1e-6),
        ("a.wav", {"subtype": "DOUBLE"}, 1e-6),
        ("a.flac", {}, 1e-4),
        ("a.aiff", {}, 1e-4),
        ("a.au", {}, 1e-4),
        ("a.caf", {}, 1e-4),
        ("a.w64", {}, 1e-4),
        ("a.rf64", {}, 1e-4),
        ("a.ogg", {}, 0.05),
        ("a.mp3", {}, 0.05),
    ],
)
def test_formats_and_widths_give_the_same_waveform(audio_file, name, options, tolerance):
    expected = reading.read(audio_file("expected.wav", subtype="FLOAT"), 32_000)
    waveform = reading.read(audio_file(name, **options), 32_000)
    assert len(waveform) == len(expected)
    assert (waveform - expected)[1_000:-1_000].abs().max() < tolerance


def test_opus_is_read(audio_file):
    path = audio_file("a.opus", sample_rate=48_000, format="OGG", subtype="OPUS")
    assert len(reading.read(path, 32_000)) == 32_000


def test_an_mp3_in_a_wav_is_read(audio_file):
    path = audio_file("a.mp3", seconds=3)
    content = path.read_bytes()
    # MPEGLAYER3WAVEFORMAT: format 0x55, a channel, rates in Hz and bytes, 12 more bytes about blocks and delay.
    header = struct.pack("<HHIIHHHHIHHH", 0x55, 1, 32_000, 8_000, 1, 0, 12, 1, 2, 288, 1, 1_393)
    chunks = [b"fmt ", struct.pack("<I", len(header)), header, b"data", struct.pack("<I", len(content)), content]
    body = b"WAVE" + b"".join(chunks)
    wav = path.with_name("a.wav")
    wav.write_bytes(b"RIFF" + struct.pack("<I", len(body)) + body)
    assert files.duration(wav) == len(reading.read(wav, 32_000)) / 32_000 == pytest.approx(3, abs=0.1)


@pytest.mark.parametrize("suffix", [".au", ".snd", ".vox", ".gsm"])
def test_a_suffix_makes_no_audio_of_other_content(tmp_path, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_text("This is not a sound.\n" * 100)
    with pytest.raises(AudioError, match=rf"a\{suffix}: not audio, or raw samples without a header"):
        reading.read(path, 32_000)


def test_a_wav_written_into_a_pipe_is_read_whole(audio_file):
    path = audio_file()
    content = bytearray(path.read_bytes())
    content[4:8] = content[40:44] = b"\xff\xff\xff\xff"  # what FFmpeg leaves where it cannot go back
    path.write_bytes(content)
    assert len(reading.read(path, 32_000)) == 32_000


def test_a_flac_of_unknown_length_is_read_whole(audio_file):
    path = audio_file("a.flac")
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # total samples, the last 36 bits of bytes 18 to 25, 0 if unknown
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert len(reading.read(path, 32_000)) == 32_000


def test_a_clip_too_short_for_one_new_sample_becomes_one(audio_file):
    path = audio_file(samples=np.array([0.25, 0.75]), sample_rate=192_000, subtype="FLOAT")
    assert reading.read(path, 16_000).tolist() == [0.5]


def test_decoding_stops_where_the_reader_stops(audio_file):
    first = next(files.blocks(audio_file(seconds=3), 32_000, block_seconds=0.5))
    assert len(first) == 16_000


@pytest.mark.parametrize(
    ("name", "sample_rate", "options"),
    [
        *(("a.wav", rate, {"subtype": "FLOAT"}) for rate in [*RATES, 32_000, 44_101]),
        ("a.flac", 44_100, {}),
        ("a.ogg", 44_100, {}),
        ("a.mp3", 44_100, {}),
        ("a.mp3", 16_000, {"bitrate_mode": "VARIABLE"}),
        ("a.opus", 48_000, {"format": "OGG", "subtype": "OPUS"}),
        ("a.aiff", 22_050, {}),
    ],
)
@pytest.mark.filterwarnings("ignore:.*which the model does not hear")  # most of white noise at high rates
@pytest.mark.parametrize("start", [0.0, 0.003, 1.2345, 2.5])
def test_an_excerpt_is_a_part_of_the_whole(audio_file, name, sample_rate, options, start):
    noise = np.random.default_rng(0).uniform(-0.5, 0.5, 4 * sample_rate)
    path = audio_file(name, samples=noise, sample_rate=sample_rate, **options)
    first = round(start * 32_000)
    excerpt = files.excerpt(path, 32_000, start, 1.0)
    assert len(excerpt) == 32_000
    assert (excerpt - reading.read(path, 32_000)[first : first + 32_000]).abs().max() < 1e-5


@pytest.mark.parametrize("sample_rate", RATES)
def test_an_excerpt_ends_with_the_file(audio_file, sample_rate):
    path = audio_file(sample_rate=sample_rate, seconds=2.0)
    assert torch.allclose(files.excerpt(path, 32_000, 1.5, 60.0), reading.read(path, 32_000)[48_000:], atol=1e-5)
    assert torch.equal(files.excerpt(path, 32_000, 0.0, 60.0), reading.read(path, 32_000))


def test_an_excerpt_of_a_flac_of_unknown_length_is_read(audio_file):
    path = audio_file("a.flac", seconds=2.0)
    expected = files.excerpt(path, 32_000, 1.0, 0.5)
    content = bytearray(path.read_bytes())
    content[21] &= 0xF0  # see above
    content[22:26] = bytes(4)
    path.write_bytes(content)
    assert torch.equal(files.excerpt(path, 32_000, 1.0, 0.5), expected)
    assert files.duration(path) == 2.0


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3"])
def test_the_duration_is_known(audio_file, name):
    assert files.duration(audio_file(name, seconds=1.75)) == 1.75


def test_the_duration_of_an_mp3_without_its_header_is_counted(audio_file):
    samples = np.concatenate([np.zeros(64_000), np.random.default_rng(0).uniform(-0.5, 0.5, 64_000)])
    path = audio_file("a.mp3", samples=samples, bitrate_mode="VARIABLE")
    content = path.read_bytes()
    path.write_bytes(content[content.index(b"\xff\xfb", 4) :])  # without the first frame, which holds the length
    assert files.duration(path) == len(reading.read(path, 32_000)) / 32_000


def test_an_excerpt_behind_the_end_raises_audio_error(audio_file):
    with pytest.raises(AudioError, match=r"tone\.wav: ends before 1\.500 s"):
        files.excerpt(audio_file(), 16_000, 1.5, 1.0)


@pytest.mark.parametrize("start", [0.0, 0.1, 0.9])
@pytest.mark.parametrize("name", ["a.wav", "a.ogg", "a.aiff"])
def test_an_excerpt_of_a_file_cut_short_raises_audio_error(audio_file, name, start):
    path = audio_file(name, samples=np.random.default_rng(0).uniform(-0.5, 0.5, 160_000))
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"cut short after [23]\."):
        files.excerpt(path, 16_000, start, 0.5)


def test_a_sample_that_is_no_number_is_named_by_its_place_in_the_file(audio_file):
    samples = np.zeros(96_000)
    samples[48_000] = np.nan
    with pytest.raises(AudioError, match=r"sample nan at 1\.500 s"):
        files.excerpt(audio_file(samples=samples, subtype="FLOAT"), 16_000, 1.4, 0.5)
