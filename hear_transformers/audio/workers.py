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
import select
import signal
import sys
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import islice
from multiprocessing import connection
from pathlib import Path
from typing import Any, Generic, NamedTuple, TypeVar

import numpy as np
import torch
from torch import Tensor

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

LEAST_CHUNK, MOST_CHUNK, SENT = 4, 8, 32
"""Clips that are sent to a worker at once, and to all of them: a message costs as much as to take four clips, and more
at once would only take more memory where workers are many. Each has as many again for when it is done with those."""

ANSWER_SECONDS = 0.1
"""Time after which a worker sends what it has read of a chunk."""

LENT = 16
"""Clips that stay valid while the next are taken, see `Loaded.is_lent`."""

LISTEN_SECONDS = 5e-3
"""How often workers are listened to while their clips are taken faster than that."""

GATHER_SECONDS = 0.02
"""How long answers are gathered at most once one is there, while workers read what they have: to be woken by each takes
longer than what is done about it, as what else runs on the core has taken the caches."""

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

PINNED_BYTES = 2**20
"""Least memory of a slot that is pinned, and then twice as much, and so on: the next clip may be a little longer."""

ENDING = [getattr(signal, name) for name in ("SIGINT", "SIGTERM", "SIGHUP") if hasattr(signal, name)]
"""Signals that end a process, of a terminal or a scheduler."""


