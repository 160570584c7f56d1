"""Clips -> waveforms, in order, read by this process or ahead of it by worker processes.

PyTorch's DataLoader does not serve here: when the system kills a worker, it raises in the main thread, in the middle of
writing a file perhaps, and does not say which clip the worker was reading.
"""

from __future__ import annotations

import atexit
import contextlib
import gc
import math
import mmap
import multiprocessing
import os
import pickle
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from multiprocessing import connection
from pathlib import Path
from typing import Any, Generic, TypeVar

import numpy as np
import torch

from ..errors import AudioError, HearTransformersError, HearTransformersWarning, OptionError
from .clips import Clip, Loaded, ReadOptions, blocks_of, read

START_METHOD = "fork" if sys.platform == "linux" else "spawn"
"""How workers start. A fork starts at once, needs no main module that can be imported twice, and shares memory that
/dev/shm has no part in, which containers limit to 64 MB. It is safe beside threads and CUDA since a worker uses neither
CUDA nor PyTorch's threads. macOS's own libraries do not survive it, Windows does not have it."""

MOST_WORKERS = 32
"""More do not pay: a clip costs the main process a thirtieth of what it costs a worker."""

FEW_CLIPS = 32
"""Up to this number, clips are read by this process unless workers are asked for: starting those takes 0.1 s."""

IN_HAND = 4
"""Clips per worker that are sent to it, or read and not taken: enough for the time of a batch on a fast card, in which
this process does not listen."""

LENT = 16
"""Clips that stay valid while the next are taken, see `Loaded.is_lent`."""

LISTEN_SECONDS = 1e-3
"""How often workers are listened to while their clips are taken faster than that."""

STRIKES = 2
"""A clip fails after killing this many workers, the last one while no other worker read."""

PATROL_SECONDS = 2.0
"""How often workers and their master check that the other lives, in case a third process inherited its end of the
pipe."""

PATIENCE_SECONDS = 300.0
PATIENCE_BYTES = 2**20
"""A decoder hangs if it takes longer than this, and a second more for so many bytes of the file: at worst all of it is
hashed and decoded, over a slow network."""

NICENESS = 10
"""By how much workers give way to a network on the CPU: where it has to share a core, all its others wait for it."""

DEADLY = "there is not enough memory, or the file is damaged in a way that its decoder does not survive"
HANGS = "the file is damaged in a way that its decoder does not survive, or its disk does not answer"

LONG = -1
"""Sent by a worker instead of a number of samples if a clip is too long for the memory."""

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a process, of a terminal or a scheduler."""


@dataclass(slots=True)
class Spent:
    """Where the time of a run goes, in s.

    Attributes
    ----------
    workers : processes that read clips; 0: this one does
    reading : in which workers decoded, resampled and hashed, summed over them
    waiting : in which this process waited for audio, or read it itself
    computing : in which it ran the network, or waited for its device
    writing : in which outputs were written
    """

    workers: int = 0
    reading: float = 0.0
    waiting: float = 0.0
    computing: float = 0.0
    writing: float = 0.0

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the time that a block takes to an attribute."""
        start = time.perf_counter()
        try:
            yield
        finally:
            setattr(self, what, getattr(self, what) + time.perf_counter() - start)


T = TypeVar("T")


def default_workers(n_clips: int) -> int:
    """Return the number of processes to read `n_clips`: one per core of this process, less one for the model."""
    return 0 if n_clips <= FEW_CLIPS else _spare_cores()


def _spare_cores() -> int:
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(cores - 1, MOST_WORKERS)


