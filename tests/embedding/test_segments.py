"""Segments: 0-3 s, 3-6 s, ..., each of its own audio, and every sample in one of them."""

import itertools
from dataclasses import replace

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from hear_transformers import ast, efficientat, hear, panns, passt, tiny
from hear_transformers.embedding import pipeline
from hear_transformers.embedding.framing import Segments, Span
from hear_transformers.errors import OptionError

load_passt = hear.Loader(
    replace(passt.FAMILY, variants={"small": replace(passt.BASE, network={"dim": 48, "depth": 1, "heads": 3})})
).load_model
load_ast = hear.Loader(
    replace(
        ast.FAMILY,
        variants={"small": replace(ast.VARIANTS["speechcommands_10_10"], network={"dim": 48, "depth": 1, "heads": 3})},
    )
).load_model
RATES = st.sampled_from([8_000, 16_000, 22_050, 32_000, 44_100])


def load(**options):
    return efficientat.load_model(variant="mn01_as", pretrained=False, **options)


def noise(seconds: float, rate: int = 32_000) -> torch.Tensor:
    return 0.1 * torch.randn(1, round(seconds * rate), generator=torch.Generator().manual_seed(0))


def framing(segment: float, overlap: float, rate: int, shortest: int = 1) -> Segments:
    """Make segments without a network, of windows of any length."""
    length = int(np.ceil(round(segment * rate, 6)))
    hop_ms = round(1000 * (segment - overlap), 6)
    least = max(shortest, int(np.ceil(0.1 * length)))
    readout = replace(tiny.VARIANTS["tiny"].scene, window_ms=1000.0 * segment)
    return Segments((readout,), hop_ms, rate, length, least, 10**9, 10**9, shortest)


def spans_of(segments: Segments, n_samples: int, block: int | None = None) -> list[Span]:
    """Return all segments of a clip that arrives whole or in blocks."""
    found, segments = [], segments.start()
    for stop in range(block, n_samples, block) if block else ():
        segments.cuts(stop, None)
        found += segments.spans
    segments.cuts(n_samples, n_samples)
    return found + segments.spans


# Where they lie


@pytest.mark.parametrize(
    ("segment", "overlap", "seconds", "expected"),
    [
        (3, 0, 9, [(0, 3), (3, 6), (6, 9)]),
        (3, 0, 5, [(0, 3), (3, 5)]),
        (3, 0, 3, [(0, 3)]),
        (3, 0, 1, [(0, 1)]),
        (3, 0, 0.01, [(0, 0.01)]),
        (3, 0, 6.3, [(0, 3), (3, 6), (6, 6.3)]),
        (3, 0, 6.29, [(0, 3), (3, 6.29)]),  # too short a rest
        (3, 0, 6.001, [(0, 3), (3, 6.001)]),
        (3, 0, 3.02, [(0, 3.02)]),
        (3, 1, 5, [(0, 3), (2, 5)]),
        (3, 1, 6, [(0, 3), (2, 5), (4, 6)]),
        (3, 2.5, 4, [(0, 3), (0.5, 3.5), (1, 4)]),
        (3, 2.9, 3.05, [(0, 3), (0.1, 3.05)]),
        (0.5, 0, 1.2, [(0, 0.5), (0.5, 1), (1, 1.2)]),
        (10, 5, 12, [(0, 10), (5, 12)]),
        (60, 0, 61, [(0, 61)]),
    ],
)
def test_segments_follow_each_other_to_the_end(segment, overlap, seconds, expected):
    spans = spans_of(framing(segment, overlap, 1_000), round(1_000 * seconds))
    assert [(span.start / 1_000, span.stop / 1_000) for span in spans] == [*map(pytest.approx, expected)]


@given(
    segment=st.floats(0.05, 5).map(lambda value: round(value, 4)),
    share=st.sampled_from([0, 0, 0.1, 0.25, 0.5, 0.9]),
    rate=RATES,
    n_samples=st.integers(1, 400_000),
    block=st.integers(500, 300_000),
)
def test_every_sample_is_in_a_segment_whatever_the_blocks(segment, share, rate, n_samples, block):
    segments = framing(segment, round(segment * share, 4), rate)
    spans = spans_of(segments, n_samples)
    assert spans_of(segments, n_samples, block) == spans
    assert (spans[0].start, spans[-1].stop) == (0, n_samples)
    for one, following in itertools.pairwise(spans):
        assert one.stop - one.start == segments.length
        assert one.start < following.start <= one.stop
        assert one.stop < following.stop or following is spans[-1]
    last = spans[-1].stop - spans[-1].start
    assert last < segments.length + segments.least
    assert last >= segments.least or len(spans) == 1
    step = segments.hop_ms * rate / 1000
    assert all(abs(span.start - i * step) <= 1 for i, span in enumerate(spans))


