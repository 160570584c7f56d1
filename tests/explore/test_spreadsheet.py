"""Embeddings as a table in CSV: `hear-transformers selections --with-embeddings`."""

import csv

import numpy as np
import pytest

from hear_transformers.bulk.manifest import read_manifest
from hear_transformers.explore import reading
from hear_transformers.explore.spreadsheet import write_csv


@pytest.fixture
def selections(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("selections", *arguments, "--with-embeddings")


@pytest.mark.parametrize("stored", ["t.parquet", "t.hdf5", "files"])
def test_numbers_are_those_of_the_embeddings(embed_audio, selections, audio_file, tmp_path, stored):
    audio_file("a,b.wav", seconds=3.0)
    assert embed_audio("a,b.wav", "--segment", 1, "--out", stored).exit_code == 0
    assert selections(stored, "--out", "t.csv").stdout == "t.csv\n3 selections, 1 table\n"
    with (tmp_path / "t.csv").open(newline="") as file:
        header, *rows = csv.reader(file)
    assert header[:5] == ["path", "start", "end", "e0", "e1"]
    assert [row[:3] for row in rows] == [[str(tmp_path / "a,b.wav"), str(i), str(i + 1)] for i in range(3)]
    expected = reading.read(stored).vectors
    np.testing.assert_array_equal(np.array([row[3:] for row in rows], np.float32), expected)


def test_the_table_lists_files_to_embed(embed_audio, selections, audio_file, tmp_path):
    embed_audio(audio_file("a.wav", seconds=2.0), "--segment", 1, "--out", "t.parquet")
    selections("t.parquet", "--out", "t.csv")
    assert [(each.start, each.end) for each in read_manifest(tmp_path / "t.csv")] == [(0, 1), (1, 2)]


def test_channels_have_a_column(embed_audio, selections, audio_file, tmp_path):
    audio_file("a.wav", np.random.default_rng(0).uniform(-0.5, 0.5, (32_000, 2)))
    embed_audio("a.wav", "--channel", "each", "--out", "t.parquet")
    selections("t.parquet", "--out", "t.csv")
    rows = [line.split(",")[1:4] for line in (tmp_path / "t.csv").read_text().splitlines()]
    assert rows == [["start", "end", "channel"], ["0", "1", "1"], ["0", "1", "2"]]


def test_a_table_that_stays_on_disk_is_written_alike(embed_audio, audio_file):
    embed_audio(audio_file("a.wav", seconds=2.0), "--hop-ms", 100, "--window-ms", 200, "--out", "t.parquet")
    stored = reading.look_up("t.parquet", most_in_memory=0)
    assert isinstance(stored, reading.Stored)
    of_disk, of_memory = write_csv("stored.csv", stored), write_csv("read.csv", reading.read("t.parquet"))
    assert of_disk.read_bytes() == of_memory.read_bytes()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--out", "t.txt"], "embeddings are written as one table in CSV; end it in .csv"),
        (["--out", "there.csv"], "there.csv exists; give another --out, or --overwrite to replace it"),
        (["--out", "t.csv", "--format", "raven"], "--format raven has no place for --with-embeddings"),
    ],
)
def test_another_kind_of_table_and_one_that_exists_are_refused(
    embed_audio, selections, audio_file, tmp_path, arguments, message
):
    embed_audio(audio_file("a.wav"), "--out", "t.parquet")
    (tmp_path / "there.csv").touch()
    result = selections("t.parquet", *arguments)
    assert result.exit_code == 2
    assert message in result.stderr
    assert not (tmp_path / "there.csv").read_text()


def test_csv_as_an_output_of_embeddings_is_answered_with_what_makes_it(embed_audio, audio_file):
    result = embed_audio(audio_file("a.wav"), "--out", "t.csv")
    assert result.exit_code == 2
    assert "hear-transformers selections TABLE --with-embeddings --out t.csv makes one" in result.stderr
