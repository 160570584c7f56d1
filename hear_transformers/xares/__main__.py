"""`python -m hear_transformers.xares ENCODER TASK...`: X-ARES with this package's reader, see `run`."""

from __future__ import annotations

import click

from ..cli.failures import guarded


@click.command()
@click.argument("encoder")
@click.argument("tasks", nargs=-1, required=True, metavar="TASK...")
@click.option("--max-jobs", default=0, show_default=True, help="Processes, on the GPUs by turns; 0 for a single one.")
@click.option("--from-stage", type=click.IntRange(0, 2), default=0, show_default=True, help="First stage to run.")
@click.option("--to-stage", type=click.IntRange(0, 2), default=2, show_default=True, help="Last stage to run.")
@guarded
def main(encoder: str, tasks: tuple[str, ...], max_jobs: int, from_stage: int, to_stage: int) -> None:
    """Run tasks of X-ARES with its own program; what it cannot read or do is an error.

    ENCODER is a model ("passt", "panns/cnn14"), or a module or file with one class whose name ends in Encoder. TASK is
    a task of X-ARES, such as tasks/esc50_task.py. Stages: 0 fetches audio, 1 encodes it, 2 scores.
    """
    from .run import run

    run(encoder, tasks, max_jobs=max_jobs, from_stage=from_stage, to_stage=to_stage)


if __name__ == "__main__":
    main()
