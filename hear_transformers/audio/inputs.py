"""Inputs of users -> clips: paths, addresses, arrays, open files and contents of files, rows of a dataset."""

from __future__ import annotations

import contextlib
import inspect
import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from ..files import Address, place_of
from . import addresses, reading
from .clips import Clip
from .levels import EACH, LOUDEST, Levels, absurd, check_channel, parse_channel


@runtime_checkable
class TorchcodecDecoder(Protocol):
    """A decoder of torchcodec, which the library datasets returns for a sound from version 4 on."""

    def get_all_samples(self) -> Any:
        """Decode to an object with `data`, (channels, samples), and `sample_rate`."""


@runtime_checkable
class OpenFile(Protocol):
    """A file that is open: of `open(path, "rb")`, `io.BytesIO`, a member of an archive, the answer of a server."""

    def read(self, n_bytes: int, /) -> bytes:
        """Return the next bytes, none at the end."""


@runtime_checkable
class Response(Protocol):
    """An answer of a server as requests and httpx return it."""

    status_code: int
    content: bytes


Sound = (
    str | os.PathLike[str] | bytes | bytearray | memoryview | np.ndarray | Tensor | Mapping[str, Any]
    | TorchcodecDecoder | OpenFile | Response
)  # fmt: skip
"""One input, see `embedder.Embedder.encode`."""

SINGLE: tuple[Any, ...] = (
    str, os.PathLike, bytes, bytearray, memoryview, np.ndarray, Tensor, Mapping, TorchcodecDecoder, OpenFile, Response,
)  # fmt: skip
"""The kinds of `Sound`, for `isinstance`."""

EXPECTED = (
    "expected a path, a waveform with its sampling_rate, a file opened with open(path, 'rb') or its bytes, or a dict "
    "with 'array' and 'sampling_rate', or with 'bytes' or 'path', as the audio column of a dataset holds"
)


def as_inputs(inputs: Sound | Iterable[Sound]) -> tuple[bool, Iterable[Any]]:
    """Normalise the inputs: (is_single, iterable).

    A table of one column (pandas, polars, Arrow, datasets) is the inputs in it.

    Raises
    ------
    OptionError : `inputs` is neither an input nor an iterable, or a table of several columns
    """
    inputs = _plain(_column_of(inputs))
    # An array of paths or other objects holds inputs, one of numbers is an input.
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OTU":
        return False, inputs.ravel().tolist()
    if isinstance(inputs, SINGLE):
        return True, [inputs]
    if not isinstance(inputs, Iterable):
        raise OptionError(f"{inputs!r} is not an input; {EXPECTED}, or several of these")
    return False, inputs


def _column_of(table: Any) -> Any:
    """Return the one column of a table, and what is no table as it is."""
    names = getattr(table, "column_names", None)  # of Arrow and datasets
    names = getattr(table, "columns", None) if names is None else names  # of pandas and polars
    if isinstance(table, SINGLE) or not isinstance(names, Iterable) or not hasattr(table, "__getitem__"):
        return table
    names = list(names)
    if len(names) != 1:
        shown = ", ".join(map(str, names[:9]))
        raise OptionError(
            f"{type(table).__name__} has {len(names)} columns ({shown}); give the one that holds the sounds, such as "
            "table['path']"
        )
    return table[names[0]]


def _plain(given: Any) -> Any:
    """Unwrap a scalar of Arrow, and turn arrays of other libraries into those of NumPy."""
    given = given.as_py() if hasattr(given, "as_py") else given
    # Arrays and columns have a shape, numbers have none.
    if not isinstance(given, SINGLE) and hasattr(given, "__array__") and getattr(given, "shape", None):
        return np.asarray(given)
    return given


