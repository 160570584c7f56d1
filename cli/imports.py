"""Imports of PyTorch, without the time that Python spends on looking for garbage in them."""

from __future__ import annotations

import contextlib
import gc
import sys
from collections.abc import Iterator


@contextlib.contextmanager
def importing() -> Iterator[None]:
    """Import PyTorch and what needs it without garbage collection; what is imported is not searched later either.

    These are 160,000 objects that stay, and every full collection goes through them: 0.3 s at the start of a command.
    Where PyTorch is imported already, nothing is changed.
    """
    if "torch" in sys.modules or not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
        gc.freeze()
    finally:
        gc.enable()
