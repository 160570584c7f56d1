"""What a large job takes on one card or on many: time, what limits it, storage, and the price as a formula.

    python -m hear_transformers.benchmarks.scale validate  # beside runs of this machine, before it is trusted
    python -m hear_transformers.benchmarks.scale page      # writes the tables of docs/scale.md

Seconds per clip come from the tables of `weights/benchmarks.md` (`bench-feed`: processor time to read and write a clip;
`bench-cuda`: networks on a card), which are read there; how the time of the feed divides, and what starting takes, from
`weights/scale.json`, which ``measure`` writes. Prices are nobody's figures: without those of yours there is a formula.
"""

from __future__ import annotations

import contextlib
import json
import os
import platform
import re
import resource
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click
import numpy as np
import torch

from .. import catalogue
from ..audio.workers import MOST_WORKERS, NICENESS, Spent
from ..bulk.extract import READERS_A_WRITER, extract
from ..bulk.sources import Source
from ..cli.failures import guarded
from ..embedding.embedder import Embedder
from ..errors import HearTransformersError
from ..files import atomic
from ..networks.counting import CLIP_SECONDS
from . import card, feed
from .bulk import load_named
from .simulation import Part, Pool, Run, simulate
from .tables import echo_table

WEIGHTS = Path(__file__).parents[2] / "weights"
DOCUMENT = WEIGHTS / "benchmarks.md"
FILE = WEIGHTS / "scale.json"
PAGE = Path(__file__).parents[2] / "docs" / "scale.md"

CARDS = (1, 8, 1_000)
CORES = 16
"""Cores for each card, as many as the machine had on which networks were measured from disk."""

CLIPS = (10**6, 10**9)
SIMULATED = 2_000
"""Clips that are simulated; each more takes as long as the slowest part."""

WEIGHT = 110 / 1024
"""Share that Linux gives a process of nice value 10 beside one of 0 (sched_prio_to_weight), as `NICENESS` is."""

MILLION_HOURS = 10**6 * 3600 / CLIP_SECONDS
"""Clips."""

WITHIN = 0.2
"""Largest relative error at which the model is trusted."""


# Figures


Table = list[dict[str, str]]
"""Cells by column, for each row."""


@dataclass(frozen=True, slots=True)
class Cost:
    """Seconds of a core that a clip takes.

    Attributes
    ----------
    decode, resample : in a process that reads
    main : in the one that takes clips, runs the network and hands over results
    write : in one that writes
    """

    decode: float
    resample: float
    main: float
    write: float

    @property
    def total(self) -> float:
        """Seconds of all of them."""
        return self.decode + self.resample + self.main + self.write


@dataclass(frozen=True, slots=True)
class Figures:
    """What was measured.

    Attributes
    ----------
    costs : format of audio -> cost
    networks : model, precision -> clips/s of the network alone, on a card
    disk : rows of networks from disk to disk, of so many `disk_clips` with so many `disk_workers`
    start_s : "command", until it has a model; "worker", until it reads
    """

    costs: dict[str, Cost]
    networks: dict[tuple[str, str], float]
    disk: Table
    disk_clips: int
    disk_workers: int
    start_s: dict[str, float]


def tables_of(markdown: str) -> list[Table]:
    """Read the tables of a document."""
    tables: list[Table] = []
    columns: list[str] = []
    for line in markdown.splitlines():
        cells = [cell.strip() for cell in line.strip().strip("|").split("|")] if line.startswith("|") else []
        if cells and not columns:
            columns = cells
            tables.append([])
        elif cells and not set(line) <= set("|-: "):
            # Ratios repeat the names of columns: the first counts.
            tables[-1].append(dict(reversed([*zip(columns, cells, strict=True)])))
        elif not cells:
            columns = []
    return tables


def table_with(tables: Sequence[Table], *columns: str) -> Table:
    """Return the first table that has some columns; raise HearTransformersError if there is none."""
    for table in tables:
        if table and {*columns} <= table[0].keys():
            return table
    raise HearTransformersError(f"{DOCUMENT}: has no table with the columns {', '.join(columns)}")


