"""What FFmpeg decodes: files made with PyAV; what it refuses; what is said without it."""

import contextlib
import io
import os
import struct
import sys
from pathlib import Path

import numpy as np
import pytest
import soundfile
import soxr
import torch

from hear_transformers.audio import containers, ffmpeg, reading
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import AudioError
from tests.conftest import tone
from tests.helpers import files, media

pytest.importorskip("av")

RATE = 44_100
TONE = tone(1.5, RATE)

# Name: how it is made, its first sample is that many samples late, how many there are, signal to noise ratio in dB.
FILES = {
    "a.m4a": (("ipod", "aac", {}), 0, 66_150, 25),
    "a.mp4": (("mp4", "aac", {"video": "mpeg4"}), 0, 66_150, 25),
    "first.mp4": (("mp4", "aac", {"video": "mpeg4", "options": {"movflags": "faststart"}}), 0, 66_150, 25),
    "parts.mp4": (("mp4", "aac", {"options": {"movflags": "frag_every_frame+empty_moov"}}), 1_024, 67_584, 25),
    "alac.m4a": (("ipod", "alac", {}), 0, 66_150, 90),
    "a.mov": (("mov", "pcm_s16le", {"video": "mpeg4"}), 0, 66_150, 80),
    "a.mkv": (("matroska", "flac", {"video": "mpeg4"}), 0, 66_150, 80),
    "a.aac": (("adts", "aac", {}), 1_024, 67_584, 25),
    "a.wma": (("asf", "wmav2", {}), -2_048, 65_536, 20),
    "a.flv": (("flv", "aac", {"video": "flv1"}), 1_024, 67_584, 25),
    "a.m2ts": (("mpegts", "aac", {"video": "mpeg2video", "options": {"mpegts_m2ts_mode": "1"}}), 1_024, 67_584, 25),
    "a.ts": (("mpegts", "mp2", {}), 481, 66_816, 30),
    "a.mpg": (("mpeg", "mp2", {"video": "mpeg1video"}), 481, 66_816, 30),
    "a.avi": (("avi", "pcm_s16le", {"video": "mpeg4"}), 0, 66_150, 80),
    "a.wv": (("wv", "wavpack", {"sample_format": "s16p"}), 0, 66_150, 80),
    "a.caf": (("caf", "adpcm_ima_qt", {}), 0, 66_176, 25),
}  # fmt: skip


def make(folder: Path, name: str, samples: np.ndarray = TONE, rate: int = RATE) -> Path:
    """Make one of `FILES`."""
    (container, codec, options), *_ = FILES[name]
    return media.write(folder / name, samples, rate, container, codec, **options)


def noise_below_signal(waveform: np.ndarray, expected: np.ndarray) -> float:
    """Give the signal to noise ratio in dB."""
    return 10 * np.log10((expected**2).sum() / ((waveform - expected) ** 2).sum())


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_waveform_is_the_one_that_was_written(tmp_path, name):
    _, delay, length, least_db = FILES[name]
    waveform = reading.read(make(tmp_path, name), RATE).numpy()
    assert waveform.dtype == np.float32
    assert len(waveform) == length
    heard, written = waveform[max(0, delay) :], TONE[max(0, -delay) :]
    shorter = min(len(heard), len(written))
    assert noise_below_signal(heard[:shorter], written[:shorter]) > least_db


def test_webm_with_opus_has_the_length_that_was_written(tmp_path):
    path = media.write(tmp_path / "a.webm", tone(1.5, 48_000), 48_000, "webm", "libopus", video="libvpx")
    waveform = reading.read(path, 48_000).numpy()
    assert len(waveform) == 72_000
    assert noise_below_signal(waveform, tone(1.5, 48_000)) > 25


def test_amr_is_read(tmp_path):
    path = media.write(tmp_path / "a.amr", tone(1.5, 8_000), 8_000, "amr", "libopencore_amrnb", bit_rate=12_200)
    assert files.duration(path) == pytest.approx(1.5, abs=0.03)


WIDTHS = {
    "pcm_u8": "PCM_U8",
    "pcm_s16le": "PCM_16",
    "pcm_s24le": "PCM_24",
    "pcm_s32le": "PCM_32",
    "pcm_f32le": "FLOAT",
    "pcm_f64le": "DOUBLE",
}


