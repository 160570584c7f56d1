"""Waveform to log-mel spectrogram, batched and on the device of the waveform.

A dialect is data: a `MelSpec` at the top of the family that uses it. The mathematics is here, once.
"""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, replace
from typing import TypeVar, cast

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensor

from ..errors import OptionError
from .fused import kernels_for
from .resampling import Resampler
from .trunk import Exact, is_traced

Level = TypeVar("Level", float, Tensor)
"""A level of the log-mel, or many."""


@dataclass(frozen=True, slots=True, kw_only=True)
class FrameSpec(ABC):
    """A front end and the frames it computes of a waveform: lengths in samples, frequencies in Hz.

    Attributes
    ----------
    sample_rate : of the waveform
    hop_length : distance between two frames
    """

    sample_rate: int
    hop_length: int

    has_mel = True
    """True if frames are mel bands, so that "mel" is a layer."""

    padding = 0.0
    """Value of the frames that `Readout.fill_frames` appends to a clip."""

    offset = 0.0
    """Centre of the first frame, in samples."""

    @abstractmethod
    def build(self) -> nn.Module:
        """Build the module: waveforms (batch, samples) -> input of the network, frames last."""

    @abstractmethod
    def example(self, n_frames: int) -> Tensor:
        """Return zeros of the shape of the network's input: (1, ..., n_frames)."""

    @property
    @abstractmethod
    def receptive_field(self) -> int:
        """Samples that one frame sees."""

    @property
    @abstractmethod
    def min_samples(self) -> int:
        """Length of the shortest waveform."""

    @abstractmethod
    def n_frames(self, n_samples: int) -> int:
        """Count the frames of a waveform of `n_samples`."""

    @abstractmethod
    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames."""

    def computed(self, n_samples: int) -> int:
        """Return how many samples are computed with for a waveform of `n_samples`: of a short one they may be more."""
        return n_samples

    @property
    def normalisation(self) -> tuple[float, float] | None:
        """Mean and standard deviation that `with_normalisation` takes; None if it takes none."""
        return None

    def with_normalisation(self, mean: float, std: float) -> FrameSpec:
        """Return the front end with the statistics of other recordings, as the authors' training code takes them.

        Raises
        ------
        OptionError : the network normalises its input itself
        """
        raise OptionError(
            f"normalisation=({mean:g}, {std:g}): this network normalises its input itself and takes none; leave it out"
        )

    def max_samples(self, n_frames: int) -> int:
        """Return the length of the longest waveform with `n_frames` frames."""
        return self.n_samples(n_frames + 1) - 1

    @property
    def hop_ms(self) -> float:
        """Distance between two frames in ms."""
        return 1000.0 * self.hop_length / self.sample_rate

    @property
    def receptive_field_ms(self) -> float:
        """Length of audio that one frame sees, in ms."""
        return 1000.0 * self.receptive_field / self.sample_rate


@dataclass(frozen=True, slots=True, kw_only=True)
class Waveform(FrameSpec):
    """No front end: the network reads the waveform itself, and a frame is a sample."""

    hop_length: int = 1

    has_mel = False
    receptive_field = 1
    min_samples = 1

    def build(self) -> nn.Module:
        """Build the identity."""
        return nn.Identity()

    def example(self, n_frames: int) -> Tensor:
        """Return zeros (1, n_frames)."""
        return torch.zeros(1, n_frames)

    def n_frames(self, n_samples: int) -> int:
        """Count samples."""
        return n_samples

    def n_samples(self, n_frames: int) -> int:
        """Count samples."""
        return n_frames


@dataclass(frozen=True, slots=True, kw_only=True)
class MelSpec(FrameSpec):
    """Base of the log-mel dialects: the spectrum's lengths in samples, the bands' edges in Hz."""

    n_fft: int
    win_length: int
    n_mels: int
    fmin: float
    fmax: float

    def example(self, n_frames: int) -> Tensor:
        """Return zeros (1, n_mels, n_frames)."""
        return torch.zeros(1, self.n_mels, n_frames)

    @abstractmethod
    def normalised(self, level: Level) -> Level:
        """Normalise a level of the log-mel, or a whole log-mel, as the front end does."""

    def centres_hz(self) -> npt.NDArray[np.float64]:
        """Return the frequency at the peak of each band's filter, (n_mels,), on Kaldi's scale."""
        low, high = (math.log1p(hz / KALDI_KNEE_HZ) for hz in (self.fmin, self.fmax))
        return KALDI_KNEE_HZ * np.expm1(np.linspace(low, high, self.n_mels + 2)[1:-1])


@dataclass(frozen=True, slots=True, kw_only=True)
class CpjkuMel(MelSpec):
    """The dialect of PaSST and EfficientAT: ``(ln(mel + floor) + shift) / scale``, frames centred on their hop.

    Attributes
    ----------
    preemphasis : of the whole waveform
    floor : added to the mel
    shift, scale : of the normalisation
    raises_to_floor : the floor is not added: what lies below is raised to it
    periodic : the window is that of a longer one without its last sample, as PyTorch's is by default
    """

    preemphasis: float
    floor: float
    shift: float
    scale: float
    raises_to_floor: bool = False
    periodic: bool = False

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation that `with_normalisation` takes."""
        return -self.shift, self.scale

    def with_normalisation(self, mean: float, std: float) -> CpjkuMel:
        """Return the dialect that maps `mean` to 0 and `std` to 1, in natural logarithms of power."""
        return replace(self, shift=-mean, scale=std)

    def build(self) -> CpjkuLogMel:
        """Build the module."""
        return CpjkuLogMel(self)

    def normalised(self, level: Level) -> Level:
        """Normalise natural logarithms of power."""
        return (level + self.shift) / self.scale

    @property
    def receptive_field(self) -> int:
        """Pre-emphasis looks at one sample more than the window."""
        return self.win_length + 1

    @property
    def min_samples(self) -> int:
        """Pre-emphasis takes one sample, the centred STFT reflects half a window."""
        return self.n_fft // 2 + 2

    def n_frames(self, n_samples: int) -> int:
        """Count the frames; pre-emphasis has taken one sample."""
        return 1 + (n_samples - 1) // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames."""
        return max(self.min_samples, 1 + (n_frames - 1) * self.hop_length)


