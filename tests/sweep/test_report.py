"""The report of a sweep: tables that are read again, words that are true, and a page to look at in a browser."""

import dataclasses
import json
import math
import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hear_transformers.errors import OptionError
from hear_transformers.sweep import findings, report, results, words
from hear_transformers.sweep.results import Row
from tests.helpers.browser import browser
from tests.helpers.sweeps import rows as synthetic

HOSTILE = "<img src=x onerror=alert(1)> </script><b>`|*$x$"

BASE = Row(
    task="esc",
    model="tiny",
    layer="9",
    pool="mean",
    framing="windowed",
    window_ms=640.0,
    hop_ms=50.0,
    probe="logistic",
    clips_per_class=None,
    metric="accuracy",
    is_main=True,
    value=0.9,
    low=0.85,
    high=0.94,
    size=192,
    clips=300,
    seconds_per_hour=10.0,
    command="embed-audio data --layer 9",
)


def row(value: float = 0.9, half: float = 0.02, **changes) -> Row:
    return dataclasses.replace(BASE, **{"value": value, "low": value - half, "high": value + half, **changes})


def test_what_is_not_known_is_null_in_json():
    found = results.for_json(row(low=math.nan, high=math.nan, seconds_per_hour=math.nan))
    assert (found["value"], found["low"], found["high"], found["seconds_per_hour"]) == (0.9, None, None, None)
    assert json.loads(json.dumps(found, allow_nan=False)) == found


@pytest.fixture(scope="module")
def some():
    """A grid of two tasks and two models: 2 x 2 x 6 layers x 3 pools x 3 windows x 2 hops, two metrics."""
    axes = {
        "windows": (160, 640, 2560),
        "hops": (25, 50),
        "pools": ("mean", "cls"),
        "layers": ("0", "4", "9", "10", "12"),
    }
    return synthetic(("ESC-10", "events"), ("tiny", "passt/base (random)"), **axes)


@pytest.fixture(scope="module")
def written(some, tmp_path_factory):
    out = tmp_path_factory.mktemp("report")
    return report.write(out, some, title="A sweep")


@pytest.fixture(scope="module")
def chromium(tmp_path_factory):
    with browser(tmp_path_factory.mktemp("profile")) as opened:
        yield opened


def page_of(folder, rows):
    """Write the page alone, without the pictures."""
    (folder / "report.html").write_text(report.page(rows, findings.findings_of(rows), "A sweep"), encoding="utf-8")
    return folder / "report.html"


# Tables

TEXTS = st.text(st.characters(exclude_characters="\0", exclude_categories=["Cs"]))
FLOATS = st.floats(allow_nan=False)
ROWS = st.builds(
    Row,
    **dict.fromkeys(("task", "model", "layer", "pool", "framing", "probe", "metric", "command"), TEXTS),
    **dict.fromkeys(("window_ms", "value", "low", "high", "seconds_per_hour"), FLOATS),
    **dict.fromkeys(("size", "clips"), st.integers()),
    hop_ms=st.none() | FLOATS,
    clips_per_class=st.none() | st.integers(),
    is_main=st.booleans(),
)


@given(st.lists(ROWS, max_size=3))
def test_a_table_is_read_as_it_was_written(tmp_path_factory, some):
    path = tmp_path_factory.getbasetemp() / "results.csv"
    results.write_csv(path, some)
    assert results.read_csv(path) == some


def test_undefined_scores_and_names_that_are_no_text_are_read_too(tmp_path):
    odd = row(math.nan, command="embed-audio \udcff.wav", seconds_per_hour=math.nan)
    results.write_csv(tmp_path / "t.csv", [odd])
    (found,) = results.read_csv(tmp_path / "t.csv")
    assert math.isnan(found.value)
    assert found.command == odd.command


