"""Windows -> vectors: front end, network, layers and pooling, in batches that fit into memory."""

from __future__ import annotations

import math
import sys
import threading
import time
import warnings
from collections.abc import Callable, Collection, Iterator
from dataclasses import replace
from functools import partial
from itertools import chain
from typing import TYPE_CHECKING, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

from ..errors import HearTransformersWarning, OptionError
from ..networks.family import Readout, Variant, float32_by_default
from ..networks.layer_table import axes_of
from ..networks.trunk import TimeAxis, Trunk
from . import windows
from .choices import check_choice
from .pooling import CLASS_TOKEN, POOLS
from .precision import PRECISIONS, resolve, running, warn_if_slow
from .preparation import prepare, ready, run

if TYPE_CHECKING:
    from typing_extensions import Self

CPU = torch.device("cpu")

_WARNING = threading.Lock()

BATCH_SECONDS = {"cpu": 20.0}
"""Audio per forward pass by type of device unless `WindowEmbedder.batch_size` is set: enough rows for the speed of
large matrix products, few enough that their activations stay in the CPU's cache."""

BATCH_SECONDS_ELSEWHERE = 320.0
BATCH_SECONDS_MOST = 1280.0
BATCH_SECONDS_A_GB = 16.0
"""On CUDA, by the memory of the card: small networks gain a third from 1280 s over 320 s on an H200, and the hungriest
one in float32, Cnn14, needs 6 GB for them."""

Read = TypeVar("Read")


class Part(NamedTuple):
    """The part of an embedding that one pooling of one layer makes: (batch, size); of a vector the pooling is empty."""

    layer: str
    pool: str
    vectors: Tensor


