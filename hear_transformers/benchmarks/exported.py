"""Measure exported files beside PyTorch: a table for docs/export.md.

python -m hear_transformers.benchmarks.exported tiny mast/mini efficientat/mn04_as --weights mn04_as=FILE
python -m hear_transformers.benchmarks.exported ced/ced_tiny --random
python -m hear_transformers.benchmarks.exported atgnn/mini --alike --audio a.wav --audio b.wav
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import click

from .. import catalogue
from ..cli.failures import guarded
from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..export.onnx_files import by_onnxruntime, to_onnx
from ..export.verification import TOLERANCE, by_pytorch, excerpts

LOUDER = 1.000001
"""Factor that changes every sample in its last bits."""

HEAD = (
    "| model | takes | differs by | MB | time beside PyTorch | int8 MB | int8 time | int8 cosine |\n"
    "|---|---|---|---|---|---|---|---|"
)


def row(name: str, model: Embedder, audio: tuple[str, ...], folder: Path) -> str:
    """Export a model in float32 and int8, and return what was measured as a row of a table."""
    exact = to_onnx(model, folder / "exact.onnx")
    small = to_onnx(model, folder / "small.onnx", int8=True, clips=excerpts(audio, model))
    shortest, longest = exact.min_samples / exact.sample_rate, exact.max_samples / exact.sample_rate
    return (
        f"| `{name}` | {shortest:.2g} to {longest:.3g} s | {exact.difference:.0e} | {exact.n_bytes / 1e6:.1f} "
        f"| {exact.time_ratio:.2f} | {small.n_bytes / 1e6:.1f} | {small.time_ratio:.2f} | {small.cosine:.4f} |"
    )


def alike(name: str, model: Embedder, audio: tuple[str, ...], folder: Path) -> str:
    """Return on how many recordings a file agrees with PyTorch to `TOLERANCE`, and PyTorch with itself, louder."""
    exported = by_onnxruntime(to_onnx(model, folder / "exact.onnx").path)
    truth = by_pytorch(model)
    clips = [clip[None] for clip in excerpts(audio, model)]
    wanted = [truth(clip) for clip in clips]
    found = {"a file": [exported(clip) for clip in clips], "PyTorch": [truth(LOUDER * clip) for clip in clips]}
    lines = [f"{name}, {len(clips)} recordings, largest difference over the largest number of each:"]
    for which, embeddings in found.items():
        errors = [float((a - b).abs().max() / a.abs().max()) for a, b in zip(wanted, embeddings, strict=True)]
        n_alike = sum(error <= TOLERANCE for error in errors)
        louder = f" at {LOUDER} of the level" if which == "PyTorch" else ""
        lines.append(f"{which}{louder}: {n_alike} within {TOLERANCE:g}, {max(errors):.1e} at most")
    return "\n".join(lines)


@click.command()
@click.argument("names", nargs=-1, required=True, metavar="MODEL...")
@click.option("--weights", multiple=True, metavar="MODEL=FILE", help="Checkpoint of a model.")
@click.option("--audio", multiple=True, metavar="FILE", help="Recordings that int8 is compared on.")
@click.option("--random", "is_random", is_flag=True, help="Random weights.")
@click.option("--alike", "is_alike", is_flag=True, help="Count recordings on which file and PyTorch agree instead.")
@guarded
def main(
    names: tuple[str, ...], weights: tuple[str, ...], audio: tuple[str, ...], is_random: bool, is_alike: bool
) -> None:
    """Print a table of MODELs as ONNX files."""
    files = dict(text.partition("=")[::2] for text in weights)
    if not is_alike:
        click.echo(HEAD)
    for name in names:
        model = catalogue.load(name, files.get(name, ""), "cpu", {"pretrained": False} if is_random else {})
        if not isinstance(model, Embedder):
            raise OptionError(f"{name}: only models of this package can be exported")
        with tempfile.TemporaryDirectory() as folder:
            click.echo((alike if is_alike else row)(name, model, audio, Path(folder)))


if __name__ == "__main__":
    main()