def test_columns_may_stand_in_another_order(tmp_path):
    results.write_csv(tmp_path / "t.csv", [BASE])
    lines = (tmp_path / "t.csv").read_text().split()
    assert lines
    header, line = (text.split(",") for text in (tmp_path / "t.csv").read_text().splitlines())
    (tmp_path / "u.csv").write_text(f"{','.join(header[::-1])}\n{','.join(line[::-1])}\n")
    assert results.read_csv(tmp_path / "u.csv") == [BASE]


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (lambda text: text.replace("window_ms", "window"), r"missing or unknown: window, window_ms"),
        (lambda text: text.replace("640.0", "wide"), r"line 2: window_ms='wide' is no float"),
        (lambda text: text.replace("True", "yes"), r"line 2: is_main='yes' is no bool"),
        (lambda text: text[: len(text) // 2 + 60], r"line 2: has \d+ cells, the header 18"),
        (lambda text: "", r"is no table of a sweep"),
    ],
)
def test_a_damaged_table_is_refused_by_its_line(tmp_path, change, said):
    path = tmp_path / "t.csv"
    results.write_csv(path, [BASE])
    path.write_text(change(path.read_text()))
    with pytest.raises(OptionError, match=said):
        results.read_csv(path)


def test_a_table_that_is_not_there_is_named(tmp_path):
    with pytest.raises(OptionError, match=r"t\.csv: cannot be read .*results\.csv"):
        results.read_csv(tmp_path / "t.csv")


def test_of_two_scores_of_a_setting_the_last_counts():
    assert results.unique([row(0.5), row(0.7, layer="4"), row(0.6)]) == [row(0.6), row(0.7, layer="4")]


def test_the_parquet_table_has_the_same_rows(written, some):
    parquet = pytest.importorskip("pyarrow.parquet")
    found = parquet.read_table(written.parent / "results.parquet").to_pylist()
    assert [Row(**each) for each in found] == some == results.read_csv(written.parent / "results.csv")


# Findings


def test_the_cheapest_of_what_cannot_be_told_from_the_best():
    some = [
        row(0.95, layer="12", seconds_per_hour=100.0),
        row(0.93, layer="9", seconds_per_hour=20.0, size=384),
        row(0.92, layer="8", seconds_per_hour=20.0, size=192),
        row(0.80, layer="1", seconds_per_hour=1.0),
    ]
    (found,) = findings.findings_of(some)
    assert (found.best.layer, found.cheapest.layer, len(found.alike)) == ("12", "8", 3)
    (said, _), (count, _), (cheap, command) = words.paragraphs(found)
    assert "best accuracy is 0.950 (0.930 to 0.970) on 300 clips: tiny, layer 12" in said
    assert "3 of 4 settings overlap" in count
    assert "layer 8" in cheap
    assert "20 % of the compute and 100 % of the numbers" in cheap
    assert command == BASE.command


def test_of_equal_scores_the_cheaper_is_best():
    (found,) = findings.findings_of([row(layer="9", seconds_per_hour=9.0), row(layer="4", seconds_per_hour=5.0)])
    assert found.best.layer == found.cheapest.layer == "4"


def test_fewer_errors_are_better():
    (found,) = findings.findings_of([row(0.3, metric="error_rate"), row(0.1, metric="error_rate", layer="4")])
    assert found.best.layer == "4"
    assert "where less is better" in next(words.paragraphs(found))[0]
    assert findings.is_lower_better("davies_bouldin")
    assert not findings.is_lower_better("silhouette")


def test_settings_are_chosen_by_the_main_metric():
    some = [
        row(0.9, metric="AUC", is_main=False),
        row(0.5),
        row(0.4, layer="1"),
        row(0.95, metric="AUC", layer="1", is_main=False),
    ]
    found, other = findings.findings_of(some)
    assert (found.metric, found.is_main, found.best.layer) == ("accuracy", True, "9")
    assert (other.metric, other.is_main, other.best.layer) == ("AUC", False, "1")


def test_undefined_scores_are_no_best():
    (found,) = findings.findings_of([row(math.nan), row(0.2, layer="1")])
    assert found.best.layer == "1"
    assert len(found.rows) == 1


def test_no_cheaper_setting_beats_one_of_the_front():
    some = [
        row(v, layer=str(i), seconds_per_hour=s) for i, (v, s) in enumerate([(0.5, 1), (0.4, 2), (0.7, 3), (0.7, 4)])
    ]
    some.append(row(0.99, layer="9", seconds_per_hour=math.nan))
    assert [each.layer for each in findings.front(some, lambda row: row.seconds_per_hour)] == ["0", "2"]


