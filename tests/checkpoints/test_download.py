"""Downloads against a server on the loopback device that misbehaves on request; no real network is used."""

import dataclasses
import gzip
import hashlib
import json
import os
import socket
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import filelock
import pytest
import requests
import safetensors.torch
import torch

from hear_transformers.checkpoints import download, store
from hear_transformers.checkpoints.published import Checkpoint, manifest
from hear_transformers.checkpoints.store import fetch, locate
from hear_transformers.errors import WeightsError

BODY = safetensors.torch.save({"weight": torch.arange(20_000.0)})
HALF = len(BODY) // 2
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
        self.ranges: list[str | None] = []
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
        self.server.ranges.append(self.headers.get("Range"))
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
PART = ".net.safetensors.part"


def serves(
    body: bytes = BODY, *, tag: str | None = '"1"', stop: int | None = None, heeds: bool = True, **lies: str
) -> Callable[[Handler], None]:
    """Answer as a server with ranges does.

    Parameters
    ----------
    tag : ETag of the content
    stop : position at which the connection breaks off
    heeds : False to take no notice of If-Range
    lies : headers in place of the right ones, with underscores
    """

    def reply(handler: Handler) -> None:
        asked = handler.headers.get("Range")
        first = int(asked.removeprefix("bytes=").removesuffix("-")) if asked else 0
        if heeds and handler.headers.get("If-Range") not in (None, tag):
            first = 0
        headers = {"Content-Length": str(len(body) - first)}
        if tag:
            headers["ETag"] = tag
        if first >= len(body):
            handler.send_error(416)
            return
        if first:
            headers["Content-Range"] = f"bytes {first}-{len(body) - 1}/{len(body)}"
        handler.send_response(206 if first else 200)
        for name, value in (headers | {name.replace("_", "-"): value for name, value in lies.items()}).items():
            handler.send_header(name, value)
        handler.end_headers()
        handler.wfile.write(body[first:stop])

    return reply


def compressed(handler: Handler) -> None:
    body = gzip.compress(BODY)
    handler.send_response(200)
    handler.send_header("Content-Encoding", "gzip")
    handler.send_header("Content-Length", str(len(body)))
    handler.end_headers()
    handler.wfile.write(body)


def too_much(handler: Handler) -> None:
    handler.send_response(206)
    handler.send_header("Content-Range", f"bytes {HALF}-{len(BODY) - 1}/{len(BODY)}")
    handler.send_header("ETag", '"1"')
    handler.end_headers()
    handler.wfile.write(BODY)


def hangs_up(handler: Handler) -> None:
    handler.connection.shutdown(socket.SHUT_RDWR)


