"""What a run says of its validation set: every clip, every class, and what is taken for what."""

import csv
import math
import warnings
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.training import curves, manifest, results


def clips_of(folder: Path, labels: list[str], spans: str = ",") -> manifest.Manifest:
    for i in range(len(labels)):
        (folder / f"{i}.wav").touch()
    lines = [f'{i}.wav,"{label}",{spans}' for i, label in enumerate(labels)]
    (folder / "valid.csv").write_text("\n".join(["path,labels,start,end", *lines]), encoding="utf-8")
    return manifest.read_labelled(folder / "valid.csv")


def table(path: Path) -> list[dict[str, str]]:
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def test_single_labels_have_scores_predictions_and_a_confusion_matrix(tmp_path) -> None:
    clips = clips_of(tmp_path, ["cat", "cat", "dog", "owl, barn"], "1.5,2")
    logits = np.log(np.float32([[0.7, 0.2, 0.1], [0.3, 0.6, 0.1], [0.2, 0.7, 0.1]]))
    rows = np.array([0, 1, 2])  # the owl could not be read
    results.write_results(tmp_path, clips, rows, clips.targets(rows), logits, multi_label=False)
    predictions = table(tmp_path / "predictions.csv")
    assert [Path(row["path"]).name for row in predictions] == ["0.wav", "1.wav", "2.wav"]
    assert [row["predicted"] for row in predictions] == ["cat", "dog", "dog"]
    assert predictions[1] | {"path": ""} == {
        "path": "",
        "start": "1.5",
        "end": "2",
        "labels": "cat",
        "predicted": "dog",
        "cat": "0.3",
        "dog": "0.6",
        "owl, barn": "0.1",
    }
    cat, dog, owl = table(tmp_path / "scores.csv")
    assert (cat["class"], cat["clips"], cat["precision"], cat["recall"], cat["f1"]) == (
        "cat",
        "2",
        "1.0000",
        "0.5000",
        "0.6667",
    )
    assert (dog["precision"], dog["recall"]) == ("0.5000", "1.0000")
    assert (owl["class"], owl["clips"], owl["average_precision"], owl["recall"]) == ("owl, barn", "0", "", "")
    assert [list(row.values()) for row in table(tmp_path / "confusion.csv")] == [
        ["cat", "1", "1", "0"],
        ["dog", "0", "1", "0"],
        ["owl, barn", "0", "0", "0"],
    ]
    assert (tmp_path / "confusion.png").read_bytes()[:4] == b"\x89PNG"


def test_several_labels_have_average_precision_and_independent_probabilities(tmp_path) -> None:
    clips = clips_of(tmp_path, ["a;b", "", "b"])
    logits = np.float32([[2, 900], [0, -900], [1, -2]])
    rows = np.arange(3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.write_results(tmp_path, clips, rows, clips.targets(rows), logits, multi_label=True)
    first, second, _ = table(tmp_path / "predictions.csv")
    assert (first["labels"], first["b"], first["a"]) == ("a;b", "1", "0.8808")
    assert (second["labels"], second["a"], second["b"], second["end"]) == ("", "0.5", "0", "")
    assert [(row["class"], row["average_precision"]) for row in table(tmp_path / "scores.csv")] == [
        ("a", "1.0000"),
        ("b", "1.0000"),
    ]
    assert not [*tmp_path.glob("confusion*")]


@pytest.mark.parametrize("classes", [["$x^$", "_hidden", "\\frac", "鳥"], [f"class {i}" for i in range(150)]])
def test_any_names_and_any_number_of_classes_can_be_drawn(tmp_path, classes) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        results.draw_confusion(tmp_path / "a.png", classes, np.eye(len(classes), dtype=np.int64))
    assert (tmp_path / "a.png").stat().st_size > 1_000


@pytest.mark.parametrize("title", ["", "ast/tiny from $HOME/鳥.pt; 3 classes", 9 * "a/long/path "])
def test_curves_are_drawn_with_any_title_and_with_any_scores(tmp_path, title) -> None:
    drawn = curves.Curves(tmp_path, 0)
    drawn.plot(title)  # of nothing yet
    for step in range(1, 5):
        drawn.steps.add(step, {"epoch": step / 2, "learning_rate": 0.1, "loss": 1 / step})
    drawn.epochs.add(4, {"epoch": 2, "mAP": math.nan, "valid_loss": 0.5})
    drawn.plot(title, "training, mixup of waveforms")
    assert (tmp_path / "curves.png").read_bytes()[:4] == b"\x89PNG"
