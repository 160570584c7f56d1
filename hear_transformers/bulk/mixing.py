"""One folder holds embeddings of one kind: outputs of other settings are refused before anything is embedded.

Compared is the provenance of one output that lies there already, of each folder of a layer and of the rest: what one
run writes is alike, and each run is compared.
"""

from __future__ import annotations

import os
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from ..errors import OptionError
from .formats import AUDIO, FILES, TABLES, Content, mismatch_of

MOST_ENTRIES = 100_000
"""Files and folders that are looked at for one output: a tenth of a second."""

MOST_OTHERS = 100
"""Files of NumPy that are opened and turn out to be no output."""

LAYER_FOLDER = "layer="
"""What the name of the folder of a separate layer begins with."""

MODEL_FOLDER = "model="
"""What the name of the folder of one of several models begins with."""

SHARD = re.compile(r"-\d+-of-(\d+)$")
"""End of the name of a shard's table."""


def layer_folder(content: Content) -> str:
    """Return the folder of a content below that of all outputs, empty for that folder itself."""
    return f"{LAYER_FOLDER}{content.layer}" if content.separate else ""


def check_unmixed(
    folder: Path, contents: list[Content], tables: str, own: set[Path], written: set[Path], *, files: bool
) -> None:
    """Refuse to write beside outputs of other settings.

    Parameters
    ----------
    folder : of all outputs
    contents : what is to be written
    tables : name of the tables to compare, without the end that names a shard, and without suffix; empty for none
    own : outputs that are compared on their own, or replaced
    written : folders that are written to: of the current folder, which is nobody's choice of a place for one kind of
        embeddings, no others are looked at, as other runs may have been given them
    files : whether outputs of single files are compared

    Raises
    ------
    OptionError : an output was made with other settings, which are named, or holds a shard of another count
    """
    if not folder.is_dir():
        return
    by_folder = {folder / layer_folder(content): content for content in contents}
    groups = [folder, *(each for each in sorted(folder.glob(f"{LAYER_FOLDER}*")) if each.is_dir())]
    for group in groups:
        content = by_folder.get(group)
        settings = content.settings if content else _without_layers(contents[0].settings)
        for path, made_with in _outputs(group, tables, own, written, files=files):
            made_with = made_with if content else _without_layers(made_with)
            if problem := mismatch_of(made_with, settings, path):
                raise OptionError(problem)


def check_shards(table: Path, count: int) -> None:
    """Refuse to write a table of a shard beside those of another count: rows would be there twice.

    Parameters
    ----------
    table : of this run
    count : of its shards
    """
    for path in _tables(table.parent, SHARD.sub("", table.stem)):
        found = SHARD.search(path.stem)
        n_shards = int(found[1]) if found else 1
        if path.suffix == table.suffix and n_shards != count and _provenance_of(path):
            raise OptionError(
                f"{path} holds a share of {n_shards}, and --shard asks for one of {count}: rows would stand twice; "
                f"give --shard I/{n_shards}, another --out, or remove it"
            )


def _outputs(
    group: Path, tables: str, own: set[Path], written: set[Path], *, files: bool
) -> Iterator[tuple[Path, dict[str, Any]]]:
    """Find outputs and what made them: the tables, and one file."""
    for path in _tables(group, tables) if tables else ():
        if path not in own and (made_with := _provenance_of(path)):
            yield path, made_with
    if not files:
        return
    suffixes = tuple(suffix for form in FILES.values() for suffix in form.suffixes)
    n_others = 0
    for path in _walk(group, written if group.resolve() == Path.cwd() else None):
        if path.suffix in suffixes and path not in own:
            if made_with := _provenance_of(path):
                yield path, made_with
                return
            n_others += 1
            if n_others == MOST_OTHERS:
                return


def _walk(folder: Path, within: set[Path] | None = None) -> Iterator[Path]:
    """Find files in a folder and below, of all folders or of some; but for hidden ones, links and folders of layers."""
    n_entries = 0
    for parent, subfolders, names in os.walk(folder):
        subfolders[:] = [name for name in subfolders if not name.startswith((".", LAYER_FOLDER))]
        if within is not None:
            subfolders[:] = [name for name in subfolders if Path(parent, name) in within]
        n_entries += len(subfolders) + len(names)
        if n_entries > MOST_ENTRIES:
            return
        yield from (Path(parent, name) for name in names if not name.startswith("."))


def _tables(folder: Path, name: str) -> Iterator[Path]:
    """Find the tables of a name in a folder, whole or of shards, of any format."""
    suffixes = [suffix for form in TABLES.values() for suffix in form.suffixes]
    for path in sorted(folder.iterdir()) if folder.is_dir() else ():
        if path.suffix in suffixes and SHARD.sub("", path.stem) == name:
            yield path


def _provenance_of(path: Path) -> dict[str, Any] | None:
    """Read what made an output, None if it is no output, or of a format whose package is not installed."""
    made_with: Any = None
    for form in FILES.values():
        if path.suffix in form.suffixes:
            made_with = form.provenance_of(path)
    for table in TABLES.values():
        if path.suffix in table.suffixes:
            try:
                made_with = table({}).provenance_of(path)
            except OptionError:
                return None
    return made_with if isinstance(made_with, dict) and "embedding" in made_with else None


def _without_layers(settings: dict[str, Any]) -> dict[str, Any]:
    """Return settings without the names of layers: those of other layers of the same model are alike."""

    def reduced(value: Any) -> Any:
        return {key: each for key, each in value.items() if key != "layers"} if isinstance(value, dict) else value

    shown = {key: reduced(value) for key, value in settings.items() if key != AUDIO}
    if isinstance(readouts := settings.get("timestamps"), list):
        shown["timestamps"] = list(map(reduced, readouts))
    return shown
