"""`hear-transformers sweep`: all settings of models on labelled tones, resumable, and equal to each setting alone."""

import json
import shlex
import time

import numpy as np
import pytest
import torch

pytest.importorskip("sklearn")
pytest.importorskip("scipy")
pytest.importorskip("matplotlib")

from hear_transformers import efficientat
from hear_transformers.comparison import measures
from hear_transformers.embedding import forward
from hear_transformers.probes import evaluation
from hear_transformers.sweep import results, settings
from hear_transformers.sweep.studies import STUDIES
from tests.helpers import hear_tasks

RATE = 32_000


@pytest.fixture
def sweep(installed_command, small_weights):
    def run(*arguments, model=f"mn01_as={small_weights}", data=("clips",)):
        models = ["--model", model] if model else []
        return installed_command("hear-transformers")("sweep", *data, *models, "--folds", 3, *arguments)

    return run


def rows_of(done):
    assert done.exit_code == 0, done.stderr
    return json.loads(done.stdout)["rows"]


def main_of(rows, **wanted):
    return [row for row in rows if row["is_main"] and all(row[name] == value for name, value in wanted.items())]


def test_layers_poolings_and_combinations_are_scored(labelled, sweep):
    rows = rows_of(sweep("--json", "--random-model", "mn01_as", "--layers", "0,-1,features,mel,all+mel"))
    assert {row["model"] for row in rows} == {"mn01_as", "mn01_as (random)"}
    for model in ("mn01_as", "mn01_as (random)"):
        found = [(row["layer"], row["pool"]) for row in main_of(rows, model=model)]
        grids = [(layer, pool) for layer in ("0", "16", "mel", "all+mel") for pool in ("mean", "meanstd")]
        assert found == [*grids[:4], ("features", "vector"), *grids[4:]]
    (mel,) = main_of(rows, model="mn01_as", layer="mel", pool="mean")
    assert (mel["value"], mel["high"], mel["size"], mel["clips"]) == (1.0, 1.0, 128, 12)
    assert mel["seconds_per_hour"] > 0
    (together,) = main_of(rows, model="mn01_as", layer="all+mel", pool="mean")
    assert together["size"] == 128 + 264  # features of all blocks, see `hear-transformers info mn01_as`


def test_the_score_of_a_setting_is_that_of_probe(labelled, sweep, installed_command, small_weights):
    (row,) = main_of(rows_of(sweep("--json", "--layers", "3", "--pool", "meanstd")))
    probe = ["clips", "--out", "mine", "--folds", 3, "--model", "mn01_as", "--weights", small_weights]
    done = installed_command("hear-transformers")("probe", *probe, "--layer", 3, "--pool", "meanstd", "--json")
    alone = json.loads(done.stdout)["probes"]["logistic"]["accuracy"]
    assert (row["value"], row["low"], row["high"]) == pytest.approx(
        tuple(alone[key] for key in ("value", "low", "high"))
    )


def test_the_command_of_a_row_embeds_with_its_setting(labelled, sweep, installed_command):
    rows = rows_of(sweep("--json", "--layers", "all+mel", "--pool", "meanstd"))
    program, *arguments = shlex.split(rows[0]["command"])
    assert installed_command(program)(*arguments).exit_code == 0
    with np.load(next(labelled.glob("embeddings/**/*.npz"))) as archive:
        assert archive["embedding"].shape == (rows[0]["size"],)


@pytest.mark.parametrize("framing", ["scene", "windowed", "native"])
@pytest.mark.parametrize(("layer", "pool"), [("5", "max"), ("mel+2", "mean")])
def test_the_command_of_a_row_embeds_what_was_scored(labelled, sweep, installed_command, framing, layer, pool):
    how = ["--layers", layer, "--pool", pool, "--framing", framing, "--num-workers", 0]
    rows = rows_of(sweep("--json", *how, *([] if framing == "scene" else ["--window-ms", 700.5, "--hop-ms", 100.25])))
    program, *arguments = shlex.split(rows[0]["command"])
    assert installed_command(program)(*arguments, "--num-workers", 0).exit_code == 0
    scored, again = (sorted(labelled.glob(f"{folder}/**/*.npz")) for folder in ("sweep/embeddings", "embeddings"))
    assert [path.name for path in scored] == [path.name for path in again]
    for one, other in zip(scored, again, strict=True):
        with np.load(one) as expected, np.load(other) as found:
            assert found["embedding"].shape == (rows[0]["size"],)
            np.testing.assert_allclose(found["embedding"], expected["embedding"], rtol=1e-6, atol=1e-6)


