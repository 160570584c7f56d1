"""The two commands as they are installed: what they print where, exit codes, what follows from the options."""

import json
import shlex
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
import soundfile as sf

from hear_transformers import FAMILIES, OPEN_FAMILIES, __version__, catalogue, efficientat, labels
from hear_transformers.errors import HearTransformersWarning


@pytest.mark.slow
@pytest.mark.parametrize("name", ["embed-audio", "hear-transformers"])
def test_help_and_version_need_no_torch(name):
    """Seconds of start-up are PyTorch's, so its absence stands for speed."""
    code = f"""
import sys
from importlib.metadata import entry_points
(entry,) = entry_points(group="console_scripts", name={name!r})
entry.load()(["--help"], standalone_mode=False)
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.returncode == 0
    assert done.stdout.startswith("Usage: ")


@pytest.mark.parametrize("name", ["embed-audio", "hear-transformers"])
def test_version_is_that_of_the_package(installed_command, name):
    assert __version__ in installed_command(name)("--version").stdout


# embed-audio


def test_one_file_becomes_one_npz(embed_audio, audio_file, tmp_path):
    audio_file()
    result = embed_audio("tone.wav")
    assert result.exit_code == 0
    assert result.stdout == "tone.wav -> tone.npz  (96,) float32\n1 written\n"
    assert result.stderr == ""
    with np.load(tmp_path / "tone.npz") as archive:
        provenance = json.loads(str(archive["provenance"]))
    assert provenance["family"] == "efficientat"
    assert provenance["variant"] == "mn01_as"
    assert provenance["embedding"] == "scene"
    assert len(provenance["weights_sha256"]) == 64


@pytest.mark.parametrize(
    ("arguments", "shape"),
    [
        ([], (96,)),
        (["--scene"], (96,)),
        (["--timestamps"], (21, 96)),
        (["--hop-ms=100"], (11, 96)),
        (["--window-ms=320"], (21, 96)),
        (["--window-ms=160,320"], (21, 192)),
        (["--framing=windowed"], (21, 96)),
        (["--layer=2"], (8,)),
        (["--layer=2,-1", "--pool=meanmax"], (208,)),
        (["--precision=bfloat16"], (96,)),
        (["--batch-size=3", "--timestamps"], (21, 96)),
        (["--batch-size=auto"], (96,)),
        (["--num-workers=0"], (96,)),
        (["--num-workers=auto"], (96,)),
        (["--resample=device"], (96,)),
        (["--device=cpu"], (96,)),
    ],
)
def test_options_say_what_is_embedded(embed_audio, audio_file, tmp_path, arguments, shape):
    audio_file()
    result = embed_audio("tone.wav", *arguments)
    assert result.exit_code == 0, result.output
    with np.load(tmp_path / "tone.npz") as archive:
        assert archive["embedding"].shape == shape
        assert ("timestamps" in archive) == (len(shape) == 2)


@pytest.mark.parametrize("options", [["--hop-ms=50"], ["--window-ms=160,400"], ["--framing=native", "--layer=2"]])
def test_a_scene_with_an_option_about_time_is_the_mean_along_time(embed_audio, audio_file, tmp_path, options):
    audio_file(seconds=1.3)
    for kind in ("scene", "timestamps"):
        result = embed_audio("tone.wav", f"--{kind}", *options, "--out", kind)
        assert result.exit_code == 0, result.output
    with np.load(tmp_path / "scene/tone.npz") as mean, np.load(tmp_path / "timestamps/tone.npz") as along:
        np.testing.assert_allclose(mean["embedding"], along["embedding"].mean(0), rtol=1e-5, atol=1e-6)
        assert "timestamps" not in mean
    refused = embed_audio("tone.wav", "--scene", *options, "--out", "timestamps")
    assert "kind timestamps -> scene" in refused.output


@pytest.mark.parametrize(("name", "is_list"), [("clips.csv", True), ("clips.txt", True), ("clips.wav", False)])
def test_a_list_among_the_inputs_is_answered_with_manifest(embed_audio, tmp_path, name, is_list):
    (tmp_path / name).write_text("path,label\na.wav,dog\n")
    result = embed_audio(name, "--out", "embeddings")
    assert result.exit_code == 1
    assert ("embed-audio --manifest reads lists" in result.stderr) == is_list


@pytest.mark.parametrize(
    ("options", "is_noted"),
    [
        (["--hop-ms=400", "--window-ms=400"], True),
        (["--hop-ms=400", "--window-ms=400", "--framing=windowed"], True),
        (["--hop-ms=400", "--window-ms=400", "--framing=native", "--layer=2"], False),
        (["--hop-ms=400", "--window-ms=800"], False),
        (["--hop-ms=400", "--window-ms=400", "--quiet"], False),
        (["--hop-ms=400", "--window-ms=400", "--scene"], False),
        (["--segment=0.4"], False),
    ],
)
def test_windows_as_long_as_their_distance_are_answered_with_segments(embed_audio, audio_file, options, is_noted):
    result = embed_audio(audio_file(), *options, "--out", "t.npz")
    assert result.exit_code == 0, result.output
    assert ("--segment 0.4 embeds 0-0.4 s, 0.4-0.8 s, ..." in result.stderr) == is_noted


def test_a_scene_of_segments_is_refused(embed_audio, audio_file):
    result = embed_audio(audio_file(), "--scene", "--segment=1")
    assert result.exit_code == 2
    assert "--segment one per segment" in result.stderr


@pytest.mark.parametrize(
    ("arguments", "outputs"),
    [
        (["--out=x"], ["x/a.npz", "x/sub/b.npz"]),
        (["--format=npy"], ["a.npy", "a.npy.json", "sub/b.npy", "sub/b.npy.json"]),
        (["--format=parquet"], ["embeddings.parquet"]),
        (["--out=x/table.parquet"], ["x/table.parquet"]),
    ],
)
def test_outputs_go_where_they_are_asked_for(embed_audio, audio_file, tmp_path, arguments, outputs):
    audio_file("in/a.wav")
    audio_file("in/sub/b.wav")
    assert embed_audio("in", *arguments).exit_code == 0
    written = [str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()]
    assert sorted(name for name in written if not name.startswith("in/") and ".embed-audio/" not in name) == outputs


@pytest.mark.slow
def test_a_list_of_paths_comes_on_stdin(embed_audio, audio_file, tmp_path):
    audio_file("a.wav")
    audio_file("b.wav")
    assert embed_audio("-", stdin="a.wav\nb.wav\n").exit_code == 0
    assert len(list(tmp_path.glob("*.npz"))) == 2


def test_an_empty_list_is_an_error(embed_audio):
    result = embed_audio("-", stdin="\n")
    assert result.exit_code == 2
    assert "the list on stdin is empty" in result.stderr


def test_a_manifest_names_parts_of_files(embed_audio, audio_file, tmp_path):
    audio_file("clips/tone.wav")
    (tmp_path / "list.csv").write_text("path,start,end\nclips/tone.wav,0.25,0.5\n")
    result = embed_audio("--manifest=list.csv", "--out=out", "--json")
    assert result.exit_code == 0, result.output
    record = json.loads(result.stdout)
    assert (record["start"], record["end"], record["output"]) == (0.25, 0.5, "out/clips/tone.250-500.npz")


def test_columns_name_what_a_manifest_holds(embed_audio, audio_file, tmp_path):
    audio_file("clips/tone.wav")
    (tmp_path / "raven.txt").write_text("Selection\tBegin Time (s)\tEnd Time (s)\tBegin File\n1\t0.25\t0.5\ttone.wav\n")
    refused = embed_audio("--manifest=raven.txt", "--out=out")
    assert refused.exit_code == 2
    assert "--columns 'path=Begin File', with start=Begin Time (s),end=End Time (s)" in refused.stderr
    columns = "path=clips/{Begin File},start=Begin Time (s),end=End Time (s)"
    result = embed_audio("--manifest=raven.txt", f"--columns={columns}", "--out=out", "--json")
    assert result.exit_code == 0, result.stderr
    assert json.loads(result.stdout)["output"] == "out/clips/tone.250-500.npz"
    assert "give --manifest" in embed_audio("clips", "--columns=path=a").stderr


def test_a_wrong_line_of_a_manifest_is_named(embed_audio, tmp_path):
    (tmp_path / "list.csv").write_text("path,start,end\na.wav,0.25,0.1\n")
    result = embed_audio("--manifest=list.csv")
    assert result.exit_code == 2
    assert "list.csv, line 2: the end, 0.1 s, is not after the start" in result.stderr


def test_nothing_to_embed_is_an_error(embed_audio):
    result = embed_audio()
    assert result.exit_code == 2
    assert "nothing to embed; give files" in result.stderr


def test_names_on_stdin_need_not_be_text(embed_audio, audio_file, tmp_path):
    if sys.platform != "linux":
        pytest.skip("other systems have no such names")
    audio_file().rename(tmp_path / "t\udcffne.wav")
    assert embed_audio("-", stdin=b"t\xffne.wav\n").exit_code == 0


@pytest.mark.slow
def test_a_message_is_one_line_whatever_the_name(embed_audio):
    result = embed_audio("new\nline\x1b.wav")
    assert result.stderr == "Error: new\\nline\\x1b.wav: no such file\n"


@pytest.mark.slow
def test_shards_have_lists_of_failures_of_their_own(embed_audio, tmp_path):
    codes = [embed_audio("missing.wav", f"--shard={i}/2", "--out=out").exit_code for i in range(2)]
    assert sorted(codes) == [0, 1]
    (path,) = (tmp_path / "out").glob("failures-?-of-2.jsonl")
    (line,) = map(json.loads, path.read_text().splitlines())
    assert line == {
        "file": "missing.wav",
        "start": 0.0,
        "end": None,
        "error": "AudioError",
        "reason": "missing.wav: no such file",
    }


def test_the_first_failure_can_end_the_run(embed_audio, audio_file, tmp_path):
    audio_file()
    result = embed_audio("missing.wav", "lost.wav", "tone.wav", "--fail-fast", "--batch-size=1")
    assert result.exit_code == 1
    assert result.stderr == "Error: missing.wav: no such file\n"
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.slow
def test_separate_layers_are_folders(embed_audio, audio_file, tmp_path):
    audio_file()
    assert embed_audio("tone.wav", "--layer=2,5", "--separate-layers", "--dtype=float16").exit_code == 0
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.glob("layer=*/*.npz")) == [
        "layer=2/tone.npz",
        "layer=5/tone.npz",
    ]


def test_exit_codes_are_in_the_help(embed_audio):
    text = embed_audio("--help").stdout
    assert [line.split()[0] for line in text.partition("Exit codes:\n")[2].splitlines()[:4]] == ["0", "1", "2", "130"]


@pytest.mark.slow
def test_json_says_what_became_of_every_file(embed_audio, audio_file):
    audio_file("a.wav")
    audio_file("b.wav")
    embed_audio("b.wav")
    result = embed_audio("a.wav", "b.wav", "c.wav", "--json")
    assert result.exit_code == 1
    records = {record["input"]: record for record in map(json.loads, result.stdout.splitlines())}
    nothing = dict.fromkeys(("end", "channel", "output", "shape", "seconds", "tags", "error", "warning"))
    nothing["start"] = 0.0
    assert records == {
        "a.wav": nothing | {"input": "a.wav", "status": "written", "output": "a.npz", "shape": [96], "seconds": 1.0},
        "b.wav": nothing | {"input": "b.wav", "status": "skipped", "output": "b.npz"},
        "c.wav": nothing | {"input": "c.wav", "status": "failed", "error": "c.wav: no such file"},
    }


def test_quiet_prints_errors_only(embed_audio, audio_file):
    audio_file()
    result = embed_audio("tone.wav", "missing.wav", "--quiet")
    assert result.stdout == ""
    assert result.stderr == "Error: missing.wav: no such file\n"


LABELS = ["--labels"]


@pytest.mark.slow
def test_labels_are_an_aligned_table_beside_the_embedding(embed_audio, audio_file, tmp_path):
    audio_file()
    name, *table, written, count = embed_audio("tone.wav", *LABELS).stdout.splitlines()
    assert (name, written, count) == ("tone.wav", "tone.wav -> tone.npz  (527,) float32", "1 written")
    with np.load(tmp_path / "tone.npz") as archive:
        tags = labels.top_tags(archive["embedding"], 10)
    assert table == [f"  {tag.probability:.3f}  {tag.label}" for tag in tags]


@pytest.mark.slow
def test_top_k_says_how_many_labels(embed_audio, audio_file):
    lines = embed_audio(audio_file(), *LABELS, "--top-k=3").stdout.splitlines()
    assert len([line for line in lines if line.startswith("  0.")]) == 3


@pytest.mark.slow
def test_labels_of_outputs_that_are_there_are_printed_again(embed_audio, audio_file, tmp_path):
    audio_file()
    first = embed_audio("tone.wav", *LABELS)
    before = (tmp_path / "tone.npz").stat().st_mtime_ns
    again = embed_audio("tone.wav", *LABELS)
    assert again.stdout.splitlines()[:11] == first.stdout.splitlines()[:11]
    assert again.stdout.splitlines()[11:] == ["0 written, 1 skipped, outputs exist (--overwrite replaces them)"]
    assert (tmp_path / "tone.npz").stat().st_mtime_ns == before


def test_labels_choose_their_layer(embed_audio, audio_file, tmp_path):
    audio_file()
    embed_audio("tone.wav", *LABELS, "--out=a.npz")
    embed_audio("tone.wav", *LABELS, "--layer=logits", "--out=b.npz")
    with np.load(tmp_path / "a.npz") as chosen, np.load(tmp_path / "b.npz") as given:
        assert (chosen["embedding"] == given["embedding"]).all()


def test_labels_of_a_model_without_logits_say_what_is_needed(installed_command, audio_file):
    result = installed_command("embed-audio")(audio_file(), *LABELS, "--model=tiny")
    assert result.exit_code == 2
    assert "layer='logits' is unknown" in result.stderr
    assert result.stderr.endswith("--labels needs a model that makes logits, such as efficientat\n")


@pytest.mark.parametrize(("channel", "shown"), [([], None), (["--channel=2"], 2), (["--channel=mix"], None)])
def test_json_says_which_channel_was_heard(embed_audio, tmp_path, channel, shown):
    sf.write(tmp_path / "two.wav", np.random.default_rng(0).uniform(-0.1, 0.1, (16_000, 2)), 32_000)
    (line,) = embed_audio("two.wav", "--json", *channel).stdout.splitlines()
    assert json.loads(line)["channel"] == shown


@pytest.mark.filterwarnings("default")
def test_warnings_are_lines_without_a_place_in_the_code(embed_audio, audio_file, monkeypatch):
    def check(*_, **words):
        if words:
            warnings.warn("slow here", HearTransformersWarning, stacklevel=1)

    monkeypatch.setattr(catalogue, "check", check)
    result = embed_audio(audio_file())
    assert (result.exit_code, result.stderr) == (0, "Warning: slow here\n")


def test_help_lists_options_in_sections(embed_audio):
    lines = embed_audio("--help").stdout.partition("  Examples:")[0].splitlines()
    headings = [line for line in lines if line.endswith(":") and not line.startswith(" ")]
    assert headings == ["Input:", "Model:", "Embedding:", "Computation:", "Output:", "Other options:"]
    columns = {len(line) - len(line[2:].split("  ", 1)[1].lstrip()) for line in lines if line.startswith("  --")}
    assert len(columns) == 1
    assert max(map(len, lines)) <= 80


WRONG_WORDS = ["--pool=men", "--framing=nativ", "--precision=fp16", "--dtype=f16", "--format=cvs", "--out=x.csv"]


@pytest.mark.slow
@pytest.mark.parametrize("option", [*WRONG_WORDS, "--layer=99", "--labels", "--overlap=1 --scene"])
def test_a_wrong_word_is_answered_without_torch(option):
    code = f"""
