"""The tables of a card, in small and on the CPU; and all sections of it, each in its time."""

import sys

import pytest
from click.testing import CliRunner

from hear_transformers.benchmarks import bulk, card
from hear_transformers.benchmarks.card import Section

SMALL = "efficientat/mn01_as"

pytestmark = [
    pytest.mark.slow,
    pytest.mark.filterwarnings("ignore:precision='bfloat16' is slow:hear_transformers.errors.HearTransformersWarning"),
]


@pytest.fixture(autouse=True)
def _short(monkeypatch):
    monkeypatch.setattr(card, "CLIP_SECONDS", 1.0)
    monkeypatch.setattr(card, "MAST_SECONDS", 1.0)


def rows(*arguments: str) -> list[list[str]]:
    """Run a section; give the cells of its table, without the two lines of the head."""
    result = CliRunner().invoke(card.main, [*arguments, "--device", "cpu"], catch_exceptions=False)
    assert result.exit_code == 0, result.output
    lines = [line for line in result.output.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines[2:]]


def number(cell: str) -> float:
    return float(cell.split()[0].rstrip("%").replace(",", ""))


def test_matrix_products_are_measured_in_three_precisions():
    found = rows("gemm", "--size", "64")
    assert [name for name, *_ in found] == ["bfloat16", "tf32", "float32"]
    assert all(number(rate) > 0 for *_, rate in found)


def test_networks_are_measured_in_batches_of_every_size():
    options = ("--model", SMALL, "--batch", "1", "--batch", "2", "--size", "64", "--seconds", "0.05")
    found = rows("resident", *options)
    assert [row[:2] for row in found] == [[f"`{SMALL}`", "bfloat16"], [f"`{SMALL}`", "float32"]]
    assert all(number(cell) > 0 and cell.endswith("%)") for row in found for cell in row[2:])


def test_a_batch_that_fails_leaves_the_others(monkeypatch):
    def time_network(model, audio, n_clips, seconds):
        if n_clips == 2:
            raise RuntimeError("no|room\nfor it")
        return 1234.5

    monkeypatch.setattr(card, "time_network", time_network)
    row = card.resident_row(SMALL, "cpu", "float32", (1, 2, 3), 1e12, 0.1, compiled=False)
    assert row[3] == "RuntimeError: no/room"
    assert row[2] == row[4]
    assert row[2].startswith("1,234 (")


def test_from_disk_beside_the_network_and_the_decoders():
    options = ("--clips", "3", "--files", "2", "--num-workers", "1", "--repeats", "1", "--seconds", "0.05")
    ((name, precision, rate, alone, *shares),) = rows("disk", "--model", SMALL, "--precision", "float32", *options)
    assert (name, precision) == (f"`{SMALL}`", "float32")
    assert number(rate) > 0
    assert number(shares[0]) == pytest.approx(100 * number(rate) / number(alone), rel=0.05, abs=1)
    assert number(shares[2]) == max(map(number, shares[:2]))


def test_clips_are_links_to_files_that_differ(tmp_path):
    sources = card.write_clips(tmp_path, clips=5, files=3)
    contents = [source.path.read_bytes() for source in sources]
    assert len({source.path for source in sources}) == 5
    assert len(set(contents)) == 3


def test_windows_and_native_frames_along_time():
    options = ("--model", SMALL, "--audio-seconds", "0.5", "--precision", "float32", "--seconds", "0.05")
    windowed, native = rows("timestamps", *options)
    assert windowed[1] == "framing windowed"
    assert native[1] == "framing native, layer 8"
    assert number(windowed[3]) > 0 < number(native[3])


def test_two_models_take_turns():
    options = ("--model", SMALL, "--model", "efficientat/mn02_as", "--batch", "2", "--repeats", "1")
    found = rows("mast", *options)
    assert [row[:2] for row in found] == [["2", "float32"], ["2", "bfloat16"]]
    assert all(number(row[4]) > 0 and number(row[5]) > 1 for row in found)


def test_a_section_that_fails_or_takes_too_long_says_so_and_the_others_go_on(monkeypatch):
    module = f"{card.__package__}.card"
    commands = {"good": "print('| 1 |')", "bad": "raise SystemExit('no room')", "slow": "import time; time.sleep(60)"}
    sections = [Section(name, 1.0 if name == "slow" else 60.0, "card", (name,)) for name in commands]
    monkeypatch.setattr(card, "SECTIONS", sections)
    real_run = card.subprocess.run

    def run(command, **options):
        assert command[:3] == [sys.executable, "-m", module]
        assert command[4:] == ["--device", "cpu"]
        return real_run([sys.executable, "-c", commands[command[3]]], **options)

    monkeypatch.setattr(card.subprocess, "run", run)
    result = CliRunner().invoke(card.main, ["all", "--device", "cpu"], catch_exceptions=False)
    assert "### good" in result.output
    assert "### bad\n\n\nNot measured to its end: no room" in result.output
    assert "### slow\n\n\nThe rest is left out: 1 s are over." in result.output
    result = CliRunner().invoke(card.main, ["all", "--device", "cpu", "--seconds", "0"], catch_exceptions=False)
    assert result.output.count("Left out: there was no time.") == 3


def test_the_sections_are_commands_with_their_options():
    for section in card.SECTIONS:
        if section.module == "card":
            name, *options = section.arguments
            card.main.commands[name].make_context(name, options)


def test_a_network_is_repeated_at_least_once_and_for_its_time():
    runs = []

    def run():
        runs.append(1)
        return card.torch.ones(1)

    assert bulk.times_a_second(run, 0.0) > 0
    assert len(runs) == bulk.UNCOUNTED + 1
