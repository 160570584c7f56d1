"""Segments of files in outputs: rows with start and end, resumed by their settings, refused beside other times."""

import json
import os
import signal

import numpy as np
import pyarrow.parquet
import pytest

from hear_transformers.audio.reading import AudioFile
from hear_transformers.audio.workers import START_METHOD

COLUMNS = ["file", "start", "end", "time_ms"]


def rows(path) -> list[tuple[str, float, float, float]]:
    table = pyarrow.parquet.read_table(path, columns=COLUMNS).to_pylist()
    return [tuple(row[name] for name in COLUMNS) for row in table]


def test_rows_have_start_and_end_of_their_segment(embed_audio, audio_file):
    audio_file("a.wav", seconds=5.0)
    audio_file("b.wav", seconds=1.0)
    result = embed_audio("a.wav", "b.wav", "--segment", 2, "--out", "t.parquet")
    assert result.exit_code == 0, result.output
    assert rows("t.parquet") == [
        ("a.wav", 0.0, 2.0, 1000.0),
        ("a.wav", 2.0, 4.0, 3000.0),
        ("a.wav", 4.0, 5.0, 4500.0),
        ("b.wav", 0.0, 1.0, 500.0),
    ]


def test_parts_of_files_have_times_of_the_file(embed_audio, audio_file, tmp_path):
    audio_file("a.wav", seconds=9.0)
    (tmp_path / "m.csv").write_text("path,start,end\na.wav,2,7\n")
    result = embed_audio("--manifest", "m.csv", "--segment", 3, "--overlap", 1, "--out", "t.parquet")
    assert result.exit_code == 0, result.output
    assert rows("t.parquet") == [("a.wav", 2.0, 5.0, 3500.0), ("a.wav", 4.0, 7.0, 5500.0)]


def test_hdf5_has_them_too(embed_audio, audio_file):
    h5py = pytest.importorskip("h5py")
    audio_file("a.wav", seconds=2.5)
    assert embed_audio("a.wav", "--segment", 1, "--out", "t.hdf5").exit_code == 0
    with h5py.File("t.hdf5") as file:
        assert file["start"][:].tolist() == [0.0, 1.0, 2.0]
        assert file["end"][:].tolist() == [1.0, 2.0, 2.5]


def test_a_file_per_input_has_their_centres_and_settings(embed_audio, audio_file):
    audio_file("a.wav", seconds=2.5)
    assert embed_audio("a.wav", "--segment", 1).exit_code == 0
    with np.load("a.npz") as file:
        assert file["timestamps"].tolist() == [500.0, 1500.0, 2250.0]
        assert len(file["embedding"]) == 3
        made_with = json.loads(str(file["provenance"]))
    assert (made_with["framing"], made_with["hop_ms"]) == ("segments", 1000.0)


@pytest.mark.parametrize("format", ["npz", "npy", "parquet", "hdf5"])
def test_every_format_has_start_and_end_in_seconds_of_the_file(embed_audio, audio_file, tmp_path, format):
    audio_file("a.wav", seconds=9.0)
    (tmp_path / "m.csv").write_text("path,start,end\na.wav,1.5,7\n")
    options = ["--segment", 3, "--overlap", 1, "--format", format, "--out", "o"]
    assert embed_audio("--manifest", "m.csv", *options).exit_code == 0
    (found,) = (each for each in spans(tmp_path / "o").values())
    assert found == [(1.5, 4.5), (3.5, 6.5), (5.5, 7.0)]


def spans(folder) -> dict[str, list[tuple[float, float]]]:
    """Read start and end of all rows of an output folder, by output."""
    found = {}
    for path in sorted(folder.glob("*.*")):
        if path.suffix == ".npz":
            columns = np.load(path)
        elif path.suffix == ".json":
            columns = json.loads(path.read_text())
        elif path.suffix == ".parquet":
            columns = pyarrow.parquet.read_table(path).to_pydict()
        elif path.suffix == ".hdf5":
            columns = pytest.importorskip("h5py").File(path)
        else:
            continue
        found[path.name] = list(zip(map(float, columns["start"]), map(float, columns["end"]), strict=True))
    return found


CASES = [(7.0, 3, 1, 44_100), (6.0, 2, 0, 32_000), (5.3, 2, 0.7, 96_000), (0.8, 3, 1, 48_000), (4.05, 1, 0.5, 44_100)]


