"""Front end, network, layers, pooling and windows behind one module: what every family's `load_model` returns."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Collection, Iterable, Iterator
from dataclasses import replace
from itertools import chain
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from .. import __version__
from ..audio.reading import check_waveforms
from ..errors import HearTransformersWarning, OptionError
from ..networks.family import Readout, Variant
from ..networks.layer_table import axes_of
from ..networks.trunk import TimeAxis, Trunk
from . import encode as encoding
from . import framing, packing, plans, windows
from .pooling import CLASS_TOKEN, POOL_NAMES, POOLS

FRAMINGS = ("windowed", "native")
PRECISIONS = {"float32": torch.float32, "bfloat16": torch.bfloat16, "float16": torch.float16}

BATCH_SECONDS = {"cpu": 20.0}
"""Audio per forward pass on a type of device unless `Embedder.batch_size` says otherwise: enough rows for the speed of
large matrix products, few enough that their activations stay in the CPU's cache."""

BATCH_SECONDS_ELSEWHERE = 320.0

Read = TypeVar("Read")


class Embedder(nn.Module):
    """Embeds waveforms: front end, network, the layers asked for, pooling, and where windows lie in time.

    Timestamps come in two framings. ``windowed`` cuts one window around each timestamp, so `Readout.window_ms` is the
    exact receptive field (Koutini et al., 2211.13956). ``native`` runs the network once over half-overlapping chunks
    and interpolates its own time axis: 10 to 100 times cheaper.

    Both a scene and timestamps are computed from blocks of audio as they arrive: memory does not grow with duration.

    Parameters
    ----------
    trunk : the network
    variant : what is read from it
    name : of the family and the variant, for provenance and messages
    precision : of the network, a key of `PRECISIONS`; front end and results are float32 always

    Attributes
    ----------
    sample_rate : of the waveforms it takes, in Hz
    scene_embedding_size, timestamp_embedding_size : numbers per embedding
    weights_sha256 : hash of the checkpoint file, None for random weights
    labels : names of the classes in the order of "logits", None if the checkpoint does not say
    multi_label : whether a clip may belong to several classes: then logits go through a sigmoid, else through a softmax
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
    ) -> None:
        super().__init__()
        if precision not in PRECISIONS:
            raise OptionError(f"precision={precision!r} is unknown; choose one of {', '.join(PRECISIONS)}")
        self.trunk = trunk
        self.frontend = variant.frontend.build()
        self.variant = variant
        self.name = name
        self.precision = precision
        self.weights_sha256: str | None = None
        self.labels: tuple[str, ...] | None = None
        self.multi_label = True
        self.sample_rate = variant.frontend.sample_rate
        self.batch_size: int | None = None
        if precision != "float32":
            _cast_matrices(trunk, PRECISIONS[precision])
        self._limit_samples = math.inf  # largest batch known to fit, set by running out of memory
        self._has_warned = False
        self.eval()
        self._check(variant)
        self.scene_embedding_size = self._size(variant.scene)
        self.timestamp_embedding_size = sum(self._size(readout) for readout in variant.timestamps)

    def compile_trunk(self, backend: str = "inductor") -> None:
        """Compile the network at its first use, for any number of windows of any length; weights stay in place.

        That takes minutes (a second time for a batch of one window, which PyTorch treats apart), and gives the same
        numbers but for rounding. It needs a C++ compiler, or Triton on CUDA.

        Parameters
        ----------
        backend : of `torch.compile`
        """
        self.trunk.compile(dynamic=True, backend=backend)

    # What is read

    def layer_axis(self, layer: str) -> TimeAxis | None:
        """Give the time axis of a layer, None if it has none."""
        return axes_of(self.trunk, self.variant.frontend)[layer]

    @property
    def device(self) -> torch.device:
        """Where the network is."""
        return next(self.parameters()).device

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

    def _check(self, variant: Variant) -> None:
        """Refuse values that this network cannot serve."""
        if variant.framing not in FRAMINGS:
            raise OptionError(f"framing={variant.framing!r} is unknown; choose one of {', '.join(FRAMINGS)}")
        shortest_hop = 1000.0 / self.sample_rate
        if not (math.isfinite(variant.hop_ms) and variant.hop_ms >= shortest_hop):
            raise OptionError(f"hop_ms={variant.hop_ms} is too short; give at least one sample, {shortest_hop} ms")
        for readout in (variant.scene, *variant.timestamps):
            self._check_readout(readout)
        if variant.framing == "native":
            self._check_native(variant.timestamps)

    def _check_readout(self, readout: Readout) -> None:
        if readout.pool not in POOL_NAMES:
            raise OptionError(f"pool={readout.pool!r} is unknown; choose one of {', '.join(POOL_NAMES)}")
        grids = [layer for layer in readout.layers if self.layer_axis(layer) is not None]
        if readout.pool == CLASS_TOKEN and ("mel" in grids or not self.trunk.prefix):
            raise OptionError(
                f"pool='cls' needs layers with a class token; layer {', '.join(readout.layers)} of "
                f"{'/'.join(self.name)} has none"
            )
        self._check_window(readout.window_ms, self.min_samples_for(readout))

    def min_samples_for(self, readout: Readout) -> int:
        """Give the length of the shortest waveform that can be read so."""
        spec = self.variant.frontend
        only_mel = spec.has_mel and set(readout.layers) == {"mel"}
        return spec.min_samples if only_mel or readout.fill_frames >= self.trunk.min_frames else self.min_samples

    def _check_window(self, window_ms: float, shortest: int) -> None:
        ms = 1000.0 / self.sample_rate
        longest = math.inf if self.max_samples is None else self.max_samples
        if not (math.isfinite(window_ms) and shortest <= windows.samples_of(window_ms, self.sample_rate) <= longest):
            raise OptionError(
                f"window_ms={window_ms} is outside what {'/'.join(self.name)} takes; "
                f"choose {shortest * ms:g} to {longest * ms:g} ms"
            )

    def _check_native(self, readouts: tuple[Readout, ...]) -> None:
        readout, *others = readouts
        if others:
            raise OptionError("framing='native' reads chunks of one length; give one window_ms, or framing='windowed'")
        vectors = [layer for layer in readout.layers if self.layer_axis(layer) is None]
        if vectors:
            grids = [layer for layer, axis in axes_of(self.trunk, self.variant.frontend).items() if axis is not None]
            raise OptionError(
                f"framing='native' needs layers with a time axis, {', '.join(vectors)} has none; "
                f"choose layer={', '.join(grids)}"
            )
        if readout.pool not in POOLS or POOLS[readout.pool].whole_window:
            frame_wise = [name for name, pool in POOLS.items() if not pool.whole_window]
            raise OptionError(
                f"pool={readout.pool!r} reads a whole window; framing='native' allows {', '.join(frame_wise)}"
            )
        shortest = 2 * self._token_multiple(readout)
        self._check_window(readout.window_ms, max(shortest, self.min_samples))

    @torch.no_grad()
    def _size(self, readout: Readout) -> int:
        """Measure the numbers per embedding, so that no table of sizes can go stale."""
        length = self.min_samples
        if readout.pool == "unroll":
            length = windows.samples_of(readout.window_ms, self.sample_rate)
        else:
            readout = replace(readout, fill_frames=0)  # does not change the size, only the work
        return self.read(torch.zeros(1, length, device=self.device), readout).shape[1]

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Tell which numbers of an embedding are of which layer.

        Parameters
        ----------
        timestamps : of embeddings along time instead of scenes

        Returns
        -------
        columns : layer, as in `Readout.layers`: its positions in an embedding, ascending
        """
        places: dict[str, list[int]] = {}
        first = 0
        for readout in self.variant.timestamps if timestamps else (self.variant.scene,):
            for layer in readout.layers:
                last = first + self._size(replace(readout, layers=(layer,)))
                places.setdefault(layer, []).extend(range(first, last))
                first = last
        return places

    # One batch of windows

    def _taps(self, waveforms: Tensor, layers: Collection[str], fill_frames: int = 0) -> dict[str, Tensor]:
        """Run front end and network: (batch, samples) -> one float32 tensor for each layer, see `Trunk.forward`."""
        frames = self.frontend(waveforms)
        taps = {}
        if self.variant.frontend.has_mel:
            taps["mel"] = frames.transpose(1, 2).unsqueeze(2)  # (batch, time, 1, n_mels): a mel band is a feature
        wanted = [layer for layer in layers if layer not in taps]
        if wanted:
            missing = max(0, fill_frames - frames.shape[-1])
            frames = nn.functional.pad(frames, (0, missing), value=self.variant.frontend.padding)
            dtype = PRECISIONS[self.precision]
            with torch.autocast(frames.device.type, dtype, enabled=dtype != torch.float32):
                taps.update(self.trunk(frames, wanted))
        return {layer: taps[layer].float() for layer in layers}

    def read(self, waveforms: Tensor, readout: Readout) -> Tensor:
        """Read one vector per window: (batch, samples) -> (batch, size)."""
        if readout.pool == CLASS_TOKEN:
            grids = {layer for layer in readout.layers if self.layer_axis(layer) is not None}
            keys = {layer: [f"{layer}.{token}" for token in self.trunk.prefix] for layer in grids}
            wanted = [*chain(*keys.values()), *(set(readout.layers) - grids)]
            taps = self._taps(waveforms, wanted, readout.fill_frames)
            # PaSST and AST call the mean of class and distillation token their embedding.
            taps.update({layer: torch.stack([taps[key] for key in keys[layer]]).mean(0) for layer in grids})
        else:
            pool = POOLS[readout.pool].function
            taps = self._taps(waveforms, readout.layers, readout.fill_frames)
            taps = {layer: pool(tap) if tap.ndim == 4 else tap for layer, tap in taps.items()}
        return torch.cat([taps[layer] for layer in readout.layers], 1)

    def read_frames(self, waveforms: Tensor, readout: Readout) -> dict[str, Tensor]:
        """Read every time position on its own: (batch, samples) -> (batch, time, size) for each layer."""
        frames = {}
        for layer, grid in self._taps(waveforms, readout.layers).items():
            pooled = POOLS[readout.pool].function(grid.flatten(0, 1).unsqueeze(1))
            frames[layer] = pooled.unflatten(0, grid.shape[:2])
        return frames

    # Many windows of many clips

    def n_windows(self, length: int, readout: Readout) -> int:
        """Say how many windows of `length` samples go through the network at once."""
        return self._limit(self._filled(length, readout))

    def _filled(self, length: int, readout: Readout) -> int:
        """Give the samples that a window costs: its length, or what it is filled up to."""
        return max(length, self.variant.frontend.n_samples(readout.fill_frames))

    def _limit(self, filled: int) -> int:
        seconds = BATCH_SECONDS.get(self.device.type, BATCH_SECONDS_ELSEWHERE)
        wanted = self.batch_size or int(seconds * self.sample_rate / filled)
        return max(1, min(wanted, int(min(self._limit_samples, 2**62) // filled)))

    def run_batched(
        self,
        total: int,
        length: int,
        readout: Readout,
        cut: Callable[[int, int], Tensor],
        read: Callable[[Tensor, Readout], Read],
    ) -> Iterator[Read]:
        """Read windows batch by batch.

        The batch is halved whenever it does not fit into memory; what fits is kept.

        Parameters
        ----------
        total : how many windows
        length : of each, in samples
        readout : what is read of them
        cut : gives the windows `first` to `last`: (last - first, length)
        read : `read` or `read_frames`, or what calls them
        """
        filled = self._filled(length, readout)
        first = 0
        is_halved = False
        while first < total:
            last = min(first + self._limit(filled), total)
            try:
                with torch.no_grad():
                    result = read(cut(first, last), readout)
            except (RuntimeError, MemoryError) as error:
                if last - first == 1 or not is_out_of_memory(error):
                    raise
                self._limit_samples = (last - first) * filled // 2
                is_halved = True
                continue
            if is_halved and self.batch_size is not None and not self._has_warned:
                self._has_warned = True
                warnings.warn(
                    f"batch_size={self.batch_size} does not fit into the memory of {self.device}; "
                    f"{self._limit(filled)} windows go through {'/'.join(self.name)} at once instead",
                    HearTransformersWarning,
                    stacklevel=2,
                )
            yield result
            first = last

    def _of_every_clip(
        self,
        buffer: windows.Buffer,
        starts: Tensor,
        length: int,
        readout: Readout,
        read: Callable[[Tensor, Readout], Read],
    ) -> list[Read]:
        """Read the same windows of every clip, clip after clip."""

        def cut(first: int, last: int) -> Tensor:
            item = torch.arange(first, last)
            return buffer.cut(item // len(starts), starts[item % len(starts)], length)

        return list(self.run_batched(len(buffer.waveforms) * len(starts), length, readout, cut, read))

    def _embed_windows(self, buffer: windows.Buffer, starts: Tensor, length: int, readout: Readout) -> Tensor:
        """Embed the same windows of every clip: -> (clips, starts, size)."""
        embeddings = torch.cat(self._of_every_clip(buffer, starts, length, readout, self.read))
        return embeddings.unflatten(0, (len(buffer.waveforms), len(starts)))

    def _embed_chunks(self, buffer: windows.Buffer, starts: Tensor, length: int, readout: Readout) -> dict[str, Tensor]:
        """Embed every time position of the same chunks of every clip: -> (clips, starts, time, size) for each layer."""
        length = max(length, self.min_samples)
        batches = self._of_every_clip(buffer, starts, length, readout, self.read_frames)
        shape = (len(buffer.waveforms), len(starts))
        return {layer: torch.cat([frames[layer] for frames in batches]).unflatten(0, shape) for layer in batches[0]}

    # Whole clips of any lengths

    def reader(self, *, timestamps: bool) -> packing.Reader:
        """Give what reads whole clips for `packing.Packer`."""
        self.eval()
        if not timestamps:
            return plans.Scenes(self)
        return plans.Native(self) if self.variant.framing == "native" else plans.Windowed(self)

    def embed_many(self, waveforms: Iterable[Tensor], *, timestamps: bool = False) -> list[packing.Result]:
        """Embed clips of any lengths; windows of many go through the network together.

        Parameters
        ----------
        waveforms : (samples,) each, floating point in [-1, 1], at `sample_rate`
        timestamps : embeddings along time instead of one per clip

        Returns
        -------
        results : embedding and, along time, the centres in ms, of every clip; on the CPU

        Raises
        ------
        AudioError : wrong shape, no samples, or samples that are not finite
        """
        packer = packing.Packer(self.reader(timestamps=timestamps))
        results: dict[int, packing.Result] = {}
        added = (packer.add(key, check_waveforms(waveform[None])[0]) for key, waveform in enumerate(waveforms))
        for packed in chain(chain.from_iterable(added), packer.finish()):
            if packed.result is None:
                raise packed.error or RuntimeError("a clip was lost")
            results[packed.key] = packed.result
        return [results[key] for key in sorted(results)]

    # Clips that arrive in blocks

    def _collect(self, blocks: Iterable[Tensor]) -> Iterator[windows.Buffer]:
        """Collect blocks of audio on the device of the network, see `framing.collect`."""
        return framing.collect(check_waveforms(block).to(self.device, torch.float32) for block in blocks)

    def _stream_windowed(
        self, blocks: Iterable[Tensor], readouts: tuple[Readout, ...], hop_ms: float
    ) -> Iterator[Tensor]:
        """Embed one window around every centre: yields (clips, times, size), in order."""
        lengths = [windows.samples_of(readout.window_ms, self.sample_rate) for readout in readouts]
        return framing.windowed(
            self._collect(blocks),
            windows.TimeGrid(hop_ms, self.sample_rate),
            lengths,
            lambda buffer, starts, level: self._embed_windows(buffer, starts, lengths[level], readouts[level]),
        )

    def _axes(self, readout: Readout) -> dict[str, framing.Axis]:
        """Give the time axes of a readout's layers in samples."""
        spec = self.variant.frontend
        axes = {layer: self.layer_axis(layer) for layer in readout.layers}
        return {
            layer: framing.Axis(axis.hop * spec.hop_length, axis.offset * spec.hop_length + spec.offset)
            for layer, axis in axes.items()
            if axis
        }

    def _token_multiple(self, readout: Readout) -> int:
        """Give the fewest samples that are a whole number of tokens of every layer."""
        return math.lcm(*(axis.hop for axis in self._axes(readout).values()))

    def native(self, readout: Readout, hop_ms: float) -> framing.Native:
        """Make what interpolates the network's own time axis."""
        length = windows.samples_of(readout.window_ms, self.sample_rate)
        chunks = windows.Chunks.half_overlapping(length, self._token_multiple(readout))
        return framing.Native(windows.TimeGrid(hop_ms, self.sample_rate), chunks, self._axes(readout))

    def _stream_native(self, blocks: Iterable[Tensor], readout: Readout, hop_ms: float) -> Iterator[Tensor]:
        """Interpolate the network's own time axis at every centre: yields (clips, times, size), in order."""
        pieces = self.native(readout, hop_ms).stream(
            self._collect(blocks), lambda buffer, starts, length: self._embed_chunks(buffer, starts, length, readout)
        )
        for embeddings in pieces:
            yield torch.cat([embeddings[layer] for layer in readout.layers], 2)

    # What users call

    @torch.no_grad()
    def stream_timestamps(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed clips along time as their audio arrives, in memory that does not grow with their duration.

        Parameters
        ----------
        blocks : (clips, samples) tensors that follow each other in time, any length each

        Yields
        ------
        embeddings : (clips, times, timestamp_embedding_size) float32, the next in time
        centres_ms : (times,) float64, centre of each embedding in ms: multiples of the hop, from 0 to the end

        Raises
        ------
        AudioError : no samples, or samples that are not finite
        """
        self.eval()
        variant = self.variant
        if variant.framing == "native":
            pieces = self._stream_native(blocks, variant.timestamps[0], variant.hop_ms)
        else:
            pieces = self._stream_windowed(blocks, variant.timestamps, variant.hop_ms)
        grid = windows.TimeGrid(variant.hop_ms, self.sample_rate)
        first = 0
        for embeddings in pieces:
            last = first + embeddings.shape[1]
            yield embeddings, grid.times_ms(first, last)
            first = last

    @torch.no_grad()
    def stream_scene(self, blocks: Iterable[Tensor]) -> Tensor:
        """Embed whole clips as their audio arrives, in memory that does not grow with their duration.

        A clip of up to one window is read in one pass; the embedding of a longer one is the mean over windows centred
        at every multiple of `Variant.scene_hop_ms`, as the authors of PaSST do.

        Parameters
        ----------
        blocks : (clips, samples) tensors that follow each other in time, any length each

        Returns
        -------
        embeddings : (clips, scene_embedding_size) float32

        Raises
        ------
        AudioError : no samples, or samples that are not finite
        """
        self.eval()
        scene = self.variant.scene
        window = windows.samples_of(scene.window_ms, self.sample_rate)
        later = iter(blocks)
        held: list[Tensor] = []
        while sum(block.shape[-1] for block in held) <= window and (block := next(later, None)) is not None:
            held.append(block)
        if sum(block.shape[-1] for block in held) <= window:
            *_, buffer = self._collect(held)
            length = max(buffer.stop, self.min_samples_for(scene))
            return self._embed_windows(buffer, torch.zeros(1, dtype=torch.int64), length, scene)[:, 0]
        total, count = torch.zeros((), dtype=torch.float64), 0
        for embeddings in self._stream_windowed(chain(held, later), (scene,), self.variant.scene_hop_ms):
            total = total + embeddings.sum(1).cpu().double()
            count += embeddings.shape[1]
        return (total / count).to(self.device, torch.float32)

    def embed_timestamps(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips along time.

        Parameters
        ----------
        waveforms : (clips, samples), floating point in [-1, 1], at `sample_rate`

        Returns
        -------
        embeddings : (clips, times, timestamp_embedding_size) float32, on the device of the model
        centres_ms : (times,) float64, centre of each embedding in ms

        Raises
        ------
        AudioError : wrong shape, no samples, or samples that are not finite
        """
        embeddings, centres_ms = zip(*self.stream_timestamps([waveforms]), strict=True)
        return torch.cat(embeddings, 1), torch.cat(centres_ms)

    def embed_scenes(self, waveforms: Tensor) -> Tensor:
        """Embed whole clips.

        Parameters
        ----------
        waveforms : (clips, samples), floating point in [-1, 1], at `sample_rate`

        Returns
        -------
        embeddings : (clips, scene_embedding_size) float32, on the device of the model

        Raises
        ------
        AudioError : wrong shape, no samples, or samples that are not finite
        """
        return self.stream_scene([waveforms])

    def provenance(self) -> dict[str, Any]:
        """Say what made the embeddings, ready for JSON."""
        variant = self.variant
        return {
            "package": f"hear_transformers {__version__}",
            "family": self.name[0],
            "variant": self.name[1],
            "weights_sha256": self.weights_sha256,
            "sample_rate": self.sample_rate,
            "precision": self.precision,
            "scene": _described(variant.scene) | {"hop_ms": variant.scene_hop_ms},
            "timestamps": [_described(readout) for readout in variant.timestamps],
            "hop_ms": variant.hop_ms,
            "framing": variant.framing,
        }

    # Files and arrays, with the habits of sentence-transformers

    encode = encoding.encode
    encode_timestamps = encoding.encode_timestamps


def is_out_of_memory(error: BaseException) -> bool:
    """Tell whether memory ran out; on the CPU PyTorch raises a plain RuntimeError for that."""
    return isinstance(error, (MemoryError, torch.OutOfMemoryError)) or "can't allocate memory" in str(error)


def _cast_matrices(trunk: nn.Module, dtype: torch.dtype) -> None:
    """Store what autocast would convert in every forward pass in its own precision: same numbers, half the memory."""
    for module in trunk.modules():
        if isinstance(module, (nn.Linear, nn.Conv1d, nn.Conv2d)):
            module.to(dtype)


def _described(readout: Readout) -> dict[str, Any]:
    filled = {"fill_frames": readout.fill_frames} if readout.fill_frames else {}
    return {"layers": list(readout.layers), "pool": readout.pool, "window_ms": readout.window_ms, **filled}
