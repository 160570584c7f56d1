"""The command `hear-transformers`: models, weights, HEAR, training, and a check of the installation."""

from __future__ import annotations

import json
import shlex
import sys
from collections.abc import Collection, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from hear_transformers import OPEN_FAMILIES, __version__

from .compact import compact_command
from .compare import compare_command
from .completion import completing, completion_command
from .doctor import doctor_command
from .explain import explain_command
from .explore import explore_command
from .export import export_command
from .failures import guarded, printable
from .hear import hear_group, search_working_folder
from .parsing import parse_object, trusting
from .probe import probe_command
from .search import search_command
from .selections import selections_command
from .serve import serve_command
from .sweep import sweep_command
from .tables import as_ratio, as_text, echo_table, megabytes
from .train import train_command

if TYPE_CHECKING:
    from hear_transformers.checkpoints.published import Checkpoint


@click.group()
@click.version_option(__version__)
def main() -> None:
    """List, download, train and evaluate models.

    To embed audio, use embed-audio.
    """


main.add_command(train_command)
main.add_command(hear_group)
main.add_command(doctor_command)
main.add_command(selections_command)
main.add_command(probe_command)
main.add_command(explain_command)
main.add_command(export_command)
main.add_command(compact_command)
main.add_command(compare_command)
main.add_command(explore_command)
main.add_command(search_command)
main.add_command(serve_command)
main.add_command(sweep_command)
main.add_command(completion_command)


@main.command("list")
@click.argument("patterns", nargs=-1, metavar="[PATTERN]...")
@click.option("--json", "as_json", is_flag=True, help="Print one JSON array.")
@guarded
def list_command(patterns: tuple[str, ...], as_json: bool) -> None:
    """List models and variants: all, or those that fit a PATTERN.

    A PATTERN is a model, a variant, or a pattern in quotes: passt, mn10_as, "mn*", "panns/*16k".

    A star marks recommended ones; for what and why stands below. MB is estimated where it begins with ~. VERIFIED BY
    says what a first download is compared with; where that is no hash, the sha256 of the first download is recorded,
    and later loads are compared with it. HERE says whether the weights are on this machine; "other" means that another
    package keeps a file of that name, which is used if its hash is right.
    """
    from hear_transformers import catalogue

    models = catalogue.rows(*patterns)
    if as_json:
        click.echo(json.dumps(models, indent=2))
        return
    rows = [("", "MODEL", "VARIANT", "PARAMETERS", "MB", "LICENCE", "METRIC", "VERIFIED BY", "HERE")]
    rows += [list_row(model) for model in models]
    if models:
        echo_table(rows)
        click.echo()
    if recommended := recommended_rows(models):
        echo_table([("FOR", "TAKE", "LICENCE", "WHY"), *recommended])
        click.echo()
    for name, about in OPEN_FAMILIES.items():
        click.echo(f"{name}: {about}")


def recommended_rows(models: Sequence[dict[str, Any]]) -> list[tuple[str, ...]]:
    """Return what to take for what, in the order of `published.TASKS`, then what is a default alone."""
    from hear_transformers.checkpoints.published import TASKS

    order = {task: i for i, task in enumerate(TASKS)}
    recommended = [model for model in models if model["recommended"]]
    recommended.sort(key=lambda model: [order[task] for task in model["take_for"]] or [len(TASKS)])
    return [
        (
            ", ".join(model["take_for"]) or "-",
            f"{model['family']}/{model['variant']}",
            model["licence"],
            model["recommended"],
        )
        for model in recommended
    ]


