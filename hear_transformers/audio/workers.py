"""Clips -> waveforms, in order, read by this process or ahead of it by worker processes.

PyTorch's DataLoader does not serve here: when the system kills a worker, it raises in the main thread, in the middle of
writing a file perhaps, and does not say which clip the worker was reading.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..errors import AudioError, HearTransformersError, HearTransformersWarning, OptionError
from .clips import Clip, Loaded, ReadOptions, blocks_of, read

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How workers start. A fork starts at once, needs no main module that can be imported twice, and shares memory that
/dev/shm has no part in, which containers limit to 64 MB. It is safe beside threads and CUDA since a worker uses neither
CUDA nor PyTorch's threads. macOS's own libraries do not survive it, Windows does not have it."""

MOST_WORKERS = 8
FEW_CLIPS = 32
"""Up to this number, clips are read by this process unless workers are asked for: starting those takes 0.1 s."""

IN_HAND = 2
"""Clips sent to a worker: the one it reads, and one so that it need not wait for the next."""

ASKED_FOR = 4
"""Clips per worker that are taken from the input before the first of them is read."""

STRIKES = 2
"""A clip fails after killing this many workers, the last one while no other worker read."""

PATROL_SECONDS = 2.0
"""How often workers and their master check that the other lives, in case a third process inherited its end of the
pipe."""

NICENESS = 10
"""By how much workers give way to the network: where it has to share a core, all its other cores wait for that one."""

LONG = -1
"""Sent by a worker instead of a number of samples if a clip is too long for the memory."""

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a process, of a terminal or a scheduler."""

T = TypeVar("T")


def default_workers(n_clips: int) -> int:
    """Return the number of processes to read `n_clips`: one per core of this process, less one for the model."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return 0 if n_clips <= FEW_CLIPS else min(cores - 1, MOST_WORKERS)


def load(clips: Iterable[Clip], options: ReadOptions, workers: int = 0) -> Generator[Loaded, None, None]:
    """Read clips.

    Parameters
    ----------
    clips : to read; with workers they are taken in another thread, some before they are needed
    options : sample rate, and what is held in memory
    workers : processes that decode, resample and hash; 0: this process

    Yields
    ------
    loaded : of every clip, in order
    """
    if workers < 0:
        raise OptionError(f"workers={workers} is too few; choose 0 or more")
    # A daemon of multiprocessing, such as a worker of a pool, may not have children.
    if workers == 0 or multiprocessing.current_process().daemon:
        for index, clip in enumerate(clips):
            yield read(index, clip, options)
        return
    pool = _Pool(options, workers)
    yield from ahead(pool.load(clips), _n_samples, workers * options.max_samples, pool.close)


def _n_samples(loaded: Loaded) -> int:
    return 0 if loaded.waveform is None else len(loaded.waveform)


def ahead(
    items: Iterator[T], size: Callable[[T], int], room: int, close: Callable[[], None] = lambda: None
) -> Generator[T, None, None]:
    """Take items in a thread before they are needed, as long as there is room for them; decoding releases the GIL.

    Parameters
    ----------
    items : to take
    size : of an item
    room : total size of the items that wait; one more may
    close : called when no more are wanted
    """
    reader = _Ahead(items, size, room, close)
    # A program may end with clips unread: before its modules and multiprocessing's workers are taken apart.
    atexit.register(reader.stop)
    try:
        reader.thread.start()
        yield from reader.take()
    finally:
        reader.stop()
        atexit.unregister(reader.stop)


class _Ahead(Generic[T]):
    """A thread that takes items, and the items that wait, see `ahead`."""

    def __init__(self, items: Iterator[T], size: Callable[[T], int], room: int, close: Callable[[], None]) -> None:
        self.items = items
        self.size = size
        self.room = room
        self.close = close
        self.waiting: deque[T] = deque()
        self.used = 0  # of the room
        self.is_wanted = True
        self.is_finished = False
        self.failure: BaseException | None = None
        self.changed = threading.Condition()
        self.thread = threading.Thread(target=self._fill, name="reads ahead", daemon=True)

    def _fill(self) -> None:
        try:
            for item in self.items:
                with self.changed:
                    self.waiting.append(item)
                    self.used += self.size(item)
                    self.changed.notify_all()
                    self.changed.wait_for(lambda: self.used <= self.room or not self.is_wanted)
                if not self.is_wanted:
                    return
        except BaseException as error:
            self.failure = error
        with self.changed:
            self.is_finished = True
            self.changed.notify_all()

    def take(self) -> Iterator[T]:
        """Yield the items as they come, then raise what stopped them."""
        while True:
            with self.changed:
                self.changed.wait_for(lambda: self.waiting or self.is_finished)
                if not self.waiting:
                    break
                item = self.waiting.popleft()
                self.used -= self.size(item)
                self.changed.notify_all()
            yield item
        if self.failure is not None:
            raise self.failure

    def stop(self) -> None:
        """End the thread."""
        if not self.is_wanted:
            return
        with self.changed:
            self.is_wanted = False
            self.changed.notify_all()
        self.close()
        if self.thread.is_alive():  # not if an interruption came before it started
            self.thread.join()


