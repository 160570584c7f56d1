"""Downloads against a server on the loopback device that misbehaves on request; no real network is used."""

import hashlib
import os
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import filelock
import pooch
import pytest
import safetensors.torch
import torch

from hear_transformers.checkpoints import store
from hear_transformers.checkpoints.published import Checkpoint
from hear_transformers.checkpoints.store import fetch, locate
from hear_transformers.errors import WeightsError

BODY = safetensors.torch.save({"weight": torch.arange(20_000.0)})
OTHER_BODY = safetensors.torch.save({"weight": torch.ones(20_000)})
SHA256 = hashlib.sha256(BODY).hexdigest()
MD5 = hashlib.md5(BODY).hexdigest()


class Server(ThreadingHTTPServer):
    """Answers the n-th request with the n-th reply, and every later one with the last."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.replies: list[Callable[[Any], None]] = [whole]
        self.requests = 0
        self.asked = threading.Event()
        self.release = threading.Event()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}/net.safetensors"

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing when a client goes away in the middle."""


class Handler(BaseHTTPRequestHandler):
    server: Server

    def do_GET(self) -> None:
        reply = self.server.replies[min(self.server.requests, len(self.server.replies) - 1)]
        self.server.requests += 1
        self.server.asked.set()
        reply(self)

    def log_message(self, *args: Any) -> None:
        """Say nothing."""

    def start(self, length: int) -> None:
        self.send_response(200)
        self.send_header("Content-Length", str(length))
        self.end_headers()


def sends(body: bytes) -> Callable[[Handler], None]:
    def reply(handler: Handler) -> None:
        handler.start(len(body))
        handler.wfile.write(body)

    return reply


def fails(status: int) -> Callable[[Handler], None]:
    return lambda handler: handler.send_error(status)


