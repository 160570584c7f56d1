"""`hear-transformers selections`: the parts that embeddings are of, as tables for other programs."""

from __future__ import annotations

import json

import click

from .failures import guarded, one_line

FEW_TABLES = 10
"""Tables that are listed; more are only counted."""


@click.command("selections")
@click.argument("outputs", metavar="OUTPUTS")
@click.option(
    "--format", default="raven", show_default=True, metavar="NAME", help="raven, audacity (a label track), csv."
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
def selections_command(outputs: str, format: str, out: str, overwrite: bool, as_json: bool) -> None:
    """Write which parts of which files embeddings are of, for Raven, Audacity or a spreadsheet.

    OUTPUTS is a table or a folder that embed-audio wrote, such as of --segment 3. A table of Raven has no label yet, to
    be filled in under Species. embed-audio --manifest reads tables of Raven and CSV again.
    """
    from hear_transformers.bulk.selections import selections_of, write_each

    found = list(selections_of(outputs))
    paths = write_each(out, found, format, overwrite=overwrite)
    if as_json:
        click.echo(json.dumps({"selections": len(found), "tables": list(map(str, paths))}))
        return
    for path in paths[:FEW_TABLES]:
        click.echo(one_line(str(path)))
    click.echo(f"{len(found)} selections, {len(paths)} {'table' if len(paths) == 1 else 'tables'}")
