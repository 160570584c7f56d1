"""The rooms of the house (CONTRIBUTING.md): imports run one way, names and docstrings keep the rules."""

import ast
import functools
import subprocess
import sys
from graphlib import TopologicalSorter
from importlib.util import resolve_name
from pathlib import Path

import pytest

from hear_transformers import FAMILIES, OPEN_FAMILIES

ROOT = Path(__file__).parents[1]
PACKAGE = "hear_transformers"

FLOORS = (
    {PACKAGE, "errors", "files"},
    {"networks"},
    {"audio", "checkpoints"},
    {"embedding"},
    {"hear", "catalogue", "labels", "api"},
    {
        *FAMILIES,
        *OPEN_FAMILIES,
        "sklearn",
        "bulk",
        "harness",
        "doctor",
        "explore",
        "xares",
        "mteb",
        "evar",
        "ray",
        "export",
    },
    {"training", "probes"},
    {"explain", "comparison"},
    {"sweep", "serve", "training.corpus"},
    {"cli", "benchmarks", "training.distil", "__main__"},
)
"""Rooms from the lowest floor up: a room imports what is below it or beside it, never what is above."""

USERS_OF_CLI = {"cli", "benchmarks", "training.distil", "__main__"}
MAX_FILES_AT_ROOT = 12  # beside the families, whose modules users import
FIRST_WORDS_TO_AVOID = {"Give", "Gives", "Say", "Says", "Tell", "Tells", "Let", "Lets", "See", "Have"}


def modules() -> dict[str, Path]:
    """Find every module of the package by its name; `cli/` and `weights/` are installed inside it."""
    folders = {PACKAGE: ROOT / PACKAGE, f"{PACKAGE}.cli": ROOT / "cli", f"{PACKAGE}.weights": ROOT / "weights"}
    return {
        ".".join([name, *path.relative_to(folder).with_suffix("").parts]).removesuffix(".__init__"): path
        for name, folder in folders.items()
        for path in folder.rglob("*.py")
    }


MODULES = modules()


@functools.cache
def trees() -> list[tuple[str, ast.Module]]:
    return [(name, ast.parse(path.read_text(encoding="utf-8"))) for name, path in MODULES.items()]


def imports(name: str, tree: ast.Module) -> set[str]:
    """Find the modules of the package that a module imports: at its top, for type checkers or inside a function."""
    package = name if MODULES[name].name == "__init__.py" else name.rpartition(".")[0]
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom):
            base = resolve_name("." * node.level + (node.module or ""), package)
            # What is no module is a name within the base.
            found |= {f"{base}.{alias.name}" if f"{base}.{alias.name}" in MODULES else base for alias in node.names}
    return {module for module in found if module in MODULES} - {name}


@functools.cache
def graph() -> dict[str, set[str]]:
    # What the package hands on under its own name is imported when it is asked for, see its `__getattr__`.
    return {name: imports(name, tree) if name != PACKAGE else set() for name, tree in trees()}


def room(module: str) -> str:
    """Name the room of a module: a file at the root of the package, or a folder."""
    parts = module.split(".")[1:]
    if parts[-1:] == ["__main__"] and parts[:2] != ["training", "distil"]:
        return "__main__"
    inner = ".".join(parts[:2])
    return inner if inner in {"training.distil", "training.corpus"} else (parts or [PACKAGE])[0]


def test_every_room_has_a_floor():
    rooms = {room(module) for module in MODULES} - {"weights"}
    assert rooms - {"__main__"} == set().union(*FLOORS) - {"__main__"}


@pytest.mark.parametrize("module", MODULES)
def test_imports_run_one_way(module):
    floor = {room: i for i, rooms in enumerate(FLOORS) for room in rooms}
    above = {other for other in graph()[module] if floor[room(other)] > floor[room(module)]}
    assert not above


def test_no_files_import_each_other_in_a_circle():
    # Raises CycleError, which names the circle.
    TopologicalSorter(graph()).prepare()


def test_the_library_does_not_import_the_command_line():
    cli = {name for name in MODULES if room(name) == "cli"}
    assert {name for name, imported in graph().items() if imported & cli and room(name) not in USERS_OF_CLI} == set()


def test_the_root_of_the_package_is_small():
    families = {*FAMILIES, *OPEN_FAMILIES}
    others = [path for path in (ROOT / PACKAGE).iterdir() if path.is_file() and path.stem not in families]
    assert len(others) <= MAX_FILES_AT_ROOT


def test_no_module_is_named_like_a_standard_one():
    # A file at the root would hide the standard module from a Python started there; ast.py is AST's name for users.
    at_root = {path.stem for path in (ROOT / PACKAGE).glob("*.py")} - {"__init__", "__main__"}
    assert at_root & sys.stdlib_module_names == {"ast"}


HELP_OF_EVERYTHING = """
import sys
from importlib.metadata import entry_points

import click

import hear_transformers


def show(main, command, path):
    main([*path, "--help"], standalone_mode=False)
    for name in getattr(command, "commands", ()):
        show(main, command.commands[name], [*path, name])


for entry in entry_points(group="console_scripts"):
    if entry.value.startswith("hear_transformers."):
        show(entry.load(), entry.load(), [])
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""


def test_neither_the_package_nor_any_help_imports_torch():
    done = subprocess.run([sys.executable, "-c", HELP_OF_EVERYTHING], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("Usage: ") >= 10


def test_docstrings_begin_with_the_fields_imperative():
    kinds = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
    avoided = [
        f"{MODULES[name].relative_to(ROOT)}:{getattr(node, 'lineno', 1)}: {docstring.splitlines()[0]}"
        for name, tree in trees()
        for node in ast.walk(tree)
        if isinstance(node, kinds) and (docstring := ast.get_docstring(node))
        if docstring.split()[0].rstrip(".,:") in FIRST_WORDS_TO_AVOID
    ]
    assert not avoided, "\n".join(avoided)
