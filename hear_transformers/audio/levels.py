"""The choice of a channel, and what the levels of a sound say: wrong scale, lost channels, energy that nobody hears."""

from __future__ import annotations

import math
from collections.abc import Iterator
from typing import Final, Literal

import numpy as np

from ..errors import AudioError, OptionError

Channel = int | Literal["mix", "each"]
"""Of a sound: 1 for its first channel, 2, ...; the mean of all; each for itself."""

MIX: Final = "mix"
EACH: Final = "each"

LOUDEST = 1e6
"""Samples beyond this are refused: the power of a spectrum overflows float32 near 1e15, and audio is in [-1, 1]."""

MOST_OF_AUDIO = 8.0
"""A peak beyond this is no level of audio, whose full scale is 1: 18 dB above it, where mixes that are too hot and
decoders of lossy formats exceed it by some dB only. Integers of 16 bits exceed it by 4096."""

FULL_SCALE = np.float32(2.0**-15)
"""Of one step of int16."""

HALF = np.float32(0.5)

WIDTHS = (16, 24, 32)
"""Bits of integer samples that are forgotten to be divided by their full scale."""

DEAD = 1e-4
"""Power of a channel relative to the loudest below which it holds no sound of its own: 40 dB."""

CANCELLED = 0.1
"""Power of the mean of channels relative to that of independent ones below which they cancel each other: half of the
power is lost at a correlation of -0.5, nine tenths at -0.9."""

FEWEST_HEARD = 128
"""Samples after resampling below which a sound has no spectrum to speak of: the length of the resampler's filter."""

UNHEARD = 0.5
"""Share of the energy beyond the band of a network from which on it is mentioned: most of it."""


def parse_channel(channel: int | str) -> Channel:
    """Return a channel, counted from 1 as in sox, or `MIX` or `EACH`; raise OptionError for anything else."""
    if channel == MIX:
        return MIX
    if channel == EACH:
        return EACH
    text = str(channel)
    if isinstance(channel, (int, str)) and text.isascii() and text.isdigit() and int(text) > 0:
        return int(text)
    raise OptionError(
        f"channel={channel!r} is unknown; choose 1 for the first, 2, ..., {MIX} for their mean, or {EACH}"
    )


def check_channel(channel: int | None, n_channels: int, name: object) -> None:
    """Raise AudioError if a sound of some name lacks a channel."""
    if channel is not None and channel > n_channels:
        held = f"1 to {n_channels}" if n_channels > 1 else "1"
        raise AudioError(f"{name}: channel {channel} was asked for, it has {held}; choose one of these, or {MIX}")


def scale_warning(least: float, most: float) -> str | None:
    """Return what to do about samples between two numbers, None for those of audio."""
    peak = max(-least, most)
    if not MOST_OF_AUDIO < peak < math.inf:
        return None
    if most <= 0.0:
        return "all samples lie far below 0, like levels in dB, which are no waveform; embed the audio itself"
    beyond = "samples lie far beyond [-1, 1], like integers that were not divided by their full scale"
    if least >= 0.0 and peak <= 255.0:
        return f"{beyond}; unsigned ones of 8 bits become (x - 128) / 128"
    bits = next((bits for bits in WIDTHS if peak <= 2.0 ** (bits - 1)), WIDTHS[-1])
    return f"{beyond}; divide those of {bits} bits by {2 ** (bits - 1)}"


def absurd(what: str, sample: float) -> str:
    """Return the error of a sample that is refused; `what` names it and its place."""
    advice = scale_warning(-abs(sample), abs(sample))
    reason = f"; {advice}" if advice else ""
    return f"{what}; expected finite numbers, nominally in [-1, 1], never beyond {LOUDEST:g}{reason}"


def as_float(samples: np.ndarray) -> np.ndarray:
    """Return samples as float32: those of int16 divided by their full scale, which is exact, others unchanged."""
    return samples if samples.dtype == np.float32 else samples * FULL_SCALE


def peak_of(samples: np.ndarray) -> float:
    """Return a bound of the magnitude of samples, at least one: the largest one, NaN if any is; 1 for int16."""
    return 1.0 if samples.dtype == np.int16 else float(max(-samples.min(), samples.max()))


