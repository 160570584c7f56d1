"""The outputs of a run: where they go, their names, the content of each, and which sources belong to which shard."""

from __future__ import annotations

import hashlib
import os
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePath
from typing import Any

from ..audio.levels import MIX
from ..embedding.embedder import columns_of
from ..embedding.pipeline import Described
from ..errors import OptionError
from .folder_output import FolderOfFiles
from .formats import DTYPES, FILES, TABLES, Content, check_dtype, is_folder
from .mixing import MODEL_FOLDER, check_shards, check_unmixed, layer_folder
from .sources import Source, name_outputs, places_of
from .table_output import TableOfParts

Output = FolderOfFiles | TableOfParts

SETTINGS_OF_OTHERS = {"scene": ("timestamps", "hop_ms", "framing"), "timestamps": ("scene",)}
"""Keys of an embedder's provenance that describe the other kind of embeddings only."""

TABLE_NAME = "embeddings"
"""Name of a table if the user names only its folder."""


@dataclass(frozen=True, slots=True)
class Shard:
    """One of several runs that share the sources: which, counted from 0, of how many."""

    index: int = 0
    count: int = 1

    def __post_init__(self) -> None:
        if not 0 <= self.index < self.count:
            raise OptionError(
                f"shard={self.index}/{self.count} does not exist; shards count from 0: choose 0/{self.count} to "
                f"{max(0, self.count - 1)}/{self.count}"
            )

    @property
    def suffix(self) -> str:
        """What the names of its files end in: "-0-of-8", empty if there is only one shard."""
        return "" if self.count == 1 else f"-{self.index}-of-{self.count}"

    def has(self, name: str) -> bool:
        """Return True if an output belongs to it: by a hash of the name, so that more inputs do not move others."""
        return self.count == 1 or int(hashlib.sha256(os.fsencode(name)).hexdigest(), 16) % self.count == self.index


ALL = Shard()


@dataclass(frozen=True, slots=True)
class OutputOptions:
    """How embeddings are stored.

    Attributes
    ----------
    format : a key of `formats.FILES` or `formats.TABLES`
    dtype : of the numbers, one of `formats.DTYPES`
    separate_layers : write each layer of the model to its own folder, ``layer=8``, as if it were the only one
    overwrite : overwrite existing outputs
    shard : which sources are embedded; the others are left to other runs, which may write to the same place
    """

    format: str = next(iter(FILES))
    dtype: str = DTYPES[0]
    separate_layers: bool = False
    overwrite: bool = False
    shard: Shard = ALL


@dataclass(frozen=True, slots=True)
class Destination:
    """Where the outputs of a run go.

    Attributes
    ----------
    folder : of all of them
    file : name of the one output, None if each source has its own
    options : how they are stored
    """

    folder: Path
    file: str | None
    options: OutputOptions

    @staticmethod
    def of(out: str | os.PathLike[str], options: OutputOptions) -> Destination:
        """Return the destination of a path, which names a folder or the one output, see `extract`."""
        suffixes = {**FILES, **TABLES}[options.format].suffixes
        path = Path(out)
        is_file = path.suffix.lower() in suffixes and not is_folder(out)
        folder, file = (path.parent, path.name) if is_file else (path, None)
        if options.format in TABLES:
            name = PurePath(file or f"{TABLE_NAME}{suffixes[0]}")
            file = f"{name.stem}{options.shard.suffix}{name.suffix}"
        if folder.exists() and not folder.is_dir():
            raise OptionError(f"{folder} is a file; outputs need a folder, so choose another name")
        return Destination(folder, file, options)

    def within(self, folder: str) -> Destination:
        """Return the same in a folder of its folder, itself without a name."""
        return replace(self, folder=self.folder / folder)

    def names(self, sources: Sequence[Source]) -> list[PurePath]:
        """Return the name of every source's output; in a table, a unique name of the source."""
        if self.options.format in TABLES:
            return name_outputs(sources, "")
        if self.file is None:
            return name_outputs(sources, FILES[self.options.format].suffixes[0])
        if len(sources) > 1:
            raise OptionError(
                f"{self.folder / self.file} is one file for {len(sources)} inputs; give a folder, or a .parquet file "
                "for them all"
            )
        return [PurePath(self.file)] * len(sources)

    def check_unmixed(self, contents: list[Content], jobs: Sequence[Source]) -> None:
        """Refuse to write beside outputs of other settings, see `mixing`; an output that the user names is alone."""
        options, own, written = self.options, set(), set()
        is_named = self.file is not None and PurePath(self.file).stem != f"{TABLE_NAME}{options.shard.suffix}"
        tables = TABLE_NAME
        for content in contents:
            folder = self.folder / layer_folder(content)
            if options.format in TABLES:
                assert self.file is not None
                check_shards(folder / self.file, options.shard.count)
                own.add(folder / self.file)
                tables = PurePath(self.file).stem.removesuffix(options.shard.suffix)
                continue
            parents = map(PurePath, {os.path.dirname(job.name) for job in jobs})
            written |= {folder / parent for each in parents for parent in (each, *each.parents)}
            if options.overwrite:
                own |= {folder / job.name for job in jobs}
        if options.format in TABLES or not is_named:
            check_unmixed(self.folder, contents, tables, own, written, files=not is_named)

    def output(self, content: Content, scratch: Path) -> Output:
        """Return the output of a content; `scratch` is a folder for unfinished files."""
        folder = self.folder / layer_folder(content)
        overwrite = self.options.overwrite
        if self.options.format in TABLES:
            assert self.file is not None
            table = TABLES[self.options.format](content.settings, content.layer, partitioned=content.separate)
            return TableOfParts(folder / self.file, table, content, overwrite=overwrite)
        files = FILES[self.options.format](content.settings)
        return FolderOfFiles(folder, files, content, overwrite=overwrite, scratch=scratch)


