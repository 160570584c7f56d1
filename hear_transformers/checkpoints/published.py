"""The published checkpoints: rows of ``weights/manifest.toml``."""

import functools
import sys
from collections.abc import Mapping
from dataclasses import dataclass, fields
from importlib.resources import files
from pathlib import Path
from typing import Any

from ..errors import WeightsError, did_you_mean
from ..files import hash_of, sha256_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib


TASKS = ("sound events", "events in time", "speech", "music", "bioacoustics", "words", "small", "fast", "exact")
"""What checkpoints are recommended for, in the order that people read: what is heard, then what counts."""


@dataclass(frozen=True, slots=True)
class Checkpoint:
    """One row of ``weights/manifest.toml``, where the meaning of each field is written."""

    family: str
    name: str
    file: str
    licence: str
    url: str | None = None
    bytes: int | None = None
    sha256: str | None = None
    sha256_start: str | None = None
    md5: str | None = None
    source: str | None = None
    trained_on: str | None = None
    metric: str | None = None
    recommended: str | None = None
    take_for: tuple[str, ...] = ()
    embedded: bool = False
    mirrors: tuple[str, ...] = ()

    @property
    def full_hash(self) -> tuple[str, str] | None:
        """Return (algorithm, hash) where the manifest has a whole one."""
        if self.sha256 is not None:
            return "sha256", self.sha256
        return None if self.md5 is None else ("md5", self.md5)

    @property
    def verified_by(self) -> str:
        """Return what a first download is verified by; later loads are verified by its sha256 where this is no hash."""
        if self.full_hash:
            return self.full_hash[0]
        if self.sha256_start:
            return f"sha256[:{len(self.sha256_start)}]"
        return "size" if self.bytes is not None else "nothing"


_, _, *_FIELDS = (field.name for field in fields(Checkpoint))
FIELDS: dict[str, type] = {
    **dict.fromkeys(_FIELDS, str),
    "bytes": int,
    "embedded": bool,
    "mirrors": list,
    "take_for": list,
}
"""Fields of a manifest row and their types; its family and name are those of the table."""


@functools.cache
def manifest() -> Mapping[tuple[str, str], Checkpoint]:
    """Return every published checkpoint by (family, name), in the order of ``weights/manifest.toml``."""
    return parse_manifest((files("hear_transformers.weights") / "manifest.toml").read_text(encoding="utf-8"))


def parse_manifest(text: str) -> dict[tuple[str, str], Checkpoint]:
    """Return the rows of a manifest by (family, name); raise WeightsError where one is malformed."""
    try:
        families = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise WeightsError(f"the checkpoint manifest is not TOML: {error}") from error
    rows = {}
    for family, tables in families.items():
        if not isinstance(tables, dict):
            raise WeightsError(f"checkpoint manifest: {family} = {tables!r} must be a table of rows")
        for name, table in tables.items():
            rows[family, name] = _parse_row(family, name, table)
    return rows


def _parse_row(family: str, name: str, table: Any) -> Checkpoint:
    """Return one row, after checking the names and types of its fields."""
    where = f"checkpoint manifest, row [{family}.{name}]"
    if not isinstance(table, dict):
        raise WeightsError(f"{where}: expected a table of fields, found {table!r}")
    for field, value in table.items():
        if field not in FIELDS:
            raise WeightsError(f"{where}: field {field!r} is unknown; {did_you_mean(field, FIELDS, of='choose from')}")
        if type(value) is not FIELDS[field]:
            raise WeightsError(f"{where}: {field} = {value!r} must be of type {FIELDS[field].__name__}")
    if not {"file", "licence"} <= table.keys():
        raise WeightsError(f"{where}: file and licence are required")
    if ("url" in table) == table.get("embedded", False):
        raise WeightsError(f"{where}: give either url or embedded = true")
    if Path(table["file"]).name != table["file"]:
        raise WeightsError(f"{where}: file = {table['file']!r} must be a name without a folder")
    mirrors, tasks = table.get("mirrors", []), table.get("take_for", [])
    if not all(isinstance(url, str) for url in mirrors):
        raise WeightsError(f"{where}: mirrors = {mirrors!r} must be a list of addresses")
    if not all(task in TASKS for task in tasks):
        raise WeightsError(f"{where}: take_for = {tasks!r} must be of {', '.join(TASKS)}")
    return Checkpoint(family, name, **{**table, "mirrors": tuple(mirrors), "take_for": tuple(tasks)})


def find(family: str, name: str) -> Checkpoint:
    """Return the published checkpoint ``name`` of ``family``; raise WeightsError that lists those there are."""
    if (family, name) not in manifest():
        known = did_you_mean(name, [known for of, known in manifest() if of == family])
        raise WeightsError(f"no checkpoint {name!r} of {family!r} is published; {known}")
    return manifest()[family, name]


def identify(file: Path) -> Checkpoint | None:
    """Return the published checkpoint that a file is by its hash; None if no row has it.

    Where a publisher gives no more than an md5, only a file of that name or size is compared.
    """
    size = file.stat().st_size
    rows = [row for row in manifest().values() if row.bytes in (None, size)]
    for row in rows:
        if (sha256 := row.sha256 or row.sha256_start) and sha256_of(file).startswith(sha256):
            return row
        if row.md5 and (row.bytes == size or row.file == file.name) and hash_of(file, "md5") == row.md5:
            return row
    return None
