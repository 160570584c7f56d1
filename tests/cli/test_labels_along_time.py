"""Classes of a network along time: tables of where they are heard, and pictures over the spectrogram."""

import csv
import json

import numpy as np
import pytest

from hear_transformers.labels import audioset_labels

ALONG_TIME = ["--labels", "--timestamps"]


@pytest.fixture
def rows(tmp_path):
    def read(name="labels.csv", delimiter=","):
        with (tmp_path / name).open(newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file, delimiter=delimiter))

    return read


def test_every_class_is_heard_from_beginning_to_end_at_threshold_0(embed_audio, audio_file, rows):
    result = embed_audio(audio_file(seconds=1.2), *ALONG_TIME, "--threshold=0")
    assert result.exit_code == 0, result.output
    assert {row["label"] for row in rows()} == set(audioset_labels())
    assert {(row["start"], row["end"]) for row in rows()} == {("0", "1.2")}


def test_scores_are_the_probabilities_of_logits_along_time(embed_audio, audio_file, rows, tmp_path):
    embed_audio(audio_file(seconds=1.2), *ALONG_TIME, "--threshold=0")
    embed_audio("tone.wav", "--layer=logits", "--window-ms=2000", "--hop-ms=500", "--out=logits.npz")
    with np.load(tmp_path / "logits.npz") as archive:
        expected = (1 / (1 + np.exp(-archive["embedding"].astype(float)))).mean(0)
    by_name = dict(zip(audioset_labels(), expected, strict=True))
    np.testing.assert_allclose(
        [float(row["score"]) for row in rows()], [by_name[row["label"]] for row in rows()], atol=2e-6
    )


def test_tags_of_segments_begin_and_end_with_them(embed_audio, audio_file, rows):
    embed_audio(audio_file(seconds=1.2), "--labels", "--segment=0.5", "--threshold=0", "--json")
    assert {(row["start"], row["end"]) for row in rows()} == {("0", "1.2")}


def test_the_screen_has_the_likeliest_classes_and_when(embed_audio, audio_file):
    audio_file(seconds=1.2)
    name, *tags, last = embed_audio("tone.wav", *ALONG_TIME, "--threshold=0", "--top-k=3").stdout.splitlines()
    assert (name, len(tags), last) == ("tone.wav", 3, "1 classified, 0 failed: labels.csv")
    assert tags[0].startswith("     0.00 -    1.20 s  0.")


def test_silence_about_a_file_says_what_is_likeliest(embed_audio, audio_file, rows):
    result = embed_audio(audio_file(), *ALONG_TIME, "--threshold=1")
    assert "  nothing above the threshold; likeliest at 0.50 s: 0." in result.stdout
    assert rows() == []


def test_raven_gets_a_selection_table_for_each_file(embed_audio, audio_file, rows):
    audio_file()
    result = embed_audio("tone.wav", *ALONG_TIME, "--threshold=0", "--format=raven", "--out=found/", "--json")
    found = rows("found/tone.Table.1.selections.txt", "\t")
    assert {row["Species"] for row in found} == set(audioset_labels())
    assert json.loads(result.stdout)["events"][0]["start"] == 0.0


def test_a_picture_is_drawn_once_and_again_when_it_is_gone(embed_audio, audio_file, tmp_path):
    pytest.importorskip("matplotlib")
    audio_file(seconds=1.2)
    command = ["tone.wav", *ALONG_TIME, "--plot", "--out=found"]
    first = embed_audio(*command).stdout.splitlines()
    picture = tmp_path / "found" / "tone.labels.png"
    assert first[-1] == "found/tone.labels.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
    assert "1 of them in an earlier run" in embed_audio(*command).stdout
    picture.unlink()
    embed_audio(*command)
    assert picture.exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--plot"], "--plot is of classes along time; give --labels --timestamps, or a --probe of events"),
        (["--labels", "--plot"], "--plot is of classes along time"),
        (["--timestamps", "--threshold=0.1"], "--threshold is of classes along time"),
        (["--labels", "--out=a.csv"], "a table of labels is along time: give --timestamps too, or --segment 10"),
        (["--labels", "--format=raven"], "a table of labels is along time"),
        ([*ALONG_TIME, "--out=a.npz"], "with labels along time the output ends in .csv or .txt, or is a folder"),
        ([*ALONG_TIME, "--format=npz"], "with labels along time the output is csv, raven, audacity"),
        ([*ALONG_TIME, "--dtype=float16"], "--dtype: labels along time are no embeddings"),
        ([*ALONG_TIME, "--shard=0/2"], "--shard: does not go with --labels along time"),
        ([*ALONG_TIME, "--layer=8"], "layer 8 was asked for"),
        ([*ALONG_TIME, "--window-ms=500,1000"], "labels along time are those of one window"),
    ],
)
def test_what_does_not_go_together_is_said(embed_audio, audio_file, arguments, message):
    result = embed_audio(audio_file(), *arguments)
    assert result.exit_code == 2
    assert message in " ".join(result.stderr.split())
