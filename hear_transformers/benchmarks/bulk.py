"""The cost of bulk extraction: speed beside the network alone, memory of long files, errors of low precision.

Run ``make bench-bulk``, or ``python -m hear_transformers.benchmarks.bulk --help``. Every command prints one Markdown
table. Weights are random, except for those embedded in the package.
"""

from __future__ import annotations

import math
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from itertools import cycle, islice
from pathlib import Path, PurePath
from typing import Any

import click
import numpy as np
import soundfile
import torch
from torch import Tensor

from .. import FAMILIES, catalogue
from ..audio import reading
from ..audio.workers import default_workers
from ..bulk.extract import extract
from ..bulk.sources import Source, find_sources
from ..embedding.embedder import Embedder
from ..embedding.pipeline import Clip, embed
from ..embedding.precision import PRECISIONS
from .tables import check_card, echo_table

THROUGHPUT_MODELS = ("tiny", "panns/cnn10", "passt/base")

MEMORY_MODELS: dict[str, dict[str, Any]] = {
    "efficientat/mn01_as": {"layer": 0, "hop_ms": 1_000.0},
    "tiny": {"layer": 1, "framing": "native", "hop_ms": 100.0},
}
"""Cheap models, with windows around every centre and with the network's own time axis."""

MOST_FILES = 200
"""Most clips of a given length that are written; more clips repeat them."""

ALONE_SECONDS = 5.0
"""Shortest time for which the network alone is timed."""

UNCOUNTED = 3
"""Runs that are not timed."""

LONG_RATE = 8_000
FILE_RATE = 44_100
TONE_HZ = 440.0
TONE_EVERY_SECONDS = 600


def load_named(name: str, device: str = "cpu", weights: str = "", **options: Any) -> Embedder:
    """Load a model by name, see `catalogue.resolve`; with random weights unless given or embedded."""
    family, _ = catalogue.resolve(name)
    pretrained = bool(weights) or family == next(iter(FAMILIES))
    model = catalogue.load(name, weights, device, {"pretrained": pretrained, **options})
    assert isinstance(model, Embedder)
    return model


@click.group()
def main() -> None:
    """Measure bulk extraction."""


# Speed


class Stopwatch:
    """Sums the seconds of all calls of a function."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self.function = function
        self.seconds = 0.0

    def __call__(self, *arguments: Any) -> Any:
        """Call the function."""
        start = time.perf_counter()
        result = self.function(*arguments)
        self.seconds += time.perf_counter() - start
        return result


def repeat_clips(folder: Path, count: int, seconds: float | None, scratch: Path) -> list[Source]:
    """Repeat the audio files of a folder up to a number of clips, each cut or looped to a length if given."""
    found = [Path(source.path) for source in find_sources([str(folder)], iter(())) if source.error is None]
    if not found:
        raise click.ClickException(f"{folder} holds no audio")
    if seconds is not None:
        few = found[: min(count, MOST_FILES)]
        found = [write_looped(path, seconds, scratch / f"{i}.wav") for i, path in enumerate(few)]
    return [link_to(path, scratch / f"clip-{i}{path.suffix}") for i, path in enumerate(islice(cycle(found), count))]


def link_to(path: Path, link: Path) -> Source:
    """Return a file under another name, as a clip of its own: of one that is named twice one is embedded."""
    link.symlink_to(path.absolute())
    return Source(link, PurePath(link.name))


def write_looped(path: Path, seconds: float, target: Path) -> Path:
    """Write a file cut or looped to a length."""
    samples, rate = soundfile.read(path, dtype="int16")
    soundfile.write(target, np.resize(samples, (round(seconds * rate), *samples.shape[1:])), rate)
    return target


def time_network(
    model: Embedder, waveform: Tensor, n_clips: int | None = None, seconds: float = ALONE_SECONDS
) -> float:
    """Return clips per second of the network alone, on one batch that stays on its device; None is the model's own."""
    if n_clips is not None:
        windows = model.reader(timestamps=False).plan(len(waveform)).sets  # of one clip
        model.batch_size = n_clips * sum(each.n_windows for each in windows)
    batch = waveform.to(model.device).expand(n_clips or model.batch_size_for(len(waveform), model.variant.scene), -1)
    batch = batch.contiguous()
    return len(batch) * times_a_second(lambda: model.embed_scenes(batch), seconds)


def times_a_second(run: Callable[[], Tensor], seconds: float) -> float:
    """Return how often a run is done in a second; the first do not count, in which kernels are chosen and recorded."""
    n_runs, start = -UNCOUNTED, 0.0
    while n_runs < 1 or time.perf_counter() - start < seconds:
        if n_runs == 0:
            start = time.perf_counter()
        run().sum().item()  # waits for the GPU
        n_runs += 1
    return n_runs / (time.perf_counter() - start)


