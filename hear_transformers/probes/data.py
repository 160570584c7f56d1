"""Labelled audio or a table of embeddings -> clips with labels, folds and groups, and their embeddings."""

from __future__ import annotations

import math
import os
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import Any

import numpy as np
from numpy.typing import NDArray

from ..bulk import extract
from ..bulk.formats import AUDIO, FILES, SUFFIXES, TABLES
from ..bulk.outputs import OutputOptions
from ..bulk.rows import FIELDS
from ..bulk.rows import parse_columns as parse_fields
from ..bulk.sources import Source
from ..bulk.tables import TableFormat
from ..embedding.pipeline import Model
from ..errors import OptionError, TrainingError
from ..harness.tasks import METADATA, read_task
from ..training.manifest import Layout, Manifest, read_column, read_labelled

Floats = NDArray[np.float32]

FOLD, GROUP = "fold", "group"
MORE_FIELDS = (FOLD, GROUP)
"""What a column may hold beside `rows.FIELDS`."""

N_SHOWN = 3
"""Files that a message names."""


@dataclass(frozen=True, slots=True, eq=False)
class Labelled:
    """Clips with labels.

    Attributes
    ----------
    source : where they are from
    paths : of the audio files
    spans : start and end in s of the part of each file, 0 and infinity for all of it
    classes : names
    targets : (clips, classes)
    folds, groups : of each clip; None if there are none
    """

    source: Path
    paths: tuple[Path, ...]
    spans: tuple[tuple[float, float], ...]
    classes: tuple[str, ...]
    targets: NDArray[np.float32]
    folds: tuple[str, ...] | None = None
    groups: tuple[str, ...] | None = None


@dataclass(frozen=True, slots=True, eq=False)
class Embedded:
    """Embeddings of some clips.

    Attributes
    ----------
    kept : numbers of the clips that have one
    embeddings : (kept, size)
    provenance : what made them
    failed : messages, one for each clip that could not be embedded
    """

    kept: NDArray[np.int64]
    embeddings: Floats
    provenance: Mapping[str, Any]
    failed: Sequence[str] = field(default_factory=tuple)


def parse_columns(text: str) -> tuple[dict[str, str], dict[str, str]]:
    """Parse what columns hold: fields of `rows.FIELDS`, and of `MORE_FIELDS`; raise OptionError like `rows`."""
    parts = re.split(r",\s*(?=(?:{})=)".format("|".join((*FIELDS, *MORE_FIELDS))), text)
    more = {name: column for part in parts for name, _, column in [part.strip().partition("=")] if name in MORE_FIELDS}
    rest = [part for part in parts if part.strip().partition("=")[0] not in more]
    return parse_fields(",".join(rest)), more


def is_table(data: Path) -> bool:
    """Return True if a file is a table of embeddings, as `embed-audio` writes them."""
    format = SUFFIXES.get(data.suffix.lower())
    return format in TABLES and data.is_file() and TABLES[format]({}).provenance_of(data) is not None


def read_clips(
    data: Path, layout: Layout | None = None, more: Mapping[str, str] | None = None, sample_rate: int | None = None
) -> Labelled:
    """Read labelled clips, without opening the audio.

    Parameters
    ----------
    data : a folder with a folder for each class, a table of files and labels, or a folder of a HEAR task
    layout : of a table
    more : "fold", "group": the column of a table that holds it
    sample_rate : of the audio of a HEAR task, in Hz

    Raises
    ------
    TrainingError, OptionError : see `training.manifest.read_labelled` and `harness.tasks.read_task`
    """
    if (data / METADATA).is_file():
        return _of_task(data, sample_rate)
    clips = read_labelled(data, layout=layout)
    found = read_more(clips, layout, more or {})
    return _of_manifest(clips, found.get(FOLD), found.get(GROUP))


def read_more(clips: Manifest, layout: Layout | None, more: Mapping[str, str]) -> dict[str, tuple[str, ...]]:
    """Read the columns of fold and group of a table, a cell for each of its rows; raise TrainingError if one is empty.

    Parameters
    ----------
    clips : of the table
    layout : of the table
    more : see `read_clips`
    """
    found = {name: tuple(read_column(clips.source, column, layout)) for name, column in more.items()}
    for name, values in found.items():
        if "" in values:
            line = clips.lines[values.index("")]
            raise TrainingError(
                f"{clips.source}: line {line} has no {name}; fill the column {more[name]!r}, or omit it"
            )
    return found


