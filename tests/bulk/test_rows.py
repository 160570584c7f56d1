"""A table has a row for every row of the manifest, whatever is listed twice, cut short, or embedded before."""

import math
import random
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
import torch

from hear_transformers.bulk import extract, manifest, table_output
from hear_transformers.bulk.outputs import OutputOptions, Shard
from hear_transformers.bulk.sources import Source, each_once, expand_inputs, find_sources
from hear_transformers.embedding.external import ExternalModel

FORMATS = ["parquet", "hdf5"]

Row = tuple[str, float, float]


class Sums(ExternalModel):
    """Embeds a clip as its length and its energy, and counts the clips."""

    def __init__(self) -> None:
        self.sample_rate, self.batch_size, self.layers, self.precision = 32_000, None, (), "float32"
        self.scene_embedding_size = 2
        self.n_clips = 0

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        self.n_clips += len(waveforms)
        return torch.stack([torch.full((len(waveforms),), float(waveforms.shape[1])), (waveforms**2).sum(1)], 1)

    def provenance(self):
        return {"family": "sums"}


def columns_of(path: Path) -> dict[str, list]:
    if path.suffix == ".parquet":
        return pytest.importorskip("pyarrow.parquet").read_table(path).to_pydict()
    with pytest.importorskip("h5py").File(path) as file:
        columns = {name: column[:].tolist() for name, column in file.items()}
        return columns | {"file": list(file["file"].asstr())}


def rows_of(path: Path) -> list[Row]:
    """Read what the rows of a table are of: file, start and end as they were asked for, infinity for no end."""
    columns = columns_of(path)
    ends = [math.inf if end is None or math.isnan(end) else end for end in columns["part_end"]]
    return list(zip(columns["file"], columns["part_start"], ends, strict=True))


def listed(folder: Path, rows: list[tuple[str, object, object]]) -> list[Source]:
    text = "".join(f"{name},{start},{end}\n" for name, start, end in rows)
    (folder / "list.csv").write_text(f"path,start,end\n{text}")
    return manifest.read_manifest(folder / "list.csv")


def wanted(sources: list[Source]) -> list[Row]:
    return [(str(source.path), source.start, source.end) for source in sources]


@pytest.fixture
def clips(audio_file, tmp_path):
    audio_file("a.wav", seconds=2.0)
    audio_file("b.wav")
    audio_file("sub/c.flac", seconds=0.5)
    return tmp_path


SAME = [("a.wav", 0, 1), ("a.wav", 0, 1), ("a.wav", 0, 5), ("b.wav", "", "")]


@pytest.mark.parametrize("format", FORMATS)
def test_the_rows_are_those_of_the_manifest_in_its_order(clips, format):
    sources = listed(clips, [*SAME, ("sub/c.flac", 0.25, ""), ("a.wav", 0, 1)])
    model = Sums()
    report = extract.extract(model, sources, clips / "out", OutputOptions(format))
    table = report.written[0].output
    assert rows_of(table) == wanted(sources)
    assert (model.n_clips, len(report.written), report.repeated) == (4, 4, 2)
    columns = columns_of(table)
    assert columns["start"] == [0, 0, 0, 0, 0.25, 0]
    assert columns["end"] == [1, 1, 5, 1, 0.5, 1]  # as asked for, or the end of the audio
    assert columns["audio_end"] == [1, 1, 2, 1, 0.5, 1]
    lengths = [embedding[0] for embedding in columns["embedding"]]
    assert lengths == [32_000, 32_000, 64_000, 32_000, 8_000, 32_000]


@pytest.mark.parametrize("format", FORMATS)
def test_rows_along_time_are_there_as_often(clips, small_model, format):
    sources = listed(clips, [("b.wav", 0, 0.5), ("b.wav", 0, 5), ("b.wav", 0, 0.5)])
    options = {"timestamps": True}
    (first, _) = extract.extract(small_model, sources, clips / "out", OutputOptions(format), **options).written
    counts = Counter(rows_of(first.output))
    path = str(clips / "b.wav")
    assert counts == {(path, 0.0, 0.5): 22, (path, 0.0, 5.0): 21}
    assert set(columns_of(first.output)["audio_end"]) == {0.5, 1.0}


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_files_of_the_same_part_are_one_and_counted(clips, format):
    report = extract.extract(Sums(), listed(clips, SAME), clips / "out", OutputOptions(format))
    assert (len(report.written), report.repeated) == (3, 1)
    assert len(list((clips / "out").glob(f"*.{format}"))) == 3


