"""Manifests of labelled clips: what is read, and what is refused before training begins."""

import numpy as np
import pytest

from hear_transformers.errors import OptionError, TrainingError
from hear_transformers.training import manifest


@pytest.fixture
def write(tmp_path):
    """Write a CSV and (empty) audio files for its rows: audio itself is not opened."""

    def write(*lines, name="train.csv", audio="a b c d", encoding="utf-8"):
        for letter in audio.split():
            (tmp_path / f"{letter}.wav").touch()
        path = tmp_path / name
        path.write_text("".join(f"{line}\n" for line in lines), encoding=encoding)
        return path

    return write


def test_paths_lie_beside_the_csv_and_targets_follow_the_sorted_labels(write, tmp_path):
    clips = manifest.read_labelled(write("path,labels", "b.wav,dog", f"{tmp_path / 'a.wav'},cat;dog"))
    assert [clips.path(0), clips.path(1)] == [tmp_path / "b.wav", tmp_path / "a.wav"]
    assert clips.classes == ("cat", "dog")
    np.testing.assert_array_equal(clips.targets([1, 0]), np.float32([[1, 1], [0, 1]]))
    assert clips.counts().tolist() == [1, 2]


def test_a_manifest_named_without_a_folder_is_of_this_folder(write, tmp_path, monkeypatch):
    write("path,labels", "a.wav,dog")
    monkeypatch.chdir(tmp_path)
    assert str(manifest.read_labelled("train.csv").path(0)) == "a.wav"


def test_columns_come_in_any_order_and_times_may_be_empty(write):
    clips = manifest.read_labelled(write("end,labels,path,start", "2.5,x,a.wav,1", ",y,b.wav,", "3,x,c.wav,"))
    assert [clips.span(i) for i in range(3)] == [(1.0, 2.5), (0.0, np.inf), (0.0, 3.0)]


def test_names_with_commas_are_quoted_and_spaces_and_repetitions_do_not_matter(write):
    clips = manifest.read_labelled(write("path, labels", 'a.wav, "Male speech, man; Dog;;Dog "', "b.wav,Dog"))
    assert clips.classes == ("Dog", "Male speech, man")
    assert clips.targets([0, 1]).tolist() == [[1, 1], [1, 0]]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig"])
def test_utf8_is_read_with_and_without_a_byte_order_mark(write, encoding):
    assert manifest.read_labelled(write("path,labels", "a.wav,gehört", encoding=encoding)).classes == ("gehört",)


def test_empty_lines_are_counted_and_are_no_clips(write):
    assert manifest.read_labelled(write("path,labels", "", "a.wav,x", "", "b.wav,y", "")).lines.tolist() == [3, 5]


def test_given_classes_keep_their_order(write):
    clips = manifest.read_labelled(write("path,labels", "a.wav,x", "b.wav,y"), classes=["y", "z", "x"])
    assert clips.targets([0]).tolist() == [[0, 0, 1]]


@pytest.mark.parametrize(("labels", "expected"), [("x", False), ("x;x", False), ("x;y", True), ("", True)])
def test_several_labels_or_none_make_a_manifest_multi_label(write, labels, expected):
    assert manifest.read_labelled(write("path,labels", "b.wav,y", f"a.wav,{labels}")).is_multi_label is expected


def test_a_clip_may_be_repeated_to_count_more(write):
    assert len(manifest.read_labelled(write("path,labels", "a.wav,x;y", "a.wav,y;x"))) == 2


def test_parts_of_one_file_are_different_clips(write):
    assert len(manifest.read_labelled(write("path,labels,start,end", "a.wav,x,0,1", "a.wav,y,1,2", "a.wav,y,,"))) == 3


def test_many_files_of_one_folder_are_found(write, tmp_path):
    names = [f"{i:03d}" for i in range(100)]
    lines = ["path,labels", *(f"{name}.wav,x" for name in names)]
    assert len(manifest.read_labelled(write(*lines, audio=" ".join(names)))) == 100
    (tmp_path / "070.wav").unlink()
    with pytest.raises(TrainingError, match=r"1 row with an audio file that is missing .*: line 72 \(.*070\.wav\)"):
        manifest.read_labelled(tmp_path / "train.csv")


