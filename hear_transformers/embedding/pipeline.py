"""Clips -> embeddings, in the order of the clips: read (`workers`), batched across clips (`packing`), put in order.

The embedding of a clip does not depend on the others, and one that fails does not stop them.
"""

from __future__ import annotations

import abc
import contextlib
import tempfile
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import tee
from pathlib import Path
from typing import Any, Protocol

import numpy as np
from torch import Tensor

from ..audio.clips import KEPT, Blocks, Clip, Loaded, ReadOptions, blocks_of
from ..audio.workers import Spent, load
from ..errors import HearTransformersError, OptionError
from .choices import Resample
from .forward import batch_seconds
from .packing import Packed, Packer, Reader
from .resampling import is_on_device

__all__ = [
    "KEPT",
    "Clip",
    "Described",
    "Embedded",
    "Model",
    "Remote",
    "embed",
    "embed_each",
    "finite",
    "held_bytes",
    "models_of",
]

LONG_SECONDS = 60.0
"""Files longer than this are not held in memory but embedded as they are decoded."""

PENDING_SECONDS = 640.0
"""Audio of short clips that waits in memory until there are enough windows: 82 MB at 32 kHz. On CUDA it waits there,
for two batches."""

WAITING_BYTES = 2**28
"""Embeddings that wait in memory for those of clips before them."""

HINTS = {
    "float32": "",
    "tf32": "",
    "bfloat16": "; try float32",
    "float16": ", which ends at 65504; choose bfloat16 or float32",
}
"""What to do about numbers that are not finite."""


class Model(Protocol):
    """What embeds: an `Embedder`, or an `external.ExternalModel`.

    Attributes
    ----------
    sample_rate : of the waveforms it takes, in Hz
    scene_embedding_size : numbers per scene embedding
    precision : of the network, a key of `HINTS`
    layers : that were chosen; empty if the model does not say
    batch_size : windows per forward pass, None for the model's own choice
    """

    sample_rate: int
    scene_embedding_size: int
    precision: str
    batch_size: int | None

    @property
    def name(self) -> tuple[str, str] | str:
        """Family and variant, or a module of others."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that were chosen, each once; empty if the model does not say."""

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return the positions of each layer in an embedding; empty if the model does not say."""

    def spans_ms(self, times_ms: np.ndarray, end_ms: float) -> tuple[np.ndarray, np.ndarray]:
        """Return where the audio of all embeddings along time of a clip begins and ends; NaN if nobody knows."""

    def reader(self, *, timestamps: bool, batch_size: int | None = None) -> Reader:
        """Return what reads whole clips; None leaves the batch size to the model."""

    def stream_scene(self, blocks: Iterable[Tensor], *, batch_size: int | None = None) -> Tensor:
        """Embed one clip: blocks of (1, samples) -> (1, size)."""

    def stream_timestamps(
        self, blocks: Iterable[Tensor], *, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed one clip along time: blocks of (1, samples) -> pieces of (1, times, size), (times,) ms."""

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""


class Described(Protocol):
    """What is known of a model where it may not be; attributes and methods are those of `Model`."""

    @property
    def name(self) -> tuple[str, str] | str:
        """Family and variant, or a module of others."""

    @property
    def sample_rate(self) -> int:
        """Of the waveforms it takes, in Hz."""

    @property
    def scene_embedding_size(self) -> int:
        """Numbers per scene embedding."""

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that were chosen."""

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return the positions of each layer in an embedding."""

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""


class Remote(abc.ABC):
    """Models that embed in other processes, see `replicas`.

    Attributes
    ----------
    models : what is known of each
    sample_rate, scene_embedding_size : of the first
    """

    models: Sequence[Described]
    sample_rate: int
    scene_embedding_size: int

    @abc.abstractmethod
    def embed_each(
        self, clips: Iterable[Clip], *, workers: int, spent: Spent, **how: Any
    ) -> Generator[list[tuple[Embedded, ...]], None, None]:
        """Embed clips with each model, with the arguments of `embed_each`."""


def models_of(model: Model | Remote | Sequence[Model]) -> Sequence[Described]:
    """Return what is known of one or several models."""
    if isinstance(model, Remote):
        return model.models
    return [*model] if isinstance(model, Sequence) else [model]


