"""The same rows from a cluster as from one machine, whatever dies."""

import json
import os
import signal

import numpy as np
import psutil
import pyarrow.dataset
import pyarrow.parquet
import pytest
import soundfile

from hear_transformers import ray as on_ray
from hear_transformers.bulk.extract import extract
from hear_transformers.bulk.outputs import OutputOptions
from hear_transformers.bulk.sources import find_sources
from hear_transformers.catalogue import load
from hear_transformers.errors import OptionError
from hear_transformers.ray import pieces

ray = pytest.importorskip("ray.data", reason="the extra ray is not installed")

pytestmark = [
    pytest.mark.slow,  # processes that import PyTorch take seconds each to start
    pytest.mark.filterwarnings("ignore::DeprecationWarning"),  # Ray's, of its own use of its settings
]

MODEL = "efficientat/mn01_as"


@pytest.fixture
def embed(cluster, small_weights, tmp_path):
    """Embed on the cluster into a folder."""

    def run(sources, model=MODEL, *, weights=small_weights, **options):
        given = {"actors": 1, "cores": 1, "block_size": 8, "device": "cpu"}
        return on_ray.embed(sources, tmp_path / "out", model, weights=str(weights), **{**given, **options})

    return run


@pytest.fixture
def plain(small_weights, tmp_path):
    """Embed on one machine; return the table."""

    def run(sources, *, timestamps=False, **options):
        model = load(MODEL, str(small_weights), "cpu", options)
        out = tmp_path / "plain.parquet"
        extract(model, find_sources(map(str, sources)), out, OutputOptions("parquet"), timestamps=timestamps)
        return pyarrow.parquet.read_table(out)

    return run


def rows(folder):
    """Read the rows of all shards, in the order of the files and of time."""
    table = pyarrow.dataset.dataset(folder, format="parquet", exclude_invalid_files=True).to_table()
    return table.sort_by([("file", "ascending"), ("start", "ascending")])


def assert_same(found, expected):
    """Check columns, their types and values."""
    assert found.schema.names == expected.schema.names
    assert found.schema.types == expected.schema.types
    expected = expected.sort_by([("file", "ascending"), ("start", "ascending")])
    for name in set(found.schema.names) - {"embedding"}:
        assert found[name].to_pylist() == expected[name].to_pylist(), name
    np.testing.assert_allclose(*(embeddings(each) for each in (found, expected)), atol=1e-5)


def embeddings(table):
    return np.array(table["embedding"].to_pylist())


