"""What stands around the code: citation, recipes of packages, forms for issues. It agrees with pyproject.toml."""

import re
import subprocess
import sys
import zipfile
from pathlib import Path
from typing import Any

import pytest

from hear_transformers import __version__

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
PACKAGING = ROOT / "docs" / "packaging"
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
PROJECT: dict[str, Any] = PYPROJECT["project"]
RECIPE = (PACKAGING / "meta.yaml").read_text(encoding="utf-8")
DOCKERFILE = (PACKAGING / "Dockerfile").read_text(encoding="utf-8")

OF_CONDA = {"torch": "pytorch", "soundfile": "pysoundfile", "soxr": "soxr-python"}
"""Names of packages that have another one in conda-forge."""


def test_the_citation_is_of_this_version() -> None:
    text = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert f"\nversion: {__version__}\n" in text
    assert f"\nlicense: {PROJECT['license']}\n" in text
    assert "cff-version: 1.2.0\n" in text


def test_the_citation_names_the_authors_of_the_package() -> None:
    authors = re.findall(r"^  - name: (.*)$", (ROOT / "CITATION.cff").read_text(encoding="utf-8"), re.MULTILINE)
    assert [{"name": name} for name in authors] == PROJECT["authors"]


def test_classifiers_say_what_is_declared() -> None:
    classifiers = PROJECT["classifiers"]
    assert not [name for name in classifiers if name.startswith("License ::")]  # PEP 639: `license` says it
    assert ("Typing :: Typed" in classifiers) == (ROOT / "hear_transformers" / "py.typed").exists()
    versions = [int(found[1]) for name in classifiers if (found := re.fullmatch(r"Programming .*:: 3\.(\d+)", name))]
    assert PROJECT["requires-python"] == f">=3.{versions[0]}"
    assert versions == [*range(versions[0], versions[-1] + 1)]


# Conda


def requirements(part: str) -> set[str]:
    """Return the requirements of a part of the recipe."""
    lines = re.search(rf"\n  {part}:\n((?:    - .*\n)+)", RECIPE)
    assert lines
    return set(re.findall(r"- (.*)\n", lines[1]))


def as_conda(requirement: str) -> str:
    """Return a requirement of pip in the words of conda, whose packages for all Pythons have no markers."""
    found = re.match(r"([\w-]+)(>=[\d.]+)", requirement)
    assert found
    return f"{OF_CONDA.get(found[1], found[1])} {found[2]}"


def test_the_recipe_requires_what_the_package_requires() -> None:
    python = f"python {PROJECT['requires-python']}"
    assert requirements("run") == {python, *map(as_conda, PROJECT["dependencies"])}
    assert requirements("host") == {python, "pip", *map(as_conda, PYPROJECT["build-system"]["requires"])}


def test_the_recipe_is_of_this_package() -> None:
    assert f'{{% set version = "{__version__}" %}}' in RECIPE
    assert f'summary: "{PROJECT["description"]}"' in RECIPE
    for name, place in PROJECT["scripts"].items():
        assert f"    - {name} = {place}\n" in RECIPE


# Docker


def instructions(name: str) -> list[str]:
    return re.findall(rf"^{name} (.*)$", DOCKERFILE, re.MULTILINE)


def copied() -> list[str]:
    """Return what the image is built from."""
    return [part for line in instructions("COPY") if not line.startswith("--from") for part in line.split()[:-1]]


def test_the_image_is_built_from_what_is_here() -> None:
    ignored = (PACKAGING / "Dockerfile.dockerignore").read_text(encoding="utf-8").splitlines()
    assert {line[1:] for line in ignored if line.startswith("!")} == set(copied())
    assert all((ROOT / name).exists() for name in copied())


def test_the_image_has_extras_that_exist() -> None:
    (extras,) = [line.removeprefix("EXTRAS=") for line in instructions("ARG") if line.startswith("EXTRAS=")]
    assert set(extras.split(",")) <= set(PROJECT["optional-dependencies"])


@pytest.mark.slow
def test_what_the_image_copies_makes_a_wheel(tmp_path: Path) -> None:
    source, wheels = tmp_path / "source", tmp_path / "wheels"
    source.mkdir()
    for name in copied():
        (source / name).symlink_to(ROOT / name)
    (command,) = [line for line in instructions("RUN") if " pip wheel " in line]
    command = command.replace("python ", f"{sys.executable} ", 1).replace("/wheels", str(wheels))
    # A copy, since building writes beside the sources.
    subprocess.run(["cp", "-rL", source, tmp_path / "copy"], check=True)
    subprocess.run(command, cwd=tmp_path / "copy", shell=True, check=True, capture_output=True)
    (wheel,) = wheels.glob("*.whl")
    assert "hear_transformers/weights/tiny.safetensors" in zipfile.ZipFile(wheel).namelist()


# Forms


@pytest.mark.parametrize("name", ["bug", "model"])
def test_forms_ask_what_is_needed(name: str) -> None:
    yaml = pytest.importorskip("yaml", reason="comes with the extra test")
    form = yaml.safe_load((ROOT / ".github" / "ISSUE_TEMPLATE" / f"{name}.yml").read_text(encoding="utf-8"))
    assert {"name", "description", "body"} <= set(form)
    identifiers = [field["id"] for field in form["body"]]
    assert len(identifiers) == len(set(identifiers)) > 2
    assert all(field["type"] in ("input", "textarea", "checkboxes") for field in form["body"])
    assert all(field["attributes"]["label"] for field in form["body"])


def test_a_report_of_a_bug_comes_with_the_doctors() -> None:
    assert "`hear-transformers doctor`" in (ROOT / ".github" / "ISSUE_TEMPLATE" / "bug.yml").read_text(encoding="utf-8")
