"""What a run leaves for the next one: lines of what is finished, locks of who is at work, the list of what failed."""

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
    disk_full_as_error,
    exclusive,
    scratch,
)
from hear_transformers.errors import DiskFullError, OptionError


def note(path: Path, settings: str, **lines: dict) -> None:
    Journal(path, settings).add(lines)


def test_lines_are_read_back(tmp_path):
    note(tmp_path / "j", "settings", a={"sha256": "1"}, b={"sha256": "2"})
    note(tmp_path / "j", "settings", a={"sha256": "3"})
    assert Journal(tmp_path / "j", "settings").lines == {"a": {"sha256": "3"}, "b": {"sha256": "2"}}


def test_lines_of_other_settings_are_not_ours(tmp_path):
    note(tmp_path / "j", "theirs", a={})
    ours = Journal(tmp_path / "j", "ours")
    assert (ours.lines, ours.has_begun) == ({}, False)


@pytest.mark.parametrize("torn", [b"{", b'{"key": "b", "settings": "s"', b"\xff\xfe", b"[]\n", b"7\n", b"null\n"])
def test_a_torn_line_is_none_and_spoils_no_other(tmp_path, torn):
    note(tmp_path / "j", "s", a={})
    with (tmp_path / "j").open("ab") as file:
        file.write(torn)
    note(tmp_path / "j", "s", c={})
    assert Journal(tmp_path / "j", "s").lines.keys() == {"a", "c"}


def test_a_new_beginning_forgets_but_is_noted(tmp_path):
    old = Journal(tmp_path / "j", "s")
    old.add({"a": {}})
    old.begin()
    again = Journal(tmp_path / "j", "s")
    assert (again.lines, again.has_begun) == ({}, True)
    assert [path.name for path in tmp_path.iterdir()] == ["j"]


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
    with pytest.raises(DiskFullError, match="finished outputs are kept"), disk_full_as_error(tmp_path):
        raise OSError(next(iter(journal.DISK_FULL)), os.strerror(28))


def test_other_errors_of_the_system_stay_as_they_are(tmp_path):
    with pytest.raises(PermissionError), disk_full_as_error(tmp_path):
        raise PermissionError(13, "Permission denied")
