"""The rules of the HEAR API, checked on any module without TensorFlow: https://hearbenchmark.com/hear-api.html.

They are those of HEAR's own validator for PyTorch models (github.com/hearbenchmark/hear-validator, version 2021.0.6).
"""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Iterator, Mapping
from types import ModuleType
from typing import Any

import torch
from torch import Tensor

from ..embedding.external import FUNCTIONS, import_hear, silenced
from ..errors import HearTransformersError

SAMPLE_RATES = (16_000, 22_050, 32_000, 44_100, 48_000)
"""Sample rates of HEAR's tasks, in Hz."""

TIMESTAMP_SECONDS = (1.07, 1.98, 4.0)
SCENE_SECONDS = (2.74, 1.07)
"""Lengths of the test clips, in s."""

N_SOUNDS = 4
"""Number of test clips of each length."""

IRREGULARITY_MS = 1.0
"""Largest difference between a step of the timestamps and their mean step."""

ADVISED_HOP_MS = 50.0
"""Longest step of timestamps that HEAR recommends: its events are scored within 200 ms."""


class ContractError(HearTransformersError):
    """A module breaks a rule of the HEAR API."""


def check_module(
    name: str, path: str = "", options: Mapping[str, Any] | None = None, device: torch.device | str = "cpu"
) -> Iterator[str]:
    """Check the rules one by one on a module.

    Parameters
    ----------
    name : of the module
    path : checkpoint for its `load_model`, empty for its own default
    options : keyword arguments for its `load_model`, beyond the HEAR API
    device : to move the model to

    Yields
    ------
    finding : a rule that holds, or a note on what HEAR advises against

    Raises
    ------
    OptionError : the module cannot be imported or lacks a function
    ContractError : a rule is broken
    """
    module = import_hear(name)
    yield f"module {name} has {', '.join(FUNCTIONS)}"
    model = _load(module, path, options or {})
    yield from _check_attributes(model)
    model = model.to(device)
    for seconds in SCENE_SECONDS:
        _check_scenes(module, model, _noise(seconds, model.sample_rate, device))
        yield f"scene embeddings of {N_SOUNDS} clips of {seconds} s: float32, {(N_SOUNDS, model.scene_embedding_size)}"
    for seconds in TIMESTAMP_SECONDS:
        yield from _check_timestamps(module, model, _noise(seconds, model.sample_rate, device), seconds)


def _require(holds: bool, rule: str, found: object) -> None:
    if not holds:
        raise ContractError(f"{rule}; found {found}")


def _load(module: ModuleType, path: str, options: Mapping[str, Any]) -> Any:
    signature = inspect.signature(module.load_model)
    first = next(iter(signature.parameters.values()), None)
    takes_path = first is not None and first.kind in (first.POSITIONAL_ONLY, first.POSITIONAL_OR_KEYWORD)
    _require(takes_path, "the first argument of load_model is the path of a checkpoint", signature)
    with silenced():
        model = module.load_model(path, **options) if path else module.load_model(**options)
    _require(isinstance(model, torch.nn.Module), "load_model returns a torch.nn.Module", type(model).__name__)
    return model


def _check_attributes(model: Any) -> Iterator[str]:
    rate = getattr(model, "sample_rate", None)
    allowed = _is_integer(rate) and rate in SAMPLE_RATES
    _require(allowed, f"sample_rate is an integer, one of {', '.join(map(str, SAMPLE_RATES))}", repr(rate))
    yield f"sample_rate is {rate}"
    for name in ("scene_embedding_size", "timestamp_embedding_size"):
        size: Any = getattr(model, name, None)
        _require(_is_integer(size) and size > 0, f"{name} is an integer above 0", repr(size))
        yield f"{name} is {size}"


def _is_integer(value: Any) -> bool:
    return isinstance(value, numbers.Integral) and not isinstance(value, bool)


def _noise(seconds: float, sample_rate: int, device: torch.device | str) -> Tensor:
    """Make clips of white noise in [-1, 1], the same every time: (N_SOUNDS, samples)."""
    generator = torch.Generator().manual_seed(0)
    noise = torch.rand(N_SOUNDS, int(seconds * sample_rate), generator=generator) * 2 - 1
    return noise.to(device)


def _check_tensor(value: object, what: str, shape: tuple[int | None, ...]) -> None:
    """Require a finite tensor of a shape, in which None is any size above 0."""
    _require(isinstance(value, Tensor), f"{what} are a torch.Tensor", type(value).__name__)
    assert isinstance(value, Tensor)
    fits = value.ndim == len(shape) and all(
        size == wanted if wanted is not None else size > 0 for size, wanted in zip(value.shape, shape, strict=True)
    )
    _require(fits, f"{what} have shape {shape}".replace("None", "n_timestamps"), tuple(value.shape))
    _require(bool(value.isfinite().all()), f"{what} are finite", "NaN or Inf")


def _check_scenes(module: ModuleType, model: Any, audio: Tensor) -> None:
    with silenced(), torch.no_grad():
        embeddings = module.get_scene_embeddings(audio, model)
    _check_tensor(embeddings, "scene embeddings", (len(audio), model.scene_embedding_size))
    _require(embeddings.dtype == torch.float32, "scene embeddings are float32", embeddings.dtype)


def _check_timestamps(module: ModuleType, model: Any, audio: Tensor, seconds: float) -> Iterator[str]:
    with silenced(), torch.no_grad():
        result = module.get_timestamp_embeddings(audio, model)
    is_pair = isinstance(result, tuple) and len(result) == 2
    _require(is_pair, "get_timestamp_embeddings returns embeddings and timestamps", type(result).__name__)
    embeddings, timestamps = result
    _check_tensor(embeddings, "timestamp embeddings", (len(audio), None, model.timestamp_embedding_size))
    _require(embeddings.dtype == torch.float32, "timestamp embeddings are float32", embeddings.dtype)
    _check_tensor(timestamps, "timestamps", tuple(embeddings.shape[:2]))
    times_ms = timestamps.double().cpu()
    _check_times(times_ms, 1000 * seconds)
    shape = tuple(embeddings.shape)
    yield f"timestamp embeddings of {N_SOUNDS} clips of {seconds} s: float32, {shape}, regular, within the clip"
    hop_ms = float(times_ms.diff().mean()) if times_ms.shape[1] > 1 else math.inf
    if hop_ms > ADVISED_HOP_MS:
        yield f"note: timestamps are {hop_ms:g} ms apart; HEAR advises at most {ADVISED_HOP_MS:g} ms"


def _check_times(times_ms: Tensor, duration_ms: float) -> None:
    """Require timestamps (n_sounds, n_timestamps) that increase regularly within the clip."""
    first, last = float(times_ms.min()), float(times_ms.max())
    _require(first >= 0 and last <= duration_ms, f"timestamps lie within 0 and {duration_ms:g} ms", (first, last))
    gaps = times_ms.diff()
    if gaps.numel():
        _require(bool((gaps > 0).all()), "timestamps increase", f"a step of {float(gaps.min()):g} ms")
        deviation = float((gaps - gaps.mean()).abs().max())
        rule = f"timestamps are regular within {IRREGULARITY_MS:g} ms"
        _require(deviation <= IRREGULARITY_MS, rule, f"a deviation of {deviation:g} ms")
    same = bool((times_ms == times_ms[:1]).all())
    _require(same, "clips of equal length have equal timestamps", "different ones")
