"""`hear-transformers search`: what in a table of embeddings sounds like a file, or like one of its rows."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import click

from .failures import guarded, one_line
from .imports import importing
from .parsing import trusting
from .tables import echo_table

if TYPE_CHECKING:
    from collections.abc import Iterator, Sequence

    from hear_transformers.explore.queries import Match, Search
    from hear_transformers.explore.similarity import Index

THRESHOLD = 0.99
"""Cosine of likely duplicates."""

EXAMPLES = """\b
Examples:
  hear-transformers search clips.parquet query.wav             the 10 files most like it
  hear-transformers search clips.parquet query.wav other.wav -k 3 --json
  hear-transformers search clips.parquet 17                    those most like row 17, counted from 0
  hear-transformers search clips.parquet "a dog barking"       in a table of CLAP: the sounds nearest to the words
  hear-transformers search clips.parquet --near-duplicates     pairs of rows that may be the same sound

Similarity is the cosine after the mean of the table is subtracted: 1 for the same, about 0 for unrelated sounds.
Between words and sounds it is the plain cosine, which is lower; words need hear_transformers[clap-text].
A query is embedded with the model and the settings that made the table, whose weights are checked. In a table along
time matches have times, and the best time of the query counts.
"""


@click.command("search", epilog=EXAMPLES)
@click.argument("table", metavar="TABLE")
@click.argument("queries", nargs=-1, metavar="[QUERY]...")
@click.option(
    "-k", "k", type=click.IntRange(min=1), default=10, show_default=True, metavar="N", help="Matches of each."
)
@click.option("--near-duplicates", is_flag=True, help="Print pairs of rows that are nearly the same instead.")
@click.option(
    "--threshold",
    type=click.FloatRange(-1.0, 1.0),
    metavar="X",
    help=f"Least cosine: of matches, or of near-duplicates.  [default: {THRESHOLD} for these]",
)
@click.option("--weights", default="", metavar="FILE", help="Checkpoint that made the table, if not the published one.")
@trusting
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps or cpu.")
@click.option(
    "--ann/--exact",
    default=None,
    help="Search an index of neighbours, made once beside the table, for which all vectors must fit into memory; or "
    "every row.  [default: such an index if there is one]",
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per query, or per pair.")
@guarded
def search_command(
    table: str,
    queries: tuple[str, ...],
    k: int,
    near_duplicates: bool,
    threshold: float | None,
    weights: str,
    trust_remote_code: bool | None,
    device: str,
    ann: bool | None,
    as_json: bool,
) -> None:
    """Find what resembles a sound in a TABLE of embeddings.

    TABLE is a .parquet or .hdf5 file that embed-audio wrote, or a folder of its outputs. QUERY is an audio file, the
    number of a row of TABLE or, in a table of CLAP's layer projection, what is to be heard in words.
    """
    if bool(queries) == near_duplicates:
        raise click.UsageError("give a QUERY, an audio file or the number of a row, or --near-duplicates, not both")
    with importing():
        from hear_transformers.explore.reading import look_up
        from hear_transformers.explore.similarity import Index
    in_words = list(map(are_words, queries))
    if any(in_words) and not all(in_words):
        raise click.UsageError(
            f"{queries[in_words.index(True)]!r} is no file, and words are compared otherwise than sounds: ask for each "
            "in a search of its own"
        )
    index = Index(look_up(table), centring=not any(in_words))
    if near_duplicates:
        show_pairs(index, THRESHOLD if threshold is None else threshold, as_json=as_json)
        return
    if any(in_words):
        answers = answers_to_words(index, queries, k, weights=weights, ann=ann)
    else:
        trusted = bool(trust_remote_code)
        answers = answers_to_sounds(index, queries, k, weights=weights, device=device, trusted=trusted, ann=ann)
    for query, found in answers:
        show_matches(query, [each for each in found if threshold is None or each.cosine >= threshold], as_json=as_json)


def are_words(query: str) -> bool:
    """Return whether a query is what is to be heard, see `texts.are_words`; numbers of rows need no PyTorch."""
    if query.isdecimal():
        return False
    with importing():
        from hear_transformers.explore import texts
    return texts.are_words(query)


def answers_to_sounds(
    index: Index, queries: Sequence[str], k: int, *, weights: str, device: str, trusted: bool, ann: bool | None
) -> Iterator[tuple[str, list[Match]]]:
    """Yield each query, an audio file or the number of a row, with its matches."""
    from hear_transformers.explore import queries as asking

    by_row = [asking.row_of(query, index.rows) for query in queries]
    model = None if None not in by_row else asking.load_model(index.rows, weights, device, trusted=trusted)
    search = searcher(index, ann)
    for query, row in zip(queries, by_row, strict=True):
        if row is None:
            vectors, times_s = asking.embed(model, index.rows, query)
            yield query, asking.matches(index, search, index.centred(vectors), times_s, k)
        else:
            yield query, asking.best_of(index, search, row, k)


def answers_to_words(
    index: Index, queries: Sequence[str], k: int, *, weights: str, ann: bool | None
) -> Iterator[tuple[str, list[Match]]]:
    """Yield each query, what is to be heard in words, with its matches; words are embedded on the CPU."""
    from hear_transformers.explore import queries as asking
    from hear_transformers.explore import texts

    texts.check_table(index.rows, queries[0])
    vectors = index.centred(texts.embed(index.rows, queries, weights))
    search = searcher(index, ann)
    for query, vector in zip(queries, vectors, strict=True):
        yield query, asking.matches(index, search, vector[None], None, k)


def searcher(index: Index, ann: bool | None) -> Search:
    """Return what searches: every row, or an index of neighbours, which is built if need be."""
    from hear_transformers.errors import OptionError
    from hear_transformers.explore.similarity import Neighbours

    if ann is False:
        return index.search
    path = index.rows.path
    if path.is_dir():
        if ann:
            raise OptionError(f"{path}: an index of neighbours lies beside a table, and this is a folder; name a table")
        return index.search
    try:
        suffix = "usearch" if index.centring else "plain.usearch"
        neighbours = Neighbours(index, path.with_name(f"{path.name}.{suffix}"))
    except OptionError:
        if ann:
            raise
        return index.search
    if not neighbours.is_built():
        if not ann:
            return index.search
        n_rows, room = len(index.rows), neighbours.memory / 1e9
        note = f"Note: an index of {n_rows:,} rows is built once, in {room:.1f} GB of memory: {neighbours.path}"
        click.echo(one_line(note), err=True)
        neighbours.build()
    return neighbours.search


def clock(seconds: float) -> str:
    """Format a time in a file: 0:03.20, 1:02:03.00."""
    if seconds != seconds:
        return "end"
    minutes, rest = divmod(seconds, 60)
    hours, minutes = divmod(int(minutes), 60)
    return f"{hours}:{minutes:02d}:{rest:05.2f}" if hours else f"{minutes}:{rest:05.2f}"


def show_matches(query: str, found: list[Match], *, as_json: bool) -> None:
    """Print the matches of one query."""
    if as_json:
        click.echo(json.dumps({"query": query, "matches": [match.as_record() for match in found]}))
        return
    click.echo(one_line(query))
    header = ("", "COSINE", "ROW", "START", "END", "FILE")
    rows = [header]
    for match in found:
        span = match.span
        at = "" if match.query_s is None else f"  (at {clock(match.query_s)} of the query)"
        channel = "" if span.channel is None else f", channel {span.channel}"
        cells = (f"{match.cosine:.3f}", str(match.row), clock(span.start), clock(span.end))
        rows.append(("", *cells, one_line(f"{span.file}{channel}{at}")))
    echo_table(rows)


def show_pairs(index: Index, least: float, *, as_json: bool) -> None:
    """Print pairs of rows that are nearly the same."""
    from hear_transformers.explore.queries import Match

    pairs = index.near_duplicates(least)
    rows: list[tuple[str, ...]] = [("COSINE", "ROW", "START", "FILE", "ROW", "START", "FILE")]
    for pair in pairs:
        both = [Match(row, index.rows.span(row), pair.cosine) for row in (pair.first, pair.second)]
        if as_json:
            record: dict[str, Any] = {"cosine": round(pair.cosine, 6)}
            for name, match in zip(("first", "second"), both, strict=True):
                record[name] = {key: value for key, value in match.as_record().items() if key != "cosine"}
            click.echo(json.dumps(record))
        cells = [(str(each.row), clock(each.span.start), one_line(each.span.file)) for each in both]
        rows.append((f"{pair.cosine:.3f}", *cells[0], *cells[1]))
    if not as_json:
        echo_table(rows if pairs else [(f"No two rows have a cosine of {least:g} or more.",)])
