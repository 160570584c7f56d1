"""`hear-transformers probe`: labelled audio -> what its embeddings are worth, and a classifier."""

from __future__ import annotations

import json
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers.errors import OptionError

from .checks import check_words
from .failures import guarded, one_line
from .imports import importing
from .outcomes import Progress
from .parsing import parse_network_options
from .tables import echo_table

if TYPE_CHECKING:
    from hear_transformers.probes.data import Embedded, Labelled
    from hear_transformers.probes.evaluation import Result
    from hear_transformers.probes.tasks import Task

KINDS = ("logistic", "knn", "mlp", "gate")
EMBEDDINGS = "embeddings"
"""Folder of the embeddings, in that of the probe."""

OF_MODEL = ("model", "variant", "weights", "weights_prefix", "network", "normalisation", "layer", "pool", "precision")

EXAMPLES = """\b
Examples:
  hear-transformers probe clips/ --out my_probe               clips/dog/1.wav, clips/cat/2.wav, ...
  hear-transformers probe clips.csv --columns path=filename,labels=category,fold=fold --out my_probe
  hear-transformers probe clips.csv --columns path=file,labels=digit,group=speaker --folds 4 --out my_probe
  hear-transformers probe tasks/esc50-v2.0.0-full --model mn10_as --probe logistic --probe mlp --out my_probe
  hear-transformers probe clips/ --model passt --layer all --probe gate --out my_probe
  hear-transformers probe table.parquet --labels-from clips.csv --out my_probe
  embed-audio new/ --probe my_probe --out labels.csv          classifies with it

\b
Probes:
  logistic  logistic regression, its strength chosen on validation clips; the default
  knn       nearest neighbours by cosine
  mlp       HEAR's: grid, early stopping and scores of heareval
  gate      a linear classifier on all layers, each weighed by a number that is learned; with --layer all
"""


@click.command("probe", epilog=EXAMPLES)
@click.argument("data", type=click.Path(path_type=Path))
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the probe.")
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(KINDS),
    help="See below; the first is kept.  [default: logistic]",
)
@click.option("--columns", default="", metavar="NAME=COLUMN,...", help="What columns hold: path, labels, fold, group.")
@click.option("--label-separator", default=";", show_default=True, metavar="TEXT", help="Between the labels of a clip.")
@click.option(
    "--labels-from", "labels", type=click.Path(path_type=Path), help="Labels of the files of a table of embeddings."
)
@click.option("--folds", type=click.IntRange(2), metavar="N", help="Folds to draw where none are given.  [default: 5]")
@click.option("--grid-points", type=click.IntRange(1), metavar="N", help="Of HEAR's grid, for mlp.  [default: 8]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of all random draws.")
@click.option("--model", metavar="NAME", help="See `hear-transformers list`.  [default: that of embed-audio]")
@click.option("--variant", metavar="NAME", help="Network of that family.")
@click.option("--weights", metavar="FILE", help="Checkpoint instead of the published one.")
@click.option("--weights-prefix", metavar="NAME", help="Of the network in a checkpoint that holds several.")
@click.option("--network", multiple=True, metavar="NAME=VALUE", help="Argument of the network: stride=16.")
@click.option("--normalisation", metavar="MEAN,STD", help="Of the recordings that the network was trained on.")
@click.option("--layer", metavar="LAYER", help="8, -1, features, logits, mel, all, or a list: 4,8,12.")
@click.option("--pool", metavar="NAME", help="From layer to vector: mean, max, meanmax, meanstd, flat, cls.")
@click.option("--precision", metavar="NAME", help="Of the network: float32, bfloat16, float16, tf32, auto.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def probe_command(
    data: Path,
    out: Path,
    probes: tuple[str, ...],
    columns: str,
    label_separator: str,
    labels: Path | None,
    folds: int | None,
    grid_points: int | None,
    seed: int,
    device: str,
    as_json: bool,
    **model: Any,
) -> None:
    """Score shallow classifiers on frozen embeddings of labelled audio, and keep the first as a classifier.

    DATA is a folder with a folder for each class, a table (.csv, .tsv, .parquet) with the columns path and labels, a
    folder of a HEAR task, or a table of embeddings from embed-audio. Folds that are named train, valid and test are
    that; others are tested in turn, as HEAR does. Without folds some are drawn: files, or what has the same group, stay
    together. Needs the extra train.

    The folder gets the probe, scores with intervals (scores.json, scores.csv), predictions.csv, confusion.png, and the
    embeddings, which the same command finds there again.
    """
    with importing():
        from hear_transformers.bulk.tables import import_extra
        from hear_transformers.probes import evaluation, reports, saved, tasks

    for module in ("sklearn", "scipy", "matplotlib"):
        import_extra("hear-transformers probe", module, "train")
    if labels is not None and not is_embeddings(data):
        raise click.UsageError("--labels-from has those of a table of embeddings; other DATA has its own")
    clips, embedded, loading, layers = embeddings_of(
        data, out, columns, label_separator, labels, device, model, quiet=as_json
    )
    task = tasks.make_task(
        [str(path) for path in clips.paths],
        clips.classes,
        clips.targets,
        folds=clips.folds,
        groups=clips.groups,
        n_folds=folds,
        seed=seed,
    )
    if not as_json:
        click.echo(f"{len(task.names)} clips, {len(task.classes)} classes; split: {task.split_in_words}")
    settings = {} if grid_points is None else {"grid_points": grid_points}
    how: dict[str, Any] = {"seed": seed, "columns": layers, "settings": settings}
    names = tuple(dict.fromkeys(probes)) or KINDS[:1]
    results = [evaluation.evaluate(embedded.embeddings, task, name, **how) for name in names]
    kept = evaluation.fit_whole(embedded.embeddings, task, names[0], **how)
    scores = reports.scores_of(results[0])
    saved.write(out, saved.Saved(kept, task.classes, embedded.provenance, loading, scores))
    reports.write(out, task, results[0], results[1:])
    show(task, results, out, embedded.failed, as_json=as_json)