def test_one_pass_serves_all_layers_and_poolings(labelled, sweep, monkeypatch):
    passes = []
    compute = forward.WindowEmbedder._compute
    monkeypatch.setattr(
        forward.WindowEmbedder, "_compute", lambda self, *a, **k: passes.append(len(a[0])) or compute(self, *a, **k)
    )
    how = ["--layers", "1,2,mel", "--window-ms", "400", "--hop-ms", "100", "--num-workers", 0]
    rows_of(sweep("--json", *how))
    assert sum(n for n in passes if n > 1) == 12 + 12 * 6  # scenes, and their windows; sizes are measured of one


def test_a_clip_along_time_is_the_mean_of_its_timestamps(labelled, sweep, small_weights):
    how = ["--framing", "windowed,native", "--window-ms", 700, "--hop-ms", 100, "--layers", "2,5", "--pool", "mean"]
    assert sweep("--json", *how).exit_code == 0
    clips = sorted(labelled.glob("clips/*/*.wav"))
    for framing in ("windowed", "native"):
        chosen = {"layer": "2,5", "pool": "mean", "framing": framing, "window_ms": 700, "hop_ms": 100}
        model = efficientat.load_model(small_weights, "mn01_as", **chosen)
        found = [
            np.load(path)["embedding"] for path in sorted(labelled.glob(f"sweep/embeddings/clips/*{framing}*/*/*.npz"))
        ]
        expected = [stamps.embeddings.mean(0) for stamps in model.encode_timestamps(clips)]
        np.testing.assert_allclose(found, expected, rtol=1e-4, atol=1e-5)


