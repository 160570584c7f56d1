"""The end of a command by a signal: what is finished is kept, as after Ctrl-C."""

from __future__ import annotations

import contextlib
import signal
import threading
from collections.abc import Iterator
from types import FrameType

ENDING = [getattr(signal, name) for name in ("SIGTERM", "SIGHUP") if hasattr(signal, name)]  # Windows has no SIGHUP
"""Signals of schedulers, of `kill` and of a terminal that is closed."""


class TerminatedError(KeyboardInterrupt):
    """The process is to end because of a signal."""

    def __init__(self, number: int) -> None:
        super().__init__()
        self.number = number


def exit_code(interrupt: KeyboardInterrupt) -> int:
    """Return the exit code of an interruption, as shells count: 128 and the number of the signal."""
    return 128 + (interrupt.number if isinstance(interrupt, TerminatedError) else signal.SIGINT)


def cause(interrupt: KeyboardInterrupt) -> str:
    """Return what interrupted a command: "interrupted", or the signal that ended it."""
    if isinstance(interrupt, TerminatedError):
        return f"ended by {signal.Signals(interrupt.number).name}"
    return "interrupted"


@contextlib.contextmanager
def terminating() -> Iterator[None]:
    """Raise TerminatedError where SIGTERM or SIGHUP would end the process at once.

    A signal that is ignored, as SIGHUP by `nohup`, or handled by somebody else stays so.
    """
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    ours = [number for number in ENDING if signal.getsignal(number) == signal.SIG_DFL]

    def end(number: int, frame: FrameType | None) -> None:
        for each in ours:  # `timeout` and schedulers send several, and the first is obeyed
            signal.signal(each, signal.SIG_IGN)
        raise TerminatedError(number)

    for number in ours:
        signal.signal(number, end)
    try:
        yield
    finally:
        for number in ours:
            signal.signal(number, signal.SIG_DFL)