def _of_manifest(clips: Manifest, folds: tuple[str, ...] | None, groups: tuple[str, ...] | None) -> Labelled:
    numbers = range(len(clips))
    without = [i for i in numbers if not clips.n_labels[i]]
    if without and clips.n_labels.max() <= 1:  # where others have several, none may be meant
        shown = ", ".join(str(clips.path(i)) for i in without[:N_SHOWN])
        raise TrainingError(
            f"{clips.source}: {len(without)} files are without label ({shown}); label them, or leave them out"
        )
    paths, spans = tuple(map(clips.path, numbers)), tuple(map(clips.span, numbers))
    return Labelled(clips.source, paths, spans, clips.classes, clips.targets(list(numbers)), folds, groups)


def _of_task(folder: Path, sample_rate: int | None) -> Labelled:
    task = read_task(folder)
    if task.kind != "scene":
        raise OptionError(f"{folder}: a task of events, whose labels are those of parts of files; read them as events")
    if sample_rate is None:
        raise OptionError(f"{folder}: of a HEAR task audio of the model's sample rate is read")
    files = [(split, name, labels) for split in task.splits for name, labels in task.labels[split].items()]
    classes = sorted({str(label) for _, _, labels in files for label in labels})
    numbers = {name: i for i, name in enumerate(classes)}
    targets = np.zeros((len(files), len(classes)), np.float32)
    for row, (_, _, labels) in zip(targets, files, strict=True):
        row[[numbers[str(label)] for label in labels]] = 1.0
    audio = {split: task.audio(split, sample_rate) for split in task.splits}
    paths = tuple(audio[split] / name for split, name, _ in files)
    spans = ((0.0, math.inf),) * len(files)
    return Labelled(folder, paths, spans, tuple(classes), targets, tuple(split for split, _, _ in files))


# Embeddings


def embed_clips(
    clips: Labelled,
    model: Model,
    folder: Path,
    *,
    workers: int = 0,
    on_start: Callable[[int], None] = lambda n: None,
    on_outcome: Callable[[extract.Outcome], None] = lambda outcome: None,
) -> Embedded:
    """Embed clips into a folder, where a later run with the same model finds them; a clip that fails is left out."""
    pairs = list(zip(clips.paths, clips.spans, strict=True))
    how: dict[str, Any] = {"workers": workers, "on_start": on_start, "on_outcome": on_outcome}
    found, provenance, failed = extracted(clips.source, pairs, model, folder, **how)
    rows = []
    for _, path in found:
        with np.load(path) as archive:
            rows.append(archive["embedding"])
    return Embedded(np.array([i for i, _ in found]), np.stack(rows).astype(np.float32), provenance, failed)


Clips = Sequence[tuple[Path, tuple[float, float]]]
"""Audio files, and start and end of the part of each in s, 0 and infinity for all of it."""


def extracted(
    source: Path,
    clips: Clips,
    model: Model | Sequence[Model],
    folder: Path,
    options: OutputOptions = extract.DEFAULTS,
    **how: Any,
) -> tuple[list[tuple[int, Path]], dict[str, Any], list[str]]:
    """Embed clips into files of a folder, where a later run with the same model finds them.

    Parameters
    ----------
    source : where the clips are from, for errors
    clips : to embed
    model, folder, options, how : see `extract.extract`

    Returns
    -------
    found : number and output of each clip that has one; of several models that of the first
    provenance : what made the embeddings
    failed : messages, one for each clip that could not be embedded

    Raises
    ------
    TrainingError : none could be embedded
    """
    common = os.path.commonpath([path.absolute().parent for path, _ in clips])
    names = [PurePath(os.path.relpath(path.absolute(), common)) for path, _ in clips]
    sources = [Source(path, name, start=s, end=e) for (path, (s, e)), name in zip(clips, names, strict=True)]
    report = extract.extract(model, sources, os.path.join(folder, ""), options, **how)
    outputs = {(o.source, o.start, o.end): o.output for o in (*report.written, *report.skipped)}
    keys = [(str(each.path), each.start, each.end) for each in sources]
    found = [(i, path) for i, key in enumerate(keys) if (path := outputs.get(key)) is not None]
    if not found:
        raise TrainingError(f"{source}: none of its {len(clips)} clips could be embedded")
    made_with = FILES[options.format].provenance_of(found[0][1])
    provenance = {key: value for key, value in made_with.items() if key != AUDIO}
    return found, provenance, [outcome.message for outcome in report.failed]


