"""The benchmark of many readouts runs, and counts them."""

from click.testing import CliRunner

from hear_transformers.benchmarks import readouts


def test_it_prints_a_row():
    done = CliRunner().invoke(readouts.main, ["tiny", "--pool", "mean,flat", "--clips", "1", "--turns", "1"])
    assert done.exit_code == 0, done.output
    assert done.output.splitlines()[-1].startswith("| tiny | ")
