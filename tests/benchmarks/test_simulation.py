"""Pools of processes that share cores: cases whose time can be computed by hand."""

import pytest

from hear_transformers.benchmarks.simulation import Part, Pool, simulate


def readers(processes: int, seconds: float, **options) -> Pool:
    return Pool((Part("decode", seconds),), processes, **options)


def card(seconds: float, batch: int = 1) -> Pool:
    return Pool((Part("network", seconds, cores=0),), batch=batch)


def test_a_single_process_takes_the_sum_of_its_parts():
    run = simulate([Pool((Part("decode", 1.0), Part("network", 2.0)))], 10, cores=4)
    assert run.seconds == pytest.approx(30.0)
    assert run.core_seconds == pytest.approx(30.0)
    assert run.busy == pytest.approx({"decode": 1 / 3, "network": 2 / 3})


def test_threads_make_a_part_as_many_times_as_fast_but_not_faster_than_the_cores():
    network = Pool((Part("network", 2.0, cores=4.0),))
    assert simulate([network], 10, cores=8).seconds == pytest.approx(5.0)
    assert simulate([network], 10, cores=2).seconds == pytest.approx(10.0)


def test_the_slower_of_two_pools_limits_the_run():
    run = simulate([readers(2, 1.0), card(0.1)], 1000, cores=2)
    assert run.seconds == pytest.approx(500.0 + 2 * 0.1)  # the last two at once
    assert run.limit == "decode"
    run = simulate([readers(2, 1.0), card(2.0)], 1000, cores=2)
    assert run.seconds == pytest.approx(2001.0)
    assert run.limit == "network"


def test_more_processes_than_cores_take_as_long_as_the_cores():
    assert simulate([readers(8, 1.0)], 80, cores=2).seconds == pytest.approx(40.0)


def test_a_card_takes_no_core():
    assert simulate([readers(1, 1.0), card(1.0)], 100, cores=1).core_seconds == pytest.approx(100.0)


def test_processes_that_give_way_get_less_of_a_core():
    network = Pool((Part("network", 2.0),))
    fair = simulate([readers(1, 1.0), network], 2, cores=1)
    yielding = simulate([readers(1, 1.0, weight=0.25), network], 2, cores=1)
    assert fair.seconds == yielding.seconds == pytest.approx(6.0)
    assert fair.busy["decode"] == pytest.approx((1.0 + 2.0) / 6.0)
    assert yielding.busy["decode"] == pytest.approx((1.0 + 3.0) / 6.0)


def test_a_batch_waits_for_its_clips_but_not_at_the_end():
    assert simulate([readers(1, 1.0), card(0.5, batch=4)], 6, cores=1).seconds == pytest.approx(6.0 + 2 * 0.5)


def test_nothing_is_read_far_ahead():
    few = simulate([readers(4, 1.0, room=2), card(10.0)], 8, cores=4)
    assert few.seconds == pytest.approx(81.0)
    assert few.busy["decode"] < 0.1


def test_processes_that_start_late_are_waited_for():
    assert simulate([readers(1, 1.0, ready_s=5.0)], 3, cores=1).seconds == pytest.approx(8.0)