def unheard_warning(seen: float, heard: float, sample_rate: int) -> str | None:
    """Return what to do about energy that was lost with the sample rate of a model, None if less than most was.

    Parameters
    ----------
    seen, heard : energy before and after resampling, in units of power times s
    sample_rate : of the model, in Hz
    """
    if not heard < (1.0 - UNHEARD) * seen:
        return None
    return (
        f"{1.0 - heard / seen:.0%} of the energy lies above {sample_rate / 2000:g} kHz, which the model does not hear; "
        "choose one with a higher sample rate, or slow the recording down"
    )


class Levels:
    """Levels of one sound, block by block.

    Parameters
    ----------
    channel : that is read, from 1; None for the mean of all
    """

    def __init__(self, channel: int | None = None) -> None:
        self.channel = channel
        self.least, self.most = math.inf, -math.inf  # of samples in blocks that are too loud for audio
        self.channel_energies = np.zeros(0)  # (channels,)
        self.mean_energy = 0.0
        self.seen = self.heard = 0.0  # energy before and after resampling, in units of power times s
        self.n_heard = 0  # samples after resampling
        self.sample_rate = 0  # after resampling

    def pick(self, frames: np.ndarray) -> np.ndarray:
        """Return the channels that are read: (frames, channels) -> (frames, all or 1)."""
        if self.channel is None:
            return frames
        return np.ascontiguousarray(frames[:, self.channel - 1 : self.channel])

    def mean(self, frames: np.ndarray, peak: float) -> np.ndarray:
        """Average channels that were picked, whose largest magnitude is `peak` at most.

        Parameters
        ----------
        frames : (frames, channels) float32 or int16

        Returns
        -------
        mono : (frames,) float32; of one channel its samples as they are
        """
        if peak > MOST_OF_AUDIO:
            self.least, self.most = min(self.least, float(frames.min())), max(self.most, float(frames.max()))
        if frames.shape[1] == 1:
            return frames[:, 0]
        columns = [as_float(column) for column in np.ascontiguousarray(frames.T)]
        # The sum of two is the same in any order, and takes a tenth of the time this way.
        mono: np.ndarray = (columns[0] + columns[1]) * HALF if len(columns) == 2 else as_float(frames).mean(1)
        energies = np.array([np.dot(column, column) for column in columns], np.float64)
        self.channel_energies = energies + (self.channel_energies if len(self.channel_energies) else 0.0)
        self.mean_energy += float(np.dot(mono, mono))
        return mono

    def compare(self, mono: np.ndarray, rate: int, resampled: np.ndarray, sample_rate: int) -> None:
        """Add a block before and after resampling; what a resampler holds back comes with the next."""
        if rate > sample_rate:
            self.seen += float(np.dot(mono, mono)) / rate
            self.heard += float(np.dot(resampled, resampled)) / sample_rate
            self.n_heard += len(resampled)
            self.sample_rate = sample_rate

    def add(self, other: Levels) -> None:
        """Add the levels of what follows."""
        self.least, self.most = min(self.least, other.least), max(self.most, other.most)
        self.channel_energies = other.channel_energies + (self.channel_energies if len(self.channel_energies) else 0.0)
        self.mean_energy += other.mean_energy
        self.seen, self.heard = self.seen + other.seen, self.heard + other.heard
        self.n_heard += other.n_heard
        self.sample_rate = other.sample_rate

    def warnings(self) -> Iterator[str]:
        """Yield what is certain and worth knowing."""
        if warning := scale_warning(self.least, self.most):
            yield warning
        if len(self.channel_energies):
            yield from self._of_channels()
        if self.n_heard >= FEWEST_HEARD and (warning := unheard_warning(self.seen, self.heard, self.sample_rate)):
            yield warning

    def _of_channels(self) -> Iterator[str]:
        n_channels, loudest = len(self.channel_energies), self.channel_energies.max()
        if not loudest:
            return
        best = int(self.channel_energies.argmax()) + 1
        advice = f"choose --channel {best} (channel={best} in Python)"
        if np.count_nonzero(self.channel_energies > DEAD * loudest) == 1:
            softer = 20.0 * math.log10(n_channels)
            yield f"only channel {best} of {n_channels} holds sound, and the mean is {softer:.0f} dB softer; {advice}"
        # The mean of independent channels has the mean of their powers, divided by their number.
        elif self.mean_energy < CANCELLED * self.channel_energies.sum() / n_channels**2:
            yield f"its {n_channels} channels cancel each other in their mean, which is almost silence; {advice}"
