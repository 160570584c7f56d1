"""`hear-transformers selections`: the parts that embeddings are of, as tables for other programs."""

from __future__ import annotations

import json
from pathlib import Path

import click

from .failures import guarded, one_line

FEW_TABLES = 10
"""Tables that are listed; more are only counted."""


@click.command("selections")
@click.argument("outputs", metavar="OUTPUTS")
@click.option("--format", metavar="NAME", help="raven, audacity (a label track), csv.  [default: raven]")
@click.option(
    "--with-embeddings", "embeddings", is_flag=True, help="Write the numbers too: one table in CSV, columns e0, e1, ..."
)
@click.option(
    "--out",
    required=True,
    metavar="PATH",
    help="One table, .txt, .csv or .tsv, or a folder, for a table per audio file.",
)
@click.option("--overwrite", is_flag=True, help="Replace tables that exist, with any labels that were filled in.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def selections_command(
    outputs: str, format: str | None, embeddings: bool, out: str, overwrite: bool, as_json: bool
) -> None:
    """Write which parts of which files embeddings are of, for Raven, Audacity or a spreadsheet.

    OUTPUTS is a table or a folder that embed-audio wrote, such as of --segment 3. A table of Raven has no label yet, to
    be filled in under Species. embed-audio --manifest reads tables of Raven and CSV again. --with-embeddings is for R
    and spreadsheets.
    """
    if embeddings and format not in (None, "csv"):
        raise click.UsageError(f"--format {format} has no place for --with-embeddings; leave one of them out")
    n_rows, paths = (
        numbers(outputs, out, overwrite) if embeddings else parts(outputs, out, format or "raven", overwrite)
    )
    if as_json:
        click.echo(json.dumps({"selections": n_rows, "tables": list(map(str, paths))}))
        return
    for path in paths[:FEW_TABLES]:
        click.echo(one_line(str(path)))
    click.echo(f"{n_rows} selections, {len(paths)} {'table' if len(paths) == 1 else 'tables'}")


def parts(outputs: str, out: str, format: str, overwrite: bool) -> tuple[int, list[Path]]:
    """Write the parts of files; return their number and the tables."""
    from hear_transformers.bulk.selections import selections_of, write_each

    found = list(selections_of(outputs))
    return len(found), write_each(out, found, format, overwrite=overwrite)


def numbers(outputs: str, out: str, overwrite: bool) -> tuple[int, list[Path]]:
    """Write the parts of files with their embeddings; return their number and the table."""
    from hear_transformers.explore.reading import look_up
    from hear_transformers.explore.spreadsheet import write_csv

    rows = look_up(outputs)
    return len(rows), [write_csv(out, rows, overwrite=overwrite)]
