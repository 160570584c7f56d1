"""The public API: docs/api.md, `__all__`, docstrings and types say the same."""

import doctest
import importlib
import inspect
import os
import pydoc
import re
import subprocess
import sys
from collections.abc import Iterator
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pytest

import hear_transformers
from hear_transformers import FAMILIES, api, catalogue, efficientat, hear, hf, tiny
from hear_transformers.audio.levels import EACH, MIX, Channel, parse_channel
from hear_transformers.embedding import choices
from hear_transformers.embedding.embedder import Embedder
from hear_transformers.embedding.external import FUNCTIONS
from hear_transformers.errors import HearTransformersWarning, OptionError

from .conftest import AudioFile
from .test_examples import check

ROOT = Path(__file__).parents[1]
PAGE = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")
ROWS = {name: re.findall(r"`(\w+)`", names) for name, names in re.findall(r"^\| `([\w.]+)` \| (.*) \|$", PAGE, re.M)}
"""Module or class of the page -> its names."""

LISTED = [(owner, name) for owner, names in ROWS.items() for name in names]


def find(owner: str, name: str) -> Any:
    """Find what the page lists."""
    if owner == "hear_transformers.Embedder":
        return getattr(Embedder, name)
    return getattr(importlib.import_module(owner), name)


# What is public


def test_the_page_lists_names() -> None:
    assert len(ROWS) == 8
    assert len(LISTED) > 30


@pytest.mark.parametrize("module", [name for name in ROWS if name != "hear_transformers.Embedder"])
def test_all_is_what_the_page_lists(module: str) -> None:
    exported = set(importlib.import_module(module).__all__)
    if module.rpartition(".")[2] in FAMILIES:  # networks and tables may change
        assert set(ROWS[module]) < exported
    else:
        assert set(ROWS[module]) == exported


@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_the_functions_of_hear(family: str) -> None:
    assert {*FUNCTIONS} < set(catalogue.family(family).__all__)


@pytest.mark.parametrize(("owner", "name"), LISTED)
def test_what_is_public_is_documented(owner: str, name: str) -> None:
    found = find(owner, name)
    if not callable(found):
        return  # a table, or a text
    documented = inspect.getdoc(found) or ""
    assert documented.split("\n")[0].endswith((".", "?")), documented
    if not inspect.isclass(found):
        takes = set(inspect.signature(found).parameters) - {"self", "model"}
        assert not takes or "\nParameters\n---" in documented
        gives = found.__annotations__.get("return") != "None"
        assert not gives or "\nReturns\n---" in documented or "\nYields\n---" in documented
    if owner not in ("hear_transformers.errors", "hear_transformers.Embedder") and name != "Timestamps":
        assert "\n>>> " in documented


def test_no_public_name_hides_a_module() -> None:
    modules = {path.stem for path in (ROOT / "hear_transformers").iterdir()} | {"cli", "weights"}
    assert not modules & set(hear_transformers.__all__)


def test_help_shows_what_is_public() -> None:
    text = pydoc.plain(pydoc.render_doc(hear_transformers))
    assert {name for name in hear_transformers.__all__ if name not in text} == {"__version__"}  # as VERSION


def test_unknown_names_of_the_package_are_no_attributes() -> None:
    with pytest.raises(AttributeError, match="has no attribute 'embedd'"):
        hear_transformers.embedd  # noqa: B018


WITHOUT_TORCH = """
import sys
import hear_transformers
assert {"embed", "load_model"} <= set(dir(hear_transformers))
from hear_transformers import embed, load_model
assert hear_transformers.list_models("*passt*")[0] == "passt/base"
sys.exit("torch" in sys.modules or "numpy" in sys.modules)
"""


def test_nothing_heavy_is_imported_before_it_is_needed() -> None:
    subprocess.run([sys.executable, "-c", WITHOUT_TORCH], check=True)


# Functions


def test_examples_of_the_page_are_true(audio_file: AudioFile, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("dog.wav", "rain.flac"):
        audio_file(name)
    monkeypatch.chdir(tmp_path)
    for block in re.findall(r"```python\n(.*?)```", PAGE, re.DOTALL):
        check(doctest.DocTestParser().get_doctest(block, {}, "docs/api.md", None, 0))


def test_models_are_listed_by_name() -> None:
    assert len(hear_transformers.list_models()) == len(set(hear_transformers.list_models())) == len(catalogue.rows())
    assert hear_transformers.list_models("panns/cnn1?", "mn01_as") == [
        "panns/cnn14",
        "panns/cnn10",
        "efficientat/mn01_as",
    ]
    assert {"tiny/tiny", "mast/mini"} <= set(hear_transformers.list_models(on_this_machine=True))
    assert "mast/base" in hear_transformers.list_models("mast")
    assert "mast/base" not in hear_transformers.list_models("mast", pretrained=True)


def test_a_list_of_patterns_is_answered_with_how_to_give_them() -> None:
    with pytest.raises(OptionError, match=r"each by itself: list_models\('tiny', 'mn\*'\)"):
        hear_transformers.list_models(["tiny"])  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["mn01_as", "efficientat/mn01_as", "hear_transformers.efficientat"])
