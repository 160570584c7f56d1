"""`hear-transformers compact`: many small tables of embeddings as few large ones."""

from __future__ import annotations

import json

import click

from .failures import guarded, one_line


@click.command("compact")
@click.argument("folder", metavar="FOLDER")
@click.option("--out", required=True, metavar="DIR", help="Folder of the large tables, which is made.")
@click.option(
    "--rows",
    type=click.IntRange(min=1),
    metavar="N",
    help="Rows of a large table, at least: small ones are not divided.  [default: 1048576]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def compact_command(folder: str, out: str, rows: int | None, as_json: bool) -> None:
    """Join the many small .parquet tables of a FOLDER, of shards or of a cluster, into few large ones.

    Rows keep the order of the names of their tables, and what made them is kept; tables of other settings are refused.
    --out is there when it is complete: an interrupted command goes on when it is given again. The small tables stay,
    since runs that add to them need them; remove them when you like.
    """
    from hear_transformers.bulk.compaction import TABLE_ROWS, compact

    def show(done: int, of: int) -> None:
        click.echo(f"{done} of {of} tables", err=True)

    done = compact(folder, out, TABLE_ROWS if rows is None else rows, show)
    if as_json:
        paths = list(map(str, done.tables))
        click.echo(json.dumps({"tables": paths, "written": done.written, "rows": done.n_rows, "inputs": done.n_inputs}))
        return
    found = "" if done.written else ", which were there already"
    click.echo(one_line(f"{done.n_rows:,} rows of {done.n_inputs:,} tables -> {len(done.tables):,} in {out}{found}"))
