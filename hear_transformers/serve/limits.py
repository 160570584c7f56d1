"""What a server takes of a request, and how much of everything it holds at once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields

from ..errors import OptionError

MEGABYTE = 10**6

DECODERS = 2
"""Processes that decode: audio is decoded much faster than a network reads it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Limits:
    """Limits of a server; they bound its memory and its disk whatever clients send.

    Attributes
    ----------
    upload_megabytes : of a request's body
    files : sounds in one request
    audio_seconds : of one sound
    timeout_seconds : from the first byte of a request to its answer
    queue : requests that are received, decoded or embedded at a time; more are refused
    batch : clips that the network is given at once
    wait_ms : how long it waits for more of them once there is one
    decoders : processes that decode
    waiting_seconds : audio that waits in memory for the network; one clip of any length may
    """

    upload_megabytes: float = 64.0
    files: int = 32
    audio_seconds: float = 600.0
    timeout_seconds: float = 60.0
    queue: int = 64
    batch: int = 32
    wait_ms: float = 5.0
    decoders: int = DECODERS
    waiting_seconds: float = 640.0

    def __post_init__(self) -> None:
        for each in fields(self):
            value = getattr(self, each.name)
            least = 0 if each.name == "wait_ms" else 1 if isinstance(each.default, int) else 1e-3
            if not (math.isfinite(value) and value >= least):
                raise OptionError(f"{each.name}={value!r}: give a number from {least:g} on")

    @property
    def upload_bytes(self) -> int:
        """Most bytes of a request's body."""
        return int(self.upload_megabytes * MEGABYTE)
