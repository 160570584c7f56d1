"""Uploaded files -> waveforms, in processes that may die of them: a lane is a process and the thread that asks it.

A process holds one file at a time, so that it is known which file it died of, and may be killed when time is up. Its
pipe is the only descriptor of the server that it keeps, it can write nothing into files, and its memory is limited,
where the system can do that.
"""

from __future__ import annotations

import contextlib
import json
import os
import pickle
import queue
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from multiprocessing import connection
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch

from ..audio.reading import AudioFile
from ..audio.workers import (
    DEADLY,
    PATROL_SECONDS,
    START_METHOD,
    cause_of,
    leave_the_terminal,
    packed,
    start_process,
)
from ..errors import AudioError

BLOCK_SECONDS = 10.0
"""Audio decoded at once: a file that goes on for longer than is allowed is noticed after so much more."""

ROOM_BYTES = 2**31
"""Memory that a process may take beside that of the server, from which it was forked, and beside waveforms."""

WAVEFORMS = 3
"""Waveforms of the longest duration that a process holds: decoded blocks, all of them joined, and what is sent."""

PART_BYTES = 2**20
"""Bytes of a waveform that are sent at once."""


class TooLongError(AudioError):
    """A sound is longer than the server takes."""


@dataclass(frozen=True, slots=True)
class Hearing:
    """What of a file is read, see `audio.reading.AudioFile`: one channel or the mean of all, also of damaged files."""

    channel: int | None = None
    keep_damaged: bool = False


@dataclass(frozen=True, slots=True)
class Task:
    """A file to decode.

    Attributes
    ----------
    path : where it lies
    name : by the client, for messages
    sample_rate : of the waveform, in Hz
    most_seconds : longer ones are refused
    hearing : what of it is read
    """

    path: Path
    name: str
    sample_rate: int
    most_seconds: float
    hearing: Hearing = Hearing()

    def named(self, text: str) -> str:
        """Return a message with the name of the client instead of ours."""
        return text.replace(str(self.path), self.name)


@dataclass(frozen=True, slots=True)
class Decoded:
    """A decoded file: (samples,) float32 at the sample rate asked for, and warnings about it that name it."""

    waveform: torch.Tensor
    warnings: tuple[str, ...] = ()


ERRORS: dict[str, type[Exception]] = {kind.__name__: kind for kind in (AudioError, TooLongError)}
"""Errors that a process may answer with; of any other a client is told nothing."""


class _Answer(NamedTuple):
    """What a process says of a file before it sends the bytes of the waveform, if there are any.

    It goes as JSON: what decodes files of strangers is not trusted with pickle, which runs what it is sent.
    """

    n_bytes: int
    warnings: list[str] = []  # noqa: RUF012  # never changed
    kind: str = ""  # of the error, a key of `ERRORS` where it is known
    error: str = ""

    @staticmethod
    def of(error: Exception) -> _Answer:
        """Return the answer that a file could not be decoded."""
        known = next((kind.__name__ for kind in type(error).__mro__ if kind.__name__ in ERRORS), "")
        return _Answer(0, [], known or type(error).__name__, str(error))

    def as_bytes(self) -> bytes:
        """Return what is sent."""
        return json.dumps(self).encode("ascii")


@dataclass(slots=True, eq=False)
class Errand:
    """A file on its way through a lane.

    Attributes
    ----------
    task : what to decode
    deadline : by `time.monotonic`, when nobody waits for it any more
    is_wanted : whether somebody still waits for it
    done : takes what was decoded, or why nothing was
    """

    task: Task
    deadline: float
    is_wanted: Callable[[], bool]
    done: Callable[[Decoded | Exception], None]


@dataclass(slots=True, eq=False)
class Decoders:
    """Some lanes, which take errands in the order in which they come.

    Parameters
    ----------
    n_lanes : processes
    longest_bytes : of a waveform
    on_death : called when a process ends at a file, or is killed
    """

    n_lanes: int
    longest_bytes: int
    on_death: Callable[[], None] = lambda: None
    _errands: queue.SimpleQueue[Errand | None] = field(default_factory=queue.SimpleQueue)
    _lanes: list[threading.Thread] = field(default_factory=list)

    def start(self) -> None:
        """Start the processes, and their threads."""
        with contextlib.suppress(ImportError):
            import av  # noqa: F401  # once, not in every process that is forked
        for number in range(self.n_lanes):
            process = _Process(self.longest_bytes, self.on_death)
            lane = threading.Thread(target=self._run, args=(process,), name=f"decodes {number}", daemon=True)
            lane.start()
            self._lanes.append(lane)

    def submit(self, errand: Errand) -> None:
        """Take an errand."""
        self._errands.put(errand)

    @property
    def are_alive(self) -> bool:
        """Whether all lanes go on."""
        return bool(self._lanes) and all(lane.is_alive() for lane in self._lanes)

    def close(self) -> None:
        """Finish all errands, and end."""
        for _ in self._lanes:
            self._errands.put(None)
        for lane in self._lanes:
            lane.join()

    def _run(self, process: _Process) -> None:
        """Decode what comes, in a thread."""
        with contextlib.closing(process):
            while (errand := self._errands.get()) is not None:
                if not errand.is_wanted():
                    continue
                try:
                    result: Decoded | Exception = process.decode(errand.task, errand.deadline)
                except Exception as error:
                    result = error
                errand.done(result)