def number(cell: str) -> float:
    """Parse a cell: "12,480 (6%)"."""
    return float(cell.split()[0].replace(",", ""))


def read_figures(document: str, measured: dict[str, Any]) -> Figures:
    """Read what was measured from `DOCUMENT`, and what `FILE` holds."""
    tables = tables_of(document)
    main, others = "main process, CPU ms a clip", "pipeline's workers and writer"
    costs = {}
    for row in table_with(tables, main, others):
        parts = measured["shares"][row["audio"]]
        shared = {name: number(row[others]) / 1000 * share for name, share in parts.items()}
        costs[row["audio"]] = Cost(main=number(row[main]) / 1000, **shared)
    networks = {}
    for row in table_with(tables, "model", "precision", "512 clips at once, clips/s"):
        rates = [number(cell) for name, cell in row.items() if name.endswith("clips/s")]
        networks[row["model"].strip("`"), row["precision"]] = max(rates)
    disk = table_with(tables, "model", "from disk, clips/s", "network alone, clips/s")
    found = re.search(r"^(\d+) clips, (\d+) workers", document, re.MULTILINE)
    if not found:
        raise HearTransformersError(f"{DOCUMENT}: does not say how many clips and workers ran from disk")
    return Figures(costs, networks, disk, int(found[1]), int(found[2]), measured["start_s"])


def figures() -> Figures:
    """Read what was measured."""
    return read_figures(DOCUMENT.read_text(encoding="utf-8"), json.loads(FILE.read_text(encoding="utf-8")))


# A card, and the cores that feed it


@dataclass(frozen=True, slots=True)
class Feed:
    """A process with a card, and the cores that it has for reading and writing.

    Attributes
    ----------
    cost : of a clip, on a core
    network : clips/s of the card
    cores : for this card
    workers : that read
    start_s : see `Figures`
    """

    cost: Cost
    network: float
    cores: int
    workers: int
    start_s: dict[str, float]

    @staticmethod
    def of(found: Figures, form: str, network: float, cores: int) -> Feed:
        """Return what `embed-audio` starts on so many cores."""
        return Feed(found.costs[form], network, cores, max(1, min(cores - 1, MOST_WORKERS)), found.start_s)

    @property
    def writers(self) -> int:
        """Processes that write."""
        return 1 + self.workers // READERS_A_WRITER

    @property
    def rates(self) -> dict[str, float]:
        """What would limit it -> clips/s if nothing else did."""
        cost = self.cost
        return {
            "network": self.network,
            "decoding": self.workers / (cost.decode + cost.resample),
            "one process": 1 / cost.main,
            "writing": self.writers / cost.write,
            "cores": self.cores / cost.total,
        }

    @property
    def limit(self) -> str:
        """What limits it in the long run."""
        return min(self.rates, key=lambda name: self.rates[name])

    @property
    def rate(self) -> float:
        """Clips/s in the long run."""
        return self.rates[self.limit]

    def run(self, n_clips: int) -> Run:
        """Simulate a run."""
        cost, start_s = self.cost, self.start_s
        reading = Part("decode", cost.decode), Part("resample", cost.resample)
        pools = (
            Pool(reading, self.workers, ready_s=start_s["command"] + start_s["worker"]),
            Pool((Part("main", cost.main),)),
            Pool((Part("network", 1 / self.network, cores=0),), batch=32, room=128),
            Pool((Part("write", cost.write),), self.writers),
        )
        return simulate(pools, n_clips, self.cores)

    def seconds(self, n_clips: float) -> float:
        """Return how long a number of clips takes."""
        few = min(SIMULATED, max(1, round(n_clips)))
        return self.run(few).seconds + (n_clips - few) / self.rate


def in_words(seconds: float) -> str:
    """Format a duration: "40 s", "2.1 h", "3 d", "1.2 a"."""
    for unit, length, most in (("s", 1.0, 100.0), ("min", 60.0, 100.0), ("h", 3600.0, 48.0), ("d", 86_400.0, 1000.0)):
        if seconds < most * length:
            return f"{seconds / length:.3g} {unit}"
    return f"{seconds / 31_557_600.0:.3g} a"


