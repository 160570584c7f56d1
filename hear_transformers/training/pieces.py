"""The state of a training run in many small files, for places that take no large ones.

The bytes of a checkpoint are cut into pieces, whose names are their hashes; an index lists them. The index is replaced
when all pieces are there, and older ones are removed after that: a run that is killed on the way keeps its last state.
"""

from __future__ import annotations

import hashlib
import io
import json
from pathlib import Path
from typing import Any

from ..errors import TrainingError
from ..files import atomic, parse_json
from .loop import TrainingRun

INDEX = "state.json"
PIECE_BYTES = 16_000_000  # most bytes of a piece
NAMES = "state-*.piece"


class Pieces:
    """A checkpoint in pieces, see `loop.Checkpoint`.

    Parameters
    ----------
    folder : of the run
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._index = folder / INDEX

    def exists(self) -> bool:
        """Return True if there is a state to resume from."""
        return self._index.exists()

    def save(self, run: TrainingRun) -> None:
        """Write the state of a run; the one before stays whole until this one is."""
        state = io.BytesIO()
        run.write(state)
        names = [self._write(data) for data in _cut(state.getbuffer(), PIECE_BYTES)]
        about = {"settings": run.settings, "step": run.step, "seconds": run.seconds, "pieces": names}
        with atomic(self._index) as file:
            file.write(json.dumps(about, indent=1).encode())
        for path in self._folder.glob(NAMES):
            if path.name not in names:
                path.unlink(missing_ok=True)

    def restore(self, run: TrainingRun) -> None:
        """Load the state of a run.

        Raises
        ------
        TrainingError : a piece is missing or damaged, or the run was started with other settings
        """
        run.read(self.open(), self._index)

    def open(self) -> io.BytesIO:
        """Return the state as one file in memory, as `TrainingRun.write` wrote it.

        Raises
        ------
        TrainingError : there is none, or a piece is missing or damaged
        """
        return io.BytesIO(b"".join(self._read(name) for name in self.read_index()["pieces"]))

    def read_index(self) -> dict[str, Any]:
        """Return what the index has: ``settings``, ``step``, ``seconds`` of training, names of ``pieces``.

        Raises
        ------
        TrainingError : there is none, or it is damaged
        """
        try:
            about = parse_json(self._index.read_bytes())
            return {key: about[key] for key in ("settings", "step", "seconds", "pieces")}
        except FileNotFoundError as error:
            raise TrainingError(f"{self._folder}: holds no training run; give the folder of one") from error
        except (ValueError, LookupError, TypeError) as error:
            raise TrainingError(f"{self._index}: damaged; delete it to start over") from error

    def _write(self, data: memoryview) -> str:
        """Write a piece and return its name; a piece of this name that is there has the same bytes."""
        path = self._folder / NAMES.replace("*", hashlib.sha256(data).hexdigest())
        with atomic(path) as file:
            file.write(data)
        return path.name

    def _read(self, name: str) -> bytes:
        """Read a piece, and check it by its name."""
        path = self._folder / Path(name).name
        data = path.read_bytes() if path.exists() else b""
        if path.name != NAMES.replace("*", hashlib.sha256(data).hexdigest()):
            raise TrainingError(f"{path}: missing or damaged; restore it, or delete {INDEX} to start over")
        return data


def _cut(data: memoryview, size: int) -> list[memoryview]:
    """Cut bytes into parts of at most `size`."""
    return [data[start : start + size] for start in range(0, len(data), size)]
