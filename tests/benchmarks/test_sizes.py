"""`weights/sizes.json` says of every variant what its network is."""

import json
from dataclasses import replace
from pathlib import Path

import pytest

from hear_transformers import FAMILIES, catalogue
from hear_transformers.benchmarks import sizes

FEW = [("efficientat", "mn01_as"), ("panns", "leenet11")]
OF_FILES = ("checkpoint", "imagenet")
"""What variants of one network may differ in; `test_rows_name_the_files_that_variants_read` is about it."""


def networks() -> list[tuple[str, list[str]]]:
    """Return the variants of every family, those together that differ only in the file that they read."""
    found: dict[tuple[str, str], list[str]] = {}
    for family in FAMILIES:
        for name, variant in catalogue.family(family).VARIANTS.items():
            row = replace(variant, checkpoint="", imagenet=None, labels=None)
            found.setdefault((family, repr(row)), []).append(name)
    return [(family, variants) for (family, _), variants in found.items()]


@pytest.mark.parametrize("family", FAMILIES)
def test_every_variant_has_a_row_in_the_order_of_the_table(family: str) -> None:
    assert list(catalogue.sizes()[family]) == list(catalogue.family(family).VARIANTS)


@pytest.mark.parametrize("family", FAMILIES)
def test_rows_name_the_files_that_variants_read(family: str) -> None:
    for name, variant in catalogue.family(family).VARIANTS.items():
        row = catalogue.sizes()[family][name]
        assert (row["checkpoint"] or "") == variant.checkpoint
        assert row["imagenet"] == (list(variant.imagenet) if variant.imagenet else None)


@pytest.mark.parametrize(("family", "variant"), FEW)
def test_a_row_is_what_is_measured(family: str, variant: str) -> None:
    assert catalogue.sizes()[family][variant] == json.loads(json.dumps(sizes.measure(family, variant)))


@pytest.mark.slow
@pytest.mark.parametrize(
    ("family", "variants"), networks(), ids=lambda each: each if isinstance(each, str) else each[0]
)
def test_all_rows_are_what_is_measured(family: str, variants: list[str]) -> None:
    measured = json.loads(json.dumps(sizes.measure(family, variants[0])))
    for variant in variants:
        row = catalogue.sizes()[family][variant]
        assert row == measured | {key: row[key] for key in OF_FILES}


def test_tiny_is_measured_anew_and_other_families_keep_their_rows(tmp_path: Path) -> None:
    file = tmp_path / "sizes.json"
    file.write_text(sizes.FILE.read_text())
    sizes.write(["tiny"], file)
    assert file.read_text() == sizes.FILE.read_text()
