"""First steps of four users, each in a fresh virtual environment with the wheel alone: a tutorial, as it is written.

``python -m hear_transformers.benchmarks.journeys --help``. Only the installation uses a network.
"""

from __future__ import annotations

import doctest
import os
import re
import subprocess
import sys
import tempfile
import time
import venv
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import click

from .tables import echo_table

ROOT = Path(__file__).parents[2]

TUTORIALS = ROOT / "docs" / "tutorials"

USERS: Mapping[str, str] = {
    "field recordist": "archive",
    "music engineer": "classifier",
    "HEAR researcher": "harnesses",
    "cluster engineer": "cluster",
}
"""User -> the tutorial that is meant for them."""

FENCED = re.compile(
    r"^(?:<!-- needs (?P<needs>\w+) -->\n)?```(?P<kind>\w+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)

INSTALLS = "pip install"

SOURCE = "'."
"""How a page names this package to pip; a journey has its wheel instead."""

INTERPRETERS = {"bash": ("bash", "-euo", "pipefail", "-c"), "python": ("python", "-c")}
"""Kind of block -> what runs it. A console shows what needs a network or another machine, and is not run."""


class Block(NamedTuple):
    """A block of a page that runs.

    Attributes
    ----------
    kind : a key of `INTERPRETERS`
    text : to run
    needs : the package without which it does not, None if there is none
    shown : what it prints, None if the page does not show it
    """

    kind: str
    text: str
    needs: str | None
    shown: str | None

    @property
    def installs(self) -> bool:
        """True if it is about installing this package."""
        return INSTALLS in self.text

    @property
    def n_commands(self) -> int:
        """Number of commands that a reader pastes: lines for a shell, or one piece of Python."""
        return len(self.text.splitlines()) if self.kind == "bash" else 1


def blocks_of(page: str) -> Iterator[Block]:
    """Find the blocks of a page that run, each with the text block after it."""
    found = list(FENCED.finditer(page))
    for match, after in zip(found, [*found[1:], None], strict=True):
        if match["kind"] in INTERPRETERS:
            shown = after["text"] if after is not None and after["kind"] == "text" else None
            yield Block(match["kind"], match["text"], match["needs"], shown)


def run(block: Block, folder: Path, programs: Path, **environment: str) -> str:
    """Run a block in a folder, and return what it prints.

    Parameters
    ----------
    block : to run
    folder : the current one
    programs : folder of Python and of our commands
    environment : variables besides those of this process

    Raises
    ------
    ClickException : it fails
    """
    ours = {"PATH": f"{programs}{os.pathsep}{os.environ['PATH']}", **environment}
    done = subprocess.run(
        [*INTERPRETERS[block.kind], block.text],
        cwd=folder,
        env={**os.environ, **ours},
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        raise click.ClickException(f"{block.text}\n{done.stdout}\n{done.stderr}")
    return done.stdout


OFFLINE = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
"""Variables with which nothing reaches a network."""


def is_like(shown: str, printed: str, folder: Path) -> bool:
    """Return whether a block printed what the page shows, but for what differs between machines.

    That is numbers with a point, the folder, how columns are padded, and the order of lines, as equal scores have none.
    Three points stand for anything.
    """
    expected, found = (_lines(text, folder) for text in (shown, printed))
    if "..." in shown:
        return doctest.OutputChecker().check_output("\n".join(expected), "\n".join(found), doctest.ELLIPSIS)
    return sorted(expected) == sorted(found)


def _lines(text: str, folder: Path) -> list[str]:
    text = text.replace(f"{folder}/", "").replace("/home/you/", "")
    text = re.sub(r"\d+\.\d+(e-?\d+)?", "#", text)
    return [" ".join(line.split()) for line in text.strip().splitlines()]


class Journey(NamedTuple):
    """What a journey took.

    Attributes
    ----------
    commands : that were pasted
    installing, running : s
    megabytes : of the environment
    lines : to read, of the page and of what the commands print
    """

    commands: int
    installing: float
    running: float
    megabytes: float
    lines: int


def travel(page: str, wheel: Path, environment: Path, folder: Path) -> Journey:
    """Follow a page from its installation to its last block, in an environment and a folder that are new."""
    venv.create(environment, with_pip=True)
    programs = environment / "bin"
    seconds = {True: 0.0, False: 0.0}
    blocks = list(blocks_of(page))
    n_lines = sum(1 for line in page.splitlines() if line)
    for block in blocks:
        began = time.monotonic()
        if block.installs:
            wheeled = block._replace(text=block.text.replace(SOURCE, f"'{wheel}"))
            printed = run(wheeled, folder, programs, PIP_DISABLE_PIP_VERSION_CHECK="1", PIP_QUIET="1")
        else:
            printed = run(block, folder, programs, HF_HUB_OFFLINE="1", **OFFLINE)
        seconds[block.installs] += time.monotonic() - began
        n_lines += len(printed.splitlines())
    size = sum(path.lstat().st_size for path in environment.rglob("*") if path.is_file())
    return Journey(sum(block.n_commands for block in blocks), seconds[True], seconds[False], size / 1e6, n_lines)


def build_wheel(folder: Path) -> Path:
    """Build the wheel of this package in a folder, of a source distribution: nothing of earlier builds is in it."""
    command = [sys.executable, "-m", "build", "--outdir", str(folder), str(ROOT)]
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    (wheel,) = folder.glob("*.whl")
    return wheel


@click.command()
@click.option("--user", "users", multiple=True, type=click.Choice([*USERS]), help="Several times.  [default: all]")
@click.option("--out", type=click.Path(path_type=Path, file_okay=False), required=True, help="Folder of the results.")
def main(users: Sequence[str], out: Path) -> None:
    """Follow the tutorial of each user, and print what it took: gigabytes are installed and removed again."""
    columns = ("user", "tutorial", "commands", "install, s", "run, s", "environment, MB", "lines to read")
    with tempfile.TemporaryDirectory() as made:
        wheel = build_wheel(Path(made))
        echo_table(columns, (row_of(user, wheel, out.absolute() / USERS[user]) for user in users or USERS))


def row_of(user: str, wheel: Path, folder: Path) -> Sequence[str]:
    """Follow the tutorial of a user, and return what it took as a row of the table."""
    folder.mkdir(parents=True)
    page = (TUTORIALS / f"{USERS[user]}.md").read_text(encoding="utf-8")
    with tempfile.TemporaryDirectory() as environment:
        journey = travel(page, wheel, Path(environment), folder)
    return [
        user,
        f"[{USERS[user]}](../docs/tutorials/{USERS[user]}.md)",
        str(journey.commands),
        f"{journey.installing:.0f}",
        f"{journey.running:.0f}",
        f"{journey.megabytes:,.0f}",
        str(journey.lines),
    ]


if __name__ == "__main__":
    main()
