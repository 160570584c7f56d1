"""What the levels of a sound say: channels that are lost in their mean, energy beyond the band of a network."""

import warnings

import numpy as np
import pytest

from hear_transformers.audio import reading
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import AudioError, HearTransformersWarning
from tests.conftest import tone


def sine(hz: float, sample_rate: int, amplitude: float = 0.3, seconds: float = 0.5) -> np.ndarray:
    return amplitude * np.sin(2 * np.pi * hz * np.arange(round(seconds * sample_rate)) / sample_rate)


X, Y = tone(0.5), 0.2 * sine(900, 32_000)
HISS = 1e-4 * np.random.default_rng(0).standard_normal(16_000)

LOST = {
    "inverted": ((X, -X), "2 channels cancel each other .*--channel 1"),
    "inverted and softer": ((0.9 * X, -X), "cancel each other .*--channel 2"),
    "inverted pairs": ((X, -X, Y, -Y), "4 channels cancel each other"),
    "dead": ((0 * X, Y), "only channel 2 of 2 holds sound, and the mean is 6 dB softer; choose --channel 2"),
    "unplugged": ((X, HISS), "only channel 1 of 2"),
    "one of six": ((0 * X, 0 * X, X, 0 * X, 0 * X, HISS), "only channel 3 of 6 holds sound, .* 16 dB softer"),
}
KEPT = {
    "mono": (X,),
    "the same": (X, X),
    "independent": (X, Y),
    "delayed": (X, np.roll(X, 20)),
    "surround": (X, Y, X + Y, 0 * X, HISS, np.roll(Y, 9)),
    "silence": (0 * X, 0 * X),
}


@pytest.mark.parametrize(("channels", "message"), LOST.values(), ids=LOST)
def test_sound_that_is_lost_in_the_mean_is_warned_of(audio_file, channels, message):
    path = audio_file("a.wav", np.stack(channels, 1), subtype="FLOAT")
    with pytest.warns(HearTransformersWarning, match=rf"a\.wav: .*{message}"):
        reading.read(path, 32_000)
    with AudioFile(path) as file, pytest.warns(HearTransformersWarning, match=message):
        file.excerpt(32_000, 0.1, 0.2)
    with AudioFile(path, channel=1) as file:
        np.testing.assert_array_equal(file.read(32_000).numpy(), np.float32(channels[0]))


@pytest.mark.parametrize("channels", KEPT.values(), ids=KEPT)
def test_sound_that_is_kept_in_the_mean_is_not_warned_of(audio_file, channels):
    path = audio_file(samples=np.stack(channels, 1), subtype="FLOAT")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading.read(path, 32_000)


def test_what_is_wrong_with_another_channel_does_not_matter(audio_file):
    path = audio_file(samples=np.stack([X, np.full_like(X, np.nan)], 1), subtype="FLOAT")
    with AudioFile(path, channel=1) as file:
        np.testing.assert_array_equal(file.read(32_000).numpy(), np.float32(X))
    with AudioFile(path, channel=2) as file, pytest.raises(AudioError, match="sample nan at"):
        file.read(32_000)


UNHEARD = {
    "bat": (sine(45_000, 384_000), 384_000, "100% of the energy lies above 16 kHz"),
    "dolphin and waves": (sine(60_000, 192_000) + sine(100, 192_000, 0.1), 192_000, "90% of the energy"),
    "cricket": (sine(17_000, 44_100), 44_100, "100% of the energy lies above 16 kHz"),
}
HEARD = {
    "bat and waves": (sine(45_000, 384_000) + sine(100, 384_000, 0.4), 384_000),
    "low rate": (sine(3_000, 8_000), 8_000),
    "the same rate": (sine(15_900, 32_000), 32_000),
    "silence": (0 * sine(1, 96_000), 96_000),
    "click": (np.array([0.0, 0.5, 0.0]), 192_000),
}


@pytest.mark.parametrize(("samples", "sample_rate", "message"), UNHEARD.values(), ids=UNHEARD)
def test_energy_that_the_network_does_not_hear_is_warned_of(audio_file, samples, sample_rate, message):
    path = audio_file("a.wav", samples, sample_rate=sample_rate)
    with pytest.warns(HearTransformersWarning, match=rf"a\.wav: {message}.*does not hear") as caught:
        reading.read(path, 32_000)
    assert len(caught) == 1
    with AudioFile(path) as file, pytest.warns(HearTransformersWarning, match=message):
        file.excerpt(32_000, 0.1, 0.3)


