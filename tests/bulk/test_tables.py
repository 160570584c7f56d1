"""Tables of many embeddings: what they hold, in groups of rows, read back in any order, and by the tools people use."""

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.bulk import hdf5, parquet, tables
from hear_transformers.bulk.hdf5 import HDF5Table
from hear_transformers.bulk.parquet import ParquetTable
from hear_transformers.bulk.tables import Block, TableFormat
from hear_transformers.errors import OptionError

PROVENANCE = {"family": "passt", "layer": ["8"]}
NAN = float("nan")


def block(file: str, start: np.ndarray, end: np.ndarray, time_ms: np.ndarray, embedding: np.ndarray) -> Block:
    files = np.full(len(embedding), file, object)
    return {"file": files, "start": start, "end": end, "time_ms": time_ms, "embedding": embedding}


def scene(file: str, first: int = 0, dtype: str = "float32") -> Block:
    return block(
        file, np.array([0.0]), np.array([2.5]), np.array([NAN]), np.arange(first, first + 4)[None].astype(dtype)
    )


def frames(file: str, n_rows: int, first: int = 0) -> Block:
    times = np.arange(float(n_rows))
    numbers = np.arange(4 * n_rows, dtype=np.float32).reshape(n_rows, 4) + first
    return block(file, times, times + 1.0, 1000.0 * times, numbers)


def make(path: Path, form: TableFormat, *rows: Block, identity: str = "x") -> None:
    with form.create(path, identity) as add:
        for each in rows:
            add(each)


@pytest.fixture(params=[ParquetTable, HDF5Table])
def form(request):
    return request.param(PROVENANCE, "8")


def read_parquet(path: Path):
    return pytest.importorskip("pyarrow.parquet").read_table(path)


def test_parquet_holds_a_row_per_embedding_of_all_files(tmp_path):
    make(tmp_path / "t", ParquetTable(PROVENANCE, "8"), frames("a.wav", 2), scene("b.wav"))
    table = read_parquet(tmp_path / "t")
    assert table.column_names == ["file", "start", "end", "time_ms", "layer", "embedding"]
    assert str(table.schema.field("embedding").type) == "fixed_size_list<element: float>[4]"
    assert table.drop_columns(["embedding"]).to_pylist() == [
        {"file": "a.wav", "start": 0.0, "end": 1.0, "time_ms": 0.0, "layer": "8"},
        {"file": "a.wav", "start": 1.0, "end": 2.0, "time_ms": 1000.0, "layer": "8"},
        {"file": "b.wav", "start": 0.0, "end": 2.5, "time_ms": None, "layer": "8"},
    ]
    np.testing.assert_array_equal(np.stack(table["embedding"].to_pylist())[:2], frames("a.wav", 2)["embedding"])
    assert json.loads(table.schema.metadata[b"provenance"]) == PROVENANCE


def test_hdf5_holds_a_dataset_per_column(tmp_path):
    h5py = pytest.importorskip("h5py")
    make(tmp_path / "t", HDF5Table(PROVENANCE, "8"), frames("a.wav", 2), scene("b.wav"))
    with h5py.File(tmp_path / "t") as file:
        assert {name: column.shape for name, column in file.items()} == {
            "file": (3,), "start": (3,), "end": (3,), "time_ms": (3,), "embedding": (3, 4)
        }  # fmt: skip
        assert list(file["file"].asstr()) == ["a.wav", "a.wav", "b.wav"]
        np.testing.assert_array_equal(file["time_ms"], [0.0, 1000.0, NAN])
        np.testing.assert_array_equal(file["embedding"][:2], frames("a.wav", 2)["embedding"])
        assert json.loads(file.attrs["provenance"]) == PROVENANCE
        assert file.attrs["layer"] == "8"


