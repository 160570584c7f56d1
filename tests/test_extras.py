"""What a plain installation lacks is said with the command that installs it, before any work is done."""

import importlib
import sys
from pathlib import Path

import pytest
from click.testing import CliRunner
from hear_transformers.cli.embed_audio import main as embed_audio
from hear_transformers.cli.hear_transformers import main as hear_transformers

from hear_transformers.harness import official

TRAIN = ["train", "--model=ast", "--train=missing.csv", "--valid=0.1", "--out=out"]
M4A = b"\0\0\0\x20ftypM4A \0\0\0\0M4A mp42isom\0\0\0\0" + bytes(64)


@pytest.mark.parametrize(
    ("missing", "command", "arguments", "extra"),
    [
        ("sklearn", hear_transformers, TRAIN, "train"),
        ("scipy", hear_transformers, TRAIN, "train"),
        ("matplotlib", hear_transformers, TRAIN, "train"),
        ("matplotlib", hear_transformers, ["explain", "a.wav"], "train"),
        ("matplotlib", embed_audio, ["a.wav", "--model=mn04_as", "--labels", "--timestamps", "--plot"], "plot"),
        ("sklearn", hear_transformers, ["compare", "tiny", "tiny", "."], "train"),
        ("pyarrow", embed_audio, ["a.wav", "--out=a.parquet"], "parquet"),
        ("pyarrow", embed_audio, ["--manifest=list.parquet"], "parquet"),
        ("pyarrow", hear_transformers, [*TRAIN, "--train=list.parquet"], "parquet"),
        ("h5py", embed_audio, ["a.wav", "--out=a.hdf5"], "hdf5"),
        ("fastapi", hear_transformers, ["serve"], "serve"),
        ("uvicorn", hear_transformers, ["serve"], "serve"),
        ("av", embed_audio, ["a.m4a", "--out=out"], "av"),
        ("onnx", hear_transformers, ["export", "tiny"], "onnx"),
        ("onnxruntime", hear_transformers, ["export", "tiny"], "onnx"),
    ],
)
def test_each_extra_is_named_by_what_needs_it(tmp_path, monkeypatch, missing, command, arguments, extra) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("list.parquet", "a.wav"):
        Path(name).touch()
    Path("a.m4a").write_bytes(M4A)
    alike = missing, "hear_transformers.serve"
    for module in [name for name in sys.modules if any(name == each or name.startswith(f"{each}.") for each in alike)]:
        monkeypatch.delitem(sys.modules, module)
    monkeypatch.setitem(sys.modules, missing, None)
    result = CliRunner().invoke(command, arguments)
    assert result.exit_code in (1, 2), result.output
    assert f"pip install 'hear_transformers[{extra}]'" in result.stderr
    assert "Traceback" not in result.stderr
    assert not Path("out").exists() or not [*Path("out").glob("*.*z")]


def test_the_estimator_names_its_extra(monkeypatch) -> None:
    monkeypatch.delitem(sys.modules, "hear_transformers.sklearn", raising=False)
    monkeypatch.setitem(sys.modules, "sklearn.base", None)
    with pytest.raises(ImportError, match=r"pip install 'hear_transformers\[sklearn\]'"):
        importlib.import_module("hear_transformers.sklearn")


@pytest.mark.parametrize("missing", official.NEEDS)
def test_hears_programs_are_named(monkeypatch, missing) -> None:
    found = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == missing else found("sys"))
    with pytest.raises(official.HearTransformersError, match=f"it lacks {missing}; `make hear`"):
        official.require(*official.NEEDS)
