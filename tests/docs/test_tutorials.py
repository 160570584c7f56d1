"""Every tutorial runs, top to bottom, in an empty folder and without a network, and prints what it shows."""

import importlib.util
import sys
from pathlib import Path

import pytest

from hear_transformers.benchmarks.journeys import OFFLINE, ROOT, TUTORIALS, USERS, blocks_of, is_like, run

PAGES = sorted(TUTORIALS.glob("*.md"))


@pytest.mark.slow  # each block is a process of its own, which imports PyTorch
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_does_what_it_shows(page: Path, tmp_path: Path) -> None:
    for module in ("pyarrow", "sklearn", "scipy", "matplotlib"):
        pytest.importorskip(module)
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.installs or (block.needs is not None and importlib.util.find_spec(block.needs) is None):
            continue
        ours = {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
        printed = run(block, tmp_path, Path(sys.executable).parent, **OFFLINE, **ours)
        assert block.shown is None or is_like(block.shown, printed, tmp_path), f"{block.text}\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_begins_with_its_installation(page: Path) -> None:
    assert [block.installs for block in blocks_of(page.read_text(encoding="utf-8"))].index(True) == 0


def test_every_user_has_a_tutorial() -> None:
    assert set(USERS.values()) <= {page.stem for page in PAGES}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_pictures_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pictures = [page.parent / part.partition(")")[0] for part in text.split("](")[1:] if ".png)" in part]
    assert all(picture.is_file() and picture.stat().st_size < 100_000 for picture in pictures)
