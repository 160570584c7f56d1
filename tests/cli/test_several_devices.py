"""`--device cpu,cpu`: the outputs of one device, one list of failures, one end."""

import json
import os
import signal
import subprocess
import sys
import time
import uuid
from pathlib import Path

import pytest

from hear_transformers.errors import OptionError

pytestmark = pytest.mark.slow

TWO = "--device=cpu,cpu"


@pytest.fixture
def files(audio_file):
    for i in range(9):
        audio_file(f"in/{i}.wav", seconds=0.2 + 0.1 * (i % 3))
    audio_file("in/5bad.wav").write_text("text")


def records(stdout: str) -> list[dict]:
    """Return the records of files, without what limited the run."""
    return [{**json.loads(line), "run": None} for line in stdout.splitlines()]


def test_the_table_is_the_same_and_resumed(embed_audio, files, audio_file, tmp_path):
    pytest.importorskip("pyarrow")
    alone = embed_audio("in", "--out=one/a.parquet", "--device=cpu", "--batch-size=1", "--json")
    shared = embed_audio("in", "--out=two/a.parquet", TWO, "--batch-size=1", "--num-workers=2", "--json")
    assert (alone.exit_code, shared.exit_code) == (1, 1)
    assert records(shared.stdout) == records(alone.stdout.replace("one/", "two/"))
    assert shared.stderr == alone.stderr
    for name in ("a.parquet", "failures.jsonl"):
        assert (tmp_path / "one" / name).read_bytes() == (tmp_path / "two" / name).read_bytes()
    audio_file("in/new.wav", seconds=0.5)
    again = embed_audio("in", "--out=two/a.parquet", TWO, "--json")
    statuses = [json.loads(line)["status"] for line in again.stdout.splitlines()]
    assert [statuses.count(each) for each in ("written", "skipped", "failed")] == [1, 9, 1]


def test_labels_need_no_model_here(embed_audio, files):
    alone = embed_audio("in", "--out=one", "--device=cpu", "--labels", "--top-k=2", "--quiet")
    shared = embed_audio("in", "--out=two", TWO, "--labels", "--top-k=2", "--quiet")
    assert shared.stdout == alone.stdout


def test_wrong_options_are_refused_as_on_one_device(embed_audio, files):
    for options in (["--device=cpu,tpu"], [TWO, "--window-ms=1", "--hop-ms=0.0001"], ["--device=all"]):
        done = embed_audio("in", "--out=out", *options)
        assert done.exit_code == 2, (options, done.stderr)
        assert OptionError.__name__ not in done.stderr


ENDS = """
import os, sys
from hear_transformers.cli import embed_audio
show, told = embed_audio.Progress.show, []
def show_then_end(self, outcome):
    show(self, outcome)
    told.append(outcome)
    if len(told) == 4:
        os.kill(os.getpid(), int(os.environ["SIGNAL"]))
embed_audio.Progress.show = show_then_end
embed_audio.main()
"""


def processes_with(mark: str) -> list[int]:
    """Return the processes that have a word in their environment."""
    found = []
    for path in Path("/proc").glob("[0-9]*/environ"):
        try:
            if mark.encode() in path.read_bytes():
                found.append(int(path.parent.name))
        except OSError:
            continue
    return found


@pytest.mark.skipif(sys.platform != "linux", reason="signals, and processes are looked for in /proc")
@pytest.mark.parametrize(
    ("number", "code", "message"),
    [
        (
            signal.SIGTERM,
            143,
            "Error: ended by SIGTERM; finished outputs are kept, run the same command again to resume\n",
        ),
        (signal.SIGKILL, -9, ""),
    ],
)
def test_no_process_outlives_the_command(files, small_weights, tmp_path, number, code, message):
    mark = uuid.uuid4().hex
    small = ["--model=efficientat", "--variant=mn01_as", f"--weights={small_weights}", "--batch-size=1"]
    done = subprocess.run(
        [sys.executable, "-c", ENDS, "in", *small, "--out=out", TWO, "--num-workers=2"],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "SIGNAL": str(int(number)), "MARK": mark},
        capture_output=True,
        text=True,
        check=False,
        timeout=200,
    )
    assert (done.returncode, done.stderr) == (code, message)
    ends = time.monotonic() + 20.0
    while processes_with(mark) and time.monotonic() < ends:
        time.sleep(0.1)
    assert processes_with(mark) == []
    assert len(list((tmp_path / "out").glob("*.npz"))) >= 2
