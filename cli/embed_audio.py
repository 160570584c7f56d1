"""The command `embed-audio`: audio files -> embeddings."""

from __future__ import annotations

import contextlib
import math
import os
import sys
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

import click

from hear_transformers import FAMILIES, OPEN_FAMILIES, __version__

from . import cluster, signals
from .checks import (
    TOP_K,
    check_one_model,
    check_words,
    choose_storage,
    local_output,
    note_on_windows,
    wants_labels,
    wants_timestamps,
)
from .classify import FORMATS, OF_EMBEDDINGS, SUFFIXES, check_drawing, classify, place_of, refuse_unusual, tag
from .completion import completing
from .config import configurable
from .failures import Failure, guarded
from .imports import importing
from .logs import log_on_stderr
from .outcomes import Progress, summarise
from .parsing import count_or_auto, fraction, milliseconds, parse_network_options, trusting

if TYPE_CHECKING:
    from hear_transformers.bulk.outputs import OutputOptions
    from hear_transformers.bulk.sources import Source

SECTIONS = {
    "manifest": "Input",
    "models": "Model",
    "layer": "Embedding",
    "device": "Computation",
    "out": "Output",
    "fail_fast": "Other options",
}
"""First option of each section of the help -> its heading."""

EXAMPLES = """\b
Examples:
  embed-audio input.wav                        one vector: input.npz
  embed-audio input.wav --layer 8 --out layer8 from the eighth block, elsewhere: a folder holds one kind
  embed-audio clips/ --hop-ms 50 --out table.parquet
                                               a vector every 50 ms, all in one table
  embed-audio clips/ --hop-ms 50 --scene --out means.parquet
                                               the mean of these for each file
  embed-audio clips/ --segment 3 --overlap 1 --out table.parquet
                                               a vector for 0-3 s, 2-5 s, ...
  embed-audio --manifest a.Table.1.selections.txt
                                               a vector for each selection of Raven
  embed-audio "clips/**/*.flac" --model passt --layer 4,8,12 --pool meanmax --out embeddings
  embed-audio clips/ --model passt --model panns/cnn14 --out embeddings
                                               one reading for both: embeddings/model=passt-base/...
  embed-audio input.wav --model efficientat --labels --out labels
                                               prints labels: Speech, Music, ...
  embed-audio dawn/ --model efficientat --labels --timestamps --plot --format raven --out tags
                                               when: selection tables of Raven, and pictures
  embed-audio new/ --probe my_probe --out labels.csv
                                               classes of your own, see hear-transformers probe
  embed-audio new/ --probe my_probe --format raven --out found
                                               events, as a selection table for each file
  embed-audio --manifest clips.csv --engine ray --address auto --out s3://bucket/embeddings
                                               on every machine of a Ray cluster, into Parquet shards
  find . -name "*.ogg" | embed-audio - --json
  embed-audio clips/ --config run.toml         options from a file: layer = 8, hop-ms = 50
  embed-audio --manifest clips.csv --out embeddings --shard $SLURM_ARRAY_TASK_ID/8
                                               parts of files, in one of eight jobs

An output is named after its input, below the folder or the first * of a pattern: clips/ and "clips/*" both write
clips/sub/a.wav to sub/a.npz, and clips/sub/a.wav alone goes to a.npz. Inputs of the same name keep their suffixes, and
their folders if need be.

Running the same command again resumes an interrupted run: outputs of the same settings and the same audio are skipped,
outputs of changed audio are replaced. Beside outputs of other settings nothing is embedded: give another --out.
--overwrite embeds its inputs again; in a table, rows of other inputs stay, unless their settings differ: then the whole
table is replaced. With --labels, skipped files are embedded again to print theirs. A manifest that lists a part of a
file twice gets a row for each in a table, and one file otherwise.

With --labels, or a --probe of events, and --plot, NAME.labels.png has the likeliest classes of each file below its
spectrogram; one that is there is drawn again with --overwrite. Labels along time are read from windows of 2 s every 0.5
s unless --window-ms, --hop-ms or --segment say otherwise; --layer framewise reads those of frames, where a network has
such.

With --segment, each segment is embedded as a file of its own would be; outputs hold start and end of each in s. The
last one ends with the file; a rest shorter than a tenth of a segment belongs to the one before it. To see them in Raven
or Audacity: hear-transformers selections.

Without a terminal, progress is a line on stderr at most every 30 s. failures.jsonl, next to the outputs, lists what
failed in the last run, warnings.jsonl what is to be known of the audio that was embedded. After more than 10 files or a
minute, a line on stderr says what limited the run: decoding, resampling, the network or writing; with --json, the last
object has it as "run".

\b
Exit codes:
  0    every file is embedded
  1    some files failed, or the disk is full; finished outputs are kept
  2    the command is wrong; nothing was done
  130  interrupted; finished outputs are kept (143 by SIGTERM, 129 by SIGHUP)

To list models and layers: hear-transformers list, hear-transformers info MODEL. To complete them by Tab:
hear-transformers completion.
"""