@pytest.mark.parametrize(("seconds", "segment", "overlap", "rate"), CASES)
def test_rows_equal_those_of_a_manifest_of_the_same_parts(
    embed_audio, audio_file, tmp_path, seconds, segment, overlap, rate
):
    """One decoding of the file for all segments, beside one for each part."""
    # Noise at the model's rate or above: the logarithm of an empty band makes much of the resampler's rounding.
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * rate))
    audio_file("a.wav", noise, sample_rate=rate, subtype="FLOAT")
    result = embed_audio("a.wav", "--segment", segment, "--overlap", overlap, "--out", "t.parquet")
    assert result.exit_code == 0, result.output
    along = pyarrow.parquet.read_table("t.parquet").to_pylist()
    assert (along[0]["start"], along[-1]["end"]) == (0.0, pytest.approx(seconds, abs=1e-4))
    listed = "".join(f"a.wav,{row['start']},{row['end']}\n" for row in along)
    (tmp_path / "m.csv").write_text(f"path,start,end\n{listed}")
    assert embed_audio("--manifest", "m.csv", "--out", "m.parquet").exit_code == 0
    apart = pyarrow.parquet.read_table("m.parquet").to_pylist()
    assert [(row["start"], row["end"]) for row in apart] == [(row["start"], row["end"]) for row in along]
    expected = np.array([row["embedding"] for row in apart])
    found = np.array([row["embedding"] for row in along])
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5 * np.abs(expected).max())


@pytest.mark.slow
def test_workers_and_bad_files_change_no_row_and_a_run_resumes_by_file(embed_audio, audio_file, tmp_path):
    for i in range(4):
        audio_file(f"{i}.wav", seconds=2.0 + i)
    options = ["--segment", 2, "--overlap", 0.5]
    embed_audio(*(f"{i}.wav" for i in range(4)), *options, "--out", "whole.parquet")
    (tmp_path / "bad.wav").write_bytes(b"RIFF no audio")
    names = ["0.wav", "bad.wav", "1.wav", "2.wav", "missing.wav", "3.wav"]
    assert embed_audio("0.wav", *options, "--out", "t.parquet").exit_code == 0
    result = embed_audio(*names, *options, "--out", "t.parquet", "--num-workers", 2)
    assert result.exit_code == 1
    assert "3 written, 1 skipped" in result.stdout
    assert "2 failed" in result.stdout
    assert rows("t.parquet") == rows("whole.parquet")
    found, expected = (
        np.array(pyarrow.parquet.read_table(name, columns=["embedding"])["embedding"].to_pylist())
        for name in ("t.parquet", "whole.parquet")
    )
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6 * np.abs(expected).max())


@pytest.mark.slow
@pytest.mark.skipif(START_METHOD != "fork", reason="workers do not inherit what the test changes")
def test_a_killed_worker_costs_its_file_and_the_next_run_embeds_it(embed_audio, audio_file, monkeypatch):
    names = [audio_file(f"{i}.wav", seconds=2.5).name for i in range(6)]
    options = ["--segment", 1, "--num-workers", 2, "--out", "t.parquet", "--json"]
    decode, master = AudioFile.blocks, os.getpid()

    def dies(file, *arguments, **more):
        if os.getpid() != master and str(file.path).endswith("3.wav"):
            os.kill(os.getpid(), signal.SIGKILL)
        return decode(file, *arguments, **more)

    with monkeypatch.context() as patch:
        patch.setattr(AudioFile, "blocks", dies)
        result = embed_audio(*names, *options)
    assert result.exit_code == 1, result.output
    assert "3.wav: 2 processes ended while they decoded it (killed by SIGKILL)" in result.stdout
    assert {row[0] for row in rows("t.parquet")} == {*names} - {"3.wav"}
    assert embed_audio(*names, *options).exit_code == 0
    expected = [(0.0, 1.0), (1.0, 2.0), (2.0, 2.5)]
    assert [row[:3] for row in rows("t.parquet")] == [(name, *span) for name in names for span in expected]


def test_the_same_segments_are_skipped_and_others_are_not_mixed(embed_audio, audio_file):
    audio_file("a.wav", seconds=2.5)
    assert "1 written" in embed_audio("a.wav", "--segment", 1, "--out", "o").stdout
    assert "1 skipped" in embed_audio("a.wav", "--segment", 1, "--overlap", 0, "--out", "o").stdout
    assert "1 written" not in embed_audio("a.wav", "--segment", 1, "--overlap", 0.5, "--out", "o").stdout


@pytest.mark.parametrize("more", [["--hop-ms", 50], ["--window-ms", 160], ["--framing", "windowed"], ["--scene"]])
def test_other_times_are_refused(embed_audio, audio_file, more):
    audio_file("a.wav")
    result = embed_audio("a.wav", "--segment", 1, *more)
    assert result.exit_code == 2
    assert "segment" in result.stderr or "--labels describes whole files" in result.stderr


def test_overlap_alone_is_refused(embed_audio, audio_file):
    result = embed_audio(audio_file("a.wav"), "--overlap", 1)
    assert result.exit_code == 2
    assert "overlap=1.0 is that of segments; give segment" in result.stderr
