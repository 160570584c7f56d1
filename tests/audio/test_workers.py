"""Worker processes without a network; what they read is embedded in tests/embedding/test_pipeline.py."""

import math
import os
import subprocess
import sys
import threading

import pytest
import torch

from hear_transformers.audio import workers


@pytest.mark.skipif(sys.platform != "linux", reason="asks Linux for the cores of this process")
def test_few_clips_need_no_workers_and_many_leave_a_core_for_the_model(monkeypatch):
    for cores, expected in ((1, 0), (2, 1), (16, 15), (64, 32)):
        monkeypatch.setattr(os, "sched_getaffinity", lambda process, cores=cores: set(range(cores)))
        assert workers.default_workers(10) == 0
        assert workers.default_workers(1_000) == expected


class Runtime:
    """CUDA's runtime as far as memory is pinned by it; `most` is what it refuses to go beyond."""

    def __init__(self, most: float) -> None:
        self.most = most
        self.sizes = {}

    def cudaHostRegister(self, place, n_bytes, flags):
        assert place not in self.sizes
        if sum(self.sizes.values()) + n_bytes > self.most:
            return 2
        self.sizes[place] = n_bytes
        return 0

    def cudaHostUnregister(self, place):
        del self.sizes[place]


@pytest.mark.parametrize(
    ("most", "expected"), [(math.inf, [4, 1, 5, 1]), (3 * 2**20, [0, 1, 0, 0]), (2 * 2**20 + 4, [0, 1, 0, 0])]
)
def test_as_much_memory_is_pinned_as_clips_need(monkeypatch, most, expected):
    runtime = Runtime(most)
    for name, answer in {"cudart": runtime, "current_device": 0, "set_device": None, "synchronize": None}.items():
        monkeypatch.setattr(workers.torch.cuda, name, lambda *args, answer=answer: answer)
    pins = workers._Pins(torch.zeros(4, 5 * 2**18))
    pins.thread.join()
    for slot, n_bytes in ((0, 2**20 + 4), (1, 4), (0, 3 * 2**20), (0, 8), (2, 5 * 2**20), (3, 0)):
        pins.add(slot, n_bytes)
    assert [size / 2**20 for size in pins.n_bytes] == expected
    assert sorted(runtime.sizes.values()) == sorted(size for size in pins.n_bytes if size)
    pins.remove()
    assert not runtime.sizes


def test_what_was_pinned_in_part_is_not_when_more_is_refused(monkeypatch):
    runtime = Runtime(4 * 2**20)
    for name, answer in {"cudart": runtime, "current_device": 0, "set_device": None, "synchronize": None}.items():
        monkeypatch.setattr(workers.torch.cuda, name, lambda *args, answer=answer: answer)
    pins = workers._Pins(torch.zeros(4, 5 * 2**18))
    pins.thread.join()
    pins.add(2, 2**21)
    assert pins.n_bytes == [2**20, 2**20, 0, 2**20]


LEFT = """
import sys
from pathlib import Path
from hear_transformers.audio.clips import Clip, ReadOptions
from hear_transformers.audio.workers import load
loads = load((Clip(Path(sys.argv[1])) for _ in range(100_000)), ReadOptions(32_000, 60.0, False), workers=2)
print(next(loads).index)
"""


@pytest.mark.slow
def test_a_program_that_leaves_clips_unread_ends(audio_file):
    done = subprocess.run(
        [sys.executable, "-c", LEFT, audio_file()], capture_output=True, text=True, check=True, timeout=120
    )
    assert (done.stdout, done.stderr) == ("0\n", "")


def test_no_more_is_taken_ahead_than_there_is_room():
    taken = []
    items = workers.ahead((taken.append(i) or i for i in range(100)), lambda item: 10, room=30)
    assert next(items) == 0
    items.close()
    assert len(taken) <= 5  # one that was wanted, three that fit, one more
    assert not [thread for thread in threading.enumerate() if thread.name == "reads ahead"]


def test_what_stops_the_items_is_raised_behind_them():
    def items():
        yield 1
        raise KeyError("list")

    taken = []
    with pytest.raises(KeyError, match="list"):
        taken.extend(workers.ahead(items(), lambda item: 0, room=0))
    assert taken == [1]


STARTING = """
import contextlib, os, signal, sys, threading, time, traceback
from pathlib import Path
from hear_transformers.audio import workers
from hear_transformers.audio.clips import Clip, ReadOptions

def work(delay):
    os.setpgid(0, 0)
    signal.signal(signal.SIGINT, signal.default_int_handler)
    loads = workers.load((Clip(Path(sys.argv[1])) for _ in range(100_000)), ReadOptions(32_000, 1.0, False), workers=3)
    process = os.getpid()
    try:
        threading.Thread(target=lambda: (time.sleep(delay), os.kill(process, signal.SIGINT))).start()
        with contextlib.closing(loads):
            for loaded in loads:
                pass
    except KeyboardInterrupt:
        return 130
    return 0

for i in range(int(sys.argv[2])):
    child = os.fork()
    if child == 0:
        code = 1
        try:
            code = work((1 + i) / 300)
        except BaseException:
            traceback.print_exc()
        os._exit(code)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), end=" ")
    try:
        os.killpg(child, 0)
        print("orphans")
    except ProcessLookupError:
        print("none")
"""


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="forks")
def test_no_worker_outlives_an_interruption_while_workers_start(audio_file):
    command = [sys.executable, "-c", STARTING, audio_file(), "20"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=120)
    assert done.stderr == ""
    assert done.stdout.splitlines() == ["130 none"] * 20
