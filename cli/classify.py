"""`embed-audio DATA --probe my_probe`, or `--labels --timestamps`: audio files -> classes, or events along time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers.errors import OptionError, import_extra

from .checks import TOP_K
from .failures import one_line
from .outcomes import FEW_FILES, Progress
from .probe import OF_MODEL, TRUST, load

if TYPE_CHECKING:
    from hear_transformers.bulk.extract import Outcome
    from hear_transformers.bulk.sources import Source
    from hear_transformers.explain import timeline
    from hear_transformers.probes.classifying import Line, Place
    from hear_transformers.probes.saved import Saved

SUFFIXES = {".csv": ("csv",), ".txt": ("raven", "audacity")}
"""Suffix of one table -> formats that it may have."""

FORMATS = ("csv", "raven", "audacity")
"""Of tables of events."""

OF_OTHERS = (
    *OF_MODEL[1:],
    *("models", "scene", "segment", "overlap", "labels", "top_k", "separate_layers", "dtype", "compile"),
)
"""Options that the probe decides, or that make no sense beside it."""

OF_EMBEDDINGS = ("separate_layers", "dtype")
"""Options of outputs that labels along time are not."""

USUAL = {"shard": (0, 1), "batch_size": None, "fail_fast": False, "resample": "auto", "channel": "mix"}
"""Options that classifying does not have, and their defaults."""


def classify(
    probe: str, sources: Sequence[Source], out: str, device: str, workers: int, options: dict[str, Any]
) -> int:
    """Classify files with a probe; write tables and return how many failed.

    Parameters
    ----------
    probe : folder
    sources : files
    out : a table, or a folder
    device, workers : of the model
    options : of the command
    """
    refuse_others(options)
    from hear_transformers.probes import classifying

    held = with_threshold(classifying.read_probe(probe), options["threshold"])
    place = place_of(out, options["format"], along_time=held.processing is not None, what="this probe")
    if options["plot"]:
        if held.processing is None:
            raise OptionError("--plot draws classes along time, and this probe is of whole clips; leave it out")
        check_drawing()
    model = load(model_of(held) | {TRUST: options[TRUST]}, device)
    return write(probe, held, model, sources, place, workers, options)


def tag(model: Any, sources: Sequence[Source], place: Place, workers: int, options: dict[str, Any]) -> int:
    """Write where the classes of a network are heard in files; return how many failed.

    Parameters
    ----------
    model : embeds, by logits along time: in a list, or on several devices
    sources : files
    place : of the tables
    workers : processes that read audio
    options : of the command; "n_labels" is how many are shown of a file
    """
    from hear_transformers.embedding.pipeline import models_of
    from hear_transformers.probes import classifying
    from hear_transformers.probes.events import THRESHOLD

    threshold = THRESHOLD if options["threshold"] is None else options["threshold"]
    held = classifying.own_classes(models_of(model)[0], threshold)
    (model,) = model if isinstance(model, list) else (model,)
    return write(None, held, model, sources, place, workers, options)


def write(
    probe: str | None,
    held: Saved,
    model: Any,
    sources: Sequence[Source],
    place: Place,
    workers: int,
    options: dict[str, Any],
) -> int:
    """Classify files and write tables, see `classify` and `tag`; return how many failed."""
    from hear_transformers.probes import classifying

    quiet, as_json, n_labels = options["quiet"], options["as_json"], options.get("n_labels", 0)
    pictures = pictures_of(held, model, sources, place, options) if options["plot"] else None
    with Progress(quiet=quiet or as_json, as_json=False) as progress:

        def show(outcome: Outcome, line: Line | None) -> None:
            for warning in outcome.warnings:
                click.echo(one_line(f"Warning: {warning}"), err=True)
            progress.show(outcome)
            if line is None:
                return
            if as_json:
                click.echo(json.dumps(as_record(line)))
            elif n_labels and not quiet:
                progress.write("\n".join(map(one_line, tag_lines(line, n_labels))))

        outcomes = classifying.classify(
            probe,
            held,
            model,
            sources,
            place,
            workers=workers,
            keep_damaged=options["keep_damaged"],
            overwrite=options["overwrite"],
            pictures=pictures,
            on_start=progress.start,
            on_outcome=show,
        )
    n_failed = sum(outcome.status == "failed" for outcome in outcomes)
    n_kept = sum(outcome.status == "skipped" for outcome in outcomes)
    if not (quiet or as_json):
        kept = f", {n_kept} of them in an earlier run" if n_kept else ""
        where = place.folder / (place.file or "")
        click.echo(f"{len(outcomes) - n_failed} classified{kept}, {n_failed} failed: {where}")
        if pictures is not None:
            summarise_pictures([path for path in pictures.paths.values() if path.exists()])
    return n_failed


def check_drawing() -> None:
    """Raise OptionError if what draws is not installed."""
    import_extra("--plot", "matplotlib", "plot")


def pictures_of(
    held: Saved, model: Any, sources: Sequence[Source], place: Place, options: dict[str, Any]
) -> timeline.PNGs:
    """Return what draws classes along time; raise OptionError for models of others."""
    from hear_transformers.embedding.embedder import Embedder
    from hear_transformers.explain import timeline

    if not isinstance(model, Embedder):
        raise OptionError("--plot draws what a model of this package hears, on one device; leave it out, or --device")
    assert held.processing is not None
    n_rows = options.get("n_labels") or TOP_K
    paths, frontend = place.pictures(sources), model.variant.frontend
    name, threshold = "/".join(model.name), held.processing.threshold
    how = {"keep_damaged": options["keep_damaged"]}
    return timeline.PNGs(paths, held.classes, frontend, name, threshold, n_rows, **how)


def summarise_pictures(paths: Sequence[Path]) -> None:
    """Print where the pictures are."""
    for path in paths[:FEW_FILES]:
        click.echo(one_line(str(path)))
    if len(paths) > FEW_FILES:
        click.echo(f"{len(paths) - FEW_FILES} more pictures")


def tag_lines(line: Line, n: int) -> Iterator[str]:
    """Return what is shown of the tags of a file: the `n` likeliest classes, when they are heard."""
    yield line["path"]
    best: dict[str, float] = {}
    for label, _, _, score in line["events"]:
        best[label] = max(score, best.get(label, 0.0))
    shown = sorted(best, key=lambda label: -best[label])[:n]
    for label, start, end, score in line["events"]:
        if label in shown:
            yield f"  {start:7.2f} - {end:7.2f} s  {score:.3f}  {label}"
    if not shown:
        label, time, score = line["likeliest"]
        yield f"  nothing above the threshold; likeliest at {time:.2f} s: {score:.3f}  {label}"


def with_threshold(held: Saved, threshold: float | None) -> Saved:
    """Return a probe with another threshold of events, or as it is."""
    if threshold is None:
        return held
    if held.processing is None:
        raise OptionError("--threshold is of events along time, and this probe is of whole clips; leave it out")
    return replace(held, processing=held.processing._replace(threshold=threshold))


def refuse_others(options: dict[str, Any]) -> None:
    """Raise UsageError for options that the probe decides, or that classifying does not have."""
    given = [f"--{name.removesuffix('s') if name == 'models' else name}" for name in OF_OTHERS if options.get(name)]
    if given:
        raise click.UsageError(f"{', '.join(given).replace('_', '-')}: decided by the probe; leave it out")
    refuse_unusual(options, "--probe")


def refuse_unusual(options: dict[str, Any], what: str) -> None:
    """Raise UsageError for options that classifying does not have."""
    given = [name for name, usual in USUAL.items() if options[name] != usual]
    if given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{shown}: does not go with {what}; leave it out")


def as_record(line: Line) -> dict[str, Any]:
    """Return the JSON object of a file."""
    record = {name: line[name] for name in ("path", "start", "end")}
    if "cells" in line:
        return record | {"predicted": line["cells"][0]}
    names = ("label", "start", "end", "score")
    return record | {"events": [dict(zip(names, event, strict=True)) for event in line["events"]]}


def model_of(held: Saved) -> dict[str, Any]:
    """Return the options that load the model of a probe: those it was fitted with, or what its table says."""
    if held.model:
        return dict(held.model)
    made_with = held.provenance
    read, *others = [made_with["scene"]] if "scene" in made_with else made_with["timestamps"]
    along = {}
    if "scene" not in made_with:
        lengths = [each["window_ms"] for each in (read, *others)]
        along = {"mean_over_time": True, "window_ms": lengths, **{key: made_with[key] for key in ("hop_ms", "framing")}}
    return {
        "model": f"{made_with['family']}/{made_with['variant']}",
        "layer": ",".join(read["layers"]),
        "pool": read["pool"],
        "precision": made_with["precision"],
        **along,
    }


def place_of(out: str, format: str | None, *, along_time: bool, what: str) -> Place:
    """Return where tables go, and their format; raise OptionError if there is no such.

    Parameters
    ----------
    out : ends in .csv or .txt: one table for all files; else a folder, of one table in CSV, of others one for each file
    format : by name; None for that of the suffix
    along_time : whether they are of events
    what : is to be written, for errors
    """
    from hear_transformers.probes.classifying import CSV, OUTPUT, Place

    path = Path(out)
    is_folder = out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix
    of_suffix = (CSV,) if is_folder else SUFFIXES.get(path.suffix.lower(), ())
    formats = FORMATS if along_time else (CSV,)
    if not is_folder and not set(of_suffix) & set(formats):
        ends = ".csv or .txt" if along_time else ".csv"
        raise OptionError(f"--out {out}: with {what} the output ends in {ends}, or is a folder")
    if format is not None and format not in formats:
        raise OptionError(f"--format {format}: with {what} the output is {', '.join(formats)}")
    if format is not None and not is_folder and format not in of_suffix:
        raise OptionError(f"--format {format} does not go with --out {out}; leave one of them out")
    if format is None and len(of_suffix) > 1:
        raise OptionError(f"--out {out}: of Raven or of Audacity? give --format {' or '.join(of_suffix)}")
    format = format or CSV
    if is_folder:
        return Place(path, f"{OUTPUT}.csv" if format == CSV else None, format)
    return Place(path.parent, path.name, format)
