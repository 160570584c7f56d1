"""What a command does not do at its start."""

import gc
import subprocess
import sys

import pytest
from hear_transformers.cli.imports import importing

from hear_transformers import FAMILIES

LOADS_NO_SYMPY = """
import sys, torch
before = set(sys.modules)
from hear_transformers import catalogue
for name in sys.argv[1:]:
    catalogue.load(name, options={"pretrained": False})
    if "sympy" in set(sys.modules) - before:
        sys.exit(f"{name} imports it")
"""


@pytest.mark.slow
def test_loading_does_not_import_sympy():
    done = subprocess.run([sys.executable, "-c", LOADS_NO_SYMPY, *FAMILIES], capture_output=True, check=False)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def _without_torch(monkeypatch):
    monkeypatch.delitem(sys.modules, "torch")
    yield
    gc.unfreeze()


@pytest.mark.usefixtures("_without_torch")
def test_imports_are_not_searched_for_garbage():
    before = gc.get_freeze_count()
    with importing():
        assert not gc.isenabled()
    assert gc.isenabled()
    assert gc.get_freeze_count() > before


@pytest.mark.usefixtures("_without_torch")
def test_an_import_that_fails_leaves_garbage_collection_on():
    with pytest.raises(ImportError), importing():
        raise ImportError
    assert gc.isenabled()


def test_where_pytorch_is_imported_nothing_is_changed():
    import torch  # noqa: F401

    before = gc.get_freeze_count()
    with importing():
        assert gc.isenabled()
    assert gc.get_freeze_count() == before
