"""What every request passes before an endpoint: the name of the server it asks for, its token, the clock."""

from __future__ import annotations

import hmac
import time
from collections.abc import Collection
from dataclasses import dataclass
from typing import TYPE_CHECKING

from fastapi.responses import Response

from .metrics import Metrics
from .refusals import Refusal, as_json

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Message, Receive, Scope, Send

LOOPBACK = ("localhost", "127.0.0.1", "::1")
"""Names of this machine to itself."""

OPEN = ("/health", "/health/live", "/health/ready")
"""Endpoints that need no token: a scheduler asks whether the server lives."""

OTHER = "other"
"""Label of all addresses that are no endpoint."""


@dataclass(slots=True)
class Gate:
    """Passes requests on to an application, or refuses them.

    Parameters
    ----------
    app : what answers
    endpoints : their addresses, labels of metrics
    metrics : counts requests
    token : that requests must show; empty for none
    hosts : names of the server that requests may ask for; None for any. A page in a browser may name this machine as
        one of its own site's, and would then read answers (DNS rebinding): only the name in the header tells
    """

    app: ASGIApp
    endpoints: Collection[str]
    metrics: Metrics
    token: str
    hosts: Collection[str] | None

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Answer one request."""
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start, status = time.perf_counter(), 500

        async def noting(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
            await send(message)

        try:
            self._check(scope)
            await self.app(scope, receive, noting)
        except Refusal as refusal:
            await refused(self.metrics, refusal)(scope, receive, noting)
        finally:
            endpoint = scope["path"] if scope["path"] in self.endpoints else OTHER
            self.metrics.requests.add(endpoint=endpoint, status=str(status))
            self.metrics.latency.observe(time.perf_counter() - start, endpoint=endpoint)

    def _check(self, scope: Scope) -> None:
        """Raise Refusal unless the request may pass."""
        headers = dict(scope["headers"])
        host = _without_port(headers.get(b"host", b"").decode("latin-1")).lower()
        if self.hosts is not None and host not in self.hosts:
            raise Refusal(
                403,
                f"this server does not go by the name {host[:80]!r}; if it should, start it with --allow-host",
                "bad_host",
            )
        if not self.token or scope["path"] in OPEN:
            return
        scheme, _, shown = headers.get(b"authorization", b"").partition(b" ")
        # In constant time, so that the time does not tell how much of a guess is right.
        is_right = hmac.compare_digest(shown.strip(), self.token.encode())
        if not is_right or scheme.lower() != b"bearer":
            raise Refusal(401, "the token is missing or wrong; send it as Authorization: Bearer TOKEN", "no_token")


def refused(metrics: Metrics, refusal: Refusal, *, closing: bool = False) -> Response:
    """Count a refusal, and return how it is answered.

    Parameters
    ----------
    closing : end the connection, which is of no more use when a body is not read to its end
    """
    metrics.rejections.add(reason=refusal.reason)
    headers = refusal.headers | ({"Connection": "close"} if closing else {})
    return Response(as_json(refusal.as_record()), refusal.status, headers, "application/json")


def _without_port(host: str) -> str:
    """Return the name in a Host header: that of [::1]:8000 is ::1."""
    if host.startswith("["):
        return host[1:].partition("]")[0]
    return host.partition(":")[0]
