"""A page that embeds sounds in the browser: one HTML file with the model and onnxruntime-web in it."""

from __future__ import annotations

import base64
import json
import os
import tarfile
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from importlib import resources
from pathlib import Path

from torch import Tensor

from ..embedding.embedder import Embedder
from ..errors import OptionError
from ..files import atomic
from .onnx_files import require, to_onnx
from .verification import Written

PARTS = {
    "RUNTIME": "package/dist/ort.wasm.min.mjs",
    "GLUE": "package/dist/ort-wasm-simd-threaded.mjs",
    "WASM": "package/dist/ort-wasm-simd-threaded.wasm",
}
"""Place in the page -> file of the npm package onnxruntime-web."""

VERSION = "1.22.0"
"""Of onnxruntime-web that the page is tested with."""

ADVICE = f"run `npm pack onnxruntime-web@{VERSION}`, and give --runtime onnxruntime-web-{VERSION}.tgz"


def to_page(
    model: Embedder,
    path: str | os.PathLike[str],
    runtime: str | os.PathLike[str] | None,
    *,
    int8: bool = False,
    clips: Sequence[Tensor] = (),
) -> Written:
    """Write a page that embeds sounds that are dropped on it, without a server or a network.

    Parameters
    ----------
    model : from a family's `load_model`
    path : of the HTML file; one that is there is replaced
    runtime : the npm package onnxruntime-web, as ``npm pack`` writes it
    int8, clips : see `to_onnx`

    Returns
    -------
    written : what was measured of the model

    Raises
    ------
    OptionError : the package cannot be read, or see `to_onnx`
    """
    require()
    import onnx

    parts = runtime_of(runtime)
    with tempfile.TemporaryDirectory() as folder:
        written = to_onnx(model, Path(folder) / "model.onnx", int8=int8, clips=clips)
        content = written.path.read_bytes()
    settings = {each.key: json.loads(each.value) for each in onnx.load_from_string(content).metadata_props}
    settings["name"] = "/".join(model.name)
    texts = {
        "SETTINGS": json.dumps(settings).replace("<", "\\u003c"),
        **{name: encoded(part) for name, part in parts.items()},
        "MODEL": encoded(content),
        "JS": resources.files(__package__).joinpath("page.js").read_text(encoding="utf-8"),
    }
    page = resources.files(__package__).joinpath("page.html").read_text(encoding="utf-8")
    for name, text in texts.items():
        page = page.replace(f"@{name}@", text)
    with atomic(Path(path)) as file:
        file.write(page.encode())
    return replace(written, path=Path(path), n_bytes=Path(path).stat().st_size)


def encoded(content: bytes) -> str:
    """Return bytes as text that stands in a page."""
    return base64.b64encode(content).decode("ascii")


def runtime_of(package: str | os.PathLike[str] | None) -> dict[str, bytes]:
    """Read the files that a page needs from the npm package; raise OptionError that says where it comes from."""
    if package is None:
        raise OptionError(f"a page needs onnxruntime-web, an npm package; {ADVICE}")
    try:
        with tarfile.open(package, "r:gz") as archive:
            found = {name: archive.extractfile(file) for name, file in PARTS.items()}
            return {name: file.read() for name, file in found.items() if file is not None}
    except (OSError, tarfile.TarError, KeyError) as error:
        raise OptionError(
            f"--runtime {os.fspath(package)} is no package of onnxruntime-web ({error}); {ADVICE}"
        ) from error
