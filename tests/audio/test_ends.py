"""Audio ends where it ends, whatever headers count; what is lost is said, and taken as far as it goes if asked for."""

import contextlib
import os
import struct
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers.audio import reading
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import AudioError
from tests.helpers.headers import (
    ID3,
    ID3V1,
    RATE,
    as_vbri,
    encoded,
    loud_then_quiet,
    mp3_in_wav,
    patched,
    with_frames,
    with_size,
    with_total,
    without_header,
)


def write(folder: Path, name: str, content: bytes) -> Path:
    path = folder / name
    path.write_bytes(content)
    return path


def taken(path: Path, *, keep_damaged: bool = False, sample_rate: int = RATE) -> tuple[torch.Tensor, list[str]]:
    """Read a file; give its waveform and what was warned of."""
    warnings: list[str] = []
    with AudioFile(path, keep_damaged=keep_damaged, warn=warnings.append) as file:
        waveform = file.read(sample_rate)
        assert file.duration() == pytest.approx(len(waveform) / sample_rate, abs=1e-3)
    assert all(warning.startswith(f"{path}: ") for warning in warnings)
    return waveform, warnings


FLAC, OGG, MP3, WAV = (encoded(format) for format in ("FLAC", "OGG", "MP3", "WAV"))
OPUS = encoded("OGG", sample_rate=48_000, subtype="OPUS")
LONG_OPUS = encoded("OGG", 8.0, sample_rate=48_000, subtype="OPUS")
VBR = loud_then_quiet()

JOINED = {
    "a.ogg": (OGG, encoded("OGG", 3.0), encoded("OGG", 1.0)),
    "two channels.ogg": (OGG, encoded("OGG", 1.0, channels=2)),
    "a.opus": (OPUS, encoded("OGG", 3.0, sample_rate=48_000, subtype="OPUS")),
    "a.mp3": (MP3, encoded("MP3", 3.0)),
    "tags.mp3": (ID3 + MP3 + ID3V1, ID3 + encoded("MP3", 3.0)),
    "two channels.mp3": (MP3, encoded("MP3", 1.0, channels=2), MP3),
    "a.flac": (FLAC, FLAC, encoded("FLAC", 1.0)),
    "tags.flac": (FLAC + ID3V1, encoded("FLAC", 1.0)),
    "a.wav": (WAV, encoded("WAV", 1.0)),
    "piped.wav": (patched(WAV, 40, b"\xff" * 4), patched(WAV, 40, b"\xff" * 4), WAV),
    "chunks.wav": (WAV + b"LIST\x0a\0\0\0INFOICMT12", encoded("WAV", 1.0)),
    "odd.wav": (encoded("WAV", 1.00003125, subtype="PCM_24"), encoded("WAV", 1.0, subtype="PCM_24")),
    "a.aiff": (encoded("AIFF"), encoded("AIFF", 1.0)),
    "ima4.aifc": (encoded("AIFF", subtype="IMA_ADPCM"), encoded("AIFF", 1.0, subtype="IMA_ADPCM")),
    "g721.au": (encoded("AU", subtype="G721_32"), encoded("AU", 1.0, subtype="G721_32")),
    "alac.caf": (encoded("CAF", subtype="ALAC_16"), encoded("CAF", 1.0, subtype="ALAC_16")),
    "a.nist": (encoded("NIST"), encoded("NIST", 1.0)),
    "tagged.flac": (ID3 + FLAC, ID3 + FLAC),
    "tagged.ogg": (ID3 + OGG, OGG),
    "mp3 in it.wav": (mp3_in_wav(2.0), mp3_in_wav(1.0)),
}


@pytest.mark.parametrize("name", JOINED)
def test_joined_files_are_read_one_after_the_other(tmp_path, name):
    suffix = Path(name).suffix
    rate = 48_000 if suffix == ".opus" else RATE
    parts = [reading.read(write(tmp_path, f"{i}{suffix}", content), rate) for i, content in enumerate(JOINED[name])]
    path = write(tmp_path, name, b"".join(JOINED[name]))
    waveform, warnings = taken(path, sample_rate=rate)
    assert torch.equal(waveform, torch.cat(parts))
    assert warnings == []


