"""A model as one function from waveforms to embeddings, of operations that ONNX has."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..embedding.embedder import Embedder
from ..embedding.windows import samples_of
from ..errors import OptionError
from ..hf import Encoder, takes_waveforms


class Exported(nn.Module):
    """Reads one window: (batch, samples) at the model's rate -> (batch, size), as `Embedder.embed_scenes` does.

    Parameters
    ----------
    model : from a family's `load_model`, in float32; a copy is made, on the CPU

    Raises
    ------
    OptionError : the model computes in another precision, or its scenes are means over timestamps
    """

    def __init__(self, model: Embedder) -> None:
        super().__init__()
        check(model)
        self.readout = model.variant.scene
        self.model = copy.deepcopy(model).to("cpu").eval()
        # Neither rewritten for the instructions of this processor nor recorded: other programs do that in their way.
        self.model.trunk.convolutional = self.model.trunk.recordable = False

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embed (batch, samples)."""
        return self.model.read(waveforms, self.readout)


def check(model: object) -> None:
    """Raise OptionError if a model cannot be exported, and say what can."""
    if not isinstance(model, Embedder):
        raise OptionError("only models of this package can be exported; `hear-transformers list` has them")
    name = "/".join(model.name)
    if model.precision != "float32":
        raise OptionError(
            f"precision={model.precision!r} of {name}: models are exported in float32; load it with "
            "precision='float32', and give int8 for a small file"
        )
    if isinstance(model.trunk, Encoder) and model.trunk.extractor and not takes_waveforms(model.trunk.extractor):
        raise OptionError(
            f"{name} cannot be exported: its spectrogram is computed by the feature extractor of its checkpoint, "
            "outside PyTorch; encoders of waveforms can, such as HuBERT and wav2vec 2.0"
        )
    if model.variant.mean_over_time:
        raise OptionError(
            f"mean_over_time of {name}: a file embeds one window; leave it out, and average embeddings of windows"
        )


def lengths(model: Embedder) -> tuple[int, int]:
    """Return the shortest and the longest waveform that is read as a whole, in samples.

    A network that cuts longer input into pieces, or shrinks it, does another computation for each number of pieces.
    """
    scene, frontend = model.variant.scene, model.variant.frontend
    limits = [samples_of(scene.window_ms, model.sample_rate), model.max_samples, model.max_timed_samples]
    if model.trunk.piece_frames is not None:
        limits.append(frontend.max_samples(model.trunk.piece_frames))
    return model.min_samples_for(scene), min(limit for limit in limits if limit is not None)


@dataclass(frozen=True, slots=True)
class Spectrum:
    """The two parts of complex numbers, for which ONNX has no type."""

    real: Tensor
    imag: Tensor

    def transpose(self, first: int, second: int) -> Spectrum:
        """Swap two axes."""
        return Spectrum(self.real.transpose(first, second), self.imag.transpose(first, second))


def fourier(n_fft: int, length: int, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return cosines and negative sines of the Fourier transform: (length, n_fft // 2 + 1) each."""
    # In whole n_fft-ths of a circle, so that no angle is rounded before its cosine is taken.
    turns = torch.arange(length)[:, None] * torch.arange(n_fft // 2 + 1) % n_fft
    angles = turns.double() * (2 * math.pi / n_fft)
    return angles.cos().to(dtype), -angles.sin().to(dtype)


def unfold(tensor: Tensor, axis: int, size: int, step: int) -> Tensor:
    """Do what `Tensor.unfold` does, by an index that is computed from the length."""
    axis %= tensor.ndim
    n_parts = (tensor.shape[axis] - size) // step + 1
    index = torch.arange(n_parts)[:, None] * step + torch.arange(size)  # (parts, size)
    parts = unflatten(tensor.index_select(axis, index.flatten()), axis, (-1, size))
    return parts.movedim(axis + 1, -1)


def unflatten(tensor: Tensor, axis: int, sizes: Sequence[int]) -> Tensor:
    """Do what `Tensor.unflatten` does, whose exporter takes the sizes of the example for those of all."""
    axis %= tensor.ndim
    return tensor.reshape([*tensor.shape[:axis], *sizes, *tensor.shape[axis + 1 :]])


def matrix_transpose(tensor: Tensor) -> Tensor:
    """Do what `Tensor.mT` does."""
    return tensor.transpose(-2, -1)


def rfft(frames: Tensor, n: int | None = None) -> Spectrum:
    """Do what `torch.fft.rfft` does along the last axis, by two products of matrices; `n` is no shorter than that."""
    length = int(frames.shape[-1])
    cosines, sines = fourier(n or length, length, frames.dtype)
    return Spectrum(frames @ cosines, frames @ sines)


def stft(waveforms: Tensor, n_fft: int, hop_length: int, win_length: int, window: Tensor, **options: Any) -> Spectrum:
    """Do what `torch.stft` does without centring: -> (batch, bins, frames)."""
    # A window shorter than a frame lies in its middle, and zeros of the frame need not be multiplied.
    first = (n_fft - win_length) // 2
    inner = waveforms[:, first : first - n_fft + win_length or None]
    cosines, sines = (each[first : first + win_length] for each in fourier(n_fft, n_fft, waveforms.dtype))
    frames = unfold(inner, 1, win_length, hop_length) * window  # (batch, frames, win_length)
    return Spectrum(frames @ cosines, frames @ sines).transpose(1, 2)


def floor_divide(dividend: Tensor, divisor: Tensor | int) -> Tensor:
    """Do what ``//`` does, whose exporter rounds towards 0 instead of down."""
    return torch.div(dividend, divisor, rounding_mode="floor")


FORMS: Mapping[Callable[..., Any], Callable[..., Any]] = {
    torch.Tensor.unfold: unfold,
    torch.Tensor.unflatten: unflatten,
    torch.Tensor.mT.__get__: matrix_transpose,  # type: ignore[attr-defined]
    torch.Tensor.__floordiv__: floor_divide,
    torch.fft.rfft: rfft,
    torch.stft: stft,
}
"""Functions of PyTorch that ONNX lacks, or has for one length alone -> the same of operations that it has."""


class Portable(TorchFunctionMode):
    """Compute by `FORMS` until the block ends."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, arguments: Any = (), named: Mapping[str, Any] | None = None
    ) -> Any:
        """Call a function of PyTorch, or its other form."""
        return FORMS.get(function, function)(*arguments, **(named or {}))