def test_pandas_reads_a_table(tmp_path):
    pandas = pytest.importorskip("pandas")
    make(tmp_path / "t.parquet", ParquetTable(PROVENANCE, "8"), frames("a.wav", 2), scene("b.wav"))
    table = pandas.read_parquet(tmp_path / "t.parquet")
    assert list(table.file) == ["a.wav", "a.wav", "b.wav"]
    np.testing.assert_array_equal(np.stack(table.embedding)[:2], frames("a.wav", 2)["embedding"])


def test_pandas_reads_the_folders_of_layers_as_a_column(tmp_path):
    pandas = pytest.importorskip("pandas")
    paths = [tmp_path / f"layer={layer}" / "t.parquet" for layer in (4, 8)]
    for path in paths:
        path.parent.mkdir()
        make(path, ParquetTable(PROVENANCE, "8", partitioned=True), scene("a.wav"))
    assert list(pandas.read_parquet(paths).layer) == [4, 8]


@pytest.mark.parametrize("dtype", ["float32", "float16"])
def test_numbers_keep_their_type(tmp_path, form, dtype):
    make(tmp_path / "t", form, scene("a.wav", dtype=dtype))
    make(tmp_path / "again", form, scene("b.wav", dtype=dtype))
    with form.reader(tmp_path / "t") as read, form.create(tmp_path / "copy", "y") as add:
        for block in read(0, 1):
            add(block)
    for name in ("t", "copy"):
        assert dtype_of(tmp_path / name) == dtype


def dtype_of(path: Path) -> str:
    if path.read_bytes()[:4] == b"PAR1":
        return str(read_parquet(path).schema.field("embedding").type.value_type.to_pandas_dtype().__name__)
    with pytest.importorskip("h5py").File(path) as file:
        return str(file["embedding"].dtype)


def test_rows_of_any_place_are_copied(tmp_path, form, monkeypatch):
    for module in (tables, parquet, hdf5):
        monkeypatch.setattr(module, "GROUP_ROWS", 10)
    make(tmp_path / "t", form, frames("a.wav", 7), frames("b.wav", 25, first=100), scene("c.wav", 1000))
    make(tmp_path / "wanted", form, scene("c.wav", 1000), frames("b.wav", 25, first=100), frames("a.wav", 7))
    with form.reader(tmp_path / "t") as read, form.create(tmp_path / "copy", "x") as add:
        for place in ((32, 1), (7, 25), (0, 7)):
            for block in read(*place):
                add(block)
    assert rows_of(tmp_path / "copy") == rows_of(tmp_path / "wanted")


def rows_of(path: Path) -> list[tuple[str, list[float]]]:
    if path.read_bytes()[:4] == b"PAR1":
        table = read_parquet(path)
        return list(zip(table["file"].to_pylist(), table["embedding"].to_pylist(), strict=True))
    with pytest.importorskip("h5py").File(path) as file:
        return list(zip(file["file"].asstr()[:].tolist(), file["embedding"][:].tolist(), strict=True))


def test_parquet_has_row_groups_of_one_size(tmp_path, monkeypatch):
    arrow = pytest.importorskip("pyarrow.parquet")
    for module in (tables, parquet):
        monkeypatch.setattr(module, "GROUP_ROWS", 100)
    make(tmp_path / "t", ParquetTable(PROVENANCE), frames("a.wav", 70), frames("b.wav", 185))
    metadata = arrow.ParquetFile(tmp_path / "t").metadata
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [100, 100, 55]


def test_identity_and_provenance_are_read_back(tmp_path, form):
    make(tmp_path / "t", form, scene("a.wav"), identity="one")
    assert form.metadata_of(tmp_path / "t")["id"] == "one"
    assert form.provenance_of(tmp_path / "t") == PROVENANCE


@pytest.mark.parametrize(
    ("module", "form", "extra"), [("pyarrow", ParquetTable, "parquet"), ("h5py", HDF5Table, "hdf5")]
)
def test_what_is_not_installed_is_named(monkeypatch, module, form, extra):
    monkeypatch.setitem(sys.modules, module, None)
    with pytest.raises(OptionError, match=rf"pip install 'hear_transformers\[{extra}\]'"):
        form(PROVENANCE)
