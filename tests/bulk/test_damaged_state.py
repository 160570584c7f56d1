"""Journals and parts that a disk or a person damaged: the rows are right, or the run is refused; none is lost."""

import json
import random
import shutil
from pathlib import Path

import pytest

from hear_transformers.bulk import extract, table_output
from hear_transformers.bulk.outputs import OutputOptions
from hear_transformers.errors import OptionError
from tests.bulk.test_overwriting import Marked, marks, sources_of

OPTIONS = OutputOptions("parquet")
ALL = {"a": 1.0, "b": 1.0, "c": 1.0}


@pytest.fixture
def files(audio_file):
    return {name: audio_file(f"{name}.wav", seconds=0.1) for name in "abcd"}


@pytest.fixture
def finished(files, tmp_path):
    """Make a table of three files in two runs."""
    pytest.importorskip("pyarrow")
    for names in ("b", "abc"):
        extract.extract(Marked(1.0), sources_of(files, names), tmp_path / "finished", OPTIONS)
    return tmp_path / "finished"


def changed_line(text: bytes, **changes: object) -> bytes:
    first, *rest = text.splitlines(keepends=True)
    return b"".join([json.dumps({**json.loads(first), **changes}).encode() + b"\n", *rest])


DAMAGE = {
    "empty": lambda text: b"",
    "zeros": lambda text: bytes(len(text)),
    "first line lost": lambda text: text.split(b"\n", 1)[1],
    "last line torn": lambda text: text[:-40],
    "half": lambda text: text[: len(text) // 2],
    "noise": lambda text: random.Random(0).randbytes(500) + b"\n" + text,
    "deep": lambda text: b"[" * 100_000 + b"\n" + text,
    "key of another kind": lambda text: changed_line(text, key=["a"]),
    "part of another kind": lambda text: changed_line(text, part=["a"]),
    "no place": lambda text: changed_line(text, first=None),
    "negative place": lambda text: changed_line(text, first=-1),
    "no names": lambda text: changed_line(text, names=[]),
    "too many rows": lambda text: changed_line(text, rows=2),
    "another part": lambda text: changed_line(text, part="lost"),
    "lines twice": lambda text: text + text,
    "another settings": lambda text: changed_line(text, settings="0" * 16),
}


@pytest.mark.parametrize("names", ["abc", "d"])
@pytest.mark.parametrize("damage", DAMAGE)
def test_rows_beside_a_damaged_journal_are_kept_or_the_run_is_refused(files, finished, damage, names):
    journal = finished / ".embed-audio/embeddings.parquet/journal.jsonl"
    journal.write_bytes(DAMAGE[damage](journal.read_bytes()))
    table = finished / "embeddings.parquet"
    before = table.read_bytes()
    refusal = ""
    try:
        extract.extract(Marked(1.0), sources_of(files, names), finished, OPTIONS)
    except OptionError as error:
        refusal = str(error)
    if refusal:
        assert "its journal in" in refusal
        assert "--overwrite to replace the whole table" in refusal
        assert table.read_bytes() == before
    else:
        assert marks(table) == {**ALL, **dict.fromkeys(names, 1.0)}


@pytest.mark.parametrize("damage", ["empty", "cut", "noise"])
def test_a_damaged_part_of_an_interrupted_run_is_made_again(files, tmp_path, monkeypatch, damage):
    pytest.importorskip("pyarrow")
    monkeypatch.setattr(table_output, "PART_ROWS", 1)
    out = tmp_path / "out"

    def interrupt(outcome):
        if outcome.source == str(files["b"]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        extract.extract(Marked(1.0), sources_of(files, "abc"), out, OPTIONS, on_outcome=interrupt)
    part = next((out / ".embed-audio/embeddings.parquet").glob("*.parquet"))
    content = part.read_bytes()
    part.write_bytes({"empty": b"", "cut": content[:-10], "noise": random.Random(0).randbytes(900)}[damage])
    report = extract.extract(Marked(1.0), sources_of(files, "abc"), out, OPTIONS)
    assert len(report.written) >= 1
    assert marks(out / "embeddings.parquet") == ALL


def test_the_table_of_another_run_put_in_place_is_refused(files, finished, tmp_path):
    other = tmp_path / "other"
    extract.extract(Marked(1.0), sources_of(files, "d"), other, OPTIONS)
    shutil.copy(other / "embeddings.parquet", finished / "embeddings.parquet")
    with pytest.raises(OptionError, match="its journal in"):
        extract.extract(Marked(1.0), sources_of(files, "abc"), finished, OPTIONS)


def test_a_damaged_table_is_refused(files, finished):
    table: Path = finished / "embeddings.parquet"
    table.write_bytes(table.read_bytes()[:-20])
    with pytest.raises(OptionError, match="does not say what made it"):
        extract.extract(Marked(1.0), sources_of(files, "abc"), finished, OPTIONS)
