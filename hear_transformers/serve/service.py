"""The way of a sound through a server: decoded in a lane, batched with those of other requests, answered."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import TypeVar

from ..embedding.pipeline import Embedded
from ..errors import HearTransformersError
from .batching import Batcher, Reading, Wish
from .decoding import Decoded, Decoders, Errand, Hearing, Task
from .limits import Limits
from .metrics import Metrics
from .models import Served
from .refusals import Refusal
from .uploads import Upload

T = TypeVar("T")

THREADS = 2
"""Threads that parse JSON bodies, search tables and format answers: each holds all of one in memory."""


class Service:
    """Everything behind the endpoints; enter it before requests come, and leave it when all are answered.

    Parameters
    ----------
    served : what answers
    limits : of a request, and of what is held at once

    Attributes
    ----------
    metrics : what is counted
    """

    def __init__(self, served: Served, limits: Limits) -> None:
        self.served = served
        self.limits = limits
        self.metrics = Metrics(lambda: self.n_accepted, lambda: self.batcher.n_waiting)
        self.batcher = Batcher(limits, self.metrics.batch_clips.observe)
        readings = [served.model, *([served.table.reading.model] if served.table else [])]
        longest = int(4 * limits.audio_seconds * max(model.sample_rate for model in readings))
        self.decoders = Decoders(limits.decoders, longest, self.metrics.decoder_deaths.add)
        self.threads = ThreadPoolExecutor(THREADS, "answers")
        self.n_accepted = 0  # and not answered; changed by the thread of the event loop alone
        self.is_closing = False
        self._numbers = itertools.count()

    def __enter__(self) -> Service:
        self._scratch = tempfile.TemporaryDirectory(prefix="hear_transformers-", ignore_cleanup_errors=True)
        self.decoders.start()
        self.batcher.start()
        return self

    def __exit__(self, *exception: object) -> None:
        self.is_closing = True
        self.decoders.close()
        self.batcher.close()
        self.threads.shutdown()
        self._scratch.cleanup()

    @property
    def is_ready(self) -> bool:
        """Whether requests can be answered."""
        return not self.is_closing and self.batcher.is_alive and self.decoders.are_alive

    @contextlib.contextmanager
    def accepted(self) -> Iterator[Path]:
        """Accept a request, and yield an empty folder for its sounds.

        Raises
        ------
        Refusal : there are as many requests as there may be
        """
        if self.n_accepted >= self.limits.queue:
            raise Refusal(
                429,
                f"{self.n_accepted} requests wait already, and more would only wait longer; try again later",
                "queue_full",
                "OverloadedError",
            )
        self.n_accepted += 1
        folder = Path(self._scratch.name) / str(next(self._numbers))
        try:
            folder.mkdir()
            yield folder
        finally:
            self.n_accepted -= 1
            shutil.rmtree(folder, ignore_errors=True)

    async def in_thread(self, function: Callable[..., T], *arguments: object) -> T:
        """Run what takes its time in one of a few threads."""
        return await asyncio.get_running_loop().run_in_executor(self.threads, function, *arguments)

    async def embed(
        self, uploads: Sequence[Upload], hearing: Hearing, reading: Reading, deadline: float
    ) -> list[Embedded]:
        """Embed sounds.

        Parameters
        ----------
        uploads : where they lie
        hearing : what of them is read
        reading : how they are embedded
        deadline : by `time.monotonic`, when nobody waits any more

        Raises
        ------
        AudioError, HearTransformersError : the first that failed, by its name
        """
        answers = [self._send(upload, hearing, reading, deadline) for upload in uploads]
        try:
            embedded = await asyncio.gather(*map(asyncio.wrap_future, answers))
        finally:
            for answer in answers:
                answer.cancel()  # those that nobody waits for any more are not computed
        self.metrics.audio_seconds.add(sum(each.seconds for each in embedded))
        return embedded

    def _send(self, upload: Upload, hearing: Hearing, reading: Reading, deadline: float) -> Future[Embedded]:
        """Send a sound on its way; return where its embedding, or the error, will be."""
        answer: Future[Embedded] = Future()

        def is_wanted() -> bool:
            return not answer.done() and time.monotonic() < deadline

        def take(decoded: Decoded | Exception) -> None:
            if isinstance(decoded, Exception):
                _settle(answer, decoded)
                return
            self.batcher.put(Wish(reading, decoded.waveform, is_wanted, lambda done: finish(decoded, done)))

        def finish(decoded: Decoded, done: Embedded | Exception) -> None:
            if isinstance(done, HearTransformersError):
                done = type(done)(f"{upload.name}: {done}")
            elif isinstance(done, Embedded):
                done = replace(done, warnings=(*decoded.warnings, *done.warnings))
            _settle(answer, done)

        task = Task(upload.path, upload.name, reading.model.sample_rate, self.limits.audio_seconds, hearing)
        self.decoders.submit(Errand(task, deadline, is_wanted, take))
        return answer


def _settle(answer: Future[Embedded], result: Embedded | Exception) -> None:
    """Set a result, unless nobody waits for it any more."""
    with contextlib.suppress(InvalidStateError):
        if isinstance(result, Exception):
            answer.set_exception(result)
        else:
            answer.set_result(result)