@dataclass(frozen=True, slots=True, kw_only=True)
class KaldiMel(MelSpec):
    """Kaldi's filter bank features: ``(ln(max(mel, eps)) - mean) / scale``, frames only where a window fits.

    Attributes
    ----------
    preemphasis : within each frame
    mean, scale : of the normalisation
    deviations : standard deviations of the recordings that `scale` is
    is_centred : the mean of the whole waveform is removed first. Kaldi removes that of each frame, so that only
        rounding changes
    multiple : the end is filled with `padding` to a multiple of so many frames
    window_power : to which the symmetric Hann window is raised; 0.85 makes Kaldi's own, Povey's
    full_scale : the sample that 1.0 stands for; 32768 where authors take the integers of 16-bit files
    """

    preemphasis: float
    mean: float
    scale: float
    deviations: float = 2.0
    is_centred: bool = False
    multiple: int = 1
    window_power: float = 1.0
    full_scale: float = 1.0

    @property
    def normalisation(self) -> tuple[float, float]:
        """Mean and standard deviation that `with_normalisation` takes."""
        return self.mean, self.scale / self.deviations

    def with_normalisation(self, mean: float, std: float) -> KaldiMel:
        """Return the dialect with the mean and standard deviation of other recordings, in natural logarithms of power.

        AST's recipe divides by twice the deviation (src/dataloader.py), ATGNN's by one.
        """
        return replace(self, mean=mean, scale=self.deviations * std)

    def build(self) -> KaldiLogMel:
        """Build the module."""
        return KaldiLogMel(self)

    def normalised(self, level: Level) -> Level:
        """Normalise natural logarithms of power."""
        return (level - self.mean) / self.scale

    @property
    def padding(self) -> float:  # type: ignore[override]
        """A logarithm of 0, with which the authors of AST pad: louder than silence."""
        return self.normalised(0.0)

    @property
    def receptive_field(self) -> int:
        """The window; pre-emphasis stays within it."""
        return self.win_length

    @property
    def min_samples(self) -> int:
        """One window."""
        return self.win_length

    @property
    def offset(self) -> float:  # type: ignore[override]
        """The first window starts with the first sample."""
        return self.win_length / 2

    def n_frames(self, n_samples: int) -> int:
        """Count the windows that fit, and the frames that fill the end."""
        windows = 1 + (n_samples - self.win_length) // self.hop_length
        return -(-windows // self.multiple) * self.multiple

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames, or with more that fill its end."""
        windows = (n_frames - 1) // self.multiple * self.multiple
        return self.win_length + windows * self.hop_length


@dataclass(frozen=True, slots=True, kw_only=True)
class PannsMel(MelSpec):
    """The dialect of PANNs: ``10 log10(max(mel, 1e-10))`` in dB, frames centred on their hop.

    Attributes
    ----------
    decimation : the waveform is first resampled to ``sample_rate / decimation``, in whose samples `n_fft` and
        `win_length` count; `hop_length` counts samples of the waveform like every other length
    """

    decimation: int = 1

    def build(self) -> LogMel:
        """Build the module."""
        return PannsLogMel(self)

    def normalised(self, level: Level) -> Level:
        """Return decibels as they are: these networks normalise them themselves."""
        return level

    def centres_hz(self) -> npt.NDArray[np.float64]:
        """Return the frequency at the peak of each band's filter, (n_mels,), on Slaney's scale."""
        low, high = slaney_mel(np.array([self.fmin, self.fmax]))
        return slaney_hz(np.linspace(low, high, self.n_mels + 2)[1:-1])

    @property
    def receptive_field(self) -> int:
        """The window, in samples of the waveform."""
        return self.win_length * self.decimation

    @property
    def min_samples(self) -> int:
        """The centred STFT reflects half a window."""
        return self.n_fft // 2 * self.decimation + 1

    def n_frames(self, n_samples: int) -> int:
        """Count the frames; resampling rounds up."""
        return 1 + -(-n_samples // self.decimation) // (self.hop_length // self.decimation)

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames."""
        return max(self.min_samples, (n_frames - 1) * self.hop_length - self.decimation + 1)


@dataclass(frozen=True, slots=True, kw_only=True)
class ClapMel(PannsMel):
    """The dialect of CLAP: that of PANNs in float64, of a waveform that is repeated until it fills a window.

    Attributes
    ----------
    window : samples that shorter waveforms are repeated to, whole times; silence fills the rest. Longer ones stay
    htk : bands on HTK's scale, with a peak of 1, instead of Slaney's, with an area of 1
    """

    window: int
    htk: bool = False

    min_samples = 1

    def build(self) -> ClapLogMel:
        """Build the module."""
        return ClapLogMel(self)

    def centres_hz(self) -> npt.NDArray[np.float64]:
        """Return the frequency at the peak of each band's filter, (n_mels,); Kaldi's scale is HTK's."""
        return (MelSpec if self.htk else PannsMel).centres_hz(self)  # super() does not find classes with slots

    def computed(self, n_samples: int) -> int:
        """Return the length of a repeated waveform."""
        return max(n_samples, self.window)

    def n_frames(self, n_samples: int) -> int:
        """Count the frames, those of repetitions and of silence too."""
        return 1 + self.computed(n_samples) // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames: any has those of a window."""
        return 1 if n_frames <= self.n_frames(1) else (n_frames - 1) * self.hop_length

    def repeated(self, waveforms: Tensor) -> Tensor:
        """Repeat waveforms until they fill a window: (batch, samples) -> (batch, `computed` samples)."""
        n_samples = waveforms.shape[1]
        if n_samples >= self.window:
            return waveforms
        times = self.window // n_samples
        return nn.functional.pad(waveforms.repeat(1, times), (0, self.window - times * n_samples))


@dataclass(frozen=True, slots=True, kw_only=True)
class HtkMel(MelSpec):
    """The dialect of Dasheng and CED: ``10 log10(max(mel, 1e-10))`` in dB, frames centred on their hop.

    Attributes
    ----------
    range_db : levels further below the loudest one of a waveform are raised to that distance
    """

    range_db: float

    def build(self) -> HtkLogMel:
        """Build the module."""
        return HtkLogMel(self)

    def normalised(self, level: Level) -> Level:
        """Return decibels as they are: these networks normalise them themselves."""
        return level

    @property
    def receptive_field(self) -> int:
        """The window."""
        return self.win_length

    @property
    def min_samples(self) -> int:
        """The centred STFT reflects half a window."""
        return self.n_fft // 2 + 1

    def n_frames(self, n_samples: int) -> int:
        """Count the frames."""
        return 1 + n_samples // self.hop_length

    def n_samples(self, n_frames: int) -> int:
        """Return the length of the shortest waveform with `n_frames` frames."""
        return max(self.min_samples, (n_frames - 1) * self.hop_length)


CPJKU_MEL = CpjkuMel(
    sample_rate=32_000,
    n_fft=1024,
    win_length=800,
    hop_length=320,
    n_mels=128,
    fmin=0.0,
    fmax=15_000.0,
    preemphasis=0.97,
    floor=1e-5,
    shift=4.5,
    scale=5.0,
)
"""The dialect of the PaSST and EfficientAT authors (`AugmentMelSTFT` in evaluation mode): their released models were
trained with ``fmax_aug_range=2000``, hence the upper edge of 16000 - 2000 / 2 Hz."""


SED_MEL = replace(
    CPJKU_MEL,
    sample_rate=16_000,
    n_fft=512,
    win_length=400,
    hop_length=160,
    fmax=7_000.0,
    floor=1e-7,
    raises_to_floor=True,
)
"""The dialect of frame-MobileNets (PretrainedSED, `models/frame_mn`): the upper edge is 8000 - 2000 / 2 Hz again."""


CPJKU_BESIDE = ("mel.window", "mel.preemphasis_coefficient", "device_proxy")
"""Tensors of the authors' front end and HEAR wrapper in a saved whole model, beside those of the network."""


AST_MEL = KaldiMel(
    sample_rate=16_000,
    n_fft=512,
    win_length=400,
    hop_length=160,
    n_mels=128,
    fmin=20.0,
    fmax=8_000.0,
    preemphasis=0.97,
    # Twice the standard deviation: the recipe aims at 0.5 (egs/audioset/run.sh, src/dataloader.py).
    mean=-4.2677393,
    scale=2 * 4.5689974,
)
"""The dialect of the AST authors, with the statistics of AudioSet; other families took it over."""


XIAOMI_MEL = HtkMel(
    sample_rate=16_000,
    n_fft=512,
    win_length=512,
    hop_length=160,
    n_mels=64,
    fmin=0.0,
    fmax=8_000.0,
    range_db=120.0,
)
"""The dialect of the authors of Dasheng and CED: torchaudio's `MelSpectrogram` and `AmplitudeToDB`."""


KALDI_KNEE_HZ, KALDI_MEL_PER_LOG = 700.0, 1127.0
"""Of Kaldi's scale (feat/mel-computations.h): O'Shaughnessy's ``2595 log10(1 + hz / 700)``; 1127 is 2595 / ln(10)."""


def kaldi_filters(spec: MelSpec) -> Tensor:
    """Build Kaldi's triangular filters: linear in mel, peak 1, no area normalisation.

    Kaldi's own arithmetic, in float32, is kept: the edge of a filter that covers a single bin lies so close to that bin
    that another rounding changes the result by 1e-3 dB. The row of the Nyquist bin is zero, as in Kaldi.
    """
    low, high = (KALDI_MEL_PER_LOG * math.log(1 + hz / KALDI_KNEE_HZ) for hz in (spec.fmin, spec.fmax))
    edges = low + torch.arange(spec.n_mels + 2.0) * ((high - low) / (spec.n_mels + 1))  # in mel, as all below
    hz = torch.arange(spec.n_fft / 2)[:, None] * (spec.sample_rate / spec.n_fft)
    bins = KALDI_MEL_PER_LOG * (1 + hz / KALDI_KNEE_HZ).log()  # (n_fft // 2, 1)
    left, peak, right = edges[:-2], edges[1:-1], edges[2:]
    filters = torch.minimum((bins - left) / (peak - left), (right - bins) / (right - peak)).clamp(min=0)
    return nn.functional.pad(filters, (0, 0, 0, 1))


KNEE_HZ, KNEE_MEL = 1000.0, 15.0  # where Slaney's scale turns from linear to logarithmic
MEL_PER_LOG = 27 / np.log(6.4)  # mels per natural logarithm of frequency above it


def slaney_mel(hz: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert Hz to the mels of Slaney's Auditory Toolbox (Interval Research technical report 1998-010)."""
    high = KNEE_MEL + np.log(np.maximum(hz, KNEE_HZ) / KNEE_HZ) * MEL_PER_LOG
    return np.where(hz < KNEE_HZ, hz * KNEE_MEL / KNEE_HZ, high)


def slaney_hz(mel: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Convert Slaney's mels to Hz."""
    return np.where(mel < KNEE_MEL, mel * KNEE_HZ / KNEE_MEL, KNEE_HZ * np.exp((mel - KNEE_MEL) / MEL_PER_LOG))


def triangles(spec: PannsMel, edges: npt.NDArray[np.float64]) -> npt.NDArray[np.float64]:
    """Build triangular filters (n_fft // 2 + 1, n_mels) with a peak of 1 between edges (n_mels + 2,) in Hz."""
    bins = np.arange(spec.n_fft // 2 + 1)[:, None] * (spec.sample_rate / spec.decimation / spec.n_fft)
    widths = np.diff(edges)
    rising = (bins - edges[:-2]) / widths[:-1]
    falling = (edges[2:] - bins) / widths[1:]
    return np.maximum(0.0, np.minimum(rising, falling))


def slaney_filters(spec: PannsMel) -> Tensor:
    """Build triangular filters on Slaney's scale, each of area 1.

    In float64, rounded once to float32: equal to the bit to those in the authors' checkpoints, unlike the float32 of
    today's libraries.
    """
    low, high = slaney_mel(np.array([spec.fmin, spec.fmax]))
    edges = slaney_hz(np.linspace(low, high, spec.n_mels + 2))
    filters = triangles(spec, edges) * (2.0 / (edges[2:] - edges[:-2]))
    return torch.from_numpy(filters.astype(np.float32))


HTK_KNEE_HZ, HTK_MEL_PER_DECADE = 700.0, 2595.0
"""Of the scale of the HTK book: O'Shaughnessy's ``2595 log10(1 + hz / 700)``."""


def htk_filters(spec: HtkMel) -> Tensor:
    """Build triangular filters on HTK's scale: linear in Hz, peak 1, no area normalisation.

    In float32 as in `torchaudio.functional.melscale_fbanks`, to the bit: a bin beside the edge of a filter is otherwise
    in it with another small weight, which shows in bands near silence. Low filters that no bin lies in are zero.
    """
    low, high = (HTK_MEL_PER_DECADE * math.log10(1 + hz / HTK_KNEE_HZ) for hz in (spec.fmin, spec.fmax))
    edges = HTK_KNEE_HZ * (10.0 ** (torch.linspace(low, high, spec.n_mels + 2) / HTK_MEL_PER_DECADE) - 1)
    bins = torch.linspace(0, spec.sample_rate // 2, spec.n_fft // 2 + 1)[:, None]  # Hz
    widths = edges[1:] - edges[:-1]
    rising, falling = (bins - edges[:-2]) / widths[:-1], (edges[2:] - bins) / widths[1:]
    return torch.minimum(rising, falling).clamp(min=0)


def exact_htk_filters(spec: PannsMel) -> Tensor:
    """Build the filters of `htk_filters` in float64, rounded once to float32, as transformers' `mel_filter_bank`."""
    low, high = (HTK_MEL_PER_DECADE * math.log10(1 + hz / HTK_KNEE_HZ) for hz in (spec.fmin, spec.fmax))
    edges = HTK_KNEE_HZ * (10.0 ** (np.linspace(low, high, spec.n_mels + 2) / HTK_MEL_PER_DECADE) - 1)
    return torch.from_numpy(triangles(spec, edges).astype(np.float32))


N_GROUPS = 4
"""Groups of mel bands, each computed from the bins that its filters cover. Most of the filters is zero: this saves two
thirds of the multiplications."""


def group(filters: Tensor) -> list[tuple[slice, slice]]:
    """Return the bins and the bands of consecutive groups of filters (bins, n_mels)."""
    if filters.is_meta or isinstance(filters, FakeTensor):  # which have no numbers to look at
        return [(slice(None), slice(None))]
    groups = []
    for bands in torch.arange(filters.shape[1], device="cpu").chunk(N_GROUPS):
        of_group = slice(int(bands[0]), int(bands[-1]) + 1)
        covered = filters[:, of_group].any(1).nonzero().flatten().tolist() or [0]
        groups.append((slice(covered[0], covered[-1] + 1), of_group))
    return groups


class LogMel(Exact):
    """A log-mel front end: waveforms (batch, samples) in [-1, 1] -> (batch, n_mels, frames) float32.

    Waveforms are at least `FrameSpec.min_samples` long. The window is (win_length,), filters are
    (n_fft // 2 + 1, n_mels), both float32.
    """

    window: Tensor
    filters: Tensor

    def __init__(self, window: Tensor, filters: Tensor) -> None:
        super().__init__()
        self.register_buffer("window", window, persistent=False)
        self.register_buffer("filters", filters, persistent=False)
        self.groups = group(filters)

    def forward(self, waveforms: Tensor) -> Tensor:
        """Compute log-mel spectrograms: (batch, samples) -> (batch, n_mels, frames)."""
        # Autocast would take the spectrum in 16 bits; a quiet band next to a loud one needs 32.
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self.power(waveforms)
            mel = torch.cat([power[..., bins] @ self.filters[bins, bands] for bins, bands in self.groups], 2)
            return self.log(mel.transpose(1, 2))  # (batch, n_mels, frames)

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of every frame: -> (batch, frames, n_fft // 2 + 1)."""
        raise TypeError(f"{type(self).__name__} has no spectrum of its own")

    def log(self, mel: Tensor) -> Tensor:
        """Compute the normalised logarithm of mel bands."""
        raise TypeError(f"{type(self).__name__} has no logarithm of its own")

    def centred_power(self, waveforms: Tensor, n_fft: int, hop_length: int, preemphasis: float | None = None) -> Tensor:
        """Compute the power spectrum of frames centred on multiples of the hop: -> (batch, frames, n_fft // 2 + 1)."""
        kernels = kernels_for(waveforms)
        if kernels is not None:
            frames = kernels.frames(waveforms, self.window, n_fft, hop_length, preemphasis)
            return cast(Tensor, kernels.power(torch.fft.rfft(frames)))
        if preemphasis is not None:
            # Not one fused operation: it rounds once, the authors' twice, which shows where low bands almost vanish.
            waveforms = waveforms[:, 1:] - preemphasis * waveforms[:, :-1]
        spectrum = torch.stft(
            reflected(waveforms, n_fft // 2),
            n_fft,
            hop_length,
            len(self.window),
            self.window,
            center=False,
            return_complex=True,
        )
        return squared(spectrum.transpose(1, 2))  # (batch, frames, bins)


def reflected(waveforms: Tensor, n_samples: int) -> Tensor:
    """Mirror both ends of waveforms (batch, samples), faster than by `torch.nn.functional.pad`."""
    before, behind = waveforms[:, 1 : n_samples + 1], waveforms[:, -n_samples - 1 : -1]
    return torch.cat([before.flip(1), waveforms, behind.flip(1)], 1)


def squared(spectrum: Tensor) -> Tensor:
    """Return the squared magnitude of complex numbers, without the square root of `abs`."""
    return spectrum.real.square().addcmul_(spectrum.imag, spectrum.imag)


class CpjkuLogMel(LogMel):
    """Log-mel spectrogram of the PaSST and EfficientAT authors (`AugmentMelSTFT`, evaluation mode)."""

    def __init__(self, spec: CpjkuMel) -> None:
        super().__init__(torch.hann_window(spec.win_length, periodic=spec.periodic), kaldi_filters(spec))
        self.spec = spec

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of the emphasised waveform."""
        spec = self.spec
        return self.centred_power(waveforms, spec.n_fft, spec.hop_length, spec.preemphasis)

    def log(self, mel: Tensor) -> Tensor:
        """Add a floor or raise to it, take the logarithm, normalise."""
        if self.spec.raises_to_floor:
            return self.spec.normalised(mel.clamp(min=self.spec.floor).log())
        kernels = kernels_for(mel)
        if kernels is not None:
            found = kernels.levels(mel.transpose(1, 2), self.spec.floor, self.spec.shift, self.spec.scale)
            return cast(Tensor, found)
        return self.spec.normalised((mel + self.spec.floor).log())


class KaldiLogMel(LogMel):
    """Kaldi's filter bank features (`torchaudio.compliance.kaldi.fbank`), in batches."""

    def __init__(self, spec: KaldiMel) -> None:
        window = torch.hann_window(spec.win_length, periodic=False)
        super().__init__(window.pow(spec.window_power) if spec.window_power != 1 else window, kaldi_filters(spec))
        self.spec = spec

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of every frame, after removing its mean and emphasising within it."""
        if self.spec.is_centred:
            waveforms = waveforms - waveforms.mean(1, keepdim=True)
        if self.spec.full_scale != 1:
            waveforms = waveforms * self.spec.full_scale
        frames = waveforms.unfold(1, self.spec.win_length, self.spec.hop_length)  # (batch, frames, win_length)
        frames = frames - frames.mean(2, keepdim=True)
        # The first sample is its own predecessor.
        before = torch.cat([frames[..., :1], frames[..., :-1]], 2)
        frames = (frames - self.spec.preemphasis * before) * self.window
        return squared(torch.fft.rfft(frames, self.spec.n_fft))

    def log(self, mel: Tensor) -> Tensor:
        """Take the logarithm above float32's epsilon (1.2e-7), as Kaldi does, normalise, and fill the end."""
        levels = self.spec.normalised(mel.clamp(min=torch.finfo(torch.float32).eps).log())
        missing = -levels.shape[2] % self.spec.multiple
        # In a trace, whose length may be another than that of its example, in any case.
        is_filled = missing or is_traced()
        return nn.functional.pad(levels, (0, missing), value=self.spec.padding) if is_filled else levels


def fourier_kernels(spec: PannsMel) -> Tensor:
    """Compute the windowed cosines and negative sines of the Fourier transform: (2, n_fft // 2 + 1, n_fft) float32."""
    # In whole n_fft-ths of a circle, so that no angle is rounded before its cosine is taken.
    turns = torch.arange(spec.n_fft // 2 + 1)[:, None] * torch.arange(spec.n_fft) % spec.n_fft
    angles = turns.double() * (2 * math.pi / spec.n_fft)
    window = torch.hann_window(spec.n_fft, dtype=torch.float64)
    return (torch.stack([angles.cos(), -angles.sin()]) * window).float()


def decibels(mel: Tensor) -> Tensor:
    """Convert power to dB; silence is -100 dB."""
    return mel.clamp(min=1e-10).log10().mul(10.0)


class ClapLogMel(LogMel):
    """Log-mel spectrogram of CLAP (transformers' `ClapFeatureExtractor`)."""

    def __init__(self, spec: ClapMel) -> None:
        super().__init__(torch.hann_window(spec.win_length), (exact_htk_filters if spec.htk else slaney_filters)(spec))
        self.spec = spec

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of the repeated waveform, in float64 on the CPU, as the authors do.

        In float32 the bands near silence differ by 0.01 dB and embeddings by 2e-6; of other devices some lack float64.
        """
        n_fft, hop_length = self.spec.n_fft, self.spec.hop_length
        waveforms = self.spec.repeated(waveforms)
        if waveforms.device.type != "cpu":
            return self.centred_power(waveforms, n_fft, hop_length)
        window = torch.hann_window(n_fft, dtype=torch.float64, device=waveforms.device)
        frames = reflected(waveforms.double(), n_fft // 2).unfold(1, n_fft, hop_length)  # (batch, frames, n_fft)
        return squared(torch.fft.rfft(frames * window)).float()

    def log(self, mel: Tensor) -> Tensor:
        """Take decibels."""
        return decibels(mel)


class PannsLogMel(LogMel):
    """Log-mel spectrogram of the PANNs authors (`torchlibrosa`, evaluation mode)."""

    kernels: Tensor

    def __init__(self, spec: PannsMel) -> None:
        super().__init__(torch.hann_window(spec.win_length), slaney_filters(spec))
        self.spec = spec
        kernels = fourier_kernels(spec).flatten(0, 1)[:, None, None]  # (2 * bins, 1, 1, n_fft)
        self.register_buffer("kernels", kernels.to(memory_format=torch.channels_last), persistent=False)
        self.resampler = Resampler(spec.decimation, 1)

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum, of the resampled waveform if the dialect has a decimation."""
        spec = self.spec
        waveforms = self.resampler(waveforms)
        hop_length = spec.hop_length // spec.decimation
        if waveforms.device.type != "cpu":
            return self.centred_power(waveforms, spec.n_fft, hop_length)
        # The authors' convolution instead of the FFT: in bands near silence, below -60 dB, any other algorithm rounds
        # differently (0.03 dB). Other devices round differently anyway, and may convolve in 19 bits (TF32).
        padded = reflected(waveforms, spec.n_fft // 2)
        # With the bins innermost in memory: twice as fast, and contiguous for the filters.
        maps = padded[:, None, None].contiguous(memory_format=torch.channels_last)  # (batch, 1, 1, samples)
        spectrum = nn.functional.conv2d(maps, self.kernels, stride=(1, hop_length))  # (batch, 2 * bins, 1, frames)
        spectrum = spectrum.squeeze(2).transpose(1, 2)  # (batch, frames, 2 * bins)
        real, imag = spectrum.chunk(2, 2)
        return real.square() + imag.square()

    def log(self, mel: Tensor) -> Tensor:
        """Take decibels."""
        return decibels(mel)


class HtkLogMel(LogMel):
    """Log-mel spectrogram of the authors of Dasheng and CED (`torchaudio.transforms`)."""

    def __init__(self, spec: HtkMel) -> None:
        super().__init__(torch.hann_window(spec.win_length), htk_filters(spec))
        self.spec = spec

    def power(self, waveforms: Tensor) -> Tensor:
        """Compute the power spectrum of every frame."""
        return self.centred_power(waveforms, self.spec.n_fft, self.spec.hop_length)

    def log(self, mel: Tensor) -> Tensor:
        """Take decibels, and raise those far below the loudest.

        The authors look for the loudest in the whole batch, so that quiet clips depend on the others; here it is that
        of each waveform.
        """
        levels = decibels(mel)
        return levels.maximum(levels.amax((1, 2), keepdim=True) - self.spec.range_db)