# What they hold


@pytest.mark.parametrize(
    ("load", "segment", "overlap", "seconds"),
    [
        (load, 3, 0, 8.0),
        (load, 1, 0.5, 3.3),
        (load, 0.1, None, 0.55),
        (tiny.load_model, 2, 0, 5.0),
        (tiny.load_model, 0.96, 0.48, 3.05),
        (load_passt, 1, 0, 2.5),
        (load_ast, 0.5, 0, 1.4),
        (lambda **options: panns.load_model(variant="cnn6", pretrained=False, **options), 1, 0, 2.0),
    ],
    ids=["mn01", "mn01 overlap", "mn01 short", "tiny", "tiny overlap", "passt", "ast", "panns"],
)
def test_a_segment_is_embedded_as_a_clip_of_its_own(load, segment, overlap, seconds):
    options = {} if load is tiny.load_model else {"pretrained": False} if load in (load_passt, load_ast) else {}
    model = load(segment=segment, overlap=overlap, **options)
    rate = model.sample_rate
    clip = noise(seconds, rate)
    embeddings, centres_ms = model.embed_timestamps(clip)
    starts, ends = model.spans_ms(centres_ms.numpy(), 1000 * seconds)
    assert len(starts) == embeddings.shape[1] > 1
    assert (starts[0], ends[-1]) == (0, pytest.approx(1000 * seconds))
    np.testing.assert_allclose(centres_ms, (starts + ends) / 2)
    for i, (start, end) in enumerate(zip(starts, ends, strict=True)):
        alone = model.embed_scenes(clip[:, round(start * rate / 1000) : round(end * rate / 1000)])
        torch.testing.assert_close(embeddings[:, i], alone, rtol=0, atol=1e-5)


def test_nothing_outside_a_segment_is_heard():
    model = load(segment=1)
    clip = noise(3.0)
    changed = clip.clone()
    changed[:, 32_000:64_000] = 0.5
    one, other = (model.embed_timestamps(each)[0][0] for each in (clip, changed))
    assert torch.equal(one[[0, 2]], other[[0, 2]])
    assert not torch.allclose(one[1], other[1])


@pytest.mark.parametrize(("segment", "windows"), [(2, 1), (2.5, 2), (3, 2), (7, 6)])
def test_a_long_segment_is_the_mean_of_windows_within_it(segment, windows):
    model = tiny.load_model(segment=segment)  # whose scenes have windows of 2 s every second
    clip = noise(2 * segment)
    (sets,) = model.reader(timestamps=True).plan(clip.shape[1]).sets
    starts = sets.starts.view(2, windows)
    length = round(32_000 * segment)
    assert starts[:, 0].tolist() == [0, length]
    assert (starts[:, -1] + sets.length).tolist() == [length, 2 * length]
    expected = torch.stack([model.embed_scenes(clip[:, start : start + 64_000])[0] for start in starts[1].tolist()])
    torch.testing.assert_close(model.embed_timestamps(clip)[0][0, 1], expected.mean(0), rtol=0, atol=1e-5)


@pytest.mark.parametrize("blocks", [3_333, 50_000, 200_000])
@pytest.mark.parametrize("options", [{"segment": 1}, {"segment": 2, "overlap": 0.5}, {"segment": 0.7, "batch": 3}])
def test_blocks_and_batches_change_nothing(blocks, options):
    options = dict(options)
    batch = options.pop("batch", None)
    model = load(**options)
    clips = torch.cat([noise(5.05), noise(5.05).flip(1)])
    expected, centres_ms = model.embed_timestamps(clips)
    parts = list(model.stream_timestamps(clips.split(blocks, 1), batch_size=batch))
    torch.testing.assert_close(torch.cat([part for part, _ in parts], 1), expected, rtol=0, atol=1e-5)
    assert torch.equal(torch.cat([times for _, times in parts]), centres_ms)