def trickles(handler: Handler) -> None:
    handler.start(len(BODY))
    for start in range(0, len(BODY), 100):
        if handler.server.release.wait(0.01):
            break
        handler.wfile.write(BODY[start : start + 100])


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
    monkeypatch.setattr(download, "RETRY_PAUSES_S", (0.0, 0.0))
    monkeypatch.setattr(download, "CHUNK_BYTES", HALF // 4)  # what came of a chunk that breaks off is lost
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


@pytest.mark.parametrize("failure", [fails(500), fails(503), fails(429), truncated, hangs_up])
def test_tries_again_after_a_failure_that_passes(server: Server, folder: Path, failure: Any) -> None:
    server.replies = [failure, whole]
    assert fetch(published(server, md5=MD5)).read_bytes() == BODY
    assert kept(folder) == {"net.safetensors"}


def test_gives_up_on_a_server_that_fails_and_leaves_nothing_behind(server: Server, folder: Path) -> None:
    server.replies = [fails(500)]
    with pytest.raises(WeightsError, match="500 Internal Server Error"):
        fetch(published(server))
    assert server.requests == 1 + len(download.RETRY_PAUSES_S)
    assert kept(folder) == set()


def test_gives_up_on_a_server_that_breaks_off_and_keeps_the_part(server: Server, folder: Path) -> None:
    server.replies = [truncated]
    with pytest.raises(WeightsError, match="broke"):
        fetch(published(server))
    assert kept(folder) == {PART, f"{PART}.json"}


@pytest.mark.slow
def test_a_server_that_stalls_is_given_up(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "TIMEOUT_S", (5.0, 0.1))
    server.replies = [stalled]
    with pytest.raises(WeightsError, match="timed out"):
        fetch(published(server))
    assert kept(folder) == {PART, f"{PART}.json"}


@pytest.mark.parametrize("status", [401, 403, 404, 410, 451])
def test_a_refusal_is_not_asked_for_again(server: Server, status: int) -> None:
    server.replies = [fails(status)]
    with pytest.raises(WeightsError, match=str(status)):
        fetch(published(server))
    assert server.requests == 1


def test_a_server_may_ask_for_a_pause(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    pauses: list[float] = []
    monkeypatch.setattr(download.time, "sleep", pauses.append)

    def busy(handler: Handler) -> None:
        handler.send_response(429)
        for header in (("Retry-After", "7"), ("Content-Length", "0")):
            handler.send_header(*header)
        handler.end_headers()

    server.replies = [busy, whole]
    assert fetch(published(server)).read_bytes() == BODY
    assert pauses == [7.0]


def test_a_server_that_asks_for_a_long_pause_is_not_waited_for(server: Server) -> None:
    def busy(handler: Handler) -> None:
        handler.send_response(503)
        for header in (("Retry-After", "3600"), ("Content-Length", "0")):
            handler.send_header(*header)
        handler.end_headers()

    server.replies = [busy]
    with pytest.raises(WeightsError, match=r"503 .*try again in 3600 s"):
        fetch(published(server))
    assert server.requests == 1


def test_a_connection_that_is_refused_is_not_tried_again(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download.time, "sleep", lambda seconds: pytest.fail("tried again"))
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        port = unused.getsockname()[1]
    with pytest.raises(store.OfflineError):
        fetch(dataclasses.replace(published(server), url=f"http://127.0.0.1:{port}/net"))


# ---- resumption


@pytest.mark.parametrize("fields", [{}, {"sha256": SHA256}, {"bytes": len(BODY)}], ids=["no hash", "hash", "size"])
def test_a_broken_download_is_resumed_where_it_broke(server: Server, folder: Path, fields: Any) -> None:
    server.replies = [serves(stop=HALF), serves()]
    assert fetch(published(server, **fields)).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-"]
    assert not [name for name in kept(folder) if ".part" in name]


def test_a_download_that_breaks_often_goes_forward(server: Server) -> None:
    server.replies = [serves(stop=length) for length in range(10_000, len(BODY), 10_000)] + [serves()]
    assert fetch(published(server)).read_bytes() == BODY


def test_a_broken_download_is_resumed_through_redirects(server: Server) -> None:
    server.replies = [redirected, serves(stop=HALF), redirected, serves()]
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges == [None, None, f"bytes={HALF}-", f"bytes={HALF}-"]


def test_another_process_goes_on_with_the_part(server: Server, folder: Path) -> None:
    server.replies = [serves(stop=HALF), fails(403), serves()]
    with pytest.raises(WeightsError, match="403"):
        fetch(published(server))
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges[2] == f"bytes={HALF}-"


RESTARTS = {
    "ranges are ignored": [serves(stop=HALF), whole],
    "the file changed": [serves(OTHER_BODY, tag='"0"', stop=HALF), serves()],
    "the file changed and If-Range is ignored": [serves(OTHER_BODY, tag='"0"', stop=HALF), serves(heeds=False)],
    "another part is sent": [serves(stop=HALF), serves(Content_Range=f"bytes 0-9/{len(BODY)}"), serves()],
    "no Content-Range": [serves(stop=HALF), serves(Content_Range="?"), serves()],
    "another length": [serves(stop=HALF), serves(Content_Range=f"bytes {HALF}-{len(BODY)}/{len(BODY) + 1}"), serves()],
    "encoded part": [serves(stop=HALF), serves(Content_Encoding="gzip"), serves()],
    "the whole for a part": [serves(stop=HALF), too_much, serves()],
    "shorter now": [serves(OTHER_BODY + b"longer", tag='"1"', stop=len(BODY) + 2), serves()],
}


@pytest.mark.parametrize("fields", [{}, {"sha256": SHA256}], ids=["no hash", "hash"])
@pytest.mark.parametrize("replies", RESTARTS.values(), ids=RESTARTS)
def test_a_part_that_cannot_be_gone_on_with_is_begun_anew(server: Server, replies: Any, fields: Any) -> None:
    server.replies = replies
    assert fetch(published(server, **fields)).read_bytes() == BODY


def test_without_a_name_for_its_content_only_a_hash_allows_to_go_on(server: Server) -> None:
    server.replies = [serves(tag=None, stop=HALF), serves(tag=None)]
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges == [None, None]


def test_a_hash_allows_to_go_on_without_a_name_for_the_content(server: Server) -> None:
    server.replies = [serves(tag=None, stop=HALF), serves(tag=None)]
    assert fetch(published(server, sha256=SHA256)).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-"]


def test_a_weak_tag_names_no_content(server: Server) -> None:
    server.replies = [serves(tag='W/"1"', stop=HALF), serves(tag='W/"1"')]
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges == [None, None]


def test_a_wrong_hash_after_a_resumption_starts_over_once(server: Server, folder: Path) -> None:
    server.replies = [serves(OTHER_BODY, stop=HALF), serves(), serves()]
    assert fetch(published(server, sha256=SHA256)).read_bytes() == BODY
    assert server.ranges == [None, f"bytes={HALF}-", None]


def test_a_wrong_hash_after_starting_over_is_refused(server: Server, folder: Path) -> None:
    server.replies = [serves(stop=HALF), serves(OTHER_BODY), serves(OTHER_BODY)]
    with pytest.raises(WeightsError, match=f"expected {SHA256}"):
        fetch(published(server, sha256=SHA256))
    assert server.requests == 3
    assert kept(folder) == set()


def test_a_part_that_is_complete_is_verified_without_a_request(server: Server, folder: Path) -> None:
    folder.mkdir()
    (folder / PART).write_bytes(BODY)
    notes = {"url": server.url, "validator": '"1"', "total": len(BODY)}
    (folder / f"{PART}.json").write_text(json.dumps(notes))
    assert fetch(published(server, sha256=SHA256)).read_bytes() == BODY
    assert server.requests == 0


@pytest.mark.parametrize(
    "notes",
    [
        "",
        "{",
        "[]",
        "{}",
        '{"url": 3}',
        '{"url": "URL", "validator": 3, "total": 7}',
        '{"url": "URL", "validator": "a\\nb", "total": 7}',
        '{"url": "URL", "validator": "a", "total": "7"}',
        '{"url": "http://elsewhere", "validator": "a", "total": 7}',
    ],
)
def test_damaged_notes_of_a_part_are_not_followed(server: Server, folder: Path, notes: str) -> None:
    folder.mkdir()
    (folder / PART).write_bytes(OTHER_BODY[:HALF])
    (folder / f"{PART}.json").write_text(notes.replace("URL", server.url))
    server.replies = [serves()]
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges[0] is None


def test_a_part_of_another_address_is_not_gone_on_with(server: Server, folder: Path) -> None:
    server.replies = [serves(stop=HALF), fails(403), serves()]
    with pytest.raises(WeightsError):
        fetch(published(server))
    moved = dataclasses.replace(published(server), url=f"{server.url}?version=2")
    assert fetch(moved).read_bytes() == BODY
    assert server.ranges[2] is None


def test_a_compressed_answer_is_unpacked(server: Server) -> None:
    server.replies = [compressed]
    assert fetch(published(server, sha256=SHA256)).read_bytes() == BODY


def test_more_than_was_announced_is_refused(server: Server, folder: Path) -> None:
    server.replies = [serves(BODY + b"more")]
    with pytest.raises(WeightsError, match=rf"sends {len(BODY) + 4} bytes, expected {len(BODY)}"):
        fetch(published(server, bytes=len(BODY)))
    assert kept(folder) == set()


def test_an_endless_answer_is_refused(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def endless(handler: Handler) -> None:
        handler.send_response(200)
        handler.end_headers()
        while not handler.server.release.is_set():
            handler.wfile.write(bytes(10_000))

    monkeypatch.setattr(download, "MOST_BYTES", 100_000)
    server.replies = [endless]
    with pytest.raises(WeightsError, match="more than 100000 bytes"):
        fetch(published(server))
    assert kept(folder) == set()


def test_a_server_that_is_too_slow_is_asked_anew(server: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(download, "SLOW_AFTER_S", 0.1)
    monkeypatch.setattr(download, "SLOWEST_BYTES_PER_S", 1_000_000)
    monkeypatch.setattr(download, "CHUNK_BYTES", 1_000)
    server.replies = [trickles, whole]
    assert fetch(published(server)).read_bytes() == BODY
    assert server.requests == 2


def test_an_address_that_is_not_encrypted_is_not_followed() -> None:
    plain = SimpleNamespace(status_code=200, url="http://example.org/net.pt")
    one = download.Download("https://example.org/net.pt", Path("net.part"), None, has_hash=False, progress=False)
    with pytest.raises(WeightsError, match="not encrypted"):
        one._check_status(plain)


# ---- mirrors


def test_mirrors_are_asked_in_their_order(server: Server) -> None:
    server.replies = [fails(404), sends(OTHER_BODY), whole]
    mirrors = tuple(f"{server.url}?mirror={i}" for i in (1, 2))
    assert fetch(published(server, sha256=SHA256, mirrors=mirrors)).read_bytes() == BODY
    assert server.requests == 3


def test_a_mirror_stands_in_for_a_host_that_cannot_be_reached(server: Server) -> None:
    row = dataclasses.replace(published(server, sha256=SHA256), url="http://127.0.0.2:9/net", mirrors=(server.url,))
    assert fetch(row).read_bytes() == BODY


def test_every_failure_is_named_where_no_mirror_has_the_file(server: Server) -> None:
    server.replies = [fails(404), fails(403)]
    with pytest.raises(WeightsError, match=r"404 .*; .* 403 "):
        fetch(published(server, sha256=SHA256, mirrors=(f"{server.url}?mirror",)))


def test_mirrors_are_of_rows_with_a_hash() -> None:
    rows = [row for row in manifest().values() if row.mirrors]
    assert len(rows) > 10
    assert all(row.full_hash and url.startswith("https://") for row in rows for url in row.mirrors)


# ---- files of other packages

HUB = "https://huggingface.co/some/net/resolve/main/model.safetensors"
PLACES = {
    "torch.hub": ({"TORCH_HOME": "torch"}, "torch/hub/checkpoints/net.safetensors"),
    "torch.hub in a cache": ({"XDG_CACHE_HOME": "cache"}, "cache/torch/hub/checkpoints/net.safetensors"),
    "torch.hub at home": ({}, ".cache/torch/hub/checkpoints/net.safetensors"),
    "panns_inference": ({}, "panns_data/net.safetensors"),
    "EfficientAT": ({}, "here/resources/net.safetensors"),
    "Hugging Face, by address": ({"HF_HOME": "hf"}, "hf/hub/models--some--net/snapshots/1234/model.safetensors"),
    "Hugging Face, old": ({"HUGGINGFACE_HUB_CACHE": "old"}, "old/models--some--net/snapshots/1/model.safetensors"),
    "Hugging Face, by name": ({"HF_HUB_CACHE": "hub"}, "hub/models--other--copy/snapshots/12/net.safetensors"),
}


@pytest.fixture
def elsewhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """Write a file where another package keeps it."""
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    for name in ("TORCH_HOME", "XDG_CACHE_HOME", "HF_HOME", "HF_HUB_CACHE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)

    def write(key: str, body: bytes = BODY) -> Path:
        variables, place = PLACES[key]
        for name, value in variables.items():
            monkeypatch.setenv(name, str(tmp_path / value))
        path = tmp_path / place
        path.parent.mkdir(parents=True)
        path.write_bytes(body)
        return path

    return write


@pytest.mark.parametrize("key", PLACES)
@pytest.mark.parametrize("known", [{"sha256": SHA256}, {"md5": MD5}], ids=["sha256", "md5"])
def test_a_file_of_another_package_is_used_where_it_lies(elsewhere: Any, folder: Path, key: str, known: Any) -> None:
    path = elsewhere(key)
    row = Checkpoint("net", "net", "net.safetensors", "MIT", url=HUB, **known)
    assert fetch(row).samefile(path)
    assert not (folder / "net.safetensors").exists()


@pytest.mark.parametrize("key", PLACES)
def test_another_file_of_that_name_is_not_used(elsewhere: Any, server: Server, key: str) -> None:
    path = elsewhere(key, OTHER_BODY)
    assert not fetch(published(server, sha256=SHA256)).samefile(path)
    assert server.requests == 1
    assert path.read_bytes() == OTHER_BODY


@pytest.mark.parametrize(
    "known", [{}, {"bytes": len(BODY)}, {"sha256_start": SHA256[:8]}], ids=["none", "size", "start"]
)
def test_without_a_whole_hash_no_file_of_others_is_trusted(elsewhere: Any, server: Server, known: Any) -> None:
    path = elsewhere("torch.hub")
    assert not fetch(published(server, **known)).samefile(path)
    assert server.requests == 1


def test_a_file_of_ones_own_comes_first(elsewhere: Any, folder: Path) -> None:
    elsewhere("torch.hub")
    folder.mkdir()
    (folder / "net.safetensors").write_bytes(BODY)
    row = Checkpoint("net", "net", "net.safetensors", "MIT", url=HUB, sha256=SHA256)
    assert fetch(row) == folder / "net.safetensors"


def test_without_a_network_the_error_says_what_to_do(server: Server, folder: Path) -> None:
    row = published(server)
    server.server_close()
    with pytest.raises(WeightsError) as error:
        fetch(row)
    message = str(error.value)
    for part in ("net.safetensors", "HEAR_TRANSFORMERS_WEIGHTS", "--weights", "load_model(path)", "cannot be reached"):
        assert part in message
    assert message.count(server.url) == 1
    assert message.index(str(folder)) < message.index(server.url)
    assert len(message) < 400 + len(str(folder))


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


def interrupt(monkeypatch: pytest.MonkeyPatch, interruption: BaseException) -> None:
    """Make a download end like this after its first chunk."""

    def chunks(self: Any, size: int) -> Iterator[bytes]:
        yield BODY[:100]
        raise interruption

    monkeypatch.setattr(requests.Response, "iter_content", chunks)


def test_a_full_disk_is_not_kept_full(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    interrupt(monkeypatch, OSError(28, "No space left on device"))
    with pytest.raises(WeightsError, match="cannot be written"):
        fetch(published(server))
    assert kept(folder) == set()


def test_an_interrupted_download_is_resumed(server: Server, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    server.replies = [serves()]
    with monkeypatch.context() as patch:
        interrupt(patch, KeyboardInterrupt())
        with pytest.raises(KeyboardInterrupt):
            fetch(published(server))
    assert kept(folder) == {PART, f"{PART}.json"}
    assert fetch(published(server)).read_bytes() == BODY
    assert server.ranges == [None, "bytes=100-"]


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