@pytest.mark.parametrize("spelling", ["sub/../a.wav", "./a.wav", "other/a.wav"])
def test_a_file_under_two_names_has_a_row_for_each(clips, spelling):
    (clips / "other").symlink_to(clips, target_is_directory=True)
    sources = listed(clips, [("a.wav", 0, 1), (spelling, 0, 1), ("b.wav", 0, 1)])
    report = extract.extract(Sums(), sources, clips / "out", OutputOptions("parquet"))
    assert rows_of(report.written[0].output) == wanted(sources)


def random_rows(rng: random.Random, n: int) -> list[tuple[str, object, object]]:
    names = ["a.wav", "b.wav", "sub/c.flac", "sub/../a.wav"]
    return [(rng.choice(names), rng.choice(["", 0, 0.25]), rng.choice(["", 0.4, 0.5, 9])) for _ in range(n)]


@pytest.mark.parametrize("seed", range(6))
def test_runs_of_any_manifests_one_after_the_other_end_with_the_rows_of_the_last(clips, monkeypatch, seed):
    rng = random.Random(seed)
    format = FORMATS[seed % 2]
    monkeypatch.setattr(table_output, "PART_ROWS", rng.choice([1, 3, 8192]))
    options, everything = OutputOptions(format), {}
    for _ in range(3):
        sources = listed(clips, random_rows(rng, 12))

        def perhaps_interrupt(outcome):
            if rng.random() < 0.1:
                raise KeyboardInterrupt

        try:
            extract.extract(Sums(), sources, clips / "out", options, on_outcome=perhaps_interrupt)
        except KeyboardInterrupt:
            extract.extract(Sums(), sources, clips / "out", options)
        table = clips / f"out/embeddings.{format}"
        places = {(Path(name).resolve(), start, end) for name, start, end in wanted(sources)}
        for place in places:
            everything.pop(place, None)
        for name, start, end in wanted(sources):
            everything.setdefault((Path(name).resolve(), start, end), []).append((name, start, end))
        assert Counter(rows_of(table)) == Counter(row for rows in everything.values() for row in rows)
        assert rows_of(table)[-len(sources) :] == wanted(sources)


def test_shards_share_rows_that_are_the_same(clips):
    sources = listed(clips, SAME * 2)
    tables = []
    for i in range(3):
        report = extract.extract(Sums(), sources, clips / "out", OutputOptions("parquet", shard=Shard(i, 3)))
        tables += {outcome.output for outcome in report.written}
    assert Counter(row for table in tables for row in rows_of(table)) == Counter(wanted(sources))


@pytest.mark.parametrize("inputs", [["b.wav", "./b.wav"], [".", "b.wav"], ["*.wav", "a.wav", "."]])
def test_inputs_named_twice_are_embedded_once(clips, monkeypatch, inputs):
    monkeypatch.chdir(clips)
    found = find_sources(inputs)
    assert len(found) < len(list(expand_inputs(inputs)))
    report = extract.extract(Sums(), found, clips / "out", OutputOptions("parquet"))
    assert Counter(rows_of(report.written[0].output)) == Counter(wanted(found))


def test_an_input_that_the_manifest_lists_is_no_other_row(clips):
    sources = listed(clips, SAME)
    beside = each_once([Source(clips / name, Path(name)) for name in ("b.wav", "a.wav")], beside=sources)
    assert [source.path.name for source in beside] == ["a.wav"]


def test_many_parts_of_one_file_hash_it_once(clips, monkeypatch):
    hashed = []
    digest = "hear_transformers.audio.reading.digest_of"
    monkeypatch.setattr(digest, lambda file, algorithm: hashed.append(file) or "0" * 64)
    sources = listed(clips, [("a.wav", i / 100, i / 100 + 0.1) for i in range(100)])
    extract.extract(Sums(), sources, clips / "out", OutputOptions("parquet"))
    assert len(hashed) == 1


def test_embeddings_of_rows_are_theirs_after_a_resumed_run(clips):
    sources = listed(clips, [("a.wav", i / 10, i / 10 + 0.1 * (1 + i % 3)) for i in range(12)] * 2)
    extract.extract(Sums(), sources[3:9], clips / "out", OutputOptions("parquet"))
    extract.extract(Sums(), sources, clips / "out", OutputOptions("parquet"))
    extract.extract(Sums(), sources, clips / "once", OutputOptions("parquet"))
    again, once = (columns_of(clips / name / "embeddings.parquet") for name in ("out", "once"))
    assert again["start"] == once["start"]
    np.testing.assert_array_equal(again["embedding"], once["embedding"])
