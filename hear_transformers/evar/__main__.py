"""`python -m hear_transformers.evar config|run`: configurations and scripts of EVAR, see `hear_transformers.evar`."""

from __future__ import annotations

from pathlib import Path

import click

from ..cli.failures import guarded
from ..cli.parsing import parse_object


@click.group()
def main() -> None:
    """Evaluate a model with EVAR, in its folder."""


@main.command("config")
@click.argument("model")
@click.option("--out", required=True, metavar="FILE", help="YAML file to write, in the folder config of EVAR.")
@click.option("--model-options", default="{}", metavar="JSON", help="What to embed, such as '{\"layer\": 8}'.")
@guarded
def config_command(model: str, out: str, model_options: str) -> None:
    """Write EVAR's configuration of MODEL, such as passt or panns/cnn14."""
    from . import config

    options = parse_object("--model-options", model_options, '{"layer": 8}')
    Path(out).write_text(config(model, **options), encoding="utf-8")


@main.command("run", context_settings={"ignore_unknown_options": True})
@click.argument("script")
@click.argument("arguments", nargs=-1, type=click.UNPROCESSED)
def run_command(script: str, arguments: tuple[str, ...]) -> None:
    """Run SCRIPT of EVAR with its own ARGUMENTS, such as lineareval.py config/passt.yaml esc50."""
    from ..cli.failures import Failure
    from ..errors import OptionError
    from . import run

    try:
        run(script, arguments)
    except OptionError as error:  # all others keep their traceback: the fault may be in EVAR
        raise Failure(str(error), 2) from error


if __name__ == "__main__":
    main()