def test_long_clips_are_averaged_as_they_arrive(small_weights):
    from hear_transformers.sweep.passes import Chosen
    from hear_transformers.sweep.settings import Grid, load, passes_of

    chosen = Chosen("mn01_as", str(small_weights))
    grid = Grid(framings=("windowed",), times_ms=((700.0, 100.0),), layers=("2",), pools=("mean",))
    ((found,), _) = passes_of(chosen, load(chosen, "cpu"), grid)
    clip = torch.rand(1, 3 * RATE, generator=torch.Generator().manual_seed(0)) - 0.5
    expected = found.model.embed_timestamps(clip)[0].mean(1)
    torch.testing.assert_close(found.stream_scene(clip.split(RATE // 2, 1)), expected)
    assert found.cost.audio == pytest.approx(3.0)


class Stopped(Exception):
    """In place of a process that is killed."""


def test_what_was_interrupted_is_resumed(labelled, sweep, monkeypatch):
    scored = []
    evaluate = evaluation.evaluate

    def counted(*given, **options):
        scored.append(1)
        if len(scored) == 5:
            raise Stopped
        return evaluate(*given, **options)

    monkeypatch.setattr(evaluation, "evaluate", counted)
    how = ["--json", "--layers", "0,1,2,3,mel"]
    assert sweep(*how).exit_code == 1
    written = {path: path.stat().st_mtime_ns for path in labelled.glob("sweep/embeddings/**/*.npz")}
    cost = json.loads((labelled / "sweep/costs.json").read_text())
    rows = rows_of(sweep(*how))
    kept = {json.dumps(row) for row in main_of(rows)}
    assert len(scored) == 1 + len({path.name for path in labelled.glob("sweep/scores/*.json")})
    assert {path: path.stat().st_mtime_ns for path in written} == written
    assert json.loads((labelled / "sweep/costs.json").read_text()) == cost
    before = len(scored)
    assert {json.dumps(row) for row in main_of(rows_of(sweep(*how)))} == kept
    assert len(scored) == before


def test_audio_that_changed_is_embedded_and_scored_again(labelled, sweep):
    how = ["--json", "--layers", "mel", "--pool", "mean"]
    assert main_of(rows_of(sweep(*how)))[0]["value"] == 1.0
    for i in range(6):
        (labelled / f"clips/low/low{i}.wav").write_bytes((labelled / f"clips/high/high{i}.wav").read_bytes())
    assert main_of(rows_of(sweep(*how)))[0]["value"] < 1.0


def test_other_settings_lie_beside_the_first(labelled, sweep):
    assert sweep("--json", "--layers", "1").exit_code == 0
    assert sweep("--json", "--layers", "2").exit_code == 0
    assert len([*labelled.glob("sweep/embeddings/clips/model=*")]) == 2


def test_what_a_model_cannot_serve_is_skipped_and_told(labelled, sweep):
    done = sweep("--pool", "cls,mean", "--layers", "1,33,features", "--framing", "native", "--window-ms", "10,700")
    assert done.exit_code == 0, done.stderr
    for line in (
        "Skipped: mn01_as: pool=cls skipped: the network has no class token (native 700 ms)",
        "Skipped: mn01_as: layer=33 skipped: the layers are mel, 0, 1",
        "Skipped: mn01_as: layer=features skipped: it has no frames",
        "Skipped: mn01_as: window_ms=10.0 is outside what efficientat/mn01_as takes",
    ):
        assert line in done.stderr


def test_large_embeddings_are_skipped_and_told(labelled, sweep, monkeypatch):
    monkeypatch.setattr(settings, "MOST_NUMBERS", 100)
    done = sweep("--pool", "mean,unroll", "--layers", "mel,1")
    assert done.exit_code == 0, done.stderr
    assert "mn01_as: layer=mel pool=mean skipped: 128 numbers, more than 100" in done.stderr
    assert "mn01_as: pool=unroll skipped: its size is that of the clip" in done.stderr
    assert "no model can serve any of the settings" in sweep("--layers", "mel").stderr


def test_several_tables_are_several_tasks(labelled, sweep):
    lines = ["file,kind,part"] + [f"clips/{k}/{k}{i}.wav,{k},{i % 3}" for k in ("low", "high") for i in range(6)]
    (labelled / "a.csv").write_text("\n".join(lines) + "\n")
    other = [line.replace("file,kind", "name,what") for line in lines]
    (labelled / "b.csv").write_text("\n".join(other) + "\n")
    told = ["--columns", "path=file,labels=kind,fold=part", "--columns", "path=name,labels=what,group=part"]
    rows = rows_of(sweep("--json", "--layers", "1", *told, data=("one=a.csv", "b.csv")))
    assert [row["task"] for row in main_of(rows, pool="mean")] == ["one", "b"]
    assert "--manifest a.csv --columns path=file " in rows[0]["command"]


def test_a_hear_task_is_read_at_the_sample_rate_of_each_model(labelled, sweep):
    hear_tasks.write_scenes(labelled / "tasks", hear_tasks.synthesised(3, 2, 0.5), [16_000, RATE], {})
    (task,) = (labelled / "tasks").iterdir()
    rows = rows_of(sweep("--json", "--layers", "1", "--pool", "mean", "--random-model", "ast/tiny_10_10", data=(task,)))
    assert len(main_of(rows)) == 2


def test_events_are_scored_along_time(labelled, sweep):
    folds = hear_tasks.synthesised(3, 2, 1.0)
    hear_tasks.write_events(labelled / "tasks", folds, (3, 1, 1), [RATE], {})
    (task,) = (labelled / "tasks").iterdir()
    how = ["--layers", "2", "--pool", "mean", "--hop-ms", 100, "--window-ms", 700, "--framing", "scene,native"]
    (row,) = main_of(rows_of(sweep("--json", *how, "--probe", "knn", data=(task,))))
    assert (row["task"], row["framing"], row["metric"], row["clips"]) == (task.name, "native", "onset_f1_200ms", 5)
    done = sweep("--layers", "2", data=(task,))
    assert "events need embeddings along time; give --framing windowed or native" in done.stderr


def test_files_that_cannot_be_read_are_left_out_and_told(labelled, sweep):
    (labelled / "clips/low/low0.wav").write_bytes(b"no audio")
    done = sweep("--json", "--layers", "1", "--framing", "scene,windowed")
    assert done.exit_code == 1
    found = json.loads(done.stdout)
    assert {row["clips"] for row in found["rows"]} == {11}
    assert len(found["failed"]) == 1


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        (("--framing", "sliding"), "framing='sliding' is unknown"),
        (("--pool", "median"), "pool='median' is unknown"),
        (("--window-ms", "long"), "is not a number in ms"),
        (("--model", "mn01_as=gone.pt"), "gone.pt"),
        (("--model", "os"), "is none of this package"),
        (("--columns", "a", "--columns", "b"), "--columns is given 2 times for 1 DATA"),
        (("--random-model", "tiny", "--random-model", "tiny"), "tiny (random) is there twice"),
    ],
)
def test_wrong_options_are_named(labelled, sweep, arguments, complaint):
    done = sweep(*arguments)
    assert done.exit_code != 0
    assert complaint in done.stderr


def test_clusters_are_measured_as_compare_does(labelled, sweep):
    rows = rows_of(sweep("--json", "--layers", "1", "--pool", "mean", "--probe", "clusters"))
    assert [row["metric"] for row in rows if row["is_main"]] == ["nmi"]
    found = np.stack(
        [np.load(path)["embedding"] for path in sorted(labelled.glob("sweep/embeddings/*/*/*/*.npz"))]
    ).astype(float)
    expected = measures.measure(found, np.arange(12) // 6)
    assert {row["metric"]: row["value"] for row in rows} == pytest.approx({k: v["value"] for k, v in expected.items()})


def test_a_study_decides_what_is_tried(labelled, sweep):
    rows = rows_of(sweep("--json", "--study", "mast-clusters"))
    assert {(row["pool"], row["framing"], row["probe"]) for row in rows} == {("mean", "scene", "clusters")}
    assert {row["layer"] for row in rows} == {*map(str, range(17))}
    assert "--layers: decided by --study passt-hear" in sweep("--study", "passt-hear", "--layers", "1").stderr


def test_the_axes_of_a_study_meet_in_one_setting():
    times = STUDIES["passt-hear"].grid.times_ms
    assert [window for window, hop in times if hop == 50.0] == [160.0, 320.0, 640.0]
    assert [hop for window, hop in times if window == 160.0] == [50.0, 25.0, 100.0]
    assert all(window / hop <= 16 for window, hop in times)


def test_earlier_sweeps_in_a_folder_stay_in_its_report(labelled, sweep):
    sweep("--layers", "1", "--pool", "mean")
    sweep("--layers", "2", "--pool", "mean")
    assert {row.layer for row in results.read_csv(labelled / "sweep/results.csv")} == {"1", "2"}
    assert "<html" in (labelled / "sweep/report.html").read_text(encoding="utf-8")


def test_nothing_is_embedded_for_labels_that_are_wrong(labelled, sweep):
    (labelled / "a.csv").write_text("path,labels\nclips/low/low0.wav,low\nclips/low/low1.wav,low\n")
    done = sweep("--json", data=("clips", "a.csv"))
    assert done.exit_code != 0
    assert "low" in done.stderr
    assert not (labelled / "sweep").exists()


def test_a_model_is_needed(labelled, sweep):
    assert "give --model NAME, --random-model NAME, or --study NAME" in sweep(model="").stderr


def test_the_best_settings_are_printed(labelled, sweep):
    done = sweep("--layers", "1,mel")
    assert done.exit_code == 0, done.stderr
    assert "ACCURACY" in done.stdout
    assert "best: embed-audio clips --model mn01_as" in done.stdout


def test_the_cost_does_not_count_what_others_compute(small_weights, monkeypatch):
    chosen = settings.Chosen("mn01_as", str(small_weights))
    ((found,), _) = settings.passes_of(
        chosen, settings.load(chosen, "cpu"), settings.Grid(layers=("2",), pools=("mean",))
    )
    now = [100.0]
    monkeypatch.setattr(time, "process_time", lambda: now[0])

    def blocks():
        for _ in range(3):
            now[0] += 50.0  # until it has arrived
            yield torch.zeros(1, RATE)

    stream_scene = found.model.stream_scene

    def stream(arriving, batch_size=None):
        now[0] += 2.0
        return stream_scene(arriving, batch_size=batch_size)

    monkeypatch.setattr(found.model, "stream_scene", stream)
    found.stream_scene(blocks())
    assert (found.cost.seconds, found.cost.audio) == (2.0, 3.0)