def actors():
    """Return the processes of actors that embed."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if "ray::MapWorker" in " ".join(each.info["cmdline"] or [])]


def test_rows_and_provenance_are_those_of_one_machine(embed, plain, clips, tmp_path):
    report = embed(clips, actors=2)

    expected = plain(clips)
    assert [outcome.source for outcome in report.written] == [str(path) for path in clips]
    assert_same(rows(tmp_path / "out"), expected)
    (shard, *_) = (tmp_path / "out").glob("*.parquet")
    provenance = pyarrow.parquet.read_schema(shard).metadata[b"provenance"]
    assert json.loads(provenance) == json.loads(expected.schema.metadata[b"provenance"])


def test_a_bad_file_is_a_row_of_the_failures_and_stops_nothing(embed, clips, tmp_path):
    bad = tmp_path / "clips" / "bad.wav"
    bad.write_bytes(b"RIFF")

    report = embed([*clips[:10], bad, tmp_path / "missing.wav"])

    assert len(report.written) == 10
    listed = [json.loads(line) for line in (tmp_path / "out" / "failures.jsonl").read_text().splitlines()]
    assert {line["file"] for line in listed} == {str(bad), str(tmp_path / "missing.wav")}


def test_running_it_again_does_what_is_missing(embed, clips, tmp_path):
    embed(clips[:20])
    before = {path.name for path in (tmp_path / "out").iterdir()}

    report = embed(clips[:30])

    assert (len(report.skipped), len(report.written)) == (20, 10)
    assert before < {path.name for path in (tmp_path / "out").iterdir()}


def test_a_run_that_was_ended_in_the_middle_is_resumed(embed, plain, clips, tmp_path):
    def end_it(outcome):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        embed(clips[:24], on_outcome=end_it)
    report = embed(clips[:24])

    assert len(report.skipped) >= 8
    assert len(report.skipped) + len(report.written) == 24
    assert_same(rows(tmp_path / "out"), plain(clips[:24]))


def test_a_changed_file_is_embedded_again_and_has_its_rows_once(embed, plain, clips, tmp_path):
    embed(clips[:20])
    soundfile.write(clips[3], 0.1 * np.ones(20_000), 32_000)

    report = embed(clips[:20])

    assert [outcome.source for outcome in report.written] == [str(clips[3])]
    assert_same(rows(tmp_path / "out"), plain(clips[:20]))


def test_rows_of_a_changed_file_stay_new_after_a_run_that_was_ended(embed, plain, clips, tmp_path):
    def end_it(outcome):
        if outcome.status == "written":
            raise KeyboardInterrupt

    embed(clips[:6])
    for i in range(6):
        soundfile.write(clips[i], (0.02 + 0.01 * i) * np.ones(20_000), 32_000)
    with pytest.raises(KeyboardInterrupt):
        embed(clips[:6], block_size=2, on_outcome=end_it)
    embed(clips[:6])

    assert_same(rows(tmp_path / "out"), plain(clips[:6]))


def test_a_machine_and_an_actor_that_die_cost_nothing(cluster, embed, plain, clips, tmp_path):
    machine = cluster.add_node(num_cpus=2, object_store_memory=2**27)
    seen = []

    def kill_by_and_by(outcome):
        seen.append(outcome)
        if len(seen) == 9:
            cluster.remove_node(machine, allow_graceful=False)
        if len(seen) == 17 and (alive := actors()):
            os.kill(alive[0].pid, signal.SIGKILL)

    report = embed(clips, block_size=4, actors=4, cores=2, on_outcome=kill_by_and_by)

    assert [outcome.source for outcome in report.written] == [str(path) for path in clips]
    assert_same(rows(tmp_path / "out"), plain(clips))


def test_a_file_that_kills_its_actor_is_a_failure_and_the_only_one(embed, clips, tmp_path):
    lethal = tmp_path / "clips" / "lethal.wav"
    soundfile.write(lethal, np.full(16_000, 0.95), 32_000)

    report = embed([*clips[:12], lethal], "deadly", weights="")

    assert [outcome.source for outcome in report.failed] == [str(lethal)]
    assert "2 attempts" in report.failed[0].message
    assert len(report.written) == 12


def test_segments_of_a_long_file_are_shared_out_and_equal(embed, plain, tmp_path, monkeypatch):
    long = tmp_path / "long.wav"
    soundfile.write(long, 0.1 * np.random.default_rng(1).standard_normal(32_000 * 31 + 5_000), 32_000)
    monkeypatch.setattr(pieces, "SPLIT_BYTES", 1000)
    monkeypatch.setattr(pieces, "SPLIT_SECONDS", 6.0)

    report = embed([long], segment=1.5, overlap=0.5, block_size=1)

    expected = plain([long], timestamps=True, segment=1.5, overlap=0.5)
    assert_same(rows(tmp_path / "out"), expected)
    assert [outcome.shape for outcome in report.written] == [(len(expected), embeddings(expected).shape[1])]
    assert len([*(tmp_path / "out").glob("*.parquet")]) > 3


def test_layers_have_folders_of_their_own(embed, clips, tmp_path):
    report = embed(clips[:4], layer=(3, 5), separate_layers=True)

    assert len(report.written) == 4
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["layer=3", "layer=5"]
    assert len(rows(tmp_path / "out" / "layer=3")) == 4


def test_several_models_have_folders_of_their_own(embed, clips, tmp_path):
    report = embed(clips[:4], ("tiny", "deadly"), weights="")

    assert len(report.written) == 4
    assert {path.name: len(rows(path)) for path in (tmp_path / "out").iterdir()} == {
        "model=tiny-tiny": 4,
        "model=deadly": 4,
    }


def test_a_dataset_names_parts_of_files(embed, clips):
    named = [{"path": str(clips[0]), "start": 0.0, "end": 0.25}, {"path": str(clips[0]), "start": 0.25, "end": 0.5}]

    report = embed(ray.from_items(named))

    assert [(outcome.start, outcome.end) for outcome in report.written] == [(0.0, 0.25), (0.25, 0.5)]


def test_a_dataset_of_waveforms_is_refused(embed):
    with pytest.raises(OptionError, match="names of files, not what they hold"):
        embed(ray.from_items([{"audio": [0.0, 0.1]}]))


def test_other_settings_are_refused_in_the_same_folder(embed, clips):
    embed(clips[:2])

    with pytest.raises(OptionError, match="other settings"):
        embed(clips[:2], layer=3)


def test_the_command_does_the_same(cluster, embed, plain, clips, small_weights, tmp_path, installed_command):
    files = map(str, clips[:4])
    model = ("--model", "efficientat", "--variant", "mn01_as", "--weights", str(small_weights))
    where = ("--engine", "ray", "--address", cluster.address, "--actors", "1", "--cores", "1", "--device", "cpu")

    result = installed_command("embed-audio")(*files, *model, *where, "--out", tmp_path / "out")

    assert result.exit_code == 0, result.output
    assert "4 written" in result.output
    assert_same(rows(tmp_path / "out"), plain(clips[:4]))


def test_errors_of_the_model_name_the_option(embed, clips):
    with pytest.raises(OptionError, match="layer"):
        embed(clips[:2], layer=99)


def test_more_actors_than_fit_are_refused(embed, clips):
    with pytest.raises(OptionError, match="ray#44687"):
        embed(clips[:2], actors=7)
