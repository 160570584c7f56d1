"""What strangers may send: nothing of the server is read or written by it, and nothing of it ends the server."""

import io
import json
import os
import signal
import socket
import struct
import sys
import time
from pathlib import Path

import numpy as np
import pytest
import soundfile

from hear_transformers.serve import decoding, service
from tests.helpers.live import Live, live, until

EMBEDDINGS = "/v1/embeddings"


@pytest.fixture(scope="module")
def content(clips) -> bytes:
    return (clips / "a.wav").read_bytes()


def scratch(server: Live) -> Path:
    return Path(server.service._scratch.name)


NAMES = [
    "../../evil.wav",
    "/etc/passwd",
    "file:///etc/passwd",
    "http://127.0.0.1:1/a.wav",
    "..",
    "a\\..\\b",
    "x" * 3000,
]


@pytest.mark.parametrize("name", NAMES, ids=range(len(NAMES)))
def test_a_name_is_text_and_no_path(server, content, name, monkeypatch):
    placed = []
    add = service.Task
    monkeypatch.setattr(service, "Task", lambda path, *rest: placed.append(path) or add(path, *rest))
    answer = server.post(EMBEDDINGS, files={"file": (name, content)})
    assert answer.status_code == 200
    assert answer.json()["data"][0]["file"] == name[:255]
    assert [(path.parent.parent, path.name) for path in placed] == [(scratch(server), "0")]
    assert not [*scratch(server).iterdir()]


@pytest.mark.parametrize("start", ["", "file://", "concat:", "data:audio/wav,"])
def test_no_path_or_address_in_json_is_opened(server, clips, start):
    for sound in (f"{start}{clips / 'a.wav'}", {"path": str(clips / "a.wav")}, {"url": f"{start}{clips / 'a.wav'}"}):
        answer = server.post(EMBEDDINGS, json={"input": sound})
        assert answer.status_code == 400


PLAYLISTS = {
    "list.m3u8": "#EXTM3U\n#EXT-X-TARGETDURATION:1\n#EXTINF:1,\n{path}\n#EXT-X-ENDLIST\n",
    "list.m3u": "#EXTM3U\n{path}\n",
    "list.pls": "[playlist]\nFile1={path}\nNumberOfEntries=1\n",
    "list.ffconcat": "ffconcat version 1.0\nfile '{path}'\n",
    "list.txt": "file '{path}'\n",
    "list.asx": '<asx version="3.0"><entry><ref href="{path}"/></entry></asx>',
    "list.mpd": '<MPD xmlns="urn:mpeg:dash:schema:mpd:2011"><Period><BaseURL>{path}</BaseURL></Period></MPD>',
    "list.sdp": "v=0\no=- 0 0 IN IP4 127.0.0.1\nm=audio 5004 RTP/AVP 0\n",
    "list.xspf": "<playlist><trackList><track><location>file://{path}</location></track></trackList></playlist>",
    "list.cue": 'FILE "{path}" WAVE\n  TRACK 01 AUDIO\n',
    "list.wpl": '<smil><body><seq><media src="{path}"/></seq></body></smil>',
}


@pytest.mark.parametrize("name", PLAYLISTS)
def test_a_list_of_other_files_is_no_audio(server, clips, name):
    text = PLAYLISTS[name].format(path=clips / "a.wav")
    for sent in (text.encode(), b"ID3\x04\0\0\0\0\0\0" + text.encode()):
        answer = server.post(EMBEDDINGS, files={"file": (name, sent)})
        assert answer.status_code == 422, answer.text


def box(kind: bytes, *parts: bytes) -> bytes:
    body = b"".join(parts)
    return struct.pack(">I4s", 8 + len(body), kind) + body


