"""HEAR's official programs as commands, for the interpreter of .venv-hear.

Usage: python -m hear_transformers.cli.official embeddings MODULE --tasks-dir TASKS ...
       python -m hear_transformers.cli.official predictions EMBEDDINGS/MODULE/* ...
       python -m hear_transformers.cli.official validate MODULE ...
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import click

from hear_transformers.errors import HearTransformersError
from hear_transformers.harness import official

from .failures import Failure, guarded
from .parsing import parse_object


@click.group()
def main() -> None:
    """Run an official program of HEAR.

    The arguments of embeddings and predictions are those of heareval.embeddings.runner and
    heareval.predictions.runner; see their --help.
    """


def passed_on(command: Callable[[tuple[str, ...]], None]) -> click.Command:
    """Make a command that receives all arguments as they are, --help included."""

    @functools.wraps(command)
    def run(arguments: tuple[str, ...]) -> None:
        try:
            command(arguments)
        except HearTransformersError as error:  # all others keep their traceback: the fault may be in the user's module
            raise Failure(str(error), 1) from error

    with_arguments = click.argument("arguments", nargs=-1, type=click.UNPROCESSED)(run)
    return main.command(context_settings={"ignore_unknown_options": True}, add_help_option=False)(with_arguments)


@main.command()
@guarded
def check() -> None:
    """Check that the programs are installed."""
    official.require(*official.NEEDS)


@passed_on
def embeddings(arguments: tuple[str, ...]) -> None:
    """Embed tasks: heareval.embeddings.runner."""
    official.run_embeddings(arguments)


@passed_on
def predictions(arguments: tuple[str, ...]) -> None:
    """Train and score predictions on embeddings: heareval.predictions.runner."""
    official.run_predictions(arguments)


@main.command("validate")
@click.argument("module")
@click.option("--weights", default="", metavar="FILE", help="Checkpoint to use instead of the published one.")
@click.option("--device", metavar="NAME", help="cpu or cuda.  [default: cuda if available]")
@click.option(
    "--model-options",
    default="{}",
    metavar="JSON",
    help="Keyword arguments for load_model; for our modules '{\"pretrained\": false}' means random weights.",
)
@guarded
def validate_command(module: str, weights: str, device: str | None, model_options: str) -> None:
    """Check that MODULE follows the HEAR API, with HEAR's own hear-validator."""
    official.validate(module, weights, device, parse_object("--model-options", model_options, '{"pretrained": false}'))
    click.echo("Looks good!")


if __name__ == "__main__":
    main()
