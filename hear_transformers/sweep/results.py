"""What a sweep finds: a row for each setting, task, probe and metric."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Row:
    """A score of one setting.

    Attributes
    ----------
    task : name of the data
    model : as the user wrote it: "passt/base"; with "(random)" behind it where the weights are
    layer : one, or several joined by "+"
    pool : from layer to vector
    framing : "scene", "windowed" or "native"
    window_ms : receptive field
    hop_ms : distance of two embeddings; None for scenes of the model's own hop
    probe : a key of `fitting.PROBES`
    metric : of `metrics`; that which settings are chosen by has `is_main`
    value, low, high : score and its interval
    size : numbers per embedding
    clips : that were scored
    seconds_per_hour : of compute for an hour of audio, that of all layers and poolings that share the forward pass
    command : that embeds with this setting
    """

    task: str
    model: str
    layer: str
    pool: str
    framing: str
    window_ms: float
    hop_ms: float | None
    probe: str
    metric: str
    is_main: bool
    value: float
    low: float
    high: float
    size: int
    clips: int
    seconds_per_hour: float
    command: str
