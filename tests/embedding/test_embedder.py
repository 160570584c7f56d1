"""What holds for every model: streaming, batches, layers, framings, errors. A small PaSST stands for all."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from hear_transformers import hear, passt
from hear_transformers.embedding.windows import Buffer
from hear_transformers.errors import AudioError, HearTransformersWarning, OptionError, WeightsError
from hear_transformers.networks.layer_table import layer_table

SMALL = replace(passt.BASE, network={"dim": 48, "depth": 3, "heads": 3})
load_model = hear.Loader(replace(passt.FAMILY, variants={"small": SMALL})).load_model


def noise(clips: int, samples: int) -> torch.Tensor:
    return 0.1 * torch.randn(clips, samples, generator=torch.Generator().manual_seed(samples))


@pytest.fixture(scope="module")
def native():
    return load_model(pretrained=False, layer=[1, "mel"], framing="native", hop_ms=20)


@pytest.fixture(scope="module")
def windowed():
    return load_model(pretrained=False, layer=2, window_ms=[160, 800])


@pytest.fixture(params=["windowed", "native"])
def model(request):
    return request.getfixturevalue(request.param)


@pytest.mark.slow
@settings(max_examples=15)
@given(n_samples=st.integers(1, 500_000), block=st.integers(1_000, 400_000))
def test_blocks_of_any_length_give_the_same_timestamps(native, n_samples, block):
    clips = noise(1, n_samples)
    embeddings, centres_ms = native.embed_timestamps(clips)
    streamed = list(native.stream_timestamps(clips.split(block, 1)))
    torch.testing.assert_close(torch.cat([part for part, _ in streamed], 1), embeddings, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([part for _, part in streamed]), centres_ms)


@pytest.mark.slow
def test_blocks_give_the_same_windowed_timestamps(windowed):
    clips = noise(2, 70_001)
    streamed = torch.cat([part for part, _ in windowed.stream_timestamps(clips.split(9_999, 1))], 1)
    torch.testing.assert_close(streamed, windowed.embed_timestamps(clips)[0], rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("n_samples", [320_000, 320_001, 400_000])
def test_blocks_give_the_same_scene(windowed, n_samples):
    clips = noise(1, n_samples)
    torch.testing.assert_close(windowed.stream_scene(clips.split(33_333, 1)), windowed.embed_scenes(clips))


@pytest.mark.parametrize("options", [{"layer": [1, "mel"], "framing": "native"}, {"layer": 2, "window_ms": [160, 400]}])
def test_a_scene_may_be_the_mean_over_time(options):
    model = load_model(pretrained=False, hop_ms=100, mean_over_time=True, **options)
    clips = noise(2, 33_000)
    expected = model.embed_timestamps(clips)[0].mean(1)
    torch.testing.assert_close(model.embed_scenes(clips), expected)
    torch.testing.assert_close(model.stream_scene(clips.split(7_000, 1)), expected)
    torch.testing.assert_close(model(clips), expected)
    assert model.scene_embedding_size == expected.shape[1] == sum(map(len, model.columns().values()))
    np.testing.assert_allclose(
        model.encode([clips[0].numpy()], sampling_rate=32_000)[0], expected[0], rtol=1e-5, atol=1e-6
    )


@pytest.mark.slow
def test_a_long_scene_is_the_mean_over_its_windows(windowed):
    clips = noise(1, 400_000)
    by_hand = load_model(pretrained=False, layer=2, window_ms=10_000, hop_ms=2_500)
    torch.testing.assert_close(windowed.embed_scenes(clips), by_hand.embed_timestamps(clips)[0].mean(1))


@pytest.mark.parametrize("n_samples", [1, 2, 513, 4_800, 5_120, 33_333])
def test_every_length_from_one_sample_up_gives_finite_answers(model, n_samples):
    embeddings, centres_ms = model.embed_timestamps(noise(1, n_samples))
    assert embeddings.isfinite().all()
    assert centres_ms[-1] <= 1000 * n_samples / model.sample_rate
    assert model.embed_scenes(noise(1, n_samples)).isfinite().all()


@pytest.mark.parametrize("batch_size", [1, 3, 1_000])
def test_batch_size_does_not_change_the_numbers(model, batch_size, monkeypatch):
    clips = noise(3, 50_000)
    expected = model.embed_timestamps(clips)[0]
    monkeypatch.setattr(model, "batch_size", batch_size)
    torch.testing.assert_close(model.embed_timestamps(clips)[0], expected, rtol=0, atol=1e-5)


MEMORY_RUNS_OUT = [
    torch.OutOfMemoryError("CUDA out of memory"),
    MemoryError(),
    RuntimeError("[enforce fail at alloc_cpu.cpp:124] . DefaultCPUAllocator: can't allocate memory"),
]


class SmallMemory:
    """Lets so many windows through a network, and remembers what was tried."""

    def __init__(self, model, most: int, error: Exception) -> None:
        self.forward, self.most, self.error = model.trunk.forward, most, error
        self.tried: list[int] = []
        model.trunk.forward = self

    def __call__(self, mel, wanted):
        self.tried.append(len(mel))
        if len(mel) > self.most:
            raise self.error
        return self.forward(mel, wanted)


@pytest.mark.parametrize("error", MEMORY_RUNS_OUT)
def test_batch_is_halved_until_it_fits_and_stays_so(error):
    model = load_model(pretrained=False, layer=1)
    expected = model.embed_timestamps(noise(1, 64_000))[0]
    memory = SmallMemory(model, 10, error)
    torch.testing.assert_close(model.embed_timestamps(noise(1, 64_000))[0], expected, rtol=0, atol=1e-5)
    assert memory.tried[:3] == [41, 20, 10]
    memory.tried.clear()
    model.embed_timestamps(noise(1, 64_000))
    assert max(memory.tried) == 10


def test_a_batch_size_that_does_not_fit_is_halved_with_one_warning():
    model = load_model(pretrained=False, layer=1)
    model.batch_size = 30
    memory = SmallMemory(model, 10, MEMORY_RUNS_OUT[0])
    message = "batch_size=30 does not fit into the memory of cpu; 7 windows go through passt/small at once instead"
    with pytest.warns(HearTransformersWarning, match=message) as caught:
        model.embed_timestamps(noise(1, 64_000))
    assert memory.tried[:4] == [30, 15, 7, 7]
    model.embed_timestamps(noise(2, 64_000))
    assert len(caught) == 1


def test_one_window_that_does_not_fit_is_an_error():
    model = load_model(pretrained=False, layer=1)
    SmallMemory(model, 0, MEMORY_RUNS_OUT[0])
    with pytest.raises(torch.OutOfMemoryError):
        model.embed_scenes(noise(1, 32_000))


def test_other_errors_are_not_taken_for_lack_of_memory():
    model = load_model(pretrained=False, layer=1)
    SmallMemory(model, 0, RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    with pytest.raises(RuntimeError, match="mat1"):
        model.embed_scenes(noise(2, 32_000))


def test_native_mel_frames_are_the_frames_of_the_whole_clip():
    model = load_model(pretrained=False, layer="mel", framing="native", hop_ms=10)
    clips = noise(1, 32_000 * 23)
    frames = model.frontend(clips).transpose(1, 2)
    torch.testing.assert_close(model.embed_timestamps(clips)[0][:, : frames.shape[1]], frames, rtol=0, atol=1e-5)


def test_native_centres_see_the_event_where_it_is():
    model = load_model(pretrained=False, layer=0, framing="native", hop_ms=50)
    clips = torch.zeros(1, 32_000 * 30)
    clips[:, 32_000 * 17 : 32_000 * 17 + 3_200] = noise(1, 3_200)
    embeddings, centres_ms = model.embed_timestamps(clips)
    strangest = (embeddings - embeddings.median(1, keepdim=True).values).norm(dim=-1).argmax()
    assert abs(centres_ms[strangest].item() - 17_050) <= 100


def test_layers_are_concatenated_in_the_order_given():
    clips = noise(1, 20_000)
    both = load_model(pretrained=False, layer="3,1").embed_scenes(clips)
    single = [load_model(pretrained=False, layer=layer).embed_scenes(clips) for layer in (3, 1)]
    torch.testing.assert_close(both, torch.cat(single, 1))


def test_a_layer_may_be_named_twice():
    clips = noise(1, 20_000)
    twice = load_model(pretrained=False, layer="mel,mel", framing="native").embed_timestamps(clips)[0]
    assert twice.shape[2] == 256
    assert torch.equal(twice[..., :128], twice[..., 128:])


def test_minus_one_is_the_last_block_and_all_is_every_numbered_layer():
    clips = noise(1, 20_000)
    last = load_model(pretrained=False, layer=-1).embed_scenes(clips)
    every = load_model(pretrained=False, layer="all").embed_scenes(clips)
    assert every.shape[1] == 4 * 48
    torch.testing.assert_close(every[:, -48:], last)


def test_cls_is_the_mean_of_the_prefix_tokens():
    clips = noise(1, 20_000)
    cls, dist = (
        load_model(pretrained=False).trunk(load_model(pretrained=False).frontend(clips), [f"2.{token}"])
        for token in ("cls", "dist")
    )
    expected = (cls["2.cls"] + dist["2.dist"]) / 2
    torch.testing.assert_close(load_model(pretrained=False, layer=2, pool="cls").embed_scenes(clips), expected)


def test_deeper_blocks_do_not_run():
    model = load_model(pretrained=False, layer=1)
    for block in model.trunk.blocks[1:]:
        torch.nn.init.constant_(block.mlp.fc1.weight, torch.nan)
    assert model.embed_scenes(noise(1, 20_000)).isfinite().all()


def test_random_weights_are_the_same_every_time_and_leave_the_seed_alone():
    torch.manual_seed(3)
    expected_next = torch.rand(1)
    torch.manual_seed(3)
    first = load_model(pretrained=False).embed_scenes(noise(1, 20_000))
    assert torch.equal(torch.rand(1), expected_next)
    assert torch.equal(load_model(pretrained=False).embed_scenes(noise(1, 20_000)), first)


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_close_and_answers_in_float32(precision):
    clips = noise(1, 50_000)
    exact = load_model(pretrained=False, layer=3).embed_timestamps(clips)[0]
    rounded = load_model(pretrained=False, layer=3, precision=precision).embed_timestamps(clips)[0]
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact, rounded, dim=-1).min() > 0.999


def test_timestamps_of_hear_are_float32_and_one_row_per_sound(model):
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2, 40_000), model)
    assert timestamps.dtype == embeddings.dtype == torch.float32
    assert timestamps.shape == embeddings.shape[:2]


def test_layer_table_gives_size_hop_and_field():
    model = load_model(pretrained=False)
    rows = {row.layer: row for row in layer_table(model.trunk, model.variant.frontend)}
    assert (rows["mel"].hop_ms, rows["mel"].size) == (10.0, 128)
    assert (rows["0"].hop_ms, rows["0"].size, rows["0"].n_freq) == (100.0, 48, 12)
    assert rows["0"].receptive_field_ms == pytest.approx(150 + 801 / 32)
    assert (rows["logits"].hop_ms, rows["logits"].size) == (None, 527)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"variant": "large"}, "variant='large' is unknown to passt; choose one of small"),
        ({"layer": 4}, r"layer='4' is unknown; choose from .*0\.\.3 \(48 numbers, every 100 ms\)"),
        ({"layer": -5}, "layer='-5' is unknown"),
        ({"layer": "block3"}, "layer='block3' is unknown"),
        ({"layer": 1, "pool": "median"}, "pool='median' is unknown; choose one of mean, max"),
        ({"layer": "mel", "pool": "cls"}, "needs layers with a class token"),
        ({"hop_ms": 0}, "hop_ms=0.0 is too short"),
        ({"hop_ms": -50}, "hop_ms=-50.0 is too short"),
        ({"hop_ms": float("nan")}, "hop_ms=nan is too short"),
        ({"hop_ms": float("inf")}, "hop_ms=inf is no length of time; give at least 0.0313 ms, a sample"),
        ({"hop_ms": "fast"}, "hop_ms='fast' is not a number"),
        ({"hop_ms": True}, "hop_ms=True is not a number"),
        ({"window_ms": "160"}, "window_ms='160' is not a number"),
        ({"window_ms": [160, "long"]}, "window_ms='long' is not a number"),
        ({"window_ms": 10_051}, r"window_ms=10051.0 is outside .* choose 150.1 to 10050 ms$"),
        ({"window_ms": 20}, "window_ms=20.0 is outside"),
        ({"window_ms": float("inf")}, "window_ms=inf is outside"),
        ({"framing": "sliding"}, "framing='sliding' is unknown; choose one of windowed, native"),
        ({"framing": "native"}, "framing='native' needs layers with a time axis, logits, features"),
        ({"framing": "native", "layer": 1, "pool": "meanstd"}, "pool='meanstd' reads a whole window"),
        ({"framing": "native", "layer": 1, "window_ms": [1_000, 2_000]}, "give one window_ms"),
        ({"precision": "int8"}, "precision='int8' is unknown; choose one of float32, bfloat16, float16"),
    ],
)
def test_a_bad_option_is_named_with_what_is_allowed(options, message):
    with pytest.raises(OptionError, match=message):
        load_model(pretrained=False, **options)


@pytest.mark.parametrize(
    ("waveforms", "message"),
    [
        (torch.zeros(1, 0), "0 samples"),
        (torch.zeros(5), r"waveform\[None\]"),
        (torch.zeros(1, 1, 5), r"shape \(clips, samples\)"),
        (torch.zeros(1, 5, dtype=torch.int16), "integers are divided"),
        (torch.tensor([[0.0, np.nan]]), "NaN"),
        (torch.tensor([[0.0, np.inf]]), "NaN, Inf"),
        (torch.tensor([[0.0, 1e7]]), "beyond 1e"),
    ],
)
def test_what_is_not_audio_is_refused(windowed, waveforms, message):
    with pytest.raises(AudioError, match=message):
        windowed.embed_scenes(waveforms)
    with pytest.raises(AudioError, match=message):
        windowed.embed_timestamps(waveforms)


def test_silence_gives_finite_answers(model):
    assert model.embed_scenes(torch.zeros(1, 32_000)).isfinite().all()


def test_a_family_without_published_weights_says_how_to_go_on():
    unpublished = hear.Loader(replace(passt.FAMILY, variants={"small": replace(SMALL, checkpoint="")})).load_model
    with pytest.raises(WeightsError, match=r"no weights are published .* pretrained=False"):
        unpublished()


@pytest.mark.slow
def test_a_compiled_network_gives_the_same_numbers_for_any_shape():
    model = load_model(pretrained=False, layer=2)
    shapes = [(2, 40_000), (3, 40_000), (2, 61_000), (1, 20_000)]
    expected = [model.embed_scenes(noise(*shape)) for shape in shapes]
    model.compile_trunk(backend="eager")  # traced only: that takes seconds, and inductor minutes
    for shape, scenes in zip(shapes, expected, strict=True):
        torch.testing.assert_close(model.embed_scenes(noise(*shape)), scenes, rtol=0, atol=1e-4)


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_cuda_equals_cpu(model):
    clips = noise(2, 50_000)
    expected = model.embed_timestamps(clips)[0]
    try:
        torch.testing.assert_close(model.to("cuda").embed_timestamps(clips)[0].cpu(), expected, rtol=0, atol=1e-4)
    finally:
        model.to("cpu")


@pytest.mark.parametrize("batch_size", [1, 2, 4, 5, 7, 100])
def test_windows_of_several_clips_share_batches(batch_size):
    model = load_model(pretrained=False, layer=1, hop_ms=500.0)
    clips = noise(3, 50_000)
    apart = torch.cat([model.embed_timestamps(clip[None])[0] for clip in clips])
    model.batch_size = batch_size
    torch.testing.assert_close(model.embed_timestamps(clips)[0], apart, rtol=0, atol=1e-5)


@pytest.mark.parametrize("batch_size", [2, 7, 100])
def test_windows_are_the_same_where_they_are_cut_by_one_operation(batch_size):
    model = load_model(pretrained=False, layer=1, hop_ms=500.0)
    clips = noise(3, 50_000)
    reader = model.reader(timestamps=True, batch_size=batch_size)
    reader.device = torch.device("mps")  # which decides on nothing else
    with torch.no_grad():
        (result,) = reader.stream([clips])
    torch.testing.assert_close(result.embedding, model.embed_timestamps(clips)[0], rtol=0, atol=1e-5)


def test_packed_windows_are_the_same_where_they_are_cut_by_one_operation():
    model = load_model(pretrained=False, layer=1, hop_ms=500.0)
    reader = model.reader(timestamps=True, batch_size=4)
    parts = [(Buffer(clip, n_samples=50_000), torch.arange(3) * 16_000 - 900) for clip in noise(3, 50_000)]
    with torch.no_grad():
        expected = reader.read((0, 5_120), parts)
        reader.device = torch.device("mps")
        found = reader.read((0, 5_120), parts)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-5)
