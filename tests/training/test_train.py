"""Training on labelled clips: what is minimised, scores, and the command from manifests to a checkpoint."""

import csv
import json
import os
import re
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
from click.testing import CliRunner
from hear_transformers.cli.embed_audio import main as embed_audio
from hear_transformers.cli.hear_transformers import main
from sklearn.metrics import average_precision_score
from torch.nn import functional as F

from hear_transformers import ast, atgnn, passt
from hear_transformers.checkpoints import state_dicts
from hear_transformers.embedding import precision
from hear_transformers.training import clip_length, tagging, train
from hear_transformers.training.data import Batch
from hear_transformers.training.loop import Processes
from hear_transformers.training.recipes import RECIPES

RATE = 16_000
NETWORK = {"dim": 48, "depth": 1, "heads": 3}
PLAIN = replace(RECIPES["scratch"], precision="float32", mixups=(), masks=(), gain_db=0.0, shift_samples=0)


# What is minimised


def tagger(recipe=PLAIN, *, multi_label=False, family=ast, variant="esc50_10_10", n_classes=4) -> tagging.Tagging:
    row = family.VARIANTS[variant]
    network = {"depths": (1, 1, 1, 1), "channels": (8, 8, 16, 16)} if family is atgnn else NETWORK
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        trunk = family.FAMILY.network(**{**row.network, **network, "n_classes": n_classes})
    return tagging.Tagging(trunk, row, recipe, multi_label=multi_label)


def batch_of(n: int, seconds: float = 0.5, n_classes: int = 4) -> Batch:
    generator = torch.Generator().manual_seed(0)
    return Batch(
        waveforms=0.1 * torch.randn(n, round(RATE * seconds), generator=generator),
        lengths=torch.full((n,), round(RATE * seconds)),
        targets=F.one_hot(torch.arange(n) % n_classes, n_classes).float(),
        weights=torch.ones(n),
        draws={},
        failures=[],
    )


@pytest.mark.parametrize("multi_label", [False, True])
def test_the_loss_is_the_mean_over_clips(multi_label: bool) -> None:
    objective, batch = tagger(multi_label=multi_label), batch_of(6)
    logits = objective.logits(objective.trunk, batch)
    if multi_label:
        expected = F.binary_cross_entropy_with_logits(logits, batch.targets)
    else:
        expected = F.cross_entropy(logits, batch.targets.argmax(1))
    torch.testing.assert_close(objective(batch)["loss"], expected)


def test_an_unreadable_clip_has_no_loss() -> None:
    objective, batch = tagger(), batch_of(4)
    batch.weights[2] = 0
    objective(batch)["loss"].backward()
    gradient = objective.trunk.head[1].weight.grad.clone()
    objective.zero_grad()
    batch.targets[2] = batch.targets[2].roll(1)
    objective(batch)["loss"].backward()
    assert torch.equal(objective.trunk.head[1].weight.grad, gradient)


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "variant"), [(ast, "esc50_10_10"), (ast, "audioset_10_10"), (atgnn, "pyr_t_encoder")]
)
def test_short_clips_are_padded_as_by_the_embedder(family, variant: str) -> None:
    objective = tagger(family=family, variant=variant).eval()
    batch = batch_of(1, 0.5)
    behind = torch.zeros(1, RATE)
    padded = replace_batch(batch, torch.cat([batch.waveforms, behind], 1))
    model = family.load_model(pretrained=False, variant=variant, layer="logits")
    model.trunk = objective.trunk
    expected = model(batch.waveforms)  # with gradients as in training: without, ATGNN is a copy that rounds otherwise
    torch.testing.assert_close(objective.logits(objective.trunk, padded), expected, rtol=0, atol=1e-5)


def replace_batch(batch: Batch, waveforms: torch.Tensor) -> Batch:
    return Batch(waveforms, batch.lengths, batch.targets, batch.weights, batch.draws, batch.failures)


def test_clips_are_as_long_as_the_recipe_or_the_variant_says() -> None:
    def seconds(family, variant: str, recipe=PLAIN, **network) -> float:
        row, n_samples = clip_length.plan_clips(family.FAMILY, variant, recipe, network, 2)
        return n_samples / row.frontend.sample_rate

    assert seconds(passt, "base") == 10
    assert seconds(passt, "base20sec") == 20
    assert seconds(passt, "base", time_positions=49) == pytest.approx(5.05)
    assert seconds(passt, "base", time_positions=200) == 20
    assert seconds(ast, "tiny_10_10", frames=312) == pytest.approx(3.12, abs=0.03)
    assert seconds(ast, "tiny_10_10", frames=2048) == pytest.approx(20.48, abs=0.03)
    assert seconds(atgnn, "pyr_t_encoder") == clip_length.LONGEST_SECONDS
    assert seconds(atgnn, "pyr_t_encoder", replace(PLAIN, seconds=3.0)) == 3


