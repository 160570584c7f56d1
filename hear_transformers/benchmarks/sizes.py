"""Measure what never changes of every variant: layers, sizes, lengths, parameters, operations.

`weights/sizes.json` holds the result, so that commands answer without building a network. Run it after a change to a
network or a table of variants; a test compares the file with the networks.

Usage: python -m hear_transformers.benchmarks.sizes [FAMILY]...
"""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import astuple
from pathlib import Path
from typing import Any

import click

from .. import FAMILIES, catalogue
from ..cli.failures import guarded
from ..embedding.embedder import Embedder
from ..files import atomic
from ..networks.counting import CLIP_SECONDS, count_operations, count_parameters
from ..networks.family import shapes_alone
from ..networks.layer_table import layer_table

FILE = Path(__file__).parents[2] / "weights" / "sizes.json"


def measure(family: str, name: str) -> dict[str, Any]:
    """Return one row of `weights/sizes.json`, ready for JSON."""
    module = catalogue.family(family)
    parameters = count_parameters(module.FAMILY, module.VARIANTS[name])
    with shapes_alone():  # shapes are enough: random weights of a large network take seconds
        model: Embedder = module.load_model(variant=name, pretrained=False)
        layers = layer_table(model.trunk, model.variant.frontend)
        macs, operations = count_operations(model.trunk, model.variant)
    variant = model.variant
    ms = 1000 / model.sample_rate
    provenance = model.provenance()
    return {
        "checkpoint": variant.checkpoint or None,
        "imagenet": variant.imagenet and list(variant.imagenet),
        "parameters": parameters,
        f"multiply_accumulates_{CLIP_SECONDS:g}_s": macs,
        f"operations_{CLIP_SECONDS:g}_s": operations,
        "sample_rate": model.sample_rate,
        "shortest_window_ms": model.min_samples * ms,
        "longest_window_ms": None if model.max_samples is None else model.max_samples * ms,
        "scene_embedding_size": model.scene_embedding_size,
        "timestamp_embedding_size": model.timestamp_embedding_size,
        "defaults": {key: provenance[key] for key in ("scene", "timestamps", "hop_ms", "framing", "precision")},
        "layers": [list(astuple(layer)) for layer in layers],
    }


def write(families: Iterable[str], file: Path = FILE) -> None:
    """Measure families and write them, one variant a line; other families keep their rows."""
    rows = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    rows |= {name: {key: measure(name, key) for key in catalogue.family(name).VARIANTS} for name in families}
    blocks = []
    for name in FAMILIES:
        lines = (f"    {json.dumps(key)}: {json.dumps(row)}" for key, row in rows.get(name, {}).items())
        blocks.append(f"  {json.dumps(name)}: {{\n" + ",\n".join(lines) + "\n  }")
    with atomic(file) as out:
        out.write(("{\n" + ",\n".join(blocks) + "\n}\n").encode())


@click.command()
@click.argument("families", nargs=-1, type=click.Choice(list(FAMILIES)))
@guarded
def main(families: tuple[str, ...]) -> None:
    """Write weights/sizes.json: FAMILIES, or all of them."""
    write(families or FAMILIES)


if __name__ == "__main__":
    main()