def rounded(value: float) -> str:
    """Format a number to three digits: "882,000", "0.00275"."""
    return f"{float(f'{value:.3g}'):,.12g}"


def limit_at(one: Feed, cards: int, n_clips: int, storage: float | None, clip_bytes: float) -> tuple[float, str]:
    """Return the seconds of a job on several cards, and what limits it: also starting, and the storage, in bytes/s."""
    seconds, limit = one.seconds(n_clips / cards), one.limit
    if storage is not None and (read := n_clips * clip_bytes / storage) > seconds:
        return read, "storage"
    starting = sum(one.start_s.values())
    return seconds, "starting" if starting > seconds / 2 else limit


def clip_bytes_of(form: str) -> float:
    """Return the mean bytes of a clip of `bench-feed`: of WAV those of any, of the others those of such sounds."""
    with tempfile.TemporaryDirectory() as folder:
        sources = feed.write_clips(Path(folder), form, CLIP_SECONDS, feed.N_FILES)
        return float(np.mean([Path(source.path).stat().st_size for source in sources]))


def embedding_size(name: str) -> int:
    """Return the numbers of a scene embedding, from `weights/sizes.json`."""
    family, variant = catalogue.resolve_own(name)
    rows = catalogue.sizes()[family]
    return int(rows[variant or next(iter(rows))]["scene_embedding_size"])


# Tables


Rows = Iterator[Sequence[str]]


def limits_table(found: Figures, form: str, cores: int, storage: float | None) -> tuple[Sequence[str], Rows]:
    """Return columns and rows: what limits each network, and how long a million and a billion clips take."""
    clip_bytes = clip_bytes_of(form)

    def cell(one: Feed, cards: int) -> str:
        times = [limit_at(one, cards, n, storage, clip_bytes) for n in CLIPS]
        (first, why), (second, why_long) = times
        shown = why if why == why_long else f"{why}, {why_long}"
        return f"{in_words(first)}, {in_words(second)}: {shown}"

    def rows() -> Rows:
        for (name, precision), network in found.networks.items():
            one = Feed.of(found, form, network, cores)
            needed = network * one.cost.total
            cells = (cell(one, n) for n in CARDS)
            yield f"`{name}`", precision, f"{network:,.0f}", f"{one.rate:,.0f}", f"{needed:,.0f}", *cells

    head = ("model", "precision", "card alone, clips/s", "fed, clips/s", "cores that it would need")
    return (*head, *(f"{n:,} card{'s' * (n > 1)}: 10^6, 10^9 clips" for n in CARDS)), rows()


def disk_table(found: Figures) -> tuple[Sequence[str], Rows]:
    """Return columns and rows: the model beside the runs from disk on the card's machine."""

    def rows() -> Rows:
        for row in found.disk:
            network = number(row["network alone, clips/s"])
            one = Feed(found.costs["wav"], network, found.disk_workers + 1, found.disk_workers, {**found.start_s})
            started = Feed(one.cost, network, one.cores, one.workers, {**one.start_s, "command": 0.0})  # it had started
            predicted = found.disk_clips / started.seconds(found.disk_clips)
            measured = number(row["from disk, clips/s"])
            yield row["model"], row["precision"], f"{predicted:,.0f}", f"{measured:,.0f}", verdict(predicted, measured)

    return ("model", "precision", "predicted, clips/s", "measured, clips/s", "predicted / measured"), rows()


def verdict(predicted: float, measured: float) -> str:
    """Format a ratio, and whether it is within the limit."""
    ratio = predicted / measured
    return f"{ratio:.2f}{'' if abs(ratio - 1) <= WITHIN else ', missed'}"


