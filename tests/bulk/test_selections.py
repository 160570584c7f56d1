"""Segments as tables for Raven, Audacity and spreadsheets; Raven's and CSV tables are read again."""

import math

import numpy as np
import pyarrow.parquet
import pytest

from hear_transformers.bulk.manifest import read_manifest
from hear_transformers.bulk.selections import Selection, selections_of, write_each, write_selections
from hear_transformers.errors import OptionError

SELECTIONS = [
    Selection("a.wav", 0.0, 3.0, "Turdus merula", 0.75),
    Selection("a.wav", 2.0, 4.5, 'x, "y"\tz'),
    Selection("sub/b.wav", 0.1, 1.25),
]


def test_csv_has_a_row_for_each(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_selections("s.csv", SELECTIONS[:1], "csv")
    expected = f"path,start,end,label,score\n{tmp_path / 'a.wav'},0,3,Turdus merula,0.75\n"
    assert (tmp_path / "s.csv").read_text() == expected


def test_raven_has_its_columns(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    write_selections("s.txt", SELECTIONS[:2], "raven")
    header, first, second = (line.split("\t") for line in (tmp_path / "s.txt").read_text().splitlines())
    assert header[:5] == ["Selection", "View", "Channel", "Begin Time (s)", "End Time (s)"]
    row = dict(zip(header, first, strict=True))
    assert (row["Begin Time (s)"], row["End Time (s)"], row["File Offset (s)"]) == ("0", "3", "0")
    assert (row["Begin File"], row["Begin Path"]) == ("a.wav", str(tmp_path / "a.wav"))
    assert (row["Species"], row["Score"]) == ("Turdus merula", "0.75")
    assert len(second) == len(header)


def test_audacity_has_times_and_labels_of_one_file(tmp_path):
    write_selections(tmp_path / "s.txt", SELECTIONS[:2], "audacity")
    expected = '0.000000\t3.000000\tTurdus merula\n2.000000\t4.500000\tx, "y" z\n'
    assert (tmp_path / "s.txt").read_text() == expected
    with pytest.raises(OptionError, match="label track of Audacity is of one file, and these are of 2"):
        write_selections(tmp_path / "all.txt", SELECTIONS, "audacity")
    assert not (tmp_path / "all.txt").exists()


def test_a_folder_has_a_table_for_each_file(tmp_path):
    paths = write_each(tmp_path / "o", [*SELECTIONS, Selection("other/b.wav", 0, 1)], "audacity")
    assert [str(path.relative_to(tmp_path / "o")) for path in paths] == [
        "a.labels.txt",
        "sub/b.wav.labels.txt",
        "other/b.wav.labels.txt",
    ]


@pytest.mark.parametrize("format", ["csv", "raven"])
def test_what_is_written_is_read_again(tmp_path, monkeypatch, format):
    monkeypatch.chdir(tmp_path)
    name = "s.csv" if format == "csv" else "s.txt"
    write_selections(name, SELECTIONS, format)
    found = [(str(each.path), each.start, each.end) for each in read_manifest(tmp_path / name)]
    assert found == [(str(tmp_path / each.file), each.start, each.end) for each in SELECTIONS]


def test_an_unknown_end_or_format_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"a\.wav: its end is not known, and raven wants one"):
        write_selections(tmp_path / "s.txt", [Selection("a.wav", 0.0, math.nan)], "raven")
    with pytest.raises(OptionError, match="csv, raven, audacity"):
        write_each(tmp_path, SELECTIONS, "xml")


@pytest.mark.parametrize("out", ["t.parquet", "t.hdf5", "files", "arrays"])
def test_segments_go_to_raven_and_back(embed_audio, installed_command, audio_file, tmp_path, out):
    noise = 0.1 * np.random.default_rng(0).standard_normal(5 * 32_000)
    audio_file("a.wav", noise, subtype="FLOAT")
    kind = ["--format", "npy"] if out == "arrays" else []
    result = embed_audio("a.wav", "--segment", 2, "--overlap", 0.5, "--out", out, *kind)
    assert result.exit_code == 0, result.output
    command = installed_command("hear-transformers")
    result = command("selections", out, "--out", "s.txt")
    assert result.exit_code == 0, result.output
    assert "3 selections, 1 table" in result.stdout
    assert [each[1:3] for each in selections_of(out)] == [(0, 2), (1.5, 3.5), (3, 5)]
    assert embed_audio("--manifest", "s.txt", "--out", "again.parquet").exit_code == 0
    again = pyarrow.parquet.read_table("again.parquet").to_pylist()
    assert [(row["start"], row["end"]) for row in again] == [(0, 2), (1.5, 3.5), (3, 5)]
    if out == "t.parquet":
        expected = np.array(pyarrow.parquet.read_table(out)["embedding"].to_pylist())
        np.testing.assert_allclose([row["embedding"] for row in again], expected, atol=1e-5 * np.abs(expected).max())


@pytest.mark.parametrize("name", ["missing.parquet", "empty"])
def test_what_holds_no_embeddings_is_refused(installed_command, tmp_path, name):
    (tmp_path / "empty").mkdir()
    result = installed_command("hear-transformers")("selections", tmp_path / name, "--out", tmp_path / "s.txt")
    assert result.exit_code == 2
    assert "no embeddings; give a table or a folder that embed-audio wrote" in result.stderr


@pytest.mark.parametrize("out", ["s.txt", "folder/"])
def test_tables_with_labels_of_the_user_are_kept(embed_audio, installed_command, audio_file, out):
    embed_audio(audio_file("a.wav"), "--segment", 0.5, "--out", "t.parquet")
    command = ["selections", "t.parquet", "--out", out]
    run = installed_command("hear-transformers")
    assert run(*command).exit_code == 0
    result = run(*command)
    assert result.exit_code == 2
    assert "exists, perhaps with labels of yours" in result.stderr
    assert run(*command, "--overwrite", "--json").stdout.startswith('{"selections": 2, "tables": [')


# Tables of Raven


HEADER = "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tLow Freq (Hz)\tHigh Freq (Hz)"


def raven(folder, more: str, *rows: str, name: str = "birds.Table.1.selections.txt"):
    path = folder / name
    path.write_text("\n".join([HEADER + more, *rows]) + "\n")
    return [(each.path.name, each.start, each.end) for each in read_manifest(path)]


def row(number: int, start: str, end: str, more: str = "", view: str = "Spectrogram 1") -> str:
    return f"{number}\t{view}\t1\t{start}\t{end}\t0\t8000{more}"


def test_both_views_of_a_selection_are_one_row(tmp_path):
    rows = [row(1, "0.5", "2", "\ta.wav", view) for view in ("Waveform 1", "Spectrogram 1")]
    assert raven(tmp_path, "\tBegin File", *rows, row(2, "0.5", "2", "\ta.wav")) == [("a.wav", 0.5, 2.0)] * 2


def test_times_of_several_files_are_those_of_their_offsets(tmp_path):
    rows = [row(1, "0.5", "2", "\ta.wav\t0.5"), row(2, "60.1", "61.3", "\tb.wav\t0.1")]
    expected = [("a.wav", 0.5, 2.0), ("b.wav", 0.1, 1.3)]
    assert raven(tmp_path, "\tBegin File\tFile Offset (s)", *rows) == expected


def test_a_path_of_another_machine_is_the_file_beside_the_table(tmp_path):
    (tmp_path / "a.wav").touch()
    for path in (r"C:\data\a.wav", "/elsewhere/a.wav"):
        assert raven(tmp_path, "\tBegin Path", row(1, "0", "1", f"\t{path}")) == [("a.wav", 0.0, 1.0)]


@pytest.mark.parametrize(
    "name", ["birds.Table.1.selections.txt", "birds.selections.txt", "birds.BirdNET.selection.table.txt", "birds.txt"]
)
def test_without_a_file_the_table_is_of_the_audio_it_is_named_after(tmp_path, name):
    (tmp_path / "birds.flac").touch()
    assert raven(tmp_path, "", row(1, "0,5", "1"), name=name) == [("birds.flac", 0.5, 1.0)]


def test_a_table_of_no_file_is_refused(tmp_path):
    with pytest.raises(OptionError, match=r"names no audio, and beside it is no birds\.wav"):
        raven(tmp_path, "", row(1, "0", "1"))
    (tmp_path / "birds.flac").touch()
    (tmp_path / "birds.wav").touch()
    with pytest.raises(OptionError, match=r"beside it are birds\.flac, birds\.wav"):
        raven(tmp_path, "", row(1, "0", "1"))


@pytest.mark.parametrize(
    ("start", "end", "message"), [("x", "1", "line 2: 'x' is not a time"), ("2", "1", "not after")]
)
def test_a_wrong_time_says_where(tmp_path, start, end, message):
    for more, cells in [("\tBegin File", "\ta.wav"), ("\tBegin File\tFile Offset (s)", f"\ta.wav\t{start}")]:
        with pytest.raises(OptionError, match=message):
            raven(tmp_path, more, row(1, start, end, cells))
