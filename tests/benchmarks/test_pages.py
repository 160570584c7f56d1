"""Pages of HEAR scores say what their tables say, and nothing is made up."""

import csv
import shutil
from collections.abc import Sequence
from pathlib import Path

import pytest
from click.testing import CliRunner, Result

from hear_transformers import FAMILIES, catalogue, efficientat
from hear_transformers.benchmarks import pages
from hear_transformers.errors import HearTransformersError

FOLDER = Path(__file__).parents[2] / "weights" / "hear"
TASKS = 19  # hearbenchmark.com/hear-tasks.html

with (FOLDER / "published.csv").open(encoding="utf-8", newline="") as file:
    PUBLISHED = list(csv.DictReader(file))
SYSTEMS = {row["system"]: row for row in PUBLISHED}
ESC50, ESC10 = "esc50-v2.0.0-full", "esc10-v1.0.0-full"


def result(family: str, task: str, score: str, system: str = "some.system", metric: str = "top1_acc") -> str:
    return f'{family},{system},{task},{metric},{score},,1,2.5,,"grid default, points 8"'


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Copy what is published, without results."""
    shutil.copy(FOLDER / "published.csv", tmp_path)
    header, *_ = (FOLDER / "results.csv").read_text(encoding="utf-8").splitlines()
    (tmp_path / "results.csv").write_text(f"{header}\n")
    return tmp_path


def made(folder: Path, family: str, results: Sequence[str] = ()) -> str:
    with (folder / "results.csv").open("a") as file:
        file.writelines(f"{line}\n" for line in results)
    return pages.format_pages(folder)[folder / f"{family}.md"]


def command(monkeypatch: pytest.MonkeyPatch, folder: Path, *arguments: str) -> Result:
    monkeypatch.setattr(pages, "FOLDER", folder)
    return CliRunner().invoke(pages.pages_command, arguments)


def tables(page: str) -> tuple[list[list[str]], str]:
    """Return the cells of the first table, and the text below it."""
    above, below = page.split("## Other tasks")
    lines = [line for line in above.splitlines() if line.startswith("|")]
    return [[cell.strip() for cell in line.strip("|").split("|")] for line in lines], below


# What is committed


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_is_what_the_command_writes(family: str) -> None:
    path = FOLDER / f"{family}.md"
    assert path.read_text(encoding="utf-8") == pages.format_pages(FOLDER)[path]


def test_no_page_is_of_no_family() -> None:
    assert {path.stem for path in FOLDER.glob("*.md")} == set(FAMILIES)


@pytest.mark.parametrize("family", FAMILIES)
def test_the_page_has_every_task_once(family: str) -> None:
    (_, _, *lines), _ = tables((FOLDER / f"{family}.md").read_text(encoding="utf-8"))
    names = [cells[0] for cells in lines]
    assert len(names) == TASKS
    assert set(names) == {row["task"] for row in PUBLISHED}


@pytest.mark.parametrize("system", SYSTEMS)
def test_a_published_system_has_every_task_once(system: str) -> None:
    tasks = dict.fromkeys(row["task"] for row in PUBLISHED)
    assert [row["task"] for row in PUBLISHED if row["system"] == system] == list(tasks)


def test_a_task_has_one_metric_and_one_folder() -> None:
    assert len({(row["task"], row["folder"], row["metric"]) for row in PUBLISHED}) == TASKS


def test_published_scores_are_within_their_range() -> None:
    assert [row for row in PUBLISHED if row["score"] and not 0 <= float(row["score"]) <= 1] == []


@pytest.mark.parametrize("system", [name for name, row in SYSTEMS.items() if row["variant"]])
def test_what_a_published_system_is_called_here_exists(system: str) -> None:
    assert SYSTEMS[system]["variant"] in catalogue.family(SYSTEMS[system]["family"]).VARIANTS


def test_mn04_is_as_large_as_published() -> None:
    row = SYSTEMS["CP-JKU mn04_as (e1+l)"]
    model = efficientat.load_model(variant=row["variant"], layer=row["layer"], pretrained=False)
    assert model.scene_embedding_size == model.timestamp_embedding_size == 911  # HEAR's leaderboard


# What is made of results


def test_empty_cells_are_said_to_be_empty(folder: Path) -> None:
    page = made(folder, "passt")
    lines, _ = tables(page)
    assert ["Beehive States", "AUCROC", "-", "-", "-", "-"] in lines
    assert 'the leaderboard has no score of it. "-" below "run here": the data of the task was not at hand' in page


def test_a_score_of_a_hear_task_stands_beside_the_published_ones(folder: Path) -> None:
    lines, below = tables(made(folder, "panns", [result("panns", ESC50, "0.75")]))
    assert lines[0] == ["task", "metric", "CVSSP PANNS", "run here: some.system"]
    assert ["ESC-50", "Accuracy", "0.909", "0.750"] in lines
    assert "None was run yet." in below


def test_the_first_metric_of_a_hear_task_counts(folder: Path) -> None:
    both = [result("ast", ESC50, "0.75"), result("ast", ESC50, "0.875", metric="mAP")]
    lines, _ = tables(made(folder, "ast", both))
    assert ["ESC-50", "Accuracy", "0.750"] in lines


def test_a_score_of_another_task_stands_below(folder: Path) -> None:
    lines, below = tables(made(folder, "ast", [result("ast", ESC10, "0.75")]))
    assert lines[0] == ["task", "metric", "run here"]
    assert "| some.system | 0.750 |" in below
    assert "grid default, points 8" in below


def test_a_score_is_on_the_page_of_its_family_alone(folder: Path) -> None:
    assert "some.system" not in made(folder, "mast", [result("ast", ESC10, "0.75")])


def test_a_baseline_is_on_the_pages_of_families_that_were_run(folder: Path) -> None:
    page = made(folder, "ast", [result("ast", ESC10, "0.75"), result("", ESC10, "0.5", system="hearbaseline.naive")])
    assert "| hearbaseline.naive | 0.500 |" in page
    assert "hearbaseline" not in made(folder, "mast")


@pytest.mark.parametrize("line", [result("unknown", ESC10, "0.75"), result("ast", ESC10, "high"), "ast,only"])
def test_a_damaged_result_is_named_by_its_line(folder: Path, line: str) -> None:
    with pytest.raises(HearTransformersError, match=r"results\.csv, line 2: .*expected nothing or one of tiny, passt"):
        made(folder, "ast", [line])


# The command


def test_check_accepts_what_was_written(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert command(monkeypatch, folder).exit_code == 0
    assert command(monkeypatch, folder, "--check").exit_code == 0


def test_check_names_a_page_that_differs_and_leaves_it(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    command(monkeypatch, folder)
    (folder / "mast.md").write_text("edited")
    checked = command(monkeypatch, folder, "--check")
    assert checked.exit_code == 1
    assert f"{folder / 'mast.md'} is not what" in checked.stderr
    assert (folder / "mast.md").read_text() == "edited"


def test_outside_a_checkout_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert "in a checkout of the repository only" in command(monkeypatch, tmp_path / "site-packages").stderr


def test_results_of_a_run_are_taken_over_with_their_families() -> None:
    systems = ("hear_transformers.passt-layer=8", "hear_transformers.tiny", "hearbaseline.naive")
    scores = [pages.Score(system, ESC10, "top1_acc", 0.5, None, 1, None, None, "grid") for system in systems]
    rows = list(csv.DictReader(pages.format_results(scores).splitlines()))
    assert [(row["family"], row["system"]) for row in rows] == list(zip(("passt", "tiny", ""), systems, strict=True))
