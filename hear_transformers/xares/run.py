"""X-ARES as it is, but for its reader of audio: that of this package, and what it cannot read is an error.

xares 0.1.3 decodes by ``torchaudio.load``, which since torchaudio 2.9 needs torchcodec. Where that fails, webdataset
warns and goes on: tasks of zero clips are marked as encoded. Here every clip is decoded and resampled as everywhere in
this package; a task is marked only if all of its clips were encoded, and the embeddings and scores kept for a class
must be those of the model that the class is now. Nothing in X-ARES' files is changed.
"""

from __future__ import annotations

import contextlib
import json
from argparse import Namespace
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from .. import FAMILIES, catalogue
from ..audio.reading import read_content
from ..errors import HearTransformersError, OptionError, import_extra
from . import module_of

SUFFIXES = ("flac", "mp3", "sox", "wav", "m4a", "ogg", "wma")
"""Of the files in a tar of X-ARES that are audio: create_rawaudio_webdataset, audiowebdataset.py."""

MADE_BY = "hear_transformers.json"
"""File beside the embeddings of a task that says what made them."""

FEW = 5
"""Clips that an error names; it counts the others."""


class HarnessError(HearTransformersError):
    """X-ARES did not do all that it was asked for."""


# Reading


def decode(suffix: str, content: bytes, *, sample_rate: int) -> tuple[Tensor, int] | None:
    """Decode a file of a tar to a mono waveform, in the place of webdataset.torch_audio.

    Parameters
    ----------
    suffix : of its name, with a dot
    content : of the file
    sample_rate : of the waveform, in Hz

    Returns
    -------
    waveform, sample_rate : (samples,) float32; None of a file that is no audio

    Raises
    ------
    AudioError : it cannot be decoded
    """
    if suffix.removeprefix(".") not in SUFFIXES:
        return None
    return read_content(content, suffix, sample_rate)


class Failures:
    """Collects what webdataset fails on, as one of its handlers; it goes on with the next clip."""

    def __init__(self) -> None:
        self.messages: list[str] = []

    def __call__(self, error: Exception) -> bool:
        """Note an error, of a clip if it is webdataset's DecodingError; return True, which means to go on."""
        cause = error.__cause__ or error
        what = str(cause) if isinstance(cause, HearTransformersError) else f"{type(cause).__name__}: {cause}"
        clip = getattr(error, "key", None)
        self.messages.append(f"{clip} in {Path(error.url).name}: {what}" if clip else what)  # type: ignore[attr-defined]
        return True

    def check(self, n_clips: int, files: Sequence[str]) -> None:
        """Raise HarnessError if anything failed, or nothing was read of the tars `files`."""
        if self.messages:
            shown = "; ".join(self.messages[:FEW])
            more = f"; and {len(self.messages) - FEW} more" if len(self.messages) > FEW else ""
            raise HarnessError(
                f"{len(self.messages)} failed beside {n_clips} clips of {', '.join(files)}: {shown}{more}. The task is "
                "not marked as encoded; repair or remove these, and run it again"
            )
        if not n_clips:
            raise HarnessError(f"{', '.join(files)}: no clips; the task is not marked as encoded")


def read_batches(
    files: Sequence[str], *, target_sample_rate: int, num_workers: int = 0, **how: Any
) -> Iterator[tuple[Any, ...]]:
    """Yield the batches of X-ARES' create_rawaudio_webdataset, decoded by this package; see there for parameters.

    Decoding is done in this process, where failures are counted, as it is in all of X-ARES that is started by its main.

    Raises
    ------
    HarnessError : behind the last batch, if there were failures or no clips
    """
    data = import_extra("X-ARES", "xares.audiowebdataset", "xares").audiowebdataset
    failures = Failures()
    if not data.expand_with_brace(files):
        failures.check(0, files)
    with (
        patch.object(data, "Audiowebdataset", partial(data.Audiowebdataset, handler=failures)),
        patch.object(data.wds, "torch_audio", partial(decode, sample_rate=target_sample_rate)),
    ):
        batches = data.create_rawaudio_webdataset(files, target_sample_rate=target_sample_rate, num_workers=0, **how)
    n_clips = 0
    for batch in batches:
        n_clips += len(batch[-1])
        yield batch
    failures.check(n_clips, files)


# What is kept


