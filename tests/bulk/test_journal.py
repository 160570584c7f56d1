"""What a run leaves for the next one: lines of what is finished, locks of who is at work, the list of what failed."""

import errno
import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from filelock import FileLock

from hear_transformers.bulk import journal
from hear_transformers.bulk.journal import (
    Failures,
    Journal,
    Warnings,
    digest,
    exclusive,
    explained,
    scratch,
)
from hear_transformers.errors import DiskFullError, HearTransformersError, OptionError


def note(path: Path, settings: str, **lines: dict) -> None:
    Journal(path, settings).add(lines)


def test_lines_are_read_back(tmp_path):
    note(tmp_path / "j", "settings", a={"sha256": "1"}, b={"sha256": "2"})
    note(tmp_path / "j", "settings", a={"sha256": "3"})
    assert Journal(tmp_path / "j", "settings").lines == {"a": {"sha256": "3"}, "b": {"sha256": "2"}}


def test_lines_of_other_settings_are_not_ours(tmp_path):
    note(tmp_path / "j", "theirs", a={})
    assert Journal(tmp_path / "j", "ours").lines == {}


@pytest.mark.parametrize(
    "torn",
    [b"{", b'{"key": "b", "settings": "s"', b"\xff\xfe", b"[]\n", b"7\n", b"null\n", b"[" * 100_000, b"\0" * 100],
)
def test_a_torn_line_is_none_and_spoils_no_other(tmp_path, torn):
    note(tmp_path / "j", "s", a={})
    with (tmp_path / "j").open("ab") as file:
        file.write(torn)
    note(tmp_path / "j", "s", c={})
    assert Journal(tmp_path / "j", "s").lines.keys() == {"a", "c"}


def test_what_may_be_replaced_is_noted_for_these_settings(tmp_path):
    note(tmp_path / "j", "s", a={})
    Journal(tmp_path / "j", "s").replace_output("7-9")
    assert Journal(tmp_path / "j", "s").to_replace == "7-9"
    assert Journal(tmp_path / "j", "s").lines == {"a": {}}
    assert Journal(tmp_path / "j", "t").to_replace == ""


def test_settings_in_another_order_are_the_same():
    assert digest({"a": 1, "b": [2]}) == digest({"b": [2], "a": 1}) != digest({"a": 1, "b": [3]})


# Folders of runs


def test_what_a_run_did_not_finish_is_removed_with_it(tmp_path):
    with scratch(tmp_path) as place:
        (place / "half").touch()
    assert list(tmp_path.iterdir()) == []


HANG = """
import sys, time
from pathlib import Path
from hear_transformers.bulk.journal import scratch
with scratch(Path(sys.argv[1])) as place:
    (place / "half").touch()
    print("ready", flush=True)
    time.sleep(60)
"""


def test_the_next_run_removes_what_a_killed_one_left_and_nothing_of_one_alive(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", HANG, tmp_path], stdout=subprocess.PIPE) for _ in range(2)]
    try:
        for run in runs:
            assert run.stdout.readline() == b"ready\n"
        runs[0].send_signal(signal.SIGKILL)
        runs[0].wait()
        assert len(list(tmp_path.rglob("half"))) == 2
        with scratch(tmp_path):
            assert len(list(tmp_path.rglob("half"))) == 1
    finally:
        for run in runs:
            run.kill()
            run.wait()
            run.stdout.close()


def test_two_runs_do_not_write_one_table(tmp_path, monkeypatch):
    monkeypatch.setattr(journal, "LOCK_SECONDS", 0.0)
    with (
        FileLock(tmp_path / "lock"),
        pytest.raises(OptionError, match=r"t\.parquet is being written by another run"),
        exclusive(tmp_path, tmp_path / "t.parquet"),
    ):
        pass


# What failed

FAILURE = {"file": "a.wav", "start": 0.0, "end": None, "error": "AudioError", "reason": "a.wav: no such file"}


def test_the_list_holds_what_fails_now(tmp_path):
    path = tmp_path / "out" / "failures.jsonl"
    for name in ("a.wav", "b.wav"):
        Failures(path).add({**FAILURE, "file": name})
    assert json.loads(path.read_text())["file"] == "b.wav"
    Failures(path)
    assert not path.exists()


@pytest.mark.parametrize("theirs", ["", "notes", '{"file": 1}', "[]"])
def test_a_file_of_somebody_else_with_that_name_is_kept(tmp_path, theirs):
    path = tmp_path / "failures.jsonl"
    path.write_text(theirs)
    Failures(path)
    assert path.read_text() == theirs


WARNING = {"file": "a.wav", "start": 0.0, "end": None}


def test_warnings_stay_until_their_source_is_embedded_again(tmp_path):
    path = tmp_path / "out" / "warnings.jsonl"
    first = Warnings(path)
    first.replace(WARNING, ["a.wav: one", "a.wav: two"])
    first.replace({**WARNING, "start": 1.0}, ["a.wav: one"])
    first.replace({**WARNING, "file": "b.wav"}, [])
    Warnings(path)
    texts = [json.loads(line)["warning"] for line in path.read_text().splitlines()]
    assert texts == ["a.wav: one", "a.wav: two", "a.wav: one"]
    Warnings(path).replace(WARNING, ["a.wav: three"])
    assert [json.loads(line)["warning"][-5:] for line in path.read_text().splitlines()] == [": one", "three"]
    second = Warnings(path)
    for start in (0.0, 1.0):
        second.replace({**WARNING, "start": start}, [])
    assert not path.exists()


def test_a_full_disk_says_how_to_go_on(tmp_path):
    with pytest.raises(DiskFullError, match="finished outputs are kept"), explained(tmp_path):
        raise OSError(next(iter(journal.DISK_FULL)), os.strerror(28))


@pytest.mark.parametrize(
    ("number", "advice"),
    [
        (errno.EIO, r"cannot be read or written \(Input/output error\); finished outputs are kept: check the disk"),
        (errno.ESTALE, "check the disk, or the connection to it, then run the same command again to resume"),
        (errno.EACCES, "choose another --out, or allow writing there"),
        (errno.EROFS, "choose another --out, or allow writing there"),
    ],
)
def test_an_error_of_the_disk_says_where_and_what_to_do(tmp_path, number, advice):
    with pytest.raises(HearTransformersError, match=f"^{tmp_path}/a: .*{advice}"), explained(tmp_path):
        raise OSError(number, os.strerror(number), str(tmp_path / "a"))


def test_a_closed_stdout_is_no_error_of_the_outputs(tmp_path):
    with pytest.raises(BrokenPipeError), explained(tmp_path):
        raise BrokenPipeError(errno.EPIPE, "Broken pipe")


def test_a_table_without_a_journal_leaves_no_lock(tmp_path):
    with exclusive(tmp_path / "state/t", tmp_path / "t"):
        assert (tmp_path / "state/t/lock").exists()
    assert list((tmp_path / "state").iterdir()) == []


RACE = """
import sys
from pathlib import Path
from hear_transformers.bulk.journal import exclusive, scratch
folder = Path(sys.argv[1])
for i in range(150):
    with scratch(folder) as place, exclusive(folder / ".embed-audio/t", folder / "t"):
        (place / "half").touch()
"""


def test_runs_that_begin_and_end_at_once_do_not_disturb_each_other(tmp_path):
    runs = [subprocess.Popen([sys.executable, "-c", RACE, tmp_path], stderr=subprocess.PIPE) for _ in range(3)]
    for run in runs:
        _, errors = run.communicate(timeout=100)
        assert (run.returncode, errors) == (0, b"")
    assert list(tmp_path.iterdir()) == []