def test_memory_holds_one_segment_and_one_block():
    segments = framing(3, 1, 1_000)
    held, stop = [], 0
    for stop in range(700, 1_000_000, 700):
        segments.cuts(stop, None)
        held.append(stop - segments.needed_from())
    assert max(held) < segments.length + segments.least + 700


@pytest.mark.parametrize("seconds", [0.001, 0.01, 0.2])
def test_a_short_clip_is_one_segment_like_a_scene(seconds):
    model = load(segment=3)
    clip = noise(seconds)
    embeddings, centres_ms = model.embed_timestamps(clip)
    torch.testing.assert_close(embeddings[:, 0], model.embed_scenes(clip))
    assert centres_ms.tolist() == [pytest.approx(500 * clip.shape[1] / 32_000)]


# Files


def test_long_files_and_short_ones_have_the_same_segments(tmp_path, monkeypatch):
    model = load(segment=1, overlap=0.25)
    path = tmp_path / "a.wav"
    soundfile.write(path, noise(7.4)[0].numpy(), 32_000, subtype="FLOAT")
    expected = model.encode_timestamps(path)
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 2.0)
    found = model.encode_timestamps(path)
    np.testing.assert_allclose(found.embeddings, expected.embeddings, atol=1e-5)
    np.testing.assert_array_equal(found.centres_ms, expected.centres_ms)
    assert len(found.centres_ms) == 10


def test_where_they_lie_follows_from_their_centres(audio_file):
    model = load(segment=0.5, overlap=0.2)
    _, centres_ms = model.encode_timestamps(audio_file(seconds=1.0))
    starts_ms, ends_ms = model.spans_ms(centres_ms)
    assert starts_ms.tolist() == [0.0, 300.0, 600.0]
    assert ends_ms.tolist() == [500.0, 800.0, pytest.approx(1000.0)]


def test_hear_returns_their_centres():
    model = load(segment=1)
    embeddings, timestamps = hear.get_timestamp_embeddings(noise(2.5).expand(2, -1), model)
    assert embeddings.shape == (2, 3, model.timestamp_embedding_size)
    assert timestamps.tolist() == [[500.0, 1500.0, 2250.0]] * 2
    assert model.timestamp_embedding_size == model.scene_embedding_size


def test_settings_say_what_segments_are():
    described = load(segment=3, overlap=0.1).provenance()
    assert (described["framing"], described["hop_ms"]) == ("segments", 2900.0)
    assert described["timestamps"][0]["window_ms"] == 3000.0


# What is refused


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"segment": 3, "hop_ms": 50}, r"segment=3 and hop_ms=50: segments have times of their own; give either"),
        ({"segment": 3, "window_ms": [160]}, r"segment=3 and window_ms=\[160\]"),
        ({"segment": 3, "framing": "native", "hop_ms": 1}, "segment=3 and hop_ms=1, framing='native'"),
        ({"overlap": 1}, "overlap=1 is that of segments; give segment"),
        ({"segment": 3, "overlap": 3}, "overlap=3 is not shorter than a segment; give seconds from 0 to below 3"),
        ({"segment": 3, "overlap": -1}, "overlap=-1 is not shorter"),
        ({"segment": 3, "overlap": float("nan")}, "overlap=nan"),
        ({"segment": 3, "overlap": "1"}, "overlap='1' is not a number"),
        ({"segment": 0}, "segment=0 is no length; give seconds above 0"),
        ({"segment": -3}, "segment=-3 is no length"),
        ({"segment": float("inf")}, "segment=inf is no length"),
        ({"segment": float("nan")}, "segment=nan is no length"),
        ({"segment": "3 s"}, "segment='3 s' is not a number"),
        ({"segment": 0.005}, "segment=0.005 s is shorter than efficientat/mn01_as takes; give at least 16.1 ms"),
        ({"segment": 1, "overlap": 0.99999}, "hop_ms=0.01 is too short"),
        ({"framing": "segments"}, "framing='segments' goes by another name; give segment"),
        ({"segment": 1, "pool": "unroll", "layer": 1}, "pool='unroll' needs windows of one length"),
    ],
)
def test_what_makes_no_sense_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        load(**options)
