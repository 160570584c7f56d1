"""`embed-audio DATA --probe my_probe`: audio files -> the classes of a probe, as CSV."""

from __future__ import annotations

import contextlib
import csv
import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers.errors import OptionError

from .failures import one_line
from .probe import OF_MODEL, load

if TYPE_CHECKING:
    from hear_transformers.bulk.sources import Source

CSV = "csv"
OUTPUT = "labels.csv"
"""Name of the output if the user names only its folder."""

OF_OTHERS = (
    *OF_MODEL[1:],
    *("models", "scene", "hop_ms", "window_ms", "framing", "segment", "overlap"),
    *("labels", "top_k", "separate_layers", "dtype", "compile"),
)
"""Options that the probe decides, or that make no sense beside it."""

USUAL = {"shard": (0, 1), "batch_size": None, "fail_fast": False, "resample": "auto", "channel": "mix"}
"""Options that classifying does not have, and their defaults."""


def classify(
    probe: str, sources: Sequence[Source], out: str, device: str, workers: int, options: dict[str, Any]
) -> int:
    """Classify files with a probe; write a row for each and return how many failed.

    Parameters
    ----------
    probe : folder
    sources : files
    out : .csv file, or a folder
    device, workers : of the model
    options : of the command
    """
    given = [f"--{name.removesuffix('s') if name == 'models' else name}" for name in OF_OTHERS if options.get(name)]
    if given:
        raise click.UsageError(f"{', '.join(given).replace('_', '-')}: decided by the probe; leave it out")
    given = [name for name, usual in USUAL.items() if options[name] != usual]
    if given:
        shown = ", ".join(f"--{name.replace('_', '-')}" for name in given)
        raise click.UsageError(f"{shown}: does not go with --probe; leave it out")
    if options["format"] not in (None, CSV):
        raise OptionError(f"--format {options['format']}: with --probe the output is csv")
    from hear_transformers.embedding.pipeline import Clip, embed
    from hear_transformers.files import atomic_path
    from hear_transformers.probes import saved

    held = saved.read(probe)
    path = place_of(out, overwrite=options["overwrite"])
    if not held.provenance.get("family"):
        raise OptionError(f"{probe}: fitted on a table of embeddings that does not say which model made them")
    model = load(model_of(held), device)
    saved.check_fit(held, own_settings(model), probe)
    for source in (each for each in sources if each.error is not None):
        click.echo(one_line(f"Error: {source.error}"), err=True)
    n_failed = sum(source.error is not None for source in sources)
    readable = [source for source in sources if source.error is None]
    clips = [Clip(source.path, source.start, source.end, channel=source.channel) for source in readable]
    with atomic_path(path) as part, part.open("w", encoding="utf-8", errors="surrogateescape", newline="") as file:
        writer = csv.writer(file, lineterminator="\n")
        writer.writerow(["path", "start", "end", "predicted", *held.classes])
        embedding = embed(model, clips, workers=workers, keep_damaged=options["keep_damaged"])
        with contextlib.closing(embedding) as embedded:
            for each, source in zip(embedded, readable, strict=True):
                for warning in each.warnings:
                    click.echo(one_line(f"Warning: {warning}"), err=True)
                if each.error is not None or each.embedding is None:
                    n_failed += 1
                    click.echo(one_line(f"Error: {each.error}"), err=True)
                    continue
                (likely,) = held.fitted.probabilities(each.embedding[None])
                row = row_of(source, each.seconds, held.classes, likely.tolist(), multi_label=held.fitted.multi_label)
                writer.writerow(row)
                if options["as_json"]:
                    click.echo(json.dumps(dict(zip(("path", "start", "end", "predicted"), row, strict=False))))
    if not (options["quiet"] or options["as_json"]):
        click.echo(f"{len(sources) - n_failed} classified, {n_failed} failed: {path}")
    return n_failed


def own_settings(model: Any) -> dict[str, Any]:
    """Return the provenance of a model's scene embeddings, as `embed-audio` stores it."""
    from hear_transformers.bulk.outputs import contents_of

    (content,) = contents_of(model, timestamps=False, apart=False, dtype="float32")
    return content.settings


def model_of(held: Any) -> dict[str, Any]:
    """Return the options that load the model of a probe: those it was fitted with, or what its table says."""
    if held.model:
        return dict(held.model)
    made_with = held.provenance
    scene = made_with["scene"]
    return {
        "model": f"{made_with['family']}/{made_with['variant']}",
        "layer": ",".join(scene["layers"]),
        "pool": scene["pool"],
        "precision": made_with["precision"],
    }


def row_of(
    source: Source, seconds: float, classes: Sequence[str], likely: Sequence[float], *, multi_label: bool
) -> list[Any]:
    """Return the cells of a file: what is predicted is the likeliest class, or all that are likelier than not."""
    best = [i for i, value in enumerate(likely) if value > 0.5] if multi_label else [likely.index(max(likely))]
    end = source.start + seconds if source.end == math.inf else source.end
    numbers = [f"{value:.4g}" for value in likely]
    return [source.path, f"{source.start:g}", f"{end:.6g}", ";".join(classes[i] for i in best), *numbers]


def place_of(out: str, *, overwrite: bool) -> Path:
    """Return the path of the output; raise OptionError if it exists, or is no CSV file."""
    path = Path(out)
    if out.endswith(("/", os.sep)) or path.is_dir():
        path = path / OUTPUT
    if path.suffix.lower() != ".csv":
        raise OptionError(f"--out {out}: with --probe the output is a .csv file, or a folder")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} exists; give another --out, or --overwrite")
    return path