# The normalisation of the recordings


OWN = (-1.5, 3.25)
KINDS = {
    "option": (OWN, OWN),
    "folder": (None, OWN),
    "file beside": (None, OWN),
    "file of ours": (None, OWN),
    "option before file": ((-2.0, 3.0), (-2.0, 3.0)),
    "nothing": (None, ast.VARIANTS["esc50_10_10"].frontend.normalisation),
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_trained_network_is_loaded_with_the_normalisation_of_its_training(
    kind: str, sounds: Path, tmp_path: Path
) -> None:
    network = {**NETWORK, "frames": 64}
    start = tmp_path / "start" / "model.safetensors"
    start.parent.mkdir()
    given, expected = KINDS[kind]
    trunk = ast.AST(**network, n_classes=3)
    if kind == "file of ours":
        names = {"family": "ast", "variant": "esc50_10_10", "network": json.dumps({**network, "n_classes": 3})}
        state_dicts.write(start, trunk, {**names, "normalisation": json.dumps(OWN)})
    else:
        safetensors.torch.save_file(trunk.state_dict(), start)
        (start.parent / "preprocessor_config.json").write_text(json.dumps({"mean": OWN[0], "std": OWN[1]}))
    source = {"option": "", "nothing": "", "folder": str(start.parent)}.get(kind, str(start))
    run = train.Training(
        train.Options(
            family="ast", variant="esc50_10_10", train=sounds / "train.csv", valid=sounds / "valid.csv", out=tmp_path,
            recipe=replace(PLAIN, batch_size=2), source=source, network=network, normalisation=given,
        ),
        Processes.join(torch.device("cpu")),
    )  # fmt: skip
    assert run.objective.frontend.spec.normalisation == expected
    assert any(line.startswith("normalised by mean") for line in run.describe()) == (kind != "nothing")
    run.keep(run.objective.trunk, tmp_path / "net.safetensors")
    assert ("normalisation" in state_dicts.read_metadata(tmp_path / "net.safetensors")) == (kind != "nothing")
    model = ast.load_model(tmp_path / "net.safetensors", layer="logits")
    assert model.variant.frontend.normalisation == expected
    waveforms = batch_of(1).waveforms
    logits = run.objective.logits(run.objective.trunk.eval(), batch_of(1))
    torch.testing.assert_close(model.embed_scenes(waveforms), logits, rtol=0, atol=1e-5)


# Scores


@pytest.mark.parametrize("seed", range(5))
def test_mean_average_precision_is_that_of_scikit_learn(seed: int) -> None:
    rng = np.random.default_rng(seed)
    scores = rng.normal(size=(60, 7)).astype(np.float32).round(1)  # with ties
    targets = (rng.random((60, 7)) < 0.3).astype(np.float32)
    targets[:, 3] = 0
    each = [average_precision_score(targets[:, i], scores[:, i]) for i in range(7) if i != 3]
    assert tagging.mean_average_precision(targets, scores) == pytest.approx(np.mean(each))


def test_accuracy_counts_the_correct_clips() -> None:
    targets = np.eye(4, dtype=np.float32)
    assert tagging.accuracy(targets, targets[[0, 1, 3, 2]]) == 0.5


def test_scores_do_not_depend_on_how_the_clips_are_shared() -> None:
    objective, batch = tagger(), batch_of(5)
    alone = Processes(0, 1, torch.device("cpu"))

    def parts():
        for rows in ([3], [0, 4], [2, 1]):
            part = [tensor[rows] for tensor in (batch.waveforms, batch.lengths, batch.targets, batch.weights)]
            yield np.array(rows), Batch(*part, {}, [])

    whole = tagging.predict(objective, lambda: [(np.arange(5), batch)], alone, objective.trunk)
    shared = tagging.predict(objective, parts, alone, objective.trunk)
    assert shared[0].tolist() == [0, 1, 2, 3, 4]
    torch.testing.assert_close(shared[1:], whole[1:])
    assert tagging.score(objective, shared) == pytest.approx(tagging.score(objective, whole))


# The command


@pytest.fixture(scope="module")
def sounds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write tones of three pitches in noise, two thirds of them to train on."""
    folder = tmp_path_factory.mktemp("sounds")
    rng = np.random.default_rng(0)
    lines = {"train": ["path,labels"], "valid": ["path,labels"]}
    for i in range(18):
        pitch = ("low", "middle", "high")[i % 3]
        hertz = {"low": 200, "middle": 800, "high": 3200}[pitch]
        seconds = np.arange(RATE // 2) / RATE
        clip = 0.3 * np.sin(2 * np.pi * hertz * seconds) + 0.05 * rng.normal(size=len(seconds))
        soundfile.write(folder / f"{i}.wav", clip, RATE)
        lines["train" if i < 12 else "valid"].append(f"{i}.wav,{pitch}")
    for name, rows in lines.items():
        (folder / f"{name}.csv").write_text("\n".join(rows) + "\n")
    return folder


def arguments(sounds: Path, out: Path, *more: str, epochs: int = 3) -> list[str]:
    options = {
        "--model": "ast",
        "--variant": "esc50_10_10",
        "--train": sounds / "train.csv",
        "--valid": sounds / "valid.csv",
        "--out": out,
        "--network": json.dumps(NETWORK),
        "--epochs": epochs,
        "--batch-size": 4,
        "--seconds": 0.5,
        "--num-workers": 0,
        "--device": "cpu",
        "--learning-rate": 0.003,
    }
    changes = ["precision=float32", "mixups=[]", "masks=[]", "warm_up_epochs=0"]
    pairs = [*options.items(), *(("--set", change) for change in changes)]
    return ["train", *(str(part) for pair in pairs for part in pair), *more]


def trained(sounds: Path, out: Path, *more: str, epochs: int = 3):
    result = CliRunner().invoke(main, arguments(sounds, out, *more, epochs=epochs))
    assert result.exit_code == 0, result.output
    return result


def losses(out: Path) -> list[float]:
    with (out / "steps.csv").open(newline="") as file:
        return [float(row["loss"]) for row in csv.DictReader(file)]


@pytest.mark.slow
def test_a_run_leaves_curves_settings_and_networks(sounds: Path, tmp_path: Path) -> None:
    result = trained(sounds, tmp_path)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "best.safetensors",
        "confusion.csv",
        "confusion.png",
        "curves.png",
        "epochs.csv",
        "last.pt",
        "model.safetensors",
        "predictions.csv",
        "scores.csv",
        "settings.json",
        "steps.csv",
    ]
    assert "12 clips to train on, 6 to validate, 3 classes, one label a clip" in result.stderr
    assert result.stdout.splitlines()[1] == str(tmp_path / "model.safetensors")


@pytest.mark.slow
def test_curves_are_written_for_tensorboard_where_asked(sounds: Path, tmp_path: Path) -> None:
    trained(sounds, tmp_path, "--tensorboard", epochs=1)
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")  # extra `tensorboard`
    events = accumulator.EventAccumulator(str(tmp_path / "tensorboard"))
    events.Reload()
    assert [event.value for event in events.Scalars("training/loss")] == pytest.approx(losses(tmp_path), rel=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("first", ["float32", "bfloat16"])
def test_a_resumed_run_keeps_what_auto_chose(sounds: Path, tmp_path: Path, monkeypatch, first: str) -> None:
    other = {"float32": "bfloat16", "bfloat16": "float32"}[first]
    auto = ["--set", 'precision="auto"']
    for chosen, epochs in ((first, 2), (other, 2)):
        monkeypatch.setattr(precision, "has_instructions", lambda name, _, chosen=chosen: name == chosen)
        monkeypatch.setattr(precision, "slowdown", lambda *_: precision.Slowdown(1.0, 1.0))
        result = trained(sounds, tmp_path, *auto, epochs=epochs)
        assert result.stderr.count(f", in {first}\n") == 1
        assert json.loads((tmp_path / "settings.json").read_text())["precision"] == first
    (tmp_path / "settings.json").unlink()
    refused = CliRunner().invoke(main, arguments(sounds, tmp_path, *auto, epochs=2))
    assert refused.exit_code != 0
    assert "other settings (precision)" in refused.stderr


@pytest.mark.slow
def test_the_network_learns_and_is_read_back_with_its_classes(sounds: Path, tmp_path: Path) -> None:
    trained(sounds, tmp_path, epochs=15)
    curve = losses(tmp_path)
    assert np.mean(curve[-5:]) < 0.5 * np.mean(curve[:5])
    model = ast.load_model(tmp_path / "model.safetensors", layer="logits")
    assert model.labels == ("high", "low", "middle")
    clip, _ = soundfile.read(sounds / "12.wav", dtype="float32")
    assert model.labels[model.embed_scenes(torch.from_numpy(clip)[None]).argmax()] == "low"


@pytest.mark.slow
def test_one_table_with_other_names_is_split_and_the_best_network_is_described(sounds: Path, tmp_path: Path) -> None:
    _, *rows = [*(sounds / "train.csv").read_text().split(), *(sounds / "valid.csv").read_text().split()[1:]]
    lines = [f"{row},{i}" for i, row in enumerate(rows)]
    (sounds / "all.csv").write_text("\n".join(["filename,category,index", *lines]))
    more = [f"--train={sounds / 'all.csv'}", "--valid=0.34", "--columns=path=filename,labels=category"]
    result = trained(sounds, tmp_path, *more, epochs=2)
    assert "12 clips to train on, 6 to validate, 3 classes" in result.stderr
    epochs = re.findall(
        r"^epoch (\d)/2: accuracy \S+, valid_loss .*, learning rate \S+, 0:.* left$", result.stderr, re.M
    )
    assert epochs == ["1", "2"]
    with (tmp_path / "predictions.csv").open(newline="") as file:
        predictions = list(csv.DictReader(file))
    right = sum(row["labels"] == row["predicted"] for row in predictions)
    assert len(predictions) == 6
    assert f"accuracy {right / 6:g}, epoch" in result.stdout
    with (tmp_path / "scores.csv").open(newline="") as file:
        assert [(row["class"], row["clips"]) for row in csv.DictReader(file)] == [
            ("high", "2"),
            ("low", "2"),
            ("middle", "2"),
        ]


@pytest.mark.slow
def test_tags_of_a_trained_network_have_its_names(sounds: Path, tmp_path: Path) -> None:
    trained(sounds, tmp_path, epochs=1)
    weights = str(tmp_path / "model.safetensors")
    result = CliRunner().invoke(
        embed_audio,
        [str(sounds / "12.wav"), "--weights", weights, "--layer", "logits", "--labels", "--out", str(tmp_path)],
    )
    assert result.exit_code == 0, result.output
    assert all(name in result.output for name in ("high", "low", "middle"))


@pytest.mark.slow
def test_fine_tuning_starts_from_the_trained_network(sounds: Path, tmp_path: Path) -> None:
    trained(sounds, tmp_path / "first", epochs=25)
    trained(sounds, tmp_path / "second", "--from", str(tmp_path / "first" / "model.safetensors"), epochs=1)
    assert losses(tmp_path / "second")[0] < 0.5 * losses(tmp_path / "first")[0]


@pytest.mark.slow
def test_a_file_that_breaks_is_skipped_counted_and_named(sounds: Path, tmp_path: Path) -> None:
    rows = (sounds / "train.csv").read_text().replace("3.wav", "broken.wav")
    (sounds / "broken.wav").write_bytes(b"RIFF but no audio")
    (sounds / "with_broken.csv").write_text(rows)
    more = ["--train", str(sounds / "with_broken.csv")]
    result = trained(sounds, tmp_path, *more)
    assert "1 file could not be read" in result.stderr
    assert "broken.wav: not audio" in (tmp_path / "skipped.txt").read_text()
    assert len((tmp_path / "skipped.txt").read_text().splitlines()) == 1


@pytest.mark.parametrize(
    ("more", "message"),
    [
        (["--model", "asst"], "model='asst' is unknown; choose one of"),
        (["--model", "cnn14"], "model='cnn14' and variant='esc50_10_10' are two variants"),
        (["--recipe", "none"], "--recipe none is unknown; choose one of"),
        (["--set", "colour=1"], "colour"),
        (["--set", "epochs=many"], "epochs='many' is not allowed; give a whole number"),
        (["--set", "epochs=True"], "epochs=True is not allowed; give a whole number"),
        (["--set", "learning-rate=true"], "learning_rate=True is not allowed; give a number above 0"),
        (["--set", "precision=flaot32"], "precision='flaot32' is not allowed; give one of"),
        (["--set", "masks=[{axis: time}]"], "--set masks: '[{axis: time}]' is neither a word nor JSON"),
        (["--set", "epochs"], "--set epochs: give NAME=VALUE"),
        (["--network", "[1]"], "--network [1]: give NAME=VALUE, such as depth=4"),
        (["--network", "{depth: 4}"], "is not JSON"),
        (["--network", "depht=4"], "depth, patchout; did you mean depth?"),
        (["--network", "depth=four"], "depth='four' is not allowed; give a whole number"),
        (["--network", "patchout=False"], "patchout=False is not allowed; give a list"),
        (["--normalisation", "1"], "normalisation=(1.0,) is no mean and deviation above 0"),
        (["--normalisation", "mean"], "--normalisation: 'mean' is not MEAN,STD"),
        (["--seconds", "20"], "seconds=20 is no length of clips"),
        (["--valid", "2"], "valid=2 is no fraction"),
        (["--columns", "path=x"], "no column 'x'; its columns are 'path', 'labels'"),
        (["--columns", "file=x"], "not of the form path=filename,labels=category"),
        (["--label-separator", ""], "the separator of labels is empty"),
        (["--network", '{"wings": 2}'], "wings"),
        (["--variant", "none"], "variant='none' is unknown to ast"),
        (["--from", "nothing.pt"], "nothing.pt: no such file"),
        (["--train", "nothing.csv"], "nothing.csv"),
        (["--batch-size", "0"], "--batch-size"),
    ],
)
def test_errors_are_raised_before_the_first_step(sounds: Path, tmp_path: Path, more: list[str], message: str) -> None:
    result = CliRunner().invoke(main, arguments(sounds, tmp_path / "out", *more))
    assert result.exit_code in (1, 2)
    assert message in result.stderr
    assert "Traceback" not in result.stderr
    assert not (tmp_path / "out").exists()


def test_what_is_validated_on_has_to_be_said(tmp_path: Path) -> None:
    result = CliRunner().invoke(main, ["train", "--model", "tiny", "--train", "clips.csv", "--out", str(tmp_path)])
    assert result.exit_code == 2
    assert "--valid" in result.stderr
    assert "0.1 for a tenth" in result.stderr


PATIENCE_SECONDS = 1200  # of a process that hangs; those that do not have taken 300 on a busy machine


def started(command: list[str]) -> subprocess.Popen:
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
    return subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE)


LIMITED = """
import resource, sys
from hear_transformers.cli.hear_transformers import main
resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv.pop(1)),) * 2)
main()
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="limits of the size of a file")
@pytest.mark.parametrize("file_bytes", [100, 1_000, 200_000])
def test_a_full_disk_is_said_and_the_run_can_be_resumed(sounds: Path, tmp_path: Path, file_bytes: int) -> None:
    command = [sys.executable, "-c", LIMITED, str(file_bytes), *arguments(sounds, tmp_path, epochs=1)]
    with started(command) as process:
        _, errors = process.communicate(timeout=PATIENCE_SECONDS)
    assert process.returncode == 1
    assert "no room to write (File too large)" in errors.decode().splitlines()[-1]
    assert not [*tmp_path.glob(".*")]
    trained(sounds, tmp_path, epochs=1)


