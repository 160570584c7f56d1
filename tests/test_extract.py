"""Which files are found and how outputs are named; many files, one of them bad; long ones; runs taken up again."""

import os
from pathlib import Path, PurePath

import numpy as np
import pytest
import torch

from hear_transformers import audio, efficientat, extract, pipeline, sources
from hear_transformers.errors import OptionError
from hear_transformers.labels import top_tags
from hear_transformers.sources import Source, find, name_outputs


def paths(found: list[Source]) -> list[str]:
    return [str(source.path) for source in found]


@pytest.fixture
def tree(tmp_path, monkeypatch):
    """Make empty files: what is found does not depend on what is in them."""
    monkeypatch.chdir(tmp_path)
    for name in ("b.wav", "a.FLAC", "notes.txt", "sub/c.ogg", "sub/deep/d.mp3", ".hidden.wav", ".git/e.wav"):
        Path(name).parent.mkdir(parents=True, exist_ok=True)
        Path(name).touch()
    return tmp_path


def test_a_folder_stands_for_its_audio_sorted(tree):
    found = find(["."])
    assert paths(found) == ["a.FLAC", "b.wav", "sub/c.ogg", "sub/deep/d.mp3"]
    assert [str(source.name) for source in found] == paths(found)


def test_links_to_folders_are_followed_once(tree):
    os.symlink(tree, "sub/loop")
    os.symlink(tree / "sub" / "deep", "sub/again")
    assert len(find(["."])) == 4


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
    assert paths(find([pattern])) == expected


def test_a_file_whose_name_looks_like_a_pattern_is_a_file(tree):
    Path("[ab].wav").touch()
    assert paths(find(["[ab].wav"])) == ["[ab].wav"]


def test_a_named_file_may_have_any_suffix(tree):
    assert paths(find(["notes.txt"])) == ["notes.txt"]


def test_a_list_stands_for_its_lines(tree):
    assert paths(find(["-"], ["b.wav\n", "\n", "sub/deep\r\n"])) == ["b.wav", "sub/deep/d.mp3"]


def test_each_file_is_taken_once(tree):
    assert paths(find(["b.wav", "./b.wav", ".", "*.wav"]))[0] == "b.wav"
    assert len(find(["b.wav", "./b.wav", ".", "*.wav"])) == 4


@pytest.mark.parametrize(
    ("entry", "message"),
    [(".git/empty", "no audio in this folder"), ("*.aiff", "no file matches"), (".git/empty", r"\.wav")],
)
def test_what_is_not_there_is_an_error_in_the_list(tree, entry, message):
    Path(".git/empty").mkdir()
    bad, good = find([entry, "b.wav"])
    with pytest.raises(sources.AudioError, match=message):
        raise bad.error
    assert good.error is None