def throughput_row(name: str, clips: Sequence[Source], device: str, workers: int, options: dict[str, Any]) -> list[str]:
    """Time one model, and return its row of the table."""
    model = load_named(name, device, **options)
    alone = time_network(model, reading.read(clips[0].path, model.sample_rate))
    watch = Stopwatch(model.read)
    model.read = watch  # type: ignore[assignment,method-assign]
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        report = extract(model, clips, Path(out), workers=workers)
        wall = time.perf_counter() - start
    if report.failed:
        raise click.ClickException(report.failed[0].message)
    rate = len(clips) / wall
    # Kernel launches are asynchronous.
    computing = "-" if model.device.type == "cuda" else f"{watch.seconds / wall:.0%}"
    real_time = sum(outcome.seconds or 0.0 for outcome in report.written) / wall
    speeds = f"{rate:.1f}", f"{real_time:.0f}", f"{alone:.1f}", f"{rate / alone:.0%}", computing
    return [name, model.precision, str(workers), *speeds]


@main.command()
@click.option("--audio", type=click.Path(path_type=Path, exists=True), required=True, help="Folder of clips.")
@click.option("--clips", default=500, show_default=True, help="Number of clips; files are repeated if there are fewer.")
@click.option("--seconds", type=float, help="Cut or loop clips to this length.  [default: unchanged]")
@click.option(
    "--model", "names", multiple=True, default=THROUGHPUT_MODELS, show_default=True, help="Model, as of embed-audio."
)
@click.option("--device", default="cpu", show_default=True)
@click.option("--precision", type=click.Choice(list(PRECISIONS)), default="float32", show_default=True)
@click.option("--compiled", "compile", is_flag=True, flag_value=math.inf, default=0, help="Compile the network.")
@click.option(
    "--num-workers", "workers", type=int, help="Processes that read audio.  [default: by the number of cores]"
)
def throughput(
    audio: Path,
    clips: int,
    seconds: float | None,
    names: Sequence[str],
    device: str,
    workers: int | None,
    **options: Any,
) -> None:
    """Embed clips from disk to disk like embed-audio, beside the network alone on a clip in its memory."""
    check_card(device)
    workers = default_workers(clips) if workers is None else workers
    click.echo(f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}, {clips} clips\n")
    with tempfile.TemporaryDirectory() as scratch:
        named = repeat_clips(audio, clips, seconds, Path(scratch))
        speeds = ("clips/s", "x real time", "network alone, clips/s", "of that", "computing")
        rows = (throughput_row(name, named, device, workers, options) for name in names)
        echo_table(("model", "precision", "workers", *speeds), rows)


# Memory


def write_long(path: Path, seconds: float) -> None:
    """Write a WAV file of silence with a tone now and then, sparse where the file system allows."""
    tone = (8_000 * np.sin(2 * np.pi * TONE_HZ * np.arange(LONG_RATE) / LONG_RATE)).astype("<i2")
    soundfile.write(path, np.zeros(0, np.int16), LONG_RATE, "PCM_16", format="WAV")
    header = path.stat().st_size
    n_bytes = 2 * round(seconds * LONG_RATE)
    with path.open("r+b") as file:
        for size, position in ((header - 8 + n_bytes, 4), (n_bytes, header - 4)):  # of RIFF, of its chunk "data"
            file.seek(position)
            file.write(size.to_bytes(4, "little"))
        for second in range(0, int(seconds), TONE_EVERY_SECONDS):
            file.seek(header + 2 * second * LONG_RATE)
            file.write(tone.tobytes())
        file.truncate(header + n_bytes)


# A process inherits the peak of the one that starts it, so a small one stands between.
LAUNCH = """
import resource, subprocess, sys, time  # resource: not on Windows
start = time.perf_counter()
done = subprocess.run([sys.executable, *sys.argv[1:]], stdout=subprocess.DEVNULL)
unit = 2**20 if sys.platform == "darwin" else 2**10  # of ru_maxrss
used = resource.getrusage(resource.RUSAGE_CHILDREN)
print(used.ru_maxrss / unit, time.perf_counter() - start, used.ru_utime + used.ru_stime)
sys.exit(done.returncode)
"""


def cost_of(*arguments: str) -> tuple[float, float, float]:
    """Run Python, and return the peak memory of its largest process in MiB, its seconds, and those of processors."""
    command = [sys.executable, "-c", LAUNCH, *arguments]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise click.ClickException(result.stderr)
    mebibytes, seconds, processor = map(float, result.stdout.split())
    return mebibytes, seconds, processor


def peak_mebibytes(name: str, kind: str, seconds: float, scratch: Path) -> float:
    """Return the peak memory of embedding a long file."""
    path = scratch / f"{seconds:g}.wav"
    write_long(path, seconds)
    mebibytes, *_ = cost_of("-m", f"{__package__}.bulk", "embed-one", name, kind, str(path))
    path.unlink()
    return mebibytes