class WindowEmbedder(nn.Module):
    """Embeds windows of equal length: front end, network, the layers asked for, pooling.

    Parameters
    ----------
    trunk : the network
    variant : its front end, and what is read from it
    name : of the family and the variant, for provenance and messages
    precision : of the network, a key of `PRECISIONS`, or "auto"; front end and results are always float32
    device : that the network is for, which "auto" chooses by, see `precision.resolve`

    Attributes
    ----------
    sample_rate : of the waveforms it takes, in Hz
    compile_seconds : that `compile_trunk` took
    batch_size : windows per forward pass; None = as many as fill `BATCH_SECONDS`. Either is halved whenever memory runs
        out, and what fits is kept
    """

    def __init__(
        self,
        trunk: Trunk,
        variant: Variant,
        *,
        name: tuple[str, str],
        precision: str = "float32",
        device: torch.device = CPU,
    ) -> None:
        super().__init__()
        self.trunk = trunk
        with float32_by_default():
            self.frontend = variant.frontend.build()
        self.variant = variant
        self.name = name
        self.precision = resolve(precision, device)
        self.sample_rate = variant.frontend.sample_rate
        self.batch_size: int | None = None
        self._limit_samples = math.inf  # largest batch known to fit, set by running out of memory
        self._topics: set[str] = set()  # what has been warned of, or need not be
        self._backend: str | None = None  # of `torch.compile`
        self.compile_seconds: float | None = None
        prepare(trunk, self.precision)
        self.eval()

    def compile_trunk(self, backend: str = "inductor") -> None:
        """Compile the network for any number of windows of any length; weights stay in place.

        That takes a minute or more, and once more for a batch of one window, which PyTorch treats apart. It gives the
        same numbers but for rounding, and needs a C++ compiler, or Triton on CUDA. See `compile_seconds`.

        Parameters
        ----------
        backend : of `torch.compile`
        """
        start = time.perf_counter()
        self._backend = backend
        self.trunk.compile(dynamic=True, backend=backend)
        scene = self.variant.scene
        length = min(windows.samples_of(scene.window_ms, self.sample_rate), self.max_samples or sys.maxsize)
        with torch.no_grad():
            self.read(torch.zeros(2, length, dtype=torch.float32, device=self.device), scene)
        self.compile_seconds = time.perf_counter() - start

    @property
    def device(self) -> torch.device:
        """Device of the network."""
        return next(self.parameters()).device

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> Self:
        """Refuse what changes the type of all numbers: PyTorch moves and converts a module by this method."""
        dtype = fn(torch.zeros(1, dtype=torch.float32)).dtype
        if dtype != torch.float32:
            name = str(dtype).removeprefix("torch.")
            advice = (
                f"load it with precision={name!r}" if name in PRECISIONS else f"choose one of {', '.join(PRECISIONS)}"
            )
            raise OptionError(
                f"{'/'.join(self.name)} cannot be converted to {name} as a whole: front end and results are float32, "
                f"and precision is what the network computes in; {advice}"
            )
        return super()._apply(fn, recurse)

    # Layers and lengths

    def layer_axis(self, layer: str) -> TimeAxis | None:
        """Return the time axis of a layer, None if it has none."""
        return axes_of(self.trunk, self.variant.frontend)[layer]

    @property
    def min_samples(self) -> int:
        """Shortest waveform the network takes; shorter ones are mirrored up to this length (`windows.reflect`)."""
        return self.variant.frontend.n_samples(self.trunk.min_frames)

    @property
    def max_samples(self) -> int | None:
        """Longest waveform the network takes in one pass, None if any."""
        if self.trunk.max_frames is None:
            return None
        return self.variant.frontend.max_samples(self.trunk.max_frames)

    @property
    def max_timed_samples(self) -> int | None:
        """Longest waveform whose grids lie along time, None if any."""
        frames = self.trunk.timed_frames
        return self.max_samples if frames is None else self.variant.frontend.max_samples(frames)

    def min_samples_for(self, readout: Readout) -> int:
        """Return the length of the shortest waveform that a readout can be computed of."""
        spec = self.variant.frontend
        only_mel = spec.has_mel and set(readout.layers) == {"mel"}
        return spec.min_samples if only_mel or readout.fill_frames >= self.trunk.min_frames else self.min_samples

    def check_readout(self, readout: Readout) -> None:
        """Raise OptionError if this network cannot serve a readout."""
        check_choice("pool", readout.pool)
        grids = [layer for layer in readout.layers if self.layer_axis(layer) is not None]
        is_alone = readout.pool == CLASS_TOKEN  # else the mel, which has none, is pooled in the other ways
        if CLASS_TOKEN in readout.pools and (not self.trunk.prefix or (is_alone and "mel" in grids)):
            raise OptionError(
                f"pool='cls' needs layers with a class token; layer {', '.join(readout.layers)} of "
                f"{'/'.join(self.name)} has none"
            )
        self.check_window(readout.window_ms, self.min_samples_for(readout), self.max_samples)

    def check_window(self, window_ms: float, shortest: int, longest: int | None) -> None:
        """Raise OptionError if a window is shorter or longer than so many samples; None is no limit."""
        most = math.inf if longest is None else longest
        if not (math.isfinite(window_ms) and shortest <= windows.samples_of(window_ms, self.sample_rate) <= most):
            raise OptionError(
                f"window_ms={window_ms} is outside what {'/'.join(self.name)} takes; "
                f"choose {windows.range_ms(shortest, longest, self.sample_rate)}"
            )

    def size(self, readout: Readout) -> int:
        """Measure the numbers per embedding, see `sizes`."""
        return sum(size for *_, size in self.sizes(readout))

    @torch.enable_grad()
    def sizes(self, readout: Readout) -> list[tuple[str, str, int]]:
        """Measure the numbers of each part of an embedding, layer, pooling and size, so that no table can go stale."""
        # With gradients, as no copy for inference is worth making of a network whose weights are yet to come.
        length = self.min_samples
        if "unroll" in readout.pools:
            length = windows.samples_of(readout.window_ms, self.sample_rate)
        else:
            readout = replace(readout, fill_frames=0)  # does not change the size, only the work
        parts = self.read_parts(torch.zeros(1, length, dtype=torch.float32, device=self.device), readout)
        return [(part.layer, part.pool, part.vectors.shape[1]) for part in parts]

    # One batch of windows

    def _taps(self, waveforms: Tensor, layers: Collection[str], fill_frames: int = 0) -> dict[str, Tensor]:
        """Run front end and network: (batch, samples) -> one float32 tensor per layer, see `Trunk.forward`."""
        compute = partial(self._compute, layers=layers, fill_frames=fill_frames)
        if not self.trunk.recordable:
            return compute(waveforms)
        samples = waveforms.shape[0] * self._computed(waveforms.shape[1], fill_frames)
        return run(self, (*layers, fill_frames, self._backend), compute, waveforms, samples / self.sample_rate)

    def _compute(self, waveforms: Tensor, layers: Collection[str], fill_frames: int) -> dict[str, Tensor]:
        """Compute what `_taps` returns."""
        taps = {}
        # Both together, since most precisions want the same flags, and to change them takes longer than a small batch.
        with running("float32", waveforms.device):
            frames = self.frontend(waveforms)  # (batch, n_mels, frames), or (batch, samples) of a waveform
            if self.variant.frontend.has_mel:
                taps["mel"] = frames.transpose(1, 2).unsqueeze(2)  # (batch, time, 1, n_mels): a mel band is a feature
            wanted = [layer for layer in layers if layer not in taps]
            if wanted:
                if (missing := fill_frames - frames.shape[-1]) > 0:
                    frames = nn.functional.pad(frames, (0, missing), value=self.variant.frontend.padding)
                with running(self.precision, frames.device):
                    taps.update(ready(self.trunk, self.precision, self._backend)(frames, wanted))
        return {layer: taps[layer].float() for layer in layers}

    def read(self, waveforms: Tensor, readout: Readout) -> Tensor:
        """Compute one vector per window: (batch, samples) -> (batch, size)."""
        return torch.cat([part.vectors for part in self.read_parts(waveforms, readout)], 1)

    def read_parts(self, waveforms: Tensor, readout: Readout) -> list[Part]:
        """Compute the parts of one vector per window, by layer and then by pooling, in one pass: see `Part`."""
        tokens: dict[str, list[str]] = {}
        if CLASS_TOKEN in readout.pools:
            grids = (layer for layer in readout.layers if layer != "mel" and self.layer_axis(layer) is not None)
            tokens = {layer: [f"{layer}.{token}" for token in self.trunk.prefix] for layer in grids}
        pooled = [layer for layer in readout.layers if layer not in tokens or readout.pool != CLASS_TOKEN]
        taps = self._taps(waveforms, [*pooled, *chain(*tokens.values())], readout.fill_frames)
        parts = []
        for layer in readout.layers:
            if layer in taps and taps[layer].ndim != 4:
                parts.append(Part(layer, "", taps[layer]))
                continue
            for pool in readout.pools:
                if pool != CLASS_TOKEN:
                    parts.append(Part(layer, pool, POOLS[pool].function(taps[layer])))
                elif layer in tokens:
                    # PaSST and AST call the mean of class and distillation token their embedding.
                    parts.append(Part(layer, pool, torch.stack([taps[key] for key in tokens[layer]]).mean(0)))
        return parts

    def read_frames(self, waveforms: Tensor, readout: Readout) -> dict[str, Tensor]:
        """Compute a vector per time position: (batch, samples) -> (batch, time, size) for each layer."""
        frames = {}
        for layer, grid in self._taps(waveforms, readout.layers).items():  # (batch, time, freq, features)
            rows = grid.flatten(0, 1).unsqueeze(1)  # (batch * time, 1, freq, features)
            pooled = [POOLS[pool].function(rows) for pool in readout.pools]  # (batch * time, size) each
            joined = pooled[0] if len(pooled) == 1 else torch.cat(pooled, 1)
            frames[layer] = joined.unflatten(0, grid.shape[:2])
        return frames

    # Many windows

    def batch_size_for(self, length: int, readout: Readout, wanted: int | None = None) -> int:
        """Return the batch size for windows of `length` samples: `wanted` or that of the model, or what fits."""
        return self._limit(self._computed(length, readout.fill_frames), wanted)

    def _computed(self, length: int, fill_frames: int) -> int:
        """Return the samples that are computed with for a window, padding included."""
        spec = self.variant.frontend
        return spec.computed(max(length, spec.n_samples(fill_frames)))

    def _limit(self, processed: int, wanted: int | None) -> int:
        wanted = wanted or self.batch_size or int(batch_seconds(self.device) * self.sample_rate / processed)
        return max(1, min(wanted, int(min(self._limit_samples, 2**62) // processed)))

    def run_batched(
        self,
        total: int,
        length: int,
        readout: Readout,
        cut: Callable[[int, int], Tensor],
        read: Callable[[Tensor, Readout], Read],
        wanted: int | None = None,
    ) -> Iterator[Read]:
        """Compute windows batch by batch; a batch that does not fit into memory is halved, and what fits is kept.

        Parameters
        ----------
        total : how many windows
        length : of each, in samples
        readout : what is read of them
        cut : returns the windows `first` to `last`: (last - first, length)
        read : `read` or `read_frames`, or what calls them
        wanted : batch size; None for that of the model
        """
        self.warn_if_slow(self.device)
        processed = self._computed(length, readout.fill_frames)
        first = 0
        is_halved = False
        while first < total:
            last = min(first + self._limit(processed, wanted), total)
            try:
                with torch.no_grad():
                    result = read(cut(first, last), readout)
            except (RuntimeError, MemoryError) as error:
                if last - first == 1 or not is_out_of_memory(error):
                    raise
                # Another thread may have found out that even less fits.
                self._limit_samples = min(self._limit_samples, (last - first) * processed // 2)
                is_halved = True
                continue
            if is_halved:
                self._warn_of_smaller_batch(wanted or self.batch_size, self._limit(processed, wanted))
            yield result
            first = last

    def warn_if_slow(self, device: torch.device) -> None:
        """Warn once if a device is slow in this precision."""
        if self._is_new(device.type):
            warn_if_slow(self.precision, device)

    def _is_new(self, topic: str) -> bool:
        """Return True the first time, in whichever thread."""
        with _WARNING:
            is_new = topic not in self._topics
            self._topics.add(topic)
            return is_new

    def _warn_of_smaller_batch(self, wanted: int | None, batch_size: int) -> None:
        """Warn once that the batch size asked for does not fit."""
        if wanted is not None and self._is_new("batch_size"):
            warnings.warn(
                f"batch_size={wanted} does not fit into the memory of {self.device}; "
                f"{batch_size} windows go through {'/'.join(self.name)} at once instead",
                HearTransformersWarning,
                stacklevel=2,
            )


def batch_seconds(device: torch.device) -> float:
    """Return the audio per forward pass in seconds, see `BATCH_SECONDS`."""
    if device.type != "cuda":
        return BATCH_SECONDS.get(device.type, BATCH_SECONDS_ELSEWHERE)
    gigabytes = torch.cuda.get_device_properties(device).total_memory / 1e9
    return min(max(BATCH_SECONDS_A_GB * gigabytes, BATCH_SECONDS_ELSEWHERE), BATCH_SECONDS_MOST)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if memory ran out; on the CPU PyTorch raises a plain RuntimeError for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)