ENGINE_HELP = "Where: on this machine, or on a Ray cluster, into Parquet shards in --out, a folder or address."


class InSections(click.Command):
    """A command whose help lists its options in sections."""

    def format_options(self, context: click.Context, formatter: click.HelpFormatter) -> None:
        """Write the options below their headings, in columns that are aligned over all sections."""
        sections: dict[str, list[tuple[str, str]]] = {}
        heading = ""
        for option in self.get_params(context):
            heading = SECTIONS.get(option.name or "", heading)
            record = option.get_help_record(context) if isinstance(option, click.Option) else None
            if record:
                sections.setdefault(heading, []).append(record)
        widest = max(len(names) for records in sections.values() for names, _ in records)
        for heading, records in sections.items():
            with formatter.section(heading):
                spacing = 2 + widest - max(len(names) for names, _ in records)
                formatter.write_dl(records, col_max=widest, col_spacing=spacing)


@click.command(cls=InSections, epilog=EXAMPLES)
@click.argument("inputs", nargs=-1, metavar="[INPUT]...")
@click.option(
    "--manifest",
    metavar="FILE",
    help="List of files: .txt, or .csv, .tsv or .parquet with columns path, start, end, or a selection table of Raven.",
)
@click.option(
    "--columns", metavar="NAME=COLUMN,...", help="Which columns hold these: path=filename, or path=audio/{ytid}.wav."
)
@click.option(
    "--channel", default="mix", show_default=True, metavar="N", help="1 (the first), 2, ..., mix (mean of all), each."
)
@click.option("--keep-damaged", is_flag=True, help="Take what is there of files cut short or damaged, with a warning.")
@click.option("--shard", default="0/1", callback=fraction, metavar="I/N", help="Embed part I of N only: 0/8 to 7/8.")
@click.option(
    "--model",
    "models",
    multiple=True,
    metavar="NAME",
    help=f"{', '.join((*FAMILIES, *OPEN_FAMILIES))}, a variant, or a module of HEAR's API; several read the audio "
    f"once, each for a folder of its own, model=passt-base.  [default: {next(iter(FAMILIES))}, or that of --weights]",
)
@click.option(
    "--variant",
    metavar="NAME",
    help="Network of that family; of hf a folder, or a name such as MIT/ast-finetuned-audioset-10-10-0.4593.  "
    "[default: the first, or that of --weights]",
)
@click.option(
    "--weights",
    metavar="FILE",
    help="Checkpoint, saved folder, or folder or repository (user/name) of Hugging Face, instead of the published one.",
)
@click.option("--weights-prefix", metavar="NAME", help="Of the network in a checkpoint that holds several: student.")
@click.option(
    "--network", multiple=True, metavar="NAME=VALUE", help="Argument of the network that no tensor says: stride=16."
)
@click.option("--normalisation", metavar="MEAN,STD", help="Of the recordings that the network was trained on.")
@trusting
@click.option("--layer", metavar="LAYER", help="8, -1, features, logits, mel, all, or a list: 4,8,12.")
@click.option(
    "--pool", metavar="NAME", help="From layer to vector: mean, max, meanmax, meanstd, flat, unroll, cls; or mean,cls."
)
@click.option(
    "--scene/--timestamps",
    default=None,
    help="One vector per file (default), with the next three options the mean along time; or vectors along time.",
)
@click.option("--hop-ms", type=float, metavar="MS", help="Time between two vectors; implies --timestamps.")
@click.option(
    "--window-ms", callback=milliseconds, metavar="MS", help="Audio per vector; several: 160,800; implies --timestamps."
)
@click.option(
    "--framing", metavar="NAME", help="windowed: a window per time; native: the network's frames; implies --timestamps."
)
@click.option(
    "--segment",
    type=float,
    metavar="S",
    help="A vector for each segment of S seconds, up to the end of the file; implies --timestamps.",
)
@click.option("--overlap", type=float, metavar="S", help="Seconds that two segments share.  [default: 0]")
@click.option(
    "--device",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="auto, cuda, mps, cpu; several share the files: cuda:0,cuda:1, or all, every card.",
)
@click.option(
    "--precision", metavar="NAME", help="Of the network: float32, bfloat16, float16, tf32, auto; results are float32."
)
@click.option("--compile", type=click.Choice(("always", "auto")), help="Compile the network; auto: if clips are many.")
@click.option(
    "--batch-size", callback=count_or_auto, metavar="N", help="Windows per batch of a device at most, or auto."
)
@click.option(
    "--num-workers",
    callback=count_or_auto,
    metavar="N",
    help="Processes that read audio, for all devices.  [default: auto]",
)
@click.option("--engine", type=click.Choice(("local", "ray")), default="local", show_default=True, help=ENGINE_HELP)
@click.option(
    "--address", metavar="ADDRESS", help="Of the Ray cluster: auto for one on this machine.  [default: start one]"
)
@click.option(
    "--actors", type=click.IntRange(min=1), metavar="N", help="Processes that embed on it.  [default: as fit]"
)
@click.option("--cores", type=click.IntRange(min=1), metavar="N", help="Cores of each.  [default: by card, or 4]")
@click.option(
    "--block-size", type=click.IntRange(min=1), metavar="N", help="Files that one writes to a shard.  [default: 512]"
)
@click.option(
    "--resample",
    default="auto",
    show_default=True,
    metavar="NAME",
    help="cpu: where audio is decoded; device: where the network computes; auto: device on CUDA.",
)
@click.option("--out", default=".", show_default=True, metavar="PATH", help="Folder, or .npz, .npy, .parquet, .hdf5.")
@click.option(
    "--format",
    metavar="NAME",
    help="npz, npy: a file per input; parquet, hdf5: a table; with --probe of events csv, raven, audacity.  "
    "[default: by --out or npz]",
)
@click.option("--dtype", metavar="NAME", help="Type of stored numbers: float32, float16.  [default: float32]")
@click.option("--separate-layers", is_flag=True, help="Each layer in a folder of its own: layer=4.")
@click.option("--overwrite", is_flag=True, help="Embed again, replace existing outputs; see below.")
@click.option(
    "--labels",
    is_flag=True,
    help="Print the likeliest classes, AudioSet's or yours; implies --layer logits. Along time (--timestamps, "
    "--segment 3) they are a table, without embeddings: --format csv, raven or audacity.",
)
@click.option("--top-k", type=click.IntRange(min=1), metavar="N", help=f"Labels per file.  [default: {TOP_K}]")
@click.option(
    "--threshold",
    type=click.FloatRange(0, 1),
    metavar="P",
    help="Probability that labels along time, or events of a --probe, exceed.  [default: 0.5]",
)
@click.option("--plot", is_flag=True, help="Draw labels along time, or events of a --probe, over the spectrogram: PNG.")
@click.option(
    "--probe", metavar="FOLDER", help="Classify with `hear-transformers probe`'s, to a .csv file, or tables of events."
)
@click.option("--fail-fast", is_flag=True, help="Stop at the first file that fails.")
@configurable
@click.option("-v", "--verbose", is_flag=True, help="Print what is read from the checkpoint and what is not.")
@click.option("--quiet", is_flag=True, help="Print errors only.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object per file on stdout.")
@click.version_option(__version__)
@guarded
def main(
    inputs: tuple[str, ...],
    manifest: str | None,
    columns: str | None,
    models: tuple[str, ...],
    weights: str | None,
    scene: bool | None,
    channel: str,
    device: str,
    num_workers: int | None,
    resample: str,
    out: str,
    fail_fast: bool,
    keep_damaged: bool,
    verbose: bool,
    quiet: bool,
    as_json: bool,
    probe: str | None,
    threshold: float | None,
    plot: bool,
    engine: str,
    **options: Any,
) -> None:
    """Compute embeddings of audio files, from any layer of a network, for whole files or along time.

    INPUT is an audio file, a folder or an archive (zip, tar), searched for audio with all that is below, a pattern in
    quotes, an address such as https://example.org/a.wav or s3://bucket/a.wav, or - for a list of them on stdin.
    """
    if not inputs and manifest is None:
        raise click.UsageError("nothing to embed; give files, folders, patterns, - for a list on stdin, or --manifest")
    of_cluster = {name: options.pop(name) for name in cluster.OPTIONS}
    if engine == cluster.RAY:
        cluster.check(probe, num_workers, options)
    elif out_of_place := [name for name, value in of_cluster.items() if value is not None]:
        raise click.UsageError(f"--{out_of_place[0].replace('_', '-')} is of a cluster; give --engine ray too")
    if probe is not None:
        with importing():
            from hear_transformers.audio import workers
        found = find(inputs, manifest, columns, quiet=quiet)
        n_workers = workers.default_workers(len(found)) if num_workers is None else num_workers
        shown: dict[str, Any] = {"quiet": quiet, "as_json": as_json, "keep_damaged": keep_damaged}
        shown |= {"fail_fast": fail_fast, "resample": resample, "channel": channel}
        shown |= {"threshold": threshold, "plot": plot}
        given = {**options, **shown, "models": models, "weights": weights, "scene": scene}
        with resumable(options["overwrite"]):
            n_failed = classify(probe, found, out, device, n_workers, given)
        sys.exit(1 if n_failed else 0)
    # All that needs no PyTorch comes first, which takes seconds; of a file of one's own the layers are not known yet.
    check_one_model(models, {**options, "weights": weights})
    timestamps = wants_timestamps(scene, options)
    if timestamps and not quiet and (note := note_on_windows(options)):
        click.echo(note, err=True)
    if not (options["labels"] and timestamps) and (plot or threshold is not None):
        name = "--plot" if plot else "--threshold"
        raise click.UsageError(f"{name} is of classes along time; give --labels --timestamps, or a --probe of events")
    n_labels = wants_labels(options.pop("labels"), options.pop("top_k"), options, timestamps)
    words = {**options, "resample": resample}
    for model in models or [None]:
        check_words(model, words, of_its_own=bool(weights or options["network"]), labels=bool(n_labels))
    if engine == cluster.RAY:
        reading = {"channel": channel, "device": device, "resample": resample, "keep_damaged": keep_damaged}
        shown = {"quiet": quiet, "as_json": as_json, "fail_fast": fail_fast}
        found = find(inputs, manifest, columns, quiet=quiet)
        with resumable(options["overwrite"]):
            n_failed = cluster.embed(found, out, models, weights, timestamps, {**reading, **of_cluster}, shown, options)
        sys.exit(1 if n_failed else 0)
    if n_labels and timestamps:
        how = {"channel": channel, "resample": resample, "fail_fast": fail_fast, "keep_damaged": keep_damaged}
        how |= {"verbose": verbose, "quiet": quiet, "as_json": as_json}
        how |= {"n_labels": n_labels, "threshold": threshold, "plot": plot}
        found = find(inputs, manifest, columns, quiet=quiet)
        sys.exit(1 if tag_along_time(found, out, models, weights, device, num_workers, how, options) else 0)
    if n_labels and (options["format"] in FORMATS or os.path.splitext(out)[1].lower() in SUFFIXES):
        raise click.UsageError("a table of labels is along time: give --timestamps too, or --segment 10 for every 10 s")
    place = local_output(out)
    options["format"] = choose_storage(place, options)
    with importing():
        from hear_transformers.audio import levels, workers
        from hear_transformers.bulk import extract
        from hear_transformers.bulk.sources import each_channel

    stored = output_options(options)
    given = parse_network_options({name: value for name, value in options.items() if value is not None})
    heard = levels.parse_channel(channel)
    found = find(inputs, manifest, columns, quiet=quiet)
    found = each_channel(found) if heard == levels.EACH else found
    if "compile" in given:
        given["compile"] = math.inf if given["compile"] == "always" else len(found)
    of_all = heard if isinstance(heard, int) else None
    with (
        loaded(models, weights or "", device, given, verbose=verbose, quiet=quiet) as embedder,
        Progress(quiet=quiet, as_json=as_json, channel=of_all) as progress,
        resumable(stored.overwrite),
    ):
        report = extract.extract(
            embedder,
            found,
            place,
            stored,
            channel=of_all,
            timestamps=timestamps,
            n_labels=n_labels,
            fail_fast=fail_fast,
            keep_damaged=keep_damaged,
            workers=workers.default_workers(len(found)) if num_workers is None else num_workers,
            resample=resample,
            on_start=progress.start,
            on_outcome=progress.show,
        )
        progress.finish(report)
    if not (quiet or as_json):
        summarise(report, stored)
    sys.exit(1 if report.failed else 0)


