"""Shards that say what they hold, on any file system."""

from pathlib import PurePath

import numpy as np
import pyarrow.parquet
import pytest

from hear_transformers.bulk.parquet import ParquetTable
from hear_transformers.bulk.shards import Part, Store, check_settings, name_of, reconcile, version_of
from hear_transformers.bulk.sources import Source
from hear_transformers.errors import HearTransformersError, OptionError
from hear_transformers.files import Address

SETTINGS = {"model": "m", "layer": 8}


@pytest.fixture(params=["folder", "memory"])
def store(request, tmp_path):
    """Give a folder of this machine, and one of another file system."""
    if request.param == "folder":
        yield Store.at(tmp_path / "out")
    else:
        store = Store.at(f"memory://{tmp_path.name}/out")
        yield store
        store.files.store.clear()


def part(file, version="1"):
    return Part(file, 0.0, None, None, version)


@pytest.fixture
def write(store, tmp_path):
    """Write a shard with two rows for each part, whose numbers are the version."""

    def make(*parts):
        table = tmp_path / "table.parquet"
        n = 2 * len(parts)
        with ParquetTable(SETTINGS, "8").create(table, "id") as add:
            add(
                {
                    "file": np.repeat(np.array([each.file for each in parts], object), 2),
                    "start": np.tile([0.0, 1.0], len(parts)),
                    "end": np.tile([1.0, 2.0], len(parts)),
                    "time_ms": np.full(n, np.nan),
                    "part_start": np.zeros(n),
                    "part_end": np.full(n, np.nan),
                    "audio_end": np.full(n, 2.0),
                    "embedding": np.repeat([float(each.version) for each in parts], 2)[:, None].astype(np.float32),
                }
            )
        name = name_of([SETTINGS], parts)
        store.write(table, name, parts, {})
        return name

    return make


def numbers(store):
    """Read file -> numbers of its rows, of all shards."""
    found = {}
    for name in store.shards():
        with store.files.open(f"{store.folder}/{name}") as file:
            table = pyarrow.parquet.read_table(file)
        for path, embedding in zip(table["file"].to_pylist(), table["embedding"].to_pylist(), strict=True):
            found.setdefault(path, []).append(embedding[0])
    return found


def test_a_shard_says_which_rows_it_holds(store, write):
    name = write(part("a.wav"), part("b.wav"))

    shard = store.shards()[name]

    assert [(rows.part, rows.count) for rows in shard.rows] == [(part("a.wav"), 2), (part("b.wav"), 2)]
    assert shard.provenance == SETTINGS


def test_the_same_content_has_the_same_name(write, store):
    assert write(part("a.wav")) == write(part("a.wav"))
    assert len(store.shards()) == 1


def test_rows_that_newer_ones_replace_are_removed_and_others_stay(store, write):
    write(part("a.wav"), part("b.wav"), part("c.wav"))
    write(part("b.wav", "2"))

    n_removed = reconcile(store, store.shards(), lambda shard, part: part.version == "2")

    assert n_removed == 1
    assert numbers(store) == {"a.wav": [1.0, 1.0], "b.wav": [2.0, 2.0], "c.wav": [1.0, 1.0]}


def test_a_shard_of_which_nothing_is_left_is_removed(store, write):
    older = write(part("a.wav"))
    write(part("a.wav", "2"))

    reconcile(store, store.shards(), lambda shard, part: part.version == "2")

    assert older not in store.shards()
    assert numbers(store) == {"a.wav": [2.0, 2.0]}


def test_other_settings_are_refused(store, write):
    write(part("a.wav"))

    with pytest.raises(OptionError, match="layer 8 -> 4"):
        check_settings(store, store.shards().values(), {**SETTINGS, "layer": 4})


def test_a_table_of_one_machine_is_refused(tmp_path):
    store = Store.at(tmp_path)
    with ParquetTable(SETTINGS, "8").create(tmp_path / "embeddings.parquet", "id") as add:
        add(
            {name: np.zeros(1) for name in ("start", "end")}
            | {"file": np.array(["a"], object), "embedding": np.ones((1, 1))}
        )

    with pytest.raises(OptionError, match="of one"):
        check_settings(store, store.shards().values(), SETTINGS)


def test_a_damaged_shard_is_named(tmp_path):
    (tmp_path / "0.parquet").write_bytes(b"PAR1 no")

    with pytest.raises(HearTransformersError, match=r"0\.parquet"):
        Store.at(tmp_path).shards()


def test_a_store_that_does_not_exist_yet_is_empty(tmp_path):
    assert Store.at(tmp_path / "new").shards() == {}


def test_a_file_in_the_place_of_the_folder_is_refused(tmp_path):
    (tmp_path / "out").touch()

    with pytest.raises(OptionError, match="is a file"):
        Store.at(tmp_path / "out").shards()


def test_an_unknown_kind_of_address_is_refused():
    with pytest.raises(OptionError, match="nosuch"):
        Store.at("nosuch://bucket/out")


def test_the_version_of_a_file_changes_with_it(tmp_path):
    path = tmp_path / "a.wav"
    path.write_bytes(b"1")
    before = version_of(Source(path, PurePath("a.wav")))

    path.write_bytes(b"12")

    assert version_of(Source(path, PurePath("a.wav"))) != before


def test_an_address_has_no_version():
    assert version_of(Source(Address("s3://bucket/a.wav"), PurePath("a.wav"))) == ""
