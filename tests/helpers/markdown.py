"""The pages that people read: their blocks, the commands in these, links and headings."""

import re
import shlex
from collections.abc import Iterator
from pathlib import Path

from hear_transformers.benchmarks.journeys import FENCED

ROOT = Path(__file__).parents[2]
PAGES = [path for place in (".", "docs", "weights") for path in sorted((ROOT / place).glob("*.md"))]
PAGES += [path for place in ("docs", "weights") for path in sorted((ROOT / place).glob("*/**/*.md"))]

SHELL = ("bash", "console", "sh")
PROGRAMS = ("embed-audio", "hear-transformers")
REDIRECTIONS = (">", ">>", "<")
SEPARATORS = ("|", "||", "&&", ";", "&")
LINK = re.compile(r"(?<!\\)\[(?:[^\[\]]|\[[^\[\]]*\])*\]\((?P<target>[^()\s]+)\)")


def name_of(page: Path) -> str:
    """Return how a page is called in the repository."""
    return page.relative_to(ROOT).as_posix()


def blocks(page: Path, *kinds: str) -> Iterator[str]:
    """Yield the blocks of some kinds in a page."""
    for match in FENCED.finditer(page.read_text(encoding="utf-8")):
        if match["kind"] in kinds:
            yield match["text"]


def lines_of(page: Path) -> Iterator[str]:
    """Yield each line of shell in a page, as long as a backslash continues it; of a console what follows its prompt."""
    for match in FENCED.finditer(page.read_text(encoding="utf-8")):
        for line in match["text"].replace("\\\n", " ").splitlines() if match["kind"] in SHELL else ():
            if match["kind"] != "console":
                yield line
            elif line.startswith("$ "):
                yield line.removeprefix("$ ")


def commands(page: Path) -> Iterator[list[str]]:
    """Yield the words of each command in a page, those within another's words, such as of sbatch --wrap, too."""
    for line in lines_of(page):
        yield from commands_of(line)


def commands_of(line: str) -> Iterator[list[str]]:
    """Yield the words of each command in a line; an unknown variable is a zero."""
    words: list[str] = []
    split = shlex.split(line, comments=True)
    ends = [i for i, word in enumerate(split) if word in REDIRECTIONS]
    for word in [*split[: min(ends, default=None)], ";"]:
        if word not in SEPARATORS:
            words.append(re.sub(r"\$\{?\w+\}?|\$@|\$\{@:\d+\}", "0", word))
        elif words:
            yield words
            words = []
        if any(f"{program} " in word for program in PROGRAMS):
            yield from commands_of(word)


def links(page: Path) -> Iterator[str]:
    """Yield the targets of the links and images of a page, those in code left out."""
    text = FENCED.sub("", page.read_text(encoding="utf-8"))
    for match in LINK.finditer(re.sub(r"`[^`\n]*`", "`", text)):
        yield match["target"]


def anchors(page: Path) -> set[str]:
    """Return the names of a page's headings in links, as GitHub and the site make them."""
    found: dict[str, int] = {}
    names = set()
    for heading in re.findall(r"^#{1,6} (.+)$", FENCED.sub("", page.read_text(encoding="utf-8")), re.MULTILINE):
        text = re.sub(r"\[([^\]]*)\]\([^)]*\)", r"\1", heading)
        name = re.sub(r"[^\w\- ]", "", text.strip().lower()).replace(" ", "-")
        count = found[name] = found.get(name, -1) + 1
        names.add(f"{name}-{count}" if count else name)
    return names
