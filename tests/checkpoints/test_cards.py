"""Model cards and the manifest say the same."""

import re
from pathlib import Path

import pytest

from hear_transformers import catalogue
from hear_transformers.checkpoints.published import Checkpoint, manifest
from hear_transformers.networks import counting

WEIGHTS = Path(__file__).parents[2] / "weights"
FAMILIES = ("ast", "panns", "passt", "efficientat", "dasheng", "ced", "eat", "atst", "beats", "clap")
PRESETS = {
    f"{base}{levels}"
    for base in ("base", "hop160base", "hop100base")
    for levels in (("", "2level", "2levelmel", "20sec", "30sec") if base == "base" else ("", "2lvl", "2lvlmel"))
}
"""PaSST's HEAR modules: more variants of checkpoints that have one of their own name."""
UNMEASURED = {
    *("dymn04_replace_se_as", "dymn10_replace_se_as"),
    *("base_epoch30_pretrain", "large_epoch20_pretrain", "SSLAM_pretrain", "base_epoch10_pretrain"),
    *("frame_base", "frame_small", "frame_weak", "frame_ssl"),
    *("fpasst_weak", "fpasst_ssl", "frame_mn10_strong", "frame_mn06_strong"),
    *("matpac_mobilenetv3", "matpac_dymn", "m2d_mobilenetv3", "m2d_dymn"),
    *(f"iter3_plus_AS20K{rest}" for rest in ("", "_finetuned_on_AS2M_cpt1", "_finetuned_on_AS2M_cpt2")),
    *("NatureBEATs", "OpenBEATs-Large-i2"),
    *("clap-htsat-unfused", "clap-htsat-fused", "larger_clap_general", "larger_clap_music_and_speech"),
}
"""Files for which no metric is published."""
ARCHITECTURES = ("mast", "atgnn")
"""Families whose variants are mostly without weights: their cards list all of them."""

CLIP_SECONDS = 10.26  # 1024 frames
SIZES = [
    pytest.param(family, variant, id=f"{family}-{variant}")
    for family in ARCHITECTURES
    for variant in catalogue.family(family).VARIANTS
]


def published(family: str) -> list[Checkpoint]:
    """Give the checkpoints of a family but for those of images, which are no variants."""
    return [row for row in manifest().values() if row.family == family and row.trained_on != "ImageNet"]


ROWS = [pytest.param(row, id=f"{row.family}-{row.name}") for family in FAMILIES for row in published(family)]


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
    assert sorted(variants(family)) == sorted(row.name for row in published(family))


@pytest.mark.parametrize("family", FAMILIES)
def test_every_published_checkpoint_is_read_by_the_variant_of_its_name(family: str) -> None:
    read = {name: row.checkpoint for name, row in catalogue.family(family).VARIANTS.items() if row.checkpoint}
    assert {name: read[name] for name in read.keys() - PRESETS} == {row.name: row.name for row in published(family)}


def test_the_card_of_passt_names_every_preset() -> None:
    assert set(catalogue.family("passt").VARIANTS) >= PRESETS
    assert [name for name in PRESETS if not re.search(rf"^\|.*\b{name}\b", card("passt"), re.MULTILINE)] == []


@pytest.mark.parametrize("row", ROWS)
def test_the_card_has_the_metric_of_the_manifest(row: Checkpoint) -> None:
    cells = " ".join(variants(row.family)[row.name].values())
    assert (row.metric is None) == (row.name in UNMEASURED)
    assert (row.metric or "-").split()[-1] in cells.split()


# What weights/sizes.json says of networks, which tests/benchmarks/test_sizes.py measures.


@pytest.mark.parametrize("row", ROWS)
def test_the_network_has_the_parameters_of_the_card(row: Checkpoint) -> None:
    measured = catalogue.sizes()[row.family][row.name]["parameters"]
    assert f"{measured:,}" == variants(row.family)[row.name]["parameters"]


COLUMNS = {"GMACs": "multiply_accumulates_10_s", "multi-adds, G": "operations_10_s"}


@pytest.mark.parametrize("row", ROWS)
def test_the_network_costs_what_the_card_says(row: Checkpoint) -> None:
    cells = variants(row.family)[row.name]
    (column,) = cells.keys() & COLUMNS.keys()
    if cells[column] != "-":
        measured = catalogue.sizes()[row.family][row.name][COLUMNS[column]]
        assert measured == pytest.approx(1e9 * float(cells[column]), rel=0.02)


@pytest.mark.parametrize("row", ROWS)
def test_the_card_names_licence_and_source(row: Checkpoint) -> None:
    assert row.licence in card(row.family)
    assert row.source is not None
    assert row.source.removeprefix("https://") in card(row.family)


@pytest.mark.slow
@pytest.mark.parametrize(("family", "variant"), SIZES)
def test_an_architecture_has_the_size_of_its_card(family: str, variant: str) -> None:
    module, cells = catalogue.family(family), variants(family)[variant]
    network = module.VARIANTS[variant]
    assert f"{catalogue.sizes()[family][variant]['parameters']:,}" == cells["parameters"]
    assert f"{counting.count_macs(module.FAMILY, network, CLIP_SECONDS) / 1e9:.1f}" == cells["GMACs"]
