"""What the commands of the benchmarks share: their Markdown tables, and the check for a card."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import click
import torch


def echo_table(columns: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
    """Print a Markdown table row by row."""
    click.echo(f"| {' | '.join(columns)} |")
    click.echo(f"|{' --- |' * len(columns)}")
    for row in rows:
        click.echo(f"| {' | '.join(row)} |")


def check_card(device: str) -> None:
    """Raise ClickException if a CUDA device is asked for and PyTorch has none."""
    if device.partition(":")[0] == "cuda" and not torch.cuda.is_available():
        raise click.ClickException(
            f"--device {device}: PyTorch {torch.__version__} finds no CUDA device; `hear-transformers doctor` lists "
            "what there is, and --device cpu measures without"
        )
