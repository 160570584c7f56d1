"""Claims of the papers of MAST and ATGNN at a small scale: several labels a clip, the same clips for all, many seeds.

    python -m hear_transformers.benchmarks.claims --out RUNS --data ../shared/data

Networks of about a million parameters learn from scratch which of 23 families of sounds are in synthetic scenes, in
which one to several sound at once. Every clip is new: no network sees one twice. All networks of a seed see the same
clips in the same order, so that they are compared in pairs. MAST is compared with AST, and ATGNN's label graphs with
the same network without them.

RUNS keeps a row of `results.csv` for each network of each finished seed; running it again goes on with the next seed.
"""

from __future__ import annotations

import csv
import io
import math
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, fields, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F
from tqdm import tqdm

from .. import ast, atgnn, mast
from ..cli.failures import guarded
from ..comparison.measures import measure as measure_clusters
from ..embedding.devices import pick_device
from ..files import atomic
from ..hear import Family
from ..networks.counting import count_macs
from ..networks.family import Variant
from ..networks.trunk import Trunk
from ..training.corpus.mels import FRAMES
from ..training.corpus.stream import FAMILIES, CorpusOptions, stream
from ..training.distil.measure import read_sounds
from ..training.loop import Objective, Processes, TrainingRun
from ..training.recipes import Recipe
from ..training.tagging import mean_average_precision

NMI = ("nmi_1", "nmi_2", "nmi_3")
PRECISION = "mean_average_precision"
"""Names of results."""

FOLDER = click.Path(file_okay=False, path_type=Path)
WORKERS = "Concurrent processes that synthesise."

CLIP_SECONDS = 2.0
BATCH = 32
SCORED_BATCHES = 32  # 1,024 held-out scenes
HELD_OUT = 1_000_003  # seed of the scenes that are scored, the same for all
STEPS, SEEDS = 400, 5

RECIPE = Recipe(
    epochs=1,
    batch_size=BATCH,
    learning_rate=1e-3,
    optimiser="adamw",
    betas=(0.9, 0.98),
    weight_decay=0.05,
    decay_vectors=False,
    warm_up_steps=40,
    decay="cosine",
    gradient_norm=1.0,
    precision="float32",
)


@dataclass(frozen=True, slots=True)
class System:
    """A small network.

    Attributes
    ----------
    family : of the network
    variant : its row, whose front end hears 32 kHz as the embedded networks do
    stages : layers at the ends of its stages, or a third, two thirds and all of its depth
    """

    family: Family
    variant: Variant
    stages: tuple[str, ...]


def _system(family: Family, stages: tuple[str, ...], network: Mapping[str, Any]) -> System:
    """Build a row from that of `atgnn.MINI`, for its front end."""
    return System(family, replace(atgnn.MINI, network={**network, "n_classes": len(FAMILIES)}), stages)


PYRAMID = {**atgnn.MINI.network, "channels": (16, 32, 80, 128), "depths": (1, 1, 2, 1), "drop_path": 0.0}
SYSTEMS = {
    "AST": _system(ast.FAMILY, ("2", "4", "norm"), {"frames": FRAMES, "dim": 128, "depth": 6, "heads": 2}),
    "MAST": _system(
        mast.FAMILY, ("1", "3", "norm"), {**mast.AUDIO, "frames": FRAMES, "dim": 32, "depths": (1, 2, 2, 1)}
    ),
    "ATGNN, no label graphs": _system(atgnn.FAMILY, ("stage1", "stage2", "stage4"), {**PYRAMID, "label_depths": ()}),
    "ATGNN": _system(atgnn.FAMILY, ("stage1", "stage2", "stage4"), {**PYRAMID, "label_depths": (1, 1, 1, 1)}),
}
PAIRS = (("MAST", "AST"), ("ATGNN", "ATGNN, no label graphs"))
"""Which network is claimed to be better than which."""


class Tagging(Objective):
    """Binary cross-entropy of the families of sounds.

    Parameters
    ----------
    trunk : the network
    """

    def __init__(self, trunk: Trunk) -> None:
        super().__init__()
        self.trunk: Trunk = trunk

    def logits(self, mels: Tensor) -> Tensor:
        """Compute logits (clips, families) of log-mels (clips, n_mels, frames)."""
        return self.trunk(mels.float(), ("logits",))["logits"]

    def forward(self, batch: tuple[Tensor, Tensor]) -> dict[str, Tensor]:
        """Compute the loss of log-mels and of what is in them (clips, families)."""
        mels, truths = batch
        return {"families": F.binary_cross_entropy_with_logits(self.logits(mels), truths.float())}


