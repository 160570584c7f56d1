"""Model cards and the manifest say the same."""

from pathlib import Path

import pytest

from hear_transformers import catalogue
from hear_transformers.checkpoints.published import Checkpoint, manifest
from hear_transformers.networks import counting

WEIGHTS = Path(__file__).parents[2] / "weights"
FAMILIES = ("ast", "panns")
ARCHITECTURES = ("mast", "atgnn")
"""Families whose variants are mostly without weights: their cards list all of them."""

CLIP_SECONDS = 10.26  # 1024 frames
SIZES = [
    pytest.param(family, variant, id=f"{family}-{variant}")
    for family in ARCHITECTURES
    for variant in catalogue.family(family).VARIANTS
]
ROWS = [pytest.param(row, id=f"{row.family}-{row.name}") for row in manifest().values() if row.family in FAMILIES]


def card(family: str) -> str:
    return (WEIGHTS / f"{family}.md").read_text(encoding="utf-8")


def variants(family: str) -> dict[str, dict[str, str]]:
    """Give the cells of each line of the card's table of variants by their column; the first is a name in backticks."""
    tables = [line for line in card(family).splitlines() if line.startswith("|")]
    lines = [[cell.strip() for cell in line.strip("|").split("|")] for line in tables]
    columns = next(cells for cells in lines if cells[0] == "variant")
    return {cells[0].strip("`"): dict(zip(columns, cells, strict=True)) for cells in lines if cells[0].startswith("`")}


@pytest.mark.parametrize("family", FAMILIES)
def test_the_card_lists_the_published_variants(family: str) -> None:
    assert sorted(variants(family)) == sorted(name for of, name in manifest() if of == family)


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_checkpoint_is_read_by_the_variant_of_its_name(family: str) -> None:
    read = {name: row.checkpoint for name, row in catalogue.family(family).VARIANTS.items() if row.checkpoint}
    assert read == {name: name for of, name in manifest() if of == family}


@pytest.mark.parametrize("row", ROWS)
def test_the_card_has_the_metric_of_the_manifest(row: Checkpoint) -> None:
    assert row.metric is not None
    cells = " ".join(variants(row.family)[row.name].values())
    assert row.metric.split()[-1] in cells.split()


@pytest.mark.parametrize("row", ROWS)
def test_the_network_has_the_parameters_of_the_card(row: Checkpoint) -> None:
    variant = catalogue.family(row.family).VARIANTS[row.name]
    published = variants(row.family)[row.name]["parameters"]
    assert f"{counting.count_parameters(catalogue.family(row.family).FAMILY, variant):,}" == published


COLUMNS = {"GMACs": counting.count_macs, "multi-adds, G": counting.count_operations}


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS)
def test_the_network_costs_what_the_card_says(row: Checkpoint) -> None:
    cells = variants(row.family)[row.name]
    (column,) = cells.keys() & COLUMNS.keys()
    if cells[column] != "-":
        family = catalogue.family(row.family).FAMILY
        counted = COLUMNS[column](family, family.variants[row.name])
        assert counted == pytest.approx(1e9 * float(cells[column]), rel=0.02)


@pytest.mark.parametrize("row", ROWS)
def test_the_card_names_licence_and_source(row: Checkpoint) -> None:
    assert row.licence in card(row.family)
    assert row.source is not None
    assert row.source.removeprefix("https://") in card(row.family)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "variant"), SIZES)
def test_an_architecture_has_the_size_of_its_card(family: str, variant: str) -> None:
    module, published = catalogue.family(family), variants(family)[variant]
    network = module.VARIANTS[variant]
    assert f"{counting.count_parameters(module.FAMILY, network):,}" == published["parameters"]
    assert f"{counting.count_macs(module.FAMILY, network, CLIP_SECONDS) / 1e9:.1f}" == published["GMACs"]
