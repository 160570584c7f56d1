"""Text and tables that commands print."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import click


def as_text(value: Any) -> str:
    """Format a JSON value for people."""
    if isinstance(value, dict):
        return ", ".join(f"{key} {as_text(part)}" for key, part in value.items())
    if isinstance(value, list):
        return " + ".join(map(as_text, value))
    if value is None:
        return "no limit"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, int):
        return f"{value:,}"
    if isinstance(value, float):
        return f"{value:,.2f}".rstrip("0").rstrip(".") if abs(value) >= 0.01 else f"{value:g}"
    return str(value)


def as_ratio(value: float) -> str:
    """Format a ratio: 0.064x."""
    return f"{value:.2g}x" if value < 10 else f"{value:.0f}x"


def megabytes(size: float | None, is_estimate: bool) -> str:
    """Format a size in MB; an estimate begins with ~."""
    if size is None:
        return "unknown"
    digits = 1 if size < 100 else 0
    return f"{'~' if is_estimate else ''}{size:,.{digits}f}"


def echo_table(rows: Sequence[Sequence[str]]) -> None:
    """Print rows in aligned columns."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        click.echo("  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip())
