"""The cluster beside the command on one machine: its overhead, and what a death in the middle costs.

    python -m hear_transformers.benchmarks.cluster overhead --audio DIR --clips 1000
    python -m hear_transformers.benchmarks.cluster deaths --audio DIR --clips 1000

Start-up is said apart: of either way, that of a run of few clips is taken off.
"""

from __future__ import annotations

import contextlib
import os
import signal
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import numpy as np
import psutil
import pyarrow.dataset
import pyarrow.parquet

from .. import catalogue
from .. import ray as on_ray
from ..audio.workers import default_workers
from ..bulk.extract import Outcome, Report, extract
from ..bulk.outputs import OutputOptions
from ..bulk.sources import Source, find_sources
from .tables import echo_table

FEW_CLIPS = 16
"""Clips of the run that tells what starting takes."""

MACHINES = 3
CPUS = 2  # of each

BLOCK_SIZE = 50
"""Clips in a block: of 1,000, as many blocks as three machines share evenly."""

STORE_BYTES = 2**27
"""Memory of Ray's store on each machine: names of files need little."""


@click.group(help=__doc__.partition("\n")[0])
def cli() -> None:
    """Group the measurements."""


def clip_options(command: Any) -> Any:
    """Add the options that say what is embedded."""
    for option in (
        click.option("--audio", multiple=True, required=True, type=click.Path(exists=True), help="Folders of clips."),
        click.option("--clips", "n_clips", type=click.IntRange(FEW_CLIPS), default=1000, show_default=True),
        click.option("--model", default="tiny", show_default=True, help="See `hear-transformers list`."),
    ):
        command = option(command)
    return command


@cli.command()
@clip_options
@click.option("--turns", type=click.IntRange(1), default=2, show_default=True, help="Runs of either way, by turns.")
def overhead(audio: tuple[str, ...], n_clips: int, model: str, turns: int) -> None:
    """Embed clips on all cores by the command's way and by Ray's; print seconds without start-up, and their ratio."""
    sources = some_clips(audio, n_clips)
    on_ray.start(None)
    rows = []
    with tempfile.TemporaryDirectory() as scratch:
        for turn in range(turns):
            plain, plain_start = without_start(lambda some, out: on_one(some, out, model), sources, scratch)
            ray, ray_start = without_start(lambda some, out: on_cluster(some, out, model), sources, scratch)
            rows.append([turn + 1, f"{plain:.1f}", f"{plain_start:.1f}", f"{ray:.1f}", f"{ray_start:.1f}", ray / plain])
    header = ["turn", "one machine, s", "its start", "Ray, s", "its start", "ratio"]
    click.echo(f"{len(sources)} clips, {model}, {os.cpu_count()} cores, without the start of either\n")
    echo_table(header, [[*map(str, row[:-1]), f"{row[-1]:.2f}"] for row in rows])


@cli.command()
@clip_options
def deaths(audio: tuple[str, ...], n_clips: int, model: str) -> None:
    """Embed clips on three machines, end one of them and an actor of another, and compare the rows."""
    sources = some_clips(audio, n_clips)
    with tempfile.TemporaryDirectory() as scratch, three_machines() as cluster:
        table = Path(scratch, "plain.parquet")
        on_one(sources, table, model)
        rows = [run(cluster, sources, Path(scratch, "out"), table, model, is_deadly=True)]
        rows.append(run(cluster, sources, Path(scratch, "out"), table, model, is_deadly=False))
    click.echo(f"{len(sources)} clips, {model}, {MACHINES} machines of {CPUS} CPUs, all on this one\n")
    echo_table(["run", "written", "skipped", "failed", "largest difference"], rows)


