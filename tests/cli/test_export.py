"""`hear-transformers export`: what it writes, prints and refuses."""

import json

import pytest
from click.testing import CliRunner
from hear_transformers.cli.hear_transformers import main

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")


def invoke(*arguments):
    return CliRunner().invoke(main, ["export", *map(str, arguments)])


def test_a_model_becomes_one_file_and_says_how_near_it_is(tmp_path):
    result = invoke("tiny", "--layer=1", "--out", tmp_path / "tiny.onnx", "--json")
    assert result.exit_code == 0, result.output
    said = json.loads(result.stdout)
    assert said["difference"] < 1e-4
    assert said["n_bytes"] == (tmp_path / "tiny.onnx").stat().st_size
    assert said["size"] == 192


def test_a_file_that_is_there_stays_unless_told(tmp_path):
    path = tmp_path / "tiny.onnx"
    path.write_text("mine", encoding="utf-8")
    result = invoke("tiny", "--out", path)
    assert result.exit_code == 2
    assert "give --overwrite" in result.stderr
    assert path.read_text(encoding="utf-8") == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["tiny", "--out=tiny.bin"], "files of onnx end in .onnx"),
        (["tiny", "--format=torch-export", "--int8"], "--int8 is for --format onnx and web"),
        (["tiny", "--audio=a.wav"], "give --int8, too"),
        (["tiny", "--runtime=a.tgz"], "--runtime is for --format web"),
        (["tiny", "--format=web", "--seconds=1"], "a page takes sounds of any length"),
        (["tiny", "--format=web"], "npm pack onnxruntime-web"),
    ],
)
def test_options_that_do_not_go_together_are_refused(arguments, message):
    result = invoke(*arguments)
    assert result.exit_code in (1, 2)
    assert message in result.stderr
