"""What is to be known of the audio reaches the user: on the screen, in JSON, in warnings.jsonl, in the outputs."""

import json
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.embedding import pipeline
from hear_transformers.errors import AudioError, HearTransformersWarning
from tests.helpers.headers import encoded, with_size, with_total

WHOLE = encoded("WAV")


@pytest.fixture
def clips(tmp_path: Path) -> Path:
    """Make a folder with a whole file, three that count wrongly, and three that are damaged."""
    folder = tmp_path / "clips"
    folder.mkdir()
    for name, content in {
        "whole.wav": WHOLE,
        "zero.wav": with_size("WAV", lambda size: 0),
        "twice.flac": with_total(encoded("FLAC"), 128_000),
        "more.aiff": with_size("AIFF", lambda size: size + 44),
        "half.wav": encoded("WAV", 4.0)[: 44 + 128_000],
        "half.ogg": encoded("OGG", 4.0)[: len(encoded("OGG", 4.0)) // 2],
        "half.flac": encoded("FLAC", 4.0)[: len(encoded("FLAC", 4.0)) // 2],
    }.items():
        (folder / name).write_bytes(content)
    return folder


def lines(path: Path) -> dict[str, dict]:
    return {Path(line["file"]).name: line for line in map(json.loads, path.read_text().splitlines())}


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("long_seconds", [1.0, pytest.param(60.0, marks=pytest.mark.slow)])
def test_wrong_counts_are_warned_of_and_damaged_files_fail(
    embed_audio, clips, tmp_path, monkeypatch, workers, long_seconds
):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", long_seconds)
    result = embed_audio("clips", "--out", "out", "--num-workers", workers)
    assert result.exit_code == 1
    assert lines(tmp_path / "out/failures.jsonl").keys() == {"half.wav", "half.ogg", "half.flac"}
    warned = lines(tmp_path / "out/warnings.jsonl")
    assert warned.keys() == {"zero.wav", "twice.flac", "more.aiff"}
    assert warned["twice.flac"]["warning"] == "clips/twice.flac: the header counts 4 s of audio, 2 s are there"
    assert result.stderr.count("Warning: ") == 3
    assert result.stdout.endswith("4 written, 3 failed, 3 with warnings, see warnings.jsonl\n")


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
@pytest.mark.parametrize("out", ["out", "out/table.parquet"])
def test_damaged_files_are_kept_if_asked_for(embed_audio, clips, tmp_path, workers, out):
    assert embed_audio("clips", "--out", out).exit_code == 1
    result = embed_audio("clips", "--out", out, "--keep-damaged", "--json", "--num-workers", workers)
    assert result.exit_code == 0
    records = {Path(record["input"]).name: record for record in map(json.loads, result.stdout.splitlines())}
    for name, record in records.items():
        assert record["status"] == ("written" if name.startswith("half") else "skipped")
        assert record["warning"] is None or name.startswith("half")
    assert records["half.wav"]["seconds"] == 2.0
    assert records["half.wav"]["warning"].endswith("cut short after 2.000 s; what is there was taken")
    assert 1.0 < records["half.flac"]["seconds"] < 3.0
    assert not (tmp_path / "out/failures.jsonl").exists()
    # Those of the first run are kept.
    assert len(lines(tmp_path / "out/warnings.jsonl")) == 6


@pytest.mark.parametrize("out", ["out", pytest.param("out/table.parquet", marks=pytest.mark.slow)])
def test_outputs_of_damaged_files_are_of_other_settings(embed_audio, clips, out):
    assert embed_audio("clips", "--out", out, "--keep-damaged").exit_code == 0
    again = embed_audio("clips", "--out", out, "--keep-damaged")
    assert again.stdout.startswith("0 written, 7 skipped")
    assert again.stderr == ""
    without = embed_audio("clips", "--out", out)
    assert without.stdout.startswith("0 written, 7 skipped")
    assert without.stderr.count("holds what was there of a damaged file (--keep-damaged)") == 3


def test_an_output_says_what_was_taken(embed_audio, clips, tmp_path):
    assert embed_audio("clips/half.wav", "clips/whole.wav", "--keep-damaged").exit_code == 0
    audio = {}
    for name in ("half", "whole"):
        with np.load(tmp_path / f"{name}.npz") as archive:
            audio[name] = json.loads(str(archive["provenance"]))["audio"]
    assert audio["half"]["seconds"] == 2.0
    assert audio["half"]["damaged"] is True
    assert audio["half"]["warnings"] == ["clips/half.wav: cut short after 2.000 s; what is there was taken"]
    assert audio["whole"].keys() == {"file", "sha256", "start", "end"}


def test_many_warnings_are_counted(embed_audio, tmp_path):
    for i in range(8):
        (tmp_path / f"{i}.wav").write_bytes(with_size("WAV", lambda size: 0, seconds=0.1 * (i + 1)))
    result = embed_audio("*.wav", "--out", "out")
    assert result.exit_code == 0
    assert result.stderr.count("\n") == 4
    assert "Warning: 5 more files have warnings" in result.stderr
    assert len(lines(tmp_path / "out/warnings.jsonl")) == 8


def test_a_manifest_has_parts_behind_the_counted_end(embed_audio, tmp_path):
    (tmp_path / "joined.ogg").write_bytes(encoded("OGG") + encoded("OGG", 3.0))
    (tmp_path / "parts.csv").write_text("path,start,end\njoined.ogg,1,2.5\njoined.ogg,3,5\njoined.ogg,6,7\n")
    result = embed_audio("--manifest", "parts.csv", "--json", "--out", "out")
    records = list(map(json.loads, result.stdout.splitlines()))
    assert [record["seconds"] for record in records] == [1.5, 2.0, None]
    assert "ends before 6.000 s" in records[-1]["error"]


# In Python


@pytest.mark.parametrize("workers", [0, 2])
def test_encode_warns_by_the_name_of_the_file(small_model, clips, workers):
    paths = [clips / "whole.wav", clips / "zero.wav"]
    with pytest.warns(HearTransformersWarning, match=r"input 1: .*zero\.wav: the header counts 0 s") as caught:
        embeddings = small_model.encode(paths, num_workers=workers)
    assert embeddings.shape[0] == 2
    assert len(caught) == 1
    assert caught[0].filename == __file__


def test_encode_keeps_damaged_files_if_asked_for(small_model, clips):
    with pytest.raises(AudioError, match=r"half\.wav: cut short after 2\.000 s.*keep_damaged=True"):
        small_model.encode(clips / "half.wav")
    with pytest.warns(HearTransformersWarning, match="what is there was taken"):
        kept = small_model.encode(clips / "half.wav", keep_damaged=True)
    assert np.isfinite(kept).all()
    with pytest.warns(HearTransformersWarning, match="what is there was taken"):
        _, centres_ms = small_model.encode_timestamps(clips / "half.wav", keep_damaged=True)
    assert centres_ms[-1] <= 2_000.0


def test_encode_counts_many_warnings(small_model, clips, caplog):
    paths = [clips / "zero.wav"] * 6
    with caplog.at_level("INFO", "hear_transformers"), pytest.warns(HearTransformersWarning) as caught:
        small_model.encode(paths)
    assert len(caught) == 4
    assert "3 more inputs have warnings" in str(caught[-1].message)
    assert len([record for record in caplog.records if "zero.wav" in record.message]) == 3
