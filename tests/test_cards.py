"""Model cards and the manifest say the same."""

from pathlib import Path

import pytest

from hear_transformers.checkpoints import Checkpoint, manifest

WEIGHTS = Path(__file__).parents[1] / "weights"
FAMILIES = ("ast", "panns")
ROWS = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values() if row.family in FAMILIES]


def card(family: str) -> str:
    return (WEIGHTS / f"{family}.md").read_text(encoding="utf-8")


def variants(family: str) -> dict[str, list[str]]:
    """Give the words of each line of the card's table of variants, whose first column is a name in backticks."""
    lines = [line.split() for line in card(family).splitlines() if line.startswith("| `")]
    return {words[1].strip("`"): words for words in lines}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_lists_the_published_variants(family: str) -> None:
    assert sorted(variants(family)) == sorted(name for of, name in manifest() if of == family)


@pytest.mark.parametrize("row", ROWS)
def test_the_card_has_the_metric_of_the_manifest(row: Checkpoint) -> None:
    assert row.metric is not None
    assert row.metric.split()[-1] in variants(row.family)[row.name]


@pytest.mark.parametrize("row", ROWS)
def test_the_card_names_licence_and_source(row: Checkpoint) -> None:
    assert row.licence in card(row.family)
    assert row.source is not None
    assert row.source.removeprefix("https://") in card(row.family)
