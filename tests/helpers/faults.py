"""Faults of the disk, and the end of the process, at one operation on files after another."""

import contextlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path

OPERATIONS = {"open", "os.rename", "os.remove", "os.mkdir", "os.rmdir", "os.truncate"}
"""Audited events that change files; opening counts if it is for writing."""

REMOVALS = {"os.remove", "os.rmdir"}
"""Those that need no room on the disk."""


class KilledError(BaseException):
    """Stands for the end of the process."""


class Faults:
    """Operations on files below a folder: which of them fail, and how many there were.

    Attributes
    ----------
    error : raised by the operation, None while none fails
    at : number of the operation that fails, from 0; after a kill, all that follow fail
    n : operations so far
    """

    def __init__(self) -> None:
        self.folder, self.error, self.at, self.n = "", None, 0, 0
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple) -> None:
        if self.error is None or event not in OPERATIONS or not arguments or not isinstance(arguments[0], str | Path):
            return
        if not os.path.abspath(arguments[0]).startswith(self.folder):
            return
        if event in REMOVALS and not isinstance(self.error, KilledError):
            return
        if event == "open" and not (arguments[2] or 0) & (os.O_WRONLY | os.O_RDWR | os.O_APPEND | os.O_CREAT):
            return
        self.n += 1
        if self.n - 1 == self.at or (self.n - 1 > self.at and isinstance(self.error, KilledError)):
            raise self.error

    @contextlib.contextmanager
    def at_operation(self, at: int, error: BaseException, folder: Path) -> Iterator[None]:
        """Let an operation below a folder fail."""
        self.folder, self.error, self.at, self.n = str(folder), error, at, 0
        try:
            yield
        finally:
            self.error = None


FAULTS = Faults()