def quicktime_of_another_file(path: Path) -> bytes:
    """Make a QuickTime file whose samples are said to lie in another file: 16 bits, mono, 8 kHz."""
    n_samples, name = 4000, os.fsencode(path)
    alias = bytes(150) + struct.pack(">hh", 2, len(name)) + name + bytes(len(name) % 2) + struct.pack(">hh", -1, 0)
    reference = struct.pack(">I4sI", 12 + len(alias), b"alis", 0) + alias
    entry = struct.pack(">I4s6xH", 36, b"sowt", 1) + struct.pack(">HHIHHHHI", 0, 0, 0, 1, 16, 0, 0, 8000 << 16)
    table = box(
        b"stbl",
        box(b"stsd", struct.pack(">II", 0, 1), entry),
        box(b"stts", struct.pack(">IIII", 0, 1, n_samples, 1)),
        box(b"stsc", struct.pack(">IIIII", 0, 1, 1, n_samples, 1)),
        box(b"stsz", struct.pack(">III", 0, 2, n_samples)),
        box(b"stco", struct.pack(">III", 0, 1, 44)),
    )
    data = box(b"dinf", box(b"dref", struct.pack(">II", 0, 1), reference))
    media = box(
        b"mdia",
        box(b"mdhd", struct.pack(">IIIIIHH", 0, 0, 0, 8000, n_samples, 0, 0)),
        box(b"hdlr", struct.pack(">I4s4sIIIB", 0, b"mhlr", b"soun", 0, 0, 0, 0)),
        box(b"minf", box(b"smhd", bytes(8)), data, table),
    )
    track = box(b"trak", box(b"tkhd", struct.pack(">IIIIII", 7, 0, 0, 1, 0, n_samples), bytes(60)), media)
    movie = box(b"mvhd", struct.pack(">IIIIIIH", 0, 0, 0, 8000, n_samples, 0x10000, 0x100), bytes(74))
    return box(b"ftyp", b"qt  ", bytes(4)) + box(b"moov", movie, track) + box(b"mdat", bytes(64))


def test_samples_in_another_file_are_not_read(server, clips):
    pytest.importorskip("av")
    answer = server.post(EMBEDDINGS, files={"file": ("a.mov", quicktime_of_another_file(clips / "a.wav"))})
    assert answer.status_code == 422, answer.text


def test_a_table_is_no_door_to_its_files(server, clips):
    file = server.get("/v1/search", params={"row": 1}).json()["data"][0]["matches"][0]["file"]
    assert Path(file).is_file()
    for path in (file, f"/v1/search/{file}", "/v1/files/0", "/%2e%2e/%2e%2e/etc/passwd"):
        assert server.get(f"/{path.lstrip('/')}").status_code == 404


@pytest.mark.parametrize(
    "sent",
    [
        b"",
        b"RIFF",
        b"RIFF\xff\xff\xff\xffWAVEfmt \x10\0\0\0\x01\0" + b"\xff" * 12 + b"\x20\0data\xff\xff\xff\xff",
        b"fLaC\0\0\0\x22" + b"\xff" * 34,
        b"OggS" + b"\xff" * 200,
        b"\x1aE\xdf\xa3" + b"\xff" * 200,
        b"\0\0\0\x18ftypM4A " + b"\xff" * 200,
        b"TTA1" + b"\xff" * 60,
        b"PK\x03\x04" + bytes(100),
        b"\x80\x04\x95cos\nsystem\n",
    ],
    ids=range(10),
)
def test_bytes_that_are_no_audio_are_refused_without_a_path(server, sent):
    answer = server.post(EMBEDDINGS, files={"file": ("it.wav", sent)})
    assert answer.status_code in (400, 422), answer.text
    assert str(scratch(server)) not in answer.text
    assert "Traceback" not in answer.text


def test_samples_that_are_no_numbers_are_refused(server):
    text = '{"input": {"array": [0.1, NaN, 0.2], "sampling_rate": 16000}}'
    answer = server.post(EMBEDDINGS, data=text, headers={"Content-Type": "application/json"})
    assert answer.status_code == 422


