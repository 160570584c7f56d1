"""Words that options take, as data, so that a wrong one is answered without PyTorch."""

from __future__ import annotations

from typing import Literal, get_args

from ..errors import OptionError, unknown

Pool = Literal["mean", "max", "meanmax", "flat", "meanstd", "unroll", "cls"]
Framing = Literal["windowed", "native"]
Precision = Literal["float32", "bfloat16", "float16", "tf32", "auto"]
Resample = Literal["cpu", "device", "auto"]

CHOICES: dict[str, tuple[str, ...]] = {
    "pool": get_args(Pool),
    "framing": get_args(Framing),
    "precision": get_args(Precision),
    "resample": get_args(Resample),
}
"""Option -> its words; `pooling`, `framing`, `precision` and `resampling` say what they do."""


SEVERAL = ("pool",)
"""Options that take several words, joined by commas."""


def words_of(option: str, text: str) -> list[str]:
    """Return the words that the text of an option consists of."""
    return [word.strip() for word in text.split(",")] if option in SEVERAL else [text]


def check_choice(option: str, text: str) -> None:
    """Raise OptionError if a word is none of an option, or is there twice."""
    words = words_of(option, text)
    for i, word in enumerate(words):
        if word not in CHOICES[option]:
            raise unknown(option, word, CHOICES[option])
        if word in words[:i]:
            raise OptionError(f"{option}={text!r} names {word} twice; name it once")
