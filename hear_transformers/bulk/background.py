"""Embeddings -> outcomes, in other processes or another thread while the next are computed, or in turn.

A file for each clip costs a third of a millisecond of Python, for which the network would wait in one interpreter.
"""

from __future__ import annotations

import contextlib
import gc
import os
import pickle
import socket
import threading
import time
import warnings
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from itertools import chain
from multiprocessing import connection
from typing import Any, NamedTuple, TypeVar

import numpy as np
import torch

from ..audio.workers import PATROL_SECONDS, Spent, leave_the_terminal, packed, sendable, start_process
from ..embedding.pipeline import Embedded
from ..errors import HearTransformersWarning

WAITING = 64
"""Embeddings that wait to be written while the next are computed, for each process that writes them."""

SENT = ANSWERS = 16
"""Most embeddings that the other process is sent, and most outcomes that it reports, at once."""

REPORT_SECONDS = 0.05
"""How long it waits for more before it reports, and how often its reports are looked for."""

T = TypeVar("T")

Clip = Embedded | tuple[Embedded, ...]
"""A clip embedded by one model, or by each of several."""

Together = Iterable[Sequence[Clip]]
"""Embeddings that are finished at the same time, and the next, and so on."""

Function = Callable[[Any], T]
"""What is done with a `Clip`."""


def in_turn(function: Function[T], embeddings: Together, spent: Spent) -> Generator[T, None, None]:
    """Apply a function to embeddings, in order, before the next are asked for."""
    for embedded in chain.from_iterable(embeddings):
        with spent.on("blocked"):
            outcome = _timed(function, embedded, spent)
        yield outcome


def _timed(function: Function[T], embedded: Clip, spent: Spent) -> T:
    """Apply a function, and add the seconds that it takes, in whatever thread."""
    start = time.perf_counter()
    try:
        return function(embedded)
    finally:
        spent.writing += time.perf_counter() - start


def in_thread(function: Function[T], embeddings: Together, spent: Spent) -> Generator[T, None, None]:
    """Apply a function to embeddings, in order, in another thread, while the next are computed."""
    waiting: deque[Future[T]] = deque()
    with ThreadPoolExecutor(1) as pool:
        for embedded in chain.from_iterable(embeddings):
            waiting.append(pool.submit(_timed, function, embedded, spent))
            while waiting and (waiting[0].done() or len(waiting) > WAITING):
                yield _awaited(waiting.popleft(), spent)
        while waiting:
            yield _awaited(waiting.popleft(), spent)


def _awaited(future: Future[T], spent: Spent) -> T:
    with spent.on("blocked"):
        return future.result()


def in_process(
    function: Function[T], embeddings: Together, spent: Spent, processes: int = 1
) -> Generator[T, None, None]:
    """Apply a function to embeddings in other processes, while the next are computed; outcomes come in order.

    The processes are forks, so that they have what the function refers to as it is now. What one was not done with when
    it was killed, and what it would have got then, is done here. After an interruption they finish what they were sent.
    They start when they are needed, so that those which decode, for which all wait, come first.
    """
    waiting: deque[tuple[Clip, _Other | None]] = deque()  # and what it was sent to
    with contextlib.ExitStack() as stack:
        others: list[_Other] = []
        turn = 0
        spent.writers = processes

        def oldest() -> T:
            embedded, other = waiting.popleft()
            if other is not None and other.answers:
                return other.answers.popleft().outcome()
            with spent.on("blocked"):
                if other is not None and (answer := other.answer()) is not None:
                    return answer.outcome()
                return _timed(function, embedded, spent)

        for together in embeddings:
            for i in range(0, len(together), SENT):  # it could not answer while it is sent too much
                if len(others) < processes:
                    others.append(_Other(stack.enter_context(_served(function)), spent))
                part, other = together[i : i + SENT], others[turn % processes]
                turn += 1
                sent_to = other if other.send(part) else None
                waiting.extend((embedded, sent_to) for embedded in part)
                while waiting and (len(waiting) > processes * WAITING or _is_over(waiting[0][1])):
                    yield oldest()
        for other in others:
            _end(other.pipe)
        while waiting:
            yield oldest()


