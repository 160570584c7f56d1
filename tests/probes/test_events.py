"""Events and their scores: what heareval and sed_eval make of the same numbers."""

import json
import os
import subprocess

import numpy as np
import pytest

pytest.importorskip("scipy")
from hear_transformers.probes import events
from hear_transformers.probes.events import Event, Processing
from tests.helpers.hear_tasks import HARNESS, needs_harness

CLASSES = ["a", "b", "c"]

OFFICIAL = """
import json, sys, types
stub = types.ModuleType("pkg_resources")
stub.resource_filename = lambda *args: ""
sys.modules.setdefault("pkg_resources", stub)
import sed_eval
from dcase_util.containers import MetaDataContainer

def rows(name, events):
    return MetaDataContainer([
        {"event_label": label, "event_onset": start, "event_offset": end, "file": name} for label, start, end in events
    ])

answers = []
for truth, found in json.load(sys.stdin):
    answer = []
    for kind, key, name, options in [
        ("EventBasedMetrics", "f_measure", "f_measure", {"evaluate_offset": False, "t_collar": 0.2}),
        ("EventBasedMetrics", "f_measure", "f_measure", {"evaluate_offset": False, "t_collar": 0.05}),
        ("SegmentBasedMetrics", "error_rate", "error_rate", {"time_resolution": 1.0}),
    ]:
        metrics = getattr(sed_eval.sound_event, kind)(event_label_list=["a", "b", "c"], **options)
        for file in found:
            metrics.evaluate(rows(file, truth[file]), rows(file, found[file]))
        answer.append(metrics.results_overall_metrics()[key][name])
    answers.append(answer)
print(json.dumps(answers))
"""


def some(rng, n):
    starts = np.round(rng.uniform(0, 9, n), 3)
    labels = rng.integers(0, 3, n)
    ends = np.round(starts + rng.uniform(0.05, 2, n), 3)
    return [Event(CLASSES[i], s, e) for i, s, e in zip(labels, starts.tolist(), ends.tolist(), strict=True)]


def near(rng, truth):
    shifts = np.round(rng.normal(0, 0.15, len(truth)), 3).tolist()
    moved = [Event(e.label, max(0.0, e.start + s), e.end + 0.3) for e, s in zip(truth, shifts, strict=True)]
    return [*moved[: len(moved) - 1], *some(rng, 2)]


@pytest.mark.slow
@needs_harness
def test_scores_equal_sed_evals_on_random_cases():
    rng = np.random.default_rng(0)
    cases = []
    for _ in range(60):
        truth = {f"{i}.wav": some(rng, int(rng.integers(1, 9))) for i in range(3)}
        cases.append((truth, {name: near(rng, each) for name, each in truth.items()}))
    done = subprocess.run(
        [HARNESS, "-c", OFFICIAL], input=json.dumps(cases), capture_output=True, text=True, check=False, env=os.environ
    )
    assert done.returncode == 0, done.stderr
    ours = [[events.onset_f1(*case, 0.2), events.onset_f1(*case, 0.05), events.error_rate(*case)] for case in cases]
    np.testing.assert_allclose(ours, json.loads(done.stdout), atol=1e-9)


def test_events_are_runs_above_a_half_that_are_long_enough():
    times = np.arange(20) * 50.0
    likely = np.zeros((20, 3))
    likely[2:10, 0], likely[12:14, 0], likely[4:6, 1] = 0.9, 0.9, 0.4
    assert events.events_in(likely, times, CLASSES, Processing(0, 60)) == [Event("a", 0.1, 0.45)]
    assert len(events.events_in(likely, times, CLASSES, Processing(0, 0))) == 2


def test_a_median_filter_closes_gaps():
    times, likely = np.arange(20) * 50.0, np.zeros((20, 3))
    likely[2:12, 0] = 0.9
    likely[6, 0] = 0.1
    assert len(events.events_in(likely, times, CLASSES, Processing(0, 0))) == 2
    assert events.events_in(likely, times, CLASSES, Processing(150, 0)) == [Event("a", 0.1, 0.55)]


def test_the_processing_is_tuned_on_the_truth():
    times, likely = np.arange(40) * 50.0, np.zeros((40, 3))
    likely[2:12, 0], likely[20:24, 1] = 0.9, 0.9  # the second, of 150 ms, is none
    truth = {"x": [Event("a", 0.1, 0.55)]}
    assert events.tuned({"x": (likely, times)}, truth, CLASSES, [Processing(0, 100), Processing(0, 250)]) == (
        1.0,
        Processing(0, 250),
    )
