"""`hear-transformers compare`: two models on the same labelled clips, layer by layer."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

import click

from hear_transformers.errors import OptionError, import_extra

from .failures import guarded, one_line
from .imports import importing
from .parsing import trusting
from .tables import echo_table


@click.command("compare")
@click.argument("a", metavar="A")
@click.argument("b", metavar="B")
@click.argument("data", metavar="DATA")
@click.option(
    "--layer", default="all", show_default=True, metavar="LAYER", help="Of both: all, or a list: 4,8,features."
)
@click.option("--layer-b", metavar="LAYER", help="Of B, where it differs.")
@click.option("--weights-a", default="", metavar="FILE", help="Checkpoint of A instead of the published one.")
@click.option("--weights-b", default="", metavar="FILE", help="Checkpoint of B instead of the published one.")
@click.option("--random-a", is_flag=True, help="Random weights for A: what a network is worth untrained.")
@click.option("--random-b", is_flag=True, help="Random weights for B.")
@trusting
@click.option("--standardise", is_flag=True, help="Scale every number to mean 0 and deviation 1 first.")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Of k-means and the bootstrap.")
@click.option(
    "--num-workers",
    default=0,
    show_default=True,
    type=click.IntRange(0),
    metavar="N",
    help="Processes that read audio.",
)
@click.option(
    "--out", default="comparison", show_default=True, type=click.Path(path_type=Path), metavar="PATH", help="Folder."
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object with all numbers.")
@guarded
def compare_command(
    a: str,
    b: str,
    data: str,
    layer: str,
    layer_b: str | None,
    weights_a: str,
    weights_b: str,
    random_a: bool,
    random_b: bool,
    trust_remote_code: bool | None,
    standardise: bool,
    seed: int,
    num_workers: int,
    out: Path,
    device: str,
    as_json: bool,
) -> None:
    """Compare how two models order labelled clips: A and B as embed-audio names them, DATA a folder per class.

    DATA may be a table with the columns path,labels, too. For each layer: how well the classes are clusters
    (silhouette, Davies-Bouldin, Calinski-Harabasz), how well k-means finds them (NMI, AMI, ARI, V-measure), each with
    an interval; between all layers of both, linear CKA. Written as measures.csv, .md and .png, cka.csv and .png, and
    maps.png, the best layer of each on two principal components.
    """
    with importing():
        from hear_transformers import catalogue
        from hear_transformers.comparison import compare, report
        from hear_transformers.training.manifest import read_labelled

    for module in ("sklearn", "matplotlib"):
        import_extra("compare", module, "train")
    clips = read_labelled(data)
    models = []
    sides = (("A", a, weights_a, random_a, layer), ("B", b, weights_b, random_b, layer_b or layer))
    for side, name, weights, is_random, layers in sides:
        options: dict[str, Any] = {"layer": layers} if catalogue.is_own(name) else {}
        if is_random:
            options["pretrained"] = False
        if trust_remote_code:
            options["trust_remote_code"] = True
        try:
            models.append(catalogue.load(name, weights, device, options))
        except OptionError as error:
            raise OptionError(f"{side}, {name}: {error}") from error
    from tqdm import tqdm

    with tqdm(total=2 * len(clips), unit="clip", disable=not sys.stderr.isatty()) as bar:
        found = compare.compare(
            (models[0], models[1]), clips, standardise=standardise, seed=seed, workers=num_workers, on_clip=bar.update
        )
    paths = report.write(found, out)
    for path, reason in found.failed.items():
        click.echo(one_line(f"Left out: {path}: {reason}"), err=True)
    if as_json:
        click.echo(json.dumps({**found.described(), "files": [str(path) for path in paths]}))
    else:
        rows = [("MODEL", "LAYER", "SILHOUETTE", "DAVIES-BOULDIN", "CALINSKI-HARABASZ", "NMI", "AMI", "ARI", "V")]
        for each in found.sides:
            for name, measures in each.measures.items():
                rows.append((each.name, name, *(f"{value['value']:.3g}" for value in measures.values())))
        echo_table(rows)
        click.echo(one_line(f"{out}: {', '.join(path.name for path in paths)}"))
    sys.exit(1 if found.failed else 0)
