"""The model of large jobs: what it reads is what was measured, its limits are those of the slowest part."""

import json
import re

import pytest
from click.testing import CliRunner

from hear_transformers.errors import HearTransformersError

scale = pytest.importorskip("hear_transformers.benchmarks.scale", reason="Windows has no module resource")

COST = scale.Cost(decode=0.004, resample=0.004, main=0.001, write=0.001)
STARTED = {"command": 0.0, "worker": 0.0}


def feed_of(network: float, cores: int = 16, cost: "scale.Cost" = COST, **start_s: float) -> "scale.Feed":
    found = scale.Figures({"wav": cost}, {}, [], 1, 1, {**STARTED, **start_s})
    return scale.Feed.of(found, "wav", network, cores)


def rows_of(*arguments: str) -> list[list[str]]:
    result = CliRunner().invoke(scale.main, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


# What it reads


def test_tables_of_a_document_are_read_by_column():
    text = "text\n\n| a | b |\n|---|--:|\n| 1 | 2 (3%) |\n| 4 | 5 |\n\n| c |\n| --- |\n| 6 |\n"
    assert scale.tables_of(text) == [[{"a": "1", "b": "2 (3%)"}, {"a": "4", "b": "5"}], [{"c": "6"}]]


def test_a_table_that_is_not_there_is_named():
    with pytest.raises(HearTransformersError, match="no table with the columns speed"):
        scale.table_with([[{"a": "1"}]], "speed")


def test_figures_are_those_of_the_tables():
    document = scale.DOCUMENT.read_text(encoding="utf-8")
    found = scale.figures()
    (wav,) = re.findall(r"^\| wav \|.*$", document, re.MULTILINE)
    *_, main, _, others, _ = (cell.strip() for cell in wav.strip("|").split("|"))
    assert 1000 * found.costs["wav"].main == pytest.approx(float(main))
    assert 1000 * (found.costs["wav"].total - found.costs["wav"].main) == pytest.approx(float(others), rel=2e-3)
    (passt,) = re.findall(r"^\| `passt/base` \| float32 \|.*\| ([\d,]+) \(\d+%\) \|$", document, re.MULTILINE)
    assert found.networks["passt/base", "float32"] == float(passt)


def test_measured_shares_are_of_all_formats_and_say_how_they_were_measured():
    measured = json.loads(scale.FILE.read_text(encoding="utf-8"))
    assert measured["command"].endswith("scale measure")
    assert {*measured["shares"]} == {*scale.figures().costs}
    assert all(sum(parts.values()) == pytest.approx(1.0, abs=2e-3) for parts in measured["shares"].values())


def test_the_page_shows_what_the_commands_print():
    page = scale.PAGE.read_text(encoding="utf-8")
    assert scale.with_tables(page, scale.figures()) == page


# What it computes


@pytest.mark.parametrize(
    ("network", "cores", "cost", "limit", "rate"),
    [
        (100.0, 16, COST, "network", 100.0),
        (1e6, 4, scale.Cost(0.004, 0.004, 1e-4, 1e-4), "decoding", 375.0),
        (1e6, 64, scale.Cost(1e-5, 1e-5, 0.001, 1e-5), "one process", 1000.0),
        (1e6, 2, scale.Cost(0.001, 0.001, 0.004, 0.004), "cores", 200.0),
    ],
)
def test_the_slowest_part_limits(network, cores, cost, limit, rate):
    one = feed_of(network, cores, cost)
    assert (one.limit, one.rate) == (limit, pytest.approx(rate))


def test_a_long_run_takes_as_long_as_its_slowest_part():
    one = feed_of(100.0)
    assert one.seconds(10**6) == pytest.approx(10**4, rel=1e-2)
    assert one.run(2000).limit == "network"


def test_many_cards_share_the_clips_until_starting_takes_longer():
    one = feed_of(100.0, command=10.0)
    seconds, limit = scale.limit_at(one, 10, 10**6, None, 1e6)
    assert (seconds, limit) == (pytest.approx(1010.0, rel=1e-2), "network")
    assert scale.limit_at(one, 10_000, 10**6, None, 1e6)[1] == "starting"


def test_storage_limits_what_reads_faster():
    assert scale.limit_at(feed_of(100.0), 1000, 10**6, 1e9, 1e6) == (1000.0, "storage")


def test_prices_are_a_sum_of_amounts_and_left_out_without_all_of_them():
    given = ("--card-hour", "2", "--core-hour", "0", "--gb-month", "0.5", "--months", "2")
    name, _, cards, cores, gigabytes, price = rows_of("price", *given)[0]
    assert name == "`passt/base`"
    assert scale.number(cores) == pytest.approx(16 * scale.number(cards), rel=1e-2)
    assert scale.number(price) == pytest.approx(2 * scale.number(cards) + scale.number(gigabytes), abs=2)
    assert len(rows_of("price", "--card-hour", "2")[0]) == 5


def test_runs_with_a_card_that_it_was_not_made_from_are_predicted():
    found = rows_of("disk")
    assert len(found) == 3
    assert all(abs(float(row[-1]) - 1) <= scale.WITHIN for row in found)


def test_a_run_that_misses_says_so():
    assert scale.verdict(1.3, 1.0) == "1.30, missed"
    assert scale.verdict(0.9, 1.0) == "0.90"


@pytest.mark.slow
def test_runs_of_this_machine_are_predicted_and_measured():
    options = ("--clips", "3", "--measured-clips", "2", "--num-workers", "0", "--model", "efficientat/mn01_as")
    result = CliRunner().invoke(scale.main, ["validate", *options])
    (row,) = [line for line in result.output.splitlines() if line.startswith("| 0 |")]
    cells = [float(cell.split(",")[0]) for cell in row.strip("| ").split("|")]
    assert cells[3] == pytest.approx(cells[1] / cells[2], rel=0.2)
    assert all(cell > 0 for cell in cells[1:])


@pytest.mark.slow
def test_shares_are_measured_and_written(tmp_path, monkeypatch):
    monkeypatch.setattr(scale, "START", "pass")
    out = tmp_path / "scale.json"
    result = CliRunner().invoke(scale.main, ["measure", "--clips", "3", "--out", str(out)], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    found = json.loads(out.read_text(encoding="utf-8"))
    assert {*found} == {"command", "machine", "shares", "start_s"}
    assert found["shares"].keys() == scale.feed.FORMATS.keys()