def is_embeddings(data: Path) -> bool:
    """Return True if DATA is a table of embeddings."""
    from hear_transformers.probes.data import is_table

    return is_table(data)


def embeddings_of(
    data: Path,
    out: Path,
    columns: str,
    separator: str,
    labels: Path | None,
    device: str,
    model: dict[str, Any],
    *,
    quiet: bool,
) -> tuple[Labelled, Embedded, dict[str, Any], dict[str, list[int]]]:
    """Read or compute the embeddings of DATA: clips, embeddings, how to load the model, positions of each layer."""
    from hear_transformers.audio import workers
    from hear_transformers.probes import data as reading
    from hear_transformers.training.manifest import Layout

    fields, more = reading.parse_columns(columns)
    layout = Layout(columns=fields, separator=separator)
    given = {name: value for name, value in model.items() if value not in (None, ())}
    if is_embeddings(data):
        if given:
            raise OptionError(f"{data}: a table of embeddings has its model; leave out {', '.join(sorted(given))}")
        of_files = None if labels is None else reading.read_clips(labels, layout, more)
        return *reading.read_table(data, of_files), {}, {}
    network = load(model, device)
    clips = reading.read_clips(data, layout, more, network.sample_rate)
    with Progress(quiet=quiet, as_json=False) as progress:
        n_workers = workers.default_workers(len(clips.paths))
        embedded = reading.embed_clips(
            clips,
            network,
            out / EMBEDDINGS,
            workers=n_workers,
            on_start=progress.start,
            on_outcome=progress.show,
        )
    loading = given if "weights" not in given else given | {"weights": str(Path(given["weights"]).absolute())}
    return reading.taken(clips, embedded), embedded, loading, network.columns()


def load(model: dict[str, Any], device: str) -> Any:
    """Load the model of the command, or of a probe."""
    from hear_transformers import catalogue

    name, weights = model.get("model"), model.get("weights") or ""
    options = {key: model.get(key) for key in OF_MODEL[1:] if key != "weights"}
    options["network"] = tuple(options["network"] or ())
    words = {**options, "framing": None, "compile": None, "resample": None}
    check_words(name, words, of_its_own=bool(weights or options["network"]), labels=False)
    given = parse_network_options({key: value for key, value in options.items() if value is not None})
    if name is None and options["variant"] is None:
        name = catalogue.family_of_checkpoint(weights)
    return catalogue.load(name, weights, device, given)


def show(task: Task, results: list[Result], out: Path, failed: Any, *, as_json: bool) -> None:
    """Print the scores and where the probe is."""
    from hear_transformers.probes import reports

    if as_json:
        click.echo(json.dumps({**reports.summary(task, results), "failed": list(failed), "out": str(out)}))
        return
    for message in failed:
        click.echo(one_line(f"Left out: {message}"), err=True)
    rows = [("PROBE", *(name for name in results[0].scores))]
    for result in results:
        cells = (f"{score.value:.3f} [{score.low:.3f}, {score.high:.3f}]" for score in result.scores.values())
        rows.append((result.probe, *cells))
    echo_table(rows)
    click.echo(f"Probe: {out} ({results[0].probe}); to classify: embed-audio DATA --probe {out} --out labels.csv")