@pytest.mark.parametrize("codec", WIDTHS)
def test_samples_of_any_width_are_those_that_libsndfile_reads(audio_file, tmp_path, codec):
    samples = np.random.default_rng(0).integers(-128, 128, (3_000, 2)) / 128
    wav = audio_file(samples=samples, subtype=WIDTHS[codec])
    path = media.write(tmp_path / "a.mkv", samples.T, 32_000, "matroska", codec)
    assert torch.equal(reading.read(path, 32_000), reading.read(wav, 32_000))


def test_integers_become_floats_exactly_up_to_24_bits():
    samples = np.array([-(2**31), -(2**31) + 256, -256, 0, 256, 2**31 - 256], np.int32)
    assert np.array_equal(ffmpeg.as_float(samples) * 2.0**31, samples.astype(np.float64))


@pytest.mark.parametrize("channels", [2, 6, 8])
def test_channels_are_averaged(tmp_path, channels):
    samples = np.random.default_rng(0).integers(-1_000, 1_000, (channels, 5_000)) / 32_768
    path = media.write(tmp_path / "a.wv", samples, RATE, "wv", "wavpack", sample_format="s16p")
    np.testing.assert_allclose(reading.read(path, RATE), samples.mean(0), atol=1e-7)


@pytest.mark.parametrize("sample_rate", [16_000, 32_000, 48_000])
def test_any_rate_becomes_the_wanted_one_by_soxr(tmp_path, sample_rate):
    path = make(tmp_path, "a.m4a")
    expected = soxr.resample(reading.read(path, RATE).numpy(), RATE, sample_rate, quality="HQ")
    np.testing.assert_array_equal(reading.read(path, sample_rate), expected)


@pytest.mark.parametrize("block_seconds", [0.001, 0.37, 5.0])
def test_blocks_of_any_length_join_to_the_whole(tmp_path, block_seconds):
    path = make(tmp_path, "a.m4a")
    assert torch.equal(torch.cat(list(files.blocks(path, 32_000, block_seconds))), reading.read(path, 32_000))


def test_decoding_stops_where_the_reader_stops(tmp_path):
    assert len(next(files.blocks(make(tmp_path, "a.aac"), RATE, block_seconds=0.5))) == RATE // 2


@pytest.mark.parametrize("start", [0.0, 0.003, 0.7])
@pytest.mark.parametrize("name", ["a.m4a", "parts.mp4", "a.mkv", "a.aac", "a.wma", "a.m2ts"])
def test_an_excerpt_is_a_part_of_the_whole(tmp_path, name, start):
    path = make(tmp_path, name, np.random.default_rng(0).uniform(-0.5, 0.5, len(TONE)))
    first = round(start * 32_000)
    excerpt = files.excerpt(path, 32_000, start, 0.5)
    assert len(excerpt) == 16_000
    assert (excerpt - reading.read(path, 32_000)[first : first + 16_000]).abs().max() < 1e-5


def test_an_excerpt_ends_with_the_file(tmp_path):
    path = make(tmp_path, "a.m4a")
    assert torch.allclose(files.excerpt(path, 32_000, 1.0, 60.0), reading.read(path, 32_000)[32_000:], atol=1e-5)


def test_an_excerpt_behind_the_end_raises_audio_error(tmp_path):
    with pytest.raises(AudioError, match=r"a\.m4a: ends before 2\.000 s"):
        files.excerpt(make(tmp_path, "a.m4a"), 16_000, 2.0, 1.0)


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_the_duration_is_that_of_what_is_read(tmp_path, name):
    path = make(tmp_path, name)
    assert files.duration(path) == len(reading.read(path, RATE)) / RATE


def test_a_duration_that_the_header_does_not_know_is_not_looked_for_by_decoding(tmp_path):
    with AudioFile(make(tmp_path, "a.m4a")) as file:
        assert file.seconds is not None
    with AudioFile(make(tmp_path, "a.aac")) as file:
        assert file.seconds is None


@pytest.mark.slow
@pytest.mark.parametrize("suffix", ["", ".wav", ".mp3", ".au", ".raw", ".ogg", ".txt"])
@pytest.mark.parametrize("name", ["a.m4a", "a.mkv", "a.aac", "a.ts"])
def test_the_suffix_does_not_matter(tmp_path, name, suffix):
    path = make(tmp_path, name)
    expected = reading.read(path, 32_000)
    assert torch.equal(reading.read(path.rename(tmp_path / f"other{suffix}"), 32_000), expected)


def test_a_wav_named_m4a_is_read(audio_file):
    path = audio_file("a.m4a", format="WAV")
    np.testing.assert_array_equal(reading.read(path, 32_000), soundfile.read(path, dtype="float32")[0])


