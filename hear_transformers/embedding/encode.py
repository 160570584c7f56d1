"""Files, arrays, items of a dataset -> embeddings in memory: the methods `encode` of an `Embedder`."""

from __future__ import annotations

import contextlib
import logging
import sys
import tempfile
import warnings
from collections.abc import Iterable, Iterator, Sized
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple, overload

import numpy as np
from tqdm import tqdm

from ..audio.clips import Clip
from ..audio.inputs import InputReader, Sound, as_inputs, name_of
from ..audio.levels import EACH, MIX, Channel, parse_channel
from ..errors import AudioError, HearTransformersError, HearTransformersWarning, OptionError
from .pipeline import Embedded, Model, Remote, embed

if TYPE_CHECKING:
    from numpy.typing import ArrayLike

SHORTEST_NORM = 1e-12
"""Least norm that vectors are divided by, so that zeros stay zeros, as in `torch.nn.functional.normalize`."""


FEW_WARNINGS = 3
"""Inputs that are warned of one by one; more are counted, and logged."""

PACKAGE = "hear_transformers"

LOG = logging.getLogger(PACKAGE)


class Timestamps(NamedTuple):
    """Embeddings of one sound along time.

    Attributes
    ----------
    embeddings : (times, timestamp_embedding_size) float32
    centres_ms : (times,) float64, centre of each embedding in ms
    """

    embeddings: np.ndarray
    centres_ms: np.ndarray


def encode(
    model: Model | Remote,
    inputs: Sound | Iterable[Sound],
    *,
    sampling_rate: float | None = None,
    channel: Channel = MIX,
    batch_size: int | None = None,
    num_workers: int = 0,
    show_progress_bar: bool | None = None,
    normalize_embeddings: bool = False,
    keep_damaged: bool = False,
) -> np.ndarray:
    """Embed files and arrays, one vector each; any duration, any sample rate, in the order given.

    Inputs are taken one by one, so a generator of many needs no more memory than their embeddings.

    Parameters
    ----------
    model : what embeds
    inputs : one `Sound`, or several. A bare array is mono, since two axes could be clips or channels: clips are
        ``list(array)``, channels go into a dict, where they are averaged like those of a file. Arrays are resampled
        like files. A file that is open is one input, read from where it stands to its end and then set back. A name may
        be an address, see `files.place_of`
    sampling_rate : of bare arrays, in Hz; a file and a dict say their own
    channel : 1 for the first channel of each input, 2, ...; "mix" for the mean of all; "each" for an embedding of each
    batch_size : windows per forward pass; None leaves it to `Embedder.batch_size`
    num_workers : processes that decode files; 0 decodes in this one
    show_progress_bar : on stderr; None shows it on a terminal where the logger "hear_transformers" is at INFO or DEBUG
    normalize_embeddings : scale every vector to length 1
    keep_damaged : take what there is of files that are cut short or damaged, with a warning, instead of an error

    Returns
    -------
    embeddings : (scene_embedding_size,) float32 of one input, (inputs, scene_embedding_size) of several;
        with each channel apart a dimension more before the last, (channels, scene_embedding_size)

    Raises
    ------
    AudioError : an input cannot be read, is not audio, lacks the channel, or has another number of them than the
        inputs before where each is asked for; the message says which. Embed a collection that may hold such
        with `pipeline.embed` or the command ``embed-audio``, which go on
    OptionError : an array without a sample rate, or an input or option of another kind

    Examples
    --------
    >>> from hear_transformers.tiny import load_model
    >>> model = load_model(layer=8)
    >>> model.encode("dog.wav").shape, model.encode(["dog.wav", "rain.flac"]).shape
    ((192,), (2, 192))
    """
    one, inputs = as_inputs(inputs)
    row = np.dtype((np.float32, (model.scene_embedding_size,)))
    run = _Encoding(inputs, channel, one=one, keep_damaged=keep_damaged)
    with run.embed(model, sampling_rate, batch_size, num_workers, show_progress_bar, timestamps=False) as embedded:
        embeddings = np.fromiter((each.embedding for each in embedded), row, -1 if run.total is None else run.total)
    if normalize_embeddings:
        _normalise(embeddings)
    if run.channel == EACH:
        embeddings = embeddings.reshape(-1, run.n_channels, model.scene_embedding_size)
    return embeddings[0] if one else embeddings


@overload
def encode_timestamps(  # type: ignore[overload-overlap]  # a str is a Sound and an Iterable of such; it is taken for one
    model: Model | Remote,
    inputs: Sound,
    *,
    sampling_rate: float | None = None,
    channel: Channel = MIX,
    batch_size: int | None = None,
    num_workers: int = 0,
    show_progress_bar: bool | None = None,
    normalize_embeddings: bool = False,
    keep_damaged: bool = False,
) -> Timestamps: ...


