"""The clip that is explained: one window of audio, its spectrogram, and where positions of layers lie in it."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn import functional as F

from ..atgnn import ATGNN
from ..embedding.embedder import Embedder
from ..embedding.precision import running
from ..embedding.windows import reflect
from ..errors import AudioError, OptionError
from ..networks.frontend import CPJKU_MEL, MelSpec
from ..networks.transformer import PatchEmbed
from ..networks.trunk import Trunk

Floats: TypeAlias = NDArray[np.float64]


@dataclass(frozen=True, slots=True)
class Axis:
    """Centres of positions along one axis of a spectrogram.

    Attributes
    ----------
    first, step : of the centres, in mel frames or mel bands
    n : positions
    """

    first: float
    step: float
    n: int

    def centres(self) -> Floats:
        """Return the centres, (n,)."""
        return self.first + self.step * np.arange(self.n, dtype=np.float64)

    def within(self, end: float) -> int:
        """Return how many of the centres lie before an end."""
        return int((self.centres() < end).sum())


@dataclass(frozen=True, slots=True)
class Grid:
    """Where the positions of a layer lie, along frequency in mel bands and along time in mel frames."""

    freq: Axis
    time: Axis

    @property
    def shape(self) -> tuple[int, int]:
        """Positions along frequency and time."""
        return self.freq.n, self.time.n


@dataclass(frozen=True, slots=True, eq=False)
class Window:
    """Audio that goes through the network once.

    Attributes
    ----------
    model : the network
    frames : (1, n_mels, frames) normalised as the network takes them, or (1, samples) of a waveform; padded to the
        length of a scene where the network is read so
    n_frames : of the clip itself, padding excluded
    spec : of the spectrogram that is drawn: the network's own, or for a network over waveforms one like others'
    mel : (n_mels, frames) of the clip, of `spec`
    start : of the window in the file, in s
    """

    model: Embedder
    frames: Tensor
    n_frames: int
    spec: MelSpec
    mel: Tensor
    start: float

    @property
    def trunk(self) -> Trunk:
        """The network."""
        return self.model.trunk

    @property
    def has_mel(self) -> bool:
        """Whether the network reads a spectrogram."""
        return self.model.variant.frontend.has_mel

    def seconds(self, frames: Floats | float) -> Floats:
        """Convert places in frames of the network's front end to s in the file."""
        spec = self.model.variant.frontend
        return self.start + (spec.offset + np.asarray(frames, np.float64) * spec.hop_length) / spec.sample_rate

    def mel_seconds(self, frames: Floats | float) -> Floats:
        """Convert places in frames of the spectrogram that is drawn to s in the file."""
        spec = self.spec
        return self.start + (spec.offset + np.asarray(frames, np.float64) * spec.hop_length) / spec.sample_rate

    def hz(self, bands: Floats | float) -> Floats:
        """Convert places in mel bands to Hz."""
        return np.asarray(np.interp(bands, np.arange(self.spec.n_mels), self.spec.centres_hz()), np.float64)

    def grid(self, layer: str, n_freq: int, n_time: int) -> Grid:
        """Return where the positions of a layer with a time axis lie."""
        axis = self.model.layer_axis(layer)
        assert axis is not None
        freq = freq_axis(self.trunk, n_freq, self.spec.n_mels)
        return Grid(freq, Axis(axis.offset, float(axis.hop), n_time))


