"""Hundreds of files of all formats, dozens of kinds of damage among them, through the real command: whatever happens to
it, every good file gets exactly one right embedding, every bad one a line in the list of failures, and nothing is half.
"""

import io
import json
import os
import resource
import subprocess
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hear_transformers.audio import reading
from hear_transformers.embedding.embedder import Embedder
from tests.helpers.damaged import BAD_FILES, NOISE, Make, content, cut, patched, sound, with_sample

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(sys.platform != "linux", reason="pipes, links and names that are no text"),
]

TIMEOUT_SECONDS = 120.0

COMMAND = "from hear_transformers.cli.embed_audio import main; main()"


def zipped() -> bytes:
    file = io.BytesIO()
    with zipfile.ZipFile(file, "w") as archive:
        archive.writestr("a.wav", bytes(1_000))
    return file.getvalue()


def link_to(target: str) -> Make:
    return lambda path: path.symlink_to(target)


SHORT = NOISE[:3_200]
PNG = b"\x89PNG\r\n\x1a\n\0\0\0\rIHDR" + zlib.compress(bytes(500))

DAMAGE: dict[str, tuple[str, Make, str]] = {
    **{
        kind: row
        for kind, row in BAD_FILES.items()
        if row[0].startswith("a.") and kind not in ("missing", "raw samples")
    },
    "text named .flac": ("a.flac", content(b"This is not a sound.\n" * 100), "not audio"),
    "a page named .mp3": ("a.mp3", content(b"<!DOCTYPE html><title>404</title>" * 100), "not audio|cut short"),
    "a picture named .wav": ("a.wav", content(PNG), "not audio"),
    "an archive named .ogg": ("a.ogg", content(zipped()), "not audio"),
    "a table named .aiff": ("a.aiff", content(b"PAR1" + bytes(500)), "not audio"),
    "empty flac": ("a.flac", content(b""), "empty"),
    "zeros": ("a.wav", content(bytes(5_000)), "not audio"),
    "one byte": ("a.wav", content(b"R"), "not audio"),
    "wav of 20 bytes": ("a.wav", cut(sound(SHORT), 20 / 6_444), "not audio"),
    "wav of 10 %": ("a.wav", cut(sound(SHORT), 0.1), "cut short"),
    "flac of 10 %": ("a.flac", cut(sound(SHORT), 0.1), "not audio|cut short|damaged"),
    "ogg of 5 %": ("a.ogg", cut(sound(SHORT), 0.05), "not audio|cut short|damaged"),
    "aiff without samples": ("a.aiff", sound(NOISE[:0]), "0 samples"),
    "rate of 0": ("a.wav", patched(sound(SHORT), 24, bytes(4)), "not audio|sample rate"),
    "no channels": ("a.wav", patched(sound(SHORT), 22, bytes(2)), "not audio"),
    "60,000 channels": ("a.wav", patched(sound(SHORT), 22, b"\x60\xea"), "not audio|cut short|sample"),
    "unknown coding": ("a.wav", patched(sound(SHORT), 20, b"\x77\x77"), "not audio"),
    "Inf in AIFF": ("a.aiff", sound(with_sample(np.inf), subtype="FLOAT"), "sample inf"),
    "link to nothing": ("a.wav", link_to("nothing.wav"), "no such file"),
    "link to itself": ("loop.wav", link_to("loop.wav"), "no such file|symbolic links"),
    "pipe": ("a.wav", os.mkfifo, "not a regular file"),
}
"""Kinds of damage below a folder that is searched: name, how it is made, its error."""

ODD_NAMES = [
    "new\nline",
    "-dash",
    "ünïcode 音",
    "b\udcffytes",
    " blank ",
    "q'uo\"te",
    "[ab]",
    "tab\there",
    "x" * 240,
    "a|b",
]


def good_files() -> dict[str, Make]:
    """Return one file of every format that libsndfile writes, at two rates, and some with unusual names."""
    files: dict[str, Make] = {}
    for form in soundfile.available_formats():
        for subtype in soundfile.available_subtypes(form):
            for rate in (8_000, 48_000):
                name = f"{form}-{subtype}-{rate}.{form.lower()}"
                n_samples = 900 + 37 * (len(files) % 11)
                if form != "RAW" and soundfile.check_format(form, subtype):
                    files[name] = sound(NOISE[:n_samples], rate, format=form, subtype=subtype)
    return {**files, **{f"{name}.wav": sound(SHORT) for name in ODD_NAMES}, "wrong.mp3": sound(SHORT, format="WAV")}