def script() -> str:
    return str(Path(sys.executable).with_name("hear-transformers"))


def finish(process: subprocess.Popen) -> None:
    with process:
        try:
            _, errors = process.communicate(timeout=PATIENCE_SECONDS)
        finally:
            process.kill()
    assert process.returncode == 0, errors.decode()


@pytest.mark.slow
def test_a_killed_run_is_resumed_to_the_same_weights(sounds: Path, tmp_path: Path) -> None:
    more = ["--checkpoint-seconds", "0"]
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    finish(started([script(), *arguments(sounds, whole, *more, epochs=30)]))
    process = started([script(), *arguments(sounds, killed, *more, epochs=30)])
    while not (killed / "last.pt").exists():
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.communicate()
    assert 0 < len(losses(killed)) < 90
    finish(started([script(), *arguments(sounds, killed, *more, epochs=30)]))
    assert losses(killed) == losses(whole)
    ours, theirs = (safetensors.torch.load_file(out / "model.safetensors") for out in (whole, killed))
    assert all(torch.equal(ours[name], theirs[name]) for name in ours)


@pytest.mark.slow
def test_two_processes_have_the_curve_of_one(sounds: Path, tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    mixups = [{"of": "waveforms", "alpha": 10.0, "rate": 0.5}, {"of": "mels", "alpha": 0.3}]
    masks = [{"axis": "frequency", "widest": 24}, {"axis": "time", "widest": 8}]
    more = ["--set", f"mixups={json.dumps(mixups)}", "--set", f"masks={json.dumps(masks)}", "--set", "gain_db=6"]
    finish(started([script(), *arguments(sounds, one, *more, epochs=7)]))
    torchrun = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    finish(started([*torchrun, "--no-python", script(), *arguments(sounds, two, *more, epochs=7)]))
    assert len(losses(one)) == 21
    assert losses(two) == pytest.approx(losses(one), abs=1e-4)
