"""The command behind the table of the feed."""

import pytest
from click.testing import CliRunner

feed = pytest.importorskip("hear_transformers.benchmarks.feed", reason="Windows has no module resource")

pytestmark = pytest.mark.slow


@pytest.mark.parametrize(("suffix", "form"), [("wav", "npz"), ("ogg", "parquet")])
def test_the_pipeline_is_measured_beside_a_bare_loop(suffix, form):
    options = ["--clips", "5", "--seconds", "1", "--repeats", "1", "--audio", suffix, "--out", form]
    result = CliRunner().invoke(feed.main, options, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    cells = [cell.strip() for cell in result.output.splitlines()[-1].strip("|").split("|")]
    assert cells[0] == suffix
    assert all(float(cell) > 0 for cell in cells[1:])