def load(
    clips: Iterable[Clip], options: ReadOptions, workers: int = 0, spent: Spent | None = None, *, to_cuda: bool = False
) -> Generator[Loaded, None, None]:
    """Read clips.

    Parameters
    ----------
    clips : to read; with workers some are taken before they are needed
    options : sample rate, and what is held in memory
    workers : processes that decode, resample and hash, and threads of this process that decode a long file; 0: this
        process, and a thread for each spare core for a long file
    spent : takes the seconds of reading
    to_cuda : the samples go to a CUDA device: they are pinned, and workers do not give way

    Yields
    ------
    loaded : of every clip, in order
    """
    if workers < 0:
        raise OptionError(f"workers={workers} is too few; choose 0 or more")
    spent = Spent() if spent is None else spent
    pool = None
    if workers and may_have_children():
        try:
            pool = _Pool(options, workers, spent, 0 if to_cuda else NICENESS)
        except OSError as error:
            text = f"no memory could be shared with processes to decode ({error}); this one decodes instead"
            warnings.warn(text, HearTransformersWarning, stacklevel=2)
    if pool is None:
        threads = _spare_cores() if may_have_children() else 1
        for index, clip in enumerate(clips):
            with spent.on("waiting"):
                loaded = read(index, clip, options, threads)
            yield loaded
        return
    spent.workers = workers
    with contextlib.closing(pool), pool.pinned() if to_cuda else contextlib.nullcontext():
        yield from pool.load(clips)


