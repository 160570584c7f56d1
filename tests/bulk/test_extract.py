"""Which files are found and how outputs are named; many files, one of them bad; long ones; resumed runs."""

import json
import math
import os
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch

from hear_transformers import efficientat
from hear_transformers.audio import reading
from hear_transformers.bulk import extract, manifest, sources, table_output
from hear_transformers.bulk.formats import FILES
from hear_transformers.bulk.outputs import OutputOptions, Shard
from hear_transformers.bulk.sources import Source, find_sources, name_outputs
from hear_transformers.embedding import pipeline
from hear_transformers.embedding.external import ExternalModel
from hear_transformers.errors import OptionError
from hear_transformers.files import sha256_of
from hear_transformers.labels import top_tags


def paths(found: list[Source]) -> list[str]:
    return [str(source.path) for source in found]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Create empty files: what is found does not depend on what is in them."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.wav", "a.FLAC", "notes.txt", "sub/c.ogg", "sub/deep/d.mp3", ".hidden.wav", ".git/e.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_a_folder_stands_for_its_audio_sorted(tree):
    found = find_sources(["."])
    assert paths(found) == ["a.FLAC", "b.wav", "sub/c.ogg", "sub/deep/d.mp3"]
    assert [str(source.name) for source in found] == paths(found)


def test_links_to_folders_are_followed_once(tree):
    os.symlink(tree, "sub/loop")
    os.symlink(tree / "sub" / "deep", "sub/again")
    assert len(find_sources(["."])) == 4


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("*.wav", ["b.wav"]),
        ("**/*.ogg", ["sub/c.ogg"]),
        ("sub/**/*.mp3", ["sub/deep/d.mp3"]),
        ("s*", ["sub/c.ogg", "sub/deep/d.mp3"]),
        ("[ab].*", ["a.FLAC", "b.wav"]),
    ],
)
def test_patterns_are_expanded(tree, pattern, expected):
    assert paths(find_sources([pattern])) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    Path("[ab].wav").touch()
    assert paths(find_sources(["[ab].wav"])) == ["[ab].wav"]


def test_a_named_file_may_have_any_suffix(tree):
    assert paths(find_sources(["notes.txt"])) == ["notes.txt"]


def test_a_list_stands_for_its_lines(tree):
    assert paths(find_sources(["-"], ["b.wav\n", "\n", "sub/deep\r\n"])) == ["b.wav", "sub/deep/d.mp3"]


def test_each_file_is_taken_once(tree):
    assert paths(find_sources(["b.wav", "./b.wav", ".", "*.wav"]))[0] == "b.wav"
    assert len(find_sources(["b.wav", "./b.wav", ".", "*.wav"])) == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [(".git/empty", "no audio in this folder"), ("*.aiff", "no file matches"), (".git/empty", r"\.wav")],
)
def test_what_is_not_there_is_an_error_in_the_list(tree, entry, message):
    Path(".git/empty").mkdir()
    bad, good = find_sources([entry, "b.wav"])
    with pytest.raises(sources.AudioError, match=message):
        raise bad.error
    assert good.error is None


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["b.wav"], ["b.npz"]),
        (["sub"], ["c.npz", "deep/d.npz"]),
        (["sub/**/*.mp3"], ["deep/d.npz"]),
        (["sub/"], ["c.npz", "deep/d.npz"]),
        (["sub/*"], ["c.npz", "deep/d.npz"]),
        (["./sub/../sub/*"], ["c.npz", "deep/d.npz"]),
        (["sub/**"], ["c.npz", "deep/d.npz"]),
        (["s*"], ["sub/c.npz", "sub/deep/d.npz"]),
        (["s*/*.ogg", "b.wav"], ["sub/c.npz", "b.npz"]),
        (["sub/deep/d.mp3"], ["d.npz"]),
        (["x/a.wav", "x/a.flac", "x/b.wav"], ["a.wav.npz", "a.flac.npz", "b.npz"]),
        (["x/a.wav", "y/a.wav"], ["x/a.wav.npz", "y/a.wav.npz"]),
        (["x/a.wav", "x/a.flac", "x/a.wav.mp3"], ["a.wav.npz", "a.flac.npz", "a.wav.mp3.npz"]),
        (["x/a.wav", "x/A.flac"], ["a.wav.npz", "A.flac.npz"]),
        (["recording.2024"], ["recording.npz"]),
        ([".wav"], [".wav.npz"]),
    ],
)
def test_outputs_are_named_after_their_sources_and_differ(tree, inputs, outputs):
    assert name_outputs(find_sources(inputs), ".npz") == [PurePath(output) for output in outputs]


