"""Audio files -> embeddings -> output files; what failed, and why, without stopping the rest."""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import chain
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from . import audio
from .errors import HearTransformersError, OptionError
from .labels import Tag, check_logits, tags_of
from .sources import Source, name_outputs
from .writers import WRITERS, Writer

LONG_SECONDS = 60.0
"""Files longer than this are not held in memory but embedded as they are decoded."""

STACK_SECONDS = 320.0
"""Audio of equally long clips that is embedded at once, unless the model's batch size says otherwise."""

PENDING_SECONDS = 640.0
"""Audio of short clips that waits in memory for others of its length: 82 MB at 32 kHz."""

SETTINGS_OF_OTHERS = {"scene": ("timestamps", "hop_ms", "framing"), "timestamps": ("scene",)}
"""What an embedder's provenance says about the other kind of embeddings, which has no part in these."""

TABLE_NAME = "embeddings"
"""Name of the file that holds all sources, where the user names only its folder."""


class Model(Protocol):
    """What embeds: an `Embedder`, or a `foreign.ForeignModel`."""

    sample_rate: int
    batch_size: int | None

    def embed_scenes(self, waveforms: Tensor) -> Tensor:
        """(clips, samples) -> (clips, size)."""

    def embed_timestamps(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """(clips, samples) -> (clips, times, size), (times,) ms."""

    def stream_scene(self, blocks: Iterable[Tensor]) -> Tensor:
        """Blocks of (1, samples) -> (1, size)."""

    def stream_timestamps(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Blocks of (1, samples) -> pieces of (1, times, size), (times,) ms."""

    def provenance(self) -> dict[str, Any]:
        """Say what makes the embeddings, ready for JSON."""


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

    Clips of equal length are embedded together, files longer than `LONG_SECONDS` as they are decoded. The embedding of
    a file does not depend on the others. A file that fails is reported and the others are written.

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
    with writer:
        run = _Run(model, writer, record, timestamps=timestamps, n_labels=n_labels)
        for source, output in zip(found, outputs, strict=True):
            # A table for all sources gets its name at the end of the run, so it is there only if it was before.
            doubt = _doubt(writer, output) if output.exists() and not overwrite else None
            if doubt is None or n_labels:
                run.take(_Task(source.path, output, doubt))
            else:
                record(Outcome(str(source.path), "skipped", output, message=doubt))
        run.finish()
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


@dataclass(frozen=True, slots=True)
class _Clip:
    """A short file in memory."""

    task: _Task
    waveform: Tensor


class _Run:
    """Collects short clips until there are enough of equal length, embeds them and the long ones, writes."""

    def __init__(
        self, model: Model, writer: Writer, record: Callable[[Outcome], None], *, timestamps: bool, n_labels: int
    ) -> None:
        self.model = model
        self.writer = writer
        self.record = record
        self.timestamps = timestamps
        self.n_labels = n_labels
        self.pending: dict[int, list[_Clip]] = {}

    def take(self, task: _Task) -> None:
        """Read one file; embed it if it is long, else keep it until others of its length are there."""
        try:
            held, rest = self._hold(task.path)
            embedded = None if rest is None else self._embed_long(chain(held, rest), task.output.parent)
        except Exception as error:
            self._fail(task.path, error)
            return
        if embedded is None:
            self._keep(_Clip(task, torch.cat(held)))
        else:
            self._complete(task, *embedded)

    def _hold(self, path: Path) -> tuple[list[Tensor], Iterator[Tensor] | None]:
        """Read one file up to `LONG_SECONDS`: give what was read, and the rest if there may be any."""
        blocks = audio.blocks(path, self.model.sample_rate)
        held: list[Tensor] = []
        n_held = 0
        for block in blocks:
            held.append(block)
            n_held += len(block)
            if n_held > LONG_SECONDS * self.model.sample_rate:
                return held, blocks
        return held, None

    def finish(self) -> None:
        """Embed the clips that are still waiting."""
        for length in sorted(self.pending):
            self._embed_together(self.pending.pop(length))

    def _keep(self, clip: _Clip) -> None:
        rate, length = self.model.sample_rate, len(clip.waveform)
        self.pending.setdefault(length, []).append(clip)
        enough = self.model.batch_size or max(1, int(STACK_SECONDS * rate / length))
        waiting = {length: length * len(clips) for length, clips in self.pending.items()}
        if len(self.pending[length]) >= enough:
            self._embed_together(self.pending.pop(length))
        elif sum(waiting.values()) > PENDING_SECONDS * rate:
            self._embed_together(self.pending.pop(max(waiting, key=lambda length: waiting[length])))

    def _embed_together(self, clips: list[_Clip]) -> None:
        """Embed and write clips of one length together; if that fails one by one, so that none spoils the others."""
        try:
            embeddings, times_ms = self._embed(torch.stack([clip.waveform for clip in clips]))
        except Exception as error:
            if len(clips) == 1:
                self._fail(clips[0].task.path, error)
            else:
                for clip in clips:
                    self._embed_together([clip])
            return
        for clip, embedding in zip(clips, embeddings, strict=True):
            self._complete(clip.task, embedding, times_ms, len(clip.waveform))

    def _embed(self, waveforms: Tensor) -> tuple[np.ndarray, np.ndarray | None]:
        """Embed equally long clips: -> (clips, size) or (clips, times, size), and (times,) ms."""
        if not self.timestamps:
            return _array(self.model.embed_scenes(waveforms)), None
        embeddings, times_ms = self.model.embed_timestamps(waveforms)
        return _array(embeddings), times_ms.cpu().double().numpy()

    def _embed_long(self, blocks: Iterable[Tensor], folder: Path) -> tuple[np.ndarray, np.ndarray | None, int]:
        """Embed one file while it is decoded: -> (size,) or (times, size), (times,) ms, samples.

        Embeddings along time wait in a nameless file in the output folder, not in memory.
        """
        n_samples = 0

        def counted() -> Iterator[Tensor]:
            nonlocal n_samples
            for block in blocks:
                n_samples += len(block)
                yield block[None]

        if not self.timestamps:
            return _array(self.model.stream_scene(counted()))[0], None, n_samples
        folder.mkdir(parents=True, exist_ok=True)
        times_ms = []
        with tempfile.TemporaryFile(dir=folder) as scratch:
            for embeddings, centres_ms in self.model.stream_timestamps(counted()):
                scratch.write(_array(embeddings).tobytes())
                times_ms.append(centres_ms.cpu().double().numpy())
            scratch.flush()
            times = np.concatenate(times_ms)
            return np.memmap(scratch, np.float32, "r").reshape(len(times), -1), times, n_samples

    def _complete(self, task: _Task, embedding: np.ndarray, times_ms: np.ndarray | None, n_samples: int) -> None:
        """Write an embedding, unless its output is kept, and report its file."""
        source, output = str(task.path), task.output
        tags = tags_of(self.model, embedding, self.n_labels) if self.n_labels else None
        if task.doubt is not None:
            self.record(Outcome(source, "skipped", output, tags=tags, message=task.doubt))
            return
        try:
            self.writer.write(output, source, embedding, times_ms)
        except Exception as error:
            if self.writer.single:
                raise
            self._fail(task.path, error)
        else:
            seconds = n_samples / self.model.sample_rate
            self.record(Outcome(source, "written", output, embedding.shape, seconds, tags))

    def _fail(self, path: Path, error: Exception) -> None:
        reason = str(error) if isinstance(error, HearTransformersError) else f"{type(error).__name__}: {error}"
        message = reason if str(path) in reason else f"{path}: {reason}"
        self.record(Outcome(str(path), "failed", message=message))


def _array(embeddings: Tensor) -> np.ndarray:
    """Move embeddings to a NumPy array of float32; refuse any that are not finite."""
    array = embeddings.detach().float().cpu().numpy()
    if not np.isfinite(array).all():
        raise HearTransformersError("the model gave NaN or infinite numbers; with precision bfloat16, try float32")
    return array


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
