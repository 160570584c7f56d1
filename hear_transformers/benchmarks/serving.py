"""Load on `hear-transformers serve`, over loopback: how fast it answers, what it refuses, and the memory it takes.

python -m hear_transformers.benchmarks.serving [--clips 96] [--clients 1,4,16]

The server is a process of its own, with the embedded model; clients are threads of this one, each with a connection.
The same clips are embedded by `Embedder.encode` here, in a list and one by one. Clients, server and all else on the
machine share its cores.
"""

from __future__ import annotations

import contextlib
import io
import os
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import requests
import soundfile

from ..cli.failures import guarded
from .tables import echo_table

SECONDS = (1.0, 2.0, 3.0)
"""Durations of clips, in turn."""

RATE = 32_000
"""Sample rate of clips in Hz, that of the model."""

MODEL = ("--model", "tiny", "--layer", "8")

PATIENCE_SECONDS = 300.0

QUEUE, CROWD = 8, 64
"""Requests that an overloaded server takes at a time, and clients that ask it at once."""

WARM_UP = 48
"""Clips before memory is measured: threads and their arenas come with the first batches."""

TOGETHER = 16
"""Files in a request, where there are several."""

Row = tuple[str, ...]


def make_clips(n_clips: int) -> list[bytes]:
    """Make WAV files of noise."""
    random = np.random.default_rng(0)
    clips = []
    for i in range(n_clips):
        file = io.BytesIO()
        noise = 0.1 * random.standard_normal(int(SECONDS[i % len(SECONDS)] * RATE))
        soundfile.write(file, noise, RATE, format="WAV")
        clips.append(file.getvalue())
    return clips


@contextlib.contextmanager
def serving(*options: str) -> Iterator[tuple[str, psutil.Process]]:
    """Start a server, and yield its address and its process."""
    command = [sys.executable, "-m", "hear_transformers", "serve", *MODEL, "--port", "0", *options]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        if " at http://" not in line:
            raise click.ClickException(f"the server did not start: {line}")
        try:
            yield line.split(" at ")[1].split(";")[0], psutil.Process(process.pid)
        finally:
            process.terminate()


class Clients:
    """Threads that ask a server, each over a connection of its own."""

    def __init__(self, url: str, n_clients: int) -> None:
        self.url = f"{url}/v1/embeddings"
        self.n_clients = n_clients
        self._own = threading.local()

    def ask(self, clips: Sequence[bytes]) -> tuple[int, float]:
        """Post a clip as the body, or several in a form; return the status and the seconds."""
        sent: dict[str, Any] = {"data": clips[0]}
        if len(clips) > 1:
            sent = {"files": [("file", (f"{i}.wav", clip)) for i, clip in enumerate(clips)]}
        if not hasattr(self._own, "session"):
            self._own.session = requests.Session()
        start = time.perf_counter()
        answer = self._own.session.post(self.url, **sent, timeout=PATIENCE_SECONDS)
        return answer.status_code, time.perf_counter() - start

    def ask_all(self, clips: Sequence[bytes], together: int = 1) -> tuple[list[int], list[float], float]:
        """Post all clips, so many in a request; return the statuses, the seconds of each request, and of all."""
        requested = [clips[first : first + together] for first in range(0, len(clips), together)]
        with ThreadPoolExecutor(self.n_clients) as threads:
            start = time.perf_counter()
            answers = list(threads.map(self.ask, requested))
            seconds = time.perf_counter() - start
        statuses, latencies = zip(*answers, strict=True)
        return list(statuses), list(latencies), seconds


def encode(clips: Sequence[bytes]) -> Iterator[tuple[float, float]]:
    """Embed clips in this process, as a list and then one by one; yield the seconds and those of the processor."""
    from ..tiny import load_model

    model = load_model(layer=8)
    with tempfile.TemporaryDirectory() as folder:
        paths = [Path(folder) / f"{i}.wav" for i in range(len(clips))]
        for path, clip in zip(paths, clips, strict=True):
            path.write_bytes(clip)
        model.encode(paths[:6])
        for inputs in ([paths], paths):
            start, before = time.perf_counter(), time.process_time()
            for each in inputs:
                model.encode(each)
            yield time.perf_counter() - start, time.process_time() - before