def run(cluster: Any, sources: list[Source], out: Path, table: Path, model: str, *, is_deadly: bool) -> list[str]:
    """Embed on the cluster, and return a row of the table."""
    machine = cluster.add_node(num_cpus=CPUS, object_store_memory=STORE_BYTES) if is_deadly else None
    n_seen = 0

    def kill_by_and_by(outcome: Outcome) -> None:
        nonlocal n_seen
        n_seen += 1
        if machine and n_seen == len(sources) // 4:
            cluster.remove_node(machine, allow_graceful=False)
        if machine and n_seen == len(sources) // 2:
            os.kill(actors()[0].pid, signal.SIGKILL)

    report = on_cluster(sources, out, model, cores=CPUS, on_outcome=kill_by_and_by)
    name = "a machine and an actor killed" if is_deadly else "the same again"
    counts = [str(len(each)) for each in (report.written, report.skipped, report.failed)]
    return [name, *counts, f"{largest_difference(out, table):.1e}"]


def some_clips(audio: tuple[str, ...], n_clips: int) -> list[Source]:
    """Return clips of folders, drawn from all of them."""
    found = find_sources(audio)
    if len(found) < n_clips:
        raise click.UsageError(f"--audio has {len(found)} files; give more folders, or --clips {len(found)}")
    chosen = np.random.default_rng(0).permutation(len(found))[:n_clips]
    return [found[i] for i in sorted(chosen)]


def without_start(embed: Any, sources: list[Source], scratch: str) -> tuple[float, float]:
    """Return the seconds that clips take beyond those of few clips, and the latter: what starting takes."""
    seconds = []
    for some in (sources[:FEW_CLIPS], sources):
        with tempfile.TemporaryDirectory(dir=scratch) as folder:
            began = time.perf_counter()
            report = embed(some, Path(folder, "out.parquet"))
            seconds.append(time.perf_counter() - began)
        assert len(report.written) == len(some), report.failed
    return seconds[1] - seconds[0], seconds[0]


def on_one(sources: list[Source], table: Path, model: str) -> Report:
    """Embed clips as the command does."""
    loaded = catalogue.load(model, "", "cpu")
    return extract(loaded, sources, table, OutputOptions("parquet"), workers=default_workers(len(sources)))


def on_cluster(sources: list[Source], out: Path, model: str, **options: Any) -> Report:
    """Embed clips with Ray."""
    given: dict[str, Any] = {"device": "cpu", "cores": 1, "block_size": BLOCK_SIZE, **options}
    if len(sources) == FEW_CLIPS:
        given["block_size"] = FEW_CLIPS // CPUS  # so that all actors start
    return on_ray.embed(sources, out, model, **given)


@contextlib.contextmanager
def three_machines() -> Iterator[Any]:
    """Start two machines of a cluster and connect to it; the third joins, to be killed."""
    import ray
    from ray.cluster_utils import Cluster

    machine: dict[str, Any] = {"num_cpus": CPUS, "object_store_memory": STORE_BYTES}
    cluster = Cluster(initialize_head=True, head_node_args={**machine, "include_dashboard": False})
    try:
        cluster.add_node(**machine)
        on_ray.start(cluster.address)
        yield cluster
    finally:
        ray.shutdown()
        cluster.shutdown()


def actors() -> list[psutil.Process]:
    """Return the processes of actors that embed."""
    found = psutil.process_iter(["cmdline"])
    return [each for each in found if "ray::MapWorker" in " ".join(each.info["cmdline"] or [])]


def largest_difference(folder: Path, table: Path) -> float:
    """Return the largest difference of embeddings in shards and in a table; infinite if their rows are not the same."""
    shards = pyarrow.dataset.dataset(folder, format="parquet", exclude_invalid_files=True).to_table()
    ordered = [each.sort_by("file") for each in (shards, pyarrow.parquet.read_table(table))]
    if ordered[0]["file"].to_pylist() != ordered[1]["file"].to_pylist():
        return float("inf")
    numbers = [each["embedding"].combine_chunks().flatten().to_numpy() for each in ordered]
    return float(np.abs(numbers[0] - numbers[1]).max())


if __name__ == "__main__":
    cli(prog_name="python -m hear_transformers.benchmarks.cluster")
