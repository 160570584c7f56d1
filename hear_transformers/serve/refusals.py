"""Why a request is not answered as asked: a status of HTTP and the words of the package's errors, ready for JSON."""

from __future__ import annotations

import asyncio
import errno
import json
from collections.abc import Mapping
from typing import Any

from ..errors import AudioError, HearTransformersError, OptionError

RETRY_SECONDS = 1
"""What a client is told to wait before it asks a server again that has too much to do."""

INTERNAL = "the server failed at this; its log says why"
"""All that a client is told of an error that nobody expected."""


class Refusal(Exception):
    """A request is refused.

    Attributes
    ----------
    status : of HTTP
    kind : of the error, a word for programs
    reason : label of the metric, one of a few
    """

    def __init__(self, status: int, message: str, reason: str, kind: str = "OptionError") -> None:
        super().__init__(message)
        self.status, self.reason, self.kind = status, reason, kind

    @property
    def headers(self) -> dict[str, str]:
        """Headers that go with the status."""
        if self.status in (429, 503):
            return {"Retry-After": str(RETRY_SECONDS)}
        return {"WWW-Authenticate": "Bearer"} if self.status == 401 else {}

    def as_record(self) -> dict[str, Any]:
        """Return what the client reads, in the shape of OpenAI's errors."""
        return {"error": {"message": str(self), "type": self.kind, "code": self.status}}


def as_json(record: Mapping[str, Any]) -> bytes:
    """Format a record; names of files need not be text."""
    return json.dumps(record, ensure_ascii=False, allow_nan=False, separators=(",", ":")).encode("utf-8", "replace")


def refusal_of(error: BaseException) -> Refusal:
    """Return how an error is told to a client: in its words if the package raised it, else without any of it."""
    if isinstance(error, Refusal):
        return error
    if isinstance(error, (TimeoutError, asyncio.TimeoutError)):  # one and the same from Python 3.11 on
        return Refusal(504, "not answered in time; send less at once, or ask again later", "timeout", "TimeoutError")
    if isinstance(error, AudioError):
        return Refusal(422, str(error), "bad_audio", type(error).__name__)
    if isinstance(error, OptionError):
        return Refusal(400, str(error), "bad_request")
    if isinstance(error, HearTransformersError):
        return Refusal(500, str(error), "failed", type(error).__name__)
    if isinstance(error, OSError) and error.errno == errno.ENOSPC:
        return Refusal(503, "the disk of the server is full; try again later", "disk_full", "DiskFullError")
    return Refusal(500, INTERNAL, "failed", "HearTransformersError")