@pytest.mark.parametrize(("samples", "sample_rate"), HEARD.values(), ids=HEARD)
def test_energy_that_the_network_hears_is_not_warned_of(audio_file, samples, sample_rate):
    path = audio_file(samples=samples, sample_rate=sample_rate)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        reading.read(path, 32_000)


def test_arrays_are_warned_of_as_files_are(small_model, audio_file):
    with pytest.warns(HearTransformersWarning, match=r"array of shape \(192000,\): 100% of the energy"):
        small_model.encode(sine(45_000, 384_000), sampling_rate=384_000)
    with pytest.warns(HearTransformersWarning, match="channels cancel each other"):
        small_model.encode({"array": np.stack([X, -X]), "sampling_rate": 32_000})


def test_warnings_about_levels_reach_the_outputs_of_a_run(embed_audio, audio_file, tmp_path):
    audio_file("bat.wav", np.tile(sine(45_000, 384_000), 130), sample_rate=384_000)  # longer than is held in memory
    audio_file("anti.wav", np.stack([X, -X], 1))
    audio_file("loud.wav", 30_000 * X, subtype="FLOAT")
    result = embed_audio("bat.wav", "anti.wav", "loud.wav", "--num-workers", 2)
    assert (result.exit_code, result.stderr.count("Warning: ")) == (0, 3)
    lines = (tmp_path / "warnings.jsonl").read_text().splitlines()
    for line, word in zip(lines, ("above 16 kHz", "cancel", "32768"), strict=True):
        assert word in line


@pytest.mark.parametrize("option", ["1", "2"])
def test_a_run_embeds_one_channel_and_knows_which(embed_audio, audio_file, tmp_path, option):
    audio_file("both.wav", np.stack([X, Y], 1), subtype="FLOAT")
    audio_file("mono.wav", X if option == "1" else Y, subtype="FLOAT")
    result = embed_audio("both.wav", "mono.wav", "--channel", option)
    assert result.exit_code == int(option) - 1
    assert ("mono.wav: channel 2 was asked for, it has 1" in result.stderr) == (option == "2")
    embed_audio("mono.wav", "--out", "alone.npz")
    with np.load("both.npz") as one, np.load("alone.npz") as alone:
        np.testing.assert_allclose(one["embedding"], alone["embedding"], atol=1e-5)
    assert "1 skipped" in embed_audio("both.wav", "--channel", option).stdout
    assert "other settings: channel" in embed_audio("both.wav").stderr


@pytest.mark.parametrize("out", ["vectors", "table.parquet", "table.h5"])
def test_a_run_embeds_each_channel_apart(embed_audio, audio_file, out):
    audio_file("both.wav", np.stack([X, Y], 1), subtype="FLOAT")
    audio_file("mono.wav", X, subtype="FLOAT")
    result = embed_audio("both.wav", "mono.wav", "lost.wav", "--channel", "each", "--out", out)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "3 written, 1 failed")
    again = embed_audio("both.wav", "mono.wav", "--channel", "each", "--out", out)
    assert (again.exit_code, again.stdout.splitlines()[-1][:20]) == (0, "0 written, 3 skipped")
    files, channels, embeddings = rows_of(out)
    assert (files, channels) == (["both.wav", "both.wav", "mono.wav"], [1, 2, 1])
    np.testing.assert_allclose(embeddings[0], embeddings[2], atol=1e-6)
    assert np.abs(embeddings[0] - embeddings[1]).max() > 1e-3


def rows_of(out: str) -> tuple[list[str], list[int], np.ndarray]:
    if out.endswith(".parquet"):
        import pyarrow.parquet

        table = pyarrow.parquet.read_table(out).to_pydict()
        return table["file"], table["channel"], np.array(table["embedding"])
    if out.endswith(".h5"):
        import h5py

        with h5py.File(out) as file:
            return [name.decode() for name in file["file"]], list(file["channel"]), file["embedding"][:]
    names = ["both.ch1.npz", "both.ch2.npz", "mono.ch1.npz"]
    embeddings = np.stack([np.load(f"{out}/{name}")["embedding"] for name in names])
    return [f"{name[:4]}.wav" for name in names], [int(name[7]) for name in names], embeddings


def test_an_unknown_channel_ends_the_command(embed_audio, audio_file):
    for option in ("0", "left", "-1"):
        result = embed_audio(audio_file(), "--channel", option)
        assert (result.exit_code, "choose 1 for the first" in result.stderr) == (2, True)
