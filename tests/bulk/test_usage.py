"""Every run says what limits it: what is made slow is named."""

import json
import time

import pytest

from hear_transformers.audio import reading, workers
from hear_transformers.audio.workers import Spent
from hear_transformers.bulk import folder_output
from hear_transformers.bulk.extract import extract
from hear_transformers.bulk.sources import find_sources
from hear_transformers.bulk.usage import OVERHEAD, WORDS, Usage
from tests.helpers.models import OnDevice

SECONDS = 0.05
LONGER_SECONDS = 0.3
"""That each clip takes where it is slow; longer where processes are started, which takes its time too."""

forked = pytest.mark.skipif(workers.START_METHOD != "fork", reason="a patched function reaches forked workers only")


def slow(function, seconds: float = SECONDS):
    def sleeping(*arguments, **options):
        time.sleep(seconds)
        return function(*arguments, **options)

    return sleeping


@pytest.fixture
def usage_of(audio_file, tmp_path):
    """Embed some files, and return where the time went."""
    for i in range(12):
        audio_file(f"in/{i}.wav", seconds=0.2, sample_rate=48_000)

    def run(model=None, n_workers=0) -> Usage:
        model = model or OnDevice("cpu")
        return extract(model, find_sources([str(tmp_path / "in")]), tmp_path / "out", workers=n_workers).usage

    return run


@pytest.mark.parametrize(
    ("n_workers", "limit"), [(0, "decoding: no workers"), pytest.param(1, "decoding: 1 worker", marks=forked)]
)
def test_a_slow_decoder_is_named(usage_of, monkeypatch, n_workers, limit):
    monkeypatch.setattr(workers, "read", slow(workers.read, LONGER_SECONDS if n_workers else SECONDS))
    usage = usage_of(n_workers=n_workers)
    assert usage.limit == limit
    assert max(usage.busy, key=usage.busy.get) == "decode"


def test_a_slow_resampler_is_named(usage_of, monkeypatch):
    once = reading._once
    monkeypatch.setattr(reading, "_once", lambda *rates: slow(once(*rates)))
    assert usage_of().limit == "resampling: no workers"


def test_a_slow_decoder_of_long_files_is_named(usage_of, monkeypatch):
    monkeypatch.setattr("hear_transformers.embedding.pipeline.LONG_SECONDS", 0.1)
    monkeypatch.setattr(reading.AudioFile, "_mono", slow(reading.AudioFile._mono))
    assert usage_of().limit == "decoding: no workers"


@pytest.mark.parametrize("n_workers", [0, 2])
def test_a_slow_network_is_named(usage_of, n_workers):
    model = OnDevice("cpu")
    model.embed_scenes = slow(model.embed_scenes, LONGER_SECONDS if n_workers else SECONDS)
    usage = usage_of(model, n_workers)
    assert usage.limit == "the network"
    assert usage.spent.computing >= 12 * SECONDS


@pytest.mark.parametrize("n_workers", [0, pytest.param(2, marks=forked)])
def test_a_slow_disk_is_named(usage_of, monkeypatch, n_workers):
    write = slow(folder_output.FolderOfFiles.write, LONGER_SECONDS if n_workers else SECONDS)
    monkeypatch.setattr(folder_output.FolderOfFiles, "write", write)
    usage = usage_of(n_workers=n_workers)
    assert usage.limit == "writing"
    assert max(usage.busy, key=usage.busy.get) == "write"


def test_counts_and_rates_are_those_of_what_was_written(usage_of):
    usage = usage_of()
    assert usage.n_clips == 12
    assert usage.audio_seconds == pytest.approx(12 * 0.2)
    assert usage.hours_per_hour == pytest.approx(usage.audio_seconds / usage.seconds)
    again = usage_of()
    assert (again.n_clips, again.audio_seconds) == (0, 0.0)


def test_shares_are_of_all_devices_and_workers():
    spent = Spent(devices=2, workers=4, reading=32.0, resampling=12.0, waiting=2.0, computing=16.0, writing=1.0)
    usage = Usage(n_clips=100, audio_seconds=1000.0, seconds=10.0, spent=spent)
    assert usage.busy == pytest.approx({"decode": 0.5, "resample": 0.3, "network": 0.8, "write": 0.1})
    assert str(usage) == (
        "10 clips/s, 100 h of audio per hour; busy: decode 50 %, resample 30 %, network 80 %, write 10 %; "
        "limited by the network"
    )
    assert usage.as_record()["limited_by"] == "the network"
    assert usage.busy.keys() == WORDS.keys()


@pytest.mark.parametrize("seconds", [0.0, 10.0])
def test_a_run_that_waits_for_nothing_is_limited_by_what_is_left(seconds):
    assert Usage(0, 0.0, seconds, Spent()).limit in (OVERHEAD, "decoding: no workers")


def test_time_within_is_counted_once():
    spent = Spent()
    with spent.on("computing"), spent.on("waiting"):
        time.sleep(0.02)
    assert spent.waiting >= 0.02 > spent.computing


def test_the_command_says_it_for_more_than_a_few_files(embed_audio, audio_file):
    for i in range(11):
        audio_file(f"in/{i:02d}.wav", seconds=0.1)
    assert "limited by" not in embed_audio("in/00.wav", "--out=one").stderr
    assert "; limited by " in embed_audio("in", "--out=out").stderr
    for silent in ("--quiet", "--json"):
        assert embed_audio("in", f"--out=out{silent}", silent).stderr == ""
    lines = [json.loads(line) for line in embed_audio("in", "--out=json", "--json").stdout.splitlines()]
    assert [line["input"] for line in lines] == [f"in/{i:02d}.wav" for i in range(11)]
    *others, last = lines
    assert not any("run" in line for line in others)
    assert last["run"]["clips"] == 11
    assert last["run"].keys() >= {"clips_per_second", "audio_hours_per_hour", "busy", "limited_by"}
    assert last["status"] == "written"
