"""Functions run in processes of their own: eSpeak NG remembers what it spoke."""

from collections.abc import Callable
from typing import Any

from hear_transformers.audio.workers import start_process


def _answer(pipe: Any, function: Callable[..., Any], arguments: tuple[Any, ...]) -> None:
    try:
        pipe.send(function(*arguments))
    except Exception as error:
        pipe.send(error)


def in_fresh_process(function: Callable[..., Any], *arguments: Any) -> Any:
    """Run a function in a new process, and return or raise what it does."""
    process, pipe = start_process(_answer, function, arguments)
    result = pipe.recv()
    process.join()
    if isinstance(result, Exception):
        raise result
    return result
