"""The endpoints: what is asked over HTTP -> the way through the service -> an answer, or a refusal in words."""

from __future__ import annotations

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Collection
from pathlib import Path
from typing import Annotated, Any, TypeVar, get_args
from urllib.parse import quote

from fastapi import Depends, FastAPI, Query, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse, Response
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect

from .. import __version__
from ..errors import HearTransformersError, OptionError, did_you_mean
from . import answers, uploads
from .answers import Encoding, Sounds
from .batching import Reading
from .decoding import Hearing
from .gate import Gate, refused
from .metrics import CONTENT_TYPE
from .models import Table
from .refusals import Refusal, refusal_of
from .service import Service

LOG = logging.getLogger("hear_transformers")

T = TypeVar("T")

MOST_RESULTS = 1000
"""Most tags or matches of one sound."""

DRAIN_SECONDS = 2.0
"""How long the rest of a body that is too large is read, for nothing: clients read no answer while they write."""

AUDIO = {
    "content": {
        "multipart/form-data": {"schema": {"type": "object", "properties": {"file": {"type": "array", "items": {
            "type": "string", "format": "binary"}}}}},
        "audio/*": {"schema": {"type": "string", "format": "binary"}},
        "application/json": {"schema": {"type": "object", "required": ["input"], "properties": {
            "input": {"description": "A file in base64, an object of array and sampling_rate, or a list of such."},
            "model": {"type": "string"}, "encoding_format": {"type": "string"}, "user": {"type": "string"}}}},
    },
    "required": True,
}  # fmt: skip
"""Bodies that hold sounds, as OpenAPI describes them: one file or several in a form, the file itself, or JSON."""

SOUNDS: dict[str, Any] = {"openapi_extra": {"requestBody": AUDIO}}

HEARING = ("channel", "keep_damaged")
"""Options of every endpoint that takes sounds."""


async def _hearing(channel: Annotated[int | None, Query(ge=1)] = None, keep_damaged: bool = False) -> Hearing:
    """Return what is to be read of sounds: a channel, the first of which is 1, or the mean; also of damaged files."""
    return Hearing(channel, keep_damaged)


Heard = Annotated[Hearing, Depends(_hearing)]

Count = Annotated[int, Query(ge=1, le=MOST_RESULTS)]


def make_app(service: Service, token: str = "", hosts: Collection[str] | None = None) -> Gate:
    """Make the application of a service.

    Parameters
    ----------
    service : entered
    token, hosts : see `Gate`
    """
    # No pages of documentation: they load scripts from another server. No CORS: pages of other sites read no answers.
    app = FastAPI(title="hear_transformers", version=__version__, docs_url=None, redoc_url=None)
    _answer_errors(app, service)
    _add_state(app, service)
    _add_embeddings(app, service)
    _add_tags(app, service)
    _add_search(app, service)
    endpoints = {path for route in app.routes if (path := getattr(route, "path", None))}
    return Gate(app, endpoints, service.metrics, token, hosts)


def _answer_errors(app: FastAPI, service: Service) -> None:
    """Make every error JSON, without anything of the server in it."""

    async def in_words(request: Request, error: Exception) -> Response:
        return refused(service.metrics, refusal_of(error))

    async def invalid(request: Request, error: RequestValidationError) -> Response:
        faults = (f"{each['loc'][-1]}: {each['msg'][:1].lower()}{each['msg'][1:]}" for each in error.errors())
        return refused(service.metrics, Refusal(400, "; ".join(faults), "bad_request"))

    async def unknown(request: Request, error: HTTPException) -> Response:
        text = f"{request.method} {request.url.path[:80]}: {error.detail}; GET /openapi.json lists what there is"
        return refused(service.metrics, Refusal(error.status_code, text, "no_endpoint"))

    async def gone(request: Request, error: ClientDisconnect) -> Response:
        return Response(status_code=400)  # nobody reads it

    handlers: dict[Any, Any] = {RequestValidationError: invalid, HTTPException: unknown, ClientDisconnect: gone}
    for kind, handler in {**handlers, Refusal: in_words, HearTransformersError: in_words, Exception: in_words}.items():
        app.add_exception_handler(kind, handler)


