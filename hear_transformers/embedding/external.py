"""Models of other packages: any module that follows the HEAR API, as a `pipeline.Model`."""

from __future__ import annotations

import contextlib
import importlib
import io
import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from types import ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import OptionError
from ..files import sha256_of
from .packing import BatchKey, Plan, Reader, Result, Rows, WindowSet
from .windows import Buffer

STACK_SECONDS = 320.0
"""Audio of equally long clips that the model of another package embeds at once."""

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
"""Functions that the HEAR API requires of a module."""


def import_hear(name: str) -> ModuleType:
    """Import a module that follows the HEAR API.

    Raises
    ------
    OptionError : there is no such module, importing it fails, or it lacks one of the three functions
    """
    try:
        with silenced():
            module = importlib.import_module(name)
    except Exception as error:
        raise OptionError(f"the module {name!r} cannot be imported ({type(error).__name__}: {error})") from error
    missing = [function for function in FUNCTIONS if not callable(getattr(module, function, None))]
    if missing:
        raise OptionError(f"the module {name!r} does not follow the HEAR API: it has no {', '.join(missing)}")
    return module


@contextlib.contextmanager
def silenced() -> Iterator[None]:
    """Discard what others print, so that standard output holds results only; hear21passt prints its whole network."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class ExternalModel:
    """A model of another package.

    Parameters
    ----------
    name : of the module that follows the HEAR API, ``hear21passt.base``
    path : checkpoint for its `load_model`, empty for its own default
    device : of the model
    options : keyword arguments for its `load_model`, beyond the HEAR API
    """

    def __init__(self, name: str, path: str, device: torch.device, options: Mapping[str, Any] | None = None) -> None:
        self.module = import_hear(name)
        self.options = dict(options or {})
        with silenced():
            self.model = self.module.load_model(*([path] if path else []), **self.options)
        if not isinstance(self.model, torch.nn.Module):
            raise OptionError(f"{name}.load_model gave a {type(self.model).__name__}, expected a torch.nn.Module")
        self.model = self.model.to(device)
        self.name = name
        self.device = device
        self.weights_sha256 = sha256_of(path) if path else None
        self.sample_rate = int(self.model.sample_rate)
        self.scene_embedding_size = int(self.model.scene_embedding_size)
        self.precision = "float32"
        self.layers: tuple[str, ...] = ()  # the HEAR API does not say what is read
        self.batch_size: int | None = None

    def columns(self, *, timestamps: bool = False) -> dict[str, list[int]]:
        """Return no positions: the HEAR API does not say which numbers are of which layer."""
        return {}

    def spans_ms(self, times_ms: np.ndarray, end_ms: float) -> tuple[np.ndarray, np.ndarray]:
        """Return NaN: the HEAR API does not say what an embedding sees."""
        return np.full_like(times_ms, math.nan), np.full_like(times_ms, math.nan)

    def reader(self, *, timestamps: bool, batch_size: int | None = None) -> Reader:
        """Return what reads whole clips, see `packing.Reader`."""
        return _WholeClips(self, timestamps=timestamps, batch_size=batch_size)

    @torch.no_grad()
    def embed_scenes(self, waveforms: Tensor) -> Tensor:
        """Embed whole clips: (clips, samples) -> (clips, size)."""
        with silenced():
            return self.module.get_scene_embeddings(waveforms.to(self.device), self.model)

    @torch.no_grad()
    def embed_timestamps(self, waveforms: Tensor) -> tuple[Tensor, Tensor]:
        """Embed clips along time: (clips, samples) -> (clips, times, size), (times,) ms."""
        with silenced():
            embeddings, times_ms = self.module.get_timestamp_embeddings(waveforms.to(self.device), self.model)
        return embeddings, times_ms[0]

    def stream_scene(self, blocks: Iterable[Tensor], *, batch_size: int | None = None) -> Tensor:
        """Embed one clip from blocks, which are joined: the HEAR API knows whole clips only."""
        return self.embed_scenes(torch.cat(list(blocks), 1))

    def stream_timestamps(
        self, blocks: Iterable[Tensor], *, batch_size: int | None = None
    ) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed one clip along time from blocks, see `stream_scene`."""
        yield self.embed_timestamps(torch.cat(list(blocks), 1))

    def provenance(self) -> dict[str, Any]:
        """Describe what makes the embeddings, ready for JSON."""
        options = {"options": self.options} if self.options else {}
        return {"module": self.name, "weights_sha256": self.weights_sha256, "sample_rate": self.sample_rate, **options}


class _WholeClips:
    """Reads clips with the model of another package: equally long ones together, see `packing.Reader`."""

    device = torch.device("cpu")  # such a model fetches its clips itself

    def __init__(self, model: ExternalModel, *, timestamps: bool, batch_size: int | None) -> None:
        self.model = model
        self.batch_size = batch_size
        self.timestamps = timestamps

    def plan(self, n_samples: int) -> Plan:
        """Plan one window, the clip itself."""
        return Plan(
            [WindowSet(0, n_samples, torch.zeros(1, dtype=torch.int64))],
            lambda rows: Result(*(rows[0][name][0] for name in ("embedding", "times_ms") if name in rows[0])),
        )

    def batch_size_for(self, key: BatchKey) -> int:
        """Return how many clips are embedded at once."""
        return self.batch_size or self.model.batch_size or max(1, int(STACK_SECONDS * self.model.sample_rate / key[1]))

    def read(self, key: BatchKey, parts: Sequence[tuple[Buffer, Tensor]]) -> Rows:
        """Embed equally long clips."""
        waveforms = torch.stack([buffer.samples for buffer, _ in parts])  # (clips, samples)
        if not self.timestamps:
            return {"embedding": self.model.embed_scenes(waveforms)}
        embeddings, times_ms = self.model.embed_timestamps(waveforms)
        return {"embedding": embeddings, "times_ms": times_ms.double().expand(len(waveforms), -1)}