class InputReader:
    """Turns inputs into clips.

    Parameters
    ----------
    sample_rate : of the clips' waveforms, in Hz
    sampling_rate : of arrays without one of their own, in Hz; None if each must have one
    channel : to read, see `levels.parse_channel`
    scratch : folder where contents of files are written
    """

    def __init__(self, sample_rate: int, sampling_rate: float | None, channel: int | str, scratch: Path) -> None:
        self.sample_rate = sample_rate
        self.sampling_rate = sampling_rate
        self.channel = parse_channel(channel)
        self.scratch = scratch
        self.contents: dict[int, Path] = {}  # files written to `scratch`, by the number of the input

    def clips(self, index: int, sound: Any) -> list[Clip]:
        """Turn one input into a clip, or one for each channel.

        Raises
        ------
        AudioError : an array is not a waveform, or a file cannot be read
        OptionError : its sample rate is missing or impossible, or the input is of another kind
        """
        sound = _plain(sound)
        if isinstance(sound, (str, os.PathLike)):
            return self._of_file(place_of(sound))
        if isinstance(sound, (np.ndarray, Tensor)):
            return self._of_array(sound)
        if isinstance(sound, Mapping):
            return self._of_mapping(index, sound)
        if isinstance(sound, TorchcodecDecoder):
            samples = sound.get_all_samples()
            return self._of_samples(samples.data, samples.sample_rate)
        return self._of_content(index, sound)

    def forget(self, index: int) -> None:
        """Remove the file written for an input, if there is one."""
        if path := self.contents.pop(index, None):
            path.unlink(missing_ok=True)

    def _of_content(self, index: int, content: Any, name: str = "") -> list[Clip]:
        """Write the content of a file to the disk, where a decoder finds it; `name` is that of the file."""
        name = name or str(getattr(content, "name", ""))
        path = self.contents[index] = self.scratch / f"{index}{PurePath(name).suffix}"  # which may help to decode it
        if isinstance(content, Response):
            if content.status_code >= 400:  # what follows is a page about the error
                raise AudioError(f"the server answered {content.status_code} instead of audio")
            content = content.content
        if isinstance(content, (bytes, bytearray, memoryview)):
            if isinstance(content, memoryview) and content.itemsize != 1:
                raise OptionError("a view of numbers; a waveform is numpy.asarray(view)")
            path.write_bytes(bytes(content))
        elif isinstance(content, OpenFile):
            _copy(content, path)
        elif isinstance(content, (int, float)) or (isinstance(content, (list, tuple)) and content):
            raise OptionError(f"a waveform is an array, such as numpy.asarray(list) of numbers; {EXPECTED}")
        else:
            raise OptionError(EXPECTED)
        return self._of_file(path)

    def _of_array(self, array: np.ndarray | Tensor) -> list[Clip]:
        if array.ndim != 1:
            raise AudioError(
                "a bare array is one mono waveform, (samples,), since two axes could be clips or channels; "
                "clips are list(array), channels go into a dict: {'array': array, 'sampling_rate': ...}"
            )
        return self._of_samples(array, self.sampling_rate)

    def _of_mapping(self, index: int, sound: Mapping[str, Any]) -> list[Clip]:
        if sound.get("array") is not None:
            array = sound["array"]
            array = array if isinstance(array, (np.ndarray, Tensor)) else np.asarray(array)
            return self._of_samples(array, sound.get("sampling_rate", self.sampling_rate))
        if sound.get("bytes") is not None:
            return self._of_content(index, sound["bytes"], str(sound.get("path") or ""))
        if isinstance(sound.get("path"), (str, os.PathLike)):
            return self._of_file(place_of(sound["path"]))
        raise OptionError(f"it holds no sound, or columns of several; {EXPECTED}: give that column, or row['audio']")

    def _of_samples(self, array: np.ndarray | Tensor, sampling_rate: float | None) -> list[Clip]:
        rate = check_sample_rate(sampling_rate)
        n_channels = len(array) if array.ndim == 2 else 1
        return [self._of_channel(array, rate, channel) for channel in self._channels(n_channels)]

    def _of_channel(self, array: np.ndarray | Tensor, rate: int, channel: int | None) -> Clip:
        levels = Levels(channel)
        mono = to_mono(array, levels)
        waveform = reading.resample(mono, rate, self.sample_rate)
        levels.compare(mono, rate, waveform, self.sample_rate)
        return Clip(waveform=torch.from_numpy(waveform), warnings=tuple(levels.warnings()))

    def _of_file(self, path: Path | Address) -> list[Clip]:
        n_channels = reading.channels_of(path, self.scratch) if self.channel == EACH else 1
        return [Clip(path, channel=channel) for channel in self._channels(n_channels)]

    def _channels(self, n_channels: int) -> list[int | None]:
        """Return the channels to read of a sound that has some number of them."""
        if self.channel == EACH:
            return list(range(1, n_channels + 1))
        return [self.channel if isinstance(self.channel, int) else None]


