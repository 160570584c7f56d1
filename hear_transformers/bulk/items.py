"""Where the embeddings of a run go, and what is there already: a folder of files; see `parts` for a table."""

from __future__ import annotations

import math
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..embedding.pipeline import Embedded
from ..errors import HearTransformersError
from . import journal
from .formats import DTYPES, Files, stored
from .journal import Journal
from .sources import Source


@dataclass(frozen=True, slots=True)
class Job:
    """One source and the name of its output.

    Attributes
    ----------
    source : what is embedded
    name : of the output below the output folder; in a table, what tells sources apart
    """

    source: Source
    name: PurePath

    @property
    def key(self) -> str:
        """Tell the item from others in a journal."""
        return f"{self.name.as_posix()}|{self.source.segment}"

    def line(self, sha256: str) -> dict[str, Any]:
        """Make the line of a journal: where the audio was, and its content."""
        return {"file": os.path.abspath(self.source.path), "sha256": sha256}


@dataclass(frozen=True, slots=True)
class ExistingOutput:
    """What is known about an output that is there already.

    Attributes
    ----------
    doubt : why it may not be what is wanted now; empty if it is
    sha256 : of the audio it was made from, empty if nobody knows
    file : where that was
    """

    doubt: str = ""
    sha256: str = ""
    file: str = ""


@dataclass(frozen=True, slots=True)
class Content:
    """Which numbers of the model's embeddings go into an output, and as what.

    Attributes
    ----------
    settings : what makes them, ready for JSON
    layer : which they are of, None if nobody knows
    columns : positions in an embedding, None for all
    dtype : one of `formats.DTYPES`
    window_ms : audio that an embedding along time sees, NaN where nobody knows
    separate : other layers go into other outputs
    """

    settings: dict[str, Any]
    layer: str | None = None
    columns: slice | list[int] | None = None
    dtype: str = DTYPES[0]
    window_ms: float = math.nan
    separate: bool = False


class FolderOfFiles:
    """One file for each source, in a folder.

    Parameters
    ----------
    folder : of the outputs
    form : the format
    content : what is stored
    overwrite : treat what is there as if it were not
    shard : what the journal's name ends in, "-0-of-8"; empty for all sources
    scratch : folder for what is not finished
    """

    def __init__(
        self, folder: Path, form: Files, content: Content, *, overwrite: bool, shard: str, scratch: Path
    ) -> None:
        self.folder = folder
        self.form = form
        self.content = content
        self.overwrite = overwrite
        self.scratch = scratch
        self.inside: dict[Path, bool] = {}
        state = folder / journal.STATE
        self.journal = Journal(state / f"journal{shard}.jsonl", journal.digest(form.provenance))
        own = dict(self.journal.lines)
        for other in sorted(state.glob("journal*.jsonl")):  # of other shards, or of a run of all
            if other != self.journal.path:
                self.journal.read(other)
        self.journal.lines.update(own)

    def __enter__(self) -> FolderOfFiles:
        return self

    def __exit__(self, *error: Any) -> None:
        """Let go of the journal; every file is finished when it is written."""
        self.journal.close()

    def path(self, item: Job) -> Path:
        """Give the output of an item.

        Raises
        ------
        HearTransformersError : a link leads it out of the folder
        """
        path = self.folder / item.name
        if path.parent not in self.inside:
            root, place = os.path.realpath(self.folder), os.path.realpath(path.parent)
            self.inside[path.parent] = os.path.commonpath([root, place]) == root
        if not self.inside[path.parent]:
            raise HearTransformersError(
                f"{path} would lie outside {self.folder}, where a link leads; remove the link, or choose another folder"
            )
        return path

    def held(self, item: Job) -> ExistingOutput | None:
        """Tell what is there already for an item, None if it is to be made."""
        path = self.path(item)
        if self.overwrite or not path.exists():
            return None
        if doubt := doubt_of(self.form.provenance_of(path), self.form.provenance, path):
            return ExistingOutput(doubt)
        line = self.journal.lines.get(item.key, {})
        return ExistingOutput(sha256=line.get("sha256", ""), file=line.get("file", ""))

    def write(self, item: Job, embedded: Embedded) -> tuple[int, ...]:
        """Write the output of an item and note it; gives the shape of the embedding."""
        assert embedded.embedding is not None
        embedding = stored(embedded.embedding, self.content.dtype, self.content.columns, self.scratch)
        times_ms = None if embedded.times_ms is None else 1000.0 * item.source.start + embedded.times_ms
        self.form.write(self.path(item), embedding, times_ms, self.scratch)
        self.journal.add({item.key: item.line(embedded.sha256)})
        return embedding.shape

    def finish(self, items: Iterable[Job]) -> None:
        """Have nothing left to do when all items were tried."""


def doubt_of(made_with: Any, wanted: dict[str, Any], output: Path) -> str:
    """Say whether an output that is there already was made with other settings than those of now."""
    if not isinstance(made_with, dict):
        return f"{output} is kept, but does not say what made it; overwrite makes it anew"
    changed = [key for key in {**wanted, **made_with} if wanted.get(key) != made_with.get(key)]
    if not changed:
        return ""
    return f"{output} is kept, but was made with other settings ({', '.join(changed)}); overwrite makes it anew"
