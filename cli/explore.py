"""`hear-transformers explore`: embeddings as a page to look at and to listen to."""

from __future__ import annotations

from pathlib import Path

import click

from .failures import guarded, one_line
from .imports import importing


@click.command("explore")
@click.argument("table", metavar="TABLE")
@click.option("--out", type=click.Path(dir_okay=False, path_type=Path), help="The page.  [default: TABLE.html]")
@click.option("--labels-from", "labels", metavar="FILE", help="Table of labels.  [default: the folder of each file]")
@click.option("--columns", default="", metavar="NAME=COLUMN,...", help="Its columns: path=filename,labels=category.")
@click.option("--clusters", type=click.IntRange(1, 200), default=10, show_default=True, metavar="N", help="Of k-means.")
@click.option(
    "--map",
    "method",
    type=click.Choice(("auto", "pca", "umap")),
    default="auto",
    show_default=True,
    help="Principal components, or UMAP; auto: UMAP where umap-learn is installed.",
)
@click.option("--threshold", type=float, default=0.99, show_default=True, metavar="X", help="Cosine of duplicates.")
@click.option(
    "--sound",
    type=click.Choice(("auto", "embed", "link", "none")),
    default="auto",
    show_default=True,
    help="embed: in the page, which may then be moved; link: the files where they are; auto: embed up to 20 MB.",
)
@click.option("--audio", "folders", multiple=True, metavar="DIR", help="Folder in which audio is looked for too.")
@guarded
def explore_command(
    table: str,
    out: Path | None,
    labels: str | None,
    columns: str,
    clusters: int,
    method: str,
    threshold: float,
    sound: str,
    folders: tuple[str, ...],
) -> None:
    """Make a page of embeddings: a map to look at, sounds to listen to.

    TABLE is a .parquet or .hdf5 file that embed-audio wrote, or a folder of its outputs. The page is one HTML file,
    needs no network, and opens by a double click. It shows up to 10,000 points; of more rows a random sample, of whole
    files where rows are along time.
    """
    if columns and labels is None:
        raise click.UsageError("--columns says what the columns of --labels-from hold; give it too, or leave both out")
    with importing():
        from hear_transformers.bulk.rows import parse_columns
        from hear_transformers.explore import labels as labelling
        from hear_transformers.explore.page import sample, write_page
        from hear_transformers.explore.queries import find_audio
        from hear_transformers.explore.reading import look_up
        from hear_transformers.explore.similarity import Index
    every = look_up(table)
    rows = sample(every)
    named = labelling.from_table(rows, labels, parse_columns(columns)) if labels else labelling.by_folder(rows)
    if labels and named and (n_missing := named.count("")):
        click.echo(f"Note: rows without a label: {n_missing} of {len(rows)}", err=True)
    audio = find_audio(rows, folders)
    if n_lost := audio.count(None):
        lost = rows.files[audio.index(None)]
        click.echo(one_line(f"Note: {n_lost} audio files are not found, such as {lost}; give --audio DIR"), err=True)
    page = Path(f"{every.path}.html") if out is None else out
    n_rows = len(every)
    there = write_page(
        Index(rows),
        page,
        named,
        audio,
        n_rows=n_rows,
        n_clusters=clusters,
        method=method,
        threshold=threshold,
        sound=sound,
    )
    how = {"embed": "sound is in the page", "link": "sound is linked: the files must stay", "none": "without sound"}
    click.echo(one_line(f"{page}  ({len(rows):,} of {n_rows:,} rows; {how[there]})"))
