"""The command behind the table of tables at rest."""

import pytest
from click.testing import CliRunner

from hear_transformers.benchmarks import stored

pytestmark = pytest.mark.slow


def test_every_step_is_measured_with_every_store(tmp_path):
    pytest.importorskip("duckdb")
    pytest.importorskip("polars")
    options = ["--store", "60x3", "--size", "8", "--scratch", str(tmp_path)]
    result = CliRunner().invoke(stored.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    rows = [[cell.strip() for cell in line.strip("|").split("|")] for line in result.output.splitlines()[2:]]
    assert [row[3] for row in rows] == [*stored.STEPS]
    assert all(row[:2] == ["60", "3"] and float(row[5]) > 0 for row in rows)
    assert not [*tmp_path.iterdir()]


def test_a_store_that_is_no_numbers_is_refused():
    assert CliRunner().invoke(stored.main, ["--store", "many"]).exit_code == 2