def tag_along_time(
    found: list[Source],
    out: str,
    models: tuple[str, ...],
    weights: str | None,
    device: str,
    num_workers: int | None,
    how: dict[str, Any],
    options: dict[str, Any],
) -> int:
    """Write where the classes of a model are heard, `how`; return how many files failed."""
    stored = {name: options.pop(name) for name in ("format", "dtype", "separate_layers", "overwrite", "shard")}
    refuse_unusual({**how, **stored, "batch_size": options["batch_size"]}, "--labels along time")
    if given := [f"--{name.replace('_', '-')}" for name in OF_EMBEDDINGS if stored[name]]:
        raise click.UsageError(f"{', '.join(given)}: labels along time are no embeddings; leave it out")
    place = place_of(local_output(out), stored["format"], along_time=True, what="labels along time")
    if how["plot"]:
        check_drawing()
    with importing():
        from hear_transformers.audio import workers
    given_options = parse_network_options({name: value for name, value in options.items() if value is not None})
    if "compile" in given_options:
        given_options["compile"] = math.inf if given_options["compile"] == "always" else len(found)
    n_workers = workers.default_workers(len(found)) if num_workers is None else num_workers
    loading = loaded(models, weights or "", device, given_options, verbose=how["verbose"], quiet=how["quiet"])
    with loading as model, resumable(stored["overwrite"]):
        return tag(model, found, place, n_workers, {**how, **stored})


