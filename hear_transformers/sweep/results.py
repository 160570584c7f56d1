"""What a sweep finds: a row for each setting, task, probe and metric, and tables of them."""

from __future__ import annotations

import csv
import io
import math
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from ..errors import OptionError
from ..files import atomic

NO_POOL = "vector"
"""Pooling of a layer that is a vector, to which none applies."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A score of one setting.

    Attributes
    ----------
    task : name of the data
    model : as the user wrote it: "passt/base"; with "(random)" behind it where the weights are
    layer : one, or several joined by "+"
    pool : from layer to vector, or `NO_POOL`
    framing : "scene", "windowed" or "native"
    window_ms : receptive field
    hop_ms : distance of two embeddings; None for scenes of the model's own hop
    probe : a key of `fitting.PROBES`, or of `transfer.WAYS` where the network is trained itself
    clips_per_class : that are trained on; None for all there are
    metric : of `metrics`; that which settings are chosen by has `is_main`
    value, low, high : score and its interval
    size : numbers per embedding
    clips : that were scored
    seconds_per_hour : of compute for an hour of audio, that of all layers and poolings that share the forward pass: on
        a CPU its time on all cores together, which does not depend on what else runs, on a card elapsed time
    command : that embeds with this setting
    """

    task: str
    model: str
    layer: str
    pool: str
    framing: str
    window_ms: float
    hop_ms: float | None
    probe: str
    clips_per_class: int | None
    metric: str
    is_main: bool
    value: float
    low: float
    high: float
    size: int
    clips: int
    seconds_per_hour: float
    command: str


COLUMNS: Mapping[str, str] = {field.name: str(field.type) for field in fields(Row)}
"""Name -> type, as `Row` writes it."""

KEY = ("task", "model", "layer", "pool", "framing", "window_ms", "hop_ms", "probe", "clips_per_class", "metric")
"""What a row is of; the other columns are what was found."""

PARSERS: Mapping[str, Callable[[str], Any]] = {
    "str": str,
    "int": int,
    "float": float,
    "float | None": lambda text: float(text) if text else None,
    "int | None": lambda text: int(text) if text else None,
    "bool": {"True": True, "False": False}.__getitem__,
}


def key_of(row: Row) -> tuple[Any, ...]:
    """Return what a row is of: setting, task, probe and metric."""
    return tuple(getattr(row, name) for name in KEY)


def for_json(row: Row) -> dict[str, Any]:
    """Return a row by column; what is not known (NaN), which JSON does not have, is None."""
    values = {name: getattr(row, name) for name in COLUMNS}
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in values.items()}


def unique(rows: Iterable[Row]) -> list[Row]:
    """Return a row for each `key_of`, the last one, where the first one was."""
    return list({key_of(row): row for row in rows}.values())


def write_csv(path: Path, rows: Iterable[Row]) -> None:
    """Write a table that `read_csv` reads exactly, atomically."""
    # Lines end as RFC 4180 has it: Python before 3.13 does not quote "\r" otherwise. Names of files need not be text.
    with atomic(path) as file, io.TextIOWrapper(file, encoding="utf-8", errors="surrogateescape", newline="") as text:
        writer = csv.writer(text)
        writer.writerow(COLUMNS)
        writer.writerows([getattr(row, name) for name in COLUMNS] for row in rows)


def read_csv(path: Path) -> list[Row]:
    """Read the table that `write_csv` wrote, in whatever order its columns are now.

    Raises
    ------
    OptionError : the file is none, or damaged; the message names its first bad line
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            reader = csv.reader(file, strict=True)
            header = next(reader, [])
            if set(header) != set(COLUMNS) or len(header) != len(COLUMNS):
                wrong = ", ".join(sorted(set(header) ^ set(COLUMNS)))
                raise OptionError(
                    f"{path}: is no table of a sweep, whose columns are {', '.join(COLUMNS)}; missing or unknown: "
                    f"{wrong}"
                )
            return [_parse(header, line, f"{path}: line {reader.line_num}") for line in reader]
    except (OSError, csv.Error) as error:
        raise OptionError(f"{path}: cannot be read ({error}); a sweep writes results.csv") from error


def _parse(header: Sequence[str], line: Sequence[str], where: str) -> Row:
    if len(line) != len(header):
        raise OptionError(f"{where}: has {len(line)} cells, the header {len(header)}; remove the line to score it anew")
    values = {}
    for name, text in zip(header, line, strict=True):
        try:
            values[name] = PARSERS[COLUMNS[name]](text)
        except (ValueError, KeyError):
            raise OptionError(f"{where}: {name}={text!r} is no {COLUMNS[name]}") from None
    return Row(**values)


def write_parquet(path: Path, rows: Sequence[Row]) -> None:
    """Write the same table as Parquet, atomically; needs pyarrow. What is no text in names is escaped."""
    import pyarrow
    import pyarrow.parquet

    def column(name: str) -> list[Any]:
        values = [getattr(row, name) for row in rows]
        if COLUMNS[name] != "str":
            return values
        return [value.encode("utf-8", "backslashreplace").decode() for value in values]

    with atomic(path) as file:
        pyarrow.parquet.write_table(pyarrow.table({name: column(name) for name in COLUMNS}), file)
