"""A server of the embedded model with a table of three clips, for all tests of a file."""

from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import soundfile
from click.testing import CliRunner
from hear_transformers.cli.embed_audio import main as embed_audio

from hear_transformers.serve import models
from hear_transformers.serve.models import Served
from tests.helpers.live import Live, live

SECONDS = {"a.wav": 0.5, "b.wav": 2.3, "c.wav": 3.1}


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Write clips of noise of several colours, lengths and sample rates."""
    folder = tmp_path_factory.mktemp("clips")
    random = np.random.default_rng(0)
    for i, (name, seconds) in enumerate(SECONDS.items()):
        rate = (16_000, 32_000, 44_100)[i]
        noise = 0.1 * random.standard_normal(int(seconds * rate))
        soundfile.write(folder / name, np.cumsum(noise) / 30 if i == 1 else noise, rate)
    return folder


@pytest.fixture(scope="session")
def table(clips: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Embed the clips into a table, by layer 4."""
    path = tmp_path_factory.mktemp("table") / "clips.parquet"
    done = CliRunner().invoke(embed_audio, [str(clips), "--layer", "4", "--out", str(path), "--quiet"])
    assert done.exit_code == 0, done.stderr
    return path


@pytest.fixture(scope="session")
def served(table: Path) -> Served:
    """Load the embedded model, layer 8, beside a table of layer 4."""
    return models.load("tiny", device="cpu", options={"layer": 8}, table=table)


@pytest.fixture(scope="module")
def server(served: Served) -> Iterator[Live]:
    """Serve it."""
    with live(served) as running:
        yield running
