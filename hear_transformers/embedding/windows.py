"""Where windows and chunks lie in time, and what they hold where the clip ends."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn import functional as F


def samples_of(duration_ms: float | Fraction, sample_rate: int) -> int:
    """Convert ms to whole samples, rounded down as the authors of PaSST do."""
    return math.floor(exact(duration_ms) * sample_rate / 1000)


def range_ms(shortest: int, longest: int | None, sample_rate: int) -> str:
    """Describe lengths in samples in ms, rounded so that the numbers named are allowed: "70.1 to 10050 ms"."""
    least = _rounded(Fraction(1000 * shortest, sample_rate), math.ceil)
    if longest is None:
        return f"at least {least} ms"
    return f"{least} to {_rounded(Fraction(1000 * longest, sample_rate), math.floor)} ms"


def _rounded(value: Fraction, to_whole: Callable[[Fraction], int]) -> str:
    digits = 1 if value >= 1 else 4  # a sample at 192 kHz is 0.0052 ms
    return f"{to_whole(value * 10**digits) / 10**digits:.{digits}f}".rstrip("0").rstrip(".")


def exact(value: float | Fraction) -> Fraction:
    """Return the shortest decimal of a number, so that 0.1 means one tenth and 33.3 means 333 / 10."""
    return value if isinstance(value, Fraction) else Fraction(repr(float(value)))


@dataclass(frozen=True, slots=True)
class TimeGrid:
    """Centres at every multiple of a hop, from the first sample to the end of the clip.

    Parameters
    ----------
    hop_ms : distance between two centres, in ms
    sample_rate : in Hz
    """

    hop_ms: float
    sample_rate: int

    def count(self, n_samples: int) -> int:
        """Count the centres from 0 to `n_samples`, both ends included; 0 if `n_samples` is negative."""
        if n_samples < 0:
            return 0
        return math.floor(Fraction(1000 * n_samples, self.sample_rate) / exact(self.hop_ms)) + 1

    def centre(self, index: int) -> int:
        """Return the sample nearest to the centre `index`.

        The centre is rounded, the hop never is: at 44.1 kHz a rounded 25 ms hop drifts 25 ms in 37 minutes.
        """
        return math.floor(index * exact(self.hop_ms) * self.sample_rate / 1000 + Fraction(1, 2))

    def centres(self, first: int, last: int) -> Tensor:
        """Return the centres ``first .. last - 1`` in samples: (last - first,) int64."""
        step = exact(self.hop_ms) * self.sample_rate / 1000
        # `centre` in whole numbers, which are 40 times as fast as fractions.
        up, down = 2 * step.numerator, 2 * step.denominator
        if last * up + down < 2**63:
            return (torch.arange(first, last) * up + step.denominator).div(down, rounding_mode="floor")
        return torch.tensor(
            [(index * up + step.denominator) // down for index in range(first, last)], dtype=torch.int64
        )

    def times_ms(self, first: int, last: int) -> Tensor:
        """Return the centres ``first .. last - 1`` in ms: (last - first,) float64, never accumulated."""
        return torch.arange(first, last, dtype=torch.float64) * self.hop_ms


def reflect(index: Tensor, n_samples: int) -> Tensor:
    """Fold positions outside a clip back into it.

    This is the one rule for everything that lies outside a clip: the clip is mirrored at its first and last sample, as
    often as needed. Where one reflection is enough it equals ``torch.nn.functional.pad(mode="reflect")``; a clip of one
    sample is constant.

    Parameters
    ----------
    index : positions in samples, any shape, int64
    n_samples : length of the clip, at least 1

    Returns
    -------
    folded : same shape, in ``0 .. n_samples - 1``
    """
    if n_samples == 1:
        return torch.zeros_like(index)
    period = 2 * (n_samples - 1)
    folded = index.remainder(period)
    return torch.minimum(folded, period - folded)


@dataclass(slots=True)
class Buffer:
    """The part of a clip, or of clips of one length, that is in memory; positions are those of the whole clip.

    Attributes
    ----------
    samples : (..., samples) float32
    start : position of the first sample held
    n_samples : length of the whole clip, None until its end is known
    """

    samples: Tensor
    start: int = 0
    n_samples: int | None = None

    @property
    def stop(self) -> int:
        """Position after the last sample held."""
        return self.start + self.samples.shape[-1]

    def append(self, block: Tensor) -> None:
        """Append the next samples: (..., samples)."""
        self.samples = torch.cat([self.samples, block], -1)

    def forget(self, position: int) -> None:
        """Drop what lies before `position`."""
        n_dropped = max(0, min(position, self.stop) - self.start)
        if n_dropped:
            self.samples = self.samples[..., n_dropped:].clone()
            self.start += n_dropped

    def views(self, starts: Sequence[int], length: int) -> list[Tensor]:
        """Return windows as views of the samples held, or of a copy extended by what lies outside the clip.

        Parameters
        ----------
        starts : position of the first sample of each window; may lie outside the clip, see `reflect`
        length : of every window, in samples

        Returns
        -------
        windows : (..., length) each
        """
        origin, samples = self._covering(starts, length)
        return [samples[..., start - origin : start - origin + length] for start in starts]

    def gather(self, starts: Sequence[int], length: int) -> Tensor:
        """Return windows as one tensor, (windows, ..., length), by one operation at most; see `views`.

        Cards take as long to start a copy as to copy hundreds of short windows.
        """
        if len(starts) == 1:
            return self.views(starts, length)[0].unsqueeze(0)
        origin, samples = self._covering(starts, length)
        steps = {later - start for start, later in pairwise(starts)}
        if len(steps) == 1 and (step := steps.pop()) > 0:  # a view, for which nothing is sent to the card
            return (
                samples[..., starts[0] - origin : starts[-1] - origin + length].unfold(-1, length, step).movedim(-2, 0)
            )
        places = torch.tensor(starts, device=samples.device) - origin
        return samples.unfold(-1, length, 1).index_select(-2, places).movedim(-2, 0)

    def _covering(self, starts: Sequence[int], length: int) -> tuple[int, Tensor]:
        """Return samples that hold some windows whole, and the position of the first."""
        first, last = min(starts), max(starts) + length
        if first < self.start or last > self.stop:
            return first, self._extended(first, last)
        return self.start, self.samples

    def _extended(self, first: int, last: int) -> Tensor:
        """Return the samples from position `first` to `last`, mirrored where they lie outside the clip."""
        before, after = max(0, self.start - first), max(0, last - self.stop)
        if max(before, after) < self.samples.shape[-1]:  # one reflection: five times as fast as to look up each sample
            clips = self.samples.view(-1, self.samples.shape[-1])  # padding takes two axes or three
            padded = F.pad(clips, (before, after), mode="reflect").view(*self.samples.shape[:-1], -1)
            return padded[..., first - self.start + before : last - self.start + before]
        positions = torch.arange(first, last, device=self.samples.device)
        # Until the end is known, only the start can be reflected at.
        folded = positions.abs() if self.n_samples is None else reflect(positions, self.n_samples)
        return self.samples[..., folded - self.start]


def adjoining(windows: Sequence[Tensor]) -> Tensor | None:
    """Return windows that lie at equal distances in one memory as a view of it, (windows, length); else None.

    So do clips of one length that worker processes have read, which then need not be copied.
    """
    first, length = windows[0], windows[0].shape[0]
    place, memory = first.storage_offset(), first.untyped_storage().data_ptr()
    step = windows[1].storage_offset() - place if len(windows) > 1 else length
    if step < length:
        return None
    for window in windows:
        if window.storage_offset() != place or window.untyped_storage().data_ptr() != memory:
            return None
        place += step
    return first.as_strided((len(windows), length), (step, 1))


@dataclass(frozen=True, slots=True)
class Chunks:
    """Overlapping chunks of a clip and the tokens that each contributes: those of its centre, so all have context.

    Chunk k starts at ``k * hop``, a multiple of every layer's hop, so that the tokens of all chunks of a layer lie on
    one grid. The first chunk contributes its start too, the last one its end.

    Parameters
    ----------
    length : of a chunk, in samples
    hop : distance between two chunks, in samples; a chunk starts at the sample nearest to a fraction of one
    """

    length: int
    hop: int | Fraction

    @classmethod
    def half_overlapping(cls, length: int, multiple: int | Fraction) -> Chunks:
        """Return chunks that overlap by half, or a little more so that their hop is a multiple of `multiple`."""
        return cls(length, max(1, length // 2 // multiple) * multiple)

    def start(self, chunk: int) -> int:
        """Return the first sample of a chunk."""
        return math.floor(chunk * self.hop + Fraction(1, 2))

    def ready(self, n_samples: int) -> int:
        """Count the chunks that another one is certain to follow once `n_samples` of the clip have arrived."""
        return max(0, math.ceil((n_samples - self.length) / self.hop))

    def between(self, first: int, n_samples: int, *, is_whole: bool) -> Iterator[tuple[Tensor, int]]:
        """Return the chunks from number `first` on that lie in `n_samples`: those of full length, then the last.

        Parameters
        ----------
        first : number of a chunk
        n_samples : samples of the clip that have arrived
        is_whole : whether that is all of it; else the last chunk, which the end cuts, is left out

        Yields
        ------
        starts : (chunks,) int64, first sample of each
        length : theirs, in samples
        """
        last = self.ready(n_samples)
        if last > first:
            yield torch.tensor([self.start(chunk) for chunk in range(first, last)]), self.length
        if is_whole:
            yield torch.tensor([self.start(last)]), n_samples - self.start(last)

    def kept_from(self, chunk: int, hop: int | Fraction, offset: float) -> int:
        """Return the first token that `chunk` contributes, counted from the start of the clip.

        Parameters
        ----------
        chunk : its number
        hop : distance between two tokens, in samples
        offset : centre of token 0 of a chunk, in samples
        """
        if chunk == 0:
            return 0
        # The centre is what the overlaps with both neighbours leave when each is split in the middle.
        start_of_centre = chunk * self.hop + (self.length - self.hop) / 2
        return math.ceil((float(start_of_centre) - offset) / hop)


@dataclass(slots=True)
class TokenTrack:
    """Tokens on a regular grid in time, read at any time by linear interpolation, also while tokens still arrive.

    Before the first token and after the last one the nearest token stands.

    Attributes
    ----------
    hop : distance between two tokens, in samples
    offset : centre of token 0, in samples
    tokens : (tokens, ..., size), those not yet forgotten
    first : number of the first token held
    """

    hop: int | Fraction
    offset: float
    tokens: Tensor
    first: int = 0

    def append(self, tokens: Tensor) -> None:
        """Append the next tokens: (tokens, ..., size)."""
        self.tokens = torch.cat([self.tokens, tokens])

    def end(self) -> float:
        """Position of the last token, in samples: up to here `at` is certain."""
        return self.offset + float((self.first + len(self.tokens) - 1) * self.hop)

    def at(self, positions: Tensor) -> Tensor:
        """Interpolate: positions (times,) float64 in samples -> (times, ..., size)."""
        last = len(self.tokens) - 1
        # In tokens held; before the first and after the last one the nearest stands.
        place = ((positions - self.offset) / float(self.hop) - self.first).clamp(0, last)
        left = place.floor().long()
        weight = (place - left).to(self.tokens.dtype).to(self.tokens.device)  # in this order: MPS has no float64
        weight = weight.view(-1, *[1] * (self.tokens.ndim - 1))  # (times, 1, ...)
        left = left.to(self.tokens.device)
        return torch.lerp(self.tokens[left], self.tokens[(left + 1).clamp(max=last)], weight)

    def forget(self, position: float) -> None:
        """Drop the tokens that no position from `position` on needs."""
        n_dropped = math.floor((position - self.offset) / self.hop) - self.first
        n_dropped = max(0, min(n_dropped, len(self.tokens) - 1))
        self.tokens = self.tokens[n_dropped:].clone()
        self.first += n_dropped
