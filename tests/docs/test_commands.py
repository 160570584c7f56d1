"""The commands that pages show are words that the commands know; what can run here runs in other tests."""

import importlib.util
import re
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import click
import pytest
from hear_transformers.cli.embed_audio import main as embed_audio
from hear_transformers.cli.hear_transformers import main as hear_transformers

from hear_transformers import catalogue
from hear_transformers.embedding.choices import CHOICES
from tests.helpers.markdown import PAGES, ROOT, blocks, commands, name_of

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

WITH_SHELL = [page for page in PAGES if any(commands(page))]
COMMANDS = {"embed-audio": embed_audio, "hear-transformers": hear_transformers}
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
MAKEFILE = (ROOT / "Makefile").read_text(encoding="utf-8")


@pytest.fixture(autouse=True)
def files_are_there(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let every path that a page names exist."""
    monkeypatch.setattr(click.Path, "convert", lambda self, value, parameter, context: Path(value))


def parsed(
    command: click.Command, name: str, words: Sequence[str], parent: click.Context | None = None
) -> click.Context:
    """Parse the words of a command, and those of the command in it."""
    try:
        context = command.make_context(name, list(words), parent=parent)
    except click.exceptions.Exit:  # --help, --version
        return click.Context(command)
    if not isinstance(command, click.Group):
        return context
    rest = [*context._protected_args, *context.args]
    sub, found, rest = command.resolve_command(context, rest)
    assert found is not None
    return parsed(found, str(sub), rest, context)


def check_names(options: Mapping[str, Any]) -> None:
    """Check names of models, layers and other words of options, as far as they are of this package."""
    variant, layer = options.get("variant"), options.get("layer")
    if "inputs" in options:  # of embed-audio
        words = {name: options[name] for name in CHOICES if name in options}
        is_published = not options["weights"] and not options["probe"]
        for model in options["models"] or [None]:
            catalogue.check(model, variant, layer if is_published else None, **words)
    elif isinstance(model := options.get("model"), str) and not {*"*?[", "all"} & {*model, model, variant}:
        catalogue.resolve(model, variant)


def of_ours(words: Sequence[str]) -> tuple[str, Sequence[str]] | None:
    """Return the command of this package in a line, behind variables and programs that start it, and its words."""
    for i, word in enumerate(words):
        if Path(word).name in COMMANDS:
            return Path(word).name, words[i + 1 :]
    if words[:3] == ["python", "-m", "hear_transformers"]:
        return "hear-transformers", words[3:]
    return None


def check_ours(words: Sequence[str]) -> None:
    if (found := of_ours(words)) is not None:
        name, rest = found
        check_names(parsed(COMMANDS[name], name, rest).params)


def check_make(words: Sequence[str]) -> None:
    if "make" in words:
        for word in words[words.index("make") + 1 :]:
            name = word.partition("=")[0]
            known = rf"^{name}(:.*##| \?=)" if "=" not in word else rf"(^{name} \?=|\({name}\))"
            assert re.search(known, MAKEFILE, re.MULTILINE), f"make knows no {name}"


def check_modules(words: Sequence[str]) -> None:
    if words[:2] == ["python", "-m"] and words[2].startswith("hear_transformers"):
        assert importlib.util.find_spec(words[2]) is not None


def check_extras(words: Sequence[str]) -> None:
    if "install" in words:
        for named in re.findall(r"^(?:\.|hear_transformers)\[(.*)\]$", "\n".join(words), re.MULTILINE):
            assert set(named.split(",")) - {"EXTRA"} <= EXTRAS.keys()


@pytest.mark.parametrize("check", [check_ours, check_make, check_modules, check_extras])
@pytest.mark.parametrize("page", WITH_SHELL, ids=name_of)
def test_commands_are_known(page: Path, check: Callable[[Sequence[str]], None]) -> None:
    for words in commands(page):
        try:
            check(words)
        except Exception as error:
            raise AssertionError(f"{' '.join(words)}: {error}") from error


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["embed-audio", "a.wav", "--lay", "8"], "No such option"),
        (["embed-audio", "a.wav", "--layer", "77"], "77"),
        (["embed-audio", "a.wav", "--model", "pastt"], "passt"),
        (["embed-audio", "a.wav", "--pool", "avg"], "avg"),
        (["sbatch", "--wrap", "hear-transformers tran"], "No such command"),
        (["hear-transformers", "probe", "a.csv"], "out"),
    ],
)
def test_a_wrong_word_is_found(words: list[str], error: str) -> None:
    inner = words[-1].split() if words[0] == "sbatch" else words
    with pytest.raises((click.ClickException, ValueError), match=error):
        check_ours(inner)


def test_wrong_targets_modules_and_extras_are_found() -> None:
    for check, words in [
        (check_make, ["make", "dem"]),
        (check_modules, ["python", "-m", "hear_transformers.benchmark"]),
        (check_extras, ["pip", "install", ".[parket]"]),
    ]:
        with pytest.raises(AssertionError):
            check(words)


@pytest.mark.parametrize("page", [page for page in PAGES if any(blocks(page, "python"))], ids=name_of)
def test_python_imports_what_there_is(page: Path) -> None:
    for block in blocks(page, "python"):
        for module, names in re.findall(
            r"^(?:>>> )?from (hear_transformers[\w.]*) import ([\w, ]+)", block, re.MULTILINE
        ):
            found = importlib.import_module(module)
            for name in re.split(r",\s*", names.strip()):
                assert hasattr(found, name) or importlib.util.find_spec(f"{module}.{name}"), f"{module}.{name}"
