"""Many small tables become few: the same rows, columns and settings, whole or not at all."""

import json
import signal
import subprocess
import sys

import numpy as np
import pytest

from hear_transformers.bulk import compaction
from hear_transformers.bulk.compaction import compact
from hear_transformers.errors import OptionError
from hear_transformers.explore import reading
from tests.helpers.tables_of_embeddings import PROVENANCE, write_table

arrow = pytest.importorskip("pyarrow")
parquet = pytest.importorskip("pyarrow.parquet")

N_TABLES = 7


@pytest.fixture
def small(tmp_path):
    """Write seven tables of 10 to 16 rows."""
    rng = np.random.default_rng(0)
    for i in range(N_TABLES):
        vectors = rng.normal(size=(10 + i, 5))
        files = [f"{i}-{row}.wav" for row in range(len(vectors))]
        write_table(tmp_path / "small" / f"embeddings-{i}-of-{N_TABLES}.parquet", vectors, files)
    return tmp_path / "small"


def joined(folder) -> "arrow.Table":
    return arrow.concat_tables(parquet.read_table(path) for path in sorted(folder.glob("*.parquet")))


def names(folder) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


def test_rows_and_columns_are_the_same_in_the_same_order(small, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_ROWS", 8)
    done = compact(small, tmp_path / "large", rows=30)
    assert (len(done.tables), done.written, done.n_rows, done.n_inputs) == (3, 3, 91, N_TABLES)
    assert sorted((tmp_path / "large").iterdir()) == done.tables
    assert joined(tmp_path / "large").equals(joined(small))


def test_what_made_them_is_kept_and_each_has_its_identity(small, tmp_path):
    (table,) = compact(small, tmp_path / "large").tables
    metadata = parquet.read_schema(table).metadata
    assert json.loads(metadata[b"provenance"]) == PROVENANCE
    assert metadata[b"id"].decode() == table.stem


def test_rows_lie_in_groups_of_full_length(small, tmp_path, monkeypatch):
    monkeypatch.setattr(compaction, "GROUP_ROWS", 8)
    (table,) = compact(small, tmp_path / "large").tables
    metadata = parquet.read_metadata(table)
    assert [metadata.row_group(i).num_rows for i in range(metadata.num_row_groups)] == [8] * 11 + [3]


def test_search_finds_the_same_rows(small, tmp_path):
    compact(small, tmp_path / "large", rows=30)
    before, after = reading.read(small), reading.read(tmp_path / "large")
    np.testing.assert_array_equal(before.vectors, after.vectors)
    assert [before.span(i) for i in range(91)] == [after.span(i) for i in range(91)]


def test_a_column_that_only_some_have_is_null_for_the_others(small, tmp_path):
    path = small / f"embeddings-3-of-{N_TABLES}.parquet"
    rows = parquet.read_table(path)
    parquet.write_table(rows.append_column("station", arrow.array(["north"] * len(rows))), path)
    compact(small, tmp_path / "large")
    stations = joined(tmp_path / "large")["station"]
    assert (stations.null_count, len(stations)) == (91 - 13, 91)


def test_an_interrupted_call_leaves_nothing_under_its_name_and_goes_on(small, tmp_path):
    def interrupt(done: int, of: int) -> None:
        if done == 2:
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(small, tmp_path / "large", 30, interrupt)
    assert not (tmp_path / "large").exists()
    (tmp_path / ".large.compacting" / ".half.part").write_bytes(b"of a run that was killed")
    done = compact(small, tmp_path / "large", 30)
    assert done.written == 1
    assert joined(tmp_path / "large").equals(joined(small))
    assert names(tmp_path) == ["large", "small"]


KILLED = """
import os, signal, sys
from hear_transformers.bulk.compaction import compact
compact(*sys.argv[1:], 30, lambda done, of: os.kill(os.getpid(), signal.SIGKILL))
"""


@pytest.mark.skipif(not hasattr(signal, "SIGKILL"), reason="Windows has no SIGKILL")
def test_a_killed_call_goes_on(small, tmp_path):
    killed = subprocess.run([sys.executable, "-c", KILLED, small, tmp_path / "large"], check=False)
    assert killed.returncode == -signal.SIGKILL
    assert not (tmp_path / "large").exists()
    assert compact(small, tmp_path / "large", 30).written == 2
    assert joined(tmp_path / "large").equals(joined(small))


def test_tables_that_changed_since_are_joined_anew(small, tmp_path):
    def interrupt(done: int, of: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        compact(small, tmp_path / "large", 30, interrupt)
    rows = parquet.read_table(small / f"embeddings-0-of-{N_TABLES}.parquet").slice(0, 4)
    parquet.write_table(rows, small / f"embeddings-0-of-{N_TABLES}.parquet")
    compact(small, tmp_path / "large", 30)
    assert joined(tmp_path / "large").equals(joined(small))


def test_the_same_call_again_does_nothing(small, tmp_path):
    tables = compact(small, tmp_path / "large", 30).tables
    times = [path.stat().st_mtime_ns for path in tables]
    again = compact(small, tmp_path / "large", 30)
    assert (again.tables, again.written) == (tables, 0)
    assert [path.stat().st_mtime_ns for path in tables] == times


def test_no_more_than_a_group_of_rows_is_in_memory(small):
    schema = parquet.read_schema(small / f"embeddings-0-of-{N_TABLES}.parquet")
    inputs = [compaction._Input(path, 0, "") for path in sorted(small.iterdir())]
    lengths = [len(rows) for rows in compaction._row_groups(arrow, schema, inputs)]
    assert sum(lengths) == 91
    assert max(lengths) <= compaction.GROUP_ROWS


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda rows: rows.replace_schema_metadata({}), "does not say what made it"),
        (
            lambda rows: rows.replace_schema_metadata({"provenance": json.dumps({**PROVENANCE, "family": "ast"})}),
            "made with other settings: family tiny -> ast",
        ),
        (lambda rows: rows.set_column(1, "start", arrow.array(["0"] * len(rows))), "columns of other types"),
    ],
)
def test_tables_that_do_not_go_together_are_refused(small, tmp_path, change, match):
    path = small / f"embeddings-3-of-{N_TABLES}.parquet"
    parquet.write_table(change(parquet.read_table(path)), path)
    with pytest.raises(OptionError, match=match):
        compact(small, tmp_path / "large")
    assert names(tmp_path) == ["small"]


def test_a_folder_that_holds_something_else_is_refused(small, tmp_path):
    (tmp_path / "large").mkdir()
    (tmp_path / "large" / "note.txt").touch()
    with pytest.raises(OptionError, match="holds something else"):
        compact(small, tmp_path / "large")
    with pytest.raises(OptionError, match="is the folder of the small tables"):
        compact(small, small)
    with pytest.raises(OptionError, match=r"holds no \.parquet tables"):
        compact(tmp_path / "large", tmp_path / "other")


def test_the_command_says_what_it_did(small, tmp_path, installed_command):
    command = installed_command("hear-transformers")
    arguments = ("compact", small, "--out", tmp_path / "large", "--rows", 30)
    assert f"91 rows of {N_TABLES} tables -> 3 in" in command(*arguments).stdout
    assert "which were there already" in command(*arguments).stdout
    assert json.loads(command(*arguments, "--json").stdout)["written"] == 0
