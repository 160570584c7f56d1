"""What every family's `load_model` returns: a network that embeds clips, whole or as they arrive, files and arrays."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from .. import __version__
from ..audio.reading import check_waveforms, warn_user
from ..errors import OptionError
from ..networks.family import Readout, Variant
from ..networks.trunk import Trunk
from . import encode as encoding
from .forward import WindowEmbedder
from .framing import FRAMINGS, ClipReader, Framing, Scenes


class Embedder(WindowEmbedder):
    """Embeds waveforms: front end, network, the layers asked for, pooling, and where windows lie in time.

    Timestamps come in two framings. ``windowed`` cuts one window around each timestamp, so `Readout.window_ms` is the
    exact receptive field (Koutini et al., 2211.13956). ``native`` runs the network once over half-overlapping chunks
    and interpolates its own time axis: 10 to 100 times cheaper.

    Scenes and timestamps are computed from blocks of audio as they arrive: memory does not grow with duration.
    Parameters and further attributes are those of `WindowEmbedder`.

    Attributes
    ----------
    scene_embedding_size, timestamp_embedding_size : numbers per embedding
    weights_sha256 : hash of the checkpoint file, None for random weights
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

    def __init__(self, trunk: Trunk, variant: Variant, *, name: tuple[str, str], precision: str = "float32") -> None:
        super().__init__(trunk, variant, name=name, precision=precision)
        self.weights_sha256: str | None = None
        self.labels: tuple[str, ...] | None = None
        self.multi_label = True
        self._scenes = Scenes.of(self, variant)
        self._along_time = self._framing_of(variant)
        self.scene_embedding_size = self.size(variant.scene)
        self.timestamp_embedding_size = sum(self.size(readout) for readout in variant.timestamps)

    def _framing_of(self, variant: Variant) -> Framing:
        """Return the framing of a variant's timestamps; raise OptionError if the network cannot serve it."""
        if variant.framing not in FRAMINGS:
            raise OptionError(f"framing={variant.framing!r} is unknown; choose one of {', '.join(FRAMINGS)}")
        shortest_hop = 1000.0 / self.sample_rate
        if not (math.isfinite(variant.hop_ms) and variant.hop_ms >= shortest_hop):
            raise OptionError(f"hop_ms={variant.hop_ms} is too short; give at least one sample, {shortest_hop} ms")
        return FRAMINGS[variant.framing].of(self, variant.timestamps, variant.hop_ms)

    # What an embedding consists of

    def _readouts(self, timestamps: bool) -> tuple[Readout, ...]:
        return self.variant.timestamps if timestamps else (self.variant.scene,)

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
        first = 0
        for readout in self._readouts(timestamps):
            for layer in readout.layers:
                last = first + self.size(replace(readout, layers=(layer,)))
                places.setdefault(layer, []).extend(range(first, last))
                first = last
        return places

    def longest_window_ms(self, *, timestamps: bool = False) -> float:
        """Return the length of the longest window that an embedding is read from, in ms."""
        return max(readout.window_ms for readout in self._readouts(timestamps))

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""
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

    # Clips

    def reader(self, *, timestamps: bool) -> ClipReader:
        """Return what reads clips, see `packing.Reader`."""
        self.eval()
        return ClipReader(self, self._along_time if timestamps else self._scenes)

    def _blocks(self, blocks: Iterable[Tensor]) -> Iterator[Tensor]:
        return (check_waveforms(block).to(self.device, torch.float32) for block in blocks)

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
        for result in self.reader(timestamps=True).stream(self._blocks(blocks)):
            assert result.times_ms is not None
            yield result.embedding, result.times_ms

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
        (result,) = self.reader(timestamps=False).stream(self._blocks(blocks))
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
        ((embeddings, centres_ms),) = self.stream_timestamps([check_waveforms(waveforms, warn_user)])
        return embeddings, centres_ms

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
        return self.stream_scene([check_waveforms(waveforms, warn_user)])

    # Files and arrays, with the habits of sentence-transformers

    encode = encoding.encode
    encode_timestamps = encoding.encode_timestamps


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
