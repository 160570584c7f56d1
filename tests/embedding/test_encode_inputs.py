"""Kinds of inputs of `Embedder.encode`: open files, contents, answers of servers, columns of tables, channels."""
# ruff: noqa: SIM115  # files are opened for the test that takes them

import array
import gzip
import io
import mmap
import tarfile
import tempfile
import warnings
import zipfile
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pandas
import pyarrow
import pytest
import soundfile
import torch

from hear_transformers.audio import addresses
from hear_transformers.errors import AudioError, HearTransformersWarning, OptionError
from hear_transformers.hear import get_scene_embeddings, get_timestamp_embeddings
from tests.conftest import tone


@pytest.fixture
def wav(audio_file, monkeypatch, tmp_path) -> Path:
    """Write a file, whose folder is the current one."""
    monkeypatch.chdir(tmp_path)
    path = audio_file("a.wav", seconds=0.3)
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("a.wav")
    with tarfile.open("a.tar", "w") as archive:
        archive.add("a.wav")
    with gzip.open("a.wav.gz", "wb") as file:
        file.write(path.read_bytes())
    return path


def written_to(file: Any, content: bytes) -> Any:
    file.write(content)
    file.seek(0)
    return file


def begun(content: bytes) -> io.BytesIO:
    file = io.BytesIO(b"before" + content)
    file.seek(6)
    return file


class Stream(io.RawIOBase):
    """Bytes that come a few at a time and cannot be sought, as from a server."""

    def __init__(self, content: bytes) -> None:
        self.rest = io.BytesIO(content)

    def readable(self) -> bool:
        return True

    def readinto(self, buffer) -> int:
        return self.rest.readinto(memoryview(buffer)[:1000])


OPEN: dict[str, Callable[[bytes], Any]] = {
    "file": lambda content: open("a.wav", "rb"),
    "unbuffered file": lambda content: open("a.wav", "rb", buffering=0),
    "memory": io.BytesIO,
    "memory from the middle": begun,
    "member of a zip": lambda content: zipfile.ZipFile("a.zip").open("a.wav"),
    "member of a tar": lambda content: tarfile.open("a.tar").extractfile("a.wav"),
    "gzip": lambda content: gzip.open("a.wav.gz"),
    "spooled in memory": lambda content: written_to(tempfile.SpooledTemporaryFile(2**20), content),
    "spooled on disk": lambda content: written_to(tempfile.SpooledTemporaryFile(9), content),
    "temporary": lambda content: written_to(tempfile.NamedTemporaryFile(suffix=".wav"), content),
    "map": lambda content: written_to(mmap.mmap(-1, len(content)), content),
    "Arrow": pyarrow.BufferReader,
}

CONTENTS: dict[str, Callable[[bytes], Any]] = {
    "bytes": bytes,
    "bytearray": bytearray,
    "view": memoryview,
    "view of every other": lambda content: memoryview(np.frombuffer(content, np.uint8).repeat(2).tobytes())[::2],
    "row of a dataset": lambda content: {"bytes": content, "path": "x.wav"},
    "row with an open file": lambda content: {"bytes": io.BytesIO(content), "path": None},
    "scalar of Arrow": pyarrow.scalar,
    "answer of a server": lambda content: SimpleNamespace(status_code=200, content=content),
    "stream": Stream,
}


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.filterwarnings("ignore:Implicitly cleaning up")
def test_an_open_file_is_one_input_and_keeps_its_place(small_model, wav):
    expected = small_model.encode(wav)
    for name, make in OPEN.items():
        file = make(wav.read_bytes())
        position = file.tell()
        np.testing.assert_array_equal(small_model.encode(file), expected, err_msg=name)
        assert file.tell() == position, name
        assert len(small_model.encode_timestamps(file).embeddings) == 7
        file.close()


def test_contents_of_a_file_are_one_input(small_model, wav):
    expected = small_model.encode(wav)
    for name, make in CONTENTS.items():
        np.testing.assert_array_equal(small_model.encode(make(wav.read_bytes())), expected, err_msg=name)


def test_open_files_are_several_inputs_in_a_list(small_model, wav):
    content = wav.read_bytes()
    inputs = [io.BytesIO(content), bytearray(content), wav, Stream(content)]
    rows = small_model.encode(iter(inputs), num_workers=2)
    np.testing.assert_allclose(rows, [small_model.encode(wav)] * 4, atol=1e-5)


class Upload:
    """A file of a web framework."""

    async def read(self, size: int = -1) -> bytes:
        return b""


