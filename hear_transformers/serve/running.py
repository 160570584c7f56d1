"""A service on a port: bound before the model is loaded, ended by a signal once every accepted request is answered."""

from __future__ import annotations

import contextlib
import ipaddress
import signal
import socket
import threading
from collections.abc import Collection, Iterator
from typing import Any

import uvicorn

from ..errors import HearTransformersError, OptionError
from .app import make_app
from .gate import LOOPBACK
from .service import Service

IDLE_SECONDS = 5.0
"""How long a connection stays open without a request."""

MOST_CONNECTIONS = 500
"""Open at a time; what comes beyond is answered 503 at once."""

GRACE_SECONDS = 5.0
"""How much longer than a request may take a server waits for its clients before it ends."""


def bind(host: str, port: int) -> socket.socket:
    """Take a port.

    Parameters
    ----------
    host : name or address of this machine
    port : 0 for any that is free

    Raises
    ------
    OptionError : the name is unknown, or the port is taken
    """
    with contextlib.ExitStack() as at_failure:
        try:
            family, kind, protocol, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
            bound = at_failure.enter_context(socket.socket(family, kind, protocol))
            bound.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            bound.bind(address)
        except (OSError, OverflowError, UnicodeError) as error:
            text = getattr(error, "strerror", None) or error
            raise OptionError(
                f"--host {host} --port {port}: {text}; give another, --port 0 for any free one"
            ) from error
        at_failure.pop_all()
    return bound


def is_loopback(bound: socket.socket) -> bool:
    """Return whether only this machine reaches a port."""
    return ipaddress.ip_address(bound.getsockname()[0].partition("%")[0]).is_loopback


def address_of(bound: socket.socket) -> str:
    """Return the address of a port for clients."""
    host, port = bound.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def make_server(service: Service, bound: socket.socket, token: str, allowed_hosts: Collection[str]) -> uvicorn.Server:
    """Make the server of a service, whose clients may come from now on; they wait until it runs.

    On a port of this machine alone it answers to no name of others.

    Parameters
    ----------
    service : entered
    bound : see `bind`
    token : that requests must show; empty for none
    allowed_hosts : further names that it goes by
    """
    bound.listen(MOST_CONNECTIONS)
    hosts = {*LOOPBACK, bound.getsockname()[0], *map(str.lower, allowed_hosts)} if is_loopback(bound) else None
    settings: dict[str, Any] = {
        "http": "h11",
        "ws": "none",
        "lifespan": "off",
        "log_level": "error",
        "access_log": False,
        "server_header": False,
        "proxy_headers": False,
        "timeout_keep_alive": IDLE_SECONDS,
        "limit_concurrency": MOST_CONNECTIONS,
        "timeout_graceful_shutdown": int(service.limits.timeout_seconds + GRACE_SECONDS),
    }
    return uvicorn.Server(uvicorn.Config(make_app(service, token, hosts), **settings))


def run(server: uvicorn.Server, bound: socket.socket) -> None:
    """Answer requests until a signal comes; then finish those that were accepted.

    Raises
    ------
    HearTransformersError : the server could not start
    """
    # uvicorn raises the signal again when all is finished, for those who started it with other plans.
    with contextlib.suppress(KeyboardInterrupt), _ended_by_hanging_up(server):
        server.run(sockets=[bound])
    if not server.started:
        raise HearTransformersError("the server did not start; its log says why")


@contextlib.contextmanager
def _ended_by_hanging_up(server: uvicorn.Server) -> Iterator[None]:
    """End a server like SIGTERM, which uvicorn handles, when its terminal is closed; after `nohup` nothing does."""
    number = getattr(signal, "SIGHUP", None)  # Windows has none
    in_main = threading.current_thread() is threading.main_thread()
    if number is None or not in_main or signal.getsignal(number) == signal.SIG_IGN:
        yield
        return
    before = signal.signal(number, server.handle_exit)
    try:
        yield
    finally:
        signal.signal(number, before)
