"""`embed-audio --engine ray`: the same on a Ray cluster."""

from __future__ import annotations

from dataclasses import replace
from typing import TYPE_CHECKING, Any

import click

from .imports import importing
from .outcomes import Progress, summarise
from .parsing import parse_network_options

if TYPE_CHECKING:
    from hear_transformers.bulk.sources import Source

RAY = "ray"
"""The engine."""

OPTIONS = ("address", "actors", "cores", "block_size")
"""Options of a cluster."""

NOT_THERE = {
    "probe": "classify the embeddings afterwards",
    "num_workers": "an actor decodes with its --cores",
    "labels": "embed --layer logits",
    "shard": "the cluster shares the files",
}
"""Options that do not go with a cluster -> what to do instead."""


def check(probe: str | None, num_workers: int | None, options: dict[str, Any]) -> None:
    """Raise UsageError for options that mean one machine."""
    given = {
        "probe": probe is not None,
        "num_workers": num_workers is not None,
        "labels": options["labels"],
        "shard": options["shard"] != (0, 1),
    }
    for name, is_given in given.items():
        if is_given:
            raise click.UsageError(f"--{name.replace('_', '-')} does not go with --engine ray; {NOT_THERE[name]}")
    if options["format"] not in (None, "parquet"):
        raise click.UsageError(
            f"--format {options['format']} does not go with --engine ray, which writes Parquet shards"
        )


def embed(
    sources: list[Source],
    out: str,
    models: tuple[str, ...],
    weights: str | None,
    timestamps: bool,
    reading: dict[str, Any],
    shown: dict[str, Any],
    options: dict[str, Any],
) -> int:
    """Embed on a cluster, and show what comes of it; return how many sources failed.

    Parameters
    ----------
    sources : found here, whose files every machine must find
    out : folder or address
    models, weights : as named
    timestamps : embeddings along time
    reading : options of reading, of the device and of the cluster
    shown : "quiet", "as_json", "fail_fast"
    options : of the model, and how embeddings are stored
    """
    with importing():
        from hear_transformers import ray
        from hear_transformers.audio import levels
        from hear_transformers.bulk.outputs import OutputOptions
        from hear_transformers.bulk.sources import each_channel

    heard = levels.parse_channel(reading.pop("channel"))
    found = each_channel(sources) if heard == levels.EACH else sources
    of_all = heard if isinstance(heard, int) else None
    stored = {name: options.pop(name) for name in ("separate_layers", "overwrite")}
    stored["dtype"] = options.pop("dtype") or "float32"
    for name in ("labels", "top_k", "shard", "format"):
        options.pop(name, None)
    given = parse_network_options({name: value for name, value in options.items() if value is not None})
    fail_fast = shown.pop("fail_fast")
    ray.start(reading.pop("address"))
    with Progress(**shown, channel=of_all) as progress:
        report = ray.embed(
            found,
            out,
            models or None,
            weights=weights or "",
            timestamps=timestamps,
            channel=of_all,
            fail_fast=fail_fast,
            on_start=progress.start,
            on_outcome=progress.show,
            **{name: value for name, value in reading.items() if value is not None},
            **stored,
            **given,
        )
        progress.finish(report)
    if not (shown["quiet"] or shown["as_json"]):
        if report.repeated:
            click.echo(f"Note: parts of files that are named again, and have rows once: {report.repeated}", err=True)
        summarise(replace(report, repeated=0), OutputOptions("parquet", stored["dtype"]))
    return len(report.failed)
