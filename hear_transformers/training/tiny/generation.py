"""The first pass over the shards: sounds are synthesised, and what is kept of them is their log-mel and phones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ...errors import HearTransformersError
from . import shards, speech, synthesis
from .recipe import Recipe
from .shards import Arrays

ATTEMPTS = 5  # at a shard of speech, see `speech.utterance`


def scene_shard(recipe: Recipe, number: int, attempt: int) -> Arrays:
    """Synthesise scenes; nothing in them can fail, so there is one attempt."""
    del attempt
    clips = (synthesis.scene(recipe.seed, number, i) for i in range(recipe.clips_per_shard))
    return {"mel": shards.log_mels(clips)}


def speech_shard(recipe: Recipe, number: int, attempt: int) -> Arrays:
    """Synthesise speech and its phones."""
    clips = [speech.utterance(recipe.seed, number, i, attempt) for i in range(recipe.clips_per_shard)]
    return {"mel": shards.log_mels(clip for clip, _ in clips), "phones": np.stack([phones for _, phones in clips])}


KINDS: dict[str, Callable[[Recipe, int, int], Arrays]] = {"scenes": scene_shard, "speech": speech_shard}


def shard_count(recipe: Recipe, kind: str) -> int:
    """Give the number of shards of one kind that a recipe trains on."""
    return {"scenes": recipe.scene_shards, "speech": recipe.speech_shards}[kind]


def _write(path: Path, kind: str, recipe: Recipe, number: int, attempt: int) -> None:
    """Make one shard; runs in a process of its own."""
    torch.set_num_threads(1)
    shards.write(path, KINDS[kind](recipe, number, attempt))


def _make(path: Path, kind: str, recipe: Recipe, number: int) -> Path:
    """Make one shard in a fresh process, again if eSpeak NG crashes: its memory is what a repetition starts from."""
    for attempt in range(ATTEMPTS):
        process = multiprocessing.get_context("spawn").Process(
            target=_write, args=(path, kind, recipe, number, attempt)
        )
        process.start()
        process.join()
        if process.exitcode == 0:
            return path
        if process.exitcode is not None and process.exitcode > 0:
            break
    raise HearTransformersError(f"{path.name} could not be made (exit code {process.exitcode}); see the output above")


def synthesise(folder: Path, kind: str, recipe: Recipe, workers: int) -> Iterator[Path]:
    """Make the shards of one kind that are missing: yields each as it is written.

    Parameters
    ----------
    folder : of the shards
    kind : a key of `KINDS`
    recipe : how many there are and what is in them
    workers : processes at a time

    Raises
    ------
    HearTransformersError : eSpeak NG is missing, or a shard could not be made
    """
    if kind == "speech":
        speech.espeak()  # fails here, with a clear word, rather than in every process
    paths = {number: shards.shard_path(folder, kind, number) for number in range(shard_count(recipe, kind))}
    with ThreadPoolExecutor(workers) as pool:
        missing = [(path, number) for number, path in paths.items() if not path.exists()]
        yield from pool.map(lambda job: _make(job[0], kind, recipe, job[1]), missing)
