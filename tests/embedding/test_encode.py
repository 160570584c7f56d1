"""`Embedder.encode`: whatever holds a sound -> embeddings in memory."""

import contextlib
import io
import logging
import sys
import tempfile
import threading
import warnings
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import numpy as np
import psutil
import pytest
import soundfile
import torch

from hear_transformers import efficientat
from hear_transformers.audio import reading
from hear_transformers.embedding import encode, pipeline
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.embedding.pipeline import Embedded
from hear_transformers.errors import AudioError, HearTransformersError, OptionError
from tests.conftest import tone


def float_wav(samples: np.ndarray, sample_rate: int) -> bytes:
    """Write (samples,) or (samples, channels) as a file that holds them as they are."""
    file = io.BytesIO()
    soundfile.write(file, samples, sample_rate, format="WAV", subtype="FLOAT")
    return file.getvalue()


def mono(seconds: float = 0.5, sample_rate: int = 32_000) -> np.ndarray:
    return tone(seconds, sample_rate).astype(np.float32)


def stereo(sample_rate: int = 32_000) -> np.ndarray:
    """Make (2, samples) float32."""
    return np.stack([mono(), -0.3 * mono() ** 2])


# What is embedded


def test_a_path_gives_one_vector(small_model, audio_file):
    path = audio_file()
    expected = small_model.embed_scenes(reading.read(path, 32_000)[None])[0].numpy()
    for given in (path, str(path)):
        vector = small_model.encode(given)
        assert (vector.shape, vector.dtype) == ((small_model.scene_embedding_size,), np.float32)
        np.testing.assert_allclose(vector, expected, atol=1e-6)


@pytest.mark.parametrize("sample_rate", [8_000, 32_000, 44_100, 48_000])
def test_an_array_gives_the_numbers_of_a_file_that_holds_it(small_model, sample_rate):
    samples = mono(0.5, sample_rate)
    of_array = small_model.encode(samples, sampling_rate=sample_rate)
    np.testing.assert_array_equal(of_array, small_model.encode(float_wav(samples, sample_rate)))


@pytest.mark.parametrize(
    "waveform",
    [
        mono().astype(np.float64),
        torch.from_numpy(mono()),
        torch.from_numpy(mono()).double().requires_grad_(),
        mono()[::1],
    ],
    ids=["float64", "tensor", "tensor with gradient", "view"],
)
def test_arrays_of_any_floating_point_are_waveforms(small_model, waveform):
    expected = small_model.encode(mono(), sampling_rate=32_000)
    np.testing.assert_array_equal(small_model.encode(waveform, sampling_rate=32_000), expected)


def test_a_waveform_shorter_than_a_sample_at_the_new_rate_is_its_mean(small_model):
    (vector,) = small_model.encode([np.full(2, 0.25, np.float32)], sampling_rate=10_000_000)
    np.testing.assert_array_equal(vector, small_model.encode(np.full(1, 0.25, np.float32), sampling_rate=32_000))


def test_what_a_dataset_gives_is_embedded(small_model, audio_file):
    path = audio_file(samples=stereo().T, subtype="FLOAT")
    content = path.read_bytes()
    decoder = SimpleNamespace(
        get_all_samples=lambda: SimpleNamespace(data=torch.from_numpy(stereo()), sample_rate=32_000)
    )
    column = [
        {"path": "lost.wav", "array": stereo(), "sampling_rate": 32_000},
        {"path": None, "array": stereo().tolist(), "sampling_rate": 32_000},
        {"path": "lost.wav", "bytes": content},
        {"path": None, "bytes": content},
        {"path": str(path), "bytes": None},
        decoder,
    ]
    expected = small_model.encode(path)
    for sound in column:
        np.testing.assert_array_equal(small_model.encode(sound), expected)
    np.testing.assert_allclose(small_model.encode(column), [expected] * len(column), atol=1e-5)


