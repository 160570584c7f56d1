"""What `overwrite` means for a table: rows of the inputs are made anew, rows of others stay, whenever it is killed."""

import shutil
from collections import Counter
from pathlib import Path

import pytest
import torch

from hear_transformers.bulk import extract, table_output
from hear_transformers.bulk.outputs import OutputOptions
from hear_transformers.bulk.sources import Source, find_sources
from hear_transformers.errors import OptionError
from tests.bulk.test_rows import Sums, columns_of
from tests.helpers.faults import FAULTS, KilledError

FORMATS = ["parquet", "hdf5"]


class Marked(Sums):
    """Embeds every clip as a mark, so that it shows which run made a row."""

    def __init__(self, mark: float, family: str = "marked") -> None:
        super().__init__()
        self.mark, self.family = mark, family

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        return torch.full((len(waveforms), 2), self.mark)

    def provenance(self):
        return {"family": self.family}


def marks(table: Path) -> dict[str, float]:
    columns = columns_of(table)
    assert set(Counter(columns["file"]).values()) <= {1}
    return {Path(name).stem: row[0] for name, row in zip(columns["file"], columns["embedding"], strict=True)}


@pytest.fixture
def files(audio_file):
    return {name: audio_file(f"{name}.wav", seconds=0.2) for name in "abcd"}


def sources_of(files: dict[str, Path], names: str) -> list[Source]:
    return find_sources(str(files[name]) for name in names)


@pytest.mark.parametrize("format", FORMATS)
def test_rows_of_inputs_are_made_anew_and_others_stay(files, tmp_path, format):
    out = tmp_path / "out"
    table = out / f"embeddings.{format}"
    extract.extract(Marked(1.0), sources_of(files, "abc"), out, OutputOptions(format))
    extract.extract(Marked(2.0), sources_of(files, "ad"), out, OutputOptions(format, overwrite=True))
    assert marks(table) == {"a": 2.0, "b": 1.0, "c": 1.0, "d": 2.0}
    files["a"].write_text("damaged")
    extract.extract(Marked(3.0), sources_of(files, "ab"), out, OutputOptions(format, overwrite=True))
    assert marks(table) == {"a": 2.0, "b": 3.0, "c": 1.0, "d": 2.0}


@pytest.mark.parametrize("format", FORMATS)
def test_a_table_of_other_settings_is_replaced_whole(files, tmp_path, format):
    out = tmp_path / "out"
    extract.extract(Marked(1.0), sources_of(files, "abc"), out, OutputOptions(format))
    with pytest.raises(OptionError, match="family marked -> other"):
        extract.extract(Marked(2.0, "other"), sources_of(files, "ad"), out, OutputOptions(format))
    extract.extract(Marked(2.0, "other"), sources_of(files, "ad"), out, OutputOptions(format, overwrite=True))
    assert marks(out / f"embeddings.{format}") == {"a": 2.0, "d": 2.0}


@pytest.mark.slow
@pytest.mark.parametrize("again", ["overwrite", "resume"])
@pytest.mark.parametrize("family", ["marked", "other"])
@pytest.mark.parametrize("format", FORMATS)
def test_an_overwriting_run_killed_at_any_operation_loses_no_rows(files, tmp_path, monkeypatch, format, family, again):
    monkeypatch.setattr(table_output, "PART_ROWS", 1)
    before, out = tmp_path / "before", tmp_path / "out"
    table = out / f"embeddings.{format}"
    extract.extract(Marked(1.0), sources_of(files, "abc"), before, OutputOptions(format))
    at, n_kills = 0, 0
    done = {"a": 2.0, "d": 2.0} if family == "other" else {"a": 2.0, "b": 1.0, "c": 1.0, "d": 2.0}
    while True:
        shutil.rmtree(out, ignore_errors=True)
        shutil.copytree(before, out)
        overwriting = OutputOptions(format, overwrite=True)
        try:
            with FAULTS.at_operation(at, KilledError(), out):
                extract.extract(Marked(2.0, family), sources_of(files, "ad"), out, overwriting)
            break
        except KilledError:
            n_kills += 1
        old = marks(table)
        assert old in ({"a": 1.0, "b": 1.0, "c": 1.0}, done)
        try:
            options = OutputOptions(format, overwrite=again == "overwrite")
            extract.extract(Marked(2.0, family), sources_of(files, "ad"), out, options)
        except OptionError:  # killed before it was noted that the table is to be replaced
            assert (family, again) == ("other", "resume")
            assert old == {"a": 1.0, "b": 1.0, "c": 1.0}
        else:
            now = marks(table)
            if again == "resume" and family == "marked" and now["a"] == 1.0:  # killed before that row was finished
                now["a"] = 2.0
            assert now == done
        assert sorted(path.name for path in (out / f".embed-audio/embeddings.{format}").iterdir()) == [
            "journal.jsonl",
            "lock",
        ] or (family, again) == ("other", "resume")
        at += 1
    assert n_kills > 10
    assert marks(table) == done
