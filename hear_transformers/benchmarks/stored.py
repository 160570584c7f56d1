"""Tables at rest: processor time and memory to count, list and search many rows, in few files and in many.

``python -m hear_transformers.benchmarks.stored --help``. Every step is a process of its own.
Rows are random numbers, of clips that no file is of; they are removed in the end.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from itertools import pairwise
from pathlib import Path

import click
import numpy as np

from ..bulk.formats import TABLES
from ..bulk.tables import GROUP_ROWS
from .bulk import cost_of
from .tables import echo_table

PROVENANCE = {"embedding": "scene", "family": "nothing", "variant": "nothing", "weights_sha256": ""}
SIZE = 768
N_BLOCKS = 16
"""Blocks of noise that are drawn; the others are these, shifted: to draw takes longer than to write."""

STEPS: Mapping[str, tuple[str, ...]] = {
    "nothing: `import pyarrow, numpy`": ("-c", "import pyarrow.parquet, numpy"),
    "count, DuckDB": (
        "-c",
        "import sys, duckdb; duckdb.sql(f\"SELECT count(*) FROM '{sys.argv[1]}/*.parquet'\").fetchall()",
    ),
    "count, Polars": (
        "-c",
        "import sys, polars; polars.scan_parquet(sys.argv[1]).select(polars.len()).collect()",
    ),
    "list, DuckDB": (
        "-c",
        "import sys, duckdb\n"
        'query = f"SELECT file, start, \\"end\\" FROM \'{sys.argv[1]}/*.parquet\'"\n'
        "print(sum(batch.num_rows for batch in duckdb.sql(query).to_arrow_reader(100_000)))",
    ),
    "list, Polars": (
        "-c",
        "import os, sys, polars\npolars.scan_parquet(sys.argv[1]).select('file', 'start', 'end').sink_csv(os.devnull)",
    ),
    "`hear-transformers search` of a row": (
        "-m",
        "hear_transformers",
        "search",
        "{folder}",
        "17",
        "--exact",
    ),
    "`hear-transformers compact`": (
        "-m",
        "hear_transformers",
        "compact",
        "{folder}",
        "--out",
        "{folder}/compacted",
    ),
}
"""Step -> arguments of Python: a program, to which the folder is given, or a command with ``{folder}``."""


def write_tables(folder: Path, n_rows: int, n_tables: int, size: int) -> int:
    """Write rows of float16 in tables of about equal length, as shards do; return their bytes."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    blocks = rng.standard_normal((N_BLOCKS, GROUP_ROWS, size), np.float32).astype(np.float16)
    table = TABLES["parquet"](PROVENANCE, "8")
    edges = np.linspace(0, n_rows, n_tables + 1).astype(int).tolist()
    for i, (first, last) in enumerate(pairwise(edges)):
        with table.create(folder / f"embeddings-{i}-of-{n_tables}.parquet", f"shard {i}") as add:
            for at in range(first, last, GROUP_ROWS):
                rows = np.arange(at, min(at + GROUP_ROWS, last))
                number, shift = rows[0] // GROUP_ROWS % N_BLOCKS, rows[0] % size
                add(
                    {
                        "file": np.array([f"archive/{row % 1000:03}/{row:09}.flac" for row in rows], object),
                        "start": np.zeros(len(rows)),
                        "end": np.full(len(rows), 10.0),
                        "time_ms": np.full(len(rows), np.nan),
                        "embedding": np.roll(blocks[number, : len(rows)], shift, axis=1),
                    }
                )
    return sum(path.stat().st_size for path in folder.iterdir())


def rows_of(stores: Sequence[tuple[int, int]], size: int, only: Sequence[str], scratch: Path) -> Iterator[list[str]]:
    """Measure each step with each store, (rows, tables); yield rows of a table."""
    for n_rows, n_tables in stores:
        folder = scratch / f"{n_rows}-{n_tables}"
        gigabytes = write_tables(folder, n_rows, n_tables, size) / 1e9
        for step, arguments in STEPS.items():
            if only and not any(word in step for word in only):
                continue
            placed = (
                [each.format(folder=folder) for each in arguments] if "-m" in arguments else [*arguments, str(folder)]
            )
            mebibytes, _, seconds = cost_of(*placed)
            yield [f"{n_rows:,}", f"{n_tables:,}", f"{gigabytes:.2f}", step, f"{seconds:.1f}", f"{mebibytes:.0f}"]
        shutil.rmtree(folder)


def parse_store(text: str) -> tuple[int, int]:
    """Parse rows and tables: "1000000x10"."""
    n_rows, _, n_tables = text.partition("x")
    try:
        return int(n_rows), int(n_tables or 1)
    except ValueError as error:
        raise click.BadParameter(f"{text}: give rows and tables, such as 1000000x10") from error


@click.command()
@click.option(
    "--store", "stores", multiple=True, default=("100000x10", "1000000x10"), show_default=True, metavar="ROWSxTABLES"
)
@click.option("--size", default=SIZE, show_default=True, help="Numbers of an embedding.")
@click.option("--only", multiple=True, metavar="WORD", help="Steps that hold this word.  [default: all]")
@click.option("--scratch", type=click.Path(path_type=Path), help="Folder for the tables: 1.6 GB for a million rows.")
def main(stores: Sequence[str], size: int, only: Sequence[str], scratch: Path | None) -> None:
    """Count, list and search rows in tables; print the processor time and peak memory of each step."""
    parsed = list(map(parse_store, stores))
    with tempfile.TemporaryDirectory(dir=scratch) as folder:
        columns = ("rows", "tables", "GB", "step", "processor s", "peak, MiB")
        echo_table(columns, rows_of(parsed, size, only, Path(folder)))


if __name__ == "__main__":
    main()