def storage_table(found: Figures) -> tuple[Sequence[str], Rows]:
    """Return columns and rows: sizes of audio and of embeddings, and the traffic that keeps cards busy."""

    def traffic(bytes_per_s: float) -> Iterator[str]:
        return (rounded(n * bytes_per_s / 1e9) for n in CARDS)

    def rows() -> Rows:
        fed = Feed.of(found, "wav", max(found.networks.values()), CORES).rate
        for form in found.costs:
            size = clip_bytes_of(form)
            rate = Feed.of(found, form, max(found.networks.values()), CORES).rate
            yield f"audio, {form}", *(rounded(n * size / 1e9) for n in CLIPS), *traffic(rate * size)
        for n_numbers, dtype in ((192, "float16"), (768, "float16"), (768, "float32"), (2048, "float32")):
            size = n_numbers * np.dtype(dtype).itemsize
            yield f"{n_numbers} numbers, {dtype}", *(rounded(n * size / 1e9) for n in CLIPS), *traffic(fed * size)

    sizes = (f"10^{len(str(n)) - 1} clips, GB" for n in CLIPS)
    return ("what", *sizes, *(f"{n:,} card{'s' * (n > 1)}, GB/s" for n in CARDS)), rows()


@dataclass(frozen=True, slots=True)
class Prices:
    """Prices in any currency, each None if it is not given."""

    card_hour: float | None = None
    core_hour: float | None = None
    gb_month: float | None = None


FORMULA = "price = card hours x CARD_HOUR + core hours x CORE_HOUR + GB x MONTHS x GB_MONTH"


def price_table(
    found: Figures, form: str, cores: int, dtype: str, months: float, prices: Prices
) -> tuple[Sequence[str], Rows]:
    """Return columns and rows: what a million hours of audio take, and the sum where all prices are given."""
    given = (prices.card_hour, prices.core_hour, prices.gb_month)
    columns = ["model", "precision", "card hours", "core hours", f"GB of embeddings, {dtype}"]

    def rows() -> Rows:
        for (name, precision), network in found.networks.items():
            one = Feed.of(found, form, network, cores)
            card_hours = MILLION_HOURS / one.rate / 3600
            gigabytes = MILLION_HOURS * embedding_size(name) * np.dtype(dtype).itemsize / 1e9
            amounts = (card_hours, card_hours * cores, gigabytes * months)
            cells = [f"{card_hours:,.0f}", f"{card_hours * cores:,.0f}", f"{gigabytes:,.0f}"]
            if None not in given:
                cells.append(f"{sum(a * p for a, p in zip(amounts, given, strict=True) if p is not None):,.0f}")
            yield f"`{name}`", precision, *cells

    return (*columns, *(["price"] if None not in given else [])), rows()


# Commands


def form_option(function: Any) -> Any:
    """Make the option for the format of the audio."""
    return click.option(
        "--audio", "form", default="wav", show_default=True, type=click.Choice([*feed.FORMATS]), help="Its format."
    )(function)


def cores_option(function: Any) -> Any:
    """Make the option for the cores of a card."""
    return click.option("--cores", default=CORES, show_default=True, help="Cores for each card.")(function)


@click.group()
def main() -> None:
    """Compute what large jobs take; clips last 10 s, 44.1 to 32 kHz, and a process has one card."""


@main.command("limits")
@form_option
@cores_option
@click.option("--storage-gb-s", type=float, help="GB/s that the storage gives to all cards.  [default: enough]")
@guarded
def limits_command(form: str, cores: int, storage_gb_s: float | None) -> None:
    """Print what limits each network on 1, 8 and 1,000 cards."""
    columns, rows = limits_table(figures(), form, cores, None if storage_gb_s is None else 1e9 * storage_gb_s)
    echo_table(columns, rows)


@main.command("disk")
@guarded
def disk_command() -> None:
    """Print the model beside the measured runs from disk with a card."""
    echo_table(*disk_table(figures()))


@main.command("storage")
@guarded
def storage_command() -> None:
    """Print sizes, and the traffic that keeps cards busy."""
    echo_table(*storage_table(figures()))


@main.command("price")
@form_option
@cores_option
@click.option("--dtype", default="float16", show_default=True, type=click.Choice(["float16", "float32"]))
@click.option("--months", default=1.0, show_default=True, help="For which embeddings are kept.")
@click.option("--card-hour", type=float, help="Price of a card for an hour.")
@click.option("--core-hour", type=float, help="Price of a core for an hour; 0 where cards come with cores.")
@click.option("--gb-month", type=float, help="Price of storing a GB for a month.")
@guarded
def price_command(
    form: str,
    cores: int,
    dtype: str,
    months: float,
    card_hour: float | None,
    core_hour: float | None,
    gb_month: float | None,
) -> None:
    """Print what a million hours of audio take; with all three prices, in money."""
    click.echo(f"{FORMULA}\n")
    echo_table(*price_table(figures(), form, cores, dtype, months, Prices(card_hour, core_hour, gb_month)))


