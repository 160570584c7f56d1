"""Settings of the documentation site, which ``make docs`` builds: Sphinx, MyST and furo.

The folder that Sphinx reads is the repository, so that links between README, docs/, CONTRIBUTING and the cards of
weights/ are the same on the site as in the repository. Nothing is fetched: fonts are the reader's, the search is a file
of the site.
"""

from __future__ import annotations

import json
import re
import sys
from collections.abc import Iterator
from pathlib import Path

import click
from click.testing import CliRunner
from pygments.lexers import PythonConsoleLexer
from sphinx.application import Sphinx

DOCS = Path(__file__).parent
ROOT = DOCS.parent
sys.path.insert(0, str(ROOT))

from hear_transformers.cli.embed_audio import main as embed_audio  # noqa: E402
from hear_transformers.cli.hear_transformers import main as hear_transformers  # noqa: E402

from hear_transformers import FAMILIES, OPEN_FAMILIES, __version__  # noqa: E402

project = "hear_transformers"
author = "The hear_transformers authors"
version = release = __version__

extensions = ["myst_parser", "sphinx.ext.autodoc", "sphinx.ext.napoleon"]
root_doc = "README"
include_patterns = ["*.md", "docs/**.md", "weights/**.md"]
# What stands beside the pages is not looked through.
exclude_patterns = [".*", "hear_transformers", "cli", "tests", "site", "build", "dist", "*.egg-info"]

GUIDES = ("install", "command-line", "python", "options", "models", "archives", "training", "hear", "scale")
ARCHITECTURE = "Architecture, contributing <CONTRIBUTING>"
REFERENCE = ("docs/reference", "docs/commands", "weights/benchmarks", "weights/study/results")


def pages(folder: str, *, but: tuple[str, ...] = ()) -> list[str]:
    """Return the pages of a folder in the order of their names."""
    found = [path.relative_to(ROOT) for path in sorted((ROOT / folder).glob("*.md")) if path.stem not in but]
    return [path.with_suffix("").as_posix() for path in found]


NAMED = (*GUIDES, *(Path(page).name for page in REFERENCE))
NAVIGATION = {
    "Guides": [*(f"docs/{name}" for name in GUIDES), *pages("docs", but=NAMED)],
    "Tutorials": [page for below in sorted(DOCS.glob("*/")) for page in pages(f"docs/{below.name}")],
    "Reference": [*REFERENCE, ARCHITECTURE, "CHANGELOG", *pages(".", but=("README", "CONTRIBUTING", "CHANGELOG"))],
}
"""Heading of the menu -> pages. A page of docs/ and its folders that is new finds its way into it by itself."""

BELOW = {
    "docs/models": [f"{name} </weights/{name}>" for name in (*FAMILIES, *OPEN_FAMILIES)],
    "docs/hear": [f"{name} </weights/hear/{name}>" for name in FAMILIES],
}
"""Page -> those that the menu has below it."""

# What pages hold that is made of the package itself


def usages(command: click.Command, name: str, parent: click.Context | None = None) -> Iterator[str]:
    """Yield a section for a command and each of those below it: what ``--help`` prints."""
    context = click.Context(command, info_name=name, parent=parent, terminal_width=100, max_content_width=100)
    yield f"## {context.command_path}\n\n```text\n{command.get_help(context)}\n```\n"
    if isinstance(command, click.Group):
        for sub in command.list_commands(context):
            yield from usages(command.commands[sub], sub, context)


def help_of_every_command() -> str:
    """Return a section for each command."""
    return "\n".join([*usages(embed_audio, "embed-audio"), *usages(hear_transformers, "hear-transformers")])


def every_variant() -> str:
    """Return a table of what `hear-transformers list --json` prints, but for what is of this machine."""
    rows = json.loads(CliRunner().invoke(hear_transformers, ["list", "--json"]).stdout)
    lines = ["| model | parameters | MB | licence | metric | verified by |", "|---|---:|---:|---|---|---|"]
    for row in rows:
        size = "-" if row.get("megabytes") is None else f"{'~' * row['megabytes_are_estimated']}{row['megabytes']:.0f}"
        cells = (row.get(key) or "-" for key in ("licence", "metric", "verified_by"))
        name, millions = f"`{row['family']}/{row['variant']}`", f"{row['parameters'] / 1e6:.1f} M"
        lines.append(f"| {' | '.join((name, millions, size, *cells))} |")
    return "\n".join(lines)