def _is_over(other: _Other | None) -> bool:
    """Return True if the oldest outcome is there, or is to be had here."""
    return other is None or other.has_answered()


class _Answer(NamedTuple):
    """What became of one embedding: a value or an error, and the seconds that it took."""

    value: Any
    error: Exception | None
    seconds: float

    def outcome(self) -> Any:
        """Return the value, or raise the error."""
        if self.error is not None:
            raise self.error
        return self.value


class _Other:
    """The other process as seen from here."""

    def __init__(self, pipe: connection.Connection | None, spent: Spent) -> None:
        self.pipe = pipe  # None once it has ended
        self.spent = spent
        self.answers: deque[_Answer] = deque()
        self.heard = time.monotonic()

    def send(self, clips: Sequence[Clip]) -> bool:
        """Send embeddings, and return True; not if the process has ended, or if one of them is on the disk."""
        each = chain.from_iterable(clip if isinstance(clip, tuple) else (clip,) for clip in clips)
        if self.pipe is None or any(isinstance(one.embedding, np.memmap) for one in each):
            return False
        try:
            self.pipe.send_bytes(packed(clips))
        except OSError:
            return False  # what it answered before is still to be read
        return True

    def has_answered(self) -> bool:
        """Return True if the answer to what was sent first is here, or will never be; look for it now and then."""
        now = time.monotonic()
        if not self.answers and self.pipe is not None and now > self.heard + REPORT_SECONDS:
            self.heard = now
            if self.pipe.poll():
                self._receive()
        return bool(self.answers) or self.pipe is None

    def answer(self) -> _Answer | None:
        """Wait for the next answer; None if the process has ended."""
        if not self.answers:
            self._receive()
        return self.answers.popleft() if self.answers else None

    def _receive(self) -> None:
        if self.pipe is None:
            return
        try:
            answers = pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            self.pipe = None
            text = "a process that writes outputs was killed; this one writes its share instead"
            warnings.warn(text, HearTransformersWarning, stacklevel=2)
            return
        self.answers.extend(answers)
        self.spent.writing += sum(answer.seconds for answer in answers)


@contextlib.contextmanager
def _served(function: Function[Any]) -> Iterator[connection.Connection | None]:
    """Start a process that applies a function to what it is sent; end it when it is done with that."""
    started: list[tuple[Any, connection.Connection]] = []

    def start() -> None:
        with contextlib.suppress(OSError):  # this process writes instead
            started.append(start_process(_serve, function, os.getpid()))

    starting = threading.Thread(target=start)  # which Ctrl-C does not interrupt
    try:
        starting.start()
        starting.join()
        yield started[0][1] if started else None
    finally:
        starting.join()
        for process, pipe in started:
            _end(pipe)
            process.join()
            pipe.close()


def _end(pipe: connection.Connection | None) -> None:
    """End what goes to the other process; not by a message, which an interruption may have cut short."""
    if pipe is not None:
        with contextlib.suppress(OSError), socket.socket(fileno=os.dup(pipe.fileno())) as end:
            end.shutdown(socket.SHUT_WR)


def _serve(pipe: connection.Connection, function: Function[Any], master: int) -> None:
    """Apply a function to what comes, in the other process, as long as its master, of that process id, lives."""
    leave_the_terminal()
    torch.set_num_threads(1)
    gc.freeze()  # what came with the fork stays shared
    answers: list[_Answer] = []
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not pipe.poll(PATROL_SECONDS):
                if os.getppid() != master:
                    return
            for embedded in pickle.loads(pipe.recv_bytes()):
                answers.append(_answer(function, embedded))
                if len(answers) == ANSWERS:
                    pipe.send_bytes(packed(answers))
                    answers = []
            if answers and not pipe.poll(REPORT_SECONDS):
                pipe.send_bytes(packed(answers))
                answers = []
    with contextlib.suppress(OSError):
        pipe.send_bytes(packed(answers))


def _answer(function: Function[Any], embedded: Clip) -> _Answer:
    """Apply a function in the other process."""
    start = time.perf_counter()
    value, error = None, None
    try:
        value = function(embedded)
    except Exception as reason:
        error = sendable(reason)
    return _Answer(value, error, time.perf_counter() - start)