def list_row(model: dict[str, Any]) -> tuple[str, ...]:
    """Return the cells of one model."""
    star = "*" if model["recommended"] else ""
    name = shlex.quote(model["variant"])  # mn40_as(2) as a shell takes it
    size = "-" if model.get("megabytes") is None else megabytes(model["megabytes"], model["megabytes_are_estimated"])
    cells = (model.get(key) or "-" for key in ("licence", "metric", "verified_by"))
    here = {True: "yes", False: "no", None: "-"}[model.get("on_this_machine")]
    if here == "no" and model["of_another_package"]:
        here = "other"
    return star, model["family"], name, f"{model['parameters'] / 1e6:.1f} M", size, *cells, here


@main.command()
@click.argument("model", metavar="MODEL")
@click.argument("variant", required=False, metavar="[VARIANT]")
@trusting
@click.option("--json", "as_json", is_flag=True, help="Print one JSON object, with exact numbers.")
@guarded
def info(model: str, variant: str | None, trust_remote_code: bool | None, as_json: bool) -> None:
    """Describe a model: layers, defaults, window lengths, weights.

    MODEL is a family, whose first variant is described, a variant, or both: passt, base2levelmel, passt/base2levelmel.
    Of hf, a VARIANT that is on this machine is loaded.
    """
    from hear_transformers import catalogue

    options = {"trust_remote_code": True} if trust_remote_code else {}
    description = catalogue.describe(*catalogue.resolve_own(model, variant), options)
    if as_json:
        click.echo(json.dumps(description, indent=2))
        return
    layers = description.pop("layers", [])
    for key, value in description_rows(description):
        if isinstance(value, dict):
            click.echo(f"{key}:")
            echo_table([(f"  {name}", as_text(value[name])) for name in value if value[name] is not None])
        else:
            click.echo(f"{key}: {as_text(value)}")
    if not layers:
        return
    click.echo()
    rows = [("LAYER", "SIZE", "BANDS", "HOP MS", "SEES MS")]
    for layer in layers:
        whole = "window" if layer["receptive_field_ms"] is None else as_text(layer["receptive_field_ms"])
        hop = "-" if layer["hop_ms"] is None else as_text(layer["hop_ms"])
        rows.append((layer["layer"], str(layer["size"]), str(layer["n_freq"]), hop, whole))
    echo_table(rows)


def description_rows(description: dict[str, Any]) -> Iterator[tuple[str, Any]]:
    """Yield the rows of a description in words and units for people."""
    for key, value in description.items():
        if key == "relative_to_ast":
            size, cost = value["parameters"], value["multiply_accumulates_10_s"]
            yield "beside AST", f"{as_ratio(size)} the parameters, {as_ratio(cost)} the multiply-accumulates"
        elif key in ("multiply_accumulates_10_s", "operations_10_s"):
            unit, what = {"m": ("GMAC", "the network"), "o": ("GOP", "front end included")}[key[0]]
            yield "cost of 10 s", f"{value / 1e9:.3g} {unit}, {what}"
        elif key in ("recommended", "take_for"):
            if value:
                yield key.replace("_", " "), value if isinstance(value, str) else ", ".join(value)
        elif key == "sample_rate":
            yield "sample rate", f"{value:,} Hz"
        elif key.endswith("_window_ms"):
            words = key.removesuffix("_ms").replace("_", " ")
            yield words, "any length" if value is None else f"{as_text(value)} ms"
        elif key in ("weights", "imagenet"):
            yield key, weights_rows(value)
        else:
            yield key.replace("_", " "), value


def weights_rows(found: dict[str, Any]) -> dict[str, Any]:
    """Return the rows of a checkpoint in words for people."""
    if found["checkpoint"] is None:
        return {"file": "none is published; train some, or give your own"}
    size = found.pop("megabytes"), found.pop("megabytes_are_estimated")
    trusted = "" if found["verified_by"] in ("sha256", "md5") else ", then the sha256 of the first download"
    return {
        "file": found.pop("checkpoint"),
        "size": None if size[0] is None else f"{megabytes(*size)} MB",
        **{key.replace("_", " "): value for key, value in found.items()},
        "verified by": found["verified_by"] + trusted,
    }