@main.command("page")
@click.option("--page", type=click.Path(path_type=Path), default=PAGE)
@guarded
def page_command(page: Path) -> None:
    """Write the tables of docs/scale.md anew, each behind the comment that names its command."""
    with atomic(page) as file:
        file.write(with_tables(page.read_text(encoding="utf-8"), figures()).encode())


MARK = re.compile(r"(<!-- python -m hear_transformers\.benchmarks\.scale (\w+) -->\n)((?:\|.*\n)*)")
"""A comment that names a command, and the table behind it."""


def with_tables(text: str, found: Figures) -> str:
    """Return a page with its tables as the commands print them."""
    made = {
        "limits": lambda: limits_table(found, "wav", CORES, None),
        "disk": lambda: disk_table(found),
        "storage": lambda: storage_table(found),
        "price": lambda: price_table(found, "wav", CORES, "float16", 1.0, Prices()),
    }

    def table(match: re.Match[str]) -> str:
        columns, rows = made[match[2]]()
        lines = [columns, ["---"] * len(columns), *rows]
        return match[1] + "".join(f"| {' | '.join(line)} |\n" for line in lines)

    return MARK.sub(table, text)


# What is measured here


@dataclass(frozen=True, slots=True)
class Stages:
    """Seconds of a clip on this machine, one after the other.

    Attributes
    ----------
    decode, resample, rest, write : of a core; the rest is what lies between
    network : of all its threads
    threads : of the network
    start_s : of a run, without those of workers
    worker_s : until workers have started
    """

    decode: float
    resample: float
    rest: float
    network: float
    write: float
    threads: int
    start_s: float
    worker_s: float

    def pools(self, workers: int) -> list[Pool]:
        """Return the pools of a run."""
        reading = Part("decode", self.decode), Part("resample", self.resample)
        network = Part("rest", self.rest), Part("network", self.network * self.threads, cores=self.threads)
        writer = Pool((Part("write", self.write),), 1 + workers // READERS_A_WRITER)
        if not workers:
            return [Pool((*reading, *network), ready_s=self.start_s), writer]
        ready = self.start_s + self.worker_s
        return [Pool(reading, workers, weight=WEIGHT, ready_s=ready), Pool(network, ready_s=self.start_s), writer]


def measure_stages(model: Embedder, sources: Sequence[Source], workers: int = 2) -> Stages:
    """Measure a few clips, read, computed and written by one process; and what starting takes."""
    one, _ = timed_run(model, sources[:1], 0)
    one, first = timed_run(model, sources[:1], 0)  # what happens once in a process has happened
    wall, spent = timed_run(model, sources[1:], 0)
    n_clips = len(sources) - 1
    parts = {
        "decode": (spent.waiting - spent.resampling) / n_clips,
        "resample": spent.resampling / n_clips,
        "network": spent.computing / n_clips,
        "write": spent.writing / n_clips,
    }
    start_s = max(0.0, one - first.waiting - first.computing - first.writing)
    rest = max(0.0, (wall - start_s - spent.waiting - spent.computing - spent.blocked) / n_clips)
    worker_s = min(feed.cost_of(feed.bare, (), workers).wall for _ in range(3))
    return Stages(**parts, rest=rest, threads=torch.get_num_threads(), start_s=start_s, worker_s=worker_s)


def timed_run(model: Embedder, sources: Sequence[Source], workers: int) -> tuple[float, Spent]:
    """Embed clips into a folder; return the seconds that it took, and on what."""
    spent = Spent()
    with tempfile.TemporaryDirectory() as out:
        start = time.perf_counter()
        report = extract(model, sources, Path(out), workers=workers, spent=spent)
        wall = time.perf_counter() - start
    if report.failed:
        raise HearTransformersError(report.failed[0].message)
    return wall, spent


@contextlib.contextmanager
def processor_time() -> Iterator[list[float]]:
    """Yield a list that gets the seconds of processors that a block takes, in this process and those it starts."""

    def now() -> float:
        used = map(resource.getrusage, (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN))
        return sum(each.ru_utime + each.ru_stime for each in used)

    seconds: list[float] = []
    start = now()
    yield seconds
    seconds.append(now() - start)


@main.command("validate")
@click.option(
    "--model", "name", default="tiny", show_default=True, help="As of embed-audio; random weights but tiny's."
)
@click.option("--clips", default=48, show_default=True, help="Clips of the runs that are predicted.")
@click.option("--measured-clips", default=12, show_default=True, help="Other clips, of which the stages are measured.")
@click.option("--num-workers", "numbers", type=int, multiple=True, default=(0, 1, 2), show_default=True)
@guarded
def validate_command(name: str, clips: int, measured_clips: int, numbers: Sequence[int]) -> None:
    """Predict runs of this machine from stages that were measured on fewer and other clips; exit with 1 if one misses.

    A machine that does something else too slows both, but not alike: processor time tells how much.
    """
    model = load_named(name)
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    with tempfile.TemporaryDirectory() as folder:
        stages = measure_stages(model, card.write_clips(Path(folder), measured_clips + 1, measured_clips + 1))
    shown = ("decode", "resample", "rest", "network", "write")
    echo = ", ".join(f"{each} {1000 * getattr(stages, each):.2f}" for each in shown)
    click.echo(f"{name}, {stages.threads} threads, {cores} cores; ms a clip: {echo}\n")
    missed = 0

    def rows() -> Rows:
        nonlocal missed
        for workers in numbers:
            predicted = simulate(stages.pools(workers), clips, cores)
            with tempfile.TemporaryDirectory() as folder:
                sources = feed.write_clips(Path(folder), "wav", CLIP_SECONDS, clips)
                with processor_time() as spent:
                    measured, _ = timed_run(model, sources, workers)
            missed += abs(predicted.seconds / measured - 1) > WITHIN
            seconds = (predicted.seconds, measured, predicted.core_seconds, spent[0])
            yield (
                str(workers),
                *(f"{each:.2f}" for each in seconds[:2]),
                verdict(*seconds[:2]),
                *(f"{each:.2f}" for each in seconds[2:]),
            )

    processor = ("processor s, predicted", "measured")
    echo_table(("workers", "predicted, s", "measured, s", "predicted / measured", *processor), rows())
    if missed:
        raise click.ClickException(f"{missed} of {len(numbers)} runs differ by more than {WITHIN:.0%}")


START = """
from hear_transformers.tiny import load_model
import hear_transformers.bulk.extract
load_model()
"""


@main.command("measure")
@click.option("--clips", default=40, show_default=True, help="Clips of each format.")
@click.option("--out", type=click.Path(path_type=Path), default=FILE)
@guarded
def measure_command(clips: int, out: Path) -> None:
    """Write weights/scale.json: how the time to read and write a clip divides, and what starting takes."""
    model = feed.embedder_of_nothing(CLIP_SECONDS)
    shares = {}
    for form in feed.FORMATS:
        with tempfile.TemporaryDirectory() as folder:
            stages = measure_stages(model, feed.write_clips(Path(folder), form, CLIP_SECONDS, clips))
        parts = {"decode": stages.decode, "resample": stages.resample, "write": stages.write}
        shares[form] = {name: round(each / sum(parts.values()), 3) for name, each in parts.items()}
    with processor_time() as spent:
        os.spawnl(os.P_WAIT, sys.executable, sys.executable, "-c", START)
    found = {
        "command": "python -m hear_transformers.benchmarks.scale measure",
        "machine": f"{os.cpu_count()} cores of {platform.machine()}, PyTorch {torch.__version__}",
        "shares": shares,
        "start_s": {"command": round(spent[0], 2), "worker": round(stages.worker_s, 3)},
    }
    with atomic(out) as file:
        file.write(f"{json.dumps(found, indent=2)}\n".encode())


assert NICENESS == 10, "WEIGHT is of nice value 10"


if __name__ == "__main__":
    main()
