"""`hear-transformers sweep`: which layer, pooling, time resolution and receptive field are best for a task."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers.errors import OptionError, import_extra

from .config import configurable
from .failures import guarded, one_line
from .imports import importing
from .outcomes import Progress
from .parsing import milliseconds, trusting
from .progress import LinesOfProgress
from .tables import echo_table

if TYPE_CHECKING:
    from hear_transformers.sweep.passes import Pass
    from hear_transformers.sweep.results import Row
    from hear_transformers.sweep.settings import Grid
    from hear_transformers.sweep.studies import Study
    from hear_transformers.sweep.subjects import Data

PROBES = ("logistic", "knn", "mlp", "clusters")
STUDIES = ("passt-hear", "mast-clusters", "panns-transfer")

BEST_SHOWN = 5
"""Settings of each task that are printed."""

EXAMPLES = """\b
Examples:
  hear-transformers sweep clips/ --model tiny --model passt       clips/dog/1.wav, clips/cat/2.wav, ...
  hear-transformers sweep clips/ --model mn10_as --random-model mn10_as --layers all,mel,4+8+mel --pool mean,meanstd
  hear-transformers sweep clips/ --model passt --pool cls --window-ms 160,640 --hop-ms 50,100 --framing windowed
  hear-transformers sweep esc10=a.csv digits=b.csv --columns path=file,labels=class,fold=fold \\
      --columns path=file,labels=digit,group=speaker --model efficientat/mn04_as=mn04.pt

\b
Framings:
  scene     a clip as the model embeds it: whole, or the mean over windows of its usual length
  windowed  the mean over windows of --window-ms, every --hop-ms
  native    the mean over the network's own frames, in chunks of --window-ms, read every --hop-ms

\b
Studies:
  passt-hear     levels of layers, windows of 160 ms to 10 s, hops of 25 to 100 ms (2211.13956); of passt/base
  mast-clusters  how well classes are clusters, layer by layer (2303.10757); of mast and ast
  panns-transfer the network trained from scratch, and on from its weights (fine-tune), beside one linear layer on its
                 features (logistic) and up to three (mlp) (1912.10211); of panns/cnn14. On a CPU that takes hours:
                 give a smaller --model, or fewer --epochs