def test_several_inputs_give_one_row_each_in_order(small_model, audio_file):
    paths = [audio_file(f"{i}.wav", seconds=seconds) for i, seconds in enumerate([0.5, 0.7, 0.5, 0.3])]
    inputs = [
        paths[0],
        mono(0.4),
        str(paths[1]),
        paths[2],
        {"array": mono(0.2, 8_000), "sampling_rate": 8_000},
        paths[3],
    ]
    rows = small_model.encode(inputs, sampling_rate=32_000)
    assert (rows.shape, rows.dtype) == ((6, small_model.scene_embedding_size), np.float32)
    for row, each in zip(rows, inputs, strict=True):
        np.testing.assert_allclose(row, small_model.encode(each, sampling_rate=32_000), atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("collection", [list, tuple, iter, np.array], ids=["list", "tuple", "generator", "array"])
def test_several_inputs_come_in_any_collection(small_model, audio_file, collection):
    paths = [str(audio_file(f"{i}.wav", seconds=0.2 + i / 10)) for i in range(3)]
    expected = small_model.encode(paths)
    np.testing.assert_array_equal(small_model.encode(collection(paths)), expected)


def test_no_inputs_give_no_rows(small_model):
    assert small_model.encode([]).shape == (0, small_model.scene_embedding_size)
    assert small_model.encode_timestamps(iter([])) == []


def test_a_generator_is_not_held_in_memory(small_model):
    waveforms, most_alive = [], 0

    def clips():
        nonlocal most_alive
        for _ in range(40):
            samples = mono(0.1)
            waveforms.append(weakref.ref(samples))
            most_alive = max(most_alive, sum(waveform() is not None for waveform in waveforms))
            yield samples

    assert len(small_model.encode(clips(), sampling_rate=32_000)) == 40
    assert most_alive <= 2


def test_an_array_may_be_used_again_while_its_clip_waits(small_model):
    buffer = np.zeros(16_000, np.float32)

    def clips():
        for gain in (1.0, 0.5):
            buffer[:] = gain * mono()
            yield buffer

    rows = small_model.encode(clips(), sampling_rate=32_000)
    expected = small_model.encode([mono(), np.float32(0.5) * mono()], sampling_rate=32_000)
    np.testing.assert_array_equal(rows, expected)


def test_contents_of_files_do_not_stay_on_the_disk(small_model, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    most_files = 0

    def contents():
        nonlocal most_files
        for _ in range(9):
            most_files = max(most_files, sum(path.is_file() for path in tmp_path.rglob("*")))
            yield float_wav(mono(0.1), 32_000)

    small_model.encode(contents(), batch_size=1)
    assert most_files <= 1
    assert not list(tmp_path.iterdir())


# Along time


def test_timestamps_of_one_input_are_embeddings_and_centres(small_model):
    embeddings, centres_ms = small_model.encode_timestamps(mono(), sampling_rate=32_000)
    expected, expected_ms = small_model.embed_timestamps(torch.from_numpy(mono())[None])
    np.testing.assert_allclose(embeddings, expected[0], atol=1e-6)
    np.testing.assert_array_equal(centres_ms, expected_ms)


def test_timestamps_of_several_inputs_are_a_list(small_model, monkeypatch):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.4)  # the longer one waits on the disk
    results = small_model.encode_timestamps([mono(0.3), mono(0.5)], sampling_rate=32_000)
    assert [len(result.embeddings) for result in results] == [7, 11]
    assert [result.centres_ms[-1] for result in results] == [300, 500]
    assert all(type(result.embeddings) is np.ndarray and result.embeddings.flags.writeable for result in results)


# What is chosen


def test_normalised_embeddings_have_length_one(small_model):
    plain = small_model.encode([mono()], sampling_rate=32_000)
    vectors = small_model.encode([mono()], sampling_rate=32_000, normalize_embeddings=True)
    np.testing.assert_allclose(vectors, plain / np.linalg.norm(plain), rtol=1e-6)
    embeddings, _ = small_model.encode_timestamps(mono(), sampling_rate=32_000, normalize_embeddings=True)
    np.testing.assert_allclose(np.linalg.norm(embeddings, axis=1), 1, rtol=1e-6)


def test_an_embedding_of_zeros_stays_zero(small_model, monkeypatch):
    zeros = np.zeros(small_model.scene_embedding_size, np.float32)
    monkeypatch.setattr(encode, "embed", lambda _, clips, **options: (Embedded(i, zeros) for i, _ in enumerate(clips)))
    assert not small_model.encode(mono(), sampling_rate=32_000, normalize_embeddings=True).any()


@contextlib.contextmanager
def batches_seen(model) -> Iterator[dict[str, list[int]]]:
    """Note the sizes of batches by the name of the thread that they go through the network in."""
    seen: dict[str, list[int]] = {}

    def note(_, inputs):
        seen.setdefault(threading.current_thread().name, []).append(len(inputs[0]))

    handle = model.trunk.register_forward_pre_hook(note)
    try:
        yield seen
    finally:
        handle.remove()


def test_the_batch_size_is_for_one_call(small_model):
    clips = [mono()] * 4
    rows = small_model.encode(clips, sampling_rate=32_000)
    for given, expected in ((1, [1, 1, 1, 1]), (3, [3, 1]), (None, [4])):
        with batches_seen(small_model) as seen:
            again = small_model.encode(clips, sampling_rate=32_000, batch_size=given)
        assert list(seen.values()) == [expected]
        np.testing.assert_allclose(again, rows, atol=1e-5)
    with pytest.raises(AudioError):
        small_model.encode("lost.wav", batch_size=3)
    assert small_model.batch_size is None


@pytest.mark.parametrize("along_time", [False, True])
def test_the_batch_size_of_a_long_file_is_for_one_call(small_model, monkeypatch, along_time):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 1.0)
    encode_it = small_model.encode_timestamps if along_time else small_model.encode
    with batches_seen(small_model) as seen:
        encode_it(tone(2.0 if along_time else 25.0), sampling_rate=32_000, batch_size=2)
    assert max(max(sizes) for sizes in seen.values()) == 2


