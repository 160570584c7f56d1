"""Embeddings as a table of text, for R, spreadsheets and whatever else reads no Parquet."""

from __future__ import annotations

import csv
import io
import os
from pathlib import Path

from ..bulk.selections import absolute, in_seconds
from ..errors import OptionError
from ..files import atomic
from .reading import Embeddings

SUFFIX = ".csv"

ROWS_AT_ONCE = 512
"""Rows whose text is in memory: 4 MB of 768 numbers each."""

NUMBER = "{:.9g}".format
"""Writes a number with the nine digits that tell any two of float32 apart (IEEE 754)."""


def write_csv(out: str | os.PathLike[str], embeddings: Embeddings, *, overwrite: bool = False) -> Path:
    """Write a row for each embedding; a complete table, or none.

    Its columns are path, start and end in s, channel if each is embedded apart, and the numbers: e0, e1, ...

    Parameters
    ----------
    out : ends in .csv
    embeddings : in their order, read in blocks
    overwrite : replace a table that exists

    Returns
    -------
    path : of the table

    Raises
    ------
    OptionError : `out` is of another kind, or exists, and nothing was written; or a number is not finite
    """
    path = Path(out)
    if path.suffix.lower() != SUFFIX or path.is_dir():
        raise OptionError(f"--out {out}: embeddings are written as one table in CSV; end it in {SUFFIX}")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; give another --out, or --overwrite to replace it")
    has_channel = embeddings.span(0).channel is not None
    places = ("path", "start", "end", *(["channel"] if has_channel else []))
    with atomic(path) as file, io.TextIOWrapper(file, "utf-8", "surrogateescape", newline="") as text:
        table = csv.writer(text, lineterminator="\n")
        table.writerow([*places, *(f"e{i}" for i in range(embeddings.size))])
        for rows, vectors in embeddings.blocks(ROWS_AT_ONCE):
            for row, vector in zip(range(rows.start, rows.stop), vectors.tolist(), strict=True):
                span = embeddings.span(row)
                channel = (span.channel,) if has_channel else ()
                place = (absolute(span.file), in_seconds(span.start), in_seconds(span.end), *channel)
                table.writerow([*place, *map(NUMBER, vector)])
    return path
