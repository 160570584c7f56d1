"""Parsing of options: JSON, words, counts."""

from __future__ import annotations

import ast
import json
from collections.abc import Sequence
from typing import Any

import click

from hear_transformers.errors import OptionError

trusting = click.option(
    "--trust-remote-code", is_flag=True, default=None, help="Run Python code beside the weights of --model hf; read it."
)
"""Decorator with the option of commands that load models."""


def parse_json(option: str, text: str) -> Any:
    """Parse a JSON value."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise OptionError(f"{option}: {text!r} is not JSON ({error})") from error


def parse_value(option: str, text: str) -> Any:
    """Parse JSON or a literal of Python, 1e-4, false, None or (0.9, 0.95); other words stand for themselves."""
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        try:
            return ast.literal_eval(text.strip())
        except (ValueError, SyntaxError, RecursionError, MemoryError):
            if text.lstrip()[:1] in tuple("[{(\"'"):
                raise OptionError(f"{option}: {text!r} is neither a word nor JSON ({error})") from error
    return text


def parse_changes(option: str, texts: Sequence[str]) -> dict[str, Any]:
    """Parse changes by name: NAME=VALUE each, or a JSON object of several."""
    changes: dict[str, Any] = {}
    for text in texts:
        name, equals, value = text.partition("=")
        if text.lstrip().startswith("{"):
            changes |= parse_object(option, text, '{"depth": 4}')
        elif equals and name.strip():
            changes[name.strip().replace("-", "_")] = parse_value(f"{option} {name}", value)
        else:
            raise OptionError(f"{option} {text}: give NAME=VALUE, such as depth=4")
    return changes


def parse_object(option: str, text: str, example: str) -> dict[str, Any]:
    """Parse a JSON object."""
    value = parse_json(option, text)
    if not isinstance(value, dict):
        raise OptionError(f"{option}: {text!r} is not a JSON object; an example: {example}")
    return value


def parse_network_options(options: dict[str, Any]) -> dict[str, Any]:
    """Parse the options that change a network: its arguments by name, and lists of numbers."""
    parsed = dict(options)
    if changes := parse_changes("--network", parsed.pop("network")):
        parsed["network"] = changes
    if "normalisation" in options:
        parsed["normalisation"] = parse_normalisation(options["normalisation"])
    return parsed


def parse_normalisation(text: str) -> tuple[float, ...]:
    """Parse a mean and a standard deviation."""
    try:
        return tuple(float(part) for part in text.split(","))
    except ValueError as error:
        raise OptionError(f"--normalisation: {text!r} is not MEAN,STD, such as -4.27,4.57") from error


def count_or_auto(context: click.Context, parameter: click.Parameter, value: str | None) -> int | None:
    """Parse a whole number, None for "auto"."""
    if value in (None, "auto"):
        return None
    least = 0 if parameter.name == "num_workers" else 1
    try:
        count = int(value)
    except ValueError:
        count = least - 1
    if count < least:
        raise click.BadParameter(f"{value!r} is neither a whole number of {least} or more, nor auto")
    return count


def milliseconds(context: click.Context, parameter: click.Parameter, value: str | None) -> list[float] | None:
    """Parse one or several numbers: "160" or "160,800"."""
    if value is None:
        return None
    try:
        return [float(part) for part in value.split(",")]
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a number in ms, nor a list such as 160,800") from error


def fraction(context: click.Context, parameter: click.Parameter, value: str) -> tuple[int, int]:
    """Parse a shard, index and count: "0/8"."""
    try:
        index, count = map(int, value.split("/"))
    except ValueError as error:
        raise click.BadParameter(f"{value!r} is not a shard; give I/N, such as 0/8 to 7/8") from error
    return index, count
