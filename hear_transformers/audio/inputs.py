"""Inputs of users -> clips: paths, arrays, contents of files, rows of a dataset."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path, PurePath
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from torch import Tensor

from ..errors import AudioError, OptionError
from . import reading
from .clips import Clip


@runtime_checkable
class TorchcodecDecoder(Protocol):
    """A decoder of torchcodec, which the library datasets returns for a sound from version 4 on."""

    def get_all_samples(self) -> Any:
        """Decode to an object with `data`, (channels, samples), and `sample_rate`."""


Sound = str | os.PathLike[str] | bytes | np.ndarray | Tensor | Mapping[str, Any] | TorchcodecDecoder
"""One input, see `embedder.Embedder.encode`."""

SINGLE: tuple[Any, ...] = (str, os.PathLike, bytes, np.ndarray, Tensor, Mapping, TorchcodecDecoder)
"""The kinds of `Sound`, for `isinstance`."""

EXPECTED = (
    "expected a path, a waveform with its sampling_rate, the bytes of a file, or a dict with 'array' and "
    "'sampling_rate', or with 'bytes' or 'path', as the audio column of a dataset holds"
)


def as_inputs(inputs: Sound | Iterable[Sound]) -> tuple[bool, Iterable[Any]]:
    """Normalise the inputs: (is_single, iterable).

    Raises
    ------
    OptionError : `inputs` is neither an input nor an iterable
    """
    # An array of paths or other objects holds inputs, one of numbers is an input.
    if isinstance(inputs, np.ndarray) and inputs.dtype.kind in "OTU":
        return False, inputs.ravel().tolist()
    if isinstance(inputs, SINGLE):
        return True, [inputs]
    if not isinstance(inputs, Iterable):
        raise OptionError(f"{inputs!r} is not an input; {EXPECTED}, or several of these")
    return False, inputs


class InputReader:
    """Turns inputs into clips.

    Parameters
    ----------
    sample_rate : of the clips' waveforms, in Hz
    sampling_rate : of arrays without one of their own, in Hz; None if each must have one
    scratch : folder where contents of files are written
    """

    def __init__(self, sample_rate: int, sampling_rate: float | None, scratch: Path) -> None:
        self.sample_rate = sample_rate
        self.sampling_rate = sampling_rate
        self.scratch = scratch
        self.contents: dict[int, Path] = {}  # files written to `scratch`, by the number of the input

    def clip(self, index: int, sound: Any) -> Clip:
        """Turn one input into a clip.

        Raises
        ------
        AudioError : an array is not a waveform
        OptionError : its sample rate is missing or impossible, or the input is of another kind
        """
        if isinstance(sound, (str, os.PathLike)):
            return Clip(Path(sound))
        if isinstance(sound, bytes):
            return self._of_bytes(index, sound)
        if isinstance(sound, (np.ndarray, Tensor)):
            return self._of_array(sound)
        if isinstance(sound, Mapping):
            return self._of_mapping(index, sound)
        if isinstance(sound, TorchcodecDecoder):
            samples = sound.get_all_samples()
            return self._of_samples(samples.data, samples.sample_rate)
        raise OptionError(EXPECTED)

    def forget(self, index: int) -> Path | None:
        """Remove the file written for an input; return its path, None if there was none."""
        path = self.contents.pop(index, None)
        if path is not None:
            path.unlink(missing_ok=True)
        return path

    def _of_bytes(self, index: int, content: bytes, name: str = "") -> Clip:
        path = self.contents[index] = self.scratch / f"{index}{PurePath(name).suffix}"  # which may help to decode it
        path.write_bytes(content)
        return Clip(path)

    def _of_array(self, array: np.ndarray | Tensor) -> Clip:
        if array.ndim != 1:
            raise AudioError(
                "a bare array is one mono waveform, (samples,), since two axes could be clips or channels; "
                "clips are list(array), channels go into a dict: {'array': array, 'sampling_rate': ...}"
            )
        return self._of_samples(array, self.sampling_rate)

    def _of_mapping(self, index: int, sound: Mapping[str, Any]) -> Clip:
        if sound.get("array") is not None:
            array = sound["array"]
            array = array if isinstance(array, (np.ndarray, Tensor)) else np.asarray(array)
            return self._of_samples(array, sound.get("sampling_rate", self.sampling_rate))
        if sound.get("bytes") is not None:
            return self._of_bytes(index, sound["bytes"], str(sound.get("path") or ""))
        if sound.get("path") is not None:
            return Clip(Path(sound["path"]))
        raise OptionError(f"it holds no sound; {EXPECTED}")

    def _of_samples(self, array: np.ndarray | Tensor, sampling_rate: float | None) -> Clip:
        rate = check_sample_rate(sampling_rate)
        return Clip(waveform=torch.from_numpy(reading.resample(to_mono(array), rate, self.sample_rate)))


def name_of(sound: Any) -> str:
    """Return the name of an input for messages."""
    if isinstance(sound, (str, os.PathLike)):
        return os.fspath(sound)
    if isinstance(sound, Mapping):
        return str(sound.get("path") or f"dict with {', '.join(map(str, sound))}")
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


def to_mono(array: np.ndarray | Tensor) -> np.ndarray:
    """Check samples and average channels: (samples,) or (channels, samples) -> (samples,) float32, a copy.

    A copy, since a clip waits for others of its length, and its array may be used again meanwhile.

    Raises
    ------
    AudioError : another shape, no samples, integers, or samples that are NaN, infinite or absurd
    """
    if not (array.is_floating_point() if isinstance(array, Tensor) else array.dtype.kind == "f"):
        raise AudioError(f"samples are {array.dtype}; expected floating point in [-1, 1]: divide by the full scale")
    if array.ndim not in (1, 2) or (array.ndim == 2 and len(array) > array.shape[1]):
        raise AudioError(f"the array has the shape {tuple(array.shape)}; expected (samples,) or (channels, samples)")
    if 0 in array.shape:
        raise AudioError("0 samples; expected at least 1")
    samples = array.detach().cpu().float().numpy() if isinstance(array, Tensor) else array
    with np.errstate(over="ignore"):  # what overflows is absurd, and refused as such
        # Channels last, as they are in a file: so the sum of many is the same to the last bit.
        samples = np.array(samples.T, np.float32, order="C")  # (samples,) or (samples, channels)
    usable = np.abs(samples) <= reading.LOUDEST  # False for NaN too
    if not usable.all():
        place = np.argwhere(~usable)[0]
        raise AudioError(
            f"sample {place[0]} is {samples[tuple(place)]:g}; expected finite numbers, nominally in [-1, 1], never "
            f"beyond {reading.LOUDEST:g}"
        )
    return samples if samples.ndim == 1 else samples.mean(1)
