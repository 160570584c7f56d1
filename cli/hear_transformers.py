"""The command `hear-transformers`: models, weights, HEAR, training, and a check of the installation."""

from __future__ import annotations

import json
import sys

import click

from hear_transformers import __version__

from .doctor import doctor_command
from .failures import guarded, printable
from .hear import hear_group, search_working_folder
from .parsing import parse_object
from .tables import as_text, echo_table
from .train import train_command


@click.group()
@click.version_option(__version__)
def main() -> None:
    """List, download, train and evaluate models.

    To embed audio, use embed-audio.
    """


main.add_command(train_command)
main.add_command(hear_group)
main.add_command(doctor_command)


@main.command("list")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@guarded
def list_command(as_json: bool) -> None:
    """List all models and variants.

    HERE says whether the weights are on this machine.
    """
    from hear_transformers import catalogue

    models = catalogue.list_models()
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    rows = [("MODEL", "VARIANT", "PARAMETERS", "MB", "LICENCE", "METRIC", "HERE")]
    for model in models:
        here = {True: "yes", False: "no", None: "-"}[model.get("on_this_machine")]
        cells = (str(model.get(key) or "-") for key in ("megabytes", "licence", "metric"))
        rows.append((model["family"], model["variant"], f"{model['parameters'] / 1e6:.1f} M", *cells, here))
    echo_table(rows)


@main.command()
@click.argument("name", metavar="[MODEL] VARIANT")
@click.argument("variant", required=False, metavar="")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object.")
@guarded
def info(name: str, variant: str | None, as_json: bool) -> None:
    """Describe a model: layers, defaults, window lengths, weights.

    MODEL alone means its first variant.
    """
    from hear_transformers import catalogue

    description = catalogue.describe(*catalogue.resolve(name, variant))
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    layers = description.pop("layers")
    for key, value in description.items():
        if isinstance(value, dict):
            click.echo(f"{key}:")
            echo_table([(f"  {name}", as_text(value[name])) for name in value if value[name] is not None])
        else:
            click.echo(f"{key}: {as_text(value)}")
    click.echo()
    rows = [("LAYER", "SIZE", "BANDS", "HOP MS", "SEES MS")]
    for layer in layers:
        whole = "window" if layer["receptive_field_ms"] is None else f"{layer['receptive_field_ms']:g}"
        hop = "-" if layer["hop_ms"] is None else f"{layer['hop_ms']:g}"
        rows.append((layer["layer"], str(layer["size"]), str(layer["n_freq"]), hop, whole))
    echo_table(rows)


@main.command()
@click.argument("name", metavar="[MODEL] VARIANT|all")
@click.argument("variant", required=False, metavar="")
@click.option("--imagenet", is_flag=True, help="Download the ImageNet weights for `train --from imagenet` instead.")
@guarded
def download(name: str, variant: str | None, imagenet: bool) -> None:
    """Download and verify the weights of a variant, or of all variants of a model.

    MODEL alone means its first variant.
    """
    from hear_transformers import catalogue
    from hear_transformers.checkpoints import store

    failed = False
    for row in catalogue.downloads(*catalogue.resolve(name, variant), imagenet=imagenet):
        try:
            click.echo(printable(str(store.fetch(row, progress=sys.stderr.isatty()))))
        except store.WeightsError as error:
            click.echo(printable(f"Error: {error}"), err=True)
            failed = True
    sys.exit(1 if failed else 0)


@main.command()
@click.argument("module")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint for load_model.")
@click.option(
    "--options", default="{}", metavar="JSON", help='Keyword arguments for load_model: \'{"variant": "base"}\'.'
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps or cpu.")
@guarded
def validate(module: str, weights: str, options: str, device: str) -> None:
    """Check that MODULE follows the HEAR API.

    MODULE is a Python module of this package (hear_transformers.passt), of another one, or your own in the current
    folder.
    """
    from hear_transformers.embedding.devices import pick_device
    from hear_transformers.harness import contract

    search_working_folder()
    for finding in contract.check_module(
        module, weights, parse_object("--options", options, '{"layer": 8}'), pick_device(device)
    ):
        click.echo(finding)
    click.echo("Looks good!")
