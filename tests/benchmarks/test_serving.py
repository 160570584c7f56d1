"""The load test of a server, with few clips."""

import re

import pytest
from click.testing import CliRunner

from hear_transformers.benchmarks import serving


@pytest.mark.slow
def test_the_load_test_prints_its_tables_and_loses_nothing():
    done = CliRunner().invoke(serving.main, ["--clips=12", "--clients=2"])
    assert done.exit_code == 0, done.output
    assert "| HTTP, 2 clients |" in done.output
    sent, answered, refused, others = map(int, re.findall(r"\d+", done.output.splitlines()[-1]))
    assert (sent, others) == (12, 0)
    assert answered + refused == sent
