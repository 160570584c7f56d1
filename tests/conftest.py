"""Audio files made on the spot, a small network, and the commands as they are installed."""

from collections.abc import Callable
from importlib.metadata import entry_points
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch
from click.testing import CliRunner, Result
from hypothesis import settings

from hear_transformers import efficientat
from hear_transformers.embedding.embedder import Embedder

# Tests check what is computed, not how fast: a busy machine fails none.
settings.register_profile("untimed", deadline=None)
settings.load_profile("untimed")

AudioFile = Callable[..., Path]
Command = Callable[..., Result]


def tone(seconds: float, sample_rate: int = 32_000) -> np.ndarray:
    """Make a gliding tone: (samples,) in [-0.3, 0.3]."""
    t = np.arange(round(seconds * sample_rate)) / sample_rate
    return 0.3 * np.sin(2 * np.pi * (200 + 150 * t) * t)


@pytest.fixture
def audio_file(tmp_path: Path) -> AudioFile:
    """Write an audio file into the test's folder: a tone unless samples are given."""

    def write(
        name: str = "tone.wav",
        samples: np.ndarray | None = None,
        *,
        seconds: float = 1.0,
        sample_rate: int = 32_000,
        **options: str,
    ) -> Path:
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        soundfile.write(path, tone(seconds, sample_rate) if samples is None else samples, sample_rate, **options)
        return path

    return write


@pytest.fixture(scope="session")
def small_model() -> Embedder:
    """Give the smallest network, 0.1 million parameters, with random weights."""
    return efficientat.load_model(variant="mn01_as", pretrained=False)


@pytest.fixture(scope="session")
def small_weights(small_model: Embedder, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Save the weights of the smallest network as a checkpoint."""
    path = tmp_path_factory.mktemp("weights") / "mn01.pt"
    torch.save(small_model.trunk.state_dict(), path)
    return path


@pytest.fixture
def labelled(tmp_path: Path, audio_file: AudioFile, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Make low and high tones at 32 kHz, 6 of each, in folders of these names, and go where they are."""
    monkeypatch.chdir(tmp_path)
    t = np.arange(16_000) / 32_000
    for i in range(6):
        for name, hz in (("low", 200 + 20 * i), ("high", 4000 + 200 * i)):
            audio_file(f"clips/{name}/{name}{i}.wav", 0.3 * np.sin(2 * np.pi * hz * t))
    return tmp_path


def installed(name: str) -> Command:
    """Give a function that runs an installed command in this process."""
    (entry,) = entry_points(group="console_scripts", name=name)
    command = entry.load()
    return lambda *arguments, stdin="": CliRunner().invoke(command, list(map(str, arguments)), input=stdin)


@pytest.fixture
def installed_command() -> Callable[[str], Command]:
    """Give installed commands by name."""
    return installed


@pytest.fixture
def embed_audio(small_weights: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Command:
    """Run `embed-audio` with the smallest network, in the test's folder."""
    monkeypatch.chdir(tmp_path)
    command = installed("embed-audio")
    small = ["--variant", "mn01_as", "--weights", small_weights]

    def run(*arguments: object, stdin: str = "") -> Result:
        named = any(str(each).startswith("--model") for each in arguments)
        return command(*([] if named else ["--model", "efficientat"]), *small, *arguments, stdin=stdin)

    return run
