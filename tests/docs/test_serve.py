"""The commands and the snippet of docs/serve.md run against a server as they are."""

import re
import subprocess
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hear_transformers.cli.embed_audio import main as embed_audio

from hear_transformers.serve import models
from tests.helpers.live import live

PAGE = (Path(__file__).parents[2] / "docs" / "serve.md").read_text(encoding="utf-8")
SHOWN = dict(re.findall(r"<!-- (\w+) -->\n```\w+\n(.*?)```\n", PAGE, re.DOTALL))


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    folder = tmp_path_factory.mktemp("asked")
    for i, name in enumerate(("a.wav", "b.wav")):
        soundfile.write(folder / name, 0.1 * np.random.default_rng(i).standard_normal(16_000), 16_000)
    table = folder / "clips.parquet"
    done = CliRunner().invoke(embed_audio, [str(folder), "--layer", "8", "--out", str(table), "--quiet"])
    assert done.exit_code == 0, done.stderr
    with live(models.load("tiny", device="cpu", options={"layer": 8}, table=table)) as running:
        yield running.url, folder


def of_page(name: str, url: str) -> str:
    return SHOWN[name].replace("http://127.0.0.1:8000", url)


def test_the_commands_run(server):
    url, folder = server
    for line in of_page("curl", url).splitlines():
        command = line.replace("curl ", "curl --silent --show-error --fail-with-body ", 1)
        done = subprocess.run(command, shell=True, cwd=folder, capture_output=True, text=True, check=False)
        assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"
    assert np.load(folder / "a.npy").shape == (1, 192)


def test_the_snippet_runs(server, monkeypatch):
    url, folder = server
    monkeypatch.chdir(folder)
    names: dict = {}
    exec(of_page("python", url), names)
    assert np.shape(names["vectors"]) == (2, 192)
    for _, file in names["files"]:
        file.close()