class Drill:
    """A folder of good and bad files, and the command over it.

    `good` are paths; `bad` maps a path to its error.
    """

    def __init__(self, folder: Path, weights: Path) -> None:
        self.folder = folder
        self.good: list[str] = []
        self.bad: dict[str, str] = {}
        self.small = ["--model=efficientat", "--variant=mn01_as", f"--weights={weights}"]
        for name, make in good_files().items():
            try:
                self._make(f"in/good/{name}", make)
                self.good.append(f"in/good/{name}")
            except soundfile.LibsndfileError:  # not every system encodes MP3, or writes at any rate
                (folder / "in/good" / name).unlink(missing_ok=True)
        for i, (name, make, message) in enumerate(DAMAGE.values()):
            self._make(f"in/bad/{i:02d}/{name}", make)
            self.bad[f"in/bad/{i:02d}/{name}"] = message
        for folder_name in ("one", "two"):  # the same name twice
            self._make(f"in/{folder_name}/same.wav", sound(SHORT))
            self.good.append(f"in/{folder_name}/same.wav")
        (folder / "in/loop").symlink_to(folder / "in", target_is_directory=True)
        self._make("in/is a folder.wav/inside.wav", sound(NOISE[:1]))
        self.good.append("in/is a folder.wav/inside.wav")
        if os.geteuid():  # root may read everything
            self._make("in/locked.wav", sound(SHORT))
            (folder / "in/locked.wav").chmod(0)
            self.bad["in/locked.wav"] = "Permission denied"

    def _make(self, name: str, make: Make) -> None:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        plain = path.with_name(path.name.encode("ascii", "replace").decode())  # what soundfile writes to is text
        make(plain)
        plain.rename(path)

    @property
    def unlisted(self) -> list[str]:
        """Return the good files that a search skips, because of their suffix."""
        return [path for path in self.good if not path.lower().endswith(reading.SUFFIXES)]

    @property
    def few(self) -> list[str]:
        """Return some of the good files, and a few bad ones."""
        return [*self.good[::4], *list(self.bad)[::4]]

    def run(
        self,
        *arguments: str,
        code: str = COMMAND,
        file_bytes: int | None = None,
        files: Sequence[str] = (),
    ) -> subprocess.CompletedProcess:
        """Run the command over files, all by default."""

        def limit() -> None:
            if file_bytes is not None:
                resource.setrlimit(resource.RLIMIT_FSIZE, (file_bytes, file_bytes))

        environment = {**os.environ, "OMP_NUM_THREADS": "1", "CUDA_VISIBLE_DEVICES": ""}
        return subprocess.run(
            [sys.executable, "-c", code, *self.small, "--json", *arguments],
            cwd=self.folder,
            env=environment,
            input="".join(f"{file}\n" for file in files or ["in", *self.unlisted]).encode(),
            capture_output=True,
            timeout=TIMEOUT_SECONDS,
            preexec_fn=limit,
            check=False,
        )


def records(done: subprocess.CompletedProcess) -> dict[str, dict]:
    return {record["input"]: record for record in map(json.loads, done.stdout.splitlines())}


def failures(out: Path) -> dict[str, dict]:
    lines = [json.loads(line) for line in (out / "failures.jsonl").read_text().splitlines()]
    assert len(lines) == len({line["file"] for line in lines})
    return {line["file"]: line for line in lines}


def outputs(out: Path) -> list[Path]:
    return sorted(path for path in out.rglob("*.npz") if path.is_file())


def leftovers(out: Path) -> list[Path]:
    return [path for path in out.rglob("*") if path.suffix in (".part", ".lock")]


def embedding(path: Path) -> np.ndarray:
    with np.load(path) as archive:
        return archive["embedding"]


@pytest.fixture(scope="module")
def drill(tmp_path_factory: pytest.TempPathFactory, small_weights: Path) -> Drill:
    return Drill(tmp_path_factory.mktemp("drill"), small_weights)


@pytest.fixture(scope="module")
def expected(drill: Drill, small_model: Embedder) -> dict[str, np.ndarray]:
    """Embed every good file alone."""

    def alone(path: str) -> np.ndarray:
        return small_model.embed_scenes(reading.read(drill.folder / path, 32_000)[None])[0].numpy()

    return {path: alone(path) for path in drill.good}


@pytest.fixture(scope="module")
def undisturbed(drill: Drill) -> subprocess.CompletedProcess:
    return drill.run("-", "--out=undisturbed")


def written_in(folder: Path, done: subprocess.CompletedProcess) -> dict[str, np.ndarray]:
    """Return the embeddings of the files that a run wrote or found."""
    return {path: embedding(folder / row["output"]) for path, row in records(done).items() if row["output"]}