@pytest.mark.parametrize("text", ["[" + "[]," * 20_000 + "[]]", "[" + "0," * 4_100_000 + "0]"], ids=["lists", "values"])
def test_json_that_takes_much_memory_is_not_parsed(server, monkeypatch, text):
    monkeypatch.setattr("hear_transformers.serve.uploads.parse_json", None)
    answer = server.post(EMBEDDINGS, data='{"input": ' + text + "}", headers={"Content-Type": "application/json"})
    assert (answer.status_code, "send the sound as a file" in answer.text) == (413, True)


def test_deep_json_is_refused(server):
    text = '{"input": ' + "[" * 1_000 + "]" * 1_000 + "}"
    answer = server.post(EMBEDDINGS, data=text, headers={"Content-Type": "application/json"})
    assert "nested deeper" in answer.json()["error"]["message"]


@pytest.mark.parametrize(
    ("kind", "sent", "words"),
    [
        ("multipart/form-data", b"--x", "no boundary"),
        ("multipart/form-data; boundary=x", b"no form at all", "not a form"),
        (
            "multipart/form-data; boundary=x",
            b"--x\r\nContent-Disposition: form-data; filename=a\r\n\r\nRIFF",
            "ends before",
        ),
        ("multipart/form-data; boundary=" + "x" * 999, b"--x", "not a form"),
        ("multipart/form-data; boundary=x", b"--x\r\n" + b"A: b\r\n" * 999, "not a form"),
    ],
    ids=["no boundary", "no form", "cut", "long boundary", "many headers"],
)
def test_broken_forms_are_refused(server, kind, sent, words):
    answer = server.post(EMBEDDINGS, data=sent, headers={"Content-Type": kind})
    assert answer.status_code == 400
    assert words in answer.json()["error"]["message"]


def raw(server: Live, request: bytes, *more: bytes) -> bytes:
    """Send bytes as they are, and return all that comes back until the server ends the connection."""
    host, _, port = server.url.removeprefix("http://").partition(":")
    answer = bytearray()
    with socket.create_connection((host, int(port)), timeout=60) as connection:
        for part in (request, *more):
            connection.sendall(part)
        while block := connection.recv(65536):
            answer += block
    return bytes(answer)


HEAD = b"POST /v1/embeddings HTTP/1.1\r\nHost: localhost\r\n"


def test_no_http_is_refused(server):
    assert raw(server, b"\x16\x03\x01 hello\r\n\r\n").startswith(b"HTTP/1.1 400")


@pytest.fixture(scope="module")
def narrow(served):
    with live(served, upload_megabytes=0.05, files=2, audio_seconds=2.0) as server:
        yield server


def test_a_body_that_says_it_is_too_large_is_refused_unread(narrow):
    answer = raw(narrow, HEAD + b"Content-Length: 10000000000\r\nExpect: 100-continue\r\n\r\n")
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"100 Continue" not in answer


def test_a_body_without_an_end_is_refused_when_it_is_too_large(narrow):
    chunk = b"4000\r\n" + bytes(0x4000) + b"\r\n"
    answer = raw(narrow, HEAD + b"Transfer-Encoding: chunked\r\n\r\n", *[chunk] * 8)
    assert answer.startswith(b"HTTP/1.1 413")
    assert b"connection: close" in answer.lower()


def test_clients_that_send_all_first_read_why_it_was_too_large(narrow):
    answer = narrow.post(EMBEDDINGS, data=bytes(80_000))
    assert answer.status_code == 413
    assert "larger than 50,000 bytes" in answer.json()["error"]["message"]


def test_too_many_files_are_refused(narrow):
    answer = narrow.post(EMBEDDINGS, files=[("file", (f"{i}.wav", b"RIFF")) for i in range(3)])
    assert (answer.status_code, answer.json()["error"]["message"][:17]) == (413, "more than 2 files")


def test_long_audio_is_refused_however_small_its_file(narrow):
    silence = io.BytesIO()
    soundfile.write(silence, np.zeros(1000 * 8000, np.int16), 8000, format="FLAC")
    assert len(silence.getvalue()) < 50_000
    answer = narrow.post(EMBEDDINGS, files={"file": ("hour.flac", silence.getvalue())})
    assert answer.status_code == 422
    assert answer.json()["error"]["message"].startswith("hour.flac: 1000 s of audio, and this server takes 2 s")