def test_a_model_is_loaded_by_any_name(name: str, small_weights: Path) -> None:
    variant = {"variant": "mn01_as"} if name.endswith("efficientat") else {}
    model = hear_transformers.load_model(name, weights=small_weights, layer=5, **variant)
    assert model.name == ("efficientat", "mn01_as")
    assert model.layers == ("5",)


def test_without_a_name_the_model_is_that_of_the_weights(small_weights: Path) -> None:
    assert hear_transformers.load_model(weights=small_weights).name == ("efficientat", "mn01_as")
    assert hear_transformers.load_model(device="cpu").name == ("tiny", "tiny")


@pytest.mark.parametrize(
    ("name", "options", "message"),
    [
        ("pasxt", {}, "did you mean passt"),
        ("tiny", {"layr": 8}, "option 'layr' is unknown; .* did you mean layer"),
        ("tiny", {"batch_size": 8}, "option 'batch_size' is unknown"),
        ("tiny", {"revision": "main"}, "option 'revision' is unknown to tiny"),
        ("tiny", {"pool": "avg"}, "pool='avg' is unknown; choose one of mean"),
        ("tiny", {"device": "cpuu"}, "did you mean cpu"),
        ("json.tool", {}, "model='json.tool' is unknown"),
    ],
)
def test_a_wrong_option_is_answered_with_the_right_one(name: str, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        hear_transformers.load_model(name, **options)


def test_a_checkpoint_is_no_name(small_weights: Path) -> None:
    with pytest.raises(OptionError, match="holds weights; give it as weights"):
        hear_transformers.load_model(str(small_weights))


def test_embed_is_load_and_encode(audio_file: AudioFile, small_weights: Path, small_model: Embedder) -> None:
    paths = [audio_file("a.wav"), audio_file("b.wav", seconds=0.5)]
    expected = small_model.encode(paths)
    how: dict[str, Any] = {"weights": small_weights, "device": "cpu"}
    np.testing.assert_array_equal(hear_transformers.embed(paths, "mn01_as", **how), expected)
    np.testing.assert_array_equal(hear_transformers.embed(paths, **how), expected)
    np.testing.assert_array_equal(hear_transformers.embed((path for path in paths), small_model), expected)
    np.testing.assert_array_equal(hear_transformers.embed(paths[0], small_model), expected[0])
    scaled = hear_transformers.embed(paths, "mn01_as", normalize_embeddings=True, batch_size=1, **how)
    np.testing.assert_allclose(np.linalg.norm(scaled, axis=1), 1.0, rtol=1e-5)


def test_arrays_are_embedded_with_their_rate(small_model: Embedder) -> None:
    clip = np.zeros(8_000, np.float32)
    assert hear_transformers.embed(clip, small_model, sampling_rate=8_000).ndim == 1
    assert hear_transformers.embed([clip, clip], small_model, sampling_rate=8_000).ndim == 2
    with pytest.raises(OptionError, match="sampl"):
        hear_transformers.embed(clip, small_model)


def test_time_is_that_of_the_options(audio_file: AudioFile, small_weights: Path) -> None:
    path, how = audio_file(), {"weights": small_weights, "device": "cpu"}
    found = hear_transformers.embed_timestamps(path, "mn01_as", segment=0.5, **how)
    assert found.centres_ms.tolist() == [250.0, 750.0]
    with pytest.raises(OptionError, match="hop_ms: of embeddings along time; call embed_timestamps"):
        hear_transformers.embed(path, "mn01_as", hop_ms=100, **how)
    mean = hear_transformers.embed(path, "mn01_as", hop_ms=100, mean_over_time=True, **how)
    along = hear_transformers.embed_timestamps([path], "mn01_as", hop_ms=100, **how)[0].embeddings
    np.testing.assert_allclose(mean, along.mean(0), rtol=1e-4, atol=1e-5)


def test_a_warning_is_at_the_line_of_the_user(small_model: Embedder) -> None:
    with pytest.warns(HearTransformersWarning) as warned:
        hear_transformers.embed(np.full(8_000, 100.0, np.float32), small_model, sampling_rate=8_000)
    assert {Path(warning.filename).name for warning in warned} == {"test_api.py"}


def test_a_module_of_others_is_embedded_with_too(audio_file: AudioFile, monkeypatch: pytest.MonkeyPatch) -> None:
    module = ModuleType("someones_model")
    module.__spec__ = ModuleSpec("someones_model", None)
    for name in FUNCTIONS:
        setattr(module, name, getattr(tiny, name))
    monkeypatch.setitem(sys.modules, "someones_model", module)
    assert hear_transformers.embed(audio_file(), "someones_model", device="cpu").ndim == 1


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"layer": 8}, "layer: the model is loaded already"),
        ({"device": "cpu"}, "device: the model is loaded already"),
        ({"weights": "a.pt"}, "weights: the model is loaded already"),
        ({"batchsize": 8}, "option 'batchsize' is unknown; .* did you mean batch_size"),
    ],
)
def test_a_loaded_model_is_not_chosen_again(small_model: Embedder, options: dict[str, Any], message: str) -> None:
    with pytest.raises(OptionError, match=message):
        hear_transformers.embed(np.zeros(8_000, np.float32), small_model, sampling_rate=8_000, **options)