def _add_state(app: FastAPI, service: Service) -> None:
    """Add what is said of the server itself."""

    @app.get("/health")
    @app.get("/health/ready")
    async def ready() -> Response:
        """Return 200 if requests can be answered."""
        is_ready = service.is_ready
        return JSONResponse({"status": "ok" if is_ready else "unavailable"}, 200 if is_ready else 503)

    @app.get("/health/live")
    async def live() -> Response:
        """Return 200."""
        return JSONResponse({"status": "ok"})

    @app.get("/metrics")
    async def metrics() -> Response:
        """Return counters, gauges and histograms for Prometheus."""
        return Response(service.metrics.text(), media_type=CONTENT_TYPE)

    @app.get("/info")
    async def info() -> Response:
        """Return what is known of the model, the table and the limits."""
        limits = service.limits
        shown = {name: getattr(limits, name) for name in limits.__dataclass_fields__}
        return JSONResponse({**service.served.described(), "limits": shown, "version": __version__})

    @app.get("/v1/models")
    async def models() -> Response:
        """Return the one model, as OpenAI lists them."""
        model = {"id": service.served.name, "object": "model", "owned_by": "hear_transformers"}
        return JSONResponse({"object": "list", "data": [model]})


def _add_embeddings(app: FastAPI, service: Service) -> None:
    @app.post("/v1/embeddings", **SOUNDS)
    async def embeddings(
        request: Request,
        heard: Heard,
        timestamps: bool = False,
        normalize: bool = False,
        encoding_format: Encoding = "float",
    ) -> Response:
        """Embed sounds: one vector for each, or vectors along time."""
        _check_query(request, ("timestamps", "normalize", "encoding_format", *HEARING))
        served = service.served
        if timestamps and not served.is_along_time:
            raise Refusal(501, f"{served.name} does not say where its embeddings lie in time", "no_timestamps")

        async def answer(received: uploads.Received, deadline: float) -> Response:
            encoding = str(received.fields.get("encoding_format", encoding_format))
            if encoding not in get_args(Encoding):
                raise OptionError(f"encoding_format: {did_you_mean(encoding, get_args(Encoding))}")
            answers.check_encoding(encoding, len(received.uploads), timestamps=timestamps)
            sounds = await _embedded(service, received, heard, Reading(served.model, timestamps), deadline)
            content = await service.in_thread(lambda: answers.embeddings(served, sounds, encoding, normalize=normalize))
            kind = answers.CONTENT_TYPES.get(encoding, uploads.JSON)
            return Response(content, media_type=kind, headers={"X-Model": quote(served.name)})

        return await _answered(service, request, answer)


def _add_tags(app: FastAPI, service: Service) -> None:
    @app.post("/v1/tags", **SOUNDS)
    async def tags(request: Request, heard: Heard, top_k: Count = 10) -> Response:
        """Return the likeliest classes of sounds."""
        _check_query(request, ("top_k", *HEARING))
        served = service.served
        if served.tagger is None:
            raise Refusal(501, f"{served.name} names no classes: {served.no_tags}", "no_tags")
        reading = Reading(served.tagger)

        async def answer(received: uploads.Received, deadline: float) -> Response:
            sounds = await _embedded(service, received, heard, reading, deadline)
            return _json(await service.in_thread(answers.tags, served, sounds, top_k))

        return await _answered(service, request, answer)


def _add_search(app: FastAPI, service: Service) -> None:
    def table() -> Table:
        if service.served.table is None:
            raise Refusal(501, "there is no table to search; start the server with --table", "no_table")
        return service.served.table

    @app.post("/v1/search", **SOUNDS)
    async def search(request: Request, heard: Heard, k: Count = 10) -> Response:
        """Find the rows of the table that resemble sounds; the name of a row's file is all that is told of it."""
        _check_query(request, ("k", *HEARING))
        searched = table()

        async def answer(received: uploads.Received, deadline: float) -> Response:
            sounds = await _embedded(service, received, heard, searched.reading, deadline)
            return _json(await service.in_thread(answers.matches, service.served, searched, sounds, k))

        return await _answered(service, request, answer)

    @app.get("/v1/search")
    async def search_row(request: Request, row: int, k: Count = 10) -> Response:
        """Find the rows of the table that resemble one of them."""
        _check_query(request, ("row", "k"))
        searched = table()
        with service.accepted():
            return _json(await service.in_thread(answers.matches_of_row, searched, row, k))


