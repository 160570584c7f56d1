"""A batch job's log says how far it is: soon, then at most every 30 s and every percent, and at the end."""

import pytest
from hear_transformers.cli.progress import LinesOfProgress, clock_time


class Clock:
    """A clock that is moved by hand."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


def lines_of(capsys, total: int, seconds_each: float, **each) -> list[tuple[float, str]]:
    clock = Clock()
    progress = LinesOfProgress(total, "files", clock)
    progress.start("Embedding")
    printed = [(0.0, capsys.readouterr().err.strip())]
    for _ in range(total):
        clock.now += seconds_each
        progress.update(**each)
        if text := capsys.readouterr().err.strip():
            printed.append((clock.now - 100.0, text))
    progress.finish()
    return [*printed, (clock.now - 100.0, capsys.readouterr().err.strip())]


@pytest.mark.parametrize(
    ("total", "seconds_each", "times"),
    [
        (20, 0.1, [0, 2]),  # soon done
        (5, 20.0, [0, 20, 60, 100]),  # every 30 s, as files come: 20, 60 (of 50), the end
        (10_000, 0.01, [0, 5, 35, 65, 95, 100]),  # every 30 s
        (200, 100.0, [0, *range(100, 20_000, 200), 20_000]),  # every percent, two files
    ],
)
def test_a_line_comes_soon_then_every_30_s_or_percent(capsys, total, seconds_each, times):
    printed = lines_of(capsys, total, seconds_each)
    assert [round(time) for time, _ in printed] == times


def test_a_line_says_what_is_done_how_fast_and_what_is_left(capsys):
    start, first, *_, end = (text for _, text in lines_of(capsys, 100, 10.0, seconds=360.0))
    assert start == "Embedding: 100 files"
    assert first == "1/100 files, 0 failed, 0.1 h of audio, 36 x real time, 0:16:30 left"
    assert end == "100/100 files, 0 failed, 10 h of audio, 36 x real time, 0:16:40 in all"


def test_failures_are_counted_and_what_took_no_time_does_not_tell_how_long_the_rest_takes(capsys):
    clock = Clock()
    progress = LinesOfProgress(100, "files", clock)
    for _ in range(50):
        progress.update(worked=False)
    clock.now += 10.0
    progress.update(failed=True, worked=False)
    assert capsys.readouterr().err == "51/100 files, 1 failed\n"
    clock.now += 30.0
    progress.update(worked=True)
    assert capsys.readouterr().err == "52/100 files, 1 failed, 0:32:00 left\n"


@pytest.mark.parametrize(
    ("seconds", "text"), [(0.4, "0:00:00"), (59.6, "0:01:00"), (3_723, "1:02:03"), (1e6, "277:46:40")]
)
def test_a_duration_is_written_as_a_clock_shows_it(seconds, text):
    assert clock_time(seconds) == text


def test_the_log_of_a_batch_job_speaks(embed_audio, audio_file):
    for i in range(11):
        audio_file(f"in/{i:02d}.wav", seconds=0.1)
    audio_file("in/bad.wav").write_text("text")
    begin, *_, end = embed_audio("in", "--out=out").stderr.splitlines()
    assert begin == "Embedding: 12 files"
    assert end.startswith("12/12 files, 1 failed, 0.000306 h of audio, ")
    assert end.endswith(" in all")
    for silent in ("--quiet", "--json"):
        errors = embed_audio("in", "--out=out", silent).stderr.splitlines()
        assert [line for line in errors if not line.startswith("Error: ")] == []
