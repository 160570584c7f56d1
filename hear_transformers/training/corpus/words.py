"""What a network that learnt from people hears in our speech: Google's speech embedding.

Lin et al.: Training Keyword Spotters with Limited and Synthesized Speech Data, arXiv 2002.01322; from the package
pyopen-wakeword, which has TensorFlow Lite, too. It knows how differently people say the same, which phones do not
tell.
"""

from __future__ import annotations

import ctypes
from functools import cache
from pathlib import Path
from typing import Any

import numpy as np
import soxr
from numpy.typing import NDArray

from ...errors import HearTransformersError, import_extra
from .mels import FRAME_TIMES
from .signals import LENGTH, RATE, Signal

NAME, LICENCE = "speech_embedding", "Apache-2.0"  # at its source, tfhub.dev/google/speech_embedding

Words = NDArray[np.float16]

EMBEDDING_RATE = 16_000  # Hz
FULL_SCALE = 2**15 - 1  # samples are those of 16 bits
SIZE = 96
WINDOW, STEP = 76, 16  # log-mels in a window, and between two: 0.78 and 0.16 s
MEL_STEP, MEL_LENGTH = 160, 512  # samples between two log-mels, and of each
N_WINDOWS = -(-LENGTH * EMBEDDING_RATE // (RATE * MEL_STEP * STEP)) + 1  # first and last are centred on the clip's ends
CENTRE = (MEL_LENGTH + (WINDOW - 1) * MEL_STEP) // 2  # samples from the beginning of a window
N_SAMPLES = (N_WINDOWS - 1) * STEP * MEL_STEP + 2 * CENTRE
TIMES = np.arange(N_WINDOWS) * STEP * MEL_STEP / EMBEDDING_RATE  # s, centres of the windows


def check() -> None:
    """Raise OptionError if the package is not installed."""
    _folder()


def _folder() -> Path:
    return Path(import_extra("words", "pyopen_wakeword", "teachers").__file__).parent


class _Network:
    """A network of TensorFlow Lite, through its interface for C, which computes with one thread.

    Parameters
    ----------
    library : of TensorFlow Lite
    path : of the network
    shape : of its input
    """

    def __init__(self, library: ctypes.CDLL, path: Path, shape: tuple[int, ...]) -> None:
        self._library = library
        model = self._pointer("ModelCreateFromFile", str(path).encode())
        options = self._pointer("InterpreterOptionsCreate")
        library.TfLiteInterpreterOptionsSetNumThreads(options, 1)  # other threads would be lost where a process forks
        self._interpreter = self._pointer("InterpreterCreate", model, options)
        sizes = (ctypes.c_int32 * len(shape))(*shape)
        self._call("InterpreterResizeInputTensor", self._interpreter, 0, sizes, len(shape))
        self._call("InterpreterAllocateTensors", self._interpreter)
        self._input = self._pointer("InterpreterGetInputTensor", self._interpreter, 0)
        self._output = self._pointer("InterpreterGetOutputTensor", self._interpreter, 0)
        n_axes = library.TfLiteTensorNumDims(self._output)
        self._shape = [library.TfLiteTensorDim(self._output, axis) for axis in range(n_axes)]

    def __call__(self, values: NDArray[np.float32]) -> NDArray[np.float32]:
        """Compute the output, of a shape of its own."""
        given, found = np.ascontiguousarray(values, np.float32), np.empty(self._shape, np.float32)
        self._call("TensorCopyFromBuffer", self._input, _bytes(given), ctypes.c_size_t(given.nbytes))
        self._call("InterpreterInvoke", self._interpreter)
        self._call("TensorCopyToBuffer", self._output, _bytes(found), ctypes.c_size_t(found.nbytes))
        return found

    def _pointer(self, name: str, *arguments: Any) -> ctypes.c_void_p:
        function = getattr(self._library, f"TfLite{name}")
        function.restype = ctypes.c_void_p
        return ctypes.c_void_p(function(*arguments))

    def _call(self, name: str, *arguments: Any) -> None:
        """Call a function, which refuses a tensor of another size."""
        if getattr(self._library, f"TfLite{name}")(*arguments):
            raise HearTransformersError(f"pyopen_wakeword: TfLite{name} failed; install another release of the package")


def _bytes(array: NDArray[np.float32]) -> ctypes.c_void_p:
    return array.ctypes.data_as(ctypes.c_void_p)


@cache
def networks() -> tuple[_Network, _Network]:
    """Return the networks of this process: of log-mels, (1, samples) to (1, 1, mels, 32), and of their embedding."""
    folder = _folder()
    (path,) = folder.glob("lib/*tensorflowlite_c.*")
    library = ctypes.CDLL(str(path))
    return (
        _Network(library, folder / "models/melspectrogram.tflite", (1, N_SAMPLES)),
        _Network(library, folder / "models/embedding_model.tflite", (N_WINDOWS, WINDOW, 32, 1)),
    )


def embed(clip: Signal) -> NDArray[np.float32]:
    """Compute the embedding of every window of a clip: -> (`N_WINDOWS`, 96).

    Log-mels of the whole clip are at most 80 dB below its loudest: silence is always the same.
    """
    log_mels, embedding = networks()
    samples = soxr.resample(clip, RATE, EMBEDDING_RATE) * FULL_SCALE
    padded = np.pad(samples, (CENTRE, N_SAMPLES - CENTRE - len(samples)))
    mels = log_mels(padded[None])[0, 0] / 10 + 2  # as openWakeWord brings its own to the network's
    windows = np.lib.stride_tricks.sliding_window_view(mels, WINDOW, 0)[::STEP]  # (windows, 32, mels)
    return embedding(windows.transpose(0, 2, 1)[..., None])[:, 0, 0]


def hear(clip: Signal) -> Words:
    """Compute the embedding around each mel frame, between windows by linear interpolation: -> (frames, 96)."""
    windows = embed(clip)
    places = FRAME_TIMES / TIMES[1]
    before = np.minimum(places.astype(int), N_WINDOWS - 2)
    share = (places - before)[:, None]
    return ((1 - share) * windows[before] + share * windows[before + 1]).astype(np.float16)
