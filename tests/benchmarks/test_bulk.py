"""The commands behind the README's tables of bulk extraction."""

import pytest
from click.testing import CliRunner

from hear_transformers.benchmarks import bulk
from tests.helpers import files

pytestmark = pytest.mark.slow


def rows(*arguments: str) -> list[list[str]]:
    """Run a command; give the cells of its table, without the two lines of the head."""
    result = CliRunner().invoke(bulk.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


@pytest.mark.parametrize("length", [[], ["--seconds", "3"]])
def test_throughput_embeds_as_many_clips_as_asked_for(length, audio_file, monkeypatch):
    monkeypatch.setattr(bulk, "ALONE_SECONDS", 0.1)
    folder = audio_file("a.wav", seconds=1.0).parent
    audio_file("b.flac", seconds=1.0)
    options = ["--audio", str(folder), "--model", "efficientat/mn01_as", "--clips", "5", *length]
    ((name, precision, workers, rate, real_time, *_),) = rows("throughput", *options)
    assert (name, precision, workers) == ("efficientat/mn01_as", "float32", "0")
    seconds = 3.0 if length else 1.0
    assert float(real_time) == pytest.approx(float(rate) * seconds, abs=1.0)


def test_a_long_file_for_the_table_of_memory_is_as_long_as_asked_for(tmp_path):
    path = tmp_path / "long.wav"
    bulk.write_long(path, 3_600)
    assert files.duration(path) == 3_600
    assert files.excerpt(path, 8_000, 600.0, 1.0).abs().max() > 0.2
    assert files.excerpt(path, 8_000, 602.0, 1.0).abs().max() == 0


def test_low_precision_is_compared_with_float32():
    ((_, bfloat16, *near), (_, float16, *nearer)) = bulk.precision_rows("efficientat/mn01_as")
    assert (bfloat16, float16) == ("bfloat16", "float16")
    assert 0.9 < float(near[0]) < float(nearer[0]) <= 1.0
    assert float(near[1]) > float(nearer[1]) > 0.0
