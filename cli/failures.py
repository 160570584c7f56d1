"""How command lines fail: one line on stderr and an exit code, never a traceback.

0: all is well. 1: some or all of the work failed. 2: the command itself is wrong. 130: interrupted by Ctrl-C, 143 by
SIGTERM, 129 by SIGHUP.
"""

from __future__ import annotations

import contextlib
import functools
import os
import sys
import warnings
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec

import click

from hear_transformers.errors import HearTransformersError, HearTransformersWarning, OptionError

from . import signals

P = ParamSpec("P")


class Failure(click.ClickException):
    """A message on stderr and an exit code."""

    def __init__(self, message: str, exit_code: int) -> None:
        super().__init__(printable(message))
        self.exit_code = exit_code


def printable(text: str) -> str:
    """Replace surrogates, which no terminal prints: a file name need not be text."""
    return text.encode("utf-8", "replace").decode()


def one_line(text: str) -> str:
    """Escape line breaks and control characters, which a file name may hold."""
    shown = (char if char.isprintable() or "\ud800" <= char <= "\udfff" else repr(char)[1:-1] for char in text)
    return printable("".join(shown))


@contextlib.contextmanager
def _open_streams() -> Iterator[None]:
    """Write to nowhere what would go to a standard stream that was closed, for which Python has None."""
    with (
        open(os.devnull, "w", encoding="utf-8") as nowhere,
        contextlib.redirect_stdout(sys.stdout or nowhere),
        contextlib.redirect_stderr(sys.stderr or nowhere),
    ):
        yield


@contextlib.contextmanager
def warnings_in_words() -> Iterator[None]:
    """Print warnings of this package as a line, without the place in the code that they come from."""
    with warnings.catch_warnings():
        others = warnings.showwarning

        def show(message: Warning | str, category: type[Warning], *place: Any) -> None:
            if issubclass(category, HearTransformersWarning):
                click.echo(one_line(f"Warning: {message}"), err=True)
            else:
                others(message, category, *place)

        warnings.showwarning = show
        yield


def guarded(command: Callable[P, None]) -> Callable[P, None]:
    """Turn every exception of a command into a message and an exit code."""

    @functools.wraps(command)
    def run(*args: P.args, **kwargs: P.kwargs) -> None:
        try:
            with signals.terminating(), _open_streams(), warnings_in_words():
                command(*args, **kwargs)
        except (click.ClickException, click.exceptions.Exit, BrokenPipeError):
            raise
        except OptionError as error:
            raise Failure(str(error), 2) from error
        except HearTransformersError as error:
            raise Failure(str(error), 1) from error
        except KeyboardInterrupt as error:
            raise Failure(signals.cause(error), signals.exit_code(error)) from error
        except Exception as error:
            raise Failure(f"{type(error).__name__}: {error}", 1) from error

    return run