@pytest.mark.parametrize("name", ["concat:a.mp4", "file:a.mp4", "pipe:0", os.fsdecode(b"\xff.mp4")])
def test_a_name_is_no_address_and_need_not_be_text(tmp_path, name):
    path = make(tmp_path, "a.m4a").rename(tmp_path / name)
    assert len(reading.read(path, RATE)) == len(TONE)


def test_a_tag_in_front_does_not_matter(tmp_path):
    path = make(tmp_path, "a.aac")
    expected = reading.read(path, RATE)
    path.write_bytes(b"ID3\4\0\0\0\0\1\0" + bytes(128) + path.read_bytes())
    assert torch.equal(reading.read(path, RATE), expected)


def test_bytes_behind_the_end_do_not_matter(tmp_path):
    path = make(tmp_path, "a.m4a")
    expected = reading.read(path, RATE)
    path.write_bytes(path.read_bytes() + b"TAG of some program" + bytes(128))
    assert torch.equal(reading.read(path, RATE), expected)


def test_the_first_of_several_equal_audio_streams_is_read(tmp_path):
    path = media.write(tmp_path / "a.mka", TONE, RATE, "matroska", "flac", n_audio=2)
    assert noise_below_signal(reading.read(path, RATE).numpy(), TONE) > 80


def test_video_without_audio_raises_audio_error(tmp_path):
    path = media.write(tmp_path / "a.mp4", TONE, RATE, "mp4", "aac", video="mpeg4", n_audio=0)
    with pytest.raises(AudioError, match=r"a\.mp4: MP4, M4A or MOV with no audio stream"):
        reading.read(path, RATE)


def test_a_codec_that_is_not_known_raises_audio_error(tmp_path):
    path = make(tmp_path, "a.m4a")
    path.write_bytes(path.read_bytes().replace(b"mp4a", b"xxxx").replace(b"esds", b"free"))
    with pytest.raises(
        AudioError, match=r"a\.m4a: MP4, M4A or MOV with an audio stream that FFmpeg has no decoder for"
    ):
        reading.read(path, RATE)


def test_audio_whose_rate_changes_raises_audio_error(tmp_path):
    first, second = make(tmp_path, "a.aac"), media.write(tmp_path / "b.aac", TONE, 48_000, "adts", "aac")
    first.write_bytes(first.read_bytes() + second.read_bytes())
    with pytest.raises(AudioError, match=r"a\.aac: the sample rate changes from 44100 to 48000 Hz at 1\.5"):
        reading.read(first, RATE)


def test_audio_whose_channels_change_is_averaged(tmp_path):
    first, second = (
        make(tmp_path, "a.aac"),
        media.write(tmp_path / "b.aac", np.stack([TONE, TONE]), RATE, "adts", "aac"),
    )
    parts = [reading.read(path, RATE) for path in (first, second)]
    first.write_bytes(first.read_bytes() + second.read_bytes())
    waveform = reading.read(first, RATE)
    assert len(waveform) == sum(map(len, parts))
    assert (waveform[-30_000:] - parts[1][-30_000:]).abs().max() < 1e-5


def test_a_sample_that_is_no_number_is_named_by_its_place(tmp_path):
    samples = TONE.copy()
    samples[RATE] = np.nan
    path = media.write(tmp_path / "a.mkv", samples, RATE, "matroska", "pcm_f32le")
    with pytest.raises(AudioError, match=r"sample nan at 1\.000 s"):
        reading.read(path, RATE)


@pytest.mark.slow
@pytest.mark.parametrize("share", [0.3, 0.6, 0.95])
@pytest.mark.parametrize("name", sorted({*FILES} - {"a.ts", "a.m2ts", "a.mpg", "parts.mp4"}))
def test_a_file_cut_short_raises_audio_error(tmp_path, name, share):
    path = make(tmp_path, name, np.random.default_rng(0).uniform(-0.5, 0.5, len(TONE)))
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(AudioError, match=rf"{path.name}: .*(cut short|damaged)"):
        reading.read(path, RATE)


def test_an_avi_cut_between_two_packets_raises_audio_error(tmp_path):
    path = media.write(tmp_path / "a.avi", TONE, RATE, "avi", "mp2", video="mpeg4")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=r"a\.avi: cut short"):
        reading.read(path, RATE)