DOWNLOADS = """\b
Examples:
  hear-transformers download passt        the first variant of a family
  hear-transformers download mn10_as      a variant; also panns/cnn14, or panns cnn14
  hear-transformers download panns all    all variants of a family
  hear-transformers download "mn*"        all that fit a pattern
  hear-transformers download hf m-a-p/MERT-v1-95M
                                          into the cache of Hugging Face
  hear-transformers download all          everything
"""


@main.command(epilog=DOWNLOADS)
@click.argument("model", metavar="MODEL|all")
@click.argument("variant", required=False, metavar="[VARIANT|all]")
@click.option("--imagenet", is_flag=True, help="Download the ImageNet weights for `train --from imagenet` instead.")
@guarded
def download(model: str, variant: str | None, imagenet: bool) -> None:
    """Download and verify weights.

    A download that breaks off is resumed by the same command. Files that other packages keep (torch.hub,
    panns_inference, EfficientAT, Hugging Face) are used where they lie if the hash that is published is theirs.
    """
    from hear_transformers import catalogue
    from hear_transformers.checkpoints import store

    if model in OPEN_FAMILIES:
        click.echo(printable(str(catalogue.family(model).find("", variant).folder)))
        return
    rows = catalogue.downloads(model, variant, imagenet=imagenet)
    sizes = [catalogue.megabytes(row) for row in rows]
    total = megabytes(sum(size or 0.0 for size, _ in sizes), any(guess for _, guess in sizes))
    click.echo(f"{rows[0].file if len(rows) == 1 else f'{len(rows)} files'}, {total} MB", err=True)
    missing: list[Checkpoint] = []
    unreachable: set[str] = set()
    message, n_failed = "", 0
    for row in rows:
        if store.hosts(row) <= unreachable and store.find_here(row) is None:
            missing.append(row)
            continue
        try:
            click.echo(printable(str(store.fetch(row, sys.stderr.isatty(), unreachable))))
        except store.OfflineError as error:
            message = str(error)
            missing.append(row)
            unreachable |= store.hosts(row)
        except store.WeightsError as error:
            click.echo(printable(f"Error: {error}"), err=True)
            n_failed += 1
    if missing:
        text = message if len(missing) == 1 else offline(missing, unreachable, store.weights_dir())
        click.echo(printable(f"Error: {text}"), err=True)
    sys.exit(1 if missing or n_failed else 0)


def offline(missing: Sequence[Checkpoint], hosts: Collection[str], folder: Path) -> str:
    """Return what to do about files whose hosts cannot be reached."""
    names = "".join(f"\n  {row.file}" for row in missing)
    return (
        f"{', '.join(sorted(hosts))} cannot be reached; put these {len(missing)} files into {folder}, "
        f"`hear-transformers list --json` has their addresses:{names}"
    )


@main.command()
@click.argument("model")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint to use instead of the published one.")
@click.option(
    "--model-options", default="{}", metavar="JSON", help='Keyword arguments for load_model: \'{"variant": "base"}\'.'
)
@click.option("--device", default="auto", show_default=True, metavar="NAME", help="auto, cuda, cuda:1, mps or cpu.")
@guarded
def validate(model: str, weights: str, model_options: str, device: str) -> None:
    """Check that MODEL follows the HEAR API.

    MODEL is a model of this package (passt, mn10_as, panns/cnn14), or a Python module, another package's or your own in
    the current folder.
    """
    from hear_transformers import catalogue
    from hear_transformers.embedding.devices import pick_device

    search_working_folder()
    options = parse_object("--model-options", model_options, '{"layer": 8}')
    module, options = catalogue.as_module(model, options)
    if catalogue.is_own(model):
        catalogue.check_names(module.rpartition(".")[2], options)
    from hear_transformers.harness import contract

    for finding in contract.check_module(module, weights, options, pick_device(device)):
        click.echo(finding)
    click.echo("Looks good!")


completing(main)
