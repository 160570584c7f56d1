"""Every relative link of a page leads to a file of the repository, and to a heading in it."""

from pathlib import Path

import pytest

from tests.helpers.markdown import PAGES, ROOT, anchors, links, name_of


def is_elsewhere(target: str) -> bool:
    return target.startswith(("https://", "http://", "mailto:"))


def fault(page: Path, target: str) -> str | None:
    """Return what is wrong with a link; None for nothing."""
    path, _, anchor = target.partition("#")
    file = (page.parent / path).resolve() if path else page
    if not file.is_file():  # a folder is no page of the site
        return f"{target}: no such file"
    if not file.is_relative_to(ROOT):
        return f"{target}: not of the repository"
    if anchor and anchor not in anchors(file):
        return f"{target}: no such heading; there are {', '.join(sorted(anchors(file)))}"
    return None


@pytest.mark.parametrize("page", PAGES, ids=name_of)
def test_every_link_leads_somewhere(page: Path) -> None:
    faults = [fault(page, target) for target in links(page) if not is_elsewhere(target)]
    assert [text for text in faults if text is not None] == []


def test_links_are_found() -> None:
    assert {"docs/install.md", "docs/images/map.png", "docs/options.md#which-layer"} <= set(links(ROOT / "README.md"))


def test_a_wrong_link_is_named(tmp_path: Path) -> None:
    readme = ROOT / "README.md"
    assert fault(readme, "docs/instal.md") == "docs/instal.md: no such file"
    assert "no such heading" in str(fault(readme, "docs/options.md#which-layers"))
    assert fault(readme, "#install") is None
