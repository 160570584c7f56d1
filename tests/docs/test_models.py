"""The table of families has every family and its default, and what it is said to take exists."""

import re

import pytest

from hear_transformers import FAMILIES, OPEN_FAMILIES, catalogue
from hear_transformers.checkpoints.published import manifest
from tests.helpers.markdown import ROOT

LINES = {page: (ROOT / page).read_text(encoding="utf-8").splitlines() for page in ("README.md", "docs/models.md")}
ROWS = [
    [cell.strip() for cell in line.strip("|").split("|")] for line in LINES["docs/models.md"] if "](../weights/" in line
]
DEFAULTS = {cells[0]: cells[3] for cells in ROWS if len(cells) == 5}


def test_every_family_has_a_row_with_its_card() -> None:
    assert DEFAULTS.keys() == {f"[`{name}`](../weights/{name}.md)" for name in (*FAMILIES, *OPEN_FAMILIES)}


@pytest.mark.parametrize("name", FAMILIES)
def test_the_default_is_the_first_variant(name: str) -> None:
    assert DEFAULTS[f"[`{name}`](../weights/{name}.md)"] == f"`{next(iter(catalogue.sizes()[name]))}`"


@pytest.mark.parametrize("page", LINES)
def test_what_to_take_exists(page: str) -> None:
    lines = LINES[page]
    begin = lines.index("| for | take | published score |") + 2
    table = lines[begin : lines.index("", begin)]
    taken = [name for line in table for name in re.findall(r"`([^`]+)`", line.split("|")[2])]
    assert len(taken) == 10
    assert all(catalogue.is_own(name) for name in taken)
    for name in taken:
        catalogue.resolve_own(name)


def test_readme_and_models_take_the_same() -> None:
    tables = [{line.split("|")[2].strip() for line in lines if line.count("|") == 4} for lines in LINES.values()]
    assert tables[1] <= tables[0]


def test_the_files_with_a_published_hash_are_counted_rightly() -> None:
    fetched = [row for row in manifest().values() if not row.embedded]
    hashed = sum(bool(row.sha256 or row.md5) for row in fetched)
    text = (ROOT / "docs" / "install.md").read_text(encoding="utf-8")
    assert f" {hashed} of the {len(fetched)} files have a published hash" in text
