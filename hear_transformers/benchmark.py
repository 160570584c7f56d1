"""PaSST beside the authors' hear21passt in one process: equal numbers first, then how much faster.

Run ``make bench``, or ``python -m hear_transformers.benchmark --help``. Both sides hold the same random weights.
Seconds on a shared machine say little; the ratio of two neighbours in one run does.
"""

from __future__ import annotations

import contextlib
import importlib
import time
import warnings
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import click
import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from . import hear, passt
from .embedder import Embedder
from .foreign import silenced

TOLERANCE = 1e-4  # of the largest magnitude, in float32; that of the golden answers
GEMM_SHAPE = (2048, 768, 3072)  # the larger matrix product of a PaSST block's MLP, over 2048 tokens


@dataclass(frozen=True, slots=True)
class Task:
    """One thing to time: "scene" or "timestamp" embeddings of a preset, on so much audio."""

    kind: str
    preset: str
    clips: int
    seconds: float


TASKS = (
    Task("scene", "base", 1, 10),
    Task("scene", "base", 8, 4),
    Task("scene", "base", 1, 30),
    Task("timestamp", "base", 1, 10),
    Task("timestamp", "base", 8, 4),
    Task("timestamp", "base2levelmel", 1, 10),
)


def embed(module: Any, task: Task, model: Any, audio: Tensor) -> Tensor:
    """Call the function of a HEAR module that a task is about; give the embeddings."""
    result = getattr(module, f"get_{task.kind}_embeddings")(audio, model)
    embeddings: Tensor = result[0] if isinstance(result, tuple) else result
    return embeddings


@contextlib.contextmanager
def contained() -> Iterator[None]:
    """Contain the authors' package, which prints and warns on every call."""
    with silenced(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def authors_model(device: str) -> Any:
    """Build the authors' base model with random weights."""
    with contained():
        wrapper = importlib.import_module("hear21passt.wrapper")
        preprocess = importlib.import_module("hear21passt.models.preprocess")
        models = importlib.import_module("hear21passt.models.passt")
        mel = preprocess.AugmentMelSTFT(
            n_mels=128, sr=32_000, win_length=800, hopsize=320, n_fft=1024, fmin=0.0, fmax=None, fmax_aug_range=2_000
        )
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            network = models.get_model("passt_s_swa_p16_128_ap476", pretrained=False)
        return wrapper.PasstBasicWrapper(mel=mel, net=network).eval().to(device)


def our_model(preset: str, theirs: Any, precision: str, device: str) -> Embedder:
    """Build our model of a preset with the weights of theirs."""
    weights = {key: value for key, value in theirs.net.state_dict().items() if key not in passt.FAMILY.unused}
    trunk = passt.PaSST(**passt.VARIANTS[preset].network)
    trunk.load_state_dict(weights)
    return Embedder(trunk, passt.VARIANTS[preset], name=("passt", preset), precision=precision).to(device)


def seconds_of(function: Callable[[], Any], repeats: int) -> float:
    """Time a function: the shortest of `repeats` runs after one to warm up."""
    function()
    times = []
    for _ in range(repeats):
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        start = time.perf_counter()
        function()
        if torch.cuda.is_available():
            torch.cuda.synchronize()
        times.append(time.perf_counter() - start)
    return min(times)


def gemm_peak(precision: torch.dtype, device: str) -> float:
    """Measure the machine's matrix product: FLOP/s."""
    rows, inner, columns = GEMM_SHAPE
    left, right = (torch.randn(shape, device=device).to(precision) for shape in ((rows, inner), (inner, columns)))
    return 2.0 * rows * inner * columns / seconds_of(lambda: left @ right, 20)


def run(task: Task, theirs: Any, repeats: int, device: str) -> list[str]:
    """Compare and time one task; give the lines of the table."""
    audio = 0.1 * torch.randn(task.clips, int(task.seconds * 32_000), generator=torch.Generator().manual_seed(0))
    with contained():
        module = importlib.import_module(f"hear21passt.{task.preset}")
        expected = embed(module, task, theirs, audio)
        their_seconds = seconds_of(lambda: embed(module, task, theirs, audio), repeats)
    name = f"{task.kind}, {task.clips} x {task.seconds:g} s"
    lines = []
    for precision, dtype in (("float32", torch.float32), ("bfloat16", torch.bfloat16)):
        ours = our_model(task.preset, theirs, precision, device)
        with FlopCounterMode(display=False) as counter:
            found = embed(hear, task, ours, audio)
        error = ((found.cpu() - expected.cpu()).abs().max() / expected.abs().max()).item()
        if precision == "float32" and error > TOLERANCE:
            raise click.ClickException(f"{name}, {task.preset}: numbers differ by {error:.1e} of the largest")
        our_seconds = seconds_of(lambda model=ours: embed(hear, task, model, audio), repeats)  # type: ignore[misc]
        flops = counter.get_total_flops() / our_seconds
        lines.append(
            f"{name:24}{task.preset:15}{precision:10}{their_seconds:9.2f}{our_seconds:9.2f}"
            f"{their_seconds / our_seconds:8.1f}{error:10.1e}{flops / 1e9:10.0f}{flops / gemm_peak(dtype, device):8.0%}"
        )
    return lines


@click.command()
@click.option("--repeats", default=3, show_default=True, help="Runs of each side; the shortest counts.")
@click.option("--device", default="cpu", show_default=True, help="Where both sides run.")
def main(repeats: int, device: str) -> None:
    """Time PaSST scene and timestamp embeddings (hop 50 ms) beside hear21passt."""
    theirs = authors_model(device)
    click.echo(
        f"torch {torch.__version__}, {torch.get_num_threads()} threads, {device}; random weights, same both sides"
    )
    click.echo(
        f"{'task':24}{'preset':15}{'precision':10}{'theirs/s':>9}{'ours/s':>9}{'ratio':>8}{'error':>10}"
        f"{'GFLOP/s':>10}{'of GEMM':>8}"
    )
    for task in TASKS:
        for line in run(task, theirs, repeats, device):
            click.echo(line)


if __name__ == "__main__":
    main()