def test_a_recording_that_ends_long_before_its_header_says_raises_audio_error(tmp_path):
    path = media.write(tmp_path / "a.flv", tone(4, RATE), RATE, "flv", "aac")
    content = path.read_bytes()
    # Cut where a tag ends: after eleven bytes of header, its data, and four bytes of its size (annex E.4 of FLV).
    place = 13
    while place < len(content) // 2:
        place += 15 + int.from_bytes(content[place + 1 : place + 4], "big")
    path.write_bytes(content[:place])
    with pytest.raises(AudioError, match=r"a\.flv: cut short after [12]\."):
        reading.read(path, RATE)


@pytest.mark.parametrize("name", ["a.m4a", "a.aac", "a.mkv", "a.wv"])
def test_damage_in_the_middle_raises_audio_error_and_prints_nothing(tmp_path, name, capfd):
    path = make(tmp_path, name, np.random.default_rng(0).uniform(-0.5, 0.5, len(TONE)))
    content = bytearray(path.read_bytes())
    middle = len(content) // 2
    content[middle : middle + 2_000] = np.random.default_rng(1).bytes(2_000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="damaged"):
        reading.read(path, RATE)
    assert capfd.readouterr() == ("", "")


def test_a_table_of_more_samples_than_bytes_raises_audio_error(tmp_path):
    path = make(tmp_path, "a.m4a")
    content = bytearray(path.read_bytes())
    place = content.index(b"stsz") + 8
    struct.pack_into(">II", content, place, 1, 80_000_000)  # FFmpeg would make 2.8 GB of it
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"damaged: it claims 80000000 samples in \d+ bytes"):
        reading.read(path, RATE)


def test_a_fragment_of_more_samples_than_bytes_raises_audio_error(tmp_path):
    path = make(tmp_path, "parts.mp4")
    content = bytearray(path.read_bytes())
    place = content.index(b"trun") + 4
    struct.pack_into(">II", content, place, 1, 80_000_000)
    path.write_bytes(content)
    with pytest.raises(AudioError, match=r"damaged: it claims 80000\d+ samples"):
        reading.read(path, RATE)


@pytest.mark.slow
@pytest.mark.parametrize("name", ["a.m4a", "a.mkv", "a.wma", "a.aac", "a.flv"])
def test_a_large_claim_in_a_header_is_an_answer_or_an_audio_error(tmp_path, name):
    path = make(tmp_path, name, TONE[:8_000])
    content = path.read_bytes()
    start = max(0, content.find(b"moov"))
    for place in range(start + 4, min(start + 250, len(content)), 7):
        path.write_bytes(content[:place] + b"\x7f\xff\xff\xff" + content[place + 4 :])
        with contextlib.suppress(AudioError):
            assert len(reading.read(path, 16_000)) < 16_000


def without_pyav(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "av", None)


@pytest.mark.parametrize("name", ["a.m4a", "a.wma"])
def test_without_pyav_the_error_says_what_to_install(tmp_path, monkeypatch, name):
    path = make(tmp_path, name)
    without_pyav(monkeypatch)
    with pytest.raises(AudioError, match=rf"{name}: .* needs PyAV.*pip install 'hear_transformers\[av\]'"):
        reading.read(path, RATE)


def test_without_pyav_what_libsndfile_knows_is_read(audio_file, monkeypatch):
    without_pyav(monkeypatch)
    assert len(reading.read(audio_file("a.mp3"), 32_000)) == 32_000


@pytest.mark.slow
def test_in_a_folder_such_files_are_embedded(embed_audio, audio_file, tmp_path):
    audio_file("clips/a.wav")
    make(tmp_path / "clips", "a.m4a")
    assert embed_audio("clips").exit_code == 0
    assert sorted(path.name for path in tmp_path.glob("*.npz")) == ["a.m4a.npz", "a.wav.npz"]


@pytest.mark.slow
def test_in_a_folder_such_files_fail_without_pyav_and_the_others_are_written(
    embed_audio, audio_file, tmp_path, monkeypatch
):
    audio_file("clips/b.wav")
    make(tmp_path / "clips", "a.m4a")
    without_pyav(monkeypatch)
    result = embed_audio("clips")
    assert result.exit_code == 1
    assert result.stderr.startswith("Error: clips/a.m4a: MP4, M4A or MOV needs PyAV")
    assert [path.name for path in tmp_path.glob("*.npz")] == ["b.npz"]


@pytest.mark.parametrize("name", FILES)
def test_a_folder_knows_the_suffix(name):
    assert name.endswith(reading.SUFFIXES) or name == "a.ts"


