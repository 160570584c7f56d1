"""Errors that this package raises on purpose.

HearTransformersError
+ OptionError      the name or value of an option is unknown to the model
+ AudioError       a file or array cannot be read, or is not audio
+ WeightsError     a checkpoint is missing, damaged, or for another network
+ TrainingError    a training run cannot start or continue
+ DiskFullError    the disk of the outputs is full

HearTransformersWarning: the work continues, though not exactly as asked.

Every message names what was given, what is allowed, and what to do; `unknown` makes it for a word that is none of several.
"""

from collections.abc import Iterable
from difflib import get_close_matches

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
    """The work continues, though not exactly as asked: with a smaller batch, or fewer processes."""


def similar(given: object, choices: Iterable[str], limit: int = 3) -> list[str]:
    """Return the words that resemble what was given, the nearest first: the same letters, or the same beginning."""
    text = str(given).casefold()
    folded = {choice.casefold(): choice for choice in choices}
    if text.lstrip("-").isdecimal():  # "99" is not meant to be "9"
        return []
    near = get_close_matches(text, folded, limit, LIKENESS)
    starts = [word for word in folded if text and word.startswith(text) and word not in near]
    return [folded[word] for word in (near + starts)[:limit]]


def did_you_mean(given: object, choices: Iterable[str], *, of: str = "choose one of", more: str = "") -> str:
    """Return the end of a message about an unknown word: "did you mean mean? choose one of mean, max".

    Parameters
    ----------
    given : the unknown word
    choices : the known ones
    of : what stands before the list of them
    more : where all of them are listed, "hear-transformers list passt"; without it they are listed here
    """
    known = list(choices)
    near = similar(given, known)
    asked = f"did you mean {' or '.join(near)}? " if near else ""
    return f"{asked}{more} lists all {len(known)}" if more and len(known) > FEW else f"{asked}{of} {', '.join(known)}"


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