@dataclass(frozen=True, slots=True)
class Embedded:
    """One finished clip.

    Attributes
    ----------
    index : which clip, from 0
    embedding : (size,) float32 of a scene, or (times, size); None if the clip failed or is known
    times_ms : (times,) float64, from the start of the clip; None for a scene
    spans_ms : where the audio of each embedding along time begins and ends, two of (times,) float64; None for a scene
    seconds : duration of its audio
    sha256 : of the file, empty for a waveform or where hashes are not asked for
    error : why it failed
    warnings : about its audio, each naming the file
    """

    index: int
    embedding: np.ndarray | None = None
    times_ms: np.ndarray | None = None
    spans_ms: tuple[np.ndarray, np.ndarray] | None = None
    seconds: float = 0.0
    sha256: str = ""
    error: Exception | None = None
    warnings: tuple[str, ...] = ()

    def __reduce__(self) -> tuple[Any, ...]:
        """Return what is pickled: the numbers as bytes, which takes a quarter of the time of an array."""
        numbers, shape = self.embedding, None
        if isinstance(numbers, np.ndarray):
            numbers, shape = numbers.tobytes(), numbers.shape  # type: ignore[assignment]
        rest = self.times_ms, self.spans_ms, self.seconds, self.sha256, self.error, self.warnings
        return _unpickled, (shape, self.index, numbers, *rest)


def _unpickled(shape: tuple[int, ...] | None, index: int, numbers: Any, *rest: Any) -> Embedded:
    """Make an `Embedded` of what was pickled."""
    if shape is not None:
        numbers = np.frombuffer(bytearray(numbers), np.float32).reshape(shape)
    return Embedded(index, numbers, *rest)


def embed(
    model: Model | Remote,
    clips: Iterable[Clip],
    *,
    timestamps: bool = False,
    hashes: bool = False,
    keep_damaged: bool = False,
    scratch: Path | None = None,
    workers: int = 0,
    batch_size: int | None = None,
    resample: Resample = "auto",
    spent: Spent | None = None,
) -> Generator[Embedded, None, None]:
    """Embed clips.

    Windows of clips of any lengths are embedded together (of another package's model: clips of equal length), clips
    longer than `LONG_SECONDS` as they are decoded.

    Parameters
    ----------
    model : what embeds
    clips : to embed; with workers some are taken before they are needed
    timestamps : embeddings along time instead of one per clip
    hashes : whether the sha256 of every file is wanted
    keep_damaged : take what there is of damaged files, with a warning, instead of an error
    scratch : folder on the disk where embeddings along time of long clips wait, and copies of audio at addresses are
        kept; None: where the system keeps such
    workers : processes that decode, resample and hash while this one computes, see `workers.default_workers`; 0: none
    batch_size : windows per forward pass; None leaves it to the model
    resample : where, see `resampling.is_on_device`; the numbers are the same up to rounding
    spent : takes the seconds of reading and of the network

    Yields
    ------
    embedded : of every clip, in order; neither that nor the numbers depend on workers and batches

    Raises
    ------
    OptionError : the batch size is not a whole number from 1 on
    """
    if batch_size is not None and not (isinstance(batch_size, int) and batch_size >= 1):
        raise OptionError(
            f"batch_size={batch_size!r}: give a whole number from 1 on, or None for the model's own choice"
        )
    if len(models_of(model)) != 1:
        raise OptionError("embeddings of several models at once are those of `embed_each`, or of `extract`")
    options: dict[str, Any] = {"timestamps": timestamps, "hashes": hashes, "keep_damaged": keep_damaged}
    options |= {"scratch": scratch, "workers": workers, "batch_size": batch_size, "resample": resample}
    return _alone(embed_each(model, clips, spent=Spent() if spent is None else spent, **options))


def _alone(finished: Generator[list[tuple[Embedded, ...]], None, None]) -> Generator[Embedded, None, None]:
    """Take embeddings out of tuples of one."""
    with contextlib.closing(finished):
        for together in finished:
            for (each,) in together:
                yield each


def embed_each(
    model: Model | Remote | Sequence[Model], clips: Iterable[Clip], *, workers: int, spent: Spent, **how: Any
) -> Generator[list[tuple[Embedded, ...]], None, None]:
    """Embed clips with several models, each as if it were alone; parameters are those of `embed`.

    Clips are decoded once, and resampled once for all models of the same sample rate. Parts of files are decoded for
    each sample rate, and long clips for each model: the first is done with all of it before the next begins.

    Yields
    ------
    finished : clips that are finished at the same time, in order; of every clip what each model embedded, without an
        embedding where `Clip.known` has the content
    """
    if isinstance(model, Remote):
        return model.embed_each(clips, workers=workers, spent=spent, **how)
    models = model if isinstance(model, Sequence) else [model]
    return _Pipelines(models, spent, workers, **how).embed(clips)


