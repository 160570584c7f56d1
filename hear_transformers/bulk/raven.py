"""Selection tables of Raven, whose columns are known -> file, start, end and label of each selection.

A selection stands in a table once for each view, as in "Waveform 1" and "Spectrogram 1"; it is one. Times run on over
all files that were open in Raven; where a table has ``File Offset (s)``, that is where a selection begins in its file.
"""

from __future__ import annotations

import contextlib
import os
import re
from collections.abc import Mapping, Sequence
from decimal import Decimal, InvalidOperation
from pathlib import Path, PureWindowsPath

from ..audio.reading import SUFFIXES
from ..errors import OptionError

BEGIN, END, OFFSET = "Begin Time (s)", "End Time (s)", "File Offset (s)"

COLUMNS = {"Selection", "View", "Channel", BEGIN, END}
"""What every table of Raven has, and no other."""

FILES = ("Begin Path", "Begin File")
"""Columns of the audio file; of several, the first is read."""

LABELS = ("Species", "Annotation", "Label", "Common Name")
"""Columns of the label, which the user of Raven adds, or BirdNET; one of them is read if it is the only one."""

NAME = re.compile(r"(.+?)(\.Table\.\d+)?(\.BirdNET)?(\.selections?)?(\.table)?\.txt", re.IGNORECASE)
"""Name of a table: "birds.Table.1.selections.txt", by BirdNET "birds.BirdNET.selection.table.txt"."""


def is_raven(header: Sequence[str]) -> bool:
    """Return True if a header is that of a selection table."""
    return set(header) >= COLUMNS


def columns_of(header: Sequence[str]) -> dict[str, str]:
    """Return the columns of a selection table by what they hold, see `rows.FIELDS`; without those that it lacks."""
    files = [name for name in FILES if name in header]
    labels = [name for name in LABELS if name in header]
    found = {"path": files[0]} if files else {}
    found |= {"labels": labels[0]} if len(labels) == 1 else {}
    return {**found, "start": BEGIN, "end": END}


class Selections:
    """Reads the rows of one table.

    Parameters
    ----------
    table : the file
    header : of it
    error : raised if it does not say which audio it is of

    Attributes
    ----------
    columns : see `columns_of`
    """

    def __init__(self, table: Path, header: Sequence[str], error: type[Exception] = OptionError) -> None:
        self.folder = table.parent
        self.columns = columns_of(header)
        self.own = "" if "path" in self.columns else _audio_of(table, error)
        self.seen: set[str] = set()

    def read(self, cells: Mapping[str, str]) -> dict[str, str] | None:
        """Return path, labels, start and end of a row, None for another view of a selection."""
        number = cells["Selection"].strip()
        if number and number in self.seen:
            return None
        self.seen.add(number)
        found = {name: cells[column] for name, column in self.columns.items()}
        found["path"] = self._beside(found["path"]) if "path" in found else self.own
        found |= {name: found[name].replace(",", ".") for name in ("start", "end")}  # of a language that writes 0,5
        # A wrong number is left to who reads the cells, and names the line.
        with contextlib.suppress(InvalidOperation, KeyError):
            offset = Decimal(cells[OFFSET].replace(",", "."))
            found["end"] = str(offset + Decimal(found["end"]) - Decimal(found["start"]))
            found["start"] = str(offset)
        return found

    def _beside(self, name: str) -> str:
        """Return the file of that name in the folder of the table, if it is there and the path itself leads nowhere."""
        name = name.strip()
        own = PureWindowsPath(name).name  # which knows both kinds of slashes
        is_elsewhere = not os.path.lexists(self.folder / name) and os.path.lexists(self.folder / own)
        return own if own and is_elsewhere else name


def _audio_of(table: Path, error: type[Exception]) -> str:
    """Return the audio that a table is named after."""
    match = NAME.fullmatch(table.name)
    stem = match[1] if match else table.stem
    there = {name.casefold(): name for name in os.listdir(table.parent)}
    found = [there[name] for suffix in SUFFIXES if (name := f"{stem}{suffix}".casefold()) in there]
    if len(found) == 1:
        return found[0]
    advice = "export the column 'Begin Path' from Raven, or add one and say --columns path=COLUMN"
    beside = f"are {', '.join(sorted(found))}" if found else f"is no {stem}.wav, nor of another format"
    raise error(f"{table}: names no audio, and beside it {beside}; {advice}")
