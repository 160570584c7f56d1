"""The end by a signal, a closed pipe, poor surroundings: what is finished is complete, and the exit code says why."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

pytestmark = [pytest.mark.slow, pytest.mark.skipif(sys.platform != "linux", reason="signals")]

ENDING = """
import os, sys
from hear_transformers.cli import embed_audio
show, told = embed_audio.Progress.show, []
def show_then_end(self, outcome):
    show(self, outcome)
    told.append(outcome)
    if len(told) == 3:
        for number in map(int, os.environ["SIGNALS"].split(",")):
            os.kill(os.getpid(), number)
embed_audio.Progress.show = show_then_end
embed_audio.main()
"""


HEED_HANGUPS = """
import signal
signal.signal(signal.SIGHUP, signal.SIG_DFL)  # which tests under nohup ignore, and hand on
"""


@pytest.fixture
def command(audio_file, small_weights, tmp_path):
    """Run the command over six files in a process of its own."""
    for i in range(6):
        audio_file(f"in/{i}.wav", seconds=0.2 + 0.1 * i)
    small = ["--model=efficientat", "--variant=mn01_as", f"--weights={small_weights}", "--batch-size=1"]

    def run(*arguments: str, code: str = "", shell: str = "", **environment: str) -> subprocess.CompletedProcess:
        code = code or "from hear_transformers.cli.embed_audio import main; main()"
        full = [sys.executable, "-c", code, "in", *small, *arguments]
        if shell:
            full = ["bash", "-c", shell, "bash", *full]
        return subprocess.run(
            full,
            cwd=tmp_path,
            env={**os.environ, "OMP_NUM_THREADS": "1", **environment},
            capture_output=True,
            text=True,
            check=False,
            timeout=120,
        )

    return run


def outputs(folder: Path) -> list[Path]:
    found = list(folder.rglob("*.npz"))
    for path in found:
        with np.load(path) as archive:
            assert archive["embedding"].shape == (96,)
    return found


@pytest.mark.parametrize(
    ("signals", "code", "cause"),
    [
        ([signal.SIGTERM], 143, "ended by SIGTERM"),
        ([signal.SIGHUP], 129, "ended by SIGHUP"),
        ([signal.SIGTERM, signal.SIGTERM, signal.SIGHUP], 143, "ended by SIGTERM"),
    ],
)
def test_a_signal_ends_the_run_like_an_interruption(command, tmp_path, signals, code, cause):
    numbers = ",".join(str(int(number)) for number in signals)
    done = command("--out=out", "--num-workers=2", code=HEED_HANGUPS + ENDING, SIGNALS=numbers)
    assert done.returncode == code, done.stderr
    assert done.stderr == f"Error: {cause}; finished outputs are kept, run the same command again to resume\n"
    assert 3 <= len(outputs(tmp_path / "out")) < 6
    assert not (tmp_path / "out/.embed-audio").exists()
    done = command("--out=out", "--json")
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()].count("skipped") >= 3
    assert len(outputs(tmp_path / "out")) == 6


def test_a_signal_keeps_the_rows_of_a_table(command, tmp_path):
    pytest.importorskip("pyarrow")
    done = command("--out=out.parquet", code=ENDING, SIGNALS=str(int(signal.SIGTERM)))
    assert done.returncode == 143, done.stderr
    done = command("--out=out.parquet", "--json")
    assert [json.loads(line)["status"] for line in done.stdout.splitlines()].count("skipped") >= 3


def test_nohup_is_respected(command, tmp_path):
    hung_up = command("--out=out", code=ENDING, SIGNALS=str(int(signal.SIGHUP)), shell='trap "" HUP; exec "$@"')
    assert hung_up.returncode == 0, hung_up.stderr
    assert len(outputs(tmp_path / "out")) == 6


def test_a_reader_that_is_gone_ends_the_run_without_a_traceback(command, tmp_path):
    done = command("--out=out", "--json", shell='set -o pipefail; "$@" | head -n 1')
    assert len(done.stdout.splitlines()) == 1
    assert "Traceback" not in done.stderr
    assert "Exception" not in done.stderr
    assert outputs(tmp_path / "out")
    assert not (tmp_path / "out/.embed-audio").exists()


@pytest.mark.parametrize(
    "shell", ['"$@" >&-', '"$@" 2>&-', '"$@" <&-', 'env -u HOME -u TMPDIR "$@"', 'ulimit -n 64; "$@"']
)
def test_poor_surroundings_change_nothing(command, tmp_path, shell):
    done = command("--out=out", "--num-workers=4", shell=shell)
    assert done.returncode == 0, done.stderr
    assert "Traceback" not in done.stderr
    assert len(outputs(tmp_path / "out")) == 6