import sys
from hear_transformers.cli.embed_audio import main
try:
    main(["a.wav", *{option.split()!r}])
except SystemExit as end:
    sys.exit(end.code if "torch" not in sys.modules else 99)
"""
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, check=False).returncode == 2


def test_labels_in_json_are_a_list(embed_audio, audio_file):
    (line,) = embed_audio(audio_file(), *LABELS, "--json", "--top-k=2").stdout.splitlines()
    first, second = json.loads(line)["tags"]
    assert first.keys() == {"label", "probability"}
    assert 1.0 > first["probability"] >= second["probability"] > 0.0


def test_labels_are_not_printed_by_quiet(embed_audio, audio_file):
    result = embed_audio(audio_file(), *LABELS, "--quiet")
    assert (result.exit_code, result.output) == (0, "")


def test_separate_layers_are_printed_as_one_pattern(embed_audio, audio_file):
    audio_file()
    arguments = ["tone.wav", "--layer=2,5,9", "--separate-layers", "--out=out"]
    assert embed_audio(*arguments).stdout.splitlines()[0] == "tone.wav -> out/layer={2,5,9}/tone.npz  (8,) float32"
    record = json.loads(embed_audio(*arguments, "--json").stdout)
    assert (record["output"], record["layers"]) == ("out/layer=2/tone.npz", ["2", "5", "9"])


@pytest.mark.parametrize(
    ("layers", "sizes"), [("2,5", "(8,)"), ("0,8,13", "(8,) (16,)"), ("features,logits", "(96,) (527,)")]
)
def test_sizes_of_separate_layers_are_printed(embed_audio, audio_file, layers, sizes):
    result = embed_audio(audio_file(), f"--layer={layers}", "--separate-layers", "--out=out")
    assert result.stdout.splitlines()[0].endswith(f"}}/tone.npz  {sizes} float32")


@pytest.mark.parametrize("arguments", [["tone.wav", "./tone.wav"], [".", "tone.wav"], ["*.wav", "."]])
def test_inputs_that_are_named_twice_are_counted(embed_audio, audio_file, arguments):
    audio_file()
    result = embed_audio(*arguments)
    assert result.stderr == "Note: files that the inputs name again, and that are embedded once: 1\n"
    assert result.stdout.endswith("1 written\n")
    assert embed_audio(*arguments, "--quiet").output == ""


@pytest.mark.parametrize(
    ("format", "told"), [("npz", "they share an output"), ("parquet", "the table has a row for each")]
)
def test_rows_of_a_manifest_that_are_the_same_are_counted(embed_audio, audio_file, tmp_path, format, told):
    audio_file()
    (tmp_path / "list.csv").write_text("path,start,end\ntone.wav,0,1\ntone.wav,0,1\ntone.wav,0,5\n")
    result = embed_audio("--manifest=list.csv", f"--format={format}")
    assert result.stderr == f"Note: rows that are the same part of a file as one before: 1; {told}\n"
    assert result.stdout.endswith("2 written\n")


@pytest.mark.slow
def test_many_files_are_counted_not_listed(embed_audio, audio_file):
    for i in range(11):
        audio_file(f"{i}.wav", seconds=0.1)
    assert embed_audio(".").stdout == "11 written\n"
    assert embed_audio(".").stdout == "0 written, 11 skipped, outputs exist (--overwrite replaces them)\n"


def test_outputs_of_other_settings_end_the_command_before_it_begins(embed_audio, audio_file, tmp_path):
    audio_file("a.wav")
    audio_file("b.wav")
    assert embed_audio("a.wav", "--out=out").exit_code == 0
    result = embed_audio("b.wav", "--layer=2", "--out=out")
    assert result.exit_code == 2
    assert "out/a.npz was made with other settings: layer features -> 2; " in result.stderr
    assert "give another --out, or the same settings again, or --overwrite" in result.stderr
    assert [path.name for path in (tmp_path / "out").iterdir()] == ["a.npz"]


@pytest.mark.slow
def test_a_few_warnings_about_kept_outputs_are_enough(embed_audio, audio_file, tmp_path):
    for i in range(5):
        audio_file(f"{i}.wav", seconds=0.1)
        (tmp_path / f"{i}.npz").write_text("mine")
    warnings = embed_audio(".").stderr.splitlines()
    assert warnings[0].startswith("Warning: 0.npz is kept, but does not say what made it")
    assert warnings[3:] == ["Warning: 2 more outputs were kept"]


def test_interruption_ends_with_130_and_keeps_what_is_written(embed_audio, audio_file, tmp_path, monkeypatch):
    def interrupt(self, outcome):
        raise KeyboardInterrupt

    monkeypatch.setattr("hear_transformers.cli.embed_audio.Progress.show", interrupt)
    audio_file()
    result = embed_audio("tone.wav")
    assert result.exit_code == 130
    assert result.stderr == "Error: interrupted; finished outputs are kept, run the same command again to resume\n"
    assert (tmp_path / "tone.npz").exists()


def test_an_unforeseen_error_is_one_line(embed_audio, audio_file, monkeypatch):
    def fail(*args):
        raise ZeroDivisionError("unforeseen")

    monkeypatch.setattr(catalogue, "load", fail)
    result = embed_audio(audio_file())
    assert result.exit_code == 1
    assert result.stderr == "Error: ZeroDivisionError: unforeseen\n"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=pasta"], "choose one of tiny, passt"),
        (["--device=tpu"], "device='tpu' cannot be used here; choose one of auto,"),
        (["--device=cuda:99"], "device='cuda:99' cannot be used here; choose one of auto,"),
        (["--batch-size=0"], "'0' is neither a whole number of 1 or more, nor auto"),
        (["--num-workers=-1"], "'-1' is neither a whole number of 0 or more, nor auto"),
        (["--num-workers=many"], "'many' is neither a whole number of 0 or more, nor auto"),
        (["--resample=gpu"], "resample='gpu' is unknown; choose one of cpu, device, auto"),
        (["--shard=8/8"], "shard=8/8 does not exist; shards count from 0: choose 0/8 to 7/8"),
        (["--shard=-1/8"], "shard=-1/8 does not exist; shards count from 0"),
        (["--shard=8"], "'8' is not a shard"),
        (["--dtype=float64"], "dtype='float64' is unknown; choose one of float32, float16"),
        (["--manifest=list.json"], "list.json: a manifest is a list of files that ends in .txt, .csv, .tsv, .parquet"),
        (["--manifest=missing.txt"], "missing.txt: cannot be read (No such file or directory)"),
        (["--window-ms=long"], "'long' is not a number in ms"),
        (["--format=csv"], "format='csv' is unknown; choose one of npz"),
        (["--out=x.npz", "--format=npy"], "does not go with the file name x.npz"),
        (["--out=x.npz", "other.wav"], "one file for 2 inputs"),
        (["--model=json"], "does not follow the HEAR API: it has no load_model"),
        pytest.param(
            *(["--model=hear21passt.base", "--layer=3"], "layer: the HEAR API has no such options"),
            marks=pytest.mark.slow,
        ),
        (["--top-k=3"], "--top-k is the number of labels to print; give --labels too"),
        (["--top-k=0", *LABELS], "0 is not in the range"),
        (["--labels", "--layer=8"], "layer 8 was asked for; give --layer logits or leave it out"),
        (["--labels", "--layer=features,logits"], "layer features,logits was asked for; give --layer logits"),
        pytest.param(
            *([*LABELS, "--model=hear21passt.base"], "layer: the HEAR API has no such options"),
            marks=pytest.mark.slow,
        ),
    ],
)
def test_a_wrong_command_says_what_is_right(embed_audio, audio_file, arguments, message):
    result = embed_audio(audio_file(), *arguments)
    assert result.exit_code == 2
    assert message in result.stderr.replace("\n", " ")


def test_labels_that_do_not_fit_are_refused_before_anything_is_written(embed_audio, audio_file, tmp_path, monkeypatch):
    model = efficientat.load_model(variant="mn01_as", pretrained=False, layer="logits")
    model.name, model.scene_embedding_size = ("passt", "openmic"), 20
    monkeypatch.setattr(catalogue, "load", lambda *arguments: model)
    result = embed_audio(audio_file(), *LABELS)
    assert result.exit_code == 2
    assert "the names of AudioSet's 527 classes do not fit the 20 classes of passt/openmic" in result.stderr
    assert not list(tmp_path.glob("*.npz"))


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="other systems have no such names")
@pytest.mark.parametrize("format", ["npz", "npy", "parquet"])
def test_a_file_name_need_not_be_text(embed_audio, audio_file, tmp_path, format):
    audio_file().rename(tmp_path / "t\udcffne.wav")
    result = embed_audio("t\udcffne.wav", "miss\udcffng.wav", "--format", format)
    assert result.stdout.startswith("t?ne.wav -> ")
    assert result.stderr == "Error: miss?ng.wav: no such file\n"


# Modules of others

FOREIGN = """
import torch

