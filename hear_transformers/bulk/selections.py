"""Parts of audio files, and what is heard in them, as tables that other programs open and `manifest` reads.

csv       ``path,start,end,label,score``, of any number of files; times in s
raven     a selection table of Raven: a row per part, its label under Species; of any number of files
audacity  a label track: start, end and label, without a header; of one file, as it has no place for its name
"""

from __future__ import annotations

import csv
import io
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from pathlib import Path, PurePath
from typing import NamedTuple

import numpy as np

from ..errors import AudioError, OptionError, unknown
from ..files import Address, atomic, parse_json, place_of
from .formats import AUDIO, FILES, TABLES, is_folder
from .sources import Source, name_outputs

HIGHEST_HZ = 24_000.0
"""Upper edge of a selection in Raven, whose tables have one: of the whole band, up to 48 kHz."""


SUFFIXES = (".csv", ".tsv", ".txt")
"""Of a table of selections."""

ENDS = {"csv": ".csv", "raven": ".Table.1.selections.txt", "audacity": ".labels.txt"}
"""Format -> what the name of a table of one audio file ends in; Raven's own name for it."""


class Selection(NamedTuple):
    """A part of an audio file.

    Attributes
    ----------
    file : its path or address
    start, end : in s from the beginning of the file; NaN for an end that nobody knows
    label : what is heard, empty if unknown
    score : of the label, None if there is none
    """

    file: str
    start: float
    end: float
    label: str = ""
    score: float | None = None


