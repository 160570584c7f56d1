"""All tables of a card: its matrix products, networks on audio in its memory, clips from disk, other packages.

Run ``make bench-cuda``, or ``python -m hear_transformers.benchmarks.card all``, which takes less than eight minutes:
every section is a process of its own with a time limit, and what it has printed by then counts. A section alone takes
seconds, and needs no card:

    python -m hear_transformers.benchmarks.card resident --device cpu --model efficientat/mn01_as --batch 2

Weights are random, except for those embedded in the package. Clips last 10 s; those on disk are 44.1 kHz WAV.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import cycle, islice
from pathlib import Path
from typing import Any

import click
import numpy as np
import soundfile
import torch

from .. import catalogue
from ..audio.workers import default_workers
from ..bulk.extract import extract
from ..bulk.sources import Source
from ..embedding.embedder import Embedder
from ..embedding.precision import PRECISIONS, multiplying
from ..networks import counting
from . import feed
from .bulk import link_to, load_named, time_network, times_a_second
from .peers import TIMED_PRECISIONS, measure_gemm, time_in_turns
from .tables import check_card, echo_table

RESIDENT = (
    *("passt/base", "ast/audioset_10_10", "panns/cnn14", "efficientat/mn10_as"),
    *("mast/base", "atgnn/pyr_s", "tiny"),
)
IN_FLOAT32 = ("passt/base", "panns/cnn14", "tiny")
"""Models that are also timed in float32."""

COMPILED = ("panns/cnn14", "efficientat/mn10_as", "mast/base", "passt/base", "atgnn/pyr_s")
"""Models that are also timed compiled, those that gain most first: it takes up to a minute each."""

FROM_DISK = ("tiny", "panns/cnn14", "passt/base")
ALONGSIDE = ("mast/base", "ast/audioset_10_10")

MAST_SECONDS = 10.24
"""Length of clips in the MAST paper's comparison with AST."""

CLIP_SECONDS = counting.CLIP_SECONDS
GEMM_SIZE = 8_192
"""Rows and columns of the matrices whose product is the limit: large enough for the highest rate of any card."""

N_FILES = 200
"""Files that are written; clips are links to them."""

LAYER = 8
"""Block of PaSST whose native frames are timed."""


@dataclass(frozen=True, slots=True)
class Section:
    """A part of the whole: heading, most seconds, module of this package, arguments behind its --device."""

    heading: str
    seconds: float
    module: str
    arguments: tuple[str, ...]


SECTIONS = (
    Section("Matrix products", 30, "card", ("gemm",)),
    Section("Networks, audio in the card's memory", 150, "card", ("resident",)),
    Section("From disk to disk", 90, "card", ("disk",)),
    Section("PaSST along time", 45, "card", ("timestamps",)),
    Section("MAST beside AST", 45, "card", ("mast",)),
    Section("Beside the authors' packages", 90, "peers", ("--repeats", "3")),
    Section("Compiled networks", 240, "card", ("resident", "--compiled", "--batch", "128")),
)
"""In this order; the last takes what time there is."""

ALL_SECONDS = 465.0
"""Most seconds for all sections: eight minutes, less what starting and ending takes."""


def describe(device: str) -> str:
    """Return what a table was measured on: card, PyTorch, cores."""
    name = torch.cuda.get_device_name(device) if torch.device(device).type == "cuda" else device
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{name}, torch {torch.__version__}, {cores} cores"


def operations(model: Embedder, seconds: float) -> float:
    """Return the additions and multiplications of a network for one clip, see `counting.count_macs`."""
    return 2.0 * counting.count_macs(catalogue.family(model.name[0]).FAMILY, model.variant, seconds)


def noise(model: Embedder, seconds: float) -> torch.Tensor:
    """Return noise at the rate of a model, (samples,)."""
    generator = torch.Generator().manual_seed(0)
    return 0.1 * torch.randn(round(seconds * model.sample_rate), generator=generator)