def output_options(options: dict[str, Any]) -> OutputOptions:
    """Return how embeddings are stored; remove these options, so that those of the model remain."""
    from hear_transformers.bulk import formats, outputs

    return outputs.OutputOptions(
        options.pop("format"),
        options.pop("dtype") or formats.DTYPES[0],
        options.pop("separate_layers"),
        options.pop("overwrite"),
        outputs.Shard(*options.pop("shard")),
    )


def find(inputs: tuple[str, ...], manifest: str | None, columns: str | None, *, quiet: bool) -> list[Source]:
    """Find the sources to embed; say how many inputs are named twice."""
    from hear_transformers.bulk.manifest import read_manifest
    from hear_transformers.bulk.rows import parse_columns
    from hear_transformers.bulk.sources import each_once, expand_inputs

    if columns is not None and manifest is None:
        raise click.UsageError("--columns says what the columns of a list hold; give --manifest, or leave it out")
    listed = () if sys.stdin is None else map(os.fsdecode, sys.stdin.buffer)  # file names need not be text
    rows = read_manifest(manifest, parse_columns(columns or "")) if manifest else []
    named = list(expand_inputs(inputs, listed))
    once = each_once(named, beside=rows)
    if not rows and not once:
        raise click.UsageError("nothing to embed: the list on stdin is empty")
    if (n_dropped := len(named) - len(once)) and not quiet:
        click.echo(f"Note: files that the inputs name again, and that are embedded once: {n_dropped}", err=True)
    return [*once, *rows]


