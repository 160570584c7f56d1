"""`hear-transformers probe` and `embed-audio --probe`: from labelled audio to a classifier in two commands."""

import csv
import json

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from tests.helpers import hear_tasks

RATE = 32_000


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def probe(installed_command, small_weights):
    small = ["--model", "mn01_as", "--weights", small_weights, "--layer", "mel"]

    def run(*arguments, model=True):
        return installed_command("hear-transformers")("probe", *arguments, *(small if model else []))

    return run


def test_a_folder_of_classes_becomes_a_classifier(labelled, probe, installed_command):
    result = probe("clips", "--out", "mine", "--folds", 3, "--probe", "logistic", "--probe", "knn")
    assert result.exit_code == 0, result.stderr
    assert "12 clips, 2 classes; split: 3 folds of whole files, drawn with seed 0, stratified" in result.stdout
    scores = json.loads((labelled / "mine/scores.json").read_text())
    assert scores["probes"]["logistic"]["accuracy"]["value"] == 1.0
    assert list(scores["probes"]) == ["logistic", "knn"]
    assert (labelled / "mine/confusion.png").read_bytes().startswith(b"\x89PNG")
    assert len(rows_of(labelled / "mine/predictions.csv")) == 12
    done = installed_command("embed-audio")("clips", "--probe", "mine", "--format", "csv", "--out", "found.csv")
    assert done.exit_code == 0, done.stderr
    rows = rows_of(labelled / "found.csv")
    assert len(rows) == 12
    assert all(row["predicted"] in row["path"] for row in rows)


def test_what_is_to_be_known_of_a_file_is_said_when_it_is_classified(labelled, probe, installed_command, audio_file):
    probe("clips", "--out", "mine", "--folds", 3)
    tone = 0.3 * np.sin(np.arange(RATE) / 10)
    audio_file("opposite.wav", np.stack([tone, -tone], 1))
    done = installed_command("embed-audio")("opposite.wav", "--probe", "mine", "--out", "found.csv")
    assert done.exit_code == 0, done.stderr
    assert "Warning: " in done.stderr
    assert "opposite.wav" in done.stderr


def test_a_second_run_finds_the_embeddings(labelled, probe):
    probe("clips", "--out", "mine", "--folds", 3)
    written = {path: path.stat().st_mtime_ns for path in (labelled / "mine/embeddings").rglob("*.npz")}
    assert probe("clips", "--out", "mine", "--folds", 3, "--probe", "knn").exit_code == 0
    assert {path: path.stat().st_mtime_ns for path in (labelled / "mine/embeddings").rglob("*.npz")} == written


def write_table(folder, *, fold="i % 3"):
    lines = ["name,kind,part,who"]
    lines += [f"clips/{kind}/{kind}{i}.wav,{kind},{eval(fold)},s{i // 2}" for kind in ("low", "high") for i in range(6)]
    (folder / "clips.csv").write_text("\n".join(lines) + "\n")


def test_columns_say_labels_folds_and_groups(labelled, probe):
    write_table(labelled)
    result = probe("clips.csv", "--columns", "path=name,labels=kind,fold=part", "--out", "mine", "--json")
    assert json.loads(result.stdout)["split"] == "given: 0 (4), 1 (4), 2 (4)"
    result = probe("clips.csv", "--columns", "path=name,group=who,labels=kind", "--folds", 3, "--out", "mine", "--json")
    assert json.loads(result.stdout)["split"] == "3 folds of whole groups, drawn with seed 0, stratified"


def test_few_labelled_segments_classify_all_of_an_archive(labelled, probe, installed_command):
    pytest.importorskip("h5py")
    embed, select = installed_command("embed-audio"), installed_command("hear-transformers")
    assert embed("clips", "--segment", 0.25, "--out", "all.hdf5").exit_code == 0
    assert select("selections", "all.hdf5", "--format", "csv", "--out", "parts.csv").exit_code == 0
    parts = rows_of(labelled / "parts.csv")
    known = [f"{kind}{i}.wav" for kind in ("low", "high") for i in range(3)]
    few = [each for each in parts if each["path"].endswith(tuple(known))]
    lines = [f"{row['path']},{row['start']},{row['end']},{'low' if '/low' in row['path'] else 'high'}" for row in few]
    (labelled / "labelled.csv").write_text("\n".join(["path,start,end,label", *lines]) + "\n")
    result = probe("labelled.csv", "--columns", "labels=label,start=start,end=end", "--out", "few")
    assert result.exit_code == 0, result.stderr
    assert embed("--manifest", "parts.csv", "--probe", "few", "--out", "found.csv").exit_code == 0
    found = rows_of(labelled / "found.csv")
    assert len(found) == len(parts) == 24
    assert all(f"/{row['predicted']}/" in row["path"] for row in found)


