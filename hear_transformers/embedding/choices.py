"""Words that options take, as data, so that a wrong one is answered without PyTorch."""

from __future__ import annotations

from ..errors import unknown

CHOICES = {
    "pool": ("mean", "max", "meanmax", "flat", "meanstd", "unroll", "cls"),
    "framing": ("windowed", "native"),
    "precision": ("float32", "bfloat16", "float16", "tf32", "auto"),
    "resample": ("cpu", "device", "auto"),
}
"""Option -> its words; `pooling`, `framing`, `precision` and `resampling` say what they do."""


def check_choice(option: str, word: str) -> None:
    """Raise OptionError if a word is none of an option."""
    if word not in CHOICES[option]:
        raise unknown(option, word, CHOICES[option])
