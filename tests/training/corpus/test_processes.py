"""Results of processes of their own: in order, whoever dies, and nobody is left over."""

import faulthandler
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from hear_transformers.errors import HearTransformersError, HearTransformersWarning
from hear_transformers.training.corpus.processes import TRIES, computed

pytestmark = pytest.mark.skipif(sys.platform != "linux", reason="where processes cannot be forked each takes seconds")

SIZE = 8


def nothing() -> None:
    pass


def crash(signal_number: int) -> None:
    faulthandler.disable()  # pytest's would print all that it came from
    os.kill(os.getpid(), signal_number)


def square(memory, number, attempt):
    memory[0] = number**2
    memory[1] = attempt


def run(compute, numbers, workers=2, prepare=nothing):
    return [result.copy() for result in computed(compute, prepare, numbers, SIZE, workers)]


@pytest.mark.parametrize("workers", [1, 3])
def test_results_come_in_order(workers):
    def slow_first(memory, number, attempt):
        time.sleep(0.2 if number == 2 else 0)
        square(memory, number, attempt)

    numbers = [2, 3, 1, 5, 4, 6, 7, 8]
    assert [result[0] for result in run(slow_first, numbers, workers)] == [number**2 for number in numbers]


def test_nothing_is_computed_of_nothing():
    assert run(square, []) == []


def test_results_do_not_depend_on_those_before():
    count = []

    def remember(memory, number, attempt):
        count.append(number)
        memory[0] = len(count)

    assert [result[0] for result in run(remember, range(5))] == [1] * 5


def test_a_crash_is_named_and_counted():
    def crash_once(memory, number, attempt):
        if number == 1 and not attempt:
            crash(signal.SIGSEGV)
        square(memory, number, attempt)

    with pytest.warns(HearTransformersWarning, match=r"batch 1: .* ended \(killed by SIGSEGV\); another one"):
        results = run(crash_once, [0, 1, 2])
    assert [result[1] for result in results] == [0, 1, 0]


def test_what_the_system_kills_is_made_again_as_it_was(tmp_path):
    def kill_once(memory, number, attempt):
        if not (tmp_path / "killed").exists():
            (tmp_path / "killed").touch()
            os.kill(os.getpid(), signal.SIGKILL)
        square(memory, number, attempt)

    with pytest.warns(HearTransformersWarning, match=r"batch 3: .*SIGKILL"):
        (result,) = run(kill_once, [3])
    assert result[1] == 0


@pytest.mark.filterwarnings("ignore:batch 3:hear_transformers.errors.HearTransformersWarning")
def test_what_kills_every_process_ends_in_an_error():
    def crash_always(memory, number, attempt):
        crash(signal.SIGABRT)

    with pytest.raises(HearTransformersError, match=rf"batch 3: {TRIES} processes .* ended \(killed by SIGABRT\)"):
        run(crash_always, [3])


def test_an_error_comes_through():
    def fail(memory, number, attempt):
        raise ValueError(f"nothing for {number}")

    with pytest.raises(ValueError, match="nothing for 3"):
        run(fail, [3])


def test_death_of_the_process_that_starts_the_others_is_named():
    others = psutil.Process().children()
    results = computed(square, nothing, range(100), SIZE, 2)
    next(results)
    (nursery,) = [child for child in psutil.Process().children() if child not in others]
    nursery.kill()
    with pytest.raises(HearTransformersError, match=r"killed by SIGKILL"):
        list(results)


def test_nobody_is_left_over_when_the_rest_is_not_wanted():
    def never_end(memory, number, attempt):
        if number:
            time.sleep(60)

    others = psutil.Process().children(recursive=True)  # such as those that scikit-learn keeps
    results = computed(never_end, nothing, range(9), SIZE, 2)
    next(results)
    left = [child for child in psutil.Process().children(recursive=True) if child not in others]
    assert len(left) >= 2
    results.close()
    assert psutil.wait_procs(left, timeout=5)[1] == []


MAIN = """
import signal, time
from hear_transformers.training.corpus.processes import computed

def compute(memory, number, attempt):
    time.sleep(60 if number else 0)

if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # which a shell's background ignores, and hands on
    for _ in computed(compute, lambda: None, range(9), 8, 2):
        print("ready", flush=True)
"""


@pytest.mark.parametrize("ending", ["SIGINT", "SIGTERM", "SIGKILL"])
def test_nobody_is_left_over_when_the_main_process_ends(ending):
    root = Path(__file__).parents[3]
    with subprocess.Popen(
        [sys.executable, "-c", MAIN], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=root
    ) as main:
        assert main.stdout is not None
        assert main.stdout.readline() == "ready\n"
        time.sleep(0.1)
        left = psutil.Process(main.pid).children(recursive=True)
        assert len(left) >= 2
        main.send_signal(getattr(signal, ending))
        assert psutil.wait_procs(left, timeout=10)[1] == []
        main.communicate()