def kill_itself(task):
    os.kill(os.getpid(), signal.SIGSEGV)


def take_all_memory(task):
    return [np.ones(2**27, np.uint8) for _ in range(64)]


def never_end(task):
    time.sleep(3600)


def open_files(task):
    raise decoding.AudioError(json.dumps(sorted(map(int, os.listdir("/proc/self/fd")))))


def write_a_file(task):
    task.path.write_bytes(bytes(100))


def fail(task):
    raise RuntimeError("of the password file")


only_linux = pytest.mark.skipif(sys.platform != "linux", reason="where decoders are forked and limited")


@pytest.fixture
def deceived(served, monkeypatch):
    """Serve with decoders that do something else with the first file, and decode those after it."""

    def serve(something, **limits):
        decode = decoding.decode
        monkeypatch.setattr(decoding, "ROOM_BYTES", 2**28)  # of this machine's memory
        monkeypatch.setattr(decoding, "decode", lambda task: something(task) if task.name == "bad" else decode(task))
        return live(served, **limits)

    return serve


@only_linux
@pytest.mark.parametrize(
    ("something", "status", "words", "n_deaths"),
    [
        (kill_itself, 422, "bad: the process that decoded it ended (killed by SIGSEGV)", 1),
        (take_all_memory, 422, "there is not enough memory", 0),
        (never_end, 504, "not answered in time", 1),
        (write_a_file, 500, "the server failed at this; its log says why", 0),
        (fail, 500, "the server failed at this; its log says why", 0),
    ],
)
def test_a_decoder_that_goes_wrong_fails_its_file_alone(deceived, content, something, status, words, n_deaths):
    limits = {"timeout_seconds": 3.0} if something is never_end else {}
    with deceived(something, **limits) as server:
        answer = server.post(EMBEDDINGS, files={"file": ("bad", content)})
        assert answer.status_code == status
        assert words in answer.json()["error"]["message"]
        until(lambda: server.metric("decoder_deaths_total") == n_deaths)
        server.service.limits = server.service.limits.__class__()  # time enough for this machine
        assert server.post(EMBEDDINGS, files={"file": ("good", content)}).status_code == 200


@only_linux
def test_decoders_hold_nothing_of_the_server_open(deceived, content):
    with deceived(open_files) as server:
        server.get("/health")  # a connection of another client
        answer = server.post(EMBEDDINGS, files={"file": ("bad", content)})
        # Standard streams, the pipe, the folder that is listed, and the one that waits for signals of the pool.
        assert len(json.loads(answer.json()["error"]["message"])) <= 5


def test_a_token_is_asked_for(served, content):
    with live(served, token="secret") as server:
        assert server.get("/health").status_code == 200
        for shown in (None, "Bearer wrong", "Basic secret", "Bearer", "secret", "Bearer secretsecret"):
            answer = server.post(EMBEDDINGS, data=content, headers={"Authorization": shown})
            assert answer.status_code == server.get("/metrics", headers={"Authorization": shown}).status_code == 401
            assert answer.headers["WWW-Authenticate"] == "Bearer"
        answer = server.post(EMBEDDINGS, data=content, headers={"Authorization": "Bearer secret"})
        assert answer.status_code == 200


def test_a_page_of_another_site_cannot_name_this_machine_its_own(server):
    assert server.get("/info", headers={"Host": "rebound.example"}).status_code == 403
    for host in ("localhost", "127.0.0.1:80", "[::1]:8000"):
        assert server.get("/info", headers={"Host": host}).status_code == 200


def test_a_proxys_name_is_allowed_when_it_is_said(served):
    with live(served, hosts=("embeddings.example",)) as server:
        assert server.get("/info", headers={"Host": "embeddings.example"}).status_code == 200


def test_pages_of_other_sites_read_no_answers(server):
    answer = server.get("/info", headers={"Origin": "https://example.org"})
    assert not [name for name in answer.headers if name.lower().startswith("access-control")]