class _Process:
    """A process that decodes one file at a time, and is replaced when it dies."""

    def __init__(self, longest_bytes: int, on_death: Callable[[], None]) -> None:
        self.longest_bytes = longest_bytes
        self.on_death = on_death
        self._start()

    def _start(self) -> None:
        arguments = self.longest_bytes, os.getpid()
        self.process, self.pipe = start_process(_work, *arguments)

    def decode(self, task: Task, deadline: float) -> Decoded:
        """Decode a file.

        Raises
        ------
        AudioError : it is not audio, is damaged, too long, or its decoder did not survive it
        TimeoutError : the deadline has passed
        """
        if not self.process.is_alive():  # it was killed while it had nothing to do
            self._replace()
        try:
            self.pipe.send_bytes(packed(task))
            answer = _Answer(*json.loads(self._receive(deadline)))
            parts = bytearray()
            while len(parts) < answer.n_bytes:
                parts += self._receive(deadline)
        except TimeoutError:
            self._replace()
            raise
        except (EOFError, OSError) as error:
            reason = self._replace()
            raise AudioError(f"{task.name}: the process that decoded it ended ({reason}); {DEADLY}") from error
        if answer.kind:
            raise ERRORS.get(answer.kind, RuntimeError)(task.named(answer.error))
        return Decoded(torch.frombuffer(parts, dtype=torch.float32), tuple(map(task.named, answer.warnings)))

    def _receive(self, deadline: float) -> bytes:
        if not self.pipe.poll(max(0.0, deadline - time.monotonic())):
            raise TimeoutError
        return self.pipe.recv_bytes()

    def _replace(self) -> str:
        """Kill the process and start another; return why it ended."""
        self.on_death()
        self.close()
        reason = cause_of(self.process.exitcode)
        self._start()
        return reason

    def close(self) -> None:
        """Kill the process."""
        self.process.kill()
        self.process.join()
        self.pipe.close()


def _work(pipe: connection.Connection, longest_bytes: int, master: int) -> None:
    """Decode files in a process of its own, as long as its master, of that process id, lives."""
    leave_the_terminal()
    if START_METHOD == "fork":
        _forget_the_server(pipe.fileno())
    _confine(WAVEFORMS * longest_bytes + ROOM_BYTES)
    torch.set_num_threads(1)
    with contextlib.suppress(EOFError, OSError):
        while True:
            while not pipe.poll(PATROL_SECONDS):
                if os.getppid() != master:
                    return
            task: Task = pickle.loads(pipe.recv_bytes())
            try:
                decoded = decode(task)
            except MemoryError:
                pipe.send_bytes(_Answer.of(AudioError(f"{task.path}: {DEADLY}")).as_bytes())
                continue
            except Exception as error:
                pipe.send_bytes(_Answer.of(error).as_bytes())
                continue
            content = decoded.waveform.numpy().data.cast("B")
            pipe.send_bytes(_Answer(content.nbytes, [*decoded.warnings]).as_bytes())
            for first in range(0, content.nbytes, PART_BYTES):
                pipe.send_bytes(content[first : first + PART_BYTES])


def _forget_the_server(pipe: int) -> None:
    """Close what was inherited: connections of clients, which would stay open, the port, files of others."""
    import resource

    most = resource.getrlimit(resource.RLIMIT_NOFILE)[0]
    os.closerange(3, pipe)
    os.closerange(pipe + 1, min(most, 2**20))


def _confine(n_bytes: int) -> None:
    """Limit what this process may do: memory beside what it began with, and nothing written to files."""
    if sys.platform != "linux":
        return
    import resource

    pages = int(Path("/proc/self/statm").read_text(encoding="ascii").split()[0])
    limits = {resource.RLIMIT_AS: pages * resource.getpagesize() + n_bytes, resource.RLIMIT_FSIZE: 0}
    for name, limit in {**limits, resource.RLIMIT_CORE: 0}.items():
        hard = resource.getrlimit(name)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(name, (limit, limit))


def decode(task: Task) -> Decoded:
    """Decode a file in this process.

    Raises
    ------
    TooLongError : it goes on for longer than it may
    AudioError : see `audio.reading.AudioFile`
    """
    warnings: list[str] = []
    heard = task.hearing
    options = {"channel": heard.channel, "keep_damaged": heard.keep_damaged}
    with AudioFile(task.path, warn=warnings.append, **options) as file:  # type: ignore[arg-type]
        if file.seconds is not None and file.seconds > task.most_seconds:
            raise _too_long(task, f"{file.seconds:.0f} s")
        most = int(task.most_seconds * task.sample_rate)
        blocks: list[np.ndarray] = []
        n_samples = 0
        with contextlib.closing(file.blocks(task.sample_rate, BLOCK_SECONDS)) as read:  # type: ignore[type-var]
            for block in read:
                n_samples += len(block)
                if n_samples > most:
                    raise _too_long(task, "more")
                blocks.append(block.numpy())
    return Decoded(torch.from_numpy(np.concatenate(blocks)), tuple(warnings))


def _too_long(task: Task, found: str) -> TooLongError:
    return TooLongError(
        f"{task.path}: {found} of audio, and this server takes {task.most_seconds:g} s; cut it into parts, or "
        "start the server with another --max-seconds"
    )