@overload
def encode_timestamps(
    model: Model | Remote,
    inputs: Iterable[Sound],
    *,
    sampling_rate: float | None = None,
    channel: Channel = MIX,
    batch_size: int | None = None,
    num_workers: int = 0,
    show_progress_bar: bool | None = None,
    normalize_embeddings: bool = False,
    keep_damaged: bool = False,
) -> list[Timestamps]: ...


def encode_timestamps(
    model: Model | Remote,
    inputs: Sound | Iterable[Sound],
    *,
    sampling_rate: float | None = None,
    channel: Channel = MIX,
    batch_size: int | None = None,
    num_workers: int = 0,
    show_progress_bar: bool | None = None,
    normalize_embeddings: bool = False,
    keep_damaged: bool = False,
) -> Timestamps | list[Timestamps] | list[list[Timestamps]]:
    """Embed files and arrays along time; all arguments and errors are those of `encode`.

    Parameters
    ----------
    model, inputs, sampling_rate, channel, batch_size, num_workers, show_progress_bar, normalize_embeddings,
        keep_damaged : see `encode`

    Returns
    -------
    timestamps : embeddings (times, timestamp_embedding_size) float32 and their centres (times,) in ms, of one input; a
        list of such pairs of several, in order; with each channel apart a list of such pairs for each input

    Examples
    --------
    >>> from hear_transformers.tiny import load_model
    >>> embeddings, centres_ms = load_model(layer=8, hop_ms=50).encode_timestamps("dog.wav")
    >>> embeddings.shape, centres_ms[:3].tolist()
    ((21, 192), [0.0, 50.0, 100.0])
    """
    one, inputs = as_inputs(inputs)
    run = _Encoding(inputs, channel, one=one, keep_damaged=keep_damaged)
    with run.embed(model, sampling_rate, batch_size, num_workers, show_progress_bar, timestamps=True) as embedded:
        # Copies, since the embeddings of a long file are on the disk.
        results = [Timestamps(np.array(each.embedding), np.array(each.times_ms)) for each in embedded]
    for result in results if normalize_embeddings else ():
        _normalise(result.embeddings)
    if run.channel == EACH:
        grouped = [results[i : i + run.n_channels] for i in range(0, len(results), run.n_channels)]
        return grouped[0] if one else grouped
    return results[0] if one else results


def similarity(embeddings: ArrayLike, collection: ArrayLike, *, centre: bool = False) -> np.ndarray:
    """Compute the cosine of every embedding with every one of a collection.

    Parameters
    ----------
    embeddings, collection : (n, size) and (m, size), or (size,) for one
    centre : take the mean of the collection from both first, as ``hear-transformers search`` does: embeddings of audio
        have much in common, so that cosines of sounds that differ lie near 1, too. It needs a collection of many

    Returns
    -------
    cosines : (n, m) float32, from -1 to 1; 0 with a vector of zeros

    Raises
    ------
    OptionError : the sizes differ

    Examples
    --------
    >>> from hear_transformers.tiny import load_model
    >>> model = load_model(layer=8)
    >>> clips = model.encode(["dog.wav", "rain.flac"])
    >>> model.similarity(clips[0], clips).shape
    (1, 2)
    """
    rows, others = (np.atleast_2d(np.array(each, np.float32)) for each in (embeddings, collection))
    if rows.ndim != 2 or rows.shape[1:] != others.shape[1:]:
        shapes = " and ".join(str(np.shape(each)) for each in (embeddings, collection))
        raise OptionError(f"embeddings {shapes} cannot be compared; expected (n, size) and (m, size)")
    if centre:
        mean = others.mean(0, dtype=np.float64).astype(np.float32)
        rows, others = rows - mean, others - mean
    _normalise(rows)
    _normalise(others)
    return rows @ others.T


def _normalise(embeddings: np.ndarray) -> None:
    """Scale every row to length 1, in place."""
    embeddings /= np.maximum(np.linalg.norm(embeddings, axis=-1, keepdims=True), SHORTEST_NORM)


def _hides_bar(show_progress_bar: bool | None) -> bool:
    if show_progress_bar is not None:
        return not show_progress_bar
    # The habit of sentence-transformers; and nothing in the logs of a batch job.
    return not (sys.stderr.isatty() and logging.getLogger(__package__).getEffectiveLevel() <= logging.INFO)