HEADER = "path,labels,start,end"


@pytest.mark.parametrize(
    ("lines", "message"),
    [
        ([], "the file is empty; its first row names the columns path and labels"),
        (["a.wav,dog"], r"the first row must name the columns path and labels.*found 'a\.wav', 'dog'"),
        (["path,label", "a.wav,dog"], r"say what they hold: --columns 'path=path,labels=label'$"),
        (["path,labels,strat,end", "a.wav,dog,1,2"], "'strat' looks like a time and would not be read"),
        (["path,labels,path"], "'path' is there twice; found 'path', 'labels', 'path'"),
        (["path"], "found 'path'"),
        (["path,labels"], "no rows below the header"),
        (["path,labels", "a.wav,"], "no row has a label"),
        (["path,labels", "a.wav,x", ",x", " ,y"], r"2 rows without a path: line 3, line 4$"),
        (["path,labels", *[",x"] * 9], r"9 rows without a path: line 2, line 3, line 4 and 6 more$"),
        (["path,labels", "a.wav,Male speech, man"], r"1 row with more or fewer cells than the header.*line 2 \(3\)"),
        (["path,labels", "a.wav"], r"1 row with more or fewer cells"),
        (["path,labels", 'a.wav,"x', "b.wav,y"], "not a table"),
        (
            [HEADER, "a.wav,x,one,2"],
            r"1 row with a start or end that is not a number of seconds.*line 2 \('one', '2'\)",
        ),
        ([HEADER, "a.wav,x,-1,2"], "1 row with a start or end that is not a number of seconds, 0 or more"),
        ([HEADER, "a.wav,x,0,nan"], "1 row with a start or end that is not a number of seconds, 0 or more"),
        ([HEADER, "a.wav,x,0,inf"], "1 row with a start or end that is not a number of seconds, 0 or more"),
        ([HEADER, "a.wav,x,2,2"], r"1 row with an end that is not after the start: line 2 \(2 to 2\)"),
        ([HEADER, "a.wav,x,,0"], "1 row with an end that is not after the start"),
        (["path,labels", "a.wav,x", "z.wav,x"], r"1 row with an audio file that is missing.*line 3 \(.*z\.wav\)"),
        (["path,labels", ".,x"], "1 row with an audio file that is missing"),
        (
            ["path,labels", "a.wav,x", "a.wav,y"],
            r"1 row with the clip of another row and other labels.*line 3 \(as line 2\)",
        ),
    ],
)
def test_a_bad_manifest_is_refused(write, lines, message):
    path = write(*lines)
    with pytest.raises(TrainingError, match=message) as refusal:
        manifest.read_labelled(path)
    assert str(path) in str(refusal.value)


def test_all_kinds_of_bad_rows_are_named_at_once(write):
    with pytest.raises(TrainingError) as refusal:
        manifest.read_labelled(write(HEADER, ",x,,", "a.wav,x,3,1"))
    assert len(str(refusal.value).splitlines()) == 2


def test_a_manifest_that_is_missing_is_refused(tmp_path):
    with pytest.raises(TrainingError, match="cannot be read \\(No such file"):
        manifest.read_labelled(tmp_path / "none.csv")


def test_a_manifest_that_is_not_utf8_is_refused(write):
    with pytest.raises(TrainingError, match="not text in UTF-8"):
        manifest.read_labelled(write("path,labels", "a.wav,gehört", encoding="latin-1"))


@pytest.mark.parametrize(("classes", "message"), [([], "is empty"), (["x", "y", "x"], "names 'x' twice")])
def test_a_bad_list_of_classes_is_refused(write, classes, message):
    with pytest.raises(OptionError, match=message):
        manifest.read_labelled(write("path,labels", "a.wav,x"), classes)


def test_a_label_that_is_no_class_is_refused(write):
    with pytest.raises(
        TrainingError, match=r"train\.csv: 1 row with a label that is none of the 1 classes.*line 3 \('y'"
    ):
        manifest.read_labelled(write("path,labels", "a.wav,x", "b.wav,x;y"), ["x"])


