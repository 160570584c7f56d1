"""The official hear-validator, as installed, on every family."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from click.testing import CliRunner
from hear_transformers.cli.official import validate_command

from hear_transformers import FAMILIES, tiny
from hear_transformers.errors import HearTransformersError
from hear_transformers.harness import official

pytestmark = pytest.mark.slow

# tiny is embedded in the package; the published files of the others are not at hand.
OPTIONS = {name: {} if name == tiny.FAMILY.name else {"pretrained": False} for name in FAMILIES}
# Fewer blocks and a smaller CNN: full sizes take minutes of a core, and test_contract.py holds them to the same rules.
for name in ("passt", "ast", "dasheng", "ced", "eat", "atst", "beats"):
    OPTIONS[name]["network"] = {"depth": 2}
OPTIONS["panns"]["variant"] = "cnn6"
OPTIONS["clap"]["network"] = {"depths": (2, 1, 1, 1)}

DEVICES = [
    "cpu",
    pytest.param(
        "cuda",
        marks=[pytest.mark.cuda, pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")],
    ),
]


@pytest.fixture
def no_tensorflow(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the stand-in where the command puts it, for one test."""
    monkeypatch.setitem(sys.modules, "tensorflow", official.TensorFlow())


@pytest.mark.usefixtures("no_tensorflow")
@pytest.mark.parametrize("device", DEVICES)
@pytest.mark.parametrize("name", FAMILIES)
def test_official_validator_says_looks_good(name: str, device: str) -> None:
    options = ["--device", device, "--model-options", json.dumps(OPTIONS[name])]
    result = CliRunner().invoke(validate_command, [f"hear_transformers.{name}", *options])
    assert result.exit_code == 0, result.output
    assert f"Loading onto device: {device}" in result.stdout
    assert result.stdout.endswith("Looks good!\n")


def test_the_command_takes_weights_and_options(small_weights: Path) -> None:
    command = [sys.executable, "-m", "hear_transformers.cli.official", "validate", "hear_transformers.efficientat"]
    given = ["--weights", small_weights, "--device", "cpu", "--model-options", '{"variant": "mn01_as"}']
    done = subprocess.run([*command, *given], capture_output=True, text=True, check=False)
    assert done.stdout.endswith("Looks good!\n"), done.stderr


def test_options_that_are_not_json_are_refused() -> None:
    command = [sys.executable, "-m", "hear_transformers.cli.official", "validate", "hear_transformers.tiny"]
    done = subprocess.run([*command, "--model-options", "pool"], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr.partition(" (")[0]) == (2, "Error: --model-options: 'pool' is not JSON")


@pytest.mark.usefixtures("no_tensorflow")
@pytest.mark.parametrize(
    "line", ["import tensorflow.keras", "from tensorflow import keras", "import tensorflow as tf; tf.keras.Model"]
)
def test_a_module_for_tensorflow_is_refused_clearly(line: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "made_of_keras.py").write_text(line)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.delitem(sys.modules, "made_of_keras", raising=False)
    with pytest.raises(HearTransformersError, match="the module needs TensorFlow"):
        official.validate("made_of_keras")


@pytest.mark.usefixtures("no_tensorflow")
def test_another_missing_package_is_not_taken_for_tensorflow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "lacks_a_package.py").write_text("import no_such_package")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.raises(ModuleNotFoundError, match="no_such_package"):
        official.validate("lacks_a_package")
