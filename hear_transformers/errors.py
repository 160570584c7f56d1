"""Errors that this package raises on purpose.

HearTransformersError
+ OptionError      the name or value of an option is unknown to the model
+ AudioError       a file or array cannot be read, or is not audio
+ WeightsError     a checkpoint is missing, damaged, or for another network
+ TrainingError    a training run cannot start or continue
+ DiskFullError    the disk of the outputs is full

HearTransformersWarning: the work continues, though not exactly as asked.

Every message names what was given, what is allowed, and what to do.
"""


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
