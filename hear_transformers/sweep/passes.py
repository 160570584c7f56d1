"""A pass of a sweep: a network over all clips in one framing, for all layers and poolings at once."""

from __future__ import annotations

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..embedding.embedder import Embedder
from ..embedding.packing import BatchKey, Plan, Reader, Rows
from ..embedding.windows import Buffer

SCENE = "scene"
"""Framing of a pass that embeds whole clips as the model does; others take the mean over embeddings along time."""

VECTOR = ""
"""Pooling of a layer that is a vector."""

FEW_DIGITS = 8
"""Of the hash in the name of a pass: it tells apart settings that are otherwise named alike."""


@dataclass(frozen=True, slots=True)
class Chosen:
    """A model to try.

    Attributes
    ----------
    name : as the user wrote it
    weights : file, empty for the published one
    is_random : drawn at random instead, what a network is worth untrained
    """

    name: str
    weights: str = ""
    is_random: bool = False

    @property
    def label(self) -> str:
        """Name in the tables."""
        return f"{self.name} (random)" if self.is_random else self.name


@dataclass(slots=True)
class Cost:
    """Seconds of compute, see `_clock`, and of the audio that they were for."""

    seconds: float = 0.0
    audio: float = 0.0

    @property
    def per_hour(self) -> float:
        """Seconds of compute for an hour of audio, NaN if nothing was measured."""
        return 3600.0 * self.seconds / self.audio if self.audio else float("nan")


@dataclass(frozen=True, slots=True)
class Cell:
    """What is scored of a pass: a layer or a combination of several, and their pooling.

    Attributes
    ----------
    layer : its name, or that of the combination
    members : the layers
    pool : from layer to vector, `VECTOR` where it is one
    columns : positions in an embedding of the pass
    """

    layer: str
    members: Sequence[str]
    pool: str
    columns: tuple[int, ...]


@dataclass(eq=False)
class Pass:
    """A model in one framing, as `pipeline.Model`, that counts what it costs.

    Attributes
    ----------
    model : with all layers and poolings
    chosen : the model as the user asked for it
    framing : `SCENE`, "windowed" or "native"
    window_ms, hop_ms : see `results.Row`
    cost : of what it has embedded until now
    places : (layer, pooling) -> positions in an embedding
    cells : what is scored
    """

    model: Embedder
    chosen: Chosen
    framing: str
    window_ms: float
    hop_ms: float | None
    cost: Cost = field(default_factory=Cost)
    places: dict[tuple[str, str], list[int]] = field(init=False)
    cells: list[Cell] = field(default_factory=list)
    batch_size: int | None = None

    def __post_init__(self) -> None:
        self.places = self.model.columns_by_pool()
        self.sample_rate, self.precision = self.model.sample_rate, self.model.precision
        self.layers = self.model.layers
        self.scene_embedding_size = self.model.scene_embedding_size
        made_by = hashlib.sha256(json.dumps(self.provenance(), sort_keys=True).encode()).hexdigest()
        times = "" if self.hop_ms is None else f"-{self.window_ms:g}-{self.hop_ms:g}"
        self.name = f"{'-'.join(self.model.name).replace('/', '-')}-{self.framing}{times}-{made_by[:FEW_DIGITS]}"

    @property
    def is_along_time(self) -> bool:
        """Whether embeddings lie along time."""
        return self.framing != SCENE

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return the positions of each layer in an embedding."""
        places: dict[str, list[int]] = {}
        for (layer, _), positions in self.places.items():
            places.setdefault(layer, []).extend(positions)
        return places

    def spans_ms(self, times_ms: np.ndarray, end_ms: float) -> tuple[np.ndarray, np.ndarray]:
        """Return where the audio of embeddings along time begins and ends."""
        return self.model.spans_ms(times_ms, end_ms)

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""
        return self.model.provenance()

    def reader(self, *, timestamps: bool, batch_size: int | None = None) -> Reader:
        """Return what reads whole clips; None leaves the batch size to the model."""
        return _Timed(self.model.reader(timestamps=timestamps, batch_size=batch_size), self.cost, self.sample_rate)

    def stream_scene(self, blocks: Iterable[Tensor], *, batch_size: int | None = None) -> Tensor:
        """Embed one clip as its audio arrives."""
        with _Streaming(blocks, self) as arriving:
            return self.model.stream_scene(arriving, batch_size=batch_size)

    def stream_timestamps(
        self, blocks: Iterable[Tensor], *, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed one clip along time as its audio arrives."""
        with _Streaming(blocks, self) as arriving:
            yield from self.model.stream_timestamps(arriving, batch_size=batch_size)


def _clock(device: torch.device) -> Callable[[], float]:
    """Return what seconds of compute are read from: of a CPU, which others may use too, those of all our threads."""
    return time.process_time if device.type == "cpu" else time.perf_counter


class _Streaming:
    """Counts the audio of a clip that arrives, and the time until its end but for what is spent on its arrival."""

    def __init__(self, blocks: Iterable[Tensor], found: Pass) -> None:
        self.blocks, self.cost, self.sample_rate = blocks, found.cost, found.sample_rate
        self.now = _clock(found.model.device)

    def __enter__(self) -> Iterator[Tensor]:
        self.began = self.now()
        return self._counted()

    def __exit__(self, *error: object) -> None:
        self.cost.seconds += self.now() - self.began

    def _counted(self) -> Iterator[Tensor]:
        blocks = iter(self.blocks)
        while True:
            asked = self.now()
            block = next(blocks, None)
            self.began += self.now() - asked
            if block is None:
                return
            self.cost.audio += block.shape[1] / self.sample_rate
            yield block


class _Timed:
    """A reader whose time is taken."""

    def __init__(self, reader: Reader, cost: Cost, sample_rate: int) -> None:
        self.reader, self.cost, self.sample_rate = reader, cost, sample_rate
        self.device, self.now = reader.device, _clock(reader.device)

    def plan(self, n_samples: int) -> Plan:
        """Plan the windows of a clip."""
        plan = self.reader.plan(n_samples)
        self.cost.audio += n_samples / self.sample_rate
        return plan

    def batch_size_for(self, key: BatchKey) -> int:
        """Return how many windows are best read at once."""
        return self.reader.batch_size_for(key)

    def read(self, key: BatchKey, parts: Sequence[tuple[Buffer, Tensor]]) -> Rows:
        """Run the network."""
        began = self.now()
        rows = self.reader.read(key, parts)
        if self.device.type == "cuda":
            torch.cuda.synchronize(self.device)  # else it would be the time to ask for it
        self.cost.seconds += self.now() - began
        return rows