@dataclass(slots=True)
class Spent:
    """Where the time of a run goes, in s; of several devices, summed over them.

    Attributes
    ----------
    devices : that compute, each with a process
    workers : processes that read clips; 0: those of the devices do
    writers : processes, or a thread, that write outputs
    reading : in which clips were decoded, resampled and hashed, summed over workers
    resampling : of that, in which they were resampled
    waiting : in which a device waited for audio, or its process read it
    computing : in which it ran the network, or waited for its results
    writing : in which outputs were written, summed over writers
    blocked : in which nothing went on, as too many results waited to be written
    """

    devices: int = 1
    workers: int = 0
    writers: int = 1
    reading: float = 0.0
    resampling: float = 0.0
    waiting: float = 0.0
    computing: float = 0.0
    writing: float = 0.0
    blocked: float = 0.0
    _within: float = field(default=0.0, repr=False)  # what blocks within the current one took

    @contextlib.contextmanager
    def on(self, what: str) -> Iterator[None]:
        """Add the time that a block takes to an attribute, without that of blocks within it; in one thread only."""
        start, before, self._within = time.perf_counter(), self._within, 0.0
        try:
            yield
        finally:
            seconds = time.perf_counter() - start
            setattr(self, what, getattr(self, what) + seconds - self._within)
            self._within = before + seconds

    def add(self, other: Spent) -> None:
        """Add what another process spent."""
        for name in ("workers", "reading", "resampling", "waiting", "computing"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


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
            spent.resampling += sum(each.resampling for each in (loaded, *loaded.others))
            yield loaded
        return
    spent.workers += workers
    with contextlib.closing(pool), pool.pinned() if to_cuda else contextlib.nullcontext():
        yield from pool.load(clips)


def may_have_children() -> bool:
    """Return True unless this is a daemon of multiprocessing, such as a worker of a pool."""
    return not multiprocessing.current_process().daemon


def shares(workers: int, n_users: int) -> list[int]:
    """Return how many of some workers each user gets."""
    return [workers // n_users + (i < workers % n_users) for i in range(n_users)]


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


class _Layout(NamedTuple):
    """The memory that workers share: a place for each of some clips, and for each worker how many clips it has read."""

    n_slots: int
    slot_bytes: int
    n_workers: int

    @staticmethod
    def for_clips(n_slots: int, n_bytes: int, n_workers: int) -> _Layout:
        """Return the layout for clips of some bytes, which begin at pages."""
        return _Layout(n_slots, -(-n_bytes // mmap.PAGESIZE) * mmap.PAGESIZE, n_workers)

    @property
    def n_bytes(self) -> int:
        """All of it; pages that no clip was long enough for take no room."""
        return self.n_slots * self.slot_bytes + 8 * self.n_workers

    def of(self, memory: Any) -> tuple[np.ndarray, np.ndarray]:
        """Return the slots, (slots, bytes) uint8, and the counts, (workers,) int64."""
        every, end = np.frombuffer(memory, np.uint8, self.n_bytes), self.n_slots * self.slot_bytes
        return every[:end].reshape(self.n_slots, -1), every[end:].view(np.int64)


def _padded(n_bytes: int) -> int:
    """Return a multiple of 8 bytes, where any sample may begin."""
    return -(-n_bytes // 8) * 8


class _Answer(NamedTuple):
    """What a worker says of a clip; a number of samples is `LONG` if it is too long for the memory, 0 without any."""

    n_samples: int
    is_float: bool
    sample_rate: int
    sha256: str
    warnings: tuple[str, ...]
    error: Exception | None
    reading: float
    resampling: float
    others: tuple[_Answer, ...] = ()  # for `Loaded.others`, whose samples lie behind

    @property
    def n_bytes(self) -> int:
        """Memory that the samples take."""
        return _padded(max(0, self.n_samples) * (4 if self.is_float else 2))


@dataclass(slots=True, eq=False)
class _Request:
    """A clip to read; `loaded` once it is read, `strikes` counts the workers that died of it."""

    index: int
    clip: Clip
    loaded: Loaded | None = None
    strikes: int = 0


class _Pins:
    """Memory of slots that is pinned, see `_Pool.pinned`.

    To pin all of it would take as long as to read hundreds of clips. The first bytes of each are pinned in a thread,
    one slot after the other, which takes 3 ms each; more of one when a clip needs it.
    """

    def __init__(self, slots: Tensor) -> None:
        self.slots = slots  # (slots, samples) float32
        self.runtime = torch.cuda.cudart()
        self.n_bytes = [0] * len(slots)
        self.is_possible = True
        self.pinning = threading.Lock()
        device = torch.cuda.current_device()  # which every thread has for itself
        self.thread = threading.Thread(target=self._begin, args=(device,), name="pins", daemon=True)
        self.thread.start()

    def _begin(self, device: int) -> None:
        """Pin the first bytes of every slot; until then CUDA copies from it by way of memory of its own."""
        torch.cuda.set_device(device)
        for slot in range(len(self.slots)):
            with self.pinning:
                if not self.is_possible:
                    return
                if not self.n_bytes[slot]:
                    self._pin(slot, PINNED_BYTES)

    def add(self, slot: int, n_bytes: int) -> None:
        """Pin the first bytes of a slot, of which nothing is copied any more since another clip came there."""
        if n_bytes <= max(PINNED_BYTES, self.n_bytes[slot]):
            return
        wanted = PINNED_BYTES
        while wanted < n_bytes:
            wanted *= 2
        with self.pinning:
            self._unpin(slot)  # a copy from memory that is pinned in part fails
            if self.is_possible:
                self._pin(slot, wanted)

    def _pin(self, slot: int, n_bytes: int) -> None:
        wanted = min(n_bytes, self.slots[slot].nbytes)
        if int(self.runtime.cudaHostRegister(self.slots[slot].data_ptr(), wanted, 0)):
            self.is_possible = False  # only slower
            with contextlib.suppress(RuntimeError):  # PyTorch would raise the error at its next kernel
                torch.zeros(1, device="cuda")
            return
        self.n_bytes[slot] = wanted

    def remove(self) -> None:
        """Remove all of them."""
        with self.pinning:
            self.is_possible = False  # any more
        self.thread.join()
        torch.cuda.synchronize()
        for slot in range(len(self.slots)):
            self._unpin(slot)

    def _unpin(self, slot: int) -> None:
        if self.n_bytes[slot]:
            self.runtime.cudaHostUnregister(self.slots[slot].data_ptr())
            self.n_bytes[slot] = 0


@dataclass(slots=True, eq=False)
class _Worker:
    """A process that reads clips, and the clips sent to it.

    What goes through the pipe is pickled without what multiprocessing adds, which takes as long again.
    """

    number: int  # its place in `_Pool.progress`
    process: Any
    pipe: connection.Connection  # our end
    requests: deque[_Request] = field(default_factory=deque)  # sent and not answered
    is_up: bool = False  # whether it has answered at all
    n_answered: int = 0
    n_seen: int = 0  # clips that it had read at the last patrol
    n_patrols: int = 0  # since it read one, while it has clips

    def current(self, n_read: int) -> _Request:
        """Return the clip that it is at, or was when it ended, after so many that it has read."""
        return self.requests[min(n_read - self.n_answered, len(self.requests) - 1)]


class _Pool:
    """Worker processes that read clips into memory that they share with this one, replaced when they die.

    Each has its own pipe, since a shared lock would be lost with the worker that holds it. This process listens when a
    clip is taken from it, in the thread that takes it: another one would compete for the interpreter. Clips go around
    the slots of the memory in their order, so that those of a batch lie one behind the other.
    """

    def __init__(self, options: ReadOptions, n_workers: int, spent: Spent, niceness: int) -> None:
        self.options = options
        self.n_workers = n_workers
        self.spent = spent
        self.niceness = niceness
        self.chunk = min(MOST_CHUNK, max(LEAST_CHUNK, SENT // n_workers))
        self.n_ahead = 2 * self.chunk * n_workers
        self.todo: deque[_Request] = deque()
        self.is_end = False  # no more clips are to come
        self.has_suspects = False  # among them, see `_ask_about_suspects`
        self.starting = threading.Lock()
        self.is_closed = False
        self.workers: list[_Worker] = []
        self.unstarted = deque(range(n_workers))  # numbers of those that were not needed yet
        self.reading = 0.0  # seconds that one of the last clips took a worker
        self.heard = self.patrolled = time.monotonic()
        n_bytes = sum(_padded(4 * options.at(rate).max_samples) for rate in (options.sample_rate, *options.other_rates))
        self.layout = _Layout.for_clips(self.n_ahead + LENT, n_bytes, n_workers)
        self.memory = shared(self.layout.n_bytes)
        slots, self.progress = self.layout.of(self.memory)
        self.floats, self.integers = (torch.from_numpy(slots.view(dtype)) for dtype in (np.float32, np.int16))
        self.pins: _Pins | None = None
        # A program may end with clips unread: before its modules and multiprocessing's workers are taken apart.
        atexit.register(self.close)

    def load(self, clips: Iterable[Clip]) -> Iterator[Loaded]:
        """Read clips, in order."""
        numbered = enumerate(clips)
        requests: deque[_Request] = deque()  # not yielded yet
        while True:
            for index, clip in islice(numbered, self.n_ahead - len(requests)):
                requests.append(request := _Request(index, clip))
                if clip.path is None:
                    request.loaded = self._read(request)
                else:
                    self.todo.append(request)
            if not requests:
                return
            self.is_end = len(requests) < self.n_ahead
            if self.is_end or len(self.todo) >= self.chunk:
                self._ask()
            while requests[0].loaded is None:
                self._advance(requests[0])
            if time.monotonic() > self.heard + LISTEN_SECONDS:
                self._listen(0.0)
            loaded = requests.popleft().loaded
            assert loaded is not None
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
        """Keep memory where it is as clips come into it, so that CUDA can copy from it while this process goes on."""
        self.pins = _Pins(self.floats)
        try:
            yield
        finally:
            self.pins.remove()

    def _read(self, request: _Request) -> Loaded:
        with self.spent.on("waiting"):
            return read(request.index, request.clip, self.options)

    def _advance(self, request: _Request) -> None:
        """Wait for a worker that may have read a clip; read it here if there are none."""
        if self.workers:
            is_starting = self.todo and self.unstarted and not self.has_suspects
            with self.spent.on("waiting"):
                self._listen(0.0 if is_starting else PATROL_SECONDS)
            self._ask()
        else:
            self.todo.remove(request)
            request.loaded = self._read(request)

    def _ask(self) -> None:
        """Send clips to workers, as many as they take, and start one more if that is not all.

        To fork this process takes 10 ms, in which the first clips are decoded, and no more are started than clips need.
        """
        if not self.workers:
            self._start_next()
        if self.has_suspects and self._ask_about_suspects():
            return
        self._feed()
        if self.todo and self.unstarted:
            self._start_next()
            self._feed()

    def _feed(self) -> None:
        """Send clips to the workers that there are."""
        while self.todo and self.workers:
            worker = min(self.workers, key=lambda worker: len(worker.requests))
            n_clips, most = self.chunk, self.chunk
            if self.is_end:  # the last ones are shared
                n_clips = min(n_clips, -(-len(self.todo) // (len(self.workers) + len(self.unstarted))))
                most = 0 if self.unstarted else most
            elif worker.requests and len(self.todo) < n_clips:
                return
            if len(worker.requests) > most:
                return
            self._send(worker, [self.todo.popleft() for _ in range(min(n_clips, len(self.todo)))])

    def _ask_about_suspects(self) -> bool:
        """Send a clip that a worker died of by itself: several at once may have been too much for the memory.

        Return False if there are none.
        """
        in_hand = [request for worker in self.workers for request in worker.requests]
        suspects = [request for request in self.todo if request.strikes]
        if suspects and self.workers and not in_hand:
            self.todo.remove(suspects[0])
            self._send(self.workers[0], suspects[:1])
        self.has_suspects = bool(suspects) or any(request.strikes for request in in_hand)
        return self.has_suspects

    def _send(self, worker: _Worker, requests: Sequence[_Request]) -> None:
        try:
            worker.pipe.send_bytes(packed([(request.index, request.clip) for request in requests]))
        except OSError:
            self.todo.extendleft(reversed(requests))
            self._bury(worker)
        else:
            worker.requests.extend(requests)

    def _listen(self, timeout: float) -> None:
        """Wait for answers, or the death of a worker."""
        if timeout and _heard(self.workers, timeout):
            time.sleep(min(GATHER_SECONDS, self.chunk * self.reading / 2))
        while heard := _heard(self.workers, 0.0):
            for worker in heard:
                self._hear(worker)
        self.heard = time.monotonic()
        if self.heard >= self.patrolled + PATROL_SECONDS:
            self.patrolled = self.heard
            self._patrol()

    def _patrol(self) -> None:
        """Look for workers that died, or do not answer any more."""
        for worker in list(self.workers):
            n_read = int(self.progress[worker.number])
            # Counted by patrols: this process may have been away, or all have been stopped and resumed.
            worker.n_patrols = worker.n_patrols + 1 if worker.requests and n_read == worker.n_seen else 0
            worker.n_seen = n_read
            waited = worker.n_patrols * PATROL_SECONDS
            if not worker.process.is_alive():
                self._bury(worker)
            elif waited > PATIENCE_SECONDS and waited > _patience(worker.current(n_read).clip):
                worker.process.kill()
                self._bury(worker, f"given up after {waited:.0f} s, in which it was not decoded; {HANGS}")

    def _hear(self, worker: _Worker) -> None:
        """Take answers of a worker."""
        try:
            answers = pickle.loads(worker.pipe.recv_bytes())
        except (EOFError, OSError):
            self._bury(worker)
            return
        worker.is_up = True
        worker.n_patrols = 0
        self.reading = min((answer.reading for answer in answers), default=0.0)
        for answer in answers:
            request = worker.requests.popleft()
            worker.n_answered += 1
            request.loaded = self._loaded(request, answer)

    def _loaded(self, request: _Request, answer: _Answer) -> Loaded:
        """Return what a worker has read of a clip."""
        self.spent.reading += answer.reading
        slot = request.index % self.layout.n_slots
        n_bytes, others = answer.n_bytes, []
        for other, rate in zip(answer.others, self.options.other_rates, strict=True):
            others.append(self._loaded_at(request, other, slot, n_bytes, self.options.at(rate)))
            n_bytes += other.n_bytes
        if self.pins is not None and n_bytes:
            self.pins.add(slot, n_bytes)
        loaded = self._loaded_at(request, answer, slot, 0, self.options.at(self.options.sample_rate))
        return replace(loaded, others=tuple(others)) if others else loaded

    def _loaded_at(self, request: _Request, answer: _Answer, slot: int, start: int, options: ReadOptions) -> Loaded:
        """Return what a worker has read at one sample rate; its samples begin at a byte of a slot."""
        self.spent.resampling += answer.resampling
        index, clip, notes = request.index, request.clip, list(answer.warnings)
        if answer.n_samples > 0:
            slots = self.floats if answer.is_float else self.integers
            first = start // slots.itemsize
            samples = slots[slot, first : first + answer.n_samples]
            return Loaded(index, samples, None, answer.sha256, None, clip.path, notes, answer.sample_rate, is_lent=True)
        blocks = None
        if answer.n_samples == LONG:
            decoded = blocks_of(clip, options, notes, self.n_workers)
            blocks = ahead(decoded, len, options.max_samples)
        return Loaded(index, None, blocks, answer.sha256, answer.error, warnings=notes)

    def _bury(self, worker: _Worker, hanging: str = "") -> None:
        """Replace a dead worker; its clips are read again, but for one that fails: after `STRIKES`, or for hanging."""
        worker.process.join(PATROL_SECONDS)
        self.workers.remove(worker)
        cause = cause_of(worker.process.exitcode)
        if not worker.is_up:
            self._warn(f"a process that was to decode ended at once ({cause})")
        elif worker.requests:
            suspect = worker.current(int(self.progress[worker.number]))
            suspect.strikes += 1
            self.has_suspects = True
            if hanging or suspect.strikes == STRIKES:
                worker.requests.remove(suspect)
                reason = hanging or f"{STRIKES} processes ended while they decoded it ({cause}); {DEADLY}"
                suspect.loaded = Loaded(suspect.index, error=AudioError(f"{suspect.clip.path}: {reason}"))
        self.todo.extendleft(reversed(worker.requests))
        if worker.is_up:
            self._start(worker.number)

    def _start_next(self) -> None:
        if self.unstarted:
            self._start(self.unstarted.popleft())

    def _start(self, number: int) -> None:
        """Start the worker of a number in another thread.

        Ctrl-C interrupts the main thread, and so does not come between the start of a process and its entry in the list
        of those to end.
        """
        thread = threading.Thread(target=self._start_one, args=(number,))
        thread.start()
        thread.join()

    def _start_one(self, number: int) -> None:
        """Start one more worker; warn if the system refuses."""
        with self.starting:
            if self.is_closed:
                return
            self.progress[number] = 0
            try:
                arguments = (self.memory, self.layout, number, self.options, self.niceness, os.getpid())
                self.workers.append(_Worker(number, *start_process(_work, *arguments)))
            except OSError as error:
                self._warn(f"no process could be started to decode ({error})")

    def _warn(self, reason: str) -> None:
        rest = f"{len(self.workers)} others go on" if self.workers else "this one decodes instead"
        warnings.warn(f"{reason}; {rest}", HearTransformersWarning, stacklevel=2)


def _heard(workers: Sequence[_Worker], timeout: float) -> list[_Worker]:
    """Wait for answers, and return the workers that they are from, or that ended."""
    if not hasattr(select, "poll"):  # on Windows
        pipes: dict[Any, _Worker] = {worker.pipe: worker for worker in workers}
        return [pipes[pipe] for pipe in connection.wait(list(pipes), timeout)]
    by_number = {worker.pipe.fileno(): worker for worker in workers}
    poll = select.poll()  # a tenth of the time of `connection.wait`
    for number in by_number:
        poll.register(number, select.POLLIN)
    return [by_number[number] for number, _ in poll.poll(1000.0 * timeout)]


def start_process(
    target: Callable[..., None], *arguments: Any, daemon: bool = True
) -> tuple[Any, connection.Connection]:
    """Start a process that runs a function with the other end of a pipe and some arguments; return it and our end.

    Parameters
    ----------
    target, arguments : what the process runs, behind its end of the pipe
    daemon : it may have no children, and ends with this process

    Raises
    ------
    OSError : the system refuses
    """
    context: Any = multiprocessing.get_context(START_METHOD)
    ours, theirs = context.Pipe()
    process = context.Process(target=target, args=(theirs, *arguments), daemon=daemon)
    with warnings.catch_warnings(), without_signals():
        # Python >= 3.12 warns of every fork beside threads, see `START_METHOD`.
        warnings.simplefilter("ignore", DeprecationWarning)
        process.start()
    theirs.close()
    return process, ours


def shared(n_bytes: int) -> Any:
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


def _work(
    pipe: connection.Connection,
    memory: Any,
    layout: _Layout,
    number: int,
    options: ReadOptions,
    niceness: int,
    master: int,
) -> None:
    """Read clips in a worker process, as long as its master, of that process id, lives."""
    leave_the_terminal()
    torch.set_num_threads(1)
    if sys.platform != "win32":
        os.nice(niceness)
    gc.freeze()  # what came with the fork stays shared
    slots, progress = layout.of(memory)
    answers: list[_Answer] = []
    with contextlib.suppress(EOFError, OSError):
        pipe.send_bytes(packed(answers))
        while True:
            while not pipe.poll(PATROL_SECONDS):
                if os.getppid() != master:
                    return
            sent = time.perf_counter()
            for index, clip in pickle.loads(pipe.recv_bytes()):
                answers.append(_read_into(slots[index % layout.n_slots], index, clip, options))
                progress[number] += 1  # so that it is known what this process was at, if it is killed
                if time.perf_counter() > sent + ANSWER_SECONDS:
                    pipe.send_bytes(packed(answers))
                    answers, sent = [], time.perf_counter()
            if answers:
                pipe.send_bytes(packed(answers))
                answers = []


def _read_into(slot: np.ndarray, index: int, clip: Clip, options: ReadOptions) -> _Answer:
    """Read a clip into memory."""
    start = time.perf_counter()
    loaded = read(index, clip, options)
    answers: list[_Answer] = []
    n_bytes = 0
    for each in (loaded, *loaded.others):
        answers.append(_put_into(slot[n_bytes:], each))
        n_bytes += answers[-1].n_bytes
    first, *others = answers
    return first._replace(reading=time.perf_counter() - start, others=tuple(others))


def _put_into(memory: np.ndarray, loaded: Loaded) -> _Answer:
    """Store the samples that were read, and return what to say of them."""
    n_samples, is_float = LONG if loaded.blocks is not None else 0, True
    if loaded.waveform is not None:
        samples = loaded.waveform.numpy()
        n_samples, is_float = len(samples), samples.dtype == np.float32
        memory[: samples.nbytes].view(samples.dtype)[:] = samples
    told = loaded.sample_rate, loaded.sha256, tuple(loaded.warnings), sendable(loaded.error)
    return _Answer(n_samples, is_float, *told, 0.0, loaded.resampling)


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


def packed(message: Any) -> bytes:
    """Pickle a message without what multiprocessing adds: tensors in shared memory, of which there may be little."""
    return pickle.dumps(message, pickle.HIGHEST_PROTOCOL)


def sendable(error: Exception | None) -> Exception | None:
    """Return an error if it survives pickling, else one with its text."""
    if error is None:
        return None
    try:
        pickle.loads(pickle.dumps(error))
    except Exception:
        return HearTransformersError(f"{type(error).__name__}: {error}")
    return error