@pytest.fixture
def table(labelled, installed_command, small_weights):
    """Embed the clips into a table."""
    pytest.importorskip("h5py")
    small = ["--model", "mn01_as", "--weights", small_weights, "--layer", "mel"]
    assert installed_command("embed-audio")("clips", *small, "--out", "all.hdf5").exit_code == 0
    return labelled


def test_a_table_of_embeddings_is_probed_by_folders_and_by_labels(table, probe):
    write_table(table)
    assert probe("all.hdf5", "--out", "mine", "--folds", 3, model=False).exit_code == 0
    columns = ["--columns", "path=name,labels=kind,fold=part"]
    result = probe("all.hdf5", "--labels-from", "clips.csv", *columns, "--out", "mine", "--json", model=False)
    assert json.loads(result.stdout)["split"] == "given: 0 (4), 1 (4), 2 (4)"


def test_the_probe_of_a_table_of_means_along_time_embeds_alike(labelled, probe, installed_command):
    pytest.importorskip("h5py")
    embed = installed_command("embed-audio")
    how = ["--model", "tiny", "--layer", "8", "--window-ms", 300, "--hop-ms", 100, "--scene", "--num-workers", 0]
    assert embed("clips", *how, "--out", "means.hdf5").exit_code == 0
    assert probe("means.hdf5", "--out", "mine", "--folds", 3, model=False).exit_code == 0
    assert embed("clips", "--probe", "mine", "--out", "found.csv", "--num-workers", 0).exit_code == 0
    assert (labelled / "found.csv").read_text().count("low/low") == 6


def test_a_table_of_segments_is_answered_with_how_their_labels_are_given(table, probe, installed_command):
    assert installed_command("embed-audio")("clips", "--segment", 0.5, "--out", "segments.hdf5").exit_code == 0
    result = probe("segments.hdf5", "--out", "mine", model=False)
    assert (
        "of labelled segments give their table as DATA, with the columns path, labels, start and end" in result.stderr
    )


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,labels", "other.wav,low", "clips/low/low0.wav,high"], "label them, or give labels.csv as DATA"),
        (["path,labels", "other.wav,low"], "match no file"),
    ],
)
def test_labels_of_other_files_are_refused(table, probe, lines, message):
    (table / "other.wav").touch()
    (table / "labels.csv").write_text("\n".join(lines) + "\n")
    result = probe("all.hdf5", "--labels-from", "labels.csv", "--out", "mine", model=False)
    assert result.exit_code in (1, 2)
    assert message in result.stderr


@pytest.mark.parametrize(
    ("fold", "message"), [("0 if kind == 'low' else i % 2", "no clip of"), ("1", "the only fold is '1'")]
)
def test_folds_without_a_class_are_refused(labelled, probe, fold, message):
    write_table(labelled, fold=fold)
    result = probe("clips.csv", "--columns", "path=name,labels=kind,fold=part", "--out", "mine")
    assert result.exit_code in (1, 2)
    assert message in result.stderr


def test_files_without_label_and_a_single_class_are_refused(labelled, probe):
    (labelled / "a.csv").write_text("path,labels\nclips/low/low0.wav,low\nclips/low/low1.wav,\n")
    assert "without label" in probe("a.csv", "--out", "mine").stderr
    (labelled / "a.csv").write_text("path,labels\nclips/low/low0.wav,low\nclips/low/low1.wav,low\n")
    assert "the one label 'low'" in probe("a.csv", "--out", "mine").stderr


def test_a_probe_has_its_model(labelled, probe, installed_command):
    probe("clips", "--out", "mine", "--folds", 3)
    result = installed_command("embed-audio")("clips", "--probe", "mine", "--model", "passt", "--out", "x.csv")
    assert result.exit_code == 2
    assert "--model: decided by the probe" in result.stderr


