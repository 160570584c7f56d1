"""Which outputs a run has: where they go, what they are called, what is in each, which sources are whose."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from ..embedding.pipeline import Model
from ..errors import OptionError
from .formats import DTYPES, FILES, TABLES
from .items import Content, FolderOfFiles, Job
from .sources import Source, name_outputs
from .table_output import TableOfParts

Output = FolderOfFiles | TableOfParts

SETTINGS_OF_OTHERS = {"scene": ("timestamps", "hop_ms", "framing"), "timestamps": ("scene",)}
"""What an embedder's provenance says about the other kind of embeddings, which has no part in these."""

TABLE_NAME = "embeddings"
"""Name of the file that holds all sources, where the user names only its folder."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several runs that share the sources: which, counted from 0, of how many."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise OptionError(
                f"shard={self.index}/{self.count} is none of {self.count}; they count from 0: choose 0/{self.count} to "
                f"{max(0, self.count - 1)}/{self.count}"
            )

    @property
    def suffix(self) -> str:
        """What its own files are called: "-0-of-8", nothing if there is only one."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    def has(self, name: str) -> bool:
        """Tell whether an output is its own: by the name, so that more inputs do not move others."""
        return int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) % self.count == self.index


ALL = Shard()


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the outputs of a run go.

    Attributes
    ----------
    folder : of all of them
    file : name of the one output, None if each source has its own
    format : a key of `formats.FILES` or `formats.TABLES`
    shard : whose they are
    """

    folder: Path
    file: str | None
    format: str
    shard: Shard

    @staticmethod
    def of(out: Path, format: str, shard: Shard) -> Destination:
        """Tell a folder from the one output, see `extract`."""
        form = {**FILES, **TABLES}[format]
        is_file = out.suffix.lower() in form.suffixes and not out.is_dir()
        folder, file = (out.parent, out.name) if is_file else (out, None)
        if format in TABLES:
            name = PurePath(file or f"{TABLE_NAME}{form.suffixes[0]}")
            file = f"{name.stem}{shard.suffix}{name.suffix}"
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder} is a file; outputs need a folder, so choose another name")
        return Destination(folder, file, format, shard)

    def names(self, sources: Sequence[Source]) -> list[PurePath]:
        """Give the name of every source's output; in a table, its own name."""
        if self.format in TABLES:
            return name_outputs(sources, "")
        if self.file is None:
            return name_outputs(sources, FILES[self.format].suffixes[0])
        if len(sources) > 1:
            raise OptionError(
                f"{self.folder / self.file} is one file for {len(sources)} inputs; give a folder, or a .parquet file "
                "for them all"
            )
        return [PurePath(self.file)] * len(sources)

    @property
    def failures(self) -> Path:
        """Give the list of what failed."""
        return self.folder / f"failures{self.shard.suffix}.jsonl"

    def output(self, content: Content, *, overwrite: bool, scratch: Path) -> Output:
        """Make an output."""
        folder = self.folder / f"layer={content.layer}" if content.separate else self.folder
        if self.format in TABLES:
            assert self.file is not None
            table = TABLES[self.format](content.settings, content.layer, partitioned=content.separate)
            return TableOfParts(folder / self.file, table, content, overwrite=overwrite)
        form = FILES[self.format](content.settings)
        return FolderOfFiles(folder, form, content, overwrite=overwrite, shard=self.shard.suffix, scratch=scratch)


def items_of(sources: Sequence[Source], where: Destination, shard: Shard) -> tuple[list[Job], list[Source]]:
    """Name the outputs of the sources that a shard has; and give those that are not to be had."""
    found = [source for source in sources if source.error is None]
    items = [Job(source, name) for source, name in zip(found, where.names(found), strict=True)]
    failed = [source for source in sources if source.error is not None]
    return (
        [item for item in items if shard.has(item.key)],
        [source for source in failed if shard.has(str(source.path))],
    )


def contents_of(model: Model, *, timestamps: bool, apart: bool, dtype: str = DTYPES[0]) -> list[Content]:
    """Say what is written of every embedding, and what made it: all of it, or each layer as if it were the only one.

    Raises
    ------
    OptionError : `apart` for a model of others, or `dtype` is unknown
    """
    if dtype not in DTYPES:
        raise OptionError(f"dtype={dtype!r} is unknown; choose one of {', '.join(DTYPES)}")
    kind = "timestamps" if timestamps else "scene"
    stored_as = {} if dtype == DTYPES[0] else {"dtype": dtype}
    made_by = {key: value for key, value in model.provenance().items() if key not in SETTINGS_OF_OTHERS[kind]}
    settings = {"embedding": kind, **made_by, **stored_as}
    window_ms = model.longest_window_ms(timestamps=timestamps)
    columns = model.columns(timestamps=timestamps)
    if not apart:
        return [Content(settings, ",".join(columns) or None, dtype=dtype, window_ms=window_ms)]
    if not model.layers:
        raise OptionError("layers apart are for the models of this package; the HEAR API does not say what is what")
    contents = []
    for layer in model.layers:
        others = {*model.layers} - {layer}
        places = sorted(i for name, positions in columns.items() if name not in others for i in positions)
        made_with = _without(settings, others)
        contents.append(Content(made_with, layer, _as_slice(places), dtype, window_ms, separate=True))
    return contents


def _without(settings: dict[str, Any], layers: set[str]) -> dict[str, Any]:
    """Give the settings of a model without some of its layers."""

    def reduced(readout: dict[str, Any]) -> dict[str, Any]:
        return {**readout, "layers": [layer for layer in readout["layers"] if layer not in layers]}

    if "scene" in settings:
        return {**settings, "scene": reduced(settings["scene"])}
    readouts = [reduced(readout) for readout in settings["timestamps"]]
    return {**settings, "timestamps": [readout for readout in readouts if readout["layers"]]}


def _as_slice(places: list[int]) -> slice | list[int]:
    """Give positions as a slice if they follow each other: then nothing is copied."""
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else places