TRAIN = ("path,labels", "a.wav,x", "b.wav,y")


def test_a_pair_has_the_classes_of_training_and_validation_may_lack_some(write):
    train, valid = manifest.read_pair(write(*TRAIN), write("path,labels", "c.wav,y", name="valid.csv"))
    assert train.classes == valid.classes == ("x", "y")
    assert valid.counts().tolist() == [0, 1]


def test_a_label_that_only_validation_has_is_refused(write):
    with pytest.raises(TrainingError, match=r"valid\.csv: 1 row with a label .*line 2 \('z'\)"):
        manifest.read_pair(write(*TRAIN), write("path,labels", "c.wav,z", name="valid.csv"))


def test_a_class_without_a_training_clip_is_refused(write):
    valid = write("path,labels", "c.wav,x", name="valid.csv")
    with pytest.raises(TrainingError, match=r"train\.csv: 1 of 3 classes have no clip \('z'\)"):
        manifest.read_pair(write(*TRAIN), valid, ["x", "y", "z"])


def test_a_single_class_that_every_clip_has_is_refused(write):
    with pytest.raises(TrainingError, match="nothing to learn"):
        manifest.read_pair(write("path,labels", "a.wav,x"), write("path,labels", "c.wav,x", name="valid.csv"))


def test_a_file_in_both_manifests_is_refused(write):
    valid = write("path,labels", "c.wav,x", "b.wav,x", name="valid.csv")
    with pytest.raises(
        TrainingError, match=r"train\.csv: 1 row with audio that is in .*valid\.csv too .*line 3 \(.*line 3 there\)"
    ):
        manifest.read_pair(write(*TRAIN), valid)


@pytest.mark.parametrize(
    ("link", "target", "path"), [("again.wav", "a.wav", "again.wav"), ("again", ".", "again/a.wav")]
)
def test_a_file_in_both_manifests_is_found_behind_links(write, tmp_path, link, target, path):
    train, valid = write(*TRAIN), write("path,labels", f"{path},x", name="valid.csv")
    (tmp_path / link).symlink_to(tmp_path / target)
    with pytest.raises(TrainingError, match=r"too .*line 2 there"):
        manifest.read_pair(train, valid)


@pytest.mark.parametrize(
    ("train_span", "valid_span", "overlaps"),
    [
        ("0,5", "5,9", False),
        ("5,", ",5", False),
        ("0,5", "4.9,9", True),
        (",", "8,9", True),
        ("3,", "8,", True),
    ],
)
def test_only_overlapping_parts_of_a_file_are_refused(write, train_span, valid_span, overlaps):
    train = write(HEADER, f"a.wav,x,{train_span}", "b.wav,y,,")
    valid = write(HEADER, f"a.wav,x,{valid_span}", name="valid.csv")
    if overlaps:
        with pytest.raises(TrainingError, match="1 row with audio that is in"):
            manifest.read_pair(train, valid)
    else:
        assert len(manifest.read_pair(train, valid)) == 2


# One table, or one folder, for both


def table_of(folder, rows, header="path,labels"):
    for row in rows:
        (folder / row.partition(",")[0]).touch()
    path = folder / "all.csv"
    path.write_text("\n".join([header, *rows, ""]))
    return path


def files(clips):
    return {clips.path(i).name for i in range(len(clips))}


@pytest.mark.parametrize("seed", range(3))
def test_a_fraction_of_each_class_is_for_validation(tmp_path, seed):
    path = table_of(tmp_path, [f"{label}{i}.wav,{label}" for label, n in (("a", 20), ("b", 40)) for i in range(n)])
    train, valid = manifest.read_pair(path, "0.1", seed=seed)
    assert (train.counts().tolist(), valid.counts().tolist()) == ([18, 36], [2, 4])
    assert not files(train) & files(valid)
    assert files(valid) == files(manifest.read_pair(path, "0.1", seed=seed)[1])
    assert files(valid) != files(manifest.read_pair(path, "0.1", seed=seed + 1)[1])


