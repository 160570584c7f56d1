"""A disk that fills up or fails at any operation: one error that says so, and nothing half is left."""

import errno
import os
import shutil
from pathlib import Path

import pytest

from hear_transformers.bulk import extract, hdf5, table_output
from hear_transformers.bulk.outputs import OutputOptions
from hear_transformers.bulk.sources import find_sources
from hear_transformers.errors import DiskFullError, HearTransformersError
from tests.bulk.test_overwriting import Marked
from tests.helpers.faults import FAULTS


@pytest.fixture
def files(audio_file):
    return find_sources(str(audio_file(f"{name}.wav", seconds=0.1)) for name in "abc")


def leftovers(out: Path) -> list[str]:
    """List what a failed run should not leave: unfinished parts, locks of runs, parts and locks without a journal."""
    left = [path for path in out.rglob("*") if path.is_file()]
    half = [path for path in left if path.suffix == ".part" or path.suffix == ".lock"]
    journals = {path.parent for path in left if path.name == "journal.jsonl"}
    state = [path for path in left if path.parent.parent.name == ".embed-audio" and path.name != "journal.jsonl"]
    return [str(path.relative_to(out)) for path in [*half, *(path for path in state if path.parent not in journals)]]


def fails_at_every_operation(files, out: Path, options: OutputOptions, number: int, kind: type[Exception]) -> None:
    at = n_failed = 0
    while True:
        shutil.rmtree(out, ignore_errors=True)
        try:
            with FAULTS.at_operation(at, OSError(number, os.strerror(number)), out):
                report = extract.extract(Marked(1.0), files, out, options)
        except kind:
            n_failed += 1
        else:
            n_failed += bool(report.failed)
            if FAULTS.n <= at:
                break
        assert leftovers(out) == []
        assert len(extract.extract(Marked(1.0), files, out, options).failed) == 0
        at += 1
    assert n_failed >= 5


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "npy", "parquet", "hdf5"])
@pytest.mark.parametrize(("number", "kind"), [(errno.ENOSPC, DiskFullError), (errno.EIO, HearTransformersError)])
def test_a_fault_at_any_operation_leaves_nothing_half(files, tmp_path, monkeypatch, format, number, kind):
    monkeypatch.setattr(table_output, "PART_ROWS", 1)
    fails_at_every_operation(files, tmp_path / "out", OutputOptions(format), number, kind)


@pytest.mark.parametrize("part_rows", [1, 2, 8192])
def test_a_disk_that_fills_up_inside_hdf5_leaves_nothing(files, tmp_path, monkeypatch, part_rows):
    pytest.importorskip("h5py")
    monkeypatch.setattr(table_output, "PART_ROWS", part_rows)
    write, n_writes = hdf5._Draft.write, 0
    out, at = tmp_path / "out", 0

    def full(self, data):
        nonlocal n_writes
        n_writes += 1
        if n_writes > at:
            self.error = self.error or OSError(errno.ENOSPC, "No space left on device")
            return len(memoryview(data).cast("B"))
        return write(self, data)

    monkeypatch.setattr(hdf5._Draft, "write", full)
    n_failed = 0
    while True:
        n_writes = 0
        shutil.rmtree(out, ignore_errors=True)
        try:
            extract.extract(Marked(1.0), files, out, OutputOptions("hdf5"))
            break
        except DiskFullError:
            n_failed += 1
        assert leftovers(out) == []
        assert not (out / "embeddings.hdf5").exists()
        at += 1
    assert n_failed > 10
