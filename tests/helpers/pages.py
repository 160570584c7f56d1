"""Pages of docs/ whose blocks run top to bottom, as a reader would paste them."""

import doctest
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).parents[2]

FENCED = re.compile(
    r"^(?:<!-- needs (?P<needs>\w+) -->\n)?```(?P<kind>[\w-]+)\n(?P<text>.*?)^```$", re.DOTALL | re.MULTILINE
)

INSTALLS = "pip install"
"""What the environment of the tests has had already."""

PROGRAMS = {"bash": ["bash", "-euo", "pipefail", "-c"], "python": [sys.executable, "-c"]}
"""Kind of block -> what runs it. A console shows what needs a network or another machine, and is not run."""


class Block(NamedTuple):
    """A block that runs, the package that it needs, and what it prints, None if the page does not show it."""

    kind: str
    text: str
    needs: str | None
    shown: str | None


def blocks_of(page: str) -> Iterator[Block]:
    """Find the blocks of a page that run, each with the text block after it."""
    found = list(FENCED.finditer(page))
    for match, after in zip(found, [*found[1:], None], strict=True):
        if match["kind"] in PROGRAMS and INSTALLS not in match["text"]:
            shown = after["text"] if after is not None and after["kind"] == "text" else None
            yield Block(match["kind"], match["text"], match["needs"], shown)


def run(block: Block, folder: Path) -> str:
    """Run a block in a folder, without a network; return what it prints."""
    away = {name: "http://127.0.0.1:9" for name in ("http_proxy", "https_proxy", "HTTP_PROXY", "HTTPS_PROXY")}
    path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
    ours = {"PATH": path, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    command = [*PROGRAMS[block.kind], block.text]
    done = subprocess.run(
        command, cwd=folder, env={**os.environ, **away, **ours}, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, f"{block.text}\n{done.stdout}\n{done.stderr}"
    return done.stdout


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