def in_words(rate: float) -> str:
    """Format a rate, to a tenth where it is small."""
    return f"{rate:,.{0 if rate >= 100 else 1}f}"


def attempted(measure: Callable[[], str]) -> str:
    """Return a cell of a table; of what fails, why: the others are measured all the same."""
    try:
        return measure()
    except torch.OutOfMemoryError:
        torch.cuda.empty_cache()
        return "out of memory"
    except Exception as error:
        return f"{type(error).__name__}: {str(error).partition(chr(10))[0][:80]}".replace("|", "/")


device_option = click.option("--device", default="cuda", show_default=True, help="Where the networks are.")
seconds_option = click.option("--seconds", default=1.0, show_default=True, help="Time for which each is repeated.")


def models_option(default: Sequence[str]) -> Callable[[Any], Any]:
    """Make the option for models."""
    shown = "As of embed-audio."
    return click.option("--model", "names", multiple=True, default=default, show_default=True, help=shown)


@click.group()
def main() -> None:
    """Measure a card, one section or all of them; every table is Markdown."""


@main.command("all")
@device_option
@click.option("--seconds", default=ALL_SECONDS, show_default=True, help="Most time for all of it.")
@click.option("--only", multiple=True, metavar="WORD", help="Sections whose command has this word.  [default: all]")
def everything(device: str, seconds: float, only: tuple[str, ...]) -> None:
    """Run every section in a process of its own, within its time."""
    check_card(device)
    click.echo(f"{describe(device)}; random weights")
    end = time.monotonic() + seconds
    with tempfile.TemporaryDirectory() as scratch:  # also of what is killed before it tidies up
        for section in SECTIONS:
            if only and not {section.module, *section.arguments} & {*only}:
                continue
            click.echo(f"\n### {section.heading}\n")
            limit = min(section.seconds, end - time.monotonic())
            click.echo(
                run(section, device, limit, scratch) if limit > 0 else "Left out: there was no time.\n", nl=False
            )
    click.echo(f"\n{seconds - (end - time.monotonic()):.0f} s in all")


def run(section: Section, device: str, limit: float, scratch: str) -> str:
    """Run a section, which prints; return what to say of how it ended, nothing of one that did well."""
    name, rest = (section.arguments[:1], section.arguments[1:]) if section.module == "card" else ((), section.arguments)
    command = [sys.executable, "-m", f"{__package__}.{section.module}", *name, "--device", device, *rest]
    environment = {**os.environ, "TMPDIR": scratch}
    try:
        done = subprocess.run(command, timeout=limit, stderr=subprocess.PIPE, text=True, check=False, env=environment)
    except subprocess.TimeoutExpired:
        return f"\nThe rest is left out: {limit:.0f} s are over.\n"
    lines = done.stderr.strip().splitlines()
    return f"\nNot measured to its end: {lines[-1] if lines else done.returncode}\n" if done.returncode else ""


@main.command()
@device_option
@click.option("--size", default=GEMM_SIZE, show_default=True, help="Rows and columns of the matrices.")
def gemm(device: str, size: int) -> None:
    """Measure the rate of large square matrix products."""
    check_card(device)
    rates = gemm_rates(device, size)
    rows = ([name, f"{size} x {size}", f"{rate / 1e12:,.4g}"] for name, rate in rates.items())
    echo_table(("precision", "matrices", "TFLOP/s"), rows)


def gemm_rates(device: str, size: int, precisions: Sequence[str] = ("bfloat16", "tf32", "float32")) -> dict[str, float]:
    """Measure matrix products in several precisions, in FLOP/s."""
    rates = {}
    for precision in precisions:
        with multiplying(precision):
            rates[precision] = measure_gemm(PRECISIONS[precision], device, (size, size, size))
    return rates