def jobs_of(sources: Sequence[Source], destination: Destination) -> tuple[list[Source], list[Source]]:
    """Return the jobs of a shard, sources with the names of their outputs, and its sources that cannot be read.

    Sources that are the same part of a file are jobs of the same name, and so of the same output.
    """
    shard = destination.options.shard
    found = [source for source in sources if source.error is None]
    places = places_of(found)
    once = dict(zip(reversed(places), reversed(found), strict=True))  # the first of each place
    firsts = [once[place] for place in dict.fromkeys(places)]
    names = dict(zip(dict.fromkeys(places), destination.names(firsts), strict=True))
    jobs = [replace(source, name=names[place]) for source, place in zip(found, places, strict=True)]
    failed = [source for source in sources if source.error is not None and shard.has(str(source.path))]
    return [job for job in jobs if shard.count == 1 or shard.has(job.key)], failed


def model_folders(models: Sequence[Described]) -> list[str]:
    """Return the folder of each of several models, ``model=passt-base``; of one model, none.

    Such folders are partitions, as those of layers are, for what reads a folder of tables; below them, all is as if the
    model were alone there, and no name of an input's folder is likely to be the same.

    Raises
    ------
    OptionError : a model is there twice
    """
    if len(models) == 1:
        return [""]
    names = ["-".join(each.name) if isinstance(each.name, tuple) else each.name for each in models]
    names = [name.replace("/", "-") for name in names]  # of a repository of Hugging Face
    for name in names:
        if names.count(name) > 1:
            raise OptionError(f"{name} is there twice among the models; name each once")
    return [f"{MODEL_FOLDER}{name}" for name in names]


def contents_of(
    model: Described, *, timestamps: bool, apart: bool, dtype: str, channel: int | str = MIX
) -> list[Content]:
    """Return the content of each output: the whole embedding, or each layer as if it were the only one.

    Raises
    ------
    OptionError : `apart` for a model of another package, or `dtype` is unknown
    """
    check_dtype(dtype)
    kind = "timestamps" if timestamps else "scene"
    made_by = model.provenance()
    if timestamps or "scene" in made_by:  # else scenes are the mean over the timestamps
        made_by = {key: value for key, value in made_by.items() if key not in SETTINGS_OF_OTHERS[kind]}
    heard = {} if channel == MIX else {"channel": channel}
    settings = {"embedding": kind, **made_by, **heard, "dtype": dtype}
    columns = model.columns(timestamps=timestamps)
    if not apart:
        return [Content(settings, ",".join(columns) or None, dtype=dtype)]
    if not model.layers:
        raise OptionError("separate layers need a model of this package; the HEAR API does not tell layers apart")
    contents = []
    for layer in model.layers:
        places = _as_slice(columns_of(columns, layer, model.layers))
        others = {*model.layers} - {layer}
        contents.append(Content(_without(settings, others), layer, places, dtype, separate=True))
    return contents


def _without(settings: dict[str, Any], layers: set[str]) -> dict[str, Any]:
    """Return the settings of a model without some of its layers."""

    def reduced(readout: dict[str, Any]) -> dict[str, Any]:
        return {**readout, "layers": [layer for layer in readout["layers"] if layer not in layers]}

    if "scene" in settings:
        return {**settings, "scene": reduced(settings["scene"])}
    readouts = [reduced(readout) for readout in settings["timestamps"]]
    return {**settings, "timestamps": [readout for readout in readouts if readout["layers"]]}


def _as_slice(places: list[int]) -> slice | list[int]:
    """Return consecutive positions as a slice, which copies nothing."""
    first, last = places[0], places[-1] + 1
    return slice(first, last) if places == list(range(first, last)) else places
