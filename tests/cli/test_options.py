"""One meaning has one name of an option, over all commands."""

import importlib
from collections import defaultdict
from collections.abc import Iterator
from importlib.metadata import entry_points

import click
import pytest
from hear_transformers.cli import official

DEVELOPERS = ("bulk", "claims", "cluster", "heareval", "pages", "peers", "sizes", "study")


def walk(command: click.Command, path: str) -> Iterator[tuple[str, click.Command]]:
    """Find a command and all below it."""
    yield path, command
    for name, child in getattr(command, "commands", {}).items():
        yield from walk(child, f"{path} {name}")


def commands() -> dict[str, click.Command]:
    """Find every command of the package, of users and of developers."""
    roots = {
        entry.name: entry.load()
        for entry in entry_points(group="console_scripts")
        if entry.value.startswith("hear_transformers.")
    }
    roots["official"] = official.main
    for name in DEVELOPERS:
        module = importlib.import_module(f"hear_transformers.benchmarks.{name}")
        found = [value for value in vars(module).values() if isinstance(value, click.Command)]
        roots[name] = next((group for group in found if isinstance(group, click.Group)), found[0])
    roots["training.corpus"] = importlib.import_module("hear_transformers.training.corpus.__main__").cli
    roots["training.distil"] = importlib.import_module("hear_transformers.training.distil.__main__").cli
    return dict(pair for name, root in roots.items() for pair in walk(root, name))


COMMANDS = commands()
OPTIONS = [
    (path, option)
    for path, command in COMMANDS.items()
    for option in command.params
    if isinstance(option, click.Option)
]

MEANINGS = {
    "Checkpoint to use": {"--weights"},
    "Keyword arguments for load_model": {"--model-options"},
    "Processes that read audio": {"--num-workers"},
    "Concurrent processes": {"--num-workers"},
    "Print one JSON": {"--json"},
    "Folder that holds HEAR's tasks": {"--tasks-dir"},
    "Folder for the results": {"--out"},
    "Folder for all results": {"--out"},
    "auto, cuda": {"--device"},
    "or a variant": {"--model"},
    "a variant, or": {"--model"},
    "Each layer in a folder of its own": {"--separate-layers"},
    "Windows per": {"--batch-size"},
}
"""Beginning or part of a help text -> the name of every option that has it."""

REPLACED = {"--family", "--options", "--workers", "--layers-apart", "--embeddings-dir", "--checkpoint", "--args"}
"""Other names of the same meanings."""


def test_there_are_options() -> None:
    assert len(COMMANDS) > 15
    assert len(OPTIONS) > 80


@pytest.mark.parametrize("meaning", MEANINGS)
def test_a_meaning_has_one_name(meaning: str) -> None:
    named = {name for _, option in OPTIONS if meaning in (option.help or "") for name in option.opts}
    assert named == MEANINGS[meaning]


def test_no_other_name_of_these_meanings_is_left() -> None:
    left = [(path, name) for path, option in OPTIONS for name in option.opts if name in REPLACED]
    assert left == []


def test_long_options_have_one_name() -> None:
    long = [(path, [name for name in option.opts if name.startswith("--")]) for path, option in OPTIONS]
    several = [(path, names) for path, names in long if len(names) > 1]
    assert several == []


def test_a_name_takes_the_same_kind_of_value_everywhere() -> None:
    kinds = defaultdict(set)
    for _, option in OPTIONS:
        kinds[option.opts[0]].add(option.is_flag)
    assert [name for name, found in kinds.items() if len(found) > 1] == []


@pytest.mark.parametrize("name", ["--weights", "--model-options", "--device", "--num-workers"])
def test_values_are_named_alike(name: str) -> None:
    users = [(path, option) for path, option in OPTIONS if path.startswith(("embed-audio", "hear-transformers"))]
    assert len({option.metavar for _, option in users if name in option.opts}) == 1


@pytest.mark.parametrize("path", ["embed-audio", "hear-transformers train"])
def test_a_model_is_chosen_by_the_same_options(path: str) -> None:
    assert {"--model", "--variant"} <= {name for of, option in OPTIONS if of == path for name in option.opts}


@pytest.mark.parametrize("path", ["embed-audio", "hear-transformers validate", "hear-transformers hear embed"])
def test_a_checkpoint_is_given_by_the_same_option(path: str) -> None:
    assert "--weights" in {name for of, option in OPTIONS if of == path for name in option.opts}
