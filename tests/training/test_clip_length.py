"""Clips are as long as the network takes; other lengths are refused before anything is read."""

import importlib
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

from hear_transformers.errors import OptionError
from hear_transformers.training import clip_length
from hear_transformers.training.loop import Processes
from hear_transformers.training.recipes import RECIPES, Mask, Mixup
from hear_transformers.training.train import Options, Training

DEIT = {"dim": 48, "depth": 1, "heads": 3}
MAST = {"dim": 24, "depths": (1, 1, 1, 1)}
CLAP = {"dim": 16, "depths": (1, 1, 1, 1), "heads": (1, 2, 4, 8)}
ATGNN = {"channels": (8, 8, 16, 16), "depths": (1, 1, 1, 1), "label_depths": ()}


def slow(*case) -> pytest.param:
    return pytest.param(case, marks=pytest.mark.slow)


NETWORKS = [  # family, variant, network, in training
    ("ast", "tiny_10_10", {**DEIT, "frames": 312}, {}),
    ("ast", "tiny_10_10", {**DEIT, "frames": 100}, {"patchout": (2, 3)}),
    slow("ast", "audioset_16_16", {**DEIT, "frames": 16}, {}),
    slow("ast", "speechcommands_10_10", DEIT, {}),
    ("ast", "tiny_10_10", {**DEIT, "frames": 500, "n_mels": 64}, {}),
    ("passt", "base", {**DEIT, "time_positions": 49}, {}),
    ("passt", "base", {**DEIT, "time_positions": 30}, {"patchout": (4, 20)}),
    slow("passt", "hop160base", {**DEIT, "time_positions": 7}, {}),
    slow("passt", "passt_s_p16_s16_128_ap468", {**DEIT, "time_positions": 1}, {}),
    ("panns", "cnn6", {"width": 0.1}, {}),
    slow("panns", "resnet22", {"width": 0.1}, {}),
    slow("panns", "leenet11", {"width": 0.1}, {}),
    slow("panns", "wavegram_logmel_cnn14", {"width": 0.1}, {}),
    slow("panns", "cnn14_8k", {"width": 0.1}, {}),
    slow("mast", "tiny", {**MAST, "frames": 312}, {}),
    slow("atgnn", "pyr_t", {**ATGNN, "frames": 256}, {}),
    slow("efficientat", "mn01_as", {"width": 0.1}, {}),
    slow("efficientat", "dymn04_as", {"width": 0.1}, {}),
    slow("dasheng", "dasheng_base", {**DEIT, "time_positions": 50}, {}),
    slow("ced", "ced_tiny", {**DEIT, "time_positions": 50}, {}),
    slow("eat", "base_epoch30_pretrain", DEIT, {}),
    slow("atst", "frame_weak", DEIT, {}),
    slow("passt", "fpasst_weak", {**DEIT, "time_positions": 25}, {}),
    slow("efficientat", "frame_mn06_strong", {"width": 0.1}, {}),
    slow("efficientat", "m2d_dymn", {"width": 0.1}, {}),
    slow("clap", "clap-htsat-unfused", CLAP, {}),
    slow("clap", "clap-htsat-fused", CLAP, {}),
    slow("beats", "iter1", {"dim": 48, "depth": 2, "heads": 3, "hidden": 96, "patch_dim": 32}, {}),
]
RECIPE = replace(
    RECIPES["scratch"],
    batch_size=4,
    precision="float32",
    gain_db=6.0,
    shift_samples=5_000,  # more than the shortest clips have
    mixups=(Mixup(of="waveforms", alpha=1.0), Mixup(of="mels", alpha=1.0)),
    masks=(Mask(axis="frequency", widest=200), Mask(axis="time", widest=2_000)),
)