def test_a_scene_task_of_hear_is_probed_in_its_splits(tmp_path, probe, monkeypatch):
    monkeypatch.chdir(tmp_path)
    hear_tasks.write_scenes(tmp_path, hear_tasks.synthesised(3, 4, 0.5), [RATE], {})
    result = probe(hear_tasks.SCENES, "--out", "mine", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["split"].startswith("given: ")


def test_clips_of_several_labels_are_scored_by_ranking(labelled, probe):
    lines = [f"clips/low/low{i}.wav,low" for i in range(6)] + [f"clips/high/high{i}.wav,high;loud" for i in range(6)]
    (labelled / "a.csv").write_text("\n".join(["path,labels", *lines]) + "\n")
    result = probe("a.csv", "--folds", 3, "--out", "mine")
    assert result.exit_code == 0, result.stderr
    (scores,) = json.loads((labelled / "mine/scores.json").read_text())["probes"].values()
    assert next(iter(scores)) == "mAP"
    assert scores["mAP"]["value"] == 1.0


def test_rows_of_several_layers_and_an_empty_table_are_refused(labelled, probe, installed_command, small_weights):
    pq = pytest.importorskip("pyarrow.parquet")
    pa = pytest.importorskip("pyarrow")
    small = ["--model", "mn01_as", "--weights", small_weights, "--layer", "mel", "--out", "all.parquet"]
    assert installed_command("embed-audio")("clips", *small).exit_code == 0
    table = pq.read_table("all.parquet")
    layers = pa.array(["mel", *["features"] * (len(table) - 1)])
    number = table.schema.get_field_index("layer")
    pq.write_table(table.set_column(number, "layer", layers), "mixed.parquet")
    pq.write_table(table.slice(0, 0), "empty.parquet")
    for name, message in (("mixed", "mixed provenance, layers mel, features"), ("empty", "the table is empty")):
        result = probe(f"{name}.parquet", "--out", "mine", model=False)
        assert result.exit_code == 1
        assert message in result.stderr


def test_prototypes_are_learned_on_token_maps_and_classify(labelled, probe, installed_command):
    result = probe("clips", "--out", "mine", "--folds", 2, "--probe", "prototypes", "--hop-ms", 100)
    assert result.exit_code == 0, result.stderr
    assert "GB in mine/maps, at most 4 GB" in result.stdout
    assert json.loads((labelled / "mine/scores.json").read_text())["probes"]["prototypes"]["accuracy"]["value"] == 1.0
    done = installed_command("embed-audio")("clips", "--probe", "mine", "--out", "found.csv")
    assert done.exit_code == 0, done.stderr
    assert all(row["predicted"] in row["path"] for row in rows_of(labelled / "found.csv"))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--probe", "knn"], "reads token maps, others vectors"),
        (["--pool", "mean"], "--pool: --probe prototypes reads every place of a layer"),
        (["--events"], "--probe prototypes: of whole clips"),
    ],
)
def test_prototypes_stand_alone(labelled, probe, options, message):
    result = probe("clips", "--out", "mine", "--probe", "prototypes", *options)
    assert result.exit_code == 2
    assert message in result.stderr


def test_a_table_that_holds_what_is_no_number_is_refused_by_file(table, probe):
    h5py = pytest.importorskip("h5py")
    with h5py.File("all.hdf5", "r+") as file:
        file["embedding"][3, 5] = np.nan
    result = probe("all.hdf5", "--out", "mine", "--folds", 3, model=False)
    assert result.exit_code == 1
    assert ".wav: its embedding is not finite" in result.stderr


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        (["path,labels"], "no rows below the header"),
        (["path,labels", "clips/low/none.wav,low"], "an audio file that is missing"),
        (["path,labels,part", "clips/low/low0.wav,low,", "clips/low/low1.wav,low,1"], "line 2 has no fold"),
    ],
)
def test_tables_without_clips_or_cells_are_refused(labelled, probe, lines, message):
    (labelled / "a.csv").write_text("\n".join(lines) + "\n")
    fold = ["--columns", "path=path,labels=labels,fold=part"] if "part" in lines[0] else []
    result = probe("a.csv", "--out", "mine", *fold)
    assert result.exit_code == 1
    assert message in result.stderr
