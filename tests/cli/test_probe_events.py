"""Events: from labelled parts of long files to a probe, and to tables of what it finds in others."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from hear_transformers.bulk.selections import Selection, write_each, write_selections
from hear_transformers.probes import saved
from tests.helpers import hear_tasks

RATE = 32_000
HZ = {"low": 300, "high": 5000}


def recording(rng):
    """Make 4 s of noise with a low and a high tone of 0.8 s, and say where these are."""
    samples, events = 0.001 * rng.standard_normal(4 * RATE), []
    for i, label in enumerate(rng.permutation([*HZ]).tolist()):
        start = round(2 * i + rng.uniform(0.1, 1.1), 3)
        t = np.arange(round(0.8 * RATE)) / RATE
        first = round(start * RATE)
        samples[first : first + len(t)] += 0.3 * np.sin(2 * np.pi * HZ[label] * t)
        events.append((label, start, start + 0.8))
    return samples, events


@pytest.fixture
def recordings(tmp_path, audio_file, monkeypatch):
    """Make six recordings, and say what is in each."""
    monkeypatch.chdir(tmp_path)
    rng = np.random.default_rng(0)
    truth = {}
    for i in range(6):
        samples, truth[f"audio/{i}.wav"] = recording(rng)
        audio_file(f"audio/{i}.wav", samples)
    return truth


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def write_table(path, truth, lines=()):
    rows = [f"{name},{label},{start},{end}" for name, found in truth.items() for label, start, end in found]
    path.write_text("\n".join(["path,labels,start,end", *rows, *lines]) + "\n")


@pytest.fixture
def probe(installed_command, small_weights):
    small = ["--model", "mn01_as", "--weights", small_weights, "--layer", "mel", "--hop-ms", 40, "--framing", "native"]

    def run(*arguments):
        return installed_command("hear-transformers")("probe", *arguments, *small, "--folds", 3, "--out", "mine")

    return run


def test_a_table_of_events_becomes_a_probe_that_finds_them(recordings, tmp_path, probe, installed_command):
    write_table(tmp_path / "events.csv", recordings)
    result = probe("events.csv", "--events")
    assert result.exit_code == 0, result.stderr
    assert "6 files with events, 2 classes; split: 3 folds of whole files, drawn with seed 0" in result.stdout
    scores = json.loads((tmp_path / "mine/scores.json").read_text())["probes"]["logistic"]
    assert list(scores)[:3] == ["onset_f1_200ms", "onset_f1_50ms", "segment_error_rate"]
    assert scores["onset_f1_200ms"]["value"] > 0.9
    assert scores["segment_error_rate"]["value"] < 0.2
    assert scores["settings"]["1"]["processing"]["median_filter_ms"] == 250
    assert [row["class"] for row in rows_of(tmp_path / "mine/scores.csv")] == ["high", "low"]
    assert {row["predicted"] for row in rows_of(tmp_path / "mine/predictions.csv")} == {"high", "low"}
    kept = saved.read("mine")
    assert kept.processing is not None
    assert kept.provenance["hop_ms"] == kept.model["hop_ms"] == 40
    done = installed_command("embed-audio")("audio", "--probe", "mine", "--out", "found.csv")
    assert done.exit_code == 0, done.stderr
    found = {(row["path"], row["label"]): float(row["start"]) for row in rows_of(tmp_path / "found.csv")}
    true = {(str(tmp_path / name), label): start for name, each in recordings.items() for label, start, _ in each}
    assert found.keys() == true.keys()
    assert all(abs(found[each] - true[each]) < 0.2 for each in true)


def test_what_is_found_is_written_for_raven_and_audacity(recordings, tmp_path, probe, installed_command):
    write_table(tmp_path / "events.csv", recordings)
    probe("events.csv", "--events")
    embed = installed_command("embed-audio")
    assert embed("audio", "--probe", "mine", "--format", "raven", "--out", "raven").exit_code == 0
    assert embed("audio/3.wav", "--probe", "mine", "--format", "audacity", "--out", "3.txt").exit_code == 0
    assert embed("audio/3.wav", "--probe", "mine", "--out", "3.csv").exit_code == 0
    assert len(list((tmp_path / "raven").glob("*.selections.txt"))) == 6
    tables = [tmp_path / "raven/3.Table.1.selections.txt", tmp_path / "3.csv", tmp_path / "3.txt"]
    of_raven = list(csv.DictReader(tables[0].read_text().splitlines(), delimiter="\t"))
    starts = [[float(row["Begin Time (s)"]) for row in of_raven]]
    starts.append([float(row["start"]) for row in rows_of(tables[1])])
    starts.append([float(line.split("\t")[0]) for line in tables[2].read_text().splitlines()])
    assert starts[0] == starts[1] == starts[2]
    assert all(start * 25 == pytest.approx(round(start * 25), abs=1e-9) for start in starts[0])  # multiples of the hop
    refused = embed("audio", "--probe", "mine", "--format", "audacity", "--out", "all.txt")
    assert refused.exit_code == 2
    assert "a label track of Audacity is of one file" in refused.stderr
    assert "give --format raven or audacity" in embed("audio", "--probe", "mine", "--out", "all.txt").stderr
    assert "the output is csv, raven, audacity" in embed("audio", "--probe", "mine", "--format", "npz").stderr


def test_events_of_a_part_of_a_file_are_in_the_time_of_the_file(recordings, tmp_path, probe, installed_command):
    write_table(tmp_path / "events.csv", recordings)
    probe("events.csv", "--events")
    (tmp_path / "parts.csv").write_text("path,start,end\naudio/3.wav,1.9,4\n")
    done = installed_command("embed-audio")("--manifest", "parts.csv", "--probe", "mine", "--out", "part.csv")
    assert done.exit_code == 0, done.stderr
    (row,) = rows_of(tmp_path / "part.csv")
    label, start, _ = recordings["audio/3.wav"][1]
    assert row["label"] == label
    assert abs(float(row["start"]) - start) < 0.2


def test_a_table_of_raven_and_a_folder_of_such_say_the_same(recordings, tmp_path, probe):
    found = [Selection(name, start, end, label) for name, each in recordings.items() for label, start, end in each]
    write_selections(tmp_path / "all.txt", found, "raven")
    write_each(tmp_path / "tables", found, "raven")
    scores = []
    for data in ("all.txt", "tables"):
        result = probe(data, "--events", "--json")
        assert result.exit_code == 0, result.stderr
        scores.append(json.loads(result.stdout)["probes"])
    assert scores[0] == scores[1]


def test_a_task_of_events_of_hear_is_probed_in_its_splits(tmp_path, probe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hear_tasks.write_events(tmp_path, hear_tasks.synthesised(3, 2, 0.8), (6, 2, 2), [RATE], {})
    result = probe(hear_tasks.EVENTS, "--json", "--probe", "knn")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["split"] == "given: test (2), train (6), valid (2)"


def test_a_file_in_which_nothing_is_heard_counts(recordings, tmp_path, probe, audio_file):
    audio_file("audio/silence.wav", np.zeros(4 * RATE))
    write_table(tmp_path / "events.csv", recordings, ["audio/silence.wav,,,"])
    result = probe("events.csv", "--events")
    assert result.exit_code == 0, result.stderr
    assert "7 files with events" in result.stdout


def test_one_class_is_enough_where_it_is_found_in_time(recordings, tmp_path, probe):
    truth = {name: [event for event in each if event[0] == "low"] for name, each in recordings.items()}
    write_table(tmp_path / "events.csv", truth)
    result = probe("events.csv", "--events")
    assert result.exit_code == 0, result.stderr
    assert "6 files with events, 1 classes" in result.stdout


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["audio/0.wav,low,,"], "line 2 has the label 'low' and no end"),
        (["audio/0.wav,low,3,2"], "with an end that is not after the start"),
        (["audio/0.wav,,,", "audio/1.wav,,,"], "no row has a label"),
        (["audio/none.wav,low,1,2"], "an audio file that is missing"),
        ([], "no rows below the header"),
        ([f"audio/{i}.wav,low,1.001,1.002" for i in range(6)], "lies in an event of 'low'"),
        (["audio/0.wav,high,0,1", *(f"audio/{i}.wav,low,1,2" for i in range(1, 6))], "no clip of 'high'"),
    ],
)
def test_events_without_an_answer_are_refused(recordings, tmp_path, probe, lines, message):
    (tmp_path / "events.csv").write_text("\n".join(["path,labels,start,end", *lines]) + "\n")
    result = probe("events.csv", "--events")
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_a_file_in_two_folds_and_a_folder_without_tables_are_refused(recordings, tmp_path, probe):
    lines = ["path,labels,start,end,part", "audio/0.wav,low,0,1,a", "audio/0.wav,high,1,2,b"]
    (tmp_path / "events.csv").write_text("\n".join(lines) + "\n")
    result = probe("events.csv", "--events", "--columns", "path=path,labels=labels,start=start,end=end,fold=part")
    assert "has fold 'a' and 'b'" in result.stderr
    assert "no selection tables of Raven" in probe("audio", "--events").stderr


def test_options_of_frames_are_those_of_events(recordings, tmp_path, probe):
    (tmp_path / "clips.csv").write_text("path,labels\naudio/0.wav,low\n")
    result = probe("clips.csv")
    assert result.exit_code == 2
    assert "--hop-ms, --framing: of embeddings along time" in result.stderr
