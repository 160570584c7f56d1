"""One model on several devices: the embeddings of one, whatever becomes of a process."""

import functools
import multiprocessing
import os
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch

from hear_transformers import catalogue
from hear_transformers.audio.clips import Clip
from hear_transformers.audio.workers import Spent
from hear_transformers.bulk.extract import extract
from hear_transformers.bulk.sources import find_sources
from hear_transformers.embedding import replicas
from hear_transformers.embedding.pipeline import Embedded, embed
from hear_transformers.embedding.replicas import Description, Replicas
from hear_transformers.errors import AudioError, HearTransformersError, HearTransformersWarning, OptionError
from tests.helpers import models

N_CLIPS = 40

spawns = pytest.mark.slow
signals = pytest.mark.skipif(sys.platform == "win32", reason="processes are killed by signals")


def clips(n: int = N_CLIPS) -> list[Clip]:
    return [Clip(waveform=torch.zeros(100 + i)) for i in range(n)]


@pytest.fixture(autouse=True)
def nobody_is_left():
    yield
    assert not [each for each in multiprocessing.active_children() if each.name.startswith("embeds on")]


@pytest.fixture(scope="module")
def load(small_weights):
    return functools.partial(
        catalogue.load, "efficientat", str(small_weights), options={"variant": "mn01_as", "hop_ms": 20.0}
    )


@pytest.fixture
def paths(audio_file, tmp_path):
    """Write clips of several lengths, a long one, and one that is no audio."""
    files = [audio_file(f"{i}.wav", seconds=0.3 + 0.1 * (i % 4), sample_rate=16_000) for i in range(20)]
    files.insert(3, audio_file("long.wav", seconds=61.0, sample_rate=16_000))
    files.insert(7, tmp_path / "bad.wav")
    files[7].write_text("text")
    return files


@spawns
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("workers", [0, 2])
def test_several_devices_give_the_embeddings_of_one(load, paths, tmp_path, timestamps, workers):
    how = {"timestamps": timestamps, "hashes": True, "scratch": tmp_path}
    one = load(device="cpu")
    alone = list(embed(one, map(Clip, paths), **how))
    with Replicas(load, ["cpu", "cpu"]) as model:
        (known,) = model.models
        assert known.provenance() == one.provenance()
        assert known.columns(timestamps=timestamps) == one.columns(timestamps=timestamps)
        assert (known.layers, known.name, known.sample_rate) == (one.layers, one.name, one.sample_rate)
        for _ in range(2):  # the processes serve several calls
            spent = Spent()
            shared = list(embed(model, map(Clip, paths), workers=workers, spent=spent, **how))
            assert (spent.devices, spent.workers) == (2, workers)
            assert min(spent.waiting, spent.computing) > 0.0
            for ours, theirs in zip(shared, alone, strict=True):
                check_equal(ours, theirs)
    assert sorted(tmp_path.glob("embedding-*")) == []


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("workers", [0, 3])
def test_two_processes_on_a_card_give_the_embeddings_of_one(load, paths, tmp_path, workers):
    how = {"hashes": True, "scratch": tmp_path, "resample": "cpu"}  # which "auto" leaves to the card with workers only
    alone = list(embed(load(device="cuda:0"), map(Clip, paths), **how))
    with Replicas(load, ["cuda:0", "cuda:0"]) as model:
        shared = list(embed(model, map(Clip, paths), workers=workers, **how))
    for ours, theirs in zip(shared, alone, strict=True):
        check_equal(ours, theirs)


def check_equal(ours: Embedded, theirs: Embedded) -> None:
    assert (ours.index, ours.seconds, ours.sha256) == (theirs.index, theirs.seconds, theirs.sha256)
    assert (type(ours.error), str(ours.error)) == (type(theirs.error), str(theirs.error))
    if theirs.embedding is not None:
        np.testing.assert_allclose(ours.embedding, theirs.embedding, atol=1e-5)
    if theirs.times_ms is not None:
        np.testing.assert_array_equal(ours.times_ms, theirs.times_ms)
        np.testing.assert_array_equal(ours.spans_ms, theirs.spans_ms)


@spawns
def test_a_slow_device_does_not_hold_up_the_others():
    with Replicas(models.slow_second, models.DEVICES) as model:
        n_clips = 10 * N_CLIPS  # far more than the few handfuls that a device has before it needs them
        made_by = [int(each.embedding[0]) for each in embed(model, clips(n_clips))]
    assert 0 < sum(made_by) < n_clips // 4