def test_an_axis_is_changed_alone_and_vectors_stand_beside_every_pooling():
    some = [
        row(),
        row(0.6, layer="1"),
        row(0.99, layer="1", window_ms=160.0),
        row(0.7, layer="features", pool=results.NO_POOL),
    ]
    (found,) = findings.findings_of([*some, row(0.985, pool="cls")])
    assert found.best.window_ms == 160.0
    changes = {change.axis: change for change in findings.findings_of([some[0], some[1], some[3]])[0].changes}
    assert [each.layer for each in changes["layer"].rows] == ["1", "9", "features"]
    assert words.change_in_words(changes["layer"]) == "0.900 (9) to 0.600 (1); not told apart from the best: no other"
    assert "pool" not in changes


def test_clips_per_class_are_an_axis_with_a_line_for_each_probe(tmp_path):
    axes = {"windows": (640,), "hops": (50,), "pools": ("mean",), "layers": ("4",)}
    some = synthetic(("ESC-10",), ("tiny",), **axes, probes=("logistic", "mlp"), shots=(1, 16, None))
    (found, _) = findings.findings_of(some)
    lines = findings.by_shots(found)
    assert list(lines) == ["tiny, logistic", "tiny, mlp"]
    assert all([row.clips_per_class for row in line] == [1, 16, None] for line in lines.values())
    report.write(tmp_path, some, title="few")
    assert {path.name for path in (tmp_path / "plots").glob("*-shots.*")} == {"ESC-10-shots.png", "ESC-10-shots.svg"}
    assert "| probe | clips per class | clips |" in (tmp_path / "results.md").read_text(encoding="utf-8")
    (alone, _) = findings.findings_of([row for row in some if row.clips_per_class is None])
    assert findings.by_shots(alone) == {}
    assert "clips per class" not in report.markdown(alone.rows, [alone], "all")


def test_differences_within_the_intervals_are_called_none():
    (found,) = findings.findings_of([row(0.90), row(0.89, layer="4"), row(0.88, layer="5")])
    (change,) = found.changes
    assert words.change_in_words(change) == "0.900 (9) to 0.880 (5): no difference beyond the intervals"


def test_scores_of_other_clips_are_not_compared_in_silence():
    (found,) = findings.findings_of([row(), row(0.5, layer="1", clips=200)])
    assert "on 200 to 300 clips: not all on the same" in " ".join(said for said, _ in words.paragraphs(found))


def test_layers_are_in_order_of_their_numbers():
    assert findings.in_order("layer", ["10", "features", "9", "mel", "9"]) == ["9", "10", "features", "mel"]
    assert findings.in_order("hop_ms", [50.0, None, 25.0]) == [25.0, 50.0, None]


def test_metrics_without_a_probe_are_curves_too():
    some = [row(layer=layer) for layer in ("1", "9")]
    some += [
        row(v, metric="silhouette", probe="", is_main=False, layer=layer) for v, layer in ((0.1, "9"), (-0.2, "1"))
    ]
    every = findings.findings_of(some)
    found = findings.curves(every[0], every)
    assert [each.value for each in found["silhouette"]["tiny"]] == [-0.2, 0.1]
    assert list(found) == ["accuracy", "silhouette"]


# Files


def test_the_folder_has_tables_pictures_and_the_page(written):
    found = {str(path.relative_to(written.parent)) for path in written.parent.rglob("*") if path.is_file()}
    plots = {
        f"plots/{task}-{name}.{kind}"
        for task in ("ESC-10", "events")
        for name in ("maps", "cost", "layers")
        for kind in ("png", "svg")
    }
    assert found - {"results.parquet"} == {"results.csv", "results.md", "report.html"} | plots


