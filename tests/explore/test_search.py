"""Search in a table: the numbers, the commands, what is refused."""

import json

import numpy as np
import pytest

from hear_transformers.bulk import parquet, tables
from hear_transformers.bulk.formats import NpyFiles, NpzFiles
from hear_transformers.errors import OptionError, WeightsError
from hear_transformers.explore import page, queries, reading, similarity
from hear_transformers.explore.similarity import Index, Neighbours
from tests.helpers.tables_of_embeddings import PROVENANCE, write_table


@pytest.fixture
def vectors() -> np.ndarray:
    return np.random.default_rng(0).normal(5.0, 1.0, (300, 12)).astype(np.float32)


@pytest.fixture
def search(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("search", *arguments)


def expected(vectors: np.ndarray) -> np.ndarray:
    """Compute all cosines after centring, in float64."""
    centred = vectors.astype(np.float64) - vectors.astype(np.float64).mean(0)
    centred /= np.linalg.norm(centred, axis=1, keepdims=True)
    return centred @ centred.T


@pytest.mark.parametrize("suffix", [".parquet", ".hdf5"])
def test_cosines_are_those_of_centred_vectors(vectors, tmp_path, suffix, monkeypatch):
    monkeypatch.setattr(similarity, "BLOCK_ROWS", 64)
    index = Index(reading.read(write_table(tmp_path / f"t{suffix}", vectors)))
    cosines, rows = index.search(index.centred(vectors[:5]), 7)
    full = expected(vectors)
    assert rows.tolist() == np.argsort(-full[:5], axis=1)[:, :7].tolist()
    np.testing.assert_allclose(cosines, np.sort(full[:5], axis=1)[:, ::-1][:, :7], atol=1e-6)


def in_memory_and_on_disk(path) -> tuple[reading.Rows, reading.Stored]:
    stored = reading.look_up(path, most_in_memory=0)
    assert isinstance(stored, reading.Stored)
    return reading.read(path), stored


@pytest.fixture
def shards(vectors, tmp_path, monkeypatch):
    """Write two tables of several groups of rows, an empty one between them, along time: three rows a file."""
    monkeypatch.setattr(tables, "GROUP_ROWS", 64)
    monkeypatch.setattr(parquet, "GROUP_ROWS", 64)
    monkeypatch.setattr(reading, "GROUP_ROWS", 64)
    files = [f"clip{i // 3}.wav" for i in range(300)]
    start = [float(i % 3) for i in range(300)]
    for name, some in (("a", slice(0, 200)), ("c", slice(200, 300))):
        given = files[some], start[some], [each + 1.5 for each in start[some]]
        write_table(tmp_path / "t" / f"{name}.parquet", vectors[some], *given)
    arrow = pytest.importorskip("pyarrow.parquet")
    arrow.write_table(arrow.read_table(tmp_path / "t" / "a.parquet").slice(0, 0), tmp_path / "t" / "b.parquet")
    return tmp_path / "t"


def test_tables_too_large_for_memory_stay_on_disk_and_are_searched_alike(vectors, shards):
    rows, stored = in_memory_and_on_disk(shards)
    both = [Index(each) for each in (rows, stored)]
    (cosines, found), (others, found_there) = (each.search(each.centred(vectors[:70]), 5) for each in both)
    np.testing.assert_array_equal(found, found_there)
    np.testing.assert_allclose(cosines, others, atol=1e-6)


def test_tables_on_disk_know_the_places_of_rows(shards):
    rows, stored = in_memory_and_on_disk(shards)
    assert len(rows) == len(stored) == 300
    assert [stored.span(i) for i in range(300)] == [rows.span(i) for i in range(300)]
    assert (stored.file_codes()[:-1] == stored.file_codes()[1:]).tolist() == (rows.file[:-1] == rows.file[1:]).tolist()


def test_rows_are_taken_from_tables_on_disk_in_any_order(shards):
    rows, stored = in_memory_and_on_disk(shards)
    some = np.array([299, 3, 70, 4, 201])
    one, other = rows.take(some), stored.take(some)
    np.testing.assert_array_equal(one.vectors, other.vectors)
    assert [one.span(i) for i in range(5)] == [other.span(i) for i in range(5)]


def test_near_duplicates_of_tables_on_disk(vectors, shards, monkeypatch):
    monkeypatch.setattr(similarity, "PAIRED_ROWS", 50)
    one, other = (Index(each).near_duplicates(0.7) for each in in_memory_and_on_disk(shards))
    assert len(one) > 3
    assert [pair[:2] for pair in one] == [pair[:2] for pair in other]


def test_nan_in_a_table_on_disk_is_refused_by_file_and_row(vectors, tmp_path):
    vectors[7, 3] = np.nan
    stored = reading.look_up(write_table(tmp_path / "t.parquet", vectors), most_in_memory=0)
    with pytest.raises(OptionError, match=r"row 7, of clip7\.wav, holds NaN"):
        Index(stored)


def test_equal_vectors_resemble_nothing_once_centred(tmp_path):
    index = Index(reading.read(write_table(tmp_path / "t.parquet", np.full((4, 3), 0.7))))
    assert not index.search(np.eye(3, dtype=np.float32), 2)[0].any()


def test_more_matches_than_rows_are_all_rows(vectors, tmp_path, search):
    table = write_table(tmp_path / "t.parquet", vectors[:4])
    found = json.loads(search(table, 0, "-k", 100, "--json").stdout)
    assert sorted(match["row"] for match in found["matches"]) == [1, 2, 3]


def test_a_row_as_query_does_not_find_itself(vectors, tmp_path, search):
    table = write_table(tmp_path / "t.parquet", vectors)
    result = search(table, 17, 4, "-k", 3, "--json")
    found = [json.loads(line) for line in result.stdout.splitlines()]
    assert [each["query"] for each in found] == ["17", "4"]
    order = np.argsort(-expected(vectors)[17])[1:4]
    assert [match["row"] for match in found[0]["matches"]] == order.tolist()
    assert found[0]["matches"][0]["file"] == f"clip{order[0]}.wav"


def test_matches_that_share_audio_are_one(tmp_path):
    """Rows 0 and 1 overlap in time, row 2 is elsewhere in the file, row 3 in another."""
    vectors = [[1, 0, 0], [1, 0.01, 0], [1, 0.02, 0], [1, 0.03, 0], [-1, 0, 0], [0, 1, 1], [0, -1, -1]]
    parts = {"files": list("aaabcde"), "start": [0, 1, 8, 0, 0, 0, 0], "end": [2, 3, 9, 2, 2, 2, 2]}
    index = Index(reading.read(write_table(tmp_path / "t.parquet", np.array(vectors), **parts)))
    found = queries.best_of(index, index.search, 0, 2)
    assert [match.row for match in found] == [2, 3]
    assert (found[0].span.file, found[0].span.start, found[0].span.end) == ("a", 8.0, 9.0)


def test_near_duplicates(vectors, tmp_path, search):
    vectors[250] = vectors[3] + 1e-4
    table = write_table(tmp_path / "t.parquet", vectors)
    (pair,) = map(json.loads, search(table, "--near-duplicates", "--json").stdout.splitlines())
    assert (pair["first"]["file"], pair["second"]["file"]) == ("clip3.wav", "clip250.wav")
    assert pair["cosine"] > 0.999
    assert "No two rows" in search(write_table(tmp_path / "u.parquet", vectors[:100]), "--near-duplicates").stdout


def test_an_index_of_neighbours_finds_the_same_and_is_built_once(vectors, tmp_path, search):
    pytest.importorskip("usearch")
    table = write_table(tmp_path / "t.parquet", vectors)
    first, again = (search(table, 17, "--ann", "--json") for _ in range(2))
    assert "built once" in first.stderr
    assert "built once" not in again.stderr
    assert first.stdout == again.stdout == search(table, 17, "--exact", "--json").stdout
    changed = Neighbours(Index(reading.read(write_table(table, vectors[:200]))), tmp_path / "t.parquet.usearch")
    assert not changed.is_built()


def test_audio_is_embedded_as_the_table_was(audio_file, tmp_path, search, installed_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    for i in range(3):
        audio_file(f"clips/{i}.wav", 0.1 * rng.normal(size=32_000 * (i + 1)) * np.linspace(0, 1, 32_000 * (i + 1)))
    audio_file("clips/tone.wav")
    embed = installed_command("embed-audio")
    for out, more in (
        ("scenes.parquet", ["--layer", "4,8", "--pool", "meanmax"]),
        ("means.parquet", ["--layer", "8", "--hop-ms", "100", "--scene"]),
        ("segments.hdf5", ["--segment", "1"]),
    ):
        assert embed("clips", "--out", out, *more, "--quiet", "--num-workers", 0).exit_code == 0
        (found,) = map(json.loads, search(out, "clips/tone.wav", "-k", 2, "--json").stdout.splitlines())
        assert found["matches"][0]["file"] == "clips/tone.wav"
        assert found["matches"][0]["cosine"] == pytest.approx(1.0, abs=1e-5)
    assert found["matches"][0]["query_s"] == 0.5


def test_outputs_of_single_files_are_rows(tmp_path, installed_command, audio_file, monkeypatch):
    monkeypatch.chdir(tmp_path)
    audio_file("clips/a.wav", seconds=2.0)
    audio_file("clips/b.wav", seconds=1.0)
    embed = installed_command("embed-audio")
    assert embed("clips", "--out", "npz", "--hop-ms", 500, "--quiet", "--num-workers", 0).exit_code == 0
    assert embed("clips", "--out", "npy", "--format", "npy", "--quiet", "--num-workers", 0).exit_code == 0
    along, scenes = reading.read("npz"), reading.read("npy")
    assert (len(along), len(scenes)) == (8, 2)
    assert along.start.tolist() == [0, 0.25, 0.75, 1.25, 1.75, 0, 0.25, 0.75]
    assert [scenes.span(i).file for i in range(2)] == [str(tmp_path / "clips" / name) for name in ("a.wav", "b.wav")]


def refused(tmp_path, *, match: str) -> None:
    with pytest.raises(OptionError, match=match):
        reading.read(tmp_path)


def test_nan_is_refused_by_file_and_row(vectors, tmp_path, search):
    vectors[7, 3] = np.nan
    result = search(write_table(tmp_path / "t.parquet", vectors), 0)
    assert result.exit_code == 2
    assert "row 7, of clip7.wav, holds NaN" in result.stderr


def test_an_empty_table_is_refused(vectors, tmp_path):
    table = tmp_path / "t.parquet"
    write_table(table, vectors)
    parquet = pytest.importorskip("pyarrow.parquet")
    parquet.write_table(parquet.read_table(table).slice(0, 0), table)
    refused(table, match="the table is empty")


def test_mixed_settings_are_refused(vectors, tmp_path):
    write_table(tmp_path / "a.parquet", vectors)
    write_table(tmp_path / "b.parquet", vectors, provenance={**PROVENANCE, "layers": ["4"]})
    refused(tmp_path, match=r"a\.parquet and .*b\.parquet were made with other settings: layer none -> 4")


def test_outputs_of_two_models_are_refused(tmp_path):
    for name, family in (("a.npz", "tiny"), ("b.npz", "ast")):
        audio = {"file": name, "start": 0.0, "end": None}
        NpzFiles({**PROVENANCE, "family": family}).write(tmp_path / name, {"embedding": np.zeros(3)}, audio)
    refused(tmp_path, match="family tiny -> ast")


def test_a_joined_table_of_several_layers_is_refused(vectors, tmp_path):
    arrow = pytest.importorskip("pyarrow")
    table = arrow.parquet.read_table(write_table(tmp_path / "t.parquet", vectors))
    layers = arrow.array(["4"] * 100 + ["8"] * 200)
    joined = table.set_column(table.column_names.index("layer"), "layer", layers).replace_schema_metadata({})
    arrow.parquet.write_table(joined, tmp_path / "t.parquet")
    refused(tmp_path, match="several layers, 4, 8")


def test_embeddings_of_several_sizes_are_refused(tmp_path):
    for name, size in (("a.npy", 3), ("b.npy", 4)):
        NpyFiles(PROVENANCE).write(tmp_path / name, {"embedding": np.zeros(size)}, {"file": name})
    refused(tmp_path, match="embeddings of 3 and of 4 numbers")


@pytest.mark.parametrize(
    ("name", "content", "match"),
    [
        ("a.txt", b"", "holds no embeddings"),
        ("a.parquet", b"no table", r"a\.parquet"),
        ("a.npz", b"no archive", "is no output of embed-audio"),
    ],
)
def test_other_files_are_refused(tmp_path, name, content, match):
    (tmp_path / name).write_bytes(content)
    refused(tmp_path, match=match)


def test_tables_of_others_say_which_columns_are_needed(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    arrow.parquet.write_table(arrow.table({"name": ["a"]}), tmp_path / "a.parquet")
    refused(tmp_path, match="needs the columns file and embedding")


def test_audio_needs_a_table_that_names_its_model(vectors, tmp_path):
    rows = reading.read(write_table(tmp_path / "t.parquet", vectors, provenance={}))
    with pytest.raises(OptionError, match="does not say what model made it"):
        queries.load_model(rows)


def test_other_weights_are_refused(audio_file, tmp_path, installed_command, monkeypatch):
    monkeypatch.chdir(tmp_path)
    assert installed_command("embed-audio")(audio_file(), "--out", "t.parquet", "--quiet").exit_code == 0
    rows = reading.read("t.parquet")
    rows.provenance["weights_sha256"] = "0" * 64
    with pytest.raises(WeightsError, match="000000000000"):
        queries.load_model(rows, device="cpu")


def test_a_row_that_is_not_there(vectors, tmp_path, search):
    result = search(write_table(tmp_path / "t.parquet", vectors), 300)
    assert (result.exit_code, "rows 0 to 299" in result.stderr) == (2, True)


def test_a_query_or_duplicates(vectors, tmp_path, search):
    assert search(write_table(tmp_path / "t.parquet", vectors)).exit_code == 2


def test_a_page_of_tables_on_disk_is_of_whole_files_of_the_same_rows(shards, monkeypatch):
    monkeypatch.setattr(page, "MOST_POINTS", 40)
    drawn = page.sample(reading.look_up(shards, most_in_memory=0))
    everything = reading.read(shards)
    assert 3 <= len(drawn) <= 40
    assert len(drawn) == 3 * len(drawn.files)
    spans = [everything.span(i) for i in range(300)]
    rows = [spans.index(drawn.span(i)) for i in range(len(drawn))]
    np.testing.assert_array_equal(drawn.vectors, everything.vectors[rows])