class _Pipelines:
    """Embeds the same clips with several models."""

    def __init__(
        self,
        models: Sequence[Model],
        spent: Spent,
        workers: int,
        *,
        timestamps: bool,
        hashes: bool,
        keep_damaged: bool,
        scratch: Path | None,
        batch_size: int | None,
        resample: Resample,
    ) -> None:
        options: dict[str, Any] = {"timestamps": timestamps, "scratch": scratch, "batch_size": batch_size}
        self.runs = [_Pipeline(model, spent, **options) for model in models]
        rates = dict.fromkeys(model.sample_rate for model in models)
        by_workers = not any(is_on_device(resample, run.packer.reader.device, workers) for run in self.runs)
        rate, *others = rates
        how: dict[str, Any] = {"resample": by_workers, "other_rates": tuple(others)}
        self.options = ReadOptions(rate, LONG_SECONDS, hashes, scratch, keep_damaged, **how)
        self.spent, self.workers = spent, workers

    def embed(self, clips: Iterable[Clip]) -> Generator[list[tuple[Embedded, ...]], None, None]:
        """Embed all clips."""
        to_cuda = any(run.packer.is_on_cuda for run in self.runs)
        finished: list[deque[Embedded]] = [deque() for _ in self.runs]
        named, copies = tee(clips)
        reading = load(copies, self.options, self.workers, self.spent, to_cuda=to_cuda)
        with contextlib.closing(reading):
            for loaded, clip in zip(reading, named, strict=False):
                for run, each, queue in zip(self.runs, self._shared(clip, loaded), finished, strict=True):
                    queue.extend(run.take(each))
                if complete := _complete(finished):
                    yield complete
            for run, queue in zip(self.runs, finished, strict=True):
                queue.extend(run.finish())
            if complete := _complete(finished):
                yield complete

    def _shared(self, clip: Clip, loaded: Loaded) -> Iterator[Loaded]:
        """Yield what each model is to take of a clip that was read at each sample rate."""
        if len(self.runs) == 1:
            yield loaded
            return
        rates = self.options.sample_rate, *self.options.other_rates
        by_rate = dict(zip(rates, (loaded, *loaded.others), strict=True))
        taken: set[int] = set()
        for i, run in enumerate(self.runs):
            rate = run.model.sample_rate
            each = by_rate[rate]
            if clip.known and clip.known[i] in (KEPT, *([each.sha256] if each.sha256 else [])):
                yield Loaded(each.index, sha256=each.sha256)
                continue
            if each.blocks is not None and rate in taken:
                warnings = list(clip.warnings)
                each = replace(each, blocks=blocks_of(clip, self.options.at(rate), warnings), warnings=warnings)
            taken.add(rate)
            yield each


def _complete(finished: Sequence[deque[Embedded]]) -> list[tuple[Embedded, ...]]:
    """Take clips that all models are done with."""
    return [tuple(queue.popleft() for queue in finished) for _ in range(min(map(len, finished)))]


