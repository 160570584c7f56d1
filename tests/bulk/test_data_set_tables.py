"""Tables as data sets come with them: what is read, and what is refused with the option that would read it."""

import math
from pathlib import Path

import pytest

from hear_transformers.bulk import manifest as lists
from hear_transformers.bulk.rows import parse_columns
from hear_transformers.errors import HearTransformersError, OptionError
from hear_transformers.training import manifest as clips
from hear_transformers.training.manifest import Layout

WHOLE = (0.0, math.inf)

TABLES = {
    # name: file, text, --columns, --label-separator, [(path, labels, (start, end))]
    "esc50": (
        "esc50.csv",
        "filename,fold,target,category,esc10,src_file,take\n1-100032-A-0.wav,1,0,dog,True,100032,A\n",
        "path=audio/{filename},labels=category",
        ";",
        [("audio/1-100032-A-0.wav", {"dog"}, WHOLE)],
    ),
    "urbansound8k": (  # its start and end are those of the slice in the recording that it was cut from
        "UrbanSound8K.csv",
        "slice_file_name,fsID,start,end,salience,fold,classID,class\n1-5-0.wav,1,12.5,16.5,1,5,3,dog_bark\n",
        "path=fold{fold}/{slice_file_name},labels=class",
        ";",
        [("fold5/1-5-0.wav", {"dog_bark"}, WHOLE)],
    ),
    "fsd50k": (
        "dev.csv",
        'fname,labels,mids,split\n64760,"Electric_guitar,Guitar","/m/02sgy,/m/0342h",train\n',
        "path=dev_audio/{fname}.wav,labels=labels",
        ",",
        [("dev_audio/64760.wav", {"Electric_guitar", "Guitar"}, WHOLE)],
    ),
    "audioset": (
        "eval_segments.csv",
        "# Segments csv created Sun Mar  5 10:54:25 2017\n# num_ytids=2, num_segs=2\n"
        "# YTID, start_seconds, end_seconds, positive_labels\n"
        '-0x, 30.000, 40.000, "/m/09x0r,/t/dd00088"\n--4g, 0.000, 10.000, "/m/03fwl"\n',
        "path={YTID}.wav,labels=positive_labels",
        ",",
        [("-0x.wav", {"/m/09x0r", "/t/dd00088"}, WHOLE), ("--4g.wav", {"/m/03fwl"}, WHOLE)],
    ),
    "raven": (
        "birds.selections.txt",
        "Selection\tView\tChannel\tBegin Time (s)\tEnd Time (s)\tBegin Path\tSpecies\n"
        "1\tSpectrogram 1\t1\t0.5\t2.25\ta.wav\tTurdus merula\n2\tSpectrogram 1\t1\t3\t4\tb.wav\tParus, major\n",
        "path=Begin Path,labels=Species,start=Begin Time (s),end=End Time (s)",
        ";",
        [("a.wav", {"Turdus merula"}, (0.5, 2.25)), ("b.wav", {"Parus, major"}, (3.0, 4.0))],
    ),
    "opensoundscape": (
        "labels.csv",
        "file,start_time,end_time,species\na.wav,0.0,3.0,x\na.wav,3.0,6.0,y\n",
        "path=file,labels=species,start=start_time,end=end_time",
        ";",
        [("a.wav", {"x"}, (0.0, 3.0)), ("a.wav", {"y"}, (3.0, 6.0))],
    ),
    "pandas with its index": (
        "frame.csv",
        ",path,labels,score\n0,a.wav,x,0.5\n1,b.wav,y,0.25\n",
        "",
        ";",
        [("a.wav", {"x"}, WHOLE), ("b.wav", {"y"}, WHOLE)],
    ),
    "tabs": ("t.tsv", "labels\tpath\tx\nu;v\ta b.wav\t\n", "", ";", [("a b.wav", {"u", "v"}, WHOLE)]),
    "semicolons and decimal commas": (
        "excel.csv",
        "path;labels;start;end\na.wav;x;0,5;1,5\n;;;\n",
        "",
        "|",
        [("a.wav", {"x"}, (0.5, 1.5))],
    ),
    "the separator by Excel": ("excel.csv", "sep=;\npath;labels\na.wav;x\n", "", ",", [("a.wav", {"x"}, WHOLE)]),
    "commas with .tsv": ("t.tsv", "path,labels\na.wav,x\n", "", ";", [("a.wav", {"x"}, WHOLE)]),
    "a table called .txt": ("t.txt", "path,labels\na.wav,x\n", "", ";", [("a.wav", {"x"}, WHOLE)]),
    "names with commas and umlauts": (
        "t.csv",
        'fl, labels,"Tag, weitere"\n"a, b.wav", x,Vögel\n',
        "path=fl,labels=Tag, weitere",
        ";",
        [("a, b.wav", {"Vögel"}, WHOLE)],
    ),
}


