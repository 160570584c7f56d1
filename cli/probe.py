"""`hear-transformers probe`: labelled audio -> what its embeddings are worth, and a classifier."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from hear_transformers.errors import OptionError, import_extra

from .checks import check_words
from .config import configurable
from .failures import guarded, one_line
from .imports import importing
from .outcomes import Progress
from .parsing import milliseconds, parse_network_options, trusting
from .tables import echo_table

if TYPE_CHECKING:
    from hear_transformers.probes.data import Embedded, Labelled
    from hear_transformers.probes.evaluation import Result
    from hear_transformers.probes.event_evaluation import EventResult
    from hear_transformers.probes.tasks import Task
    from hear_transformers.training.manifest import Layout

T = TypeVar("T")

KINDS = ("logistic", "knn", "mlp", "gate", "prototypes")
PROTOTYPES = KINDS[-1]
EMBEDDINGS, FRAMES, MAPS = "embeddings", "frames", "maps"
"""Folders of the embeddings of clips, along time, and of token maps, in that of the probe."""

OF_TIME = ("hop_ms", "window_ms", "framing")
"""Options of embeddings along time."""

OF_MODEL = (
    *("model", "variant", "weights", "weights_prefix", "network", "normalisation", "layer", "pool", "precision"),
    *OF_TIME,
)

TRUST = "trust_remote_code"

EXAMPLES = """\b
Examples:
  hear-transformers probe clips/ --out my_probe               clips/dog/1.wav, clips/cat/2.wav, ...
  hear-transformers probe clips.csv --columns path=filename,labels=category,fold=fold --out my_probe
  hear-transformers probe clips.csv --columns path=file,labels=digit,group=speaker --folds 4 --out my_probe
  hear-transformers probe tasks/esc50-v2.0.0-full --model mn10_as --probe logistic --probe mlp --out my_probe
  hear-transformers probe clips/ --model passt --layer all --probe gate --out my_probe
  hear-transformers probe table.parquet --labels-from clips.csv --out my_probe
  hear-transformers probe events.csv --events --columns path=file,labels=species,start=from,end=to --out my_probe
  hear-transformers probe selections/ --events --hop-ms 50 --out my_probe        selection tables of Raven
  embed-audio new/ --probe my_probe --out labels.csv          classifies with it