@pytest.mark.parametrize(
    ("inputs", "outputs"),
    [
        (["b.wav"], ["b.npz"]),
        (["sub"], ["c.npz", "deep/d.npz"]),
        (["sub/**/*.mp3"], ["deep/d.npz"]),
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
    assert name_outputs(find(inputs), ".npz") == [PurePath(output) for output in outputs]


# Embedding


@pytest.fixture
def run(small_model, tmp_path):
    """Embed files of the test's folder into `out` below it, and give the report."""

    def run(*inputs: Path, **options):
        return extract.extract(small_model, find(map(str, inputs)), tmp_path / "out", **options)

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
    waveforms = audio.read(path, 32_000)[None]
    expected = small_model.embed_timestamps(waveforms)[0] if timestamps else small_model.embed_scenes(waveforms)
    np.testing.assert_allclose(embedding(tmp_path / "out" / "tone.npz"), expected[0], atol=1e-6)
    assert outcome == extract.Outcome(str(path), "written", tmp_path / "out" / "tone.npz", expected[0].shape, 1.0)


def test_the_company_of_other_files_changes_nothing(run, audio_file, tmp_path):
    lengths = [1.0, 0.5, 1.0, 0.01, 2.0, 1.0]
    clips = [audio_file(f"{i}.wav", seconds=seconds) for i, seconds in enumerate(lengths)]
    run(*clips)
    together = [embedding(tmp_path / "out" / f"{i}.npz") for i in range(len(clips))]
    for clip, expected in zip(clips, together, strict=True):
        run(clip, overwrite=True)
        np.testing.assert_allclose(embedding(tmp_path / "out" / f"{clip.stem}.npz"), expected, atol=1e-5)


@pytest.mark.parametrize("timestamps", [False, True])
def test_a_long_file_is_streamed_to_the_same_embedding(run, audio_file, tmp_path, monkeypatch, timestamps):
    path = audio_file(seconds=13.3, sample_rate=44_100)
    run(path, timestamps=timestamps)
    whole = embedding(tmp_path / "out" / "tone.npz")
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 3.0)
    monkeypatch.setattr(audio.blocks, "__defaults__", (1.0,))
    run(path, timestamps=timestamps, overwrite=True)
    np.testing.assert_allclose(embedding(tmp_path / "out" / "tone.npz"), whole, atol=1e-5)
    assert [str(path) for path in files_below(tmp_path / "out")] == [".embed-audio/journal.jsonl", "tone.npz"]


class Counting:
    """Gives zeros and remembers how many clips came at once."""

    sample_rate = 32_000
    batch_size = None

    def __init__(self) -> None:
        self.batches: list[int] = []

    def embed_scenes(self, waveforms: torch.Tensor) -> torch.Tensor:
        self.batches.append(len(waveforms))
        return torch.zeros(len(waveforms), 4)

    def stream_scene(self, blocks):
        return self.embed_scenes(torch.cat(list(blocks), 1))

    def provenance(self):
        return {"family": "counting"}


def test_clips_of_equal_length_are_embedded_together(audio_file, tmp_path):
    model = Counting()
    files = [audio_file(f"{i}.wav", seconds=[0.5, 1.0][i % 2]) for i in range(6)]
    extract.extract(model, find(map(str, files)), tmp_path)
    assert model.batches == [3, 3]


def test_the_batch_size_is_kept(audio_file, tmp_path):
    model = Counting()
    model.batch_size = 2
    extract.extract(model, find([str(audio_file(f"{i}.wav")) for i in range(5)]), tmp_path)
    assert model.batches == [2, 2, 1]


def test_waiting_clips_are_bounded(audio_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "PENDING_SECONDS", 2.5)
    model = Counting()
    lengths = [1.0, 1.0, 0.6, 0.7, 0.8]
    files = [audio_file(f"{i}.wav", seconds=seconds) for i, seconds in enumerate(lengths)]
    extract.extract(model, find(map(str, files)), tmp_path)
    assert model.batches == [2, 1, 1, 1]


def test_a_clip_that_breaks_the_model_does_not_take_others_along(audio_file, tmp_path):
    class Fragile(Counting):
        def embed_scenes(self, waveforms):
            if (waveforms == 0).all(1).any():
                raise ZeroDivisionError("silence")
            return super().embed_scenes(waveforms)

    good, bad = audio_file("good.wav"), audio_file("bad.wav", np.zeros(32_000))
    report = extract.extract(Fragile(), find([str(good), str(bad)]), tmp_path / "out")
    assert [outcome.source for outcome in report.written] == [str(good)]
    assert [outcome.message for outcome in report.failed] == [f"{bad}: ZeroDivisionError: silence"]


def test_embeddings_that_are_not_finite_are_not_written(audio_file, tmp_path):
    class Broken(Counting):
        def embed_scenes(self, waveforms):
            return torch.full((len(waveforms), 4), torch.nan)

    report = extract.extract(Broken(), find([str(audio_file())]), tmp_path / "out")
    assert "NaN" in report.failed[0].message
    assert files_below(tmp_path / "out") == [Path("failures.jsonl")]


def test_outcomes_are_told_as_they_come(run, audio_file, tmp_path):
    told = []
    report = run(tmp_path / "missing.wav", audio_file(), on_outcome=told.append)
    assert told == [*report.failed, *report.written]


# Labels


@pytest.fixture(scope="module")
def tagger():
    """Give the smallest network, read at its logits."""
    return efficientat.load_model(variant="mn01_as", pretrained=False, layer="logits")


@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_labels_are_those_of_the_embedding(tagger, audio_file, tmp_path, format):
    path = audio_file()
    report = extract.extract(tagger, find([str(path)]), tmp_path / "out", format, n_labels=4)
    expected = top_tags(tagger.embed_scenes(audio.read(path, 32_000)[None])[0], 4)
    assert [tag.label for tag in report.written[0].tags] == [tag.label for tag in expected]


def test_a_long_file_gets_labels(tagger, audio_file, tmp_path, monkeypatch):
    monkeypatch.setattr(pipeline, "LONG_SECONDS", 0.5)
    report = extract.extract(tagger, find([str(audio_file())]), tmp_path / "out", n_labels=4)
    assert len(report.written[0].tags) == 4


@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_files_whose_outputs_are_there_get_labels_too(tagger, audio_file, tmp_path, format):
    found = find([str(audio_file())])
    (written,) = extract.extract(tagger, found, tmp_path / "out", format, n_labels=4).written
    before = written.output.read_bytes()
    (skipped,) = extract.extract(tagger, found, tmp_path / "out", format, n_labels=4).skipped
    assert skipped == extract.Outcome(written.source, "skipped", written.output, tags=written.tags)
    assert written.output.read_bytes() == before


def test_outputs_of_other_settings_are_doubted_beside_labels(run, tagger, audio_file, tmp_path):
    path = audio_file()
    run(path)
    (outcome,) = extract.extract(tagger, find([str(path)]), tmp_path / "out", n_labels=4).skipped
    assert "made with other settings (scene" in outcome.message
    assert len(outcome.tags) == 4


def test_without_labels_there_are_no_tags(run, audio_file):
    assert run(audio_file()).written[0].tags is None


@pytest.mark.parametrize("options", [{}, {"timestamps": True}])
def test_labels_of_what_is_no_logits_are_refused_at_once(run, audio_file, tmp_path, options):
    with pytest.raises(OptionError, match="labels"):
        run(audio_file(), n_labels=4, **options)
    assert not (tmp_path / "out").exists()


# Runs taken up again


def test_outputs_that_are_there_are_kept(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    before = (tmp_path / "out" / "tone.npz").stat().st_mtime_ns
    (outcome,) = run(path).skipped
    assert outcome == extract.Outcome(str(path), "skipped", tmp_path / "out" / "tone.npz")
    assert (tmp_path / "out" / "tone.npz").stat().st_mtime_ns == before


def test_overwrite_makes_them_anew(run, audio_file, tmp_path):
    path = audio_file()
    run(path)
    run(path, overwrite=True, timestamps=True)
    assert embedding(tmp_path / "out" / "tone.npz").ndim == 2


@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_outputs_of_other_settings_are_doubted(run, audio_file, format):
    path = audio_file()
    run(path, format=format)
    (outcome,) = run(path, format=format, timestamps=True).skipped
    assert "made with other settings (embedding, " in outcome.message


def test_outputs_of_something_else_are_doubted(run, audio_file, tmp_path):
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "tone.npz").write_text("mine")
    (outcome,) = run(audio_file()).skipped
    assert "does not say what made it" in outcome.message
    assert (tmp_path / "out" / "tone.npz").read_text() == "mine"


def test_one_file_for_several_inputs_is_refused(small_model, audio_file, tmp_path):
    found = find([str(audio_file("a.wav")), str(audio_file("b.wav"))])
    with pytest.raises(OptionError, match=r"one file for 2 inputs"):
        extract.extract(small_model, found, tmp_path / "x.npz")


def test_a_file_in_place_of_the_folder_is_refused(small_model, audio_file, tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(OptionError, match="file is a file; outputs need a folder"):
        extract.extract(small_model, find([str(audio_file())]), tmp_path / "file", "parquet")


def test_an_output_that_cannot_be_written_fails_alone(small_model, audio_file, tmp_path):
    (tmp_path / "out" / "a.npz").mkdir(parents=True)
    found = find([str(audio_file("a.wav")), str(audio_file("b.wav"))])
    report = extract.extract(small_model, found, tmp_path / "out", overwrite=True)
    assert [outcome.source for outcome in report.written] == [str(tmp_path / "b.wav")]
    assert "IsADirectoryError" in report.failed[0].message
