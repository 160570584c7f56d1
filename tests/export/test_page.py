"""A page embeds sounds in the browser as PyTorch does, without a network."""

import base64
import os
from pathlib import Path

import pytest
import torch

from hear_transformers import tiny
from hear_transformers.errors import OptionError
from hear_transformers.export.page import runtime_of, to_page
from hear_transformers.export.verification import excerpts
from tests.helpers.browser import browser

pytest.importorskip("onnxruntime", reason="the extra onnx is not installed")

EXAMPLE = Path(__file__).parents[1] / "data/example.wav"
PACKAGE = "ONNXRUNTIME_WEB"
"""Environment variable with the npm package: `npm pack onnxruntime-web@1.22.0`."""


@pytest.mark.slow
@pytest.mark.skipif(PACKAGE not in os.environ, reason=f"{PACKAGE} names no npm package of onnxruntime-web")
def test_a_dropped_file_has_the_embedding_of_pytorch(tmp_path):
    model = tiny.load_model()
    to_page(model, tmp_path / "page.html", os.environ[PACKAGE])
    (clip,) = excerpts([str(EXAMPLE)], model)
    with browser(tmp_path / "profile") as page:
        page.open(tmp_path / "page.html")
        page.wait("document.getElementById('status').textContent === 'Ready'")
        content = base64.b64encode(EXAMPLE.read_bytes()).decode()
        page.run(f"""
            (async () => {{
                const bytes = Uint8Array.from(atob("{content}"), (character) => character.charCodeAt(0));
                const files = new DataTransfer();
                files.items.add(new File([bytes], "example.wav", {{type: "audio/wav"}}));
                files.items.add(new File(["no sound"], "broken.wav", {{type: "audio/wav"}}));
                await addAll([...files.files]);
            }})()
        """)
        found = torch.tensor(page.run("[...sounds[0].vectors[0]]"))
        assert page.run("document.getElementById('problem').textContent").startswith("broken.wav: the browser cannot")
        assert page.run("sounds.length") == 1
        if "SCREENSHOT" in os.environ:
            page.screenshot(Path(os.environ["SCREENSHOT"]))
        assert page.problems == []
        assert [url for url in page.requests if not url.startswith(("file:", "blob:", "data:"))] == []
    wanted = model.embed_scenes(clip[None])[0]
    torch.testing.assert_close(found, wanted, rtol=0, atol=1e-4 * float(wanted.abs().max()))


@pytest.mark.parametrize("package", [None, "missing.tgz"])
def test_where_the_runtime_comes_from_is_said(package):
    with pytest.raises(OptionError, match="npm pack onnxruntime-web"):
        runtime_of(package)