@pytest.fixture(scope="module")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write six short clips of two classes."""
    folder = tmp_path_factory.mktemp("clips")
    for name in "abcdef":
        soundfile.write(folder / f"{name}.wav", np.random.default_rng(0).normal(size=800) * 0.1, 16_000)
    (folder / "train.csv").write_text("path,labels\n" + "".join(f"{name}.wav,{name < 'c'}\n" for name in "abcd"))
    (folder / "valid.csv").write_text("path,labels\ne.wav,True\nf.wav,False\n")
    return folder


def training(clips: Path, case, n_samples: int | None, recipe=RECIPE) -> Training:
    family, variant, network, in_training = case
    rate = importlib.import_module(f"hear_transformers.{family}").VARIANTS[variant].frontend.sample_rate
    seconds = None if n_samples is None else n_samples / rate
    options = Options(
        family=family,
        variant=variant,
        network=network,
        train=clips / "train.csv",
        valid=clips / "valid.csv",
        out=clips / "out",
        recipe=replace(recipe, seconds=seconds, network=in_training),
    )
    return Training(options, Processes(0, 1, torch.device("cpu")))


def train_one_step(run: Training) -> None:
    (batch,) = run.batches(range(1))
    assert batch.waveforms.shape == (4, run.n_samples)
    assert run.run.advance(batch)["loss"].isfinite()
    run.run.network.eval()
    for _, valid in run.validation_batches():
        assert run.objective.logits(run.run.network, valid).isfinite().all()


@pytest.mark.parametrize("case", NETWORKS, ids=lambda case: "-".join(case[:2]))
def test_shortest_default_and_longest_clips_train_and_a_sample_beyond_is_refused(clips, case) -> None:
    usual = training(clips, case, None)
    shortest, longest = clip_length.clip_limits(usual.variant, usual.objective.trunk)
    assert shortest <= usual.n_samples <= (longest or usual.n_samples)
    for n_samples in {shortest, usual.n_samples if longest is None else longest}:
        train_one_step(training(clips, case, n_samples))
    for n_samples in (shortest - 1, *(() if longest is None else (longest + 1,))):
        if n_samples:
            with pytest.raises(OptionError, match=r"^seconds=\S+ is no length of clips .*; choose \S+ (to|s or)"):
                training(clips, case, n_samples)


@pytest.mark.parametrize(
    ("family", "variant", "network", "seconds", "limits"),
    [
        ("passt", "base", {}, 15.0, "0.151 to 10.05 s"),
        ("passt", "base", {}, 0.05, "0.151 to 10.05 s"),
        ("passt", "base", {"patchout": [4, 40]}, 3.0, "4.151 to 10.05 s"),
        ("ast", None, {}, 15.0, "0.025 to 10.274 s"),
        ("ast", "speechcommands_10_10", {}, 3.0, "0.025 to 1.374 s"),
        ("ast", None, {"frames": 312}, 5.0, "0.025 to 3.174 s"),
        ("panns", "cnn6", {}, 0.05, "0.15 s or more"),
    ],
)
def test_limits_are_named_before_anything_is_read(tmp_path, family, variant, network, seconds, limits) -> None:
    missing = tmp_path / "missing.csv"
    recipe = replace(RECIPES["fine_tune"], seconds=seconds)
    options = Options(
        family=family, variant=variant, network=network, train=missing, valid=missing, out=tmp_path, recipe=recipe
    )
    with pytest.raises(OptionError, match=f"seconds={seconds:g} is no length .*; choose {limits}"):
        Training(options, Processes(0, 1, torch.device("cpu")))


@pytest.mark.parametrize(
    ("family", "network", "message"),
    [
        ("ast", {"frames": 8}, "takes no clips at all"),
        ("ast", {"frame": 312}, r"ast/audioset_10_10 has no argument frame; .*; did you mean frames\?"),
        ("ast", {"frames": "many"}, "ast: frames='many' is not allowed; give a whole number, such as 1024"),
        ("passt", {"patchout": 4}, r"patchout=4 is not allowed; give a list, such as \(0, 0\)"),
        ("passt", {"patchout": [12, 0]}, "patchout leaves out 12 of 12 patches along frequency"),
        ("passt", {"n_classes": 5}, "n_classes is the number of classes"),
        ("panns", {"widht": 0.5}, r"has no argument widht; .*; did you mean width"),
        ("panns", {"bottleneck": "False"}, "bottleneck='False' is not allowed; give true or false"),
        ("mast", {"heads": 1.5}, "heads=1.5 is not allowed; give a whole number"),
        ("efficientat", {"strides": [2, 2]}, "cannot be"),
    ],
)
def test_a_network_that_cannot_be_trained_is_refused(tmp_path, family, network, message) -> None:
    missing = tmp_path / "missing.csv"
    recipe = replace(RECIPES["fine_tune"], batch_size=12)
    options = Options(family=family, network=network, train=missing, valid=missing, out=tmp_path, recipe=recipe)
    with pytest.raises(OptionError, match=message):
        Training(options, Processes(0, 1, torch.device("cpu")))


def test_a_batch_too_small_for_batch_normalisation_is_refused(tmp_path) -> None:
    recipe, missing = replace(RECIPES["fine_tune"], batch_size=1, mixups=()), tmp_path / "missing.csv"
    options = Options(family="atgnn", network=ATGNN, train=missing, valid=missing, out=tmp_path, recipe=recipe)
    with pytest.raises(
        OptionError, match=r"cannot be trained with .* on batches of 1 clips of \S+ s: Expected more than 1"
    ):
        Training(options, Processes(0, 1, torch.device("cpu")))
