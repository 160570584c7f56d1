"""A file read in pieces by several threads beside the same file read by one: samples, warnings and errors."""

import threading
import time

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers.audio import pieces, workers
from hear_transformers.audio.clips import Clip, ReadOptions
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import AudioError

RATE = 44_100
SECONDS = 3.3

FORMATS = [
    ("wav", "PCM_16"),
    ("wav", "PCM_U8"),
    ("wav", "FLOAT"),
    ("wav", "ULAW"),
    ("w64", "PCM_24"),
    ("rf64", "PCM_16"),
    ("aiff", "PCM_16"),
    ("caf", "PCM_32"),
    ("au", "DOUBLE"),
    ("flac", "PCM_24"),
    ("ogg", "VORBIS"),
]


@pytest.fixture(autouse=True)
def of_one_second(monkeypatch):
    monkeypatch.setattr(pieces, "PIECE_SECONDS", 1)


@pytest.fixture
def counted(monkeypatch):
    """Return the list of the files that one thread reads from the beginning."""
    whole = []
    blocks = AudioFile.blocks
    monkeypatch.setattr(AudioFile, "blocks", lambda file, *rest: whole.append(file.path) or blocks(file, *rest))
    return whole


def sound(channels: int = 1, seconds: float = SECONDS) -> np.ndarray:
    return np.random.default_rng(0).uniform(-0.5, 0.5, (round(seconds * RATE), channels))


def written(tmp_path, suffix: str = "wav", subtype: str = "PCM_16", samples: np.ndarray | None = None):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, sound() if samples is None else samples, RATE, subtype=subtype)
    return path


def read(path, threads: int, sample_rate: int = 32_000, **options):
    """Return what is read of a file, the error that ended it, and the warnings."""
    warnings: list[str] = []
    blocks, error = [torch.zeros(0)], ""
    try:
        with AudioFile(path, warn=warnings.append, **options) as file:
            for block in pieces.blocks(file, sample_rate, threads):
                blocks.append(block)
    except AudioError as raised:
        error = str(raised)
    return torch.cat(blocks), error, warnings


@pytest.mark.parametrize(("suffix", "subtype"), FORMATS)
def test_pieces_joined_are_the_file(tmp_path, counted, suffix, subtype):
    path = written(tmp_path, suffix, subtype, sound(2))
    for sample_rate, tolerance in ((RATE, 0.0), (32_000, 1e-6)):
        found = read(path, 3, sample_rate)
        assert not counted
        expected = read(path, 1, sample_rate)
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=tolerance)
        assert found[1:] == expected[1:] == ("", [])
        counted.clear()


@pytest.mark.parametrize("n_frames", [3 * RATE, 3 * RATE + 1, 3 * RATE - 1, 2 * RATE + 90, RATE + 2])
def test_the_last_piece_may_be_as_short_as_it_likes(tmp_path, counted, n_frames):
    path = written(tmp_path, samples=sound()[:n_frames])
    for sample_rate in (32_000, 16_000):  # one frame becomes a sample, or none
        found = read(path, 2, sample_rate)[0]
        assert not counted
        torch.testing.assert_close(found, read(path, 1, sample_rate)[0], rtol=0, atol=1e-6)
        counted.clear()


@pytest.mark.parametrize(("suffix", "subtype"), [("mp3", "MPEG_LAYER_III"), ("ogg", "OPUS"), ("wav", "GSM610")])
def test_what_cannot_be_sought_is_left_to_one_thread(tmp_path, counted, suffix, subtype):
    path = tmp_path / f"sound.{suffix}"
    soundfile.write(path, sound(), 48_000 if subtype == "OPUS" else RATE, subtype=subtype)
    assert torch.equal(read(path, 3)[0], read(path, 1)[0])
    assert counted == [path, path]


@pytest.mark.parametrize("keep_damaged", [False, True])
@pytest.mark.parametrize("place", [0.5, 1.0, 1.999, 2.0, 2.001, 3.2])
def test_damage_is_found_as_by_one_thread(tmp_path, place, keep_damaged):
    path = written(tmp_path, "flac")
    content = bytearray(path.read_bytes())
    begin = int(place / SECONDS * len(content))
    content[begin : begin + 2_000] = bytes(2_000)
    path.write_bytes(content)
    found, expected = (read(path, threads, keep_damaged=keep_damaged) for threads in (3, 1))
    assert found[1:] == expected[1:]
    assert bool(found[1]) is not keep_damaged
    if keep_damaged:
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)


@pytest.mark.parametrize("keep_damaged", [False, True])
@pytest.mark.parametrize("suffix", ["wav", "flac", "ogg", "aiff"])
def test_a_file_cut_short_is_refused_or_kept_as_by_one_thread(tmp_path, suffix, keep_damaged):
    path = written(tmp_path, suffix, "VORBIS" if suffix == "ogg" else "PCM_16")
    path.write_bytes(path.read_bytes()[: path.stat().st_size * 2 // 3])
    found, expected = (read(path, threads, keep_damaged=keep_damaged) for threads in (3, 1))
    assert found[1:] == expected[1:]
    assert bool(found[1]) is not keep_damaged
    if keep_damaged:
        torch.testing.assert_close(found[0], expected[0], rtol=0, atol=1e-6)


def test_a_sample_that_is_not_finite_is_named_with_its_place(tmp_path):
    samples = sound()
    samples[2 * RATE + 7] = np.nan
    path = written(tmp_path, subtype="FLOAT", samples=samples)
    assert "sample nan at 2.000 s" in read(path, 3)[1]
    assert read(path, 3)[1:] == read(path, 1)[1:]


def test_levels_are_those_of_the_whole_file(tmp_path):
    times = np.arange(round(SECONDS * RATE)) / RATE
    tone = np.sin(2 * np.pi * 19_000 * times) * np.clip(times - 1.0, 0.0, 1.0) + 1e-3
    samples = np.stack([tone, np.zeros_like(tone)], 1)
    path = written(tmp_path, subtype="FLOAT", samples=samples)
    warnings = read(path, 3)[2]
    assert warnings == read(path, 1)[2]
    assert len(warnings) == 2


def test_no_thread_outlives_blocks_that_are_not_taken(tmp_path):
    with AudioFile(written(tmp_path)) as file:
        blocks = pieces.blocks(file, 32_000, 2)
        next(blocks)
        blocks.close()
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("decodes a piece")]


def test_no_more_pieces_are_held_than_there_are_threads_and_one(tmp_path, monkeypatch):
    taken = []
    piece = pieces._piece
    monkeypatch.setattr(pieces, "_piece", lambda *arguments: taken.append(arguments[-1]) or piece(*arguments))
    with AudioFile(written(tmp_path, samples=sound(seconds=9.0))) as file:
        blocks = pieces.blocks(file, 32_000, 2)
        next(blocks)
        time.sleep(0.2)
        assert len(taken) <= 3
        blocks.close()


@pytest.mark.parametrize("n_workers", [0, 3])
def test_a_long_clip_is_read_in_pieces(tmp_path, counted, monkeypatch, n_workers):
    monkeypatch.setattr(workers, "_spare_cores", lambda: 3)
    path = written(tmp_path)
    (loaded,) = workers.load([Clip(path, start=0.5)], ReadOptions(32_000, 1.5, False), n_workers)
    counted.clear()  # a small file is decoded to see whether it is long
    found = torch.cat(list(loaded.blocks))
    assert not counted
    torch.testing.assert_close(found, read(path, 1)[0][16_000:], rtol=0, atol=1e-6)
    assert loaded.warnings == []