@pytest.mark.parametrize("name", ["a.wav", "a.flac", "a.ogg", "a.mp3", "a.aiff", "a.au", "a.caf", "a.w64", "a.rf64"])
def test_what_libsndfile_knows_is_left_to_it(audio_file, name):
    with audio_file(name).open("rb") as file:
        assert containers.recognise(file) is None


def test_a_list_of_addresses_is_not_opened(tmp_path):
    path = tmp_path / "a.mp4"
    path.write_text("#EXTM3U\n#EXTINF:1,\nhttp://localhost/a.ts\n")
    with pytest.raises(AudioError, match="not audio"):
        reading.read(path, RATE)


def test_an_mp4_whose_last_box_reaches_to_the_end_is_whole():
    content = struct.pack(">I4sQ", 16, b"ftyp", 0) + struct.pack(">I4s", 0, b"mdat") + bytes(100)
    assert containers.iso_flaw(io.BytesIO(content), len(content)) == ""


def test_an_mp4_with_a_large_box_that_is_cut_says_how_many_bytes_lack():
    content = struct.pack(">I4sQ", 16, b"ftyp", 0) + struct.pack(">I4sQ", 1, b"mdat", 2**33) + bytes(100)
    assert containers.iso_flaw(io.BytesIO(content), len(content)) == f"cut short: 132 bytes of {2**33 + 16}"


# What libsndfile refuses

REFUSED = {
    "g726.wav": ("wav", "g726", 8_000, {}),
    "g722.wav": ("wav", "g722", 16_000, {}),
    "g723.wav": ("wav", "g723_1", 8_000, {"bit_rate": 6_300}),
    "mp2.wav": ("wav", "mp2", 32_000, {}),
    "yamaha.wav": ("wav", "adpcm_yamaha", 32_000, {}),
    "wma.wav": ("wav", "wmav2", 44_100, {}),
    "ac3.wav": ("wav", "ac3", 48_000, {}),
    "flac.ogg": ("ogg", "flac", 44_100, {}),
    "flac.oga": ("oga", "flac", 48_000, {}),
    "a.ac3": ("ac3", "ac3", 48_000, {}),
    "a.eac3": ("eac3", "eac3", 48_000, {}),
    "a.tta": ("tta", "tta", 44_100, {}),
    "g722.au": ("au", "g722", 16_000, {}),
    "ac3.caf": ("caf", "ac3", 48_000, {}),
    "alac.caf": ("caf", "alac", 44_100, {}),
}  # fmt: skip


def make_refused(folder: Path, name: str, seconds: float = 2.0) -> tuple[Path, int]:
    """Make one of `REFUSED`; give its sample rate too."""
    container, codec, rate, options = REFUSED[name]
    return media.write(folder / name, tone(seconds, rate), rate, container, codec, **options), rate


