"""What a release holds: the wheel works without the repository, the sdist has all that its tests need."""

import os
import subprocess
import sys
import tarfile
import zipfile
from pathlib import Path

import pytest

if sys.version_info >= (3, 11):
    import tomllib
else:
    import tomli as tomllib

ROOT = Path(__file__).parents[1]
DEVELOPERS = {"hear_transformers.benchmarks", "hear_transformers.training.corpus", "hear_transformers.training.distil"}
"""Packages of developers' tools, which no user command needs."""

DATA = (
    "audioset_labels.csv",
    "py.typed",
    "harness/grids.json",
    "weights/manifest.toml",
    "weights/sizes.json",
    "weights/tiny.safetensors",
    *(f"weights/{path.name}" for path in (ROOT / "weights").glob("*.md")),
)
MAX_WHEEL_BYTES = 30_000_000
IMPORT_EVERYTHING = """
import importlib, sys
from pathlib import Path

folder, *modules = sys.argv[1:]
for module in modules:
    importlib.import_module(module)
for name, module in sys.modules.items():
    # The developers' installation is on the path as well, and would lend what the wheel lacks.
    if name.split(".")[0] == "hear_transformers":
        assert Path(module.__file__).is_relative_to(folder), module.__file__
"""


def run(*command: object, cwd: Path, **environment: str) -> str:
    """Run a command away from the repository, and return what it prints."""
    done = subprocess.run(
        [str(part) for part in command],
        cwd=cwd,
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, f"{done.stdout}\n{done.stderr}"
    return done.stdout


def test_packages_are_the_folders():
    with (ROOT / "pyproject.toml").open("rb") as file:
        setuptools = tomllib.load(file)["tool"]["setuptools"]
    folders = {path.parent.relative_to(ROOT) for path in (ROOT / "hear_transformers").rglob("__init__.py")}
    inside = {name for name in setuptools["package-dir"] if name.count(".") == 1}
    assert set(setuptools["packages"]) == {".".join(folder.parts) for folder in folders} - DEVELOPERS | inside


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Build the sdist, and from it the wheel."""
    folder = tmp_path_factory.mktemp("built")
    run(sys.executable, "-m", "build", "--outdir", folder, ROOT, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def wheel(built: Path) -> Path:
    (path,) = built.glob("*.whl")
    return path


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Install the wheel alone into a folder."""
    folder = tmp_path_factory.mktemp("installed")
    run(sys.executable, "-m", "pip", "install", "--no-deps", "--target", folder, wheel, cwd=folder)
    return folder


@pytest.fixture(scope="module")
def unpacked(built: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Unpack the sdist."""
    folder = tmp_path_factory.mktemp("unpacked")
    (path,) = built.glob("*.tar.gz")
    with tarfile.open(path) as archive:
        archive.extractall(folder)
    (root,) = folder.iterdir()
    return root


@pytest.mark.slow
def test_the_wheel_holds_the_data_of_user_commands(wheel):
    names = zipfile.ZipFile(wheel).namelist()
    assert {f"hear_transformers/{name}" for name in DATA} <= set(names)
    assert wheel.stat().st_size < MAX_WHEEL_BYTES


@pytest.mark.slow
def test_the_wheel_holds_neither_tests_nor_developers_tools(wheel):
    folders = {Path(name).parent for name in zipfile.ZipFile(wheel).namelist()}
    assert not {".".join(folder.parts) for folder in folders} & DEVELOPERS
    assert {folder.parts[0] for folder in folders} == {"hear_transformers", f"{wheel.name.rsplit('-', 3)[0]}.dist-info"}


@pytest.mark.slow
def test_every_module_of_the_wheel_is_imported_without_the_repository(installed, tmp_path):
    modules = [
        ".".join(path.relative_to(installed).with_suffix("").parts).removesuffix(".__init__")
        for path in (installed / "hear_transformers").rglob("*.py")
    ]
    imported = [module for module in modules if not module.endswith(".__main__")]
    run(sys.executable, "-c", IMPORT_EVERYTHING, installed, *imported, cwd=tmp_path, PYTHONPATH=str(installed))


@pytest.mark.slow
def test_the_wheels_commands_embed_a_file(installed, tmp_path):
    command = installed / "bin" / "embed-audio"
    assert run(sys.executable, command, "--help", cwd=tmp_path, PYTHONPATH=str(installed)).startswith("Usage: ")
    example = ROOT / "tests" / "data" / "example.wav"
    run(sys.executable, command, example, "--layer", 8, cwd=tmp_path, PYTHONPATH=str(installed))
    assert (tmp_path / "example.npz").exists()


@pytest.mark.slow
@pytest.mark.skipif(not (ROOT / ".git").exists(), reason="not a checkout of Git")
def test_the_sdist_holds_every_file_of_git(unpacked):
    listed = run("git", "ls-files", "--cached", cwd=ROOT).splitlines()
    missing = [name for name in listed if (ROOT / name).exists() and not (unpacked / name).exists()]
    assert not missing


@pytest.mark.slow
def test_tests_of_the_sdist_run(unpacked):
    tests = ("tests/networks/test_frontend.py", "tests/networks/test_tiny.py", "tests/test_labels.py")
    run(sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests, cwd=unpacked)
