"""Readouts are scored by what the synthesis knows of clips."""

import numpy as np
import pytest
import torch

from hear_transformers.training.corpus.stream import PHONES, Batch, Part
from hear_transformers.training.distil import readouts
from hear_transformers.training.distil.students import STUDENTS
from tests.helpers.distilling import SIZES, small


def batch(step: int) -> Batch:
    """Make clips whose loudest band is their only class."""
    rng = np.random.default_rng(step)
    parts = []
    for kind, n_classes in (("events", 4), ("phones", len(PHONES)), ("pitches", 88)):
        mels = rng.normal(-0.5, 0.1, (20, 128, 64)).astype(np.float16)
        classes = rng.integers(0, 4, 20)
        mels[np.arange(20), 20 * classes] += 2
        of_frames = np.repeat(classes[:, None], 64, 1)
        labels = of_frames if kind == "phones" else np.eye(n_classes)[of_frames]
        parts.append(Part(None, mels, {kind: labels.astype(np.uint8)}))
    return Batch(step, *parts)


@pytest.fixture(scope="module")
def trunk():
    student = small(STUDENTS["mast_mini"], SIZES["mast_mini"])
    with torch.random.fork_rng():
        torch.manual_seed(0)
        return student.family.network(**student.variant.network).eval()


@pytest.fixture(scope="module")
def found(trunk):
    return readouts.scores(trunk, map(batch, range(12)))


def test_what_the_mel_shows_is_read_from_it(found):
    (mel,) = (score for score in found if score.layers == ("mel",))

    assert min(mel.by_kind.values()) > 0.95


def test_the_best_readout_comes_first(found):
    means = [score.mean for score in found]
    assert means == sorted(means, reverse=True)


def test_no_readout_is_too_large_and_sizes_are_counted(found):
    assert max(score.size for score in found) <= readouts.LARGEST_SIZE
    assert {score.layers: score.size for score in found}["mel", "0"] == 2 * (128 + 16)


def test_candidates_are_single_layers_and_pairs_with_the_mel_and_without():
    assert list(readouts.candidates(["0", "1", "mel"])) == [
        ("0",), ("mel", "0"), ("1",), ("mel", "1"), ("0", "1"), ("mel", "0", "1"), ("mel",),
    ]  # fmt: skip


@pytest.fixture(scope="module")
def of_moments(trunk):
    return readouts.scores_of_moments(trunk, map(batch, range(12)))


def test_what_the_mel_shows_at_a_moment_is_read_from_it(of_moments):
    (mel,) = (score for score in of_moments if score.layers == ("mel",))
    assert min(mel.by_kind.values()) > 0.95
    assert mel.size == 128


def test_a_class_of_another_moment_is_not_told():
    """The first half of a clip has another loudest band than the second."""
    rng = np.random.default_rng(0)
    mels, present = rng.normal(0, 0.1, (40, 8, 16)).astype(np.float16), np.zeros((40, 16, 2), np.bool_)
    mels[:, 0, :8] += 2
    present[:, :8, 0] = present[:, 8:, 1] = True
    rows = torch.from_numpy(mels).float().transpose(1, 2).flatten(0, 1).numpy()
    assert readouts._precisions(rows, present.reshape(-1, 2), [np.arange(8), np.arange(1, 8)]) == [
        pytest.approx(1.0),
        pytest.approx(0.5, abs=0.2),
    ]
