"""The page of embeddings, in a browser: what is clicked is named and heard, and nothing leaves the page."""

import csv
import json
import re
from pathlib import Path

import numpy as np
import pytest

from hear_transformers.errors import OptionError
from hear_transformers.explore import labels, maps, page, reading
from hear_transformers.explore.similarity import Index
from tests.helpers.browser import browser
from tests.helpers.tables_of_embeddings import write_table

HOSTILE = "<img src=x onerror=alert(1)> </script><b>.wav"


@pytest.fixture
def explore(installed_command):
    command = installed_command("hear-transformers")
    return lambda *arguments: command("explore", *arguments, "--map", "pca")


@pytest.fixture
def table(audio_file, tmp_path):
    """Twelve sounds of 3 s in folders of two labels, one of a hostile name; rows begin after 1 s."""
    files = [str(audio_file(f"{'dog' if i < 6 else 'cat'}/{i}.wav", seconds=3.0)) for i in range(11)]
    vectors = np.random.default_rng(0).normal(size=(12, 8))
    vectors[1] = vectors[0]
    parts = {"start": [1.0] * 12, "end": [3.0] * 12}
    return write_table(tmp_path / "t.parquet", vectors, [*files, str(tmp_path / "cat" / HOSTILE)], **parts)


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


@pytest.fixture(autouse=True)
def may_be_left(request):
    """Let the browser leave a page with labels that were not saved."""
    yield
    if "chromium" in request.fixturenames:
        request.getfixturevalue("chromium").run("typeof unsaved === 'undefined' || (unsaved = false)")


def data_of(path) -> dict:
    text = re.search(r'<script type="application/json" id="data">(.*?)</script>', path.read_text("utf-8"), re.S)[1]
    return json.loads(text)


WHERE = "(() => { const box = canvas.getBoundingClientRect(), [x, y] = place(%d); return [box.x + x, box.y + y]; })()"


@pytest.mark.parametrize("sound", ["link", "embed"])
def test_a_point_is_named_and_heard_and_has_neighbours(explore, table, tmp_path, chromium, sound):
    assert explore(table, "--sound", sound).exit_code == 0
    chromium.requests.clear()
    chromium.open(tmp_path / "t.parquet.html")
    chromium.click(*chromium.run(WHERE % 3))
    assert chromium.run("of('hover').textContent").startswith("3.wav")
    assert chromium.run("of('name').textContent") == "3.wav"
    chromium.wait("audio.currentTime > 1.2")
    assert chromium.run("document.querySelectorAll('#neighbours button').length") == page.N_NEIGHBOURS
    chromium.run("document.querySelector('#neighbours button').click()")
    first = data_of(tmp_path / "t.parquet.html")["near"][3][1]
    assert chromium.run("chosen") == first
    chromium.wait("audio.paused === false || !of('problem').hidden")
    assert chromium.run("of('pairs').querySelectorAll('button').length") == 2
    assert chromium.problems == []
    assert all(each.startswith(("file:", "data:")) for each in chromium.requests), chromium.requests