def test_threads_keep_their_own_batch_sizes(small_model):
    clips = [mono()] * 6
    expected = small_model.encode(clips, sampling_rate=32_000)
    found, errors = {}, []

    def work(size: int | None) -> None:
        try:
            for _ in range(5):
                found[size] = small_model.encode(clips, sampling_rate=32_000, batch_size=size)
        except Exception as error:
            errors.append(error)

    sizes = {"one": 1, "two": 2, "four": 4, "own": None}
    threads = [threading.Thread(target=work, args=[size], name=name) for name, size in sizes.items()]
    with batches_seen(small_model) as seen:
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not errors
    assert seen == {"one": [1] * 30, "two": [2] * 15, "four": [4, 2] * 5, "own": [6] * 5}
    for rows in found.values():
        np.testing.assert_allclose(rows, expected, atol=1e-5)
    assert small_model.batch_size is None


def test_threads_that_run_out_of_memory_agree_on_what_fits(monkeypatch):
    model = efficientat.load_model(variant="mn01_as", pretrained=False)
    read = model.read

    def cramped(waveforms, readout):
        if len(waveforms) > 3:
            raise torch.OutOfMemoryError("no")
        return read(waveforms, readout)

    monkeypatch.setattr(model, "read", cramped)
    clips = [mono()] * 20
    with warnings.catch_warnings(record=True) as caught, ThreadPoolExecutor(4) as pool:
        warnings.simplefilter("always")
        rows = list(pool.map(lambda n: model.encode(clips, sampling_rate=32_000, batch_size=n), [20, 17, 9, 5]))
    for each in rows:
        np.testing.assert_allclose(each, rows[0], atol=1e-5)
    assert model.batch_size_for(len(mono()), model.variant.scene, 100) <= 3
    (warning,) = caught
    assert "does not fit into the memory of cpu" in str(warning.message)


def test_workers_change_nothing(small_model, audio_file):
    path = audio_file(sample_rate=48_000)
    inputs = [path, mono(), path.read_bytes(), {"path": str(path)}]
    rows = small_model.encode(inputs, sampling_rate=32_000, num_workers=2)
    np.testing.assert_array_equal(rows, small_model.encode(inputs, sampling_rate=32_000))


def test_workers_end_with_an_error(small_model, audio_file):
    before = set(psutil.Process().children())
    with pytest.raises(AudioError, match=r"^input 1: lost\.wav"):
        small_model.encode([audio_file(), "lost.wav", None], num_workers=2)
    assert set(psutil.Process().children()) == before


@pytest.mark.parametrize("batch_size", [0, -1, 2.5, "8"])
def test_an_impossible_batch_size_is_refused(small_model, batch_size):
    with pytest.raises(OptionError, match="give a whole number from 1 on, or None"):
        small_model.encode([], batch_size=batch_size)


def test_an_unknown_option_is_refused(small_model):
    with pytest.raises(TypeError, match="unexpected keyword argument 'normalise'"):
        small_model.encode([], normalise=True)


@pytest.mark.parametrize(
    ("show", "level", "terminal", "shown"),
    [
        (True, logging.WARNING, False, True),
        (False, logging.INFO, True, False),
        (None, logging.INFO, True, True),
        (None, logging.INFO, False, False),
        (None, logging.WARNING, True, False),
    ],
)
def test_a_progress_bar_is_for_those_who_watch(small_model, capsys, monkeypatch, show, level, terminal, shown):
    monkeypatch.setattr(logging.getLogger("hear_transformers"), "level", level)
    monkeypatch.setattr(sys.stderr, "isatty", lambda: terminal)
    small_model.encode([mono()], sampling_rate=32_000, show_progress_bar=show)
    printed = capsys.readouterr()
    assert (printed.out, "1/1" in printed.err) == ("", shown)


# What is refused

UNKNOWN_RATE = r"does not say its sample rate; give sampling_rate=\.\.\., in Hz"
SHAPES = r"expected \(samples,\) or \(channels, samples\)"

