"""The README is short, its picture light, and what pages show fits their width."""

import struct
from pathlib import Path

import pytest

from hear_transformers.doctor import DEVELOPERS
from tests.helpers.markdown import PAGES, ROOT, SHELL, blocks, name_of

README = (ROOT / "README.md").read_text(encoding="utf-8").splitlines()
PICTURE = ROOT / "docs" / "images" / "map.png"


def test_the_readme_has_at_most_160_lines() -> None:
    assert len(README) <= 160


def test_the_picture_is_a_light_png() -> None:
    content = PICTURE.read_bytes()
    width, height = struct.unpack(">II", content[16:24])
    assert content[:8] == b"\x89PNG\r\n\x1a\n"
    assert len(content) < 150_000
    assert 800 <= width <= 1600
    assert height < width


def test_every_extra_of_users_is_in_the_readme() -> None:
    from tests.docs.test_commands import EXTRAS

    table = "\n".join(line for line in README if line.startswith("| `"))
    assert [name for name in EXTRAS.keys() - DEVELOPERS if f"`{name}`" not in table] == []


@pytest.mark.parametrize("page", [page for page in PAGES if page.parent in (ROOT, ROOT / "docs")], ids=name_of)
def test_commands_fit_the_width_of_the_site(page: Path) -> None:
    lines = [line for kind in SHELL for block in blocks(page, kind) for line in block.splitlines()]
    assert [line for line in lines if len(line) > 104] == []