# Embedding


@pytest.fixture
def run(small_model, tmp_path):
    """Embed files of the test's folder into `out` below it, and give the report."""

    def run(*inputs: Path, **options):
        how = OutputOptions(**{key: options.pop(key) for key in OutputOptions.__slots__ if key in options})
        return extract.extract(small_model, find_sources(map(str, inputs)), tmp_path / "out", how, **options)

    return run


def files_below(folder: Path) -> list[Path]:
    return sorted(path.relative_to(folder) for path in folder.rglob("*") if not path.is_dir())


def embedding(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["embedding"]


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_file_holds_what_the_model_gives(run, audio_file, small_model, tmp_path, timestamps):
    path = audio_file()
    (outcome,) = run(path, timestamps=timestamps).written
    waveforms = reading.read(path, 32_000)[None]
    expected = small_model.embed_timestamps(waveforms)[0] if timestamps else small_model.embed_scenes(waveforms)
    np.testing.assert_allclose(embedding(tmp_path / "out" / "tone.npz"), expected[0], atol=1e-6)
    shape = tuple(expected[0].shape)
    output = tmp_path / "out" / "tone.npz"
    assert outcome == extract.Outcome(str(path), "written", output, shape, 1.0, shapes=(shape,))


@pytest.mark.slow
def test_the_company_of_other_files_changes_nothing(run, audio_file, tmp_path):
    lengths = [1.0, 0.5, 1.0, 0.01, 2.0, 1.0]
    clips = [audio_file(f"{i}.wav", seconds=seconds) for i, seconds in enumerate(lengths)]
    run(*clips)
    together = [embedding(tmp_path / "out" / f"{i}.npz") for i in range(len(clips))]
    for clip, expected in zip(clips, together, strict=True):
        run(clip, overwrite=True)
        np.testing.assert_allclose(embedding(tmp_path / "out" / f"{clip.stem}.npz"), expected, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
def test_a_long_file_is_streamed_to_the_same_embedding(run, audio_file, tmp_path, monkeypatch, timestamps):
    path = audio_file(seconds=13.3, sample_rate=44_100)
    run(path, timestamps=timestamps)
    whole = embedding(tmp_path / "out" / "tone.npz")
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 3.0)
    monkeypatch.setattr(reading.AudioFile.blocks, "__defaults__", (1.0,))
    run(path, timestamps=timestamps, overwrite=True)
    np.testing.assert_allclose(embedding(tmp_path / "out" / "tone.npz"), whole, atol=1e-5)
    assert [str(path) for path in files_below(tmp_path / "out")] == ["tone.npz"]


class Counting(ExternalModel):
    """Gives zeros and remembers how many clips came at once."""

    def __init__(self) -> None:
        self.sample_rate, self.batch_size, self.layers, self.precision = 32_000, None, (), "float32"
        self.batches: list[int] = []

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(waveforms))
        return torch.zeros(len(waveforms), 4)

    def provenance(self):
        return {"family": "counting"}


def test_clips_of_equal_length_are_embedded_together(audio_file, tmp_path):
    model = Counting()
    files = [audio_file(f"{i}.wav", seconds=[0.5, 1.0][i % 2]) for i in range(6)]
    extract.extract(model, find_sources(map(str, files)), tmp_path)
    assert model.batches == [3, 3]