@pytest.mark.parametrize("name", REFUSED)
def test_what_libsndfile_refuses_is_decoded_by_ffmpeg(tmp_path, name):
    path, rate = make_refused(tmp_path, name)
    with pytest.raises(soundfile.SoundFileError):
        soundfile.SoundFile(path)
    waveform = reading.read(path, rate).numpy()
    assert len(waveform) / rate == pytest.approx(2.0, abs=0.06)
    # Some begin late: the place of the best likeness is looked for.
    expected = tone(2.0, rate)[rate : rate + rate // 20]
    likeness = np.correlate(waveform, expected)
    heard = waveform[likeness.argmax() :][: len(expected)]
    assert np.corrcoef(heard, expected)[0, 1] > 0.95


@pytest.mark.parametrize("name", ["g726.wav", "flac.ogg", "a.ac3", "a.tta"])
def test_what_libsndfile_refuses_needs_pyav(tmp_path, monkeypatch, name):
    path, rate = make_refused(tmp_path, name)
    without_pyav(monkeypatch)
    with pytest.raises(AudioError, match=rf"{name}: not audio that libsndfile .*pip install 'hear_transformers\[av\]'"):
        reading.read(path, rate)


def test_what_neither_decodes_is_refused_in_the_words_of_libsndfile(tmp_path, audio_file):
    content = audio_file().read_bytes()
    path = tmp_path / "a.wav"
    path.write_bytes(content[:20] + b"\x99\x99" + content[22:])  # the number of the codec
    with pytest.raises(AudioError, match=r"a\.wav: not audio that libsndfile can decode"):
        reading.read(path, RATE)


@pytest.mark.parametrize("name", ["g726.wav", "mp2.wav", "flac.ogg", "a.tta"])
def test_what_libsndfile_refuses_may_be_cut_short(tmp_path, name):
    path, rate = make_refused(tmp_path, name, 4.0)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(
        AudioError, match=rf"{name}: (damaged|cut short|damaged or cut short) after [12]\..*--keep-damaged"
    ):
        reading.read(path, rate)
    with AudioFile(path, keep_damaged=True, warn=lambda message: None) as file:
        assert len(file.read(rate)) / rate == pytest.approx(2.0, abs=1.0)


def test_a_wav_that_ffmpeg_decodes_may_count_wrongly(tmp_path):
    path, rate = make_refused(tmp_path, "g726.wav")
    expected = reading.read(path, rate)
    content = path.read_bytes()
    place = content.index(b"data") + 4
    path.write_bytes(content[:place] + bytes(4) + content[place + 4 :])
    warnings: list[str] = []
    with AudioFile(path, warn=warnings.append) as file:
        assert torch.equal(file.read(rate), expected)
    assert "the header counts 0 s of audio, 2" in warnings[0]


def test_joined_ogg_files_that_ffmpeg_decodes_are_read_one_after_the_other(tmp_path):
    path, rate = make_refused(tmp_path, "flac.ogg")
    expected = reading.read(path, rate)
    path.write_bytes(2 * path.read_bytes())
    assert torch.equal(reading.read(path, rate), torch.cat([expected, expected]))


def test_a_tta_of_more_frames_than_bytes_raises_audio_error(tmp_path):
    path, rate = make_refused(tmp_path, "a.tta")
    content = bytearray(path.read_bytes())
    struct.pack_into("<II", content, 10, 1_000, 2**32 - 1)
    path.write_bytes(content)
    with pytest.raises(AudioError, match="not audio"):
        reading.read(path, rate)


@pytest.mark.parametrize(
    "start", ["#EXTM3U\n", "ffconcat version 1.0\nfile a.wav\n", "[playlist]\n", "v=0\no=- 0 0 IN IP4"]
)
@pytest.mark.parametrize("suffix", [".wav", ".ac3", ".ogg", ".mp3", ".caf"])
def test_no_list_of_files_is_opened_for_what_libsndfile_refuses(tmp_path, audio_file, start, suffix):
    audio_file("a.wav")
    path = tmp_path / f"list{suffix}"
    path.write_text(start + "a.wav\nhttp://localhost/a.wav\n")
    with pytest.raises(AudioError, match="not audio"):
        reading.read(path, RATE)


KEPT = {
    "fast.mp4": ("mp4", "aac", {"options": {"movflags": "faststart"}}),
    "a.webm": ("webm", "libopus", {}),
    "a.mkv": ("matroska", "flac", {}),
    "a.aac": ("adts", "aac", {}),
    "a.wma": ("asf", "wmav2", {}),
    "a.wv": ("wv", "wavpack", {"sample_format": "s16p"}),
}


@pytest.mark.parametrize("name", KEPT)
def test_of_a_file_cut_short_is_taken_what_is_there(tmp_path, name):
    container, codec, options = KEPT[name]
    path = media.write(tmp_path / name, tone(4.0, 48_000), 48_000, container, codec, **options)
    expected = reading.read(path, 48_000)
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(AudioError, match=rf"{name}: (damaged|cut short) after [12]\..*--keep-damaged"):
        reading.read(path, 48_000)
    warnings: list[str] = []
    with AudioFile(path, keep_damaged=True, warn=warnings.append) as file:
        waveform = file.read(48_000)
    assert 1.0 < len(waveform) / 48_000 < 2.5
    assert torch.equal(waveform[:40_000], expected[:40_000])
    assert warnings[-1].endswith("what is there was taken")


@pytest.mark.parametrize("name", ["a.m4a", "fast.mp4", "a.wma"])
def test_a_joined_file_of_which_ffmpeg_reads_the_first_alone_is_refused(tmp_path, name):
    container, codec, options = {**KEPT, "a.m4a": ("mp4", "aac", {})}[name]
    path = media.write(tmp_path / name, tone(2.0, 48_000), 48_000, container, codec, **options)
    whole = reading.read(path, 48_000)
    path.write_bytes(2 * path.read_bytes())
    with pytest.raises(AudioError, match=r"damaged after [12]\..*another file was joined to it.*--keep-damaged"):
        reading.read(path, 48_000)
    with AudioFile(path, keep_damaged=True, warn=lambda message: None) as file:
        assert torch.equal(file.read(48_000), whole)