def megabytes_of(process: psutil.Process) -> float:
    """Return the memory of a server and its decoders in MB, what they share counted once."""
    everyone = [process, *process.children(recursive=True)]
    return sum(each.memory_full_info().pss for each in everyone) / 1e6


def processor_seconds(process: psutil.Process) -> float:
    """Return what a server and its decoders have computed so far, in s."""
    everyone = [process, *process.children(recursive=True)]
    return sum(times.user + times.system for times in (each.cpu_times() for each in everyone))


def row_of(
    name: str, n_clips: int, seconds: float, computing: float, of_list: float, latencies: Sequence[float] = ()
) -> Row:
    """Return the cells of one way to embed so many clips."""
    shown = ["-"] * 3
    if latencies:
        shown = [f"{1000 * np.percentile(latencies, percent):.0f}" for percent in (50, 95, 99)]
    rate = n_clips / seconds
    return name, f"{rate:.1f}", *shown, f"{rate / of_list:.2f}", f"{1000 * computing / n_clips:.0f}"


def overloaded(clips: Sequence[bytes]) -> Row:
    """Ask a server with a short queue by many clients at once; return how many were answered, refused and lost."""
    with serving("--max-queue", str(QUEUE)) as (url, _):
        statuses, _, _ = Clients(url, CROWD).ask_all(clips)
    found = Counter(statuses)
    n_others = len(clips) - found[200] - found[429]
    return f"{len(clips)}", f"{found[200]}", f"{found[429]}", f"{n_others}"


@click.command()
@click.option("--clips", "n_clips", type=click.IntRange(min=8), default=96, show_default=True)
@click.option("--clients", default="1,4,16", show_default=True, help="Numbers of clients, one after the other.")
@guarded
def main(n_clips: int, clients: str) -> None:
    """Measure a server with the embedded model."""
    numbers = [int(each) for each in clients.split(",")]
    clips = make_clips(n_clips)
    together, alone = encode(clips)
    of_list = n_clips / together[0]
    rows = [
        row_of("`model.encode` of the list", n_clips, *together, of_list),
        row_of("`model.encode` one by one", n_clips, *alone, of_list),
    ]
    with serving() as (url, process):
        Clients(url, max(numbers)).ask_all(clips[:WARM_UP])
        before = megabytes_of(process)
        for number, at_once in [*((number, 1) for number in numbers), (1, TOGETHER)]:
            computed = processor_seconds(process)
            statuses, latencies, seconds = Clients(url, number).ask_all(clips, at_once)
            computed = processor_seconds(process) - computed
            if any(status != 200 for status in statuses):
                raise click.ClickException(f"not all requests were answered: {Counter(statuses)}")
            name = f"HTTP, {number} client{'s' * (number > 1)}{f', {at_once} files a request' * (at_once > 1)}"
            rows.append(row_of(name, n_clips, seconds, computed, of_list, latencies))
        after = megabytes_of(process)
    seconds_each = statistics.mean(SECONDS)
    click.echo(f"{n_clips} clips of {seconds_each:g} s on average, {os.cpu_count()} cores:\n")
    echo_table(("way", "clips/s", "p50 ms", "p95 ms", "p99 ms", "of the list's rate", "CPU ms/clip"), rows)
    click.echo(
        f"\nMemory of the server and its decoders: {before:.0f} MB after the first requests, {after:.0f} MB after all."
    )
    click.echo(f"\nOverload, {CROWD} clients at once and a queue of {QUEUE}:\n")
    echo_table(("sent", "200", "429", "anything else"), [overloaded(clips)])


if __name__ == "__main__":
    main()
