"""The recipe of the embedded model: sounds and shards that repeat, runs that survive, scores that mean something."""

import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner

from hear_transformers import tiny
from hear_transformers.errors import HearTransformersError
from hear_transformers.training.loop import TrainingRun
from hear_transformers.training.tiny import batches, distill, generation, measure, shards
from hear_transformers.training.tiny.__main__ import cli
from hear_transformers.training.tiny.recipe import TinyRecipe

DATA = Path(__file__).parents[3] / "shared" / "data"

SMALL = TinyRecipe(
    clips_per_shard=2,
    scene_shards=1,
    speech_shards=1,
    steps=4,
    scene_frames=64,
    speech_frames=64,
    scene_crops=(32,),
    speech_crops=(16, 32),
    warm_up=2,
)


# Shards


def test_shard_comes_back_as_written(tmp_path):
    path = shards.shard_path(tmp_path / "new", "speech", 7)
    shards.write_shard(path, {"phones": np.array([["a", "_"]])})
    assert shards.read_shard(path)["phones"].tolist() == [["a", "_"]]


def test_failed_write_leaves_no_shard(tmp_path, monkeypatch):
    path = shards.shard_path(tmp_path, "scenes", 0)
    monkeypatch.setattr(np, "savez", lambda *_, **__: (_ for _ in ()).throw(OSError("disk full")))
    with pytest.raises(OSError, match="disk full"):
        shards.write_shard(path, {})
    assert not path.exists()


@pytest.mark.slow
def test_synthesis_makes_the_missing_shards_alone(tmp_path):
    recipe = replace(SMALL, scene_shards=2)
    kept = shards.shard_path(tmp_path, "scenes", 0)
    shards.write_shard(kept, {"mel": np.zeros(1)})
    made = list(generation.synthesise(tmp_path, "scenes", recipe, workers=1))
    assert made == [shards.shard_path(tmp_path, "scenes", 1)]
    expected = generation.scene_shard(recipe, 1, 0)["mel"]
    np.testing.assert_array_equal(shards.read_shard(made[0])["mel"], expected)


def test_log_mel_of_a_clip_has_200_frames():
    assert generation.scene_shard(SMALL, 0, 0)["mel"].shape == (2, 128, 200)