NOT_BYTES = {
    "text file": (lambda: open("a.wav", encoding="latin-1"), OptionError, r"a\.wav: .*returns str.*'rb'"),
    "text": (lambda: io.StringIO("a.wav\n"), OptionError, r"StringIO: .*returns str, expected bytes.*splitlines"),
    "decoder": (lambda: soundfile.SoundFile("a.wav"), OptionError, "returns ndarray, expected bytes"),
    "asynchronous": (Upload, OptionError, "Upload: its read.. is asynchronous"),
    "after writing": (lambda: ended(), AudioError, r"nothing is left to read .*seek\(0\)"),
    "closed": (lambda: closed(), AudioError, "BytesIO: cannot be read .*closed"),
    "no audio": (lambda: io.BytesIO(b"no audio"), AudioError, "BytesIO: not audio"),
    "error of a server": (lambda: SimpleNamespace(status_code=404, content=b""), AudioError, "answered 404"),
    "view of numbers": (lambda: memoryview(tone(0.1)), OptionError, "numpy.asarray"),
    "numbers": (lambda: tone(0.01).tolist(), OptionError, "input 0: float: .*numpy.asarray"),
    "numbers in lists": (lambda: [tone(0.01).tolist()], OptionError, "input 0: .*numpy.asarray"),
    "array of Python": (lambda: array.array("f", [0.1, 0.2]), OptionError, "numpy.asarray"),
    "columns": (lambda: {"path": ["a.wav", "b.wav"], "label": [0, 1]}, OptionError, "columns of several"),
}


def ended() -> io.BytesIO:
    file = io.BytesIO()
    file.write(Path("a.wav").read_bytes())
    return file


def closed() -> io.BytesIO:
    file = io.BytesIO()
    file.close()
    return file


@pytest.mark.filterwarnings("ignore:unclosed")
@pytest.mark.parametrize(("make", "kind", "message"), NOT_BYTES.values(), ids=NOT_BYTES)
def test_what_is_no_open_audio_is_refused_by_its_kind(small_model, wav, make, kind, message):
    with pytest.raises(kind, match=message):
        small_model.encode(make())


def test_a_file_without_an_end_is_refused(small_model, monkeypatch):
    monkeypatch.setattr(addresses, "MOST_BYTES", 2**21)
    with pytest.raises(AudioError, match="is larger than 2097152 bytes, or has no end"):
        small_model.encode(SimpleNamespace(read=lambda size: bytes(size)))


COLUMNS: dict[str, Callable[[list[str]], Any]] = {
    "Arrow": pyarrow.array,
    "chunked": lambda paths: pyarrow.chunked_array([paths[:1], paths[1:]]),
    "table": lambda paths: pyarrow.table({"path": paths}),
    "rows of a dataset": lambda paths: pyarrow.array([{"bytes": None, "path": path} for path in paths]),
    "contents": lambda paths: pyarrow.array([Path(path).read_bytes() for path in paths]),
    "series": pandas.Series,
    "categories": lambda paths: pandas.Series(paths, dtype="category"),
    "frame": lambda paths: pandas.DataFrame({"file": paths}),
    "open files": lambda paths: pandas.Series([io.BytesIO(Path(path).read_bytes()) for path in paths]),
}


@pytest.mark.parametrize("make", COLUMNS.values(), ids=COLUMNS)
def test_a_column_is_several_inputs(small_model, wav, audio_file, make):
    paths = [str(wav), str(audio_file("b.wav", seconds=0.2))]
    np.testing.assert_array_equal(small_model.encode(make(paths)), small_model.encode(paths))


def test_a_column_of_numbers_is_a_waveform(small_model):
    samples = tone(0.3)
    of_series = small_model.encode(pandas.Series(samples), sampling_rate=32_000)
    np.testing.assert_array_equal(of_series, small_model.encode(samples, sampling_rate=32_000))


@pytest.mark.parametrize("make", [pandas.DataFrame, pyarrow.table])
def test_a_table_of_several_columns_is_refused(small_model, make):
    with pytest.raises(OptionError, match=r"has 2 columns \(path, label\); give the one .*table\['path'\]"):
        small_model.encode(make({"path": ["a.wav"], "label": [1]}))


# Channels


def stereo() -> np.ndarray:
    return np.stack([tone(0.3), 0.5 * tone(0.3)[::-1]]).astype(np.float32)


