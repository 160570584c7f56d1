"""Audio files -> embeddings -> output files; what failed, and why, without stopping the rest."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from .errors import HearTransformersError, OptionError
from .labels import Tag, check_logits, tags_of
from .pipeline import Clip, Embedded, Model, embed
from .sources import Source, name_outputs
from .writers import WRITERS, Writer

SETTINGS_OF_OTHERS = {"scene": ("timestamps", "hop_ms", "framing"), "timestamps": ("scene",)}
"""What an embedder's provenance says about the other kind of embeddings, which has no part in these."""

TABLE_NAME = "embeddings"
"""Name of the file that holds all sources, where the user names only its folder."""


@dataclass(frozen=True, slots=True)
class Outcome:
    """What became of one source.

    Attributes
    ----------
    source : as the user would write it
    status : "written", "skipped" (its output was there already) or "failed"
    output : file with its embedding, None if it failed
    shape : of the embedding, None unless written
    seconds : duration of the audio, None unless written
    tags : the likeliest labels, None if it failed or none were asked for
    message : why it failed, or what is doubtful about the output that is kept; else empty
    """

    source: str
    status: str
    output: Path | None = None
    shape: tuple[int, ...] | None = None
    seconds: float | None = None
    tags: tuple[Tag, ...] | None = None
    message: str = ""


@dataclass(frozen=True, slots=True)
class Report:
    """What became of all sources, in the order in which they were named."""

    written: list[Outcome] = field(default_factory=list)
    skipped: list[Outcome] = field(default_factory=list)
    failed: list[Outcome] = field(default_factory=list)


def extract(
    model: Model,
    sources: Sequence[Source],
    out: Path,
    format: str = "npz",
    *,
    timestamps: bool = False,
    overwrite: bool = False,
    n_labels: int = 0,
    on_outcome: Callable[[Outcome], None] = lambda outcome: None,
) -> Report:
    """Embed audio files and write the embeddings.

    A file that fails is reported and the others are written; see `pipeline.embed`.

    Parameters
    ----------
    model : what embeds
    sources : from `sources.find`
    out : folder of the outputs, or the one output, named with the suffix of its format
    format : a key of `writers.WRITERS`
    timestamps : embeddings along time instead of one per file
    overwrite : make outputs anew that are there already
    n_labels : how many labels to give each file, see `labels.top_tags`; with any, a file whose output is there already
        is heard again for them, and the output stays as it is
    on_outcome : called as soon as a source is finished

    Raises
    ------
    OptionError : `out` is a single file for several sources, the format needs something that is not installed, or
        labels are asked for and the embeddings are not logits, see `labels.check_logits`
    """
    if n_labels:
        check_logits(model, timestamps=timestamps)
    kind = "timestamps" if timestamps else "scene"
    settings = {key: value for key, value in model.provenance().items() if key not in SETTINGS_OF_OTHERS[kind]}
    writer = WRITERS[format]({"embedding": kind, **settings})
    report = Report()

    def record(outcome: Outcome) -> None:
        getattr(report, outcome.status).append(outcome)
        on_outcome(outcome)

    for source in sources:
        if source.error is not None:
            record(Outcome(str(source.path), "failed", message=str(source.error)))
    found = [source for source in sources if source.error is None]
    outputs = place_outputs(found, out, writer)
    tasks = []
    for source, output in zip(found, outputs, strict=True):
        doubt = _doubt(writer, output) if output.exists() and not overwrite else None
        if doubt is None or n_labels:
            tasks.append(_Task(source.path, output, doubt))
        else:
            record(Outcome(str(source.path), "skipped", output, message=doubt))
    with writer:
        for embedded in embed(
            model, [Clip(task.path) for task in tasks], timestamps=timestamps, scratch=_folder_at(out)
        ):
            record(_complete(model, writer, tasks[embedded.index], embedded, n_labels))
    order = {str(source.path): i for i, source in enumerate(sources)}
    for outcomes in (report.written, report.skipped, report.failed):
        outcomes.sort(key=lambda outcome: order[outcome.source])
    return report


@dataclass(frozen=True, slots=True)
class _Task:
    """A file to embed.

    Attributes
    ----------
    path : the audio
    output : where its embedding goes
    doubt : what is doubtful about an output that is there already and kept, empty if nothing; None if it is to be
        written
    """

    path: Path
    output: Path
    doubt: str | None


def _complete(model: Model, writer: Writer, task: _Task, embedded: Embedded, n_labels: int) -> Outcome:
    """Write an embedding, unless its output is kept, and say what became of its file."""
    source, output = str(task.path), task.output
    if embedded.embedding is None:
        return _failure(task.path, embedded.error)
    tags = tags_of(model, embedded.embedding, n_labels) if n_labels else None
    if task.doubt is not None:
        return Outcome(source, "skipped", output, tags=tags, message=task.doubt)
    try:
        writer.write(output, source, embedded.embedding, embedded.times_ms)
    except Exception as error:
        if writer.single:
            raise
        return _failure(task.path, error)
    return Outcome(source, "written", output, embedded.embedding.shape, embedded.seconds, tags)


def _failure(path: Path, error: Exception | None) -> Outcome:
    reason = str(error) if isinstance(error, HearTransformersError) else f"{type(error).__name__}: {error}"
    message = reason if str(path) in reason else f"{path}: {reason}"
    return Outcome(str(path), "failed", message=message)


def _folder_at(out: Path) -> Path:
    """Give the folder that is there already, nearest to an output."""
    return next(folder for folder in (out, *out.absolute().parents) if folder.is_dir())


def place_outputs(sources: Sequence[Source], out: Path, writer: Writer) -> list[Path]:
    """Give the path of the output of every source, see `extract`."""
    is_file = out.suffix.lower() == writer.suffix and not out.is_dir()
    if writer.single:
        return [out if is_file else out / f"{TABLE_NAME}{writer.suffix}"] * len(sources)
    if not is_file:
        return [out / name for name in name_outputs(sources, writer.suffix)]
    if len(sources) > 1:
        raise OptionError(
            f"{out} is one file for {len(sources)} inputs; give a folder, or a .parquet file for them all"
        )
    return [out] * len(sources)


def _doubt(writer: Writer, output: Path) -> str:
    """Say whether an output that is there already was made with other settings than those of now."""
    made_with = writer.provenance_of(output)
    if not isinstance(made_with, dict):
        return f"{output} is kept, but does not say what made it; overwrite makes it anew"
    keys = {**writer.provenance, **made_with}
    changed = [key for key in keys if writer.provenance.get(key) != made_with.get(key)]
    if not changed:
        return ""
    return f"{output} is kept, but was made with other settings ({', '.join(changed)}); overwrite makes it anew"