@main.command()
@device_option
@seconds_option
@models_option(())
@click.option("--batch", "batches", type=int, multiple=True, default=(8, 128, 512), show_default=True)
@click.option("--size", default=GEMM_SIZE, show_default=True, help="Rows and columns of the matrices compared with.")
@click.option("--compiled", is_flag=True, help="Compile the networks; bfloat16 alone.")
def resident(
    device: str, seconds: float, names: Sequence[str], batches: Sequence[int], size: int, compiled: bool
) -> None:
    """Embed clips that are in the device's memory, in batches of several sizes."""
    check_card(device)
    rates = gemm_rates(device, size, TIMED_PRECISIONS)
    chosen = [(name, "bfloat16") for name in names or (COMPILED if compiled else RESIDENT)]
    if not compiled:
        chosen += [(name, "float32") for name in names or IN_FLOAT32]

    def rows() -> Iterator[list[str]]:
        for name, precision in chosen:
            yield resident_row(name, device, precision, batches, rates[precision], seconds, compiled=compiled)

    columns = (f"{size} clips at once, clips/s" for size in batches)
    note = "compiled" if compiled else "as it is"
    click.echo(f"Clips of {CLIP_SECONDS:g} s, {note}; in brackets the share of the GEMM rate.\n")
    echo_table(("model", "precision", *columns), rows())


def resident_row(
    name: str, device: str, precision: str, batches: Sequence[int], gemm: float, seconds: float, *, compiled: bool
) -> list[str]:
    """Time one model, and return its row of the table."""
    model = load_named(name, device, precision=precision)
    if compiled:
        model.compile_trunk()
    per_clip = operations(model, CLIP_SECONDS)
    audio = noise(model, CLIP_SECONDS)

    def cell(n_clips: int) -> str:
        rate = time_network(model, audio, n_clips, seconds)
        return f"{in_words(rate)} ({rate * per_clip / gemm:.0%})"

    return [f"`{name}`", precision, *(attempted(partial(cell, n_clips)) for n_clips in batches)]


@main.command()
@device_option
@seconds_option
@models_option(FROM_DISK)
@click.option("--clips", default=10_000, show_default=True, help="Number of clips.")
@click.option("--files", default=N_FILES, show_default=True, help="Files that they are links to.")
@click.option("--precision", default="bfloat16", show_default=True)
@click.option("--num-workers", "workers", type=int, help="Processes that decode.  [default: by the number of cores]")
@click.option("--repeats", default=2, show_default=True, help="Runs of each; the fastest counts.")
def disk(
    device: str,
    seconds: float,
    names: Sequence[str],
    clips: int,
    files: int,
    precision: str,
    workers: int | None,
    repeats: int,
) -> None:
    """Embed clips from disk to disk, beside the network alone and beside processes that decode and resample alone."""
    check_card(device)
    workers = default_workers(clips) if workers is None else workers
    with tempfile.TemporaryDirectory() as folder:
        sources = write_clips(Path(folder), clips, files)
        paths = [Path(source.path) for source in sources]
        n_decoding = max(1, workers)
        decoders = clips / min(feed.cost_of(lambda: feed.bare(paths, n_decoding)).wall for _ in range(repeats))
        click.echo(f"{clips} clips, {workers} workers. The decoders are {n_decoding} processes with soundfile and soxr")
        click.echo(f"that do nothing else: {in_words(decoders)} clips/s.\n")

        def rows() -> Iterator[list[str]]:
            for name in names:
                model = load_named(name, device, precision=precision)
                alone = time_network(model, noise(model, CLIP_SECONDS), None, seconds)
                rate = clips / min(seconds_to_extract(model, sources, workers) for _ in range(repeats))
                shares = (f"{rate / each:.0%}" for each in (alone, decoders, min(alone, decoders)))
                yield [f"`{name}`", precision, in_words(rate), in_words(alone), *shares]

        of = ("of the network", "of the decoders", "of the lesser")
        echo_table(("model", "precision", "from disk, clips/s", "network alone, clips/s", *of), rows())