@spawns
@signals
def test_the_clips_of_a_killed_process_go_to_the_others():
    with Replicas(models.mortal_second, models.DEVICES) as model:
        with pytest.warns(
            HearTransformersWarning, match=r"process of device cpu:0 ended \(killed by SIGKILL\) with .* c"
        ):
            embedded = list(embed(model, clips()))
        assert [each.index for each in embedded] == list(range(N_CLIPS))
        assert all(each.embedding is not None for each in embedded)
        assert len(list(embed(model, clips(3)))) == 3


@spawns
@signals
def test_the_end_of_all_processes_is_an_error_that_says_what_to_do():
    with (
        Replicas(models.mortal, models.DEVICES) as model,
        pytest.warns(HearTransformersWarning, match="1 others go on"),
        pytest.raises(HearTransformersError, match=r"killed by SIGKILL.*no other is left.*smaller batch size"),
    ):
        list(embed(model, clips()))


@spawns
@signals
def test_a_process_that_is_killed_while_it_loads_is_named():
    with pytest.raises(
        HearTransformersError, match=r"device cpu ended before the model was loaded \(killed by SIGKILL\)"
    ):
        Replicas(models.killed_while_loading, models.DEVICES)


@spawns
def test_an_error_of_loading_is_raised_here():
    with pytest.raises(OptionError, match="cpu is refused"):
        Replicas(models.refused, models.DEVICES)


@spawns
def test_clips_fail_alone_and_an_unfinished_call_ends_the_processes():
    with Replicas(models.quick, models.DEVICES) as model:
        some = [Clip(waveform=torch.zeros(13)), *clips(), Clip(os.devnull)]
        first, *middle, last = embed(model, some)
        assert str(first.error) == "thirteen samples"
        assert isinstance(last.error, AudioError)
        assert len(middle) == N_CLIPS
        run = embed(model, clips())
        next(run)
        run.close()
        with pytest.raises(OptionError, match="have ended; load the model again"):
            list(embed(model, clips()))


@spawns
def test_several_models_on_several_devices(audio_file, tmp_path):
    for i in range(6):
        audio_file(f"in/{i}.wav", seconds=0.3)
    with Replicas(models.two, models.DEVICES) as both:
        report = extract(both, find_sources([str(tmp_path / "in")]), tmp_path / "out")
        assert len(report.written) == 6
        with pytest.raises(OptionError, match="several models"):
            embed(both, clips())
    for folder in ("model=on a device", "model=loudness"):
        assert len(list((tmp_path / "out" / folder).glob("*.npz"))) == 6


def test_a_model_needs_a_device():
    with pytest.raises(OptionError, match="no device was named"):
        Replicas(models.quick, [])


def test_devices_of_other_settings_are_refused():
    first = Description.of(models.quick(device="cpu"))
    other = replace(first, made_by={"family": "another"})
    with pytest.raises(OptionError, match="family is on a device on device cuda:0 and another on cuda:1: rows would"):
        replicas._check_alike(["cuda:0", "cuda:1"], [[first], [other]])


class Mute(replicas._Process):
    """A process that is handed clips and never answers."""

    def _send(self, message):
        pass


def asking(device: str) -> Mute:
    process = Mute(device, None, None)
    process.begin()
    process.n_wanted = replicas.ASKED_FOR
    return process


def test_a_few_clips_are_shared_by_all_devices():
    processes = [asking("a"), asking("b"), asking("c")]
    replicas._Run(processes, clips(6), [{}] * 3, Spent())._hand_out()
    assert [len(each.in_hand) for each in processes] == [2, 2, 2]


def test_while_much_waits_for_a_clip_only_its_device_gets_more(monkeypatch):
    processes = [asking("a"), asking("b")]
    run = replicas._Run(processes, clips(100), [{}] * 2, Spent())
    run._hand_out()
    (first,) = (each for each in processes if 0 in each.in_hand)
    run.done_bytes = replicas.WAITING_BYTES + 1
    before = [len(each.in_hand) for each in processes]
    for each in processes:
        each.n_wanted = 1
    run._hand_out()
    grown = [len(each.in_hand) > n for each, n in zip(processes, before, strict=True)]
    assert grown == [each is first for each in processes]