class Model(torch.nn.Module):
    sample_rate = {sample_rate}
    scene_embedding_size = 2
    timestamp_embedding_size = 3

def load_model(path=""):
    print("noise on stdout")
    return Model()

def get_scene_embeddings(audio, model):
    return torch.stack([audio.mean(1), audio.std(1)], 1).to({dtype})

def get_timestamp_embeddings(audio, model):
    n = 1 + audio.shape[1] * 20 // model.sample_rate
    times = torch.arange(n) * {hop_ms}
    return torch.ones(len(audio), n, {size}), times.expand(len(audio), n)
"""
HONEST = {"sample_rate": 16_000, "dtype": "torch.float32", "hop_ms": 50.0, "size": 3}


@pytest.fixture
def foreign(tmp_path, monkeypatch):
    """Write a module that follows HEAR, or not quite."""

    def write(**changes) -> str:
        name = f"foreign_{len(list(tmp_path.iterdir()))}_{abs(hash(str(changes)))}"
        (tmp_path / f"{name}.py").write_text(FOREIGN.format(**HONEST | changes))
        return name

    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    return write


@pytest.mark.parametrize(("kind", "shape"), [("--scene", (2,)), ("--timestamps", (21, 3))])
def test_any_module_that_follows_hear_embeds(installed_command, foreign, audio_file, tmp_path, kind, shape):
    audio_file()
    result = installed_command("embed-audio")("tone.wav", "--model", foreign(), kind)
    assert result.stdout == f"tone.wav -> tone.npz  {shape} float32\n1 written\n"
    with np.load(tmp_path / "tone.npz") as archive:
        assert archive["embedding"].shape == shape


def test_validate_says_what_was_checked(installed_command, foreign):
    result = installed_command("hear-transformers")("validate", foreign())
    assert result.exit_code == 0
    assert result.stdout.splitlines()[1] == "sample_rate is 16000"
    assert result.stdout.endswith("Looks good!\n")


@pytest.mark.slow
def test_validate_accepts_our_own(installed_command):
    options = json.dumps({"variant": "mn01_as", "pretrained": False})
    result = installed_command("hear-transformers")(
        "validate", "hear_transformers.efficientat", "--model-options", options
    )
    assert result.stdout.endswith("Looks good!\n")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"sample_rate": 8_000}, "sample_rate is an integer, one of 16000, .*; found 8000"),
        ({"dtype": "torch.float64"}, "scene embeddings are float32; found torch.float64"),
        ({"size": 4}, r"timestamp embeddings have shape \(4, n_timestamps, 3\); found"),
        ({"hop_ms": 60.0}, "timestamps lie within 0 and 1070 ms"),
        ({"hop_ms": 0.0}, "timestamps increase"),
        ({"hop_ms": "50.0 + 2.0 * (torch.arange(n) == 3)"}, "timestamps are regular within 1 ms"),
        ({"hop_ms": "torch.nan"}, "timestamps are finite"),
    ],
)
def test_validate_names_the_broken_rule(installed_command, foreign, changes, message):
    result = installed_command("hear-transformers")("validate", foreign(**changes))
    assert result.exit_code == 1
    assert "Looks good" not in result.stdout
    with pytest.raises(AssertionError, match=message):
        raise AssertionError(result.stderr)


@pytest.mark.parametrize("options", ["{", "[]"])
def test_validate_refuses_options_that_are_not_an_object(installed_command, options):
    result = installed_command("hear-transformers")("validate", "json", "--model-options", options)
    assert result.exit_code == 2
    assert "--model-options" in result.stderr


# hear-transformers


def test_list_names_every_variant(installed_command):
    result = installed_command("hear-transformers")("list")
    assert result.exit_code == 0
    table, _, advice = result.stdout.partition("\n\n")
    names = {tuple(shlex.split(line.lstrip("*"))[:2]) for line in table.splitlines()[1:]}
    assert advice.splitlines()[0].split() == ["FOR", "TAKE", "LICENCE", "WHY"]
    assert names == {(name, variant) for name in FAMILIES for variant in catalogue.family(name).VARIANTS}


def test_list_as_json_says_where_weights_come_from(installed_command):
    rows = json.loads(installed_command("hear-transformers")("list", "--json").stdout)
    (row,) = [row for row in rows if row["variant"] == "mn04_as"]
    assert row["licence"] == "MIT"
    assert row["url"].startswith("https://")


def test_info_lists_layers_with_size_and_time(installed_command):
    command = installed_command("hear-transformers")
    assert ["2", "8", "32", "40", "125.03"] in [
        line.split() for line in command("info", "efficientat", "mn01_as").stdout.splitlines()
    ]
    description = json.loads(command("info", "efficientat", "mn01_as", "--json").stdout)
    assert description["sample_rate"] == 32_000
    assert description["layers"][-1]["layer"] == "logits"


def test_info_takes_the_first_variant_unless_told(installed_command):
    description = json.loads(installed_command("hear-transformers")("info", "efficientat", "--json").stdout)
    assert description["variant"] == next(iter(catalogue.family("efficientat").VARIANTS))


def test_info_finds_the_model_of_a_variant(installed_command):
    description = json.loads(installed_command("hear-transformers")("info", "mn01_as", "--json").stdout)
    assert (description["family"], description["variant"]) == ("efficientat", "mn01_as")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (
            ["info", "pasta"],
            f"model='pasta' is unknown; choose one of {', '.join([*FAMILIES, *OPEN_FAMILIES])}, a variant",
        ),
        (["info", "pasta", "base"], "model='pasta' is unknown; choose one of tiny"),
        (["info", "efficientat", "mn99"], "variant='mn99' is unknown"),
        (["download", "efficientat", "mn99"], "did you mean mn10_as or"),
        (["download", "panns", "cnn14", "--imagenet"], "no ImageNet start is known for panns cnn14"),
    ],
)
def test_unknown_models_are_answered_with_known_ones(installed_command, arguments, message):
    result = installed_command("hear-transformers")(*arguments)
    assert result.exit_code == 2
    assert message in result.stderr


def test_download_prints_where_the_file_is(installed_command, monkeypatch):
    monkeypatch.setattr(catalogue.store, "fetch", lambda row, *_options: Path("cache") / row.file)
    result = installed_command("hear-transformers")("download", "efficientat", "mn04_as")
    assert result.stdout.startswith("cache/mn04_as")


def test_download_fetches_what_training_may_start_from(installed_command, monkeypatch):
    monkeypatch.setattr(catalogue.store, "fetch", lambda row, *_options: Path("cache") / row.file)
    result = installed_command("hear-transformers")("download", "ast", "all", "--imagenet")
    assert sorted(line.partition("-")[0] for line in result.stdout.splitlines()) == [
        "cache/deit_base_distilled_patch16_384",
        "cache/deit_small_distilled_patch16_224",
        "cache/deit_tiny_distilled_patch16_224",
    ]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--engine", "ray", "--num-workers", "2"], "--num-workers does not go with --engine ray"),
        (["--engine", "ray", "--shard", "0/2"], "the cluster shares the files"),
        (["--engine", "ray", "--format", "npz"], "Parquet shards"),
        (["--engine", "ray", "--labels"], "embed --layer logits"),
        (["--address", "auto"], "give --engine ray too"),
        (["--block-size", "8"], "give --engine ray too"),
    ],
)
def test_options_of_a_cluster_and_of_one_machine_do_not_mix(embed_audio, audio_file, options, words):
    result = embed_audio(audio_file(), *options)

    assert result.exit_code == 2
    assert words in result.output