def test_the_tables_for_people_begin_with_the_best(written, some):
    text = (written.parent / "results.md").read_text()
    found = findings.findings_of(some)[0]
    assert text.index("The best accuracy") < text.index("Best setting of each model") < text.index("## All scores")
    assert f"```sh\n{found.best.command}\n```" in text
    assert text.count("\n| ESC-10 |") == sum(each.task == "ESC-10" for each in some)
    assert "not shown to differ" in text


def test_nothing_to_report_is_an_error(tmp_path):
    with pytest.raises(OptionError, match="none of 1 rows has a score"):
        report.write(tmp_path, [row(math.nan)], title="none")


def test_a_single_score_is_a_report_too(tmp_path, chromium):
    chromium.open(report.write(tmp_path, [row(hop_ms=None, framing="scene", seconds_per_hour=math.nan)], title="one"))
    assert chromium.run("document.querySelectorAll('#windows button').length") == 1
    assert "compute of 1 settings is not known" in chromium.run("of('cost-about').textContent")
    assert chromium.problems == []


def test_thousands_of_rows_are_a_few_megabytes():
    some = synthetic(("ESC-10",))
    found = findings.findings_of(some)
    text = report.page(some, found, "many")
    assert len(some) > 6000
    assert len(text) < 200 * len(some)


# The page


def test_cells_of_the_maps_show_the_scores(written, some, chromium):
    chromium.requests.clear()
    chromium.open(written)
    found = findings.findings_of(some)[0]
    best = found.best
    assert chromium.run(
        "[...document.querySelectorAll('#windows tr:first-child th')].map((each) => each.textContent)"
    ) == ["layer", "160", "640", "2560"]
    shown = [
        each for each in found.rows if (each.model, each.pool, each.hop_ms) == (best.model, best.pool, best.hop_ms)
    ]
    cells = chromium.run("[...document.querySelectorAll('#windows button')].map((each) => each.firstChild.textContent)")
    assert sorted(text.removeprefix("★") for text in cells) == sorted(f"{each.value:.3f}" for each in shown)
    assert (
        chromium.run("document.querySelector('#windows button .chosen, #windows button').textContent").count(".") == 3
    )
    assert [text for text in cells if text.startswith("★")] == [f"★{best.value:.3f}"]
    framed = chromium.run("[...document.querySelectorAll('#windows .alike')].map((each) => Number(each.dataset.row))")
    assert {some[i] for i in framed} == {each for each in shown if findings.overlap(each, best)}
    assert chromium.problems == []
    assert all(each.startswith(("file:", "data:")) for each in chromium.requests), chromium.requests


def test_the_maps_follow_model_pool_and_hop(written, some, chromium):
    chromium.open(written)
    change = "of('%s').value = %s; of('%s').dispatchEvent(new Event('change'))"
    chromium.run(change % ("model", "columns.model.names.indexOf('passt/base (random)')", "model"))
    chromium.run(change % ("pool", "columns.pool.names.indexOf('cls')", "pool"))
    chromium.run(change % ("hop", "'50'", "hop"))
    found = chromium.run("[...document.querySelectorAll('#windows button')].map((each) => Number(each.dataset.row))")
    assert len(found) == 15
    assert {(some[i].model, some[i].pool, some[i].hop_ms) for i in found} == {("passt/base (random)", "cls", 50.0)}


def test_a_cell_that_is_clicked_shows_its_setting_and_command(written, some, chromium):
    chromium.open(written)
    x, y, i = chromium.run(
        "(() => { const cell = document.querySelectorAll('#hops button')[3]; cell.scrollIntoView({ block: 'center' });"
        "const box = cell.getBoundingClientRect(); return [box.x + 9, box.y + 9, Number(cell.dataset.row)]; })()"
    )
    chromium.click(x, y)
    assert f"layer {some[i].layer}, pool {some[i].pool}" in chromium.run("of('hover').textContent")
    assert chromium.run("of('detail-score').textContent") == f"accuracy {words.score_of(some[i])}"
    assert chromium.run("of('detail-command').querySelector('pre').textContent") == some[i].command
    chromium.press("Escape")
    assert chromium.run("of('detail').hidden")


