"""Scores equal scikit-learn's, also with weights; intervals hold the score and are paired."""

import numpy as np
import pytest

pytest.importorskip("sklearn")
from sklearn.metrics import average_precision_score, roc_auc_score

from hear_transformers.probes import metrics

RNG = np.random.default_rng(0)
TARGETS = (RNG.random((60, 4)) < 0.3).astype(float)
SCORES = np.round(TARGETS + RNG.normal(0, 1, (60, 4)), 1)  # with ties
WEIGHTS = RNG.integers(0, 3, (2, 60)).astype(float)


@pytest.mark.parametrize(
    ("ours", "theirs"), [(metrics.average_precisions, average_precision_score), (metrics.areas, roc_auc_score)]
)
def test_weighted_scores_equal_scikit_learns(ours, theirs):
    expected = [[theirs(TARGETS[:, c], SCORES[:, c], sample_weight=w) for c in range(4)] for w in WEIGHTS]
    np.testing.assert_allclose(ours(TARGETS, SCORES, WEIGHTS), expected, atol=1e-12)


def test_d_prime_is_finite_for_perfect_classes_and_zero_at_chance():
    perfect, chance = metrics.value("d_prime", TARGETS, TARGETS), metrics.value("d_prime", TARGETS, 0 * TARGETS)
    assert 3 < perfect < 8
    assert chance == pytest.approx(0)


def test_classes_that_do_not_occur_are_left_out_of_means():
    targets = np.concatenate([TARGETS, np.zeros((60, 1))], 1)
    scores = np.concatenate([SCORES, np.ones((60, 1))], 1)
    assert metrics.value("mAP", targets, scores) == metrics.value("mAP", TARGETS, SCORES)


def test_intervals_hold_the_score_and_the_same_clips_are_drawn_for_all():
    tests, groups = [np.arange(30), np.arange(30, 60)], np.arange(60)
    first, again = (metrics.score_all(TARGETS, each, groups, tests, multi_label=True) for each in (SCORES, SCORES * 2))
    for name, score in first.items():
        assert score.low < score.value < score.high
        np.testing.assert_array_equal(score.draws, again[name].draws)


def test_intervals_of_few_clips_hold_the_score_too():
    targets = np.eye(10)[np.arange(40) % 10]
    scores = targets + 0.6 * np.random.default_rng(0).normal(size=targets.shape)
    found = metrics.score_all(targets, scores, np.arange(40), [np.arange(40)], multi_label=False)
    for score in found.values():
        assert score.low < score.value < score.high
    assert all(found[name].low >= 0.0 and found[name].high <= 1.0 for name in ("accuracy", "mAP", "AUC"))


def test_where_each_test_is_one_group_tests_are_drawn():
    groups = np.repeat(np.arange(4), 15)
    tests = [np.flatnonzero(groups == group) for group in range(4)]
    for score in metrics.score_all(TARGETS, SCORES, groups, tests, multi_label=True).values():
        assert score.low < score.value < score.high
        assert score.high - score.low == pytest.approx(4 * score.std / 2 * np.sqrt(3 / 4), rel=0.4)  # of a mean of four


def test_a_single_test_of_a_single_group_has_no_interval():
    groups = np.zeros(len(TARGETS), np.int64)
    for score in metrics.score_all(TARGETS, SCORES, groups, [np.arange(len(TARGETS))], multi_label=True).values():
        assert np.isnan([score.low, score.high]).all()
        assert metrics.in_words(score.value, score.low, score.high) == f"{score.value:.3f} [no interval]"
