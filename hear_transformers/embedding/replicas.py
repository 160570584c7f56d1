"""Models on several devices: a process for each, which reads and embeds its share of the clips.

    this process                              a process for each device
    clips  -> a few at a time, as asked for -> read, resampled, embedded (`pipeline.embed_each`)
    in order <- embeddings, warnings, log   <-

A device asks for clips as it needs them, so that a slow one does not hold up the others. Processes are spawned, since
one that is forked after its parent asked for CUDA cannot use it; and they are no daemons, since those may not have
children, which decode.
"""

from __future__ import annotations

import atexit
import contextlib
import logging
import multiprocessing
import os
import pickle
import queue
import signal
import sys
import tempfile
import threading
import time
import warnings
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from logging.handlers import QueueHandler
from multiprocessing import connection
from pathlib import Path
from typing import Any, NamedTuple, Protocol

import numpy as np
import torch

from ..audio.clips import Clip
from ..audio.workers import (
    PATROL_SECONDS,
    Spent,
    cause_of,
    ignore_the_terminal,
    may_have_children,
    packed,
    sendable,
    shares,
    without_signals,
)
from ..errors import HearTransformersError, HearTransformersWarning, OptionError
from .encode import encode, encode_timestamps
from .pipeline import WAITING_BYTES, Embedded, Model, Remote, embed_each, held_bytes

MOST_CLIPS = 8
"""Clips that a device is handed at once; fewer near the end, so that all devices end together."""

ASKED_FOR = 2
"""Handfuls that a device asks for before it needs them."""

MOST_ANSWERS = 64
ANSWER_SECONDS = 0.1
"""Embeddings that a device sends at once, and time after which it sends fewer."""

END_SECONDS = 5.0
"""How long a process may take to end its own workers before it is killed."""

LOG = logging.getLogger("hear_transformers")


class Load(Protocol):
    """Makes models on a device; a function that `pickle` knows by name, or a `functools.partial` of one."""

    def __call__(self, *, device: str) -> Model | Sequence[Model]:
        """Load one or several models."""