\b
Probes:
  logistic  logistic regression, its strength chosen on validation clips; the default
  knn       nearest neighbours by cosine
  mlp       HEAR's: grid, early stopping and scores of heareval
  prototypes
            some vectors for each class, compared with every place of the map of time and frequency; finds short sounds;
            alone, of one --layer with such a map, which is kept (at most 4 GB); --hop-ms thins it out
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
@click.option(
    "--events", is_flag=True, help="DATA labels parts of long files: learn to find such; a HEAR task of events says so."
)
@click.option(
    "--columns",
    default="",
    metavar="NAME=COLUMN,...",
    help="What columns hold: path, labels, start, end, fold, group.",
)
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
@trusting
@click.option("--layer", metavar="LAYER", help="8, -1, features, logits, mel, all, or a list: 4,8,12.")
@click.option("--pool", metavar="NAME", help="From layer to vector: mean, max, meanmax, meanstd, flat, cls.")
@click.option("--hop-ms", type=float, metavar="MS", help="Time between two frames of events.  [default: the model's]")
@click.option("--window-ms", callback=milliseconds, metavar="MS", help="Audio that a frame of events is read from.")
@click.option("--framing", metavar="NAME", help="Of frames of events, windowed or native, see embed-audio.")
@click.option("--precision", metavar="NAME", help="Of the network: float32, bfloat16, float16, tf32, auto.")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@configurable
@guarded
def probe_command(
    data: Path,
    out: Path,
    probes: tuple[str, ...],
    events: bool,
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

    With --events, DATA is a table with a row for each event, its file, labels, start and end in s (a row without label
    is of a file in which nothing is heard), a selection table of Raven or a folder of such, or a folder of a HEAR task.
    Frames along time are classified, and made into events by a median filter and a shortest duration that are chosen
    on validation files, as HEAR does; scores are F1 of onsets within 200 and 50 ms, and the error rate of segments.

    The folder gets the probe, scores with intervals (scores.json, scores.csv), predictions.csv, of clips confusion.png,
    and the embeddings, which the same command finds there again.
    """
    with importing():
        from hear_transformers.probes import data as reading
        from hear_transformers.probes import event_data
        from hear_transformers.training.manifest import Layout

    for module in ("sklearn", "scipy", "matplotlib"):
        import_extra("hear-transformers probe", module, "train")
    if labels is not None and not reading.is_table(data):
        raise click.UsageError("--labels-from has those of a table of embeddings; other DATA has its own")
    fields, more = reading.parse_columns(columns)
    settings = {} if grid_points is None else {"grid_points": grid_points}
    wanted = Wanted(
        data,
        out,
        tuple(dict.fromkeys(probes)) or KINDS[:1],
        Layout(columns=fields, separator=label_separator),
        more,
        labels,
        {"n_folds": folds, "seed": seed},
        {"seed": seed, "settings": settings},
        {name: value for name, value in model.items() if value not in (None, ())},
        device,
        as_json,
    )
    if events or event_data.is_of_events(data):
        if PROTOTYPES in wanted.names:
            raise click.UsageError(f"--probe {PROTOTYPES}: of whole clips; for events choose another probe")
        probe_events(wanted)
        return
    if PROTOTYPES in wanted.names:
        probe_maps(wanted)
        return
    if given := [f"--{name.replace('_', '-')}" for name in OF_TIME if name in wanted.model]:
        raise click.UsageError(f"{', '.join(given)}: of embeddings along time, which --events reads; leave it out")
    probe_clips(wanted)


@dataclass(frozen=True)
class Wanted:
    """What is asked for.

    Attributes
    ----------
    data, out, labels, device, as_json : see the options
    names : of the probes
    layout : of a table
    more : columns of fold and group
    drawing : how folds are drawn
    fitting : how probes are fitted, see `evaluation.Options`
    model : options of the model that are given
    """

    data: Path
    out: Path
    names: tuple[str, ...]
    layout: Layout
    more: dict[str, str]
    labels: Path | None
    drawing: dict[str, Any]
    fitting: dict[str, Any]
    model: dict[str, Any]
    device: str
    as_json: bool

    def loading(self) -> dict[str, Any]:
        """Return the options that load the model again, from any folder."""
        # Whoever uses the probe decides what code to trust.
        model = {name: value for name, value in self.model.items() if name != TRUST}
        weights = model.get("weights")
        if weights is None or not Path(weights).exists():  # it may be the name of a repository
            return model
        return model | {"weights": str(Path(weights).absolute())}

    def embedded(self, embed: Callable[..., T], n: int) -> T:
        """Embed `n` files, with a bar or lines of progress."""
        from hear_transformers.audio import workers

        with Progress(quiet=self.as_json, as_json=False) as progress:
            shown: dict[str, Any] = {"on_start": progress.start, "on_outcome": progress.show}
            return embed(workers=workers.default_workers(n), **shown)

    def say(self, task: Task, what: str) -> None:
        """Print what is probed."""
        if not self.as_json:
            click.echo(f"{len(task.names)} {what}, {len(task.classes)} classes; split: {task.split_in_words}")


def probe_clips(wanted: Wanted) -> None:
    """Probe embeddings of whole clips."""
    clips, embedded, loading, layers = embeddings_of(wanted)
    score(wanted, clips, embedded, embedded.embeddings, loading, columns=layers)


def probe_maps(wanted: Wanted) -> None:
    """Probe token maps of whole clips."""
    from hear_transformers.probes import data as reading
    from hear_transformers.probes import map_data

    if len(wanted.names) > 1:
        raise click.UsageError(f"--probe {PROTOTYPES}: reads token maps, others vectors; give it a run of its own")
    if given := [f"--{name}" for name in ("pool", "window_ms", "framing") if name in wanted.model]:
        shown = ", ".join(given).replace("_", "-")
        raise click.UsageError(f"{shown}: --probe {PROTOTYPES} reads every place of a layer; leave it out")
    if reading.is_table(wanted.data):
        raise OptionError(
            f"{wanted.data}: a table of embeddings; --probe {PROTOTYPES} reads token maps: give the audio"
        )
    wanted = replace(wanted, model=wanted.model | map_data.OF_MAPS)
    network = load(wanted.model, wanted.device)
    clips = reading.read_clips(wanted.data, wanted.layout, wanted.more, network.sample_rate)
    embed = partial(map_data.embed_maps, clips, network, wanted.out / MAPS)
    embedded, maps = wanted.embedded(embed, len(clips.paths))
    if not wanted.as_json:
        n_bytes = sum(path.stat().st_size for path in maps.maps)
        click.echo(
            f"Token maps: {n_bytes / 1e9:.2f} GB in {wanted.out / MAPS}, at most {map_data.MOST_BYTES / 1e9:g} GB"
        )
    score(wanted, reading.taken(clips, embedded), embedded, maps, wanted.loading())


def score(
    wanted: Wanted,
    clips: Labelled,
    embedded: Embedded,
    rows: Any,
    loading: dict[str, Any],
    columns: dict[str, list[int]] | None = None,
) -> None:
    """Score probes of clips, and write the first and the reports.

    Parameters
    ----------
    wanted : what is asked for
    clips : that have embeddings
    embedded : where these are from
    rows : embeddings, or token maps
    loading : options that load the model
    columns : layer -> its positions in an embedding
    """
    from hear_transformers.probes import evaluation, reports, saved, tasks

    names, kinds = [str(path) for path in clips.paths], {"folds": clips.folds, "groups": clips.groups}
    task = tasks.make_task(names, clips.classes, clips.targets, **kinds, **wanted.drawing)
    wanted.say(task, "clips")
    how: dict[str, Any] = {**wanted.fitting, "columns": columns}
    results = [evaluation.evaluate(rows, task, name, **how) for name in wanted.names]
    kept = evaluation.fit_whole(rows, task, wanted.names[0], **how)
    scores = reports.scores_of(results[0])
    saved.write(wanted.out, saved.Saved(kept, task.classes, embedded.provenance, loading, scores))
    reports.write(wanted.out, task, results[0], results[1:])
    show(wanted, task, results, embedded.failed)


def probe_events(wanted: Wanted) -> None:
    """Probe embeddings along time of files with events."""
    from hear_transformers.probes import data as reading
    from hear_transformers.probes import event_data, event_evaluation, reports, saved

    if reading.is_table(wanted.data):
        raise OptionError(
            f"{wanted.data}: a table of embeddings; of events give the audio, with a table of what is in it"
        )
    network = load(wanted.model, wanted.device)
    files = event_data.read_annotated(wanted.data, wanted.layout, wanted.more, network.sample_rate)
    whole = [(path, (0.0, math.inf)) for path in files.paths]
    embed = partial(event_data.embed_frames, files.source, whole, network, wanted.out / FRAMES)
    frames = wanted.embedded(embed, len(whole))
    task = event_evaluation.make_task(files.taken(frames.kept.tolist()), **wanted.drawing)
    wanted.say(task.files, "files with events")
    how: dict[str, Any] = {**wanted.fitting, "columns": network.columns(timestamps=True)}
    results = [event_evaluation.evaluate(frames, task, name, **how) for name in wanted.names]
    kept, processing = event_evaluation.fit_whole(frames, task, wanted.names[0], **how)
    scores = reports.scores_of(results[0])
    found = saved.Saved(kept, task.files.classes, frames.provenance, wanted.loading(), scores, processing)
    saved.write(wanted.out, found)
    reports.write_events(wanted.out, task, results[0], results[1:])
    show(wanted, task.files, results, frames.failed)


def embeddings_of(wanted: Wanted) -> tuple[Labelled, Embedded, dict[str, Any], dict[str, list[int]]]:
    """Read or compute the embeddings of DATA: clips, embeddings, how to load the model, positions of each layer."""
    from hear_transformers.probes import data as reading

    data, layout, more, labels = wanted.data, wanted.layout, wanted.more, wanted.labels
    if reading.is_table(data):
        if wanted.model:
            given = ", ".join(sorted(wanted.model))
            raise OptionError(f"{data}: a table of embeddings has its model; leave out {given}")
        of_files = None if labels is None else reading.read_clips(labels, layout, more)
        return *reading.read_table(data, of_files), {}, {}
    network = load(wanted.model, wanted.device)
    clips = reading.read_clips(data, layout, more, network.sample_rate)
    embedded = wanted.embedded(partial(reading.embed_clips, clips, network, wanted.out / EMBEDDINGS), len(clips.paths))
    return reading.taken(clips, embedded), embedded, wanted.loading(), network.columns()


def load(model: dict[str, Any], device: str) -> Any:
    """Load the model of the command, or of a probe."""
    from hear_transformers import catalogue

    name, weights = model.get("model"), model.get("weights") or ""
    options = {key: model.get(key) for key in (*OF_MODEL[1:], "mean_over_time", TRUST) if key != "weights"}
    options["network"] = tuple(options["network"] or ())
    words = {**options, "compile": None, "resample": None}
    check_words(name, words, of_its_own=bool(weights or options["network"]), labels=False)
    given = parse_network_options({key: value for key, value in options.items() if value is not None})
    if name is None and options["variant"] is None:
        name = catalogue.family_of_checkpoint(weights)
    return catalogue.load(name, weights, device, given)


def show(wanted: Wanted, task: Task, results: Sequence[Result] | Sequence[EventResult], failed: Sequence[str]) -> None:
    """Print the scores and where the probe is."""
    from hear_transformers.probes import metrics, reports

    out = wanted.out
    if wanted.as_json:
        click.echo(json.dumps({**reports.summary(task, results), "failed": list(failed), "out": str(out)}))
        return
    for message in failed:
        click.echo(one_line(f"Left out: {message}"), err=True)
    rows = [("PROBE", *(name for name in results[0].scores))]
    for result in results:
        cells = (metrics.in_words(score.value, score.low, score.high) for score in result.scores.values())
        rows.append((result.probe, *cells))
    echo_table(rows)
    click.echo(f"Probe: {out} ({results[0].probe}); to classify: embed-audio DATA --probe {out} --out labels.csv")