@pytest.mark.parametrize("plot", [0, 1])
def test_a_point_that_is_clicked_shows_its_setting(written, some, chromium, plot):
    chromium.open(written)
    chromium.wait(f"plots[{plot}].box !== undefined")
    i = chromium.run(f"plots[{plot}].front.at(-1)")
    chromium.run(f"plots[{plot}].canvas.scrollIntoView({{ block: 'center' }})")
    left, top = chromium.run(
        f"(() => {{ const box = plots[{plot}].canvas.getBoundingClientRect(); return [box.x, box.y]; }})()"
    )
    x, y = chromium.run(f"plots[{plot}].place({i})")
    chromium.click(left + x, top + y)
    assert chromium.run("chosen") == i
    assert f"accuracy {words.score_of(some[i])}, 320 clips" in chromium.run("of('hover').textContent")
    assert f"window {some[i].window_ms:g} ms" in chromium.run("of('hover').textContent")


def test_a_model_is_hidden_from_the_costs(written, some, chromium):
    chromium.open(written)
    chromium.run("document.querySelector('#models-legend button').click()")
    assert {some[i].model for i in chromium.run("plots[0].rows")} == {"passt/base (random)"}
    chromium.run("document.querySelector('#models-legend button').click()")
    assert len(chromium.run("plots[0].rows")) == len(findings.findings_of(some)[0].rows)


def test_the_page_and_the_tables_find_the_same(written, some, chromium):
    chromium.open(written)
    for number, found in enumerate(each for each in findings.findings_of(some) if each.is_main):
        chromium.run(f"of('task').value = {number}; of('task').dispatchEvent(new Event('change'))")
        fronts = [
            findings.front(found.rows, price) for price in (lambda row: row.seconds_per_hour, lambda row: row.size)
        ]
        assert [[some[i] for i in each] for each in chromium.run("plots.map((plot) => plot.front)")] == fronts
        extremes = chromium.run("extremes(shownRows())")
        assert (some[extremes["top"]], some[extremes["cheapest"]]) == (found.best, found.cheapest)
        assert chromium.run("of('words').textContent").startswith(f"The best {found.metric} is")


def test_the_table_is_filtered_and_sorted(written, some, chromium):
    chromium.open(written)
    chromium.run("of('filter').value = 'tiny layer=9 window<1000'; of('filter').dispatchEvent(new Event('input'))")
    wanted = [
        each
        for each in some
        if (each.task, each.metric, each.model, each.layer) == ("ESC-10", "accuracy", "tiny", "9")
        and each.window_ms < 1000
    ]
    found = [some[i] for i in chromium.run("listed")]
    assert found == sorted(wanted, key=lambda row: -row.value)
    assert chromium.run("of('count').textContent") == f"{len(wanted)} of {len(some)} scores"
    chromium.run(
        "[...document.querySelectorAll('#rows th button')].find((each) => each.textContent === 's per hour').click()"
    )
    costs = [some[i].seconds_per_hour for i in chromium.run("listed")]
    assert costs == sorted(costs)
    chromium.run("of('here').click()")
    assert len(chromium.run("listed")) == 4 * len(wanted)


def test_curves_are_drawn_of_every_metric(written, chromium):
    chromium.open(written)
    assert chromium.run("[...document.querySelectorAll('#curves figcaption')].map((each) => each.textContent)") == [
        "accuracy",
        "error_rate (less is better)",
    ]
    assert chromium.run("document.querySelectorAll('#curves svg:first-of-type polyline').length") == 4


def test_stages_are_compared_by_measures_of_clusters(tmp_path, chromium):
    some = [
        row(i / 20, metric=metric, is_main=metric == "nmi", probe="clusters", layer=str(i), model=model)
        for metric in ("silhouette", "nmi", "davies_bouldin")
        for model in ("mast/base", "ast/base")
        for i in range(13)
    ]
    chromium.open(page_of(tmp_path, some))
    captions = chromium.run("[...document.querySelectorAll('#curves figcaption')].map((each) => each.textContent)")
    assert captions[0].startswith("nminormalised mutual information")
    assert "less is better" in captions[2]
    assert len(captions) == 3
    chromium.run("of('metric').value = columns.metric.names.indexOf('davies_bouldin')")
    chromium.run("of('metric').dispatchEvent(new Event('change'))")
    assert chromium.run("of('words').textContent").startswith("The best davies_bouldin, where less is better, is 0.000")
    text = report.markdown(some, findings.findings_of(some), "Clusters")
    assert "The best nmi is 0.600" in text
    assert "The best davies" not in text
    assert chromium.problems == []