def may_have_children() -> bool:
    """Return True unless this is a daemon of multiprocessing, such as a worker of a pool."""
    return not multiprocessing.current_process().daemon


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
    slot: int | None = None  # of the memory, while it is sent or read
    strikes: int = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that reads clips, and the clips sent to it.

    What goes through the pipe is pickled without what multiprocessing adds, which takes as long again.
    """

    process: Any
    pipe: connection.Connection  # our end
    requests: deque[_Request] = field(default_factory=deque)  # sent and not answered
    is_up: bool = False  # whether it has answered at all
    n_patrols: int = 0  # since its last answer, while it has clips


class _Pool:
    """Worker processes that read clips into memory that they share with this one, replaced when they die.

    Each has its own pipe, since a shared lock would be lost with the worker that holds it. This process listens when a
    clip is taken from it, in the thread that takes it: another one would compete for the interpreter.
    """

    def __init__(self, options: ReadOptions, n_workers: int, spent: Spent, niceness: int) -> None:
        self.options = options
        self.n_workers = n_workers
        self.spent = spent
        self.niceness = niceness
        self.n_slots = IN_HAND * n_workers + LENT
        self.free = deque(range(self.n_slots))
        self.lent: deque[int] = deque()
        self.todo: deque[_Request] = deque()
        self.starting = threading.Lock()
        self.is_closed = False
        self.workers: list[_Worker] = []
        self.heard = self.patrolled = time.monotonic()
        self.memory = _shared(4 * self.options.max_samples * self.n_slots)
        # (slots, bytes): pages that no clip was long enough for take no room.
        self.slots = np.frombuffer(self.memory, np.uint8).reshape(self.n_slots, -1)
        # A program may end with clips unread: before its modules and multiprocessing's workers are taken apart.
        atexit.register(self.close)

    def load(self, clips: Iterable[Clip]) -> Iterator[Loaded]:
        """Read clips, in order."""
        self._start(self.n_workers)
        numbered = enumerate(clips)
        requests: deque[_Request] = deque()  # not yielded yet
        while True:
            while len(requests) < IN_HAND * self.n_workers and (item := next(numbered, None)) is not None:
                requests.append(request := _Request(*item))
                if request.clip.path is None:
                    request.loaded = self._read(request)
                else:
                    self.todo.append(request)
            if not requests:
                return
            self._ask()
            while requests[0].loaded is None:
                self._advance(requests[0])
            if time.monotonic() > self.heard + LISTEN_SECONDS:
                self._listen(0.0)
            loaded = requests[0].loaded
            self._lend(requests.popleft())
            yield loaded

    def close(self) -> None:
        """Kill the workers."""
        atexit.unregister(self.close)
        with self.starting:
            self.is_closed = True
            workers, self.workers = self.workers, []
            for worker in workers:
                worker.process.kill()  # it only reads: there is nothing to lose
        for worker in workers:
            worker.process.join()

    @contextlib.contextmanager
    def pinned(self) -> Iterator[None]:
        """Keep the memory where it is, so that a CUDA device can copy from it while this process goes on."""
        runtime, place = torch.cuda.cudart(), self.slots.ctypes.data
        if int(runtime.cudaHostRegister(place, self.slots.nbytes, 0)):
            with contextlib.suppress(RuntimeError):  # only slower; PyTorch would raise the error at its next kernel
                torch.zeros(1, device="cuda")
            yield
            return
        try:
            yield
        finally:
            torch.cuda.synchronize()
            runtime.cudaHostUnregister(place)

    def _lend(self, request: _Request) -> None:
        """Lend the memory of a clip, and take back that of the one `LENT` before it."""
        if request.slot is not None:
            self.lent.append(request.slot)
        if len(self.lent) > LENT:
            self.free.append(self.lent.popleft())

    def _read(self, request: _Request) -> Loaded:
        with self.spent.on("waiting"):
            return read(request.index, request.clip, self.options)

    def _advance(self, request: _Request) -> None:
        """Wait for a worker that may have read a clip; read it here if there are none."""
        if self.workers:
            with self.spent.on("waiting"):
                self._listen(PATROL_SECONDS)
            self._ask()
        else:
            self.todo.remove(request)
            request.loaded = self._read(request)

    def _ask(self) -> None:
        """Send clips to workers, as many as they take."""
        if not self.todo:
            return
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
        request.slot = self.free.popleft()
        try:
            worker.pipe.send_bytes(pickle.dumps((request.slot, request.index, request.clip)))
        except OSError:
            self._take_back([request])
            self._bury(worker)
        else:
            worker.requests.append(request)

    def _take_back(self, requests: Iterable[_Request]) -> None:
        """Put clips back among those to read."""
        for request in reversed([*requests]):
            self._release(request)
            self.todo.appendleft(request)

    def _release(self, request: _Request) -> None:
        """Take back the memory of a clip that has no samples there."""
        if request.slot is not None:
            self.free.append(request.slot)
            request.slot = None

    def _listen(self, timeout: float) -> None:
        """Wait for answers, or the death of a worker."""
        pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in self.workers}
        for pipe in connection.wait(list(pipes), timeout):
            self._hear(pipes[pipe])
        self.heard = time.monotonic()
        if self.heard >= self.patrolled + PATROL_SECONDS:
            self.patrolled = self.heard
            self._patrol()

    def _patrol(self) -> None:
        """Look for workers that died, or do not answer any more."""
        for worker in list(self.workers):
            worker.n_patrols += bool(worker.requests)
            # Counted by patrols: this process may have been away, or all have been stopped and resumed.
            waited = worker.n_patrols * PATROL_SECONDS
            if not worker.process.is_alive():
                self._bury(worker)
            elif waited > PATIENCE_SECONDS and waited > _patience(worker.requests[0].clip):
                worker.process.kill()
                self._bury(worker, f"given up after {waited:.0f} s, in which it was not decoded; {HANGS}")

    def _hear(self, worker: _Worker) -> None:
        """Take an answer of a worker."""
        try:
            answer = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            self._bury(worker)
            return
        worker.n_patrols = 0
        if answer is None:
            worker.is_up = True
            return
        n_samples, dtype, seconds, loaded = answer
        request = worker.requests.popleft()
        self.spent.reading += seconds
        if n_samples > 0:
            assert request.slot is not None
            samples = self.slots[request.slot].view(dtype)[:n_samples]
            request.loaded = replace(loaded, waveform=torch.from_numpy(samples), is_lent=True)
            return
        self._release(request)
        if n_samples == LONG:
            decoded = blocks_of(request.clip, self.options, loaded.warnings, self.n_workers)
            loaded = replace(loaded, blocks=ahead(decoded, len, self.options.max_samples))
        request.loaded = loaded

    def _bury(self, worker: _Worker, hanging: str = "") -> None:
        """Replace a dead worker; its clips are read again, but for one that fails: after `STRIKES`, or for hanging."""
        worker.process.join(PATROL_SECONDS)
        self.workers.remove(worker)
        cause = _cause(worker.process.exitcode)
        if not worker.is_up:
            self._warn(f"a process that was to decode ended at once ({cause})")
        elif worker.requests:
            suspect = worker.requests[0]
            suspect.strikes += 1
            if hanging or suspect.strikes == STRIKES:
                self._release(worker.requests.popleft())
                reason = hanging or f"{STRIKES} processes ended while they decoded it ({cause}); {DEADLY}"
                suspect.loaded = Loaded(suspect.index, error=AudioError(f"{suspect.clip.path}: {reason}"))
        self._take_back(worker.requests)
        if worker.is_up:
            self._start(1)

    def _start(self, n_workers: int) -> None:
        """Start workers in another thread.

        Ctrl-C interrupts the main thread, and so does not come between the start of a process and its entry in the list
        of those to end.
        """

        def start() -> None:
            for _ in range(n_workers):
                self._start_one()

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()

    def _start_one(self) -> None:
        """Start one more worker; warn if the system refuses."""
        with self.starting:
            if self.is_closed:
                return
            try:
                arguments = (self.memory, self.n_slots, self.options, self.niceness, os.getpid())
                self.workers.append(_Worker(*start_process(_work, *arguments)))
            except OSError as error:
                self._warn(f"no process could be started to decode ({error})")

    def _warn(self, reason: str) -> None:
        rest = f"{len(self.workers)} others go on" if self.workers else "this one decodes instead"
        warnings.warn(f"{reason}; {rest}", HearTransformersWarning, stacklevel=2)


def start_process(target: Callable[..., None], *arguments: Any) -> tuple[Any, connection.Connection]:
    """Start a process that runs a function with the other end of a pipe and some arguments; return it and our end.

    Raises
    ------
    OSError : the system refuses
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=True)
    with warnings.catch_warnings(), _without_signals():
        # Python >= 3.12 warns of every fork beside threads, see `START_METHOD`.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return process, ours