MADE = {"<!-- help of every command -->": help_of_every_command, "<!-- every variant -->": every_variant}
"""Comment in a page -> what stands there on the site."""


def add_navigation(app: Sphinx, docname: str, source: list[str]) -> None:
    """Append the menu of the site to pages, whose own text is for readers of the repository as well."""
    menu = NAVIGATION if docname == root_doc else {docname: BELOW.get(docname, [])}
    for heading, names in menu.items():
        if names:
            source[0] += f"\n\n```{{toctree}}\n:hidden:\n:caption: {heading}\n\n" + "\n".join(names) + "\n```\n"


def fill(app: Sphinx, docname: str, source: list[str]) -> None:
    """Replace the comments of `MADE`."""
    for comment, make in MADE.items():
        if comment in source[0]:
            source[0] = source[0].replace(comment, make())


ENTRY = re.compile(r"(?P<name>\S.*?) : (?P<meaning>.*)")
"""A line of a docstring's section. Types stand in signatures, so what follows the colon is the meaning."""

LONG_NAMES = re.compile(r"^(\S[^:\n]*,)\n +(?=[^:\n]* : )", re.MULTILINE)
"""The first of two lines of names that have one meaning."""

STAR = re.compile(r"(``.*?``|`.*?`|^>>>.*$)|\*", re.MULTILINE)
"""A star, which stands for itself, or code, in which it does anyway."""

UNTOUCHED = ("Examples", "Notes")
"""Sections without entries."""

COLON = "\0"
"""Stands for a colon while napoleon looks, which takes what is before one for a type."""


def before_napoleon(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Write our sections as napoleon reads them: a name, and its meaning in lines of its own."""
    if what in ("data", "attribute"):
        lines[:] = [line.replace(":", COLON) for line in lines]
        return
    text = LONG_NAMES.sub(r"\1 ", "\n".join(lines))
    lines[:] = STAR.sub(lambda match: match[1] or r"\*", text).splitlines()
    written: list[str] = []
    section = ""
    for line, below in zip(lines, [*lines[1:], ""], strict=True):
        section = line if below.startswith("---") else section
        entry = None if section in ("", *UNTOUCHED) else ENTRY.fullmatch(line)
        written += [line] if entry is None else [entry["name"], f"    {entry['meaning']}"]
    lines[:] = written


def after_napoleon(app: Sphinx, what: str, name: str, of: object, options: object, lines: list[str]) -> None:
    """Put colons back, and write the name of what is returned before its meaning, not as its type."""
    returned = [line.removeprefix(":rtype: ").strip("*") for line in lines if line.startswith(":rtype: ")]
    for i, line in enumerate(lines):
        if line.startswith(":returns: ") and returned:
            lines[i] = line.replace(":returns: ", f":returns: **{returned[0]}** -- ", 1)
    lines[:] = [line.replace(COLON, ":") for line in lines if not line.startswith(":rtype: ")]


def setup(app: Sphinx) -> None:
    """Register what is done to pages and docstrings before they are read."""
    app.add_lexer("python-repl", PythonConsoleLexer)
    app.connect("source-read", add_navigation)
    app.connect("source-read", fill)
    app.connect("autodoc-process-docstring", before_napoleon, priority=400)  # napoleon's is 500
    app.connect("autodoc-process-docstring", after_napoleon, priority=600)


# Pages

myst_heading_anchors = 4
suppress_warnings = ["myst.header"]
highlight_language = "none"

# Docstrings

napoleon_numpy_docstring = True
napoleon_google_docstring = False
autodoc_typehints = "signature"
autodoc_member_order = "bysource"
python_use_unqualified_type_names = True
default_role = "code"

# The look

html_theme = "furo"
html_title = f"hear_transformers {version}"
html_copy_source = False
html_show_sphinx = False
html_show_copyright = False
html_extra_path = ["index.html"]
html_static_path = ["static"]
html_css_files = ["site.css"]