def check_kept(task: Any) -> None:
    """Raise HarnessError unless the embeddings kept for a task are those of its encoder.

    Encoders that do not say what they are, those of others, are not asked.
    """
    wanted = _described(task.encoder)
    if wanted is None:
        return
    made_by = task.encoded_tar_dir / MADE_BY
    found = json.loads(made_by.read_text(encoding="utf-8")) if made_by.exists() else None
    if found == wanted:
        return
    what = "another model, or other options" if found else "a program that does not say what made them"
    raise HarnessError(
        f"{task.encoded_tar_dir} holds embeddings of {what}, not those of {task.encoder_name} as it is now; give the "
        f"class another name, or remove that folder and {task.ckpt_dir}"
    )


def _described(encoder: Any) -> Any:
    """Return what made embeddings as it will be read from JSON; None of an encoder that does not say."""
    provenance = getattr(encoder, "provenance", None)
    return None if provenance is None else json.loads(json.dumps(provenance()))


def make_encoded_tar(task: Any, original: Callable[[Any], None]) -> None:
    """Encode the clips of a task by X-ARES' method; raise HarnessError if it did not, or kept those of another."""
    if task.encoded_ready_path.exists() and not task.config.force_encode:
        check_kept(task)
    elif (described := _described(task.encoder)) is not None:
        (task.encoded_tar_dir / MADE_BY).write_text(json.dumps(described, indent=1), encoding="utf-8")
    original(task)
    _check_encoded(task)


def run_mlp(task: Any, original: Callable[[Any], tuple[float, int]]) -> tuple[float, int]:
    """Score a task by X-ARES' method; raise HarnessError if its embeddings are missing, or those of another."""
    _check_encoded(task)
    check_kept(task)
    return original(task)


def _check_encoded(task: Any) -> None:
    if not task.encoded_ready_path.exists():
        raise HarnessError(
            f"{task.config.name} has no embeddings of {task.encoder_name}; its audio must lie in {task.env_dir}, with "
            f"{task.config.xares_settings.audio_ready_filename} beside it, and be encoded by --from-stage 1"
        )


# X-ARES


def _patches(xares: Any) -> list[Any]:
    """Return what lets X-ARES read by this package, to be entered or started."""
    kind = xares.task.XaresTask
    encode, score = kind.make_encoded_tar, kind.run_mlp
    return [
        patch.object(xares.task, "create_rawaudio_webdataset", read_batches),
        patch.object(kind, "make_encoded_tar", lambda task: make_encoded_tar(task, encode)),
        patch.object(kind, "run_mlp", lambda task: run_mlp(task, score)),
    ]


def adapt() -> None:
    """Make X-ARES read by this package in this process, one that it has started itself, and that ends with it."""
    for each in _patches(import_extra("X-ARES", "xares.run", "xares")):
        each.start()


def run(encoder: str, tasks: Sequence[str], *, max_jobs: int = 0, from_stage: int = 0, to_stage: int = 2) -> None:
    """Run X-ARES' main, once in a process: it sets how processes are started.

    Parameters
    ----------
    encoder : a model ("passt", "panns/cnn14"), or a module or file as X-ARES takes it
    tasks : modules or files, such as ``tasks/esc50_task.py``
    max_jobs : processes, on the GPUs by turns; 0 for this one alone
    from_stage, to_stage : 0 fetches audio, 1 encodes it, 2 scores

    Raises
    ------
    OptionError : X-ARES is not installed, or cannot run so
    HarnessError : something was not done, which X-ARES itself no more than logs
    """
    xares = import_extra("X-ARES", "xares.run", "xares")
    if max_jobs and not torch.cuda.is_available():
        raise OptionError(f"max_jobs={max_jobs}: X-ARES gives each process a GPU, and there is none; choose 0")
    if _is_own(encoder):
        encoder = module_of(encoder)
    how = {"max_jobs": max_jobs, "from_stage": from_stage, "to_stage": to_stage}
    errors: list[str] = []
    theirs = xares.run
    log = theirs.logger.error

    def note(message: Any) -> None:
        errors.append(str(message))
        log(message)

    pools = SimpleNamespace(Pool=partial(theirs.mp.Pool, initializer=adapt), Manager=theirs.mp.Manager)
    with contextlib.ExitStack() as adapted:
        for each in (*_patches(xares), patch.object(theirs, "mp", pools), patch.object(theirs.logger, "error", note)):
            adapted.enter_context(each)
        theirs.main(Namespace(encoder_py=encoder, tasks_py=[*tasks], **how))
    if errors:
        raise HarnessError(f"X-ARES ended with: {'; '.join(errors)}")


def _is_own(encoder: str) -> bool:
    """Return True for the name of a model; files, and modules such as "hear_transformers.xares.passt", are X-ARES'."""
    if encoder.endswith(".py") or encoder.startswith(f"{catalogue.PACKAGE}."):
        return False
    return encoder.partition("/")[0] in FAMILIES or ("/" not in encoder and catalogue.is_own(encoder))