WRONG_INPUTS = {
    "no rate": (mono(), None, OptionError, UNKNOWN_RATE),
    "no rate in a dict": ({"array": mono()}, None, OptionError, UNKNOWN_RATE),
    "kHz": (mono(), 44.1, OptionError, r"sampling_rate=44\.1; give a whole number in Hz from 1000"),
    "rate as text": (mono(), "32000", OptionError, "sampling_rate='32000'"),
    "rate in a dict": ({"array": mono(), "sampling_rate": 0}, 32_000, OptionError, "sampling_rate=0"),
    "two axes": (
        stereo(),
        32_000,
        AudioError,
        r"shape \(2, 16000\): .*clips are list\(array\), channels go into a dict",
    ),
    "channels last": ({"array": stereo().T, "sampling_rate": 32_000}, None, AudioError, SHAPES),
    "three axes": ({"array": np.zeros((1, 1, 9)), "sampling_rate": 32_000}, None, AudioError, SHAPES),
    "a number": (np.float32(1), 32_000, OptionError, "expected a path, a waveform"),
    "integers": (np.zeros(9, np.int16), 32_000, AudioError, "samples are int16; .*divide by the full scale"),
    "no samples": (np.zeros(0, np.float32), 32_000, AudioError, "0 samples"),
    "NaN": (np.array([0, np.nan]), 32_000, AudioError, "sample 1 is nan; expected finite numbers"),
    "absurd": (torch.tensor([1e300], dtype=torch.float64), 32_000, AudioError, "sample 0 is inf"),
    "lost file": ("lost.wav", None, AudioError, "lost.wav: no such file"),
    "damaged content": ({"bytes": b"RIFF", "path": "a.wav"}, None, AudioError, r"a\.wav: not audio"),
    "row of a dataset": ({"audio": {}, "label": 1}, None, OptionError, "dict with audio, label: .*as the audio column"),
    "None": (None, None, OptionError, "expected a path"),
}


@pytest.mark.slow
@pytest.mark.parametrize(("sound", "rate", "kind", "message"), WRONG_INPUTS.values(), ids=WRONG_INPUTS.keys())
def test_what_is_no_sound_is_refused_by_its_number(small_model, audio_file, sound, rate, kind, message):
    with pytest.raises(kind, match=message):
        small_model.encode(sound, sampling_rate=rate)
    with pytest.raises(kind, match=f"(?s)^input 1: .*{message}"):
        small_model.encode_timestamps([audio_file(), sound], sampling_rate=rate)


def test_the_first_wrong_input_is_named(small_model, audio_file):
    with pytest.raises(AudioError, match=r"^input 1: lost\.wav"):
        small_model.encode([audio_file(), "lost.wav", None, "gone.wav"])


def test_a_failing_model_is_named_with_its_input(small_model, monkeypatch):
    def broken(audio):
        raise RuntimeError("no kernel")

    monkeypatch.setattr(small_model.frontend, "forward", broken)
    with pytest.raises(HearTransformersError, match=r"^input 0: array of shape \(16000,\): RuntimeError: no kernel"):
        small_model.encode([mono()], sampling_rate=32_000)


def test_errors_of_a_generator_are_its_own(small_model):
    def clips():
        yield mono()
        raise KeyError("database")

    with pytest.raises(KeyError, match="database"):
        small_model.encode(clips(), sampling_rate=32_000)


def test_similarity_is_the_cosine_of_each_with_each():
    rows = np.array([[3.0, 4.0], [0.0, 2.0]], np.float32)
    found = Embedder.similarity(rows, [[1, 0], [0, -5], [0, 0]])
    np.testing.assert_allclose(found, [[0.6, -0.8, 0], [0, -1, 0]], atol=1e-6)
    np.testing.assert_array_equal(rows, [[3, 4], [0, 2]])


def test_similarity_around_the_mean_of_a_collection_tells_apart_what_has_much_in_common():
    collection = np.array([[101.0, 100.0], [99.0, 100.0], [100.0, 101.0], [100.0, 99.0]])
    assert Embedder.similarity(collection, collection).min() > 0.999
    found = Embedder.similarity(collection, collection, centre=True)
    np.testing.assert_allclose(found[0], [1, -1, 0, 0], atol=1e-5)


@pytest.mark.parametrize("other", [np.zeros((2, 3)), np.zeros((1, 2, 2))])
def test_embeddings_of_other_sizes_are_not_compared(other):
    with pytest.raises(OptionError, match=r"expected \(n, size\) and \(m, size\)"):
        Embedder.similarity(np.zeros((2, 2)), other)