@main.command(hidden=True)
@click.argument("name")
@click.argument("kind")
@click.argument("path", type=click.Path(path_type=Path))
def embed_one(name: str, kind: str, path: Path) -> None:
    """Embed one file."""
    model = load_named(name, **MEMORY_MODELS[name])
    (embedded,) = embed(model, [Clip(path)], timestamps=kind == "timestamps", workers=1)
    if embedded.embedding is None:
        raise click.ClickException(str(embedded.error))
    assert np.isfinite(embedded.embedding[-1]).all()


@main.command()
@click.option("--hours", default=10.0, show_default=True, help="Duration of the long file.")
@click.option("--minutes", default=10.0, show_default=True, help="Duration of the short one.")
def memory(hours: float, minutes: float) -> None:
    """Compare the peak memory of a long file with that of a short one, in MiB."""

    def rows() -> Iterator[list[str]]:
        with tempfile.TemporaryDirectory() as scratch:
            for name in MEMORY_MODELS:
                for kind in ("scene", "timestamps"):
                    short = peak_mebibytes(name, kind, 60 * minutes, Path(scratch))
                    long = peak_mebibytes(name, kind, 3_600 * hours, Path(scratch))
                    yield [name, kind, f"{short:.0f}", f"{long:.0f}", f"{long - short:+.0f}"]

    echo_table(("model", "embedding", f"{minutes:g} min, MiB", f"{hours:g} h, MiB", "more, MiB"), rows())


COMMAND = "from hear_transformers.cli.embed_audio import main; main()"


def one_file_rows(scratch: Path, seconds: float) -> Iterator[tuple[str, float, float]]:
    """Yield what importing PyTorch and embedding one file of noise with the embedded model cost: name, MiB, s."""
    yield "`import torch`", *cost_of("-c", "import torch")[:2]
    path = scratch / "noise.wav"
    noise = 0.1 * np.random.default_rng(0).standard_normal(round(seconds * FILE_RATE), np.float32)
    soundfile.write(path, noise, FILE_RATE)
    options = ("--device", "cpu", "--overwrite", "--out", str(scratch))
    yield f"`embed-audio`, {seconds:g} s", *cost_of("-c", COMMAND, str(path), *options)[:2]


@main.command()
@click.option("--seconds", default=10.0, show_default=True, help="Duration of the file.")
@click.option("--repeats", default=3, show_default=True, help="Runs of each; the fastest counts.")
def start(seconds: float, repeats: int) -> None:
    """Measure the peak memory and the seconds of embed-audio on one file, beside importing PyTorch alone."""
    with tempfile.TemporaryDirectory() as scratch:
        runs = [list(one_file_rows(Path(scratch), seconds)) for _ in range(repeats)]
    rows = (
        [each[0][0], f"{max(row[1] for row in each):.0f}", f"{min(row[2] for row in each):.1f}"]
        for each in zip(*runs, strict=True)
    )
    click.echo(f"torch {torch.__version__}\n")
    echo_table(("process", "peak, MiB", "s"), rows)


# Precision


def precision_rows(name: str, **options: Any) -> Iterator[list[str]]:
    """Compare scene embeddings of a few clips with those in float32."""
    exact = load_named(name, precision="float32", **options)
    generator = torch.Generator().manual_seed(0)
    loudness = torch.tensor([[1e-3], [1e-2], [1e-1], [0.3]])
    clips = loudness * torch.randn(len(loudness), 2 * exact.sample_rate, generator=generator)
    expected = exact.embed_scenes(clips)
    for precision in PRECISIONS:
        if PRECISIONS[precision] != torch.float32:  # "tf32" is the same but on CUDA
            found = load_named(name, precision=precision, **options).embed_scenes(clips)
            if not found.isfinite().all():
                yield [name, precision, "overflows", "overflows"]
                continue
            cosine = torch.cosine_similarity(expected, found).min().item()
            error = ((found - expected).abs().max() / expected.abs().max()).item()
            yield [name, precision, f"{cosine:.6f}", f"{error:.1e}"]


@main.command()
@click.option("--weights", "given", multiple=True, metavar="FAMILY/VARIANT=FILE", help="Also compare trained weights.")
def precision(given: tuple[str, ...]) -> None:
    """Compare the scene embeddings of every family in low precision with those in float32: noise, 2 s, four levels."""

    def rows() -> Iterator[list[str]]:
        for family in FAMILIES:
            yield from precision_rows(family)
        for name, _, path in (each.partition("=") for each in given):
            for _, *numbers in precision_rows(name, weights=path):
                yield [f"{name}, trained", *numbers]

    echo_table(("model", "precision", "least cosine", "largest error, of the largest number"), rows())


if __name__ == "__main__":
    main()