def rows(table: Path) -> dict[str, np.ndarray]:
    parquet = pytest.importorskip("pyarrow.parquet")
    columns = parquet.read_table(table).to_pydict()
    assert len(set(columns["file"])) == len(columns["file"])
    return dict(zip(columns["file"], map(np.array, columns["embedding"]), strict=True))


def as_text(path: str) -> str:
    return path.encode("utf-8", "backslashreplace").decode()


def check_equal(found: dict[str, np.ndarray], wanted: dict[str, np.ndarray]) -> None:
    assert found.keys() == wanted.keys()
    for name, each in found.items():
        np.testing.assert_allclose(each, wanted[name], atol=1e-5, err_msg=name)


def statuses(done: subprocess.CompletedProcess, status: str) -> set[str]:
    return {path for path, record in records(done).items() if record["status"] == status}


def test_there_are_hundreds_of_files_and_dozens_of_kinds_of_damage(drill):
    assert len(drill.good) + len(drill.bad) >= 300
    assert len(drill.bad) >= 40


def test_every_good_file_gets_its_embedding(drill, undisturbed, expected):
    written = {path: record for path, record in records(undisturbed).items() if record["status"] == "written"}
    assert written.keys() == expected.keys()
    assert outputs(drill.folder / "undisturbed") == sorted(drill.folder / row["output"] for row in written.values())
    for path, row in written.items():
        np.testing.assert_allclose(embedding(drill.folder / row["output"]), expected[path], atol=1e-5, err_msg=path)


def test_every_bad_file_is_listed_with_its_reason(drill, undisturbed):
    failed = failures(drill.folder / "undisturbed")
    assert failed.keys() == drill.bad.keys()
    for path, message in drill.bad.items():
        assert failed[path]["error"] == "AudioError", failed[path]
        with pytest.raises(AssertionError, match=message):
            raise AssertionError(failed[path]["reason"])


def test_some_failed_so_the_exit_code_is_1_and_nothing_is_half(drill, undisturbed):
    assert undisturbed.returncode == 1
    # The decoder of MP3 has notes of its own.
    errors = [line for line in undisturbed.stderr.decode().splitlines() if line.startswith("Error: ")]
    assert len(errors) == len(drill.bad)
    assert leftovers(drill.folder / "undisturbed") == []


def test_a_second_run_does_nothing_again(drill, undisturbed):
    before = {path: path.stat().st_mtime_ns for path in outputs(drill.folder / "undisturbed")}
    again = drill.run("-", "--out=undisturbed")
    assert again.returncode == 1
    assert statuses(again, "skipped") == set(drill.good)
    assert {path: path.stat().st_mtime_ns for path in outputs(drill.folder / "undisturbed")} == before
    assert failures(drill.folder / "undisturbed").keys() == drill.bad.keys()


def test_worker_processes_change_nothing(drill, undisturbed, expected):
    done = drill.run("-", "--out=workers", "--num-workers=2")
    assert done.returncode == 1
    check_equal(written_in(drill.folder, done), expected)
    assert failures(drill.folder / "workers") == failures(drill.folder / "undisturbed")


def test_one_table_holds_the_same(drill, undisturbed, expected):
    done = drill.run("-", "--out=all.parquet")
    assert done.returncode == 1
    check_equal(rows(drill.folder / "all.parquet"), {as_text(path): each for path, each in expected.items()})
    assert leftovers(drill.folder) == []


CHANGES = """
import os
from hear_transformers.bulk import sources
expand_inputs = sources.expand_inputs
def find_then_change(*arguments):
    found = list(expand_inputs(*arguments))
    os.unlink("late/deleted.wav")
    os.replace("other.wav", "late/replaced.wav")
    return found
sources.expand_inputs = find_then_change
"""


def test_files_deleted_or_replaced_while_it_runs(drill, small_model):
    for name in ("late/deleted.wav", "late/replaced.wav"):
        drill._make(name, sound(SHORT))
    drill._make("other.wav", sound(SHORT[:1_000]))
    done = drill.run("late", "--out=changes", code=CHANGES + COMMAND)
    assert done.returncode == 1
    assert failures(drill.folder / "changes").keys() == {"late/deleted.wav"}
    now = small_model.embed_scenes(reading.read(drill.folder / "late/replaced.wav", 32_000)[None])[0].numpy()
    check_equal(written_in(drill.folder, done), {"late/replaced.wav": now})


INTERRUPTION = """
import os, signal
from hear_transformers.cli.embed_audio import Progress
signal.signal(signal.SIGINT, signal.default_int_handler)  # tests that run in the background of a shell ignore it
show, told = Progress.show, []
def show_then_interrupt(self, outcome):
    show(self, outcome)
    told.append(outcome)
    if sum(outcome.status == "written" for outcome in told) == 20:
        os.kill(os.getpid(), signal.SIGINT)
Progress.show = show_then_interrupt
"""


