"""What every family's `load_model` returns: a network that embeds clips, whole or as they arrive, files and arrays."""

from __future__ import annotations

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor

from .. import __version__
from ..audio.reading import check_waveforms, warn_user
from ..checkpoints.saved import Origin
from ..errors import AudioError, OptionError
from ..networks.family import Readout, Variant
from ..networks.trunk import Trunk
from . import encode as encoding
from . import saving
from .choices import check_choice
from .forward import CPU, WindowEmbedder
from .framing import FRAMINGS, NO_SAMPLES, SEGMENTS, VECTORS, ClipReader, Framing, MeanOverTime, Scenes, Segments
from .packing import Result
from .preparation import evaluate
from .windows import Buffer, range_ms


class Embedder(WindowEmbedder):
    """Embeds waveforms: front end, network, the layers asked for, pooling, and where windows lie in time.

    Timestamps come in two framings. ``windowed`` cuts one window around each timestamp, so `Readout.window_ms` is the
    exact receptive field (Koutini et al., 2211.13956). ``native`` runs the network once over half-overlapping chunks
    and interpolates its own time axis: 10 to 100 times cheaper. Or there is one embedding for each of the segments that
    follow each other, as many applications in bioacoustics have it, see `framing.Segments`.

    Scenes and timestamps are computed from blocks of audio as they arrive: memory does not grow with duration.
    Parameters and further attributes are those of `WindowEmbedder`.

    Attributes
    ----------
    scene_embedding_size, timestamp_embedding_size : numbers per embedding
    weights_sha256 : hash of the checkpoint file, None for random weights
    origin : what was given to make it, for `save_pretrained`; None for networks of `transformers`
    read_with : what changes embeddings beside the file: arguments of the network that are not the variant's, the
        normalisation, the prefix in the file
    labels : names of the classes in the order of "logits", None if the checkpoint does not say
    multi_label : whether a clip may belong to several classes: then logits go through a sigmoid, else through a softmax

    Examples
    --------
    >>> import torch
    >>> from hear_transformers.tiny import load_model
    >>> model = load_model(layer=8, hop_ms=100)
    >>> clips = torch.zeros(2, 3 * model.sample_rate)
    >>> model.embed_scenes(clips).shape
    torch.Size([2, 192])
    >>> embeddings, centres_ms = model.embed_timestamps(clips)
    >>> embeddings.shape, centres_ms[:3].tolist()
    (torch.Size([2, 31, 192]), [0.0, 100.0, 200.0])
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
        super().__init__(trunk, variant, name=name, precision=precision, device=device)
        self.weights_sha256: str | None = None
        self.origin: Origin | None = None
        self.read_with: dict[str, Any] = {}
        self.labels: tuple[str, ...] | None = None
        self.multi_label = True
        of_window = None if variant.mean_over_time else Scenes.of(self, variant)
        self._along_time = along = self._framing_of(variant)
        self._scenes: Framing = of_window or MeanOverTime(along.readouts, along)
        self.timestamp_embedding_size = sum(self.size(readout) for readout in variant.timestamps)
        self.scene_embedding_size = sum(self.size(readout) for readout in self._readouts(False))

    def _framing_of(self, variant: Variant) -> Framing:
        """Return the framing of a variant's timestamps; raise OptionError if the network cannot serve it."""
        if variant.framing != SEGMENTS:
            check_choice("framing", variant.framing)
        if not (math.isfinite(variant.hop_ms) and variant.hop_ms >= 1000.0 / self.sample_rate):
            fault = "no length of time" if variant.hop_ms == math.inf else "too short"
            raise OptionError(
                f"hop_ms={variant.hop_ms} is {fault}; give {range_ms(1, None, self.sample_rate)}, a sample"
            )
        if variant.framing == SEGMENTS:
            return Segments.of(self, variant)
        return FRAMINGS[variant.framing].of(self, variant.timestamps, variant.hop_ms)

    # What an embedding consists of

    def _readouts(self, timestamps: bool) -> tuple[Readout, ...]:
        along_time = timestamps or self.variant.mean_over_time
        return self.variant.timestamps if along_time else (self.variant.scene,)

    @property
    def layers(self) -> tuple[str, ...]:
        """Layers that were chosen, each once."""
        return tuple(dict.fromkeys(self.variant.scene.layers))

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return the positions of each layer in an embedding.

        Parameters
        ----------
        timestamps : of embeddings along time instead of scenes

        Returns
        -------
        columns : layer, as in `Readout.layers`: its positions in an embedding, ascending
        """
        places: dict[str, list[int]] = {}
        for (layer, _), positions in self.columns_by_pool(timestamps=timestamps).items():
            places.setdefault(layer, []).extend(positions)
        return {layer: sorted(positions) for layer, positions in places.items()}

    def columns_by_pool(self, *, timestamps: bool = False) -> dict[tuple[str, str], list[int]]:
        """Return the positions of each layer and pooling, see `columns`; of a vector the pooling is empty."""
        places: dict[tuple[str, str], list[int]] = {}
        first = 0
        for layer, pool, size in chain.from_iterable(map(self.sizes, self._readouts(timestamps))):
            places.setdefault((layer, pool), []).extend(range(first, first + size))
            first += size
        return places

    def spans_ms(self, times_ms: np.ndarray, end_ms: float = math.inf) -> tuple[np.ndarray, np.ndarray]:
        """Return where the audio that embeddings along time are read from begins and ends.

        Parameters
        ----------
        times_ms : (times,) centres of all embeddings of a clip, from its start, in ms
        end_ms : of the clip; without it, windows around the last centres may reach beyond, segments never do

        Returns
        -------
        starts_ms, ends_ms : (times,) float64 each, within the clip
        """
        return self._along_time.spans_ms(times_ms, end_ms)

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON.

        Returns
        -------
        provenance : package, model, hash of the weights, layers, pooling, windows, hop: equal ones give equal numbers
        """
        variant = self.variant
        scene = _described(variant.scene) | {"hop_ms": variant.scene_hop_ms}
        return {
            "package": f"hear_transformers {__version__}",
            "family": self.name[0],
            "variant": self.name[1],
            "weights_sha256": self.weights_sha256,
            "sample_rate": self.sample_rate,
            "precision": self.precision,
            **({} if variant.mean_over_time else {"scene": scene}),
            "timestamps": [_described(readout) for readout in variant.timestamps],
            "hop_ms": variant.hop_ms,
            "framing": variant.framing,
            **self.read_with,
        }

    # Clips

    def reader(self, *, timestamps: bool, batch_size: int | None = None) -> ClipReader:
        """Return what reads clips, see `packing.Reader`; a batch size of None is that of the model."""
        evaluate(self)
        return ClipReader(self, self._along_time if timestamps else self._scenes, batch_size)

    @torch.no_grad()
    def _stream(
        self,
        blocks: Iterable[Tensor],
        *,
        timestamps: bool,
        batch_size: int | None = None,
        warn: Callable[[str], None] = lambda warning: None,
    ) -> Iterator[Result]:
        """Check and embed blocks as they arrive, see `stream_timestamps`; `warn` is called as by `check_waveforms`."""
        arriving = (check_waveforms(block, warn).to(self.device, torch.float32) for block in blocks)
        yield from self.reader(timestamps=timestamps, batch_size=batch_size).stream(arriving)

    def stream_timestamps(
        self, blocks: Iterable[Tensor], *, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed clips along time as their audio arrives, in memory that does not grow with their duration.

        Parameters
        ----------
        blocks : (clips, samples) tensors that follow each other in time, any length each
        batch_size : windows per forward pass; None for that of the model

        Yields
        ------
        embeddings : (clips, times, timestamp_embedding_size) float32, the next in time
        centres_ms : (times,) float64, centre of each embedding in ms: multiples of the hop, from 0 to the end

        Raises
        ------
        AudioError : no samples, or samples that are not finite
        """
        for result in self._stream(blocks, timestamps=True, batch_size=batch_size):
            assert result.times_ms is not None
            yield result.embedding, result.times_ms

    def stream_scene(self, blocks: Iterable[Tensor], *, batch_size: int | None = None) -> Tensor:
        """Embed whole clips as their audio arrives, in memory that does not grow with their duration.

        A clip of up to one window is read in one pass; the embedding of a longer one is the mean over windows centred
        at every multiple of `Variant.scene_hop_ms`, as the authors of PaSST do. With `Variant.mean_over_time` it is the
        mean over the embeddings along time.

        Parameters
        ----------
        blocks : (clips, samples) tensors that follow each other in time, any length each
        batch_size : windows per forward pass; None for that of the model

        Returns
        -------
        embeddings : (clips, scene_embedding_size) float32

        Raises
        ------
        AudioError : no samples, or samples that are not finite
        """
        (result,) = self._stream(blocks, timestamps=False, batch_size=batch_size)
        return result.embedding.to(self.device)

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
        (result,) = self._stream([waveforms], timestamps=True, warn=warn_user)
        assert result.times_ms is not None
        return result.embedding, result.times_ms

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
        (result,) = self._stream([waveforms], timestamps=False, warn=warn_user)
        return result.embedding.to(self.device)

    # As a layer

    def forward(self, waveforms: Tensor) -> Tensor:
        """Embed whole clips like `embed_scenes`, with gradients: a layer for networks of one's own, and `DataParallel`.

        All windows of all clips go through the network at once, so memory grows with their duration. The network is in
        training mode or not, as ``train()`` and ``eval()`` have left it, which `embed_scenes` and `encode` set. Going
        back, products are rounded as the process has it, see `precision`.

        Parameters
        ----------
        waveforms : (batch, samples), floating point in [-1, 1], at `sample_rate`; numbers are not checked

        Returns
        -------
        embeddings : (batch, scene_embedding_size) float32, on the device of the waveforms

        Raises
        ------
        AudioError : wrong shape or type, or no samples

        Examples
        --------
        >>> import torch
        >>> from hear_transformers.tiny import load_model
        >>> model = load_model(layer=8)
        >>> network = torch.nn.Sequential(model, torch.nn.Linear(model.scene_embedding_size, 10))
        >>> network(torch.zeros(2, 16_000)).sum().backward()
        >>> model.trunk.cls_token.grad.shape
        torch.Size([1, 1, 192])
        """
        if waveforms.ndim != 2 or not waveforms.is_floating_point():
            check_waveforms(waveforms)  # raises
        clips, n_samples = waveforms.float(), waveforms.shape[1]
        if not n_samples:
            raise AudioError(NO_SAMPLES)
        self.warn_if_slow(clips.device)
        framing = self._scenes.start()
        if isinstance(framing, Scenes) and framing.shortest <= n_samples <= framing.windows.lengths[0]:
            return self.read(clips, self.variant.scene)  # nothing to cut, and `torch.export` can follow
        buffer = Buffer(clips, n_samples=n_samples)
        rows = []
        for windows in framing.cuts(n_samples, n_samples):
            starts = windows.starts.tolist()
            cut = torch.cat(buffer.views(starts, windows.length))
            readout = framing.readouts[windows.level]
            read = self.read_frames(cut, readout) if framing.by_frame else {VECTORS: self.read(cut, readout)}
            # (windows * batch, ..., size) -> (windows, ..., batch, size)
            rows.append({name: each.unflatten(0, (-1, len(clips))).movedim(1, -2) for name, each in read.items()})
        result = framing.join(rows)
        assert result is not None
        return result.embedding.to(clips.device)

    # Files and arrays, with the habits of sentence-transformers

    encode = encoding.encode
    encode_timestamps = encoding.encode_timestamps
    similarity = staticmethod(encoding.similarity)

    # Folders and repositories, with the names of transformers

    save_pretrained = saving.save_pretrained
    push_to_hub = saving.push_to_hub


def _described(readout: Readout) -> dict[str, Any]:
    filled = {"fill_frames": readout.fill_frames} if readout.fill_frames else {}
    return {"layers": list(readout.layers), "pool": readout.pool, "window_ms": readout.window_ms, **filled}


def columns_of(columns: Mapping[str, Sequence[int]], layer: str, layers: Iterable[str]) -> list[int]:
    """Return the positions that an embedding of one layer alone would have, ascending.

    Parameters
    ----------
    columns : positions by layer, see `Embedder.columns`
    layer : which of them
    layers : that were chosen; positions of other layers (the mel of a preset) belong to every embedding
    """
    others = {*layers} - {layer}
    return sorted(place for name, places in columns.items() if name not in others for place in places)
