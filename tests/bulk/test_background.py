"""What is done with embeddings while the next are computed: in order, once each, whoever dies."""

import os
import signal
from functools import partial
from multiprocessing import active_children

import numpy as np
import pytest

from hear_transformers.audio.workers import START_METHOD, Spent
from hear_transformers.bulk import background
from hear_transformers.embedding.pipeline import Embedded
from hear_transformers.errors import HearTransformersWarning

forked = pytest.mark.skipif(START_METHOD != "fork", reason="needs a fork")
WAYS = [
    background.in_turn,
    background.in_thread,
    pytest.param(background.in_process, marks=forked),
    pytest.param(partial(background.in_process, processes=3), marks=forked, id="in_processes"),
]


def clips(count: int):
    return ([Embedded(i, np.full(3, i, np.float32))] for i in range(count))


def total(embedded: Embedded) -> tuple[int, float]:
    return embedded.index, float(embedded.embedding.sum())


@pytest.mark.parametrize("apply", WAYS)
def test_every_embedding_is_taken_once_in_order(apply):
    spent = Spent()
    assert list(apply(total, clips(200), spent)) == [(i, 3.0 * i) for i in range(200)]
    assert spent.writing > 0
    assert not active_children()


@pytest.mark.parametrize("apply", WAYS)
def test_many_that_are_finished_together_are_taken_in_order(apply):
    together = [[each for (each,) in clips(200)], [], [Embedded(200, np.full(3, 200, np.float32))]]
    assert list(apply(total, together, Spent())) == [(i, 3.0 * i) for i in range(201)]


@pytest.mark.parametrize("apply", WAYS)
def test_an_error_is_raised_behind_what_was_done(apply):
    def fail(embedded):
        if embedded.index == 5:
            raise OSError(28, "No space left on device", "a.npz")
        return embedded.index

    done = []
    with pytest.raises(OSError, match="No space left") as caught:
        done.extend(apply(fail, clips(200), Spent()))
    assert (caught.value.errno, caught.value.filename) == (28, "a.npz")
    assert done == [0, 1, 2, 3, 4]
    assert not active_children()


@pytest.mark.parametrize("apply", WAYS)
def test_who_stops_early_finishes_what_was_begun(apply, tmp_path):
    def write(embedded):
        (tmp_path / str(embedded.index)).touch()

    given = []
    done = apply(write, (given.append(each.index) or [each] for (each,) in clips(200)), Spent())
    for _ in range(3):
        next(done)
    done.close()
    assert sorted(int(path.name) for path in tmp_path.iterdir()) == given
    assert not active_children()


@forked
@pytest.mark.parametrize("processes", [1, 3])
def test_the_end_of_the_other_process_loses_and_repeats_nothing(processes):
    master = os.getpid()

    def deadly(embedded):
        if embedded.index == 7 and os.getpid() != master:
            os.kill(os.getpid(), signal.SIGKILL)
        return total(embedded)

    with pytest.warns(HearTransformersWarning, match="process that writes outputs was killed"):
        assert list(background.in_process(deadly, clips(200), Spent(), processes)) == [(i, 3.0 * i) for i in range(200)]


@forked
def test_an_embedding_on_the_disk_is_not_sent(tmp_path):
    def rows():
        for (embedded,) in clips(5):
            kept = np.memmap(tmp_path / str(embedded.index), np.float32, "w+", shape=(3,))
            kept[:] = embedded.embedding
            yield [Embedded(embedded.index, kept if embedded.index % 2 else embedded.embedding)]

    processes = list(background.in_process(lambda embedded: (embedded.index, os.getpid()), rows(), Spent()))
    assert [index for index, _ in processes] == [0, 1, 2, 3, 4]
    assert [process == os.getpid() for _, process in processes] == [False, True, False, True, False]


@forked
def test_a_process_that_cannot_be_started_is_done_without(monkeypatch):
    def refuse(*arguments):
        raise OSError("too many processes")

    monkeypatch.setattr(background, "start_process", refuse)
    assert list(background.in_process(total, clips(3), Spent())) == [(0, 0.0), (1, 3.0), (2, 6.0)]