@pytest.mark.parametrize("channel", [1, 2, "2"])
def test_a_channel_is_embedded_alone(small_model, audio_file, channel):
    path = audio_file(samples=stereo().T, subtype="FLOAT")
    expected = small_model.encode(stereo()[int(channel) - 1], sampling_rate=32_000)
    row = {"array": stereo(), "sampling_rate": 32_000}
    samples = SimpleNamespace(data=torch.from_numpy(stereo()), sample_rate=32_000)
    decoder = SimpleNamespace(get_all_samples=lambda: samples)
    for sound in (path, path.read_bytes(), io.BytesIO(path.read_bytes()), row, {"path": str(path)}, decoder):
        np.testing.assert_array_equal(small_model.encode(sound, channel=channel), expected)
    embeddings = small_model.encode_timestamps([path], channel=channel, num_workers=1)[0].embeddings
    np.testing.assert_array_equal(embeddings, small_model.encode_timestamps(row, channel=channel).embeddings)


def test_each_channel_is_embedded_apart(small_model, audio_file):
    path = audio_file(samples=stereo().T, subtype="FLOAT")
    inputs = [path, {"array": stereo(), "sampling_rate": 32_000}, path.read_bytes()]
    expected = [small_model.encode(path, channel=channel) for channel in (1, 2)]
    np.testing.assert_allclose(small_model.encode(path, channel="each"), expected, atol=1e-5)
    np.testing.assert_allclose(small_model.encode(inputs, channel="each"), [expected] * 3, atol=1e-5)
    assert [len(result.centres_ms) for result in small_model.encode_timestamps(path, channel="each")] == [7, 7]
    assert [len(results) for results in small_model.encode_timestamps(inputs, channel="each")] == [2, 2, 2]


def test_a_channel_that_is_missing_is_an_error_of_its_input(small_model, audio_file):
    mono, both = audio_file("mono.wav", seconds=0.1), audio_file("both.wav", stereo().T)
    with pytest.raises(AudioError, match=r"^input 1: .*mono\.wav: channel 2 was asked for, it has 1; choose .*mix"):
        small_model.encode([both, mono], channel=2)
    with pytest.raises(AudioError, match="an array: channel 3 was asked for, it has 1 to 2"):
        small_model.encode({"array": stereo(), "sampling_rate": 32_000}, channel=3)
    with pytest.raises(AudioError, match=r"^input 1: .*mono\.wav: has 1 of the channels .*before it have 2"):
        small_model.encode([both, mono], channel="each")


@pytest.mark.parametrize("channel", [0, -1, 1.0, True, None, "left", "0", ""])
def test_an_unknown_channel_is_refused(small_model, channel):
    with pytest.raises(OptionError, match=r"choose 1 for the first, 2, \.\.\., mix for their mean, or each"):
        small_model.encode([], channel=channel)


# What is warned of

SCALES = {
    "16 bits": (32_767 * tone(0.1), "of 16 bits by 32768"),
    "24 bits": (0.1 * 8_388_607 * tone(0.1), "of 24 bits by 8388608"),
    "unsigned 8 bits": (128 + 127 * tone(0.1), r"\(x - 128\) / 128"),
    "dB": (-40 + 30 * tone(0.1), "like levels in dB"),
}


@pytest.mark.parametrize(("samples", "advice"), SCALES.values(), ids=SCALES)
def test_samples_at_the_scale_of_integers_are_warned_of(small_model, audio_file, samples, advice):
    path = audio_file("loud.wav", samples, subtype="FLOAT")
    with pytest.warns(HearTransformersWarning, match=rf"loud\.wav: .*{advice}"):
        small_model.encode(path)
    with pytest.warns(HearTransformersWarning, match=rf"input 0: array of shape \(3200,\): .*{advice}"):
        small_model.encode([torch.from_numpy(samples)], sampling_rate=32_000)
    for function in (get_scene_embeddings, get_timestamp_embeddings):
        with pytest.warns(HearTransformersWarning, match=advice):
            function(torch.from_numpy(samples)[None], small_model)


def test_integers_of_32_bits_are_refused_with_advice(small_model):
    with pytest.raises(AudioError, match="of 32 bits by 2147483648"):
        small_model.encode(2.0**31 * tone(0.1), sampling_rate=32_000)


@pytest.mark.parametrize("gain", [0.0, 1.0, 10.0])
def test_audio_that_is_silent_or_too_hot_is_not_warned_of(small_model, gain):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        small_model.encode(gain * tone(0.1), sampling_rate=32_000)
