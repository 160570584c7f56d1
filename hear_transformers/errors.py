"""Errors this package raises on purpose.

HearTransformersError
+ OptionError      an option's name or value is not one the model knows
+ AudioError       a file or array cannot be read, or is not audio
+ WeightsError     a checkpoint is missing, damaged, or for another network
+ TrainingError    a training run cannot begin or go on
+ DiskFullError    the disk of the outputs is full

HearTransformersWarning: the work goes on, though not quite as was asked for.

Every message says what was given, what is allowed, and what to do.
"""


class HearTransformersError(Exception):
    """Root of every error this package raises on purpose."""


class OptionError(HearTransformersError, ValueError):
    """An option's name or value is not one the model knows."""


class AudioError(HearTransformersError):
    """A file or an array cannot be read, or is not audio."""


class WeightsError(HearTransformersError):
    """A checkpoint is missing, damaged, or belongs to another network."""


class TrainingError(HearTransformersError):
    """A training run cannot begin or go on: its data, its folder or its numbers forbid it."""


class DiskFullError(HearTransformersError):
    """The disk of the outputs is full."""


class HearTransformersWarning(UserWarning):
    """The work goes on, though not quite as was asked for: with a smaller batch, or fewer processes."""