# Batches


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Write one shard of each kind, of noise."""
    rng = np.random.default_rng(0)
    phones = np.array([["_"] * 20 + ["a"] * 19 + ["b"]] * 4)
    shards.write_shard(shards.shard_path(tmp_path, "scenes", 0), {"mel": rng.normal(0, 0.3, (4, 128, 40))})
    shards.write_shard(
        shards.shard_path(tmp_path, "speech", 0), {"mel": rng.normal(0, 0.3, (4, 128, 40)), "phones": phones}
    )
    targets = {"logits": rng.normal(0, 1, (4, 5)), "features": rng.normal(0, 1, (4, 7))}
    shards.write_shard(shards.shard_path(tmp_path, "targets", 0), targets)
    return tmp_path


@pytest.fixture
def clips(folder: Path) -> tuple[batches.SceneSet, batches.SpeechSet]:
    return batches.load_scenes(folder, SMALL), batches.load_speech(folder, SMALL)


def test_phones_are_numbered_by_name_after_other(clips):
    _, speech_clips = clips
    assert speech_clips.names == ("other", "_", "a", "b")
    assert speech_clips.phones[0].tolist() == [1] * 20 + [2] * 19 + [3]


def test_rare_phones_become_other(folder, monkeypatch):
    monkeypatch.setattr(batches, "RAREST_PHONE", 0.1)
    speech_clips = batches.load_speech(folder, SMALL)
    assert speech_clips.names == ("other", "_", "a")
    assert speech_clips.phones[0, -1] == 0


def test_missing_shard_is_named(folder):
    with pytest.raises(HearTransformersError, match=r"speech-00001\.npz is missing, and 1 more.*synthesise"):
        batches.load_speech(folder, replace(SMALL, speech_shards=3))


def test_targets_are_standardised_and_without_extremes():
    values = np.array([[0.0], [0.0], [1.0]] * 100 + [[1e4]])
    scaled = batches.standardise(values, floor=0.0)
    assert scaled.max() == batches.LARGEST_TARGET
    assert abs(scaled.mean()) < 0.1


def test_batch_depends_on_its_number_alone(clips):
    (_, ours), (_, third) = list(batches.batches(*clips, SMALL, [1, 2]))
    ((_, again),) = batches.batches(*clips, SMALL, [2])
    torch.testing.assert_close(again[0], third[0], rtol=0, atol=0)
    assert ours[0].shape != third[0].shape or not torch.equal(ours[0], third[0])


def test_crops_of_phones_and_mels_are_of_the_same_time(clips, monkeypatch):
    scenes, speech_clips = clips
    for disturbance in ("shift_bands", "colour", "mask"):
        monkeypatch.setattr(batches, disturbance, lambda _, mels: mels)
    monkeypatch.setattr(batches, "BACKGROUND_SHARE", 0.0)
    told = np.repeat(speech_clips.phones[:, None], 128, axis=1).astype(np.float16)
    mels, phones = batches.speech_batch(replace(speech_clips, mels=told), scenes, SMALL, np.random.default_rng(0))
    torch.testing.assert_close(mels[:, 0], phones.float())


def test_background_adds_power_below_the_speech():
    rng = np.random.default_rng(0)
    mels, backgrounds = rng.normal(0, 0.3, (2, 50, 128, 10)).astype(np.float32)
    noisy = batches.add_backgrounds(rng, mels, backgrounds)
    assert (noisy >= mels - 1e-5).all()
    assert (noisy.max((1, 2)) <= mels.max((1, 2)) + math.log(2) / 5).all()


def test_shift_moves_by_three_bands_at_most():
    bands = np.tile(np.arange(128, dtype=np.float32)[:, None], (40, 1, 2))
    shifts = batches.shift_bands(np.random.default_rng(0), bands)[:, 64, 0] - 64
    assert set(shifts.tolist()) == {-3, -2, -1, 0, 1, 2, 3}


def test_masks_leave_most_of_a_log_mel():
    mels = np.random.default_rng(1).normal(0, 1, (100, 128, 80)).astype(np.float32)
    changed = batches.mask(np.random.default_rng(0), mels.copy()) != mels
    assert 0.02 < changed.mean() < 0.1
    assert changed.all(2).sum(1).max() <= batches.BAND_MASK


# Training


def new_run(recipe: TinyRecipe = SMALL) -> TrainingRun:
    return distill.new_run(recipe, n_logits=5, n_features=7, n_phones=4)


@pytest.mark.slow
def test_every_step_moves_network_and_heads(clips):
    run = new_run()
    before = {name: tensor.clone() for name, tensor in run.objective.state_dict().items()}
    (batch,) = batches.batches(*clips, SMALL, [0])
    run.advance(batch)
    moved = [name for name, tensor in run.objective.state_dict().items() if not torch.equal(tensor, before[name])]
    assert {name.partition(".")[0] for name in moved} == {"trunk", "heads"}


@pytest.mark.slow
def test_training_learns_a_batch_by_heart(clips):
    run = new_run(replace(SMALL, steps=40, warm_up=5))
    (batch,) = batches.batches(*clips, SMALL, [0])
    losses = [run.advance(batch) for _ in range(20)]
    for name in ("logits", "features", "phones"):
        assert losses[-1][name] < 0.5 * losses[0][name]


def test_initial_weights_leave_the_global_seed_alone():
    before = torch.get_rng_state()
    new_run()
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.slow
def test_exported_weights_give_the_embeddings_of_the_run(clips, tmp_path):
    run = new_run()
    for batch in batches.batches(*clips, SMALL, range(4)):
        run.advance(batch)
    distill.export(run.network, tmp_path / "tiny.safetensors")
    model = tiny.load_model(tmp_path / "tiny.safetensors")
    mel = torch.randn(1, 128, 40)
    with torch.no_grad():
        found = model.trunk(mel, ["features"])["features"]
        expected = run.network.eval()(mel, ["features"])["features"]
    torch.testing.assert_close(found, expected, rtol=0, atol=0.02)


# Measuring


def test_labels_in_the_embedding_are_found_in_every_group():
    labels = np.array(["a", "b"] * 10)
    task = measure.Recordings("task", [], labels, np.repeat(["1", "2"], 10))
    embeddings = np.stack([labels == "a", np.arange(20) % 3], 1).astype(np.float32)
    assert measure.cross_validate(embeddings, task) == 1


def test_labels_that_follow_the_group_alone_are_not_found():
    groups = np.repeat(["1", "2"], 10)
    task = measure.Recordings("task", [], np.where(groups == "1", ["a", "b"] * 10, ["b", "a"] * 10), groups)
    embeddings = np.stack([np.arange(20) % 2, np.arange(20) % 2], 1).astype(np.float32)
    assert measure.cross_validate(embeddings, task) == 0


@pytest.fixture
def recordings(tmp_path: Path) -> Path:
    """Write tones as ESC-10 and as digits: two classes, two folds or speakers, and a take that is not used."""
    rows = {"esc10": ["filename,label,fold"], "fsdd": ["filename,label,speaker"]}
    for group in "12":
        for label in "01":
            for take in (0, 15):
                name = f"{label}_{group}_{take}.wav"
                for folder, table in rows.items():
                    table.append(f"{name},{label},{group}")
                    path = tmp_path / folder / "audio" / name
                    path.parent.mkdir(parents=True, exist_ok=True)
                    tone = np.sin(np.arange(4000) * (0.2 + 0.5 * int(label) + 0.01 * int(group)))
                    soundfile.write(path, 0.3 * tone, 8000)
    for folder, table in rows.items():
        (tmp_path / folder / "labels.csv").write_text("\n".join(table))
    return tmp_path


def test_tasks_hold_the_first_fifteen_takes_of_digits_and_all_of_esc10(recordings):
    esc10, digits = measure.load_tasks(recordings, 32_000)
    assert (len(esc10.waveforms), len(digits.waveforms)) == (8, 4)
    assert len(digits.waveforms[0]) == 16_000
    assert digits.groups.tolist() == ["1", "1", "2", "2"]


@pytest.mark.slow
def test_measure_prints_the_model_beside_its_baselines(recordings):
    result = CliRunner().invoke(cli, ["measure", "--data", str(recordings)])
    assert result.exit_code == 0, result.output
    names = [line.split("  ")[0] for line in result.output.splitlines()]
    assert names == ["log-mel", "untrained network", "model"]


# Commands


@pytest.fixture(autouse=True)
def threads_stay(monkeypatch):
    """Keep what the commands do to their own process from the tests that follow."""
    monkeypatch.setattr(torch, "set_num_threads", lambda _: None)


@pytest.mark.slow
def test_train_writes_checkpoint_losses_and_weights(folder, tmp_path, monkeypatch):
    monkeypatch.setattr("hear_transformers.training.tiny.__main__.TinyRecipe", lambda **_: replace(SMALL, steps=2))
    result = CliRunner().invoke(cli, ["train", "--shards", str(folder), "--out", str(tmp_path / "run")])
    assert result.exit_code == 0, result.output
    assert sorted(path.name for path in (tmp_path / "run").iterdir()) == [
        "curves.png",
        "epochs.csv",
        "last.pt",
        "steps.csv",
        "tiny.safetensors",
    ]


def test_train_without_shards_says_what_to_do(tmp_path):
    result = CliRunner().invoke(cli, ["train", "--shards", str(tmp_path), "--out", str(tmp_path / "run")])
    assert result.exit_code == 1
    assert result.output.startswith("Error: ")
    assert "synthesise" in result.output


@pytest.fixture(scope="module")
def real_tasks():
    return {task.name: task for task in measure.load_tasks(DATA, 32_000)}


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.skipif(not DATA.is_dir(), reason="needs the real audio of the developers' folder ../shared")
@pytest.mark.parametrize(("task", "least"), [("ESC-10", 0.88), ("digits", 0.65)])
def test_embedded_model_reaches_its_scores_on_real_audio(real_tasks, task, least):
    embeddings = measure.embed_scenes(tiny.load_model(), real_tasks[task].waveforms)
    assert measure.cross_validate(embeddings, real_tasks[task]) >= least
