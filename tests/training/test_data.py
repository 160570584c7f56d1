"""Batches of waveforms from manifests: what is in them, and what it depends on."""

import pickle
from functools import partial

import numpy as np
import pytest
import soundfile
import torch
from hypothesis import given
from hypothesis import strategies as st

from hear_transformers.audio import reading
from hear_transformers.audio.reading import AudioFile
from hear_transformers.errors import OptionError
from hear_transformers.training import data, manifest

RATE = 16_000
N_SAMPLES = RATE // 2

# PyTorch says so where a machine has a single processor.
pytestmark = pytest.mark.filterwarnings("ignore:This DataLoader will create")


def make_manifest(folder, rows, header="path,labels"):
    """Write a manifest and read it."""
    path = folder / "clips.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return manifest.read_labelled(path)


@pytest.fixture
def ramps(tmp_path):
    """Six clips of 0.25 to 1.5 s at 16 kHz, each a ramp of its own: sample i of clip k is (k + i / 2^15) / 8."""
    for k in range(6):
        ramp = (k + np.arange((k + 1) * RATE // 4) / 2**15) / 8
        soundfile.write(tmp_path / f"{k}.wav", ramp, RATE, subtype="FLOAT")
    return make_manifest(tmp_path, [f"{k}.wav,{'odd' if k % 2 else 'even'}" for k in range(6)])


# ---------------------------------------------------------------------------------------------- which clips a step has


@given(n_clips=st.integers(1, 40), batch_size=st.integers(1, 50), seed=st.integers(0, 2**40))
def test_every_pass_has_every_clip_once(n_clips, batch_size, seed):
    order = data.Order(n_clips, batch_size, seed)
    stream = np.concatenate([order.rows(step) for step in range(3 * n_clips // batch_size + 1)])
    for first in range(0, len(stream) - n_clips + 1, n_clips):
        assert sorted(stream[first : first + n_clips]) == list(range(n_clips))


@given(
    n_clips=st.integers(1, 40),
    batch_size=st.integers(1, 50),
    steps=st.lists(st.integers(0, 100), min_size=1, max_size=5),
    epoch_clips=st.none() | st.integers(1, 60),
    is_weighted=st.booleans(),
)
def test_a_step_has_the_same_clips_whatever_came_before(n_clips, batch_size, steps, epoch_clips, is_weighted):
    weights = np.linspace(0.0, 1.0, n_clips) if is_weighted and n_clips > 1 else None
    make = partial(data.Order, n_clips, batch_size, 7, weights=weights, epoch_clips=epoch_clips)
    order = make()
    for step in steps:
        rows = order.rows(step)
        assert rows.shape == (batch_size,)
        np.testing.assert_array_equal(rows, make().rows(step))


def test_passes_and_seeds_differ():
    orders = [data.Order(100, 100, seed).rows(step).tolist() for seed in (0, 1) for step in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4


def test_an_epoch_has_as_many_steps_as_come_closest_to_its_clips():
    assert data.Order(100, 32, 0).steps_per_epoch == 3
    assert data.Order(5, 32, 0).steps_per_epoch == 1
    assert data.Order(100, 32, 0, epoch_clips=320).steps_per_epoch == 10


def test_a_weighted_epoch_shorter_than_the_manifest_has_no_clip_twice():
    order = data.Order(1000, 100, 0, weights=np.linspace(0.1, 1.0, 1000), epoch_clips=300)
    drawn = np.concatenate([order.rows(step) for step in range(order.steps_per_epoch)])
    assert len(np.unique(drawn)) == 300


@pytest.mark.parametrize("epoch_clips", [300, None])
def test_clips_are_drawn_by_their_weights(epoch_clips):
    weights = np.repeat([0.0, 1.0, 9.0], 2000)
    order = data.Order(6000, 300, 0, weights=weights, epoch_clips=epoch_clips)
    drawn = np.concatenate([order.rows(step) for step in range(100)])
    counts = np.bincount(drawn // 2000, minlength=3)
    assert counts[0] == 0
    assert counts[2] / counts.sum() == pytest.approx(0.9, abs=0.02)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"n_clips": 0}, "n_clips=0 is too small"),
        ({"batch_size": 0}, "batch_size=0 is too small"),
        ({"epoch_clips": 0}, "epoch_clips=0 is too small"),
        ({"weights": np.ones(3)}, r"weights have shape \(3,\)"),
        ({"weights": np.zeros(4)}, "not all 0"),
        ({"weights": np.array([1, 1, 1, -1.0])}, "0 or more"),
        ({"weights": np.array([1, 1, 1, np.nan])}, "finite"),
    ],
)
def test_a_bad_order_is_refused(options, message):
    with pytest.raises(OptionError, match=message):
        data.Order(**{"n_clips": 4, "batch_size": 2, "seed": 0, **options})


def test_clips_of_rare_classes_weigh_more(ramps):
    clips = make_manifest(ramps.source.parent, ["0.wav,x", "1.wav,x", "2.wav,x", "3.wav,y"])
    assert data.class_balanced(clips, 1.0).tolist() == [1 / 4, 1 / 4, 1 / 4, 1 / 2]


def test_the_weight_of_a_clip_is_that_of_all_its_labels(ramps):
    clips = make_manifest(ramps.source.parent, ["0.wav,x", "1.wav,x;y", "2.wav,"])
    assert data.class_balanced(clips, 0.0).tolist() == [1 / 2, 1 / 2 + 1, 0]


# -------------------------------------------------------------------------------------------------- what a batch holds


def draw_numbers(rng, n):
    """Draw a number for each clip, and one for each and each of 3 bands."""
    return {"gain": torch.from_numpy(rng.random(n)), "mask": torch.from_numpy(rng.random((n, 3)))}


def load(clips, steps=range(4), batch_size=4, order_seed=0, **options):
    """Load training batches."""
    order = data.Order(len(clips), batch_size, order_seed)
    settings = {"sample_rate": RATE, "n_samples": N_SAMPLES, "seed": 0, "draw": draw_numbers, **options}
    return list(data.batches(clips, order, steps, **settings))


def assert_equal(batches, others):
    """Make sure that two lists of batches are the same to the bit."""
    for batch, other in zip(batches, others, strict=True):
        for name in ("waveforms", "lengths", "targets", "weights"):
            assert torch.equal(getattr(batch, name), getattr(other, name))
        assert batch.draws.keys() == other.draws.keys()
        assert all(torch.equal(drawn, other.draws[name]) for name, drawn in batch.draws.items())
        assert batch.failures == other.failures


def joined(parts):
    """Join the parts of a batch."""
    fields = {name: torch.cat([getattr(part, name) for part in parts]) for name in data.Batch.__slots__[:4]}
    draws = {name: torch.cat([part.draws[name] for part in parts]) for name in parts[0].draws}
    return data.Batch(**fields, draws=draws, failures=[failure for part in parts for failure in part.failures])


def test_a_batch_holds_excerpts_of_the_clips_of_its_step(ramps):
    for step, batch in enumerate(load(ramps)):
        rows = data.Order(6, 4, 0).rows(step)
        assert batch.waveforms.shape == (4, N_SAMPLES)
        assert batch.waveforms.dtype == batch.targets.dtype == batch.weights.dtype == torch.float32
        np.testing.assert_array_equal(batch.targets, ramps.targets(rows))
        assert batch.lengths.tolist() == [min(N_SAMPLES, (row + 1) * RATE // 4) for row in rows]
        for row, waveform, length in zip(rows, batch.waveforms, batch.lengths, strict=True):
            whole = reading.read(ramps.path(row), RATE)
            first = round((waveform[0].item() * 8 - row) * 2**15)
            assert torch.equal(waveform[:length], whole[first : first + length])
            assert not waveform[length:].any()


def test_excerpts_of_a_clip_begin_anywhere_in_it(ramps):
    clips = make_manifest(ramps.source.parent, ["5.wav,x"])
    batches = load(clips, range(50), batch_size=8)
    firsts = torch.cat([batch.waveforms[:, 0] for batch in batches])
    first_samples = (firsts * 8 - 5) * 2**15
    assert first_samples.min() < 0.02 * RATE
    assert first_samples.max() == pytest.approx(RATE, rel=0.02)  # 1.5 s less the waveform's 0.5 s
    assert firsts.unique().numel() > 350


def test_an_excerpt_stays_within_start_and_end(ramps):
    clips = make_manifest(ramps.source.parent, ["5.wav,x,0.25,1", "5.wav,x,1.25,9"], "path,labels,start,end")
    batches = load(clips, range(50))
    rows = np.concatenate([data.Order(2, 4, 0).rows(step) for step in range(50)])
    samples = (torch.cat([batch.waveforms for batch in batches]) * 8 - 5) * 2**15
    lengths = torch.cat([batch.lengths for batch in batches])
    assert lengths[rows == 0].eq(N_SAMPLES).all()
    assert samples[rows == 0].min() >= 0.25 * RATE
    assert samples[rows == 0].max() < RATE
    assert lengths[rows == 1].eq(RATE // 4).all()
    assert samples[rows == 1][:, 0].eq(1.25 * RATE).all()


def test_long_clips_are_sought_and_give_what_reading_them_whole_gives(ramps, monkeypatch):
    expected = load(ramps)
    monkeypatch.setattr(data, "WHOLE_SECONDS", 0.0)
    assert_equal(load(ramps), expected)


@pytest.mark.parametrize("kept_bytes", [0, 2 * RATE * 4])
def test_a_batch_is_the_same_whether_clips_are_kept_in_memory_or_not(ramps, monkeypatch, kept_bytes):
    expected = load(ramps, range(9))
    monkeypatch.setattr(data, "KEPT_BYTES", kept_bytes)
    assert_equal(load(ramps, range(9)), expected)


def test_kept_clips_are_not_decoded_again(ramps, monkeypatch):
    decoded = []
    excerpt = AudioFile.excerpt
    monkeypatch.setattr(
        AudioFile, "excerpt", lambda file, *rest: decoded.append(file.path.name) or excerpt(file, *rest)
    )
    load(ramps, range(9))
    assert sorted(decoded) == [f"{k}.wav" for k in range(6)]


def test_no_more_is_kept_than_there_is_room(ramps):
    clips = data._Clips(ramps, RATE, N_SAMPLES, kept_bytes=2 * RATE * 4)
    clips.batch(np.arange(6), np.zeros(6))
    assert sum(waveform.nbytes for waveform in clips.kept.values()) <= 2 * RATE * 4
    assert len(clips.kept) == 3  # of 0.25, 0.5 and 0.75 s


@pytest.mark.slow
@pytest.mark.parametrize("workers", [1, 2, 3])
def test_worker_processes_change_nothing(ramps, workers):
    (ramps.source.parent / "2.wav").unlink()
    assert_equal(load(ramps, range(5), workers=workers), load(ramps, range(5)))


def test_what_worker_processes_are_given_can_be_pickled(ramps):
    order = data.Order(6, 4, 0)
    clips = data._Clips(ramps, RATE, N_SAMPLES, 0)
    source = data._Batches(partial(data._training_batch, clips, order, 0, draw_numbers, slice(4)))
    assert_equal([pickle.loads(pickle.dumps(source))[2]], [source[2]])


def test_a_run_that_goes_on_sees_the_same_batches(ramps):
    assert_equal(load(ramps, range(3, 7)), load(ramps, range(7))[3:])


@pytest.mark.parametrize("n_processes", [2, 4])
def test_the_parts_of_several_processes_are_the_batch_of_one(ramps, n_processes):
    (ramps.source.parent / "2.wav").unlink()
    parts = [load(ramps, part=(rank, n_processes)) for rank in range(n_processes)]
    assert_equal([joined(batch) for batch in zip(*parts, strict=True)], load(ramps))


def test_a_batch_that_cannot_be_shared_equally_is_refused(ramps):
    with pytest.raises(OptionError, match="a batch of 4 clips cannot be shared equally by 3 processes"):
        load(ramps, part=(0, 3))


def test_seeds_and_steps_have_excerpts_and_draws_of_their_own(ramps):
    clips = make_manifest(ramps.source.parent, ["5.wav,x"])
    batches = [load(clips, range(2), seed=seed) for seed in (0, 1)]
    for take in (lambda batch: batch.waveforms[:, 0], lambda batch: batch.draws["gain"]):
        assert torch.stack([take(batch) for pair in batches for batch in pair]).unique().numel() == 16


def test_nothing_is_drawn_unless_asked_for(ramps):
    assert load(ramps, draw=None)[0].draws == {}


def test_loading_leaves_the_random_numbers_of_pytorch_alone(ramps):
    state = torch.get_rng_state()
    load(ramps, workers=1)
    assert torch.equal(torch.get_rng_state(), state)


def test_a_clip_that_cannot_be_read_is_silent_has_no_weight_and_is_named(ramps):
    folder = ramps.source.parent
    (folder / "1.wav").unlink()
    (folder / "4.wav").write_bytes(b"not a sound")
    (batch,) = load(ramps, range(1), batch_size=6)
    rows = data.Order(6, 6, 0).rows(0)
    is_bad = np.isin(rows, [1, 4])
    np.testing.assert_array_equal(batch.weights, np.where(is_bad, 0, 1))
    assert not batch.waveforms[is_bad].any()
    assert not batch.lengths[is_bad].any()
    np.testing.assert_array_equal(batch.targets, ramps.targets(rows))
    missing, damaged = sorted(batch.failures)
    assert missing == f"{folder / '1.wav'}: no such file"
    assert damaged.startswith(f"{folder / '4.wav'}: not audio")


def test_a_clip_that_starts_behind_the_end_of_its_file_cannot_be_read(ramps):
    clips = make_manifest(ramps.source.parent, ["0.wav,x,7,8"], "path,labels,start,end")
    (batch,) = load(clips, range(1), batch_size=1)
    assert batch.failures == [f"{clips.path(0)}: ends before 7.000 s, where an excerpt was to begin"]


def fail(rng, n):
    """Stand for a mistake in a program."""
    raise ZeroDivisionError


@pytest.mark.parametrize("workers", [0, 1])
def test_a_mistake_in_a_program_is_not_taken_for_a_bad_file(ramps, workers):
    with pytest.raises(ZeroDivisionError):
        load(ramps, draw=fail, workers=workers)


@pytest.mark.slow
def test_a_batch_moves_but_for_its_lengths(ramps):
    batch = load(ramps)[0].to(torch.device("meta"))
    assert {batch.waveforms.device.type, batch.targets.device.type, batch.draws["mask"].device.type} == {"meta"}
    assert batch.lengths.device.type == "cpu"


# ---------------------------------------------------------------------------------------------------------- validation


def validate(clips, batch_size=4, **options):
    """Load validation batches."""
    return list(data.validation_batches(clips, batch_size, sample_rate=RATE, n_samples=N_SAMPLES, **options))


@pytest.mark.slow
@pytest.mark.parametrize("workers", [0, 2])
def test_validation_has_the_beginning_of_every_clip_in_order(ramps, workers):
    batches = validate(ramps, workers=workers)
    assert [rows.tolist() for rows, _ in batches] == [[0, 1, 2, 3], [4, 5]]
    for rows, batch in batches:
        np.testing.assert_array_equal(batch.targets, ramps.targets(rows))
        for row, waveform, length in zip(rows, batch.waveforms, batch.lengths, strict=True):
            assert torch.equal(waveform[:length], reading.read(ramps.path(row), RATE)[:N_SAMPLES])
            assert not waveform[length:].any()


@pytest.mark.parametrize("n_processes", [2, 4, 7])
def test_processes_share_the_clips_of_validation(ramps, n_processes):
    parts = [validate(ramps, part=(rank, n_processes)) for rank in range(n_processes)]
    rows = [row for part in parts for rows, _ in part for row in rows.tolist()]
    assert sorted(rows) == list(range(6))


def test_validation_goes_on_without_a_clip_that_cannot_be_read(ramps):
    (ramps.source.parent / "5.wav").unlink()
    _, batch = validate(ramps)[-1]
    assert batch.weights.tolist() == [1, 0]
    assert len(batch.failures) == 1
