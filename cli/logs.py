"""The log of the library on stderr."""

from __future__ import annotations

import contextlib
import logging
import sys
from collections.abc import Iterator

from hear_transformers import __name__ as PACKAGE


@contextlib.contextmanager
def log_on_stderr(verbose: bool) -> Iterator[None]:
    """Print the warnings of the library's log, with `verbose` also what it informs of; leave logging as it was."""
    log = logging.getLogger(PACKAGE)
    handler = logging.StreamHandler(sys.stderr)
    before = log.level, log.propagate
    log.addHandler(handler)
    log.setLevel(logging.INFO if verbose else logging.WARNING)
    log.propagate = False
    try:
        yield
    finally:
        log.removeHandler(handler)
        log.level, log.propagate = before