def truncated(handler: Handler) -> None:
    handler.start(len(BODY))
    handler.wfile.write(BODY[: len(BODY) // 2])


def stalled(handler: Handler) -> None:
    truncated(handler)
    handler.server.release.wait(60)


def held_back(handler: Handler) -> None:
    handler.server.release.wait(60)
    whole(handler)


def redirected(handler: Handler) -> None:
    handler.send_response(302)
    handler.send_header("Location", handler.server.url)
    handler.send_header("Content-Length", "0")
    handler.end_headers()


whole = sends(BODY)


@pytest.fixture
def server() -> Iterator[Server]:
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server
        server.release.set()
        server.shutdown()
        thread.join()


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(store.FOLDER_VARIABLE, str(tmp_path / "weights"))
    monkeypatch.setenv("NO_PROXY", "127.0.0.1")
    monkeypatch.setattr(store, "RETRY_PAUSES_S", (0.0, 0.0))
    return tmp_path / "weights"


def published(server: Server, **fields: Any) -> Checkpoint:
    return Checkpoint("net", "net", file="net.safetensors", licence="MIT", url=server.url, **fields)


def kept(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir() if path.name != ".locks"}


def test_downloads_what_is_published(server: Server, folder: Path) -> None:
    assert fetch(published(server, sha256=SHA256, bytes=len(BODY))).read_bytes() == BODY
    assert kept(folder) == {"net.safetensors"}


def test_downloads_once(server: Server) -> None:
    row = published(server)
    assert fetch(row) == fetch(row) == locate(row)
    assert server.requests == 1


def test_a_file_put_there_by_hand_needs_no_server(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / "net.safetensors").write_bytes(BODY)
    assert fetch(published(server, sha256=SHA256)) == folder / "net.safetensors"
    assert server.requests == 0


def test_locating_never_asks_the_server(server: Server) -> None:
    assert locate(published(server)) is None
    assert server.requests == 0


def test_follows_redirects(server: Server) -> None:
    server.replies = [redirected, whole]
    assert fetch(published(server)).read_bytes() == BODY


@pytest.mark.parametrize("failure", [fails(500), fails(503), fails(429), truncated], ids=["500", "503", "429", "cut"])
def test_tries_again_after_a_failure_that_passes(server: Server, folder: Path, failure: Any) -> None:
    server.replies = [failure, whole]
    assert fetch(published(server, md5=MD5)).read_bytes() == BODY
    assert kept(folder) == {"net.safetensors"}


@pytest.mark.parametrize("failure", [fails(500), truncated], ids=["500", "cut"])
def test_gives_up_and_leaves_nothing_behind(server: Server, folder: Path, failure: Any) -> None:
    server.replies = [failure]
    with pytest.raises(WeightsError, match="could not be downloaded"):
        fetch(published(server))
    assert server.requests == 1 + len(store.RETRY_PAUSES_S)
    assert kept(folder) == set()


@pytest.mark.slow
def test_a_server_that_stalls_is_given_up(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "TIMEOUT_S", (5.0, 0.1))
    server.replies = [stalled]
    with pytest.raises(WeightsError, match="timed out"):
        fetch(published(server))
    assert kept(folder) == set()


def test_a_missing_page_is_not_asked_for_again(server: Server) -> None:
    server.replies = [fails(404)]
    with pytest.raises(WeightsError, match="404"):
        fetch(published(server))
    assert server.requests == 1


def test_without_a_network_the_error_says_what_to_do(server: Server, folder: Path) -> None:
    row = published(server)
    server.server_close()
    with pytest.raises(WeightsError) as error:
        fetch(row)
    for part in (server.url, "net.safetensors", str(folder), "HEAR_TRANSFORMERS_WEIGHTS", "load_model(path)"):
        assert part in str(error.value)


@pytest.mark.parametrize(
    ("field", "expected", "found"),
    [
        ("sha256", SHA256, hashlib.sha256(OTHER_BODY).hexdigest()),
        ("md5", MD5, hashlib.md5(OTHER_BODY).hexdigest()),
        ("bytes", 7, len(OTHER_BODY)),
    ],
    ids=["sha256", "md5", "bytes"],
)
def test_another_file_than_the_published_one_is_refused(
    server: Server, folder: Path, field: str, expected: Any, found: Any
) -> None:
    server.replies = [sends(OTHER_BODY)]
    with pytest.raises(WeightsError) as error:
        fetch(published(server, **{field: expected}))
    for part in (server.url, str(expected), str(found)):
        assert part in str(error.value)
    assert kept(folder) == set()
    assert server.requests == 1


def test_a_web_page_is_not_kept_as_a_checkpoint(server: Server, folder: Path) -> None:
    server.replies = [sends(b"<!DOCTYPE html><p>Please log in.")]
    with pytest.raises(WeightsError, match="did not send a checkpoint"):
        fetch(published(server))
    assert kept(folder) == set()


def test_an_unknown_hash_is_pinned(server: Server, folder: Path) -> None:
    fetch(published(server))
    assert (folder / "net.safetensors.sha256").read_text() == f"{SHA256}  net.safetensors\n"


def test_a_file_that_changed_after_pinning_is_refused(server: Server) -> None:
    row = published(server)
    fetch(row).write_bytes(OTHER_BODY)
    with pytest.raises(WeightsError, match=rf"expected {SHA256} \(pinned in .*net.safetensors.sha256"):
        fetch(row)


def test_another_file_than_the_pinned_one_is_not_kept(server: Server, folder: Path) -> None:
    server.replies = [whole, sends(OTHER_BODY)]
    row = published(server)
    fetch(row).unlink()
    with pytest.raises(WeightsError, match="pinned in"):
        fetch(row)
    assert kept(folder) == {"net.safetensors.sha256"}


def test_a_hash_in_the_manifest_needs_no_pin(server: Server, folder: Path) -> None:
    fetch(published(server, md5=MD5))
    assert kept(folder) == {"net.safetensors"}


@pytest.mark.parametrize("interruption", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_an_interrupted_download_leaves_nothing_behind(
    server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch, interruption: BaseException
) -> None:
    def write_and_stop(self: Any, url: str, output_file: str, pooch: None) -> None:
        Path(output_file).write_bytes(BODY[:100])
        raise interruption

    monkeypatch.setattr(pooch.HTTPDownloader, "__call__", write_and_stop)
    with pytest.raises((WeightsError, KeyboardInterrupt)):
        fetch(published(server))
    assert kept(folder) == set()


def test_a_folder_that_cannot_be_made_is_named(server: Server, folder: Path) -> None:
    folder.write_text("a file where the folder should be")
    with pytest.raises(WeightsError, match=f"{folder}.*cannot be written"):
        fetch(published(server))


def test_an_embedded_checkpoint_is_never_downloaded() -> None:
    with pytest.raises(WeightsError, match="install the package again"):
        fetch(Checkpoint("net", "net", file="gone.safetensors", licence="MIT", embedded=True))


def test_waits_only_so_long_for_another_process(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(store, "LOCK_TIMEOUT_S", 0.0)
    (folder / ".locks").mkdir(parents=True)
    with (
        filelock.FileLock(folder / ".locks" / "net.safetensors.lock"),
        pytest.raises(WeightsError, match="another process"),
    ):
        fetch(published(server))


def test_progress_goes_to_stderr_when_asked(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(published(server), progress=True)
    printed = capsys.readouterr()
    assert printed.out == ""
    assert "100%" in printed.err


def test_prints_nothing_unless_asked(server: Server, capsys: pytest.CaptureFixture[str]) -> None:
    fetch(published(server))
    assert capsys.readouterr() == ("", "")


def fetch_in_another_process(row: Checkpoint) -> subprocess.Popen[str]:
    code = f"from hear_transformers.checkpoints.store import Checkpoint, fetch; print(fetch({row!r}))"
    return subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ.copy())


@pytest.mark.slow
def test_two_processes_download_once(server: Server, folder: Path) -> None:
    server.replies = [held_back]
    row = published(server)
    with fetch_in_another_process(row) as other:
        assert server.asked.wait(120)
        # Time enough to send a second request, if the lock did not hold this one back.
        threading.Timer(0.2, server.release.set).start()
        mine = fetch(row)
        printed, _ = other.communicate(timeout=120)
    assert printed.strip() == str(mine)
    assert server.requests == 1


@pytest.mark.slow
def test_a_killed_download_blocks_nobody(server: Server, folder: Path) -> None:
    server.replies = [stalled, whole]
    row = published(server)
    with fetch_in_another_process(row) as other:
        assert server.asked.wait(120)
        other.kill()
    assert fetch(row).read_bytes() == BODY
    assert kept(folder) == {"net.safetensors", "net.safetensors.sha256"}
