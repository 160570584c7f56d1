"""The snippet of docs/export.md runs a file that the command writes."""

import re
import shutil
from pathlib import Path

import pytest
import torch

from hear_transformers import tiny
from hear_transformers.export.verification import excerpts

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "export.md").read_text(encoding="utf-8")
CODE = dict(re.findall(r"<!-- (\w+) -->\n```python\n(.*?)```\n", PAGE, re.DOTALL))


def test_a_few_lines_give_the_embedding_of_pytorch(tmp_path, monkeypatch):
    pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")
    from hear_transformers.export.onnx_files import to_onnx

    monkeypatch.chdir(tmp_path)
    shutil.copy(ROOT / "tests/data/example.wav", tmp_path)
    model = tiny.load_model()
    to_onnx(model, "tiny.onnx")
    variables: dict = {}
    exec(CODE["onnxruntime"], variables)
    (clip,) = excerpts(["example.wav"], model)
    wanted = model.embed_scenes(clip[None])
    found = torch.from_numpy(variables["embeddings"])
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))