def test_layers_that_have_no_number_stand_beside_the_curve(tmp_path, chromium):
    chromium.open(page_of(tmp_path, [row(layer=layer) for layer in ("mel", "2", "1", "all+mel")]))
    assert chromium.run("document.querySelector('#curves polyline').getAttribute('points').split(' ').length") == 4
    assert chromium.run("document.querySelectorAll('#curves circle').length") == 4
    assert chromium.run("document.querySelectorAll('#curves line:not(.grid)').length") == 2


def test_a_map_of_one_column_is_left_out(tmp_path, chromium):
    chromium.open(page_of(tmp_path, [row(layer=layer, pool=pool) for layer in "12" for pool in ("mean", "cls")]))
    hidden = "['windows', 'hops', 'pools'].map((id) => of(id).closest('figure').hidden)"
    assert chromium.run(hidden) == [True, True, False]
    chromium.open(page_of(tmp_path, [row(layer=layer) for layer in "12"]))
    assert chromium.run(hidden) == [False, True, True]


def test_an_outlier_does_not_take_the_colours(tmp_path, chromium):
    chromium.open(page_of(tmp_path, [row(0.0 if i == 0 else 0.8 + i / 200, layer=str(i)) for i in range(21)]))
    assert chromium.run("of('limits').textContent") == "0.805 or less to 0.900."


def test_whole_scenes_that_win_are_shown_beside_windows(tmp_path, chromium):
    some = [row(0.9 - 0.01 * i, layer=str(i), window_ms=160.0 * 2**j, hop_ms=25.0) for i in range(3) for j in range(3)]
    some += [row(0.95, layer="2", framing="scene", window_ms=5000.0, hop_ms=None)]
    chromium.open(page_of(tmp_path, some))
    heads = chromium.run("[...document.querySelectorAll('#windows tr:first-child th')].map((each) => each.textContent)")
    assert heads == ["layer", "160", "320", "640", "5000"]
    assert chromium.run("document.querySelectorAll('#hops tr:first-child th').length") == 3
    assert (
        chromium.run("[of('framing'), of('hop')].map((each) => each.selectedOptions[0].textContent)")
        == ["the best of all"] * 2
    )


def test_hostile_names_are_shown_and_never_run(tmp_path, chromium):
    words_of = dict.fromkeys(("task", "model", "layer", "pool", "framing", "probe", "metric", "command"), HOSTILE)
    path = report.write(tmp_path, [row(**words_of), row(0.5, **words_of, size=3, hop_ms=1.0)], title=HOSTILE)
    chromium.open(path)
    chromium.run("choose(0)")
    assert chromium.run("document.querySelectorAll('img, b').length") == 0
    assert chromium.run("of('title').textContent") == HOSTILE
    assert chromium.run("of('detail-command').querySelector('pre').textContent") == HOSTILE
    assert chromium.problems == []
    assert "<" not in re.sub(r"\\<", "", re.sub(r"(?s)```.*?```", "", (tmp_path / "results.md").read_text()))


def test_the_page_forbids_the_network(written, chromium):
    chromium.open(written)
    assert chromium.run("fetch('http://127.0.0.1:9/').then(() => 'sent', () => 'refused')") == "refused"
    assert any("Content Security Policy" in problem for problem in chromium.problems)
    chromium.problems.clear()


@pytest.mark.parametrize("width", [1400, 400])
def test_the_page_is_as_wide_as_the_window(written, chromium, width):
    chromium.open(written, width)
    chromium.run("choose(0)")
    assert chromium.run("document.documentElement.scrollWidth <= innerWidth")
    assert chromium.run(
        "[...document.querySelectorAll('canvas')].every((each) => each.clientWidth > 300 && each.clientHeight > 200)"
    )