def seconds_to_extract(model: Embedder, sources: Sequence[Source], workers: int) -> float:
    """Return the seconds of embedding clips into a folder."""
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        report = extract(model, sources, Path(out), workers=workers)
        wall = time.perf_counter() - start
    if report.failed:
        raise click.ClickException(report.failed[0].message)
    return wall


def write_clips(folder: Path, clips: int, files: int) -> list[Source]:
    """Write WAV files, each another part of a long noise with a falling spectrum; return links to them."""
    n_samples = round(CLIP_SECONDS * feed.FILE_RATE)
    walk = np.cumsum(np.random.default_rng(0).standard_normal(2 * n_samples, np.float32))
    samples = (20_000 * walk / np.abs(walk).max()).astype(np.int16)
    paths = [folder / f"{i}.wav" for i in range(min(files, clips))]
    for i, path in enumerate(paths):
        start = i * n_samples // len(paths)
        soundfile.write(path, samples[start : start + n_samples], feed.FILE_RATE)
    return [link_to(path, folder / f"clip-{i}.wav") for i, path in enumerate(islice(cycle(paths), clips))]


@main.command()
@device_option
@seconds_option
@models_option(("passt/base",))
@click.option("--audio-seconds", default=480.0, show_default=True, help="Duration of the recording.")
@click.option("--precision", default="bfloat16", show_default=True)
def timestamps(device: str, seconds: float, names: Sequence[str], audio_seconds: float, precision: str) -> None:
    """Embed a recording in the device's memory every 50 ms: a window for each time, and the frames of one layer."""
    check_card(device)
    framings: tuple[dict[str, Any], ...] = ({"framing": "windowed"}, {"framing": "native", "layer": LAYER})

    def rows() -> Iterator[list[str]]:
        for name in names:
            for options in framings:
                model = load_named(name, device, precision=precision, hop_ms=50.0, **options)
                audio = noise(model, audio_seconds).to(model.device)[None]
                rate = times_a_second(lambda: model.embed_timestamps(audio)[0], seconds)  # noqa: B023  # called at once
                shown = ", ".join(f"{key} {value}" for key, value in options.items())
                yield [f"`{name}`", shown, precision, in_words(rate * audio_seconds)]

    echo_table(("model", "every 50 ms", "precision", "x real time"), rows())


@main.command()
@device_option
@models_option(ALONGSIDE)
@click.option("--batch", "batches", type=int, multiple=True, default=(8, 128), show_default=True)
@click.option("--repeats", default=3, show_default=True, help="Runs of each, by turns; the fastest counts.")
def mast(device: str, names: Sequence[str], batches: Sequence[int], repeats: int) -> None:
    """Compare two models on clips in the device's memory: how many times as fast the first is as the second."""
    check_card(device)

    def rows() -> Iterator[list[str]]:
        for precision in TIMED_PRECISIONS:
            models = [load_named(name, device, precision=precision) for name in names]
            first, second = (operations(model, MAST_SECONDS) for model in models)
            for n in batches:
                rates = list(by_turns(models, n, repeats))
                shown = map(in_words, rates)
                yield [str(n), precision, *shown, f"{rates[0] / rates[1]:.2f}", f"{second / first:.2f}"]

    first, second = names
    columns = (f"`{first}`, clips/s", f"`{second}`, clips/s", "times as fast", "times fewer MACs")
    echo_table((f"clips of {MAST_SECONDS:g} s", "precision", *columns), rows())


def by_turns(models: Sequence[Embedder], n_clips: int, repeats: int) -> Iterator[float]:
    """Yield clips per second of models that take turns."""
    runs = {}
    for model in models:
        model.batch_size = n_clips
        audio = noise(model, MAST_SECONDS).to(model.device).expand(n_clips, -1).contiguous()
        runs["/".join(model.name)] = partial(model.embed_scenes, audio)
    return (n_clips / seconds for seconds in time_in_turns(runs, repeats).values())


if __name__ == "__main__":
    main()
