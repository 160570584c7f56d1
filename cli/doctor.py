"""`hear-transformers doctor`: what works on this machine, and how to fix what does not."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from typing import Any

import click

from .failures import guarded, printable
from .tables import echo_table

Finding = dict[str, Any]
"""One row of `doctor.examine`."""


def gigabytes(size: int | None) -> str:
    """Format a number of bytes."""
    return "-" if size is None else f"{size / 1e9:.2f} GB"


def low_precision(row: Finding) -> str:
    """Describe which precision pays on a device."""
    if "auto" not in row:
        return "-"
    product, convolution = (f"{factor:.1f}" for factor in row["bfloat16_times_as_long"].values())
    return f"precision auto is {row['auto']}; bfloat16 takes {product} (linear), {convolution} (conv) times as long"


DECODES = {True: "decodes", False: "does not decode", None: "cannot be tried"}

COLUMNS: dict[str, Callable[[Finding], tuple[str, ...]]] = {
    "versions": lambda row: (row["name"], row["version"] or "not installed"),
    "extras": lambda row: (row["name"], f"run: {row['install']}" if row["install"] else "installed"),
    "devices": lambda row: (row["name"], row["about"], low_precision(row)),
    "decoders": lambda row: (row["format"], row["library"], DECODES[row["decodes"]]),
    "cache": lambda row: (
        row["folder"],
        "chosen by you" if row["variable"] else "the default",
        "exists" if row["exists"] else "is made when needed",
        "writable" if row["writable"] else "read only",
        f"{gigabytes(row['free_bytes'])} free",
    ),
    "weights": lambda row: (row["checkpoint"], gigabytes(row["bytes"]), row["state"], row["file"] or "-"),
}
"""Part -> function from one of its rows to cells."""


@click.command("doctor")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@click.option("--verify", is_flag=True, help="Check the hashes of weights, not only their sizes.")
@guarded
def doctor_command(as_json: bool, verify: bool) -> None:
    """Check this machine: libraries, extras, devices, decoders, cache, weights.

    Never uses the network. The exit code is 1 if there are problems.
    """
    from hear_transformers import doctor

    parts = doctor.examine(verify=verify)
    problems = doctor.problems(parts)
    if as_json:
        click.echo(json.dumps({**parts, "problems": problems}, indent=2))
    else:
        show(parts, problems)
    sys.exit(1 if problems else 0)


def show(parts: dict[str, list[Finding]], problems: list[str]) -> None:
    """Print every part as a table, then the problems."""
    for name, rows in parts.items():
        click.echo(name)
        cells = [tuple(map(printable, ("", *COLUMNS[name](row)))) for row in rows if row.keys() != {"problem"}]
        echo_table(cells or [("", "none")])
        click.echo()
    for problem in problems:
        click.echo(printable(f"Problem: {problem}"))
    plural = "problem" if len(problems) == 1 else "problems"
    click.echo(f"{len(problems)} {plural}, see above for what to do." if problems else "All is well.")