def read_table(table: Path, labels: Labelled | None = None) -> tuple[Labelled, Embedded]:
    """Read a table of embeddings, one for each clip, and find the label of each.

    Parameters
    ----------
    table : from `embed-audio`, Parquet or HDF5
    labels : of its files; None if each lies in a folder named after its class

    Raises
    ------
    TrainingError : the table is empty, holds embeddings along time or of several layers, files without label, or labels
        match no file
    """
    reader: TableFormat = TABLES[SUFFIXES[table.suffix.lower()]]({})
    n_rows = reader.n_rows_of(table)
    if not n_rows:
        raise TrainingError(f"{table}: the table is empty; embed some audio into it")
    _check_one_kind(table, reader)
    with reader.reader(table) as read:
        blocks = [{name: np.asarray(column) for name, column in block.items()} for block in read(0, n_rows)]
    rows = {name: np.concatenate([block[name] for block in blocks]) for name in blocks[0]}
    if not np.isnan(rows["time_ms"].astype(float)).all():
        raise TrainingError(
            f"{table}: holds embeddings along time; a probe of clips needs one for each, with --scene; of labelled "
            "segments give their table as DATA, with the columns path, labels, start and end"
        )
    files = [Path(each.decode() if isinstance(each, bytes) else str(each)) for each in rows["file"]]
    ends = np.where(np.isnan(rows["part_end"].astype(float)), math.inf, rows["part_end"].astype(float))
    spans = list(zip(rows["part_start"].tolist(), ends.tolist(), strict=True))
    provenance = reader.provenance_of(table) or {}
    everything = np.arange(n_rows), rows["embedding"].astype(np.float32), provenance
    if labels is None:
        return _by_folder(table, files, spans), Embedded(*everything)
    numbers = _matched(table, files, spans, labels)
    kept = np.array([i for i, number in enumerate(numbers) if number is not None])
    found = [number for number in numbers if number is not None]
    return taken_rows(labels, found), Embedded(np.arange(len(kept)), everything[1][kept], provenance)


def _check_one_kind(table: Path, reader: TableFormat) -> None:
    """Raise TrainingError if rows were made differently: such tables are put together by hand."""
    if reader.name != "parquet":
        return  # the layer is that of the whole file
    file = reader.library.parquet.ParquetFile(table)
    with file:
        if "layer" not in file.schema_arrow.names:
            return
        layers = file.read(columns=["layer"])["layer"].unique().to_pylist()
    if len(layers) > 1:
        raise TrainingError(
            f"{table}: its rows are of mixed provenance, layers {', '.join(map(str, layers))}; probe each in a table "
            "of its own"
        )


def _by_folder(table: Path, files: Sequence[Path], spans: Sequence[tuple[float, float]]) -> Labelled:
    names = [path.parent.name for path in files]
    if "" in names:
        raise TrainingError(
            f"{table}: {files[names.index('')]} is without label: it lies in no folder that names its class; give "
            "--labels-from, a table with the columns path and labels"
        )
    classes = sorted(set(names))
    targets = np.eye(len(classes), dtype=np.float32)[[classes.index(name) for name in names]]
    return Labelled(table, tuple(files), tuple(spans), tuple(classes), targets)


def _matched(
    table: Path, files: Sequence[Path], spans: Sequence[tuple[float, float]], labels: Labelled
) -> list[int | None]:
    """Return which label belongs to each row: of the same part of the same path, or else of the only file so named."""
    by_path = {
        (os.path.abspath(p), *span): i for i, (p, span) in enumerate(zip(labels.paths, labels.spans, strict=True))
    }
    counts = Counter((path.name, *span) for path, span in zip(labels.paths, labels.spans, strict=True))
    by_name = {
        (path.name, *span): i
        for i, (path, span) in enumerate(zip(labels.paths, labels.spans, strict=True))
        if counts[(path.name, *span)] == 1
    }
    numbers = [
        by_path.get((os.path.abspath(path), *span), by_name.get((path.name, *span)))
        for path, span in zip(files, spans, strict=True)
    ]
    if all(number is None for number in numbers):
        raise TrainingError(
            f"{labels.source}: its labels match no file of {table}: it has {labels.paths[0]}, the table {files[0]}; "
            "paths are compared, and names of files where these differ"
        )
    if None in numbers:
        without = [str(path) for path, number in zip(files, numbers, strict=True) if number is None]
        shown = ", ".join(without[:N_SHOWN])
        raise TrainingError(
            f"{labels.source}: {len(without)} files of {table} are without label ({shown}); label them, or give "
            f"{labels.source} as DATA: its clips alone are embedded"
        )
    return numbers


def taken_rows(clips: Labelled, rows: Sequence[int]) -> Labelled:
    """Return some of the clips, in this order."""

    def pick(values: Sequence[Any]) -> tuple[Any, ...]:
        return tuple(values[i] for i in rows)

    return Labelled(
        clips.source,
        pick(clips.paths),
        pick(clips.spans),
        clips.classes,
        clips.targets[list(rows)],
        None if clips.folds is None else pick(clips.folds),
        None if clips.groups is None else pick(clips.groups),
    )


def taken(clips: Labelled, embedded: Embedded) -> Labelled:
    """Return the clips that have an embedding."""
    return taken_rows(clips, embedded.kept.tolist())