class _Pipeline:
    """Embeds clips, and yields their embeddings in order."""

    def __init__(
        self, model: Model, spent: Spent, *, timestamps: bool, scratch: Path | None, batch_size: int | None
    ) -> None:
        self.model = model
        self.spent = spent
        self.batch_size = batch_size
        self.timestamps = timestamps
        self.scratch = scratch
        self.packer = Packer(model.reader(timestamps=timestamps, batch_size=batch_size), model.sample_rate, spent)
        device = self.packer.reader.device
        self.pending_seconds = 2 * batch_seconds(device) if self.packer.is_on_cuda else PENDING_SECONDS
        self.shorts: dict[int, Loaded] = {}  # what is known of clips in the packer
        self.done: dict[int, Embedded] = {}  # what waits for a clip before it
        self.done_bytes = 0
        self.next = 0

    def take(self, loaded: Loaded) -> Iterator[Embedded]:
        """Embed a clip at once if it is long, else pack it; yield what is finished and next in order."""
        if loaded.waveform is not None:
            self.shorts[loaded.index] = loaded
            waveform, rate = loaded.waveform, loaded.sample_rate
            yield from self._pack(self.packer.add(loaded.index, waveform, rate, is_lent=loaded.is_lent))
        else:
            self.packer.pass_over()
            if loaded.blocks is None:
                self._keep(_embedded(loaded, error=loaded.error))
            else:
                self._keep(self._try_long(loaded, loaded.blocks))
            yield from self._release()
        while self._is_full():
            yield from self._pack(self.packer.finish_oldest())

    def _is_full(self) -> bool:
        """Return True if too much audio is waiting, or too many embeddings wait for a clip before them."""
        if self.packer.n_samples > self.pending_seconds * self.model.sample_rate:
            longest = max((length for _, length in self.packer.queues), default=0)
            # A batch size that was asked for is reached, whatever it takes.
            batch = (self.batch_size or self.model.batch_size or 0) * longest
            if self.packer.n_samples > 2 * batch:
                return True
        return bool(self.shorts) and self.done_bytes > WAITING_BYTES

    def finish(self) -> Iterator[Embedded]:
        """Embed the clips that are still waiting."""
        yield from self._pack(self.packer.finish())

    def _pack(self, finished: Iterator[Packed]) -> Iterator[Embedded]:
        """Store finished clips, and yield those that are next in order."""
        for packed in finished:
            self._keep(self._packed(self.shorts.pop(packed.key), packed))
            yield from self._release()

    def _packed(self, loaded: Loaded, packed: Packed) -> Embedded:
        """Return what has become of a clip."""
        warning = () if packed.warning is None else (f"{loaded.path}: {packed.warning}",)
        if packed.result is None:
            return _embedded(loaded, warning, error=packed.error)
        try:
            embedding = finite(packed.result.embedding, self.model.precision)
        except Exception as error:
            return _embedded(loaded, warning, error=error)
        seconds = packed.n_samples / self.model.sample_rate
        if packed.result.times_ms is None:
            return _embedded(loaded, warning, embedding, seconds=seconds)
        return _embedded(loaded, warning, embedding, **self._timed(packed.result.times_ms.numpy(), seconds))

    def _keep(self, embedded: Embedded) -> None:
        self.done[embedded.index] = embedded
        self.done_bytes += held_bytes(embedded)

    def _release(self) -> Iterator[Embedded]:
        """Yield finished clips up to the first that is not."""
        while self.next in self.done:
            embedded = self.done.pop(self.next)
            self.done_bytes -= held_bytes(embedded)
            self.next += 1
            yield embedded

    def _try_long(self, loaded: Loaded, blocks: Blocks) -> Embedded:
        with contextlib.closing(blocks), self.spent.on("computing"):
            try:
                return self._embed_long(loaded, blocks)
            except Exception as error:
                return _embedded(loaded, error=error)

    def _embed_long(self, loaded: Loaded, blocks: Blocks) -> Embedded:
        """Embed one file while it is decoded; embeddings along time wait in a temporary file, not in memory."""
        n_samples = 0

        def counted() -> Iterator[Tensor]:
            nonlocal n_samples
            while True:
                with self.spent.on("waiting"):
                    block = next(blocks, None)
                if block is None:
                    return
                n_samples += len(block)
                yield block[None]

        if not self.timestamps:
            scenes = self.model.stream_scene(counted(), batch_size=self.batch_size)
            scene = finite(scenes, self.model.precision)[0]
            return _embedded(loaded, embedding=scene, seconds=n_samples / self.model.sample_rate)
        times_ms = []
        with tempfile.TemporaryFile(dir=self.scratch) as scratch:
            for embeddings, centres_ms in self.model.stream_timestamps(counted(), batch_size=self.batch_size):
                scratch.write(finite(embeddings, self.model.precision).tobytes())
                times_ms.append(centres_ms.cpu().double().numpy())
            scratch.flush()
            times = np.concatenate(times_ms)
            rows = np.memmap(scratch, np.float32, "r").reshape(len(times), -1)
        return _embedded(loaded, embedding=rows, **self._timed(times, n_samples / self.model.sample_rate))

    def _timed(self, times_ms: np.ndarray, seconds: float) -> dict[str, Any]:
        """Return the duration of a clip, and what of its embeddings is told along time."""
        return {"times_ms": times_ms, "spans_ms": self.model.spans_ms(times_ms, 1000.0 * seconds), "seconds": seconds}


def _embedded(loaded: Loaded, warnings: tuple[str, ...] = (), embedding: Any = None, **rest: Any) -> Embedded:
    """Return what has become of a clip; its reader may have warned of it until now."""
    return Embedded(loaded.index, embedding, sha256=loaded.sha256, warnings=(*loaded.warnings, *warnings), **rest)


def held_bytes(embedded: Embedded) -> int:
    """Return the memory that an embedding takes, in bytes; that of a long file is on disk."""
    embedding = embedded.embedding
    return 0 if embedding is None or isinstance(embedding, np.memmap) else embedding.nbytes


def finite(embeddings: Tensor, precision: str = "float32") -> np.ndarray:
    """Move embeddings to a NumPy array of float32; refuse any that are not finite."""
    array = embeddings.float().numpy(force=True)
    if not np.isfinite(array).all():
        raise HearTransformersError(
            f"the model gave NaN or infinite numbers with precision {precision}{HINTS[precision]}"
        )
    return array
