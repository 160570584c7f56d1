"""Output folder: one file per source, with resume. Each file says what made it, and of which audio."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from ..embedding.pipeline import Embedded
from ..errors import HearTransformersError, OptionError
from .formats import AUDIO, Content, ExistingOutput, FileFormat, mismatch_of, stored
from .sources import Source

NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP)
"""Errors of the system where there is no such file, or where links lead nowhere."""


@dataclass(slots=True)
class FolderOfFiles:
    """One file per source, in a folder.

    Parameters
    ----------
    folder : of the outputs
    format : of the files
    content : what is stored
    overwrite : ignore existing outputs
    scratch : folder for unfinished files
    is_inside : folders of outputs, whether each lies inside `folder`; not to be given
    """

    folder: Path
    format: FileFormat
    content: Content
    overwrite: bool
    scratch: Path
    is_inside: dict[str, bool] = field(default_factory=dict, init=False)

    def __enter__(self) -> FolderOfFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        """Do nothing: every file is finished when it is written."""

    def start(self, jobs: Iterable[Source]) -> None:
        """Do nothing: jobs that are the same share an output."""

    def path(self, job: Source) -> Path:
        """Return the output of a job.

        Raises
        ------
        HearTransformersError : a link leads it out of the folder
        """
        return Path(self._path(job))

    def _path(self, job: Source) -> str:
        """Return the output of a job in text, which takes a quarter of the time of a path."""
        path = os.path.join(self.folder, job.name)
        parent = os.path.dirname(path)
        if parent not in self.is_inside:
            root, place = os.path.realpath(self.folder), os.path.realpath(parent)
            self.is_inside[parent] = os.path.commonpath([root, place]) == root
        if not self.is_inside[parent]:
            raise HearTransformersError(
                f"{path} would lie outside {self.folder}, where a link leads; remove the link, or choose another folder"
            )
        return path

    def existing(self, job: Source) -> ExistingOutput | None:
        """Return the existing output of a job, or None.

        Raises
        ------
        OptionError : it was made with other settings
        """
        if self.overwrite or not _exists(self._path(job)):
            return None
        path = self.path(job)
        made_with = self.format.provenance_of(path)
        if mismatch := mismatch_of(made_with, self.format.provenance, path):
            if isinstance(made_with, dict):
                raise OptionError(mismatch)
            return ExistingOutput(mismatch)
        audio = made_with.get(AUDIO)
        if not isinstance(audio, dict):
            return ExistingOutput()
        wanted = job.audio(sha256="")
        if (audio.get("start"), audio.get("end")) != (wanted["start"], wanted["end"]):
            return ExistingOutput(f"{path} is kept, but is of another part of a file; --overwrite replaces it")
        known = {"sha256": str(audio.get("sha256", "")), "file": str(audio.get("file", ""))}
        return ExistingOutput(**known, is_damaged=bool(audio.get("damaged")))

    def write(self, job: Source, embedded: Embedded) -> tuple[int, ...]:
        """Write the output of a job; return the shape of the embedding."""
        assert embedded.embedding is not None
        arrays = {"embedding": stored(embedded.embedding, self.content.dtype, self.content.columns, self.scratch)}
        if embedded.times_ms is not None:
            assert embedded.spans_ms is not None
            arrays["timestamps"] = 1000.0 * job.start + embedded.times_ms
            spans = {
                name: job.start + each / 1000.0 for name, each in zip(("start", "end"), embedded.spans_ms, strict=True)
            }
            arrays |= {name: seconds for name, seconds in spans.items() if not np.isnan(seconds).any()}
        self.format.write(self.path(job), arrays, job.audio_of(embedded), self.scratch)
        return arrays["embedding"].shape

    def finish(self, jobs: Iterable[Source]) -> None:
        """Do nothing: there is nothing to join."""


def _exists(path: str) -> bool:
    """Return whether a file exists, as `Path.exists` does, in half of the time; raise OSError if nobody knows."""
    try:
        os.stat(path)
    except OSError as error:
        if error.errno in NOT_THERE:
            return False
        raise
    return True