def _shared(n_bytes: int) -> Any:
    """Allocate memory that workers share."""
    if START_METHOD == "fork":
        return mmap.mmap(-1, n_bytes)
    return multiprocessing.get_context(START_METHOD).RawArray("b", n_bytes)


def _patience(clip: Clip) -> float:
    """Return how many seconds a clip may take; of an address nobody knows."""
    if not isinstance(clip.path, Path):
        return math.inf
    with contextlib.suppress(OSError):
        return PATIENCE_SECONDS + clip.path.stat().st_size / PATIENCE_BYTES
    return PATIENCE_SECONDS


def _cause(exit_code: int | None) -> str:
    """Return why a process ended."""
    if exit_code is None or exit_code >= 0:
        return f"exit code {exit_code}"
    return f"killed by {signal.Signals(-exit_code).name}"


@contextlib.contextmanager
def _without_signals() -> Iterator[None]:
    """Hold back signals from this thread and the process that it starts, until `leave_the_terminal` there."""
    if not hasattr(signal, "pthread_sigmask"):  # on Windows
        yield
        return
    before = signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _work(
    pipe: connection.Connection, memory: Any, n_slots: int, options: ReadOptions, niceness: int, master: int
) -> None:
    """Read clips in a worker process, as long as its master, of that process id, lives."""
    leave_the_terminal()
    torch.set_num_threads(1)
    if sys.platform != "win32":
        os.nice(niceness)
    gc.freeze()  # what came with the fork stays shared
    slots = np.frombuffer(memory, np.uint8).reshape(n_slots, -1)
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(pickle.dumps(None))
        while True:
            while not pipe.poll(PATROL_SECONDS):
                if os.getppid() != master:
                    return
            slot, index, clip = pickle.loads(pipe.recv_bytes())
            start = time.perf_counter()
            loaded = read(index, clip, options)
            n_samples, dtype = _n_samples(loaded) if loaded.blocks is None else LONG, ""
            if loaded.waveform is not None:
                samples = loaded.waveform.numpy()
                dtype = samples.dtype.str
                slots[slot].view(dtype)[:n_samples] = samples
            answer = replace(loaded, waveform=None, blocks=None, error=sendable(loaded.error))
            pipe.send_bytes(pickle.dumps((n_samples, dtype, time.perf_counter() - start, answer)))


def leave_the_terminal() -> None:
    """Silence this worker process: the main process handles Ctrl-C and hang-ups, and reports errors."""
    for number in ENDING:
        signal.signal(number, signal.SIG_DFL if number == signal.SIGTERM else signal.SIG_IGN)
    if hasattr(signal, "pthread_sigmask"):
        signal.pthread_sigmask(signal.SIG_UNBLOCK, ENDING)
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
