"""Output folder: one file per source, with resume. Each file says what made it, and of which audio."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from ..embedding.pipeline import Embedded
from ..errors import HearTransformersError
from .formats import AUDIO, FileFormat, stored
from .items import Content, ExistingOutput, Job, mismatch_of


class FolderOfFiles:
    """One file per source, in a folder.

    Parameters
    ----------
    folder : of the outputs
    format : of the files
    content : what is stored
    overwrite : ignore existing outputs
    scratch : folder for unfinished files
    """

    def __init__(self, folder: Path, format: FileFormat, content: Content, *, overwrite: bool, scratch: Path) -> None:
        self.folder = folder
        self.format = format
        self.content = content
        self.overwrite = overwrite
        self.scratch = scratch
        self.is_inside: dict[Path, bool] = {}

    def __enter__(self) -> FolderOfFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        """Do nothing: every file is finished when it is written."""

    def path(self, job: Job) -> Path:
        """Return the output of a job.

        Raises
        ------
        HearTransformersError : a link leads it out of the folder
        """
        path = self.folder / job.name
        if path.parent not in self.is_inside:
            root, place = os.path.realpath(self.folder), os.path.realpath(path.parent)
            self.is_inside[path.parent] = os.path.commonpath([root, place]) == root
        if not self.is_inside[path.parent]:
            raise HearTransformersError(
                f"{path} would lie outside {self.folder}, where a link leads; remove the link, or choose another folder"
            )
        return path

    def existing(self, job: Job) -> ExistingOutput | None:
        """Return the existing output of a job, or None."""
        path = self.path(job)
        if self.overwrite or not path.exists():
            return None
        made_with = self.format.provenance_of(path)
        if mismatch := mismatch_of(made_with, self.format.provenance, path):
            return ExistingOutput(mismatch)
        audio = made_with.get(AUDIO)
        if not isinstance(audio, dict):
            return ExistingOutput()
        wanted = job.audio(sha256="")
        if (audio.get("start"), audio.get("end")) != (wanted["start"], wanted["end"]):
            return ExistingOutput(f"{path} is kept, but is of another part of a file; use overwrite to replace it")
        return ExistingOutput(sha256=str(audio.get("sha256", "")), file=str(audio.get("file", "")))

    def write(self, job: Job, embedded: Embedded) -> tuple[int, ...]:
        """Write the output of a job; return the shape of the embedding."""
        assert embedded.embedding is not None
        embedding = stored(embedded.embedding, self.content.dtype, self.content.columns, self.scratch)
        times_ms = None if embedded.times_ms is None else 1000.0 * job.source.start + embedded.times_ms
        self.format.write(self.path(job), embedding, times_ms, job.audio(embedded.sha256), self.scratch)
        return embedding.shape

    def finish(self, jobs: Iterable[Job]) -> None:
        """Do nothing: there is nothing to join."""
