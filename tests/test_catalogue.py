"""Names of models: one resolver for all commands, and near words for what is unknown. No PyTorch for an answer."""

import json
import re
import subprocess
import sys

import pytest
from hear_transformers.cli.hear import parse_system

from hear_transformers import FAMILIES, catalogue, errors, tiny
from hear_transformers.checkpoints.published import TASKS, manifest
from hear_transformers.embedding.devices import pick_device
from hear_transformers.errors import OptionError
from hear_transformers.training.recipes import RECIPES, with_changes

NAMES = {
    ("tiny", None): ("tiny", None),
    ("passt", "base2levelmel"): ("passt", "base2levelmel"),
    ("passt/base2levelmel", None): ("passt", "base2levelmel"),
    ("base2levelmel", None): ("passt", "base2levelmel"),
    (None, "base2levelmel"): ("passt", "base2levelmel"),
    ("hear_transformers.passt", None): ("passt", None),
    ("hear_transformers.passt", "base"): ("passt", "base"),
    ("cnn14", None): ("panns", "cnn14"),
    (None, "cnn14"): ("panns", "cnn14"),
    ("panns/cnn14", "cnn14"): ("panns", "cnn14"),
    ("mn40_as(2)", None): ("efficientat", "mn40_as(2)"),
    ("mn10_as", "mn10_as"): ("efficientat", "mn10_as"),
    ("mast/base", None): ("mast", "base"),
    ("ast", None): ("ast", None),
    ("json.tool", None): ("json.tool", None),
    (None, None): ("tiny", None),
}


@pytest.mark.parametrize(("given", "found"), NAMES.items(), ids=str)
def test_a_model_goes_by_any_of_its_names(given: tuple[str | None, str | None], found: tuple[str, str | None]) -> None:
    assert catalogue.resolve(*given) == found


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (("base", None), r"model='base' is a variant of 2 families; choose one of passt/base, mast/base"),
        ((None, "base"), r"variant='base' is a variant of 2 families; choose one of passt/base, mast/base"),
        (("passt", "cnn14"), r"variant='cnn14' is unknown to passt; did you mean panns/cnn14\?"),
        (("passt", "bas"), r"variant='bas' is unknown to passt; did you mean base or .*list passt lists all \d+"),
        (("cnn14", "cnn10"), "are two variants"),
        (("panns/cnn14", "cnn10"), "are two variants"),
        (("pasxt", None), r"model='pasxt' is unknown; .* did you mean passt"),
        (("pasxt/base", None), r"model='pasxt/base' is unknown; .* did you mean passt"),
        (
            ("MIT/ast-finetuned", None),
            r"model='MIT/ast-finetuned' is unknown; .* Hugging Face is hf/MIT/ast-finetuned, weights",
        ),
        (("panns/cnn15", None), r"variant='cnn15' is unknown to panns; did you mean cnn14"),
        (("MN10_AS", None), r"did you mean mn10_as"),
        ((None, "mn99"), r"did you mean mn10_as or mn01_as or mn02_as\? hear-transformers list lists all"),
        (("", None), "model='' is unknown"),
        (("..", None), "is unknown"),
        (("s3://bucket/x", None), "is unknown"),
    ],
)
def test_a_wrong_name_is_answered_with_the_right_one(given: tuple[str | None, str | None], message: str) -> None:
    with pytest.raises(OptionError, match=message) as error:
        catalogue.resolve(*given)
    assert len(str(error.value)) < 300


def test_modules_of_others_are_no_models_of_ours() -> None:
    with pytest.raises(OptionError, match="choose one of tiny, passt"):
        catalogue.resolve_own("json.tool")


@pytest.mark.parametrize(
    ("patterns", "variants"),
    [
        (["tiny"], ["tiny"]),
        (["cnn14"], ["cnn14"]),
        (["mn0?_as"], ["mn01_as", "mn02_as", "mn04_as", "mn05_as"]),
        (["panns/*16k", "tiny"], ["tiny", "cnn14_16k"]),
        (["base"], ["base", "base"]),
        (["mn40_as(2)"], ["mn40_as(2)"]),
        (["hear_transformers.tiny"], ["tiny"]),
        (["tiny/all"], ["tiny"]),
    ],
)
def test_a_pattern_finds_models(patterns: list[str], variants: list[str]) -> None:
    assert [row["variant"] for row in catalogue.rows(*patterns)] == variants


def test_without_a_pattern_every_model_is_listed() -> None:
    assert len(catalogue.rows()) == len(catalogue.rows("all")) == sum(map(len, catalogue.sizes().values()))
    assert len(catalogue.rows("passt")) == len(catalogue.sizes()["passt"])


def test_a_pattern_that_fits_nothing_is_refused() -> None:
    with pytest.raises(OptionError, match=r"model='mn1\?x' is unknown"):
        catalogue.rows("tiny", "mn1?x")