@dataclass(frozen=True, slots=True)
class Description:
    """What of a model is known where it is not, see `pipeline.Model` and `embedder.Embedder`.

    Attributes
    ----------
    places : what `columns` returns of scenes, and of embeddings along time
    made_by : what `provenance` returns
    name : family and variant, or a module of others
    """

    sample_rate: int
    scene_embedding_size: int
    layers: tuple[str, ...]
    places: tuple[dict[str, list[int]], dict[str, list[int]]]
    made_by: dict[str, Any]
    name: tuple[str, str] | str
    labels: tuple[str, ...] | None
    multi_label: bool

    @staticmethod
    def of(model: Model) -> Description:
        """Describe a model."""
        return Description(
            model.sample_rate,
            model.scene_embedding_size,
            tuple(model.layers),
            (model.columns(timestamps=False), model.columns(timestamps=True)),
            model.provenance(),
            model.name,
            getattr(model, "labels", None),
            getattr(model, "multi_label", True),
        )

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return the positions of each layer in an embedding."""
        return self.places[timestamps]

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""
        return self.made_by


@dataclass(slots=True, eq=False)
class _Process:
    """The process of a device, and the clips that it has in hand."""

    device: str
    process: Any
    pipe: connection.Connection  # our end
    in_hand: dict[int, Clip] = field(default_factory=dict)
    how: dict[str, Any] = field(default_factory=dict)  # arguments of `pipeline.embed_each`
    n_wanted: int = 0  # handfuls that it asked for and did not get
    is_running: bool = False  # in a call of `pipeline.embed_each`
    is_ending: bool = False  # it finishes what it has in hand

    def begin(self) -> None:
        """Ask it to ask for clips, if it does not."""
        if not self.is_running:
            self.is_running, self.is_ending, self.n_wanted = True, False, 0
            self._send(self.how)

    def hand(self, clips: list[tuple[int, Clip]]) -> None:
        """Hand it clips with their numbers."""
        self.n_wanted -= 1
        self.in_hand.update(clips)
        self._send(clips)

    def end(self) -> None:
        """Ask it to finish what it has, if it asks for more."""
        if self.is_running and self.n_wanted and not self.is_ending:
            self.is_ending = True
            self._send([])

    def _send(self, message: Any) -> None:
        """Send a message; if it does not arrive the process has ended, which is noticed where messages come in."""
        with contextlib.suppress(OSError):
            self.pipe.send_bytes(packed(message))

    def receive(self) -> tuple[str, Any] | None:
        """Wait for a message, its kind and content; None if the process has ended."""
        try:
            return pickle.loads(self.pipe.recv_bytes())
        except (EOFError, OSError):
            return None


class Replicas(Remote):
    """Models on several devices, each in a process of its own; `extract` and `pipeline.embed` take it as a model.

    A script that makes one needs ``if __name__ == "__main__":``, as every program does that spawns processes.

    Parameters
    ----------
    load : makes the model, see `Load`
    devices : names of devices; one that is there twice gets two processes

    Raises
    ------
    OptionError : there is no device, settings differ between the devices, or this process may not have children
    HearTransformersError : a process ended before the model was loaded

    Examples
    --------
    >>> import functools, numpy
    >>> from hear_transformers import catalogue
    >>> from hear_transformers.embedding.replicas import Replicas
    >>> load = functools.partial(catalogue.load, "tiny", options={"layer": 8})
    >>> with Replicas(load, ["cpu", "cpu"]) as model:
    ...     model.encode([numpy.zeros(16_000), numpy.zeros(8_000)], sampling_rate=16_000).shape
    (2, 192)
    """

    def __init__(self, load: Load, devices: Sequence[str]) -> None:
        if not devices:
            raise OptionError("no device was named; give names such as ['cuda:0', 'cuda:1']")
        if not may_have_children():
            raise OptionError("a daemon of multiprocessing may not have children; give one device here")
        self.devices = tuple(devices)
        self.processes: list[_Process] = []
        atexit.register(self.close)  # before multiprocessing waits for processes that nobody ended
        try:
            for i, device in enumerate(devices):
                self.processes.append(_started(load, device, self._threads(device), speaks=i == 0))
            descriptions = [self._descriptions(process) for process in self.processes]
            _check_alike(self.devices, descriptions)
        except BaseException:
            self.close()
            raise
        self.models = first = descriptions[0]
        self.sample_rate, self.scene_embedding_size = first[0].sample_rate, first[0].scene_embedding_size

    def _threads(self, device: str) -> int:
        """Return how many threads a process may compute with: processors are shared."""
        n_sharing = sum(torch.device(each).type == "cpu" for each in self.devices)
        return max(1, torch.get_num_threads() // n_sharing) if torch.device(device).type == "cpu" else 0

    encode = encode
    encode_timestamps = encode_timestamps

    def embed_each(
        self, clips: Iterable[Clip], *, workers: int, spent: Spent, **how: Any
    ) -> Generator[list[tuple[Embedded, ...]], None, None]:
        """Embed clips, see `pipeline.embed_each`; the workers are shared by the devices, whose seconds are added up."""
        if not self.processes:
            raise OptionError("the processes of these devices have ended; load the model again")
        spent.devices = len(self.processes)
        options = [how | {"workers": share} for share in shares(workers, len(self.processes))]
        run = _Run(self.processes, clips, options, spent)
        is_finished = False
        try:
            yield from run.results()
            is_finished = True
        finally:
            if not is_finished:
                self.close()

    def close(self) -> None:
        """End the processes."""
        atexit.unregister(self.close)
        processes, self.processes = self.processes, []
        for each in processes:
            each.pipe.close()  # which it notices
        for each in processes:
            each.process.join(END_SECONDS)
            if each.process.is_alive():
                each.process.kill()
                each.process.join()

    def __enter__(self) -> Replicas:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    @staticmethod
    def _descriptions(process: _Process) -> list[Description]:
        """Wait until the models of a process are loaded."""
        while True:
            message = process.receive()
            if message is None:
                process.process.join(PATROL_SECONDS)
                raise HearTransformersError(
                    f"the process of device {process.device} ended before the model was loaded "
                    f"({cause_of(process.process.exitcode)}); there may not be enough memory for one more"
                )
            if message[0] == "ready":
                return message[1]
            _pass_on(*message)


def _check_alike(devices: Sequence[str], descriptions: Sequence[Sequence[Description]]) -> None:
    """Raise OptionError if devices would make embeddings of different settings."""
    for device, others in zip(devices, descriptions, strict=True):
        for first, other in zip(descriptions[0], others, strict=True):
            ours, theirs = first.made_by, other.made_by
            differing = [key for key in ours if ours[key] != theirs.get(key)]
            if differing:
                key = differing[0]
                raise OptionError(
                    f"{key} is {ours[key]} on device {devices[0]} and {theirs.get(key)} on {device}: rows would "
                    f"differ; give {key} by name, or devices of one kind"
                )


class _Run:
    """Hands clips to processes, and puts embeddings in order."""

    def __init__(
        self, processes: list[_Process], clips: Iterable[Clip], how: Sequence[dict[str, Any]], spent: Spent
    ) -> None:
        self.processes = processes
        self.spent = spent
        self.numbered = enumerate(clips)
        self.todo: deque[tuple[int, Clip]] = deque()  # the next of them, and those of processes that ended
        self.done: dict[int, tuple[Embedded, ...]] = {}  # what waits for a clip before it
        self.done_bytes = 0
        self.next = 0
        for process, each in zip(processes, how, strict=True):
            process.how = each

    def results(self) -> Iterator[list[tuple[Embedded, ...]]]:
        """Yield the embeddings of every clip, in order."""
        while self._hand_out() or any(process.is_running for process in self.processes):
            self._listen()
            finished = []
            while self.next in self.done:
                finished.append(embedded := self.done.pop(self.next))
                self.done_bytes -= sum(map(held_bytes, embedded))
                self.next += 1
            if finished:
                yield finished

    def _hand_out(self) -> bool:
        """Hand clips to the processes that ask for some; return True if there were any to hand out."""
        n_ahead = MOST_CLIPS * ASKED_FOR * len(self.processes)
        self.todo.extend(islice(self.numbered, max(0, n_ahead - len(self.todo))))
        if not self.todo:
            for process in self.processes:
                process.end()
            return False
        for process in self.processes:
            process.begin()
        while self.todo and (asking := [each for each in self.processes if self._may_have(each)]):
            # Those that have least in hand first, so that each has some of a few.
            process = min(asking, key=lambda each: len(each.in_hand))
            n_clips = min(MOST_CLIPS, -(-len(self.todo) // (ASKED_FOR * len(self.processes))))
            process.hand([self.todo.popleft() for _ in range(n_clips)])
        return True

    def _may_have(self, process: _Process) -> bool:
        """Return whether a process asks for clips, and not too much waits for that of another, which gets on alone."""
        if not process.n_wanted or process.is_ending:
            return False
        if self.done_bytes <= WAITING_BYTES or self.next in process.in_hand:
            return True
        return not any(self.next in each.in_hand for each in self.processes)

    def _listen(self) -> None:
        """Wait for a message, or the end of a process."""
        pipes: dict[Any, _Process] = {process.pipe: process for process in self.processes}
        ready = connection.wait(list(pipes), timeout=PATROL_SECONDS)
        # Workers of a process that was killed hold its end of the pipe until they notice.
        ended = [each for each in self.processes if each.pipe not in ready and not each.process.is_alive()]
        for process in [*(pipes[pipe] for pipe in ready), *ended]:
            message = process.receive()
            if message is None:
                self._bury(process)
            else:
                self._hear(process, *message)

    def _hear(self, process: _Process, kind: str, content: Any = None) -> None:
        if kind == "want":
            process.n_wanted += 1
        elif kind == "done":
            for sent in content:
                embedded = tuple(map(_from_disk, sent))
                index = embedded[0].index
                del process.in_hand[index]
                self.done[index] = embedded
                self.done_bytes += sum(map(held_bytes, embedded))
        elif kind == "finished":
            process.is_running = False
            self.spent.add(content)
        else:
            _pass_on(kind, content)

    def _bury(self, process: _Process) -> None:
        """Pass the clips of a process that ended on to the others, or fail if there are none."""
        process.process.join(PATROL_SECONDS)
        self.processes.remove(process)
        process.pipe.close()
        clips = sorted(process.in_hand.items(), key=lambda item: item[0])
        self.todo.extendleft(reversed(clips))
        first = next((str(clip.path) for _, clip in clips if clip.path is not None), "")
        which = f"the process of device {process.device} ended ({cause_of(process.process.exitcode)})"
        had = f" with {len(clips)} clips in hand{f', {first} first' if first else ''}" if clips else ""
        if not self.processes:
            raise HearTransformersError(
                f"{which}{had}, and no other is left; there may not be enough memory, or the device fails: give fewer "
                "devices or a smaller batch size"
            )
        left = f"; {len(self.processes)} others go on" + (" with them" if clips else "")
        warnings.warn(f"{which}{had}{left}", HearTransformersWarning, stacklevel=2)


def _pass_on(kind: str, content: Any) -> None:
    """Raise, warn of or log here what came up in another process."""
    if kind == "error":
        raise content
    if kind == "warning":
        warnings.warn(content, HearTransformersWarning, stacklevel=2)
    elif kind == "log":
        logging.getLogger(content.name).handle(content)


# In the process of a device


def _started(load: Load, device: str, n_threads: int, *, speaks: bool) -> _Process:
    """Start the process of a device, which ignores Ctrl-C: this process ends it."""
    context = multiprocessing.get_context("spawn")
    ours, theirs = context.Pipe()
    level = LOG.getEffectiveLevel() if speaks else logging.WARNING
    process = context.Process(target=_serve, args=(theirs, load, device, n_threads, level), name=f"embeds on {device}")
    with without_signals():
        process.start()
    theirs.close()
    return _Process(device, process, ours)


def _serve(pipe: connection.Connection, load: Load, device: str, n_threads: int, level: int) -> None:
    """Load a model, and embed what comes, as long as the master lives."""
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))  # ends the workers too
    ignore_the_terminal()
    line = _Line(pipe)
    LOG.addHandler(_Forwarding(line))
    LOG.setLevel(level)
    LOG.propagate = False
    if n_threads:
        torch.set_num_threads(n_threads)
    if torch.device(device).type == "cuda":
        torch.cuda.set_device(device)  # what names no card, such as the memory of the workers, is of this one
    with contextlib.suppress(EOFError, OSError), warnings.catch_warnings():
        warnings.showwarning = line.warn  # type: ignore[assignment]
        line.listen()
        try:
            loaded = load(device=device)
            models = loaded if isinstance(loaded, Sequence) else [loaded]
            line.send("ready", [Description.of(model) for model in models])
            while True:
                line.embed(models)
        except Exception as error:
            line.send("error", sendable(error))


class _Line:
    """The connection of the process of a device to its master."""

    def __init__(self, pipe: connection.Connection) -> None:
        self.pipe = pipe
        self.sending = threading.Lock()
        self.inbox: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.numbers: dict[int, int] = {}  # of clips here -> of the master

    def send(self, kind: str, content: Any = None) -> None:
        """Send a message from any thread."""
        message = packed((kind, content))
        with self.sending:
            self.pipe.send_bytes(message)

    def warn(self, message: Warning | str, category: type[Warning], *place: Any) -> None:
        """Hand a warning to the master; in place of `warnings.showwarning`."""
        if issubclass(category, HearTransformersWarning):
            self.send("warning", str(message))

    def listen(self) -> None:
        """Take in messages, in another thread; end this process when its master has ended."""
        main = threading.get_ident()

        def take_in() -> None:
            with contextlib.suppress(EOFError, OSError):
                while True:
                    self.inbox.put(pickle.loads(self.pipe.recv_bytes()))
            if hasattr(signal, "pthread_kill"):  # interrupts what it waits for, and ends its workers
                signal.pthread_kill(main, signal.SIGTERM)
            else:
                os._exit(1)

        threading.Thread(target=take_in, name="hears the master", daemon=True).start()

    def embed(self, models: Sequence[Model]) -> None:
        """Embed the clips that the master hands out until it has no more."""
        how: dict[str, Any] = self.inbox.get()
        spent = Spent()
        finished: list[list[Embedded]] = []
        sent = time.monotonic()
        with contextlib.closing(embed_each(models, self._clips(), spent=spent, **how)) as results:
            for embedded in chain.from_iterable(results):
                number = self.numbers.pop(embedded[0].index)
                named = [replace(each, index=number, error=sendable(each.error)) for each in embedded]
                finished.append([_to_disk(each, how["scratch"]) for each in named])
                if len(finished) == MOST_ANSWERS or time.monotonic() > sent + ANSWER_SECONDS:
                    self.send("done", finished)
                    finished, sent = [], time.monotonic()
        self.send("done", finished)
        self.send("finished", spent)

    def _clips(self) -> Iterator[Clip]:
        """Ask for clips as they are needed."""
        n_clips = 0
        for _ in range(ASKED_FOR):
            self.send("want")
        while handful := self.inbox.get():
            self.send("want")
            for number, clip in handful:
                self.numbers[n_clips] = number
                n_clips += 1
                yield clip


class _Forwarding(QueueHandler):
    """Hands records of the log to the master."""

    def __init__(self, line: _Line) -> None:
        super().__init__(queue.SimpleQueue())  # unused
        self.line = line

    def enqueue(self, record: logging.LogRecord) -> None:
        """Send a record, whose text is made."""
        self.line.send("log", record)


# Embeddings along time of long files, which do not fit into the memory, let alone a pipe


class _OnDisk(NamedTuple):
    """An embedding in a file of float32."""

    path: Path
    shape: tuple[int, ...]


def _to_disk(embedded: Embedded, scratch: Path | None) -> Any:
    """Write an embedding to a file if it is mapped from one that nobody else can open."""
    embedding = embedded.embedding
    if not isinstance(embedding, np.memmap):
        return embedded
    handle, name = tempfile.mkstemp(dir=scratch, prefix="embedding-")
    with os.fdopen(handle, "wb") as file:
        embedding.tofile(file)
    return replace(embedded, embedding=_OnDisk(Path(name), embedding.shape))  # type: ignore[arg-type]


def _from_disk(embedded: Any) -> Embedded:
    """Map an embedding that is on the disk; its file goes with it."""
    where = embedded.embedding
    if not isinstance(where, _OnDisk):
        return embedded
    mapped = np.memmap(where.path, np.float32, "r", shape=where.shape)
    with contextlib.suppress(OSError):  # Windows keeps open files; it goes with its folder there
        where.path.unlink()
    return replace(embedded, embedding=mapped)
