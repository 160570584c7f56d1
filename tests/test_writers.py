import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.errors import OptionError
from hear_transformers.writers import WRITERS, atomic, choose_format

SCENE = np.arange(6, dtype=np.float32)
FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4)
TIMES = np.array([0.0, 50.0, 100.0])
PROVENANCE = {"family": "passt", "layer": ["8"]}


def test_npz_holds_embedding_timestamps_and_provenance(tmp_path):
    WRITERS["npz"](PROVENANCE).write(tmp_path / "a.npz", "a.wav", FRAMES, TIMES)
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["embedding"], FRAMES)
        np.testing.assert_array_equal(archive["timestamps"], TIMES)
        assert json.loads(str(archive["provenance"])) == PROVENANCE


def test_npz_of_a_scene_has_no_timestamps(tmp_path):
    WRITERS["npz"](PROVENANCE).write(tmp_path / "a.npz", "a.wav", SCENE, None)
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive) == ["embedding", "provenance"]
        np.testing.assert_array_equal(archive["embedding"], SCENE)


def test_npy_holds_the_array_alone_and_json_the_rest(tmp_path):
    WRITERS["npy"](PROVENANCE).write(tmp_path / "a.npy", "a.wav", FRAMES, TIMES)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), FRAMES)
    sidecar = json.loads((tmp_path / "a.npy.json").read_text())
    assert sidecar == {"provenance": PROVENANCE, "timestamps": TIMES.tolist()}


def read_table(path: Path):
    parquet = pytest.importorskip("pyarrow.parquet")
    return parquet.read_table(path)


def test_parquet_holds_a_row_per_embedding_of_all_files(tmp_path):
    with WRITERS["parquet"](PROVENANCE) as writer:
        writer.write(tmp_path / "t.parquet", "a.wav", FRAMES, TIMES)
        writer.write(tmp_path / "t.parquet", "b.wav", FRAMES[:2] + 1, TIMES[:2])
    table = read_table(tmp_path / "t.parquet")
    assert table["file"].to_pylist() == ["a.wav"] * 3 + ["b.wav"] * 2
    assert table["time_ms"].to_pylist() == [0, 50, 100, 0, 50]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[4]"
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist()), np.concatenate([FRAMES, FRAMES[:2] + 1]))
    assert json.loads(table.schema.metadata[b"provenance"]) == PROVENANCE


def test_parquet_has_no_time_for_scenes(tmp_path):
    with WRITERS["parquet"](PROVENANCE) as writer:
        writer.write(tmp_path / "t.parquet", "a.wav", SCENE, None)
    assert read_table(tmp_path / "t.parquet")["time_ms"].to_pylist() == [None]


def test_parquet_writes_long_files_in_row_groups(tmp_path, monkeypatch):
    pyarrow_parquet = pytest.importorskip("pyarrow.parquet")
    monkeypatch.setattr("hear_transformers.writers.PARQUET_ROWS", 100)
    frames = np.arange(1_000, dtype=np.float32).reshape(250, 4)
    with WRITERS["parquet"](PROVENANCE) as writer:
        writer.write(tmp_path / "t.parquet", "a.wav", frames, np.arange(250.0))
        assert not (tmp_path / "t.parquet").exists()
    assert pyarrow_parquet.ParquetFile(tmp_path / "t.parquet").num_row_groups == 3
    np.testing.assert_array_equal(np.stack(read_table(tmp_path / "t.parquet")["embedding"].to_pylist()), frames)


def test_parquet_without_pyarrow_says_what_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    with pytest.raises(OptionError, match=r"pip install 'hear_transformers\[parquet\]'"):
        WRITERS["parquet"](PROVENANCE)


def test_an_interrupted_table_leaves_nothing(tmp_path):
    pytest.importorskip("pyarrow")

    def interrupted_run():
        with WRITERS["parquet"](PROVENANCE) as writer:
            writer.write(tmp_path / "t.parquet", "a.wav", SCENE, None)
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted_run()
    assert list(tmp_path.iterdir()) == []


def test_a_failed_write_leaves_what_was_there(tmp_path):
    path = tmp_path / "a.npz"
    path.write_text("before")

    def write_half():
        with atomic(path) as file:
            file.write(b"half")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        write_half()
    assert [(entry, entry.read_text()) for entry in tmp_path.iterdir()] == [(path, "before")]


@pytest.mark.parametrize("name", WRITERS)
def test_provenance_is_read_back(tmp_path, name):
    path = tmp_path / "a"
    with WRITERS[name](PROVENANCE) as writer:
        writer.write(path, "a.wav", SCENE, None)
    assert writer.provenance_of(path) == PROVENANCE


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 cut short", b"\x93NUMPY"])
@pytest.mark.parametrize("name", WRITERS)
def test_a_file_of_something_else_has_no_provenance(tmp_path, name, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert WRITERS[name].provenance_of(path) is None


@pytest.mark.parametrize(
    ("out", "name", "chosen"),
    [
        (".", None, "npz"),
        ("folder.v2", None, "npz"),
        (".", "npy", "npy"),
        ("a.npy", None, "npy"),
        ("A.PARQUET", None, "parquet"),
        ("a.npz", "npz", "npz"),
    ],
)
def test_format_is_the_one_named_or_that_of_the_suffix(out, name, chosen):
    assert choose_format(Path(out), name) == chosen


@pytest.mark.parametrize(("name", "message"), [("csv", "npz, npy, parquet"), ("npy", r"file name a\.npz")])
def test_a_wrong_format_says_what_is_right(name, message):
    with pytest.raises(OptionError, match=message):
        choose_format(Path("a.npz"), name)