def _copy(file: OpenFile, path: Path) -> None:
    """Copy an open file from where it stands to its end, and set it back to there if it can be sought."""
    if inspect.iscoroutinefunction(file.read):
        raise OptionError("its read() is asynchronous; give the bytes that it returns, or the file that it wraps")
    position = None
    with contextlib.suppress(Exception):  # errors of what cannot be sought have no common root
        position = file.tell()  # type: ignore[attr-defined]
    with path.open("wb") as target:
        try:
            n_bytes = addresses.save(file.read, target)
        except (AudioError, OptionError):
            raise
        except Exception as error:
            raise AudioError(f"cannot be read ({type(error).__name__}: {error})") from error
        finally:
            if position is not None:
                with contextlib.suppress(Exception):
                    file.seek(position)  # type: ignore[attr-defined]
    if not n_bytes:
        raise AudioError("nothing is left to read (0 bytes); after writing to it, go back to its start: file.seek(0)")


def name_of(sound: Any) -> str:
    """Return the name of an input for messages."""
    sound = _plain(sound)
    if isinstance(sound, (str, os.PathLike)):
        with contextlib.suppress(AudioError):  # which tells it itself
            return str(place_of(sound))
        return os.fspath(sound)
    name = sound.get("path") if isinstance(sound, Mapping) else getattr(sound, "name", None)
    if isinstance(name, (str, os.PathLike)) and name and isinstance(sound, (Mapping, OpenFile)):
        return os.fspath(name)
    if isinstance(sound, Mapping):
        return f"dict with {', '.join(map(str, sound))}"
    shape = getattr(sound, "shape", None)
    return type(sound).__name__ if shape is None else f"array of shape {tuple(shape)}"


def check_sample_rate(sampling_rate: Any) -> int:
    """Return a sample rate in Hz; raise OptionError if it is missing or not one of audio."""
    if sampling_rate is None:
        raise OptionError("an array does not say its sample rate; give sampling_rate=..., in Hz")
    try:
        rate = int(sampling_rate)
    except (TypeError, ValueError):
        rate = 0
    if rate != sampling_rate or rate not in reading.SAMPLE_RATES:
        least, most = reading.SAMPLE_RATES[0], reading.SAMPLE_RATES[-1]
        raise OptionError(f"sampling_rate={sampling_rate!r}; give a whole number in Hz from {least} to {most}")
    return rate


def to_mono(array: np.ndarray | Tensor, levels: Levels) -> np.ndarray:
    """Check samples, and choose or average channels: (samples,) or (channels, samples) -> (samples,) float32, a copy.

    A copy, since a clip waits for others of its length, and its array may be used again meanwhile.

    Raises
    ------
    AudioError : another shape, no samples, integers, samples that are NaN, infinite or absurd, or the channel of
        `levels` is missing
    """
    if not (array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"):
        raise AudioError(f"samples are {array.dtype}; expected floating point in [-1, 1]: divide by the full scale")
    if array.ndim not in (1, 2) or (array.ndim == 2 and len(array) > array.shape[1]):
        raise AudioError(f"the array has the shape {tuple(array.shape)}; expected (samples,) or (channels, samples)")
    if 0 in array.shape:
        raise AudioError("0 samples; expected at least 1")
    check_channel(levels.channel, 1 if array.ndim == 1 else len(array), "an array")
    samples = array.detach().cpu().float().numpy() if isinstance(array, Tensor) else array
    with np.errstate(over="ignore"):  # what overflows is absurd, and refused as such
        # Channels last, as they are in a file: so the sum of many is the same to the last bit.
        samples = np.array(np.atleast_2d(samples).T, np.float32, order="C")  # (samples, channels)
    samples = levels.pick(samples)
    peak = float(np.abs(samples).max())
    if not peak <= LOUDEST:  # False for NaN too
        place, channel = np.argwhere(~(np.abs(samples) <= LOUDEST))[0]
        sample = samples[place, channel]
        raise AudioError(absurd(f"sample {place} is {sample:g}", sample))
    return levels.mean(samples, peak)