@dataclass(slots=True, eq=False)
class _Request:
    """A clip to read; `loaded` once it is read, `strikes` counts the workers that died of it."""

    index: int
    clip: Clip
    loaded: Loaded | None = None
    strikes: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that reads clips, and the clips sent to it."""

    process: Any
    pipe: connection.Connection  # our end
    memory: np.ndarray  # (IN_HAND, samples) float32 shared with it: a row for each clip in hand, cheaper than the pipe
    requests: deque[_Request] = field(default_factory=deque)  # sent and not answered
    n_asked: int = 0  # clips sent so far
    is_up: bool = False  # whether it has answered at all


class _Pool:
    """Worker processes that read clips, replaced when they die.

    Each has its own pipe, since a shared lock would be lost with the worker that holds it.
    """

    def __init__(self, options: ReadOptions, n_workers: int) -> None:
        self.options = options
        self.n_workers = n_workers
        self.todo: deque[_Request] = deque()
        self.starting = threading.Lock()
        self.is_closed = False
        self.workers: list[_Worker] = []

    def load(self, clips: Iterable[Clip]) -> Iterator[Loaded]:
        """Read clips, in order."""
        # Here, in a thread of its own (`ahead`): Ctrl-C interrupts the main thread, and so does not come between the
        # start of a process and its entry in the list of those to end.
        for _ in range(self.n_workers):
            self._start()
        numbered = enumerate(clips)
        requests: deque[_Request] = deque()  # not yielded yet
        while not self.is_closed:
            while len(requests) < ASKED_FOR * self.n_workers and (item := next(numbered, None)) is not None:
                requests.append(request := _Request(*item))
                if request.clip.path is None:
                    request.loaded = self._read(request)
                else:
                    self.todo.append(request)
            if not requests:
                return
            self._ask()
            if requests[0].loaded is None and self.workers:
                self._listen()
            elif requests[0].loaded is None:
                self.todo.remove(requests[0])
                requests[0].loaded = self._read(requests[0])
            while requests and (loaded := requests[0].loaded) is not None:
                requests.popleft()
                yield loaded

    def close(self) -> None:
        """Kill the workers."""
        with self.starting:
            self.is_closed = True
            workers = list(self.workers)  # the thread that listens removes those that it finds dead
            for worker in workers:
                worker.process.kill()  # it only reads: there is nothing to lose
        for worker in workers:
            worker.process.join()

    def _read(self, request: _Request) -> Loaded:
        return read(request.index, request.clip, self.options)

    def _ask(self) -> None:
        """Send clips to workers, as many as they take."""
        in_hand = [request for worker in self.workers for request in worker.requests]
        suspects = [request for request in self.todo if request.strikes]
        # A clip that a worker died of is read alone: several at once may have been too much for the memory.
        if suspects and self.workers and not in_hand:
            self.todo.remove(suspects[0])
            self._send(self.workers[0], suspects[0])
        if suspects or any(request.strikes for request in in_hand):
            return
        while self.todo and self.workers:
            worker = min(self.workers, key=lambda worker: len(worker.requests))
            if len(worker.requests) == IN_HAND:
                return
            self._send(worker, self.todo.popleft())

    def _send(self, worker: _Worker, request: _Request) -> None:
        try:
            worker.pipe.send((worker.n_asked % IN_HAND, request.index, request.clip))
        except OSError:
            self.todo.appendleft(request)
            self._bury(worker)
        else:
            worker.n_asked += 1
            worker.requests.append(request)

    def _listen(self) -> None:
        """Wait for an answer or the death of a worker."""
        pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        ready = connection.wait(list(pipes), timeout=PATROL_SECONDS)
        for pipe in ready:
            self._hear(pipes[pipe])
        for worker in [] if ready else [worker for worker in self.workers if not worker.process.is_alive()]:
            self._bury(worker)

    def _hear(self, worker: _Worker) -> None:
        try:
            answer = worker.pipe.recv()
        except (EOFError, OSError):
            self._bury(worker)
            return
        if answer is None:
            worker.is_up = True
            return
        row, n_samples, loaded = answer
        request = worker.requests.popleft()
        if n_samples == LONG:
            decoded = blocks_of(request.clip, self.options, loaded.warnings)
            blocks = ahead(decoded, len, self.options.max_samples)
            loaded = replace(loaded, blocks=blocks)
        elif n_samples:
            loaded = replace(loaded, waveform=torch.from_numpy(worker.memory[row, :n_samples].copy()))
        request.loaded = loaded

    def _bury(self, worker: _Worker) -> None:
        """Replace a dead worker; its clips are read again, or fail after `STRIKES`."""
        worker.process.join(PATROL_SECONDS)
        self.workers.remove(worker)
        if self.is_closed:
            return
        cause = cause_of(worker.process.exitcode)
        if not worker.is_up:
            self._warn(f"a process that was to decode ended at once ({cause})")
        elif worker.requests:
            suspect = worker.requests[0]
            suspect.strikes += 1
            if suspect.strikes == STRIKES:
                worker.requests.popleft()
                died = f"{suspect.clip.path}: {STRIKES} processes ended while they decoded it ({cause})"
                advice = "there is not enough memory, or the file is damaged in a way that its decoder does not survive"
                suspect.loaded = Loaded(suspect.index, error=AudioError(f"{died}; {advice}"))
        self.todo.extendleft(reversed(worker.requests))
        if worker.is_up:
            self._start()

    def _start(self) -> None:
        """Start one more worker; warn if the system refuses."""
        context: Any = multiprocessing.get_context(START_METHOD)
        shape = (IN_HAND, self.options.max_samples)
        n_values = shape[0] * shape[1]
        with self.starting:
            if self.is_closed:
                return
            try:
                memory = mmap.mmap(-1, 4 * n_values) if START_METHOD == "fork" else context.RawArray("f", n_values)
                ours, theirs = context.Pipe()
                arguments = (theirs, memory, shape, self.options, os.getpid())
                process = context.Process(target=_work, args=arguments, daemon=True)
                with warnings.catch_warnings(), without_signals():
                    # Python >= 3.12 warns of every fork beside threads, see `START_METHOD`.
                    warnings.simplefilter("ignore", DeprecationWarning)
                    process.start()
            except OSError as error:
                self._warn(f"no process could be started to decode ({error})")
                return
            theirs.close()
            self.workers.append(_Worker(process, ours, np.frombuffer(memory, np.float32).reshape(shape)))

    def _warn(self, reason: str) -> None:
        rest = f"{len(self.workers)} others go on" if self.workers else "this one decodes instead"
        warnings.warn(f"{reason}; {rest}", HearTransformersWarning, stacklevel=2)


def cause_of(exit_code: int | None) -> str:
    """Return why a process ended."""
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"


@contextlib.contextmanager
def without_signals() -> Iterator[None]:
    """Hold back signals from this thread and the process that it starts, until `ignore_the_terminal` there."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(pipe: connection.Connection, memory: Any, shape: tuple[int, int], options: ReadOptions, master: int) -> None:
    """Read clips in a worker process, as long as its master, of that process id, lives."""
    leave_the_terminal()
    torch.set_num_threads(1)
    if sys.platform != "win32":
        os.nice(NICENESS)
    gc.freeze()  # what came with the fork stays shared
    rows = np.frombuffer(memory, np.float32).reshape(shape)
    with contextlib.suppress(EOFError, OSError):
        pipe.send(None)
        while True:
            while not pipe.poll(PATROL_SECONDS):
                if os.getppid() != master:
                    return
            row, index, clip = pipe.recv()
            loaded = read(index, clip, options)
            n_samples = _n_samples(loaded) if loaded.blocks is None else LONG
            if loaded.waveform is not None:
                rows[row, :n_samples] = loaded.waveform.numpy()
            error = sendable(loaded.error)
            answer = Loaded(index, sha256=loaded.sha256, error=error, warnings=loaded.warnings)
            pipe.send((row, n_samples, answer))


def ignore_the_terminal() -> None:
    """Ignore Ctrl-C and hang-ups in this process: the main process handles them."""
    for number in ENDING:
        if number != signal.SIGTERM:
            signal.signal(number, signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)


def leave_the_terminal() -> None:
    """Silence this worker process: the main process handles Ctrl-C and hang-ups, and reports errors."""
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    ignore_the_terminal()
    # libmpg123 complains of the frames that are decoded before an excerpt far inside an MP3, though not of the excerpt.
    silence = os.open(os.devnull, os.O_WRONLY)
    os.dup2(silence, 2)
    os.close(silence)


def sendable(error: Exception | None) -> Exception | None:
    """Return an error if it survives pickling, else one with its text."""
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return HearTransformersError(f"{type(error).__name__}: {error}")
    return error