def test_parts_of_a_file_stay_together_and_each_class_keeps_a_file_to_train_on(tmp_path):
    rows = [f"{i}.wav,{label},{second},{second + 1}" for i, label in enumerate("aaaabbbbc") for second in range(5)]
    path = table_of(tmp_path, rows, "path,labels,start,end")
    (tmp_path / "link.wav").symlink_to(tmp_path / "0.wav")
    path.write_text(path.read_text() + "link.wav,a,7,8\n")
    for seed in range(5):
        train, valid = manifest.read_pair(path, "0.5", seed=seed)
        assert not {path.name for path in map(train.path, range(len(train)))} & files(valid)
        assert ("link.wav" in files(valid)) == ("0.wav" in files(valid))
        assert train.counts().min() >= 1
        assert valid.counts()[2] == 0


@pytest.mark.parametrize("labels", ["a;b", "a", ""])
def test_clips_of_several_labels_are_split_too(tmp_path, labels):
    path = table_of(tmp_path, [f"{i}.wav,{labels if i % 2 else 'b;c'}" for i in range(20)])
    train, valid = manifest.read_pair(path, "0.25")
    assert (len(train), len(valid)) == (15, 5)


def test_a_column_can_name_the_validation_set(tmp_path):
    path = table_of(tmp_path, [f"{i}.wav,{'xy'[i % 2]}, {i // 4 + 1}" for i in range(12)], "path,labels,fold")
    train, valid = manifest.read_pair(path, "fold=2")
    assert files(valid) == {"4.wav", "5.wav", "6.wav", "7.wav"}
    assert len(train) == 8
    assert (train.part, valid.part) == ("fold=1, 3", "fold=2")
    with pytest.raises(OptionError, match=r"the column fold is never '4'; choose one of 1, 2, 3"):
        manifest.read_pair(path, "fold=4")
    with pytest.raises(TrainingError, match="must name the columns path and labels and split"):
        manifest.read_pair(path, "split=valid")


@pytest.mark.parametrize("valid", ["0", "1", "1.5", "-0.1", "nan", "20"])
def test_a_number_that_is_no_fraction_is_refused(tmp_path, valid):
    path = table_of(tmp_path, ["a.wav,x", "b.wav,y"])
    with pytest.raises(OptionError, match="is no fraction of the clips; choose one between 0 and 1"):
        manifest.read_pair(path, valid)


def test_a_fraction_that_leaves_nothing_is_refused(tmp_path):
    path = table_of(tmp_path, ["a.wav,x", "b.wav,y"])
    with pytest.raises(TrainingError, match="leaves none to validate on"):
        manifest.read_pair(path, "0.5")


@pytest.fixture
def folder(tmp_path):
    for name in ("dog/1.wav", "dog/deep/2.WAV", "cat/3.flac", "cat/4.wav", "cat/notes.txt", ".git/5.wav"):
        path = tmp_path / "train" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.touch()
    return tmp_path / "train"


def test_a_folder_for_each_class_needs_no_table(folder):
    clips = manifest.read_labelled(folder)
    assert clips.classes == ("cat", "dog")
    assert {(clips.path(i).name, *clips.labels_of(i)) for i in range(len(clips))} == {
        ("1.wav", 1),
        ("2.WAV", 1),
        ("3.flac", 0),
        ("4.wav", 0),
    }
    train, valid = manifest.read_pair(folder, "0.5")
    assert len(train) == len(valid) == 2


def test_what_a_folder_cannot_be_is_refused(folder, tmp_path):
    with pytest.raises(OptionError, match="a folder has no columns"):
        manifest.read_pair(folder, "fold=1")
    (folder / "6.wav").touch()
    with pytest.raises(TrainingError, match=r"1 row that lie in no sub-folder.*6\.wav"):
        manifest.read_labelled(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(TrainingError, match="no audio in this folder"):
        manifest.read_labelled(tmp_path / "empty")


def test_a_moved_table_has_the_same_digest_and_a_changed_one_another(folder, tmp_path):
    before = manifest.read_labelled(folder).digest()
    moved = folder.rename(tmp_path / "moved")
    assert manifest.read_labelled(moved).digest() == before
    (moved / "cat" / "7.wav").touch()
    assert manifest.read_labelled(moved).digest() != before