def test_a_part_of_names_is_answered_with_the_pattern_that_finds_them() -> None:
    n_names = len(catalogue.rows("*mn40*"))
    with pytest.raises(
        OptionError, match=rf"model='mn40' is a part of {n_names} names; the pattern '\*mn40\*' finds them"
    ):
        catalogue.rows("mn40")


@pytest.mark.parametrize(
    ("given", "files"),
    [
        (("panns",), ["Cnn14_mAP=0.431.pth"]),
        (("cnn14",), ["Cnn14_mAP=0.431.pth"]),
        (("panns/cnn6",), ["Cnn6_mAP=0.343.pth"]),
        (("panns", "cnn6"), ["Cnn6_mAP=0.343.pth"]),
        (("mn0[14]_as",), ["mn01_as_mAP_298.pt", "mn04_as_mAP_432.pt"]),
        (("panns", "cnn14_1*"), ["Cnn14_16k_mAP=0.438.pth"]),
    ],
)
def test_downloads_go_by_names_and_patterns(given: tuple[str, ...], files: list[str]) -> None:
    assert [row.file for row in catalogue.downloads(*given)] == files


def test_all_is_everything_once() -> None:
    rows = catalogue.downloads("all")
    assert len(rows) == len(set(rows)) > 80
    assert {row.file for row in catalogue.downloads("panns", "all")} == {
        row.file for row in manifest().values() if row.family == "panns"
    }
    assert catalogue.downloads("panns/all") == catalogue.downloads("panns", "all")


def test_options_of_a_model_are_its_own() -> None:
    with pytest.raises(OptionError, match=r"option 'layr' is unknown to tiny; .* did you mean layer"):
        catalogue.load("tiny", options={"layr": 8})


@pytest.mark.parametrize(
    ("text", "module", "options"),
    [
        ("mn10_as", "hear_transformers.efficientat", {"variant": "mn10_as"}),
        ('panns/cnn14:{"layer": 4}', "hear_transformers.panns", {"variant": "cnn14", "layer": 4}),
        ('passt:{"variant": "base"}', "hear_transformers.passt", {"variant": "base"}),
        ("hear_transformers.tiny", "hear_transformers.tiny", {}),
        ("of_the_other_interpreter.module", "of_the_other_interpreter.module", {}),
    ],
)
def test_systems_of_a_benchmark_are_named_like_models(text: str, module: str, options: dict[str, object]) -> None:
    system = parse_system(text)
    assert (system.module, dict(system.options)) == (module, options)


def test_an_unknown_model_is_no_system() -> None:
    with pytest.raises(OptionError, match="did you mean panns/cnn14"):
        parse_system('passt:{"variant": "cnn14"}')


def test_validate_takes_the_names_of_models(installed_command) -> None:
    command = installed_command("hear-transformers")
    options = '{"pretrained": false, "layer": 0}'
    assert command("validate", "mn01_as", "--model-options", options).stdout.endswith("Looks good!\n")
    assert "did you mean layer" in command("validate", "mn01_as", "--model-options", '{"layr": 0}').stderr


# Recommendations


def test_defaults_with_weights_for_audio_are_recommended() -> None:
    marked = {(row["family"], row["variant"]) for row in catalogue.rows() if row["recommended"]}
    for family, rows in catalogue.sizes().items():
        first, row = next(iter(rows.items()))
        assert ((family, first) in marked) == (row["checkpoint"] is not None)


@pytest.mark.parametrize("task", TASKS)
def test_there_is_a_model_for_every_task(task: str) -> None:
    takes = [row for row in catalogue.rows() if task in row["take_for"]]
    assert takes
    assert all(row["recommended"] for row in takes)
    assert catalogue.describe(takes[0]["family"], takes[0]["variant"])["take_for"] == takes[0]["take_for"]


def test_presets_over_the_same_file_are_not_recommended_as_well() -> None:
    assert catalogue.describe("passt", "passt_s_swa_p16_128_ap476")["recommended"] is None


@pytest.mark.parametrize("gmacs", [0.2, 1.0, 1000.0])
def test_the_best_of_each_cost_is_recommended(gmacs: float) -> None:
    rows = [
        (float(row["metric"].split()[-1]), row["family"], row["variant"], row["recommended"])
        for row in catalogue.rows()
        if (row.get("metric") or "").startswith("AudioSet mAP")
        and catalogue.sizes()[row["family"]][row["variant"]]["multiply_accumulates_10_s"] < 1e9 * gmacs
    ]
    assert "best AudioSet mAP" in max(rows)[3]


def test_every_published_model_has_a_size_in_mb() -> None:
    for row in catalogue.rows():
        assert row["checkpoint"] is None or row["megabytes"] > 0
    known = {row["variant"]: row for row in catalogue.rows("mn10_as", "mn10_as_hop_5")}
    assert not known["mn10_as"]["megabytes_are_estimated"]
    assert known["mn10_as_hop_5"]["megabytes_are_estimated"]
    assert known["mn10_as_hop_5"]["megabytes"] == pytest.approx(known["mn10_as"]["megabytes"], rel=0.05)


