"""The synthetic corpus: how fast it is made, and examples to listen to and to look at.

python -m hear_transformers.training.corpus speed
python -m hear_transformers.training.corpus preview --out DIR
"""

from __future__ import annotations

from pathlib import Path

import click

from ...cli.failures import guarded

clips_option = click.option("--clips", type=click.IntRange(1), default=8, show_default=True, help="Of each kind.")
speech_option = click.option("--speech/--no-speech", default=True, show_default=True, help="Speech needs eSpeak NG.")


@click.group(help=__doc__.partition("\n")[0])
def cli() -> None:
    """Group the commands."""


@cli.command()
@clips_option
@speech_option
@guarded
def speed(clips: int, speech: bool) -> None:
    """Measure seconds of sound made per second of one core: by kind with log-mels, and by family without."""
    from .speed import measure

    for name, times in measure(clips, speech):
        click.echo(f"{name:12}{times:8.0f} times real time")


@cli.command()
@click.option("--out", type=click.Path(file_okay=False, path_type=Path), required=True, help="Folder for the files.")
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True, help="Of the corpus.")
@clips_option
@speech_option
@guarded
def preview(out: Path, seed: int, clips: int, speech: bool) -> None:
    """Write WAV files of families, scenes, speech and notes, and a sheet of their log-mels and labels."""
    from .preview import write

    for path in write(out, seed, clips, speech):
        click.echo(path)


if __name__ == "__main__":
    cli(prog_name="python -m hear_transformers.training.corpus")
