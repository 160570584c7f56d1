"""The first pass over the shards: synthesise sounds, and keep their log-mels and phones."""

from __future__ import annotations

import multiprocessing
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import torch

from ...errors import HearTransformersError
from ..corpus import scenes, speech
from ..corpus.mels import compute_log_mels
from . import shards
from .recipe import TinyRecipe
from .shards import Arrays

ATTEMPTS = 5  # per shard of speech, see `speech.utterance`


def scene_shard(recipe: TinyRecipe, number: int, attempt: int) -> Arrays:
    """Synthesise scenes; this cannot fail, so there is only one attempt."""
    del attempt
    clips = [scenes.scene(recipe.seed, number, i)[0] for i in range(recipe.clips_per_shard)]
    return {"mel": compute_log_mels(np.stack(clips))}


def speech_shard(recipe: TinyRecipe, number: int, attempt: int) -> Arrays:
    """Synthesise speech and its phones."""
    clips = [speech.utterance(recipe.seed, number, i, attempt) for i in range(recipe.clips_per_shard)]
    return {
        "mel": compute_log_mels(np.stack([clip for clip, _ in clips])),
        "phones": np.array(speech.PHONES)[np.stack([phones for _, phones in clips])],
    }


KINDS: dict[str, Callable[[TinyRecipe, int, int], Arrays]] = {"scenes": scene_shard, "speech": speech_shard}


def _write(path: Path, kind: str, recipe: TinyRecipe, number: int, attempt: int) -> None:
    """Make one shard, in a separate process."""
    torch.set_num_threads(1)
    shards.write_shard(path, KINDS[kind](recipe, number, attempt))


def _make(path: Path, kind: str, recipe: TinyRecipe, number: int) -> Path:
    """Make one shard in a fresh process, so that it is reproducible; retry if eSpeak NG crashes."""
    for attempt in range(ATTEMPTS):
        job = (path, kind, recipe, number, attempt)
        process = multiprocessing.get_context("spawn").Process(target=_write, args=job)
        process.start()
        process.join()
        if process.exitcode == 0:
            return path
        if process.exitcode is not None and process.exitcode > 0:
            break
    raise HearTransformersError(f"{path.name} could not be made (exit code {process.exitcode}); see the output above")


def synthesise(folder: Path, kind: str, recipe: TinyRecipe, workers: int) -> Iterator[Path]:
    """Make the missing shards of one kind, and yield each when it is written.

    Parameters
    ----------
    folder : of the shards
    kind : a key of `KINDS`
    recipe : their number and contents
    workers : concurrent processes

    Raises
    ------
    HearTransformersError : eSpeak NG is missing, or a shard could not be made
    """
    if kind == "speech":
        speech.espeak()  # fails here, with a clear message, rather than in every process
    n_shards = {"scenes": recipe.scene_shards, "speech": recipe.speech_shards}[kind]
    paths = {number: shards.shard_path(folder, kind, number) for number in range(n_shards)}
    with ThreadPoolExecutor(workers) as pool:
        missing = [(path, number) for number, path in paths.items() if not path.exists()]
        yield from pool.map(lambda job: _make(job[0], kind, recipe, job[1]), missing)
