import json
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.bulk.formats import FILES, TABLES, choose_format, stored
from hear_transformers.bulk.outputs import Destination, OutputOptions
from hear_transformers.errors import HearTransformersError, OptionError

SCENE = np.arange(6, dtype=np.float32)
FRAMES = np.arange(12, dtype=np.float32).reshape(3, 4)
TIMES = np.array([0.0, 50.0, 100.0])
PROVENANCE = {"family": "passt", "layer": ["8"]}
AUDIO = {"file": "/a.wav", "sha256": "0", "start": 0.0, "end": None}
ALL = {**PROVENANCE, "audio": AUDIO}


def test_npz_holds_embedding_timestamps_and_provenance(tmp_path):
    FILES["npz"](PROVENANCE).write(tmp_path / "a.npz", {"embedding": FRAMES, "timestamps": TIMES}, AUDIO)
    with np.load(tmp_path / "a.npz") as archive:
        np.testing.assert_array_equal(archive["embedding"], FRAMES)
        np.testing.assert_array_equal(archive["timestamps"], TIMES)
        assert json.loads(str(archive["provenance"])) == ALL


def test_npz_of_a_scene_has_no_timestamps(tmp_path):
    FILES["npz"](PROVENANCE).write(tmp_path / "a.npz", {"embedding": SCENE}, AUDIO)
    with np.load(tmp_path / "a.npz") as archive:
        assert sorted(archive) == ["embedding", "provenance"]
        np.testing.assert_array_equal(archive["embedding"], SCENE)


def test_npy_holds_the_array_alone_and_json_the_rest(tmp_path):
    FILES["npy"](PROVENANCE).write(tmp_path / "a.npy", {"embedding": FRAMES, "timestamps": TIMES}, AUDIO)
    np.testing.assert_array_equal(np.load(tmp_path / "a.npy"), FRAMES)
    sidecar = json.loads((tmp_path / "a.npy.json").read_text())
    assert sidecar == {"provenance": ALL, "timestamps": TIMES.tolist()}


@pytest.mark.parametrize("name", FILES)
def test_provenance_is_read_back(tmp_path, name):
    form = FILES[name](PROVENANCE)
    form.write(tmp_path / "a", {"embedding": SCENE}, AUDIO)
    assert form.provenance_of(tmp_path / "a") == ALL


@pytest.mark.parametrize("n_renamed", [0, 1])
def test_an_old_array_never_lies_beside_a_new_sidecar(tmp_path, monkeypatch, n_renamed):
    path, replace, names = tmp_path / "a.npy", Path.replace, []
    FILES["npy"]({"family": "ast"}).write(path, {"embedding": SCENE}, AUDIO)

    def end(part, name):
        if len(names) == n_renamed:
            raise KeyboardInterrupt
        names.append(name)
        replace(part, name)

    monkeypatch.setattr(Path, "replace", end)
    with pytest.raises(KeyboardInterrupt):
        FILES["npy"](PROVENANCE).write(path, {"embedding": SCENE + 1}, AUDIO)
    assert not path.exists()


@pytest.mark.parametrize("content", [b"", b"text", b"PK\3\4 cut short", b"\x93NUMPY", b"PAR1", b"\x89HDF\r\n\x1a\n"])
@pytest.mark.parametrize("name", [*FILES, *TABLES])
def test_a_file_of_something_else_has_no_provenance(tmp_path, name, content):
    path = tmp_path / "a"
    path.write_bytes(content)
    assert {**FILES, **TABLES}[name](PROVENANCE).provenance_of(path) is None


# Numbers as they are stored


def on_disk(folder: Path, rows: np.ndarray) -> np.memmap:
    rows.tofile(folder / "rows")
    return np.memmap(folder / "rows", rows.dtype, "r", shape=rows.shape)


@pytest.mark.parametrize("columns", [None, slice(1, 3), [0, 3]])
@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_some_numbers_are_stored_as_what_is_asked_for(tmp_path, monkeypatch, dtype, columns):
    monkeypatch.setattr("hear_transformers.bulk.formats.ROWS_AT_ONCE", 2)
    wanted = (FRAMES if columns is None else FRAMES[:, columns]).astype(dtype)
    for rows in (FRAMES, on_disk(tmp_path, FRAMES)):
        found = stored(rows, dtype, columns, tmp_path)
        np.testing.assert_array_equal(found, wanted)
        assert found.dtype == dtype
    assert isinstance(found, np.memmap)


@pytest.mark.parametrize("value", [70_000.0, -1e30])
def test_what_float16_does_not_hold_is_refused(value):
    with pytest.raises(HearTransformersError, match="float16 ends at 65504; store it as float32"):
        stored(np.array([1.0, value], np.float32), "float16")


@pytest.mark.parametrize(
    ("out", "name", "chosen"),
    [
        (".", None, "npz"),
        ("folder.v2", None, "npz"),
        (".", "npy", "npy"),
        ("a.npy", None, "npy"),
        ("A.PARQUET", None, "parquet"),
        ("a.h5", None, "hdf5"),
        ("a.hdf5", "hdf5", "hdf5"),
        ("a.npz", "npz", "npz"),
    ],
)
def test_format_is_the_one_named_or_that_of_the_suffix(out, name, chosen):
    assert choose_format(Path(out), name) == chosen


@pytest.mark.parametrize("out", ["foo.csv", "x/foo.json", "foo.PT", "foo.txt", "foo.tsv", "foo.csv.gz", "foo.npz.bak"])
@pytest.mark.parametrize("name", [None, "npz"])
def test_a_suffix_of_no_format_is_refused(out, name):
    with pytest.raises(OptionError, match=r"ends in \.npz, .*; if it is to be a folder, end it in a slash"):
        choose_format(Path(out), name)


@pytest.mark.parametrize("out", ["foo.csv/", "out.v2/", "out.npz/", "run.2024-05", "out.v2", ".hidden", "a.b/c", ".."])
def test_a_folder_may_have_a_dot_in_its_name(out):
    assert choose_format(out, None) == "npz"
    destination = Destination.of(out, OutputOptions())
    assert (destination.folder, destination.file) == (Path(out), None)


@pytest.mark.parametrize("name", ["foo.csv", "foo.parquet", "foo.pt"])
def test_a_folder_that_exists_is_one_whatever_its_name(tmp_path, name):
    (tmp_path / name).mkdir()
    assert choose_format(tmp_path / name, None) == "npz"
    assert Destination.of(tmp_path / name, OutputOptions()).folder == tmp_path / name


@pytest.mark.parametrize(("name", "message"), [("csv", "npz, npy, parquet, hdf5"), ("npy", r"file name a\.npz")])
def test_a_wrong_format_says_what_is_right(name, message):
    with pytest.raises(OptionError, match=message):
        choose_format(Path("a.npz"), name)
