"""`hear-transformers export`: a model as a file that other programs run."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hear_transformers.errors import OptionError

from .failures import guarded, one_line
from .imports import importing
from .parsing import parse_changes

SUFFIXES = {"onnx": ".onnx", "torch-export": ".pt2", "web": ".html"}
"""Format -> suffix of its files."""

USUAL_COSINE = 0.99
"""Of transformers in int8; below it a note is printed."""

EXAMPLES = """\b
Examples:
  hear-transformers export tiny
  hear-transformers export passt --layer 8,12 --pool mean --out passt.onnx
  hear-transformers export mast/mini --int8 --audio a.wav --audio b.wav
  hear-transformers export ced --layer logits --seconds 10
  hear-transformers export tiny --format torch-export --seconds 2
  npm pack onnxruntime-web@1.22.0
  hear-transformers export tiny --format web --runtime onnxruntime-web-1.22.0.tgz
"""


@click.command("export", epilog=EXAMPLES)
@click.argument("model", metavar="MODEL")
@click.option("--format", "kind", type=click.Choice([*SUFFIXES]), default="onnx", show_default=True)
@click.option("--out", type=click.Path(path_type=Path), metavar="FILE", help="[default: MODEL.onnx, .pt2 or .html]")
@click.option("--overwrite", is_flag=True, help="Replace a file that is there.")
@click.option("--variant", metavar="NAME", help="Network of the family.  [default: the first, or that of --weights]")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint instead of the published one.")
@click.option("--random", "is_random", is_flag=True, help="Random weights, to try the command without a checkpoint.")
@click.option("--network", multiple=True, metavar="NAME=VALUE", help="Argument of the network: stride=16.")
@click.option("--layer", metavar="LAYER,...", help="Layers to read: 8, 4,8, -1, features, logits.")
@click.option("--pool", metavar="NAME,...", help="mean, max, meanmax, flat, meanstd, unroll, cls.")
@click.option("--seconds", type=click.FloatRange(0, min_open=True), metavar="S", help="Take clips of one length alone.")
@click.option("--int8", is_flag=True, help="Weights of matrices in 8 bits, a smaller file (ONNX, web).")
@click.option(
    "--audio", multiple=True, metavar="FILE", help="Recordings to compare int8 with float32 on.  [default: synthetic]"
)
@click.option("--runtime", type=click.Path(path_type=Path), metavar="FILE", help="Of a page: npm's onnxruntime-web.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def export_command(
    model: str, kind: str, out: Path | None, overwrite: bool, int8: bool, audio: tuple[str, ...], **given: Any
) -> None:
    """Write MODEL as one file: waveforms in, embeddings out, the front end included.

    The file takes waveforms (batch, samples) at the model's rate, any batch, and returns scene embeddings (batch,
    size). ONNX files take any length up to the model's window, programs of torch.export one length. What is written was
    run beside PyTorch before; a file that differs by more than 1e-4 of the largest number is not kept. A web page holds
    the model and what runs it, and embeds sounds that are dropped on it without a network.
    """
    path = out or Path(model.replace("/", "-") + SUFFIXES[kind])
    if path.suffix != SUFFIXES[kind]:
        raise OptionError(f"--out {path}: files of {kind} end in {SUFFIXES[kind]}")
    if path.exists() and not overwrite:
        raise OptionError(f"{path} is there; give --overwrite to replace it, or another --out")
    if int8 and kind == "torch-export":
        raise click.UsageError("--int8 is for --format onnx and web")
    if kind == "web" and given["seconds"] is not None:
        raise click.UsageError("--seconds is for --format onnx and torch-export; a page takes sounds of any length")
    if given["runtime"] is not None and kind != "web":
        raise click.UsageError("--runtime is for --format web")
    if audio and not int8:
        raise click.UsageError("--audio is what int8 is compared on; give --int8, too")
    with importing():
        from hear_transformers.export import onnx_files, page, programs, verification

    if kind != "torch-export":
        onnx_files.require()
    loaded = load(model, given)
    if kind == "torch-export":
        written = programs.to_program(loaded, path, seconds=given["seconds"])
    else:
        clips = verification.excerpts(audio, loaded)
        if kind == "onnx":
            written = onnx_files.to_onnx(loaded, path, seconds=given["seconds"], int8=int8, clips=clips)
        else:
            written = page.to_page(loaded, path, given["runtime"], int8=int8, clips=clips)
    show(written, as_json=given["as_json"])


def load(model: str, given: dict[str, Any]) -> Any:
    """Load the model."""
    from hear_transformers import catalogue

    options = {name: given[name] for name in ("variant", "layer", "pool") if given[name] is not None}
    if changes := parse_changes("--network", given["network"]):
        options["network"] = changes
    if given["is_random"]:
        options["pretrained"] = False
    return catalogue.load(model, given["weights"], "cpu", options)


def show(written: Any, *, as_json: bool) -> None:
    """Print what was measured."""
    rate = written.sample_rate
    shortest, longest = written.min_samples / rate, written.max_samples / rate
    if as_json:
        names = ("n_bytes", "sample_rate", "min_samples", "max_samples", "size", "difference", "time_ratio", "cosine")
        click.echo(json.dumps({"path": str(written.path), **{name: getattr(written, name) for name in names}}))
        return
    length = f"{longest:g} s" if shortest == longest else f"{shortest:.3g} to {longest:g} s"
    click.echo(f"{one_line(str(written.path))}, {written.n_bytes / 1e6:.1f} MB")
    click.echo(f"takes: (batch, samples) at {rate:,} Hz, {length}")
    click.echo(f"returns: (batch, {written.size})")
    click.echo(f"differs from PyTorch by {written.difference:.1e} of the largest number")
    if written.cosine is not None:
        click.echo(f"cosine of int8 to float32: at least {written.cosine:.5f}")
        if written.cosine < USUAL_COSINE:
            click.echo("Note: int8 changes what this model says; compare your scores, or keep float32", err=True)
    click.echo(f"time of a clip: {written.time_ratio:.2f} of PyTorch's here")