class _Encoding:
    """One call: turns inputs into clips as the pipeline asks for them, and raises the first error in their order."""

    def __init__(self, inputs: Iterable[Any], channel: Channel, *, one: bool, keep_damaged: bool) -> None:
        self.inputs = inputs
        self.channel = parse_channel(channel)
        self.one = one
        self.keep_damaged = keep_damaged
        self.total = len(inputs) if isinstance(inputs, Sized) and self.channel != EACH else None
        self.n_channels = 1  # clips of an input
        self.names: dict[int, str] = {}  # of the inputs in the works
        self.n_warned = 0  # inputs with warnings
        self.failure: HearTransformersError | None = None

    @contextlib.contextmanager
    def embed(
        self,
        model: Model | Remote,
        sampling_rate: float | None,
        batch_size: int | None,
        workers: int,
        show_progress_bar: bool | None,
        *,
        timestamps: bool,
    ) -> Iterator[Iterator[Embedded]]:
        """Yield the embeddings of the inputs, in order."""
        with (
            tempfile.TemporaryDirectory(prefix="hear_transformers-") as scratch,
            tqdm(total=self.total, unit="clip", disable=_hides_bar(show_progress_bar), file=sys.stderr) as bar,
        ):
            reading = InputReader(model.sample_rate, sampling_rate, self.channel, Path(scratch))
            clips = self._clips(reading)
            # Closed after an error: workers end now, not when its traceback is forgotten.
            options: dict[str, Any] = {"timestamps": timestamps, "keep_damaged": self.keep_damaged}
            options |= {"scratch": Path(scratch), "workers": workers, "batch_size": batch_size}
            with contextlib.closing(embed(model, clips, **options)) as results:
                yield self._checked(results, reading, bar)
                self._warn_of_others()

    def _clips(self, reading: InputReader) -> Iterator[Clip]:
        """Yield clips up to the first input that is no sound; if one before it fails, that is the error raised."""
        for index, sound in enumerate(self.inputs):
            self.names[index] = name_of(sound)
            try:
                clips = reading.clips(index, sound)
                self._check_alike(index, len(clips))
            except Exception as error:
                self.failure = self._named(index, error, reading.contents.get(index))
                return
            yield from clips

    def _check_alike(self, index: int, n_channels: int) -> None:
        if index and n_channels != self.n_channels:
            raise AudioError(
                f"has {n_channels} of the channels that are embedded apart, inputs before it have {self.n_channels}; "
                "embed those of one number at a time"
            )
        self.n_channels = n_channels

    def _checked(self, results: Iterable[Embedded], reading: InputReader, bar: tqdm[Any]) -> Iterator[Embedded]:
        """Yield embeddings; raise the error of an input."""
        for embedded in results:
            index, channel = divmod(embedded.index, self.n_channels)
            content = reading.contents.get(index)
            self._warn(index, embedded, content)
            if embedded.error is not None:
                raise self._named(index, embedded.error, content)
            if channel + 1 == self.n_channels:
                reading.forget(index)
                del self.names[index]
            bar.update()
            yield embedded
        if self.failure is not None:
            raise self.failure

    def _warn(self, index: int, embedded: Embedded, content: Path | None) -> None:
        """Warn of an input, or log that where many were warned of."""
        self.n_warned += bool(embedded.warnings)
        for warning in embedded.warnings:
            message = self._message(index, warning, content)
            if self.n_warned > FEW_WARNINGS:
                LOG.info("%s", message)
            else:
                _warn(message)

    def _named(self, index: int, error: Exception, content: Path | None = None) -> HearTransformersError:
        """Return an error that names the input."""
        kind, message = HearTransformersError, f"{type(error).__name__}: {error}"
        if isinstance(error, HearTransformersError):
            kind, message = type(error), str(error)
        named = kind(self._message(index, message, content))
        named.__cause__ = error
        return named

    def _message(self, index: int, message: str, content: Path | None) -> str:
        """Return a message that names the input, also instead of the file that held its content."""
        name = self.names[index]
        message = message.replace(str(content), name) if content else message
        which = "" if self.one else f"input {index}: "
        return f"{which}{message if name in message else f'{name}: {message}'}"

    def _warn_of_others(self) -> None:
        if self.n_warned > FEW_WARNINGS:
            _warn(f"{self.n_warned - FEW_WARNINGS} more inputs have warnings; the logger {LOG.name} has them at INFO")


def _warn(message: str) -> None:
    """Warn at the line of the user: the last one outside this package."""
    frame, level = sys._getframe(), 1
    while frame.f_back is not None and frame.f_globals["__name__"].startswith(PACKAGE):
        frame, level = frame.f_back, level + 1
    warnings.warn(message, HearTransformersWarning, stacklevel=level)