def write_selections(path: str | os.PathLike[str], selections: Iterable[Selection], format: str) -> None:
    """Write a table of selections, in their order; a complete one, or none.

    Parameters
    ----------
    path : of the table
    selections : of one file in a label track of Audacity
    format : a key of `FORMATS`

    Raises
    ------
    OptionError : the format is unknown, or does not hold these selections
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    selections = list(selections)
    for each in selections if format != "csv" else ():
        if math.isnan(each.end):
            raise OptionError(
                f"{each.file}: its end is not known, and {format} wants one; give --format csv, or embed segments"
            )
    text = FORMATS[format](selections)
    with atomic(Path(path)) as file:
        file.write(text.encode("utf-8", "surrogateescape"))


def write_each(
    out: str | os.PathLike[str], selections: Iterable[Selection], format: str, *, overwrite: bool = False
) -> list[Path]:
    """Write selections to one table, or to a table for each audio file.

    Parameters
    ----------
    out : ends in .csv, .tsv or .txt: one table for all; else a folder of tables that are named after their files
    selections, format : see `write_selections`
    overwrite : replace tables that exist, in which somebody may have filled in labels

    Returns
    -------
    paths : of the tables

    Raises
    ------
    OptionError : see `write_selections`; or a table exists, and nothing was written
    """
    if format not in FORMATS:
        raise unknown("format", format, FORMATS)
    selections = list(selections)
    groups = _by_table(Path(out), selections, format, one=Path(out).suffix.lower() in SUFFIXES and not is_folder(out))
    for path in groups if not overwrite else ():
        if path.exists():
            raise OptionError(
                f"{path} exists, perhaps with labels of yours; give another --out, or --overwrite to replace it"
            )
    for path, group in groups.items():
        write_selections(path, group, format)
    return list(groups)


def _by_table(out: Path, selections: list[Selection], format: str, *, one: bool) -> dict[Path, list[Selection]]:
    """Return the selections of each table, all in `one` or those of each audio file."""
    if one:
        return {out: selections}
    by_file: dict[str, list[Selection]] = {}
    for each in selections:
        by_file.setdefault(each.file, []).append(each)
    places = [place_of(file) for file in by_file]
    names = [PurePath(place.path.name if isinstance(place, Address) else place.name) for place in places]
    sources = [Source(place, name) for place, name in zip(places, names, strict=True)]
    return {
        out / name: group for name, group in zip(name_outputs(sources, ENDS[format]), by_file.values(), strict=True)
    }


def _as_csv(selections: Sequence[Selection]) -> str:
    rows = [
        (absolute(each.file), in_seconds(each.start), in_seconds(each.end), each.label, _score(each))
        for each in selections
    ]
    return _table([("path", "start", "end", "label", "score"), *rows], ",")


def _as_raven(selections: Sequence[Selection]) -> str:
    """Write times from the beginning of each file, which is what its File Offset says."""
    header = "Selection,View,Channel,Begin Time (s),End Time (s),Low Freq (Hz),High Freq (Hz),Begin File,Begin Path"
    rows = [
        (
            str(number),
            "Spectrogram 1",
            "1",
            in_seconds(each.start),
            in_seconds(each.end),
            "0",
            f"{HIGHEST_HZ:g}",
            os.path.basename(each.file),
            absolute(each.file),
            in_seconds(each.start),
            _cell(each.label),
            _score(each),
        )
        for number, each in enumerate(selections, start=1)
    ]
    return _table([(*header.split(","), "File Offset (s)", "Species", "Score"), *rows], "\t")


def _as_audacity(selections: Sequence[Selection]) -> str:
    if len(files := {each.file for each in selections}) > 1:
        raise OptionError(
            f"a label track of Audacity is of one file, and these are of {len(files)}; write one for each"
        )
    return "".join(f"{each.start:.6f}\t{each.end:.6f}\t{_cell(each.label)}\n" for each in selections)


FORMATS: dict[str, Callable[[Sequence[Selection]], str]] = {
    "csv": _as_csv,
    "raven": _as_raven,
    "audacity": _as_audacity,
}
"""Format -> the text of a table."""


def _table(rows: Iterable[tuple[str, ...]], delimiter: str) -> str:
    text = io.StringIO()
    csv.writer(text, delimiter=delimiter, lineterminator="\n").writerows(rows)
    return text.getvalue()


def absolute(file: str) -> str:
    """Return the absolute path of a file, so that a table may lie anywhere; an address as it is."""
    try:
        return file if isinstance(place_of(file), Address) else os.path.abspath(file)
    except AudioError:
        return file


def in_seconds(seconds: float) -> str:
    """Write a time: to a microsecond, empty for NaN."""
    return "" if math.isnan(seconds) else f"{seconds:.6f}".rstrip("0").rstrip(".")


def _score(selection: Selection) -> str:
    return "" if selection.score is None else f"{selection.score:.6g}"


def _cell(label: str) -> str:
    """Return a label in one line without tabs, which no quotes protect in these programs."""
    return " ".join(label.split())


# Embeddings -> selections


def selections_of(outputs: str | os.PathLike[str]) -> Iterator[Selection]:
    """Read which part of which file every embedding of an output is of, in bounded memory.

    Parameters
    ----------
    outputs : a table, a file of NumPy, or a folder of such, searched with its subfolders

    Raises
    ------
    OptionError : it does not exist, or holds no embeddings that `extract` wrote
    """
    path = Path(outputs)
    by_suffix = {suffix: name for name, form in {**FILES, **TABLES}.items() for suffix in form.suffixes}
    found = sorted(each for each in path.rglob("*") if each.is_file()) if path.is_dir() else [path]
    found = [each for each in found if each.suffix in by_suffix and not _is_hidden(each.relative_to(path))]
    if not path.exists() or not found:
        raise OptionError(f"{path}: no embeddings; give a table or a folder that embed-audio wrote")
    for each in found:
        name = by_suffix[each.suffix]
        yield from _of_table(each, name) if name in TABLES else _of_file(each, name)


def _is_hidden(path: Path) -> bool:
    return any(part.startswith(".") for part in path.parts)


def _of_table(path: Path, name: str) -> Iterator[Selection]:
    table = TABLES[name]({})
    if not isinstance(table.provenance_of(path), dict):
        raise OptionError(f"{path}: not a table that embed-audio wrote")
    with table.reader(path) as read:
        for block in read(0, table.n_rows_of(path)):
            files = (each.decode() if isinstance(each, bytes) else str(each) for each in block["file"])
            yield from map(Selection, files, block["start"].tolist(), block["end"].tolist())


def _of_file(path: Path, name: str) -> Iterator[Selection]:
    made_with = FILES[name].provenance_of(path)
    if not isinstance(made_with, dict) or not isinstance(audio := made_with.get(AUDIO), dict):
        return  # of somebody else
    if name == "npy":
        spans = parse_json(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))
    else:
        with np.load(path) as archive:
            spans = {key: archive[key].tolist() for key in ("start", "end") if key in archive}
    whole = [audio["start"]], [math.nan if audio["end"] is None else audio["end"]]
    for start, end in zip(*((spans["start"], spans["end"]) if "start" in spans else whole), strict=True):
        yield Selection(audio["file"], start, end)