Each model runs once for a framing, a window and a hop, whatever the number of layers and poolings, and audio is decoded
once for all of them. Embeddings and scores are kept in --out: the same command again computes what is missing, and what
another command finds there stands in the same report. S/HOUR is seconds of compute for an hour of audio: on a CPU those
of all cores together, on a card elapsed ones. What a model cannot serve is skipped, and a line says so.
"""


def words(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[str, ...] | None:
    """Parse a list of words."""
    return None if value is None else tuple(dict.fromkeys(word.strip() for word in value.split(",")))


def counts(context: click.Context, parameter: click.Parameter, value: str | None) -> tuple[int, ...]:
    """Parse whole numbers from 1 on, in order."""
    parts = [] if value is None else [part.strip() for part in value.split(",")]
    if wrong := [part for part in parts if not part.isdecimal() or int(part) < 1]:
        raise click.BadParameter(f"{wrong[0]!r} is no number of clips; give whole numbers from 1 on, such as 1,4,16")
    return tuple(sorted({int(part) for part in parts}))


@click.command("sweep", epilog=EXAMPLES)
@click.argument("data", nargs=-1, required=True, metavar="[NAME=]DATA...")
@click.option("--model", "models", multiple=True, metavar="NAME[=FILE]", help="A model, with a checkpoint of yours.")
@click.option(
    "--random-model", "random", multiple=True, metavar="NAME", help="A model with random weights, as a floor."
)
@trusting
@click.option(
    "--layers",
    callback=words,
    metavar="LAYER,...",
    help="8, -1, features, mel, all, or together: 4+8+mel.  [default: all,features,logits,mel,all+mel]",
)
@click.option(
    "--pool", "pools", callback=words, metavar="NAME,...", help="As embed-audio.  [default: mean,meanstd,cls]"
)
@click.option("--framing", "framings", callback=words, metavar="NAME,...", help="scene, windowed, native; see below.")
@click.option(
    "--window-ms", callback=milliseconds, metavar="MS,...", help="Receptive fields: 160,640; implies windowed."
)
@click.option("--hop-ms", callback=milliseconds, metavar="MS,...", help="Between embeddings: 50,100; implies windowed.")
@click.option(
    "--probe",
    "probes",
    multiple=True,
    type=click.Choice(PROBES),
    help="See hear-transformers probe; clusters: those of compare.  [default: logistic]",
)
@click.option("--study", type=click.Choice(STUDIES), help="What a paper tried, see below.")
@click.option(
    "--columns",
    multiple=True,
    metavar="NAME=COLUMN,...",
    help="What columns hold: path, labels, fold, group; once for all DATA, or once for each.",
)
@click.option(
    "--events", is_flag=True, help="Labels are those of parts of files, see hear-transformers probe --events."
)
@click.option("--label-separator", default=";", show_default=True, metavar="TEXT", help="Between the labels of a clip.")
@click.option("--folds", type=click.IntRange(2), metavar="N", help="Folds to draw where none are given.  [default: 5]")
@click.option("--seed", default=0, show_default=True, type=click.IntRange(0), help="Seed of folds and probes.")
@click.option(
    "--clips-per-class",
    "shots",
    callback=counts,
    metavar="N,...",
    help="Train on so few clips of each class, too: 1,4.",
)
@click.option("--epochs", type=click.IntRange(1), help="Of a study that trains networks.  [default: the recipe's]")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option(
    "--num-workers", "workers", type=click.IntRange(0), metavar="N", help="Processes that read audio.  [default: auto]"
)
@click.option("--jobs", type=click.IntRange(1), metavar="N", help="Processes that fit probes.  [default: one a core]")
@click.option(
    "--out", default="sweep", show_default=True, type=click.Path(file_okay=False, path_type=Path), help="Folder."
)
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object: all rows, and what was skipped.")
@configurable
@guarded
def sweep_command(
    data: tuple[str, ...],
    models: tuple[str, ...],
    random: tuple[str, ...],
    trust_remote_code: bool | None,
    probes: tuple[str, ...],
    study: str | None,
    columns: tuple[str, ...],
    events: bool,
    label_separator: str,
    folds: int | None,
    seed: int,
    shots: tuple[int, ...],
    epochs: int | None,
    device: str,
    workers: int | None,
    jobs: int | None,
    out: Path,
    as_json: bool,
    **grid: Any,
) -> None:
    """Score every layer, pooling, window and hop of some models on labelled audio, and report which is best.

    DATA is what `hear-transformers probe` takes: a folder with a folder for each class, a table with the columns path
    and labels, or a folder of a HEAR task; several are several tasks. Needs the extra train.

    The folder gets report.html, which needs nothing else, results.csv, results.md, plots, and the embeddings.
    """
    with importing():
        from hear_transformers.sweep import engine, report, results, transfer

    for module in ("sklearn", "scipy", "matplotlib"):
        import_extra("hear-transformers sweep", module, "train")
    tried = studied(study, grid)
    if epochs is not None and not tried.trains:
        raise click.UsageError(
            "--epochs is for a study that trains networks; give --study panns-transfer, or leave it out"
        )
    if not (models or random):
        models = tried.models
    if not (models or random):
        raise click.UsageError("nothing to try; give --model NAME, --random-model NAME, or --study NAME")
    found = data_of(data, columns, label_separator, events=events)
    passes, skipped = passes_of(models, random, tried.grid, device, trusted=bool(trust_remote_code))
    for line in skipped if not as_json else ():
        click.echo(one_line(f"Skipped: {line}"), err=True)
    with Shown(quiet=as_json) as shown:
        options = engine.Options(
            probes=tuple(dict.fromkeys(probes)) or tried.probes,
            n_folds=folds,
            seed=seed,
            workers=workers,
            jobs=jobs,
            shots=shots,
            training=transfer.How(epochs=epochs, device=device, log=shown.line) if tried.trains else None,
            on_start=shown.start,
            on_outcome=shown.outcome,
            on_scores=shown.start_scores,
            on_score=shown.score,
        )
        engine.check(found, passes, options)
        rows = list(engine.sweep(found, passes, out, options))
    earlier = results.read_csv(out / report.TABLE) if (out / report.TABLE).is_file() else []
    names = dict.fromkeys(row.task for row in (*earlier, *rows))
    page = report.write(out, [*earlier, *rows], title=f"{study or 'Sweep'}: {', '.join(names)}")
    show(rows, skipped, shown.failed, page, as_json=as_json)


def data_of(texts: Sequence[str], columns: Sequence[str], separator: str, *, events: bool) -> list[Data]:
    """Return what the command is to be tried on."""
    from hear_transformers.probes.data import parse_columns
    from hear_transformers.sweep.subjects import Data
    from hear_transformers.training.manifest import Layout

    if len(columns) not in (0, 1, len(texts)):
        raise click.UsageError(
            f"--columns is given {len(columns)} times for {len(texts)} DATA; give it once, or for each"
        )
    found = []
    for text, told in zip(texts, (columns or ("",)) * (1 if len(columns) == len(texts) else len(texts)), strict=False):
        name, equals, path = text.partition("=")
        if not equals or Path(text).exists():
            path, place = text, Path(text).absolute()
            name = place.name if place.is_dir() else place.stem
        fields, more = parse_columns(told)
        found.append(Data(name, Path(path), Layout(columns=fields, separator=separator), more, events))
    return found


def passes_of(
    models: Sequence[str], random: Sequence[str], grid: Grid, device: str, *, trusted: bool = False
) -> tuple[list[Pass], list[str]]:
    """Load the models, and return their passes and what is skipped."""
    from hear_transformers.sweep import settings

    split = [text.partition("=") for text in models]
    chosen = [settings.Chosen(name, weights) for name, _, weights in split]
    chosen += [settings.Chosen(name, is_random=True) for name in random]
    if twice := [each.label for each in chosen if chosen.count(each) > 1]:
        raise OptionError(f"{twice[0]} is there twice among the models; name each once")
    passes: list[Pass] = []
    skipped: list[str] = []
    for each in chosen:
        of_model, lines = settings.passes_of(each, settings.load(each, device, trusted=trusted), grid)
        passes += of_model
        skipped += lines
    return passes, skipped


def studied(study: str | None, options: dict[str, Any]) -> Study:
    """Return what is to be tried: that of a study, or what the options ask for."""
    from hear_transformers.sweep.studies import STUDIES, Study

    if study is None:
        return Study((), grid_of(options))
    if given := [f"--{name.replace('_', '-')}" for name, value in options.items() if value is not None]:
        shown = ", ".join(given).replace("pools", "pool").replace("framings", "framing")
        raise click.UsageError(f"{shown}: decided by --study {study}; leave it out, or --study")
    return STUDIES[study]


def grid_of(options: dict[str, Any]) -> Grid:
    """Return the grid that the options ask for."""
    from hear_transformers.embedding.choices import check_choice
    from hear_transformers.sweep.settings import Grid

    windows, hops = options["window_ms"], options["hop_ms"]
    given = {name: options[name] for name in ("layers", "pools", "framings") if options[name]}
    if "pools" in given:
        check_choice("pool", ",".join(given["pools"]))
    if (windows or hops) and "framings" not in given:
        given["framings"] = ("scene", "windowed")
    pairs = tuple((window, hop) for window in windows or (None,) for hop in hops or (None,))
    return Grid(**given, times_ms=pairs)


class Shown:
    """Shows how far a sweep is, on stderr: clips, then scores, of each task."""

    def __init__(self, *, quiet: bool) -> None:
        self.quiet = quiet
        self.failed: list[str] = []
        self.progress: Progress | None = None
        self.scores: LinesOfProgress | None = None

    def __enter__(self) -> Shown:
        return self

    def __exit__(self, kind: type[BaseException] | None, *error: Any) -> None:
        self._close(kind)

    def start(self, total: int) -> None:
        """Begin with the clips of a task."""
        self._close()
        self.progress = Progress(quiet=self.quiet, as_json=False).__enter__()
        self.progress.start(total)

    def outcome(self, outcome: Any) -> None:
        """Show one clip."""
        if outcome.status == "failed":
            self.failed.append(outcome.message)
        assert self.progress is not None
        self.progress.show(outcome)

    def line(self, text: str) -> None:
        """Show a line of text, of networks that are trained."""
        self._close()
        if not self.quiet:
            click.echo(one_line(text), err=True)

    def start_scores(self, task: str, total: int) -> None:
        """Begin with the scores of a task."""
        self._close()
        if not self.quiet:
            self.scores = LinesOfProgress(total, "scores")
            self.scores.start(f"Scoring {task}")

    def score(self) -> None:
        """Show one score."""
        if self.scores is not None:
            self.scores.update()

    def _close(self, kind: type[BaseException] | None = None) -> None:
        if self.progress is not None:
            self.progress.__exit__(kind)
        if self.scores is not None and kind is None:
            self.scores.finish()
        self.progress = self.scores = None


def show(rows: Sequence[Row], skipped: Sequence[str], failed: Sequence[str], page: Path, *, as_json: bool) -> None:
    """Print the best settings of each task, and leave with 1 if clips failed."""
    from hear_transformers.probes import metrics
    from hear_transformers.sweep.findings import goodness
    from hear_transformers.sweep.results import for_json

    if as_json:
        found = {"rows": [for_json(row) for row in rows], "skipped": skipped, "failed": failed, "report": str(page)}
        click.echo(json.dumps(found))
        sys.exit(1 if failed else 0)
    for task in dict.fromkeys(row.task for row in rows):
        best = sorted((row for row in rows if row.task == task and row.is_main), key=goodness, reverse=True)
        table = [(task, "MODEL", "LAYER", "POOL", "FRAMING", "PROBE", best[0].metric.upper(), "NUMBERS", "S/HOUR")]
        for row in best[:BEST_SHOWN]:
            times = "" if row.hop_ms is None else f" {row.window_ms:g}/{row.hop_ms:g} ms"
            score = metrics.in_words(row.value, row.low, row.high)
            few = "" if row.clips_per_class is None else f", {row.clips_per_class} a class"
            cells = (row.model, row.layer, row.pool, row.framing + times, row.probe + few, score)
            table.append(("", *cells, str(row.size), f"{row.seconds_per_hour:.0f}"))
        echo_table(table)
        click.echo(one_line(f"best: {best[0].command}"))
    click.echo(one_line(f"Report: {page}"))
    sys.exit(1 if failed else 0)