@dataclass(frozen=True, slots=True)
class Result:
    """A network of one seed.

    Attributes
    ----------
    system : a key of `SYSTEMS`
    seed : of weights and clips
    steps : that it was trained for
    parameters : of the network
    macs : multiply-accumulates of a clip of 2 s
    seconds : of its training, clips excluded
    mean_average_precision : of the families in held-out scenes
    nmi_1, nmi_2, nmi_3 : normalised mutual information of ESC-10's classes and of k-means by stage
    """

    system: str
    seed: int
    steps: int
    parameters: int
    macs: int
    seconds: float
    mean_average_precision: float
    nmi_1: float
    nmi_2: float
    nmi_3: float


class Batches:
    """Scenes with the families in them, on the device of training.

    Parameters
    ----------
    device : to put them on
    workers : processes that make them
    """

    def __init__(self, device: torch.device, workers: int) -> None:
        self.device = device
        self.workers = workers

    def __call__(self, seed: int, n: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Yield `n` batches: log-mels (clips, n_mels, frames), and True where a family sounds: (clips, families)."""
        options = CorpusOptions(seed=seed, scenes=BATCH, speech=0)
        for batch in stream(options, range(n), self.workers):
            truths = torch.from_numpy(batch.scenes.labels["events"]).amax(1) > 0
            yield torch.from_numpy(batch.scenes.mels).to(self.device), truths.to(self.device)


class Claims:
    """The runs of all networks.

    Parameters
    ----------
    steps : of every network
    batches : (seed, number) -> batches
    device : of training
    data : folder with esc10/, for the clusters
    """

    def __init__(self, steps: int, batches: Batches, device: torch.device, data: Path) -> None:
        self.steps = steps
        self.batches = batches
        self.device = device
        self.data = data

    @cached_property
    def held_out(self) -> list[tuple[Tensor, Tensor]]:
        """Scenes that no network is trained on."""
        return list(self.batches(HELD_OUT, SCORED_BATCHES))

    def results(self, seed: int) -> list[Result]:
        """Train and score all networks of a seed."""
        runs = {name: self._run(system, seed) for name, system in SYSTEMS.items()}
        seconds = dict.fromkeys(runs, 0.0)
        for batch in tqdm(self.batches(seed, self.steps), desc=f"seed {seed}", total=self.steps):
            for name, run in runs.items():
                begin = time.perf_counter()
                run.advance(batch)
                seconds[name] += time.perf_counter() - begin
        return [self._result(name, seed, seconds[name], run.objective.eval()) for name, run in runs.items()]

    def _run(self, system: System, seed: int) -> TrainingRun:
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(seed)
            objective = Tagging(system.family.network(**system.variant.network))
        processes = Processes(0, 1, self.device)
        return TrainingRun(objective, RECIPE, steps_per_epoch=self.steps, seed=seed, processes=processes, settings={})

    def _result(self, name: str, seed: int, seconds: float, objective: Objective) -> Result:
        system = SYSTEMS[name]
        assert isinstance(objective, Tagging)
        return Result(
            system=name,
            seed=seed,
            steps=self.steps,
            parameters=sum(parameter.numel() for parameter in objective.parameters()),
            macs=count_macs(system.family, system.variant, CLIP_SECONDS),
            seconds=seconds,
            mean_average_precision=self._precision(objective),
            **self._clusters(system, objective.trunk),
        )

    @torch.no_grad()
    def _precision(self, objective: Tagging) -> float:
        scores = torch.cat([objective.logits(mels) for mels, _ in self.held_out])
        truths = torch.cat([truths for _, truths in self.held_out])
        return mean_average_precision(truths.float().cpu().numpy(), scores.float().cpu().numpy())

    def _clusters(self, system: System, trunk: Trunk) -> dict[str, float]:
        task = read_sounds(self.data, system.variant.frontend.sample_rate)
        classes = np.unique(task.labels, return_inverse=True)[1]
        frontend = system.variant.frontend.build()
        rows = [_means(trunk, frontend(waveform[None]).to(self.device), system.stages) for waveform in task.waveforms]
        found = [
            measure_clusters(np.stack([row[stage] for row in rows]), classes, resamples=1)["nmi"]["value"]
            for stage in system.stages
        ]
        return dict(zip(NMI, found, strict=True))


@torch.no_grad()
def _means(trunk: Trunk, mels: Tensor, stages: Sequence[str]) -> dict[str, NDArray[np.float64]]:
    """Return the mean of every stage over windows of 2 s of a clip (1, n_mels, frames), which fills the last one."""
    n = -(-mels.shape[2] // FRAMES)
    times = -(-n * FRAMES // mels.shape[2])
    repeated = mels.repeat(1, 1, times)[:, :, : n * FRAMES]  # a clip goes on from its beginning
    windows = repeated.unflatten(2, (n, FRAMES)).transpose(1, 2).flatten(0, 1)
    taps = trunk(windows, set(stages))
    return {stage: taps[stage].mean((0, 1, 2)).double().cpu().numpy() for stage in stages}


def read(path: Path) -> list[Result]:
    """Read the finished rows, none where there is no file."""
    if not path.exists():
        return []
    kinds = {each.name: {"str": str, "int": int, "float": float}[str(each.type)] for each in fields(Result)}
    with path.open(newline="") as file:
        return [Result(**{name: kinds[name](cell) for name, cell in row.items()}) for row in csv.DictReader(file)]


def write(path: Path, results: Sequence[Result]) -> None:
    """Write all finished rows."""
    with atomic(path) as file, io.TextIOWrapper(file, "utf-8", newline="") as text:
        table = csv.DictWriter(text, [each.name for each in fields(Result)])
        table.writeheader()
        table.writerows(asdict(result) for result in results)


def of_system(results: Sequence[Result], system: str) -> list[Result]:
    """Return the rows of a system by seed."""
    return sorted((result for result in results if result.system == system), key=lambda result: result.seed)


def with_interval(values: Sequence[float]) -> str:
    """Return the mean of values of several seeds and the 95 % interval of Student's t."""
    from scipy import stats  # of the extra `train`

    mean = float(np.mean(values))
    if len(values) < 2:
        return f"{mean:.3f}"
    half = float(stats.t.ppf(0.975, len(values) - 1) * np.std(values, ddof=1) / math.sqrt(len(values)))
    return f"{mean:.3f} [{mean - half:.3f}, {mean + half:.3f}]"


def lines(results: Sequence[Result]) -> Iterator[str]:
    """Yield the lines of two tables in Markdown: the networks, and the pairs of `PAIRS`."""
    yield "| network | parameters | GMACs a clip | s a step | mAP of families | NMI of ESC-10 by stage |"
    yield "|---|---:|---:|---:|---:|---|"
    for name in SYSTEMS:
        rows = of_system(results, name)
        first = rows[0]
        nmi = ", ".join(f"{np.mean([getattr(row, stage) for row in rows]):.3f}" for stage in NMI)
        seconds = np.mean([row.seconds / row.steps for row in rows])
        precision = with_interval([row.mean_average_precision for row in rows])
        yield f"| {name} | {first.parameters:,} | {first.macs / 1e9:.2f} | {seconds:.2f} | {precision} | {nmi} |"
    yield ""
    yield "| by how much is it better? | mAP of families | NMI of the last stage |"
    yield "|---|---:|---:|"
    for one, other in PAIRS:
        cells = [with_interval(differences(results, one, other, field)) for field in (PRECISION, NMI[-1])]
        yield f"| {one}, than {other} | {' | '.join(cells)} |"


def differences(results: Sequence[Result], one: str, other: str, name: str) -> list[float]:
    """Return how much larger a number is of one system than of another, for every seed."""
    pairs = zip(of_system(results, one), of_system(results, other), strict=True)
    return [getattr(mine, name) - getattr(theirs, name) for mine, theirs in pairs]


@click.command()
@click.option("--out", type=FOLDER, required=True, help="Folder of the results.")
@click.option("--data", type=FOLDER, required=True, help="Folder with esc10/, for the clusters.")
@click.option("--steps", type=click.IntRange(1), default=STEPS, show_default=True, help="Of every network.")
@click.option("--seeds", type=click.IntRange(1), default=SEEDS, show_default=True, help="From 0 on.")
@click.option("--num-workers", type=click.IntRange(1), default=1, show_default=True, help=WORKERS)
@click.option("--threads", type=click.IntRange(1), default=1, show_default=True, help="Of PyTorch.")
@guarded
def main(out: Path, data: Path, steps: int, seeds: int, num_workers: int, threads: int) -> None:
    """Compare MAST with AST, and ATGNN with itself without label graphs, on synthetic scenes; seeds go on in OUT."""
    torch.set_num_threads(threads)
    device = pick_device("auto")
    claims = Claims(steps, Batches(device, num_workers), device, data)
    path = out / "results.csv"
    results = read(path)
    if other := {result.steps for result in results} - {steps}:
        raise click.UsageError(f"{path}: rows of {min(other)} steps; give --steps {min(other)} or another --out")
    for seed in sorted(set(range(seeds)) - {result.seed for result in results}):
        results += claims.results(seed)
        write(path, results)
    click.echo("\n".join(lines(results)))


if __name__ == "__main__":
    main(prog_name="python -m hear_transformers.benchmarks.claims")