def test_search_and_labels_filter(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("of('search').value = '10.wav'; of('search').dispatchEvent(new Event('input'))")
    assert chromium.run("shown") == [10]
    chromium.run("of('search').value = ''; of('filter').value = data.labels.indexOf('dog')")
    chromium.run("of('filter').dispatchEvent(new Event('change'))")
    assert chromium.run("shown") == [0, 1, 2, 3, 4, 5]
    assert chromium.run("of('count').textContent").startswith("6 of 12 points")


def name_it(chromium, text: str) -> None:
    """Type a label for the chosen point, and press Enter."""
    chromium.run(f"of('label').value = {json.dumps(text)}; of('labelling').requestSubmit()")


def test_a_label_colours_its_point_and_is_a_row_of_the_table(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("choose(3)")
    name_it(chromium, "bark, twice")
    chromium.run("choose(0)")
    name_it(chromium, "dog")
    assert chromium.run("[labelOf(3), labelOf(0)]") == ["bark, twice", "dog"]
    assert "bark, twice (1)" in chromium.run("of('legend').textContent")
    text = chromium.run("table()")
    rows = list(csv.DictReader(text.splitlines()))
    assert [(Path(row["path"]).name, row["labels"]) for row in rows] == [("0.wav", "dog"), ("3.wav", "bark, twice")]
    assert all(Path(row["path"]).is_absolute() for row in rows)
    (tmp_path / "labels.csv").write_text(text)
    found = labels.from_table(reading.read(table), tmp_path / "labels.csv", {})
    assert {i: text for i, text in enumerate(found) if text} == {0: "dog", 3: "bark, twice"}
    assert chromium.problems == []


def test_a_label_that_is_emptied_is_taken_back(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("choose(3)")
    name_it(chromium, "cat")
    name_it(chromium, " ")
    assert chromium.run("[labelOf(3), of('save').disabled, table()]") == ["dog", True, "path,start,end,labels\n"]


def test_labels_that_are_not_saved_keep_the_page_open(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    leaving = (
        "(() => { const event = new Event('beforeunload', { cancelable: true }); return dispatchEvent(event); })()"
    )
    assert chromium.run(leaving) is True
    chromium.run("choose(3)")
    name_it(chromium, "dog")
    assert chromium.run(leaving) is False
    chromium.run("HTMLAnchorElement.prototype.click = function () { window.saved = [this.download, this.href]; }")
    chromium.run("of('save').click()")
    assert chromium.run("saved[0]") == "labels.csv"
    assert chromium.run("saved[1].startsWith('blob:')")
    assert chromium.run(leaving) is True


def test_a_label_needs_a_point(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    name_it(chromium, "dog")
    assert chromium.run("own.size") == 0
    assert "Click a point first" in chromium.run("of('labelled').textContent")


def test_a_hostile_name_is_shown_and_never_run(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("choose(11)")
    # The slash of "</script>" parts the name as it does a path.
    assert HOSTILE in chromium.run("of('about').textContent")
    assert chromium.run("document.querySelectorAll('img, b').length") == 0
    assert "not found" in chromium.run("of('problem').textContent")
    assert chromium.problems == []


def test_the_page_forbids_the_network(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    answer = "fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')"
    assert chromium.run(answer) == "refused"
    assert any("Content Security Policy" in problem for problem in chromium.problems)
    chromium.problems.clear()


def test_times_of_a_file_are_compared_below_its_spectrogram(explore, audio_file, tmp_path, chromium):
    file = str(audio_file(seconds=3.0))
    vectors = np.random.default_rng(0).normal(size=(6, 8))
    explore(write_table(tmp_path / "t.parquet", vectors, [file] * 6, np.arange(6) / 2, np.arange(6) / 2 + 0.5))
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("choose(0)")
    assert chromium.run("[of('similarity').width, of('similarity').height, of('spectrogram').height]") == [6, 6, 48]
    chromium.run("of('similarity').click()")
    assert chromium.run("chosen") == 0
    assert chromium.problems == []


def test_keys_choose_a_point(explore, table, tmp_path, chromium):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html")
    chromium.run("canvas.focus()")
    chromium.press("ArrowRight")
    chromium.press("Enter")
    assert chromium.run("chosen >= 0 && chosen === hovered")


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_is_as_wide_as_the_window(explore, table, tmp_path, chromium, width):
    explore(table)
    chromium.open(tmp_path / "t.parquet.html", width)
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run("canvas.clientWidth > 300 && canvas.clientHeight > 300")


def test_more_rows_than_points_are_sampled_and_it_is_said(tmp_path, explore, monkeypatch):
    monkeypatch.setattr(page, "MOST_POINTS", 20)
    vectors = np.random.default_rng(0).normal(size=(50, 4))
    assert "(20 of 50 rows" in explore(write_table(tmp_path / "t.parquet", vectors)).stdout
    found = data_of(tmp_path / "t.parquet.html")
    assert (found["rows"], len(found["x"])) == (50, 20)


def test_samples_along_time_are_of_whole_files(tmp_path, monkeypatch):
    monkeypatch.setattr(page, "MOST_POINTS", 20)
    files = [f"{i // 6}.wav" for i in range(60)]
    rows = page.sample(reading.read(write_table(tmp_path / "t.parquet", np.eye(60), files)))
    assert np.bincount(rows.file).tolist() == [6, 6, 6]


def test_components_are_those_of_an_exact_decomposition():
    vectors = np.random.default_rng(0).normal(size=(200, 30)) * np.linspace(5, 1, 30)
    vectors -= vectors.mean(0)
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    found = maps.components(vectors.astype(np.float32))
    np.testing.assert_allclose(np.abs(found[:, :2]), np.abs(left * sizes)[:, :2], atol=1e-2)


def test_clusters_are_found():
    points = np.repeat(np.eye(3), [10, 30, 20], 0) * 9 + np.random.default_rng(0).normal(size=(60, 3))
    assert maps.clusters(points, 3).tolist() == [2] * 10 + [0] * 30 + [1] * 20


def test_labels_of_parts_are_of_the_rows_that_they_touch(tmp_path):
    table = write_table(tmp_path / "t.parquet", np.eye(3), ["a.wav", "a.wav", "b.wav"], [0, 5, 0], [2, 7, 2])
    (tmp_path / "labels.csv").write_text("path,labels,start,end\na.wav,dog,1,3\na.wav,cat,0,8\n")
    assert labels.from_table(reading.read(table), tmp_path / "labels.csv", {}) == ["cat, dog", "cat", ""]


def test_labels_of_other_files_are_refused(tmp_path):
    (tmp_path / "labels.csv").write_text("path,labels\nz.wav,dog\n")
    with pytest.raises(OptionError, match=r"labels no file of .*t\.parquet; it has .*z\.wav, the embeddings"):
        labels.from_table(reading.read(write_table(tmp_path / "t.parquet", np.eye(3))), tmp_path / "labels.csv", {})


@pytest.mark.parametrize("n_rows", [1, 2, 3])
def test_few_rows_are_a_page_too(tmp_path, n_rows):
    index = Index(reading.read(write_table(tmp_path / "t.parquet", np.eye(n_rows, 4))))
    page.write_page(index, tmp_path / "p.html", None, [None] * n_rows, n_rows=n_rows, method="pca")
    assert len(data_of(tmp_path / "p.html")["x"]) == n_rows
