"""Time: centres, edges, chunks, interpolation."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from hear_transformers.embedding.windows import Buffer, Chunks, TimeGrid, TokenTrack, range_ms, reflect, samples_of

RATES = st.sampled_from([16_000, 22_050, 32_000, 44_100, 48_000])
HOPS = st.floats(0.5, 1_000.0).map(lambda hop: round(hop, 3))


def test_centres_do_not_drift_in_an_hour():
    grid = TimeGrid(25.0, 44_100)
    last = grid.count(44_100 * 3_600) - 1
    assert grid.times_ms(last, last + 1).item() == 3_600_000.0
    assert grid.centre(last) == 44_100 * 3_600


@pytest.mark.parametrize(
    ("shortest", "longest", "rate", "text"),
    [
        (2_241, None, 32_000, "at least 70.1 ms"),  # 70.03125
        (514, None, 32_000, "at least 16.1 ms"),  # 16.0625
        (400, 160_240, 16_000, "25 to 10015 ms"),
        (4_801, 321_601, 32_000, "150.1 to 10050 ms"),
        (1, None, 44_100, "at least 0.0227 ms"),
        (1, 31, 32_000, "0.0313 to 0.9687 ms"),
        (3, 192_000_001, 16_000, "0.1875 to 12000000 ms"),
    ],
)
def test_lengths_are_rounded_in_words(shortest, longest, rate, text):
    assert range_ms(shortest, longest, rate) == text


@given(st.integers(1, 10**7), st.integers(0, 10**7), RATES)
def test_lengths_that_are_named_are_allowed(shortest, more, rate):
    least, most = range_ms(shortest, shortest + more, rate).removesuffix(" ms").split(" to ")
    assert samples_of(float(least), rate) >= shortest
    assert samples_of(float(most), rate) <= shortest + more


def test_a_tenth_of_a_millisecond_means_a_tenth():
    assert TimeGrid(0.1, 10_000).count(10_000) == 10_001


@given(HOPS, RATES, st.integers(1, 5_000_000))
def test_first_centre_is_zero_and_last_lies_within_one_hop_of_the_end(hop_ms, rate, n_samples):
    grid = TimeGrid(hop_ms, rate)
    count = grid.count(n_samples)
    end_ms = 1000.0 * n_samples / rate
    last = grid.times_ms(count - 1, count).item()
    assert grid.times_ms(0, 1).item() == 0.0
    assert last <= end_ms * (1 + 1e-12)
    assert end_ms - last < hop_ms * (1 + 1e-9) + 1e-9


@given(HOPS, RATES, st.integers(0, 100_000))
def test_every_centre_is_within_half_a_sample_of_its_time(hop_ms, rate, index):
    assert abs(TimeGrid(hop_ms, rate).centre(index) - index * hop_ms * rate / 1000) <= 0.5 + 1e-6


@given(HOPS, RATES, st.integers(0, 10**12))
def test_many_centres_are_those_of_each(hop_ms, rate, first):
    grid = TimeGrid(hop_ms, rate)
    assert grid.centres(first, first + 5).tolist() == [grid.centre(first + i) for i in range(5)]


@pytest.mark.slow
@given(HOPS, RATES, st.integers(1, 1_000_000), st.floats(1.0, 20_000.0))
def test_centres_are_regular_and_inside_the_clip_whatever_the_window(hop_ms, rate, n_samples, window_ms):
    grid, window = TimeGrid(hop_ms, rate), samples_of(window_ms, rate)
    count = min(grid.count(n_samples), 2_000)
    times_ms, centres = grid.times_ms(0, count), grid.centres(0, count)
    assert torch.allclose(times_ms.diff(), torch.full((count - 1,), hop_ms, dtype=torch.float64), rtol=0, atol=1e-6)
    assert (centres >= 0).all()
    assert (centres <= n_samples).all()
    middle_of_windows = (centres - window // 2) + window / 2
    assert ((middle_of_windows - times_ms * rate / 1000).abs() <= 1.0 + 1e-6).all()


def test_no_centre_before_the_start():
    assert TimeGrid(50.0, 32_000).count(-1) == 0


@pytest.mark.parametrize(
    ("ms", "rate", "samples"), [(160.0, 32_000, 5_120), (18.75, 32_000, 600), (33.3, 44_100, 1_468)]
)
def test_windows_round_down_to_samples(ms, rate, samples):
    assert samples_of(ms, rate) == samples


@given(st.integers(2, 60), st.integers(0, 50))
def test_reflect_equals_torch_where_one_reflection_is_enough(n_samples, margin):
    margin = min(margin, n_samples - 1)
    clip = torch.arange(n_samples, dtype=torch.float32)
    expected = torch.nn.functional.pad(clip[None], (margin, margin), mode="reflect")[0]
    assert torch.equal(clip[reflect(torch.arange(-margin, n_samples + margin), n_samples)], expected)


@given(st.integers(1, 9), st.integers(-200, 200))
def test_reflect_stays_inside_any_clip(n_samples, position):
    assert 0 <= reflect(torch.tensor(position), n_samples).item() < n_samples


def cut(buffer: Buffer, starts: list[int], length: int) -> torch.Tensor:
    return torch.stack(buffer.views(starts, length))


def test_a_buffer_cuts_the_same_windows_after_forgetting():
    clip = torch.arange(100.0)
    whole = Buffer(clip, n_samples=100)
    part = Buffer(clip.clone(), n_samples=100)
    part.forget(40)
    assert torch.equal(cut(part, [45, 60, 95], 10), cut(whole, [45, 60, 95], 10))


def test_a_buffer_reflects_at_the_start_before_its_end_is_known():
    assert cut(Buffer(torch.arange(10.0)), [-2], 5).tolist() == [[2.0, 1.0, 0.0, 1.0, 2.0]]


@given(st.integers(1, 60), st.lists(st.integers(-100, 100), min_size=1, max_size=5), st.integers(1, 80))
def test_windows_outside_a_clip_hold_its_mirror_image(n_samples, starts, length):
    clip, first = torch.arange(float(n_samples)), torch.tensor(starts)
    found = cut(Buffer(clip, n_samples=n_samples), starts, length)
    assert torch.equal(found, clip[reflect(first[:, None] + torch.arange(length), n_samples)])


@given(st.integers(1, 60), st.lists(st.integers(-100, 100), min_size=1, max_size=5), st.integers(1, 80))
def test_clips_of_one_length_are_cut_together(n_samples, starts, length):
    clips = torch.arange(3.0 * n_samples).view(3, n_samples)
    together = cut(Buffer(clips, n_samples=n_samples), starts, length)  # (windows, clips, length)
    apart = torch.stack([cut(Buffer(clip, n_samples=n_samples), starts, length) for clip in clips], 1)
    assert torch.equal(together, apart)


@given(st.integers(1, 60), st.lists(st.integers(-100, 100), min_size=1, max_size=5), st.integers(1, 80))
def test_one_operation_cuts_the_same_windows(n_samples, starts, length):
    buffer = Buffer(torch.arange(3.0 * n_samples).view(3, n_samples), n_samples=n_samples)
    assert torch.equal(buffer.gather(starts, length), cut(buffer, starts, length))


@given(st.integers(1, 200), st.integers(1, 20), st.integers(1, 3_000))
def test_chunks_of_a_growing_clip_are_those_of_the_whole_one(half, hop, n_samples):
    chunks = Chunks.half_overlapping(2 * half * hop, hop)
    whole = [(start, length) for starts, length in chunks.between(0, n_samples, is_whole=True) for start in starts]
    known = n_samples // 2
    early = [(start, length) for starts, length in chunks.between(0, known, is_whole=False) for start in starts]
    late = chunks.between(len(early), n_samples, is_whole=True)
    assert early + [(start, length) for starts, length in late for start in starts] == whole
    assert whole[-1][0] + whole[-1][1] == n_samples


@given(st.integers(2, 400), st.integers(1, 40), st.integers(1, 3_000), st.integers(0, 20))
def test_chunks_contribute_every_token_once(half, hop, n_samples, offset):
    length = 2 * half * hop
    chunks = Chunks.half_overlapping(length, hop)
    offset = min(offset, hop - 1)
    last = chunks.ready(n_samples)
    assert chunks.kept_from(0, hop, offset) == 0
    for chunk in range(last):
        start, stop = (chunks.kept_from(number, hop, offset) for number in (chunk, chunk + 1))
        tokens_before_chunk = chunk * chunks.hop // hop
        assert tokens_before_chunk <= start < stop <= tokens_before_chunk + length // hop


@given(st.integers(1, 30), st.integers(1, 30))
def test_a_track_interpolates_as_numpy_does_after_any_forgetting(n_tokens, n_more):
    values = torch.rand(n_tokens + n_more, generator=torch.Generator().manual_seed(n_tokens))
    track = TokenTrack(10, 3.0, values[:n_tokens, None])
    track.append(values[n_tokens:, None])
    positions = torch.linspace(0, 10.0 * len(values) + 20, 50, dtype=torch.float64)
    expected = torch.lerp(*_neighbours(values.double(), (positions - 3.0) / 10))
    assert torch.allclose(track.at(positions)[:, 0].double(), expected, atol=1e-6)
    track.forget(positions[20].item())
    assert torch.allclose(track.at(positions[20:])[:, 0].double(), expected[20:], atol=1e-6)


def _neighbours(values, place):
    place = place.clamp(0, len(values) - 1)
    left = place.floor().long()
    return values[left], values[(left + 1).clamp(max=len(values) - 1)], place - left