@contextlib.contextmanager
def loaded(
    models: tuple[str, ...], weights: str, device: str, given: dict[str, Any], *, verbose: bool, quiet: bool
) -> Iterator[Any]:
    """Load the models; on several devices in a process each, which end with the block."""
    from hear_transformers import catalogue
    from hear_transformers.embedding.devices import pick_devices

    with log_on_stderr(verbose), contextlib.ExitStack() as stack:
        names: list[str | None] = [*models] or [None]
        if not models and given.get("variant") is None:
            names = [catalogue.family_of_checkpoint(weights)]
        devices = pick_devices(device)
        if len(devices) == 1:
            embedder: Any = catalogue.load_each(names, weights, *devices, given)
            for each in embedder:
                if (seconds := getattr(each, "compile_seconds", None)) is not None and not quiet:
                    click.echo(f"Note: compiling the network took {seconds:.0f} s", err=True)
        else:
            embedder = stack.enter_context(catalogue.load_replicas(names, weights, devices, given))
        ending = stack.pop_all()
    with ending:
        yield embedder


@contextlib.contextmanager
def resumable(overwrite: bool) -> Iterator[None]:
    """Turn an interruption into a message that explains how to resume."""
    try:
        yield
    except KeyboardInterrupt as error:
        again = "run the same command again to start over" if overwrite else "run the same command again to resume"
        message = f"{signals.cause(error)}; finished outputs are kept, {again}"
        raise Failure(message, signals.exit_code(error)) from error


completing(main)