def write(folder: Path, name: str, text: str, encoding: str = "utf-8") -> Path:
    path = folder / name
    path.write_bytes(text.encode(encoding))
    return path


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16"])
@pytest.mark.parametrize("name", TABLES)
def test_both_commands_read_the_tables_of_data_sets_as_they_are(tmp_path, name, encoding) -> None:
    file, text, columns, separator, expected = TABLES[name]
    path, mapping = write(tmp_path, file, text, encoding), parse_columns(columns)
    for audio, *_ in expected:
        (tmp_path / audio).parent.mkdir(exist_ok=True)
        (tmp_path / audio).touch()
    found = [(str(each.name), (each.start, each.end)) for each in lists.read_manifest(path, mapping)]
    assert found == [(audio, span) for audio, _, span in expected]
    read = clips.read_labelled(path, None, Layout(columns=mapping, separator=separator))
    assert [read.path(i) for i in range(len(read))] == [tmp_path / audio for audio, *_ in expected]
    assert [{read.classes[label] for label in read.labels_of(i)} for i in range(len(read))] == [
        labels for _, labels, _ in expected
    ]
    assert [read.span(i) for i in range(len(read))] == [span for *_, span in expected]


def test_parquet_has_the_same_columns_and_lists_of_labels(tmp_path) -> None:
    arrow, parquet = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    table = arrow.table({"id": [7, 8], "tags": [["x", "y"], []], "onset": [None, 1.5], "more": [1, 2]})
    parquet.write_table(table, tmp_path / "t.parquet")
    for number in (7, 8):
        (tmp_path / f"{number}.flac").touch()
    mapping = parse_columns("path={id}.flac,labels=tags,start=onset")
    read = clips.read_labelled(tmp_path / "t.parquet", None, Layout(columns=mapping))
    assert read.targets([0, 1]).tolist() == [[1, 1], [0, 0]]
    assert read.span(1) == (1.5, math.inf)
    assert [each.start for each in lists.read_manifest(tmp_path / "t.parquet", mapping)] == [0.0, 1.5]


@pytest.mark.parametrize(
    ("file", "header", "advice"),
    [
        ("a.csv", "filename,fold,target,category", "'path=filename,labels=category'"),
        (
            "a.csv",
            "slice_file_name,fsID,start,end,fold,class",
            "'path=slice_file_name,labels=class', with start=start,",
        ),
        (
            "a.csv",
            "# Created\n# YTID, start_seconds, end_seconds, positive_labels\nx, 0, 1, '/m/1'",
            "labels=positive_labels",
        ),
        ("a.txt", "Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\tBegin Path\tSpecies", "'path=Begin Path,"),
        ("a.txt", "0.0\t1.5\tbird", "'path=COLUMN,labels=COLUMN'"),
        ("a.csv", "file,start_time,end_time,label", "'path=file,labels=label', with start=start_time,end=end_time"),
        ("a.csv", "path,labels,start_time,end_time", "'start_time' looks like a time and would not be read"),
        ("a.csv", "path,labels,Start,End", "'Start' looks like a time"),
        ("a.csv", "path,labels,strat,end", "'strat' looks like a time"),
        ("a.csv", "path,labels,offset,duration", "'offset' looks like a time"),
    ],
)
def test_other_names_are_refused_with_the_option_that_reads_them(tmp_path, file, header, advice) -> None:
    path = write(tmp_path, file, header + "\n")
    for read in (lists.read_manifest, clips.read_labelled):
        with pytest.raises(HearTransformersError, match=r"--columns 'path=") as refusal:
            read(path)
    assert str(path) in str(refusal.value)
    assert advice in str(refusal.value)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("path=fil,labels=category", r"no column 'fil'; did you mean 'file'\? its columns are 'file', 'category'"),
        ("path={file}{take}.wav,labels=category", "no column 'take'"),
        ("path=file,labels=category,start=onset", "no column 'onset'"),
    ],
)
def test_a_column_that_is_not_there_is_named(tmp_path, columns, message) -> None:
    path = write(tmp_path, "a.csv", "file,category\na.wav,x\n")
    with pytest.raises(HearTransformersError, match=message):
        clips.read_labelled(path, None, Layout(columns=parse_columns(columns)))


@pytest.mark.parametrize("text", ["filename", "name=file", "path=", "path=a,path=b", "path=a;labels=b,x=y"])
def test_columns_that_cannot_be_parsed_are_refused(text) -> None:
    if text == "path=a;labels=b,x=y":  # all of it may be one name
        assert parse_columns(text) == {"path": "a;labels=b,x=y"}
    else:
        with pytest.raises(OptionError, match="is not of the form path=filename,labels=category"):
            parse_columns(text)


def test_a_list_of_paths_with_tabs_and_commas_in_names_stays_one(tmp_path) -> None:
    for name in ("tab\there.wav", "a,b.wav"):
        (tmp_path / name).touch()
    for first in ("tab\there.wav", "a,b.wav", "missing,file.wav"):
        path = write(tmp_path, "list.txt", f"{first}\nx.wav\n")
        assert [str(each.name) for each in lists.read_manifest(path)] == [first, "x.wav"]
