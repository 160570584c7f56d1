"""The scripts and notebooks of docs/examples run as they are."""

import csv
import json
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

ROOT = Path(__file__).parents[2]
EXAMPLES = ROOT / "docs" / "examples"
SCRIPTS, NOTEBOOKS = (sorted(EXAMPLES.glob(pattern)) for pattern in ("*.py", "*.ipynb"))
LONGEST_SCRIPT = 40


def run(name: str, *arguments: object, folder: Path) -> str:
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    command = [sys.executable, str(EXAMPLES / name), *map(str, arguments)]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.name)
def test_a_script_is_small_and_says_how_it_is_called(script):
    text = script.read_text(encoding="utf-8")
    assert len(text.splitlines()) <= LONGEST_SCRIPT
    assert f": {script.name} " in text.splitlines()[0]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_has_no_outputs(notebook):
    cells = json.loads(notebook.read_text(encoding="utf-8"))["cells"]
    assert all(not cell["outputs"] and cell["execution_count"] is None for cell in cells if cell["cell_type"] == "code")


@pytest.mark.slow
def test_the_nearest_neighbour_of_a_clip_is_itself(labelled):
    query = "clips/low/low3.wav"
    first, *others = run("nearest_neighbours.py", "clips", query, folder=labelled).splitlines()
    assert first == f"1.000  {query}"
    assert len(others) == 2


@pytest.mark.slow
def test_the_linear_probe_tells_low_from_high(labelled):
    pytest.importorskip("sklearn")
    printed = run("linear_probe.py", "clips", 8, folder=labelled)
    assert printed == "12 clips, 2 classes: accuracy 1.000 +- 0.000\n"


@pytest.mark.slow
def test_a_long_file_has_a_row_a_second_and_the_change_is_seen(audio_file, tmp_path):
    rng, t = np.random.default_rng(0), np.arange(4 * 32_000) / 32_000
    audio_file("long.wav", np.concatenate([0.3 * np.sin(2 * np.pi * 300 * t), 0.1 * rng.standard_normal(len(t))]))
    run("long_file.py", "long.wav", "out.csv", folder=tmp_path)
    with (tmp_path / "out.csv").open(newline="") as file:
        change = {float(row["s"]): float(row["change"]) for row in csv.DictReader(file)}
    assert list(change) == list(range(9))
    assert max(change, key=lambda second: change[second]) in (4, 5)


@pytest.mark.slow
def test_the_loss_of_the_loop_falls(labelled):
    lines = run("fine_tune.py", "clips", 3, folder=labelled).splitlines()
    losses = [float(line.rpartition(" ")[2]) for line in lines]
    assert len(losses) == 3
    assert losses[-1] < losses[0]


@pytest.mark.slow
def test_two_devices_share_the_clips(labelled):
    printed = run("several_devices.py", "clips", "out.npy", "cpu", "cpu", folder=labelled)
    assert printed == "12 vectors of 384 numbers, by 2 devices\n"
    assert np.isfinite(np.load(labelled / "out.npy")).all()


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore")  # of Jupyter's packages, of each other
@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.name)
def test_a_notebook_runs(notebook, tmp_path, monkeypatch):
    pytest.importorskip("ipykernel")
    nbclient, nbformat = pytest.importorskip("nbclient"), pytest.importorskip("nbformat")
    pytest.importorskip("matplotlib")
    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    cells = nbformat.read(notebook, as_version=4)
    # Its kernel is the Python of the tests, whatever kernels are registered on this machine.
    client = nbclient.NotebookClient(cells, timeout=600, resources={"metadata": {"path": str(tmp_path)}})
    client.create_kernel_manager().kernel_cmd = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
    client.execute()
