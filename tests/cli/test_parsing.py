"""Values of options: JSON where it is, words where it is not."""

import pytest
from hear_transformers.cli.parsing import parse_changes, parse_value

from hear_transformers.errors import OptionError


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("float32", "float32"),
        ('"float32"', "float32"),
        ("'float32'", "float32"),
        ("1e-4", 1e-4),
        (".5", 0.5),
        ("12", 12),
        ("true", True),
        ("False", False),
        ("null", None),
        ("None", None),
        ("[1, 2]", [1, 2]),
        ("(0.9, 0.95)", (0.9, 0.95)),
        ('{"a": [1]}', {"a": [1]}),
        ("", ""),
        ("mean, max", "mean, max"),
        ("exp(1)", "exp(1)"),
        ("__import__('os')", "__import__('os')"),
    ],
)
def test_a_value_is_json_or_a_literal_or_a_word(text, value) -> None:
    assert parse_value("--set x", text) == value
    assert type(parse_value("--set x", text)) is type(value)


@pytest.mark.parametrize("text", ["[1, 2", "{a: 1}", "(1", '"open', "[dog, cat]"])
def test_what_begins_like_json_must_be_json(text) -> None:
    with pytest.raises(OptionError, match=r"--set x: .* is neither a word nor JSON"):
        parse_value("--set x", text)


def test_changes_are_named_or_an_object_and_the_last_one_counts() -> None:
    texts = ["depth=4", '{"dim": 96, "depth": 5}', "drop-path=0.1", "depth=6"]
    assert parse_changes("--network", texts) == {"depth": 6, "dim": 96, "drop_path": 0.1}
