"""Results by number, each computed in a process of its own, ahead of their use.

A fresh process for each makes them independent of what was computed before, as is needed of eSpeak NG, which remembers
what it spoke and crashes once in a while. They are the children of one small process, which is forked before this one
grows: a copy of that is made in milliseconds.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Sequence
from dataclasses import dataclass
from multiprocessing import connection
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from threadpoolctl import threadpool_limits

from ...audio.workers import (
    NICENESS,
    PATROL_SECONDS,
    cause_of,
    leave_the_terminal,
    packed,
    sendable,
    shared,
    start_process,
)
from ...errors import HearTransformersError, HearTransformersWarning

Bytes = NDArray[np.uint8]
Compute = Callable[[Bytes, int, int], None]
"""Fills memory with the result of a number; the last argument counts how often it crashed before."""

AHEAD = 2  # results for each process that wait to be taken, or are being computed
TRIES = 5  # of a result whose process dies
CRASHES = {-getattr(signal, name, 0) for name in ("SIGSEGV", "SIGABRT", "SIGBUS", "SIGFPE", "SIGILL")} - {0}
"""Exit codes of a program's own fault. What the system kills is computed again as it was."""

END = b""


class _Job(NamedTuple):
    """A number, the place of its result in memory, and what happened to it so far."""

    number: int
    slot: int
    tries: int = 0
    crashes: int = 0


@dataclass(frozen=True, slots=True)
class _Task:
    """What every process is to know.

    Attributes
    ----------
    memory : of all results
    n_bytes : of one
    compute : of one
    prepare : called before any is computed
    """

    memory: Any
    n_bytes: int
    compute: Compute
    prepare: Callable[[], None]

    def slot(self, number: int) -> Bytes:
        """Return the memory of a result."""
        return np.frombuffer(self.memory, np.uint8, self.n_bytes, number * self.n_bytes)


class _Outcome(NamedTuple):
    """What became of a job: computed, failed with an error, or its process died of a cause."""

    job: _Job
    error: Exception | None = None
    cause: str = ""


def computed(
    compute: Compute, prepare: Callable[[], None], numbers: Sequence[int], n_bytes: int, workers: int
) -> Generator[Bytes, None, None]:
    """Compute results ahead of their use, in order.

    Parameters
    ----------
    compute : of one result; where processes cannot be forked it is pickled
    prepare : called once, before the processes that compute are forked
    numbers : of the results
    n_bytes : of every result
    workers : processes that compute at the same time, at least 1

    Yields
    ------
    result : (n_bytes,) memory that the next but one may lie in

    Raises
    ------
    HearTransformersError : a result could not be computed, `TRIES` processes died of it, or that which starts them
    """
    n_slots = AHEAD * workers
    task = _Task(shared(n_slots * n_bytes), n_bytes, compute, prepare)
    with contextlib.closing(_Nursery(task, workers)) as nursery:
        n_asked = 0
        for i, number in enumerate(numbers):
            while n_asked < min(len(numbers), i + n_slots):
                nursery.ask(_Job(numbers[n_asked], n_asked % n_slots))
                n_asked += 1
            nursery.wait_for(number)
            yield task.slot(i % n_slots)


class _Nursery:
    """Our side of the process whose children compute."""

    def __init__(self, task: _Task, workers: int) -> None:
        self.done: set[int] = set()
        self.process, self.pipe = start_process(_breed, task, workers, os.getpid(), daemon=False)

    def ask(self, job: _Job) -> None:
        """Ask for a result."""
        try:
            self.pipe.send_bytes(packed(job))
        except OSError:
            self._raise_death()

    def wait_for(self, number: int) -> None:
        """Wait until a result is there."""
        while number not in self.done:
            if self.pipe.poll(PATROL_SECONDS):
                self._hear()
            elif not self.process.is_alive():
                self._raise_death()
        self.done.remove(number)

    def _hear(self) -> None:
        try:
            outcome: _Outcome = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self._raise_death()
        job = outcome.job
        if outcome.error is not None:
            raise outcome.error
        if not outcome.cause:
            self.done.add(job.number)
        elif job.tries >= TRIES:
            raise HearTransformersError(f"batch {job.number}: {TRIES} processes that made it ended ({outcome.cause})")
        else:
            text = f"batch {job.number}: a process that made it ended ({outcome.cause}); another one makes it again"
            warnings.warn(text, HearTransformersWarning, stacklevel=2)

    def _raise_death(self) -> None:
        self.process.join(PATROL_SECONDS)
        raise HearTransformersError(
            f"the process that starts those that make batches ended ({cause_of(self.process.exitcode)}); start again"
        )

    def close(self) -> None:
        """End the process and its children."""
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(END)
        self.process.join(PATROL_SECONDS)
        self.process.kill()  # its children follow
        self.process.join()
        self.pipe.close()


def _breed(pipe: connection.Connection, task: _Task, workers: int, master: int) -> None:
    """Start a process for every job, in a process of its own, as long as its master, of that process id, lives."""
    leave_the_terminal()
    torch.set_num_threads(1)
    if sys.platform != "win32":
        os.nice(NICENESS)
    todo: deque[_Job] = deque()
    children: dict[Any, tuple[_Job, Any]] = {}  # by the pipes from them
    with threadpool_limits(1), contextlib.suppress(EOFError, OSError), contextlib.ExitStack() as at_end:
        at_end.callback(_kill, children)
        task.prepare()
        gc.freeze()  # what comes with a fork stays shared
        while os.getppid() == master:
            while todo and len(children) < workers:
                job = todo.popleft()
                process, theirs = start_process(_work, task, job, os.getpid())
                children[theirs] = job, process
            for ready in connection.wait([pipe, *children], PATROL_SECONDS):
                if ready is not pipe:
                    outcome = _outcome(ready, *children.pop(ready))
                    if outcome.cause and outcome.job.tries < TRIES:
                        todo.appendleft(outcome.job)
                    pipe.send_bytes(packed(outcome))
                elif (message := pipe.recv_bytes()) == END:
                    return
                else:
                    todo.append(pickle.loads(message))


def _outcome(pipe: Any, job: _Job, process: Any) -> _Outcome:
    """Return what became of a job whose process answered or ended."""
    try:
        error = pickle.loads(pipe.recv_bytes())
    except (EOFError, OSError):
        process.join()
        crashes = job.crashes + (process.exitcode in CRASHES)
        return _Outcome(job._replace(tries=job.tries + 1, crashes=crashes), None, cause_of(process.exitcode))
    finally:
        pipe.close()
    process.join()
    return _Outcome(job, error)


def _kill(children: dict[Any, tuple[_Job, Any]]) -> None:
    for _, process in children.values():
        process.kill()
    for _, process in children.values():
        process.join()


def _work(pipe: connection.Connection, task: _Task, job: _Job, master: int) -> None:
    """Compute a result in a process of its own, as long as its master, of that process id, lives."""
    threading.Thread(target=_follow, args=(master,), daemon=True).start()
    error: Exception | None = None
    try:
        task.compute(task.slot(job.slot), job.number, job.crashes)
    except Exception as failure:
        error = failure
    with contextlib.suppress(OSError):
        pipe.send_bytes(packed(sendable(error)))


def _follow(master: int) -> None:
    """End this process with its master."""
    while os.getppid() == master:
        time.sleep(PATROL_SECONDS)
    os._exit(1)