def freq_axis(trunk: Trunk, n_freq: int, n_mels: int) -> Axis:
    """Return where the positions of a layer of a network lie along frequency, in mel bands.

    Patches lie where their kernels do. Other networks halve their grids with kernels that are padded equally on both
    sides, so that position 0 stays on band 0; a single position is that of all bands.
    """
    if n_freq == 1:
        return Axis((n_mels - 1) / 2, n_mels, 1)
    embed = getattr(trunk, "patch_embed", None)
    if isinstance(embed, PatchEmbed):
        rows = (n_mels + 2 * embed.padding[0] - embed.kernel[0]) // embed.stride[0] + 1
        pooled = -(-rows // n_freq)  # later stages of MAST and CLAP have fewer rows
        first = (embed.kernel[0] - 1) / 2 - embed.padding[0]
        # Without padding, rows are merged side by side.
        middle = 0.0 if embed.padding[0] else embed.stride[0] * (pooled - 1) / 2
        return Axis(first + middle, embed.stride[0] * pooled, n_freq)
    step = 1 << round(np.log2(n_mels / n_freq)) if isinstance(trunk, ATGNN) else -(-n_mels // n_freq)
    return Axis(0.0, step, n_freq)


def longest_seconds(model: Embedder) -> float:
    """Return the length of the audio that is explained at once: a scene's window, or the piece that is attended to."""
    seconds, spec, n_frames = model.variant.scene.window_ms / 1000, model.variant.frontend, model.trunk.piece_frames
    return seconds if n_frames is None else min(seconds, spec.max_samples(n_frames) / spec.sample_rate)


SEARCHED_SECONDS = 600.0
"""Of the beginning of a file, in which its loudest part is looked for."""

STEP_SECONDS = 0.1
"""Of the places that are looked at."""


def loudest_start(waveform: Tensor, sample_rate: int, seconds: float) -> float:
    """Return where the part of a length with most energy begins, in s: a multiple of `STEP_SECONDS`.

    Parameters
    ----------
    waveform : (samples,)
    sample_rate : in Hz
    seconds : of the part; 0 is returned where there are not so many
    """
    step = round(STEP_SECONDS * sample_rate)
    energies = F.pad(waveform.double().square(), (0, -len(waveform) % step)).unflatten(0, (-1, step)).sum(1)
    n = round(seconds * sample_rate / step)
    if len(waveform) <= seconds * sample_rate or len(energies) <= n:
        return 0.0
    return round(int(energies.unfold(0, n, 1).sum(1).argmax()) * STEP_SECONDS, 3)


def window_of(model: Embedder, waveform: Tensor, start: float = 0.0) -> Window:
    """Compute the spectrogram of a clip, and what the network reads of it.

    Parameters
    ----------
    model : the network
    waveform : (samples,) at its sample rate, up to `longest_seconds`
    start : of the clip in its file, in s

    Raises
    ------
    AudioError : there are no samples, or some are not finite
    OptionError : the clip is longer than a window
    """
    if waveform.ndim != 1 or not len(waveform) or not bool(waveform.isfinite().all()):
        raise AudioError("the clip has no samples, or some that are not finite numbers; give other audio")
    scene = model.variant.scene
    spec = model.variant.frontend
    longest = round(longest_seconds(model) * spec.sample_rate)
    if len(waveform) > longest:
        raise OptionError(
            f"the clip is {len(waveform) / spec.sample_rate:g} s long, and {'/'.join(model.name)} reads "
            f"{longest / spec.sample_rate:g} s at once; cut it"
        )
    shortest = max(model.min_samples_for(scene), CPJKU_MEL.min_samples)
    if len(waveform) < shortest:  # as in every other use of the network
        waveform = waveform[reflect(torch.arange(shortest), len(waveform))]
    clip = waveform[None].to(model.device, torch.float32)
    drawn = spec if isinstance(spec, MelSpec) else replace(CPJKU_MEL, sample_rate=spec.sample_rate)
    with torch.no_grad(), running("float32", clip.device):
        frames = model.frontend(clip)
        mel = frames[0] if spec.has_mel else drawn.build().to(clip.device)(clip)[0]
    n_samples = clip.shape[1]
    # Without those of repetitions.
    n_frames = math.ceil(frames.shape[-1] * n_samples / spec.computed(n_samples))
    mel = mel[:, :n_frames] if spec.has_mel else mel
    missing = max(0, scene.fill_frames - frames.shape[-1])
    padded = F.pad(frames, (0, missing), value=spec.padding) if missing else frames
    return Window(model, padded, n_frames, drawn, mel.cpu(), start)
