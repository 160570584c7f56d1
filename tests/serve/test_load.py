"""More clients than a server has room for, clients that leave, and its end: no request is lost."""

import os
import signal
import socket
import subprocess
import sys
import threading
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
import requests

from hear_transformers.serve.batching import Batcher
from tests.helpers.live import PATIENCE_SECONDS, live, until

ROOT = Path(__file__).parents[2]
EMBEDDINGS = "/v1/embeddings"


@pytest.fixture
def held(monkeypatch):
    """Hold the network until an event is set."""
    go = threading.Event()
    embed = Batcher._embed

    def wait(*arguments):
        go.wait(PATIENCE_SECONDS)
        embed(*arguments)

    monkeypatch.setattr(Batcher, "_embed", wait)
    yield go
    go.set()


@pytest.fixture(scope="module")
def content(clips) -> bytes:
    return (clips / "a.wav").read_bytes()


def post(url: str, content: bytes) -> requests.Response:
    return requests.post(url + EMBEDDINGS, data=content, timeout=PATIENCE_SECONDS)


def test_what_the_queue_does_not_take_is_refused_and_what_it_takes_is_answered(served, content, held):
    n_clients, queue = 12, 5
    with live(served, queue=queue) as server, ThreadPoolExecutor(n_clients) as clients:
        answers = [clients.submit(post, server.url, content) for _ in range(n_clients)]
        until(lambda: sum(answer.done() for answer in answers) == n_clients - queue)
        assert server.metric("queue_length") == queue
        held.set()
        done = [answer.result() for answer in answers]
        assert server.metric("queue_length") == 0
    assert Counter(answer.status_code for answer in done) == {200: queue, 429: n_clients - queue}
    refused = [answer for answer in done if answer.status_code == 429]
    assert {answer.headers["Retry-After"] for answer in refused} == {"1"}


def test_clips_of_a_client_that_left_are_not_computed(served, content, held):
    with live(served) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port))) as connection:
            head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
            connection.sendall(head.encode() + content)
            until(lambda: server.service.n_accepted == 1)
        until(lambda: server.service.n_accepted == 0)
        held.set()
        assert post(server.url, content).status_code == 200


def test_a_body_that_does_not_come_is_not_waited_for(served):
    with live(served, timeout_seconds=1.0) as server:
        host, _, port = server.url.removeprefix("http://").partition(":")
        with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
            connection.sendall(f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: 9\r\n\r\nx".encode())
            answer = b"".join(iter(lambda: connection.recv(65536), b""))
        assert answer.startswith(b"HTTP/1.1 408")
        assert server.service.n_accepted == 0


def test_an_error_of_the_network_fails_its_batch_and_not_the_server(served, content, monkeypatch, caplog):
    with live(served) as server:
        with monkeypatch.context() as broken:
            broken.setattr("hear_transformers.serve.batching.embed", lambda *rest, **options: 1 / 0)
            answer = post(server.url, content)
        assert (answer.status_code, "division" in answer.text) == (500, False)
        assert "division by zero" in caplog.text
        assert post(server.url, content).status_code == 200


@pytest.fixture
def command(tmp_path):
    """Start the command, and return the process and the server's address."""
    started = []

    def start(*options: str) -> tuple[subprocess.Popen, str]:
        arguments = [sys.executable, "-m", "hear_transformers", "serve", "--layer=8", "--port=0", *options]
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "TMPDIR": str(tmp_path), "OMP_NUM_THREADS": "1"}
        process = subprocess.Popen(arguments, env=environment, stdout=subprocess.PIPE, text=True)
        started.append(process)
        line = process.stdout.readline()
        assert line.startswith("tiny/tiny at http://127.0.0.1:"), line
        return process, line.split()[2].rstrip(";")

    yield start
    for process in started:
        process.kill()
        process.wait()
        process.stdout.close()


@pytest.mark.skipif(os.name == "nt", reason="there is no SIGTERM")
@pytest.mark.parametrize("name", ["SIGTERM", "SIGINT", "SIGHUP"])
def test_a_signal_ends_the_server_once_what_it_accepted_is_answered(command, content, name, tmp_path):
    if signal.getsignal(number := getattr(signal, name)) == signal.SIG_IGN:
        pytest.skip(f"{name} is ignored here, and by what is started")
    process, url = command()
    host, _, port = url.removeprefix("http://").partition(":")
    until(lambda: requests.get(f"{url}/health", timeout=PATIENCE_SECONDS).ok)
    with socket.create_connection((host, int(port)), timeout=PATIENCE_SECONDS) as connection:
        head = f"POST {EMBEDDINGS} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(content)}\r\n\r\n"
        connection.sendall(head.encode() + content[:1000])
        until(lambda: "queue_length 1" in requests.get(f"{url}/metrics", timeout=PATIENCE_SECONDS).text)
        process.send_signal(number)
        until(lambda: refuses(host, int(port)))
        connection.sendall(content[1000:])
        answer = b"".join(iter(lambda: connection.recv(65536), b""))
    assert answer.startswith(b"HTTP/1.1 200")
    assert process.wait(PATIENCE_SECONDS) == 0
    assert not [*tmp_path.iterdir()]


def refuses(host: str, port: int) -> bool:
    try:
        socket.create_connection((host, port), timeout=PATIENCE_SECONDS).close()
    except ConnectionRefusedError:
        return True
    return False
