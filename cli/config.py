"""`--config FILE`: options of a command from a TOML file, for commands that are too long to type."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import click

from hear_transformers.errors import OptionError, unknown

from .failures import Failure

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

SEVERAL = ",..."
"""End of the metavars of options that take several at once, "NAME=COLUMN,..."."""

F = TypeVar("F", bound=Callable[..., Any])


def configurable(command: F) -> F:
    """Add the option to a command: values of the file stand in for defaults, so that what is typed wins.

    Keys are the options without their dashes, ``hop-ms = 50`` or ``hop_ms``; values are numbers, texts, true and false
    for switches, lists for options that take several or that are lists, and tables of NAME = VALUE. Paths are relative
    to the current folder, as those that are typed: the file is a part of the command line, written down.
    """
    return click.option(
        "--config",
        metavar="FILE",
        is_eager=True,
        expose_value=False,
        callback=_apply,
        help='TOML file with options, a line each: layer = 8, out = "layer8", overwrite = true; those typed win. '
        "Paths are relative to the current folder.",
    )(command)


def _apply(context: click.Context, parameter: click.Parameter, path: str | None) -> None:
    """Read the file before all other options."""
    if path is None or context.resilient_parsing:
        return
    try:
        values = read(context, path)
    except OptionError as error:
        raise Failure(str(error), 2) from error
    context.default_map = {**(context.default_map or {}), **values}


def read(context: click.Context, path: str) -> dict[str, Any]:
    """Read the options of a command, by the names of its parameters.

    Raises
    ------
    OptionError : the file cannot be read, a key is no option of the command, or its value is none
    """
    try:
        given = tomllib.loads(Path(path).read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeError) as error:
        raise OptionError(f"--config {path}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    except tomllib.TOMLDecodeError as error:
        raise OptionError(f'--config {path}: is no TOML ({error}); texts need quotes, as in out = "layer8"') from error
    known = keys_of(context.command)
    values: dict[str, Any] = {}
    for key, value in given.items():
        name = key.replace("_", "-")
        if name not in known:
            more = f"{context.command_path} --help"
            raise OptionError(f"--config {path}: {unknown_key(key, known, more)}")
        option, turns_on = known[name]
        if option.name in values:
            raise OptionError(f"--config {path}: {key} is there twice, or beside its opposite; give it once")
        try:
            values[str(option.name)] = checked(context, option, turns_on, value)
        except (OptionError, click.BadParameter) as error:
            reason = error.message if isinstance(error, click.BadParameter) else error
            raise OptionError(f"--config {path}: {key}: {reason}") from error
    return values


def keys_of(command: click.Command) -> dict[str, tuple[click.Option, bool]]:
    """Return the options of a command by key; False marks the second name of a switch: timestamps of --scene."""
    keys = {}
    for option in command.params:
        if isinstance(option, click.Option) and option.expose_value:
            for names, turns_on in ((option.opts, True), (option.secondary_opts, False)):
                keys.update({name[2:]: (option, turns_on) for name in names if name.startswith("--")})
    return keys


def unknown_key(key: str, known: Mapping[str, Any], more: str) -> str:
    """Return the message for a key that is no option."""
    if key in ("inputs", "input", "data"):
        return f"{key} is no option; what a command reads is typed: {more.removesuffix(' --help')} clips/"
    return str(unknown("key", key, known, more=more))


def checked(context: click.Context, option: click.Option, turns_on: bool, value: Any) -> Any:
    """Return the value of an option as the command line has it, after its own checks.

    Raises
    ------
    OptionError, click.BadParameter : it is of another kind, or refused
    """
    found: Any
    if option.is_flag:
        if not isinstance(value, bool):
            raise OptionError(f"{value!r} is neither true nor false")
        found = value is turns_on
    elif not option.multiple:
        found = ",".join(map(text, as_list(value)))
    elif isinstance(value, dict) and not (option.metavar or "").endswith(SEVERAL):
        found = pairs(value)
    else:
        found = [text(each) for each in as_list(value)]
    option.process_value(context, found)
    return found


def as_list(value: Any) -> list[Any]:
    """Return a list, of one without several."""
    return value if isinstance(value, list) else [value]


def pairs(table: Mapping[str, Any]) -> list[str]:
    """Return a table as NAME=VALUE, as --network takes it."""
    return [
        f"{name}={value if isinstance(value, str) else json.dumps(value, default=str)}" for name, value in table.items()
    ]


def text(value: Any) -> str:
    """Return a number, a text, or a table such as that of --columns, as it is typed."""
    if isinstance(value, dict):
        return ",".join(pairs(value))
    if isinstance(value, bool) or not isinstance(value, (str, int, float)):
        raise OptionError(f"{value!r} is neither a number nor a text, nor a list of such")
    return str(value)