@pytest.mark.parametrize(
    ("variant", "verified_by"),
    [("mn04_as", "sha256"), ("cnn10", "md5"), ("mn02_as", "size"), ("mn40_as", "nothing"), ("tiny/tiny", "sha256")],
)
def test_what_verifies_a_file_is_told(variant: str, verified_by: str) -> None:
    (row,) = catalogue.rows(variant)
    assert row["verified_by"] == verified_by


# Near words


@pytest.mark.parametrize(
    ("given", "choices", "near"),
    [
        ("feature", ["mel", "features", "logits"], ["features"]),
        ("LOGITS", ["mel", "features", "logits"], ["logits"]),
        ("avg", ["mean", "max"], []),
        ("windowd", ["windowed", "native"], ["windowed"]),
        ("99", ["9", "10"], []),
        ("-99", ["9", "10"], []),
        ("mn99", ["mn10", "cnn6"], ["mn10"]),
        (None, ["mean"], []),
        ("", ["mean"], []),
    ],
)
def test_near_words(given: object, choices: list[str], near: list[str]) -> None:
    assert errors.similar(given, choices) == near


def test_few_words_are_listed_and_many_only_near_ones() -> None:
    assert str(errors.unknown("pool", "meen", ["mean", "max"])) == (
        "pool='meen' is unknown; choose one of mean, max; did you mean mean?"
    )
    many = [f"word{i}" for i in range(40)]
    text = str(errors.unknown("name", "word4x", many, more="list"))
    assert "did you mean word4" in text
    assert text.endswith("list lists all 40")
    assert "word29" not in text


@pytest.mark.parametrize(
    ("options", "near"),
    [
        ({"layer": "feature"}, "features"),
        ({"layer": "8,featurs"}, "features"),
        ({"pool": "meanstdd"}, "meanstd"),
        ({"framing": "nativ"}, "native"),
        ({"precision": "bfloat"}, "bfloat16"),
        ({"variant": "tin"}, "tiny"),
    ],
)
def test_near_values_of_options_in_python(options: dict[str, str], near: str) -> None:
    with pytest.raises(OptionError, match=rf"did you mean {near}\b"):
        tiny.load_model(pretrained=False, **options)


def test_near_words_of_devices_and_recipes() -> None:
    with pytest.raises(OptionError, match="did you mean cpu"):
        pick_device("cpuu")
    with pytest.raises(OptionError, match="did you mean epochs"):
        with_changes(RECIPES["scratch"], epoch=3)


# Without PyTorch

ANSWERED = [
    ["hear-transformers", "list"],
    ["hear-transformers", "list", "mn*", "--json"],
    ["hear-transformers", "info", "passt/base2levelmel"],
    ["hear-transformers", "info", "cnn15"],
    ["embed-audio"],
    ["embed-audio", "x.wav", "--model", "pasxt"],
    ["embed-audio", "x.wav", "--variant", "cnn15"],
    ["embed-audio", "x.wav", "--model", "cnn14", "--layer", "feature"],
    ["embed-audio", "x.wav", "--layr", "8"],
]

WITHOUT_TORCH = """
import sys
from importlib.metadata import entry_points
sys.modules["torch"] = None
(entry,) = entry_points(group="console_scripts", name=sys.argv.pop(1))
entry.load()(sys.argv[1:])
"""


@pytest.mark.parametrize("command", ANSWERED, ids=" ".join)
def test_answers_need_no_pytorch(command: list[str]) -> None:
    done = subprocess.run([sys.executable, "-c", WITHOUT_TORCH, *command], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr == "") in ((0, True), (2, False))
    assert "halted" not in done.stderr
    assert "PyTorch" not in done.stderr


def test_info_is_exact_as_json_and_short_for_people(installed_command) -> None:
    command = installed_command("hear-transformers")
    exact = json.loads(command("info", "efficientat", "mn10_as", "--json").stdout)
    assert exact["layers"][0]["receptive_field_ms"] == 25.03125
    assert (
        exact["multiply_accumulates_10_s"] == catalogue.sizes()["efficientat"]["mn10_as"]["multiply_accumulates_10_s"]
    )
    assert 0 < exact["relative_to_ast"]["parameters"] < 0.1
    text = command("info", "efficientat/mn10_as").stdout
    for part in ("GMAC", "beside AST: 0.056x the parameters", "25.03", "sample rate: 32,000 Hz", "verified by"):
        assert part in text
    assert "25.0312" not in text
    assert "_10_s" not in text


def test_names_are_listed_as_a_shell_takes_them(installed_command) -> None:
    text = installed_command("hear-transformers")("list", "mn40_as*", "passt").stdout
    assert " 'mn40_as(2)' " in text
    assert " base2levelmel " in text
    assert "\n*  passt" in text
    assert re.search(r"^music +passt/base +Apache-2.0 +default of passt; ", text, re.MULTILINE)
    assert "~" in text


def test_the_families_are_those_of_the_package() -> None:
    assert list(catalogue.sizes()) == list(FAMILIES)
