"""The feed of the network beside a bare loop: processes that decode with soundfile and resample with soxr, no more.

Run ``make bench-feed``, or ``python -m hear_transformers.benchmarks.feed --help``. The pipeline goes from files to
files, with a network that does nothing. A machine that does something else too slows both: they run by turns, and give
way to it alike.
"""

from __future__ import annotations

import multiprocessing
import os
import resource
import tempfile
import time
from collections.abc import Callable, Collection, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path
from typing import Any, NamedTuple

import click
import numpy as np
import soundfile
import soxr
import torch
from torch import Tensor

from ..audio.workers import NICENESS, START_METHOD
from ..bulk.extract import extract
from ..bulk.formats import FILES, TABLES
from ..bulk.outputs import OutputOptions
from ..bulk.sources import Source
from ..embedding.embedder import Embedder
from ..networks.family import Readout, Variant
from ..networks.frontend import Waveform
from ..networks.trunk import Trunk
from .bulk import link_to
from .tables import echo_table

FILE_RATE = 44_100
MODEL_RATE = 32_000
FORMATS = {"wav": "PCM_16", "flac": "PCM_16", "mp3": "MPEG_LAYER_III", "ogg": "VORBIS"}
"""Suffix of a format, and the coding of its samples."""

N_FILES = 8
"""Files that are made of each format; clips are links to them."""

SIZE = 768
"""Numbers per embedding."""

BATCH_SIZE = 16
"""Windows in a batch, where on a CPU it would be two of 10 s, on a card at least 32."""


class Nothing(Trunk):
    """A network that returns the first samples of its windows."""

    layers = {"samples": None}  # noqa: RUF012  # as the base class declares it
    min_frames = SIZE

    def __init__(self) -> None:
        super().__init__()
        self.register_parameter("unused", torch.nn.Parameter(torch.zeros(1)))  # has the device

    def forward(self, frames: Tensor, wanted: Collection[str]) -> dict[str, Tensor]:
        """Return (batch, SIZE), see `Trunk.forward`."""
        return dict.fromkeys(wanted, frames[:, :SIZE])


def embedder_of_nothing(seconds: float) -> Embedder:
    """Build an embedder whose network does nothing, with windows of a length."""
    readout = Readout(1000.0 * seconds, ("samples",))
    spec = Waveform(sample_rate=MODEL_RATE)
    scene: dict[str, Any] = {"scene": readout, "scene_hop_ms": readout.window_ms, "timestamps": (readout,)}
    variant = Variant(checkpoint="", network={}, frontend=spec, **scene)
    model = Embedder(Nothing(), variant, name=("benchmark", "nothing"))
    model.batch_size = BATCH_SIZE
    return model


class Cost(NamedTuple):
    """Seconds of a run: of the clock, of the processor in this process, and in those that it started."""

    wall: float
    main: float
    others: float


def cost_of(run: Callable[..., None], *arguments: Any) -> Cost:
    """Measure a function whose processes have ended when it returns."""

    def now() -> tuple[float, ...]:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return time.perf_counter(), *(each.ru_utime + each.ru_stime for each in used)

    before = now()
    run(*arguments)
    return Cost(*(after - earlier for after, earlier in zip(now(), before, strict=True)))


def decode(paths: Sequence[Path]) -> None:
    """Decode and resample files, giving way to others as the workers of the pipeline do."""
    if hasattr(os, "nice"):
        os.nice(NICENESS)
    for path in paths:
        samples, rate = soundfile.read(path, dtype="float32", always_2d=True)
        soxr.resample(samples.mean(1), rate, MODEL_RATE)


def bare(paths: Sequence[Path], workers: int) -> None:
    """Decode and resample files in processes, and drop the result."""
    context: Any = multiprocessing.get_context(START_METHOD)
    processes = [context.Process(target=decode, args=(paths[i::workers],)) for i in range(workers)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
        if process.exitcode:
            raise click.ClickException("a process of the bare loop failed")


def pipeline(model: Embedder, sources: Sequence[Source], out: str, form: str, workers: int) -> None:
    """Embed files into a new folder."""
    report = extract(model, sources, out, OutputOptions(form), workers=workers)
    if report.failed:
        raise click.ClickException(report.failed[0].message)


def write_clips(folder: Path, suffix: str, seconds: float, count: int) -> list[Source]:
    """Write files of noise with a falling spectrum under a gliding tone; return as many clips as asked for."""
    rng = np.random.default_rng(0)
    t = np.arange(round(seconds * FILE_RATE)) / FILE_RATE
    paths = [folder / f"{i}.{suffix}" for i in range(N_FILES)]
    for path in paths:
        noise = np.cumsum(rng.standard_normal(len(t)))
        samples = 0.1 * noise / np.abs(noise).max() + 0.2 * np.sin(2 * np.pi * (200 + 50 * t) * t)
        samples += 0.01 * rng.standard_normal(len(t))
        soundfile.write(path, samples, FILE_RATE, FORMATS[suffix])
    links = enumerate(islice(cycle(paths), count))
    return [link_to(path, folder / f"clip-{i}.{suffix}") for i, path in links]


def row_of(suffix: str, form: str, seconds: float, clips: int, workers: int, repeats: int) -> list[str]:
    """Measure one format of audio, and return its row of the table."""
    model = embedder_of_nothing(seconds)
    with tempfile.TemporaryDirectory() as folder:
        sources = write_clips(Path(folder), suffix, seconds, clips)
        paths = [Path(source.path) for source in sources]
        costs = []
        for i in range(repeats):
            out = f"{folder}/out-{i}"
            costs.append((cost_of(bare, paths, workers), cost_of(pipeline, model, sources, out, form, workers)))
    # Whatever else the machine does only adds to each.
    alone, ours = (Cost(*map(min, zip(*each, strict=True))) for each in zip(*costs, strict=True))
    rates = [f"{clips / each.wall:.0f}" for each in (alone, ours)]
    spent = [f"{1000 * each / clips:.2f}" for each in (ours.main, alone.others, ours.others)]
    return [suffix, *rates, f"{alone.wall / ours.wall:.2f}", *spent, f"{ours.others / alone.others:.2f}"]


@click.command()
@click.option("--clips", default=400, show_default=True, help="Number of clips of each format.")
@click.option("--seconds", default=10.0, show_default=True, help="Duration of a clip.")
@click.option("--num-workers", "workers", default=2, show_default=True, help="Processes that decode, in both.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each; the fastest counts.")
@click.option("--audio", "suffixes", multiple=True, type=click.Choice(list(FORMATS)), default=list(FORMATS))
@click.option("--out", "form", type=click.Choice([*FILES, *TABLES]), default="npz", help="Format of the embeddings.")
def main(clips: int, seconds: float, workers: int, repeats: int, suffixes: Sequence[str], form: str) -> None:
    """Compare the pipeline, with a network that does nothing, to a bare loop of soundfile and soxr."""
    torch.set_num_threads(1)  # its threads wait awake for what the network would have for them
    click.echo(f"torch {torch.__version__}, {clips} clips of {seconds:g} s, {FILE_RATE} -> {MODEL_RATE} Hz, {form}\n")
    speeds = ("bare loop, clips/s", "pipeline, clips/s", "ratio")
    spent = ("main process, CPU ms a clip", "bare workers", "pipeline's workers and writer", "ratio")

    def rows() -> Iterator[list[str]]:
        return (row_of(suffix, form, seconds, clips, workers, repeats) for suffix in suffixes)

    echo_table(("audio", *speeds, *spent), rows())


if __name__ == "__main__":
    main()