def of_good(few: list[str], expected: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    return {path: expected[path] for path in few if path in expected}


def test_an_interruption_keeps_what_is_finished(drill, expected):
    few, out = drill.few, drill.folder / "interrupted"
    done = drill.run("-", "--out=interrupted", "--batch-size=1", code=INTERRUPTION + COMMAND, files=few)
    assert done.returncode == 130
    assert (
        done.stderr.decode()
        .splitlines()[-1]
        .endswith("finished outputs are kept, run the same command again to resume")
    )
    assert 20 <= len(outputs(out)) < len(of_good(few, expected))
    assert leftovers(out) == []
    finished = len(outputs(out))
    again = drill.run("-", "--out=interrupted", files=few)
    assert len(statuses(again, "skipped")) == finished
    check_equal(written_in(drill.folder, again), of_good(few, expected))


@pytest.mark.parametrize("out", ["full", "full.parquet", "full.hdf5"])
def test_a_full_disk_ends_the_run_with_one_message(drill, undisturbed, expected, out):
    few, file_bytes = drill.few, 8_000
    if out == "full":  # no file grows here, but those with the longest names do not fit
        written = records(undisturbed)
        sizes = {path: (drill.folder / written[path]["output"]).stat().st_size for path in of_good(few, expected)}
        few = sorted(sizes, key=sizes.__getitem__)
        file_bytes = sizes[few[len(few) // 2]]
    done = drill.run("-", f"--out={out}", "--batch-size=1", file_bytes=file_bytes, files=few)
    assert done.returncode == 1, done.stderr
    lines = done.stderr.decode().splitlines()
    assert [line for line in lines if "no room to write" in line] == lines[-1:], lines[-3:]
    assert leftovers(drill.folder) == []
    if out == "full":
        kept = outputs(drill.folder / out)
        assert 0 < len(kept) < len(of_good(few, expected))
        again = drill.run("-", f"--out={out}", files=few)
        assert len(statuses(again, "skipped")) == len(kept)
        check_equal(written_in(drill.folder, again), of_good(few, expected))
    else:
        assert not (drill.folder / out).exists()


KILLS = """
import contextlib, os, random, signal, sys, time
from hear_transformers.bulk import table_output
from hear_transformers.cli.embed_audio import main

N_KILLS = 10
*arguments, out = sys.argv[1:]
table_output.PART_SECONDS = 0.01
lists = sys.stdin.buffer.read()

def work(out):
    read, write = os.pipe()
    os.write(write, lists)
    os.close(write)
    os.dup2(read, 0)
    with contextlib.suppress(SystemExit), open(os.devnull, "w") as nothing:
        with contextlib.redirect_stdout(nothing), contextlib.redirect_stderr(nothing):
            main([*arguments, out])

def begin(out):
    child = os.fork()
    if child == 0:
        work(out)
        os._exit(0)
    return child

work("--out=warm/" + out)  # what is imported late and made once
began = time.perf_counter()
os.waitpid(begin("--out=rehearsal/" + out), 0)
seconds = time.perf_counter() - began
moments = random.Random(0)
for _ in range(N_KILLS):
    child = begin("--out=" + out)
    time.sleep(moments.uniform(0.0, 0.4 * seconds))
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
"""


@pytest.mark.parametrize("out", ["killed", "killed.parquet"])
def test_ten_kills_at_any_moment_lose_nothing_that_was_finished(drill, expected, out):
    few, where = drill.few, drill.folder / out
    killed = drill.run("-", "--num-workers=0", "--batch-size=1", out, code=KILLS, files=few)
    assert killed.returncode == 0, killed.stderr
    state = drill.folder / ".embed-audio" / out  # of a table
    finished = len(outputs(where)) if out == "killed" else len(journalled(state / "journal.jsonl"))
    done = drill.run("-", f"--out={out}", files=few)
    assert len(statuses(done, "skipped")) == finished
    assert leftovers(drill.folder) == []
    wanted = of_good(few, expected)
    if out == "killed":
        assert len(outputs(where)) == len(wanted)
        check_equal(written_in(drill.folder, done), wanted)
    else:
        assert sorted(path.name for path in state.iterdir()) == ["journal.jsonl", "lock"]
        check_equal(rows(where), {as_text(path): each for path, each in wanted.items()})


def journalled(path: Path) -> set[str]:
    """Read the keys of a journal, without an incomplete last line."""
    keys = set()
    for line in path.read_text().splitlines() if path.exists() else ():
        try:
            keys.add(json.loads(line)["key"])
        except (ValueError, KeyError):
            continue
    return keys