def _json(content: bytes) -> Response:
    return Response(content, media_type=uploads.JSON)


def _check_query(request: Request, names: Collection[str]) -> None:
    """Raise OptionError for an option that an endpoint does not have: else a typing error would go unnoticed."""
    for name in request.query_params:
        if name not in names:
            raise OptionError(f"{name[:80]!r} is unknown; {did_you_mean(name[:80], names)}")


async def _embedded(
    service: Service, received: uploads.Received, heard: Hearing, reading: Reading, deadline: float
) -> Sounds:
    _check_model(service, received.fields.get("model"))
    embedded = await service.embed(received.uploads, heard, reading, deadline)
    return list(zip(received.uploads, embedded, strict=True))


def _check_model(service: Service, asked: object) -> None:
    """Raise Refusal if a model is asked for by name, and it is not the one that answers."""
    name = service.served.name
    if asked is not None and asked not in (name, *name.split("/")):
        raise Refusal(404, f"model {str(asked)[:80]!r} is not served here; {name} is", "no_model")


Answer = Callable[[uploads.Received, float], Awaitable[Response]]
"""(sounds that were received, deadline) -> the response."""


async def _answered(service: Service, request: Request, answer: Answer) -> Response:
    """Receive the sounds of a request and answer it, within the limits of the service."""
    limits = service.limits
    deadline = time.monotonic() + limits.timeout_seconds
    received: uploads.Received | None = None

    async def work(folder: Path) -> Response:
        nonlocal received
        received = await _received(service, request, folder)
        return await _while_connected(request, answer(received, deadline))

    try:
        with service.accepted() as folder:
            return await asyncio.wait_for(work(folder), limits.timeout_seconds)
    except (TimeoutError, asyncio.TimeoutError) as error:
        if received is not None:
            raise refusal_of(error) from error
        text = f"the body did not arrive within {limits.timeout_seconds:g} s"
        return refused(service.metrics, Refusal(408, text, "timeout", "TimeoutError"), closing=True)
    except ClientDisconnect:
        raise
    except Exception as error:
        refusal = refusal_of(error)
        if refusal.reason == "failed":
            LOG.exception("a request failed")
        if refusal.reason == "too_large":
            await _drain(request, limits.upload_bytes)
            return refused(service.metrics, refusal, closing=True)
        raise refusal from error


async def _received(service: Service, request: Request, folder: Path) -> uploads.Received:
    """Receive the sounds of a request."""
    limits = service.limits
    body = _counted(request, limits.upload_bytes)
    received = await uploads.receive(body, request.headers.get("content-type", ""), folder, limits)
    if isinstance(received, Path):
        return await service.in_thread(uploads.read_json, received, limits)
    return received


async def _counted(request: Request, most: int) -> AsyncIterator[bytes]:
    """Yield the blocks of a body; raise Refusal if it is, or says that it is, larger than it may be."""
    refusal = Refusal(413, f"the body is larger than {most:,} bytes; send fewer or shorter sounds", "too_large")
    claimed = request.headers.get("content-length", "")
    if claimed.isdecimal() and int(claimed) > most:
        raise refusal
    n_bytes = 0
    async for block in request.stream():
        n_bytes += len(block)
        if n_bytes > most:
            raise refusal
        yield block


async def _drain(request: Request, most: int) -> None:
    """Read what is left of a body, up to so many bytes, unless the client waits for leave to send it."""
    if request.headers.get("expect", "").lower() == "100-continue":
        return

    async def read() -> None:
        n_bytes = 0
        while n_bytes < most:
            message = await request.receive()
            n_bytes += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body"):
                return

    with contextlib.suppress(TimeoutError, asyncio.TimeoutError):
        await asyncio.wait_for(read(), DRAIN_SECONDS)


async def _while_connected(request: Request, answer: Awaitable[T]) -> T:
    """Wait for an answer; give it up if the client has gone."""
    working = asyncio.ensure_future(answer)
    leaving = asyncio.ensure_future(request.receive())  # after the body comes nothing but the end of the connection
    try:
        await asyncio.wait((working, leaving), return_when=asyncio.FIRST_COMPLETED)
        if not working.done():
            raise ClientDisconnect
        return working.result()
    finally:
        for task in (working, leaving):
            task.cancel()
        await asyncio.gather(working, leaving, return_exceptions=True)
