"""A server in a thread of this process, on a free port of this machine."""

import contextlib
import threading
import time
from collections.abc import Iterator
from dataclasses import dataclass

import requests

from hear_transformers.serve import running
from hear_transformers.serve.limits import Limits
from hear_transformers.serve.models import Served
from hear_transformers.serve.service import Service

PATIENCE_SECONDS = 120.0


@dataclass
class Live:
    """A server that runs: its address, what it does, and a way to ask it."""

    url: str
    service: Service
    session: requests.Session

    def get(self, path: str, **options) -> requests.Response:
        return self.session.get(self.url + path, timeout=PATIENCE_SECONDS, **options)

    def post(self, path: str, **options) -> requests.Response:
        return self.session.post(self.url + path, timeout=PATIENCE_SECONDS, **options)

    def metric(self, name: str) -> float:
        lines = self.get("/metrics").text.splitlines()
        (line,) = [line for line in lines if line.startswith(f"hear_transformers_{name} ")]
        return float(line.split()[-1])


@contextlib.contextmanager
def live(served: Served, token: str = "", hosts: tuple[str, ...] = (), **limits) -> Iterator[Live]:
    """Serve in a thread until the block ends; then every request that was accepted is answered first."""
    with (
        running.bind("127.0.0.1", 0) as bound,
        Service(served, Limits(**{"decoders": 1, "timeout_seconds": PATIENCE_SECONDS, **limits})) as service,
        requests.Session() as session,
    ):
        server = running.make_server(service, bound, token, hosts)
        thread = threading.Thread(target=running.run, args=(server, bound))
        thread.start()
        until(lambda: server.started)
        try:
            yield Live(running.address_of(bound), service, session)
        finally:
            session.close()
            server.should_exit = True
            thread.join()


def until(condition) -> None:
    """Wait until something is so."""
    end = time.monotonic() + PATIENCE_SECONDS
    while not condition():
        assert time.monotonic() < end, "it did not happen"
        time.sleep(0.01)
