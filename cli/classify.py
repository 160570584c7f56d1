"""`embed-audio DATA --probe my_probe`: audio files -> the classes of a probe, or the events that it finds."""

from __future__ import annotations

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers.errors import OptionError

from .failures import one_line
from .outcomes import Progress
from .probe import OF_MODEL, TRUST, load

if TYPE_CHECKING:
    from hear_transformers.bulk.extract import Outcome
    from hear_transformers.bulk.sources import Source
    from hear_transformers.probes.classifying import Line, Place
    from hear_transformers.probes.saved import Saved

SUFFIXES = {".csv": ("csv",), ".txt": ("raven", "audacity")}
"""Suffix of one table -> formats that it may have."""

OF_OTHERS = (
    *OF_MODEL[1:],
    *("models", "scene", "segment", "overlap", "labels", "top_k", "separate_layers", "dtype", "compile"),
)
"""Options that the probe decides, or that make no sense beside it."""

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

    held = classifying.read_probe(probe)
    place = place_of(out, options["format"], held)
    model = load(model_of(held) | {TRUST: options[TRUST]}, device)
    quiet, as_json = options["quiet"], options["as_json"]
    with Progress(quiet=quiet or as_json, as_json=False) as progress:

        def show(outcome: Outcome, line: Line | None) -> None:
            for warning in outcome.warnings:
                click.echo(one_line(f"Warning: {warning}"), err=True)
            progress.show(outcome)
            if as_json and line is not None:
                click.echo(json.dumps(as_record(line)))

        outcomes = classifying.classify(
            probe,
            held,
            model,
            sources,
            place,
            workers=workers,
            keep_damaged=options["keep_damaged"],
            overwrite=options["overwrite"],
            on_start=progress.start,
            on_outcome=show,
        )
    n_failed = sum(outcome.status == "failed" for outcome in outcomes)
    n_kept = sum(outcome.status == "skipped" for outcome in outcomes)
    if not (quiet or as_json):
        kept = f", {n_kept} of them in an earlier run" if n_kept else ""
        where = place.folder / (place.file or "")
        click.echo(f"{len(outcomes) - n_failed} classified{kept}, {n_failed} failed: {where}")
    return n_failed


def refuse_others(options: dict[str, Any]) -> None:
    """Raise UsageError for options that the probe decides, or that classifying does not have."""
    given = [f"--{name.removesuffix('s') if name == 'models' else name}" for name in OF_OTHERS if options.get(name)]
    if given:
        raise click.UsageError(f"{', '.join(given).replace('_', '-')}: decided by the probe; leave it out")
    given = [name for name, usual in USUAL.items() if options[name] != usual]
    if given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{shown}: does not go with --probe; leave it out")


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


def place_of(out: str, format: str | None, held: Saved) -> Place:
    """Return where tables go, and their format; raise OptionError if the probe has no such.

    Parameters
    ----------
    out : ends in .csv or .txt: one table for all files; else a folder, of one table in CSV, of others one for each file
    format : by name; None for that of the suffix
    held : the probe
    """
    from hear_transformers.probes.classifying import CSV, OUTPUT, Place

    path = Path(out)
    is_folder = out.endswith(("/", os.sep)) or path.is_dir() or not path.suffix
    of_suffix = (CSV,) if is_folder else SUFFIXES.get(path.suffix.lower(), ())
    formats = ("csv", "raven", "audacity") if held.processing is not None else (CSV,)
    if not is_folder and not set(of_suffix) & set(formats):
        ends = ".csv or .txt" if held.processing is not None else ".csv"
        raise OptionError(f"--out {out}: with this probe the output ends in {ends}, or is a folder")
    if format is not None and format not in formats:
        raise OptionError(f"--format {format}: with this probe the output is {', '.join(formats)}")
    if format is not None and not is_folder and format not in of_suffix:
        raise OptionError(f"--format {format} does not go with --out {out}; leave one of them out")
    if format is None and len(of_suffix) > 1:
        raise OptionError(f"--out {out}: of Raven or of Audacity? give --format {' or '.join(of_suffix)}")
    format = format or CSV
    if is_folder:
        return Place(path, f"{OUTPUT}.csv" if format == CSV else None, format)
    return Place(path.parent, path.name, format)