def test_the_batch_size_is_kept(audio_file, tmp_path):
    model = Counting()
    model.batch_size = 2
    extract.extract(model, find_sources([str(audio_file(f"{i}.wav")) for i in range(5)]), tmp_path)
    assert model.batches == [2, 2, 1]


def test_waiting_clips_are_bounded(audio_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PENDING_SECONDS", 2.5)
    model = Counting()
    lengths = [1.0, 1.0, 0.6, 0.7, 0.8]
    files = [audio_file(f"{i}.wav", seconds=seconds) for i, seconds in enumerate(lengths)]
    extract.extract(model, find_sources(map(str, files)), tmp_path)
    assert model.batches == [2, 1, 1, 1]


def test_a_clip_that_breaks_the_model_does_not_take_others_along(audio_file, tmp_path):
    class Fragile(Counting):
        def embed_scenes(self, waveforms):
            if (waveforms == 0).all(1).any():
                raise ZeroDivisionError("silence")
            return super().embed_scenes(waveforms)

    good, bad = audio_file("good.wav"), audio_file("bad.wav", np.zeros(32_000))
    report = extract.extract(Fragile(), find_sources([str(good), str(bad)]), tmp_path / "out")
    assert [outcome.source for outcome in report.written] == [str(good)]
    assert [outcome.message for outcome in report.failed] == [f"{bad}: ZeroDivisionError: silence"]


def test_embeddings_that_are_not_finite_are_not_written(audio_file, tmp_path):
    class Broken(Counting):
        def embed_scenes(self, waveforms):
            return torch.full((len(waveforms), 4), torch.nan)

    report = extract.extract(Broken(), find_sources([str(audio_file())]), tmp_path / "out")
    assert "NaN" in report.failed[0].message
    assert files_below(tmp_path / "out") == [Path("failures.jsonl")]


def test_outcomes_are_told_as_they_come(run, audio_file, tmp_path):
    told = []
    report = run(tmp_path / "missing.wav", audio_file(), on_outcome=told.append)
    assert told == [*report.failed, *report.written]


# Labels


@pytest.fixture(scope="module")
def tagger():
    """Load the smallest network, with the layer logits."""
    return efficientat.load_model(variant="mn01_as", pretrained=False, layer="logits")


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_labels_are_those_of_the_embedding(tagger, audio_file, tmp_path, format):
    path = audio_file()
    report = extract.extract(tagger, find_sources([str(path)]), tmp_path / "out", OutputOptions(format), n_labels=4)
    expected = top_tags(tagger.embed_scenes(reading.read(path, 32_000)[None])[0], 4)
    assert [tag.label for tag in report.written[0].tags] == [tag.label for tag in expected]


def test_a_long_file_gets_labels(tagger, audio_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.5)
    report = extract.extract(tagger, find_sources([str(audio_file())]), tmp_path / "out", n_labels=4)
    assert len(report.written[0].tags) == 4


@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_files_whose_outputs_are_there_get_labels_too(tagger, audio_file, tmp_path, format):
    found = find_sources([str(audio_file())])
    (written,) = extract.extract(tagger, found, tmp_path / "out", OutputOptions(format), n_labels=4).written
    before = written.output.read_bytes()
    (skipped,) = extract.extract(tagger, found, tmp_path / "out", OutputOptions(format), n_labels=4).skipped
    assert skipped == extract.Outcome(written.source, "skipped", written.output, tags=written.tags)
    assert written.output.read_bytes() == before


def test_labels_do_not_excuse_outputs_of_other_settings(run, tagger, audio_file, tmp_path):
    path = audio_file()
    run(path)
    with pytest.raises(OptionError, match="layer features -> logits"):
        extract.extract(tagger, find_sources([str(path)]), tmp_path / "out", n_labels=4)


def test_without_labels_there_are_no_tags(run, audio_file):
    assert run(audio_file()).written[0].tags is None


@pytest.mark.parametrize("options", [{}, {"timestamps": True}])
def test_labels_of_what_is_no_logits_are_refused_at_once(run, audio_file, tmp_path, options):
    with pytest.raises(OptionError, match="labels"):
        run(audio_file(), n_labels=4, **options)
    assert not (tmp_path / "out").exists()


# Resumed runs


def test_outputs_that_are_there_are_kept(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    before = (tmp_path / "out" / "tone.npz").stat().st_mtime_ns
    (outcome,) = run(path).skipped
    assert outcome == extract.Outcome(str(path), "skipped", tmp_path / "out" / "tone.npz")
    assert (tmp_path / "out" / "tone.npz").stat().st_mtime_ns == before


def test_overwrite_replaces_them(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    run(path, overwrite=True, timestamps=True)
    assert embedding(tmp_path / "out" / "tone.npz").ndim == 2


def test_outputs_of_something_else_are_kept_with_a_message(run, audio_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tone.npz").write_text("mine")
    (outcome,) = run(audio_file()).skipped
    assert "does not say what made it" in outcome.message
    assert (tmp_path / "out" / "tone.npz").read_text() == "mine"


def test_one_file_for_several_inputs_is_refused(small_model, audio_file, tmp_path):
    found = find_sources([str(audio_file("a.wav")), str(audio_file("b.wav"))])
    with pytest.raises(OptionError, match=r"one file for 2 inputs"):
        extract.extract(small_model, found, tmp_path / "x.npz")


def test_a_file_in_place_of_the_folder_is_refused(small_model, audio_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file is a file; outputs need a folder"):
        extract.extract(small_model, find_sources([str(audio_file())]), tmp_path / "file", OutputOptions("parquet"))


def test_an_output_that_cannot_be_written_fails_alone(small_model, audio_file, tmp_path):
    (tmp_path / "out" / "a.npz").mkdir(parents=True)
    found = find_sources([str(audio_file("a.wav")), str(audio_file("b.wav"))])
    report = extract.extract(small_model, found, tmp_path / "out", OutputOptions(overwrite=True))
    assert [outcome.source for outcome in report.written] == [str(tmp_path / "b.wav")]
    assert "IsADirectoryError" in report.failed[0].message


def test_changed_audio_is_embedded_again(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    before = embedding(tmp_path / "out" / "tone.npz")
    audio_file(seconds=0.5)
    os.utime(path, ns=(0, 0))
    assert len(run(path).written) == 1
    assert not np.array_equal(embedding(tmp_path / "out" / "tone.npz"), before)
    assert len(run(path).skipped) == 1


def test_an_old_time_of_change_alone_is_no_change(run, audio_file):
    path = audio_file()
    run(path)
    os.utime(path, ns=(0, 0))
    assert len(run(path).skipped) == 1


def write_without_audio(path: Path) -> None:
    """Rewrite an output as if it did not say of which audio it is."""
    with np.load(path) as archive:
        arrays = dict(archive)
    provenance = json.loads(str(arrays["provenance"]))
    del provenance["audio"]
    np.savez(path, **arrays | {"provenance": np.array(json.dumps(provenance))})


def test_an_output_of_these_settings_that_does_not_name_its_audio_is_kept(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    write_without_audio(tmp_path / "out" / "tone.npz")
    assert [outcome.message for outcome in run(path).skipped] == [""]


@pytest.mark.parametrize("format", ["npz", "npy"])
def test_outputs_name_their_audio(run, audio_file, tmp_path, format):
    path = audio_file()
    run(path, format=format)
    audio = FILES[format].provenance_of(tmp_path / "out" / f"tone.{format}")["audio"]
    assert audio == {"file": str(path), "sha256": sha256_of(path), "start": 0.0, "end": None}


def test_the_output_of_another_part_of_a_file_is_kept_with_a_message(small_model, audio_file, tmp_path):
    audio_file()
    for part in ("0,0.5", "0.5,1"):
        found = listed(tmp_path, f"path,start,end\ntone.wav,{part}\n")
        report = extract.extract(small_model, found, tmp_path / "out.npz")
    assert "is of another part of a file" in report.skipped[0].message


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "parquet", "hdf5"])
def test_the_output_of_another_file_is_not_overwritten(run, audio_file, format):
    one, other = audio_file("one/same.wav"), audio_file("other/same.wav", seconds=0.5)
    run(one, format=format)
    (outcome,) = run(other, format=format).skipped
    assert f"is kept, but was made from {one}; --overwrite replaces it" in outcome.message
    assert [outcome.message for outcome in run(one, format=format).skipped] == [""]


def test_audio_that_was_moved_is_known(run, audio_file):
    path = audio_file("one/same.wav")
    run(path)
    moved = path.rename(path.parents[1] / "same.wav")
    assert [outcome.message for outcome in run(moved).skipped] == [""]


def test_a_link_that_leads_out_of_the_folder_is_not_followed(run, audio_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "out" / "sub").symlink_to(tmp_path / "elsewhere")
    audio_file("in/sub/a.wav")
    audio_file("in/b.wav")
    report = run(tmp_path / "in")
    assert "would lie outside" in report.failed[0].message
    assert [outcome.source for outcome in report.written] == [str(tmp_path / "in/b.wav")]
    assert list((tmp_path / "elsewhere").iterdir()) == []


@pytest.mark.parametrize("name", ["../../a.wav", "/a.wav", "..", "x/../../a.wav"])
def test_outputs_stay_below_their_folder(name):
    (output,) = name_outputs([Source(Path("a.wav"), PurePath(name))], ".npz")
    assert os.path.normpath("out" / output).startswith("out/")
    assert os.pardir not in output.parts


# Tables


def in_table(path: Path) -> dict[str, np.ndarray]:
    table = pytest.importorskip("pyarrow.parquet").read_table(path)
    return dict(zip(table["file"].to_pylist(), np.array(table["embedding"].to_pylist()), strict=True))


def test_a_table_is_added_to(run, audio_file, tmp_path):
    first, second = audio_file("a.wav"), audio_file("b.wav", seconds=0.5)
    run(second, format="parquet")
    report = run(first, second, format="parquet")
    assert [outcome.source for outcome in report.written] == [str(first)]
    assert list(in_table(tmp_path / "out" / "embeddings.parquet")) == [str(first), str(second)]
    run(second, format="parquet")
    assert len(in_table(tmp_path / "out" / "embeddings.parquet")) == 2


def test_a_file_has_one_row_whatever_it_is_called(run, audio_file, tmp_path):
    one, other = audio_file("one/same.wav"), audio_file("other/same.wav", seconds=0.5)
    run(one, format="parquet")
    run(one, other, audio_file("one/same.flac"), format="parquet")
    table = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out" / "embeddings.parquet")
    assert sorted(table["file"].to_pylist()) == sorted([str(one), str(other), str(tmp_path / "one/same.flac")])


def test_an_interrupted_table_is_resumed(run, audio_file, tmp_path):
    files = [audio_file(f"{i}.wav", seconds=0.5 + 0.1 * i) for i in range(3)]

    def interrupt(outcome):
        if outcome.source == str(files[1]):
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        run(*files, format="parquet", on_outcome=interrupt)
    table = tmp_path / "out" / "embeddings.parquet"
    assert not table.exists()
    assert len(run(*files, format="parquet").skipped) >= 2
    assert list(in_table(table)) == list(map(str, files))
    assert sorted(path.name for path in (tmp_path / "out/.embed-audio/embeddings.parquet").iterdir()) == [
        "journal.jsonl",
        "lock",
    ]


def test_tables_of_the_same_content_are_the_same_bytes(run, audio_file, tmp_path, monkeypatch):
    files = [audio_file(f"{i}.wav", seconds=0.5) for i in range(5)]
    table = tmp_path / "out" / "embeddings.parquet"
    run(*files, format="parquet")
    whole = table.read_bytes()
    table.unlink()
    monkeypatch.setattr(table_output, "PART_ROWS", 2)
    run(*files, format="parquet")
    assert table.read_bytes() == whole


def test_a_table_without_a_journal_is_kept(run, audio_file, tmp_path):
    path = audio_file()
    run(path, format="parquet")
    (tmp_path / "out/.embed-audio/embeddings.parquet/journal.jsonl").unlink()
    with pytest.raises(OptionError, match=r"its journal in .* is missing"):
        run(path, format="parquet")


def test_rows_along_time_say_what_they_hear(run, audio_file, tmp_path):
    run(audio_file(), format="parquet", timestamps=True)
    rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out" / "embeddings.parquet").to_pylist()
    assert [row["time_ms"] for row in rows] == [50.0 * i for i in range(21)]
    np.testing.assert_allclose([rows[0]["start"], rows[0]["end"]], [0.0, 0.08])
    np.testing.assert_allclose([rows[10]["start"], rows[10]["end"]], [0.42, 0.58])
    np.testing.assert_allclose([rows[20]["start"], rows[20]["end"]], [0.92, 1.0])
    assert {row["layer"] for row in rows} == {"features"}


# Numbers and layers

SEPARATE = OutputOptions(separate_layers=True)


def test_half_precision_is_said_in_the_provenance(run, audio_file, tmp_path):
    path = audio_file()
    run(path, dtype="float16")
    assert embedding(tmp_path / "out" / "tone.npz").dtype == np.float16
    with pytest.raises(OptionError, match="dtype float16 -> float32"):
        run(path)


@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_numbers_that_float16_does_not_hold_fail_alone(audio_file, tmp_path, format):
    class Large(Counting):
        def embed_scenes(self, waveforms):
            return torch.full((len(waveforms), 4), 1e5 if waveforms.shape[1] > 20_000 else 1.0)

    found = find_sources([str(audio_file("large.wav")), str(audio_file("small.wav", seconds=0.5))])
    report = extract.extract(Large(), found, tmp_path / "out", OutputOptions(format, "float16"))
    assert [outcome.source for outcome in report.written] == [str(tmp_path / "small.wav")]
    assert "float16 ends at 65504" in report.failed[0].message


@pytest.mark.slow
@pytest.mark.parametrize("timestamps", [False, True])
@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_separate_layers_are_what_runs_of_each_give(audio_file, tmp_path, format, timestamps):
    path = audio_file()
    network = {"variant": "mn01_as", "pretrained": False}
    several = efficientat.load_model(layer="2,5", **network)
    found, options = find_sources([str(path)]), OutputOptions(format)
    separate = OutputOptions(format, separate_layers=True)
    extract.extract(several, found, tmp_path / "separate", separate, timestamps=timestamps)
    for layer in ("2", "5"):
        alone = efficientat.load_model(layer=layer, **network)
        out = tmp_path / "separate" / f"layer={layer}"
        report = extract.extract(alone, found, out, options, timestamps=timestamps)
        assert [outcome.message for outcome in report.skipped] == [""]
        extract.extract(alone, found, tmp_path / layer, options, timestamps=timestamps)
        if format == "npz":
            assert np.array_equal(embedding(out / "tone.npz"), embedding(tmp_path / layer / "tone.npz"))


def test_a_layer_that_is_missing_is_made_and_the_other_left(audio_file, tmp_path):
    path = audio_file()
    model = efficientat.load_model(variant="mn01_as", pretrained=False, layer="2,5")
    extract.extract(model, find_sources([str(path)]), tmp_path, SEPARATE)
    kept, lost = (tmp_path / f"layer={layer}" / "tone.npz" for layer in (2, 5))
    lost.unlink()
    before = kept.stat().st_mtime_ns
    assert len(extract.extract(model, find_sources([str(path)]), tmp_path, SEPARATE).written) == 1
    assert lost.exists()
    assert kept.stat().st_mtime_ns == before


def test_layers_of_others_cannot_be_told_apart(audio_file, tmp_path):
    with pytest.raises(OptionError, match="separate layers need a model of this package"):
        extract.extract(Counting(), find_sources([str(audio_file())]), tmp_path / "out", SEPARATE)


# Parts of the work


@pytest.mark.slow
@pytest.mark.parametrize("format", ["npz", "parquet"])
def test_shards_share_the_work(run, audio_file, tmp_path, format):
    files = [audio_file(f"{i}.wav", seconds=0.3) for i in range(8)]
    missing = tmp_path / "missing.wav"
    reports = [run(*files, missing, format=format, shard=Shard(i, 3)) for i in range(3)]
    written = [outcome.source for report in reports for outcome in report.written]
    assert sorted(written) == list(map(str, files))
    assert sum(len(report.failed) for report in reports) == 1
    assert len(list((tmp_path / "out").glob("failures-*-of-3.jsonl"))) == 1
    if format == "parquet":
        tables = [in_table(path) for path in sorted((tmp_path / "out").glob("embeddings-*-of-3.parquet"))]
        assert sorted(name for table in tables for name in table) == list(map(str, files))
    else:
        assert len(run(*files).skipped) == 8  # one run knows what shards did


def test_more_inputs_do_not_move_others_between_shards():
    names = [f"{i}.npz|" for i in range(1000)]
    counts = [sum(Shard(i, 4).has(name) for name in names) for i in range(4)]
    assert sum(counts) == 1000
    assert min(counts) > 200


@pytest.mark.parametrize("shard", [(3, 3), (-1, 3), (0, 0)])
def test_a_shard_that_is_none_is_refused(shard):
    with pytest.raises(OptionError, match="shards count from 0"):
        Shard(*shard)


def test_the_first_failure_can_end_the_run(run, audio_file, tmp_path):
    bad = tmp_path / "bad.wav"
    bad.write_text("text")
    report = run(bad, tmp_path / "missing.wav", audio_file(), fail_fast=True)
    assert (len(report.failed), len(report.written)) == (1, 0)


# Lists of files


def listed(folder: Path, text: str | bytes, name: str = "list.csv") -> list[Source]:
    (folder / name).write_bytes(text if isinstance(text, bytes) else text.encode())
    return manifest.read_manifest(folder / name)


def test_segments_have_outputs_of_their_own(small_model, audio_file, tmp_path):
    path = audio_file("clips/tone.wav")
    found = listed(
        tmp_path, "start,path,note,end\n,clips/tone.wav,all,\n0.25,clips/tone.wav,,0.5\n0.5,clips/tone.wav,,\n"
    )
    report = extract.extract(small_model, found, tmp_path / "out")
    assert [outcome.output.name for outcome in report.written] == ["tone.npz", "tone.250-500.npz", "tone.500-end.npz"]
    assert [(outcome.start, outcome.end) for outcome in report.written] == [
        (0.0, math.inf),
        (0.25, 0.5),
        (0.5, math.inf),
    ]
    part = reading.read(path, 32_000)[None, 8_000:16_000]
    found = embedding(tmp_path / "out/clips/tone.250-500.npz")
    np.testing.assert_allclose(found, small_model.embed_scenes(part)[0], atol=1e-5)


def test_times_of_segments_are_those_of_the_file(small_model, audio_file, tmp_path):
    audio_file()
    found = listed(tmp_path, "path,start,end\ntone.wav,0.5,0.7\n")
    extract.extract(small_model, found, tmp_path / "out", OutputOptions("parquet"), timestamps=True)
    extract.extract(small_model, found, tmp_path / "out", timestamps=True)
    rows = pytest.importorskip("pyarrow.parquet").read_table(tmp_path / "out" / "embeddings.parquet").to_pylist()
    with np.load(tmp_path / "out/tone.500-700.npz") as archive:
        assert archive["timestamps"].tolist() == [row["time_ms"] for row in rows] == [500, 550, 600, 650, 700]
    assert (rows[0]["start"], rows[-1]["end"]) == (0.5, 0.7)


def test_a_list_is_read_from_any_of_its_formats(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    parquet = pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"path": ["a.wav", "sub/b.wav"], "start": [None, 1.0], "labels": ["x", "y"]})
    parquet.write_table(table, tmp_path / "list.parquet")
    from_table = manifest.read_manifest(tmp_path / "list.parquet")
    assert [(str(each.name), each.start, each.end) for each in from_table] == [
        ("a.wav", 0.0, math.inf),
        ("sub/b.wav", 1.0, math.inf),
    ]
    assert paths(listed(tmp_path, b"a.wav\r\n\n-b\xff.wav\na.wav\n", "list.txt")) == [
        str(tmp_path / "a.wav"),
        str(tmp_path / "-b\udcff.wav"),
        str(tmp_path / "a.wav"),
    ]
    assert paths(listed(tmp_path, 'path\n"new\nline, comma.wav"\n/x/../y.wav\n')) == [
        str(tmp_path / "new\nline, comma.wav"),
        "/x/../y.wav",
    ]


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the file is empty; its first row names the columns path, and may name start and end"),
        (
            "file,start\na.wav,1\n",
            r"must name the columns path.*found 'file', 'start'.*--columns 'path=file', with start",
        ),
        ("path,start,start\n", "'start' is there twice; found"),
        ("path\n", "names no files"),
        ("path,start\na.wav,1\nb.wav,soon\n", r"list\.csv, line 3: 'soon' is not a time"),
        ("path,start\na.wav,-1\n", "line 2: '-1' is not a time"),
        ("path,end\na.wav,inf\n", "line 2: 'inf' is not a time"),
        ("path,start,end\na.wav,2,1\n", "line 2: the end, 1 s, is not after the start, 2 s"),
        ("path,start\n,1\n", "line 2: '' is not the path of a file"),
        ("path,start\na.wav\n", "line 2: 1 cells, the header has 2"),
        ('path\n"a.wav\n', "not a table"),
    ],
)
def test_a_wrong_list_says_where(tmp_path, text, message):
    with pytest.raises(OptionError, match=message):
        listed(tmp_path, text)


def test_a_damaged_table_is_no_list(tmp_path):
    pytest.importorskip("pyarrow")
    with pytest.raises(OptionError, match="not a Parquet table"):
        listed(tmp_path, "text", "list.parquet")


def test_a_name_with_a_zero_byte_fails_alone(tree):
    bad, good = find_sources(["a\0.wav", "b.wav"])
    assert "zero byte" in str(bad.error)
    assert good.error is None


def test_a_name_that_is_too_long_is_no_folder(tree):
    assert len(find_sources(["x" * 5_000, "b.wav"])) == 2


class KilledError(BaseException):
    """Stands for the end of the process."""


@pytest.mark.slow
def test_a_table_survives_an_end_at_any_step_of_its_joining(run, audio_file, tmp_path, monkeypatch):
    files = [audio_file(f"{i}.wav", seconds=0.3) for i in range(4)]
    monkeypatch.setattr(table_output, "PART_ROWS", 1)
    run(*files[:2], format="parquet")
    table = tmp_path / "out" / "embeddings.parquet"
    n_ends = 0
    while True:
        n_steps = 0

        def step(function, *arguments, last=n_ends, **options):
            nonlocal n_steps
            n_steps += 1
            if n_steps > last:
                raise KilledError
            return function(*arguments, **options)

        with monkeypatch.context() as patch:
            for name in ("replace", "unlink"):
                function = getattr(Path, name)
                patch.setattr(Path, name, lambda *a, function=function, **k: step(function, *a, **k))
            try:
                run(*files, format="parquet")
                break
            except KilledError:
                n_ends += 1
        assert set(in_table(table)) >= set(map(str, files[:2]))
    assert n_ends >= 5
    assert list(in_table(table)) == list(map(str, files))
    monkeypatch.undo()
    assert len(run(*files, format="parquet").skipped) == 4
