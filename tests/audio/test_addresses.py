"""Audio at addresses: what is one, copies of it, names of outputs, and errors that say what is missing."""

import json
import sys
import tarfile
import threading
import zipfile
from collections.abc import Iterator
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path, PurePath

import fsspec
import numpy as np
import pytest

from hear_transformers import catalogue, efficientat
from hear_transformers.audio import addresses, reading
from hear_transformers.bulk.manifest import read_manifest
from hear_transformers.bulk.sources import find_sources, name_outputs
from hear_transformers.errors import AudioError, OptionError
from hear_transformers.files import Address, place_of


class Handler(SimpleHTTPRequestHandler):
    """Serves the current folder; what is called endless has no end, what is called short ends too early."""

    requests: list[str]

    def do_GET(self) -> None:
        self.requests.append(self.path)
        if "endless" not in self.path and "short" not in self.path:
            super().do_GET()
            return
        self.send_response(200)
        if "short" in self.path:
            self.send_header("Content-Length", "99999")
        self.end_headers()
        try:
            while "endless" in self.path:
                self.wfile.write(bytes(2**16))
            self.wfile.write(b"RIFF")
        except ConnectionError:
            pass

    def log_message(self, *arguments: object) -> None:
        """Print nothing."""


@pytest.fixture
def web(tmp_path, monkeypatch) -> Iterator[str]:
    """Serve the test's folder, which is the current one; the address of the server."""
    monkeypatch.chdir(tmp_path)
    Handler.requests = []
    with ThreadingHTTPServer(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


@pytest.mark.parametrize(
    ("name", "path"),
    {
        "a.wav": "a.wav",
        "12:30:05.wav": "12:30:05.wav",
        r"C:\a.wav": r"C:\a.wav",
        "C:/a.wav": "C:/a.wav",
        "file:a.wav": "a.wav",
        "file:dir/a%20b.wav": "dir/a b.wav",
        "file:/dir/a.wav": "/dir/a.wav",
        "file:///dir/a%2Bb.wav": "/dir/a+b.wav",
        "FILE://localhost/dir/a.wav": "/dir/a.wav",
        "file:///dir/a?b#c.wav": "/dir/a?b#c.wav",
        "~/a.wav": str(Path.home() / "a.wav"),
    }.items(),
)
def test_names_of_files(name, path):
    assert place_of(name) == Path(path)
    assert isinstance(place_of(name), Path)


def test_a_file_of_the_very_name_comes_first(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("file:a.wav", "~"):
        Path(name).touch()
        assert place_of(name) == Path(name)


@pytest.mark.parametrize(
    ("name", "path"),
    {
        "https://example.org/dir/a.wav": "https/example.org/dir/a.wav",
        "https://user:word@example.org:8080/a%20b.wav?token=x/y#z": "https/example.org/a b.wav",
        "s3://bucket/dir/a.wav": "s3/bucket/dir/a.wav",
        "hf://datasets/name/a.wav": "hf/datasets/name/a.wav",
        "zip://dir/a.wav::b.zip": "zip/dir/a.wav",
        "simplecache::s3://bucket/a.wav": "s3/bucket/a.wav",
        "https://example.org/%2e%2e/../../etc/a.wav": "https/example.org/etc/a.wav",
        "gs://bucket/..\\..\\a:b|c.wav": "gs/bucket/.._.._a_b_c.wav",
        "memory://": "memory",
    }.items(),
)
def test_addresses_and_their_names(name, path):
    address = place_of(name)
    assert isinstance(address, Address)
    assert (str(address), str(address.path)) == (name, path)


def test_a_path_made_of_an_address_is_that_address():
    assert place_of(Path("https://example.org/a.wav")) == "https://example.org/a.wav"
    assert place_of(PurePath("s3://bucket/a.wav")) == "s3://bucket/a.wav"


def test_a_file_of_another_machine_is_refused():
    with pytest.raises(AudioError, match=r"file://a\.wav: is a file of the machine 'a\.wav'; .*file:name"):
        reading.read("file://a.wav", 32_000)


@pytest.fixture
def everywhere(web, audio_file) -> list[str]:
    """Put one sound at addresses of several kinds."""
    content = audio_file("dir/a.wav", seconds=0.5).read_bytes()
    with zipfile.ZipFile("a.zip", "w") as archive:
        archive.write("dir/a.wav", "inside/a.wav")
    with fsspec.open("memory://a.wav", "wb") as file:
        file.write(content)
    return [
        f"{web}/dir/a.wav",
        "zip://inside/a.wav::a.zip",
        "memory://a.wav",
        f"simplecache::{web}/dir/a.wav",
        Path("dir/a.wav").absolute().as_uri(),
        "file:dir/a.wav",
    ]


def test_audio_at_addresses_is_embedded_like_files(small_model, everywhere):
    expected = small_model.encode("dir/a.wav")
    for address in everywhere:
        for sound in (address, {"path": address, "bytes": None}):
            np.testing.assert_array_equal(small_model.encode(sound), expected)
    rows = small_model.encode(everywhere, num_workers=2)
    np.testing.assert_allclose(rows, [expected] * len(everywhere), atol=1e-5)


def test_copies_are_removed(small_model, everywhere, tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr("tempfile.tempdir", str(folder))
    small_model.encode(everywhere[:3])
    reading.read(everywhere[0], 32_000)
    assert not list(folder.rglob("copy-*"))


def test_parts_of_one_address_are_fetched_once(embed_audio, everywhere, web):
    rows = [f"{web}/dir/a.wav,{i / 10},{i / 10 + 0.1}" for i in range(5)]
    Path("parts.csv").write_text("\n".join(["path,start,end", *rows]))
    assert embed_audio("--manifest", "file:parts.csv", "--out", "parts.parquet").exit_code == 0
    assert Handler.requests == ["/dir/a.wav"]


def test_a_run_names_outputs_after_addresses(embed_audio, everywhere, web, tmp_path):
    listed = "\n".join([*everywhere[:3], "file:dir", f"{web}/lost.wav", f"{web}/a.zip", "s3x://b/a.wav"])
    result = embed_audio("-", "--out", "out", "--num-workers", 2, stdin=listed)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (1, "4 written, 3 failed")
    assert f"{web}/lost.wav: cannot be fetched" in result.stderr
    assert f"zip://::{web}/a.zip: cannot be searched" in result.stderr  # this server sends whole files only
    assert "s3x://b/a.wav: cannot be fetched (ValueError: Protocol not known: s3x)" in result.stderr
    with np.load(tmp_path / "out" / "http" / "127.0.0.1" / "dir" / "a.wav.npz") as archive:
        assert json.loads(str(archive["provenance"]))["audio"]["file"] == everywhere[0]
    again = embed_audio("-", "--out", "out", stdin="\n".join([*everywhere[:3], "file:dir"]))
    assert (again.exit_code, again.stdout.splitlines()[-1][:20]) == (0, "0 written, 4 skipped")


def test_outputs_of_addresses_differ_and_stay_in_the_folder():
    named = find_sources(
        [
            "https://h/get?id=1",
            "https://h/get?id=2",
            "zip://a.wav::1.zip",
            "zip://a.wav::2.zip",
            "https://h/../../../etc/a.wav",
            "https://h/%2e%2e/%2fetc/b.wav",
            "s3://../x.wav",
        ]
    )
    names = name_outputs(named, ".npz")
    assert len(set(names)) == len(names)
    assert not any(name.is_absolute() or ".." in name.parts for name in names)


def test_a_manifest_leaves_addresses_as_they_are(tmp_path):
    listed = ["https://example.org/a.wav", "file:b.wav", "file:///c/d%20e.wav", "dir/f.wav", "zip://g.wav::h.zip"]
    (tmp_path / "list.txt").write_text("\n".join(listed))
    paths = [str(source.path) for source in read_manifest(tmp_path / "list.txt")]
    assert paths == [listed[0], str(tmp_path / "b.wav"), "/c/d e.wav", str(tmp_path / "dir/f.wav"), listed[4]]


# What is refused


@pytest.mark.parametrize(
    ("missing", "address", "message"),
    [
        ("fsspec", "s3://b/a.wav", r"s3://b/a\.wav: addresses need fsspec, .*'hear_transformers\[remote\]'"),
        ("s3fs", "s3://b/a.wav", r"s3://b/a\.wav: s3:// needs a package that is not installed: Install s3fs"),
        ("gcsfs", "gs://b/a.wav", r"gs://b/a\.wav: gs:// needs .*gcsfs"),
        (
            "fsspec.implementations.http",
            "https://h/a.wav",
            r"https://h/a\.wav: https:// needs .*aiohttp.*'hear_transformers\[remote\]'",
        ),
    ],
)
def test_what_is_not_installed_is_named(monkeypatch, missing, address, message):
    monkeypatch.setitem(sys.modules, missing, None)
    loaded = sys.modules["fsspec.registry"]._registry
    monkeypatch.delitem(loaded, address.partition(":")[0], raising=False)
    with pytest.raises(AudioError, match=message):
        reading.read(address, 32_000)


def test_what_cannot_be_fetched_is_named_with_the_reason(web, monkeypatch):
    monkeypatch.setattr(addresses, "MOST_BYTES", 2**21)
    Path("no.zip").write_bytes(b"PK")
    reasons = {
        f"{web}/lost.wav": "cannot be fetched .*404",
        f"{web}/endless.wav": "is larger than 2097152 bytes, or has no end",
        f"{web}/short.wav": "cannot be fetched|ended after",
        "http://127.0.0.1:1/a.wav": "cannot be fetched .*Cannot connect",
        "zip://a.wav::no.zip": "cannot be fetched .*BadZipFile",
        "memory://lost.wav": "not found; the address of a folder ends in ",
    }
    for address, reason in reasons.items():
        with pytest.raises(AudioError, match=rf"(?s)^{address}: .*({reason})"):
            reading.read(address, 32_000)


def test_weights_outputs_and_manifests_are_not_at_addresses(embed_audio, audio_file):
    with pytest.raises(OptionError, match=r"s3://b/w\.pt: is an address; weights must be on this machine"):
        efficientat.load_model("s3://b/w.pt")
    with pytest.raises(OptionError, match="weights must be on this machine"):
        catalogue.family_of_checkpoint("https://h/w.pt")
    for option, what in (("--out", "outputs"), ("--manifest", "a manifest")):
        result = embed_audio(audio_file(), option, "s3://b/place.csv")
        assert result.exit_code == 2
        assert f"s3://b/place.csv: is an address; {what} must be on this machine" in result.stderr


MEMBERS = ["deep/a.wav", "../b.flac", "we[ird]*.wav", ".hidden.wav", "__MACOSX/._a.wav", "notes.txt"]
AUDIO = ["../b.flac", "deep/a.wav", "we[ird]*.wav"]


@pytest.fixture
def archive(request, tmp_path, monkeypatch, audio_file) -> Path:
    """Make an archive of files of all kinds, with names that some would not take, in the current folder."""
    monkeypatch.chdir(tmp_path)
    file = audio_file("whole.wav", seconds=0.5)
    path = tmp_path / request.param
    if path.suffix.lower() == ".zip":
        with zipfile.ZipFile(path, "w") as zipped:
            for name in MEMBERS:
                zipped.write(file, name)
    else:
        with tarfile.open(path, "w:gz" if path.suffix == ".gz" else "w") as tarred:
            for name in MEMBERS:
                tarred.add(file, name)
    return path


every_archive = pytest.mark.parametrize("archive", ["a.zip", "A.ZIP", "a.tar", "a.tar.gz"], indirect=True)


@every_archive
def test_an_archive_is_a_folder(archive):
    sources = find_sources([archive.name])
    assert [source.name.as_posix() for source in sources] == AUDIO
    assert all(source.path.endswith(f"::{archive}") for source in sources)


@every_archive
def test_audio_in_an_archive_is_embedded_like_files(embed_audio, archive, tmp_path):
    result = embed_audio("whole.wav", archive.name, "--out", "out", "--num-workers", 1)
    assert (result.exit_code, result.stdout.splitlines()[-1]) == (0, "4 written")
    whole = np.load(tmp_path / "out" / "whole.npz")["embedding"]
    for name in ("b.npz", "deep/a.npz", "we[ird]*.npz"):
        np.testing.assert_allclose(np.load(tmp_path / "out" / name)["embedding"], whole, atol=1e-5)


@pytest.mark.parametrize("archive", ["a.zip"], indirect=True)
def test_archives_of_a_pattern_are_folders_of_their_names(archive):
    names = [source.name.as_posix() for source in find_sources(["*.zip"])]
    assert names == [f"a.zip/{name}" for name in AUDIO]


@pytest.mark.parametrize("archive", ["a.zip"], indirect=True)
def test_an_archive_is_opened_once_for_its_files(archive, monkeypatch):
    opened = []
    original = zipfile.ZipFile.__init__
    monkeypatch.setattr(
        zipfile.ZipFile, "__init__", lambda self, *args, **options: opened.append(1) or original(self, *args, **options)
    )
    sources = find_sources([archive.name])
    lengths = {len(reading.read(source.path, 32_000)) for source in sources}
    assert (lengths, len(opened)) == ({16_000}, 1)


def test_an_archive_that_has_changed_is_read_anew(tmp_path, audio_file):
    path = tmp_path / "a.zip"
    for seconds in (0.5, 1.0):
        with zipfile.ZipFile(path, "w") as zipped:
            zipped.write(audio_file("sound.wav", seconds=seconds), "a.wav")
        assert len(reading.read(Address(f"zip://a.wav::{path}"), 32_000)) == seconds * 32_000


def test_a_file_that_is_only_called_an_archive_is_itself(tmp_path):
    (tmp_path / "a.zip").write_bytes(b"RIFF")
    (source,) = find_sources([str(tmp_path / "a.zip")])
    assert source.path == tmp_path / "a.zip"


@pytest.fixture
def bucket() -> Iterator[None]:
    """Put files where fsspec keeps them in memory."""
    files = fsspec.filesystem("memory")
    for name in ("/bucket/a.wav", "/bucket/sub/b.wav", "/bucket/sub/notes.txt", "/bucket/c[1].wav"):
        files.pipe(name, b"")
    yield
    files.rm("/bucket", recursive=True)


@pytest.mark.parametrize(
    ("address", "names"),
    [
        ("memory://bucket/", ["a.wav", "c[1].wav", "sub/b.wav"]),
        ("memory://bucket/*.wav", ["a.wav", "c[1].wav"]),
        ("memory://bucket/*/*", ["sub/b.wav", "sub/notes.txt"]),
        ("memory://bucket/c[1].wav", ["c[1].wav"]),
        ("memory://bucket/a.wav", ["a.wav"]),
    ],
)
def test_folders_and_patterns_at_addresses_are_searched(bucket, address, names):
    sources = find_sources([address])
    assert [source.name.as_posix() for source in sources] == names
    assert all(fsspec.open(source.path).open().read() == b"" for source in sources)


@pytest.mark.parametrize(
    ("address", "reason"),
    [
        ("memory://bucket/sub/sub/", "no audio in it or below; audio files end in"),
        ("memory://bucket/*.flac", "no file matches this pattern"),
        ("zip://*.wav::none.zip", "cannot be searched"),
        ("s3x://bucket/", "cannot be searched (ValueError: Protocol not known: s3x)"),
    ],
)
def test_what_cannot_be_searched_is_a_failure_that_says_why(bucket, address, reason):
    (source,) = find_sources([address])
    assert str(source.error).startswith(f"{address}: {reason}")
