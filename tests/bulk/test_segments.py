"""Segments of files in outputs: rows with start and end, resumed by their settings, refused beside other times."""

import json

import numpy as np
import pyarrow.parquet
import pytest

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


def test_the_same_segments_are_skipped_and_others_are_not_mixed(embed_audio, audio_file):
    audio_file("a.wav", seconds=2.5)
    assert "1 written" in embed_audio("a.wav", "--segment", 1, "--out", "o").stdout
    assert "1 skipped" in embed_audio("a.wav", "--segment", 1, "--overlap", 0, "--out", "o").stdout
    assert "1 written" not in embed_audio("a.wav", "--segment", 1, "--overlap", 0.5, "--out", "o").stdout


@pytest.mark.parametrize(
    "more", [["--hop-ms", 50], ["--window-ms", 160], ["--framing", "windowed"], ["--scene"], ["--labels"]]
)
def test_other_times_are_refused(embed_audio, audio_file, more):
    audio_file("a.wav")
    result = embed_audio("a.wav", "--segment", 1, *more)
    assert result.exit_code == 2
    assert "segment" in result.stderr or "--labels describes whole files" in result.stderr


def test_overlap_alone_is_refused(embed_audio, audio_file):
    result = embed_audio(audio_file("a.wav"), "--overlap", 1)
    assert result.exit_code == 2
    assert "overlap=1.0 is that of segments; give segment" in result.stderr
