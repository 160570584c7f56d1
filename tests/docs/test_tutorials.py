"""Every tutorial runs, top to bottom, in an empty folder and without a network, and prints what it shows."""

import importlib.util
from pathlib import Path

import pytest

from tests.helpers.pages import ROOT, blocks_of, is_like, run

PAGES = sorted((ROOT / "docs" / "tutorials").glob("*.md"))


@pytest.mark.slow  # each block is a process of its own, which imports PyTorch
@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_does_what_it_shows(page: Path, tmp_path: Path) -> None:
    for module in ("pyarrow", "sklearn", "scipy", "matplotlib"):
        pytest.importorskip(module)
    for block in blocks_of(page.read_text(encoding="utf-8")):
        if block.needs is not None and importlib.util.find_spec(block.needs) is None:
            continue
        printed = run(block, tmp_path)
        assert block.shown is None or is_like(block.shown, printed, tmp_path), f"{block.text}\n{printed}"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_the_page_shows_pictures_that_are_there(page: Path) -> None:
    text = page.read_text(encoding="utf-8")
    pictures = [page.parent / part.partition(")")[0] for part in text.split("](")[1:] if ".png)" in part]
    assert all(picture.is_file() and picture.stat().st_size < 100_000 for picture in pictures)
