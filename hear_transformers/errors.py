"""Errors that this package raises on purpose.

HearTransformersError
+ OptionError      the name or value of an option is unknown to the model
+ AudioError       a file or array cannot be read, or is not audio
+ WeightsError     a checkpoint is missing, damaged, or for another network
+ TrainingError    a training run cannot start or continue
+ DiskFullError    the disk of the outputs is full

HearTransformersWarning: the work continues, though not exactly as asked.

Every message names what was given, what is allowed, and what to do; `unknown` makes it for an unknown word,
`import_extra` for a missing package.
"""

import re
from collections.abc import Iterable
from difflib import get_close_matches
from typing import Any

__all__ = [
    "AudioError", "DiskFullError", "HearTransformersError", "HearTransformersWarning", "OptionError", "TrainingError",
    "WeightsError",
]  # fmt: skip

FEW = 12
"""Words that a message lists in full; of more it names those that resemble what was given."""

LIKENESS = 0.6
"""Least ratio of equal letters at which a word resembles another, difflib's own default."""


class HearTransformersError(Exception):
    """Base of every error that this package raises on purpose."""


class OptionError(HearTransformersError, ValueError):
    """The name or value of an option is unknown to the model."""


class AudioError(HearTransformersError):
    """A file or an array cannot be read, or is not audio."""


class WeightsError(HearTransformersError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class TrainingError(HearTransformersError):
    """A training run cannot start or continue because of its data, its folder or its numbers."""


class DiskFullError(HearTransformersError):
    """The disk of the outputs is full."""


class HearTransformersWarning(UserWarning):
    """The work continues, though not exactly as asked, or on audio that is not what its file says."""


def similar(given: object, choices: Iterable[str], limit: int = 3) -> list[str]:
    """Return the words that resemble what was given, the nearest first.

    They have most of its letters, or begin with it, or, if there are none of these, begin with its first letters:
    "mn10_as" for "mn99".
    """
    text = str(given).casefold()
    folded = {choice.casefold(): choice for choice in choices}
    if text.lstrip("-").isdecimal():  # "99" is not meant to be "9"
        return []
    near = get_close_matches(text, folded, limit, LIKENESS)
    stem = re.match(r"[^\W\d]*", text)
    for start in (text, stem[0] if stem and not near else ""):
        near += [word for word in folded if len(start) > 1 and word.startswith(start) and word not in near]
    return [folded[word] for word in near[:limit]]


def did_you_mean(given: object, choices: Iterable[str], *, of: str = "choose one of", more: str = "") -> str:
    """Return the end of a message about an unknown word: "choose one of mean, max; did you mean mean?".

    Parameters
    ----------
    given : the unknown word
    choices : the known ones
    of : what stands before the list of them
    more : what lists all of them, "hear-transformers list passt"; without it they are listed here
    """
    known = list(choices)
    near = similar(given, known)
    asked = f"did you mean {' or '.join(near)}?" if near else ""
    if more and len(known) > FEW:
        return f"{asked} {more} lists all {len(known)}".strip()
    return f"{of} {', '.join(known)}{asked and f'; {asked}'}"


def unknown(name: str, given: object, choices: Iterable[str], *, to: str = "", more: str = "") -> OptionError:
    """Return the error for the value of an option that is none of several words.

    Parameters
    ----------
    name : of the option, as load_model has it
    given : its value
    choices : the values that it may have
    to : family or variant that does not know it
    more : a command that lists many choices
    """
    whom = f" to {to}" if to else ""
    return OptionError(f"{name}={given!r} is unknown{whom}; {did_you_mean(given, choices, more=more)}")


def import_extra(what: str, module: str, extra: str) -> Any:
    """Import a module of an optional dependency; return its package, or raise OptionError, which names the extra."""
    try:
        return __import__(module)  # unlike importlib.import_module, returns the package
    except ImportError as error:
        raise OptionError(
            f"{what} needs {module.partition('.')[0]}, which is not installed; "
            f"run: python -m pip install 'hear_transformers[{extra}]'"
        ) from error