@pytest.mark.parametrize("start", [0.5, 1.9, 2.0, 2.4])
@pytest.mark.parametrize("name", ["a.ogg", "a.mp3", "tags.mp3", "a.flac", "a.wav"])
def test_an_excerpt_of_joined_files_is_a_part_of_the_whole(tmp_path, name, start):
    path = write(tmp_path, name, b"".join(JOINED[name]))
    first = round(RATE * start)
    with AudioFile(path) as file:
        excerpt = file.excerpt(RATE, start, 0.5)
        assert (excerpt - file.read(RATE)[first : first + RATE // 2]).abs().max() < 1e-6


@pytest.mark.parametrize("format", ["OGG", "MP3", "FLAC", "WAV"])
def test_joined_files_of_other_sample_rates_raise_audio_error(tmp_path, format):
    path = write(tmp_path, f"a.{format.lower()}", encoded(format) + encoded(format, sample_rate=44_100))
    with pytest.raises(AudioError, match=r"the sample rate changes from 32000 to 44100 Hz"):
        reading.read(path, RATE)


# MP3

SAMPLE_RATES = [8_000, 11_025, 12_000, 16_000, 22_050, 24_000, 32_000, 44_100, 48_000]


@pytest.mark.parametrize("mode", ["VARIABLE", "AVERAGE", "CONSTANT"])
@pytest.mark.parametrize("rate", SAMPLE_RATES)
def test_an_mp3_without_its_header_is_read_whole(tmp_path, rate, mode):
    path = write(tmp_path, "a.mp3", without_header(loud_then_quiet(rate, bitrate_mode=mode)))
    waveform, warnings = taken(path, sample_rate=rate)
    assert len(waveform) / rate == pytest.approx(10.0, abs=0.3)
    assert warnings == []
    with AudioFile(path) as file:
        assert torch.equal(file.excerpt(rate, 7.0, 0.5), waveform[7 * rate : 7 * rate + rate // 2])


@pytest.mark.parametrize("change", [lambda n: n // 2, lambda n: 0, lambda n: 3 * n, lambda n: 2**32 - 1])
@pytest.mark.parametrize("header", [with_frames, as_vbri])
def test_an_mp3_with_a_wrong_number_of_frames_is_read_whole(tmp_path, header, change):
    waveform, warnings = taken(write(tmp_path, "a.mp3", header(VBR, change)))
    assert len(waveform) / RATE == pytest.approx(10.0, abs=0.1)
    assert len(warnings) == 1
    assert "the header counts" in warnings[0]
    assert "10.0" in warnings[0]


@pytest.mark.parametrize("behind", [ID3V1, bytes(70_000), b"APETAGEX" + bytes(24), ID3])
def test_what_lies_behind_an_mp3_is_no_audio(tmp_path, behind, capfd):
    expected = reading.read(write(tmp_path, "a.mp3", VBR), RATE)
    waveform, warnings = taken(write(tmp_path, "b.mp3", VBR + behind))
    assert torch.equal(waveform, expected)
    assert warnings == []
    assert capfd.readouterr() == ("", "")


def test_bytes_between_the_frames_of_an_mp3_are_left_out_with_a_warning(tmp_path):
    place = VBR.index(VBR[:2], 20_000)
    waveform, (warning,) = taken(write(tmp_path, "a.mp3", VBR[:place] + b"\xff\xfb" * 500 + VBR[place:]))
    assert len(waveform) / RATE == pytest.approx(10.0, abs=0.1)
    assert "1000 bytes between its frames" in warning


@pytest.mark.parametrize("mode", ["VARIABLE", "CONSTANT"])
def test_an_excerpt_of_an_mp3_of_a_low_bit_rate_is_a_part_of_the_whole(audio_file, mode, capfd):
    t = np.arange(40 * RATE) / RATE
    tones = 0.3 * np.sin(2 * np.pi * (200 + 15 * t) * t) * (np.sin(2 * np.pi * 3 * t) > 0)
    path = audio_file("a.mp3", tones, bitrate_mode=mode, compression_level=0.7)
    whole = reading.read(path, RATE)
    with AudioFile(path) as file:
        for start in np.linspace(0.1, 25.0, 20):
            first = round(start * RATE)
            assert (file.excerpt(RATE, start, 0.5) - whole[first : first + RATE // 2]).abs().max() < 1e-5
        assert capfd.readouterr() == ("", "")
        for start in np.linspace(31.0, 39.0, 10):
            first = round(start * RATE)
            assert (file.excerpt(RATE, start, 0.5) - whole[first : first + RATE // 2]).abs().max() < 1e-5


# Sizes of samples

MISCOUNTED = {
    "zero": lambda size: 0,
    "half": lambda size: size // 2,
    "44 more": lambda size: size + 44,
    "512 more": lambda size: size + 512,
    "2 more": lambda size: size + 2,
}


@pytest.mark.parametrize("wrong", MISCOUNTED)
@pytest.mark.parametrize("format", ["WAV", "AIFF", "W64", "RF64", "AU", "CAF"])
def test_a_wrong_size_of_the_samples_is_warned_of(tmp_path, format, wrong):
    expected = reading.read(write(tmp_path, f"a.{format.lower()}", encoded(format)), RATE)
    path = write(tmp_path, f"b.{format.lower()}", with_size(format, MISCOUNTED[wrong]))
    waveform, (warning,) = taken(path)
    assert torch.equal(waveform, expected)
    assert "the header counts" in warning
    assert warning.endswith("2 s are there")


@pytest.mark.parametrize("wrong", ["zero", "half", "44 more", "512 more", "2 more"])
@pytest.mark.parametrize("format", ["WAV", "AIFF", "W64", "RF64"])
def test_both_sizes_may_be_wrong(tmp_path, format, wrong):
    path = write(tmp_path, f"a.{format.lower()}", with_size(format, MISCOUNTED[wrong], MISCOUNTED[wrong]))
    waveform, warnings = taken(path)
    assert len(waveform) == 2 * RATE
    assert len(warnings) == 1


@pytest.mark.parametrize("times", [1.5, 2.0, 50.0])
@pytest.mark.parametrize("format", ["WAV", "AIFF", "W64", "RF64"])
def test_a_size_far_too_large_is_a_miscount_where_the_size_of_all_is_right(tmp_path, format, times):
    path = write(tmp_path, f"a.{format.lower()}", with_size(format, lambda size: int(times * size)))
    waveform, (warning,) = taken(path)
    assert len(waveform) == 2 * RATE
    assert "the header counts" in warning


@pytest.mark.parametrize("format", ["WAV", "AIFF", "AU", "CAF", "W64", "RF64"])
def test_the_largest_size_counts_nothing(tmp_path, format):
    largest = {"AU": 2**32 - 1, "WAV": 2**32 - 1, "AIFF": 2**32 - 1, "CAF": -1}.get(format, 2**64 - 1)
    waveform, warnings = taken(write(tmp_path, f"a.{format.lower()}", with_size(format, lambda size: largest)))
    assert len(waveform) == 2 * RATE
    assert warnings == []


@pytest.mark.parametrize("subtype", ["IMA_ADPCM", "MS_ADPCM", "ULAW", "GSM610", "FLOAT", "PCM_24"])
def test_a_recording_that_was_not_closed_is_read_in_any_codec(tmp_path, subtype):
    content = encoded("WAV", sample_rate=8_000, subtype=subtype)
    expected = reading.read(write(tmp_path, "a.wav", content), 8_000)
    path = write(tmp_path, "b.wav", patched(content, content.index(b"data") + 4, bytes(4)))
    waveform, warnings = taken(path, sample_rate=8_000)
    assert abs(len(waveform) - len(expected)) <= 320
    shorter = min(len(waveform), len(expected))
    assert torch.equal(waveform[:shorter], expected[:shorter])
    assert len(warnings) == 1


@pytest.mark.parametrize("size", [0, 1_000, 60_000, 0x7FFFFFFF, 0xFFFFFFFF, 128_044])
@pytest.mark.parametrize("subtype", ["PCM_16", "PCM_24", "FLOAT"])
def test_chunks_at_the_end_are_no_samples_whatever_is_counted(tmp_path, subtype, size):
    content = encoded("WAV", subtype=subtype)
    expected = reading.read(write(tmp_path, "a.wav", content), RATE)
    content = patched(content, content.index(b"data") + 4, struct.pack("<I", size))
    waveform, _ = taken(write(tmp_path, "b.wav", content + b"LIST\x0b\0\0\0INFOICMT123\0" + b"id3 \4\0\0\0abcd"))
    assert torch.equal(waveform, expected)


def test_an_rf64_whose_sizes_were_not_written_is_read_whole(tmp_path):
    content = patched(encoded("RF64"), 20, bytes(24))
    content = patched(content, content.index(b"data") + 4, struct.pack("<I", 2 * 2 * RATE))
    waveform, (warning,) = taken(write(tmp_path, "a.wav", content))
    assert len(waveform) == 2 * RATE
    assert "the header counts 0 s of audio, 2 s are there" in warning


@pytest.mark.parametrize("size", [0, 10_000, 0xFFFFFFFF])
def test_an_mp3_in_a_wav_is_read_whole(tmp_path, size):
    content = mp3_in_wav(2.0)
    expected = reading.read(write(tmp_path, "a.wav", content), RATE)
    path = write(tmp_path, "b.wav", patched(content, content.index(b"data") + 4, struct.pack("<I", size)))
    waveform, _ = taken(path)
    assert torch.equal(waveform, expected)


@pytest.mark.parametrize(
    ("format", "subtype"),
    [("WAV", "GSM610"), ("WAV", "NMS_ADPCM_32"), ("AU", "G721_32"), ("AU", "G723_40"), ("AIFF", "DWVW_16")],
)
def test_an_excerpt_of_what_cannot_be_sought_is_a_part_of_the_whole(tmp_path, format, subtype):
    path = write(tmp_path, "a", encoded(format, sample_rate=8_000, subtype=subtype))
    with AudioFile(path) as file:
        assert torch.equal(file.excerpt(8_000, 1.25, 0.5), file.read(8_000)[10_000:14_000])


BEHIND = {
    "text": b"made by some recorder|" * 20,
    "zeros": bytes(70_000),
    "a tag": ID3V1,
    "a chunk": b"LIST\x0a\0\0\0INFOICMT12",
    "a chunk that is cut": b"bext\0\2\0\0" + bytes(20),
}


@pytest.mark.parametrize("behind", BEHIND.values(), ids=BEHIND)
def test_what_lies_behind_a_wav_is_no_audio(tmp_path, behind):
    waveform, warnings = taken(write(tmp_path, "a.wav", WAV + behind))
    assert len(waveform) == 2 * RATE
    assert warnings == []


def test_a_few_unknown_bytes_behind_a_wav_are_warned_of(tmp_path):
    waveform, (warning,) = taken(write(tmp_path, "a.wav", WAV + np.random.default_rng(0).bytes(300)))
    assert len(waveform) == 2 * RATE
    assert warning.endswith("300 bytes behind the end of its audio are not read")


@pytest.mark.parametrize("trailing", [b"", b"LIST\x0a\0\0\0INFOICMT12"])
@pytest.mark.parametrize("form", [(1, 2, 16_000, 64_000, 4, 16), (3, 1, 48_000, 192_000, 4, 32)])
def test_a_wav_beyond_4_gb_is_read_to_its_end(tmp_path, form, trailing):
    path, n_bytes = tmp_path / "a.wav", 5_000_000_000
    size = n_bytes + 36
    header = struct.pack("<4sI8sIHHIIHH4sI", b"RIFF", size % 2**32, b"WAVEfmt ", 16, *form, b"data", n_bytes % 2**32)
    last = np.full(form[3], 0x3C, np.uint8).tobytes()  # the last second; the rest of the file takes no room on the disk
    with path.open("wb") as file:
        file.write(header)
        file.seek(len(header) + n_bytes - len(last))
        file.write(last + trailing)
    warnings: list[str] = []
    with AudioFile(path, warn=warnings.append) as file:
        assert file.seconds == file.duration() == n_bytes / form[3]
        assert (file.excerpt(form[2], n_bytes / form[3] - 2.0, 2.0).abs() > 0).sum() == form[2]
    assert "the header counts 1" in warnings[0] or "the header counts 3" in warnings[0]


# FLAC


@pytest.mark.parametrize("total", [1, 32_000, 63_999, 64_001, 96_000, 128_000])
def test_a_flac_that_counts_other_samples_is_read_whole(tmp_path, total):
    path = write(tmp_path, "a.flac", with_total(FLAC, total))
    waveform, (warning,) = taken(path)
    assert torch.equal(waveform, reading.read(write(tmp_path, "b.flac", FLAC), RATE))
    assert f"the header counts {total / RATE:.7g} s of audio, 2 s are there" in warning
    with AudioFile(path, warn=warnings_to_nowhere) as file:
        assert torch.equal(file.excerpt(RATE, 1.5, 0.25), waveform[48_000:56_000])


def warnings_to_nowhere(message: str) -> None:
    pass


@pytest.mark.parametrize("total", [0, 1, 32_000, 128_000])
def test_a_tag_in_front_of_a_flac_hides_nothing(tmp_path, total):
    waveform, warnings = taken(write(tmp_path, "a.flac", 2 * ID3 + with_total(FLAC, total)))
    assert torch.equal(waveform, reading.read(write(tmp_path, "b.flac", FLAC), RATE))
    assert len(warnings) == (total > 0)


# What is lost

DAMAGED = {
    "half a wav": ("a.wav", WAV[: len(WAV) // 2], "cut short after 1.000 s", 1.0),
    "half a long wav": ("a.wav", encoded("WAV", 20.0)[: 600_000], "cut short after 9.374 s", 9.374),
    "wav without its last byte": ("a.wav", WAV[:-1], "cut short after 2.000 s", 2.0),
    "half an aiff": ("a.aiff", encoded("AIFF")[:64_000], "cut short after 0.999 s", 0.999),
    "half a caf": ("a.caf", encoded("CAF")[:68_096], "cut short after 1.000 s", 1.0),
    "half an au": ("a.au", encoded("AU")[:64_024], "cut short after 1.000 s", 1.0),
    "half a w64": ("a.w64", encoded("W64")[:64_104], "cut short after 1.000 s", 1.0),
    "half an rf64": ("a.rf64", encoded("RF64")[:64_104], "cut short after 1.000 s", 1.0),
    "half an aiff of ima4": ("a.aifc", encoded("AIFF", subtype="IMA_ADPCM")[:17_088], "cut short after 1.000 s", 1.0),
    "half an au of g.721": ("a.au", encoded("AU", subtype="G721_32")[:16_044], "cut short after 1.00[0-3] s", None),
    "half a sphere": ("a.nist", encoded("NIST")[:65_024], "cut short after 1.000 s", 1.0),
    "half a tagged flac": ("a.flac", ID3 + FLAC[: len(FLAC) // 2], "damaged after 0.896 s", 0.896),
    "half an mp3 in a wav": ("a.wav", mp3_in_wav(2.0)[:9_000], "cut short after [01]", None),
    "half a flac": ("a.flac", FLAC[: len(FLAC) // 2], "(cut short|damaged) after 0.896 s", 0.896),
    "half a flac of unknown length": ("a.flac", with_total(FLAC, 0)[: len(FLAC) // 2], "damaged after 0.896 s", 0.896),
    "flac that ends in zeros": ("a.flac", FLAC[:-3_000] + bytes(3_000), "damaged after 1.920 s", 1.92),
    "flac with zeros in it": ("a.flac", patched(FLAC, 50_000, bytes(300)), "damaged after [01]", None),
    "ogg without its last page": ("a.ogg", OGG[: OGG.rindex(b"OggS")], "cut short after 1.526 s", 1.526),
    "ogg before zeros": ("a.ogg", OGG + bytes(70_000), "cut short after 2.000 s", 2.0),
    "ogg with zeros in it": ("a.ogg", patched(OGG, 20_000, bytes(100)), "damaged after [01].* wrong checksum", None),
    "ogg without a page": (
        "a.ogg",
        (lambda at: OGG[: at[-3]] + OGG[at[-2] :])([i for i in range(len(OGG)) if OGG.startswith(b"OggS\0", i)]),
        "damaged after [01].* a page is missing",
        None,
    ),
    "half a second ogg": ("a.ogg", OGG + OGG[: len(OGG) // 2], "cut short after [23]", None),
    "half an opus": ("a.opus", LONG_OPUS[: len(LONG_OPUS) // 2], "cut short after [1-4]", None),
    "half an mp3": ("a.mp3", VBR[: len(VBR) // 2], "cut short after [1-4]", None),
    "mp3 that ends in zeros": ("a.mp3", MP3[:-2_000] + bytes(2_000), "cut short after 1.[6-9]", None),
}  # fmt: skip


@pytest.mark.parametrize(("name", "content", "message", "seconds"), DAMAGED.values(), ids=DAMAGED)
def test_a_damaged_file_is_refused_or_taken_up_to_the_damage(tmp_path, name, content, message, seconds):
    path = write(tmp_path, name, content)
    with pytest.raises(AudioError, match=rf"{name}: {message}.*--keep-damaged.*keep_damaged=True"):
        reading.read(path, RATE)
    warnings: list[str] = []
    with AudioFile(path, keep_damaged=True, warn=warnings.append) as file:
        waveform = file.read(RATE)
        if seconds is not None:
            assert len(waveform) / RATE == pytest.approx(seconds, abs=2e-3)
        assert (file.excerpt(RATE, 0.25, 0.25) - waveform[8_000:16_000]).abs().max() < 1e-5
    assert warnings[-1].endswith("what is there was taken")


def test_nothing_to_keep_is_an_error(tmp_path):
    with (
        pytest.raises(AudioError, match="0 samples"),
        AudioFile(write(tmp_path, "a.wav", WAV[:44]), keep_damaged=True, warn=warnings_to_nowhere) as file,
    ):
        file.read(RATE)


def test_a_warning_reaches_who_reads_a_file_alone(tmp_path):
    path = write(tmp_path, "a.wav", WAV[: len(WAV) // 2])
    with pytest.warns(UserWarning, match=r"a\.wav: cut short after 1\.000 s; what is there was taken"):
        assert len(reading.read(path, RATE, keep_damaged=True)) == 31_989


# Anything

WHOLE = {"a.wav": WAV, "a.flac": FLAC, "a.ogg": OGG, "a.mp3": MP3, "a.aiff": encoded("AIFF"), "a.caf": encoded("CAF"),
         "a.w64": encoded("W64"), "a.rf64": encoded("RF64"), "a.au": encoded("AU"), "a.opus": OPUS}  # fmt: skip


@pytest.mark.parametrize("keep_damaged", [False, True])
@pytest.mark.parametrize("name", WHOLE)
def test_random_damage_gives_audio_or_an_audio_error(tmp_path, name, keep_damaged, capfd):
    rng = np.random.default_rng(0)
    for _ in range(30):
        content = bytearray(WHOLE[name])
        for place in rng.integers(0, rng.choice([64, len(content)]), rng.integers(1, 5)):
            content[place] = rng.integers(256)
        content = bytes(content[: rng.integers(1, len(content))] if rng.random() < 0.3 else content)
        try:
            with AudioFile(write(tmp_path, name, content), keep_damaged=keep_damaged, warn=warnings_to_nowhere) as file:
                waveform = file.read(16_000)
                file.excerpt(16_000, 0.0, 0.5)
        except AudioError:
            continue
        assert torch.isfinite(waveform).all()
        assert 0 < len(waveform) / 16_000 < 100
    assert "Traceback" not in capfd.readouterr().err


@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_file_is_read_as_libsndfile_reads_it(tmp_path, name):
    path = write(tmp_path, name, WHOLE[name])
    samples, rate = soundfile.read(path, dtype="float32")
    waveform, warnings = taken(path, sample_rate=rate)
    np.testing.assert_array_equal(waveform, samples)
    assert warnings == []


def test_little_is_read_of_a_large_file_before_it_is_decoded(tmp_path):
    path = tmp_path / "a.wav"
    with path.open("wb") as file:
        file.write(patched(WAV[:44], 40, struct.pack("<I", 2_000_000_000)))
        file.truncate(2_000_000_044)
    with AudioFile(path, warn=warnings_to_nowhere) as file:
        first = next(file.blocks(RATE, 0.5))
        assert len(first) == RATE // 2
    assert os.path.getsize(path) == 2_000_000_044


CROWDED = {
    "random bytes": np.random.default_rng(0).bytes(3_000_000),
    "beginnings of frames": b"\xff\xfb" * 1_000_000,
    "pages of Ogg": b"OggS\0" * 500_000,
    "streams of FLAC": b"fLaC\0\0\0\x22" * 2_000,
    "WAV files": patched(WAV[:44], 40, bytes(4)) * 2_000,
    "headers of MP3": MP3[: MP3.index(MP3[:2], 4)] * 2_000,
}


@pytest.mark.parametrize("suffix", [".mp3", ".wav", ""])
@pytest.mark.parametrize("content", CROWDED.values(), ids=CROWDED)
def test_crowded_files_are_an_answer_or_an_audio_error_at_once(tmp_path, content, suffix):
    start = time.process_time()
    with contextlib.suppress(AudioError):
        reading.read(write(tmp_path, f"a{suffix}", content), RATE)
    assert time.process_time() - start < 3.0


def test_a_wav_may_have_the_name_of_an_mp3(tmp_path):
    waveform, warnings = taken(write(tmp_path, "a.mp3", WAV))
    assert len(waveform) == 2 * RATE
    assert warnings == []
