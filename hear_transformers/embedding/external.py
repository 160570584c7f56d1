"""Any other module that follows the HEAR API, behind the methods that `extract` calls."""

from __future__ import annotations

import contextlib
import importlib
import io
from collections.abc import Iterable, Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..errors import OptionError
from ..files import sha256_of

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
"""What the HEAR API asks of a module."""


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
    """Drop what others print, so that standard output holds results only; hear21passt prints its whole network."""
    with contextlib.redirect_stdout(io.StringIO()):
        yield


class ForeignModel:
    """A model of another package.

    Parameters
    ----------
    name : of the module that follows the HEAR API, ``hear21passt.base``
    path : checkpoint for its `load_model`, empty for its own default
    device : where it runs
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
        self.batch_size: int | None = None

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

    def stream_scene(self, blocks: Iterable[Tensor]) -> Tensor:
        """Embed one clip that comes in blocks; the HEAR API knows whole clips only, so they are joined."""
        return self.embed_scenes(torch.cat(list(blocks), 1))

    def stream_timestamps(self, blocks: Iterable[Tensor]) -> Iterator[tuple[Tensor, Tensor]]:
        """Embed one clip along time that comes in blocks, see `stream_scene`."""
        yield self.embed_timestamps(torch.cat(list(blocks), 1))

    def provenance(self) -> dict[str, Any]:
        """Say what makes the embeddings, ready for JSON."""
        options = {"options": self.options} if self.options else {}
        return {"module": self.name, "weights_sha256": self.weights_sha256, "sample_rate": self.sample_rate, **options}
