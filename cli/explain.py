"""`hear-transformers explain`: where in a clip a network finds what it says of it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import click

from hear_transformers.errors import OptionError, import_extra

from .failures import guarded, one_line
from .imports import importing
from .parsing import parse_changes, trusting
from .tables import echo_table

METHODS = """\b
Methods:
  rollout    transformers: share of each patch in what is read at the end
  gradient   transformers: gradient x attention of the class
  class-map  ATGNN: nearness of patches to the embedding of the class
  graph      ATGNN: neighbours of a patch, block by block
  fields     CNNs: receptive fields of layers, by kernels and by gradient
  occlusion  all: fall of the class (its logit) or turn of the embedding (its
             cosine) when a patch becomes as quiet as its bands ever are
"""


@click.command("explain", epilog=METHODS)
@click.argument("clip", metavar="CLIP")
@click.option("--model", metavar="NAME", help="A family or variant.  [default: tiny, or that of --weights]")
@click.option("--variant", metavar="NAME", help="Network of that family.  [default: the first, or that of --weights]")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint instead of the published one.")
@click.option("--random", "is_random", is_flag=True, help="Random weights, to try the command without a checkpoint.")
@click.option("--network", multiple=True, metavar="NAME=VALUE", help="Argument of the network: stride=16.")
@trusting
@click.option("--class", "label", metavar="NAME", help="Name or number.  [default: the likeliest, where there is one]")
@click.option("--layer", metavar="LAYER", help="Explain the embedding of a layer instead of a class: 8, -1, features.")
@click.option("--pool", metavar="NAME", help="With --layer: mean of the patches, or cls for the class tokens.")
@click.option("--method", "methods", metavar="NAME,...", help="rollout, gradient, class-map, graph, fields, occlusion.")
@click.option(
    "--start", type=click.FloatRange(0), metavar="S", help="In the file.  [default: where it is loudest for as long]"
)
@click.option("--at", metavar="S,HZ", help="Patch whose neighbours are shown (ATGNN).  [default: the loudest]")
@click.option(
    "--patch-ms", default=320.0, show_default=True, type=click.FloatRange(1), metavar="MS", help="Of occlusion."
)
@click.option(
    "--patch-bands", default=16, show_default=True, type=click.IntRange(1), metavar="N", help="Mel bands of the same."
)
@click.option("--out", type=click.Path(path_type=Path), metavar="PATH", help="Without suffix.  [default: CLIP.explain]")
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, mps or cpu.")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def explain_command(
    clip: str, label: str | None, layer: str | None, pool: str | None, methods: str | None, at: str | None, **given: Any
) -> None:
    """Draw where in CLIP a network finds a class, over the log-mel spectrogram.

    Writes PATH.png and PATH.npz, which has every map with the s and Hz of its positions.

    A model without classifier, such as tiny, explains the embedding of a layer. A clip longer than the network reads at
    once is explained where it is loudest, or from --start on.
    """
    if layer is not None and label is not None:
        raise click.UsageError("--class is explained by the logits, --layer by an embedding; give either")
    if pool is not None and layer is None:
        raise click.UsageError("--pool says what of a layer is read; give --layer, too")
    place = parse_place(at)
    with importing():
        from hear_transformers.explain import explanation, figures

    import_extra("explain", "matplotlib", "train")
    model, window = load(clip, layer, pool, given)
    number, chosen = choose_class(model, window, label, layer)
    found = explanation.explain(
        window,
        number,
        methods=methods.split(",") if methods else (),
        at=place,
        patch_ms=given["patch_ms"],
        patch_bands=given["patch_bands"],
    )
    out = given["out"] or Path(f"{Path(clip).stem}.explain")
    picture, table = (out.with_name(out.name + suffix) for suffix in (".png", ".npz"))
    probability = "" if found.probability is None else f", probability {found.probability:.3f}"
    title = one_line(f"{Path(clip).name}: {found.what}{probability} ({'/'.join(model.name)}{chosen})")
    figures.write_numbers(found, table)
    figures.draw(found, picture, title)
    show(found, title, [picture, table], as_json=given["as_json"])


def parse_place(text: str | None) -> tuple[float, float] | None:
    """Parse a place in s and Hz."""
    if text is None:
        return None
    try:
        seconds, hz = map(float, text.split(","))
    except ValueError as error:
        raise OptionError(f"--at: {text!r} is not S,HZ, such as 1.5,440") from error
    return seconds, hz


def load(clip: str, layer: str | None, pool: str | None, given: dict[str, Any]) -> tuple[Any, Any]:
    """Load the model, and the part of the clip that it reads at once."""
    from hear_transformers import catalogue
    from hear_transformers.audio.reading import AudioFile
    from hear_transformers.embedding.embedder import Embedder
    from hear_transformers.explain.window import SEARCHED_SECONDS, longest_seconds, loudest_start, window_of
    from hear_transformers.files import place_of

    name = given["model"]
    if name is None and given["variant"] is None:
        name = catalogue.family_of_checkpoint(given["weights"])
    options = {name: given[name] for name in ("variant", "trust_remote_code")} | {"layer": layer, "pool": pool}
    if changes := parse_changes("--network", given["network"]):
        options["network"] = changes
    if given["is_random"]:
        options["pretrained"] = False
    options = {option: value for option, value in options.items() if value is not None}
    model = catalogue.load(name, given["weights"], given["device"], options)
    if not isinstance(model, Embedder):
        raise OptionError(f"model={name!r}: only models of this package can be explained (hear-transformers list)")
    with AudioFile(place_of(clip)) as file:
        longest, rate, start = longest_seconds(model), model.sample_rate, given["start"]
        if start is None:
            start = loudest_start(file.excerpt(rate, 0.0, SEARCHED_SECONDS), rate, longest)
        waveform = file.excerpt(rate, start, longest)
        seconds = file.seconds
    if seconds is not None and seconds > longest + 0.01 and not given["as_json"]:
        end = min(start + longest, seconds)
        click.echo(f"Note: {start:g} to {end:g} s of {seconds:g} s are explained; see --start", err=True)
    return model, window_of(model, waveform, start)


def choose_class(model: Any, window: Any, label: str | None, layer: str | None) -> tuple[int | None, str]:
    """Return the number of the class, None for an embedding, and what is to be said of the choice."""
    import torch

    from hear_transformers.explain.explanation import class_number

    if label is not None:
        return class_number(model, label), ""
    if layer is not None or "logits" not in model.trunk.layers:
        return None, ""
    with torch.no_grad():
        logits = model.trunk(window.frames, ["logits"])["logits"]
    return int(logits[0].argmax()), ", its likeliest class"


def show(found: Any, title: str, paths: list[Path], *, as_json: bool) -> None:
    """Print where each map is largest, and the receptive fields."""
    window = found.window
    peaks = {}
    for each in found.maps:
        row, column = divmod(int(each.values.argmax()), each.values.shape[1])
        peaks[each.name] = {
            "s": round(float(window.seconds(each.grid.time.centres()[column])), 3),
            "hz": round(float(window.hz(each.grid.freq.centres()[row])), 1),
            "value": float(each.values[row, column]),
        }
    fields = [
        {
            "layer": f.layer,
            "theoretical_ms": f.theoretical_ms,
            "measured_ms": f.measured_ms,
            "effective_ms": f.effective_ms,
        }
        for f in found.fields
    ]
    if as_json:
        about = {"explained": found.what, "probability": found.probability, "peaks": peaks, "fields": fields}
        files = {"picture": str(paths[0]), "numbers": str(paths[1])}
        click.echo(json.dumps({**about, "left_out": found.left_out, **files}))
        return
    click.echo(title)
    if peaks:
        rows = [(name, f"{at['s']:.2f}", f"{at['hz']:.0f}", f"{at['value']:.4g}") for name, at in peaks.items()]
        echo_table([("LARGEST IN", "S", "HZ", "VALUE"), *rows])
    if fields:
        texts = [["window" if value is None else str(value) for value in row.values()] for row in rounded(fields)]
        echo_table([("LAYER", "BY KERNELS MS", "NOT 0 MS", "95 % MS"), *map(tuple, texts)])
    for method, reason in found.left_out.items():
        click.echo(f"without {method}: {reason}")
    for path in paths:
        click.echo(one_line(str(path)))


def rounded(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Round the numbers of rows to whole ms."""
    return [{key: round(value) if isinstance(value, float) else value for key, value in row.items()} for row in rows]
