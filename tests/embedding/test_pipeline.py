"""Clips -> embeddings, in order, each as if it were alone."""

import os
import pickle
import random
import signal
import threading
import time
from itertools import pairwise
from multiprocessing import active_children
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hear_transformers import efficientat, tiny
from hear_transformers.audio import reading, workers
from hear_transformers.audio.reading import AudioFile
from hear_transformers.embedding import framing, packing, pipeline
from hear_transformers.embedding.packing import Packer
from hear_transformers.embedding.pipeline import Clip, embed
from hear_transformers.embedding.windows import adjoining
from hear_transformers.errors import AudioError, HearTransformersWarning, OptionError
from hear_transformers.files import Address, sha256_of

forked = pytest.mark.skipif(workers.START_METHOD != "fork", reason="a patched function reaches forked workers only")


def noise(samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(samples, generator=torch.Generator().manual_seed(samples))


@pytest.fixture(scope="module")
def windowed():
    return efficientat.load_model(variant="mn01_as", pretrained=False, window_ms=[160, 400], hop_ms=250)


@pytest.fixture(scope="module")
def native():
    """Give a network of two seconds: longer scenes are the mean over windows."""
    return tiny.load_model(pretrained=False, layer="0,1", framing="native", window_ms=1_000, hop_ms=40)


@pytest.fixture(params=["windowed", "native"])
def model(request):
    return request.getfixturevalue(request.param)


def alone(model, waveform: torch.Tensor) -> np.ndarray:
    return model.embed_scenes(waveform[None])[0].numpy()


def test_embeddings_come_in_the_order_of_the_clips(small_model, audio_file):
    seconds = [0.5, 1.0, 0.5, 0.7, 1.0]
    paths = [audio_file(f"{i}.wav", seconds=each) for i, each in enumerate(seconds)]
    embedded = list(embed(small_model, [Clip(path) for path in paths]))
    assert [each.index for each in embedded] == [0, 1, 2, 3, 4]
    assert [each.seconds for each in embedded] == seconds
    for path, each in zip(paths, embedded, strict=True):
        np.testing.assert_allclose(each.embedding, alone(small_model, reading.read(path, 32_000)), atol=1e-5)


def test_embeddings_do_not_wait_for_a_clip_of_rare_length(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(pipeline, "WAITING_BYTES", 3 * 4 * small_model.scene_embedding_size)
    monkeypatch.setattr(small_model, "batch_size", 2)
    n_read = 0

    def clips():
        nonlocal n_read
        for i in range(12):
            n_read = i + 1
            yield Clip(audio_file(f"{i}.wav", seconds=0.4 if i == 0 else 1.0))

    first = next(embed(small_model, clips()))
    assert (first.index, n_read) == (0, 5)


@pytest.mark.parametrize(("start", "end"), [(0.25, 0.75), (0.5, float("inf"))])
@pytest.mark.parametrize("long_seconds", [60.0, 0.1])
def test_a_part_of_a_file_is_embedded_as_if_it_were_a_file(
    small_model, audio_file, monkeypatch, start, end, long_seconds
):
    path = audio_file()
    monkeypatch.setattr(pipeline, "LONG_SECONDS", long_seconds)
    (embedded,) = embed(small_model, [Clip(path, start, end)])
    part = reading.read(path, 32_000)[round(32_000 * start) : round(32_000 * min(end, 1.0))]
    np.testing.assert_allclose(embedded.embedding, alone(small_model, part), atol=1e-5)
    assert embedded.seconds == len(part) / 32_000


def test_a_part_that_begins_behind_the_end_fails(small_model, audio_file):
    for clip in (Clip(audio_file(), 2.0, 3.0), Clip(audio_file(), 2.0)):
        (embedded,) = embed(small_model, [clip])
        assert isinstance(embedded.error, AudioError)
        assert "ends before 2.000 s" in str(embedded.error)


def test_a_waveform_needs_no_file(small_model):
    waveform = torch.rand(32_000)
    (embedded,) = embed(small_model, [Clip(waveform=waveform)])
    np.testing.assert_allclose(embedded.embedding, alone(small_model, waveform), atol=1e-6)


def test_known_content_is_not_embedded_again(small_model, audio_file):
    path, other = audio_file(), audio_file("other.wav", seconds=0.5)
    known, new = embed(small_model, [Clip(path, skip_sha256=sha256_of(path)), Clip(other, skip_sha256=sha256_of(path))])
    assert (known.embedding, known.error) == (None, None)
    assert new.embedding is not None
    assert [known.sha256, new.sha256] == [sha256_of(path), sha256_of(other)]


def test_a_clip_that_fails_does_not_stop_the_others(small_model, audio_file):
    lost, good = embed(small_model, [Clip(Path("lost.wav")), Clip(audio_file())])
    assert "no such file" in str(lost.error)
    assert good.embedding is not None


# Together as alone


def assert_same_as_alone(model, lengths: list[int], batch_size: int | None) -> None:
    waveforms = [noise(length) for length in lengths]
    clips = [Clip(waveform=waveform) for waveform in waveforms]
    model.batch_size = batch_size
    try:
        scenes, along_time = list(embed(model, clips)), list(embed(model, clips, timestamps=True))
    finally:
        model.batch_size = None
    assert [each.index for each in scenes] == [each.index for each in along_time] == list(range(len(clips)))
    for waveform, scene, timed in zip(waveforms, scenes, along_time, strict=True):
        np.testing.assert_allclose(scene.embedding, alone(model, waveform), atol=1e-5)
        embeddings, times_ms = model.embed_timestamps(waveform[None])
        np.testing.assert_allclose(timed.embedding, embeddings[0].numpy(), atol=1e-5)
        np.testing.assert_array_equal(timed.times_ms, times_ms.numpy())


LENGTHS = st.lists(st.one_of(st.integers(1, 100_000), st.sampled_from([1, 16_000, 32_000, 64_000])), max_size=6)
BATCH_SIZES = st.one_of(st.none(), st.integers(1, 100))


@pytest.mark.slow
@settings(max_examples=20)
@given(lengths=LENGTHS, batch_size=BATCH_SIZES)
def test_clips_of_any_lengths_are_embedded_as_if_alone(windowed, native, lengths, batch_size):
    for model in (windowed, native):
        assert_same_as_alone(model, lengths, batch_size)


def test_windows_of_clips_of_different_lengths_share_a_batch(windowed, monkeypatch):
    forward, batches = windowed.trunk.forward, []
    monkeypatch.setattr(windowed.trunk, "forward", lambda mel, wanted: batches.append(len(mel)) or forward(mel, wanted))
    monkeypatch.setattr(windowed, "batch_size", 10)
    clips = [Clip(waveform=noise(length)) for length in (8_000, 50_000, 33_000, 70_000)]  # 2 + 7 + 5 + 9 centres
    assert len(list(embed(windowed, clips, timestamps=True))) == 4
    assert sorted(batches) == [3, 3, 10, 10, 10, 10]


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_clip_without_samples_fails_alone(model, timestamps):
    good, empty = embed(model, [Clip(waveform=noise(5)), Clip(waveform=torch.zeros(0))], timestamps=timestamps)
    assert good.error is None
    assert isinstance(empty.error, AudioError)
    assert "0 samples" in str(empty.error)


def break_on_silence(model, monkeypatch) -> None:
    forward = model.trunk.forward

    def fragile(mel, wanted):
        if (mel.flatten(1).std(1) < 1e-6).any():
            raise ZeroDivisionError("silence")
        return forward(mel, wanted)

    monkeypatch.setattr(model.trunk, "forward", fragile)


@pytest.mark.parametrize("timestamps", [False, True])
def test_batches_in_flight_as_on_a_gpu_lose_nothing(model, monkeypatch, timestamps):
    break_on_silence(model, monkeypatch)
    monkeypatch.setattr(model, "batch_size", 3)
    packer = Packer(model.reader(timestamps=timestamps), model.sample_rate)
    packer.most_flights = 1
    waveforms = [noise(length) for length in (40_000, 70_000, 40_000, 100, 100_000, 40_000, 40_000)]
    waveforms.insert(2, torch.zeros(90_000))
    packed = [each for key, waveform in enumerate(waveforms) for each in packer.add(key, waveform, model.sample_rate)]
    packed += packer.finish()
    assert sorted(each.key for each in packed) == list(range(8))
    assert [each.key for each in packed if each.error is not None] == [2]
    assert (packer.clips, packer.queues, packer.n_samples) == ({}, {}, 0)
    for each in packed:
        if each.result is not None:
            clip = waveforms[each.key][None]
            expected = (model.embed_timestamps(clip)[0] if timestamps else model.embed_scenes(clip))[0]
            torch.testing.assert_close(each.result.embedding, expected, rtol=0, atol=1e-5)


def test_the_first_batch_on_a_card_is_smaller(model, monkeypatch):
    monkeypatch.setattr(model, "batch_size", 8)
    reader, sizes = model.reader(timestamps=False), []
    read = reader.read
    monkeypatch.setattr(reader, "read", lambda key, parts: sizes.append(len(parts)) or read(key, parts))
    packer = Packer(reader, model.sample_rate)
    packer.most_flights, packer.share = 1, packing.FIRST_SHARE  # as there
    packed = [each for key in range(20) for each in packer.add(key, noise(30_000), model.sample_rate)]
    packed += packer.finish()
    assert sizes == [2, 8, 8, 2]
    assert [each.key for each in packed] == list(range(20))


@pytest.mark.slow
def test_a_clip_that_breaks_the_network_does_not_take_others_along(model, monkeypatch):
    break_on_silence(model, monkeypatch)
    lengths = [30_000, 50_000, 30_000]
    clips = [Clip(waveform=noise(length)) for length in lengths]
    clips.insert(1, Clip(waveform=torch.zeros(30_000)))
    for timestamps in (False, True):
        embedded = list(embed(model, clips, timestamps=timestamps))
        assert [type(each.error) for each in embedded] == [type(None), ZeroDivisionError, type(None), type(None)]
        assert [each.embedding is None for each in embedded] == [False, True, False, False]


def test_what_overflows_is_not_given():
    model = tiny.load_model(precision="float16")
    with torch.no_grad():
        model.trunk.blocks[3].mlp.fc2.weight.mul_(1e5)
    (overflown,) = embed(model, [Clip(waveform=noise(32_000))])
    assert overflown.embedding is None
    assert "precision float16, which ends at 65504; choose bfloat16 or float32" in str(overflown.error)


# Worker processes


def assert_same(first: pipeline.Embedded, second: pipeline.Embedded) -> None:
    assert (first.index, first.seconds, first.sha256) == (second.index, second.seconds, second.sha256)
    assert (type(first.error), str(first.error)) == (type(second.error), str(second.error))
    assert (first.embedding is None) == (second.embedding is None)
    if first.embedding is not None:
        np.testing.assert_allclose(first.embedding, second.embedding, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
def test_workers_change_nothing(small_model, audio_file, monkeypatch, timestamps):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 2.0)
    paths = [audio_file(f"{i}.wav", seconds=0.3 + 0.5 * i, sample_rate=(32_000, 44_100)[i % 2]) for i in range(6)]
    clips = [*map(Clip, paths), Clip(Path("lost.wav")), Clip(paths[5], 0.5, 1.0), Clip(paths[5], 0.2), Clip()]
    clips += [Clip(waveform=noise(32_000)), Clip(paths[0], skip_sha256=sha256_of(paths[0])), Clip(paths[2], 9.0)]
    options = {"timestamps": timestamps, "hashes": True}
    here, there = (list(embed(small_model, clips, workers=n, **options)) for n in (0, 2))
    for first, second in zip(here, there, strict=True):
        assert_same(first, second)
    assert sum(each.error is not None for each in here) == 3


@pytest.mark.slow
def test_workers_that_are_not_forked_change_nothing(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(workers, "START_METHOD", "spawn")
    path = audio_file()
    (here,), (there,) = (embed(small_model, [Clip(path)], workers=n) for n in (0, 1))
    assert_same(here, there)


@pytest.mark.slow
@forked
@pytest.mark.parametrize("dies", [workers.STRIKES - 1, workers.STRIKES])
def test_a_killed_worker_loses_and_repeats_nothing(small_model, audio_file, tmp_path, monkeypatch, dies):
    paths = [audio_file(f"{i}.wav", seconds=0.5) for i in range(12)]
    blocks, master = AudioFile.blocks, os.getpid()

    def deadly(file, sample_rate):
        deaths = tmp_path / "deaths"
        n_deaths = deaths.stat().st_size if deaths.exists() else 0
        if os.getpid() != master and file.path == paths[4] and n_deaths < dies:
            deaths.write_bytes(bytes(n_deaths + 1))
            os.kill(os.getpid(), signal.SIGKILL)
        yield from blocks(file, sample_rate)

    monkeypatch.setattr(AudioFile, "blocks", deadly)
    embedded = list(embed(small_model, map(Clip, paths), workers=2))
    assert [each.index for each in embedded] == list(range(12))
    failed = [each for each in embedded if each.error is not None]
    assert [each.index for each in failed] == ([4] if dies == workers.STRIKES else [])
    for each in failed:
        assert isinstance(each.error, AudioError)
        assert "4.wav: 2 processes ended while they decoded it (killed by SIGKILL)" in str(each.error)
    assert not active_children()


@pytest.mark.slow
@forked
def test_workers_killed_from_outside_are_replaced(small_model, audio_file):
    paths = [audio_file(f"{i}.wav", seconds=0.5) for i in range(40)]
    embedded = []
    for each in embed(small_model, map(Clip, paths), workers=2):
        embedded.append(each)
        if each.index in (0, 20):
            os.kill(active_children()[0].pid, signal.SIGKILL)
    assert [(each.index, each.error) for each in embedded] == [(i, None) for i in range(40)]


@pytest.mark.slow
@forked
def test_a_decoder_that_hangs_is_given_up_and_named(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(workers, "PATROL_SECONDS", 0.5)
    monkeypatch.setattr(workers, "PATIENCE_SECONDS", 5.0)
    paths = [audio_file(f"{i}.wav", seconds=0.2) for i in range(12)]
    blocks = AudioFile.blocks

    def sleepy(file, sample_rate):
        if file.path == paths[4]:
            time.sleep(1_000)
        yield from blocks(file, sample_rate)

    monkeypatch.setattr(AudioFile, "blocks", sleepy)
    embedded = list(embed(small_model, map(Clip, paths), workers=2))
    assert [each.index for each in embedded] == list(range(12))
    assert [each.index for each in embedded if each.error is not None] == [4]
    assert "4.wav: given up after 6 s, in which it was not decoded" in str(embedded[4].error)
    assert not active_children()


def test_large_files_and_addresses_get_more_time(audio_file):
    path = audio_file(seconds=60.0)
    assert 301 < workers._patience(Clip(path)) < 304 + 1
    assert workers._patience(Clip(Path("lost.wav"))) == 300
    assert workers._patience(Clip(Address("s3://bucket/a.wav"))) == float("inf")


def test_memory_that_is_lent_is_not_read_later(windowed, native, small_model, audio_file):
    """More clips of different lengths wait for a batch than are lent at once."""
    paths = [audio_file(f"{i}.wav", tone_of(i)) for i in range(5 * workers.LENT)]
    for clip, embedded in zip(paths, embed(small_model, map(Clip, paths), workers=1, batch_size=7), strict=True):
        np.testing.assert_allclose(embedded.embedding, alone(small_model, reading.read(clip, 32_000)), atol=1e-5)


@forked
@pytest.mark.parametrize("n_bad", [20, 47])
def test_memory_is_lent_for_a_number_of_clips_whatever_becomes_of_them(n_bad, small_model, audio_file, tmp_path):
    rng = np.random.default_rng(0)
    good = [audio_file(f"{i}.wav", 0.1 * rng.standard_normal(8_000)) for i in range(70)]
    bad = [tmp_path / f"{i}.wav" for i in range(100, 100 + n_bad)]  # there are none
    clips = [Clip(path) for path in (good[0], *bad, *good[1:])]
    expected = [each.embedding for each in embed(small_model, clips)]
    for found, embedding in zip(embed(small_model, clips, workers=2), expected, strict=True):
        if embedding is not None:
            np.testing.assert_allclose(found.embedding, embedding, rtol=0, atol=1e-5)


def test_clips_of_one_length_that_workers_read_are_not_copied_into_batches(small_model, audio_file, monkeypatch):
    joined = []
    monkeypatch.setattr(framing, "adjoining", lambda windows: joined.append(adjoining(windows)) or joined[-1])
    paths = [audio_file(f"{i}.wav", tone_of(3 * i)) for i in range(24)]
    for clip, embedded in zip(paths, embed(small_model, map(Clip, paths), workers=2, batch_size=6), strict=True):
        np.testing.assert_allclose(embedded.embedding, alone(small_model, reading.read(clip, 32_000)), atol=1e-5)
    assert [len(each) for each in joined if len(each) > 1] == [6, 6, 6, 6]


@given(st.lists(st.integers(0, 3), min_size=1, max_size=4), st.booleans())
def test_windows_at_equal_distances_are_one_view(rows, is_long):
    memory = torch.arange(4 * 100).view(4, 100)
    windows = [memory[row, 3 : 90 if is_long else 20] for row in rows]
    view = adjoining(windows)
    steps = {later - row for row, later in pairwise(rows)}
    assert (view is None) == (len(steps) > 1 or any(step <= 0 for step in steps))
    if view is not None:
        assert view.data_ptr() == windows[0].data_ptr()
        assert torch.equal(view, torch.stack(windows))
    assert adjoining([memory[0, :20], memory[0, 10:30]]) is None
    assert adjoining([memory[0, :20], memory[1].clone()[:20]]) is None


@pytest.mark.parametrize("path", [Path("in/a.wav"), Address("s3://bucket/a.wav"), None])
def test_what_goes_between_processes_arrives(path):
    clip = Clip(path, 1.0, 2.0, known=("", "kept"))
    assert pickle.loads(pickle.dumps(clip)) == clip
    assert type(pickle.loads(pickle.dumps(clip)).path) is type(path)
    for embedding in (None, np.arange(3, dtype=np.float32), np.ones((2, 3), np.float32)):
        sent = pipeline.Embedded(4, embedding, seconds=1.5, sha256="ab", warnings=("loud",))
        arrived = pickle.loads(pickle.dumps(sent))
        assert (arrived.index, arrived.seconds, arrived.sha256, arrived.warnings) == (4, 1.5, "ab", ("loud",))
        np.testing.assert_array_equal(arrived.embedding, embedding)
        assert embedding is None or arrived.embedding.flags.writeable


def tone_of(number: int) -> np.ndarray:
    return 0.3 * np.sin(0.01 * (number + 1) * np.arange(8_000 + 10 * (number % 3)))


def test_samples_of_16_bits_are_embedded_like_those_of_32(small_model):
    samples = (20_000 * noise(32_000)).to(torch.int16)
    packed = []
    for each in (samples, samples / 2**15):
        packer = Packer(small_model.reader(timestamps=False), small_model.sample_rate)
        packed += [*packer.add(0, each, small_model.sample_rate), *packer.finish()]
    first, second = (each.result.embedding for each in packed)
    assert torch.equal(first, second)


def test_the_time_of_a_run_is_accounted_for(small_model, audio_file):
    paths = [audio_file(f"{i}.wav", seconds=0.5) for i in range(5)]
    for n in (0, 1):
        spent = workers.Spent()
        list(embed(small_model, map(Clip, paths), workers=n, spent=spent))
        assert spent.workers == n
        assert min(spent.waiting, spent.computing) > 0
        assert (spent.reading > 0) == bool(n)


def test_memory_that_cannot_be_had_is_done_without(small_model, audio_file, monkeypatch):
    def refuse(n_bytes):
        raise OSError("not enough memory")

    monkeypatch.setattr(workers, "shared", refuse)
    with pytest.warns(HearTransformersWarning, match="no memory could be shared with processes .*this one decodes"):
        (embedded,) = embed(small_model, [Clip(audio_file())], workers=1)
    assert embedded.embedding is not None


def test_a_process_that_cannot_be_started_is_done_without(small_model, audio_file, monkeypatch):
    def refuse(self):
        raise OSError("too many processes")

    monkeypatch.setattr(workers.multiprocessing.process.BaseProcess, "start", refuse)
    with pytest.warns(HearTransformersWarning, match="no process could be started to decode .*this one decodes"):
        (embedded,) = embed(small_model, [Clip(audio_file())], workers=1)
    assert embedded.embedding is not None


@forked
def test_a_process_that_ends_at_once_is_done_without(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(workers, "leave_the_terminal", lambda: os._exit(3))
    with pytest.warns(HearTransformersWarning, match=r"ended at once \(exit code 3\); this one decodes instead"):
        (embedded,) = embed(small_model, [Clip(audio_file())], workers=1)
    assert embedded.embedding is not None


@forked
def test_an_error_that_cannot_be_sent_is_told(small_model, audio_file, monkeypatch):
    class StrangeError(Exception):
        def __init__(self, one, two):
            super().__init__(f"{one} and {two}")

    def strange(file, sample_rate):
        raise StrangeError(1, 2)

    monkeypatch.setattr(AudioFile, "blocks", strange)
    (embedded,) = embed(small_model, [Clip(audio_file())], workers=1)
    assert str(embedded.error) == "StrangeError: 1 and 2"


@pytest.mark.slow
def test_who_stops_early_leaves_neither_processes_nor_threads(small_model, audio_file):
    n_threads = threading.active_count()
    embedded = embed(small_model, [Clip(audio_file(f"{i}.wav")) for i in range(30)], workers=2)
    next(embedded)
    embedded.close()
    assert not active_children()
    assert threading.active_count() == n_threads


def test_a_long_clip_that_fails_leaves_no_thread(small_model, audio_file, monkeypatch):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.5)
    monkeypatch.setattr(AudioFile.blocks, "__defaults__", (0.1,))
    monkeypatch.setattr(small_model, "stream_scene", lambda blocks: next(blocks) @ torch.zeros(0))
    n_threads = threading.active_count()
    (embedded,) = embed(small_model, [Clip(audio_file(seconds=3.0))], workers=1)
    assert embedded.error is not None
    assert threading.active_count() == n_threads


def test_an_error_among_the_clips_is_raised(small_model, audio_file):
    def clips():
        yield Clip(audio_file())
        raise KeyError("list")

    for n in (0, 1):
        with pytest.raises(KeyError, match="list"):
            list(embed(small_model, clips(), workers=n))


def test_random_numbers_of_others_stay_as_they_are(small_model, audio_file):
    paths = [audio_file(f"{i}.wav") for i in range(3)]
    states = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    list(embed(small_model, map(Clip, paths), workers=2))
    after = random.getstate(), torch.get_rng_state(), np.random.get_state()[1]  # noqa: NPY002
    assert states[0] == after[0]
    assert torch.equal(states[1], after[1])
    np.testing.assert_array_equal(states[2], after[2])


def test_the_number_of_workers_is_not_negative(small_model):
    with pytest.raises(OptionError, match="workers=-1"):
        list(embed(small_model, [], workers=-1))


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
@pytest.mark.parametrize("timestamps", [False, True])
def test_cuda_equals_cpu(model, audio_file, timestamps):
    clips = [Clip(audio_file(f"{i}.wav", seconds=0.3 + 0.4 * (i % 5))) for i in range(40)]
    expected = list(embed(model, clips, timestamps=timestamps))
    try:
        found = list(embed(model.to("cuda"), clips, timestamps=timestamps, workers=2))
    finally:
        model.to("cpu")
    for first, second in zip(expected, found, strict=True):
        assert (first.index, second.error) == (second.index, None)
        np.testing.assert_allclose(second.embedding, first.embedding, atol=1e-4)