def test_a_number_is_no_model() -> None:
    with pytest.raises(OptionError, match="model is a int; expected a name, or what load_model returns"):
        hear_transformers.embed(np.zeros(8_000, np.float32), 5, sampling_rate=8_000)


# Types


def keywords(function: Any) -> set[str]:
    return set(inspect.signature(function).parameters) - {"self", "path"}


def test_the_typed_options_are_those_of_load_model() -> None:
    taken = keywords(hear.Loader.load_model) | keywords(hf.load_model)
    assert set(api.ModelOptions.__annotations__) == taken - {"device"}


def test_the_typed_options_are_those_of_encode() -> None:
    more = set(api.EmbedOptions.__annotations__) - set(api.ModelOptions.__annotations__)
    assert more == keywords(Embedder.encode) - {"model", "inputs", "sampling_rate"}


def test_help_of_load_model_is_that_of_a_function() -> None:
    text = pydoc.plain(pydoc.render_doc(efficientat.load_model))
    assert "\nload_model(path: 'str | os.PathLike[str]' = '', variant: 'str | None' = None, *, layer: " in text
    assert "pool : how a layer's time and frequency" in text


@pytest.mark.parametrize("option", choices.CHOICES)
def test_the_literals_are_the_words_that_are_checked(option: str) -> None:
    assert get_args(getattr(choices, option.capitalize())) == choices.CHOICES[option]
    for word in choices.CHOICES[option]:
        choices.check_choice(option, word)


def test_the_words_of_channels_are_those_that_are_checked() -> None:
    number, words = get_args(Channel)
    assert number is int
    assert set(get_args(words)) == {MIX, EACH} == {parse_channel(word) for word in get_args(words)}


RIGHT = """
import hear_transformers
from hear_transformers import passt
model = hear_transformers.load_model("passt/base", layer=8, pool="mean", device="auto")
passt.load_model(pool=["mean", "cls"], framing="native", precision="auto")
centres = hear_transformers.embed_timestamps("a.wav", model, channel="mix").centres_ms.mean()
shape: tuple[int, ...] = hear_transformers.embed(["a.wav"], "tiny", layer="4,8", batch_size=2).shape
names: list[str] = hear_transformers.list_models("*passt*", pretrained=True)
"""

WRONG = """
import hear_transformers
from hear_transformers import passt
hear_transformers.load_model("passt/base", pool="avg")
hear_transformers.load_model("passt/base", layr=8)
passt.load_model(framing="windowd")
passt.load_model(pool=["mean", "avg"])
passt.load_model(precision="bf16")
hear_transformers.embed("a.wav", channel="left")
names: list[int] = hear_transformers.list_models()
hear_transformers.embedd("a.wav")
"""


def faults(text: str, folder: Path) -> Iterator[int]:
    """Yield the lines of a user's file in which mypy finds something."""
    (folder / "user.py").write_text(text)
    command = [sys.executable, "-m", "mypy", "--strict", "--follow-imports=silent", "--config-file=", "user.py"]
    environment = {**os.environ, "MYPYPATH": str(ROOT)}  # it does not follow editable installations
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    assert done.returncode in (0, 1), done.stdout + done.stderr
    for line in done.stdout.splitlines():
        if place := re.match(r"user\.py:(\d+): error", line):
            yield int(place[1])


@pytest.mark.slow
def test_wrong_words_fail_a_type_check(tmp_path: Path) -> None:
    pytest.importorskip("mypy", reason="of the extra check")
    assert [*faults(RIGHT, tmp_path)] == []
    assert sorted({*faults(WRONG, tmp_path)}) == [*range(4, 12)]
